//! Bounded reading and plain writing of little-endian fields: under every format of this crate.
//!
//! ```text
//!   Reader  u8 u16 u32 u64 uuid bytes(length, bounded) list(count, bounded)  end: nothing is left
//!   Writer  the same, the other way round
//! ```
//! Invariants: no read goes beyond the bytes; nothing is allocated for a length or a count before
//! it was held against its bound and against what is there; what reads to the end is written again
//! to the same bytes. What does not decode is an error, never a panic.

use std::fmt;

/// Why bytes are not what they should be. Each names the field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireError {
    /// The bytes end inside this field.
    Short(&'static str),
    /// This field is longer, or has more elements, than is allowed.
    TooLong(&'static str),
    /// This field has a value that this version does not know.
    Unknown(&'static str, u64),
    /// This field contradicts another.
    Contradiction(&'static str),
    /// Bytes follow the last field.
    Trailing,
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short(field) => write!(f, "the bytes end inside {field}"),
            Self::TooLong(field) => write!(f, "{field} is longer than is allowed"),
            Self::Unknown(field, value) => {
                write!(f, "{field} is {value}, which this version does not know")
            }
            Self::Contradiction(field) => write!(f, "{field} contradicts what stands before it"),
            Self::Trailing => f.write_str("bytes follow the last field"),
        }
    }
}

impl std::error::Error for WireError {}

/// Takes fields from the front of some bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn take(&mut self, len: usize, field: &'static str) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(WireError::Short(field))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], WireError> {
        let taken = self.take(N, field)?;
        Ok(taken.try_into().expect("as many as were asked for"))
    }

    pub(crate) fn u8(&mut self, field: &'static str) -> Result<u8, WireError> {
        Ok(self.array::<1>(field)?[0])
    }

    pub(crate) fn bool(&mut self, field: &'static str) -> Result<bool, WireError> {
        match self.u8(field)? {
            0 => Ok(false),
            1 => Ok(true),
            other @ 2.. => Err(WireError::Unknown(field, other.into())),
        }
    }

    pub(crate) fn u16(&mut self, field: &'static str) -> Result<u16, WireError> {
        Ok(u16::from_le_bytes(self.array(field)?))
    }

    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, WireError> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    pub(crate) fn u64(&mut self, field: &'static str) -> Result<u64, WireError> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    pub(crate) fn uuid(&mut self, field: &'static str) -> Result<[u8; 16], WireError> {
        self.array(field)
    }

    /// A length (32 bits), then so many bytes, at most `max`.
    pub(crate) fn bytes(&mut self, max: usize, field: &'static str) -> Result<&'a [u8], WireError> {
        let len = self.u32(field)? as usize;
        if len > max {
            return Err(WireError::TooLong(field));
        }
        self.take(len, field)
    }

    /// A count (16 bits), at most `max`; what follows is read by `one`, as often.
    pub(crate) fn list<T>(
        &mut self,
        max: usize,
        field: &'static str,
        mut one: impl FnMut(&mut Self) -> Result<T, WireError>,
    ) -> Result<Vec<T>, WireError> {
        let count = usize::from(self.u16(field)?);
        if count > max {
            return Err(WireError::TooLong(field));
        }
        // Grows with what is really there, not with what the count claims.
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(one(self)?);
        }
        Ok(items)
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) const fn end(self) -> Result<(), WireError> {
        if self.rest.is_empty() { Ok(()) } else { Err(WireError::Trailing) }
    }
}

/// Puts fields one after the other.
#[derive(Clone, Debug, Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(crate) const fn new() -> Self {
        Self { bytes: Vec::new() }
    }

    pub(crate) fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    pub(crate) fn bool(&mut self, value: bool) {
        self.u8(value.into());
    }

    pub(crate) fn u16(&mut self, value: u16) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn uuid(&mut self, value: &[u8; 16]) {
        self.bytes.extend_from_slice(value);
    }

    /// # Panics
    /// If they are longer than 32 bits can say: every caller has a bound far below.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.u32(u32::try_from(bytes.len()).expect("bounded by the caller"));
        self.bytes.extend_from_slice(bytes);
    }

    /// # Panics
    /// If there are more than 16 bits can say: every caller has a bound below.
    pub(crate) fn list<T>(&mut self, items: &[T], mut one: impl FnMut(&mut Self, &T)) {
        self.u16(u16::try_from(items.len()).expect("bounded by the caller"));
        for item in items {
            one(self, item);
        }
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_that_lies_costs_nothing() {
        let bytes = u16::MAX.to_le_bytes();
        let read = Reader::new(&bytes).list(usize::from(u16::MAX), "items", |r| r.u64("item"));
        assert_eq!(read, Err(WireError::Short("item")));
        let read = Reader::new(&bytes).list(10, "items", |r| r.u64("item"));
        assert_eq!(read, Err(WireError::TooLong("items")));
    }

    #[test]
    fn a_length_that_lies_is_refused() {
        let bytes = 9_u32.to_le_bytes();
        assert_eq!(Reader::new(&bytes).bytes(8, "text"), Err(WireError::TooLong("text")));
        assert_eq!(Reader::new(&bytes).bytes(9, "text"), Err(WireError::Short("text")));
    }

    #[test]
    fn what_is_written_is_read_again() {
        let mut writer = Writer::new();
        writer.bool(true);
        writer.u16(7);
        writer.bytes(b"abc");
        writer.list(&[1_u64, 2], |w, item| w.u64(*item));
        let bytes = writer.finish();
        let mut reader = Reader::new(&bytes);
        assert_eq!(reader.bool("flag"), Ok(true));
        assert_eq!(reader.u16("number"), Ok(7));
        assert_eq!(reader.bytes(3, "text"), Ok(&b"abc"[..]));
        assert_eq!(reader.list(2, "list", |r| r.u64("item")), Ok(vec![1, 2]));
        assert_eq!(reader.end(), Ok(()));
    }
}
