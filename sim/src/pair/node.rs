//! One member: its process, its disk, its clock.
//!
//! ```text
//!   Membership ── duties, some time later ──▶ shard 0, shard 1
//!    ▲  ▲  ▲ ◀─── reports, some time later ──
//!    │  │  └ cards
//!    │  └ voter::Client ◀── wire ──▶ voters
//!   its own clock, which runs faster or slower than time
//! ```
//! A process that is paused does nothing; its disk goes on, and what is sent to it waits. One whose
//! shard has failed ends a moment later, which needs a fault of its disk.
//!
//! Invariant: a process knows nothing of its earlier life but what its disk holds.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use broker::admin::{AdminReply, AdminRequest};
use broker::{Event, ShardConfig};
use journal::{Epoch, Format, Geometry, JournalUuid, LogId, Lsn, NodeSuperblock, ShardId};
use replica::card::{Card, HeldLog, Standing};
use replica::member::{Duty, MemberConfig, MemberEvent, Membership, ShardReport};
use replica::voter::Client;
use replica::{LeaseTerms, MemberInfo, NodeId, Outcome, Query, Register};

use super::host::Host;
use super::ledger::{Ledger, View};
use super::served::{Served, Told};
use super::shard::{Ground, Shard, mail_delay};
use super::voters::{PAIR, Voters};
use super::{Canary, Counts, SHARDS};
use crate::audit::{Audit, Held};
use crate::check::Mark;
use crate::disk::{Crash, Disk, Owner, Profile};
use crate::hits::{Hit, Hits};
use crate::rng::Rng;
use crate::voters::ensemble::Heard;

pub(crate) const SEGMENT_BYTES: u64 = 64 * 1024;
/// A clock's rate is off by at most so many thousandths.
const DRIFT_PERMILLE: u64 = 10;
/// A write that stands for longer has its process ended, by whoever watches over it.
const WATCHED: Duration = Duration::from_secs(4);
/// After what was taken is answered: the other member and the voters have this long.
const FAREWELL: Duration = Duration::from_secs(1);

/// What a disk does wrong, for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ailment {
    /// Writes never end.
    Hangs,
    /// Writes fail, and leave anything or nothing.
    Fails,
    /// Writes end short.
    Short,
    /// Reads fail.
    Unreadable,
}

/// The last swap that a process has asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LastSwap {
    /// How many there were.
    pub(crate) number: u64,
    /// How many members it holds to be in sync.
    pub(crate) in_sync: usize,
    /// Somebody else is to have the role.
    pub(crate) gives_away: bool,
}

#[derive(Debug)]
pub(crate) struct Node {
    index: usize,
    base: Instant,
    lease: Duration,
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
    shards: Vec<Host>,
    /// What its shards are like, if they are a broker's.
    template: Option<ShardConfig>,
    /// Who reads what they write.
    audit: Option<Audit>,
    told: VecDeque<(ShardId, Told)>,
    /// On their way to the member: a cell for each shard, in order.
    reports: Vec<VecDeque<(Instant, ShardReport)>>,
    reported: Vec<(Instant, Option<ShardReport>)>,
    client: Option<Client>,
    /// What the voters said, until it is looked at.
    heard: VecDeque<Heard>,
    /// The last swap was won: no other of this process can be carried out any more.
    is_sure: bool,
    swap: LastSwap,
    /// A shard that stands still, though the process does not.
    wedged: Option<(usize, Instant)>,
    is_new_reign: bool,
    ails_until: Option<Instant>,
    /// Faults of the disk when the process began.
    faults_before: u64,
    /// It ends then, and why.
    ending: Option<(Instant, String)>,
    /// It was asked to stop, and waits no longer than until then.
    leaves_by: Option<Instant>,
    /// Of disks that are gone.
    hits: Hits,
}

impl Node {
    pub(crate) fn new(
        seed: u64,
        index: usize,
        canary: Option<Canary>,
        now: Instant,
        lease: Duration,
        template: Option<ShardConfig>,
    ) -> Self {
        let mut rng = Rng::stream(seed, "pair node", index as u64);
        let rate_permille = 1000 - DRIFT_PERMILLE + rng.below(2 * DRIFT_PERMILLE + 1);
        Self {
            index,
            base: now,
            lease,
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
            shards: hosts(template.as_ref(), seed),
            template,
            audit: None,
            told: VecDeque::new(),
            reports: vec![VecDeque::new(); usize::from(SHARDS)],
            reported: vec![(now, None); usize::from(SHARDS)],
            client: None,
            heard: VecDeque::new(),
            is_sure: false,
            swap: LastSwap::default(),
            wedged: None,
            is_new_reign: false,
            ails_until: None,
            faults_before: 0,
            ending: None,
            leaves_by: None,
            hits: Hits::default(),
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

    /// What its log holds, for the ledger.
    pub(crate) fn view(&self, shard: ShardId) -> Option<&View> {
        self.shards[usize::from(shard.0)].view()
    }

    /// How durable its logs are.
    pub(crate) fn marks(&self) -> Vec<Mark> {
        self.audit.as_ref().map_or(vec![Mark::default(); usize::from(SHARDS)], Audit::marks)
    }

    /// Where a log of a broker's begins.
    pub(crate) fn log_head(&self, shard: ShardId) -> Lsn {
        self.audit.as_ref().map_or(Lsn::ZERO, |audit| audit.log_head(shard))
    }

    pub(crate) fn is_up(&self) -> bool {
        self.member.is_some()
    }

    pub(crate) fn is_awake(&self, now: Instant) -> bool {
        self.is_up() && self.paused_until <= now
    }

    /// Whether a shard of it goes on.
    pub(crate) fn is_shard_awake(&self, now: Instant, shard: ShardId) -> bool {
        self.is_awake(now) && !self.is_wedged(now, usize::from(shard.0))
    }

    fn is_wedged(&self, now: Instant, index: usize) -> bool {
        self.wedged.is_some_and(|(shard, until)| shard == index && until > now)
    }

    /// Whether its gate is open, by its own clock.
    pub(crate) fn may_serve(&self, now: Instant) -> bool {
        let gate = self.member.as_ref().and_then(|member| member.gate().fence_at);
        self.is_awake(now) && gate.is_some_and(|fence| self.clock(now) < fence)
    }

    pub(crate) fn standing(&self) -> Option<Standing> {
        self.member.as_ref().map(Membership::standing)
    }

    /// Whether the other one lacks more than its logs have.
    pub(crate) fn finds_too_far_behind(&self) -> bool {
        self.shards.iter().any(Host::finds_too_far_behind)
    }

    pub(crate) fn waits_for_nothing(&self) -> bool {
        self.shards.iter().all(Host::waits_for_nothing)
    }

    pub(crate) fn committed(&self, shard: ShardId) -> Lsn {
        self.shards[usize::from(shard.0)].committed()
    }

    pub(crate) fn end(&self, shard: ShardId) -> Lsn {
        self.shards[usize::from(shard.0)].end()
    }

    pub(crate) fn shard(&mut self, shard: ShardId) -> &mut Host {
        &mut self.shards[usize::from(shard.0)]
    }

    /// The reign of all its shards.
    fn live_epoch(&self) -> Option<Epoch> {
        let first = self.shards[0].live_epoch()?;
        self.shards.iter().all(|shard| shard.live_epoch() == Some(first)).then_some(first)
    }

    /// The version that it knows to stand, if no swap of its own can change that.
    pub(crate) fn sure_version(&self) -> Option<replica::Version> {
        let (version, _) = self.member.as_ref()?.record()?;
        self.is_sure.then_some(version)
    }

    /// What it has asked of the voters last.
    pub(crate) fn last_swap(&self) -> LastSwap {
        self.swap
    }

    /// Its disk.
    pub(crate) fn journal(&self) -> JournalUuid {
        self.journal
    }

    /// What became of its disks.
    pub(crate) fn hits(&self) -> Hits {
        let mut hits = self.hits.clone();
        hits.merge(self.disk.hits());
        hits
    }

    /// Whether its process is to end now: a shard has failed, or a write stands.
    ///
    /// # Errors
    /// It does without a fault of its disk.
    pub(crate) fn must_end(&mut self, now: Instant) -> Result<bool, String> {
        if !self.is_awake(now) {
            return Ok(false);
        }
        if let Some((_, what)) = self.ending.take_if(|(at, _)| *at <= now) {
            if self.faults() == self.faults_before {
                return Err(format!("node {} ends without cause: {what}", self.index));
            }
            return Ok(true);
        }
        let stands = self.disk.oldest_write().is_some_and(|since| since + WATCHED <= now);
        // Who leaves begins anew when it may.
        let gives_up = self.leaves_by.is_none() && self.shards.iter().any(Host::must_give_up);
        Ok(stands || gives_up)
    }

    fn faults(&self) -> u64 {
        let faults = [Hit::Hung, Hit::WriteFailed, Hit::WriteShort, Hit::ReadFailed];
        faults.iter().map(|hit| self.disk.hits().get(*hit)).sum()
    }

    pub(crate) fn take_new_reign(&mut self) -> bool {
        let is_new = self.is_new_reign && self.live_epoch().is_some();
        self.is_new_reign &= !is_new;
        is_new
    }

    /// When something is due here.
    pub(crate) fn timeouts(&self, now: Instant) -> impl Iterator<Item = Instant> {
        let is_awake = self.is_awake(now);
        let member = self.member.as_ref().filter(|_| is_awake);
        let client = self.client.as_ref().filter(|_| is_awake);
        let clock = self.clock(now);
        let own = member.and_then(Membership::poll_timeout);
        let asks = client.and_then(|client| client.poll_timeout(clock));
        let own = own.into_iter().chain(asks).map(|at| self.moment_of(at));
        let shards = self.shards.iter().filter(move |_| is_awake).filter_map(Host::poll_timeout);
        let reports = self.reports.iter().filter_map(|queue| Some(queue.front()?.0));
        let woken = [Some(self.paused_until), self.wedged.map(|(_, until)| until)];
        let rest = self.disk.poll_timeout().into_iter().chain(woken.into_iter().flatten());
        own.chain(shards).chain(reports).chain(rest)
    }

    // ---- What the world does --------------------------------------------------------------------

    pub(crate) fn crash(&mut self, now: Instant, crash: Crash, rest: Duration) {
        self.disk.crash(crash);
        self.shards.iter_mut().for_each(Host::crash);
        self.told.clear();
        if let Some(audit) = &mut self.audit {
            audit.crashed();
        }
        self.reports.iter_mut().for_each(VecDeque::clear);
        self.heard.clear();
        (self.member, self.client, self.ending) = (None, None, None);
        (self.is_new_reign, self.is_sure, self.wedged) = (false, false, None);
        self.leaves_by = None;
        self.down_until = Some(now + rest);
        self.paused_until = now;
    }

    /// Its disk is gone with all that was on it; the next start finds another one, empty.
    pub(crate) fn lose_disk(&mut self) {
        self.superblock = None;
        self.journal = JournalUuid(std::array::from_fn(|_| self.rng.below(256) as u8));
        let seed = self.rng.bits();
        self.hits.merge(self.disk.hits());
        self.disk = Disk::new(Rng::stream(seed, "new disk", 0), Profile::sound());
        self.shards = hosts(self.template.as_ref(), seed);
        self.audit = None;
    }

    pub(crate) fn pause(&mut self, until: Instant) {
        self.paused_until = until;
    }

    /// A shard stands still, before.
    pub(crate) fn wedge(&mut self, shard: usize, until: Instant) {
        self.wedged = Some((shard, until));
    }

    /// Everything takes its disk so long from now on.
    pub(crate) fn slow_disk(&mut self, each: Duration) {
        let profile = self.disk.profile_mut();
        (profile.delay_min, profile.delay_max) = (each, each);
    }

    /// Its disk does this wrong, before.
    pub(crate) fn ail(&mut self, ailment: Ailment, one_in: u64, until: Instant) {
        self.ails_until = Some(until);
        let profile = self.disk.profile_mut();
        match ailment {
            Ailment::Hangs => profile.write_hung_one_in = one_in,
            Ailment::Fails => profile.write_failed_one_in = one_in,
            Ailment::Short => profile.write_short_one_in = one_in,
            Ailment::Unreadable => profile.read_failed_one_in = one_in,
        }
    }

    /// What its disk does wrong ends, if it is time; what hangs stays.
    pub(crate) fn recover_disk(&mut self, now: Instant, at_once: bool) {
        if self.ails_until.take_if(|until| *until <= now || at_once).is_some() {
            let profile = self.disk.profile_mut();
            (profile.write_hung_one_in, profile.write_failed_one_in) = (0, 0);
            (profile.write_short_one_in, profile.read_failed_one_in) = (0, 0);
        }
    }

    /// As an operator asks for: a stop, if the other one can take the role, and a start after it.
    pub(crate) fn switch_over(&mut self, now: Instant, drain: Duration) -> bool {
        let clock = self.clock(now);
        let member = self.member.as_mut().filter(|member| member.may_switch_over().is_ok());
        let Some(member) = member else { return false };
        member.stop(clock, drain);
        self.leaves_by = Some(now + drain + FAREWELL);
        true
    }

    /// Whether its process, which was asked to stop, is to begin anew now.
    pub(crate) fn begins_anew(&self, now: Instant) -> bool {
        let may_end = self.member.as_ref().is_some_and(Membership::may_end);
        self.is_awake(now) && self.leaves_by.is_some_and(|by| may_end || by <= now)
    }

    pub(crate) fn start_if_due(&mut self, now: Instant, at_once: bool, voters: &Voters) {
        if self.down_until.is_none_or(|until| until > now && !at_once) {
            return;
        }
        self.down_until = None;
        self.boot += 1;
        self.faults_before = self.faults();
        let mut client = Client::new(voters.seats(), self.rng.bits() >> 1);
        voters.up().for_each(|seat| client.handle_up(seat));
        self.client = Some(client);
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
            terms: LeaseTerms::new(self.lease).expect("in bounds"),
            is_sole: true,
            in_sync_min: 1,
            founding: HeldLog { log, geometry },
            seed: self.rng.bits(),
        };
        let held = self.superblock.as_ref();
        let held = held.map(|node| HeldLog { log: node.log_id, geometry: node.geometry });
        let clock = self.clock(now);
        self.member = Some(match self.canary.and_then(Canary::replica) {
            Some(canary) => Membership::broken(clock, config, held, canary),
            None => Membership::new(clock, config, held),
        });
        self.reported.iter_mut().for_each(|(_, last)| *last = None);
    }

    /// Formats the directory at once: a crash meanwhile leaves it empty.
    fn format(&mut self, now: Instant, held: HeldLog) {
        self.recover_disk(now, true);
        let mut format = Format::new(held.log, self.journal, held.geometry);
        let mut at = now;
        while let Some(op) = format.poll_disk() {
            self.disk.submit(at, Owner(0), op);
            at = self.disk.poll_timeout().expect("it ends");
            format.handle_disk(self.disk.poll_done(at).expect("it is due").1);
        }
        self.superblock = Some(format.poll_outcome().expect("over").expect("a sound disk"));
        self.audit = self.template.as_ref().map(|_| Audit::new(held.log, SHARDS));
        let profile = self.disk.profile_mut();
        profile.slow_one_in = *self.rng.pick(&[40, 40, 40, 8]);
        profile.slow_factor = 30;
    }

    // ---- Clients --------------------------------------------------------------------------------

    /// What its shards have for others.
    pub(crate) fn poll_told(&mut self) -> Option<(ShardId, Told)> {
        self.told.pop_front()
    }

    /// What its log holds; none where it has no disk.
    pub(crate) fn held(&self, shard: ShardId) -> Option<&Held> {
        Some(self.audit.as_ref()?.held(shard))
    }

    /// Something happens to a shard.
    pub(crate) fn handle_event(&mut self, now: Instant, shard: ShardId, event: Event<'_>) {
        if let Some(shard) = self.shards[usize::from(shard.0)].broker() {
            shard.handle(now, event);
        }
    }

    /// Asks a shard as an operator does, if it may answer now.
    pub(crate) fn ask_shard(
        &mut self,
        now: Instant,
        shard: ShardId,
        request: AdminRequest,
        counts: &mut Counts,
    ) -> Result<Option<AdminReply>, String> {
        if !self.may_serve(now) || !self.is_shard_awake(now, shard) {
            return Ok(None);
        }
        let Some(superblock) = &self.superblock else { return Ok(None) };
        let mut ground = Ground {
            now,
            index: self.index,
            boot: self.boot,
            superblock,
            canary: self.canary,
            disk: &mut self.disk,
            ledger: &mut Ledger::default(),
            counts,
            may_serve: true,
            audit: self.audit.as_mut(),
        };
        let host = &mut self.shards[usize::from(shard.0)];
        let Some(shard) = host.broker() else { return Ok(None) };
        let reply = shard.ask(&mut ground, request)?;
        self.told.extend(std::iter::from_fn(|| host.poll_told()));
        Ok(reply)
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
        let clock = self.clock(now);
        let is_awake = self.is_awake(now);
        let Some(client) = self.client.as_mut().filter(|_| is_awake) else { return false };
        let mut asks = false;
        while let Some((seat, bytes)) = client.poll_question(clock) {
            voters.ask(now, (self.index, self.boot), seat, &bytes);
            asks = true;
        }
        asks
    }

    /// What a process that stands still is told waits for it.
    pub(crate) fn handle_voters(&mut self, heard: &Heard) {
        let is_for_it = match heard {
            Heard::Reply { client, life, .. } => (*client, *life) == (self.index, self.boot),
            Heard::Up(_) | Heard::Down(_) => true,
        };
        if is_for_it && self.is_up() {
            self.heard.push_back(heard.clone());
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
        let mut progress = self.pump_member(now, counts)?;
        while let Some((owner, done)) = self.disk.poll_done(now) {
            progress = true;
            if let Some(audit) = self.audit.as_mut().filter(|_| done.result.is_ok()) {
                audit.done(ShardId(owner.0), done.id);
            }
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
            audit: self.audit.as_mut(),
        };
        let wedged = self.wedged.filter(|(_, until)| *until > now).map(|(shard, _)| shard);
        for (_, shard) in
            self.shards.iter_mut().enumerate().filter(|(index, _)| Some(*index) != wedged)
        {
            progress |= shard.pump(&mut ground)?;
            self.told.extend(std::iter::from_fn(|| shard.poll_told()));
        }
        self.report(now);
        self.note_failure(now);
        Ok(progress)
    }

    /// The others hear of it before the process has ended, or do not.
    fn note_failure(&mut self, now: Instant) {
        let failure = self.shards.iter().find_map(Host::failure);
        if let Some(what) = failure.filter(|_| self.ending.is_none()) {
            let at = now + Duration::from_micros(self.rng.between(10, 20_000));
            self.ending = Some((at, what));
        }
    }

    fn pump_member(&mut self, now: Instant, counts: &mut Counts) -> Result<bool, String> {
        let clock = self.clock(now);
        let mut progress = false;
        let (Some(member), Some(client)) = (&mut self.member, &mut self.client) else {
            return Ok(false);
        };
        for (shard, queue) in self.reports.iter_mut().enumerate() {
            while let Some((_, report)) = queue.pop_front_if(|(due, _)| *due <= now) {
                member.handle_shard(clock, ShardId(shard as u16), report);
                progress = true;
            }
        }
        while let Some(heard) = self.heard.pop_front() {
            progress = true;
            match heard {
                Heard::Reply { from, bytes, .. } => {
                    let read = client.handle_reply(clock, from, &bytes);
                    read.map_err(|error| format!("a reply of a voter: {error}"))?;
                }
                Heard::Up(seat) => client.handle_up(seat),
                Heard::Down(seat) => client.handle_down(clock, seat),
            }
        }
        client.handle_time(clock);
        while let Some(answer) = client.poll_answer() {
            match answer.outcome {
                Outcome::Won(_) => self.is_sure = true,
                Outcome::Unknown => counts.unknown += 1,
                Outcome::Stands(_) | Outcome::Lost(_) | Outcome::NotDone(_) => {}
            }
            member.handle_answer(clock, answer);
            progress = true;
        }
        if member.poll_timeout().is_some_and(|at| at <= clock) {
            member.handle_time(clock);
        }
        while let Some(query) = member.poll_query() {
            if let Query::Cas(_, _, record) = &query {
                self.is_sure = false;
                self.swap = LastSwap {
                    number: self.swap.number + 1,
                    in_sync: record.in_sync.len(),
                    gives_away: record.released || record.live != Some(NodeId(self.index as u8)),
                };
            }
            query.put(client, PAIR);
            progress = true;
        }
        while let Some(event) = member.poll_event() {
            match event {
                MemberEvent::Serving(_) => self.is_new_reign = true,
                MemberEvent::Elected(_) => counts.reigns += 1,
                MemberEvent::Fenced(_) => counts.fences += 1,
                MemberEvent::Deposed(_) => counts.depositions += 1,
                MemberEvent::RecordLost => panic!("voters with a majority have lost the record"),
                MemberEvent::ForceRefused(_)
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
        Ok(progress)
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
            if self.is_wedged(now, index) {
                continue;
            }
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
            audit: None,
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

/// Shards as a new directory has them.
fn hosts(template: Option<&ShardConfig>, seed: u64) -> Vec<Host> {
    let host = |shard: u16| {
        let rng = Rng::stream(seed, "pair shard", u64::from(shard));
        match template {
            None => Host::Log(Box::new(Shard::new(shard, rng))),
            Some(template) => {
                let config = ShardConfig { shard: ShardId(shard), ..template.clone() };
                Host::Broker(Box::new(Served::new(config, rng)))
            }
        }
    };
    (0..SHARDS).map(host).collect()
}
