//! Nobody gets a letter before the time that it names, and those whose time has come go out by it.
//!
//! A delay counts from when the broker has the letter; what is known here is when it was sent. The
//! broker's clock counts milliseconds, and may begin within one of ours.
//!
//! The order is that of the times in the log, where a consumer is alone with a queue at rest,
//! within a priority. A letter that was sent more than once may have any of its times. In a queue
//! for what died a letter has no time any more.

use std::collections::BTreeMap;
use std::time::Instant;

use super::{Check, Facts, LinkKey, Seen};
use crate::hits::{Hit, Hits};
use crate::letter::{Later, LetterId};

/// A millisecond of the world's clock may be two of the broker's.
const SLACK_MS: u64 = 1;

/// The latest time that came, by consumer's link and priority.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    alone: BTreeMap<(LinkKey, u8), (u64, LetterId)>,
    waited: u64,
}

impl Check for Schedule {
    fn promise(&self) -> &'static str {
        "nothing is delivered before its time, and then by its time"
    }

    fn see(&mut self, now: Instant, facts: &Facts, seen: &Seen) -> Result<(), String> {
        if let Seen::Browsed { letter, grave: false, .. } = seen {
            return not_early(now, facts, *letter);
        }
        let Seen::Delivered { letter, link, alone, grave: false, .. } = seen else {
            return Ok(());
        };
        not_early(now, facts, *letter)?;
        let sent = facts.letter(*letter)?;
        let Some(time) = sent.written.as_ref().and_then(|written| written.delivery_unix_ms) else {
            return Ok(());
        };
        self.waited += 1;
        let may_stay = sent.doomed && (facts.tight || facts.may_be_offered(sent));
        if *alone && !facts.disordered && !sent.repeated && !may_stay {
            let before = self.alone.insert((*link, sent.priority), (time, *letter));
            if let Some((before, other)) = before
                && before > time
            {
                return Err(format!("{letter:?} of {time} came after {other:?} of {before}"));
            }
        }
        Ok(())
    }

    fn finish(&mut self, _facts: &Facts, hits: &mut Hits) -> Result<(), String> {
        hits.add_many(Hit::Scheduled, self.waited);
        Ok(())
    }
}

fn not_early(now: Instant, facts: &Facts, letter: LetterId) -> Result<(), String> {
    let sent = facts.letter(letter)?;
    let (Some(later), Some(clock)) = (sent.later, &facts.clock) else { return Ok(()) };
    let earliest = match later {
        Later::At(unix_ms) => unix_ms,
        Later::After(delay_ms) => (sent.sent_unix_ms + delay_ms).saturating_sub(SLACK_MS),
    };
    let came = clock.unix_ms(facts.stamp.as_ref().map_or(now, |stamp| stamp.at));
    if came < earliest {
        return Err(format!("{letter:?} came {} ms before its time", earliest - came));
    }
    Ok(())
}
