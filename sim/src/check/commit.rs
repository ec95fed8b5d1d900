//! Nothing is accepted, and nothing delivered, before it is committed at its level.
//!
//! The level and the place of a letter's record are read from the batch on its way to the disk, the
//! durability from the disk: the broker's own marks are not asked. What a client hears is held
//! against the marks of the moment at which the broker let the bytes go.

use std::time::Instant;

use journal::{Level, Lsn};

use super::{Check, Facts, Seen};
use crate::letter::LetterId;

#[derive(Debug)]
pub(super) struct Commit;

impl Check for Commit {
    fn promise(&self) -> &'static str {
        "nothing is accepted or delivered before it is committed at its level"
    }

    fn see(&mut self, _now: Instant, facts: &Facts, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Accepted(letter) => committed(facts, *letter, "accepted"),
            Seen::Delivered { letter, .. } => committed(facts, *letter, "delivered"),
            Seen::Sent { .. }
            | Seen::Refused(_)
            | Seen::Judged { .. }
            | Seen::Confirmed { .. }
            | Seen::Parted(_)
            | Seen::Written(_)
            | Seen::Vouched { .. }
            | Seen::Recovered { .. }
            | Seen::Ready { .. }
            | Seen::Crash { .. } => Ok(()),
        }
    }
}

fn committed(facts: &Facts, id: LetterId, what: &str) -> Result<(), String> {
    let letter = facts.letter(id)?;
    let Some(written) = &letter.written else {
        let harmless = facts.level(id) == Level::Async;
        return harmless.then_some(()).ok_or_else(|| format!("{id:?} was {what}, never written"));
    };
    // What a start recovers counts as committed; how far the second member has it is asked when
    // there is a second member.
    let backup = facts.backup && letter.incarnation == facts.incarnation;
    let stamp = facts.stamp.as_ref().ok_or("an answer without a stamp")?;
    let mark = stamp.marks[usize::from(written.shard.0)];
    let reached = match (written.level, backup) {
        (Level::Async, _) => Lsn(u64::MAX),
        (Level::Sync, _) | (Level::Replicated | Level::ReplicatedSync, false) => mark.durable,
        (Level::Replicated, true) => mark.durable.min(mark.received),
        (Level::ReplicatedSync, true) => mark.durable.min(mark.backed_up),
    };
    if written.end <= reached {
        return Ok(());
    }
    Err(format!(
        "{id:?} was {what} at level {:?} when its record, ending at LSN {} of shard {}, was not \
         committed: {mark:?}",
        written.level, written.end, written.shard.0
    ))
}
