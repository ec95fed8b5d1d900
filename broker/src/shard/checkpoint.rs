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
//! another try later, each time after twice as long; nobody else hears of it.
//!
//! [`CHECKPOINT_PAGE_BYTES`]: crate::limits::CHECKPOINT_PAGE_BYTES

use std::time::{Duration, Instant};

use journal::{Journal, Lsn, Room};

use super::compaction::Compaction;
use super::{Phase, Shard, ShardConfig};
use crate::apply::{Cursor, State};
use crate::limits::{
    CHECKPOINT_MESSAGE_BYTES, CHECKPOINT_RETRY, CHECKPOINT_RETRY_DOUBLINGS, GRADUAL_PAUSE,
};

/// One that would not be worth it yet is thought of again when the log has grown by so much.
const RETRY_BYTES: u64 = 32 << 10;

/// How far the checkpoint under way is, and what came of those before.
#[derive(Debug, Default)]
pub(super) struct Checkpointing {
    under_way: Option<UnderWay>,
    /// One was begun, and nothing is known of its end.
    is_begun: bool,
    page: Vec<u8>,
    /// Where the log ended when the last one was begun, if that was not in vain.
    begun_at: Option<Lsn>,
    /// None is begun before the log goes so far.
    not_before: Lsn,
    retry_at: Option<Instant>,
    /// Given up since the last one that was written.
    failures: u32,
    /// There was nothing to tell of what was looked at: it is gone on then.
    go_on_at: Option<Instant>,
    pub(super) total: u64,
    pub(super) failures_total: u64,
}

/// How long after so many that were given up in a row the next one is begun.
fn retry_after(failures: u32) -> Duration {
    CHECKPOINT_RETRY * (1 << failures.min(CHECKPOINT_RETRY_DOUBLINGS))
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
            self.checkpointing.go_on_at = None;
            return;
        }
        let Some(journal) = &mut self.journal else { return };
        if !self.checkpointing.rests(journal) {
            self.checkpointing.step(now, journal, &self.state, &self.compaction, &self.config);
        }
    }

    /// Of what a member that follows has applied.
    pub(super) fn checkpoint_standing(&mut self, now: Instant) {
        let Phase::Standing(standing) = &mut self.phase else { return };
        let Some(journal) = standing.checkpointing() else {
            self.checkpointing.go_on_at = None;
            return;
        };
        self.checkpointing.step(now, journal, &self.state, &self.compaction, &self.config);
    }
}

/// What is under way in the log, in the state and beside it, begins here or behind this: no
/// checkpoint reaches beyond. Whatever else may stand half in the log one day belongs here.
fn told_by_log_from(state: &State, compaction: &Compaction) -> Lsn {
    state.told_by_log_from().min(compaction.chains.begins_at())
}

impl Checkpointing {
    /// When it goes on, if nothing else happens.
    pub(super) fn due(&self) -> Option<Instant> {
        self.go_on_at
    }

    /// Whether none is under way, and the log is too short for the next: mostly.
    #[inline(always)]
    fn rests(&self, journal: &Journal) -> bool {
        !self.is_begun && journal.appended() < self.not_before
    }

    /// One that is under way goes on; one that is due is begun.
    fn step(
        &mut self,
        now: Instant,
        journal: &mut Journal,
        state: &State,
        compaction: &Compaction,
        config: &ShardConfig,
    ) {
        self.go_on(now, journal, state);
        if self.is_due(now, journal, state, config.segment_bytes) {
            let limit = told_by_log_from(state, compaction);
            self.begin(now, journal, limit, config.clock.unix_ms(now));
        }
    }

    /// The next page, if one is wanted; and what came of the last one.
    fn go_on(&mut self, now: Instant, journal: &mut Journal, state: &State) {
        match journal.poll_checkpoint_end() {
            Some(Ok(head)) => {
                self.total += 1;
                (self.failures, self.is_begun) = (0, false);
                let shard = journal.shard().0;
                tracing::debug!(shard, from = head.from.0, bytes = head.bytes, "a checkpoint");
            }
            Some(Err(error)) => self.failed(now, journal, &error.to_string()),
            None => {}
        }
        if !journal.is_checkpointing() && std::mem::take(&mut self.is_begun) {
            (self.under_way, self.begun_at, self.go_on_at) = (None, None, None);
        }
        // One in a turn: the next one waits for its write, or for a moment if nothing is in it.
        if self.go_on_at.is_some_and(|at| now < at) {
            return;
        }
        self.go_on_at = None;
        if let Some(UnderWay { cursor, from }) = &mut self.under_way
            && journal.wants_page()
        {
            self.page.clear();
            if !state.tell(cursor, *from, &mut self.page) {
                // What can't be told can't be left out either.
                journal.give_up_checkpoint();
                return self.failed(now, journal, "a message is such as it cannot tell");
            }
            let is_over = *cursor == Cursor::Over;
            if !self.page.is_empty() {
                journal.put_page(&self.page);
            } else if !is_over {
                self.go_on_at = Some(now + GRADUAL_PAUSE);
            }
            if is_over {
                self.under_way = None;
                journal.end_pages();
            }
        }
    }

    fn failed(&mut self, now: Instant, journal: &Journal, what: &str) {
        (self.under_way, self.begun_at, self.is_begun) = (None, None, false);
        self.go_on_at = None;
        self.retry_at = Some(now + retry_after(self.failures));
        self.failures += 1;
        self.failures_total += 1;
        tracing::warn!(
            "shard {}: a checkpoint was given up: {what}; until the next one a start reads more of \
             the log",
            journal.shard().0
        );
    }

    fn is_due(
        &mut self,
        now: Instant,
        journal: &Journal,
        state: &State,
        segment_bytes: u64,
    ) -> bool {
        let grown = match self.begun_at {
            Some(begun_at) => journal.appended().since(begun_at.min(journal.appended())),
            None => journal.tail_bytes(),
        };
        if grown < 2 * segment_bytes {
            let missing = 2 * segment_bytes - grown;
            self.not_before = journal.appended().plus(missing.min(segment_bytes / 4));
            return false;
        }
        if journal.appended() < self.not_before
            || journal.room() != Room::Plenty
            || journal.is_checkpointing()
            || self.retry_at.is_some_and(|until| now < until)
        {
            return false;
        }
        let takes = state.messages() * CHECKPOINT_MESSAGE_BYTES + state.duplicates.carried_bytes();
        let missing = (2 * segment_bytes + takes).saturating_sub(grown);
        // What it takes is a sum over all segments, and may get less: asked now and then.
        self.not_before = journal.appended().plus(missing.min(segment_bytes));
        missing == 0
    }

    fn begin(&mut self, now: Instant, journal: &mut Journal, limit: Lsn, unix_ms: u64) {
        if journal.lacks_space() {
            return self.failed(now, journal, "a segment finds no space");
        }
        self.retry_at = None;
        let appended = journal.appended();
        if let Some(from) = journal.begin_checkpoint(limit, unix_ms) {
            self.begun_at = Some(appended);
            self.under_way = Some(UnderWay { cursor: Cursor::START, from });
            self.is_begun = true;
        } else {
            self.not_before = appended.plus(RETRY_BYTES);
        }
    }
}
