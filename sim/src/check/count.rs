//! A delivery count comes from the log, and `first-acquirer` is said of nothing that was recovered.
//!
//! The count lies between the failed deliveries that are in the log and confirmed, and those that
//! clients have told the broker of, or may have had when their connections to its queue broke off
//! while the broker lived. A released
//! message, a link or connection that ends in order, or a crash adds nothing. (A full disk may give
//! a message back uncounted; what the log has counted stays counted.)

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use journal::{Level, Lsn, QueueId, RecordKind, Sequence, ShardId};

use super::{Check, Facts, Seen};
use crate::hits::{Hit, Hits};
use crate::letter::LetterId;
use crate::wire::Verdict;

/// A record of a failure.
#[derive(Debug)]
struct Logged {
    shard: ShardId,
    end: Lsn,
    count: u32,
}

/// How long a connection may be broken off before its broker hears of it.
const HEARD_WITHIN: Duration = Duration::from_secs(2);

/// What is known of each letter's failures.
#[derive(Debug, Default)]
pub(super) struct Count {
    told: BTreeMap<LetterId, u32>,
    /// Where the log's records of failures end, by message.
    logged: BTreeMap<(QueueId, Sequence), Vec<Logged>>,
    /// When each failure that the log has was confirmed.
    confirmed: BTreeMap<LetterId, Vec<Instant>>,
    /// When connections have broken off that consumed a queue.
    broken: BTreeMap<usize, Vec<Instant>>,
    /// Where letters were sent, and when first.
    sent: BTreeMap<LetterId, (usize, Instant)>,
    /// Deliveries that failed since a connection had broken off.
    counted: u64,
}

impl Check for Count {
    fn promise(&self) -> &'static str {
        "a delivery count comes from the log alone"
    }

    fn see(&mut self, now: Instant, facts: &Facts, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Judged { letter, verdict: Verdict::Modified { failed: true, .. } } => {
                *self.told.entry(*letter).or_default() += 1;
            }
            Seen::Written(record) if record.kind == RecordKind::DeliveryCount && !record.doom => {
                let logged = self.logged.entry((record.queue, record.sequence)).or_default();
                // A compaction says again what was said.
                let count = record.delivery_count.unwrap_or(0);
                // And one that only annotates counts nothing.
                if logged.last().map_or(0, |before| before.count) < count {
                    logged.push(Logged { shard: record.shard, end: record.end, count });
                }
            }
            Seen::Confirmed { letter, verdict: Verdict::Modified { failed: true, .. } } => {
                if let Some(written) = &facts.letter(*letter)?.written {
                    let at = (written.queue, written.sequence);
                    let logged = self.logged.get(&at).map_or(0, Vec::len);
                    let confirmed = self.confirmed.entry(*letter).or_default();
                    confirmed.push(facts.stamp.as_ref().map_or(now, |stamp| stamp.at));
                    confirmed.truncate(logged);
                }
            }
            // In a queue for what died the count begins anew.
            Seen::Delivered { letter, delivery_count, first_acquirer, grave: false, .. } => {
                return self.delivered(facts, *letter, *delivery_count, *first_acquirer);
            }
            Seen::Recovered { shard, end } => {
                for records in self.logged.values_mut() {
                    records.retain(|record| record.shard != *shard || record.end <= *end);
                }
            }
            Seen::Sent { letter, queue, .. } => {
                self.sent.entry(*letter).or_insert((*queue, now));
            }
            Seen::Parted(parting) => {
                if let Some(queue) = parting.broke_off {
                    self.broken.entry(queue).or_default().push(now);
                }
            }
            Seen::Accepted(_)
            | Seen::Refused(_)
            | Seen::Delivered { .. }
            | Seen::Judged { .. }
            | Seen::Confirmed { .. }
            | Seen::Browsed { .. }
            | Seen::Purging { .. }
            | Seen::Purged(_)
            | Seen::Forgotten { .. }
            | Seen::Written(_)
            | Seen::Vouched { .. }
            | Seen::Headed { .. }
            | Seen::Ready { .. }
            | Seen::Crash { .. } => {}
        }
        Ok(())
    }

    fn finish(&mut self, _facts: &Facts, hits: &mut Hits) -> Result<(), String> {
        if self.counted > 0 {
            hits.add(Hit::BrokenOff);
        }
        Ok(())
    }
}

impl Count {
    fn delivered(
        &mut self,
        facts: &Facts,
        id: LetterId,
        count: u32,
        first_acquirer: bool,
    ) -> Result<(), String> {
        let letter = facts.letter(id)?;
        if facts.may_be_twice(letter) {
            return Ok(());
        }
        let told = self.told.get(&id).copied().unwrap_or(0);
        // At `async` a crash may take along what was counted in the flush window before it.
        let is_async = facts.level(id) == Level::Async;
        let excused = |at: Instant| is_async && facts.at_risk(at);
        // A delivery that was on its way before the confirmation does not know of it.
        let sent = facts.stamp.as_ref().map(|stamp| stamp.at);
        let known = |at: &&Instant| sent.is_none_or(|sent| **at < sent) && !excused(**at);
        let confirmed = self.confirmed.get(&id).map_or(0, |all| all.iter().filter(known).count());
        let confirmed = confirmed as u32;
        // A broker that hears late of it may have sent on that connection since.
        let broken = self.sent.get(&id).map_or(0, |(queue, began)| {
            let broken = self.broken.get(queue).map_or(&[][..], Vec::as_slice);
            let since = broken.partition_point(|at| *at + HEARD_WITHIN < *began);
            (broken.len() - since) as u32
        });
        if !(confirmed..=told + broken).contains(&count) {
            return Err(format!(
                "{id:?} came with delivery-count {count}; {confirmed} failures are confirmed, \
                 {told} were told, and {broken} consumers have broken off"
            ));
        }
        self.counted += u64::from(count > told);
        let recovered = letter.written.is_some() && letter.incarnation < facts.incarnation;
        if recovered && first_acquirer {
            return Err(format!("{id:?} was recovered and came with first-acquirer=true"));
        }
        Ok(())
    }
}
