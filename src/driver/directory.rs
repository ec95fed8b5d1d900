//! The data directory: whose it is, what it was formatted as, and its files by their journal names.
//!
//! ```text
//!   data/lock                    held by flock while a process uses the directory
//!   data/superblock              what the whole directory is
//!   data/shard-000/superblock    where that shard's log begins
//!   data/shard-000/segment-00000 …
//! ```
//! ```text
//!   take ──────────▶ open ──────────────▶ (cores)
//!   mkdir, flock     superblock good: its geometry counts
//!                    never written and no segment there: format, as what is wanted
//! ```
//! Everything here blocks; it is used before the cores run, by the cold thread, and by the offline
//! tools. Invariants: a directory is formatted only if nothing in it looks like a log; a
//! contradicted geometry is an error, never a silent choice.
//!
//! Failure: each cause has its status (`fatal.rs`) and its message names the path.

use std::fs;
use std::io::{self, Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use journal::limits::{BLOCK_BYTES, SEGMENT_HEADER_BYTES, SHARDS_MAX};
use journal::{
    DiskDone, DiskError, DiskOp, FileId, Format, Geometry, JournalUuid, LogId, NodeSuperblock,
    ShardId, Slot, SlotFile, SuperblockError,
};
use net::file::{DataFile, DirectoryLock, FileOpen, LockError, Volume};
use net::map::FileMap;

use crate::fatal::{Cause, Failure};

/// How long to wait for the lock; `None` is for ever.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LockWait(pub(crate) Option<Duration>);

/// A line is logged this often while the lock is awaited.
const LOCK_LINE_EVERY: Duration = Duration::from_secs(5);

/// The files of a data directory, by the names that journals give them.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    root: PathBuf,
}

/// What a core needs to begin with its logs.
pub(super) struct Store {
    /// The node's superblock.
    pub(super) node: NodeSuperblock,
    /// The files.
    pub(super) files: Files,
    /// The directory is ours as long as any core has this, or the kernel still writes for one.
    pub(super) lock: Arc<DirectoryLock>,
}

/// A data directory that this process holds.
pub(crate) struct Directory {
    files: Files,
    node: NodeSuperblock,
    volume: Volume,
    direct: bool,
    formatted_now: bool,
    lock: Arc<DirectoryLock>,
}

impl Directory {
    /// Make the directory, lock it, and read or write its superblock.
    ///
    /// # Errors
    /// Each with its own cause: permission, lock, damage, newer format, mismatch, full disk.
    pub(crate) fn open(
        root: &Path,
        wait: LockWait,
        wanted: &Wanted,
        waiting: impl FnMut(),
    ) -> Result<Self, Failure> {
        Self::take(root, wait, wanted.allow_volatile, waiting)?.open(wanted)
    }

    /// Make the directory and lock it; nothing of it is changed.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub(crate) fn take(
        root: &Path,
        wait: LockWait,
        allow_volatile: bool,
        waiting: impl FnMut(),
    ) -> Result<Taken, Failure> {
        let volume = volume(&nearest_there(root))?;
        if volume.volatile && !allow_volatile {
            return Err(Failure::new(
                Cause::Volatile,
                format!("{} is on {}, which forgets at power-off", root.display(), volume.kind),
            ));
        }
        make_durably(root).map_err(|error| path_failure(root, "cannot be made", &error))?;
        let lock = lock(root, wait, waiting)?;
        let files = Files { root: root.to_owned() };
        let node = files.node_superblock()?;
        Ok(Taken { files, node, lock })
    }

    /// Hold a directory that is there, for a tool that reads it; nothing but the lock is touched,
    /// and where not even that may be written, there is no lock.
    ///
    /// # Errors
    /// It is not there, is held, or is no data directory.
    pub(crate) fn inspect(root: &Path) -> Result<Inspected, Failure> {
        let files = Files { root: root.to_owned() };
        if !files.path(FileId::NodeSuperblock).exists() {
            return Err(Failure::command(format!(
                "{} is no data directory: it has no superblock",
                root.display()
            )));
        }
        let lock = match lock(root, LockWait(Some(Duration::ZERO)), || {}) {
            Ok(lock) => Some(lock),
            Err(failure) if failure.cause == Cause::NoPermission => None,
            Err(failure) => return Err(failure),
        };
        match files.node_superblock()? {
            Some(node) => Ok((files, node, lock)),
            None => Err(Failure::command(format!("{} was never formatted", root.display()))),
        }
    }

    /// The files.
    pub(crate) fn files(&self) -> Files {
        self.files.clone()
    }

    /// What a core needs of it.
    pub(super) fn store(&self) -> Store {
        Store { node: self.node(), files: self.files(), lock: Arc::clone(&self.lock) }
    }

    /// What it was formatted as.
    pub(crate) fn node(&self) -> NodeSuperblock {
        self.node.clone()
    }

    /// The file system under it.
    pub(crate) fn volume(&self) -> &Volume {
        &self.volume
    }

    /// Whether its files go past the page cache.
    pub(crate) fn is_direct(&self) -> bool {
        self.direct
    }

    /// Whether it was made by this start.
    pub(crate) fn is_new(&self) -> bool {
        self.formatted_now
    }

    /// Bytes that its files hold already.
    pub(crate) fn bytes_used(&self) -> u64 {
        (0..self.node.geometry.shards)
            .flat_map(|shard| self.files.slots(ShardId(shard)).unwrap_or_default())
            .map(|slot| slot.bytes)
            .sum()
    }
}

/// A directory that is ours, and was not touched yet.
pub(crate) struct Taken {
    files: Files,
    node: Option<NodeSuperblock>,
    lock: DirectoryLock,
}

impl Taken {
    /// What it was formatted as; none if it never was.
    pub(crate) fn node(&self) -> Option<&NodeSuperblock> {
        self.node.as_ref()
    }

    /// Whether no other process can use the directory: the lock is held, and this machine's kernel
    /// alone gives it. It says nothing of a copy, or of a block device that was taken away from a
    /// machine that still runs.
    pub(crate) fn is_sole(&self) -> bool {
        self.lock.is_sole()
    }

    /// Settle what is there, or format it.
    ///
    /// # Errors
    /// As for [`Directory::open`].
    pub(crate) fn open(self, wanted: &Wanted) -> Result<Directory, Failure> {
        let Self { files, node, lock } = self;
        let root = &files.root;
        let formatted_now = node.is_none();
        let node = match node {
            Some(node) => {
                wanted.agrees(&node, root)?;
                files.settle(&node)?;
                node
            }
            None => files.format(wanted)?,
        };
        let direct = files.check_direct()?;
        // Again: a format has used some of the space.
        let volume = volume(root)?;
        Ok(Directory { files, node, volume, direct, formatted_now, lock: Arc::new(lock) })
    }
}

/// A directory that is only read: its files, what it was formatted as, and the lock if it can be
/// had.
pub(crate) type Inspected = (Files, NodeSuperblock, Option<DirectoryLock>);

/// The bytes of a file; an empty one cannot be mapped.
pub(crate) struct Mapped(Option<FileMap>);

impl Mapped {
    /// A file, mapped to be read.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let is_empty = fs::metadata(path)?.len() == 0;
        Ok(Self((!is_empty).then(|| FileMap::open(path)).transpose()?))
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

/// What a start wants of a directory.
pub(crate) struct Wanted {
    /// Segment size for a new one, bytes.
    pub(crate) segment_bytes: u64,
    /// The operator said so, so an old one must agree.
    pub(crate) segment_bytes_given: bool,
    /// Shards for a new one.
    pub(crate) shards: u16,
    /// The operator said so, so an old one must agree.
    pub(crate) shards_given: bool,
    /// A file system that forgets at power-off will do.
    pub(crate) allow_volatile: bool,
    /// The log that a new one is to hold, and its own number; drawn where nobody says so.
    pub(crate) identity: Option<(LogId, JournalUuid)>,
}

impl Wanted {
    fn agrees(&self, node: &NodeSuperblock, root: &Path) -> Result<(), Failure> {
        let Geometry { segment_bytes, shards } = node.geometry;
        let contradicted = |what: &str, wanted: u64, there: u64| {
            let root = root.display();
            let message = format!("{root} was formatted with {what} {there}, not {wanted}");
            Err(Failure::new(Cause::DirectoryMismatch, message))
        };
        if self.segment_bytes_given && self.segment_bytes != segment_bytes {
            return contradicted("segment-size", self.segment_bytes, segment_bytes);
        }
        if self.shards_given && self.shards != shards {
            return contradicted("shards", u64::from(self.shards), u64::from(shards));
        }
        Ok(())
    }
}

/// Make a directory with all above it, and their names durable.
pub(crate) fn make_durably(root: &Path) -> io::Result<()> {
    let root = std::path::absolute(root)?;
    let missing: Vec<&Path> = root.ancestors().take_while(|path| !path.exists()).collect();
    fs::create_dir_all(&root)?;
    for path in missing.iter().filter_map(|path| path.parent()) {
        net::file::sync_directory(path)?;
    }
    match (missing.is_empty(), root.parent()) {
        // A process before us may have made it and been killed; a parent that we may not even read
        // is not where that happened.
        (true, Some(parent)) => match net::file::sync_directory(parent) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            synced => synced,
        },
        (false, _) | (_, None) => Ok(()),
    }
}

/// Make the names in a directory durable.
pub(crate) fn sync_directory(directory: &Path) -> Result<(), Failure> {
    net::file::sync_directory(directory)
        .map_err(|error| path_failure(directory, "cannot be synced", &error))
}

/// The directory, or the one in which it would be made.
pub(crate) fn nearest_there(data: &Path) -> PathBuf {
    let absolute = std::path::absolute(data).unwrap_or_else(|_| data.to_owned());
    let there = absolute.ancestors().find(|path| path.is_dir());
    there.unwrap_or(Path::new("/")).to_owned()
}

/// The file system that holds `root`.
pub(crate) fn volume(root: &Path) -> Result<Volume, Failure> {
    net::file::volume(root).map_err(|error| path_failure(root, "cannot be looked at", &error))
}

fn lock(root: &Path, wait: LockWait, mut waiting: impl FnMut()) -> Result<DirectoryLock, Failure> {
    let mut line_due = Duration::ZERO;
    let told = |holder: &str, waited: Duration| {
        waiting();
        if waited >= line_due {
            line_due = waited + LOCK_LINE_EVERY;
            tracing::info!(
                "waiting for {}: {holder} holds it ({} s so far)",
                root.display(),
                waited.as_secs()
            );
        }
    };
    DirectoryLock::acquire(root, wait.0.unwrap_or(Duration::MAX), told).map_err(|error| match error
    {
        LockError::Held { .. } => Failure::new(Cause::LockHeld, error.to_string()),
        LockError::Io { ref path, error: ref io } => path_failure(path, "cannot be locked", io),
    })
}

/// What went wrong with a path, by the kernel's word.
pub(crate) fn path_failure(path: &Path, what: &str, error: &io::Error) -> Failure {
    use io::ErrorKind::{AlreadyExists, NotADirectory, PermissionDenied, ReadOnlyFilesystem};
    let cause = if is_full(error) {
        Cause::DiskFull
    } else if [AlreadyExists, NotADirectory].contains(&error.kind()) {
        // Something else has the name: a wrong path, no fault of the disk.
        Cause::ConfigInvalid
    } else if [PermissionDenied, ReadOnlyFilesystem].contains(&error.kind()) {
        Cause::NoPermission
    } else {
        Cause::JournalUnreadable
    };
    Failure::new(cause, format!("{} {what}: {error}", path.display()))
}

/// The kernel's word in the journal's vocabulary.
pub(super) fn disk_error(error: &io::Error) -> DiskError {
    /// `EIO`, for an error that has no number.
    const EIO: i32 = 5;
    if is_full(error) {
        DiskError::NoSpace
    } else {
        DiskError::Io(error.raw_os_error().unwrap_or(EIO))
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl Files {
    /// The files below a directory, whoever holds it: only to be read.
    pub(crate) fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The bytes of a shard's superblock; none where it is missing.
    pub(crate) fn shard_superblock(&self, shard: ShardId) -> Result<Vec<u8>, Failure> {
        let path = self.path(FileId::ShardSuperblock(shard));
        match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            read => read.map_err(|error| path_failure(&path, "cannot be read", &error)),
        }
    }

    /// Where a file is.
    pub(crate) fn path(&self, file: FileId) -> PathBuf {
        self.root.join(file.to_string())
    }

    /// Open a file that is there, for a ring.
    pub(super) fn open(&self, file: FileId) -> io::Result<DataFile> {
        net::file::open(&self.path(file), FileOpen { create: false, write: true, direct: true })
    }

    /// Write to the page cache and leave it there.
    #[cfg(feature = "canary")]
    pub(super) fn write_unsynced(&self, file: FileId, bytes: &[u8], offset: u64) -> io::Result<()> {
        use std::os::unix::fs::FileExt as _;
        fs::File::options().write(true).open(self.path(file))?.write_all_at(bytes, offset)
    }

    /// The segment files of a shard, by slot.
    pub(crate) fn slots(&self, shard: ShardId) -> Result<Vec<SlotFile>, Failure> {
        let directory = self.path(FileId::ShardSuperblock(shard));
        let directory = directory.parent().unwrap_or(&self.root);
        let unreadable = |error: io::Error| path_failure(directory, "cannot be listed", &error);
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(unreadable(error)),
        };
        let mut slots = Vec::new();
        for entry in entries {
            let entry = entry.map_err(unreadable)?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("segment-"));
            let Some(slot) = number.and_then(|number| number.parse().ok()).map(Slot) else {
                continue;
            };
            let bytes = entry.metadata().map_err(unreadable)?.len();
            slots.push(SlotFile { slot, bytes });
        }
        slots.sort_by_key(|file| file.slot);
        Ok(slots)
    }

    /// The segments of a shard, mapped to be read. Only under the directory's lock.
    pub(crate) fn map_segments(&self, shard: ShardId) -> Result<Vec<(Slot, Mapped)>, Failure> {
        let map = |file: SlotFile| {
            let path = self.path(FileId::Segment { shard, slot: file.slot });
            let map = Mapped::open(&path);
            let map = map.map_err(|error| path_failure(&path, "cannot be mapped", &error))?;
            Ok((file.slot, map))
        };
        self.slots(shard)?.into_iter().map(map).collect()
    }

    /// Pre-write a file, make it if it is not there, and make its name durable.
    pub(super) fn prewrite(&self, file: FileId, bytes: u64) -> Result<(), DiskError> {
        let path = self.path(file);
        let parent = path.parent().unwrap_or(&self.root);
        let written = (|| {
            fs::create_dir_all(parent)?;
            let how = FileOpen { create: true, write: true, direct: true };
            let data = match net::file::open(&path, how) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.open(file)?,
                opened => opened?,
            };
            data.prewrite(bytes)?;
            net::file::sync_directory(parent)?;
            net::file::sync_directory(&self.root)
        })();
        written.map_err(|error| disk_error(&error))
    }

    /// The node's superblock; `None` if it was never written.
    pub(crate) fn node_superblock(&self) -> Result<Option<NodeSuperblock>, Failure> {
        let path = self.path(FileId::NodeSuperblock);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(path_failure(&path, "cannot be read", &error)),
        };
        NodeSuperblock::decode(&bytes).map_err(|error| superblock_failure(&path, &error))
    }

    /// Make durable what was only read. After a kill the kernel may show a superblock, or the name
    /// of a file, that was never synced: served on, the log would vanish at the next power cut.
    fn settle(&self, node: &NodeSuperblock) -> Result<(), Failure> {
        let path = self.path(FileId::NodeSuperblock);
        fs::File::open(&path)
            .and_then(|file| file.sync_all())
            .map_err(|error| path_failure(&path, "cannot be synced", &error))?;
        let shards = (0..node.geometry.shards).map(|shard| {
            let superblock = self.path(FileId::ShardSuperblock(ShardId(shard)));
            superblock.parent().unwrap_or(&self.root).to_owned()
        });
        for directory in shards.chain([self.root.clone()]) {
            // A shard's directory that is not there is for its recovery to judge.
            if directory.exists() {
                sync_directory(&directory)?;
            }
        }
        Ok(())
    }

    /// Make a log of an empty directory.
    fn format(&self, wanted: &Wanted) -> Result<NodeSuperblock, Failure> {
        self.refuse_orphans()?;
        let geometry = Geometry { segment_bytes: wanted.segment_bytes, shards: wanted.shards };
        let (log, journal) = match wanted.identity {
            Some(identity) => identity,
            None => (LogId(random()?), JournalUuid(random()?)),
        };
        let mut format = Format::new(log, journal, geometry);
        loop {
            while let Some(op) = format.poll_disk() {
                format.handle_disk(self.perform(op));
            }
            match format.poll_outcome() {
                Some(Ok(node)) => return Ok(node),
                Some(Err(stopped)) => {
                    let cause = match stopped.error {
                        DiskError::NoSpace => Cause::DiskFull,
                        DiskError::Io(_) | DiskError::Short { .. } => Cause::JournalUnreadable,
                    };
                    let path = self.path(stopped.file);
                    let message = format!("{} cannot be made: {}", path.display(), stopped.error);
                    return Err(Failure::new(cause, message));
                }
                None => {}
            }
        }
    }

    /// A lost node superblock must not make a new log over an old one: where a segment holds a
    /// batch there was a log. A format that was cut short leaves none.
    fn refuse_orphans(&self) -> Result<(), Failure> {
        for shard in (0..SHARDS_MAX).map(ShardId) {
            for SlotFile { slot, .. } in self.slots(shard)? {
                let path = self.path(FileId::Segment { shard, slot });
                if holds_a_batch(&path)
                    .map_err(|error| path_failure(&path, "cannot be read", &error))?
                {
                    return Err(Failure::new(
                        Cause::JournalDamaged,
                        format!(
                            "{} has no superblock, but {} holds records: restore the superblock",
                            self.root.display(),
                            path.display()
                        ),
                    ));
                }
            }
        }
        Ok(())
    }

    /// Carry out one operation, here and now.
    fn perform(&self, op: DiskOp) -> DiskDone {
        match op {
            DiskOp::Prewrite { id, file, bytes } => {
                DiskDone { id, result: self.prewrite(file, bytes).map(|()| 0), buf: None }
            }
            DiskOp::Write { id, file, offset, buf } => {
                let written =
                    self.open(file).and_then(|file| file.write_durable_at(buf.as_slice(), offset));
                let result = done(written, buf.len());
                DiskDone { id, result, buf: Some(buf) }
            }
            DiskOp::Read { id, file, offset, mut buf } => {
                let read =
                    self.open(file).and_then(|file| file.read_at(buf.as_mut_slice(), offset));
                let result = done(read, buf.len());
                DiskDone { id, result, buf: Some(buf) }
            }
            DiskOp::Sync { id, file } => {
                let synced = fs::File::open(self.path(file)).and_then(|file| file.sync_data());
                DiskDone { id, result: done(synced, 0), buf: None }
            }
        }
    }

    /// Whether direct I/O is to be had, and a block of ours is enough for the device.
    fn check_direct(&self) -> Result<bool, Failure> {
        let path = self.path(FileId::NodeSuperblock);
        let file = self
            .open(FileId::NodeSuperblock)
            .map_err(|error| path_failure(&path, "cannot be opened", &error))?;
        match file.alignment() {
            Some(bytes) if bytes as usize > BLOCK_BYTES => Err(Failure::new(
                Cause::JournalUnreadable,
                format!("{}: its device needs blocks of {bytes} bytes, not 4096", path.display()),
            )),
            Some(_) | None => Ok(file.direct()),
        }
    }
}

/// The first batch of a segment stands behind its header; what was only pre-written is zeros.
fn holds_a_batch(segment: &Path) -> io::Result<bool> {
    let mut block = Vec::with_capacity(BLOCK_BYTES);
    let mut file = fs::File::open(segment)?;
    file.seek(io::SeekFrom::Start(SEGMENT_HEADER_BYTES))?;
    file.take(BLOCK_BYTES as u64).read_to_end(&mut block)?;
    Ok(block.iter().any(|&byte| byte != 0))
}

fn done(result: io::Result<()>, bytes: usize) -> Result<u32, DiskError> {
    let bytes = u32::try_from(bytes).expect("an operation is far below 4 GiB");
    result.map(|()| bytes).map_err(|error| disk_error(&error))
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N], Failure> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| {
        Failure::new(Cause::ResourceRefused, format!("the system gives no randomness: {error}"))
    })?;
    Ok(bytes)
}

pub(crate) fn superblock_failure(path: &Path, error: &SuperblockError) -> Failure {
    let cause = match error {
        SuperblockError::Version(_)
        | SuperblockError::UnknownFeatures(_)
        | SuperblockError::UnknownPart(_) => Cause::FormatUnknown,
        SuperblockError::Unreadable | SuperblockError::WrongLog(_) | SuperblockError::Malformed => {
            Cause::JournalDamaged
        }
    };
    Failure::new(cause, format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use journal::BlockBuf;
    use journal::OpId;

    use super::*;

    const WANTED: Wanted = Wanted {
        segment_bytes: 64 * 1024,
        segment_bytes_given: false,
        shards: 2,
        shards_given: false,
        allow_volatile: true,
        identity: None,
    };

    const AT_ONCE: LockWait = LockWait(Some(Duration::ZERO));

    fn open(root: &Path) -> Result<Directory, Failure> {
        Directory::open(root, AT_ONCE, &WANTED, || {})
    }

    fn cause(opened: Result<Directory, Failure>) -> Cause {
        opened.err().expect("a failure").cause
    }

    /// Let a segment hold something where its first batch would stand.
    fn write_a_batch(files: &Files) {
        let mut buf = BlockBuf::zeroed(BLOCK_BYTES);
        buf.as_mut_slice()[0] = 1;
        let file = FileId::Segment { shard: ShardId(1), slot: Slot(0) };
        let done =
            files.perform(DiskOp::Write { id: OpId(1), file, offset: SEGMENT_HEADER_BYTES, buf });
        assert_eq!(done.result, Ok(4096));
    }

    #[test]
    fn a_new_directory_is_formatted_once_and_found_again() {
        let root = tempfile::tempdir().expect("a directory");
        let data = root.path().join("a/b");
        let first = open(&data).expect("formatted");
        assert!(first.is_new() && first.bytes_used() > 0);
        let node = first.node();
        drop(first);
        let second = open(&data).expect("found");
        assert!(!second.is_new());
        assert_eq!(second.node(), node);
    }

    #[test]
    fn a_directory_has_one_holder() {
        let root = tempfile::tempdir().expect("a directory");
        let holder = open(root.path()).expect("formatted");
        assert_eq!(cause(open(root.path())), Cause::LockHeld);
        assert_eq!(
            Directory::inspect(root.path()).map(drop).expect_err("held").cause,
            Cause::LockHeld
        );
        drop(holder);
        open(root.path()).expect("free again");
    }

    #[test]
    fn a_path_that_is_a_file_is_no_fault_of_the_disk() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        assert_eq!(cause(open(file.path())), Cause::ConfigInvalid);
        assert_eq!(cause(open(&file.path().join("below"))), Cause::ConfigInvalid);
        assert!(file.path().is_file(), "it is left alone");
    }

    #[test]
    fn what_was_formatted_is_never_contradicted() {
        let root = tempfile::tempdir().expect("a directory");
        drop(open(root.path()).expect("formatted"));
        let other = Wanted { segment_bytes: 128 * 1024, shards: 3, ..WANTED };
        drop(Directory::open(root.path(), AT_ONCE, &other, || {}).expect("defaults give way"));
        for wanted in
            [Wanted { segment_bytes_given: true, ..other }, Wanted { shards_given: true, ..other }]
        {
            let opened = Directory::open(root.path(), AT_ONCE, &wanted, || {});
            assert_eq!(cause(opened), Cause::DirectoryMismatch);
        }
    }

    #[test]
    fn a_lost_superblock_never_makes_a_new_log_over_an_old_one() {
        let root = tempfile::tempdir().expect("a directory");
        write_a_batch(&open(root.path()).expect("formatted").files());
        let superblock = root.path().join("superblock");
        fs::write(&superblock, vec![0; 2 * BLOCK_BYTES]).expect("blanked");
        assert_eq!(cause(open(root.path())), Cause::JournalDamaged);
        fs::remove_file(&superblock).expect("removed");
        assert_eq!(cause(open(root.path())), Cause::JournalDamaged);
        assert!(!superblock.exists(), "nothing was changed");
    }

    #[test]
    fn a_format_that_was_cut_short_is_begun_again() {
        let root = tempfile::tempdir().expect("a directory");
        drop(open(root.path()).expect("formatted"));
        fs::remove_file(root.path().join("superblock")).expect("removed");
        fs::remove_dir_all(root.path().join("shard-001")).expect("removed");
        assert!(open(root.path()).expect("formatted").is_new());
    }

    #[test]
    fn an_unreadable_superblock_stops_the_start() {
        let root = tempfile::tempdir().expect("a directory");
        drop(open(root.path()).expect("formatted"));
        fs::write(root.path().join("superblock"), b"something else").expect("spoilt");
        assert_eq!(cause(open(root.path())), Cause::JournalDamaged);
    }

    #[test]
    fn a_missing_file_holds_no_bytes_and_takes_none() {
        let root = tempfile::tempdir().expect("a directory");
        let files = open(root.path()).expect("formatted").files();
        let file = FileId::Segment { shard: ShardId(0), slot: Slot(77) };
        let written =
            files.perform(DiskOp::Write { id: OpId(1), file, offset: 0, buf: BlockBuf::zeroed(1) });
        assert!(matches!(written.result, Err(DiskError::Io(_))));
        assert!(written.buf.is_some());
    }
}
