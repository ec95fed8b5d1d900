//! A message is not delivered again when its delivery has failed too often.
//!
//! Where nothing more can be moved the dead have to stay, and are offered: nothing is said of what
//! a shard delivers once it could not move a message.

use std::time::Instant;

use super::{Check, Facts, Seen};

#[derive(Debug)]
pub(super) struct Attempts;

impl Check for Attempts {
    fn promise(&self) -> &'static str {
        "what has failed too often is not delivered again"
    }

    fn see(&mut self, _now: Instant, facts: &Facts, seen: &Seen) -> Result<(), String> {
        let Seen::Delivered { letter, delivery_count, grave: false, .. } = seen else {
            return Ok(());
        };
        let may_be_offered = || facts.letter(*letter).map(|letter| facts.may_be_offered(letter));
        if *delivery_count < facts.attempts_max || may_be_offered()? {
            return Ok(());
        }
        Err(format!(
            "{letter:?} came after {delivery_count} failures, and {} are too many",
            facts.attempts_max
        ))
    }
}
