//! The AMQP 1.0 type system on bytes: borrowed reading, appending writing, no allocation.
//!
//! ```text
//!  value       = constructor, data                         [1.2]
//!  constructor = format code | 0x00, descriptor value, constructor
//!
//!  code  0x4_   0x5_ 0x6_ 0x7_ 0x8_ 0x9_   0xa_     0xb_      0xc_         0xd_         0xe_ 0xf_
//!  data  none   1    2    4    8    16 B   len8 ..  len32 ..  size8 n8 ..  size32 n32   array:
//!        fixed width                       variable           compound                  size n ..
//! ```
//!
//! Invariants:
//! * Every length, size and count from the wire is compared with the bytes that are left before it
//!   is used; nothing is ever reserved by a count.
//! * Nesting is bounded by [`DEPTH_MAX`], the elements of one value by [`ELEMENTS_MAX`]; array
//!   elements without bytes are counted but never expanded.
//! * A view ([`List`], [`Map`], [`Array`], [`Described`]) exists only over content that was checked
//!   to the bottom, so walking it cannot fail; it copies to the wire byte for byte.
//!
//! On failure a [`DecodeError`] says what was wrong, in which field, at which offset. It is always
//! the sender's fault; the connection answers it with `amqp:decode-error`.

mod check;
mod error;
mod field;
mod layout;
mod reader;
mod value;
mod writer;

pub use error::{DecodeError, Fault, Place};
pub use field::{Composite, CompositeSpec, Field, FieldSpec, Fields, Presence};
pub(crate) use field::{composites, is_secret, read_code};
pub use reader::Reader;
pub use value::{Array, Described, Descriptor, List, Map, Multiple, Symbol, Value};
pub use writer::{CompoundWriter, Writer};

/// How deep lists, maps, arrays and descriptors may nest in one value.
///
/// Measured: other decoders overflow a stack of 2 MiB at an `open` of 27 KiB.
pub const DEPTH_MAX: u32 = 32;

/// How many elements one value may hold in all its levels together.
///
/// Array elements of a fixed width are not counted: they are checked at once.
pub const ELEMENTS_MAX: u32 = 65_536;

/// The format codes of [1.6], under their names in the specification.
pub(crate) mod code {
    pub(crate) const DESCRIBED: u8 = 0x00;
    pub(crate) const NULL: u8 = 0x40;
    pub(crate) const TRUE: u8 = 0x41;
    pub(crate) const FALSE: u8 = 0x42;
    pub(crate) const UINT0: u8 = 0x43;
    pub(crate) const ULONG0: u8 = 0x44;
    pub(crate) const LIST0: u8 = 0x45;
    pub(crate) const UBYTE: u8 = 0x50;
    pub(crate) const BYTE: u8 = 0x51;
    pub(crate) const SMALL_UINT: u8 = 0x52;
    pub(crate) const SMALL_ULONG: u8 = 0x53;
    pub(crate) const SMALL_INT: u8 = 0x54;
    pub(crate) const SMALL_LONG: u8 = 0x55;
    pub(crate) const BOOLEAN: u8 = 0x56;
    pub(crate) const USHORT: u8 = 0x60;
    pub(crate) const SHORT: u8 = 0x61;
    pub(crate) const UINT: u8 = 0x70;
    pub(crate) const INT: u8 = 0x71;
    pub(crate) const FLOAT: u8 = 0x72;
    pub(crate) const CHAR: u8 = 0x73;
    pub(crate) const DECIMAL32: u8 = 0x74;
    pub(crate) const ULONG: u8 = 0x80;
    pub(crate) const LONG: u8 = 0x81;
    pub(crate) const DOUBLE: u8 = 0x82;
    pub(crate) const TIMESTAMP: u8 = 0x83;
    pub(crate) const DECIMAL64: u8 = 0x84;
    pub(crate) const DECIMAL128: u8 = 0x94;
    pub(crate) const UUID: u8 = 0x98;
    pub(crate) const VBIN8: u8 = 0xa0;
    pub(crate) const STR8: u8 = 0xa1;
    pub(crate) const SYM8: u8 = 0xa3;
    pub(crate) const VBIN32: u8 = 0xb0;
    pub(crate) const STR32: u8 = 0xb1;
    pub(crate) const SYM32: u8 = 0xb3;
    pub(crate) const LIST8: u8 = 0xc0;
    pub(crate) const MAP8: u8 = 0xc1;
    pub(crate) const LIST32: u8 = 0xd0;
    pub(crate) const MAP32: u8 = 0xd1;
    pub(crate) const ARRAY8: u8 = 0xe0;
    pub(crate) const ARRAY32: u8 = 0xf0;
}
