//! The watermark moved: what waited for it takes effect, and is answered.
//!
//! The order matters. First the state changes (a message becomes visible, a settled one goes), then
//! the answer is on its way; both happen inside one step, so nobody sees one without the other.
//! Nothing here compares LSNs: [`Pending`](crate::pending::Pending) alone knows what is committed.

use std::time::Instant;

use super::Shard;
use crate::apply::Effect;
use crate::mail::Mail;
use crate::pending::Answer;

impl Shard {
    pub(super) fn step_commit(&mut self, now: Instant) {
        let marks = self.watermarks();
        if let Some(journal) = &mut self.journal {
            journal.set_committed(marks.everywhere());
        }
        while let Some(waiting) = self.pending.pop(&marks) {
            self.state.commit(waiting.effect);
            match waiting.effect {
                Effect::Visible(queue, _) | Effect::Scheduled(queue, _) => {
                    self.counters.accepted_total += 1;
                    self.dirty_queues.insert(queue);
                }
                Effect::Counted(queue, _) => {
                    self.dirty_queues.insert(queue);
                    self.may_leave(queue);
                    self.may_wake(queue);
                }
                Effect::Gone(queue, _) => {
                    self.counters.settled_total += 1;
                    self.may_have_room(queue);
                    if self.temporaries.has(queue) {
                        self.end_life(now, queue);
                    }
                }
                Effect::Created(queue) => self.created(queue),
                Effect::Deleted(queue) => {
                    let is_listed = self.idle.is_listed(queue);
                    self.post_all(&Mail::Deleted { queue, is_listed });
                }
                Effect::None | Effect::Arrived(..) | Effect::Copied(..) => {}
            }
            self.answer(waiting.answer);
        }
        self.step_mail(now);
    }

    /// Tells whoever waited.
    #[inline(always)]
    pub(super) fn answer(&mut self, answer: Answer) {
        match answer {
            Answer::Nobody => {}
            Answer::Published(link, token) if self.is_next(link.shard) => {
                self.accept_transfer(link, token);
            }
            Answer::Published(link, token) => {
                self.post(link.shard, Mail::Published { link, token, result: Ok(()) });
            }
            Answer::Settled(consumer, sequence) => {
                self.post(consumer.shard, Mail::Settled { consumer, sequence });
            }
            Answer::Unconsumed(consumer) => {
                self.post(consumer.shard, Mail::Unconsumed { consumer });
            }
            Answer::Purged(queue) => self.purged(queue),
            Answer::IdsSetAside(end) => self.ids_set_aside(end),
            Answer::Movable(queue, sequence) => self.movable(queue, sequence),
            Answer::Moved(moved) => self.arrived(moved.0, moved.1),
            Answer::Landed(copy) => self.post(copy.shard, Mail::Landed(vec![copy])),
            Answer::HeadCopied => self.head_copied(),
        }
    }
}
