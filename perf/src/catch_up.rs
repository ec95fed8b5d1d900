//! `perf catch-up`: what a backup that was away and comes back costs the live's producers.
//!
//! ```text
//!   a round   lose    SIGKILL of the backup, until the live serves without it
//!             fill    --bytes into a queue, at the live alone
//!             alone   a steady producer, for a block
//!             back    the same producer, while the backup starts and copies what it lacks
//!             drain   the queue, with both in sync
//! ```
//! The first round is a rehearsal: it shows how long the copy takes, and a block is nearly as long,
//! so that all of it has the copy beside it. Addresses have the level `replicated-sync`: while the
//! backup is away, and while it copies, that is the live's own disk.
//!
//! Failure: see [`Failure`]; brokers, voters and directories are gone in any case.

use std::fmt::Write as _;
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::arguments::{OwnBroker, parse_rate};
use crate::beside::{Beside, WARM_UP, run};
use crate::block::SCHEMA;
use crate::broker::{Interrupt, Scratch};
use crate::command::Failure;
use crate::load::{self, Length, Links, LoadPlan};
use crate::machine::{Machine, Place};
use crate::pair::Pair;
use crate::stats::{Estimate, estimate};
use crate::verdict::Verdict;

/// What `perf catch-up` is told.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Bytes of messages that the backup lacks when it comes back
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 30)]
    bytes: u64,
    /// Bytes of a message's body
    #[arg(long, value_name = "BYTES", default_value_t = 4096,
          value_parser = clap::value_parser!(u32).range(32..=65_536))]
    size: u32,
    /// Messages a second of the steady producer
    #[arg(long, value_name = "N", default_value = "500", value_parser = parse_rate)]
    rate: f64,
    /// Rounds, after a rehearsal
    #[arg(long, value_name = "N", default_value_t = 5,
          value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    #[command(flatten)]
    own: OwnBroker,
}

/// One time away and back.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// The steady producer's p99 at the live alone, in milliseconds.
    pub alone_p99_ms: f64,
    /// That of bare durable writes meanwhile.
    pub alone_probe_p99_ms: f64,
    /// The producer's p99 while the backup copied.
    pub back_p99_ms: f64,
    /// That of bare durable writes meanwhile.
    pub back_probe_p99_ms: f64,
    /// From the start of the backup's process until it was in sync, in milliseconds.
    pub in_sync_ms: f64,
}

/// What `perf catch-up` gave, as its JSON tells it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CatchUpResult {
    /// [`SCHEMA`].
    pub schema: String,
    /// `catch-up`.
    pub kind: String,
    /// The machine.
    pub machine: Machine,
    /// Where the data was.
    pub place: Place,
    /// Bytes of bodies that the backup lacked.
    pub bytes: u64,
    /// Bytes of a body.
    pub size: u32,
    /// Messages a second of the steady producer.
    pub rate: f64,
    /// The rehearsal's time until the backup was in sync, in milliseconds.
    pub rehearsal_ms: f64,
    /// The rounds, in the order in which they ran.
    pub rounds: Vec<Round>,
    /// The p99 while the backup copied by that of the live alone before it.
    pub p99_ratio: Option<Estimate>,
    /// Whether it may be believed.
    pub verdict: Verdict,
}

/// A block is this share of the time that the rehearsal's copy took.
const BLOCK_SHARE: f64 = 0.8;

/// A copy that took a smaller share of its block is not what was meant.
const COPYING_SHARE_MIN: f64 = 0.9;

/// The queue that waits for the backup.
const QUEUE: &str = "catch-up";

/// `laelaps perf catch-up`.
///
/// # Errors
/// See [`Failure`].
pub fn catch_up(options: &Options) -> Result<(), Failure> {
    let interrupt = Interrupt::listen()?;
    let scratch = Scratch::new(&options.own.dir)?;
    let result = measure(options, &scratch, &interrupt)?;
    options.own.show(&result.text(), &result)
}

fn measure(
    options: &Options,
    scratch: &Scratch,
    interrupt: &Interrupt,
) -> Result<CatchUpResult, Failure> {
    let mut pair = Pair::start(None, &scratch.join("pair"), &options.own.flags, interrupt)?;
    let beside = Beside::new(pair.live().target(), options.rate, scratch.path())?;
    let say = |text: &str| {
        if !options.own.quiet {
            eprintln!("{text}");
        }
    };
    let mut result = CatchUpResult {
        schema: SCHEMA.to_owned(),
        kind: "catch-up".to_owned(),
        machine: Machine::here(),
        place: Place::of(scratch.path())
            .map_err(|error| format!("{}: {error}", options.own.dir.display()))?,
        bytes: options.bytes,
        size: options.size,
        rate: options.rate,
        rehearsal_ms: 0.0,
        rounds: Vec::new(),
        p99_ratio: None,
        verdict: Verdict::new(),
    };
    go_away(options, &mut pair, interrupt)?;
    let rehearsal = pair.start_backup(interrupt)?;
    result.rehearsal_ms = ms(rehearsal);
    say(&format!("rehearsal: in sync after {:.0} ms", result.rehearsal_ms));
    drain(options, &pair)?;
    let block = rehearsal.mul_f64(BLOCK_SHARE);
    for number in 1..=options.rounds {
        go_away(options, &mut pair, interrupt)?;
        let (alone, ()) = beside.measure(block, interrupt, || Ok(()))?;
        let (back, in_sync) = beside.measure(block, interrupt, || {
            std::thread::sleep(WARM_UP);
            pair.start_backup(interrupt)
        })?;
        drain(options, &pair)?;
        for (name, steady) in [("alone", &alone), ("back", &back)] {
            result.verdict.judge(name, &steady.produced);
            if steady.wrong > 0 {
                result.verdict.object(format!("{name}: {} came as they should not", steady.wrong));
            }
        }
        if in_sync < block.mul_f64(COPYING_SHARE_MIN) {
            result.verdict.object(format!(
                "round {number}: in sync after {:.0} ms of a block of {:.0}",
                ms(in_sync),
                ms(block),
            ));
        }
        let ((alone_p99_ms, alone_probe_p99_ms), (back_p99_ms, back_probe_p99_ms)) =
            (alone.p99_ms(), back.p99_ms());
        let in_sync_ms = ms(in_sync);
        result.rounds.push(Round {
            alone_p99_ms,
            alone_probe_p99_ms,
            back_p99_ms,
            back_probe_p99_ms,
            in_sync_ms,
        });
        say(&result.rounds.last().map_or_else(String::new, Round::text));
    }
    let ratios = result.rounds.iter().map(|round| round.back_p99_ms / round.alone_p99_ms);
    result.p99_ratio = estimate(&ratios.collect::<Vec<f64>>(), 1);
    if let Some(note) = result.place.note() {
        result.verdict.note(note);
    }
    result.verdict.note("both members are on this disk: it writes all of it twice");
    Ok(result)
}

/// Loses the backup, and writes what it will lack.
fn go_away(options: &Options, pair: &mut Pair, interrupt: &Interrupt) -> Result<(), Failure> {
    pair.lose_backup(interrupt)?;
    let count = messages(options);
    let fill = LoadPlan { consumers: Links::NONE, ..plan(options, pair) };
    let measured = run(&fill, interrupt)?;
    if measured.accepted == count {
        Ok(())
    } else {
        Err(format!("only {} of {count} messages were accepted", measured.accepted).into())
    }
}

/// Takes all of it again.
fn drain(options: &Options, pair: &Pair) -> Result<(), Failure> {
    let count = messages(options);
    let came = load::drain(&plan(options, pair), count)?;
    if came == count { Ok(()) } else { Err(format!("{came} of {count} messages came").into()) }
}

fn plan(options: &Options, pair: &Pair) -> LoadPlan {
    LoadPlan {
        addresses: vec![QUEUE.to_owned()],
        in_flight: 256,
        size: options.size as usize,
        warmup: Duration::ZERO,
        length: Length::Count(messages(options)),
        patience: Duration::from_secs(10),
        ..LoadPlan::new(pair.live().target())
    }
}

fn messages(options: &Options) -> u64 {
    (options.bytes / u64::from(options.size)).max(1)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

impl Round {
    fn text(&self) -> String {
        format!(
            "alone {:.2} ms (bare writes {:.2}), back {:.2} ms (bare writes {:.2}), in sync after \
             {:.0} ms",
            self.alone_p99_ms,
            self.alone_probe_p99_ms,
            self.back_p99_ms,
            self.back_probe_p99_ms,
            self.in_sync_ms,
        )
    }
}

impl CatchUpResult {
    /// The result as text.
    #[must_use]
    pub fn text(&self) -> String {
        let mib = self.bytes as f64 / f64::from(1 << 20);
        let mut text = format!(
            "a backup that lacks {mib:.0} MiB of messages of {} B, {:.0} a second beside it, on \
             {}\n",
            self.size, self.rate, self.place.file_system,
        );
        for round in &self.rounds {
            writeln!(text, "{}", round.text()).expect("memory takes text");
        }
        if let Some(Estimate { median, low, high }) = self.p99_ratio {
            writeln!(text, "p99 back / alone: {median:.2} ({low:.2}-{high:.2})").expect("memory");
        }
        format!("{text}{}\n", self.verdict)
    }
}
