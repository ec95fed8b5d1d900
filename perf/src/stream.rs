//! `perf produce`, `perf consume`, `perf e2e`: one load, one result.
//!
//! ```text
//!   flags ─▶ LoadPlan ─▶ load::measure ─▶ Verdict ─┬─ text       standard output
//!                                                  ├─ --json     StreamResult, whole histograms
//!                                                  └─ --hgrm     the intended latency
//! ```
//! `e2e` sends and receives in one process, so both times are of one clock. `consume` alone tells
//! the age of messages that `produce` sent on the same machine since it started; what others sent
//! is only counted.
//!
//! Failure: see [`Failure`]; no file is written then.

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::arguments::{Messages, Output, Peer, PlanSummary, Shape, Time, parse_rate};
use crate::block::{Block, SCHEMA, write_hgrm};
use crate::command::Failure;
use crate::load::{self, Length, Links, LoadPlan};
use crate::machine::{Machine, Noise, Snapshot};
use crate::show::{self, ProgressLine};
use crate::verdict::Verdict;

/// What `perf produce` is told.
#[derive(Args, Clone, Debug)]
pub struct ProduceOptions {
    #[command(flatten)]
    peer: Peer,
    #[command(flatten)]
    shape: Shape,
    #[command(flatten)]
    messages: Messages,
    /// Messages a second, of all producers together [default: as fast as in-flight allows]
    #[arg(long, value_name = "N", value_parser = parse_rate)]
    rate: Option<f64>,
    #[command(flatten)]
    time: Time,
    #[command(flatten)]
    output: Output,
}

/// What `perf consume` is told.
#[derive(Args, Clone, Debug)]
pub struct ConsumeOptions {
    #[command(flatten)]
    peer: Peer,
    #[command(flatten)]
    shape: Shape,
    /// Messages that may come ahead of our settlements, on each link
    #[arg(long, value_name = "N", default_value_t = 256,
          value_parser = clap::value_parser!(u32).range(1..))]
    credit: u32,
    #[command(flatten)]
    time: Time,
    #[command(flatten)]
    output: Output,
}

/// What `perf e2e` is told.
#[derive(Args, Clone, Debug)]
pub struct E2eOptions {
    #[command(flatten)]
    peer: Peer,
    #[command(flatten)]
    shape: Shape,
    /// Connections that receive, with a link for each address
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..))]
    consumers: u32,
    /// Messages that may come ahead of our settlements, on each link
    #[arg(long, value_name = "N", default_value_t = 256,
          value_parser = clap::value_parser!(u32).range(1..))]
    credit: u32,
    #[command(flatten)]
    messages: Messages,
    /// Messages a second, of all producers together
    #[arg(long, value_name = "N", default_value = "1000", value_parser = parse_rate)]
    rate: f64,
    #[command(flatten)]
    time: Time,
    #[command(flatten)]
    output: Output,
}

/// What a load gave, as its JSON tells it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StreamResult {
    /// [`SCHEMA`].
    pub schema: String,
    /// `produce`, `consume` or `e2e`.
    pub kind: String,
    /// The client's machine.
    pub machine: Machine,
    /// What was asked.
    pub plan: PlanSummary,
    /// Whether it may be believed.
    pub verdict: Verdict,
    /// What the machine did meanwhile.
    pub noise: Noise,
    /// Sent to accepted.
    pub produced: Option<Block>,
    /// Sent to received.
    pub consumed: Option<Block>,
    /// Messages that were accepted, warm-up included.
    pub accepted: u64,
}

/// `laelaps perf produce`.
///
/// # Errors
/// See [`Failure`].
pub fn produce(options: &ProduceOptions) -> Result<(), Failure> {
    let mut plan = LoadPlan::new(options.peer.target()?);
    options.shape.apply(&mut plan);
    options.messages.apply(&mut plan, options.rate);
    options.time.apply(&mut plan);
    plan.producers = options.shape.links();
    plan.server_process = options.peer.server_pid;
    carry_out("produce", &plan, &options.output)
}

/// `laelaps perf consume`.
///
/// # Errors
/// See [`Failure`].
pub fn consume(options: &ConsumeOptions) -> Result<(), Failure> {
    let mut plan = LoadPlan::new(options.peer.target()?);
    options.shape.apply(&mut plan);
    options.time.apply(&mut plan);
    // Messages of a queue are there once: none is spent on a warm-up.
    if options.time.count.is_some() {
        plan.warmup = std::time::Duration::ZERO;
    }
    plan.producers = Links::NONE;
    plan.consumers = options.shape.links();
    plan.credit = options.credit;
    plan.server_process = options.peer.server_pid;
    carry_out("consume", &plan, &options.output)
}

/// `laelaps perf e2e`.
///
/// # Errors
/// See [`Failure`].
pub fn e2e(options: &E2eOptions) -> Result<(), Failure> {
    let mut plan = LoadPlan::new(options.peer.target()?);
    options.shape.apply(&mut plan);
    options.messages.apply(&mut plan, Some(options.rate));
    options.time.apply(&mut plan);
    plan.producers = options.shape.links();
    let each = u32::try_from(plan.addresses.len())?;
    plan.consumers = Links { connections: options.consumers, each };
    plan.credit = options.credit;
    plan.server_process = options.peer.server_pid;
    carry_out("e2e", &plan, &options.output)
}

fn carry_out(kind: &str, plan: &LoadPlan, output: &Output) -> Result<(), Failure> {
    let result = measure(kind, plan, output.quiet)?;
    show::print(&result.text())?;
    if let Some(path) = &output.json {
        show::write_json(path, &result)?;
    }
    if let (Some(path), Some(block)) = (&output.hgrm, result.main_block()) {
        show::write_file(path, &write_hgrm(&block.intended))?;
    }
    Ok(())
}

/// Measures a plan and judges it.
///
/// # Errors
/// See [`load::LoadError`].
pub fn measure(kind: &str, plan: &LoadPlan, quiet: bool) -> Result<StreamResult, Failure> {
    let mut line = ProgressLine::new(quiet);
    let before = Snapshot::take();
    let measured = load::measure(plan, &mut |progress| line.observe(progress))?;
    let noise = Noise::between(&before, &Snapshot::take());
    let mut result = StreamResult {
        schema: SCHEMA.to_owned(),
        kind: kind.to_owned(),
        machine: Machine::here(),
        plan: PlanSummary::of(plan),
        verdict: Verdict::new(),
        noise,
        produced: measured.produced,
        consumed: measured.consumed,
        accepted: measured.accepted,
    };
    result.judge(plan);
    Ok(result)
}

impl StreamResult {
    fn judge(&mut self, plan: &LoadPlan) {
        let both = self.produced.is_some() && self.consumed.is_some();
        let name = |name: &'static str| if both { name } else { "" };
        if let Some(block) = &self.produced {
            self.verdict.judge(name("send"), block);
        }
        if let Some(block) = &self.consumed {
            self.verdict.judge(name("receive"), block);
            if let (Length::Count(count), false) = (plan.length, both)
                && block.completed < count
            {
                self.verdict.object(format!("{} of {count} messages came", block.completed));
            }
        }
        if plan.rate.is_none() && self.produced.is_some() {
            self.verdict
                .note("closed loop: what an answer takes, not what a caller with a schedule waits");
        }
        if let Some(objection) = self.noise.objection() {
            self.verdict.object(format!("the machine was not ours alone: {objection}"));
        }
    }

    /// The block that the result is about.
    #[must_use]
    pub fn main_block(&self) -> Option<&Block> {
        self.consumed.as_ref().or(self.produced.as_ref())
    }

    /// The result as text.
    #[must_use]
    pub fn text(&self) -> String {
        let plan = &self.plan;
        let rate = match plan.rate {
            Some(rate) => format!("{} a second, {:?}", show::grouped(rate as u64), plan.arrivals),
            None => "closed loop".to_owned(),
        };
        let mut text = match &self.produced {
            Some(_) => format!(
                "{}: {} B {}, {} connections of {} links, {} in flight each, {}\n",
                self.kind,
                plan.size,
                if plan.durable { "durable" } else { "not durable" },
                plan.producers.0,
                plan.producers.1,
                plan.in_flight,
                rate.to_lowercase()
            ),
            None => format!(
                "{}: {} connections of {} links, credit {}\n",
                self.kind, plan.consumers.0, plan.consumers.1, plan.credit
            ),
        };
        if let Some(block) = &self.produced {
            text.push_str(&show::block(block, "accepted"));
        }
        if let Some(block) = &self.consumed {
            text.push_str(&show::block(block, "received"));
        }
        format!("{text}{}\n", self.verdict)
    }
}
