//! A blocking AMQP 1.0 client: one connection, one session, some links.
//!
//! ```text
//!   connect ─▶ sender / receiver ─▶ send … next_outcome      ─▶ close
//!                                   receive … accept
//!
//!   every call that waits:  write what is pending ─▶ read ─▶ engine ─▶ events into queues
//! ```
//! Sends are pipelined: [`Client::send`] waits for credit only, [`Client::next_outcome`] for the
//! next answer. [`Client::close`] returns when the broker has answered the close, and by the
//! broker's promise every settlement sent before is committed then.
//!
//! Failure: each wait has the bound given to [`Client::connect`]; a peer that closes, refuses or is
//! silent is a [`ClientError`]. After an error the client is of no more use.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use amqp::codec::{Reader, Writer};
use amqp::connection::{
    BeginError, CloseReason, Config, Connection, Event, RemoteOpen, Sasl, SendError, Side,
};
use amqp::delivery::{DeliveryId, Outcome};
use amqp::error::Error;
use amqp::link::{LinkId, LinkSource, LinkTarget, NewLink};
use amqp::message::{Header, Sections, write_header};
use amqp::session::SessionId;
use bytes::Bytes;
use net::tls::TlsSession;

use crate::tls::TlsClient;

/// Why a call failed.
#[derive(Debug)]
pub enum ClientError {
    /// The socket.
    Io(io::Error),
    /// TLS: the peer is not trusted, does not trust us, or broke the protocol.
    Tls(rustls::Error),
    /// The connection is over.
    Closed(CloseReason),
    /// The peer ended the session, or refused or detached a link.
    Detached(Option<Error>),
    /// Nothing came within the bound.
    TimedOut(&'static str),
    /// The message cannot be sent on this link.
    Refused(SendError),
    /// No session or link could be begun.
    NotBegun(BeginError),
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "the connection failed: {error}"),
            Self::Tls(error) => write!(f, "TLS failed: {error}"),
            Self::Closed(reason) => write!(f, "the connection is closed: {reason:?}"),
            Self::Detached(Some(error)) => {
                write!(f, "the broker detached: {:?} {}", error.condition, error.description)
            }
            Self::Detached(None) => f.write_str("the broker detached"),
            Self::TimedOut(what) => write!(f, "waited in vain for {what}"),
            Self::Refused(why) => write!(f, "the message cannot be sent: {why:?}"),
            Self::NotBegun(why) => write!(f, "no session or link could be begun: {why:?}"),
        }
    }
}

impl std::error::Error for ClientError {}

impl From<io::Error> for ClientError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<rustls::Error> for ClientError {
    fn from(error: rustls::Error) -> Self {
        Self::Tls(error)
    }
}

/// A message that was received and is to be settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// The link it came on.
    pub link: LinkId,
    /// Names it until it is settled.
    pub delivery: DeliveryId,
    /// The encoded message.
    pub message: Bytes,
}

/// A connection with one session.
pub struct Client {
    stream: TcpStream,
    tls: Option<Box<TlsSession>>,
    connection: Connection,
    session: Option<SessionId>,
    wait: Duration,
    out: Vec<u8>,
    /// What goes to the socket, where that is not `out`.
    sealed: Vec<u8>,
    opened: Option<Box<RemoteOpen>>,
    attached: Vec<LinkId>,
    outcomes: VecDeque<(DeliveryId, Outcome)>,
    received: VecDeque<Received>,
    closed: Option<CloseReason>,
    detached: Option<Option<Error>>,
}

impl Client {
    /// Connect, open and begin a session. No call waits longer than `wait`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn connect(
        addr: SocketAddr,
        container_id: &str,
        sasl: Sasl,
        wait: Duration,
    ) -> Result<Self, ClientError> {
        Self::begin(addr, None, config(container_id, sasl), wait)
    }

    /// As [`Client::connect`], with everything that a client's open says, and over TLS or not.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn connect_with(
        addr: SocketAddr,
        tls: Option<&TlsClient>,
        config: Config,
        wait: Duration,
    ) -> Result<Self, ClientError> {
        let tls = tls.map(TlsClient::session).transpose()?;
        Self::begin(addr, tls.map(Box::new), config, wait)
    }

    /// As [`Client::connect`], over TLS.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn connect_tls(
        addr: SocketAddr,
        tls: &TlsClient,
        container_id: &str,
        sasl: Sasl,
        wait: Duration,
    ) -> Result<Self, ClientError> {
        Self::begin(addr, Some(Box::new(tls.session()?)), config(container_id, sasl), wait)
    }

    fn begin(
        addr: SocketAddr,
        tls: Option<Box<TlsSession>>,
        config: Config,
        wait: Duration,
    ) -> Result<Self, ClientError> {
        let stream = TcpStream::connect_timeout(&addr, wait)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(wait))?;
        let mut client = Self {
            stream,
            tls,
            connection: Connection::new(config, Side::Client, clock()),
            session: None,
            wait,
            out: Vec::new(),
            sealed: Vec::new(),
            opened: None,
            attached: Vec::new(),
            outcomes: VecDeque::new(),
            received: VecDeque::new(),
            closed: None,
            detached: None,
        };
        client.until("open", |client| client.opened.is_some())?;
        if let Some(reason) = client.closed.take() {
            return Err(ClientError::Closed(reason));
        }
        client.connection.begin().map_err(ClientError::NotBegun)?;
        client.until("begin", |client| client.session.is_some())?;
        Ok(client)
    }

    /// What the broker's open said.
    ///
    /// # Panics
    /// Never: a client that is there has heard it.
    pub fn remote_open(&self) -> &RemoteOpen {
        self.opened.as_ref().expect("it was waited for")
    }

    /// A link to send messages to an address.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn sender(&mut self, address: &str) -> Result<LinkId, ClientError> {
        let link = self.new_link("sender", address);
        let link = self
            .connection
            .attach_sender(self.begun_session()?, link)
            .map_err(ClientError::NotBegun)?;
        self.until("attach", |client| client.attached.contains(&link))?;
        Ok(link)
    }

    /// A link to receive messages from an address; `credit` are sent ahead.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn receiver(&mut self, address: &str, credit: u32) -> Result<LinkId, ClientError> {
        let link = self.new_link("receiver", address);
        let link = self
            .connection
            .attach_receiver(self.begun_session()?, link)
            .map_err(ClientError::NotBegun)?;
        self.until("attach", |client| client.attached.contains(&link))?;
        self.connection.grant_credit(link, credit);
        self.flush()?;
        Ok(link)
    }

    /// Send a message, unsettled, as soon as there is credit.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn send(&mut self, link: LinkId, message: &[u8]) -> Result<DeliveryId, ClientError> {
        self.until("credit", |client| client.connection.can_send(link))?;
        self.connection.send(link, &[message], false).map_err(ClientError::Refused)
    }

    /// What became of the next message: each is answered once, in any order.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn next_outcome(&mut self) -> Result<(DeliveryId, Outcome), ClientError> {
        self.until("an outcome", |client| !client.outcomes.is_empty())?;
        Ok(self.outcomes.pop_front().expect("there is one"))
    }

    /// The next message; its link's credit is not renewed by itself.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn receive(&mut self) -> Result<Received, ClientError> {
        self.until("a message", |client| !client.received.is_empty())?;
        Ok(self.received.pop_front().expect("there is one"))
    }

    /// Allow so many more messages from now on.
    pub fn grant(&mut self, link: LinkId, credit: u32) {
        self.connection.grant_credit(link, credit);
    }

    /// Settle a message: done with it. Sent with the next call that waits.
    pub fn accept(&mut self, received: &Received) {
        self.connection.settle(received.link, received.delivery, Outcome::Accepted);
    }

    /// Close in order. When it returns well, every settlement before it is committed.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn close(mut self) -> Result<(), ClientError> {
        self.connection.close(None);
        self.until("close", |client| client.closed.is_some())?;
        // A connection that broke meanwhile has confirmed nothing.
        match self.closed {
            Some(CloseReason::Closed(None)) | None => Ok(()),
            Some(reason) => Err(ClientError::Closed(reason)),
        }
    }

    fn begun_session(&self) -> Result<SessionId, ClientError> {
        self.session.ok_or(ClientError::NotBegun(BeginError::NotOpen))
    }

    fn new_link(&self, kind: &str, address: &str) -> NewLink {
        let address = Some(address.to_owned());
        NewLink {
            name: format!("{kind}-{}", self.attached.len()),
            source: LinkSource { address: address.clone(), ..LinkSource::default() },
            target: LinkTarget { address, ..LinkTarget::default() },
            ..NewLink::default()
        }
    }

    /// Write and read until the condition holds.
    fn until(
        &mut self,
        what: &'static str,
        holds: impl Fn(&Self) -> bool,
    ) -> Result<(), ClientError> {
        let deadline = clock() + self.wait;
        self.take_events();
        while !holds(self) {
            if let Some(reason) = self.closed.take() {
                return Err(ClientError::Closed(reason));
            }
            if let Some(error) = self.detached.take() {
                return Err(ClientError::Detached(error));
            }
            self.turn(deadline, what)?;
        }
        self.flush()
    }

    fn turn(&mut self, deadline: Instant, what: &'static str) -> Result<(), ClientError> {
        self.flush()?;
        let now = clock();
        if now >= deadline {
            return Err(ClientError::TimedOut(what));
        }
        let wake = self.connection.poll_timeout().map_or(deadline, |at| at.min(deadline));
        let longest = wake.saturating_duration_since(now).max(Duration::from_millis(1));
        self.stream.set_read_timeout(Some(longest))?;
        let mut bytes = [0; 64 * 1024];
        match self.stream.read(&mut bytes) {
            Ok(0) => self.connection.handle_eof(clock()),
            Ok(count) => self.take_bytes(&bytes[..count])?,
            Err(error) if is_timeout(&error) => self.connection.handle_timeout(clock()),
            Err(error) => return Err(error.into()),
        }
        self.take_events();
        Ok(())
    }

    fn take_bytes(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        let now = clock();
        let connection = &mut self.connection;
        let Some(tls) = &mut self.tls else {
            connection.handle_bytes(now, bytes);
            return Ok(());
        };
        let received = tls.receive(bytes, |plain| connection.handle_bytes(now, plain));
        if tls.has_peer_ended() {
            connection.handle_eof(now);
        }
        if let Err(error) = received {
            // The peer should hear why; that it cannot is no news.
            tls.flush(&mut self.sealed);
            let _ = self.stream.write_all(&self.sealed);
            return Err(error.into());
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), ClientError> {
        while self.connection.poll_transmit(&mut self.out) {
            match &mut self.tls {
                None => self.stream.write_all(&self.out)?,
                Some(tls) => tls.send(&self.out, &mut self.sealed)?,
            }
            self.out.clear();
        }
        if let Some(tls) = &mut self.tls {
            tls.flush(&mut self.sealed);
            self.stream.write_all(&self.sealed)?;
            self.sealed.clear();
        }
        Ok(())
    }

    fn take_events(&mut self) {
        while let Some(event) = self.connection.poll_event() {
            match event {
                Event::Opened(open) => self.opened = Some(open),
                Event::SessionBegun { session } => self.session = Some(session),
                Event::Attached { link, .. } => self.attached.push(link),
                Event::Transfer { link, delivery, message, .. } => {
                    self.received.push_back(Received { link, delivery, message });
                }
                Event::Disposition { link, delivery, outcome, settled } => {
                    if let Some(outcome) = outcome {
                        self.outcomes.push_back((delivery, outcome));
                    }
                    if !settled {
                        self.connection.settle_outgoing(link, delivery);
                    }
                }
                Event::Detached { error, .. } | Event::Ended { error, .. } => {
                    self.detached = Some(error);
                }
                Event::DetachReceived { link, closed, error } => {
                    self.connection.detach(link, closed, None);
                    self.detached = Some(error);
                }
                Event::EndReceived { session, error } => {
                    self.connection.end(session, None);
                    self.detached = Some(error);
                }
                Event::CloseReceived { error } => {
                    self.connection.close(None);
                    self.closed = Some(CloseReason::Closed(error));
                }
                // Why the peer has closed is told before that.
                Event::Closed { reason } => {
                    self.closed.get_or_insert(reason);
                }
                Event::CreditChanged { link, drain: true, .. } => self.connection.drained(link),
                Event::CreditChanged { drain: false, .. }
                | Event::SendReady { .. }
                | Event::PartWanted { .. }
                | Event::Part { .. }
                | Event::Aborted { .. }
                | Event::Drained { .. } => {}
                // A client asks for links; a broker that asks for one gets no answer.
                Event::AttachReceived { .. }
                | Event::SaslPlain(_)
                | Event::SaslExternal { .. }
                | Event::SaslScram(_)
                | Event::SaslAnonymous => {}
            }
        }
    }
}

fn config(container_id: &str, sasl: Sasl) -> Config {
    Config { container_id: container_id.to_owned(), sasl, ..Config::default() }
}

/// A message with `durable` set and one data section.
pub fn durable_message(body: &[u8]) -> Vec<u8> {
    /// The descriptor of a data section [3.2.6].
    const DATA: u64 = 0x75;
    let mut message = Vec::with_capacity(body.len() + 16);
    write_header(&Header { durable: Some(true), ..Header::default() }, &mut message);
    let mut writer = Writer::new(&mut message);
    writer.descriptor(DATA);
    writer.binary(body);
    message
}

/// The bytes of a message's one data section; `None` for other bodies.
pub fn data_of(message: &[u8]) -> Option<&[u8]> {
    let sections = Sections::scan(message).ok()?;
    let mut reader = Reader::new(&message[sections.body]);
    reader.descriptor().ok()?;
    reader.binary().ok()
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

#[expect(clippy::disallowed_methods, reason = "a tool that talks to the world reads its clock")]
fn clock() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_gives_its_body_back() {
        for body in [&b""[..], b"x", &[7; 70_000]] {
            let message = durable_message(body);
            assert_eq!(data_of(&message), Some(body));
            assert!(Sections::scan(&message).expect("our own").header_fields.is_durable());
        }
        assert_eq!(data_of(b"\x00"), None);
    }

    /// A peer that answers everything but a close, at which it hangs up.
    fn hang_up_at_close(mut stream: TcpStream) {
        let config = Config { sasl: Sasl::None, ..Config::default() };
        let mut engine = Connection::new(config, Side::Server, clock());
        let (mut bytes, mut out) = ([0; 4096], Vec::new());
        loop {
            let count = stream.read(&mut bytes).expect("the client speaks");
            engine.handle_bytes(clock(), &bytes[..count]);
            while let Some(event) = engine.poll_event() {
                if let Event::CloseReceived { .. } = event {
                    return;
                }
                if let Event::Opened(_) = event {
                    engine.open();
                }
            }
            while engine.poll_transmit(&mut out) {
                stream.write_all(&out).expect("the client reads");
                out.clear();
            }
        }
    }

    #[test]
    fn a_connection_that_breaks_before_the_close_is_answered_has_confirmed_nothing() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = listener.local_addr().expect("bound");
        std::thread::scope(|scope| {
            scope.spawn(|| hang_up_at_close(listener.accept().expect("a client").0));
            let client = Client::connect(addr, "test", Sasl::None, Duration::from_secs(5));
            let closed = client.expect("let in").close();
            assert!(matches!(closed, Err(ClientError::Closed(CloseReason::Eof))), "{closed:?}");
        });
    }

    #[test]
    fn nobody_listening_is_an_error_at_once() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = listener.local_addr().expect("bound");
        drop(listener);
        let refused = Client::connect(addr, "test", Sasl::None, Duration::from_secs(1));
        assert!(matches!(refused, Err(ClientError::Io(_))));
    }

    #[test]
    fn a_silent_peer_is_an_error_within_the_bound() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = listener.local_addr().expect("bound");
        let refused = Client::connect(addr, "test", Sasl::None, Duration::from_millis(50));
        assert!(matches!(refused, Err(ClientError::TimedOut("open"))));
    }
}
