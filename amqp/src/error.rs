//! What goes wrong, typed by whose fault it is, and the one mapping to AMQP conditions.
//!
//! ```text
//!  Fault           whose                         answered with
//!  Malformed       the peer's encoder            close: decode-error, framing-error
//!  PeerViolation   the peer's state machine      detach, end or close, by the rule broken
//!  Unsupported     nobody's: it is not built     detach or end: not-implemented
//!  LimitExceeded   the peer's size, our bound    detach or close: resource-limit-exceeded, …
//! ```
//!
//! Invariant: every fault has exactly one condition and one scope (`Fault::condition`,
//! `Fault::scope`), in matches without a catch-all, so that none is answered by accident.

use std::fmt;

use bytes::Bytes;

use crate::codec::{CompoundWriter, DecodeError, Symbol, Writer};
pub use crate::definitions::Condition;
use crate::frame::FrameError;
use crate::link::{borrow_map, own_map};
use crate::performative;

/// An error as AMQP carries it in `detach`, `end`, `close` and `rejected` [2.8.14].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// What went wrong, for the peer's program.
    pub condition: AnyCondition,
    /// What went wrong, for a person; may be empty.
    pub description: String,
    /// More of it, for the peer's program: an encoded map.
    pub info: Option<Bytes>,
}

/// A condition of the specification, or one that an application made up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnyCondition {
    /// One that AMQP 1.0 defines.
    Known(Condition),
    /// Another, as it is on the wire.
    Other(Box<str>),
}

impl AnyCondition {
    /// As it is on the wire.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Known(condition) => condition.symbol().as_str(),
            Self::Other(symbol) => symbol,
        }
    }
}

impl From<Condition> for AnyCondition {
    fn from(condition: Condition) -> Self {
        Self::Known(condition)
    }
}

impl PartialEq<Condition> for AnyCondition {
    fn eq(&self, other: &Condition) -> bool {
        *self == Self::Known(*other)
    }
}

impl Error {
    /// An error with a description.
    pub fn new(condition: impl Into<AnyCondition>, description: impl Into<String>) -> Self {
        Self { condition: condition.into(), description: description.into(), info: None }
    }

    /// The same with a map that `write` fills: keys are symbols. A long one is left out on the
    /// wire, so that any answer with an error fits the smallest frame.
    #[must_use]
    pub fn with_info(mut self, write: impl FnOnce(&mut CompoundWriter<'_>)) -> Self {
        let mut encoded = Vec::new();
        Writer::new(&mut encoded).map_with(write);
        self.info = Some(encoded.into());
        self
    }

    pub(crate) fn from_wire(error: &performative::Error<'_>) -> Self {
        let symbol = error.condition.as_str();
        let condition = match Condition::from_symbol(symbol) {
            Some(condition) => AnyCondition::Known(condition),
            None => AnyCondition::Other(symbol.into()),
        };
        let description = error.description.unwrap_or_default().to_owned();
        Self { condition, description, info: error.info.as_ref().map(own_map) }
    }

    /// The borrowed form. The description is cut so that any answer with an error fits the smallest
    /// frame; programs read the map, so it goes first.
    pub(crate) fn to_wire(&self) -> performative::Error<'_> {
        let info = self.info.as_ref().filter(|info| info.len() <= INFO_BYTES_MAX);
        let left = TEXTS_BYTES_MAX - info.map_or(0, |info| info.len());
        let cut = self.description.floor_char_boundary(left.min(DESCRIPTION_BYTES_MAX));
        performative::Error {
            condition: Symbol::from_ascii(self.condition.as_str().as_bytes())
                .unwrap_or(Condition::InternalError.symbol()),
            description: (cut > 0).then_some(&self.description[..cut]),
            info: borrow_map(info.map(|info| &info[..])),
        }
    }
}

/// What of a description goes on the wire, in bytes: a frame may be no larger than 512.
const DESCRIPTION_BYTES_MAX: usize = 256;
/// What of an error's map goes on the wire, in bytes; a longer one is left out.
pub const INFO_BYTES_MAX: usize = 256;
/// And of both together.
const TEXTS_BYTES_MAX: usize = 312;
const _: () = {
    assert!(TEXTS_BYTES_MAX + 200 <= crate::frame::MAX_FRAME_SIZE_MIN as usize);
    assert!(DESCRIPTION_BYTES_MAX <= TEXTS_BYTES_MAX && INFO_BYTES_MAX <= TEXTS_BYTES_MAX);
};

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.condition.as_str(), self.description)
    }
}

impl std::error::Error for Error {}

/// What ends with a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The link alone: the session and its other links go on.
    Link,
    /// The session with its links.
    Session,
    /// Everything.
    Connection,
}

/// What went wrong, by whose fault it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Malformed(Malformed),
    PeerViolation(PeerViolation),
    Unsupported(Unsupported),
    LimitExceeded(LimitExceeded),
}

/// Bytes that are not AMQP 1.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Malformed {
    /// The frame header [2.3].
    Frame(FrameError),
    /// The frame body.
    Body(DecodeError),
    /// An AMQP frame where SASL belongs, or the other way round.
    FrameType,
}

/// A rule of the protocol that the peer broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PeerViolation {
    /// A performative that the connection's state does not allow.
    ConnectionState,
    /// A SASL frame that the peer's part does not send.
    SaslState,
    /// The peer's max-frame-size is below 512 [2.7.1].
    MaxFrameSizeTooSmall,
    /// The peer's idle-time-out is too short to keep.
    IdleTimeOutTooShort,
    /// A begin above our channel-max [2.7.1].
    ChannelBeyondMax,
    /// A frame on a channel that has no session [2.5.1].
    ChannelUnmapped,
    /// A begin on a channel that has a session, or naming one that does not wait for it.
    ChannelMapped,
    /// An attach above our handle-max [2.7.2].
    HandleBeyondMax,
    /// An attach on a handle that has a link.
    HandleInUse,
    /// A frame with a handle that has no link.
    HandleUnattached,
    /// More transfer frames than our window allowed [2.5.6].
    WindowViolation,
    /// Link fields in a flow without a handle [2.7.4].
    FlowWithoutHandle,
    /// The first transfer of a delivery without its id [2.7.5].
    DeliveryIdMissing,
    /// A delivery id that does not rise.
    DeliveryIdOrder,
    /// The first transfer of a delivery without its tag [2.7.5].
    TagMissing,
    /// A tag of more than 32 bytes [2.8.7].
    TagTooLong,
    /// A tag that another unsettled delivery of the link has.
    TagInUse,
    /// A continuation with another id, tag or format [2.7.5].
    ContinuationDiffers,
    /// A settled or unsettled delivery where the link's mode forbids it [2.8.2].
    SettleMode,
    /// `second` for one delivery of a link that is `first` [2.7.5].
    ReceiverSettleMode,
    /// A transfer from the side that receives.
    TransferFromReceiver,
    /// More deliveries than our credit allowed [2.6.7].
    TransferLimitExceeded,
    /// A sender's attach without initial-delivery-count [2.7.3].
    InitialDeliveryCountMissing,
}

/// What exists in AMQP 1.0 and not here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unsupported {
    /// A link to a transaction coordinator [4.2].
    Coordinator,
    /// A link to a target of a kind that AMQP 1.0 does not define.
    TargetKind,
    /// A link to a source of a kind that AMQP 1.0 does not define.
    SourceKind,
    /// A delivery state or outcome that AMQP 1.0 does not define.
    StateKind,
    /// A receiver that has unsettled deliveries beyond those that it names [2.7.3].
    IncompleteUnsettled,
    /// A transfer in a transaction.
    TransactionalTransfer,
    /// A disposition in a transaction.
    TransactionalOutcome,
}

/// A bound of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LimitExceeded {
    /// A message above our max-message-size [2.6.10].
    MessageSize,
    /// Unfinished messages hold too much memory.
    Reassembly,
    /// Too much was sent ahead of an answer that the host owes.
    ParkedInput,
    /// No channel that the peer takes is free.
    Channels,
    /// No handle that the peer takes is free.
    Handles,
    /// The connection has as many links as it may have.
    Links,
    /// The names of the connection's links hold too much memory.
    LinkNames,
    /// A link's name is stolen again and again, and nothing is sent in between.
    Steals,
    /// An answer does not fit the peer's frame size.
    FrameSize,
}

impl From<FrameError> for Fault {
    fn from(error: FrameError) -> Self {
        Self::Malformed(Malformed::Frame(error))
    }
}

impl From<DecodeError> for Fault {
    fn from(error: DecodeError) -> Self {
        Self::Malformed(Malformed::Body(error))
    }
}

impl From<PeerViolation> for Fault {
    fn from(violation: PeerViolation) -> Self {
        Self::PeerViolation(violation)
    }
}

impl From<Unsupported> for Fault {
    fn from(unsupported: Unsupported) -> Self {
        Self::Unsupported(unsupported)
    }
}

impl From<LimitExceeded> for Fault {
    fn from(limit: LimitExceeded) -> Self {
        Self::LimitExceeded(limit)
    }
}

impl Fault {
    /// The condition that tells the peer.
    pub(crate) fn condition(&self) -> Condition {
        match self {
            Self::Malformed(malformed) => match malformed {
                Malformed::Frame(_) | Malformed::FrameType => Condition::FramingError,
                Malformed::Body(_) => Condition::DecodeError,
            },
            Self::PeerViolation(violation) => violation.answer().0,
            Self::Unsupported(
                Unsupported::Coordinator
                | Unsupported::TargetKind
                | Unsupported::SourceKind
                | Unsupported::StateKind
                | Unsupported::IncompleteUnsettled
                | Unsupported::TransactionalTransfer
                | Unsupported::TransactionalOutcome,
            ) => Condition::NotImplemented,
            Self::LimitExceeded(limit) => match limit {
                LimitExceeded::MessageSize => Condition::MessageSizeExceeded,
                LimitExceeded::FrameSize => Condition::FrameSizeTooSmall,
                LimitExceeded::Reassembly
                | LimitExceeded::ParkedInput
                | LimitExceeded::Channels
                | LimitExceeded::Links
                | LimitExceeded::LinkNames
                | LimitExceeded::Steals
                | LimitExceeded::Handles => Condition::ResourceLimitExceeded,
            },
        }
    }

    /// What ends.
    pub(crate) fn scope(&self) -> Scope {
        match self {
            Self::Malformed(Malformed::Frame(_) | Malformed::Body(_) | Malformed::FrameType) => {
                Scope::Connection
            }
            Self::PeerViolation(violation) => violation.answer().1,
            Self::Unsupported(unsupported) => match unsupported {
                Unsupported::Coordinator
                | Unsupported::TargetKind
                | Unsupported::SourceKind
                | Unsupported::IncompleteUnsettled
                | Unsupported::TransactionalTransfer => Scope::Link,
                Unsupported::StateKind | Unsupported::TransactionalOutcome => Scope::Session,
            },
            Self::LimitExceeded(limit) => match limit {
                LimitExceeded::MessageSize
                | LimitExceeded::Reassembly
                | LimitExceeded::Steals
                | LimitExceeded::FrameSize => Scope::Link,
                LimitExceeded::Handles | LimitExceeded::Links | LimitExceeded::LinkNames => {
                    Scope::Session
                }
                LimitExceeded::ParkedInput | LimitExceeded::Channels => Scope::Connection,
            },
        }
    }

    /// The error for the wire.
    pub(crate) fn to_error(self) -> Error {
        Error::new(self.condition(), self.to_string())
    }
}

impl PeerViolation {
    /// Condition, scope and words for each rule.
    const fn answer(self) -> (Condition, Scope, &'static str) {
        use Condition as C;
        use Scope::{Connection, Link, Session};
        match self {
            Self::ConnectionState => {
                (C::IllegalState, Connection, "this performative is not allowed in this state")
            }
            Self::SaslState => {
                (C::IllegalState, Connection, "this SASL frame is not allowed in this state")
            }
            Self::MaxFrameSizeTooSmall => {
                (C::InvalidField, Connection, "max-frame-size is below 512 bytes")
            }
            Self::IdleTimeOutTooShort => {
                (C::InvalidField, Connection, "idle-time-out is below 100 ms; ask for more")
            }
            Self::ChannelBeyondMax => (C::FramingError, Connection, "channel above channel-max"),
            Self::ChannelUnmapped => (C::NotAllowed, Connection, "no session on this channel"),
            Self::ChannelMapped => {
                (C::NotAllowed, Connection, "this channel has a session, or none waits for it")
            }
            Self::HandleBeyondMax => (C::FramingError, Connection, "handle above handle-max"),
            Self::HandleInUse => (C::HandleInUse, Session, "another link has this handle"),
            Self::HandleUnattached => (C::UnattachedHandle, Session, "no link has this handle"),
            Self::WindowViolation => {
                (C::WindowViolation, Session, "more transfers than the incoming-window")
            }
            Self::FlowWithoutHandle => {
                (C::InvalidField, Session, "flow with link fields and without a handle")
            }
            Self::DeliveryIdMissing => {
                (C::InvalidField, Session, "first transfer of a delivery without delivery-id")
            }
            Self::DeliveryIdOrder => {
                (C::InvalidField, Session, "delivery-id is not above the one before")
            }
            Self::TagMissing => {
                (C::InvalidField, Link, "first transfer of a delivery without delivery-tag")
            }
            Self::TagTooLong => (C::InvalidField, Link, "delivery-tag is longer than 32 bytes"),
            Self::TagInUse => {
                (C::NotAllowed, Link, "an unsettled delivery of this link has this delivery-tag")
            }
            Self::ContinuationDiffers => {
                (C::InvalidField, Link, "transfer does not continue the unfinished delivery")
            }
            Self::SettleMode => {
                (C::InvalidField, Link, "settled disagrees with the link's snd-settle-mode")
            }
            Self::ReceiverSettleMode => {
                (C::InvalidField, Link, "rcv-settle-mode second on a link that is first")
            }
            Self::TransferFromReceiver => {
                (C::NotAllowed, Link, "transfer from the receiving side of the link")
            }
            Self::TransferLimitExceeded => {
                (C::TransferLimitExceeded, Link, "more deliveries than the link-credit")
            }
            Self::InitialDeliveryCountMissing => {
                (C::InvalidField, Link, "attach of a sender without initial-delivery-count")
            }
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(Malformed::Frame(error)) => write!(f, "{error}"),
            Self::Malformed(Malformed::Body(error)) => write!(f, "{error}"),
            Self::Malformed(Malformed::FrameType) => {
                f.write_str("the frame's type does not belong here: SASL comes before AMQP")
            }
            Self::PeerViolation(violation) => f.write_str(violation.answer().2),
            Self::Unsupported(unsupported) => f.write_str(match unsupported {
                Unsupported::Coordinator => "transactions are not supported",
                Unsupported::TargetKind => {
                    "this kind of target is not known here: attach to amqp:target:list"
                }
                Unsupported::SourceKind => {
                    "this kind of source is not known here: attach to amqp:source:list"
                }
                Unsupported::StateKind => {
                    "this kind of delivery state is not known here: use those of AMQP 1.0"
                }
                Unsupported::IncompleteUnsettled => {
                    "an unsettled map that is not whole is not supported: nothing is resumed"
                }
                Unsupported::TransactionalTransfer | Unsupported::TransactionalOutcome => {
                    "transactions are not supported: send without transactional-state"
                }
            }),
            Self::LimitExceeded(limit) => f.write_str(match limit {
                LimitExceeded::MessageSize => "the message is larger than max-message-size",
                LimitExceeded::Reassembly => "too many bytes in unfinished messages",
                LimitExceeded::ParkedInput => "too many bytes sent ahead of an answer",
                LimitExceeded::Channels => "no channel below your channel-max is free",
                LimitExceeded::Handles => "no handle below your handle-max is free",
                LimitExceeded::Links => "too many links, or detaches that you have not answered",
                LimitExceeded::LinkNames => "too many bytes in the names of links",
                LimitExceeded::Steals => {
                    "two ends take this link's name from each other; give each a name of its own"
                }
                LimitExceeded::FrameSize => "the answer does not fit your max-frame-size",
            }),
        }
    }
}
