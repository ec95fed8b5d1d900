//! One moment of all shards, and the log behind it kept for who copies it.
//!
//! ```text
//!   every shard:  Freeze ──▶ takes no mail      only when all have: Point ──▶ {first, durable}
//!                                                                   Thaw  ──▶ takes mail again
//!   Point ──▶ the log is held: nothing is recycled ── KeepPoint ──▶ for another while
//!                                                  ── ForgetPoint, or HOLD_MAX over ──▶ free
//! ```
//! What is durable on each shard at one moment is what a power cut of all of them at that moment
//! would leave, and any start makes sense of that: queues are catalogued or not, a message on its
//! way to another queue is in exactly one. A moment of several shards needs no clock: what a shard
//! says to another reflects only what is durable here, and while all take no mail, nothing that one
//! of them wrote after its point can show in what another one wrote before its own.
//!
//! Invariants: a shard that is frozen thaws by itself after `FREEZE_MAX`, and then says so when it
//! is asked to: that point counts for nothing. Mail keeps its order. A log that is held serves as
//! ever; if it gets full, the hold is given up, not the service, and whoever copies hears of it.

use std::time::Instant;

use journal::ShardId;

use super::{Phase, Shard};
use crate::admin::{AdminReply, PointAt};
use crate::limits::{FREEZE_MAX, HOLD_MAX};
use crate::mail::Mail;

/// Whether mail waits, and whether the log is held.
#[derive(Debug, Default)]
pub(super) struct Point {
    frozen_until: Option<Instant>,
    mail: Vec<(ShardId, Mail)>,
    held_until: Option<Instant>,
}

impl Point {
    pub(super) fn is_frozen(&self) -> bool {
        self.frozen_until.is_some()
    }

    pub(super) fn keep_mail(&mut self, from: ShardId, mail: Mail) {
        self.mail.push((from, mail));
    }

    /// When it thaws by itself.
    pub(super) fn due(&self) -> Option<Instant> {
        self.frozen_until
    }
}

impl Shard {
    pub(super) fn freeze(&mut self, now: Instant) -> AdminReply {
        if !matches!(self.phase, Phase::Serving) {
            return AdminReply::Failed("it is not serving".to_owned());
        }
        if self.point.is_frozen() || self.is_log_held(now) {
            return AdminReply::Failed("a copy is being made already".to_owned());
        }
        self.point.frozen_until = Some(now + FREEZE_MAX);
        AdminReply::Frozen
    }

    /// From here on the log is held.
    pub(super) fn point(&mut self, now: Instant) -> AdminReply {
        let Some(journal) = self.journal.as_ref().filter(|_| self.point.is_frozen()) else {
            return AdminReply::Thawed(false);
        };
        self.point.held_until = Some(now + HOLD_MAX);
        AdminReply::Point(PointAt { first: journal.first_kept(), durable: journal.durable() })
    }

    /// Whether it was still frozen.
    pub(super) fn thaw(&mut self) -> bool {
        let was_frozen = self.point.frozen_until.take().is_some();
        for (from, mail) in std::mem::take(&mut self.point.mail) {
            self.take_mail(from, mail);
        }
        was_frozen
    }

    pub(super) fn thaw_if_due(&mut self, now: Instant) {
        if self.point.due().is_some_and(|at| at <= now) {
            self.thaw();
        }
    }

    /// Whether the log is held still, for another while then.
    pub(super) fn keep_point(&mut self, now: Instant) -> bool {
        let is_held = self.is_log_held(now);
        if is_held {
            self.point.held_until = Some(now + HOLD_MAX);
        }
        is_held
    }

    pub(super) fn forget_point(&mut self) {
        self.point.held_until = None;
    }

    /// Whether nothing may be recycled.
    pub(super) fn is_log_held(&mut self, now: Instant) -> bool {
        let Some(until) = self.point.held_until else { return false };
        if self.pressing.full {
            tracing::warn!(
                "shard {}: the log is full: it is not held any longer for who copies it",
                self.config.shard.0
            );
        }
        if self.pressing.full || until <= now {
            self.point.held_until = None;
        }
        self.point.held_until.is_some()
    }
}
