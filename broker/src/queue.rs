//! One queue: where each message is in its life, in which order messages go out, and to whom.
//!
//! ```text
//!              commit           dispatch            settle            commit
//!   Reserved ─────────▶ Available ─────────▶ Acquired ─────────▶ Settling ─────────▶ (archived)
//!      │                 ▲   │                │ ▲ │                  ▲
//!      │                 │   └────────────────┼─┼─┼── purge ─────────┘
//!      │                 └──── requeue ───────┘ │ └──▶ Counting  (a failed delivery is logged)
//!      └── settle (recovery only: message and settlement are both in the log)     │
//!          Available, Delayed or Moving  ◀────────────── commit ──────────────────┘
//!
//!   Available ── to be delivered later (at its commit) ──▶ Delayed
//!   Delayed ──── its time has come ──▶ Available
//!   Moving  ──── the copy stands ────▶ Settling          (or Available: nobody takes the copy)
//! ```
//! Who gets what is in `queue/dispatch.rs`; what dies, and what waits after a failure, in
//! `queue/death.rs`; what says itself when it is to be delivered, in `queue/schedule.rs`.
//!
//! The spec's own names for what a consumer can see are Available, Acquired and Archived [3.1].
//!
//! The index finds a message's slot by its sequence (`queue/index.rs`); its bytes may be on the
//! disk only, and are asked for when its turn comes near (`queue/payload.rs`). What was released
//! goes back to its own place in the order: `requeued` holds what lies behind the cursor, and
//! everything that is not of the usual priority. Higher priorities go out first, each in the order
//! of sequences.
//!
//! Invariants (asserted, also in release):
//! - a sequence is given once; `next` never goes back;
//! - messages of the usual priority become available in the order of their sequences, so none of
//!   them lies beyond the first reserved one, and FIFO is the order of sequences within a priority,
//!   whatever happened in between;
//! - everything below `cursor` is acquired, on its way out, archived, delayed or in `requeued`;
//! - a slot is acquired by exactly one consumer, whose list `held` has it where the slot says.
//!
//! A queue does no I/O and knows no journal: a place in the log is a number it keeps for its
//! caller.

use std::collections::{BTreeMap, BTreeSet};
use std::num::{NonZeroU32, NonZeroU64};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use journal::{Lsn, QueueId, Sequence};

use crate::limits::{EXCLUDED_BYTES, PEEK_BYTES_MAX, PLACE_BYTES, SLOT_BYTES, TOUCHED_BYTES};
use crate::mail::LinkRef;
use crate::settings::AddressSettings;

mod browse;
mod chain;
mod consumers;
mod death;
mod depth;
mod dispatch;
mod expiry;
mod index;
mod payload;
mod place;
mod schedule;
mod stored;

use browse::Browser;
use chain::Chains;
pub use chain::{Chain, Large};
use consumers::Consumers;
use death::Dying;
pub use death::{Exit, Leaving};
pub use depth::Admission;
use depth::Entry;
pub use dispatch::Dispatched;
use expiry::Expiring;
use index::{IN_FRAGMENTS, Index, Slot};
use payload::Paged;
pub use payload::{Filled, Hand, PagedOut, Shed, Wanted};
use schedule::Schedule;
pub use stored::InQueue;

/// The priority of a message that states none [3.2.1].
pub const PRIORITY_DEFAULT: u8 = amqp::message::PRIORITY_DEFAULT;
/// The highest priority; what is higher counts as this.
pub const PRIORITY_MAX: u8 = 9;

/// Where a message is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// Appended, not committed: nobody sees it.
    Reserved,
    /// A consumer can get it.
    Available,
    /// A consumer holds it.
    Acquired,
    /// A failed delivery of it is appended, not committed; then it is available again.
    Counting,
    /// Its settlement is appended, not committed.
    Settling,
    /// It waits for its time: to be delivered, or tried again after a failed delivery.
    Delayed,
    /// It is on its way to another queue: nobody gets it here.
    Moving,
}

/// How many states there are.
const STATES: usize = 7;

impl SlotState {
    /// Whether the message is committed and not about to go.
    pub fn is_visible(self) -> bool {
        match self {
            Self::Available | Self::Acquired | Self::Counting | Self::Delayed | Self::Moving => {
                true
            }
            Self::Reserved | Self::Settling => false,
        }
    }
}

/// A message's place in the order of dispatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// Lower goes out first: what is missing from the highest priority.
    rank: u8,
    /// When it was to be delivered, milliseconds since 1970; 0 where it does not say.
    time: u64,
    sequence: Sequence,
}

/// The rank of what states no priority.
const RANK_DEFAULT: u8 = PRIORITY_MAX - PRIORITY_DEFAULT;

impl Place {
    const FIRST: Self = Self { rank: 0, time: 0, sequence: Sequence(0) };

    fn next(self) -> Self {
        Self { sequence: Sequence(self.sequence.0 + 1), ..self }
    }
}

/// What a queue has to know of a message beside its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traits {
    /// Its priority, if it states one; what is over 9 counts as 9.
    pub priority: Option<u8>,
    /// When it expires, milliseconds since 1970.
    pub expiry_unix_ms: Option<u64>,
    /// Before this nobody gets it, milliseconds since 1970.
    pub delivery_unix_ms: Option<NonZeroU64>,
    /// Where in its bytes its duplicate id begins, if that has yet to be looked at.
    pub duplicate_id_at: Option<NonZeroU32>,
    /// Bytes of its record's optional parts, if it is in one record: then it can be read back.
    pub parts_bytes: Option<u16>,
}

/// What left the index for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Archived {
    /// Where the message's record is, so that its segment's count can go down.
    pub lsn: Lsn,
    /// What it counted against the memory bound, if its bytes were in memory.
    pub memory_bytes: u64,
    /// Bytes of the message.
    pub message_bytes: u64,
    /// They were on the disk only.
    pub was_paged_out: bool,
}

/// A message as an operator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peeked {
    /// Its sequence.
    pub sequence: Sequence,
    /// Where it is in its life.
    pub state: SlotState,
    /// Failed deliveries so far.
    pub delivery_count: u32,
    /// How long it is.
    pub message_bytes: usize,
    /// The message as it was received; nothing of one that is too long to be shown.
    pub message: Bytes,
}

/// Why a consumer's word on a message has no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotHeld;

/// Counters since the process started; they never decide anything.
#[derive(Clone, Copy, Debug, Default)]
pub struct QueueCounters {
    /// Messages committed.
    pub enqueued: u64,
    /// Transfers handed to consumers.
    pub delivered: u64,
    /// Messages settled.
    pub settled: u64,
    /// Of those, rejected.
    pub rejected: u64,
}

/// One queue's messages and consumers.
#[derive(Debug)]
pub struct Queue {
    id: QueueId,
    index: Index,
    chains: Chains,
    next: Sequence,
    cursor: Sequence,
    recovered_end: Sequence,
    requeued: BTreeSet<Place>,
    touched: BTreeSet<Sequence>,
    excluded: BTreeMap<Sequence, Vec<LinkRef>>,
    consumers: Consumers,
    browsers: Vec<Browser>,
    /// What consumers held that have gone, acquired still.
    returning: Vec<Sequence>,
    counts: [u64; STATES],
    payload_bytes: u64,
    newest_first: bool,
    settings: Arc<AddressSettings>,
    entry: Entry,
    /// The priority of what states none.
    priority_default: u8,
    dying: Dying,
    expiring: Expiring,
    schedule: Schedule,
    paged: Paged,
    /// What of [`Self::recount`] is counted.
    counted_bytes: u64,
    /// Counters; see [`QueueCounters`].
    pub counters: QueueCounters,
}

impl Queue {
    /// An empty queue. Its first message gets sequence 0.
    pub fn new(id: QueueId) -> Self {
        Self {
            id,
            index: Index::default(),
            chains: Chains::default(),
            next: Sequence(0),
            cursor: Sequence(0),
            recovered_end: Sequence(0),
            requeued: BTreeSet::new(),
            touched: BTreeSet::new(),
            excluded: BTreeMap::new(),
            consumers: Consumers::default(),
            browsers: Vec::new(),
            returning: Vec::new(),
            counts: [0; STATES],
            payload_bytes: 0,
            newest_first: false,
            settings: Arc::default(),
            entry: Entry::Open,
            priority_default: PRIORITY_DEFAULT,
            dying: Dying::default(),
            expiring: Expiring::default(),
            schedule: Schedule::default(),
            paged: Paged::default(),
            counted_bytes: 0,
            counters: QueueCounters::default(),
        }
    }

    /// Breaks the order on purpose (a canary): what comes back stands behind newer messages.
    pub(crate) fn break_order(&mut self) {
        self.newest_first = true;
    }

    /// Its id.
    pub fn id(&self) -> QueueId {
        self.id
    }

    /// The sequence that the next message gets.
    pub fn next_sequence(&self) -> Sequence {
        self.next
    }

    /// How many messages are in a state.
    pub fn count(&self, state: SlotState) -> u64 {
        self.counts[state as usize]
    }

    /// Messages that are not archived.
    pub fn live(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Bytes of its messages, in memory or not.
    pub fn payload_bytes(&self) -> u64 {
        self.payload_bytes
    }

    /// What a message of this length counts against the memory bound.
    pub fn memory_bytes(message_len: usize) -> u64 {
        SLOT_BYTES + message_len as u64
    }

    /// What its messages count against the memory bound beside [`Self::memory_bytes`] since they
    /// expire, stand out of the order of sequences, came back or have to go: as was told last, and
    /// as it is now.
    #[inline]
    pub fn recount(&mut self) -> (u64, u64) {
        let places = self.requeued.len() as u64 * PLACE_BYTES;
        let now = self.expiring.memory_bytes() + places + self.dying.trouble_bytes();
        (std::mem::replace(&mut self.counted_bytes, now), now)
    }

    /// Where the message's record is, while the message is live.
    pub fn lsn(&self, sequence: Sequence) -> Option<Lsn> {
        self.index.get(sequence).map(|slot| slot.lsn)
    }

    /// The priority of a message that states none.
    pub fn priority_default(&self) -> u8 {
        self.priority_default
    }

    /// The priority of a message that is live; 0 of one that is not.
    pub fn priority(&self, sequence: Sequence) -> u8 {
        self.index.get(sequence).map_or(0, |slot| PRIORITY_MAX - slot.rank)
    }

    /// A sequence was used or set aside in the log: never give it, or one below it, again.
    pub fn skip_to(&mut self, next: Sequence) {
        if next > self.next {
            self.next = next;
        }
    }

    /// Takes the slot of a message that is in the log at `lsn` but not committed.
    ///
    /// # Panics
    /// If the sequence was given before: FIFO and settlement rest on that.
    #[inline(always)]
    pub fn reserve(&mut self, sequence: Sequence, lsn: Lsn, message: Bytes, traits: Traits) {
        assert!(sequence >= self.next, "sequence {sequence:?} of {:?} given twice", self.id);
        self.next = Sequence(sequence.0 + 1);
        let slot = self.slot(sequence, lsn, message.len(), traits);
        self.index.push(sequence, slot, Some(message));
    }

    /// The slot of a message that is not committed, counted.
    #[inline(always)]
    fn slot(&mut self, sequence: Sequence, lsn: Lsn, bytes: usize, traits: Traits) -> Slot {
        self.payload_bytes += bytes as u64;
        let state = SlotState::Reserved;
        let rank = PRIORITY_MAX - traits.priority.unwrap_or(PRIORITY_DEFAULT).min(PRIORITY_MAX);
        self.counts[SlotState::Reserved as usize] += 1;
        if let Some(unix_ms) = traits.expiry_unix_ms {
            self.expiring.insert(sequence, unix_ms);
        }
        let parts_bytes = traits.parts_bytes.unwrap_or(IN_FRAGMENTS);
        // A message is never longer than its log's largest, which is far below that.
        let message_bytes = u32::try_from(bytes).expect("a message of less than 4 GiB");
        Slot { state, rank, parts_bytes, message_bytes, delivery_count: 0, held_at: 0, lsn }
    }

    /// The message is committed: consumers may see it. A message that was settled meanwhile stays
    /// so.
    #[inline(always)]
    pub fn commit(&mut self, sequence: Sequence) {
        let Some(slot) = self.index.get_mut(sequence) else { return };
        if slot.state == SlotState::Reserved {
            step(slot, &mut self.counts, SlotState::Available);
            self.counters.enqueued += 1;
            if sequence < self.cursor || slot.rank != RANK_DEFAULT {
                let rank = slot.rank;
                let place = self.place(sequence, rank);
                self.requeued.insert(place);
                self.consumers.look_again(place);
            }
            if self.expiring.is_overdue(sequence) {
                self.expire_one(sequence);
            }
        }
    }

    /// Recovery is over: every message up to here may have been delivered before.
    pub fn end_recovery(&mut self) {
        self.recovered_end = self.next;
        self.counters = QueueCounters::default();
    }

    /// Of up to `count_max` messages in `range`, those that nobody holds leave the order for their
    /// settlement (purge). Gives them, and where to go on.
    pub fn take_for_purge(
        &mut self,
        range: Range<Sequence>,
        count_max: usize,
    ) -> (Vec<Sequence>, Sequence) {
        let (mut taken, mut from) = (Vec::new(), range.start);
        for _ in 0..count_max {
            let next = self.index.first_from(from).filter(|(sequence, _)| *sequence < range.end);
            let Some((sequence, slot)) = next else { return (taken, range.end) };
            match slot.state {
                SlotState::Available | SlotState::Delayed => {
                    self.take_away(sequence, SlotState::Settling);
                    taken.push(sequence);
                }
                SlotState::Reserved
                | SlotState::Acquired
                | SlotState::Counting
                | SlotState::Settling
                | SlotState::Moving => {}
            }
            from = Sequence(sequence.0 + 1);
        }
        (taken, from)
    }

    /// The log has a settlement of this message: whatever it was, it is going (recovery; before,
    /// its consumer has said so). False if it was gone before.
    pub fn settle_from_log(&mut self, sequence: Sequence) -> bool {
        let Some(state) = self.state(sequence) else { return false };
        if state != SlotState::Settling {
            self.take_away(sequence, SlotState::Settling);
        }
        true
    }

    /// A settlement is committed: the message is gone. `None` if it was gone before.
    pub fn archive(&mut self, sequence: Sequence) -> Option<Archived> {
        let (slot, message) = self.index.take(sequence)?;
        let state = slot.state;
        assert_eq!(state, SlotState::Settling, "archived {sequence:?} without a settlement");
        self.counts[SlotState::Settling as usize] -= 1;
        let message_bytes = u64::from(slot.message_bytes);
        self.payload_bytes -= message_bytes;
        let was_paged_out = message.is_none();
        self.paged.forget(sequence, &slot, was_paged_out);
        if self.touched.remove(&sequence) {
            self.dying.relieved(TOUCHED_BYTES);
        }
        if let Some(links) = self.excluded.remove(&sequence) {
            self.dying.relieved(excluded_bytes(links.len()));
        }
        let is_large = slot.parts_bytes == IN_FRAGMENTS;
        let chain_bytes = if is_large { self.chains.forget(sequence) } else { 0 };
        let kept = self.dying.forget(sequence) + self.schedule.forget(sequence);
        let memory_bytes = SLOT_BYTES + message_bytes + chain_bytes + kept;
        self.expiring.forget(sequence);
        self.counters.settled += 1;
        Some(Archived { lsn: slot.lsn, message_bytes, memory_bytes, was_paged_out })
    }

    /// The oldest live messages, for an operator's eyes, and those that have to be read first; at
    /// most so many, of [`PEEK_BYTES_MAX`] together. One that is longer is shown without its bytes.
    pub fn peek(&self, count_max: usize) -> (Vec<Peeked>, Vec<Sequence>) {
        let (mut shown, mut missing) = (Vec::new(), Vec::new());
        let mut bytes = 0;
        let visible = self.index.iter().filter(|(_, slot)| slot.state.is_visible());
        for (sequence, slot) in visible.take(count_max) {
            let Slot { state, delivery_count, .. } = *slot;
            let message_bytes = slot.message_bytes as usize;
            let is_shown = message_bytes <= PEEK_BYTES_MAX;
            bytes += if is_shown { message_bytes } else { 0 };
            if bytes > PEEK_BYTES_MAX {
                break;
            }
            let message =
                if is_shown { self.index.payload(sequence).cloned() } else { Some(Bytes::new()) };
            match message {
                Some(message) => {
                    let peeked = Peeked { sequence, state, delivery_count, message_bytes, message };
                    shown.push(peeked);
                }
                None => missing.push(sequence),
            }
        }
        (shown, missing)
    }

    /// The queue is gone, and so is its first message. `None` when it has no more.
    pub fn drop_first(&mut self) -> Option<Archived> {
        let (sequence, _) = self.index.first_from(Sequence(0))?;
        self.settle_from_log(sequence);
        self.archive(sequence)
    }

    /// Every message that is not archived: sequence, place in the log, bytes.
    pub fn live_messages(&self) -> impl Iterator<Item = (Sequence, Lsn, usize)> + '_ {
        self.index.iter().map(|(sequence, slot)| (sequence, slot.lsn, slot.message_bytes as usize))
    }

    /// A message leaves the order.
    fn take_out(&mut self, place: Place) {
        // What is fresh is not requeued; most often nothing is.
        if self.requeued.is_empty() || !self.requeued.remove(&place) {
            self.cursor = self.cursor.max(Sequence(place.sequence.0 + 1));
        }
    }

    /// A message that nobody holds is on its way out: no consumer finds it in its place.
    fn take_away(&mut self, sequence: Sequence, to: SlotState) {
        if let Some(slot) = self.index.get(sequence) {
            let place = self.place(sequence, slot.rank);
            self.requeued.remove(&place);
        }
        self.change(sequence, to);
    }

    /// Where a message stands in the order of dispatch.
    fn place(&self, sequence: Sequence, rank: u8) -> Place {
        Place { rank, time: self.schedule.time_of(sequence), sequence }
    }

    /// The first available message of the usual priority, and of no time of its own, that was never
    /// handed out. What lies before it is passed for good.
    fn fresh(&mut self) -> Option<Place> {
        let mut found = None;
        let mut from = self.cursor;
        while from < self.next {
            let Some((sequence, slot)) = self.index.first_from(from) else { break };
            match slot.state {
                SlotState::Available
                    if slot.rank == RANK_DEFAULT && self.schedule.time_of(sequence) == 0 =>
                {
                    found = Some(Place { rank: RANK_DEFAULT, time: 0, sequence });
                    break;
                }
                SlotState::Reserved => break,
                SlotState::Available
                | SlotState::Acquired
                | SlotState::Counting
                | SlotState::Settling
                | SlotState::Delayed
                | SlotState::Moving => from = Sequence(sequence.0 + 1),
            }
        }
        self.cursor = from;
        found
    }

    fn make_available_again(&mut self, sequence: Sequence) {
        self.change(sequence, SlotState::Available);
        self.requeue(sequence);
    }

    /// It is available again: it goes out before what comes after it.
    fn requeue(&mut self, sequence: Sequence) {
        let Some(slot) = self.index.get(sequence) else { return };
        let place = self.place(sequence, slot.rank);
        self.touch(sequence);
        // What was to be moved before it was ever handed out lies ahead of the cursor still.
        if sequence < self.cursor || place.rank != RANK_DEFAULT || place.time > 0 {
            self.requeued.insert(place);
            self.consumers.look_again(place);
        }
        if self.expiring.is_overdue(sequence) {
            self.expire_one(sequence);
        }
    }

    /// Somebody may have seen it.
    fn touch(&mut self, sequence: Sequence) {
        if self.touched.insert(sequence) {
            self.dying.troubled(TOUCHED_BYTES);
        }
    }

    fn state(&self, sequence: Sequence) -> Option<SlotState> {
        self.index.get(sequence).map(|slot| slot.state)
    }

    fn change(&mut self, sequence: Sequence, to: SlotState) {
        let id = self.id;
        let Some(slot) = self.index.get_mut(sequence) else {
            panic!("{sequence:?} of {id:?} is archived and cannot become {to:?}");
        };
        step(slot, &mut self.counts, to);
    }
}

/// What a message counts from which so many links are excluded.
fn excluded_bytes(links: usize) -> u64 {
    EXCLUDED_BYTES + links as u64 * size_of::<LinkRef>() as u64
}

/// The one place where a slot changes its state; the drawing at the top is this table.
fn step(slot: &mut Slot, counts: &mut [u64; STATES], to: SlotState) {
    use SlotState::{Acquired, Available, Counting, Delayed, Moving, Reserved, Settling};
    let from = slot.state;
    let legal = match to {
        Reserved => false,
        Available => matches!(from, Reserved | Acquired | Counting | Delayed | Moving),
        Acquired => matches!(from, Available),
        Counting => matches!(from, Acquired),
        Delayed => matches!(from, Counting | Available),
        Moving => matches!(from, Reserved | Available | Acquired | Counting | Delayed),
        Settling => !matches!(from, Settling),
    };
    assert!(legal, "the message at {}: {from:?} cannot become {to:?}", slot.lsn);
    slot.state = to;
    counts[from as usize] -= 1;
    counts[to as usize] += 1;
}

#[cfg(test)]
mod tests {
    use journal::ShardId;

    use super::*;
    use crate::mail::LinkKey;

    pub(super) fn link(slot: u32) -> LinkRef {
        LinkRef { shard: ShardId(0), key: LinkKey { slot, generation: 0 } }
    }

    pub(super) fn queue_of(count: u64) -> Queue {
        let mut queue = Queue::new(QueueId(1));
        for n in 0..count {
            queue.reserve(Sequence(n), Lsn(n * 100), Bytes::from(vec![n as u8]), Traits::default());
            queue.commit(Sequence(n));
        }
        queue
    }

    /// A message of this priority, not committed.
    pub(super) fn reserve(queue: &mut Queue, n: u64, priority: u8) -> Sequence {
        let traits = Traits { priority: Some(priority), ..Traits::default() };
        queue.reserve(Sequence(n), Lsn(n), Bytes::new(), traits);
        Sequence(n)
    }

    pub(super) fn drain_to(queue: &mut Queue) -> Vec<(u32, u64)> {
        std::iter::from_fn(|| queue.dispatch())
            .map(|d| (d.consumer.key.slot, d.sequence.0))
            .collect()
    }

    #[test]
    fn nothing_is_seen_before_its_commit_and_order_is_by_sequence() {
        let mut queue = Queue::new(QueueId(1));
        queue.attach(link(1));
        queue.add_credit(link(1), 10, false);
        for n in 0..3 {
            queue.reserve(Sequence(n), Lsn(n), Bytes::new(), Traits::default());
        }
        assert_eq!(queue.dispatch(), None);
        queue.commit(Sequence(0));
        queue.commit(Sequence(1));
        assert_eq!(drain_to(&mut queue), [(1, 0), (1, 1)]);
        queue.commit(Sequence(2));
        assert_eq!(drain_to(&mut queue), [(1, 2)]);
    }

    #[test]
    fn what_comes_back_goes_out_first_and_is_marked() {
        let mut queue = queue_of(4);
        queue.attach(link(1));
        queue.attach(link(2));
        queue.add_credit(link(1), 2, false);
        assert_eq!(drain_to(&mut queue), [(1, 0), (1, 1)]);
        queue.settle(link(1), Sequence(0)).unwrap();
        queue.detach(link(1));
        queue.add_credit(link(2), 9, false);
        let all: Vec<_> = std::iter::from_fn(|| queue.dispatch())
            .map(|d| (d.sequence.0, d.first_acquirer))
            .collect();
        assert_eq!(all, [(1, false), (2, true), (3, true)]);
        assert_eq!(queue.archive(Sequence(0)).unwrap().lsn, Lsn(0));
        assert_eq!(queue.archive(Sequence(0)), None);
    }

    #[test]
    fn priorities_go_out_from_the_highest_each_in_its_order() {
        let mut queue = Queue::new(QueueId(1));
        for (n, priority) in (0..).zip([4, 0, 9, 4, 9, 0, 200]) {
            let sequence = reserve(&mut queue, n, priority);
            queue.commit(sequence);
        }
        queue.attach(link(1));
        queue.add_credit(link(1), 3, false);
        assert_eq!(drain_to(&mut queue), [(1, 2), (1, 4), (1, 6)]);
        // What comes back is back in its place.
        queue.release(link(1), Sequence(4)).unwrap();
        queue.add_credit(link(1), 9, false);
        let rest: Vec<u64> = drain_to(&mut queue).into_iter().map(|(_, n)| n).collect();
        assert_eq!(rest, [4, 0, 3, 1, 5]);
        assert_eq!((queue.priority(Sequence(6)), queue.priority(Sequence(5))), (9, 0));
    }

    #[test]
    fn a_purge_takes_every_priority_below_its_mark() {
        let mut queue = Queue::new(QueueId(1));
        for (n, priority) in (0..).zip([4, 0, 9, 4]) {
            let sequence = reserve(&mut queue, n, priority);
            queue.commit(sequence);
        }
        let range = Sequence(0)..Sequence(3);
        assert_eq!(
            queue.take_for_purge(range.clone(), 2),
            (vec![Sequence(0), Sequence(1)], Sequence(2))
        );
        assert_eq!(
            queue.take_for_purge(Sequence(2)..range.end, 2),
            (vec![Sequence(2)], Sequence(3))
        );
        assert_eq!(queue.count(SlotState::Available), 1);
        queue.attach(link(1));
        queue.add_credit(link(1), 9, false);
        assert_eq!(drain_to(&mut queue), [(1, 3)]);
    }

    #[test]
    fn chunks_go_when_their_last_message_goes() {
        let count = 3 * crate::limits::CHUNK_SLOTS as u64;
        let mut queue = queue_of(count);
        for n in 1..count {
            queue.settle_from_log(Sequence(n));
            queue.archive(Sequence(n)).unwrap();
        }
        assert_eq!((queue.index.chunks(), queue.live()), (1, 1));
        assert_eq!(queue.next_sequence(), Sequence(count));
    }

    #[test]
    #[should_panic(expected = "given twice")]
    fn a_sequence_is_given_once() {
        let mut queue = queue_of(2);
        queue.reserve(Sequence(1), Lsn(9), Bytes::new(), Traits::default());
    }
}
