//! Operators' questions and commands, as far as one shard can answer them.
//!
//! A purge works in steps of `PURGE_STEP` settlements, so that a long queue never stalls the loop,
//! and is answered when the last of them is committed. It takes what was available when it was
//! asked for, and what no other queue takes: messages at consumers and later ones stay.

use std::collections::BTreeMap;
use std::time::Instant;

use journal::{QueueId, Sequence, Urgency};

use super::Shard;
use super::link::End;
use crate::admin::{AdminId, AdminReply, AdminRequest, ConnectionStat, QueueStat, ShardStats};
use crate::event::{Action, ConnId};
use crate::limits::{PURGE_PAUSE, PURGE_STEP};
use crate::mail::level_name;
use crate::pending::Answer;
use crate::queue::SlotState;

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
    /// When the next step is due, if any purge has one to make.
    due: Option<Instant>,
}

impl Purges {
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }
}

#[derive(Debug)]
struct Purge {
    below: Sequence,
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
            AdminRequest::Connections => AdminReply::Connections(self.connection_stats()),
            AdminRequest::CloseConnection(conn) => self.close_connection(conn),
            AdminRequest::Stats => AdminReply::Stats(Box::new(self.stats())),
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

    fn named_here(&self, name: &str) -> Option<QueueId> {
        let record = self.state.catalogue.named(name)?;
        (record.home == self.config.shard).then_some(record.id)
    }

    fn close_connection(&mut self, id: ConnId) -> AdminReply {
        let there = self.conns.contains_key(id);
        self.say_goodbye(id, "an operator closed the connection");
        AdminReply::ConnectionClosed(there)
    }

    fn queue_stats(&self) -> Vec<QueueStat> {
        let here = |queue: &crate::queue::Queue| {
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

    fn stats(&self) -> ShardStats {
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
        }
        stats
    }

    fn begin_purge(&mut self, now: Instant, name: &str, asker: AdminId) -> bool {
        let Some(id) = self.named_here(name) else { return false };
        let Some(queue) = self.state.queue_mut(id) else { return false };
        queue.wake_all();
        let below = queue.next_sequence();
        let purge = self.purges.by_queue.entry(id).or_insert_with(|| Purge {
            below,
            count: 0,
            askers: Vec::new(),
            ended: false,
            awaited: 0,
        });
        self.purges.due = Some(now);
        purge.below = below;
        purge.ended = false;
        purge.askers.push(asker);
        true
    }

    /// One step of each purge under way, and a pause: what else happens goes on between them.
    pub(super) fn step_purges(&mut self, now: Instant) {
        if self.purges.due.is_none_or(|due| now < due) {
            return;
        }
        self.purges.due = None;
        let active: Vec<QueueId> = self
            .purges
            .by_queue
            .iter()
            .filter(|(_, purge)| !purge.ended)
            .map(|(id, _)| *id)
            .collect();
        for id in active {
            self.step_purge(now, id);
        }
    }

    fn step_purge(&mut self, now: Instant, id: QueueId) {
        let Some(level) = self.state.catalogue.get(id).map(|record| record.level) else { return };
        let Some(below) = self.purges.by_queue.get(&id).map(|purge| purge.below) else { return };
        let mut taken = self.take_refused(id, below, PURGE_STEP);
        if let Some(queue) = self.state.queue_mut(id) {
            while taken.len() < PURGE_STEP {
                let Some(sequence) = queue.take_for_purge(below) else { break };
                taken.push(sequence);
            }
        }
        let Some(purge) = self.purges.by_queue.get_mut(&id) else { return };
        purge.count += taken.len() as u64;
        purge.ended = taken.len() < PURGE_STEP;
        let ended = purge.ended;
        purge.awaited += u32::from(ended);
        if !ended {
            self.purges.due = Some(now + PURGE_PAUSE);
        }
        for sequence in taken {
            self.append_settle(now, id, level, sequence, Answer::Nobody, Urgency::Window);
        }
        if ended {
            self.answer_behind_all(level, Answer::Purged(id));
        }
    }

    /// A queue is gone: whoever waits for its purge hears how far that came.
    pub(super) fn abandon_purge(&mut self, id: QueueId) {
        let Some(purge) = self.purges.by_queue.remove(&id) else { return };
        for asker in purge.askers {
            let reply = AdminReply::Purged(Some(purge.count));
            self.actions.push_back(Action::AdminReply { id: asker, reply });
        }
    }

    pub(super) fn purged(&mut self, id: QueueId) {
        let Some(purge) = self.purges.by_queue.get_mut(&id) else { return };
        purge.awaited -= 1;
        if !purge.ended || purge.awaited > 0 {
            return;
        }
        let Some(purge) = self.purges.by_queue.remove(&id) else { return };
        for asker in purge.askers {
            let reply = AdminReply::Purged(Some(purge.count));
            self.actions.push_back(Action::AdminReply { id: asker, reply });
        }
    }
}
