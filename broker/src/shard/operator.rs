//! Operators' questions and commands, as far as one shard can answer them.
//!
//! A purge walks over its queue once, by sequence, a little at a time (`gradual.rs`), by turns with
//! others, and is answered when the last of its settlements is committed. It takes what nobody held
//! when it was asked for, what waits for its time, and what waits to be moved to another queue:
//! messages at consumers and on their way, and later ones, stay. A crash leaves what was not
//! settled yet.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use journal::{QueueId, Sequence, Urgency};

use super::Shard;
use super::link::End;
use crate::admin::{AdminId, AdminReply, AdminRequest, ConnectionStat, QueueStat, ShardStats};
use crate::canary::Canary;
use crate::event::{Action, ConnId};
use crate::mail::level_name;
use crate::pending::Answer;
use crate::queue::{Queue, SlotState};

/// What is counted since the process started.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) connections_total: u64,
    pub(super) accepted_total: u64,
    pub(super) refused_total: u64,
    pub(super) delivered_total: u64,
    pub(super) settled_total: u64,
    pub(super) batches_total: u64,
    /// Messages that were here before, and were not stored again.
    pub(super) duplicates_total: u64,
    /// Messages that were moved here.
    pub(super) moved_in_total: u64,
    /// Moves that nobody took; each is tried again.
    pub(super) move_failures_total: u64,
    /// Messages that died where nobody keeps the dead.
    pub(super) dropped_total: u64,
    /// Annotations of `modified` outcomes that were not merged.
    pub(super) annotations_refused_total: u64,
}

/// Purges under way.
#[derive(Debug, Default)]
pub(super) struct Purges {
    by_queue: BTreeMap<QueueId, Purge>,
    /// Whose turn was last.
    last: QueueId,
}

impl Purges {
    /// Whether a step is to be made.
    pub(super) fn is_under_way(&self) -> bool {
        self.next().is_some()
    }

    /// Whose turn is next of those that are not through.
    fn next(&self) -> Option<QueueId> {
        let behind = self.by_queue.range(QueueId(self.last.0 + 1)..);
        let mut by_turns = behind.chain(self.by_queue.range(..=self.last));
        by_turns.find(|(_, purge)| !purge.ended).map(|(id, _)| *id)
    }
}

#[derive(Debug)]
struct Purge {
    /// Messages before this were looked at.
    from: Sequence,
    below: Sequence,
    /// Those before that which had begun and not ended when it was asked for: they stay.
    coming: BTreeSet<Sequence>,
    count: u64,
    askers: Vec<AdminId>,
    /// All is appended; the commit is awaited.
    ended: bool,
    /// Commits that are awaited: one for each time that it ended.
    awaited: u32,
}

impl Shard {
    pub(super) fn operator(&mut self, now: Instant, id: AdminId, request: AdminRequest) {
        let reply = match request {
            AdminRequest::Queues => AdminReply::Queues(self.queue_stats()),
            AdminRequest::Peek { queue, count_max } => match self.named_here(&queue) {
                Some(queue) => return self.peek(id, queue, count_max),
                None => AdminReply::Peeked(None),
            },
            AdminRequest::Purge { queue } => match self.begin_purge(now, &queue, id) {
                true => return,
                false => AdminReply::Purged(None),
            },
            AdminRequest::Delete { queue } => match self.begin_delete(&queue, id) {
                Ok(()) => return,
                Err(why) => AdminReply::Deleted(why.map(Err)),
            },
            AdminRequest::Connections => AdminReply::Connections(self.connection_stats()),
            AdminRequest::CloseConnection(conn) => self.close_connection(conn),
            AdminRequest::Stats => AdminReply::Stats(Box::new(self.stats(now))),
            AdminRequest::Freeze => self.freeze(now),
            AdminRequest::Point => self.point(now),
            AdminRequest::Thaw => AdminReply::Thawed(self.thaw()),
            AdminRequest::KeepPoint => AdminReply::Held(self.keep_point(now)),
            AdminRequest::ForgetPoint => {
                self.forget_point();
                AdminReply::Held(false)
            }
        };
        self.actions.push_back(Action::AdminReply { id, reply });
    }

    pub(super) fn named_here(&self, name: &str) -> Option<QueueId> {
        let record = self.state.catalogue.named(name)?;
        (record.home == self.config.shard).then_some(record.id)
    }

    fn close_connection(&mut self, id: ConnId) -> AdminReply {
        let there = self.conns.contains_key(id);
        self.say_goodbye(id, "an operator closed the connection");
        AdminReply::ConnectionClosed(there)
    }

    fn queue_stats(&self) -> Vec<QueueStat> {
        let here = |queue: &Queue| {
            let record = self.state.catalogue.get(queue.id())?;
            Some(QueueStat {
                id: queue.id(),
                name: record.name.clone(),
                shard: self.config.shard.0,
                durability: level_name(record.level),
                available: queue.count(SlotState::Available),
                acquired: queue.count(SlotState::Acquired) + queue.count(SlotState::Counting),
                delayed: queue.count(SlotState::Delayed),
                moving: queue.count(SlotState::Moving),
                uncommitted: queue.count(SlotState::Reserved) + queue.count(SlotState::Settling),
                payload_bytes: queue.payload_bytes(),
                resident_bytes: queue.resident_bytes(),
                consumers: queue.consumers() as u64,
                enqueued_total: queue.counters.enqueued,
                settled_total: queue.counters.settled,
                rejected_total: queue.counters.rejected,
                delivered_total: queue.counters.delivered,
                next_sequence: queue.next_sequence(),
            })
        };
        self.state.queues().filter_map(here).collect()
    }

    fn connection_stats(&self) -> Vec<ConnectionStat> {
        let count = |conn: &super::link::Conn, wanted: fn(&End) -> bool| {
            let links = conn.links.values().filter_map(|key| self.links.get(*key));
            links.filter(|link| wanted(&link.end)).count() as u64
        };
        self.conns
            .values()
            .map(|conn| ConnectionStat {
                conn: conn.id,
                shard: self.config.shard.0,
                peer: conn.peer.clone(),
                container_id: conn.container_id.clone(),
                user: conn.user.clone(),
                producers: count(conn, |end| matches!(end, End::Producer(_))),
                consumers: count(conn, |end| matches!(end, End::Consumer(_))),
                received_bytes: conn.received_bytes,
                paused: conn.paused,
            })
            .collect()
    }

    /// Messages that were not moved, since the process began.
    pub fn move_failures(&self) -> u64 {
        self.counters.move_failures_total
    }

    fn stats(&self, now: Instant) -> ShardStats {
        let mut stats = ShardStats {
            shard: self.config.shard.0,
            connections: self.conns.len() as u64,
            connections_total: self.counters.connections_total,
            accepted_total: self.counters.accepted_total,
            refused_total: self.counters.refused_total,
            delivered_total: self.counters.delivered_total,
            settled_total: self.counters.settled_total,
            duplicates_total: self.counters.duplicates_total,
            duplicate_ids_bytes: self.state.duplicates.memory_bytes(),
            duplicate_ids_forgotten_total: self.state.duplicates.forgotten_early(),
            moved_in_total: self.counters.moved_in_total,
            move_failures_total: self.counters.move_failures_total,
            dropped_total: self.counters.dropped_total,
            annotations_refused_total: self.counters.annotations_refused_total,
            memory_bytes: self.memory_bytes(),
            memory_bytes_max: self.config.memory_bytes_max,
            memory_pressure: self.pressing.memory,
            paged_messages: self.state.paged_out().messages,
            paged_bytes: self.state.paged_out().bytes,
            paged_out_total: self.paging.counters.out_total,
            paged_in_total: self.paging.counters.in_total,
            read_backs_total: self.paging.counters.reads_total,
            read_back_bytes_total: self.paging.counters.read_bytes_total,
            read_back_waits_total: self.paging.counters.waits_total,
            journal_segments_max: self.config.segments_max,
            ..ShardStats::default()
        };
        if let Some(journal) = &self.journal {
            let head = journal.head();
            stats.journal_head_lsn = head.0;
            stats.journal_appended_lsn = journal.appended().0;
            stats.journal_durable_lsn = journal.durable().0;
            let usage = journal.usage();
            stats.journal_segments = usage.segments_live;
            stats.journal_free_bytes = usage.free_bytes;
            stats.journal_live_bytes = self.state.log_bytes();
            stats.journal_dead_bytes = usage.log_bytes.saturating_sub(self.state.log_bytes());
            stats.journal_copied_bytes_total = self.compaction.copied_bytes_total;
            stats.journal_head_live_messages =
                self.state.messages_in(head.0 / self.config.segment_bytes);
            stats.journal_full = self.pressing.full;
            stats.journal_batches_total = self.counters.batches_total;
            stats.journal_tail_bytes = journal.tail_bytes();
            if let Some(checkpoint) = journal.checkpoint() {
                let age_ms = self.config.clock.unix_ms(now).saturating_sub(checkpoint.unix_ms);
                stats.journal_checkpoint_age_seconds = age_ms / 1000;
                stats.journal_checkpoint_lsn = checkpoint.from.0;
            }
            stats.journal_checkpoints_total = self.checkpointing.total;
            stats.journal_checkpoint_failures_total = self.checkpointing.failures_total;
        }
        stats
    }

    fn begin_purge(&mut self, now: Instant, name: &str, asker: AdminId) -> bool {
        let Some(id) = self.named_here(name) else { return false };
        let Some(queue) = self.state.queue(id) else { return false };
        let below = queue.next_sequence();
        let purge = self.gradual.purges.by_queue.entry(id).or_insert_with(|| Purge {
            from: Sequence(0),
            below,
            coming: BTreeSet::new(),
            count: 0,
            askers: Vec::new(),
            ended: false,
            awaited: 0,
        });
        // What came back meanwhile lies behind those that were looked at.
        (purge.from, purge.below) = (Sequence(0), below);
        purge.coming = self.state.halves_of(id).collect();
        purge.ended = false;
        purge.askers.push(asker);
        self.gradual.begin(now);
        true
    }

    /// One step of the purges under way, by turns; gives how many of so many messages are left.
    pub(super) fn step_purges(&mut self, now: Instant, mut left: usize) -> usize {
        while left > 0
            && let Some(id) = self.gradual.purges.next()
        {
            left = left.saturating_sub(self.step_purge(now, id, left));
        }
        left
    }

    /// Looks at up to `count_max` messages; gives at how many, and one for itself.
    fn step_purge(&mut self, now: Instant, id: QueueId, count_max: usize) -> usize {
        self.gradual.purges.last = id;
        let Some(purge) = self.gradual.purges.by_queue.get(&id) else { return 1 };
        let mut below = purge.below;
        if self.config.canaries.has(Canary::PurgeTakesNewer) {
            below = self.state.queue(id).map_or(below, Queue::next_sequence);
        }
        let next = purge.coming.range(purge.from..below).next().copied();
        let range = purge.from..next.unwrap_or(below);
        let stays = range.end;
        let level = self.state.catalogue.get(id).map(|record| record.level);
        let Some((level, queue)) = level.zip(self.state.queue_mut(id)) else {
            self.abandon_purge(id);
            return 1;
        };
        if queue.is_returning() {
            // What a consumer gives back was there when the purge was asked for.
            return count_max;
        }
        let (mut taken, mut from) = queue.take_for_purge(range, count_max);
        if from == stays && stays < below {
            from = Sequence(stays.0 + 1);
        }
        let mut ended = from >= below;
        if ended {
            let leaving = queue.take_leaving(below, count_max);
            ended = leaving.len() < count_max;
            taken.extend(leaving);
        }
        let Some(purge) = self.gradual.purges.by_queue.get_mut(&id) else { return 1 };
        purge.from = from;
        purge.count += taken.len() as u64;
        purge.ended = ended;
        purge.awaited += u32::from(ended);
        let looked_at = if ended { taken.len() + 1 } else { count_max };
        for sequence in taken {
            self.append_settle(now, id, level, sequence, Answer::Nobody, Urgency::Window);
        }
        if ended && self.config.canaries.has(Canary::PurgeAnsweredEarly) {
            self.purged(id);
        } else if ended {
            self.answer_behind_all(level, Answer::Purged(id));
        }
        looked_at
    }

    /// A queue is gone: whoever waits for its purge hears how far that came.
    pub(super) fn abandon_purge(&mut self, id: QueueId) {
        let Some(purge) = self.gradual.purges.by_queue.remove(&id) else { return };
        for asker in purge.askers {
            let reply = AdminReply::Purged(Some(purge.count));
            self.actions.push_back(Action::AdminReply { id: asker, reply });
        }
    }

    pub(super) fn purged(&mut self, id: QueueId) {
        let Some(purge) = self.gradual.purges.by_queue.get_mut(&id) else { return };
        purge.awaited -= 1;
        if !purge.ended || purge.awaited > 0 {
            return;
        }
        let Some(purge) = self.gradual.purges.by_queue.remove(&id) else { return };
        for asker in purge.askers {
            let reply = AdminReply::Purged(Some(purge.count));
            self.actions.push_back(Action::AdminReply { id: asker, reply });
        }
    }
}
