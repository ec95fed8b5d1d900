//! Which voters there are, and which disk each of them has.
//!
//! ```text
//!   config      seats 1..=n, n is 3, 5 or 7          the same on every voter, by an operator
//!   Disks       seat -> random number of its disk    agreed once, on every voter's disk
//!   tag         64 bits of the Disks                 in every message: another ensemble is refused
//! ```
//! Invariant: a disk holds at most one [`Disks`] in its life. A majority of disks that hold the
//! same one is what can decide; a voter with a new disk is in none and decides nothing.

use std::fmt;

use journal::mix64;

use crate::codec::{Reader, WireError, Writer};
use crate::limits::{VOTERS_MAX, VOTERS_MIN};

/// A voter's place in the config: 1 to 7.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seat(pub u8);

impl fmt::Display for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A voter's disk: random, made at format, never copied.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct VoterUuid(pub [u8; 16]);

impl fmt::Display for VoterUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for VoterUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How many voters there are: 3, 5 or 7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seats(u8);

/// Why there can't be so many voters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeatsError {
    /// Fewer than three: none may fail.
    TooFew(usize),
    /// An even number: one less survives as much, and more can be cut in two halves.
    Even(usize),
    /// More than seven.
    TooMany(usize),
}

impl fmt::Display for SeatsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooFew(n) => write!(f, "{n} voters: none of them could fail; name 3, 5 or 7"),
            Self::Even(n) => write!(
                f,
                "{n} voters: no more of them can fail than of {}, and two halves decide nothing; \
                 name 3, 5 or 7",
                n - 1
            ),
            Self::TooMany(n) => write!(f, "{n} voters: name 3, 5 or 7"),
        }
    }
}

impl std::error::Error for SeatsError {}

impl Seats {
    /// So many voters.
    ///
    /// # Errors
    /// It is not 3, 5 or 7.
    pub const fn new(count: usize) -> Result<Self, SeatsError> {
        if count < VOTERS_MIN {
            return Err(SeatsError::TooFew(count));
        }
        if count.is_multiple_of(2) {
            return Err(SeatsError::Even(count));
        }
        if count > VOTERS_MAX {
            return Err(SeatsError::TooMany(count));
        }
        Ok(Self(count as u8))
    }

    /// How many.
    #[must_use]
    pub const fn count(self) -> u8 {
        self.0
    }

    /// All of them.
    pub fn iter(self) -> impl Iterator<Item = Seat> {
        (1..=self.0).map(Seat)
    }

    /// Whether there is such a seat.
    #[must_use]
    pub const fn has(self, seat: Seat) -> bool {
        seat.0 >= 1 && seat.0 <= self.0
    }
}

/// The disks of an ensemble, by seat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disks(Vec<VoterUuid>);

/// A [`Disks`] in 64 bits: a guard against mistakes, not against an attacker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EnsembleTag(pub u64);

impl Disks {
    /// One disk for each seat, in their order.
    pub(crate) fn new(disks: Vec<VoterUuid>) -> Option<Self> {
        let seats = Seats::new(disks.len());
        let twice = disks.iter().any(|disk| disks.iter().filter(|d| *d == disk).count() > 1);
        (seats.is_ok() && !twice).then_some(Self(disks))
    }

    /// The disk of a seat.
    #[must_use]
    pub fn of(&self, seat: Seat) -> Option<VoterUuid> {
        self.0.get(usize::from(seat.0).wrapping_sub(1)).copied()
    }

    /// How many seats.
    #[must_use]
    pub fn seats(&self) -> Seats {
        Seats::new(self.0.len()).expect("checked when it was made")
    }

    /// In 64 bits.
    #[must_use]
    pub fn tag(&self) -> EnsembleTag {
        let mut tag = 0_u64;
        for disk in &self.0 {
            for half in disk.0.chunks_exact(8) {
                tag = mix64(tag.rotate_left(17) ^ u64::from_le_bytes(half.try_into().expect("8")));
            }
        }
        EnsembleTag(tag)
    }

    pub(crate) fn put(disks: Option<&Self>, w: &mut Writer) {
        w.list(disks.map_or(&[], |disks| &disks.0[..]), |w, disk| w.uuid(&disk.0));
    }

    pub(crate) fn take(r: &mut Reader<'_>) -> Result<Option<Self>, WireError> {
        let disks = r.list(VOTERS_MAX, "disks", |r| Ok(VoterUuid(r.uuid("disk")?)))?;
        if disks.is_empty() {
            return Ok(None);
        }
        Self::new(disks).map(Some).ok_or(WireError::Contradiction("disks"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_two_and_even_numbers_are_refused() {
        assert_eq!(Seats::new(1), Err(SeatsError::TooFew(1)));
        assert_eq!(Seats::new(4), Err(SeatsError::Even(4)));
        assert_eq!(Seats::new(9), Err(SeatsError::TooMany(9)));
        assert_eq!(Seats::new(3).map(|s| s.iter().count()), Ok(3));
        assert!(SeatsError::Even(4).to_string().contains("than of 3"));
    }

    #[test]
    fn another_disk_is_another_ensemble() {
        let disks = |last| {
            let disk = |n| VoterUuid([n; 16]);
            Disks::new(vec![disk(1), disk(2), disk(last)]).expect("three disks")
        };
        assert_ne!(disks(3).tag(), disks(4).tag());
        assert_eq!(disks(3).of(Seat(3)), Some(VoterUuid([3; 16])));
        assert_eq!(disks(3).of(Seat(0)), None);
        assert_eq!(Disks::new(vec![VoterUuid([1; 16]); 3]), None);
    }
}
