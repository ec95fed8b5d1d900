//! The result of a comparison, as its JSON has it, and what is worked out from its rounds.
//!
//! ```text
//!   {"schema": "laelaps.perf/1", "kind": "compare",
//!    "verdict": {..}, "machine": {..}, "place": {..}, "plan": {..},
//!    "variants": [{"name": "sync", "pooled": Block}, ..],
//!    "rounds":   [{"order": [..], "blocks": {"sync": {"dropped": null, ..}, ..}}, ..],
//!    "ratios":   {"sync/floor": {"p50": 1.2, "p90": .., "p99": .., "p999": ..,
//!                                "low": 1.1, "high": 1.3,            of p50, 5-95 %
//!                                "intervals": {"p50": [1.1, 1.3], ..}, "pairs": 12,
//!                                "rate": {..}, "cpu_server": {..}}, ..}}
//! ```
//! Invariants: only blocks that were not dropped are in ratios and pooled blocks; a ratio is the
//! median of ratios taken within rounds, of pairs where neither block was dropped. Failure: a
//! variant without blocks has no ratio.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::block::{Block, Percentiles};
use crate::machine::{Machine, Noise, Place};
use crate::schedule::Arrivals;
use crate::stats::{Estimate, estimate};
use crate::verdict::Verdict;

/// A comparison's whole result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// [`crate::block::SCHEMA`].
    pub schema: String,
    /// `compare`.
    pub kind: String,
    /// Whether it may be believed.
    pub verdict: Verdict,
    /// The machine.
    pub machine: Machine,
    /// The disk.
    pub place: Place,
    /// What was asked for.
    pub plan: Plan,
    /// Who was compared, with all blocks of each put together.
    pub variants: Vec<Variant>,
    /// Each round, dropped ones too.
    pub rounds: Vec<Round>,
    /// By the names of two variants, `sync/floor`.
    pub ratios: BTreeMap<String, Ratio>,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Pairs that have to be clean for each ratio.
    pub pairs: usize,
    /// Seconds of a block, without its warm-up.
    pub block_s: f64,
    /// Seconds of warm-up before each block.
    pub warm_up_s: f64,
    /// Bytes of a message's body, or of a floor's request.
    pub size: usize,
    /// Messages a second for every variant; none: closed loops.
    pub rate: Option<f64>,
    /// Closed-loop rates that were measured before, where the rate was chosen from them.
    pub probed: BTreeMap<String, f64>,
    /// The highest rate of an open loop that every variant held, where the rate is half of it.
    #[serde(default)]
    pub saturation: Option<f64>,
    /// Who did not hold a higher one.
    #[serde(default)]
    pub gave_way: Option<String>,
    /// Producers, each with a connection of its own.
    pub connections: usize,
    /// Messages that each may have under way.
    pub in_flight: usize,
    /// Threads of the client; one where a result does not say it.
    #[serde(default = "one")]
    pub threads: usize,
    /// How send times are spread.
    pub arrivals: Arrivals,
    /// Chance of the orders, arrivals and intervals.
    pub seed: u64,
}

fn one() -> usize {
    1
}

/// One who was compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Variant {
    /// Its name in `ratios`.
    pub name: String,
    /// What it is, in words.
    pub what: String,
    /// All its clean blocks together.
    pub pooled: Option<Block>,
}

/// One block of each variant, side by side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// The order in which they ran.
    pub order: Vec<String>,
    /// By name.
    pub blocks: BTreeMap<String, BlockSummary>,
}

impl Round {
    /// Which blocks do not count, in words.
    pub(super) fn noise(&self) -> String {
        let dropped = |(name, block): (&String, &BlockSummary)| {
            block.dropped.as_ref().map(|objection| format!("{name}: {objection}"))
        };
        let dropped: Vec<String> = self.blocks.iter().filter_map(dropped).collect();
        if dropped.is_empty() { "clean".to_owned() } else { dropped.join(", ") }
    }
}

/// What a block came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlockSummary {
    /// Messages that were due.
    pub offered: u64,
    /// Messages answered well.
    pub completed: u64,
    /// Messages never answered, refused, or not sent.
    pub failed: u64,
    /// Messages completed a second.
    pub rate: f64,
    /// From the intended time, nanoseconds.
    pub intended_ns: Percentiles,
    /// From the actual send, nanoseconds.
    pub actual_ns: Percentiles,
    /// Our own lag, nanoseconds.
    pub lag_ns: Percentiles,
    /// CPU of the client a message, nanoseconds, without its watching of the clock.
    pub cpu_client_ns: f64,
    /// CPU of the server a message, nanoseconds.
    pub cpu_server_ns: Option<f64>,
    /// What the machine did meanwhile.
    pub noise: Noise,
    /// Why it does not count, if it does not; nor does any pair with it.
    pub dropped: Option<String>,
}

impl BlockSummary {
    /// Of a block.
    #[must_use]
    pub fn of(block: &Block, noise: Noise) -> Self {
        Self {
            offered: block.offered,
            completed: block.completed,
            failed: block.lost + block.refused + block.unsent,
            rate: block.achieved(),
            intended_ns: Percentiles::of(&block.intended),
            actual_ns: Percentiles::of(&block.actual),
            lag_ns: Percentiles::of(&block.lag),
            cpu_client_ns: block.cpu_client_ns_per_message(),
            cpu_server_ns: block.cpu_server_ns_per_message(),
            dropped: noise.objection(),
            noise,
        }
    }
}

/// A ratio of two variants: medians over the clean pairs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// Of the medians of the intended latency.
    pub p50: f64,
    /// Of the 90th percentiles.
    pub p90: f64,
    /// Of the 99th.
    pub p99: f64,
    /// Of the 99.9th.
    pub p999: f64,
    /// The 5th percentile of the bootstrap of `p50`.
    pub low: f64,
    /// Its 95th.
    pub high: f64,
    /// Both for each percentile.
    pub intervals: Intervals,
    /// Pairs that it was taken from.
    pub pairs: usize,
    /// Of messages completed a second.
    pub rate: Option<Estimate>,
    /// Of the server's CPU time a message.
    pub cpu_server: Option<Estimate>,
}

/// 5th and 95th percentile of the bootstrap, for each percentile.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Intervals {
    /// Of `p50`.
    pub p50: [f64; 2],
    /// Of `p90`.
    pub p90: [f64; 2],
    /// Of `p99`.
    pub p99: [f64; 2],
    /// Of `p999`.
    pub p999: [f64; 2],
}

impl Ratio {
    /// The percentiles by name, each with its interval.
    #[must_use]
    pub fn estimates(&self) -> [(&'static str, Estimate); 4] {
        let of = |median, [low, high]: [f64; 2]| Estimate { median, low, high };
        let intervals = self.intervals;
        [
            ("p50", of(self.p50, intervals.p50)),
            ("p90", of(self.p90, intervals.p90)),
            ("p99", of(self.p99, intervals.p99)),
            ("p999", of(self.p999, intervals.p999)),
        ]
    }
}

/// The rounds in which the blocks of both variants are clean.
pub(super) fn clean_pairs<'a>(
    rounds: &'a [Round],
    over: &'a str,
    under: &'a str,
) -> impl Iterator<Item = (&'a BlockSummary, &'a BlockSummary)> {
    rounds
        .iter()
        .filter_map(move |round| Some((round.blocks.get(over)?, round.blocks.get(under)?)))
        .filter(|(over, under)| over.dropped.is_none() && under.dropped.is_none())
}

/// The ratio of two variants over the clean pairs; `None` where there is none to take.
#[must_use]
pub fn ratio(rounds: &[Round], over: &str, under: &str, seed: u64) -> Option<Ratio> {
    let pairs: Vec<(&BlockSummary, &BlockSummary)> = clean_pairs(rounds, over, under).collect();
    let of = |pick: &dyn Fn(&BlockSummary) -> f64| {
        let ratios: Vec<f64> = pairs.iter().map(|(a, b)| pick(a) / pick(b)).collect();
        estimate(&ratios, seed)
    };
    let p50 = of(&|block| block.intended_ns.p50 as f64)?;
    let p90 = of(&|block| block.intended_ns.p90 as f64)?;
    let p99 = of(&|block| block.intended_ns.p99 as f64)?;
    let p999 = of(&|block| block.intended_ns.p999 as f64)?;
    let interval = |estimate: Estimate| [estimate.low, estimate.high];
    Some(Ratio {
        p50: p50.median,
        p90: p90.median,
        p99: p99.median,
        p999: p999.median,
        low: p50.low,
        high: p50.high,
        intervals: Intervals {
            p50: interval(p50),
            p90: interval(p90),
            p99: interval(p99),
            p999: interval(p999),
        },
        pairs: pairs.len(),
        rate: of(&|block| block.rate),
        cpu_server: of(&|block| block.cpu_server_ns.unwrap_or(f64::NAN)),
    })
}

/// Puts a block to those of the same variant before it.
pub(super) fn pool(pooled: &mut Option<Block>, block: &Block) {
    let Some(all) = pooled else {
        *pooled = Some(block.clone());
        return;
    };
    all.planned_ns += block.planned_ns;
    all.elapsed_ns += block.elapsed_ns;
    all.offered += block.offered;
    all.sent += block.sent;
    all.completed += block.completed;
    all.lost += block.lost;
    all.refused += block.refused;
    all.unsent += block.unsent;
    all.held_up += block.held_up;
    all.cpu_client_ns += block.cpu_client_ns;
    all.spin_client_ns += block.spin_client_ns;
    all.busy_client_max = all.busy_client_max.max(block.busy_client_max);
    all.cpu_server_ns = all.cpu_server_ns.zip(block.cpu_server_ns).map(|(a, b)| a + b);
    for (into, from) in [
        (&mut all.intended, &block.intended),
        (&mut all.actual, &block.actual),
        (&mut all.lag, &block.lag),
    ] {
        into.add(from).expect("histograms of blocks have one set of bounds");
    }
    // Seconds of different blocks are not one stretch of time: the rounds tell that story.
    all.slow.clear();
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::block::{Ended, Recorder, Window};

    const US: u64 = 1000;

    /// A second of 100 messages, each so many microseconds under way.
    pub(crate) fn block(latency_us: u64) -> Block {
        let window = Window { start_ns: 0, planned_ns: 1_000_000 * US };
        let mut recorder = Recorder::new(window, Some(100.0));
        for at in 0..100 {
            let due = at * 10_000 * US;
            recorder.sent(due, due, due + US);
            recorder.completed(due, due + US, due + latency_us * US);
        }
        recorder.finish(&[Ended { at_ns: 1_000_000 * US, cpu_ns: 5_000 * US, spin_ns: 0 }])
    }

    pub(crate) fn round(blocks: &[(&str, u64)], dropped: Option<&str>) -> Round {
        let summary = |us: &u64| BlockSummary {
            dropped: dropped.map(str::to_owned),
            ..BlockSummary::of(&block(*us), Noise::default())
        };
        Round {
            order: blocks.iter().map(|(name, _)| (*name).to_owned()).collect(),
            blocks: blocks.iter().map(|(name, us)| ((*name).to_owned(), summary(us))).collect(),
        }
    }

    #[test]
    fn a_ratio_is_taken_within_rounds_and_not_from_dropped_ones() {
        let rounds = [
            round(&[("sync", 200), ("floor", 100)], None),
            // A slow minute slows both.
            round(&[("sync", 2000), ("floor", 1000)], None),
            round(&[("sync", 300), ("floor", 150)], None),
            round(&[("sync", 90_000), ("floor", 100)], Some("stolen")),
        ];
        let ratio = ratio(&rounds, "sync", "floor", 1).expect("three pairs");
        assert_eq!(ratio.pairs, 3);
        for (name, estimate) in ratio.estimates() {
            assert!((estimate.median - 2.0).abs() < 0.01, "{name} {estimate:?}");
            assert!(estimate.low <= estimate.median && estimate.median <= estimate.high);
        }
        assert!((ratio.rate.expect("rates").median - 1.0).abs() < 0.01);
        assert!(ratio.cpu_server.is_none(), "nobody knows it");
        assert!(super::ratio(&rounds, "sync", "nobody", 1).is_none());
    }

    #[test]
    fn a_noisy_block_spoils_only_the_pairs_that_it_is_in() {
        let mut rounds = [round(&[("sync", 300), ("floor", 100), ("async", 100)], None)];
        let spoilt = rounds[0].blocks.get_mut("async").expect("it is there");
        spoilt.dropped = Some("stolen".to_owned());
        assert_eq!(ratio(&rounds, "sync", "floor", 1).expect("a pair").pairs, 1);
        assert!(ratio(&rounds, "sync", "async", 1).is_none());
    }

    #[test]
    fn pooled_blocks_hold_all_messages() {
        let mut pooled = None;
        for us in [100, 200, 300] {
            pool(&mut pooled, &block(us));
        }
        let pooled = pooled.expect("three");
        assert_eq!((pooled.completed, pooled.intended.len()), (300, 300));
        assert!((pooled.achieved() - 100.0).abs() < 1.5, "{}", pooled.achieved());
        assert_eq!(pooled.cpu_client_ns, 15_000 * US);
        assert!(pooled.intended.value_at_quantile(0.5).abs_diff(200 * US) < US);
    }
}
