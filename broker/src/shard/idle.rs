//! Queues that nobody uses go, where their address says so (`auto-delete-after`), and those that an
//! operator deletes.
//!
//! ```text
//!   home                                       shard 0
//!   links to it: Tied, Untied
//!   none for so long, and no message:
//!   it takes nothing more ───── Delete ──────▶ the deletion is appended … committed everywhere
//!   it is forgotten ◀──────────────────────── Deleted, to all: nobody finds it any more; a link
//!                                              that came meanwhile is detached, resource-deleted
//! ```
//! An operator's deletion goes the same way from "it takes nothing more" on, links or not, and is
//! answered when the queue is forgotten; one that holds a message, or is a link's own, stays.
//!
//! A message that comes meanwhile, of such a link or through the relay, is `released`: sent again
//! when the name is free, it makes the queue anew.
//!
//! Only a queue that is empty is given up, and it takes nothing from then on, so no message can be
//! in it when the log says that it is gone. A crash before that leaves it as it was, with its time
//! beginning anew; after it, records of it in its home's log are those of an id that was given and
//! is not in the catalogue, which a start forgets.
//!
//! Invariants: a queue is in `due` exactly while it has no link and was not given up; shard 0 finds
//! no name whose deletion is under way: who asks for it waits, and gets a new queue.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use journal::{AppendError, Level, QueueId, Record, RecordKind, Sequence, ShardId, Urgency};

use super::{Phase, Shard};
use crate::admin::{AdminId, AdminReply, Undeletable};
use crate::event::Action;
use crate::flat_map::FlatMap;
use crate::mail::Mail;
use crate::pending::{Answer, Waiting};
use crate::queue::Queue;

/// Queues of this shard that go when they are idle, and of shard 0 what it has to write of any.
#[derive(Debug, Default)]
pub(super) struct Idle {
    uses: FlatMap<QueueId, Use>,
    due: BTreeSet<(Instant, QueueId)>,
    /// Deletions that the journal could not take yet.
    parked: Vec<QueueId>,
    /// Those under way to which all links are listed.
    listed: BTreeSet<QueueId>,
    /// Operators that wait for the end of a queue.
    askers: BTreeMap<QueueId, Vec<AdminId>>,
}

/// How a queue is used.
#[derive(Debug)]
struct Use {
    /// Links to it.
    ties: u32,
    /// How long nobody may use it.
    after: Duration,
    /// When that is looked at, if it has no link.
    due: Option<Instant>,
}

impl Idle {
    /// Whether nothing waits for the journal.
    pub(super) fn is_quiet(&self) -> bool {
        self.parked.is_empty()
    }

    /// The deletion of a queue is over: whether all links to it are listed.
    pub(super) fn is_listed(&mut self, queue: QueueId) -> bool {
        self.listed.remove(&queue)
    }

    /// One more link to a queue.
    pub(super) fn tie(&mut self, queue: QueueId) {
        let Some(used) = self.uses.get_mut(queue) else { return };
        used.ties += 1;
        if let Some(at) = used.due.take() {
            self.due.remove(&(at, queue));
        }
    }

    /// One link less.
    pub(super) fn untie(&mut self, now: Instant, queue: QueueId) {
        let Some(used) = self.uses.get_mut(queue) else { return };
        used.ties -= 1;
        if used.ties == 0 {
            self.wait(now, queue);
        }
    }

    fn wait(&mut self, now: Instant, queue: QueueId) {
        let Some(used) = self.uses.get_mut(queue) else { return };
        let at = now + used.after;
        used.due = Some(at);
        self.due.insert((at, queue));
    }

    fn forget(&mut self, queue: QueueId) {
        let at = self.uses.remove(queue).and_then(|used| used.due);
        if let Some(at) = at {
            self.due.remove(&(at, queue));
        }
    }
}

/// The home's side.
impl Shard {
    /// A queue lives here from now on: if its address says so, only as long as it is used.
    pub(super) fn watch_idle(&mut self, now: Instant, queue: QueueId) {
        let Some(after) = self.state.queue(queue).map(|q| q.settings().auto_delete_after) else {
            return;
        };
        if !after.is_zero() && !self.temporaries.has(queue) {
            self.idle.uses.insert(queue, Use { ties: 0, after, due: None });
            self.idle.wait(now, queue);
        }
    }

    /// When the next queue may have been idle for long enough. Who stops deletes nothing.
    pub(super) fn idle_due(&self) -> Option<Instant> {
        let first = self.idle.due.first().map(|(at, _)| *at);
        first.filter(|_| self.is_serving())
    }

    /// Gives up what nobody has used for so long.
    pub(super) fn step_idle(&mut self, now: Instant) {
        for queue in std::mem::take(&mut self.idle.parked) {
            self.append_deletion(now, queue);
        }
        while let Some(at) = self.idle_due()
            && at <= now
        {
            let Some((_, id)) = self.idle.due.pop_first() else { return };
            let comes = self.state.halves_of(id).next().is_some();
            if comes || self.state.queue(id).is_some_and(|queue| queue.live() > 0) {
                self.idle.wait(now, id);
                continue;
            }
            if let Some(used) = self.idle.uses.get_mut(id) {
                used.due = None;
            }
            self.give_up_queue(id);
        }
    }

    fn give_up_queue(&mut self, id: QueueId) {
        self.state.queue_mut(id).into_iter().for_each(Queue::close);
        self.post(ShardId(0), Mail::Delete(id));
    }

    /// An operator deletes a queue: the answer comes when it is gone.
    ///
    /// # Errors
    /// Why it stays; none if it does not live here.
    pub(super) fn begin_delete(
        &mut self,
        name: &str,
        asker: AdminId,
    ) -> Result<(), Option<Undeletable>> {
        let id = self.named_here(name).ok_or(None)?;
        if self.temporaries.has(id) {
            return Err(Some(Undeletable::Temporary));
        }
        let live = self.state.queue(id).map_or(0, Queue::live);
        let coming = self.state.halves_of(id).count() as u64;
        if live + coming > 0 {
            return Err(Some(Undeletable::HasMessages(live + coming)));
        }
        self.idle.forget(id);
        self.idle.askers.entry(id).or_default().push(asker);
        self.give_up_queue(id);
        Ok(())
    }

    /// A queue that lived here is gone for good.
    pub(super) fn bury(&mut self, now: Instant, queue: QueueId) {
        self.idle.forget(queue);
        if self.state.queue(queue).is_some() {
            self.forget_queue(now, queue);
            self.abandon_purge(queue);
        }
        for id in self.idle.askers.remove(&queue).unwrap_or_default() {
            let reply = AdminReply::Deleted(Some(Ok(())));
            self.actions.push_back(Action::AdminReply { id, reply });
        }
    }
}

/// Shard 0: what the log says.
impl Shard {
    pub(super) fn append_deletion(&mut self, now: Instant, queue: QueueId) {
        if !matches!(self.phase, Phase::Serving) || self.state.is_deleting(queue) {
            return;
        }
        let Some(journal) = &mut self.journal else { return };
        let mut record = Record::new(RecordKind::QueueDelete, queue, Sequence(0), &[]);
        record.level = Level::Sync;
        match journal.append(now, &record, Urgency::Now) {
            Ok(appended) => {
                if self.state.catalogue.get(queue).is_some_and(|record| self.goes_unused(record)) {
                    self.idle.listed.insert(queue);
                }
                let effect = self.state.apply_delete(queue);
                let waiting = Waiting { end: appended.end, effect, answer: Answer::Nobody };
                self.pending.push(Level::ReplicatedSync, waiting);
            }
            Err(AppendError::Busy | AppendError::Full | AppendError::TooLarge) => {
                self.idle.parked.push(queue);
            }
            Err(AppendError::Poisoned | AppendError::Closed) => {}
        }
    }
}
