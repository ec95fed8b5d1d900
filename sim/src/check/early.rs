//! What is answered before it is written is on its way to the disk when its flush window ends.
//!
//! A crash need not come: that so much could have been lost is enough. Nothing is said of a letter
//! that is on its way when its acceptance arrives, nor of what a crash met in time.

use std::collections::BTreeSet;
use std::time::Instant;

use super::{Check, Facts, Seen};
use crate::letter::LetterId;

/// The letters that were promised and never submitted, by the time of the promise.
#[derive(Debug, Default)]
pub(super) struct Early {
    waiting: BTreeSet<(Instant, LetterId)>,
    submitted: BTreeSet<LetterId>,
}

impl Check for Early {
    fn promise(&self) -> &'static str {
        "what is answered early is on its way when its flush window ends"
    }

    fn see(&mut self, now: Instant, facts: &Facts, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Accepted(letter) if facts.may_be_dropped(*letter) => {}
            Seen::Accepted(letter) | Seen::Delivered { letter, .. } => {
                let at = facts.stamp.as_ref().map_or(now, |stamp| stamp.at);
                if self.submitted.contains(letter) {
                    return Ok(());
                }
                match facts.crashes.iter().map(|(_, to)| *to).find(|to| at <= *to) {
                    Some(end) => in_time(facts, at, *letter, end)?,
                    None => drop(self.waiting.insert((at, *letter))),
                }
            }
            Seen::Written(written) => {
                let Some(letter) = written.letter else { return Ok(()) };
                self.waiting.retain(|(_, waiting)| *waiting != letter);
                self.submitted.insert(letter);
            }
            Seen::Sent { .. }
            | Seen::Refused(_)
            | Seen::Judged { .. }
            | Seen::Confirmed { .. }
            | Seen::Browsed { .. }
            | Seen::Parted(_)
            | Seen::Purging { .. }
            | Seen::Purged(_)
            | Seen::Forgotten { .. }
            | Seen::Vouched { .. }
            | Seen::Headed { .. }
            | Seen::Recovered { .. }
            | Seen::Ready { .. }
            | Seen::Crash { .. } => {}
        }
        if let Some((at, letter)) = self.waiting.first() {
            in_time(facts, *at, *letter, now)?;
        }
        if matches!(seen, Seen::Crash { .. }) {
            self.waiting.clear();
        }
        Ok(())
    }
}

fn in_time(facts: &Facts, at: Instant, letter: LetterId, now: Instant) -> Result<(), String> {
    let waited = now.saturating_duration_since(at);
    if waited <= facts.early_bound {
        return Ok(());
    }
    Err(format!("{letter:?} was answered {waited:?} ago and is not on its way to the disk"))
}
