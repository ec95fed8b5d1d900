//! The pair's voters: real ones, on disks and links of their own.
//!
//! ```text
//!   node 0 ─ voter::Client ─┐ each directed edge by itself: ┌─ voter 1 ─ file
//!   node 1 ─ voter::Client ─┤ loss, delay, cuts             ├─ voter 2 ─ file
//!                           └───────────────────────────────┴─ ...
//! ```
//! Between them goes what goes over a wire, encoded. What stands is read off the voters themselves,
//! as no member could: the newest that any of them has applied.
//!
//! Invariant: at most a minority of disks is lost in a run, and none before all know each other.

use std::fmt;
use std::time::{Duration, Instant};

use replica::voter::{Seat, Seats};
use replica::{PairId, PairRecord, Version};

use super::Counts;
use crate::rng::Rng;
use crate::voters::Conditions;
use crate::voters::ensemble::{Ensemble, Heard};
use crate::voters::network::Node;

/// The pair's register.
pub(crate) const PAIR: PairId = PairId([1; 16]);

#[derive(Debug)]
pub(crate) struct Voters {
    rng: Rng,
    count: usize,
    ensemble: Ensemble,
    version: Version,
    record: Option<PairRecord>,
    has_lost_disk: bool,
}

impl Voters {
    /// Voters whose number and habits a seed decides.
    pub(crate) fn new(seed: u64, base: Instant) -> Self {
        let mut rng = Rng::stream(seed, "pair voters", 0);
        let conditions = Conditions {
            voters: *rng.pick(&[3, 3, 3, 5]),
            loss_permille: *rng.pick(&[0, 0, 5, 20]),
            repeat_permille: *rng.pick(&[0, 20]),
            late_permille: *rng.pick(&[0, 0, 3]),
            write_us_max: *rng.pick(&[300, 300, 3_000]),
        };
        Self::with(seed, base, rng, conditions)
    }

    /// Three that do nothing wrong but what they are told to.
    pub(crate) fn calm(seed: u64, base: Instant) -> Self {
        let rng = Rng::stream(seed, "pair voters", 0);
        let conditions = Conditions {
            voters: 3,
            loss_permille: 0,
            repeat_permille: 0,
            late_permille: 0,
            write_us_max: 300,
        };
        Self::with(seed, base, rng, conditions)
    }

    fn with(seed: u64, base: Instant, rng: Rng, conditions: Conditions) -> Self {
        Self {
            rng,
            count: conditions.voters,
            ensemble: Ensemble::new(base, seed, conditions, None),
            version: Version::NONE,
            record: None,
            has_lost_disk: false,
        }
    }

    // ---- getters --------------------------------------------------------------------------------

    pub(crate) fn seats(&self) -> Seats {
        self.ensemble.seats()
    }

    pub(crate) fn up(&self) -> impl Iterator<Item = Seat> {
        self.ensemble.up()
    }

    /// What stands.
    pub(crate) fn record(&self) -> Option<&PairRecord> {
        self.record.as_ref()
    }

    /// Its version.
    pub(crate) fn version(&self) -> Version {
        self.version
    }

    pub(crate) fn ensemble(&self) -> &Ensemble {
        &self.ensemble
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.ensemble.poll_timeout()
    }

    fn in_sync(&self) -> usize {
        self.record.as_ref().map_or(0, |record| record.in_sync.len())
    }

    // ---- inputs ---------------------------------------------------------------------------------

    pub(crate) fn ask(&mut self, now: Instant, from: (usize, u64), to: Seat, bytes: &[u8]) {
        self.ensemble.ask(now, from, to, bytes);
    }

    /// Everything that is due; what members hear of it.
    pub(crate) fn pump(&mut self, now: Instant, counts: &mut Counts) -> Result<Vec<Heard>, String> {
        while self.ensemble.step(now)? {
            let held = self.ensemble.applied(PAIR);
            if held.version > self.version {
                let before = self.in_sync();
                self.record = PairRecord::decode(&held.value).ok();
                self.version = held.version;
                counts.expands += u64::from(before < self.in_sync() && before > 0);
                counts.shrinks += u64::from(before > self.in_sync());
            }
        }
        Ok(std::iter::from_fn(|| self.ensemble.poll_heard()).collect())
    }

    // ---- faults ---------------------------------------------------------------------------------

    /// Cuts a node's way to the voters, or theirs to it, or (3) both.
    pub(crate) fn cut(&mut self, node: usize, until: Instant, directions: u64) {
        (0..self.count).for_each(|voter| self.cut_edge(node, voter, until, directions));
    }

    fn cut_edge(&mut self, node: usize, voter: usize, until: Instant, directions: u64) {
        if directions & 1 != 0 {
            self.ensemble.cut(Node::Client(node), Node::Voter(voter), until);
        }
        if directions & 2 != 0 {
            self.ensemble.cut(Node::Voter(voter), Node::Client(node), until);
        }
    }

    /// What the voters say to this node takes so much longer.
    pub(crate) fn slow_answers(&mut self, node: usize, by: Duration) {
        for voter in 0..self.count {
            self.ensemble.slow_down(Node::Voter(voter), Node::Client(node), by);
        }
    }

    /// Something goes wrong with one voter, or all of them, or one edge.
    pub(crate) fn disturb(&mut self, now: Instant, counts: &mut Counts) {
        let at = self.rng.index(self.count);
        let until = now + Duration::from_millis(self.rng.between(20, 1_500));
        match self.rng.below(16) {
            0..=2 => {
                counts.voter_crashes += 1;
                self.ensemble.crash(now, at, false);
            }
            3 | 4 => {
                counts.voter_crashes += 1;
                self.ensemble.crash(now, at, true);
            }
            5 => {
                counts.voters_down += 1;
                (0..self.count).for_each(|at| self.ensemble.crash(now, at, true));
            }
            6 | 7 => {
                counts.voter_pauses += 1;
                self.ensemble.pause(at, until);
            }
            8 => {
                counts.voter_cuts += 1;
                self.ensemble.cut_off(at, until);
            }
            9..=11 => {
                counts.voter_cuts += 1;
                let to = self.rng.index(self.count);
                self.ensemble.cut(Node::Voter(at), Node::Voter(to), until);
            }
            12..=14 => {
                counts.voter_cuts += 1;
                let (node, directions) = (self.rng.index(2), self.rng.between(1, 3));
                self.cut_edge(node, at, until, directions);
            }
            _ => self.lose_disk(now, at, counts),
        }
    }

    fn lose_disk(&mut self, now: Instant, at: usize, counts: &mut Counts) {
        if self.has_lost_disk || !self.ensemble.has_agreed() {
            return;
        }
        self.has_lost_disk = true;
        counts.voter_disks_lost += 1;
        self.ensemble.lose_disk(now, at);
    }

    pub(crate) fn mend(&mut self) {
        self.ensemble.mend();
    }

    pub(crate) fn heal(&mut self, now: Instant) {
        self.ensemble.heal(now);
    }
}

impl fmt::Display for Voters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?} {:?}", self.ensemble.standings(), self.version, self.record)
    }
}
