//! The head segment goes when nothing in it lives.
//!
//! ```text
//!   head has live messages? ── yes ──▶ wait: one old message pins the log (see the metric)
//!        │ no
//!   facts whose newest record is in it? ── yes ──▶ append copies, wait for their commit ──┐
//!        │ no  ◀──────────────────────────────────────────────────────────────────────────┘
//!   journal.recycle_head(): what freed it is durable, then the superblock, then the slot is free
//! ```
//! Invariants: a copy is committed under the whole watermark before the segment that it replaces
//! goes; a message counts as gone only when its settlement is committed. At level `async` that is
//! before it is durable: the journal waits for that. A log too full for a copy tries again when
//! something moves.

use std::time::Instant;

use journal::{AppendError, Level, Record, RecordKind, Sequence};

use super::{Phase, Shard};
use crate::apply::{Effect, Fact};
use crate::canary::Canary;
use crate::limits::COPY_STEP;
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
        while self.recycling.uncommitted == 0 {
            let Some(head) = self.journal.as_ref().and_then(journal::Journal::head_segment) else {
                return;
            };
            if self.state.messages_in(head.number) > 0 {
                return;
            }
            let mut facts = self.state.facts_up_to(head.number, COPY_STEP);
            if self.config.canaries.has(Canary::SequenceReused) {
                facts.retain(|fact| !matches!(fact, Fact::NextSequence(_)));
            }
            if facts.is_empty() {
                if let Some(journal) = &mut self.journal {
                    journal.recycle_head();
                }
                continue;
            }
            for fact in facts {
                if self.copy_fact(now, fact).is_err() {
                    return;
                }
            }
        }
    }

    fn copy_fact(&mut self, now: Instant, fact: Fact) -> Result<(), AppendError> {
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
        };
        record.level = Level::Sync;
        let appended = journal.append_copy(now, &record)?;
        match fact {
            Fact::NextQueueId => self.state.witness_next_queue_id(appended.lsn),
            Fact::Queue(id) => self.state.witness_queue(appended.lsn, id),
            Fact::NextSequence(id) => {
                self.state.apply_next_sequence(appended.lsn, id, record.sequence);
            }
        }
        self.recycling.uncommitted += 1;
        let (end, effect, answer) = (appended.end, Effect::None, Answer::HeadCopied);
        self.pending.push(Level::ReplicatedSync, Waiting { end, effect, answer });
        Ok(())
    }

    pub(super) fn head_copied(&mut self) {
        self.recycling.uncommitted -= 1;
    }
}
