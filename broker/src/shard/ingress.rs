//! A transfer comes in: checked, sent to its queue's home, appended, and answered when committed.
//!
//! ```text
//!   connection's shard:  Transfer ─▶ scan sections ─▶ Publish ──────────┐
//!   home shard:          memory? disk? ─▶ sequence ─▶ append ─▶ slot ◀──┘
//!                        … the commit … ─▶ Published ─▶ accepted
//! ```
//! Back-pressure has three steps: a link's credit is not topped up while its queue's home is under
//! pressure, or the queue itself is full (`shard/depth.rs`); a connection's reads wait while too
//! many of its bytes are not accepted; and at the bound a message is refused with
//! `amqp:resource-limit-exceeded`.
//!
//! A message is refused before it touches the log, or it is in the log, or it waits (in order, in
//! memory that counts) for a journal that is behind: nothing is dropped, nothing overtakes.

use std::collections::VecDeque;
use std::num::{NonZeroU32, NonZeroU64};
use std::sync::Arc;
use std::time::Instant;

use amqp::codec::DecodeError;
use amqp::delivery::{DeliveryId, Outcome as AmqpOutcome};
use amqp::link::LinkId;
use amqp::message::{self, Sections, Survey};
use bytes::Bytes;
use journal::limits::{BACKLOG_BYTES_MAX, RECORD_HEADER_BYTES};
use journal::{
    AppendError, Journal, Level, Lsn, QueueId, Record, RecordKind, Room, Sequence, ShardId, Urgency,
};

use super::connections::error_of;
use super::link::{End, LinkPhase};
use super::relay::Relayed;
use super::{Phase, Shard};
use crate::apply::{ApplyError, Effect, Stored};
use crate::canary::Canary;
use crate::delivery_time;
use crate::duplicates::{self, DuplicateId};
use crate::event::ConnId;
use crate::limits::{
    FULL_HOLD, HEAD_BYTES_MAX, MOVE_BEYOND_BYTES, PARKED_BYTES, PARKED_FOR, PRESSURE_HOLD,
    PRESSURE_LOG_EVERY, PRESSURE_SIXTEENTHS, PRODUCER_CREDIT, RELIEF_SIXTEENTHS,
};
use crate::mail::{CopyRef, LinkKey, LinkRef, Mail, Part, Refusal, Token, Whence};
use crate::pending::{Answer, Waiting};
use crate::queue::{Admission, Chain, Large, PRIORITY_DEFAULT, PRIORITY_MAX, Queue, Traits};
use crate::setback::behind_annotations;
use crate::settings::FullPolicy;

/// A message as it came off a link.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) delivery: DeliveryId,
    pub(super) settled: bool,
    pub(super) message_format: u32,
    pub(super) message: Bytes,
}

/// A message on its way into a queue's log.
#[derive(Debug)]
pub(super) struct Publish {
    pub(super) queue: QueueId,
    pub(super) whence: Whence,
    pub(super) message: Bytes,
    pub(super) traits: Traits,
}

impl Publish {
    fn memory_bytes(&self) -> u64 {
        Queue::memory_bytes(self.message.len())
    }
}

/// What waits for the journal.
#[derive(Debug)]
pub(super) enum Waits {
    /// A message.
    Whole(Publish),
    /// A part of one.
    Part(Part),
}

impl Waits {
    fn memory_bytes(&self) -> u64 {
        match self {
            Self::Whole(publish) => publish.memory_bytes(),
            Self::Part(part) => part.memory_bytes(),
        }
    }
}

/// Messages that the journal could not take yet: its disk is behind, or a segment is being made.
/// Their bytes count against the memory bound.
#[derive(Debug, Default)]
pub(super) struct Parked {
    queue: VecDeque<Waits>,
    bytes: u64,
    /// Since when it was never empty at the end of a step.
    since: Option<Instant>,
}

impl Parked {
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether producers must hear of it: a moment's wait for a write to begin is none of theirs.
    fn is_behind(&mut self, now: Instant) -> bool {
        let since = self.since.filter(|_| !self.is_empty());
        self.since = since.or((!self.is_empty()).then_some(now));
        self.bytes > PARKED_BYTES || since.is_some_and(|since| now >= since + PARKED_FOR)
    }

    pub(super) fn push_back(&mut self, waits: Waits) {
        self.bytes += waits.memory_bytes();
        self.queue.push_back(waits);
    }

    pub(super) fn push_front(&mut self, waits: Waits) {
        self.bytes += waits.memory_bytes();
        self.queue.push_front(waits);
    }

    fn pop_front(&mut self) -> Option<Waits> {
        let waits = self.queue.pop_front()?;
        self.bytes -= waits.memory_bytes();
        Some(waits)
    }
}

/// Whether producers are held back, and why.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pressure {
    pub(super) on: bool,
    /// Memory is near its bound.
    pub(super) memory: bool,
    /// The log is (nearly) full.
    pub(super) full: bool,
    /// It is not let go before.
    until: Option<Instant>,
    /// A message was refused for a full log: whatever room there seems to be is not enough.
    pub(super) full_until: Option<Instant>,
    /// When it is let go, if nothing else happens.
    pub(super) lifts_at: Option<Instant>,
    logged: Option<Instant>,
}

/// Why a message is not in the log.
pub(super) enum Untaken {
    Busy,
    /// Its queue is full and drops what comes: its producer hears `accepted`.
    Dropped,
    Refused(Refusal),
}

impl From<Refusal> for Untaken {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Shard {
    #[inline(always)]
    pub(super) fn transfer(&mut self, now: Instant, id: ConnId, link: LinkId, transfer: Transfer) {
        let is_stopping = matches!(self.phase, Phase::Stopping | Phase::Stopped);
        let Some(conn) = self.conns.get_mut(id) else { return };
        let Some(key) = conn.links.get_mut(link).copied() else { return };
        let Some(found) = self.links.get_mut(key) else { return };
        let (LinkPhase::Open, End::Producer(producer)) = (&found.phase, &mut found.end) else {
            return;
        };
        let fragment_bytes_max = self.journal.as_ref().map_or(0, Journal::fragment_bytes_max);
        let is_whole = transfer.message.len() <= fragment_bytes_max;
        let is_usual = is_whole && transfer.message_format == 0 && !is_stopping;
        let traits = if is_usual && message::is_plain(&transfer.message) {
            Traits::default()
        } else {
            let unix_ms = || self.config.clock.unix_ms(now);
            match look_over(is_stopping, &transfer, fragment_bytes_max, unix_ms) {
                Ok(traits) => traits,
                Err(refusal) => {
                    self.counters.refused_total += 1;
                    if !transfer.settled {
                        self.refuse_delivery(key, transfer.delivery, &refusal);
                    }
                    // All others top the credit up when they are answered.
                    return self.grant(key);
                }
            }
        };
        // One that was sent settled is answered too, though its client hears nothing of it: it
        // counts until its home has taken it, or credit would bound nothing.
        let (queue, home, message) = (found.queue, found.home, transfer.message);
        let bytes = message.len() as u64;
        let token = producer.push(transfer.delivery, bytes);
        conn.unaccepted_bytes += bytes;
        if producer.relay.is_some() {
            let settled = transfer.settled;
            return self.relay(now, key, Relayed { token, settled, message, traits });
        }
        let whence = Whence::Producer(self.here(key), token);
        self.publish_at(now, home, Publish { queue, whence, message, traits });
    }

    /// Hands a message to its queue's home.
    #[inline(always)]
    pub(super) fn publish_at(&mut self, now: Instant, home: ShardId, publish: Publish) {
        if self.is_next(home) {
            self.publish(now, publish);
        } else {
            let Publish { queue, whence, message, traits } = publish;
            self.post(home, Mail::Publish { queue, whence, message, traits });
        }
    }

    /// Tells a sender that its message is not taken. One that cannot hear `rejected` hears why in
    /// the detach of its link [3.5.3].
    pub(super) fn refuse_delivery(
        &mut self,
        key: LinkKey,
        delivery: DeliveryId,
        refusal: &Refusal,
    ) {
        let Some(link) = self.links.get(key) else { return };
        let (conn, id) = (link.conn, link.id);
        let outcome = outcome_of(refusal);
        let hears = match (&link.end, &outcome) {
            (End::Producer(producer), AmqpOutcome::Rejected(_)) => producer.rejects,
            (End::Producer(_) | End::Consumer(_), _) => true,
        };
        if hears {
            self.engine(conn, |amqp| amqp.settle(id, delivery, outcome));
        } else {
            self.expel_link(key, refusal);
        }
    }

    /// What counts against the memory bound.
    #[inline(always)]
    pub(super) fn memory_bytes(&self) -> u64 {
        self.state.memory_bytes() + self.parked.bytes + self.aside_bytes
    }

    /// A message for a queue that lives here. While the journal cannot take it, it waits, in order.
    #[inline(always)]
    pub(super) fn publish(&mut self, now: Instant, mut publish: Publish) {
        if self.memory_bytes() + publish.memory_bytes() > self.config.memory_bytes_max
            && !self.takes_beyond(&publish)
        {
            self.refuse_publish(publish.whence, Refusal::MemoryFull);
        } else if !self.parked.queue.is_empty() {
            self.parked.push_back(Waits::Whole(publish));
        } else if !self.append_or_refuse(now, &mut publish) {
            self.parked.push_front(Waits::Whole(publish));
        }
    }

    /// Whether a message is taken though it does not fit in: one that moves, beside its bytes where
    /// it was, read back perhaps, and what its move has set aside. So a few can always go.
    #[cold]
    fn takes_beyond(&self, publish: &Publish) -> bool {
        let bound = self.config.memory_bytes_max + 3 * MOVE_BEYOND_BYTES;
        let moves = matches!(publish.whence, Whence::Moved(_));
        moves && self.memory_bytes() + publish.memory_bytes() <= bound
    }

    /// The journal may take again what it could not take before.
    pub(super) fn step_parked(&mut self, now: Instant) {
        self.step_ended(now);
        while let Some(mut waits) = self.parked.pop_front() {
            let is_taken = match &mut waits {
                Waits::Whole(publish) => self.append_or_refuse(now, publish),
                Waits::Part(part) => self.take_in(now, part),
            };
            if !is_taken {
                self.parked.push_front(waits);
                break;
            }
        }
    }

    /// What the disk has no room for is not asked for again at once.
    pub(super) fn hold_if_full(&mut self, now: Instant, refusal: &Refusal) {
        if *refusal == Refusal::DiskFull {
            self.pressing.full_until = Some(now + FULL_HOLD);
        }
    }

    /// Appends a message, or answers that it is not taken; false where it has to wait. By
    /// reference: it is more than a hundred bytes, and stays where it is.
    #[inline(never)]
    fn append_or_refuse(&mut self, now: Instant, publish: &mut Publish) -> bool {
        match self.append_message(now, publish) {
            Ok(()) => true,
            Err(Untaken::Refused(refusal)) => {
                self.hold_if_full(now, &refusal);
                self.refuse_publish(publish.whence, refusal);
                true
            }
            Err(Untaken::Dropped) => {
                self.counters.dropped_total += 1;
                if let Whence::Producer(link, token) = publish.whence {
                    self.post(link.shard, Mail::Published { link, token, result: Ok(()) });
                }
                true
            }
            Err(Untaken::Busy) => false,
        }
    }

    pub(super) fn refuse_publish(&mut self, whence: Whence, refusal: Refusal) {
        match whence {
            Whence::Producer(link, token) => {
                self.counters.refused_total += 1;
                self.post(link.shard, Mail::Published { link, token, result: Err(refusal) });
            }
            Whence::Moved(origin) => self.post(origin.shard, Mail::NotMoved { origin, refusal }),
        }
    }

    /// Appends a message, and takes its bytes: of one that is not in the log they stay.
    fn append_message(&mut self, now: Instant, publish: &mut Publish) -> Result<(), Untaken> {
        match publish.traits.duplicate_id_at {
            Some(at) => self.append_identified(now, publish, at),
            None => self.append_as(now, publish, None),
        }
    }

    /// The same for one with a duplicate id, unless a message with that was here before.
    #[inline(never)]
    fn append_identified(
        &mut self,
        now: Instant,
        publish: &mut Publish,
        at: NonZeroU32,
    ) -> Result<(), Untaken> {
        let id = publish.queue;
        let queue = self.state.queue(id).ok_or(Refusal::QueueGone)?;
        if queue.settings().duplicate_ids == 0 {
            return self.append_as(now, publish, None);
        }
        let found = DuplicateId::read(&publish.message, at).map_err(Refusal::Property)?;
        let Some(end) = self.state.duplicates.known(id, &found) else {
            return self.append_as(now, publish, Some(&found));
        };
        let level = self.state.catalogue.get(id).ok_or(Refusal::QueueGone)?.level;
        self.append_nothing(level, publish.whence, end);
        Ok(())
    }

    #[inline(always)]
    fn append_as(
        &mut self,
        now: Instant,
        publish: &mut Publish,
        duplicate_id: Option<&DuplicateId>,
    ) -> Result<(), Untaken> {
        let Publish { queue: id, whence, message, traits } = publish;
        let (id, whence) = (*id, *whence);
        let level = self.state.catalogue.get(id).ok_or(Refusal::QueueGone)?.level;
        let (level, origin) = match whence {
            Whence::Producer(..) => (level, None),
            // A move crosses logs: each step is committed everywhere, whatever the queue's level.
            Whence::Moved(origin) => (Level::ReplicatedSync, Some(origin)),
        };
        let queue = self.state.queue(id).ok_or(Refusal::QueueGone)?;
        let sequence = queue.next_sequence();
        let mut expiry_unix_ms = traits.expiry_unix_ms;
        if expiry_unix_ms.is_some() && queue.keeps_expired() {
            expiry_unix_ms = None;
        }
        if self.config.canaries.has(Canary::ExpiresEarly) {
            expiry_unix_ms = expiry_unix_ms.map(|_| 1);
        }
        if self.config.canaries.has(Canary::NeverExpires) {
            expiry_unix_ms = None;
        }
        let is_early = self.config.canaries.has(Canary::DeliveredEarly);
        let delivery_unix_ms = traits.delivery_unix_ms.filter(|_| !is_early);
        let priority_default = queue.priority_default();
        let admission = queue.admits(message.len());
        match admission {
            Admission::Free | Admission::Counted => {}
            Admission::Full(_) if self.config.canaries.has(Canary::DepthIgnored) => {}
            Admission::Full(policy) => is_let_in(policy, whence)?,
            Admission::Closed => return Err(Refusal::QueueGone.into()),
        }
        let journal = self.journal.as_mut().ok_or(Refusal::Stopping)?;
        let mut record = Record::new(RecordKind::Message, id, sequence, message);
        record.parts.duplicate_id = duplicate_id.map(DuplicateId::as_bytes);
        record.level = level;
        let stated = traits.priority.filter(|_| !self.config.canaries.has(Canary::PriorityIgnored));
        let priority = stated.unwrap_or(priority_default);
        if priority != PRIORITY_DEFAULT {
            record.parts.priority = Some(priority);
        }
        record.parts.expiry_unix_ms = expiry_unix_ms;
        record.parts.delivery_unix_ms = delivery_unix_ms.map(NonZeroU64::get);
        record.parts.origin = origin.filter(|_| !self.config.canaries.has(Canary::OriginDropped));
        let urgency = if level == Level::Async { Urgency::Window } else { Urgency::Now };
        let appended = match journal.append(now, &record, urgency) {
            Ok(appended) => appended,
            Err(AppendError::Busy) => return Err(Untaken::Busy),
            Err(error) => return Err(Untaken::Refused(refusal_of(error))),
        };
        // Where it is one record, the rest of that is its optional parts.
        let rest = appended.end.since(appended.lsn) - (RECORD_HEADER_BYTES + message.len()) as u64;
        let is_whole = message.len() <= journal.fragment_bytes_max();
        let traits = Traits {
            priority: Some(priority),
            expiry_unix_ms,
            delivery_unix_ms,
            parts_bytes: is_whole.then_some(rest as u16),
            ..*traits
        };
        let (lsn, message) = (appended.lsn, std::mem::take(message));
        // Put together where it is needed, so that most often it never is.
        let stored = || Stored { lsn, queue: id, sequence, message, traits, origin };
        let applied =
            if is_whole { self.state.apply_message(stored()) } else { self.apply_split(stored()) };
        let effect = applied.map_err(|error| Refusal::Malformed(format!("{error:?}")))?;
        if let Some(duplicate_id) = duplicate_id {
            let place = appended.lsn..appended.end;
            // One in fragments is remembered from its end on, as who reads the log does.
            let rank = if is_whole { sequence } else { Sequence(sequence.0 + 1) };
            self.state.apply_duplicate_id(place, id, rank, duplicate_id);
        }
        let answer = match whence {
            Whence::Producer(link, token) => Answer::Published(link, token),
            Whence::Moved(origin) => {
                let copy = CopyRef { shard: self.config.shard, queue: id, sequence };
                Answer::Moved(Box::new((origin, copy)))
            }
        };
        let level = appended.answered_at(level);
        self.pending.push(level, Waiting { end: appended.end, effect, answer });
        if admission != Admission::Free {
            self.tell_depth(id);
        }
        Ok(())
    }

    /// What was appended last is in fragments.
    #[cold]
    fn apply_split(&mut self, stored: Stored) -> Result<Effect, ApplyError> {
        let Stored { lsn, queue, sequence, message, traits, origin } = stored;
        let fragments = self.journal.as_ref().map(Journal::fragments).unwrap_or_default();
        let chain = Chain::new(fragments);
        assert_eq!(chain.lsn(), lsn, "the places of what was appended last");
        let message_bytes = message.len();
        let large = Large { chain, message: Some(message), message_bytes };
        self.state.apply_large((queue, sequence), large, traits, origin)
    }

    /// A message was here before, in a record that ends at `end`: its producer hears what it heard
    /// then, or would have heard. Not before the first is committed; and at `async` not before that
    /// is durable, since it may wait for that.
    #[cold]
    pub(super) fn append_nothing(&mut self, level: Level, whence: Whence, end: Lsn) {
        let answer = match whence {
            Whence::Producer(link, token) => Answer::Published(link, token),
            Whence::Moved(_) => Answer::Nobody,
        };
        self.counters.duplicates_total += 1;
        let is_early = self.config.canaries.has(Canary::DuplicateAnsweredEarly);
        let end = if is_early { Lsn::ZERO } else { end };
        self.pending.insert(level.max(Level::Sync), Waiting { end, effect: Effect::None, answer });
    }

    /// What became of a transfer.
    pub(super) fn published(&mut self, at: LinkRef, token: Token, result: &Result<(), Refusal>) {
        let Err(refusal) = result else { return self.accept_transfer(at, token) };
        let Some(link) = self.links.get_mut(at.key) else { return };
        let conn = link.conn;
        let End::Producer(producer) = &mut link.end else { return };
        let Some((delivery, bytes)) = producer.take(token) else { return };
        if let Some(conn) = self.conns.get_mut(conn) {
            conn.unaccepted_bytes = conn.unaccepted_bytes.saturating_sub(bytes);
        }
        self.refuse_delivery(at.key, delivery, refusal);
        self.grant(at.key);
        self.retired(at.key);
    }

    /// A transfer is committed: it is answered, and its link gets what waited for that.
    #[inline(always)]
    pub(super) fn accept_transfer(&mut self, at: LinkRef, token: Token) {
        let Some(link) = self.links.get_mut(at.key) else { return };
        let End::Producer(producer) = &mut link.end else { return };
        let Some((delivery, bytes)) = producer.take(token) else { return };
        if let Some(conn) = self.conns.get_mut(link.conn) {
            conn.unaccepted_bytes = conn.unaccepted_bytes.saturating_sub(bytes);
            conn.amqp.settle(link.id, delivery, AmqpOutcome::Accepted);
            if !std::mem::replace(&mut conn.dirty, true) {
                self.dirty_conns.push_back(conn.id);
            }
            // Most have credit left, and stay.
            let has_credit = conn.amqp.link_credit(link.id) > PRODUCER_CREDIT / 2;
            if has_credit && matches!(link.phase, LinkPhase::Open) {
                return;
            }
        }
        self.grant(at.key);
        self.retired(at.key);
    }

    /// Tops a producer's credit up, unless its queue's home is under pressure.
    pub(super) fn grant(&mut self, key: LinkKey) {
        let serving = self.is_serving();
        let Some(link) = self.links.get(key) else { return };
        let (conn, id, home, queue) = (link.conn, link.id, link.home, link.queue);
        let (LinkPhase::Open, End::Producer(producer)) = (&link.phase, &link.end) else {
            return;
        };
        let pressed = match &producer.relay {
            // Its next message may be for any of them.
            Some(_) => self.pressure.contains(&true),
            None => self.pressure.get(usize::from(home.0)).copied().unwrap_or(false),
        };
        let blocked = self.full_queues.contains(&queue);
        if !serving || pressed || blocked || producer.is_full() {
            return;
        }
        let credit_max = producer.credit_max;
        // The engine's count is the truth: deliveries that were aborted have used credit too.
        let left = self.conns.get(conn).map_or(0, |conn| conn.amqp.link_credit(id));
        if left <= credit_max / 2 {
            self.engine(conn, |amqp| amqp.grant_credit(id, credit_max));
        }
    }

    /// Tells everybody when this shard comes under pressure or out of it. Pressure lasts a little
    /// longer than its reason: the tide must not be told wave by wave.
    pub(super) fn step_pressure(&mut self, now: Instant) {
        let Pressure { on, until, full_until, .. } = self.pressing;
        let sixteenths = if on { RELIEF_SIXTEENTHS } else { PRESSURE_SIXTEENTHS };
        let bound = self.config.memory_bytes_max / 16 * sixteenths;
        let memory = self.memory_bytes() > bound;
        let packed = self.journal.as_ref().is_some_and(|j| j.room() != Room::Plenty);
        let behind = self.parked.is_behind(now)
            || (self.member.is_some() && self.lags())
            || self.journal.as_ref().is_some_and(|j| j.backlog_bytes() > BACKLOG_BYTES_MAX / 2);
        let reason = memory || packed || behind;
        let held = [until, full_until].into_iter().flatten().filter(|at| now < *at).max();
        let pressed = reason || held.is_some();
        self.pressing = Pressure {
            on: pressed,
            memory,
            full: packed || full_until.is_some_and(|at| now < at),
            until: if reason { Some(now + PRESSURE_HOLD) } else { until },
            lifts_at: if reason { None } else { held },
            ..self.pressing
        };
        if pressed != on {
            self.post_all(&Mail::Pressure(pressed));
            self.log_pressure(now);
        }
    }

    fn log_pressure(&mut self, now: Instant) {
        let Pressure { on, memory, full, logged, .. } = self.pressing;
        let shard = self.config.shard.0;
        let memory_bytes = self.memory_bytes();
        let what = if on { "withheld" } else { "given again" };
        if logged.is_some_and(|at| now < at + PRESSURE_LOG_EVERY) {
            tracing::debug!(shard, memory, full, memory_bytes, "producers' credit is {what}");
        } else {
            self.pressing.logged = Some(now);
            tracing::info!(
                shard,
                memory,
                full,
                memory_bytes,
                "back-pressure: producers' credit is {what}"
            );
        }
    }

    /// A shard came under pressure, or out of it: then its producers get credit again.
    pub(super) fn pressed_by(&mut self, home: ShardId, on: bool) {
        let Some(pressed) = self.pressure.get_mut(usize::from(home.0)) else { return };
        *pressed = on;
        if !on {
            let keys: Vec<LinkKey> = self
                .links
                .iter()
                .filter(|(_, link)| link.home == home || link.relays())
                .map(|(key, _)| key)
                .collect();
            keys.into_iter().for_each(|key| self.grant(key));
        }
    }
}

/// Whether a message comes into a queue that is full.
#[cold]
pub(super) fn is_let_in(policy: FullPolicy, whence: Whence) -> Result<(), Untaken> {
    match (policy, whence) {
        (FullPolicy::Block, Whence::Producer(..)) => Ok(()),
        (FullPolicy::Drop, Whence::Producer(..)) => Err(Untaken::Dropped),
        // Whoever moves a message knows what becomes of it.
        (FullPolicy::Refuse, _) | (FullPolicy::Block | FullPolicy::Drop, Whence::Moved(_)) => {
            Err(Refusal::QueueFull.into())
        }
    }
}

/// Looks a message over: what a queue has to know of it, or why it is not taken.
#[inline(never)]
fn look_over(
    is_stopping: bool,
    transfer: &Transfer,
    fragment_bytes_max: usize,
    unix_ms: impl Fn() -> u64,
) -> Result<Traits, Refusal> {
    if is_stopping {
        return Err(Refusal::Stopping);
    }
    if transfer.message_format != 0 {
        return Err(Refusal::NotBuilt(format!(
            "message format {} is not built; send format 0",
            transfer.message_format
        )));
    }
    let survey = message::check(&transfer.message).map_err(undecodable)?;
    if transfer.message.len() > fragment_bytes_max {
        check_head(&transfer.message, fragment_bytes_max)?;
    }
    Ok(traits_of(&survey, &transfer.message, unix_ms))
}

#[cold]
pub(super) fn undecodable(error: DecodeError) -> Refusal {
    Refusal::Malformed(format!("the message cannot be decoded: {error}"))
}

/// Whether the first fragment of a message holds what is written anew when it goes out, and what
/// is added to that.
#[cold]
pub(super) fn check_head(message: &[u8], fragment_bytes_max: usize) -> Result<(), Refusal> {
    let bytes_max = HEAD_BYTES_MAX.min(fragment_bytes_max / 4 * 3);
    let sections = Sections::scan_annotations(message).map_err(undecodable)?;
    let is_short = behind_annotations(&sections) <= bytes_max;
    is_short.then_some(()).ok_or(Refusal::HeadTooLong(bytes_max))
}

/// What a queue has to know of a message. Of `ttl` and absolute expiry the sooner counts [3.2.1,
/// 3.2.4]; in both 0 means never, as clients mean it.
#[inline]
pub(super) fn traits_of(survey: &Survey, message: &[u8], unix_ms: impl Fn() -> u64) -> Traits {
    let by_ttl = survey.header.ttl.filter(|ttl| *ttl > 0);
    let by_ttl = by_ttl.map(|ttl| unix_ms().saturating_add(u64::from(ttl)));
    let absolute = survey.absolute_expiry_time(message).filter(|at| at.0 != 0);
    let absolute = absolute.map(|at| u64::try_from(at.0).unwrap_or(0));
    Traits {
        priority: survey.header.priority.map(|priority| priority.min(PRIORITY_MAX)),
        expiry_unix_ms: match (by_ttl, absolute) {
            (Some(by_ttl), Some(absolute)) => Some(by_ttl.min(absolute)),
            (by_ttl, absolute) => by_ttl.or(absolute),
        },
        delivery_unix_ms: survey
            .message_annotations(message)
            .and_then(|annotations| delivery_time::find(&annotations, unix_ms)),
        duplicate_id_at: duplicates::find(survey, message),
        parts_bytes: None,
    }
}

/// How an append that failed is told.
pub(super) fn refusal_of(error: AppendError) -> Refusal {
    match error {
        AppendError::Full | AppendError::Busy => Refusal::DiskFull,
        AppendError::TooLarge => Refusal::TooLarge,
        AppendError::Poisoned | AppendError::Closed => Refusal::Stopping,
    }
}

/// A refused message is `rejected` with the reason; one that merely came too late is `released`:
/// sent again it finds another broker, a new queue of the name, or room for its beginning.
fn outcome_of(refusal: &Refusal) -> AmqpOutcome {
    match refusal {
        Refusal::Stopping | Refusal::QueueGone | Refusal::TooSlow => AmqpOutcome::Released,
        Refusal::MemoryFull
        | Refusal::DiskFull
        | Refusal::QueueFull
        | Refusal::TooManyQueues
        | Refusal::TooManyConsumers
        | Refusal::TooLarge
        | Refusal::HeadTooLong(_)
        | Refusal::Malformed(_)
        | Refusal::Address(_)
        | Refusal::Property(_)
        | Refusal::NotFound(_)
        | Refusal::NotYours
        | Refusal::Unauthorized(_)
        | Refusal::NotBuilt(_) => AmqpOutcome::Rejected(Some(Arc::new(error_of(refusal)))),
    }
}
