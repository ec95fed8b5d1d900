//! A log that another member writes: sealed batches go in as they are, at their own LSN.
//!
//! ```text
//!   FollowerRecovery ─▶ Follower ──take(batch)──▶ waiting ──▶ in flight ──▶ durable prefix
//!                          │                      held back while its durable field exceeds
//!                          │                      our own durable LSN
//!                          ├──adopt(table, end)───▶ superblock: follows another history
//!                          ├──adopt(table, at)────▶ superblock: cut at `at`; recover again
//!                          ├──install(start)──────▶ superblock: begins anew; recover again
//!                          └──reign(epoch)────────▶ superblock: its own part begins ─▶ Journal
//! ```
//! It is a [`Journal`] that nothing is appended to: the same commit, space and superblock, so that
//! both members write the same bytes under the same rules.
//!
//! Invariants: a batch is taken only where it fits: its place, the chain before it, a term not
//! older, the epoch that the adopted table has there; so the log is at each moment a prefix of the
//! one that it follows. No batch is submitted whose durable field exceeds our own durable LSN: what
//! a batch on our disk proves is true of our disk. A table is adopted, and a cut made, by one write
//! of the superblock, before any batch of the new history; a log that was cut takes nothing more
//! and is recovered again, so that nothing of the state outlives what was cut. A reign begins only
//! when everything received is durable, and its row is durable before its first batch. A batch that
//! doesn't fit is refused with the reason and changes nothing; a failed write poisons.

use std::collections::VecDeque;
use std::fmt;
use std::time::Instant;

use super::{Config, Journal, Poison, SegmentInfo};
use crate::canary::Canary;
use crate::disk::{DiskDone, DiskOp};
use crate::epochs::EpochTable;
use crate::identity::{Chain, LogSeed};
use crate::limits::{BACKLOG_BYTES_MAX, SEGMENT_HEADER_BYTES};
use crate::lsn::{Epoch, Lsn, ShardId, Term};
use crate::record::Record;
use crate::recovery::{LogReader, Recovery, RecoveryError, SlotFile, Truncated};
use crate::sealed::SealedBatch;
use crate::superblock::{LogStart, NodeSuperblock};

/// Why a batch was not taken. Nothing of it is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It doesn't begin where this log ends.
    Place {
        /// Where this log ends.
        end: Lsn,
        /// Where the batch begins.
        first_lsn: Lsn,
    },
    /// It follows another batch than the last one here.
    Chain {
        /// Where.
        lsn: Lsn,
    },
    /// Its epoch is not the one that the adopted table has there, or its term is older than the
    /// log's, or was cut off.
    Term {
        /// Where.
        lsn: Lsn,
        /// Who wrote it.
        term: Term,
    },
    /// It vouches for itself, or doesn't stay within its segment.
    Shape {
        /// Where.
        lsn: Lsn,
    },
    /// More is waiting than a member may send ahead.
    Overrun,
    /// A table is being adopted, a reign begins, or the log was cut or has failed.
    Unready,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Place { end, first_lsn } => {
                write!(f, "a batch at LSN {first_lsn} for a log that ends at {end}")
            }
            Self::Chain { lsn } => write!(f, "the batch at LSN {lsn} follows another history"),
            Self::Term { lsn, term } => write!(
                f,
                "the batch at LSN {lsn} is of epoch {}, which wrote no batch there",
                term.epoch.0
            ),
            Self::Shape { lsn } => write!(f, "the batch at LSN {lsn} contradicts itself"),
            Self::Overrun => f.write_str("more batches are on their way than were agreed on"),
            Self::Unready => f.write_str("the log takes no batches now"),
        }
    }
}

impl std::error::Error for Refused {}

/// What a follower was asked to become, once that is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejoined {
    /// It takes batches of the history that it adopted.
    Following,
    /// It was cut: recover the log again.
    Cut,
    /// Its own reign has begun: [`Follower::into_live`].
    Live,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Following,
    /// Once all that was taken is durable, the superblock is written; then it is this.
    Turning(Rejoined),
    Turned(Rejoined),
    Over,
}

/// What the superblock is to say after a turn.
#[derive(Debug)]
enum Wanted {
    /// The table to be adopted, or with its own row; and where the log is cut.
    Epochs(EpochTable, Option<Lsn>),
    /// Another log's middle, with its table.
    Start(LogStart, EpochTable),
}

/// One shard's log at a member that does not write it.
#[derive(Debug)]
pub struct Follower {
    journal: Journal,
    phase: Phase,
    wanted: Option<Wanted>,
    waiting: VecDeque<SealedBatch>,
    waiting_bytes: u64,
    end: Lsn,
    chain: Chain,
    term: Term,
}

impl Follower {
    /// What [`Recovery::of_member`] has recovered.
    #[must_use]
    pub fn new(journal: Journal) -> Self {
        let (end, chain, term) = (journal.appended(), journal.commit.chain(), journal.term());
        Self {
            journal,
            phase: Phase::Following,
            wanted: None,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            end,
            chain,
            term,
        }
    }

    /// Takes the next batch of the log.
    ///
    /// # Errors
    /// Why it doesn't fit; nothing has changed then.
    pub fn take(&mut self, batch: SealedBatch) -> Result<(), Refused> {
        let lsn = batch.first_lsn();
        if self.phase != Phase::Following || self.journal.poison.is_some() {
            return Err(Refused::Unready);
        }
        if self.waiting_bytes + batch.bytes().len() as u64 > BACKLOG_BYTES_MAX {
            return Err(Refused::Overrun);
        }
        let is_next =
            lsn == self.end || (lsn == self.next_segment() && self.end > self.journal.head());
        if !is_next {
            return Err(Refused::Place { end: self.end, first_lsn: lsn });
        }
        if batch.chain_before() != self.chain {
            return Err(Refused::Chain { lsn });
        }
        let term = batch.term();
        let keeper = &self.journal.keeper;
        let is_cut_off = keeper.truncation().covers(lsn, term);
        if term < self.term || is_cut_off || !keeper.epochs().holds(term.epoch, lsn) {
            return Err(Refused::Term { lsn, term });
        }
        let segment_bytes = self.journal.segment_bytes;
        let segment_end = Lsn((lsn.0 / segment_bytes + 1) * segment_bytes);
        let in_header = lsn.0 % segment_bytes < SEGMENT_HEADER_BYTES;
        if batch.durable() > lsn || batch.end() > segment_end || in_header {
            return Err(Refused::Shape { lsn });
        }
        (self.end, self.chain, self.term) = (batch.end(), batch.chain_after(), term);
        self.waiting_bytes += batch.bytes().len() as u64;
        self.waiting.push_back(batch);
        Ok(())
    }

    /// Follows another history from `from` on: its table is adopted durably, and what this log has
    /// beyond `from` is cut off. The host has exported that before.
    ///
    /// # Panics
    /// If `from` lies outside this log, or something else is under way.
    pub fn adopt(&mut self, epochs: EpochTable, from: Lsn) {
        assert!(self.phase == Phase::Following, "one turn at a time");
        assert!(from >= self.journal.head() && from <= self.end, "a cut within the log");
        let (cut_at, goal) =
            if from < self.end { (Some(from), Rejoined::Cut) } else { (None, Rejoined::Following) };
        self.turn(Wanted::Epochs(epochs, cut_at), goal);
    }

    /// A checkpoint that is being written ends with the history that it tells of.
    fn turn(&mut self, wanted: Wanted, goal: Rejoined) {
        self.journal.checkpoints.give_up();
        self.wanted = Some(wanted);
        self.phase = Phase::Turning(goal);
    }

    /// Gives this log up for another one of the same number, which begins at `start` and has this
    /// table. The host has exported what may not be lost before. It is one write of the superblock:
    /// a crash finds the old log, or the new one without a batch.
    ///
    /// # Panics
    /// If something else is under way.
    pub fn install(&mut self, start: LogStart, epochs: EpochTable) {
        assert!(self.phase == Phase::Following, "one turn at a time");
        self.turn(Wanted::Start(start, epochs), Rejoined::Cut);
    }

    /// Whether what is durable here is a whole state: a log that was begun in the middle of
    /// another's is one only from a certain LSN on.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.journal.keeper.whole_at().is_none_or(|whole_at| self.durable() >= whole_at)
    }

    /// Whether a log can begin at this LSN.
    #[must_use]
    pub fn can_begin_at(&self, lsn: Lsn) -> bool {
        lsn.0 % self.journal.segment_bytes == SEGMENT_HEADER_BYTES
    }

    /// Begins a reign of its own, behind everything received.
    ///
    /// # Panics
    /// If the epoch is not newer than all in the log, or something else is under way.
    pub fn reign(&mut self, epoch: Epoch) {
        assert!(self.phase == Phase::Following, "one turn at a time");
        let mut epochs = self.journal.epochs().clone();
        epochs.enter(epoch, self.end);
        self.turn(Wanted::Epochs(epochs, None), Rejoined::Live);
    }

    /// What it has become, once, when that is durable.
    pub fn poll_rejoined(&mut self) -> Option<Rejoined> {
        let Phase::Turned(goal) = self.phase else { return None };
        self.phase = if goal == Rejoined::Following { Phase::Following } else { Phase::Over };
        Some(goal)
    }

    /// The log, to be written under its own reign, once [`Rejoined::Live`] was handed out.
    ///
    /// # Panics
    /// If it was not.
    #[must_use]
    pub fn into_live(mut self) -> Journal {
        let (epoch, first) = self.journal.epochs().newest();
        assert!(self.phase == Phase::Over && first == self.end, "its reign has begun");
        let incarnation = self.journal.keeper.incarnation();
        self.journal.commit.begin(Term { epoch, incarnation });
        self.journal
    }

    /// Takes the answer to an operation.
    ///
    /// # Panics
    /// If the answer is to no operation in flight.
    pub fn handle_disk(&mut self, now: Instant, done: DiskDone) {
        self.journal.handle_disk(now, done);
        if let Phase::Turning(goal) = self.phase
            && self.wanted.is_none()
            && self.journal.poison.is_none()
            && self.journal.keeper.is_idle()
            && self.journal.space.making().is_none()
            && self.journal.checkpoints.is_idle()
        {
            self.phase = Phase::Turned(goal);
        }
    }

    /// Takes the time, as [`Journal::handle_timeout`] does.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.journal.handle_timeout(now);
    }

    /// The next thing to do on the disk, if any.
    pub fn poll_disk(&mut self, now: Instant) -> Option<DiskOp> {
        if matches!(self.phase, Phase::Turned(_) | Phase::Over) {
            return None;
        }
        if let Some(op) = self.poll_batch(now) {
            return Some(op);
        }
        let is_turning = matches!(self.phase, Phase::Turning(_));
        if !is_turning || !self.waiting.is_empty() || !self.journal.commit.is_idle() {
            return self.journal.poll_disk(now);
        }
        // Only the superblock now: nothing is in flight when the turn is over.
        match self.wanted.take() {
            Some(Wanted::Epochs(epochs, cut_at)) => {
                self.journal.keeper.want_epochs(epochs, cut_at);
            }
            // A file that is being made would count as the new log's.
            Some(wanted @ Wanted::Start(..)) if self.journal.space.making().is_some() => {
                self.wanted = Some(wanted);
            }
            Some(Wanted::Start(start, epochs)) => {
                let slots_before = self.journal.space.slots();
                self.journal.keeper.want_start(start, epochs, slots_before);
            }
            None => {}
        }
        self.journal.poll_mark(now)
    }

    /// When [`handle_timeout`](Self::handle_timeout) and then [`poll_disk`](Self::poll_disk) are
    /// next due, if nothing else happens.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.journal.poll_timeout()
    }

    /// Everything below is committed, as the live says.
    pub fn set_committed(&mut self, lsn: Lsn) {
        self.journal.set_committed(lsn);
    }

    /// The oldest segment, if durability and the committed watermark allow to recycle it.
    #[must_use]
    pub fn head_segment(&self) -> Option<SegmentInfo> {
        self.journal.head_segment()
    }

    /// Gives the head segment up; see [`Journal::recycle_head`].
    ///
    /// # Panics
    /// If `head_segment()` is none.
    pub fn recycle_head(&mut self) {
        self.journal.recycle_head();
    }

    /// The log, to write a checkpoint of it, unless it is about to become something else.
    pub fn checkpointing(&mut self) -> Option<&mut Journal> {
        (self.phase == Phase::Following).then_some(&mut self.journal)
    }

    /// Reads what is durable of the log from `from` on; see [`Journal::read`].
    #[must_use]
    pub fn read(&mut self, from: Lsn) -> Option<LogReader> {
        self.journal.read(from)
    }

    /// The end of what was received.
    #[must_use]
    pub fn received(&self) -> Lsn {
        self.end
    }

    /// The end of the contiguous durable prefix.
    #[must_use]
    pub fn durable(&self) -> Lsn {
        self.journal.durable()
    }

    /// The chain after everything received.
    #[must_use]
    pub fn chain(&self) -> Chain {
        self.chain
    }

    /// As far as [`set_committed`](Self::set_committed) went.
    #[must_use]
    pub fn committed(&self) -> Lsn {
        self.journal.committed()
    }

    /// Where the log begins.
    #[must_use]
    pub fn head(&self) -> Lsn {
        self.journal.head()
    }

    /// Which reign wrote which part of it.
    #[must_use]
    pub fn epochs(&self) -> &EpochTable {
        self.journal.epochs()
    }

    /// Whose log.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.journal.shard()
    }

    /// The seeds of this log.
    #[must_use]
    pub fn seed(&self) -> &LogSeed {
        self.journal.seed()
    }

    /// The first failure, if there was one.
    #[must_use]
    pub fn poisoned(&self) -> Option<&Poison> {
        self.journal.poisoned()
    }

    /// The first LSN of the segment after the one that the log ends in.
    fn next_segment(&self) -> Lsn {
        let segment_bytes = self.journal.segment_bytes;
        Lsn(self.end.0.div_ceil(segment_bytes) * segment_bytes + SEGMENT_HEADER_BYTES)
    }

    /// The next batch that may be written: in the order of the log, none that says more than this
    /// disk holds.
    fn poll_batch(&mut self, now: Instant) -> Option<DiskOp> {
        let journal = &mut self.journal;
        let next = self.waiting.front()?;
        let is_held = next.durable() > journal.commit.durable()
            && !journal.config.canaries().has(Canary::FollowerNeverHoldsBack);
        if is_held || journal.poison.is_some() || !journal.commit.has_free_slot() {
            return None;
        }
        let opens = next.first_lsn().0 % journal.segment_bytes == SEGMENT_HEADER_BYTES;
        if opens && !journal.space.has_ready() {
            return None;
        }
        let batch = self.waiting.pop_front()?;
        self.waiting_bytes -= batch.bytes().len() as u64;
        let slot = if opens {
            let slot = journal.space.open_segment(batch.first_lsn().0 / journal.segment_bytes);
            journal.space.set_tail_chain(batch.chain_before());
            slot
        } else {
            journal.space.tail().expect("a batch that opens no segment follows one").slot
        };
        journal.space.count_padding(batch.padding_bytes());
        journal.commit.take(&batch, slot);
        journal.poll_disk(now)
    }
}

/// Recovers the log of a member of a pair, as [`Recovery`] does; what comes of it follows.
#[derive(Debug)]
pub struct FollowerRecovery {
    recovery: Recovery,
}

impl FollowerRecovery {
    /// See [`Recovery::new`].
    ///
    /// # Panics
    /// If the node has no such shard.
    #[must_use]
    pub fn new(node: &NodeSuperblock, shard: ShardId, slots: &[SlotFile], config: Config) -> Self {
        Self { recovery: Recovery::of_member(node, shard, slots, config) }
    }

    /// The next thing to do on the disk, if any. Take all records before.
    pub fn poll_disk(&mut self) -> Option<DiskOp> {
        self.recovery.poll_disk()
    }

    /// Takes the answer to an operation.
    ///
    /// # Panics
    /// If the answer is to no operation in flight.
    pub fn handle_disk(&mut self, now: Instant, done: DiskDone) {
        self.recovery.handle_disk(now, done);
    }

    /// The next record, in order; see [`Recovery::poll_record`].
    pub fn poll_record(&mut self) -> Option<(Lsn, Record<'_>)> {
        self.recovery.poll_record()
    }

    /// The end, once: the log, and what was cut off of it.
    pub fn poll_outcome(&mut self) -> Option<Result<(Follower, Option<Truncated>), RecoveryError>> {
        let outcome = self.recovery.poll_outcome()?;
        Some(outcome.map(|outcome| (Follower::new(outcome.journal), outcome.truncated)))
    }
}
