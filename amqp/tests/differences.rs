//! Any bytes at all, by our codec and by `serde_amqp`: both say the same, or it is known why not.
//!
//! ```text
//!  random encodings ────────────┐                  ┌─ same value
//!  the same with bytes changed ─┴─▶ both decode ──▶├─ both refuse
//!                                                  └─ one of the reasons below, and no other
//! ```
//!
//! * An array is empty, of values without bytes, of compounds, described, or of strings beyond
//!   ASCII: ours reads it as [1.6.24] has it, theirs refuses it, panics, or writes other bytes.
//! * A descriptor is neither a ulong nor a symbol, which [1.5] reserves: ours keeps it, theirs not.
//! * A char is no Unicode scalar: ours keeps it, theirs refuses.
//! * A size, count or text is wrong: ours refuses, theirs reads something.
//!
//! Each reason must be met, or it is one too many. `oracle.rs` is about what is typed.

#[path = "random/encoding.rs"]
mod encoding;

use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};

use amqp::codec::{Array, Descriptor, Fault, Reader, Value, Writer};
use encoding::Random;

/// Why the two may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reason {
    Array,
    Descriptor,
    Char,
    Lax(&'static str),
}

/// What they let pass, as our errors say it.
const LAX: [(&str, &str); 4] = [
    ("a size reaches beyond the end", "truncated"),
    ("size and count disagree with the content", "size mismatch"),
    ("symbol is not ASCII", "not ASCII"),
    // Only ever in an array without elements, or in bytes beyond a size.
    ("string is not UTF-8", "not UTF-8"),
];

/// What is in a value that the other codec does not know.
fn unknown_to_them(value: &Value<'_>) -> Option<Reason> {
    match value {
        Value::List(list) => list.iter().find_map(|value| unknown_to_them(&value)),
        Value::Map(map) => map
            .iter()
            .find_map(|(key, value)| unknown_to_them(&key).or_else(|| unknown_to_them(&value))),
        Value::Array(array) if is_unusual(array) => Some(Reason::Array),
        Value::Array(array) => array.iter().find_map(|value| unknown_to_them(&value)),
        Value::Described(described) => match described.descriptor() {
            Descriptor::Code(_) | Descriptor::Name(_) => unknown_to_them(&described.value()),
            Descriptor::Reserved => Some(Reason::Descriptor),
        },
        Value::Char(char) => char::from_u32(*char).is_none().then_some(Reason::Char),
        Value::Null
        | Value::Boolean(_)
        | Value::Ubyte(_)
        | Value::Ushort(_)
        | Value::Uint(_)
        | Value::Ulong(_)
        | Value::Byte(_)
        | Value::Short(_)
        | Value::Int(_)
        | Value::Long(_)
        | Value::Float(_)
        | Value::Double(_)
        | Value::Decimal32(_)
        | Value::Decimal64(_)
        | Value::Decimal128(_)
        | Value::Timestamp(_)
        | Value::Uuid(_)
        | Value::Binary(_)
        | Value::String(_)
        | Value::Symbol(_) => None,
    }
}

fn is_unusual(array: &Array<'_>) -> bool {
    // A view is written as it was received: code, size, count, constructor.
    let mut bytes = Vec::new();
    Writer::new(&mut bytes).value(&Value::Array(*array));
    let constructor = bytes[if bytes[0] == 0xe0 { 3 } else { 9 }];
    let beyond_ascii = |value| matches!(value, Value::String(text) if !text.is_ascii());
    let described = constructor == 0;
    let without_bytes = (0x40..=0x45).contains(&constructor);
    let compound = constructor >= 0xc0;
    let empty = array.iter().next().is_none();
    described || without_bytes || compound || empty || array.iter().any(beyond_ascii)
}

/// Decodes by both; the reason, where they differ.
fn differ(bytes: &[u8]) -> Option<Reason> {
    let mut reader = Reader::new(bytes);
    let ours = reader.value();
    // What follows the value is nobody's.
    let bytes = &bytes[..if ours.is_ok() { reader.position() } else { bytes.len() }];
    let theirs = panic::catch_unwind(AssertUnwindSafe(|| {
        let value: serde_amqp::Value = serde_amqp::from_slice(bytes).ok()?;
        Some(serde_amqp::to_vec(&value))
    }));
    match (ours, theirs) {
        (Err(_), Ok(None) | Err(_)) => None,
        (Ok(ours), Ok(Some(Ok(back)))) if Reader::new(&back).value() == Ok(ours) => None,
        (Ok(ours), _) => {
            let reason = unknown_to_them(&ours);
            assert!(reason.is_some(), "no reason to differ about {ours:?}: {bytes:02x?}");
            reason
        }
        (Err(error), Ok(Some(_))) => {
            let lax = LAX.iter().find(|(fault, _)| *fault == error.fault.to_string());
            let of_code = matches!(error.fault, Fault::UnknownFormatCode(_));
            let lax = lax.map(|(_, name)| *name).or(of_code.then_some("format code"));
            assert!(lax.is_some(), "they read what is wrong with us, {error}: {bytes:02x?}");
            lax.map(Reason::Lax)
        }
    }
}

/// Counts the reasons over many seeds.
fn survey(make: impl Fn(&mut Random) -> Vec<u8>) -> BTreeMap<Reason, u32> {
    let mut reasons = BTreeMap::new();
    for seed in 0..30_000 {
        let bytes = make(&mut Random(seed));
        if let Some(reason) = differ(&bytes) {
            *reasons.entry(reason).or_default() += 1;
        }
    }
    reasons
}

#[test]
fn every_encoding_means_the_same_to_both_but_for_the_reasons() {
    let reasons = survey(|random| encoding::any(random, 2));
    let known: Vec<Reason> = reasons.keys().copied().collect();
    assert_eq!(known, [Reason::Array, Reason::Descriptor, Reason::Char], "{reasons:?}");
    let sum: u32 = reasons.values().sum();
    assert!(sum < 3000, "they mean the same for the most part: {reasons:?}");
}

#[test]
fn what_is_wrong_is_wrong_for_both_but_for_the_reasons() {
    let reasons = survey(|random| {
        let mut bytes = encoding::any(random, 2);
        for _ in 0..=random.below(3) {
            let at = random.below(bytes.len());
            bytes[at] = random.next() as u8;
        }
        bytes.truncate(200);
        bytes
    });
    for reason in [Reason::Array, Reason::Descriptor, Reason::Char] {
        assert!(reasons.contains_key(&reason), "{reason:?} is no reason: {reasons:?}");
    }
    for lax in ["truncated", "size mismatch", "not ASCII"] {
        assert!(reasons.contains_key(&Reason::Lax(lax)), "they refuse {lax}, too: {reasons:?}");
    }
}
