//! The links between voters and clients: each direction by itself.
//!
//! ```text
//!   fate(from, to) -> [delay, ...]     none: lost or cut; two: it comes twice
//! ```
//! A cut of one direction leaves the other as it is. A client's question never comes twice: it goes
//! over a connection, and nobody sends it again. Whoever sends one again would be told "not done"
//! of what is done later.

use std::collections::BTreeSet;
use std::time::Duration;

use super::plan::Plan;
use crate::rng::Rng;

/// A voter or a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Node {
    Voter(usize),
    Client(usize),
}

/// All links.
#[derive(Debug)]
pub(super) struct Network {
    rng: Rng,
    cut: BTreeSet<(Node, Node)>,
    is_bad: bool,
    pub(super) lost: u64,
    pub(super) repeated: u64,
    pub(super) late: u64,
}

impl Network {
    pub(super) fn new(seed: u64) -> Self {
        let rng = Rng::stream(seed, "voters-network", 0);
        Self { rng, cut: BTreeSet::new(), is_bad: true, lost: 0, repeated: 0, late: 0 }
    }

    /// Nothing arrives in this direction any more.
    pub(super) fn cut(&mut self, from: Node, to: Node) {
        self.cut.insert((from, to));
    }

    /// All cuts are mended.
    pub(super) fn mend(&mut self) {
        self.cut.clear();
    }

    /// From now on nothing goes wrong.
    pub(super) fn heal(&mut self) {
        self.mend();
        self.is_bad = false;
    }

    /// When what is sent now arrives, and how often.
    pub(super) fn fate(&mut self, plan: &Plan, from: Node, to: Node) -> Vec<Duration> {
        if self.cut.contains(&(from, to)) || self.is_bad && self.rng.chance(plan.loss_permille) {
            self.lost += 1;
            return Vec::new();
        }
        let repeats = self.is_bad && matches!(from, Node::Voter(_));
        let twice = repeats && self.rng.chance(plan.repeat_permille);
        self.repeated += u64::from(twice);
        (0..1 + u8::from(twice)).map(|_| self.delay(plan)).collect()
    }

    fn delay(&mut self, plan: &Plan) -> Duration {
        if self.is_bad && self.rng.chance(plan.late_permille) {
            self.late += 1;
            return Duration::from_millis(self.rng.between(10, 3_000));
        }
        Duration::from_micros(self.rng.between(50, 2_000))
    }
}
