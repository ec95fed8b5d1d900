//! A message is with one consumer at a time.
//!
//! From its delivery until the consumer gives it an outcome, or goes, nobody else gets it. A link
//! that is on its way out holds nothing any more: what still comes on it crossed its detach.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::{Check, Facts, LinkKey, Seen};
use crate::letter::LetterId;

/// Who has what.
#[derive(Debug, Default)]
pub(super) struct Holder {
    holders: BTreeMap<LetterId, LinkKey>,
    parted: BTreeSet<LinkKey>,
}

impl Check for Holder {
    fn promise(&self) -> &'static str {
        "a message is with one consumer at a time"
    }

    fn see(&mut self, _now: Instant, facts: &Facts, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Delivered { letter, link, .. } if !self.parted.contains(link) => {
                match self.holders.insert(*letter, *link) {
                    Some(holder)
                        if !self.parted.contains(&holder)
                            && !facts.may_be_twice(facts.letter(*letter)?) =>
                    {
                        Err(format!("{letter:?} came to {link:?} while {holder:?} has it"))
                    }
                    Some(_) | None => Ok(()),
                }
            }
            Seen::Judged { letter, .. } => {
                self.holders.remove(letter);
                Ok(())
            }
            Seen::Parted(parting) => {
                self.parted.insert(parting.link);
                Ok(())
            }
            Seen::Sent { .. }
            | Seen::Accepted(_)
            | Seen::Refused(_)
            | Seen::Delivered { .. }
            | Seen::Browsed { .. }
            | Seen::Confirmed { .. }
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
