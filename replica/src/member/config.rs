//! What a member is given, and what it says to its host beside what its shards have to do.

use std::fmt;
use std::time::{Duration, Instant};

use journal::{Epoch, JournalUuid};

use crate::card::HeldLog;
use crate::election::Refused;
use crate::lease::LeaseTerms;
use crate::record::{Member, MemberInfo};

/// What a member brings along.
#[derive(Clone, Debug)]
pub struct MemberConfig {
    /// The pair's name.
    pub pair: String,
    /// The installation: two pairs of one name stay apart.
    pub cluster: [u8; 16],
    /// Its seat, and how it is reached.
    pub info: MemberInfo,
    /// The directory's number: what it has, or what the host has drawn for it to be formatted with.
    pub journal: JournalUuid,
    /// Drawn at each start of the process.
    pub boot: [u8; 16],
    /// Of the settings that both members must share: any digest of them.
    pub settings: [u8; 32],
    /// The pair's lease.
    pub terms: LeaseTerms,
    /// No earlier life of this member can still run: its directory is on this machine and locked.
    pub is_sole: bool,
    /// Members in sync without which nothing is taken: 1 or 2.
    pub in_sync_min: usize,
    /// What a new pair is founded as, if this member is to found it: a log id that was drawn, and
    /// the sizes that are configured.
    pub founding: HeldLog,
    /// Chance, for the pauses between tries.
    pub seed: u64,
}

impl MemberConfig {
    /// This member, with its disk.
    #[must_use]
    pub const fn me(&self) -> Member {
        Member { node: self.info.node, journal: self.journal }
    }
}

/// Until when, and whether, this member's cores may serve. A core whose clock is at or beyond
/// `fence_at`, or that finds none, does nothing for clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gate {
    /// None: closed.
    pub fence_at: Option<Instant>,
}

/// Why the other member's card can't be this pair's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It has another pair name.
    OtherPair,
    /// It has another cluster id.
    OtherCluster,
    /// It says that it has this member's seat.
    SameSeat,
    /// It has this member's disk: one directory is a copy of the other.
    SameDisk,
    /// It holds another log, or one of other sizes.
    OtherLog,
    /// This member's directory is not of the log that the voters name.
    NotThePairsLog,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OtherPair => "the peer has another pair name: make `ha.pair` the same on both",
            Self::OtherCluster => "the peer is of another cluster: check `ha.peer` on both",
            Self::SameSeat => "the peer says it is this very member: give each its own `ha.node`",
            Self::SameDisk => {
                "the peer has this member's disk: one directory is a copy of the other; empty one"
            }
            Self::OtherLog => {
                "the peer holds another log: empty the directory of the one that is to follow"
            }
            Self::NotThePairsLog => {
                "this directory holds another log than the pair's: move it away to join the pair"
            }
        })
    }
}

/// Something for the log and the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberEvent {
    /// It has won the role.
    Elected(Epoch),
    /// It serves.
    Serving(Epoch),
    /// It stops serving; it may go on.
    Fenced(Epoch),
    /// Its reign is over.
    Deposed(Epoch),
    /// The voters have lost the pair's record.
    RecordLost,
    /// The voters hold another set of members to be in sync: so many.
    InSync(usize),
    /// A renewal was won so long after it was sent.
    Renewed(Duration),
    /// A shard is silent, or a write stands: no renewal until that ends.
    Unwell,
    /// It gives the role away: its disk has failed or stands.
    GivesUp(Epoch),
    /// The role is not taken by an operator's word, although that was asked for: why.
    ForceRefused(Refused),
    /// Something is wrong with the pair, or is no longer.
    Fault(Option<Fault>),
    /// The settings that both members must share differ, or do no longer.
    SettingsDiffer(bool),
}
