//! Whether what clients were told can have come from one register that changes one step at a time.
//!
//! ```text
//!   asked ───────────── told        an operation takes effect at one moment in between
//!     │ floor: the highest version that anybody had been told of before this was asked
//!
//!   Won(v)      the value of v is mine; v is above my floor
//!   Stands(v)   some swap that expected v - 1 wrote that value, and was asked before I was told;
//!   Lost(v)     v is not below my floor; for Lost, v is not what I expected
//!   Unknown     nothing, until somebody is told of my value
//! ```
//! This is what every engine of the register is held to: the simulator's voters, real processes,
//! and whatever else may stand behind the trait.
//!
//! Versions are unique and values name their swap, so this is all there is to linearizability
//! here: a moment can be found for every operation if and only if no version has two values, and
//! nobody is told of a version below his floor, or writes one at or below it.

use std::collections::BTreeMap;

use crate::register::{Held, Outcome, Version};

/// An operation of a client, as long as it has not been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OpId(pub u64);

#[derive(Debug)]
struct Op {
    swap: Option<Version>,
    floor: Version,
}

/// What was asked and told, of one pair.
#[derive(Debug, Default)]
pub struct History {
    next: u64,
    ops: BTreeMap<OpId, Op>,
    /// Which operation wrote a version.
    writers: BTreeMap<Version, OpId>,
    floor: Version,
    unknown: BTreeMap<OpId, ()>,
    /// How many swaps of unknown outcome turned out to have been carried out.
    pub late: u64,
}

impl History {
    /// Somebody asks: a swap that expects this, or a read. Its number names it in its value.
    pub fn ask(&mut self, swap: Option<Version>) -> OpId {
        self.next += 1;
        let op = OpId(self.next);
        self.ops.insert(op, Op { swap, floor: self.floor });
        op
    }

    /// The value of an operation's swap, of at least eight bytes.
    #[must_use]
    pub fn value(op: OpId, len: usize) -> Vec<u8> {
        let mut value = op.0.to_le_bytes().to_vec();
        value.resize(len.max(8), 0x5a);
        value
    }

    /// Somebody is told.
    ///
    /// # Errors
    /// No register that changes one step at a time says that.
    pub fn tell(&mut self, op: OpId, outcome: &Outcome) -> Result<(), String> {
        match outcome {
            Outcome::Won(version) => {
                let Some(expect) = self.ops[&op].swap else {
                    return Err(format!("a read was won: {op:?}"));
                };
                if *version != expect.next() {
                    return Err(format!("{op:?} expected {expect:?} and won {version:?}"));
                }
                self.wrote(*version, op)?;
            }
            Outcome::Stands(held) | Outcome::Lost(held) => {
                let of = &self.ops[&op];
                if held.version < of.floor {
                    return Err(format!(
                        "{op:?} is told of {:?} after somebody was told of {:?}",
                        held.version, of.floor
                    ));
                }
                if matches!(outcome, Outcome::Lost(_)) && of.swap == Some(held.version) {
                    return Err(format!("{op:?} lost to what it expected"));
                }
                self.saw(held)?;
            }
            Outcome::Unknown => {
                self.unknown.insert(op, ());
            }
            Outcome::NotDone(_) => {
                if self.writers.values().any(|writer| *writer == op) {
                    return Err(format!("{op:?} was carried out and is told that it was not"));
                }
                // Nobody may be told of it from now on.
                self.ops.remove(&op);
            }
        }
        Ok(())
    }

    fn saw(&mut self, held: &Held) -> Result<(), String> {
        if held.version == Version::NONE {
            return if held.value.is_empty() {
                Ok(())
            } else {
                Err("a value of no version".into())
            };
        }
        let name: Option<[u8; 8]> = held.value.get(..8).and_then(|name| name.try_into().ok());
        let writer = OpId(u64::from_le_bytes(name.ok_or("a value that nobody wrote")?));
        self.wrote(held.version, writer)
    }

    /// `writer` wrote `version`, as somebody is told now.
    fn wrote(&mut self, version: Version, writer: OpId) -> Result<(), String> {
        let Some(op) = self.ops.get(&writer) else {
            return Err(format!("{version:?} was written by {writer:?}, which was not done"));
        };
        if op.swap.map(Version::next) != Some(version) {
            return Err(format!("{writer:?} expected {:?} and wrote {version:?}", op.swap));
        }
        if op.floor >= version {
            return Err(format!(
                "{writer:?} wrote {version:?}, of which somebody had been told before it was asked"
            ));
        }
        let first = *self.writers.entry(version).or_insert(writer);
        if first != writer {
            return Err(format!("{version:?} was written by {first:?} and by {writer:?}"));
        }
        self.late += u64::from(self.unknown.remove(&writer).is_some());
        self.floor = self.floor.max(version);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(version: u64, writer: OpId) -> Held {
        Held { version: Version(version), value: History::value(writer, 8) }
    }

    fn two_written() -> (History, OpId, OpId) {
        let mut history = History::default();
        let one = history.ask(Some(Version(0)));
        history.tell(one, &Outcome::Won(Version(1))).expect("the first");
        let two = history.ask(Some(Version(1)));
        history.tell(two, &Outcome::Won(Version(2))).expect("the second");
        (history, one, two)
    }

    #[test]
    fn an_old_value_is_told_only_to_who_asked_before_the_new_one_was_known() {
        let mut history = History::default();
        let one = history.ask(Some(Version(0)));
        history.tell(one, &Outcome::Won(Version(1))).expect("the first");
        let early = history.ask(None);
        let two = history.ask(Some(Version(1)));
        history.tell(two, &Outcome::Won(Version(2))).expect("the second");
        history.tell(early, &Outcome::Stands(held(1, one))).expect("it overlaps");
        let late = history.ask(None);
        assert!(history.tell(late, &Outcome::Stands(held(1, one))).is_err());
    }

    #[test]
    fn a_version_has_one_writer() {
        let (mut history, _, two) = two_written();
        let mut other = History::default();
        other.ask(None);
        let racing = other.ask(Some(Version(0)));
        assert_eq!(racing, two);
        assert!(other.tell(racing, &Outcome::Won(Version(1))).is_ok());
        let again = history.ask(Some(Version(1)));
        let error = history.tell(again, &Outcome::Won(Version(2)));
        assert!(error.is_err_and(|error| error.contains("had been told before")));
    }

    #[test]
    fn what_was_not_done_is_never_seen() {
        let mut history = History::default();
        let op = history.ask(Some(Version(0)));
        history.tell(op, &Outcome::NotDone(crate::NotDone::NoLeader)).expect("possible");
        let read = history.ask(None);
        assert!(history.tell(read, &Outcome::Stands(held(1, op))).is_err());
    }

    #[test]
    fn an_unknown_swap_may_be_seen_later() {
        let mut history = History::default();
        let op = history.ask(Some(Version(0)));
        history.tell(op, &Outcome::Unknown).expect("always possible");
        let read = history.ask(None);
        history.tell(read, &Outcome::Stands(Held::default())).expect("not yet");
        let read = history.ask(None);
        history.tell(read, &Outcome::Stands(held(1, op))).expect("late");
        assert_eq!(history.late, 1);
        let read = history.ask(None);
        assert!(history.tell(read, &Outcome::Stands(Held::default())).is_err());
    }
}
