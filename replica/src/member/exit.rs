//! How a live gives its role away: a stop, of which a switchover is one, or a disk that has failed.
//!
//! ```text
//!   Stays ──stop──▶ Draining ── every shard drained, all of it durable there; or too late ─┐
//!     │                                                                                    ▼
//!     └── a shard has failed, or a write stands and somebody else can take it ─────────▶ Closing
//!                                            every shard says closed, or the lease is over ▼
//!         Stays ◀── deposed ────────────────────────── Given: the voters are asked ◀───────┘
//! ```
//! Invariant: the voters are asked only when no shard of this member serves any more (R12). What is
//! not durable at the other one at that moment was acknowledged to nobody, for it was waited for.

use std::time::Instant;

use super::{MemberEvent, Membership, Service, ShardReport, Stage};
use crate::canary::Canary;
use crate::election::Role;
use crate::limits::WRITE_AGE_MAX;
use crate::record::Member;

/// What becomes of the role that is being given away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// The other one takes it, and this one stays in sync.
    HandOver,
    /// Whoever may, takes it.
    Release,
}

/// How far the role is given away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    Stays,
    /// What was taken is being answered.
    Draining {
        until: Instant,
        goal: Goal,
    },
    /// No shard is to serve any more; not all have said so.
    Closing {
        goal: Goal,
    },
    /// The voters are asked.
    Given,
}

impl Membership {
    /// R12, R17: gives the role away, step by step.
    pub(super) fn leave(&mut self, now: Instant) {
        if self.epoch().is_none() {
            self.exit = Exit::Stays;
            return;
        }
        self.give_up_if_due(now);
        match self.exit {
            Exit::Stays | Exit::Given => {}
            Exit::Draining { until, goal } => {
                // An heir that went away meanwhile is not waited for.
                let goal = if self.heir().is_some() { goal } else { Goal::Release };
                let waits = !self.canaries.has(Canary::HandOverUndrained);
                if !waits || self.is_drained(goal) || until <= now {
                    self.exit = Exit::Closing { goal };
                }
            }
            Exit::Closing { goal } => {
                let is_over = self.election.fence_at().is_none_or(|fence| fence <= now);
                let waits = !self.canaries.has(Canary::LeaveUnfenced);
                if waits && !is_over && !self.is_closed() {
                    return;
                }
                self.exit = Exit::Given;
                let heir = self.heir().filter(|_| goal == Goal::HandOver);
                let given = match heir {
                    Some(heir) => self.election.hand_over(now, heir),
                    None => self.election.release(now),
                };
                if given.is_err() {
                    self.exit = Exit::Stays;
                }
            }
        }
    }

    /// R17: who can't write gives the role away, where that helps.
    fn give_up_if_due(&mut self, now: Instant) {
        let has_failed =
            self.shards.iter().flatten().any(|heard| heard.report.stage == Stage::Failed);
        let goes = has_failed || self.is_stuck(now) && self.heir().is_some();
        let (Role::Live(epoch) | Role::Fenced(epoch)) = self.election.role() else { return };
        if goes && !matches!(self.exit, Exit::Closing { goal: Goal::Release } | Exit::Given) {
            self.exit = Exit::Closing { goal: Goal::Release };
            self.events.push_back(MemberEvent::GivesUp(epoch));
        }
    }

    /// The other member, if it is in sync, there, and stays.
    pub(super) fn heir(&self) -> Option<Member> {
        let beside = self.election.beside()?;
        let (_, record) = self.record()?;
        let stays = self.peer().is_some_and(|card| !card.is_leaving);
        (record.holds(beside) && stays).then_some(beside)
    }

    fn is_drained(&self, goal: Goal) -> bool {
        let has_all = |report: &ShardReport| {
            let durable = report.peer.map(|peer| peer.marks.durable);
            goal == Goal::Release || durable.is_some_and(|durable| durable >= report.log.end)
        };
        let is_drained =
            |r: &ShardReport| r.service == Service::Draining && r.is_drained && has_all(r);
        self.reports().is_some_and(|all| all.iter().all(is_drained))
    }

    /// Every shard has said that it no longer serves.
    fn is_closed(&self) -> bool {
        let closed = |report: &ShardReport| {
            report.service == Service::Closed || report.stage == Stage::Failed
        };
        self.reports().is_some_and(|all| all.iter().all(closed))
    }

    /// Whether a write is under way for longer than it may be.
    pub(super) fn is_stuck(&self, now: Instant) -> bool {
        if self.canaries.has(Canary::RenewUnwell) {
            return false;
        }
        let mut since = self.shards.iter().flatten().filter_map(|heard| heard.report.writing_since);
        since.any(|since| now.saturating_duration_since(since) >= WRITE_AGE_MAX)
    }
}
