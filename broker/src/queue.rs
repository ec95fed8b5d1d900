//! One queue: where each message is in its life, in which order messages go out, and to whom.
//!
//! ```text
//!              commit           dispatch            settle            commit
//!   Reserved ─────────▶ Available ─────────▶ Acquired ─────────▶ Settling ─────────▶ (archived)
//!      │                 ▲   │                │ ▲ │                  ▲
//!      │                 │   └────────────────┼─┼─┼── purge ─────────┘
//!      │                 └──── requeue ───────┘ │ └──▶ Counting  (a failed delivery is logged)
//!      └── settle (recovery only: message and settlement are both in the log)     │
//!                        ▲────────────────── commit ──────────────────────────────┘
//! ```
//! The spec's own names for what a consumer can see are Available, Acquired and Archived [3.1].
//!
//! The index finds a message's slot by its sequence (`queue/index.rs`). What was released goes back
//! to its own place in the order: `requeued` holds what lies behind the cursor.
//!
//! Invariants (asserted, also in release):
//! - a sequence is given once; `next` never goes back;
//! - messages become available in the order of their sequences, so nothing available lies beyond
//!   the first reserved one, and FIFO is the order of sequences whatever happened in between;
//! - everything below `cursor` is acquired, settling, archived or in `requeued`;
//! - a slot is acquired by exactly one consumer, whose list `held` has it where the slot says.
//!
//! A queue does no I/O and knows no journal: a place in the log is a number it keeps for its
//! caller.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use journal::{Lsn, QueueId, Sequence};

use crate::limits::{EXCLUSIONS_MAX, SLOT_BYTES};
use crate::mail::LinkRef;

mod browse;
mod index;

use browse::Browser;
use index::{Index, Slot};

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
}

impl SlotState {
    /// Whether the message is committed and not about to go.
    pub fn is_visible(self) -> bool {
        match self {
            Self::Available | Self::Acquired | Self::Counting => true,
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
    /// What is requeued below this is excluded for it: nothing there is looked at again.
    looked_at: Sequence,
}

impl Consumer {
    /// A message came back that it may not have looked at.
    fn look_again(&mut self, sequence: Sequence) {
        self.looked_at = self.looked_at.min(sequence);
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
    requeued: BTreeSet<Sequence>,
    touched: BTreeSet<Sequence>,
    excluded: BTreeMap<Sequence, Vec<LinkRef>>,
    consumers: Vec<Consumer>,
    browsers: Vec<Browser>,
    turn: usize,
    counts: [u64; 5],
    payload_bytes: u64,
    newest_first: bool,
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
            counts: [0; 5],
            payload_bytes: 0,
            newest_first: false,
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
    pub fn reserve(&mut self, sequence: Sequence, lsn: Lsn, message: Bytes) {
        assert!(sequence >= self.next, "sequence {sequence:?} of {:?} given twice", self.id);
        self.next = Sequence(sequence.0 + 1);
        self.payload_bytes += message.len() as u64;
        let state = SlotState::Reserved;
        self.index.push(sequence, Slot { state, delivery_count: 0, held_at: 0, lsn, message });
        self.counts[SlotState::Reserved as usize] += 1;
    }

    /// The message is committed: consumers may see it. A message that was settled meanwhile stays
    /// so.
    pub fn commit(&mut self, sequence: Sequence) {
        let Some(slot) = self.index.get_mut(sequence) else { return };
        if slot.state == SlotState::Reserved {
            step(slot, &mut self.counts, SlotState::Available);
            self.counters.enqueued += 1;
            if sequence < self.cursor {
                self.requeued.insert(sequence);
                self.consumers.iter_mut().for_each(|consumer| consumer.look_again(sequence));
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
                looked_at: Sequence(0),
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
        let (sequence, at) = self.next_match()?;
        self.requeued.remove(&sequence);
        if sequence >= self.cursor {
            self.cursor = Sequence(sequence.0 + 1);
        }
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

    /// A consumer gives back what it holds as a failed delivery, which is to be appended; the
    /// message is available again when that is committed. Gives the new count.
    ///
    /// # Errors
    /// [`NotHeld`] as in [`Self::settle`].
    pub fn fail(&mut self, link: LinkRef, sequence: Sequence) -> Result<u32, NotHeld> {
        let slot = self.give_up(link, sequence, SlotState::Counting)?;
        Ok(slot.delivery_count.saturating_add(1))
    }

    /// The log says how often the delivery of a message has failed.
    pub fn set_delivery_count(&mut self, sequence: Sequence, delivery_count: u32) {
        if let Some(slot) = self.index.get_mut(sequence) {
            slot.delivery_count = delivery_count;
        }
    }

    /// A failed delivery is committed: the message is available again.
    pub fn counted(&mut self, sequence: Sequence) {
        if self.state(sequence) == Some(SlotState::Counting) {
            self.make_available_again(sequence);
        }
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
            self.consumers.iter_mut().for_each(|consumer| consumer.look_again(sequence));
        }
        links.push(link);
    }

    /// The oldest available message leaves the order for its settlement (purge).
    pub fn take_for_purge(&mut self, below: Sequence) -> Option<Sequence> {
        let requeued = self.requeued.first().copied();
        let sequence = match requeued {
            Some(sequence) => sequence,
            None => self.fresh()?,
        };
        if sequence >= below {
            return None;
        }
        self.requeued.remove(&sequence);
        if sequence >= self.cursor {
            self.cursor = Sequence(sequence.0 + 1);
        }
        self.change(sequence, SlotState::Settling);
        Some(sequence)
    }

    /// The log has a settlement of this message: whatever it was, it is going (recovery; before,
    /// its consumer has said so). False if it was gone before.
    pub fn settle_from_log(&mut self, sequence: Sequence) -> bool {
        let Some(slot) = self.index.get_mut(sequence) else { return false };
        if slot.state != SlotState::Settling {
            self.requeued.remove(&sequence);
            step(slot, &mut self.counts, SlotState::Settling);
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

    /// The first message in order that some consumer with credit may have, and that consumer's
    /// place.
    fn next_match(&mut self) -> Option<(Sequence, usize)> {
        if self.newest_first {
            let fresh = self.fresh().and_then(|s| self.next_consumer(s).map(|at| (s, at)));
            if fresh.is_some() {
                return fresh;
            }
        }
        if let Some(first) = self.requeued.first().copied() {
            if let Some(at) = self.next_consumer(first) {
                return Some((first, at));
            }
            if let Some(found) = self.next_not_excluded() {
                return Some(found);
            }
        }
        let fresh = self.fresh()?;
        self.next_consumer(fresh).map(|at| (fresh, at))
    }

    /// The first requeued message that some consumer with credit is not excluded from. Each
    /// consumer looks at each of its exclusions once, not each time.
    fn next_not_excluded(&mut self) -> Option<(Sequence, usize)> {
        let Self { consumers, requeued, excluded, turn, .. } = self;
        let count = consumers.len();
        let mut best: Option<(Sequence, usize)> = None;
        for at in (0..count).map(|step| (*turn + step) % count) {
            let consumer = &mut consumers[at];
            if consumer.credit == 0 {
                continue;
            }
            let bars = |sequence: &Sequence| {
                excluded.get(sequence).is_some_and(|links| links.contains(&consumer.link))
            };
            let found = requeued.range(consumer.looked_at..).find(|sequence| !bars(sequence));
            // What comes back from behind this place makes it look again.
            consumer.looked_at = match (found, requeued.last()) {
                (Some(found), _) => *found,
                (None, Some(last)) => Sequence(last.0 + 1),
                (None, None) => consumer.looked_at,
            };
            if let Some(found) = found
                && best.is_none_or(|(sequence, _)| *found < sequence)
            {
                best = Some((*found, at));
            }
        }
        best
    }

    /// The first available message that was never handed out.
    fn fresh(&self) -> Option<Sequence> {
        let mut from = self.cursor;
        while from < self.next {
            let (sequence, slot) = self.index.first_from(from)?;
            match slot.state {
                SlotState::Available => return Some(sequence),
                SlotState::Reserved => return None,
                SlotState::Acquired | SlotState::Counting | SlotState::Settling => {
                    from = Sequence(sequence.0 + 1);
                }
            }
        }
        None
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
        self.touched.insert(sequence);
        self.requeued.insert(sequence);
        self.consumers.iter_mut().for_each(|consumer| consumer.look_again(sequence));
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
fn step(slot: &mut Slot, counts: &mut [u64; 5], to: SlotState) {
    use SlotState::{Acquired, Available, Counting, Reserved, Settling};
    let from = slot.state;
    let legal = match to {
        Reserved => false,
        Available => matches!(from, Reserved | Acquired | Counting),
        Acquired => matches!(from, Available),
        Counting => matches!(from, Acquired),
        Settling => matches!(from, Reserved | Available | Acquired | Counting),
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
            queue.reserve(Sequence(n), Lsn(n * 100), Bytes::from(vec![n as u8]));
            queue.commit(Sequence(n));
        }
        queue
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
            queue.reserve(Sequence(n), Lsn(n), Bytes::new());
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
    fn a_failed_delivery_waits_for_its_commit() {
        let mut queue = queue_of(1);
        queue.attach(link(1));
        queue.add_credit(link(1), 5, false);
        queue.dispatch().unwrap();
        assert_eq!(queue.fail(link(1), Sequence(0)), Ok(1));
        queue.set_delivery_count(Sequence(0), 1);
        assert_eq!(queue.dispatch(), None);
        queue.counted(Sequence(0));
        assert_eq!(queue.dispatch().unwrap().delivery_count, 1);
        assert_eq!(queue.settle(link(2), Sequence(0)), Err(NotHeld));
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
        queue.reserve(Sequence(1), Lsn(9), Bytes::new());
    }
}
