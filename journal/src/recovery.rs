//! From the bytes of a log to its records, and to a journal that goes on behind them.

use std::time::Instant;

use crate::disk::{DiskDone, DiskError, DiskOp, FileId};
use crate::journal::{Config, Journal};
use crate::lsn::{Lsn, ShardId, Slot};
use crate::record::{Record, RecordError};
use crate::superblock::{NodeSuperblock, SuperblockError};

/// A segment file that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotFile {
    /// The number in its name.
    pub slot: Slot,
    /// How long it is.
    pub bytes: u64,
}

/// Reads one shard's log.
#[derive(Debug)]
pub struct Recovery {}

/// A log that was read to its end.
#[derive(Debug)]
pub struct RecoveryOutcome {
    /// Goes on behind the last record.
    pub journal: Journal,
    /// What was cut off at the end, if anything.
    pub truncated: Option<Truncated>,
    /// Whether the journal had been closed, so that every answer it gave is known to be given.
    pub clean: bool,
}

/// What was cut off: written, never promised durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncated {
    /// Where the log ends now.
    pub lsn: Lsn,
    /// How many bytes of batches lay beyond.
    pub bytes: u64,
    /// How many batches.
    pub batches: u64,
}

/// Why a log can't be opened. Nothing has been written then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecoveryError {
    /// The shard's superblock.
    Superblock(SuperblockError),
    /// What had been durable is not there or doesn't check.
    Damaged {
        /// In which file, where there is one.
        file: FileId,
        /// Where in it.
        offset: u64,
        /// Where in the log.
        lsn: Lsn,
        /// What shows that it had been durable.
        evidence: Evidence,
    },
    /// The disk could not read or write: nothing is known about the bytes.
    Unreadable {
        /// Which file.
        file: FileId,
        /// Where in it.
        offset: u64,
        /// Why.
        error: DiskError,
    },
    /// A later version wrote it.
    NewerFormat {
        /// Where in the log.
        lsn: Lsn,
        /// Its version.
        version: u16,
    },
    /// A record that this version must not skip, or can't read.
    Record {
        /// Its place.
        lsn: Lsn,
        /// What is wrong.
        error: RecordError,
    },
    /// The shard's own superblock was never written although the node is formatted.
    NotFormatted,
}

/// What shows that bytes had been durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// A later batch was sealed when everything below `durable` was durable.
    LaterBatch {
        /// The batch.
        lsn: Lsn,
        /// What it says.
        durable: Lsn,
    },
    /// The superblock's durable mark.
    DurableMark(Lsn),
}

impl Recovery {
    /// A recovery of `shard` of a formatted node, with the segment files that its directory has.
    #[must_use]
    pub fn new(
        _node: &NodeSuperblock,
        _shard: ShardId,
        _slots: &[SlotFile],
        _config: Config,
    ) -> Self {
        panic!("not in yet")
    }

    /// The next thing to do on the disk, if any.
    pub fn poll_disk(&mut self) -> Option<DiskOp> {
        panic!("not in yet")
    }

    /// Takes the answer to an operation.
    pub fn handle_disk(&mut self, _now: Instant, _done: DiskDone) {
        panic!("not in yet")
    }

    /// The next record, in order. None: more has to be read, or it is over. Ask until none before
    /// the next `poll_disk`; whatever was handed out counts only if the outcome is no error.
    pub fn poll_record(&mut self) -> Option<(Lsn, Record<'_>)> {
        panic!("not in yet")
    }

    /// The end, once.
    pub fn poll_outcome(&mut self) -> Option<Result<RecoveryOutcome, RecoveryError>> {
        panic!("not in yet")
    }
}
