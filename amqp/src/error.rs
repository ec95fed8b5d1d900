//! What goes wrong, typed by whose fault it is, and the one mapping to AMQP conditions.
//!
//! ```text
//!  Fault                whose                        answer
//!  Malformed            the peer's encoder           close   decode-error, framing-error
//!  PeerViolation        the peer's state machine     detach, end or close, by the rule broken
//!  Unsupported          nobody's: not built          detach  not-implemented
//!  LimitExceeded        the peer's size, our bound   detach or close, resource-limit-exceeded
//! ```
//!
//! Invariant: every fault has exactly one condition and one scope (`Fault::condition`,
//! `Fault::scope`), in matches without a catch-all, so a new fault cannot be answered by accident.

use std::fmt;

/// An error as AMQP carries it in `detach`, `end`, `close` and `rejected` [2.8.14].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// What went wrong, for the peer's program.
    pub condition: Condition,
    /// What went wrong, for a person; may be empty.
    pub description: String,
}

impl Error {
    /// An error with a description.
    pub fn new(condition: Condition, description: impl Into<String>) -> Self {
        Self { condition, description: description.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.condition.symbol(), self.description)
    }
}

impl std::error::Error for Error {}

macro_rules! conditions {
    ($($(#[$doc:meta])* $name:ident = $symbol:literal,)*) => {
        /// The error conditions of AMQP 1.0 [2.8.15–2.8.18, 4.5.8].
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Condition {
            $($(#[$doc])* $name,)*
            /// A condition that AMQP 1.0 does not define, as the peer spelt it.
            Other(Box<str>),
        }

        impl Condition {
            /// The symbol on the wire.
            pub fn symbol(&self) -> &str {
                match self {
                    $(Self::$name => $symbol,)*
                    Self::Other(symbol) => symbol,
                }
            }

            /// The condition that a symbol names.
            pub fn from_symbol(symbol: &str) -> Self {
                $(if symbol == $symbol {
                    return Self::$name;
                })*
                Self::Other(symbol.into())
            }
        }
    };
}

conditions! {
    /// An internal error; the operator may need to act.
    InternalError = "amqp:internal-error",
    /// A peer asked for what does not exist.
    NotFound = "amqp:not-found",
    /// The peer may not do this.
    UnauthorizedAccess = "amqp:unauthorized-access",
    /// Bytes that are not AMQP.
    DecodeError = "amqp:decode-error",
    /// A bound was reached.
    ResourceLimitExceeded = "amqp:resource-limit-exceeded",
    /// Not allowed at all.
    NotAllowed = "amqp:not-allowed",
    /// A field has a value that it may not have.
    InvalidField = "amqp:invalid-field",
    /// Not built.
    NotImplemented = "amqp:not-implemented",
    /// Somebody else holds it exclusively.
    ResourceLocked = "amqp:resource-locked",
    /// Not possible in the present state.
    PreconditionFailed = "amqp:precondition-failed",
    /// The node was deleted under the link.
    ResourceDeleted = "amqp:resource-deleted",
    /// A frame or performative that the endpoint's state does not allow.
    IllegalState = "amqp:illegal-state",
    /// The unsettled map does not fit into one frame.
    FrameSizeTooSmall = "amqp:frame-size-too-small",
    /// The operator closed the connection.
    ConnectionForced = "amqp:connection:forced",
    /// A frame header or channel that cannot be.
    FramingError = "amqp:connection:framing-error",
    /// Use another container.
    ConnectionRedirect = "amqp:connection:redirect",
    /// The peer sent more frames than the window allows.
    WindowViolation = "amqp:session:window-violation",
    /// Input for a link that was detached by an error.
    ErrantLink = "amqp:session:errant-link",
    /// An attach with a handle that is in use.
    HandleInUse = "amqp:session:handle-in-use",
    /// A frame with a handle that no link has.
    UnattachedHandle = "amqp:session:unattached-handle",
    /// The operator detached the link.
    DetachForced = "amqp:link:detach-forced",
    /// More deliveries than link credit.
    TransferLimitExceeded = "amqp:link:transfer-limit-exceeded",
    /// A message beyond max-message-size.
    MessageSizeExceeded = "amqp:link:message-size-exceeded",
    /// Use another address.
    LinkRedirect = "amqp:link:redirect",
    /// The link was attached elsewhere.
    Stolen = "amqp:link:stolen",
    /// No such transaction.
    TransactionUnknownId = "amqp:transaction:unknown-id",
    /// The transaction was rolled back.
    TransactionRollback = "amqp:transaction:rollback",
    /// The transaction took too long.
    TransactionTimeout = "amqp:transaction:timeout",
}
