//! Two connections, client and server, that hear nobody but each other, driven by bytes.
//!
//! ```text
//!  bytes 0, 1      bounds of the client, bounds of the server, and what each gathers
//!  then, each      0x00..=0x3F   bytes of the client's reach the server: 1, 4, 9, ... 4,096
//!                  0x40..=0x7F   and the other way round
//!                  0x80..=0xBF   a command of the client's host
//!                  0xC0..=0xFF   a command of the server's host
//!                                which 0b00KKKKNN: kind K, about the N-th of what it knows
//! ```
//!
//! Fuzzed by `fuzz/fuzz_targets/both.rs`; tests here feed it from seeds and from the corpus.
//! Asked of every run:
//! * neither end ever finds a rule broken by the other: all errors are those of hosts;
//! * a message arrives byte-exact, on one link, in its link's order, none between two missing,
//!   whole or in parts; one that was given up does not arrive;
//! * an outcome is told once, and only for what was sent;
//! * when all that is owed is answered, everything sent on a link that is still up has arrived,
//!   and what keeps a link from sending is its credit and nothing else;
//! * a close ends both.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use amqp::connection::{CloseReason, Config, Connection, Event, Sasl, SaslCode, SendError, Side};
use amqp::definitions::{DeliveryId, Role, SenderSettleMode};
use amqp::delivery::Outcome;
use amqp::error::{AnyCondition, Condition, Error};
use amqp::link::{AcceptLink, LinkId, LinkSource, LinkTarget, NewLink};
use amqp::sasl::Mechanisms;
use amqp::session::SessionId;
use bytes::Bytes;

const MESSAGE_BYTES_MAX: u64 = 3000;

/// A message of so many bytes fits the smallest frame.
const ONE_FRAME_BYTES: usize = 450;

/// Sessions that one end begins in its life: then there is a channel for each.
const BEGINS_MAX: u16 = 60;

/// Each host's own: where both attach one name in two sessions at once, each takes the other for a
/// thief, and rightly.
const NAMES: [[&str; 4]; 2] = [["a", "b", "c", "d"], ["e", "f", "g", "h"]];

/// The error that hosts give, so that it can be told from the engine's.
fn whim() -> Error {
    Error::new(Condition::PreconditionFailed, "the host's whim")
}

/// What a link that we send on has had.
#[derive(Default)]
struct Sending {
    /// Names it in its messages.
    serial: u32,
    sent: u32,
    /// Sent, and not settled: whether the outcome is known.
    in_flight: BTreeMap<u32, bool>,
    /// What is still to be given of a message that was begun, and which delivery it is.
    rest: VecDeque<Bytes>,
    open: Option<DeliveryId>,
}

/// One connection and its host.
struct End {
    engine: Connection,
    side: Side,
    incoming: VecDeque<u8>,
    sessions: Vec<SessionId>,
    /// Links whose attach is to be answered.
    asked: Vec<(LinkId, Role)>,
    links: Vec<LinkId>,
    sending: BTreeMap<LinkId, Sending>,
    receiving: Vec<LinkId>,
    /// What has come of messages that come in parts.
    joining: BTreeMap<LinkId, (DeliveryId, Vec<u8>)>,
    unsettled: Vec<(LinkId, DeliveryId)>,
    detaching: Vec<(LinkId, bool)>,
    ending: Vec<SessionId>,
    close_owed: bool,
    opened: bool,
    closed: Option<CloseReason>,
    links_made: u32,
    begins: u16,
}

/// Two ends, and what has arrived by the serial of the sending link.
struct Both {
    now: Instant,
    client: End,
    server: End,
    arrived: BTreeMap<u32, (LinkId, u32)>,
}

fn bounds(byte: u8) -> Config {
    let pick = |from: [u32; 4], shift: u8| from[usize::from(byte >> shift & 3)];
    let (gather_bytes_max, part_bytes) = match (byte ^ byte >> 3) & 3 {
        0 => (50, 20),
        1 => (600, 500),
        2 => (1 << 20, 700),
        _ => (u64::MAX, 63 << 10),
    };
    Config {
        gather_bytes_max,
        part_bytes,
        container_id: "both".into(),
        max_frame_size: pick([512, 513, 700, 1 << 16], 0),
        incoming_window: pick([1, 2, 7, 64], 2),
        // More than links: each may have an unfinished message, and the last must find a slot.
        unsettled_incoming_max: pick([17, 18, 30, 100], 4),
        unsettled_outgoing_max: pick([100, 20, 3, 1], 4),
        transmit_bytes_max: pick([1, 600, 5000, 1 << 20], 6) as usize,
        max_message_size: MESSAGE_BYTES_MAX,
        channel_max: 2 * BEGINS_MAX,
        handle_max: 31,
        idle_time_out: None,
        ..Config::default()
    }
}

/// Drives two connections by `bytes`; the moment is the caller's. How many messages have arrived.
pub(crate) fn drive(now: Instant, bytes: &[u8]) -> u32 {
    let [client, server, operations @ ..] = bytes else { return 0 };
    let (client_sasl, server_sasl) = match (client ^ server) & 1 {
        0 => (Sasl::None, Sasl::None),
        _ => (Sasl::Anonymous, Sasl::Server { mechanisms: Mechanisms::ANONYMOUS, bare: false }),
    };
    let client = Config { sasl: client_sasl, ..bounds(*client) };
    let server = Config { sasl: server_sasl, ..bounds(*server) };
    let mut both = Both {
        now,
        client: End::new(Connection::new(client, Side::Client, now), Side::Client),
        server: End::new(Connection::new(server, Side::Server, now), Side::Server),
        arrived: BTreeMap::new(),
    };
    // The way there is short, and cut into bytes by others.
    both.settle_down();
    for &operation in operations {
        match operation {
            0x00..0x40 => both.carry(Side::Client, (usize::from(operation) + 1).pow(2)),
            0x40..0x80 => both.carry(Side::Server, (usize::from(operation) - 0x3F).pow(2)),
            0x80..0xC0 => both.client.command(operation & 0x3F),
            0xC0..=0xFF => both.server.command(operation & 0x3F),
        }
        both.hear();
    }
    both.finish();
    both.arrived.values().map(|(_, next)| next).sum()
}

impl End {
    fn new(engine: Connection, side: Side) -> Self {
        Self {
            engine,
            side,
            incoming: VecDeque::new(),
            sessions: Vec::new(),
            asked: Vec::new(),
            links: Vec::new(),
            sending: BTreeMap::new(),
            receiving: Vec::new(),
            joining: BTreeMap::new(),
            unsettled: Vec::new(),
            detaching: Vec::new(),
            ending: Vec::new(),
            close_owed: false,
            opened: false,
            closed: None,
            links_made: 0,
            begins: 0,
        }
    }

    fn new_link(&mut self, link: LinkId, role: Role) {
        if self.links.contains(&link) {
            return;
        }
        self.links.push(link);
        match role {
            Role::Receiver => self.receiving.push(link),
            Role::Sender => {
                self.links_made += 2;
                let serial = self.links_made + u32::from(self.side == Side::Server);
                self.sending.insert(link, Sending { serial, ..Sending::default() });
            }
        }
    }

    fn forget(&mut self, link: LinkId) {
        self.links.retain(|other| *other != link);
        self.receiving.retain(|other| *other != link);
        self.joining.remove(&link);
        self.sending.remove(&link);
        self.asked.retain(|(other, _)| *other != link);
        self.detaching.retain(|(other, _)| *other != link);
        self.unsettled.retain(|(other, _)| *other != link);
    }

    fn forget_session(&mut self, session: SessionId, links: impl Fn(&Connection, LinkId) -> bool) {
        self.sessions.retain(|other| *other != session);
        self.ending.retain(|other| *other != session);
        let gone: Vec<LinkId> =
            self.links.iter().copied().filter(|link| links(&self.engine, *link)).collect();
        gone.into_iter().for_each(|link| self.forget(link));
    }

    fn is_open(&self) -> bool {
        self.opened && !self.close_owed && self.closed.is_none()
    }

    /// One command of the host's.
    fn command(&mut self, operation: u8) {
        let nth = usize::from(operation & 3);
        let kind = operation >> 2;
        let session = self.sessions.iter().rev().nth(nth).copied();
        let link = self.links.iter().rev().nth(nth).copied();
        match kind {
            0 if self.begins < BEGINS_MAX => {
                self.begins += u16::from(self.engine.begin().is_ok());
            }
            0 => {}
            1 | 2 => {
                let Some(session) = self.sessions.last().copied() else { return };
                let modes = [SenderSettleMode::Mixed, SenderSettleMode::Unsettled];
                let new = NewLink {
                    name: NAMES[usize::from(self.side == Side::Server)][nth].into(),
                    source: LinkSource::at("q"),
                    target: LinkTarget::at("q"),
                    snd_settle_mode: Some(modes[nth & 1]),
                    ..NewLink::default()
                };
                let (made, role) = if kind == 1 {
                    (self.engine.attach_sender(session, new), Role::Sender)
                } else {
                    (self.engine.attach_receiver(session, new), Role::Receiver)
                };
                if let Ok(link) = made {
                    self.new_link(link, role);
                }
            }
            3 => self.answer_attach(nth, nth == 3),
            4 => {
                let Some(link) = self.receiving.iter().rev().nth(nth) else { return };
                self.engine.grant_credit(*link, [1, 2, 5, 40][nth]);
            }
            5 => {
                let Some(link) = self.receiving.iter().rev().nth(nth) else { return };
                self.engine.drain(*link);
            }
            6 => {
                let Some((link, _)) = self.sending.iter().nth(nth) else { return };
                self.engine.drained(*link);
            }
            7..=10 => {
                let Some(link) = self.sending.keys().nth(nth).copied() else { return };
                let len = [8, 100, 700, 2900][usize::from(kind - 7)];
                let _: Result<(), SendError> = self.send(link, len, kind == 8);
            }
            11 => self.settle(nth),
            12 => self.answer_detach(nth),
            13 => {
                let Some(link) = link else { return };
                let error = (nth & 1 == 1).then(whim);
                let answers = self.detaching.iter().any(|(other, _)| *other == link);
                self.engine.detach(link, nth >= 2, error);
                if answers {
                    self.forget(link);
                }
            }
            14 => {
                let Some(session) = session else { return };
                self.end(session, (nth & 1 == 1).then(whim));
            }
            _ if nth == 2 => self.engine.give_parts(2),
            _ if nth == 3 => self.give_up(),
            _ => {
                if let Some(session) = self.ending.get(nth).copied() {
                    self.end(session, None);
                }
            }
        }
    }

    /// Gives up a message of which some is not given yet: its number goes to the next.
    fn give_up(&mut self) {
        let begun = |sending: &Sending| !sending.rest.is_empty();
        let Some((link, sending)) = self.sending.iter_mut().find(|(_, one)| begun(one)) else {
            return;
        };
        self.engine.send_abort(*link);
        sending.rest.clear();
        if let Some(delivery) = sending.open.take() {
            sending.in_flight.remove(&delivery.0);
        }
        sending.sent -= 1;
    }

    fn end(&mut self, session: SessionId, error: Option<Error>) {
        let of_it = |engine: &Connection, link| engine.link_session(link) == Some(session);
        let links: Vec<LinkId> =
            self.links.iter().copied().filter(|link| of_it(&self.engine, *link)).collect();
        self.engine.end(session, error);
        self.forget_session(session, |_, link| links.contains(&link));
    }

    fn answer_attach(&mut self, nth: usize, refuse: bool) {
        let Some((link, role)) =
            self.asked.get(nth.min(self.asked.len().saturating_sub(1))).copied()
        else {
            return;
        };
        self.asked.retain(|(other, _)| *other != link);
        if refuse {
            self.engine.refuse_link(link, whim());
            self.forget(link);
            return;
        }
        let accept = AcceptLink {
            source: Some(LinkSource::at("q")),
            target: Some(LinkTarget::at("q")),
            ..AcceptLink::default()
        };
        self.new_link(link, role);
        self.engine.accept_link(link, accept);
    }

    fn answer_detach(&mut self, nth: usize) {
        let Some((link, closed)) = self.detaching.get(nth).copied() else { return };
        self.engine.detach(link, closed, None);
        self.forget(link);
    }

    fn settle(&mut self, nth: usize) {
        let at = nth.min(self.unsettled.len().saturating_sub(1));
        if at < self.unsettled.len() {
            let (link, delivery) = self.unsettled.remove(at);
            let outcome = [Outcome::Accepted, Outcome::Released][nth & 1].clone();
            self.engine.settle(link, delivery, outcome);
        }
    }

    fn send(&mut self, link: LinkId, len: usize, settled: bool) -> Result<(), SendError> {
        let Some(sending) = self.sending.get_mut(&link) else { return Err(SendError::Gone) };
        let message = message(sending.serial, sending.sent, len);
        let (head, tail) = message.split_at(len / 3);
        let able = self.engine.can_send(link);
        let in_parts = sending.sent % 2 == 1 && !tail.is_empty();
        let sent = if in_parts {
            self.engine.send_begin(link, &[head], message.len() as u64, settled)
        } else {
            self.engine.send(link, &[head, tail], settled)
        };
        if in_parts && sent.is_ok() {
            sending.open = sent.ok();
            let part_bytes = tail.len().div_ceil(3);
            sending.rest = tail.chunks(part_bytes).map(Bytes::copy_from_slice).collect();
        }
        let delivery = match sent {
            Ok(delivery) => delivery,
            Err(SendError::SettleMode) => return Ok(()),
            Err(error) => {
                // While a message is under way, another one of several frames is not begun.
                let is_long = in_parts || message.len() > ONE_FRAME_BYTES;
                let waits = error == SendError::NotReady && is_long;
                assert!(!able || waits, "can_send, but: {error:?}");
                return Err(error);
            }
        };
        assert!(able);
        sending.sent += 1;
        if !settled {
            let before = sending.in_flight.insert(delivery.0, false);
            assert_eq!(before, None, "a delivery-id is in use");
        }
        Ok(())
    }

    /// All that the engine has to tell; whether there was anything.
    fn hear(&mut self, arrived: &mut BTreeMap<u32, (LinkId, u32)>) -> bool {
        let mut heard = false;
        while let Some(event) = self.engine.poll_event() {
            assert!(self.closed.is_none(), "an event after the last: {event:?}");
            heard = true;
            self.on_event(event, arrived);
        }
        heard
    }

    fn on_event(&mut self, event: Event, arrived: &mut BTreeMap<u32, (LinkId, u32)>) {
        match event {
            Event::SaslAnonymous => self.engine.sasl_outcome(SaslCode::Ok),
            Event::SaslPlain(_) | Event::SaslExternal { .. } | Event::SaslScram(_) => {
                panic!("only ANONYMOUS is offered: {event:?}")
            }
            Event::Opened(_) => {
                self.opened = true;
                if self.side == Side::Server {
                    self.engine.open();
                }
            }
            Event::SessionBegun { session } => self.sessions.push(session),
            Event::AttachReceived { link, attach } => self.asked.push((link, attach.role)),
            Event::Attached { link, .. } => assert!(self.links.contains(&link)),
            Event::Transfer { link, delivery, settled, message, .. } => {
                assert!(!self.joining.contains_key(&link), "within another message");
                take(arrived, link, &message);
                if !settled {
                    self.unsettled.push((link, delivery));
                }
            }
            Event::Disposition { link, delivery, outcome, settled } => {
                let Some(sending) = self.sending.get_mut(&link) else { return };
                let known = sending.in_flight.get_mut(&delivery.0).expect("of what was sent");
                assert!(!(*known && outcome.is_some()), "a second outcome");
                *known |= outcome.is_some();
                if settled {
                    sending.in_flight.remove(&delivery.0);
                } else {
                    self.engine.settle_outgoing(link, delivery);
                    sending.in_flight.remove(&delivery.0);
                }
            }
            Event::CreditChanged { link, credit, .. } => {
                assert!(credit <= 40 || !self.links.contains(&link), "{credit} was never granted");
            }
            Event::PartWanted { link } => {
                let Some(sending) = self.sending.get_mut(&link) else { return };
                if let Some(part) = sending.rest.pop_front() {
                    let is_last = sending.rest.is_empty();
                    if !self.engine.send_part(link, part, is_last) {
                        // The link is being detached, and the message went with it.
                        assert!(!self.engine.can_send(link));
                        sending.rest.clear();
                    }
                }
            }
            Event::SendReady { .. } | Event::Drained { .. } => {}
            Event::Part { link, delivery, settled, part, is_last, .. } => {
                assert!(is_last || !part.is_empty(), "a part of nothing");
                let (of, bytes) = self.joining.entry(link).or_insert((delivery, Vec::new()));
                assert_eq!(*of, delivery, "two messages at once");
                bytes.extend_from_slice(&part);
                if is_last {
                    let (_, message) = self.joining.remove(&link).expect("it was there");
                    take(arrived, link, &message);
                    if !settled {
                        self.unsettled.push((link, delivery));
                    }
                }
            }
            Event::Aborted { link } => {
                assert!(self.joining.remove(&link).is_some(), "nothing of it was given");
            }
            Event::DetachReceived { link, closed, error } => {
                assert_of_hosts(error.as_ref());
                self.asked.retain(|(other, _)| *other != link);
                self.detaching.push((link, closed));
            }
            Event::Detached { link, error } => {
                assert_of_hosts(error.as_ref());
                self.forget(link);
            }
            Event::EndReceived { session, error } => {
                assert_of_hosts(error.as_ref());
                self.ending.push(session);
            }
            Event::Ended { session, error } => {
                assert_of_hosts(error.as_ref());
                // The links of a session that is gone have none.
                self.forget_session(session, |engine, link| engine.link_session(link).is_none());
            }
            Event::CloseReceived { error } => {
                assert_of_hosts(error.as_ref());
                self.close_owed = true;
            }
            Event::Closed { reason } => self.closed = Some(reason),
        }
    }

    /// Answers what is owed, settles, and gives credit; whether anything was done.
    fn oblige(&mut self) -> bool {
        let todo =
            (self.asked.len(), self.detaching.len(), self.ending.len(), self.unsettled.len());
        while !self.asked.is_empty() {
            self.answer_attach(0, false);
        }
        while !self.detaching.is_empty() {
            self.answer_detach(0);
        }
        while let Some(session) = self.ending.first().copied() {
            self.end(session, None);
        }
        while !self.unsettled.is_empty() {
            self.settle(0);
        }
        todo != (0, 0, 0, 0)
    }
}

/// Errors that are not a host's show a rule broken by our own engine at the other end.
fn assert_of_hosts(error: Option<&Error>) {
    let Some(error) = error else { return };
    let is = |condition| error.condition == AnyCondition::Known(condition);
    // No time passes here, so a host that attaches one name again and again seems to fight for it.
    let is_fight =
        is(Condition::ResourceLimitExceeded) && error.to_string().contains("name from each other");
    assert!(
        is(Condition::PreconditionFailed) || is(Condition::Stolen) || is_fight,
        "one end accuses the other: {error}"
    );
}

/// Messages of so many bytes are such as AMQP knows them: one section of data.
const WITH_HEAD_BYTES: usize = 100;

/// Descriptor and code of a data section; its size follows.
const DATA: [u8; 4] = *b"\x00\x53\x75\xb0";

/// A message that names its link and its number; `len` bytes, eight at least.
fn message(serial: u32, number: u32, len: usize) -> Vec<u8> {
    let mut message: Vec<u8> = (0..len).map(|at| (at as u32 ^ number) as u8).collect();
    let at = if len < WITH_HEAD_BYTES { 0 } else { 8 };
    if at > 0 {
        message[..4].copy_from_slice(&DATA);
        message[4..8].copy_from_slice(&(len as u32 - 8).to_be_bytes());
    }
    message[at..at + 4].copy_from_slice(&serial.to_be_bytes());
    message[at + 4..at + 8].copy_from_slice(&number.to_be_bytes());
    message
}

/// Judges a message that came.
fn take(arrived: &mut BTreeMap<u32, (LinkId, u32)>, link: LinkId, got: &[u8]) {
    let word = |at: usize| u32::from_be_bytes([got[at], got[at + 1], got[at + 2], got[at + 3]]);
    let at = if got.starts_with(&DATA) { 8 } else { 0 };
    let (serial, number) = (word(at), word(at + 4));
    assert!(got == message(serial, number, got.len()), "changed on its way");
    let (of, next) = arrived.entry(serial).or_insert((link, 0));
    assert_eq!((*of, *next), (link, number), "not the next of its link");
    *next += 1;
}

impl Both {
    /// Bytes of one end's reach the other.
    fn carry(&mut self, from: Side, len: usize) {
        let now = self.now;
        let (from, to) = match from {
            Side::Client => (&mut self.client, &mut self.server),
            Side::Server => (&mut self.server, &mut self.client),
        };
        let mut bytes = Vec::new();
        from.engine.poll_transmit(&mut bytes);
        to.incoming.extend(bytes);
        if to.engine.wants_read() && !to.incoming.is_empty() {
            let piece: Vec<u8> = to.incoming.drain(..len.min(to.incoming.len())).collect();
            to.engine.handle_bytes(now, &piece);
        }
    }

    fn hear(&mut self) -> bool {
        let client = self.client.hear(&mut self.arrived);
        let server = self.server.hear(&mut self.arrived);
        client || server
    }

    /// Carries and hears until nothing more comes of it.
    fn settle_down(&mut self) {
        for _ in 0..10_000 {
            let mut busy = false;
            for from in [Side::Client, Side::Server] {
                self.carry(from, usize::MAX);
                busy |= self.hear();
            }
            let [client, server] = [&self.client, &self.server];
            busy |= client.engine.wants_transmit() || server.engine.wants_transmit();
            busy |= !client.incoming.is_empty() && client.engine.wants_read();
            busy |= !server.incoming.is_empty() && server.engine.wants_read();
            if !busy {
                return;
            }
        }
        panic!("two connections that never fall silent");
    }

    /// Everything owed is answered; then all must be there, and a close must end both.
    fn finish(&mut self) {
        self.oblige();
        self.assert_complete(Side::Client);
        self.assert_complete(Side::Server);
        self.client.engine.close(Some(whim()));
        self.settle_down();
        assert!(self.server.close_owed || self.server.closed.is_some());
        self.server.engine.close(None);
        self.settle_down();
        for end in [&self.client, &self.server] {
            assert!(matches!(end.closed, Some(CloseReason::Closed(_))), "{:?}", end.closed);
            assert!(end.engine.is_drained());
        }
    }

    /// Carries, hears and obliges until nobody owes anybody anything.
    fn oblige(&mut self) {
        for _ in 0..1000 {
            self.settle_down();
            let client = self.client.oblige();
            let server = self.server.oblige();
            if !client && !server {
                return;
            }
        }
        panic!("two hosts that never have done with each other");
    }

    fn end(&mut self, side: Side) -> &mut End {
        match side {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        }
    }

    fn assert_complete(&mut self, side: Side) {
        let end = self.end(side);
        assert!(end.is_open(), "{side:?} is closed, by nobody's will: {:?}", end.closed);
        let links: Vec<LinkId> = end.sending.keys().copied().collect();
        for link in links {
            self.oblige();
            let arrived = self.arrived.clone();
            let end = self.end(side);
            let (serial, sent) = (end.sending[&link].serial, end.sending[&link].sent);
            // Where our detach waits for the peer's, the rest of its messages may be given up.
            match end.send(link, 8, false) {
                Ok(()) | Err(SendError::NoCredit) => {
                    let arrived = arrived.get(&serial).map_or(0, |(_, next)| *next);
                    assert_eq!(arrived, sent, "{side:?} has sent more than has arrived");
                    assert!(end.sending[&link].in_flight.len() <= 1, "not all is settled");
                }
                Err(SendError::Gone) => {}
                Err(
                    error @ (SendError::NotReady | SendError::TooLarge | SendError::SettleMode),
                ) => {
                    panic!("{side:?}: {error:?} though nothing is under way")
                }
            }
        }
    }
}
