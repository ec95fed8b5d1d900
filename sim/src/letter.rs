//! Test messages: each has a number in its body, and its bytes follow from the number.
//!
//! ```text
//!   header? │ delivery time or delay? │ properties? │ duplicate id? │
//!   data section: "LETTER" │ number u64 │ filler, drawn from the number
//! ```
//! So whoever finds one, in a delivery or in a record of the log, knows which it is and whether its
//! bare message is still what was sent.

use amqp::message::{Header, Properties, Sections, write_header};

use amqp::codec::{Composite, Symbol, Value, Writer};
use amqp::definitions::Timestamp;

use crate::rng::Rng;

/// The number of a test message; no two in a run are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LetterId(pub u64);

/// What is said of a letter before it is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Form {
    /// Bytes of its body, about.
    pub bytes: usize,
    /// When it expires, if it does.
    pub expiry_unix_ms: Option<u64>,
    /// It has a duplicate id, so that it may be sent again.
    pub identified: bool,
    /// Its priority, if it states one.
    pub priority: Option<u8>,
    /// It says itself that it goes to the queue of this number.
    pub to: Option<usize>,
    /// It says when it is to be delivered.
    pub later: Option<Later>,
}

/// When a letter is to be delivered, as it says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Later {
    /// At this time of day, milliseconds since 1970.
    At(u64),
    /// So many milliseconds after it came.
    After(u64),
}

const MARK: &[u8; 6] = b"LETTER";
const APPLICATION_PROPERTIES_CODE: u64 = 0x74;
const DATA_CODE: u64 = 0x75;
const ANNOTATIONS_CODE: u64 = 0x72;

/// The encoded message of this number and form.
pub fn write(id: LetterId, form: Form) -> Vec<u8> {
    let Form { bytes, expiry_unix_ms, identified, priority, to, later } = form;
    let mut rng = Rng::stream(id.0, "letter", bytes as u64);
    let mut out = Vec::with_capacity(bytes + 64);
    let durable = rng.chance(500).then(|| rng.chance(500));
    write_header(&Header { durable, priority, ..Header::default() }, &mut out);
    if let Some(later) = later {
        write_later(id, later, &mut out);
    }
    if rng.chance(300) || expiry_unix_ms.is_some() || to.is_some() {
        let absolute_expiry_time = expiry_unix_ms.map(|unix_ms| Timestamp(unix_ms as i64));
        let subject = Some("letter");
        let name = to.map(queue_name);
        let to = name.as_deref();
        let properties = Properties { subject, absolute_expiry_time, to, ..Properties::default() };
        properties.write_described(&mut Writer::new(&mut out));
    }
    if identified {
        let mut writer = Writer::new(&mut out);
        writer.descriptor(APPLICATION_PROPERTIES_CODE);
        writer.map_with(|map| {
            map.element().string("_AMQ_DUPL_ID");
            match id.0 % 3 {
                0 => map.element().ulong(id.0),
                1 => map.element().binary(&id.0.to_be_bytes()),
                _ => map.element().string(&format!("letter {}", id.0)),
            }
        });
    }
    let mut body = Vec::with_capacity(bytes);
    body.extend_from_slice(MARK);
    body.extend_from_slice(&id.0.to_le_bytes());
    let filler = rng.bits().to_le_bytes();
    while body.len() < bytes {
        body.push(filler[body.len() % filler.len()]);
    }
    let mut writer = Writer::new(&mut out);
    writer.descriptor(DATA_CODE);
    writer.binary(&body);
    out
}

/// The annotation that says when a letter is to be delivered, in any of the types that clients use.
fn write_later(id: LetterId, later: Later, out: &mut Vec<u8>) {
    let (name, unix_ms) = match later {
        Later::At(unix_ms) => ("x-opt-delivery-time", unix_ms),
        Later::After(delay_ms) => ("x-opt-delivery-delay", delay_ms),
    };
    let mut writer = Writer::new(out);
    writer.descriptor(ANNOTATIONS_CODE);
    writer.map_with(|map| {
        map.element().symbol(Symbol::new(name));
        match id.0 % 3 {
            0 => map.element().ulong(unix_ms),
            1 => map.element().long(unix_ms as i64),
            _ => map.element().timestamp(Timestamp(unix_ms as i64)),
        }
    });
}

/// The name of a queue, in the clients' numbering.
pub fn queue_name(queue: usize) -> String {
    format!("queue-{queue}")
}

/// The annotation that a consumer gave a message last, if any did.
pub fn note(message: &[u8]) -> Option<u32> {
    let sections = Sections::scan(message).ok()?;
    let value = sections.message_annotations(message).ok()??.get(NOTE)?;
    if let Value::Uint(note) = value { Some(note) } else { None }
}

/// The annotation's name.
pub const NOTE: &str = "x-opt-note";

/// The number of the letter that these bytes begin.
pub fn find(bytes: &[u8]) -> Option<LetterId> {
    // Annotations of the dead, properties and a duplicate id may stand before it.
    let near = &bytes[..bytes.len().min(512)];
    let at = near.windows(MARK.len()).position(|window| window == MARK)?;
    let number = near.get(at + MARK.len()..)?.first_chunk::<8>()?;
    Some(LetterId(u64::from_le_bytes(*number)))
}

/// The header of a message, and its bare message: all but annotations for brokers.
///
/// # Errors
/// Where it cannot be decoded.
pub fn bare(message: &[u8]) -> Result<(Header, &[u8]), String> {
    let sections = Sections::scan(message).map_err(|error| error.to_string())?;
    let header = sections.header_fields;
    let from = sections.message_annotations.map_or(sections.forwarded.start, |range| range.end);
    Ok((header, &message[from..sections.forwarded.end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_is_found_again_and_is_the_same_each_time() {
        for number in 0..50 {
            let id = LetterId(number);
            for bytes in [0, 100, 70_000] {
                let form = Form { bytes, identified: number % 2 == 0, ..Form::default() };
                let message = write(id, form);
                assert_eq!(find(&message), Some(id));
                assert_eq!(message, write(id, form));
                let (header, forwarded) = bare(&message).expect("a sound message");
                assert_eq!(find(forwarded), Some(id));
                assert_eq!(header.delivery_count, None);
            }
        }
        assert_eq!(find(b"LETTER"), None);
    }
}
