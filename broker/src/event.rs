//! The whole vocabulary of a shard: what can happen to it, and what it can ask for.
//!
//! An [`Event`] goes in by [`Shard::handle`](crate::Shard::handle), [`Action`]s come out by
//! [`Shard::poll`](crate::Shard::poll) until there are none. Effects are data: an action owns its
//! buffer, and the event that completes it brings the buffer back. If a host needs a hook that is
//! not here, this vocabulary is wrong and is to be mended here.
//!
//! Invariants: for each connection at most one `Send` is under way; after `Close` a host sends no
//! more events for that connection, nor after `Move` to the shard that said it; each `Disk` action
//! is answered by exactly one `Disk` event.

use std::fmt;
use std::time::Instant;

use amqp::connection::{SaslPlain, SaslScram};
use journal::{DiskDone, DiskOp, ShardId};

use crate::access::LogIn;
use crate::admin::{AdminId, AdminReply, AdminRequest};
use crate::mail::Mail;
use crate::pending::BackupMarks;
use crate::shard::Moving;
use crate::shard::pair::{PairAction, PairEvent};

/// A connection, numbered by the host; never reused within one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// What can happen to a shard.
#[derive(Debug)]
pub enum Event<'a> {
    /// A client has connected to this shard's listener. `peer` is shown to operators.
    Accepted {
        /// The new connection.
        conn: ConnId,
        /// The peer's address, for logs and the connection list.
        peer: String,
        /// The host can carry it to another shard, if `Move` asks for that.
        may_move: bool,
        /// How it may log in.
        login: LogIn,
    },
    /// A connection has come from another shard of this node, by its `Move`.
    Moved {
        /// Its number here, new unless both shards have the same host thread.
        conn: ConnId,
        /// What `Move` said.
        moving: Box<Moving>,
    },
    /// Bytes arrived. They are borrowed: what must stay is copied before `handle` returns.
    Received {
        /// The connection they came from.
        conn: ConnId,
        /// The bytes, in order, at least one.
        bytes: &'a [u8],
    },
    /// The send that was under way has ended well; the buffer comes home.
    Sent {
        /// The connection.
        conn: ConnId,
        /// The buffer of the `Send` action.
        buf: Vec<u8>,
    },
    /// The socket failed, or nobody is there any more. No more bytes come or go.
    ConnectionLost {
        /// The connection.
        conn: ConnId,
    },
    /// The peer has ended its half of the stream and may still read. It is answered by `Close`, at
    /// once or when the answers to what it sent are out.
    PeerEnded {
        /// The connection.
        conn: ConnId,
    },
    /// The host can't carry this connection much longer: say goodbye, while it still can.
    MustEnd {
        /// The connection.
        conn: ConnId,
        /// Why, for the peer.
        why: &'static str,
    },
    /// The answer to `Action::Authenticate`.
    Authenticated {
        /// The connection that waits for it.
        conn: ConnId,
        /// Whether user and password belong together.
        verdict: AuthVerdict,
    },
    /// A disk operation has ended, well or badly.
    Disk(DiskDone),
    /// A message from another shard of this node.
    Mail {
        /// The sender.
        from: ShardId,
        /// What it says.
        mail: Mail,
    },
    /// An operator's question or command, from the admin thread.
    Admin {
        /// Where the answer belongs.
        id: AdminId,
        /// The question.
        request: AdminRequest,
    },
    /// The time of day, milliseconds since 1970 (UTC), which may have been set.
    WallClock(u64),
    /// How far the in-sync backup has come with this shard's log. Marks never go back.
    Backup(BackupMarks),
    /// Something between this member and the other one of its pair.
    Pair(Box<PairEvent>),
    /// A deadline named by `poll_timeout` has passed.
    Timer,
    /// The process was asked to stop: refuse new transfers, answer what was sent, say goodbye.
    Shutdown,
}

/// What became of a log-in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthVerdict {
    /// The client knows the user's password.
    Accepted {
        /// Who it is.
        user: String,
        /// What the mechanism has to say at its end; nothing for PLAIN.
        last_word: Vec<u8>,
    },
    /// SCRAM: the client is to answer this.
    Challenge(Vec<u8>),
    /// Unknown user or wrong password; the peer is not told which.
    Refused,
    /// It could not be verified now (too many at once); the peer may try again.
    Busy,
}

/// What a shard asks its host to do.
#[derive(Debug)]
pub enum Action {
    /// Send these bytes; answered by `Sent`, or by `ConnectionLost`.
    Send {
        /// The connection.
        conn: ConnId,
        /// At least one byte.
        buf: Vec<u8>,
    },
    /// Read no more from this connection until `ResumeReceive`: this is the back-pressure.
    PauseReceive(ConnId),
    /// Read again.
    ResumeReceive(ConnId),
    /// Close the socket once the sends under way have ended.
    Close(ConnId),
    /// Carry this connection to another shard: read no more, wait for the send under way, hand it
    /// over with `Moved`, then what was received meanwhile, and read again. It is gone from this
    /// shard: no more events for it here.
    Move {
        /// The connection.
        conn: ConnId,
        /// Where it goes, never here.
        to: ShardId,
        /// What goes with it. If its socket breaks on the way, drop it.
        moving: Box<Moving>,
    },
    /// Verify a log-in somewhere else than on a shard's thread.
    Authenticate {
        /// The connection that waits.
        conn: ConnId,
        /// What the peer gave.
        attempt: Attempt,
    },
    /// A disk operation. Each `Write` is made with data sync.
    Disk(DiskOp),
    /// Mail to another shard of this node, never to itself. Mail between two shards keeps its
    /// order.
    Mail {
        /// The receiver.
        to: ShardId,
        /// What to say.
        mail: Mail,
    },
    /// The answer to an operator.
    AdminReply {
        /// Whose question it was.
        id: AdminId,
        /// The answer.
        reply: AdminReply,
    },
    /// Something for the other member of the pair, or for who holds the role.
    Pair(Box<PairAction>),
    /// Recovery is over and the shard serves. Sent once. The host may start to accept.
    Ready(RecoveryReport),
    /// After `Shutdown`: everything sent is committed and answered and every connection is closed.
    Drained,
    /// The process must die now, with this cause's exit status.
    Fatal(Fatal),
}

/// What recovery found, for the log line at start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Live messages on this shard.
    pub messages: u64,
    /// Records replayed.
    pub records: u64,
    /// A torn tail was cut, and this is what the journal says of it.
    pub truncated: Option<String>,
    /// The log was read from this LSN on, and what lives before it came from a checkpoint.
    pub checkpoint: Option<u64>,
    /// Checkpoints that were of no use, and why.
    pub refused: Vec<String>,
}

/// What a peer gave to log in.
#[derive(Debug, PartialEq, Eq)]
pub enum Attempt {
    /// A name and a password, as PLAIN says them; to be refused if it wants to be another user.
    Plain(Box<SaslPlain>),
    /// A message of SCRAM, the first or the second; what the first one left behind is the host's
    /// to keep with the connection.
    Scram(Box<SaslScram>),
    /// EXTERNAL for this name, which is not the one of the client's certificate: to be refused, as
    /// late as any other failure.
    Foreign(String),
}

/// Why the process must end. Each cause has an exit status of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fatal {
    /// A journal write or sync failed: nothing more may be acknowledged.
    JournalPoisoned(String),
    /// The log is damaged before its durable end: an operator must decide.
    JournalDamaged(String),
    /// The data was written by a newer version.
    FormatUnknown(String),
    /// The disk could not be read at start.
    JournalUnreadable(String),
    /// There is no space for the journal to start with.
    DiskFull(String),
}

impl fmt::Display for Fatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::JournalPoisoned(what) => write!(f, "the journal is poisoned: {what}"),
            Self::JournalDamaged(what) => write!(f, "the journal is damaged: {what}"),
            Self::FormatUnknown(what) => write!(f, "the data has an unknown format: {what}"),
            Self::JournalUnreadable(what) => write!(f, "the journal cannot be read: {what}"),
            Self::DiskFull(what) => write!(f, "the disk is full: {what}"),
        }
    }
}

/// The earlier of two deadlines, where either may be absent.
pub(crate) fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
