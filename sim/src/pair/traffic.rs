//! Clients of a pair: they know both members, and go to whoever serves.
//!
//! ```text
//!   client ── bytes, cut anywhere ──▶ shard of the member that serves ── Seen ──▶ checks
//!          ◀── bytes, stamped ───────
//!   a reign begins: Crash (who served before), each log as it is now (`history`), then Ready
//! ```
//! The stamp is what the disks hold, not what anybody says: this member's, and the other one's
//! while the voters hold both in sync. All queues are at `replicated-sync`.
//!
//! Invariant: what is written counts as written only by the member whose reign is the newest; its
//! clients' connections end with it.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

use broker::admin::{AdminReply, AdminRequest};
use broker::clock::WallClock;
use broker::{Action, ConnId, Event, Mail, Moving, ShardConfig};
use journal::{Level, Lsn, RecordKind, ShardId};

use super::history::{History, agreed};
use super::node::{Node, SEGMENT_BYTES};
use super::served::Told;
use super::shard::WRITE_BOUND;
use super::{Counts, SHARDS};
use crate::check::{Checks, QueueView, Seen, Stamp};
use crate::client::{Client, Desk, Mode, Wish};
use crate::hits::{Hit, Hits};
use crate::letter::LetterId;
use crate::pipe::Pipe;
use crate::plan::Plan;
use crate::rng::Rng;

/// The time of day when the world begins.
pub(crate) const UNIX_MS: u64 = 1_700_000_000_000;

/// An eighth of it is for duplicate ids: none is forgotten before its time.
const MEMORY_BYTES_MAX: u64 = 128_000_000;
const SEGMENTS_MAX: u32 = 4_000;

/// Something that will happen.
#[derive(Debug)]
enum Due {
    Tick(usize),
    Accept(ConnId),
    ToBroker(ConnId),
    ToClient(ConnId),
    Sent(ConnId, Vec<u8>),
    Moved(ConnId, ShardId, Box<Moving>),
    Lost(ConnId, Place),
    /// The oldest mail to a shard arrives.
    Mail(Place),
}

/// A shard of one life of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    node: usize,
    boot: u64,
    shard: ShardId,
}

/// The newest reign.
#[derive(Debug)]
struct Reign {
    node: usize,
    boot: u64,
    ready: Vec<bool>,
    is_ready: bool,
    /// How far each log was once on every disk that the voters held in sync.
    reached: Vec<Lsn>,
    /// How far the other member's disk had each of these logs, while the voters held it in sync. It
    /// may be lost before the own write ends.
    there: Vec<Lsn>,
}

/// All clients, and what is asked of what they see.
#[derive(Debug)]
pub(crate) struct Traffic {
    rng: Rng,
    base: Instant,
    plan: Plan,
    /// Of all queues.
    level: Level,
    clients: Vec<Client>,
    desk: Desk,
    checks: Checks,
    pub(crate) hits: Hits,
    pipes: BTreeMap<ConnId, Pipe<Place>>,
    mail: BTreeMap<Place, VecDeque<Mail>>,
    due: BTreeMap<(Instant, u64), Due>,
    next_due: u64,
    next_conn: u64,
    reign: Option<Reign>,
    history: History,
    is_leaving: bool,
    stands_still: bool,
    /// A letter whose story is told.
    followed: Option<LetterId>,
    story: Vec<String>,
}

/// What a moment of the clients needs of the world.
pub(crate) struct Around<'a> {
    pub(crate) now: Instant,
    pub(crate) nodes: &'a mut [Node; 2],
    pub(crate) counts: &'a mut Counts,
    /// Whether the voters hold both in sync.
    pub(crate) both: bool,
}

impl Traffic {
    /// Clients as a seed has them.
    pub(crate) fn new(seed: u64, base: Instant) -> Self {
        let mut plan = Plan::draw(seed);
        plan.tick_max = plan.tick_max.max(Duration::from_millis(2)) * 8;
        // There is room enough: what is asked here is who holds it.
        (plan.memory_bytes_max, plan.disk.bytes_max) = (MEMORY_BYTES_MAX, u64::MAX);
        plan.journal.segments_max = SEGMENTS_MAX;
        if Rng::stream(seed, "replies", 0).chance(500) {
            plan.clients.iter_mut().for_each(|client| client.replies = 100);
        }
        Self::with(seed, base, plan)
    }

    fn with(seed: u64, base: Instant, plan: Plan) -> Self {
        let client = |(index, habits): (usize, &crate::client::Habits)| {
            Client::new(index, Rng::stream(seed, "client", index as u64), habits.clone())
        };
        let clients: Vec<Client> = plan.clients.iter().enumerate().map(client).collect();
        let mut checks = Checks::default();
        (checks.facts.backup, checks.facts.pair) = (true, true);
        checks.facts.tight = plan.is_tight();
        if plan.is_tight() {
            checks.facts.stuck = (0..SHARDS).map(ShardId).collect();
        }
        checks.facts.dropping = plan.drops.then_some(0).into_iter().collect();
        checks.facts.clock = Some(WallClock { at: base, unix_ms: UNIX_MS });
        checks.facts.attempts_max = plan.attempts_max;
        checks.facts.early_bound = Duration::from_secs(3600);
        checks.facts.names.clone_from(&plan.queues);
        let mut traffic = Self {
            rng: Rng::stream(seed, "pair traffic", 0),
            base,
            plan,
            level: Level::ReplicatedSync,
            clients,
            desk: Desk::default(),
            checks,
            hits: Hits::default(),
            pipes: BTreeMap::new(),
            mail: BTreeMap::new(),
            due: BTreeMap::new(),
            next_due: 0,
            next_conn: 0,
            reign: None,
            history: History::default(),
            is_leaving: false,
            stands_still: false,
            followed: None,
            story: Vec::new(),
        };
        for client in 0..traffic.clients.len() {
            traffic.after(base, Duration::from_millis(1), Due::Tick(client));
        }
        traffic
    }

    /// Letters that soon go, and queues for replies that come and go all the time: nothing stays in
    /// the log.
    pub(crate) fn of_replies(seed: u64, base: Instant) -> Self {
        let mut plan = Self::new(seed, base).plan;
        (plan.tick_max, plan.purges, plan.lags) = (Duration::from_millis(4), 0, false);
        for (index, habits) in plan.clients.iter_mut().enumerate() {
            (habits.lags, habits.delays, habits.identified, habits.repeats) = (false, 0, 0, 0);
            (habits.large, habits.slow, habits.replies) = (0, 0, 300);
            habits.links = if index == 0 { 0 } else { habits.links.max(3) };
            (habits.produces, habits.diligence, habits.closes) = (400, 900, 2);
        }
        Self::with(seed, base, plan)
    }

    /// Clients that are told when the live alone has what they sent, and do not pause.
    pub(crate) fn of_live_alone(seed: u64, base: Instant) -> Self {
        let mut traffic = Self::new(seed, base);
        traffic.plan.tick_max = Duration::from_millis(2);
        traffic.level = Level::Sync;
        traffic
    }

    /// What the members' shards are to be like.
    pub(crate) fn template(&self) -> ShardConfig {
        ShardConfig {
            shard: ShardId(0),
            shards: SHARDS,
            segment_bytes: SEGMENT_BYTES,
            level: self.level,
            memory_bytes_max: self.plan.memory_bytes_max,
            amqp: crate::plan::amqp(),
            backup: false,
            segments_max: u64::from(SEGMENTS_MAX),
            disk_bound: WRITE_BOUND,
            clock: WallClock { at: self.base, unix_ms: UNIX_MS },
            settings: std::sync::Arc::new(self.plan.settings.clone()),
            access: broker::access::Access::default(),
            canaries: broker::canary::Canaries::default(),
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.due.first_key_value().map(|((at, _), _)| *at)
    }

    fn after(&mut self, now: Instant, delay: Duration, due: Due) {
        self.next_due += 1;
        self.due.insert((now + delay, self.next_due), due);
    }

    fn delay(&mut self) -> Duration {
        Duration::from_micros(self.rng.between(5, 800))
    }

    // ---- The end --------------------------------------------------------------------------------

    /// Everybody leaves.
    pub(crate) fn leave(&mut self) {
        self.is_leaving = true;
        self.clients.iter_mut().for_each(|client| client.set_mode(Mode::Leave));
    }

    /// The last client is alone, and empties every queue.
    pub(crate) fn drain(&mut self) {
        if let Some(last) = self.clients.last_mut() {
            last.set_mode(Mode::Drain);
        }
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.pipes.is_empty() && self.due.values().all(|due| matches!(due, Due::Tick(_)))
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.clients.iter().all(Client::is_idle)
    }

    pub(crate) fn finish(&mut self) -> Result<(), String> {
        self.checks.finish(&mut self.hits)
    }

    /// Letters sent, and deliveries.
    pub(crate) fn figures(&self) -> (u64, u64) {
        (self.desk.sent, self.desk.deliveries)
    }

    // ---- What members do ------------------------------------------------------------------------

    /// A process has ended, and its connections with it.
    pub(crate) fn crashed(&mut self, now: Instant, node: usize) -> Result<(), String> {
        let gone = |pipe: &Pipe<Place>| pipe.at.node == node;
        let conns: Vec<ConnId> =
            self.pipes.iter().filter(|(_, pipe)| gone(pipe)).map(|(conn, _)| *conn).collect();
        for conn in conns {
            self.hang_up(now, conn, false)?;
        }
        self.mail.retain(|at, _| at.node != node);
        if self.reign.as_ref().is_some_and(|reign| reign.node == node) {
            self.end_reign(now)?;
        }
        Ok(())
    }

    fn end_reign(&mut self, now: Instant) -> Result<(), String> {
        self.reign = None;
        self.see(now, &Seen::Crash { async_from: now })
    }

    /// A socket dies: what had been sent may arrive all the same, or not.
    fn hang_up(&mut self, now: Instant, conn: ConnId, breaks_off: bool) -> Result<(), String> {
        let Some(pipe) = self.pipes.remove(&conn) else { return Ok(()) };
        let arrive = self.rng.below(pipe.to_client.len() as u64 + 1) as usize;
        for (bytes, stamp) in pipe.to_client.into_iter().take(arrive) {
            let mut seen = Vec::new();
            let client = &mut self.clients[pipe.client];
            let heard = client.hear(&bytes, &mut self.desk, &mut self.hits, &mut seen);
            self.checks.facts.stamp = Some(Stamp::clone(&stamp));
            seen.iter().try_for_each(|seen| self.see(now, seen))?;
            heard?;
        }
        let mut seen = Vec::new();
        self.clients[pipe.client].lost(breaks_off, &mut seen);
        seen.iter().try_for_each(|seen| self.see(now, seen))
    }

    /// What a shard has written, to be judged if its reign is the newest.
    fn written(&mut self, around: &Around<'_>, node: usize, all: Vec<Seen>) -> Result<(), String> {
        let is_newest = self
            .reign
            .as_ref()
            .is_some_and(|reign| (reign.node, reign.boot) == (node, around.nodes[node].boot()));
        if !is_newest {
            return Ok(());
        }
        let stamp = self.stamp(around, node);
        for mut seen in all {
            if let Seen::Headed { shard, mark, .. } = &mut seen {
                *mark = stamp.marks[usize::from(shard.0)];
            }
            self.history.goes_on(&seen);
            self.checks.facts.stamp = Some(stamp.clone());
            self.see(around.now, &seen)?;
        }
        Ok(())
    }

    /// What both disks held once in this reign stays so: who has answered may crash, or lose its
    /// disk, before its answer is heard, and before the other one's write ends.
    fn note_reached(&mut self, around: &Around<'_>) {
        let Some(reign) = &mut self.reign else { return };
        let (own, other) = (&around.nodes[reign.node], &around.nodes[1 - reign.node]);
        for (index, (mark, theirs)) in own.marks().iter().zip(other.marks()).enumerate() {
            let there = &mut reign.there[index];
            let shard = ShardId(index as u16);
            *there = if around.both {
                let logs = own.held(shard).zip(other.held(shard));
                let agreed = logs.and_then(|(own, other)| agreed(own, other, theirs.durable));
                agreed.unwrap_or_default().max(*there)
            } else {
                Lsn::ZERO
            };
            let held = if around.both { mark.durable.min(*there) } else { mark.durable };
            reign.reached[index] = held.max(reign.reached[index]);
        }
    }

    /// Who reigns stands still, or may not work, from moment to moment.
    fn note_standstill(&mut self, around: &Around<'_>) {
        let Some(reign) = &self.reign else {
            self.stands_still = false;
            return;
        };
        let node = &around.nodes[reign.node];
        let mut shards = (0..SHARDS).map(ShardId);
        let goes_on = node.may_serve(around.now)
            && shards.all(|shard| node.is_shard_awake(around.now, shard));
        let stood = &mut self.checks.facts.stood;
        match stood.last_mut() {
            Some((_, ended)) if self.stands_still => *ended = around.now,
            Some(_) | None if !goes_on => stood.push((around.now, around.now)),
            Some(_) | None => {}
        }
        self.stands_still = !goes_on;
    }

    /// What the disks hold, as a member's clients may rely on it.
    fn stamp(&self, around: &Around<'_>, node: usize) -> Stamp {
        let other = around.nodes[1 - node].marks();
        let mut marks = around.nodes[node].marks();
        let reign = self.reign.as_ref().filter(|reign| reign.node == node);
        for (index, (mark, theirs)) in marks.iter_mut().zip(other).enumerate() {
            let held = if around.both { theirs.durable.min(mark.durable) } else { mark.durable };
            mark.backed_up = reign.map_or(held, |reign| reign.reached[index].max(held));
            mark.received = mark.backed_up;
        }
        Stamp { at: around.now, marks }
    }

    /// The story of this letter is told.
    pub(crate) fn follow(&mut self, letter: Option<LetterId>) {
        self.followed = letter;
    }

    pub(crate) fn into_story(self) -> Vec<String> {
        self.story
    }

    fn see(&mut self, now: Instant, seen: &Seen) -> Result<(), String> {
        // What is in a temporary queue is promised to nobody.
        if let Seen::Written(record) = seen
            && (record.kind, record.level) == (RecordKind::Message, Level::Async)
        {
            return Ok(());
        }
        if self.followed.is_some_and(|letter| self.checks.facts.concerns(seen, letter)) {
            let reign = self.reign.as_ref().map(|reign| (reign.node, reign.boot));
            self.story.push(format!("{:?} reign {reign:?}: {seen:?}", now - self.base));
        }
        self.checks.see(now, seen)
    }

    /// Takes what the members' shards have said.
    pub(crate) fn hear(&mut self, around: &mut Around<'_>) -> Result<bool, String> {
        let mut progress = false;
        for node in [0, 1] {
            while let Some((shard, told)) = around.nodes[node].poll_told() {
                progress = true;
                let at = Place { node, boot: around.nodes[node].boot(), shard };
                self.told(around, at, told)?;
            }
        }
        Ok(progress)
    }

    fn told(&mut self, around: &mut Around<'_>, at: Place, told: Told) -> Result<(), String> {
        match told {
            Told::Reigns(end) => {
                let is_known =
                    self.reign.as_ref().is_some_and(|r| (r.node, r.boot) == (at.node, at.boot));
                if !is_known {
                    if let Some(before) = self.reign.take() {
                        self.crashed(around.now, before.node)?;
                        self.see(around.now, &Seen::Crash { async_from: around.now })?;
                    }
                    let ready = vec![false; usize::from(SHARDS)];
                    let Place { node, boot, .. } = at;
                    let reached = vec![Lsn::ZERO; usize::from(SHARDS)];
                    let there = reached.clone();
                    self.reign = Some(Reign { node, boot, ready, is_ready: false, reached, there });
                }
                let held = around.nodes[at.node].held(at.shard).ok_or("a log without a disk")?;
                for seen in self.history.begins(at.shard, held, end) {
                    around.counts.found += u64::from(matches!(seen, Seen::Written(_)));
                    self.see(around.now, &seen)?;
                }
            }
            Told::Ready => {
                if let Some(reign) = &mut self.reign {
                    reign.ready[usize::from(at.shard.0)] = true;
                }
            }
            Told::Written(all) => self.written(around, at.node, all)?,
            Told::Action(action) => self.act(around, at, action)?,
        }
        Ok(())
    }

    fn act(&mut self, around: &Around<'_>, at: Place, action: Action) -> Result<(), String> {
        let now = around.now;
        match action {
            Action::Send { conn, buf } => {
                let stamp = Rc::new(self.stamp(around, at.node));
                let Some(pipe) = self.pipes.get_mut(&conn) else { return Ok(()) };
                pipe.to_client.push_back((buf.clone(), stamp));
                pipe.sends += 1;
                self.flush_to_client(now, conn);
                let delay = self.delay();
                self.after(now, delay, Due::Sent(conn, buf));
            }
            Action::PauseReceive(conn) => {
                self.pipes.entry(conn).and_modify(|pipe| pipe.paused = true);
            }
            Action::ResumeReceive(conn) => {
                self.pipes.entry(conn).and_modify(|pipe| pipe.paused = false);
                self.flush_to_broker(now, conn);
            }
            Action::Close(conn) => {
                self.pipes.entry(conn).and_modify(|pipe| pipe.closing = true);
                self.flush_to_client(now, conn);
            }
            Action::Move { conn, to, moving } => {
                self.hits.add(Hit::Moved);
                self.pipes.entry(conn).and_modify(|pipe| pipe.moving = true);
                let delay = self.delay();
                self.after(now, delay, Due::Moved(conn, to, moving));
            }
            Action::Mail { to, mail } => {
                self.hits.add(Hit::Crossed);
                // There are two shards, so what comes to one of them keeps its order.
                let at = Place { shard: to, ..at };
                self.mail.entry(at).or_default().push_back(mail);
                let delay = self.delay();
                self.after(now, delay, Due::Mail(at));
            }
            Action::Drained => {}
            Action::Authenticate { .. }
            | Action::AdminReply { .. }
            | Action::Disk(_)
            | Action::Pair(_)
            | Action::Ready(_)
            | Action::Fatal(_) => return Err(format!("nobody asked for {action:?}")),
        }
        Ok(())
    }

    // ---- One moment -----------------------------------------------------------------------------

    /// Everything that is due.
    pub(crate) fn pump(&mut self, around: &mut Around<'_>) -> Result<bool, String> {
        self.note_reached(around);
        self.note_standstill(around);
        let mut progress = self.hear(around)?;
        while let Some(entry) = self.due.first_entry().filter(|e| e.key().0 <= around.now) {
            let due = entry.remove();
            progress = true;
            self.happen(around, due)?;
        }
        self.ready_if_all(around)?;
        Ok(progress)
    }

    fn tell(&mut self, around: &mut Around<'_>, at: Place, event: Event<'_>) {
        let node = &mut around.nodes[at.node];
        if node.boot() == at.boot && node.is_up() {
            node.handle_event(around.now, at.shard, event);
        }
    }

    fn is_awake(around: &Around<'_>, at: Place) -> bool {
        around.nodes[at.node].is_shard_awake(around.now, at.shard)
    }

    fn happen(&mut self, around: &mut Around<'_>, due: Due) -> Result<(), String> {
        let now = around.now;
        let at = match &due {
            Due::Tick(_) | Due::ToClient(_) => None,
            Due::Accept(conn) | Due::ToBroker(conn) | Due::Sent(conn, _) | Due::Moved(conn, ..) => {
                let Some(pipe) = self.pipes.get(conn) else { return Ok(()) };
                Some(pipe.at)
            }
            Due::Lost(_, at) | Due::Mail(at) => Some(*at),
        };
        // Who stands still hears it later.
        if let Some(at) = at
            && around.nodes[at.node].boot() == at.boot
            && around.nodes[at.node].is_up()
            && !Self::is_awake(around, at)
        {
            self.after(now, Duration::from_millis(2), due);
            return Ok(());
        }
        match due {
            Due::Tick(client) => self.tick(around, client)?,
            Due::Accept(conn) => {
                let Some(pipe) = self.pipes.get_mut(&conn) else { return Ok(()) };
                pipe.accepted = true;
                let (at, peer) = (pipe.at, format!("client-{}", pipe.client));
                let login = broker::access::LogIn::default();
                self.tell(around, at, Event::Accepted { conn, peer, may_move: true, login });
                self.flush_to_broker(now, conn);
            }
            Due::ToBroker(conn) => self.bytes_to_broker(around, conn),
            Due::ToClient(conn) => self.bytes_to_client(around, conn)?,
            Due::Sent(conn, buf) => {
                let Some(pipe) = self.pipes.get_mut(&conn) else { return Ok(()) };
                pipe.sends -= 1;
                let (at, moving) = (pipe.at, pipe.moving);
                if !moving {
                    self.tell(around, at, Event::Sent { conn, buf });
                }
            }
            Due::Moved(conn, to, moving) => {
                let Some(pipe) = self.pipes.get_mut(&conn) else { return Ok(()) };
                if pipe.sends > 0 {
                    let delay = self.delay();
                    self.after(now, delay, Due::Moved(conn, to, moving));
                    return Ok(());
                }
                (pipe.moving, pipe.paused, pipe.at.shard) = (false, false, to);
                let at = pipe.at;
                self.tell(around, at, Event::Moved { conn, moving });
                self.flush_to_broker(now, conn);
            }
            Due::Lost(conn, at) => self.tell(around, at, Event::ConnectionLost { conn }),
            Due::Mail(at) => {
                let mail = self.mail.get_mut(&at).and_then(VecDeque::pop_front);
                let from = ShardId(1 - at.shard.0);
                if let Some(mail) = mail {
                    self.tell(around, at, Event::Mail { from, mail });
                }
            }
        }
        Ok(())
    }

    /// All shards of the newest reign serve: what they hold is looked at, and clients may come.
    fn ready_if_all(&mut self, around: &mut Around<'_>) -> Result<(), String> {
        let Some(reign) = &mut self.reign else { return Ok(()) };
        let node = &around.nodes[reign.node];
        let is_new = !reign.is_ready && reign.ready.iter().all(|ready| *ready);
        if !is_new || node.boot() != reign.boot || !node.may_serve(around.now) {
            return Ok(());
        }
        reign.is_ready = true;
        let node = reign.node;
        let Some(queues) = self.queues(around, node)? else { return Ok(()) };
        self.see(around.now, &Seen::Ready { queues })
    }

    /// What a member's queues hold; none where it is not to be asked now.
    pub(crate) fn queues(
        &mut self,
        around: &mut Around<'_>,
        node: usize,
    ) -> Result<Option<Vec<QueueView>>, String> {
        let mut views = Vec::new();
        for shard in (0..SHARDS).map(ShardId) {
            let reply = around.nodes[node].ask_shard(
                around.now,
                shard,
                AdminRequest::Queues,
                around.counts,
            )?;
            let Some(AdminReply::Queues(queues)) = reply else { return Ok(None) };
            views.extend(queues.into_iter().map(QueueView::from));
        }
        self.hear(around)?;
        Ok(Some(views))
    }

    /// Who serves clients now.
    fn serving(&self, around: &Around<'_>) -> Option<(usize, u64)> {
        let reign = self.reign.as_ref().filter(|reign| reign.is_ready)?;
        let node = &around.nodes[reign.node];
        let serves = node.boot() == reign.boot && node.may_serve(around.now);
        serves.then_some((reign.node, reign.boot))
    }

    // ---- Clients --------------------------------------------------------------------------------

    fn tick(&mut self, around: &mut Around<'_>, client: usize) -> Result<(), String> {
        let max = self.plan.tick_max.as_nanos() as u64;
        let next = Duration::from_nanos(self.rng.between(max / 10, max));
        self.after(around.now, next, Due::Tick(client));
        let mut seen = Vec::new();
        let since = around.now.duration_since(self.base).as_millis() as u64;
        self.desk.unix_ms = UNIX_MS + since;
        let wish = self.clients[client].tick(&mut self.desk, &mut self.hits, &mut seen);
        self.checks.facts.stamp = None;
        seen.iter().try_for_each(|seen| self.see(around.now, seen))?;
        match wish {
            Wish::None => {}
            Wish::Connect => self.connect(around, client),
            Wish::Cut => {
                self.hits.add(Hit::ConnectionLost);
                if let Some(conn) = self.conn_of(client) {
                    self.cut(around, conn)?;
                }
            }
        }
        self.flush_client(around, client)
    }

    fn conn_of(&self, client: usize) -> Option<ConnId> {
        self.pipes.iter().find(|(_, pipe)| pipe.client == client).map(|(conn, _)| *conn)
    }

    /// To one of both members: who does not serve refuses, and the other one is tried next time.
    fn connect(&mut self, around: &Around<'_>, client: usize) {
        let tried = self.rng.index(2);
        let Some((node, boot)) = self.serving(around).filter(|(node, _)| *node == tried) else {
            return;
        };
        self.next_conn += 1;
        let conn = ConnId(self.next_conn);
        let shard = ShardId(self.rng.below(u64::from(SHARDS)) as u16);
        let pipe = Pipe::new(client, Place { node, boot, shard });
        self.pipes.insert(conn, pipe);
        self.clients[client].connected();
        let delay = self.delay();
        self.after(around.now, delay, Due::Accept(conn));
    }

    fn cut(&mut self, around: &Around<'_>, conn: ConnId) -> Result<(), String> {
        let Some(pipe) = self.pipes.get(&conn) else { return Ok(()) };
        let is_missed = pipe.accepted && !pipe.closing && !pipe.moving;
        if is_missed {
            let (at, delay) = (pipe.at, Duration::from_micros(300));
            self.after(around.now, delay, Due::Lost(conn, at));
        }
        self.hang_up(around.now, conn, is_missed)
    }

    fn flush_client(&mut self, around: &mut Around<'_>, client: usize) -> Result<(), String> {
        let Some(conn) = self.conn_of(client) else { return Ok(()) };
        let bytes = self.clients[client].take_output();
        self.pipes.entry(conn).and_modify(|pipe| pipe.to_broker.extend(bytes));
        self.flush_to_broker(around.now, conn);
        if self.clients[client].is_over() { self.cut(around, conn) } else { Ok(()) }
    }

    fn flush_to_broker(&mut self, now: Instant, conn: ConnId) {
        let Some(pipe) = self.pipes.get_mut(&conn) else { return };
        if pipe.is_open() && !pipe.to_broker_due && !pipe.to_broker.is_empty() {
            pipe.to_broker_due = true;
            let delay = self.delay();
            self.after(now, delay, Due::ToBroker(conn));
        }
    }

    fn bytes_to_broker(&mut self, around: &mut Around<'_>, conn: ConnId) {
        let Some(pipe) = self.pipes.get_mut(&conn) else { return };
        pipe.to_broker_due = false;
        let len = pipe.to_broker.len() as u64;
        if len == 0 || !pipe.is_open() {
            return;
        }
        let take = match self.rng.below(8) {
            0 => self.rng.between(1, len.min(9)),
            1 | 2 => self.rng.between(1, len),
            _ => len.min(256 * 1024),
        };
        let bytes: Vec<u8> = pipe.to_broker.drain(..take as usize).collect();
        let at = pipe.at;
        self.tell(around, at, Event::Received { conn, bytes: &bytes });
        self.flush_to_broker(around.now, conn);
    }

    fn flush_to_client(&mut self, now: Instant, conn: ConnId) {
        let Some(pipe) = self.pipes.get_mut(&conn) else { return };
        if (!pipe.to_client.is_empty() || pipe.closing) && !pipe.to_client_due {
            pipe.to_client_due = true;
            let delay = self.delay();
            self.after(now, delay, Due::ToClient(conn));
        }
    }

    fn bytes_to_client(&mut self, around: &mut Around<'_>, conn: ConnId) -> Result<(), String> {
        let Some(pipe) = self.pipes.get_mut(&conn) else { return Ok(()) };
        pipe.to_client_due = false;
        let client = pipe.client;
        let Some((mut bytes, stamp)) = pipe.to_client.pop_front() else {
            return if pipe.closing { self.hang_up(around.now, conn, false) } else { Ok(()) };
        };
        if self.rng.chance(200) && bytes.len() > 1 {
            let rest = bytes.split_off(self.rng.between(1, bytes.len() as u64 - 1) as usize);
            pipe.to_client.push_front((rest, Rc::clone(&stamp)));
        }
        let mut seen = Vec::new();
        let heard = self.clients[client].hear(&bytes, &mut self.desk, &mut self.hits, &mut seen);
        self.checks.facts.stamp = Some(Stamp::clone(&stamp));
        seen.iter().try_for_each(|seen| self.see(around.now, seen))?;
        heard?;
        self.flush_to_client(around.now, conn);
        self.flush_client(around, client)
    }
}
