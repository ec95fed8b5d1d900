//! The pair under a few seeds, and each of its rules broken once.
//!
//! The many seeds, and what must have happened in them, are asked of a release build:
//! ```text
//!   cargo run --release -p sim -- --pair --seeds 200
//! ```
//! The same seeds and scenes without a canary are sound.

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use replica::Canary as Rule;
use sim::pair::{Broken, Canary, Cast, Report, SCENES, Scene, play, run, run_served};

/// Seeds within which each canary is caught, by its scene or by chance.
const CANARY_SEEDS_MAX: u64 = 40;

#[expect(clippy::disallowed_methods, reason = "the origin of virtual time; only differences count")]
fn base() -> Instant {
    Instant::now()
}

/// The first seed that notices, and how.
fn until_caught(run: impl Fn(u64) -> Result<Report, Broken>) -> Option<(u64, String)> {
    (0..CANARY_SEEDS_MAX).find_map(|seed| {
        // An assertion of the product that notices is as good as a checker.
        match std::panic::catch_unwind(AssertUnwindSafe(|| run(seed))) {
            Ok(Ok(_)) => None,
            Ok(Err(broken)) => Some((seed, broken.what)),
            Err(_) => Some((seed, "an assertion".into())),
        }
    })
}

#[test]
fn a_seed_keeps_every_promise_and_is_the_same_run_again() {
    for seed in 0..2 {
        let report = run(seed, None, base()).unwrap_or_else(|broken| panic!("{broken}"));
        assert_eq!(Ok(report), run(seed, None, base()));
    }
}

#[test]
fn every_scene_is_sound_and_breaks_with_its_rule() {
    for (name, scene, rules) in SCENES {
        for seed in 0..2 {
            if let Err(broken) = play(scene, seed, Cast { canary: None, is_served: false }, base())
            {
                panic!("{name}: {broken}");
            }
        }
        for rule in rules {
            let cast = Cast { canary: Some(*rule), is_served: false };
            let caught = until_caught(|seed| play(scene, seed, cast, base()));
            let (seed, what) = caught.unwrap_or_else(|| panic!("{name} misses {rule:?}"));
            println!("{name}: {rule:?}: seed {seed}: {what:.150}");
        }
    }
}

#[test]
#[cfg_attr(debug_assertions, ignore = "asked of a release build: tests/run seeds")]
fn clients_of_a_pair_lose_nothing_unless_a_rule_is_broken() {
    let report = run_served(0, None, None, base()).unwrap_or_else(|broken| panic!("{broken}"));
    assert_eq!(Ok(report), run_served(0, None, None, base()));
    // A live that began again showed its tail before the other member had it, and died again.
    run_served(14, None, None, base()).unwrap_or_else(|broken| panic!("{broken}"));
    for (scene, rule) in
        [(Scene::LeftOut, Rule::PromoteOutOfSync), (Scene::CutOff, Rule::ShrinkAtOnce)]
    {
        let cast = Cast { canary: None, is_served: true };
        play(scene, 0, cast, base()).unwrap_or_else(|broken| panic!("{scene:?}: {broken}"));
        let cast = Cast { canary: Some(Canary::Replica(rule)), ..cast };
        let caught = until_caught(|seed| play(scene, seed, cast, base()));
        let (seed, what) = caught.unwrap_or_else(|| panic!("{scene:?} misses {rule:?}"));
        println!("{scene:?}, served: {rule:?}: seed {seed}: {what:.150}");
    }
}

#[test]
#[cfg_attr(debug_assertions, ignore = "asked of a release build: tests/run seeds")]
fn the_other_broken_rules_are_caught_by_seeds() {
    let mut missed = Vec::new();
    let has_scene = |canary: &Canary| SCENES.iter().any(|(_, _, rules)| rules.contains(canary));
    for (name, canary) in Canary::ALL.into_iter().filter(|(_, canary)| !has_scene(canary)) {
        match until_caught(|seed| run(seed, Some(canary), base())) {
            Some((seed, what)) => println!("{name}: seed {seed}: {what:.150}"),
            None => missed.push(name),
        }
    }
    assert!(missed.is_empty(), "not caught within {CANARY_SEEDS_MAX} seeds: {missed:?}");
}
