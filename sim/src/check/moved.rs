//! A message that is moved is in one place: where it was, or where it went.
//!
//! The log never has two copies of one origin, and what was once delivered from a queue for the
//! dead never comes from its old queue again, whatever crashes. That it is nowhere lost is what
//! `survival` watches over.

use std::collections::BTreeMap;
use std::time::Instant;

use journal::{Lsn, QueueId, RecordKind, Sequence, ShardId};

use super::{Check, Facts, Seen};
use crate::letter::LetterId;

type Place = (QueueId, Sequence);

/// Where the copies are, and what was seen of them.
#[derive(Debug, Default)]
pub(super) struct Moved {
    copies: BTreeMap<(ShardId, Place), (Place, ShardId, Lsn)>,
    buried: BTreeMap<LetterId, Instant>,
}

impl Check for Moved {
    fn promise(&self) -> &'static str {
        "a moved message is in one place"
    }

    fn see(&mut self, now: Instant, facts: &Facts, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Written(written) if written.kind == RecordKind::Message => {
                let Some(origin) = written.origin else { return Ok(()) };
                let from = (origin.shard, (origin.queue, origin.sequence));
                let place = (written.queue, written.sequence);
                let first = (place, written.shard, written.end);
                let (other, ..) = *self.copies.entry(from).or_insert(first);
                if other == place {
                    return Ok(());
                }
                Err(format!("{from:?} was moved to {other:?} and to {place:?}"))
            }
            Seen::Recovered { shard, end } => {
                self.copies.retain(|_, (_, of, at)| of != shard || *at <= *end);
                Ok(())
            }
            Seen::Delivered { letter, grave, .. } => {
                let sent = facts.stamp.as_ref().map_or(now, |stamp| stamp.at);
                if *grave {
                    self.buried.entry(*letter).or_insert(sent);
                    return Ok(());
                }
                match self.buried.get(letter) {
                    Some(at) if sent > *at && !facts.may_be_twice(facts.letter(*letter)?) => {
                        Err(format!("{letter:?} was among the dead, and came from its old queue"))
                    }
                    Some(_) | None => Ok(()),
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
            | Seen::Ready { .. }
            | Seen::Crash { .. } => Ok(()),
        }
    }
}
