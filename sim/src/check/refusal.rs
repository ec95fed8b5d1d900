//! A refused message is nowhere: no consumer ever gets it.
//!
//! A message is refused before it touches the log, or it is in the log; there is no third way. A
//! producer that was told no sends again, and would have it twice.

use std::collections::BTreeSet;
use std::time::Instant;

use super::{Check, Facts, Seen};
use crate::letter::LetterId;

/// What was refused.
#[derive(Debug, Default)]
pub(super) struct Refusal {
    refused: BTreeSet<LetterId>,
    delivered: BTreeSet<LetterId>,
}

impl Check for Refusal {
    fn promise(&self) -> &'static str {
        "a refused message is nowhere"
    }

    fn see(&mut self, _now: Instant, facts: &Facts, seen: &Seen) -> Result<(), String> {
        let letter = match seen {
            Seen::Refused(letter) => {
                self.refused.insert(*letter);
                letter
            }
            Seen::Delivered { letter, .. } | Seen::Browsed { letter, .. } => {
                self.delivered.insert(*letter);
                letter
            }
            Seen::Sent { .. }
            | Seen::Accepted(_)
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
            | Seen::Crash { .. } => return Ok(()),
        };
        // One that was sent twice may be refused once.
        let repeated = facts.letter(*letter)?.repeated;
        if self.refused.contains(letter) && self.delivered.contains(letter) && !repeated {
            return Err(format!("{letter:?} was refused, and delivered"));
        }
        Ok(())
    }
}
