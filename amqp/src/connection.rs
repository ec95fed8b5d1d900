//! One AMQP 1.0 connection, sans-IO, in both roles.
//!
//! Getters; `handle_*` takes an input; commands; `poll_*` hands out outputs until there are none.

use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::delivery::{DeliveryId, Outcome};
use crate::error::Error;
use crate::link::{AcceptLink, LinkId, NewLink};
use crate::session::SessionId;

mod event;

pub use event::{CloseReason, Event, Password, RemoteOpen, SaslCode, SaslPlain};

/// Which end of the connection we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// We connected: we speak first.
    Client,
    /// We accepted.
    Server,
}

/// What a connection needs to know. Every bound is per connection unless it says otherwise.
#[derive(Debug, Clone)]
pub struct Config {
    /// Who we are.
    pub container_id: String,
    /// Client: the host that we want.
    pub hostname: Option<String>,
    /// The largest frame that we take, in bytes; 512 or more. Default 1 MiB.
    pub max_frame_size: u32,
    /// The highest channel that we take. Default 255.
    pub channel_max: u16,
    /// The highest handle that we take, a session. Default 1,023.
    pub handle_max: u32,
    /// Silence of the peer after which we close; half of it is advertised. Default 60 s.
    pub idle_time_out: Option<Duration>,
    /// From the first byte to the peer's open. Default 10 s.
    pub handshake_timeout: Duration,
    /// From our close to the peer's. Default 5 s.
    pub close_timeout: Duration,
    /// The largest message that we take, in bytes. Default 16 MiB.
    pub max_message_size: u64,
    /// Frames that a session takes before it re-advertises. Default 2,048.
    pub incoming_window: u32,
    /// Unsettled incoming deliveries, a session; the window shrinks as it is neared.
    /// Default 8,192.
    pub unsettled_incoming_max: u32,
    /// Unsettled outgoing deliveries, a session; `can_send` is false at it. Default 8,192.
    pub unsettled_outgoing_max: u32,
    /// Bytes of unfinished incoming messages. Default 64 MiB.
    pub reassembly_bytes_max: u64,
    /// Bytes waiting for `poll_transmit` at which `can_send` is false. Default 1 MiB.
    pub transmit_bytes_max: usize,
    /// What is asked of the peer, or done, before open.
    pub sasl: Sasl,
    /// Extensions that our open offers.
    pub offered_capabilities: Vec<String>,
    /// Extensions that our open wants.
    pub desired_capabilities: Vec<String>,
    /// The encoded property map of our open.
    pub properties: Option<Bytes>,
    /// Keys the table of delivery tags against crafted collisions; random, for a server.
    pub tag_seed: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            container_id: String::new(),
            hostname: None,
            max_frame_size: 1 << 20,
            channel_max: 255,
            handle_max: 1023,
            idle_time_out: Some(Duration::from_secs(60)),
            handshake_timeout: Duration::from_secs(10),
            close_timeout: Duration::from_secs(5),
            max_message_size: 16 << 20,
            incoming_window: 2048,
            unsettled_incoming_max: 8192,
            unsettled_outgoing_max: 8192,
            reassembly_bytes_max: 64 << 20,
            transmit_bytes_max: 1 << 20,
            sasl: Sasl::None,
            offered_capabilities: Vec::new(),
            desired_capabilities: Vec::new(),
            properties: None,
            tag_seed: 0,
        }
    }
}

/// How SASL is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sasl {
    /// Client: no SASL layer. Server: none is asked for, and a SASL header is refused.
    None,
    /// Server: these mechanisms are offered, at least one; a bare AMQP header is taken only where
    /// `bare` says so.
    Server {
        /// Offer ANONYMOUS.
        anonymous: bool,
        /// Offer PLAIN.
        plain: bool,
        /// Take clients without a SASL layer.
        bare: bool,
    },
    /// Client: choose ANONYMOUS.
    Anonymous,
    /// Client: choose PLAIN.
    Plain {
        /// Who.
        user: String,
        /// The secret.
        password: Password,
    },
}

/// Why a message was not sent. Nothing was changed; try again after the event named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendError {
    /// No such link, or it is not attached, or we receive on it.
    Gone,
    /// No link credit: wait for `CreditChanged`.
    NoCredit,
    /// The session's window is closed, a message is under way, the unsettled table is full or too
    /// many bytes wait to be written: wait for `SendReady`.
    NotReady,
    /// The message is larger than the peer's max-message-size.
    TooLarge,
    /// The link's settle mode forbids `settled` as given.
    SettleMode,
}

/// Why a session or link could not be begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BeginError {
    /// The connection or session is not open.
    NotOpen,
    /// All channels or handles that both sides allow are in use.
    Exhausted,
    /// We have a link of this name and role already.
    NameInUse,
}

/// An AMQP 1.0 connection.
#[derive(Debug)]
pub struct Connection {
    config: Config,
    side: Side,
    started: Instant,
}

impl Connection {
    /// A new connection. A client's first bytes are ready to be polled.
    pub fn new(config: Config, side: Side, now: Instant) -> Self {
        Self { config, side, started: now }
    }

    // Getters.

    /// Whether the host should read on: false while the host owes an answer to SASL or open, while
    /// too many bytes wait to be written, and once the connection is over.
    pub fn wants_read(&self) -> bool {
        true
    }

    /// Bytes that the next `poll_transmit` hands out at least.
    pub fn transmit_bytes_pending(&self) -> usize {
        0
    }

    /// The connection is over and all is written: shut down the writing half.
    pub fn is_drained(&self) -> bool {
        false
    }

    /// Drained, and the peer has closed too, or its time is up: close the socket.
    pub fn is_finished(&self) -> bool {
        false
    }

    /// Deliveries that may be sent on this link now, by its credit alone.
    pub fn link_credit(&self, _link: LinkId) -> u32 {
        0
    }

    /// Whether `send` would take a message.
    pub fn can_send(&self, _link: LinkId) -> bool {
        false
    }

    /// The session of a link.
    pub fn link_session(&self, _link: LinkId) -> Option<SessionId> {
        None
    }

    // Inputs.

    /// Bytes from the peer. Violations become a close frame and an event.
    pub fn handle_bytes(&mut self, _now: Instant, _bytes: &[u8]) {}

    /// The peer will send no more bytes.
    pub fn handle_eof(&mut self, _now: Instant) {}

    /// Time passed: call it at or after `poll_timeout`.
    pub fn handle_timeout(&mut self, _now: Instant) {}

    // Commands. A command for what is gone does nothing.

    /// Server: answers `SaslPlain` or `SaslAnonymous`.
    pub fn sasl_outcome(&mut self, _code: SaslCode) {}

    /// Server: answers `Opened` with our open.
    pub fn open(&mut self) {}

    /// Client: begins a session; `SessionBegun` tells when it is up.
    pub fn begin(&mut self) -> Result<SessionId, BeginError> {
        Err(BeginError::NotOpen)
    }

    /// Client: asks for a link that we send on; `Attached` or `Detached` tells.
    pub fn attach_sender(
        &mut self,
        _session: SessionId,
        _link: NewLink,
    ) -> Result<LinkId, BeginError> {
        Err(BeginError::NotOpen)
    }

    /// Client: asks for a link that we receive on; `Attached` or `Detached` tells.
    pub fn attach_receiver(
        &mut self,
        _session: SessionId,
        _link: NewLink,
    ) -> Result<LinkId, BeginError> {
        Err(BeginError::NotOpen)
    }

    /// Answers `AttachReceived`: the link is up.
    pub fn accept_link(&mut self, _link: LinkId, _accept: AcceptLink) {}

    /// Answers `AttachReceived`: attach with null terminus, then detach with the error [2.6.3].
    /// The id names nothing from now on.
    pub fn refuse_link(&mut self, _link: LinkId, _error: Error) {}

    /// As receiver: sets the link's credit to this many deliveries from now (absolute).
    pub fn grant_credit(&mut self, _link: LinkId, _credit: u32) {}

    /// As receiver: asks the sender to use up the credit now or give it back; `Drained` tells.
    pub fn drain(&mut self, _link: LinkId) {}

    /// As sender: sends a message given in parts. It is copied; a message that the window cuts in
    /// two waits inside, one a session.
    pub fn send(
        &mut self,
        _link: LinkId,
        _parts: &[&[u8]],
        _settled: bool,
    ) -> Result<DeliveryId, SendError> {
        Err(SendError::Gone)
    }

    /// As sender: no more messages for now. Answers a drain: the remaining credit is given back.
    pub fn drained(&mut self, _link: LinkId) {}

    /// As receiver: settles a delivery with its outcome. Neighbours with the same outcome share a
    /// disposition.
    pub fn settle(&mut self, _link: LinkId, _delivery: DeliveryId, _outcome: Outcome) {}

    /// As sender: settles a delivery whose outcome came unsettled.
    pub fn settle_outgoing(&mut self, _link: LinkId, _delivery: DeliveryId) {}

    /// Detaches a link: answers `DetachReceived` (with the peer's own `closed`), or begins it
    /// (`Detached` tells when the peer has answered).
    pub fn detach(&mut self, _link: LinkId, _closed: bool, _error: Option<Error>) {}

    /// Ends a session: answers `EndReceived`, or begins it (`Ended` tells).
    pub fn end(&mut self, _session: SessionId, _error: Option<Error>) {}

    /// Closes the connection: answers `CloseReceived` or `Opened`, or begins it (`Closed` tells).
    pub fn close(&mut self, _error: Option<Error>) {}

    // Outputs.

    /// When to call `handle_timeout`.
    pub fn poll_timeout(&self) -> Option<Instant> {
        Some(self.started + self.config.handshake_timeout)
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        let _ = self.side;
        None
    }

    /// Appends all bytes for the peer; whether there were any.
    pub fn poll_transmit(&mut self, _out: &mut Vec<u8>) -> bool {
        false
    }
}
