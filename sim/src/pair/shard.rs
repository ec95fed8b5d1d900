//! One shard of a member: its log in whatever role its duty has brought it to.
//!
//! ```text
//!   Down ─start─▶ Recovering ─▶ Standing (Backup) ─Reign─▶ Live (Journal + Live)
//!                     ▲  ▲ cut       │                         │ Stand, Follow, another reign
//!                     │  └───────────┘                         ▼
//!                     └──────── nothing in flight any more ─ Ending      a crash: Down
//! ```
//! It is the host that `replica` asks for: carries disk operations, readers, exports, and does what
//! its duty says, some time after the member has said it.
//!
//! Invariant: a client is told of something only while its member's gate is open.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use broker::pending::{BackupMarks, Watermarks};
use journal::{
    Config, DiskDone, DiskOp, Epoch, FileId, Follower, FollowerRecovery, Journal, Level, LogReader,
    Lsn, NodeSuperblock, QueueId, Record, RecordKind, RecoveryError, SealedBatch, Sequence,
    ShardId, Urgency,
};
use replica::backup::{Backup, BackupEvent, Follows};
use replica::catchup::{Delta, DeltaHead, Tail};
use replica::live::{Live, LiveEvent, Reigning};
use replica::member::{Duty, Hosted, Reign, Round, Service, ShardReport};
use replica::wire::{Frame, Identity, Reason};

use super::ledger::{Key, Ledger, View, keys_of};
use super::{Canary, Counts};
use crate::audit::Audit;
use crate::disk::{Disk, Owner};
use crate::rng::Rng;

/// After so long a write has failed: not long after its member gives the role away.
pub(crate) const WRITE_BOUND: Duration = Duration::from_millis(3_500);

#[derive(Debug)]
enum Role {
    Down,
    Recovering(Box<FollowerRecovery>),
    Standing(Box<Backup>),
    Live { journal: Box<Journal>, live: Box<Live> },
    Ending,
}

/// Something that a client waits for.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    end: Lsn,
    key: Key,
}

/// What a shard stands on.
#[derive(Debug)]
pub(crate) struct Ground<'a> {
    pub(crate) now: Instant,
    pub(crate) index: usize,
    pub(crate) boot: u64,
    pub(crate) superblock: &'a NodeSuperblock,
    pub(crate) canary: Option<Canary>,
    pub(crate) disk: &'a mut Disk,
    pub(crate) ledger: &'a mut Ledger,
    pub(crate) counts: &'a mut Counts,
    /// Whether the gate is open at this moment, by the member's own clock.
    pub(crate) may_serve: bool,
    /// Who reads what goes to the disk, where a broker's shards do.
    pub(crate) audit: Option<&'a mut Audit>,
}

impl Ground<'_> {
    pub(crate) fn identity(&self) -> Identity {
        Identity::new("pair", [3; 16], self.superblock.log_id, self.superblock.geometry)
    }

    fn broken(&self) -> Option<replica::Canary> {
        self.canary.and_then(Canary::replica)
    }
}

#[derive(Debug)]
pub(crate) struct Shard {
    id: ShardId,
    role: Role,
    view: View,
    waiting: [VecDeque<Waiting>; 4],
    committed: Lsn,
    duty: Option<Duty>,
    duties: VecDeque<(Instant, Duty)>,
    obeyed: Option<(Round, Lsn)>,
    refused: Option<Reason>,
    deposed_by: Option<Epoch>,
    in_flight: usize,
    closed: bool,
    /// What it can't go on after.
    failed: Option<String>,
    /// When what a cut would take is durable elsewhere, and what that is.
    filed: Option<(Instant, Tail, Vec<Key>)>,
    rng: Rng,
}

impl Shard {
    pub(crate) fn new(id: u16, rng: Rng) -> Self {
        Self {
            id: ShardId(id),
            filed: None,
            rng,
            role: Role::Down,
            view: View::default(),
            waiting: Default::default(),
            committed: Lsn::ZERO,
            duty: None,
            duties: VecDeque::new(),
            obeyed: None,
            refused: None,
            deposed_by: None,
            in_flight: 0,
            closed: false,
            failed: None,
        }
    }

    // ---- What the node asks ---------------------------------------------------------------------

    pub(crate) fn view(&self) -> &View {
        &self.view
    }

    pub(crate) fn live_epoch(&self) -> Option<Epoch> {
        match &self.role {
            Role::Live { journal, .. } => Some(journal.epochs().newest().0),
            Role::Down | Role::Recovering(_) | Role::Standing(_) | Role::Ending => None,
        }
    }

    pub(crate) fn is_down(&self) -> bool {
        matches!(self.role, Role::Down)
    }

    /// Why its process is to end, if it is.
    pub(crate) fn failure(&self) -> Option<String> {
        let poison = match &self.role {
            Role::Standing(backup) => backup.follower().poisoned(),
            Role::Live { journal, .. } => journal.poisoned(),
            Role::Down | Role::Recovering(_) | Role::Ending => None,
        };
        self.failed.clone().or(poison.map(|poison| format!("{poison:?}")))
    }

    /// Whether it wants a connection to the other one's stream.
    pub(crate) fn wants_to_follow(&self) -> bool {
        match &self.role {
            Role::Standing(backup) => self.duty == Some(Duty::Follow) && !backup.is_turning(),
            Role::Down | Role::Recovering(_) | Role::Live { .. } | Role::Ending => false,
        }
    }

    pub(crate) fn waits_for_nothing(&self) -> bool {
        self.waiting.iter().all(VecDeque::is_empty)
    }

    pub(crate) fn committed(&self) -> Lsn {
        self.committed
    }

    /// Where the log ends, durably.
    pub(crate) fn end(&self) -> Lsn {
        match &self.role {
            Role::Standing(backup) => backup.follower().durable(),
            Role::Live { live, journal } if journal.durable() == live.end() => live.end(),
            Role::Live { .. } | Role::Down | Role::Recovering(_) | Role::Ending => Lsn::ZERO,
        }
    }

    pub(crate) fn take_closed(&mut self) -> bool {
        std::mem::take(&mut self.closed)
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let role = match &self.role {
            Role::Down | Role::Recovering(_) | Role::Ending => None,
            Role::Standing(backup) => backup.poll_timeout(),
            Role::Live { journal, live } => {
                [journal.poll_timeout(), live.poll_timeout()].into_iter().flatten().min()
            }
        };
        let filed = self.filed.as_ref().map(|(due, ..)| *due);
        [role, filed, self.duties.front().map(|(due, _)| *due)].into_iter().flatten().min()
    }

    pub(crate) fn report(&self) -> ShardReport {
        match &self.role {
            _ if self.failed.is_some() => ShardReport::failed(),
            Role::Down | Role::Recovering(_) | Role::Ending => ShardReport::recovering(),
            Role::Standing(backup) => ShardReport::of_backup(backup, self.refused),
            Role::Live { journal, live } => {
                let service = self.reign().map_or(Service::Closed, |reign| reign.service);
                let hosted = Hosted {
                    service,
                    is_drained: service == Service::Draining && self.waits_for_nothing(),
                    obeyed: self.obeyed,
                    deposed_by: self.deposed_by,
                };
                ShardReport::of_live(live, journal, hosted)
            }
        }
    }

    fn reign(&self) -> Option<Reign> {
        match self.duty? {
            Duty::Reign(reign) => Some(reign),
            Duty::Format(_) | Duty::Stand | Duty::Follow => None,
        }
    }

    // ---- What the node does ---------------------------------------------------------------------

    pub(crate) fn crash(&mut self) {
        let view = std::mem::take(&mut self.view);
        *self = Self { view, ..Self::new(self.id.0, self.rng.clone()) };
    }

    /// Its duty comes some time after it was said.
    pub(crate) fn tell(&mut self, due: Instant, duty: Duty) {
        let due = self.duties.back().map_or(due, |(last, _)| due.max(*last));
        self.duties.push_back((due, duty));
    }

    pub(crate) fn recover(&mut self, ground: &Ground<'_>) {
        let config = Config {
            segments_max: 4096,
            write_bound: WRITE_BOUND,
            canary: ground.canary.and_then(Canary::journal),
            ..Config::default()
        };
        let slots = ground.disk.segments(self.id);
        let recovery = FollowerRecovery::new(ground.superblock, self.id, &slots, config);
        self.role = Role::Recovering(Box::new(recovery));
    }

    /// Appends something, as a client asks.
    pub(crate) fn work(&mut self, now: Instant, rng: &mut Rng, ledger: &mut Ledger) {
        let is_open = self.reign().is_some_and(|reign| {
            reign.service == Service::Open
                && !reign.is_short
                && self.live_epoch() == Some(reign.epoch)
        });
        let Role::Live { journal, live } = &mut self.role else { return };
        if live.lags() || !is_open {
            return;
        }
        let highest = Level::ReplicatedSync;
        let level = *rng.pick(&[Level::Sync, Level::Replicated, highest, highest]);
        for _ in 0..rng.between(1, 3) {
            let settled = if rng.chance(300) { ledger.take_settleable(self.id) } else { None };
            let is_settle = settled.is_some();
            let sequence = settled.unwrap_or_else(|| ledger.next_sequence(self.id));
            let most = if rng.one_in(30) { 30_000 } else { 2500 };
            let bytes = if is_settle { 0 } else { rng.between(1, most) };
            let payload = vec![sequence as u8; bytes as usize];
            let kind = if is_settle { RecordKind::Settle } else { RecordKind::Message };
            let mut record = Record::new(kind, QueueId(1), Sequence(sequence), &payload);
            record.level = level;
            if let Ok(appended) = journal.append(now, &record, Urgency::Now) {
                let key = Key { shard: self.id, is_settle, sequence };
                let waiting = Waiting { end: appended.end, key };
                self.waiting[level as usize].push_back(waiting);
            }
        }
    }

    // ---- Connections ----------------------------------------------------------------------------

    pub(crate) fn connected_live(&mut self, now: Instant) -> u64 {
        let Role::Live { live, .. } = &mut self.role else { panic!("asked before") };
        live.handle_connected(now)
    }

    pub(crate) fn connected_backup(&mut self, now: Instant) {
        let Role::Standing(backup) = &mut self.role else { panic!("asked before") };
        backup.handle_connected(now);
    }

    pub(crate) fn disconnected_live(&mut self, now: Instant, session: u64) {
        if let Role::Live { live, .. } = &mut self.role {
            live.handle_disconnected(now, session);
        }
    }

    pub(crate) fn disconnected_backup(&mut self) {
        if let Role::Standing(backup) = &mut self.role {
            backup.handle_disconnected();
        }
    }

    pub(crate) fn poll_frame(&mut self) -> Option<Frame> {
        match &mut self.role {
            Role::Live { live, .. } => live.poll_frame(),
            Role::Standing(backup) => backup.poll_frame(),
            Role::Down | Role::Recovering(_) | Role::Ending => None,
        }
    }

    pub(crate) fn hear_as_live(&mut self, now: Instant, session: u64, frame: Frame) {
        if let Role::Live { live, .. } = &mut self.role {
            live.handle_frame(now, session, frame);
        }
    }

    pub(crate) fn hear_as_backup(&mut self, now: Instant, frame: Frame) {
        let Role::Standing(backup) = &mut self.role else { return };
        let batch = match &frame {
            Frame::Batch { batch, .. } => {
                SealedBatch::check(backup.follower().seed(), batch.clone())
            }
            Frame::Hello(_)
            | Frame::Welcome(_)
            | Frame::Ready { .. }
            | Frame::Ack { .. }
            | Frame::Beat { .. }
            | Frame::Refuse { .. }
            | Frame::Card(_)
            | Frame::Install(_) => None,
        };
        let before = backup.follower().received();
        backup.handle_frame(now, frame);
        if let Some(batch) = batch
            && backup.follower().received() > before
        {
            self.view.add(self.id, backup.follower().seed(), &batch);
        }
    }

    // ---- One moment -----------------------------------------------------------------------------

    pub(crate) fn handle_disk(&mut self, now: Instant, done: DiskDone) {
        self.in_flight -= 1;
        match &mut self.role {
            Role::Down | Role::Ending => {}
            Role::Recovering(recovery) => recovery.handle_disk(now, done),
            Role::Standing(backup) => backup.handle_disk(now, done),
            Role::Live { journal, live } => {
                if LogReader::owns(done.id) {
                    live.handle_disk(done);
                } else {
                    journal.handle_disk(now, done);
                    live.set_durable(journal.durable());
                }
            }
        }
    }

    fn submit(&mut self, ground: &mut Ground<'_>, op: DiskOp) {
        self.in_flight += 1;
        ground.disk.submit(ground.now, Owner(self.id.0), op);
    }

    pub(crate) fn pump(&mut self, ground: &mut Ground<'_>) -> Result<bool, String> {
        if self.failed.is_some() {
            return Ok(false);
        }
        let mut progress = self.take_duty(ground);
        match &mut self.role {
            Role::Down => {}
            Role::Ending if self.in_flight > 0 => {}
            Role::Ending => {
                self.recover(ground);
                progress = true;
            }
            Role::Recovering(_) => progress |= self.pump_recovery(ground)?,
            Role::Standing(_) => progress |= self.pump_backup(ground)?,
            Role::Live { .. } => progress |= self.pump_live(ground)?,
        }
        Ok(progress)
    }

    /// Does what its duty says; what it can't do yet, when it can.
    fn take_duty(&mut self, ground: &Ground<'_>) -> bool {
        let now = ground.now;
        let mut progress = false;
        while let Some((_, duty)) = self.duties.pop_front_if(|(due, _)| *due <= now) {
            progress = true;
            if self.duty == Some(Duty::Follow) && duty != Duty::Follow {
                self.closed = true;
            }
            self.duty = Some(duty);
        }
        let reign = self.reign();
        match &mut self.role {
            Role::Live { live, journal } => {
                let (epoch, _) = journal.epochs().newest();
                let Some(reign) = reign.filter(|reign| reign.epoch == epoch) else {
                    self.end_reign();
                    return true;
                };
                let round = reign.required.map(|required| required.round);
                if self.obeyed.map(|(round, _)| round) != round {
                    live.set_required(now, reign.required.map(|required| required.member));
                    self.obeyed = round.map(|round| (round, live.committed()));
                    progress = true;
                }
            }
            Role::Standing(backup) => {
                if let Some(reign) = reign
                    && backup.may_reign()
                {
                    backup.reign(reign.epoch);
                    self.closed = true;
                    progress = true;
                }
            }
            Role::Down | Role::Recovering(_) | Role::Ending => {}
        }
        progress
    }

    /// Nobody hears any more of what was taken; what is in flight ends first.
    fn end_reign(&mut self) {
        self.role = Role::Ending;
        self.waiting = Default::default();
        (self.obeyed, self.deposed_by) = (None, None);
        self.closed = true;
    }

    fn pump_recovery(&mut self, ground: &mut Ground<'_>) -> Result<bool, String> {
        let Role::Recovering(recovery) = &mut self.role else { return Ok(false) };
        while recovery.poll_record().is_some() {}
        let op = recovery.poll_disk();
        while recovery.poll_record().is_some() {}
        let outcome = recovery.poll_outcome();
        let progress = op.is_some() || outcome.is_some();
        if let Some(op) = op {
            self.submit(ground, op);
        }
        if let Some(outcome) = outcome {
            match outcome {
                Ok((follower, _)) => self.stand(ground, follower)?,
                Err(
                    error @ (RecoveryError::Unreadable { .. } | RecoveryError::Unwritable { .. }),
                ) => {
                    self.failed = Some(error.to_string());
                }
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(progress)
    }

    /// A log was recovered: what it holds is read whole.
    fn stand(&mut self, ground: &Ground<'_>, mut follower: Follower) -> Result<(), String> {
        self.view = View::default();
        self.committed = Lsn::ZERO;
        let head = follower.head();
        let batches = match follower.read(head) {
            Some(reader) => read_now(reader, ground.disk)?,
            None if follower.received() == head => Vec::new(),
            None => return Err("a recovered log can't be read".into()),
        };
        for batch in &batches {
            self.view.add(self.id, follower.seed(), batch);
        }
        let follows = Follows {
            identity: ground.identity(),
            member: ground.superblock.journal_uuid,
            boot: [ground.boot as u8; 16],
        };
        let mut backup = Backup::new(ground.now, follows, follower);
        if let Some(canary) = ground.broken() {
            backup.break_rule(canary);
        }
        self.role = Role::Standing(Box::new(backup));
        Ok(())
    }

    fn pump_backup(&mut self, ground: &mut Ground<'_>) -> Result<bool, String> {
        let now = ground.now;
        let mut ops = Vec::new();
        let filed = self.filed.take_if(|(due, ..)| *due <= now);
        let Role::Standing(backup) = &mut self.role else { return Ok(false) };
        if let Some((_, tail, keys)) = filed {
            ground.counts.exported += keys.len() as u64;
            ground.ledger.export(keys);
            backup.handle_exported(tail);
        }
        if backup.poll_timeout().is_some_and(|at| at <= now) {
            backup.handle_timeout(now);
        }
        ops.extend(std::iter::from_fn(|| backup.poll_disk(now)));
        while let Some(batch) = backup.poll_committed() {
            ground.ledger.show(self.id, &batch)?;
            ground.counts.shown += 1;
        }
        // One at a time: the role may be another one afterwards.
        let event = backup.poll_event();
        let progress = !ops.is_empty() || event.is_some();
        ops.into_iter().for_each(|op| self.submit(ground, op));
        if let Some(event) = event {
            self.handle_backup_event(ground, event)?;
        }
        Ok(progress)
    }

    fn handle_backup_event(
        &mut self,
        ground: &mut Ground<'_>,
        event: BackupEvent,
    ) -> Result<(), String> {
        let Role::Standing(backup) = &mut self.role else { return Ok(()) };
        match event {
            BackupEvent::Export { from, to } => {
                let reader = backup.read(from).ok_or("an export of what is there")?;
                let head = DeltaHead {
                    log: ground.superblock.log_id,
                    shard: self.id,
                    from,
                    to,
                    epochs: backup.follower().epochs().clone(),
                    is_overruled: false,
                };
                let delta = Delta { head, batches: read_now(reader, ground.disk)? };
                let read = Delta::decode(&delta.encode()).map_err(|error| error.to_string())?;
                let kept = if ground.canary == Some(Canary::TailDropped) { 0 } else { usize::MAX };
                let kept = read.batches.iter().take(kept);
                let keys = kept.flat_map(|batch| keys_of(self.id, backup.follower().seed(), batch));
                let due = ground.now + file_delay(&mut self.rng);
                self.filed = Some((due, read.head.tail(), keys.collect()));
            }
            BackupEvent::Cut => {
                ground.counts.cuts += 1;
                self.closed = true;
                self.recover(ground);
            }
            BackupEvent::Joined { .. } => self.refused = None,
            BackupEvent::Closed(reason) => {
                self.refused = Some(reason);
                self.closed = true;
            }
            BackupEvent::Live => self.begin(ground),
            BackupEvent::Failed(failed) => self.failed = Some(failed.to_string()),
        }
        Ok(())
    }

    /// The own reign is durable.
    fn begin(&mut self, ground: &Ground<'_>) {
        let Role::Standing(backup) = std::mem::replace(&mut self.role, Role::Ending) else {
            panic!("only a backup goes live");
        };
        let chain = backup.follower().chain();
        // The state here is the view, which has every batch since it was received.
        let (mut journal, _) = backup.into_live();
        journal.mirror();
        let reign = self.reign().filter(|reign| reign.epoch == journal.epochs().newest().0);
        let Some(reign) = reign else { return self.end_reign() };
        let at = Reigning {
            identity: ground.identity(),
            shard: self.id,
            epochs: journal.epochs().clone(),
            end: journal.durable(),
            chain,
        };
        let required = reign.required;
        let mut live = Live::new(ground.now, at, required.map(|required| required.member));
        if let Some(canary) = ground.broken() {
            live.break_rule(canary);
        }
        self.obeyed = required.map(|required| (required.round, live.committed()));
        self.role = Role::Live { journal: Box::new(journal), live: Box::new(live) };
    }

    fn pump_live(&mut self, ground: &mut Ground<'_>) -> Result<bool, String> {
        let now = ground.now;
        let Role::Live { journal, live } = &mut self.role else { return Ok(false) };
        let mut progress = false;
        if journal.poll_timeout().is_some_and(|at| at <= now) {
            journal.handle_timeout(now);
        }
        if live.poll_timeout().is_some_and(|at| at <= now) {
            live.handle_timeout(now);
        }
        let mut ops: Vec<DiskOp> = std::iter::from_fn(|| journal.poll_disk(now)).collect();
        while let Some(batch) = journal.poll_sealed() {
            self.view.add(self.id, journal.seed(), &batch);
            live.handle_sealed(now, batch);
        }
        live.set_durable(journal.durable());
        while let Some(from) = live.poll_reader() {
            ground.counts.reads_back += 1;
            live.take_reader(journal.read(from));
            progress = true;
        }
        if live.wants_start() {
            // No log is recycled here: from each something leads on.
            return Err(format!("{:?}: a log that leads on is to be given up", self.id));
        }
        ops.extend(std::iter::from_fn(|| live.poll_disk()));
        while let Some(event) = live.poll_event() {
            progress = true;
            match event {
                LiveEvent::PleaseShrink => {}
                // One that a newer connection has replaced was closed with that.
                LiveEvent::Closed { session, .. } => {
                    self.closed |= live.session().is_none_or(|newer| newer == session);
                }
                LiveEvent::Deposed(epoch) => self.deposed_by = Some(epoch),
                LiveEvent::Failed(failed) => self.failed = Some(failed.to_string()),
            }
        }
        let committed = live.committed();
        let durable = journal.durable();
        let marks = live.marks();
        journal.set_committed(committed);
        ground.ledger.commit(self.id, &self.view, self.committed, committed)?;
        self.committed = committed;
        let backup =
            marks.map(|marks| BackupMarks { received: marks.received, durable: marks.durable });
        self.answer(ground, Watermarks { durable, backup });
        progress |= !ops.is_empty();
        ops.into_iter().for_each(|op| self.submit(ground, op));
        Ok(progress)
    }

    /// Tells clients of what is committed at their level, if this member may.
    fn answer(&mut self, ground: &mut Ground<'_>, marks: Watermarks) {
        let open =
            self.reign().is_some_and(|reign| reign.service != Service::Closed && !reign.is_short);
        if !open || !ground.may_serve {
            return;
        }
        for level in [Level::Sync, Level::Replicated, Level::ReplicatedSync] {
            let reached = marks.of(level);
            let waiting = &mut self.waiting[level as usize];
            while let Some(told) = waiting.pop_front_if(|waiting| waiting.end <= reached) {
                ground.ledger.tell(ground.index, level, told.key, ground.counts);
            }
        }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.role {
            Role::Down => write!(f, "[down]"),
            Role::Recovering(_) => write!(f, "[recovering]"),
            Role::Ending => write!(f, "[ending, {} in flight]", self.in_flight),
            Role::Standing(backup) => write!(
                f,
                "[standing to {} durable {} following {} refused {:?}]",
                backup.follower().received(),
                backup.follower().durable(),
                backup.is_following(),
                self.refused,
            ),
            Role::Live { journal, live } => write!(
                f,
                "[live to {} durable {} committed {} peer {:?} obeyed {:?}]",
                live.end(),
                journal.durable(),
                live.committed(),
                live.following(),
                self.obeyed,
            ),
        }
    }
}

/// Some time, as a file takes until it is durable.
pub(crate) fn file_delay(rng: &mut Rng) -> Duration {
    let most = if rng.one_in(8) { 800_000 } else { 20_000 };
    Duration::from_micros(rng.between(100, most))
}

/// Some time, as mail between threads takes.
pub(crate) fn mail_delay(rng: &mut Rng) -> Duration {
    Duration::from_micros(rng.between(10, 3000))
}

/// Reads to the end at once, from what a running host would be given.
fn read_now(mut reader: LogReader, disk: &Disk) -> Result<Vec<SealedBatch>, String> {
    let mut batches = Vec::new();
    loop {
        while let Some(batch) = reader.poll_batch() {
            batches.push(batch);
        }
        let Some(op) = reader.poll_disk() else { break };
        let DiskOp::Read { id, file, offset, mut buf } = op else {
            return Err("a reader reads".into());
        };
        let contents: Vec<u8> = match file {
            FileId::Segment { .. } => disk.contents(file),
            FileId::NodeSuperblock | FileId::ShardSuperblock(_) | FileId::Checkpoint { .. } => {
                Vec::new()
            }
        };
        let there = contents.get(offset as usize..).unwrap_or_default();
        let len = there.len().min(buf.len());
        buf.as_mut_slice()[..len].copy_from_slice(&there[..len]);
        reader.handle_disk(DiskDone { id, result: Ok(len as u32), buf: Some(buf) });
    }
    match reader.failed() {
        Some(failed) => Err(failed.to_string()),
        None => Ok(batches),
    }
}
