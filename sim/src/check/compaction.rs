//! The log never gives up what lives: a message is copied before its segment goes, and only then.
//!
//! Read from the disk's side alone: the records of each message, and each superblock that moves the
//! head. A head never passes the committed watermark. A message that is not settled for good has a
//! committed record at the head or behind it, whole; and no record follows its settlement.

use std::collections::BTreeMap;
use std::time::Instant;

use journal::limits::SEGMENT_HEADER_BYTES;
use journal::{Lsn, QueueId, RecordKind, Sequence, ShardId};

use super::{Check, Facts, Mark, Seen, Written};
use crate::hits::{Hit, Hits};

/// A record, or its fragments.
#[derive(Clone, Copy, Debug)]
struct Place {
    lsn: Lsn,
    end: Lsn,
}

#[derive(Debug, Default)]
struct Kept {
    places: Vec<Place>,
    settled: Option<Lsn>,
}

/// What every log has of every message.
#[derive(Debug, Default)]
pub(super) struct Compaction {
    kept: BTreeMap<(ShardId, QueueId, Sequence), Kept>,
    /// What a start recovers counts as committed.
    recovered: BTreeMap<ShardId, Lsn>,
    copies: u64,
    heads: u64,
}

impl Check for Compaction {
    fn promise(&self) -> &'static str {
        "what lives is in the log until it is settled, and nothing follows a settlement"
    }

    fn see(&mut self, _now: Instant, facts: &Facts, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Written(written) => self.written(written),
            Seen::Headed { shard, head, mark } => self.headed(facts, *shard, *head, *mark),
            Seen::Recovered { shard, end } => {
                self.recovered.insert(*shard, *end);
                self.kept.retain(|(of, ..), kept| {
                    if of == shard {
                        kept.places.retain(|place| place.end <= *end);
                        kept.settled.take_if(|at| *at > *end);
                    }
                    !kept.places.is_empty()
                });
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
            | Seen::Vouched { .. }
            | Seen::Ready { .. }
            | Seen::Crash { .. } => Ok(()),
        }
    }

    fn finish(&mut self, _facts: &Facts, hits: &mut Hits) -> Result<(), String> {
        for _ in 0..self.copies {
            hits.add(Hit::Copied);
        }
        for _ in 0..self.heads {
            hits.add(Hit::HeadMoved);
        }
        Ok(())
    }
}

impl Compaction {
    fn written(&mut self, written: &Written) -> Result<(), String> {
        let key = (written.shard, written.queue, written.sequence);
        if written.kind == RecordKind::Message {
            let kept = self.kept.entry(key).or_default();
            if let Some(settled) = kept.settled {
                return Err(format!(
                    "{key:?} was settled at LSN {settled} and written again at {}",
                    written.lsn
                ));
            }
            self.copies += u64::from(!kept.places.is_empty());
            kept.places.push(Place { lsn: written.lsn, end: written.end });
        } else if written.kind == RecordKind::Settle
            && let Some(kept) = self.kept.get_mut(&key)
        {
            kept.settled.get_or_insert(written.end);
        }
        Ok(())
    }

    fn headed(
        &mut self,
        facts: &Facts,
        shard: ShardId,
        head: Lsn,
        mark: Mark,
    ) -> Result<(), String> {
        let recovered = self.recovered.get(&shard).copied().unwrap_or_default();
        let backed_up = if facts.backup { mark.backed_up } else { mark.durable };
        let start = Lsn(SEGMENT_HEADER_BYTES);
        let committed = mark.durable.min(backed_up).max(recovered).max(start);
        if head > committed {
            return Err(format!("the head of {shard:?} moved to LSN {head}, beyond {committed}"));
        }
        self.heads += 1;
        let first = (shard, QueueId(0), Sequence(0));
        let mut gone = Vec::new();
        for (key, kept) in self.kept.range(first..).take_while(|(key, _)| key.0 == shard) {
            if kept.settled.is_some_and(|at| at <= committed) {
                gone.push(*key);
                continue;
            }
            let is_there = |place: &Place| place.lsn >= head && place.end <= committed;
            let is_young = |place: &Place| place.end > committed;
            if !kept.places.iter().any(is_there) && !kept.places.iter().all(is_young) {
                return Err(format!(
                    "the head of {shard:?} moved to LSN {head}, committed is {committed}: {key:?} \
                     lives, and all that is left of it is {:?}",
                    kept.places
                ));
            }
        }
        gone.iter().for_each(|key| drop(self.kept.remove(key)));
        Ok(())
    }
}
