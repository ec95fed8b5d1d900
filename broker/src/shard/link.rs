//! What a shard remembers of a connection and of its links.
//!
//! ```text
//!   attach ─▶ Resolving ─▶ (Asking) ─▶ Open ─▶ Closing ─▶ (slot free, generation up)
//!                │            │                  ▲ waits: a producer for its answers, a consumer
//!                └────────────┴──────────────────┘ for `Unconsumed`; then detach, end or close is
//!                                                  answered
//! ```
//! Invariants: a key names one link for ever (slot and generation); `at_home + stash.len()` of a
//! consumer never exceeds the credit that its client gave, nor `CONSUMER_WINDOW`; a producer's
//! `waiting` holds each unsettled transfer once, in order.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use amqp::connection::Connection;
use amqp::delivery::DeliveryId;
use amqp::link::LinkId;
use amqp::session::SessionId;
use bytes::Bytes;
use journal::{QueueId, Sequence, ShardId};

use super::sent::Sent;
use crate::access::Rights;
use crate::clock::WallClock;
use crate::event::ConnId;
use crate::flat_map::FlatMap;
use crate::limits::{PRODUCER_CREDIT, PRODUCER_TOKENS_MAX, SPARE_BYTES_KEPT, SPARE_BYTES_MAX};
use crate::mail::{LinkKey, Token};
use crate::setback::Added;

/// One connection.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) id: ConnId,
    pub(crate) peer: String,
    pub(crate) amqp: Connection,
    pub(crate) user: String,
    /// What that user may do; none: everything.
    pub(crate) rights: Option<Arc<Rights>>,
    /// The user that its certificate names.
    pub(crate) certificate_user: Option<String>,
    /// The log says already that this user was refused something.
    pub(crate) refusal_told: bool,
    pub(crate) container_id: String,
    /// It is the only one of its container, or will be.
    pub(crate) claim: Option<Box<super::sole::Claim>>,
    /// The peer's open has come.
    pub(crate) opened: bool,
    pub(crate) links: FlatMap<LinkId, LinkKey>,
    pub(crate) received_bytes: u64,
    /// Bytes of messages and frames that are not whole yet, as they were last counted.
    pub(crate) unfinished_bytes: u64,
    /// Of those, what the host holds of records that are not whole, and since when.
    pub(crate) sealed: Option<(u64, Instant)>,
    /// Where bytes wait for the peer to read: since when, or when it last took some.
    pub(crate) unread_since: Option<Instant>,
    /// Bytes of transfers that wait to be accepted.
    pub(crate) unaccepted_bytes: u64,
    /// Bytes of messages that come in parts, on their way to the log.
    pub(crate) taking_bytes: u64,
    pub(crate) paused: bool,
    /// A `Send` is under way.
    pub(crate) sending: bool,
    /// Its bytes; 0 up to [`UNREAD_BYTES_FREE`].
    pub(crate) sending_bytes: u64,
    /// A buffer that came home.
    pub(crate) spare: Vec<u8>,
    /// Some stash waits for the engine's bytes to be taken.
    pub(crate) stalled: bool,
    /// The link of a session that fetches a message, or was the last to.
    pub(crate) flows: BTreeMap<SessionId, LinkKey>,
    /// It has attached to nothing yet, and its host can carry it.
    pub(crate) may_move: bool,
    /// Temporary queues that it owns, or has asked for.
    pub(crate) temporary_queues: u32,
    /// It is in `dirty_conns`.
    pub(crate) dirty: bool,
    /// Its entry in `deadlines`.
    pub(crate) deadline: Option<Instant>,
    /// The peer asked to end these sessions, and waits for their links' last answers.
    pub(crate) ending: Vec<SessionId>,
    /// The peer asked to close, and waits for its links' last answers.
    pub(crate) close_wanted: bool,
    /// We said goodbye ourselves (shutdown, operator).
    pub(crate) goodbye: bool,
    /// The engine is done with it; the socket goes when the last byte is sent.
    pub(crate) over: bool,
    /// Until when the peer of a connection that is over may take its last bytes.
    pub(crate) last_bytes_by: Option<Instant>,
}

impl Conn {
    /// Keeps a buffer that came home, if it is no larger than most.
    pub(crate) fn keep(&mut self, buf: Vec<u8>) {
        if buf.capacity() <= SPARE_BYTES_MAX {
            self.spare = buf;
        }
    }

    /// Gives back what its buffers and tables take far beyond what is in them.
    pub(crate) fn trim(&mut self) {
        self.amqp.trim();
        if self.spare.capacity() > SPARE_BYTES_KEPT {
            self.spare = Vec::new();
        }
    }
}

/// A link's state.
#[derive(Debug)]
pub(crate) enum LinkPhase {
    /// Its queue is looked up, or created.
    Resolving,
    /// The home of its queue is asked whether there may be one more consumer.
    Asking,
    /// It works.
    Open,
    /// Its last answers are awaited.
    Closing(Farewell),
}

/// What is answered when a link has had its last answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Farewell {
    /// Nothing, and nobody waits: the link is gone from the engine.
    Gone,
    /// Nothing for the link; the end of its session or connection waits for its last answers.
    Quiet,
    /// The peer's detach.
    Detach { closed: bool },
}

/// One link.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) conn: ConnId,
    pub(crate) id: LinkId,
    pub(crate) session: SessionId,
    pub(crate) phase: LinkPhase,
    pub(crate) queue: QueueId,
    pub(crate) home: ShardId,
    pub(crate) end: End,
    /// What it has to do with the life of its queue.
    pub(crate) tie: Tie,
    /// What its attach will be answered with, until the queue is found.
    pub(crate) accept: Option<Box<amqp::link::AcceptLink>>,
}

/// What a link has to do with the life of its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tie {
    /// Nothing: the queue stays.
    None,
    /// The queue may live as long as the link does, or somebody uses it.
    Guest,
    /// The queue was made for it.
    Maker,
}

/// Which end of a link we are.
#[derive(Debug)]
pub(crate) enum End {
    /// The client sends.
    Producer(Producer),
    /// The client receives.
    Consumer(Consumer),
}

impl Link {
    /// Whether its messages say themselves where they go.
    pub(crate) fn relays(&self) -> bool {
        match &self.end {
            End::Producer(producer) => producer.relay.is_some(),
            End::Consumer(_) => false,
        }
    }
}

/// The client sends.
#[derive(Debug, Default)]
pub(crate) struct Producer {
    /// Transfers that wait for an answer; the front has token `first`.
    pub(crate) waiting: VecDeque<Option<(DeliveryId, u64)>>,
    pub(crate) first: u64,
    /// How many of `waiting` are not answered.
    pub(crate) unanswered: u32,
    /// The credit that it has at most.
    pub(crate) credit_max: u32,
    /// The link's source knows the outcome `rejected`.
    pub(crate) rejects: bool,
    /// The message that comes in parts.
    pub(crate) inflow: Option<Box<super::inflow::Inflow>>,
    /// Its target has no address: each message says where it goes.
    pub(crate) relay: Option<Box<super::relay::Relay>>,
}

impl Producer {
    /// Whether it gets no more credit for now. Answers of several queues come in any order, so one
    /// that is late may keep many behind it in `waiting`.
    pub(crate) fn is_full(&self) -> bool {
        self.unanswered > PRODUCER_CREDIT || self.waiting.len() > PRODUCER_TOKENS_MAX
    }

    /// Numbers a transfer.
    #[inline]
    pub(crate) fn push(&mut self, delivery: DeliveryId, bytes: u64) -> Token {
        self.waiting.push_back(Some((delivery, bytes)));
        self.unanswered += 1;
        Token(self.first + self.waiting.len() as u64 - 1)
    }

    /// The transfer that a token names, once.
    #[inline]
    pub(crate) fn take(&mut self, token: Token) -> Option<(DeliveryId, u64)> {
        let index = usize::try_from(token.0.checked_sub(self.first)?).ok()?;
        let taken = self.waiting.get_mut(index)?.take()?;
        self.unanswered -= 1;
        while let Some(None) = self.waiting.front() {
            self.waiting.pop_front();
            self.first += 1;
        }
        Some(taken)
    }
}

/// The client receives.
#[derive(Debug, Default)]
pub(crate) struct Consumer {
    /// Credit that the home shard holds for us.
    pub(crate) at_home: u32,
    /// Messages that came and are not sent: the engine's window is closed.
    pub(crate) stash: VecDeque<Stashed>,
    /// The message that is fetched and sent in fragments.
    pub(crate) outflow: Option<Box<super::outflow::Outflow>>,
    /// How many it has begun to fetch.
    pub(crate) flows: u32,
    /// Fragments that were asked for, of this message or one before, and are not answered.
    pub(crate) fetching: u16,
    /// Sent, not settled.
    pub(crate) unsettled: Sent,
    /// The outcome came unsettled; the answer waits for the commit.
    pub(crate) confirming: BTreeMap<Sequence, DeliveryId>,
    /// What a disposition without an outcome means.
    pub(crate) default_outcome: Option<amqp::delivery::Outcome>,
    /// How messages are sent on it.
    pub(crate) presettled: bool,
    /// It only looks: its messages stay at the queue, and its outcomes change nothing.
    pub(crate) browses: bool,
    pub(crate) drain: Drain,
}

impl Consumer {
    /// Whether a drain is over: everything is sent, and either the queue is empty or the credit
    /// that is left, none, is all used.
    pub(crate) fn is_drained(&self, credit: u32) -> bool {
        let used = credit == 0 && self.at_home == 0;
        // What a browser has no credit for waits here for more.
        (self.stash.is_empty() || (self.browses && credit == 0))
            && match self.drain {
                Drain::No | Drain::Asked => false,
                Drain::Wanted => used,
                Drain::Empty => true,
            }
    }
}

/// How far a drain has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Drain {
    /// None was asked for.
    #[default]
    No,
    /// The client asked; the home shard is not asked yet, or was asked and may have more.
    Wanted,
    /// The home shard is asked.
    Asked,
    /// The home shard has no more: when the stash is sent, the client is told.
    Empty,
}

/// A message that waits to be sent.
#[derive(Debug)]
pub(crate) struct Stashed {
    pub(crate) sequence: Sequence,
    /// None: it is fetched in fragments.
    pub(crate) message: Option<Bytes>,
    pub(crate) delivery_count: u32,
    pub(crate) first_acquirer: bool,
    pub(crate) added: Option<Added>,
    pub(crate) expiry_unix_ms: Option<u64>,
}

impl Stashed {
    /// Whether it waited too long to be sent yet.
    #[inline(always)]
    pub(crate) fn has_expired(&self, now: Instant, clock: &WallClock) -> bool {
        self.expiry_unix_ms.is_some_and(|unix_ms| unix_ms <= clock.unix_ms(now))
    }
}

/// The links of a shard's connections, by key.
#[derive(Debug, Default)]
pub(crate) struct Links {
    slots: Vec<(u32, Option<Link>)>,
    free: Vec<u32>,
}

impl Links {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Takes a link in.
    pub(crate) fn insert(&mut self, link: Link) -> LinkKey {
        match self.free.pop() {
            Some(slot) => {
                let (generation, place) = &mut self.slots[slot as usize];
                *place = Some(link);
                LinkKey { slot, generation: *generation }
            }
            None => {
                let slot = u32::try_from(self.slots.len()).expect("links are bounded");
                self.slots.push((0, Some(link)));
                LinkKey { slot, generation: 0 }
            }
        }
    }

    /// The link of a key, unless it is gone.
    pub(crate) fn get(&self, key: LinkKey) -> Option<&Link> {
        let (generation, link) = self.slots.get(key.slot as usize)?;
        if *generation == key.generation { link.as_ref() } else { None }
    }

    /// The link of a key, to change it.
    pub(crate) fn get_mut(&mut self, key: LinkKey) -> Option<&mut Link> {
        let (generation, link) = self.slots.get_mut(key.slot as usize)?;
        if *generation == key.generation { link.as_mut() } else { None }
    }

    /// Takes a link out; its key names nothing from now on.
    pub(crate) fn remove(&mut self, key: LinkKey) -> Option<Link> {
        let (generation, place) = self.slots.get_mut(key.slot as usize)?;
        if *generation != key.generation {
            return None;
        }
        let link = place.take()?;
        *generation = generation.wrapping_add(1);
        self.free.push(key.slot);
        Some(link)
    }

    /// Every link, with its key.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (LinkKey, &Link)> {
        self.slots.iter().enumerate().filter_map(|(slot, (generation, link))| {
            let key = LinkKey { slot: slot as u32, generation: *generation };
            link.as_ref().map(|link| (key, link))
        })
    }
}
