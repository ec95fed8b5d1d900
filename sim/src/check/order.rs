//! A producer's messages keep their order in a queue.
//!
//! On one link, messages that nobody can have seen before come in the order in which their producer
//! sent them. And where a consumer is alone with a queue at rest, all messages do, whatever
//! happened to them before: what was given back is back in its place. But what has to go and finds
//! no room elsewhere is there only between two tries to move it. A letter that was sent again
//! may stand where any of its copies would.
//!
//! All this holds within a priority. Of several the higher one comes first, where a consumer is
//! alone with a queue at rest.

use std::collections::BTreeMap;
use std::time::Instant;

use super::{Check, Facts, LinkKey, Seen};
use crate::letter::LetterId;

/// The newest letter seen, by consumer's and producer's link.
#[derive(Debug, Default)]
pub(super) struct Order {
    first: BTreeMap<(LinkKey, LinkKey, u8), LetterId>,
    alone: BTreeMap<(LinkKey, LinkKey, u8), LetterId>,
    /// The lowest priority that came, by consumer's link.
    lowest: BTreeMap<LinkKey, u8>,
}

impl Check for Order {
    fn promise(&self) -> &'static str {
        "a producer's messages keep their order in a queue"
    }

    fn see(&mut self, _now: Instant, facts: &Facts, seen: &Seen) -> Result<(), String> {
        // What died comes in the order of its death.
        let Seen::Delivered { letter, link, first_acquirer, alone, grave: false, .. } = seen else {
            return Ok(());
        };
        let sent = facts.letter(*letter)?;
        // What comes at a time of its own does not keep its producer's order.
        if sent.repeated || sent.later.is_some() {
            return Ok(());
        }
        let key = (*link, sent.link, sent.priority);
        let may_stay = sent.doomed && (facts.tight || facts.may_be_offered(sent));
        let alone = *alone && !facts.disordered && !may_stay;
        if alone {
            let lowest = self.lowest.entry(*link).or_insert(sent.priority);
            if sent.priority > *lowest {
                return Err(format!(
                    "{letter:?} of priority {} came after one of priority {lowest}",
                    sent.priority
                ));
            }
            *lowest = sent.priority;
        }
        for (counts, newest) in [(*first_acquirer, &mut self.first), (alone, &mut self.alone)] {
            if counts
                && let Some(before) = newest.insert(key, *letter)
                && before >= *letter
            {
                return Err(format!(
                    "{letter:?} came after {before:?} on {link:?}; both are of {:?}",
                    key.1
                ));
            }
        }
        Ok(())
    }
}
