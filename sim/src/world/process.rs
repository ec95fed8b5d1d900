//! The process in its world: it starts, serves, is stopped, killed, or cut off from power.
//!
//! ```text
//!   Start ─▶ format or recovery ─▶ all shards ready ─▶ … ─▶ stop, crash, or a death of its own
//!     ▲                                                          │ mail, sends and answers under
//!     └──────────────────── a moment later ──────────────────────┘ way belong to nobody any more
//! ```
//! A death that the disk did not cause is a broken promise; so is a start that refuses a sound log.

use std::time::{Duration, Instant};

use broker::admin::{AdminId, AdminReply, AdminRequest, ShardStats};
use broker::limits::MOVE_RETRY_MAX;
use broker::mail::{Share, Whence};
use broker::pending::BackupMarks;
use broker::{Action, ConnId, Event, Fatal, Mail};
use journal::{DiskDone, DiskOp, Lsn, ShardId};

use super::node::Node;
use super::{Due, HOST, Phase, SEGMENT_BYTES, World};
use crate::check::{QueueView, Seen};
use crate::client::Client;
use crate::disk::{Crash, Fate, Owner};
use crate::hits::Hit;
use crate::plan::Canary;
use crate::rng::Rng;

impl World {
    pub(super) fn start(&mut self) -> Result<(), String> {
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
        let node = Node::new(&self.plan, level, self.options.canary, self.clock(), &self.disk)?;
        self.node = Some(node);
        self.pump_host()
    }

    /// Makes a block of some segment unreadable for the start that comes.
    pub(super) fn spoil(&mut self) {
        let shard = ShardId(self.rng.below(u64::from(self.plan.shards)) as u16);
        let slots = self.disk.segments(shard);
        if !slots.is_empty() {
            let slot = self.rng.pick(&slots).slot;
            let block = self.rng.below(SEGMENT_BYTES / 4096);
            self.disk.spoil(journal::FileId::Segment { shard, slot }, block);
            self.excuse = true;
        }
    }

    pub(super) fn draw_crash(&mut self) {
        self.crash_at = self.options.crash.filter(|_| self.process == 1);
        if self.phase == Phase::Work && self.plan.crash_every > 0 {
            let soon = self.rng.chance(100);
            let every = if soon { 40 } else { 2 * self.plan.crash_every };
            // A long log takes many moments to read: now and then a start must come to its end.
            let patience = if self.starts_cut < 3 { 0 } else { 20_000 };
            let moment = self.disk.moments() + patience + self.rng.between(1, every);
            let crash = self.draw_crash_kind();
            self.crash_at = Some((moment, crash));
            self.crash_patient = self.rng.chance(600);
        }
    }

    pub(super) fn draw_crash_kind(&mut self) -> Crash {
        let fate =
            *self.rng.pick(&[Fate::Seeded, Fate::Seeded, Fate::Lost, Fate::Whole, Fate::Torn]);
        if self.rng.chance(self.plan.power_cuts) {
            Crash::PowerCut(fate)
        } else {
            Crash::Kill(fate)
        }
    }

    /// Crashes, if the moment for it has come; whether it did.
    pub(super) fn crash_if_due(&mut self) -> Result<bool, String> {
        let Some((moment, crash)) = self.crash_at else { return Ok(false) };
        if self.disk.moments() < moment || self.node.is_none() {
            return Ok(false);
        }
        // What is interesting is a crash with several writes in flight: wait for that, but not
        // long.
        let patient = self.crash_patient && self.disk.moments() < moment + 200;
        if patient && self.disk.writes_in_flight() < 3 {
            return Ok(false);
        }
        let serving = self.node.as_ref().is_some_and(Node::is_ready);
        if serving && !self.stopping && self.rng.chance(self.plan.clean_stops) {
            self.crash_at = Some((moment + self.plan.crash_every, crash));
            return self.stop().map(|()| false);
        }
        self.crash(crash).map(|()| true)
    }

    pub(super) fn stop(&mut self) -> Result<(), String> {
        self.stopping = true;
        (0..self.plan.shards).map(ShardId).try_for_each(|shard| self.tell(shard, Event::Shutdown))
    }

    pub(super) fn crash(&mut self, crash: Crash) -> Result<(), String> {
        self.count_paged();
        let Some(node) = self.node.take() else { return Ok(()) };
        let mut shards = (0..self.plan.shards).map(ShardId);
        self.hits.add_many(Hit::GivingBackCut, u64::from(shards.any(|at| node.gives_back(at))));
        if self.disk.is_checkpointing() {
            self.hits.add(Hit::CheckpointCut);
        }
        if !node.is_ready() {
            self.hits.add(Hit::CrashInRecovery);
            self.starts_cut += 1;
        } else if self.stopping || self.clients.iter().any(Client::is_parting) {
            self.hits.add(Hit::CrashInDrain);
        }
        // Whatever was appended inside the flush window, and waits for writes that have not ended.
        let oldest = self.disk.oldest_write().unwrap_or(self.now).min(self.now);
        let window = self.checks.facts.early_bound;
        let async_from = oldest.checked_sub(window).unwrap_or(self.base);
        self.disk.crash(crash);
        self.end_process(async_from.max(self.base))
    }

    /// What the process that ends now has dropped from memory, and read back.
    pub(super) fn count_paged(&mut self) {
        for paged in self.node.iter().flat_map(Node::paged) {
            self.hits.add_many(Hit::PagedOut, paged.out_total);
            self.hits.add_many(Hit::PagedIn, paged.in_total);
            self.hits.add_many(Hit::Fetched, paged.fetched_total);
        }
    }

    pub(super) fn end_process(&mut self, async_from: Instant) -> Result<(), String> {
        self.node = None;
        self.process += 1;
        self.crash_at = None;
        self.audit.crashed();
        self.hits.add_many(Hit::PurgeCut, self.purges.len() as u64);
        self.purges.clear();
        self.forgotten.fill(0);
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
    pub(super) fn socket_dies(&mut self, conn: ConnId) -> Result<(), String> {
        if self.rng.chance(500) {
            while self.pipes.get(&conn).is_some_and(|pipe| !pipe.to_client.is_empty()) {
                self.bytes_to_client(conn)?;
            }
        }
        if let Some(pipe) = self.pipes.remove(&conn) {
            self.lost(pipe.client)?;
        }
        Ok(())
    }

    pub(super) fn died(&mut self, cause: &Fatal) -> Result<(), String> {
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
    pub(super) fn tell(&mut self, shard: ShardId, event: Event<'_>) -> Result<(), String> {
        let Some(node) = &mut self.node else { return Ok(()) };
        node.handle(shard, self.now, event);
        if node.gives_back(shard) {
            self.hits.add(Hit::GivenBack);
            // That is over soon: a crash of its own makes sure that one falls into it.
            if self.crash_at.is_some() && node.is_ready() && self.rng.chance(600) {
                let crash = self.draw_crash_kind();
                return self.crash(crash);
            }
        }
        if self.rng.chance(750) {
            return self.poll(shard);
        }
        if node.wants_poll(shard) {
            let soon = Duration::from_nanos(self.rng.between(100, 50_000));
            self.after(soon, Due::Poll(shard));
        }
        Ok(())
    }

    pub(super) fn poll(&mut self, shard: ShardId) -> Result<(), String> {
        let process = self.process;
        while let Some(action) = self.node.as_mut().and_then(|node| node.poll(shard, self.now)) {
            self.act(shard, action)?;
            if self.process != process {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn act(&mut self, shard: ShardId, action: Action) -> Result<(), String> {
        self.note_forgotten(shard)?;
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
            Action::Move { conn, to, moving } => self.leaves(conn, to, moving),
            Action::Authenticate { .. } => return Err("nobody sent a password".to_owned()),
            Action::Disk(op) => self.submit(Owner(shard.0), op)?,
            Action::Mail { to, mail } => {
                assert_ne!(to, shard, "mail to itself never leaves a shard");
                self.note_mail(&mail);
                let is_read = matches!(mail, Mail::Arrivals(_));
                self.mail.entry((shard, to)).or_default().push_back(mail);
                let delay = self.delay();
                self.after(delay, Due::Mail { from: shard, to });
                // Others may serve, and write, on the word of a shard that does not serve yet.
                if is_read {
                    self.log_is_read(shard)?;
                }
            }
            Action::AdminReply { id, reply } => self.purged(id, &reply)?,
            Action::Pair(said) => return Err(format!("a broker alone has a pair: {said:?}")),
            Action::Ready(report) => {
                if report.truncated.is_some() {
                    self.hits.add(Hit::TailCut);
                }
                if let Some(node) = &mut self.node {
                    node.set_ready(shard);
                }
                self.log_is_read(shard)?;
                self.ready_if_all()?;
            }
            Action::Drained => {
                let drained = self.node.as_mut().is_some_and(|node| node.set_drained(shard));
                if drained {
                    self.hits.add(Hit::CleanStop);
                    self.disk.crash(Crash::Kill(Fate::Whole));
                    self.end_process(self.now + Duration::from_nanos(1))?;
                }
            }
            Action::Fatal(cause) => self.died(&cause)?,
        }
        Ok(())
    }

    /// An operator purges a queue, if it is there.
    pub(super) fn purge(&mut self) -> Result<(), String> {
        let name = self.rng.pick(&self.plan.queues).clone();
        self.purge_queue(name)
    }

    /// What has expired and finds no room where it has to go is nobody's but an operator's, who is
    /// patient: its next try comes within `MOVE_RETRY_MAX`.
    pub(super) fn relieve(&mut self) -> Result<(), String> {
        let since = self.relieved.map_or(self.phase_since, |at| at.max(self.phase_since));
        if !self.plan.is_tight() || self.now < since + 2 * MOVE_RETRY_MAX {
            return Ok(());
        }
        self.relieved = Some(self.now);
        let Some(queues) = self.queues()? else { return Ok(()) };
        for queue in queues.into_iter().filter(|queue| queue.away > 0) {
            self.hits.add(Hit::Relieved);
            self.purge_queue(queue.name)?;
        }
        Ok(())
    }

    fn purge_queue(&mut self, name: String) -> Result<(), String> {
        let found = self.node.as_ref().filter(|_| self.serves()).and_then(|node| node.find(&name));
        let Some((shard, queue, below)) = found else { return Ok(()) };
        // Others who ask have the numbers of events.
        self.next_purge += 1;
        let id = AdminId(u64::MAX - self.next_purge);
        self.purges.insert(id, queue);
        self.see_now(&Seen::Purging { queue, below })?;
        self.tell(shard, Event::Admin { id, request: AdminRequest::Purge { queue: name } })
    }

    /// A purge is over.
    fn purged(&mut self, id: AdminId, reply: &AdminReply) -> Result<(), String> {
        let queue = self.purges.remove(&id).ok_or_else(|| format!("nobody asked {id:?}"))?;
        let AdminReply::Purged(Some(_)) = reply else {
            return Err(format!("{reply:?} to a purge of {queue:?}"));
        };
        self.see_now(&Seen::Purged(queue))
    }

    pub(super) fn note_mail(&mut self, mail: &Mail) {
        match mail {
            Mail::Publish { whence: Whence::Moved(_), .. } => self.hits.add(Hit::MovedAcross),
            Mail::Part(part) if matches!(part.whence, Whence::Moved(_)) => {
                if part.share == Share::Last {
                    self.hits.add(Hit::MovedInParts);
                }
            }
            Mail::Consume { .. } | Mail::Publish { .. } | Mail::Part(_) => {
                self.hits.add(Hit::Crossed);
            }
            Mail::Pressure(true) => {
                self.hits.add(Hit::DiskFull);
            }
            Mail::Resolve { name, .. } => {
                let again =
                    |piece: &Mail| matches!(piece, Mail::Resolve { name: n, .. } if n == name);
                let racing = self.mail.values().flatten().any(again);
                if racing {
                    self.hits.add(Hit::CreateRace);
                }
            }
            Mail::Full { is_full: true, .. } => self.hits.add(Hit::QueueFull),
            Mail::NotMoved { .. } => self.hits.add(Hit::NotMoved),
            Mail::Arrivals(copies) if !copies.is_empty() => self.hits.add(Hit::CopyFound),
            Mail::Resolved { .. }
            | Mail::Make { .. }
            | Mail::Made { .. }
            | Mail::Tied(_)
            | Mail::Untied { .. }
            | Mail::Delete(_)
            | Mail::Deleted { .. }
            | Mail::Provide { .. }
            | Mail::NotProvided { .. }
            | Mail::Moved { .. }
            | Mail::Landed(_)
            | Mail::MovedOn(_)
            | Mail::Arrivals(_)
            | Mail::Open(_)
            | Mail::Opened(_)
            | Mail::Catalogued(_)
            | Mail::Catalogue { .. }
            | Mail::Published { .. }
            | Mail::Credit { .. }
            | Mail::Deliver { .. }
            | Mail::Fetch(_)
            | Mail::Fetched { .. }
            | Mail::Taken { .. }
            | Mail::Drained { .. }
            | Mail::Settle { .. }
            | Mail::Modify { .. }
            | Mail::Settled { .. }
            | Mail::Unconsume { .. }
            | Mail::Unconsumed { .. }
            | Mail::Consumes { .. }
            | Mail::Full { is_full: false, .. }
            | Mail::Pressure(false)
            | Mail::Claim { .. }
            | Mail::Claimed { .. }
            | Mail::GiveUp(_)
            | Mail::Unclaim(_)
            | Mail::Departed(_)
            | Mail::Arrived { .. }
            | Mail::NoMore => {}
        }
    }

    /// All shards serve: what they hold is looked at, and clients may come.
    pub(super) fn ready_if_all(&mut self) -> Result<(), String> {
        if !self.node.as_ref().is_some_and(Node::is_ready) {
            return Ok(());
        }
        if std::mem::take(&mut self.starts_cut) >= 3 {
            self.draw_crash();
        }
        let Some(queues) = self.queues()? else { return Ok(()) };
        // No pause survives a start.
        if queues.iter().any(|queue| queue.delayed > 0) {
            self.hits.add(Hit::ScheduleFound);
        }
        self.backup.fill(BackupMarks::default());
        self.see(&Seen::Ready { queues })?;
        if self.phase == Phase::Work && self.rng.chance(self.plan.crash_at_ready) {
            // At once, or with the first writes that stand where an earlier tail was cut.
            let later = if self.rng.chance(300) { 0 } else { self.rng.between(1, 30) };
            let crash = self.draw_crash_kind();
            self.crash_at = Some((self.disk.moments() + later, crash));
            self.crash_patient = later > 0;
        }
        Ok(())
    }

    fn log_is_read(&mut self, shard: ShardId) -> Result<(), String> {
        let is_news = self.node.as_mut().is_some_and(|node| node.set_recovered(shard));
        if is_news { self.recovered(shard) } else { Ok(()) }
    }

    /// A shard's own log is read: what it vouches for now is the ground for what comes.
    pub(super) fn recovered(&mut self, shard: ShardId) -> Result<(), String> {
        let (reply, others) = self.question(shard, AdminRequest::Stats)?;
        let AdminReply::Stats(stats) = reply else { return Err("no stats".to_owned()) };
        let end = Lsn(stats.journal_durable_lsn);
        self.audit.recovered(shard, end);
        self.see(&Seen::Recovered { shard, end })?;
        self.act_all(shard, others)
    }

    /// Asks a shard as an operator does; the answer, and what else it wanted done meanwhile.
    pub(super) fn question(
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
                Action::AdminReply { id: of, reply } if of == id => return Ok((reply, others)),
                Action::AdminReply { .. }
                | Action::Send { .. }
                | Action::PauseReceive(_)
                | Action::ResumeReceive(_)
                | Action::Close(_)
                | Action::Move { .. }
                | Action::Authenticate { .. }
                | Action::Disk(_)
                | Action::Mail { .. }
                | Action::Pair(_)
                | Action::Ready(_)
                | Action::Drained
                | Action::Fatal(_) => others.push(action),
            }
        }
        Err(format!("shard {} did not answer its operator", shard.0))
    }

    pub(super) fn ask(
        &mut self,
        shard: ShardId,
        request: AdminRequest,
    ) -> Result<AdminReply, String> {
        let (reply, others) = self.question(shard, request)?;
        self.act_all(shard, others)?;
        self.poll(shard)?;
        Ok(reply)
    }

    pub(super) fn act_all(&mut self, shard: ShardId, actions: Vec<Action>) -> Result<(), String> {
        let process = self.process;
        for action in actions {
            self.act(shard, action)?;
            if self.process != process {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn stats(&mut self, shard: ShardId) -> Result<ShardStats, String> {
        let AdminReply::Stats(stats) = self.ask(shard, AdminRequest::Stats)? else {
            return Err("stats were asked for".to_owned());
        };
        Ok(*stats)
    }

    /// All queues; `None` if the process ended while it was asked.
    pub(super) fn queues(&mut self) -> Result<Option<Vec<QueueView>>, String> {
        let mut views = Vec::new();
        let process = self.process;
        for shard in (0..self.plan.shards).map(ShardId) {
            if self.process != process || self.node.is_none() {
                return Ok(None);
            }
            let AdminReply::Queues(queues) = self.ask(shard, AdminRequest::Queues)? else {
                return Err("queues were asked for".to_owned());
            };
            views.extend(queues.into_iter().map(QueueView::from));
        }
        Ok(Some(views))
    }

    // ---- The disk ------------------------------------------------------------------------------

    pub(super) fn submit(&mut self, owner: Owner, op: DiskOp) -> Result<(), String> {
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

    /// A shard may have forgotten ids before their time, ahead of what it wants done now.
    fn note_forgotten(&mut self, shard: ShardId) -> Result<(), String> {
        let Some(node) = &self.node else { return Ok(()) };
        let total = node.forgotten(shard);
        let known = &mut self.forgotten[usize::from(shard.0)];
        if total == *known {
            return Ok(());
        }
        let below = node.next_sequences(shard);
        self.hits.add_many(Hit::Forgotten, total - *known);
        *known = total;
        self.see_now(&Seen::Forgotten { below })
    }

    pub(super) fn disk_done(&mut self, owner: Owner, done: DiskDone) -> Result<(), String> {
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
    pub(super) fn pump_host(&mut self) -> Result<(), String> {
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
            let starts = self.node.as_ref().map(|node| node.starts).unwrap_or_default();
            self.hits.add_many(Hit::CheckpointUsed, starts.used);
            self.hits.add_many(Hit::CheckpointRefused, starts.refused);
            for shard in (0..self.plan.shards).map(ShardId) {
                self.poll(shard)?;
            }
        }
        Ok(())
    }

    pub(super) fn backup_answers(&mut self) -> Result<(), String> {
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
}
