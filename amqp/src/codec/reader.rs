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

/// How the data after a format code is laid out [1.2].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    Fixed(usize),
    Variable(Prefix),
    Compound(Prefix),
    Array(Prefix),
}

/// The width of the length, or of size and count each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Prefix {
    Byte,
    Word,
}

/// A list, map or array: its format code and what follows. Apart, because the elements of an array
/// share one format code.
#[derive(Clone, Copy)]
pub(crate) struct Raw<'a> {
    pub(crate) code: u8,
    pub(crate) data: &'a [u8],
}

/// The content of a list, map or array after its size and count were checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Body<'a> {
    pub(crate) count: u32,
    pub(crate) content: Reader<'a>,
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
    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
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
    pub(crate) fn byte(&mut self) -> Result<u8, DecodeError> {
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

    #[inline(always)]
    fn length(&mut self, prefix: Prefix) -> Result<u32, DecodeError> {
        Ok(match prefix {
            Prefix::Byte => u32::from(self.byte()?),
            Prefix::Word => u32::from_be_bytes(self.take_array()?),
        })
    }

    /// Consumes size, count and content of a list, map or array whose format code was consumed.
    #[inline(always)]
    fn body(&mut self, prefix: Prefix) -> Result<Body<'a>, DecodeError> {
        let size = self.length(prefix)? as usize;
        let rest = self.take(size)?;
        let mut content = Reader { rest, end: self.position() };
        // The size covers the count; one too small for it is caught here as well.
        let count = content.length(prefix)?;
        Ok(Body { count, content })
    }

    /// Consumes a list; gives its count and its content, of which only the bounds were checked.
    #[inline(always)]
    pub(crate) fn list_body(&mut self) -> Result<Body<'a>, DecodeError> {
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
    fn variable(&mut self, prefix: Prefix) -> Result<&'a [u8], DecodeError> {
        let len = self.length(prefix)? as usize;
        self.take(len)
    }

    #[cold]
    fn unexpected(self, code: u8) -> DecodeError {
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
    pub(crate) fn optional_uint(&mut self) -> Result<Option<u32>, DecodeError> {
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
    pub(crate) fn optional_boolean(&mut self) -> Result<Option<bool>, DecodeError> {
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

/// Passing over values.
impl<'a> Reader<'a> {
    /// Consumes the next value by its size, in constant time for anything without a descriptor.
    ///
    /// # Errors
    /// Where the value is cut short, its format code unknown or its descriptors too deep. What is
    /// inside lists, maps and arrays is not looked at.
    #[inline]
    pub fn skip(&mut self) -> Result<(), DecodeError> {
        self.skip_at(DEPTH_MAX)
    }

    fn skip_at(&mut self, depth_left: u32) -> Result<(), DecodeError> {
        let code = self.byte()?;
        if code == code::DESCRIBED {
            let depth_left = depth_left.checked_sub(1).ok_or_else(|| self.fail(Fault::TooDeep))?;
            self.skip_at(depth_left)?;
            return self.skip_at(depth_left);
        }
        self.skip_data(code)
    }

    fn skip_data(&mut self, code: u8) -> Result<(), DecodeError> {
        let len = match layout(code) {
            Some(Layout::Fixed(width)) => width,
            Some(Layout::Variable(prefix) | Layout::Compound(prefix) | Layout::Array(prefix)) => {
                self.length(prefix)? as usize
            }
            None => return Err(self.unexpected(code)),
        };
        self.take(len).map(|_| ())
    }

    /// Consumes a list by its size.
    ///
    /// # Errors
    /// As [`Reader::skip`], and on any other type.
    #[inline]
    pub fn skip_list(&mut self) -> Result<(), DecodeError> {
        self.list_body().map(|_| ())
    }

    /// Consumes a map by its size.
    ///
    /// # Errors
    /// As [`Reader::skip`], and on any other type.
    #[inline]
    pub fn skip_map(&mut self) -> Result<(), DecodeError> {
        match self.byte()? {
            code::MAP8 => self.body(Prefix::Byte).map(|_| ()),
            code::MAP32 => self.body(Prefix::Word).map(|_| ()),
            other => Err(self.unexpected(other)),
        }
    }

    /// Consumes the next value and verifies it to the bottom, in linear time.
    ///
    /// # Errors
    /// Where anything inside is malformed, or beyond [`DEPTH_MAX`] or [`ELEMENTS_MAX`].
    pub fn check(&mut self) -> Result<(), DecodeError> {
        self.check_at(DEPTH_MAX, &mut { ELEMENTS_MAX })
    }

    fn check_at(&mut self, depth_left: u32, elements_left: &mut u32) -> Result<(), DecodeError> {
        let code = self.byte()?;
        if code == code::DESCRIBED {
            let depth_left = self.deeper(depth_left)?;
            self.check_at(depth_left, elements_left)?;
            return self.check_at(depth_left, elements_left);
        }
        self.check_data(code, depth_left, elements_left)
    }

    fn check_data(
        &mut self,
        code: u8,
        depth_left: u32,
        elements_left: &mut u32,
    ) -> Result<(), DecodeError> {
        match layout(code) {
            Some(Layout::Fixed(_)) if code == code::BOOLEAN => self.boolean_data().map(|_| ()),
            Some(Layout::Fixed(width)) => self.take(width).map(|_| ()),
            Some(Layout::Variable(prefix)) => match code {
                code::STR8 | code::STR32 => self.string_data(prefix).map(|_| ()),
                code::SYM8 | code::SYM32 => self.symbol_data(prefix).map(|_| ()),
                _ => self.variable(prefix).map(|_| ()),
            },
            Some(Layout::Compound(prefix)) => {
                let depth_left = self.deeper(depth_left)?;
                let is_map = matches!(code, code::MAP8 | code::MAP32);
                self.body(prefix)?.check_compound(is_map, depth_left, elements_left)
            }
            Some(Layout::Array(prefix)) => {
                let depth_left = self.deeper(depth_left)?;
                self.body(prefix)?.check_array(depth_left, elements_left)
            }
            None => Err(self.unexpected(code)),
        }
    }

    fn deeper(&self, depth_left: u32) -> Result<u32, DecodeError> {
        depth_left.checked_sub(1).ok_or_else(|| self.fail(Fault::TooDeep))
    }

    fn unexpected_next(&self, code: u8) -> DecodeError {
        let mut past = *self;
        past.end += 1;
        past.unexpected(code)
    }

    fn boolean_data(&mut self) -> Result<bool, DecodeError> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.fail(Fault::InvalidBoolean(other))),
        }
    }

    fn string_data(&mut self, prefix: Prefix) -> Result<&'a str, DecodeError> {
        let bytes = self.variable(prefix)?;
        std::str::from_utf8(bytes).map_err(|_| self.fail(Fault::InvalidUtf8))
    }

    fn symbol_data(&mut self, prefix: Prefix) -> Result<Symbol<'a>, DecodeError> {
        let bytes = self.variable(prefix)?;
        Symbol::from_ascii(bytes).ok_or_else(|| self.fail(Fault::NotAscii))
    }
}

impl Body<'_> {
    /// Checks the elements of a list or map.
    fn check_compound(
        mut self,
        is_map: bool,
        depth_left: u32,
        elements_left: &mut u32,
    ) -> Result<(), DecodeError> {
        if is_map && self.count % 2 == 1 {
            return Err(self.content.fail(Fault::OddMap));
        }
        // Every element has a format code at least.
        if self.count as usize > self.content.rest.len() {
            return Err(self.content.fail(Fault::SizeMismatch));
        }
        self.charge(elements_left)?;
        let unread = self;
        for _ in 0..self.count {
            self.content.check_at(depth_left, elements_left)?;
        }
        self.finish()?;
        if is_map && self.count > 2 { unread.check_keys() } else { Ok(()) }
    }

    /// Checks that no two keys of a map are equal; its content was checked before. The one place
    /// here that allocates: comparing in place would cost quadratic time.
    fn check_keys(mut self) -> Result<(), DecodeError> {
        let mut keys = Vec::new();
        for _ in 0..self.count / 2 {
            keys.extend(self.content.shallow_value()?.key());
            self.content.skip()?;
        }
        keys.sort_unstable();
        if keys.is_sorted_by(|a, b| a < b) {
            Ok(())
        } else {
            Err(self.content.fail(Fault::DuplicateKey))
        }
    }

    /// Checks constructor and elements of an array [1.6.24].
    fn check_array(mut self, depth_left: u32, elements_left: &mut u32) -> Result<(), DecodeError> {
        // Some encoders leave out the constructor of an empty array.
        if self.count == 0 && self.content.is_empty() {
            return Ok(());
        }
        let code = self.content.element_code(depth_left, elements_left)?;
        match layout(code) {
            None => return Err(self.content.unexpected(code)),
            // Zero-width elements may come in any number: they are never expanded.
            Some(Layout::Fixed(width)) if code != code::BOOLEAN => {
                let len = (self.count as usize).checked_mul(width);
                let len = len.ok_or_else(|| self.content.fail(Fault::Truncated))?;
                self.content.take(len)?;
            }
            Some(
                Layout::Fixed(_) | Layout::Variable(_) | Layout::Compound(_) | Layout::Array(_),
            ) => {
                if self.count as usize > self.content.rest.len() {
                    return Err(self.content.fail(Fault::SizeMismatch));
                }
                self.charge(elements_left)?;
                for _ in 0..self.count {
                    self.content.check_data(code, depth_left, elements_left)?;
                }
            }
        }
        self.finish()
    }

    fn charge(&self, elements_left: &mut u32) -> Result<(), DecodeError> {
        let left = elements_left.checked_sub(self.count);
        *elements_left = left.ok_or_else(|| self.content.fail(Fault::TooManyElements))?;
        Ok(())
    }

    fn finish(&self) -> Result<(), DecodeError> {
        if self.content.is_empty() { Ok(()) } else { Err(self.content.fail(Fault::SizeMismatch)) }
    }
}

/// Walking over what was checked before. Bounds are honoured still; the rest is not verified again.
impl<'a> Reader<'a> {
    /// Consumes an array's constructor; gives the format code of its elements.
    pub(crate) fn element_code(
        &mut self,
        mut depth_left: u32,
        elements_left: &mut u32,
    ) -> Result<u8, DecodeError> {
        loop {
            let code = self.byte()?;
            if code != code::DESCRIBED {
                return Ok(code);
            }
            depth_left = self.deeper(depth_left)?;
            self.check_at(depth_left, elements_left)?;
        }
    }

    /// Any value; lists, maps, arrays and described values are not looked into.
    pub(crate) fn shallow_value(&mut self) -> Result<Value<'a>, DecodeError> {
        let start = *self;
        if self.peek()? == code::DESCRIBED {
            self.skip()?;
            return Ok(Value::Described(Described { encoded: start.consumed_by(self) }));
        }
        let code = self.byte()?;
        self.shallow_data(code)
    }

    /// The data of a value whose format code was consumed.
    pub(crate) fn shallow_data(&mut self, code: u8) -> Result<Value<'a>, DecodeError> {
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

impl<'a> Raw<'a> {
    /// Count and content, unverified but within bounds.
    pub(crate) fn body(self) -> Result<Body<'a>, DecodeError> {
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
const fn layout(code: u8) -> Option<Layout> {
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
