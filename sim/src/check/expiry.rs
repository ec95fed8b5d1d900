//! Nothing is delivered when its time is over.
//!
//! What is on its way to a consumer then is not called back, hence a slack. In a queue for what
//! died nothing expires.

use std::time::Instant;

use super::{Check, Facts, Seen};

/// How long a delivery may be on its way through the broker, milliseconds.
const SLACK_MS: u64 = 100;

#[derive(Debug)]
pub(super) struct Expiry;

impl Check for Expiry {
    fn promise(&self) -> &'static str {
        "nothing is delivered when its time is over"
    }

    fn see(&mut self, now: Instant, facts: &Facts, seen: &Seen) -> Result<(), String> {
        let Seen::Delivered { letter, grave: false, .. } = seen else { return Ok(()) };
        let (Some(expiry), Some(clock)) = (facts.letter(*letter)?.expiry_unix_ms, &facts.clock)
        else {
            return Ok(());
        };
        let sent = clock.unix_ms(facts.stamp.as_ref().map_or(now, |stamp| stamp.at));
        if sent <= expiry + SLACK_MS {
            return Ok(());
        }
        Err(format!("{letter:?} was delivered {} ms after its time was over", sent - expiry))
    }
}
