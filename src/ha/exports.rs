//! What only this member had, made durable before its log is cut or given up.
//!
//! ```text
//!   Head ─▶ a thread: NAME.PID-N.new ◀─ Batches, piece by piece ─ End ─▶ synced, NAME.delta
//!             │                            │
//!             └── Taken ───────────────────┴─▶ the next piece may come      Durable ◀─┘
//!
//!   NAME: shard-SHARD-EPOCH-FROM-TO
//! ```
//! A head that comes while a file of that shard is being written begins another one: the connection
//! that asked for the older one is gone, and what was written of it is removed.
//!
//! Invariants: a file with the name of a delta is whole and durable. One that is there is never
//! replaced: where it holds something else, the new one gets a number behind its name. Memory: a
//! shard has one piece under way.
//!
//! Failure: what can't be written ends the process before anything is cut. What a process that
//! ended has left of a file is removed by the next one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufReader, ErrorKind, Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};

use bytes::BytesMut;
use journal::ShardId;
use replica::catchup::{DeltaWriter, Piece, Tail};
use tokio::sync::mpsc;

use crate::fatal::{Cause, Failure};

const SUFFIX: &str = "delta";
const UNFINISHED: &str = "new";

/// How far a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The next piece may come.
    Taken(ShardId, Tail),
    /// All of it is there to stay.
    Durable(ShardId, Tail),
}

/// The files of a member, and who writes them.
pub(super) struct Exports {
    directory: PathBuf,
    /// Pieces for the file of a shard.
    under_way: BTreeMap<ShardId, (Tail, Sender<Piece>)>,
    steps: mpsc::UnboundedReceiver<Step>,
    step: mpsc::UnboundedSender<Step>,
    /// Files that were begun.
    begun: u64,
}

impl Exports {
    /// Where they go; it need not be there. Nobody else writes there.
    pub(super) fn new(directory: PathBuf) -> Self {
        for path in files(&directory, UNFINISHED) {
            match fs::remove_file(&path) {
                Ok(()) => tracing::info!("{} was not finished, and is removed", path.display()),
                Err(error) => tracing::warn!("{} can't be removed: {error}", path.display()),
            }
        }
        let (step, steps) = mpsc::unbounded_channel();
        Self { directory, under_way: BTreeMap::new(), steps, step, begun: 0 }
    }

    /// How many there are.
    pub(super) fn count(&self) -> u64 {
        files(&self.directory, SUFFIX).len() as u64
    }

    /// Writes the next piece of a shard's file.
    pub(super) fn put(&mut self, shard: ShardId, tail: Tail, piece: Piece) {
        if let Piece::Head(_) = piece {
            self.begin(shard, tail);
        }
        let is_last = piece == Piece::End;
        if let Some((known, pieces)) = self.under_way.get(&shard)
            && *known == tail
        {
            // The thread lives until its pieces end, or the process does.
            drop(pieces.send(piece));
        }
        if is_last {
            self.under_way.remove(&shard);
        }
    }

    fn begin(&mut self, shard: ShardId, tail: Tail) {
        let (pieces, queue) = channel();
        self.under_way.insert(shard, (tail, pieces));
        self.begun += 1;
        let file = Export {
            directory: self.directory.clone(),
            number: self.begun,
            shard,
            tail,
            step: self.step.clone(),
        };
        let spawned = std::thread::Builder::new().name("export".to_owned()).spawn(move || {
            if let Err(error) = file.write(&queue) {
                let directory = file.directory.display();
                let what = format!("{directory}: what is to be cut is not kept: {error}");
                Failure::new(Cause::JournalPoisoned, what).die()
            }
        });
        if let Err(error) = spawned {
            let what = format!("no thread to keep what is to be cut: {error}");
            Failure::new(Cause::ResourceRefused, what).die()
        }
    }

    /// The next step of a file.
    pub(super) async fn next(&mut self) -> Step {
        self.steps.recv().await.expect("one sender is here")
    }
}

/// One file, in a thread of its own.
struct Export {
    directory: PathBuf,
    number: u64,
    shard: ShardId,
    tail: Tail,
    step: mpsc::UnboundedSender<Step>,
}

impl Export {
    fn name(&self) -> String {
        let Tail { epoch, from, to } = self.tail;
        format!("shard-{:03}-{}-{from}-{to}", self.shard.0, epoch.0)
    }

    /// Writes what comes, until its end, or until nobody has more for it.
    fn write(&self, pieces: &Receiver<Piece>) -> std::io::Result<()> {
        fs::create_dir_all(&self.directory)?;
        if let Some(parent) = self.directory.parent() {
            File::open(parent)?.sync_all()?;
        }
        let unfinished =
            format!("{}.{}-{}.{UNFINISHED}", self.name(), std::process::id(), self.number);
        let new = self.directory.join(unfinished);
        let mut file = File::create(&new)?;
        let (mut writer, mut bytes) = (DeltaWriter::default(), BytesMut::new());
        while let Ok(piece) = pieces.recv() {
            writer.write(&piece, &mut bytes);
            file.write_all(&bytes)?;
            bytes.clear();
            if piece == Piece::End {
                file.sync_all()?;
                let path = self.settle(&new)?;
                tracing::warn!(
                    shard = self.shard.0,
                    "what only this member had is kept in {}",
                    path.display()
                );
                // The control thread ends with the process.
                let _ = self.step.send(Step::Durable(self.shard, self.tail));
                return Ok(());
            }
            let _ = self.step.send(Step::Taken(self.shard, self.tail));
        }
        fs::remove_file(&new)
    }

    /// Gives the file its name, or finds what it holds there: where it is.
    fn settle(&self, new: &Path) -> std::io::Result<PathBuf> {
        let mut path = self.directory.join(format!("{}.{SUFFIX}", self.name()));
        let mut others = 1;
        loop {
            // A link replaces nothing.
            match fs::hard_link(new, &path) {
                Ok(()) => break,
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                Err(_) if holds_the_same(&path, new)? => {
                    File::open(&path)?.sync_all()?;
                    break;
                }
                Err(_) => others += 1,
            }
            path = self.directory.join(format!("{}-{others}.{SUFFIX}", self.name()));
        }
        fs::remove_file(new)?;
        File::open(&self.directory)?.sync_all()?;
        Ok(path)
    }
}

/// The files in a directory whose names end so.
fn files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    let paths = entries.map(|entry| entry.path());
    paths.filter(|path| path.extension().is_some_and(|there| there == extension)).collect()
}

fn holds_the_same(one: &Path, other: &Path) -> std::io::Result<bool> {
    let (one, other) = (File::open(one)?, File::open(other)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut one, mut other) = (BufReader::new(one).bytes(), BufReader::new(other).bytes());
    loop {
        match (one.next().transpose()?, other.next().transpose()?) {
            (None, None) => return Ok(true),
            (mine, theirs) if mine != theirs => return Ok(false),
            (Some(_), _) | (None, Some(_)) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use journal::{Epoch, EpochTable, LogId, Lsn};
    use replica::catchup::{Delta, DeltaHead};

    use super::*;

    const SHARD: ShardId = ShardId(2);

    fn head(log: u8, to: u64) -> DeltaHead {
        DeltaHead {
            log: LogId([log; 16]),
            shard: SHARD,
            from: Lsn(4096),
            to: Lsn(to),
            epochs: EpochTable::from_rows(vec![(Epoch(3), Lsn(4096))]).expect("one row"),
            is_overruled: false,
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

    async fn export(exports: &mut Exports, head: DeltaHead) {
        let tail = head.tail();
        exports.put(SHARD, tail, Piece::Head(Box::new(head)));
        assert_eq!(exports.next().await, Step::Taken(SHARD, tail));
        exports.put(SHARD, tail, Piece::End);
        assert_eq!(exports.next().await, Step::Durable(SHARD, tail));
    }

    #[tokio::test]
    async fn a_file_that_is_there_is_kept() {
        let scratch = tempfile::tempdir().expect("a directory");
        let directory = scratch.path().join("exports");
        let mut exports = Exports::new(directory.clone());
        for log in [1, 1, 9, 9] {
            export(&mut exports, head(log, 8192)).await;
        }
        let expected = ["shard-002-3-4096-8192-2.delta", "shard-002-3-4096-8192.delta"];
        assert_eq!((names(&directory), exports.count()), (expected.map(String::from).into(), 2));
        let logs = [1, 0].map(|at: usize| {
            let bytes = Bytes::from(fs::read(directory.join(expected[at])).expect("readable"));
            Delta::decode(&bytes).expect("whole").head.log.0[0]
        });
        assert_eq!(logs, [1, 9]);
    }

    #[tokio::test]
    async fn what_was_begun_and_not_ended_is_removed() {
        let scratch = tempfile::tempdir().expect("a directory");
        let directory = scratch.path().join("exports");
        let mut exports = Exports::new(directory.clone());
        let given_up = head(1, 12288);
        exports.put(SHARD, given_up.tail(), Piece::Head(Box::new(given_up.clone())));
        assert_eq!(exports.next().await, Step::Taken(SHARD, given_up.tail()));
        export(&mut exports, head(1, 8192)).await;
        exports.put(SHARD, given_up.tail(), Piece::End);
        drop(exports);
        fs::write(directory.join("shard-000-1-4096-8192.7-1.new"), b"half").expect("written");
        let exports = Exports::new(directory.clone());
        assert_eq!(exports.count(), 1);
        let is_left = |name: &String| name.contains(".7-1.");
        assert!(!names(&directory).iter().any(is_left), "{:?}", names(&directory));
    }
}
