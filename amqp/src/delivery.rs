//! Deliveries: their identity, their outcome, and the tables of the unsettled ones.
//!
//! ```text
//!  Unsettled<T>   ids of one session and direction, in the order in which they were sent:
//!
//!     front                                back
//!     | 7:T | 8:– | 9:T | 10:T | 11:– | 12:T |      –  settled, not yet swept
//!       ^ id - front.id is the index while no id was skipped or swept: one look;
//!         otherwise a binary search by distance from the front
//! ```
//!
//! Invariants: ids are serial numbers (RFC 1982) and rise from front to back; the front is never a
//! settled one; settled slots are at most the live ones and a constant, so that memory follows
//! what is unsettled and one old delivery does not pin all later ones.
//!
//! Failure: an id that does not rise is refused by `push` and changes nothing.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::codec::{Map, Reader};
pub use crate::definitions::DeliveryId;
use crate::error::Error;
use crate::link::own_map;
use crate::performative;

pub(crate) mod tags;

/// What became of a delivery [3.4]. Owned: effects outlive the frame that brought them. A clone is
/// cheap, since one disposition frame may speak of thousands of deliveries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The receiver took it.
    Accepted,
    /// The receiver found it invalid.
    Rejected(Option<Arc<Error>>),
    /// Not processed: give it to anybody, delivery-count unchanged.
    Released,
    /// Not processed, with changes.
    Modified {
        /// Count it as a failed delivery.
        delivery_failed: bool,
        /// Do not give it to this link again.
        undeliverable_here: bool,
        /// An encoded AMQP map, to be merged into the message annotations.
        message_annotations: Option<Arc<[u8]>>,
    },
}

impl Outcome {
    /// The outcome that a peer stated; `declared` is none of ours.
    pub(crate) fn from_wire(outcome: performative::Outcome<'_>) -> Option<Self> {
        use performative::Outcome as Wire;
        match outcome {
            Wire::Accepted => Some(Self::Accepted),
            Wire::Rejected(rejected) => {
                Some(Self::Rejected(rejected.error.map(|error| Arc::new(Error::from_wire(&error)))))
            }
            Wire::Released => Some(Self::Released),
            Wire::Modified(modified) => Some(Self::Modified {
                delivery_failed: modified.delivery_failed.unwrap_or(false),
                undeliverable_here: modified.undeliverable_here.unwrap_or(false),
                message_annotations: modified
                    .message_annotations
                    .map(|map| Arc::from(&own_map(&map)[..])),
            }),
            Wire::Declared(_) => None,
        }
    }

    /// The borrowed form.
    pub(crate) fn to_wire(&self) -> performative::Outcome<'_> {
        use performative::Outcome as Wire;
        match self {
            Self::Accepted => Wire::Accepted,
            Self::Rejected(error) => Wire::Rejected(performative::Rejected {
                error: error.as_ref().map(|error| error.to_wire()),
            }),
            Self::Released => Wire::Released,
            Self::Modified { delivery_failed, undeliverable_here, message_annotations } => {
                Wire::Modified(performative::Modified {
                    delivery_failed: Some(*delivery_failed),
                    undeliverable_here: Some(*undeliverable_here),
                    message_annotations: message_annotations.as_deref().map(annotations),
                })
            }
        }
    }
}

/// A view of annotations that a host or the wire gave.
fn annotations(encoded: &[u8]) -> Map<'_> {
    Reader::new(encoded).map().expect("message annotations are an encoded AMQP map")
}

/// How far `later` is after `earlier` by serial arithmetic; none where it is not after or equal.
pub(crate) fn serial_distance(earlier: u32, later: u32) -> Option<u32> {
    let distance = later.wrapping_sub(earlier);
    (distance < 1 << 31).then_some(distance)
}

/// Settled slots that are kept before a sweep, beyond as many as are live.
const SLACK: usize = 32;

/// Room for so many is kept, however few there are.
const SLOTS_KEPT: usize = 512;

/// Unsettled deliveries by id: see the head of the file.
#[derive(Debug)]
pub(crate) struct Unsettled<T> {
    slots: VecDeque<(u32, Option<T>)>,
    live: usize,
    /// The id of the last slot; of no meaning where there is none.
    back: u32,
}

impl<T> Unsettled<T> {
    pub(crate) fn new() -> Self {
        Self { slots: VecDeque::new(), live: 0, back: 0 }
    }

    /// How many are unsettled.
    pub(crate) fn len(&self) -> usize {
        self.live
    }

    /// Adds a delivery; false, and nothing changed, where its id is not behind all others. The
    /// distance from the front decides, not serial order: one old delivery may stay unsettled
    /// while ids go round more than half the circle.
    #[must_use]
    #[inline(always)]
    pub(crate) fn push(&mut self, id: u32, value: T) -> bool {
        if let Some(&(front, _)) = self.slots.front()
            && id.wrapping_sub(front) <= self.back.wrapping_sub(front)
        {
            return false;
        }
        self.slots.push_back((id, Some(value)));
        self.back = id;
        self.live += 1;
        true
    }

    pub(crate) fn get(&self, id: u32) -> Option<&T> {
        self.slots[self.position(id)?].1.as_ref()
    }

    #[cfg(test)]
    pub(crate) fn remove(&mut self, id: u32) -> Option<T>
    where
        T: Copy,
    {
        self.remove_if(id, |value| Some(*value))
    }

    /// Takes a delivery out if `look` finds it to be the one that is meant; gives what it found.
    #[inline(always)]
    pub(crate) fn remove_if<R>(
        &mut self,
        id: u32,
        look: impl FnOnce(&T) -> Option<R>,
    ) -> Option<R> {
        let (front, slot) = self.slots.front()?;
        if *front == id {
            // Most are settled in order.
            let found = look(slot.as_ref()?)?;
            self.slots.pop_front();
            self.live -= 1;
            let is_settled_next = matches!(self.slots.front(), Some((_, None)));
            if is_settled_next || self.slots.len() > 2 * self.live + SLACK {
                self.sweep();
            }
            return Some(found);
        }
        let position = self.position(id)?;
        let slot = &mut self.slots[position].1;
        let found = look(slot.as_ref()?)?;
        *slot = None;
        self.live -= 1;
        self.sweep();
        Some(found)
    }

    /// Shows each delivery from `first` to `last`, oldest first, to `visit`, which says whether it
    /// stays. Costs no more than what exists, whatever the range claims [2.7.6].
    pub(crate) fn visit_range(
        &mut self,
        first: u32,
        last: u32,
        mut visit: impl FnMut(u32, &mut T) -> bool,
    ) {
        let Some(&(front, _)) = self.slots.front() else { return };
        let width = last.wrapping_sub(first);
        // The range may begin before the front, and wrap past it.
        let start = if front.wrapping_sub(first) <= width {
            0
        } else {
            self.slots
                .partition_point(|&(id, _)| id.wrapping_sub(front) < first.wrapping_sub(front))
        };
        for (id, slot) in self.slots.range_mut(start..) {
            if id.wrapping_sub(first) > width {
                break;
            }
            if let Some(value) = slot
                && !visit(*id, value)
            {
                *slot = None;
                self.live -= 1;
            }
        }
        self.sweep();
    }

    /// Forgets those for which `keep` is false.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(u32, &T) -> bool) {
        self.slots.retain(|(id, slot)| slot.as_ref().is_some_and(|value| keep(*id, value)));
        self.live = self.slots.len();
    }

    /// Deliveries that there is room for.
    #[cfg(test)]
    pub(crate) fn room(&self) -> usize {
        self.slots.capacity()
    }

    /// Gives back room of which seven eighths and more are empty.
    pub(crate) fn trim(&mut self) {
        if self.slots.capacity() > SLOTS_KEPT && self.slots.len() < self.slots.capacity() / 8 {
            self.slots.shrink_to(2 * self.slots.len());
        }
    }

    #[inline]
    fn position(&self, id: u32) -> Option<usize> {
        let front = self.slots.front()?.0;
        let distance = id.wrapping_sub(front);
        if let Some(slot) = self.slots.get(distance as usize)
            && slot.0 == id
        {
            return Some(distance as usize);
        }
        self.slots.binary_search_by_key(&distance, |&(id, _)| id.wrapping_sub(front)).ok()
    }

    fn sweep(&mut self) {
        while let Some((_, None)) = self.slots.front() {
            self.slots.pop_front();
        }
        if self.slots.len() > 2 * self.live + SLACK {
            self.slots.retain(|(_, slot)| slot.is_some());
        }
        assert!(self.live <= self.slots.len(), "more live deliveries than slots");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(ids: impl IntoIterator<Item = u32>) -> Unsettled<u32> {
        let mut map = Unsettled::new();
        for id in ids {
            assert!(map.push(id, id));
        }
        map
    }

    fn visited(map: &mut Unsettled<u32>, first: u32, last: u32) -> Vec<u32> {
        let mut seen = Vec::new();
        map.visit_range(first, last, |id, value| {
            assert_eq!(id, *value);
            seen.push(id);
            true
        });
        seen
    }

    #[test]
    fn serial_distance_wraps() {
        assert_eq!(serial_distance(0xFFFF_FFF0, 0x10), Some(0x20));
        assert_eq!(serial_distance(5, 5), Some(0));
        assert_eq!(serial_distance(5, 4), None);
        assert_eq!(serial_distance(0, 0x8000_0000), None);
    }

    #[test]
    fn ids_across_the_wrap_are_found_and_removed() {
        let ids: Vec<u32> = (0..64).map(|n| 0xFFFF_FFF0u32.wrapping_add(n)).collect();
        let mut map = filled(ids.iter().copied());
        for id in &ids {
            assert_eq!(map.get(*id), Some(id));
        }
        for id in ids.iter().rev() {
            assert_eq!(map.remove(*id), Some(*id));
            assert_eq!(map.remove(*id), None);
        }
        assert_eq!(map.len(), 0);
    }

    #[test]
    fn an_id_that_does_not_rise_is_refused() {
        let mut map = filled([7, 9]);
        assert!(!map.push(9, 9) && !map.push(8, 8) && !map.push(7, 7));
        assert!(map.push(10, 10));
        assert_eq!(map.len(), 3);
    }

    #[test]
    fn an_old_delivery_may_outlive_most_of_the_circle() {
        let mut map = filled([7, 0x9000_0000, 0xFFFF_FFFF, 6]);
        assert_eq!(visited(&mut map, 0x9000_0000, 6), [0x9000_0000, 0xFFFF_FFFF, 6]);
        assert!(!map.push(7, 7), "its own id is still in use");
        assert_eq!((map.remove(7), map.remove(6)), (Some(7), Some(6)));
        assert!(map.push(7, 7));
    }

    #[test]
    fn one_old_delivery_does_not_pin_the_settled_ones_behind_it() {
        let mut map = filled([0]);
        for id in 1..100_000 {
            assert!(map.push(id, id));
            assert_eq!(map.remove(id), Some(id));
        }
        assert!(map.slots.len() <= 2 + SLACK + 1, "{} slots", map.slots.len());
        assert_eq!(map.get(0), Some(&0));
        assert!(map.push(100_000, 100_000));
        assert_eq!(map.get(100_000), Some(&100_000));
    }

    #[test]
    fn ranges_see_what_exists_and_no_more() {
        let mut map = filled([3, 4, 6, 9]);
        assert_eq!(visited(&mut map, 0, u32::MAX), [3, 4, 6, 9]);
        assert_eq!(visited(&mut map, 4, 6), [4, 6]);
        assert_eq!(visited(&mut map, 5, 5), [] as [u32; 0]);
        assert_eq!(visited(&mut map, 10, 2), [] as [u32; 0]);
        assert_eq!(visited(&mut map, 0xFFFF_FFFF, 3), [3]);
        let mut map = filled([0xFFFF_FFFE, 0xFFFF_FFFF, 0, 1]);
        assert_eq!(visited(&mut map, 0xFFFF_FFFF, 0), [0xFFFF_FFFF, 0]);
        map.visit_range(0xFFFF_FFFE, 0, |_, _| false);
        assert_eq!((map.len(), map.get(1)), (1, Some(&1)));
    }

    #[test]
    fn outcomes_stay_small() {
        assert!(size_of::<Outcome>() <= 24, "{}", size_of::<Outcome>());
    }
}
