//! From a log to a shard that serves.
//!
//! ```text
//!   shard 0:  read the log ─▶ the catalogue is known ─▶ tell everybody ─▶ serve
//!   others:   read the log ─▶ wait for the catalogue ─▶ reconcile ─▶ serve
//!   each:     and wait until every shard has told which moved messages it has (`dead_letters.rs`)
//! ```
//! Where there is a checkpoint the log is read from there: its pages come first, then the records.
//!
//! Shards read side by side, and none serves before shard 0's log is read. Reconciling: a queue
//! that has records here and is not in the catalogue was deleted if its id was given before, and is
//! damage if it never was. Nothing is delivered or acknowledged before the phase is `Serving`.
//!
//! What is recovered counts as committed at its level. In a pair that is true once whoever must
//! have it has all of it: until then nobody is told of moved messages, so no shard serves
//! (`pair.rs`).

use std::time::Instant;

use journal::{
    DiskError, Journal, QueueId, RecordKind, RecoveryError, RecoveryOutcome, ShardId,
    SuperblockError,
};

use super::{Phase, Shard};
use crate::apply::{ApplyError, Load};
use crate::canary::Canary;
use crate::catalogue::QueueRecord;
use crate::event::{Action, Fatal};
use crate::limits::KEPT_AT_START_SIXTEENTHS;
use crate::mail::Mail;

impl Shard {
    /// Takes the records that were read, and the end of recovery; whether there was any progress.
    pub(super) fn recover(&mut self, now: Instant) -> bool {
        let kept_bytes = self.config.memory_bytes_max / 16 * KEPT_AT_START_SIXTEENTHS;
        let Phase::Recovering(recovery) = &mut self.phase else { return false };
        let mut progress = recovery.poll_void();
        if progress {
            self.state = super::empty_state(&self.config);
            (self.load, self.report.records, self.report_head) = (Load::default(), 0, None);
        }
        let head = recovery.head();
        while let Some(page) = recovery.poll_page() {
            progress = true;
            if let Err(what) = self.state.load(&mut self.load, head, page) {
                recovery.refuse_page(what);
                return true;
            }
        }
        while let Some((lsn, record)) = recovery.poll_record() {
            progress = true;
            self.report.records += 1;
            let segment = lsn.0 / self.config.segment_bytes;
            let head = *self.report_head.get_or_insert(segment);
            if record.kind == RecordKind::Settle
                && segment == head
                && self.config.canaries.has(Canary::SettlementRecycledEarly)
            {
                continue;
            }
            if record.kind == RecordKind::DeliveryCount
                && self.config.canaries.has(Canary::AttemptsForgotten)
            {
                continue;
            }
            let mut record = record;
            if record.kind == RecordKind::DeliveryCount
                && self.config.canaries.has(Canary::AnnotationsForgotten)
            {
                record.payload = record.payload.get(..1).unwrap_or_default();
            }
            if self.config.canaries.has(Canary::ScheduleForgotten) {
                record.parts.delivery_unix_ms = None;
            }
            match self.state.apply(lsn, &record) {
                Ok(effect) => {
                    self.state.commit_read(effect, kept_bytes);
                    let has_id = record.parts.duplicate_id.is_some();
                    if has_id && self.config.canaries.has(Canary::DuplicatesForgotten) {
                        self.state.duplicates.forget_queue(record.queue);
                    }
                }
                Err(error) => {
                    self.fatal(fatal_of_apply(error));
                    return true;
                }
            }
        }
        // What was handed out may have become void at its end.
        if recovery.has_void() {
            return true;
        }
        match recovery.poll_outcome() {
            Some(Ok(outcome)) => {
                self.recovered(now, outcome);
                true
            }
            Some(Err(error)) => {
                self.fatal(fatal_of(self.config.shard, &error));
                true
            }
            None => progress,
        }
    }

    fn recovered(&mut self, now: Instant, outcome: RecoveryOutcome) {
        self.report.checkpoint = outcome.checkpoint.map(|head| head.from.0);
        self.report.refused.extend(outcome.refused.iter().map(|(file, error)| {
            format!("{file} is of no use: {error}; without it the start reads the log")
        }));
        self.report.truncated = outcome.truncated.map(|cut| {
            format!(
                "shard {}: cut {} bytes in {} batches behind LSN {}, none of them promised durable",
                self.config.shard.0, cut.bytes, cut.batches, cut.lsn
            )
        });
        match self.member.as_ref().map(|member| member.follows().clone()) {
            Some(follows) => self.stand(now, follows, outcome.journal),
            None => self.take_up(outcome.journal),
        }
    }

    /// Everything in the log is in the state: it is this one's to go on with.
    pub(super) fn take_up(&mut self, mut journal: Journal) {
        if self.config.canaries.has(Canary::HalfShown) {
            self.state.show_halves();
        }
        self.state.end_recovery();
        self.report.messages = self.state.messages();
        journal.set_unsettled(self.state.messages());
        self.journal = Some(journal);
        self.phase = Phase::Joining;
        if self.config.shard == ShardId(0) {
            let queues: Vec<QueueRecord> = self.state.catalogue.iter().cloned().collect();
            let next_queue_id = self.state.catalogue.next_id();
            self.post_all(&Mail::Catalogue { queues, next_queue_id });
        }
        self.owe_arrivals();
        let (now_due, still_early) =
            std::mem::take(&mut self.early).into_iter().partition(|mail| self.takes(mail));
        self.early = still_early;
        let now_due: Vec<Mail> = now_due;
        self.mail.extend(now_due);
    }

    /// Whether its log is read, and it does not serve yet.
    pub(super) fn is_joining(&self) -> bool {
        matches!(self.phase, Phase::Joining)
    }

    /// Shard 0's log is read: the catalogue is known.
    pub(super) fn join(&mut self, now: Instant, queues: Vec<QueueRecord>, next_queue_id: QueueId) {
        // A shard that was stopped before it served does not begin to.
        if self.catalogue_seen || !self.is_joining() {
            return;
        }
        self.catalogue_seen = true;
        for record in queues {
            if record.home.0 >= self.config.shards {
                self.fatal(Fatal::JournalDamaged(format!(
                    "queue '{}' lives on shard {}, but there are {} shards",
                    record.name, record.home.0, self.config.shards
                )));
                return;
            }
            if record.home == self.config.shard {
                self.state.open_queue(record.id);
            }
            self.state.catalogue.insert(record);
        }
        self.state.catalogue.skip_to(next_queue_id);
        let strays: Vec<QueueId> = self
            .state
            .queues()
            .map(crate::queue::Queue::id)
            .filter(|id| self.state.catalogue.get(*id).is_none())
            .collect();
        for id in strays {
            if id >= next_queue_id {
                self.fatal(Fatal::JournalDamaged(format!(
                    "shard {} has records of queue {}, which the catalogue on shard 0 never gave \
                     an id to (its next is {}): the shards' logs are not of one broker",
                    self.config.shard.0, id.0, next_queue_id.0
                )));
                return;
            }
            self.forget_queue(now, id);
        }
        // Nobody waits for anything else yet.
        self.state.clear(usize::MAX);
        self.report.messages = self.state.messages();
        self.settle_arrivals(now);
        self.serve_if_complete(now);
    }

    /// Serves, once the catalogue is known and so is what was moved from here.
    pub(super) fn serve_if_complete(&mut self, now: Instant) {
        if !self.is_joining() || !self.catalogue_seen || !self.knows_arrivals() {
            return;
        }
        self.phase = Phase::Serving;
        let here = |record: &&QueueRecord| record.home == self.config.shard;
        let names: Vec<(QueueId, String)> = self
            .state
            .catalogue
            .iter()
            .filter(here)
            .map(|record| (record.id, record.name.clone()))
            .collect();
        for (id, name) in names {
            self.adopt_queue(now, id, &name);
        }
        self.actions.push_back(Action::Ready(self.report.clone()));
        let early = std::mem::take(&mut self.early);
        self.mail.extend(early);
    }
}

/// What can't be applied ends the process.
pub(super) fn fatal_of_apply(error: ApplyError) -> Fatal {
    match error {
        ApplyError::Damage(what) => Fatal::JournalDamaged(what),
        ApplyError::Newer(what) => Fatal::FormatUnknown(what),
    }
}

fn fatal_of(shard: ShardId, error: &RecoveryError) -> Fatal {
    let what = format!("shard {}: {error}", shard.0);
    match error {
        RecoveryError::Damaged { .. }
        | RecoveryError::WrongLog { .. }
        | RecoveryError::NotWhole { .. }
        | RecoveryError::NotFormatted => Fatal::JournalDamaged(what),
        RecoveryError::Version { .. } => Fatal::FormatUnknown(what),
        RecoveryError::Record { error, .. } if error.is_newer_format() => {
            Fatal::FormatUnknown(what)
        }
        RecoveryError::Record { .. } => Fatal::JournalDamaged(what),
        RecoveryError::Superblock(error) => match error {
            SuperblockError::Version(_)
            | SuperblockError::UnknownFeatures(_)
            | SuperblockError::UnknownPart(_) => Fatal::FormatUnknown(what),
            SuperblockError::Unreadable
            | SuperblockError::WrongLog(_)
            | SuperblockError::Malformed => Fatal::JournalDamaged(what),
        },
        RecoveryError::Unreadable { .. } => Fatal::JournalUnreadable(what),
        RecoveryError::Unwritable { error: DiskError::NoSpace, .. } => Fatal::DiskFull(what),
        RecoveryError::Unwritable { .. } => Fatal::JournalPoisoned(what),
    }
}
