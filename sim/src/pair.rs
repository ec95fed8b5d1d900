//! Two members of a pair and their voters: who is live, replication, rejoin and takeover; with logs
//! alone, or with whole brokers' shards and their clients.
//!
//! ```text
//!   voters: 3 or 5 of raft, each with its disk     ledger  what was acknowledged, at which level;
//!      ▲ swaps, reads                         ▲            what was committed; what was exported
//!      │   each directed edge by itself       │
//!   node 0 ─ Membership ◀───── cards ─────▶ Membership ─ node 1      each by its own clock
//!            shard 0 ─ Journal + Live ◀─ wire: delay, cut, reset ─▶ Backup ─ shard 0
//!            shard 1 ─ ...                                          ...
//!      └─ disk: tears, loses, reorders, hangs, fails                   └─ disk
//!
//!   world   the moments, one after the other     faults  what goes wrong in them, by chance
//!   scenes  what goes wrong on purpose, for what chance rarely brings about
//! ```
//! Real `journal` and `replica` on the simulator's disks, from empty directories and voters that
//! have not met on. Faults: crashes and power cuts of one and both, pauses, wedged shards, disks
//! that hang, fail, and are lost, links cut and reset, ways to and from the voters cut, some or
//! all of them, voters that crash, stand still, lose their disk and each other, clocks that drift
//! as far as they may, switchovers.
//!
//! With brokers (`traffic`, `served`) clients send and settle at whoever serves, and the checkers
//! of the whole world judge what they hear against what both disks hold.
//!
//! Checked: at most one member's gate is open, at each moment (I1). Each time somebody goes live
//! and at the end: what was acknowledged at `replicated-sync` is in the log; at `replicated` unless
//! this member crashed since; nothing acknowledged vanished from both logs and the exports; what
//! was committed is a prefix, by chain, of every later live's log; what a backup hands to its state
//! was committed. A recovery that finds damage, and a process that ends though its disk did nothing
//! wrong, are failures too. After the faults both must come in sync by themselves, with the same
//! batches.
//!
//! Invariant: the same seed is the same run, whose moments are hashed into its trace.

mod counts;
mod faults;
mod history;
mod host;
mod ledger;
mod node;
mod scenes;
mod served;
mod shard;
mod traffic;
mod voters;
mod wires;
mod world;

use std::fmt;
use std::time::{Duration, Instant};

pub use counts::Counts;
pub use scenes::{Cast, SCENES, Scene, play};
use world::World;

use crate::letter::LetterId;

/// Shards of the pair's log.
pub(crate) const SHARDS: u16 = 2;

/// A rule, broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Canary {
    /// One of the journal's.
    Journal(journal::Canary),
    /// One of the pair's.
    Replica(replica::Canary),
    /// One of the broker's.
    Broker(broker::canary::Canary),
    /// R14: what a rejoin cuts off is not exported.
    TailDropped,
}

impl Canary {
    /// Those that can be named. Seeds catch the first ones; `tail-dropped` rarely, the last two
    /// with brokers' shards: for these and all others there is a scene, see [`SCENES`].
    pub const ALL: [(&'static str, Self); 7] = {
        use journal::Canary as J;
        use replica::Canary as R;
        [
            ("cut-by-length", Self::Replica(R::CutByLength)),
            ("challenge-at-once", Self::Replica(R::ChallengeAtOnce)),
            ("epoch-table-unread", Self::Journal(J::EpochTableUnread)),
            ("follower-never-holds-back", Self::Journal(J::FollowerNeverHoldsBack)),
            ("tail-dropped", Self::TailDropped),
            ("head-untold", Self::Broker(broker::canary::Canary::HeadUntold)),
            ("head-told-early", Self::Broker(broker::canary::Canary::HeadToldEarly)),
        ]
    };

    const fn journal(self) -> Option<journal::Canary> {
        match self {
            Self::Journal(canary) => Some(canary),
            Self::Replica(_) | Self::Broker(_) | Self::TailDropped => None,
        }
    }

    const fn broker(self) -> Option<broker::canary::Canary> {
        match self {
            Self::Broker(canary) => Some(canary),
            Self::Journal(_) | Self::Replica(_) | Self::TailDropped => None,
        }
    }

    const fn replica(self) -> Option<replica::Canary> {
        match self {
            Self::Replica(canary) => Some(canary),
            Self::Journal(_) | Self::Broker(_) | Self::TailDropped => None,
        }
    }
}

/// A run in which every promise was kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What happened.
    pub counts: Counts,
    /// All moments, in a number.
    pub trace: u64,
    /// Virtual time that passed.
    pub took: Duration,
}

/// A promise was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Of which seed.
    pub seed: u64,
    /// Milliseconds after the beginning.
    pub at_ms: u128,
    /// Which.
    pub what: String,
    /// What happened to the letter that was followed, and all reigns.
    pub story: Vec<String>,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {} after {} ms: {}", self.seed, self.at_ms, self.what)
    }
}

/// Carries out the run of a seed.
///
/// # Errors
/// Which promise was broken, and when.
pub fn run(seed: u64, canary: Option<Canary>, base: Instant) -> Result<Report, Broken> {
    World::new(seed, canary, base, false).report(World::live_through)
}

/// The same with whole brokers' shards, and clients that go to whoever serves. A letter that is
/// followed has its story told if the run fails.
///
/// # Errors
/// Which promise was broken, and when.
pub fn run_served(
    seed: u64,
    canary: Option<Canary>,
    follow: Option<LetterId>,
    base: Instant,
) -> Result<Report, Broken> {
    let mut world = World::new(seed, canary, base, true);
    world.follow(follow);
    world.report(World::live_through)
}
