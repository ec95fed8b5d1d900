//! Fields of type `*`: any of the types that provide what the field requires.
//!
//! ```text
//!  requires="delivery-state"   received accepted rejected released modified declared
//!                              transactional-state
//!  requires="outcome"          accepted rejected released modified declared
//!  requires="source"           source, others as they are
//!  requires="target"           target coordinator, others as they are
//!  requires="message-id"       ulong uuid binary string
//! ```
//!
//! The specification lets others define more types that provide a state, an outcome, a source or a
//! target. Such a terminus is kept as it is, so that its link can be refused; such a state or
//! outcome is [`Fault::UnknownType`], which costs the session and not the connection. Anything else
//! is a plain decode error.

use crate::codec::{
    Composite, DecodeError, Described, Fault, Field, Reader, Value, Writer, code, read_code,
};
use crate::composites::{
    Accepted, Coordinator, Declared, Modified, Received, Rejected, Released, Source, Target,
    TransactionalState,
};

/// The state of a delivery at one end [3.4].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is documented as a composite type")]
pub enum DeliveryState<'a> {
    Received(Received),
    Accepted,
    Rejected(Rejected<'a>),
    Released,
    Modified(Modified<'a>),
    Declared(Declared<'a>),
    TransactionalState(TransactionalState<'a>),
}

/// The state of a delivery that is done with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is documented as a composite type")]
pub enum Outcome<'a> {
    Accepted,
    Rejected(Rejected<'a>),
    Released,
    Modified(Modified<'a>),
    Declared(Declared<'a>),
}

/// What the source of an attach can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnySource<'a> {
    /// A node.
    Source(Source<'a>),
    /// A source that the specification does not have.
    Other(Described<'a>),
}

/// What the target of an attach can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnyTarget<'a> {
    /// A node.
    Target(Target<'a>),
    /// The coordinator of transactions.
    Coordinator(Coordinator<'a>),
    /// A target that the specification does not have.
    Other(Described<'a>),
}

/// What the id of a message can be [3.2.11] to [3.2.14].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is named for its AMQP type")]
pub enum MessageId<'a> {
    Ulong(u64),
    Uuid([u8; 16]),
    Binary(&'a [u8]),
    String(&'a str),
}

impl<'a> DeliveryState<'a> {
    /// The outcome that this state is, if it is one. That of a transactional state counts only
    /// when its transaction succeeds.
    #[must_use]
    pub const fn outcome(self) -> Option<Outcome<'a>> {
        match self {
            Self::Accepted => Some(Outcome::Accepted),
            Self::Rejected(rejected) => Some(Outcome::Rejected(rejected)),
            Self::Released => Some(Outcome::Released),
            Self::Modified(modified) => Some(Outcome::Modified(modified)),
            Self::Declared(declared) => Some(Outcome::Declared(declared)),
            Self::Received(_) | Self::TransactionalState(_) => None,
        }
    }
}

impl<'a> From<Outcome<'a>> for DeliveryState<'a> {
    fn from(outcome: Outcome<'a>) -> Self {
        match outcome {
            Outcome::Accepted => Self::Accepted,
            Outcome::Rejected(rejected) => Self::Rejected(rejected),
            Outcome::Released => Self::Released,
            Outcome::Modified(modified) => Self::Modified(modified),
            Outcome::Declared(declared) => Self::Declared(declared),
        }
    }
}

/// The numeric descriptors, to match on.
mod descriptor {
    use super::{
        Accepted, Composite, Coordinator, Declared, Modified, Received, Rejected, Released, Source,
        Target, TransactionalState,
    };

    pub(super) const RECEIVED: u64 = Received::SPEC.code;
    pub(super) const ACCEPTED: u64 = Accepted::SPEC.code;
    pub(super) const REJECTED: u64 = Rejected::SPEC.code;
    pub(super) const RELEASED: u64 = Released::SPEC.code;
    pub(super) const MODIFIED: u64 = Modified::SPEC.code;
    pub(super) const SOURCE: u64 = Source::SPEC.code;
    pub(super) const TARGET: u64 = Target::SPEC.code;
    pub(super) const COORDINATOR: u64 = Coordinator::SPEC.code;
    pub(super) const DECLARED: u64 = Declared::SPEC.code;
    pub(super) const TRANSACTIONAL_STATE: u64 = TransactionalState::SPEC.code;
}

/// The descriptor that is next, if the specification has it.
fn known_code(reader: &mut Reader<'_>) -> Result<u64, DecodeError> {
    read_code(reader, crate::composites::code_of).map_err(|error| {
        let unknown = error.fault == Fault::UnexpectedDescriptor;
        DecodeError { fault: if unknown { Fault::UnknownType } else { error.fault }, ..error }
    })
}

/// `accepted` as everybody writes it: descriptor and empty list.
const ACCEPTED_USUAL: [u8; 4] =
    [code::DESCRIBED, code::SMALL_ULONG, descriptor::ACCEPTED as u8, code::LIST0];
const _: () = assert!(descriptor::ACCEPTED <= u8::MAX as u64);

impl<'a> DeliveryState<'a> {
    /// Any state, in any encoding.
    #[inline(never)]
    fn read_any(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let start = *reader;
        Ok(match known_code(reader)? {
            descriptor::ACCEPTED => {
                Accepted::read_list(reader)?;
                Self::Accepted
            }
            descriptor::RECEIVED => Self::Received(Received::read_list(reader)?),
            descriptor::REJECTED => Self::Rejected(Rejected::read_list(reader)?),
            descriptor::RELEASED => {
                Released::read_list(reader)?;
                Self::Released
            }
            descriptor::MODIFIED => Self::Modified(Modified::read_list(reader)?),
            descriptor::DECLARED => Self::Declared(Declared::read_list(reader)?),
            descriptor::TRANSACTIONAL_STATE => {
                Self::TransactionalState(TransactionalState::read_list(reader)?)
            }
            _ => return Err(start.fail(Fault::UnknownType)),
        })
    }
}

impl<'a> Field<'a> for DeliveryState<'a> {
    const SPEC: &'static str = "*";

    #[inline]
    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        if reader.take_exactly(&ACCEPTED_USUAL) {
            return Ok(Self::Accepted);
        }
        Self::read_any(reader)
    }

    fn write(&self, writer: &mut Writer<'_>) {
        match self {
            Self::Received(received) => received.write_described(writer),
            Self::Accepted => Accepted {}.write_described(writer),
            Self::Rejected(rejected) => rejected.write_described(writer),
            Self::Released => Released {}.write_described(writer),
            Self::Modified(modified) => modified.write_described(writer),
            Self::Declared(declared) => declared.write_described(writer),
            Self::TransactionalState(state) => state.write_described(writer),
        }
    }
}

impl<'a> Field<'a> for Outcome<'a> {
    const SPEC: &'static str = "*";

    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let start = *reader;
        Ok(match known_code(reader)? {
            descriptor::ACCEPTED => {
                Accepted::read_list(reader)?;
                Self::Accepted
            }
            descriptor::REJECTED => Self::Rejected(Rejected::read_list(reader)?),
            descriptor::RELEASED => {
                Released::read_list(reader)?;
                Self::Released
            }
            descriptor::MODIFIED => Self::Modified(Modified::read_list(reader)?),
            descriptor::DECLARED => Self::Declared(Declared::read_list(reader)?),
            _ => return Err(start.fail(Fault::UnknownType)),
        })
    }

    fn write(&self, writer: &mut Writer<'_>) {
        DeliveryState::from(*self).write(writer);
    }
}

impl<'a> Field<'a> for AnySource<'a> {
    const SPEC: &'static str = "*";

    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let start = *reader;
        match known_code(reader) {
            Ok(descriptor::SOURCE) => Source::read_list(reader).map(Self::Source),
            Err(error) if error.fault != Fault::UnknownType => Err(error),
            Ok(_) | Err(_) => {
                *reader = start;
                read_other(reader).map(Self::Other)
            }
        }
    }

    fn write(&self, writer: &mut Writer<'_>) {
        match self {
            Self::Source(source) => source.write_described(writer),
            Self::Other(other) => writer.value(&Value::Described(*other)),
        }
    }
}

/// A terminus of a type that others have defined.
fn read_other<'a>(reader: &mut Reader<'a>) -> Result<Described<'a>, DecodeError> {
    let start = *reader;
    let Value::Described(other) = reader.value()? else {
        return Err(start.fail(Fault::UnexpectedDescriptor));
    };
    Ok(other)
}

impl<'a> Field<'a> for AnyTarget<'a> {
    const SPEC: &'static str = "*";

    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let start = *reader;
        match known_code(reader) {
            Ok(descriptor::TARGET) => Target::read_list(reader).map(Self::Target),
            Ok(descriptor::COORDINATOR) => Coordinator::read_list(reader).map(Self::Coordinator),
            Err(error) if error.fault != Fault::UnknownType => Err(error),
            Ok(_) | Err(_) => {
                *reader = start;
                read_other(reader).map(Self::Other)
            }
        }
    }

    fn write(&self, writer: &mut Writer<'_>) {
        match self {
            Self::Target(target) => target.write_described(writer),
            Self::Coordinator(coordinator) => coordinator.write_described(writer),
            Self::Other(other) => writer.value(&Value::Described(*other)),
        }
    }
}

impl<'a> Field<'a> for MessageId<'a> {
    const SPEC: &'static str = "*";

    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        match reader.peek()? {
            code::ULONG0 | code::SMALL_ULONG | code::ULONG => reader.ulong().map(Self::Ulong),
            code::VBIN8 | code::VBIN32 => reader.binary().map(Self::Binary),
            code::STR8 | code::STR32 => reader.string().map(Self::String),
            _ => reader.uuid().map(Self::Uuid),
        }
    }

    fn write(&self, writer: &mut Writer<'_>) {
        writer.value(&match *self {
            Self::Ulong(id) => Value::Ulong(id),
            Self::Uuid(id) => Value::Uuid(id),
            Self::Binary(id) => Value::Binary(id),
            Self::String(id) => Value::String(id),
        });
    }
}
