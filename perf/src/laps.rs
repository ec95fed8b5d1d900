//! `perf laps`: many times the disk's bound through a small log, settled by chance, and who stalls.
//!
//! ```text
//!   load     --queues producers ─▶ queues ─▶ consumers that hold part of the disk's bound and
//!            settle of it by chance: dead and live lie mixed all over the log
//!   beside   a steady producer, and bare durable writes, for the whole time
//!   watch    the data directory against `disk-max`; bytes copied
//! ```
//! What is judged is the steady producer's time in seconds: a stall is a message that took over ten
//! times the median p99; where the bare writes stalled in that second too, or in one beside it, it
//! was the disk's. In the end nothing is left, and every message came once, in order, with its
//! bytes.
//!
//! Failure: see [`Failure`]; broker and directory are gone in any case.

use std::fmt::Write as _;
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::arguments::{OwnBroker, parse_rate};
use crate::beside::{Beside, Stalls, Watch, Watched, run};
use crate::block::{Block, SCHEMA};
use crate::broker::{Broker, BrokerPlan, Interrupt, Scratch, ask};
use crate::command::Failure;
use crate::load::{self, Length, Links, LoadPlan, Measured};
use crate::machine::{Machine, Place};
use crate::show;
use crate::verdict::Verdict;

/// What `perf laps` is told.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The broker's `disk-max`, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 512 << 20)]
    disk_max: u64,
    /// So many times that is written
    #[arg(long, value_name = "N", default_value_t = 24,
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    laps: u32,
    /// Bytes of a message's body
    #[arg(long, value_name = "BYTES", default_value_t = 4096,
          value_parser = clap::value_parser!(u32).range(32..=65_536))]
    size: u32,
    /// Messages a second
    #[arg(long, value_name = "N", default_value = "10000", value_parser = parse_rate)]
    load_rate: f64,
    /// Queues that they go through
    #[arg(long, value_name = "N", default_value_t = 8,
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    queues: u32,
    /// Part of disk-max that consumers hold, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 33,
          value_parser = clap::value_parser!(u32).range(1..=60))]
    held: u32,
    /// Messages a second of the steady producer
    #[arg(long, value_name = "N", default_value = "500", value_parser = parse_rate)]
    rate: f64,
    #[command(flatten)]
    own: OwnBroker,
}

/// What `perf laps` gave, as its JSON tells it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LapsResult {
    /// [`SCHEMA`].
    pub schema: String,
    /// `laps`.
    pub kind: String,
    /// The machine.
    pub machine: Machine,
    /// Where the data was.
    pub place: Place,
    /// The broker's bound, in bytes.
    pub disk_max: u64,
    /// Bytes of a body.
    pub size: u32,
    /// Messages that were accepted, of all producers but the steady one.
    pub accepted: u64,
    /// How long that took, in seconds.
    pub took_s: f64,
    /// Bytes of bodies by `disk_max`.
    pub laps: f64,
    /// Messages that consumers held.
    pub held: u64,
    /// Bytes that compaction copied.
    pub copied_bytes: u64,
    /// The most that the broker took.
    pub watched: Watched,
    /// When the steady producer stalled.
    pub stalls: Stalls,
    /// Its block.
    pub steady: Block,
    /// The bare writes.
    pub probe: Block,
    /// Whether it may be believed.
    pub verdict: Verdict,
}

/// `laelaps perf laps`.
///
/// # Errors
/// See [`Failure`].
pub fn laps(options: &Options) -> Result<(), Failure> {
    let interrupt = Interrupt::listen()?;
    let scratch = Scratch::new(&options.own.dir)?;
    let result = measure(options, &scratch, &interrupt)?;
    options.own.show(&result.text(), &result)
}

fn measure(
    options: &Options,
    scratch: &Scratch,
    interrupt: &Interrupt,
) -> Result<LapsResult, Failure> {
    let broker = start(options, scratch, interrupt)?;
    let watch = Watch::start(&broker, &scratch.join("data"))?;
    let plan = load_of(options, &broker);
    let length = Duration::from_secs_f64(
        f64::from(options.laps) * options.disk_max as f64
            / f64::from(options.size)
            / options.load_rate,
    );
    if !options.own.quiet {
        eprintln!("{} laps in {:.0} s", options.laps, length.as_secs_f64());
    }
    let plan = LoadPlan { length: Length::For(length), ..plan };
    let beside = Beside::new(broker.target(), options.rate, scratch.path())?;
    let (steady, measured) = beside.measure(length, interrupt, || run(&plan, interrupt))?;
    let copied_bytes = copied(&broker)?;
    let watched = watch.stop();
    let rest = LoadPlan { patience: Duration::from_secs(1), held: 0, ..plan.clone() };
    let left = load::drain(&rest, u64::MAX)?;
    broker.stop()?;
    let mut result = LapsResult {
        schema: SCHEMA.to_owned(),
        kind: "laps".to_owned(),
        machine: Machine::here(),
        place: Place::of(scratch.path())
            .map_err(|error| format!("{}: {error}", options.own.dir.display()))?,
        disk_max: options.disk_max,
        size: options.size,
        accepted: measured.accepted,
        took_s: length.as_secs_f64(),
        laps: measured.accepted as f64 * f64::from(options.size) / options.disk_max as f64,
        held: u64::from(plan.held) * u64::from(plan.consumers.connections),
        copied_bytes,
        watched,
        stalls: steady.stalls(),
        steady: steady.produced,
        probe: steady.probe,
        verdict: Verdict::new(),
    };
    result.judge(&measured, steady.wrong, left);
    Ok(result)
}

fn start(options: &Options, scratch: &Scratch, interrupt: &Interrupt) -> Result<Broker, Failure> {
    let config = scratch.join("laelaps.toml");
    let disk_max = options.disk_max;
    let text = format!("disk-max = \"{disk_max}\"\nshards = 1\nmax-message-size = \"1 MiB\"\n");
    show::write_file(&config, &text)?;
    let mut plan = BrokerPlan::new(scratch.join("data"))?;
    plan.flags = vec!["--config".to_owned(), config.display().to_string()];
    let is_said = |flag: &String| flag.starts_with("--segment-size");
    if !options.own.flags.iter().any(is_said) {
        // A log of few segments has no room to compact in.
        let segment_bytes = (disk_max / 64).next_power_of_two().clamp(4 << 20, 64 << 20);
        plan.flags.extend(["--segment-size".to_owned(), segment_bytes.to_string()]);
    }
    plan.flags.extend(options.own.flags.iter().cloned());
    Broker::start(&plan, interrupt)
}

/// Producers and consumers whose messages live for as long as chance has it.
fn load_of(options: &Options, broker: &Broker) -> LoadPlan {
    /// What a connection holds; a session of it takes twice as many.
    const HELD_EACH: u64 = 4000;
    let held = options.disk_max / 100 * u64::from(options.held) / u64::from(options.size);
    let connections = held.div_ceil(HELD_EACH).max(u64::from(options.queues));
    LoadPlan {
        addresses: (0..options.queues).map(|queue| format!("laps-{queue}")).collect(),
        producers: Links { connections: 1, each: options.queues },
        consumers: Links::alone(u32::try_from(connections).unwrap_or(u32::MAX)),
        held: u32::try_from(held / connections).unwrap_or(u32::MAX),
        checks: true,
        in_flight: 256,
        rate: Some(options.load_rate),
        size: options.size as usize,
        warmup: Duration::from_secs(1),
        patience: Duration::from_secs(30),
        ..LoadPlan::new(broker.target())
    }
}

/// Bytes that compaction has copied since the broker started.
fn copied(broker: &Broker) -> Result<u64, Failure> {
    let answer = ask(broker.admin(), "GET /metrics", Duration::from_secs(5))
        .map_err(|error| format!("the broker's metrics: {error}"))?;
    let lines =
        answer.lines().filter(|line| line.starts_with("laelaps_journal_copied_bytes_total"));
    Ok(lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum())
}

impl LapsResult {
    fn judge(&mut self, measured: &Measured, wrong: u64, left: u64) {
        let Self { verdict, accepted, steady, .. } = self;
        verdict.judge("steady", steady);
        if measured.received != *accepted {
            verdict.object(format!("{} of {accepted} messages came", measured.received));
        }
        if measured.wrong + wrong > 0 {
            let wrong = measured.wrong + wrong;
            verdict.object(format!("{wrong} came out of order, or with other bytes"));
        }
        if left > 0 {
            verdict.object(format!("{left} messages were left that had been settled"));
        }
        if let Some(produced) = &measured.produced {
            let (refused, lost) = (produced.refused, produced.lost);
            if refused + lost > 0 {
                verdict.object(format!("{refused} messages were refused, {lost} lost"));
            }
            let share = produced.achieved() / produced.offered_rate();
            if share < crate::verdict::RATE_SHARE_MIN {
                verdict.note(format!("only {share:.2} of the load's rate was reached"));
            }
        }
        if let Some(note) = self.place.note() {
            self.verdict.note(note);
        }
    }

    /// The result as text.
    #[must_use]
    pub fn text(&self) -> String {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let mut text = format!(
            "{} messages of {} B in {:.0} s, {:.1} times disk-max {:.0} MiB, {} held, on {}\n",
            show::grouped(self.accepted),
            self.size,
            self.took_s,
            self.laps,
            mib(self.disk_max),
            show::grouped(self.held),
            self.place.file_system,
        );
        let Watched { resident_bytes, data_bytes, .. } = self.watched;
        writeln!(
            text,
            "data at most {:.0} MiB, {:.2} of disk-max; {:.0} MiB copied, {:.2} of what was \
             written; resident at most {:.0} MiB",
            mib(data_bytes),
            data_bytes as f64 / self.disk_max as f64,
            mib(self.copied_bytes),
            self.copied_bytes as f64 / (self.accepted.max(1) * u64::from(self.size)) as f64,
            mib(resident_bytes),
        )
        .expect("memory takes text");
        text.push_str(&show::block(&self.steady, "accepted"));
        text.push_str(&show::block(&self.probe, "written"));
        format!("{text}{}\n{}\n", self.stalls.text(), self.verdict)
    }
}
