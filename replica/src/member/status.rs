//! What a member shows to operators: the content of `ha status`, of the metrics and of readiness.
//!
//! Nothing is decided by it, and it says nothing that its shards, its voters and its peer have not
//! said before.

use std::fmt;
use std::time::{Duration, Instant};

use journal::{Epoch, Lsn, ShardId};

use super::founding::{Founder, Side, founder};
use super::{Fault, Membership, ShardReport, Stage};
use crate::card::Standing;
use crate::limits::OTHERS_PATIENCE;
use crate::record::{Forced, NodeId};
use crate::register::Version;
use crate::wire::Reason;

/// One shard's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardStatus {
    /// Which.
    pub shard: ShardId,
    /// What it does; none: it was not heard yet.
    pub stage: Option<Stage>,
    /// Everything below is durable here.
    pub durable: Lsn,
    /// Everything below is durable on every member in sync, as far as is known here.
    pub committed: Lsn,
    /// How far the other member is durable, at a live that is followed.
    pub backup_durable: Option<Lsn>,
}

/// What keeps a member from being live or in sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waits {
    /// No answer of the voters yet: is there a majority?
    Voters,
    /// There is no record, and the other member has not said what it holds.
    Peer,
    /// There is no record, and the logs do not say who holds more: `ha bootstrap` on the right one.
    Operator,
    /// There is no record, and the other member is there without a whole log: it recovers, or was
    /// being brought up, and then `ha bootstrap` here is what is needed.
    PeerLog,
    /// There is no record, and this member was being brought up: `ha bootstrap` on the other one.
    NoRecordToFollow,
    /// There is no record, and the other member's voters hold one.
    OtherVoters,
    /// Its directory is empty, and nobody has said yet which log it is to hold.
    Log,
    /// Its shards are being recovered.
    Recovery,
    /// The live's whole log is on its way.
    Install,
    /// Its log has seen an epoch that the voters have not: the record is old, or they have lost it.
    VotersBehind,
    /// The other one is in sync and this one is not: it waits for it to be live.
    NotInSync,
    /// It catches up with the live.
    CatchUp,
    /// The live does not take it, and says why.
    Refused(Reason),
    /// It may ask for the role when the lease that stands is over.
    Lease,
}

impl Waits {
    /// After how long an operator should look at it: at once where it may wait for ever; none where
    /// it is over by itself, or the cause is told elsewhere.
    #[must_use]
    pub const fn patience(&self) -> Option<Duration> {
        match self {
            Self::Operator | Self::PeerLog | Self::NoRecordToFollow | Self::OtherVoters => {
                Some(Duration::ZERO)
            }
            // The other member, or the voters, may be on their way.
            Self::VotersBehind | Self::NotInSync => Some(OTHERS_PATIENCE),
            Self::Voters
            | Self::Peer
            | Self::Log
            | Self::Recovery
            | Self::Install
            | Self::CatchUp
            | Self::Refused(_)
            | Self::Lease => None,
        }
    }
}

impl fmt::Display for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Voters => f.write_str("for an answer of the voters: a majority must be up"),
            Self::Peer => f.write_str(
                "for the other member: the voters hold no record of this pair, and before one is \
                 made both must say what they hold",
            ),
            Self::Operator => f.write_str(
                "for an operator: the voters hold no record of this pair, and the two logs do not \
                 say which one is ahead; run `laelaps ha bootstrap` on the one to keep",
            ),
            Self::PeerLog => f.write_str(
                "for the other member's log: the voters hold no record of this pair, and the other \
                 one is there and has no whole log; if it does not recover but was being brought \
                 up (its `ha status` says so), run `laelaps ha bootstrap` here",
            ),
            Self::NoRecordToFollow => f.write_str(
                "for an operator: the voters hold no record of this pair, and the log here is not \
                 whole, for it was being brought up; run `laelaps ha bootstrap` on the other one",
            ),
            Self::OtherVoters => f.write_str(
                "for the voters: they hold no record of this pair, and the other member's do; \
                 check `ha.voters` on both",
            ),
            Self::Log => f.write_str("for the other member to say which log the pair has"),
            Self::Recovery => f.write_str("for its log to be recovered"),
            Self::Install => f.write_str(
                "for the whole log of the other member: this one was empty, or away for so long \
                 that there was nothing to go on from; until it is there it can't take over",
            ),
            Self::VotersBehind => f.write_str(
                "for the voters: this log has seen a newer epoch than their record, which is late \
                 or was lost; if it does not come, were their disks set back to an older state?",
            ),
            Self::NotInSync => f.write_str(
                "for the other member, which holds what was acknowledged while this one was away: \
                 start it, and only if it is lost `laelaps ha promote --force-data-loss` here",
            ),
            Self::CatchUp => f.write_str("to catch up with the live"),
            Self::Refused(reason) => write!(f, "the live does not take it: {reason}"),
            Self::Lease => f.write_str("for the last lease to be over"),
        }
    }
}

/// A member, for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The pair's name.
    pub pair: String,
    /// Its seat.
    pub node: NodeId,
    /// What it does.
    pub role: Standing,
    /// Of the record that was last seen.
    pub epoch: Option<Epoch>,
    /// Of the register.
    pub version: Option<Version>,
    /// Who is live, as the record says.
    pub live: Option<NodeId>,
    /// Who is in sync, as the record says.
    pub in_sync: Vec<NodeId>,
    /// Until this live's fence.
    pub lease_left: Option<Duration>,
    /// Each shard.
    pub shards: Vec<ShardStatus>,
    /// Most bytes that the backup is behind on a shard, at a live that is followed.
    pub lag_bytes: Option<u64>,
    /// How long it has been behind, at a live that is followed.
    pub lag: Option<Duration>,
    /// The last reigns that an operator began.
    pub forced: Vec<Forced>,
    /// The other member's card came on the connection that is up.
    pub peer_is_there: bool,
    /// What is wrong with the pair.
    pub fault: Option<Fault>,
    /// The settings that both must share differ.
    pub settings_differ: bool,
    /// What it waits for, while it is neither live nor a backup in sync.
    pub waits: Option<Waits>,
}

impl Status {
    /// Whether it does what it is there for: a live serves, a backup is in sync and follows.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        match self.role {
            Standing::Live => true,
            Standing::Backup => self.waits.is_none(),
            Standing::Joining | Standing::Fenced => false,
        }
    }
}

impl Membership {
    /// Everything that operators are shown.
    #[must_use]
    pub fn status(&self, now: Instant) -> Status {
        let record = self.record().map(|(_, record)| record);
        let left = |fence: Instant| fence.saturating_duration_since(now);
        Status {
            pair: self.config.pair.clone(),
            node: self.config.info.node,
            role: self.standing(),
            epoch: record.map(|record| record.epoch),
            version: self.election.version(),
            live: record.and_then(|record| record.live),
            in_sync: record.map_or_else(Vec::new, |r| r.in_sync.iter().map(|m| m.node).collect()),
            lease_left: self.gate().fence_at.map(left),
            shards: self.shards_status(),
            lag_bytes: self.lag_bytes(),
            lag: self.lag_bytes().map(|_| {
                self.behind_since.map_or(Duration::ZERO, |at| now.saturating_duration_since(at))
            }),
            forced: record.map_or_else(Vec::new, |record| record.forced.clone()),
            peer_is_there: self.peer().is_some(),
            fault: self.fault,
            settings_differ: self.settings_differ,
            waits: self.waits(),
        }
    }

    /// Most bytes that the backup is behind, if it follows on every shard.
    pub(super) fn lag_bytes(&self) -> Option<u64> {
        let lags = self.shards.iter().map(|heard| Some(heard.as_ref()?.report.peer?.lag_bytes));
        lags.collect::<Option<Vec<u64>>>()?.into_iter().max()
    }

    fn shards_status(&self) -> Vec<ShardStatus> {
        let all = self.shards.iter().zip(0..);
        all.map(|(heard, shard)| {
            let report = heard.as_ref().map(|heard| heard.report);
            ShardStatus {
                shard: ShardId(shard),
                stage: report.map(|report| report.stage),
                durable: report.map_or(Lsn::ZERO, |report| report.log.end),
                committed: report.map_or(Lsn::ZERO, |report| report.committed),
                backup_durable: report.and_then(|r| r.peer).map(|peer| peer.marks.durable),
            }
        })
        .collect()
    }

    fn waits(&self) -> Option<Waits> {
        if self.epoch().is_some() {
            return None;
        }
        let Some(version) = self.election.version() else { return Some(Waits::Voters) };
        if self.held.is_none() {
            return Some(Waits::Log);
        }
        let ends = self.ends();
        if ends.is_empty() {
            let is_partial = |report: &ShardReport| {
                matches!(report.stage, Stage::Standing | Stage::Following(_)) && !report.is_whole
            };
            let is_installing = self.reports().is_some_and(|all| all.iter().any(is_partial));
            return Some(match (is_installing, version) {
                (true, Version::NONE) if !self.other_has_record() => Waits::NoRecordToFollow,
                (true, _) => Waits::Install,
                (false, _) => Waits::Recovery,
            });
        }
        if version == Version::NONE {
            let Some(peer) = self.peer() else { return Some(Waits::Peer) };
            if self.other_has_record() {
                return Some(Waits::OtherVoters);
            }
            let is_partial = peer.held.is_some() && peer.ends.is_empty();
            return Some(match founder(&self.side(&ends), &Side::of(peer)) {
                Founder::Me(_) => Waits::Peer,
                Founder::NotYet if is_partial => Waits::PeerLog,
                Founder::NotYet => Waits::Peer,
                Founder::Unclear => Waits::Operator,
            });
        }
        if self.is_ahead_of_voters() {
            return Some(Waits::VotersBehind);
        }
        let (_, record) = self.record()?;
        let live_is_other = record.live.is_some_and(|live| live != self.config.info.node);
        let reports = self.reports()?;
        let follows = reports.iter().all(|report| matches!(report.stage, Stage::Following(_)));
        let refused = reports.iter().find_map(|report| report.refused);
        match (record.holds(self.config.me()), follows) {
            (true, true) if live_is_other => None,
            (false, true) => Some(Waits::CatchUp),
            (_, false) if live_is_other && refused.is_some() => refused.map(Waits::Refused),
            (true, _) => Some(Waits::Lease),
            (false, false) => Some(Waits::NotInSync),
        }
    }
}
