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
pub use crate::polymorphic::{AnyTarget, DeliveryState, Outcome};

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
        let mut reader = Reader::new(body);
        let performative = match read_code(&mut reader, code_of)? {
            TRANSFER => {
                let transfer = Transfer::read_list(&mut reader)?;
                return Ok((Self::Transfer(transfer), reader.rest()));
            }
            DISPOSITION => Self::Disposition(Disposition::read_list(&mut reader)?),
            FLOW => Self::Flow(Flow::read_list(&mut reader)?),
            OPEN => Self::Open(Open::read_list(&mut reader)?),
            BEGIN => Self::Begin(Begin::read_list(&mut reader)?),
            ATTACH => Self::Attach(Attach::read_list(&mut reader)?),
            DETACH => Self::Detach(Detach::read_list(&mut reader)?),
            END => Self::End(End::read_list(&mut reader)?),
            CLOSE => Self::Close(Close::read_list(&mut reader)?),
            _ => return Err(Reader::new(body).fail(Fault::UnexpectedDescriptor)),
        };
        if !reader.is_empty() {
            return Err(reader.fail(Fault::TrailingBytes));
        }
        Ok((performative, &[]))
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
