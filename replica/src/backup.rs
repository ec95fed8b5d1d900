//! The backup's side of one shard's stream: joins, follows, answers.
//!
//! ```text
//!   apart ─connected─▶ asked ─Welcome─▶ verifying ─same chain─▶ adopting ─▶ following
//!     ▲                                     │                      │           │ Batch: checked,
//!     └── disconnected, Refuse ◀── differs ─┘   beyond the common  │           │ taken, written
//!                                               LSN: Export, then  ▼           │ Ack: received,
//!                                                        cut: recover again    │      durable
//!   asked ─Install─▶ what the live may lack: Export, then installed: recover again
//!                                                                              ▼
//!   reign ───────────────────────────▶ reigning ─▶ the log, live        committed: for apply
//! ```
//!
//! Invariants: `durable` in an answer is what the own disk has finished, never what was received
//! (R15). Nothing of an epoch is taken before its table is durable in the own superblock, and a
//! table is adopted only from a live whose epoch is not older than the own newest (R13): so a live
//! that was deposed is refused. What is handed out for the state is durable here and committed, as
//! the live says, and comes in order. Memory is bounded by what the follower lets wait and by what
//! is not committed yet, both far above what a live sends ahead.
//! A batch that does not fit ends the connection and leaves the log as it was; a failed write
//! poisons the log, which ends the process.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use journal::limits::BACKLOG_BYTES_MAX;
use journal::{
    Chain, DiskDone, DiskOp, Epoch, Follower, Journal, JournalUuid, LogReader, Lsn, ReadFailed,
    Rejoined, SealedBatch,
};

use crate::canary::{Canaries, Canary};
use crate::catchup::Tail;
use crate::limits::{BEAT_EVERY, SILENCE_MAX};
use crate::wire::{Frame, Hello, Identity, Install, Marks, Reason, Welcome};

/// Which member follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Follows {
    /// What it must have in common with the live.
    pub identity: Identity,
    /// Whose disk.
    pub member: JournalUuid,
    /// Which start of the process.
    pub boot: [u8; 16],
}

/// Something for the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupEvent {
    /// Batches of [`Backup::read`] from here to the end of the log are to be made a durable delta;
    /// then [`Backup::handle_exported`].
    Export {
        /// Where the logs part.
        from: Lsn,
        /// Where this one ends.
        to: Lsn,
    },
    /// The log was cut, or given up for the live's: recover it, with its state, and begin anew.
    Cut,
    /// It follows: batches come.
    Joined {
        /// The live's epoch.
        epoch: Epoch,
    },
    /// The connection is to be closed.
    Closed(Reason),
    /// The own reign is durable: [`Backup::into_live`].
    Live,
    /// What had been durable can't be read: the end of the process.
    Failed(ReadFailed),
}

#[derive(Debug)]
enum Stage {
    Apart,
    Asked,
    /// The chain at the common LSN is being read.
    Verifying {
        welcome: Box<Welcome>,
        reader: Box<LogReader>,
    },
    /// What only this log has is being made durable elsewhere, from this LSN on.
    Exporting {
        from: Lsn,
        then: Then,
    },
    Adopting {
        welcome: Box<Welcome>,
    },
    Following {
        session: u64,
    },
    /// The log is taking its own turn: a cut, or a reign.
    Turning,
    Over,
}

/// What becomes of a log when what only it has is kept.
#[derive(Debug)]
enum Then {
    /// It is cut, and follows.
    Cut(Box<Welcome>),
    /// It is given up for the live's.
    Install(Box<Install>),
}

impl Then {
    fn session(&self) -> u64 {
        match self {
            Self::Cut(welcome) => welcome.session,
            Self::Install(install) => install.session,
        }
    }
}

/// One shard's stream, at the backup.
#[derive(Debug)]
pub struct Backup {
    follows: Follows,
    follower: Follower,
    stage: Stage,
    committed: Lsn,
    /// Received, and not handed out.
    shown: VecDeque<SealedBatch>,
    shown_bytes: u64,
    told: Option<Marks>,
    heard: Instant,
    tell_due: Instant,
    frames: VecDeque<Frame>,
    events: VecDeque<BackupEvent>,
    canaries: Canaries,
}

impl Backup {
    /// A member whose log was recovered.
    #[must_use]
    pub fn new(now: Instant, follows: Follows, follower: Follower) -> Self {
        Self {
            follows,
            follower,
            stage: Stage::Apart,
            committed: Lsn::ZERO,
            shown: VecDeque::new(),
            shown_bytes: 0,
            told: None,
            heard: now,
            tell_due: now,
            frames: VecDeque::new(),
            events: VecDeque::new(),
            canaries: Canaries::default(),
        }
    }

    /// Breaks a rule, for a test.
    #[cfg(feature = "canary")]
    pub fn break_rule(&mut self, canary: Canary) {
        self.canaries.broken = Some(canary);
    }

    /// A connection to the live was made.
    pub fn handle_connected(&mut self, now: Instant) {
        self.part();
        if matches!(self.stage, Stage::Turning | Stage::Over | Stage::Adopting { .. }) {
            // The log can't be asked about while it turns; the next connection will do.
            return self.events.push_back(BackupEvent::Closed(Reason::Replaced));
        }
        let hello = Hello {
            identity: self.follows.identity.clone(),
            member: self.follows.member,
            boot: self.follows.boot,
            shard: self.follower.shard(),
            head: self.follower.head(),
            end: self.follower.received(),
            chain: self.follower.chain(),
            epochs: self.follower.epochs().clone(),
        };
        self.frames.push_back(Frame::Hello(Box::new(hello)));
        self.stage = Stage::Asked;
        (self.heard, self.told) = (now, None);
    }

    /// The connection is gone.
    pub fn handle_disconnected(&mut self) {
        self.part();
    }

    /// Takes what the live said.
    pub fn handle_frame(&mut self, now: Instant, frame: Frame) {
        self.heard = now;
        match frame {
            Frame::Welcome(welcome) if matches!(self.stage, Stage::Asked) => {
                self.handle_welcome(now, welcome);
            }
            Frame::Batch { session, committed, batch } if self.is_session(session) => {
                self.handle_batch(committed, batch);
            }
            Frame::Install(install) if matches!(self.stage, Stage::Asked) => {
                self.handle_install(install);
            }
            Frame::Beat { session, committed } if self.is_session(session) => {
                self.committed = self.committed.max(committed);
                self.note_committed();
            }
            // The live is there; what it has committed is not followed yet.
            Frame::Beat { session, .. } if self.prepares(session) => {}
            Frame::Refuse { reason, .. } => {
                self.part();
                self.events.push_back(BackupEvent::Closed(reason));
            }
            Frame::Hello(_)
            | Frame::Welcome(_)
            | Frame::Ready { .. }
            | Frame::Batch { .. }
            | Frame::Ack { .. }
            | Frame::Beat { .. }
            | Frame::Card(_)
            | Frame::Install(_) => self.refuse(Reason::Protocol, "a frame out of turn"),
        }
    }

    /// This is durable as a delta. Only what the last [`BackupEvent::Export`] asked for counts: an
    /// older connection may have asked for something else.
    pub fn handle_exported(&mut self, tail: Tail) {
        let (epoch, to) = (self.follower.epochs().newest().0, self.follower.received());
        let Stage::Exporting { from, then } = &self.stage else { return };
        if tail != (Tail { epoch, from: *from, to }) {
            return;
        }
        match then {
            Then::Cut(welcome) => self.follower.adopt(welcome.epochs.clone(), welcome.from),
            Then::Install(install) => {
                self.follower.install(install.start, install.epochs.clone());
            }
        }
        self.stage = Stage::Turning;
    }

    /// Begins a reign behind everything received. Whoever calls it has won it from the voters.
    ///
    /// # Panics
    /// If the log is cut or turns already, or is not whole.
    pub fn reign(&mut self, epoch: Epoch) {
        assert!(self.may_reign(), "one turn at a time, of a whole log");
        self.part();
        self.stage = Stage::Turning;
        self.follower.reign(epoch);
    }

    /// Whether [`reign`](Self::reign) may be called: nothing else is under way, and the log is not
    /// the middle of another's.
    #[must_use]
    pub fn may_reign(&self) -> bool {
        !self.is_turning() && self.follower.is_whole()
    }

    /// Whether the log is being cut, or gone over to another history or to its own reign.
    #[must_use]
    pub fn is_turning(&self) -> bool {
        matches!(self.stage, Stage::Turning | Stage::Over | Stage::Adopting { .. })
    }

    /// The log, once [`BackupEvent::Live`] was handed out, and the batches in it that
    /// [`poll_committed`](Self::poll_committed) has not given: durable, and the live's now, so its
    /// state needs them before it serves.
    ///
    /// # Panics
    /// If it was not.
    #[must_use]
    pub fn into_live(self) -> (Journal, VecDeque<SealedBatch>) {
        (self.follower.into_live(), self.shown)
    }

    /// Takes the answer to an operation.
    pub fn handle_disk(&mut self, now: Instant, done: DiskDone) {
        if LogReader::owns(done.id) {
            if let Stage::Verifying { reader, .. } = &mut self.stage
                && reader.awaits(done.id)
            {
                reader.handle_disk(done);
                self.verify();
            }
            return;
        }
        self.follower.handle_disk(now, done);
        match self.follower.poll_rejoined() {
            Some(Rejoined::Following) => self.joined(now),
            Some(Rejoined::Cut) => {
                self.stage = Stage::Over;
                self.events.push_back(BackupEvent::Cut);
            }
            Some(Rejoined::Live) => {
                self.stage = Stage::Over;
                self.events.push_back(BackupEvent::Live);
            }
            None => {}
        }
        self.note_committed();
    }

    /// Takes the time.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.follower.handle_timeout(now);
        let is_connected = matches!(
            self.stage,
            Stage::Asked
                | Stage::Verifying { .. }
                | Stage::Exporting { .. }
                | Stage::Following { .. }
        );
        if is_connected && self.heard + SILENCE_MAX <= now {
            self.refuse(Reason::Protocol, "nothing was heard");
        }
        if self.tell_due <= now {
            self.told = None;
            self.tell_due = now + BEAT_EVERY;
            // An export may take long: the live is to know that it goes on.
            if let Stage::Exporting { then, .. } = &self.stage {
                let (session, committed) = (then.session(), self.committed);
                self.frames.push_back(Frame::Beat { session, committed });
            }
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is next due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let follows = matches!(self.stage, Stage::Following { .. } | Stage::Exporting { .. });
        let connected = follows || matches!(self.stage, Stage::Asked | Stage::Verifying { .. });
        let silence = connected.then_some(self.heard + SILENCE_MAX);
        let tell = follows.then_some(self.tell_due);
        [silence, tell, self.follower.poll_timeout()].into_iter().flatten().min()
    }

    /// The next thing to do on the disk.
    pub fn poll_disk(&mut self, now: Instant) -> Option<DiskOp> {
        if let Stage::Verifying { reader, .. } = &mut self.stage
            && let Some(op) = reader.poll_disk()
        {
            return Some(op);
        }
        self.follower.poll_disk(now)
    }

    /// The next frame for the live.
    pub fn poll_frame(&mut self) -> Option<Frame> {
        if let Some(frame) = self.frames.pop_front() {
            return Some(frame);
        }
        let Stage::Following { session } = self.stage else { return None };
        let marks = self.marks();
        if self.told == Some(marks) {
            return None;
        }
        self.told = Some(marks);
        Some(Frame::Ack { session, marks })
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<BackupEvent> {
        self.events.pop_front()
    }

    /// The next batch for the state: durable here, and committed.
    pub fn poll_committed(&mut self) -> Option<SealedBatch> {
        let reached = self.committed.min(self.follower.durable());
        let batch = self.shown.pop_front_if(|batch| batch.end() <= reached)?;
        self.shown_bytes -= batch.bytes().len() as u64;
        Some(batch)
    }

    /// Reads what is durable of the log, for an export.
    #[must_use]
    pub fn read(&mut self, from: Lsn) -> Option<LogReader> {
        self.follower.read(from)
    }

    /// Gives the head segment up; see [`Follower::recycle_head`].
    ///
    /// # Panics
    /// If the follower's `head_segment()` is none.
    pub fn recycle_head(&mut self) {
        self.follower.recycle_head();
    }

    /// How far it is.
    #[must_use]
    pub fn marks(&self) -> Marks {
        let received = self.follower.received();
        let early = self.canaries.has(Canary::BackupAnswersBeforeFlush);
        Marks { received, durable: if early { received } else { self.follower.durable() } }
    }

    /// Everything below is committed, as far as the live has said.
    #[must_use]
    pub fn committed(&self) -> Lsn {
        self.committed
    }

    /// The log, to write a checkpoint of it; see [`Follower::checkpointing`].
    pub fn checkpointing(&mut self) -> Option<&mut Journal> {
        self.follower.checkpointing()
    }

    /// The log.
    #[must_use]
    pub fn follower(&self) -> &Follower {
        &self.follower
    }

    /// Whether batches come.
    #[must_use]
    pub fn is_following(&self) -> bool {
        matches!(self.stage, Stage::Following { .. })
    }

    fn is_session(&self, named: u64) -> bool {
        matches!(self.stage, Stage::Following { session } if session == named)
    }

    /// Whether it is about to follow in this session: verifies, exports, turns.
    fn prepares(&self, named: u64) -> bool {
        match &self.stage {
            Stage::Verifying { welcome, .. } | Stage::Adopting { welcome } => {
                welcome.session == named
            }
            Stage::Exporting { then, .. } => then.session() == named,
            // The live can't know yet.
            Stage::Turning | Stage::Over => true,
            Stage::Apart | Stage::Asked | Stage::Following { .. } => false,
        }
    }

    /// The live's log has no place where this one could go on.
    fn handle_install(&mut self, install: Box<Install>) {
        let (newest, _) = self.follower.epochs().newest();
        if install.epoch < newest {
            return self.refuse(Reason::StaleEpoch, "this member follows a newer epoch");
        }
        if !self.follower.can_begin_at(install.start.head) {
            return self.refuse(Reason::Protocol, "a log can't begin there");
        }
        let (head, to) = (self.follower.head(), self.follower.received());
        let from = install.common.max(head);
        if from < to {
            return self.export(from, Then::Install(install));
        }
        self.follower.install(install.start, install.epochs.clone());
        self.stage = Stage::Turning;
    }

    /// What stands from here on is only in this log.
    fn export(&mut self, from: Lsn, then: Then) {
        let to = self.follower.received();
        if self.follower.durable() < to {
            // The next connection finds it on the disk.
            return self.refuse(Reason::Protocol, "the log is still being written");
        }
        self.events.push_back(BackupEvent::Export { from, to });
        self.stage = Stage::Exporting { from, then };
    }

    fn handle_welcome(&mut self, now: Instant, welcome: Box<Welcome>) {
        let (newest, _) = self.follower.epochs().newest();
        if welcome.epoch < newest {
            return self.refuse(Reason::StaleEpoch, "this member follows a newer epoch");
        }
        let (head, end) = (self.follower.head(), self.follower.received());
        if welcome.from < head || welcome.from > end {
            return self.refuse(Reason::Protocol, "a common LSN outside the log");
        }
        if welcome.from == end {
            return self.verified(now, welcome, self.follower.chain());
        }
        match self.follower.read(welcome.from) {
            Some(reader) => {
                self.stage = Stage::Verifying { welcome, reader: Box::new(reader) };
                self.verify();
            }
            // What is beyond is on its way to the disk: the next connection finds it there.
            None => self.refuse(Reason::Protocol, "the log is still being written"),
        }
    }

    fn verify(&mut self) {
        let Stage::Verifying { welcome, reader } = &mut self.stage else { return };
        while reader.chain_from().is_none() && reader.poll_batch().is_some() {}
        if let Some(failed) = reader.failed() {
            self.events.push_back(BackupEvent::Failed(failed));
        } else if let Some(chain) = reader.chain_from() {
            let welcome = welcome.clone();
            self.verified(self.heard, welcome, chain);
        }
    }

    /// The chain at the common LSN is known on both sides.
    fn verified(&mut self, now: Instant, welcome: Box<Welcome>, chain: Chain) {
        let to = self.follower.received();
        if chain != welcome.chain {
            return self.refuse(Reason::Diverged, "another history before the common LSN");
        }
        if welcome.from < to {
            self.export(welcome.from, Then::Cut(welcome));
        } else if welcome.epochs == *self.follower.epochs() {
            self.stage = Stage::Adopting { welcome };
            self.joined(now);
        } else {
            self.follower.adopt(welcome.epochs.clone(), welcome.from);
            self.stage = Stage::Adopting { welcome };
        }
    }

    fn joined(&mut self, now: Instant) {
        let Stage::Adopting { welcome } = &self.stage else { return };
        let (session, epoch) = (welcome.session, welcome.epoch);
        self.stage = Stage::Following { session };
        (self.told, self.tell_due) = (None, now + BEAT_EVERY);
        self.frames.push_back(Frame::Ready { session });
        self.events.push_back(BackupEvent::Joined { epoch });
    }

    fn handle_batch(&mut self, committed: Lsn, batch: Bytes) {
        let Some(batch) = SealedBatch::check(self.follower.seed(), batch) else {
            return self.refuse(Reason::Batch, "its checksums do not hold");
        };
        let bytes = batch.bytes().len() as u64;
        if self.shown_bytes + bytes > BACKLOG_BYTES_MAX {
            return self.refuse(Reason::Batch, "too much that is not committed");
        }
        if let Err(refused) = self.follower.take(batch.clone()) {
            return self.refuse(Reason::Batch, &refused.to_string());
        }
        self.shown_bytes += bytes;
        self.shown.push_back(batch);
        self.committed = self.committed.max(committed);
        self.note_committed();
    }

    fn note_committed(&mut self) {
        self.follower.set_committed(self.committed);
    }

    fn refuse(&mut self, reason: Reason, detail: &str) {
        self.part();
        self.frames.push_back(Frame::Refuse { reason, detail: detail.into() });
        self.events.push_back(BackupEvent::Closed(reason));
    }

    /// Leaves the connection; a turn of the log goes on.
    fn part(&mut self) {
        self.frames.clear();
        match self.stage {
            Stage::Apart
            | Stage::Asked
            | Stage::Verifying { .. }
            | Stage::Exporting { .. }
            | Stage::Following { .. } => self.stage = Stage::Apart,
            Stage::Adopting { .. } | Stage::Turning | Stage::Over => {}
        }
    }
}
