//! Who gets which message: consumers, their credit, and what they hold.
//!
//! ```text
//!   requeued, by place ─┐
//!                       ├─▶ the first that some consumer with credit may have ─▶ Acquired, held
//!   fresh, from cursor ─┘      by turns; passing over who is excluded from it        │
//!                                                                                    ▼
//!                               settled, released, failed, or its consumer goes: given up
//! ```
//! A consumer that goes gives back what it held: few at once, many in steps, in which order is all
//! the same, since nobody gets anything until the last is back.
//!
//! Where the address says `exclusive-consumer`, only the consumer that came first gets anything;
//! when it goes, the next one does.
//!
//! Invariants: a consumer is handed a message only under credit; what it holds is in `held`, where
//! the slot says; each consumer looks at each of its exclusions once.

use bytes::Bytes;
use journal::Sequence;

use super::consumers::Served;
use super::{NotHeld, Place, Queue, RANK_DEFAULT, Slot, SlotState, excluded_bytes, step};
use crate::limits::{EXCLUSIONS_MAX, GRADUAL_STEP};
use crate::mail::LinkRef;
use crate::setback::Added;

/// What a queue hands to a consumer.
#[derive(Debug, PartialEq, Eq)]
pub struct Dispatched {
    /// To whom.
    pub consumer: LinkRef,
    /// Which message.
    pub sequence: Sequence,
    /// Its bytes as received; none of one in fragments that is on the disk: those are fetched as it
    /// is sent.
    pub message: Option<Bytes>,
    /// Failed deliveries so far.
    pub delivery_count: u32,
    /// Nobody can have seen it before.
    pub first_acquirer: bool,
    /// What consumers have added to its annotations.
    pub added: Option<Added>,
    /// When it expires, milliseconds since 1970, if it does: whoever still has it then gives it
    /// back.
    pub expiry_unix_ms: Option<u64>,
}

impl Queue {
    /// Consumers attached.
    pub fn consumers(&self) -> usize {
        self.consumers.len()
    }

    /// Whether it has as many consumers as it may have.
    pub fn is_crowded(&self) -> bool {
        let most = self.settings.consumers_max;
        most > 0 && self.consumers.len() as u64 >= u64::from(most)
    }

    /// A consumer attaches, without credit.
    pub fn attach(&mut self, link: LinkRef) {
        if self.consumers.find(link).is_none() {
            self.consumers.push(link);
        }
    }

    /// More credit for a consumer or browser; others are ignored (their detach is on its way).
    pub fn add_credit(&mut self, link: LinkRef, more: u32, drain: bool) {
        if let Some(at) = self.consumers.find(link) {
            self.consumers.add_credit(at, more, drain);
        } else {
            self.add_browser_credit(link, more, drain);
        }
    }

    /// A consumer or browser goes. What it held is available again, each at its own place.
    pub fn detach(&mut self, link: LinkRef) {
        let gone = self.consumers.find(link).and_then(|at| self.consumers.remove(at));
        let Some(consumer) = gone else { return self.detach_browser(link) };
        self.returning.extend(consumer.held);
        // What is few is back at once.
        if self.returning.len() <= GRADUAL_STEP {
            self.give_back_some(GRADUAL_STEP);
        } else {
            self.consumers.served = Served::Nobody;
        }
    }

    /// Whether a consumer has gone that held so much that it goes back in steps. Until all is back,
    /// nobody gets anything: what came before would come after.
    pub fn is_returning(&self) -> bool {
        !self.returning.is_empty()
    }

    /// Up to `count_max` messages of consumers that have gone are available again. Gives how many.
    pub fn give_back_some(&mut self, count_max: usize) -> usize {
        let left = self.returning.len().saturating_sub(count_max);
        let back = self.returning.split_off(left);
        for sequence in &back {
            self.make_available_again(*sequence);
        }
        if self.returning.is_empty() {
            self.returning = Vec::new();
            self.consumers.served = self.served();
        }
        back.len()
    }

    /// Who gets messages while nothing goes back.
    pub(super) fn served(&self) -> Served {
        if self.settings.exclusive_consumer { Served::First } else { Served::All }
    }

    /// Whether this consumer holds a message, or this browser is here to look at it.
    pub fn is_for(&self, link: LinkRef, sequence: Sequence) -> bool {
        self.holds(link, sequence) || self.browser(link).is_some()
    }

    /// Whether this consumer holds a message.
    pub(super) fn holds(&self, link: LinkRef, sequence: Sequence) -> bool {
        let held_at = self.index.get(sequence).map(|slot| slot.held_at);
        let at = self.consumers.find(link).zip(held_at);
        at.is_some_and(|(at, held_at)| self.consumers.held(at, held_at) == Some(sequence))
    }

    /// Whether some consumer could get something.
    #[inline(always)]
    pub(super) fn has_credit(&self) -> bool {
        self.consumers.has_ready()
    }

    /// The next message for the next consumer in turn, while there are both. One of one record
    /// whose bytes are not in memory is waited for: [`wants_payloads`](Self::wants_payloads).
    pub fn dispatch(&mut self) -> Option<Dispatched> {
        self.paged.awaits_nothing();
        if !self.has_credit() {
            return None;
        }
        let (place, at) = self.next_match()?;
        let sequence = place.sequence;
        let (slot, message) = self.index.get_whole(sequence).expect("it was matched");
        let message = message.cloned();
        if message.is_none() && slot.record_bytes().is_some() {
            self.paged.await_bytes(sequence);
            return None;
        }
        let consumer = self.consumers.spend(at);
        let link = consumer.link;
        slot.held_at = u32::try_from(consumer.held.len()).expect("bounded by its credit");
        consumer.held.push(sequence);
        step(slot, &mut self.counts, SlotState::Acquired);
        let delivery_count = slot.delivery_count;
        self.take_out(place);
        self.paged.handed_out(sequence);
        self.counters.delivered += 1;
        let first_acquirer = sequence >= self.recovered_end && !self.touched.contains(&sequence);
        let added = if first_acquirer { None } else { self.dying.added(sequence) };
        Some(Dispatched {
            consumer: link,
            sequence,
            message,
            delivery_count,
            first_acquirer,
            added,
            expiry_unix_ms: self.expiring.will_at(sequence),
        })
    }

    /// A consumer or browser that asked to be drained and can get nothing more now, with its unused
    /// credit. Call it when `dispatch` and `browse` have no more. While bytes are read there may be
    /// more.
    pub fn poll_drained(&mut self) -> Option<(LinkRef, u32)> {
        if self.paged.is_awaited() || self.is_returning() {
            return None;
        }
        self.consumers.poll_drained().or_else(|| self.poll_drained_browser())
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

    /// A consumer gives back what expired before it was sent, whatever the time is here: it is not
    /// offered again, unless nothing expires here any more.
    ///
    /// # Errors
    /// [`NotHeld`] as in [`Self::settle`].
    pub fn release_expired(&mut self, link: LinkRef, sequence: Sequence) -> Result<(), NotHeld> {
        self.give_up(link, sequence, SlotState::Available)?;
        self.expiring.comes_due(sequence);
        self.requeue(sequence);
        Ok(())
    }

    /// This consumer does not get this message again. A message remembers the newest few of those
    /// that are there; whoever is gone needs no care, since its reference names nobody else.
    pub fn exclude(&mut self, link: LinkRef, sequence: Sequence) {
        let links = self.excluded.entry(sequence).or_default();
        if links.contains(&link) {
            return;
        }
        if !links.is_empty() {
            self.dying.relieved(excluded_bytes(links.len()));
        }
        if links.len() == EXCLUSIONS_MAX {
            let consumers = &self.consumers;
            links.retain(|link| consumers.find(*link).is_some());
        }
        let is_full = links.len() == EXCLUSIONS_MAX;
        if is_full {
            links.remove(0);
        }
        links.push(link);
        self.dying.troubled(excluded_bytes(links.len()));
        if is_full {
            let rank = self.index.get(sequence).map_or(RANK_DEFAULT, |slot| slot.rank);
            let place = Place { rank, time: self.schedule.time_of(sequence), sequence };
            self.consumers.look_again(place);
        }
    }

    /// The links that consume from it.
    pub fn links(&self) -> impl Iterator<Item = LinkRef> + '_ {
        self.consumers.links()
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
        let Self { consumers, requeued, excluded, .. } = self;
        consumers.begin_look();
        let mut best: Option<(Place, usize)> = None;
        let mut step = 0;
        while let Some((at, next)) = consumers.ready_from(step) {
            step = next;
            let consumer = consumers.at(at);
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

    fn next_consumer(&self, sequence: Sequence) -> Option<usize> {
        let excluded = self.excluded.get(&sequence);
        self.consumers.next_ready(|link| excluded.is_some_and(|links| links.contains(&link)))
    }

    /// A consumer holds a message no longer, which becomes what is said.
    pub(super) fn give_up(
        &mut self,
        link: LinkRef,
        sequence: Sequence,
        to: SlotState,
    ) -> Result<&Slot, NotHeld> {
        let at = self.consumers.find(link).ok_or(NotHeld)?;
        let held = &mut self.consumers.at(at).held;
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
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use journal::QueueId;

    use super::*;
    use crate::queue::tests::{drain_to, link, queue_of, reserve};
    use crate::settings::AddressSettings;

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

    /// Of more consumers than it remembers, the one that was excluded first may see it again; those
    /// that have gone count for nothing.
    #[test]
    fn a_message_remembers_the_newest_exclusions_of_those_that_are_there() {
        let mut queue = queue_of(1);
        let most = EXCLUSIONS_MAX as u32;
        let pass_on = |queue: &mut Queue, slot: u32| {
            queue.attach(link(slot));
            queue.add_credit(link(slot), 1, false);
            assert_eq!(drain_to(queue), [(slot, 0)]);
            queue.release(link(slot), Sequence(0)).unwrap();
            queue.exclude(link(slot), Sequence(0));
        };
        for gone in 100..100 + 2 * most {
            pass_on(&mut queue, gone);
            queue.detach(link(gone));
        }
        for slot in 0..most {
            pass_on(&mut queue, slot);
        }
        (0..most).for_each(|slot| queue.add_credit(link(slot), 1, false));
        assert_eq!(queue.dispatch(), None, "each of them is excluded");
        pass_on(&mut queue, most);
        assert_eq!(drain_to(&mut queue), [(0, 0)], "one more than it remembers");
    }

    #[test]
    fn an_exclusive_consumer_gets_all_until_it_goes_and_then_the_next_does() {
        let settings = AddressSettings { exclusive_consumer: true, ..AddressSettings::default() };
        let mut queue = queue_of(6);
        queue.adopt("q", Arc::new(settings));
        for slot in [1, 2, 3] {
            queue.attach(link(slot));
        }
        queue.add_credit(link(1), 2, false);
        queue.add_credit(link(2), 9, false);
        queue.add_credit(link(3), 9, true);
        assert_eq!(drain_to(&mut queue), [(1, 0), (1, 1)]);
        assert_eq!(queue.poll_drained(), Some((link(3), 9)));
        queue.release(link(1), Sequence(1)).unwrap();
        queue.exclude(link(1), Sequence(1));
        queue.add_credit(link(1), 1, false);
        assert_eq!(drain_to(&mut queue), [(1, 2)], "what it may not have waits");
        queue.detach(link(1));
        assert_eq!(drain_to(&mut queue), [(2, 0), (2, 1), (2, 2), (2, 3), (2, 4), (2, 5)]);
    }

    #[test]
    fn what_a_consumer_held_goes_back_in_steps_and_nobody_overtakes() {
        let count = 3 * GRADUAL_STEP as u64;
        let mut queue = queue_of(count + 5);
        queue.attach(link(1));
        queue.add_credit(link(1), count as u32, false);
        while queue.dispatch().is_some() {}
        queue.attach(link(2));
        queue.add_credit(link(2), 2 * count as u32, true);
        queue.detach(link(1));
        assert!(queue.is_returning());
        assert!(queue.settle(link(1), Sequence(0)).is_err(), "it has gone");
        for left in (0..3).rev() {
            assert_eq!(drain_to(&mut queue), [], "what is left comes before");
            assert_eq!(queue.poll_drained(), None);
            assert_eq!(queue.give_back_some(GRADUAL_STEP), GRADUAL_STEP);
            assert_eq!(queue.count(SlotState::Acquired), left * GRADUAL_STEP as u64);
        }
        assert!(!queue.is_returning());
        let all: Vec<(u32, u64)> = (0..count + 5).map(|n| (2, n)).collect();
        assert_eq!(drain_to(&mut queue), all);
        assert!(queue.poll_drained().is_some());
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
}
