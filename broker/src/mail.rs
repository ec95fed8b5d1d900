//! What the shards of a node say to each other.
//!
//! A connection lives on the shard that accepted it, a queue on its home shard. The connection's
//! side of a link and the queue's side speak only by mail, also when both are the same shard: then
//! the mail never leaves it. So there is one path for both cases. Where no letter is before it, a
//! shard does what its letter to itself would ask for without writing it.
//!
//! ```text
//!   connection's shard                      queue's home shard
//!   ------------------                      ------------------
//!   Publish ───────────────────────────────▶ append, reserve a slot
//!           ◀─────────────────────────────── Published        (committed at its level, or refused)
//!   Part, Part, … ─────────────────────────▶ append a fragment of a message as it comes
//!           ◀─────────────────────────────── Taken            (each: the next may be read)
//!   Consume, Credit, Drain ────────────────▶ dispatch   (Consumes: a bounded number may)
//!           ◀─────────────────────────────── Deliver, Drained
//!   Fetch ─────────────────────────────────▶ read a fragment of a message that is too long to
//!           ◀─────────────────────────────── Fetched          be handed out whole
//!   Settle, Modify ────────────────────────▶ append a settlement
//!           ◀─────────────────────────────── Settled        (committed; only if it was asked for)
//!   Unconsume ─────────────────────────────▶ requeue what it held
//!           ◀─────────────────────────────── Unconsumed     (all settlements before are committed)
//! ```
//! Names are resolved by shard 0, the catalogue's home:
//! ```text
//!   asker ── Resolve ──▶ 0: commit the creation ── Open ──▶ home ── Opened ──▶ 0
//!                                                    0 ── Catalogued ──▶ all
//!                                                    0 ── Resolved ────▶ asker
//! ```
//! Temporary queues (`shard/temporary.rs`):
//! ```text
//!   asker ── Make ──▶ 0 ── Open ──▶ home ── Opened ──▶ 0 ── Catalogued ──▶ all, Made ──▶ asker
//!   a link's shard ── Tied, Untied ──▶ home: its life is over ── Delete ──▶ 0 ── Deleted ──▶ all
//! ```
//!
//! A message moves from one queue to another, wherever they live (`shard/dead_letters.rs`):
//! ```text
//!   source's home                           destination's home
//!   -------------                           ------------------
//!   (Provide ─▶ 0, if there is no such queue; Catalogued or NotProvided answers)
//!   Publish, with the origin ──────────────▶ append the copy, hidden
//!    (Part … ◀── MovedOn ── where it is long: one at a time)
//!           ◀─────────────────────────────── Moved          (committed), or NotMoved
//!   append the settlement … commit ── Landed ▶ show the copy
//! ```
//! One connection for a container (`shard/sole.rs`): Claim, Unclaim, Departed and Arrived go to
//! shard 0, Claimed and GiveUp come from it.
//!
//! After recovery each shard tells every other, by `Arrivals`, which hidden copies it has.
//!
//! Invariants: mail between two shards keeps its order; a reference names a slot *and* its
//! generation, so mail that comes after its object is gone is dropped; `Deliver` never exceeds
//! the credit given by `Credit`; and everything a link can have under way is bounded by its credit.

use std::sync::Arc;

use bytes::Bytes;
use journal::{Level, Origin, QueueId, Sequence, ShardId};

use crate::catalogue::{QueueRecord, Temporary};
use crate::event::ConnId;
use crate::queue::{Queue, Traits};
use crate::setback::Added;

/// A link's end on a connection's shard: who gets the answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkRef {
    /// The connection's shard.
    pub shard: ShardId,
    /// The link there: slot and generation, meaningless elsewhere.
    pub key: LinkKey,
}

/// Slot and generation of a link on its own shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkKey {
    /// The slot.
    pub slot: u32,
    /// Which of the links that used the slot.
    pub generation: u32,
}

/// A connection's claim to its container's name, numbered by the shard where it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClaimId {
    /// The shard that gave the number.
    pub shard: ShardId,
    /// The number there.
    pub number: u64,
}

/// What one connection has for itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SoleName {
    /// Its user.
    pub user: String,
    /// Its container-id.
    pub container: String,
}

/// A transfer on its way, numbered by the connection's shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Token(pub u64);

/// Who sent a message, and is told what becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Whence {
    /// A client; the answer is `Published`.
    Producer(LinkRef, Token),
    /// It was in another queue; the answer is `Moved` or `NotMoved`.
    Moved(Origin),
}

/// Where a moved message is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CopyRef {
    /// The shard.
    pub shard: ShardId,
    /// The queue.
    pub queue: QueueId,
    /// Its sequence there.
    pub sequence: Sequence,
}

/// One thing that a shard says to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mail {
    /// Where does this queue live? Create it on the asker's shard if it is not there. To shard 0.
    Resolve {
        /// The link that waits.
        asker: LinkRef,
        /// The queue's name.
        name: String,
        /// The user of that link may have it created.
        may_create: bool,
    },
    /// The answer to `Resolve`; its queue is in the asker's read map already.
    Resolved {
        /// The link that waited.
        asker: LinkRef,
        /// The name that it asked for: a relaying link may have asked for several.
        name: String,
        /// The queue's id, or why there is none.
        result: Result<QueueId, Refusal>,
    },
    /// Make a temporary queue on the asker's shard. To shard 0.
    Make {
        /// The link that waits.
        asker: LinkRef,
        /// Its policy and owner.
        temporary: Temporary,
    },
    /// The answer to `Make`; the queue is in the asker's read map already.
    Made {
        /// The link that waited.
        asker: LinkRef,
        /// Its connection, which may outlive it.
        owner: ConnId,
        /// The queue's id, or why there is none.
        result: Result<QueueId, Refusal>,
    },
    /// To the home of a queue that is temporary, or goes when it is idle: one more link to it.
    Tied(QueueId),
    /// To the same: a link is gone.
    Untied {
        /// The queue.
        queue: QueueId,
        /// It is the one that made the queue.
        maker: bool,
    },
    /// A home to shard 0: this queue is gone.
    Delete(QueueId),
    /// Shard 0 to everybody: this queue is gone, and so are the links to it.
    Deleted {
        /// It.
        queue: QueueId,
        /// It was in no log, and all links to it are listed.
        temporary: bool,
    },
    /// Shard 0 to a queue's home: the creation is committed, hold the queue.
    Open(QueueRecord),
    /// The home to shard 0: it is held.
    Opened(QueueId),
    /// Shard 0 to everybody: this queue is there, and lives there.
    Catalogued(QueueRecord),
    /// Shard 0 to everybody, once, at start: the whole catalogue.
    Catalogue {
        /// Every queue there is.
        queues: Vec<QueueRecord>,
        /// Ids from here on were never given away.
        next_queue_id: QueueId,
    },
    /// A message for a queue.
    Publish {
        /// The queue.
        queue: QueueId,
        /// Who gets the answer.
        whence: Whence,
        /// The message as it was received.
        message: Bytes,
        /// What the queue has to know of it.
        traits: Traits,
    },
    /// A part of a message that comes in parts.
    Part(Box<Part>),
    /// A part is in the log, or is not wanted: its bytes are held no longer.
    Taken {
        /// The connection that they came by.
        conn: ConnId,
        /// How many they were.
        bytes: u64,
    },
    /// What became of a message.
    Published {
        /// The producer.
        link: LinkRef,
        /// Which transfer.
        token: Token,
        /// `Ok` when it is committed at its queue's level.
        result: Result<(), Refusal>,
    },
    /// A consumer attaches.
    Consume {
        /// The queue.
        queue: QueueId,
        /// The consumer.
        consumer: LinkRef,
        /// It only looks: what it is sent stays available.
        browses: bool,
        /// It waits to hear by `Consumes` whether it may.
        asks: bool,
    },
    /// The answer to a `Consume` that asks.
    Consumes {
        /// The consumer.
        consumer: LinkRef,
        /// Whether it is attached to its queue, or why not.
        result: Result<(), Refusal>,
    },
    /// More credit for a consumer.
    Credit {
        /// The queue.
        queue: QueueId,
        /// The consumer.
        consumer: LinkRef,
        /// How many more messages it may be sent.
        more: u32,
        /// Answer with `Drained` as soon as nothing more can be sent.
        drain: bool,
    },
    /// A message for a consumer.
    Deliver {
        /// The consumer.
        consumer: LinkRef,
        /// Its identity within the queue.
        sequence: Sequence,
        /// The message as it was received; none of one that is fetched in fragments.
        message: Option<Bytes>,
        /// Failed deliveries so far.
        delivery_count: u32,
        /// Nobody can have seen it before.
        first_acquirer: bool,
        /// What consumers have added to its annotations.
        added: Option<Added>,
        /// When it expires, milliseconds since 1970, if it does: it is not sent from then on.
        expiry_unix_ms: Option<u64>,
    },
    /// A fragment of a message that is being sent is wanted. To the home of its queue.
    Fetch(Fetch),
    /// The answer to `Fetch`.
    Fetched {
        /// What was wanted.
        fetch: Fetch,
        /// What it is; none if the message is gone, or is the consumer's no more.
        fragment: Option<Fetched>,
    },
    /// The answer to `Credit` with `drain`: what was left of the credit is gone.
    Drained {
        /// The consumer.
        consumer: LinkRef,
        /// The credit that was taken back; 0 means that there may be more messages.
        unused: u32,
    },
    /// A consumer's outcome for one message.
    Settle {
        /// The queue.
        queue: QueueId,
        /// The consumer that holds it.
        consumer: LinkRef,
        /// The message.
        sequence: Sequence,
        /// What it says.
        outcome: Outcome,
        /// Answer with `Settled` once it is committed.
        confirm: bool,
    },
    /// The same with annotations to merge into the message's, or with a rejection's error in their
    /// form: an encoded map.
    Modify {
        /// The queue.
        queue: QueueId,
        /// The consumer that holds it.
        consumer: LinkRef,
        /// The message.
        sequence: Sequence,
        /// What it says beside that.
        outcome: Outcome,
        /// Answer with `Settled` once it is committed.
        confirm: bool,
        /// What is to be merged.
        annotations: Arc<[u8]>,
    },
    /// A settlement is committed.
    Settled {
        /// The consumer.
        consumer: LinkRef,
        /// The message.
        sequence: Sequence,
    },
    /// A consumer goes: requeue what it holds.
    Unconsume {
        /// The queue.
        queue: QueueId,
        /// The consumer.
        consumer: LinkRef,
    },
    /// The consumer is gone, and each settlement that it sent before is committed.
    Unconsumed {
        /// The consumer.
        consumer: LinkRef,
    },
    /// Let there be a queue of this name, on the asker's shard if it is new. To shard 0;
    /// `Catalogued` tells of it.
    Provide {
        /// The asker.
        shard: ShardId,
        /// The queue's name.
        name: String,
    },
    /// The answer to `Provide` where there can be no such queue now: ask again.
    NotProvided {
        /// The queue's name.
        name: String,
        /// Why.
        refusal: Refusal,
    },
    /// A part of what moves is in the log: the next may come.
    MovedOn(Origin),
    /// The copy is committed, and hidden: settle the origin.
    Moved {
        /// Whence.
        origin: Origin,
        /// Where it is.
        copy: CopyRef,
    },
    /// The copy was not taken.
    NotMoved {
        /// Whence.
        origin: Origin,
        /// Why.
        refusal: Refusal,
    },
    /// The settlements of their origins are committed: show these copies.
    Landed(Vec<CopyRef>),
    /// After recovery, from every shard to every shard: hidden copies of yours.
    Arrivals(Vec<(Origin, CopyRef)>),
    /// A connection wants to be the only one of this name. To shard 0.
    Claim {
        /// Its claim.
        claim: ClaimId,
        /// The name.
        name: Arc<SoleName>,
        /// Whoever has it is to go; otherwise the claim is refused.
        closes_existing: bool,
    },
    /// The answer to `Claim`.
    Claimed {
        /// Which.
        claim: ClaimId,
        /// The name is the connection's.
        is_granted: bool,
    },
    /// Shard 0 to the shard of a connection: another gets its name, close it.
    GiveUp(ClaimId),
    /// A connection with a claim is over. To shard 0.
    Unclaim(ClaimId),
    /// A connection with a claim leaves its shard. To shard 0.
    Departed(ClaimId),
    /// It has come to another. To shard 0, perhaps before `Departed`.
    Arrived {
        /// Its claim.
        claim: ClaimId,
        /// The name.
        name: Arc<SoleName>,
        /// Where it is now.
        shard: ShardId,
    },
    /// The sender is stopping and has no connection left: no more mail of its links will come.
    NoMore,
    /// This shard's memory or disk is near its bound (or no longer): withhold producers' credit.
    Pressure(bool),
    /// A queue's home to everybody: it is full (or no longer), withhold its producers' credit.
    Full {
        /// The queue.
        queue: QueueId,
        /// Whether it is.
        is_full: bool,
    },
}

/// A part of a message on its way into a queue's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The queue.
    pub queue: QueueId,
    /// Who gets the answer, after the last: the same in all parts of a message.
    pub whence: Whence,
    /// The connection that it came by, which may outlive its link; none of what moves.
    pub conn: Option<ConnId>,
    /// Which part it is.
    pub share: Share,
    /// Its sender waits for no answer.
    pub settled: bool,
    /// Its bytes.
    pub bytes: Bytes,
}

impl Part {
    /// What it takes in memory while it waits.
    pub(crate) fn memory_bytes(&self) -> u64 {
        Queue::memory_bytes(self.bytes.len())
    }
}

/// Which part of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// The first.
    First {
        /// What the queue has to know of the message.
        traits: Traits,
        /// How long that is, as far as it is known by now.
        message_bytes: u64,
    },
    /// Any other but the last.
    Next,
    /// The last: with it the message is one.
    Last,
    /// None: the message is given up, and nobody waits for an answer.
    Abandoned,
}

/// A fragment that a consumer's connection wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// The consumer.
    pub consumer: LinkRef,
    /// The queue.
    pub queue: QueueId,
    /// The message.
    pub sequence: Sequence,
    /// Which fragment, from 0.
    pub fragment: u16,
    /// Which sending of the consumer's it is for: what is answered to an earlier one is of no use.
    pub flow: u32,
}

/// A fragment that was fetched, and what there is of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Its bytes.
    pub payload: Bytes,
    /// So many fragments has the message.
    pub fragments: u16,
    /// And so many bytes.
    pub message_bytes: u64,
}

/// A consumer's outcome, as far as a queue cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done: the message goes.
    Accepted,
    /// It can never be processed: the message goes (to a dead-letter address when there is one).
    Rejected,
    /// Not processed: back to its place in the order, as if it never left.
    Released,
    /// Not processed: back to its place, with these changes.
    Modified {
        /// Count this as a failed delivery.
        delivery_failed: bool,
        /// Never again to this consumer.
        undeliverable_here: bool,
    },
    /// Its time came before it was sent, by the clock where it waited: it is over, whatever the
    /// clock of its queue says.
    Expired,
}

/// Why a message, or a link, is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The memory bound is reached.
    MemoryFull,
    /// The journal has no room: consumers must settle first.
    DiskFull,
    /// The queue is as deep as it may be.
    QueueFull,
    /// The queue does not exist any more.
    QueueGone,
    /// There may be no more queues.
    TooManyQueues,
    /// The queue has as many consumers as it may have.
    TooManyConsumers,
    /// The journal cannot hold a message of this size.
    TooLarge,
    /// Its header and annotations are longer than a message in fragments may have; or what stands
    /// before its body, than the first part of one that comes in parts.
    HeadTooLong(usize),
    /// It took so long to come that the room behind its beginning was needed.
    TooSlow,
    /// The broker is stopping.
    Stopping,
    /// The message cannot be decoded.
    Malformed(String),
    /// The queue is another connection's.
    NotYours,
    /// There is no such queue, and it is of a kind that is not created by asking.
    NotFound(String),
    /// The text is no address, or there is none.
    Address(String),
    /// A property of the message has a value that it cannot have.
    Property(String),
    /// The message asks for something that is not built.
    NotBuilt(String),
    /// The user may not do that.
    Unauthorized(String),
}

impl Refusal {
    /// Whether something is full: only consumers can make room.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::MemoryFull | Self::DiskFull | Self::QueueFull)
    }
}

/// Every level, weakest first; its place is its code.
pub const LEVELS: [Level; 4] =
    [Level::Async, Level::Sync, Level::Replicated, Level::ReplicatedSync];

/// The level's name in the configuration and in the admin API.
pub fn level_name(level: Level) -> &'static str {
    match level {
        Level::Async => "async",
        Level::Sync => "sync",
        Level::Replicated => "replicated",
        Level::ReplicatedSync => "replicated-sync",
    }
}
