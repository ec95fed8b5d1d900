//! `perf sweep`: how much a broker takes before its latency gives way.
//!
//! ```text
//!   rate   from ─▶ × factor ─▶ × factor ─▶ ... ─▶ saturated ─▶ back between the last two, refined
//!                    each step: a load of its own, then the queue is emptied
//!
//!   saturated:  less than 97 % of what was due was done in its time,
//!               or p99 above P99_TIMES times that of the first step
//! ```
//! The saturation rate is the highest that was held, not the highest that was seen: a broker that
//! is pushed beyond it often does more a second, at latencies that nobody wants.
//!
//! Failure: see [`Failure`]. A step that is INVALID for our own sake (the client saturated, late
//! sends) ends the sweep and makes it INVALID: beyond it we would measure ourselves.

use std::fmt::Write as _;
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::arguments::{Messages, Output, Peer, PlanSummary, Shape, parse_duration, parse_rate};
use crate::block::{Block, Percentiles, SCHEMA, write_hgrm};
use crate::command::Failure;
use crate::load::{self, Length, LoadPlan};
use crate::machine::{Machine, Noise};
use crate::show;
use crate::stream;
use crate::verdict::{self, Verdict};

/// A p99 of so many times that of the first step has given way.
pub const P99_TIMES: u64 = 10;

/// No p99 below this has given way: at tens of microseconds a factor means nothing.
const P99_NS_MIN: u64 = 5_000_000;

/// What `perf sweep` is told.
#[derive(Args, Clone, Debug)]
pub struct Options {
    #[command(flatten)]
    peer: Peer,
    #[command(flatten)]
    shape: Shape,
    #[command(flatten)]
    messages: Messages,
    /// The first rate, messages a second
    #[arg(long, value_name = "N", default_value = "1000", value_parser = parse_rate)]
    from: f64,
    /// The last rate, if nothing gives way before
    #[arg(long, value_name = "N", default_value = "1000000", value_parser = parse_rate)]
    to: f64,
    /// Each rate is so many times the one before
    #[arg(long, value_name = "X", default_value_t = 1.6, value_parser = parse_factor)]
    factor: f64,
    /// Rates tried between the last two, to come closer
    #[arg(long, value_name = "N", default_value_t = 2,
          value_parser = clap::value_parser!(u32).range(0..=10))]
    refine: u32,
    /// Load before each step counts
    #[arg(long, value_name = "TIME", default_value = "500ms", value_parser = parse_duration)]
    warmup: Duration,
    /// How long each step counts
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = parse_duration)]
    duration: Duration,
    /// Leave the messages in their queues
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    output: Output,
}

fn parse_factor(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|factor| (1.05..=100.0).contains(factor))
        .ok_or_else(|| format!("`{text}` is no factor: 1.05 to 100"))
}

/// One rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RateStep {
    /// Messages a second that were asked for.
    pub rate: f64,
    /// Whether it was held.
    pub held: bool,
    /// What was measured.
    pub block: Block,
    /// What the machine did meanwhile.
    pub noise: Noise,
}

/// What a sweep gave, as its JSON tells it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SweepResult {
    /// [`SCHEMA`].
    pub schema: String,
    /// `sweep`.
    pub kind: String,
    /// The client's machine.
    pub machine: Machine,
    /// What was asked, with the first rate.
    pub plan: PlanSummary,
    /// Whether it may be believed.
    pub verdict: Verdict,
    /// The highest rate that was held, messages a second; none where the first was not.
    pub saturation: Option<f64>,
    /// Whether a rate was met that was not held.
    pub saturated: bool,
    /// Every rate, in the order in which it was tried.
    pub steps: Vec<RateStep>,
}

/// `laelaps perf sweep`.
///
/// # Errors
/// See [`Failure`].
pub fn sweep(options: &Options) -> Result<(), Failure> {
    let mut plan = LoadPlan::new(options.peer.target()?);
    options.shape.apply(&mut plan);
    options.messages.apply(&mut plan, Some(options.from));
    plan.producers = options.shape.links();
    plan.server_process = options.peer.server_pid;
    plan.warmup = options.warmup;
    plan.length = Length::For(options.duration);
    let result = run(options, &plan)?;
    show::print(&result.text())?;
    if let Some(path) = &options.output.json {
        show::write_json(path, &result)?;
    }
    let last_held =
        result.steps.iter().filter(|step| step.held).max_by(|a, b| a.rate.total_cmp(&b.rate));
    if let (Some(path), Some(step)) = (&options.output.hgrm, last_held) {
        show::write_file(path, &write_hgrm(&step.block.intended))?;
    }
    Ok(())
}

fn run(options: &Options, plan: &LoadPlan) -> Result<SweepResult, Failure> {
    let mut result = SweepResult {
        schema: SCHEMA.to_owned(),
        kind: "sweep".to_owned(),
        machine: Machine::here(),
        plan: PlanSummary::of(plan),
        verdict: Verdict::new(),
        saturation: None,
        saturated: false,
        steps: Vec::new(),
    };
    let mut course = Course::new(options.from, options.to, options.factor, options.refine);
    while let Some(rate) = course.next_rate() {
        let step = result.step(options, plan, rate)?;
        course.tell(rate, step.held);
        let ours = client_fault(&step.block);
        result.steps.push(step);
        if let Some(fault) = ours {
            result.verdict.object(format!("at {rate:.0} a second: {fault}"));
            break;
        }
    }
    (result.saturation, result.saturated) = (course.held, course.not_held.is_some());
    match (result.saturation, result.saturated) {
        (None, _) => result.verdict.object("the first rate was not held; begin lower, by --from"),
        (Some(_), false) => result.verdict.note("nothing gave way: go on, by --to"),
        (Some(_), true) => {}
    }
    Ok(result)
}

impl SweepResult {
    fn step(&self, options: &Options, plan: &LoadPlan, rate: f64) -> Result<RateStep, Failure> {
        let plan = LoadPlan { rate: Some(rate), ..plan.clone() };
        let measured = stream::measure("sweep", &plan, true)?;
        let block = measured.produced.ok_or("a sweep has producers")?;
        if !options.keep {
            // The warm-up's messages are in the queue too; they were accepted like the others.
            load::drain(&plan, measured.accepted)?;
        }
        let first = self.steps.first().map_or(u64::MAX, |step| p99_ns(&step.block));
        let held = is_held(&block, first);
        let step = RateStep { rate, held, block, noise: measured.noise };
        if !options.output.quiet {
            eprint!("{}", step.line());
        }
        Ok(step)
    }

    /// The result as text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!(
            "{:>10} {:>10} {:>6} {:>10} {:>10} {:>10} {:>10}  µs\n",
            "rate", "done", "held", "p50", "p99", "p99.9", "max"
        );
        let mut steps: Vec<&RateStep> = self.steps.iter().collect();
        steps.sort_by(|a, b| a.rate.total_cmp(&b.rate));
        for step in steps {
            text.push_str(&step.line());
        }
        if let Some(rate) = self.saturation {
            let least = if self.saturated { "" } else { "at least " };
            writeln!(text, "holds {least}{} a second", show::grouped(rate as u64))
                .expect("memory takes text");
        }
        format!("{text}{}\n", self.verdict)
    }
}

impl RateStep {
    fn line(&self) -> String {
        let Percentiles { p50, p99, p999, max, .. } = Percentiles::of(&self.block.intended);
        let us = |ns: u64| format!("{:10.1}", ns as f64 / 1000.0);
        format!(
            "{:>10} {:>10} {:>6} {} {} {} {}\n",
            show::grouped(self.rate.round() as u64),
            show::grouped(self.block.achieved().round() as u64),
            if self.held { "yes" } else { "no" },
            us(p50),
            us(p99),
            us(p999),
            us(max)
        )
    }
}

/// The 99th percentile from the intended time, in nanoseconds.
pub(crate) fn p99_ns(block: &Block) -> u64 {
    block.intended.value_at_quantile(0.99)
}

/// Whether the rate of a block was held; `p99_first_ns` is that of the first step, [`u64::MAX`] in
/// that.
pub(crate) fn is_held(block: &Block, p99_first_ns: u64) -> bool {
    let bound = p99_first_ns.saturating_mul(P99_TIMES).max(P99_NS_MIN);
    verdict::reached(block) && p99_ns(block) <= bound
}

/// What makes a step ours and not the broker's: it was held back by the client.
pub(crate) fn client_fault(block: &Block) -> Option<String> {
    if block.busy_client_max > verdict::BUSY_SHARE_MAX {
        return Some("the client is saturated; try --threads".to_owned());
    }
    if block.lost + block.refused > 0 {
        let (lost, refused) = (block.lost, block.refused);
        return Some(format!("{lost} messages were lost, {refused} refused"));
    }
    None
}

/// Which rate is tried next.
#[derive(Clone, Debug)]
pub(crate) struct Course {
    next: f64,
    to: f64,
    factor: f64,
    refine: u32,
    held: Option<f64>,
    not_held: Option<f64>,
}

impl Course {
    /// From one rate to another, each so many times the one before; then so many in between.
    pub(crate) fn new(from: f64, to: f64, factor: f64, refine: u32) -> Self {
        Self { next: from, to, factor, refine, held: None, not_held: None }
    }

    /// The next rate, if there is more to try.
    pub(crate) fn next_rate(&mut self) -> Option<f64> {
        match (self.held, self.not_held) {
            (_, None) => (self.next <= self.to).then_some(self.next),
            (Some(held), Some(not_held)) if self.refine > 0 => {
                self.refine -= 1;
                // The middle of a geometric row.
                Some((held * not_held).sqrt())
            }
            (Some(_) | None, Some(_)) => None,
        }
    }

    /// The highest rate that was held.
    pub(crate) fn held(&self) -> Option<f64> {
        self.held
    }

    /// Whether a rate was held.
    pub(crate) fn tell(&mut self, rate: f64, held: bool) {
        if held {
            self.held = Some(self.held.map_or(rate, |best| best.max(rate)));
            self.next = rate * self.factor;
        } else {
            self.not_held = Some(self.not_held.map_or(rate, |least| least.min(rate)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rates tried on a broker that holds up to `limit`.
    fn rates(limit: f64, course: &mut Course) -> Vec<u64> {
        let mut rates = Vec::new();
        while let Some(rate) = course.next_rate() {
            rates.push(rate.round() as u64);
            course.tell(rate, rate <= limit);
        }
        rates
    }

    #[test]
    fn rates_rise_until_one_is_not_held_and_then_close_in() {
        let mut course = Course::new(1000.0, 1e6, 2.0, 2);
        assert_eq!(rates(5000.0, &mut course), [1000, 2000, 4000, 8000, 5657, 4757]);
        assert_eq!(course.held.map(f64::round), Some(4757.0));
        assert_eq!(course.not_held.map(f64::round), Some(5657.0));
    }

    #[test]
    fn a_first_rate_that_is_not_held_ends_it() {
        let mut course = Course::new(1000.0, 1e6, 2.0, 2);
        assert_eq!(rates(1.0, &mut course), [1000]);
        assert_eq!(course.held, None);
    }

    #[test]
    fn a_broker_that_holds_all_ends_it_at_the_last_rate() {
        let mut course = Course::new(1000.0, 4000.0, 2.0, 2);
        assert_eq!(rates(1e9, &mut course), [1000, 2000, 4000]);
        assert_eq!((course.held, course.not_held), (Some(4000.0), None));
    }
}
