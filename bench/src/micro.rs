//! Micro benchmarks: what one step of the hot path costs by itself.
//!
//! ```text
//!   Case ── start ──▶ work, a closure with its state ── so many operations ──▶ one sample
//!           how many  is found once: a sample takes at least `sample`
//!           figures   median, least, and the sample that nine in ten are no longer than
//! ```
//! Plain, with no framework under it: criterion and divan were weighed. What they add, statistics
//! over runs on a quiet machine and plots of them, is of no use where the neighbours change by the
//! minute; the median of many short samples is what stays, and that is a page of code. Where a
//! difference below a tenth matters, count instructions: `message_cost`, under callgrind.
//!
//! Invariant: every case runs with two operations in the tests of this crate, so that none rots.
//!
//! Failure: a case that meets what it does not expect panics; a benchmark has nobody to answer to.
#![expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]

use std::time::{Duration, Instant};

mod codec;
mod log;
mod mesh;
mod queue;

/// Something that is done so many times.
pub type Work = Box<dyn FnMut(u64)>;

/// One benchmark.
pub struct Case {
    /// `group/what`.
    pub name: &'static str,
    /// Bytes that one operation works through; 0 where that says nothing.
    pub bytes: u64,
    /// Makes the state.
    pub start: fn() -> Work,
}

/// How hard to try.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// A sample takes at least so long.
    pub sample: Duration,
    /// How many samples, at least one.
    pub samples: usize,
}

/// Nanoseconds of one operation, over the samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    /// The middle one.
    pub median: f64,
    /// The best one.
    pub least: f64,
    /// The one that nine in ten are no longer than.
    pub p90: f64,
}

/// All of them, in the order of a message's way.
#[must_use]
pub fn cases() -> Vec<Case> {
    [codec::CASES, log::CASES, queue::CASES, mesh::CASES]
        .into_iter()
        .flatten()
        .map(|&(name, bytes, start)| Case { name, bytes, start })
        .collect()
}

impl Case {
    /// Measures it.
    #[must_use]
    pub fn measure(&self, effort: Effort) -> Figures {
        let mut work = (self.start)();
        let mut sample = |operations: u64| {
            let start = Instant::now();
            work(operations);
            start.elapsed()
        };
        let mut operations = 2;
        while sample(operations) < effort.sample {
            operations *= 2;
        }
        let each = |took: Duration| took.as_nanos() as f64 / operations as f64;
        Figures::of((0..effort.samples.max(1)).map(|_| each(sample(operations))).collect())
    }
}

impl Figures {
    fn of(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        let at = |tenths: usize| samples[(samples.len() * tenths).div_ceil(10).max(1) - 1];
        Self { median: at(5), least: samples[0], p90: at(9) }
    }
}

/// Name, bytes of an operation, how its state is made.
type Row = (&'static str, u64, fn() -> Work);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_runs() {
        let effort = Effort { sample: Duration::ZERO, samples: 1 };
        for case in cases() {
            let figures = case.measure(effort);
            assert!(figures.least > 0.0, "{}", case.name);
        }
    }

    #[test]
    fn names_are_of_a_group_and_unlike() {
        let mut names: Vec<&str> = cases().iter().map(|case| case.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), cases().len());
        for group in ["codec", "record", "crc", "batch", "queue", "mesh"] {
            assert!(names.iter().any(|name| name.starts_with(&format!("{group}/"))), "{group}");
        }
    }

    #[test]
    fn figures_are_of_the_sorted_samples() {
        let figures = Figures::of((1..=10).rev().map(f64::from).collect());
        assert_eq!(figures, Figures { median: 5.0, least: 1.0, p90: 9.0 });
        assert_eq!(Figures::of(vec![3.0]).p90, 3.0);
    }
}
