//! Where the sections of a message are, in one scan that decodes only the header.
//!
//! ```text
//!  header? delivery-annotations? message-annotations? properties? application-properties?  body  footer?
//!  0x70    0x71                  0x72                 0x73        0x74                           0x78
//!                                                                 data 0x75 .. | sequence 0x76 .. | value 0x77
//!          '- for one hop -----' '- the bare message: kept byte for byte -----------------------'
//! ```
//!
//! Invariants: the ranges are in order, disjoint, and cover the message; a section out of order or
//! repeated is a decode error [3.2]. Several data or sequence sections are one body. No body at all
//! is against the letter, but clients send it, so it is an empty range.
//!
//! The scan takes each section by its size. What is inside is checked by those who look inside, with
//! [`Sections::properties`] and its kind; a broker that only forwards never pays for it.

use std::ops::Range;

use crate::codec::{Composite, DecodeError, Fault, Map, Reader, Writer, read_code};
pub use crate::composites::{Header, Properties};
pub use crate::polymorphic::MessageId;

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
        let mut reader = Reader::new(message);
        let mut sections = Self::default();
        let mut last = None;
        while !reader.is_empty() {
            let start = reader;
            let section = Section::read_descriptor(&mut reader)?;
            if last.is_some_and(|last| !section.may_follow(last)) {
                return Err(start.fail(Fault::SectionOrder));
            }
            last = Some(section);
            if section == Section::Header {
                sections.header_fields = Header::read_list(&mut reader)?;
            } else {
                section.skip(&mut reader)?;
            }
            sections.note(section, start.position()..reader.position());
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
    /// Where they are malformed.
    pub fn message_annotations<'a>(
        &self,
        message: &'a [u8],
    ) -> Result<Option<Map<'a>>, DecodeError> {
        let range = self.message_annotations.clone();
        range.map(|at| read_section(message, at, Reader::map)).transpose()
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
    if *header != Header::default() {
        header.write_described(&mut Writer::new(out));
    }
}

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
    #[inline]
    fn read_descriptor(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let start = *reader;
        Ok(match read_code(reader, code_of)? {
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
    #[inline]
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
