//! Group commit: when a batch is sealed, which writes are in flight, and what is durable.
//!
//! ```text
//!   open ----(full | due and a write slot free)----> sealed queue ----> in flight ----> durable
//!            due: at once if somebody waits,                            |A|B|C|D|
//!                 else the end of the flush window                      ok   ok   durable = end A
//! ```
//!
//! There is no timer that holds a batch back from an idle disk: the first record that somebody
//! waits for is written at once, and what comes while the disk is busy shares the next write.
//!
//! A record at `async` is answered before it is written, so its batch *vouches*: it must be on its
//! way to the disk when the flush window ends, however busy the disk is. For this one write slot is
//! kept, which only a vouching batch that is due may take. One batch vouches at a time; while none
//! can, records at `async` wait unanswered. A crash then loses what came within the flush window,
//! and what is in writes under way.
//!
//! Invariants: LSNs are given out in the order of the log; at most `writes_in_flight_max` writes
//! and that one run, and no more than `WRITES_WINDOW_MAX` batches lie behind the oldest of them;
//! `durable` is the end of the contiguous prefix, never of the furthest write; no batch is
//! submitted whose durable field exceeds our own durable LSN.
//! A write that fails, is short, or hangs ends all this: the journal is poisoned by its owner.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::batch::{OpenBatch, Seal};
use crate::block_buf::BlockBuf;
use crate::canary::{Canaries, Canary};
use crate::disk::OpId;
use crate::identity::{Chain, LogSeed};
use crate::limits::{
    BATCH_BYTES_MAX, RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES, WRITES_KEPT, WRITES_WINDOW_MAX,
};
use crate::lsn::{Lsn, Slot, Term};
use crate::record::Record;
use crate::sealed::SealedBatch;

#[derive(Debug)]
pub(crate) struct Commit {
    seed: LogSeed,
    term: Term,
    segment_bytes: u64,
    writes_in_flight_max: usize,
    canaries: Canaries,
    /// The chain after the last sealed batch.
    chain: Chain,
    /// Where the next batch may begin, while none is open.
    next: Lsn,
    open: Option<Open>,
    sealed: VecDeque<Sealed>,
    /// In the order of the log.
    flights: VecDeque<Flight>,
    durable: Lsn,
    /// No batch vouches before this is durable: a message that was too large for that comes first.
    vouch_after: Lsn,
}

#[derive(Debug)]
struct Open {
    batch: OpenBatch,
    slot: Slot,
    opens_segment: bool,
    /// By when it must be on its way, if something in it was answered already.
    vouched_until: Option<Instant>,
}

/// A batch with all its bytes, on its way to the disk.
#[derive(Debug)]
pub(crate) struct Sealed {
    pub(crate) slot: Slot,
    pub(crate) offset: u64,
    pub(crate) buf: BlockBuf,
    durable: Lsn,
    end: Lsn,
    vouched_until: Option<Instant>,
}

#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) id: OpId,
    pub(crate) slot: Slot,
    pub(crate) offset: u64,
    pub(crate) bytes: u32,
    pub(crate) since: Instant,
    pub(crate) done: bool,
    /// It took the slot that is kept for a batch that vouches.
    kept: bool,
    end: Lsn,
}

/// Where a commit begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start {
    pub(crate) seed: LogSeed,
    pub(crate) term: Term,
    pub(crate) segment_bytes: u64,
    pub(crate) writes_in_flight_max: usize,
    pub(crate) chain: Chain,
    pub(crate) next: Lsn,
    pub(crate) durable: Lsn,
}

/// Where a new batch goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) first_lsn: Lsn,
    pub(crate) slot: Slot,
    pub(crate) opens_segment: bool,
}

/// When a record wants to be written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish {
    pub(crate) due: Instant,
    /// Not to be held back on a full disk.
    pub(crate) forced: bool,
}

impl Commit {
    pub(crate) fn new(start: &Start, canaries: Canaries) -> Self {
        Self {
            seed: start.seed,
            term: start.term,
            segment_bytes: start.segment_bytes,
            writes_in_flight_max: start.writes_in_flight_max,
            canaries,
            chain: start.chain,
            next: start.next,
            open: None,
            sealed: VecDeque::new(),
            flights: VecDeque::new(),
            durable: start.durable,
            vouch_after: start.durable,
        }
    }

    pub(crate) fn seed(&self) -> &LogSeed {
        &self.seed
    }

    pub(crate) fn term(&self) -> Term {
        self.term
    }

    pub(crate) fn durable(&self) -> Lsn {
        self.durable
    }

    /// Where the next batch would begin if the open one were sealed now.
    pub(crate) fn next(&self) -> Lsn {
        self.open.as_ref().map_or(self.next, |open| open.batch.end())
    }

    /// The end of the last sealed batch; [`chain`](Self::chain) is the one behind it.
    pub(crate) fn sealed_end(&self) -> Lsn {
        self.next
    }

    /// The end of the last record.
    pub(crate) fn appended(&self) -> Lsn {
        self.open.as_ref().map_or(self.next, |open| open.batch.record_end())
    }

    pub(crate) fn open_fits(&self, record_bytes: usize) -> bool {
        self.open.as_ref().is_some_and(|open| open.batch.fits(record_bytes))
    }

    /// Bytes that the last block of the open batch still has.
    pub(crate) fn open_padding(&self) -> usize {
        self.open.as_ref().map_or(0, |open| open.batch.padding())
    }

    pub(crate) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Whether a record may be answered before it is written: whatever is sealed goes out with the
    /// next poll, and the kept slot is free.
    pub(crate) fn may_vouch(&self) -> bool {
        self.durable >= self.vouch_after
            && self.sealed.len() <= self.free_slots()
            && !self.flights.iter().any(|flight| flight.kept && !flight.done)
            && self.flights.len() < WRITES_WINDOW_MAX
    }

    /// The open batch vouches, and its time is over.
    pub(crate) fn open_is_late(&self, now: Instant) -> bool {
        let until = self.open.as_ref().and_then(|open| open.vouched_until);
        until.is_some_and(|until| until <= now)
    }

    /// The open batch vouches, may go on doing so, and its time is not over.
    pub(crate) fn open_vouches(&self, now: Instant) -> bool {
        let until = self.open.as_ref().and_then(|open| open.vouched_until);
        until.is_some_and(|until| until > now) && self.may_vouch()
    }

    /// The open batch holds a record that is answered already: it is on its way by `until`.
    pub(crate) fn vouch(&mut self, until: Instant) {
        let open = self.open.as_mut().expect("the record is in the open batch");
        open.vouched_until.get_or_insert(until);
    }

    /// No batch vouches before everything appended so far is durable.
    pub(crate) fn vouch_after_this(&mut self) {
        self.vouch_after = self.appended();
    }

    /// Nothing is sealed or in flight.
    pub(crate) fn is_quiet(&self) -> bool {
        self.sealed.is_empty() && self.flights.is_empty()
    }

    /// Nothing is open, waiting or in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.open.is_none() && self.is_quiet()
    }

    pub(crate) fn open(&mut self, place: Place, now: Instant, wish: Wish) {
        assert!(self.open.is_none(), "one batch is open at a time");
        assert!(place.first_lsn >= self.next, "the log only grows");
        let in_segment = place.first_lsn.0 % self.segment_bytes;
        let room = usize::try_from(self.segment_bytes - in_segment).unwrap_or(usize::MAX);
        let bytes_max = room.min(BATCH_BYTES_MAX);
        let batch = OpenBatch::new(place.first_lsn, bytes_max, place.opens_segment, now, wish.due);
        let (slot, opens_segment) = (place.slot, place.opens_segment);
        self.open = Some(Open { batch, slot, opens_segment, vouched_until: None });
    }

    /// Copies a record into the open batch, which must have room for it.
    #[inline(always)]
    pub(crate) fn push(&mut self, record: &Record<'_>, bytes: usize, wish: Wish) -> (Lsn, Lsn) {
        let batch = &mut self.open.as_mut().expect("opened by the caller").batch;
        batch.due = batch.due.min(wish.due);
        batch.forced |= wish.forced;
        batch.push(&self.seed, record, bytes)
    }

    /// What is open must not be held back for company.
    pub(crate) fn force(&mut self) {
        if let Some(open) = &mut self.open {
            open.batch.forced = true;
        }
    }

    /// Makes the open batch final. Returns the chain before it if it opens a segment.
    pub(crate) fn seal(&mut self) -> Option<Chain> {
        let open = self.open.take().expect("asked only while one is open");
        let first_lsn = open.batch.first_lsn();
        let chain_before = self.chain;
        let durable =
            if self.canaries.has(Canary::DurableFieldBeyondOwn) { first_lsn } else { self.durable };
        assert!(durable <= first_lsn, "a batch can't vouch for itself");
        let seal =
            Seal { term: self.term, durable, chain_before, segment_bytes: self.segment_bytes };
        let (buf, end, chain) = open.batch.seal(&self.seed, &seal);
        let in_segment = first_lsn.0 % self.segment_bytes;
        let offset = if open.opens_segment { 0 } else { in_segment };
        self.chain = chain;
        self.next = end;
        let (slot, vouched_until) = (open.slot, open.vouched_until);
        self.sealed.push_back(Sealed { slot, offset, buf, durable, end, vouched_until });
        open.opens_segment.then_some(chain_before)
    }

    /// Takes a batch that another member sealed.
    pub(crate) fn take(&mut self, batch: &SealedBatch, slot: Slot) {
        assert!(self.open.is_none() && batch.first_lsn() >= self.next, "the log only grows");
        assert_eq!(batch.chain_before(), self.chain, "a batch of this history");
        let in_segment = batch.first_lsn().0 % self.segment_bytes;
        let opens_segment = in_segment == SEGMENT_HEADER_BYTES;
        self.chain = batch.chain_after();
        self.next = batch.end();
        self.term = batch.term();
        self.sealed.push_back(Sealed {
            slot,
            offset: if opens_segment { 0 } else { in_segment },
            buf: batch.image(&self.seed, self.segment_bytes),
            durable: batch.durable(),
            end: batch.end(),
            vouched_until: None,
        });
    }

    /// From here on it writes under this term.
    pub(crate) fn begin(&mut self, term: Term) {
        assert!(self.is_idle() && term > self.term, "{term:?} after {:?}", self.term);
        self.term = term;
    }

    /// The chain after everything sealed.
    pub(crate) fn chain(&self) -> Chain {
        self.chain
    }

    /// When the open batch is to be sealed, if a block that is not full may be written after
    /// `patience`, which most need not ask for. None: when it is full.
    pub(crate) fn seal_at(&self, patience: impl FnOnce() -> Option<Duration>) -> Option<Instant> {
        let batch = &self.open.as_ref()?.batch;
        // A block counts as full when not even a bare settlement fits any more.
        let is_full = batch.padding() < RECORD_HEADER_BYTES;
        if batch.forced || is_full {
            return Some(batch.due);
        }
        patience().map(|patience| batch.due.max(batch.since + patience))
    }

    /// Whether the next batch may be submitted.
    pub(crate) fn has_write_slot(&self, now: Instant) -> bool {
        self.has_free_slot() || self.kept_slot_at().is_some_and(|at| at <= now)
    }

    /// Whether any batch may be submitted.
    pub(crate) fn has_free_slot(&self) -> bool {
        self.free_slots() > 0
    }

    /// How many batches may be submitted, whatever they hold.
    #[inline]
    fn free_slots(&self) -> usize {
        let in_window = WRITES_WINDOW_MAX - WRITES_KEPT;
        // Asked with every message, and while the disk rests there is nothing to count.
        if self.flights.is_empty() {
            return self.writes_in_flight_max.min(in_window);
        }
        let running = self.flights.iter().filter(|flight| !flight.done && !flight.kept).count();
        let free = self.writes_in_flight_max.saturating_sub(running);
        free.min(in_window.saturating_sub(self.flights.len()))
    }

    /// When the next batch takes the kept slot, if it is still waiting then.
    pub(crate) fn kept_slot_at(&self) -> Option<Instant> {
        let sealed = self.sealed.front().map(|sealed| sealed.vouched_until);
        sealed.unwrap_or_else(|| self.open.as_ref().and_then(|open| open.vouched_until))
    }

    pub(crate) fn has_sealed(&self) -> bool {
        !self.sealed.is_empty()
    }

    /// The next write, now in flight.
    ///
    /// # Panics
    /// If a batch that vouches finds the kept slot taken.
    pub(crate) fn submit(&mut self, id: OpId, now: Instant) -> Option<Sealed> {
        if self.sealed.is_empty() || !self.has_write_slot(now) {
            return None;
        }
        let kept = !self.has_free_slot();
        let sealed = self.sealed.pop_front()?;
        let is_taken = self.flights.iter().any(|flight| flight.kept && !flight.done);
        assert!(!kept || (!is_taken && self.flights.len() < WRITES_WINDOW_MAX));
        let vouched = sealed.durable <= self.durable;
        assert!(
            vouched
                || self.canaries.has(Canary::DurableFieldBeyondOwn)
                || self.canaries.has(Canary::FollowerNeverHoldsBack)
        );
        self.flights.push_back(Flight {
            id,
            slot: sealed.slot,
            offset: sealed.offset,
            bytes: u32::try_from(sealed.buf.len()).expect("a batch is small"),
            since: now,
            done: false,
            kept,
            end: sealed.end,
        });
        if self.canaries.has(Canary::AckBeforeDurable) {
            self.durable = sealed.end;
        }
        Some(sealed)
    }

    pub(crate) fn flight(&self, id: OpId) -> Option<&Flight> {
        self.flights.iter().find(|flight| flight.id == id)
    }

    /// The oldest write that has not ended.
    pub(crate) fn oldest_flight(&self) -> Option<&Flight> {
        self.flights.iter().find(|flight| !flight.done)
    }

    /// A write ended well: the durable prefix grows over all that ended before it.
    pub(crate) fn handle_written(&mut self, id: OpId) {
        let flight = self.flights.iter_mut().find(|flight| flight.id == id);
        let flight = flight.expect("the caller looked it up");
        assert!(!flight.done, "an operation is answered once");
        flight.done = true;
        if self.canaries.has(Canary::PrefixNotContiguous) {
            self.durable = self.durable.max(flight.end);
        }
        while self.flights.front().is_some_and(|flight| flight.done) {
            let flight = self.flights.pop_front().expect("there is a front");
            self.durable = self.durable.max(flight.end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{BLOCK_BYTES, SETTLE_BYTES};
    use crate::lsn::{LogId, QueueId, Sequence, ShardId};
    use crate::record::{Record, RecordKind};

    #[expect(clippy::disallowed_methods, reason = "a test needs some moment to begin at")]
    fn start() -> Instant {
        Instant::now()
    }

    /// What is set aside for settlements is exactly enough only if a block is held back until none
    /// fits any more.
    #[test]
    fn a_block_without_patience_is_held_back_until_no_settlement_fits() {
        let seed = LogSeed::new(LogId([1; 16]), ShardId(0));
        let start_of_log = Lsn(BLOCK_BYTES as u64);
        let mut commit = Commit::new(
            &Start {
                seed,
                term: Term::default(),
                segment_bytes: 65536,
                writes_in_flight_max: 1,
                chain: seed.chain_start(),
                next: start_of_log,
                durable: start_of_log,
            },
            Canaries::default(),
        );
        let now = start();
        let wish = Wish { due: now, forced: false };
        let place = Place { first_lsn: start_of_log, slot: Slot(0), opens_segment: true };
        commit.open(place, now, wish);
        let record = Record::new(RecordKind::Settle, QueueId(1), Sequence(1), &[]);
        let mut settlements = 0;
        while commit.seal_at(|| None).is_none() {
            commit.push(&record, record.encoded_len(), wish);
            settlements += 1;
        }
        assert_eq!((settlements, commit.next()), (126, start_of_log.plus(BLOCK_BYTES as u64)));
        assert!(settlements * SETTLE_BYTES >= BLOCK_BYTES as u64);
    }
}
