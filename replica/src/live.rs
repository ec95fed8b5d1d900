//! The live's side of one shard's stream: what the backup lacks, from memory or from the log.
//!
//! ```text
//!   journal ─ sealed ─▶ window ████████████████  end
//!                       ▲ front      ▲ sent      ▲          sent moves on while
//!   log ▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒│                                   sent - durable there < the bound
//!       ▲ sent: read back until it meets the window
//!
//!   connected ─ Hello ─▶ finding ─ Welcome ─▶ welcomed ─ Ready ─▶ streaming
//!                 │       the chain at the common LSN: window, or a reader
//!                 └▶ replacing ─ Install ─▶ replaced: it begins at our head, and says Hello again
//! ```
//! One cursor serves catch-up and steady state alike: what the window has left is sent from it,
//! what it has dropped is read back, no faster than `pace.rs` allows.
//!
//! Invariants: marks belong to a session and begin at nothing (R9); an answer beyond what was sent,
//! or behind what was answered, ends the session. While the backup is required (it is in the
//! maximal in-sync set, R6), nothing is committed that it has not made durable: [`Live::committed`]
//! never passes it, connected or not. Memory is bounded: the window drops what is durable here once
//! it is full, and what is not is bounded by the journal's backlog. A backup that lags first slows
//! producers ([`Live::lags`]); one that lags for [`LAG_PATIENCE`] all the same, or makes no
//! progress for [`ACK_PATIENCE`], is to be put out of the set, which is said as data
//! ([`LiveEvent::PleaseShrink`]) and changes nothing here until the voters have it. A fault of the
//! peer ends the session alone.

use std::collections::VecDeque;
use std::time::Instant;

use journal::{
    Chain, DiskDone, DiskOp, Epoch, EpochTable, JournalUuid, LogReader, LogStart, Lsn, ReadFailed,
    SealedBatch, ShardId,
};

use crate::canary::Canaries;
use crate::catchup::{self, Meeting};
use crate::limits::{
    ACK_PATIENCE, BEAT_EVERY, HOLD_AFTER, LAG_PATIENCE, LAG_WITHHOLD_BYTES, SEND_AHEAD_BATCHES_MAX,
    SEND_AHEAD_BYTES_MAX, SILENCE_MAX, WINDOW_BYTES_MAX,
};
use crate::pace::Pace;
use crate::record::Mark;
use crate::wire::{Frame, Hello, Identity, Install, Marks, Reason, Welcome};

/// Where the live's log stands when its reign begins.
#[derive(Clone, Debug)]
pub struct Reigning {
    /// What a backup must have in common with it.
    pub identity: Identity,
    /// Whose log.
    pub shard: ShardId,
    /// Which reign wrote which part, its own last.
    pub epochs: EpochTable,
    /// Where it ends: everything before is durable.
    pub end: Lsn,
    /// The chain there.
    pub chain: Chain,
}

/// Something for the host, or for who decides on the in-sync set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LiveEvent {
    /// The required backup makes no progress, or not enough: put it out of the set. Said again
    /// while it lasts.
    PleaseShrink,
    /// The session is over: close its connection.
    Closed {
        /// Which.
        session: u64,
        /// Why.
        reason: Reason,
    },
    /// The peer has seen a newer epoch: this member is not live any more, whatever it believes.
    Deposed(Epoch),
    /// A part of the own log that had been durable can't be read: the end of the process.
    Failed(ReadFailed),
}

/// A backup that is connected and follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Following {
    /// Of which connection.
    pub session: u64,
    /// Whose disk.
    pub member: JournalUuid,
    /// How far it is, in this session.
    pub marks: Marks,
}

#[derive(Debug)]
enum Stage {
    /// Nothing was heard yet.
    Connected,
    /// The chain at the common LSN is being read.
    Finding {
        hello: Box<Hello>,
        from: Lsn,
    },
    /// The backup verifies, cuts or adopts.
    Welcomed {
        member: JournalUuid,
    },
    Streaming {
        member: JournalUuid,
    },
    /// Where the own log begins is wanted.
    Replacing {
        common: Lsn,
    },
    /// The backup is to begin there.
    Replaced {
        head: Lsn,
    },
}

#[derive(Debug)]
struct Peer {
    session: u64,
    stage: Stage,
    /// Everything before was sent, and the chain there.
    sent: (Lsn, Chain),
    /// Ends and bytes of what was sent and is not durable there.
    ahead: VecDeque<(Lsn, u64)>,
    ahead_bytes: u64,
    marks: Marks,
    reader: Option<LogReader>,
    heard: Instant,
    beat_due: Instant,
}

impl Peer {
    /// What it still has to read begins here.
    fn hold(&self) -> Option<Lsn> {
        match &self.stage {
            Stage::Connected | Stage::Replacing { .. } => None,
            Stage::Finding { from, .. } => Some(*from),
            Stage::Welcomed { .. } | Stage::Streaming { .. } => Some(self.sent.0),
            Stage::Replaced { head } => Some(*head),
        }
    }
}

/// One shard's stream, at the live.
#[derive(Debug)]
pub struct Live {
    at: Reigning,
    window: VecDeque<SealedBatch>,
    window_bytes: u64,
    durable: Lsn,
    required: Option<JournalUuid>,
    committed: Lsn,
    peer: Option<Peer>,
    session_next: u64,
    /// A reader is wanted, from here.
    wanted: Option<Lsn>,
    /// A disk whose log has another history than the tables say, by its own word.
    diverged: Option<JournalUuid>,
    /// Where a backup was when its connection went, and until when the log is held for it.
    lingering: Option<(Lsn, Instant)>,
    stalled_since: Option<Instant>,
    /// The required backup is far behind, and until when it may be.
    late_at: Option<Instant>,
    /// It was asked to put the backup out of the set because it has been so for too long.
    is_late: bool,
    /// It was asked to put the backup out of the set, and nothing has moved since.
    is_stalled: bool,
    /// A place not beyond `committed` whose chain is known; at first perhaps beyond it: where the
    /// reign began.
    watermark: Mark,
    frames: VecDeque<Frame>,
    events: VecDeque<LiveEvent>,
    pace: Option<Pace>,
    canaries: Canaries,
}

impl Live {
    /// A reign that has begun; `required` is the disk that the voters hold to be in sync beside
    /// this one.
    #[must_use]
    pub fn new(now: Instant, at: Reigning, required: Option<JournalUuid>) -> Self {
        let durable = at.end;
        let watermark = Mark { lsn: at.end, chain: at.chain };
        let mut live = Self {
            at,
            window: VecDeque::new(),
            window_bytes: 0,
            durable,
            required,
            committed: Lsn::ZERO,
            peer: None,
            session_next: 1,
            wanted: None,
            diverged: None,
            lingering: None,
            stalled_since: None,
            late_at: None,
            is_late: false,
            is_stalled: false,
            watermark,
            frames: VecDeque::new(),
            events: VecDeque::new(),
            pace: None,
            canaries: Canaries::default(),
        };
        live.note_progress(now);
        live
    }

    /// Breaks a rule, for a test.
    #[cfg(feature = "canary")]
    pub fn break_rule(&mut self, canary: crate::canary::Canary) {
        self.canaries.broken = Some(canary);
    }

    /// What is read back for a backup that has to catch up is sent at so many bytes a second, at
    /// least [`CATCH_UP_RATE_MIN`](crate::limits::CATCH_UP_RATE_MIN), and at twice what is appended
    /// meanwhile beside that; without this, and where it is required, as fast as it goes.
    pub fn pace_catch_up(&mut self, now: Instant, bytes_a_second: u64) {
        self.pace = Some(Pace::new(now, bytes_a_second));
    }

    /// Takes a batch whose write has begun here.
    ///
    /// # Panics
    /// If it does not follow the one before.
    pub fn handle_sealed(&mut self, now: Instant, batch: SealedBatch) {
        assert_eq!(batch.chain_before(), self.at.chain, "batches come in the order of the log");
        (self.at.end, self.at.chain) = (batch.end(), batch.chain_after());
        if let Some(pace) = &mut self.pace {
            pace.appended(batch.bytes().len() as u64);
        }
        self.window_bytes += batch.bytes().len() as u64;
        self.window.push_back(batch);
        self.trim();
        self.note_stall(now);
        self.note_lag(now);
    }

    /// How far the own log is durable.
    pub fn set_durable(&mut self, lsn: Lsn) {
        self.durable = self.durable.max(lsn);
        self.note_committed();
        self.trim();
    }

    /// Which disk is in the maximal in-sync set beside this one. To be relaxed only once the voters
    /// have the smaller set; to be tightened before they are asked for the larger one.
    pub fn set_required(&mut self, now: Instant, required: Option<JournalUuid>) {
        self.required = required;
        (self.stalled_since, self.late_at) = (None, None);
        (self.is_stalled, self.is_late) = (false, false);
        self.note_committed();
        self.note_stall(now);
        self.note_lag(now);
    }

    /// A connection was made; one before is of no use any more. Its frames come with this session.
    pub fn handle_connected(&mut self, now: Instant) -> u64 {
        if let Some(old) = self.peer.take() {
            self.close(&old, Reason::Replaced);
        }
        self.frames.clear();
        let session = self.session_next;
        self.session_next += 1;
        self.peer = Some(Peer {
            session,
            stage: Stage::Connected,
            sent: (self.at.end, self.at.chain),
            ahead: VecDeque::new(),
            ahead_bytes: 0,
            marks: Marks::default(),
            reader: None,
            heard: now,
            beat_due: now + BEAT_EVERY,
        });
        self.note_stall(now);
        session
    }

    /// The connection is gone.
    pub fn handle_disconnected(&mut self, now: Instant, session: u64) {
        if let Some(peer) = self.peer.take_if(|peer| peer.session == session) {
            self.linger(&peer);
            self.wanted = None;
            self.frames.clear();
            self.note_stall(now);
        }
    }

    /// Takes what the connection of this session said.
    pub fn handle_frame(&mut self, now: Instant, session: u64, frame: Frame) {
        let Some(peer) = self.peer.as_mut().filter(|peer| peer.session == session) else { return };
        peer.heard = now;
        match frame {
            Frame::Hello(hello) if matches!(peer.stage, Stage::Connected) => {
                self.handle_hello(hello);
            }
            Frame::Ready { session: named } if named == session => match peer.stage {
                Stage::Welcomed { member } => {
                    peer.stage = Stage::Streaming { member };
                    self.lingering = None;
                    self.note_stall(now);
                }
                Stage::Connected
                | Stage::Finding { .. }
                | Stage::Streaming { .. }
                | Stage::Replacing { .. }
                | Stage::Replaced { .. } => self.refuse(Reason::Protocol, "ready out of turn"),
            },
            Frame::Ack { session: named, marks } if named == session => {
                self.handle_marks(now, marks);
            }
            // It keeps what it is about to give up, which may take long.
            Frame::Beat { session: named, .. }
                if named == session
                    && matches!(peer.stage, Stage::Welcomed { .. } | Stage::Replaced { .. }) => {}
            Frame::Refuse { reason, .. } => {
                let peer = self.peer.take().expect("it was there");
                if let Stage::Welcomed { member } = peer.stage
                    && reason == Reason::Diverged
                {
                    self.diverged = Some(member);
                }
                self.close(&peer, reason);
                self.note_stall(now);
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

    /// Where the host is to begin a reader of the log, for [`take_reader`](Self::take_reader). Poll
    /// frames first: what they lack is asked for here and by [`poll_disk`](Self::poll_disk).
    pub fn poll_reader(&mut self) -> Option<Lsn> {
        self.wanted.take()
    }

    /// The reader that was asked for; none where the log begins after it.
    pub fn take_reader(&mut self, reader: Option<LogReader>) {
        let Some(peer) = &mut self.peer else { return };
        match reader {
            Some(reader) => {
                peer.reader = Some(reader);
                self.find();
            }
            None => match &peer.stage {
                Stage::Finding { hello, from } => {
                    let (member, from) = (hello.member, *from);
                    self.replace(member, from);
                }
                Stage::Connected
                | Stage::Welcomed { .. }
                | Stage::Streaming { .. }
                | Stage::Replacing { .. }
                | Stage::Replaced { .. } => {
                    self.refuse(Reason::TooFarBehind, "the log begins after it");
                }
            },
        }
    }

    /// Whether the host is to say where the log begins, for [`take_start`](Self::take_start).
    #[must_use]
    pub fn wants_start(&self) -> bool {
        self.peer.as_ref().is_some_and(|peer| matches!(peer.stage, Stage::Replacing { .. }))
    }

    /// Where the log begins; none while that is about to change: it is asked for again.
    pub fn take_start(&mut self, start: Option<LogStart>) {
        let Some((start, peer)) = start.zip(self.peer.as_mut()) else { return };
        let Stage::Replacing { common } = peer.stage else { return };
        peer.stage = Stage::Replaced { head: start.head };
        let (epoch, _) = self.at.epochs.newest();
        let (session, epochs) = (peer.session, self.at.epochs.clone());
        let install = Install { session, epoch, common, start, epochs };
        self.frames.push_back(Frame::Install(Box::new(install)));
    }

    /// The log begins here now. A backup that was reading before it has to begin anew.
    pub fn handle_recycled(&mut self, head: Lsn) {
        let is_cut_off =
            |peer: &Peer| peer.reader.is_some() && peer.hold().is_some_and(|hold| hold < head);
        if self.peer.as_ref().is_some_and(is_cut_off) {
            self.refuse(Reason::TooFarBehind, "the log was needed for messages");
        }
        self.lingering.take_if(|(hold, _)| *hold < head);
    }

    /// The reader's next read, with an id that [`LogReader::owns`].
    pub fn poll_disk(&mut self) -> Option<DiskOp> {
        self.peer.as_mut()?.reader.as_mut()?.poll_disk()
    }

    /// Takes the answer to a reader's read; one of a session that is over is dropped.
    pub fn handle_disk(&mut self, done: DiskDone) {
        let reader = self.peer.as_mut().and_then(|peer| peer.reader.as_mut());
        let Some(reader) = reader.filter(|reader| reader.awaits(done.id)) else { return };
        reader.handle_disk(done);
        self.find();
    }

    /// The next frame for the connection of [`session`](Self::session).
    pub fn poll_frame(&mut self) -> Option<Frame> {
        if let Some(frame) = self.frames.pop_front() {
            return Some(frame);
        }
        let batch = self.next_batch()?;
        let committed = self.committed;
        let peer = self.peer.as_mut()?;
        let bytes = batch.bytes().len() as u64;
        peer.sent = (batch.end(), batch.chain_after());
        peer.ahead.push_back((batch.end(), bytes));
        peer.ahead_bytes += bytes;
        Some(Frame::Batch { session: peer.session, committed, batch: batch.bytes().clone() })
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<LiveEvent> {
        self.events.pop_front()
    }

    /// Takes the time.
    pub fn handle_timeout(&mut self, now: Instant) {
        if let Some(pace) = &mut self.pace {
            pace.refill(now);
        }
        if self.stalled_since.is_some_and(|since| since + ACK_PATIENCE <= now) {
            self.stalled_since = Some(now);
            self.is_stalled = true;
            self.events.push_back(LiveEvent::PleaseShrink);
        }
        if self.late_at.is_some_and(|at| at <= now) {
            self.late_at = Some(now + LAG_PATIENCE);
            self.is_late = true;
            self.events.push_back(LiveEvent::PleaseShrink);
        }
        self.lingering.take_if(|(_, until)| *until <= now);
        let committed = self.committed;
        let Some(peer) = &mut self.peer else { return };
        if peer.heard + SILENCE_MAX <= now {
            return self.refuse(Reason::Protocol, "nothing was heard");
        }
        if peer.beat_due <= now {
            peer.beat_due = now + BEAT_EVERY;
            let waits = matches!(peer.stage, Stage::Welcomed { .. } | Stage::Replaced { .. });
            if waits || matches!(peer.stage, Stage::Streaming { .. }) {
                self.frames.push_back(Frame::Beat { session: peer.session, committed });
            }
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is next due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let stalled = self.stalled_since.map(|since| since + ACK_PATIENCE);
        let silence = self.peer.as_ref().map(|peer| peer.heard + SILENCE_MAX);
        let beat = self.peer.as_ref().map(|peer| peer.beat_due);
        let lingering = self.lingering.map(|(_, until)| until);
        let reading = self.peer.as_ref().filter(|peer| peer.reader.is_some());
        let paced = reading.and(self.pace.as_ref()).and_then(Pace::due);
        [stalled, self.late_at, silence, beat, lingering, paced].into_iter().flatten().min()
    }

    /// The connection that is in use.
    #[must_use]
    pub fn session(&self) -> Option<u64> {
        self.peer.as_ref().map(|peer| peer.session)
    }

    /// The backup, while it follows.
    #[must_use]
    pub fn following(&self) -> Option<Following> {
        let peer = self.peer.as_ref()?;
        match peer.stage {
            Stage::Streaming { member } => {
                Some(Following { session: peer.session, member, marks: peer.marks })
            }
            Stage::Connected
            | Stage::Finding { .. }
            | Stage::Welcomed { .. }
            | Stage::Replacing { .. }
            | Stage::Replaced { .. } => None,
        }
    }

    /// What the commit rule is to take for the backup's marks: none where it isn't required. Those
    /// of a disk that the voters don't name, as of a backup that was wiped, count for nothing.
    #[must_use]
    pub fn marks(&self) -> Option<Marks> {
        let required = self.required?;
        let named = self.following().filter(|following| following.member == required);
        Some(named.map(|following| following.marks).unwrap_or_default())
    }

    /// Everything below is durable on every member of the maximal in-sync set.
    #[must_use]
    pub fn committed(&self) -> Lsn {
        self.committed
    }

    /// A place not beyond [`committed`](Self::committed), with the chain there: for the record.
    #[must_use]
    pub fn watermark(&self) -> Option<Mark> {
        Some(self.watermark).filter(|mark| mark.lsn <= self.committed)
    }

    /// Whether [`LiveEvent::PleaseShrink`] was said and the required backup has not moved since,
    /// or not come near.
    #[must_use]
    pub const fn is_stalled(&self) -> bool {
        self.is_stalled || self.is_late
    }

    /// The log is not to be recycled beyond this while a backup still has to read it, or was
    /// reading it a moment ago. Where the room is needed it may be: see
    /// [`handle_recycled`](Self::handle_recycled).
    #[must_use]
    pub fn hold(&self) -> Option<Lsn> {
        let lingering = self.lingering.map(|(hold, _)| hold);
        self.peer.as_ref().and_then(Peer::hold).into_iter().chain(lingering).min()
    }

    /// Whether the required backup is so far behind that producers have to feel it: they get no new
    /// credit. What they send on credit that they hold is taken, and is bounded by that.
    #[must_use]
    pub fn lags(&self) -> bool {
        let lag_bytes = self.marks().map_or(0, |marks| {
            // Before its first answer it counts from what was committed with it.
            self.at.end.since(marks.durable.max(self.committed))
        });
        lag_bytes >= LAG_WITHHOLD_BYTES
    }

    /// The end of what was sealed.
    #[must_use]
    pub fn end(&self) -> Lsn {
        self.at.end
    }

    fn handle_hello(&mut self, hello: Box<Hello>) {
        let differs = self.at.identity.differs(&hello.identity);
        let differs = differs.or((hello.shard != self.at.shard).then_some(Reason::Shards));
        if let Some(reason) = differs {
            return self.refuse(reason, "hello");
        }
        let (newest, _) = hello.epochs.newest();
        if newest > self.at.epochs.newest().0 {
            self.events.push_back(LiveEvent::Deposed(newest));
            return self.refuse(Reason::NotLive, "a newer epoch is known");
        }
        let member = hello.member;
        if self.diverged.take_if(|diverged| *diverged == member).is_some() {
            return self.replace(member, Lsn::ZERO);
        }
        match catchup::meet(&self.at.epochs, self.at.end, &hello, self.canaries) {
            Meeting::At(from) => {
                let peer = self.peer.as_mut().expect("it has said hello");
                peer.stage = Stage::Finding { hello, from };
                match self.chain_in_window(from) {
                    Some(chain) => self.welcome(chain),
                    None => self.wanted = Some(from),
                }
            }
            Meeting::TooFarBehind(from) => self.replace(member, from),
            Meeting::Diverged => self.replace(member, Lsn::ZERO),
        }
    }

    /// Nothing leads from that log to this one: it is to be given up for this one.
    fn replace(&mut self, member: JournalUuid, common: Lsn) {
        if self.required == Some(member) {
            // Something may have been acknowledged on the strength of that log.
            return self.refuse(Reason::TooFarBehind, "the voters hold it to be in sync");
        }
        let peer = self.peer.as_mut().expect("it has said hello");
        peer.stage = Stage::Replacing { common };
    }

    /// The chain at `from`, if what lies there is still in memory.
    fn chain_in_window(&self, from: Lsn) -> Option<Chain> {
        if from == self.at.end {
            return Some(self.at.chain);
        }
        let next = self.window.partition_point(|batch| batch.first_lsn() < from);
        let before = next.checked_sub(1).and_then(|index| self.window.get(index));
        let before = before.filter(|batch| batch.end() == from).map(SealedBatch::chain_after);
        before.or_else(|| {
            let next = self.window.get(next).filter(|batch| batch.first_lsn() == from);
            next.map(SealedBatch::chain_before)
        })
    }

    /// Goes on with what a reader has found.
    fn find(&mut self) {
        let Some(peer) = &mut self.peer else { return };
        let Some(reader) = &mut peer.reader else { return };
        if !matches!(peer.stage, Stage::Finding { .. }) {
            return;
        }
        // What is handed out here is read again when it is sent: it was read for its chain.
        while reader.chain_from().is_none() && reader.poll_batch().is_some() {}
        if let Some(failed) = reader.failed() {
            self.events.push_back(LiveEvent::Failed(failed));
        } else if let Some(chain) = reader.chain_from() {
            peer.reader = None;
            self.welcome(chain);
        }
    }

    fn welcome(&mut self, chain: Chain) {
        let peer = self.peer.as_mut().expect("it has said hello");
        let Stage::Finding { hello, from } = &peer.stage else { return };
        let (from, member) = (*from, hello.member);
        if hello.end == from && hello.chain != chain {
            return self.replace(member, Lsn::ZERO);
        }
        let (epoch, _) = self.at.epochs.newest();
        let (session, epochs) = (peer.session, self.at.epochs.clone());
        peer.stage = Stage::Welcomed { member };
        peer.sent = (from, chain);
        let welcome = Welcome { session, epoch, from, chain, epochs };
        self.frames.push_back(Frame::Welcome(Box::new(welcome)));
    }

    fn handle_marks(&mut self, now: Instant, marks: Marks) {
        let peer = self.peer.as_mut().expect("checked by the caller");
        let is_streaming = matches!(peer.stage, Stage::Streaming { .. });
        let goes_on = marks.received >= peer.marks.received && marks.durable >= peer.marks.durable;
        let can_be = marks.received <= peer.sent.0 && marks.durable <= marks.received;
        if !is_streaming || !goes_on || !can_be {
            return self.refuse(Reason::Protocol, "marks that can't be");
        }
        let is_progress = marks.durable > peer.marks.durable;
        peer.marks = marks;
        while let Some((_, bytes)) = peer.ahead.pop_front_if(|(end, _)| *end <= marks.durable) {
            peer.ahead_bytes -= bytes;
        }
        self.note_committed();
        self.note_lag(now);
        self.trim();
        if is_progress && self.following().map(|peer| peer.member) == self.required {
            self.note_progress(now);
        } else {
            self.note_stall(now);
        }
    }

    /// The next batch for the backup, if it may have one now.
    fn next_batch(&mut self) -> Option<SealedBatch> {
        let peer = self.peer.as_mut()?;
        let is_full =
            peer.ahead_bytes >= SEND_AHEAD_BYTES_MAX || peer.ahead.len() >= SEND_AHEAD_BATCHES_MAX;
        let (sent, chain) = peer.sent;
        if !matches!(peer.stage, Stage::Streaming { .. }) || is_full || sent >= self.at.end {
            return None;
        }
        let next = self.window.partition_point(|batch| batch.first_lsn() < sent);
        let next = self.window.get(next).filter(|batch| batch.chain_before() == chain);
        if let Some(batch) = next {
            peer.reader = None;
            return Some(batch.clone());
        }
        if let Some(reader) = &mut peer.reader {
            // Producers wait for one that is required: it is never held back, and owes nothing.
            let is_required = matches!(peer.stage, Stage::Streaming { member }
                if self.required == Some(member));
            let mut pace = self.pace.as_mut().filter(|_| !is_required);
            if pace.as_mut().is_some_and(|pace| !pace.may_send()) {
                return None;
            }
            if let Some(batch) = reader.poll_batch() {
                if let Some(pace) = pace {
                    pace.sent(batch.bytes().len() as u64);
                }
                return Some(batch);
            }
            if let Some(failed) = reader.failed() {
                peer.reader = None;
                self.events.push_back(LiveEvent::Failed(failed));
                return None;
            }
            if !reader.is_over() {
                return None;
            }
            peer.reader = None;
        }
        self.wanted = Some(sent);
        None
    }

    fn refuse(&mut self, reason: Reason, detail: &str) {
        let Some(peer) = self.peer.take() else { return };
        self.close(&peer, reason);
        self.frames.push_back(Frame::Refuse { reason, detail: detail.into() });
    }

    /// The log is held for a while for a backup that was being brought up.
    fn linger(&mut self, peer: &Peer) {
        if let Some(hold) = peer.hold() {
            self.lingering = Some((hold, peer.heard + HOLD_AFTER));
        }
    }

    fn close(&mut self, peer: &Peer, reason: Reason) {
        self.linger(peer);
        self.frames.clear();
        self.wanted = None;
        self.events.push_back(LiveEvent::Closed { session: peer.session, reason });
    }

    fn note_committed(&mut self) {
        let reached = match self.marks() {
            Some(marks) => self.durable.min(marks.durable),
            None => self.durable,
        };
        if reached <= self.committed {
            return;
        }
        self.committed = reached;
        let below = self.window.partition_point(|batch| batch.end() <= self.committed);
        if let Some(batch) = below.checked_sub(1).and_then(|last| self.window.get(last)) {
            self.watermark = Mark { lsn: batch.end(), chain: batch.chain_after() };
        }
    }

    /// The backup is waited for from now on, if it is required and behind.
    fn note_stall(&mut self, now: Instant) {
        if self.marks().is_some_and(|marks| marks.durable < self.at.end) {
            self.stalled_since.get_or_insert(now);
        } else {
            self.stalled_since = None;
            self.is_stalled = false;
        }
    }

    /// The backup has been far behind for so long, or is near enough.
    fn note_lag(&mut self, now: Instant) {
        if self.lags() {
            self.late_at.get_or_insert(now + LAG_PATIENCE);
        } else {
            (self.late_at, self.is_late) = (None, false);
        }
    }

    fn note_progress(&mut self, now: Instant) {
        self.stalled_since = None;
        self.is_stalled = false;
        self.note_stall(now);
    }

    /// Drops what the backup has, and what is durable here where the window is full.
    fn trim(&mut self) {
        let has = self.following().map_or(Lsn::ZERO, |following| following.marks.durable);
        let durable = self.durable;
        loop {
            let is_full = self.window_bytes > WINDOW_BYTES_MAX;
            let may_go = |batch: &mut SealedBatch| {
                batch.end() <= has.min(durable) || (is_full && batch.end() <= durable)
            };
            let Some(gone) = self.window.pop_front_if(may_go) else { return };
            self.window_bytes -= gone.bytes().len() as u64;
        }
    }
}
