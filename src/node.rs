//! What the process's threads know of each other: the way to each shard, and how far the start is.
//!
//! ```text
//!   admin, auth, signals ── Input ──▶ Inbox of a core ──(bell)──▶ its driver ──▶ its shard
//!
//!   Stage:  Locking ─▶ Recovering ─▶ Ready ─▶ Draining
//!           in a pair between those: Joining, Backup, Fenced, Ready, in any order
//! ```
//! An [`Inbox`] is the only way from a cold thread into a core: an unbounded queue with a bell. Its
//! senders bound it: the admin API asks a bounded number of questions at a time, log-ins wait in a
//! bounded queue, cold file work is bounded by the journals.
//!
//! Invariants: nothing here is touched by a core's loop but the beat of its own thread and the end
//! of its own queue. Failure: a core that is gone answers nothing, and whoever asks has a deadline.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

use broker::ConnId;
use broker::admin::{AdminReply, AdminRequest};
use broker::event::AuthVerdict;
use broker::shard::pair::{PairEvent, StreamId};
use crossbeam::channel::{Receiver, Sender, unbounded};
use journal::{DiskDone, ShardId};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use crate::auth::{Authenticator, Conversation};
use crate::driver::{Linked, Shaken};
use crate::ha::Command;
use crate::tls::Tls;

/// What a cold thread has for a core.
#[derive(Debug)]
pub(crate) enum Input {
    /// An operator's question to one of its shards.
    Admin {
        /// Which.
        shard: ShardId,
        /// What.
        request: AdminRequest,
        /// Where the answer goes.
        answer: oneshot::Sender<AdminReply>,
    },
    /// A verified log-in.
    Verdict {
        /// The shard that asked.
        shard: ShardId,
        /// Its connection.
        conn: ConnId,
        /// Whether user and password belong together.
        verdict: AuthVerdict,
        /// What its log-in keeps until its next message.
        conversation: Option<Box<Conversation>>,
    },
    /// Cold file work is done.
    Cold {
        /// The shard that asked.
        shard: ShardId,
        /// What came of it.
        done: DiskDone,
    },
    /// A step of a TLS handshake is done.
    Shaken(Shaken),
    /// Are you there? Answered by the loop itself.
    Ping(oneshot::Sender<()>),
    /// Every shard is ready: listen.
    Listen {
        /// Where.
        addr: SocketAddr,
        /// Others listen there too.
        shared: bool,
        /// TLS comes first.
        tls: bool,
    },
    /// Stop accepting; each shard drains.
    Shutdown,
    /// Something for a shard of a pair.
    Pair {
        /// Which.
        shard: ShardId,
        /// What.
        event: PairEvent,
    },
    /// A stream to the other member stands.
    Link(Box<Linked>),
    /// A stream to the other member is to end.
    Unlink(StreamId),
    /// How are the shards of this pair? Answered by reports.
    Look,
    /// Nobody is served any more: close every client and listener.
    CloseClients,
}

/// The way into a core.
#[derive(Clone)]
pub(crate) struct Inbox {
    inputs: Sender<Input>,
    bell: Arc<dyn Fn() + Send + Sync>,
}

impl Inbox {
    /// A way in, its end, and the bell that is rung after each input.
    pub(crate) fn new(bell: impl Fn() + Send + Sync + 'static) -> (Self, Receiver<Input>) {
        let (inputs, end) = unbounded();
        (Self { inputs, bell: Arc::new(bell) }, end)
    }

    /// Hand something in. A core that is gone drops it, and with it the place for the answer.
    pub(crate) fn put(&self, input: Input) {
        if self.inputs.send(input).is_ok() {
            (self.bell)();
        }
    }
}

/// How far the process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Waiting for the data directory.
    Locking,
    /// Reading the journals.
    Recovering,
    /// Serving.
    Ready,
    /// Answering what was sent before the end.
    Draining,
    /// A member of a pair on its way.
    Joining,
    /// A member of a pair that follows and is in sync.
    Backup,
    /// A member of a pair that has the role and may not serve now.
    Fenced,
}

impl Stage {
    const ALL: [Self; 7] = [
        Self::Locking,
        Self::Recovering,
        Self::Ready,
        Self::Draining,
        Self::Joining,
        Self::Backup,
        Self::Fenced,
    ];

    /// Whether it does what it is there for.
    pub(crate) fn is_ready(self) -> bool {
        match self {
            Self::Ready | Self::Backup => true,
            Self::Locking | Self::Recovering | Self::Draining | Self::Joining | Self::Fenced => {
                false
            }
        }
    }

    /// What a probe is told.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Locking => "waiting for the data directory: another process holds it",
            Self::Recovering => "recovering the journals",
            Self::Ready => "ready",
            Self::Draining => "stopping",
            Self::Joining => "not in sync with the other member of the pair: see /api/v1/ha",
            Self::Backup => "backup: in sync, follows the live",
            Self::Fenced => "has the role and may not serve now: see /api/v1/ha",
        }
    }
}

/// What is true of this process from its start on, for metrics and the log line at start.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// The engine that drives sockets and files.
    pub(crate) engine: &'static str,
    /// Why it is this one.
    pub(crate) engine_reason: String,
    /// The default level of durability.
    pub(crate) durability: String,
    /// Whether the data directory forgets at power-off.
    pub(crate) volatile: bool,
    /// Whether journal files go past the page cache.
    pub(crate) direct: bool,
    /// The data directory, absolute.
    pub(crate) data: PathBuf,
}

/// The process as its cold threads see it.
pub(crate) struct Node {
    stage: AtomicU8,
    cores: OnceLock<Cores>,
    tls: OnceLock<Arc<Tls>>,
    authenticator: OnceLock<Authenticator>,
    ha: OnceLock<UnboundedSender<Command>>,
}

struct Cores {
    inboxes: Vec<Inbox>,
    shards: u16,
    facts: Facts,
}

impl Node {
    /// A process that has no cores yet.
    pub(crate) fn new() -> Self {
        Self {
            stage: AtomicU8::new(Stage::Locking as u8),
            cores: OnceLock::new(),
            tls: OnceLock::new(),
            authenticator: OnceLock::new(),
            ha: OnceLock::new(),
        }
    }

    /// How far it is.
    pub(crate) fn stage(&self) -> Stage {
        Stage::ALL[usize::from(self.stage.load(Ordering::Acquire))]
    }

    /// It has come further.
    pub(crate) fn enter(&self, stage: Stage) {
        self.stage.store(stage as u8, Ordering::Release);
    }

    /// The cores run, `inboxes` by their number, and host `shards` shards.
    ///
    /// # Panics
    /// If called twice.
    pub(crate) fn set_cores(&self, inboxes: Vec<Inbox>, shards: u16, facts: Facts) {
        let first = self.cores.set(Cores { inboxes, shards, facts }).is_ok();
        assert!(first, "the cores are set once");
    }

    /// TLS is served.
    ///
    /// # Panics
    /// If called twice.
    pub(crate) fn set_tls(&self, tls: Arc<Tls>) {
        assert!(self.tls.set(tls).is_ok(), "TLS is set once");
    }

    /// What TLS is served with, if it is.
    pub(crate) fn tls(&self) -> Option<&Arc<Tls>> {
        self.tls.get()
    }

    /// Log-ins are verified.
    ///
    /// # Panics
    /// If called twice.
    pub(crate) fn set_authenticator(&self, authenticator: Authenticator) {
        assert!(self.authenticator.set(authenticator).is_ok(), "it is set once");
    }

    /// What verifies log-ins, once it does.
    pub(crate) fn authenticator(&self) -> Option<&Authenticator> {
        self.authenticator.get()
    }

    /// It is a member of a pair.
    ///
    /// # Panics
    /// If called twice.
    pub(crate) fn set_ha(&self, commands: UnboundedSender<Command>) {
        assert!(self.ha.set(commands).is_ok(), "it is set once");
    }

    /// The way to who decides about the pair, if it is a member of one.
    pub(crate) fn ha(&self) -> Option<&UnboundedSender<Command>> {
        self.ha.get()
    }

    /// The ways into the cores; none before they run.
    pub(crate) fn inboxes(&self) -> &[Inbox] {
        self.cores.get().map_or(&[], |cores| &cores.inboxes)
    }

    /// The facts; none before the cores run.
    pub(crate) fn facts(&self) -> Option<&Facts> {
        self.cores.get().map(|cores| &cores.facts)
    }

    /// How many shards there are; 0 before the cores run.
    pub(crate) fn shards(&self) -> u16 {
        self.cores.get().map_or(0, |cores| cores.shards)
    }

    /// The way to a shard.
    pub(crate) fn inbox_of(&self, shard: ShardId) -> Option<&Inbox> {
        let inboxes = self.inboxes();
        inboxes.get(core_of(shard, inboxes.len()))
    }
}

/// The core that hosts a shard: they are dealt out in turn.
pub(crate) fn core_of(shard: ShardId, cores: usize) -> usize {
    if cores == 0 { 0 } else { usize::from(shard.0) % cores }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_survives_its_number() {
        let node = Node::new();
        for stage in Stage::ALL {
            node.enter(stage);
            assert_eq!(node.stage(), stage);
        }
    }

    #[test]
    fn shards_are_dealt_out_in_turn() {
        let cores: Vec<usize> = (0..5).map(|shard| core_of(ShardId(shard), 2)).collect();
        assert_eq!(cores, [0, 1, 0, 1, 0]);
    }

    #[test]
    fn an_input_rings_the_bell_until_the_end_is_gone() {
        let rung = Arc::new(AtomicU8::new(0));
        let bell = Arc::clone(&rung);
        let (inbox, end) = Inbox::new(move || {
            bell.fetch_add(1, Ordering::Relaxed);
        });
        inbox.put(Input::Shutdown);
        assert!(matches!(end.try_recv(), Ok(Input::Shutdown)));
        drop(end);
        inbox.put(Input::Shutdown);
        assert_eq!(rung.load(Ordering::Relaxed), 1);
    }
}
