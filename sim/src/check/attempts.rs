//! A message is not delivered again when its delivery has failed too often.
//!
//! With a full log the dead have to stay where they are, and are offered: nothing is said of those
//! runs.

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
        if facts.tight || *delivery_count < facts.attempts_max {
            return Ok(());
        }
        Err(format!(
            "{letter:?} came after {delivery_count} failures, and {} are too many",
            facts.attempts_max
        ))
    }
}
