//! The links between voters and clients: each direction by itself.
//!
//! ```text
//!   fate(now, from, to) -> [delay, ...]     none: lost or cut; two: it comes twice
//!   once(now, from, to) -> delay            the same for what never comes twice
//! ```
//! A cut of one direction leaves the other as it is, and ends when it was said to. A question, a
//! client's or one that a voter passes on, never comes twice: it goes over a connection, and nobody
//! sends it again. Whoever sends one again would be told "not done" of what is done later.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::plan::Conditions;
use crate::rng::Rng;

/// A voter or a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Node {
    Voter(usize),
    Client(usize),
}

/// All links.
#[derive(Debug)]
pub(super) struct Network {
    rng: Rng,
    conditions: Conditions,
    cut_until: BTreeMap<(Node, Node), Instant>,
    /// What takes this much longer, on purpose.
    slow: BTreeMap<(Node, Node), Duration>,
    is_bad: bool,
    pub(super) lost: u64,
    pub(super) repeated: u64,
    pub(super) late: u64,
}

impl Network {
    pub(super) fn new(seed: u64, conditions: Conditions) -> Self {
        let rng = Rng::stream(seed, "voters-network", 0);
        let (cut_until, slow) = Default::default();
        Self { rng, conditions, cut_until, slow, is_bad: true, lost: 0, repeated: 0, late: 0 }
    }

    /// Nothing that is sent in this direction arrives, before.
    pub(super) fn cut(&mut self, from: Node, to: Node, until: Instant) {
        let cut = self.cut_until.entry((from, to)).or_insert(until);
        *cut = until.max(*cut);
    }

    /// What is sent in this direction takes so much longer from now on.
    pub(super) fn slow_down(&mut self, from: Node, to: Node, by: Duration) {
        self.slow.insert((from, to), by);
    }

    /// All cuts are mended.
    pub(super) fn mend(&mut self) {
        self.cut_until.clear();
        self.slow.clear();
    }

    /// From now on nothing goes wrong.
    pub(super) fn heal(&mut self) {
        self.mend();
        self.is_bad = false;
    }

    /// Whether nothing arrives now.
    pub(super) fn is_cut(&self, now: Instant, from: Node, to: Node) -> bool {
        self.cut_until.get(&(from, to)).is_some_and(|until| *until > now)
    }

    /// When what is sent now arrives, and how often.
    pub(super) fn fate(&mut self, now: Instant, from: Node, to: Node) -> Vec<Duration> {
        let first = self.once(now, from, to);
        let repeats = self.is_bad && matches!(from, Node::Voter(_)) && first.is_some();
        let twice = repeats && self.rng.chance(self.conditions.repeat_permille);
        self.repeated += u64::from(twice);
        let again = twice.then(|| self.arrival(from, to));
        first.into_iter().chain(again).collect()
    }

    /// When a question that is sent now arrives, if it does.
    pub(super) fn once(&mut self, now: Instant, from: Node, to: Node) -> Option<Duration> {
        let is_lost = self.is_bad && self.rng.chance(self.conditions.loss_permille);
        if is_lost || self.is_cut(now, from, to) {
            self.lost += 1;
            return None;
        }
        Some(self.arrival(from, to))
    }

    fn arrival(&mut self, from: Node, to: Node) -> Duration {
        self.delay() + self.slow.get(&(from, to)).copied().unwrap_or_default()
    }

    fn delay(&mut self) -> Duration {
        if self.is_bad && self.rng.chance(self.conditions.late_permille) {
            self.late += 1;
            return Duration::from_millis(self.rng.between(10, 3_000));
        }
        Duration::from_micros(self.rng.between(50, 2_000))
    }
}
