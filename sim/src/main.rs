//! Runs seeds: one to look at, or many to find one to look at.
//!
//! ```text
//!   cargo run --release -p sim -- --seed 7                 one run, with everything that it hit
//!   cargo run --release -p sim -- --seeds 200 --jobs 2     200 runs, from seed 0 on
//!   cargo run --release -p sim -- --seeds 50 --canary chain-unchecked
//!                                                          ends well if the canary is caught
//! ```
//!   cargo run --release -p sim -- --voters --seeds 200     the voters instead of brokers
//!   cargo run --release -p sim -- --pair --seeds 200       two members and their voters
//! Exit status: 0 all is well (or the canary was caught), 1 a promise was broken (or it was not),
//! 2 the runs were too tame: something that must happen never did.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;

use sim::hits::{Hit, Hits};
use sim::letter::LetterId;
use sim::pair;
use sim::plan::{Canary, Options, Plan};
use sim::voters;
use sim::world::{Failure, Report, run};

/// Whole brokers under one seed: simulated disks, mail, clients, crashes.
#[derive(Debug, Parser)]
struct Args {
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many seeds, one after the other.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// Events that each run has at least.
    #[arg(long, default_value_t = 12_000)]
    events: u64,
    /// A rule to break: the run ends well when a checker notices.
    #[arg(long)]
    canary: Option<String>,
    /// Ensembles of voters, not brokers.
    #[arg(long)]
    voters: bool,
    /// Two members of a pair and their voters, not brokers.
    #[arg(long, conflicts_with = "voters")]
    pair: bool,
    /// Whole brokers' shards with clients in the pair, not logs alone.
    #[arg(long, requires = "pair")]
    served: bool,
    /// Every seed of a pair that fails, not only the first.
    #[arg(long, requires = "pair")]
    every: bool,
    /// Runs side by side.
    #[arg(long, default_value_t = 1)]
    jobs: u64,
    /// A letter whose story is told if the run fails, by its number.
    #[arg(long)]
    follow: Option<u64>,
    /// Print what the seed stands for.
    #[arg(long)]
    plan: bool,
}

/// The canary of this name among these.
fn canary<C: Copy>(name: Option<&str>, all: &[(&str, C)]) -> Result<Option<C>, String> {
    let Some(name) = name else { return Ok(None) };
    let found = all.iter().find(|(known, _)| *known == name).map(|(_, canary)| *canary);
    found.map(Some).ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
        format!("there is no canary of that name; there are {}", names.join(", "))
    })
}

/// What must have happened somewhere in a suite of this many seeds or more.
const SUITE_SEEDS: u64 = 100;
const SUITE: &[Hit] = &[
    Hit::Reordered,
    Hit::Slow,
    Hit::Hung,
    Hit::WriteFailed,
    Hit::WriteShort,
    Hit::ReadFailed,
    Hit::NoSpace,
    Hit::Lost,
    Hit::Torn,
    Hit::Whole,
    Hit::CacheLost,
    Hit::PrewriteCut,
    Hit::Recycled,
    Hit::Copied,
    Hit::PagedOut,
    Hit::PagedIn,
    Hit::Fetched,
    Hit::HeadMoved,
    Hit::RecycledTail,
    Hit::PowerCut,
    Hit::Kill,
    Hit::CrashInRecovery,
    Hit::CrashInDrain,
    Hit::Restart,
    Hit::TailCut,
    Hit::CleanStop,
    Hit::Fatal,
    Hit::StartRefused,
    Hit::DiskFull,
    Hit::LargeMessage,
    Hit::SentSlowly,
    Hit::GivenUp,
    Hit::Crossed,
    Hit::CreateRace,
    Hit::ConnectionLost,
    Hit::Moved,
    Hit::Drained,
    Hit::Redelivered,
    Hit::Repeated,
    Hit::RepeatedTight,
    Hit::Forgotten,
    Hit::Buried,
    Hit::MovedInParts,
    Hit::Browsed,
    Hit::Relayed,
    Hit::Prioritised,
    Hit::Noted,
    Hit::QueueFull,
    Hit::Dropped,
    Hit::CheckpointUsed,
    Hit::CheckpointCut,
    Hit::Expired,
    Hit::ExpiredTight,
    Hit::Relieved,
    Hit::Scheduled,
    Hit::ScheduleFound,
    Hit::Purged,
    Hit::PurgeCut,
    Hit::GivenBack,
    Hit::GivingBackCut,
    Hit::Confirmed,
    Hit::Accepted,
    Hit::Refused,
    Hit::BackupLagged,
];

#[expect(clippy::disallowed_methods, reason = "the origin of virtual time; only differences count")]
fn main() -> ExitCode {
    let args = Args::parse();
    let base = Instant::now();
    let outcome = match (args.voters, args.pair) {
        (true, _) => run_voters(&args, base),
        (false, true) => run_pairs(&args, base),
        (false, false) => run_brokers(&args, base),
    };
    outcome.unwrap_or_else(|why| {
        eprintln!("{why}");
        ExitCode::FAILURE
    })
}

fn run_brokers(args: &Args, base: Instant) -> Result<ExitCode, String> {
    let broken = canary(args.canary.as_deref(), &Canary::ALL)?;
    if args.plan {
        println!("{:#?}", Plan::draw_alone(args.seed));
    }
    let suite = carry_out(args, broken, base);
    let ran = suite.runs;
    println!(
        "{ran} runs, {} events, {} letters, {} deliveries, {:.1} s of virtual time, {:.1} s \
         of ours",
        suite.events,
        suite.sent,
        suite.deliveries,
        suite.virtual_s,
        base.elapsed().as_secs_f64()
    );
    if args.seeds == 1 {
        println!("trace {:016x}", suite.trace);
    }
    println!("{}", suite.hits);
    if args.canary.is_some() {
        return match suite.failure {
            Some((seed, failure)) => Ok(caught(seed, &failure.what)),
            None => Err(format!("the canary was not caught by {ran} seeds")),
        };
    }
    if let Some((seed, failure)) = suite.failure {
        eprintln!("seed {seed}: {}", failure.what);
        failure.story.iter().for_each(|line| eprintln!("  {line}"));
        eprintln!("after {} events, {:?} of virtual time", failure.events, failure.after);
        eprintln!("cargo run --release -p sim -- --seed {seed} --events {}", args.events);
        return Ok(ExitCode::FAILURE);
    }
    let missing = suite.hits.missing(SUITE);
    if args.seeds >= SUITE_SEEDS && !missing.is_empty() {
        let names: Vec<&str> = missing.iter().map(|hit| hit.name()).collect();
        eprintln!("never happened in {ran} runs: {}", names.join(", "));
        return Ok(ExitCode::from(2));
    }
    Ok(ExitCode::SUCCESS)
}

fn caught(seed: u64, what: &str) -> ExitCode {
    println!("caught by seed {seed}: {what}");
    ExitCode::SUCCESS
}

/// Seeds of two members and their voters.
fn run_pairs(args: &Args, base: Instant) -> Result<ExitCode, String> {
    let broken = canary(args.canary.as_deref(), &pair::Canary::ALL)?;
    let next = AtomicU64::new(args.seed);
    let end = args.seed + args.seeds;
    let worker = || {
        let (mut counts, mut runs) = (pair::Counts::default(), 0);
        let (mut trace, mut took) = (0, Duration::ZERO);
        let mut failures = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                return (counts, runs, trace, took, failures);
            }
            let ran = if args.served {
                pair::run_served(seed, broken, args.follow.map(LetterId), base)
            } else {
                pair::run(seed, broken, base)
            };
            match ran {
                Ok(report) => {
                    runs += 1;
                    trace ^= report.trace;
                    took += report.took;
                    counts.merge(&report.counts);
                }
                Err(failure) => {
                    if !args.every {
                        next.store(end, Ordering::Relaxed);
                    }
                    failures.push(failure);
                }
            }
        }
    };
    let (mut counts, mut runs, mut trace) = (pair::Counts::default(), 0, 0);
    let (mut took, mut failures) = (Duration::ZERO, Vec::new());
    std::thread::scope(|scope| {
        let jobs: Vec<_> = (0..args.jobs.max(1)).map(|_| scope.spawn(worker)).collect();
        for job in jobs {
            let one = job.join().expect("a run that panics ends the process");
            counts.merge(&one.0);
            runs += one.1;
            trace ^= one.2;
            took += one.3;
            failures.extend(one.4);
        }
    });
    let ours = base.elapsed().as_secs_f64();
    println!("{runs} runs, {:.1} s of virtual time, {ours:.1} s of ours", took.as_secs_f64());
    println!("trace {trace:016x}\n{counts}");
    failures.sort_by_key(|failure| failure.seed);
    match (failures.first(), args.canary.is_some()) {
        (Some(failure), true) => return Ok(caught(failure.seed, &failure.what)),
        (None, true) => return Err(format!("the canary was not caught by {runs} seeds")),
        (Some(first), false) => {
            for failure in &failures {
                eprintln!("{failure}");
                failure.story.iter().for_each(|line| eprintln!("  {line}"));
            }
            let served = if args.served { " --served" } else { "" };
            eprintln!("cargo run --release -p sim -- --pair{served} --seed {}", first.seed);
            return Ok(ExitCode::FAILURE);
        }
        (None, false) => {}
    }
    let rare = counts.too_rare(runs, args.served);
    if args.seeds >= SUITE_SEEDS && !rare.is_empty() {
        eprintln!("too rare in {runs} runs: {}", rare.join("; "));
        return Ok(ExitCode::from(2));
    }
    Ok(ExitCode::SUCCESS)
}

/// Seeds of ensembles of voters, one after the other.
fn run_voters(args: &Args, base: Instant) -> Result<ExitCode, String> {
    let broken = canary(args.canary.as_deref(), voters::CANARIES)?;
    if args.plan {
        println!("{:#?}", voters::Plan::draw(args.seed));
    }
    let (mut counts, mut events, mut trace) = (voters::Counts::new(), 0, 0);
    for seed in args.seed..args.seed + args.seeds {
        match voters::run(base, seed, broken) {
            Ok(report) => {
                report.counts.iter().for_each(|(name, n)| *counts.entry(name).or_default() += n);
                events += report.events;
                trace ^= report.trace;
            }
            Err(failure) if broken.is_some() => return Ok(caught(seed, &failure.what)),
            Err(voters::Failure { what, after }) => {
                return Err(format!(
                    "seed {seed}: {what}\nafter {after:?} of virtual time\n\
                     cargo run --release -p sim -- --voters --seed {seed}"
                ));
            }
        }
    }
    if broken.is_some() {
        return Err(format!("the canary was not caught by {} seeds", args.seeds));
    }
    let took = base.elapsed().as_secs_f64();
    println!("{} runs, {events} events, {took:.1} s of ours, trace {trace:016x}", args.seeds);
    counts.iter().for_each(|(name, times)| println!("  {times:>10}  {name}"));
    let never = |name: &&&str| !counts.contains_key(**name) || counts[**name] == 0;
    let missing: Vec<&str> = voters::REQUIRED.iter().filter(never).copied().collect();
    if args.seeds >= SUITE_SEEDS && !missing.is_empty() {
        eprintln!("never happened in {} runs: {}", args.seeds, missing.join(", "));
        return Ok(ExitCode::from(2));
    }
    Ok(ExitCode::SUCCESS)
}

/// The sum of many runs.
#[derive(Debug, Default)]
struct Suite {
    runs: u64,
    events: u64,
    sent: u64,
    deliveries: u64,
    virtual_s: f64,
    trace: u64,
    hits: Hits,
    failure: Option<(u64, Failure)>,
}

impl Suite {
    fn add(&mut self, report: &Report) {
        self.runs += 1;
        self.events += report.events;
        self.sent += report.sent;
        self.deliveries += report.deliveries;
        self.virtual_s += report.took.as_secs_f64();
        self.trace ^= report.trace;
        self.hits.merge(&report.hits);
    }

    fn merge(&mut self, other: Self) {
        self.runs += other.runs;
        self.events += other.events;
        self.sent += other.sent;
        self.deliveries += other.deliveries;
        self.virtual_s += other.virtual_s;
        self.trace ^= other.trace;
        self.hits.merge(&other.hits);
        // The smallest seed that failed, so that the answer does not depend on the jobs.
        self.failure = match (self.failure.take(), other.failure) {
            (Some(a), Some(b)) => Some(if a.0 <= b.0 { a } else { b }),
            (a, b) => a.or(b),
        };
    }
}

fn carry_out(args: &Args, broken: Option<Canary>, base: Instant) -> Suite {
    let next = AtomicU64::new(args.seed);
    let end = args.seed + args.seeds;
    let worker = || {
        let mut suite = Suite::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                return suite;
            }
            let follow = args.follow.map(LetterId);
            let options = Options { canary: broken, follow, ..Options::new(seed, args.events) };
            match run(base, &options) {
                Ok(report) if report.events >= args.events => suite.add(&report),
                Ok(report) => {
                    let what = format!("only {} events happened", report.events);
                    let (events, after) = (report.events, report.took);
                    let failure = Failure { what, events, after, story: Vec::new() };
                    suite.failure = Some((seed, failure));
                }
                Err(failure) => suite.failure = Some((seed, failure)),
            }
            if suite.failure.is_some() {
                next.store(end, Ordering::Relaxed);
                return suite;
            }
        }
    };
    std::thread::scope(|scope| {
        let jobs: Vec<_> = (0..args.jobs.max(1)).map(|_| scope.spawn(worker)).collect();
        let mut suite = Suite::default();
        for job in jobs {
            suite.merge(job.join().expect("a run that panics ends the process"));
        }
        suite
    })
}
