//! Power cuts on the real process: what was not synced is lost, torn or reordered.
//!
//! ```text
//!   (start, load, freeze the disk, SIGKILL, lose by chance, serve what is left) x LAELAPS_CUTS
//!
//!   sync      nothing accepted is lost, no confirmed settlement comes back
//!   canaries  a broker without the data sync, and one that accepts at submission, are caught
//!   async     what is lost was accepted within the flush window before the cut, or was in a write
//!             under way, by the file system's own account
//! ```
//!
//! Between an acknowledgement at `async` and the submission of its batch lies the flush window, the
//! time that the writes then under way take, and on a busy machine the time until a thread runs
//! again; [`ASYNC_SLACK`] is the bound on the last.

use std::thread;
use std::time::Duration;

use crate::check::{Lost, Rules, Verdict, check};
use crate::harness::{Chance, Scratch, Start, built, knob};
use crate::kill::{STRICT, finish_and_drain, proton_roles, rhea_roles};
use crate::load::{Address, Client, Load, What};
use crate::power_fs::{Cut, PowerFs};

/// The default flush window of `async`.
const FLUSH_WINDOW: Duration = Duration::from_millis(5);
const ASYNC_SLACK: Duration = Duration::from_millis(25);

/// Of so many cuts at `async` some lose a message: one in three does.
const CUTS_THAT_LOSE: u64 = 25;

/// A canary must be caught within that many cuts.
const CANARY_CUTS: u64 = 5;

/// The exit status of a broker that finds its journal damaged.
const JOURNAL_DAMAGED: i32 = 14;

/// How a run went: to its end, or to a broker that would not start on what a cut has left.
enum Outcome {
    Ended(Run),
    Refused(String),
}

struct Run {
    verdict: Verdict,
    cuts: Vec<Cut>,
}

impl Outcome {
    fn ended(self) -> Run {
        match self {
            Self::Ended(run) => run,
            Self::Refused(said) => panic!("the broker does not start after a power cut:\n{said}"),
        }
    }
}

struct Plan<'a> {
    name: &'a str,
    cuts: u64,
    durability: &'a str,
    canary: Option<&'a str>,
    sync_us: u64,
}

fn run(plan: &Plan<'_>) -> Outcome {
    let seed = knob("LAELAPS_SEED", 1);
    println!("{}: LAELAPS_SEED={seed}, {} cuts", plan.name, plan.cuts);
    let mut chance = Chance(seed);
    let scratch = Scratch::new(plan.name);
    let mut disk = PowerFs::mount(scratch.join("mnt"), seed);
    disk.ask(format!("delay-sync {}", plan.sync_us));
    let data = disk.dir().join("data");
    let mut start = Start::new(&data);
    start.output = scratch.join("broker.log");
    start.durability = plan.durability;
    if let Some(canary) = plan.canary {
        start.exe = built("laelaps-canary");
        start.env.push(("LAELAPS_CANARY", canary));
    }
    let mut address = Address::new(scratch.join("address"));
    let mut broker = start.ready();
    address.set(broker.amqp);
    let mut loads = vec![
        Load::start(Client::Proton, proton_roles(), address.path()),
        Load::start(Client::Rhea, rhea_roles(), address.path()),
    ];
    let mut cuts = Vec::new();
    for _ in 0..plan.cuts {
        let before = accepted(&loads);
        while accepted(&loads) < before + 20 {
            loads.iter_mut().for_each(Load::assert_running);
            thread::sleep(Duration::from_millis(5));
        }
        thread::sleep(Duration::from_micros(chance.between(0, 500_000)));
        address.clear();
        cuts.push(disk.cut(broker));
        broker = match start.try_ready() {
            Ok(broker) => broker,
            Err(said) => return Outcome::Refused(said),
        };
        address.set(broker.amqp);
    }
    thread::sleep(Duration::from_millis(500));
    let events = finish_and_drain(loads, &address);
    let counts = disk.counts();
    assert!(counts.writes > 100, "the load wrote only {} times", counts.writes);
    if plan.canary != Some("no-data-sync") {
        let (syncs, writes) = (counts.syncs, counts.writes);
        assert!(syncs * 2 > writes, "{syncs} syncs of {writes} writes: is the mount at fault?");
    }
    let rules = Rules { strict: STRICT, may_lose: plan.durability == "async", crashes: true };
    let verdict = check(events, &rules);
    let pending: u64 = cuts.iter().map(|cut| cut.writes_pending).sum();
    let lost: u64 = cuts.iter().map(|cut| cut.writes_lost).sum();
    let torn: u64 = cuts.iter().map(|cut| cut.writes_torn).sum();
    println!(
        "{}: of {pending} unsynced writes {lost} lost, {torn} torn; {} lives, {} messages lost, \
         {} settlements confirmed",
        plan.name,
        verdict.accepted.len(),
        verdict.lost.len(),
        verdict.confirmed_total()
    );
    drop(broker);
    Outcome::Ended(Run { verdict, cuts })
}

fn accepted(loads: &[Load]) -> usize {
    let accepted = |what: &What| matches!(what, What::Accepted { .. });
    loads.iter().map(|load| load.count(accepted)).sum()
}

#[test]
#[ignore = "needs the foreign clients and FUSE: tests/run power"]
fn nothing_accepted_at_sync_is_lost_by_a_power_cut() {
    let cuts = knob("LAELAPS_CUTS", 10);
    let plan = Plan { name: "power", cuts, durability: "sync", canary: None, sync_us: 1000 };
    let run = run(&plan).ended();
    run.verdict.assert_clean();
    let pending: u64 = run.cuts.iter().map(|cut| cut.writes_pending).sum();
    assert!(pending > 0, "no cut hit a write under way: the test would show nothing");
    assert_eq!(run.verdict.accepted.len() as u64, cuts + 1, "a life accepted nothing");
}

#[test]
#[ignore = "needs the foreign clients, FUSE and the canary build: tests/run power"]
fn a_broker_without_data_sync_is_caught() {
    assert_caught("no-data-sync");
}

#[test]
#[ignore = "needs the foreign clients, FUSE and the canary build: tests/run power"]
fn a_broker_that_accepts_on_submission_is_caught() {
    assert_caught("ack-on-submit");
}

/// The canary breaks one promise; the test above has to see it, one cut at a time.
fn assert_caught(canary: &str) {
    let durability = "sync";
    let plan =
        Plan { name: canary, cuts: CANARY_CUTS, durability, canary: Some(canary), sync_us: 5000 };
    let run = match run(&plan) {
        Outcome::Ended(run) => run,
        Outcome::Refused(said) => {
            // Any other refusal says nothing about what the canary breaks.
            let damaged = format!("exit status: {JOURNAL_DAMAGED}\n");
            assert!(said.starts_with(&damaged), "{canary} does not start, not for damage:\n{said}");
            println!("{canary}: caught, the broker finds its journal damaged:\n{said}");
            return;
        }
    };
    let found = run.verdict.lost.len() + run.verdict.broken.len();
    println!(
        "{canary}: {} lost, {} promises broken",
        run.verdict.lost.len(),
        run.verdict.broken.len()
    );
    assert!(found > 0, "{canary} went unnoticed through {CANARY_CUTS} power cuts");
}

#[test]
#[ignore = "needs the foreign clients and FUSE: tests/run power"]
fn what_async_loses_lies_within_the_flush_window() {
    let cuts = knob("LAELAPS_CUTS", 10);
    let plan = Plan { name: "async", cuts, durability: "async", canary: None, sync_us: 2000 };
    let run = run(&plan).ended();
    assert_eq!(run.verdict.broken, Vec::<String>::new());
    let pending: u64 = run.cuts.iter().map(|cut| cut.writes_pending).sum();
    assert!(pending > 0, "no cut hit a write under way: the test would show nothing");
    let age = |lost: &Lost| {
        let cut = &run.cuts[lost.inc as usize - 1];
        let age = Duration::from_nanos(cut.busy_since_ns.saturating_sub(lost.promised_t));
        let Lost { id, .. } = lost;
        assert!(age <= FLUSH_WINDOW + ASYNC_SLACK, "{id} was promised {age:?} before that");
        age
    };
    let Verdict { lost, returned, .. } = &run.verdict;
    let in_flight = |lost: &&Lost| was_in_flight(lost, &run.cuts[lost.inc as usize - 1]);
    let oldest = lost.iter().filter(|lost| !in_flight(lost)).map(age).max();
    let oldest_returned = returned.iter().map(age).max();
    println!(
        "async: {} messages lost; the oldest that was in no write under way was accepted \
         {oldest:?} before those began; {} settlements lost, the oldest {oldest_returned:?}",
        lost.len(),
        returned.len()
    );
    let shows = !lost.is_empty() || cuts < CUTS_THAT_LOSE;
    assert!(shows, "nothing was lost: the test would show nothing");
}

/// Whether its bytes were in a write that the cut has interrupted.
fn was_in_flight(lost: &Lost, cut: &Cut) -> bool {
    let unit = format!("{};", lost.id);
    cut.in_flight.windows(unit.len()).any(|bytes| bytes == unit.as_bytes())
}
