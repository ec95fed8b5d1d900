//! What one stretch of load measured, and how it is recorded while it runs.
//!
//! ```text
//!      intended ──── lag ────▶ actual ─────────────▶ done        offsets from the run's start, ns
//!         └──────────────── intended latency ────────┘            what a caller waited
//!                                └─ actual latency ──┘            what the answer took
//!
//!   |── warm-up ──|──────────── planned ────────────|── rest ──|
//!                 |─────────────── elapsed ────────────────────|
//! ```
//! A message belongs to the block if its *intended* time is within the planned stretch; the rest
//! waits for the answers that are still to come. Counting from the intended time is what keeps a
//! stalled peer from hiding: what should have been sent meanwhile has waited too.
//!
//! Histograms hold 1 ns to 10 min with 3 significant digits; what is longer is recorded as 10 min.
//! Memory is taken before the run, so recording allocates nothing on a run of a known length.
//!
//! Invariants: offered = sent + unsent, and sent = completed + refused + lost, once finished. A
//! message that was offered and never answered is in the intended histogram with the age that it
//! had in the end, so that giving up does not make a tail look shorter.
//!
//! The JSON form keeps a histogram whole, as pairs of value and count; percentiles stand beside for
//! readers that only want those, and are not read back.

pub use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

mod distribution;

pub use distribution::{PERCENTILES, Percentiles, empty_histogram, write_hgrm};

/// The version of all JSON that `laelaps perf` writes: the value of its key `schema`.
pub const SCHEMA: &str = "laelaps.perf/1";

/// The longest latency that is told apart, in nanoseconds: ten minutes.
pub const LATENCY_NS_MAX: u64 = 600 * NS_PER_S;

/// Steps of [`Block::slow`]; a longer run has longer steps.
pub const STEPS_MAX: usize = 600;

const NS_PER_S: u64 = 1_000_000_000;

/// One second (or a longer step) of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// When it begins, in seconds from the end of the warm-up, by intended time.
    pub second: u64,
    /// The median of the intended latency, in nanoseconds.
    pub p50_ns: u64,
    /// Its 99th percentile, in nanoseconds.
    pub p99_ns: u64,
    /// Its largest, in nanoseconds.
    pub max_ns: u64,
    /// Messages that were due in this step, answered or given up.
    pub count: u64,
}

/// What a stretch of load measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Block {
    /// The stretch in which messages were due; 0 where only a count was given, without a rate.
    pub planned_ns: u64,
    /// From the end of the warm-up to the last answer, or to where waiting was given up.
    pub elapsed_ns: u64,
    /// The rate asked for, a second; none in a closed loop.
    pub rate: Option<f64>,
    /// Messages that were due.
    pub offered: u64,
    /// Messages that were sent.
    pub sent: u64,
    /// Messages that reached their end: accepted by the peer, or received by us.
    pub completed: u64,
    /// Messages that were sent and never answered, or accepted and never received.
    pub lost: u64,
    /// Messages that the peer answered by anything but `accepted`.
    pub refused: u64,
    /// Messages that were due and were never sent: the peer or the in-flight bound held them up.
    pub unsent: u64,
    /// From the intended time to the end.
    #[serde(with = "distribution")]
    pub intended: Histogram<u64>,
    /// From the actual send to the end.
    #[serde(with = "distribution")]
    pub actual: Histogram<u64>,
    /// From the intended time to the actual send, while nothing but ourselves was in the way. Where
    /// the in-flight bound or credit held a message up, that is the peer's doing and not in here.
    #[serde(with = "distribution")]
    pub lag: Histogram<u64>,
    /// Messages that were late because of the in-flight bound or for lack of credit.
    pub held_up: u64,
    /// CPU time of our threads, in nanoseconds.
    pub cpu_client_ns: u64,
    /// Of it, what went into watching the clock before a message was due. It can be had back.
    pub spin_client_ns: u64,
    /// The share of its time, 0 to 1, that our busiest thread worked.
    pub busy_client_max: f64,
    /// CPU time of the peer's process, in nanoseconds, where it is on this machine and known.
    pub cpu_server_ns: Option<u64>,
    /// The latency over time, by intended time.
    pub slow: Vec<Step>,
}

impl Block {
    /// Messages completed a second.
    #[must_use]
    pub fn achieved(&self) -> f64 {
        per_second(self.completed, self.elapsed_ns)
    }

    /// Messages that were due a second, in the planned stretch.
    #[must_use]
    pub fn offered_rate(&self) -> f64 {
        per_second(
            self.offered,
            if self.planned_ns == 0 { self.elapsed_ns } else { self.planned_ns },
        )
    }

    /// Our CPU time a message without what went into watching the clock, in nanoseconds.
    #[must_use]
    pub fn cpu_client_ns_per_message(&self) -> f64 {
        let worked = self.cpu_client_ns.saturating_sub(self.spin_client_ns);
        worked as f64 / self.completed.max(1) as f64
    }

    /// The peer's CPU time a message, in nanoseconds, where it is known.
    #[must_use]
    pub fn cpu_server_ns_per_message(&self) -> Option<f64> {
        Some(self.cpu_server_ns? as f64 / self.completed.max(1) as f64)
    }
}

fn per_second(count: u64, ns: u64) -> f64 {
    if ns == 0 { 0.0 } else { count as f64 * NS_PER_S as f64 / ns as f64 }
}

/// The stretch that a block covers, as offsets from the start of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Where the warm-up ends.
    pub start_ns: u64,
    /// How long messages are due from there; `u64::MAX` where a count ends it.
    pub planned_ns: u64,
}

impl Window {
    /// Whether a message that is due then is of the block.
    #[must_use]
    pub fn holds(self, intended_ns: u64) -> bool {
        intended_ns >= self.start_ns && intended_ns - self.start_ns < self.planned_ns
    }

    /// The step of a message that is due then, and how long each is.
    fn step(self, intended_ns: u64) -> usize {
        ((intended_ns - self.start_ns) / self.step_ns()) as usize
    }

    fn step_ns(self) -> u64 {
        if self.planned_ns == u64::MAX {
            return NS_PER_S;
        }
        self.planned_ns.div_ceil(STEPS_MAX as u64).next_multiple_of(NS_PER_S).max(NS_PER_S)
    }
}

/// What the clocks said of the thread, or of all, when recording ended.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ended {
    /// When, as an offset from the start of the run.
    pub at_ns: u64,
    /// CPU time since the end of the warm-up.
    pub cpu_ns: u64,
    /// Of it, what went into watching the clock.
    pub spin_ns: u64,
}

/// Records a block, on one thread. All times are offsets from the start of the run. What is due
/// outside the window is taken without being counted.
#[derive(Debug)]
pub struct Recorder {
    window: Window,
    rate: Option<f64>,
    offered: u64,
    sent: u64,
    completed: u64,
    refused: u64,
    lost: u64,
    held_up: u64,
    last_done_ns: u64,
    intended: Histogram<u64>,
    actual: Histogram<u64>,
    lag: Histogram<u64>,
    steps: Vec<Histogram<u32>>,
}

impl Recorder {
    /// A recorder for a window; `rate` is what is asked of all threads together.
    #[must_use]
    pub fn new(window: Window, rate: Option<f64>) -> Self {
        let steps = match window.planned_ns {
            u64::MAX => 1,
            planned => planned.div_ceil(window.step_ns()) as usize,
        };
        Self {
            window,
            rate,
            offered: 0,
            sent: 0,
            completed: 0,
            refused: 0,
            lost: 0,
            held_up: 0,
            last_done_ns: window.start_ns,
            intended: empty_histogram(),
            actual: empty_histogram(),
            lag: empty_histogram(),
            steps: (0..steps.max(1)).map(|_| step_histogram()).collect(),
        }
    }

    /// The window.
    #[must_use]
    pub fn window(&self) -> Window {
        self.window
    }

    /// A message became due and was sent. `lag_since_ns` is when we could have sent it: its
    /// intended time, or later where an answer or credit had to come first.
    #[inline]
    pub fn sent(&mut self, intended_ns: u64, lag_since_ns: u64, actual_ns: u64) {
        if !self.window.holds(intended_ns) {
            return;
        }
        self.offered += 1;
        self.sent += 1;
        self.held_up += u64::from(lag_since_ns > intended_ns);
        self.lag.saturating_record(actual_ns.saturating_sub(lag_since_ns));
    }

    /// A message reached its end.
    #[inline]
    pub fn completed(&mut self, intended_ns: u64, actual_ns: u64, done_ns: u64) {
        if !self.window.holds(intended_ns) {
            return;
        }
        self.completed += 1;
        self.last_done_ns = self.last_done_ns.max(done_ns);
        self.actual.saturating_record(done_ns.saturating_sub(actual_ns));
        self.waited(intended_ns, done_ns);
    }

    /// The peer answered by something other than `accepted`.
    pub fn refused(&mut self, intended_ns: u64, done_ns: u64) {
        if self.window.holds(intended_ns) {
            self.refused += 1;
            self.last_done_ns = self.last_done_ns.max(done_ns);
        }
    }

    /// A message was sent, and waiting for its answer was given up.
    pub fn lost(&mut self, intended_ns: u64, given_up_ns: u64) {
        if self.window.holds(intended_ns) {
            self.lost += 1;
            self.waited(intended_ns, given_up_ns);
            self.last_done_ns = self.last_done_ns.max(given_up_ns);
        }
    }

    /// A message was due, and sending it was given up.
    pub fn unsent(&mut self, intended_ns: u64, given_up_ns: u64) {
        if self.window.holds(intended_ns) {
            self.offered += 1;
            self.waited(intended_ns, given_up_ns);
            self.last_done_ns = self.last_done_ns.max(given_up_ns);
        }
    }

    /// A message came that somebody else sent: it counts as offered and sent too.
    #[inline]
    pub fn received(&mut self, intended_ns: u64, actual_ns: u64, done_ns: u64) {
        if self.window.holds(intended_ns) {
            self.offered += 1;
            self.sent += 1;
            self.completed(intended_ns, actual_ns, done_ns);
        }
    }

    /// A message came that nobody here sent: it counts by the time it came. `ages` are those from
    /// its intended and its actual time, where it tells them.
    #[inline]
    pub fn arrived(&mut self, done_ns: u64, ages: Option<(u64, u64)>) {
        if !self.window.holds(done_ns) {
            return;
        }
        self.offered += 1;
        self.sent += 1;
        self.completed += 1;
        self.last_done_ns = self.last_done_ns.max(done_ns);
        if let Some((intended, actual)) = ages {
            self.intended.saturating_record(intended);
            self.actual.saturating_record(actual);
            self.record_step(done_ns, intended);
        }
    }

    /// Of `accepted` messages, those that were never received are lost. Which ones is not known, so
    /// they are in no histogram.
    pub fn never_came(&mut self, accepted: u64) {
        let missing = accepted.saturating_sub(self.completed);
        self.offered += missing;
        self.sent += missing;
        self.lost += missing;
    }

    fn waited(&mut self, intended_ns: u64, until_ns: u64) {
        let latency = until_ns.saturating_sub(intended_ns);
        self.intended.saturating_record(latency);
        self.record_step(intended_ns, latency);
    }

    fn record_step(&mut self, at_ns: u64, latency_ns: u64) {
        let step = self.window.step(at_ns).min(STEPS_MAX - 1);
        // Only a run of unknown length comes here without its memory.
        while self.steps.len() <= step {
            self.steps.push(step_histogram());
        }
        self.steps[step].saturating_record(latency_ns);
    }

    /// Takes in what another thread recorded over the same window.
    ///
    /// # Panics
    /// If the windows differ.
    pub fn add(&mut self, other: &Self) {
        assert_eq!(self.window, other.window, "two runs that are not one");
        self.offered += other.offered;
        self.sent += other.sent;
        self.completed += other.completed;
        self.refused += other.refused;
        self.lost += other.lost;
        self.held_up += other.held_up;
        self.last_done_ns = self.last_done_ns.max(other.last_done_ns);
        distribution::add(&mut self.intended, &other.intended);
        distribution::add(&mut self.actual, &other.actual);
        distribution::add(&mut self.lag, &other.lag);
        self.steps.resize_with(self.steps.len().max(other.steps.len()), step_histogram);
        for (mine, theirs) in self.steps.iter_mut().zip(&other.steps) {
            distribution::add(mine, theirs);
        }
    }

    /// The block, with what the clocks of the threads said.
    ///
    /// # Panics
    /// If more was answered than was sent.
    #[must_use]
    pub fn finish(self, ended: &[Ended]) -> Block {
        let answered = self.completed + self.refused + self.lost;
        assert_eq!(self.sent, answered, "what was sent is answered, refused or lost");
        let start = self.window.start_ns;
        let busy = |thread: &Ended| {
            let worked = thread.cpu_ns.saturating_sub(thread.spin_ns);
            worked as f64 / thread.at_ns.saturating_sub(start).max(1) as f64
        };
        let planned = self.window.planned_ns;
        let step_s = self.window.step_ns() / NS_PER_S;
        Block {
            planned_ns: if planned == u64::MAX { 0 } else { planned },
            elapsed_ns: self.last_done_ns - start,
            rate: self.rate,
            offered: self.offered,
            sent: self.sent,
            completed: self.completed,
            lost: self.lost,
            refused: self.refused,
            unsent: self.offered - self.sent,
            intended: self.intended,
            actual: self.actual,
            lag: self.lag,
            held_up: self.held_up,
            cpu_client_ns: ended.iter().map(|thread| thread.cpu_ns).sum(),
            spin_client_ns: ended.iter().map(|thread| thread.spin_ns).sum(),
            busy_client_max: ended.iter().map(busy).fold(0.0, f64::max),
            cpu_server_ns: None,
            slow: (0..)
                .zip(&self.steps)
                .filter_map(|(at, step)| step_of(at * step_s, step))
                .collect(),
        }
    }
}

fn step_of(second: u64, step: &Histogram<u32>) -> Option<Step> {
    (!step.is_empty()).then(|| Step {
        second,
        p50_ns: step.value_at_quantile(0.5),
        p99_ns: step.value_at_quantile(0.99),
        max_ns: step.max(),
        count: step.len(),
    })
}

/// Two digits are enough for a point in a plot, and keep the memory of hundreds of steps small.
fn step_histogram() -> Histogram<u32> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, 2).expect("bounds that hold")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn window(start_ms: u64, planned_ms: u64) -> Window {
        Window { start_ns: start_ms * MS, planned_ns: planned_ms * MS }
    }

    fn one(recorder: &mut Recorder, intended: u64, actual: u64, done: u64) {
        recorder.sent(intended, intended, actual);
        recorder.completed(intended, actual, done);
    }

    #[test]
    fn latency_counts_from_the_intended_time() {
        let mut recorder = Recorder::new(window(0, 1000), Some(100.0));
        one(&mut recorder, 10 * MS, 210 * MS, 211 * MS);
        let block = recorder.finish(&[]);
        let within = |histogram: &Histogram<u64>, ms: u64| {
            histogram.max().abs_diff(ms * MS) <= ms * MS / 1000
        };
        assert!(within(&block.intended, 201), "{}", block.intended.max());
        assert!(within(&block.actual, 1), "{}", block.actual.max());
        assert!(within(&block.lag, 200), "{}", block.lag.max());
        assert_eq!((block.elapsed_ns, block.completed), (211 * MS, 1));
    }

    #[test]
    fn what_is_due_in_the_warm_up_or_after_the_end_is_not_counted() {
        let mut recorder = Recorder::new(window(100, 1000), None);
        one(&mut recorder, 99 * MS, 99 * MS, 150 * MS);
        one(&mut recorder, 1100 * MS, 1100 * MS, 1101 * MS);
        recorder.lost(0, 500 * MS);
        recorder.unsent(1100 * MS, 1200 * MS);
        recorder.refused(50 * MS, 60 * MS);
        one(&mut recorder, 100 * MS, 100 * MS, 101 * MS);
        let block = recorder.finish(&[]);
        assert_eq!((block.offered, block.sent, block.completed), (1, 1, 1));
        assert_eq!((block.lost, block.refused, block.unsent), (0, 0, 0));
        assert_eq!(block.elapsed_ns, MS);
    }

    #[test]
    fn giving_up_does_not_shorten_the_tail() {
        let mut recorder = Recorder::new(window(0, 1000), Some(3.0));
        one(&mut recorder, 0, 0, MS);
        recorder.sent(333 * MS, 333 * MS, 333 * MS);
        recorder.lost(333 * MS, 5333 * MS);
        recorder.unsent(666 * MS, 5333 * MS);
        let block = recorder.finish(&[]);
        assert_eq!((block.offered, block.sent, block.lost, block.unsent), (3, 2, 1, 1));
        assert_eq!(block.intended.len(), 3);
        assert!(block.intended.max() >= 4995 * MS);
        assert_eq!(block.elapsed_ns, 5333 * MS, "the rate counts what was waited for");
    }

    #[test]
    fn what_the_peer_held_up_is_not_our_lag() {
        let mut recorder = Recorder::new(window(0, 1000), Some(100.0));
        recorder.sent(10 * MS, 200 * MS, 201 * MS);
        recorder.completed(10 * MS, 201 * MS, 202 * MS);
        let block = recorder.finish(&[]);
        assert!(block.lag.max() < 2 * MS, "{}", block.lag.max());
        assert_eq!(block.held_up, 1);
    }

    #[test]
    #[should_panic(expected = "what was sent is answered")]
    fn an_answer_that_nobody_counted_is_noticed() {
        let mut recorder = Recorder::new(window(0, 1000), None);
        recorder.sent(0, 0, 0);
        let _ = recorder.finish(&[]);
    }

    #[test]
    fn steps_show_when_it_was_slow() {
        let mut recorder = Recorder::new(window(1000, 3000), None);
        one(&mut recorder, 1000 * MS, 1000 * MS, 1001 * MS);
        one(&mut recorder, 3500 * MS, 3500 * MS, 3900 * MS);
        let slow = recorder.finish(&[]).slow;
        assert_eq!(slow.iter().map(|step| step.second).collect::<Vec<_>>(), [0, 2]);
        assert!(slow[1].max_ns >= 396 * MS && slow[0].max_ns < 2 * MS);
    }

    #[test]
    fn a_run_of_hours_has_longer_steps_and_no_more_of_them() {
        let hours = window(0, 10 * 3600 * 1000);
        assert_eq!(hours.step_ns(), 60 * NS_PER_S);
        assert_eq!(Recorder::new(hours, None).steps.len(), STEPS_MAX);
        let mut endless = Recorder::new(Window { start_ns: 0, planned_ns: u64::MAX }, None);
        one(&mut endless, 7 * 24 * 3600 * NS_PER_S, 0, 0);
        assert_eq!(endless.steps.len(), STEPS_MAX);
    }

    #[test]
    fn threads_add_up() {
        let mut all = Recorder::new(window(0, 1000), Some(2.0));
        let mut other = Recorder::new(window(0, 1000), Some(2.0));
        one(&mut all, 0, 0, MS);
        one(&mut other, 500 * MS, 500 * MS, 510 * MS);
        all.add(&other);
        let ended = |cpu_ns, spin_ns| Ended { at_ns: 1000 * MS, cpu_ns, spin_ns };
        let block = all.finish(&[ended(900 * MS, 700 * MS), ended(500 * MS, 0)]);
        assert_eq!((block.offered, block.completed, block.intended.len()), (2, 2, 2));
        assert_eq!((block.cpu_client_ns, block.spin_client_ns), (1400 * MS, 700 * MS));
        assert!((block.busy_client_max - 0.5).abs() < 1e-9, "{}", block.busy_client_max);
    }

    #[test]
    fn a_block_goes_through_json_whole() {
        let mut recorder = Recorder::new(window(0, 1000), Some(1000.0));
        for at in 0..1000 {
            one(&mut recorder, at * MS, at * MS + at, at * MS + at * at + 1);
        }
        let block = recorder.finish(&[Ended { at_ns: 1000 * MS, cpu_ns: 7, spin_ns: 3 }]);
        let text = serde_json::to_string(&block).expect("plain data");
        let back: Block = serde_json::from_str(&text).expect("what we wrote");
        assert_eq!(back, block);
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value["intended"]["count"], 1000);
        assert_eq!(value["intended"]["p50_ns"], block.intended.value_at_quantile(0.5));
    }
}
