//! The pair under many seeds, and each of its rules broken once.
//!
//! ```text
//!   LAELAPS_PAIR_SEEDS   how many sound seeds (default 16)
//!   LAELAPS_PAIR_SEED    the first one
//! ```
//! The same seeds without a canary are sound, and everything that the checkers are for must have
//! happened in them.

use std::time::Instant;

use sim::pair::{Canary, Counts, run};

/// Seeds within which each canary is caught.
const CANARY_SEEDS_MAX: u64 = 40;

/// What must have happened is asked of so many seeds or more.
const SUITE_SEEDS: u64 = 16;

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

#[expect(clippy::disallowed_methods, reason = "the origin of virtual time; only differences count")]
fn base() -> Instant {
    Instant::now()
}

#[test]
fn whatever_happens_between_two_members_the_promises_are_kept() {
    let first = from_env("LAELAPS_PAIR_SEED", 0);
    let seeds = from_env("LAELAPS_PAIR_SEEDS", SUITE_SEEDS);
    let mut all = Counts::default();
    for seed in first..first + seeds {
        match run(seed, None, base()) {
            Ok(counts) => all.merge(&counts),
            Err(broken) => panic!(
                "{broken}\nreplay: LAELAPS_PAIR_SEED={seed} LAELAPS_PAIR_SEEDS=1 cargo test \
                 -p sim --test pair whatever"
            ),
        }
    }
    println!("{all:#?}");
    if seeds < SUITE_SEEDS {
        return;
    }
    let Counts { reigns, takeovers, cuts, exported, reads_back, expands, shrinks, .. } = all;
    assert!(reigns > 30 && takeovers > 8, "{reigns} reigns, {takeovers} takeovers");
    assert!(cuts > 4 && exported > 100, "{cuts} cuts, {exported} records exported");
    assert!(all.fences > 20 && all.depositions > 4 && all.pauses > 40, "{all:?}");
    assert!(all.lost_disks > 1 && all.switchovers > 2 && all.voters_cut > 50, "{all:?}");
    assert!(reads_back > 20 && expands > 15 && shrinks > 2, "{all:?}");
    assert!(all.unknown > 4 && all.power_cuts > 20 && all.both_down > 10, "{all:?}");
    assert!(all.acknowledged[1..].iter().all(|level| *level > 1000), "{all:?}");
    assert!(all.settled > 500 && all.shown > 1000, "{all:?}");
}

#[test]
fn a_seed_is_the_same_run_again() {
    assert_eq!(run(3, None, base()), run(3, None, base()));
}

fn seeds_until_caught(canary: Canary, first: u64) -> Option<(u64, String)> {
    (first..first + CANARY_SEEDS_MAX).find_map(|seed| {
        // An assertion of the product that notices is as good as a checker.
        let caught = std::panic::catch_unwind(|| run(seed, Some(canary), base()));
        match caught {
            Ok(Ok(_)) => None,
            Ok(Err(broken)) => Some((seed, broken.what)),
            Err(_) => Some((seed, "an assertion".into())),
        }
    })
}

#[test]
fn every_broken_rule_is_caught() {
    let mut missed = Vec::new();
    for (name, canary, first) in Canary::ALL {
        match seeds_until_caught(canary, first) {
            Some((seed, what)) => println!("{name}: seed {seed}: {what}"),
            None => missed.push(name),
        }
    }
    assert!(missed.is_empty(), "not caught within {CANARY_SEEDS_MAX} seeds: {missed:?}");
}
