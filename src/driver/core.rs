//! One core's loop: the seven steps of a turn (see `driver.rs`).
//!
//! ```text
//!   Completion ─┬─ Accepted ───▶ Event::Accepted      to the core's shards in turn; over TLS
//!               │                                     after the handshake (core/entrance.rs)
//!               ├─ Received ───▶ Event::Received      bytes on loan, given back at once
//!               ├─ Sent ───────▶ Event::Sent
//!               ├─ ReceiveEnded, a failed Sent ▶ Event::ConnectionLost, at the end of the turn
//!               └─ Disk ───────▶ Event::Disk
//!   Action ─────┬─ Send, Pause, Resume, Close ▶ ring
//!               ├─ Move ───────▶ sockets ▶ HandedOver ▶ mesh ▶ the ring there, Event::Moved
//!               ├─ Disk ───────▶ ring or cold thread
//!               ├─ Mail ───────▶ a shard here: `local`; elsewhere: mesh, or `held`
//!               ├─ Authenticate▶ verifier threads
//!               ├─ Pair ───────▶ a stream (driver/links.rs), the control thread
//!               └─ Fatal ──────▶ the process ends here
//! ```
//! Invariants: a shard is handled and polled by this thread alone; mail between two shards stays in
//! order (where something is held, everything after it is held too); a core never blocks but in its
//! wait. A turn is bounded: by the completions of one wait, [`LETTERS_PER_TURN`],
//! [`INPUTS_PER_TURN`].

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use broker::admin::{AdminId, AdminReply};
use broker::limits::CONNECTIONS_MAX;
use broker::shard::pair::{PairAction, PairEvent};
use broker::{Action, ConnId, Event, Mail, Shard, ShardConfig};
use crossbeam::channel::{Receiver, Sender};
use journal::limits::{BATCH_BYTES_MAX, SEGMENT_HEADER_BYTES, WRITES_KEPT};
use journal::{BlockBuf, Recovery, ShardId};
use net::buf::Pages;
use net::file::DirectoryLock;
use net::mesh::{MeshPort, PortId};
use net::{
    Completion, Engine, ListenerId, MemoryUse, RecvLease, Ring, RingConfig, RingError, SocketId,
    TcpListen,
};
use tokio::sync::oneshot;

use super::cold::Cold;
use super::crowds::Crowds;
use super::directory::Store;
use super::disk::{Disk, FILES_MAX};
use super::links::Linked;
use super::pair::{PairLink, PairPort};
use super::sockets::{Carried, Departure, Inbound, Leaving, Sending, Served, Sockets};
use super::tls::{Complaints, Handshakes};
use super::{InboxOf, Report, clock, wall_clock};
use crate::auth::{Answer, Authenticator, Job};
use crate::fatal::{Cause, Failure};
use crate::node::{Inbox, Input, core_of};

mod entrance;

/// Letters that one turn takes from other cores.
const LETTERS_PER_TURN: usize = 1024;

/// Inputs that one turn takes from cold threads.
const INPUTS_PER_TURN: usize = 64;

/// When mail is held, the next turn comes this soon.
const HELD_RETRY: Duration = Duration::from_micros(200);

/// Connections that the kernel keeps for us until we accept them.
const BACKLOG: u16 = 1024;

/// Bytes of a batch buffer: the first batch of a segment brings the segment's header.
pub(super) const BATCH_BUFFER_BYTES: usize = BATCH_BYTES_MAX + SEGMENT_HEADER_BYTES as usize;

/// Batch buffers of a shard: those being written, one that fills, one that is sealed.
pub(super) fn batch_buffers(writes_in_flight_max: usize) -> usize {
    writes_in_flight_max + WRITES_KEPT + 2
}

/// Files of a ring beside its journal's: the directory's lock, and those that are being closed.
pub(super) const FILES_SPARE: u32 = 64;

/// Threads that the epoll engine may write with, for one core; they are started when needed. With
/// very many shards on a core a write may wait for one.
const WRITERS_MAX: u16 = 64;

/// The shards are told the time of day this often, while anything happens.
const TIME_OF_DAY_EVERY: Duration = Duration::from_secs(10);

/// What a peer hears whose TLS keys are nearly used up.
const WORN: &str = "this connection has sent nearly all that its TLS 1.2 keys may protect; connect \
                    again, or use TLS 1.3, where keys are changed";

/// What is on its way between two shards.
#[derive(Debug)]
pub(super) enum Letter {
    /// Mail.
    Mail { from: ShardId, to: ShardId, mail: Mail },
    /// A connection that moves, from another core.
    Connection(Box<Carried>),
}

impl Letter {
    fn to(&self) -> ShardId {
        match self {
            Self::Mail { to, .. } => *to,
            Self::Connection(carried) => carried.to,
        }
    }
}

/// How a connection came to its end.
#[derive(Clone, Copy, Debug)]
enum Over {
    /// The peer ended its half.
    Ended,
    /// It broke.
    Broken,
    /// Its TLS did: the peer is owed the alert.
    Garbled,
    /// Its TLS keys are nearly used up: the peer is owed a goodbye.
    Worn,
}

/// What a core is made of.
pub(super) struct Setup {
    /// Its number.
    pub(super) core: usize,
    /// How many there are.
    pub(super) cores: usize,
    /// The CPU to stay on, where the process has its CPUs for itself.
    pub(super) pin: Option<usize>,
    /// Connections that it may hold.
    pub(super) sockets_max: usize,
    /// Its shards.
    pub(super) shards: Vec<ShardConfig>,
    /// The data directory.
    pub(super) store: Store,
    /// The knobs of each journal.
    pub(super) journal: journal::Config,
    /// Verifies log-ins.
    pub(super) authenticator: Authenticator,
    /// What drives its sockets and files.
    pub(super) engine: Engine,
    /// Pre-writes.
    pub(super) cold: Cold,
    /// Makes TLS handshakes, where TLS is served.
    pub(super) handshakes: Option<Handshakes>,
    /// Its place in the mesh.
    pub(super) port: MeshPort<Letter>,
    /// How many connections each core and each shard has.
    pub(super) crowds: Arc<Crowds>,
    /// Where the cores meet when each has its ring.
    pub(super) all_have_rings: Arc<Barrier>,
    /// To the thread that starts us.
    pub(super) reports: Sender<Report>,
    /// In a pair.
    pub(super) pair: Option<PairLink>,
}

/// A core that runs.
struct Core {
    core: usize,
    cores: usize,
    ring: Ring,
    port: MeshPort<Letter>,
    shards: Vec<Shard>,
    sockets: Sockets,
    crowds: Arc<Crowds>,
    disk: Disk,
    inputs: Receiver<Input>,
    inbox: Inbox,
    authenticator: Authenticator,
    reports: Sender<Report>,
    /// Where clients come in, and whether TLS comes first there.
    listeners: Vec<(ListenerId, bool)>,
    handshakes: Option<Handshakes>,
    complaints: Complaints,
    draining: bool,
    /// The shard that serves the next connection.
    next_shard: usize,
    /// Mail between shards of this core.
    local: VecDeque<Letter>,
    /// Connections that move between two shards of this core, and may arrive.
    arriving: Vec<ConnId>,
    /// Mail that a full mailbox refused, by core.
    held: Vec<VecDeque<Letter>>,
    /// Connections that are over, to be told of at the end of the turn: what the peer sent before
    /// is handled first, and answered.
    over: Vec<(SocketId, Over)>,
    /// As long as this core runs, the directory is ours.
    _lock: Arc<DirectoryLock>,
    questions: BTreeMap<AdminId, oneshot::Sender<AdminReply>>,
    question_next: u64,
    accept_trouble: Option<Instant>,
    /// When the shards are told the time of day again: it may be set while we run.
    time_of_day_due: Instant,
    /// When the first of the shards wants to hear of the time, as of the last wait.
    shard_due: Option<Instant>,
    pair: Option<PairPort>,
}

/// Run a core until the process ends.
///
/// # Errors
/// It could not start. What fails later ends the process.
pub(super) fn run(setup: Setup) -> Result<(), Failure> {
    if let Some(cpu) = setup.pin
        && let Err(error) = net::cpu::pin_current_thread(cpu)
    {
        tracing::warn!("core {} cannot be pinned to CPU {cpu}: {error}", setup.core);
    }
    let mut core = Core::new(setup)?;
    let started = Report::Started { core: core.core, inbox: InboxOf(core.inbox.clone()) };
    core.report(started);
    core.turns()
}

impl Core {
    fn new(setup: Setup) -> Result<Self, Failure> {
        let refused = |error: RingError| {
            let what = format!("core {} has no ring: {error}", setup.core);
            Failure::new(Cause::EngineRefused, what)
        };
        // What no shard would take stays with the kernel.
        let sockets_max = setup.sockets_max.min(setup.shards.len() * CONNECTIONS_MAX);
        let writers = setup.shards.len() * (setup.journal.writes_in_flight_max + WRITES_KEPT);
        let config = RingConfig {
            engine: setup.engine,
            writers_max: u16::try_from(writers).unwrap_or(u16::MAX).clamp(1, WRITERS_MAX),
            files_max: FILES_MAX + FILES_SPARE,
            sockets_max,
            ..RingConfig::default()
        };
        let mut ring = Ring::new(config).map_err(refused)?;
        if let Err(error) = ring.keep_locked(&setup.store.lock) {
            tracing::warn!(
                "core {}: the kernel keeps no lock ({error}): after a kill, wait until the disk is \
                 idle before the next start",
                setup.core
            );
        }
        // What one core pins must not be what another one's ring would have needed. A core that
        // gets none never comes here, and ends the process.
        setup.all_have_rings.wait();
        let buffers = setup.shards.len() * batch_buffers(setup.journal.writes_in_flight_max);
        pin_batch_buffers(&mut ring, setup.core, buffers);
        setup.port.attach(&ring);
        let bell = ring.doorbell();
        let (inbox, inputs) = Inbox::new(move || bell.knock());
        let (files, node) = (&setup.store.files, &setup.store.node);
        let pair = setup.pair.map(|link| {
            let (journal, configs) = (setup.journal.clone(), setup.shards.clone());
            PairPort::new(link, files.clone(), node.clone(), journal, configs)
        });
        let mut shards = Vec::new();
        for (index, config) in setup.shards.into_iter().enumerate() {
            shards.push(match &pair {
                Some(pair) => pair.shard(index)?,
                None => {
                    let slots = files.slots(config.shard)?;
                    let journal = setup.journal.clone();
                    let recovery =
                        Recovery::new(node, config.shard, &slots, journal).with_checkpoints();
                    Shard::new(config, recovery)
                }
            });
        }
        Ok(Self {
            core: setup.core,
            cores: setup.cores,
            ring,
            port: setup.port,
            shards,
            sockets: Sockets::new(setup.core, setup.cores, sockets_max),
            crowds: setup.crowds,
            disk: Disk::new(setup.store.files, setup.cold, inbox.clone()),
            inputs,
            inbox,
            authenticator: setup.authenticator,
            reports: setup.reports,
            listeners: Vec::new(),
            handshakes: setup.handshakes,
            complaints: Complaints::default(),
            draining: false,
            next_shard: 0,
            local: VecDeque::new(),
            arriving: Vec::new(),
            held: (0..setup.cores).map(|_| VecDeque::new()).collect(),
            over: Vec::new(),
            _lock: setup.store.lock,
            questions: BTreeMap::new(),
            question_next: 0,
            accept_trouble: None,
            time_of_day_due: clock() + TIME_OF_DAY_EVERY,
            shard_due: None,
            pair,
        })
    }

    /// The loop. It ends with the process.
    fn turns(&mut self) -> ! {
        let mut completions = Vec::new();
        let mut letters = Vec::new();
        self.poll_shards(clock());
        loop {
            let timeout = self.wait_at_most(clock());
            if let Err(error) = self.port.wait(&mut self.ring, timeout, &mut completions) {
                Failure::new(Cause::EngineRefused, format!("core {}: {error}", self.core)).die();
            }
            let now = clock();
            for completion in completions.drain(..) {
                self.complete(now, completion);
            }
            self.answer_disk(now);
            self.port.drain(&mut letters, LETTERS_PER_TURN);
            for (_, letter) in letters.drain(..) {
                self.deliver(now, letter);
            }
            for _ in 0..self.local.len() {
                let Some(letter) = self.local.pop_front() else { break };
                self.deliver(now, letter);
            }
            self.arrive_here(now);
            self.take_inputs(now);
            self.take_time(now);
            self.tell_crowds();
            self.poll_shards(now);
            self.tell_over(now);
            self.tend_links(now);
            self.post_held();
        }
    }

    /// How long the ring may sleep; `None` is until something happens.
    fn wait_at_most(&mut self, now: Instant) -> Option<Duration> {
        self.shard_due = self.shards.iter().filter_map(Shard::poll_timeout).min();
        let letters = !self.local.is_empty() || !self.arriving.is_empty();
        let at_once = letters || !self.inputs.is_empty() || self.disk.has_answers();
        if at_once {
            return Some(Duration::ZERO);
        }
        let due = match self.pair {
            None => self.shard_due,
            Some(_) => {
                let polled = self.shards.iter().filter(|shard| self.may_poll(shard));
                polled.filter_map(Shard::poll_timeout).min()
            }
        };
        let nearest = due.into_iter().chain(self.sockets.poll_timeout()).min();
        let until = nearest.map(|at| at.saturating_duration_since(now));
        let held = self.held.iter().any(|letters| !letters.is_empty()).then_some(HELD_RETRY);
        match (until, held) {
            (Some(until), Some(held)) => Some(until.min(held)),
            (until, held) => until.or(held),
        }
    }

    fn complete(&mut self, now: Instant, completion: Completion) {
        match completion {
            Completion::Accepted { listener, socket, peer } => {
                let tls = self.listeners.contains(&(listener, true));
                self.accepted(now, socket, peer, tls);
            }
            Completion::AcceptFailed { error, .. } => self.accept_failed(now, &error),
            Completion::ListenerClosed { .. } | Completion::Connected { .. } => {}
            Completion::Received { socket, lease } => {
                if self.is_link(socket) {
                    self.link_received(now, socket, &lease);
                } else {
                    self.received(now, socket, &lease);
                }
                self.ring.release(lease);
            }
            Completion::ReceiveEnded { socket, .. }
            | Completion::Sent { socket, result: Err(_), .. }
                if self.is_link(socket) =>
            {
                if let Some(pair) = &mut self.pair {
                    pair.links.broken(socket);
                }
            }
            Completion::ReceiveEnded { socket, result: Ok(()) } => {
                self.over.push((socket, Over::Ended));
            }
            Completion::Sent { socket, result: Ok(()), .. } if self.is_link(socket) => {
                if let Some(pair) = &mut self.pair {
                    pair.links.sent(socket);
                }
            }
            Completion::Sent { socket, buf, result: Ok(()) } => {
                let (home, departure) = self.sockets.sent(&mut self.ring, socket, buf);
                self.depart(departure);
                if let Some((Served { conn, shard }, buf)) = home {
                    self.handle(now, shard, Event::Sent { conn, buf });
                }
            }
            Completion::Sent { socket, result: Err(_), .. }
            | Completion::ReceiveEnded { socket, result: Err(_) } => {
                self.over.push((socket, Over::Broken));
            }
            Completion::Closed { socket } => self.sockets.closed(socket),
            Completion::HandedOver { socket, stream } => {
                if let Some(carried) = self.sockets.handed_over(socket, stream) {
                    self.post(Letter::Connection(Box::new(carried)));
                }
            }
            Completion::Disk { tag, buf, result } => {
                let (shard, done) = self.disk.complete(tag, buf, result);
                self.handle(now, shard, Event::Disk(done));
            }
        }
    }

    fn is_link(&self, socket: SocketId) -> bool {
        self.pair.as_ref().is_some_and(|pair| pair.links.has(socket))
    }

    /// A stream to the other member comes to its core. One that can't be taken is closed by its
    /// drop.
    fn link(&mut self, now: Instant, mut linked: Linked) {
        let (Some(pair), Some(stream)) = (&mut self.pair, linked.socket.take()) else { return };
        let socket = match self.ring.adopt(stream) {
            Ok(socket) => socket,
            Err(error) => return tracing::info!("a stream was lost on its way: {error}"),
        };
        let shard = shard_of(&mut self.shards, linked.shard);
        pair.links.begin(socket, linked, |event| shard.handle(now, Event::Pair(Box::new(event))));
        self.ring.start_receive(socket);
    }

    fn link_received(&mut self, now: Instant, socket: SocketId, lease: &RecvLease) {
        let Some(pair) = &mut self.pair else { return };
        let shards = &mut self.shards;
        pair.links.received(socket, self.ring.bytes(lease), |shard, event| {
            shard_of(shards, shard).handle(now, Event::Pair(Box::new(event)));
        });
    }

    /// Sends what the shards have said to the other member, and tells them which streams are over.
    fn tend_links(&mut self, now: Instant) {
        while let Some(pair) = &mut self.pair {
            pair.links.flush(&mut self.ring);
            let over = pair.links.take_over();
            if over.is_empty() {
                break;
            }
            for (shard, stream) in over {
                let event = PairEvent::Disconnected(stream);
                self.handle(now, shard, Event::Pair(Box::new(event)));
            }
            self.poll_shards(now);
        }
    }

    /// Bytes came: for a shard, or for a handshake.
    fn received(&mut self, now: Instant, socket: SocketId, lease: &RecvLease) {
        let bytes = self.ring.bytes(lease);
        match hand_on(&mut self.sockets, &mut self.shards, now, socket, bytes) {
            HandedOn::Done => {}
            HandedOn::Opened(opened, ended) => self.opened(now, socket, opened, ended),
            HandedOn::Handshake => match self.sockets.gather(socket, bytes, &self.inbox) {
                Ok(work) => {
                    if let (Some(work), Some(handshakes)) = (work, &self.handshakes) {
                        handshakes.go_on(work);
                    }
                }
                Err(peer) => {
                    self.complaints.say(now, peer, "it sent more than a handshake has");
                    self.over.push((socket, Over::Broken));
                }
            },
        }
        self.look_for_open(socket);
    }

    /// Bytes that were kept for a shard, as they came from the socket.
    fn take_kept(&mut self, now: Instant, socket: SocketId, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        match hand_on(&mut self.sockets, &mut self.shards, now, socket, bytes) {
            HandedOn::Opened(opened, ended) => self.opened(now, socket, opened, ended),
            HandedOn::Done | HandedOn::Handshake => {}
        }
    }

    /// Records were opened: TLS may have something to say, or the peer has ended or broken it.
    fn opened(
        &mut self,
        now: Instant,
        socket: SocketId,
        opened: Result<Vec<u8>, String>,
        ended: bool,
    ) {
        match opened {
            Ok(out) => {
                self.sockets.transmit(&mut self.ring, socket, out);
                if ended {
                    self.over.push((socket, Over::Ended));
                }
            }
            Err(why) => {
                if let Some(peer) = self.sockets.peer(socket) {
                    self.complaints.say(now, peer, &why);
                }
                self.over.push((socket, Over::Garbled));
            }
        }
    }

    fn handle(&mut self, now: Instant, shard: ShardId, event: Event<'_>) {
        shard_of(&mut self.shards, shard).handle(now, event);
    }

    fn answer_disk(&mut self, now: Instant) {
        while let Some((shard, done)) = self.disk.poll() {
            self.handle(now, shard, Event::Disk(done));
        }
    }

    fn deliver(&mut self, now: Instant, letter: Letter) {
        match letter {
            Letter::Mail { from, to, mail } => self.handle(now, to, Event::Mail { from, mail }),
            Letter::Connection(carried) => self.arrive(now, *carried),
        }
    }

    /// A connection comes from another core. One that can't be taken is closed by its drop.
    fn arrive(&mut self, now: Instant, carried: Carried) {
        let Carried { to, stream, peer, tls, moving, bytes, peer_ended, room } = carried;
        let socket = match self.ring.adopt(stream) {
            Ok(socket) if self.sockets.has_room(socket) => socket,
            Ok(socket) => return self.ring.close(socket),
            Err(error) => return tracing::info!("a connection was lost on its way: {error}"),
        };
        let conn = self.sockets.add(socket, to, peer, tls);
        self.handle(now, to, Event::Moved { conn, moving });
        if let Some(room) = room {
            room.take();
        }
        self.take_kept(now, socket, &bytes);
        self.ring.start_receive(socket);
        if peer_ended {
            self.over.push((socket, Over::Ended));
        }
    }

    /// Connections come from another shard of this core.
    fn arrive_here(&mut self, now: Instant) {
        for conn in std::mem::take(&mut self.arriving) {
            if let Some(landed) = self.sockets.land(&mut self.ring, conn) {
                self.handle(now, landed.to, Event::Moved { conn, moving: landed.moving });
                if let Some(room) = landed.room {
                    room.take();
                }
                self.take_kept(now, landed.socket, &landed.bytes);
                if landed.peer_ended {
                    self.over.push((landed.socket, Over::Ended));
                }
            }
        }
    }

    fn tell_crowds(&self) {
        self.crowds.tell_core(self.core, self.sockets.len());
        for shard in &self.shards {
            self.crowds.tell_shard(shard.id(), shard.connections());
        }
    }

    fn depart(&mut self, departure: Option<Departure>) {
        match departure {
            Some(Departure::Here(conn)) => self.arriving.push(conn),
            Some(Departure::Elsewhere(socket)) => self.ring.hand_over(socket),
            None => {}
        }
    }

    fn take_inputs(&mut self, now: Instant) {
        for _ in 0..INPUTS_PER_TURN {
            let Ok(input) = self.inputs.try_recv() else { break };
            match input {
                Input::Admin { shard, request, answer } => {
                    let id = AdminId(self.question_next);
                    self.question_next += 1;
                    self.questions.insert(id, answer);
                    self.handle(now, shard, Event::Admin { id, request });
                }
                Input::Verdict { shard, conn, verdict, conversation } => {
                    if let Some(kept) = self.sockets.conversation(conn) {
                        *kept = conversation;
                        self.handle(now, shard, Event::Authenticated { conn, verdict });
                        self.sockets.socket(conn).into_iter().for_each(|s| self.look_for_open(s));
                    }
                }
                Input::Cold { shard, done } => self.handle(now, shard, Event::Disk(done)),
                Input::Ping(answer) => drop(answer.send(())),
                Input::Shaken(shaken) => self.shaken(now, shaken),
                Input::Listen { addr, shared, tls } => {
                    self.listen(TcpListen { addr, reuse_port: shared, backlog: BACKLOG }, tls);
                }
                Input::Shutdown => self.shut_down(now),
                Input::Pair { shard, event } => {
                    self.handle(now, shard, Event::Pair(Box::new(event)));
                }
                Input::Link(linked) => self.link(now, *linked),
                Input::Unlink(stream) => {
                    if let Some(pair) = &mut self.pair {
                        pair.links.hang_up(stream);
                    }
                }
                Input::Look => self.report_shards(true),
                Input::CloseClients => self.close_clients(),
            }
        }
    }

    /// Nobody is served any more, but the shards stay as they are.
    fn close_clients(&mut self) {
        for (listener, _) in self.listeners.drain(..) {
            self.ring.stop_listening(listener);
        }
        self.over.extend(self.sockets.all().map(|socket| (socket, Over::Broken)));
    }

    fn may_poll(&self, shard: &Shard) -> bool {
        self.pair.as_ref().is_none_or(|pair| pair.may_poll(shard))
    }

    fn report_shards(&mut self, is_asked: bool) {
        let Some(pair) = &mut self.pair else { return };
        for (index, shard) in self.shards.iter().enumerate() {
            pair.report(index, shard, is_asked);
        }
    }

    /// What a shard asks of the other member, or of who holds the role.
    fn pair_act(&mut self, now: Instant, from: ShardId, action: PairAction) {
        let Some(pair) = &mut self.pair else { return };
        if !pair.act(from, action) {
            return;
        }
        let found = self.shards.iter().position(|shard| shard.id() == from);
        let index = found.expect("a shard of this core");
        let duty = self.shards[index].duty();
        match pair.shard(index) {
            Ok(shard) => self.shards[index] = shard,
            Err(failure) => failure.die(),
        }
        if let Some(duty) = duty {
            self.handle(now, from, Event::Pair(Box::new(PairEvent::Duty(duty))));
        }
    }

    fn listen(&mut self, listen: TcpListen, tls: bool) {
        let report = match self.ring.listen(listen) {
            Ok((listener, bound)) => {
                self.listeners.push((listener, tls));
                Report::Listening(bound)
            }
            Err(error) => Report::Failed(Failure::new(
                Cause::ListenFailed,
                format!("cannot listen on {}: {error}", listen.addr),
            )),
        };
        self.report(report);
    }

    fn shut_down(&mut self, now: Instant) {
        self.draining = true;
        for (listener, _) in self.listeners.drain(..) {
            self.ring.stop_listening(listener);
        }
        for shard in &mut self.shards {
            shard.handle(now, Event::Shutdown);
        }
    }

    fn take_time(&mut self, now: Instant) {
        if now >= self.time_of_day_due {
            self.time_of_day_due = now + TIME_OF_DAY_EVERY;
            let unix_ms = wall_clock().unix_ms;
            for shard in &mut self.shards {
                shard.handle(now, Event::WallClock(unix_ms));
            }
        }
        // What this turn has made due is due in the next, which does not wait.
        if self.shard_due.is_some_and(|at| at <= now) {
            for shard in &mut self.shards {
                if shard.poll_timeout().is_some_and(|at| at <= now) {
                    shard.handle(now, Event::Timer);
                }
            }
        }
        let late = self.sockets.handle_timeout(&mut self.ring, now);
        self.count_abandoned(late);
    }

    fn poll_shards(&mut self, now: Instant) {
        for index in 0..self.shards.len() {
            let from = self.shards[index].id();
            // The fence may come within a turn.
            while self.may_poll(&self.shards[index])
                && let Some(action) = self.shards[index].poll(now)
            {
                self.act(now, from, action);
            }
        }
        self.report_shards(false);
    }

    fn act(&mut self, now: Instant, from: ShardId, action: Action) {
        match action {
            Action::Send { conn, buf } => self.send(now, conn, buf),
            Action::PauseReceive(conn) => {
                if let Some(socket) = self.sockets.socket(conn) {
                    self.ring.pause_receive(socket);
                }
            }
            Action::ResumeReceive(conn) => {
                if let Some(socket) = self.sockets.socket(conn) {
                    self.ring.start_receive(socket);
                }
            }
            Action::Close(conn) => self.sockets.finish(&mut self.ring, now, conn),
            Action::Move { conn, to, moving } => {
                // Where there is no room it comes back as it went, and is served from here.
                let room = self.crowds.book(self.core, to);
                let to = if room.is_some() { to } else { from };
                let here = core_of(to, self.cores) == self.core;
                let leaving = Leaving { to, moving, here, room };
                let departure = self.sockets.leave(&mut self.ring, now, conn, leaving);
                self.depart(departure);
            }
            Action::Authenticate { conn, attempt } => {
                let Some(peer) = self.sockets.socket(conn).and_then(|s| self.sockets.peer(s))
                else {
                    return;
                };
                let conversation = self.sockets.conversation(conn).and_then(Option::take);
                let inbox = self.inbox.clone();
                let answer: Answer = Box::new(move |verdict, conversation| {
                    inbox.put(Input::Verdict { shard: from, conn, verdict, conversation });
                });
                self.authenticator.verify(Job { peer, attempt, conversation, answer });
            }
            Action::Disk(op) => self.disk.submit(&mut self.ring, from, op),
            Action::Mail { to, mail } => self.post(Letter::Mail { from, to, mail }),
            Action::AdminReply { id, reply } => {
                if let Some(answer) = self.questions.remove(&id) {
                    // Whoever asked may have given up.
                    drop(answer.send(reply));
                }
            }
            Action::Pair(action) => self.pair_act(now, from, *action),
            Action::Ready(report) => self.report(Report::Ready(report)),
            Action::Drained => self.report(Report::Drained),
            Action::Fatal(fatal) => Failure::from(fatal).die(),
        }
    }

    fn send(&mut self, now: Instant, conn: ConnId, buf: Vec<u8>) {
        match self.sockets.send(&mut self.ring, conn, buf) {
            Sending::Well => {}
            Sending::Worn(socket) => self.over.push((socket, Over::Worn)),
            Sending::Failed { socket, peer, why } => {
                let known = |(other, how): &(_, _)| {
                    *other == socket && matches!(how, Over::Garbled | Over::Broken)
                };
                if !self.over.iter().any(known) {
                    self.complaints.say(now, peer, &why);
                    self.over.push((socket, Over::Garbled));
                }
            }
        }
    }

    fn post(&mut self, letter: Letter) {
        let core = core_of(letter.to(), self.cores);
        if core == self.core {
            self.local.push_back(letter);
        } else if !self.held[core].is_empty() {
            self.held[core].push_back(letter);
        } else if let Err(refused) = self.port.try_send(port_of(core), letter) {
            self.held[core].push_back(refused);
        }
    }

    fn post_held(&mut self) {
        for (core, letters) in self.held.iter_mut().enumerate() {
            while let Some(letter) = letters.pop_front() {
                if let Err(refused) = self.port.try_send(port_of(core), letter) {
                    letters.push_front(refused);
                    break;
                }
            }
        }
    }

    fn tell_over(&mut self, now: Instant) {
        let mut told = false;
        for (socket, how) in std::mem::take(&mut self.over) {
            let served = match how {
                Over::Ended => self.sockets.ended(&mut self.ring, socket),
                Over::Broken => self.sockets.lost(&mut self.ring, socket),
                Over::Garbled => self.sockets.fail(&mut self.ring, now, socket),
                Over::Worn => self.sockets.served(socket),
            };
            if let Some(Served { conn, shard }) = served {
                let event = match how {
                    Over::Ended => Event::PeerEnded { conn },
                    Over::Broken | Over::Garbled => Event::ConnectionLost { conn },
                    Over::Worn => Event::MustEnd { conn, why: WORN },
                };
                self.handle(now, shard, event);
                told = true;
            }
        }
        if told {
            self.poll_shards(now);
        }
    }

    /// Whoever started us is gone only when the process is going too.
    fn report(&self, report: Report) {
        drop(self.reports.send(report));
    }
}

/// Stock this thread's batch buffers with memory that the kernel holds pinned, so that a write from
/// it need not pin it first. Where the limit on locked memory refuses, writes just cost more.
fn pin_batch_buffers(ring: &mut Ring, core: usize, buffers: usize) {
    let bytes = BATCH_BUFFER_BYTES;
    let Ok(pages) = Pages::new(buffers * bytes) else { return };
    let (memory, region) = pages.leak();
    if let MemoryUse::Unregistered(why) = ring.register_memory(&[region]) {
        tracing::info!("core {core} writes from memory that is not pinned: {why}");
    }
    for buffer in memory.chunks_exact_mut(bytes) {
        // A buffer that is dropped waits for its thread's next journal to take one of its size.
        drop(BlockBuf::from_static(buffer, bytes));
    }
}

/// What became of bytes from a socket.
enum HandedOn {
    /// They went to a shard, or are kept, or dropped.
    Done,
    /// They were records, opened for a shard: what TLS has to say or why it failed, and whether the
    /// peer has ended.
    Opened(Result<Vec<u8>, String>, bool),
    /// They are of a handshake, and still to be taken.
    Handshake,
}

/// Hands bytes from a socket on to whom they belong.
fn hand_on(
    sockets: &mut Sockets,
    shards: &mut [Shard],
    now: Instant,
    socket: SocketId,
    bytes: &[u8],
) -> HandedOn {
    match sockets.inbound(socket) {
        Inbound::Plain(Served { conn, shard }) => {
            shard_of(shards, shard).handle(now, Event::Received { conn, bytes });
            HandedOn::Done
        }
        Inbound::Sealed(Served { conn, shard }, channel) => {
            let shard = shard_of(shards, shard);
            let hear = |bytes: &[u8]| shard.handle(now, Event::Received { conn, bytes });
            let opened = channel.open(bytes, hear);
            shard.hold_sealed(now, conn, channel.held_bytes());
            HandedOn::Opened(opened, channel.has_peer_ended())
        }
        Inbound::Handshake => HandedOn::Handshake,
        Inbound::Leaving(kept) => {
            kept.extend_from_slice(bytes);
            HandedOn::Done
        }
        Inbound::Nobody => HandedOn::Done,
    }
}

/// The shard of this number, among those of a core.
///
/// # Panics
/// If it lives elsewhere: then somebody does not know `core_of`.
fn shard_of(shards: &mut [Shard], id: ShardId) -> &mut Shard {
    let found = shards.iter_mut().find(|shard| shard.id() == id);
    found.expect("an event for a shard of this core")
}

fn port_of(core: usize) -> PortId {
    PortId(u16::try_from(core).expect("a mesh has at most 1024 ports"))
}
