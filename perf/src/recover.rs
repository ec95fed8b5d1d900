//! `perf recover`: how long a broker that was killed takes until it serves again.
//!
//! ```text
//!   for each point (backlog, history):
//!     start on an empty directory ─▶ history: send, receive, settle ─▶ backlog: send
//!       ─▶ kill -9 ─▶ start, timed ─▶ kill -9 ─▶ start, timed ─▶ ... ─▶ receive the backlog
//! ```
//! *Backlog* is what still waits in a queue; *history* is what was settled, and should cost nothing
//! once its segments are reused. The time is from the start of the process to the first 200 of
//! `/healthz/ready`, asked every millisecond. In the end the backlog is received and counted: a
//! broker that is ready early because it forgot something is not fast.
//!
//! The page cache survives a kill, so the log is read from memory: after a power cut the disk's
//! reading comes on top.
//!
//! Failure: see [`Failure`]; broker and directory are gone in any case.

use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::path::Path;
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
}

/// The queue of the backlog, and that of the history.
const BACKLOG: &str = "recover-backlog";
const HISTORY: &str = "recover-history";

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
    };
    let backlogs = options.backlog.iter().map(|backlog| (*backlog, 0));
    let histories = options.history.iter().map(|history| (0, *history));
    for (number, (backlog, history)) in backlogs.chain(histories).enumerate() {
        let data = scratch.join(&format!("data-{number}"));
        let point = measure(options, &data, Waits { backlog, history }, &interrupt)?;
        std::fs::remove_dir_all(&data).map_err(|error| format!("{}: {error}", data.display()))?;
        if point.recovered != backlog {
            let found = point.recovered;
            result.verdict.object(format!("{found} of {backlog} messages were there in the end"));
        }
        result.points.push(point);
    }
    if let Some(note) = result.place.note() {
        result.verdict.note(note);
    }
    result.verdict.note("after a kill the log is in the page cache; after a power cut it is not");
    options.own.show(&result.text(), &result)
}

/// What is in the broker when it is killed.
#[derive(Clone, Copy)]
struct Waits {
    backlog: u64,
    history: u64,
}

fn measure(
    options: &Options,
    data: &Path,
    waits: Waits,
    interrupt: &Interrupt,
) -> Result<RecoverPoint, Failure> {
    let Waits { backlog, history } = waits;
    let mut plan = BrokerPlan::new(data.to_owned())?;
    // A kill is survived in memory too, and scratch directories are often there.
    plan.flags = vec!["--allow-volatile".to_owned()];
    plan.flags.extend(options.own.flags.iter().cloned());
    plan.ready_within = Duration::from_secs(600);
    let say = |text: std::fmt::Arguments<'_>| {
        if !options.own.quiet {
            eprintln!("{text}");
        }
    };

    let mut broker = Broker::start(&plan, interrupt)?;
    if history > 0 {
        say(format_args!("sending, receiving and settling {} messages", show::grouped(history)));
        fill(broker.target(), HISTORY, options.size, history, interrupt)?;
        take(broker.target(), HISTORY, history)?;
    }
    if backlog > 0 {
        say(format_args!("sending {} messages", show::grouped(backlog)));
        fill(broker.target(), BACKLOG, options.size, backlog, interrupt)?;
    }
    let data_bytes = size_of_directory(data);
    let mut ready_ms = Vec::new();
    for _ in 0..options.restarts {
        interrupt.check()?;
        broker.kill()?;
        broker = Broker::start(&plan, interrupt)?;
        ready_ms.push(broker.ready_after().as_secs_f64() * 1000.0);
    }
    let recovered = if backlog == 0 { 0 } else { take(broker.target(), BACKLOG, backlog)? };
    broker.stop()?;
    let point = RecoverPoint { backlog, history, data_bytes, ready_ms, recovered };
    say(format_args!("{}", point.line()));
    Ok(point)
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
