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
//! A run is over when every queue is drained, every client gone and every checker content. What
//! ends it before is a broken promise, a death without cause, or a world that stands still.
//!
//! Invariants: time only moves forward; the same options give the same events, whose hash is the
//! run's trace; mail between two shards keeps its order; a connection's bytes keep theirs; nothing
//! that a dead process had under way ever reaches its successor.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

use broker::admin::AdminId;
use broker::clock::WallClock;
use broker::pending::BackupMarks;
use broker::{ConnId, Event, Mail, Moving};
use journal::{JournalUuid, LogId, QueueId, ShardId};

use crate::audit::Audit;
use crate::check::{Checks, QueueView, Seen, Stamp};
use crate::client::{Client, Desk, Mode};
use crate::disk::{Crash, Disk, Fate, Owner, Profile};
use crate::hits::{Hit, Hits};
use crate::pipe::Pipe;
use crate::plan::{Options, Plan};
use crate::rng::Rng;

mod node;
mod process;
mod traffic;

use node::Node;

const LOG_ID: LogId = LogId([0x5a; 16]);
const JOURNAL_UUID: JournalUuid = JournalUuid([0xa5; 16]);
/// Bytes of a segment: small, so that segments are used again and again.
const SEGMENT_BYTES: u64 = 64 * 1024;

/// What is added to the flush window, for the time until the host looks at a shard.
const ASYNC_SLACK: Duration = Duration::from_millis(1);
/// The time of day when the world begins.
const UNIX_MS: u64 = 1_700_000_000_000;
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
    /// A connection arrives at another shard.
    Moved(ConnId, ShardId, Box<Moving>),
    /// A client's turn.
    Tick(usize),
    /// The host gets round to polling a shard.
    Poll(ShardId),
    /// The second member answers.
    Backup,
    /// The process starts.
    Start,
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
    /// The crash waits, not long, until several writes are in flight.
    crash_patient: bool,
    stopping: bool,
    started: Instant,
    /// Starts in a row that were crashed before they were over.
    starts_cut: u32,
    /// A death is to be expected: the disk failed it.
    excuse: bool,
    due: BTreeMap<(Instant, u64), (u64, Due)>,
    next_due: u64,
    next_conn: u64,
    pipes: BTreeMap<ConnId, Pipe<ShardId>>,
    mail: BTreeMap<(ShardId, ShardId), VecDeque<Mail>>,
    clients: Vec<Client>,
    desk: Desk,
    checks: Checks,
    hits: Hits,
    events: u64,
    trace: u64,
    backup: Vec<BackupMarks>,
    /// Queues that may hold so many messages.
    bounded: Vec<(String, u64)>,
    /// Duplicate ids that each shard has forgotten before their time, since its process began.
    forgotten: Vec<u64>,
    /// When the queues were purged last of what finds no room where it has to go.
    relieved: Option<Instant>,
    /// Purges that an operator waits for.
    purges: BTreeMap<AdminId, QueueId>,
    next_purge: u64,
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
            if world.plan.is_tight() {
                hits.add_many(Hit::RepeatedTight, hits.get(Hit::Repeated));
                hits.add_many(Hit::ExpiredTight, hits.get(Hit::Expired));
            }
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
        let mut plan = Plan::draw_alone(options.seed);
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
        checks.facts.tight = plan.is_tight();
        checks.facts.dropping = plan.drops.then_some(0).into_iter().collect();
        checks.facts.clock = Some(WallClock { at: base, unix_ms: UNIX_MS });
        checks.facts.attempts_max = plan.attempts_max;
        checks.facts.early_bound = plan.journal.flush_window + ASYNC_SLACK;
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
            crash_patient: false,
            stopping: false,
            started: base,
            starts_cut: 0,
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
            bounded: plan.bounded().collect(),
            forgotten: vec![0; usize::from(plan.shards)],
            relieved: None,
            purges: BTreeMap::new(),
            next_purge: 0,
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

    /// The time of day: the process starts whenever the world has it.
    fn clock(&self) -> WallClock {
        let since = self.now.duration_since(self.base).as_millis() as u64;
        WallClock { at: self.now, unix_ms: UNIX_MS + since }
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
            | Due::Moved(..)
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
        self.checks.finish(&mut self.hits)
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
            Due::Sent(conn, buf) => {
                let Some(pipe) = self.pipes.get_mut(&conn) else { return Ok(()) };
                pipe.sends -= 1;
                if pipe.moving {
                    return Ok(());
                }
                let shard = pipe.at;
                self.tell(shard, Event::Sent { conn, buf })
            }
            Due::Moved(conn, to, moving) => self.moved(conn, to, moving),
            Due::Mail { from, to } => {
                let mail = self.mail.get_mut(&(from, to)).and_then(VecDeque::pop_front);
                let mail = mail.expect("mail is due once for each piece");
                self.tell(to, Event::Mail { from, mail })
            }
            Due::Lost(conn, shard) => self.tell(shard, Event::ConnectionLost { conn }),
            Due::Accept(conn) => {
                let Some(pipe) = self.pipes.get_mut(&conn) else { return Ok(()) };
                pipe.accepted = true;
                let (shard, peer) = (pipe.at, format!("client-{}", pipe.client));
                let may_move = self.rng.chance(700);
                self.flush_to_broker(conn);
                self.tell(
                    shard,
                    Event::Accepted {
                        conn,
                        peer,
                        may_move,
                        login: broker::access::LogIn::default(),
                    },
                )
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
            Phase::Leave if self.is_quiet() && self.serves() => {
                // What still waits for the log is not at its place in the order yet.
                // With a full disk a move may wait for those who come to drain.
                let patience = self.phase_since + Duration::from_secs(10);
                let stuck = self.plan.may_stick() && self.now > patience;
                self.checks.facts.disordered |= stuck;
                let is_back =
                    |queue: &QueueView| stuck || queue.uncommitted == 0 && queue.away == 0;
                if self.queues()?.is_some_and(|queues| queues.iter().all(is_back)) {
                    self.enter(Phase::Drain, Mode::Drain);
                }
            }
            Phase::Drain if self.events.is_multiple_of(64) => {
                if self.is_drained()? {
                    self.enter(Phase::Part, Mode::Leave);
                } else {
                    self.relieve()?;
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
        let Some(queues) = self.queues()? else { return Ok(false) };
        Ok(queues.iter().all(|queue| queue.messages == 0))
    }

    /// Nobody is connected, and nothing is on its way.
    fn is_quiet(&self) -> bool {
        let on_its_way = |(_, due): &(u64, Due)| match due {
            Due::Lost(..) | Due::Sent(..) | Due::Poll(_) | Due::Mail { .. } => true,
            Due::ToBroker(_) | Due::ToClient(_) | Due::Accept(_) | Due::Moved(..) => true,
            Due::Tick(_) | Due::Backup | Due::Start => false,
        };
        self.pipes.is_empty() && self.disk.in_flight() == 0 && !self.due.values().any(on_its_way)
    }

    /// Nobody is there and nothing is kept: neither messages nor memory nor links.
    fn last_check(&mut self) -> Result<(), String> {
        self.count_paged();
        for shard in (0..self.plan.shards).map(ShardId) {
            let stats = self.stats(shard)?;
            let node = self.node.as_ref().ok_or("the node is there")?;
            let links = node.links(shard);
            let memory_bytes = stats.memory_bytes - stats.duplicate_ids_bytes;
            if memory_bytes != 0 || stats.connections != 0 || links != 0 {
                return Err(format!("at rest, something is left: {links} links, {stats:?}"));
            }
        }
        let left: Vec<QueueView> =
            self.queues()?.into_iter().flatten().filter(|queue| queue.messages > 0).collect();
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
        Due::Moved(conn, ..) => 0xb00 + conn.0,
    }
}
