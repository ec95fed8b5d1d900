//! A letter with a duplicate id is stored once, however often it is sent.
//!
//! What the log has of it counts, from the write that holds it until a crash has cut that off; that
//! its message is consumed, or moved to the dead, changes nothing. Where log or memory get full ids
//! are forgotten early, the oldest first: nothing is said of messages that were there by then.

use std::collections::BTreeMap;
use std::time::Instant;

use journal::{Lsn, QueueId, RecordKind, Sequence, ShardId};

use super::{Check, Facts, Seen};
use crate::letter::LetterId;

#[derive(Debug)]
struct Stored {
    place: (QueueId, Sequence),
    shard: ShardId,
    end: Lsn,
}

/// Where each is.
#[derive(Debug, Default)]
pub(super) struct Once {
    stored: BTreeMap<LetterId, Vec<Stored>>,
}

impl Check for Once {
    fn promise(&self) -> &'static str {
        "a letter with a duplicate id is stored once"
    }

    fn see(&mut self, _now: Instant, facts: &Facts, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Written(written) if written.kind == RecordKind::Message => {
                let Some(letter) = written.letter else { return Ok(()) };
                if !written.identified || written.origin.is_some() {
                    return Ok(());
                }
                let place = (written.queue, written.sequence);
                let stored = Stored { place, shard: written.shard, end: written.end };
                let known = self.stored.entry(letter).or_default();
                // A compaction copies each of them.
                if known.iter().any(|before| before.place == place) {
                    return Ok(());
                }
                let before = known.iter().find(|before| !facts.is_vague(before.place));
                let twice =
                    before.map(|at| format!("{letter:?} is at {:?}, and at {place:?}", at.place));
                known.push(stored);
                twice.map_or(Ok(()), Err)
            }
            Seen::Recovered { shard, end } => {
                for known in self.stored.values_mut() {
                    known.retain(|stored| stored.shard != *shard || stored.end <= *end);
                }
                Ok(())
            }
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
            | Seen::Written(_)
            | Seen::Vouched { .. }
            | Seen::Headed { .. }
            | Seen::Ready { .. }
            | Seen::Crash { .. } => Ok(()),
        }
    }
}
