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
//!   Delayed ──── its time has come ──▶ Available
//!   Moving  ──── the copy stands ────▶ Settling          (or Available: nobody takes the copy)
//! ```
//! What dies, and what waits after a failure, is in `queue/death.rs`.
//!
//! The spec's own names for what a consumer can see are Available, Acquired and Archived [3.1].
//!
//! The index finds a message's slot by its sequence (`queue/index.rs`). What was released goes back
//! to its own place in the order: `requeued` holds what lies behind the cursor, and everything that
//! is not of the usual priority. Higher priorities go out first, each in the order of sequences.
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
use std::sync::Arc;

use bytes::Bytes;
use journal::{Lsn, QueueId, Sequence};

use crate::limits::{EXCLUSIONS_MAX, SLOT_BYTES};
use crate::mail::LinkRef;
use crate::settings::AddressSettings;

mod browse;
mod death;
mod expiry;
mod index;

use browse::Browser;
use death::Dying;
pub use death::Leaving;
use expiry::Expiring;
use index::{Index, Slot};

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
    /// Its delivery failed, and it waits until it may be tried again.
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

/// Someone who takes messages.
#[derive(Debug)]
struct Consumer {
    link: LinkRef,
    credit: u32,
    drain: bool,
    /// What it holds, in no order.
    held: Vec<Sequence>,
    /// What is requeued before this is excluded for it: nothing there is looked at again.
    looked_at: Place,
}

impl Consumer {
    /// A message came back that it may not have looked at.
    fn look_again(&mut self, place: Place) {
        self.looked_at = self.looked_at.min(place);
    }
}

/// A message's place in the order of dispatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// Lower goes out first: what is missing from the highest priority.
    rank: u8,
    sequence: Sequence,
}

/// The rank of what states no priority.
const RANK_DEFAULT: u8 = PRIORITY_MAX - PRIORITY_DEFAULT;

impl Place {
    const FIRST: Self = Self { rank: 0, sequence: Sequence(0) };

    fn next(self) -> Self {
        Self { sequence: Sequence(self.sequence.0 + 1), ..self }
    }
}

/// What a queue has to know of a message beside its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traits {
    /// Its priority, at most 9.
    pub priority: u8,
    /// When it expires, milliseconds since 1970.
    pub expiry_unix_ms: Option<u64>,
}

impl Default for Traits {
    fn default() -> Self {
        Self { priority: PRIORITY_DEFAULT, expiry_unix_ms: None }
    }
}

/// What a queue hands to a consumer.
#[derive(Debug, PartialEq, Eq)]
pub struct Dispatched {
    /// To whom.
    pub consumer: LinkRef,
    /// Which message.
    pub sequence: Sequence,
    /// Its bytes as received.
    pub message: Bytes,
    /// Failed deliveries so far.
    pub delivery_count: u32,
    /// Nobody can have seen it before.
    pub first_acquirer: bool,
}

/// What left the index for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Archived {
    /// Where the message's record is, so that its segment's count can go down.
    pub lsn: Lsn,
    /// What it counted against the memory bound.
    pub memory_bytes: u64,
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
    next: Sequence,
    cursor: Sequence,
    recovered_end: Sequence,
    requeued: BTreeSet<Place>,
    touched: BTreeSet<Sequence>,
    excluded: BTreeMap<Sequence, Vec<LinkRef>>,
    consumers: Vec<Consumer>,
    browsers: Vec<Browser>,
    turn: usize,
    counts: [u64; STATES],
    payload_bytes: u64,
    newest_first: bool,
    settings: Arc<AddressSettings>,
    dying: Dying,
    expiring: Expiring,
    /// Counters; see [`QueueCounters`].
    pub counters: QueueCounters,
}

impl Queue {
    /// An empty queue. Its first message gets sequence 0.
    pub fn new(id: QueueId) -> Self {
        Self {
            id,
            index: Index::default(),
            next: Sequence(0),
            cursor: Sequence(0),
            recovered_end: Sequence(0),
            requeued: BTreeSet::new(),
            touched: BTreeSet::new(),
            excluded: BTreeMap::new(),
            consumers: Vec::new(),
            browsers: Vec::new(),
            turn: 0,
            counts: [0; STATES],
            payload_bytes: 0,
            newest_first: false,
            settings: Arc::default(),
            dying: Dying::default(),
            expiring: Expiring::default(),
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

    /// Bytes of message payload held.
    pub fn payload_bytes(&self) -> u64 {
        self.payload_bytes
    }

    /// Consumers attached.
    pub fn consumers(&self) -> usize {
        self.consumers.len()
    }

    /// What a message of this length counts against the memory bound.
    pub fn memory_bytes(message_len: usize) -> u64 {
        SLOT_BYTES + message_len as u64
    }

    /// Where the message's record is, while the message is live.
    pub fn lsn(&self, sequence: Sequence) -> Option<Lsn> {
        self.index.get(sequence).map(|slot| slot.lsn)
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
        self.payload_bytes += message.len() as u64;
        let state = SlotState::Reserved;
        let rank = PRIORITY_MAX - traits.priority.min(PRIORITY_MAX);
        self.index
            .push(sequence, Slot { state, rank, delivery_count: 0, held_at: 0, lsn, message });
        self.counts[SlotState::Reserved as usize] += 1;
        if let Some(unix_ms) = traits.expiry_unix_ms {
            self.expiring.insert(sequence, unix_ms);
        }
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
                let place = Place { rank: slot.rank, sequence };
                self.requeued.insert(place);
                self.consumers.iter_mut().for_each(|consumer| consumer.look_again(place));
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

    /// A consumer attaches, without credit.
    pub fn attach(&mut self, link: LinkRef) {
        if self.consumer(link).is_none() {
            self.consumers.push(Consumer {
                link,
                credit: 0,
                drain: false,
                held: Vec::new(),
                looked_at: Place::FIRST,
            });
        }
    }

    /// More credit for a consumer or browser; others are ignored (their detach is on its way).
    pub fn add_credit(&mut self, link: LinkRef, more: u32, drain: bool) {
        if let Some(at) = self.consumer(link) {
            let consumer = &mut self.consumers[at];
            consumer.credit = consumer.credit.saturating_add(more);
            consumer.drain |= drain;
        } else {
            self.add_browser_credit(link, more, drain);
        }
    }

    /// A consumer or browser goes. What it held is available again, each at its own place.
    pub fn detach(&mut self, link: LinkRef) {
        let Some(at) = self.consumer(link) else { return self.detach_browser(link) };
        let consumer = self.consumers.remove(at);
        if self.turn > at {
            self.turn -= 1;
        }
        for sequence in consumer.held {
            self.make_available_again(sequence);
        }
    }

    /// The next message for the next consumer in turn, while there are both.
    pub fn dispatch(&mut self) -> Option<Dispatched> {
        if !self.consumers.iter().any(|consumer| consumer.credit > 0) {
            return None;
        }
        let (place, at) = self.next_match()?;
        let sequence = place.sequence;
        self.take_out(place);
        self.turn = at + 1;
        let consumer = &mut self.consumers[at];
        let slot = self.index.get_mut(sequence).expect("it was matched");
        consumer.credit -= 1;
        slot.held_at = u32::try_from(consumer.held.len()).expect("bounded by its credit");
        consumer.held.push(sequence);
        step(slot, &mut self.counts, SlotState::Acquired);
        self.counters.delivered += 1;
        let first = sequence >= self.recovered_end && !self.touched.contains(&sequence);
        Some(Dispatched {
            consumer: consumer.link,
            sequence,
            message: slot.message.clone(),
            delivery_count: slot.delivery_count,
            first_acquirer: first,
        })
    }

    /// A consumer or browser that asked to be drained and can get nothing more now, with its unused
    /// credit. Call it when `dispatch` and `browse` have no more.
    pub fn poll_drained(&mut self) -> Option<(LinkRef, u32)> {
        let Some(consumer) = self.consumers.iter_mut().find(|consumer| consumer.drain) else {
            return self.poll_drained_browser();
        };
        consumer.drain = false;
        Some((consumer.link, std::mem::take(&mut consumer.credit)))
    }

    /// A consumer has settled what it holds; the settlement is to be appended.
    ///
    /// # Errors
    /// [`NotHeld`] if this consumer does not hold it: settled already, or requeued.
    pub fn settle(&mut self, link: LinkRef, sequence: Sequence) -> Result<(), NotHeld> {
        self.give_up(link, sequence, SlotState::Settling)?;
        Ok(())
    }

    /// A consumer gives back what it holds.
    ///
    /// # Errors
    /// [`NotHeld`] as in [`Self::settle`].
    pub fn release(&mut self, link: LinkRef, sequence: Sequence) -> Result<(), NotHeld> {
        self.give_up(link, sequence, SlotState::Available)?;
        self.requeue(sequence);
        Ok(())
    }

    /// This consumer does not get this message again. A message remembers the newest few of those;
    /// links that are gone need no care, since their references name nobody else.
    pub fn exclude(&mut self, link: LinkRef, sequence: Sequence) {
        let links = self.excluded.entry(sequence).or_default();
        if links.contains(&link) {
            return;
        }
        if links.len() == EXCLUSIONS_MAX {
            links.remove(0);
            let rank = self.index.get(sequence).map_or(RANK_DEFAULT, |slot| slot.rank);
            let place = Place { rank, sequence };
            self.consumers.iter_mut().for_each(|consumer| consumer.look_again(place));
        }
        links.push(link);
    }

    /// The oldest available message leaves the order for its settlement (purge).
    pub fn take_for_purge(&mut self, below: Sequence) -> Option<Sequence> {
        let place = match self.requeued.iter().find(|place| place.sequence < below) {
            Some(place) => *place,
            None => self.fresh().filter(|place| place.sequence < below)?,
        };
        self.take_out(place);
        let sequence = place.sequence;
        self.change(sequence, SlotState::Settling);
        Some(sequence)
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
        let slot = self.index.take(sequence)?;
        let state = slot.state;
        assert_eq!(state, SlotState::Settling, "archived {sequence:?} without a settlement");
        self.counts[SlotState::Settling as usize] -= 1;
        self.payload_bytes -= slot.message.len() as u64;
        self.touched.remove(&sequence);
        self.excluded.remove(&sequence);
        self.dying.forget(sequence);
        self.expiring.forget(sequence);
        self.counters.settled += 1;
        Some(Archived { lsn: slot.lsn, memory_bytes: Self::memory_bytes(slot.message.len()) })
    }

    /// The oldest live messages, for an operator's eyes.
    pub fn peek(&self, count_max: usize) -> Vec<(Sequence, SlotState, u32, Bytes)> {
        self.index
            .iter()
            .filter(|(_, slot)| slot.state.is_visible())
            .take(count_max)
            .map(|(sequence, slot)| {
                (sequence, slot.state, slot.delivery_count, slot.message.clone())
            })
            .collect()
    }

    /// Every message that is not archived: sequence, place in the log, bytes.
    pub fn live_messages(&self) -> impl Iterator<Item = (Sequence, Lsn, usize)> + '_ {
        self.index.iter().map(|(sequence, slot)| (sequence, slot.lsn, slot.message.len()))
    }

    /// The links that consume from it.
    pub fn links(&self) -> impl Iterator<Item = LinkRef> + '_ {
        self.consumers.iter().map(|consumer| consumer.link)
    }

    fn consumer(&self, link: LinkRef) -> Option<usize> {
        self.consumers.iter().position(|consumer| consumer.link == link)
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
            self.requeued.remove(&Place { rank: slot.rank, sequence });
        }
        self.change(sequence, to);
    }

    /// The first message in order that some consumer with credit may have, and that consumer's
    /// place.
    fn next_match(&mut self) -> Option<(Place, usize)> {
        if self.newest_first
            && let Some(fresh) = self.next_fresh()
        {
            return Some(fresh);
        }
        let found = match self.requeued.first().copied() {
            None => None,
            Some(first) => match self.next_consumer(first.sequence) {
                Some(at) => Some((first, at)),
                None => self.next_not_excluded(),
            },
        };
        // What is requeued lies behind the cursor, or has a rank of its own.
        match found {
            Some((place, _)) if place.rank > RANK_DEFAULT => self.next_fresh().or(found),
            Some(_) => found,
            None => self.next_fresh(),
        }
    }

    fn next_fresh(&mut self) -> Option<(Place, usize)> {
        let fresh = self.fresh()?;
        self.next_consumer(fresh.sequence).map(|at| (fresh, at))
    }

    /// The first requeued message that some consumer with credit is not excluded from. Each
    /// consumer looks at each of its exclusions once, not each time.
    fn next_not_excluded(&mut self) -> Option<(Place, usize)> {
        let Self { consumers, requeued, excluded, turn, .. } = self;
        let count = consumers.len();
        let mut best: Option<(Place, usize)> = None;
        for at in (0..count).map(|step| (*turn + step) % count) {
            let consumer = &mut consumers[at];
            if consumer.credit == 0 {
                continue;
            }
            let bars = |place: &Place| {
                excluded.get(&place.sequence).is_some_and(|links| links.contains(&consumer.link))
            };
            let found = requeued.range(consumer.looked_at..).find(|place| !bars(place));
            // What comes back from behind this place makes it look again.
            consumer.looked_at = match (found, requeued.last()) {
                (Some(found), _) => *found,
                (None, Some(last)) => last.next(),
                (None, None) => consumer.looked_at,
            };
            if let Some(found) = found
                && best.is_none_or(|(place, _)| *found < place)
            {
                best = Some((*found, at));
            }
        }
        best
    }

    /// The first available message of the usual priority that was never handed out. What lies
    /// before it is passed for good.
    fn fresh(&mut self) -> Option<Place> {
        let mut found = None;
        let mut from = self.cursor;
        while from < self.next {
            let Some((sequence, slot)) = self.index.first_from(from) else { break };
            match slot.state {
                SlotState::Available if slot.rank == RANK_DEFAULT => {
                    found = Some(Place { rank: RANK_DEFAULT, sequence });
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

    fn next_consumer(&self, sequence: Sequence) -> Option<usize> {
        let excluded = self.excluded.get(&sequence);
        let count = self.consumers.len();
        (0..count).map(|step| (self.turn + step) % count).find(|at| {
            let consumer = &self.consumers[*at];
            consumer.credit > 0 && excluded.is_none_or(|links| !links.contains(&consumer.link))
        })
    }

    /// A consumer holds a message no longer, which becomes what is said.
    fn give_up(
        &mut self,
        link: LinkRef,
        sequence: Sequence,
        to: SlotState,
    ) -> Result<&Slot, NotHeld> {
        let at = self.consumer(link).ok_or(NotHeld)?;
        let held = &mut self.consumers[at].held;
        let slot = self.index.get(sequence).ok_or(NotHeld)?;
        let held_at = slot.held_at as usize;
        // What a slot says is of no meaning unless it is acquired: the list decides.
        if held.get(held_at) != Some(&sequence) {
            return Err(NotHeld);
        }
        assert_eq!(slot.state, SlotState::Acquired, "{sequence:?} held, not acquired");
        held.swap_remove(held_at);
        if let Some(moved) = held.get(held_at) {
            let moved = self.index.get_mut(*moved).expect("what is held is live");
            moved.held_at = held_at as u32;
        }
        let slot = self.index.get_mut(sequence).ok_or(NotHeld)?;
        step(slot, &mut self.counts, to);
        Ok(slot)
    }

    fn make_available_again(&mut self, sequence: Sequence) {
        self.change(sequence, SlotState::Available);
        self.requeue(sequence);
    }

    /// It is available again: it goes out before what comes after it.
    fn requeue(&mut self, sequence: Sequence) {
        let Some(slot) = self.index.get(sequence) else { return };
        let place = Place { rank: slot.rank, sequence };
        self.touched.insert(sequence);
        // What was to be moved before it was ever handed out lies ahead of the cursor still.
        if sequence < self.cursor || slot.rank != RANK_DEFAULT {
            self.requeued.insert(place);
            self.consumers.iter_mut().for_each(|consumer| consumer.look_again(place));
        }
        if self.expiring.is_overdue(sequence) {
            self.expire_one(sequence);
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

/// The one place where a slot changes its state; the drawing at the top is this table.
fn step(slot: &mut Slot, counts: &mut [u64; STATES], to: SlotState) {
    use SlotState::{Acquired, Available, Counting, Delayed, Moving, Reserved, Settling};
    let from = slot.state;
    let legal = match to {
        Reserved => false,
        Available => matches!(from, Reserved | Acquired | Counting | Delayed | Moving),
        Acquired => matches!(from, Available),
        Counting => matches!(from, Acquired),
        Delayed => matches!(from, Counting),
        Moving => matches!(from, Reserved | Available | Counting | Delayed),
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

    fn link(slot: u32) -> LinkRef {
        LinkRef { shard: ShardId(0), key: LinkKey { slot, generation: 0 } }
    }

    fn queue_of(count: u64) -> Queue {
        let mut queue = Queue::new(QueueId(1));
        for n in 0..count {
            queue.reserve(Sequence(n), Lsn(n * 100), Bytes::from(vec![n as u8]), Traits::default());
            queue.commit(Sequence(n));
        }
        queue
    }

    /// A message of this priority, not committed.
    fn reserve(queue: &mut Queue, n: u64, priority: u8) -> Sequence {
        let traits = Traits { priority, ..Traits::default() };
        queue.reserve(Sequence(n), Lsn(n), Bytes::new(), traits);
        Sequence(n)
    }

    fn drain_to(queue: &mut Queue) -> Vec<(u32, u64)> {
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
    fn consumers_take_turns_within_their_credit() {
        let mut queue = queue_of(5);
        queue.attach(link(1));
        queue.attach(link(2));
        queue.add_credit(link(1), 1, false);
        queue.add_credit(link(2), 3, false);
        assert_eq!(drain_to(&mut queue), [(1, 0), (2, 1), (2, 2), (2, 3)]);
        assert_eq!(queue.count(SlotState::Available), 1);
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
    fn an_exclusion_from_a_low_priority_hides_nothing_fresh() {
        let mut queue = Queue::new(QueueId(1));
        for (n, priority) in (0..).zip([1, 4]) {
            reserve(&mut queue, n, priority);
        }
        queue.commit(Sequence(0));
        queue.attach(link(1));
        queue.attach(link(2));
        queue.add_credit(link(1), 9, false);
        assert_eq!(drain_to(&mut queue), [(1, 0)]);
        queue.release(link(1), Sequence(0)).unwrap();
        queue.exclude(link(1), Sequence(0));
        queue.commit(Sequence(1));
        assert_eq!(drain_to(&mut queue), [(1, 1)]);
        queue.add_credit(link(2), 9, false);
        assert_eq!(drain_to(&mut queue), [(2, 0)]);
    }

    #[test]
    fn a_purge_takes_every_priority_below_its_mark() {
        let mut queue = Queue::new(QueueId(1));
        for (n, priority) in (0..).zip([4, 0, 9, 4]) {
            let sequence = reserve(&mut queue, n, priority);
            queue.commit(sequence);
        }
        let taken: Vec<u64> =
            std::iter::from_fn(|| queue.take_for_purge(Sequence(3))).map(|s| s.0).collect();
        assert_eq!(taken, [2, 1, 0]);
        assert_eq!(queue.count(SlotState::Available), 1);
    }

    #[test]
    fn an_excluded_consumer_does_not_block_the_others() {
        let mut queue = queue_of(2);
        queue.attach(link(1));
        queue.attach(link(2));
        queue.add_credit(link(1), 1, false);
        queue.dispatch().unwrap();
        queue.release(link(1), Sequence(0)).unwrap();
        queue.exclude(link(1), Sequence(0));
        queue.add_credit(link(1), 5, false);
        assert_eq!(drain_to(&mut queue), [(1, 1)]);
        queue.add_credit(link(2), 1, false);
        assert_eq!(drain_to(&mut queue), [(2, 0)]);
    }

    #[test]
    fn exclusions_cost_one_look_each_and_keep_the_order() {
        let count = 20_000;
        let mut queue = queue_of(count);
        queue.attach(link(1));
        queue.attach(link(2));
        queue.add_credit(link(1), 2 * count as u32, false);
        for n in 0..count {
            // Each comes back at once; the next look must not begin at the first again.
            assert_eq!(queue.dispatch().unwrap().sequence, Sequence(n));
            queue.release(link(1), Sequence(n)).unwrap();
            queue.exclude(link(1), Sequence(n));
        }
        assert_eq!(queue.dispatch(), None);
        queue.add_credit(link(2), 2, false);
        assert_eq!(drain_to(&mut queue), [(2, 0), (2, 1)]);
        queue.detach(link(2));
        assert_eq!(queue.dispatch(), None);
        queue.attach(link(3));
        queue.add_credit(link(3), 3, false);
        assert_eq!(drain_to(&mut queue), [(3, 0), (3, 1), (3, 2)]);
    }

    #[test]
    fn drain_takes_the_unused_credit_back() {
        let mut queue = queue_of(1);
        queue.attach(link(1));
        queue.add_credit(link(1), 5, true);
        assert_eq!(drain_to(&mut queue), [(1, 0)]);
        assert_eq!(queue.poll_drained(), Some((link(1), 4)));
        assert_eq!(queue.poll_drained(), None);
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
