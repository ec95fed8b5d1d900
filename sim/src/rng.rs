//! The only source of chance: a small generator, with a stream of its own for each subsystem.
//!
//! ```text
//!   seed ──┬── stream("disk", 0) ──▶ draws of node 0's disk
//!          ├── stream("mail", 0) ──▶ draws of its mail
//!          └── …                     one more draw here shifts nothing there
//! ```
//! The generator is xoshiro256**, seeded by splitmix64 as its authors advise.
//!
//! Invariants: the same seed, name and index give the same draws, on every machine and in every
//! version; a draw never depends on anything else.

/// A stream of draws.
#[derive(Clone, Debug)]
pub struct Rng {
    state: [u64; 4],
}

impl Rng {
    /// The stream of a subsystem, by its name and an index.
    pub fn stream(seed: u64, name: &str, index: u64) -> Self {
        let mut mixed = splitmix(seed).1;
        for byte in name.bytes() {
            mixed = splitmix(mixed ^ u64::from(byte)).1;
        }
        let mut at = mixed ^ splitmix(index).1;
        let mut state = [0; 4];
        for word in &mut state {
            (at, *word) = splitmix(at);
        }
        Self { state }
    }

    /// 64 bits.
    pub fn bits(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.state;
        let out = b.wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let shifted = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= shifted;
        *d = d.rotate_left(45);
        out
    }

    /// A number below `end`.
    ///
    /// # Panics
    /// If `end` is zero.
    pub fn below(&mut self, end: u64) -> u64 {
        assert!(end > 0, "there is no number below zero");
        // The bias of a multiply-shift is below 2^-32 for the small ranges drawn here.
        ((u128::from(self.bits()) * u128::from(end)) >> 64) as u64
    }

    /// An index into something of `len` elements.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// A number from `first` to `last`, both included.
    pub fn between(&mut self, first: u64, last: u64) -> u64 {
        assert!(first <= last, "a range from {first} to {last}");
        first + self.below(last - first + 1)
    }

    /// True in `permille` of a thousand draws.
    pub fn chance(&mut self, permille: u32) -> bool {
        self.below(1000) < u64::from(permille)
    }

    /// True once in `times` draws; never if it is zero.
    pub fn one_in(&mut self, times: u64) -> bool {
        times > 0 && self.below(times) == 0
    }

    /// One of these.
    ///
    /// # Panics
    /// If there is none.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.index(of.len())]
    }

    /// Puts these into any order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.index(last + 1);
            items.swap(last, other);
        }
    }
}

fn splitmix(state: u64) -> (u64, u64) {
    let state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    (state, journal::mix64(state))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_the_same_again_and_unlike_its_neighbours() {
        let draws = |seed, name, index| -> Vec<u64> {
            let mut rng = Rng::stream(seed, name, index);
            (0..8).map(|_| rng.bits()).collect()
        };
        assert_eq!(draws(1, "disk", 0), draws(1, "disk", 0));
        for other in [draws(2, "disk", 0), draws(1, "mail", 0), draws(1, "disk", 1)] {
            assert_ne!(draws(1, "disk", 0), other);
        }
    }

    #[test]
    fn the_draws_are_pinned() {
        // A failure's replay command must mean the same world in a later version.
        assert_eq!(Rng::stream(7, "disk", 3).bits(), PINNED);
    }

    const PINNED: u64 = 3_059_845_711_271_034_419;

    #[test]
    fn numbers_stay_in_their_range_and_reach_its_ends() {
        let mut rng = Rng::stream(0, "range", 0);
        let drawn: Vec<u64> = (0..1000).map(|_| rng.between(3, 6)).collect();
        assert_eq!((drawn.iter().min(), drawn.iter().max()), (Some(&3), Some(&6)));
        assert!(!rng.one_in(0) && rng.one_in(1) && !rng.chance(0) && rng.chance(1000));
    }

    #[test]
    fn shuffling_keeps_every_item() {
        let mut rng = Rng::stream(0, "shuffle", 0);
        let mut items: Vec<u32> = (0..50).collect();
        rng.shuffle(&mut items);
        assert_ne!(items, (0..50).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..50).collect::<Vec<_>>());
    }
}
