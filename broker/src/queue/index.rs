//! The slots of a queue's messages, by sequence.
//!
//! ```text
//!   chunks   (7, │s s s … s│) (8, │s – s … s│) (11, │s s – …  │)      32 slots each
//!             sequence / 32 is the number; numbers rise, a chunk without messages is left out;
//!             where the chunks are dense a slot is one look away, counted from either end;
//!             otherwise a binary search by number
//! ```
//! A chunk is freed when its last slot is taken out, so one old message keeps one chunk, not
//! everything since.
//!
//! The bytes of a chunk's messages are in a table of their own, beside the slots. It is there while
//! any of them is: a chunk whose payloads are only on the disk costs its slots and nothing more,
//! 25 bytes a message. `held` says which have one, so that who looks for payloads passes others
//! without touching their memory.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;
use journal::limits::RECORD_HEADER_BYTES;
use journal::{Lsn, Sequence};

use super::SlotState;
use crate::limits::{CHUNK_SLOTS, INDEX_BYTES};

/// A message that is not archived.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) state: SlotState,
    /// Its place among priorities: lower goes out first.
    pub(super) rank: u8,
    /// Bytes of its record's optional parts; [`IN_FRAGMENTS`] if it has more than one record.
    pub(super) parts_bytes: u16,
    pub(super) message_bytes: u32,
    pub(super) delivery_count: u32,
    /// While it is acquired: where it stands in its consumer's list.
    pub(super) held_at: u32,
    pub(super) lsn: Lsn,
}

/// In place of the bytes of a record's parts: the message is not in one record.
pub(super) const IN_FRAGMENTS: u16 = u16::MAX;

/// The bytes of a chunk's messages; none of those that are on the disk only.
type Payloads = [Option<Bytes>; CHUNK_SLOTS];

#[derive(Debug)]
struct Chunk {
    slots: [Option<Slot>; CHUNK_SLOTS],
    payloads: Option<Box<Payloads>>,
    used: u32,
}

/// A chunk, and what is to be known of it without a look at it.
#[derive(Debug)]
struct Entry {
    number: u64,
    chunk: Box<Chunk>,
    /// Payloads in memory.
    held: u32,
}

/// What the allocator takes for itself, at the most.
const ALLOCATION_BYTES: usize = 64;

const _: () = {
    // What a message costs when its bytes are on the disk only; a deque may be half empty.
    let chunk = size_of::<Chunk>() + ALLOCATION_BYTES + 2 * size_of::<Entry>();
    assert!(chunk <= CHUNK_SLOTS * INDEX_BYTES as usize);
};

/// See the head of the file.
#[derive(Debug, Default)]
pub(super) struct Index {
    chunks: VecDeque<Entry>,
}

impl Slot {
    /// What the message's record takes in the log, if it is one.
    pub(super) fn record_bytes(&self) -> Option<usize> {
        let parts_bytes = usize::from(self.parts_bytes);
        (self.parts_bytes != IN_FRAGMENTS)
            .then(|| RECORD_HEADER_BYTES + parts_bytes + self.message_bytes as usize)
    }
}

impl Entry {
    fn new(number: u64) -> Self {
        let (slots, payloads) = ([const { None }; CHUNK_SLOTS], None);
        Self { number, chunk: Box::new(Chunk { slots, payloads, used: 0 }), held: 0 }
    }

    #[inline(always)]
    fn put(&mut self, offset: usize, slot: Slot, message: Option<Bytes>) {
        self.chunk.used += 1;
        self.chunk.slots[offset] = Some(slot);
        if let Some(message) = message {
            self.hold(offset, message);
        }
    }

    #[inline(always)]
    fn hold(&mut self, offset: usize, message: Bytes) {
        let none = || Box::new([const { None }; CHUNK_SLOTS]);
        self.chunk.payloads.get_or_insert_with(none)[offset] = Some(message);
        self.held += 1;
    }

    #[inline(always)]
    fn let_go(&mut self, offset: usize) -> Option<Bytes> {
        let payload = self.chunk.payloads.as_mut()?[offset].take()?;
        self.held -= 1;
        if self.held == 0 {
            self.chunk.payloads = None;
        }
        Some(payload)
    }
}

impl Index {
    /// Takes a message in, behind all others.
    #[inline(always)]
    pub(super) fn push(&mut self, sequence: Sequence, slot: Slot, message: Option<Bytes>) {
        let (number, offset) = place(sequence);
        let last = self.chunks.back().map(|entry| entry.number);
        if last != Some(number) {
            assert!(last.is_none_or(|last| last < number), "{sequence:?} behind a later one");
            self.chunks.push_back(Entry::new(number));
        }
        self.chunks.back_mut().expect("it was pushed").put(offset, slot, message);
    }

    /// Takes a message in, wherever its place is.
    pub(super) fn insert(&mut self, sequence: Sequence, slot: Slot, message: Option<Bytes>) {
        let (number, offset) = place(sequence);
        let at = self.find(number).unwrap_or_else(|at| {
            self.chunks.insert(at, Entry::new(number));
            at
        });
        let entry = &mut self.chunks[at];
        assert!(entry.chunk.slots[offset].is_none(), "{sequence:?} is there already");
        entry.put(offset, slot, message);
    }

    pub(super) fn get(&self, sequence: Sequence) -> Option<&Slot> {
        let (number, offset) = place(sequence);
        self.chunks[self.find(number).ok()?].chunk.slots[offset].as_ref()
    }

    pub(super) fn get_mut(&mut self, sequence: Sequence) -> Option<&mut Slot> {
        let (number, offset) = place(sequence);
        let at = self.find(number).ok()?;
        self.chunks[at].chunk.slots[offset].as_mut()
    }

    /// A message's slot, and its bytes where they are in memory.
    #[inline(always)]
    pub(super) fn get_whole(&mut self, sequence: Sequence) -> Option<(&mut Slot, Option<&Bytes>)> {
        let (number, offset) = place(sequence);
        let at = self.find(number).ok()?;
        let Chunk { slots, payloads, .. } = &mut *self.chunks[at].chunk;
        let payload = payloads.as_ref().and_then(|payloads| payloads[offset].as_ref());
        Some((slots[offset].as_mut()?, payload))
    }

    /// A message's bytes, if they are in memory.
    pub(super) fn payload(&self, sequence: Sequence) -> Option<&Bytes> {
        let (number, offset) = place(sequence);
        self.chunks[self.find(number).ok()?].chunk.payloads.as_ref()?[offset].as_ref()
    }

    /// Takes a message's bytes out of memory.
    pub(super) fn let_go(&mut self, sequence: Sequence) -> Option<Bytes> {
        let (number, offset) = place(sequence);
        let at = self.find(number).ok()?;
        self.chunks[at].let_go(offset)
    }

    /// The bytes of a message that is here are in memory again.
    pub(super) fn hold(&mut self, sequence: Sequence, message: Bytes) {
        let (number, offset) = place(sequence);
        let at = self.find(number).expect("its message is here");
        self.chunks[at].hold(offset, message);
    }

    /// Looks for the last chunk below this number in which payloads are in memory.
    ///
    /// # Errors
    /// The looks are used up, or there is none: where to look on, 0 if that is nowhere.
    pub(super) fn last_held(&self, below: u64, looks_left: &mut usize) -> Result<u64, u64> {
        let end = self.find(below).unwrap_or_else(|at| at);
        for at in (0..end).rev() {
            let Entry { number, held, .. } = &self.chunks[at];
            let (number, held) = (*number, *held);
            if held > 0 {
                return Ok(number);
            }
            *looks_left = looks_left.saturating_sub(1);
            if *looks_left == 0 {
                return Err(number);
            }
        }
        Err(0)
    }

    /// The sequences of a chunk, first and behind the last.
    pub(super) fn sequences_of(number: u64) -> Range<u64> {
        sequence(number, 0).0..sequence(number, CHUNK_SLOTS).0
    }

    /// Takes a message out, with its bytes where they are in memory.
    #[inline(always)]
    pub(super) fn take(&mut self, sequence: Sequence) -> Option<(Slot, Option<Bytes>)> {
        let (number, offset) = place(sequence);
        let at = self.find(number).ok()?;
        let entry = &mut self.chunks[at];
        let slot = entry.chunk.slots[offset].take()?;
        let payload = entry.let_go(offset);
        entry.chunk.used -= 1;
        if entry.chunk.used == 0 {
            self.chunks.remove(at);
        }
        Some((slot, payload))
    }

    /// The first message at or behind `from`.
    pub(super) fn first_from(&self, from: Sequence) -> Option<(Sequence, &Slot)> {
        if let Some(slot) = self.get(from) {
            return Some((from, slot));
        }
        let (number, mut offset) = place(from);
        let start = self.find(number).unwrap_or_else(|next| {
            offset = 0;
            next
        });
        for Entry { number, chunk, .. } in self.chunks.range(start..) {
            for (offset, slot) in chunk.slots.iter().enumerate().skip(offset) {
                if let Some(slot) = slot {
                    return Some((sequence(*number, offset), slot));
                }
            }
            offset = 0;
        }
        None
    }

    /// The last message.
    pub(super) fn last(&self) -> Option<Sequence> {
        let Entry { number, chunk, .. } = self.chunks.back()?;
        let offset = chunk.slots.iter().rposition(Option::is_some)?;
        Some(sequence(*number, offset))
    }

    /// Every message, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Sequence, &Slot)> {
        self.chunks.iter().flat_map(|Entry { number, chunk, .. }| {
            let slots = chunk.slots.iter().enumerate();
            slots.filter_map(|(offset, slot)| Some((sequence(*number, offset), slot.as_ref()?)))
        })
    }

    /// How many chunks there are.
    #[cfg(test)]
    pub(super) fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// Where the chunk of this number stands, or would.
    #[inline(always)]
    fn find(&self, number: u64) -> Result<usize, usize> {
        let Some(Entry { number: first, .. }) = self.chunks.front() else { return Err(0) };
        if *first == number {
            return Ok(0);
        }
        match self.chunks.back() {
            Some(last) if last.number == number => Ok(self.chunks.len() - 1),
            Some(_) | None => self.find_between(*first, number),
        }
    }

    #[inline(never)]
    fn find_between(&self, first: u64, number: u64) -> Result<usize, usize> {
        let is_at = |at: usize| self.chunks.get(at).is_some_and(|there| there.number == number);
        let from_front = number.wrapping_sub(first) as usize;
        if is_at(from_front) {
            return Ok(from_front);
        }
        let last = self.chunks.len() - 1;
        let from_back = self.chunks[last].number.wrapping_sub(number) as usize;
        if let Some(at) = last.checked_sub(from_back)
            && is_at(at)
        {
            return Ok(at);
        }
        self.chunks.binary_search_by_key(&number, |entry| entry.number)
    }
}

fn place(sequence: Sequence) -> (u64, usize) {
    let chunk = sequence.0 / CHUNK_SLOTS as u64;
    (chunk, (sequence.0 % CHUNK_SLOTS as u64) as usize)
}

fn sequence(number: u64, offset: usize) -> Sequence {
    Sequence(number * CHUNK_SLOTS as u64 + offset as u64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn slot(lsn: u64) -> Slot {
        Slot {
            state: SlotState::Available,
            rank: 5,
            parts_bytes: 0,
            message_bytes: 0,
            delivery_count: 0,
            held_at: 0,
            lsn: Lsn(lsn),
        }
    }

    /// Against a set: gaps of any width, taken out from both ends and from the middle.
    #[test]
    fn every_message_is_found_wherever_the_gaps_are() {
        let mut state = 7u64;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % below
        };
        let (mut index, mut model, mut next) = (Index::default(), BTreeSet::new(), 0);
        for _ in 0..4000 {
            next += if random(20) == 0 { random(1000) } else { 0 };
            index.push(Sequence(next), slot(next), None);
            model.insert(next);
            next += 1;
            while model.len() > 1 + random(300) as usize {
                let from = random(next);
                let Some(&gone) = model.range(from..).next() else { continue };
                model.remove(&gone);
                assert_eq!(index.take(Sequence(gone)).map(|(slot, _)| slot.lsn), Some(Lsn(gone)));
                assert!(index.take(Sequence(gone)).is_none());
            }
            let from = random(next + 10);
            let first = index.first_from(Sequence(from)).map(|(sequence, _)| sequence.0);
            assert_eq!(first, model.range(from..).next().copied());
            let found = index.get_mut(Sequence(from)).map(|slot| slot.lsn.0);
            assert_eq!(found, model.get(&from).copied());
        }
        assert!(index.iter().map(|(sequence, _)| sequence.0).eq(model.iter().copied()));
        assert!(index.chunks.len() <= model.len());
    }

    #[test]
    fn chunks_with_payloads_are_found_from_the_end_with_so_many_looks() {
        let mut index = Index::default();
        let chunk = CHUNK_SLOTS as u64;
        for number in 0..100 {
            let sequence = Sequence(number * chunk);
            index.push(sequence, slot(number), Some(Bytes::from_static(b"m")));
        }
        for number in (0..100).filter(|number| number % 40 != 7) {
            assert!(index.let_go(Sequence(number * chunk)).is_some());
            assert!(index.payload(Sequence(number * chunk)).is_none());
        }
        let mut looks = 50;
        assert_eq!(index.last_held(u64::MAX, &mut looks), Ok(87));
        assert_eq!(looks, 38);
        assert_eq!(index.last_held(87, &mut looks), Err(49));
        assert_eq!((looks, index.last_held(49, &mut 9)), (0, Ok(47)));
        assert_eq!(index.last_held(7, &mut 99), Err(0));
        index.hold(Sequence(0), Bytes::from_static(b"m"));
        assert_eq!(index.last_held(7, &mut 99), Ok(0));
        assert!(index.take(Sequence(0)).is_some_and(|(_, payload)| payload.is_some()));
        assert_eq!(index.last_held(7, &mut 99), Err(0));
    }
}
