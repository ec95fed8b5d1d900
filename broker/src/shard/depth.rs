//! Queues that are full: producers hear of it where their connections are.
//!
//! ```text
//!   home: a message came, and the queue is full ──── Full ──▶ every shard: no more credit for
//!         messages went, and it is half empty ────── Full ──▶ links to it; a relay's messages for
//!                                                             it are refused
//! ```
//! A link to a queue that blocks has no more credit at once than the queue may have messages, so
//! what comes after its bound was reached is little: for each producer at most what was granted to
//! it before.
//!
//! Invariant: `full_queues` of every shard follows the letters of the queue's home, in their order;
//! a deleted queue is in none.

use journal::QueueId;

use super::Shard;
use super::link::Link;
use crate::limits::PRODUCER_CREDIT;
use crate::mail::{LinkKey, Mail};
use crate::queue::Queue;
use crate::settings::FullPolicy;

impl Shard {
    /// Tells everybody if this queue has become full, or has room again.
    pub(super) fn tell_depth(&mut self, queue: QueueId) {
        let turned = self.state.queue_mut(queue).and_then(Queue::turn_full);
        if let Some(is_full) = turned {
            self.post_all(&Mail::Full { queue, is_full });
        }
    }

    /// Messages of this queue have gone: there may be room again.
    pub(super) fn may_have_room(&mut self, queue: QueueId) {
        if !self.full_queues.is_empty() && self.full_queues.contains(&queue) {
            self.tell_depth(queue);
        }
    }

    /// A queue has become full, or has room again: then its producers here get credit.
    pub(super) fn heard_full(&mut self, queue: QueueId, is_full: bool) {
        if is_full {
            self.full_queues.insert(queue);
        } else if self.full_queues.remove(&queue) {
            let of_queue = |(key, link): (LinkKey, &Link)| (link.queue == queue).then_some(key);
            let keys: Vec<LinkKey> = self.links.iter().filter_map(of_queue).collect();
            keys.into_iter().for_each(|key| self.grant(key));
        }
    }

    /// The credit that a producer of this queue has at most.
    pub(super) fn producer_credit(&self, queue: QueueId) -> u32 {
        let Some(record) = self.state.catalogue.get(queue) else { return PRODUCER_CREDIT };
        let settings = self.config.settings.of(&record.name);
        match settings.full_policy {
            FullPolicy::Block if settings.messages_max > 0 => u32::try_from(settings.messages_max)
                .map_or(PRODUCER_CREDIT, |messages_max| messages_max.min(PRODUCER_CREDIT)),
            FullPolicy::Block | FullPolicy::Refuse | FullPolicy::Drop => PRODUCER_CREDIT,
        }
    }
}
