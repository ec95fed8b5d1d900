//! Messages of several fragments of which the last is not in the log.
//!
//! ```text
//!   FIRST ─▶ begun ── more of them ──▶ … ── LAST ──▶ a message (`apply.rs`)
//!              │
//!              └─ settled, its queue deleted, another reign: forgotten; what is in the log of
//!                 it is dead
//! ```
//! On who writes the log they are messages on their way in (`shard/inflow.rs`); where a log is read
//! or followed, copies too.
//!
//! Invariants: a chain is known by the queue and sequence that all its fragments carry; each has
//! its first place in `begins`, so that the oldest is found at once: the log must not lose that.
//! The places count against the memory bound.

use std::collections::{BTreeMap, BTreeSet};

use journal::{FragmentAt, Lsn, Origin, QueueId, Record, Sequence};

use crate::duplicates::DuplicateId;
use crate::limits::{FRAGMENT_PLACE_BYTES, HALF_BYTES};
use crate::queue::Traits;

/// A message that has begun.
#[derive(Debug)]
pub(crate) struct Half {
    pub(crate) chain: Vec<FragmentAt>,
    pub(crate) traits: Traits,
    pub(crate) origin: Option<Origin>,
    pub(crate) duplicate_id: Option<DuplicateId>,
    pub(crate) message_bytes: usize,
    /// It is the message, and no copy of one that was there before.
    pub(crate) is_original: bool,
    /// Behind a checkpoint: when it began it was the newest of what the log had told since.
    pub(crate) is_newest_read: bool,
}

impl Half {
    /// A message that begins with this record.
    pub(crate) fn begin(
        at: FragmentAt,
        record: &Record<'_>,
        traits: Traits,
        is_original: bool,
    ) -> Self {
        Self {
            is_original,
            is_newest_read: false,
            chain: vec![at],
            traits,
            origin: record.parts.origin,
            duplicate_id: record.parts.duplicate_id.map(DuplicateId::from_record),
            message_bytes: record.payload.len(),
        }
    }

    fn begins(&self) -> Lsn {
        self.chain[0].lsn
    }

    fn memory_bytes(&self) -> u64 {
        HALF_BYTES + self.chain.len() as u64 * FRAGMENT_PLACE_BYTES
    }
}

/// All that have begun and not ended.
#[derive(Debug, Default)]
pub(crate) struct Halves {
    halves: BTreeMap<(QueueId, Sequence), Half>,
    begins: BTreeSet<(Lsn, QueueId, Sequence)>,
    memory_bytes: u64,
    message_bytes: u64,
}

impl Halves {
    /// What they count against the memory bound.
    #[inline]
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// Bytes of them that are in the log.
    pub(crate) fn message_bytes(&self) -> u64 {
        self.message_bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.halves.is_empty()
    }

    /// Where the oldest begins, and which it is.
    pub(crate) fn oldest(&self) -> Option<(Lsn, QueueId, Sequence)> {
        self.begins.first().copied()
    }

    /// One has begun; what had its place before was given up.
    pub(crate) fn begin(&mut self, key: (QueueId, Sequence), half: Half) {
        self.take(key);
        self.begins.insert((half.begins(), key.0, key.1));
        self.memory_bytes += half.memory_bytes();
        self.message_bytes += half.message_bytes as u64;
        self.halves.insert(key, half);
    }

    /// Those of a queue.
    pub(crate) fn of_queue(&self, id: QueueId) -> impl Iterator<Item = Sequence> {
        let its = self.halves.range((id, Sequence(0))..=(id, Sequence(u64::MAX)));
        its.map(|((_, sequence), _)| *sequence)
    }

    /// The fragments of one so far.
    pub(crate) fn fragments(&self, key: (QueueId, Sequence)) -> Option<usize> {
        self.halves.get(&key).map(|half| half.chain.len())
    }

    /// Its next fragment stands here.
    pub(crate) fn go_on(&mut self, key: (QueueId, Sequence), at: FragmentAt, bytes: usize) {
        if let Some(half) = self.halves.get_mut(&key) {
            half.chain.push(at);
            half.message_bytes += bytes;
            self.memory_bytes += FRAGMENT_PLACE_BYTES;
            self.message_bytes += bytes as u64;
        }
    }

    /// It is whole, or nothing more comes of it.
    pub(crate) fn take(&mut self, key: (QueueId, Sequence)) -> Option<Half> {
        let half = self.halves.remove(&key)?;
        self.begins.remove(&(half.begins(), key.0, key.1));
        self.memory_bytes -= half.memory_bytes();
        self.message_bytes -= half.message_bytes as u64;
        Some(half)
    }

    /// Those of a queue are gone with it.
    pub(crate) fn forget_queue(&mut self, id: QueueId) {
        let its: Vec<Sequence> = self.of_queue(id).collect();
        its.into_iter().for_each(|sequence| drop(self.take((id, sequence))));
    }

    /// Those that begin before `lsn` never end.
    pub(crate) fn forget_before(&mut self, lsn: Lsn) {
        while let Some((_, queue, sequence)) = self.oldest().filter(|(at, ..)| *at < lsn) {
            self.take((queue, sequence));
        }
    }

    /// None of them ever ends.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// All of them, as if they had ended (a canary).
    pub(crate) fn keys(&self) -> Vec<(QueueId, Sequence)> {
        self.halves.keys().copied().collect()
    }
}
