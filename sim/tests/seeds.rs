//! The whole world under a few seeds; `cargo run -p sim` carries out many.
//!
//! ```text
//!   sound seeds ─▶ no promise is broken        the same seed ─▶ the same trace
//!   one small seed × each moment of the disk × crashes ─▶ no promise is broken
//! ```

use std::time::Instant;

use sim::disk::{Crash, Fate};
use sim::hits::{Hit, Hits};
use sim::plan::Options;
use sim::world::{Report, run};

#[expect(clippy::disallowed_methods, reason = "the origin of virtual time; only differences count")]
fn carry_out(options: &Options) -> Report {
    run(Instant::now(), options).unwrap_or_else(|failure| {
        panic!(
            "{}\nafter {} events\ncargo run --release -p sim -- --seed {} --events {}\n{options:?}",
            failure.what, failure.events, options.seed, options.events_min
        )
    })
}

#[test]
fn no_promise_is_broken_under_twenty_seeds() {
    let mut hits = Hits::default();
    for seed in 0..20 {
        let report = carry_out(&Options::new(seed, 6000));
        assert!(report.events >= 6000 && report.sent > 0, "seed {seed} did nothing: {report:?}");
        hits.merge(&report.hits);
    }
    let required = [
        Hit::Accepted,
        Hit::Confirmed,
        Hit::Redelivered,
        Hit::Restart,
        Hit::Torn,
        Hit::Reordered,
        Hit::Recycled,
        Hit::Copied,
        Hit::PagedOut,
        Hit::PagedIn,
        Hit::Fetched,
        Hit::Crossed,
    ];
    assert_eq!(hits.missing(&required), [], "these never happened:\n{hits}");
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [1, 5, 9] {
        let options = Options::new(seed, 6000);
        assert_eq!(carry_out(&options), carry_out(&options), "seed {seed}");
    }
    let other = carry_out(&Options::new(2, 6000));
    assert_ne!(other.trace, carry_out(&Options::new(1, 6000)).trace);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "asked of a release build: tests/run seeds")]
fn a_crash_at_every_moment_of_a_small_run_breaks_no_promise() {
    let mut runs = 0;
    for (seed, step) in [(3, 1), (11, 4)] {
        let options = Options::new(seed, 700);
        let never = Options { crash: Some((u64::MAX, Crash::Kill(Fate::Lost))), ..options.clone() };
        let moments = carry_out(&never).moments;
        for moment in (1..=moments).step_by(step) {
            for crash in [Crash::PowerCut(Fate::Torn), Crash::Kill(Fate::Seeded)] {
                carry_out(&Options { crash: Some((moment, crash)), ..options.clone() });
                runs += 1;
            }
        }
    }
    assert!(runs > 100, "{runs} runs only");
}

/// The first crash falls on every few moments of runs in which live messages are copied forward.
#[test]
#[cfg_attr(debug_assertions, ignore = "asked of a release build: tests/run seeds")]
fn a_crash_at_any_moment_of_a_compaction_breaks_no_promise() {
    let mut runs = 0;
    let copies = (0..40).filter_map(|seed| {
        let options = Options::new(seed, 2500);
        let never = Options { crash: Some((u64::MAX, Crash::Kill(Fate::Lost))), ..options.clone() };
        let report = carry_out(&never);
        (report.hits.get(Hit::Copied) > 30).then_some((options, report.moments))
    });
    for (options, moments) in copies.take(3) {
        for moment in (1..=moments).step_by(moments as usize / 25 + 1) {
            for crash in [Crash::PowerCut(Fate::Torn), Crash::Kill(Fate::Seeded)] {
                carry_out(&Options { crash: Some((moment, crash)), ..options.clone() });
                runs += 1;
            }
        }
    }
    assert!(runs >= 100, "{runs} runs only");
}
