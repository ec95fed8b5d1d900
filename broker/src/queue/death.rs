//! Failed deliveries, and what comes of them: another try, a pause before it, or the way out.
//!
//! ```text
//!   fail, reject ─▶ Counting ─▶ committed ─┬─ doomed, or failed too often ──▶ Moving ─▶ the shard
//!                                          ├─ a pause is due ──▶ Delayed ──▶ Available
//!                                          └─ otherwise ───────────────────▶ Available
//! ```
//! That a message was rejected, and how often its delivery failed, is in the log before anybody is
//! told: after a restart it is on its way out again. A pause is not: after a restart the message is
//! available at once.
//!
//! Where it goes nothing may be taken for now: then some of it is offered to consumers again, and
//! called back when the next is tried.
//!
//! A queue that is its own dead-letter address is the end: failed deliveries are counted there and
//! limit nothing, and what is rejected there is gone. A queue without a dead-letter address drops
//! what dies.
//!
//! Invariants: what is Moving is in `leaving` or with the shard, once, and nothing else is;
//! `doomed` knows the reason of each, and of all that is `offered` or `lent`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use journal::Sequence;

use super::{Entry, NotHeld, Queue, Slot, SlotState};
use crate::limits::DOOM_BYTES;
use crate::mail::LinkRef;
use crate::moved::Reason;
use crate::setback::{Added, Setback};
use crate::settings::AddressSettings;

/// What is known of the messages that had trouble; most queues have none.
#[derive(Debug, Default)]
pub(super) struct Dying {
    /// Why each of these has to go.
    doomed: BTreeMap<Sequence, Reason>,
    /// What the log says was rejected, also where that means nothing now.
    rejected: BTreeSet<Sequence>,
    /// Moving, and not taken by the shard yet.
    leaving: BTreeSet<Sequence>,
    /// The same by turns and exits, but for what waits for a turn; what is not in `leaving` any
    /// more is passed over.
    turns: [VecDeque<Sequence>; 2],
    /// They have to go and find no room: consumers may have them meanwhile.
    offered: BTreeSet<Sequence>,
    /// So do these, each until its own turn.
    lent: BTreeSet<Sequence>,
    /// A failed delivery is being committed, and then a pause begins.
    pauses: BTreeMap<Sequence, Instant>,
    /// In a pause, by its end.
    delayed: BTreeSet<(Instant, Sequence)>,
    /// What consumers have added to the annotations of these.
    added: BTreeMap<Sequence, Added>,
    /// What that counts against the memory bound.
    added_bytes: u64,
    /// What the rest counts, and what is kept of messages that came back.
    trouble_bytes: u64,
    /// The queue is its own dead-letter address.
    is_grave: bool,
    /// The queue is its own expiry address.
    keeps_expired: bool,
}

impl Dying {
    /// This is why the message has to go.
    pub(super) fn doom(&mut self, sequence: Sequence, reason: Reason) {
        if self.doomed.insert(sequence, reason).is_none() {
            self.troubled(DOOM_BYTES);
        }
    }

    fn pardon(&mut self, sequence: Sequence) {
        if self.doomed.remove(&sequence).is_some() {
            self.relieved(DOOM_BYTES);
            self.offered.remove(&sequence);
            self.lent.remove(&sequence);
        }
    }

    /// So much more is kept of some message.
    pub(super) fn troubled(&mut self, bytes: u64) {
        self.trouble_bytes += bytes;
    }

    /// So much less is.
    pub(super) fn relieved(&mut self, bytes: u64) {
        self.trouble_bytes -= bytes;
    }

    /// What is kept of messages that had trouble, in bytes, about; not the annotations.
    #[inline(always)]
    pub(super) fn trouble_bytes(&self) -> u64 {
        self.trouble_bytes
    }

    fn exit_of(&self, sequence: Sequence) -> Exit {
        match self.doomed.get(&sequence) {
            Some(Reason::Expired) => Exit::Expired,
            Some(Reason::Rejected | Reason::Attempts) | None => Exit::Dead,
        }
    }

    /// Why the message has to go, as far as the log has been told: that one has expired, or has
    /// failed too often, it says by other means.
    pub(super) fn logged_doom(&self, sequence: Sequence) -> Option<Reason> {
        self.rejected.contains(&sequence).then_some(Reason::Rejected)
    }

    fn leave(&mut self, sequence: Sequence) {
        if self.leaving.insert(sequence) {
            self.turns[self.exit_of(sequence) as usize].push_back(sequence);
        }
    }

    /// What consumers have added to the annotations of a message.
    pub(super) fn added(&self, sequence: Sequence) -> Option<Added> {
        self.added.get(&sequence).cloned()
    }

    /// The message is gone. Gives what was kept of it and counted against the memory bound.
    pub(super) fn forget(&mut self, sequence: Sequence) -> u64 {
        if !self.doomed.is_empty() {
            self.pardon(sequence);
        }
        if !self.rejected.is_empty() {
            self.rejected.remove(&sequence);
        }
        if self.added.is_empty() {
            return 0;
        }
        let bytes = self.added.remove(&sequence).map_or(0, |added| added.memory_bytes());
        self.added_bytes -= bytes;
        bytes
    }
}

/// A message that has to go to another queue.
#[derive(Debug, PartialEq, Eq)]
pub struct Leaving {
    /// Which.
    pub sequence: Sequence,
    /// Why.
    pub reason: Reason,
}

/// Where a message goes that has to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// To the dead-letter address.
    Dead,
    /// To the expiry address.
    Expired,
}

impl Queue {
    /// What holds for this queue, from now on. Of what was recovered, whatever has to go goes.
    pub fn adopt(&mut self, name: &str, settings: Arc<AddressSettings>) {
        self.dying.is_grave = settings.dead_letter_address == name;
        self.dying.keeps_expired = settings.expiry_address == name;
        if self.dying.keeps_expired {
            self.expiring.pass_all();
        }
        self.entry = Entry::of(&settings);
        self.priority_default = settings.priority_default;
        self.settings = settings;
        if !self.is_returning() {
            self.consumers.served = self.served();
        }
        let has_to_go = |(sequence, slot): (Sequence, &Slot)| {
            self.reason_to_go(sequence, slot).map(|_| sequence)
        };
        let due: Vec<Sequence> = self.index.iter().filter_map(has_to_go).collect();
        due.into_iter().for_each(|sequence| self.adopt_one(sequence));
    }

    /// What a copy brings with it: one that had to go before a crash goes, now that it has landed.
    pub fn adopt_one(&mut self, sequence: Sequence) {
        let slot = self.index.get(sequence);
        let Some(reason) = slot.and_then(|slot| self.reason_to_go(sequence, slot)) else { return };
        if self.dying.is_grave {
            // It has become the place for the dead meanwhile: there it lies, until it is that no
            // more.
            self.dying.pardon(sequence);
        } else {
            self.dying.doom(sequence, reason);
            self.leave(sequence);
        }
    }

    fn reason_to_go(&self, sequence: Sequence, slot: &Slot) -> Option<Reason> {
        if slot.state != SlotState::Available {
            return None;
        }
        let doomed = self.dying.doomed.get(&sequence).copied();
        doomed.or(self.is_over(slot.delivery_count).then_some(Reason::Attempts))
    }

    /// Whether it is where expired messages go: nothing expires here.
    pub fn keeps_expired(&self) -> bool {
        self.dying.keeps_expired
    }

    /// What holds for it.
    pub fn settings(&self) -> &AddressSettings {
        &self.settings
    }

    /// Whether what is rejected here goes somewhere else, or is simply gone.
    pub fn buries_elsewhere(&self) -> bool {
        !self.dying.is_grave && !self.settings.dead_letter_address.is_empty()
    }

    /// So many failed deliveries are too many.
    fn is_over(&self, delivery_count: u32) -> bool {
        let most = self.settings.delivery_attempts_max;
        most > 0 && delivery_count >= most && !self.dying.is_grave
    }

    /// A consumer gives back what it holds as a failed delivery, which is to be appended; when that
    /// is committed, the message is available again, or in a pause, or on its way out. Gives the
    /// new count.
    ///
    /// # Errors
    /// [`NotHeld`] as in [`Self::settle`].
    pub fn fail(
        &mut self,
        now: Instant,
        link: LinkRef,
        sequence: Sequence,
    ) -> Result<u32, NotHeld> {
        let slot = self.give_up(link, sequence, SlotState::Counting)?;
        let count = slot.delivery_count.saturating_add(1);
        if !self.settings.redelivery_delay.is_zero() {
            let pause = self.settings.delay_after(count);
            self.dying.pauses.insert(sequence, now + pause);
        }
        Ok(count)
    }

    /// How many deliveries of a message have failed together with the one that this consumer holds;
    /// none where it holds it not, or it has to go already.
    pub fn count_with(&self, link: LinkRef, sequence: Sequence) -> Option<u32> {
        let counts = self.holds(link, sequence) && !self.is_doomed(sequence);
        let slot = self.index.get(sequence).filter(|_| counts)?;
        Some(slot.delivery_count.saturating_add(1))
    }

    /// The consumer of a message has gone, and that counts. Whether it has failed too often: then
    /// it is on its way out when that is committed.
    pub fn end_if_over(&mut self, link: LinkRef, sequence: Sequence) -> bool {
        let slot = self.index.get(sequence);
        let is_over = slot.is_some_and(|slot| self.is_over(slot.delivery_count));
        is_over && self.give_up(link, sequence, SlotState::Counting).is_ok()
    }

    /// A consumer has rejected what it holds, or added to its annotations, which is to be appended;
    /// when that is committed, the message is on its way out, or available again. Gives its count,
    /// which stays.
    ///
    /// # Errors
    /// [`NotHeld`] as in [`Self::settle`].
    pub fn put_back(&mut self, link: LinkRef, sequence: Sequence) -> Result<u32, NotHeld> {
        self.give_up(link, sequence, SlotState::Counting).map(|slot| slot.delivery_count)
    }

    /// The log says how often the delivery of a message has failed, and perhaps that it has to go,
    /// and what was added to its annotations.
    pub fn set_back(&mut self, sequence: Sequence, setback: Setback) {
        let Some(slot) = self.index.get_mut(sequence) else { return };
        slot.delivery_count = setback.count;
        if let Some(reason) = setback.doom {
            self.dying.doom(sequence, reason);
            if reason == Reason::Rejected {
                self.dying.rejected.insert(sequence);
            }
        }
        if let Some(added) = setback.added {
            self.dying.added_bytes += added.memory_bytes();
            let before = self.dying.added.insert(sequence, added);
            self.dying.added_bytes -= before.map_or(0, |before| before.memory_bytes());
        }
    }

    /// What consumers have added to the annotations of a message.
    pub fn added(&self, sequence: Sequence) -> Option<Added> {
        self.dying.added(sequence)
    }

    /// What that of all messages counts against the memory bound.
    pub fn added_bytes(&self) -> u64 {
        self.dying.added_bytes
    }

    /// A failed delivery is committed.
    pub fn counted(&mut self, sequence: Sequence) {
        let Some(slot) = self.index.get(sequence) else { return };
        if slot.state != SlotState::Counting {
            return;
        }
        let is_over = self.is_over(slot.delivery_count);
        let pause = self.dying.pauses.remove(&sequence);
        if is_over && !self.is_doomed(sequence) {
            self.dying.doom(sequence, Reason::Attempts);
        }
        if self.dying.doomed.contains_key(&sequence) {
            self.leave(sequence);
        } else if let Some(until) = pause {
            self.change(sequence, SlotState::Delayed);
            self.touch(sequence);
            self.dying.delayed.insert((until, sequence));
        } else {
            self.make_available_again(sequence);
        }
    }

    /// When the next pause ends.
    pub fn next_wake(&self) -> Option<Instant> {
        self.dying.delayed.first().map(|(until, _)| *until)
    }

    /// Pauses that are over by now end. Whether any did.
    pub fn wake(&mut self, now: Instant) -> bool {
        let mut any = false;
        while let Some((until, sequence)) = self.dying.delayed.first().copied()
            && until <= now
        {
            self.dying.delayed.pop_first();
            if self.state(sequence) == Some(SlotState::Delayed) {
                self.make_available_again(sequence);
                any = true;
            }
        }
        any
    }

    /// Whether anything waits to be moved.
    pub fn has_leaving(&self) -> bool {
        !self.dying.leaving.is_empty() || !self.dying.offered.is_empty()
    }

    /// Whether anything may wait to be moved there.
    pub fn has_leaving_by(&self, exit: Exit) -> bool {
        let is_offered = exit == Exit::Dead && !self.dying.offered.is_empty();
        is_offered || !self.dying.turns[exit as usize].is_empty()
    }

    /// The next message that has to be moved there: the caller sees it through. What was offered
    /// to consumers meanwhile is offered no longer.
    pub fn poll_leaving(&mut self, exit: Exit) -> Option<Leaving> {
        if exit == Exit::Dead && !self.dying.offered.is_empty() {
            self.call_back();
        }
        self.pop_leaving(exit)
    }

    fn pop_leaving(&mut self, exit: Exit) -> Option<Leaving> {
        let sequence = loop {
            let sequence = self.dying.turns[exit as usize].pop_front()?;
            if self.dying.leaving.remove(&sequence) {
                break sequence;
            }
        };
        assert_eq!(self.state(sequence), Some(SlotState::Moving), "what is leaving is moving");
        let reason = self.dying.doomed.get(&sequence).copied().unwrap_or(Reason::Attempts);
        Some(Leaving { sequence, reason })
    }

    /// The bytes of a moving message as received, if they are in memory, and its failed deliveries.
    pub fn moving(&self, sequence: Sequence) -> Option<(Option<&Bytes>, u32)> {
        let slot = self.index.get(sequence).filter(|slot| slot.state == SlotState::Moving)?;
        Some((self.index.payload(sequence), slot.delivery_count))
    }

    /// Nobody took a moving message: it waits for its next turn.
    pub fn leave_again(&mut self, sequence: Sequence) {
        if self.state(sequence) == Some(SlotState::Moving) {
            self.dying.leave(sequence);
        }
    }

    /// Nobody took a moving message: it waits, and has no turn until [`Self::turn_again`].
    pub fn leave_later(&mut self, sequence: Sequence) {
        if self.state(sequence) == Some(SlotState::Moving) {
            self.dying.leaving.insert(sequence);
        }
    }

    /// The same, and consumers may have it meanwhile. False if its time is over.
    pub fn lend(&mut self, sequence: Sequence) -> bool {
        let is_lent = self.offer_again(sequence);
        if self.dying.offered.remove(&sequence) {
            self.dying.lent.insert(sequence);
        }
        is_lent
    }

    /// Whether a message waits to be moved, or is offered meanwhile.
    pub fn waits_to_leave(&self, sequence: Sequence) -> bool {
        let Dying { leaving, offered, lent, .. } = &self.dying;
        [leaving, offered, lent].iter().any(|waiting| waiting.contains(&sequence))
    }

    /// What waits without a turn gets one. False if it waits no longer.
    pub fn turn_again(&mut self, sequence: Sequence) -> bool {
        if self.dying.lent.remove(&sequence) {
            return self.dying.offered.insert(sequence);
        }
        let waits = self.dying.leaving.contains(&sequence);
        if waits {
            self.dying.turns[self.dying.exit_of(sequence) as usize].push_back(sequence);
        }
        waits
    }

    /// What was offered to consumers leaves, but for what they have.
    fn call_back(&mut self) {
        for sequence in std::mem::take(&mut self.dying.offered) {
            match self.state(sequence) {
                Some(SlotState::Available) => self.leave(sequence),
                Some(
                    SlotState::Reserved
                    | SlotState::Acquired
                    | SlotState::Counting
                    | SlotState::Delayed,
                ) => drop(self.dying.offered.insert(sequence)),
                Some(SlotState::Moving | SlotState::Settling) | None => {}
            }
        }
    }

    /// Whether the log says already that the message has to go.
    pub fn is_doomed(&self, sequence: Sequence) -> bool {
        self.dying.doomed.contains_key(&sequence)
    }

    /// A consumer gives back what it was offered though it has to go: the next try to move it will.
    ///
    /// # Errors
    /// [`NotHeld`] as in [`Self::settle`].
    pub fn give_back(&mut self, link: LinkRef, sequence: Sequence) -> Result<(), NotHeld> {
        self.give_up(link, sequence, SlotState::Moving)?;
        if self.dying.lent.remove(&sequence) {
            self.leave_later(sequence);
        } else {
            self.dying.offered.remove(&sequence);
            self.dying.leave(sequence);
        }
        Ok(())
    }

    /// Up to `count_max` messages before this one that wait to be moved go for good: their
    /// settlements are to be appended (purge).
    pub fn take_leaving(&mut self, below: Sequence, count_max: usize) -> Vec<Sequence> {
        let leaving = self.dying.leaving.range(..below).take(count_max);
        let taken: Vec<Sequence> = leaving.copied().collect();
        for sequence in &taken {
            self.settle_moving(*sequence);
        }
        taken
    }

    /// Nobody can take a moving message: consumers may have it meanwhile. False if its time is
    /// over: then nobody may.
    pub fn offer_again(&mut self, sequence: Sequence) -> bool {
        let is_over = self.expiring.is_overdue(sequence);
        if !is_over && self.state(sequence) == Some(SlotState::Moving) {
            self.dying.offered.insert(sequence);
            self.make_available_again(sequence);
        }
        !is_over
    }

    /// As [`Self::offer_again`] for what waits to go to the dead letters, until so many in all are
    /// offered.
    pub fn offer_leaving(&mut self, offered_max: usize) {
        for _ in self.dying.offered.len()..offered_max {
            let Some(Leaving { sequence, .. }) = self.pop_leaving(Exit::Dead) else { break };
            if !self.offer_again(sequence) {
                self.leave_again(sequence);
            }
        }
    }

    /// The copy of a moving message stands: its settlement is to be appended. False if it is gone.
    ///
    /// # Panics
    /// If a consumer can get it: then it would be there twice.
    pub fn settle_moving(&mut self, sequence: Sequence) -> bool {
        match self.state(sequence) {
            Some(SlotState::Moving) => {
                self.dying.leaving.remove(&sequence);
                self.change(sequence, SlotState::Settling);
                true
            }
            None | Some(SlotState::Settling) => false,
            Some(state) => panic!("{sequence:?} of {:?} was moved while {state:?}", self.id),
        }
    }

    /// After recovery: a copy of this message stands elsewhere, so nobody gets it here. False if it
    /// is not there any more.
    pub fn has_copy(&mut self, sequence: Sequence) -> bool {
        match self.state(sequence) {
            // Reserved is what came here as a copy itself, and was moved on; Delayed has expired
            // before its time came.
            Some(SlotState::Available | SlotState::Reserved | SlotState::Delayed) => {
                self.take_away(sequence, SlotState::Moving);
                true
            }
            Some(SlotState::Moving) => {
                self.dying.leaving.remove(&sequence);
                true
            }
            Some(state) => panic!("{sequence:?} of {:?} is {state:?} before service", self.id),
            None => false,
        }
    }

    /// A hidden copy is one too many: its settlement is to be appended. False if it moves itself,
    /// or is gone.
    pub fn drop_copy(&mut self, sequence: Sequence) -> bool {
        let is_hidden = self.state(sequence) == Some(SlotState::Reserved);
        if is_hidden {
            self.change(sequence, SlotState::Settling);
        }
        is_hidden
    }

    pub(super) fn leave(&mut self, sequence: Sequence) {
        self.take_away(sequence, SlotState::Moving);
        self.dying.leave(sequence);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use journal::{Lsn, QueueId, ShardId};

    use super::*;
    use crate::mail::LinkKey;
    use crate::queue::Traits;

    const LINK: LinkRef = LinkRef { shard: ShardId(0), key: LinkKey { slot: 1, generation: 0 } };
    const ONE: Sequence = Sequence(0);

    #[expect(clippy::disallowed_methods, reason = "the origin of virtual time")]
    fn start() -> Instant {
        Instant::now()
    }

    /// A queue with one message, which its one consumer has.
    fn queue(settings: AddressSettings) -> Queue {
        let mut queue = Queue::new(QueueId(1));
        queue.adopt("q", Arc::new(settings));
        queue.reserve(ONE, Lsn(0), Bytes::from_static(b"m"), Traits::default());
        queue.commit(ONE);
        queue.attach(LINK);
        queue.add_credit(LINK, 100, false);
        queue.dispatch().unwrap();
        queue
    }

    fn rejected(count: u32) -> Setback {
        Setback { count, doom: Some(Reason::Rejected), added: None }
    }

    fn fail(queue: &mut Queue, now: Instant) -> u32 {
        let count = queue.fail(now, LINK, ONE).unwrap();
        queue.set_back(ONE, Setback::failed(count));
        assert_eq!(queue.dispatch(), None, "its count is not committed");
        queue.counted(ONE);
        count
    }

    #[test]
    fn a_failed_delivery_waits_for_its_commit_and_the_last_one_is_the_end() {
        let now = start();
        let settings = AddressSettings { delivery_attempts_max: 3, ..AddressSettings::default() };
        let mut queue = queue(settings);
        for count in 1..3 {
            assert_eq!(fail(&mut queue, now), count);
            assert_eq!(queue.dispatch().unwrap().delivery_count, count);
        }
        assert_eq!(fail(&mut queue, now), 3);
        assert_eq!(queue.dispatch(), None);
        let leaving = queue.poll_leaving(Exit::Dead).unwrap();
        assert_eq!(leaving.reason, Reason::Attempts);
        assert_eq!(queue.moving(ONE), Some((Some(&Bytes::from_static(b"m")), 3)));
        assert_eq!(queue.poll_leaving(Exit::Dead), None);
        assert!(queue.settle_moving(ONE));
        assert!(queue.archive(ONE).is_some());
        assert!(!queue.settle_moving(ONE));
    }

    #[test]
    fn what_is_tried_again_leaves_once_and_not_after_its_settlement() {
        let mut queue = queue(AddressSettings::default());
        let count = queue.put_back(LINK, ONE).unwrap();
        queue.set_back(ONE, rejected(count));
        queue.counted(ONE);
        queue.poll_leaving(Exit::Dead).unwrap();
        // Refused and offered, it expires; meanwhile its next try is due.
        queue.offer_again(ONE);
        queue.expire_one(ONE);
        assert_eq!(queue.poll_leaving(Exit::Dead), None);
        let leaving = queue.poll_leaving(Exit::Expired).map(|leaving| leaving.reason);
        assert_eq!((leaving, queue.poll_leaving(Exit::Expired)), (Some(Reason::Expired), None));
        // Another try is due, and before its turn a purge takes it.
        queue.leave_again(ONE);
        assert_eq!((queue.take_leaving(ONE, 9), queue.has_leaving()), (vec![], true));
        assert_eq!(queue.take_leaving(Sequence(1), 9), [ONE]);
        queue.leave_again(ONE);
        assert_eq!((queue.has_leaving(), queue.poll_leaving(Exit::Expired)), (false, None));
    }

    #[test]
    fn a_pause_ends_in_its_time() {
        let now = start();
        let delay = Duration::from_secs(1);
        let settings = AddressSettings { redelivery_delay: delay, ..AddressSettings::default() };
        let mut queue = queue(settings);
        fail(&mut queue, now);
        assert_eq!((queue.dispatch(), queue.next_wake()), (None, Some(now + delay)));
        assert!(!queue.wake(now));
        assert!(queue.wake(now + delay));
        assert!(!queue.dispatch().unwrap().first_acquirer);
    }

    #[test]
    fn among_the_dead_nothing_dies_again() {
        let now = start();
        let settings = AddressSettings {
            delivery_attempts_max: 1,
            dead_letter_address: "q".to_owned(),
            ..AddressSettings::default()
        };
        let mut queue = queue(settings);
        for count in 1..5 {
            fail(&mut queue, now);
            assert_eq!(queue.dispatch().unwrap().delivery_count, count);
        }
        assert!(!queue.buries_elsewhere());
    }

    #[test]
    fn what_the_log_doomed_leaves_when_the_queue_is_adopted_again() {
        let mut queue = Queue::new(QueueId(1));
        for n in 0..3 {
            queue.reserve(Sequence(n), Lsn(n), Bytes::new(), Traits::default());
            queue.commit(Sequence(n));
        }
        queue.set_back(Sequence(0), Setback::failed(10));
        queue.set_back(Sequence(1), Setback::failed(9));
        queue.set_back(Sequence(2), rejected(0));
        queue.end_recovery();
        queue.adopt("q", Arc::default());
        let leaving = std::iter::from_fn(|| queue.poll_leaving(Exit::Dead));
        let leaving: Vec<_> = leaving.map(|leaving| (leaving.sequence.0, leaving.reason)).collect();
        assert_eq!(leaving, [(0, Reason::Attempts), (2, Reason::Rejected)]);
        // Offered again, each is back in its place.
        queue.offer_again(Sequence(2));
        queue.offer_again(Sequence(0));
        queue.attach(LINK);
        queue.add_credit(LINK, 9, false);
        let offered: Vec<u64> =
            std::iter::from_fn(|| queue.dispatch()).map(|d| d.sequence.0).collect();
        assert_eq!(offered, [0, 1, 2]);
    }

    /// Whoever reads the log again, or a copy of that record, or a checkpoint, finds it again.
    #[test]
    fn what_was_rejected_stays_so_in_the_log_where_it_lies_among_the_dead() {
        let mut queue = Queue::new(QueueId(1));
        queue.reserve(ONE, Lsn(0), Bytes::new(), Traits::default());
        queue.commit(ONE);
        queue.set_back(ONE, rejected(0));
        queue.end_recovery();
        let grave =
            AddressSettings { dead_letter_address: "q".to_owned(), ..AddressSettings::default() };
        queue.adopt("q", Arc::new(grave));
        assert_eq!((queue.poll_leaving(Exit::Dead), queue.is_doomed(ONE)), (None, false));
        assert_eq!(queue.setback(ONE), Some(rejected(0)));
    }
}
