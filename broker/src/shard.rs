//! A shard: its share of the queues, its connections, its journal, and the order of steps.
//!
//! ```text
//!   handle(event)                         poll()
//!   ─────────────                         ──────
//!   bytes, disk answers, mail,            1 mail to ourselves and from others
//!   operators, time: each is taken        2 commit: the watermark moved, answers go out
//!   to the room it belongs to             3 dispatch: visible messages meet credit, and what
//!                                           is not in memory is asked for
//!                                         4 what takes many turns goes on: purges and the
//!                                           like, the head's recycling, memory, a checkpoint
//!                                         5 transmit: what the connections have to say
//!                                         6 disk: batches are sealed only now, so that
//!                                           everything of one turn shares a batch
//! ```
//! ```text
//!   Recovering ──▶ Joining ──▶ Serving ──▶ Stopping ──▶ Stopped
//!    own log is  ▲  shard 0's    ready       no new        all answered, all
//!    read        │  catalogue    (once)      transfers     closed, the journal too
//!        └▶ Standing: a member of a pair, until it has the role (`shard/pair.rs`)
//! ```
//! A host calls `handle` for everything that happened, then `poll` until there is nothing left,
//! then sleeps until `poll_timeout` or the next event.
//!
//! Invariants: no step's body is in this file; the shard alone carries data between `amqp`, `queue`
//! and `journal`, which do not know each other; mail that comes before the shard serves is kept and
//! handled then. A failure that has no answer becomes one `Action::Fatal`, and nothing after it.

use std::collections::{BTreeSet, VecDeque};
use std::time::Instant;

use amqp::session::SessionId;
use journal::{
    DiskOp, FileId, Journal, LogReader, Poison, PoisonCause, QueueId, Recovery, ShardId,
};
use replica::backup::Follows;

use crate::apply::State;
use crate::clock::WallClock;
use crate::duplicates::{Bounds, Duplicates};
use crate::event::{Action, ConnId, Event, Fatal, earlier};
use crate::flat_map::FlatMap;
use crate::limits::{DUPLICATES_SHARE, STRANGER_LINES_PER_SECOND};
use crate::mail::{LinkKey, LinkRef, Mail};
use crate::pending::{BackupMarks, Pending, Watermarks};
use crate::ration::Ration;

mod chain_copy;
mod checkpoint;
mod commit;
mod compaction;
mod connections;
mod creation;
mod dead_letters;
mod depth;
mod egress;
mod gradual;
mod idle;
mod inflow;
mod ingress;
mod link;
mod modified;
mod move_flow;
mod moving;
mod operator;
mod outflow;
mod paging;
pub mod pair;
mod point;
mod recycle;
mod relay;
mod sent;
mod sole;
mod start;
mod temporary;
mod terms;
mod unfinished;
mod users;

use compaction::Compaction;
use creation::{Creations, Wish};
use link::{Conn, Links};
pub use moving::Moving;
use operator::Counters;
pub use paging::Paged;

use recycle::Recycling;
use temporary::Temporaries;

/// What a shard needs to know.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// Which shard this is.
    pub shard: ShardId,
    /// How many there are; shard 0 owns the catalogue.
    pub shards: u16,
    /// Segment size of the journal, bytes, as formatted.
    pub segment_bytes: u64,
    /// The level of queues that are created here.
    pub level: journal::Level,
    /// Bound of payload and index in memory, bytes.
    pub memory_bytes_max: u64,
    /// A template for each connection; its SASL setting says which mechanisms are offered.
    pub amqp: amqp::connection::Config,
    /// What each user may do.
    pub access: crate::access::Access,
    /// There is a backup in the in-sync set: levels 2 and 3 wait for it.
    pub backup: bool,
    /// Segments allowed, for the operator's eyes.
    pub segments_max: u64,
    /// How long the disk may take for one operation of recovery.
    pub disk_bound: std::time::Duration,
    /// The time of day.
    pub clock: WallClock,
    /// What holds for which address.
    pub settings: std::sync::Arc<crate::settings::Settings>,
    /// Rules that are broken on purpose: none, but in tests of the tests.
    pub canaries: crate::canary::Canaries,
}

/// How far a shard's life has come.
#[derive(Debug)]
enum Phase {
    Recovering(Box<Recovery>),
    /// Another member may write the log.
    Standing(Box<pair::Standing>),
    Joining,
    Serving,
    Stopping,
    Stopped,
}

/// Queues where messages may meet credit, each once, by id.
#[derive(Debug, Default)]
struct Dirty {
    /// The first is last.
    queues: Vec<QueueId>,
}

impl Dirty {
    fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    fn insert(&mut self, queue: QueueId) {
        if self.queues.last() == Some(&queue) {
            return;
        }
        if let Err(at) = self.queues.binary_search_by(|other| queue.cmp(other)) {
            self.queues.insert(at, queue);
        }
    }

    fn pop_first(&mut self) -> Option<QueueId> {
        self.queues.pop()
    }
}

/// One shard.
#[derive(Debug)]
pub struct Shard {
    config: ShardConfig,
    /// The properties of our open to clients that come by TLS.
    secure_open: bytes::Bytes,
    phase: Phase,
    journal: Option<Journal>,
    backup: BackupMarks,
    /// Its part in a pair, if it has one.
    member: Option<Box<pair::Membership>>,
    state: State,
    pending: Pending,
    conns: FlatMap<ConnId, Box<Conn>>,
    links: Links,
    deadlines: BTreeSet<(Instant, ConnId)>,
    mail: VecDeque<Mail>,
    early: Vec<Mail>,
    actions: VecDeque<Action>,
    dirty_conns: VecDeque<ConnId>,
    unfinished: unfinished::Unfinished,
    dirty_queues: Dirty,
    /// Where messages could meet credit, but others have to expire before.
    overdue_queues: Vec<QueueId>,
    creations: Creations,
    temporaries: Temporaries,
    soles: sole::Soles,
    idle: idle::Idle,
    parked: ingress::Parked,
    inflows: inflow::Inflows,
    waiting: VecDeque<egress::Parked>,
    recycling: Recycling,
    compaction: Compaction,
    checkpointing: checkpoint::Checkpointing,
    paging: paging::Paging,
    fetches: outflow::Fetches,
    /// Sessions in which the next link may fetch a message.
    flows_due: BTreeSet<(ConnId, SessionId)>,
    moves: dead_letters::Moves,
    /// Bytes of messages that are in no queue and in no log: copies on their way to other queues,
    /// what waits at a relay, and fragments that wait for their connection.
    aside_bytes: u64,
    /// When pauses after failed deliveries end, by queue; at least the next of each queue.
    pausing: BTreeSet<(Instant, QueueId)>,
    gradual: gradual::Gradual,
    point: point::Point,
    pressing: ingress::Pressure,
    pressure: Vec<bool>,
    /// Queues of any shard that are full: their producers get no credit.
    full_queues: BTreeSet<QueueId>,
    report: crate::event::RecoveryReport,
    /// How far the pages of a checkpoint were read.
    load: crate::apply::Load,
    recovery_due: Option<Instant>,
    report_head: Option<u64>,
    catalogue_seen: bool,
    counters: Counters,
    stranger_lines: Ration<STRANGER_LINES_PER_SECOND>,
    farewell_said: bool,
    stopped_shards: u16,
    /// Where a message's new header is written, once more for each.
    head: Vec<u8>,
    /// Something happened since the last step, or that step left something to do.
    stirred: bool,
    dead: bool,
}

impl Shard {
    /// A shard that begins by reading its log.
    pub fn new(mut config: ShardConfig, recovery: Recovery) -> Self {
        config.amqp.offered_capabilities = terms::OFFERED_CAPABILITIES.map(str::to_owned).to_vec();
        config.amqp.properties = Some(terms::open_properties(&[], false));
        config.amqp.short_properties.clone_from(&config.amqp.properties);
        let shards = usize::from(config.shards);
        Self {
            state: empty_state(&config),
            config,
            secure_open: terms::open_properties(&[], true),
            phase: Phase::Recovering(Box::new(recovery)),
            journal: None,
            backup: BackupMarks::default(),
            member: None,
            pending: Pending::new(),
            conns: FlatMap::default(),
            links: Links::default(),
            deadlines: BTreeSet::new(),
            mail: VecDeque::new(),
            early: Vec::new(),
            actions: VecDeque::new(),
            dirty_conns: VecDeque::new(),
            unfinished: unfinished::Unfinished::default(),
            dirty_queues: Dirty::default(),
            overdue_queues: Vec::new(),
            creations: Creations::default(),
            temporaries: Temporaries::default(),
            soles: sole::Soles::default(),
            idle: idle::Idle::default(),
            parked: ingress::Parked::default(),
            inflows: inflow::Inflows::default(),
            waiting: VecDeque::new(),
            recycling: Recycling::default(),
            compaction: Compaction::default(),
            checkpointing: checkpoint::Checkpointing::default(),
            paging: paging::Paging::default(),
            fetches: outflow::Fetches::default(),
            flows_due: BTreeSet::new(),
            moves: dead_letters::Moves::default(),
            aside_bytes: 0,
            pausing: BTreeSet::new(),
            gradual: gradual::Gradual::default(),
            point: point::Point::default(),
            pressing: ingress::Pressure::default(),
            pressure: vec![false; shards],
            full_queues: BTreeSet::new(),
            report: crate::event::RecoveryReport::default(),
            load: crate::apply::Load::default(),
            recovery_due: None,
            report_head: None,
            catalogue_seen: false,
            counters: Counters::default(),
            stranger_lines: Ration::default(),
            farewell_said: false,
            stopped_shards: 0,
            head: Vec::new(),
            stirred: true,
            dead: false,
        }
    }

    /// A shard of a member of a pair: it serves when it is told to reign. Its recovery is
    /// [`Recovery::of_member`].
    pub fn member(config: ShardConfig, recovery: Recovery, follows: Follows) -> Self {
        Self {
            member: Some(Box::new(pair::Membership::new(follows))),
            ..Self::new(config, recovery)
        }
    }

    /// How fast this shard's log is read back for a backup that has to catch up, bytes a second, in
    /// reigns that begin from now on; without it as fast as it goes. No shard of a pair: nothing.
    pub fn pace_catch_up(&mut self, bytes_a_second: u64) {
        if let Some(member) = &mut self.member {
            member.pace_catch_up(bytes_a_second);
        }
    }

    /// Which shard this is.
    pub fn id(&self) -> ShardId {
        self.config.shard
    }

    /// Whether it serves: recovery is over and it was not asked to stop.
    pub fn is_serving(&self) -> bool {
        matches!(self.phase, Phase::Serving)
    }

    /// What its log says, for checkers and operators.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Whether nothing waits for a commit.
    pub fn is_quiet(&self) -> bool {
        self.pending.is_empty()
            && self.mail.is_empty()
            && self.parked.is_empty()
            && self.inflows.is_quiet()
            && self.waiting.is_empty()
            && self.creations.is_empty()
            && self.temporaries.is_quiet()
            && self.idle.is_quiet()
            && self.moves.is_empty()
    }

    /// Connections that it serves; at most [`limits::CONNECTIONS_MAX`](crate::limits).
    pub fn connections(&self) -> usize {
        self.conns.len()
    }

    /// Whether the peer's `open` has come; false too for one that this shard does not serve.
    pub fn has_opened(&self, conn: ConnId) -> bool {
        self.conns.get(conn).is_some_and(|conn| conn.opened)
    }

    /// Links of connections that this shard knows, for the checker of leaks.
    pub fn links(&self) -> usize {
        self.links.len()
    }

    /// Something happened.
    pub fn handle(&mut self, now: Instant, event: Event<'_>) {
        if self.dead {
            return;
        }
        // That bytes were taken stirs only a connection that has more to say.
        self.stirred |= !matches!(event, Event::Sent { .. });
        match event {
            Event::Accepted { conn, peer, may_move, login } => {
                self.accepted(now, connections::Arrival { conn, peer, may_move, login });
            }
            Event::Moved { conn, moving } => self.moved(now, conn, *moving),
            Event::Received { conn, bytes } => self.received(now, conn, bytes),
            Event::Sent { conn, buf } => {
                self.sent(now, conn, buf);
                self.stirred |= !self.dirty_conns.is_empty();
            }
            Event::ConnectionLost { conn } => self.connection_lost(now, conn),
            Event::PeerEnded { conn } => self.peer_ended(now, conn),
            Event::MustEnd { conn, why } => self.must_end(conn, why),
            Event::Authenticated { conn, verdict } => self.authenticated(now, conn, verdict),
            Event::Disk(done) => match &mut self.phase {
                // A reader of the log that was cut is gone.
                Phase::Recovering(_) if LogReader::owns(done.id) => {}
                Phase::Recovering(recovery) => {
                    recovery.handle_disk(now, done);
                    self.recovery_due = None;
                    self.recover(now);
                }
                Phase::Standing(_) => self.pair_disk(now, done),
                Phase::Joining | Phase::Serving | Phase::Stopping | Phase::Stopped => {
                    if self.member.is_some() && LogReader::owns(done.id) {
                        self.pair_disk(now, done);
                    } else if let Some(journal) = &mut self.journal {
                        journal.handle_disk(now, done);
                    }
                }
            },
            Event::Pair(event) => self.pair(now, *event),
            Event::Backup(marks) => self.backup.advance(marks),
            Event::WallClock(unix_ms) => self.config.clock = WallClock { at: now, unix_ms },
            Event::Mail { from, mail } => self.take_mail(from, mail),
            Event::Admin { id, request } => self.operator(now, id, request),
            Event::Timer => self.timer(now),
            Event::Shutdown => self.stop(),
        }
    }

    /// The next thing to do. Call it until it gives `None`.
    pub fn poll(&mut self, now: Instant) -> Option<Action> {
        loop {
            if let Some(action) = self.actions.pop_front() {
                self.dead |= matches!(action, Action::Fatal(_));
                return Some(action);
            }
            if self.dead || !std::mem::take(&mut self.stirred) {
                return None;
            }
            self.stirred = self.step(now);
        }
    }

    /// When `Event::Timer` is next due. Who is dead waits for nothing.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.dead {
            return None;
        }
        let conns = self.deadlines.first().map(|(at, _)| *at);
        let journal = self.journal.as_ref().and_then(Journal::poll_timeout);
        let steps = earlier(self.pressing.lifts_at, self.gradual.due());
        let steps = earlier(steps, self.shed_due());
        let pauses = earlier(self.pausing.first().map(|(at, _)| *at), self.idle_due());
        let steps = earlier(earlier(steps, self.next_due()), earlier(pauses, self.moves_due()));
        let steps = earlier(steps, earlier(self.point.due(), self.checkpointing.due()));
        let steps = earlier(steps, self.unfinished.due().filter(|_| self.is_serving()));
        self.or_pair_timeout(earlier(earlier(self.recovery_due, steps), earlier(conns, journal)))
    }

    /// One round of the steps at the top; whether there is more to do. Most rounds are for one
    /// message, so none is made only to see that there is nothing.
    #[inline(never)]
    fn step(&mut self, now: Instant) -> bool {
        if let Phase::Recovering(recovery) = &mut self.phase {
            if let Some(op) = recovery.poll_disk() {
                self.recovery_due = Some(now + self.config.disk_bound);
                self.actions.push_back(Action::Disk(op));
                return true;
            }
            return self.recover(now);
        }
        if let Phase::Standing(_) = self.phase {
            return self.step_standing(now);
        }
        self.step_mail(now);
        self.step_commit(now);
        self.step_reads();
        self.step_parked(now);
        self.step_waiting(now);
        self.step_creations(now);
        self.step_temporaries(now);
        self.step_idle(now);
        self.step_pauses(now);
        self.step_due(now);
        self.step_moves(now);
        self.step_dispatch(now);
        self.step_read_back();
        self.step_flows(now);
        self.step_fetch();
        self.step_gradual(now);
        self.step_recycle(now);
        self.step_shed(now);
        self.step_checkpoint(now);
        self.step_pressure(now);
        self.step_trim(now);
        self.step_transmit(now);
        self.step_stop();
        self.step_disk(now);
        if self.member.is_some() {
            self.step_replicate(now);
        }
        // What could not be appended may find room now that the disk was given something.
        let waits = !self.parked.is_empty() || !self.waiting.is_empty();
        let waits = waits || !self.creations.is_empty() || !self.temporaries.is_quiet();
        !self.mail.is_empty()
            || self.journal_moved()
            || !self.dirty_queues.is_empty()
            || !self.dirty_conns.is_empty()
            || !self.flows_due.is_empty()
            || self.has_to_move()
            || (waits && !self.actions.is_empty())
    }

    fn step_mail(&mut self, now: Instant) {
        while let Some(mail) = self.mail.pop_front() {
            self.handle_mail(now, mail);
        }
    }

    fn step_disk(&mut self, now: Instant) {
        let Some(journal) = &mut self.journal else { return };
        while let Some(op) = journal.poll_disk(now) {
            if let (DiskOp::Write { .. }, FileId::Segment { .. }) = (&op, op.file()) {
                self.counters.batches_total += 1;
            }
            self.actions.push_back(Action::Disk(op));
        }
        if let Some(poison) = journal.poisoned().copied() {
            self.poisoned(&poison);
        }
    }

    #[cold]
    fn poisoned(&mut self, poison: &Poison) {
        let cause = match poison.cause {
            PoisonCause::Failed(error) => error.to_string(),
            PoisonCause::Hung => "the disk has not answered in time".to_owned(),
            PoisonCause::Unreadable(_) => {
                let what = format!("{poison}; what was acknowledged may still be on the disk");
                return self.fatal(Fatal::JournalUnreadable(what));
            }
        };
        let what = format!(
            "{cause} at offset {} of {}; nothing more is acknowledged; check the disk, then start \
             again: what was acknowledged is on it",
            poison.offset, poison.file
        );
        self.fatal(Fatal::JournalPoisoned(what));
    }

    /// Whether the disk's answers (or an append) made something committed that is not handled yet.
    fn journal_moved(&self) -> bool {
        self.pending.has_committed(&self.watermarks())
    }

    fn timer(&mut self, now: Instant) {
        if self.recovery_due.is_some_and(|at| at <= now) {
            self.fatal(Fatal::JournalUnreadable(format!(
                "shard {}: the disk has not answered for {:?} while the log was read; check it",
                self.config.shard.0, self.config.disk_bound
            )));
        }
        if let Some(journal) = &mut self.journal
            && journal.poll_timeout().is_some_and(|at| at <= now)
        {
            journal.handle_timeout(now);
        }
        self.thaw_if_due(now);
        if self.member.is_some() {
            self.pair_timer(now);
        }
        self.connection_timeouts(now);
    }

    fn take_mail(&mut self, from: ShardId, mail: Mail) {
        if self.point.is_frozen() && from != self.config.shard {
            self.point.keep_mail(from, mail);
        } else if let Mail::Pressure(on) = mail {
            self.pressed_by(from, on);
        } else if self.takes(&mail) {
            self.mail.push_back(mail);
        } else {
            self.early.push(mail);
        }
    }

    fn takes(&self, mail: &Mail) -> bool {
        match self.phase {
            Phase::Recovering(_) | Phase::Standing(_) => false,
            Phase::Joining => matches!(mail, Mail::Catalogue { .. } | Mail::Arrivals(_)),
            Phase::Serving | Phase::Stopping | Phase::Stopped => true,
        }
    }

    fn handle_mail(&mut self, now: Instant, mail: Mail) {
        match mail {
            Mail::Resolve { asker, name, may_create } => {
                self.resolve(now, asker, Wish { name, may_create });
            }
            Mail::Resolved { asker, name, result } => self.resolved(now, asker, &name, result),
            Mail::Make { asker, temporary } => self.make_queue(now, asker, temporary),
            Mail::Made { asker, owner, result } => self.made(now, asker, owner, result),
            Mail::Tied(queue) => self.tied(queue),
            Mail::Untied { queue, maker } => self.untied(now, queue, maker),
            Mail::Delete(queue) => self.delete_queue(now, queue),
            Mail::Deleted { queue, temporary } => self.deleted(now, queue, temporary),
            Mail::Open(record) => self.open_queue(now, record),
            Mail::Opened(queue) => self.opened(queue),
            Mail::Catalogued(record) => self.catalogued(now, record),
            Mail::Catalogue { queues, next_queue_id } => self.join(now, queues, next_queue_id),
            Mail::Provide { shard, name } => self.provide(now, shard, name),
            Mail::NotProvided { name, refusal } => self.not_provided(now, &name, &refusal),
            Mail::Publish { queue, whence, message, traits } => {
                self.publish(now, ingress::Publish { queue, whence, message, traits });
            }
            Mail::Part(part) => self.publish_part(now, *part),
            Mail::Taken { conn, bytes } => self.taken(conn, bytes),
            Mail::MovedOn(origin) => self.moved_on(origin),
            Mail::Moved { origin, copy } => self.copied(now, origin, copy),
            Mail::NotMoved { origin, refusal } => self.not_moved(now, origin, &refusal),
            Mail::Landed(copies) => copies.into_iter().for_each(|copy| self.landed(copy)),
            Mail::Arrivals(copies) => self.heard_arrivals(now, copies),
            Mail::Published { link, token, result } => self.published(link, token, &result),
            Mail::Consume { queue, consumer, browses, asks } => {
                self.consume(queue, consumer, browses, asks);
            }
            Mail::Consumes { consumer, result } => self.consumes(now, consumer, &result),
            Mail::Full { queue, is_full } => self.heard_full(queue, is_full),
            Mail::Credit { queue, consumer, more, drain } => {
                self.credit(queue, consumer, more, drain);
            }
            Mail::Deliver {
                consumer,
                sequence,
                message,
                delivery_count,
                first_acquirer,
                added,
                expiry_unix_ms,
            } => {
                let stashed = link::Stashed {
                    sequence,
                    message,
                    delivery_count,
                    first_acquirer,
                    added,
                    expiry_unix_ms,
                };
                self.deliver(now, consumer, stashed);
            }
            Mail::Fetch(fetch) => self.fetch(outflow::Asks::Consumer(fetch)),
            Mail::Fetched { fetch, fragment } => self.fetched(now, fetch, fragment),
            Mail::Drained { consumer, unused } => self.drained(now, consumer, unused),
            Mail::Settle { queue, consumer, sequence, outcome, confirm } => {
                self.settle(now, queue, consumer, egress::Verdict { sequence, outcome, confirm });
            }
            Mail::Modify { queue, consumer, sequence, outcome, confirm, annotations } => {
                let verdict = egress::Verdict { sequence, outcome, confirm };
                self.modify(now, queue, consumer, verdict, &annotations);
            }
            Mail::Settled { consumer, sequence } => self.settled(consumer, sequence),
            Mail::Unconsume { queue, consumer } => self.unconsume(now, queue, consumer),
            Mail::Unconsumed { consumer } => self.unconsumed(consumer),
            Mail::Claim { claim, name, closes_existing } => {
                self.claim(now, claim, name, closes_existing);
            }
            Mail::Claimed { claim, is_granted } => self.claimed(claim, is_granted),
            Mail::GiveUp(claim) => self.give_up(claim),
            Mail::Unclaim(claim) => self.unclaimed(claim),
            Mail::Departed(claim) => self.departed(now, claim),
            Mail::Arrived { claim, name, shard } => self.arrived_with(claim, name, shard),
            Mail::NoMore => self.stopped_shards += 1,
            Mail::Pressure(on) => self.pressed_by(self.config.shard, on),
        }
    }

    /// Mail for this shard would be handled at once: nothing is before it. Whoever sees that may
    /// do what the letter would ask for, without the letter.
    fn is_next(&self, to: ShardId) -> bool {
        to == self.config.shard && self.mail.is_empty()
    }

    /// Sends mail, also to ourselves.
    fn post(&mut self, to: ShardId, mail: Mail) {
        if to == self.config.shard {
            self.mail.push_back(mail);
        } else {
            self.actions.push_back(Action::Mail { to, mail });
        }
    }

    fn post_all(&mut self, mail: &Mail) {
        for to in (0..self.config.shards).map(ShardId) {
            self.post(to, mail.clone());
        }
    }

    fn fatal(&mut self, cause: Fatal) {
        if !self.actions.iter().any(|action| matches!(action, Action::Fatal(_))) {
            self.actions.push_back(Action::Fatal(cause));
        }
    }

    fn watermarks(&self) -> Watermarks {
        match &self.journal {
            Some(journal) => watermarks(journal, self.config.backup, self.backup),
            None => Watermarks { durable: journal::Lsn::ZERO, backup: None },
        }
    }

    fn here(&self, key: LinkKey) -> LinkRef {
        LinkRef { shard: self.config.shard, key }
    }

    fn touch(&mut self, conn: ConnId) {
        if let Some(conn) = self.conns.get_mut(conn)
            && !std::mem::replace(&mut conn.dirty, true)
        {
            self.dirty_conns.push_back(conn.id);
        }
    }
}

/// Of an empty log.
fn empty_state(config: &ShardConfig) -> State {
    State::new(config.segment_bytes, Duplicates::new(duplicate_bounds(config)))
}

/// A share of the memory, and of the log when all are carried forward.
fn duplicate_bounds(config: &ShardConfig) -> Bounds {
    let log_bytes = config.segment_bytes.saturating_mul(config.segments_max);
    Bounds {
        bytes_max: config.memory_bytes_max.min(log_bytes) / DUPLICATES_SHARE,
        count_max: config.settings.duplicate_ids_max(),
    }
}

fn watermarks(journal: &Journal, backup: bool, marks: BackupMarks) -> Watermarks {
    Watermarks { durable: journal.durable(), backup: backup.then_some(marks) }
}
