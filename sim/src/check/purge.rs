//! A purge takes what was there when it was asked for, and what it took never comes back.
//!
//! Nobody settles a letter but a client, by its word; the broker, when it has moved it; and a
//! purge. So a settlement in the log that neither of the first two explains is a purge's: one must
//! have been asked for in this life of the process, when the letter was there already. What was
//! settled so and is durable when the operator has his answer is gone for good. Only at `async`,
//! and only after a crash in the flush window, may it be there again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use journal::{Level, Lsn, QueueId, RecordKind, Sequence, ShardId};

use super::{Check, Facts, Seen, Written};
use crate::hits::{Hit, Hits};
use crate::letter::LetterId;

/// A letter that a purge took.
#[derive(Debug)]
struct Taken {
    queue: QueueId,
    shard: ShardId,
    /// The end of its settlement.
    end: Lsn,
    /// When an operator was told that the purge is over.
    gone: Option<(Instant, Level)>,
}

/// What was asked for, and what went.
#[derive(Debug, Default)]
pub(super) struct Purge {
    /// What may go of each queue, since the process started.
    below: BTreeMap<QueueId, Sequence>,
    /// Letters that a client has settled, or rejected.
    judged: BTreeSet<LetterId>,
    taken: BTreeMap<LetterId, Taken>,
    count: u64,
}

impl Check for Purge {
    fn promise(&self) -> &'static str {
        "a purge takes what was there, and that never comes back"
    }

    fn see(&mut self, now: Instant, facts: &Facts, seen: &Seen) -> Result<(), String> {
        let at = facts.stamp.as_ref().map_or(now, |stamp| stamp.at);
        match seen {
            Seen::Purging { queue, below } => {
                let mark = self.below.entry(*queue).or_default();
                *mark = (*mark).max(*below);
            }
            Seen::Purged(queue) => {
                for (letter, taken) in &mut self.taken {
                    if taken.queue == *queue && taken.gone.is_none() {
                        taken.gone = Some((at, facts.level(*letter)));
                    }
                }
            }
            Seen::Judged { letter, verdict } if verdict.is_final() => {
                self.judged.insert(*letter);
            }
            Seen::Judged { letter, verdict: crate::wire::Verdict::Rejected } => {
                self.judged.insert(*letter);
            }
            Seen::Written(record) if record.kind == RecordKind::Settle => {
                return self.settled(facts, record);
            }
            Seen::Delivered { letter, .. } => {
                let Some(Taken { gone: Some((gone, level)), .. }) = self.taken.get(letter) else {
                    return Ok(());
                };
                // What was on its way to a consumer then has crossed the answer; what was sent
                // once more may have been stored once more.
                let is_new = facts.letter(*letter)?.repeated;
                if at > *gone && !is_new && !(*level == Level::Async && facts.at_risk(*gone)) {
                    return Err(format!("{letter:?} was purged, and came again"));
                }
            }
            Seen::Recovered { shard, end } => {
                self.taken.retain(|_, taken| {
                    taken.gone.is_some() || taken.shard != *shard || taken.end <= *end
                });
            }
            Seen::Crash { .. } => self.below.clear(),
            Seen::Sent { .. }
            | Seen::Accepted(_)
            | Seen::Refused(_)
            | Seen::Judged { .. }
            | Seen::Confirmed { .. }
            | Seen::Browsed { .. }
            | Seen::Parted(_)
            | Seen::Forgotten { .. }
            | Seen::Written(_)
            | Seen::Vouched { .. }
            | Seen::Headed { .. }
            | Seen::Ready { .. } => {}
        }
        Ok(())
    }

    fn finish(&mut self, _facts: &Facts, hits: &mut Hits) -> Result<(), String> {
        hits.add_many(Hit::Purged, self.count);
        Ok(())
    }
}

impl Purge {
    /// The log has a settlement: somebody must have had a reason for it.
    fn settled(&mut self, facts: &Facts, record: &Written) -> Result<(), String> {
        let Some(id) = facts.places.get(&(record.queue, record.sequence)) else { return Ok(()) };
        let letter = facts.letter(*id)?;
        let explained = self.judged.contains(id) || letter.doomed || !letter.copies.is_empty();
        if explained {
            return Ok(());
        }
        let below = self.below.get(&record.queue);
        if !record.found && below.is_none_or(|below| record.sequence >= *below) {
            return Err(format!(
                "{id:?}, message {} of {:?}, was settled by nobody; purged was what is below \
                 {below:?}",
                record.sequence.0, record.queue
            ));
        }
        self.count += u64::from(!record.found);
        let Written { queue, shard, end, .. } = *record;
        self.taken.entry(*id).or_insert(Taken { queue, shard, end, gone: None });
        Ok(())
    }
}
