//! What only this member had, made durable before its log is cut.
//!
//! ```text
//!   Delta ─▶ one of that shard under way?
//!              ├─ none ────────▶ a thread: NAME.PID-N.new, synced, then renamed ─▶ its tail
//!              ├─ the same ────▶ joins it                                           │
//!              └─ another one ─▶ waits, the last that came        the shard hears ◀─┘
//!
//!   NAME: shard-SHARD-EPOCH-FROM-TO.delta
//! ```
//! Invariants: of a shard one file is written at a time. A file that is there is never replaced:
//! where it holds something else, the new one gets a number behind its name.
//!
//! Failure: what can't be written ends the process before anything is cut.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};

use journal::ShardId;
use replica::catchup::{Delta, Tail};
use tokio::task::JoinSet;

use crate::fatal::{Cause, Failure};

/// The files of a member, and who writes them.
pub(super) struct Exports {
    directory: PathBuf,
    under_way: BTreeMap<ShardId, UnderWay>,
    writing: JoinSet<(ShardId, Tail)>,
    /// Files that were begun.
    begun: u64,
}

struct UnderWay {
    tail: Tail,
    next: Option<Delta>,
}

impl Exports {
    /// Where they go; it need not be there.
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory, under_way: BTreeMap::new(), writing: JoinSet::new(), begun: 0 }
    }

    /// Makes it durable, unless that is being done. What waited before it is wanted no more.
    pub(super) fn put(&mut self, delta: Delta) {
        match self.under_way.get_mut(&delta.shard) {
            Some(under_way) if under_way.tail == delta.tail() => under_way.next = None,
            Some(under_way) => under_way.next = Some(delta),
            None => self.begin(delta),
        }
    }

    fn begin(&mut self, delta: Delta) {
        let (shard, tail) = (delta.shard, delta.tail());
        self.under_way.insert(shard, UnderWay { tail, next: None });
        self.begun += 1;
        let (directory, number) = (self.directory.clone(), self.begun);
        self.writing.spawn_blocking(move || {
            match write_durably(&directory, number, &delta) {
                Ok(path) => tracing::warn!(
                    shard = shard.0,
                    batches = delta.batches.len(),
                    "what only this member had is kept in {}",
                    path.display()
                ),
                Err(error) => {
                    let directory = directory.display();
                    let what = format!("{directory}: what is to be cut is not kept: {error}");
                    Failure::new(Cause::JournalPoisoned, what).die()
                }
            }
            (shard, tail)
        });
    }

    /// The next one that is durable; none where none is being written.
    pub(super) async fn next(&mut self) -> Option<(ShardId, Tail)> {
        let written = self.writing.join_next().await?;
        let (shard, tail) = written.expect("a write ends well, or the process does");
        let under_way = self.under_way.remove(&shard);
        if let Some(delta) = under_way.and_then(|under_way| under_way.next) {
            self.begin(delta);
        }
        Some((shard, tail))
    }
}

/// Writes a delta, or finds it: where it is.
fn write_durably(directory: &Path, number: u64, delta: &Delta) -> std::io::Result<PathBuf> {
    fs::create_dir_all(directory)?;
    if let Some(parent) = directory.parent() {
        File::open(parent)?.sync_all()?;
    }
    let bytes = delta.encode();
    let Tail { epoch, from, to } = delta.tail();
    let name = format!("shard-{:03}-{}-{from}-{to}", delta.shard.0, epoch.0);
    let new = directory.join(format!("{name}.{}-{number}.new", std::process::id()));
    let mut file = File::create(&new)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    let mut path = directory.join(format!("{name}.delta"));
    let mut others = 1;
    loop {
        match File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                fs::rename(&new, &path)?;
                break;
            }
            Err(error) => return Err(error),
            Ok(there) if holds(&there, &bytes)? => {
                there.sync_all()?;
                fs::remove_file(&new)?;
                break;
            }
            Ok(_) => others += 1,
        }
        path = directory.join(format!("{name}-{others}.delta"));
    }
    File::open(directory)?.sync_all()?;
    Ok(path)
}

fn holds(mut file: &File, bytes: &[u8]) -> std::io::Result<bool> {
    if file.metadata()?.len() != bytes.len() as u64 {
        return Ok(false);
    }
    let mut there = Vec::with_capacity(bytes.len());
    file.read_to_end(&mut there)?;
    Ok(there == bytes)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use journal::{Epoch, EpochTable, LogId, Lsn};

    use super::*;

    fn delta(log: u8, to: u64) -> Delta {
        Delta {
            log: LogId([log; 16]),
            shard: ShardId(2),
            from: Lsn(4096),
            to: Lsn(to),
            epochs: EpochTable::from_rows(vec![(Epoch(3), Lsn(4096))]).expect("one row"),
            batches: Vec::new(),
        }
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).expect("it is there");
        let name = |entry: std::io::Result<fs::DirEntry>| {
            entry.expect("readable").file_name().into_string().expect("a name")
        };
        let mut names: Vec<String> = entries.map(name).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_that_is_there_is_kept() {
        let scratch = tempfile::tempdir().expect("a directory");
        let directory = scratch.path().join("exports");
        let paths = [(1, 1), (2, 1), (3, 9), (4, 9)]
            .map(|(number, log)| write_durably(&directory, number, &delta(log, 8192)));
        let paths = paths.map(|path| path.expect("written"));
        assert_eq!(
            names(&directory),
            ["shard-002-3-4096-8192-2.delta", "shard-002-3-4096-8192.delta"]
        );
        assert_eq!((&paths[0], &paths[2]), (&paths[1], &paths[3]));
        let logs = [&paths[0], &paths[2]].map(|path| {
            let bytes = Bytes::from(fs::read(path).expect("readable"));
            Delta::decode(&bytes).expect("whole").log.0[0]
        });
        assert_eq!(logs, [1, 9]);
    }

    #[tokio::test]
    async fn the_same_joins_and_another_one_waits() {
        let scratch = tempfile::tempdir().expect("a directory");
        let mut exports = Exports::new(scratch.path().join("exports"));
        let put = [8192, 8192, 12288, 16384].map(|to| delta(1, to));
        put.into_iter().for_each(|delta| exports.put(delta));
        assert_eq!(exports.begun, 1, "of a shard one at a time");
        let mut done = Vec::new();
        while let Some((shard, tail)) = exports.next().await {
            assert_eq!(shard, ShardId(2));
            done.push(tail.to.0);
        }
        assert_eq!(done, [8192, 16384], "12288 was wanted no more");
        assert_eq!(exports.begun, 2);
    }
}
