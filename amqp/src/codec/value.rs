//! Borrowed views of AMQP values.
//!
//! ```text
//!  Value ── scalars by copy
//!        ├─ Binary, String, Symbol      borrow their bytes
//!        ├─ List, Map, Array            format code + data, walked lazily
//!        └─ Described                   descriptor + value, walked lazily
//! ```
//!
//! Only [`Reader`] makes views, after it checked their content to the bottom; that is why walking
//! them gives values and not results. Floats, decimals, characters and timestamps are kept as their
//! bits: whatever a client put there passes through untouched.

use std::fmt;

use super::layout::{Body, Raw};
use super::{DEPTH_MAX, ELEMENTS_MAX, Reader, code};

/// Any AMQP value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is named for its AMQP type")]
pub enum Value<'a> {
    #[default]
    Null,
    Boolean(bool),
    Ubyte(u8),
    Ushort(u16),
    Uint(u32),
    Ulong(u64),
    Byte(i8),
    Short(i16),
    Int(i32),
    Long(i64),
    /// The bits of an IEEE 754 binary32.
    Float(u32),
    /// The bits of an IEEE 754 binary64.
    Double(u64),
    Decimal32([u8; 4]),
    Decimal64([u8; 8]),
    Decimal128([u8; 16]),
    /// A UTF-32 code unit, whether or not it is a Unicode scalar value.
    Char(u32),
    /// Milliseconds since the Unix epoch.
    Timestamp(i64),
    Uuid([u8; 16]),
    Binary(&'a [u8]),
    String(&'a str),
    Symbol(Symbol<'a>),
    List(List<'a>),
    Map(Map<'a>),
    Array(Array<'a>),
    Described(Described<'a>),
}

/// An ASCII string from a constrained domain [1.6.21].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Symbol<'a>(&'a str);

/// What stands before a described value and says how to read it [1.3].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descriptor<'a> {
    /// A numeric descriptor: domain id and descriptor id, 32 bits each.
    Code(u64),
    /// A symbolic descriptor.
    Name(Symbol<'a>),
    /// A value of any other type; the specification reserves these.
    Reserved,
}

/// A list [1.6.22].
#[derive(Clone, Copy)]
pub struct List<'a> {
    pub(super) raw: Raw<'a>,
}

/// A map [1.6.23].
#[derive(Clone, Copy)]
pub struct Map<'a> {
    pub(super) raw: Raw<'a>,
}

/// An array [1.6.24]: elements of one type.
#[derive(Clone, Copy)]
pub struct Array<'a> {
    pub(super) raw: Raw<'a>,
}

/// A descriptor and the value it describes.
#[derive(Clone, Copy)]
pub struct Described<'a> {
    pub(super) encoded: &'a [u8],
}

/// The symbols of a field with `multiple="true"`: none, one, or an array of them [1.4].
///
/// Null, an empty array and an absent field are the same.
#[derive(Clone, Copy)]
pub struct Multiple<'a> {
    pub(super) symbols: Symbols<'a>,
}

#[derive(Clone, Copy)]
pub(super) enum Symbols<'a> {
    /// To be written.
    Slice(&'a [Symbol<'a>]),
    /// Received.
    One(Symbol<'a>),
    /// Received; the element type was checked.
    Array(Array<'a>),
}

/// A scalar as a map key: equal for equal values, whatever their encoding. Type, bits, bytes.
pub(super) type Key<'a> = (u8, u128, &'a [u8]);

impl<'a> Value<'a> {
    /// The symbol, if it is one.
    #[must_use]
    pub const fn as_symbol(&self) -> Option<Symbol<'a>> {
        if let Self::Symbol(symbol) = self { Some(*symbol) } else { None }
    }

    /// The string, if it is one.
    #[must_use]
    pub const fn as_string(&self) -> Option<&'a str> {
        if let Self::String(string) = self { Some(*string) } else { None }
    }

    /// The value as a map key; `None` for what holds other values.
    pub(super) fn key(&self) -> Option<Key<'a>> {
        let signed = |value: i64| u128::from(value.cast_unsigned());
        Some(match *self {
            Self::Null => (code::NULL, 0, &[]),
            Self::Boolean(v) => (code::BOOLEAN, u128::from(v), &[]),
            Self::Ubyte(v) => (code::UBYTE, u128::from(v), &[]),
            Self::Ushort(v) => (code::USHORT, u128::from(v), &[]),
            Self::Uint(v) => (code::UINT, u128::from(v), &[]),
            Self::Ulong(v) => (code::ULONG, u128::from(v), &[]),
            Self::Byte(v) => (code::BYTE, signed(v.into()), &[]),
            Self::Short(v) => (code::SHORT, signed(v.into()), &[]),
            Self::Int(v) => (code::INT, signed(v.into()), &[]),
            Self::Long(v) => (code::LONG, signed(v), &[]),
            Self::Float(bits) => (code::FLOAT, u128::from(bits), &[]),
            Self::Double(bits) => (code::DOUBLE, u128::from(bits), &[]),
            Self::Decimal32(bits) => (code::DECIMAL32, u32::from_be_bytes(bits).into(), &[]),
            Self::Decimal64(bits) => (code::DECIMAL64, u64::from_be_bytes(bits).into(), &[]),
            Self::Decimal128(bits) => (code::DECIMAL128, u128::from_be_bytes(bits), &[]),
            Self::Char(v) => (code::CHAR, u128::from(v), &[]),
            Self::Timestamp(v) => (code::TIMESTAMP, signed(v), &[]),
            Self::Uuid(bits) => (code::UUID, u128::from_be_bytes(bits), &[]),
            Self::Binary(v) => (code::VBIN32, 0, v),
            Self::String(v) => (code::STR32, 0, v.as_bytes()),
            Self::Symbol(v) => (code::SYM32, 0, v.as_str().as_bytes()),
            Self::List(_) | Self::Map(_) | Self::Array(_) | Self::Described(_) => return None,
        })
    }
}

impl<'a> Symbol<'a> {
    /// A symbol from a literal.
    ///
    /// # Panics
    /// If it is not ASCII.
    #[must_use]
    pub const fn new(ascii: &'a str) -> Self {
        assert!(ascii.is_ascii(), "a symbol is ASCII");
        Self(ascii)
    }

    /// A symbol from bytes, if they are ASCII.
    #[must_use]
    pub fn from_ascii(bytes: &'a [u8]) -> Option<Self> {
        if bytes.is_ascii() { std::str::from_utf8(bytes).ok().map(Self) } else { None }
    }

    /// Its text.
    #[must_use]
    pub const fn as_str(self) -> &'a str {
        self.0
    }
}

impl<'a> List<'a> {
    /// The list without elements.
    pub const EMPTY: Self = Self { raw: Raw { code: code::LIST0, data: &[] } };

    /// The number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.raw.count()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements in order.
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        self.raw.elements()
    }
}

impl<'a> Map<'a> {
    /// The map without entries.
    pub const EMPTY: Self = Self { raw: Raw { code: code::MAP8, data: &[1, 0] } };

    /// The number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.raw.count() / 2
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The entries in their order on the wire.
    pub fn iter(&self) -> impl Iterator<Item = (Value<'a>, Value<'a>)> + use<'a> {
        let mut elements = self.raw.elements();
        std::iter::from_fn(move || Some((elements.next()?, elements.next()?)))
    }

    /// The value under the symbol `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Value<'a>> {
        let key = Value::Symbol(Symbol(key));
        self.iter().find_map(|(k, value)| (k == key).then_some(value))
    }
}

impl<'a> Array<'a> {
    /// The number of elements, however little space they take.
    #[must_use]
    pub fn len(&self) -> usize {
        self.raw.count()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements in order, without the descriptor that their constructor may carry.
    ///
    /// Elements without bytes (null, true, false, zero, the empty list) are not expanded: a few
    /// bytes would stand for billions of them. See [`Array::repeated`].
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let Parts { element, mut left, mut content } = self.parts();
        std::iter::from_fn(move || {
            if content.is_empty() || left == 0 {
                return None;
            }
            left -= 1;
            walked(content.shallow_data(element))
        })
    }

    /// The value of all elements, where they take no bytes and there is at least one.
    #[must_use]
    pub fn repeated(&self) -> Option<Value<'a>> {
        let Parts { element, left, mut content } = self.parts();
        if left == 0 || !content.is_empty() {
            return None;
        }
        walked(content.shallow_data(element))
    }

    /// The format code of the elements; null for an empty array that does not say.
    pub(super) fn element_code(&self) -> u8 {
        self.parts().element
    }

    fn parts(&self) -> Parts<'a> {
        let Body { count, mut content } = self.raw.checked_body();
        let element = if content.is_empty() {
            None
        } else {
            walked(content.element_code(DEPTH_MAX, &mut { ELEMENTS_MAX }))
        };
        Parts { element: element.unwrap_or(code::NULL), left: count, content }
    }
}

/// An array taken apart.
struct Parts<'a> {
    element: u8,
    left: u32,
    content: Reader<'a>,
}

impl<'a> Described<'a> {
    /// The descriptor.
    #[must_use]
    pub fn descriptor(&self) -> Descriptor<'a> {
        walked(Reader::new(self.encoded).descriptor()).unwrap_or(Descriptor::Reserved)
    }

    /// The value, which may be described itself.
    #[must_use]
    pub fn value(&self) -> Value<'a> {
        let mut reader = Reader::new(self.encoded);
        let value = reader.descriptor().and_then(|_| reader.shallow_value());
        walked(value).unwrap_or(Value::Null)
    }

    /// Descriptor and value as they are on the wire.
    #[must_use]
    pub const fn encoded(&self) -> &'a [u8] {
        self.encoded
    }
}

impl<'a> Multiple<'a> {
    /// No symbols.
    pub const NONE: Self = Self { symbols: Symbols::Slice(&[]) };

    /// The symbols in order.
    pub fn iter(&self) -> impl Iterator<Item = Symbol<'a>> + use<'a> {
        let (slice, one, array) = match self.symbols {
            Symbols::Slice(slice) => (slice, None, None),
            Symbols::One(symbol) => (&[][..], Some(symbol), None),
            Symbols::Array(array) => (&[][..], None, Some(array)),
        };
        let elements = array.into_iter().flat_map(|array| array.iter());
        let symbols = elements.filter_map(|value| value.as_symbol());
        slice.iter().copied().chain(one).chain(symbols)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// Whether `symbol` is among them.
    #[must_use]
    pub fn contains(&self, symbol: &str) -> bool {
        self.iter().any(|s| s.as_str() == symbol)
    }
}

impl<'a> Raw<'a> {
    fn checked_body(self) -> Body<'a> {
        walked(self.body()).unwrap_or(Body { count: 0, content: Reader::new(&[]) })
    }

    fn count(self) -> usize {
        self.checked_body().count as usize
    }

    fn elements(self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let mut content = self.checked_body().content;
        std::iter::from_fn(
            move || {
                if content.is_empty() { None } else { walked(content.shallow_value()) }
            },
        )
    }
}

/// A step over content that was checked when its view was made. A failure here would be a bug in
/// that check; on bytes that a stranger sent it must end the walk, not the process.
fn walked<T>(step: Result<T, super::DecodeError>) -> Option<T> {
    debug_assert!(step.is_ok(), "a view over unchecked content");
    step.ok()
}

impl PartialEq for List<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for List<'_> {}

impl PartialEq for Map<'_> {
    /// The same entries in the same order.
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Map<'_> {}

impl PartialEq for Array<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len()
            && self.repeated() == other.repeated()
            && self.iter().eq(other.iter())
    }
}

impl Eq for Array<'_> {}

impl PartialEq for Described<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.descriptor() == other.descriptor() && self.value() == other.value()
    }
}

impl Eq for Described<'_> {}

impl PartialEq for Multiple<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Multiple<'_> {}

impl Default for Multiple<'_> {
    fn default() -> Self {
        Self::NONE
    }
}

impl<'a> From<&'a [Symbol<'a>]> for Multiple<'a> {
    fn from(symbols: &'a [Symbol<'a>]) -> Self {
        Self { symbols: Symbols::Slice(symbols) }
    }
}

impl fmt::Debug for Symbol<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, ":{}", self.0)
    }
}

impl fmt::Display for Symbol<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl fmt::Debug for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl fmt::Debug for Map<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl fmt::Debug for Array<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(value) = self.repeated() {
            return write!(f, "[{value:?}; {}]", self.len());
        }
        f.debug_list().entries(self.iter()).finish()
    }
}

impl fmt::Debug for Described<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Described").field(&self.descriptor()).field(&self.value()).finish()
    }
}

impl fmt::Debug for Multiple<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
