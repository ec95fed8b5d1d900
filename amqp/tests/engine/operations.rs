//! A connection driven by bytes: a peer's frames and a host's commands, in any order.
//!
//! ```text
//!  byte 0          side, SASL, sizes, and what is gathered of a message
//!  then, each      0..=0x7F n   the next n bytes are the body of a frame, on channel n & 1
//!                  0x80..=0xBF  the next n - 0x80 bytes as they are
//!                  0xC0..=0xFF  a command, about one of the ids that events have brought
//! ```
//!
//! Fuzzed by `fuzz/fuzz_targets/engine.rs`; a test here feeds it from seeds. Invariants asked: no
//! panic, `Closed` is the last event and comes once, one input never makes output out of
//! proportion, and a message comes whole or in parts of which each but the last has something in it
//! and all together are no more than a message may be.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use amqp::codec::Symbol;
use amqp::connection::{Config, Connection, Event, Sasl, SaslCode, Side};
use amqp::definitions::DeliveryId;
use amqp::delivery::Outcome;
use amqp::error::{Condition, Error};
use amqp::frame::{self, ProtocolId};
use amqp::link::{AcceptLink, LinkId, NewLink};
use amqp::performative::{Begin, Open, Performative};
use amqp::sasl::{Mechanism, Mechanisms};
use amqp::session::SessionId;
use bytes::Bytes;

const OFFERED: Mechanisms = Mechanisms::ANONYMOUS
    .with(Mechanism::Plain, true)
    .with(Mechanism::External, true)
    .with(Mechanism::ScramSha256, true);

struct Driven {
    engine: Connection,
    now: Instant,
    links: Vec<LinkId>,
    sessions: Vec<SessionId>,
    deliveries: Vec<(LinkId, DeliveryId)>,
    /// Bytes that have come of a message that comes in parts.
    parts: BTreeMap<LinkId, usize>,
    closed: bool,
}

const MESSAGE_BYTES_MAX: u64 = 200;

/// Drives a connection by `bytes`, from a moment of the caller's.
pub(crate) fn drive(now: Instant, bytes: &[u8]) {
    let Some((&flags, mut rest)) = bytes.split_first() else { return };
    let mut driven = Driven::new(now, flags);
    while let Some((&operation, after)) = rest.split_first() {
        let len = match operation {
            0..0x80 => usize::from(operation),
            0x80..0xC0 => usize::from(operation - 0x80),
            0xC0..=0xFF => 0,
        };
        let (body, after) = after.split_at(len.min(after.len()));
        rest = after;
        match operation {
            0..0x80 => {
                let size = (body.len() + 8) as u32;
                let mut bytes = size.to_be_bytes().to_vec();
                bytes.extend_from_slice(&[2, 0, 0, operation & 1]);
                bytes.extend_from_slice(body);
                driven.engine.handle_bytes(driven.now, &bytes);
            }
            0x80..0xC0 => driven.engine.handle_bytes(driven.now, body),
            0xC0..=0xFF => driven.command(operation),
        }
        driven.settle_down();
    }
    driven.engine.handle_eof(driven.now);
    driven.settle_down();
    assert!(driven.closed, "the end of the bytes is the end");
}

impl Driven {
    fn new(now: Instant, flags: u8) -> Self {
        let side = if flags & 1 == 0 { Side::Server } else { Side::Client };
        let sasl = match (side, flags & 2) {
            (Side::Server, 2) => Sasl::Server { mechanisms: OFFERED, bare: true },
            (Side::Client, 2) => Sasl::Anonymous,
            (Side::Server | Side::Client, _) => Sasl::None,
        };
        let (gather_bytes_max, part_bytes) = match flags >> 3 & 3 {
            0 => (u64::MAX, 63 << 10),
            1 => (10, 4),
            2 => (60, 50),
            _ => (1000, 20),
        };
        let config = Config {
            container_id: "engine".into(),
            sasl,
            incoming_window: 4,
            unsettled_incoming_max: 6,
            unsettled_outgoing_max: 6,
            max_message_size: MESSAGE_BYTES_MAX,
            gather_bytes_max,
            part_bytes,
            reassembly_bytes_max: 300,
            transmit_bytes_max: 600,
            channel_max: 2,
            handle_max: 2,
            ..Config::default()
        };
        let mut driven = Self {
            engine: Connection::new(config, side, now),
            now,
            links: Vec::new(),
            sessions: Vec::new(),
            deliveries: Vec::new(),
            parts: BTreeMap::new(),
            closed: false,
        };
        if flags & 4 == 0 {
            // Straight into a session: the way there is short, and found by others.
            let mut bytes = ProtocolId::Amqp.header().to_vec();
            let open = Open { container_id: "peer", max_frame_size: 512, ..Open::default() };
            frame::write(&mut bytes, 0, &Performative::Open(open));
            let begin = Begin { incoming_window: 100, outgoing_window: 100, ..Begin::default() };
            frame::write(&mut bytes, 0, &Performative::Begin(begin));
            driven.engine.handle_bytes(now, &bytes);
            driven.settle_down();
        }
        driven
    }

    fn settle_down(&mut self) {
        while let Some(event) = self.engine.poll_event() {
            assert!(!self.closed, "an event after the last: {event:?}");
            match event {
                Event::SaslScram(scram) if scram.first => self.engine.sasl_challenge(b"r=x"),
                Event::SaslPlain(_)
                | Event::SaslExternal { .. }
                | Event::SaslScram(_)
                | Event::SaslAnonymous => {
                    self.engine.sasl_outcome(SaslCode::Ok);
                }
                Event::Opened(_) => self.engine.open(),
                Event::SessionBegun { session } => self.sessions.push(session),
                Event::AttachReceived { link, .. } | Event::Attached { link, .. } => {
                    self.links.push(link);
                }
                Event::Transfer { link, delivery, .. }
                | Event::Disposition { link, delivery, .. } => {
                    assert!(!self.parts.contains_key(&link), "within another message");
                    self.deliveries.push((link, delivery));
                }
                Event::Part { link, delivery, part, is_last, .. } => {
                    assert!(is_last || !part.is_empty(), "a part of nothing");
                    let bytes = self.parts.entry(link).or_default();
                    *bytes += part.len();
                    assert!(*bytes as u64 <= MESSAGE_BYTES_MAX, "{bytes} bytes of a message");
                    if is_last {
                        self.parts.remove(&link);
                        self.deliveries.push((link, delivery));
                    }
                }
                Event::Aborted { link } => {
                    assert!(self.parts.remove(&link).is_some(), "nothing of it was given");
                }
                Event::Closed { .. } => self.closed = true,
                Event::CreditChanged { .. }
                | Event::SendReady { .. }
                | Event::PartWanted { .. }
                | Event::Drained { .. }
                | Event::DetachReceived { .. }
                | Event::Detached { .. }
                | Event::EndReceived { .. }
                | Event::Ended { .. }
                | Event::CloseReceived { .. } => {}
            }
        }
        let mut out = Vec::new();
        while self.engine.poll_transmit(&mut out) {}
        assert!(out.len() < 16 * 1024, "{} bytes for one input", out.len());
    }

    fn command(&mut self, operation: u8) {
        let nth = usize::from(operation & 3);
        let engine = &mut self.engine;
        let session = self.sessions.iter().rev().nth(nth).copied();
        let link = self.links.iter().rev().nth(nth).copied();
        match operation >> 2 & 0xF {
            0 => {
                if let Ok(session) = engine.begin() {
                    self.sessions.push(session);
                }
            }
            1 => {
                let Some(session) = session else { return };
                let name = Symbol::new(["a", "b", "c", "d"][nth]).to_string();
                let new = NewLink { name, ..NewLink::default() };
                self.links.extend(engine.attach_sender(session, new.clone()).ok());
                self.links.extend(engine.attach_receiver(session, new).ok());
            }
            2 => {
                let Some(session) = session else { return };
                engine.end(session, None);
            }
            15 if nth == 3 => engine.give_parts(2),
            3 if nth == 3 => engine.close(Some(Error::new(Condition::InternalError, "why"))),
            4 => {
                self.now += Duration::from_secs(9);
                engine.handle_timeout(self.now);
            }
            about_link => {
                let Some(link) = link else { return };
                match about_link {
                    5 | 6 => engine.accept_link(link, AcceptLink::default()),
                    7 => engine.refuse_link(link, Error::new(Condition::NotFound, "")),
                    8 => engine.grant_credit(link, 3),
                    9 => engine.drain(link),
                    10 => engine.drained(link),
                    11 => engine.detach(link, true, None),
                    12 | 13 => {
                        let part = [1; 400];
                        let parts: [&[u8]; 2] = [&part, &part[..nth]];
                        if let Ok(delivery) = engine.send(link, &parts, operation & 1 == 0) {
                            self.deliveries.push((link, delivery));
                        }
                    }
                    15 if nth == 0 => {
                        let settled = self.deliveries.len() & 1 == 0;
                        let begun = engine.send_begin(link, &[&[1; 100]], 1400, settled);
                        self.deliveries.extend(begun.ok().map(|delivery| (link, delivery)));
                    }
                    15 if nth == 1 => {
                        let is_last = self.deliveries.len() & 1 == 0;
                        engine.send_part(link, Bytes::from_static(&[2; 650]), is_last);
                    }
                    15 => engine.send_abort(link),
                    _ => {
                        if let Some((link, delivery)) = self.deliveries.pop() {
                            engine.settle(link, delivery, Outcome::Accepted);
                            engine.settle_outgoing(link, delivery);
                        }
                    }
                }
            }
        }
    }
}
