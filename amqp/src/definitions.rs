//! The restricted types of the specification that are more than a number: roles, modes, outcomes'
//! conditions.
//!
//! ```text
//!  boolean  Role                      ubyte   SenderSettleMode, ReceiverSettleMode, SaslCode
//!  uint     TerminusDurability        symbol  TerminusExpiryPolicy, Condition (an open set)
//!  newtypes Handle, DeliveryId        [2.8] [3.5] [4.5] [5.3.3]
//! ```
//!
//! A value that is none of the choices is a decode error, except for conditions: any symbol is a
//! condition, those of the specification have names here.

use crate::codec::{DecodeError, Fault, Field, Reader, Symbol, Writer};

/// The handle that stands for a link in one direction of a session [2.8.4].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle(pub u32);

/// The number of a delivery in one direction of a session, in serial arithmetic [2.8.8].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DeliveryId(pub u32);

/// Milliseconds since the Unix epoch; any 64 bits that a client puts there [1.6.17].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

/// What the specification says about a restricted type with a fixed set of choices.
#[derive(Clone, Copy, Debug)]
pub struct ChoicesSpec {
    /// Its name.
    pub name: &'static str,
    /// The choices in order.
    pub choices: &'static [ChoiceSpec],
}

/// What the specification says about one choice.
#[derive(Clone, Copy, Debug)]
pub struct ChoiceSpec {
    /// Its name.
    pub name: &'static str,
    /// Writes its value.
    pub write: fn(&mut Writer<'_>),
}

/// Declares an enum over a fixed set of wire values, with its `Field` implementation.
macro_rules! choices {
    ($(
        $(#[$doc:meta])*
        $name:ident = $spec:literal as $wire:ident {
            $( $(#[$choice_doc:meta])* $choice:ident = $choice_spec:literal $value:expr; )*
        }
    )*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq)]
            pub enum $name { $( $(#[$choice_doc])* $choice, )* }

            impl $name {
                /// Every choice, in the order of the specification.
                pub const ALL: &[Self] = &[ $( Self::$choice, )* ];

                /// Its name in the specification.
                #[must_use]
                pub const fn name(self) -> &'static str {
                    match self { $( Self::$choice => $choice_spec, )* }
                }
            }

            impl<'a> Field<'a> for $name {
                const SPEC: &'static str = $spec;

                #[inline]
                fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
                    let start = *reader;
                    let wire = reader.$wire()?;
                    $( if wire == $value { return Ok(Self::$choice); } )*
                    Err(start.fail(Fault::InvalidChoice))
                }

                #[inline]
                fn write(&self, writer: &mut Writer<'_>) {
                    match self { $( Self::$choice => writer.$wire($value), )* }
                }
            }
        )*

        /// The restricted types with a fixed set of choices.
        pub const CHOICES: &[ChoicesSpec] = &[ $( ChoicesSpec {
            name: $spec,
            choices: &[ $( ChoiceSpec {
                name: $choice_spec,
                write: |writer| $name::$choice.write(writer),
            }, )* ],
        }, )* ];
    };
}

choices! {
    /// Which end of a link speaks, or which direction a disposition is about [2.8.1].
    Role = "role" as boolean {
        /// The end that sends transfers.
        Sender = "sender" false;
        /// The end that receives them.
        Receiver = "receiver" true;
    }

    /// Whether the sender settles what it sends [2.8.2].
    SenderSettleMode = "sender-settle-mode" as ubyte {
        /// All deliveries are sent unsettled.
        Unsettled = "unsettled" 0;
        /// All deliveries are sent settled.
        Settled = "settled" 1;
        /// Some are, some aren't.
        Mixed = "mixed" 2;
    }

    /// When the receiver settles [2.8.3].
    ReceiverSettleMode = "receiver-settle-mode" as ubyte {
        /// On its own, as soon as it has an outcome.
        First = "first" 0;
        /// Only after the sender has settled.
        Second = "second" 1;
    }

    /// What a terminus keeps [3.5.5].
    TerminusDurability = "terminus-durability" as uint {
        /// Nothing.
        None = "none" 0;
        /// Its existence and configuration.
        Configuration = "configuration" 1;
        /// That, and the state of unsettled deliveries.
        UnsettledState = "unsettled-state" 2;
    }

    /// When the expiry timer of a terminus starts [3.5.6].
    TerminusExpiryPolicy = "terminus-expiry-policy" as symbol {
        /// When its link is detached.
        LinkDetach = "link-detach" Symbol::new("link-detach");
        /// When its session ends.
        SessionEnd = "session-end" Symbol::new("session-end");
        /// When its connection closes.
        ConnectionClose = "connection-close" Symbol::new("connection-close");
        /// Never.
        Never = "never" Symbol::new("never");
    }

    /// How a SASL exchange ended [5.3.3.6].
    SaslCode = "sasl-code" as ubyte {
        /// Authenticated.
        Ok = "ok" 0;
        /// The credentials are wrong.
        Auth = "auth" 1;
        /// A system error.
        Sys = "sys" 2;
        /// A system error that will stay.
        SysPerm = "sys-perm" 3;
        /// A system error that may pass.
        SysTemp = "sys-temp" 4;
    }
}

#[expect(clippy::derivable_impls, reason = "the enums come from one macro")]
impl Default for Role {
    fn default() -> Self {
        Self::Sender
    }
}

impl Default for SaslCode {
    /// A blank outcome must not be a success.
    fn default() -> Self {
        Self::SysPerm
    }
}

macro_rules! conditions {
    ($( $(#[$doc:meta])* $name:ident = $symbol:literal; )*) => {
        /// The error conditions of the specification [2.8.15] to [2.8.18], [4.5.8].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Condition { $( $(#[$doc])* $name, )* }

        impl Condition {
            /// Every condition.
            pub const ALL: &[Self] = &[ $( Self::$name, )* ];

            /// As it is on the wire.
            #[must_use]
            pub const fn symbol(self) -> Symbol<'static> {
                match self { $( Self::$name => const { Symbol::new($symbol) }, )* }
            }

            /// The condition that `symbol` stands for, if the specification has it.
            #[must_use]
            pub fn from_symbol(symbol: &str) -> Option<Self> {
                match symbol { $( $symbol => Some(Self::$name), )* _ => None }
            }
        }
    };
}

conditions! {
    /// Something went wrong inside.
    InternalError = "amqp:internal-error";
    /// There is no such node.
    NotFound = "amqp:not-found";
    /// The peer may not do this.
    UnauthorizedAccess = "amqp:unauthorized-access";
    /// Bytes that could not be decoded.
    DecodeError = "amqp:decode-error";
    /// A bound was reached.
    ResourceLimitExceeded = "amqp:resource-limit-exceeded";
    /// The peer tried something that is not allowed here.
    NotAllowed = "amqp:not-allowed";
    /// A field has a value that it must not have.
    InvalidField = "amqp:invalid-field";
    /// What the peer wants is not built.
    NotImplemented = "amqp:not-implemented";
    /// Another one holds it.
    ResourceLocked = "amqp:resource-locked";
    /// A precondition does not hold.
    PreconditionFailed = "amqp:precondition-failed";
    /// It was deleted.
    ResourceDeleted = "amqp:resource-deleted";
    /// The peer sent a frame that its state does not allow.
    IllegalState = "amqp:illegal-state";
    /// What must be sent does not fit the peer's frame size.
    FrameSizeTooSmall = "amqp:frame-size-too-small";
    /// An operator closed the connection.
    ConnectionForced = "amqp:connection:forced";
    /// A malformed frame.
    FramingError = "amqp:connection:framing-error";
    /// The container is elsewhere.
    ConnectionRedirect = "amqp:connection:redirect";
    /// More transfers than the session's window allows.
    WindowViolation = "amqp:session:window-violation";
    /// Input for a link that was detached.
    ErrantLink = "amqp:session:errant-link";
    /// An attach with a handle in use.
    HandleInUse = "amqp:session:handle-in-use";
    /// A frame with a handle that stands for no link.
    UnattachedHandle = "amqp:session:unattached-handle";
    /// An operator detached the link.
    DetachForced = "amqp:link:detach-forced";
    /// More deliveries than the link's credit allows.
    TransferLimitExceeded = "amqp:link:transfer-limit-exceeded";
    /// A message above the link's `max-message-size`.
    MessageSizeExceeded = "amqp:link:message-size-exceeded";
    /// The node is elsewhere.
    LinkRedirect = "amqp:link:redirect";
    /// A second attach took the link over.
    Stolen = "amqp:link:stolen";
    /// There is no such transaction.
    TransactionUnknownId = "amqp:transaction:unknown-id";
    /// The transaction was rolled back.
    TransactionRollback = "amqp:transaction:rollback";
    /// The transaction took too long.
    TransactionTimeout = "amqp:transaction:timeout";
}
