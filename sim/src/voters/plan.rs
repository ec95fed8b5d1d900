//! What a seed stands for: how many voters and clients, how bad the network and how often which
//! fault.

use std::time::Duration;

use replica::Canary;

use crate::rng::Rng;

/// The rules that can be broken, by name.
pub const CANARIES: &[(&str, Canary)] = &[
    ("vote-before-sync", Canary::VoteBeforeSync),
    ("vote-from-amnesia", Canary::VoteFromAmnesia),
    ("replace-in-place", Canary::ReplaceInPlace),
    ("read-stale", Canary::ReadStale),
    ("relay-stale", Canary::RelayStale),
    ("relay-unknown-denied", Canary::RelayUnknownDenied),
    ("cas-unchecked", Canary::CasUnchecked),
];

/// An ensemble: how large it is, and how bad its network and disks are.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    /// Voters: 3, 5 or 7.
    pub voters: usize,
    /// Letters lost, of a thousand.
    pub loss_permille: u32,
    /// Letters that come twice, of a thousand.
    pub repeat_permille: u32,
    /// Letters that take up to seconds, of a thousand.
    pub late_permille: u32,
    /// Longest usual write, in µs.
    pub write_us_max: u64,
}

/// The world of a seed.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The voters.
    pub conditions: Conditions,
    /// Clients.
    pub clients: usize,
    /// How long faults go on.
    pub faults_for: Duration,
    /// Mean time between two faults.
    pub fault_every: Duration,
    /// Bytes of a value.
    pub value_bytes: usize,
    /// Disks that are lost and not replaced, at most.
    pub disks_lost_max: usize,
    /// Mean time until an operator looks for disks to replace.
    pub operator_every: Duration,
    /// Whether faults begin before the voters have founded their ensemble.
    pub early: bool,
}

impl Plan {
    /// What a seed stands for.
    pub fn draw(seed: u64) -> Self {
        let mut rng = Rng::stream(seed, "voters-plan", 0);
        let voters = *rng.pick(&[3, 3, 3, 5, 5, 7]);
        let conditions = Conditions {
            voters,
            loss_permille: *rng.pick(&[0, 5, 30, 150]),
            repeat_permille: *rng.pick(&[0, 10, 100]),
            late_permille: *rng.pick(&[0, 2, 20]),
            write_us_max: *rng.pick(&[300, 3_000, 30_000]),
        };
        Self {
            conditions,
            clients: rng.between(2, 4) as usize,
            faults_for: Duration::from_millis(rng.between(5_000, 15_000)),
            fault_every: Duration::from_millis(rng.between(60, 600)),
            value_bytes: *rng.pick(&[16, 500, 5_000, 60_000]),
            disks_lost_max: rng.below(voters as u64 / 2 + 1) as usize,
            early: rng.one_in(4),
            operator_every: Duration::from_millis(*rng.pick(&[100, 500, 2_000, 60_000])),
        }
    }
}
