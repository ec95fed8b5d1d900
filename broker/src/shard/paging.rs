//! Memory is short: bytes of messages are paged out, and read back when their turn comes.
//!
//! ```text
//!   memory over 10/16 of its bound ─▶ a lap over the queues: each keeps an equal share, what goes
//!                                     out first; so many messages a step, until 9/16 are left
//!   dispatch misses bytes, or few are ahead
//!     1 each queue that somebody takes from asks for what comes next (`queue/payload.rs`)
//!     2 in the order of the log; what lies close together is one read
//!     3 read: is the record still there? ── no ──▶ asked for again, where it is now
//!     4 the right record, and its checksum ── no ──▶ damage: the process ends
//!     5 the message has its bytes, and its queue is dispatched again
//! ```
//! All queues that are short ask at once, so that queues that were written side by side are read
//! side by side: each part of the log once, not once for each of them. What is ahead of a queue is
//! bounded, and all of it together; so none waits for another longer than for that.
//!
//! A message in fragments is read fragment by fragment, by the same reads.
//!
//! Producers are held back by what can't be paged out alone: the index, what is not committed, what
//! is being sent. All this stays below the pressure of `ingress.rs`.
//!
//! Invariants: a read under way keeps its segment in the log, so what comes back was written there
//! as a message's record, and only whether the message has it still is to be asked; bytes are
//! believed only with their checksum, queue and sequence. A read that fails poisons the journal:
//! what was acknowledged is not there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use bytes::Bytes;
use journal::limits::BLOCK_BYTES;
use journal::{
    BlockBuf, Journal, LogSeed, Lsn, QueueId, ReadId, Record, RecordFlags, RecordKind, Sequence,
    Span,
};

use super::Shard;
use crate::admin::{AdminId, AdminReply, PeekedMessage};
use crate::canary::Canary;
use crate::event::{Action, Fatal};
use crate::limits::{
    PEEK_MESSAGES_MAX, READ_AHEAD_BYTES, READ_AHEAD_SHARE, READ_BACK_BYTES, READ_BACK_GAP_BYTES,
    READ_BACKS_MAX, SHED_LOOKS, SHED_REST, SHED_SIXTEENTHS, SHED_STEP, SHED_UNTIL_SIXTEENTHS,
};
use crate::queue::{Filled, Hand, Peeked, Queue, SlotState, Wanted};

/// What is being paged out and read.
#[derive(Debug, Default)]
pub(super) struct Paging {
    /// Queues that somebody takes from, with messages on the disk only.
    active: BTreeSet<QueueId>,
    /// One of them has run dry, or is about to.
    is_low: bool,
    /// What others than dispatch wait for.
    wanted: Vec<(QueueId, Sequence)>,
    /// Records that were somewhere else by the time that they were read.
    again: Vec<Wanted>,
    /// Messages in fragments that are read whole, and their bytes: few at a time, for what is read
    /// counts against the memory bound only when all of it is there.
    gathering: BTreeMap<(QueueId, Sequence), u64>,
    reads: Vec<Reading>,
    peeks: Vec<Peek>,
    lap: Option<Lap>,
    /// Memory is short: when the next step is made.
    shed_at: Option<Instant>,
    pub(super) counters: Paged,
}

impl Paging {
    fn gathering_bytes(&self) -> u64 {
        self.gathering.values().sum()
    }
}

/// What was done since the process started.
#[derive(Clone, Copy, Debug, Default)]
pub struct Paged {
    /// Messages whose bytes were paged out.
    pub out_total: u64,
    /// Messages whose bytes were read back.
    pub in_total: u64,
    /// Reads of the log for that.
    pub reads_total: u64,
    /// Bytes of these reads.
    pub read_bytes_total: u64,
    /// Fragments of messages that were read as they were sent.
    pub fetched_total: u64,
    /// Times that dispatch had to wait for a read.
    pub waits_total: u64,
}

/// A read under way, and whose records are in it.
#[derive(Debug)]
struct Reading {
    id: ReadId,
    span: Span,
    wanted: Vec<Wanted>,
}

/// A round over the queues, to drop what is beyond a queue's share.
#[derive(Clone, Copy, Debug)]
struct Lap {
    share_bytes: u64,
    queue: QueueId,
    below: u64,
    has_won: bool,
}

/// An operator who waits for a read.
#[derive(Debug)]
struct Peek {
    asker: AdminId,
    queue: QueueId,
    count_max: usize,
    /// What is there already: it stays in memory, since it is in use.
    _shown: Vec<Peeked>,
}

/// What is not needed soon is paged out.
impl Shard {
    /// What was paged out and read back.
    pub fn paged(&self) -> Paged {
        self.paging.counters
    }

    /// When more can be paged out, if nothing else happens.
    pub(super) fn shed_due(&self) -> Option<Instant> {
        self.paging.shed_at
    }

    /// Drops bytes of messages while memory is short, a little in each step.
    pub(super) fn step_shed(&mut self, now: Instant) {
        let until = self.config.memory_bytes_max / 16 * SHED_UNTIL_SIXTEENTHS;
        let bound = if self.paging.shed_at.is_some() { until } else { self.shed_bytes() };
        if self.memory_bytes() <= bound {
            (self.paging.lap, self.paging.shed_at) = (None, None);
        } else if self.paging.shed_at.is_none_or(|at| at <= now) {
            self.paging.shed_at = Some(self.shed(now, until));
        }
    }

    /// Above this, bytes of messages are paged out.
    pub(super) fn shed_bytes(&self) -> u64 {
        self.config.memory_bytes_max / 16 * SHED_SIXTEENTHS
    }

    /// Goes on with the lap; gives when there is more to do.
    fn shed(&mut self, now: Instant, until_bytes: u64) -> Instant {
        let Some(journal) = &self.journal else { return now + SHED_REST };
        let is_early = self.config.canaries.has(Canary::DroppedBeforeDurable);
        let committed = if is_early { journal.appended() } else { journal.committed() };
        let lap = self.paging.lap.take();
        let mut lap = lap.unwrap_or_else(|| self.begin_lap(until_bytes));
        let (drops_left, looks_left) = (SHED_STEP, SHED_LOOKS);
        let mut hand = Hand { below: lap.below, drops_left, looks_left };
        while hand.drops_left > 0 && hand.looks_left > 0 && self.memory_bytes() > until_bytes {
            let Some(id) = self.state.first_queue_from(lap.queue) else {
                return if lap.has_won { now } else { now + SHED_REST };
            };
            hand.looks_left -= 1;
            let shed = self.state.shed(id, committed, lap.share_bytes, &mut hand);
            lap.has_won |= shed.paged_out.messages > 0;
            self.paging.counters.out_total += shed.paged_out.messages;
            if shed.is_over {
                (lap.queue, hand.below) = (QueueId(id.0 + 1), u64::MAX);
            } else {
                lap.queue = id;
            }
        }
        lap.below = hand.below;
        self.paging.lap = Some(lap);
        now
    }

    /// What each queue may keep, so that all that is in memory comes to `until_bytes`.
    fn begin_lap(&self, until_bytes: u64) -> Lap {
        let resident = self.state.queues().map(Queue::resident_bytes).filter(|bytes| *bytes > 0);
        let (count, sum) = resident.fold((0, 0), |(count, sum), bytes| (count + 1, sum + bytes));
        let others = self.memory_bytes().saturating_sub(sum);
        let share_bytes = until_bytes.saturating_sub(others) / u64::max(count, 1);
        Lap { share_bytes, queue: QueueId(0), below: u64::MAX, has_won: false }
    }
}

/// What is needed is read.
impl Shard {
    /// Dispatch is through with a queue for now: whether it needs what is not in memory.
    #[inline(always)]
    pub(super) fn pages(&mut self, id: QueueId) {
        if self.state.paged_out().messages > 0 {
            self.pages_in(id);
        }
    }

    #[inline(never)]
    fn pages_in(&mut self, id: QueueId) {
        let window_bytes = self.read_ahead_bytes();
        let Some(queue) = self.state.queue(id) else { return };
        if queue.wants_payloads(window_bytes) {
            self.paging.counters.waits_total += u64::from(queue.awaits_bytes());
            self.paging.active.insert(id);
            self.paging.is_low = true;
        }
    }

    /// A message's bytes are not in memory, and somebody beside dispatch waits for them.
    pub(super) fn want_bytes(&mut self, id: QueueId, sequence: Sequence) {
        self.paging.wanted.push((id, sequence));
    }

    /// What may be ahead of each queue.
    fn read_ahead_bytes(&self) -> u64 {
        let all = self.config.memory_bytes_max / READ_AHEAD_SHARE;
        let queues = self.paging.active.len().max(1) as u64;
        READ_AHEAD_BYTES.min(all / queues).max(1)
    }

    /// Begins the reads that are needed, unless enough are under way.
    pub(super) fn step_read_back(&mut self) {
        let Paging { is_low, wanted, again, .. } = &self.paging;
        if !is_low && wanted.is_empty() && again.is_empty() {
            return;
        }
        if self.paging.reads.len() >= READ_BACKS_MAX {
            return;
        }
        let is_gathered = |(id, sequence): &(QueueId, Sequence)| {
            self.state.queue(*id).is_some_and(|queue| queue.is_gathering(*sequence))
        };
        self.paging.gathering.retain(|place, _| is_gathered(place));
        let window_bytes = self.read_ahead_bytes();
        let Self { paging, state, journal, .. } = self;
        let Some(journal) = journal else { return };
        let mut wanted = Vec::new();
        let gather_max = self.config.memory_bytes_max / READ_AHEAD_SHARE;
        for (id, sequence) in std::mem::take(&mut paging.wanted) {
            let Some(queue) = state.queue_mut(id) else { continue };
            let bytes = queue.message_bytes(sequence).unwrap_or_default() as u64;
            if queue.chain(sequence).is_none() {
                queue.ask(sequence, &mut wanted);
            } else if paging.gathering.is_empty() || paging.gathering_bytes() + bytes <= gather_max
            {
                queue.ask(sequence, &mut wanted);
                paging.gathering.insert((id, sequence), bytes);
            } else {
                paging.wanted.push((id, sequence));
            }
        }
        wanted.append(&mut paging.again);
        if std::mem::take(&mut paging.is_low) {
            paging.active.retain(|id| {
                let queue = state.queue_mut(*id);
                queue.is_some_and(|queue| queue.ask_ahead(window_bytes, &mut wanted))
            });
        }
        wanted.sort_unstable_by_key(|wanted| wanted.lsn);
        for (span, wanted) in spans(wanted, self.config.segment_bytes) {
            paging.counters.reads_total += 1;
            paging.counters.read_bytes_total += span.bytes as u64;
            let id = journal.read_back(span);
            paging.reads.push(Reading { id, span, wanted });
        }
    }

    /// Takes what was read of the log, for whoever asked.
    pub(super) fn step_reads(&mut self) {
        let mut any = false;
        while let Some((id, buf)) = self.journal.as_mut().and_then(Journal::poll_read) {
            any = true;
            match self.paging.reads.iter().position(|reading| reading.id == id) {
                Some(at) => {
                    let reading = self.paging.reads.swap_remove(at);
                    self.take_read_back(&reading, &buf);
                }
                None if self.take_fetched(id, &buf) => {}
                None => self.take_scanned(id, &buf),
            }
        }
        if any && !self.paging.peeks.is_empty() {
            for Peek { asker, queue, count_max, .. } in std::mem::take(&mut self.paging.peeks) {
                self.peek(asker, queue, count_max);
            }
        }
    }

    fn take_read_back(&mut self, reading: &Reading, buf: &BlockBuf) {
        let Some(seed) = self.journal.as_ref().map(|journal| *journal.seed()) else { return };
        let first = &reading.wanted[0];
        let takes_any = self.config.canaries.has(Canary::ReadBackUnchecked);
        for wanted in &reading.wanted {
            let at = if takes_any { first } else { wanted };
            let offset = at.lsn.since(reading.span.lsn) as usize;
            let bytes = &buf.as_slice()[offset..offset + at.record_bytes];
            match self.state.fill(wanted, || payload_of(&seed, at, bytes)) {
                Filled::Held(state) => {
                    self.paging.counters.in_total += 1;
                    if state == SlotState::Moving {
                        self.has_bytes(wanted.queue, wanted.sequence);
                    } else {
                        self.dirty_queues.insert(wanted.queue);
                    }
                }
                Filled::Part | Filled::Needless => {}
                Filled::Moved(wanted) => self.paging.again.push(wanted),
                Filled::Damaged => {
                    return self.damaged(wanted.queue, wanted.sequence, wanted.lsn);
                }
            }
        }
    }

    /// What was durable is not what was written there.
    pub(super) fn damaged(&mut self, queue: QueueId, sequence: Sequence, lsn: Lsn) {
        self.fatal(Fatal::JournalDamaged(format!(
            "shard {}: message {} of queue {} was durable at LSN {lsn}, and what is read there \
             does not check; look at it with `laelaps journal verify`, and restore the directory \
             from a copy",
            self.config.shard.0, sequence.0, queue.0
        )));
    }

    /// Shows an operator the oldest messages, as soon as all of them are in memory.
    pub(super) fn peek(&mut self, asker: AdminId, id: QueueId, count_max: usize) {
        let count_max = count_max.min(PEEK_MESSAGES_MAX);
        let (shown, missing) = match self.state.queue(id) {
            Some(queue) => queue.peek(count_max),
            None => (Vec::new(), Vec::new()),
        };
        if missing.is_empty() {
            let shown = shown.into_iter().map(PeekedMessage::from).collect();
            let reply = AdminReply::Peeked(Some(shown));
            self.actions.push_back(Action::AdminReply { id: asker, reply });
        } else {
            missing.into_iter().for_each(|sequence| self.want_bytes(id, sequence));
            self.paging.peeks.push(Peek { asker, queue: id, count_max, _shown: shown });
        }
    }
}

/// The reads that bring these records, which are in the order of the log.
fn spans(wanted: Vec<Wanted>, segment_bytes: u64) -> Vec<(Span, Vec<Wanted>)> {
    let block = BLOCK_BYTES as u64;
    let mut spans: Vec<(Span, Vec<Wanted>)> = Vec::new();
    for wanted in wanted {
        let begin = wanted.lsn.0 / block * block;
        let end = wanted.lsn.plus(wanted.record_bytes as u64).0.next_multiple_of(block);
        let last = spans.last_mut().filter(|(span, _)| {
            let is_same_segment = span.lsn.0 / segment_bytes == begin / segment_bytes;
            let is_near = begin <= span.lsn.0 + span.bytes as u64 + READ_BACK_GAP_BYTES;
            is_same_segment && is_near && end - span.lsn.0 <= READ_BACK_BYTES as u64
        });
        match last {
            Some((span, with)) => {
                span.bytes = span.bytes.max((end - span.lsn.0) as usize);
                with.push(wanted);
            }
            None => {
                let span = Span { lsn: Lsn(begin), bytes: (end - begin) as usize };
                spans.push((span, vec![wanted]));
            }
        }
    }
    spans
}

/// The message in a record, if that is the one that was asked for.
fn payload_of(seed: &LogSeed, wanted: &Wanted, bytes: &[u8]) -> Option<Bytes> {
    let (record, _) = Record::decode(seed, wanted.lsn, bytes).ok()?;
    let is_whole = record.flags.has(RecordFlags::WHOLE);
    let is_part = match wanted.fragment {
        None => is_whole && record.payload.len() == wanted.message_bytes,
        Some(fragment) => !is_whole && record.fragment == fragment,
    };
    let is_it = record.kind == RecordKind::Message
        && is_part
        && (record.queue, record.sequence) == (wanted.queue, wanted.sequence);
    is_it.then(|| Bytes::copy_from_slice(record.payload))
}
