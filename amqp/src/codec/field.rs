//! Composite types: a described list whose elements are the fields in a fixed order [1.4].
//!
//! ```text
//!  0x00, descriptor (numeric or symbolic), list { field 0, field 1, .. }
//!      null, or beyond the end of the list:  mandatory -> error, default -> the default,
//!                                            optional  -> None, multiple -> empty
//!      more elements than fields:            error
//! ```
//!
//! The macro `composites!` makes a struct, its decoder and encoder, and its line in the table of
//! specifications from one declaration; `composites.rs` holds all of them.

use super::value::Symbols;
use super::{CompoundWriter, code};
use super::{DecodeError, Descriptor, Fault, Map, Multiple, Place, Reader, Symbol, Value, Writer};
use crate::definitions::{DeliveryId, Handle, Timestamp};

/// A type that a field can have.
pub trait Field<'a>: Sized {
    /// Its name in the specification.
    const SPEC: &'static str;

    /// Reads one value of this type; null is not one, except for [`Value`] and [`Multiple`].
    ///
    /// # Errors
    /// Where the bytes are not such a value.
    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError>;

    /// Reads one value of this type, or a null.
    ///
    /// # Errors
    /// Where the bytes are neither.
    #[inline]
    fn read_optional(reader: &mut Reader<'a>) -> Result<Option<Self>, DecodeError> {
        if reader.null()? { Ok(None) } else { Self::read(reader).map(Some) }
    }

    /// Appends the value.
    fn write(&self, writer: &mut Writer<'_>);
}

/// A described list with named fields.
pub trait Composite<'a>: Sized {
    /// What the specification says about it.
    const SPEC: CompositeSpec;

    /// Reads the fields, after descriptor and list header.
    ///
    /// # Errors
    /// Where a field is malformed or a mandatory one is missing.
    fn read_fields(fields: &mut Fields<'a>) -> Result<Self, DecodeError>;

    /// Appends the fields.
    fn write_fields(&self, list: &mut CompoundWriter<'_>);

    /// Reads the list after its descriptor.
    ///
    /// # Errors
    /// As [`Composite::read_fields`], or where there are more fields than the type has.
    #[inline]
    fn read_list(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let whole = const { &Place { composite: Self::SPEC.name, field: "" } };
        let mut fields = Fields::open(reader).map_err(|e| e.within(whole))?;
        let value = Self::read_fields(&mut fields)?;
        fields.finish().map_err(|e| e.within(whole))?;
        Ok(value)
    }

    /// Appends descriptor and list.
    #[inline]
    fn write_described(&self, writer: &mut Writer<'_>) {
        writer.descriptor(Self::SPEC.code);
        writer.list_with(|list| self.write_fields(list));
    }
}

/// What the specification says about a composite type.
#[derive(Clone, Copy, Debug)]
pub struct CompositeSpec {
    /// Its name, such as `open`.
    pub name: &'static str,
    /// Its symbolic descriptor, such as `amqp:open:list`.
    pub symbol: &'static str,
    /// Its numeric descriptor; the domain id is zero.
    pub code: u64,
    /// Its fields in order.
    pub fields: &'static [FieldSpec],
}

/// What the specification says about a field.
#[derive(Clone, Copy, Debug)]
pub struct FieldSpec {
    /// Its name as a Rust identifier: `_` where the specification has `-`.
    pub name: &'static str,
    /// The name of its type.
    pub type_name: &'static str,
    /// Whether it must be there, and what it is if it isn't.
    pub presence: Presence,
    /// Whether it may be an array.
    pub multiple: bool,
}

/// Whether a field must be there, and what it is if it isn't.
#[derive(Clone, Copy, Debug)]
pub enum Presence {
    /// Null is an error.
    Mandatory,
    /// Null means that there is none.
    Optional,
    /// Null means the default, which the function writes.
    Default(fn(&mut Writer<'_>)),
}

/// The fields of a composite that is being read.
#[derive(Debug)]
pub struct Fields<'a> {
    left: u32,
    reader: Reader<'a>,
}

impl<'a> Fields<'a> {
    /// Consumes the whole list from `reader`.
    #[inline(always)]
    fn open(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let body = reader.list_body()?;
        Ok(Self { left: body.count, reader: body.content })
    }

    /// The next field, or `None` if it is null or the list is at its end.
    ///
    /// # Errors
    /// Where it is not a value of its type.
    #[inline(always)]
    pub fn next<T: Field<'a>>(&mut self, place: &'static Place) -> Result<Option<T>, DecodeError> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        T::read_optional(&mut self.reader).map_err(|e| e.within(place))
    }

    /// The error of a mandatory field that is missing here.
    #[cold]
    #[must_use]
    pub fn missing(&self, place: &'static Place) -> DecodeError {
        self.reader.fail(Fault::MissingField).within(place)
    }

    #[inline]
    fn finish(self) -> Result<(), DecodeError> {
        if self.left > 0 {
            return Err(self.reader.fail(Fault::TooManyFields));
        }
        if !self.reader.is_empty() {
            return Err(self.reader.fail(Fault::SizeMismatch));
        }
        Ok(())
    }
}

macro_rules! plain_fields {
    ($($ty:ty, $spec:literal, $read:ident, |$value:ident, $writer:ident| $write:expr;)*) => { $(
        impl<'a> Field<'a> for $ty {
            const SPEC: &'static str = $spec;

            #[inline]
            fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
                reader.$read()
            }

            #[inline]
            fn write(&self, $writer: &mut Writer<'_>) {
                let $value = self;
                $write;
            }
        }
    )* };
}

/// As `plain_fields!`, for the types of the hot path: null and value by one look.
macro_rules! hot_fields {
    ($($ty:ty, $spec:literal, $wrap:expr, $read:ident, $read_optional:ident, $get:expr;)*) => { $(
        impl<'a> Field<'a> for $ty {
            const SPEC: &'static str = $spec;

            #[inline(always)]
            fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
                Ok($wrap(reader.$read()?))
            }

            #[inline(always)]
            fn read_optional(reader: &mut Reader<'a>) -> Result<Option<Self>, DecodeError> {
                Ok(reader.$read_optional()?.map($wrap))
            }

            #[inline]
            fn write(&self, writer: &mut Writer<'_>) {
                writer.$read($get(self));
            }
        }
    )* };
}

hot_fields! {
    bool, "boolean", |v| v, boolean, optional_boolean, |v: &bool| *v;
    u32, "uint", |v| v, uint, optional_uint, |v: &u32| *v;
    Handle, "handle", Handle, uint, optional_uint, |v: &Handle| v.0;
    DeliveryId, "delivery-number", DeliveryId, uint, optional_uint, |v: &DeliveryId| v.0;
}

plain_fields! {
    u8, "ubyte", ubyte, |v, w| w.ubyte(*v);
    u16, "ushort", ushort, |v, w| w.ushort(*v);
    u64, "ulong", ulong, |v, w| w.ulong(*v);
    &'a [u8], "binary", binary, |v, w| w.binary(v);
    &'a str, "string", string, |v, w| w.string(v);
    Symbol<'a>, "symbol", symbol, |v, w| w.symbol(*v);
    Map<'a>, "map", map, |v, w| w.map(v);
    Timestamp, "timestamp", timestamp, |v, w| w.timestamp(*v);
    Value<'a>, "*", value, |v, w| w.value(v);
}

impl<'a> Field<'a> for Multiple<'a> {
    const SPEC: &'static str = "symbol";

    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let start = *reader;
        let symbols = match reader.peek()? {
            code::ARRAY8 | code::ARRAY32 => {
                let array = reader.array()?;
                if !array.is_empty() && !matches!(array.element_code(), code::SYM8 | code::SYM32) {
                    return Err(start.fail(Fault::UnexpectedType(array.element_code())));
                }
                Symbols::Array(array)
            }
            code::NULL => {
                reader.null()?;
                Symbols::Slice(&[])
            }
            _ => Symbols::One(reader.symbol()?),
        };
        Ok(Self { symbols })
    }

    fn write(&self, writer: &mut Writer<'_>) {
        writer.multiple(self);
    }
}

/// The descriptor that is next, as a number: `code_of` knows the symbolic ones.
#[inline]
pub(crate) fn read_code(
    reader: &mut Reader<'_>,
    code_of: impl FnOnce(&str) -> Option<u64>,
) -> Result<u64, DecodeError> {
    let start = *reader;
    let code = match reader.descriptor()? {
        Descriptor::Code(code) => Some(code),
        Descriptor::Name(name) => code_of(name.as_str()),
        Descriptor::Reserved => None,
    };
    code.ok_or_else(|| start.fail(Fault::UnexpectedDescriptor))
}

/// Whether a field may hold a password or its like, which no log may show: what the mechanisms of
/// SASL exchange.
pub(crate) fn is_secret(code: u64, type_name: &str) -> bool {
    (0x40..=0x4f).contains(&code) && type_name == "binary"
}

/// Declares composite types; see `composites.rs`.
macro_rules! composites {
    ($(
        $(#[$doc:meta])*
        $name:ident $(<$lt:lifetime>)? = $spec:literal $code:literal {
            $( $(#[$field_doc:meta])* $field:ident : $ty:ty, $mode:ident $(($default:expr))? ; )*
        }
    )*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, PartialEq, Eq)]
            pub struct $name $(<$lt>)? {
                $( $(#[$field_doc])* pub $field: composites!(@type $mode $ty), )*
            }

            impl<'a> Composite<'a> for $name $(<$lt>)? {
                const SPEC: CompositeSpec = CompositeSpec {
                    name: $spec,
                    symbol: concat!("amqp:", $spec, ":list"),
                    code: $code,
                    fields: &[ $( FieldSpec {
                        name: stringify!($field),
                        type_name: <$ty as Field<'a>>::SPEC,
                        presence: composites!(@presence $mode $ty $(, $default)?),
                        multiple: composites!(@multiple $mode),
                    }, )* ],
                };

                #[inline]
                fn read_fields(fields: &mut Fields<'a>) -> Result<Self, DecodeError> {
                    let _ = &fields;
                    Ok(Self { $( $field: {
                        let place = const { &Place {
                            composite: $spec,
                            field: stringify!($field),
                        } };
                        composites!(@read $mode fields place $(, $default)?)
                    }, )* })
                }

                #[inline]
                fn write_fields(&self, list: &mut CompoundWriter<'_>) {
                    let _ = &list;
                    $( composites!(@write $mode list self.$field $(, $default)?); )*
                }
            }

            impl $(<$lt>)? std::fmt::Debug for $name $(<$lt>)? {
                fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    let mut shown = f.debug_struct(stringify!($name));
                    $( if is_secret($code, <$ty as Field<'_>>::SPEC) {
                        shown.field(stringify!($field), &format_args!(".."));
                    } else {
                        shown.field(stringify!($field), &self.$field);
                    } )*
                    shown.finish()
                }
            }

            impl $(<$lt>)? Default for $name $(<$lt>)? {
                /// The specification's defaults, and nothing in optional fields. The mandatory
                /// ones are blank: set them.
                fn default() -> Self {
                    Self { $( $field: composites!(@default $mode $(, $default)?), )* }
                }
            }

            impl<'a> Field<'a> for $name $(<$lt>)? {
                const SPEC: &'static str = $spec;

                fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
                    let start = *reader;
                    let spec = const { <Self as Composite<'a>>::SPEC };
                    let code = read_code(reader, |name| {
                        (name == spec.symbol).then_some(spec.code)
                    })?;
                    if code != spec.code {
                        return Err(start.fail(Fault::UnexpectedDescriptor));
                    }
                    Self::read_list(reader)
                }

                fn write(&self, writer: &mut Writer<'_>) {
                    self.write_described(writer);
                }
            }
        )*

        /// All composite types of the specification, in the order of their descriptors.
        pub const ALL: &[CompositeSpec] = &[ $( composites!(@spec $name $($lt)?), )* ];
    };

    (@spec $name:ident) => { <$name as Composite<'static>>::SPEC };
    (@spec $name:ident $lt:lifetime) => { <$name<'static> as Composite<'static>>::SPEC };

    (@type mandatory $ty:ty) => { $ty };
    (@type optional $ty:ty) => { Option<$ty> };
    (@type default $ty:ty) => { $ty };
    (@type stated $ty:ty) => { $ty };
    (@type multiple $ty:ty) => { $ty };
    (@type mandatory_multiple $ty:ty) => { $ty };

    (@multiple multiple) => { true };
    (@multiple mandatory_multiple) => { true };
    (@multiple $mode:ident) => { false };

    (@presence mandatory $ty:ty) => { Presence::Mandatory };
    (@presence mandatory_multiple $ty:ty) => { Presence::Mandatory };
    (@presence optional $ty:ty) => { Presence::Optional };
    (@presence multiple $ty:ty) => { Presence::Optional };
    (@presence default $ty:ty, $default:expr) => {
        Presence::Default(|writer| <$ty as Field<'_>>::write(&$default, writer))
    };
    (@presence stated $ty:ty, $default:expr) => {
        composites!(@presence default $ty, $default)
    };

    (@read mandatory $fields:ident $place:ident) => {
        match $fields.next($place)? {
            Some(value) => value,
            None => return Err($fields.missing($place)),
        }
    };
    (@read optional $fields:ident $place:ident) => { $fields.next($place)? };
    (@read default $fields:ident $place:ident, $default:expr) => {
        match $fields.next($place)? {
            Some(value) => value,
            None => $default,
        }
    };
    (@read stated $fields:ident $place:ident, $default:expr) => {
        composites!(@read default $fields $place, $default)
    };
    (@read multiple $fields:ident $place:ident) => {
        composites!(@read default $fields $place, Multiple::NONE)
    };
    (@read mandatory_multiple $fields:ident $place:ident) => {{
        let multiple: Multiple<'_> = composites!(@read mandatory $fields $place);
        if multiple.is_empty() {
            return Err($fields.missing($place));
        }
        multiple
    }};

    (@write mandatory $list:ident $value:expr) => { $list.field(&$value) };
    (@write mandatory_multiple $list:ident $value:expr) => { $list.field(&$value) };
    (@write stated $list:ident $value:expr, $default:expr) => { $list.field(&$value) };
    (@write optional $list:ident $value:expr) => { $list.optional($value.as_ref()) };
    (@write default $list:ident $value:expr, $default:expr) => {
        if $value == $default { $list.null() } else { $list.field(&$value) }
    };
    (@write multiple $list:ident $value:expr) => {
        if $value.is_empty() { $list.null() } else { $list.field(&$value) }
    };

    (@default mandatory) => { Default::default() };
    (@default mandatory_multiple) => { Multiple::NONE };
    (@default multiple) => { Multiple::NONE };
    (@default optional) => { None };
    (@default default, $default:expr) => { $default };
    (@default stated, $default:expr) => { $default };
}

pub(crate) use composites;
