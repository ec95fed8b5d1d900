//! Where a message's record is, which compaction changes, and what the log says of it.
//!
//! ```text
//!   lives_at(from)? ─▶ copy appended ─▶ committed ─▶ relocate: the place is the copy's
//!   recovery:  original, copy ─▶ relocate           copy alone ─▶ restore: the slot is taken late
//! ```
//! Invariant: nothing but the place changes. Order, state and settlement rest on the sequence.

use bytes::Bytes;
use journal::{Lsn, Sequence};

use super::{Chain, Queue, SlotState, Traits};
use crate::setback::Setback;

impl Queue {
    /// Whether a message's record is at `lsn`, and no settlement of it is appended, or about to be.
    pub fn lives_at(&self, sequence: Sequence, lsn: Lsn) -> bool {
        let is_here = |slot: &super::Slot| slot.lsn == lsn && slot.state != SlotState::Settling;
        self.index.get(sequence).is_some_and(is_here)
    }

    /// The bytes of a live message, if they are in memory.
    pub fn message(&self, sequence: Sequence) -> Option<&Bytes> {
        self.index.payload(sequence)
    }

    /// Whether a live message could have these bytes: what is not in memory is not compared.
    pub fn may_be(&self, sequence: Sequence, message: &Bytes) -> Option<bool> {
        let slot = self.index.get(sequence)?;
        let known = self.index.payload(sequence);
        let is_as_long = slot.message_bytes as usize == message.len();
        Some(known.map_or(is_as_long, |known| known == message))
    }

    /// How long a live message is.
    pub fn message_bytes(&self, sequence: Sequence) -> Option<usize> {
        self.index.get(sequence).map(|slot| slot.message_bytes as usize)
    }

    /// What the log says of a message that came back, if it says anything.
    pub fn setback(&self, sequence: Sequence) -> Option<Setback> {
        let count = self.index.get(sequence)?.delivery_count;
        let (doom, added) = (self.dying.logged_doom(sequence), self.dying.added(sequence));
        let setback = Setback { count, doom, added };
        (setback != Setback::default()).then_some(setback)
    }

    /// The copy of a message is committed: its record is there from now on. Gives where it was;
    /// `None` if the message is gone.
    pub fn relocate(&mut self, sequence: Sequence, to: Lsn, chain: Option<Chain>) -> Option<Lsn> {
        let slot = self.index.get_mut(sequence)?;
        if let Some(chain) = chain {
            self.chains.put(sequence, chain);
        }
        Some(std::mem::replace(&mut slot.lsn, to))
    }

    /// Takes the slot of a message whose original record is gone; its copy comes behind messages
    /// that were given their sequences later.
    ///
    /// # Panics
    /// If it is there, or its sequence was never given.
    pub fn restore(&mut self, sequence: Sequence, lsn: Lsn, message: Bytes, traits: Traits) {
        assert!(sequence < self.next, "sequence {sequence:?} of {:?} is new", self.id);
        let slot = self.slot(sequence, lsn, message.len(), traits);
        self.index.insert(sequence, slot, Some(message));
    }
}
