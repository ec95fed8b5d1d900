//! One member of a pair: who it is, what its shards are to be, and what it says to whom. A host
//! carries bytes and keeps the time; every decision is made here and in what this joins.
//!
//! ```text
//!                 voters                            the other member
//!          poll_query │ ▲ handle_answer        poll_card │ ▲ handle_card, handle_link
//!                     ▼ │                                ▼ │
//!   ┌──────────────── Election ─── turns ───▶ Membership ◀── founding ─┐
//!   │                    ▲                    │      ▲                 │ an empty directory, or
//!   │ shrink, expand     │ durable, wellness  │      │                 │ no record yet
//!   └──      Barrier ────┘          poll_duty ▼      │ handle_shard    │
//!                                      shard 0, 1, ... of this member ─┘
//! ```
//! What a host does, in one thread, whenever something has happened:
//! ```text
//!   1  hand in what happened: handle_answer, handle_shard, handle_card, handle_link, a command,
//!      or handle_time, which is due at poll_timeout
//!   2  poll_query  each goes to the voters' client (`Query::put`), whose answers come back by 1
//!   3  poll_duty   the newest replaces every one before; the same for all shards (see `duty`)
//!   4  gate        publish it: every core looks at its own clock, and at this, before journal
//!                  work, answers, deliveries and credit
//!   5  poll_card   to the other member, on the connection beside the streams
//!   6  poll_event  log lines and metrics; nothing hangs on them
//! ```
//! Each shard is to be heard every [`report_every`](Membership::report_every), also if nothing has
//! changed: a shard that is silent is not well, and its member does not renew.
//!
//! Who dials: both members keep one connection for cards, made by the lower seat; each shard of a
//! member whose duty is [`Duty::Follow`] dials the other's stream, and is answered there by
//! [`Live`](crate::live::Live), or by a `Refuse` where that shard is not live.
//!
//! A life, from an empty directory:
//! ```text
//!   joining  no card or no record yet: waits      status.waits says for what
//!            Format, then Stand: recovered
//!            no record, and this one holds more: makes it, and is elected with it
//!            a record with another live: Follow; cut, exported, caught up
//!   backup   the live has taken it in
//!   fenced   elected: Reign, closed, until every shard's reign is durable (R13)
//!   live     Reign, open
//!   fenced   the lease has run out, or it leaves: closed; open again if nobody else came (R2)
//!   joining  deposed: Stand or Follow, which a live does by recovering its log anew
//! ```
//!
//! Invariants: a shard is told to serve only while the election says so, and told to wait for every
//! member that is in sync or may be (R6) and for one that is to come (R8), before the voters hear
//! of it. The role is given away only after every shard has said that it no longer serves, or the
//! lease is over (R12). Who holds no log, or one that the record does not name, or whose shards are
//! not all recovered, never asks for the role (R10). Cards decide nothing but where to look, what
//! an empty directory becomes and who makes the first record.
//!
//! When something fails: a shard whose disk has failed, or writes for longer than
//! `WRITE_AGE_MAX`, gives the role away at once where somebody can take it (R17); a shard that is
//! silent ends the renewals. A card that can't be this pair's is ignored, and said in the status.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use journal::{Epoch, JournalUuid, Lsn};

use crate::canary::{Canaries, Canary};
use crate::card::{Card, HeldLog, LogEnd, Standing};
use crate::election::{Election, ElectionConfig, Query, Refused, Role, Session, Turn};
use crate::limits::CARD_EVERY;
use crate::record::{Mark, Member, MemberInfo, NodeId, PairRecord};
use crate::register::{Answer, Outcome, RequestId, Version};

mod barrier;
mod config;
mod duty;
mod exit;
mod founding;
mod status;

pub use barrier::Round;
pub use config::{Fault, Gate, MemberConfig, MemberEvent};
pub use duty::{Duty, Hosted, PeerReport, Reign, Requirement, Service, ShardReport, Stage};
pub use status::{ShardStatus, Status, Waits};

use barrier::{Barrier, Step};
use exit::{Exit, Goal};
use founding::{Founder, Side};

#[derive(Clone, Copy, Debug)]
struct Heard {
    report: ShardReport,
    at: Instant,
}

/// One member's part in its pair.
#[derive(Debug)]
pub struct Membership {
    config: MemberConfig,
    held: Option<HeldLog>,
    shards: Vec<Option<Heard>>,
    election: Election,
    barrier: Barrier,
    session: u64,
    /// The election says that it may serve.
    may_serve: bool,
    exit: Exit,
    /// It was told to stop: it takes no role any more.
    is_leaving: bool,
    /// When an operator said that this one makes the pair's first record.
    bootstrap_at: Option<u64>,
    /// An operator said that it takes the role by force, and it has not come to that yet.
    is_forcing: bool,
    found_at: Option<Instant>,
    is_well: bool,
    in_sync: usize,
    link_up: bool,
    /// What the other one said on this connection, whoever it is.
    other: Option<Card>,
    fault: Option<Fault>,
    settings_differ: bool,
    behind_since: Option<Instant>,
    asked: Option<(RequestId, Instant)>,
    duty: Option<Duty>,
    duty_out: Option<Duty>,
    card: Option<Card>,
    card_due: Instant,
    queries: VecDeque<Query>,
    events: VecDeque<MemberEvent>,
    canaries: Canaries,
}

impl Membership {
    /// A member that has just started, whose directory holds this, or nothing.
    ///
    /// # Panics
    /// If its seat is neither 0 nor 1.
    #[must_use]
    pub fn new(now: Instant, config: MemberConfig, held: Option<HeldLog>) -> Self {
        let election = Election::new(election_config(&config));
        Self::with(now, config, held, election)
    }

    /// One that breaks a rule.
    ///
    /// # Panics
    /// If its seat is neither 0 nor 1.
    #[cfg(any(test, feature = "canary"))]
    #[must_use]
    pub fn broken(
        now: Instant,
        config: MemberConfig,
        held: Option<HeldLog>,
        canary: Canary,
    ) -> Self {
        let election = Election::broken(election_config(&config), canary);
        let mut member = Self::with(now, config, held, election);
        member.canaries.broken = Some(canary);
        member
    }

    fn with(now: Instant, config: MemberConfig, held: Option<HeldLog>, election: Election) -> Self {
        assert!(config.info.node.0 < 2, "a pair has the seats 0 and 1");
        let shards = held.map_or(0, |held| usize::from(held.geometry.shards));
        let mut member = Self {
            config,
            held,
            shards: vec![None; shards],
            election,
            barrier: Barrier::default(),
            session: 0,
            may_serve: false,
            exit: Exit::Stays,
            is_leaving: false,
            bootstrap_at: None,
            is_forcing: false,
            found_at: None,
            is_well: true,
            in_sync: 0,
            link_up: false,
            other: None,
            fault: None,
            settings_differ: false,
            behind_since: None,
            asked: None,
            duty: None,
            duty_out: None,
            card: None,
            card_due: now,
            queries: VecDeque::new(),
            events: VecDeque::new(),
            canaries: Canaries::default(),
        };
        member.settle(now);
        member
    }

    // ---- getters -------------------------------------------------------------------------------

    /// What every core looks at before it does anything for a client.
    #[must_use]
    pub fn gate(&self) -> Gate {
        let serves = match self.service() {
            Service::Open | Service::Draining => true,
            Service::Closed => false,
        };
        Gate { fence_at: self.election.fence_at().filter(|_| serves) }
    }

    /// What it does, in one word.
    #[must_use]
    pub fn standing(&self) -> Standing {
        match self.election.role() {
            Role::Live(_) if self.gate().fence_at.is_some() => Standing::Live,
            Role::Elected(_) | Role::Live(_) | Role::Fenced(_) | Role::Leaving(_) => {
                Standing::Fenced
            }
            Role::Follower | Role::Candidate if self.is_backup() => Standing::Backup,
            Role::Follower | Role::Candidate => Standing::Joining,
        }
    }

    /// The pair's record as it was last seen, and its version.
    #[must_use]
    pub fn record(&self) -> Option<(Version, &PairRecord)> {
        self.election.record()
    }

    /// Whether what a log of this epoch has, and the live's lacks, may have been acknowledged
    /// although it waited for a backup: an operator has overruled it, or nobody can say.
    #[must_use]
    pub fn overrules(&self, epoch: Epoch) -> bool {
        self.record().is_none_or(|(_, record)| record.overrules(epoch))
    }

    /// Where clients find the other member, while that says itself that it serves, and will: one
    /// that can't be heard may be dead, whatever the record says.
    #[must_use]
    pub fn live_address(&self) -> Option<&str> {
        let serves = |card: &&Card| card.standing == Standing::Live && !card.is_leaving;
        let card = self.peer().filter(serves).filter(|_| self.epoch().is_none())?;
        Some(&card.info.advertise)
    }

    /// Where clients find both members, this one first, as far as they have said it; none until
    /// both are known.
    #[must_use]
    pub fn client_addresses(&self) -> Option<[&str; 2]> {
        let (me, other) = (&self.config.info, self.other_info()?);
        Some([&me.advertise, &other.advertise])
    }

    /// Whether the role would go to the other member if this process stopped now. A switchover is
    /// that, and a start after it.
    ///
    /// # Errors
    /// This one does not serve, or is about to give the role away; or the other one is not in sync,
    /// or about to stop.
    pub fn may_switch_over(&self) -> Result<(), Refused> {
        if self.standing() != Standing::Live {
            return Err(Refused::NotLive);
        }
        if self.exit != Exit::Stays {
            return Err(Refused::Busy);
        }
        self.heir().map(drop).ok_or(Refused::NotInSync)
    }

    /// After [`stop`](Self::stop): nobody waits for this member any more.
    #[must_use]
    pub fn may_end(&self) -> bool {
        let reigns = self.epoch().is_some();
        let is_waited_for = self.record().is_some_and(|(_, record)| {
            let other_lives = record.live.is_some_and(|live| live != self.config.info.node);
            other_lives && !record.released && record.holds(self.config.me())
        });
        !reigns && (!is_waited_for || !self.link_up)
    }

    /// How often each shard is to be heard, at least.
    #[must_use]
    pub fn report_every(&self) -> Duration {
        self.config.terms.renew_every() / 2
    }

    /// When it wants to be told the time next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let exit = match self.exit {
            Exit::Draining { until, .. } => Some(until),
            Exit::Closing { .. } => self.election.fence_at(),
            Exit::Stays | Exit::Given => None,
        };
        let card = self.link_up.then_some(self.card_due);
        [self.election.poll_timeout(), exit, card].into_iter().flatten().min()
    }

    // ---- inputs --------------------------------------------------------------------------------

    /// The time.
    pub fn handle_time(&mut self, now: Instant) {
        self.settle(now);
    }

    /// What the voters say.
    pub fn handle_answer(&mut self, now: Instant, answer: Answer) {
        if let Some((request, sent)) = self.asked
            && request == answer.request
        {
            self.asked = None;
            if let Outcome::Won(_) = answer.outcome {
                self.events.push_back(MemberEvent::Renewed(now - sent));
            }
        }
        self.election.handle_answer(now, answer);
        self.settle(now);
    }

    /// A shard, as it is. One that is heard before [`handle_formatted`](Self::handle_formatted) is
    /// not known yet, and is heard again.
    pub fn handle_shard(&mut self, now: Instant, shard: journal::ShardId, report: ShardReport) {
        let Some(heard) = self.shards.get_mut(usize::from(shard.0)) else { return };
        *heard = Some(Heard { report, at: now });
        if self.lag_bytes().is_some_and(|bytes| bytes > 0) {
            self.behind_since.get_or_insert(now);
        } else {
            self.behind_since = None;
        }
        self.settle(now);
    }

    /// [`Duty::Format`] was carried out: the directory is of this log now.
    pub fn handle_formatted(&mut self, now: Instant, held: HeldLog) {
        self.held = Some(held);
        self.shards = vec![None; usize::from(held.geometry.shards)];
        self.settle(now);
    }

    /// The connection for cards was made, or is gone.
    pub fn handle_link(&mut self, now: Instant, is_up: bool) {
        if self.link_up && !is_up {
            self.election.handle_link_lost(now);
        }
        self.link_up = is_up;
        self.other = None;
        self.card = None;
        self.settle(now);
    }

    /// What the other member says of itself.
    pub fn handle_card(&mut self, now: Instant, card: Card) {
        if !self.link_up {
            return;
        }
        self.election.handle_hint(now, card.version);
        self.other = Some(card);
        self.settle(now);
    }

    // ---- commands ------------------------------------------------------------------------------

    /// The process is to end: a live answers what was taken, for at most `drain`, and gives its
    /// role away; a backup asks not to be waited for. It may end when [`may_end`](Self::may_end)
    /// says so; the host limits how long it waits.
    pub fn stop(&mut self, now: Instant, drain: Duration) {
        self.is_leaving = true;
        if self.standing() == Standing::Live && self.exit == Exit::Stays {
            let goal = if self.heir().is_some() { Goal::HandOver } else { Goal::Release };
            self.exit = Exit::Draining { until: now + drain, goal };
        }
        self.settle(now);
    }

    /// An operator's word, given at `at_ms` since 1970: where the voters hold no record, this
    /// member makes it, whatever the other one holds, once no lease of a lost record can stand
    /// (R3).
    ///
    /// # Errors
    /// There is a record, or no answer yet, or the other one serves or knows of a record; or this
    /// one holds nothing, or no whole log.
    pub fn bootstrap(&mut self, now: Instant, at_ms: u64) -> Result<(), Refused> {
        match self.election.version() {
            None => return Err(Refused::NoAnswer),
            Some(Version::NONE) => {}
            Some(_) => return Err(Refused::HasRecord),
        }
        if self.other_serves() {
            return Err(Refused::OtherServes);
        }
        if self.other_has_record() {
            return Err(Refused::OtherHasRecord);
        }
        if self.held.is_none() {
            return Err(Refused::Empty);
        }
        if self.ends().is_empty() {
            return Err(Refused::NotWhole);
        }
        self.bootstrap_at = Some(at_ms);
        self.settle(now);
        Ok(())
    }

    /// An operator's word, given at `at_ms` since 1970: takes the role without being in sync, once
    /// the lease that stands is over (R3). What others acknowledged and this one lacks is lost, but
    /// for what is exported when they come back. What comes of it is an event:
    /// [`MemberEvent::Elected`] or [`MemberEvent::ForceRefused`].
    ///
    /// # Errors
    /// It has the role, holds no whole log, or there is no record, or no answer yet; or the other
    /// one serves.
    pub fn promote_by_force(&mut self, now: Instant, at_ms: u64) -> Result<(), Refused> {
        let newest = self.may_force()?;
        self.election.promote_by_force(newest, at_ms)?;
        self.is_forcing = true;
        self.settle(now);
        Ok(())
    }

    // ---- outputs -------------------------------------------------------------------------------

    /// The next question for the voters.
    pub fn poll_query(&mut self) -> Option<Query> {
        self.queries.pop_front()
    }

    /// What every shard is to be from now on, if that has changed.
    pub fn poll_duty(&mut self) -> Option<Duty> {
        self.duty_out.take()
    }

    /// What is to be said to the other member now, while the link is up.
    pub fn poll_card(&mut self, now: Instant) -> Option<Card> {
        if !self.link_up {
            return None;
        }
        let card = self.own_card();
        if self.card.as_ref() == Some(&card) && now < self.card_due {
            return None;
        }
        self.card_due = now + CARD_EVERY;
        self.card = Some(card.clone());
        Some(card)
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<MemberEvent> {
        self.events.pop_front()
    }

    // ---- one moment ----------------------------------------------------------------------------

    /// Everything that follows from what is known now.
    fn settle(&mut self, now: Instant) {
        self.note_faults();
        if self.election.version().is_some_and(|version| version > Version::NONE) {
            // An operator's word is for the record that was missing when it was given.
            self.bootstrap_at = None;
        }
        self.watch_force();
        self.inform(now);
        self.keep_set(now);
        self.leave(now);
        self.found(now);
        self.election.handle_time(now);
        self.obey(now);
        if let Role::Elected(epoch) = self.election.role()
            && self.reports().is_some_and(|all| all.iter().all(|r| r.stage == Stage::Live(epoch)))
        {
            self.election.handle_promised(now, epoch);
            self.obey(now);
        }
        if let Role::Elected(epoch) = self.election.role()
            && self.is_torn()
            && self.election.release(now).is_ok()
        {
            // Won while a shard was giving up its log: nobody may serve from what is left.
            self.events.push_back(MemberEvent::GivesUp(epoch));
            self.obey(now);
            self.election.handle_time(now);
        }
        while let Some(query) = self.election.poll_query() {
            if let Query::Cas(request, ..) = &query {
                self.asked = Some((*request, now));
            }
            self.queries.push_back(query);
        }
        self.note_in_sync();
        let duty = self.next_duty();
        if duty != self.duty {
            self.duty = duty;
            self.duty_out = duty;
        }
    }

    /// Whether the role may be taken by an operator's word; the newest epoch of the own log.
    fn may_force(&self) -> Result<Epoch, Refused> {
        if self.other_serves() {
            return Err(Refused::OtherServes);
        }
        match self.election.version() {
            None => return Err(Refused::NoAnswer),
            Some(Version::NONE) => return Err(Refused::NoRecord),
            Some(_) => {}
        }
        let newest = self.ends().iter().map(|end| end.epoch).max();
        newest.filter(|_| self.own_fault().is_none()).ok_or(Refused::NotWhole)
    }

    /// What an operator asked for waits for the lease, and may become wrong meanwhile.
    fn watch_force(&mut self) {
        if !self.is_forcing {
            return;
        }
        let is_over = !self.election.is_forcing();
        let refused = match self.election.role() {
            // A newer version ended it, or one that is none.
            Role::Follower if is_over => {
                Some(self.may_force().err().unwrap_or(Refused::OtherServes))
            }
            Role::Follower => self.may_force().err(),
            Role::Candidate => return,
            Role::Elected(_) | Role::Live(_) | Role::Fenced(_) | Role::Leaving(_) => None,
        };
        self.is_forcing = !is_over && refused.is_none();
        if let Some(refused) = refused {
            self.election.forget_force();
            self.events.push_back(MemberEvent::ForceRefused(refused));
        }
    }

    /// What the election has to know of the shards.
    fn inform(&mut self, now: Instant) {
        let reigns = self.epoch().is_some();
        let is_sound = self.own_fault().is_none() && !self.is_ahead_of_voters();
        let may_stand = is_sound && (reigns || !self.is_leaving);
        let durable = self.ends().iter().map(|end| end.end).collect::<Vec<Lsn>>();
        self.election.handle_durable((may_stand && !durable.is_empty()).then_some(durable));
        self.inform_of_watermark();
        let silent_from = now.checked_sub(self.config.terms.renew_every() * 2);
        let is_heard = |heard: &Option<Heard>| {
            heard.as_ref().is_some_and(|heard| silent_from.is_none_or(|from| heard.at >= from))
        };
        let all_heard = self.shards.iter().all(is_heard) || self.canaries.has(Canary::RenewUnwell);
        let is_well = all_heard && !self.is_stuck(now);
        if self.is_well && !is_well && reigns {
            self.events.push_back(MemberEvent::Unwell);
        }
        self.is_well = is_well;
        self.election.handle_wellness(is_well);
        self.election.handle_members(self.infos());
    }

    /// What is durable on every member in sync never goes back, as the record has it.
    fn inform_of_watermark(&mut self) {
        let Some(reports) = self.reports() else { return };
        let told = reports.iter().map(|report| report.watermark).collect::<Option<Vec<Mark>>>();
        let Some(mut marks) = told else { return };
        let stands = self.record().map_or(&[][..], |(_, record)| &record.watermark);
        for (mark, before) in marks.iter_mut().zip(stands) {
            if before.lsn > mark.lsn {
                *mark = *before;
            }
        }
        self.election.handle_watermark(marks);
    }

    /// R6, R8, R9: who comes into the in-sync set, and who leaves it.
    fn keep_set(&mut self, now: Instant) {
        let Some(epoch) = self.epoch() else { return };
        let reports = self
            .reports()
            .filter(|all| all.iter().all(|report| report.stage == Stage::Live(epoch)));
        let is_stalled = reports.as_ref().is_some_and(|all| all.iter().any(|r| r.is_stalled));
        let goes = self.peer().is_some_and(|card| card.is_leaving);
        if self.barrier.is_asked() {
            let member = self.barrier.required();
            let beside = self.election.beside().map(|beside| beside.journal);
            let stands = self.record().is_some_and(|(_, record)| {
                record.in_sync.iter().any(|one| Some(one.journal) == member)
            });
            if stands || beside != member {
                self.barrier.handle_resolved();
            }
        }
        let may_begin = self.election.beside().is_none() && !is_stalled && !goes;
        let step = self.barrier.advance(reports.as_deref(), may_begin);
        let step = if is_stalled { step.or_else(|| self.barrier.give_up()) } else { step };
        if let Some(step) = step {
            self.step(now, step);
        }
        if (is_stalled || goes) && self.election.beside().is_some() {
            // Refused only where this one gives the role away: then somebody else decides.
            let _ = self.election.shrink(now);
        }
    }

    fn step(&mut self, now: Instant, step: Step) {
        let other = NodeId(1 - self.config.info.node.0);
        match step {
            Step::Joined(journal) => {
                self.session += 1;
                let member = Member { node: other, journal };
                self.election.handle_joined(now, member, Session(self.session));
                if self.canaries.has(Canary::RequireAfterExpand) {
                    let _ = self.election.expand(now, member, Session(self.session));
                }
            }
            Step::Expand(journal) => {
                let member = Member { node: other, journal };
                if self.election.expand(now, member, Session(self.session)).is_err() {
                    self.barrier.reset();
                }
            }
            Step::Left => self.election.handle_left(now),
        }
    }

    /// The pair's first record, where there is none. The other member may serve by a record which
    /// its voters have lost just now, or by that of other voters: so not while its card says so,
    /// and not before its lease is over (R3), unless its log has never been served from.
    fn found(&mut self, now: Instant) {
        let is_due = self.found_at.is_none_or(|at| at <= now);
        if !self.version_is_none() || !is_due || self.other_has_record() {
            return;
        }
        let has_lapsed = self.election.lapsed_from().is_some_and(|from| from <= now);
        let is_new = self.peer().is_some_and(|card| Side::of(card).is_new());
        if !has_lapsed && !is_new {
            return;
        }
        let (Some(held), ends) = (self.held, self.ends()) else { return };
        let founder = match self.peer() {
            _ if ends.is_empty() => return,
            _ if self.bootstrap_at.is_some() => Founder::Me(founding::epoch_alone(&ends)),
            Some(other) => founding::founder(&self.side(&ends), &Side::of(other)),
            None => return,
        };
        let Founder::Me(epoch) = founder else { return };
        let shards = held.geometry.shards;
        let mut first = PairRecord::first(held.log, shards, self.config.me(), epoch);
        first.members = self.infos();
        if let Some(at_ms) = self.bootstrap_at {
            first.note_forced(at_ms);
        }
        self.found_at = Some(now + self.config.terms.read_every());
        self.election.bootstrap(now, first);
    }

    fn obey(&mut self, now: Instant) {
        while let Some(turn) = self.election.poll_turn() {
            self.events.push_back(match turn {
                Turn::Promise(epoch) => {
                    self.barrier.reset();
                    self.exit = Exit::Stays;
                    MemberEvent::Elected(epoch)
                }
                Turn::Serve(epoch) => {
                    self.may_serve = true;
                    MemberEvent::Serving(epoch)
                }
                Turn::Fence(epoch) => {
                    self.may_serve = self.canaries.has(Canary::LeaveUnfenced);
                    MemberEvent::Fenced(epoch)
                }
                Turn::Depose(epoch) => {
                    self.may_serve = false;
                    self.exit = Exit::Stays;
                    self.barrier.reset();
                    self.election.handle_left(now);
                    MemberEvent::Deposed(epoch)
                }
                Turn::Lost => MemberEvent::RecordLost,
            });
        }
    }

    // ---- what is to be done --------------------------------------------------------------------

    fn next_duty(&self) -> Option<Duty> {
        if self.held.is_none() {
            return self.format().map(Duty::Format);
        }
        let Some(epoch) = self.epoch() else {
            let live = self.record().and_then(|(_, record)| record.live);
            let other = live.is_some_and(|live| live != self.config.info.node);
            // While it asks for the role nothing may be cut or given up for another log.
            let asks = self.election.role() == Role::Candidate;
            return Some(if other && !asks && self.own_fault().is_none() {
                Duty::Follow
            } else {
                Duty::Stand
            });
        };
        let required =
            self.required().map(|member| Requirement { round: self.barrier.round(), member });
        let in_sync = self.record().map_or(0, |(_, record)| record.in_sync.len());
        let is_short = in_sync < self.config.in_sync_min;
        Some(Duty::Reign(Reign { epoch, required, service: self.service(), is_short }))
    }

    /// What an empty directory is to become, once that is known.
    fn format(&self) -> Option<HeldLog> {
        let version = self.election.version()?;
        let other = self.peer();
        let theirs = other.and_then(|card| card.held);
        if version > Version::NONE {
            // A record that does not decode names no log: nothing is done on the strength of it.
            let (_, record) = self.record()?;
            return theirs.filter(|theirs| theirs.log == record.log);
        }
        let lower = other.is_some_and(|card| self.config.info.node < card.node());
        theirs.or(lower.then_some(self.config.founding))
    }

    /// R6, R8: whom the shards wait for.
    fn required(&self) -> Option<JournalUuid> {
        if self.canaries.has(Canary::RequireAfterExpand) {
            let (_, record) = self.record()?;
            let other = record.in_sync.iter().find(|one| one.node != self.config.info.node);
            return other.map(|other| other.journal);
        }
        self.barrier.required().or(self.election.beside().map(|beside| beside.journal))
    }

    fn service(&self) -> Service {
        if !self.may_serve {
            return Service::Closed;
        }
        match self.exit {
            Exit::Stays => Service::Open,
            Exit::Draining { .. } => Service::Draining,
            Exit::Closing { .. } | Exit::Given if self.canaries.has(Canary::LeaveUnfenced) => {
                Service::Open
            }
            Exit::Closing { .. } | Exit::Given => Service::Closed,
        }
    }

    fn own_card(&self) -> Card {
        Card {
            pair: self.config.pair.clone(),
            cluster: self.config.cluster,
            journal: self.config.journal,
            boot: self.config.boot,
            settings: self.config.settings,
            info: self.config.info.clone(),
            standing: self.standing(),
            version: self.election.version().unwrap_or_default(),
            is_leaving: self.is_leaving,
            held: self.held,
            // Until then nobody knows whether there is a record.
            ends: self.election.version().map_or_else(Vec::new, |_| self.ends()),
        }
    }

    // ---- what is so ----------------------------------------------------------------------------

    /// Of the reign that it has, or begins, or gives away.
    fn epoch(&self) -> Option<Epoch> {
        match self.election.role() {
            Role::Elected(epoch)
            | Role::Live(epoch)
            | Role::Fenced(epoch)
            | Role::Leaving(epoch) => Some(epoch),
            Role::Follower | Role::Candidate => None,
        }
    }

    /// Every shard, once all were heard.
    fn reports(&self) -> Option<Vec<ShardReport>> {
        let all = self.shards.iter().map(|heard| Some(heard.as_ref()?.report));
        all.collect::<Option<Vec<_>>>().filter(|all| !all.is_empty())
    }

    /// How far each shard's log goes; nothing while one of them is not whole.
    fn ends(&self) -> Vec<LogEnd> {
        let whole = |heard: &Option<Heard>| match heard.as_ref()?.report {
            ShardReport { stage: Stage::Recovering | Stage::Failed, .. }
            | ShardReport { is_whole: false, .. } => None,
            ShardReport { log, .. } => Some(log),
        };
        self.shards.iter().map(whole).collect::<Option<Vec<_>>>().unwrap_or_default()
    }

    /// A shard's log was recovered, and is the middle of another's.
    fn is_torn(&self) -> bool {
        let torn = |heard: &Heard| match heard.report.stage {
            Stage::Standing | Stage::Following(_) => !heard.report.is_whole,
            Stage::Recovering | Stage::Live(_) | Stage::Failed => false,
        };
        self.shards.iter().flatten().any(torn)
    }

    fn version_is_none(&self) -> bool {
        self.election.version() == Some(Version::NONE)
    }

    /// By its own word.
    fn other_serves(&self) -> bool {
        self.peer().is_some_and(|card| card.standing == Standing::Live)
    }

    /// By its own word: it serves, or may again, or its voters hold a record where this one's hold
    /// none.
    fn other_has_record(&self) -> bool {
        let says = |card: &Card| {
            let has_role = matches!(card.standing, Standing::Live | Standing::Fenced);
            has_role || card.version > Version::NONE
        };
        self.peer().is_some_and(says)
    }

    fn side<'a>(&self, ends: &'a [LogEnd]) -> Side<'a> {
        Side { node: self.config.info.node, held: self.held, ends }
    }

    fn is_backup(&self) -> bool {
        self.record().is_some_and(|(_, record)| {
            record.holds(self.config.me())
                && record.live.is_some_and(|live| live != self.config.info.node)
        }) && !self.ends().is_empty()
    }

    /// How both members are reached, as far as that is known.
    fn infos(&self) -> Vec<MemberInfo> {
        std::iter::once(&self.config.info).chain(self.other_info()).cloned().collect()
    }

    fn other_info(&self) -> Option<&MemberInfo> {
        let told = self.peer().map(|card| &card.info);
        let stands = self.record().map_or(&[][..], |(_, record)| &record.members);
        told.into_iter().chain(stands).find(|info| info.node != self.config.info.node)
    }

    fn note_in_sync(&mut self) {
        let in_sync = self.record().map_or(0, |(_, record)| record.in_sync.len());
        if in_sync != self.in_sync {
            self.in_sync = in_sync;
            self.events.push_back(MemberEvent::InSync(in_sync));
        }
    }

    fn note_faults(&mut self) {
        let fault = self.own_fault().or(self.fault_of_other());
        if fault != self.fault {
            self.fault = fault;
            self.events.push_back(MemberEvent::Fault(fault));
        }
        let Some(peer) = self.peer() else { return };
        let differ = peer.settings != self.config.settings;
        if differ != self.settings_differ {
            self.settings_differ = differ;
            self.events.push_back(MemberEvent::SettingsDiffer(differ));
        }
    }

    /// What the other member says of itself, if it can be this pair's.
    fn peer(&self) -> Option<&Card> {
        self.other.as_ref().filter(|_| self.fault_of_other().is_none())
    }

    fn fault_of_other(&self) -> Option<Fault> {
        let other = self.other.as_ref()?;
        let faults = [
            (other.pair != self.config.pair, Fault::OtherPair),
            (other.cluster != self.config.cluster, Fault::OtherCluster),
            (other.node() == self.config.info.node, Fault::SameSeat),
            (other.journal == self.config.journal, Fault::SameDisk),
        ];
        let fault = faults.into_iter().find(|(is_so, _)| *is_so).map(|(_, fault)| fault);
        let differs = self.held.zip(other.held).is_some_and(|(mine, theirs)| mine != theirs);
        fault.or(differs.then_some(Fault::OtherLog))
    }

    /// What the voters' record has against this member's own directory.
    fn own_fault(&self) -> Option<Fault> {
        let (held, (_, record)) = (self.held?, self.record()?);
        let differs = held.log != record.log || held.geometry.shards != record.shards;
        differs.then_some(Fault::NotThePairsLog)
    }

    /// The log has seen an epoch that the record has not: the record is old, or the voters have
    /// lost something.
    fn is_ahead_of_voters(&self) -> bool {
        let Some((_, record)) = self.record() else { return false };
        self.epoch().is_none() && self.ends().iter().any(|end| end.epoch > record.epoch)
    }
}

fn election_config(config: &MemberConfig) -> ElectionConfig {
    ElectionConfig {
        me: config.me(),
        terms: config.terms,
        is_sole: config.is_sole,
        in_sync_min: config.in_sync_min,
        seed: config.seed,
    }
}

#[cfg(test)]
mod tests;
