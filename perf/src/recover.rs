//! `perf recover`: how long a broker that was killed takes until it serves again.
//!
//! ```text
//!   for each point (backlog, history):
//!     start on an empty directory ─▶ history: send, receive, settle ─▶ backlog: send
//!       ─▶ kill -9 ─▶ start, timed ─▶ kill -9 ─▶ start, timed ─▶ ... ─▶ receive the backlog
//!   --history-times N, for each backlog:  A with as much history, B with N times that
//!       ─▶ kill A ─▶ start A, timed ─▶ kill B ─▶ start B, timed ─▶ ... ─▶ B's time / A's, by pairs
//! ```
//! *Backlog* is what still waits in a queue; *history* is what was settled, and should cost nothing
//! once its segments are reused. Where there are both they come in turn, in ten parts each, so that
//! what lives is spread over what is dead. The time is from the start of the process to the first
//! 200 of `/healthz/ready`, asked every millisecond. In the end the backlog is received and
//! counted: a broker that is ready early because it forgot something is not fast.
//!
//! The page cache survives a kill, so the log is read from memory: after a power cut the disk's
//! reading comes on top.
//!
//! Failure: see [`Failure`]; broker and directory are gone in any case.

use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::arguments::OwnBroker;
use crate::beside::size_of_directory;
use crate::block::SCHEMA;
use crate::broker::{Broker, BrokerPlan, Interrupt, Scratch};
use crate::command::Failure;
use crate::load::{self, Length, Links, LoadPlan, Target};
use crate::machine::{Machine, Place};
use crate::show;
use crate::stats::{Estimate, estimate};
use crate::verdict::Verdict;

/// What `perf recover` is told.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Messages that wait in the queue, one point each
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [0, 10_000, 100_000])]
    backlog: Vec<u64>,
    /// Messages that were settled before, one point each
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [100_000])]
    history: Vec<u64>,
    /// Beside each backlog the same one with N times the history, started in turn with it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(2..=1000))]
    history_times: Option<u64>,
    /// Bytes of a message's body
    #[arg(long, value_name = "BYTES", default_value_t = 256)]
    size: usize,
    /// Timed starts of each point
    #[arg(long, value_name = "N", default_value_t = 3,
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    restarts: u32,
    #[command(flatten)]
    own: OwnBroker,
}

/// One point of the table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecoverPoint {
    /// Messages that waited.
    pub backlog: u64,
    /// Messages that had been settled.
    pub history: u64,
    /// Bytes in the data directory at the kill.
    pub data_bytes: u64,
    /// The time to ready of each start, in milliseconds.
    pub ready_ms: Vec<f64>,
    /// Messages that were there in the end.
    pub recovered: u64,
}

impl RecoverPoint {
    /// The middle one of the starts, in milliseconds.
    #[must_use]
    pub fn median_ms(&self) -> f64 {
        let mut sorted = self.ready_ms.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

/// What N times the history costs a start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistoryRatio {
    /// Messages that waited in both.
    pub backlog: u64,
    /// How many times the history the second one had.
    pub times: u64,
    /// Its time to ready by that of the first one, start by start.
    pub ratio: Option<Estimate>,
}

/// What `perf recover` gave, as its JSON tells it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecoverResult {
    /// [`SCHEMA`].
    pub schema: String,
    /// `recover`.
    pub kind: String,
    /// The machine.
    pub machine: Machine,
    /// Where the data was.
    pub place: Place,
    /// Bytes of a message's body.
    pub size: usize,
    /// Whether it may be believed.
    pub verdict: Verdict,
    /// The table.
    pub points: Vec<RecoverPoint>,
    /// With `--history-times`.
    pub ratios: Vec<HistoryRatio>,
}

/// The queue of the backlog, and that of the history.
const BACKLOG: &str = "recover-backlog";
const HISTORY: &str = "recover-history";

/// Backlog and history come in turn, in so many parts.
const PARTS: u64 = 10;
/// Of the ratios' interval.
const SEED: u64 = 1;

/// `laelaps perf recover`.
///
/// # Errors
/// See [`Failure`].
pub fn recover(options: &Options) -> Result<(), Failure> {
    let interrupt = Interrupt::listen()?;
    let scratch = Scratch::new(&options.own.dir)?;
    let mut result = RecoverResult {
        schema: SCHEMA.to_owned(),
        kind: "recover".to_owned(),
        machine: Machine::here(),
        place: Place::of(scratch.path())
            .map_err(|error| format!("{}: {error}", options.own.dir.display()))?,
        size: options.size,
        verdict: Verdict::new(),
        points: Vec::new(),
        ratios: Vec::new(),
    };
    for together in options.points() {
        let points = measure(options, &scratch, &together, &interrupt)?;
        for point in &points {
            let RecoverPoint { backlog, recovered, .. } = *point;
            if recovered != backlog {
                let lack = format!("{recovered} of {backlog} messages were there in the end");
                result.verdict.object(lack);
            }
        }
        if let ([one, more], Some(times)) = (&points[..], options.history_times) {
            let pairs = more.ready_ms.iter().zip(&one.ready_ms);
            let ratios: Vec<f64> = pairs.map(|(more, one)| more / one).collect();
            let ratio = estimate(&ratios, SEED);
            result.ratios.push(HistoryRatio { backlog: one.backlog, times, ratio });
        }
        result.points.extend(points);
    }
    if let Some(note) = result.place.note() {
        result.verdict.note(note);
    }
    result.verdict.note("after a kill the log is in the page cache; after a power cut it is not");
    options.own.show(&result.text(), &result)
}

/// What is in the broker when it is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Waits {
    backlog: u64,
    history: u64,
}

impl Options {
    /// What is measured; what stands together is started in turn.
    fn points(&self) -> Vec<Vec<Waits>> {
        let Some(times) = self.history_times else {
            let backlogs = self.backlog.iter().map(|backlog| (*backlog, 0));
            let histories = self.history.iter().map(|history| (0, *history));
            let all = backlogs.chain(histories);
            return all.map(|(backlog, history)| vec![Waits { backlog, history }]).collect();
        };
        let pair = |backlog: &u64| {
            let with = |history| Waits { backlog: *backlog, history };
            vec![with(*backlog), with(backlog * times)]
        };
        self.backlog.iter().filter(|backlog| **backlog > 0).map(pair).collect()
    }
}

/// A broker that is killed and started.
struct Subject {
    plan: BrokerPlan,
    waits: Waits,
    broker: Broker,
    data_bytes: u64,
    ready_ms: Vec<f64>,
}

fn measure(
    options: &Options,
    scratch: &Scratch,
    together: &[Waits],
    interrupt: &Interrupt,
) -> Result<Vec<RecoverPoint>, Failure> {
    let mut subjects = Vec::new();
    for (number, waits) in together.iter().enumerate() {
        let data = scratch.join(&format!("data-{number}"));
        subjects.push(prepare(options, data, *waits, interrupt)?);
    }
    for _ in 0..options.restarts {
        let restarted = subjects.into_iter().map(|subject| subject.restart(interrupt));
        subjects = restarted.collect::<Result<_, _>>()?;
    }
    let mut points = Vec::new();
    for Subject { plan, waits: Waits { backlog, history }, broker, data_bytes, ready_ms } in
        subjects
    {
        let recovered = if backlog == 0 { 0 } else { take(broker.target(), BACKLOG, backlog)? };
        broker.stop()?;
        let data = &plan.data;
        std::fs::remove_dir_all(data).map_err(|error| format!("{}: {error}", data.display()))?;
        let point = RecoverPoint { backlog, history, data_bytes, ready_ms, recovered };
        say(options, format_args!("{}", point.line()));
        points.push(point);
    }
    Ok(points)
}

fn say(options: &Options, text: std::fmt::Arguments<'_>) {
    if !options.own.quiet {
        eprintln!("{text}");
    }
}

fn prepare(
    options: &Options,
    data: PathBuf,
    waits: Waits,
    interrupt: &Interrupt,
) -> Result<Subject, Failure> {
    let Waits { backlog, history } = waits;
    let mut plan = BrokerPlan::new(data)?;
    // A kill is survived in memory too, and scratch directories are often there.
    plan.flags = vec!["--allow-volatile".to_owned()];
    plan.flags.extend(options.own.flags.iter().cloned());
    plan.ready_within = Duration::from_secs(600);
    let broker = Broker::start(&plan, interrupt)?;
    say(
        options,
        format_args!(
            "{} messages to settle, {} to wait",
            show::grouped(history),
            show::grouped(backlog)
        ),
    );
    let parts = if history > 0 && backlog > 0 { PARTS } else { 1 };
    for part in 0..parts {
        let of = |all: u64| all * (part + 1) / parts - all * part / parts;
        if of(history) > 0 {
            fill(broker.target(), HISTORY, options.size, of(history), interrupt)?;
            take(broker.target(), HISTORY, of(history))?;
        }
        if of(backlog) > 0 {
            fill(broker.target(), BACKLOG, options.size, of(backlog), interrupt)?;
        }
    }
    let data_bytes = size_of_directory(&plan.data);
    Ok(Subject { plan, waits, broker, data_bytes, ready_ms: Vec::new() })
}

impl Subject {
    /// Kills it and starts it again, timed.
    fn restart(mut self, interrupt: &Interrupt) -> Result<Self, Failure> {
        interrupt.check()?;
        self.broker.kill()?;
        self.broker = Broker::start(&self.plan, interrupt)?;
        self.ready_ms.push(self.broker.ready_after().as_secs_f64() * 1000.0);
        Ok(self)
    }
}

/// Sends so many messages, each accepted.
fn fill(
    target: Target,
    address: &str,
    size: usize,
    count: u64,
    interrupt: &Interrupt,
) -> Result<(), Failure> {
    let plan = LoadPlan {
        addresses: vec![address.to_owned()],
        producers: Links::alone(4),
        in_flight: 256,
        size,
        warmup: Duration::ZERO,
        length: Length::Count(count),
        ..LoadPlan::new(target)
    };
    let measured = load::measure(&plan, &mut |_| match interrupt.is_set() {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    })?;
    if measured.accepted == count {
        Ok(())
    } else {
        Err(format!("only {} of {count} messages were accepted", measured.accepted).into())
    }
}

/// Receives and settles what there is; how many, at most `count`.
fn take(target: Target, address: &str, count: u64) -> Result<u64, Failure> {
    let plan = LoadPlan { addresses: vec![address.to_owned()], ..LoadPlan::new(target) };
    Ok(load::drain(&plan, count)?)
}

impl RecoverResult {
    /// The result as text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!(
            "messages of {} B on {}\n{:>10} {:>10} {:>10} {:>12}  each start, ms\n",
            self.size, self.place.file_system, "backlog", "history", "data MiB", "ready ms"
        );
        for point in &self.points {
            text.push_str(&point.line());
            text.push('\n');
        }
        for HistoryRatio { backlog, times, ratio } in &self.ratios {
            let backlog = show::grouped(*backlog);
            let ratio = ratio.map_or("nothing".to_owned(), |Estimate { median, low, high }| {
                format!("{median:.2} times ({low:.2} to {high:.2}) the time to ready")
            });
            writeln!(text, "{backlog} waiting: {times} times the history is {ratio}")
                .expect("memory takes text");
        }
        format!("{text}{}\n", self.verdict)
    }
}

impl RecoverPoint {
    fn line(&self) -> String {
        let mut line = format!(
            "{:>10} {:>10} {:>10.1} {:>12.1} ",
            show::grouped(self.backlog),
            show::grouped(self.history),
            self.data_bytes as f64 / f64::from(1 << 20),
            self.median_ms()
        );
        for ready in &self.ready_ms {
            write!(line, " {ready:.1}").expect("memory takes text");
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Told {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn the_same_backlog_with_more_history_stands_beside_it() {
        let points = |flags: &[&str]| {
            let told = <Told as clap::Parser>::try_parse_from([&["perf"], flags].concat());
            let all = told.expect("flags").options.points();
            let pairs = all.iter().map(|group| {
                group.iter().map(|waits| (waits.backlog, waits.history)).collect::<Vec<_>>()
            });
            pairs.collect::<Vec<_>>()
        };
        let apart = points(&["--backlog", "0,7", "--history", "9"]);
        assert_eq!(apart, [vec![(0, 0)], vec![(7, 0)], vec![(0, 9)]]);
        let together = points(&["--backlog", "0,7", "--history-times", "10"]);
        assert_eq!(together, [vec![(7, 7), (7, 70)]]);
    }

    #[test]
    fn the_median_is_the_middle_start() {
        let point = |ready_ms: &[f64]| RecoverPoint {
            backlog: 1,
            history: 0,
            data_bytes: 0,
            ready_ms: ready_ms.to_vec(),
            recovered: 1,
        };
        assert!((point(&[9.0, 1.0, 3.0]).median_ms() - 3.0).abs() < 1e-9);
        assert!(point(&[]).median_ms().is_nan());
    }
}
