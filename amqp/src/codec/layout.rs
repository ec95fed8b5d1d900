//! How values are laid out: widths, sizes and counts.
//!
//! ```text
//!  format code ── layout() ──▶ Fixed(width) | Variable | Compound | Array, each with its prefix
//!  Raw  { code, data }         a list, map or array as it is on the wire
//!  Body { count, content }     the same with size and count read: the content is within bounds
//! ```
//!
//! What the content holds is not known here; `check.rs` verifies it.

use super::{DecodeError, Reader, code};

/// How the data after a format code is laid out [1.2].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    Fixed(usize),
    Variable(Prefix),
    Compound(Prefix),
    Array(Prefix),
}

/// The width of the length, or of size and count each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prefix {
    Byte,
    Word,
}

/// A list, map or array: its format code and what follows. Apart, because the elements of an array
/// share one format code.
#[derive(Clone, Copy)]
pub(super) struct Raw<'a> {
    pub(super) code: u8,
    pub(super) data: &'a [u8],
}

/// The content of a list, map or array after its size and count were checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Body<'a> {
    pub(super) count: u32,
    pub(super) content: Reader<'a>,
}

impl<'a> Raw<'a> {
    /// Count and content, unverified but within bounds.
    pub(super) fn body(self) -> Result<Body<'a>, DecodeError> {
        let mut reader = Reader::new(self.data);
        match layout(self.code) {
            Some(Layout::Compound(prefix) | Layout::Array(prefix)) => reader.body(prefix),
            Some(Layout::Fixed(_) | Layout::Variable(_)) | None => {
                Ok(Body { count: 0, content: reader })
            }
        }
    }
}

/// The 40 format codes; the high half alone gives the layout.
#[inline]
pub(super) const fn layout(code: u8) -> Option<Layout> {
    Some(match code {
        code::NULL | code::TRUE | code::FALSE | code::UINT0 | code::ULONG0 | code::LIST0 => {
            Layout::Fixed(0)
        }
        code::UBYTE
        | code::BYTE
        | code::SMALL_UINT
        | code::SMALL_ULONG
        | code::SMALL_INT
        | code::SMALL_LONG
        | code::BOOLEAN => Layout::Fixed(1),
        code::USHORT | code::SHORT => Layout::Fixed(2),
        code::UINT | code::INT | code::FLOAT | code::CHAR | code::DECIMAL32 => Layout::Fixed(4),
        code::ULONG | code::LONG | code::DOUBLE | code::TIMESTAMP | code::DECIMAL64 => {
            Layout::Fixed(8)
        }
        code::DECIMAL128 | code::UUID => Layout::Fixed(16),
        code::VBIN8 | code::STR8 | code::SYM8 => Layout::Variable(Prefix::Byte),
        code::VBIN32 | code::STR32 | code::SYM32 => Layout::Variable(Prefix::Word),
        code::LIST8 | code::MAP8 => Layout::Compound(Prefix::Byte),
        code::LIST32 | code::MAP32 => Layout::Compound(Prefix::Word),
        code::ARRAY8 => Layout::Array(Prefix::Byte),
        code::ARRAY32 => Layout::Array(Prefix::Word),
        _ => return None,
    })
}
