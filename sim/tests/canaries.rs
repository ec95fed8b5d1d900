//! Each rule, broken on purpose: the checkers must notice within a stated number of runs.
//!
//! ```text
//!   the journal's   one journal alone, crashed at each moment in turn     LOGS_MAX runs
//!                   and the whole world                                   SEEDS_MAX seeds
//!   the broker's    the whole world                                       SEEDS_MAX seeds
//!   of expiry and of duplicate ids: also where log, disk or memory may get full
//! ```
//! A mix of faults that cannot find a planted bug proves nothing about the bugs that nobody
//! planted. The same seeds without a canary are sound: that is the test in `seeds.rs`.

use std::time::Instant;

use journal::Canary as Rule;
use sim::disk::{Crash, Fate};
use sim::plan::{Canary, Options, Plan};
use sim::{solo, world};

/// Runs of one journal alone within which each of the journal's canaries is caught.
const LOGS_MAX: u64 = 400;
/// Seeds of the whole world within which every canary is caught.
const SEEDS_MAX: u64 = 500;
const EVENTS: u64 = 12_000;

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
fn base() -> Instant {
    Instant::now()
}

/// After how many runs a broken rule shows, in one journal alone.
fn runs_alone(canary: journal::Canary) -> Option<u64> {
    let base = base();
    let mut runs = 0;
    for seed in 0.. {
        let mut plan = solo::Plan::new(seed, 100);
        plan.config.segments_max = 4 + (seed % 5) as u32;
        plan.config.writes_in_flight_max = 1 + (seed % 8) as usize;
        let sound = solo::run(base, &plan).expect("sound without the canary");
        plan.config.canary = Some(canary);
        for moment in 1..=sound.moments {
            let crash = CRASHES[(moment + seed) as usize % CRASHES.len()];
            plan.stop = Some(solo::Stop { moment, crash });
            runs += 1;
            if solo::run(base, &plan).is_err() {
                return Some(runs);
            }
            if runs == LOGS_MAX {
                return None;
            }
        }
    }
    None
}

/// After how many seeds a broken rule shows in the world, and how; of some of the plans only.
fn seeds_of_world(canary: Canary, of: impl Fn(&Plan) -> bool) -> Option<(u64, String)> {
    let base = base();
    (0..SEEDS_MAX).filter(|seed| of(&Plan::draw_alone(*seed))).find_map(|seed| {
        let options = Options { canary: Some(canary), ..Options::new(seed, EVENTS) };
        // An assertion of the product that notices is as good as a checker.
        let run = std::panic::catch_unwind(|| world::run(base, &options));
        let assertion = |_| Some("an assertion".to_owned());
        let what = run.map_or_else(assertion, |run| run.err().map(|failure| failure.what));
        what.map(|what| (seed + 1, what))
    })
}

#[test]
fn the_journals_canaries_are_caught_by_a_journal_alone() {
    for (name, canary) in Canary::ALL {
        let Canary::Journal(canary) = canary else { continue };
        // Whether the head may go, what is committed, and what a checkpoint says, a journal alone
        // is told by its owner.
        let is_owners = matches!(
            canary,
            Rule::HeadMovesEarly | Rule::RecycledPastWatermark | Rule::CheckpointPastWatermark
        );
        if is_owners {
            continue;
        }
        let runs = runs_alone(canary);
        println!("{name}: caught by run {runs:?}");
        assert!(runs.is_some(), "{name} was not caught by {LOGS_MAX} runs");
    }
}

#[test]
#[cfg_attr(debug_assertions, ignore = "asked of a release build: tests/run seeds")]
fn every_canary_is_caught_in_the_world() {
    for (name, canary) in Canary::ALL {
        let caught = seeds_of_world(canary, |_| true);
        println!("{name}: {caught:?}");
        assert!(caught.is_some(), "{name} was not caught by {SEEDS_MAX} seeds");
    }
}

#[test]
#[cfg_attr(debug_assertions, ignore = "asked of a release build: tests/run seeds")]
fn expiry_and_duplicate_ids_are_watched_over_where_room_is_short() {
    use broker::canary::Canary::{
        DuplicateAnsweredEarly, DuplicatesForgotten, DuplicatesNotCarried, ExpiredDropped,
        ExpiresEarly, NeverExpires,
    };
    let expiry = [ExpiresEarly, ExpiredDropped, NeverExpires];
    let ids = [DuplicatesForgotten, DuplicatesNotCarried, DuplicateAnsweredEarly];
    for canary in expiry.into_iter().chain(ids) {
        let caught = seeds_of_world(Canary::Broker(canary), Plan::is_tight);
        println!("{canary:?}: {caught:?}");
        assert!(caught.is_some(), "{canary:?} was not caught by {SEEDS_MAX} seeds");
    }
}
