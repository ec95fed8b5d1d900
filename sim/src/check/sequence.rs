//! A sequence names one message for ever.
//!
//! Once a record with a sequence was durable, no other message of that queue may be written with
//! it, whatever was recycled since. What never became durable never had it.

use std::collections::BTreeMap;
use std::time::Instant;

use journal::{Lsn, QueueId, RecordKind, Sequence, ShardId};

use super::{Check, Facts, Seen};
use crate::letter::LetterId;

#[derive(Debug)]
struct Given {
    letter: Option<LetterId>,
    shard: ShardId,
    end: Lsn,
}

/// Who has which sequence.
#[derive(Debug, Default)]
pub(super) struct SequenceOnce {
    given: BTreeMap<(QueueId, Sequence), Given>,
}

impl Check for SequenceOnce {
    fn promise(&self) -> &'static str {
        "a sequence names one message for ever"
    }

    fn see(&mut self, _now: Instant, _facts: &Facts, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Written(written) if written.kind == RecordKind::Message => {
                let key = (written.queue, written.sequence);
                let (letter, shard, end) = (written.letter, written.shard, written.end);
                let given = Given { letter, shard, end };
                match self.given.get(&key) {
                    None => {
                        self.given.insert(key, given);
                        Ok(())
                    }
                    Some(before) if before.letter != letter => Err(format!(
                        "sequence {} of queue {} was {:?}, and is given to {letter:?}",
                        key.1.0, key.0.0, before.letter
                    )),
                    // A copy: the place that counts is the first.
                    Some(_) => Ok(()),
                }
            }
            Seen::Recovered { shard, end } => {
                self.given.retain(|_, given| given.shard != *shard || given.end <= *end);
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
