//! The head segment goes when nothing in it lives.
//!
//! ```text
//!   a message begins in it of which more is to come? ── yes ──▶ wait; where room is short the
//!        │ no                                                    oldest is given up (`inflow.rs`)
//!   head has live messages? ── yes ──▶ wait, or copy them forward where it pays (`compaction.rs`)
//!        │ no
//!   duplicate ids in it, and the log is short beside all ids? ── yes ──▶ wait, or forget some
//!        │ no
//!   facts whose newest record is in it? ── yes ──▶ append copies, wait for their commit ──┐
//!        │ no  ◀──────────────────────────────────────────────────────────────────────────┘
//!   journal.recycle_head(): what freed it is durable, then the superblock, then the slot is free
//! ```
//! Invariants: a copy is committed under the whole watermark before the segment that it replaces
//! goes; a message counts as gone only when its settlement is committed. At level `async` that is
//! before it is durable: the journal waits for that. A log too full for a copy tries again when
//! something moves.
//!
//! Duplicate ids live longer than their messages. In a log that is short beside them they would be
//! carried round and round, so a segment with nothing else stays until the log behind it has grown
//! to `CARRY_TIMES` the bytes of all ids. Where there is no room to grow, ids give way to messages:
//! the oldest are forgotten until those that are left fill half a segment at most, and carrying
//! them comes to an end.

use std::time::Instant;

use journal::limits::RESERVE_SEGMENTS;
use journal::{AppendError, Journal, Level, Record, RecordKind, Room, Sequence, Usage};

use super::{Phase, Shard};
use crate::apply::{Effect, Fact};
use crate::canary::Canary;
use crate::limits::{
    CARRY_RECORD_BYTES, CARRY_ROOM_SEGMENTS, CARRY_STEP_BYTES, CARRY_TIMES, COPY_STEP,
};
use crate::pending::{Answer, Waiting};

/// Copies that are appended and not committed.
#[derive(Debug, Default)]
pub(super) struct Recycling {
    uncommitted: u64,
}

impl Shard {
    pub(super) fn step_recycle(&mut self, now: Instant) {
        if !matches!(self.phase, Phase::Serving | Phase::Stopping) {
            return;
        }
        if self.is_log_held(now) {
            return;
        }
        while self.recycling.uncommitted == 0 {
            let Some(head) = self.journal.as_ref().and_then(Journal::head_segment) else {
                return;
            };
            // A member that catches up reads there, or did a moment ago: as long as there is room
            // it is waited for, and beyond that it begins anew.
            let is_plenty = self.journal.as_ref().is_some_and(|j| j.room() == Room::Plenty);
            if is_plenty && self.held_segment().is_some_and(|held| held <= head.number) {
                return;
            }
            let is_begun = self.state.has_chain_before(head.end_lsn);
            if is_begun && !self.config.canaries.has(Canary::HalfRecycled) {
                if self.needs_room() {
                    self.give_up_oldest(now);
                } else {
                    self.give_up_idle(now, head.number);
                }
                return;
            }
            if self.state.messages_in(head.number) > 0 || self.compaction.is_owing() {
                return self.compact(now, head.number);
            }
            let carries = !self.config.canaries.has(Canary::DuplicatesNotCarried);
            if carries && self.state.duplicates.queues_up_to(head.number).next().is_some() {
                match self.has_room_to_carry() {
                    Some(true) => {}
                    Some(false) => return,
                    None => self.state.duplicates.shed(self.config.segment_bytes / 2),
                }
            }
            let mut facts = self.state.facts_up_to(head.number, COPY_STEP);
            if self.config.canaries.has(Canary::SequenceReused) {
                facts.retain(|fact| !matches!(fact, Fact::NextSequence(_)));
            }
            if !carries {
                facts.retain(|fact| !matches!(fact, Fact::DuplicateIds(_)));
            }
            if facts.is_empty() {
                if let Some(journal) = &mut self.journal {
                    journal.recycle_head();
                }
                self.pair_recycled();
                self.head_recycled(head.number);
                continue;
            }
            let mut bytes = 0;
            for fact in facts {
                match self.copy_fact(now, fact, head.number) {
                    Ok(copied) => bytes += copied,
                    Err(error) => return self.stop_compacting(error),
                }
                if bytes > CARRY_STEP_BYTES {
                    break;
                }
            }
        }
    }

    /// Whether what is left of the log is so little that nothing may hold its head: before messages
    /// are refused, or at once where some were. Segments that may still be made are room.
    fn needs_room(&self) -> bool {
        let Some(usage) = self.journal.as_ref().map(Journal::usage) else { return false };
        let most = self.config.segments_max;
        // In a short log a message may well need half of it.
        let kept = u64::from(RESERVE_SEGMENTS) + (most / 8).max(2);
        let kept = kept.min((most / 2).saturating_sub(1));
        let is_used_up = u64::from(usage.segments_made) >= most && usage.room != Room::Plenty;
        is_used_up || self.pressing.full || most.saturating_sub(usage.segments_live) <= kept
    }

    /// Whether the log is long beside the duplicate ids in it; `None` if it is not, and cannot be.
    fn has_room_to_carry(&self) -> Option<bool> {
        let usage = self.journal.as_ref()?.usage();
        let segment_bytes = self.config.segment_bytes;
        let behind_head = usage.segments_live.saturating_sub(1) * segment_bytes;
        if behind_head > self.state.duplicates.carried_bytes() * CARRY_TIMES {
            return Some(true);
        }
        // The largest message has room too, but never more than an eighth of the log.
        let log_bytes_max = self.config.segments_max * segment_bytes;
        let largest = self.config.amqp.max_message_size.min(log_bytes_max / 8);
        let room = CARRY_ROOM_SEGMENTS * segment_bytes + largest;
        // The file system may have less than its share for us: then messages find that first.
        (self.room_bytes(&usage) > room && !self.pressing.full).then_some(false)
    }

    /// Bytes that the log could still take, made or not.
    fn room_bytes(&self, usage: &Usage) -> u64 {
        let segments_left = self.config.segments_max.saturating_sub(usage.segments_made.into());
        usage.free_bytes + segments_left * self.config.segment_bytes
    }

    /// Whether the log could take a message of so many bytes, what others bring that have begun,
    /// and what is kept beside it. One that is short finds out.
    pub(super) fn has_room_for(&self, message_bytes: u64, rest_bytes: u64) -> bool {
        let is_short = message_bytes < self.config.segment_bytes;
        if is_short && rest_bytes == 0 {
            return true;
        }
        let message_bytes = message_bytes + rest_bytes;
        let Some(usage) = self.journal.as_ref().map(Journal::usage) else { return false };
        // Its records have headers, and what is left over at the end of each segment is lost.
        let room = CARRY_ROOM_SEGMENTS * self.config.segment_bytes;
        usage.room == Room::Plenty
            && self.room_bytes(&usage) > room + message_bytes + message_bytes / 8
    }

    /// Appends what is to be known of a fact when the head is gone; the bytes that this took.
    fn copy_fact(&mut self, now: Instant, fact: Fact, head: u64) -> Result<usize, AppendError> {
        let Some(journal) = &mut self.journal else { return Err(AppendError::Closed) };
        let payload;
        let mut record = match fact {
            Fact::NextQueueId => {
                let next = self.state.catalogue.next_id();
                Record::new(RecordKind::NextQueueId, next, Sequence(0), &[])
            }
            Fact::Queue(id) => match self.state.catalogue.get(id) {
                // Behind its deletion it would be there again: the segment waits for the commit.
                Some(_) if self.state.is_deleting(id) => return Err(AppendError::Busy),
                Some(queue) => {
                    payload = queue.encode();
                    Record::new(RecordKind::QueueCreate, id, Sequence(0), &payload)
                }
                // Its creation is not committed yet: the segment waits for that.
                None => return Err(AppendError::Busy),
            },
            Fact::NextSequence(id) => {
                let next = self.state.queue(id).map_or(Sequence(0), |q| q.next_sequence());
                Record::new(RecordKind::NextSequence, id, next, &[])
            }
            Fact::DuplicateIds(id) => {
                let bytes_max = CARRY_RECORD_BYTES.min(journal.fragment_bytes_max());
                payload = self.state.duplicates.carry(id, head, bytes_max);
                if payload.is_empty() {
                    return Ok(0);
                }
                let next = self.state.queue(id).map_or(Sequence(0), |q| q.next_sequence());
                Record::new(RecordKind::NextSequence, id, next, &payload)
            }
        };
        record.level = Level::Sync;
        let appended = journal.append_copy(now, &record)?;
        match fact {
            Fact::NextQueueId => self.state.witness_next_queue_id(appended.lsn),
            Fact::Queue(id) => self.state.witness_queue(appended.lsn, id),
            Fact::NextSequence(_) | Fact::DuplicateIds(_) => {
                let applied = self.state.apply(appended.lsn, &record);
                assert_eq!(applied, Ok(Effect::None), "what we have written can be read");
            }
        }
        self.recycling.uncommitted += 1;
        let (end, effect, answer) = (appended.end, Effect::None, Answer::HeadCopied);
        self.pending.push(Level::ReplicatedSync, Waiting { end, effect, answer });
        Ok(record.encoded_len())
    }

    pub(super) fn head_copied(&mut self) {
        self.recycling.uncommitted -= 1;
    }
}
