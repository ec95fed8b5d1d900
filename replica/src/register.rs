//! What brokers ask of their voters: one linearizable register a pair, and nothing else.
//!
//! ```text
//!   read(pair)                    -> Stands(held)     some moment between question and answer
//!   cas(pair, expect, value)      -> Won(version)     the value stands, or stood, at expect + 1
//!                                    Lost(held)       what stands has another version
//!                                    Unknown          it was, it was not, or it still may be
//!                                    NotDone          it was not and never will be
//! ```
//!
//! No clock, no lease, no lock: that makes every engine of it the same. A version goes up by one
//! with each change and is never used twice; [`Version::NONE`] is that of a register that nobody
//! has written.
//!
//! What a caller may conclude (the rules are those of `docs/internals/promotion.md`):
//! * R1: a role changes by a compare-and-set that was won, and by nothing else.
//! * R4: an answer belongs to the question that is open now, or it is dropped.
//! * R5: after `Unknown` only a version above the expected one resolves the attempt. A read that
//!   still shows the expected version does *not* say that it failed: it may be carried out later.
//! * `Lost` says what stands now. It does not say that the attempt came to nothing: a question that
//!   a network repeated is lost to itself.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::fmt;

use crate::codec::{Reader, WireError, Writer};
use crate::limits::{PAIRS_MAX, REGISTER_HEAD_BYTES, STATE_BYTES_MAX, VALUE_BYTES_MAX};

/// Which pair: the name of its register.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PairId(pub [u8; 16]);

impl fmt::Debug for PairId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// How often a register has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u64);

impl Version {
    /// Nobody has written yet.
    pub const NONE: Self = Self(0);

    /// The one after.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// What a register holds. No value has version [`Version::NONE`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// How often it has changed.
    pub version: Version,
    /// The last value, at most [`VALUE_BYTES_MAX`].
    pub value: Vec<u8>,
}

/// A question, as its asker numbers it. Never used twice by one asker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// Why a question was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotDone {
    /// No voter that was asked leads: there may be no majority now.
    NoLeader,
    /// Too many questions are open; try again.
    Busy,
    /// The value, the number of pairs or all values together are beyond the bound.
    Full,
}

/// What came of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A read: this stood.
    Stands(Held),
    /// A compare-and-set was carried out; this is the version of its value.
    Won(Version),
    /// A compare-and-set found another version than it expected.
    Lost(Held),
    /// Nobody knows. A compare-and-set may still be carried out (R5).
    Unknown,
    /// It was not carried out and never will be.
    NotDone(NotDone),
}

/// An outcome, with the question that it belongs to (R4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The question.
    pub request: RequestId,
    /// What came of it.
    pub outcome: Outcome,
}

/// A replacement that is only carried out where `expect` stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swap {
    /// Whose register.
    pub pair: PairId,
    /// The version that must stand; [`Version::NONE`] makes the register.
    pub expect: Version,
    /// What is to stand at `expect + 1`.
    pub value: Vec<u8>,
}

/// A linearizable register for each pair.
pub trait Register {
    /// Asks what stands.
    fn read(&mut self, request: RequestId, pair: PairId);
    /// Asks to replace what stands.
    fn cas(&mut self, request: RequestId, swap: Swap);
    /// The next answer, in no particular order. Each question gets at most one.
    fn poll_answer(&mut self) -> Option<Answer>;
}

/// A compare-and-set that was sent and is not resolved: rules R4 and R5 in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The question.
    pub request: RequestId,
    /// The version that it expected.
    pub expect: Version,
}

impl Attempt {
    /// R5: seeing this version says that the attempt was carried out before, or never will be.
    #[must_use]
    pub fn is_resolved_by(&self, seen: Version) -> bool {
        seen > self.expect
    }
}

/// The registers of all pairs: what each voter applies its log to, and, alone, a register without
/// voters for tests of what stands on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    held: BTreeMap<PairId, Held>,
    bytes: usize,
}

impl Registers {
    /// What stands in this pair's register.
    #[must_use]
    pub fn get(&self, pair: PairId) -> Held {
        self.held.get(&pair).cloned().unwrap_or_default()
    }

    /// Every pair and what stands.
    pub fn iter(&self) -> impl Iterator<Item = (PairId, &Held)> {
        self.held.iter().map(|(pair, held)| (*pair, held))
    }

    /// Carries out a compare-and-set: the same on every voter.
    pub fn apply(&mut self, swap: Swap) -> Outcome {
        let stands = self.held.get(&swap.pair);
        let version = stands.map_or(Version::NONE, |held| held.version);
        if version != swap.expect {
            return Outcome::Lost(self.get(swap.pair));
        }
        let before = stands.map_or(0, |held| held.value.len() + REGISTER_HEAD_BYTES);
        let after = self.bytes - before + swap.value.len() + REGISTER_HEAD_BYTES;
        let one_more = stands.is_none() && self.held.len() == PAIRS_MAX;
        if one_more || swap.value.len() > VALUE_BYTES_MAX || after > STATE_BYTES_MAX {
            return Outcome::NotDone(NotDone::Full);
        }
        self.bytes = after;
        let version = version.next();
        self.held.insert(swap.pair, Held { version, value: swap.value });
        Outcome::Won(version)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        let all: Vec<_> = self.iter().collect();
        w.list(&all, |w, (pair, held)| {
            w.uuid(&pair.0);
            w.u64(held.version.0);
            w.bytes(&held.value);
        });
        w.finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(bytes);
        let mut all = Self::default();
        r.list(PAIRS_MAX, "registers", |r| {
            let pair = PairId(r.uuid("pair")?);
            let version = Version(r.u64("version")?);
            let value = r.bytes(VALUE_BYTES_MAX, "value")?.to_vec();
            let in_order = all.held.last_key_value().is_none_or(|(last, _)| *last < pair);
            if version == Version::NONE || !in_order {
                return Err(WireError::Contradiction("register"));
            }
            all.bytes += value.len() + REGISTER_HEAD_BYTES;
            all.held.insert(pair, Held { version, value });
            Ok(())
        })?;
        r.end()?;
        if all.bytes > STATE_BYTES_MAX {
            return Err(WireError::TooLong("registers"));
        }
        Ok(all)
    }
}

/// A register in this process, which answers at once: for tests of what stands on a register.
#[derive(Clone, Debug, Default)]
pub struct LocalRegister {
    registers: Registers,
    answers: VecDeque<Answer>,
}

impl Register for LocalRegister {
    fn read(&mut self, request: RequestId, pair: PairId) {
        let outcome = Outcome::Stands(self.registers.get(pair));
        self.answers.push_back(Answer { request, outcome });
    }

    fn cas(&mut self, request: RequestId, swap: Swap) {
        let outcome = self.registers.apply(swap);
        self.answers.push_back(Answer { request, outcome });
    }

    fn poll_answer(&mut self) -> Option<Answer> {
        self.answers.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAIR: PairId = PairId([1; 16]);

    fn swap(expect: u64, value: &[u8]) -> Swap {
        Swap { pair: PAIR, expect: Version(expect), value: value.to_vec() }
    }

    #[test]
    fn one_of_two_that_expect_the_same_wins() {
        let mut registers = Registers::default();
        assert_eq!(registers.apply(swap(0, b"a")), Outcome::Won(Version(1)));
        let stands = Held { version: Version(1), value: b"a".to_vec() };
        assert_eq!(registers.apply(swap(0, b"b")), Outcome::Lost(stands.clone()));
        assert_eq!(registers.apply(swap(2, b"b")), Outcome::Lost(stands));
        assert_eq!(registers.apply(swap(1, b"b")), Outcome::Won(Version(2)));
    }

    #[test]
    fn r5_only_a_greater_version_resolves() {
        let attempt = Attempt { request: RequestId(1), expect: Version(4) };
        assert!(!attempt.is_resolved_by(Version(4)));
        assert!(attempt.is_resolved_by(Version(5)) && attempt.is_resolved_by(Version(9)));
    }

    #[test]
    fn what_is_beyond_the_bounds_is_not_done() {
        let mut registers = Registers::default();
        let too_long = swap(0, &vec![0; VALUE_BYTES_MAX + 1]);
        assert_eq!(registers.apply(too_long), Outcome::NotDone(NotDone::Full));
        let of = |pair: usize, len: usize| {
            let pair = PairId([u8::try_from(pair).expect("small"); 16]);
            Swap { pair, expect: Version::NONE, value: vec![0; len] }
        };
        for pair in 0..PAIRS_MAX {
            assert_eq!(registers.apply(of(pair, 8)), Outcome::Won(Version(1)));
        }
        assert_eq!(registers.apply(of(PAIRS_MAX, 8)), Outcome::NotDone(NotDone::Full));
        let mut large = Registers::default();
        let outcomes: Vec<_> = (0..20).map(|pair| large.apply(of(pair, VALUE_BYTES_MAX))).collect();
        assert_eq!(outcomes.iter().filter(|o| **o == Outcome::Won(Version(1))).count(), 15);
        assert!(large.encode().len() <= STATE_BYTES_MAX + 2);
    }

    #[test]
    fn a_snapshot_holds_everything_and_damage_is_refused() {
        let mut registers = Registers::default();
        registers.apply(swap(0, b"a"));
        registers.apply(Swap { pair: PairId([2; 16]), expect: Version(0), value: vec![3; 99] });
        let bytes = registers.encode();
        assert_eq!(Registers::decode(&bytes), Ok(registers));
        for cut in 0..bytes.len() {
            assert!(Registers::decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }
}
