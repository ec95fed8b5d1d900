//! A message that is too long to be gathered goes into the log as it comes.
//!
//! ```text
//!   connection's shard                              queue's home
//!   first part: its head is looked over, as that
//!   of any message; a relay finds the queue
//!   Part First ───────────────────────────────────▶ taken? ─▶ sequence ─▶ FIRST appended
//!        ◀──────────────────────────────────────── Taken
//!   Part Next, checked as it comes ───────────────▶ appended: `halves` has its place
//!        ◀──────────────────────────────────────── Taken
//!   Part Last ────────────────────────────────────▶ taken still? ─▶ LAST appended: a message, on
//!        ◀─────────────────────── Published ─────── the disk only    … the commit …
//!   aborted, or its link goes: Abandoned ─────────▶ settled: what is in the log of it is dead
//! ```
//! So a message takes the memory of a few parts, however long it is: a connection is not read while
//! more than [`INFLOW_BYTES_MAX`] of its parts are on their way to the log, and while its log is
//! behind each is waited for. What comes at once, or in several transfers and is short, is one
//! message from the start (`ingress.rs`).
//!
//! With the first part it is decided whether the message is taken (right, address, duplicate,
//! depth, level), and with the last again what may have changed: depth by its whole length, and
//! whether its duplicate id was used meanwhile. One that is not taken, or not to its end, comes to
//! its end all the same and goes nowhere; its sender hears the answer then, as of any other.
//!
//! The log is needed from the oldest such message on. Where room is short that is given up
//! (`recycle.rs`): [`Refusal::TooSlow`].
//!
//! Invariants: a message that is not whole is seen by nobody, and is nothing after a start or in
//! another reign; one that is given up is settled in the log, so that who follows knows; for that
//! room is set aside with its first fragment. Parts of one message keep their order, and the
//! messages of a link theirs: both wait in one line for a log that is behind.
//!
//! At `async` it waits for the disk, as every message that takes several batches does.
//!
//! A long message that moves from another queue comes the same way (`move_flow.rs`); who moves it
//! hears at once that it is not taken.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::time::Instant;

use amqp::codec::Fault;
use amqp::connection::Config;
use amqp::link::LinkId;
use amqp::message::Progress;
use bytes::Bytes;
use journal::{
    AppendError, Journal, Level, Lsn, Origin, QueueId, Record, RecordFlags, RecordKind, Sequence,
    ShardId, Urgency,
};

use super::ingress::{
    Transfer, Untaken, Waits, check_head, is_let_in, refusal_of, traits_of, undecodable,
};
use super::link::{End, Link, LinkPhase, Producer};
use super::{Phase, Shard};
use crate::apply::Effect;
use crate::canary::Canary;
use crate::duplicates::DuplicateId;
use crate::event::ConnId;
use crate::limits::{
    GATHER_BYTES_MAX, HALF_IDLE, HALF_IDLE_SEGMENTS, HALF_SLOW, HALF_TIMES, PART_BYTES,
    PRESSURE_LOG_EVERY,
};
use crate::mail::{CopyRef, LinkKey, Mail, Part, Refusal, Share, Token, Whence};
use crate::pending::{Answer, Waiting};
use crate::queue::{Admission, PRIORITY_DEFAULT, Traits};

/// A message that comes in parts, at its link.
#[derive(Debug)]
pub(crate) struct Inflow {
    /// None of one that was not taken here: the rest of it goes nowhere.
    token: Option<Token>,
    /// Why it was not.
    refused: Option<Refusal>,
    /// The queue that it says itself, on a link that relays.
    to: Option<String>,
    /// And where that is, once the first part went there: the others follow, whatever becomes of
    /// the name.
    went: Option<(QueueId, ShardId)>,
    /// What its first part says of it, until that is on its way.
    traits: Option<Traits>,
    progress: Progress,
}

impl Inflow {
    fn refused(refusal: Refusal) -> Self {
        let (token, to, went, traits) = (None, None, None, None);
        Self { token, refused: Some(refusal), to, went, traits, progress: Progress::default() }
    }
}

impl Producer {
    /// Messages of which the last part has not come, and which are counted as unanswered.
    pub(super) fn half_sent(&self) -> u32 {
        u32::from(self.inflow.as_ref().is_some_and(|inflow| inflow.token.is_some()))
    }
}

/// The connection's side.
impl Shard {
    /// How a connection gives long messages: a host may want them in smaller parts.
    pub(super) fn set_parts(&self, config: &mut Config) {
        let fragment_bytes_max =
            self.journal.as_ref().map_or(PART_BYTES, Journal::fragment_bytes_max);
        config.part_bytes = config.part_bytes.min(PART_BYTES).min(fragment_bytes_max);
        let gathered = config.gather_bytes_max.min(GATHER_BYTES_MAX);
        config.gather_bytes_max = gathered.max(config.part_bytes as u64);
    }

    /// A part of a message has come.
    pub(super) fn part(
        &mut self,
        now: Instant,
        id: ConnId,
        link: LinkId,
        part: Transfer,
        is_last: bool,
    ) {
        let Some(key) = self.key(id, link) else { return };
        let Some(found) = self.links.get_mut(key) else { return };
        let (LinkPhase::Open, End::Producer(producer)) = (&found.phase, &mut found.end) else {
            return;
        };
        let mut inflow = match producer.inflow.take() {
            Some(mut inflow) => {
                if inflow.refused.is_none()
                    && let Err(error) = inflow.progress.go_on(&part.message)
                {
                    self.refuse_inflow(key, &mut inflow, undecodable(error));
                }
                inflow
            }
            None => match self.begin_inflow(now, key, &part) {
                Ok(inflow) => Box::new(inflow),
                Err(refusal) => {
                    self.counters.refused_total += 1;
                    Box::new(Inflow::refused(refusal))
                }
            },
        };
        if is_last
            && inflow.refused.is_none()
            && let Err(error) = inflow.progress.end()
        {
            self.refuse_inflow(key, &mut inflow, undecodable(error));
        }
        let (settled, delivery) = (part.settled, part.delivery);
        let share = match inflow.traits.take() {
            Some(traits) => Share::First { traits, message_bytes: part.message.len() as u64 },
            None if is_last => Share::Last,
            None => Share::Next,
        };
        let (token, went, refused) = (inflow.token, inflow.went, inflow.refused.clone());
        let to = inflow.to.clone().filter(|_| went.is_none());
        if !is_last && let Some(producer) = self.producer_mut(key) {
            producer.inflow = Some(inflow);
        }
        match (refused, token) {
            (None, Some(token)) => {
                self.send_on(now, key, (went, to.as_deref()), (token, share), part);
            }
            (Some(refusal), _) if is_last => {
                let relays = self.links.get(key).is_some_and(Link::relays);
                if settled && relays {
                    return self.expel_link(key, &refusal);
                }
                if !settled {
                    self.refuse_delivery(key, delivery, &refusal);
                }
                self.grant(key);
            }
            (Some(_) | None, _) => {}
        }
    }

    /// Looks the head of a message over, and numbers it.
    fn begin_inflow(
        &mut self,
        now: Instant,
        key: LinkKey,
        part: &Transfer,
    ) -> Result<Inflow, Refusal> {
        if matches!(self.phase, Phase::Stopping | Phase::Stopped) {
            return Err(Refusal::Stopping);
        }
        if part.message_format != 0 {
            return Err(Refusal::NotBuilt(format!(
                "message format {} is not built; send format 0",
                part.message_format
            )));
        }
        let begun = Progress::begin(&part.message).map_err(|error| {
            let is_short = error.fault == Fault::Truncated;
            if is_short { Refusal::HeadTooLong(part.message.len()) } else { undecodable(error) }
        });
        let (survey, progress) = begun?;
        let fragment_bytes_max = self.journal.as_ref().map_or(0, Journal::fragment_bytes_max);
        check_head(&part.message, fragment_bytes_max)?;
        let traits = traits_of(&survey, &part.message, || self.config.clock.unix_ms(now));
        let relays = self.links.get(key).is_some_and(Link::relays);
        let to = if relays { Some(self.destination_of(key, &part.message)?) } else { None };
        let producer = self.producer_mut(key).ok_or(Refusal::QueueGone)?;
        // Its bytes are counted part by part.
        let token = Some(producer.push(part.delivery, 0));
        Ok(Inflow { token, refused: None, to, went: None, traits: Some(traits), progress })
    }

    /// A part goes on its way to the log.
    fn send_on(
        &mut self,
        now: Instant,
        key: LinkKey,
        (went, to): (Option<(QueueId, ShardId)>, Option<&str>),
        (token, share): (Token, Share),
        part: Transfer,
    ) {
        let bytes = part.message.len() as u64;
        let link = self.here(key);
        let Some(found) = self.links.get(key) else { return };
        let ((queue, home), conn) = (went.unwrap_or((found.queue, found.home)), found.conn);
        if let Some(conn) = self.conns.get_mut(conn) {
            conn.taking_bytes += bytes;
        }
        let (settled, whence, conn) = (part.settled, Whence::Producer(link, token), Some(conn));
        let part = Part { queue, whence, conn, share, settled, bytes: part.message };
        match to {
            None => self.part_to(now, home, part),
            Some(to) => self.relay_part(now, key, to, part),
        }
    }

    /// Hands a part to its queue's home.
    pub(super) fn part_to(&mut self, now: Instant, home: ShardId, part: Part) {
        if self.is_next(home) {
            self.publish_part(now, part);
        } else {
            self.post(home, Mail::Part(Box::new(part)));
        }
    }

    /// A part is not on its way any more; its link may be gone.
    pub(super) fn taken(&mut self, conn: ConnId, bytes: u64) {
        if let Some(conn) = self.conns.get_mut(conn) {
            conn.taking_bytes -= bytes;
        }
        self.touch(conn);
    }

    /// The rest of a message goes nowhere; its sender hears why at its end.
    pub(super) fn refuse_inflow(&mut self, key: LinkKey, inflow: &mut Inflow, refusal: Refusal) {
        self.counters.refused_total += 1;
        inflow.refused = Some(refusal);
        self.abandon(key, inflow);
    }

    /// A relay has no queue for the message that this token names.
    pub(super) fn refuse_relayed(&mut self, key: LinkKey, token: Token, refusal: &Refusal) {
        let Some(mut inflow) = self.producer_mut(key).and_then(|at| at.inflow.take()) else {
            return;
        };
        if inflow.token == Some(token) {
            self.refuse_inflow(key, &mut inflow, refusal.clone());
        }
        if let Some(producer) = self.producer_mut(key) {
            producer.inflow = Some(inflow);
        }
    }

    /// The first part of the message that this token names went there.
    pub(super) fn note_home(&mut self, key: LinkKey, token: Token, to: (QueueId, ShardId)) {
        let inflow = self.producer_mut(key).and_then(|at| at.inflow.as_mut());
        if let Some(inflow) = inflow.filter(|inflow| inflow.token == Some(token)) {
            inflow.went = Some(to);
        }
    }

    /// The sender gives up the message of which parts have come, or its link goes.
    pub(super) fn drop_inflow(&mut self, key: LinkKey) {
        let Some(producer) = self.producer_mut(key) else { return };
        if let Some(mut inflow) = producer.inflow.take() {
            self.abandon(key, &mut inflow);
        }
    }

    /// Its home hears that no more comes, and gives no answer.
    fn abandon(&mut self, key: LinkKey, inflow: &mut Inflow) {
        let Some(token) = inflow.token.take() else { return };
        let link = self.here(key);
        let Some(found) = self.links.get_mut(key) else { return };
        let here = (found.queue, found.home);
        let ((queue, home), conn) = (inflow.went.unwrap_or(here), found.conn);
        let End::Producer(producer) = &mut found.end else { return };
        producer.take(token);
        let (share, settled, bytes) = (Share::Abandoned, true, Bytes::new());
        let (whence, conn) = (Whence::Producer(link, token), Some(conn));
        let part = Part { queue, whence, conn, share, settled, bytes };
        match inflow.to.take().filter(|_| inflow.went.is_none()) {
            None => self.post(home, Mail::Part(Box::new(part))),
            Some(to) => self.relay_abandoned(key, &to, part),
        }
    }

    fn producer_mut(&mut self, key: LinkKey) -> Option<&mut Producer> {
        match &mut self.links.get_mut(key)?.end {
            End::Producer(producer) => Some(producer),
            End::Consumer(_) => None,
        }
    }
}

/// Messages that come in parts, at the home of their queues.
#[derive(Debug, Default)]
pub(super) struct Inflows {
    coming: BTreeMap<Whence, Coming>,
    /// Given up, and the log could not be told yet.
    ended: Vec<(QueueId, Sequence, Level)>,
    /// When it was last looked at whether the oldest is idle.
    looked: Option<Instant>,
    /// When it was last told in the log that one was given up.
    logged: Option<Instant>,
}

impl Inflows {
    /// Whether there is nothing that the log has to be told.
    pub(super) fn is_quiet(&self) -> bool {
        self.ended.is_empty()
    }
}

#[derive(Debug)]
enum Coming {
    /// Into the log.
    Open(Open),
    /// Nowhere; this is said at its end.
    Swallowed(Verdict),
}

#[derive(Debug)]
struct Open {
    queue: QueueId,
    sequence: Sequence,
    level: Level,
    fragments: u16,
    bytes: u64,
    /// How long it will be, as far as that was said with its first part.
    whole_bytes: u64,
    duplicate_id: Option<DuplicateId>,
    began: Instant,
    /// When its newest part came.
    since: Instant,
}

/// What becomes of a message that is not taken, at its end.
#[derive(Debug)]
enum Verdict {
    Refused(Refusal),
    /// Its queue is full and drops what comes.
    Dropped,
    /// It was here before, in a record that ends there.
    Duplicate(Level, Lsn),
}

/// The home's side.
impl Shard {
    /// A part for a queue that lives here. While the journal cannot take it, it waits, in order.
    pub(super) fn publish_part(&mut self, now: Instant, mut part: Part) {
        let bytes = part.memory_bytes();
        if self.memory_bytes() + bytes > self.config.memory_bytes_max && !part.bytes.is_empty() {
            self.swallow(now, &part, Verdict::Refused(Refusal::MemoryFull));
            if matches!(part.whence, Whence::Moved(_)) {
                return;
            }
            // Its place in the line is all that is kept.
            self.acknowledge(&part);
            part.bytes = Bytes::new();
        }
        if !self.parked.is_empty() {
            self.parked.push_back(Waits::Part(part));
        } else if !self.take_in(now, &part) {
            self.parked.push_front(Waits::Part(part));
        }
    }

    /// Takes a part in, or drops it if it is of a message that goes nowhere; false where it has to
    /// wait.
    pub(super) fn take_in(&mut self, now: Instant, part: &Part) -> bool {
        let key = part.whence;
        let coming = self.inflows.coming.remove(&key);
        let moves = matches!(key, Whence::Moved(_));
        let is_first = matches!(part.share, Share::First { .. });
        if moves && coming.is_none() && !is_first {
            // That it goes nowhere was said, and has crossed this.
            return true;
        }
        let coming = match coming {
            // It begins anew.
            Some(Coming::Open(open)) if moves && is_first => {
                self.end_half(now, &open);
                None
            }
            coming => coming,
        };
        let gone = || Coming::Swallowed(Verdict::Refused(Refusal::QueueGone));
        let next = match (part.share, coming) {
            (Share::Abandoned, Some(Coming::Open(open))) => {
                self.end_half(now, &open);
                return true;
            }
            (Share::Abandoned, Some(Coming::Swallowed(_)) | None) => return true,
            (Share::First { traits, message_bytes }, None) => {
                match self.begin_half(now, part, &traits, message_bytes) {
                    Ok(coming) => coming,
                    Err(Untaken::Busy) => return false,
                    Err(Untaken::Dropped) => Coming::Swallowed(Verdict::Dropped),
                    Err(Untaken::Refused(refusal)) => self.refused_half(now, refusal),
                }
            }
            (Share::Next, Some(Coming::Open(mut open))) => {
                match self.append_part(now, &open, part, RecordFlags::default(), Urgency::Window) {
                    Ok(_) => {
                        open.fragments += 1;
                        open.bytes += part.bytes.len() as u64;
                        open.since = now;
                        Coming::Open(open)
                    }
                    Err(Untaken::Busy) => {
                        self.inflows.coming.insert(key, Coming::Open(open));
                        return false;
                    }
                    Err(Untaken::Dropped) => unreachable!("that is for the first and the last"),
                    Err(Untaken::Refused(refusal)) => {
                        self.end_half(now, &open);
                        self.refused_half(now, refusal)
                    }
                }
            }
            (Share::Last, coming) => {
                let verdict = match coming.unwrap_or_else(gone) {
                    Coming::Swallowed(verdict) => Some(verdict),
                    Coming::Open(open) => match self.end_message(now, &open, part) {
                        Ok(verdict) => {
                            if verdict.is_some() {
                                self.end_half(now, &open);
                            }
                            verdict
                        }
                        Err(Untaken::Busy) => {
                            self.inflows.coming.insert(key, Coming::Open(open));
                            return false;
                        }
                        Err(Untaken::Dropped) => {
                            self.end_half(now, &open);
                            Some(Verdict::Dropped)
                        }
                        Err(Untaken::Refused(refusal)) => {
                            self.end_half(now, &open);
                            self.hold_if_full(now, &refusal);
                            Some(Verdict::Refused(refusal))
                        }
                    },
                };
                if let Some(verdict) = verdict {
                    self.tell_verdict(key, verdict);
                }
                if !moves {
                    self.acknowledge(part);
                }
                return true;
            }
            (Share::First { .. }, Some(coming)) => coming,
            (Share::Next, coming) => coming.unwrap_or_else(gone),
        };
        match next {
            Coming::Swallowed(verdict) if moves => self.tell_verdict(key, verdict),
            next @ (Coming::Open(_) | Coming::Swallowed(_)) => {
                self.inflows.coming.insert(key, next);
                self.acknowledge(part);
            }
        }
        true
    }

    fn refused_half(&mut self, now: Instant, refusal: Refusal) -> Coming {
        self.hold_if_full(now, &refusal);
        Coming::Swallowed(Verdict::Refused(refusal))
    }

    fn acknowledge(&mut self, part: &Part) {
        let bytes = part.bytes.len() as u64;
        match (part.whence, part.conn) {
            (Whence::Producer(link, _), Some(conn)) if link.shard == self.config.shard => {
                self.taken(conn, bytes);
            }
            (Whence::Producer(link, _), Some(conn)) if bytes > 0 => {
                self.post(link.shard, Mail::Taken { conn, bytes });
            }
            (Whence::Producer(..), _) => {}
            (Whence::Moved(origin), _) => self.post(origin.shard, Mail::MovedOn(origin)),
        }
    }

    /// The rest of this message goes nowhere.
    fn swallow(&mut self, now: Instant, part: &Part, verdict: Verdict) {
        match self.inflows.coming.remove(&part.whence) {
            Some(Coming::Open(open)) => self.end_half(now, &open),
            Some(swallowed @ Coming::Swallowed(_)) => {
                self.inflows.coming.insert(part.whence, swallowed);
                return;
            }
            None => {}
        }
        self.keep_verdict(part.whence, verdict);
    }

    /// A client hears at the end of its message why that is not taken; who moves one, at once.
    fn keep_verdict(&mut self, whence: Whence, verdict: Verdict) {
        match whence {
            Whence::Producer(..) => {
                self.inflows.coming.insert(whence, Coming::Swallowed(verdict));
            }
            Whence::Moved(_) => self.tell_verdict(whence, verdict),
        }
    }

    fn tell_verdict(&mut self, whence: Whence, verdict: Verdict) {
        match (verdict, whence) {
            // Others need the room: for who moves a message that is a full log.
            (Verdict::Refused(Refusal::TooSlow), Whence::Moved(_)) => {
                self.refuse_publish(whence, Refusal::DiskFull);
            }
            (Verdict::Refused(refusal), _) => self.refuse_publish(whence, refusal),
            (Verdict::Dropped, Whence::Producer(link, token)) => {
                self.counters.dropped_total += 1;
                self.post(link.shard, Mail::Published { link, token, result: Ok(()) });
            }
            (Verdict::Dropped, Whence::Moved(_)) => self.refuse_publish(whence, Refusal::QueueFull),
            (Verdict::Duplicate(level, end), _) => self.append_nothing(level, whence, end),
        }
    }

    /// The first fragment of a message: whether it is taken is decided by what that says.
    fn begin_half(
        &mut self,
        now: Instant,
        part: &Part,
        traits: &Traits,
        message_bytes: u64,
    ) -> Result<Coming, Untaken> {
        let id = part.queue;
        let level = self.state.catalogue.get(id).ok_or(Refusal::QueueGone)?.level;
        let (level, origin) = match part.whence {
            Whence::Producer(..) => (level, None),
            // It is not begun in vain; that there is no room for it holds up nobody else.
            Whence::Moved(_) if !self.has_room_for(message_bytes, self.moved_rest()) => {
                return Ok(Coming::Swallowed(Verdict::Refused(Refusal::DiskFull)));
            }
            // As of one that moves whole (`ingress.rs`).
            Whence::Moved(origin) => (Level::ReplicatedSync, Some(origin)),
        };
        let queue = self.state.queue(id).ok_or(Refusal::QueueGone)?;
        let mut duplicate_id = None;
        if let Some(at) = traits.duplicate_id_at
            && queue.settings().duplicate_ids > 0
        {
            let found = DuplicateId::read(&part.bytes, at).map_err(Refusal::Property)?;
            if let Some(end) = self.state.duplicates.known(id, &found) {
                return Ok(Coming::Swallowed(Verdict::Duplicate(level, end)));
            }
            duplicate_id = Some(found);
        }
        let is_counted = self.is_admitted(id, part.whence, message_bytes as usize)?;
        let queue = self.state.queue(id).ok_or(Refusal::QueueGone)?;
        let sequence = queue.next_sequence();
        let priority = traits.priority.unwrap_or(queue.priority_default());
        let mut record = Record::new(RecordKind::Message, id, sequence, &part.bytes);
        record.flags = RecordFlags::FIRST;
        record.level = level;
        record.parts.duplicate_id = duplicate_id.as_ref().map(DuplicateId::as_bytes);
        record.parts.priority = (priority != PRIORITY_DEFAULT).then_some(priority);
        record.parts.expiry_unix_ms = traits.expiry_unix_ms.filter(|_| !queue.keeps_expired());
        record.parts.delivery_unix_ms = traits.delivery_unix_ms.map(NonZeroU64::get);
        record.parts.origin = origin.filter(|_| !self.config.canaries.has(Canary::OriginDropped));
        self.append_fragment_of(now, &record, Urgency::Window)?;
        if is_counted {
            self.tell_depth(id);
        }
        let (queue, fragments, bytes) = (id, 1, part.bytes.len() as u64);
        let (began, since, whole_bytes) = (now, now, message_bytes);
        Ok(Coming::Open(Open {
            queue,
            sequence,
            level,
            fragments,
            bytes,
            whole_bytes,
            duplicate_id,
            began,
            since,
        }))
    }

    /// Bytes that are still to come of messages that move here.
    fn moved_rest(&self) -> u64 {
        let first = Origin { shard: ShardId(0), queue: QueueId(0), sequence: Sequence(0) };
        let rest = |coming: &Coming| match coming {
            Coming::Open(open) => open.whole_bytes.saturating_sub(open.bytes),
            Coming::Swallowed(_) => 0,
        };
        self.inflows.coming.range(Whence::Moved(first)..).map(|(_, coming)| rest(coming)).sum()
    }

    /// Whether a queue takes a message that is so long by now; and whether it is bounded.
    fn is_admitted(&self, id: QueueId, whence: Whence, bytes: usize) -> Result<bool, Untaken> {
        let queue = self.state.queue(id).ok_or(Refusal::QueueGone)?;
        match queue.admits(bytes) {
            Admission::Free => Ok(false),
            Admission::Counted => Ok(true),
            Admission::Full(policy) => is_let_in(policy, whence).map(|()| true),
            Admission::Closed => Err(Refusal::QueueGone.into()),
        }
    }

    /// Another fragment of a message; gives its end and what it does when it is committed.
    fn append_part(
        &mut self,
        now: Instant,
        open: &Open,
        part: &Part,
        flags: RecordFlags,
        urgency: Urgency,
    ) -> Result<(Lsn, Effect), Untaken> {
        if open.fragments == u16::MAX {
            return Err(Refusal::TooLarge.into());
        }
        let mut record = Record::new(RecordKind::Message, open.queue, open.sequence, &part.bytes);
        (record.flags, record.level, record.fragment) = (flags, open.level, open.fragments);
        self.append_fragment_of(now, &record, urgency)
    }

    fn append_fragment_of(
        &mut self,
        now: Instant,
        record: &Record<'_>,
        urgency: Urgency,
    ) -> Result<(Lsn, Effect), Untaken> {
        let journal = self.journal.as_mut().ok_or(Refusal::Stopping)?;
        let appended = match journal.append(now, record, urgency) {
            Ok(appended) => appended,
            Err(AppendError::Busy) => return Err(Untaken::Busy),
            Err(error) => return Err(Untaken::Refused(refusal_of(error))),
        };
        let applied = self.state.apply(appended.lsn, record);
        let effect = applied.map_err(|error| Refusal::Malformed(format!("{error:?}")))?;
        Ok((appended.end, effect))
    }

    /// The last fragment of a message, unless that is not taken any more.
    fn end_message(
        &mut self,
        now: Instant,
        open: &Open,
        part: &Part,
    ) -> Result<Option<Verdict>, Untaken> {
        let id = open.queue;
        let known =
            open.duplicate_id.as_ref().and_then(|found| self.state.duplicates.known(id, found));
        if let Some(end) = known {
            return Ok(Some(Verdict::Duplicate(open.level, end)));
        }
        let bytes = open.bytes as usize + part.bytes.len();
        let is_counted = self.is_admitted(id, part.whence, bytes)?;
        let (end, effect) = self.append_part(now, open, part, RecordFlags::LAST, Urgency::Now)?;
        let answer = match part.whence {
            Whence::Producer(link, token) => Answer::Published(link, token),
            Whence::Moved(origin) => {
                let copy = CopyRef { shard: self.config.shard, queue: id, sequence: open.sequence };
                Answer::Moved(Box::new((origin, copy)))
            }
        };
        // It takes several batches, and is read back from the disk.
        self.pending.push(open.level.max(Level::Sync), Waiting { end, effect, answer });
        if open.level == Level::Async
            && let Some(journal) = &mut self.journal
        {
            journal.answer_nothing_early();
        }
        if is_counted {
            self.tell_depth(id);
        }
        Ok(None)
    }

    /// Nothing more comes of a message: the log says so.
    fn end_half(&mut self, now: Instant, open: &Open) {
        self.inflows.ended.push((open.queue, open.sequence, open.level));
        self.step_ended(now);
    }

    /// Tells the log what it could not be told yet.
    pub(super) fn step_ended(&mut self, now: Instant) {
        while let Some((id, sequence, level)) = self.inflows.ended.last().copied() {
            let Some(journal) = &mut self.journal else { return };
            let mut record = Record::new(RecordKind::Settle, id, sequence, &[]);
            record.level = level;
            match journal.append(now, &record, Urgency::Window) {
                Ok(appended) => {
                    let applied = self.state.apply(appended.lsn, &record);
                    assert_eq!(applied, Ok(Effect::None), "it was no message");
                }
                // Its room was set aside with the first fragment, but may be in the making.
                Err(AppendError::Busy | AppendError::Full) => return,
                Err(AppendError::TooLarge | AppendError::Poisoned | AppendError::Closed) => {}
            }
            self.inflows.ended.pop();
        }
    }

    /// A queue goes: so does what comes for it. Nothing is kept of that, for nobody may come any
    /// more who asks; who does hears the same as of a queue that never was.
    pub(super) fn end_inflows(&mut self, now: Instant, id: QueueId) {
        let is_its = |coming: &Coming| matches!(coming, Coming::Open(open) if open.queue == id);
        let its = self.inflows.coming.extract_if(.., |_, coming| is_its(coming));
        for (whence, coming) in its.collect::<Vec<_>>() {
            if let Coming::Open(open) = coming {
                self.end_half(now, &open);
            }
            if matches!(whence, Whence::Moved(_)) {
                self.refuse_publish(whence, Refusal::QueueGone);
            }
        }
    }

    /// The room behind the beginning of the oldest is needed.
    pub(super) fn give_up_oldest(&mut self, now: Instant) {
        let Some((lsn, queue, sequence)) = self.state.oldest_half() else { return };
        let name = self.state.catalogue.get(queue).map_or("", |record| &record.name);
        let quiet = self.inflows.logged.is_some_and(|at| now < at + PRESSURE_LOG_EVERY);
        if !quiet {
            self.inflows.logged = Some(now);
            tracing::info!(
                queue = name,
                lsn = lsn.0,
                "a message that came too slowly is given up: the journal needs the room behind it"
            );
        }
        let is_it = |open: &Open| (open.queue, open.sequence) == (queue, sequence);
        self.give_up_where(now, is_it, &Refusal::TooSlow);
    }

    /// The oldest begins in this segment, and much is behind it: it is given up if its sender has
    /// stopped; or is so slow that the log is far longer than what lives in it. What waits for the
    /// log is not its sender's doing.
    pub(super) fn give_up_idle(&mut self, now: Instant, head: u64) {
        let tail = self.journal.as_ref().map_or(0, |journal| journal.appended().0);
        let behind = (tail / self.config.segment_bytes).saturating_sub(head);
        let looked = self.inflows.looked.is_some_and(|at| now < at + HALF_IDLE / 30);
        if behind < HALF_IDLE_SEGMENTS || looked || !self.parked.is_empty() {
            return;
        }
        let is_long = behind * self.config.segment_bytes > self.state.log_bytes() * HALF_TIMES;
        self.inflows.looked = Some(now);
        let Some((_, queue, sequence)) = self.state.oldest_half() else { return };
        let is_idle = self.inflows.coming.values().any(|coming| match coming {
            Coming::Open(open) => {
                let has_stopped = now >= open.since + HALF_IDLE;
                let is_slow = is_long && now >= open.began + HALF_SLOW;
                (open.queue, open.sequence) == (queue, sequence) && (has_stopped || is_slow)
            }
            Coming::Swallowed(_) => false,
        });
        if is_idle {
            self.give_up_oldest(now);
        }
    }

    fn give_up_where(&mut self, now: Instant, is_it: impl Fn(&Open) -> bool, why: &Refusal) {
        let found = self.inflows.coming.iter().filter_map(|(key, coming)| match coming {
            Coming::Open(open) if is_it(open) => Some(*key),
            Coming::Open(_) | Coming::Swallowed(_) => None,
        });
        for whence in found.collect::<Vec<_>>() {
            if let Some(Coming::Open(open)) = self.inflows.coming.remove(&whence) {
                self.end_half(now, &open);
            }
            self.keep_verdict(whence, Verdict::Refused(why.clone()));
        }
    }
}
