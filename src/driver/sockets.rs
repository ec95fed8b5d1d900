//! A core's connections: which socket is which, and how one ends.
//!
//! ```text
//!   (Securing: the TLS handshake)
//!      │
//!   Serving ──Action::Close──▶ Finishing ──last Sent──▶ Lingering ──peer's end──▶ Closing ──▶ gone
//!      │                           │                        │                        ▲
//!      │                           └──── deadline ──────────┴──── deadline ──────────┤
//!      ├── a failed send: the shard is told once ────────────────────────────────────┘
//!      └──Action::Move──▶ Leaving ──last Sent──▶ Serving, by another shard of this core
//!                            │              └──▶ HandedOver ──▶ Serving, by another core
//!                            └── deadline ──▶ Closing
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
//! A connection is a stranger until AMQP is open, or it moves. Where there is no room for one more,
//! a stranger makes it: there are never more of them than half of what the core may hold. While
//! only the last places ([`KEPT_SHARE`]) are left, those make it that had their time
//! ([`OPENS_WITHIN`]): else peers who come back all at once would throw each other out. Of the very
//! last ([`LAST_PLACES`]) any stranger does.
//!
//! A connection over TLS has its [`Channel`] here: bytes are sealed on their way out and opened on
//! their way in, and a shard sees none of it. Until its handshake is over no shard knows of it. It
//! moves like any other, and its channel with it.
//!
//! Failure: an action for a connection that is gone does nothing. One that breaks while it moves is
//! closed, and what it carried is dropped.

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use broker::{ConnId, Moving};
use journal::ShardId;
use net::{Ring, SocketId};

use super::crowds::Room;
use super::strangers::Strangers;
use super::tls::{Channel, HANDSHAKE_WITHIN, HANDSHAKES_MAX, Work};
use crate::auth::Conversation;
use crate::node::Inbox;

/// How long a peer may take to read our goodbye and to end its half.
const LINGER: Duration = Duration::from_secs(2);

/// How long a peer may take to read what is under way when its connection is to move.
const LEAVE_WITHIN: Duration = Duration::from_secs(10);

/// Connections that a core may hold: half of what a `ConnId` has room for, since a socket that is
/// being closed keeps its slot.
pub(super) const SOCKETS_MAX: usize = 1 << (SLOT_BITS - 1);

/// Bits of a `ConnId` that are the slot; the rest is the serial number.
const SLOT_BITS: u32 = 20;

/// Strangers may take one of so many places.
const STRANGERS_SHARE: usize = 2;

/// Handshakes may take one of so many places.
const HANDSHAKES_SHARE: usize = 4;

/// One of so many places is kept for those who come while others make room.
const KEPT_SHARE: usize = 16;

/// When fewer places than these are left, no stranger is too young to make room.
const LAST_PLACES: usize = 64;

/// A stranger that is younger may open yet.
const OPENS_WITHIN: Duration = Duration::from_secs(2);

/// Buffers of records that are kept for the next ones, and how large they may be.
const SPARES_MAX: usize = 64;
const SPARE_BYTES_MAX: usize = 64 * 1024;

/// How far a connection's life has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Its TLS handshake is not over.
    Securing,
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

struct Entry {
    socket: SocketId,
    conn: ConnId,
    shard: ShardId,
    peer: SocketAddr,
    tls: Option<Box<Channel>>,
    /// Between two messages of a log-in.
    conversation: Option<Box<Conversation>>,
    phase: Phase,
    /// AMQP is not open, as far as is known; since when.
    stranger_since: Option<Instant>,
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
    /// Its room there; none where it comes back to where it was.
    pub(super) room: Option<Room>,
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
    /// Who is at its other end.
    pub(super) peer: SocketAddr,
    /// Its TLS, if it has any.
    pub(super) tls: Option<Box<Channel>>,
    /// What the shard is to be told.
    pub(super) moving: Box<Moving>,
    /// What was received on the way.
    pub(super) bytes: Vec<u8>,
    /// Its peer has ended its half, by its socket or by TLS.
    pub(super) peer_ended: bool,
    /// Its room there.
    pub(super) room: Option<Room>,
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
    /// Its room there.
    pub(super) room: Option<Room>,
}

/// The connections of a core.
pub(super) struct Sockets {
    entries: Vec<Option<Entry>>,
    count: usize,
    /// Handed over, and their slots are given again before the ring has said so.
    departed: Vec<Entry>,
    /// Who must be closed by when, in order, since all linger equally long.
    deadlines: VecDeque<(Instant, SocketId)>,
    /// Who must have had its last send by when, to move, in order; most have left by now.
    departures: VecDeque<(Instant, SocketId)>,
    /// Who must be secured by when, in order; some of them are by now, or gone.
    handshakes: VecDeque<(Instant, SocketId)>,
    /// Those in `Securing`.
    securing: Strangers,
    /// Those whose AMQP is not open, the former among them.
    strangers: Strangers,
    /// For the next records of any connection.
    spare: Vec<Vec<u8>>,
    /// How many connections the ring takes.
    sockets_max: usize,
    serial: u64,
    /// Serial numbers of different cores differ by this.
    step: u64,
}

/// Whose bytes have come.
pub(super) enum Inbound<'a> {
    /// A shard's, as they are.
    Plain(Served),
    /// A shard's, sealed.
    Sealed(Served, &'a mut Channel),
    /// Of a handshake.
    Handshake,
    /// Of a connection that moves: it takes them along.
    Leaving(&'a mut Vec<u8>),
    /// Nobody's: they are dropped.
    Nobody,
}

/// Who has made room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Evicted {
    /// A handshake, which is broken off.
    Handshake,
    /// A connection that is still to be closed, as one that broke.
    Connection {
        /// Its socket.
        socket: SocketId,
        /// Who is at its other end.
        peer: SocketAddr,
    },
}

/// How a send began.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sending {
    /// It is under way, or nobody is there.
    Well,
    /// It is under way; of this connection's TLS keys little is left.
    Worn(SocketId),
    /// TLS refused: nothing is under way.
    Failed {
        /// Whose send it was.
        socket: SocketId,
        /// Who is at its other end.
        peer: SocketAddr,
        /// What TLS says.
        why: String,
    },
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
    /// None yet, and at most `sockets_max`; `core` of `cores` numbers them so that no two cores
    /// give one number.
    pub(super) fn new(core: usize, cores: usize, sockets_max: usize) -> Self {
        Self {
            entries: Vec::new(),
            count: 0,
            departed: Vec::new(),
            deadlines: VecDeque::new(),
            departures: VecDeque::new(),
            handshakes: VecDeque::new(),
            securing: Strangers::default(),
            strangers: Strangers::default(),
            spare: Vec::new(),
            sockets_max,
            serial: core as u64,
            step: cores.max(1) as u64,
        }
    }

    /// A connection that has moved here, for `shard` to serve; over TLS, with its channel.
    pub(super) fn add(
        &mut self,
        socket: SocketId,
        shard: ShardId,
        peer: SocketAddr,
        tls: Option<Box<Channel>>,
    ) -> ConnId {
        self.enter(Phase::Serving, socket, shard, peer, tls)
    }

    /// A new connection that `shard` is to serve.
    pub(super) fn add_stranger(
        &mut self,
        now: Instant,
        socket: SocketId,
        shard: ShardId,
        peer: SocketAddr,
        tls: Option<Box<Channel>>,
    ) -> ConnId {
        let phase = if tls.is_some() { Phase::Securing } else { Phase::Serving };
        let conn = self.enter(phase, socket, shard, peer, tls);
        self.strangers.add(peer, conn);
        if let Some(entry) = self.entry_mut(conn) {
            entry.stranger_since = Some(now);
        }
        conn
    }

    /// A connection that `shard` is to serve after its TLS handshake. Where there are too many, a
    /// handshake is broken off; whether that was so.
    pub(super) fn add_secure(
        &mut self,
        ring: &mut Ring,
        now: Instant,
        socket: SocketId,
        shard: ShardId,
        peer: SocketAddr,
    ) -> bool {
        let max = HANDSHAKES_MAX.min((self.sockets_max / HANDSHAKES_SHARE).max(1));
        let mut full = false;
        while self.securing.len() >= max
            && let Some(other) = self.securing.gives_way()
            && (self.securing.len() >= HANDSHAKES_MAX || self.had_its_time(now, other))
        {
            let socket = self.entry(other).expect("it is in `Securing`").socket;
            full |= self.break_off(ring, socket);
        }
        let conn = self.add_stranger(now, socket, shard, peer, Some(Box::new(Channel::new())));
        self.securing.add(peer, conn);
        self.handshakes.push_back((now + HANDSHAKE_WITHIN, socket));
        full
    }

    /// Where one more connection might find no place, a stranger makes room, if there is one; those
    /// that are open after all are none.
    pub(super) fn make_room(
        &mut self,
        ring: &mut Ring,
        now: Instant,
        mut is_open: impl FnMut(Served) -> bool,
    ) -> Option<Evicted> {
        let strangers_max = (self.sockets_max / STRANGERS_SHARE).max(1);
        let kept = self.sockets_max / KEPT_SHARE;
        let last = kept.min(LAST_PLACES);
        while (self.strangers.len() >= strangers_max || self.count + kept >= self.sockets_max)
            && let Some(conn) = self.strangers.gives_way()
            && (self.strangers.len() >= strangers_max
                || self.count + last >= self.sockets_max
                || self.had_its_time(now, conn))
        {
            let entry = self.entry(conn).expect("what is gone is no stranger");
            let (socket, peer, phase) = (entry.socket, entry.peer, entry.phase);
            let served = Served { conn, shard: entry.shard };
            self.is_known(socket);
            if phase == Phase::Closing {
                // Its place was made before.
                continue;
            }
            if phase == Phase::Securing {
                self.break_off(ring, socket);
                return Some(Evicted::Handshake);
            }
            if phase != Phase::Serving || !is_open(served) {
                return Some(Evicted::Connection { socket, peer });
            }
        }
        None
    }

    /// It is a stranger for so long that it might have opened.
    fn had_its_time(&self, now: Instant, conn: ConnId) -> bool {
        let since = self.entry(conn).and_then(|entry| entry.stranger_since);
        since.is_none_or(|since| now >= since + OPENS_WITHIN)
    }

    /// Who is served over this socket, and is a stranger as far as is known.
    pub(super) fn stranger(&self, socket: SocketId) -> Option<Served> {
        let entry = self.entries.get(socket.slot())?.as_ref()?;
        self.served(socket).filter(|_| entry.stranger_since.is_some())
    }

    /// It is no stranger any more.
    pub(super) fn is_known(&mut self, socket: SocketId) {
        let found = self.entry_of(socket);
        if let Some(entry) = found.filter(|entry| entry.stranger_since.is_some()) {
            entry.stranger_since = None;
            let (peer, conn) = (entry.peer, entry.conn);
            self.strangers.remove(peer, conn);
        }
    }

    fn enter(
        &mut self,
        phase: Phase,
        socket: SocketId,
        shard: ShardId,
        peer: SocketAddr,
        tls: Option<Box<Channel>>,
    ) -> ConnId {
        let slot = socket.slot();
        assert!(slot < 1 << SLOT_BITS, "socket slot {slot} is beyond the bound of connections");
        self.serial += self.step;
        let conn = ConnId(self.serial << SLOT_BITS | slot as u64);
        if self.entries.len() <= slot {
            self.entries.resize_with(slot + 1, || None);
        }
        let entry = Entry {
            socket,
            conn,
            shard,
            peer,
            tls,
            conversation: None,
            phase,
            stranger_since: None,
            sends: 0,
            peer_ended: false,
            leaving: None,
        };
        // A connection from another core may get a slot of which the ring has let go in this very
        // turn: the last completion of who had it is on its way.
        match self.entries[slot].replace(entry) {
            None => self.count += 1,
            Some(before) if before.phase == Phase::Leaving => self.departed.push(before),
            Some(before) => {
                assert!(before.phase == Phase::Closing, "a slot was given again while it was used");
                self.strangers.remove(before.peer, before.conn);
            }
        }
        conn
    }

    /// Closes a socket whose handshake is not over; whether there was one.
    fn break_off(&mut self, ring: &mut Ring, socket: SocketId) -> bool {
        match self.entry_of(socket) {
            Some(entry) if entry.phase == Phase::Securing => {
                entry.tls.iter().for_each(|tls| tls.abandon());
                self.lost(ring, socket);
                self.is_known(socket);
                true
            }
            Some(_) | None => false,
        }
    }

    /// Whose bytes have come from this socket.
    pub(super) fn inbound(&mut self, socket: SocketId) -> Inbound<'_> {
        let Some(entry) = self.entry_of(socket) else { return Inbound::Nobody };
        let served = Served { conn: entry.conn, shard: entry.shard };
        match (entry.phase, &mut entry.tls) {
            (Phase::Serving, None) => Inbound::Plain(served),
            (Phase::Serving, Some(tls)) => Inbound::Sealed(served, tls),
            (Phase::Securing, _) => Inbound::Handshake,
            (Phase::Leaving, _) => match &mut entry.leaving {
                Some(leaving) => Inbound::Leaving(&mut leaving.1),
                None => Inbound::Nobody,
            },
            (Phase::Finishing | Phase::Lingering | Phase::Closing, _) => Inbound::Nobody,
        }
    }

    /// Bytes of a handshake: work for its threads, if it is theirs to go on; or the peer sends more
    /// than a handshake has.
    pub(super) fn gather(
        &mut self,
        socket: SocketId,
        bytes: &[u8],
        inbox: &Inbox,
    ) -> Result<Option<Work>, SocketAddr> {
        let Some(entry) = self.entry_of(socket) else { return Ok(None) };
        let (conn, peer) = (entry.conn, entry.peer);
        let Some(tls) = &mut entry.tls else { return Ok(None) };
        if !tls.gather(bytes) {
            return Err(peer);
        }
        Ok(tls.work(conn, peer, inbox))
    }

    /// The socket and channel of a handshake that is under way still.
    pub(super) fn securing(&mut self, conn: ConnId) -> Option<(SocketId, &mut Channel)> {
        let entry = self.entry_mut(conn).filter(|entry| entry.phase == Phase::Securing)?;
        Some((entry.socket, entry.tls.as_mut()?))
    }

    /// A handshake is over: a shard serves from now on.
    pub(super) fn secured(&mut self, conn: ConnId) -> Option<Served> {
        let entry = self.entry_mut(conn).filter(|entry| entry.phase == Phase::Securing)?;
        entry.phase = Phase::Serving;
        let (served, peer) = (Served { conn, shard: entry.shard }, entry.peer);
        self.securing.remove(peer, conn);
        Some(served)
    }

    /// Send what TLS itself has to say.
    pub(super) fn transmit(&mut self, ring: &mut Ring, socket: SocketId, out: Vec<u8>) {
        if !out.is_empty()
            && let Some(entry) = self.entry_of(socket)
        {
            entry.sends += 1;
            ring.send(socket, out);
        }
    }

    /// TLS has failed: the peer gets the alert and an orderly end. Whom to tell, if anybody.
    pub(super) fn fail(
        &mut self,
        ring: &mut Ring,
        now: Instant,
        socket: SocketId,
    ) -> Option<Served> {
        let entry = self.entry_of(socket)?;
        let served = Served { conn: entry.conn, shard: entry.shard };
        let told = match entry.phase {
            Phase::Securing => false,
            Phase::Serving => true,
            Phase::Leaving | Phase::Finishing | Phase::Lingering | Phase::Closing => return None,
        };
        self.part(ring, now, socket);
        told.then_some(served)
    }

    /// Who is served over this socket, if anybody still is.
    pub(super) fn served(&self, socket: SocketId) -> Option<Served> {
        let entry = self.entries.get(socket.slot())?.as_ref()?;
        let serving = entry.socket == socket && entry.phase == Phase::Serving;
        serving.then_some(Served { conn: entry.conn, shard: entry.shard })
    }

    /// Who is at the other end of this socket.
    pub(super) fn peer(&mut self, socket: SocketId) -> Option<SocketAddr> {
        self.entry_of(socket).map(|entry| entry.peer)
    }

    /// Where the log-in of a connection keeps what it needs between two messages.
    pub(super) fn conversation(&mut self, conn: ConnId) -> Option<&mut Option<Box<Conversation>>> {
        let entry = self.entry_mut(conn).filter(|entry| entry.phase == Phase::Serving)?;
        Some(&mut entry.conversation)
    }

    /// The socket of a connection that a shard serves.
    pub(super) fn socket(&self, conn: ConnId) -> Option<SocketId> {
        self.entry(conn).filter(|entry| entry.phase == Phase::Serving).map(|entry| entry.socket)
    }

    /// Send for a connection; the bytes of one that is gone are dropped.
    pub(super) fn send(&mut self, ring: &mut Ring, conn: ConnId, buf: Vec<u8>) -> Sending {
        let found = self.entries.get_mut(slot_of(conn)).and_then(Option::as_mut);
        let Some(entry) = found.filter(|e| e.conn == conn && e.phase == Phase::Serving) else {
            return Sending::Well;
        };
        let (socket, spare) = (entry.socket, &mut self.spare);
        let (buf, worn) = match &mut entry.tls {
            None => (buf, false),
            Some(tls) => match tls.seal(buf, spare.pop().unwrap_or_default(), entry.sends + 1) {
                Ok(records) => (records, tls.wears_out()),
                Err(why) => return Sending::Failed { socket, peer: entry.peer, why },
            },
        };
        entry.sends += 1;
        ring.send(socket, buf);
        if worn { Sending::Worn(socket) } else { Sending::Well }
    }

    /// A send has ended well: whom to tell, with the buffer that goes home; and what it lets a
    /// connection that moves do.
    pub(super) fn sent(
        &mut self,
        ring: &mut Ring,
        socket: SocketId,
        buf: Vec<u8>,
    ) -> (Option<(Served, Vec<u8>)>, Option<Departure>) {
        let Some(entry) = self.entry_of(socket) else { return (None, None) };
        entry.sends -= 1;
        let (home, records) = match &mut entry.tls {
            None => (Some(buf), Vec::new()),
            Some(tls) => (tls.sent(), buf),
        };
        if entry.phase == Phase::Finishing && entry.sends == 0 {
            linger(ring, entry);
        }
        let served = Served { conn: entry.conn, shard: entry.shard };
        let home = home.filter(|_| entry.phase == Phase::Serving);
        let told = (home.map(|buf| (served, buf)), departure(entry));
        self.keep(records);
        told
    }

    /// Keeps a buffer for the next records, if it is of use and not too large.
    fn keep(&mut self, mut records: Vec<u8>) {
        if (1..=SPARE_BYTES_MAX).contains(&records.capacity()) && self.spare.len() < SPARES_MAX {
            records.clear();
            self.spare.push(records);
        }
    }

    /// A shard has said `Move`: nothing more is read; what it may do at once.
    pub(super) fn leave(
        &mut self,
        ring: &mut Ring,
        now: Instant,
        conn: ConnId,
        leaving: Leaving,
    ) -> Option<Departure> {
        let entry = self.begin_leaving(ring, now, conn)?;
        entry.leaving = Some(Box::new((leaving, Vec::new())));
        departure(entry)
    }

    fn begin_leaving(&mut self, ring: &mut Ring, now: Instant, conn: ConnId) -> Option<&mut Entry> {
        let entry = self.entry_mut(conn).filter(|entry| entry.phase == Phase::Serving)?;
        entry.phase = Phase::Leaving;
        let (socket, sends) = (entry.socket, entry.sends);
        self.is_known(socket);
        ring.pause_receive(socket);
        if sends > 0 {
            self.departures.push_back((now + LEAVE_WITHIN, socket));
        }
        self.entry_mut(conn)
    }

    /// The ring has let go of a connection that moves.
    pub(super) fn handed_over(&mut self, socket: SocketId, stream: TcpStream) -> Option<Carried> {
        let departed = self.departed.iter().position(|entry| entry.socket == socket);
        let entry = match departed {
            Some(at) => self.departed.swap_remove(at),
            None => {
                self.entry_of(socket)?;
                self.count -= 1;
                self.entries[socket.slot()].take()?
            }
        };
        let (Leaving { to, moving, room, here: _ }, bytes) = *entry.leaving?;
        let Entry { peer, tls, peer_ended, .. } = entry;
        Some(Carried { to, stream, peer, tls, moving, bytes, peer_ended, room })
    }

    /// A connection that moves arrives at another shard of this core, and is read again.
    pub(super) fn land(&mut self, ring: &mut Ring, conn: ConnId) -> Option<Landed> {
        let entry = self.entry_mut(conn).filter(|entry| entry.phase == Phase::Leaving)?;
        let (Leaving { to, moving, room, here: _ }, bytes) = *entry.leaving.take()?;
        (entry.phase, entry.shard) = (Phase::Serving, to);
        // The shard is told, as if it had ended just now.
        let (socket, peer_ended) = (entry.socket, std::mem::take(&mut entry.peer_ended));
        ring.start_receive(socket);
        Some(Landed { to, socket, moving, bytes, peer_ended, room })
    }

    /// How many there are, those that are being closed among them.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Every one that is not closed yet.
    pub(super) fn all(&self) -> impl Iterator<Item = SocketId> + '_ {
        self.entries.iter().flatten().map(|entry| entry.socket)
    }

    /// Whether a `ConnId` can name this socket.
    pub(super) fn has_room(&self, socket: SocketId) -> bool {
        socket.slot() < 1 << SLOT_BITS
    }

    /// A shard has said `Close`.
    pub(super) fn finish(&mut self, ring: &mut Ring, now: Instant, conn: ConnId) {
        let Some(entry) = self.entry_mut(conn) else { return };
        if entry.phase == Phase::Serving {
            let socket = entry.socket;
            self.part(ring, now, socket);
        }
    }

    /// From now on we only wait for what is under way, and for the peer's end.
    fn part(&mut self, ring: &mut Ring, now: Instant, socket: SocketId) {
        let Some(entry) = self.entry_of(socket) else { return };
        let (peer, conn) = (entry.peer, entry.conn);
        let last_words = entry.tls.as_mut().map(|tls| tls.last_words());
        if let Some(last_words) = last_words.filter(|words| !words.is_empty()) {
            entry.sends += 1;
            ring.send(socket, last_words);
        }
        // Reads may have been withheld; from now on what comes is dropped.
        ring.start_receive(socket);
        if entry.sends == 0 {
            linger(ring, entry);
        } else {
            entry.phase = Phase::Finishing;
        }
        self.securing.remove(peer, conn);
        self.deadlines.push_back((now + LINGER, socket));
    }

    /// Nothing more will be received, or a send has failed: close. Whom to tell, if anybody.
    pub(super) fn lost(&mut self, ring: &mut Ring, socket: SocketId) -> Option<Served> {
        let entry = self.entry_of(socket)?;
        let phase = entry.phase;
        let served = Served { conn: entry.conn, shard: entry.shard };
        let peer = entry.peer;
        close(ring, entry);
        self.securing.remove(peer, served.conn);
        (phase == Phase::Serving).then_some(served)
    }

    /// The peer has ended its half: whom to tell, if anybody. Answers may still be owed and arrive,
    /// so the socket stays until the shard says `Close`.
    pub(super) fn ended(&mut self, ring: &mut Ring, socket: SocketId) -> Option<Served> {
        let entry = self.entry_of(socket)?;
        // Over TLS it ends twice: by its last record, then by its socket.
        let known = std::mem::replace(&mut entry.peer_ended, true);
        match entry.phase {
            // Who moves hears of it when it has arrived.
            Phase::Finishing | Phase::Leaving => None,
            Phase::Serving if known => None,
            Phase::Serving => Some(Served { conn: entry.conn, shard: entry.shard }),
            Phase::Securing | Phase::Lingering | Phase::Closing => self.lost(ring, socket),
        }
    }

    /// The ring has let go: the slot is free.
    pub(super) fn closed(&mut self, socket: SocketId) {
        self.is_known(socket);
        if self.entry_of(socket).is_some() {
            self.entries[socket.slot()] = None;
            self.count -= 1;
        }
    }

    /// When the next goodbye, departure or handshake must be over.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let fronts = [self.deadlines.front(), self.departures.front(), self.handshakes.front()];
        fronts.into_iter().flatten().map(|(at, _)| *at).min()
    }

    /// Close those whose goodbye, departure or handshake took too long; how many handshakes.
    pub(super) fn handle_timeout(&mut self, ring: &mut Ring, now: Instant) -> usize {
        let mut late = 0;
        while let Some((at, socket)) = self.handshakes.front().copied()
            && at <= now
        {
            self.handshakes.pop_front();
            late += usize::from(self.break_off(ring, socket));
        }
        while let Some((at, socket)) = self.departures.front().copied()
            && at <= now
        {
            self.departures.pop_front();
            // No shard knows of it any more.
            if let Some(entry) = self.entry_of(socket)
                && entry.phase == Phase::Leaving
                && entry.sends > 0
            {
                close(ring, entry);
            }
        }
        while let Some((at, socket)) = self.deadlines.front().copied()
            && at <= now
        {
            self.deadlines.pop_front();
            if let Some(entry) = self.entry_of(socket) {
                close(ring, entry);
            }
        }
        late
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
        let mut sockets = Sockets::new(0, 2, SOCKETS_MAX);
        let socket = loop {
            if let Completion::Accepted { socket, .. } = next(&mut ring) {
                break socket;
            }
        };
        let conn = sockets.add(socket, ShardId(0), addr, None);
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
        let mut other = Sockets::new(1, 2, SOCKETS_MAX);
        let peer = "127.0.0.1:1".parse().expect("an address");
        let second = bench.sockets.add(bench.socket, ShardId(0), peer, None);
        let third = other.add(bench.socket, ShardId(1), peer, None);
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
                let told = bench.sockets.sent(&mut bench.ring, socket, Vec::new());
                assert_eq!(told, (None, None));
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
                    bench.sockets.sent(&mut bench.ring, socket, Vec::new());
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
    fn a_connection_that_cannot_leave_because_its_peer_does_not_read_is_closed_in_time() {
        let mut bench = bench();
        let now = clock();
        bench.sockets.send(&mut bench.ring, bench.conn, vec![7; 64 << 20]);
        assert!(bench.sockets.begin_leaving(&mut bench.ring, now, bench.conn).is_some());
        assert_eq!(bench.sockets.poll_timeout(), Some(now + LEAVE_WITHIN));
        bench.sockets.handle_timeout(&mut bench.ring, now + LEAVE_WITHIN);
        let mut heard = Vec::new();
        while !heard.iter().any(|what| matches!(what, Completion::Closed { .. })) {
            bench.ring.wait(Some(Duration::from_millis(10)), &mut heard).expect("a wait");
        }
        assert_eq!(bench.sockets.poll_timeout(), None);
    }

    #[test]
    fn a_slot_may_be_given_again_before_its_last_completion_is_heard() {
        let mut bench = bench();
        let (socket, client) = (bench.socket, bench.client);
        bench.ring.pause_receive(socket);
        // Closed at once, as after a last send to a peer that has ended.
        assert!(bench.sockets.lost(&mut bench.ring, socket).is_some());
        let addr = client.local_addr().expect("bound");
        let again = bench.sockets.add(socket, ShardId(0), addr, None);
        assert_eq!(bench.sockets.len(), 1, "one left, one came");
        assert_eq!(bench.sockets.socket(bench.conn), None);
        assert_eq!(bench.sockets.socket(again), Some(socket));
    }

    #[test]
    fn those_who_have_just_come_make_room_only_where_no_other_place_is_left() {
        let mut bench = bench();
        let (now, peer) = (clock(), "127.0.0.1:1".parse().expect("an address"));
        let mut sockets = Sockets::new(0, 1, SOCKETS_MAX);
        sockets.add_stranger(now, bench.socket, ShardId(0), peer, None);
        // All places but so many are taken, most by those that are known.
        let mut evicted = |taken: usize, now: Instant| {
            sockets.count = taken;
            sockets.make_room(&mut bench.ring, now, |_| false)
        };
        let kept = SOCKETS_MAX / KEPT_SHARE;
        assert_eq!(evicted(SOCKETS_MAX - kept - 1, now + OPENS_WITHIN), None);
        assert_eq!(evicted(SOCKETS_MAX - kept, now), None, "it is young");
        assert_eq!(evicted(SOCKETS_MAX - LAST_PLACES - 1, now), None, "it is young");
        let it = Some(Evicted::Connection { socket: bench.socket, peer });
        assert_eq!(evicted(SOCKETS_MAX - kept, now + OPENS_WITHIN), it);
        assert_eq!(evicted(SOCKETS_MAX - kept, now + OPENS_WITHIN), None, "once");
        let mut sockets = Sockets::new(0, 1, SOCKETS_MAX);
        sockets.add_stranger(now, bench.socket, ShardId(0), peer, None);
        sockets.count = SOCKETS_MAX - LAST_PLACES;
        assert_eq!(sockets.make_room(&mut bench.ring, now, |_| false), it, "nobody is too young");
    }

    #[test]
    fn who_is_broken_off_makes_room_once() {
        let mut bench = bench();
        let (now, peer) = (clock(), "127.0.0.1:1".parse().expect("an address"));
        let mut sockets = Sockets::new(0, 1, 2);
        let full = sockets.add_secure(&mut bench.ring, now, bench.socket, ShardId(0), peer);
        assert!(!full && sockets.break_off(&mut bench.ring, bench.socket));
        assert_eq!((sockets.strangers.len(), sockets.securing.len()), (0, 0));
        let told = sockets.make_room(&mut bench.ring, now + OPENS_WITHIN, |_| false);
        assert_eq!(told, None, "its place was made before");
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
