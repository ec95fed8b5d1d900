//! A table whose slots are reused under a new generation.
//!
//! ```text
//!   slots   [ 0: gen 4, value ] [ 1: gen 2, - ] [ 2: gen 0, value ]        free: [1]
//!   Key { slot: 1, generation: 1 }  ->  None: that value is gone
//! ```
//!
//! Invariant: a key finds its own value or nothing, until its slot was reused 2^32 times.
//!
//! Failure: none; a dead key is answered with `None`.

/// Names a value of one [`Slab`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

const GENERATION_MASK: u32 = (1 << 24) - 1;

impl Key {
    /// How many bits [`Key::number`] takes.
    pub(crate) const NUMBER_BITS: u32 = 56;

    /// A number for the kernel to carry: `generation:24 | slot:32`.
    pub(crate) fn number(self) -> u64 {
        u64::from(self.generation & GENERATION_MASK) << 32 | u64::from(self.slot)
    }
}

#[derive(Debug)]
pub(crate) struct Slab<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Slab<T> {
    pub(crate) fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The lowest slots are not preferred: the one freed last is, since it is warm.
    pub(crate) fn insert(&mut self, value: T) -> Key {
        if let Some(slot) = self.free.pop() {
            let entry = &mut self.slots[slot as usize];
            entry.value = Some(value);
            return Key { slot, generation: entry.generation };
        }
        let slot = u32::try_from(self.slots.len()).expect("fewer than 2^32 values fit in memory");
        self.slots.push(Slot { generation: 0, value: Some(value) });
        Key { slot, generation: 0 }
    }

    /// The key of the value that a slot holds now.
    pub(crate) fn key(&self, slot: u32) -> Option<Key> {
        let entry = self.slots.get(slot as usize)?;
        entry.value.as_ref().map(|_| Key { slot, generation: entry.generation })
    }

    /// The key whose [`Key::number`] this is, if its value is there; higher bits don't count.
    pub(crate) fn find(&self, number: u64) -> Option<Key> {
        let number = number & ((1 << Key::NUMBER_BITS) - 1);
        self.key(number as u32).filter(|key| key.number() == number)
    }

    pub(crate) fn get(&self, key: Key) -> Option<&T> {
        let entry = self.slots.get(key.slot as usize)?;
        if entry.generation == key.generation { entry.value.as_ref() } else { None }
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let entry = self.slots.get_mut(key.slot as usize)?;
        if entry.generation == key.generation { entry.value.as_mut() } else { None }
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        let entry = self.slots.get_mut(key.slot as usize)?;
        if entry.generation != key.generation {
            return None;
        }
        let value = entry.value.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(key.slot);
        Some(value)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        (0u32..).zip(&self.slots).filter_map(|(slot, entry)| {
            let key = Key { slot, generation: entry.generation };
            entry.value.as_ref().map(|value| (key, value))
        })
    }

    pub(crate) fn keys(&self) -> Vec<Key> {
        self.iter().map(|(key, _)| key).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_key_never_finds_the_next_value() {
        let mut slab = Slab::new();
        let first = slab.insert("first");
        assert_eq!(slab.remove(first), Some("first"));
        let second = slab.insert("second");
        assert_eq!(second.slot, first.slot);
        assert_eq!(slab.get(first), None);
        assert_eq!(slab.get_mut(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get(second), Some(&"second"));
        assert_eq!(slab.find(0xFF << 56 | second.number()), Some(second));
        assert_eq!(slab.find(first.number()), None);
        assert_eq!(slab.keys(), [second]);
        assert_eq!(slab.len(), 1);
    }
}
