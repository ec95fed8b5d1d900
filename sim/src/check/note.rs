//! What a consumer has added to a message's annotations is there from its confirmation on.
//!
//! Whatever crashes, is copied or moved: a delivery has the newest annotation that was confirmed,
//! or one that was told later. With a full log or memory it may be left out, and nothing is said.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use journal::Level;

use super::{Check, Facts, Seen};
use crate::letter::LetterId;
use crate::wire::Verdict;

/// What each letter was given; the numbers rise.
#[derive(Debug, Default)]
pub(super) struct Note {
    told: BTreeSet<(LetterId, u32)>,
    confirmed: BTreeMap<LetterId, Vec<(u32, Instant)>>,
}

impl Check for Note {
    fn promise(&self) -> &'static str {
        "what a consumer has added to a message is there when that is confirmed"
    }

    fn see(&mut self, now: Instant, facts: &Facts, seen: &Seen) -> Result<(), String> {
        let at = facts.stamp.as_ref().map_or(now, |stamp| stamp.at);
        if let Seen::Judged { letter, verdict: Verdict::Modified { note: Some(note), .. } } = seen {
            self.told.insert((*letter, *note));
        } else if let Seen::Confirmed { letter, verdict } = seen
            && let Verdict::Modified { note: Some(note), .. } = verdict
        {
            self.confirmed.entry(*letter).or_default().push((*note, at));
        } else if let Seen::Delivered { letter, note, .. } = seen {
            return self.delivered(at, facts, *letter, *note);
        }
        Ok(())
    }
}

impl Note {
    fn delivered(
        &self,
        sent: Instant,
        facts: &Facts,
        id: LetterId,
        note: Option<u32>,
    ) -> Result<(), String> {
        if let Some(note) = note
            && !self.told.contains(&(id, note))
        {
            return Err(format!("{id:?} came with annotation {note}, which nobody gave it"));
        }
        let is_async = facts.level(id) == Level::Async;
        let holds = |at: Instant| at < sent && !(is_async && facts.at_risk(at));
        let confirmed = self.confirmed.get(&id).into_iter().flatten();
        let newest = confirmed.filter(|(_, at)| holds(*at)).map(|(note, _)| *note).max();
        // One that was sent twice may be there twice, or be the second.
        let letter = facts.letter(id)?;
        let excused = facts.tight || facts.may_be_offered(letter) || letter.repeated;
        if excused || newest <= note {
            return Ok(());
        }
        Err(format!("{id:?} came with annotation {note:?}, and {newest:?} is confirmed"))
    }
}
