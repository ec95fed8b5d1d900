//! Every type in every encoding: read as what it is, written in the smallest, passed on untouched.
//!
//! ```text
//!  encoding ── value() ──▶ Value ── Writer ──▶ smallest encoding
//!     └── inside a list or map ── view ── Writer ──▶ the same bytes
//!  random encodings, nested and described ── the same; and as messages with another header
//! ```

#[path = "random/encoding.rs"]
mod encoding;

use amqp::codec::{Descriptor, Field, List, Map, Reader, Symbol, Value, Writer};
use amqp::composites::{Header, Properties};
use amqp::definitions::Timestamp;
use amqp::message::{MessageId, Sections};

/// An encoding, its value, and the smallest encoding where that is another.
type Row = (&'static [u8], Value<'static>, Option<&'static [u8]>);

fn scalars() -> Vec<Row> {
    let nan = f64::NAN.to_bits() | 0xbeef;
    vec![
        (b"\x40", Value::Null, None),
        (b"\x41", Value::Boolean(true), None),
        (b"\x42", Value::Boolean(false), None),
        (b"\x56\x01", Value::Boolean(true), Some(b"\x41")),
        (b"\x56\x00", Value::Boolean(false), Some(b"\x42")),
        (b"\x50\xff", Value::Ubyte(255), None),
        (b"\x60\xff\xfe", Value::Ushort(65_534), None),
        (b"\x43", Value::Uint(0), None),
        (b"\x52\x00", Value::Uint(0), Some(b"\x43")),
        (b"\x52\xff", Value::Uint(255), None),
        (b"\x70\0\0\x01\0", Value::Uint(256), None),
        (b"\x70\0\0\0\x07", Value::Uint(7), Some(b"\x52\x07")),
        (b"\x70\xff\xff\xff\xff", Value::Uint(u32::MAX), None),
        (b"\x44", Value::Ulong(0), None),
        (b"\x53\xff", Value::Ulong(255), None),
        (b"\x80\0\0\0\0\0\0\x01\0", Value::Ulong(256), None),
        (b"\x80\0\0\0\0\0\0\0\0", Value::Ulong(0), Some(b"\x44")),
        (b"\x80\xff\xff\xff\xff\xff\xff\xff\xff", Value::Ulong(u64::MAX), None),
        (b"\x51\x80", Value::Byte(-128), None),
        (b"\x61\x80\0", Value::Short(-32_768), None),
        (b"\x54\x80", Value::Int(-128), None),
        (b"\x71\xff\xff\xff\x7f", Value::Int(-129), None),
        (b"\x71\0\0\0\x05", Value::Int(5), Some(b"\x54\x05")),
        (b"\x55\x7f", Value::Long(127), None),
        (b"\x81\0\0\0\0\0\0\0\x80", Value::Long(128), None),
        (b"\x81\x80\0\0\0\0\0\0\0", Value::Long(i64::MIN), None),
        // item 44: a signalling NaN, infinity, decimals, no scalar value, the ends of time.
        (b"\x72\x7f\xa0\0\0", Value::Float(0x7fa0_0000), None),
        (b"\x72\xff\x80\0\0", Value::Float(f32::NEG_INFINITY.to_bits()), None),
        (b"\x82\x7f\xf8\0\0\0\0\xbe\xef", Value::Double(nan), None),
        (b"\x74\x01\x02\x03\x04", Value::Decimal32([1, 2, 3, 4]), None),
        (b"\x84\x01\x02\x03\x04\x05\x06\x07\x08", Value::Decimal64([1, 2, 3, 4, 5, 6, 7, 8]), None),
        (b"\x94aaaaaaaaaaaaaaaa", Value::Decimal128([b'a'; 16]), None),
        (b"\x73\0\x01\xf4\x15", Value::Char(0x1f415), None),
        (b"\x73\0\0\xd8\0", Value::Char(0xd800), None),
        (b"\x73\xff\xff\xff\xff", Value::Char(u32::MAX), None),
        (b"\x83\x7f\xff\xff\xff\xff\xff\xff\xff", Value::Timestamp(i64::MAX), None),
        (b"\x83\x80\0\0\0\0\0\0\0", Value::Timestamp(i64::MIN), None),
        (b"\x98uuuuuuuuuuuuuuuu", Value::Uuid([b'u'; 16]), None),
        (b"\xa0\x02\0\xff", Value::Binary(b"\0\xff"), None),
        (b"\xb0\0\0\0\x01b", Value::Binary(b"b"), Some(b"\xa0\x01b")),
        (b"\xa1\x03\xe2\x82\xac", Value::String("\u{20ac}"), None),
        (b"\xb1\0\0\0\0", Value::String(""), Some(b"\xa1\0")),
        (b"\xa3\x01s", Value::Symbol(Symbol::new("s")), None),
        (b"\xb3\0\0\0\x01s", Value::Symbol(Symbol::new("s")), Some(b"\xa3\x01s")),
    ]
}

/// Lists, maps, arrays and described values: a view keeps the encoding that it was received in.
const VIEWS: [&[u8]; 16] = [
    b"\x45",
    b"\xc0\x01\x00",
    b"\xd0\0\0\0\x04\0\0\0\0",
    b"\xc0\x03\x01\x52\x00",
    b"\xd0\0\0\0\x06\0\0\0\x01\x52\x00",
    b"\xc1\x01\x00",
    b"\xc1\x04\x02\x43\x56\x01",
    b"\xd1\0\0\0\x04\0\0\0\0",
    b"\xd1\0\0\0\x06\0\0\0\x02\x43\x40",
    b"\xe0\x02\x00\x52",
    b"\xe0\x04\x02\x52\x00\x01",
    b"\xf0\0\0\0\x05\0\0\0\x03\x40",
    b"\xf0\0\0\0\x0d\0\0\0\x01\xd0\0\0\0\x04\0\0\0\0",
    b"\x00\x53\x24\x45",
    b"\x00\xa3\x03k:v\x80\0\0\0\0\0\0\0\x01",
    b"\x00\x00\x43\xa1\x01x\x40",
];

fn written(value: &Value<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    Writer::new(&mut bytes).value(value);
    bytes
}

#[test]
fn item_40_every_scalar_is_read_in_each_encoding_and_written_in_the_smallest() {
    for (bytes, value, smallest) in scalars() {
        let mut reader = Reader::new(bytes);
        assert_eq!(reader.value(), Ok(value), "{bytes:?}");
        assert!(reader.is_empty());
        assert_eq!(written(&value), smallest.unwrap_or(bytes), "{value:?}");
    }
}

#[test]
fn item_40_views_are_written_as_they_were_received() {
    for bytes in VIEWS {
        let mut reader = Reader::new(bytes);
        let value = reader.value().unwrap();
        assert!(reader.is_empty());
        assert_eq!(written(&value), bytes);
    }
}

#[test]
fn item_40_everything_passes_inside_lists_and_maps_untouched() {
    let elements: Vec<&[u8]> = scalars().iter().map(|row| row.0).chain(VIEWS).collect();
    let mut list = Vec::new();
    let mut map = Vec::new();
    Writer::new(&mut list).list_with(|list| {
        for element in &elements {
            list.element().raw(element);
        }
    });
    Writer::new(&mut map).map_with(|map| {
        for (key, element) in elements.iter().enumerate() {
            map.field(&(key as u64));
            map.element().raw(element);
        }
    });
    let list_view: List<'_> = Reader::new(&list).list().unwrap();
    let map_view: Map<'_> = Reader::new(&map).map().unwrap();
    assert_eq!(list_view.len(), elements.len());
    assert_eq!(map_view.len(), elements.len());
    let values = elements.iter().map(|bytes| Reader::new(bytes).value().unwrap());
    assert!(list_view.iter().eq(values.clone()));
    assert!(map_view.iter().map(|(_, value)| value).eq(values));
    assert_eq!(written(&Value::List(list_view)), list);
    assert_eq!(written(&Value::Map(map_view)), map);
}

#[test]
fn item_40_the_8_bit_forms_end_at_255() {
    for len in [0, 1, 254, 255, 256, 65_536] {
        let text = "x".repeat(len);
        let short = len < 256;
        let values = [
            (Value::Binary(text.as_bytes()), 0xa0, 0xb0),
            (Value::String(&text), 0xa1, 0xb1),
            (Value::Symbol(Symbol::new(&text)), 0xa3, 0xb3),
        ];
        for (value, short_code, long_code) in values {
            let bytes = written(&value);
            assert_eq!(bytes[0], if short { short_code } else { long_code });
            assert_eq!(bytes.len(), len + if short { 2 } else { 5 });
            assert_eq!(Reader::new(&bytes).value(), Ok(value));
        }
    }
    // A list8 holds 255 bytes with its count: 254 of content.
    for content in [0, 1, 253, 254, 255, 256] {
        let mut bytes = Vec::new();
        Writer::new(&mut bytes).list_with(|list| {
            (0..content).for_each(|_| list.element().null());
        });
        let (code, head) = match content {
            0 => (0x45, 1),
            1..=254 => (0xc0, 3),
            _ => (0xd0, 9),
        };
        assert_eq!(bytes[0], code, "{content}");
        assert_eq!(bytes.len(), head + content);
        assert_eq!(Reader::new(&bytes).list().unwrap().len(), content);
    }
    // An array8 holds 255 bytes with its count and format code: 253 of content.
    for count in [2, 252, 253, 254, 255, 256] {
        let symbols = vec![Symbol::new(""); count];
        let mut bytes = Vec::new();
        Writer::new(&mut bytes).multiple(&symbols.as_slice().into());
        assert_eq!(bytes[0], if count <= 253 { 0xe0 } else { 0xf0 }, "{count}");
        let array = Reader::new(&bytes).array().unwrap();
        assert!(array.iter().eq(symbols.into_iter().map(Value::Symbol)));
    }
    let symbols = ["x".repeat(255), "x".repeat(256)];
    for text in &symbols {
        let symbols = [Symbol::new(text), Symbol::new("y")];
        let mut bytes = Vec::new();
        Writer::new(&mut bytes).multiple(&symbols[..].into());
        let array = Reader::new(&bytes).array().unwrap();
        assert!(array.iter().eq(symbols.map(Value::Symbol)));
    }
}

#[test]
fn trailing_nulls_are_not_written_and_null_maps_end_in_pairs() {
    let mut bytes = Vec::new();
    Writer::new(&mut bytes).list_with(|list| {
        list.null();
        list.field(&true);
        list.null();
        list.null();
    });
    assert_eq!(bytes, b"\xc0\x03\x02\x40\x41");
    bytes.clear();
    Writer::new(&mut bytes).list_with(|list| list.null());
    assert_eq!(bytes, b"\x45");
    bytes.clear();
    Writer::new(&mut bytes).map_with(|map| {
        map.field(&Symbol::new("k"));
        map.null();
    });
    assert_eq!(bytes, b"\xc1\x05\x02\xa3\x01k\x40");
}

#[test]
fn maps_are_looked_up_by_symbol_and_described_values_taken_apart() {
    let map = b"\xc1\x0d\x04\xa1\x01k\x41\xa3\x01k\x00\x53\x07\xa1\x00";
    let map = Reader::new(map).map().unwrap();
    let Some(Value::Described(described)) = map.get("k") else { panic!("the symbol's value") };
    assert_eq!(described.descriptor(), Descriptor::Code(7));
    assert_eq!(described.value().as_string(), Some(""));
    assert_eq!(described.encoded(), b"\x00\x53\x07\xa1\x00");
    assert_eq!(map.get("x"), None);
    assert_eq!(map.iter().next(), Some((Value::String("k"), Value::Boolean(true))));
}

#[test]
fn item_39_message_ids_are_of_four_types_and_times_of_any_value() {
    let ids = [
        MessageId::Ulong(0),
        MessageId::Ulong(u64::MAX),
        MessageId::Uuid([9; 16]),
        MessageId::Binary(b"\xff"),
        MessageId::String("ID:AMQP_BINARY:00"),
    ];
    for id in ids {
        let properties = Properties {
            message_id: Some(id),
            correlation_id: Some(id),
            absolute_expiry_time: Some(Timestamp(i64::MIN)),
            creation_time: Some(Timestamp(i64::MAX)),
            ..Properties::default()
        };
        let mut message = Vec::new();
        properties.write(&mut Writer::new(&mut message));
        let sections = Sections::scan(&message).unwrap();
        assert_eq!(sections.properties(&message), Ok(Some(properties)));
    }
    let header = Header { ttl: Some(u32::MAX), priority: Some(255), ..Header::default() };
    let mut message = Vec::new();
    amqp::message::write_header(&header, &mut message);
    assert_eq!(Sections::scan(&message).unwrap().header_fields, header);
}

/// Values that nest three deep, in whatever encoding.
fn random_values() -> impl Iterator<Item = (u64, Vec<u8>)> {
    (0..20_000).map(|seed| (seed, encoding::any(&mut encoding::Random(seed), 3)))
}

#[test]
fn item_40_any_value_in_any_encoding_is_read_and_passed_on_untouched() {
    let mut seen = [false; 256];
    for (seed, bytes) in random_values() {
        seen[usize::from(bytes[0])] = true;
        let mut reader = Reader::new(&bytes);
        let value = reader.value().unwrap_or_else(|e| panic!("seed {seed}: {e} in {bytes:02x?}"));
        assert!(reader.is_empty(), "seed {seed}");
        for pass in [Reader::check, Reader::skip] {
            let mut reader = Reader::new(&bytes);
            assert_eq!(pass(&mut reader), Ok(()), "seed {seed}");
            assert!(reader.is_empty(), "seed {seed}");
        }
        // By itself in the smallest encoding, which means the same; inside others untouched.
        let out = written(&value);
        assert!(out.len() <= bytes.len(), "seed {seed}");
        assert_eq!(Reader::new(&out).value(), Ok(value), "seed {seed}");
        let mut list = Vec::new();
        Writer::new(&mut list).list_with(|list| list.element().raw(&bytes));
        let view = Reader::new(&list).list().unwrap();
        assert_eq!(written(&Value::List(view)), list, "seed {seed}");
        assert!(list.ends_with(&bytes));
    }
    assert_eq!(seen.into_iter().filter(|seen| *seen).count(), 40, "39 encodings, and described");
}

/// A message with sections of any content; where the part that is sent on begins.
fn random_message(random: &mut encoding::Random) -> (Vec<u8>, usize) {
    let mut message = Vec::new();
    let mut forwarded = 0;
    let descriptors: [(u8, &str); 7] = [
        (0x70, "amqp:header:list"),
        (0x71, "amqp:delivery-annotations:map"),
        (0x72, "amqp:message-annotations:map"),
        (0x73, "amqp:properties:list"),
        (0x74, "amqp:application-properties:map"),
        (0x77, "amqp:amqp-value:*"),
        (0x78, "amqp:footer:map"),
    ];
    for (code, symbol) in descriptors {
        if random.below(3) == 0 {
            continue;
        }
        match random.below(3) {
            0 => message.extend([0, 0x53, code]),
            1 => message.extend([0, 0x80, 0, 0, 0, 0, 0, 0, 0, code]),
            _ => {
                message.extend([0, 0xa3, symbol.len() as u8]);
                message.extend(symbol.as_bytes());
            }
        }
        match code {
            0x70 => message.extend(b"\xd0\0\0\0\x06\0\0\0\x02\x42\x40"),
            0x73 => message.extend(b"\xc0\x0b\x02\x80\0\0\0\0\0\0\0\x07\x40"),
            0x77 => message.extend(encoding::any(random, 3)),
            _ => {
                let value = encoding::any(random, 2);
                let mut map = Vec::new();
                Writer::new(&mut map).map_with(|map| {
                    map.element().raw(b"\xb3\0\0\0\x05x-opt");
                    map.element().raw(&value);
                });
                message.extend(map);
            }
        }
        if code <= 0x71 {
            forwarded = message.len();
        }
    }
    (message, forwarded)
}

#[test]
fn item_38_a_message_is_sent_on_byte_for_byte_but_for_what_is_for_one_hop() {
    for seed in 0..5000 {
        let (message, forwarded) = random_message(&mut encoding::Random(seed));
        let sections = Sections::scan(&message)
            .unwrap_or_else(|e| panic!("seed {seed}: {e} in {message:02x?}"));
        assert_eq!(sections.forwarded, forwarded..message.len(), "seed {seed}");
        // As it comes out of a broker that has counted a delivery.
        let header = Header { delivery_count: Some(3), ..sections.header_fields };
        let mut sent = Vec::new();
        amqp::message::write_header(&header, &mut sent);
        sent.extend_from_slice(&message[sections.forwarded.clone()]);
        let again = Sections::scan(&sent).unwrap();
        assert_eq!(again.header_fields, header);
        assert_eq!(sent[again.forwarded.clone()], message[forwarded..], "seed {seed}");
        let of = |range: &Option<std::ops::Range<usize>>| range.as_ref().map(|r| r.len());
        assert_eq!(of(&again.properties), of(&sections.properties));
        assert_eq!(again.body.len(), sections.body.len());
        assert_eq!(of(&again.footer), of(&sections.footer));
    }
}
