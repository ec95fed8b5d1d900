//! The rate that all who are compared can hold: `perf compare --half`.
//!
//! ```text
//!   a quarter of the slowest closed loop ─▶ × FACTOR ─▶ ... ─▶ one does not hold it ─▶ refined
//!             each step: a block of every one; who does not hold it is asked once more, and again
//!             where the machine was not ours meanwhile
//! ```
//! Half of it is a load that nobody can call light, and that nobody has to excuse. What "held"
//! means is written in `sweep.rs`; p99 is held against each one's own first block that was.
//!
//! Who gave way first is kept: where it was not a broker of ours, half of that rate says nothing of
//! our broker, and the result is INVALID. So it is where the client gave way.
//!
//! Failure: what could not be loaded; a first rate that is not held.

use std::collections::BTreeMap;

use super::{Ask, Contender, Run, Server};
use crate::command::Failure;
use crate::machine::{Noise, Snapshot};
use crate::show;
use crate::sweep::{self, Course};
use crate::verdict::Verdict;

/// Each rate is so many times the one before.
const FACTOR: f64 = 1.4;

/// Rates tried between the last two.
const REFINE: u32 = 2;

/// A rate of so many times the closed loop's ends the search: nothing gave way.
const TIMES_MAX: f64 = 8.0;

/// A disk stalls now and then, whoever writes: who does not hold a rate is asked so often.
const TRIES: u32 = 2;

/// Blocks of one who does not hold a rate, those that were noisy included.
const BLOCKS_MAX: u32 = 5;

/// What the search has found.
#[derive(Debug, PartialEq)]
pub(super) struct Saturation {
    /// The highest rate that was held, messages a second.
    pub(super) rate: f64,
    /// Why there was no higher one.
    end: End,
}

/// What ended a search, or one of its steps.
#[derive(Clone, Debug, PartialEq)]
enum End {
    /// This one did not hold a rate.
    GaveWay {
        name: String,
        /// It is a broker of ours.
        is_ours: bool,
    },
    /// The client, or lost messages.
    Fault(String),
    /// Nothing, up to the highest rate.
    Nothing,
}

impl Saturation {
    /// Who did not hold a higher rate, if somebody did not.
    pub(super) fn gave_way(&self) -> Option<&str> {
        match &self.end {
            End::GaveWay { name, .. } => Some(name),
            End::Fault(_) | End::Nothing => None,
        }
    }

    /// Says what a reader must know of it.
    pub(super) fn judge(&self, verdict: &mut Verdict) {
        let rate = show::grouped(self.rate.round() as u64);
        match &self.end {
            End::GaveWay { name, is_ours: true } => {
                verdict.note(format!("{name} holds {rate} a second, and not much more"));
            }
            End::GaveWay { name, is_ours: false } => verdict.object(format!(
                "{name} gave way first, beyond {rate} a second: half of that is not half of what \
                 the broker holds"
            )),
            End::Fault(fault) => verdict.object(format!("beyond {rate} a second: {fault}")),
            End::Nothing => verdict.object(format!(
                "nothing gave way up to {rate} a second: half of what is held is not known"
            )),
        }
    }
}

impl Run<'_> {
    /// The highest rate of an open loop that every one holds; `closed` is what the slowest does in
    /// a closed loop.
    pub(super) fn saturation(&mut self, closed: f64) -> Result<Saturation, Failure> {
        let mut first: BTreeMap<String, u64> = BTreeMap::new();
        highest(closed, |rate| {
            let end = self.step(rate, &mut first)?;
            if !self.options.quiet {
                let by = match &end {
                    None => "held by all".to_owned(),
                    Some(End::GaveWay { name, .. }) => format!("not held by {name}"),
                    Some(End::Fault(fault)) => fault.clone(),
                    Some(End::Nothing) => String::new(),
                };
                eprintln!("{:>10} a second: {by}", show::grouped(rate.round() as u64));
            }
            Ok(end)
        })
    }

    /// One rate, for every one; what ended it, if not all held it.
    fn step(
        &mut self,
        rate: f64,
        first: &mut BTreeMap<String, u64>,
    ) -> Result<Option<End>, Failure> {
        for at in 0..self.contenders.len() {
            let (mut tries, mut blocks, mut held) = (0, 0, false);
            while !held && tries < TRIES && blocks < BLOCKS_MAX {
                self.seed = self.seed.wrapping_add(1);
                let (warm_up, duration) = (self.options.warmup, self.options.block);
                let ask = Ask { rate: Some(rate), warm_up, duration, seed: self.seed };
                let before = Snapshot::take();
                let one: &Contender = &self.contenders[at];
                let block = self.block(one, ask)?;
                let noise = Noise::between(&before, &Snapshot::take());
                if let Some(fault) = sweep::client_fault(&block) {
                    return Ok(Some(End::Fault(format!("{}: {fault}", one.name))));
                }
                let p99_first = first.get(&one.name).copied().unwrap_or(u64::MAX);
                held = sweep::is_held(&block, p99_first);
                if held {
                    first.entry(one.name.clone()).or_insert(sweep::p99_ns(&block));
                }
                blocks += 1;
                tries += u32::from(noise.objection().is_none());
            }
            if !held {
                let one = &self.contenders[at];
                let is_ours = matches!(one.server, Server::Broker(_) | Server::Pair(_));
                return Ok(Some(End::GaveWay { name: one.name.clone(), is_ours }));
            }
        }
        Ok(None)
    }
}

/// The highest rate that `step` finds nothing against, searched around `closed`, messages a second.
fn highest(
    closed: f64,
    mut step: impl FnMut(f64) -> Result<Option<End>, Failure>,
) -> Result<Saturation, Failure> {
    let mut course = Course::new(closed / 4.0, closed * TIMES_MAX, FACTOR, REFINE);
    let mut end = End::Nothing;
    while let Some(rate) = course.next_rate() {
        let against = step(rate)?;
        course.tell(rate, against.is_none());
        let Some(against) = against else { continue };
        end = against;
        // Beyond this we would measure ourselves.
        if let End::Fault(_) = end {
            break;
        }
    }
    let least = show::grouped((closed / 4.0).round() as u64);
    let none = || match &end {
        End::Fault(fault) => format!("at {least} a second: {fault}"),
        End::GaveWay { .. } | End::Nothing => {
            format!("not even {least} a second is held by all: give a --rate")
        }
    };
    Ok(Saturation { rate: course.held().ok_or_else(none)?, end })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gave_way(is_ours: bool) -> End {
        End::GaveWay { name: "one".to_owned(), is_ours }
    }

    fn up_to(limit: f64, end: &End) -> Result<Saturation, Failure> {
        highest(1000.0, |rate| Ok((rate > limit).then(|| end.clone())))
    }

    #[test]
    fn it_comes_close_to_the_rate_that_is_held_from_below() {
        for limit in [300.0, 1000.0, 2900.0] {
            let found = up_to(limit, &gave_way(true)).expect("the first is held");
            assert!(found.rate <= limit && found.rate * 1.1 > limit, "{found:?} of {limit}");
            assert_eq!(found.gave_way(), Some("one"));
            let mut verdict = Verdict::default();
            found.judge(&mut verdict);
            assert!(verdict.is_valid() && verdict.notes()[0].contains("one holds"), "{verdict}");
        }
    }

    #[test]
    fn half_of_what_another_holds_is_no_valid_load() {
        let fault = End::Fault("the client is saturated".to_owned());
        for (limit, end, word) in [
            (700.0, gave_way(false), "one gave way"),
            (700.0, fault.clone(), "saturated"),
            (1e9, fault, "nothing gave way"),
        ] {
            let found = up_to(limit, &end).expect("the first is held");
            let mut verdict = Verdict::default();
            found.judge(&mut verdict);
            assert!(!verdict.is_valid() && verdict.reasons()[0].contains(word), "{verdict}");
        }
    }

    #[test]
    fn nothing_held_is_an_error_that_says_what_to_do() {
        let error = up_to(1.0, &gave_way(true)).expect_err("not held").to_string();
        assert!(error.contains("250") && error.contains("--rate"), "{error}");
        let error = up_to(1.0, &End::Fault("lost".to_owned())).expect_err("not held").to_string();
        assert!(error.contains("lost"), "{error}");
    }
}
