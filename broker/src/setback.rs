//! What the log says of a message that came back: how often its delivery has failed, why it has to
//! go, and what consumers have added to its annotations.
//!
//! ```text
//!   the record of kind "delivery count":  part 4: count │ payload: nothing, or reason, map
//!
//!   a consumer's `modified`   map A ─┐ merged                 ┌─ the message's own map
//!   what was added before     map B ─┴─▶ one map, in the log, ─┴─▶ one section, when it goes out
//!                                        kept beside the message
//! ```
//! The message itself stays as it was received: its record, its copies and its place in memory. The
//! newest record tells all that consumers have added, so compaction writes one and no more, and a
//! record without a map takes nothing away.
//!
//! Keys of the broker's own are not a consumer's to add: under these the error of a rejection is
//! kept until the message goes, and no consumer is shown it before.
//!
//! Invariants: where two maps have a key, the later one's value stands [3.4.5]; keys are symbols or
//! ulongs [3.2.10]; what is added to one message is [`ADDED_BYTES_MAX`] at most. What is not such a
//! map, or would be too long, is not merged, and the rest of the outcome holds.

use std::collections::BTreeSet;
use std::sync::Arc;

use amqp::codec::{DecodeError, Map, Reader, Value, Writer};
use amqp::message::Sections;

use crate::limits::ADDED_BYTES_MAX;
use crate::moved::{Reason, is_reserved};

/// What a record says of a message that came back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Setback {
    /// Failed deliveries so far.
    pub count: u32,
    /// Why the message has to go.
    pub doom: Option<Reason>,
    /// All that consumers have added to its annotations; none: as before.
    pub added: Option<Added>,
}

impl Setback {
    /// A failed delivery and nothing more.
    pub fn failed(count: u32) -> Self {
        Self { count, ..Self::default() }
    }

    /// What a record says.
    ///
    /// # Errors
    /// What is wrong with its payload.
    pub fn read(count: u32, payload: &[u8]) -> Result<Self, &'static str> {
        let Some((reason, map)) = payload.split_first() else { return Ok(Self::failed(count)) };
        // A reason of a later version has it moved there again.
        let doom = Reason::from_code(*reason);
        if map.is_empty() {
            return Ok(Self { count, doom, added: None });
        }
        read_map(map).map_err(|_| "its annotations are none")?;
        Ok(Self { count, doom, added: Some(Added(Arc::new(map.to_vec()))) })
    }

    /// The payload of its record.
    pub fn payload(&self) -> Vec<u8> {
        let map = self.added.as_ref().map_or(&[][..], Added::bytes);
        match self.doom {
            Some(reason) => [&[reason as u8], map].concat(),
            None if map.is_empty() => Vec::new(),
            None => [&[0], map].concat(),
        }
    }
}

/// Annotations that consumers have added to a message: an encoded map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Added(Arc<Vec<u8>>);

/// Why annotations are not merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfit;

impl Added {
    /// What was added before and what a consumer adds now, a map as it came: what is not the
    /// broker's own of it.
    ///
    /// # Errors
    /// That is no map of annotations or too long as it came, or both are too long together.
    pub fn merge(before: Option<&Self>, map: &[u8]) -> Result<Self, Unfit> {
        Self::of(before, map, is_a_consumers)
    }

    /// What was added before, and the error of a rejection: a map of the broker's own annotations.
    ///
    /// # Errors
    /// As of [`Self::merge`].
    pub fn with_error(before: Option<&Self>, map: &[u8]) -> Result<Self, Unfit> {
        Self::of(before, map, is_any)
    }

    fn of(before: Option<&Self>, map: &[u8], counts: Counts) -> Result<Self, Unfit> {
        if map.len() > ADDED_BYTES_MAX {
            return Err(Unfit);
        }
        let mut out = Vec::new();
        let later = (read_map(map)?, counts);
        write_entries(&mut Writer::new(&mut out), before.map(Self::map), later);
        if out.len() > ADDED_BYTES_MAX { Err(Unfit) } else { Ok(Self(Arc::new(out))) }
    }

    /// The encoded map.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// What it counts against the memory bound.
    pub fn memory_bytes(&self) -> u64 {
        self.0.len() as u64 + crate::limits::SLOT_BYTES
    }

    /// The map.
    pub fn map(&self) -> Map<'_> {
        Reader::new(&self.0).map().expect("it was checked when it was made")
    }

    /// Appends the section of message annotations that `message` goes out with, and says where the
    /// bytes begin that follow it as they are.
    ///
    /// # Errors
    /// The message cannot be decoded, which was checked when it came in.
    pub fn write_section(&self, message: &[u8], out: &mut Vec<u8>) -> Result<usize, DecodeError> {
        let sections = Sections::scan_annotations(message)?;
        let own = sections.message_annotations(message)?;
        let mut writer = Writer::new(out);
        writer.descriptor(SECTION_ANNOTATIONS);
        write_entries(&mut writer, own, (self.map(), is_a_consumers));
        Ok(behind_annotations(&sections))
    }
}

/// The descriptor of the message annotations [3.2.3].
pub(crate) const SECTION_ANNOTATIONS: u64 = 0x72;

/// Where the bytes begin that are not touched when annotations are written anew.
pub(crate) fn behind_annotations(sections: &Sections) -> usize {
    let end = sections.message_annotations.as_ref().map_or(0, |range| range.end);
    sections.forwarded.start.max(end)
}

/// A map of annotations, and nothing behind it.
fn read_map(encoded: &[u8]) -> Result<Map<'_>, Unfit> {
    let mut reader = Reader::new(encoded);
    let map = reader.map().map_err(|_| Unfit)?;
    let is_sound = map.iter().all(|(key, _)| Key::of(&key).is_some());
    if is_sound && reader.is_empty() { Ok(map) } else { Err(Unfit) }
}

/// Whether an annotation of this key is taken.
pub(crate) type Counts = fn(&Value<'_>) -> bool;

pub(crate) fn is_any(_key: &Value<'_>) -> bool {
    true
}

fn is_a_consumers(key: &Value<'_>) -> bool {
    !is_reserved(key)
}

fn write_entries(writer: &mut Writer<'_>, before: Option<Map<'_>>, later: (Map<'_>, Counts)) {
    writer.map_with(|map| {
        for (key, value) in entries(before, Some(later)) {
            map.element().value(&key);
            map.element().value(&value);
        }
    });
}

/// The entries of both maps, of the later those that count; where both have a key, those of the
/// later.
pub(crate) fn entries<'a>(
    before: Option<Map<'a>>,
    later: Option<(Map<'a>, Counts)>,
) -> impl Iterator<Item = (Value<'a>, Value<'a>)> {
    let counted = move || {
        let counting =
            |(map, counts): (Map<'a>, Counts)| map.iter().filter(move |(key, _)| counts(key));
        later.into_iter().flat_map(counting)
    };
    let replaced: BTreeSet<Key<'a>> = counted().filter_map(|(key, _)| Key::of(&key)).collect();
    let stays = move |(key, _): &(Value<'a>, Value<'a>)| {
        replaced.is_empty() || Key::of(key).is_none_or(|key| !replaced.contains(&key))
    };
    let before = before.into_iter().flat_map(|map| map.iter());
    before.filter(stays).chain(counted())
}

/// The key of an annotation [3.2.10].
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key<'a> {
    Symbol(&'a str),
    Ulong(u64),
}

impl<'a> Key<'a> {
    fn of(value: &Value<'a>) -> Option<Self> {
        if let Value::Symbol(symbol) = value {
            Some(Self::Symbol(symbol.as_str()))
        } else if let Value::Ulong(number) = value {
            Some(Self::Ulong(*number))
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `{k: 1, n: "a"}`, `{n: "b", 7: null}` and `{"k": 1}`, whose key is a string.
    const FIRST: &[u8] = b"\xc1\x0c\x04\xa3\x01k\x54\x01\xa3\x01n\xa1\x01a";
    const SECOND: &[u8] = b"\xc1\x0a\x04\xa3\x01n\xa1\x01b\x53\x07\x40";
    const STRING: &[u8] = b"\xc1\x06\x02\xa1\x01k\x54\x01";
    const BARE: &[u8] = b"\x00\x53\x75\xa0\x02hi";

    fn shown(map: &Map<'_>) -> Vec<String> {
        map.iter().map(|(key, value)| format!("{key:?} {value:?}")).collect()
    }

    #[test]
    fn the_later_value_of_a_key_stands() {
        let first = Added::merge(None, FIRST).unwrap();
        assert_eq!(first.bytes(), FIRST);
        let both = Added::merge(Some(&first), SECOND).unwrap();
        let map = both.map();
        assert_eq!(map.get("k"), Some(Value::Int(1)));
        assert_eq!(map.get("n"), Some(Value::String("b")));
        assert_eq!(map.len(), 3, "{:?}", shown(&map));
    }

    #[test]
    fn what_is_no_map_of_annotations_or_too_long_is_not_merged() {
        for bad in [STRING, b"\xc1\x03\x02\x40\x41", b"\xa1\x01x", b"", b"\xc1\x01\x00\x40"] {
            assert_eq!(Added::merge(None, bad), Err(Unfit), "{bad:x?}");
        }
        let long = |key: char, len: usize| {
            let mut out = Vec::new();
            Writer::new(&mut out).map_with(|map| {
                map.element().symbol(amqp::codec::Symbol::new(&key.to_string()));
                map.element().string(&"x".repeat(len));
            });
            out
        };
        let half = Added::merge(None, &long('a', ADDED_BYTES_MAX / 2)).unwrap();
        assert!(Added::merge(Some(&half), &long('a', ADDED_BYTES_MAX / 2)).is_ok());
        assert_eq!(Added::merge(Some(&half), &long('b', ADDED_BYTES_MAX / 2)), Err(Unfit));
    }

    #[test]
    fn the_brokers_own_annotations_are_no_consumers_and_are_not_shown_before_the_end() {
        let mut map = Vec::new();
        Writer::new(&mut map).map_with(|map| {
            for key in ["x-opt-DEATH-ERROR", "x-opt-ORIG-ANY", "x-opt-ACTUAL-EXPIRY", "x-opt-k"] {
                map.element().symbol(amqp::codec::Symbol::new(key));
                map.element().string("said");
            }
        });
        let of_consumer = Added::merge(None, &map).unwrap();
        assert_eq!(shown(&of_consumer.map()).len(), 1);
        assert!(of_consumer.map().get("x-opt-k").is_some());
        let told = Added::with_error(Some(&of_consumer), &map).unwrap();
        assert_eq!(told.map().len(), 4);
        // Nor does it hide what the message says itself.
        let own = [b"\x00\x53\x72", &map[..], BARE].concat();
        for (message, count) in [(BARE, 1), (&own, 4)] {
            let mut out = Vec::new();
            let from = told.write_section(message, &mut out).unwrap();
            out.extend_from_slice(&message[from..]);
            let sections = Sections::scan(&out).unwrap();
            assert_eq!(sections.message_annotations(&out).unwrap().unwrap().len(), count);
        }
    }

    #[test]
    fn records_come_back_and_old_ones_are_read() {
        let added = Some(Added::merge(None, FIRST).unwrap());
        for doom in [None, Some(Reason::Rejected)] {
            for added in [None, added.clone()] {
                let setback = Setback { count: 3, doom, added };
                assert_eq!(Setback::read(3, &setback.payload()), Ok(setback));
            }
        }
        // As the first versions wrote them, and a reason of a later one.
        assert_eq!(Setback::failed(1).payload(), b"");
        assert_eq!(Setback::read(1, b"\x01").unwrap().doom, Some(Reason::Rejected));
        assert_eq!(Setback::read(1, b"\xff").unwrap().doom, None);
        assert!(Setback::read(1, b"\x00\xa1\x01x").is_err());
    }

    #[test]
    fn the_section_is_written_anew_and_the_rest_stays() {
        let added = Added::merge(None, SECOND).unwrap();
        let header: &[u8] = b"\x00\x53\x70\xc0\x02\x01\x41";
        let own = [b"\x00\x53\x72", FIRST].concat();
        for (message, count) in
            [([header, &own, BARE].concat(), 3), ([header, BARE].concat(), 2), (BARE.to_vec(), 2)]
        {
            let mut out = Vec::new();
            let from = added.write_section(&message, &mut out).unwrap();
            assert_eq!(&message[from..], BARE);
            out.extend_from_slice(&message[from..]);
            let sections = Sections::scan(&out).unwrap();
            let map = sections.message_annotations(&out).unwrap().unwrap();
            assert_eq!((map.len(), map.get("n")), (count, Some(Value::String("b"))));
        }
    }
}
