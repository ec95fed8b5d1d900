//! What is looked at while something else goes on: a steady producer, the bare disk, a process.
//!
//! ```text
//!   the work      a closure of the caller's, on a thread of its own     ──────────────────────▶
//!   steady        a producer at a fixed rate, and who takes its messages     p99 of each second
//!   probe         aligned durable writes of 4 KiB at a fixed rate            p99 of each second
//!   watch         /proc/PID/status every 20 ms, the data directory now and then          maxima
//! ```
//! A producer that stalls may have met the disk's own stall: the probe stands beside it, so that
//! the two can be told apart. It writes little: a hundred blocks a second.
//!
//! Failure: the first that failed, in words.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::block::{Block, Percentiles, Step};
use crate::broker::{Broker, Interrupt};
use crate::command::Failure;
use crate::floor::{Floor, FloorKind, FloorLoad};
use crate::load::{self, Length, Links, LoadPlan, Measured, Target};
use crate::machine;
use crate::schedule::Arrivals;
use crate::stats::median;

/// Durable writes of the probe, a second.
const PROBE_RATE: f64 = 100.0;

/// Bytes of each.
const PROBE_BYTES: usize = 4096;

/// Load before a steady block.
pub const WARM_UP: Duration = Duration::from_secs(1);

/// A stall is a message, or a write, that took so many times the median p99 of a second.
pub const STALL_FACTOR: f64 = 10.0;

/// A producer at a fixed rate, and the disk that it writes to.
pub struct Beside {
    target: Target,
    rate: f64,
    probe: Floor,
}

/// What both measured in the same stretch.
pub struct Steady {
    /// Sent to accepted.
    pub produced: Block,
    /// The bare writes.
    pub probe: Block,
    /// Messages that did not come as they were sent.
    pub wrong: u64,
}

/// The windows in which something stalled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stalls {
    /// The median p99 of the producer's seconds, in milliseconds.
    pub p99_ms: f64,
    /// That of the bare writes.
    pub probe_p99_ms: f64,
    /// Seconds with a message that took over ten times as long: which, and how long in
    /// milliseconds.
    pub seconds: Vec<(u64, f64)>,
    /// Of those, seconds in which the bare disk stalled too, or in the ones before and after.
    pub of_the_disk: u64,
}

impl Beside {
    /// A producer of this rate on a broker, and a file in the directory.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn new(target: Target, rate: f64, directory: &Path) -> Result<Self, Failure> {
        let probe = Floor::start(FloorKind::Dev, directory, PROBE_BYTES, 1)?;
        Ok(Self { target, rate, probe })
    }

    /// Measures for so long, while `work` goes on.
    ///
    /// # Errors
    /// Any of the three failed.
    pub fn measure<T: Send>(
        &self,
        length: Duration,
        interrupt: &Interrupt,
        work: impl FnOnce() -> Result<T, Failure> + Send,
    ) -> Result<(Steady, T), Failure> {
        let plan = LoadPlan {
            addresses: vec!["perf-steady".to_owned()],
            consumers: Links::ONE,
            rate: Some(self.rate),
            in_flight: 1024,
            checks: true,
            warmup: WARM_UP,
            length: Length::For(length),
            ..LoadPlan::new(self.target.clone())
        };
        let writes = FloorLoad {
            connections: 1,
            in_flight: 1,
            threads: 1,
            size: PROBE_BYTES,
            rate: Some(PROBE_RATE),
            arrivals: Arrivals::Constant,
            seed: 1,
            warm_up: WARM_UP,
            duration: length,
        };
        std::thread::scope(|scope| {
            let work = scope.spawn(work);
            let steady = scope.spawn(|| run(&plan, interrupt));
            let probe = self.probe.run(&writes);
            let steady = steady.join().expect("a panic aborts");
            let work = work.join().expect("a panic aborts");
            let (steady, work) = (steady?, work?);
            let produced = steady.produced.ok_or("nothing was produced")?;
            Ok((Steady { produced, probe: probe?, wrong: steady.wrong }, work))
        })
    }
}

impl Steady {
    /// The seconds in which a message took far longer than most.
    #[must_use]
    pub fn stalls(&self) -> Stalls {
        let (p99_ms, seconds) = stalled(&self.produced.slow);
        let (probe_p99_ms, of_probe) = stalled(&self.probe.slow);
        let near = |second: u64| of_probe.iter().any(|(other, _)| other.abs_diff(second) <= 1);
        let of_the_disk = seconds.iter().filter(|(second, _)| near(*second)).count() as u64;
        Stalls { p99_ms, probe_p99_ms, seconds, of_the_disk }
    }

    /// The p99 of the producer and of the bare writes, in milliseconds.
    #[must_use]
    pub fn p99_ms(&self) -> (f64, f64) {
        let p99 = |block: &Block| ms(Percentiles::of(&block.intended).p99);
        (p99(&self.produced), p99(&self.probe))
    }
}

impl Stalls {
    /// In words.
    #[must_use]
    pub fn text(&self) -> String {
        let worst = self.seconds.iter().map(|(_, ms)| *ms).fold(0.0, f64::max);
        format!(
            "median p99 of a second {:.2} ms, bare writes {:.2} ms; {} seconds over {STALL_FACTOR} \
             times as long (at most {worst:.1} ms), in {} of them the bare writes too",
            self.p99_ms,
            self.probe_p99_ms,
            self.seconds.len(),
            self.of_the_disk
        )
    }
}

/// The median p99 in milliseconds, and the steps in which something took far longer.
fn stalled(steps: &[Step]) -> (f64, Vec<(u64, f64)>) {
    let p99: Vec<f64> = steps.iter().map(|step| ms(step.p99_ns)).collect();
    let usual = median(&p99).unwrap_or(f64::NAN);
    let slow = steps.iter().filter(|step| ms(step.max_ns) > STALL_FACTOR * usual);
    (usual, slow.map(|step| (step.second, ms(step.max_ns))).collect())
}

fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

/// Carries a plan out unless somebody asks us to stop.
///
/// # Errors
/// See [`load::LoadError`].
pub fn run(plan: &LoadPlan, interrupt: &Interrupt) -> Result<Measured, Failure> {
    Ok(load::measure(plan, &mut |_| match interrupt.is_set() {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    })?)
}

/// The most that a process and its directory took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watched {
    /// Bytes that were resident.
    pub resident_bytes: u64,
    /// Of those, bytes that are of no file.
    pub anonymous_bytes: u64,
    /// Bytes of all files in the directory.
    pub data_bytes: u64,
}

impl Watched {
    /// The greater of both in each.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            resident_bytes: self.resident_bytes.max(other.resident_bytes),
            anonymous_bytes: self.anonymous_bytes.max(other.anonymous_bytes),
            data_bytes: self.data_bytes.max(other.data_bytes),
        }
    }
}

/// Looks at a broker until it is told to stop.
#[derive(Debug)]
pub struct Watch {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<Watched>,
}

impl Watch {
    /// Begins.
    ///
    /// # Errors
    /// There is no thread.
    pub fn start(broker: &Broker, data: &Path) -> Result<Self, Failure> {
        const LOOK_EVERY: Duration = Duration::from_millis(20);
        const LOOKS_A_WALK: u32 = 25;
        let is_over = Arc::new(AtomicBool::new(false));
        let (process, data) = (broker.process(), PathBuf::from(data));
        let told = Arc::clone(&is_over);
        let look = move || {
            let mut most = Watched::default();
            let mut looks = 0;
            while !told.load(Ordering::Relaxed) {
                let (resident_bytes, anonymous_bytes) = machine::resident(process);
                let walks = looks % LOOKS_A_WALK == 0;
                let data_bytes = if walks { size_of_directory(&data) } else { 0 };
                most = most.max(Watched { resident_bytes, anonymous_bytes, data_bytes });
                looks += 1;
                std::thread::sleep(LOOK_EVERY);
            }
            most
        };
        let thread = std::thread::Builder::new()
            .name("watch".to_owned())
            .spawn(look)
            .map_err(|error| format!("a thread: {error}"))?;
        Ok(Self { is_over, thread })
    }

    /// Ends; what it saw.
    #[must_use]
    pub fn stop(self) -> Watched {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().expect("a panic aborts")
    }
}

/// Bytes of all files; what cannot be read counts nothing.
#[must_use]
pub fn size_of_directory(directory: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => size_of_directory(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(second: u64, p99_ms: u64, max_ms: u64) -> Step {
        let ns = 1_000_000;
        Step { second, p50_ns: ns, p99_ns: p99_ms * ns, max_ns: max_ms * ns, count: 100 }
    }

    #[test]
    fn a_stall_is_a_second_far_beyond_the_median_of_all() {
        let steps: Vec<Step> = (0..9).map(|second| step(second, 2, 3)).collect();
        assert_eq!(stalled(&steps), (2.0, Vec::new()));
        let mut slow = steps.clone();
        (slow[4], slow[7]) = (step(4, 9, 21), step(7, 30, 20));
        assert_eq!(stalled(&slow), (2.0, vec![(4, 21.0)]));
    }
}
