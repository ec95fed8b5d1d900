//! One journal alone on a simulated disk, and an oracle that knows what it must give back.
//!
//! ```text
//!   1 format            a crash leaves "not formatted", or a whole log
//!   2 a script          appends, settlements, waits, recycling, by a seed
//!   3 crash             at a given moment: an operation was taken, or one was answered
//!   4 recover           perhaps crashed too, at a given moment, and begun again
//!   5 check, go on      more appends, a power cut, and a last recovery
//! ```
//! The prefix property, which is all that a log promises: what recovery gives is an unbroken run of
//! what was appended, from a head that was asked for, to at least everything that had been durable.
//!
//! Invariant: the same [`Plan`] gives the same run. A broken promise is an `Err` that says which.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use journal::{
    AppendError, Config, DiskDone, DiskOp, FileId, Format, Geometry, Journal, JournalUuid, LogId,
    Lsn, NodeSuperblock, OpId, QueueId, Record, RecordFlags, RecordKind, Recovery, RecoveryOutcome,
    Sequence, ShardId, Urgency,
};

use crate::disk::{Crash, Disk, Fate, Owner, Profile};
use crate::hits::{Hit, Hits};
use crate::rng::Rng;

const SHARD: ShardId = ShardId(0);
const OWNER: Owner = Owner(0);
const QUEUE: QueueId = QueueId(1);
const SEGMENT_BYTES: u64 = 64 * 1024;

/// A crash at a moment of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// When [`Disk::moments`] reaches this number, counted from the start of the phase.
    pub moment: u64,
    /// How.
    pub crash: Crash,
}

/// One run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Everything that is drawn is drawn from this.
    pub seed: u64,
    /// How long the script is.
    pub steps: u32,
    /// The knobs of the journal.
    pub config: Config,
    /// The crash in format or script, if any; else a power cut after the script.
    pub stop: Option<Stop>,
    /// A crash in the recovery after it.
    pub recovery_stop: Option<Stop>,
}

impl Plan {
    /// A run of small segments without a crash in its middle.
    pub fn new(seed: u64, steps: u32) -> Self {
        let config = Config { segments_max: 8, writes_in_flight_max: 4, ..Config::default() };
        Self { seed, steps, config, stop: None, recovery_stop: None }
    }
}

/// What a run was like.
#[derive(Clone, Debug)]
pub struct Report {
    /// Moments of the disk in format and script: each can be stopped at.
    pub moments: u64,
    /// Moments of the recovery.
    pub recovery_moments: u64,
    /// Records that the last recovery gave back.
    pub records: usize,
    /// What the disk did.
    pub hits: Hits,
}

/// The run was cut where the plan says so.
struct Crashed;

/// Carries out a plan.
///
/// # Errors
/// The promise that was broken, in a sentence.
pub fn run(base: Instant, plan: &Plan) -> Result<Report, String> {
    let mut solo = Solo::new(base, plan);
    let scripted = solo.format_and_script(plan);
    let moments = solo.disk.moments();
    if scripted.is_ok() {
        if plan.stop.is_some_and(|stop| stop.moment <= moments) {
            return Err("the run should have been cut".to_owned());
        }
        solo.disk.crash(Crash::PowerCut(Fate::Seeded));
    }
    if let Some(what) = solo.broken.take() {
        return Err(what);
    }
    let recovery_from = solo.disk.moments();
    if let Some(stop) = plan.recovery_stop {
        solo.stop = Some(Stop { moment: recovery_from + stop.moment, crash: stop.crash });
        if solo.recover()?.is_some() {
            // It was over before: whatever it gave is promised now.
            solo.disk.crash(Crash::PowerCut(Fate::Seeded));
        } else {
            solo.disk_hit(Hit::CrashInRecovery);
        }
    }
    solo.stop = None;
    let recovered = solo.recover()?;
    let recovery_moments = solo.disk.moments() - recovery_from;
    let mut records = 0;
    if let Some(journal) = recovered {
        records = solo.go_on(journal)?;
    }
    let mut hits = solo.disk.hits().clone();
    hits.merge(&solo.hits);
    Ok(Report { moments, recovery_moments, records, hits })
}

/// A record that was appended.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    lsn: Lsn,
    end: Lsn,
    kind: RecordKind,
    sequence: Sequence,
    payload: Vec<u8>,
}

/// What the log must hold.
#[derive(Debug, Default)]
struct Oracle {
    /// In the order of the log.
    entries: Vec<Entry>,
    /// So many of them were durable at some time.
    promised: usize,
    /// Where the log may begin: each head that was asked for since the last recovery.
    heads: Vec<Lsn>,
    settled: BTreeSet<Sequence>,
    next: u64,
}

struct Solo {
    disk: Disk,
    now: Instant,
    rng: Rng,
    config: Config,
    stop: Option<Stop>,
    oracle: Oracle,
    formatted: bool,
    broken: Option<String>,
    hits: Hits,
}

impl Solo {
    fn new(base: Instant, plan: &Plan) -> Self {
        let mut profile = Profile::sound();
        profile.slow_one_in = 20;
        Self {
            disk: Disk::new(Rng::stream(plan.seed, "disk", 0), profile),
            now: base,
            rng: Rng::stream(plan.seed, "script", 0),
            config: plan.config.clone(),
            stop: plan.stop,
            oracle: Oracle { heads: vec![Lsn::ZERO], ..Oracle::default() },
            formatted: false,
            broken: None,
            hits: Hits::default(),
        }
    }

    fn disk_hit(&mut self, hit: Hit) {
        self.hits.add(hit);
    }

    // ---- The disk ------------------------------------------------------------------------------

    fn stop_here(&mut self) -> Result<(), Crashed> {
        match self.stop {
            Some(stop) if self.disk.moments() >= stop.moment => {
                self.disk.crash(stop.crash);
                Err(Crashed)
            }
            Some(_) | None => Ok(()),
        }
    }

    fn submit(&mut self, op: DiskOp) -> Result<(), Crashed> {
        self.disk.submit(self.now, OWNER, op);
        self.stop_here()
    }

    /// The next answer, with the clock moved on to it.
    fn answer(&mut self) -> Result<DiskDone, Crashed> {
        let due = self.disk.poll_timeout().expect("something is in flight");
        self.now = self.now.max(due);
        let (_, done) = self.disk.poll_done(self.now).expect("it is due");
        self.stop_here()?;
        Ok(done)
    }

    // ---- Format and script ---------------------------------------------------------------------

    fn format_and_script(&mut self, plan: &Plan) -> Result<(), Crashed> {
        self.format()?;
        let node = self.node().expect("formatted").expect("formatted");
        let Ok(Some(mut journal)) = self.recover_with(&node)? else {
            self.broken = Some("a log that was just made can't be read".to_owned());
            return Err(Crashed);
        };
        for _ in 0..plan.steps {
            self.step(&mut journal)?;
        }
        Ok(())
    }

    fn format(&mut self) -> Result<(), Crashed> {
        let geometry = Geometry { segment_bytes: SEGMENT_BYTES, shards: 1 };
        let mut format = Format::new(LogId([7; 16]), JournalUuid([8; 16]), geometry);
        loop {
            while let Some(op) = format.poll_disk() {
                self.submit(op)?;
            }
            if let Some(outcome) = format.poll_outcome() {
                outcome.expect("a sound disk takes a format");
                self.formatted = true;
                return Ok(());
            }
            let done = self.answer()?;
            format.handle_disk(done);
        }
    }

    fn step(&mut self, journal: &mut Journal) -> Result<(), Crashed> {
        match self.rng.below(20) {
            0..=7 => self.append_message(journal),
            8..=13 => self.append_settle(journal),
            14 => self.append_fact(journal),
            15..=16 => {
                let answers = self.rng.between(1, 3);
                self.wait(journal, answers)?;
            }
            17..=18 => self.recycle(journal),
            _ => self.sleep(journal)?,
        }
        self.turn(journal)
    }

    fn append_message(&mut self, journal: &mut Journal) {
        let bytes = match self.rng.below(12) {
            0..=5 => self.rng.between(1, 400),
            6..=9 => self.rng.between(400, 9000),
            10 => self.rng.between(9000, 40_000),
            _ => self.rng.between(64 * 1024, 150 * 1024),
        };
        let sequence = Sequence(self.oracle.next);
        let payload: Vec<u8> = (0..bytes).map(|at| (at + sequence.0) as u8).collect();
        if self.append(journal, RecordKind::Message, sequence, payload) {
            self.oracle.next += 1;
        }
    }

    fn append_settle(&mut self, journal: &mut Journal) {
        let open = self.oracle.unsettled();
        // The oldest first, mostly: a log that is recycled from its head needs that.
        let skip = if self.rng.chance(800) { 0 } else { self.rng.below(4) as usize };
        if let Some(sequence) = open.get(skip).or(open.first()) {
            let sequence = *sequence;
            if self.append(journal, RecordKind::Settle, sequence, Vec::new()) {
                self.oracle.settled.insert(sequence);
            }
        }
    }

    /// A fact that a broker copies forward before it recycles.
    fn append_fact(&mut self, journal: &mut Journal) {
        let sequence = Sequence(self.oracle.next);
        self.append(journal, RecordKind::NextSequence, sequence, Vec::new());
    }

    fn append(
        &mut self,
        journal: &mut Journal,
        kind: RecordKind,
        sequence: Sequence,
        payload: Vec<u8>,
    ) -> bool {
        let record = Record::new(kind, QUEUE, sequence, &payload);
        let urgency = if self.rng.chance(700) { Urgency::Now } else { Urgency::Window };
        let appended = if kind == RecordKind::NextSequence {
            journal.append_copy(self.now, &record)
        } else {
            journal.append(self.now, &record, urgency)
        };
        match appended {
            Ok(at) => {
                let entry = Entry { lsn: at.lsn, end: at.end, kind, sequence, payload };
                self.oracle.entries.push(entry);
                true
            }
            Err(AppendError::Full) => {
                self.disk_hit(Hit::DiskFull);
                false
            }
            Err(AppendError::Busy) => false,
            Err(error @ (AppendError::TooLarge | AppendError::Poisoned | AppendError::Closed)) => {
                self.broken = Some(format!("a sound journal refused a record: {error:?}"));
                false
            }
        }
    }

    fn recycle(&mut self, journal: &mut Journal) {
        let durable = journal.durable();
        journal.set_committed(durable);
        if let Some(head) = journal.head_segment()
            && self.oracle.is_dead(head.first_lsn, head.end_lsn, durable)
        {
            journal.recycle_head();
            self.oracle.heads.push(head.end_lsn);
        }
    }

    /// Takes so many answers, or all that there are.
    fn wait(&mut self, journal: &mut Journal, answers: u64) -> Result<(), Crashed> {
        self.turn(journal)?;
        for _ in 0..answers {
            if self.disk.poll_timeout().is_none() {
                return Ok(());
            }
            let done = self.answer()?;
            journal.handle_disk(self.now, done);
            self.turn(journal)?;
        }
        Ok(())
    }

    /// Lets time pass: windows close, the durable mark is written.
    fn sleep(&mut self, journal: &mut Journal) -> Result<(), Crashed> {
        let until = self.now + Duration::from_millis(self.rng.between(1, 300));
        loop {
            self.turn(journal)?;
            let next = [self.disk.poll_timeout(), journal.poll_timeout()];
            let Some(next) = next.into_iter().flatten().min().filter(|at| *at <= until) else {
                self.now = until;
                return Ok(());
            };
            self.now = self.now.max(next);
            if self.disk.poll_timeout().is_some_and(|at| at <= self.now) {
                let done = self.answer()?;
                journal.handle_disk(self.now, done);
            } else {
                journal.handle_timeout(self.now);
            }
        }
    }

    fn turn(&mut self, journal: &mut Journal) -> Result<(), Crashed> {
        if journal.poll_timeout().is_some_and(|at| at <= self.now) {
            journal.handle_timeout(self.now);
        }
        while let Some(op) = journal.poll_disk(self.now) {
            self.submit(op)?;
        }
        self.oracle.promise(journal.durable());
        if let Some(poison) = journal.poisoned() {
            self.broken = Some(format!("a sound disk poisoned the journal: {poison:?}"));
        }
        Ok(())
    }

    // ---- Recovery ------------------------------------------------------------------------------

    fn node(&self) -> Result<Option<NodeSuperblock>, String> {
        NodeSuperblock::decode(&self.disk.contents(FileId::NodeSuperblock))
            .map_err(|error| format!("the node's superblock can't be used: {error:?}"))
    }

    /// Recovers and checks. `None`: it was crashed, or there is nothing to recover.
    fn recover(&mut self) -> Result<Option<Journal>, String> {
        let Some(node) = self.node()? else {
            return if self.formatted {
                Err("the log was formatted and is not any more".to_owned())
            } else {
                Ok(None)
            };
        };
        self.formatted = true;
        match self.recover_with(&node) {
            Ok(recovered) => recovered,
            Err(Crashed) => Ok(None),
        }
    }

    /// The host's part: what a killed process left in the cache is no ground to build on.
    fn trust_node(&mut self) -> Result<(), Crashed> {
        self.submit(DiskOp::Sync { id: OpId(u64::MAX), file: FileId::NodeSuperblock })?;
        self.answer().map(|_| ())
    }

    fn recover_with(
        &mut self,
        node: &NodeSuperblock,
    ) -> Result<Result<Option<Journal>, String>, Crashed> {
        self.trust_node()?;
        let slots = self.disk.segments(SHARD);
        let mut recovery = Recovery::new(node, SHARD, &slots, self.config.clone());
        let mut found = Vec::new();
        let mut chain = None;
        loop {
            while let Some((lsn, record)) = recovery.poll_record() {
                if let Err(what) = gather(&mut found, &mut chain, lsn, &record) {
                    return Ok(Err(what));
                }
            }
            if let Some(outcome) = recovery.poll_outcome() {
                return Ok(self.judge(found, outcome.map_err(|error| format!("{error:?}"))));
            }
            while let Some(op) = recovery.poll_disk() {
                self.submit(op)?;
            }
            if self.disk.poll_timeout().is_none() {
                return Ok(Err("recovery waits for nothing".to_owned()));
            }
            let done = self.answer()?;
            recovery.handle_disk(self.now, done);
        }
    }

    fn judge(
        &mut self,
        found: Vec<Entry>,
        outcome: Result<RecoveryOutcome, String>,
    ) -> Result<Option<Journal>, String> {
        let outcome = outcome.map_err(|error| format!("recovery refused a sound log: {error}"))?;
        if outcome.truncated.is_some() {
            self.disk_hit(Hit::TailCut);
        }
        self.oracle.accept(&found)?;
        let mut journal = outcome.journal;
        self.oracle.promise(journal.durable());
        if self.oracle.promised != self.oracle.entries.len() {
            return Err(format!(
                "recovery gave {} records and vouches for {} of them only",
                self.oracle.entries.len(),
                self.oracle.promised
            ));
        }
        journal.set_unsettled(self.oracle.unsettled().len() as u64);
        Ok(Some(journal))
    }

    /// The recovered log works: what is appended now survives the next power cut.
    fn go_on(&mut self, mut journal: Journal) -> Result<usize, String> {
        for _ in 0..8 {
            self.append_message(&mut journal);
            self.append_settle(&mut journal);
            // No stop is set, so nothing can be cut here.
            let Ok(()) = self.sleep(&mut journal) else { return Err("cut?".to_owned()) };
            self.recycle(&mut journal);
        }
        if let Some(what) = self.broken.take() {
            return Err(what);
        }
        drop(journal);
        self.disk.crash(Crash::PowerCut(Fate::Torn));
        match self.recover()? {
            Some(_) => Ok(self.oracle.entries.len()),
            None => Err("the log is gone".to_owned()),
        }
    }
}

/// Puts fragments together again. An unfinished message at the end of the log is no message.
fn gather(
    found: &mut Vec<Entry>,
    chain: &mut Option<Entry>,
    lsn: Lsn,
    record: &Record<'_>,
) -> Result<(), String> {
    let payload = record.payload;
    let mut entry = if record.flags.has(RecordFlags::FIRST) {
        let sequence = record.sequence;
        Entry { lsn, end: lsn, kind: record.kind, sequence, payload: payload.to_vec() }
    } else {
        let Some(mut entry) = chain.take() else {
            // The message began in a segment that was recycled.
            let is_head = found.is_empty();
            return is_head.then_some(()).ok_or_else(|| format!("{lsn} continues nothing"));
        };
        if (entry.kind, entry.sequence) != (record.kind, record.sequence) {
            return Err(format!("the fragment at {lsn} belongs to another message"));
        }
        entry.payload.extend_from_slice(payload);
        entry
    };
    if record.flags.has(RecordFlags::LAST) {
        entry.end = lsn.plus(record.encoded_len() as u64);
        found.push(entry);
    } else {
        *chain = Some(entry);
    }
    Ok(())
}

impl Oracle {
    fn promise(&mut self, durable: Lsn) {
        let durable = self.entries.partition_point(|entry| entry.end <= durable);
        self.promised = self.promised.max(durable);
    }

    fn unsettled(&self) -> Vec<Sequence> {
        let messages = self.entries.iter().filter(|entry| entry.kind == RecordKind::Message);
        messages.map(|entry| entry.sequence).filter(|at| !self.settled.contains(at)).collect()
    }

    /// Whether nothing between two places of the log is needed, as far as is durable.
    fn is_dead(&self, first: Lsn, end: Lsn, durable: Lsn) -> bool {
        let settled: BTreeSet<Sequence> = self
            .entries
            .iter()
            .filter(|entry| entry.kind == RecordKind::Settle && entry.end <= durable)
            .map(|entry| entry.sequence)
            .collect();
        let held = |entry: &&Entry| entry.lsn >= first && entry.lsn < end;
        let here = self.entries.iter().filter(held);
        let mut messages = here.filter(|entry| entry.kind == RecordKind::Message);
        messages.all(|entry| entry.end <= durable && settled.contains(&entry.sequence))
    }

    /// Checks what a recovery gave; from then on it is the log.
    fn accept(&mut self, found: &[Entry]) -> Result<(), String> {
        let starts = |head: &Lsn| self.entries.partition_point(|entry| entry.lsn < *head);
        let fits = |start: &usize| self.entries[*start..].starts_with(found);
        let Some(start) = self.heads.iter().map(starts).find(fits) else {
            return Err(format!(
                "recovery gave {} records that are no run of the {} appended; the first is {:?}; \
                 the log may begin at {:?}",
                found.len(),
                self.entries.len(),
                found.first().map(|entry| (entry.lsn, entry.kind, entry.sequence)),
                self.heads
            ));
        };
        let end = start + found.len();
        if end < self.promised {
            return Err(format!(
                "{} records were durable, recovery ends after {end}: {:?} is lost",
                self.promised, self.entries[end].lsn
            ));
        }
        self.entries.truncate(end);
        let is_there = |entry: &&Entry| entry.kind == RecordKind::Settle;
        self.settled = self.entries.iter().filter(is_there).map(|entry| entry.sequence).collect();
        let last = self.entries.iter().map(|entry| entry.sequence.0 + 1).max();
        self.next = last.unwrap_or(0);
        if let Some(first) = found.first() {
            self.heads = vec![first.lsn];
        }
        Ok(())
    }
}
