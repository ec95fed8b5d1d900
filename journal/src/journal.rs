//! A running log: append, commit, recycle.

use std::time::{Duration, Instant};

use crate::disk::{DiskDone, DiskError, DiskOp, FileId};
use crate::lsn::Lsn;
use crate::record::Record;

/// The knobs of one shard's journal.
#[derive(Clone, Debug)]
pub struct Config {
    /// Most batches being written at once, 1 to 8.
    pub writes_in_flight_max: usize,
    /// Most segment files this shard may have: its disk budget.
    pub segments_max: u32,
    /// How long records that nobody waits for may wait for company.
    pub flush_window: Duration,
    /// How long a write may take before the disk counts as stuck.
    pub write_bound: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            writes_in_flight_max: 4,
            segments_max: 64,
            flush_window: Duration::from_millis(5),
            write_bound: Duration::from_secs(30),
        }
    }
}

/// Whether somebody waits for a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// Somebody waits: written as soon as the disk takes it.
    Now,
    /// Nobody waits: written with the next batch, or when the flush window has passed.
    Window,
}

/// Where a record went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Its place (of its first fragment).
    pub lsn: Lsn,
    /// The end of its last byte: it is durable once `durable() >= end`.
    pub end: Lsn,
}

/// Why a record was not appended. Nothing of it is in the log then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendError {
    /// The log has used its budget, or the file system is full: only what frees space is taken.
    Full,
    /// Space or the disk's answer is on its way: withhold credit and try again soon.
    Busy,
    /// The message can't be stored in any number of fragments, or its parts are too long.
    TooLarge,
    /// A write failed before; nothing more is taken, the process has to end.
    Poisoned,
    /// The journal was closed.
    Closed,
}

/// The first failure of a journal: nothing is durable after it, and nothing is taken any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Poison {
    /// What went wrong.
    pub cause: PoisonCause,
    /// On which file.
    pub file: FileId,
    /// Where in it, bytes.
    pub offset: u64,
}

/// What poisoned a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoisonCause {
    /// A write, a sync or a pre-write failed.
    Failed(DiskError),
    /// A write neither ended nor failed within the bound.
    Hung,
}

/// The oldest segment of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Its number: it covers the bytes from `number` times the segment size.
    pub number: u64,
    /// The first LSN that a record in it can have.
    pub first_lsn: Lsn,
    /// Every record in it has a smaller LSN than this.
    pub end_lsn: Lsn,
}

/// One shard's log, running.
#[derive(Debug)]
pub struct Journal {
    durable: Lsn,
}

impl Journal {
    /// Appends a record; a payload over `fragment_bytes_max` is split. Copied once, into the batch.
    pub fn append(
        &mut self,
        _now: Instant,
        _record: &Record<'_>,
        _urgency: Urgency,
    ) -> Result<Appended, AppendError> {
        panic!("the commit path is not in yet")
    }

    /// Appends a copy of a live record from the head, which may use the reserve.
    pub fn append_copy(
        &mut self,
        _now: Instant,
        _record: &Record<'_>,
    ) -> Result<Appended, AppendError> {
        panic!("the commit path is not in yet")
    }

    /// Takes the answer to an operation.
    pub fn handle_disk(&mut self, _now: Instant, _done: DiskDone) {
        panic!("the commit path is not in yet")
    }

    /// Takes the time; due when [`poll_timeout`](Self::poll_timeout) says.
    pub fn handle_timeout(&mut self, _now: Instant) {
        panic!("the commit path is not in yet")
    }

    /// The next thing to do on the disk, if any.
    pub fn poll_disk(&mut self, _now: Instant) -> Option<DiskOp> {
        panic!("the commit path is not in yet")
    }

    /// When [`handle_timeout`](Self::handle_timeout) is next due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        panic!("the commit path is not in yet")
    }

    /// Everything below this is committed at its level (monotone; never beyond `durable()` where
    /// there is one member). Recycling never passes it.
    pub fn set_committed(&mut self, _lsn: Lsn) {
        panic!("the commit path is not in yet")
    }

    /// How many messages in the log are not settled: space is set aside for their settlements. The
    /// journal counts by itself from there; say it after recovery and when a queue is deleted.
    pub fn set_unsettled(&mut self, _messages: u64) {
        panic!("the commit path is not in yet")
    }

    /// The oldest segment, if it could be recycled as far as durability and the watermark go.
    #[must_use]
    pub fn head_segment(&self) -> Option<SegmentInfo> {
        panic!("the commit path is not in yet")
    }

    /// Gives the head segment up. The caller knows that nothing in it lives and that its copies are
    /// committed.
    ///
    /// # Panics
    /// If `head_segment()` is none.
    pub fn recycle_head(&mut self) {
        panic!("the commit path is not in yet")
    }

    /// Takes nothing more; writes what is open and then a mark that the end was clean.
    pub fn close(&mut self) {
        panic!("the commit path is not in yet")
    }

    /// Whether everything is written after [`close`](Self::close).
    #[must_use]
    pub fn is_closed(&self) -> bool {
        panic!("the commit path is not in yet")
    }

    /// The end of the contiguous durable prefix.
    #[must_use]
    pub fn durable(&self) -> Lsn {
        self.durable
    }

    /// The end of what was appended.
    #[must_use]
    pub fn appended(&self) -> Lsn {
        panic!("the commit path is not in yet")
    }

    /// The first failure, if there was one.
    #[must_use]
    pub fn poisoned(&self) -> Option<&Poison> {
        panic!("the commit path is not in yet")
    }
}
