//! Runs seeds: one to look at, or many to find one to look at.
//!
//! ```text
//!   cargo run --release -p sim -- --seed 7                 one run, with everything that it hit
//!   cargo run --release -p sim -- --seeds 200 --jobs 2     200 runs, from seed 0 on
//!   cargo run --release -p sim -- --seeds 50 --canary chain-unchecked
//!                                                          ends well if the canary is caught
//! ```
//! Exit status: 0 all is well (or the canary was caught), 1 a promise was broken (or it was not),
//! 2 the runs were too tame: something that must happen never did.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clap::Parser;

use sim::hits::{Hit, Hits};
use sim::letter::LetterId;
use sim::plan::{Canary, Options, Plan};
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
    #[arg(long, value_parser = canary)]
    canary: Option<Canary>,
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

fn canary(name: &str) -> Result<Canary, String> {
    Canary::named(name).ok_or_else(|| {
        let names: Vec<&str> = Canary::ALL.iter().map(|(name, _)| *name).collect();
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
    Hit::Crossed,
    Hit::CreateRace,
    Hit::ConnectionLost,
    Hit::Moved,
    Hit::Drained,
    Hit::Redelivered,
    Hit::Confirmed,
    Hit::Accepted,
    Hit::Refused,
    Hit::BackupLagged,
];

#[expect(clippy::disallowed_methods, reason = "the origin of virtual time; only differences count")]
fn main() -> ExitCode {
    let args = Args::parse();
    let base = Instant::now();
    if args.plan {
        println!("{:#?}", Plan::draw(args.seed));
    }
    let suite = carry_out(&args, base);
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
            Some((seed, failure)) => {
                println!("caught by seed {seed}: {}", failure.what);
                ExitCode::SUCCESS
            }
            None => {
                println!("the canary was not caught by {ran} seeds");
                ExitCode::FAILURE
            }
        };
    }
    if let Some((seed, failure)) = suite.failure {
        eprintln!("seed {seed}: {}", failure.what);
        failure.story.iter().for_each(|line| eprintln!("  {line}"));
        eprintln!("after {} events, {:?} of virtual time", failure.events, failure.after);
        eprintln!("cargo run --release -p sim -- --seed {seed} --events {}", args.events);
        return ExitCode::FAILURE;
    }
    let missing = suite.hits.missing(SUITE);
    if args.seeds >= SUITE_SEEDS && !missing.is_empty() {
        let names: Vec<&str> = missing.iter().map(|hit| hit.name()).collect();
        eprintln!("never happened in {ran} runs: {}", names.join(", "));
        return ExitCode::from(2);
    }
    ExitCode::SUCCESS
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

fn carry_out(args: &Args, base: Instant) -> Suite {
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
            let options =
                Options { canary: args.canary, follow, ..Options::new(seed, args.events) };
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
