//! What an operator can ask of a shard, and what it answers.
//!
//! The admin thread asks every shard and merges the answers; a shard speaks only of the queues that
//! live on it and of the connections it serves. Answers are plain data: their JSON form is the
//! admin API's business. A list is bounded by `limits.rs`, and says so when it was cut.

use bytes::Bytes;
use journal::{Lsn, QueueId, Sequence};

use crate::event::ConnId;
use crate::queue::{Peeked, SlotState};

/// Where an answer belongs; the admin thread numbers its questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AdminId(pub u64);

/// A question or a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminRequest {
    /// The queues that live on this shard.
    Queues,
    /// Up to `count_max` messages of a queue, oldest first, without taking them.
    Peek {
        /// The queue's name.
        queue: String,
        /// At most this many, at most `limits::PEEK_MESSAGES_MAX`.
        count_max: usize,
    },
    /// Remove every message that is available now; answered when that is committed.
    Purge {
        /// The queue's name.
        queue: String,
    },
    /// Delete a queue that holds no message; answered when that is committed everywhere. Links to
    /// it are detached with `amqp:resource-deleted`.
    Delete {
        /// The queue's name.
        queue: String,
    },
    /// The connections this shard serves.
    Connections,
    /// Close a connection with `amqp:connection:forced`.
    CloseConnection(ConnId),
    /// The counters.
    Stats,
    /// Take no mail of other shards until `Thaw`, `limits::FREEZE_MAX` at most.
    Freeze,
    /// Every shard is frozen: where does the log begin, how far is it durable; and hold it for
    /// `limits::HOLD_MAX`.
    Point,
    /// Take mail again.
    Thaw,
    /// Hold the log for another while.
    KeepPoint,
    /// Hold it no longer.
    ForgetPoint,
}

/// Why a queue is not deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undeletable {
    /// So many messages are in it, those that consumers hold and those that are coming among them.
    HasMessages(u64),
    /// It goes with the link that asked for it.
    Temporary,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminReply {
    /// To `Queues`.
    Queues(Vec<QueueStat>),
    /// To `Peek`; `None` if the queue does not live here.
    Peeked(Option<Vec<PeekedMessage>>),
    /// To `Purge`: how many went; `None` if the queue does not live here.
    Purged(Option<u64>),
    /// To `Delete`; `None` if the queue does not live here.
    Deleted(Option<Result<(), Undeletable>>),
    /// To `Connections`.
    Connections(Vec<ConnectionStat>),
    /// To `CloseConnection`: whether it was there.
    ConnectionClosed(bool),
    /// To `Stats`.
    Stats(Box<ShardStats>),
    /// To `Freeze`.
    Frozen,
    /// To `Point`.
    Point(PointAt),
    /// To `Thaw`: whether it was frozen until now, without which the point counts for nothing. And
    /// to a `Point` that comes too late.
    Thawed(bool),
    /// To `KeepPoint` and `ForgetPoint`: whether the log is held.
    Held(bool),
    /// The request could not be carried out, and why.
    Failed(String),
}

/// A shard's log at a moment of all shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PointAt {
    /// Where its first segment's first batch stands.
    pub first: Lsn,
    /// Everything below is durable.
    pub durable: Lsn,
}

/// One queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueStat {
    /// Its id.
    pub id: QueueId,
    /// Its name.
    pub name: String,
    /// The shard it lives on.
    pub shard: u16,
    /// Its durability level: `async`, `sync`, …
    pub durability: &'static str,
    /// Messages that a consumer could get now.
    pub available: u64,
    /// Messages at consumers, not settled.
    pub acquired: u64,
    /// Messages that wait for their time, or after a failed delivery.
    pub delayed: u64,
    /// Messages on their way to another queue.
    pub moving: u64,
    /// Messages whose own commit or whose settlement's commit is awaited.
    pub uncommitted: u64,
    /// Bytes of its messages.
    pub payload_bytes: u64,
    /// Of them, those in memory; the others are on the disk only.
    pub resident_bytes: u64,
    /// Consumers attached.
    pub consumers: u64,
    /// Messages accepted since the process started.
    pub enqueued_total: u64,
    /// Messages settled by consumers since the process started.
    pub settled_total: u64,
    /// Of those, rejected ones.
    pub rejected_total: u64,
    /// Transfers sent to consumers, redeliveries counted again.
    pub delivered_total: u64,
    /// The sequence the next message gets.
    pub next_sequence: Sequence,
}

/// One message that an operator looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeekedMessage {
    /// Its place in the queue's order.
    pub sequence: Sequence,
    /// Whether a consumer holds it now.
    pub acquired: bool,
    /// Failed deliveries so far.
    pub delivery_count: u32,
    /// How long it is.
    pub message_bytes: usize,
    /// The message as it was received; nothing of one that is longer than
    /// `limits::PEEK_BYTES_MAX`.
    pub message: Bytes,
}

impl From<Peeked> for PeekedMessage {
    fn from(peeked: Peeked) -> Self {
        let Peeked { sequence, state, delivery_count, message_bytes, message } = peeked;
        let acquired = state != SlotState::Available;
        Self { sequence, acquired, delivery_count, message_bytes, message }
    }
}

/// One connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionStat {
    /// Its id, for `connection close`.
    pub conn: ConnId,
    /// The shard that serves it.
    pub shard: u16,
    /// The peer's address.
    pub peer: String,
    /// The container id of its `open`; empty before.
    pub container_id: String,
    /// The authenticated user; empty for ANONYMOUS.
    pub user: String,
    /// Links on which it sends.
    pub producers: u64,
    /// Links on which it receives.
    pub consumers: u64,
    /// Bytes received since it was accepted.
    pub received_bytes: u64,
    /// Whether reads are withheld now (back-pressure).
    pub paused: bool,
}

/// A shard's counters and gauges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardStats {
    /// The shard.
    pub shard: u16,
    /// Connections served now.
    pub connections: u64,
    /// Connections accepted since start.
    pub connections_total: u64,
    /// Transfers accepted since start.
    pub accepted_total: u64,
    /// Transfers refused since start, whatever the reason.
    pub refused_total: u64,
    /// Transfers sent to consumers since start.
    pub delivered_total: u64,
    /// Settlements committed since start.
    pub settled_total: u64,
    /// Transfers accepted since start whose message was here before, and was not stored again.
    pub duplicates_total: u64,
    /// Bytes of duplicate ids that are remembered; memory_bytes counts them too.
    pub duplicate_ids_bytes: u64,
    /// Duplicate ids forgotten since start because all together had reached their bound.
    pub duplicate_ids_forgotten_total: u64,
    /// Messages that came from other queues since start: dead letters, expired ones.
    pub moved_in_total: u64,
    /// Moves to another queue that it did not take; each is tried again.
    pub move_failures_total: u64,
    /// Messages that died where no dead-letter or expiry address is set.
    pub dropped_total: u64,
    /// Annotations of `modified` outcomes since start that were not merged into their messages.
    pub annotations_refused_total: u64,
    /// Bytes of payload and index held in memory.
    pub memory_bytes: u64,
    /// Their bound.
    pub memory_bytes_max: u64,
    /// Whether producers are held back by the memory bound now.
    pub memory_pressure: bool,
    /// Messages whose bytes are on the disk only.
    pub paged_messages: u64,
    /// Their bytes.
    pub paged_bytes: u64,
    /// Messages whose bytes were dropped from memory since start.
    pub paged_out_total: u64,
    /// Messages whose bytes were read back since start.
    pub paged_in_total: u64,
    /// Reads of the log for that.
    pub read_backs_total: u64,
    /// Bytes of these reads.
    pub read_back_bytes_total: u64,
    /// Times that a queue with a ready consumer had to wait for one.
    pub read_back_waits_total: u64,
    /// The journal's head LSN.
    pub journal_head_lsn: u64,
    /// The end of what has been appended.
    pub journal_appended_lsn: u64,
    /// The end of what is durable.
    pub journal_durable_lsn: u64,
    /// Segments in use.
    pub journal_segments: u64,
    /// Segments allowed.
    pub journal_segments_max: u64,
    /// Bytes that can still be appended, reserve included.
    pub journal_free_bytes: u64,
    /// Bytes that the messages in the log take there, about.
    pub journal_live_bytes: u64,
    /// Bytes from the head of the log to its end that nothing needs any more, about: what a
    /// compaction could free.
    pub journal_dead_bytes: u64,
    /// Bytes of records that were copied forward since start.
    pub journal_copied_bytes_total: u64,
    /// Messages that keep the head segment from being recycled, until they are settled or copied.
    pub journal_head_live_messages: u64,
    /// Whether producers are held back because the disk is (nearly) full.
    pub journal_full: bool,
    /// Batches written since start.
    pub journal_batches_total: u64,
    /// Bytes of the log that a start would read.
    pub journal_tail_bytes: u64,
    /// How old the newest checkpoint is; 0 if there is none.
    pub journal_checkpoint_age_seconds: u64,
    /// Where a start would begin to read the log; 0 if there is no checkpoint.
    pub journal_checkpoint_lsn: u64,
    /// Checkpoints written since start.
    pub journal_checkpoints_total: u64,
    /// Checkpoints given up since start.
    pub journal_checkpoint_failures_total: u64,
}
