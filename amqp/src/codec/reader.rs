//! A cursor over received bytes.
//!
//! ```text
//!  Reader { rest, end }    typed reads (uint, string, ..) consume one value of that type
//!     value()              consumes any value: scalars by copy, the rest as a view, fully checked
//!     skip()               consumes any value by its size; looks inside descriptors only
//!     check()              consumes any value and verifies it to the bottom
//! ```
//!
//! A read that fails leaves the cursor somewhere inside the value: throw the reader away.

use super::layout::{Body, Prefix, Raw, layout};
use super::value::{Array, Described, Descriptor, List, Map, Symbol, Value};
use super::{DEPTH_MAX, DecodeError, ELEMENTS_MAX, Fault, code};
use crate::definitions::Timestamp;

/// A cursor over received bytes. Copies are cheap and independent.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    /// Where `rest` ends in what the outermost reader began with: reading moves only one of both.
    end: usize,
}

impl<'a> Reader<'a> {
    /// A reader at the start of `bytes`.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, end: bytes.len() }
    }

    /// Bytes consumed since the outermost reader began.
    #[must_use]
    pub const fn position(&self) -> usize {
        self.end - self.rest.len()
    }

    /// What has not been consumed.
    #[must_use]
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Whether everything was consumed.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// An error here.
    #[cold]
    pub(crate) fn fail(self, fault: Fault) -> DecodeError {
        let at = u32::try_from(self.position()).unwrap_or(u32::MAX);
        DecodeError { fault, at, place: None }
    }

    /// Consumes `len` bytes.
    #[inline(always)]
    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let Some((head, rest)) = self.rest.split_at_checked(len) else {
            return Err(self.fail(Fault::Truncated));
        };
        self.rest = rest;
        Ok(head)
    }

    #[inline(always)]
    fn take_array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let Some((head, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(self.fail(Fault::Truncated));
        };
        self.rest = rest;
        Ok(*head)
    }

    #[inline(always)]
    pub(super) fn byte(&mut self) -> Result<u8, DecodeError> {
        let [byte] = self.take_array()?;
        Ok(byte)
    }

    /// The next format code, without consuming it.
    #[inline(always)]
    pub(crate) fn peek(&self) -> Result<u8, DecodeError> {
        self.rest.first().copied().ok_or_else(|| self.fail(Fault::Truncated))
    }

    /// Consumes a null, if one is next.
    ///
    /// # Errors
    /// Where nothing is left.
    #[inline(always)]
    pub fn null(&mut self) -> Result<bool, DecodeError> {
        let null = self.peek()? == code::NULL;
        if null {
            self.take(1)?;
        }
        Ok(null)
    }

    /// Consumes a numeric descriptor in its usual form, if one is next.
    #[inline(always)]
    pub(crate) fn take_small_descriptor(&mut self) -> Option<u8> {
        let [code::DESCRIBED, code::SMALL_ULONG, code, rest @ ..] = self.rest else { return None };
        self.rest = rest;
        Some(*code)
    }

    /// Consumes exactly these bytes, if they are next.
    #[inline(always)]
    pub(crate) fn take_exactly(&mut self, bytes: &[u8]) -> bool {
        let rest = self.rest.strip_prefix(bytes);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    #[inline(always)]
    pub(super) fn length(&mut self, prefix: Prefix) -> Result<u32, DecodeError> {
        Ok(match prefix {
            Prefix::Byte => u32::from(self.byte()?),
            Prefix::Word => u32::from_be_bytes(self.take_array()?),
        })
    }

    /// Consumes size, count and content of a list, map or array whose format code was consumed.
    #[inline(always)]
    pub(super) fn body(&mut self, prefix: Prefix) -> Result<Body<'a>, DecodeError> {
        let size = self.length(prefix)? as usize;
        let rest = self.take(size)?;
        let mut content = Reader { rest, end: self.position() };
        // The size covers the count; one too small for it is caught here as well.
        let count = content.length(prefix)?;
        Ok(Body { count, content })
    }

    /// Consumes a list; gives its count and its content, of which only the bounds were checked.
    #[inline(always)]
    pub(super) fn list_body(&mut self) -> Result<Body<'a>, DecodeError> {
        match self.byte()? {
            code::LIST8 => self.body(Prefix::Byte),
            code::LIST32 => self.body(Prefix::Word),
            code::LIST0 => {
                Ok(Body { count: 0, content: Reader { rest: &[], end: self.position() } })
            }
            other => Err(self.unexpected(other)),
        }
    }

    #[inline(always)]
    pub(super) fn variable(&mut self, prefix: Prefix) -> Result<&'a [u8], DecodeError> {
        let len = self.length(prefix)? as usize;
        self.take(len)
    }

    #[cold]
    pub(super) fn unexpected(self, code: u8) -> DecodeError {
        // Already past the format code: point at it.
        let mut here = self;
        here.end = here.end.saturating_sub(1);
        here.fail(if code == code::DESCRIBED || layout(code).is_some() {
            Fault::UnexpectedType(code)
        } else {
            Fault::UnknownFormatCode(code)
        })
    }
}

/// Typed reads: one value of exactly that type, in any of its encodings.
///
/// # Errors
/// All of them fail on another type, on null, and on data that is cut short or malformed.
#[expect(missing_docs, reason = "each is named for the AMQP type that it reads")]
#[expect(clippy::missing_errors_doc, reason = "said once above for all of them")]
impl<'a> Reader<'a> {
    #[inline(always)]
    pub fn boolean(&mut self) -> Result<bool, DecodeError> {
        match self.byte()? {
            code::TRUE => Ok(true),
            code::FALSE => Ok(false),
            code::BOOLEAN => self.boolean_data(),
            other => Err(self.unexpected(other)),
        }
    }

    #[inline]
    pub fn ubyte(&mut self) -> Result<u8, DecodeError> {
        match self.byte()? {
            code::UBYTE => self.byte(),
            other => Err(self.unexpected(other)),
        }
    }

    #[inline]
    pub fn ushort(&mut self) -> Result<u16, DecodeError> {
        match self.byte()? {
            code::USHORT => Ok(u16::from_be_bytes(self.take_array()?)),
            other => Err(self.unexpected(other)),
        }
    }

    #[inline(always)]
    pub fn uint(&mut self) -> Result<u32, DecodeError> {
        match self.byte()? {
            code::SMALL_UINT => Ok(u32::from(self.byte()?)),
            code::UINT => Ok(u32::from_be_bytes(self.take_array()?)),
            code::UINT0 => Ok(0),
            other => Err(self.unexpected(other)),
        }
    }

    /// A uint or null, by one look at the format code.
    #[inline(always)]
    pub(super) fn optional_uint(&mut self) -> Result<Option<u32>, DecodeError> {
        match self.byte()? {
            code::NULL => Ok(None),
            code::SMALL_UINT => Ok(Some(u32::from(self.byte()?))),
            code::UINT => Ok(Some(u32::from_be_bytes(self.take_array()?))),
            code::UINT0 => Ok(Some(0)),
            other => Err(self.unexpected(other)),
        }
    }

    /// A boolean or null, by one look at the format code.
    #[inline(always)]
    pub(super) fn optional_boolean(&mut self) -> Result<Option<bool>, DecodeError> {
        match self.byte()? {
            code::NULL => Ok(None),
            code::TRUE => Ok(Some(true)),
            code::FALSE => Ok(Some(false)),
            code::BOOLEAN => self.boolean_data().map(Some),
            other => Err(self.unexpected(other)),
        }
    }

    #[inline]
    pub fn ulong(&mut self) -> Result<u64, DecodeError> {
        match self.byte()? {
            code::SMALL_ULONG => Ok(u64::from(self.byte()?)),
            code::ULONG => Ok(u64::from_be_bytes(self.take_array()?)),
            code::ULONG0 => Ok(0),
            other => Err(self.unexpected(other)),
        }
    }

    pub fn timestamp(&mut self) -> Result<Timestamp, DecodeError> {
        match self.byte()? {
            code::TIMESTAMP => Ok(Timestamp(i64::from_be_bytes(self.take_array()?))),
            other => Err(self.unexpected(other)),
        }
    }

    pub fn uuid(&mut self) -> Result<[u8; 16], DecodeError> {
        match self.byte()? {
            code::UUID => self.take_array(),
            other => Err(self.unexpected(other)),
        }
    }

    #[inline(always)]
    pub fn binary(&mut self) -> Result<&'a [u8], DecodeError> {
        match self.byte()? {
            code::VBIN8 => self.variable(Prefix::Byte),
            code::VBIN32 => self.variable(Prefix::Word),
            other => Err(self.unexpected(other)),
        }
    }

    pub fn string(&mut self) -> Result<&'a str, DecodeError> {
        match self.byte()? {
            code::STR8 => self.string_data(Prefix::Byte),
            code::STR32 => self.string_data(Prefix::Word),
            other => Err(self.unexpected(other)),
        }
    }

    pub fn symbol(&mut self) -> Result<Symbol<'a>, DecodeError> {
        match self.byte()? {
            code::SYM8 => self.symbol_data(Prefix::Byte),
            code::SYM32 => self.symbol_data(Prefix::Word),
            other => Err(self.unexpected(other)),
        }
    }

    pub fn map(&mut self) -> Result<Map<'a>, DecodeError> {
        match self.peek()? {
            code::MAP8 | code::MAP32 => Ok(Map { raw: self.raw()? }),
            other => Err(self.unexpected_next(other)),
        }
    }

    pub fn list(&mut self) -> Result<List<'a>, DecodeError> {
        match self.peek()? {
            code::LIST0 | code::LIST8 | code::LIST32 => Ok(List { raw: self.raw()? }),
            other => Err(self.unexpected_next(other)),
        }
    }

    pub fn array(&mut self) -> Result<Array<'a>, DecodeError> {
        match self.peek()? {
            code::ARRAY8 | code::ARRAY32 => Ok(Array { raw: self.raw()? }),
            other => Err(self.unexpected_next(other)),
        }
    }

    /// A format code of 0x00 and the descriptor; the described value is next.
    #[inline]
    pub fn descriptor(&mut self) -> Result<Descriptor<'a>, DecodeError> {
        // What everybody sends, by one look.
        if let [code::DESCRIBED, code::SMALL_ULONG, code, rest @ ..] = self.rest {
            self.rest = rest;
            return Ok(Descriptor::Code(u64::from(*code)));
        }
        self.rare_descriptor()
    }

    #[inline(never)]
    fn rare_descriptor(&mut self) -> Result<Descriptor<'a>, DecodeError> {
        match self.byte()? {
            code::DESCRIBED => {}
            other => return Err(self.unexpected(other)),
        }
        match self.peek()? {
            code::ULONG0 | code::SMALL_ULONG | code::ULONG => Ok(Descriptor::Code(self.ulong()?)),
            code::SYM8 | code::SYM32 => Ok(Descriptor::Name(self.symbol()?)),
            _ => {
                self.check_at(DEPTH_MAX - 1, &mut { ELEMENTS_MAX })?;
                Ok(Descriptor::Reserved)
            }
        }
    }

    /// Any value.
    pub fn value(&mut self) -> Result<Value<'a>, DecodeError> {
        let mut lookahead = *self;
        match self.peek()? {
            code::DESCRIBED
            | code::LIST8
            | code::LIST32
            | code::MAP8
            | code::MAP32
            | code::ARRAY8
            | code::ARRAY32 => {
                self.check()?;
                lookahead.shallow_value()
            }
            _ => self.shallow_value(),
        }
    }

    /// The encoding of the next value, whatever it is, checked to the bottom.
    pub fn checked(&mut self) -> Result<&'a [u8], DecodeError> {
        let start = *self;
        self.check()?;
        Ok(start.consumed_by(self))
    }
}

/// Data whose format code was consumed.
impl<'a> Reader<'a> {
    fn unexpected_next(&self, code: u8) -> DecodeError {
        let mut past = *self;
        past.end += 1;
        past.unexpected(code)
    }

    pub(super) fn boolean_data(&mut self) -> Result<bool, DecodeError> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.fail(Fault::InvalidBoolean(other))),
        }
    }

    pub(super) fn string_data(&mut self, prefix: Prefix) -> Result<&'a str, DecodeError> {
        let bytes = self.variable(prefix)?;
        std::str::from_utf8(bytes).map_err(|_| self.fail(Fault::InvalidUtf8))
    }

    pub(super) fn symbol_data(&mut self, prefix: Prefix) -> Result<Symbol<'a>, DecodeError> {
        let bytes = self.variable(prefix)?;
        Symbol::from_ascii(bytes).ok_or_else(|| self.fail(Fault::NotAscii))
    }
}

/// Walking over what was checked before. Bounds are honoured still; the rest is not verified again.
impl<'a> Reader<'a> {
    /// Any value; lists, maps, arrays and described values are not looked into.
    pub(super) fn shallow_value(&mut self) -> Result<Value<'a>, DecodeError> {
        let start = *self;
        if self.peek()? == code::DESCRIBED {
            self.skip()?;
            return Ok(Value::Described(Described { encoded: start.consumed_by(self) }));
        }
        let code = self.byte()?;
        self.shallow_data(code)
    }

    /// The data of a value whose format code was consumed.
    pub(super) fn shallow_data(&mut self, code: u8) -> Result<Value<'a>, DecodeError> {
        Ok(match code {
            code::NULL => Value::Null,
            code::TRUE => Value::Boolean(true),
            code::FALSE => Value::Boolean(false),
            code::BOOLEAN => Value::Boolean(self.boolean_data()?),
            code::UBYTE => Value::Ubyte(self.byte()?),
            code::USHORT => Value::Ushort(u16::from_be_bytes(self.take_array()?)),
            code::UINT0 => Value::Uint(0),
            code::SMALL_UINT => Value::Uint(u32::from(self.byte()?)),
            code::UINT => Value::Uint(u32::from_be_bytes(self.take_array()?)),
            code::ULONG0 => Value::Ulong(0),
            code::SMALL_ULONG => Value::Ulong(u64::from(self.byte()?)),
            code::ULONG => Value::Ulong(u64::from_be_bytes(self.take_array()?)),
            code::BYTE => Value::Byte(i8::from_be_bytes(self.take_array()?)),
            code::SHORT => Value::Short(i16::from_be_bytes(self.take_array()?)),
            code::SMALL_INT => Value::Int(i32::from(i8::from_be_bytes(self.take_array()?))),
            code::INT => Value::Int(i32::from_be_bytes(self.take_array()?)),
            code::SMALL_LONG => Value::Long(i64::from(i8::from_be_bytes(self.take_array()?))),
            code::LONG => Value::Long(i64::from_be_bytes(self.take_array()?)),
            code::FLOAT => Value::Float(u32::from_be_bytes(self.take_array()?)),
            code::DOUBLE => Value::Double(u64::from_be_bytes(self.take_array()?)),
            code::DECIMAL32 => Value::Decimal32(self.take_array()?),
            code::DECIMAL64 => Value::Decimal64(self.take_array()?),
            code::DECIMAL128 => Value::Decimal128(self.take_array()?),
            code::CHAR => Value::Char(u32::from_be_bytes(self.take_array()?)),
            code::TIMESTAMP => Value::Timestamp(i64::from_be_bytes(self.take_array()?)),
            code::UUID => Value::Uuid(self.take_array()?),
            code::VBIN8 => Value::Binary(self.variable(Prefix::Byte)?),
            code::VBIN32 => Value::Binary(self.variable(Prefix::Word)?),
            code::STR8 => Value::String(self.string_data(Prefix::Byte)?),
            code::STR32 => Value::String(self.string_data(Prefix::Word)?),
            code::SYM8 => Value::Symbol(self.symbol_data(Prefix::Byte)?),
            code::SYM32 => Value::Symbol(self.symbol_data(Prefix::Word)?),
            code::LIST0 | code::LIST8 | code::LIST32 => {
                Value::List(List { raw: self.extent(code)? })
            }
            code::MAP8 | code::MAP32 => Value::Map(Map { raw: self.extent(code)? }),
            code::ARRAY8 | code::ARRAY32 => Value::Array(Array { raw: self.extent(code)? }),
            other => return Err(self.unexpected(other)),
        })
    }

    /// The data of a list, map or array whose format code was consumed, by its size.
    fn extent(&mut self, code: u8) -> Result<Raw<'a>, DecodeError> {
        let start = *self;
        self.skip_data(code)?;
        Ok(Raw { code, data: start.consumed_by(self) })
    }

    /// A list, map or array, verified to the bottom.
    fn raw(&mut self) -> Result<Raw<'a>, DecodeError> {
        let code = self.byte()?;
        let start = *self;
        self.check_data(code, DEPTH_MAX, &mut { ELEMENTS_MAX })?;
        Ok(Raw { code, data: start.consumed_by(self) })
    }

    /// The bytes between this reader and its later state `end`.
    fn consumed_by(&self, end: &Self) -> &'a [u8] {
        &self.rest[..self.rest.len() - end.rest.len()]
    }
}
