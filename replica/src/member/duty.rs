//! What a member asks of its shards, and what each of them says of itself.
//!
//! ```text
//!   Membership ── Duty: what to be from now on ──▶ every shard
//!              ◀── ShardReport: what it is now ──  each shard, on change and every report_every()
//! ```
//! Both are states and not events: a newer one replaces the one before, one that was skipped is not
//! missed, one that comes twice does nothing. So a host may carry them in a cell for each shard
//! instead of a queue, as long as they keep their order.
//!
//! A shard works towards its duty:
//! ```text
//!                       Format        Stand           Follow             Reign(e)
//!   no log              format        -               -                  -
//!   recovering          -             goes on         goes on            goes on
//!   standing, following -             disconnects     connects, follows  Backup::reign(e), once it
//!                                                                        may_reign; then live
//!   live in epoch e     -             both: give the journal up, let     set_required, open or
//!                                     what is in flight end, recover     closed, as it says
//! ```
//! Invariant: a shard reports what is so *after* it has done it. That a shard waits for a disk, or
//! has stopped serving, is believed only when its report says so.

use std::time::Instant;

use journal::{Epoch, Journal, JournalUuid, Lsn};

use super::Round;
use crate::backup::Backup;
use crate::card::{HeldLog, LogEnd};
use crate::live::Live;
use crate::record::Mark;
use crate::wire::{Marks, Reason};

/// What every shard of this member is to be from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// The directory is empty: format it for this log, with the journal uuid of the configuration;
    /// then [`Membership::handle_formatted`](super::Membership::handle_formatted).
    Format(HeldLog),
    /// Recover the log and stand, connected to nobody.
    Stand,
    /// Recover the log, keep a connection to the other member's stream, and follow it.
    Follow,
    /// Begin a reign, or go on with it.
    Reign(Reign),
}

/// How to reign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reign {
    /// In which epoch. It is begun durably before anything else is done (R13).
    pub epoch: Epoch,
    /// Whom to wait for before anything is acknowledged above level `sync`:
    /// [`Live::set_required`](crate::live::Live::set_required).
    pub required: Option<Requirement>,
    /// Whether clients are served.
    pub service: Service,
    /// Fewer members are in sync than the configuration asks for: take nothing from producers, and
    /// acknowledge nothing.
    pub is_short: bool,
}

/// A disk to be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// Answered by [`ShardReport::obeyed`].
    pub round: Round,
    /// Whose disk.
    pub member: JournalUuid,
}

/// Whether a live serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// No journal work, no answer, no delivery, no credit.
    Closed,
    /// All of it, while the gate is open.
    Open,
    /// Nothing new is taken, no credit given and nothing delivered; what was taken is answered, and
    /// settlements are.
    Draining,
}

/// What a shard does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Its log is being recovered, or cut, or given up.
    Recovering,
    /// Its log is whole, and nobody is followed.
    Standing,
    /// It follows a live of this epoch.
    Following(Epoch),
    /// Its reign in this epoch is durable.
    Live(Epoch),
    /// Its disk has failed: the process is about to end.
    Failed,
}

/// One shard, as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardReport {
    /// What it does.
    pub stage: Stage,
    /// How far its log goes; of no meaning while it recovers.
    pub log: LogEnd,
    /// Its log is a whole state: it is not being brought up from the middle of another's.
    pub is_whole: bool,
    /// Everything below is durable on every member in sync, as far as this one knows.
    pub committed: Lsn,
    /// At a live: a place not beyond `committed`, with the chain there.
    pub watermark: Option<Mark>,
    /// Which part of [`Reign::service`] it carries out now.
    pub service: Service,
    /// While draining: nothing that was taken waits for its answer any more.
    pub is_drained: bool,
    /// The newest requirement that it carries out, and how far it had committed when it began to.
    pub obeyed: Option<(Round, Lsn)>,
    /// The other member's stream, at a live.
    pub peer: Option<PeerReport>,
    /// The required backup has made no progress for
    /// [`ACK_PATIENCE`](crate::limits::ACK_PATIENCE): it is to be put out of the set.
    pub is_stalled: bool,
    /// A newer epoch that the other member's log knows.
    pub deposed_by: Option<Epoch>,
    /// Why the last connection to the live ended, at a backup.
    pub refused: Option<Reason>,
    /// Since when the oldest write to the journal is under way.
    pub writing_since: Option<Instant>,
}

/// A backup that follows a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerReport {
    /// Of which connection.
    pub session: u64,
    /// Whose disk.
    pub member: JournalUuid,
    /// How far it is.
    pub marks: Marks,
    /// Bytes of the log that it has not made durable.
    pub lag_bytes: u64,
}

/// What only the host of a live shard knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hosted {
    /// See [`ShardReport::service`].
    pub service: Service,
    /// See [`ShardReport::is_drained`].
    pub is_drained: bool,
    /// See [`ShardReport::obeyed`].
    pub obeyed: Option<(Round, Lsn)>,
    /// See [`ShardReport::deposed_by`].
    pub deposed_by: Option<Epoch>,
}

impl ShardReport {
    /// A shard whose log is being recovered, or given up.
    #[must_use]
    pub const fn recovering() -> Self {
        Self {
            stage: Stage::Recovering,
            log: LogEnd { epoch: Epoch(0), end: Lsn::ZERO },
            is_whole: false,
            committed: Lsn::ZERO,
            watermark: None,
            service: Service::Closed,
            is_drained: false,
            obeyed: None,
            peer: None,
            is_stalled: false,
            deposed_by: None,
            refused: None,
            writing_since: None,
        }
    }

    /// A shard whose disk has failed.
    #[must_use]
    pub const fn failed() -> Self {
        Self { stage: Stage::Failed, ..Self::recovering() }
    }

    /// A shard that stands or follows; `refused` is the reason of the last
    /// [`BackupEvent::Closed`](crate::backup::BackupEvent::Closed) since it followed last.
    #[must_use]
    pub fn of_backup(backup: &Backup, refused: Option<Reason>) -> Self {
        let follower = backup.follower();
        let (epoch, _) = follower.epochs().newest();
        let stage = match (follower.poisoned(), backup.is_following(), backup.is_turning()) {
            (Some(_), ..) => return Self::failed(),
            (None, true, _) => Stage::Following(epoch),
            (None, false, true) => Stage::Recovering,
            (None, false, false) => Stage::Standing,
        };
        Self {
            stage,
            log: LogEnd { epoch, end: follower.durable() },
            is_whole: follower.is_whole(),
            committed: backup.committed(),
            refused: refused.filter(|_| !backup.is_following()),
            ..Self::recovering()
        }
    }

    /// A shard whose reign is durable.
    #[must_use]
    pub fn of_live(live: &Live, journal: &Journal, hosted: Hosted) -> Self {
        if journal.poisoned().is_some() {
            return Self::failed();
        }
        let (epoch, _) = journal.epochs().newest();
        let end = live.end();
        let peer = live.following().map(|following| PeerReport {
            session: following.session,
            member: following.member,
            marks: following.marks,
            lag_bytes: end.since(following.marks.durable.min(end)),
        });
        Self {
            stage: Stage::Live(epoch),
            log: LogEnd { epoch, end: journal.durable() },
            is_whole: true,
            committed: live.committed(),
            watermark: live.watermark(),
            service: hosted.service,
            is_drained: hosted.is_drained,
            obeyed: hosted.obeyed,
            peer,
            is_stalled: live.is_stalled(),
            deposed_by: hosted.deposed_by,
            refused: None,
            writing_since: journal.writing_since(),
        }
    }
}
