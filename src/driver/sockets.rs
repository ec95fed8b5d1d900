//! A core's connections: which socket is which, and how one ends.
//!
//! ```text
//!   Serving ──Action::Close──▶ Finishing ──last Sent──▶ Lingering ──peer's end──▶ Closing ──▶ gone
//!      │                           │                        │                        ▲
//!      │                           └──── deadline ──────────┴──── deadline ──────────┤
//!      └── ReceiveEnded, or a failed send: the shard is told once ───────────────────┘
//! ```
//! A close is polite: what is under way is sent, our half is ended, and what the peer still sends is
//! read and dropped until it ends its half too, or [`LINGER`] is over. Closing at once would make the
//! kernel reset the connection, and a reset can destroy the last frames before the peer reads them.
//!
//! Invariants: a shard hears nothing of a connection after its `Close`, or after `ConnectionLost`. A
//! `ConnId` is never given twice in a process: it holds the slot of its socket, so that an action finds
//! the socket without a search, and a serial number.
//!
//! Failure: an action for a connection that is gone does nothing.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use broker::ConnId;
use journal::ShardId;
use net::{Ring, SocketId};

/// How long a peer may take to read our goodbye and to end its half.
const LINGER: Duration = Duration::from_secs(2);

/// Bits of a `ConnId` that are the slot; the rest is the serial number.
const SLOT_BITS: u32 = 20;

/// How far a connection's life has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// A shard serves it.
    Serving,
    /// The last send is under way.
    Finishing,
    /// Our half is ended.
    Lingering,
    /// The ring was told to close.
    Closing,
}

#[derive(Debug)]
struct Entry {
    socket: SocketId,
    conn: ConnId,
    shard: ShardId,
    phase: Phase,
    sends: u32,
    /// It will send nothing more.
    peer_ended: bool,
}

/// The connections of a core.
pub(super) struct Sockets {
    entries: Vec<Option<Entry>>,
    /// Who must be closed by when, in order, since all linger equally long.
    deadlines: VecDeque<(Instant, SocketId)>,
    serial: u64,
    /// Serial numbers of different cores differ by this.
    step: u64,
}

/// A connection and who serves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Served {
    /// The connection.
    pub(super) conn: ConnId,
    /// Its shard.
    pub(super) shard: ShardId,
}

impl Sockets {
    /// None yet; `core` of `cores` numbers them so that no two cores give one number.
    pub(super) fn new(core: usize, cores: usize) -> Self {
        Self {
            entries: Vec::new(),
            deadlines: VecDeque::new(),
            serial: core as u64,
            step: cores.max(1) as u64,
        }
    }

    /// A connection that `shard` is to serve.
    pub(super) fn add(&mut self, socket: SocketId, shard: ShardId) -> ConnId {
        let slot = socket.slot();
        assert!(slot < 1 << SLOT_BITS, "socket slot {slot} is beyond the bound of connections");
        self.serial += self.step;
        let conn = ConnId(self.serial << SLOT_BITS | slot as u64);
        if self.entries.len() <= slot {
            self.entries.resize_with(slot + 1, || None);
        }
        let entry =
            Entry { socket, conn, shard, phase: Phase::Serving, sends: 0, peer_ended: false };
        let before = self.entries[slot].replace(entry);
        assert!(before.is_none(), "a slot was given again before its socket was closed");
        conn
    }

    /// Who is served over this socket, if anybody still is.
    pub(super) fn served(&self, socket: SocketId) -> Option<Served> {
        let entry = self.entries.get(socket.slot())?.as_ref()?;
        let serving = entry.socket == socket && entry.phase == Phase::Serving;
        serving.then_some(Served { conn: entry.conn, shard: entry.shard })
    }

    /// The socket of a connection that a shard serves.
    pub(super) fn socket(&self, conn: ConnId) -> Option<SocketId> {
        self.entry(conn).filter(|entry| entry.phase == Phase::Serving).map(|entry| entry.socket)
    }

    /// Send for a connection; the bytes of one that is gone are dropped.
    pub(super) fn send(&mut self, ring: &mut Ring, conn: ConnId, buf: Vec<u8>) {
        if let Some(entry) = self.entry_mut(conn)
            && entry.phase == Phase::Serving
        {
            entry.sends += 1;
            ring.send(entry.socket, buf);
        }
    }

    /// A send has ended well.
    pub(super) fn sent(&mut self, ring: &mut Ring, socket: SocketId) {
        let Some(entry) = self.entry_of(socket) else { return };
        entry.sends -= 1;
        if entry.phase == Phase::Finishing && entry.sends == 0 {
            linger(ring, entry);
        }
    }

    /// A shard has said `Close`.
    pub(super) fn finish(&mut self, ring: &mut Ring, now: Instant, conn: ConnId) {
        let Some(entry) = self.entry_mut(conn) else { return };
        if entry.phase != Phase::Serving {
            return;
        }
        let socket = entry.socket;
        // Reads may have been withheld; from now on what comes is dropped.
        ring.start_receive(socket);
        if entry.sends == 0 {
            linger(ring, entry);
        } else {
            entry.phase = Phase::Finishing;
        }
        self.deadlines.push_back((now + LINGER, socket));
    }

    /// Nothing more will be received, or a send has failed: close. Whom to tell, if anybody.
    pub(super) fn lost(&mut self, ring: &mut Ring, socket: SocketId) -> Option<Served> {
        let entry = self.entry_of(socket)?;
        let told = entry.phase == Phase::Serving;
        let served = Served { conn: entry.conn, shard: entry.shard };
        close(ring, entry);
        told.then_some(served)
    }

    /// The peer has ended its half. A connection that says goodbye may finish its sends.
    pub(super) fn ended(&mut self, ring: &mut Ring, socket: SocketId) -> Option<Served> {
        let entry = self.entry_of(socket)?;
        entry.peer_ended = true;
        match entry.phase {
            Phase::Finishing => None,
            Phase::Serving | Phase::Lingering | Phase::Closing => self.lost(ring, socket),
        }
    }

    /// The ring has let go: the slot is free.
    pub(super) fn closed(&mut self, socket: SocketId) {
        if self.entry_of(socket).is_some() {
            self.entries[socket.slot()] = None;
        }
    }

    /// When the next goodbye is over.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.front().map(|(at, _)| *at)
    }

    /// Close those whose goodbye took too long.
    pub(super) fn handle_timeout(&mut self, ring: &mut Ring, now: Instant) {
        while let Some((at, socket)) = self.deadlines.front().copied()
            && at <= now
        {
            self.deadlines.pop_front();
            if let Some(entry) = self.entry_of(socket) {
                close(ring, entry);
            }
        }
    }

    fn entry(&self, conn: ConnId) -> Option<&Entry> {
        self.entries.get(slot_of(conn))?.as_ref().filter(|entry| entry.conn == conn)
    }

    fn entry_mut(&mut self, conn: ConnId) -> Option<&mut Entry> {
        self.entries.get_mut(slot_of(conn))?.as_mut().filter(|entry| entry.conn == conn)
    }

    fn entry_of(&mut self, socket: SocketId) -> Option<&mut Entry> {
        self.entries.get_mut(socket.slot())?.as_mut().filter(|entry| entry.socket == socket)
    }
}

fn slot_of(conn: ConnId) -> usize {
    (conn.0 & ((1 << SLOT_BITS) - 1)) as usize
}

fn linger(ring: &mut Ring, entry: &mut Entry) {
    if entry.peer_ended {
        return close(ring, entry);
    }
    entry.phase = Phase::Lingering;
    ring.shutdown_write(entry.socket);
}

fn close(ring: &mut Ring, entry: &mut Entry) {
    if entry.phase != Phase::Closing {
        entry.phase = Phase::Closing;
        ring.close(entry.socket);
    }
}
