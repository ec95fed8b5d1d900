//! Whether a result may be believed, and why not.
//!
//! ```text
//!   debug build                         nobody runs that
//!   rate not reached                    less than 97 % of what was due was done in its time
//!   client saturated                    our busiest thread worked more than 90 % of the time
//!   send lag                            our own p99 is above a tenth of the latency's p99
//!   losses, refusals                    a message that was not accepted, or not received
//!   nothing measured
//! ```
//! Each is a reason; one is enough for INVALID. What a reader should know but what does not spoil
//! the figures is a note. Comparisons add reasons of their own. A result that is INVALID is shown
//! with its figures: they help to find out why, and belong into no document.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::block::Block;
use crate::machine;

/// Less than this share of what was due a second, and the rate was not reached.
pub const RATE_SHARE_MIN: f64 = 0.97;

/// A client thread that works more than this share of the time measures itself.
pub const BUSY_SHARE_MAX: f64 = 0.9;

/// The p99 of our send lag may be this share of the latency's p99.
pub const LAG_SHARE_MAX: f64 = 0.1;

/// VALID or INVALID, with reasons and notes in plain words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    valid: bool,
    reasons: Vec<String>,
    notes: Vec<String>,
}

impl Default for Verdict {
    fn default() -> Self {
        Self { valid: true, reasons: Vec::new(), notes: Vec::new() }
    }
}

impl Verdict {
    /// On a result of this binary, before anything is known of it.
    #[must_use]
    pub fn new() -> Self {
        let mut verdict = Self::default();
        if machine::is_debug() {
            verdict.object("debug build: measure with a release build");
        }
        verdict
    }

    /// Whether the result may be believed.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.valid
    }

    /// Why not.
    #[must_use]
    pub fn reasons(&self) -> &[String] {
        &self.reasons
    }

    /// What a reader should know.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// A reason why the result is INVALID. Said twice, it is kept once.
    pub fn object(&mut self, reason: impl Into<String>) {
        self.valid = false;
        push_new(&mut self.reasons, reason.into());
    }

    /// Something to know.
    pub fn note(&mut self, note: impl Into<String>) {
        push_new(&mut self.notes, note.into());
    }

    /// Judges a block; `name` stands before each reason where there are several blocks.
    pub fn judge(&mut self, name: &str, block: &Block) {
        for reason in objections(block) {
            self.object(named(name, &reason));
        }
        if block.held_up * 100 > block.sent {
            let share = percent(block.held_up as f64 / block.sent as f64);
            let note = format!("{share} of the messages waited for room in flight: broker's time");
            self.note(named(name, &note));
        }
    }

    /// Takes in what was said of a part.
    pub fn include(&mut self, part: &Self) {
        for reason in &part.reasons {
            self.object(reason.clone());
        }
        for note in &part.notes {
            self.note(note.clone());
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.valid { "VALID" } else { "INVALID" })?;
        for reason in &self.reasons {
            write!(f, "\n  - {reason}")?;
        }
        for note in &self.notes {
            write!(f, "\n  note: {note}")?;
        }
        Ok(())
    }
}

fn objections(block: &Block) -> Vec<String> {
    let mut found = Vec::new();
    if block.completed == 0 {
        found.push("nothing was measured".to_owned());
        return found;
    }
    if block.rate.is_some() && !reached(block) {
        found.push(format!(
            "rate not reached: {:.0} a second of {:.0}",
            block.achieved(),
            block.offered_rate()
        ));
    }
    if block.busy_client_max > BUSY_SHARE_MAX {
        found.push(format!(
            "client saturated: its busiest thread worked {} of the time; try --threads",
            percent(block.busy_client_max)
        ));
    }
    let (lag, latency) = (p99(&block.lag), p99(&block.intended));
    if block.rate.is_some() && lag as f64 > LAG_SHARE_MAX * latency as f64 {
        let us = |ns: u64| ns as f64 / 1000.0;
        found.push(format!(
            "send lag: our own p99 is {:.1} µs, above a tenth of the latency's {:.1} µs",
            us(lag),
            us(latency)
        ));
    }
    for (count, what) in [(block.lost, "lost"), (block.refused, "refused")] {
        if count > 0 {
            found.push(format!("{count} messages were {what}"));
        }
    }
    found
}

/// Whether the offered load was done, as far as it can be told while the last answers come.
#[must_use]
pub fn reached(block: &Block) -> bool {
    let done = block.completed as f64 >= RATE_SHARE_MIN * block.offered as f64;
    // A rate by count has no end of its own.
    done && (block.planned_ns == 0 || block.achieved() >= RATE_SHARE_MIN * block.offered_rate())
}

fn p99(histogram: &hdrhistogram::Histogram<u64>) -> u64 {
    histogram.value_at_quantile(0.99)
}

fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

fn named(name: &str, text: &str) -> String {
    if name.is_empty() { text.to_owned() } else { format!("{name}: {text}") }
}

fn push_new(list: &mut Vec<String>, text: String) {
    if !list.contains(&text) {
        list.push(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{Ended, Recorder, Window};

    const MS: u64 = 1_000_000;

    /// A second of 100 messages, each 1 ms under way; `spoil` may change it.
    fn block(spoil: impl FnOnce(&mut Block)) -> Block {
        let window = Window { start_ns: 0, planned_ns: 1000 * MS };
        let mut recorder = Recorder::new(window, Some(100.0));
        for at in 0..100 {
            recorder.sent(at * 10 * MS, at * 10 * MS, at * 10 * MS + 1000);
            recorder.completed(at * 10 * MS, at * 10 * MS + 1000, (at * 10 + 1) * MS);
        }
        let mut block =
            recorder.finish(&[Ended { at_ns: 1000 * MS, cpu_ns: 100 * MS, spin_ns: 0 }]);
        spoil(&mut block);
        block
    }

    fn reasons(spoil: impl FnOnce(&mut Block)) -> Vec<String> {
        let mut verdict = Verdict::default();
        verdict.judge("", &block(spoil));
        assert_eq!(verdict.is_valid(), verdict.reasons().is_empty());
        verdict.reasons().to_vec()
    }

    fn objects_by(word: &str, spoil: impl FnOnce(&mut Block)) {
        let reasons = reasons(spoil);
        assert!(reasons.len() == 1 && reasons[0].contains(word), "{word}: {reasons:?}");
    }

    #[test]
    fn a_clean_block_is_valid() {
        assert_eq!(reasons(|_| ()), [] as [String; 0]);
    }

    #[test]
    fn each_fault_is_named() {
        objects_by("rate not reached", |block| block.elapsed_ns = 1100 * MS);
        objects_by("rate not reached", |block| block.completed = 96);
        objects_by("client saturated", |block| block.busy_client_max = 0.91);
        objects_by("send lag", |block| {
            block.lag.record_n(200_000, 1000).expect("in bounds");
        });
        objects_by("lost", |block| block.lost = 1);
        objects_by("refused", |block| block.refused = 1);
        objects_by("nothing", |block| block.completed = 0);
    }

    #[test]
    fn a_closed_loop_has_no_rate_to_reach() {
        assert_eq!(
            reasons(|block| {
                block.rate = None;
                block.planned_ns = 0;
                block.elapsed_ns = 9000 * MS;
            }),
            [] as [String; 0]
        );
    }

    #[test]
    fn a_debug_build_is_never_valid() {
        assert_eq!(Verdict::new().is_valid(), !machine::is_debug());
    }

    #[test]
    fn a_reason_is_said_once_and_printed_with_its_notes() {
        let mut verdict = Verdict::default();
        verdict.object("too warm");
        verdict.object("too warm");
        verdict.note("it rained");
        let mut whole = Verdict::default();
        whole.include(&verdict);
        assert_eq!(whole.to_string(), "INVALID\n  - too warm\n  note: it rained");
    }
}
