//! One AMQP 1.0 connection, sans-IO, in both roles.
//!
//! ```text
//!  socket --handle_bytes--> input -> frame -> performative -> session -> link -> poll_event
//!                             |  parked while the host owes an answer that the next frame needs
//!  socket <-poll_transmit--- out  <- frames, in the order of the commands
//!                             ^ flows and dispositions are gathered, and written when polled
//! ```
//!
//! Four kinds of methods: getters; `handle_*` takes an input; commands; `poll_*` hands out outputs
//! until there are none. After any input or command: poll events, then bytes, then events again
//! (taking bytes may bring `SendReady`), then the timeout. Read from the socket only while
//! [`Connection::wants_read`].
//!
//! Invariants: nothing that a peer sends makes it panic or hold memory beyond the bounds of
//! [`Config`]; an id names one session or link for ever; commands for what is gone do nothing;
//! `Closed` is the last event.
//!
//! Failure: a fault ends what its scope says (link, session or connection) with an error on the
//! wire and an event, and input for what ended is dropped until the peer has answered.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::definitions::Role;
use crate::delivery::tags::TagKeys;
use crate::delivery::{DeliveryId, Outcome};
use crate::error::Error;
use crate::frame::MAX_FRAME_SIZE_MIN;
use crate::link::{AcceptLink, Link, LinkId, NewLink};
use crate::sasl::{Mechanism, Mechanisms};
use crate::session::{Session, SessionId};

mod event;
mod handshake;
mod input;
mod links;
mod output;
mod sessions;
mod slots;
pub(crate) mod state;
mod transfers;

pub use event::{CloseReason, Event, Password, RemoteOpen, SaslCode, SaslPlain, SaslScram};

use slots::Slots;
use state::{ConnectionState, LinkState, SessionState};

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
    /// The highest handle that we take, a session; at most 65,535. Default 1,023.
    pub handle_max: u32,
    /// Silence of the peer after which we close; half of it is advertised. Default 60 s.
    pub idle_time_out: Option<Duration>,
    /// From the first byte to the peer's open. Default 10 s.
    pub handshake_timeout: Duration,
    /// From our close to the peer's, and from the end of the connection until what the peer has
    /// not read is dropped. Default 5 s.
    pub close_timeout: Duration,
    /// The largest message that we take, in bytes. Default 16 MiB.
    pub max_message_size: u64,
    /// Frames that a session takes before it re-advertises. Default 2,048.
    pub incoming_window: u32,
    /// Unsettled incoming deliveries, a session; the window shrinks as it is neared. Unfinished
    /// messages count: no more than links of a session, these would wait for each other.
    /// Default 8,192.
    pub unsettled_incoming_max: u32,
    /// Unsettled outgoing deliveries, a session; `can_send` is false at it. Default 8,192.
    pub unsettled_outgoing_max: u32,
    /// Unsettled deliveries of all sessions, each way. A new session's own bounds are at most half
    /// of what the others leave of it, and at least 256. Default 65,536.
    pub unsettled_max: u32,
    /// Links of all sessions, those among them whose detach the peer has not answered. Default
    /// 8,192.
    pub links_max: usize,
    /// Bytes of unfinished incoming messages. Default 64 MiB.
    pub reassembly_bytes_max: u64,
    /// A message of several transfers that is longer than this comes to the host in parts; bytes.
    /// By default none is.
    pub gather_bytes_max: u64,
    /// Bytes of such a part; the last is shorter, and so are others where memory is short.
    /// Default 63 KiB.
    pub part_bytes: usize,
    /// Bytes waiting for `poll_transmit` at which `can_send` is false; reading stops at twice as
    /// many and a frame. Default 1 MiB.
    pub transmit_bytes_max: usize,
    /// What is asked of the peer, or done, before open.
    pub sasl: Sasl,
    /// Extensions that our open offers.
    pub offered_capabilities: Vec<String>,
    /// Extensions that our open wants.
    pub desired_capabilities: Vec<String>,
    /// The encoded property map of our open.
    pub properties: Option<Bytes>,
    /// Server: what takes their place where the open would be longer than the peer's frames.
    pub short_properties: Option<Bytes>,
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
            unsettled_max: 65_536,
            links_max: 8192,
            reassembly_bytes_max: 64 << 20,
            gather_bytes_max: u64::MAX,
            part_bytes: 63 << 10,
            transmit_bytes_max: 1 << 20,
            sasl: Sasl::None,
            offered_capabilities: Vec::new(),
            desired_capabilities: Vec::new(),
            properties: None,
            short_properties: None,
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
        /// These are offered, the strongest first.
        mechanisms: Mechanisms,
        /// Take clients without a SASL layer.
        bare: bool,
    },
    /// Client: choose ANONYMOUS.
    Anonymous,
    /// Client: choose EXTERNAL, as the user that the certificate below names.
    External,
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
    /// The session's window is closed, a message is under way (on this link, or it and this one
    /// are of several frames), the unsettled table is full or too many bytes wait to be written:
    /// wait for `SendReady`.
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
    /// What is to be said of the link is longer than the peer's frames may be.
    TooLong,
}

/// So many bytes may wait for the peer to read without counting as unread.
pub const UNREAD_BYTES_FREE: usize = 64 << 10;

/// A buffer keeps room for so many bytes, however few are in it.
const BUFFER_BYTES_KEPT: usize = 64 << 10;

/// And that of the events for so many.
const EVENTS_KEPT: usize = 256;

/// Gives back the room of a buffer of which three quarters and more are empty.
fn trim(buffer: &mut Vec<u8>) {
    if buffer.capacity() > BUFFER_BYTES_KEPT && buffer.len() < buffer.capacity() / 4 {
        buffer.shrink_to(2 * buffer.len());
    }
}

/// An AMQP 1.0 connection: see the head of the file.
#[derive(Debug)]
pub struct Connection {
    config: Config,
    side: Side,
    state: ConnectionState,
    /// What the host last said the time is.
    now: Instant,
    last_received: Instant,
    reads_withheld: bool,
    last_sent: Instant,
    /// When the handshake, the wait for the peer's close, or that for it to read, is over.
    deadline: Instant,

    /// The beginning of a frame, or all that is parked.
    input: Vec<u8>,
    /// When `input` was last empty.
    input_since: Instant,
    /// The next frame waits for a `detach` or `end` that the host owes.
    stalled: bool,
    /// The mechanism that the client chose.
    mechanism: Option<Mechanism>,
    /// SCRAM's first message has come.
    scram_begun: bool,
    /// `Closed` was told: the host wants nothing more.
    over: bool,
    out: Vec<u8>,
    events: VecDeque<Event>,

    /// The peer's limits; those of an unopened connection before its open.
    remote_max_frame_size: u32,
    remote_channel_max: u16,
    remote_idle_time_out: Option<Duration>,

    sessions: Slots<Session>,
    links: Slots<Link>,
    /// What all sessions may have unsettled, each way.
    unsettled_granted: u32,
    /// Sessions by our channel and by the peer's.
    local_channels: Vec<Option<u32>>,
    remote_channels: Vec<Option<u32>>,
    /// The link that an attach with this name, and this role of ours, is about.
    names: BTreeMap<(Box<str>, bool), u32>,
    /// Bytes in the names of all links.
    link_name_bytes: usize,
    /// Sessions with a disposition or flow of their own due, and links with a flow due.
    due_sessions: Vec<u32>,
    due_links: Vec<u32>,
    tag_keys: TagKeys,
    /// Bytes in unfinished incoming messages.
    reassembly_bytes: u64,
    /// Some of them may have so much that the host can be given a part.
    may_give: bool,
}

impl Connection {
    /// A new connection. A client's first bytes are ready to be polled.
    ///
    /// # Panics
    /// If the config is wrong in itself: `max_frame_size` below 512, `handle_max` above 65,535, a
    /// window of 0, a server's SASL that offers nothing or a client's that is a server's,
    /// properties that are not an encoded map.
    pub fn new(config: Config, side: Side, now: Instant) -> Self {
        assert!(config.max_frame_size >= MAX_FRAME_SIZE_MIN, "max_frame_size is below 512");
        assert!(config.handle_max <= 65_535, "handle_max is above 65,535");
        let windows = [config.incoming_window, config.unsettled_incoming_max];
        assert!(!windows.contains(&0), "a session that may receive nothing");
        let fits = match (&config.sasl, side) {
            (Sasl::None, Side::Client | Side::Server) => true,
            (Sasl::Server { mechanisms, bare: _ }, Side::Server) => *mechanisms != Mechanisms::NONE,
            (Sasl::Anonymous | Sasl::External | Sasl::Plain { .. }, Side::Client) => true,
            (Sasl::Server { .. }, Side::Client) => false,
            (Sasl::Anonymous | Sasl::External | Sasl::Plain { .. }, Side::Server) => false,
        };
        assert!(fits, "the SASL settings are those of the other side, or offer nothing");
        let deadline = now + config.handshake_timeout;
        let tag_keys = TagKeys::new(config.tag_seed);
        let mut connection = Self {
            config,
            side,
            state: ConnectionState::HeaderWait,
            now,
            last_received: now,
            reads_withheld: false,
            last_sent: now,
            deadline,
            input: Vec::new(),
            input_since: now,
            stalled: false,
            mechanism: None,
            scram_begun: false,
            over: false,
            out: Vec::new(),
            events: VecDeque::new(),
            remote_max_frame_size: MAX_FRAME_SIZE_MIN,
            remote_channel_max: u16::MAX,
            remote_idle_time_out: None,
            sessions: Slots::new(),
            links: Slots::new(),
            unsettled_granted: 0,
            local_channels: Vec::new(),
            remote_channels: Vec::new(),
            names: BTreeMap::new(),
            link_name_bytes: 0,
            due_sessions: Vec::new(),
            due_links: Vec::new(),
            tag_keys,
            reassembly_bytes: 0,
            may_give: false,
        };
        connection.greet();
        connection
    }

    // Getters.

    /// Whether the host should read on: false while the host owes an answer that the next frame
    /// needs, while far too many answers wait to be written, and once the peer has nothing more
    /// to say.
    ///
    /// Messages alone never stop the reading: they stop at `transmit_bytes_max`, this twice as
    /// far. A peer that reads only when it has written would wait for us for ever.
    pub fn wants_read(&self) -> bool {
        self.state != ConnectionState::Closed && !self.is_parked() && !self.answers_pile_up()
    }

    /// The peer asks more than it reads the answers of.
    fn answers_pile_up(&self) -> bool {
        let bound = 2 * self.config.transmit_bytes_max + self.config.max_frame_size as usize;
        self.out.len() >= bound
    }

    /// Bytes that the next `poll_transmit` hands out, without the flows and dispositions that it
    /// adds.
    pub fn transmit_bytes_pending(&self) -> usize {
        self.out.len()
    }

    /// Whether `poll_transmit` would give anything.
    pub fn wants_transmit(&self) -> bool {
        !self.out.is_empty() || !self.due_sessions.is_empty() || !self.due_links.is_empty()
    }

    /// The connection is over and all is written: shut down the writing half.
    pub fn is_drained(&self) -> bool {
        self.over && self.out.is_empty()
    }

    /// Drained, and the peer has closed too, or its time is up: close the socket.
    pub fn is_finished(&self) -> bool {
        self.is_drained() && self.state == ConnectionState::Closed
    }

    /// Bytes that are held of messages and frames of which the peer owes the rest, and
    /// [unread](Self::unread_bytes) ones.
    #[inline]
    pub fn unfinished_bytes(&self) -> u64 {
        self.reassembly_bytes + self.input.len() as u64 + self.unread_bytes()
    }

    /// Bytes that wait for the peer to read; 0 up to 64 KiB, which everybody has now and then.
    #[inline]
    pub fn unread_bytes(&self) -> u64 {
        let unread = self.out.len();
        if unread > UNREAD_BYTES_FREE { unread as u64 } else { 0 }
    }

    /// When the oldest of the messages, or the frame, began of which the peer owes the rest.
    pub fn unfinished_since(&self) -> Option<Instant> {
        let frame = (!self.input.is_empty()).then_some(self.input_since);
        let partials = self.links.iter().filter_map(|(_, link)| link.partial.as_ref());
        partials.map(|partial| partial.since).chain(frame).min()
    }

    /// Gives back what buffers and tables take far beyond what is in them. Costs time by the
    /// sessions; what is needed again soon is taken again, so this is for now and then.
    pub fn trim(&mut self) {
        trim(&mut self.input);
        trim(&mut self.out);
        if self.events.capacity() > EVENTS_KEPT && self.events.is_empty() {
            self.events = VecDeque::new();
        }
        self.sessions.iter_mut().for_each(|(_, session)| session.trim());
    }

    /// As receiver: gives the host what has come of unfinished messages, where that is so many
    /// bytes, so that they take no memory here; not of one whose head is not there yet.
    pub fn give_parts(&mut self, bytes_min: usize) {
        self.give_unfinished(bytes_min.max(2));
    }

    /// Deliveries that may be sent (we send) or may still come (we receive), by credit alone.
    pub fn link_credit(&self, link: LinkId) -> u32 {
        self.live_link(link).map_or(0, |link| link.credit)
    }

    /// Whether [`send_begin`](Self::send_begin) would begin a message now.
    pub fn can_begin(&self, link: LinkId) -> bool {
        self.sendable(link).is_ok() && self.is_unoccupied(link.index)
    }

    /// Whether `send` would take a message that is small enough.
    pub fn can_send(&self, link: LinkId) -> bool {
        self.sendable(link).is_ok()
    }

    /// The session of a link.
    pub fn link_session(&self, link: LinkId) -> Option<SessionId> {
        Some(self.session_id(self.live_link(link)?.session))
    }

    // Inputs.

    /// Bytes from the peer. Violations become a close frame and an event.
    pub fn handle_bytes(&mut self, now: Instant, bytes: &[u8]) {
        self.now = now;
        self.last_received = now;
        self.take_input(bytes);
    }

    /// The host stops reading, or reads again. A peer that is not read cannot be blamed for
    /// silence: its idle time begins anew when it is read again.
    pub fn withhold_reads(&mut self, now: Instant, withheld: bool) {
        if self.reads_withheld != withheld {
            self.reads_withheld = withheld;
            self.last_received = self.last_received.max(now);
        }
    }

    /// The peer will send no more bytes.
    pub fn handle_eof(&mut self, now: Instant) {
        self.now = now;
        self.finish(CloseReason::Eof);
    }

    /// Time passed: call it at or after `poll_timeout`.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        self.check_timers();
    }

    // Commands. A command for what is gone does nothing.

    /// Server: answers any event of SASL.
    pub fn sasl_outcome(&mut self, code: SaslCode) {
        self.sasl_outcome_with(code, None);
    }

    /// Server: as `sasl_outcome`, with what the mechanism has to say at its end.
    pub fn sasl_outcome_with(&mut self, code: SaslCode, additional_data: Option<&[u8]>) {
        if self.side == Side::Server && self.state == ConnectionState::SaslPending {
            self.answer_sasl(code, additional_data);
            self.resume_input();
        }
    }

    /// Server: answers the first `SaslScram`; a second one brings the client's proof.
    pub fn sasl_challenge(&mut self, challenge: &[u8]) {
        if self.side == Side::Server && self.state == ConnectionState::SaslPending {
            self.challenge(challenge);
            self.resume_input();
        }
    }

    /// Server: answers `Opened` with our open.
    pub fn open(&mut self) {
        if self.state.next(state::ConnectionEvent::LocalOpen).is_some() {
            self.write_open();
            self.step(state::ConnectionEvent::LocalOpen);
            self.resume_input();
        }
    }

    /// Server: answers `Opened` with an open that has these properties, an encoded map, and a close
    /// with the error [2.4.1].
    ///
    /// # Panics
    /// As [`Connection::new`], where the properties are none.
    pub fn refuse_open(&mut self, properties: Bytes, error: Error) {
        if self.state == ConnectionState::OpenReceived {
            self.config.properties = Some(properties);
            self.close_connection(Some(error));
        }
    }

    /// Begins a session; `SessionBegun` tells when it is up.
    ///
    /// # Errors
    /// `NotOpen` before `Opened` and from the close on; `Exhausted` above the peer's channel-max.
    pub fn begin(&mut self) -> Result<SessionId, BeginError> {
        self.begin_session()
    }

    /// Asks for a link that we send on; `Attached` or `Detached` tells.
    ///
    /// # Errors
    /// `NotOpen` where the session is not up; `Exhausted` above the peer's handle-max, or with as
    /// many links as there may be; `NameInUse`; `TooLong`.
    pub fn attach_sender(
        &mut self,
        session: SessionId,
        link: NewLink,
    ) -> Result<LinkId, BeginError> {
        self.attach(session, link, Role::Sender)
    }

    /// Asks for a link that we receive on; `Attached` or `Detached` tells. Credit may be granted
    /// at once.
    ///
    /// # Errors
    /// As [`Connection::attach_sender`].
    pub fn attach_receiver(
        &mut self,
        session: SessionId,
        link: NewLink,
    ) -> Result<LinkId, BeginError> {
        self.attach(session, link, Role::Receiver)
    }

    /// Answers `AttachReceived`: the link is up.
    pub fn accept_link(&mut self, link: LinkId, accept: AcceptLink) {
        if self.is_in(link, LinkState::AttachReceived) {
            self.accept(link.index, &accept);
        }
    }

    /// Answers `AttachReceived`: attach with null terminus, then detach with the error [2.6.3].
    /// The id names nothing from now on.
    pub fn refuse_link(&mut self, link: LinkId, error: Error) {
        if self.is_in(link, LinkState::AttachReceived) {
            self.refuse(link.index, error);
        } else {
            self.detach(link, true, Some(error));
        }
    }

    /// As receiver: sets the link's credit to this many deliveries from now (absolute).
    pub fn grant_credit(&mut self, link: LinkId, credit: u32) {
        if let Some(receiver) = self.live_link_mut(link)
            && receiver.role == Role::Receiver
        {
            receiver.grant(credit);
            self.link_flow_due(link.index);
        }
    }

    /// As receiver: asks the sender to use up the credit now or give it back; `Drained` tells.
    pub fn drain(&mut self, link: LinkId) {
        if let Some(receiver) = self.live_link_mut(link)
            && receiver.role == Role::Receiver
        {
            receiver.drain = true;
            self.link_flow_due(link.index);
        }
    }

    /// As sender: sends a message given in parts. It is copied; a message that the window cuts in
    /// two waits inside, one a session. Meanwhile other links of the session send what fits a
    /// frame.
    ///
    /// # Errors
    /// See [`SendError`]; nothing was changed.
    pub fn send(
        &mut self,
        link: LinkId,
        parts: &[&[u8]],
        settled: bool,
    ) -> Result<DeliveryId, SendError> {
        self.send_message(link, parts, None, settled)
    }

    /// As sender: sends a message whose end is `rest`, from its byte `from` on. As `send`, but
    /// what has to wait inside is shared, not copied.
    ///
    /// # Errors
    /// See [`SendError`]; nothing was changed.
    pub fn send_shared(
        &mut self,
        link: LinkId,
        head: &[u8],
        (rest, from): (&Bytes, usize),
        settled: bool,
    ) -> Result<DeliveryId, SendError> {
        self.send_message(link, &[head, &rest[from..]], Some(rest), settled)
    }

    /// As sender: begins a message of `bytes` in all whose first are in `parts`. The rest is given
    /// by [`send_part`](Self::send_part), each when it is asked for by `PartWanted`. Until then it
    /// is the one message of its session that waits inside.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn send_begin(
        &mut self,
        link: LinkId,
        parts: &[&[u8]],
        bytes: u64,
        settled: bool,
    ) -> Result<DeliveryId, SendError> {
        self.begin_message(link, parts, bytes, settled)
    }

    /// As sender: the next part of the message that was begun on this link, and whether it is the
    /// last. False, and nothing happened, where no part is wanted.
    pub fn send_part(&mut self, link: LinkId, part: Bytes, is_last: bool) -> bool {
        self.live_link(link).is_some() && self.give_part(link.index, part, is_last)
    }

    /// As sender: gives the message up that was begun on this link [2.6.14].
    pub fn send_abort(&mut self, link: LinkId) {
        if self.live_link(link).is_some() {
            self.abort_message(link.index);
        }
    }

    /// As sender: no more messages for now. Answers a drain: the remaining credit is given back.
    pub fn drained(&mut self, link: LinkId) {
        if self.live_link(link).is_some_and(|link| link.drain_owed) {
            self.answer_drain(link.index);
        }
    }

    /// As receiver: settles a delivery with its outcome. Neighbours with the same outcome share a
    /// disposition.
    #[inline(always)]
    pub fn settle(&mut self, link: LinkId, delivery: DeliveryId, outcome: Outcome) {
        if let Some(receiver) = self.live_link(link) {
            self.settle_incoming((receiver.session, link.index), delivery.0, outcome);
        }
    }

    /// As sender: settles a delivery whose outcome came unsettled.
    pub fn settle_outgoing(&mut self, link: LinkId, delivery: DeliveryId) {
        if self.live_link(link).is_some() {
            self.settle_sent(link.index, delivery.0);
        }
    }

    /// Detaches a link: answers `DetachReceived` (with the peer's own `closed`), or begins it
    /// (`Detached` tells when the peer has answered).
    pub fn detach(&mut self, link: LinkId, closed: bool, error: Option<Error>) {
        if self.live_link(link).is_some() {
            self.detach_link(link.index, closed, error.as_ref());
            self.resume_input();
        }
    }

    /// Ends a session: answers `EndReceived`, or begins it (`Ended` tells). Its links are gone.
    pub fn end(&mut self, session: SessionId, error: Option<Error>) {
        if self.sessions.is_live(session.index, session.generation) {
            self.end_session(session.index, error.as_ref());
            self.resume_input();
        }
    }

    /// Closes the connection: answers `CloseReceived` or `Opened`, or begins it (`Closed` tells).
    /// Before the peer's open there is nobody to tell: it is over at once.
    pub fn close(&mut self, error: Option<Error>) {
        self.close_connection(error);
    }

    /// Closes the connection without waiting for the peer's answer: what it has sent is dropped,
    /// and with it the memory that it held. Of a peer that is `deaf`, or owed far too many answers,
    /// what waits for it is dropped as well.
    pub fn expel(&mut self, error: Error, deaf: bool) {
        self.expel_peer(error, deaf);
    }

    // Outputs.

    /// When to call `handle_timeout`.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.next_timer()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Appends all bytes for the peer; whether there were any.
    pub fn poll_transmit(&mut self, out: &mut Vec<u8>) -> bool {
        self.gather_output();
        if self.out.is_empty() {
            return false;
        }
        if out.is_empty() {
            std::mem::swap(out, &mut self.out);
        } else {
            out.append(&mut self.out);
        }
        self.last_sent = self.now;
        true
    }

    // Details.

    fn session_id(&self, index: u32) -> SessionId {
        SessionId { index, generation: self.sessions.generation(index) }
    }

    fn link_id(&self, index: u32) -> LinkId {
        LinkId { index, generation: self.links.generation(index) }
    }

    fn live_link(&self, id: LinkId) -> Option<&Link> {
        self.links.get_live(id.index, id.generation).filter(|link| !link.silent)
    }

    fn live_link_mut(&mut self, id: LinkId) -> Option<&mut Link> {
        self.live_link(id)?;
        self.links.get_mut(id.index)
    }

    fn is_in(&self, id: LinkId, state: LinkState) -> bool {
        self.live_link(id).is_some_and(|link| link.state == state)
    }

    /// The session of a link, which lives as long as its links.
    fn session_of(&mut self, link: u32) -> Option<&mut Session> {
        let session = self.links.get(link)?.session;
        self.sessions.get_mut(session)
    }

    fn is_mapped(&self, session: u32) -> bool {
        self.state == ConnectionState::Opened
            && self.sessions.get(session).is_some_and(|s| s.state == SessionState::Mapped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{self, FrameWriter, ProtocolId};
    use crate::performative::{Attach, Begin, Open, Performative, Transfer};

    /// A server with a session and a link on which its peer may send; the link, and the moment.
    fn served() -> (Connection, LinkId, Instant) {
        #[expect(clippy::disallowed_methods, reason = "any moment does")]
        let now = Instant::now();
        let mut engine = Connection::new(Config::default(), Side::Server, now);
        let mut bytes = ProtocolId::Amqp.header().to_vec();
        frame::write(&mut bytes, 0, &Performative::Open(Open::default()));
        engine.handle_bytes(now, &bytes);
        engine.open();
        bytes.clear();
        frame::write(&mut bytes, 0, &Performative::Begin(Begin::default()));
        let initial_delivery_count = Some(0);
        let attach = Attach { role: Role::Sender, initial_delivery_count, ..Attach::default() };
        frame::write(&mut bytes, 0, &Performative::Attach(attach));
        engine.handle_bytes(now, &bytes);
        let attached = |event| {
            let Event::AttachReceived { link, .. } = event else { return None };
            Some(link)
        };
        let link = std::iter::from_fn(|| engine.poll_event()).find_map(attached).expect("a link");
        engine.accept_link(link, AcceptLink::default());
        engine.grant_credit(link, 10_000);
        (engine, link, now)
    }

    fn transfer(id: u32, payload: usize) -> Vec<u8> {
        tagged(id, id, payload)
    }

    fn tagged(id: u32, tag: u32, payload: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut frame = FrameWriter::amqp(&mut bytes, 0);
        frame.composite(&Transfer {
            delivery_id: Some(DeliveryId(id)),
            delivery_tag: Some(&tag.to_be_bytes()),
            ..Transfer::default()
        });
        frame.payload(&vec![7; payload]);
        frame.finish();
        bytes
    }

    #[test]
    fn the_room_of_a_large_frame_is_given_back_and_that_of_one_under_way_is_not() {
        let (mut engine, _, now) = served();
        let large = transfer(0, 1_000_000);
        for piece in large.chunks(50_000) {
            engine.handle_bytes(now, piece);
        }
        assert!(matches!(engine.poll_event(), Some(Event::Transfer { .. })));
        assert!(engine.input.is_empty() && engine.input.capacity() > 900_000);
        engine.trim();
        assert_eq!(engine.input.capacity(), 0);
        let next = transfer(1, 1_000_000);
        engine.handle_bytes(now, &next[..600_000]);
        let room = engine.input.capacity();
        engine.trim();
        assert_eq!((engine.input.len(), engine.input.capacity()), (600_000, room));
        engine.handle_bytes(now, &next[600_000..]);
        assert!(matches!(engine.poll_event(), Some(Event::Transfer { .. })));
    }

    #[test]
    fn tables_of_thousands_give_their_room_back_and_still_know_the_rest() {
        let (mut engine, link, now) = served();
        for id in 0..2000 {
            engine.handle_bytes(now, &transfer(id, 1));
        }
        assert!(engine.events.capacity() >= 2000);
        while engine.poll_event().is_some() {}
        let session = |engine: &Connection| {
            let session = engine.sessions.get(0).expect("a session");
            (session.incoming.room(), session.tags.room())
        };
        let full = session(&engine);
        engine.trim();
        assert_eq!(session(&engine), full, "all is in use");
        assert_eq!(engine.events.capacity(), 0);
        for id in 0..1999 {
            engine.settle(link, DeliveryId(id), Outcome::Accepted);
        }
        engine.trim();
        let (deliveries, tags) = session(&engine);
        assert!(full.0 > 2000 && deliveries < 100, "{full:?} {deliveries}");
        assert!(full.1 > 4000 && tags < 100, "{full:?} {tags}");
        // The last one's tag is still in use, and no other is.
        engine.poll_transmit(&mut Vec::new());
        engine.handle_bytes(now, &tagged(2000, 1998, 1));
        assert!(matches!(engine.poll_event(), Some(Event::Transfer { .. })));
        engine.handle_bytes(now, &tagged(2001, 1999, 1));
        assert!(matches!(engine.poll_event(), Some(Event::Detached { error: Some(_), .. })));
    }
}
