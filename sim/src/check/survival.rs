//! What was accepted, or delivered, is there until somebody has settled it.
//!
//! At the end of a run every queue is drained to the last message. A letter that was accepted, or
//! that anybody has been given or shown, must have been settled by a client by then, or purged;
//! otherwise it is lost. At `async` it may be, if a crash came before its record was durable.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use journal::Level;

use super::{Check, Facts, Seen};
use crate::hits::{Hit, Hits};
use crate::letter::LetterId;

/// What was promised when, and what was settled.
#[derive(Debug, Default)]
pub(super) struct Survival {
    promised: BTreeMap<LetterId, (Instant, Level, &'static str)>,
    settled: BTreeSet<LetterId>,
}

impl Check for Survival {
    fn promise(&self) -> &'static str {
        "what was accepted or delivered survives until it is settled"
    }

    fn see(&mut self, now: Instant, facts: &Facts, seen: &Seen) -> Result<(), String> {
        let at = facts.stamp.as_ref().map_or(now, |stamp| stamp.at);
        match seen {
            Seen::Accepted(letter) => {
                let promise = (at, facts.level(*letter), "accepted");
                self.promised.entry(*letter).or_insert(promise);
            }
            Seen::Delivered { letter, .. } => {
                let promise = (at, facts.level(*letter), "delivered");
                self.promised.entry(*letter).or_insert(promise);
            }
            Seen::Browsed { letter, .. } => {
                let promise = (at, facts.level(*letter), "shown");
                self.promised.entry(*letter).or_insert(promise);
            }
            Seen::Judged { letter, verdict } if verdict.is_final() => {
                self.settled.insert(*letter);
            }
            Seen::Sent { .. }
            | Seen::Refused(_)
            | Seen::Judged { .. }
            | Seen::Confirmed { .. }
            | Seen::Parted(_)
            | Seen::Purging { .. }
            | Seen::Purged(_)
            | Seen::Forgotten { .. }
            | Seen::Written(_)
            | Seen::Vouched { .. }
            | Seen::Headed { .. }
            | Seen::Recovered { .. }
            | Seen::Ready { .. }
            | Seen::Crash { .. } => {}
        }
        Ok(())
    }

    fn finish(&mut self, facts: &Facts, hits: &mut Hits) -> Result<(), String> {
        for (letter, (at, level, what)) in &self.promised {
            if self.settled.contains(letter) {
                continue;
            }
            if facts.may_be_purged(*letter) {
                continue;
            }
            // At `async`, what a crash met in its flush window, or in a write under way, may be
            // gone; what was recovered may not.
            let known = facts.letter(*letter)?;
            if known.written.is_none() && facts.may_be_dropped(*letter) && *what == "accepted" {
                hits.add(Hit::Dropped);
                continue;
            }
            let record = known.copy().or(known.written.as_ref());
            if *level != Level::Async || record.is_some() || !facts.at_risk(*at) {
                return Err(format!("{letter:?} was {what} and is lost; its record: {record:?}"));
            }
            hits.add(Hit::AsyncLost);
        }
        Ok(())
    }
}
