//! What a member's shard is in this world: a log alone, or a whole broker's.

use std::fmt;
use std::time::Instant;

use journal::{DiskDone, Epoch, Lsn, ShardId};
use replica::member::{Duty, ShardReport};
use replica::wire::Frame;

use super::ledger::{Ledger, View};
use super::served::{Served, Told};
use super::shard::{Ground, Shard};
use crate::rng::Rng;

/// One shard.
#[derive(Debug)]
pub(crate) enum Host {
    /// A log, with records that nobody reads; the ledger knows what was promised of them.
    Log(Box<Shard>),
    /// A broker's, with clients; the checkers of the whole world know.
    Broker(Box<Served>),
}

macro_rules! either {
    ($self:ident, $shard:ident => $what:expr) => {
        match $self {
            Self::Log($shard) => $what,
            Self::Broker($shard) => $what,
        }
    };
}

impl Host {
    // ---- What the node asks ---------------------------------------------------------------------

    pub(crate) fn broker(&mut self) -> Option<&mut Served> {
        match self {
            Self::Log(_) => None,
            Self::Broker(shard) => Some(shard),
        }
    }

    /// What the log holds, for the ledger.
    pub(crate) fn view(&self) -> Option<&View> {
        match self {
            Self::Log(shard) => Some(shard.view()),
            Self::Broker(_) => None,
        }
    }

    pub(crate) fn report(&self) -> ShardReport {
        either!(self, shard => shard.report())
    }

    pub(crate) fn live_epoch(&self) -> Option<Epoch> {
        either!(self, shard => shard.live_epoch())
    }

    pub(crate) fn is_down(&self) -> bool {
        either!(self, shard => shard.is_down())
    }

    pub(crate) fn failure(&self) -> Option<String> {
        either!(self, shard => shard.failure())
    }

    /// Whether its process is to begin anew, though nothing has failed.
    pub(crate) fn must_give_up(&self) -> bool {
        match self {
            Self::Log(_) => false,
            Self::Broker(shard) => shard.must_give_up(),
        }
    }

    /// Whether the other one lacks more than its log has. A log alone is never recycled.
    pub(crate) fn finds_too_far_behind(&self) -> bool {
        match self {
            Self::Log(_) => false,
            Self::Broker(shard) => shard.is_too_far_behind(),
        }
    }

    pub(crate) fn wants_to_follow(&self) -> bool {
        either!(self, shard => shard.wants_to_follow())
    }

    pub(crate) fn waits_for_nothing(&self) -> bool {
        either!(self, shard => shard.waits_for_nothing())
    }

    pub(crate) fn committed(&self) -> Lsn {
        either!(self, shard => shard.committed())
    }

    pub(crate) fn end(&self) -> Lsn {
        either!(self, shard => shard.end())
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        either!(self, shard => shard.poll_timeout())
    }

    pub(crate) fn take_closed(&mut self) -> bool {
        either!(self, shard => shard.take_closed())
    }

    pub(crate) fn poll_told(&mut self) -> Option<(ShardId, Told)> {
        let shard = self.broker()?;
        Some((shard.id(), shard.poll_told()?))
    }

    // ---- What the node does ---------------------------------------------------------------------

    pub(crate) fn crash(&mut self) {
        either!(self, shard => shard.crash());
    }

    pub(crate) fn tell(&mut self, due: Instant, duty: Duty) {
        either!(self, shard => shard.tell(due, duty));
    }

    pub(crate) fn recover(&mut self, ground: &Ground<'_>) {
        either!(self, shard => shard.recover(ground));
    }

    pub(crate) fn handle_disk(&mut self, now: Instant, done: DiskDone) {
        either!(self, shard => shard.handle_disk(now, done));
    }

    pub(crate) fn pump(&mut self, ground: &mut Ground<'_>) -> Result<bool, String> {
        either!(self, shard => shard.pump(ground))
    }

    pub(crate) fn work(&mut self, now: Instant, rng: &mut Rng, ledger: &mut Ledger) {
        match self {
            Self::Log(shard) => shard.work(now, rng, ledger),
            Self::Broker(_) => {}
        }
    }

    // ---- Connections to the other member --------------------------------------------------------

    pub(crate) fn connected_live(&mut self, now: Instant) -> u64 {
        match self {
            Self::Log(shard) => shard.connected_live(now),
            Self::Broker(shard) => shard.connected(now),
        }
    }

    pub(crate) fn connected_backup(&mut self, now: Instant) {
        match self {
            Self::Log(shard) => shard.connected_backup(now),
            Self::Broker(shard) => drop(shard.connected(now)),
        }
    }

    pub(crate) fn disconnected_live(&mut self, now: Instant, session: u64) {
        match self {
            Self::Log(shard) => shard.disconnected_live(now, session),
            Self::Broker(shard) => shard.disconnected(now),
        }
    }

    pub(crate) fn disconnected_backup(&mut self, now: Instant) {
        match self {
            Self::Log(shard) => shard.disconnected_backup(),
            Self::Broker(shard) => shard.disconnected(now),
        }
    }

    pub(crate) fn poll_frame(&mut self) -> Option<Frame> {
        either!(self, shard => shard.poll_frame())
    }

    pub(crate) fn hear_as_live(&mut self, now: Instant, session: u64, frame: Frame) {
        match self {
            Self::Log(shard) => shard.hear_as_live(now, session, frame),
            Self::Broker(shard) => shard.hear(now, frame),
        }
    }

    pub(crate) fn hear_as_backup(&mut self, now: Instant, frame: Frame) {
        match self {
            Self::Log(shard) => shard.hear_as_backup(now, frame),
            Self::Broker(shard) => shard.hear(now, frame),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        either!(self, shard => shard.fmt(f))
    }
}
