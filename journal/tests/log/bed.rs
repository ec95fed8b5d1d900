//! The host around a journal: formats, recovers, runs, and remembers what was promised.

use std::fmt;
use std::time::{Duration, Instant};

use journal::{
    Appended, Config, DiskOp, Format, Geometry, Journal, JournalUuid, LogId, Lsn, NodeSuperblock,
    QueueId, Record, RecordKind, Recovery, RecoveryError, RecoveryOutcome, Sequence, ShardId,
    Urgency,
};

use crate::disk::{Disk, Write};

pub(crate) const SHARD: ShardId = ShardId(0);
pub(crate) const SEGMENT_BYTES: u64 = 64 * 1024;

#[expect(clippy::disallowed_methods, reason = "a test needs some moment to begin at")]
pub(crate) fn start() -> Instant {
    Instant::now()
}

/// So long that the open batch is granted room for more than one record: with short ones each is
/// asked for.
pub(crate) const LONG_SEGMENT_BYTES: u64 = 1024 * 1024;

pub(crate) fn formatted() -> (Disk, NodeSuperblock) {
    formatted_with(SEGMENT_BYTES)
}

pub(crate) fn formatted_with(segment_bytes: u64) -> (Disk, NodeSuperblock) {
    let geometry = Geometry { segment_bytes, shards: 1 };
    let mut format = Format::new(LogId([0x5a; 16]), JournalUuid([1; 16]), geometry);
    let mut disk = Disk::default();
    while let Some(op) = format.poll_disk() {
        let done = disk.complete(op);
        format.handle_disk(done);
    }
    let node = format.poll_outcome().unwrap().unwrap();
    (disk, node)
}

pub(crate) fn config() -> Config {
    Config {
        segments_max: 24,
        #[cfg(feature = "canary")]
        canary: crate::canaries::broken(),
        ..Config::default()
    }
}

/// A record as the tests compare it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) lsn: Lsn,
    pub(crate) kind: RecordKind,
    pub(crate) sequence: u64,
    pub(crate) payload: Vec<u8>,
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, lsn, bytes) = (self.kind, self.lsn, self.payload.len());
        write!(f, "{kind:?} {} at {lsn}, {bytes} bytes", self.sequence)
    }
}

/// A recovery that is driven one operation at a time, and the records it gave.
pub(crate) struct Recovering {
    pub(crate) recovery: Recovery,
    pub(crate) seen: Vec<Seen>,
}

impl Recovering {
    pub(crate) fn new(disk: &Disk, node: &NodeSuperblock, config: &Config) -> Self {
        let recovery = Recovery::new(node, SHARD, &disk.slots(SHARD), config.clone());
        Self { recovery, seen: Vec::new() }
    }

    pub(crate) fn next_op(&mut self) -> Option<DiskOp> {
        while let Some((lsn, record)) = self.recovery.poll_record() {
            self.seen.push(Seen {
                lsn,
                kind: record.kind,
                sequence: record.sequence.0,
                payload: record.payload.to_vec(),
            });
        }
        self.recovery.poll_disk()
    }

    pub(crate) fn run(
        mut self,
        disk: &mut Disk,
    ) -> (Result<RecoveryOutcome, RecoveryError>, Vec<Seen>) {
        let now = start();
        while let Some(op) = self.next_op() {
            let done = disk.complete(op);
            self.recovery.handle_disk(now, done);
        }
        (self.recovery.poll_outcome().expect("it has ended"), self.seen)
    }
}

pub(crate) fn recover(disk: &mut Disk, node: &NodeSuperblock) -> (RecoveryOutcome, Vec<Seen>) {
    let (outcome, seen) = Recovering::new(disk, node, &config()).run(disk);
    (outcome.expect("the log is whole"), seen)
}

pub(crate) fn recover_error(disk: &mut Disk, node: &NodeSuperblock) -> RecoveryError {
    let before = disk.platter.clone();
    let (outcome, _) = Recovering::new(disk, node, &config()).run(disk);
    assert_eq!(disk.platter, before, "a failed recovery writes nothing");
    outcome.map(|_| ()).expect_err("the log is damaged")
}

/// A running journal, its disk, and what was appended.
pub(crate) struct Bed {
    pub(crate) journal: Journal,
    pub(crate) disk: Disk,
    pub(crate) now: Instant,
    pub(crate) pending: Vec<DiskOp>,
    pub(crate) appended: Vec<(Appended, Seen)>,
}

impl Bed {
    pub(crate) fn new(journal: Journal, disk: Disk) -> Self {
        Self { journal, disk, now: start(), pending: Vec::new(), appended: Vec::new() }
    }

    pub(crate) fn fresh() -> (Self, NodeSuperblock) {
        Self::fresh_with(SEGMENT_BYTES)
    }

    pub(crate) fn fresh_with(segment_bytes: u64) -> (Self, NodeSuperblock) {
        let (mut disk, node) = formatted_with(segment_bytes);
        let (outcome, seen) = recover(&mut disk, &node);
        assert!(seen.is_empty() && outcome.clean && outcome.truncated.is_none());
        (Self::new(outcome.journal, disk), node)
    }

    pub(crate) fn append(&mut self, kind: RecordKind, sequence: u64, payload: &[u8]) -> Appended {
        self.try_append(kind, sequence, payload, Urgency::Now).expect("there is room")
    }

    pub(crate) fn try_append(
        &mut self,
        kind: RecordKind,
        sequence: u64,
        payload: &[u8],
        urgency: Urgency,
    ) -> Result<Appended, journal::AppendError> {
        let record = Record::new(kind, QueueId(1), Sequence(sequence), payload);
        let appended = self.journal.append(self.now, &record, urgency)?;
        let seen = Seen { lsn: appended.lsn, kind, sequence, payload: payload.to_vec() };
        self.appended.push((appended, seen));
        Ok(appended)
    }

    /// Takes what the journal wants done, without doing it.
    pub(crate) fn poll(&mut self) {
        while let Some(op) = self.journal.poll_disk(self.now) {
            self.pending.push(op);
        }
    }

    /// Ends the pre-writing that is pending, and the superblock that tells of it.
    pub(crate) fn make_segments(&mut self) {
        let is_make = |op: &DiskOp| {
            matches!(op, DiskOp::Prewrite { .. })
                || matches!(op.file(), journal::FileId::ShardSuperblock(_))
        };
        while let Some(index) = self.pending.iter().position(is_make) {
            self.complete(index);
            self.poll();
        }
    }

    pub(crate) fn complete(&mut self, index: usize) {
        let op = self.pending.remove(index);
        let done = self.disk.complete(op);
        self.journal.handle_disk(self.now, done);
    }

    /// Does all there is to do at this moment.
    pub(crate) fn settle(&mut self) {
        self.poll();
        while !self.pending.is_empty() {
            self.complete(0);
            self.journal.set_committed(self.journal.durable());
            self.poll();
        }
    }

    /// Lets time pass up to the next timeout, at most `most`, and does what is due then.
    pub(crate) fn wait(&mut self, most: Duration) {
        let end = self.now + most;
        let next = self.journal.poll_timeout().unwrap_or(end);
        self.now = next.clamp(self.now, end);
        self.journal.handle_timeout(self.now);
        self.settle();
    }

    /// What was promised: every record whose end is durable.
    pub(crate) fn promised(&self) -> usize {
        let durable = self.journal.durable();
        self.appended.iter().filter(|(appended, _)| appended.end <= durable).count()
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.appended.iter().map(|(_, seen)| seen.clone()).collect()
    }
}

/// The writes among pending operations, as bytes.
pub(crate) fn writes_of(pending: &[DiskOp]) -> Vec<Write> {
    let writes = pending.iter().filter_map(|op| match op {
        DiskOp::Write { file, offset, buf, .. } => Some(Write {
            file: *file,
            offset: usize::try_from(*offset).unwrap(),
            bytes: buf.as_slice().to_vec(),
        }),
        DiskOp::Read { .. } | DiskOp::Prewrite { .. } | DiskOp::Sync { .. } => None,
    });
    writes.collect()
}
