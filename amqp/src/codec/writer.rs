//! Appends values to a byte vector, each in its smallest encoding.
//!
//! ```text
//!  list:  c0 __ __ | fields ..            sizes are filled in when the list ends;
//!         d0 ________ ________ | fields ..  past 255 bytes the content moves 6 bytes up
//!  a null field is held back until a later one is not null: trailing nulls are never written
//! ```
//!
//! Allocates only where the vector must grow, so a reused one costs nothing.

use super::layout::Raw;
use super::value::Symbols;
use super::{Array, Field, List, Map, Multiple, Symbol, Value, code};
use crate::definitions::Timestamp;

/// Appends values to a byte vector.
#[derive(Debug)]
pub struct Writer<'v> {
    out: &'v mut Vec<u8>,
}

/// Appends the elements of a list or map under way; its size is filled in when it ends.
#[derive(Debug)]
pub struct CompoundWriter<'v> {
    out: &'v mut Vec<u8>,
    start: usize,
    count: u32,
    /// Nulls held back since the last element.
    nulls: u32,
}

/// Format code, size and count in one byte each: what is set aside when a compound begins.
const SHORT_HEAD: usize = 3;
/// The same with size and count in four bytes each.
const LONG_HEAD: usize = 9;

impl<'v> Writer<'v> {
    /// A writer at the end of `out`.
    pub const fn new(out: &'v mut Vec<u8>) -> Self {
        Self { out }
    }

    /// Bytes that already are an encoding, or part of one.
    #[inline]
    pub fn raw(&mut self, encoded: &[u8]) {
        self.out.extend_from_slice(encoded);
    }

    /// A null.
    #[inline]
    pub fn null(&mut self) {
        self.out.push(code::NULL);
    }

    /// A boolean in one byte.
    #[inline]
    pub fn boolean(&mut self, value: bool) {
        self.out.push(if value { code::TRUE } else { code::FALSE });
    }

    /// A ubyte.
    #[inline]
    pub fn ubyte(&mut self, value: u8) {
        self.raw(&[code::UBYTE, value]);
    }

    /// A ushort.
    #[inline]
    pub fn ushort(&mut self, value: u16) {
        self.fixed(code::USHORT, value.to_be_bytes());
    }

    /// A uint in one, two or five bytes.
    #[inline]
    pub fn uint(&mut self, value: u32) {
        match u8::try_from(value) {
            Ok(0) => self.out.push(code::UINT0),
            Ok(small) => self.raw(&[code::SMALL_UINT, small]),
            Err(_) => self.fixed(code::UINT, value.to_be_bytes()),
        }
    }

    /// A ulong in one, two or nine bytes.
    #[inline]
    pub fn ulong(&mut self, value: u64) {
        match u8::try_from(value) {
            Ok(0) => self.out.push(code::ULONG0),
            Ok(small) => self.raw(&[code::SMALL_ULONG, small]),
            Err(_) => self.fixed(code::ULONG, value.to_be_bytes()),
        }
    }

    /// An int in two or five bytes.
    pub fn int(&mut self, value: i32) {
        match i8::try_from(value) {
            Ok(small) => self.fixed(code::SMALL_INT, small.to_be_bytes()),
            Err(_) => self.fixed(code::INT, value.to_be_bytes()),
        }
    }

    /// A long in two or nine bytes.
    pub fn long(&mut self, value: i64) {
        match i8::try_from(value) {
            Ok(small) => self.fixed(code::SMALL_LONG, small.to_be_bytes()),
            Err(_) => self.fixed(code::LONG, value.to_be_bytes()),
        }
    }

    /// A timestamp.
    pub fn timestamp(&mut self, value: Timestamp) {
        self.fixed(code::TIMESTAMP, value.0.to_be_bytes());
    }

    /// Binary data.
    ///
    /// # Panics
    /// As `string` and `symbol`: from 4 GiB on, which no frame can hold.
    #[inline]
    pub fn binary(&mut self, value: &[u8]) {
        self.variable(code::VBIN8, code::VBIN32, value);
    }

    /// A string.
    pub fn string(&mut self, value: &str) {
        self.variable(code::STR8, code::STR32, value.as_bytes());
    }

    /// A symbol.
    pub fn symbol(&mut self, value: Symbol<'_>) {
        self.variable(code::SYM8, code::SYM32, value.as_str().as_bytes());
    }

    /// A list as it was received.
    pub fn list(&mut self, list: &List<'_>) {
        self.view(list.raw);
    }

    /// A map as it was received.
    pub fn map(&mut self, map: &Map<'_>) {
        self.view(map.raw);
    }

    /// An array as it was received.
    pub fn array(&mut self, array: &Array<'_>) {
        self.view(array.raw);
    }

    /// None, one, or an array of symbols.
    pub fn multiple(&mut self, multiple: &Multiple<'_>) {
        match multiple.symbols {
            Symbols::Slice([]) => self.null(),
            Symbols::Slice([symbol]) => self.symbol(*symbol),
            Symbols::Slice(symbols) => self.symbols(symbols),
            Symbols::One(symbol) => self.symbol(symbol),
            Symbols::Array(array) => self.array(&array),
        }
    }

    /// A described value: write the value next.
    #[inline]
    pub fn descriptor(&mut self, descriptor: u64) {
        self.out.push(code::DESCRIBED);
        self.ulong(descriptor);
    }

    /// Any value. Views are copied as they were received.
    pub fn value(&mut self, value: &Value<'_>) {
        match *value {
            Value::Null => self.null(),
            Value::Boolean(v) => self.boolean(v),
            Value::Ubyte(v) => self.ubyte(v),
            Value::Ushort(v) => self.ushort(v),
            Value::Uint(v) => self.uint(v),
            Value::Ulong(v) => self.ulong(v),
            Value::Byte(v) => self.fixed(code::BYTE, v.to_be_bytes()),
            Value::Short(v) => self.fixed(code::SHORT, v.to_be_bytes()),
            Value::Int(v) => self.int(v),
            Value::Long(v) => self.long(v),
            Value::Float(bits) => self.fixed(code::FLOAT, bits.to_be_bytes()),
            Value::Double(bits) => self.fixed(code::DOUBLE, bits.to_be_bytes()),
            Value::Decimal32(bits) => self.fixed(code::DECIMAL32, bits),
            Value::Decimal64(bits) => self.fixed(code::DECIMAL64, bits),
            Value::Decimal128(bits) => self.fixed(code::DECIMAL128, bits),
            Value::Char(v) => self.fixed(code::CHAR, v.to_be_bytes()),
            Value::Timestamp(v) => self.timestamp(Timestamp(v)),
            Value::Uuid(bits) => self.fixed(code::UUID, bits),
            Value::Binary(v) => self.binary(v),
            Value::String(v) => self.string(v),
            Value::Symbol(v) => self.symbol(v),
            Value::List(v) => self.list(&v),
            Value::Map(v) => self.map(&v),
            Value::Array(v) => self.array(&v),
            Value::Described(v) => self.raw(v.encoded()),
        }
    }

    /// A list whose elements `write` appends.
    #[inline]
    pub fn list_with(&mut self, write: impl FnOnce(&mut CompoundWriter<'_>)) {
        let mut compound = CompoundWriter::begin(self.out);
        write(&mut compound);
        compound.finish_list();
    }

    /// A map whose keys and values `write` appends in turn.
    ///
    /// # Panics
    /// If a key is left without a value.
    pub fn map_with(&mut self, write: impl FnOnce(&mut CompoundWriter<'_>)) {
        let mut compound = CompoundWriter::begin(self.out);
        write(&mut compound);
        compound.finish_map();
    }

    fn view(&mut self, raw: Raw<'_>) {
        self.out.push(raw.code);
        self.raw(raw.data);
    }

    #[inline]
    fn fixed<const N: usize>(&mut self, code: u8, data: [u8; N]) {
        self.out.push(code);
        self.raw(&data);
    }

    #[inline]
    fn variable(&mut self, short: u8, long: u8, data: &[u8]) {
        match u8::try_from(data.len()) {
            Ok(len) => self.raw(&[short, len]),
            Err(_) => self.fixed(long, wire_size(data.len()).to_be_bytes()),
        }
        self.raw(data);
    }

    /// An array of symbols.
    fn symbols(&mut self, symbols: &[Symbol<'_>]) {
        let short = symbols.iter().all(|s| s.as_str().len() <= usize::from(u8::MAX));
        let prefix = if short { 1 } else { 4 };
        let content: usize = symbols.iter().map(|s| prefix + s.as_str().len()).sum();
        // The count and the element code are inside the size, the size is not.
        match (u8::try_from(content + 2), u8::try_from(symbols.len())) {
            (Ok(size), Ok(count)) => self.raw(&[code::ARRAY8, size, count]),
            (Ok(_) | Err(_), Ok(_) | Err(_)) => {
                self.fixed(code::ARRAY32, wire_size(content + 5).to_be_bytes());
                self.raw(&wire_size(symbols.len()).to_be_bytes());
            }
        }
        self.out.push(if short { code::SYM8 } else { code::SYM32 });
        for symbol in symbols {
            let len = wire_size(symbol.as_str().len()).to_be_bytes();
            self.raw(&len[4 - prefix..]);
            self.raw(symbol.as_str().as_bytes());
        }
    }
}

impl<'v> CompoundWriter<'v> {
    #[inline]
    fn begin(out: &'v mut Vec<u8>) -> Self {
        let start = out.len();
        out.extend_from_slice(&[0; SHORT_HEAD]);
        Self { out, start, count: 0, nulls: 0 }
    }

    /// The next element, with a writer that must append exactly one value.
    #[inline]
    pub fn element(&mut self) -> Writer<'_> {
        for _ in 0..self.nulls {
            self.out.push(code::NULL);
        }
        self.count += self.nulls + 1;
        self.nulls = 0;
        Writer::new(self.out)
    }

    /// A null element, left out if no other element follows.
    #[inline]
    pub fn null(&mut self) {
        self.nulls += 1;
    }

    /// The field `value`.
    #[inline]
    pub fn field<'a, T: Field<'a>>(&mut self, value: &T) {
        value.write(&mut self.element());
    }

    /// The field `value` or a null.
    #[inline]
    pub fn optional<'a, T: Field<'a>>(&mut self, value: Option<&T>) {
        match value {
            Some(value) => self.field(value),
            None => self.null(),
        }
    }

    #[inline]
    fn finish_list(self) {
        if self.count == 0 {
            self.out.truncate(self.start);
            self.out.push(code::LIST0);
            return;
        }
        self.finish(code::LIST8, code::LIST32);
    }

    fn finish_map(mut self) {
        if self.nulls > 0 {
            self.nulls -= 1;
            self.element().null();
        }
        assert!(self.count.is_multiple_of(2), "a map key was left without a value");
        self.finish(code::MAP8, code::MAP32);
    }

    #[inline]
    fn finish(self, short: u8, long: u8) {
        let content = self.out.len() - self.start - SHORT_HEAD;
        match (u8::try_from(content + 1), u8::try_from(self.count)) {
            (Ok(size), Ok(count)) => {
                let head = &mut self.out[self.start..self.start + SHORT_HEAD];
                head.copy_from_slice(&[short, size, count]);
            }
            (Ok(_) | Err(_), Ok(_) | Err(_)) => self.finish_long(long, content),
        }
    }

    #[cold]
    fn finish_long(self, code: u8, content: usize) {
        let end = self.out.len();
        self.out.resize(end + LONG_HEAD - SHORT_HEAD, 0);
        self.out.copy_within(self.start + SHORT_HEAD..end, self.start + LONG_HEAD);
        let head = &mut self.out[self.start..self.start + LONG_HEAD];
        head[0] = code;
        head[1..5].copy_from_slice(&wire_size(content + 4).to_be_bytes());
        head[5..9].copy_from_slice(&self.count.to_be_bytes());
    }
}

/// A length as the wire has it.
fn wire_size(len: usize) -> u32 {
    u32::try_from(len).expect("frames are far below 4 GiB")
}
