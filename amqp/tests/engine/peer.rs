//! A scripted peer: says any frame, and hears the engine's answers as lines of text.

use std::time::{Duration, Instant};

use amqp::codec::Symbol;
use amqp::connection::{Config, Connection, Event, Side};
use amqp::definitions::{Condition, DeliveryId, Handle, Role, SenderSettleMode};
use amqp::frame::{self, FrameKind, FrameWriter, ProtocolId};
use amqp::link::{AcceptLink, LinkId, LinkSource, LinkTarget};
use amqp::performative::{
    AnySource, AnyTarget, Attach, Begin, DeliveryState, Detach, Disposition, Error, Flow, Open,
    Performative, Source, Target, Transfer,
};
use amqp::sasl::SaslBody;
use amqp::session::SessionId;

/// The peer, and the connection that it talks to.
pub(crate) struct Peer {
    pub(crate) engine: Connection,
    pub(crate) now: Instant,
    heard: Vec<u8>,
}

pub(crate) fn config() -> Config {
    Config { container_id: "engine".into(), ..Config::default() }
}

/// A moment to start from.
#[expect(clippy::disallowed_methods, reason = "any moment does; all others are counted from it")]
pub(crate) fn start() -> Instant {
    Instant::now()
}

pub(crate) fn open() -> Open<'static> {
    Open { container_id: "peer", ..Open::default() }
}

pub(crate) fn begin() -> Begin<'static> {
    Begin { incoming_window: 1000, outgoing_window: 1000, ..Begin::default() }
}

/// An attach of the side that sends to the engine.
pub(crate) fn sender(name: &'static str, handle: u32) -> Attach<'static> {
    Attach {
        name,
        handle: Handle(handle),
        role: Role::Sender,
        snd_settle_mode: SenderSettleMode::Mixed,
        source: Some(AnySource::Source(Source::default())),
        target: Some(AnyTarget::Target(Target { address: Some("q"), ..Target::default() })),
        initial_delivery_count: Some(0),
        ..Attach::default()
    }
}

/// An attach of the side that receives from the engine.
pub(crate) fn receiver(name: &'static str, handle: u32) -> Attach<'static> {
    Attach {
        name,
        handle: Handle(handle),
        role: Role::Receiver,
        source: Some(AnySource::Source(Source { address: Some("q"), ..Source::default() })),
        target: Some(AnyTarget::Target(Target::default())),
        ..Attach::default()
    }
}

pub(crate) fn credit(handle: u32, link_credit: u32) -> Flow<'static> {
    Flow {
        next_incoming_id: Some(0),
        incoming_window: 1000,
        outgoing_window: 1000,
        handle: Some(Handle(handle)),
        delivery_count: Some(0),
        link_credit: Some(link_credit),
        ..Flow::default()
    }
}

/// A whole unsettled delivery whose tag is its id.
pub(crate) fn transfer(handle: u32, id: u32) -> Transfer<'static> {
    const TAGS: [[u8; 1]; 256] = {
        let mut tags = [[0; 1]; 256];
        let mut at = 0;
        while at < 256 {
            tags[at][0] = at as u8;
            at += 1;
        }
        tags
    };
    Transfer {
        handle: Handle(handle),
        delivery_id: Some(DeliveryId(id)),
        delivery_tag: Some(&TAGS[id as usize & 255]),
        message_format: Some(0),
        ..Transfer::default()
    }
}

pub(crate) fn disposition(role: Role, first: u32, last: u32) -> Disposition<'static> {
    Disposition {
        role,
        first: DeliveryId(first),
        last: Some(DeliveryId(last)),
        settled: true,
        state: Some(DeliveryState::Accepted),
        ..Disposition::default()
    }
}

pub(crate) fn detach(handle: u32, closed: bool) -> Performative<'static> {
    Performative::Detach(Detach { handle: Handle(handle), closed, error: None })
}

impl Peer {
    /// A peer of a fresh connection.
    pub(crate) fn new(config: Config, side: Side) -> Self {
        let now = start();
        Self { engine: Connection::new(config, side, now), now, heard: Vec::new() }
    }

    /// A peer of a server that has opened, with one session on channel 0.
    pub(crate) fn in_session(config: Config) -> Self {
        Self::in_session_with(config, &open(), &begin())
    }

    pub(crate) fn in_session_with(config: Config, open: &Open<'_>, begin: &Begin<'_>) -> Self {
        let mut peer = Self::new(config, Side::Server);
        peer.say_bytes(&ProtocolId::Amqp.header());
        peer.say(0, Performative::Open(*open));
        peer.engine.open();
        peer.say(0, Performative::Begin(*begin));
        assert_eq!(peer.hears(), ["header 0", "open", "begin@0 for 0"]);
        peer.events();
        peer
    }

    /// As `in_session`, with a link on which the peer sends with credit, on handle 0.
    pub(crate) fn sending(config: Config, credit: u32) -> (Self, LinkId) {
        let mut peer = Self::in_session(config);
        let link = peer.attach(sender("out", 0));
        peer.engine.grant_credit(link, credit);
        peer.hears();
        (peer, link)
    }

    /// As `in_session`, with a link on which the peer receives and gave credit, on handle 0.
    pub(crate) fn receiving(config: Config, link_credit: u32) -> (Self, LinkId) {
        let mut peer = Self::in_session(config);
        let link = peer.attach(receiver("in", 0));
        peer.say(0, Performative::Flow(credit(0, link_credit)));
        peer.hears();
        peer.events();
        (peer, link)
    }

    /// Attaches, and the engine's host accepts.
    pub(crate) fn attach(&mut self, attach: Attach<'_>) -> LinkId {
        self.say(0, Performative::Attach(attach));
        let link = self.attached();
        self.accept(link);
        link
    }

    /// The link of the one `AttachReceived` that is expected.
    pub(crate) fn attached(&mut self) -> LinkId {
        let events = self.events();
        let [Event::AttachReceived { link, .. }] = &events[..] else {
            panic!("one attach was expected: {events:?}");
        };
        *link
    }

    pub(crate) fn accept(&mut self, link: LinkId) {
        self.engine.accept_link(
            link,
            AcceptLink {
                source: Some(LinkSource::at("q")),
                target: Some(LinkTarget::at("q")),
                ..AcceptLink::default()
            },
        );
    }

    pub(crate) fn say_bytes(&mut self, bytes: &[u8]) {
        self.engine.handle_bytes(self.now, bytes);
    }

    pub(crate) fn say(&mut self, channel: u16, performative: Performative<'_>) {
        self.say_bytes(&encode(channel, &performative));
    }

    pub(crate) fn transfer(&mut self, transfer: Transfer<'_>, payload: &[u8]) {
        let mut bytes = Vec::new();
        let mut frame = FrameWriter::amqp(&mut bytes, 0);
        frame.composite(&transfer);
        frame.payload(payload);
        frame.finish();
        self.say_bytes(&bytes);
    }

    pub(crate) fn sasl(&mut self, body: &SaslBody<'_>) {
        let mut bytes = Vec::new();
        frame::write_sasl(&mut bytes, body);
        self.say_bytes(&bytes);
    }

    /// Time passes, and the engine's timers with it.
    pub(crate) fn wait(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(due) = self.engine.poll_timeout().filter(|due| *due <= until) {
            self.now = due;
            self.engine.handle_timeout(due);
            if self.engine.poll_timeout() == Some(due) {
                break;
            }
        }
        self.now = until;
    }

    pub(crate) fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.engine.poll_event()).collect()
    }

    /// What the engine said since, one line a frame.
    pub(crate) fn hears(&mut self) -> Vec<String> {
        while self.engine.poll_transmit(&mut self.heard) {}
        let mut lines = Vec::new();
        let mut rest = &self.heard[..];
        while !rest.is_empty() {
            if rest.starts_with(b"AMQP") {
                lines.push(format!("header {}", rest[4]));
                rest = &rest[8..];
                continue;
            }
            let (frame, len) = frame::parse(rest, u32::MAX).unwrap().expect("whole frames");
            lines.push(match frame.kind {
                FrameKind::Sasl => sasl_line(&SaslBody::decode(frame.body).unwrap()),
                FrameKind::Amqp if frame.body.is_empty() => "heartbeat".into(),
                FrameKind::Amqp => {
                    let (performative, payload) = Performative::decode(frame.body).unwrap();
                    line(frame.channel, &performative, payload, len)
                }
            });
            rest = &rest[len..];
        }
        self.heard.clear();
        lines
    }

    /// The raw bytes that the engine said since.
    pub(crate) fn hears_bytes(&mut self) -> Vec<u8> {
        while self.engine.poll_transmit(&mut self.heard) {}
        std::mem::take(&mut self.heard)
    }
}

/// The session of an event that brings one.
pub(crate) fn session_of(events: &[Event]) -> SessionId {
    let begun = events.iter().find_map(|event| match event {
        Event::SessionBegun { session } => Some(*session),
        _ => None,
    });
    begun.expect("a session that has begun")
}

pub(crate) fn encode(channel: u16, performative: &Performative<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::write(&mut bytes, channel, performative);
    bytes
}

pub(crate) fn error(condition: Condition) -> Error<'static> {
    Error { condition: condition.symbol(), ..Error::default() }
}

fn sasl_line(body: &SaslBody<'_>) -> String {
    match body {
        SaslBody::Mechanisms(mechanisms) => {
            let names: Vec<&str> =
                mechanisms.sasl_server_mechanisms.iter().map(Symbol::as_str).collect();
            format!("mechanisms {}", names.join(" "))
        }
        SaslBody::Init(init) => format!("init {}", init.mechanism),
        SaslBody::Challenge(_) => "challenge".into(),
        SaslBody::Response(_) => "response".into(),
        SaslBody::Outcome(outcome) => format!("outcome {}", outcome.code.name()),
    }
}

fn line(channel: u16, performative: &Performative<'_>, payload: &[u8], size: usize) -> String {
    let because = |error: &Option<Error<'_>>| {
        error.map(|error| format!(" {}", error.condition)).unwrap_or_default()
    };
    match performative {
        Performative::Open(_) => "open".into(),
        Performative::Begin(begin) => match begin.remote_channel {
            Some(remote) => format!("begin@{channel} for {remote}"),
            None => format!("begin@{channel}"),
        },
        Performative::Attach(attach) => {
            let source = match attach.source {
                Some(AnySource::Source(source)) => source.address.unwrap_or("-"),
                Some(AnySource::Other(_)) => "other",
                None => "null",
            };
            let target = match attach.target {
                Some(AnyTarget::Target(target)) => target.address.unwrap_or("-"),
                Some(AnyTarget::Coordinator(_)) => "coordinator",
                Some(AnyTarget::Other(_)) => "other",
                None => "null",
            };
            let (name, handle) = (attach.name, attach.handle.0);
            let (role, snd) = (attach.role.name(), attach.snd_settle_mode.name());
            let rcv = attach.rcv_settle_mode.name();
            format!("attach@{channel} {handle} {name} {role} {snd} {rcv} {source}>{target}")
        }
        Performative::Flow(flow) => {
            let mut line = format!(
                "flow@{channel} in {}+{}",
                flow.next_incoming_id.unwrap_or(u32::MAX),
                flow.incoming_window
            );
            if let Some(handle) = flow.handle {
                let (count, credit) = (flow.delivery_count.unwrap(), flow.link_credit.unwrap());
                line += &format!(" link {} {count}+{credit}", handle.0);
            }
            line + if flow.drain { " drain" } else { "" } + if flow.echo { " echo" } else { "" }
        }
        Performative::Transfer(transfer) => {
            let id = transfer.delivery_id.map(|id| format!(" id {}", id.0)).unwrap_or_default();
            let settled = if transfer.settled == Some(true) { " settled" } else { "" };
            let more = match (transfer.more, transfer.aborted) {
                (_, true) => " aborted",
                (true, false) => " more",
                (false, false) => "",
            };
            let handle = transfer.handle.0;
            let bytes = payload.len();
            assert!(size >= bytes);
            format!("transfer@{channel} {handle}{id}{settled}{more} {bytes} B")
        }
        Performative::Disposition(disposition) => {
            let first = disposition.first.0;
            let last = disposition.last.map_or(first, |last| last.0);
            let state = match disposition.state {
                None => "",
                Some(DeliveryState::Accepted) => " accepted",
                Some(DeliveryState::Rejected(_)) => " rejected",
                Some(DeliveryState::Released) => " released",
                Some(DeliveryState::Modified(_)) => " modified",
                Some(_) => " other",
            };
            let settled = if disposition.settled { " settled" } else { "" };
            let role = disposition.role.name();
            format!("disposition@{channel} {role} {first}..={last}{settled}{state}")
        }
        Performative::Detach(detach) => {
            let closed = if detach.closed { " closed" } else { "" };
            format!("detach@{channel} {}{closed}{}", detach.handle.0, because(&detach.error))
        }
        Performative::End(end) => format!("end@{channel}{}", because(&end.error)),
        Performative::Close(close) => format!("close{}", because(&close.error)),
    }
}
