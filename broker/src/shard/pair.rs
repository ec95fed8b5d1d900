//! A shard's part in a pair: it follows another member's log with a warm state, or writes its own
//! and sends each batch to the member that follows.
//!
//! ```text
//!   Recovering ─ the own log ─▶ Standing ─ Duty::Reign ─▶ Joining ─▶ Serving, a Live beside
//!                                  │ batches: written as they are, answered,
//!                                  │ applied once they are committed
//!                                  └─ Cut ─▶ the host makes the shard anew of what is left
//! ```
//! ```text
//!   journal ─ sealed ─▶ Live ─ Frame ─▶ host ═ stream ═ host ─ Heard ─▶ Backup ─▶ the same log
//!   commit rule ◀─ marks ─┘ ◀──────────────── Ack ─────────────────────────┘
//! ```
//! What it is to be comes as a [`Duty`], what it is goes out as a [`ShardReport`]; who is live is
//! decided elsewhere (`replica::member`). A shard that reigns and is told to do anything else has
//! clients, mail and writes under way: it [must give up](Shard::must_give_up), and the process
//! begins anew from its log.
//!
//! Invariants: a shard that stands has no client, and appends nothing. What its state holds is in
//! its log and committed, or was in the log when it started; a log that was cut is read again from
//! its head by a new shard. While the other member is required, levels 2 and 3 wait for its marks
//! of the session that runs, and a shard whose reign begins serves nobody before that member has
//! all that the log held then: a live that starts again may have a tail that nobody else has. A
//! host asks before each action that it polls of a shard that reigns whether it
//! [may](Shard::may_work) and the fence is not reached; what it took before may still happen.
//!
//! Failure: a fault of the peer ends its stream alone. What can't be read or applied here ends the
//! process.

use std::sync::Arc;
use std::time::Instant;

use journal::{DiskDone, Epoch, Follower, Journal, LogReader, LogSeed, Lsn, SealedBatch};
use replica::backup::{Backup, BackupEvent, Follows};
use replica::catchup::{DeltaHead, Piece, Tail};
use replica::live::{Live, LiveEvent, Reigning};
use replica::member::{Duty, Hosted, Reign, Round, Service, ShardReport};
use replica::wire::{Frame, Marks, Reason};

use super::start::fatal_of_apply;
use super::{Phase, Shard, terms};
use crate::event::{Action, Fatal, earlier};
use crate::limits::EXPORT_PIECE_BYTES;
use crate::pending::BackupMarks;
use crate::server::Server;

/// A connection between the members for one shard, numbered by the host; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StreamId(pub u64);

/// What can happen to a shard of a pair.
#[derive(Debug)]
pub enum PairEvent {
    /// What it is to be from now on.
    Duty(Duty),
    /// A stream to the other member stands. An older one is of no use any more.
    Connected(StreamId),
    /// It broke.
    Disconnected(StreamId),
    /// The other member said something.
    Heard(StreamId, Frame),
    /// A piece of the delta of a [`PairAction::Export`] is taken: the next one may come.
    Taken(Tail),
    /// All of it is durable.
    Exported(Tail),
    /// Where clients reach the members: all of them, or none.
    Servers(Arc<[Server]>),
}

/// What a shard of a pair asks of its host.
#[derive(Debug)]
pub enum PairAction {
    /// Send this.
    Frame(StreamId, Frame),
    /// Close this stream, once what was to be sent is.
    HangUp(StreamId, Reason),
    /// Put this piece into a file beside the log; then [`PairEvent::Taken`], or
    /// [`PairEvent::Exported`] after the last one.
    Export(Tail, Piece),
    /// The log was cut: make this shard anew of it.
    Cut,
}

/// What a shard of a pair has beside the rest.
#[derive(Debug)]
pub(super) struct Membership {
    follows: Follows,
    /// How fast the log is read back for a backup, bytes a second.
    catch_up_rate: Option<u64>,
    duty: Duty,
    throne: Option<Throne>,
    /// Why the last stream to the live ended.
    refused: Option<Reason>,
}

impl Membership {
    pub(super) fn new(follows: Follows) -> Self {
        Self { follows, catch_up_rate: None, duty: Duty::Stand, throne: None, refused: None }
    }

    pub(super) fn follows(&self) -> &Follows {
        &self.follows
    }

    pub(super) fn pace_catch_up(&mut self, bytes_a_second: u64) {
        self.catch_up_rate = Some(bytes_a_second);
    }

    /// The reign that was ordered, if it is the one that is here.
    fn reign(&self) -> Option<Reign> {
        let Duty::Reign(reign) = self.duty else { return None };
        let epoch = self.throne.as_ref()?.epoch;
        (reign.epoch == epoch).then_some(reign)
    }
}

/// A shard that does not write its log itself.
#[derive(Debug)]
pub(super) struct Standing {
    backup: Backup,
    stream: Option<StreamId>,
    export: Option<Export>,
    /// Where the log ended when it was read: that all of it is committed is known later.
    found: Lsn,
}

impl Standing {
    /// The log, where its state may be written down: all that was applied is committed.
    pub(super) fn checkpointing(&mut self) -> Option<&mut Journal> {
        let is_committed = self.backup.committed() >= self.found;
        let may = is_committed && self.backup.is_following();
        if may { self.backup.checkpointing() } else { None }
    }
}

/// What only this member has, on its way into a delta.
#[derive(Debug)]
struct Export {
    reader: LogReader,
    tail: Tail,
    /// Read, and not handed over.
    held: Vec<SealedBatch>,
    held_bytes: usize,
    /// A piece is on its way into the file.
    is_awaited: bool,
}

/// What a shard that reigns has beside its journal.
#[derive(Debug)]
struct Throne {
    epoch: Epoch,
    live: Live,
    /// Where the log ended when the reign began: served when it is committed as far as here.
    found: Lsn,
    /// The stream that is in use, and its session.
    stream: Option<(StreamId, u64)>,
    /// The newest requirement, and how far it had committed without that.
    obeyed: Option<(Round, Lsn)>,
    /// A newer epoch that the other member's log knows.
    deposed_by: Option<Epoch>,
}

impl Shard {
    /// Whether it writes the log of a pair.
    pub fn reigns(&self) -> bool {
        self.member.as_ref().is_some_and(|member| member.throne.is_some())
    }

    /// Whether it may do anything but follow: a host asks beside the fence.
    pub fn may_work(&self) -> bool {
        let Some(member) = self.member.as_ref().filter(|member| member.throne.is_some()) else {
            return true;
        };
        member.reign().is_some_and(|reign| reign.service != Service::Closed)
    }

    /// Whether it reigns and is to be something else: the process is to begin anew. It is not
    /// polled any more, so a host asks.
    pub fn must_give_up(&self) -> bool {
        self.member
            .as_ref()
            .is_some_and(|member| member.throne.is_some() && member.reign().is_none())
    }

    /// What it was told to be; none where it is of no pair.
    pub fn duty(&self) -> Option<Duty> {
        self.member.as_ref().map(|member| member.duty)
    }

    /// How it is; none where it is of no pair.
    pub fn pair_report(&self) -> Option<ShardReport> {
        let member = self.member.as_ref()?;
        if let Phase::Standing(standing) = &self.phase {
            return Some(ShardReport::of_backup(&standing.backup, member.refused));
        }
        let (Some(throne), Some(journal)) = (&member.throne, &self.journal) else {
            return Some(ShardReport::recovering());
        };
        let hosted = Hosted {
            service: member.reign().map_or(Service::Closed, |reign| reign.service),
            is_drained: matches!(self.phase, Phase::Stopped),
            obeyed: throne.obeyed,
            deposed_by: throne.deposed_by,
        };
        Some(ShardReport::of_live(&throne.live, journal, hosted))
    }

    /// The own log was read: it follows, or waits for what is decided.
    pub(super) fn stand(&mut self, now: Instant, follows: Follows, journal: Journal) {
        let found = journal.appended();
        let backup = Backup::new(now, follows, Follower::new(journal));
        let standing = Standing { backup, stream: None, export: None, found };
        self.phase = Phase::Standing(Box::new(standing));
    }

    fn say(&mut self, action: PairAction) {
        self.actions.push_back(Action::Pair(Box::new(action)));
    }

    pub(super) fn pair(&mut self, now: Instant, event: PairEvent) {
        match event {
            PairEvent::Duty(duty) => self.obey(now, duty),
            PairEvent::Connected(stream) => self.connect_stream(now, stream),
            PairEvent::Disconnected(stream) => self.disconnect_stream(now, stream),
            PairEvent::Heard(stream, frame) => self.hear(now, stream, frame),
            PairEvent::Taken(tail) => {
                if let Phase::Standing(standing) = &mut self.phase
                    && let Some(export) = standing.export.as_mut().filter(|e| e.tail == tail)
                {
                    export.is_awaited = false;
                }
            }
            PairEvent::Exported(tail) => {
                if let Phase::Standing(standing) = &mut self.phase {
                    standing.backup.handle_exported(tail);
                }
            }
            PairEvent::Servers(servers) => {
                self.config.amqp.properties = Some(terms::open_properties(&servers, false));
                self.secure_open = terms::open_properties(&servers, true);
            }
        }
    }

    fn obey(&mut self, now: Instant, duty: Duty) {
        let Some(member) = &mut self.member else { return };
        member.duty = duty;
        if let Phase::Standing(standing) = &mut self.phase {
            let may_follow = duty == Duty::Follow;
            if !may_follow && let Some(stream) = standing.stream.take() {
                standing.backup.handle_disconnected();
                standing.export = None;
                self.say(PairAction::HangUp(stream, Reason::NotLive));
            }
            return;
        }
        let reign = member.reign();
        let Some(throne) = &mut member.throne else { return };
        let Some(reign) = reign else { return };
        let known = throne.obeyed.map(|(round, _)| round);
        match reign.required {
            Some(required) if known != Some(required.round) => {
                throne.live.set_required(now, Some(required.member));
                throne.obeyed = Some((required.round, throne.live.committed()));
            }
            Some(_) => {}
            None => {
                throne.live.set_required(now, None);
                throne.obeyed = None;
            }
        }
        self.take_marks();
    }

    fn connect_stream(&mut self, now: Instant, stream: StreamId) {
        let Some(member) = &mut self.member else { return };
        let older = if let Some(throne) = &mut member.throne {
            let older = throne.stream.take().map(|(stream, _)| stream);
            throne.stream = Some((stream, throne.live.handle_connected(now)));
            older
        } else if let Phase::Standing(standing) = &mut self.phase
            && member.duty == Duty::Follow
        {
            standing.backup.handle_connected(now);
            standing.export = None;
            standing.stream.replace(stream)
        } else {
            return self.say(PairAction::HangUp(stream, Reason::NotLive));
        };
        if let Some(older) = older {
            self.say(PairAction::HangUp(older, Reason::Replaced));
        }
        self.take_marks();
    }

    fn disconnect_stream(&mut self, now: Instant, stream: StreamId) {
        let Some(member) = &mut self.member else { return };
        if let Some(throne) = &mut member.throne {
            if let Some((_, session)) = throne.stream.take_if(|(known, _)| *known == stream) {
                throne.live.handle_disconnected(now, session);
            }
        } else if let Phase::Standing(standing) = &mut self.phase
            && standing.stream.take_if(|known| *known == stream).is_some()
        {
            standing.backup.handle_disconnected();
            standing.export = None;
        }
        self.take_marks();
    }

    fn hear(&mut self, now: Instant, stream: StreamId, frame: Frame) {
        let Some(member) = &mut self.member else { return };
        if let Some(throne) = &mut member.throne {
            if let Some((_, session)) = throne.stream.filter(|(known, _)| *known == stream) {
                throne.live.handle_frame(now, session, frame);
            }
        } else if let Phase::Standing(standing) = &mut self.phase
            && standing.stream == Some(stream)
        {
            standing.backup.handle_frame(now, frame);
        }
        self.take_marks();
    }

    pub(super) fn pair_disk(&mut self, now: Instant, done: DiskDone) {
        if let Phase::Standing(standing) = &mut self.phase {
            match &mut standing.export {
                Some(export) if export.reader.awaits(done.id) => export.reader.handle_disk(done),
                Some(_) | None => standing.backup.handle_disk(now, done),
            }
        } else if let Some(throne) = self.throne() {
            throne.live.handle_disk(done);
        }
    }

    fn throne(&mut self) -> Option<&mut Throne> {
        self.member.as_mut()?.throne.as_mut()
    }

    fn pair_timeout(&self) -> Option<Instant> {
        if let Phase::Standing(standing) = &self.phase {
            return standing.backup.poll_timeout();
        }
        self.member.as_ref()?.throne.as_ref()?.live.poll_timeout()
    }

    /// The earlier of the pair's deadline and another.
    pub(super) fn or_pair_timeout(&self, at: Option<Instant>) -> Option<Instant> {
        if self.member.is_none() { at } else { earlier(at, self.pair_timeout()) }
    }

    pub(super) fn pair_timer(&mut self, now: Instant) {
        if self.pair_timeout().is_none_or(|at| at > now) {
            return;
        }
        if let Phase::Standing(standing) = &mut self.phase {
            standing.backup.handle_timeout(now);
        } else if let Some(throne) = self.throne() {
            throne.live.handle_timeout(now);
            self.take_marks();
        }
    }

    // ---- As a backup -------------------------------------------------------------------------

    /// One round of a shard that stands; whether there is more to do.
    pub(super) fn step_standing(&mut self, now: Instant) -> bool {
        self.reign_if_ordered();
        let Phase::Standing(standing) = &mut self.phase else { return false };
        if let Some(export) = &mut standing.export {
            while export.held_bytes < EXPORT_PIECE_BYTES
                && let Some(batch) = export.reader.poll_batch()
            {
                export.held_bytes += batch.bytes().len();
                export.held.push(batch);
            }
            if export.held_bytes < EXPORT_PIECE_BYTES
                && let Some(op) = export.reader.poll_disk()
            {
                self.actions.push_back(Action::Disk(op));
            }
        }
        while let Some(op) = standing.backup.poll_disk(now) {
            self.actions.push_back(Action::Disk(op));
        }
        while let Some(frame) = standing.backup.poll_frame() {
            let Some(stream) = standing.stream else { continue };
            self.actions.push_back(Action::Pair(Box::new(PairAction::Frame(stream, frame))));
        }
        let poison = standing.backup.follower().poisoned().copied();
        if let Some(poison) = poison {
            self.poisoned(&poison);
            return false;
        }
        self.go_on_exporting();
        self.apply_committed();
        self.forget_standing(now);
        self.recycle_standing();
        self.checkpoint_standing(now);
        let Phase::Standing(standing) = &mut self.phase else { return false };
        // One at a time: the phase may be another one afterwards.
        let event = standing.backup.poll_event();
        event.is_some_and(|event| {
            self.handle_backup(now, event);
            true
        })
    }

    fn reign_if_ordered(&mut self) {
        let (Some(member), Phase::Standing(standing)) = (&self.member, &mut self.phase) else {
            return;
        };
        if let Duty::Reign(reign) = member.duty
            && standing.backup.may_reign()
        {
            standing.backup.reign(reign.epoch);
        }
    }

    fn handle_backup(&mut self, now: Instant, event: BackupEvent) {
        let Phase::Standing(standing) = &mut self.phase else { return };
        let Some(member) = &mut self.member else { return };
        match event {
            BackupEvent::Export { from, to } => {
                let head = DeltaHead {
                    log: member.follows.identity.log,
                    shard: self.config.shard,
                    from,
                    to,
                    epochs: standing.backup.follower().epochs().clone(),
                    // Who knows the record says it (`FromCore::Export`).
                    is_overruled: false,
                };
                // A message that began before, and came to its end in what is cut, is in it whole.
                let segment_bytes = self.config.segment_bytes;
                let begins = self
                    .state
                    .chain_over(from)
                    .map_or(from, |first| Lsn(first.0 / segment_bytes * segment_bytes));
                let begins = begins.max(standing.backup.follower().head());
                match standing.backup.read(begins) {
                    Some(reader) => {
                        let (tail, held) = (head.tail(), Vec::new());
                        standing.export =
                            Some(Export { reader, tail, held, held_bytes: 0, is_awaited: true });
                        self.say(PairAction::Export(tail, Piece::Head(Box::new(head))));
                    }
                    None => self.unreadable(&format!("what lies beyond LSN {from} is not there")),
                }
            }
            BackupEvent::Cut => {
                // The shard that is made anew knows of no stream: the next one comes at once.
                if let Some(stream) = standing.stream.take() {
                    self.say(PairAction::HangUp(stream, Reason::Replaced));
                }
                self.say(PairAction::Cut);
            }
            BackupEvent::Joined { epoch } => {
                member.refused = None;
                tracing::info!(shard = self.config.shard.0, epoch = epoch.0, "follows the live");
            }
            BackupEvent::Closed(reason) => {
                member.refused = Some(reason);
                if let Some(stream) = standing.stream.take() {
                    self.say(PairAction::HangUp(stream, reason));
                }
            }
            BackupEvent::Live => self.begin(now),
            BackupEvent::Failed(failed) => self.unreadable(&failed.to_string()),
        }
    }

    fn unreadable(&mut self, what: &str) {
        let shard = self.config.shard.0;
        self.fatal(Fatal::JournalUnreadable(format!("shard {shard}: {what}")));
    }

    /// One piece is on its way at a time, so an export of any length costs little memory.
    fn go_on_exporting(&mut self) {
        let Phase::Standing(standing) = &mut self.phase else { return };
        let Some(export) = &mut standing.export else { return };
        if let Some(failed) = export.reader.failed() {
            return self.unreadable(&failed.to_string());
        }
        let (tail, is_over) = (export.tail, export.reader.is_over());
        let is_due = is_over || export.held_bytes >= EXPORT_PIECE_BYTES;
        if export.is_awaited || !is_due {
            return;
        }
        export.is_awaited = true;
        export.held_bytes = 0;
        let batches = std::mem::take(&mut export.held);
        let piece = if batches.is_empty() {
            standing.export = None;
            Piece::End
        } else {
            Piece::Batches(batches)
        };
        self.say(PairAction::Export(tail, piece));
    }

    fn apply_committed(&mut self) {
        loop {
            let Phase::Standing(standing) = &mut self.phase else { return };
            let Some(batch) = standing.backup.poll_committed() else { return };
            let seed = *standing.backup.follower().seed();
            let (_, reign) = standing.backup.follower().epochs().newest();
            self.apply_batch(&seed, &batch);
            if batch.first_lsn() >= reign {
                self.state.forget_chains_before(reign);
            }
        }
    }

    fn apply_batch(&mut self, seed: &LogSeed, batch: &SealedBatch) {
        // Read back is nothing before the reign is durable, and all of this with it.
        let shed_bytes = self.shed_bytes();
        for record in batch.records(seed) {
            let (lsn, record) = record.expect("a batch that was taken has been checked");
            match self.state.apply(lsn, &record) {
                Ok(effect) => self.state.commit_read(effect, shed_bytes),
                Err(error) => return self.fatal(fatal_of_apply(error)),
            }
        }
    }

    /// The live has copied forward what its head held; where our state says so too, ours goes.
    fn recycle_standing(&mut self) {
        let Phase::Standing(standing) = &mut self.phase else { return };
        while let Some(head) = standing.backup.follower().head_segment() {
            let lives = self.state.messages_in(head.number) > 0
                || !self.state.facts_up_to(head.number, 1).is_empty()
                || self.state.has_chain_before(head.end_lsn);
            if lives || !standing.backup.is_following() {
                return;
            }
            standing.backup.recycle_head();
        }
    }

    /// The reign is durable: what was received is this log's now, committed or not.
    fn begin(&mut self, now: Instant) {
        let Phase::Standing(standing) = std::mem::replace(&mut self.phase, Phase::Joining) else {
            unreachable!("only a shard that stands begins a reign");
        };
        let chain = standing.backup.follower().chain();
        let (mut journal, rest) = standing.backup.into_live();
        for batch in rest {
            self.apply_batch(journal.seed(), &batch);
        }
        journal.mirror();
        let Some(member) = &mut self.member else { return };
        let required = match member.duty {
            Duty::Reign(reign) => reign.required,
            Duty::Format(_) | Duty::Stand | Duty::Follow => None,
        };
        let epochs = journal.epochs().clone();
        let ((epoch, _), end) = (epochs.newest(), journal.durable());
        let identity = member.follows.identity.clone();
        let at = Reigning { identity, shard: self.config.shard, epochs, end, chain };
        let mut live = Live::new(now, at, required.map(|required| required.member));
        live.set_durable(end);
        if let Some(rate) = member.catch_up_rate {
            live.pace_catch_up(now, rate);
        }
        let throne = Throne {
            epoch,
            obeyed: required.map(|required| (required.round, live.committed())),
            live,
            found: end,
            stream: None,
            deposed_by: None,
        };
        member.throne = Some(throne);
        let duty = member.duty;
        self.take_up(journal);
        // What it says meanwhile may be another reign, or none.
        self.obey(now, duty);
    }

    // ---- As the live -------------------------------------------------------------------------

    /// What was sealed in this round goes out beside its write.
    pub(super) fn step_replicate(&mut self, now: Instant) {
        let Some(throne) = self.member.as_mut().and_then(|member| member.throne.as_mut()) else {
            return;
        };
        let Some(journal) = &mut self.journal else { return };
        while let Some(batch) = journal.poll_sealed() {
            throne.live.handle_sealed(now, batch);
        }
        throne.live.set_durable(journal.durable());
        loop {
            while let Some(frame) = throne.live.poll_frame() {
                let Some((stream, _)) = throne.stream else { continue };
                let frame = PairAction::Frame(stream, frame);
                self.actions.push_back(Action::Pair(Box::new(frame)));
            }
            if let Some(from) = throne.live.poll_reader() {
                throne.live.take_reader(journal.read(from));
            } else if throne.live.wants_start()
                && let Some(start) = journal.start()
            {
                let (shard, lsn) = (self.config.shard.0, start.head.0);
                tracing::info!(
                    shard,
                    lsn,
                    "nothing leads from the other member's log to this one: it begins anew where \
                     this log begins"
                );
                throne.live.take_start(Some(start));
            } else {
                break;
            }
        }
        while let Some(op) = throne.live.poll_disk() {
            self.actions.push_back(Action::Disk(op));
        }
        let events: Vec<LiveEvent> = std::iter::from_fn(|| throne.live.poll_event()).collect();
        events.into_iter().for_each(|event| self.handle_live(event));
        self.take_marks();
        self.tell_arrivals_if_kept();
    }

    /// Whether all that was in the log when it was taken up is there for good: whoever reigns again
    /// after a crash may have a tail that the member who must have it has not.
    pub(super) fn keeps_what_it_found(&self) -> bool {
        let throne = self.member.as_ref().and_then(|member| member.throne.as_ref());
        throne.is_none_or(|throne| throne.live.committed() >= throne.found)
    }

    fn handle_live(&mut self, event: LiveEvent) {
        let Some(throne) = self.throne() else { return };
        match event {
            // The report says so.
            LiveEvent::PleaseShrink => {}
            LiveEvent::Closed { session, reason } => {
                if let Some((stream, _)) = throne.stream.take_if(|(_, known)| *known == session) {
                    self.say(PairAction::HangUp(stream, reason));
                }
            }
            LiveEvent::Deposed(epoch) => throne.deposed_by = Some(epoch),
            LiveEvent::Failed(failed) => self.unreadable(&failed.to_string()),
        }
    }

    /// What the commit rule is to wait for.
    fn take_marks(&mut self) {
        let Some(member) = &mut self.member else { return };
        let is_short = member.reign().is_some_and(|reign| reign.is_short);
        let Some(throne) = &member.throne else { return };
        let marks = throne.live.marks();
        self.config.backup = marks.is_some() || is_short;
        let Marks { received, durable } = marks.unwrap_or_default();
        self.backup = BackupMarks { received, durable };
    }

    /// Whether producers are to feel that a required member is far behind, or that there are too
    /// few.
    pub(super) fn lags(&self) -> bool {
        let Some(member) = &self.member else { return false };
        let Some(throne) = &member.throne else { return false };
        let is_short = member.reign().is_some_and(|reign| reign.is_short);
        is_short || throne.live.lags()
    }

    /// The segment that a member which follows still has to read.
    pub(super) fn held_segment(&self) -> Option<u64> {
        let hold = self.member.as_ref()?.throne.as_ref()?.live.hold()?;
        // A place at the very end of a segment is that segment's.
        Some(hold.0.saturating_sub(1) / self.config.segment_bytes)
    }

    /// The head was given up: a member that still had to read it is not left to read what comes
    /// into its place.
    pub(super) fn pair_recycled(&mut self) {
        let Some(journal) = &self.journal else { return };
        let head = journal.first_kept();
        if let Some(throne) = self.throne() {
            throne.live.handle_recycled(head);
        }
    }
}
