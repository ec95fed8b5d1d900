//! One shard of a member that is a whole broker's: with clients, queues, and mail to its neighbour.
//!
//! ```text
//!   Membership ─ duty ─▶ broker::Shard ─ report ─▶     streams: frames, as over a wire
//!   clients, mail ─ events ─▶   │
//!                        actions ─▶ disk, streams; the rest is Told, for the node and its clients
//! ```
//! It does what `src/driver/pair.rs` does: a shard that reigns is polled only while it may work and
//! the gate is open, asked before each action; one whose log was cut is made anew of what is left;
//! one that must give up ends its process.
//!
//! Invariant: what the log holds when a reign begins is told before anything that it writes.

use std::collections::VecDeque;
use std::fmt;
use std::time::Instant;

use broker::admin::{AdminId, AdminReply, AdminRequest};
use broker::shard::pair::{PairAction, PairEvent, StreamId};
use broker::{Action, Event, Shard, ShardConfig};
use journal::{DiskDone, Epoch, Lsn, Recovery, ShardId};
use replica::backup::Follows;
use replica::catchup::{Delta, Piece};
use replica::member::{Duty, ShardReport, Stage};
use replica::wire::{Frame, Reason};

use super::Canary;
use super::shard::{Ground, WRITE_BOUND, file_delay};
use crate::check::Seen;
use crate::disk::Owner;
use crate::rng::Rng;
use crate::starts;

/// What others have to carry or to know.
#[derive(Debug)]
pub(crate) enum Told {
    /// A reign begins with a log that ends here.
    Reigns(Lsn),
    /// It serves.
    Ready,
    /// What is on its way to the disk.
    Written(Vec<Seen>),
    /// For a connection, or for the other shard.
    Action(Action),
}

#[derive(Debug)]
pub(crate) struct Served {
    config: ShardConfig,
    shard: Option<Box<Shard>>,
    duty: Option<Duty>,
    duties: VecDeque<(Instant, Duty)>,
    stream: Option<StreamId>,
    next_stream: u64,
    frames: VecDeque<Frame>,
    told: VecDeque<Told>,
    in_flight: usize,
    closed: bool,
    /// It has sent the other one away, last, since the log begins later.
    too_far_behind: bool,
    /// Its log is read.
    is_read: bool,
    reigned: bool,
    failed: Option<String>,
    /// A start with a checkpoint came to something else than the log says.
    differs: Option<String>,
    /// Starts with a checkpoint, as far as they were not counted yet.
    from_checkpoints: u64,
    /// What only this member has, as far as it was handed over.
    export: Option<Delta>,
    /// When what was handed over is in its file, or durable, and what the shard hears then.
    filed: VecDeque<(Instant, PairEvent)>,
    rng: Rng,
}

impl Served {
    pub(crate) fn new(config: ShardConfig, rng: Rng) -> Self {
        Self {
            config,
            rng,
            shard: None,
            duty: None,
            duties: VecDeque::new(),
            stream: None,
            next_stream: 0,
            frames: VecDeque::new(),
            told: VecDeque::new(),
            in_flight: 0,
            closed: false,
            too_far_behind: false,
            is_read: false,
            reigned: false,
            failed: None,
            differs: None,
            from_checkpoints: 0,
            export: None,
            filed: VecDeque::new(),
        }
    }

    // ---- What the node asks ---------------------------------------------------------------------

    pub(crate) fn report(&self) -> ShardReport {
        match &self.shard {
            _ if self.failed.is_some() => ShardReport::failed(),
            Some(shard) => shard.pair_report().unwrap_or(ShardReport::recovering()),
            None => ShardReport::recovering(),
        }
    }

    pub(crate) fn live_epoch(&self) -> Option<Epoch> {
        match self.report().stage {
            Stage::Live(epoch) => Some(epoch),
            Stage::Recovering | Stage::Standing | Stage::Following(_) | Stage::Failed => None,
        }
    }

    pub(crate) fn is_down(&self) -> bool {
        self.shard.is_none() && self.in_flight == 0
    }

    pub(crate) fn failure(&self) -> Option<String> {
        self.failed.clone()
    }

    /// Whether the other one lacks more than its log has.
    pub(crate) fn is_too_far_behind(&self) -> bool {
        self.too_far_behind
    }

    pub(crate) fn must_give_up(&self) -> bool {
        self.shard.as_ref().is_some_and(|shard| shard.must_give_up())
    }

    pub(crate) fn wants_to_follow(&self) -> bool {
        self.duty == Some(Duty::Follow) && self.report().stage == Stage::Standing
    }

    pub(crate) fn waits_for_nothing(&self) -> bool {
        self.shard.as_ref().is_some_and(|shard| shard.is_quiet())
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let shard = self.shard.as_ref().and_then(|shard| shard.poll_timeout());
        let duty = self.duties.front().map(|(due, _)| *due);
        [shard, duty, self.filed.front().map(|(due, _)| *due)].into_iter().flatten().min()
    }

    pub(crate) fn take_closed(&mut self) -> bool {
        std::mem::take(&mut self.closed)
    }

    pub(crate) fn poll_told(&mut self) -> Option<Told> {
        self.told.pop_front()
    }

    // ---- What the node does ---------------------------------------------------------------------

    pub(crate) fn crash(&mut self) {
        let next_stream = self.next_stream;
        *self = Self { next_stream, ..Self::new(self.config.clone(), self.rng.clone()) };
    }

    pub(crate) fn tell(&mut self, due: Instant, duty: Duty) {
        let due = self.duties.back().map_or(due, |(last, _)| due.max(*last));
        self.duties.push_back((due, duty));
    }

    pub(crate) fn recover(&mut self, ground: &Ground<'_>) {
        let id = self.config.shard;
        let journal = journal::Config {
            segments_max: self.config.segments_max as u32,
            write_bound: WRITE_BOUND,
            canary: ground.canary.and_then(Canary::journal),
            ..journal::Config::default()
        };
        let begin = |id| {
            let slots = ground.disk.segments(id);
            Recovery::of_member(ground.superblock, id, &slots, journal.clone())
        };
        let recovery = begin(id).with_checkpoints();
        let starts =
            starts::Ground { disk: ground.disk, segment_bytes: self.config.segment_bytes, begin };
        match starts.compare(std::iter::once(id)) {
            Ok(starts) => self.from_checkpoints += starts.used,
            Err(what) => self.differs = Some(what),
        }
        let follows = Follows {
            identity: ground.identity(),
            member: ground.superblock.journal_uuid,
            boot: [ground.boot as u8; 16],
        };
        let mut shard = Shard::member(self.config.clone(), recovery, follows);
        if let Some(duty) = self.duty {
            shard.handle(ground.now, Event::Pair(Box::new(PairEvent::Duty(duty))));
        }
        self.shard = Some(Box::new(shard));
        (self.is_read, self.reigned) = (false, false);
    }

    pub(crate) fn handle(&mut self, now: Instant, event: Event<'_>) {
        if let Some(shard) = &mut self.shard {
            shard.handle(now, event);
        }
    }

    fn pair(&mut self, now: Instant, event: PairEvent) {
        self.handle(now, Event::Pair(Box::new(event)));
    }

    pub(crate) fn handle_disk(&mut self, now: Instant, done: DiskDone) {
        self.in_flight -= 1;
        self.handle(now, Event::Disk(done));
    }

    // ---- Connections to the other member --------------------------------------------------------

    /// A stream stands; its number, which is that of the host.
    pub(crate) fn connected(&mut self, now: Instant) -> u64 {
        self.next_stream += 1;
        let stream = StreamId(self.next_stream);
        self.frames.clear();
        self.stream = Some(stream);
        self.pair(now, PairEvent::Connected(stream));
        stream.0
    }

    pub(crate) fn disconnected(&mut self, now: Instant) {
        self.frames.clear();
        if let Some(stream) = self.stream.take() {
            self.pair(now, PairEvent::Disconnected(stream));
        }
    }

    pub(crate) fn poll_frame(&mut self) -> Option<Frame> {
        self.frames.pop_front()
    }

    pub(crate) fn hear(&mut self, now: Instant, frame: Frame) {
        if let Some(stream) = self.stream {
            self.pair(now, PairEvent::Heard(stream, frame));
        }
    }

    // ---- One moment -----------------------------------------------------------------------------

    pub(crate) fn pump(&mut self, ground: &mut Ground<'_>) -> Result<bool, String> {
        let now = ground.now;
        let mut progress = false;
        ground.counts.from_checkpoints += std::mem::take(&mut self.from_checkpoints);
        if let Some(what) = self.differs.take() {
            return Err(what);
        }
        while let Some((_, duty)) = self.duties.pop_front_if(|(due, _)| *due <= now) {
            progress = true;
            self.duty = Some(duty);
            self.pair(now, PairEvent::Duty(duty));
        }
        while let Some((_, filed)) = self.filed.pop_front_if(|(due, _)| *due <= now) {
            progress = true;
            self.pair(now, filed);
        }
        if self.shard.as_ref().and_then(|shard| shard.poll_timeout()).is_some_and(|at| at <= now) {
            self.handle(now, Event::Timer);
        }
        while let Some(action) = self.poll(ground)? {
            progress = true;
            self.act(ground, action)?;
        }
        if self.is_down() && self.failed.is_none() {
            self.recover(ground);
            progress = true;
        }
        Ok(progress)
    }

    /// The next action, if it may have one: the fence is looked at before each.
    fn poll(&mut self, ground: &mut Ground<'_>) -> Result<Option<Action>, String> {
        let Some(shard) = self.shard.as_mut().filter(|_| self.failed.is_none()) else {
            return Ok(None);
        };
        let action = if may_poll(shard, ground) { shard.poll(ground.now) } else { None };
        let report = shard.pair_report().ok_or("a member's shard reports")?;
        let is_read = match report.stage {
            Stage::Standing | Stage::Following(_) | Stage::Live(_) => true,
            Stage::Recovering | Stage::Failed => false,
        };
        if !self.is_read && is_read {
            self.is_read = true;
            // What it vouches for is the ground for what comes.
            if let Some(audit) = &mut ground.audit {
                audit.recovered(self.config.shard, report.log.end);
            }
        }
        if !self.reigned && shard.reigns() {
            self.reigned = true;
            self.told.push_back(Told::Reigns(report.log.end));
        }
        Ok(action)
    }

    fn act(&mut self, ground: &mut Ground<'_>, action: Action) -> Result<(), String> {
        match action {
            Action::Disk(op) => {
                self.in_flight += 1;
                let mut written = Vec::new();
                if let Some(audit) = &mut ground.audit {
                    let before = audit.log_head(self.config.shard);
                    written = audit.submit(&op);
                    let has_moved = audit.log_head(self.config.shard) > before;
                    ground.counts.heads_followed += u64::from(has_moved && !self.reigned);
                }
                if self.reigned && !written.is_empty() {
                    self.told.push_back(Told::Written(written));
                }
                ground.disk.submit(ground.now, Owner(self.config.shard.0), op);
            }
            Action::Pair(said) => self.said(ground, *said)?,
            Action::Fatal(cause) => self.failed = Some(cause.to_string()),
            Action::Ready(_) => self.told.push_back(Told::Ready),
            Action::Send { .. }
            | Action::PauseReceive(_)
            | Action::ResumeReceive(_)
            | Action::Close(_)
            | Action::Move { .. }
            | Action::Authenticate { .. }
            | Action::Mail { .. }
            | Action::AdminReply { .. }
            | Action::Drained => self.told.push_back(Told::Action(action)),
        }
        Ok(())
    }

    fn said(&mut self, ground: &mut Ground<'_>, said: PairAction) -> Result<(), String> {
        match said {
            PairAction::Frame(stream, frame) if Some(stream) == self.stream => {
                self.frames.push_back(frame);
            }
            PairAction::HangUp(stream, reason) if Some(stream) == self.stream => {
                self.closed = true;
                self.too_far_behind = reason == Reason::TooFarBehind;
            }
            PairAction::Frame(..) | PairAction::HangUp(..) => {}
            PairAction::Export(tail, piece) => {
                let filed = match piece {
                    Piece::Head(head) => {
                        self.export = Some(Delta { head: *head, batches: Vec::new() });
                        PairEvent::Taken(tail)
                    }
                    Piece::Batches(batches) => {
                        let export = self.export.as_mut().ok_or("batches behind their head")?;
                        export.batches.extend(batches);
                        PairEvent::Taken(tail)
                    }
                    Piece::End => {
                        let delta = self.export.take().ok_or("an end behind its head")?;
                        let read = Delta::decode(&delta.encode());
                        let read = read.map_err(|error| error.to_string())?;
                        ground.counts.exported += read.batches.len() as u64;
                        PairEvent::Exported(read.head.tail())
                    }
                };
                self.filed.push_back((ground.now + file_delay(&mut self.rng), filed));
            }
            PairAction::Cut => {
                ground.counts.cuts += 1;
                (self.shard, self.closed) = (None, true);
                self.filed.clear();
            }
        }
        Ok(())
    }

    /// Asks as an operator does, if it may answer now.
    pub(crate) fn ask(
        &mut self,
        ground: &mut Ground<'_>,
        request: AdminRequest,
    ) -> Result<Option<AdminReply>, String> {
        if !self.shard.as_ref().is_some_and(|shard| may_poll(shard, ground)) {
            return Ok(None);
        }
        self.handle(ground.now, Event::Admin { id: AdminId(0), request });
        while let Some(action) = self.poll(ground)? {
            if let Action::AdminReply { reply, .. } = action {
                return Ok(Some(reply));
            }
            self.act(ground, action)?;
        }
        Ok(None)
    }

    /// Where its log ends.
    pub(crate) fn end(&self) -> Lsn {
        self.report().log.end
    }

    pub(crate) fn committed(&self) -> Lsn {
        self.report().committed
    }

    pub(crate) fn id(&self) -> ShardId {
        self.config.shard
    }
}

/// A shard that reigns does nothing while it may not.
fn may_poll(shard: &Shard, ground: &Ground<'_>) -> bool {
    !shard.reigns() || shard.may_work() && ground.may_serve
}

impl fmt::Display for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} in flight, {:?}, {:?}]", self.in_flight, self.duty, self.report())
    }
}
