//! One member: its disk, and each shard's log in whatever role it has.
//!
//! ```text
//!   Down ─start─▶ Recovering ─▶ Standing (Backup) ─reign─▶ Live (Journal + Live)
//!                     ▲  cut         │                         │
//!                     └──────────────┘     crash: Down ◀───────┘
//! ```
//! It is the host that `replica` asks for: carries disk operations, readers, exports, orders.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use broker::pending::{BackupMarks, Watermarks};
use journal::{
    Config, DiskOp, Epoch, FileId, Follower, FollowerRecovery, Format, Geometry, Journal,
    JournalUuid, Level, LogId, LogReader, Lsn, NodeSuperblock, QueueId, Record, RecordKind,
    SealedBatch, Sequence, ShardId, Urgency,
};
use replica::backup::{Backup, BackupEvent, Follows};
use replica::catchup::Delta;
use replica::in_sync::{InSync, Order};
use replica::live::{Live, LiveEvent, Pressure, Reigning};
use replica::wire::{Frame, Identity};

use super::ledger::{Key, Ledger, View, keys_of};
use super::voters::{Answer, Says, Voters};
use super::{Canary, Counts, SHARDS};
use crate::disk::{Crash, Disk, Fate, Owner, Profile};
use crate::rng::Rng;

const SEGMENT_BYTES: u64 = 64 * 1024;
const LOG: LogId = LogId([0x1a; 16]);
/// How far a peer may be behind when it is to come into the set.
const NEAR_BYTES: u64 = 256 * 1024;

#[derive(Debug)]
enum Role {
    Down,
    Recovering(Box<FollowerRecovery>),
    Standing(Box<Backup>),
    Live { journal: Box<Journal>, live: Box<Live> },
}

/// Something that a client waits for.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    end: Lsn,
    key: Key,
}

#[derive(Debug)]
struct Shard {
    id: ShardId,
    role: Role,
    view: View,
    waiting: [VecDeque<Waiting>; 4],
    committed: Lsn,
    /// When each order reaches this shard.
    orders: VecDeque<(Instant, Order)>,
    closed: bool,
}

#[derive(Debug)]
pub(crate) struct Node {
    index: usize,
    superblock: NodeSuperblock,
    disk: Disk,
    rng: Rng,
    canary: Option<Canary>,
    boot: u64,
    down_until: Option<Instant>,
    shards: Vec<Shard>,
    set: Option<InSync>,
    epoch: Option<Epoch>,
    is_new_reign: bool,
    read_at: Option<Instant>,
}

impl Node {
    pub(crate) fn new(seed: u64, index: usize, canary: Option<Canary>, now: Instant) -> Self {
        let uuid = JournalUuid([index as u8 + 1; 16]);
        let geometry = Geometry { segment_bytes: SEGMENT_BYTES, shards: SHARDS };
        let mut disk = Disk::new(Rng::stream(seed, "pair disk", index as u64), Profile::sound());
        let mut format = Format::new(LOG, uuid, geometry);
        let mut at = now;
        while let Some(op) = format.poll_disk() {
            disk.submit(at, Owner(0), op);
            at = disk.poll_timeout().expect("it ends");
            format.handle_disk(disk.poll_done(at).expect("it is due").1);
        }
        let superblock = format.poll_outcome().expect("over").expect("a sound disk");
        let profile = disk.profile_mut();
        profile.slow_one_in = 40;
        profile.slow_factor = 30;
        let shards = (0..SHARDS).map(|id| Shard {
            id: ShardId(id),
            role: Role::Down,
            view: View::default(),
            waiting: Default::default(),
            committed: Lsn::ZERO,
            orders: VecDeque::new(),
            closed: false,
        });
        Self {
            index,
            superblock,
            disk,
            rng: Rng::stream(seed, "pair node", index as u64),
            canary,
            boot: 0,
            down_until: Some(now),
            shards: shards.collect(),
            set: None,
            epoch: None,
            is_new_reign: false,
            read_at: None,
        }
    }

    // ---- What the world asks --------------------------------------------------------------------

    pub(crate) fn uuid(&self) -> JournalUuid {
        self.superblock.journal_uuid
    }

    pub(crate) fn boot(&self) -> u64 {
        self.boot
    }

    pub(crate) fn view(&self, shard: ShardId) -> &View {
        &self.shards[usize::from(shard.0)].view
    }

    pub(crate) fn is_serving(&self) -> bool {
        self.shards.iter().all(|shard| matches!(shard.role, Role::Live { .. }))
    }

    pub(crate) fn is_in_sync(&self) -> bool {
        self.set.as_ref().is_some_and(InSync::is_in_sync)
    }

    /// Whether it has the role of this epoch, or is on its way.
    pub(crate) fn holds(&self, epoch: Epoch) -> bool {
        self.epoch == Some(epoch)
    }

    pub(crate) fn may_reign(&self) -> bool {
        self.shards.iter().all(|shard| match &shard.role {
            Role::Standing(backup) => backup.may_reign(),
            Role::Down | Role::Recovering(_) | Role::Live { .. } => false,
        })
    }

    pub(crate) fn waits_for_nothing(&self) -> bool {
        self.shards.iter().all(|shard| shard.waiting.iter().all(VecDeque::is_empty))
    }

    pub(crate) fn committed(&self, shard: ShardId) -> Lsn {
        self.shards[usize::from(shard.0)].committed
    }

    /// Where a shard's log ends, durably.
    pub(crate) fn end(&self, shard: ShardId) -> Lsn {
        match &self.shards[usize::from(shard.0)].role {
            Role::Standing(backup) => backup.follower().durable(),
            Role::Live { live, journal } if journal.durable() == live.end() => live.end(),
            Role::Live { .. } | Role::Down | Role::Recovering(_) => Lsn::ZERO,
        }
    }

    pub(crate) fn is_live_on(&self, shard: ShardId) -> bool {
        matches!(self.shards[usize::from(shard.0)].role, Role::Live { .. })
    }

    pub(crate) fn is_standing_on(&self, shard: ShardId) -> bool {
        match &self.shards[usize::from(shard.0)].role {
            Role::Standing(backup) => backup.may_reign(),
            Role::Down | Role::Recovering(_) | Role::Live { .. } => false,
        }
    }

    pub(crate) fn take_new_reign(&mut self) -> bool {
        let is_new = self.is_new_reign && self.is_serving();
        self.is_new_reign &= !is_new;
        is_new
    }

    pub(crate) fn take_closed(&mut self, shard: ShardId) -> bool {
        std::mem::take(&mut self.shards[usize::from(shard.0)].closed)
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let roles = self.shards.iter().filter_map(|shard| match &shard.role {
            Role::Down | Role::Recovering(_) => None,
            Role::Standing(backup) => backup.poll_timeout(),
            Role::Live { journal, live } => {
                [journal.poll_timeout(), live.poll_timeout()].into_iter().flatten().min()
            }
        });
        let orders = self.shards.iter().filter_map(|shard| Some(shard.orders.front()?.0));
        roles.chain(orders).chain(self.disk.poll_timeout()).min()
    }

    // ---- What the world does --------------------------------------------------------------------

    pub(crate) fn crash(&mut self, now: Instant, is_power: bool, rest: Duration) {
        let crash =
            if is_power { Crash::PowerCut(Fate::Seeded) } else { Crash::Kill(Fate::Seeded) };
        self.disk.crash(crash);
        for shard in &mut self.shards {
            shard.role = Role::Down;
            shard.waiting = Default::default();
            shard.orders.clear();
            shard.closed = false;
        }
        (self.set, self.epoch, self.read_at) = (None, None, None);
        self.is_new_reign = false;
        self.down_until = Some(now + rest);
    }

    pub(crate) fn start_if_due(&mut self, now: Instant, at_once: bool) {
        if self.down_until.is_some_and(|until| until <= now || at_once) {
            self.down_until = None;
            self.boot += 1;
            for index in 0..self.shards.len() {
                self.recover(index);
            }
        }
    }

    fn recover(&mut self, index: usize) {
        let id = self.shards[index].id;
        let config = Config {
            segments_max: 4096,
            canary: match self.canary {
                Some(Canary::Journal(canary)) => Some(canary),
                Some(Canary::Replica(_)) | None => None,
            },
            ..Config::default()
        };
        let slots = self.disk.segments(id);
        let recovery = FollowerRecovery::new(&self.superblock, id, &slots, config);
        self.shards[index].role = Role::Recovering(Box::new(recovery));
    }

    pub(crate) fn reign(&mut self, epoch: Epoch, backup: Option<JournalUuid>) {
        let mut set = InSync::new(SHARDS, backup);
        if let Some(Canary::Replica(canary)) = self.canary {
            set.break_rule(canary);
        }
        (self.set, self.epoch, self.is_new_reign) = (Some(set), Some(epoch), true);
        for shard in &mut self.shards {
            let Role::Standing(backup) = &mut shard.role else { panic!("asked before") };
            backup.reign(epoch);
            shard.closed = true;
        }
    }

    /// Appends something, as a client asks.
    pub(crate) fn work(&mut self, now: Instant, rng: &mut Rng, ledger: &mut Ledger) {
        let index = rng.index(self.shards.len());
        let shard = &mut self.shards[index];
        let Role::Live { journal, live } = &mut shard.role else { return };
        if live.pressure() == Pressure::Refuse {
            return;
        }
        let highest = Level::ReplicatedSync;
        let level = *rng.pick(&[Level::Sync, Level::Replicated, highest, highest]);
        for _ in 0..rng.between(1, 3) {
            let settled = if rng.chance(300) { ledger.take_settleable(shard.id) } else { None };
            let is_settle = settled.is_some();
            let sequence = settled.unwrap_or_else(|| ledger.next_sequence(shard.id));
            let most = if rng.one_in(30) { 30_000 } else { 2500 };
            let bytes = if is_settle { 0 } else { rng.between(1, most) };
            let payload = vec![sequence as u8; bytes as usize];
            let kind = if is_settle { RecordKind::Settle } else { RecordKind::Message };
            let mut record = Record::new(kind, QueueId(1), Sequence(sequence), &payload);
            record.level = level;
            if let Ok(appended) = journal.append(now, &record, Urgency::Now) {
                let key = Key { shard: shard.id, is_settle, sequence };
                let waiting = Waiting { end: appended.end, key };
                shard.waiting[level as usize].push_back(waiting);
            }
        }
    }

    // ---- Connections ----------------------------------------------------------------------------

    pub(crate) fn connected_live(&mut self, now: Instant, shard: ShardId) -> u64 {
        let Role::Live { live, .. } = &mut self.shards[usize::from(shard.0)].role else {
            panic!("asked before");
        };
        live.handle_connected(now)
    }

    pub(crate) fn connected_backup(&mut self, now: Instant, shard: ShardId) {
        let Role::Standing(backup) = &mut self.shards[usize::from(shard.0)].role else {
            panic!("asked before");
        };
        backup.handle_connected(now);
    }

    pub(crate) fn disconnected_live(&mut self, now: Instant, shard: ShardId, session: u64) {
        if let Role::Live { live, .. } = &mut self.shards[usize::from(shard.0)].role {
            live.handle_disconnected(now, session);
            if let Some(set) = &mut self.set {
                set.handle_session_lost();
            }
        }
    }

    pub(crate) fn disconnected_backup(&mut self, shard: ShardId) {
        if let Role::Standing(backup) = &mut self.shards[usize::from(shard.0)].role {
            backup.handle_disconnected();
        }
    }

    pub(crate) fn poll_frame(&mut self, shard: ShardId) -> Option<Frame> {
        match &mut self.shards[usize::from(shard.0)].role {
            Role::Live { live, .. } => live.poll_frame(),
            Role::Standing(backup) => backup.poll_frame(),
            Role::Down | Role::Recovering(_) => None,
        }
    }

    pub(crate) fn hear_as_live(
        &mut self,
        now: Instant,
        shard: ShardId,
        session: u64,
        frame: Frame,
    ) {
        let shard = &mut self.shards[usize::from(shard.0)];
        if let Role::Live { live, .. } = &mut shard.role {
            live.handle_frame(now, session, frame);
            if let (Some(set), Some(following)) = (&mut self.set, live.following()) {
                set.handle_durable(shard.id, following.member, following.marks.durable);
            }
        }
    }

    pub(crate) fn hear_as_backup(&mut self, now: Instant, shard: ShardId, frame: Frame) {
        let shard = &mut self.shards[usize::from(shard.0)];
        let Role::Standing(backup) = &mut shard.role else { return };
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
            | Frame::Card(_) => None,
        };
        let before = backup.follower().received();
        backup.handle_frame(now, frame);
        if let Some(batch) = batch
            && backup.follower().received() > before
        {
            shard.view.add(shard.id, backup.follower().seed(), &batch);
        }
    }

    // ---- The voters -----------------------------------------------------------------------------

    pub(crate) fn ask(&mut self, now: Instant, voters: &mut Voters) -> bool {
        let (Some(set), Some(epoch)) = (&mut self.set, self.epoch) else { return false };
        if let Some(change) = set.poll_change() {
            set.handle_sent(voters.version());
            voters.ask(now, self.index, epoch, Some(change));
            return true;
        }
        if self.read_at.is_some_and(|at| at <= now) {
            self.read_at = None;
            voters.ask(now, self.index, epoch, None);
            return true;
        }
        false
    }

    pub(crate) fn handle_voters(&mut self, answer: &Answer) {
        let Some(set) = self.set.as_mut().filter(|_| self.epoch == Some(answer.epoch)) else {
            return;
        };
        match answer.says {
            Says::Stands(stands) => set.handle_stands(stands),
            Says::Unknown => set.handle_unknown(),
        }
    }

    // ---- One moment -----------------------------------------------------------------------------

    pub(crate) fn pump(
        &mut self,
        now: Instant,
        ledger: &mut Ledger,
        counts: &mut Counts,
    ) -> Result<bool, String> {
        ledger.note_boot(self.index, self.boot);
        let mut progress = false;
        while let Some((owner, done)) = self.disk.poll_done(now) {
            progress = true;
            match &mut self.shards[usize::from(owner.0)].role {
                Role::Down => {}
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
        for index in 0..self.shards.len() {
            progress |= self.pump_shard(now, index, ledger, counts)?;
        }
        self.pump_set(now);
        Ok(progress)
    }

    fn pump_shard(
        &mut self,
        now: Instant,
        index: usize,
        ledger: &mut Ledger,
        counts: &mut Counts,
    ) -> Result<bool, String> {
        let shard = &mut self.shards[index];
        let owner = Owner(shard.id.0);
        let mut progress = false;
        match &mut shard.role {
            Role::Down => {}
            Role::Recovering(recovery) => {
                while recovery.poll_record().is_some() {}
                if let Some(op) = recovery.poll_disk() {
                    self.disk.submit(now, owner, op);
                    progress = true;
                }
                while recovery.poll_record().is_some() {}
                if let Some(outcome) = recovery.poll_outcome() {
                    let (follower, _) = outcome.map_err(|error| error.to_string())?;
                    self.stand(now, index, follower)?;
                    progress = true;
                }
            }
            Role::Standing(backup) => {
                if backup.poll_timeout().is_some_and(|at| at <= now) {
                    backup.handle_timeout(now);
                }
                while let Some(op) = backup.poll_disk(now) {
                    self.disk.submit(now, owner, op);
                    progress = true;
                }
                while let Some(batch) = backup.poll_committed() {
                    ledger.show(shard.id, &batch)?;
                    counts.shown += 1;
                }
                // One at a time: the role may be another one afterwards.
                if let Some(event) = backup.poll_event() {
                    self.handle_backup_event(now, index, event, ledger, counts)?;
                    return Ok(true);
                }
            }
            Role::Live { .. } => progress = self.pump_live(now, index, ledger, counts)?,
        }
        Ok(progress)
    }

    /// A log was recovered: what it holds is read whole.
    fn stand(&mut self, now: Instant, index: usize, mut follower: Follower) -> Result<(), String> {
        let shard = &mut self.shards[index];
        shard.view = View::default();
        shard.committed = Lsn::ZERO;
        let head = follower.head();
        let batches = match follower.read(head) {
            Some(reader) => read_now(reader, &self.disk)?,
            None if follower.received() == head => Vec::new(),
            None => return Err("a recovered log can't be read".into()),
        };
        for batch in &batches {
            shard.view.add(shard.id, follower.seed(), batch);
        }
        let follows = Follows {
            identity: identity(self.superblock.geometry),
            member: self.superblock.journal_uuid,
            boot: [self.boot as u8; 16],
        };
        let mut backup = Backup::new(now, follows, follower);
        if let Some(Canary::Replica(canary)) = self.canary {
            backup.break_rule(canary);
        }
        shard.role = Role::Standing(Box::new(backup));
        Ok(())
    }

    fn handle_backup_event(
        &mut self,
        now: Instant,
        index: usize,
        event: BackupEvent,
        ledger: &mut Ledger,
        counts: &mut Counts,
    ) -> Result<(), String> {
        let shard = &mut self.shards[index];
        let Role::Standing(backup) = &mut shard.role else { return Ok(()) };
        match event {
            BackupEvent::Export { from, to } => {
                let reader = backup.read(from).ok_or("an export of what is there")?;
                let delta = Delta {
                    log: LOG,
                    shard: shard.id,
                    from,
                    to,
                    epochs: backup.follower().epochs().clone(),
                    batches: read_now(reader, &self.disk)?,
                };
                let read = Delta::decode(&delta.encode()).map_err(|error| error.to_string())?;
                for batch in &read.batches {
                    let keys = keys_of(shard.id, backup.follower().seed(), batch);
                    counts.exported += keys.len() as u64;
                    ledger.export(keys);
                }
                backup.handle_exported();
            }
            BackupEvent::Cut => {
                counts.cuts += 1;
                shard.closed = true;
                self.recover(index);
            }
            BackupEvent::Joined { .. } => {}
            BackupEvent::Closed(_) => shard.closed = true,
            BackupEvent::Live => self.begin(now, index)?,
            BackupEvent::Failed(failed) => return Err(failed.to_string()),
        }
        Ok(())
    }

    /// The own reign is durable.
    fn begin(&mut self, now: Instant, index: usize) -> Result<(), String> {
        let required = self.set.as_ref().and_then(InSync::required);
        let canary = self.canary;
        let identity = identity(self.superblock.geometry);
        let shard = &mut self.shards[index];
        let Role::Standing(backup) = std::mem::replace(&mut shard.role, Role::Down) else {
            return Err("only a backup goes live".into());
        };
        let chain = backup.follower().chain();
        // The state here is the view, which has every batch since it was received.
        let (mut journal, _) = backup.into_live();
        journal.mirror();
        let at = Reigning {
            identity,
            shard: shard.id,
            epochs: journal.epochs().clone(),
            end: journal.durable(),
            chain,
        };
        let mut live = Live::new(now, at, required);
        if let Some(Canary::Replica(canary)) = canary {
            live.break_rule(canary);
        }
        shard.role = Role::Live { journal: Box::new(journal), live: Box::new(live) };
        Ok(())
    }

    fn pump_live(
        &mut self,
        now: Instant,
        index: usize,
        ledger: &mut Ledger,
        counts: &mut Counts,
    ) -> Result<bool, String> {
        let shard = &mut self.shards[index];
        let Role::Live { journal, live } = &mut shard.role else { return Ok(false) };
        let owner = Owner(shard.id.0);
        let mut progress = false;
        if journal.poll_timeout().is_some_and(|at| at <= now) {
            journal.handle_timeout(now);
        }
        if live.poll_timeout().is_some_and(|at| at <= now) {
            live.handle_timeout(now);
        }
        while let Some(op) = journal.poll_disk(now) {
            self.disk.submit(now, owner, op);
            progress = true;
        }
        while let Some(batch) = journal.poll_sealed() {
            shard.view.add(shard.id, journal.seed(), &batch);
            live.handle_sealed(now, batch);
        }
        live.set_durable(journal.durable());
        while let Some(from) = live.poll_reader() {
            counts.reads_back += 1;
            live.take_reader(journal.read(from));
            progress = true;
        }
        while let Some(op) = live.poll_disk() {
            self.disk.submit(now, owner, op);
            progress = true;
        }
        while let Some((_, order)) = shard.orders.pop_front_if(|(due, _)| *due <= now) {
            progress = true;
            match order {
                Order::Relax => live.set_required(now, None),
                Order::Require(round, peer) => {
                    live.set_required(now, Some(peer));
                    if let Some(set) = &mut self.set {
                        set.handle_required(round, shard.id, live.committed());
                    }
                }
            }
        }
        while let Some(event) = live.poll_event() {
            progress = true;
            match event {
                LiveEvent::PleaseShrink => {
                    if let Some(set) = &mut self.set {
                        set.remove();
                    }
                }
                LiveEvent::Closed { .. } => {
                    shard.closed = true;
                    if let Some(set) = &mut self.set {
                        set.handle_session_lost();
                    }
                }
                LiveEvent::Deposed(epoch) => return Err(format!("deposed by {epoch:?}")),
                LiveEvent::Failed(failed) => return Err(failed.to_string()),
            }
        }
        let committed = live.committed();
        journal.set_committed(committed);
        ledger.commit(shard.id, &shard.view, shard.committed, committed)?;
        shard.committed = committed;
        let backup = live.marks();
        let backup =
            backup.map(|marks| BackupMarks { received: marks.received, durable: marks.durable });
        let marks = Watermarks { durable: journal.durable(), backup };
        for level in [Level::Sync, Level::Replicated, Level::ReplicatedSync] {
            let reached = marks.of(level);
            let waiting = &mut shard.waiting[level as usize];
            while let Some(told) = waiting.pop_front_if(|waiting| waiting.end <= reached) {
                ledger.tell(self.index, level, told.key, counts);
            }
        }
        Ok(progress)
    }

    fn pump_set(&mut self, now: Instant) {
        let Some(set) = &mut self.set else { return };
        let following = self.shards.iter().map(|shard| match &shard.role {
            Role::Live { live, .. } => {
                let following = live.following()?;
                let lag_bytes = live.end().since(following.marks.durable);
                (lag_bytes <= NEAR_BYTES).then_some(following.member)
            }
            Role::Down | Role::Recovering(_) | Role::Standing(_) => None,
        });
        let following: Option<Vec<JournalUuid>> = following.collect();
        if let Some(peers) = following
            && !set.is_required()
        {
            set.add(peers[0]);
        }
        for shard in &self.shards {
            if let Role::Live { live, .. } = &shard.role
                && let Some(following) = live.following()
            {
                set.handle_durable(shard.id, following.member, following.marks.durable);
            }
        }
        while let Some(order) = set.poll_order() {
            for shard in &mut self.shards {
                let due = now + Duration::from_micros(self.rng.between(10, 3000));
                let due = shard.orders.back().map_or(due, |(last, _)| due.max(*last));
                shard.orders.push_back((due, order));
            }
        }
        // What is unsure is asked about now and then.
        if self.read_at.is_none() {
            self.read_at = Some(now + Duration::from_millis(25));
        }
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {} boot {} set {:?}", self.index, self.boot, self.set)?;
        for shard in &self.shards {
            match &shard.role {
                Role::Down => write!(f, " [down]")?,
                Role::Recovering(_) => write!(f, " [recovering]")?,
                Role::Standing(backup) => write!(
                    f,
                    " [standing to {} durable {} following {}]",
                    backup.follower().received(),
                    backup.follower().durable(),
                    backup.is_following()
                )?,
                Role::Live { journal, live } => write!(
                    f,
                    " [live to {} durable {} committed {} peer {:?}]",
                    live.end(),
                    journal.durable(),
                    live.committed(),
                    live.following()
                )?,
            }
        }
        Ok(())
    }
}

fn identity(geometry: Geometry) -> Identity {
    Identity::new("pair", [3; 16], LOG, geometry)
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
            FileId::NodeSuperblock | FileId::ShardSuperblock(_) => Vec::new(),
        };
        let there = contents.get(offset as usize..).unwrap_or_default();
        let len = there.len().min(buf.len());
        buf.as_mut_slice()[..len].copy_from_slice(&there[..len]);
        reader.handle_disk(journal::DiskDone { id, result: Ok(len as u32), buf: Some(buf) });
    }
    match reader.failed() {
        Some(failed) => Err(failed.to_string()),
        None => Ok(batches),
    }
}
