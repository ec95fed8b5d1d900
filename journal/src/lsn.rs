//! The numbers of a log: places, owners and identities, each a type of its own.
//!
//! ```text
//!  Lsn        byte position in one shard's log; the first batch of a log stands at 4096
//!  Term       (epoch, incarnation): who wrote a batch; it never goes down along a log
//!  LogId      128 random bits made at format; seeds every checksum and the chain
//! ```
//!
//! Invariant: a [`Lsn`] is a place and nothing else. A message is (queue id, sequence).

use std::fmt;

/// A byte position in one shard's log. Positions only grow; they are never reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Before everything: no record has this position.
    pub const ZERO: Self = Self(0);

    /// The position `bytes` further on.
    #[must_use]
    pub const fn plus(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }

    /// How many bytes lie between `earlier` and this position; zero if `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a reign: it goes up at each promotion. A broker alone stays in epoch 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Epoch(pub u64);

/// How often this log has been opened for writing: each recovery adds one before it writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Incarnation(pub u32);

/// Who wrote a batch: the epoch first, within it the incarnation.
///
/// Two different histories never share a term, which is what keeps a batch that was cut off from
/// ever fitting into the log again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Term {
    /// The reign.
    pub epoch: Epoch,
    /// The opening within it.
    pub incarnation: Incarnation,
}

/// A shard: one share of the state, with one log. Its number is global and never changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ShardId(pub u16);

/// A queue, for ever: ids are never reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct QueueId(pub u64);

/// A message's place in its queue's order. It never goes back, not even after recycling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sequence(pub u64);

/// A file of pre-written blocks that holds one segment after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot(pub u32);

/// Which log this is: random, made at format, adopted by a backup, secret from clients.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct LogId(pub [u8; 16]);

/// Which directory this is: random, made at format, never copied to another member.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct JournalUuid(pub [u8; 16]);

fn write_hex(f: &mut fmt::Formatter<'_>, bytes: [u8; 16]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, self.0)
    }
}

impl fmt::Debug for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, self.0)
    }
}

impl fmt::Display for JournalUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, self.0)
    }
}

impl fmt::Debug for JournalUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_epoch_outranks_any_incarnation() {
        let old = Term { epoch: Epoch(1), incarnation: Incarnation(900) };
        let new = Term { epoch: Epoch(2), incarnation: Incarnation(1) };
        assert!(new > old);
    }

    #[test]
    fn the_distance_to_a_later_place_is_zero() {
        assert_eq!(Lsn(10).since(Lsn(4)), 6);
        assert_eq!(Lsn(4).since(Lsn(10)), 0);
    }
}
