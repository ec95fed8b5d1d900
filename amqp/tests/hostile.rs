//! Bytes that were made to hurt: each kind that brought another decoder down, by name.
//!
//! ```text
//!  nested too deep ── counts without content ── sizes that lie ── zero-width arrays
//!  odd maps, equal keys ── cut short at every byte ── every single byte changed
//! ```
//!
//! A stack overflow or a failed allocation aborts the process, so here an error is the only right
//! answer, and a test that does not return is a failure, too. The item numbers are those of our
//! study of what AMQP servers get wrong.

use amqp::codec::{
    Array, DEPTH_MAX, DecodeError, ELEMENTS_MAX, Fault, Multiple, Reader, Symbol, Value, Writer,
};
use amqp::definitions::{DeliveryId, Handle, Role};
use amqp::performative::{
    AnySource, AnyTarget, Attach, DeliveryState, Disposition, Error, Modified, Open, Outcome,
    Performative, Rejected, Source, Target, Transfer,
};

fn fault(bytes: &[u8]) -> Option<Fault> {
    // All three ways through a value must survive; the two that look inside must agree.
    let _ = Reader::new(bytes).skip();
    let checked = Reader::new(bytes).check();
    let value = Reader::new(bytes).value();
    assert_eq!(checked.err(), value.err());
    value.err().map(|e| e.fault)
}

/// An `open` with these bytes as its properties.
fn open_with_properties(properties: &[u8]) -> Vec<u8> {
    let mut fields = b"\xa1\x01c\x40\x40\x40\x40\x40\x40\x40\x40".to_vec();
    fields.extend(properties);
    let mut body = vec![0x00, 0x53, 0x10, 0xd0];
    body.extend((fields.len() as u32 + 4).to_be_bytes());
    body.extend(10u32.to_be_bytes());
    body.extend(fields);
    body
}

/// `depth` lists inside each other, the innermost empty.
fn nested_lists(depth: u32) -> Vec<u8> {
    let mut value = vec![0x45];
    for _ in 1..depth {
        let mut outer = vec![0xd0];
        outer.extend((value.len() as u32 + 4).to_be_bytes());
        outer.extend(1u32.to_be_bytes());
        outer.extend(&value);
        value = outer;
    }
    value
}

fn map_of_one(value: &[u8]) -> Vec<u8> {
    let mut map = vec![0xd1];
    map.extend((value.len() as u32 + 4 + 3).to_be_bytes());
    map.extend(2u32.to_be_bytes());
    map.extend(b"\xa3\x01k");
    map.extend(value);
    map
}

#[test]
fn item_43_an_open_nested_three_thousand_deep_is_refused_on_a_small_stack() {
    let body = open_with_properties(&map_of_one(&nested_lists(3000)));
    assert!(body.len() > 27_000);
    let run = move || Performative::decode(&body).map(|_| ()).unwrap_err();
    let thread = std::thread::Builder::new().name("small".into()).stack_size(256 * 1024);
    let error = thread.spawn(run).unwrap().join().unwrap();
    assert_eq!(error.fault, Fault::TooDeep);
    assert_eq!(error.to_string(), "open.properties: nested too deep at byte 315");
}

#[test]
fn item_43_depth_is_bounded_exactly() {
    assert_eq!(fault(&nested_lists(DEPTH_MAX + 1)), None);
    assert_eq!(fault(&nested_lists(DEPTH_MAX + 2)), Some(Fault::TooDeep));
}

#[test]
fn item_43_descriptors_count_as_depth() {
    // A descriptor that is described by a descriptor that is described ..
    let mut left = vec![0x00; 100_000];
    left.extend([0x40; 100_001]);
    assert_eq!(fault(&left), Some(Fault::TooDeep));
    assert_eq!(Reader::new(&left).skip().unwrap_err().fault, Fault::TooDeep);
    // .. and a value that is described, and described again.
    let mut right = [0x00, 0x44].repeat(100_000);
    right.push(0x40);
    assert_eq!(fault(&right), Some(Fault::TooDeep));
    assert_eq!(Reader::new(&right).skip().unwrap_err().fault, Fault::TooDeep);
    // The constructor of an array is no way around it.
    let mut array = vec![0xf0];
    array.extend((right.len() as u32 + 4).to_be_bytes());
    array.extend(1u32.to_be_bytes());
    array.extend(&right);
    assert_eq!(fault(&array), Some(Fault::TooDeep));
    // Nor is a performative's own descriptor.
    assert_eq!(Performative::decode(&left).unwrap_err().fault, Fault::TooDeep);
}

#[test]
fn item_43_a_count_without_content_allocates_nothing() {
    let count = (1u32 << 31).to_be_bytes();
    for code in [0xd0, 0xd1, 0xf0] {
        let mut bytes = vec![code, 0, 0, 0, 4];
        bytes.extend(count);
        let expected = if code == 0xf0 { Fault::Truncated } else { Fault::SizeMismatch };
        assert_eq!(fault(&bytes), Some(expected), "{code:#04x}");
    }
    // As the list of a performative.
    let body = [&[0x00, 0x53, 0x10, 0xd0, 0, 0, 0, 4][..], &count].concat();
    let error = Performative::decode(&body).unwrap_err();
    assert_eq!(error.fault, Fault::Truncated);
}

#[test]
fn item_43_the_sum_of_elements_is_bounded() {
    let nulls = |count: u32| {
        let mut list = vec![0xd0];
        list.extend((count + 4).to_be_bytes());
        list.extend(count.to_be_bytes());
        list.extend(vec![0x40; count as usize]);
        list
    };
    assert_eq!(fault(&nulls(ELEMENTS_MAX)), None);
    assert_eq!(fault(&nulls(ELEMENTS_MAX + 1)), Some(Fault::TooManyElements));
    // Spread over two levels it is the same sum.
    let halves = [nulls(ELEMENTS_MAX / 2), nulls(ELEMENTS_MAX / 2)].concat();
    let mut list = vec![0xd0];
    list.extend((halves.len() as u32 + 4).to_be_bytes());
    list.extend(2u32.to_be_bytes());
    list.extend(halves);
    assert_eq!(fault(&list), Some(Fault::TooManyElements));
}

#[test]
fn item_43_a_size_that_leaves_no_room_for_the_count_is_refused() {
    assert_eq!(fault(&[0xc0, 0]), Some(Fault::Truncated));
    for size in 0..4 {
        assert_eq!(fault(&[0xd0, 0, 0, 0, size, 0, 0, 0, 0]), Some(Fault::Truncated));
        assert_eq!(fault(&[0xd1, 0, 0, 0, size, 0, 0, 0, 0]), Some(Fault::Truncated));
        assert_eq!(fault(&[0xf0, 0, 0, 0, size, 0, 0, 0, 0]), Some(Fault::Truncated));
    }
    let error = Performative::decode(&[0x00, 0x53, 0x18, 0xc0, 0]).unwrap_err();
    assert_eq!(error.to_string(), "close: a size reaches beyond the end at byte 5");
}

#[test]
fn item_43_sizes_and_counts_must_agree() {
    // A null too many, a null too few; in a list, a map, an array.
    assert_eq!(fault(b"\xc0\x03\x01\x40\x40"), Some(Fault::SizeMismatch));
    assert_eq!(fault(b"\xc0\x02\x02\x40"), Some(Fault::SizeMismatch));
    assert_eq!(fault(b"\xc1\x04\x02\x40\x40\x40"), Some(Fault::SizeMismatch));
    assert_eq!(fault(b"\xc1\x02\x02\x40"), Some(Fault::SizeMismatch));
    assert_eq!(fault(b"\xe0\x04\x01\x50\x01\x02"), Some(Fault::SizeMismatch));
    assert_eq!(fault(b"\xe0\x03\x02\x50\x01"), Some(Fault::Truncated));
    assert_eq!(fault(b"\xe0\x03\x02\x41\x00"), Some(Fault::SizeMismatch));
    // An element that reaches out of its list into what follows.
    assert_eq!(fault(b"\xc0\x03\x01\xa1\x05hello"), Some(Fault::Truncated));
    // The list of a performative with more bytes than fields.
    let error = Performative::decode(b"\x00\x53\x18\xc0\x03\x01\x40\x40").unwrap_err();
    assert_eq!(error.fault, Fault::SizeMismatch);
}

#[test]
fn item_43_a_map_with_an_odd_count_is_refused() {
    assert_eq!(fault(b"\xc1\x04\x03\x40\x41\x42"), Some(Fault::OddMap));
    let body = open_with_properties(b"\xc1\x04\x01\xa3\x01k");
    let error = Performative::decode(&body).unwrap_err();
    assert_eq!(error.place.unwrap().to_string(), "open.properties");
    assert_eq!(error.fault, Fault::OddMap);
}

#[test]
fn item_43_equal_keys_are_refused_in_whatever_encoding() {
    let pairs: [(&[u8], &[u8]); 6] = [
        (b"\xa3\x01k", b"\xa3\x01k"),
        (b"\xa3\x01k", b"\xb3\x00\x00\x00\x01k"),
        (b"\x43", b"\x52\x00"),
        (b"\x53\x07", b"\x80\0\0\0\0\0\0\0\x07"),
        (b"\x41", b"\x56\x01"),
        (b"\x54\xff", b"\x71\xff\xff\xff\xff"),
    ];
    let map = |first: &[u8], second: &[u8]| {
        let content = [first, &[0x40], b"\xa3\x01x", &[0x40], second, &[0x40]].concat();
        let size = u8::try_from(content.len() + 1).unwrap();
        [&[0xc1, size, 6][..], &content].concat()
    };
    for (first, second) in pairs {
        assert_eq!(fault(&map(first, second)), Some(Fault::DuplicateKey), "{first:?} {second:?}");
    }
    // The same text as string and as symbol, the same number as int and as uint: not equal.
    assert_eq!(fault(&map(b"\xa3\x01k", b"\xa1\x01k")), None);
    assert_eq!(fault(&map(b"\x54\x01", b"\x52\x01")), None);
}

#[test]
fn item_43_many_keys_take_no_quadratic_time() {
    // 32,767 entries: all pairs would be half a billion comparisons.
    let entries = ELEMENTS_MAX / 2 - 1;
    let mut map = vec![0xd1];
    map.extend((entries * 6 + 4).to_be_bytes());
    map.extend((entries * 2).to_be_bytes());
    for key in 0..entries {
        map.push(0x70);
        map.extend(key.to_be_bytes());
        map.push(0x40);
    }
    assert_eq!(fault(&map), None);
}

#[test]
fn item_42_zero_width_elements_are_counted_and_never_expanded() {
    let elements: [(u8, Value<'_>); 6] = [
        (0x40, Value::Null),
        (0x41, Value::Boolean(true)),
        (0x42, Value::Boolean(false)),
        (0x43, Value::Uint(0)),
        (0x44, Value::Ulong(0)),
        (0x45, Value::List(amqp::codec::List::EMPTY)),
    ];
    for (code, value) in elements {
        let bytes = [0xf0, 0, 0, 0, 5, 0x80, 0, 0, 0, code];
        let array = Reader::new(&bytes).array().unwrap();
        assert_eq!(array.len(), 1 << 31);
        assert_eq!(array.repeated(), Some(value));
        assert_eq!(array.iter().count(), 0);
        assert!(format!("{array:?}").len() < 50);
        assert_eq!(written(&Value::Array(array)), bytes);
        // As deep as may be, a list of them and an array of them.
        let list = [&[0xc0, 11, 1][..], &bytes].concat();
        assert_eq!(fault(&list), None);
    }
}

#[test]
fn item_42_arrays_of_arrays_lists_maps_and_described_values_are_walked() {
    // Two arrays: of the ubytes 1 and 2, and of the symbol "ab".
    let bytes = b"\xe0\x0d\x02\xe0\x04\x02\x50\x01\x02\x05\x01\xa3\x02ab".to_vec();
    assert_eq!(fault(&bytes), None);
    let array = Reader::new(&bytes).array().unwrap();
    let inner: Vec<Array<'_>> = array.iter().filter_map(as_array).collect();
    assert!(inner[0].iter().eq([Value::Ubyte(1), Value::Ubyte(2)]));
    assert!(inner[1].iter().eq([Value::Symbol(Symbol::new("ab"))]));
    assert_eq!(inner[0].iter().count() + inner[1].iter().count(), 3);

    let lists = b"\xe0\x09\x02\xc0\x02\x01\x41\x03\x02\x42\x40".to_vec();
    let array = Reader::new(&lists).array().unwrap();
    assert_eq!(format!("{array:?}"), "[List([Boolean(true)]), List([Boolean(false), Null])]");
    // Written out, an element gets back the format code that it shared.
    let first = array.iter().next().unwrap();
    assert_eq!(written(&first), b"\xc0\x02\x01\x41");

    let described = b"\xe0\x06\x02\x00\x53\x24\x50\x01\x02";
    assert_eq!(fault(&described[..8]), Some(Fault::Truncated));
    let described = b"\xe0\x07\x02\x00\x53\x24\x50\x01\x02";
    let array = Reader::new(described).array().unwrap();
    assert!(array.iter().eq([Value::Ubyte(1), Value::Ubyte(2)]));
}

fn as_array(value: Value<'_>) -> Option<Array<'_>> {
    if let Value::Array(array) = value { Some(array) } else { None }
}

fn written(value: &Value<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    Writer::new(&mut bytes).value(value);
    bytes
}

#[test]
fn item_41_multiple_is_a_value_an_array_null_or_an_empty_array() {
    let read = |capabilities: &[u8]| -> Result<Vec<String>, DecodeError> {
        let fields = [b"\xa1\x01c\x40\x40\x40\x40\x40\x40", capabilities].concat();
        let size = u8::try_from(fields.len() + 1).unwrap();
        let body = [&[0x00, 0x53, 0x10, 0xc0, size, 8][..], &fields].concat();
        let (performative, _) = Performative::decode(&body)?;
        let Performative::Open(open) = performative else { panic!("an open") };
        Ok(open.offered_capabilities.iter().map(|s| s.to_string()).collect())
    };
    let none = Vec::<String>::new();
    assert_eq!(read(b"\x40"), Ok(none.clone()));
    assert_eq!(read(b"\xa3\x01a"), Ok(vec!["a".into()]));
    assert_eq!(read(b"\xb3\0\0\0\x01a"), Ok(vec!["a".into()]));
    assert_eq!(read(b"\xe0\x02\x00\xa3"), Ok(none.clone()));
    assert_eq!(read(b"\xe0\x01\x00"), Ok(none.clone()));
    assert_eq!(read(b"\xf0\0\0\0\x05\0\0\0\0\xb3"), Ok(none.clone()));
    // The constructor of an empty array does not matter.
    assert_eq!(read(b"\xe0\x02\x00\x40"), Ok(none));
    assert_eq!(read(b"\xe0\x06\x02\xa3\x01a\x01b"), Ok(vec!["a".into(), "b".into()]));
    // Other types are no symbols, not even a billion nulls.
    let place = "open.offered-capabilities: ";
    for other in [&b"\xa1\x01a"[..], b"\xe0\x04\x01\xa1\x01a", b"\xe0\x02\xff\x40", b"\x45"] {
        let error = read(other).unwrap_err();
        assert!(matches!(error.fault, Fault::UnexpectedType(_)), "{error}");
        assert!(error.to_string().starts_with(place), "{error}");
    }
}

#[test]
fn strings_and_symbols_must_be_what_they_are() {
    assert_eq!(fault(b"\xa1\x01\xff"), Some(Fault::InvalidUtf8));
    assert_eq!(fault(b"\xb1\0\0\0\x02\xc0\x80"), Some(Fault::InvalidUtf8));
    assert_eq!(fault(b"\xa3\x02\xc3\xa4"), Some(Fault::NotAscii));
    assert_eq!(fault(b"\x56\x02"), Some(Fault::InvalidBoolean(2)));
    assert_eq!(fault(b"\xe0\x04\x02\x56\x01\x02"), Some(Fault::InvalidBoolean(2)));
    // A length of 4 GiB less one, in ten bytes.
    for code in [0xb0, 0xb1, 0xb3] {
        assert_eq!(fault(&[code, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0]), Some(Fault::Truncated));
    }
}

#[test]
fn restricted_types_have_no_values_but_their_choices() {
    // attach with snd-settle-mode 3.
    let body = b"\x00\x53\x12\xc0\x09\x04\xa1\x01l\x43\x41\x50\x03\x40";
    let error = Performative::decode(&body[..13]).unwrap_err();
    assert_eq!(error.to_string(), "attach: a size reaches beyond the end at byte 5");
    let body = b"\x00\x53\x12\xc0\x08\x04\xa1\x01l\x43\x41\x50\x03";
    let error = Performative::decode(body).unwrap_err();
    let expected = "attach.snd-settle-mode: value is none of the choices of its type at byte 11";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn descriptors_are_matched_whole_and_only_where_they_belong() {
    // item 40: symbolic descriptors, in both encodings.
    let (close, _) = Performative::decode(b"\x00\xa3\x0famqp:close:list\x45").unwrap();
    assert_eq!(close, Performative::Close(Default::default()));
    let (close, _) = Performative::decode(b"\x00\xb3\0\0\0\x0famqp:close:list\x45").unwrap();
    assert_eq!(close, Performative::Close(Default::default()));
    let wrong: [&[u8]; 7] = [
        b"\x00\xa3\x0eamqp:close:lis\x45",
        b"\x00\xa3\x10amqp:close:listx\x45",
        b"\x00\xa1\x0famqp:close:list\x45",
        b"\x00\x53\x24\x45",
        b"\x00\x53\x40\x45",
        b"\x00\x80\0\0\0\x01\0\0\0\x18\x45",
        b"\x00\x52\x18\x45",
    ];
    for body in wrong {
        let fault = Performative::decode(body).unwrap_err().fault;
        assert_eq!(fault, Fault::UnexpectedDescriptor, "{body:?}");
    }
    assert_eq!(Performative::decode(b"\x45").unwrap_err().fault, Fault::UnexpectedType(0x45));
    assert_eq!(Performative::decode(b"").unwrap_err().fault, Fault::Truncated);
    // item 40: the numeric one in its long form.
    let (close, _) = Performative::decode(b"\x00\x80\0\0\0\0\0\0\0\x18\x45").unwrap();
    assert_eq!(close, Performative::Close(Default::default()));
}

#[test]
fn only_a_transfer_has_a_payload() {
    let fault = Performative::decode(b"\x00\x53\x18\x45\x00").unwrap_err().fault;
    assert_eq!(fault, Fault::TrailingBytes);
    let (_, payload) = Performative::decode(b"\x00\x53\x14\xc0\x02\x01\x43rest").unwrap();
    assert_eq!(payload, b"rest");
}

/// Performatives that use every kind of field.
fn samples() -> Vec<Vec<u8>> {
    let two = [Symbol::new("a"), Symbol::new("bc")];
    let mut properties = Vec::new();
    Writer::new(&mut properties).map_with(|map| {
        map.field(&Symbol::new("key"));
        map.field(&Value::Long(-1000));
        map.field(&Symbol::new("list"));
        map.element().list_with(|list| {
            list.field(&Value::Decimal128([7; 16]));
            list.field(&Value::Array(
                Reader::new(b"\xe0\x04\x02\x50\x01\x02").array().expect("an array"),
            ));
            list.field(&DeliveryState::Accepted);
        });
    });
    let properties = Some(Reader::new(&properties).map().expect("our own encoding"));
    let error = Error {
        condition: Symbol::new("amqp:not-found"),
        description: Some("no such queue"),
        info: properties,
    };
    let modified = Modified {
        delivery_failed: Some(true),
        undeliverable_here: Some(false),
        message_annotations: properties,
    };
    let source = Source {
        address: Some("queue"),
        filter: properties,
        default_outcome: Some(Outcome::Modified(modified)),
        outcomes: Multiple::from(&two[..]),
        ..Source::default()
    };
    let target = Target { address: Some("queue"), timeout: 300, ..Target::default() };
    let performatives = [
        Performative::Open(Open {
            container_id: "container",
            channel_max: 1000,
            idle_time_out: Some(60_000),
            offered_capabilities: Multiple::from(&two[..]),
            desired_capabilities: Multiple::from(&two[..1]),
            properties,
            ..Open::default()
        }),
        Performative::Attach(Attach {
            name: "link",
            handle: Handle(3),
            role: Role::Receiver,
            source: Some(AnySource::Source(source)),
            target: Some(AnyTarget::Target(target)),
            max_message_size: Some(1 << 40),
            ..Attach::default()
        }),
        Performative::Transfer(Transfer {
            handle: Handle(0),
            delivery_id: Some(DeliveryId(u32::MAX)),
            delivery_tag: Some(b"tag"),
            state: Some(DeliveryState::Modified(modified)),
            batchable: true,
            ..Transfer::default()
        }),
        Performative::Disposition(Disposition {
            role: Role::Receiver,
            first: DeliveryId(1),
            last: Some(DeliveryId(2)),
            settled: true,
            state: Some(DeliveryState::Rejected(Rejected { error: Some(error) })),
            batchable: false,
        }),
    ];
    let encoded = performatives.iter().map(|performative| {
        let mut bytes = Vec::new();
        performative.encode(&mut bytes);
        assert_eq!(Performative::decode(&bytes), Ok((*performative, &[][..])));
        bytes
    });
    encoded.collect()
}

#[test]
fn cut_anywhere_a_performative_is_an_error() {
    for bytes in samples() {
        for len in 0..bytes.len() {
            assert!(Performative::decode(&bytes[..len]).is_err(), "{len} of {}", bytes.len());
        }
    }
}

#[test]
fn with_any_byte_changed_a_performative_decodes_to_what_it_encodes_or_not_at_all() {
    let mut decoded = 0;
    for mut bytes in samples() {
        for index in 0..bytes.len() {
            let original = bytes[index];
            for byte in 0..=u8::MAX {
                bytes[index] = byte;
                let Ok((performative, payload)) = Performative::decode(&bytes) else { continue };
                let mut again = Vec::new();
                performative.encode(&mut again);
                again.extend(payload);
                assert_eq!(Performative::decode(&again), Ok((performative, payload)));
                decoded += 1;
            }
            bytes[index] = original;
        }
    }
    // Many changes hit a number, a string or a symbol, and are as good as the original.
    assert!(decoded > 10_000, "{decoded}");
}
