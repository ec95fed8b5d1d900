//! The beginning and the end of a connection: protocol headers, SASL, open, close.
//!
//! ```text
//!  server   <- AMQP.3 header      AMQP.3 header, mechanisms ->        [5.3]
//!           <- init               (Sasl…: the host verifies)
//!         ( <- response           challenge ->   SCRAM; PLAIN without credentials in its init )
//!                                 outcome ->                          not ok: over
//!           <- AMQP.0 header      AMQP.0 header ->                    [2.2]
//!           <- open               (Opened: the host decides)  open ->
//!  a header that does not fit is answered with the one that would, and the connection is over
//! ```
//!
//! Invariants: after an outcome that is not ok nothing more is taken; a refused open is answered
//! by an open and then a close, since clients wait for the first [2.7.1]; credentials are wiped
//! from the engine's own memory when they were handed out and dropped. The buffer that they were
//! read into is the host's, which uses it for the next bytes and does not wipe it.

use std::time::Duration;

use super::state::{ConnectionEvent, ConnectionState};
use super::{CloseReason, Connection, Event, Password, RemoteOpen, Sasl, SaslCode, SaslPlain};
use super::{SaslScram, Side, Slots};
use crate::codec::{Multiple, Symbol};
use crate::error::{Error, Fault, PeerViolation};
use crate::frame::{self, MAX_FRAME_SIZE_MIN, ProtocolId};
use crate::link::{borrow_map, borrow_symbols, own_map, own_symbols};
use crate::performative::{Close, Open, Performative};
use crate::sasl::{Mechanism, SaslBody, SaslChallenge, SaslInit, SaslMechanisms, SaslOutcome};

/// The shortest idle-time-out that we promise to keep [2.4.5].
const IDLE_TIME_OUT_MIN: Duration = Duration::from_millis(100);

impl Connection {
    /// Moves the connection; false, and nothing changed, where its state does not allow the event.
    pub(super) fn step(&mut self, event: ConnectionEvent) -> bool {
        match self.state.next(event) {
            Some(next) => {
                self.state = next;
                true
            }
            None => false,
        }
    }

    /// A client's first bytes.
    pub(super) fn greet(&mut self) {
        match (self.side, &self.config.sasl) {
            (Side::Server, _) => {}
            (Side::Client, Sasl::None) => {
                self.out.extend_from_slice(&ProtocolId::Amqp.header());
                self.write_open();
            }
            (
                Side::Client,
                Sasl::Anonymous | Sasl::External | Sasl::Plain { .. } | Sasl::Server { .. },
            ) => {
                self.out.extend_from_slice(&ProtocolId::Sasl.header());
            }
        }
    }

    /// The peer's protocol header; none where it is not one of AMQP 1.0.0.
    pub(super) fn on_header(&mut self, header: Option<ProtocolId>) {
        let expected = match (self.state, &self.config.sasl) {
            (ConnectionState::AmqpHeaderWait, _) | (_, Sasl::None) => ProtocolId::Amqp,
            (_, Sasl::Server { bare: true, .. }) if header == Some(ProtocolId::Amqp) => {
                ProtocolId::Amqp
            }
            (_, Sasl::Server { .. } | Sasl::Anonymous | Sasl::External | Sasl::Plain { .. }) => {
                ProtocolId::Sasl
            }
        };
        if header != Some(expected) {
            if self.side == Side::Server {
                self.out.extend_from_slice(&expected.header());
            }
            return self.finish(CloseReason::HeaderMismatch);
        }
        if self.side == Side::Server {
            self.out.extend_from_slice(&expected.header());
        }
        if expected == ProtocolId::Amqp {
            self.step(ConnectionEvent::AmqpHeader);
            return;
        }
        self.step(ConnectionEvent::SaslHeader);
        if let Sasl::Server { mechanisms, bare: _ } = self.config.sasl {
            let offered: Vec<Symbol<'_>> =
                mechanisms.iter().map(|mechanism| Symbol::new(mechanism.name())).collect();
            let sasl_server_mechanisms = Multiple::from(&offered[..]);
            let body = SaslBody::Mechanisms(SaslMechanisms { sasl_server_mechanisms });
            frame::write_sasl(&mut self.out, &body);
        }
    }

    /// A SASL frame.
    pub(super) fn on_sasl(&mut self, body: &[u8]) -> Result<(), Fault> {
        match (self.side, self.state, SaslBody::decode(body)?) {
            (Side::Server, ConnectionState::SaslWait, SaslBody::Init(init))
                if self.mechanism.is_none() =>
            {
                self.on_sasl_init(&init);
            }
            (Side::Server, ConnectionState::SaslWait, SaslBody::Response(response))
                if self.mechanism.is_some() =>
            {
                // It was challenged: nothing else leads back to this state.
                if let Some(mechanism) = self.mechanism {
                    self.on_sasl_message(mechanism, response.response);
                }
            }
            (Side::Client, ConnectionState::SaslWait, SaslBody::Mechanisms(offered)) => {
                self.choose_mechanism(&offered);
            }
            (Side::Client, ConnectionState::SaslPending, SaslBody::Outcome(outcome)) => {
                if outcome.code == SaslCode::Ok {
                    self.out.extend_from_slice(&ProtocolId::Amqp.header());
                    self.write_open();
                    self.step(ConnectionEvent::SaslDone);
                } else {
                    self.finish(CloseReason::SaslFailed(outcome.code));
                }
            }
            (
                Side::Client | Side::Server,
                _,
                SaslBody::Mechanisms(_)
                | SaslBody::Init(_)
                | SaslBody::Challenge(_)
                | SaslBody::Response(_)
                | SaslBody::Outcome(_),
            ) => return Err(PeerViolation::SaslState.into()),
        }
        Ok(())
    }

    fn on_sasl_init(&mut self, init: &SaslInit<'_>) {
        let Sasl::Server { mechanisms, bare: _ } = self.config.sasl else {
            return self.finish(CloseReason::SaslFailed(SaslCode::Auth));
        };
        let wanted = init.mechanism.as_str();
        let Some(mechanism) = mechanisms.iter().find(|offered| offered.name() == wanted) else {
            self.step(ConnectionEvent::SaslStep);
            return self.answer_sasl(SaslCode::Auth, None);
        };
        self.mechanism = Some(mechanism);
        match (mechanism, init.initial_response) {
            (Mechanism::Anonymous | Mechanism::External, response) => {
                self.on_sasl_message(mechanism, response.unwrap_or_default());
            }
            (_, Some(response)) => self.on_sasl_message(mechanism, response),
            (Mechanism::Plain | Mechanism::ScramSha256 | Mechanism::ScramSha512, None) => {
                self.step(ConnectionEvent::SaslStep);
                self.challenge(&[]);
            }
        }
    }

    /// Asks the client to go on.
    pub(super) fn challenge(&mut self, challenge: &[u8]) {
        frame::write_sasl(&mut self.out, &SaslBody::Challenge(SaslChallenge { challenge }));
        self.step(ConnectionEvent::SaslMore);
    }

    /// What the client has to say in its mechanism.
    fn on_sasl_message(&mut self, mechanism: Mechanism, message: &[u8]) {
        match mechanism {
            Mechanism::Anonymous => {
                self.step(ConnectionEvent::SaslStep);
                self.events.push_back(Event::SaslAnonymous);
            }
            Mechanism::External => {
                self.step(ConnectionEvent::SaslStep);
                match std::str::from_utf8(message) {
                    Ok(authzid) => {
                        let authzid = authzid.to_owned();
                        self.events.push_back(Event::SaslExternal { authzid });
                    }
                    Err(_) => self.answer_sasl(SaslCode::Auth, None),
                }
            }
            Mechanism::Plain => self.on_plain(message),
            Mechanism::ScramSha256 | Mechanism::ScramSha512 => {
                self.step(ConnectionEvent::SaslStep);
                let first = !std::mem::replace(&mut self.scram_begun, true);
                let message = Password::new(message);
                let scram = SaslScram { mechanism, first, message };
                self.events.push_back(Event::SaslScram(Box::new(scram)));
            }
        }
    }

    /// `authzid NUL user NUL password` (RFC 4616).
    fn on_plain(&mut self, response: &[u8]) {
        self.step(ConnectionEvent::SaslStep);
        let mut fields = response.splitn(3, |byte| *byte == 0);
        let mut text = || std::str::from_utf8(fields.next()?).ok();
        let (authzid, user) = (text(), text());
        match (authzid, user, fields.next()) {
            (Some(authzid), Some(user), Some(password)) if !user.is_empty() => {
                self.events.push_back(Event::SaslPlain(Box::new(SaslPlain {
                    authzid: authzid.to_owned(),
                    user: user.to_owned(),
                    password: Password::new(password),
                })));
            }
            (Some(_) | None, Some(_) | None, Some(_) | None) => {
                self.answer_sasl(SaslCode::Auth, None);
            }
        }
    }

    fn choose_mechanism(&mut self, offered: &SaslMechanisms<'_>) {
        let (mechanism, response) = match &self.config.sasl {
            Sasl::Plain { user, password } => {
                let response = [b"\0", user.as_bytes(), b"\0", password.reveal()].concat();
                (Mechanism::Plain, response)
            }
            Sasl::External => (Mechanism::External, Vec::new()),
            Sasl::None | Sasl::Anonymous | Sasl::Server { .. } => {
                (Mechanism::Anonymous, Vec::new())
            }
        };
        let mechanism = Symbol::new(mechanism.name());
        if !offered.sasl_server_mechanisms.contains(mechanism.as_str()) {
            return self.finish(CloseReason::SaslFailed(SaslCode::Auth));
        }
        let init = SaslInit {
            mechanism,
            initial_response: Some(&response),
            hostname: self.config.hostname.as_deref(),
        };
        frame::write_sasl(&mut self.out, &SaslBody::Init(init));
        self.step(ConnectionEvent::SaslStep);
    }

    /// Server: the outcome, by the host or because no host could say yes.
    pub(super) fn answer_sasl(&mut self, code: SaslCode, additional_data: Option<&[u8]>) {
        let outcome = SaslOutcome { code, additional_data };
        frame::write_sasl(&mut self.out, &SaslBody::Outcome(outcome));
        if code == SaslCode::Ok {
            self.step(ConnectionEvent::SaslDone);
        } else {
            self.finish(CloseReason::SaslFailed(code));
        }
    }

    /// Only a server knows by then what frames the peer takes [2.7.1].
    pub(super) fn write_open(&mut self) {
        let before = self.out.len();
        self.write_open_as_configured();
        let is_too_long = self.out.len() - before > self.remote_max_frame_size as usize;
        if self.side == Side::Server && is_too_long && self.config.short_properties.is_some() {
            self.out.truncate(before);
            self.config.properties = self.config.short_properties.take();
            self.write_open_as_configured();
        }
    }

    fn write_open_as_configured(&mut self) {
        let config = &self.config;
        let offered = borrow_symbols(&config.offered_capabilities);
        let desired = borrow_symbols(&config.desired_capabilities);
        // Half of the real threshold, so that a peer that is a little late survives [2.4.5].
        let advertised = config
            .idle_time_out
            .map(|silence| u32::try_from(silence.as_millis() / 2).unwrap_or(u32::MAX).max(1));
        let open = Open {
            container_id: &config.container_id,
            hostname: config.hostname.as_deref(),
            max_frame_size: config.max_frame_size,
            channel_max: config.channel_max,
            idle_time_out: advertised,
            offered_capabilities: Multiple::from(&offered[..]),
            desired_capabilities: Multiple::from(&desired[..]),
            properties: borrow_map(config.properties.as_deref()),
            ..Open::default()
        };
        frame::write(&mut self.out, 0, &Performative::Open(open));
    }

    pub(super) fn on_open(&mut self, open: &Open<'_>) -> Result<(), Fault> {
        let event = match self.side {
            Side::Server => ConnectionEvent::RemoteOpenToServer,
            Side::Client => ConnectionEvent::RemoteOpenToClient,
        };
        if self.state.next(event).is_none() {
            return Err(PeerViolation::ConnectionState.into());
        }
        if open.max_frame_size < MAX_FRAME_SIZE_MIN {
            return Err(PeerViolation::MaxFrameSizeTooSmall.into());
        }
        let idle_time_out = match open.idle_time_out {
            None | Some(0) => None,
            Some(ms) => Some(Duration::from_millis(u64::from(ms))),
        };
        if idle_time_out.is_some_and(|silence| silence < IDLE_TIME_OUT_MIN) {
            return Err(PeerViolation::IdleTimeOutTooShort.into());
        }
        self.step(event);
        self.remote_max_frame_size = open.max_frame_size;
        self.remote_channel_max = open.channel_max;
        self.remote_idle_time_out = idle_time_out;
        self.events.push_back(Event::Opened(Box::new(RemoteOpen {
            container_id: open.container_id.to_owned(),
            hostname: open.hostname.map(str::to_owned),
            max_frame_size: open.max_frame_size,
            channel_max: open.channel_max,
            idle_time_out,
            offered_capabilities: own_symbols(&open.offered_capabilities),
            desired_capabilities: own_symbols(&open.desired_capabilities),
            properties: open.properties.as_ref().map(own_map),
        })));
        Ok(())
    }

    pub(super) fn on_close(&mut self, close: &Close<'_>) -> Result<(), Fault> {
        let error = close.error.as_ref().map(Error::from_wire);
        let closing = self.state == ConnectionState::CloseSent;
        if !self.step(ConnectionEvent::RemoteClose) {
            return Err(PeerViolation::ConnectionState.into());
        }
        if closing {
            self.announce_end(CloseReason::Closed(error));
        } else {
            self.events.push_back(Event::CloseReceived { error });
        }
        Ok(())
    }

    /// The host's close.
    pub(super) fn close_connection(&mut self, error: Option<Error>) {
        match self.state {
            ConnectionState::CloseReceived => {
                self.write_close(error.as_ref());
                self.step(ConnectionEvent::LocalClose);
                self.announce_end(CloseReason::Closed(error));
            }
            ConnectionState::OpenReceived | ConnectionState::Opened => {
                if self.state == ConnectionState::OpenReceived {
                    self.write_open();
                }
                self.write_close(error.as_ref());
                self.step(ConnectionEvent::LocalClose);
                self.deadline = self.now + self.config.close_timeout;
                self.forget_all();
                self.resume_input();
            }
            ConnectionState::HeaderWait
            | ConnectionState::SaslWait
            | ConnectionState::SaslPending
            | ConnectionState::AmqpHeaderWait
            | ConnectionState::OpenWait => self.finish(CloseReason::Closed(error)),
            ConnectionState::CloseSent | ConnectionState::Closed => {}
        }
    }

    /// A fault that ends the connection: close with its error where the peer can understand one.
    pub(super) fn fail(&mut self, fault: Fault) {
        let error = fault.to_error();
        match self.state {
            ConnectionState::HeaderWait
            | ConnectionState::SaslWait
            | ConnectionState::SaslPending
            | ConnectionState::AmqpHeaderWait
            | ConnectionState::CloseSent
            | ConnectionState::Closed => return self.finish(CloseReason::Violation(error)),
            ConnectionState::OpenWait | ConnectionState::OpenReceived => {
                if self.side == Side::Server {
                    self.write_open();
                }
                self.write_close(Some(&error));
            }
            ConnectionState::Opened | ConnectionState::CloseReceived => {
                self.write_close(Some(&error));
            }
        }
        self.step(ConnectionEvent::LocalClose);
        self.deadline = self.now + self.config.close_timeout;
        self.announce_end(CloseReason::Violation(error));
    }

    /// Our close, and no ear for the peer's.
    pub(super) fn expel_peer(&mut self, error: Error, deaf: bool) {
        let deaf = deaf || self.answers_pile_up();
        match self.state {
            ConnectionState::Opened | ConnectionState::CloseReceived => {
                self.write_close(Some(&error));
            }
            ConnectionState::HeaderWait
            | ConnectionState::SaslWait
            | ConnectionState::SaslPending
            | ConnectionState::AmqpHeaderWait
            | ConnectionState::OpenWait
            | ConnectionState::OpenReceived
            | ConnectionState::CloseSent
            | ConnectionState::Closed => {}
        }
        self.input = Vec::new();
        if deaf {
            // Who does not read will not read this.
            self.out = Vec::new();
        }
        self.finish(CloseReason::Closed(Some(error)));
    }

    /// Over at once: nothing is written but what waits already.
    pub(super) fn finish(&mut self, reason: CloseReason) {
        self.step(ConnectionEvent::Abandon);
        self.announce_end(reason);
    }

    fn announce_end(&mut self, reason: CloseReason) {
        self.forget_all();
        if !self.over {
            self.over = true;
            // For a peer that does not read, even our last words.
            self.deadline = self.now + self.config.close_timeout;
            self.events.push_back(Event::Closed { reason });
        }
    }

    /// Sessions and links are gone; ids of theirs name nothing.
    fn forget_all(&mut self) {
        self.sessions = Slots::new();
        self.links = Slots::new();
        self.unsettled_granted = 0;
        self.local_channels.clear();
        self.remote_channels.clear();
        self.names.clear();
        self.link_name_bytes = 0;
        self.due_sessions.clear();
        self.due_links.clear();
        self.reassembly_bytes = 0;
        self.stalled = false;
    }

    pub(super) fn write_close(&mut self, error: Option<&Error>) {
        self.write_dispositions();
        let close = Close { error: error.map(Error::to_wire) };
        frame::write(&mut self.out, 0, &Performative::Close(close));
    }
}
