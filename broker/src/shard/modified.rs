//! The outcome `modified` with annotations, which are merged into the message's [3.4.5], and
//! `rejected` with an error [3.4.2], which is kept with them until the message is a dead letter.
//!
//! ```text
//!   disposition ─▶ short? ─▶ Modify ─▶ home: merged with what was added before ─▶ fit? ─▶ setback
//!                    │                                                              │
//!                    └─ no ─▶ settled as if it brought none ◀───────────────── no ──┘
//! ```
//! The setback is appended to the log: what was added, and counts.
//!
//! The message is available again when that is committed, as after a failed delivery, and goes out
//! with one section of all annotations (`setback.rs`). What was added is counted against the
//! memory bound, and is there after a restart and after compaction.
//!
//! One disposition may speak of thousands of messages, and its annotations fill a frame: what is
//! longer as it came than [`ADDED_BYTES_MAX`] is not looked into.
//!
//! Annotations of the broker's own names (`moved.rs`) are left out: the error of a rejection is the
//! broker's to tell, of the dead alone.
//!
//! What is not fit: that, keys that no annotation has, more than so many bytes in all, no memory
//! left, or a message that has to go already. It is counted (`annotations_refused_total`), and the
//! rest of the outcome holds: a link that was detached instead would get the message again, its
//! failures never counted. Where the log is full, the whole outcome counts as `released`.

use std::sync::Arc;
use std::time::Instant;

use journal::{QueueId, ShardId};

use super::Shard;
use super::egress::Verdict;
use crate::limits::ADDED_BYTES_MAX;
use crate::mail::{LinkRef, Mail, Outcome};
use crate::moved::Reason;
use crate::pending::Answer;
use crate::setback::{Added, Setback};

impl Shard {
    /// Tells a queue's home what a consumer says of a message, and what it adds to it.
    #[cold]
    pub(super) fn post_modified(
        &mut self,
        now: Instant,
        (home, queue): (ShardId, QueueId),
        consumer: LinkRef,
        verdict: Verdict,
        annotations: Arc<[u8]>,
    ) {
        if annotations.len() > ADDED_BYTES_MAX {
            self.counters.annotations_refused_total += 1;
            return self.post_verdict(now, (home, queue), consumer, verdict);
        }
        let Verdict { sequence, outcome, confirm } = verdict;
        self.post(home, Mail::Modify { queue, consumer, sequence, outcome, confirm, annotations });
    }

    /// A consumer's verdict on a message that it holds, with annotations to merge into it.
    pub(super) fn modify(
        &mut self,
        now: Instant,
        id: QueueId,
        consumer: LinkRef,
        verdict: Verdict,
        annotations: &[u8],
    ) {
        let Verdict { sequence, outcome, confirm } = verdict;
        // What waits to be moved has to fit in once more when it goes: errors leave room for that.
        let most = match outcome {
            Outcome::Rejected => self.config.memory_bytes_max / 8 * 7,
            Outcome::Accepted | Outcome::Released | Outcome::Expired | Outcome::Modified { .. } => {
                self.config.memory_bytes_max
            }
        };
        let room = most.saturating_sub(self.memory_bytes());
        let level = self.state.catalogue.get(id).map(|record| record.level);
        let (Some(level), Some(queue)) = (level, self.state.queue_mut(id)) else {
            return self.settle(now, id, consumer, verdict);
        };
        let (doom, delivery_failed, undeliverable_here) = match outcome {
            Outcome::Modified { delivery_failed, undeliverable_here } => {
                (None, delivery_failed, undeliverable_here)
            }
            Outcome::Rejected if queue.buries_elsewhere() && !queue.is_doomed(sequence) => {
                (Some(Reason::Rejected), false, false)
            }
            Outcome::Accepted | Outcome::Rejected | Outcome::Released | Outcome::Expired => {
                return self.settle(now, id, consumer, verdict);
            }
        };
        let merge = if doom.is_some() { Added::with_error } else { Added::merge };
        let merged = merge(queue.added(sequence).as_ref(), annotations);
        let added = match merged.ok().filter(|added| added.memory_bytes() <= room) {
            // What has to go is on its way, and the log has been told all about it.
            Some(added) if !queue.is_doomed(sequence) => added,
            Some(_) | None => {
                self.counters.annotations_refused_total += 1;
                return self.settle(now, id, consumer, verdict);
            }
        };
        let held = if delivery_failed {
            queue.fail(now, consumer, sequence)
        } else {
            queue.put_back(consumer, sequence)
        };
        if undeliverable_here && held.is_ok() {
            queue.exclude(consumer, sequence);
        }
        let answer = if confirm { Answer::Settled(consumer, sequence) } else { Answer::Nobody };
        match held {
            Ok(count) => {
                queue.counters.rejected += u64::from(doom.is_some());
                let setback = Setback { count, doom, added: Some(added) };
                self.append_setback(now, (id, level), sequence, setback, answer);
            }
            Err(_) => self.answer(answer),
        }
        self.dirty_queues.insert(id);
    }
}
