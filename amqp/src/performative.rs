//! The nine performatives: what the body of an AMQP frame begins with [2.7].
//!
//! ```text
//!  body = performative, payload        only a transfer has a payload: a part of a message
//!  open 0x10 begin 0x11 attach 0x12 flow 0x13 transfer 0x14 disposition 0x15
//!  detach 0x16 end 0x17 close 0x18
//! ```
//!
//! A performative that decodes is well-formed to the bottom: walking its maps cannot fail.

use crate::codec::{Composite, DecodeError, Fault, Reader, Writer, read_code};
use crate::composites::code_of;
pub use crate::composites::{
    Accepted, Attach, Begin, Close, Coordinator, Declared, Detach, Disposition, End, Error, Flow,
    Modified, Open, Received, Rejected, Released, Source, Target, TransactionalState, Transfer,
};
pub use crate::polymorphic::{AnySource, AnyTarget, DeliveryState, Outcome};
use crate::shortcuts;

/// A performative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is documented as a composite type")]
#[expect(clippy::large_enum_variant, reason = "lives on the stack; a box would allocate")]
pub enum Performative<'a> {
    Open(Open<'a>),
    Begin(Begin<'a>),
    Attach(Attach<'a>),
    Flow(Flow<'a>),
    Transfer(Transfer<'a>),
    Disposition(Disposition<'a>),
    Detach(Detach<'a>),
    End(End<'a>),
    Close(Close<'a>),
}

const OPEN: u64 = Open::SPEC.code;
const BEGIN: u64 = Begin::SPEC.code;
const ATTACH: u64 = Attach::SPEC.code;
const FLOW: u64 = Flow::SPEC.code;
const TRANSFER: u64 = Transfer::SPEC.code;
const DISPOSITION: u64 = Disposition::SPEC.code;
const DETACH: u64 = Detach::SPEC.code;
const END: u64 = End::SPEC.code;
const CLOSE: u64 = Close::SPEC.code;

impl<'a> Performative<'a> {
    /// Decodes the body of a frame that is not empty. Gives the payload, too.
    ///
    /// # Errors
    /// Where the performative is malformed or unknown, or where one without a payload has bytes
    /// after it.
    #[inline]
    pub fn decode(body: &'a [u8]) -> Result<(Self, &'a [u8]), DecodeError> {
        if let Some((transfer, payload)) = shortcuts::read_transfer(body) {
            Ok((Self::Transfer(transfer), payload))
        } else if let Some(accepted) = shortcuts::read_accepted(body) {
            Ok((Self::Disposition(accepted), &[]))
        } else {
            Self::decode_general(body)
        }
    }

    pub(crate) fn decode_general(body: &'a [u8]) -> Result<(Self, &'a [u8]), DecodeError> {
        let mut reader = Reader::new(body);
        match read_code(&mut reader, code_of)? {
            TRANSFER => {
                let transfer = Transfer::read_list(&mut reader)?;
                Ok((Self::Transfer(transfer), reader.rest()))
            }
            DISPOSITION => Ok((Self::Disposition(read_whole(reader)?), &[])),
            FLOW => Ok((Self::Flow(read_whole(reader)?), &[])),
            code => Ok((Self::decode_rare(code, reader)?, &[])),
        }
    }

    /// Decodes a performative of which a connection sees few.
    #[inline(never)]
    fn decode_rare(code: u64, reader: Reader<'a>) -> Result<Self, DecodeError> {
        Ok(match code {
            OPEN => Self::Open(read_whole(reader)?),
            BEGIN => Self::Begin(read_whole(reader)?),
            ATTACH => Self::Attach(read_whole(reader)?),
            DETACH => Self::Detach(read_whole(reader)?),
            END => Self::End(read_whole(reader)?),
            CLOSE => Self::Close(read_whole(reader)?),
            _ => return Err(reader.fail(Fault::UnexpectedDescriptor)),
        })
    }

    /// Appends the performative.
    #[inline]
    pub fn encode(&self, out: &mut Vec<u8>) {
        let writer = &mut Writer::new(out);
        match self {
            Self::Open(open) => open.write_described(writer),
            Self::Begin(begin) => begin.write_described(writer),
            Self::Attach(attach) => attach.write_described(writer),
            Self::Flow(flow) => flow.write_described(writer),
            Self::Transfer(transfer) => transfer.write_described(writer),
            Self::Disposition(disposition) => disposition.write_described(writer),
            Self::Detach(detach) => detach.write_described(writer),
            Self::End(end) => end.write_described(writer),
            Self::Close(close) => close.write_described(writer),
        }
    }
}

/// Reads a composite that must end with the bytes.
#[inline]
fn read_whole<'a, T: Composite<'a>>(mut reader: Reader<'a>) -> Result<T, DecodeError> {
    let composite = T::read_list(&mut reader)?;
    if reader.is_empty() { Ok(composite) } else { Err(reader.fail(Fault::TrailingBytes)) }
}
