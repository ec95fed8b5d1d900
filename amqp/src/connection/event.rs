//! What a connection tells its host: one enum, owned data.
//!
//! ```text
//!  SaslPlain | SaslExternal
//!            | SaslAnonymous -> sasl_outcome
//!  SaslScram                 -> sasl_challenge, then sasl_outcome_with
//!                                                    answers wait for the command on the right:
//!  Opened (server)           -> open | close         the host commits settlements first
//!  AttachReceived            -> accept_link | refuse_link
//!  DetachReceived            -> detach
//!  EndReceived               -> end
//!  CloseReceived             -> close
//! ```

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

pub use crate::definitions::SaslCode;
use crate::delivery::{DeliveryId, Outcome};
use crate::error::Error;
use crate::link::{LinkId, RemoteAttach};
use crate::sasl::Mechanism;
use crate::session::SessionId;

/// An output of [`Connection::poll_event`](super::Connection::poll_event).
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// Server: a client sent PLAIN credentials. Answer with `sasl_outcome`; input waits meanwhile.
    SaslPlain(Box<SaslPlain>),
    /// Server: a client chose ANONYMOUS. Answer with `sasl_outcome`; input waits meanwhile.
    SaslAnonymous,
    /// Server: a client wants to be the user of its certificate, or says which. Answer with
    /// `sasl_outcome`; input waits meanwhile.
    SaslExternal {
        /// The identity to act as; empty for the certificate's own.
        authzid: String,
    },
    /// Server: a message of SCRAM. Answer the first with `sasl_challenge`, the second with
    /// `sasl_outcome_with`; or either with a refusal. Input waits meanwhile.
    SaslScram(Box<SaslScram>),
    /// The peer's open. Server: answer with `open`, or with `close(Some(error))` to refuse; input
    /// waits meanwhile. Client: the connection is up.
    Opened(Box<RemoteOpen>),
    /// Server: a session began and was accepted. Client: the peer accepted a session.
    SessionBegun {
        /// The session.
        session: SessionId,
    },
    /// The peer asks for a link: `accept_link` or `refuse_link`.
    AttachReceived {
        /// The link.
        link: LinkId,
        /// What the peer said.
        attach: Box<RemoteAttach>,
    },
    /// The peer accepted a link of ours.
    Attached {
        /// The link.
        link: LinkId,
        /// What the peer said, which is what is in force.
        attach: Box<RemoteAttach>,
    },
    /// A whole message arrived. Settle it, unless it is settled already.
    Transfer {
        /// The link.
        link: LinkId,
        /// The delivery.
        delivery: DeliveryId,
        /// Sent settled: no disposition is wanted, and `settle` does nothing.
        settled: bool,
        /// The message format [2.8.11]; 0 is AMQP's own.
        message_format: u32,
        /// The encoded message, byte-exact.
        message: Bytes,
    },
    /// A part of a message arrived that is too long to be gathered: nobody has the parts before it
    /// but the host. Settle it as one that came whole, not before the last part.
    Part {
        /// The link.
        link: LinkId,
        /// The delivery: the same in all parts of a message.
        delivery: DeliveryId,
        /// As of [`Transfer`](Self::Transfer), as far as it is known by now.
        settled: bool,
        /// The message format [2.8.11].
        message_format: u32,
        /// The next bytes of the encoded message, at least one.
        part: Bytes,
        /// They are its end.
        is_last: bool,
    },
    /// The message of which parts came on this link is given up by its sender [2.6.14]. Where the
    /// link goes, that says the same.
    Aborted {
        /// The link.
        link: LinkId,
    },
    /// We send on this link: the receiver changed its credit.
    CreditChanged {
        /// The link.
        link: LinkId,
        /// Deliveries that may be sent now.
        credit: u32,
        /// Send what there is, then call `drained`.
        drain: bool,
    },
    /// `can_send` was false for this session's window or buffers, and may be true again.
    SendReady {
        /// The session.
        session: SessionId,
    },
    /// What [`Connection::send_begin`](super::Connection::send_begin) and `send_part` gave of a
    /// message on this link is written: the next part is wanted.
    PartWanted {
        /// The link.
        link: LinkId,
    },
    /// We sent this delivery: the receiver says what became of it. At most one event brings the
    /// outcome, and at most one `settled`; where `settled` is false, answer `settle_outgoing`.
    Disposition {
        /// The link.
        link: LinkId,
        /// The delivery.
        delivery: DeliveryId,
        /// The outcome; none where the receiver settled without one (the default outcome holds),
        /// or an earlier event brought it.
        outcome: Option<Outcome>,
        /// The receiver has forgotten the delivery, and so has the engine.
        settled: bool,
    },
    /// We receive on this link: a drain that we asked for is over, credit is 0.
    Drained {
        /// The link.
        link: LinkId,
    },
    /// The peer wants to detach. Finish settlements, then call `detach`.
    DetachReceived {
        /// The link.
        link: LinkId,
        /// The peer closes the link for good; otherwise a durable terminus stays.
        closed: bool,
        /// Why, if by error.
        error: Option<Error>,
    },
    /// The link is gone: the peer answered our detach, refused our attach, or the engine detached
    /// it for the error given. Its unsettled deliveries are forgotten here. Not sent for links
    /// that go with their session or connection, nor after the host answered `DetachReceived`.
    Detached {
        /// The link; its id names nothing from now on.
        link: LinkId,
        /// Why, if by error.
        error: Option<Error>,
    },
    /// The peer ends a session. Finish settlements, then call `end`.
    EndReceived {
        /// The session, with all its links.
        session: SessionId,
        /// Why, if by error.
        error: Option<Error>,
    },
    /// The session is gone with all its links: the peer answered our end, or the engine ended it
    /// for the error given.
    Ended {
        /// The session; its id names nothing from now on.
        session: SessionId,
        /// Why, if by error.
        error: Option<Error>,
    },
    /// The peer closes the connection. Finish settlements, then call `close`.
    CloseReceived {
        /// Why, if by error.
        error: Option<Error>,
    },
    /// The connection is over, with all its sessions and links. The last event.
    Closed {
        /// Why.
        reason: CloseReason,
    },
}

/// Why a connection is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CloseReason {
    /// Both sides closed in order; with the error that either gave.
    Closed(Option<Error>),
    /// The peer broke a rule, or a bound was hit: we closed with this error.
    Violation(Error),
    /// The protocol headers do not match; ours was sent.
    HeaderMismatch,
    /// SASL failed with this code.
    SaslFailed(SaslCode),
    /// Header to open took longer than the handshake timeout.
    HandshakeTimeout,
    /// The peer was silent for longer than our idle time-out.
    IdleTimeout,
    /// The peer did not answer our close in time.
    CloseTimeout,
    /// The peer's bytes ended without a close.
    Eof,
}

/// Credentials of SASL PLAIN (RFC 4616).
#[derive(Debug, PartialEq, Eq)]
pub struct SaslPlain {
    /// The identity to act as; empty for the user's own.
    pub authzid: String,
    /// Who.
    pub user: String,
    /// The secret.
    pub password: Password,
}

/// A client's message of SCRAM (RFC 5802).
#[derive(Debug, PartialEq, Eq)]
pub struct SaslScram {
    /// With which hash.
    pub mechanism: Mechanism,
    /// It is the client's first: user and nonce. The second is its proof.
    pub first: bool,
    /// The message: whoever knows it can try passwords in peace.
    pub message: Password,
}

/// A password: never printed, overwritten with zeros when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(Vec<u8>);

impl Password {
    /// Takes a password.
    pub fn new(password: impl Into<Vec<u8>>) -> Self {
        Self(password.into())
    }

    /// The secret, to verify it.
    pub fn reveal(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

impl Drop for Password {
    fn drop(&mut self) {
        self.0.fill(0);
        std::hint::black_box(&self.0);
    }
}

/// What the peer's open said [2.7.1].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteOpen {
    /// Who the peer says it is.
    pub container_id: String,
    /// The host that the peer wants.
    pub hostname: Option<String>,
    /// The largest frame that the peer takes, in bytes.
    pub max_frame_size: u32,
    /// The highest channel that the peer takes.
    pub channel_max: u16,
    /// The peer closes after this much silence of ours.
    pub idle_time_out: Option<Duration>,
    /// Extensions offered.
    pub offered_capabilities: Vec<String>,
    /// Extensions wanted.
    pub desired_capabilities: Vec<String>,
    /// The encoded property map.
    pub properties: Option<Bytes>,
}
