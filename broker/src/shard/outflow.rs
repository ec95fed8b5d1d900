//! A message that is too long to be in memory goes out: fragments are fetched, and sent as they
//! come.
//!
//! ```text
//!   connection's shard                               queue's home
//!   the message is first in its stash, without bytes
//!   Fetch 0, 1 ────────────────────────────────────▶ in turn with those of others: read, checked
//!   0 has come: the transfer begins  ◀───────────── Fetched (and how many there are)
//!   the engine wants the next part: 1; Fetch 2 ────▶ …
//!   the last is with the engine: the link goes on with its stash
//! ```
//! At most [`OUTFLOW_FRAGMENTS`] of a message are on their way or wait for the engine, which has
//! one more; the engine and this file begin nothing while the connection does not take its bytes.
//! Nothing is asked for before the engine would begin the transfer (credit, window, no other
//! message under way), and one link of a session has the turn: the next when its message is sent.
//! What is here counts against the memory bound.
//!
//! Every fetch is a read of its own, in the order in which they came from all connections, so that
//! none waits for another's message. What fits into a frame passes between the frames of a message
//! on another link of its session.
//!
//! A consumer's message stays where it is until it is settled, which its client may do at any time,
//! and a browser's may go under its eyes: then there is nothing to fetch, and the delivery is
//! aborted [2.6.14]. The same message that is handed out again begins from its start.
//!
//! A consumer has [`OUTFLOW_FRAGMENTS`] fetches unanswered at most, those for a message that it
//! gave back since among them; those are not read any more.
//!
//! Invariants: fragments go to the engine in their order, each once; a link has one such message at
//! a time. What is read does not check: damage, the process ends.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use amqp::connection::SendError;
use amqp::link::LinkId;
use amqp::session::SessionId;
use bytes::Bytes;
use journal::limits::BLOCK_BYTES;
use journal::{BlockBuf, FragmentAt, Lsn, QueueId, ReadId, Record, RecordKind, Sequence, Span};

use super::Shard;
use super::egress::{Verdict, write_head};
use super::link::{Conn, Consumer, End, LinkPhase};
use crate::clock::WallClock;
use crate::event::ConnId;
use crate::limits::{OUTFLOW_FRAGMENTS, READ_BACKS_MAX, TRANSMIT_BYTES_HIGH};
use crate::mail::{Fetch, Fetched, LinkKey, Mail, Outcome};
use crate::queue::Queue;

/// A message that is fetched and sent.
#[derive(Debug)]
pub(crate) struct Outflow {
    sequence: Sequence,
    /// Its number among those of its consumer.
    number: u32,
    /// Fragments that came and are not with the engine.
    here: BTreeMap<u16, Bytes>,
    /// The next to be asked for.
    ask: u16,
    /// The next for the engine.
    give: u16,
    /// How many there are, once one has come.
    count: Option<u16>,
    message_bytes: u64,
    /// The transfer has begun.
    begun: bool,
    /// What its queue is told when all of it is with the engine.
    at_end: Option<Outcome>,
    /// There is no such message any more.
    gone: bool,
}

impl Outflow {
    fn new(sequence: Sequence, number: u32) -> Self {
        Self {
            sequence,
            number,
            here: BTreeMap::new(),
            ask: 0,
            give: 0,
            count: None,
            message_bytes: 0,
            begun: false,
            at_end: None,
            gone: false,
        }
    }

    /// The next fragment to be asked for, if one may be.
    fn poll_ask(&mut self) -> Option<u16> {
        let end = self
            .count
            .unwrap_or(OUTFLOW_FRAGMENTS)
            .min(self.give.saturating_add(OUTFLOW_FRAGMENTS));
        let next = (self.ask < end && !self.gone).then_some(self.ask)?;
        self.ask += 1;
        Some(next)
    }

    fn take(&mut self, fragment: u16, fetched: Option<Fetched>) {
        match fetched {
            Some(fetched) => {
                (self.count, self.message_bytes) = (Some(fetched.fragments), fetched.message_bytes);
                self.here.insert(fragment, fetched.payload);
            }
            None => self.gone = true,
        }
    }

    /// Bytes of the fragments that are here.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.here.values().map(|payload| payload.len() as u64).sum()
    }
}

/// How far a message went.
enum Flowed {
    /// More is to come, of the disk or of the engine's room.
    On,
    /// It is over: sent, or what is said is to be said to its queue.
    Over(Option<Outcome>),
}

/// The connection's side.
impl Shard {
    /// A fragment that was asked for, of a message that its link may have given up since.
    pub(super) fn fetched(&mut self, now: Instant, fetch: Fetch, fragment: Option<Fetched>) {
        let key = fetch.consumer.key;
        let Some(End::Consumer(consumer)) = self.links.get_mut(key).map(|link| &mut link.end)
        else {
            return;
        };
        consumer.fetching -= 1;
        let Some(flow) = &mut consumer.outflow else { return };
        if flow.number == fetch.flow {
            let held = flow.held_bytes();
            flow.take(fetch.fragment, fragment);
            self.aside_bytes += flow.held_bytes() - held;
        }
        self.flow_out(now, key);
    }

    /// The engine has written what it had of a message.
    pub(super) fn part_wanted(&mut self, now: Instant, conn: ConnId, link: LinkId) {
        if let Some(key) = self.key(conn, link) {
            self.flow_out(now, key);
        }
    }

    /// The first of a link's stash is to be fetched: it goes on, or waits for its turn.
    pub(super) fn want_flow(&mut self, now: Instant, key: LinkKey) {
        let Some(link) = self.links.get(key) else { return };
        let End::Consumer(consumer) = &link.end else { return };
        if consumer.outflow.is_some() {
            self.flow_out(now, key);
        } else {
            self.flows_due.insert((link.conn, link.session));
        }
    }

    /// In each session in which that is due the next link begins to fetch, if none does.
    pub(super) fn step_flows(&mut self, now: Instant) {
        while let Some((id, session)) = self.flows_due.pop_first() {
            let Some(conn) = self.conns.get_mut(id) else { continue };
            let last = conn.flows.get(&session).copied();
            let mut keys: Vec<LinkKey> = conn.links.values().copied().collect();
            keys.retain(|key| self.links.get(*key).is_some_and(|link| link.session == session));
            if last.is_some_and(|last| self.is_flowing(last)) {
                continue;
            }
            let behind = keys.iter().position(|key| Some(*key) == last).map_or(0, |at| at + 1);
            keys.rotate_left(behind);
            for key in keys {
                self.flow_out(now, key);
                if self.is_flowing(key) {
                    self.note_turn(id, session, key);
                    break;
                }
            }
        }
    }

    fn is_flowing(&self, key: LinkKey) -> bool {
        let end = self.links.get(key).map(|link| &link.end);
        matches!(end, Some(End::Consumer(Consumer { outflow: Some(_), .. })))
    }

    fn note_turn(&mut self, id: ConnId, session: SessionId, key: LinkKey) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.flows.insert(session, key).is_none() {
            // Sessions come and go.
            let links = &self.links;
            conn.flows.retain(|_, key| links.get(*key).is_some());
        }
    }

    /// Goes on with the message that is fetched, or begins with the first of the stash.
    fn flow_out(&mut self, now: Instant, key: LinkKey) {
        let consumer_ref = self.here(key);
        let Some(link) = self.links.get_mut(key) else { return };
        let (conn_id, id, queue, home) = (link.conn, link.id, link.queue, link.home);
        let session = link.session;
        let (LinkPhase::Open, End::Consumer(consumer)) = (&link.phase, &mut link.end) else {
            return;
        };
        let Some(conn) = self.conns.get_mut(conn_id) else { return };
        let held = consumer.outflow.as_ref().map_or(0, |flow| flow.held_bytes());
        let was_flowing = consumer.outflow.is_some();
        let is_stalled = conn.amqp.transmit_bytes_pending() > TRANSMIT_BYTES_HIGH;
        let Some(mut flow) = next_flow(consumer, conn, id, is_stalled) else {
            self.aside_bytes -= held;
            if was_flowing {
                self.flows_due.insert((conn_id, session));
            }
            return;
        };
        let (sequence, number) = (flow.sequence, flow.number);
        let flowed = if is_stalled {
            conn.stalled = true;
            Flowed::On
        } else if flow.begun {
            give(&mut flow, conn, id)
        } else if has_expired(consumer, now, &self.config.clock) {
            consumer.stash.pop_front();
            Flowed::Over((!consumer.browses).then_some(Outcome::Expired))
        } else {
            begin(&mut flow, consumer, conn, id, &mut self.head)
        };
        self.aside_bytes -= held;
        match flowed {
            Flowed::On => {
                self.aside_bytes += flow.held_bytes();
                let room = OUTFLOW_FRAGMENTS - consumer.fetching;
                let asks = std::iter::from_fn(|| flow.poll_ask()).take(usize::from(room));
                let asks: Vec<u16> = asks.collect();
                consumer.fetching += asks.len() as u16;
                consumer.outflow = Some(flow);
                for fragment in asks {
                    let consumer = consumer_ref;
                    let fetch = Fetch { consumer, queue, sequence, fragment, flow: number };
                    self.post(home, Mail::Fetch(fetch));
                }
                self.touch(conn_id);
            }
            Flowed::Over(outcome) => {
                self.flows_due.insert((conn_id, session));
                if let Some(outcome) = outcome {
                    let verdict = Verdict { sequence, outcome, confirm: false };
                    self.post_verdict(now, (home, queue), consumer_ref, verdict);
                }
                self.send_stash(now, key);
            }
        }
    }
}

/// The message that is under way; or the first of the stash, if its transfer could begin.
fn next_flow(
    consumer: &mut Consumer,
    conn: &mut Conn,
    id: LinkId,
    is_stalled: bool,
) -> Option<Box<Outflow>> {
    let first = consumer.stash.front().filter(|first| first.message.is_none());
    let first = first.map(|first| first.sequence);
    if let Some(flow) = consumer.outflow.take() {
        // One that has not begun may have been taken back with its credit.
        let has_credit = conn.amqp.link_credit(id) > 0;
        let stays = flow.begun || (has_credit && Some(flow.sequence) == first);
        return stays.then_some(flow);
    }
    let sequence = first?;
    if is_stalled {
        conn.stalled = true;
        return None;
    }
    if !conn.amqp.can_begin(id) {
        return None;
    }
    consumer.flows = consumer.flows.wrapping_add(1);
    Some(Box::new(Outflow::new(sequence, consumer.flows)))
}

/// Whether the time of the first of the stash came before its transfer began.
fn has_expired(consumer: &Consumer, now: Instant, clock: &WallClock) -> bool {
    consumer.stash.front().is_some_and(|first| first.has_expired(now, clock))
}

/// Begins the transfer once the first fragment is there.
fn begin(
    flow: &mut Outflow,
    consumer: &mut Consumer,
    conn: &mut Conn,
    id: LinkId,
    head: &mut Vec<u8>,
) -> Flowed {
    if flow.gone {
        consumer.stash.pop_front();
        return Flowed::Over(None);
    }
    let (Some(first), Some(stashed)) = (flow.here.get(&0), consumer.stash.front()) else {
        return Flowed::On;
    };
    let from = write_head(stashed, first, head);
    let bytes = flow.message_bytes - from as u64 + head.len() as u64;
    match conn.amqp.send_begin(id, &[head, &first[from..]], bytes, consumer.presettled) {
        Ok(delivery) => {
            consumer.stash.pop_front();
            if !consumer.browses && !consumer.presettled {
                consumer.unsettled.push(delivery, flow.sequence);
            }
            flow.here.remove(&0);
            (flow.begun, flow.give) = (true, 1);
            let is_presettled = consumer.presettled && !consumer.browses;
            flow.at_end = is_presettled.then_some(Outcome::Accepted);
            give(flow, conn, id)
        }
        Err(SendError::TooLarge) => {
            // This client cannot take it; others may.
            consumer.stash.pop_front();
            let outcome = Outcome::Modified { delivery_failed: false, undeliverable_here: true };
            Flowed::Over((!consumer.browses).then_some(outcome))
        }
        Err(
            SendError::Gone | SendError::NoCredit | SendError::NotReady | SendError::SettleMode,
        ) => Flowed::On,
    }
}

/// Gives the engine what it takes.
fn give(flow: &mut Outflow, conn: &mut Conn, id: LinkId) -> Flowed {
    if flow.gone {
        conn.amqp.send_abort(id);
        return Flowed::Over(None);
    }
    while let Some(part) = flow.here.get(&flow.give) {
        if conn.amqp.transmit_bytes_pending() > TRANSMIT_BYTES_HIGH {
            conn.stalled = true;
            break;
        }
        let is_last = flow.count == Some(flow.give + 1);
        if !conn.amqp.send_part(id, part.clone(), is_last) {
            break;
        }
        flow.here.remove(&flow.give);
        flow.give += 1;
        if is_last {
            return Flowed::Over(flow.at_end);
        }
    }
    Flowed::On
}

/// Fragments that are wanted, in the order in which they were asked for, and those being read.
#[derive(Debug, Default)]
pub(super) struct Fetches {
    wanted: VecDeque<Asks>,
    reading: Vec<Reading>,
}

/// Who asks for a fragment.
#[derive(Clone, Copy, Debug)]
pub(super) enum Asks {
    /// The connection of a consumer.
    Consumer(Fetch),
    /// The message moves to another queue (`move_flow.rs`).
    Move { queue: QueueId, sequence: Sequence, fragment: u16 },
}

impl Asks {
    /// The queue, the sequence, and which fragment.
    fn what(self) -> (QueueId, Sequence, u16) {
        match self {
            Self::Consumer(fetch) => (fetch.queue, fetch.sequence, fetch.fragment),
            Self::Move { queue, sequence, fragment } => (queue, sequence, fragment),
        }
    }

    /// Whether the message is still there for who asks.
    fn is_for(self, queue: &Queue) -> bool {
        match self {
            Self::Consumer(fetch) => queue.is_for(fetch.consumer, fetch.sequence),
            Self::Move { sequence, .. } => queue.moving(sequence).is_some(),
        }
    }
}

#[derive(Debug)]
struct Reading {
    id: ReadId,
    span: Span,
    asks: Asks,
    at: FragmentAt,
    fragments: u16,
    message_bytes: u64,
}

/// The queue's side.
impl Shard {
    /// A fragment is wanted.
    pub(super) fn fetch(&mut self, asks: Asks) {
        self.fetches.wanted.push_back(asks);
    }

    /// A fragment was read; or there is no such message for who asked.
    fn tell_fetched(&mut self, asks: Asks, fragment: Option<Fetched>) {
        match asks {
            Asks::Consumer(fetch) => {
                self.post(fetch.consumer.shard, Mail::Fetched { fetch, fragment });
            }
            Asks::Move { queue, sequence, fragment: number } => {
                self.move_fragment((queue, sequence), number, fragment);
            }
        }
    }

    /// Begins the reads of what is wanted, as many as there may be at once.
    pub(super) fn step_fetch(&mut self) {
        while self.fetches.reading.len() < READ_BACKS_MAX
            && let Some(asks) = self.fetches.wanted.pop_front()
        {
            let (queue, sequence, fragment) = asks.what();
            // Who has given it back needs nothing of it.
            let queue = self.state.queue(queue).filter(|queue| asks.is_for(queue));
            let chain = queue.and_then(|queue| queue.chain(sequence));
            let at = chain.and_then(|chain| chain.fragments().get(usize::from(fragment)));
            let bytes = queue.and_then(|queue| queue.message_bytes(sequence));
            let (Some(chain), Some(at), Some(bytes)) = (chain, at.copied(), bytes) else {
                self.tell_fetched(asks, None);
                continue;
            };
            let Some(journal) = &mut self.journal else { return };
            let block = BLOCK_BYTES as u64;
            let begin = at.lsn.0 / block * block;
            let end = at.end().0.next_multiple_of(block);
            let span = Span { lsn: Lsn(begin), bytes: (end - begin) as usize };
            let fragments = u16::try_from(chain.fragments().len()).unwrap_or(u16::MAX);
            let (id, message_bytes) = (journal.read_back(span), bytes as u64);
            let reading = Reading { id, span, asks, at, fragments, message_bytes };
            self.fetches.reading.push(reading);
            self.paging.counters.reads_total += 1;
            self.paging.counters.read_bytes_total += span.bytes as u64;
        }
    }

    /// Takes a read, if it was one of these.
    pub(super) fn take_fetched(&mut self, id: ReadId, buf: &BlockBuf) -> bool {
        let reading = &mut self.fetches.reading;
        let Some(found) = reading.iter().position(|reading| reading.id == id) else {
            return false;
        };
        let Reading { span, asks, at, fragments, message_bytes, .. } = reading.swap_remove(found);
        let (queue, sequence, fragment) = asks.what();
        let Some(journal) = &self.journal else { return true };
        let start = at.lsn.since(span.lsn) as usize;
        let bytes = &buf.as_slice()[start..start + at.record_bytes as usize];
        let record = Record::decode(journal.seed(), at.lsn, bytes).ok().map(|(record, _)| record);
        let is_it = |record: &Record<'_>| {
            record.kind == RecordKind::Message
                && (record.queue, record.sequence) == (queue, sequence)
                && record.fragment == fragment
        };
        match record.filter(is_it) {
            Some(record) => {
                self.paging.counters.fetched_total += 1;
                let payload = Bytes::copy_from_slice(record.payload);
                let fragment = Some(Fetched { payload, fragments, message_bytes });
                self.tell_fetched(asks, fragment);
            }
            None => self.damaged(queue, sequence, at.lsn),
        }
        true
    }
}
