//! How a backup comes to be waited for, before the voters are asked to take it in (R8).
//!
//! ```text
//!          follows on every shard,      every shard waits for it      durable beyond all
//!          nearly there                 since this round              of these
//!   Idle ────────────────────▶ Asking ─────────────────────▶ Reaching ──────────▶ Asked of the
//!     ▲                          │                              │                 voters
//!     └──── a session is over ───┴──────────────────────────────┘                   │
//!     └──── it is in the record, or can't come into it any more ────────────────────┘
//! ```
//! Whom a live waits for is the maximal in-sync set (R6): [`beside`](crate::Election::beside) knows
//! all of it that a swap may have made or may yet make. This adds the member that is not named to
//! the voters yet.
//!
//! Invariants: before the voters are asked for the larger set every shard has begun to wait for the
//! peer, and the peer is durable beyond all that any shard had committed without it (R8). What is
//! known of the peer belongs to one session of each shard: where one of them ends, the addition
//! begins again (R9).

use journal::{JournalUuid, Lsn};

use super::{PeerReport, ShardReport};
use crate::limits::NEAR_BYTES;

/// Which time the shards were told to wait: an answer to an earlier one says nothing, for an order
/// to relax may lie between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Round(pub u64);

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Idle,
    /// The shards are being told.
    Asking {
        peer: Joining,
    },
    /// The peer has yet to be durable beyond these.
    Reaching {
        peer: Joining,
        positions: Vec<Lsn>,
    },
    /// The voters are asked, with the next swap.
    Asked {
        peer: Joining,
    },
}

/// A backup that is to come into the set.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Joining {
    member: JournalUuid,
    /// Its session on each shard.
    sessions: Vec<u64>,
}

/// What the election has to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// This disk follows, in a session of its own.
    Joined(JournalUuid),
    /// ... and may be taken in now.
    Expand(JournalUuid),
    /// That session is over.
    Left,
}

/// The addition of a backup to the in-sync set, for all shards of a live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Barrier {
    state: State,
    round: Round,
}

impl Default for Barrier {
    fn default() -> Self {
        Self { state: State::Idle, round: Round(1) }
    }
}

impl Barrier {
    /// The disk that every shard has to wait for because of this.
    pub(super) fn required(&self) -> Option<JournalUuid> {
        match &self.state {
            State::Idle => None,
            State::Asking { peer } | State::Reaching { peer, .. } | State::Asked { peer } => {
                Some(peer.member)
            }
        }
    }

    /// The round that is under way, or was last.
    pub(super) const fn round(&self) -> Round {
        self.round
    }

    /// A reign has ended: nothing is asked any more.
    pub(super) fn reset(&mut self) {
        self.state = State::Idle;
    }

    /// Goes on with what the shards say; none where one of them is not live. `may_begin`: nobody
    /// else is in sync or may be, and the other member means to stay.
    pub(super) fn advance(
        &mut self,
        shards: Option<&[ShardReport]>,
        may_begin: bool,
    ) -> Option<Step> {
        let peers: Option<Vec<PeerReport>> =
            shards.and_then(|shards| shards.iter().map(|shard| shard.peer).collect());
        match &self.state {
            State::Idle => {
                let peer = joining(&peers?)?;
                let member = peer.member;
                if !may_begin {
                    return None;
                }
                self.round.0 += 1;
                self.state = State::Asking { peer };
                Some(Step::Joined(member))
            }
            State::Asking { peer } | State::Reaching { peer, .. } | State::Asked { peer }
                if !peers.as_ref().is_some_and(|peers| peer.is_in(peers)) =>
            {
                self.state = State::Idle;
                Some(Step::Left)
            }
            State::Asking { peer } => {
                let obeyed = |shard: &ShardReport| {
                    let (_, committed) = shard.obeyed.filter(|(round, _)| *round == self.round)?;
                    Some(committed)
                };
                let positions = shards?.iter().map(obeyed).collect::<Option<Vec<Lsn>>>()?;
                self.state = State::Reaching { peer: peer.clone(), positions };
                self.advance(shards, may_begin)
            }
            State::Reaching { peer, positions } => {
                let peers = peers?;
                let mut beyond = peers.iter().zip(positions);
                if !beyond.all(|(peer, position)| peer.marks.durable >= *position) {
                    return None;
                }
                let peer = peer.clone();
                let member = peer.member;
                self.state = State::Asked { peer };
                Some(Step::Expand(member))
            }
            State::Asked { .. } => None,
        }
    }

    /// The peer makes no progress: while nothing was asked of the voters, it begins anew later.
    pub(super) fn give_up(&mut self) -> Option<Step> {
        match self.state {
            State::Asking { .. } | State::Reaching { .. } => {
                self.state = State::Idle;
                Some(Step::Left)
            }
            State::Idle | State::Asked { .. } => None,
        }
    }

    /// The voters hold it to be in sync, or it was put out again: the record says who is waited
    /// for.
    pub(super) fn handle_resolved(&mut self) {
        if let State::Asked { .. } = self.state {
            self.state = State::Idle;
        }
    }

    /// Whether the voters are being asked.
    pub(super) const fn is_asked(&self) -> bool {
        matches!(self.state, State::Asked { .. })
    }
}

/// The disk that follows on every shard, and is near on each.
fn joining(peers: &[PeerReport]) -> Option<Joining> {
    let first = peers.first()?;
    let is_same = peers.iter().all(|peer| peer.member == first.member);
    let is_near = peers.iter().all(|peer| peer.lag_bytes <= NEAR_BYTES);
    let sessions = peers.iter().map(|peer| peer.session).collect();
    (is_same && is_near).then_some(Joining { member: first.member, sessions })
}

impl Joining {
    fn is_in(&self, peers: &[PeerReport]) -> bool {
        self.sessions.len() == peers.len()
            && peers
                .iter()
                .zip(&self.sessions)
                .all(|(peer, session)| peer.member == self.member && peer.session == *session)
    }
}
