//! One member: its process, its disk, its clock.
//!
//! ```text
//!   Membership ── duties, some time later ──▶ shard 0, shard 1
//!       ▲  ▲ ◀─── reports, some time later ──
//!       │  └ cards, answers of the voters
//!   its own clock, which runs faster or slower than time
//! ```
//! A process that is paused does nothing; its disk goes on, and what is sent to it waits.
//!
//! Invariant: a process knows nothing of its earlier life but what its disk holds.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use journal::{Epoch, Format, Geometry, JournalUuid, LogId, Lsn, NodeSuperblock, ShardId};
use replica::card::{Card, HeldLog, Standing};
use replica::member::{Duty, MemberConfig, MemberEvent, Membership, ShardReport};
use replica::{Answer, LeaseTerms, MemberInfo, NodeId, Query};

use super::ledger::{Ledger, View};
use super::shard::{Ground, Shard, mail_delay};
use super::voters::{Heard, Voters};
use super::{Canary, Counts, LEASE, SHARDS};
use crate::disk::{Crash, Disk, Fate, Owner, Profile};
use crate::rng::Rng;

const SEGMENT_BYTES: u64 = 64 * 1024;
/// A clock's rate is off by at most so many thousandths.
const DRIFT_PERMILLE: u64 = 10;

#[derive(Debug)]
pub(crate) struct Node {
    index: usize,
    base: Instant,
    rate_permille: u64,
    /// Of the directory; none while it is empty.
    superblock: Option<NodeSuperblock>,
    journal: JournalUuid,
    disk: Disk,
    rng: Rng,
    canary: Option<Canary>,
    boot: u64,
    down_until: Option<Instant>,
    paused_until: Instant,
    member: Option<Membership>,
    shards: Vec<Shard>,
    /// On their way to the member: a cell for each shard, in order.
    reports: Vec<VecDeque<(Instant, ShardReport)>>,
    reported: Vec<(Instant, Option<ShardReport>)>,
    questions: VecDeque<Query>,
    /// What the voters said, until it is looked at.
    answers: VecDeque<Answer>,
    is_new_reign: bool,
}

impl Node {
    pub(crate) fn new(seed: u64, index: usize, canary: Option<Canary>, now: Instant) -> Self {
        let mut rng = Rng::stream(seed, "pair node", index as u64);
        let rate_permille = 1000 - DRIFT_PERMILLE + rng.below(2 * DRIFT_PERMILLE + 1);
        Self {
            index,
            base: now,
            rate_permille,
            superblock: None,
            journal: JournalUuid([index as u8 + 1; 16]),
            disk: Disk::new(Rng::stream(seed, "pair disk", index as u64), Profile::sound()),
            rng,
            canary,
            boot: 0,
            down_until: Some(now),
            paused_until: now,
            member: None,
            shards: (0..SHARDS).map(Shard::new).collect(),
            reports: vec![VecDeque::new(); usize::from(SHARDS)],
            reported: vec![(now, None); usize::from(SHARDS)],
            questions: VecDeque::new(),
            answers: VecDeque::new(),
            is_new_reign: false,
        }
    }

    // ---- Its clock ------------------------------------------------------------------------------

    fn clock(&self, now: Instant) -> Instant {
        let us = (now - self.base).as_micros() as u64;
        self.base + Duration::from_micros(us * self.rate_permille / 1000)
    }

    /// The first moment at which its clock shows this, or shortly after.
    fn moment_of(&self, clock: Instant) -> Instant {
        let us = (clock - self.base).as_micros() as u64;
        self.base + Duration::from_micros(us * 1000 / self.rate_permille + 2)
    }

    // ---- What the world asks --------------------------------------------------------------------

    pub(crate) fn boot(&self) -> u64 {
        self.boot
    }

    pub(crate) fn view(&self, shard: ShardId) -> &View {
        self.shards[usize::from(shard.0)].view()
    }

    pub(crate) fn is_up(&self) -> bool {
        self.member.is_some()
    }

    pub(crate) fn is_awake(&self, now: Instant) -> bool {
        self.is_up() && self.paused_until <= now
    }

    /// Whether its gate is open, by its own clock.
    pub(crate) fn may_serve(&self, now: Instant) -> bool {
        let gate = self.member.as_ref().and_then(|member| member.gate().fence_at);
        self.is_awake(now) && gate.is_some_and(|fence| self.clock(now) < fence)
    }

    pub(crate) fn standing(&self) -> Option<Standing> {
        self.member.as_ref().map(Membership::standing)
    }

    pub(crate) fn waits_for_nothing(&self) -> bool {
        self.shards.iter().all(Shard::waits_for_nothing)
    }

    pub(crate) fn committed(&self, shard: ShardId) -> Lsn {
        self.shards[usize::from(shard.0)].committed()
    }

    pub(crate) fn end(&self, shard: ShardId) -> Lsn {
        self.shards[usize::from(shard.0)].end()
    }

    pub(crate) fn shard(&mut self, shard: ShardId) -> &mut Shard {
        &mut self.shards[usize::from(shard.0)]
    }

    /// The reign of all its shards.
    fn live_epoch(&self) -> Option<Epoch> {
        let first = self.shards[0].live_epoch()?;
        self.shards.iter().all(|shard| shard.live_epoch() == Some(first)).then_some(first)
    }

    pub(crate) fn take_new_reign(&mut self) -> bool {
        let is_new = self.is_new_reign && self.live_epoch().is_some();
        self.is_new_reign &= !is_new;
        is_new
    }

    pub(crate) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let member = self.member.as_ref()?;
        if self.paused_until > now {
            return Some(self.paused_until);
        }
        let shards = self.shards.iter().filter_map(Shard::poll_timeout);
        let reports = self.reports.iter().filter_map(|queue| Some(queue.front()?.0));
        let member = member.poll_timeout().map(|at| self.moment_of(at));
        shards.chain(reports).chain(self.disk.poll_timeout()).chain(member).min()
    }

    // ---- What the world does --------------------------------------------------------------------

    pub(crate) fn crash(&mut self, now: Instant, is_power: bool, rest: Duration) {
        let crash =
            if is_power { Crash::PowerCut(Fate::Seeded) } else { Crash::Kill(Fate::Seeded) };
        self.disk.crash(crash);
        self.shards.iter_mut().for_each(Shard::crash);
        self.reports.iter_mut().for_each(VecDeque::clear);
        self.questions.clear();
        self.answers.clear();
        self.member = None;
        self.is_new_reign = false;
        self.down_until = Some(now + rest);
        self.paused_until = now;
    }

    /// Its disk is gone with all that was on it; the next start finds another one, empty.
    pub(crate) fn lose_disk(&mut self) {
        self.superblock = None;
        self.journal = JournalUuid(std::array::from_fn(|_| self.rng.below(256) as u8));
        let seed = self.rng.bits();
        self.disk = Disk::new(Rng::stream(seed, "new disk", 0), Profile::sound());
        self.shards = (0..SHARDS).map(Shard::new).collect();
    }

    pub(crate) fn pause(&mut self, until: Instant) {
        self.paused_until = until;
    }

    pub(crate) fn switch_over(&mut self, now: Instant) -> bool {
        let clock = self.clock(now);
        self.member.as_mut().is_some_and(|member| member.switch_over(clock).is_ok())
    }

    pub(crate) fn start_if_due(&mut self, now: Instant, at_once: bool) {
        if self.down_until.is_none_or(|until| until > now && !at_once) {
            return;
        }
        self.down_until = None;
        self.boot += 1;
        let geometry = Geometry { segment_bytes: SEGMENT_BYTES, shards: SHARDS };
        let log = LogId([0x1a + self.index as u8; 16]);
        let config = MemberConfig {
            pair: "pair".into(),
            cluster: [3; 16],
            info: MemberInfo {
                node: NodeId(self.index as u8),
                replication: format!("node-{}:5680", self.index),
                advertise: format!("node-{}:5672", self.index),
                certificate: [0; 32],
            },
            journal: self.journal,
            boot: [self.boot as u8; 16],
            settings: [0; 32],
            terms: LeaseTerms::new(LEASE).expect("in bounds"),
            is_sole: true,
            in_sync_min: 1,
            founding: HeldLog { log, geometry },
            seed: self.rng.bits(),
        };
        let held = self.superblock.as_ref();
        let held = held.map(|node| HeldLog { log: node.log_id, geometry: node.geometry });
        let clock = self.clock(now);
        self.member = Some(match self.canary {
            Some(Canary::Replica(canary)) => Membership::broken(clock, config, held, canary),
            Some(Canary::Journal(_)) | None => Membership::new(clock, config, held),
        });
        self.reported.iter_mut().for_each(|(_, last)| *last = None);
    }

    /// Formats the directory at once: a crash meanwhile leaves it empty.
    fn format(&mut self, now: Instant, held: HeldLog) {
        let mut format = Format::new(held.log, self.journal, held.geometry);
        let mut at = now;
        while let Some(op) = format.poll_disk() {
            self.disk.submit(at, Owner(0), op);
            at = self.disk.poll_timeout().expect("it ends");
            format.handle_disk(self.disk.poll_done(at).expect("it is due").1);
        }
        self.superblock = Some(format.poll_outcome().expect("over").expect("a sound disk"));
        let profile = self.disk.profile_mut();
        profile.slow_one_in = *self.rng.pick(&[40, 40, 40, 8]);
        profile.slow_factor = 30;
    }

    // ---- Connections ----------------------------------------------------------------------------

    pub(crate) fn linked(&mut self, now: Instant, is_up: bool) {
        let clock = self.clock(now);
        if let Some(member) = &mut self.member {
            member.handle_link(clock, is_up);
        }
    }

    pub(crate) fn poll_card(&mut self, now: Instant) -> Option<Card> {
        let clock = self.clock(now);
        self.member.as_mut()?.poll_card(clock)
    }

    pub(crate) fn hear_card(&mut self, now: Instant, card: Card) {
        let clock = self.clock(now);
        if let Some(member) = &mut self.member {
            member.handle_card(clock, card);
        }
    }

    pub(crate) fn ask(&mut self, now: Instant, voters: &mut Voters) -> bool {
        let asks = !self.questions.is_empty();
        for query in self.questions.drain(..) {
            voters.ask(now, self.index, self.boot, query);
        }
        asks
    }

    /// What a process that stands still is told waits for it.
    pub(crate) fn handle_voters(&mut self, heard: Heard) {
        if heard.boot == self.boot {
            self.answers.push_back(heard.answer);
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
        if !self.is_awake(now) {
            return Ok(false);
        }
        let mut progress = self.pump_member(now, counts);
        while let Some((owner, done)) = self.disk.poll_done(now) {
            progress = true;
            self.shards[usize::from(owner.0)].handle_disk(now, done);
        }
        let may_serve = self.may_serve(now);
        let Some(superblock) = &self.superblock else { return Ok(progress) };
        let mut ground = Ground {
            now,
            index: self.index,
            boot: self.boot,
            superblock,
            canary: self.canary,
            disk: &mut self.disk,
            ledger,
            counts,
            may_serve,
        };
        for shard in &mut self.shards {
            progress |= shard.pump(&mut ground)?;
        }
        self.report(now);
        Ok(progress)
    }

    fn pump_member(&mut self, now: Instant, counts: &mut Counts) -> bool {
        let clock = self.clock(now);
        let mut progress = false;
        let Some(member) = &mut self.member else { return false };
        for (shard, queue) in self.reports.iter_mut().enumerate() {
            while let Some((_, report)) = queue.pop_front_if(|(due, _)| *due <= now) {
                member.handle_shard(clock, ShardId(shard as u16), report);
                progress = true;
            }
        }
        while let Some(answer) = self.answers.pop_front() {
            member.handle_answer(clock, answer);
            progress = true;
        }
        if member.poll_timeout().is_some_and(|at| at <= clock) {
            member.handle_time(clock);
        }
        while let Some(query) = member.poll_query() {
            self.questions.push_back(query);
            progress = true;
        }
        while let Some(event) = member.poll_event() {
            match event {
                MemberEvent::Serving(_) => self.is_new_reign = true,
                MemberEvent::Elected(_) => counts.reigns += 1,
                MemberEvent::Fenced(_) => counts.fences += 1,
                MemberEvent::Deposed(_) => counts.depositions += 1,
                MemberEvent::SwitchoverFailed(_)
                | MemberEvent::InSync(_)
                | MemberEvent::Renewed(_)
                | MemberEvent::Unwell
                | MemberEvent::GivesUp(_)
                | MemberEvent::Fault(_)
                | MemberEvent::SettingsDiffer(_) => {}
            }
        }
        if let Some(duty) = member.poll_duty() {
            self.obey(now, duty);
            progress = true;
        }
        progress
    }

    fn obey(&mut self, now: Instant, duty: Duty) {
        match duty {
            Duty::Format(held) => {
                self.format(now, held);
                let clock = self.clock(now);
                self.member.as_mut().expect("it has said so").handle_formatted(clock, held);
            }
            Duty::Stand | Duty::Follow | Duty::Reign(_) => {
                for shard in &mut self.shards {
                    shard.tell(now + mail_delay(&mut self.rng), duty);
                }
            }
        }
    }

    /// What each shard says of itself, on its way to the member.
    fn report(&mut self, now: Instant) {
        let every = self.member.as_ref().map_or(Duration::ZERO, Membership::report_every);
        for (index, shard) in self.shards.iter().enumerate() {
            let mut report = shard.report();
            if let Some(since) = &mut report.writing_since {
                *since = self.clock(*since);
            }
            let (at, last) = &self.reported[index];
            if *last == Some(report) && now - *at < every {
                continue;
            }
            self.reported[index] = (now, Some(report));
            let due = now + mail_delay(&mut self.rng);
            let queue = &mut self.reports[index];
            let due = queue.back().map_or(due, |(last, _)| due.max(*last));
            queue.push_back((due, report));
        }
    }

    /// Starts the recovery of shards that are down, once there is a log.
    pub(crate) fn recover(&mut self, now: Instant, ledger: &mut Ledger, counts: &mut Counts) {
        if !self.is_awake(now) {
            return;
        }
        let Some(superblock) = &self.superblock else { return };
        let ground = Ground {
            now,
            index: self.index,
            boot: self.boot,
            superblock,
            canary: self.canary,
            disk: &mut self.disk,
            ledger,
            counts,
            may_serve: false,
        };
        for shard in self.shards.iter_mut().filter(|shard| shard.is_down()) {
            shard.recover(&ground);
        }
    }

    /// Appends something, as a client asks.
    pub(crate) fn work(&mut self, now: Instant, rng: &mut Rng, ledger: &mut Ledger) {
        let index = rng.index(self.shards.len());
        self.shards[index].work(now, rng, ledger);
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {} boot {}", self.index, self.boot)?;
        if let Some(member) = &self.member {
            write!(f, " {:?}", member.status(self.base))?;
        }
        self.shards.iter().try_for_each(|shard| write!(f, " {shard}"))
    }
}
