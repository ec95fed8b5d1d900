//! What a link has sent and its client has not settled, by delivery id.
//!
//! ```text
//!   (7, seq) (8, –) (10, seq)      in the order of sending; –: settled, not swept yet
//!    ^ id - 7 is the place while the link's ids have no gaps; otherwise a search by distance
//! ```
//! Invariants: the first is never a settled one; settled ones are at most as many as the others and
//! a constant, so that memory follows what is unsettled. Ids are serial numbers: they go round.

use std::collections::VecDeque;

use amqp::delivery::DeliveryId;
use journal::Sequence;

/// Settled entries that are kept before a sweep, beyond as many as are not settled.
const SLACK: usize = 32;

/// See the head of the file.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    entries: VecDeque<(u32, Option<Sequence>)>,
    unsettled: usize,
}

impl Sent {
    /// A delivery was sent, after all others.
    pub(crate) fn push(&mut self, delivery: DeliveryId, sequence: Sequence) {
        self.entries.push_back((delivery.0, Some(sequence)));
        self.unsettled += 1;
    }

    /// The first messages that are not settled, in the order of sending, at most so many.
    pub(crate) fn first(&self, count_max: usize) -> Box<[Sequence]> {
        self.entries.iter().filter_map(|(_, sequence)| *sequence).take(count_max).collect()
    }

    /// Which message a delivery was, once.
    pub(crate) fn take(&mut self, delivery: DeliveryId) -> Option<Sequence> {
        let first = self.entries.front()?.0;
        let distance = delivery.0.wrapping_sub(first);
        let at = match self.entries.get(distance as usize) {
            Some((id, _)) if *id == delivery.0 => distance as usize,
            Some(_) | None => self
                .entries
                .binary_search_by_key(&distance, |(id, _)| id.wrapping_sub(first))
                .ok()?,
        };
        let sequence = self.entries[at].1.take()?;
        self.unsettled -= 1;
        while let Some((_, None)) = self.entries.front() {
            self.entries.pop_front();
        }
        if self.entries.len() > 2 * self.unsettled + SLACK {
            self.entries.retain(|(_, sequence)| sequence.is_some());
        }
        Some(sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_taken_once_with_gaps_and_across_the_end_of_the_numbers() {
        let mut sent = Sent::default();
        let ids: Vec<u32> = (0..500u32).map(|n| (u32::MAX - 200).wrapping_add(n + n / 7)).collect();
        for (sequence, id) in (0..).zip(&ids) {
            sent.push(DeliveryId(*id), Sequence(sequence));
        }
        assert_eq!(sent.take(DeliveryId(ids[0].wrapping_sub(1))), None);
        for step in [3, 1] {
            for (sequence, id) in (0..).zip(&ids).step_by(step) {
                let is_there = step == 3 || sequence % 3 != 0;
                let expected = is_there.then_some(Sequence(sequence));
                assert_eq!(sent.take(DeliveryId(*id)), expected, "{sequence}");
                assert_eq!(sent.take(DeliveryId(*id)), None);
            }
            assert!(sent.entries.len() <= 2 * sent.unsettled + SLACK);
        }
        assert!(sent.entries.is_empty());
    }
}
