//! Nothing is delivered when its time is over, and nothing expires before.
//!
//! What is on its way to a consumer then is not called back, hence a slack; and it waits on its way
//! where its broker stands still: a process, or one of the shards that it goes through. In a queue
//! for what died nothing expires.

use std::time::{Duration, Instant};

use broker::settings::EXPIRY_ADDRESS;

use super::{Check, Facts, Seen, Written};

/// How long a delivery may be on its way through the broker, milliseconds.
const SLACK_MS: u64 = 100;

#[derive(Debug)]
pub(super) struct Expiry;

impl Check for Expiry {
    fn promise(&self) -> &'static str {
        "nothing is delivered when its time is over, and nothing expires before"
    }

    fn see(&mut self, now: Instant, facts: &Facts, seen: &Seen) -> Result<(), String> {
        if let Seen::Written(written) = seen {
            return not_early(now, facts, written);
        }
        let Seen::Delivered { letter, grave: false, .. } = seen else { return Ok(()) };
        let (Some(expiry), Some(clock)) = (facts.letter(*letter)?.expiry_unix_ms, &facts.clock)
        else {
            return Ok(());
        };
        let at = facts.stamp.as_ref().map_or(now, |stamp| stamp.at);
        let sent = clock.unix_ms(at);
        let late = Duration::from_millis(sent.saturating_sub(expiry));
        let stood = facts.stood_between(at.checked_sub(late).unwrap_or(at), at);
        if late <= stood + Duration::from_millis(SLACK_MS) {
            return Ok(());
        }
        Err(format!("{letter:?} was delivered {} ms after its time was over", sent - expiry))
    }
}

/// What is moved to the queue for that has expired.
fn not_early(now: Instant, facts: &Facts, written: &Written) -> Result<(), String> {
    let name = facts.queues.get(&written.queue).and_then(|queue| queue.name.as_deref());
    let (Some(letter), Some(_), Some(EXPIRY_ADDRESS)) = (written.letter, written.origin, name)
    else {
        return Ok(());
    };
    let expiry = facts.letter(letter)?.expiry_unix_ms;
    let unix_ms = facts.clock.map_or(0, |clock| clock.unix_ms(now));
    if expiry.is_some_and(|expiry| expiry <= unix_ms) {
        return Ok(());
    }
    Err(format!("{letter:?} has expired at {unix_ms}, and says {expiry:?}"))
}
