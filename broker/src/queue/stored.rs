//! What a checkpoint says of a message, and a message as a checkpoint has said it.
//!
//! Invariant: a message that is taken in like this is what its record would have made of it, but
//! for its bytes, which stay on the disk.

use journal::{Lsn, Sequence};

use super::index::IN_FRAGMENTS;
use super::{PRIORITY_MAX, Queue, Traits};

/// A live message, as its queue knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InQueue {
    /// Which.
    pub sequence: Sequence,
    /// Where its record begins; in fragments, its first.
    pub lsn: Lsn,
    /// Bytes of the message.
    pub message_bytes: u32,
    /// What its record said, but for its delivery time.
    pub traits: Traits,
}

impl Queue {
    /// The first message at or behind `from`.
    pub fn stored_from(&self, from: Sequence) -> Option<InQueue> {
        let (sequence, slot) = self.index.first_from(from)?;
        let traits = Traits {
            priority: Some(PRIORITY_MAX - slot.rank),
            expiry_unix_ms: self.expiring.of(sequence),
            parts_bytes: (slot.parts_bytes != IN_FRAGMENTS).then_some(slot.parts_bytes),
            ..Traits::default()
        };
        Some(InQueue { sequence, lsn: slot.lsn, message_bytes: slot.message_bytes, traits })
    }

    /// Whether a message of this sequence can be taken in behind all that were.
    pub fn takes_stored(&self, sequence: Sequence) -> bool {
        let last = self.index.last();
        sequence < self.next && last.is_none_or(|last| last < sequence)
    }

    /// Takes the slot of a message in one record whose bytes are on the disk only.
    ///
    /// # Panics
    /// If its sequence is not [behind all others](Self::takes_stored).
    pub fn take_stored(&mut self, message: InQueue) {
        let InQueue { sequence, lsn, message_bytes, traits } = message;
        assert!(self.takes_stored(sequence), "{sequence:?} of {:?} in its turn", self.id);
        let slot = self.slot(sequence, lsn, message_bytes as usize, traits);
        self.paged.begin_outside(sequence, u64::from(message_bytes));
        self.index.push(sequence, slot, None);
    }
}
