//! Recovery is idempotent: two starts with nothing between them find the same.

use std::time::Instant;

use super::{Check, Facts, QueueView, Seen};

/// What the last start found, until something happens.
#[derive(Debug, Default)]
pub(super) struct Recovery {
    found: Option<Vec<QueueView>>,
}

impl Check for Recovery {
    fn promise(&self) -> &'static str {
        "two starts with nothing between them find the same"
    }

    fn see(&mut self, _now: Instant, _facts: &Facts, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Ready { queues } => {
                if let Some(found) = self.found.replace(queues.clone())
                    && found != *queues
                {
                    return Err(format!("first {found:?}, then {queues:?}"));
                }
            }
            Seen::Crash { .. } | Seen::Recovered { .. } => {}
            Seen::Sent { .. }
            | Seen::Accepted(_)
            | Seen::Refused(_)
            | Seen::Delivered { .. }
            | Seen::Judged { .. }
            | Seen::Confirmed { .. }
            | Seen::Parted(_)
            | Seen::Written(_)
            | Seen::Vouched { .. } => self.found = None,
        }
        Ok(())
    }
}
