//! Our tables of types against the XML of the OASIS standard.
//!
//! ```text
//!  testdata/amqp-1.0/*.bare.xml ── tags ── types ┐
//!                                                ├─ equal: names, descriptors, field order, types,
//!  composites::ALL, CHOICES, Condition ──────────┘         mandatory, defaults, multiple, choices
//! ```
//!
//! The reader of tags below knows only as much XML as these five files use; what it cannot read
//! makes a test fail, since both sides are compared in full.

use std::collections::BTreeMap;

use amqp::codec::{
    CompositeSpec, DecodeError, Fault, Field, FieldSpec, Presence, Reader, Symbol, Value, Writer,
};
use amqp::composites;
use amqp::definitions::{CHOICES, Condition};

const SOURCES: [&str; 5] = [
    include_str!("../testdata/amqp-1.0/types.bare.xml"),
    include_str!("../testdata/amqp-1.0/transport.bare.xml"),
    include_str!("../testdata/amqp-1.0/messaging.bare.xml"),
    include_str!("../testdata/amqp-1.0/transactions.bare.xml"),
    include_str!("../testdata/amqp-1.0/security.bare.xml"),
];

type Types = BTreeMap<&'static str, Type>;
type Attributes = BTreeMap<&'static str, &'static str>;

/// A `<type>` with the tags inside it.
#[derive(Debug, Default)]
struct Type {
    attributes: Attributes,
    descriptor: Attributes,
    fields: Vec<Attributes>,
    choices: Vec<Attributes>,
}

impl Type {
    fn is(&self, class: &str) -> bool {
        self.attributes["class"] == class
    }

    fn provides(&self, what: &str) -> bool {
        self.attributes.get("provides").is_some_and(|p| p.split(", ").any(|p| p == what))
    }
}

/// All types of the specification by name.
fn specification() -> Types {
    let mut types = BTreeMap::new();
    for source in SOURCES {
        let mut current: Option<&'static str> = None;
        for (tag, attributes) in tags(source) {
            let Some(name) = (if tag == "type" { Some(attributes["name"]) } else { current })
            else {
                continue;
            };
            let entry: &mut Type = types.entry(name).or_default();
            match tag {
                "type" => {
                    entry.attributes = attributes;
                    current = Some(name);
                }
                "descriptor" => entry.descriptor = attributes,
                "field" => entry.fields.push(attributes),
                "choice" => entry.choices.push(attributes),
                "/type" => current = None,
                "encoding" | "/amqp" | "/section" | "section" | "definition" => {}
                other => panic!("unknown tag {other}"),
            }
        }
    }
    types
}

/// The tags of a source: name and attributes.
fn tags(source: &'static str) -> Vec<(&'static str, Attributes)> {
    let body = source.split_once("-->").expect("the notice is a comment").1;
    let mut tags = Vec::new();
    for tag in body.split('<').skip(1) {
        let tag = tag.split_once('>').expect("a tag ends").0.trim_end_matches('/');
        let (name, mut rest) = tag.split_once(' ').unwrap_or((tag, ""));
        let mut attributes = Attributes::new();
        while let Some((key, after)) = rest.split_once("=\"") {
            let (value, after) = after.split_once('"').expect("an attribute ends");
            attributes.insert(key.trim(), value);
            rest = after;
        }
        tags.push((name, attributes));
    }
    tags
}

fn code(attribute: &str) -> u64 {
    let (domain, id) = attribute.split_once(':').expect("domain:id");
    let part =
        |hex: &str| u64::from_str_radix(hex.trim_start_matches("0x"), 16).expect("hexadecimal");
    part(domain) << 32 | part(id)
}

#[test]
fn the_xml_has_what_it_is_known_to_have() {
    let types = specification();
    let count = |class| types.values().filter(|t| t.is(class)).count();
    assert_eq!((count("primitive"), count("composite"), count("restricted")), (24, 33, 39));
}

#[test]
fn every_composite_type_is_in_the_table_and_no_other() {
    let types = specification();
    let mut in_xml: Vec<_> =
        types.iter().filter(|(_, t)| t.is("composite")).map(|t| *t.0).collect();
    let mut in_table: Vec<_> = composites::ALL.iter().map(|spec| spec.name).collect();
    in_xml.sort_unstable();
    in_table.sort_unstable();
    assert_eq!(in_table, in_xml);
    assert!(composites::ALL.is_sorted_by_key(|spec| spec.code), "in the order of descriptors");
}

#[test]
fn descriptors_are_those_of_the_specification() {
    let types = specification();
    for spec in composites::ALL {
        let descriptor = &types[spec.name].descriptor;
        assert_eq!(spec.symbol, descriptor["name"]);
        assert_eq!(spec.code, code(descriptor["code"]), "{}", spec.name);
        assert_eq!(composites::code_of(spec.symbol), Some(spec.code));
    }
    // The whole symbol counts, not a prefix of it.
    assert_eq!(composites::code_of("amqp:open:lis"), None);
    assert_eq!(composites::code_of("amqp:open:list2"), None);
}

#[test]
fn fields_are_those_of_the_specification() {
    let types = specification();
    for spec in composites::ALL {
        let in_xml = &types[spec.name].fields;
        let names: Vec<_> = spec.fields.iter().map(|f| f.name.replace('_', "-")).collect();
        let expected: Vec<_> = in_xml.iter().map(|f| f["name"]).collect();
        assert_eq!(names, expected, "{}", spec.name);
        for (field, xml) in spec.fields.iter().zip(in_xml) {
            check_field(&types, &format!("{}.{}", spec.name, field.name), field, xml);
        }
    }
}

fn check_field(types: &Types, place: &str, field: &FieldSpec, xml: &Attributes) {
    assert_eq!(field.multiple, xml.get("multiple") == Some(&"true"), "{place}");
    let mandatory = xml.get("mandatory") == Some(&"true");
    assert_eq!(matches!(field.presence, Presence::Mandatory), mandatory, "{place}");

    let fits = if xml["type"] == "*" {
        let required = xml.get("requires");
        field.type_name == "*"
            || types.iter().any(|(name, provider)| {
                required.is_some_and(|required| provider.provides(required))
                    && stands_for(types, name, field.type_name)
            })
    } else {
        stands_for(types, xml["type"], field.type_name)
    };
    assert!(fits, "{place} is {}, must be {}", field.type_name, xml["type"]);

    match (field.presence, xml.get("default")) {
        (Presence::Default(write), Some(default)) => {
            assert_eq!(text_of(write), wire_text(types, xml["type"], default), "{place}");
        }
        (Presence::Mandatory | Presence::Optional, None) => {}
        (presence, default) => panic!("{place}: {presence:?} against default {default:?}"),
    }
}

/// Whether the type `name` is `ours`, or is restricted from it.
fn stands_for(types: &Types, name: &str, ours: &str) -> bool {
    name == ours
        || types[name].is("restricted") && stands_for(types, types[name].attributes["source"], ours)
}

/// What a default is on the wire, in the way that the XML writes it.
#[expect(clippy::wildcard_enum_match_arm, reason = "the other types have no defaults to write")]
fn text_of(write: fn(&mut Writer<'_>)) -> String {
    let mut bytes = Vec::new();
    write(&mut Writer::new(&mut bytes));
    match Reader::new(&bytes).value().expect("our own encoding") {
        Value::Boolean(v) => v.to_string(),
        Value::Ubyte(v) => v.to_string(),
        Value::Ushort(v) => v.to_string(),
        Value::Uint(v) => v.to_string(),
        Value::Symbol(v) => v.to_string(),
        other => panic!("no default is {other:?}"),
    }
}

/// The value that a default of the XML has on the wire: it may be the name of a choice.
fn wire_text(types: &Types, type_name: &str, default: &str) -> String {
    let choice = types[type_name].choices.iter().find(|choice| choice["name"] == default);
    choice.map_or(default, |choice| choice["value"]).to_owned()
}

#[test]
fn choices_are_those_of_the_specification() {
    let types = specification();
    for choices in CHOICES {
        let in_xml: Vec<_> = types[choices.name]
            .choices
            .iter()
            .map(|c| (c["name"], c["value"].to_owned()))
            .collect();
        let ours: Vec<_> = choices.choices.iter().map(|c| (c.name, text_of(c.write))).collect();
        assert_eq!(ours, in_xml, "{}", choices.name);
    }
    // Those that are open to extension stay symbols: conditions, capabilities, distribution modes.
    let open = ["std-dist-mode", "txn-capability"];
    for (name, xml) in &types {
        let closed = xml.is("restricted")
            && !xml.choices.is_empty()
            && !xml.provides("error-condition")
            && !open.contains(name);
        assert_eq!(closed, CHOICES.iter().any(|choices| choices.name == *name), "{name}");
    }
}

#[test]
fn conditions_are_those_of_the_specification() {
    let types = specification();
    let providers = types.values().filter(|t| t.provides("error-condition"));
    let mut in_xml: Vec<_> = providers.flat_map(|t| &t.choices).map(|c| c["value"]).collect();
    let mut ours: Vec<_> = Condition::ALL.iter().map(|c| c.symbol().as_str()).collect();
    in_xml.sort_unstable();
    ours.sort_unstable();
    assert_eq!(ours, in_xml);
    for condition in Condition::ALL {
        assert_eq!(Condition::from_symbol(condition.symbol().as_str()), Some(*condition));
    }
}

#[test]
fn encodings_are_those_of_the_specification() {
    // For each format code: category and width. A described value has no encoding of its own.
    let encodings: BTreeMap<u8, (&str, usize)> = SOURCES
        .into_iter()
        .flat_map(tags)
        .filter(|(tag, _)| *tag == "encoding")
        .map(|(_, attributes)| {
            let width = attributes["width"].parse().expect("a width");
            let code = u8::from_str_radix(&attributes["code"][2..], 16).expect("a code");
            (code, (attributes["category"], width))
        })
        .collect();
    assert_eq!(encodings.len(), 39);
    for code in 1..=u8::MAX {
        // An empty value of each category; zeros suit all fixed ones.
        let mut bytes = vec![code];
        let checked = match encodings.get(&code) {
            Some(("fixed" | "variable", width)) => {
                bytes.extend(vec![0; *width]);
                bytes.len()
            }
            Some((_, width)) => {
                bytes.extend(vec![0; *width * 2]);
                bytes[*width] = u8::try_from(*width).expect("one or four");
                bytes.len()
            }
            None => {
                bytes.extend([0; 16]);
                let error = Reader::new(&bytes).check().unwrap_err();
                assert_eq!(error.fault, Fault::UnknownFormatCode(code));
                assert_eq!(Reader::new(&bytes).skip().unwrap_err().fault, error.fault);
                assert_eq!(Reader::new(&bytes).value().unwrap_err().fault, error.fault);
                continue;
            }
        };
        let mut reader = Reader::new(&bytes);
        assert_eq!(reader.check(), Ok(()), "{code:#04x}");
        assert_eq!(reader.position(), checked, "{code:#04x}");
        let mut reader = Reader::new(&bytes);
        assert_eq!(reader.skip(), Ok(()), "{code:#04x}");
        assert_eq!(reader.position(), checked, "{code:#04x}");
        // Cut anywhere, it is an error.
        for len in 0..bytes.len() {
            assert!(Reader::new(&bytes[..len]).check().is_err(), "{code:#04x} cut to {len}");
            assert!(Reader::new(&bytes[..len]).value().is_err(), "{code:#04x} cut to {len}");
            assert!(Reader::new(&bytes[..len]).skip().is_err(), "{code:#04x} cut to {len}");
        }
    }
}

/// A value of a field's type.
fn sample(types: &Types, type_name: &str) -> Value<'static> {
    match type_name {
        "boolean" => Value::Boolean(true),
        "ubyte" => Value::Ubyte(1),
        "uint" => Value::Uint(1),
        "symbol" => Value::Symbol(Symbol::new("s")),
        "string" => Value::String("s"),
        "ulong" => Value::Ulong(1),
        "binary" | "*" => Value::Binary(b"b"),
        restricted => sample(types, types[restricted].attributes["source"]),
    }
}

/// Descriptor and list of `spec`: its first fields, the optional ones null, then some nulls.
fn partial(types: &Types, spec: &CompositeSpec, fields: usize, nulls: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let writer = &mut Writer::new(&mut bytes);
    writer.descriptor(spec.code);
    writer.list_with(|list| {
        for (field, xml) in spec.fields[..fields].iter().zip(&types[spec.name].fields) {
            match field.presence {
                Presence::Mandatory => list.element().value(&sample(types, xml["type"])),
                Presence::Optional | Presence::Default(_) => list.element().null(),
            }
        }
        for _ in 0..nulls {
            list.element().null();
        }
    });
    bytes
}

#[test]
fn a_mandatory_field_is_missed_by_name_whether_null_or_cut_off() {
    let types = specification();
    let mut missed = 0;
    for spec in composites::ALL {
        for (index, field) in spec.fields.iter().enumerate() {
            if !matches!(field.presence, Presence::Mandatory) {
                continue;
            }
            let place = format!("{}.{}: mandatory", spec.name, field.name.replace('_', "-"));
            for nulls in [0, 1] {
                let bytes = partial(&types, spec, index, nulls);
                let error = decode_any(spec, &bytes).unwrap_err().to_string();
                assert!(error.starts_with(&place), "{error}, not {place}");
            }
            missed += 1;
        }
    }
    let fields = types.values().flat_map(|t| &t.fields);
    assert_eq!(missed, fields.filter(|f| f.get("mandatory") == Some(&"true")).count());
}

#[test]
fn a_list_may_end_after_its_last_mandatory_field_and_have_no_more_than_all() {
    let types = specification();
    for spec in composites::ALL {
        let mandatory = |f: &FieldSpec| matches!(f.presence, Presence::Mandatory);
        let least = spec.fields.iter().rposition(mandatory).map_or(0, |last| last + 1);
        for fields in least..=spec.fields.len() {
            let decoded = decode_any(spec, &partial(&types, spec, fields, 0));
            assert_eq!(decoded, Ok(()), "{} with {fields} fields", spec.name);
        }
        let bytes = partial(&types, spec, spec.fields.len(), 1);
        let error = decode_any(spec, &bytes).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{}: more fields", spec.name)), "{error}");
    }
}

/// Decodes `bytes` as the composite type `spec`, for its error.
fn decode_any(spec: &CompositeSpec, bytes: &[u8]) -> Result<(), DecodeError> {
    fn decode<'a, T: Field<'a>>(bytes: &'a [u8]) -> Result<(), DecodeError> {
        T::read(&mut Reader::new(bytes)).map(|_| ())
    }
    match spec.name {
        "open" => decode::<composites::Open<'_>>(bytes),
        "begin" => decode::<composites::Begin<'_>>(bytes),
        "attach" => decode::<composites::Attach<'_>>(bytes),
        "flow" => decode::<composites::Flow<'_>>(bytes),
        "transfer" => decode::<composites::Transfer<'_>>(bytes),
        "disposition" => decode::<composites::Disposition<'_>>(bytes),
        "detach" => decode::<composites::Detach<'_>>(bytes),
        "end" => decode::<composites::End<'_>>(bytes),
        "close" => decode::<composites::Close<'_>>(bytes),
        "error" => decode::<composites::Error<'_>>(bytes),
        "received" => decode::<composites::Received>(bytes),
        "accepted" => decode::<composites::Accepted>(bytes),
        "rejected" => decode::<composites::Rejected<'_>>(bytes),
        "released" => decode::<composites::Released>(bytes),
        "modified" => decode::<composites::Modified<'_>>(bytes),
        "source" => decode::<composites::Source<'_>>(bytes),
        "target" => decode::<composites::Target<'_>>(bytes),
        "delete-on-close" => decode::<composites::DeleteOnClose>(bytes),
        "delete-on-no-links" => decode::<composites::DeleteOnNoLinks>(bytes),
        "delete-on-no-messages" => decode::<composites::DeleteOnNoMessages>(bytes),
        "delete-on-no-links-or-messages" => decode::<composites::DeleteOnNoLinksOrMessages>(bytes),
        "coordinator" => decode::<composites::Coordinator<'_>>(bytes),
        "declare" => decode::<composites::Declare<'_>>(bytes),
        "discharge" => decode::<composites::Discharge<'_>>(bytes),
        "declared" => decode::<composites::Declared<'_>>(bytes),
        "transactional-state" => decode::<composites::TransactionalState<'_>>(bytes),
        "sasl-mechanisms" => decode::<composites::SaslMechanisms<'_>>(bytes),
        "sasl-init" => decode::<composites::SaslInit<'_>>(bytes),
        "sasl-challenge" => decode::<composites::SaslChallenge<'_>>(bytes),
        "sasl-response" => decode::<composites::SaslResponse<'_>>(bytes),
        "sasl-outcome" => decode::<composites::SaslOutcome<'_>>(bytes),
        "header" => decode::<composites::Header>(bytes),
        "properties" => decode::<composites::Properties<'_>>(bytes),
        other => panic!("{other} is not listed here"),
    }
}
