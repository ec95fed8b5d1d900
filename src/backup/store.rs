//! The directory of backups: segments by their numbers, points that share them.
//!
//! ```text
//!   BACKUP/superblock                     whose logs these are
//!   BACKUP/shard-000/segment-<number>     as long as a segment; zeros from where it was copied to
//!   BACKUP/points/<time>/superblock       a point: superblocks that end there
//!   BACKUP/points/<time>/shard-000/superblock
//! ```
//! Invariants: one directory of one log, by both their ids. What a point needs is never written
//! again: a segment is copied on from where the newest point ends.

use std::fs::{self, File};
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use journal::{FileId, NodeSuperblock, ShardId, ShardSuperblock, Slot};

use super::extent::{Extent, bytes_in, numbers};
use super::{At, shard_superblock};
use crate::driver::{Files, Mapped, make_durably, path_failure, sync_directory};
use crate::fatal::{Cause, Failure};
use crate::journal_cli;

/// Copied at once.
const PIECE_BYTES: usize = 1 << 20;

/// Points whose names end so are not finished.
const UNFINISHED: &str = ".unfinished";

/// Copies ranges of files, and says so to somebody between two pieces.
pub(super) struct Copier<F> {
    between: F,
    piece: Vec<u8>,
    bytes: u64,
}

impl<F: FnMut() -> Result<(), Failure>> Copier<F> {
    pub(super) fn new(between: F) -> Self {
        Self { between, piece: vec![0; PIECE_BYTES], bytes: 0 }
    }

    /// How much was copied.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Copies `range` to the same place of another file, which is durable then, and its name not.
    fn copy(&mut self, from: &Path, to: &Path, copied: &Range) -> Result<(), Failure> {
        let unreadable = |error| path_failure(from, "cannot be read", &error);
        let unwritable = |error| path_failure(to, "cannot be written", &error);
        let mut source = File::open(from).map_err(unreadable)?;
        let target = File::options().create(true).truncate(false).write(true).open(to);
        let mut target = target.map_err(unwritable)?;
        target.set_len(copied.file_bytes).map_err(unwritable)?;
        source.seek(SeekFrom::Start(copied.begin)).map_err(unreadable)?;
        target.seek(SeekFrom::Start(copied.begin)).map_err(unwritable)?;
        let mut left = copied.end - copied.begin;
        while left > 0 {
            (self.between)()?;
            let len = self.piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            source.read_exact(&mut self.piece[..len]).map_err(unreadable)?;
            target.write_all(&self.piece[..len]).map_err(unwritable)?;
            self.bytes += len as u64;
            left -= len as u64;
        }
        self.zeros(&mut target, copied.zeros_to.saturating_sub(copied.end)).map_err(unwritable)?;
        target.sync_all().map_err(unwritable)
    }

    /// Blocks that were never written are slow to write, and some devices lose their syncs.
    fn zeros(&mut self, target: &mut File, mut left: u64) -> io::Result<()> {
        self.piece.fill(0);
        while left > 0 {
            let len = self.piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            target.write_all(&self.piece[..len])?;
            left -= len as u64;
        }
        Ok(())
    }
}

/// What is copied of a file.
struct Range {
    begin: u64,
    end: u64,
    /// How long the copy is.
    file_bytes: u64,
    /// Zeros are written from `end` to here.
    zeros_to: u64,
}

/// A directory of backups.
pub(super) struct Store {
    root: PathBuf,
}

impl Store {
    pub(super) fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The store of this directory's log; made if there is none.
    pub(super) fn open(root: &Path, node: &NodeSuperblock) -> Result<Self, Failure> {
        let store = Self::at(root);
        make_durably(&store.points())
            .map_err(|error| path_failure(root, "cannot be made", &error))?;
        match Files::at(root).node_superblock()? {
            None => write_durably(&root.join("superblock"), &node.copied(node.journal_uuid))?,
            Some(kept) if (kept.log_id, kept.journal_uuid) == (node.log_id, node.journal_uuid) => {}
            Some(kept) => {
                return Err(Failure::command(format!(
                    "{} holds backups of directory {}, log {}, and this one is {}, log {}: use \
                     another directory for it",
                    root.display(),
                    kept.journal_uuid,
                    kept.log_id,
                    node.journal_uuid,
                    node.log_id
                )));
            }
        }
        Ok(store)
    }

    fn points(&self) -> PathBuf {
        self.root.join("points")
    }

    fn segment(&self, shard: ShardId, number: u64) -> PathBuf {
        let superblock = Files::at(&self.root).path(FileId::ShardSuperblock(shard));
        superblock.with_file_name(format!("segment-{number:020}"))
    }

    /// The points, oldest first.
    pub(super) fn names(&self) -> Result<Vec<String>, Failure> {
        let points = self.points();
        let unreadable = |error| path_failure(&points, "cannot be listed", &error);
        let mut names = Vec::new();
        for entry in fs::read_dir(&points).map_err(unreadable)? {
            let name = entry.map_err(unreadable)?.file_name();
            names.extend(
                name.to_str().filter(|name| !name.ends_with(UNFINISHED)).map(str::to_owned),
            );
        }
        names.sort();
        Ok(names)
    }

    /// A point's superblocks.
    pub(super) fn point(&self, name: &str) -> Result<(Files, NodeSuperblock), Failure> {
        let files = Files::at(&self.points().join(name));
        let node = files.node_superblock()?;
        let node = node.ok_or_else(|| {
            Failure::new(Cause::JournalDamaged, format!("point {name} has no superblock"))
        })?;
        Ok((files, node))
    }

    /// Where the newest point of a shard ends.
    fn end(&self, shard: ShardId) -> Result<u64, Failure> {
        let mut end = 0;
        for name in self.names()? {
            let (point, node) = self.point(&name)?;
            end = end.max(shard_superblock(&point, &node, shard)?.durable.0);
        }
        Ok(end)
    }

    /// Copies what is new of a shard's log.
    pub(super) fn grow<F: FnMut() -> Result<(), Failure>>(
        &self,
        source: &Files,
        node: &NodeSuperblock,
        (shard, extent): (ShardId, &Extent),
        copier: &mut Copier<F>,
    ) -> Result<(), Failure> {
        let segment_bytes = node.geometry.segment_bytes;
        let end = self.end(shard)?;
        if end > extent.copy.durable.0 {
            return Err(Failure::command(format!(
                "shard {} ends at LSN {}, and an earlier point at {end}: the log was cut; use \
                 another directory for its backups",
                shard.0, extent.copy.durable
            )));
        }
        let directory = self.segment(shard, 0);
        let directory = directory.parent().unwrap_or(&self.root);
        make_durably(directory)
            .map_err(|error| path_failure(directory, "cannot be made", &error))?;
        for piece in &extent.segments {
            let to = self.segment(shard, piece.number);
            let there = end.saturating_sub(piece.number * segment_bytes).min(piece.bytes);
            let begin = if to.exists() { there } else { 0 };
            let range = Range { begin, end: piece.bytes, file_bytes: segment_bytes, zeros_to: 0 };
            let from = source.path(FileId::Segment { shard, slot: piece.slot });
            if begin < piece.bytes {
                copier.copy(&from, &to, &range)?;
            }
        }
        sync_directory(directory)
    }

    /// Reads back what a point would consist of.
    pub(super) fn judge(
        &self,
        node: &NodeSuperblock,
        shard: ShardId,
        superblock: &[u8],
    ) -> Result<(), Failure> {
        let path = self.root.join("superblock");
        let point = ShardSuperblock::decode(superblock, node.log_id, shard)
            .map_err(|error| crate::driver::superblock_failure(&path, &error))?;
        let point = point.ok_or_else(|| Failure::command("a superblock is zeros"))?;
        let at = At { first: point.head, durable: point.durable };
        let map = |(slot, number): (u32, u64)| {
            let path = self.segment(shard, number);
            let map = Mapped::open(&path)
                .map_err(|error| path_failure(&path, "cannot be mapped", &error))?;
            Ok((Slot(slot), map))
        };
        let segments: Result<Vec<_>, Failure> = (0..).zip(numbers(node, at)).map(map).collect();
        journal_cli::judge(node, shard, superblock, &segments?, &[]).map(drop)
    }

    /// Makes the point known; what it is called.
    pub(super) fn publish(
        &self,
        node: &NodeSuperblock,
        superblocks: &[(ShardId, Vec<u8>)],
    ) -> Result<String, Failure> {
        let name = self.new_name()?;
        let unfinished = self.points().join(format!("{name}{UNFINISHED}"));
        let files = Files::at(&unfinished);
        for (shard, bytes) in superblocks {
            write_durably(&files.path(FileId::ShardSuperblock(*shard)), bytes)?;
        }
        let bytes = node.copied(node.journal_uuid);
        write_durably(&files.path(FileId::NodeSuperblock), &bytes)?;
        fs::rename(&unfinished, self.points().join(&name))
            .map_err(|error| path_failure(&unfinished, "cannot be renamed", &error))?;
        sync_directory(&self.points())?;
        Ok(name)
    }

    /// Writes a shard's segments as they were at a point.
    pub(super) fn fill<F: FnMut() -> Result<(), Failure>>(
        &self,
        target: &Files,
        node: &NodeSuperblock,
        superblock: &ShardSuperblock,
        copier: &mut Copier<F>,
    ) -> Result<(), Failure> {
        let shard = superblock.shard;
        let segment_bytes = node.geometry.segment_bytes;
        let at = At { first: superblock.head, durable: superblock.durable };
        let directory = target.path(FileId::ShardSuperblock(shard));
        let directory = directory.parent().unwrap_or(&self.root);
        make_durably(directory)
            .map_err(|error| path_failure(directory, "cannot be made", &error))?;
        for (slot, number) in (0..).zip(numbers(node, at)) {
            let to = target.path(FileId::Segment { shard, slot: Slot(slot) });
            let end = bytes_in(node, number, at);
            let range = Range { begin: 0, end, file_bytes: segment_bytes, zeros_to: segment_bytes };
            copier.copy(&self.segment(shard, number), &to, &range)?;
        }
        sync_directory(directory)
    }

    /// The time, to the second, in a form that sorts, and a number if there is one of that second.
    #[expect(clippy::disallowed_methods, reason = "a tool: a point has a date")]
    fn new_name(&self) -> Result<String, Failure> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time = utc(now.as_secs());
        let names = self.names()?;
        let is_free = |name: &String| !names.contains(name);
        let with_number = (2..).map(|number| format!("{time}-{number}"));
        let name = std::iter::once(time.clone()).chain(with_number).find(is_free);
        Ok(name.expect("there are more numbers than points"))
    }
}

/// `20261122T154500Z`, of seconds since 1970.
fn utc(unix_seconds: u64) -> String {
    let (days, second) = (unix_seconds / 86_400, unix_seconds % 86_400);
    // Years of 400 years from the first of March on, so that the odd day comes last.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, year) = (if month < 10 { month + 3 } else { month - 9 }, era * 400 + year);
    let year = if month <= 2 { year + 1 } else { year };
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

/// Writes a file that is whole or not there, and its name.
pub(super) fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let unwritable = |error| path_failure(path, "cannot be written", &error);
    make_durably(directory).map_err(unwritable)?;
    let unfinished = path.with_extension("unfinished");
    let mut file = File::create(&unfinished).map_err(unwritable)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(unwritable)?;
    fs::rename(&unfinished, path).map_err(unwritable)?;
    sync_directory(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_named_by_its_second() {
        assert_eq!(utc(0), "19700101T000000Z");
        assert_eq!(utc(951_782_399), "20000228T235959Z");
        assert_eq!(utc(951_782_400), "20000229T000000Z");
        assert_eq!(utc(1_795_362_305), "20261122T154505Z");
        assert_eq!(utc(4_107_542_400), "21000301T000000Z");
    }
}
