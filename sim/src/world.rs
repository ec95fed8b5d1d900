//! A whole node and its clients, under one seed and one clock.
//!
//! ```text
//!             ┌──────────── Node: shards, mail between them ─────────────┐
//!   clients ──┤ bytes, cut anywhere       │ mail, delayed, in order      ├── disk
//!             └───────────────────────────┴──────────────────────────────┘
//!   the next event is the earliest of: what is due, the disk's answers, the shards' deadlines
//!
//!   Work ── crashes, power cuts, stops, restarts ──▶ Leave ──▶ Drain ──▶ Part ──▶ the last check
//! ```
//! A run is over when every queue is drained, every client gone and every checker content. What ends
//! it before is a broken promise, a death without cause, or a world that stands still.
//!
//! Invariants: time only moves forward; the same options give the same events, whose hash is the
//! run's trace; mail between two shards keeps its order; a connection's bytes keep theirs; nothing
//! that a dead process had under way ever reaches its successor.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

use broker::admin::{AdminId, AdminReply, AdminRequest, ShardStats};
use broker::pending::BackupMarks;
use broker::{Action, ConnId, Event, Fatal, Mail};
use journal::{DiskDone, DiskOp, JournalUuid, LogId, Lsn, ShardId};

use crate::audit::Audit;
use crate::check::{Checks, QueueView, Seen, Stamp};
use crate::client::{Client, Desk, Mode, Wish};
use crate::disk::{Crash, Disk, Fate, Owner, Profile};
use crate::hits::{Hit, Hits};
use crate::plan::{Canary, Options, Plan};
use crate::rng::Rng;

mod node;

use node::Node;

const LOG_ID: LogId = LogId([0x5a; 16]);
const JOURNAL_UUID: JournalUuid = JournalUuid([0xa5; 16]);
/// Bytes of a segment: small, so that segments are used again and again.
const SEGMENT_BYTES: u64 = 64 * 1024;
/// Owner of the host's own disk operations.
const HOST: Owner = Owner(u16::MAX);
/// Longest that the end of a run may take.
const REST_MAX: Duration = Duration::from_secs(120);
/// Longest that a start may take.
const START_MAX: Duration = Duration::from_secs(10);
/// Events after which a run is stuck.
const EVENTS_MAX: u64 = 3_000_000;

/// What a run was like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Events that happened.
    pub events: u64,
    /// A hash over all of them.
    pub trace: u64,
    /// What was hit.
    pub hits: Hits,
    /// Letters sent.
    pub sent: u64,
    /// Deliveries.
    pub deliveries: u64,
    /// Moments of the disk at which it could have been crashed.
    pub moments: u64,
    /// Virtual time that passed.
    pub took: Duration,
}

/// Why a run failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The promise and how it was broken.
    pub what: String,
    /// After how many events.
    pub events: u64,
    /// After how much virtual time.
    pub after: Duration,
    /// What happened to the letter that was followed, and all starts and ends.
    pub story: Vec<String>,
}

/// Something that will happen.
#[derive(Debug)]
enum Due {
    /// Bytes reach the broker.
    ToBroker(ConnId),
    /// Bytes reach a client.
    ToClient(ConnId),
    /// A send has ended.
    Sent(ConnId, Vec<u8>),
    /// The oldest mail between two shards arrives.
    Mail { from: ShardId, to: ShardId },
    /// A socket is known to be dead.
    Lost(ConnId, ShardId),
    /// A connection is accepted.
    Accept(ConnId),
    /// A client's turn.
    Tick(usize),
    /// The host gets round to polling a shard.
    Poll(ShardId),
    /// The second member answers.
    Backup,
    /// The process starts.
    Start,
}

#[derive(Debug)]
struct Pipe {
    client: usize,
    shard: ShardId,
    accepted: bool,
    paused: bool,
    /// The broker has closed it; the client hears that after the last byte.
    closing: bool,
    to_broker: VecDeque<u8>,
    to_broker_due: bool,
    to_client: VecDeque<(Vec<u8>, Rc<Stamp>)>,
    to_client_due: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Work,
    Leave,
    Drain,
    Part,
    Over,
}

/// A node, its disk, its clients.
#[derive(Debug)]
pub struct World {
    options: Options,
    plan: Plan,
    base: Instant,
    now: Instant,
    rng: Rng,
    phase: Phase,
    phase_since: Instant,
    disk: Disk,
    audit: Audit,
    node: Option<Node>,
    process: u64,
    crash_at: Option<(u64, Crash)>,
    stopping: bool,
    started: Instant,
    was_clean: bool,
    /// A death is to be expected: the disk failed it.
    excuse: bool,
    due: BTreeMap<(Instant, u64), (u64, Due)>,
    next_due: u64,
    next_conn: u64,
    pipes: BTreeMap<ConnId, Pipe>,
    mail: BTreeMap<(ShardId, ShardId), VecDeque<Mail>>,
    clients: Vec<Client>,
    desk: Desk,
    checks: Checks,
    hits: Hits,
    events: u64,
    trace: u64,
    backup: Vec<BackupMarks>,
    story: Vec<String>,
}

/// Carries out a run.
///
/// # Errors
/// The promise that was broken.
pub fn run(base: Instant, options: &Options) -> Result<Report, Failure> {
    let mut world = World::new(base, options);
    match world.live() {
        Ok(()) => {
            let mut hits = world.hits.clone();
            hits.merge(world.disk.hits());
            Ok(Report {
                events: world.events,
                trace: world.trace,
                hits,
                sent: world.desk.sent,
                deliveries: world.desk.deliveries,
                moments: world.disk.moments(),
                took: world.now - world.base,
            })
        }
        Err(what) => Err(Failure {
            what,
            events: world.events,
            after: world.now - world.base,
            story: world.story,
        }),
    }
}

impl World {
    fn new(base: Instant, options: &Options) -> Self {
        let mut plan = Plan::draw(options.seed);
        if options.crash.is_some() {
            (plan.crash_every, plan.crash_at_ready, plan.spoilt) = (0, 0, 0);
            plan.disk = Profile { bytes_max: plan.disk.bytes_max, ..Profile::sound() };
        }
        let seed = options.seed;
        let client = |(index, habits): (usize, &crate::client::Habits)| {
            Client::new(index, Rng::stream(seed, "client", index as u64), habits.clone())
        };
        let clients: Vec<Client> = plan.clients.iter().enumerate().map(client).collect();
        let mut checks = Checks::default();
        checks.facts.backup = plan.backup;
        checks.facts.names.clone_from(&plan.queues);
        let mut world = Self {
            options: options.clone(),
            base,
            now: base,
            rng: Rng::stream(seed, "world", 0),
            phase: Phase::Work,
            phase_since: base,
            disk: Disk::new(Rng::stream(seed, "disk", 0), plan.disk.clone()),
            audit: Audit::new(LOG_ID, plan.shards),
            node: None,
            process: 0,
            crash_at: None,
            stopping: false,
            started: base,
            was_clean: false,
            excuse: false,
            due: BTreeMap::new(),
            next_due: 0,
            next_conn: 0,
            pipes: BTreeMap::new(),
            mail: BTreeMap::new(),
            clients,
            desk: Desk::default(),
            checks,
            hits: Hits::default(),
            events: 0,
            trace: 0xcbf2_9ce4_8422_2325,
            backup: vec![BackupMarks::default(); usize::from(plan.shards)],
            story: Vec::new(),
            plan,
        };
        world.after(Duration::ZERO, Due::Start);
        for client in 0..world.clients.len() {
            world.after(Duration::from_micros(10), Due::Tick(client));
        }
        if world.plan.backup {
            world.after(Duration::from_micros(50), Due::Backup);
        }
        world
    }

    // ---- Time ----------------------------------------------------------------------------------

    fn after(&mut self, delay: Duration, due: Due) {
        let process = match due {
            Due::Tick(_) | Due::Start | Due::Backup | Due::ToClient(_) => 0,
            Due::ToBroker(_)
            | Due::Sent(..)
            | Due::Mail { .. }
            | Due::Lost(..)
            | Due::Accept(_)
            | Due::Poll(_) => self.process,
        };
        self.next_due += 1;
        self.due.insert((self.now + delay, self.next_due), (process, due));
    }

    fn delay(&mut self) -> Duration {
        let max = self.plan.delay_max.as_nanos() as u64;
        Duration::from_nanos(self.rng.between(500, max))
    }

    fn live(&mut self) -> Result<(), String> {
        while self.phase != Phase::Over {
            self.next()?;
            self.watch()?;
            self.advance()?;
            if self.events > EVENTS_MAX {
                return Err(format!("the world does not come to rest: {}", self.standing()));
            }
        }
        self.checks.finish()
    }

    /// The next thing that happens.
    fn next(&mut self) -> Result<(), String> {
        self.events += 1;
        let deadline = self.node.as_ref().and_then(Node::poll_timeout);
        let first = self.due.first_key_value().map(|((at, _), _)| *at);
        let disk = self.disk.poll_timeout();
        let Some(at) = [deadline, first, disk].into_iter().flatten().min() else {
            return Err("nothing will ever happen again".to_owned());
        };
        self.now = self.now.max(at);
        self.mix((self.now - self.base).as_nanos() as u64);
        if disk == Some(at) {
            let (owner, done) = self.disk.poll_done(self.now).expect("it is due");
            return self.disk_done(owner, done);
        }
        if first == Some(at) {
            let (_, (process, due)) = self.due.pop_first().expect("it is due");
            if process == 0 || process == self.process {
                return self.happen(due);
            }
            return Ok(());
        }
        let shard = self.node.as_ref().and_then(|node| node.timer_due(self.now));
        shard.map_or(Ok(()), |shard| self.tell(shard, Event::Timer))
    }

    fn mix(&mut self, value: u64) {
        for byte in value.to_le_bytes() {
            self.trace = (self.trace ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn happen(&mut self, due: Due) -> Result<(), String> {
        self.mix(discriminant(&due));
        match due {
            Due::ToBroker(conn) => self.bytes_to_broker(conn),
            Due::ToClient(conn) => self.bytes_to_client(conn),
            Due::Sent(conn, buf) => match self.pipes.get(&conn).map(|pipe| pipe.shard) {
                Some(shard) => self.tell(shard, Event::Sent { conn, buf }),
                None => Ok(()),
            },
            Due::Mail { from, to } => {
                let mail = self.mail.get_mut(&(from, to)).and_then(VecDeque::pop_front);
                let mail = mail.expect("mail is due once for each piece");
                self.tell(to, Event::Mail { from, mail })
            }
            Due::Lost(conn, shard) => self.tell(shard, Event::ConnectionLost { conn }),
            Due::Accept(conn) => {
                let Some(pipe) = self.pipes.get_mut(&conn) else { return Ok(()) };
                pipe.accepted = true;
                let (shard, peer) = (pipe.shard, format!("client-{}", pipe.client));
                self.flush_to_broker(conn);
                self.tell(shard, Event::Accepted { conn, peer })
            }
            Due::Tick(client) => self.tick(client),
            Due::Poll(shard) => self.poll(shard),
            Due::Backup => self.backup_answers(),
            Due::Start => self.start(),
        }
    }

    /// A start that waits for a write that never ends is ended by whoever watches over it.
    fn watch(&mut self) -> Result<(), String> {
        let Some(node) = &self.node else { return Ok(()) };
        if node.is_ready() || self.now < self.started + START_MAX {
            return Ok(());
        }
        if self.disk.hits().get(Hit::Hung) == 0 {
            return Err(format!("a start does not come to its end: {}", self.standing()));
        }
        self.crash(Crash::Kill(Fate::Seeded))
    }

    // ---- The process ---------------------------------------------------------------------------

    fn start(&mut self) -> Result<(), String> {
        self.process += 1;
        self.stopping = false;
        self.started = self.now;
        if self.process > 1 {
            self.hits.add(Hit::Restart);
        }
        if self.phase == Phase::Work && self.rng.chance(self.plan.spoilt) {
            self.spoil();
        } else {
            self.disk.heal();
        }
        self.draw_crash();
        let level = *self.rng.pick(&self.plan.levels);
        let node = Node::new(&self.plan, level, self.options.canary, &self.disk)?;
        self.node = Some(node);
        self.pump_host()
    }

    /// Makes a block of some segment unreadable for the start that comes.
    fn spoil(&mut self) {
        let shard = ShardId(self.rng.below(u64::from(self.plan.shards)) as u16);
        let slots = self.disk.segments(shard);
        if !slots.is_empty() {
            let slot = self.rng.pick(&slots).slot;
            let block = self.rng.below(SEGMENT_BYTES / 4096);
            self.disk.spoil(journal::FileId::Segment { shard, slot }, block);
            self.excuse = true;
        }
    }

    fn draw_crash(&mut self) {
        self.crash_at = self.options.crash.filter(|_| self.process == 1);
        if self.phase == Phase::Work && self.plan.crash_every > 0 {
            let soon = self.rng.chance(100);
            let every = if soon { 40 } else { 2 * self.plan.crash_every };
            let moment = self.disk.moments() + self.rng.between(1, every);
            let crash = self.draw_crash_kind();
            self.crash_at = Some((moment, crash));
        }
    }

    fn draw_crash_kind(&mut self) -> Crash {
        let fate =
            *self.rng.pick(&[Fate::Seeded, Fate::Seeded, Fate::Lost, Fate::Whole, Fate::Torn]);
        if self.rng.chance(self.plan.power_cuts) {
            Crash::PowerCut(fate)
        } else {
            Crash::Kill(fate)
        }
    }

    /// Crashes, if the moment for it has come; whether it did.
    fn crash_if_due(&mut self) -> Result<bool, String> {
        let Some((moment, crash)) = self.crash_at else { return Ok(false) };
        if self.disk.moments() < moment || self.node.is_none() {
            return Ok(false);
        }
        let serving = self.node.as_ref().is_some_and(Node::is_ready);
        if serving && !self.stopping && self.rng.chance(self.plan.clean_stops) {
            self.crash_at = Some((moment + self.plan.crash_every, crash));
            return self.stop().map(|()| false);
        }
        self.crash(crash).map(|()| true)
    }

    fn stop(&mut self) -> Result<(), String> {
        self.stopping = true;
        (0..self.plan.shards).map(ShardId).try_for_each(|shard| self.tell(shard, Event::Shutdown))
    }

    fn crash(&mut self, crash: Crash) -> Result<(), String> {
        let Some(node) = self.node.take() else { return Ok(()) };
        if !node.is_ready() {
            self.hits.add(Hit::CrashInRecovery);
        } else if self.stopping || self.clients.iter().any(Client::is_parting) {
            self.hits.add(Hit::CrashInDrain);
        }
        // Whatever was appended inside the flush window, and waits for writes that have not ended.
        let oldest = self.disk.oldest_write().unwrap_or(self.now).min(self.now);
        let window = self.plan.journal.flush_window + Duration::from_millis(1);
        let async_from = oldest.checked_sub(window).unwrap_or(self.base);
        self.disk.crash(crash);
        self.end_process(async_from.max(self.base))
    }

    fn end_process(&mut self, async_from: Instant) -> Result<(), String> {
        self.node = None;
        self.process += 1;
        self.crash_at = None;
        self.audit.crashed();
        self.mail.clear();
        self.see(&Seen::Crash { async_from })?;
        let conns: Vec<ConnId> = self.pipes.keys().copied().collect();
        for conn in conns {
            self.socket_dies(conn)?;
        }
        let rest = Duration::from_micros(self.rng.between(100, 20_000));
        self.after(rest, Due::Start);
        Ok(())
    }

    /// The broker's end is gone; what had been sent may arrive all the same.
    fn socket_dies(&mut self, conn: ConnId) -> Result<(), String> {
        if self.rng.chance(500) {
            while self.pipes.get(&conn).is_some_and(|pipe| !pipe.to_client.is_empty()) {
                self.bytes_to_client(conn)?;
            }
        }
        if let Some(pipe) = self.pipes.remove(&conn) {
            self.clients[pipe.client].lost();
        }
        Ok(())
    }

    fn died(&mut self, cause: &Fatal) -> Result<(), String> {
        let refused = self.node.as_ref().is_some_and(|node| !node.is_ready());
        let faults = [Hit::Hung, Hit::WriteFailed, Hit::WriteShort, Hit::ReadFailed];
        let happened = faults.iter().map(|hit| self.disk.hits().get(*hit)).sum::<u64>();
        let excused = match cause {
            Fatal::JournalPoisoned(_) | Fatal::JournalUnreadable(_) => happened > 0,
            Fatal::JournalDamaged(_) | Fatal::FormatUnknown(_) | Fatal::DiskFull(_) => false,
        };
        if !excused {
            return Err(format!("the process died without cause: {cause}"));
        }
        self.hits.add(if refused { Hit::StartRefused } else { Hit::Fatal });
        let crash = Crash::Kill(Fate::Seeded);
        self.crash(crash)
    }

    // ---- Shards --------------------------------------------------------------------------------

    /// Something happens to a shard; the host polls it now, or a little later.
    fn tell(&mut self, shard: ShardId, event: Event<'_>) -> Result<(), String> {
        let Some(node) = &mut self.node else { return Ok(()) };
        node.handle(shard, self.now, event);
        if self.rng.chance(750) {
            return self.poll(shard);
        }
        if node.wants_poll(shard) {
            let soon = Duration::from_nanos(self.rng.between(100, 50_000));
            self.after(soon, Due::Poll(shard));
        }
        Ok(())
    }

    fn poll(&mut self, shard: ShardId) -> Result<(), String> {
        let process = self.process;
        while let Some(action) = self.node.as_mut().and_then(|node| node.poll(shard, self.now)) {
            self.act(shard, action)?;
            if self.process != process {
                break;
            }
        }
        Ok(())
    }

    fn act(&mut self, shard: ShardId, action: Action) -> Result<(), String> {
        match action {
            Action::Send { conn, buf } => self.send_to_client(conn, buf),
            Action::PauseReceive(conn) => {
                if let Some(pipe) = self.pipes.get_mut(&conn) {
                    pipe.paused = true;
                }
            }
            Action::ResumeReceive(conn) => {
                if let Some(pipe) = self.pipes.get_mut(&conn) {
                    pipe.paused = false;
                }
                self.flush_to_broker(conn);
            }
            Action::Close(conn) => {
                if let Some(pipe) = self.pipes.get_mut(&conn) {
                    pipe.closing = true;
                }
                self.flush_to_client(conn);
            }
            Action::Authenticate { .. } => return Err("nobody sent a password".to_owned()),
            Action::Disk(op) => self.submit(Owner(shard.0), op)?,
            Action::Mail { to, mail } => {
                assert_ne!(to, shard, "mail to itself never leaves a shard");
                self.note_mail(&mail);
                self.mail.entry((shard, to)).or_default().push_back(mail);
                let delay = self.delay();
                self.after(delay, Due::Mail { from: shard, to });
            }
            Action::AdminReply { id, .. } => return Err(format!("nobody asked {id:?}")),
            Action::Ready(report) => {
                if report.truncated.is_some() {
                    self.hits.add(Hit::TailCut);
                }
                if let Some(node) = &mut self.node {
                    node.set_ready(shard);
                }
                self.recovered(shard)?;
                self.ready_if_all()?;
            }
            Action::Drained => {
                let drained = self.node.as_mut().is_some_and(|node| node.set_drained(shard));
                if drained {
                    self.hits.add(Hit::CleanStop);
                    self.was_clean = true;
                    self.disk.crash(Crash::Kill(Fate::Whole));
                    self.end_process(self.now + Duration::from_nanos(1))?;
                }
            }
            Action::Fatal(cause) => self.died(&cause)?,
        }
        Ok(())
    }

    fn note_mail(&mut self, mail: &Mail) {
        match mail {
            Mail::Consume { .. } | Mail::Publish { .. } => self.hits.add(Hit::Crossed),
            Mail::Pressure(true) => {
                self.hits.add(Hit::DiskFull);
                self.checks.facts.was_full = true;
            }
            Mail::Resolve { name, .. } => {
                let again = |piece: &Mail| matches!(piece, Mail::Resolve { name: other, .. } if other == name);
                let racing = self.mail.values().flatten().any(again);
                if racing {
                    self.hits.add(Hit::CreateRace);
                }
            }
            Mail::Resolved { .. }
            | Mail::Open(_)
            | Mail::Opened(_)
            | Mail::Catalogued(_)
            | Mail::Catalogue { .. }
            | Mail::Published { .. }
            | Mail::Credit { .. }
            | Mail::Deliver { .. }
            | Mail::Drained { .. }
            | Mail::Settle { .. }
            | Mail::Settled { .. }
            | Mail::Unconsume { .. }
            | Mail::Unconsumed { .. }
            | Mail::Pressure(false)
            | Mail::NoMore => {}
        }
    }

    /// All shards serve: what they hold is looked at, and clients may come.
    fn ready_if_all(&mut self) -> Result<(), String> {
        if !self.node.as_ref().is_some_and(Node::is_ready) {
            return Ok(());
        }
        let queues = self.queues()?;
        let clean = std::mem::take(&mut self.was_clean);
        self.backup.fill(BackupMarks::default());
        self.see(&Seen::Ready { queues, clean })?;
        if self.phase == Phase::Work && self.rng.chance(self.plan.crash_at_ready) {
            let crash = self.draw_crash_kind();
            self.crash_at = Some((self.disk.moments(), crash));
        }
        Ok(())
    }

    /// A shard's own log is read: what it vouches for now is the ground for what comes.
    fn recovered(&mut self, shard: ShardId) -> Result<(), String> {
        let (reply, others) = self.question(shard, AdminRequest::Stats)?;
        let AdminReply::Stats(stats) = reply else { return Err("no stats".to_owned()) };
        let end = Lsn(stats.journal_durable_lsn);
        self.audit.recovered(shard, end);
        self.see(&Seen::Recovered { shard, end })?;
        self.act_all(shard, others)
    }

    /// Asks a shard as an operator does; the answer, and what else it wanted done meanwhile.
    fn question(
        &mut self,
        shard: ShardId,
        request: AdminRequest,
    ) -> Result<(AdminReply, Vec<Action>), String> {
        let id = AdminId(self.events);
        let Some(node) = &mut self.node else { return Err("nobody to ask".to_owned()) };
        node.handle(shard, self.now, Event::Admin { id, request });
        let mut others = Vec::new();
        while let Some(action) = node.poll(shard, self.now) {
            match action {
                Action::AdminReply { id: answered, reply } if answered == id => {
                    return Ok((reply, others));
                }
                other => others.push(other),
            }
        }
        Err(format!("shard {} did not answer its operator", shard.0))
    }

    fn ask(&mut self, shard: ShardId, request: AdminRequest) -> Result<AdminReply, String> {
        let (reply, others) = self.question(shard, request)?;
        self.act_all(shard, others)?;
        self.poll(shard)?;
        Ok(reply)
    }

    fn act_all(&mut self, shard: ShardId, actions: Vec<Action>) -> Result<(), String> {
        let process = self.process;
        for action in actions {
            self.act(shard, action)?;
            if self.process != process {
                break;
            }
        }
        Ok(())
    }

    fn stats(&mut self, shard: ShardId) -> Result<ShardStats, String> {
        match self.ask(shard, AdminRequest::Stats)? {
            AdminReply::Stats(stats) => Ok(*stats),
            other => Err(format!("stats were asked for, not {other:?}")),
        }
    }

    fn queues(&mut self) -> Result<Vec<QueueView>, String> {
        let mut views = Vec::new();
        for shard in (0..self.plan.shards).map(ShardId) {
            let AdminReply::Queues(queues) = self.ask(shard, AdminRequest::Queues)? else {
                return Err("queues were asked for".to_owned());
            };
            views.extend(queues.into_iter().map(|queue| QueueView {
                name: queue.name,
                id: queue.id,
                shard: queue.shard,
                messages: queue.available + queue.acquired + queue.uncommitted,
                next_sequence: queue.next_sequence,
            }));
        }
        Ok(views)
    }

    // ---- The disk ------------------------------------------------------------------------------

    fn submit(&mut self, owner: Owner, op: DiskOp) -> Result<(), String> {
        self.mix(op.id().0);
        let unsynced =
            self.options.canary == Some(Canary::AsyncWithoutSync) && self.audit.is_async(&op);
        for seen in self.audit.submit(&op) {
            self.see_now(&seen)?;
        }
        if unsynced {
            self.disk.submit_unsynced(self.now, owner, op);
        } else {
            self.disk.submit(self.now, owner, op);
        }
        self.crash_if_due().map(|_| ())
    }

    fn disk_done(&mut self, owner: Owner, done: DiskDone) -> Result<(), String> {
        self.mix(done.id.0);
        if self.crash_if_due()? {
            return Ok(());
        }
        if owner == HOST {
            let formatted = self.node.as_mut().map_or(Ok(()), |node| node.host_done(done));
            if let Err(what) = formatted {
                // The process says so and ends; the next start begins again.
                let cause = Fatal::JournalPoisoned(what);
                return self.died(&cause);
            }
            return self.pump_host();
        }
        let shard = ShardId(owner.0);
        if done.result.is_ok() {
            self.audit.done(shard, done.id);
        }
        self.tell(shard, Event::Disk(done))
    }

    /// The host's own work at a start: format, the node's superblock, then the shards.
    fn pump_host(&mut self) -> Result<(), String> {
        let process = self.process;
        while let Some(op) = self.node.as_mut().and_then(Node::poll_host) {
            self.submit(HOST, op)?;
            if self.process != process {
                return Ok(());
            }
        }
        let began = match &mut self.node {
            Some(node) => node.begin_if_possible(&self.disk)?,
            None => false,
        };
        if began {
            for shard in (0..self.plan.shards).map(ShardId) {
                self.poll(shard)?;
            }
        }
        Ok(())
    }

    fn backup_answers(&mut self) -> Result<(), String> {
        let next = self.rng.between(50, 3000);
        self.after(Duration::from_micros(next), Due::Backup);
        if !self.node.as_ref().is_some_and(Node::is_ready) {
            return Ok(());
        }
        for shard in (0..self.plan.shards).map(ShardId) {
            let submitted = self.audit.submitted(shard);
            let known = self.backup[usize::from(shard.0)];
            if known.durable < submitted {
                self.hits.add(Hit::BackupLagged);
            }
            let rest = self.phase != Phase::Work;
            let up_to = |rng: &mut Rng, from: Lsn, to: Lsn| {
                if rest { to.max(from) } else { Lsn(rng.between(from.0, to.0.max(from.0))) }
            };
            let received = up_to(&mut self.rng, known.received, submitted);
            let durable = up_to(&mut self.rng, known.durable, received);
            let marks = BackupMarks { received, durable };
            self.backup[usize::from(shard.0)] = marks;
            self.audit.backup(shard, received, durable);
            self.tell(shard, Event::Backup(marks))?;
        }
        Ok(())
    }

    // ---- Connections ---------------------------------------------------------------------------

    fn tick(&mut self, client: usize) -> Result<(), String> {
        let max = self.plan.tick_max.as_nanos() as u64;
        let next = Duration::from_nanos(self.rng.between(max / 10, max));
        self.after(next, Due::Tick(client));
        let mut seen = Vec::new();
        let wish = self.clients[client].tick(&mut self.desk, &mut self.hits, &mut seen);
        self.see_all(&seen, None)?;
        match wish {
            Wish::None => {}
            Wish::Connect => self.connect(client),
            Wish::Cut => {
                self.hits.add(Hit::ConnectionLost);
                if let Some(conn) = self.conn_of(client) {
                    self.cut(conn)?;
                }
            }
        }
        self.flush_client(client)
    }

    fn conn_of(&self, client: usize) -> Option<ConnId> {
        self.pipes.iter().find(|(_, pipe)| pipe.client == client).map(|(conn, _)| *conn)
    }

    fn connect(&mut self, client: usize) {
        if self.stopping || !self.node.as_ref().is_some_and(Node::is_ready) {
            return;
        }
        self.next_conn += 1;
        let conn = ConnId(self.next_conn);
        let pipe = Pipe {
            client,
            shard: ShardId(self.rng.below(u64::from(self.plan.shards)) as u16),
            accepted: false,
            paused: false,
            closing: false,
            to_broker: VecDeque::new(),
            to_broker_due: false,
            to_client: VecDeque::new(),
            to_client_due: false,
        };
        self.pipes.insert(conn, pipe);
        self.clients[client].connected();
        let delay = self.delay();
        self.after(delay, Due::Accept(conn));
    }

    /// A client hangs up: some of what it said may still arrive.
    fn cut(&mut self, conn: ConnId) -> Result<(), String> {
        let process = self.process;
        while self.rng.chance(500) && self.says_something(conn) {
            self.bytes_to_broker(conn)?;
            if process != self.process {
                return Ok(());
            }
        }
        if let Some(pipe) = self.pipes.remove(&conn) {
            self.clients[pipe.client].lost();
            if pipe.accepted && !pipe.closing {
                let delay = self.delay();
                self.after(delay, Due::Lost(conn, pipe.shard));
            }
        }
        Ok(())
    }

    /// Whether the broker would read more bytes of a connection.
    fn says_something(&self, conn: ConnId) -> bool {
        self.pipes.get(&conn).is_some_and(|pipe| !pipe.to_broker.is_empty() && !pipe.paused)
    }

    fn flush_client(&mut self, client: usize) -> Result<(), String> {
        let Some(conn) = self.conn_of(client) else { return Ok(()) };
        let bytes = self.clients[client].take_output();
        if let Some(pipe) = self.pipes.get_mut(&conn) {
            pipe.to_broker.extend(bytes);
        }
        self.flush_to_broker(conn);
        if self.clients[client].is_over() {
            // Both have said close: what is left is hanging up.
            let process = self.process;
            while self.says_something(conn) {
                self.bytes_to_broker(conn)?;
                if process != self.process {
                    return Ok(());
                }
            }
            return self.cut(conn);
        }
        Ok(())
    }

    fn flush_to_broker(&mut self, conn: ConnId) {
        let Some(pipe) = self.pipes.get_mut(&conn) else { return };
        let may = pipe.accepted && !pipe.paused && !pipe.closing && !pipe.to_broker_due;
        if may && !pipe.to_broker.is_empty() {
            pipe.to_broker_due = true;
            let delay = self.delay();
            self.after(delay, Due::ToBroker(conn));
        }
    }

    fn bytes_to_broker(&mut self, conn: ConnId) -> Result<(), String> {
        let Some(pipe) = self.pipes.get_mut(&conn) else { return Ok(()) };
        pipe.to_broker_due = false;
        if pipe.closing || !pipe.accepted {
            pipe.to_broker.clear();
        }
        let len = pipe.to_broker.len() as u64;
        if len == 0 || pipe.paused {
            return Ok(());
        }
        // Mostly whole, sometimes a few bytes, sometimes any part.
        let take = match self.rng.below(10) {
            0 => self.rng.between(1, len.min(9)),
            1..=3 => self.rng.between(1, len),
            _ => len.min(256 * 1024),
        };
        let Some(pipe) = self.pipes.get_mut(&conn) else { return Ok(()) };
        let bytes: Vec<u8> = pipe.to_broker.drain(..take as usize).collect();
        let shard = pipe.shard;
        self.flush_to_broker(conn);
        self.tell(shard, Event::Received { conn, bytes: &bytes })
    }

    fn send_to_client(&mut self, conn: ConnId, buf: Vec<u8>) {
        let stamp = Rc::new(Stamp { at: self.now, marks: self.audit.marks() });
        let Some(pipe) = self.pipes.get_mut(&conn) else { return };
        pipe.to_client.push_back((buf.clone(), stamp));
        self.flush_to_client(conn);
        let delay = self.delay();
        self.after(delay, Due::Sent(conn, buf));
    }

    fn flush_to_client(&mut self, conn: ConnId) {
        let Some(pipe) = self.pipes.get_mut(&conn) else { return };
        let anything = !pipe.to_client.is_empty() || pipe.closing;
        if anything && !pipe.to_client_due {
            pipe.to_client_due = true;
            let delay = self.delay();
            self.after(delay, Due::ToClient(conn));
        }
    }

    fn bytes_to_client(&mut self, conn: ConnId) -> Result<(), String> {
        let Some(pipe) = self.pipes.get_mut(&conn) else { return Ok(()) };
        pipe.to_client_due = false;
        let client = pipe.client;
        let Some((mut bytes, stamp)) = pipe.to_client.pop_front() else {
            if pipe.closing {
                self.pipes.remove(&conn);
                self.clients[client].lost();
            }
            return Ok(());
        };
        if self.rng.chance(200) && bytes.len() > 1 {
            let rest = bytes.split_off(self.rng.between(1, bytes.len() as u64 - 1) as usize);
            pipe.to_client.push_front((rest, Rc::clone(&stamp)));
        }
        let mut seen = Vec::new();
        let heard = self.clients[client].hear(&bytes, &mut self.desk, &mut self.hits, &mut seen);
        self.see_all(&seen, Some(&stamp))?;
        heard?;
        self.flush_to_client(conn);
        self.flush_client(client)
    }

    // ---- Checks --------------------------------------------------------------------------------

    fn see(&mut self, seen: &Seen) -> Result<(), String> {
        if self.options.follow.is_some_and(|letter| self.checks.facts.concerns(seen, letter)) {
            self.story.push(format!("{:?} {seen:?}", self.now - self.base));
        }
        self.checks.see(self.now, seen)
    }

    fn see_now(&mut self, seen: &Seen) -> Result<(), String> {
        let stamp = Stamp { at: self.now, marks: self.audit.marks() };
        self.checks.facts.stamp = Some(stamp);
        self.see(seen)
    }

    fn see_all(&mut self, seen: &[Seen], stamp: Option<&Rc<Stamp>>) -> Result<(), String> {
        self.checks.facts.stamp = stamp.map(|stamp| Stamp::clone(stamp));
        seen.iter().try_for_each(|seen| self.see(seen))
    }

    // ---- The end of a run ----------------------------------------------------------------------

    fn enter(&mut self, phase: Phase, mode: Mode) {
        self.phase = phase;
        self.phase_since = self.now;
        let drainer = self.clients.len() - 1;
        for (index, client) in self.clients.iter_mut().enumerate() {
            let drains = mode == Mode::Drain && index == drainer;
            client.set_mode(if drains { Mode::Drain } else { Mode::Leave });
        }
    }

    fn advance(&mut self) -> Result<(), String> {
        match self.phase {
            Phase::Work => return self.work_is_done(),
            Phase::Leave if self.pipes.is_empty() && self.serves() => {
                self.enter(Phase::Drain, Mode::Drain);
            }
            Phase::Drain if self.events.is_multiple_of(64) => {
                if self.is_drained()? {
                    self.enter(Phase::Part, Mode::Leave);
                }
            }
            Phase::Part if self.is_quiet() && self.serves() => {
                // A crash meanwhile may have brought back what was at risk.
                if self.is_drained()? {
                    self.last_check()?;
                    self.phase = Phase::Over;
                } else {
                    self.enter(Phase::Drain, Mode::Drain);
                }
            }
            Phase::Leave | Phase::Drain | Phase::Part | Phase::Over => {}
        }
        if self.phase != Phase::Over && self.now > self.phase_since + REST_MAX {
            return Err(format!("the world does not come to rest: {}", self.standing()));
        }
        Ok(())
    }

    /// Enough has happened: the faults end, everybody leaves.
    fn work_is_done(&mut self) -> Result<(), String> {
        if self.events < self.options.events_min || !self.serves() {
            return Ok(());
        }
        self.crash_at = None;
        let bytes_max = self.plan.disk.bytes_max;
        *self.disk.profile_mut() = Profile { bytes_max, ..Profile::sound() };
        self.enter(Phase::Leave, Mode::Leave);
        Ok(())
    }

    fn serves(&self) -> bool {
        self.node.as_ref().is_some_and(Node::is_ready) && !self.stopping
    }

    fn is_drained(&mut self) -> Result<bool, String> {
        if !self.serves() || !self.clients.iter().all(Client::is_idle) {
            return Ok(false);
        }
        let queues = self.queues()?;
        Ok(queues.iter().all(|queue| queue.messages == 0))
    }

    /// Nobody is connected, and nothing is on its way.
    fn is_quiet(&self) -> bool {
        let on_its_way = |(_, due): &(u64, Due)| match due {
            Due::Lost(..) | Due::Sent(..) | Due::Poll(_) | Due::Mail { .. } => true,
            Due::ToBroker(_) | Due::ToClient(_) | Due::Accept(_) => true,
            Due::Tick(_) | Due::Backup | Due::Start => false,
        };
        self.pipes.is_empty() && self.disk.in_flight() == 0 && !self.due.values().any(on_its_way)
    }

    /// Nobody is there and nothing is kept: neither messages nor memory nor links.
    fn last_check(&mut self) -> Result<(), String> {
        for shard in (0..self.plan.shards).map(ShardId) {
            let stats = self.stats(shard)?;
            let node = self.node.as_ref().ok_or("the node is there")?;
            let links = node.links(shard);
            if stats.memory_bytes != 0 || stats.connections != 0 || links != 0 {
                return Err(format!("at rest, something is left: {links} links, {stats:?}"));
            }
        }
        let left: Vec<QueueView> =
            self.queues()?.into_iter().filter(|queue| queue.messages > 0).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("at rest, messages are left: {left:?}")) }
    }

    fn standing(&mut self) -> String {
        let queues = self.queues();
        format!(
            "{:?} for {:?}; {} connections; queues {queues:?}; disk operations in flight: {}",
            self.phase,
            self.now - self.phase_since,
            self.pipes.len(),
            self.disk.in_flight(),
        )
    }
}

fn discriminant(due: &Due) -> u64 {
    match due {
        Due::ToBroker(conn) => 0x100 + conn.0,
        Due::ToClient(conn) => 0x200 + conn.0,
        Due::Sent(conn, buf) => 0x300 + conn.0 + ((buf.len() as u64) << 32),
        Due::Mail { from, to } => 0x400 + u64::from(from.0) * 16 + u64::from(to.0),
        Due::Lost(conn, _) => 0x500 + conn.0,
        Due::Accept(conn) => 0x600 + conn.0,
        Due::Tick(client) => 0x700 + *client as u64,
        Due::Poll(shard) => 0x800 + u64::from(shard.0),
        Due::Backup => 0x900,
        Due::Start => 0xa00,
    }
}
