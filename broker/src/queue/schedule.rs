//! Messages that say when they are to be delivered: before that nobody gets them.
//!
//! ```text
//!   reserve, schedule ─▶ commit ─▶ Delayed ──── its time comes ───▶ Available
//!                                     └─ it expires before that ─▶ Moving
//!
//!   order of dispatch, within a priority:   what came back │ whose time has come, │ what was
//!                                                          │ by their times       │ never out
//! ```
//! The time stands in the message's record, so a start and a copy find it. It stays with the
//! message while that lives, for it is part of its place: what is given back is back in it.
//!
//! Only messages with a time are in here, so nothing is spent on the others but a look at an empty
//! map.
//!
//! Invariants: each message in `ahead` is in `times`; one that is available is not in `ahead`, and
//! stands in `requeued`, wherever the cursor is.

use std::collections::{BTreeMap, BTreeSet};

use journal::Sequence;

use super::{Place, Queue, SlotState};
use crate::limits::SCHEDULE_BYTES;

/// What has a time to be delivered at.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    /// The time of each that lives.
    times: BTreeMap<Sequence, u64>,
    /// Those whose time has not come, by that.
    ahead: BTreeSet<(u64, Sequence)>,
}

impl Schedule {
    /// When a message is to be delivered; 0 if it does not say.
    #[inline]
    pub(super) fn time_of(&self, sequence: Sequence) -> u64 {
        if self.times.is_empty() { 0 } else { self.times.get(&sequence).copied().unwrap_or(0) }
    }

    /// The message is gone. Gives what was kept of it and counted against the memory bound.
    pub(super) fn forget(&mut self, sequence: Sequence) -> u64 {
        if self.times.is_empty() {
            return 0;
        }
        let Some(unix_ms) = self.times.remove(&sequence) else { return 0 };
        self.ahead.remove(&(unix_ms, sequence));
        SCHEDULE_BYTES
    }
}

impl Queue {
    /// A message that is not committed is to be delivered at this time, milliseconds since 1970,
    /// or as soon as it is committed. What that counts against the memory bound is
    /// [`SCHEDULE_BYTES`].
    pub fn schedule(&mut self, sequence: Sequence, unix_ms: u64) {
        self.schedule.times.insert(sequence, unix_ms);
        self.schedule.ahead.insert((unix_ms, sequence));
    }

    /// When the next message is to be delivered, milliseconds since 1970.
    pub fn next_delivery(&self) -> Option<u64> {
        self.schedule.ahead.first().map(|(unix_ms, _)| *unix_ms)
    }

    /// When a message is to be delivered, if it says so.
    pub fn delivery_time(&self, sequence: Sequence) -> Option<u64> {
        Some(self.schedule.time_of(sequence)).filter(|unix_ms| *unix_ms > 0)
    }

    /// A message that has a time is committed: it waits for that, unless it has come meanwhile.
    pub fn commit_scheduled(&mut self, sequence: Sequence) {
        self.commit(sequence);
        // One that has expired meanwhile is on its way out.
        if self.state(sequence) != Some(SlotState::Available) {
            return;
        }
        let unix_ms = self.schedule.time_of(sequence);
        if self.schedule.ahead.contains(&(unix_ms, sequence)) {
            self.take_away(sequence, SlotState::Delayed);
        } else {
            self.stand_in_line(sequence);
        }
    }

    /// Up to `count_max` messages whose time has come by now become available. Gives how many were
    /// looked at.
    pub fn ripen(&mut self, unix_ms: u64, count_max: usize) -> usize {
        for count in 0..count_max {
            let Some((at, sequence)) = self.schedule.ahead.first().copied() else { return count };
            if at > unix_ms {
                return count;
            }
            self.schedule.ahead.pop_first();
            // One that is not committed is available when it is.
            if self.state(sequence) == Some(SlotState::Delayed) {
                self.change(sequence, SlotState::Available);
                self.stand_in_line(sequence);
                self.adopt_one(sequence);
            }
        }
        count_max
    }

    /// It is available: consumers find it in its place.
    fn stand_in_line(&mut self, sequence: Sequence) {
        let Some(slot) = self.index.get(sequence) else { return };
        let place: Place = self.place(sequence, slot.rank);
        self.requeued.insert(place);
        self.consumers.look_again(place);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use journal::{Lsn, QueueId};

    use super::*;
    use crate::moved::Reason;
    use crate::queue::tests::{drain_to, link};
    use crate::queue::{Exit, Traits};
    use crate::setback::Setback;

    fn put(queue: &mut Queue, n: u64, traits: Traits, at: Option<u64>) {
        queue.reserve(Sequence(n), Lsn(n), Bytes::new(), traits);
        match at {
            Some(at) => {
                queue.schedule(Sequence(n), at);
                queue.commit_scheduled(Sequence(n));
            }
            None => queue.commit(Sequence(n)),
        }
    }

    /// A queue whose messages have these times, and a consumer with much credit.
    fn queue(times: &[Option<u64>]) -> Queue {
        let mut queue = Queue::new(QueueId(1));
        for (n, at) in (0..).zip(times) {
            put(&mut queue, n, Traits::default(), *at);
        }
        queue.attach(link(1));
        queue.add_credit(link(1), 100, false);
        queue
    }

    fn out(queue: &mut Queue) -> Vec<u64> {
        drain_to(queue).into_iter().map(|(_, n)| n).collect()
    }

    #[test]
    fn nobody_gets_it_before_its_time_and_then_the_earliest_is_first() {
        let mut queue = queue(&[Some(30), None, Some(20), Some(20), None]);
        assert_eq!(out(&mut queue), [1, 4]);
        assert_eq!((queue.next_delivery(), queue.count(SlotState::Delayed)), (Some(20), 3));
        assert_eq!(queue.ripen(19, 99), 0);
        assert_eq!(out(&mut queue), []);
        assert_eq!(queue.ripen(30, 99), 3);
        assert_eq!(out(&mut queue), [2, 3, 0]);
        assert_eq!(queue.next_delivery(), None);
    }

    #[test]
    fn nobody_has_had_it_and_what_is_given_back_is_back_in_its_place() {
        let mut queue = queue(&[Some(30), Some(10), None]);
        queue.ripen(30, 99);
        let first = queue.dispatch().unwrap();
        assert_eq!((first.sequence, first.first_acquirer), (Sequence(1), true));
        assert_eq!(out(&mut queue), [0, 2]);
        for n in [2, 0, 1] {
            queue.release(link(1), Sequence(n)).unwrap();
        }
        // What came back goes first, then by time.
        assert_eq!(out(&mut queue), [2, 1, 0]);
    }

    #[test]
    fn what_is_ahead_of_the_cursor_goes_out_once_and_before_what_is_fresh() {
        let mut queue = queue(&[]);
        for (n, at) in (0..).zip([None, None, Some(5), None]) {
            put(&mut queue, n, Traits::default(), at);
        }
        queue.ripen(5, 99);
        assert_eq!(out(&mut queue), [2, 0, 1, 3]);
    }

    #[test]
    fn priorities_come_before_times() {
        let mut queue = queue(&[Some(10)]);
        let high = Traits { priority: Some(9), ..Traits::default() };
        put(&mut queue, 1, high, Some(20));
        put(&mut queue, 2, high, None);
        let low = Traits { priority: Some(0), ..Traits::default() };
        put(&mut queue, 3, low, Some(5));
        queue.ripen(20, 99);
        assert_eq!(out(&mut queue), [2, 1, 0, 3]);
    }

    #[test]
    fn a_time_that_comes_before_the_commit_is_waited_for_no_longer() {
        let mut queue = queue(&[]);
        queue.reserve(Sequence(0), Lsn(0), Bytes::new(), Traits::default());
        queue.schedule(Sequence(0), 10);
        assert_eq!(queue.ripen(10, 99), 1);
        assert_eq!(out(&mut queue), []);
        queue.commit_scheduled(Sequence(0));
        assert_eq!(out(&mut queue), [0]);
    }

    #[test]
    fn expiry_wins_over_a_delay() {
        let mut queue = queue(&[]);
        let mortal = Traits { expiry_unix_ms: Some(10), ..Traits::default() };
        put(&mut queue, 0, mortal, Some(20));
        put(&mut queue, 1, mortal, Some(5));
        assert_eq!(queue.ripen(5, 99), 1);
        assert_eq!(out(&mut queue), [1]);
        assert_eq!(queue.expire(10, 99), 2);
        assert_eq!(queue.poll_leaving(Exit::Expired).map(|l| (l.sequence, l.reason)), {
            Some((Sequence(0), Reason::Expired))
        });
        queue.ripen(20, 99);
        assert_eq!(out(&mut queue), []);
    }

    #[test]
    fn steps_are_bounded_and_nothing_is_left_of_what_is_gone() {
        let mut queue = queue(&[Some(7); 10]);
        assert_eq!(queue.ripen(7, 4), 4);
        assert_eq!(out(&mut queue), [0, 1, 2, 3]);
        assert_eq!(queue.ripen(7, 99), 6);
        let (mut taken, next) = queue.take_for_purge(Sequence(0)..Sequence(10), 99);
        assert_eq!(next, Sequence(10));
        for n in 0..4 {
            queue.settle(link(1), Sequence(n)).unwrap();
            taken.push(Sequence(n));
        }
        for sequence in taken {
            let archived = queue.archive(sequence).unwrap();
            assert_eq!(archived.memory_bytes, Queue::memory_bytes(0) + SCHEDULE_BYTES);
        }
        assert!(queue.schedule.times.is_empty() && queue.requeued.is_empty());
    }

    /// One whose deliveries failed too often before a crash, and whose clock went back.
    #[test]
    fn what_has_to_go_goes_when_its_time_has_come() {
        let mut queue = queue(&[Some(7)]);
        queue.set_back(Sequence(0), Setback::failed(10));
        queue.adopt("q", Arc::default());
        assert!(!queue.has_leaving());
        queue.ripen(7, 99);
        let reason = queue.poll_leaving(Exit::Dead).map(|leaving| leaving.reason);
        assert_eq!(reason, Some(Reason::Attempts));
    }
}
