//! The delivery tags that are in use on a session's incoming links [2.6.12].
//!
//! ```text
//!  TagTable: open addressing, linear probing, a power of two of slots, at most half full
//!
//!    slot = (hash: u32, delivery id: u32) | empty        hash(link, tag) & mask -> first slot
//! ```
//!
//! The table holds no tags: a probe whose hash matches asks the caller, who has the delivery.
//! Invariant: a lookup that meets an empty slot has seen all candidates; removal shifts later
//! slots back, so there are no tombstones. The hash is multilinear with secret keys, hence
//! universal: a peer that does not know the seed cannot craft a long probe.

use std::num::NonZeroU32;

/// The longest delivery tag, in bytes [2.8.7].
pub(crate) const TAG_BYTES_MAX: usize = 32;

/// Slots that the table keeps, however few tags there are.
const SLOTS_KEPT: usize = 1024;

/// A delivery tag, inline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tag {
    bytes: [u8; TAG_BYTES_MAX],
    len: u8,
}

impl Tag {
    /// The tag; none where it is longer than the spec allows.
    pub(crate) fn new(tag: &[u8]) -> Option<Self> {
        let len = u8::try_from(tag.len()).ok()?;
        let mut bytes = [0; TAG_BYTES_MAX];
        bytes.get_mut(..tag.len())?.copy_from_slice(tag);
        Some(Self { bytes, len })
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// The tag of a delivery of ours: its id in base 16, by the letters `a` to `p`. Some clients take
/// tags for text, so all of it is ASCII.
#[inline(always)]
pub(crate) fn of_delivery(id: u32) -> [u8; 8] {
    // Each step sets the halves of each part apart, until there is one digit in each byte.
    let wide = u64::from(id);
    let wide = (wide | wide << 16) & 0x0000_FFFF_0000_FFFF;
    let wide = (wide | wide << 8) & 0x00FF_00FF_00FF_00FF;
    let wide = (wide | wide << 4) & 0x0F0F_0F0F_0F0F_0F0F;
    (wide + 0x6161_6161_6161_6161).to_be_bytes()
}

/// The secret keys of the hash, expanded from a seed.
#[derive(Debug, Clone)]
pub(crate) struct TagKeys([u64; 2 + TAG_BYTES_MAX / 4]);

impl TagKeys {
    pub(crate) fn new(seed: u64) -> Self {
        let mut state = seed;
        Self(std::array::from_fn(|_| {
            // splitmix64
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        }))
    }

    #[inline(always)]
    pub(crate) fn hash(&self, link: u32, tag: &Tag) -> TagHash {
        let mut sum = self.0[0].wrapping_add(self.0[1].wrapping_mul(u64::from(link)));
        // The length is part of the hash: zero bytes at the end are not.
        sum = sum.wrapping_add(self.0[1].rotate_left(32).wrapping_mul(u64::from(tag.len)));
        // Behind the tag are zeros, which add nothing. Most tags are short.
        sum = sum.wrapping_add(match tag.len {
            0..=8 => self.sum::<2>(tag),
            _ => self.sum::<{ TAG_BYTES_MAX / 4 }>(tag),
        });
        // Tags often count up. Their hashes then rise by one step, which may be nearly none in the
        // few bits that choose a slot. This sets neighbours apart, and being a bijection keeps what
        // the sum is good for.
        let hash = ((sum >> 32) as u32).wrapping_mul(0x9E37_79B1);
        TagHash::new(hash ^ (hash >> 15))
    }

    /// The share of a tag's first words in its hash.
    #[inline(always)]
    fn sum<const WORDS: usize>(&self, tag: &Tag) -> u64 {
        let (words, _) = tag.bytes.as_chunks::<4>();
        let parts = words.iter().zip(&self.0[2..]).take(WORDS);
        parts.fold(0, |sum: u64, (word, key)| {
            sum.wrapping_add(key.wrapping_mul(u64::from(u32::from_le_bytes(*word))))
        })
    }
}

/// What chooses a tag's slot; never zero, so that an empty slot needs no mark of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TagHash(NonZeroU32);

impl TagHash {
    pub(crate) fn new(hash: u32) -> Self {
        Self(NonZeroU32::new(hash).unwrap_or(NonZeroU32::MIN))
    }
}

/// See the head of the file.
#[derive(Debug)]
pub(crate) struct TagTable {
    slots: Vec<Option<Slot>>,
    len: usize,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    hash: TagHash,
    delivery: u32,
}

impl TagTable {
    pub(crate) fn new() -> Self {
        Self { slots: Vec::new(), len: 0 }
    }

    /// Whether a tag of this hash is in use; `is_same` compares the delivery's own.
    pub(crate) fn contains(&self, hash: TagHash, is_same: impl FnMut(u32) -> bool) -> bool {
        !self.slots.is_empty() && self.vacancy(hash, is_same).is_none()
    }

    /// Enters a tag; false, and nothing changed, where it is in use, which `is_same` tells of a
    /// delivery with a tag of the same hash.
    #[must_use]
    #[inline(always)]
    pub(crate) fn insert(
        &mut self,
        hash: TagHash,
        delivery: u32,
        is_same: impl FnMut(u32) -> bool,
    ) -> bool {
        if 2 * (self.len + 1) > self.slots.len() {
            self.grow();
        }
        let Some(at) = self.vacancy(hash, is_same) else { return false };
        self.slots[at] = Some(Slot { hash, delivery });
        self.len += 1;
        true
    }

    /// Where a tag that is not in use belongs.
    #[inline(always)]
    fn vacancy(&self, hash: TagHash, mut is_same: impl FnMut(u32) -> bool) -> Option<usize> {
        let mut at = self.home(hash);
        while let Some(slot) = self.slots[at] {
            if slot.hash == hash && is_same(slot.delivery) {
                return None;
            }
            at = self.after(at);
        }
        Some(at)
    }

    #[cold]
    fn grow(&mut self) {
        self.resize((2 * self.slots.len()).max(16));
    }

    /// Slots that there are.
    #[cfg(test)]
    pub(crate) fn room(&self) -> usize {
        self.slots.len()
    }

    /// Gives back room of which fifteen sixteenths and more are empty.
    pub(crate) fn trim(&mut self) {
        if self.slots.len() > SLOTS_KEPT && self.len < self.slots.len() / 16 {
            self.resize((4 * self.len).next_power_of_two().max(16));
        }
    }

    fn resize(&mut self, slots: usize) {
        let old = std::mem::replace(&mut self.slots, vec![None; slots]);
        for slot in old.into_iter().flatten() {
            let at = self.vacancy(slot.hash, |_| false).expect("no tag is there twice");
            self.slots[at] = Some(slot);
        }
    }

    #[inline(always)]
    pub(crate) fn remove(&mut self, hash: TagHash, delivery: u32) {
        if self.len == 0 {
            return;
        }
        let mut at = self.home(hash);
        loop {
            let Some(slot) = self.slots[at] else { return };
            if slot.delivery == delivery && slot.hash == hash {
                break;
            }
            at = self.after(at);
        }
        self.len -= 1;
        // Shift back every later slot of the run that may stand here.
        let mask = self.slots.len() - 1;
        let mut hole = at;
        let mut next = self.after(at);
        while let Some(slot) = self.slots[next] {
            let from_home = next.wrapping_sub(self.home(slot.hash)) & mask;
            if from_home >= (next.wrapping_sub(hole) & mask) {
                self.slots[hole] = Some(slot);
                hole = next;
            }
            next = self.after(next);
        }
        self.slots[hole] = None;
    }

    fn home(&self, hash: TagHash) -> usize {
        hash.0.get() as usize & (self.slots.len() - 1)
    }

    fn after(&self, at: usize) -> usize {
        (at + 1) & (self.slots.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn tags_of_ours_are_text_and_differ() {
        for (id, tag) in [(0, "aaaaaaaa"), (0x1234_ABCF, "bcdeklmp"), (u32::MAX, "pppppppp")] {
            assert_eq!(std::str::from_utf8(&of_delivery(id)), Ok(tag));
        }
        let ids = (0..32).map(|bit| 1 << bit).chain(0..5000);
        let tags: std::collections::BTreeSet<[u8; 8]> = ids.clone().map(of_delivery).collect();
        let ids: std::collections::BTreeSet<u32> = ids.collect();
        assert_eq!(tags.len(), ids.len());
        assert!(tags.iter().flatten().all(u8::is_ascii_lowercase));
    }

    #[test]
    fn tags_hold_up_to_32_bytes_and_differ_by_length() {
        assert!(Tag::new(&[7; 32]).is_some() && Tag::new(&[7; 33]).is_none());
        let keys = TagKeys::new(1);
        let (short, long) = (Tag::new(&[0]).unwrap(), Tag::new(&[0, 0]).unwrap());
        assert_ne!(short, long);
        assert_ne!(keys.hash(0, &short), keys.hash(0, &long));
        assert_ne!(keys.hash(0, &short), keys.hash(1, &short));
        assert_ne!(keys.hash(0, &short), TagKeys::new(2).hash(0, &short));
        assert_eq!(Tag::new(b"abc").unwrap().as_bytes(), b"abc");
    }

    /// Random inserts and removals against a map, with few hash values so that runs are long.
    #[test]
    fn the_table_agrees_with_a_map() {
        let mut state = 42u64;
        let mut random = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as u32
        };
        let (mut table, mut model) = (TagTable::new(), BTreeMap::<u32, TagHash>::new());
        for delivery in 0..20_000 {
            let hash = TagHash::new(random() % 64);
            assert!(table.insert(hash, delivery, |other| other == delivery));
            assert!(!table.insert(hash, delivery, |other| other == delivery), "it is in use");
            model.insert(delivery, hash);
            while model.len() > 1 + (random() % 100) as usize {
                let at = random() as usize % model.len();
                let (&delivery, &hash) = model.iter().nth(at).unwrap();
                model.remove(&delivery);
                table.remove(hash, delivery);
                assert!(!table.contains(hash, |other| other == delivery));
            }
            for (&delivery, &hash) in &model {
                assert!(table.contains(hash, |other| other == delivery));
            }
            assert_eq!(table.len, model.len());
        }
    }
}
