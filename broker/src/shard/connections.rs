//! Connections and their links: from accept to goodbye.
//!
//! ```text
//!   accepted ─▶ SASL ─▶ open ─▶ attach ─▶ (address) ─▶ resolve ─▶ accept_link ─▶ … ─▶ detach
//!                 │                                                             answers that a
//!                 └─ password: verified elsewhere, reads wait                   peer waits for
//! ```
//! A detach, end or close is answered only when every settlement the peer sent before it is
//! committed and every transfer is answered: a peer that has our answer knows that nothing can come
//! back.
//!
//! When a connection is lost, what its consumers held is requeued; transfers that were appended
//! stay, and their answers find nobody.

use std::collections::BTreeMap;
use std::time::Instant;

use amqp::connection::{CloseReason, Connection, Event as Amqp, SaslCode, Side};
use amqp::definitions::{Role, SenderSettleMode};
use amqp::error::{Condition, Error};
use amqp::link::{LinkId, RemoteAttach};
use amqp::session::SessionId;
use journal::{QueueId, ShardId};

use super::link::{Conn, Consumer, End, Farewell, Link, LinkPhase, Producer, Tie};
use super::terms::{self, Wanted};
use super::{Phase, Shard};
use crate::access::{LogIn, Right};
use crate::canary::Canary;
use crate::event::{Action, Attempt, ConnId};
use crate::limits::{
    BROKEN_OFF_MAX, CONNECTIONS_MAX, INFLOW_BYTES_MAX, LAST_BYTES_WITHIN, LINK_NAME_BYTES_MAX,
    LINKS_PER_CONNECTION_MAX, LINKS_WITH_REFUSED_MAX, PRODUCER_CREDIT,
    TEMPORARY_QUEUES_PER_CONNECTION_MAX, UNACCEPTED_BYTES_MAX,
};
use crate::mail::{LinkKey, LinkRef, Mail, Refusal};

/// A client has come.
pub(super) struct Arrival {
    pub(super) conn: ConnId,
    pub(super) peer: String,
    pub(super) may_move: bool,
    pub(super) login: LogIn,
}

impl Shard {
    pub(super) fn accepted(&mut self, now: Instant, arrival: Arrival) {
        let Arrival { conn: id, peer, may_move, login } = arrival;
        if !self.is_serving() || self.conns.len() >= CONNECTIONS_MAX {
            self.actions.push_back(Action::Close(id));
            return;
        }
        self.counters.connections_total += 1;
        let mut config = self.config.amqp.clone();
        config.tag_seed ^= id.0;
        config.links_max = LINKS_WITH_REFUSED_MAX;
        self.set_parts(&mut config);
        if let Some(sasl) = login.sasl {
            config.sasl = sasl;
        }
        if login.is_secure {
            config.properties = Some(self.secure_open.clone());
        }
        let conn = Conn {
            id,
            peer,
            amqp: Connection::new(config, Side::Server, now),
            user: String::new(),
            rights: None,
            certificate_user: login.certificate_user,
            refusal_told: false,
            container_id: String::new(),
            claim: None,
            opened: false,
            links: crate::flat_map::FlatMap::default(),
            received_bytes: 0,
            unfinished_bytes: 0,
            sealed: None,
            unread_since: None,
            unaccepted_bytes: 0,
            taking_bytes: 0,
            paused: false,
            sending: false,
            sending_bytes: 0,
            spare: Vec::new(),
            stalled: false,
            flows: BTreeMap::new(),
            may_move,
            temporary_queues: 0,
            dirty: false,
            deadline: None,
            ending: Vec::new(),
            close_wanted: false,
            goodbye: false,
            over: false,
            last_bytes_by: None,
        };
        self.conns.insert(id, Box::new(conn));
        self.touch(id);
    }

    pub(super) fn received(&mut self, now: Instant, id: ConnId, bytes: &[u8]) {
        let Some(conn) = self.conns.get_mut(id) else { return self.received_late(id, bytes) };
        conn.received_bytes += bytes.len() as u64;
        // What there was has come whole; the host says what there is after it.
        conn.sealed = conn.sealed.map(|(bytes, _)| (bytes, now));
        conn.amqp.handle_bytes(now, bytes);
        self.count_unfinished(now, id);
        self.pump(now, id);
    }

    pub(super) fn sent(&mut self, now: Instant, id: ConnId, mut buf: Vec<u8>) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let counts = conn.sends(0);
        buf.clear();
        conn.keep(buf);
        // Most often there is nothing more to say, and nothing that waited for this.
        if conn.stalled || conn.over || conn.close_wanted || conn.amqp.wants_transmit() {
            self.touch(id);
        }
        if counts {
            self.count_unfinished(now, id);
        }
    }

    pub(super) fn connection_lost(&mut self, now: Instant, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.amqp.handle_eof(now);
        self.pump(now, id);
        self.forget_connection(now, id);
    }

    /// The peer sends nothing more, but may still read: where it has closed and our answers wait
    /// for a commit, it gets them. In any other state it has broken off.
    pub(super) fn peer_ended(&mut self, now: Instant, id: ConnId) {
        let answering = self.conns.get(id).is_some_and(|conn| conn.close_wanted || conn.over);
        if !answering {
            self.connection_lost(now, id);
        }
    }

    /// The host can't carry it much longer.
    pub(super) fn must_end(&mut self, id: ConnId, why: &str) {
        let ends = |conn: &Conn| conn.goodbye || conn.close_wanted || conn.over;
        if self.conns.get(id).is_some_and(|conn| !ends(conn)) {
            self.say_goodbye(id, why);
        }
    }

    pub(super) fn connection_timeouts(&mut self, now: Instant) {
        while let Some((at, id)) = self.deadlines.first().copied() {
            if at > now {
                break;
            }
            self.deadlines.pop_first();
            if let Some(conn) = self.conns.get_mut(id) {
                conn.deadline = None;
                if conn.last_bytes_by.is_some_and(|by| by <= now) {
                    self.forget_connection(now, id);
                    continue;
                }
                if conn.amqp.poll_timeout().is_some_and(|due| due <= now) {
                    conn.amqp.handle_timeout(now);
                }
                // However busy it is, this comes once in its idle time-out.
                conn.trim();
                self.pump(now, id);
            }
            self.look_for_deaf(now);
        }
    }

    /// Takes everything that the engine of a connection has to tell.
    pub(super) fn pump(&mut self, now: Instant, id: ConnId) {
        self.pump_quietly(now, id);
        self.touch(id);
    }

    /// The same, where that alone is no reason to look at the connection again.
    fn pump_quietly(&mut self, now: Instant, id: ConnId) {
        while let Some(event) = self.conns.get_mut(id).and_then(|conn| conn.amqp.poll_event()) {
            self.amqp_event(now, id, event);
        }
    }

    #[inline(always)]
    fn amqp_event(&mut self, now: Instant, id: ConnId, event: Amqp) {
        match event {
            Amqp::SaslAnonymous => self.engine(id, |amqp| amqp.sasl_outcome(SaslCode::Ok)),
            Amqp::SaslPlain(plain) => self.verify(id, Attempt::Plain(plain)),
            Amqp::SaslScram(scram) => self.verify(id, Attempt::Scram(scram)),
            Amqp::SaslExternal { authzid } => self.external(id, &authzid),
            Amqp::Opened(open) => self.peer_opened(id, *open),
            Amqp::SessionBegun { .. } | Amqp::Attached { .. } | Amqp::Drained { .. } => {}
            Amqp::AttachReceived { link, attach } => self.attach(now, id, link, attach),
            Amqp::Transfer { link, delivery, settled, message_format, message } => {
                let transfer =
                    super::ingress::Transfer { delivery, settled, message_format, message };
                self.transfer(now, id, link, transfer);
            }
            Amqp::Part { link, delivery, settled, message_format, part, is_last } => {
                let message = part;
                let part = super::ingress::Transfer { delivery, settled, message_format, message };
                self.part(now, id, link, part, is_last);
            }
            Amqp::Aborted { link } => {
                if let Some(key) = self.key(id, link) {
                    self.drop_inflow(key);
                }
            }
            Amqp::CreditChanged { link, drain, .. } => self.credit_changed(now, id, link, drain),
            Amqp::PartWanted { link } => self.part_wanted(now, id, link),
            Amqp::SendReady { session } => self.send_ready(now, id, session),
            Amqp::Disposition { link, delivery, outcome, settled } => {
                self.disposition(now, id, link, delivery, outcome, settled);
            }
            Amqp::DetachReceived { link, closed, .. } => {
                if let Some(key) = self.key(id, link) {
                    self.retire(key, Farewell::Detach { closed });
                }
            }
            Amqp::Detached { link, .. } => {
                if let Some(key) = self.key(id, link) {
                    self.retire(key, Farewell::Gone);
                }
            }
            Amqp::EndReceived { session, .. } => self.end_session(id, session),
            Amqp::Ended { session, .. } => {
                for key in self.session_links(id, session) {
                    self.retire(key, Farewell::Gone);
                }
            }
            Amqp::CloseReceived { .. } => self.close_wanted(id),
            Amqp::Closed { reason } => self.closed(now, id, &reason),
        }
    }

    /// A command to the engine of a connection, if it is still there.
    pub(super) fn engine(&mut self, id: ConnId, command: impl FnOnce(&mut Connection)) {
        if let Some(conn) = self.conns.get_mut(id) {
            command(&mut conn.amqp);
            self.touch(id);
        }
    }

    pub(super) fn key(&mut self, id: ConnId, link: LinkId) -> Option<LinkKey> {
        self.conns.get_mut(id).and_then(|conn| conn.links.get_mut(link)).copied()
    }

    fn attach(&mut self, now: Instant, id: ConnId, link: LinkId, attach: Box<RemoteAttach>) {
        let wanted = match self.check_attach(id, &attach) {
            Ok(wanted) => wanted,
            Err(error) => return self.engine(id, |amqp| amqp.refuse_link(link, error)),
        };
        let (role, session) = (attach.role, attach.session);
        let presettled = attach.snd_settle_mode == SenderSettleMode::Settled;
        let (browses, rejects) =
            (terms::browses(&attach), terms::knows_rejected(attach.source.as_ref()));
        let annotates = terms::annotates(attach.source.as_ref());
        let accept = terms::in_force(*attach);
        if annotates && !terms::annotates(accept.source.as_ref()) {
            self.counters.annotations_refused_total += 1;
        }
        let end = match role {
            Role::Receiver => End::Producer(Producer {
                rejects,
                relay: matches!(wanted, Wanted::Relay).then(Box::default),
                credit_max: PRODUCER_CREDIT,
                ..Producer::default()
            }),
            Role::Sender => End::Consumer(Consumer {
                default_outcome: accept.source.as_ref().and_then(|s| s.default_outcome.clone()),
                presettled,
                browses,
                ..Consumer::default()
            }),
        };
        let key = self.links.insert(Link {
            conn: id,
            id: link,
            session,
            phase: LinkPhase::Resolving,
            queue: QueueId(0),
            home: self.config.shard,
            end,
            tie: Tie::None,
            accept: Some(Box::new(accept)),
        });
        if let Some(conn) = self.conns.get_mut(id) {
            conn.links.insert(link, key);
        }
        match wanted {
            Wanted::Relay => self.opened_link(now, key),
            Wanted::Queue(name) => self.look_up(now, key, name),
            Wanted::Temporary(policy) => self.ask_to_make(id, key, policy),
        }
    }

    /// Finds the queue of a link that resolves.
    pub(super) fn look_up(&mut self, now: Instant, key: LinkKey, name: String) {
        let asker = self.here(key);
        match self.state.catalogue.named(&name).map(|queue| queue.id) {
            Some(queue) => self.resolved(now, asker, &name, Ok(queue)),
            None => {
                let conn = self.links.get(key).map(|link| link.conn);
                let may_create = conn.is_some_and(|conn| self.has(conn, Right::Create, &name));
                self.post(ShardId(0), Mail::Resolve { asker, name, may_create });
            }
        }
    }

    /// What an attach asks for, or why it is refused.
    fn check_attach(&mut self, id: ConnId, attach: &RemoteAttach) -> Result<Wanted, Error> {
        let no = |condition, what: &str| Err(Error::new(condition, what));
        if !self.is_serving() {
            return no(Condition::ConnectionForced, "the broker is stopping");
        }
        if self.conns.get(id).is_some_and(|conn| conn.links.len() >= LINKS_PER_CONNECTION_MAX) {
            return no(Condition::ResourceLimitExceeded, "too many links on this connection");
        }
        if attach.name.len() > LINK_NAME_BYTES_MAX {
            return no(
                Condition::InvalidField,
                &format!("the link's name is longer than {LINK_NAME_BYTES_MAX} bytes"),
            );
        }
        let wanted = terms::wanted(attach)?;
        let full = |conn: &Conn| conn.temporary_queues >= TEMPORARY_QUEUES_PER_CONNECTION_MAX;
        if matches!(wanted, Wanted::Temporary(_)) && self.conns.get(id).is_some_and(|c| full(c)) {
            return no(
                Condition::ResourceLimitExceeded,
                "too many dynamic nodes of this connection",
            );
        }
        self.may_have(id, attach, &wanted).map_err(|refusal| error_of(&refusal))?;
        Ok(wanted)
    }

    /// A link's queue was found (or was not).
    pub(super) fn resolved(
        &mut self,
        now: Instant,
        asker: LinkRef,
        name: &str,
        result: Result<QueueId, Refusal>,
    ) {
        let queue = result.and_then(|id| {
            self.state.catalogue.get(id).map(|record| (id, record.home)).ok_or(Refusal::QueueGone)
        });
        let Some(link) = self.links.get_mut(asker.key) else { return };
        if link.relays() {
            return self.relay_resolved(now, asker.key, name, &queue);
        }
        if !matches!(link.phase, LinkPhase::Resolving) {
            return;
        }
        let queue = queue.and_then(|found| {
            let link = self.links.get(asker.key).ok_or(Refusal::QueueGone)?;
            self.may_attach(link, found.0).map(|()| found)
        });
        match queue {
            Ok((queue, home)) => {
                if self.follow(asker.key, queue, home) {
                    return;
                }
                let Some(link) = self.links.get_mut(asker.key) else { return };
                (link.queue, link.home) = (queue, home);
                self.tie(asker.key);
                if !self.asks_to_consume(asker) {
                    self.opened_link(now, asker.key);
                }
            }
            Err(refusal) => self.refuse_attach(asker.key, &refusal),
        }
    }

    /// Where a queue has a bounded number of consumers, its home says whether one more may be.
    fn asks_to_consume(&mut self, consumer: LinkRef) -> bool {
        let Some(link) = self.links.get(consumer.key) else { return false };
        let (queue, home) = (link.queue, link.home);
        let takes = matches!(&link.end, End::Consumer(end) if !end.browses);
        let name = self.state.catalogue.get(queue).map(|record| &record.name);
        let bounded = |name: &String| self.config.settings.of(name).consumers_max > 0;
        let asks = takes && name.is_some_and(bounded);
        if asks && let Some(link) = self.links.get_mut(consumer.key) {
            link.phase = LinkPhase::Asking;
            self.post(home, Mail::Consume { queue, consumer, browses: false, asks });
        }
        asks
    }

    /// The home of its queue has said whether a link may consume.
    pub(super) fn consumes(
        &mut self,
        now: Instant,
        consumer: LinkRef,
        result: &Result<(), Refusal>,
    ) {
        let link = self.links.get(consumer.key);
        let waits = link.is_some_and(|link| matches!(link.phase, LinkPhase::Asking));
        // Links that were open heard of its end; this one was not.
        let is_gone = link.is_some_and(|link| self.state.catalogue.get(link.queue).is_none());
        match result {
            Ok(()) if waits && is_gone => self.refuse_attach(consumer.key, &Refusal::QueueGone),
            Ok(()) if waits => self.open_link(now, consumer.key),
            Err(refusal) if waits => self.refuse_attach(consumer.key, refusal),
            // The link went meanwhile, and its home has heard of that.
            Ok(()) | Err(_) => {}
        }
    }

    /// There is no queue for a link that resolves.
    pub(super) fn refuse_attach(&mut self, key: LinkKey, refusal: &Refusal) {
        let Some(link) = self.links.get(key) else { return };
        let (conn, id) = (link.conn, link.id);
        self.remove_link(key);
        self.engine(conn, |amqp| amqp.refuse_link(id, error_of(refusal)));
    }

    /// A link that works is ended from our side.
    pub(super) fn expel_link(&mut self, key: LinkKey, why: &Refusal) {
        let Some(link) = self.links.get(key) else { return };
        let (conn, id) = (link.conn, link.id);
        self.engine(conn, |amqp| amqp.detach(id, true, Some(error_of(why))));
        self.retire(key, Farewell::Gone);
    }

    /// Nothing stands in a link's way any more: it is accepted, and works.
    pub(super) fn opened_link(&mut self, now: Instant, key: LinkKey) {
        let consumer = self.here(key);
        let Some(link) = self.links.get(key) else { return };
        if let End::Consumer(end) = &link.end {
            let (queue, browses) = (link.queue, end.browses);
            let consume = Mail::Consume { queue, consumer, browses, asks: false };
            self.post(link.home, consume);
        }
        self.open_link(now, key);
    }

    /// Answers an attach; the home of its queue knows of it, if it consumes.
    fn open_link(&mut self, now: Instant, key: LinkKey) {
        let Some(link) = self.links.get_mut(key) else { return };
        link.phase = LinkPhase::Open;
        let (conn, id, queue) = (link.conn, link.id, link.queue);
        let accept = link.accept.take().map(|accept| *accept).unwrap_or_default();
        self.engine(conn, |amqp| amqp.accept_link(id, accept));
        let credit_max = self.producer_credit(queue);
        match self.links.get_mut(key).map(|link| &mut link.end) {
            Some(End::Producer(producer)) => {
                producer.credit_max = credit_max;
                self.grant(key);
            }
            Some(End::Consumer(_)) => self.send_stash(now, key),
            None => {}
        }
    }

    /// A link goes; what the peer waits for is answered when its last answers are there.
    pub(super) fn retire(&mut self, key: LinkKey, farewell: Farewell) {
        self.retire_as(key, farewell, false);
    }

    /// The same; of one that broke off, what it was sent and did not settle counts as failed.
    fn retire_as(&mut self, key: LinkKey, farewell: Farewell, broke_off: bool) {
        let consumer = self.here(key);
        self.drop_inflow(key);
        let Some(link) = self.links.get_mut(key) else { return };
        let before = std::mem::replace(&mut link.phase, LinkPhase::Closing(farewell));
        let (queue, home) = (link.queue, link.home);
        match (before, &link.end) {
            (LinkPhase::Open | LinkPhase::Asking, End::Consumer(end)) => {
                let broke_off = broke_off || self.config.canaries.has(Canary::PartingCounted);
                let count_max = if broke_off { BROKEN_OFF_MAX } else { 0 };
                let failed = end.unsettled.first(count_max);
                self.post(home, Mail::Unconsume { queue, consumer, failed });
            }
            (LinkPhase::Open | LinkPhase::Asking, End::Producer(_)) | (LinkPhase::Resolving, _) => {
                self.retired(key)
            }
            (LinkPhase::Closing(Farewell::Gone), _) => {
                link.phase = LinkPhase::Closing(Farewell::Gone);
            }
            (LinkPhase::Closing(_), End::Producer(_)) => self.retired(key),
            // It is on its way already; the wider answer holds from now on.
            (LinkPhase::Closing(_), End::Consumer(_)) => {}
        }
    }

    /// The consumer of a link is gone at its home, with every settlement committed.
    pub(super) fn unconsumed(&mut self, consumer: LinkRef) {
        if let Some(link) = self.links.get_mut(consumer.key) {
            if let End::Consumer(end) = &mut link.end {
                end.stash.clear();
            }
            self.retired(consumer.key);
        }
    }

    /// Answers for a link that is closing, if it has had all its answers.
    pub(super) fn retired(&mut self, key: LinkKey) {
        let Some(link) = self.links.get(key) else { return };
        let LinkPhase::Closing(farewell) = link.phase else { return };
        let unanswered = match &link.end {
            End::Producer(producer) => producer.unanswered,
            End::Consumer(_) => 0,
        };
        if unanswered > 0 && farewell != Farewell::Gone {
            return;
        }
        let (conn, id) = (link.conn, link.id);
        self.remove_link(key);
        if let Farewell::Detach { closed } = farewell {
            self.engine(conn, |amqp| amqp.detach(id, closed, None));
        }
        self.answer_ends(conn);
    }

    /// Answers the ends and the close of a connection whose links have had their last answers.
    fn answer_ends(&mut self, id: ConnId) {
        self.touch(id);
        let Some(conn) = self.conns.get(id) else { return };
        let (ready, waiting): (Vec<_>, Vec<_>) =
            conn.ending.iter().partition(|session| self.session_links(id, **session).is_empty());
        let close = conn.close_wanted && conn.links.is_empty() && !conn.over;
        if ready.is_empty() && !close {
            return;
        }
        self.engine(id, |amqp| {
            ready.into_iter().for_each(|session| amqp.end(session, None));
            if close {
                amqp.close(None);
            }
        });
        if let Some(conn) = self.conns.get_mut(id) {
            conn.ending = waiting;
        }
    }

    pub(super) fn remove_link(&mut self, key: LinkKey) {
        let Some(link) = self.links.remove(key) else { return };
        self.untie(key, &link);
        match &link.end {
            End::Producer(Producer { relay: Some(relay), .. }) => {
                self.aside_bytes -= relay.memory_bytes();
                let bytes = relay.part_bytes();
                self.taken(link.conn, bytes);
            }
            End::Consumer(Consumer { outflow: Some(flow), .. }) => {
                self.aside_bytes -= flow.held_bytes();
                self.flows_due.insert((link.conn, link.session));
            }
            End::Producer(Producer { relay: None, .. })
            | End::Consumer(Consumer { outflow: None, .. }) => {}
        }
        let Some(conn) = self.conns.get_mut(link.conn) else { return };
        conn.links.remove(link.id);
        if let End::Producer(producer) = link.end {
            let bytes: u64 = producer.waiting.iter().flatten().map(|(_, bytes)| bytes).sum();
            conn.unaccepted_bytes = conn.unaccepted_bytes.saturating_sub(bytes);
        }
    }

    fn session_links(&self, id: ConnId, session: SessionId) -> Vec<LinkKey> {
        let Some(conn) = self.conns.get(id) else { return Vec::new() };
        let of_session =
            |key: &LinkKey| self.links.get(*key).is_some_and(|link| link.session == session);
        conn.links.values().copied().filter(of_session).collect()
    }

    fn end_session(&mut self, id: ConnId, session: SessionId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.ending.push(session);
        for key in self.session_links(id, session) {
            self.retire(key, Farewell::Quiet);
        }
        self.answer_ends(id);
    }

    fn close_wanted(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.close_wanted = true;
        let links: Vec<LinkKey> = conn.links.values().copied().collect();
        for key in links {
            self.retire(key, Farewell::Quiet);
        }
        self.answer_ends(id);
    }

    fn closed(&mut self, now: Instant, id: ConnId, reason: &CloseReason) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let ends = conn.over || conn.goodbye || conn.close_wanted;
        let broke_off = !ends && matches!(reason, CloseReason::Eof | CloseReason::IdleTimeout);
        conn.over = true;
        match reason {
            CloseReason::Closed(None) | CloseReason::Eof => {
                tracing::debug!(conn = id.0, peer = %conn.peer, ?reason, "connection over");
            }
            CloseReason::SaslFailed(_) if conn.refusal_told => {
                tracing::debug!(conn = id.0, peer = %conn.peer, ?reason, "connection over");
            }
            CloseReason::Closed(Some(_))
            | CloseReason::Violation(_)
            | CloseReason::HeaderMismatch
            | CloseReason::SaslFailed(_)
            | CloseReason::HandshakeTimeout
            | CloseReason::IdleTimeout
            | CloseReason::CloseTimeout => {
                // Anybody can have it told of a connection that was never open.
                let told = if conn.opened { Some(0) } else { self.stranger_lines.line(now) };
                if let Some(left_out @ 1..) = told {
                    tracing::info!("{left_out} more connections were over before they were open");
                }
                if told.is_some() {
                    tracing::info!(conn = id.0, peer = %conn.peer, ?reason, "connection over");
                }
            }
        }
        let links: Vec<LinkKey> = conn.links.values().copied().collect();
        // Where a role ends, the host ends the connections.
        let broke_off = broke_off && self.is_serving() && self.may_work();
        for key in links {
            self.retire_as(key, Farewell::Gone, broke_off);
        }
        self.unclaim(id);
        self.touch(id);
    }

    /// Drops a connection whose socket is gone.
    fn forget_connection(&mut self, now: Instant, id: ConnId) {
        let Some(conn) = self.conns.get(id) else { return };
        let links: Vec<LinkKey> = conn.links.values().copied().collect();
        for key in links {
            self.retire(key, Farewell::Gone);
        }
        self.unclaim(id);
        if let Some(conn) = self.conns.remove(id) {
            self.forget_unfinished(conn.unfinished_bytes);
            if let Some(at) = conn.deadline {
                self.deadlines.remove(&(at, id));
            }
            if conn.temporary_queues > 0 {
                self.orphan(now, id);
            }
        }
        self.actions.push_back(Action::Close(id));
    }

    /// Hands out what the connections have to say, and withholds or resumes their reads.
    pub(super) fn step_transmit(&mut self, now: Instant) {
        while let Some(id) = self.dirty_conns.pop_front() {
            self.say_farewell(id);
            let Some(conn) = self.conns.get_mut(id) else { continue };
            conn.dirty = false;
            if !conn.sending {
                let mut buf = std::mem::take(&mut conn.spare);
                if conn.amqp.poll_transmit(&mut buf) && !buf.is_empty() {
                    let counts = conn.sends(buf.len());
                    self.actions.push_back(Action::Send { conn: id, buf });
                    if counts {
                        self.count_unfinished(now, id);
                    }
                } else {
                    conn.keep(buf);
                }
                // Room in the engine may let the next delivery through.
                self.pump_quietly(now, id);
                self.send_stalled(now, id);
            }
            self.watch(now, id);
        }
    }

    /// Back-pressure, deadline and end of a connection, after anything happened to it.
    fn watch(&mut self, now: Instant, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.time_unread(now);
        let finished = conn.amqp.is_finished() || (conn.over && conn.amqp.is_drained());
        if finished && !conn.sending {
            self.forget_connection(now, id);
            return;
        }
        // Where a log is behind, each part is waited for.
        let is_pressed = || self.pressure.contains(&true);
        let takes = conn.taking_bytes;
        let pause = !conn.amqp.wants_read()
            || conn.unaccepted_bytes > UNACCEPTED_BYTES_MAX
            || (takes > 0 && (takes > INFLOW_BYTES_MAX || is_pressed()));
        let turned = pause != conn.paused && !conn.over;
        if turned {
            conn.paused = pause;
            conn.amqp.withhold_reads(now, pause);
            self.actions.push_back(if pause {
                Action::PauseReceive(id)
            } else {
                Action::ResumeReceive(id)
            });
        }
        // A deadline that moves later is looked at when the earlier one fires.
        let mut due = conn.amqp.poll_timeout();
        if conn.over && due.is_none() {
            // The engine waits for nothing, but the peer does not take what it is sent.
            due = Some(*conn.last_bytes_by.get_or_insert(now + LAST_BYTES_WITHIN));
        }
        let sooner = match (due, conn.deadline) {
            (Some(due), Some(known)) => due < known,
            (Some(_), None) => true,
            (None, _) => false,
        };
        if let (true, Some(due)) = (sooner, due) {
            if let Some(known) = conn.deadline.replace(due) {
                self.deadlines.remove(&(known, id));
            }
            self.deadlines.insert((due, id));
        }
        if turned {
            self.count_unfinished(now, id);
        }
    }

    /// The process stops: no new transfers; goodbyes come when what was sent is answered.
    pub(super) fn stop(&mut self) {
        match self.phase {
            Phase::Serving => {
                self.phase = Phase::Stopping;
                let ids: Vec<ConnId> = self.conns.keys().collect();
                ids.into_iter().for_each(|id| self.touch(id));
            }
            Phase::Recovering(_) | Phase::Standing(_) | Phase::Joining => {
                self.phase = Phase::Stopped;
                self.post_all(&Mail::NoMore);
                self.actions.push_back(Action::Drained);
            }
            Phase::Stopping | Phase::Stopped => {}
        }
    }

    pub(super) fn step_stop(&mut self) {
        if !matches!(self.phase, Phase::Stopping) {
            return;
        }
        if self.conns.is_empty() && !std::mem::replace(&mut self.farewell_said, true) {
            self.post_all(&Mail::NoMore);
        }
        // The other shards' links may still settle here: the journal is closed when none is left.
        let Some(journal) = &mut self.journal else { return };
        if self.stopped_shards < self.config.shards || !self.mail.is_empty() {
            return;
        }
        if self.pending.is_empty() && self.parked.is_empty() && self.waiting.is_empty() {
            journal.close();
        }
        if journal.is_closed() {
            self.phase = Phase::Stopped;
            self.actions.push_back(Action::Drained);
        }
    }

    /// Says goodbye to a connection once it is owed nothing more. Each answer touches it, so nobody
    /// has to look at all of them.
    fn say_farewell(&mut self, id: ConnId) {
        let stopping = matches!(self.phase, Phase::Stopping);
        let Some(conn) = self.conns.get(id).filter(|_| stopping) else { return };
        if !conn.goodbye && !conn.close_wanted && !conn.over && !self.is_owed(conn) {
            self.say_goodbye(id, "the broker is stopping");
        }
    }

    /// Whether a connection waits for an answer that a commit will bring.
    fn is_owed(&self, conn: &Conn) -> bool {
        conn.links.values().filter_map(|key| self.links.get(*key)).any(|link| match &link.end {
            // Who has not sent all of a message is owed nothing for it.
            End::Producer(producer) => producer.unanswered > producer.half_sent(),
            End::Consumer(consumer) => {
                !consumer.confirming.is_empty() || matches!(link.phase, LinkPhase::Closing(_))
            }
        })
    }

    /// Closes a connection from our side, with `amqp:connection:forced`.
    pub(super) fn say_goodbye(&mut self, id: ConnId, why: &str) {
        if let Some(conn) = self.conns.get_mut(id) {
            conn.goodbye = true;
        }
        let error = Error::new(Condition::ConnectionForced, why);
        self.engine(id, |amqp| amqp.close(Some(error)));
    }
}

/// How a refusal is told to a client.
pub(super) fn error_of(refusal: &Refusal) -> Error {
    match refusal {
        Refusal::MemoryFull => Error::new(
            Condition::ResourceLimitExceeded,
            "the broker's memory bound is reached; try again when consumers have caught up",
        ),
        Refusal::DiskFull => Error::new(
            Condition::ResourceLimitExceeded,
            "the journal is full; try again when consumers have caught up",
        ),
        Refusal::QueueFull => Error::new(
            Condition::ResourceLimitExceeded,
            "the queue is full (max-messages, max-bytes); try again when consumers have caught up",
        ),
        Refusal::TooManyConsumers => Error::new(
            Condition::ResourceLimitExceeded,
            "the queue has as many consumers as it may have (max-consumers)",
        ),
        Refusal::QueueGone => Error::new(Condition::ResourceDeleted, "the queue was deleted"),
        Refusal::TooManyQueues => {
            Error::new(Condition::ResourceLimitExceeded, "there may be no more queues")
        }
        Refusal::TooLarge => {
            Error::new(Condition::MessageSizeExceeded, "the message cannot be stored")
        }
        Refusal::HeadTooLong(bytes_max) => Error::new(
            Condition::ResourceLimitExceeded,
            format!(
                "header, delivery annotations and message annotations of a message that is stored \
                 in fragments may be {bytes_max} bytes together, and all that stands before the \
                 body of one that comes in parts must be in the first of them, 63 KiB at most; say \
                 less in them"
            ),
        ),
        Refusal::TooSlow => Error::new(
            Condition::ResourceLimitExceeded,
            "the message came so slowly that the journal needed the room behind its beginning; \
             send it faster, or give the journal more disk",
        ),
        Refusal::Stopping => Error::new(Condition::ConnectionForced, "the broker is stopping"),
        Refusal::Malformed(what) => Error::new(Condition::DecodeError, what.as_str()),
        Refusal::NotYours => Error::new(
            Condition::ResourceLocked,
            "a temporary queue is consumed from by the connection that made it alone",
        ),
        Refusal::NotFound(what) => Error::new(Condition::NotFound, what.as_str()),
        Refusal::Address(what) | Refusal::Property(what) => {
            Error::new(Condition::InvalidField, what.as_str())
        }
        Refusal::NotBuilt(what) => Error::new(Condition::NotImplemented, what.as_str()),
        Refusal::Unauthorized(what) => Error::new(Condition::UnauthorizedAccess, what.as_str()),
    }
}
