//! One AMQP connection of a load: the engine, its socket, and the messages it waits for.
//!
//! ```text
//!   connect ─▶ open ─▶ begin ─▶ attach every link ─▶ ready, once producers have credit
//!
//!   in flight, by delivery id         base             ids rise by one with each send
//!                                      | 7 | – | 9 | 10 |        –  answered, not yet at the front
//! ```
//! What the engine says becomes [`Heard`] in the caller's list; the caller knows producers and
//! clocks, this file knows AMQP. Nothing here assumes a broker: a queue is asked for by capability,
//! credit is taken as it is granted, any outcome is an answer.
//!
//! Invariants: one send is with the kernel at a time, what is written meanwhile goes with the next;
//! in the steady state nothing is allocated but what the engine allocates for received messages.
//!
//! Failure: a peer that closes, ends, detaches or breaks off is a [`LoadError`]: a load that lost a
//! connection measures something else.

use std::collections::VecDeque;
use std::time::Instant;

use amqp::connection::{
    BeginError, CloseReason, Config, Connection, Event, Password, Sasl, SendError, Side,
};
use amqp::delivery::{DeliveryId, Outcome};
use amqp::error::Error;
use amqp::link::{LinkId, LinkSource, LinkTarget, NewLink};
use amqp::session::SessionId;
use bytes::Bytes;
use net::tls::TlsSession;
use net::{Ring, SocketId};

use super::{LoadError, Security, Target};
use crate::stats::Chance;

/// What one link of the connection does.
#[derive(Clone, Debug)]
pub(super) struct LinkPlan {
    pub(super) address: String,
    pub(super) role: LinkRole,
}

/// Which way a link goes, and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkRole {
    /// We send; the producer of this number.
    Producer(u32),
    /// We receive, as the consumer of this number, with so many messages ahead of our settlements,
    /// and no more than `left` in all; paced ones ask when they are told to.
    Consumer { consumer: u32, credit: u32, left: u64, is_paced: bool },
}

/// A message under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct InFlight {
    pub(super) producer: u32,
    pub(super) intended_ns: u64,
    pub(super) actual_ns: u64,
}

/// What the peer said.
#[derive(Debug)]
pub(super) enum Heard {
    /// A message was answered.
    Answered { message: InFlight, accepted: bool },
    /// A producer may be able to send again.
    Woken { producer: u32 },
    /// A message came, and is settled or will be.
    Received { consumer: u32, message: Bytes },
}

/// What the consumers of a connection have not settled on purpose.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// So many at most.
    pub(super) most: usize,
    /// Which of them is settled next.
    pub(super) chance: Chance,
    pub(super) all: Vec<(LinkId, DeliveryId)>,
}

struct Link {
    id: LinkId,
    role: LinkRole,
    attached: bool,
    /// Consumer: messages that came since credit was granted; if it is paced, credit that it has.
    taken: u32,
}

/// One connection: see the head of the file.
pub(super) struct Peer {
    socket: SocketId,
    tls: Option<Box<TlsSession>>,
    /// What waits to be encrypted; its memory is used again.
    plain: Vec<u8>,
    connection: Connection,
    session: Option<SessionId>,
    plans: Vec<LinkPlan>,
    capability: Option<String>,
    links: Vec<Link>,
    in_flight: VecDeque<Option<InFlight>>,
    /// The delivery id of the first in `in_flight`.
    base: u32,
    held: Held,
    /// Who of the paced consumers is given credit first.
    next_paced: usize,
    sending: bool,
    spare: Vec<u8>,
    closed: bool,
    closing: bool,
}

/// What a [`Peer`] is made of.
pub(super) struct PeerPlan<'a> {
    pub(super) target: &'a Target,
    /// The container's name, of this connection alone.
    pub(super) container: String,
    pub(super) links: Vec<LinkPlan>,
    /// Messages that all its producers together may have under way.
    pub(super) in_flight_max: usize,
    /// What its consumers hold.
    pub(super) held: Held,
}

impl Peer {
    /// Begins to connect.
    pub(super) fn connect(ring: &mut Ring, plan: PeerPlan<'_>) -> Result<Self, LoadError> {
        let target = plan.target;
        let socket = ring
            .connect(target.addr)
            .map_err(|error| LoadError::Unreachable { addr: target.addr, error })?;
        ring.start_receive(socket);
        let tls = match &target.security {
            Security::Plain => None,
            Security::Wanted => {
                return Err(LoadError::Refused("amqps:// is not known here".to_owned()));
            }
            Security::Tls(client) => Some(Box::new(client.session().map_err(broken_tls)?)),
        };
        let sasl = match &target.login {
            Some((user, password)) => {
                Sasl::Plain { user: user.clone(), password: Password::new(password.as_bytes()) }
            }
            None => Sasl::Anonymous,
        };
        // A bound of ours must never be what holds a message up.
        let unsettled = u32::try_from(plan.in_flight_max).unwrap_or(u32::MAX).max(8192);
        let config = Config {
            container_id: plan.container,
            hostname: Some(target.host.clone()),
            sasl,
            unsettled_outgoing_max: unsettled,
            // A peer that is stopped is what we are here to see.
            idle_time_out: None,
            ..Config::default()
        };
        Ok(Self {
            socket,
            tls,
            plain: Vec::new(),
            connection: Connection::new(config, Side::Client, super::clock()),
            session: None,
            links: Vec::with_capacity(plan.links.len()),
            plans: plan.links,
            capability: target.capability.clone(),
            in_flight: VecDeque::with_capacity(2 * plan.in_flight_max.min(65_536)),
            base: 0,
            held: plan.held,
            next_paced: 0,
            sending: false,
            spare: Vec::new(),
            closed: false,
            closing: false,
        })
    }

    pub(super) fn socket(&self) -> SocketId {
        self.socket
    }

    /// Whether every link is up and every producer has credit; or what is missing.
    pub(super) fn missing(&self) -> Option<String> {
        if self.session.is_none() {
            return Some("an open connection with a session".to_owned());
        }
        let waits = |link: &&Link| match link.role {
            LinkRole::Producer(_) => !link.attached || self.connection.link_credit(link.id) == 0,
            LinkRole::Consumer { .. } => !link.attached,
        };
        let at = self.links.iter().position(|link| waits(&link))?;
        let what = if self.links[at].attached { "credit on" } else { "a link to" };
        Some(format!("{what} `{}`", self.plans[at].address))
    }

    /// Sends a message, if it may be sent now.
    #[inline]
    pub(super) fn send(
        &mut self,
        link: usize,
        parts: &[&[u8]],
        message: InFlight,
    ) -> Result<bool, LoadError> {
        match self.connection.send(self.links[link].id, parts, false) {
            Ok(DeliveryId(id)) => {
                if self.in_flight.is_empty() {
                    self.base = id;
                }
                let expected = self.base.wrapping_add(self.in_flight.len() as u32);
                assert_eq!(id, expected, "delivery ids of a session rise by one");
                self.in_flight.push_back(Some(message));
                Ok(true)
            }
            Err(SendError::NoCredit | SendError::NotReady) => Ok(false),
            Err(SendError::TooLarge) => {
                Err(LoadError::Refused("the message is larger than the peer takes".to_owned()))
            }
            Err(why @ (SendError::Gone | SendError::SettleMode)) => {
                Err(LoadError::Refused(format!("the peer's link does not take messages: {why:?}")))
            }
        }
    }

    /// Bytes came.
    pub(super) fn received(
        &mut self,
        now: Instant,
        bytes: &[u8],
        heard: &mut Vec<Heard>,
    ) -> Result<(), LoadError> {
        let connection = &mut self.connection;
        match &mut self.tls {
            None => connection.handle_bytes(now, bytes),
            Some(tls) => tls
                .receive(bytes, |plain| connection.handle_bytes(now, plain))
                .map_err(broken_tls)?,
        }
        self.take_events(heard)
    }

    /// The peer's stream ended.
    pub(super) fn ended(&mut self, now: Instant, heard: &mut Vec<Heard>) -> Result<(), LoadError> {
        self.connection.handle_eof(now);
        self.take_events(heard)
    }

    /// A send is over.
    pub(super) fn sent(&mut self, mut buf: Vec<u8>) {
        buf.clear();
        self.spare = buf;
        self.sending = false;
    }

    /// Heartbeats and time-outs.
    pub(super) fn tick(&mut self, now: Instant, heard: &mut Vec<Heard>) -> Result<(), LoadError> {
        if self.connection.poll_timeout().is_some_and(|at| at <= now) {
            self.connection.handle_timeout(now);
        }
        self.take_events(heard)
    }

    /// Hands what is written to the ring. Taking bytes may bring events.
    #[inline]
    pub(super) fn flush(
        &mut self,
        ring: &mut Ring,
        heard: &mut Vec<Heard>,
    ) -> Result<(), LoadError> {
        if self.sending {
            return Ok(());
        }
        match &mut self.tls {
            None => drop(self.connection.poll_transmit(&mut self.spare)),
            Some(tls) if self.connection.poll_transmit(&mut self.plain) => {
                tls.send(&self.plain, &mut self.spare).map_err(broken_tls)?;
                self.plain.clear();
            }
            Some(tls) => tls.flush(&mut self.spare),
        }
        if self.spare.is_empty() {
            return Ok(());
        }
        self.sending = true;
        ring.send(self.socket, std::mem::take(&mut self.spare));
        self.take_events(heard)
    }

    /// Lets messages come. Not before the load begins: what comes is settled, and must be counted.
    pub(super) fn start_receiving(&mut self) {
        for link in &self.links {
            if let LinkRole::Consumer { credit, left, .. } = link.role {
                self.connection.grant_credit(link.id, granted(credit, left));
            }
        }
    }

    /// Lets up to so many messages come, to consumers with a rate; gives how many that may be.
    pub(super) fn give_credit(&mut self, most: u64) -> u64 {
        let mut given = 0;
        for _ in 0..self.links.len() {
            let link = &mut self.links[self.next_paced];
            if let LinkRole::Consumer { credit, left, .. } = link.role {
                let room = granted(credit, left).saturating_sub(link.taken);
                let grant = granted(room, most - given);
                if grant > 0 {
                    link.taken += grant;
                    given += u64::from(grant);
                    self.connection.grant_credit(link.id, link.taken);
                }
            }
            if given == most {
                break;
            }
            self.next_paced = (self.next_paced + 1) % self.links.len();
        }
        given
    }

    /// Settles what was kept.
    pub(super) fn settle_held(&mut self) {
        for (link, delivery) in self.held.all.drain(..) {
            self.connection.settle(link, delivery, Outcome::Accepted);
        }
    }

    /// Says goodbye.
    pub(super) fn close(&mut self) {
        self.closing = true;
        self.connection.close(None);
    }

    /// Whether the goodbye was answered.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// The messages that were never answered.
    pub(super) fn unanswered(&mut self) -> impl Iterator<Item = InFlight> {
        self.in_flight.drain(..).flatten()
    }

    fn take_events(&mut self, heard: &mut Vec<Heard>) -> Result<(), LoadError> {
        while let Some(event) = self.connection.poll_event() {
            self.take(event, heard)?;
        }
        Ok(())
    }

    fn take(&mut self, event: Event, heard: &mut Vec<Heard>) -> Result<(), LoadError> {
        match event {
            Event::Opened(_) => {
                self.connection.begin().map_err(not_begun)?;
            }
            Event::SessionBegun { session } => self.attach(session)?,
            Event::Attached { link, .. } => {
                if let Some(link) = self.link_mut(link) {
                    link.attached = true;
                }
            }
            Event::Disposition { link, delivery, outcome, settled } => {
                if !settled {
                    self.connection.settle_outgoing(link, delivery);
                }
                self.answered(delivery, outcome.as_ref(), heard);
            }
            Event::CreditChanged { link, drain, .. } => {
                if drain {
                    self.connection.drained(link);
                }
                if let Some(Link { role: LinkRole::Producer(producer), .. }) = self.link_mut(link) {
                    heard.push(Heard::Woken { producer: *producer });
                }
            }
            Event::SendReady { .. } => {
                heard.extend(self.links.iter().filter_map(|link| match link.role {
                    LinkRole::Producer(producer) => Some(Heard::Woken { producer }),
                    LinkRole::Consumer { .. } => None,
                }));
            }
            // What comes when we are about to go is not counted, so it goes back.
            Event::Transfer { .. } if self.closing => {}
            Event::Transfer { link, delivery, message, .. } => {
                self.settle_or_hold(link, delivery);
                if let Some(consumer) = self.renew_credit(link) {
                    heard.push(Heard::Received { consumer, message });
                }
            }
            Event::PartWanted { .. }
            | Event::Part { .. }
            | Event::Aborted { .. }
            | Event::Drained { .. } => {}
            Event::Detached { error, .. }
            | Event::DetachReceived { error, .. }
            | Event::Ended { error, .. }
            | Event::EndReceived { error, .. }
            | Event::CloseReceived { error } => self.cut_off(error.as_ref())?,
            Event::Closed { reason } => {
                self.closed = true;
                if !self.closing {
                    return Err(closed(reason));
                }
            }
            // A client asks for links; a peer that asks for one gets no answer.
            Event::AttachReceived { .. }
            | Event::SaslPlain(_)
            | Event::SaslExternal { .. }
            | Event::SaslScram(_)
            | Event::SaslAnonymous => {}
        }
        Ok(())
    }

    fn attach(&mut self, session: SessionId) -> Result<(), LoadError> {
        self.session = Some(session);
        for (number, plan) in self.plans.iter().enumerate() {
            let address = Some(plan.address.clone());
            let capabilities: Vec<String> = self.capability.iter().cloned().collect();
            let (source, target) = match plan.role {
                LinkRole::Producer(_) => (
                    LinkSource::default(),
                    LinkTarget { address, capabilities, ..LinkTarget::default() },
                ),
                LinkRole::Consumer { .. } => (
                    LinkSource { address, capabilities, ..LinkSource::default() },
                    LinkTarget::default(),
                ),
            };
            let link =
                NewLink { name: format!("link-{number}"), source, target, ..NewLink::default() };
            let id = match plan.role {
                LinkRole::Producer(_) => self.connection.attach_sender(session, link),
                LinkRole::Consumer { .. } => self.connection.attach_receiver(session, link),
            };
            let id = id.map_err(not_begun)?;
            self.links.push(Link { id, role: plan.role, attached: false, taken: 0 });
        }
        Ok(())
    }

    #[inline]
    fn answered(
        &mut self,
        delivery: DeliveryId,
        outcome: Option<&Outcome>,
        heard: &mut Vec<Heard>,
    ) {
        let at = delivery.0.wrapping_sub(self.base) as usize;
        // An outcome and its settlement may come apart: the first of them counts.
        let Some(message) = self.in_flight.get_mut(at).and_then(Option::take) else { return };
        while let Some(None) = self.in_flight.front() {
            self.in_flight.pop_front();
            self.base = self.base.wrapping_add(1);
        }
        let accepted = match outcome {
            // Settled without an outcome: the default outcome holds, and we asked for none.
            Some(Outcome::Accepted) | None => true,
            Some(Outcome::Rejected(_) | Outcome::Released | Outcome::Modified { .. }) => false,
        };
        heard.push(Heard::Answered { message, accepted });
    }

    #[inline]
    fn settle_or_hold(&mut self, mut link: LinkId, mut delivery: DeliveryId) {
        let Held { most, chance, all } = &mut self.held;
        if *most > 0 {
            all.push((link, delivery));
            if all.len() <= *most {
                return;
            }
            (link, delivery) = all.swap_remove(chance.below(*most + 1));
        }
        self.connection.settle(link, delivery, Outcome::Accepted);
    }

    /// A message came to a consumer; its number.
    #[inline]
    fn renew_credit(&mut self, id: LinkId) -> Option<u32> {
        let link = self.link_mut(id)?;
        let LinkRole::Consumer { consumer, credit, left, is_paced } = &mut link.role else {
            return None;
        };
        let consumer = *consumer;
        *left = left.saturating_sub(1);
        if *is_paced {
            link.taken = link.taken.saturating_sub(1);
            return Some(consumer);
        }
        link.taken += 1;
        if 2 * link.taken >= *credit {
            link.taken = 0;
            let credit = granted(*credit, *left);
            self.connection.grant_credit(id, credit);
        }
        Some(consumer)
    }

    /// Links are few and looked for only where credit changes or a message came.
    fn link_mut(&mut self, id: LinkId) -> Option<&mut Link> {
        let at = self.links.binary_search_by_key(&id, |link| link.id).ok()?;
        self.links.get_mut(at)
    }

    fn cut_off(&self, error: Option<&Error>) -> Result<(), LoadError> {
        if self.closing {
            return Ok(());
        }
        match error {
            Some(error) => Err(LoadError::Refused(format!(
                "{} ({})",
                error.description,
                error.condition.as_str()
            ))),
            None => Err(LoadError::Refused("the peer ended the link or connection".to_owned())),
        }
    }
}

/// Credit that does not go beyond what is left.
fn granted(credit: u32, left: u64) -> u32 {
    u32::try_from(left).unwrap_or(u32::MAX).min(credit)
}

fn broken_tls(error: rustls::Error) -> LoadError {
    LoadError::Refused(format!("TLS: {error}"))
}

fn not_begun(why: BeginError) -> LoadError {
    LoadError::Refused(match why {
        BeginError::NotOpen => "the peer closed before a session or link could be begun".to_owned(),
        BeginError::Exhausted => "the peer allows fewer links on a connection".to_owned(),
        BeginError::NameInUse => "two links of one name".to_owned(),
        BeginError::TooLong => "an address or name is longer than the peer's frames".to_owned(),
    })
}

fn closed(reason: CloseReason) -> LoadError {
    LoadError::Refused(match reason {
        CloseReason::Closed(Some(error)) => {
            format!("closed: {} ({})", error.description, error.condition.as_str())
        }
        CloseReason::Closed(None) => "closed by the peer".to_owned(),
        CloseReason::Violation(error) => format!(
            "the peer broke the protocol: {} ({})",
            error.description,
            error.condition.as_str()
        ),
        CloseReason::HeaderMismatch => "no AMQP 1.0, or not without TLS".to_owned(),
        CloseReason::SaslFailed(code) => {
            format!("the log-in failed ({code:?}); see --broker and --password-file")
        }
        CloseReason::HandshakeTimeout => "no answer to our open".to_owned(),
        CloseReason::IdleTimeout => "silent for too long".to_owned(),
        CloseReason::CloseTimeout => "no answer to our close".to_owned(),
        CloseReason::Eof => "the connection broke off".to_owned(),
    })
}
