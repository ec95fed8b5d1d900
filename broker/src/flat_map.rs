//! A map for what is looked up with every message and seldom changes.
//!
//! ```text
//!   entries  (2, ..) (5, ..) (9, ..)      sorted by key, looked up by halves
//!   recent         ^                      where the last change of a value was: looked at first
//! ```
//! Most of what a shard does in a row is about one connection and one queue, so that most lookups
//! are one comparison. Coming and going costs a move of all that is behind.

/// See the head of the file.
#[derive(Clone, Debug)]
pub(crate) struct FlatMap<K, V> {
    entries: Vec<(K, V)>,
    recent: usize,
}

impl<K, V> Default for FlatMap<K, V> {
    fn default() -> Self {
        Self { entries: Vec::new(), recent: 0 }
    }
}

impl<K: Copy + Ord, V> FlatMap<K, V> {
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    #[inline]
    pub(crate) fn get(&self, key: K) -> Option<&V> {
        match self.entries.get(self.recent) {
            Some((recent, value)) if *recent == key => Some(value),
            Some(_) | None => self.find(key).ok().map(|at| &self.entries[at].1),
        }
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, key: K) -> Option<&mut V> {
        let is_recent = self.entries.get(self.recent).is_some_and(|(recent, _)| *recent == key);
        if !is_recent {
            self.recent = self.find(key).ok()?;
        }
        Some(&mut self.entries[self.recent].1)
    }

    pub(crate) fn contains_key(&self, key: K) -> bool {
        self.get(key).is_some()
    }

    /// The value of a key, which gets one if it has none.
    #[inline]
    pub(crate) fn get_or_insert_with(&mut self, key: K, value: impl FnOnce() -> V) -> &mut V {
        let is_recent = self.entries.get(self.recent).is_some_and(|(recent, _)| *recent == key);
        if !is_recent {
            self.recent = match self.find(key) {
                Ok(at) => at,
                Err(at) => {
                    self.entries.insert(at, (key, value()));
                    at
                }
            };
        }
        &mut self.entries[self.recent].1
    }

    /// Sets the value of a key; gives what it was.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        match self.find(key) {
            Ok(at) => Some(std::mem::replace(&mut self.entries[at].1, value)),
            Err(at) => {
                self.entries.insert(at, (key, value));
                None
            }
        }
    }

    pub(crate) fn remove(&mut self, key: K) -> Option<V> {
        let at = self.find(key).ok()?;
        Some(self.entries.remove(at).1)
    }

    /// The first key from this one on.
    pub(crate) fn first_from(&self, key: K) -> Option<K> {
        let at = self.find(key).unwrap_or_else(|at| at);
        self.entries.get(at).map(|(key, _)| *key)
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = K> {
        self.entries.iter().map(|(key, _)| *key)
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.entries.iter().map(|(_, value)| value)
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.entries.iter_mut().map(|(_, value)| value)
    }

    /// Where a key stands, or would. Keys mostly rise: the last place is looked at first.
    #[cold]
    fn find(&self, key: K) -> Result<usize, usize> {
        match self.entries.last() {
            Some((last, _)) if *last < key => Err(self.entries.len()),
            Some(_) | None => self.entries.binary_search_by_key(&key, |(key, _)| *key),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn it_agrees_with_a_tree() {
        let mut state = 3u64;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % below
        };
        let (mut flat, mut tree) = (FlatMap::default(), BTreeMap::new());
        for step in 0..20_000 {
            let key = random(40);
            match random(5) {
                0 => assert_eq!(flat.insert(key, step), tree.insert(key, step)),
                1 => assert_eq!(flat.remove(key), tree.remove(&key)),
                2 => assert_eq!(flat.get(key), tree.get(&key)),
                3 => {
                    let value = *flat.get_or_insert_with(key, || step);
                    assert_eq!(value, *tree.entry(key).or_insert(step));
                }
                _ => assert_eq!(flat.get_mut(key), tree.get_mut(&key)),
            }
            assert_eq!((flat.len(), flat.is_empty()), (tree.len(), tree.is_empty()));
        }
        assert!(flat.keys().eq(tree.keys().copied()) && flat.values().eq(tree.values()));
        assert!(flat.values_mut().eq(tree.values_mut()));
    }
}
