//! A confirmed settlement never comes back.
//!
//! What was rejected goes to the dead letters, and never comes back from where it was; unless the
//! log is full: then it has to stay.
//!
//! Confirmed is what the broker has answered: an outcome that waited for its settlement, or a
//! detach, end or close after it. Only at `async`, and only after a crash in the flush window
//! or in the write that followed it, may such a message be there again.

use std::collections::BTreeMap;
use std::time::Instant;

use journal::Level;

use super::{Check, Facts, Seen};
use crate::letter::LetterId;
use crate::wire::Verdict;

/// When each was confirmed.
#[derive(Debug, Default)]
pub(super) struct Settlement {
    /// And at which level: a message that moves may change it.
    confirmed: BTreeMap<LetterId, (Instant, Level)>,
    rejected: BTreeMap<LetterId, (Instant, Level)>,
}

impl Check for Settlement {
    fn promise(&self) -> &'static str {
        "a confirmed settlement never comes back"
    }

    fn see(&mut self, now: Instant, facts: &Facts, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Confirmed { letter, verdict } if verdict.is_final() => {
                let at = facts.stamp.as_ref().map_or(now, |stamp| stamp.at);
                self.confirmed.entry(*letter).or_insert((at, facts.level(*letter)));
            }
            Seen::Confirmed { letter, verdict: Verdict::Rejected } if !facts.tight => {
                let at = facts.stamp.as_ref().map_or(now, |stamp| stamp.at);
                self.rejected.entry(*letter).or_insert((at, facts.level(*letter)));
            }
            Seen::Delivered { letter, grave, .. } => {
                let stays = *grave || facts.may_be_offered(facts.letter(*letter)?);
                let rejected = self.rejected.get(letter).filter(|_| !stays);
                let known = self.confirmed.get(letter).or(rejected);
                let Some((at, level)) = known else { return Ok(()) };
                // Sent before the confirmation, to a link that was on its way out: it crossed it.
                let sent = facts.stamp.as_ref().map_or(now, |stamp| stamp.at);
                if sent <= *at {
                    return Ok(());
                }
                let at_risk = *level == Level::Async && facts.at_risk(*at);
                if !at_risk && !facts.may_be_twice(facts.letter(*letter)?) {
                    return Err(format!("{letter:?} was settled, confirmed, and came again"));
                }
            }
            Seen::Sent { .. }
            | Seen::Accepted(_)
            | Seen::Refused(_)
            | Seen::Judged { .. }
            | Seen::Confirmed { .. }
            | Seen::Browsed { .. }
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
}
