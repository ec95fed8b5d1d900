//! What a message is told when it is moved: where it was, why it went, and when.
//!
//! ```text
//!   header: without ttl and delivery-count │ message-annotations: its own, │ the rest,
//!                                          │ consumers', and those below   │ byte for byte
//!   x-opt-ORIG-ADDRESS      string   the address where it was
//!   x-opt-ORIG-QUEUE        string   the queue where it was
//!   x-opt-ACTUAL-EXPIRY     long     when it expired, milliseconds since 1970; only of those
//!   x-opt-DEATH-REASON      symbol   rejected, delivery-attempts or expired
//!   x-opt-DEATH-TIME        timestamp
//!   x-opt-DEATH-ATTEMPTS    uint     failed deliveries; only if there were any
//!   x-opt-DEATH-ERROR       symbol   the condition that it was rejected with; only if there is one
//!   x-opt-DEATH-DESCRIPTION string   and what was said of it; only if something was
//! ```
//! The first three are Artemis's names, in its types. An annotation of one of these names that the
//! message has already, from an earlier move or from its sender, gives way to the newer. The error
//! of a rejection is kept until then with what consumers have added.
//!
//! Invariant: from the properties on, what comes out is what came in.

use std::sync::Arc;

use amqp::codec::{DecodeError, Symbol, Value, Writer};
use amqp::definitions::Timestamp;
use amqp::error::Error;
use amqp::message::{Sections, write_header};
use bytes::Bytes;

use crate::limits::{DESCRIPTION_BYTES_MAX, ERROR_BYTES_MAX};
use crate::setback::{Added, SECTION_ANNOTATIONS, behind_annotations, entries};

/// Why a message leaves its queue for another. The codes are written to the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A consumer has rejected it.
    Rejected = 1,
    /// Its delivery failed too often.
    Attempts = 2,
    /// Its time is over.
    Expired = 3,
}

impl Reason {
    /// The reason of this code.
    pub fn from_code(code: u8) -> Option<Self> {
        [Self::Rejected, Self::Attempts, Self::Expired]
            .into_iter()
            .find(|reason| *reason as u8 == code)
    }

    /// Its name in the annotation.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::Attempts => "delivery-attempts",
            Self::Expired => "expired",
        }
    }
}

/// How a message came to its end in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Death<'a> {
    /// The queue, which is also the address.
    pub queue: &'a str,
    /// Why.
    pub reason: Reason,
    /// When, milliseconds since 1970.
    pub unix_ms: u64,
    /// Failed deliveries.
    pub delivery_count: u32,
    /// What consumers have added to its annotations.
    pub added: Option<&'a Added>,
}

const ORIG_ADDRESS: &str = "x-opt-ORIG-ADDRESS";
const ORIG_QUEUE: &str = "x-opt-ORIG-QUEUE";
const ACTUAL_EXPIRY: &str = "x-opt-ACTUAL-EXPIRY";
const REASON: &str = "x-opt-DEATH-REASON";
const TIME: &str = "x-opt-DEATH-TIME";
const ATTEMPTS: &str = "x-opt-DEATH-ATTEMPTS";
const ERROR: &str = "x-opt-DEATH-ERROR";
const DESCRIPTION: &str = "x-opt-DEATH-DESCRIPTION";
const OURS: [&str; 8] =
    [ORIG_ADDRESS, ORIG_QUEUE, ACTUAL_EXPIRY, REASON, TIME, ATTEMPTS, ERROR, DESCRIPTION];
/// Room for what is added, but for the names of address and queue.
const ADDED_BYTES: usize = 256;

/// The annotations that say with which error a message was rejected, an encoded map: as much of it
/// as is kept.
pub fn rejection(error: &Error) -> Arc<[u8]> {
    let condition = error.condition.as_str();
    let condition = &condition[..condition.floor_char_boundary(ERROR_BYTES_MAX)];
    let said = &error.description[..error.description.floor_char_boundary(DESCRIPTION_BYTES_MAX)];
    let mut out = Vec::new();
    Writer::new(&mut out).map_with(|map| {
        if let Some(condition) = Symbol::from_ascii(condition.as_bytes()) {
            map.element().symbol(Symbol::new(ERROR));
            map.element().symbol(condition);
        }
        if !said.is_empty() {
            map.element().symbol(Symbol::new(DESCRIPTION));
            map.element().string(said);
        }
    });
    out.into()
}

/// The message as it goes to the other queue; or so much of it as holds all before its properties.
///
/// # Errors
/// That cannot be decoded, which was checked when it came in.
pub fn moved(message: &[u8], death: &Death<'_>) -> Result<Bytes, DecodeError> {
    let sections = Sections::scan_annotations(message)?;
    let before = sections.message_annotations(message)?;
    let mut header = sections.header_fields;
    (header.ttl, header.delivery_count, header.first_acquirer) = (None, None, None);
    let room = message.len() + 2 * death.queue.len() + ADDED_BYTES;
    let mut out = Vec::with_capacity(room);
    write_header(&header, &mut out);
    let mut writer = Writer::new(&mut out);
    writer.descriptor(SECTION_ANNOTATIONS);
    writer.map_with(|map| {
        for (key, value) in entries(before, death.added.map(Added::map)) {
            if !matches!(&key, Value::Symbol(key) if OURS.contains(&key.as_str())) {
                map.element().value(&key);
                map.element().value(&value);
            }
        }
        let unix_ms = i64::try_from(death.unix_ms).unwrap_or(i64::MAX);
        map.element().symbol(Symbol::new(ORIG_ADDRESS));
        map.element().string(death.queue);
        map.element().symbol(Symbol::new(ORIG_QUEUE));
        map.element().string(death.queue);
        if death.reason == Reason::Expired {
            map.element().symbol(Symbol::new(ACTUAL_EXPIRY));
            map.element().long(unix_ms);
        }
        map.element().symbol(Symbol::new(REASON));
        map.element().symbol(Symbol::new(death.reason.name()));
        map.element().symbol(Symbol::new(TIME));
        map.element().timestamp(Timestamp(unix_ms));
        if death.delivery_count > 0 {
            map.element().symbol(Symbol::new(ATTEMPTS));
            map.element().uint(death.delivery_count);
        }
        let rejected = death.added.filter(|_| death.reason == Reason::Rejected);
        for key in [ERROR, DESCRIPTION] {
            if let Some(value) = rejected.and_then(|added| added.map().get(key)) {
                map.element().symbol(Symbol::new(key));
                map.element().value(&value);
            }
        }
    });
    out.extend_from_slice(&message[behind_annotations(&sections)..]);
    Ok(out.into())
}

#[cfg(test)]
mod tests {
    use amqp::error::AnyCondition;

    use super::*;

    const HEADER: &[u8] = b"\x00\x53\x70\xc0\x09\x05\x41\x50\x07\x52\x09\x42\x52\x03";
    const HOP: &[u8] = b"\x00\x53\x71\xc1\x01\x00";
    const OWN: &[u8] =
        b"\x00\x53\x72\xc1\x1c\x04\xa3\x01k\x70\x00\x00\x00\x07\xa3\x10x-opt-DEATH-TIME\x40";
    /// In encodings that we would never write.
    const BARE: &[u8] = b"\x00\xa3\x14amqp:properties:list\xd0\0\0\0\x09\0\0\0\x01\xb1\0\0\0\0\
                          \x00\x80\0\0\0\0\0\0\0\x77\xf0\0\0\0\x05\x80\0\0\0\x40";

    fn death(reason: Reason) -> Death<'static> {
        Death {
            queue: "orders",
            reason,
            unix_ms: 1_700_000_000_123,
            delivery_count: 3,
            added: None,
        }
    }

    #[test]
    fn the_bare_message_stays_and_the_rest_says_what_happened() {
        let message = [HEADER, HOP, OWN, BARE].concat();
        let out = moved(&message, &death(Reason::Expired)).unwrap();
        assert!(out.ends_with(BARE));
        let sections = Sections::scan(&out).unwrap();
        let header = sections.header_fields;
        assert_eq!((header.ttl, header.delivery_count), (None, None));
        assert_eq!((header.durable, header.priority), (Some(true), Some(7)));
        assert_eq!(sections.delivery_annotations, None);
        let map = sections.message_annotations(&out).unwrap().unwrap();
        assert_eq!(map.get("k"), Some(Value::Uint(7)));
        assert_eq!(map.get(ORIG_ADDRESS), Some(Value::String("orders")));
        assert_eq!(map.get(ORIG_QUEUE), Some(Value::String("orders")));
        assert_eq!(map.get(ACTUAL_EXPIRY), Some(Value::Long(1_700_000_000_123)));
        assert_eq!(map.get(REASON), Some(Value::Symbol(Symbol::new("expired"))));
        assert_eq!(map.get(TIME), Some(Value::Timestamp(1_700_000_000_123)));
        assert_eq!(map.get(ATTEMPTS), Some(Value::Uint(3)));
        assert_eq!(map.len(), 7, "the older time has given way");
    }

    #[test]
    fn a_second_move_tells_of_the_second_queue_alone() {
        let once = moved(BARE, &death(Reason::Expired)).unwrap();
        let second = Death { queue: "DLQ", delivery_count: 0, ..death(Reason::Rejected) };
        let twice = moved(&once, &second).unwrap();
        assert!(twice.ends_with(BARE));
        let sections = Sections::scan(&twice).unwrap();
        let map = sections.message_annotations(&twice).unwrap().unwrap();
        assert_eq!(map.get(ORIG_ADDRESS), Some(Value::String("DLQ")));
        assert_eq!(map.get(REASON), Some(Value::Symbol(Symbol::new("rejected"))));
        assert_eq!((map.get(ACTUAL_EXPIRY), map.get(ATTEMPTS), map.len()), (None, None, 4));
    }

    /// Kept as far as it is bounded, and only as long as it is why the message died.
    #[test]
    fn a_rejections_error_is_told_of_the_rejected_alone() {
        let error = Error {
            condition: AnyCondition::Other("c".repeat(ERROR_BYTES_MAX + 1).into()),
            description: "é".repeat(DESCRIPTION_BYTES_MAX) + "!",
            info: None,
        };
        let added = Added::merge(None, &rejection(&error)).unwrap();
        let of = |reason| Death { added: Some(&added), ..death(reason) };
        let once = moved(BARE, &of(Reason::Rejected)).unwrap();
        let sections = Sections::scan(&once).unwrap();
        let map = sections.message_annotations(&once).unwrap().unwrap();
        let condition = "c".repeat(ERROR_BYTES_MAX);
        assert_eq!(map.get(ERROR), Some(Value::Symbol(Symbol::new(&condition))));
        let said = "é".repeat(DESCRIPTION_BYTES_MAX / 2);
        assert_eq!(map.get(DESCRIPTION), Some(Value::String(&said)));
        for message in [&once[..], BARE] {
            let later = moved(message, &of(Reason::Attempts)).unwrap();
            let sections = Sections::scan(&later).unwrap();
            let map = sections.message_annotations(&later).unwrap().unwrap();
            assert_eq!((map.get(ERROR), map.get(DESCRIPTION)), (None, None));
        }
    }

    #[test]
    fn the_codes_are_read_again() {
        for reason in [Reason::Rejected, Reason::Attempts, Reason::Expired] {
            assert_eq!(Reason::from_code(reason as u8), Some(reason));
        }
        assert_eq!(Reason::from_code(0), None);
    }
}
