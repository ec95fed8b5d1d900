//! Messages whose time is over: they are never delivered, and go to the expiry address.
//!
//! ```text
//!   reserve ─▶ due, by time ── its time comes ─┬─ available, in a pause ──▶ Moving
//!                                              └─ with a consumer, not committed, or on its
//!                                                 way out as dead ─▶ overdue
//!   overdue ── it would be available ──▶ Moving          (a settlement simply ends it)
//! ```
//! A message that is with a consumer when its time comes is not called back. One that goes to the
//! dead letters goes on, and where they have no room it is not offered meanwhile, as others are.
//! Only messages that expire are in here, so nothing is spent on the others but a look at an empty
//! map.
//!
//! Invariant: each message that expires and is live, but for those that leave since they have, is
//! once in `due` or in `overdue`.

use std::collections::{BTreeMap, BTreeSet};

use journal::Sequence;

use super::{Queue, SlotState};
use crate::limits::EXPIRY_BYTES;
use crate::moved::Reason;

/// What expires, and what should have.
#[derive(Debug, Default)]
pub(super) struct Expiring {
    due: BTreeSet<(u64, Sequence)>,
    by_sequence: BTreeMap<Sequence, u64>,
    overdue: BTreeSet<Sequence>,
}

impl Expiring {
    pub(super) fn insert(&mut self, sequence: Sequence, unix_ms: u64) {
        self.due.insert((unix_ms, sequence));
        self.by_sequence.insert(sequence, unix_ms);
    }

    /// What it takes of memory, about.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.by_sequence.len() as u64 * EXPIRY_BYTES
    }

    pub(super) fn is_overdue(&self, sequence: Sequence) -> bool {
        !self.overdue.is_empty() && self.overdue.contains(&sequence)
    }

    /// The message is gone, or nothing can expire it any more.
    pub(super) fn forget(&mut self, sequence: Sequence) {
        if self.by_sequence.is_empty() {
            return;
        }
        if let Some(unix_ms) = self.by_sequence.remove(&sequence) {
            self.due.remove(&(unix_ms, sequence));
            self.overdue.remove(&sequence);
        }
    }
}

impl Queue {
    /// When the next message expires, milliseconds since 1970.
    pub fn next_expiry(&self) -> Option<u64> {
        self.expiring.due.first().map(|(unix_ms, _)| *unix_ms)
    }

    /// Up to `count_max` messages whose time is over by now expire. Gives how many were looked at.
    pub fn expire(&mut self, unix_ms: u64, count_max: usize) -> usize {
        for count in 0..count_max {
            let Some((at, sequence)) = self.expiring.due.first().copied() else { return count };
            if at > unix_ms {
                return count;
            }
            self.expiring.due.pop_first();
            match self.state(sequence) {
                Some(SlotState::Available | SlotState::Delayed) => self.expire_one(sequence),
                Some(
                    SlotState::Reserved
                    | SlotState::Acquired
                    | SlotState::Counting
                    | SlotState::Moving,
                ) => {
                    self.expiring.overdue.insert(sequence);
                }
                Some(SlotState::Settling) | None => self.expiring.forget(sequence),
            }
        }
        count_max
    }

    /// A message that could be delivered leaves instead.
    pub(super) fn expire_one(&mut self, sequence: Sequence) {
        self.expiring.forget(sequence);
        self.dying.doom(sequence, Reason::Expired);
        self.leave(sequence);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use journal::{Lsn, QueueId, ShardId};

    use super::*;
    use crate::mail::{LinkKey, LinkRef};
    use crate::queue::{Exit, Traits};
    use crate::setback::Setback;

    const LINK: LinkRef = LinkRef { shard: ShardId(0), key: LinkKey { slot: 1, generation: 0 } };

    fn queue(expiries: &[Option<u64>]) -> Queue {
        let mut queue = Queue::new(QueueId(1));
        for (n, expiry_unix_ms) in expiries.iter().enumerate() {
            let sequence = Sequence(n as u64);
            let traits = Traits { expiry_unix_ms: *expiry_unix_ms, ..Traits::default() };
            queue.reserve(sequence, Lsn(n as u64), Bytes::new(), traits);
            queue.commit(sequence);
        }
        queue.attach(LINK);
        queue
    }

    fn leaving(queue: &mut Queue) -> Vec<(u64, Reason)> {
        let mut next =
            || queue.poll_leaving(Exit::Dead).or_else(|| queue.poll_leaving(Exit::Expired));
        std::iter::from_fn(&mut next).map(|l| (l.sequence.0, l.reason)).collect()
    }

    #[test]
    fn what_is_over_leaves_and_the_rest_is_delivered() {
        let mut queue = queue(&[Some(10), None, Some(30), Some(20)]);
        assert_eq!(queue.next_expiry(), Some(10));
        queue.expire(9, 99);
        assert_eq!(leaving(&mut queue), []);
        queue.expire(20, 99);
        assert_eq!(leaving(&mut queue), [(0, Reason::Expired), (3, Reason::Expired)]);
        queue.add_credit(LINK, 9, false);
        let got: Vec<u64> = std::iter::from_fn(|| queue.dispatch()).map(|d| d.sequence.0).collect();
        assert_eq!(got, [1, 2]);
        assert_eq!(queue.next_expiry(), Some(30));
    }

    #[test]
    fn with_a_consumer_it_stays_until_it_comes_back() {
        let mut queue = queue(&[Some(10), Some(10)]);
        queue.add_credit(LINK, 2, false);
        while queue.dispatch().is_some() {}
        queue.expire(50, 99);
        assert_eq!((leaving(&mut queue), queue.next_expiry()), (vec![], None));
        queue.settle(LINK, Sequence(0)).unwrap();
        queue.archive(Sequence(0)).unwrap();
        queue.release(LINK, Sequence(1)).unwrap();
        queue.add_credit(LINK, 2, false);
        assert_eq!(queue.dispatch(), None);
        assert_eq!(leaving(&mut queue), [(1, Reason::Expired)]);
        assert!(queue.expiring.overdue.is_empty() && queue.expiring.by_sequence.is_empty());
    }

    /// Whether its time comes on its way or when it is offered, nobody gets it from then on.
    #[test]
    fn what_finds_no_room_among_the_dead_is_offered_until_its_time_is_over() {
        for is_offered in [false, true] {
            let mut queue = queue(&[Some(10)]);
            queue.add_credit(LINK, 9, false);
            assert!(queue.dispatch().is_some());
            queue.put_back(LINK, Sequence(0)).unwrap();
            queue.set_back(
                Sequence(0),
                Setback { doom: Some(Reason::Rejected), ..Setback::default() },
            );
            queue.counted(Sequence(0));
            assert_eq!(leaving(&mut queue), [(0, Reason::Rejected)]);
            if is_offered {
                assert!(queue.offer_again(Sequence(0)));
                queue.expire(50, 99);
                assert_eq!(leaving(&mut queue), [(0, Reason::Expired)]);
            } else {
                queue.expire(50, 99);
                assert!(!queue.offer_again(Sequence(0)));
            }
            assert_eq!(queue.dispatch(), None);
            queue.leave_again(Sequence(0));
            assert_eq!(queue.take_leaving(Sequence(9), 9), [Sequence(0)]);
            queue.archive(Sequence(0)).unwrap();
            assert!(queue.expiring.overdue.is_empty() && queue.expiring.by_sequence.is_empty());
        }
    }

    #[test]
    fn before_its_commit_it_waits_for_it() {
        let mut queue = Queue::new(QueueId(1));
        let traits = Traits { expiry_unix_ms: Some(10), ..Traits::default() };
        queue.reserve(Sequence(0), Lsn(0), Bytes::new(), traits);
        queue.expire(50, 99);
        assert_eq!(leaving(&mut queue), []);
        queue.commit(Sequence(0));
        assert_eq!(leaving(&mut queue), [(0, Reason::Expired)]);
    }
}
