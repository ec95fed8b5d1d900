//! Recovery is idempotent: two starts with nothing between them find the same.

use std::time::Instant;

use super::{Check, Facts, QueueView, Seen};

/// What the last start found, until something happens.
#[derive(Debug, Default)]
pub(super) struct Recovery {
    found: Option<Vec<QueueView>>,
    /// A record was written in this life, perhaps before the last shard was ready.
    wrote: bool,
}

impl Check for Recovery {
    fn promise(&self) -> &'static str {
        "two starts with nothing between them find the same"
    }

    fn see(&mut self, _now: Instant, _facts: &Facts, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Ready { queues } => {
                // Which moved messages are shown is asked between the shards, meanwhile.
                let shown = |queue: &QueueView| QueueView {
                    uncommitted: 0,
                    away: 0,
                    delayed: 0,
                    ..queue.clone()
                };
                let queues: Vec<QueueView> = queues.iter().map(shown).collect();
                if self.wrote {
                    return Ok(());
                }
                if let Some(found) = self.found.replace(queues.clone())
                    && found != queues
                {
                    return Err(format!("first {found:?}, then {queues:?}"));
                }
            }
            Seen::Crash { .. } => self.wrote = false,
            Seen::Recovered { .. } => {}
            Seen::Written(_) => (self.found, self.wrote) = (None, true),
            Seen::Sent { .. }
            | Seen::Accepted(_)
            | Seen::Refused(_)
            | Seen::Delivered { .. }
            | Seen::Judged { .. }
            | Seen::Confirmed { .. }
            | Seen::Browsed { .. }
            | Seen::Parted(_)
            | Seen::Purging { .. }
            | Seen::Purged(_)
            | Seen::Forgotten { .. }
            | Seen::Vouched { .. }
            | Seen::Headed { .. } => self.found = None,
        }
        Ok(())
    }
}
