//! The smallest host of shards: a disk and mail in memory, clients that speak AMQP.
//!
//! ```text
//!   Client (amqp engine) ══ bytes ══▶ Shard ──▶ Disk      answers at once, or when `hold` ends
//!                                      │ ▲
//!                                      └─┴── mail, in order
//! ```
//! `settle` carries everything to and fro until nothing moves. Time stands still but for `pass`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use amqp::connection::{Config, Connection, Event as Amqp, Sasl, Side};
use amqp::delivery::Outcome;
use amqp::link::{LinkId, LinkSource, LinkTarget, NewLink};
use amqp::sasl::{Mechanism, Mechanisms};
use amqp::session::SessionId;
use broker::access::{Access, LogIn};
use broker::admin::{AdminId, AdminReply, AdminRequest, ShardStats};
use broker::clock::WallClock;
use broker::event::RecoveryReport;
use broker::settings::Settings;
use broker::{Action, ConnId, Event, Fatal, Mail, Moving, Shard, ShardConfig};
use journal::{
    DiskDone, DiskError, DiskOp, FileId, Format, Geometry, JournalUuid, Level, LogId,
    NodeSuperblock, Recovery, ShardId, SlotFile,
};

pub(crate) const SEGMENT_BYTES: u64 = 64 << 10;
/// The time of day when a process starts.
pub(crate) const UNIX_MS: u64 = 1_700_000_000_000;

/// What a test wants otherwise than usual.
#[derive(Clone)]
pub(crate) struct Wish {
    pub(crate) shards: u16,
    pub(crate) level: Level,
    pub(crate) backup: bool,
    pub(crate) memory_bytes_max: u64,
    pub(crate) message_bytes_max: u64,
    pub(crate) segments_max: u32,
    /// Messages of several transfers that are longer come in parts of so many bytes.
    pub(crate) part_bytes: usize,
    pub(crate) settings: Settings,
    pub(crate) access: Access,
}

impl Default for Wish {
    fn default() -> Self {
        Self {
            shards: 1,
            level: Level::Sync,
            backup: false,
            memory_bytes_max: 1 << 30,
            message_bytes_max: 16 << 20,
            segments_max: 16,
            part_bytes: usize::MAX,
            settings: Settings::default(),
            access: Access::default(),
        }
    }
}

#[derive(Default)]
struct Disk {
    files: BTreeMap<FileId, Vec<u8>>,
}

impl Disk {
    fn run(&mut self, op: DiskOp) -> DiskDone {
        match op {
            DiskOp::Write { id, file, offset, buf } => {
                let offset = offset as usize;
                let bytes = self.files.get_mut(&file).expect("written ahead");
                if let FileId::Checkpoint { .. } = file {
                    bytes.resize(bytes.len().max(offset + buf.len()), 0);
                }
                bytes[offset..offset + buf.len()].copy_from_slice(buf.as_slice());
                DiskDone { id, result: Ok(buf.len() as u32), buf: Some(buf) }
            }
            DiskOp::Read { id, file, offset, mut buf } => {
                let bytes = self.files.entry(file).or_default();
                let from = (offset as usize).min(bytes.len());
                let len = buf.len().min(bytes.len() - from);
                buf.as_mut_slice()[..len].copy_from_slice(&bytes[from..from + len]);
                DiskDone { id, result: Ok(len as u32), buf: Some(buf) }
            }
            DiskOp::Prewrite { id, file, bytes } => {
                self.files.insert(file, vec![0; bytes as usize]);
                DiskDone { id, result: Ok(0), buf: None }
            }
            DiskOp::Sync { id, .. } => DiskDone { id, result: Ok(0), buf: None },
        }
    }

    fn format(&mut self, shards: u16) -> NodeSuperblock {
        let geometry = Geometry { segment_bytes: SEGMENT_BYTES, shards };
        let mut format = Format::new(LogId([7; 16]), JournalUuid([8; 16]), geometry);
        loop {
            while let Some(op) = format.poll_disk() {
                let done = self.run(op);
                format.handle_disk(done);
            }
            if let Some(outcome) = format.poll_outcome() {
                return outcome.expect("memory does not fail");
            }
        }
    }

    fn slots(&self, of: ShardId) -> Vec<SlotFile> {
        let segment = |(file, bytes): (&FileId, &Vec<u8>)| match file {
            FileId::Segment { shard, slot } if *shard == of => {
                Some(SlotFile { slot: *slot, bytes: bytes.len() as u64 })
            }
            FileId::Segment { .. }
            | FileId::NodeSuperblock
            | FileId::ShardSuperblock(_)
            | FileId::Checkpoint { .. } => None,
        };
        self.files.iter().filter_map(segment).collect()
    }
}

/// One client: its engine, and what it heard.
pub(crate) struct Client {
    pub(crate) amqp: Connection,
    pub(crate) shard: usize,
    session: Option<SessionId>,
    /// Everything that its engine told, in order.
    pub(crate) heard: Vec<Amqp>,
    /// Whether it takes the bytes that are sent to it.
    pub(crate) reads: bool,
    unread: VecDeque<Vec<u8>>,
    pub(crate) paused: bool,
    /// The shard has said `Close`.
    pub(crate) closed: bool,
}

impl Client {
    fn hear(&mut self, now: Instant, bytes: &[u8]) {
        self.amqp.handle_bytes(now, bytes);
        while let Some(event) = self.amqp.poll_event() {
            self.heard.push(event);
        }
    }
}

/// What the disk does with the writes of batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writes {
    /// Answered at once.
    Done,
    /// Kept until they are let go; a crash loses them.
    Held,
    /// And reads of the log are kept with them.
    HeldWithReads,
}

/// What the disk does with reads while nothing else does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reads {
    /// Answered at once.
    Done,
    /// Kept until they are let go.
    Held,
}

pub(crate) struct Host {
    /// When it is [`UNIX_MS`].
    base: Instant,
    pub(crate) now: Instant,
    pub(crate) wish: Wish,
    node: NodeSuperblock,
    disk: Disk,
    pub(crate) writes: Writes,
    pub(crate) reads: Reads,
    held: VecDeque<(usize, DiskOp)>,
    held_reads: VecDeque<(usize, DiskOp)>,
    /// New files find no space.
    pub(crate) no_space: bool,
    /// Neither do the pages of a checkpoint.
    pub(crate) no_checkpoint_space: bool,
    /// What each start has said, by shard.
    pub(crate) reports: Vec<(usize, RecoveryReport)>,
    pub(crate) shards: Vec<Shard>,
    pub(crate) clients: Vec<Client>,
    pub(crate) ready: usize,
    pub(crate) drained: usize,
    pub(crate) fatal: Option<Fatal>,
    pub(crate) replies: Vec<(AdminId, AdminReply)>,
    /// Mail between these two waits until the test lets it go.
    pub(crate) mail_held: Option<(ShardId, ShardId)>,
    letters: VecDeque<(ShardId, ShardId, Mail)>,
    /// The host drops connections that leave their shard.
    pub(crate) drops_moving: bool,
    /// How often a shard has told another of its pressure.
    pub(crate) pressure_letters: usize,
    /// How many copies one letter has told of at a start, at most.
    pub(crate) copies_told_max: usize,
    /// How often links to a queue that went had to be looked for.
    pub(crate) unlisted_letters: usize,
    moved: bool,
}

impl Host {
    /// A node that serves.
    pub(crate) fn new(wish: Wish) -> Self {
        let mut host = Self::stopped(wish);
        host.start();
        assert_eq!(host.ready, usize::from(host.wish.shards));
        host
    }

    /// A formatted directory, and nobody who serves it.
    pub(crate) fn stopped(wish: Wish) -> Self {
        let mut disk = Disk::default();
        let node = disk.format(wish.shards);
        let now = start();
        Self {
            base: now,
            now,
            wish,
            node,
            disk,
            writes: Writes::Done,
            reads: Reads::Done,
            held: VecDeque::new(),
            held_reads: VecDeque::new(),
            no_space: false,
            no_checkpoint_space: false,
            reports: Vec::new(),
            shards: Vec::new(),
            clients: Vec::new(),
            ready: 0,
            drained: 0,
            fatal: None,
            replies: Vec::new(),
            mail_held: None,
            letters: VecDeque::new(),
            drops_moving: false,
            pressure_letters: 0,
            copies_told_max: 0,
            unlisted_letters: 0,
            moved: false,
        }
    }

    /// Builds the shards without giving them a turn.
    pub(crate) fn build(&mut self) {
        let journal =
            journal::Config { segments_max: self.wish.segments_max, ..journal::Config::default() };
        for shard in (0..self.wish.shards).map(ShardId) {
            let slots = self.disk.slots(shard);
            let recovery =
                Recovery::new(&self.node, shard, &slots, journal.clone()).with_checkpoints();
            self.shards.push(Shard::new(self.config(shard), recovery));
        }
    }

    fn config(&self, shard: ShardId) -> ShardConfig {
        ShardConfig {
            shard,
            shards: self.wish.shards,
            segment_bytes: SEGMENT_BYTES,
            level: self.wish.level,
            memory_bytes_max: self.wish.memory_bytes_max,
            amqp: Config {
                container_id: "laelaps".to_owned(),
                max_message_size: self.wish.message_bytes_max,
                part_bytes: self.wish.part_bytes,
                gather_bytes_max: self.wish.part_bytes as u64,
                sasl: Sasl::Server { mechanisms: Mechanisms::ANONYMOUS, bare: true },
                ..Config::default()
            },
            backup: self.wish.backup,
            segments_max: u64::from(self.wish.segments_max),
            disk_bound: Duration::from_secs(30),
            clock: WallClock { at: self.now, unix_ms: self.unix_ms() },
            settings: Arc::new(self.wish.settings.clone()),
            access: self.wish.access.clone(),
            canaries: broker::canary::Canaries::default(),
        }
    }

    fn unix_ms(&self) -> u64 {
        UNIX_MS + self.now.duration_since(self.base).as_millis() as u64
    }

    pub(crate) fn start(&mut self) {
        self.build();
        self.settle();
    }

    /// The process is killed and the machine loses power: held writes are gone. Then it starts.
    pub(crate) fn crash(&mut self) {
        self.shards.clear();
        self.clients.clear();
        self.held.clear();
        self.letters.clear();
        (self.ready, self.drained) = (0, 0);
        self.writes = Writes::Done;
        self.start();
        assert_eq!(self.fatal, None);
        assert_eq!(self.ready, usize::from(self.wish.shards));
    }

    /// A shard's files as they are now.
    pub(crate) fn files_of(&self, of: ShardId) -> Vec<(FileId, Vec<u8>)> {
        let its = |file: &FileId| match file {
            FileId::Segment { shard, .. }
            | FileId::ShardSuperblock(shard)
            | FileId::Checkpoint { shard, .. } => *shard == of,
            FileId::NodeSuperblock => false,
        };
        let files = self.disk.files.iter().filter(|(file, _)| its(file));
        files.map(|(file, bytes)| (*file, bytes.clone())).collect()
    }

    /// Puts files back as they were.
    pub(crate) fn put_files(&mut self, files: Vec<(FileId, Vec<u8>)>) {
        self.disk.files.extend(files);
    }

    /// Carries everything to and fro until nothing moves.
    pub(crate) fn settle(&mut self) {
        loop {
            self.moved = false;
            for shard in 0..self.shards.len() {
                while let Some(action) = self.shards[shard].poll(self.now) {
                    self.moved = true;
                    self.act(shard, action);
                }
            }
            for (from, to, mail) in std::mem::take(&mut self.letters) {
                if self.mail_held == Some((from, to)) {
                    self.letters.push_back((from, to, mail));
                } else {
                    self.moved = true;
                    self.event(usize::from(to.0), Event::Mail { from, mail });
                }
            }
            for client in 0..self.clients.len() {
                self.exchange(client);
            }
            if !self.moved {
                return;
            }
        }
    }

    /// A byte of every eighth block of shard 0's log, from this place on, is another.
    pub(crate) fn flip(&mut self, from: usize) {
        let segment = |(file, bytes): (&FileId, _)| match file {
            FileId::Segment { shard: ShardId(0), slot } => Some((*slot, bytes)),
            FileId::Segment { .. }
            | FileId::NodeSuperblock
            | FileId::ShardSuperblock(_)
            | FileId::Checkpoint { .. } => None,
        };
        let files = self.disk.files.iter_mut();
        let mut segments: Vec<_> =
            files.filter_map(|(file, bytes)| segment((file, bytes))).collect();
        segments.sort_unstable_by_key(|(slot, _)| *slot);
        for (_, bytes) in segments.into_iter().skip(from / SEGMENT_BYTES as usize) {
            bytes.iter_mut().skip(200).step_by(8 * 4096).for_each(|byte| *byte ^= 1);
        }
    }

    /// Time passes, in steps, with everything that falls due.
    pub(crate) fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            self.settle();
            let due = self.shards.iter().filter_map(Shard::poll_timeout).min();
            match due.filter(|at| *at <= until) {
                Some(at) => self.now = self.now.max(at),
                None => break,
            }
            for shard in 0..self.shards.len() {
                if self.shards[shard].poll_timeout().is_some_and(|at| at <= self.now) {
                    self.event(shard, Event::Timer);
                }
            }
        }
        self.now = until;
        self.settle();
    }

    /// Lets the writes that were kept go.
    pub(crate) fn let_go(&mut self) {
        self.writes = Writes::Done;
        for (shard, op) in std::mem::take(&mut self.held) {
            let done = self.disk.run(op);
            self.event(shard, Event::Disk(done));
        }
        self.settle();
    }

    /// Lets the oldest write that was kept go; the others stay.
    pub(crate) fn let_go_first(&mut self) {
        let (shard, op) = self.held.pop_front().expect("a write is kept");
        let done = self.disk.run(op);
        self.event(shard, Event::Disk(done));
        self.settle();
    }

    /// How many reads are kept.
    pub(crate) fn held_reads(&self) -> usize {
        self.held_reads.len()
    }

    /// Lets the reads that were kept go.
    pub(crate) fn let_reads_go(&mut self) {
        self.reads = Reads::Done;
        for (shard, op) in std::mem::take(&mut self.held_reads) {
            let done = self.disk.run(op);
            self.event(shard, Event::Disk(done));
        }
        self.settle();
    }

    /// Whether a write is kept.
    pub(crate) fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    pub(crate) fn event(&mut self, shard: usize, event: Event<'_>) {
        self.shards[shard].handle(self.now, event);
    }

    pub(crate) fn ask(&mut self, shard: usize, request: AdminRequest) -> AdminId {
        let id = AdminId(self.replies.len() as u64 + 1000);
        self.event(shard, Event::Admin { id, request });
        id
    }

    pub(crate) fn stats(&mut self, shard: usize) -> ShardStats {
        self.ask(shard, AdminRequest::Stats);
        self.settle();
        match self.replies.pop() {
            Some((_, AdminReply::Stats(stats))) => *stats,
            other => panic!("{other:?}"),
        }
    }

    fn act(&mut self, shard: usize, action: Action) {
        match action {
            Action::Disk(op) => self.disk_op(shard, op),
            Action::Send { conn, buf } => {
                let client = &mut self.clients[conn.0 as usize];
                client.unread.push_back(buf);
            }
            Action::PauseReceive(conn) => self.clients[conn.0 as usize].paused = true,
            Action::ResumeReceive(conn) => self.clients[conn.0 as usize].paused = false,
            Action::Close(conn) => self.clients[conn.0 as usize].closed = true,
            Action::Move { conn, to, moving } => self.carry(conn, to, moving),
            Action::Authenticate { .. } => panic!("nobody logs in here"),
            Action::Mail { to, mail } => {
                self.pressure_letters += usize::from(matches!(mail, Mail::Pressure(_)));
                if let Mail::Arrivals(arrivals) = &mail {
                    self.copies_told_max = self.copies_told_max.max(arrivals.copies.len());
                }
                let is_unlisted = matches!(mail, Mail::Deleted { is_listed: false, .. });
                self.unlisted_letters += usize::from(is_unlisted);
                let from = self.shards[shard].id();
                self.letters.push_back((from, to, mail));
            }
            Action::AdminReply { id, reply } => self.replies.push((id, reply)),
            Action::Ready(report) => {
                self.ready += 1;
                self.reports.push((shard, report));
            }
            Action::Pair(said) => panic!("of no pair: {said:?}"),
            Action::Drained => self.drained += 1,
            Action::Fatal(fatal) => self.fatal = Some(fatal),
        }
    }

    /// Sends that are under way end without anybody hearing of it.
    fn carry(&mut self, conn: ConnId, to: ShardId, moving: Box<Moving>) {
        let now = self.now;
        let client = &mut self.clients[conn.0 as usize];
        if self.drops_moving {
            client.closed = true;
            return;
        }
        for buf in std::mem::take(&mut client.unread) {
            client.hear(now, &buf);
        }
        client.shard = usize::from(to.0);
        client.paused = false;
        self.event(usize::from(to.0), Event::Moved { conn, moving });
    }

    fn disk_op(&mut self, shard: usize, op: DiskOp) {
        match (&op, self.writes) {
            (DiskOp::Prewrite { id, .. }, _) if self.no_space => {
                let done = DiskDone { id: *id, result: Err(DiskError::NoSpace), buf: None };
                self.event(shard, Event::Disk(done));
            }
            (DiskOp::Write { file: FileId::Checkpoint { .. }, .. }, _)
                if self.no_checkpoint_space =>
            {
                let error = DiskError::Short { bytes: 0 };
                let done = DiskDone { id: op.id(), result: Err(error), buf: None };
                self.event(shard, Event::Disk(done));
            }
            (DiskOp::Read { .. }, Writes::HeldWithReads)
            | (
                DiskOp::Write { file: FileId::Segment { .. }, .. },
                Writes::Held | Writes::HeldWithReads,
            ) => {
                self.held.push_back((shard, op));
            }
            (DiskOp::Read { .. }, _) if self.reads == Reads::Held => {
                self.held_reads.push_back((shard, op));
            }
            (_, Writes::Done | Writes::Held | Writes::HeldWithReads) => {
                let done = self.disk.run(op);
                self.event(shard, Event::Disk(done));
            }
        }
    }

    fn exchange(&mut self, at: usize) {
        let now = self.now;
        let client = &mut self.clients[at];
        let conn = ConnId(at as u64);
        while client.reads
            && let Some(buf) = client.unread.pop_front()
        {
            self.moved = true;
            client.hear(now, &buf);
            if !client.closed {
                self.shards[client.shard].handle(now, Event::Sent { conn, buf });
            }
        }
        let mut bytes = Vec::new();
        if !client.paused && !client.closed && client.amqp.poll_transmit(&mut bytes) {
            self.moved = true;
            self.shards[client.shard].handle(now, Event::Received { conn, bytes: &bytes });
        }
    }

    /// Bytes that are on their way to a client that does not take them.
    pub(crate) fn unread_bytes(&self, at: usize) -> usize {
        self.clients[at].unread.iter().map(Vec::len).sum()
    }

    /// A client takes the bytes that were sent to it, and does nothing with them.
    pub(crate) fn skim(&mut self, at: usize) {
        while self.skim_one(at) {}
    }

    /// The same with one send; whether there was one.
    pub(crate) fn skim_one(&mut self, at: usize) -> bool {
        let Some(buf) = self.clients[at].unread.pop_front() else { return false };
        self.event(self.clients[at].shard, Event::Sent { conn: ConnId(at as u64), buf });
        self.settle();
        true
    }

    /// A client with a session, connected to this shard, where it stays.
    pub(crate) fn connect(&mut self, shard: usize) -> usize {
        self.connect_as(shard, false, None)
    }

    /// A client with a session, connected to this shard; it may move to its first queue's.
    pub(crate) fn connect_to_move(&mut self, shard: usize) -> usize {
        self.connect_as(shard, true, None)
    }

    /// A client with a session that has logged in as a user.
    pub(crate) fn connect_user(&mut self, shard: usize, may_move: bool, user: &str) -> usize {
        self.connect_as(shard, may_move, Some(user))
    }

    fn connect_as(&mut self, shard: usize, may_move: bool, user: Option<&str>) -> usize {
        let at = self.clients.len();
        let mechanisms = Mechanisms::NONE.with(Mechanism::External, true);
        let (client_sasl, login) = match user {
            None => (Sasl::Anonymous, LogIn::default()),
            Some(user) => {
                let sasl = Some(Sasl::Server { mechanisms, bare: false });
                let certificate_user = Some(user.to_owned());
                (Sasl::External, LogIn { sasl, certificate_user, ..LogIn::default() })
            }
        };
        let config = Config {
            container_id: format!("client-{at}"),
            max_message_size: 64 << 20,
            sasl: client_sasl,
            idle_time_out: None,
            ..Config::default()
        };
        self.accept(shard, may_move, config, login);
        self.settle();
        self.begin_first(at);
        at
    }

    /// A client whose session takes one frame, and no more while that is not settled.
    pub(crate) fn connect_narrow(&mut self, shard: usize) -> usize {
        let config = Config {
            container_id: "narrow".to_owned(),
            sasl: Sasl::Anonymous,
            idle_time_out: None,
            incoming_window: 1,
            unsettled_incoming_max: 1,
            ..Config::default()
        };
        let at = self.accept(shard, false, config, LogIn::default());
        self.settle();
        self.begin_first(at);
        at
    }

    /// A client that sends frames of 2 KiB.
    pub(crate) fn connect_with_small_frames(&mut self, shard: usize) -> usize {
        let config = Config {
            container_id: format!("small-{}", self.clients.len()),
            sasl: Sasl::Anonymous,
            idle_time_out: None,
            max_frame_size: 2048,
            ..Config::default()
        };
        let at = self.accept(shard, false, config, LogIn::default());
        self.settle();
        self.begin_first(at);
        at
    }

    /// The session that `session` names.
    pub(crate) fn begin_first(&mut self, at: usize) {
        self.clients[at].session = Some(self.begin(at));
    }

    /// A client connects, and nothing moves yet.
    pub(crate) fn accept(
        &mut self,
        shard: usize,
        may_move: bool,
        config: Config,
        login: LogIn,
    ) -> usize {
        let at = self.clients.len();
        self.clients.push(Client {
            amqp: Connection::new(config, Side::Client, self.now),
            shard,
            session: None,
            heard: Vec::new(),
            reads: true,
            unread: VecDeque::new(),
            paused: false,
            closed: false,
        });
        let peer = format!("memory-{at}");
        self.event(shard, Event::Accepted { conn: ConnId(at as u64), peer, may_move, login });
        at
    }

    pub(crate) fn begin(&mut self, at: usize) -> SessionId {
        let session = self.clients[at].amqp.begin().expect("it is open");
        self.settle();
        session
    }

    pub(crate) fn session(&self, at: usize) -> SessionId {
        self.clients[at].session.expect("it has one")
    }

    pub(crate) fn link(name: &str, queue: &str, receiver: bool) -> NewLink {
        let (source, target) = if receiver { (queue, "client") } else { ("client", queue) };
        NewLink {
            name: name.to_owned(),
            source: LinkSource::at(source),
            target: LinkTarget::at(target),
            ..NewLink::default()
        }
    }

    pub(crate) fn sender(&mut self, at: usize, queue: &str) -> LinkId {
        let name = format!("to-{queue}-{}", self.clients[at].heard.len());
        let session = self.session(at);
        let link = Self::link(&name, queue, false);
        let link = self.clients[at].amqp.attach_sender(session, link).expect("attached");
        self.settle();
        link
    }

    pub(crate) fn receiver(&mut self, at: usize, queue: &str, credit: u32) -> LinkId {
        let session = self.session(at);
        self.receiver_on(at, session, queue, credit)
    }

    pub(crate) fn receiver_on(
        &mut self,
        at: usize,
        on: SessionId,
        queue: &str,
        credit: u32,
    ) -> LinkId {
        let name = format!("from-{queue}-{}", self.clients[at].heard.len());
        let link = Self::link(&name, queue, true);
        let link = self.clients[at].amqp.attach_receiver(on, link).expect("attached");
        self.clients[at].amqp.grant_credit(link, credit);
        self.settle();
        link
    }

    /// Sends one message with a body of so many bytes; false where the engine has no credit.
    pub(crate) fn send(&mut self, at: usize, link: LinkId, bytes: usize, settled: bool) -> bool {
        let message = message(bytes);
        let sent = self.clients[at].amqp.send(link, &[&message], settled).is_ok();
        self.settle();
        sent
    }

    /// The outcomes that a client heard for what it sent.
    pub(crate) fn outcomes(&self, at: usize) -> Vec<Outcome> {
        let outcome = |event: &Amqp| {
            if let Amqp::Disposition { outcome, .. } = event { outcome.clone() } else { None }
        };
        self.clients[at].heard.iter().filter_map(outcome).collect()
    }

    /// What a client has been sent: link, delivery, message.
    pub(crate) fn deliveries(
        &self,
        at: usize,
    ) -> Vec<(LinkId, amqp::delivery::DeliveryId, Vec<u8>)> {
        let transfer = |event: &Amqp| {
            let Amqp::Transfer { link, delivery, message, .. } = event else { return None };
            Some((*link, *delivery, message.to_vec()))
        };
        self.clients[at].heard.iter().filter_map(transfer).collect()
    }

    /// Accepts what comes until nothing more does, each time after waiting for so long.
    pub(crate) fn settle_all(&mut self, at: usize, wait: Duration) {
        let mut settled = 0;
        loop {
            self.pass(wait);
            let came = self.deliveries(at);
            for (link, delivery, _) in &came[settled..] {
                self.clients[at].amqp.settle(*link, *delivery, Outcome::Accepted);
            }
            if settled == came.len() {
                return;
            }
            settled = came.len();
        }
    }

    pub(crate) fn count(&self, at: usize, wanted: impl Fn(&Amqp) -> bool) -> usize {
        self.clients[at].heard.iter().filter(|event| wanted(event)).count()
    }

    /// The client's socket is gone.
    pub(crate) fn lose(&mut self, at: usize) {
        let shard = self.clients[at].shard;
        if !self.clients[at].closed {
            self.event(shard, Event::ConnectionLost { conn: ConnId(at as u64) });
        }
        self.clients[at].closed = true;
        self.settle();
    }

    pub(crate) fn shut_down(&mut self) {
        for shard in 0..self.shards.len() {
            self.event(shard, Event::Shutdown);
        }
        self.settle();
    }

    /// Messages of all shards that are in the log and not gone.
    pub(crate) fn messages(&self) -> u64 {
        self.shards.iter().map(|shard| shard.state().messages()).sum()
    }

    /// Nothing is left behind: no link, no message, no byte, nothing that waits.
    pub(crate) fn assert_clean(&self) {
        for shard in &self.shards {
            assert_eq!(shard.links(), 0, "links of {:?}", shard.id());
            assert_eq!(shard.state().messages(), 0);
            assert_eq!(shard.state().memory_bytes(), 0);
            assert!(shard.is_quiet());
        }
    }
}

/// A message of one data section of so many bytes.
pub(crate) fn message(bytes: usize) -> Vec<u8> {
    let mut message = vec![0x00, 0x53, 0x75, 0xb0];
    message.extend((bytes as u32).to_be_bytes());
    message.extend(std::iter::repeat_n(b'x', bytes));
    message
}

#[expect(clippy::disallowed_methods, reason = "time stands still here; it needs a moment to")]
fn start() -> Instant {
    Instant::now()
}
