//! Where the sections of a message are, in one scan that decodes only the header.
//!
//! ```text
//!  0x70 header?                  ┐ for one hop
//!  0x71 delivery-annotations?    ┘
//!  0x72 message-annotations?
//!  0x73 properties?              ┐
//!  0x74 application-properties?  │ the bare message: kept byte for byte
//!  0x75 data .. | 0x76 amqp-sequence .. | 0x77 amqp-value
//!                                ┘
//!  0x78 footer?
//! ```
//!
//! Invariants: the ranges are in order, disjoint, and cover the message; a section out of order or
//! repeated is a decode error [3.2]. Several data or sequence sections are one body. No body at
//! all is against the letter, but clients send it, so it is an empty range.
//!
//! The scan takes each section by its size. What is inside is checked by those who look inside,
//! with [`Sections::properties`] and its kind; a broker that only forwards never pays for it.

use std::num::NonZeroU32;
use std::ops::Range;

mod progress;

use crate::codec::{
    Composite, DecodeError, Fault, Field, Map, Reader, Value, Writer, code, read_code,
};
pub use crate::composites::{Header, Properties};
use crate::definitions::Timestamp;
pub use crate::polymorphic::MessageId;
pub use progress::Progress;

/// The priority of a message that states none [3.2.1].
pub const PRIORITY_DEFAULT: u8 = 4;

/// Where the sections of a message are, in bytes from its start, each with its descriptor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sections {
    /// The header's fields; all absent where there is no header.
    pub header_fields: Header,
    /// The header.
    pub header: Option<Range<usize>>,
    /// Annotations for the next hop only: not sent on.
    pub delivery_annotations: Option<Range<usize>>,
    /// Annotations that travel with the message.
    pub message_annotations: Option<Range<usize>>,
    /// The immutable properties.
    pub properties: Option<Range<usize>>,
    /// The application's properties.
    pub application_properties: Option<Range<usize>>,
    /// All data sections, all sequence sections, or the one value section; may be empty.
    pub body: Range<usize>,
    /// What could only be said after the body.
    pub footer: Option<Range<usize>>,
    /// What is sent on as it is: all but header and delivery annotations.
    pub forwarded: Range<usize>,
}

impl Sections {
    /// Finds the sections of `message`.
    ///
    /// # Errors
    /// Where a section is cut short, unknown, of the wrong type, out of order or repeated, or
    /// where the header is malformed.
    pub fn scan(message: &[u8]) -> Result<Self, DecodeError> {
        Self::scan_to(message, Section::Footer)
    }

    /// Finds the sections before the properties, of a message or of as much of it as holds them.
    ///
    /// # Errors
    /// As [`scan`](Self::scan), for these sections.
    pub fn scan_annotations(message: &[u8]) -> Result<Self, DecodeError> {
        Self::scan_to(message, Section::MessageAnnotations)
    }

    /// Finds the sections before the body, of a message or of as much of it as holds them.
    ///
    /// # Errors
    /// As [`scan`](Self::scan), for these sections.
    pub fn scan_head(message: &[u8]) -> Result<Self, DecodeError> {
        Self::scan_to(message, Section::ApplicationProperties)
    }

    /// Finds the sections up to those that are the `furthest` asked for.
    fn scan_to(message: &[u8], furthest: Section) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(message);
        let mut sections = Self::default();
        let mut last = None;
        while !reader.is_empty() {
            let start = reader.position();
            let section = next_section(&mut reader, &mut last)?;
            if section > furthest {
                break;
            }
            if section == Section::Header {
                sections.header_fields = Header::read_list(&mut reader)?;
            } else {
                section.skip(&mut reader)?;
            }
            sections.note(section, start..reader.position());
        }
        Ok(sections)
    }

    /// Notes where `section` is; they come in order.
    fn note(&mut self, section: Section, range: Range<usize>) {
        if section <= Section::DeliveryAnnotations {
            self.forwarded.start = range.end;
        }
        self.forwarded.end = range.end;
        // Without a body section, the empty body stands before the footer.
        if section < Section::Data {
            self.body = range.end..range.end;
        }
        match section {
            Section::Header => self.header = Some(range),
            Section::DeliveryAnnotations => self.delivery_annotations = Some(range),
            Section::MessageAnnotations => self.message_annotations = Some(range),
            Section::Properties => self.properties = Some(range),
            Section::ApplicationProperties => self.application_properties = Some(range),
            Section::Data | Section::Sequence | Section::Value => self.body.end = range.end,
            Section::Footer => self.footer = Some(range),
        }
    }

    /// The properties of `message`, which must be the one that was scanned.
    ///
    /// # Errors
    /// Where they are malformed.
    pub fn properties<'a>(&self, message: &'a [u8]) -> Result<Option<Properties<'a>>, DecodeError> {
        self.properties
            .clone()
            .map(|at| read_section(message, at, Properties::read_list))
            .transpose()
    }

    /// The application properties of `message`, which must be the one that was scanned.
    ///
    /// # Errors
    /// Where they are malformed.
    pub fn application_properties<'a>(
        &self,
        message: &'a [u8],
    ) -> Result<Option<Map<'a>>, DecodeError> {
        let range = self.application_properties.clone();
        range.map(|at| read_section(message, at, Reader::map)).transpose()
    }

    /// The message annotations of `message`, which must be the one that was scanned.
    ///
    /// # Errors
    /// Where they are malformed, or have a key that is neither a symbol nor a ulong.
    pub fn message_annotations<'a>(
        &self,
        message: &'a [u8],
    ) -> Result<Option<Map<'a>>, DecodeError> {
        let range = self.message_annotations.clone();
        range.map(|at| read_section(message, at, read_annotations)).transpose()
    }
}

/// Annotations: a map whose keys are symbols or ulongs [3.2.10]. Which of them are reserved is the
/// business of those who make up keys: others pass.
fn read_annotations<'a>(reader: &mut Reader<'a>) -> Result<Map<'a>, DecodeError> {
    let start = *reader;
    let map = reader.map()?;
    if map.iter().all(|(key, _)| matches!(key, Value::Symbol(_) | Value::Ulong(_))) {
        Ok(map)
    } else {
        Err(start.fail(Fault::AnnotationKey))
    }
}

/// What a message asks of a broker beside being kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// The header's fields; all absent where there is no header.
    pub header: Header,
    /// Where the map of the message annotations begins, if there are any: behind its descriptor.
    annotations_at: Option<NonZeroU32>,
    /// Where the list of the properties begins, if there are any: behind its descriptor.
    properties_at: Option<NonZeroU32>,
    /// Where the map of the application's properties begins, if there are any.
    application_properties_at: Option<NonZeroU32>,
}

impl Survey {
    /// Reads what is behind the descriptor of a section.
    #[inline(always)]
    fn read(&mut self, section: Section, reader: &mut Reader<'_>) -> Result<(), DecodeError> {
        let at = || u32::try_from(reader.position()).ok().and_then(NonZeroU32::new);
        match section {
            Section::Header => self.header = read_header(reader)?,
            Section::MessageAnnotations => {
                self.annotations_at = at();
                let _checked = read_annotations(reader)?;
            }
            Section::Properties => {
                self.properties_at = at();
                Section::Properties.skip(reader)?;
            }
            Section::ApplicationProperties => {
                self.application_properties_at = at();
                Section::ApplicationProperties.skip(reader)?;
            }
            Section::DeliveryAnnotations
            | Section::Data
            | Section::Sequence
            | Section::Value
            | Section::Footer => section.skip(reader)?,
        }
        Ok(())
    }

    /// The time at which the message expires, as its properties say it, if they do [3.2.4].
    #[must_use]
    #[inline]
    pub fn absolute_expiry_time(&self, message: &[u8]) -> Option<Timestamp> {
        expiry_of(message.get(self.properties_at?.get() as usize..)?)
    }

    /// The message annotations, if there are any; they were checked.
    #[must_use]
    #[inline]
    pub fn message_annotations<'a>(&self, message: &'a [u8]) -> Option<Map<'a>> {
        let at = self.annotations_at?.get() as usize;
        Reader::new(message.get(at..)?).map().ok()
    }

    /// Where in the message the value of an application property begins, if it has that one and
    /// it is not null. Properties that cannot be walked through up to there don't have it: who only
    /// forwards has not checked them.
    #[must_use]
    #[inline]
    pub fn application_property(&self, message: &[u8], key: &str) -> Option<usize> {
        let at = self.application_properties_at?.get() as usize;
        value_of(message.get(at..)?, key).map(|value| at + value)
    }
}

/// Where the value of `key` stands in the map at the start of `rest`.
fn value_of(rest: &[u8], key: &str) -> Option<usize> {
    let value = Reader::new(rest).map_value(key).ok()??;
    value.peek().is_ok_and(|code| code != code::NULL).then_some(value.position())
}

/// The value that begins at `at`, if it is one that an id of a message can be [3.2.11 to 3.2.14].
///
/// # Errors
/// Where it is of another type, or malformed.
pub fn id_at(message: &[u8], at: usize) -> Result<MessageId<'_>, DecodeError> {
    MessageId::read(&mut Reader::new(message.get(at..).unwrap_or_default()))
}

/// The expiry that the list of properties at the start of `rest` says.
fn expiry_of(rest: &[u8]) -> Option<Timestamp> {
    const FIELD: usize = 8;
    // Most properties end before it: they are not looked through.
    let list = Reader::new(rest).list().ok().filter(|list| list.len() > FIELD)?;
    match list.iter().nth(FIELD) {
        Some(Value::Timestamp(unix_ms)) => Some(Timestamp(unix_ms)),
        Some(_) | None => None,
    }
}

/// Whether it is what most messages are: durable, without more to say, and one section of data.
/// [`check`] finds nothing else in it.
#[must_use]
#[inline(always)]
pub fn is_plain(message: &[u8]) -> bool {
    let Some((header, rest)) = message.split_first_chunk() else { return false };
    *header == DURABLE && is_one_data_section(rest)
}

/// Whether a message is one: as [`Sections::scan`] and [`Sections::message_annotations`] say, for
/// those who want to know little more.
///
/// # Errors
/// As both.
pub fn check(message: &[u8]) -> Result<Survey, DecodeError> {
    let mut survey = Survey::default();
    let mut reader = Reader::new(message);
    let mut last = reader.take_exactly(&DURABLE).then_some(Section::Header);
    if last.is_some() {
        survey.header.durable = Some(true);
    }
    while !reader.is_empty() {
        if last < Some(Section::Data) && is_one_data_section(reader.rest()) {
            return Ok(survey);
        }
        let section = next_section(&mut reader, &mut last)?;
        survey.read(section, &mut reader)?;
    }
    Ok(survey)
}

/// The end of most messages.
#[inline(always)]
fn is_one_data_section(rest: &[u8]) -> bool {
    let [code::DESCRIBED, code::SMALL_ULONG, 0x75, rest @ ..] = rest else { return false };
    match rest {
        [code::VBIN8, len, data @ ..] => usize::from(*len) == data.len(),
        [code::VBIN32, a, b, c, d, data @ ..] => {
            u32::from_be_bytes([*a, *b, *c, *d]) as usize == data.len()
        }
        [..] => false,
    }
}

/// Reads the descriptor of a section, which must be one that may follow the last.
#[inline(always)]
fn next_section(
    reader: &mut Reader<'_>,
    last: &mut Option<Section>,
) -> Result<Section, DecodeError> {
    let start = *reader;
    let section = Section::read_descriptor(reader)?;
    if last.is_some_and(|last| !section.may_follow(last)) {
        return Err(start.fail(Fault::SectionOrder));
    }
    *last = Some(section);
    Ok(section)
}

/// Reads a header's list. That of a durable message without more to say is known by sight.
#[inline]
fn read_header(reader: &mut Reader<'_>) -> Result<Header, DecodeError> {
    if reader.take_exactly(&DURABLE[3..]) {
        return Ok(Header { durable: Some(true), ..Header::default() });
    }
    Header::read_list(reader)
}

/// What is written anew when a message is sent on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The header's fields; all absent where there is no header.
    pub fields: Header,
    /// Where the bytes begin that are sent on as they are.
    pub forwarded_from: usize,
}

impl Head {
    /// Reads header and delivery annotations, and looks at nothing behind them: the message was
    /// checked when it came.
    ///
    /// # Errors
    /// Where they are malformed.
    pub fn read(message: &[u8]) -> Result<Self, DecodeError> {
        let mut head = Self::default();
        let mut reader = Reader::new(message);
        if reader.take_exactly(&[0x00, 0x53, 0x70]) {
            head.fields = read_header(&mut reader)?;
            head.forwarded_from = reader.position();
        }
        // The first may be written in another way, and delivery annotations are rare.
        while !reader.is_empty() {
            let next = Section::read_descriptor(&mut reader)?;
            if next == Section::Header && head.forwarded_from == 0 {
                head.fields = Header::read_list(&mut reader)?;
            } else if next == Section::DeliveryAnnotations {
                reader.skip_map()?;
            } else {
                break;
            }
            head.forwarded_from = reader.position();
        }
        Ok(head)
    }
}

impl Header {
    /// Whether the message must survive its broker; false where it does not say.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        self.durable.unwrap_or(false)
    }

    /// The priority, higher first; 4 where it does not say.
    #[must_use]
    pub fn priority_or_default(&self) -> u8 {
        self.priority.unwrap_or(PRIORITY_DEFAULT)
    }
}

/// Appends a header section, or nothing where no field is set.
///
/// A message is sent on as this, followed by its [`Sections::forwarded`] bytes.
pub fn write_header(header: &Header, out: &mut Vec<u8>) {
    // What a durable message without more to say has, the first time and again.
    let Header { durable, priority, ttl, first_acquirer, delivery_count } = *header;
    if (durable, priority, ttl, delivery_count) == (Some(true), None, None, None) {
        match first_acquirer {
            Some(true) => return out.extend_from_slice(&DURABLE_FIRST),
            None => return out.extend_from_slice(&DURABLE),
            Some(false) => {}
        }
    }
    if *header != Header::default() {
        header.write_described(&mut Writer::new(out));
    }
}

const DURABLE: [u8; 7] = *b"\x00\x53\x70\xc0\x02\x01\x41";
const DURABLE_FIRST: [u8; 10] = *b"\x00\x53\x70\xc0\x05\x04\x41\x40\x40\x41";

/// Decodes the section at `range`, descriptor and all.
fn read_section<'a, T>(
    message: &'a [u8],
    range: Range<usize>,
    read: impl FnOnce(&mut Reader<'a>) -> Result<T, DecodeError>,
) -> Result<T, DecodeError> {
    let mut reader = Reader::new(message.get(range).unwrap_or_default());
    reader.descriptor()?;
    read(&mut reader)
}

/// The kinds of sections, in the order in which they may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Section {
    Header,
    DeliveryAnnotations,
    MessageAnnotations,
    Properties,
    ApplicationProperties,
    Data,
    Sequence,
    Value,
    Footer,
}

impl Section {
    const FIRST_CODE: u64 = 0x70;

    /// Reads the descriptor of the section that is next, numeric or symbolic.
    #[inline(always)]
    fn read_descriptor(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let start = *reader;
        let code = match reader.take_small_descriptor() {
            Some(code) => u64::from(code),
            None => read_code(reader, code_of)?,
        };
        Ok(match code {
            0x70 => Self::Header,
            0x71 => Self::DeliveryAnnotations,
            0x72 => Self::MessageAnnotations,
            0x73 => Self::Properties,
            0x74 => Self::ApplicationProperties,
            0x75 => Self::Data,
            0x76 => Self::Sequence,
            0x77 => Self::Value,
            0x78 => Self::Footer,
            _ => return Err(start.fail(Fault::UnexpectedDescriptor)),
        })
    }

    /// Whether this section may come after `last` [3.2].
    #[inline(always)]
    fn may_follow(self, last: Self) -> bool {
        match self {
            // One body is made of one kind of section; only these two may repeat.
            Self::Data => last <= Self::Data,
            Self::Sequence => last < Self::Data || last == Self::Sequence,
            Self::Value => last < Self::Data,
            Self::Header
            | Self::DeliveryAnnotations
            | Self::MessageAnnotations
            | Self::Properties
            | Self::ApplicationProperties
            | Self::Footer => last < self,
        }
    }

    /// Consumes the section's value by its size, if it is of the section's type.
    #[inline(always)]
    fn skip(self, reader: &mut Reader<'_>) -> Result<(), DecodeError> {
        match self {
            Self::DeliveryAnnotations
            | Self::MessageAnnotations
            | Self::ApplicationProperties
            | Self::Footer => reader.skip_map(),
            Self::Header | Self::Properties | Self::Sequence => reader.skip_list(),
            Self::Data => reader.binary().map(|_| ()),
            Self::Value => reader.skip(),
        }
    }
}

/// The numeric descriptor of the section with this symbolic one.
fn code_of(symbol: &str) -> Option<u64> {
    (Section::FIRST_CODE..).zip(SYMBOLS).find_map(|(code, s)| (s == symbol).then_some(code))
}

/// The symbolic descriptors of the sections, in the order of the numeric ones.
const SYMBOLS: [&str; 9] = [
    "amqp:header:list",
    "amqp:delivery-annotations:map",
    "amqp:message-annotations:map",
    "amqp:properties:list",
    "amqp:application-properties:map",
    "amqp:data:binary",
    "amqp:amqp-sequence:list",
    "amqp:amqp-value:*",
    "amqp:footer:map",
];

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &[u8] = b"\x00\x53\x70\xc0\x04\x02\x41\x50\x07";
    const DELIVERY_ANNOTATIONS: &[u8] = b"\x00\x53\x71\xc1\x01\x00";
    const MESSAGE_ANNOTATIONS: &[u8] = b"\x00\x53\x72\xc1\x05\x02\xa3\x01k\x41";
    const PROPERTIES: &[u8] = b"\x00\x53\x73\xc0\x04\x01\xa1\x01i";
    const APPLICATION_PROPERTIES: &[u8] = b"\x00\x53\x74\xc1\x01\x00";
    const DATA: &[u8] = b"\x00\x53\x75\xa0\x02hi";
    const SEQUENCE: &[u8] = b"\x00\x53\x76\x45";
    const VALUE: &[u8] = b"\x00\x53\x77\x40";
    const FOOTER: &[u8] = b"\x00\x53\x78\xc1\x01\x00";

    const ALL: [&[u8]; 7] = [
        HEADER,
        DELIVERY_ANNOTATIONS,
        MESSAGE_ANNOTATIONS,
        PROPERTIES,
        APPLICATION_PROPERTIES,
        DATA,
        FOOTER,
    ];

    /// The two short readers against the long one, on messages of every kind of damage.
    #[test]
    fn the_short_readers_agree_with_the_scan() {
        let mut state = 5u64;
        let mut random = move |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as usize % below
        };
        /// Data in the longer form [1.6.19], none at all, and more than its length says.
        const DATAS: [&[u8]; 3] = [
            b"\x00\x53\x75\xb0\0\0\0\x02hi",
            b"\x00\x53\x75\xa0\0",
            b"\x00\x53\x75\xb0\0\0\0\x01hi",
        ];
        let kinds = [&ALL[..], &[SEQUENCE, VALUE, HEADER, DATA, &DURABLE], &DATAS].concat();
        let (mut good, mut bad, mut plain, mut long) = (0, 0, 0, 0);
        for _ in 0..100_000 {
            let mut message: Vec<u8> = if random(2) == 0 {
                ALL.iter().filter(|_| random(2) == 0).copied().collect::<Vec<_>>().concat()
            } else {
                (0..random(5)).map(|_| kinds[random(kinds.len())]).collect::<Vec<_>>().concat()
            };
            if random(3) == 0 && !message.is_empty() {
                let at = random(message.len());
                message[at] = [0, 0x40, 0x45, 0x53, 0x70, 0x71, 0x72, 0x80, 0xa3][random(9)];
            }
            let scanned = Sections::scan(&message)
                .and_then(|found| found.message_annotations(&message).map(|_| found));
            let survey = check(&message);
            assert_eq!(survey.is_ok(), scanned.is_ok(), "{message:x?}");
            if is_plain(&message) {
                let header = Header { durable: Some(true), ..Header::default() };
                assert_eq!(survey, Ok(Survey { header, ..Survey::default() }), "{message:x?}");
                plain += 1;
                long += usize::from(message.ends_with(DATAS[0]));
            }
            if let (Ok(survey), Ok(found)) = (survey, &scanned) {
                assert_eq!(survey.header, found.header_fields, "{message:x?}");
                let annotations = found.message_annotations(&message).expect("it was scanned");
                let surveyed = survey.message_annotations(&message);
                assert_eq!(surveyed.map(|map| map.len()), annotations.map(|map| map.len()));
            }
            match scanned {
                Ok(found) => {
                    good += 1;
                    let head = Head::read(&message).expect("all of it is sound");
                    let forwarded = &message[head.forwarded_from..];
                    assert_eq!(head.fields, found.header_fields);
                    assert_eq!(forwarded, &message[found.forwarded], "{message:x?}");
                }
                Err(_) => bad += 1,
            }
        }
        assert!(good > 20_000 && bad > 20_000, "{good} {bad}");
        assert!(plain > 50 && long > 20, "{plain} {long}");
    }

    #[test]
    fn the_usual_headers_are_written_as_the_general_writer_does() {
        for first_acquirer in [None, Some(false), Some(true)] {
            for durable in [None, Some(false), Some(true)] {
                for delivery_count in [None, Some(1)] {
                    let header =
                        Header { durable, first_acquirer, delivery_count, ..Header::default() };
                    let (mut short, mut general) = (Vec::new(), Vec::new());
                    write_header(&header, &mut short);
                    if header != Header::default() {
                        header.write_described(&mut Writer::new(&mut general));
                    }
                    assert_eq!(short, general);
                }
            }
        }
    }

    #[test]
    fn the_expiry_is_found_wherever_the_properties_are() {
        let properties = |absolute_expiry_time| {
            let mut out = Vec::new();
            let properties =
                Properties { subject: Some("s"), absolute_expiry_time, ..Properties::default() };
            properties.write_described(&mut Writer::new(&mut out));
            out
        };
        for expiry in [None, Some(Timestamp(0)), Some(Timestamp(-7)), Some(Timestamp(i64::MAX))] {
            for before in [&[][..], HEADER, MESSAGE_ANNOTATIONS] {
                let message = [before, &properties(expiry), DATA].concat();
                let survey = check(&message).unwrap();
                assert_eq!(survey.absolute_expiry_time(&message), expiry);
            }
        }
        for without in [DATA, PROPERTIES, HEADER] {
            assert_eq!(check(without).unwrap().absolute_expiry_time(without), None);
        }
    }

    fn scan(sections: &[&[u8]]) -> Result<Sections, Fault> {
        Sections::scan(&sections.concat()).map_err(|error| error.fault)
    }

    #[test]
    fn every_subset_of_sections_in_order_is_a_message() {
        for subset in 0..1u32 << ALL.len() {
            let chosen = |index: usize| subset >> index & 1 == 1;
            let parts: Vec<_> = (0..ALL.len()).filter(|i| chosen(*i)).map(|i| ALL[i]).collect();
            let message = parts.concat();
            let sections = Sections::scan(&message).unwrap();
            let found = [
                sections.header.clone(),
                sections.delivery_annotations.clone(),
                sections.message_annotations.clone(),
                sections.properties.clone(),
                sections.application_properties.clone(),
                Some(sections.body.clone()).filter(|body| !body.is_empty()),
                sections.footer.clone(),
            ];
            for (index, range) in found.into_iter().enumerate() {
                let expected = chosen(index).then_some(ALL[index]);
                assert_eq!(range.map(|range| &message[range]), expected, "{subset:#b}");
            }
            let forwarded: Vec<_> = (2..ALL.len()).filter(|i| chosen(*i)).collect();
            let forwarded: Vec<u8> = forwarded.into_iter().flat_map(|i| ALL[i]).copied().collect();
            assert_eq!(message[sections.forwarded.clone()], forwarded);
            // An empty body stands where a body would.
            let before = sections.footer.map_or(message.len(), |footer| footer.start);
            assert_eq!(sections.body.end, before);
        }
    }

    #[test]
    fn item_38_sections_out_of_order_or_repeated_are_refused() {
        let kinds = [
            HEADER,
            DELIVERY_ANNOTATIONS,
            MESSAGE_ANNOTATIONS,
            PROPERTIES,
            APPLICATION_PROPERTIES,
            DATA,
            SEQUENCE,
            VALUE,
            FOOTER,
        ];
        for (first, earlier) in kinds.iter().enumerate() {
            for (second, later) in kinds.iter().enumerate() {
                let bodies = 5..8;
                let legal = match (bodies.contains(&first), bodies.contains(&second)) {
                    (true, true) => first == second && first != 7,
                    (_, _) => first < second,
                };
                let scanned = scan(&[earlier, later]).map(|_| ());
                let expected = if legal { Ok(()) } else { Err(Fault::SectionOrder) };
                assert_eq!(scanned, expected, "{first} then {second}");
            }
        }
        // The error says where.
        let error = Sections::scan(&[VALUE, HEADER].concat()).unwrap_err();
        assert_eq!(error.at, 4);
    }

    #[test]
    fn item_38_several_data_or_sequence_sections_are_one_body() {
        for section in [DATA, SEQUENCE] {
            let sections = scan(&[PROPERTIES, section, section, section, FOOTER]).unwrap();
            let start = PROPERTIES.len();
            assert_eq!(sections.body, start..start + 3 * section.len());
        }
    }

    #[test]
    fn item_38_no_body_and_no_message_at_all_are_tolerated() {
        assert!(scan(&[PROPERTIES]).unwrap().body.is_empty());
        let nothing = scan(&[]).unwrap();
        assert_eq!(nothing, Sections::default());
    }

    #[test]
    fn item_38_a_new_header_leaves_every_other_byte_alone() {
        // Sections in encodings that we would never write.
        let properties = b"\x00\xa3\x14amqp:properties:list\xd0\0\0\0\x09\0\0\0\x01\xb1\0\0\0\0";
        let value = b"\x00\x80\0\0\0\0\0\0\0\x77\xf0\0\0\0\x05\x80\0\0\0\x40";
        let bare = [&properties[..], value].concat();
        let message = [HEADER, DELIVERY_ANNOTATIONS, MESSAGE_ANNOTATIONS, &bare].concat();
        let sections = Sections::scan(&message).unwrap();
        assert_eq!(
            sections.properties(&message).unwrap().unwrap().message_id,
            Some(MessageId::String(""))
        );

        let header = Header {
            delivery_count: Some(3),
            first_acquirer: Some(false),
            ..sections.header_fields
        };
        let mut sent = Vec::new();
        write_header(&header, &mut sent);
        sent.extend(&message[sections.forwarded.clone()]);
        let again = Sections::scan(&sent).unwrap();
        assert_eq!(again.header_fields, header);
        assert!(again.header_fields.is_durable());
        assert_eq!(again.header_fields.priority_or_default(), 7);
        assert_eq!(again.delivery_annotations, None);
        assert_eq!(sent[again.forwarded], [MESSAGE_ANNOTATIONS, &bare].concat());
    }

    #[test]
    fn a_header_without_fields_is_not_written() {
        let mut out = Vec::new();
        write_header(&Header::default(), &mut out);
        assert_eq!(out, b"");
        assert_eq!(Header::default().priority_or_default(), PRIORITY_DEFAULT);
        assert!(!Header::default().is_durable());
    }

    #[test]
    fn the_scan_takes_sections_by_size_and_the_look_inside_checks_them() {
        // Application properties that hold nonsense: forwarded, but not looked into.
        let message = b"\x00\x53\x74\xc1\x03\x02\xff\xff\x00\x53\x77\x40";
        let sections = Sections::scan(message).unwrap();
        let error = sections.application_properties(message).unwrap_err();
        assert_eq!(error.fault, Fault::UnknownFormatCode(0xff));
        assert_eq!(sections.message_annotations(message), Ok(None));
    }

    #[test]
    fn the_value_of_an_application_property_is_found_wherever_it_stands() {
        let found = |map: &[u8]| {
            let message = [HEADER, &b"\x00\x53\x74"[..], map, DATA].concat();
            let at = check(&message).unwrap().application_property(&message, "id")?;
            Some(id_at(&message, at).map(|id| format!("{id:?}")).map_err(|error| error.fault))
        };
        let is = |text: &str| Some(Ok(text.to_owned()));
        assert_eq!(found(b"\xc1\x08\x02\xa1\x02id\xa1\x01a"), is("String(\"a\")"));
        // Behind others, under a long key, in a long map; a symbol is another key.
        let long = b"\xd1\0\0\0\x16\0\0\0\x06\xa3\x02id\x40\xa1\x01x\x45\xb1\0\0\0\x02id\x53\x07";
        assert_eq!(found(long), is("Ulong(7)"));
        assert_eq!(found(b"\xc1\x01\x00"), None);
        assert_eq!(found(b"\xc1\x06\x02\xa1\x02ix\x41"), None);
        assert_eq!(found(b"\xc1\x06\x02\xa1\x02id\x40"), None);
        // What cannot be walked through has it only before the place where that ends.
        assert_eq!(found(b"\xc1\x03\x02\xff\xff"), None);
        assert_eq!(found(b"\xc1\x09\x06\xa1\x02id\xa1\x01a\xff"), is("String(\"a\")"));
        // An odd element at the end is no key.
        assert_eq!(found(b"\xc1\x05\x01\xa1\x02id"), None);
        assert_eq!(found(b"\xc1\x06\x02\xa1\x02id\x41"), Some(Err(Fault::UnexpectedType(0x41))));
        // A value that would go on behind the map.
        assert_eq!(found(b"\xc1\x07\x02\xa1\x02id\xa1\x02"), None);
        let plain = [HEADER, DATA].concat();
        assert_eq!(check(&plain).unwrap().application_property(&plain, "id"), None);
    }

    #[test]
    fn a_section_is_of_its_own_type() {
        let wrong: [&[u8]; 8] = [
            b"\x00\x53\x70\xc1\x01\x00",
            b"\x00\x53\x71\x45",
            b"\x00\x53\x72\x40",
            b"\x00\x53\x73\xc1\x01\x00",
            b"\x00\x53\x74\xc0\x01\x00",
            b"\x00\x53\x75\xa1\x01x",
            b"\x00\x53\x76\xc1\x01\x00",
            b"\x00\x53\x78\x45",
        ];
        for section in wrong {
            assert!(matches!(scan(&[section]), Err(Fault::UnexpectedType(_))), "{section:?}");
        }
        for unknown in [&b"\x00\x53\x79\x45"[..], b"\x00\x53\x24\x45", b"\x00\xa3\x01x\x45"] {
            assert_eq!(scan(&[unknown]), Err(Fault::UnexpectedDescriptor));
        }
        assert!(scan(&[b"\x45"]).is_err());
    }

    #[test]
    fn item_45_annotation_keys_are_symbols_or_ulongs() {
        let annotations = |key: &[u8]| {
            let entry = [key, b"\x41"].concat();
            let size = entry.len() as u8 + 1;
            let message = [&b"\x00\x53\x72\xc1"[..], &[size, 2], &entry].concat();
            let sections = Sections::scan(&message).unwrap();
            sections
                .message_annotations(&message)
                .map(|map| map.unwrap().len())
                .map_err(|e| e.fault)
        };
        for key in [&b"\xa3\x07x-opt-a"[..], b"\xa3\x01r", b"\xb3\0\0\0\x01r", b"\x44", b"\x53\x09"]
        {
            assert_eq!(annotations(key), Ok(1), "{key:?}");
        }
        for key in
            [&b"\xa1\x07x-opt-a"[..], b"\xa0\x01r", b"\x43", b"\x40", b"\x45", b"\x00\x44\x44"]
        {
            assert_eq!(annotations(key), Err(Fault::AnnotationKey), "{key:?}");
        }
    }

    #[test]
    fn cut_anywhere_but_between_sections_a_message_is_an_error() {
        let message = ALL.concat();
        let ends: Vec<usize> = (0..=ALL.len()).map(|n| ALL[..n].concat().len()).collect();
        for len in 0..message.len() {
            assert_eq!(Sections::scan(&message[..len]).is_ok(), ends.contains(&len), "{len}");
        }
    }
}
