//! A running log: append, commit, recycle.
//!
//! ```text
//!   1 append         admitted (space) -> copied into the open batch (commit), gets its LSN
//!   2 poll_disk      batches first, then the superblock (keeper), reads, then pre-writing (space),
//!                    and last a checkpoint
//!   3 handle_disk    the durable prefix grows
//!   4 set_committed  the owner says how far the promise is kept
//!   5 recycle_head   new head LSN and chain into the superblock, durably; then the slot is free
//!   6 close          everything written, then a superblock that says so
//! ```
//!
//! Invariants: head <= committed <= durable <= appended; recycling passes neither the committed
//! watermark nor the durable LSN. Every batch is written with data sync, at every level.
//! A write or sync that fails, ends short, or takes longer than `write_bound` poisons the journal:
//! `durable()` stands still, nothing more is taken or written, and the process has to end. A file
//! system without space for another segment is only a smaller budget.

mod checkpointing;
mod follower;
mod reading;

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use crate::canary::{Canaries, Canary};
use crate::commit::{Commit, Place, Wish};
use crate::disk::{DiskDone, DiskError, DiskOp, FileId, OpId};
use crate::epochs::EpochTable;
use crate::fragment::{self, FragmentAt, fragment_bytes_max};
use crate::identity::LogSeed;
use crate::keeper::{Keeper, NewHead, Reached};
use crate::limits::{
    BACKLOG_BYTES_MAX, BATCH_BYTES_MAX, BATCH_HEADER_BYTES, BLOCK_BYTES, DURABLE_MARK_IDLE,
    PARTS_BYTES_MAX, PREWRITE_BOUND_TIMES, RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES, SEGMENTS_MIN,
    SETTLE_BYTES, WRITES_IN_FLIGHT_MAX, block_ceil,
};
use crate::lsn::{Lsn, ShardId, Slot, Term};
use crate::reads::Reads;
use crate::record::{Level, Record, RecordFlags, RecordKind};
use crate::sealed::SealedBatch;
use crate::space::{Claim, Making, Room, Space};
use crate::superblock::ShardSuperblock;
pub(crate) use checkpointing::Checkpoints;
pub use follower::{Follower, FollowerRecovery, Refused, Rejoined};
use reading::read_whole;

/// The knobs of one shard's journal.
#[derive(Clone, Debug)]
pub struct Config {
    /// Most batches being written at once, 1 to 8.
    pub writes_in_flight_max: usize,
    /// Most segment files this shard may have: its disk budget. At least 4.
    pub segments_max: u32,
    /// How long records that nobody waits for may wait for company.
    pub flush_window: Duration,
    /// How long a write may take before the disk counts as stuck.
    pub write_bound: Duration,
    /// The rule that a test breaks.
    #[cfg(feature = "canary")]
    pub canary: Option<Canary>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            writes_in_flight_max: 4,
            segments_max: 64,
            flush_window: Duration::from_millis(5),
            write_bound: Duration::from_secs(30),
            #[cfg(feature = "canary")]
            canary: None,
        }
    }
}

impl Config {
    pub(crate) fn canaries(&self) -> Canaries {
        Canaries {
            #[cfg(feature = "canary")]
            broken: self.canary,
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
    /// At `async`: its batch will be on its way when the flush window ends, so it may be answered
    /// now. False for a message that needs several batches, and for a settlement while the disk is
    /// behind or nearly full: these are answered when they are durable.
    pub vouched: bool,
}

impl Appended {
    /// The level whose watermark answers it, of a record that asks for `asked`.
    #[must_use]
    pub fn answered_at(self, asked: Level) -> Level {
        if asked == Level::Async && !self.vouched { Level::Sync } else { asked }
    }
}

/// Why a record was not appended. Nothing of it is in the log then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendError {
    /// The log has used its budget, or the file system is full: only what frees space is taken.
    Full,
    /// Space or the disk's answer is on its way: withhold credit and try again soon.
    Busy,
    /// The message has more fragments than can be counted, or its parts are too long.
    TooLarge,
    /// A write failed before; nothing more is taken, the process has to end.
    Poisoned,
    /// The journal was closed.
    Closed,
}

impl fmt::Display for AppendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "the journal is full: consume messages, or give it more disk",
            Self::Busy => "the journal is waiting for its disk: try again soon",
            Self::TooLarge => "the record is too large for the journal",
            Self::Poisoned => "the journal has failed: the process must be started again",
            Self::Closed => "the journal is closed",
        })
    }
}

impl std::error::Error for AppendError {}

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

impl fmt::Display for Poison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cause {
            PoisonCause::Failed(error) => {
                write!(f, "writing {} at byte {}: {error}", self.file, self.offset)
            }
            PoisonCause::Unreadable(error) => {
                write!(f, "reading {} at byte {}: {error}", self.file, self.offset)
            }
            PoisonCause::Hung => {
                write!(f, "{} at byte {}: no answer in time", self.file, self.offset)
            }
        }
    }
}

/// What poisoned a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoisonCause {
    /// A write, a sync or a pre-write failed.
    Failed(DiskError),
    /// What was durable could not be read back.
    Unreadable(DiskError),
    /// A write, or a read, neither ended nor failed within the bound.
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

/// What the log uses and what it has, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Segments between head and tail, both included.
    pub segments_live: u64,
    /// Segment files of this shard.
    pub segments_made: u32,
    /// Bytes from the head to the end of what was appended, padding included.
    pub log_bytes: u64,
    /// Those of them that are no record's: headers of segments and batches, and padding.
    pub padding_bytes: u64,
    /// Bytes that could still be appended, the reserve included.
    pub free_bytes: u64,
    /// Messages for whose settlements space is set aside.
    pub unsettled: u64,
    /// How much room that leaves.
    pub room: Room,
}

/// One shard's log, running.
#[derive(Debug)]
pub struct Journal {
    shard: ShardId,
    segment_bytes: u64,
    fragment_bytes_max: usize,
    config: Config,
    commit: Commit,
    space: Space,
    keeper: Keeper,
    reads: Reads,
    committed: Lsn,
    /// Bytes of messages, and of what is set aside for them, that the open batch may take without
    /// another look at space and backlog; none where anything but an append to it happened since.
    granted: u64,
    /// The fragments of the record that was split last.
    fragments: Vec<FragmentAt>,
    op_next: u64,
    /// When the last batch became durable: the beginning of the idle period.
    idle_since: Option<Instant>,
    poison: Option<Poison>,
    closing: bool,
    /// Sealed batches for another member, in the order of the log; none where there is no pair.
    mirrored: Option<VecDeque<SealedBatch>>,
    /// How many readers it has had.
    readers: u32,
    checkpoints: Checkpoints,
}

/// All that a journal begins with; recovery puts it together.
#[derive(Debug)]
pub(crate) struct Resume {
    pub(crate) superblock: ShardSuperblock,
    pub(crate) segment_bytes: u64,
    pub(crate) config: Config,
    pub(crate) commit: Commit,
    pub(crate) space: Space,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) op_next: u64,
}

impl Journal {
    pub(crate) fn new(resume: Resume) -> Self {
        let Resume { superblock, segment_bytes, config, commit, space, checkpoints, op_next } =
            resume;
        assert!((1..=WRITES_IN_FLIGHT_MAX).contains(&config.writes_in_flight_max));
        assert!(config.segments_max >= SEGMENTS_MIN, "a log needs {SEGMENTS_MIN} segments");
        assert!(commit.durable() >= superblock.head);
        Self {
            shard: superblock.shard,
            segment_bytes,
            fragment_bytes_max: fragment_bytes_max(segment_bytes),
            config,
            committed: commit.durable(),
            commit,
            space,
            keeper: Keeper::new(superblock),
            reads: Reads::default(),
            granted: 0,
            fragments: Vec::new(),
            op_next,
            idle_since: None,
            poison: None,
            closing: false,
            mirrored: None,
            readers: 0,
            checkpoints,
        }
    }

    /// Appends a record; a payload over `fragment_bytes_max()` is split. It is copied once, into
    /// the batch.
    ///
    /// # Errors
    /// Why it was not taken. Messages meet `Full` before settlements do: accepting a message sets
    /// aside the bytes of its settlement.
    #[inline(always)]
    pub fn append(
        &mut self,
        now: Instant,
        record: &Record<'_>,
        urgency: Urgency,
    ) -> Result<Appended, AppendError> {
        let due = match urgency {
            Urgency::Now => now,
            Urgency::Window => now + self.config.flush_window,
        };
        match self.append_granted(now, record, due) {
            Some(appended) => Ok(appended),
            None => self.append_asked(now, record, due),
        }
    }

    /// Appends a record for which there has to be another look.
    #[inline(never)]
    fn append_asked(
        &mut self,
        now: Instant,
        record: &Record<'_>,
        due: Instant,
    ) -> Result<Appended, AppendError> {
        let claim = if record.kind == RecordKind::Settle {
            Claim::Settle
        } else if record.kind.may_use_reserve() {
            Claim::Shrink
        } else {
            Claim::Grow { settlements: record.settlements() }
        };
        // On a full disk settlements wait for company; what else frees space is rare and goes at
        // once.
        let forced = record.kind.may_use_reserve() && record.kind != RecordKind::Settle;
        let appended = self.append_as(now, record, claim, Wish { due, forced })?;
        match record.kind {
            RecordKind::Settle => self.space.count_settled(),
            RecordKind::Message | RecordKind::Reference => {
                self.space.count_accepted(record.settlements());
            }
            RecordKind::DeliveryCount
            | RecordKind::QueueCreate
            | RecordKind::QueueDelete
            | RecordKind::NextSequence
            | RecordKind::NextQueueId
            | RecordKind::AddressCreate
            | RecordKind::AddressDelete
            | RecordKind::Prepare
            | RecordKind::Decide => {}
        }
        Ok(appended)
    }

    /// Nothing is answered before it is written until everything appended so far is durable: what
    /// was appended last is not, and what follows may not overtake it.
    pub fn answer_nothing_early(&mut self) {
        self.commit.vouch_after_this();
    }

    /// Appends a copy of a record that lives in the head, so that the head can be recycled. It may
    /// use the reserve and is written at once. A message's settlement stays set aside for it.
    ///
    /// # Errors
    /// Why it was not taken.
    pub fn append_copy(
        &mut self,
        now: Instant,
        record: &Record<'_>,
    ) -> Result<Appended, AppendError> {
        self.append_as(now, record, Claim::Shrink, Wish { due: now, forced: true })
    }

    /// Takes the answer to an operation.
    ///
    /// # Panics
    /// If the answer is to no operation in flight.
    pub fn handle_disk(&mut self, now: Instant, done: DiskDone) {
        if self.poison.is_some() {
            return;
        }
        if let Some(flight) = self.commit.flight(done.id) {
            let file = self.segment_file(flight.slot);
            let (offset, bytes) = (flight.offset, flight.bytes);
            if let Err(error) = written_whole(&done, bytes) {
                return self.fail(file, offset, PoisonCause::Failed(error));
            }
            self.commit.handle_written(done.id);
            self.idle_since = Some(now);
        } else if let Some(flight) = self.keeper.flight().filter(|flight| flight.id == done.id) {
            let (offset, bytes) = (flight.offset, flight.bytes);
            if let Err(error) = written_whole(&done, bytes) {
                let file = FileId::ShardSuperblock(self.shard);
                return self.fail(file, offset, PoisonCause::Failed(error));
            }
            for slot in self.keeper.handle_written() {
                self.space.release(slot);
            }
        } else if let Some(read) = self.reads.take(done.id) {
            match read_whole(done, read.bytes()) {
                Ok(buf) => self.reads.handle_read(&read, buf),
                Err(error) => {
                    let (file, cause) =
                        (self.segment_file(read.slot), PoisonCause::Unreadable(error));
                    self.fail(file, read.offset, cause);
                }
            }
        } else if let Some(Making { slot, .. }) =
            self.space.making().filter(|making| making.id == done.id)
        {
            match done.result {
                Ok(_) => self.keeper.want_made(self.space.handle_made()),
                Err(error @ DiskError::NoSpace) => {
                    self.space.handle_no_space(now);
                    self.checkpoints.fail(error);
                }
                Err(error @ (DiskError::Io(_) | DiskError::Short { .. })) => {
                    self.fail(self.segment_file(slot), 0, PoisonCause::Failed(error));
                }
            }
        } else {
            assert!(self.checkpoint_done(&done), "an answer to {:?}, not in flight", done.id);
        }
    }

    /// Takes the time; due when [`poll_timeout`](Self::poll_timeout) says, harmless at any other
    /// moment. Poll the disk afterwards.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.poison.is_some() {
            return;
        }
        let bound = self.config.write_bound;
        let is_late = |since: Instant| now.saturating_duration_since(since) >= bound;
        let batch = self.commit.oldest_flight().filter(|flight| is_late(flight.since));
        let batch = batch.map(|flight| (self.segment_file(flight.slot), flight.offset));
        let mark = self.keeper.flight().filter(|flight| is_late(flight.since));
        let mark = mark.map(|flight| (FileId::ShardSuperblock(self.shard), flight.offset));
        let late_at = |since: Instant| since + self.prewrite_bound();
        let made = self.space.making().filter(|making| late_at(making.since) <= now);
        let made = made.map(|making| (self.segment_file(making.slot), 0));
        let read = self.reads.oldest_flight().filter(|flight| is_late(flight.since));
        let read = read.map(|flight| (self.segment_file(flight.read.slot), flight.read.offset));
        let page = self.checkpoints.flight().filter(|(_, since)| late_at(*since) <= now);
        let page = page.map(|(file, _)| (file, 0));
        if let Some((file, offset)) = batch.or(mark).or(made).or(read).or(page) {
            self.fail(file, offset, PoisonCause::Hung);
        }
    }

    /// The next thing to do on the disk, if any.
    pub fn poll_disk(&mut self, now: Instant) -> Option<DiskOp> {
        if self.poison.is_some() {
            return None;
        }
        let id = OpId(self.op_next);
        let op = self
            .poll_batch(id, now)
            .or_else(|| self.poll_superblock(id, now))
            .or_else(|| self.poll_reads(id, now))
            .or_else(|| self.poll_make(id, now))
            .or_else(|| self.poll_checkpoint(id, now));
        if op.is_some() {
            self.op_next += 1;
        }
        op
    }

    /// Since when the oldest write of a batch or of the superblock is under way.
    #[must_use]
    pub fn writing_since(&self) -> Option<Instant> {
        let batch = self.commit.oldest_flight().map(|flight| flight.since);
        let mark = self.keeper.flight().map(|flight| flight.since);
        batch.into_iter().chain(mark).min()
    }

    /// When [`handle_timeout`](Self::handle_timeout) and then [`poll_disk`](Self::poll_disk) are
    /// next due, if nothing else happens.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.poison.is_some() {
            return None;
        }
        let seal = self.seal_at().filter(|_| self.commit.has_free_slot());
        let seal = seal.or_else(|| self.commit.kept_slot_at());
        let hung = self.commit.oldest_flight().map(|flight| flight.since);
        let hung_mark = self.keeper.flight().map(|flight| flight.since);
        let hung_read = self.reads.oldest_flight().map(|flight| flight.since);
        let hung = [hung, hung_mark, hung_read].into_iter().flatten().min();
        let hung = hung.map(|since| since + self.config.write_bound);
        let made = self.space.making().map(|making| making.since);
        let page = self.checkpoints.flight().map(|(_, since)| since);
        let hung_make = made.into_iter().chain(page).min();
        let hung_make = hung_make.map(|since| since + self.prewrite_bound());
        let idle = self.mark_at();
        let retry = self.space.retry_at().filter(|_| !self.closing);
        [seal, hung, hung_make, idle, retry].into_iter().flatten().min()
    }

    /// Everything below `lsn` is committed at its level. It never goes back; a value beyond
    /// `durable()` counts as `durable()` (this log can't know more than it has).
    pub fn set_committed(&mut self, lsn: Lsn) {
        self.committed = self.committed.max(lsn.min(self.commit.durable()));
    }

    /// How many messages in the log are not settled: space is set aside for their settlements. The
    /// journal counts by itself from there; say it after recovery and when a queue is deleted.
    pub fn set_unsettled(&mut self, messages: u64) {
        self.granted = 0;
        self.space.set_unsettled(messages);
    }

    /// The oldest segment, if durability and the committed watermark allow to recycle it, and
    /// nobody reads in it.
    #[must_use]
    pub fn head_segment(&self) -> Option<SegmentInfo> {
        let head = self.space.head()?;
        let (next, _) = self.space.after_head()?;
        let end_lsn = self.space.first_lsn(next);
        let reached = self.reached();
        let reached = reached.committed.min(reached.durable);
        let is_over = reached > end_lsn && !self.reads.holds(head.slot);
        is_over.then(|| SegmentInfo {
            number: head.number,
            first_lsn: self.space.first_lsn(head.number),
            end_lsn,
        })
    }

    /// Gives the head segment up. The caller knows that nothing in it lives and that its copies are
    /// appended. The superblock gets the new head once everything appended so far is durable and
    /// committed; its file is used again once that superblock is durable.
    ///
    /// # Panics
    /// If `head_segment()` is none.
    pub fn recycle_head(&mut self) {
        let head = self.head_segment().expect("recycled only as far as it is committed");
        let (_, chain) = self.space.after_head().expect("there is a segment after the head");
        let slot = self.space.drop_head();
        let is_early = self.config.canaries().has(Canary::HeadMovesEarly);
        let after = if is_early { Lsn::ZERO } else { self.commit.appended() };
        // It waits for what is open, which therefore must not wait for company.
        self.commit.force();
        self.keeper.want_head(NewHead { head: head.end_lsn, chain, released: slot, after });
    }

    /// Says whether what lives in the head is being copied forward. While it is, an append that
    /// finds no room is told to wait and not that the log is full.
    pub fn set_compacting(&mut self, compacting: bool) {
        self.space.set_compacting(compacting);
    }

    /// Whether a write could begin now: nothing that is appended waits for the disk.
    #[must_use]
    pub fn is_disk_free(&self) -> bool {
        !self.commit.has_sealed() && self.commit.has_free_slot()
    }

    /// From now on each batch is also handed out by [`poll_sealed`](Self::poll_sealed) when its
    /// write begins.
    pub fn mirror(&mut self) {
        self.mirrored.get_or_insert_default();
    }

    /// The next batch whose write has begun. Poll after each [`poll_disk`](Self::poll_disk): what
    /// waits here is bounded by nothing else.
    pub fn poll_sealed(&mut self) -> Option<SealedBatch> {
        self.mirrored.as_mut()?.pop_front()
    }

    /// Which reign wrote which part of it.
    #[must_use]
    pub fn epochs(&self) -> &EpochTable {
        self.keeper.epochs()
    }

    /// Takes nothing more; writes what is open and then a mark that the end was clean.
    pub fn close(&mut self) {
        self.granted = 0;
        self.closing = true;
        self.checkpoints.give_up();
    }

    /// Whether everything is written after [`close`](Self::close).
    #[must_use]
    pub fn is_closed(&self) -> bool {
        let is_quiet = self.commit.is_idle() && self.reads.oldest_flight().is_none();
        self.poison.is_none() && self.closing && is_quiet && self.keeper.is_clean()
    }

    /// The end of the contiguous durable prefix.
    #[must_use]
    pub fn durable(&self) -> Lsn {
        self.commit.durable()
    }

    /// The end of what was appended.
    #[must_use]
    pub fn appended(&self) -> Lsn {
        self.commit.appended()
    }

    /// Where the log begins.
    #[must_use]
    pub fn head(&self) -> Lsn {
        self.keeper.head()
    }

    /// Where the oldest segment begins that has not been given up.
    #[must_use]
    pub fn first_kept(&self) -> Lsn {
        let first = self.space.head().map(|segment| self.space.first_lsn(segment.number));
        first.unwrap_or_else(|| self.keeper.head())
    }

    /// As far as [`set_committed`](Self::set_committed) went.
    #[must_use]
    pub fn committed(&self) -> Lsn {
        self.committed
    }

    /// Bytes appended and not durable yet; near [`BACKLOG_BYTES_MAX`] withhold credit.
    #[must_use]
    pub fn backlog_bytes(&self) -> u64 {
        self.appended().since(self.durable())
    }

    /// Most payload that one record can carry here; more is split.
    #[must_use]
    pub fn fragment_bytes_max(&self) -> usize {
        self.fragment_bytes_max
    }

    /// Where the fragments are of the record that was appended last, if that was split.
    #[must_use]
    pub fn fragments(&self) -> &[FragmentAt] {
        &self.fragments
    }

    /// Whether copies of all these records, of so many bytes, would be taken now: a part of a chain
    /// would only fill the log.
    ///
    /// # Errors
    /// Why they would not.
    pub fn admits_copies(
        &mut self,
        records: impl Iterator<Item = usize> + Clone,
    ) -> Result<(), AppendError> {
        self.admit(Claim::Shrink, records)
    }

    /// How much room is left.
    #[must_use]
    pub fn room(&self) -> Room {
        self.space.room(self.commit.next())
    }

    /// What is used and what is left.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let free_bytes = self.free_bytes();
        Usage {
            segments_live: self.space.segments_len() as u64,
            segments_made: self.space.files(),
            log_bytes: self.appended().since(self.head()),
            padding_bytes: self.space.padding_bytes(),
            free_bytes,
            unsettled: self.space.unsettled(),
            room: self.space.room_in(free_bytes),
        }
    }

    /// Bytes that could still be appended, the reserve included.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        self.space.free_bytes(self.commit.next())
    }

    /// Whose log.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// The seeds of this log, to decode a record that was read back.
    #[must_use]
    pub fn seed(&self) -> &LogSeed {
        self.commit.seed()
    }

    /// Under which term it writes.
    #[must_use]
    pub fn term(&self) -> Term {
        self.commit.term()
    }

    /// The first failure, if there was one.
    #[must_use]
    pub fn poisoned(&self) -> Option<&Poison> {
        self.poison.as_ref()
    }

    /// How far the log has come, for the head to follow.
    fn reached(&self) -> Reached {
        let durable = self.commit.durable();
        let is_past = self.config.canaries().has(Canary::RecycledPastWatermark);
        Reached { durable, committed: if is_past { durable } else { self.committed } }
    }

    fn prewrite_bound(&self) -> Duration {
        self.config.write_bound * PREWRITE_BOUND_TIMES
    }

    fn segment_file(&self, slot: Slot) -> FileId {
        FileId::Segment { shard: self.shard, slot }
    }

    fn fail(&mut self, file: FileId, offset: u64, cause: PoisonCause) {
        self.granted = 0;
        self.poison = Some(Poison { cause, file, offset });
    }

    /// A message, or its settlement, that the open batch takes and that was granted before. With
    /// company nearly all are, and so `append_asked` is for one in each batch.
    #[inline(always)]
    fn append_granted(
        &mut self,
        now: Instant,
        record: &Record<'_>,
        due: Instant,
    ) -> Option<Appended> {
        let bytes = RECORD_HEADER_BYTES + record.payload.len();
        let is_settle = record.kind == RecordKind::Settle;
        if !is_settle && record.kind != RecordKind::Message {
            return None;
        }
        let claimed = if is_settle { 0 } else { block_ceil(bytes) as u64 + SETTLE_BYTES };
        let is_granted = claimed < self.granted && self.commit.open_fits(bytes);
        let is_whole = record.payload.len() <= self.fragment_bytes_max;
        if !is_granted || !is_whole || record.parts.is_some() {
            return None;
        }
        // One that is answered before it is written goes to others that were.
        let vouched = record.level == Level::Async;
        let is_fragment = || !record.flags.has(RecordFlags::WHOLE);
        if vouched && (is_settle || is_fragment() || !self.commit.open_vouches(now)) {
            return None;
        }
        let (lsn, end) = self.commit.push(record, bytes, Wish { due, forced: vouched });
        if is_settle {
            self.space.count_settled();
        } else {
            self.granted -= SETTLE_BYTES;
            self.space.count_accepted(record.settlements());
        }
        Some(Appended { lsn, end, vouched })
    }

    fn append_as(
        &mut self,
        now: Instant,
        record: &Record<'_>,
        claim: Claim,
        wish: Wish,
    ) -> Result<Appended, AppendError> {
        if self.poison.is_some() {
            return Err(AppendError::Poisoned);
        }
        if self.closing {
            return Err(AppendError::Closed);
        }
        let parts_len = record.parts_len();
        if parts_len <= PARTS_BYTES_MAX && record.payload.len() <= self.fragment_bytes_max {
            let bytes = RECORD_HEADER_BYTES + parts_len + record.payload.len();
            return self.append_whole(now, (record, bytes), claim, wish);
        }
        self.append_split(now, record, claim, wish)
    }

    /// What nearly every record is: one fragment.
    fn append_whole(
        &mut self,
        now: Instant,
        (record, bytes): (&Record<'_>, usize),
        claim: Claim,
        wish: Wish,
    ) -> Result<Appended, AppendError> {
        self.admit(claim, std::iter::once(bytes))?;
        let vouched = if is_early(record, claim) {
            self.make_way(now, bytes)?;
            true
        } else {
            // A settlement is always taken; what holds it up is no reason to answer it too soon.
            let is_settle = record.level == Level::Async && matches!(claim, Claim::Settle);
            let has_room = is_settle && self.room() == Room::Plenty;
            has_room && self.make_way(now, bytes).is_ok()
        };
        let wish = Wish { due: wish.due, forced: wish.forced || vouched };
        let (lsn, end) = self.put(now, (record, bytes), wish);
        if vouched {
            self.commit.vouch(now + self.config.flush_window);
        }
        Ok(Appended { lsn, end, vouched })
    }

    fn append_split(
        &mut self,
        now: Instant,
        record: &Record<'_>,
        claim: Claim,
        wish: Wish,
    ) -> Result<Appended, AppendError> {
        let fragments = fragment::split(record, self.fragment_bytes_max);
        let fragments = fragments.ok_or(AppendError::TooLarge)?;
        let is_early = is_early(record, claim);
        self.admit(claim, fragments.clone().map(|one| one.bytes))?;
        if is_early {
            self.make_way(now, fragments.clone().next().map_or(0, |first| first.bytes))?;
        }
        let wish = Wish { due: if is_early { now } else { wish.due }, forced: wish.forced };
        self.fragments.clear();
        for fragment in fragments {
            let (lsn, _) = self.put(now, (&fragment.record, fragment.bytes), wish);
            self.fragments.push(FragmentAt::of(lsn, fragment.bytes));
        }
        if is_early {
            self.commit.vouch_after_this();
        }
        let [first, .., last] = &self.fragments[..] else { panic!("it is split in two or more") };
        Ok(Appended { lsn: first.lsn, end: last.end(), vouched: false })
    }

    /// Copies an admitted record into the open batch, or into the next one.
    fn put(
        &mut self,
        now: Instant,
        (record, bytes): (&Record<'_>, usize),
        wish: Wish,
    ) -> (Lsn, Lsn) {
        if self.commit.is_open() && !self.commit.open_fits(bytes) {
            self.seal();
        }
        if !self.commit.is_open() {
            let place = self.place(bytes);
            self.commit.open(place, now, wish);
        }
        self.commit.push(record, bytes, wish)
    }

    /// Lets the open batch take a record that is answered before it is written. Only for one that
    /// is admitted: to seal a block that is not full takes of what is set aside for settlements.
    fn make_way(&mut self, now: Instant, record_bytes: usize) -> Result<(), AppendError> {
        let is_over = self.commit.open_is_late(now) || !self.commit.open_fits(record_bytes);
        if self.commit.may_vouch() && self.commit.is_open() && is_over {
            self.seal();
        }
        if self.commit.may_vouch() { Ok(()) } else { Err(AppendError::Busy) }
    }

    /// Whether records of these sizes may be appended.
    fn admit(
        &mut self,
        claim: Claim,
        records: impl Iterator<Item = usize> + Clone,
    ) -> Result<(), AppendError> {
        let grows = matches!(claim, Claim::Grow { .. });
        // What is set aside is for settlements: they may go on into the next block unasked.
        let unasked = match claim {
            Claim::Settle => usize::MAX,
            Claim::Shrink => self.commit.open_padding(),
            Claim::Grow { .. } => 0,
        };
        if grows && self.backlog_bytes() >= BACKLOG_BYTES_MAX {
            return Err(AppendError::Busy);
        }
        let mut whole = records.clone();
        let fits_open =
            whole.next().is_some_and(|only| only <= unasked && self.commit.open_fits(only));
        if fits_open && whole.next().is_none() {
            return Ok(());
        }
        let batches = records.map(|bytes| block_ceil(BATCH_HEADER_BYTES + bytes) as u64);
        if self.space.admit(claim, self.commit.next(), batches) {
            if grows {
                self.granted = self.grant();
            }
            Ok(())
        } else if self.space.expects_room(claim) {
            Err(AppendError::Busy)
        } else {
            Err(AppendError::Full)
        }
    }

    /// What the open batch, or the next one, may take without another look: whatever it takes, it
    /// ends within its bound, so that room and backlog are known to suffice for that.
    fn grant(&self) -> u64 {
        let batch_bytes = (BATCH_BYTES_MAX + BLOCK_BYTES) as u64;
        if self.backlog_bytes() + batch_bytes >= BACKLOG_BYTES_MAX {
            return 0;
        }
        self.space.spare_bytes(self.commit.next()).saturating_sub(batch_bytes)
    }

    /// Where the next batch goes: behind the last one, or at the start of the next segment.
    fn place(&mut self, record_bytes: usize) -> Place {
        let next = self.commit.next();
        let needed = block_ceil(BATCH_HEADER_BYTES + record_bytes) as u64;
        if let Some(tail) = self.space.tail()
            && self.space.tail_room(next) >= needed
        {
            assert!(tail.chain_before.is_some(), "its first batch was sealed before");
            return Place { first_lsn: next, slot: tail.slot, opens_segment: false };
        }
        self.granted = 0;
        let number = self.space.tail().map_or(next.0 / self.segment_bytes, |tail| tail.number + 1);
        let slot = self.space.open_segment(number);
        Place { first_lsn: self.space.first_lsn(number), slot, opens_segment: true }
    }

    fn seal(&mut self) {
        self.granted = 0;
        self.space.count_padding((BATCH_HEADER_BYTES + self.commit.open_padding()) as u64);
        if let Some(chain_before) = self.commit.seal() {
            self.space.set_tail_chain(chain_before);
        }
    }

    /// When the open batch is to be sealed.
    fn seal_at(&self) -> Option<Instant> {
        self.commit.seal_at(|| self.space.patience(self.commit.next()))
    }

    fn poll_batch(&mut self, id: OpId, now: Instant) -> Option<DiskOp> {
        let has_some = self.commit.has_sealed() || self.commit.is_open();
        if !has_some || !self.commit.has_write_slot(now) {
            return None;
        }
        let is_due = || self.closing || self.seal_at().is_some_and(|at| at <= now);
        if !self.commit.has_sealed() && self.commit.is_open() && is_due() {
            self.seal();
        }
        let sealed = self.commit.submit(id, now)?;
        self.idle_since = None;
        if let Some(mirrored) = &mut self.mirrored {
            let opens = sealed.offset == 0;
            let lead = if opens { SEGMENT_HEADER_BYTES as usize } else { 0 };
            let batch = &sealed.buf.as_slice()[lead..];
            mirrored.push_back(SealedBatch::of_own(self.commit.seed(), batch));
        }
        let file = self.segment_file(sealed.slot);
        Some(DiskOp::Write { id, file, offset: sealed.offset, buf: sealed.buf })
    }

    /// When the durable mark is to be written: once in an idle period.
    fn mark_at(&self) -> Option<Instant> {
        let since = self.idle_since?;
        let is_news = self.commit.durable() > self.keeper.durable_mark();
        if !is_news || !self.commit.is_quiet() || !self.keeper.is_idle() || self.closing {
            return None;
        }
        // On a full disk what is open can wait for long: that is idle time too.
        let is_idle = self.commit.is_idle() || self.room() != Room::Plenty;
        is_idle.then(|| since + DURABLE_MARK_IDLE)
    }

    fn poll_superblock(&mut self, id: OpId, now: Instant) -> Option<DiskOp> {
        if self.mark_at().is_some_and(|at| at <= now) {
            self.keeper.want_mark();
        }
        if self.closing && self.commit.is_idle() && self.keeper.is_idle() && !self.is_closed() {
            self.keeper.want_clean();
        }
        let reached = self.reached();
        let (buf, offset) = self.keeper.submit(id, now, reached)?;
        Some(DiskOp::Write { id, file: FileId::ShardSuperblock(self.shard), offset, buf })
    }

    /// The superblock alone.
    fn poll_mark(&mut self, now: Instant) -> Option<DiskOp> {
        if self.poison.is_some() {
            return None;
        }
        let op = self.poll_superblock(OpId(self.op_next), now)?;
        self.op_next += 1;
        Some(op)
    }

    fn poll_make(&mut self, id: OpId, now: Instant) -> Option<DiskOp> {
        if self.closing {
            return None;
        }
        let slot = self.space.poll_make(id, now)?;
        Some(DiskOp::Prewrite { id, file: self.segment_file(slot), bytes: self.segment_bytes })
    }
}

/// Whether a record is answered before it is written: nobody waits for a fragment.
fn is_early(record: &Record<'_>, claim: Claim) -> bool {
    record.level == Level::Async
        && matches!(claim, Claim::Grow { .. })
        && record.flags.has(RecordFlags::WHOLE)
}

fn written_whole(done: &DiskDone, bytes: u32) -> Result<(), DiskError> {
    let written = done.result?;
    if written == bytes { Ok(()) } else { Err(DiskError::Short { bytes: written }) }
}
