//! A slab whose ids carry a generation.
//!
//! ```text
//!  slot 0  generation 4  Some(link)        id (0, 4) names it; (0, 3) names nothing
//!  slot 1  generation 2  None              free: the next insert makes it (1, 3)
//! ```
//!
//! Invariant: an id names at most one value, ever; a late command for a value that is gone finds
//! nothing (a generation wraps after four thousand million reuses of one slot).

/// See the head of the file.
#[derive(Debug)]
pub(crate) struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Slots<T> {
    pub(crate) fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }

    /// Adds a value; returns its index.
    pub(crate) fn insert(&mut self, value: T) -> u32 {
        if let Some(index) = self.free.pop() {
            let slot = &mut self.slots[index as usize];
            slot.generation = slot.generation.wrapping_add(1);
            slot.value = Some(value);
            return index;
        }
        let index =
            u32::try_from(self.slots.len()).expect("channel and handle bounds are far less");
        self.slots.push(Slot { generation: 0, value: Some(value) });
        index
    }

    pub(crate) fn remove(&mut self, index: u32) -> Option<T> {
        let value = self.slots.get_mut(index as usize)?.value.take()?;
        self.free.push(index);
        Some(value)
    }

    pub(crate) fn get(&self, index: u32) -> Option<&T> {
        self.slots.get(index as usize)?.value.as_ref()
    }

    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        self.slots.get_mut(index as usize)?.value.as_mut()
    }

    /// The value that index and generation name.
    #[inline]
    pub(crate) fn get_live(&self, index: u32, generation: u32) -> Option<&T> {
        let slot = self.slots.get(index as usize)?;
        if slot.generation == generation { slot.value.as_ref() } else { None }
    }

    /// The generation of a slot, to make an id.
    pub(crate) fn generation(&self, index: u32) -> u32 {
        self.slots[index as usize].generation
    }

    /// Whether index and generation name a value.
    pub(crate) fn is_live(&self, index: u32, generation: u32) -> bool {
        self.slots
            .get(index as usize)
            .is_some_and(|slot| slot.generation == generation && slot.value.is_some())
    }

    /// How many values there are.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// All values with their indices, to be changed.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut T)> {
        let slots = (0u32..).zip(&mut self.slots);
        slots.filter_map(|(index, slot)| Some((index, slot.value.as_mut()?)))
    }

    /// All values with their indices.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0u32..).zip(&self.slots).filter_map(|(index, slot)| Some((index, slot.value.as_ref()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reused_slot_has_another_generation() {
        let mut slots = Slots::new();
        let index = slots.insert('a');
        let generation = slots.generation(index);
        assert!(slots.is_live(index, generation));
        assert_eq!(slots.remove(index), Some('a'));
        assert_eq!(slots.remove(index), None);
        assert!(!slots.is_live(index, generation));
        assert_eq!(slots.insert('b'), index);
        assert!(!slots.is_live(index, generation));
        assert!(slots.is_live(index, slots.generation(index)));
        assert_eq!(slots.iter().count(), 1);
    }
}
