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

use std::collections::VecDeque;

use bytes::Bytes;
use journal::{Lsn, Sequence};

use super::SlotState;
use crate::limits::CHUNK_SLOTS;

/// A message that is not archived.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) state: SlotState,
    /// Its place among priorities: lower goes out first.
    pub(super) rank: u8,
    pub(super) delivery_count: u32,
    /// While it is acquired: where it stands in its consumer's list.
    pub(super) held_at: u32,
    pub(super) lsn: Lsn,
    pub(super) message: Bytes,
}

#[derive(Debug)]
struct Chunk {
    slots: [Option<Slot>; CHUNK_SLOTS],
    used: usize,
}

/// See the head of the file.
#[derive(Debug, Default)]
pub(super) struct Index {
    chunks: VecDeque<(u64, Box<Chunk>)>,
}

impl Index {
    /// Takes a message in, behind all others.
    pub(super) fn push(&mut self, sequence: Sequence, slot: Slot) {
        let (number, offset) = place(sequence);
        let last = self.chunks.back().map(|(number, _)| *number);
        if last != Some(number) {
            assert!(last.is_none_or(|last| last < number), "{sequence:?} behind a later one");
            let chunk = Chunk { slots: [const { None }; CHUNK_SLOTS], used: 0 };
            self.chunks.push_back((number, Box::new(chunk)));
        }
        let (_, chunk) = self.chunks.back_mut().expect("it was pushed");
        chunk.used += 1;
        chunk.slots[offset] = Some(slot);
    }

    /// Takes a message in, wherever its place is.
    pub(super) fn insert(&mut self, sequence: Sequence, slot: Slot) {
        let (number, offset) = place(sequence);
        let at = self.find(number).unwrap_or_else(|at| {
            let chunk = Chunk { slots: [const { None }; CHUNK_SLOTS], used: 0 };
            self.chunks.insert(at, (number, Box::new(chunk)));
            at
        });
        let (_, chunk) = &mut self.chunks[at];
        assert!(chunk.slots[offset].is_none(), "{sequence:?} is there already");
        chunk.used += 1;
        chunk.slots[offset] = Some(slot);
    }

    pub(super) fn get(&self, sequence: Sequence) -> Option<&Slot> {
        let (number, offset) = place(sequence);
        self.chunks[self.find(number).ok()?].1.slots[offset].as_ref()
    }

    pub(super) fn get_mut(&mut self, sequence: Sequence) -> Option<&mut Slot> {
        let (number, offset) = place(sequence);
        let at = self.find(number).ok()?;
        self.chunks[at].1.slots[offset].as_mut()
    }

    /// Takes a message out.
    pub(super) fn take(&mut self, sequence: Sequence) -> Option<Slot> {
        let (number, offset) = place(sequence);
        let at = self.find(number).ok()?;
        let (_, chunk) = &mut self.chunks[at];
        let slot = chunk.slots[offset].take()?;
        chunk.used -= 1;
        if chunk.used == 0 {
            self.chunks.remove(at);
        }
        Some(slot)
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
        for (number, chunk) in self.chunks.range(start..) {
            for (offset, slot) in chunk.slots.iter().enumerate().skip(offset) {
                if let Some(slot) = slot {
                    return Some((sequence(*number, offset), slot));
                }
            }
            offset = 0;
        }
        None
    }

    /// Every message, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Sequence, &Slot)> {
        self.chunks.iter().flat_map(|(number, chunk)| {
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
        let Some((first, _)) = self.chunks.front() else { return Err(0) };
        if *first == number {
            return Ok(0);
        }
        match self.chunks.back() {
            Some((last, _)) if *last == number => Ok(self.chunks.len() - 1),
            Some(_) | None => self.find_between(*first, number),
        }
    }

    #[inline(never)]
    fn find_between(&self, first: u64, number: u64) -> Result<usize, usize> {
        let is_at = |at: usize| self.chunks.get(at).is_some_and(|(there, _)| *there == number);
        let from_front = number.wrapping_sub(first) as usize;
        if is_at(from_front) {
            return Ok(from_front);
        }
        let last = self.chunks.len() - 1;
        let from_back = self.chunks[last].0.wrapping_sub(number) as usize;
        if let Some(at) = last.checked_sub(from_back)
            && is_at(at)
        {
            return Ok(at);
        }
        self.chunks.binary_search_by_key(&number, |(number, _)| *number)
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
            delivery_count: 0,
            held_at: 0,
            lsn: Lsn(lsn),
            message: Bytes::new(),
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
            index.push(Sequence(next), slot(next));
            model.insert(next);
            next += 1;
            while model.len() > 1 + random(300) as usize {
                let from = random(next);
                let Some(&gone) = model.range(from..).next() else { continue };
                model.remove(&gone);
                assert_eq!(index.take(Sequence(gone)).map(|slot| slot.lsn), Some(Lsn(gone)));
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
}
