//! Nothing is accepted, delivered or confirmed before it is committed at its level.
//!
//! The level and the place of a letter's record are read from the batch on its way to the disk, the
//! durability from the disk: the broker's own marks are not asked. What a client hears is held
//! against the marks of the moment at which the broker let the bytes go.

use std::time::Instant;

use journal::{Level, Lsn};

use super::{Check, Facts, Seen, Written};
use crate::letter::LetterId;

#[derive(Debug)]
pub(super) struct Commit;

impl Check for Commit {
    fn promise(&self) -> &'static str {
        "nothing is accepted, delivered or confirmed before it is committed at its level"
    }

    fn see(&mut self, _now: Instant, facts: &Facts, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Accepted(letter) if facts.may_be_dropped(*letter) => Ok(()),
            Seen::Accepted(letter) => message(facts, *letter, "accepted", false),
            Seen::Browsed { letter, grave, .. } => message(facts, *letter, "shown", *grave),
            Seen::Delivered { letter, grave, .. } => message(facts, *letter, "delivered", *grave),
            Seen::Confirmed { letter, verdict } if verdict.is_final() => settlement(facts, *letter),
            Seen::Sent { .. }
            | Seen::Refused(_)
            | Seen::Judged { .. }
            | Seen::Confirmed { .. }
            | Seen::Parted(_)
            | Seen::Purging { .. }
            | Seen::Purged(_)
            | Seen::Forgotten { .. }
            | Seen::Written(_)
            | Seen::Vouched { .. }
            | Seen::Headed { .. }
            | Seen::Recovered { .. }
            | Seen::Ready { .. }
            | Seen::Crash { .. } => Ok(()),
        }
    }
}

fn message(facts: &Facts, id: LetterId, what: &str, grave: bool) -> Result<(), String> {
    let letter = facts.letter(id)?;
    if facts.may_be_twice(letter) {
        return Ok(());
    }
    let Some(written) = (if grave { letter.copy() } else { letter.written.as_ref() }) else {
        let harmless = facts.level(id) == Level::Async;
        return harmless.then_some(()).ok_or_else(|| format!("{id:?} was {what}, never written"));
    };
    // What a start recovers counts as committed; in a pair the other member must have that too.
    let backup = facts.backup && (facts.pair || letter.incarnation == facts.incarnation);
    committed(facts, written, backup).map_err(|why| format!("{id:?} was {what}, but {why}"))
}

fn settlement(facts: &Facts, id: LetterId) -> Result<(), String> {
    let letter = facts.letter(id)?;
    if facts.may_be_twice(letter) || facts.level(id) == Level::Async {
        return Ok(());
    }
    let settled = letter.copies.last().map_or(&letter.settled, |copy| &copy.settled);
    let Some(settled) = settled else {
        return Err(format!("{id:?} was confirmed, its settlement never written"));
    };
    committed(facts, settled, facts.backup)
        .map_err(|why| format!("{id:?} was confirmed, but {why}"))
}

/// Whether a record was committed at its level when the broker let its answer go.
fn committed(facts: &Facts, written: &Written, backup: bool) -> Result<(), String> {
    let stamp = facts.stamp.as_ref().ok_or("there is no stamp")?;
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
        "at level {:?} its record, ending at LSN {} of shard {}, was not committed: {mark:?}",
        written.level, written.end, written.shard.0
    ))
}
