//! Now and then a shard's state is written down beside its log, so that a start reads the log from
//! there.
//!
//! ```text
//!   the tail grew by two segments, and by what a checkpoint takes ─▶ begin
//!     ─▶ a page in a turn, when the last one is written ─▶ end ─▶ committed ─▶ it counts
//! ```
//! So the writes for checkpoints stay below those of the log, and what a start has to read depends
//! on what lives, not on what was. Where the log is hardly longer than its tail there is nothing to
//! win, and nothing is written.
//!
//! Invariants: a page costs a turn what [`CHECKPOINT_PAGE_BYTES`] take to copy, and the next one
//! waits for its write; a member that follows tells what is committed, as its state does. A
//! checkpoint that can't be written, for want of space say, is given up: a line in the log, and
//! another try later; nobody else hears of it.
//!
//! [`CHECKPOINT_PAGE_BYTES`]: crate::limits::CHECKPOINT_PAGE_BYTES

use std::time::Instant;

use journal::{Journal, Lsn, Room};

use super::compaction::Compaction;
use super::{Phase, Shard};
use crate::apply::{Cursor, State};
use crate::limits::{CHECKPOINT_MESSAGE_BYTES, CHECKPOINT_RETRY};

/// One that would not be worth it yet is thought of again when the log has grown by so much.
const RETRY_BYTES: u64 = 32 << 10;

/// How far the checkpoint under way is, and what came of those before.
#[derive(Debug, Default)]
pub(super) struct Checkpointing {
    under_way: Option<UnderWay>,
    page: Vec<u8>,
    /// Where the log ended when the last one was begun, if that was not in vain.
    begun_at: Option<Lsn>,
    /// None is begun before the log goes so far.
    not_before: Lsn,
    retry_at: Option<Instant>,
    pub(super) total: u64,
    pub(super) failures_total: u64,
}

#[derive(Clone, Copy, Debug)]
struct UnderWay {
    cursor: Cursor,
    from: Lsn,
}

impl Shard {
    /// Of what a shard that serves has come to.
    pub(super) fn step_checkpoint(&mut self, now: Instant) {
        if !matches!(self.phase, Phase::Serving) {
            return;
        }
        let Some(journal) = &mut self.journal else { return };
        let segment_bytes = self.config.segment_bytes;
        self.checkpointing.go_on(now, journal, &self.state);
        if self.checkpointing.is_due(now, journal, &self.state, segment_bytes) {
            let limit = told_by_log_from(&self.state, &self.compaction);
            self.checkpointing.begin(journal, limit, self.config.clock.unix_ms(now));
        }
    }

    /// Of what a member that follows has applied.
    pub(super) fn checkpoint_standing(&mut self, now: Instant) {
        let Phase::Standing(standing) = &mut self.phase else { return };
        let Some(journal) = standing.checkpointing() else { return };
        let segment_bytes = self.config.segment_bytes;
        self.checkpointing.go_on(now, journal, &self.state);
        if self.checkpointing.is_due(now, journal, &self.state, segment_bytes) {
            let limit = told_by_log_from(&self.state, &self.compaction);
            self.checkpointing.begin(journal, limit, self.config.clock.unix_ms(now));
        }
    }
}

/// What is under way in the log, in the state and beside it, begins here or behind this: no
/// checkpoint reaches beyond. Whatever else may stand half in the log one day belongs here.
fn told_by_log_from(state: &State, compaction: &Compaction) -> Lsn {
    state.told_by_log_from().min(compaction.chains.begins_at())
}

impl Checkpointing {
    /// The next page, if one is wanted; and what came of the last one.
    fn go_on(&mut self, now: Instant, journal: &mut Journal, state: &State) {
        match journal.poll_checkpoint_end() {
            Some(Ok(head)) => {
                self.total += 1;
                let shard = journal.shard().0;
                tracing::debug!(shard, from = head.from.0, bytes = head.bytes, "a checkpoint");
            }
            Some(Err(error)) => self.failed(now, journal, &error.to_string()),
            None => {}
        }
        if !journal.is_checkpointing() && self.under_way.take().is_some() {
            self.begun_at = None;
        }
        // One in a turn, also if nothing is in it: the next one waits for its write.
        if let Some(UnderWay { cursor, from }) = &mut self.under_way
            && journal.wants_page()
        {
            self.page.clear();
            if !state.tell(cursor, *from, &mut self.page) {
                // What can't be told can't be left out either.
                journal.give_up_checkpoint();
                return self.failed(now, journal, "a message is such as it cannot tell");
            }
            journal.put_page(&self.page);
            if *cursor == Cursor::Over {
                self.under_way = None;
                journal.end_pages();
            }
        }
    }

    fn failed(&mut self, now: Instant, journal: &Journal, what: &str) {
        (self.under_way, self.begun_at) = (None, None);
        self.retry_at = Some(now + CHECKPOINT_RETRY);
        self.failures_total += 1;
        tracing::warn!(
            "shard {}: a checkpoint was given up: {what}; until the next one a start reads more of \
             the log",
            journal.shard().0
        );
    }

    fn is_due(&self, now: Instant, journal: &Journal, state: &State, segment_bytes: u64) -> bool {
        let grown = match self.begun_at {
            Some(begun_at) => journal.appended().since(begun_at.min(journal.appended())),
            None => journal.tail_bytes(),
        };
        if grown < 2 * segment_bytes
            || journal.appended() < self.not_before
            || journal.room() != Room::Plenty
            || journal.is_checkpointing()
            || self.retry_at.is_some_and(|until| now < until)
        {
            return false;
        }
        let takes = state.messages() * CHECKPOINT_MESSAGE_BYTES + state.duplicates.carried_bytes();
        grown >= 2 * segment_bytes + takes
    }

    fn begin(&mut self, journal: &mut Journal, limit: Lsn, unix_ms: u64) {
        self.retry_at = None;
        let appended = journal.appended();
        if let Some(from) = journal.begin_checkpoint(limit, unix_ms) {
            self.begun_at = Some(appended);
            self.under_way = Some(UnderWay { cursor: Cursor::START, from });
        } else {
            self.not_before = appended.plus(RETRY_BYTES);
        }
    }
}
