//! Who only looks is shown each message of a queue once at most, and none that had gone before.
//!
//! What it is shown was there when it began to look, or came later; it may have gone since, and be
//! on its way. That it is committed is what `commit` watches over.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use journal::Level;

use super::{Check, Facts, LinkKey, Seen};
use crate::letter::LetterId;

/// What each link was shown, and what was gone when.
#[derive(Debug, Default)]
pub(super) struct Browse {
    shown: BTreeSet<(LinkKey, LetterId)>,
    /// Settled and confirmed, at this level.
    gone: BTreeMap<LetterId, (Instant, Level)>,
    /// Seen among the dead.
    buried: BTreeMap<LetterId, Instant>,
}

impl Check for Browse {
    fn promise(&self) -> &'static str {
        "who only looks is shown each message once, and none that had gone"
    }

    fn see(&mut self, now: Instant, facts: &Facts, seen: &Seen) -> Result<(), String> {
        let at = facts.stamp.as_ref().map_or(now, |stamp| stamp.at);
        if let Seen::Confirmed { letter, verdict } = seen
            && verdict.is_final()
        {
            self.gone.entry(*letter).or_insert((at, facts.level(*letter)));
        } else if let Seen::Delivered { letter, grave: true, .. } = seen {
            self.buried.entry(*letter).or_insert(at);
        }
        let Seen::Browsed { letter, link, grave, since_unix_ms } = seen else { return Ok(()) };
        // One that was sent twice may be there twice, where ids were forgotten.
        if facts.letter(*letter)?.repeated {
            return Ok(());
        }
        if !self.shown.insert((*link, *letter)) {
            return Err(format!("{letter:?} was shown to {link:?} twice"));
        }
        let Some(clock) = facts.clock else { return Ok(()) };
        let is_before = |at: Instant| clock.unix_ms(at) < *since_unix_ms;
        let gone = self.gone.get(letter).filter(|(at, level)| {
            is_before(*at) && !(*level == Level::Async && facts.at_risk(*at))
        });
        let buried = self.buried.get(letter).filter(|at| !grave && is_before(**at));
        if gone.is_none() && buried.is_none() {
            return Ok(());
        }
        Err(format!("{letter:?} had gone before {link:?} began to look: {gone:?}, {buried:?}"))
    }
}
