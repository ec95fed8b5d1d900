//! Browsers: links that are shown a queue's messages and take none [3.5.7].
//!
//! ```text
//!   attach ─▶ next = the oldest message
//!   browse:   next ─▶ the first available message from there on ─▶ shown, next = behind it
//!             reserved: nothing available lies behind it, wait
//!             acquired, settling: passed over, and not shown if it comes back
//!             its bytes are not in memory: waited for, unless it is in fragments
//!   a message ends whose sequence lies behind `next`: it is `late`, and shown before all others
//! ```
//! What a browser was shown stays where it was, and nothing that it says changes anything. Each
//! message is looked at once by each browser, so a browser costs no more than a consumer.
//!
//! A message that came in parts has the sequence of its beginning, which a browser may have passed
//! before it was there.
//!
//! Invariants: `next` of a browser never goes back; what is late was not there when it was passed,
//! and is in fragments.

use std::collections::BTreeSet;

use journal::Sequence;

use super::index::{Index, Slot};
use super::payload::Paged;
use super::{Dispatched, Queue, SlotState};
use crate::mail::LinkRef;

/// Someone who looks at messages.
#[derive(Debug)]
pub(super) struct Browser {
    link: LinkRef,
    credit: u32,
    drain: bool,
    next: Sequence,
    /// Behind `next`, and not shown.
    late: BTreeSet<Sequence>,
}

impl Browser {
    /// The next message that it can be shown. It will not be found again.
    fn find<'a>(&mut self, index: &'a Index, paged: &mut Paged) -> Option<(Sequence, &'a Slot)> {
        let mut from = Sequence(0);
        while let Some(sequence) = self.late.range(from..).next().copied() {
            from = Sequence(sequence.0 + 1);
            let slot = index.get(sequence);
            if slot.is_some_and(|slot| slot.state == SlotState::Reserved) {
                continue;
            }
            self.late.remove(&sequence);
            if let Some(slot) = slot.filter(|slot| slot.state == SlotState::Available) {
                return Some((sequence, slot));
            }
        }
        while let Some((sequence, slot)) = index.first_from(self.next) {
            match slot.state {
                SlotState::Available => {
                    if slot.record_bytes().is_some() && index.payload(sequence).is_none() {
                        paged.await_bytes(sequence);
                        return None;
                    }
                    self.next = Sequence(sequence.0 + 1);
                    return Some((sequence, slot));
                }
                SlotState::Reserved => return None,
                SlotState::Acquired
                | SlotState::Counting
                | SlotState::Settling
                | SlotState::Delayed
                | SlotState::Moving => self.next = Sequence(sequence.0 + 1),
            }
        }
        None
    }
}

impl Queue {
    /// A browser attaches, without credit.
    pub fn attach_browser(&mut self, link: LinkRef) {
        if self.browser(link).is_none() {
            let (next, late) = (Sequence(0), BTreeSet::new());
            self.browsers.push(Browser { link, credit: 0, drain: false, next, late });
        }
    }

    /// Whether some browser could be shown something.
    pub(super) fn has_browser_credit(&self) -> bool {
        self.browsers.iter().any(|browser| browser.credit > 0)
    }

    /// Whether anybody browses.
    pub fn has_browsers(&self) -> bool {
        !self.browsers.is_empty()
    }

    /// The next message for some browser that has credit, while there is one.
    pub fn browse(&mut self) -> Option<Dispatched> {
        let Self { browsers, index, recovered_end, touched, dying, paged, expiring, .. } = self;
        let with_credit = browsers.iter_mut().filter(|browser| browser.credit > 0);
        let (browser, (sequence, slot)) = with_credit
            .filter_map(|browser| browser.find(index, paged).map(|found| (browser, found)))
            .next()?;
        browser.credit -= 1;
        paged.handed_out(sequence);
        Some(Dispatched {
            consumer: browser.link,
            sequence,
            message: index.payload(sequence).cloned(),
            delivery_count: slot.delivery_count,
            first_acquirer: sequence >= *recovered_end && !touched.contains(&sequence),
            added: dying.added(sequence),
            expiry_unix_ms: expiring.will_at(sequence),
        })
    }

    /// A message ends whose sequence was given long ago: who has passed that is shown it yet.
    #[cold]
    pub(super) fn is_late(&mut self, sequence: Sequence) {
        let Self { browsers, index, .. } = self;
        for browser in browsers.iter_mut().filter(|browser| browser.next > sequence) {
            // Who gives no credit keeps nothing of what is gone.
            if browser.late.len().is_power_of_two() {
                browser.late.retain(|sequence| index.get(*sequence).is_some());
            }
            browser.late.insert(sequence);
        }
    }

    /// More credit for a browser.
    pub(super) fn add_browser_credit(&mut self, link: LinkRef, more: u32, drain: bool) {
        let Some(at) = self.browser(link) else { return };
        let browser = &mut self.browsers[at];
        browser.credit = browser.credit.saturating_add(more);
        browser.drain |= drain;
    }

    /// A browser that asked to be drained and has seen all there is, with its unused credit.
    pub(super) fn poll_drained_browser(&mut self) -> Option<(LinkRef, u32)> {
        let browser = self.browsers.iter_mut().find(|browser| browser.drain)?;
        browser.drain = false;
        Some((browser.link, std::mem::take(&mut browser.credit)))
    }

    pub(super) fn detach_browser(&mut self, link: LinkRef) {
        self.browsers.retain(|browser| browser.link != link);
    }

    pub(super) fn browser(&self, link: LinkRef) -> Option<usize> {
        self.browsers.iter().position(|browser| browser.link == link)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use journal::{FragmentAt, Lsn, QueueId, ShardId};

    use super::*;
    use crate::mail::LinkKey;
    use crate::queue::{Chain, Large, Traits};

    fn link(slot: u32) -> LinkRef {
        LinkRef { shard: ShardId(0), key: LinkKey { slot, generation: 0 } }
    }

    fn shown(queue: &mut Queue) -> Vec<(u32, u64)> {
        std::iter::from_fn(|| queue.browse())
            .map(|shown| (shown.consumer.key.slot, shown.sequence.0))
            .collect()
    }

    fn queue_of(count: u64) -> Queue {
        let mut queue = Queue::new(QueueId(1));
        for n in 0..count {
            queue.reserve(Sequence(n), Lsn(n), Bytes::new(), Traits::default());
            queue.commit(Sequence(n));
        }
        queue
    }

    #[test]
    fn each_browser_sees_every_available_message_once_and_takes_none() {
        let mut queue = queue_of(4);
        queue.attach(link(9));
        queue.add_credit(link(9), 1, false);
        assert_eq!(queue.dispatch().unwrap().sequence, Sequence(0));
        for slot in [1, 2] {
            queue.attach_browser(link(slot));
        }
        queue.add_credit(link(1), 2, false);
        queue.add_credit(link(2), 9, false);
        assert_eq!(shown(&mut queue), [(1, 1), (1, 2), (2, 1), (2, 2), (2, 3)]);
        assert_eq!((queue.count(SlotState::Available), queue.live()), (3, 4));
        // What comes back behind a browser is not shown to it; what is new is.
        queue.release(link(9), Sequence(0)).unwrap();
        queue.reserve(Sequence(4), Lsn(4), Bytes::new(), Traits::default());
        assert_eq!(shown(&mut queue), []);
        queue.commit(Sequence(4));
        assert_eq!(shown(&mut queue), [(2, 4)]);
        // A browser's word on a message has no effect.
        assert!(queue.settle(link(2), Sequence(1)).is_err());
        assert_eq!(queue.poll_drained(), None);
        queue.add_credit(link(2), 0, true);
        assert_eq!((shown(&mut queue), queue.poll_drained()), (vec![], Some((link(2), 5))));
        queue.detach(link(2));
        queue.add_credit(link(2), 5, true);
        assert_eq!((shown(&mut queue), queue.poll_drained()), (vec![], None));
    }

    #[test]
    fn what_ends_behind_a_browser_is_shown_once_it_is_committed() {
        let mut queue = queue_of(2);
        queue.attach_browser(link(1));
        queue.add_credit(link(1), 9, false);
        queue.skip_to(Sequence(4));
        queue.reserve(Sequence(4), Lsn(4), Bytes::new(), Traits::default());
        queue.commit(Sequence(4));
        assert_eq!(shown(&mut queue), [(1, 0), (1, 1), (1, 4)]);
        let large = |lsn: u64| {
            let at = |n: u64| FragmentAt { lsn: Lsn(lsn + n * 1000), record_bytes: 132 };
            Large { chain: Chain::new([0, 1].map(at)), message: None, message_bytes: 200 }
        };
        // Who comes now meets them in their order.
        queue.attach_browser(link(2));
        for sequence in [3, 2] {
            queue.take_large(Sequence(sequence), large(sequence * 5000), Traits::default());
        }
        assert_eq!(shown(&mut queue), []);
        queue.commit(Sequence(3));
        assert_eq!(shown(&mut queue), [(1, 3)]);
        queue.commit(Sequence(2));
        assert_eq!(shown(&mut queue), [(1, 2)]);
        queue.add_credit(link(2), 9, false);
        assert_eq!(shown(&mut queue), [(2, 0), (2, 1), (2, 2), (2, 3), (2, 4)]);
        assert_eq!(shown(&mut queue), []);
    }

    #[test]
    fn nothing_uncommitted_is_shown_and_nothing_is_looked_at_twice() {
        let count = 20_000;
        let mut queue = queue_of(count);
        queue.attach(link(9));
        queue.attach_browser(link(1));
        queue.add_credit(link(9), count as u32, false);
        while queue.dispatch().is_some() {}
        queue.add_credit(link(1), 5, false);
        assert_eq!(shown(&mut queue), []);
        for n in 0..count {
            queue.reserve(Sequence(count + n), Lsn(count + n), Bytes::new(), Traits::default());
            assert_eq!(shown(&mut queue), []);
        }
        queue.commit(Sequence(count));
        assert_eq!(shown(&mut queue), [(1, count)]);
    }
}
