//! Who is live: one member's view of the pair's record, and what it may do on the strength of it.
//!
//! ```text
//!             seen: another reign, or released            won
//!   follower ◀──────────────────────────────┐  ┌──────────────────────┐
//!      │ may challenge (R3, R10)            │  │                      │
//!      ▼                                    │  ▼     fence time        │
//!   candidate ── won ──▶ elected ── epoch ──▶ live ─────────────▶ fenced
//!      │                      is durable    │ ▲    (R2)               │
//!      └── anything else: follower          │ └── won at the version ─┘
//!                                           │     that stood
//!                                           └─▶ leaving: fenced (R12), then the role is given away
//! ```
//!
//! Inputs are answers of the voters, the time, and what the replication says of both logs; outputs
//! are questions to the voters and [`Turn`]s for the host. Nothing here looks at a log or a link.
//!
//! Rules, each with its place below: R1 the role changes only by a swap that was won or is read;
//! R2 a lease begins when its swap was sent; R3 a challenger waits from the end of its read, for
//! the lease that the record says; R4 an answer belongs to the open question; R5 an unknown swap is
//! resolved by a greater version alone; R6 the in-sync set is taken as large as it may be; R7 what
//! is acknowledged is durable on all of it, before the fence; R8 a member is waited for before it
//! is named; R9 what is known of a member belongs to one session; R10 only a member in sync, with
//! the same disk and everything below the watermark, stands; R12 fence first; R13 an epoch is
//! durable before it is served. R11, R14, R15 and R16 are the replication's and the shard's, R17 is
//! the host's [`Election::release`].
//!
//! Voters that have lost the record answer with less than was known: then nothing is known, and who
//! had a role has none.
//!
//! Invariants: I4, checked before each swap. `may_serve` is never true at or after `fence_at`.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use journal::{Epoch, Lsn, mix64};

use crate::canary::{Canaries, Canary};
use crate::lease::LeaseTerms;
use crate::limits::TICK;
use crate::record::{Mark, Member, MemberInfo, NodeId, PairRecord};
use crate::register::{Answer, Held, Outcome, PairId, Register, RequestId, Swap, Version};

/// What a member does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Follows, or waits for somebody to follow.
    Follower,
    /// Has asked for the role.
    Candidate,
    /// Has the role; its epoch is not durable here yet.
    Elected(Epoch),
    /// Serves, until the fence.
    Live(Epoch),
    /// Served, and its lease has run out. If nobody else takes the role it goes on in this epoch.
    Fenced(Epoch),
    /// Has stopped for good in this epoch and gives the role away.
    Leaving(Epoch),
}

/// What the host must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// R13: write this epoch down, then call [`Election::handle_promised`].
    Promise(Epoch),
    /// Open, or open again: clients are served.
    Serve(Epoch),
    /// Stop at once: no journal work, no answer, no delivery, no credit.
    Fence(Epoch),
    /// The reign is over; what was not committed may have to go.
    Depose(Epoch),
    /// The voters have lost the record: what stands is older than what was known, or nothing.
    Lost,
}

/// A question for the voters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// What stands.
    Read(RequestId),
    /// This, if that version stands.
    Cas(RequestId, Version, Box<PairRecord>),
}

impl Query {
    /// Its number.
    #[must_use]
    pub const fn request(&self) -> RequestId {
        match self {
            Self::Read(request) | Self::Cas(request, ..) => *request,
        }
    }

    /// Asks it of the register of this pair.
    pub fn put(self, register: &mut impl Register, pair: PairId) {
        match self {
            Self::Read(request) => register.read(request, pair),
            Self::Cas(request, expect, record) => {
                register.cas(request, Swap { pair, expect, value: record.encode() });
            }
        }
    }
}

/// A connection of the other member to this one: what is known of its log belongs to it (R9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session(pub u64);

/// Why something can't be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Only who serves can.
    NotLive,
    /// The session is over, or it is another member's.
    OtherSession,
    /// The other member is not in sync.
    NotInSync,
    /// It has the role already, or asks for it.
    Busy,
    /// The voters have not answered.
    NoAnswer,
    /// The voters hold no record of this pair.
    NoRecord,
    /// Not every shard's log is recovered, or one is not whole.
    NotWhole,
    /// The voters hold a record of this pair.
    HasRecord,
    /// The other member serves.
    OtherServes,
    /// The voters hold no record, and the other member's do.
    OtherHasRecord,
    /// The voters hold no record, and this directory holds no log.
    Empty,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotLive => "this member is not live: ask the other one",
            Self::OtherSession => "the other member's connection is another one now",
            Self::NotInSync => "the other member is not in sync: it could not take over",
            Self::Busy => "this member has the role, or asks for it: see `laelaps ha status`",
            Self::NoAnswer => "the voters have not answered: a majority of them must be up",
            Self::NoRecord => {
                "the voters hold no record of this pair, so there is no role to take: `laelaps ha \
                 bootstrap` on the member to begin with makes one"
            }
            Self::NotWhole => "this member has no whole log to serve from: see `laelaps ha status`",
            Self::HasRecord => "the voters hold a record of this pair: nothing to begin",
            Self::OtherServes => {
                "the other member serves: `laelaps ha switchover` there loses nothing"
            }
            Self::OtherHasRecord => {
                "the other member has the role, or its voters hold a record of this pair: check \
                 `ha.voters` on both"
            }
            Self::Empty => {
                "this directory holds no log to begin with: begin with the member that has one; \
                 of two empty ones start both, and they become a pair by themselves"
            }
        })
    }
}

/// What a member brings to its elections.
#[derive(Clone, Copy, Debug)]
pub struct ElectionConfig {
    /// Itself, with its disk.
    pub me: Member,
    /// The pair's lease.
    pub terms: LeaseTerms,
    /// Whether no earlier life of this member can still run: its directory is on this machine and
    /// locked. If not, it waits for its own earlier lease.
    pub is_sole: bool,
    /// Members in sync without which nothing is acknowledged: 1 or 2.
    pub in_sync_min: usize,
    /// Chance, for the pauses between tries.
    pub seed: u64,
}

/// A version, and when the first read that showed it was done.
#[derive(Clone, Debug)]
struct Known {
    version: Version,
    record: Option<PairRecord>,
    since: Instant,
}

/// A swap whose answer is awaited.
#[derive(Debug)]
struct OpenSwap {
    request: RequestId,
    sent: Instant,
    record: Box<PairRecord>,
}

/// What the swaps of the live are to say beside "still here", until it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Shrink,
    Expand(Member, Session),
}

/// An operator's word: the role is to be taken whoever is in sync, once nobody else can have it.
#[derive(Clone, Copy, Debug)]
struct Force {
    /// The newest epoch that the own log knows.
    newest: Epoch,
    at_ms: u64,
}

/// One member's part in the elections of its pair.
#[derive(Debug)]
pub struct Election {
    config: ElectionConfig,
    role: Role,
    known: Option<Known>,
    swap: Option<OpenSwap>,
    read: Option<RequestId>,
    /// R6: members that a swap may have put into the set, as long as that swap is not resolved.
    perhaps_in_sync: Vec<Member>,
    fence_at: Option<Instant>,
    wish: Option<Wish>,
    /// Until it is won, or a newer version is seen.
    force: Option<Force>,
    heir: Option<NodeId>,
    /// This one gave the role away: it takes it back only when nobody else did.
    is_patient: bool,
    /// R17: whether every shard has beaten and no write is older than it may be.
    is_well: bool,
    peer: Option<(Member, Session)>,
    /// What is durable here, one place a shard; none while the log is not whole.
    durable: Option<Vec<Lsn>>,
    watermark: Vec<Mark>,
    /// How the members are reached; goes into the record with the next renewal.
    members: Vec<MemberInfo>,
    ask_at: Option<Instant>,
    hurried_until: Option<Instant>,
    /// When the voters last said what stands; none where a question came to nothing since, or that
    /// is longer ago than a lease: then who does not serve looks before it swaps. A record that was
    /// lost and made anew may have come to the same version meanwhile.
    looked_at: Option<Instant>,
    /// The longest lease that any record has said.
    lease_seen: Option<LeaseTerms>,
    /// After a try that came to nothing: not before this.
    retry_at: Option<Instant>,
    next_request: u64,
    queries: VecDeque<Query>,
    turns: VecDeque<Turn>,
    canaries: Canaries,
}

impl Election {
    /// A member that has just started. It knows nothing and asks first (R1).
    #[must_use]
    pub fn new(config: ElectionConfig) -> Self {
        Self {
            config,
            role: Role::Follower,
            known: None,
            swap: None,
            read: None,
            perhaps_in_sync: Vec::new(),
            fence_at: None,
            wish: None,
            force: None,
            heir: None,
            is_patient: false,
            is_well: true,
            peer: None,
            durable: None,
            watermark: Vec::new(),
            members: Vec::new(),
            ask_at: None,
            hurried_until: None,
            looked_at: None,
            lease_seen: None,
            retry_at: None,
            next_request: 0,
            queries: VecDeque::new(),
            turns: VecDeque::new(),
            canaries: Canaries::default(),
        }
    }

    /// A member that breaks a rule.
    #[cfg(any(test, feature = "canary"))]
    #[must_use]
    pub fn broken(config: ElectionConfig, canary: Canary) -> Self {
        let mut election = Self::new(config);
        election.canaries.broken = Some(canary);
        election
    }

    // ---- getters -------------------------------------------------------------------------------

    /// What it does now.
    #[must_use]
    pub const fn role(&self) -> Role {
        self.role
    }

    /// When the live's lease ends: every core looks at its own clock before it does anything.
    #[must_use]
    pub const fn fence_at(&self) -> Option<Instant> {
        self.fence_at
    }

    /// The record as it was last seen, and its version.
    #[must_use]
    pub fn record(&self) -> Option<(Version, &PairRecord)> {
        let known = self.known.as_ref()?;
        Some((known.version, known.record.as_ref()?))
    }

    /// The version that was last seen; none before the first answer.
    #[must_use]
    pub fn version(&self) -> Option<Version> {
        self.known.as_ref().map(|known| known.version)
    }

    /// R6: the member beside this one that is, or may be by a swap that is not resolved, in sync.
    #[must_use]
    pub fn beside(&self) -> Option<Member> {
        let stands = self.record().map_or(&[][..], |(_, record)| &record.in_sync);
        let mut all = stands.iter().chain(&self.perhaps_in_sync);
        all.find(|member| member.node != self.config.me.node).copied()
    }

    /// Whether an operator's word waits to be carried out.
    #[must_use]
    pub const fn is_forcing(&self) -> bool {
        self.force.is_some()
    }

    /// R3: from when on nobody can serve on the strength of what is known.
    #[must_use]
    pub fn lapsed_from(&self) -> Option<Instant> {
        self.known.as_ref().map(|known| self.lapses(known))
    }

    /// R3: the live serves by the lease that its record says, which may be longer than this one's;
    /// where the record is lost, by one that a record has said.
    fn lapses(&self, known: &Known) -> Instant {
        let own = self.config.terms;
        let lease = match &known.record {
            Some(record) => record.lease,
            None => self.lease_seen,
        };
        let lease = lease.filter(|_| !self.canaries.has(Canary::OwnLeaseOnly));
        lease.map_or(own, |lease| lease.longer(own)).challenge_from(known.since)
    }

    /// Whether clients may be served at this moment.
    #[must_use]
    pub fn may_serve(&self, now: Instant) -> bool {
        let serves = match self.role {
            Role::Live(_) => true,
            Role::Leaving(_) => self.canaries.has(Canary::LeaveUnfenced),
            Role::Follower | Role::Candidate | Role::Elected(_) | Role::Fenced(_) => false,
        };
        serves && self.fence_at.is_some_and(|fence| now < fence)
    }

    /// R6: whether a member is, or may be by a swap that is not resolved, in sync.
    #[must_use]
    pub fn requires(&self, member: Member) -> bool {
        self.perhaps_in_sync.contains(&member)
            || self.record().is_some_and(|(_, record)| record.holds(member))
    }

    /// R7: whether what is durable on these members may be acknowledged at this moment.
    #[must_use]
    pub fn may_acknowledge(&self, now: Instant, durable_on: &[Member]) -> bool {
        let Some((_, record)) = self.record() else { return false };
        let mut required = record.in_sync.iter().chain(&self.perhaps_in_sync);
        self.may_serve(now)
            && record.in_sync.len() >= self.config.in_sync_min
            && required.all(|member| durable_on.contains(member))
    }

    /// When it wants to be told the time next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let fence = self.fence_at.filter(|_| matches!(self.role, Role::Live(_)));
        if self.swap.is_some() || self.read.is_some() {
            // The answer comes first, and its own client limits how long that takes.
            return fence;
        }
        let asks = !matches!(self.role, Role::Candidate | Role::Elected(_));
        let ask = self.ask_at.filter(|_| asks);
        let swaps = [self.challenge_from(), self.force_from()];
        let swap = swaps.into_iter().flatten().min().filter(|_| self.looked_at.is_some());
        [fence, ask, swap].into_iter().flatten().min()
    }

    // ---- what the host and the replication say -------------------------------------------------

    /// What is durable here, one place a shard; none while the log is not whole (R10).
    pub fn handle_durable(&mut self, durable: Option<Vec<Lsn>>) {
        self.durable = durable;
    }

    /// What is durable on every member in sync: goes into the record with the next renewal.
    pub fn handle_watermark(&mut self, watermark: Vec<Mark>) {
        self.watermark = watermark;
    }

    /// How the members are reached: goes into the record with the next renewal.
    pub fn handle_members(&mut self, members: Vec<MemberInfo>) {
        self.members = members;
    }

    /// Somebody says that this version stands. Nothing rests on it but when to ask (R1).
    pub fn handle_hint(&mut self, now: Instant, version: Version) {
        let is_news = self.version().is_none_or(|known| version > known);
        if is_news && self.role == Role::Follower {
            self.ask_at = Some(now);
        }
    }

    /// Whether every shard has beaten since it was last asked and no write to the journal is older
    /// than it may be. Who is not well does not renew, and loses the role at the fence.
    pub const fn handle_wellness(&mut self, is_well: bool) {
        self.is_well = is_well;
    }

    /// R9: the other member has joined, in a session of its own.
    pub fn handle_joined(&mut self, now: Instant, member: Member, session: Session) {
        self.handle_left(now);
        self.peer = Some((member, session));
    }

    /// The session is over: nothing that was known of the other member's log counts any more.
    pub fn handle_left(&mut self, now: Instant) {
        self.peer = None;
        if let Some(Wish::Expand(..)) = self.wish {
            // It is waited for until the next version stands without it (R6): soon.
            self.wish = None;
            self.ask_at = Some(now);
        }
    }

    /// The link to the live has dropped: ask at once, and often for a second.
    pub fn handle_link_lost(&mut self, now: Instant) {
        self.hurried_until = Some(now + Duration::from_secs(1));
        self.ask_at = Some(now);
    }

    /// R13: the epoch of the last [`Turn::Promise`] is durable.
    pub fn handle_promised(&mut self, now: Instant, epoch: Epoch) {
        if self.role != Role::Elected(epoch) {
            return;
        }
        self.role = Role::Live(epoch);
        if self.fence_at.is_some_and(|fence| now < fence) {
            self.turns.push_back(Turn::Serve(epoch));
        }
        self.fence_if_due(now);
    }

    // ---- commands ------------------------------------------------------------------------------

    /// Leaves the other member out. Until the voters have recorded it, it is still waited for (R7).
    ///
    /// # Errors
    /// This one does not serve.
    pub fn shrink(&mut self, now: Instant) -> Result<(), Refused> {
        self.live_epoch().ok_or(Refused::NotLive)?;
        if self.wish == Some(Wish::Shrink) {
            return Ok(());
        }
        self.wish = Some(Wish::Shrink);
        let me = self.config.me;
        if self.canaries.has(Canary::ShrinkAtOnce)
            && let Some(record) = self.known.as_mut().and_then(|known| known.record.as_mut())
        {
            record.in_sync.retain(|member| *member == me);
        }
        self.ask_at = Some(now);
        Ok(())
    }

    /// Takes the other member in. R8: all cores already wait for it, and it has everything that was
    /// acknowledged. From here on it is waited for, whatever becomes of the swap (R6).
    ///
    /// # Errors
    /// This one does not serve, or the member is not in this session (R9).
    pub fn expand(
        &mut self,
        now: Instant,
        member: Member,
        session: Session,
    ) -> Result<(), Refused> {
        self.live_epoch().ok_or(Refused::NotLive)?;
        if self.peer != Some((member, session)) || member.node == self.config.me.node {
            return Err(Refused::OtherSession);
        }
        self.require(member);
        self.wish = Some(Wish::Expand(member, session));
        self.ask_at = Some(now);
        Ok(())
    }

    /// R17, and a clean stop: stops serving now, then says so to the voters, so that nobody waits.
    /// Also of a role that was won and never served.
    ///
    /// # Errors
    /// This one does not have the role.
    pub fn release(&mut self, now: Instant) -> Result<(), Refused> {
        let epoch = match self.role {
            Role::Elected(epoch) | Role::Live(epoch) | Role::Fenced(epoch) => epoch,
            Role::Follower | Role::Candidate | Role::Leaving(_) => return Err(Refused::NotLive),
        };
        self.leave(now, epoch, None);
        Ok(())
    }

    /// A switchover, once everything is durable on both: stops serving now (R12), then gives the
    /// role.
    ///
    /// # Errors
    /// This one does not serve, or the other is not in sync.
    pub fn hand_over(&mut self, now: Instant, to: Member) -> Result<(), Refused> {
        let epoch = self.live_epoch().ok_or(Refused::NotLive)?;
        let in_sync = self.record().is_some_and(|(_, record)| record.holds(to));
        if !in_sync || to.node == self.config.me.node || self.wish == Some(Wish::Shrink) {
            return Err(Refused::NotInSync);
        }
        self.leave(now, epoch, Some(to.node));
        Ok(())
    }

    /// Makes the pair's first record, this member alone in it. Only where both members have said
    /// what they hold, or by an operator's word: voters that lost everything must not crown a log
    /// that is empty.
    pub fn bootstrap(&mut self, now: Instant, record: PairRecord) {
        let empty = self.known.as_ref().is_some_and(|known| known.version == Version::NONE);
        if empty && self.swap.is_none() && self.role == Role::Follower {
            self.role = Role::Candidate;
            self.send(now, record);
        }
    }

    /// An operator's word: takes the role whoever is in sync, and whatever was acknowledged by
    /// others, once whoever has it can serve no more (R3). A newer version ends it: somebody else
    /// serves. `newest` is the newest epoch that the own log knows.
    ///
    /// # Errors
    /// It has the role, or waits for an answer, or there is no record.
    pub fn promote_by_force(&mut self, newest: Epoch, at_ms: u64) -> Result<(), Refused> {
        let (Role::Follower, None) = (self.role, &self.swap) else { return Err(Refused::Busy) };
        self.record().ok_or(Refused::NoRecord)?;
        self.force = Some(Force { newest, at_ms });
        Ok(())
    }

    /// What an operator asked for is not to be done any more.
    pub const fn forget_force(&mut self) {
        self.force = None;
    }

    // ---- the time ------------------------------------------------------------------------------

    /// The time.
    pub fn handle_time(&mut self, now: Instant) {
        self.fence_if_due(now);
        let due = self.ask_at.is_none_or(|at| at <= now);
        if self.swap.is_some() || self.read.is_some() {
            return;
        }
        let lease = self.config.terms.length();
        self.looked_at = self.looked_at.filter(|at| now <= *at + lease);
        let has_looked = self.looked_at.is_some();
        if has_looked && self.challenge_from().is_some_and(|from| from <= now) {
            return self.challenge(now);
        }
        if has_looked && self.force_from().is_some_and(|from| from <= now) {
            return self.take_by_force(now);
        }
        if due {
            match self.role {
                Role::Follower => self.ask(now),
                Role::Fenced(_) | Role::Leaving(_) if !has_looked => self.ask(now),
                Role::Live(_) | Role::Fenced(_) | Role::Leaving(_) => self.renew(now),
                Role::Candidate | Role::Elected(_) => {}
            }
        }
    }

    fn fence_if_due(&mut self, now: Instant) {
        let Role::Live(epoch) = self.role else { return };
        if self.fence_at.is_none_or(|fence| now >= fence) {
            self.role = Role::Fenced(epoch);
            self.turns.push_back(Turn::Fence(epoch));
        }
    }

    /// Asks for the role (R1).
    fn challenge(&mut self, now: Instant) {
        let me = self.config.me;
        let (_, record) = self.record().expect("a challenge follows from a record");
        // Whoever was in sync with an earlier life of this one still is.
        let mine = record.live == Some(me.node);
        let in_sync = if mine { record.in_sync.clone() } else { vec![me] };
        let next = record.granted(me.node, in_sync);
        self.role = Role::Candidate;
        self.send(now, next);
    }

    /// R3, R10: from when on this member may ask for the role, if it may at all.
    fn challenge_from(&self) -> Option<Instant> {
        let (Role::Follower, None) = (self.role, &self.swap) else { return None };
        let known = self.known.as_ref()?;
        let record = known.record.as_ref()?;
        let in_sync = record.holds(self.config.me) || self.canaries.has(Canary::PromoteOutOfSync);
        let durable = self.durable.as_ref()?;
        let covers = |(mark, durable): (&Mark, &Lsn)| mark.lsn <= *durable;
        let whole = record.watermark.is_empty() || record.watermark.len() == durable.len();
        if !in_sync || !whole || !record.watermark.iter().zip(durable).all(covers) {
            return None;
        }
        let mine = record.live == Some(self.config.me.node);
        let at_once = record.released || mine && self.config.is_sole;
        let at_once = at_once && !self.is_patient || self.canaries.has(Canary::ChallengeAtOnce);
        let from = if at_once { known.since } else { self.lapses(known) };
        self.retry_at.max(Some(from))
    }

    /// R3 holds for an operator's word too: from when on the role may be taken by force.
    fn force_from(&self) -> Option<Instant> {
        let (Role::Follower, None, Some(_)) = (self.role, &self.swap, self.force) else {
            return None;
        };
        let known = self.known.as_ref()?;
        let record = known.record.as_ref()?;
        let from = if record.released { known.since } else { self.lapses(known) };
        self.retry_at.max(Some(from))
    }

    fn take_by_force(&mut self, now: Instant) {
        let Some(Force { newest, at_ms }) = self.force else { return };
        let (_, record) = self.record().expect("what is due follows from a record");
        let me = self.config.me;
        let mut above = record.clone();
        above.epoch = above.epoch.max(newest);
        let mut next = above.granted(me.node, vec![me]);
        // What others had in common is not known to be here.
        next.watermark.clear();
        next.note_forced(at_ms);
        self.role = Role::Candidate;
        self.send(now, next);
    }

    /// The live, or who was and may be again, or who gives the role away: a swap that says so.
    fn renew(&mut self, now: Instant) {
        self.ask_at = Some(now + self.config.terms.renew_every());
        let me = self.config.me;
        let Some((_, record)) = self.record() else { return };
        let mut next = record.clone();
        if let Role::Leaving(_) = self.role {
            // An heir that a swap has left out meanwhile may not have it; whoever may, takes it.
            if let Some(heir) = self.heir.filter(|heir| record.in_sync_of(*heir).is_some()) {
                next = record.granted(heir, record.in_sync.clone());
            }
            next.released = true;
            return self.send(now, next);
        }
        if !self.is_well {
            return;
        }
        if self.watermark.len() == usize::from(next.shards) {
            next.watermark.clone_from(&self.watermark);
        }
        if !self.members.is_empty() {
            next.members.clone_from(&self.members);
        }
        match self.wish {
            Some(Wish::Shrink) => next.in_sync.retain(|member| *member == me),
            Some(Wish::Expand(member, session)) if self.peer == Some((member, session)) => {
                next.in_sync = vec![me, member];
            }
            Some(Wish::Expand(..)) | None => {}
        }
        self.send(now, next);
    }

    fn leave(&mut self, now: Instant, epoch: Epoch, heir: Option<NodeId>) {
        // R12: fence first.
        self.turns.push_back(Turn::Fence(epoch));
        self.role = Role::Leaving(epoch);
        if !self.canaries.has(Canary::LeaveUnfenced) {
            self.fence_at = None;
        }
        self.heir = heir;
        self.wish = None;
        self.ask_at = Some(now);
    }

    // ---- answers -------------------------------------------------------------------------------

    /// What the voters say.
    pub fn handle_answer(&mut self, now: Instant, answer: Answer) {
        // R4: only the answer to a question that is open.
        let read = self.read.take_if(|open| *open == answer.request).is_some();
        let swap = self.swap.take_if(|open| open.request == answer.request);
        if !read && swap.is_none() {
            return;
        }
        let is_told = !matches!(answer.outcome, Outcome::Unknown | Outcome::NotDone(_));
        self.looked_at = is_told.then_some(now);
        match (answer.outcome, swap) {
            (Outcome::Won(version), Some(swap)) => self.win(now, version, swap),
            (Outcome::Stands(held) | Outcome::Lost(held), _) => {
                self.stand_back();
                match (self.see(now, held), self.role) {
                    (false, Role::Fenced(_) | Role::Leaving(_)) if read => self.ask_at = Some(now),
                    (false, _) if !read => self.retry(now, true),
                    _ => {}
                }
            }
            // R5: an unknown swap may still be carried out; what it would have changed counts as
            // possible (R6) until a greater version is seen.
            (Outcome::Unknown | Outcome::NotDone(_) | Outcome::Won(_), _) => {
                self.stand_back();
                if self.canaries.has(Canary::UnknownMeansFailed) {
                    self.perhaps_in_sync.clear();
                    self.wish = None;
                }
                self.retry(now, !read);
            }
        }
    }

    fn win(&mut self, now: Instant, version: Version, swap: OpenSwap) {
        let from = if self.canaries.has(Canary::LeaseFromAnswer) { now } else { swap.sent };
        let fence = self.config.terms.fence_at(from);
        let epoch = swap.record.epoch;
        let mine = swap.record.live == Some(self.config.me.node) && !swap.record.released;
        self.stands(now, version, Some(*swap.record));
        match self.role {
            Role::Candidate if mine => {
                self.role = Role::Elected(epoch);
                self.fence_at = Some(fence);
                self.ask_at = Some(from + self.config.terms.renew_every());
                self.turns.push_back(Turn::Promise(epoch));
            }
            Role::Live(_) | Role::Fenced(_) => {
                self.fence_at = self.fence_at.max(Some(fence));
                self.ask_at = Some(from + self.config.terms.renew_every());
                if let Role::Fenced(epoch) = self.role
                    && now < fence
                {
                    // The version stood still: nobody else was live meanwhile.
                    self.role = Role::Live(epoch);
                    self.turns.push_back(Turn::Serve(epoch));
                }
                self.fence_if_due(now);
            }
            // A renewal that was under way: the role is still here to be given away.
            Role::Leaving(_) if mine => self.ask_at = Some(now),
            Role::Leaving(epoch) => self.depose(epoch, true),
            Role::Candidate | Role::Follower | Role::Elected(_) => self.role = Role::Follower,
        }
    }

    /// A version was read, or another swap than ours was first. Whether that is news.
    ///
    /// One question is open at a time, and the register is linearizable: an answer is never older
    /// than what was known when its question was asked. One that is, or that shows another record
    /// at the same version, comes from voters that have lost theirs and begun anew. What was known
    /// is worth nothing then: a swap on the strength of it could win once the new versions have
    /// come as far, in an epoch that is another's. So the role is over, and the wait of R3 begins.
    fn see(&mut self, now: Instant, held: Held) -> bool {
        let record = PairRecord::decode(&held.value).ok();
        let known = self.known.as_ref();
        if known.is_some_and(|known| held.version == known.version && record == known.record) {
            return false;
        }
        let is_lost = known.is_some_and(|known| held.version <= known.version);
        if is_lost && self.canaries.has(Canary::TrustLostRegister) {
            return false;
        }
        let reigns = |epoch: Epoch| {
            let still = |record: &PairRecord| {
                record.live == Some(self.config.me.node)
                    && record.epoch == epoch
                    && !record.released
            };
            !is_lost && record.as_ref().is_some_and(still)
        };
        let deposed = match self.role {
            Role::Live(epoch) | Role::Fenced(epoch) | Role::Elected(epoch) => {
                (!reigns(epoch)).then_some((epoch, false))
            }
            Role::Leaving(epoch) => (!reigns(epoch)).then_some((epoch, true)),
            Role::Follower | Role::Candidate => None,
        };
        self.is_patient = false;
        if is_lost {
            self.turns.push_back(Turn::Lost);
        }
        self.stands(now, held.version, record);
        if let Some((epoch, gave)) = deposed {
            self.depose(epoch, gave);
        } else if !matches!(self.role, Role::Follower) {
            self.ask_at = Some(now);
        }
        true
    }

    fn depose(&mut self, epoch: Epoch, gave: bool) {
        if let Role::Live(_) = self.role {
            self.turns.push_back(Turn::Fence(epoch));
        }
        self.turns.push_back(Turn::Depose(epoch));
        self.role = Role::Follower;
        self.fence_at = None;
        self.wish = None;
        self.heir = None;
        self.perhaps_in_sync.clear();
        self.is_patient = gave;
    }

    /// A greater version stands: every swap that expected less is resolved (R5).
    fn stands(&mut self, now: Instant, version: Version, record: Option<PairRecord>) {
        self.perhaps_in_sync.clear();
        self.force = None;
        let is_in = |member| record.as_ref().is_some_and(|record| record.holds(member));
        match self.wish {
            Some(Wish::Expand(member, _)) if is_in(member) => self.wish = None,
            Some(Wish::Expand(member, _)) => self.perhaps_in_sync.push(member),
            Some(Wish::Shrink) if record.as_ref().is_none_or(|r| r.in_sync.len() == 1) => {
                self.wish = None;
            }
            Some(Wish::Shrink) | None => {}
        }
        let lease = record.as_ref().and_then(|record| record.lease);
        self.lease_seen = match (self.lease_seen, lease) {
            (Some(seen), Some(lease)) => Some(seen.longer(lease)),
            (seen, lease) => seen.or(lease),
        };
        self.known = Some(Known { version, record, since: now });
    }

    fn stand_back(&mut self) {
        if self.role == Role::Candidate {
            self.role = Role::Follower;
        }
    }

    // ---- details -------------------------------------------------------------------------------

    fn live_epoch(&self) -> Option<Epoch> {
        match self.role {
            Role::Live(epoch) | Role::Fenced(epoch) => Some(epoch),
            Role::Follower | Role::Candidate | Role::Elected(_) | Role::Leaving(_) => None,
        }
    }

    fn require(&mut self, member: Member) {
        if !self.perhaps_in_sync.contains(&member) {
            self.perhaps_in_sync.push(member);
        }
    }

    /// # Panics
    /// If the record breaks I4: a role must never rest on it.
    fn send(&mut self, now: Instant, mut record: PairRecord) {
        record.lease = Some(self.config.terms);
        let expect = self.known.as_ref().map_or(Version::NONE, |known| known.version);
        let follows = match self.record() {
            Some((_, old)) => record.follows(old),
            None => record.check(),
        };
        assert_eq!(follows, Ok(()), "a record that must not be written");
        record.in_sync.iter().for_each(|member| self.require(*member));
        let request = self.number();
        let record = Box::new(record);
        self.queries.push_back(Query::Cas(request, expect, record.clone()));
        self.swap = Some(OpenSwap { request, sent: now, record });
        // Its answer may come after this one's, and be older.
        self.read = None;
    }

    fn ask(&mut self, now: Instant) {
        let hurried = self.hurried_until.is_some_and(|until| now < until);
        let pause = if hurried { TICK } else { self.config.terms.read_every() };
        self.ask_at = Some(now + pause);
        let request = self.number();
        self.read = Some(request);
        self.queries.push_back(Query::Read(request));
    }

    fn number(&mut self) -> RequestId {
        self.next_request += 1;
        RequestId(self.next_request)
    }

    /// Soon, but not at the same moment as the other member.
    fn retry(&mut self, now: Instant, is_swap: bool) {
        let drawn = mix64(self.config.seed ^ self.next_request) % TICK.as_micros() as u64;
        self.ask_at = Some(now + TICK / 4 + Duration::from_micros(drawn));
        if is_swap {
            self.retry_at = self.ask_at;
        }
    }

    // ---- outputs -------------------------------------------------------------------------------

    /// The next question for the voters.
    pub fn poll_query(&mut self) -> Option<Query> {
        self.queries.pop_front()
    }

    /// What the host must do, in order.
    pub fn poll_turn(&mut self) -> Option<Turn> {
        self.turns.pop_front()
    }
}

#[cfg(test)]
mod tests;
