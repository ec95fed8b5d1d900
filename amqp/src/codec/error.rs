//! What can be wrong with received bytes, and where.
//!
//! ```text
//!  DecodeError = fault, offset from the start of what was decoded, field of a composite (if known)
//!  "attach.handle is missing (at byte 14): it is mandatory"
//! ```
//!
//! Three words in size, so that returning it costs the hot path nothing.

use std::fmt;

/// Received bytes that are not what the specification says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeError {
    /// What was wrong.
    pub fault: Fault,
    /// Where, in bytes from the start of the decoded slice.
    pub at: u32,
    /// In which field, where that is known.
    pub place: Option<&'static Place>,
}

/// A field of a composite type, both as Rust identifiers (`_` where the specification has `-`).
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    /// The composite type, by its name in the specification.
    pub composite: &'static str,
    /// The field; empty for the composite as a whole.
    pub field: &'static str,
}

/// What was wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A size or width reaches beyond the end of the bytes.
    Truncated,
    /// The format code is none of those in [1.6].
    UnknownFormatCode(u8),
    /// A format code of another type than the one that belongs here.
    UnexpectedType(u8),
    /// The descriptor is not one of those that may stand here.
    UnexpectedDescriptor,
    /// A delivery state or outcome that the specification does not have. Others may define some:
    /// it is not wrong, but nobody here can read it.
    UnknownType,
    /// A boolean with a byte other than 0 and 1.
    InvalidBoolean(u8),
    /// A string that is not UTF-8.
    InvalidUtf8,
    /// A symbol with a byte above 127.
    NotAscii,
    /// The value is none of the choices of its restricted type.
    InvalidChoice,
    /// Size and count of a list, map or array disagree with its content.
    SizeMismatch,
    /// A map with a key that has no value.
    OddMap,
    /// A map with two equal keys [1.6.23].
    DuplicateKey,
    /// Annotations with a key that is neither a symbol nor a ulong [3.2.10].
    AnnotationKey,
    /// Nested deeper than [`DEPTH_MAX`](super::DEPTH_MAX).
    TooDeep,
    /// More elements than [`ELEMENTS_MAX`](super::ELEMENTS_MAX).
    TooManyElements,
    /// A mandatory field is null or beyond the end of its list.
    MissingField,
    /// The list has more fields than its type.
    TooManyFields,
    /// Bytes follow where the value should have ended.
    TrailingBytes,
    /// A message section out of order, or twice [3.2].
    SectionOrder,
}

impl DecodeError {
    /// The same error with the field it happened in, unless an inner one is already named.
    #[must_use]
    pub fn within(self, place: &'static Place) -> Self {
        Self { place: self.place.or(Some(place)), ..self }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = self.place {
            write!(f, "{place}: ")?;
        }
        write!(f, "{} at byte {}", self.fault, self.at)
    }
}

impl std::error::Error for DecodeError {}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.composite)?;
        if self.field.is_empty() {
            return Ok(());
        }
        let mut separator = '.';
        for word in self.field.split('_') {
            write!(f, "{separator}{word}")?;
            separator = '-';
        }
        Ok(())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::UnknownFormatCode(code) => return write!(f, "unknown format code {code:#04x}"),
            Self::UnexpectedType(code) => {
                return write!(f, "a value of another type (format code {code:#04x})");
            }
            Self::InvalidBoolean(byte) => return write!(f, "boolean {byte:#04x} is not 0 or 1"),
            Self::Truncated => "a size reaches beyond the end",
            Self::UnexpectedDescriptor => "unexpected descriptor",
            Self::UnknownType => "a delivery state or outcome that is not known here",
            Self::InvalidUtf8 => "string is not UTF-8",
            Self::NotAscii => "symbol is not ASCII",
            Self::InvalidChoice => "value is none of the choices of its type",
            Self::SizeMismatch => "size and count disagree with the content",
            Self::OddMap => "map with a key that has no value",
            Self::DuplicateKey => "map with two equal keys",
            Self::AnnotationKey => "annotation key is neither a symbol nor a ulong",
            Self::TooDeep => "nested too deep",
            Self::TooManyElements => "too many elements",
            Self::MissingField => "mandatory field is missing",
            Self::TooManyFields => "more fields than the type has",
            Self::TrailingBytes => "bytes after the end of the value",
            Self::SectionOrder => "message section out of order or repeated",
        };
        f.write_str(text)
    }
}
