//! AMQP messages by hand, so that our own codec has no part in judging the broker.
//!
//! ```text
//!   header  delivery-annots  message-annots  properties  application-properties  body  footer
//!   \- the broker's to change -/             \------------ the bare message -------------/
//! ```
//!
//! [`kept`] is what has to come out as it went in: all sections but the first two [3.2].

/// Descriptor codes of the sections [3.2].
const HEADER: u8 = 0x70;
const DELIVERY_ANNOTATIONS: u8 = 0x71;

/// A body of one data section.
pub(crate) fn data(bytes: &[u8]) -> Vec<u8> {
    let mut message = vec![0x00, 0x53, 0x75, 0xb0];
    message.extend((bytes.len() as u32).to_be_bytes());
    message.extend(bytes);
    message
}

/// A body of one amqp-value, the value encoded by the caller.
pub(crate) fn value(encoded: &[u8]) -> Vec<u8> {
    [&[0x00, 0x53, 0x77], encoded].concat()
}

/// A header with `durable` set, then the rest.
pub(crate) fn durable(rest: &[u8]) -> Vec<u8> {
    [&[0x00, 0x53, HEADER, 0xc0, 2, 1, 0x41], rest].concat()
}

/// What the broker must hand on bit for bit.
pub(crate) fn kept(message: &[u8]) -> &[u8] {
    let mut rest = message;
    while let [0x00, 0x53, HEADER | DELIVERY_ANNOTATIONS, encoded @ ..] = rest {
        rest = &encoded[encoded_length(encoded)..];
    }
    rest
}

/// The fields of a received header [3.2.1] that a test looks at.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) durable: bool,
    pub(crate) first_acquirer: bool,
    pub(crate) delivery_count: u64,
}

pub(crate) fn header(message: &[u8]) -> Header {
    let [0x00, 0x53, HEADER, list @ ..] = message else { return Header::default() };
    let mut fields = match list[0] {
        0x45 => &[],
        0xc0 => &list[3..encoded_length(list)],
        0xd0 => &list[9..encoded_length(list)],
        other => panic!("a header is a list, not 0x{other:02x}"),
    };
    let mut header = Header::default();
    for index in 0.. {
        let Some(code) = fields.first() else { break };
        let length = encoded_length(fields);
        let number = fields[1..length].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        let is_true = *code == 0x41 || *code == 0x56 && number == 1;
        match index {
            0 => header.durable = is_true,
            3 => header.first_acquirer = is_true,
            4 => header.delivery_count = number,
            _ => {}
        }
        fields = &fields[length..];
    }
    header
}

/// The length of one encoded value, by the class of its constructor [1.2].
fn encoded_length(encoded: &[u8]) -> usize {
    let size32 = |at: usize| {
        let bytes: [u8; 4] = encoded[at..at + 4].try_into().expect("four bytes");
        u32::from_be_bytes(bytes) as usize
    };
    match encoded[0] >> 4 {
        0x4 => 1,
        0x5 => 2,
        0x6 => 3,
        0x7 => 5,
        0x8 => 9,
        0x9 => 17,
        0xa | 0xc | 0xe => 2 + usize::from(encoded[1]),
        0xb | 0xd | 0xf => 5 + size32(1),
        other => panic!("0x{other:x}0 is no constructor"),
    }
}

/// A message worth sending, with what it is in words.
pub(crate) struct Sample {
    pub(crate) what: String,
    pub(crate) bytes: Vec<u8>,
}

/// Bodies and sections of each kind and encoding that AMQP 1.0 knows.
pub(crate) fn samples() -> Vec<Sample> {
    let mut samples = Vec::new();
    let mut add = |what: &str, bytes: Vec<u8>| samples.push(Sample { what: what.into(), bytes });
    add("one byte", data(b"x"));
    add("empty data", data(b""));
    add("data of 255", data(&[7; 255]));
    add("data8", [&[0x00, 0x53, 0x75, 0xa0, 3][..], b"abc"].concat());
    add("70 KiB", data(&pattern(70 << 10)));
    add("2 MiB", data(&pattern(2 << 20)));
    add("two data sections", [data(b"one"), data(b"two")].concat());
    add("a sequence", [&[0x00, 0x53, 0x76][..], LIST].concat());
    add("two sequences", [&[0x00, 0x53, 0x76][..], LIST, &[0x00, 0x53, 0x76], LIST].concat());
    for (what, encoded) in values() {
        add(what, value(&encoded));
    }
    for (what, id) in ids() {
        let list = [&[0x00, 0x53, 0x73, 0xc0, 1 + id.len() as u8, 1][..], &id].concat();
        add(what, [list, data(b"with an id")].concat());
    }
    add("unicode properties", [TO_AND_SUBJECT, &data(b"x")].concat());
    add("application properties", [APPLICATION_PROPERTIES, &value(&[0x43])].concat());
    add("message annotations", [MESSAGE_ANNOTATIONS, &data(b"x")].concat());
    add("delivery annotations", [&[0x00, 0x53, 0x71][..], MAP, &data(b"x")].concat());
    add("a footer", [&data(b"x")[..], &[0x00, 0x53, 0x78], MAP].concat());
    add("a durable header", durable(&data(b"x")));
    let all = [MESSAGE_ANNOTATIONS, TO_AND_SUBJECT, APPLICATION_PROPERTIES, &data(b"all")].concat();
    add("everything", durable(&[&all[..], &[0x00, 0x53, 0x78], MAP].concat()));
    samples
}

/// `[1, "a"]` and `{sym "k": "v"}`.
const LIST: &[u8] = &[0xc0, 6, 2, 0x54, 1, 0xa1, 1, b'a'];
const MAP: &[u8] = &[0xc1, 7, 2, 0xa3, 1, b'k', 0xa1, 1, b'v'];

/// `{sym "x-opt-k": long 5}`.
const MESSAGE_ANNOTATIONS: &[u8] =
    &[0x00, 0x53, 0x72, 0xc1, 12, 2, 0xa3, 7, b'x', b'-', b'o', b'p', b't', b'-', b'k', 0x55, 5];

/// `{"k": true, "n": 2^32, "u": "ü"}`.
const APPLICATION_PROPERTIES: &[u8] = &[
    0x00, 0x53, 0x74, 0xc1, 24, 6, 0xa1, 1, b'k', 0x41, 0xa1, 1, b'n', 0x80, 0, 0, 0, 1, 0, 0, 0,
    0, 0xa1, 1, b'u', 0xa1, 2, 0xc3, 0xbc,
];

/// message-id and user-id absent, to and subject with letters of two and three bytes.
const TO_AND_SUBJECT: &[u8] = &[
    0x00, 0x53, 0x73, 0xc0, 13, 4, 0x40, 0x40, 0xa1, 2, 0xc3, 0xa4, 0xa1, 4, 0xe2, 0x82, 0xac, b'!',
];

fn ids() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("a ulong id", vec![0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        ("a small ulong id", vec![0x53, 9]),
        ("a uuid id", [&[0x98][..], &[0xab; 16]].concat()),
        ("a binary id", vec![0xa0, 3, 0, 255, 1]),
        ("a string id", vec![0xa1, 2, 0xc3, 0xbc]),
    ]
}

/// A value of every type in every encoding [1.6].
fn values() -> Vec<(&'static str, Vec<u8>)> {
    let wide =
        |code: u8, bytes: &[u8]| [&[code][..], &(bytes.len() as u32).to_be_bytes(), bytes].concat();
    vec![
        ("null", vec![0x40]),
        ("true", vec![0x41]),
        ("false", vec![0x42]),
        ("boolean byte", vec![0x56, 1]),
        ("ubyte", vec![0x50, 255]),
        ("ushort", vec![0x60, 255, 254]),
        ("uint", vec![0x70, 255, 255, 255, 255]),
        ("smalluint", vec![0x52, 200]),
        ("uint0", vec![0x43]),
        ("ulong", [&[0x80][..], &[255; 8]].concat()),
        ("smallulong", vec![0x53, 200]),
        ("ulong0", vec![0x44]),
        ("byte", vec![0x51, 0x80]),
        ("short", vec![0x61, 0x80, 0]),
        ("int", vec![0x71, 0x80, 0, 0, 0]),
        ("smallint", vec![0x54, 0x80]),
        ("long", vec![0x81, 0x80, 0, 0, 0, 0, 0, 0, 0]),
        ("smalllong", vec![0x55, 0x80]),
        ("float NaN", vec![0x72, 0x7f, 0xc0, 0, 1]),
        ("double", vec![0x82, 0x80, 0, 0, 0, 0, 0, 0, 0]),
        ("char", vec![0x73, 0, 1, 0xf6, 0]),
        ("timestamp", vec![0x83, 0x7f, 255, 255, 255, 255, 255, 255, 255]),
        ("uuid", [&[0x98][..], &[1; 16]].concat()),
        ("decimal32", vec![0x74, 1, 2, 3, 4]),
        ("decimal64", vec![0x84, 1, 2, 3, 4, 5, 6, 7, 8]),
        ("decimal128", [&[0x94][..], &[9; 16]].concat()),
        ("binary8", vec![0xa0, 2, 0, 255]),
        ("binary32", wide(0xb0, &[0, 255])),
        ("str8", vec![0xa1, 3, 0xe2, 0x82, 0xac]),
        ("str32", wide(0xb1, "€".as_bytes())),
        ("sym8", vec![0xa3, 1, b's']),
        ("sym32", wide(0xb3, b"s")),
        ("list0", vec![0x45]),
        ("list8", LIST.to_vec()),
        ("list32", wide(0xd0, &[0, 0, 0, 1, 0x40])),
        ("map8", MAP.to_vec()),
        ("map32", wide(0xd1, &[0, 0, 0, 2, 0xa1, 1, b'k', 0x40])),
        ("array8", vec![0xe0, 5, 2, 0xa1, 1, b'a', 0]),
        ("array32", wide(0xf0, &[0, 0, 0, 2, 0x71, 0, 0, 0, 1, 0, 0, 0, 2])),
        ("described", [&[0x00, 0xa3, 1, b'd'][..], LIST].concat()),
    ]
}

/// Bytes that differ wherever one looks, so that a misplaced frame shows.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at ^ at >> 8 ^ at >> 16) as u8).collect()
}

/// A message that says its number, and the number of one.
pub(crate) fn numbered(number: u32) -> Vec<u8> {
    value(&[&[0x70][..], &number.to_be_bytes()].concat())
}

/// The message with the annotation that it is to be delivered so much later.
pub(crate) fn later(delay_ms: u64, message: &[u8]) -> Vec<u8> {
    let name = "x-opt-delivery-delay";
    let len = u8::try_from(name.len()).expect("a short name");
    let head = [0x00, 0x53, 0x72, 0xc1, len + 12, 2, 0xa3, len];
    let value = [&[0x80][..], &delay_ms.to_be_bytes()].concat();
    [&head, name.as_bytes(), &value, message].concat()
}

/// The message with properties that say where it goes.
pub(crate) fn to(address: &str, message: &[u8]) -> Vec<u8> {
    let len = u8::try_from(address.len()).expect("a short address");
    let head = [0x00, 0x53, 0x73, 0xc0, len + 5, 3, 0x40, 0x40, 0xa1, len];
    [&head, address.as_bytes(), message].concat()
}

pub(crate) fn number(message: &[u8]) -> u32 {
    let body = match kept(message) {
        // Properties come first, if there are any.
        [0x00, 0x53, 0x73, 0xc0, size, rest @ ..] => &rest[usize::from(*size)..],
        other => other,
    };
    match body {
        [0x00, 0x53, 0x77, 0x70, rest @ ..] => {
            u32::from_be_bytes(rest.try_into().expect("four bytes"))
        }
        other => panic!("not a numbered message: {}", to_hex(other)),
    }
}

pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn from_hex(hex: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
    (0..hex.len()).step_by(2).map(digit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_is_all_but_header_and_delivery_annotations() {
        let annotated = [&[0x00, 0x53, 0x71][..], MAP, &data(b"x")].concat();
        assert_eq!(kept(&durable(&annotated)), data(b"x"));
        assert_eq!(kept(&data(b"x")), data(b"x"));
        let long = [&[0x00, 0x53, 0x70, 0xd0, 0, 0, 0, 5, 0, 0, 0, 1, 0x42][..], b"rest"].concat();
        assert_eq!(kept(&long), b"rest");
    }

    #[test]
    fn headers_are_read_in_both_forms() {
        let list = [0x00, 0x53, 0x70, 0xc0, 7, 5, 0x41, 0x40, 0x40, 0x41, 0x52, 3];
        let expected = Header { durable: true, first_acquirer: true, delivery_count: 3 };
        assert_eq!(header(&list), expected);
        assert_eq!(header(&data(b"x")), Header::default());
        assert_eq!(header(&[0x00, 0x53, 0x70, 0x45, 0x00]), Header::default());
    }

    #[test]
    fn hand_made_sections_have_true_lengths() {
        for sample in samples() {
            let mut rest = &sample.bytes[..];
            while let [0x00, 0x53, code, encoded @ ..] = rest {
                assert!((0x70..=0x78).contains(code), "{}", sample.what);
                let described = encoded[0] == 0;
                let length = if described {
                    4 + encoded_length(&encoded[4..])
                } else {
                    encoded_length(encoded)
                };
                rest = &encoded[length..];
            }
            assert!(rest.is_empty(), "{}: {} bytes are left", sample.what, rest.len());
        }
    }

    #[test]
    fn hex_goes_both_ways() {
        assert_eq!(from_hex(&to_hex(&[0, 15, 255])), [0, 15, 255]);
        assert_eq!(number(&durable(&numbered(70_000))), 70_000);
    }
}
