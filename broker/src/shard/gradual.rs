//! What concerns very many messages is done a little at a time, and other queues go on meanwhile.
//!
//! ```text
//!   a consumer goes    what it held goes back to its place    until all of it is back, its queue
//!                      (`queue/dispatch.rs`)                  hands out nothing: order stands
//!   a purge            what nobody holds is settled           answered when the last settlement is
//!                      (`operator.rs`)                        committed
//!   a queue is gone    its messages count no more             nobody finds the queue any more, and
//!                      (`apply.rs`)                           a start forgets what is left of it
//!   a head was told    what the live forgot goes here too     the log is kept for so long; who is
//!                      (`apply/head.rs`)                      live then forgets as a start does
//! ```
//! Each step looks at [`GRADUAL_STEP`] messages in all, in this order. The next one is in the next
//! turn of the host, or a little later where nobody waits for it. What is few is done at once.
//!
//! Nothing of this is in the log but the settlements of a purge: after a crash what was held is
//! back, a purge has taken what it had settled, and a queue is gone or it is not.

use std::collections::VecDeque;
use std::time::Instant;

use journal::QueueId;

use super::Shard;
use super::operator::Purges;
use crate::canary::Canary;
use crate::limits::{GRADUAL_MOMENT, GRADUAL_PAUSE, GRADUAL_STEP};
use crate::queue::Queue;

/// What is under way.
#[derive(Debug, Default)]
pub(super) struct Gradual {
    /// Queues to which consumers that have gone give back what they held.
    returning: VecDeque<QueueId>,
    pub(super) purges: Purges,
    /// When the next step is due, if there is one to make.
    due: Option<Instant>,
}

impl Gradual {
    #[inline]
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// There is something to do.
    pub(super) fn begin(&mut self, now: Instant) {
        self.due = Some(now);
    }
}

impl Shard {
    /// One step of everything that is under way.
    pub(super) fn step_gradual(&mut self, now: Instant) {
        if self.gradual.due.is_none_or(|due| now < due) {
            return;
        }
        let left = self.give_back(GRADUAL_STEP);
        let left = self.step_purges(now, left);
        self.state.clear(left);
        let is_waited_for = !self.gradual.returning.is_empty();
        let is_under_way = self.gradual.purges.is_under_way() || self.state.is_clearing();
        self.gradual.due = match (is_waited_for, is_under_way) {
            (true, _) => Some(now + GRADUAL_MOMENT),
            (false, true) => Some(now + GRADUAL_PAUSE),
            (false, false) => None,
        };
    }

    /// A step of a member that follows.
    pub(super) fn forget_standing(&mut self, now: Instant) {
        if self.gradual.due.is_some_and(|due| now < due) {
            return;
        }
        self.state.forget_on(GRADUAL_STEP);
        self.gradual.due = self.state.is_forgetting().then(|| now + GRADUAL_PAUSE);
    }

    /// A consumer of this queue has gone: what it held is back, or goes back from now on.
    pub(super) fn begin_return(&mut self, now: Instant, id: QueueId) {
        if self.state.queue(id).is_some_and(Queue::is_returning)
            && !self.gradual.returning.contains(&id)
        {
            self.gradual.returning.push_back(id);
            self.gradual.begin(now);
        }
    }

    /// Messages go back to their places; gives how many of so many are left for others.
    fn give_back(&mut self, mut left: usize) -> usize {
        while left > 0
            && let Some(id) = self.gradual.returning.front().copied()
        {
            let queue = self.state.queue_mut(id);
            let count = queue.map_or(0, |queue| queue.give_back_some(left));
            left -= count;
            let forgets = self.config.canaries.has(Canary::WindowForgotten);
            if forgets || self.state.queue(id).is_none_or(|queue| !queue.is_returning()) {
                self.gradual.returning.pop_front();
                self.dirty_queues.insert(id);
            }
        }
        left
    }
}
