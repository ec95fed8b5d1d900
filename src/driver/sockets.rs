//! A core's connections: which socket is which, and how one ends.
//!
//! ```text
//!   Serving ──Action::Close──▶ Finishing ──last Sent──▶ Lingering ──peer's end──▶ Closing ──▶ gone
//!      │                           │                        │                        ▲
//!      │                           └──── deadline ──────────┴──── deadline ──────────┤
//!      ├── a failed send: the shard is told once ────────────────────────────────────┘
//!      └──Action::Move──▶ Leaving ──last Sent──▶ Serving, by another shard of this core
//!                                           └──▶ HandedOver ──▶ Serving, by another core
//! ```
//! A close is polite: what is under way is sent, our half is ended, and what the peer still sends
//! is read and dropped until it ends its half too, or [`LINGER`] is over. Closing at once would
//! make the kernel reset the connection, and a reset can destroy the last frames before the peer
//! reads them.
//!
//! Invariants: a shard hears nothing of a connection after its `Close`, or after `ConnectionLost`.
//! A `ConnId` is never given twice in a process: it holds the slot of its socket, so that an action
//! finds the socket without a search, and a serial number.
//!
//! A peer that ends its half may still wait for answers: the shard is told, and closes when it owes
//! none.
//!
//! Failure: an action for a connection that is gone does nothing. One that breaks while it moves is
//! closed, and what it carried is dropped.

use std::collections::VecDeque;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use broker::{ConnId, Moving};
use journal::ShardId;
use net::{Ring, SocketId};

/// How long a peer may take to read our goodbye and to end its half.
const LINGER: Duration = Duration::from_secs(2);

/// Connections that a core may hold: half of what a `ConnId` has room for, since a socket that is
/// being closed keeps its slot.
pub(super) const SOCKETS_MAX: usize = 1 << (SLOT_BITS - 1);

/// Bits of a `ConnId` that are the slot; the rest is the serial number.
const SLOT_BITS: u32 = 20;

/// How far a connection's life has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// A shard serves it.
    Serving,
    /// It moves to another shard; what is received is kept for that.
    Leaving,
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
    /// What it takes along when it moves, and what was received since.
    leaving: Option<Box<(Leaving, Vec<u8>)>>,
}

/// Where a connection goes, and with what.
#[derive(Debug)]
pub(super) struct Leaving {
    /// The shard.
    pub(super) to: ShardId,
    /// What that shard is to be told.
    pub(super) moving: Box<Moving>,
    /// It is a shard of this core.
    pub(super) here: bool,
}

/// A connection that moves has no send under way any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Departure {
    /// It may `land` on another shard of this core.
    Here(ConnId),
    /// The ring may hand this socket over.
    Elsewhere(SocketId),
}

/// A connection on its way to another core.
#[derive(Debug)]
pub(super) struct Carried {
    /// The shard.
    pub(super) to: ShardId,
    /// The socket.
    pub(super) stream: TcpStream,
    /// What the shard is to be told.
    pub(super) moving: Box<Moving>,
    /// What was received on the way.
    pub(super) bytes: Vec<u8>,
}

/// A connection that has come to another shard of its core.
#[derive(Debug)]
pub(super) struct Landed {
    /// The shard.
    pub(super) to: ShardId,
    /// Its socket.
    pub(super) socket: SocketId,
    /// What the shard is to be told.
    pub(super) moving: Box<Moving>,
    /// What was received on the way.
    pub(super) bytes: Vec<u8>,
    /// Its peer has ended its half on the way.
    pub(super) peer_ended: bool,
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
        let phase = Phase::Serving;
        let entry =
            Entry { socket, conn, shard, phase, sends: 0, peer_ended: false, leaving: None };
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

    /// A send has ended well; what that lets a connection that moves do.
    pub(super) fn sent(&mut self, ring: &mut Ring, socket: SocketId) -> Option<Departure> {
        let entry = self.entry_of(socket)?;
        entry.sends -= 1;
        if entry.phase == Phase::Finishing && entry.sends == 0 {
            linger(ring, entry);
        }
        departure(entry)
    }

    /// A shard has said `Move`: nothing more is read; what it may do at once.
    pub(super) fn leave(
        &mut self,
        ring: &mut Ring,
        conn: ConnId,
        leaving: Leaving,
    ) -> Option<Departure> {
        let entry = self.entry_mut(conn).filter(|entry| entry.phase == Phase::Serving)?;
        entry.phase = Phase::Leaving;
        entry.leaving = Some(Box::new((leaving, Vec::new())));
        ring.pause_receive(entry.socket);
        departure(entry)
    }

    /// Bytes came for a connection that no shard serves: one that moves takes them along.
    pub(super) fn keep(&mut self, socket: SocketId, bytes: &[u8]) {
        if let Some(entry) = self.entry_of(socket)
            && let Some(leaving) = &mut entry.leaving
        {
            leaving.1.extend_from_slice(bytes);
        }
    }

    /// The ring has let go of a connection that moves.
    pub(super) fn handed_over(&mut self, socket: SocketId, stream: TcpStream) -> Option<Carried> {
        self.entry_of(socket)?;
        let entry = self.entries[socket.slot()].take()?;
        let (Leaving { to, moving, .. }, bytes) = *entry.leaving?;
        Some(Carried { to, stream, moving, bytes })
    }

    /// A connection that moves arrives at another shard of this core, and is read again.
    pub(super) fn land(&mut self, ring: &mut Ring, conn: ConnId) -> Option<Landed> {
        let entry = self.entry_mut(conn).filter(|entry| entry.phase == Phase::Leaving)?;
        let (Leaving { to, moving, .. }, bytes) = *entry.leaving.take()?;
        (entry.phase, entry.shard) = (Phase::Serving, to);
        let (socket, peer_ended) = (entry.socket, entry.peer_ended);
        ring.start_receive(socket);
        Some(Landed { to, socket, moving, bytes, peer_ended })
    }

    /// Whether a `ConnId` can name this socket.
    pub(super) fn has_room(&self, socket: SocketId) -> bool {
        socket.slot() < 1 << SLOT_BITS
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

    /// The peer has ended its half: whom to tell, if anybody. Answers may still be owed and arrive,
    /// so the socket stays until the shard says `Close`.
    pub(super) fn ended(&mut self, ring: &mut Ring, socket: SocketId) -> Option<Served> {
        let entry = self.entry_of(socket)?;
        entry.peer_ended = true;
        match entry.phase {
            // Who moves hears of it when it has arrived.
            Phase::Finishing | Phase::Leaving => None,
            Phase::Serving => Some(Served { conn: entry.conn, shard: entry.shard }),
            Phase::Lingering | Phase::Closing => self.lost(ring, socket),
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

/// What a connection that moves may do, if it may.
fn departure(entry: &Entry) -> Option<Departure> {
    let (leaving, _) = &**entry.leaving.as_ref()?;
    match (entry.sends, leaving.here) {
        (0, true) => Some(Departure::Here(entry.conn)),
        (0, false) => Some(Departure::Elsewhere(entry.socket)),
        (1.., _) => None,
    }
}

fn close(ring: &mut Ring, entry: &mut Entry) {
    if entry.phase != Phase::Closing {
        entry.phase = Phase::Closing;
        entry.leaving = None;
        ring.close(entry.socket);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;

    use net::{Completion, RingConfig, TcpListen};

    use super::*;
    use crate::driver::clock;

    /// A ring with one accepted connection, and its client's end.
    struct Bench {
        ring: Ring,
        sockets: Sockets,
        socket: SocketId,
        conn: ConnId,
        client: TcpStream,
    }

    fn bench() -> Bench {
        let mut ring = Ring::new(RingConfig::default()).expect("a ring");
        let addr = "127.0.0.1:0".parse().expect("an address");
        let listen = TcpListen { addr, reuse_port: false, backlog: 8 };
        let (_, addr) = ring.listen(listen).expect("listening");
        let client = TcpStream::connect(addr).expect("connected");
        client.set_read_timeout(Some(Duration::from_secs(10))).expect("bounded");
        let mut sockets = Sockets::new(0, 2);
        let socket = loop {
            if let Completion::Accepted { socket, .. } = next(&mut ring) {
                break socket;
            }
        };
        let conn = sockets.add(socket, ShardId(0));
        ring.start_receive(socket);
        Bench { ring, sockets, socket, conn, client }
    }

    fn next(ring: &mut Ring) -> Completion {
        let mut completions = Vec::new();
        for _ in 0..1000 {
            ring.wait(Some(Duration::from_millis(10)), &mut completions).expect("a wait");
            if !completions.is_empty() {
                assert_eq!(completions.len(), 1, "the tests do one thing at a time");
                return completions.remove(0);
            }
        }
        panic!("nothing happened in ten seconds");
    }

    #[test]
    fn ids_are_never_given_twice_and_differ_between_cores() {
        let mut bench = bench();
        let first = bench.conn;
        bench.ring.close(bench.socket);
        loop {
            if let Completion::Closed { socket } = next(&mut bench.ring) {
                bench.sockets.closed(socket);
                break;
            }
        }
        assert_eq!(bench.sockets.socket(first), None);
        let mut other = Sockets::new(1, 2);
        let second = bench.sockets.add(bench.socket, ShardId(0));
        let third = other.add(bench.socket, ShardId(1));
        assert!(first != second && second != third && first != third);
    }

    #[test]
    #[expect(clippy::wildcard_enum_match_arm, reason = "any other completion fails the test")]
    fn a_goodbye_is_sent_whole_before_the_end() {
        let mut bench = bench();
        bench.sockets.send(&mut bench.ring, bench.conn, b"goodbye".to_vec());
        bench.sockets.finish(&mut bench.ring, clock(), bench.conn);
        assert_eq!(bench.sockets.served(bench.socket), None, "the shard hears nothing more");
        loop {
            if let Completion::Sent { socket, result, .. } = next(&mut bench.ring) {
                result.expect("sent");
                assert_eq!(bench.sockets.sent(&mut bench.ring, socket), None);
                break;
            }
        }
        // What the peer still sends is taken and dropped: the kernel must not reset the connection.
        bench.client.write_all(b"more").expect("still open");
        let mut heard = Vec::new();
        loop {
            match next(&mut bench.ring) {
                Completion::Received { lease, .. } => {
                    bench.ring.release(lease);
                    bench.client.read_to_end(&mut heard).expect("an orderly end");
                    assert_eq!(heard, b"goodbye");
                    bench.client.shutdown(std::net::Shutdown::Write).expect("ended");
                }
                Completion::ReceiveEnded { socket, .. } => {
                    assert_eq!(bench.sockets.ended(&mut bench.ring, socket), None);
                }
                Completion::Closed { socket } => return bench.sockets.closed(socket),
                other => panic!("unexpected: {other:?}"),
            }
        }
    }

    #[test]
    #[expect(clippy::wildcard_enum_match_arm, reason = "any other completion fails the test")]
    fn what_is_being_sent_outlives_the_peers_end() {
        let mut bench = bench();
        bench.sockets.send(&mut bench.ring, bench.conn, b"answer".to_vec());
        let served = Served { conn: bench.conn, shard: ShardId(0) };
        let told = bench.sockets.ended(&mut bench.ring, bench.socket);
        assert_eq!(told, Some(served));
        bench.sockets.send(&mut bench.ring, bench.conn, b", late".to_vec());
        bench.sockets.finish(&mut bench.ring, clock(), bench.conn);
        loop {
            match next(&mut bench.ring) {
                Completion::Sent { socket, result, .. } => {
                    result.expect("sent");
                    bench.sockets.sent(&mut bench.ring, socket);
                }
                Completion::Closed { socket } => break bench.sockets.closed(socket),
                other => panic!("unexpected: {other:?}"),
            }
        }
        let mut heard = Vec::new();
        bench.client.read_to_end(&mut heard).expect("an orderly end");
        assert_eq!(heard, b"answer, late");
    }

    #[test]
    fn a_peer_that_does_not_end_is_closed_in_time() {
        let mut bench = bench();
        let now = clock();
        bench.sockets.finish(&mut bench.ring, now, bench.conn);
        assert_eq!(bench.sockets.poll_timeout(), Some(now + LINGER));
        bench.sockets.handle_timeout(&mut bench.ring, now + LINGER);
        assert_eq!(bench.sockets.poll_timeout(), None);
        loop {
            if let Completion::Closed { socket } = next(&mut bench.ring) {
                bench.sockets.closed(socket);
                break;
            }
        }
    }

    #[test]
    fn a_lost_connection_is_told_once() {
        let mut bench = bench();
        let served = Served { conn: bench.conn, shard: ShardId(0) };
        assert_eq!(bench.sockets.lost(&mut bench.ring, bench.socket), Some(served));
        assert_eq!(bench.sockets.lost(&mut bench.ring, bench.socket), None);
        assert_eq!(bench.sockets.socket(bench.conn), None, "nothing is sent any more");
        bench.sockets.finish(&mut bench.ring, clock(), bench.conn);
        assert_eq!(bench.sockets.poll_timeout(), None);
    }
}
