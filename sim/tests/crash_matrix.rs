//! The journal alone, stopped at every moment of its disk, in every way.
//!
//! ```text
//!   for each script × each moment (an operation taken, or answered) × each crash:
//!     run to the moment ─▶ crash ─▶ recover ─▶ prefix property ─▶ go on, power cut, recover again
//!   and for some of them, each moment of the recovery × each crash as well
//! ```
//! A failure prints the whole plan of its run: the same plan fails again.

use std::time::Instant;

use sim::disk::{Crash, Fate};
use sim::hits::{Hit, Hits};
use sim::solo::{Plan, Report, Stop, run};

const CRASHES: [Crash; 7] = [
    Crash::PowerCut(Fate::Lost),
    Crash::PowerCut(Fate::Whole),
    Crash::PowerCut(Fate::Torn),
    Crash::PowerCut(Fate::Seeded),
    Crash::Kill(Fate::Lost),
    Crash::Kill(Fate::Whole),
    Crash::Kill(Fate::Torn),
];

#[expect(clippy::disallowed_methods, reason = "the origin of virtual time; only differences count")]
fn carry_out(plan: &Plan) -> Report {
    run(Instant::now(), plan).unwrap_or_else(|what| panic!("{what}\nin {plan:?}"))
}

#[test]
fn a_crash_at_every_moment_leaves_a_prefix_that_holds_all_that_was_durable() {
    let mut hits = Hits::default();
    let mut runs = 0;
    for seed in 0..4 {
        let mut plan = Plan::new(seed, 70);
        // A small budget, so that segments are used again and the log fills up.
        plan.config.segments_max = 5 + (seed as u32 % 3);
        let moments = carry_out(&plan).moments;
        for moment in 1..=moments {
            for crash in CRASHES {
                plan.stop = Some(Stop { moment, crash });
                hits.merge(&carry_out(&plan).hits);
                runs += 1;
            }
        }
    }
    println!("{runs} runs\n{hits}");
    let required = [
        Hit::Lost,
        Hit::Torn,
        Hit::Whole,
        Hit::CacheLost,
        Hit::PrewriteCut,
        Hit::Reordered,
        Hit::Slow,
        Hit::Recycled,
        Hit::RecycledTail,
        Hit::TailCut,
        Hit::DiskFull,
    ];
    assert_eq!(hits.missing(&required), [], "these never happened:\n{hits}");
}

#[test]
fn a_recovery_that_is_crashed_at_every_moment_is_harmless() {
    let mut hits = Hits::default();
    for seed in 10..13 {
        let mut plan = Plan::new(seed, 40);
        plan.config.segments_max = 6;
        let moments = carry_out(&plan).moments;
        for moment in (1..=moments).step_by(5) {
            let first = CRASHES[moment as usize % CRASHES.len()];
            plan.stop = Some(Stop { moment, crash: first });
            plan.recovery_stop = None;
            let recovery_moments = carry_out(&plan).recovery_moments;
            for moment in 1..=recovery_moments {
                for crash in [Crash::PowerCut(Fate::Torn), Crash::Kill(Fate::Torn)] {
                    plan.recovery_stop = Some(Stop { moment, crash });
                    hits.merge(&carry_out(&plan).hits);
                }
            }
        }
    }
    let required = [Hit::CrashInRecovery, Hit::TailCut, Hit::CacheLost];
    assert_eq!(hits.missing(&required), [], "these never happened:\n{hits}");
}

#[test]
fn the_same_plan_is_the_same_run() {
    let plan = Plan::new(3, 60);
    assert_eq!(format!("{:?}", carry_out(&plan)), format!("{:?}", carry_out(&plan)));
}
