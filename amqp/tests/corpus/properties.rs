//! What must hold for any bytes: the fuzzers' questions, asked of the corpora in every test run.
//!
//! ```text
//!  frame:  bytes ── frames ── bodies ──▶ performative ── written ──▶ the same performative
//!  codec:  bytes ── value ── walked to the bottom, written ──▶ the same value
//!          bytes ── message ── sections in order, forwarded ──▶ the same sections
//!                     │ by the reader of all, the one of the head, the check, and in parts: of
//!                     └ a broker's four ways to look at a message none finds what others do not
//! ```
//!
//! Besides the assertions below: nothing panics, overflows or takes memory by a count.

use amqp::codec::{Reader, Value, Writer};
use amqp::frame::{self, FrameKind, ProtocolId};
use amqp::message::{self, Head, Header, Progress, Sections, Survey};
use amqp::performative::Performative;
use amqp::sasl::SaslBody;

const MAX_FRAME_SIZE: u32 = 1 << 16;

/// Frames after frames, as a connection would take them.
pub(crate) fn frame(bytes: &[u8]) {
    let _ = ProtocolId::parse(bytes);
    let mut rest = bytes;
    loop {
        let parsed = frame::parse(rest, MAX_FRAME_SIZE);
        let judged = if let Ok(Some((_, consumed))) = parsed { consumed } else { rest.len() };
        // A shorter prefix says the same, or that it is not complete. One test in the middle will
        // do: the unit tests cut at every byte.
        let earlier = frame::parse(&rest[..judged / 2], MAX_FRAME_SIZE);
        assert!(earlier == Ok(None) || earlier.is_err() && earlier == parsed);
        let Ok(Some((frame, consumed))) = parsed else { return };
        assert!(consumed >= frame::HEADER_LEN + frame.body.len());
        match frame.kind {
            FrameKind::Amqp => performative(frame.channel, frame.body),
            FrameKind::Sasl => sasl(frame.body),
        }
        rest = &rest[consumed..];
    }
}

fn performative(channel: u16, body: &[u8]) {
    let Ok((decoded, payload)) = Performative::decode(body) else { return };
    let mut out = Vec::new();
    frame::write(&mut out, channel, &decoded);
    let (frame, consumed) = frame::parse(&out, u32::MAX).expect("ours").expect("whole");
    assert_eq!((consumed, frame.channel), (out.len(), channel));
    assert_eq!(Performative::decode(frame.body), Ok((decoded, &[][..])));
    // Ours is the smallest encoding that we know of, but for the values that are kept as they are
    // and the settle modes that are always stated: two bytes each, and what they make of the list.
    assert!(frame.body.len() + payload.len() <= body.len() + 16, "{decoded:?}");
    assert!(format!("{decoded:?}").len() > 3);
}

fn sasl(body: &[u8]) {
    let Ok(decoded) = SaslBody::decode(body) else { return };
    let mut out = Vec::new();
    decoded.encode(&mut out);
    assert_eq!(SaslBody::decode(&out), Ok(decoded));
}

/// Any value, and any message.
pub(crate) fn codec(bytes: &[u8]) {
    value(bytes);
    message(bytes);
}

fn value(bytes: &[u8]) {
    let mut checked = Reader::new(bytes);
    let mut skipped = Reader::new(bytes);
    let mut read = Reader::new(bytes);
    let verdict = checked.check();
    let skip = skipped.skip();
    let value = read.value();
    assert_eq!(verdict.err(), value.err());
    let Ok(value) = value else { return };
    assert_eq!(skip, Ok(()));
    assert_eq!(checked.position(), skipped.position());
    assert_eq!(checked.position(), read.position());

    assert!(nodes(&value) <= bytes.len(), "walking makes something of nothing");
    let mut written = Vec::new();
    Writer::new(&mut written).value(&value);
    assert!(written.len() <= read.position());
    assert_eq!(Reader::new(&written).value(), Ok(value));
    let mut again = Vec::new();
    Writer::new(&mut again).value(&value);
    assert_eq!(again, written);
}

/// The values in `value`, itself among them.
#[expect(clippy::wildcard_enum_match_arm, reason = "all others hold no values")]
fn nodes(value: &Value<'_>) -> usize {
    1 + match value {
        Value::List(list) => {
            assert_eq!(list.iter().count(), list.len());
            list.iter().map(|value| nodes(&value)).sum()
        }
        Value::Map(map) => {
            assert_eq!(map.iter().count(), map.len());
            map.iter().map(|(key, value)| nodes(&key) + nodes(&value)).sum()
        }
        Value::Array(array) => {
            let expanded = array.repeated().is_none();
            assert_eq!(array.iter().count(), if expanded { array.len() } else { 0 });
            array.iter().map(|value| nodes(&value)).sum()
        }
        Value::Described(described) => {
            let _ = described.descriptor();
            nodes(&described.value())
        }
        _ => 0,
    }
}

fn message(bytes: &[u8]) {
    let survey = message::check(bytes);
    in_parts(bytes, survey);
    if message::is_plain(bytes) {
        let header = Header { durable: Some(true), ..Header::default() };
        assert_eq!(survey.map(|survey| survey.header), Ok(header));
    }
    let _ = message::id_at(bytes, bytes.len() / 2);
    let scanned = Sections::scan(bytes);
    let annotated = |found: &Sections| found.message_annotations(bytes).is_ok();
    assert_eq!(survey.is_ok(), scanned.as_ref().is_ok_and(annotated));
    let Ok(sections) = scanned else { return };
    let head = Head::read(bytes).expect("all of it is sound");
    assert_eq!(head.fields, sections.header_fields);
    assert_eq!(bytes[head.forwarded_from..], bytes[sections.forwarded.clone()]);
    if let Ok(survey) = survey {
        surveyed(bytes, &sections, &survey);
    }
    let ranges = [
        sections.header.clone(),
        sections.delivery_annotations.clone(),
        sections.message_annotations.clone(),
        sections.properties.clone(),
        sections.application_properties.clone(),
        Some(sections.body.clone()),
        sections.footer.clone(),
    ];
    let mut at = 0;
    for range in ranges.into_iter().flatten() {
        assert_eq!(range.start, at, "no gap and no overlap");
        at = range.end;
    }
    assert_eq!(at, bytes.len());

    let mut sent = Vec::new();
    message::write_header(&sections.header_fields, &mut sent);
    sent.extend_from_slice(&bytes[sections.forwarded.clone()]);
    let again = Sections::scan(&sent).expect("what was scanned before");
    assert_eq!(again.header_fields, sections.header_fields);
    assert_eq!(sent[again.forwarded], bytes[sections.forwarded]);
}

/// What a check finds in a message is what those find who read all of it.
fn surveyed(bytes: &[u8], sections: &Sections, survey: &Survey) {
    assert_eq!(survey.header, sections.header_fields);
    assert_eq!(Ok(survey.message_annotations(bytes)), sections.message_annotations(bytes));
    if let Ok(properties) = sections.properties(bytes) {
        let expiry = properties.and_then(|properties| properties.absolute_expiry_time);
        assert_eq!(survey.absolute_expiry_time(bytes), expiry);
    }
    let Ok(Some(map)) = sections.application_properties(bytes) else { return };
    for (key, value) in map.iter() {
        let Value::String(key) = key else { continue };
        let at = survey.application_property(bytes, key);
        assert_eq!(at.is_none(), value == Value::Null, "{key}");
        if let Some(at) = at {
            assert_eq!(Reader::new(&bytes[at..]).value(), Ok(value));
            let _ = message::id_at(bytes, at);
        }
    }
}

/// Wherever a message is cut, its parts together are what the whole is. Its last two bytes say
/// where.
fn in_parts(bytes: &[u8], whole: Result<Survey, amqp::codec::DecodeError>) {
    let [.., one, other] = bytes else { return };
    let place = |byte: u8| usize::from(byte) * bytes.len() / 256;
    let (first, second) = (place(*one.min(other)), place(*one.max(other)));
    let Ok((survey, mut progress)) = Progress::begin(&bytes[..first]) else { return };
    let parts = [&bytes[first..second], &bytes[second..]];
    let gone_on = parts.into_iter().try_for_each(|part| progress.go_on(part));
    match gone_on.and_then(|()| progress.end()) {
        Ok(()) => assert_eq!(whole, Ok(survey)),
        // The descriptor of a value may be as long as it likes, but not across two parts.
        Err(_) => assert!(whole.is_err() || bytes.len() > 512),
    }
}
