//! Promotion, in a model small enough that every order of its steps is looked at.
//!
//! ```text
//!   member 0 ──── Swap ───▶ {version, epoch, live, in_sync, released} ◀─── Swap ──── member 1
//!            ◀── Answer ──      a register: swaps by version, reads              ── Answer ──▶
//!            ────────── copies of the log, and how much of it is durable ──────────▶
//! ```
//! Seeds draw some runs of the real code; this takes all runs of a few rules. It is written from
//! the rules R1 to R17 (`docs/internals/promotion.md`), not from the code, and knows neither bytes
//! nor time: that a lease is over is a step which may happen at any moment (R2, R3).
//!
//! ```text
//!   swaps and answers come late, in any order, or never; who asked may give up waiting before
//!   a crash keeps what was not durable, or loses it; a disk is lost, and the next one is empty
//!   writes, renewals, patience, crashes: a few of each, see `Bounds`
//! ```
//! Checked in every state: what was acknowledged is on every disk of the in-sync set (I2) and in
//! the log of who reigns (I3), in order; at most one may serve (I1); nothing acknowledged at level
//! `sync` vanishes unexported (I5); a switchover leaves nothing behind (I8). Each broken rule must
//! be noticed by one of these.
//!
//! Ten million states take a minute of a release build, so `tests/run seeds` asks:
//! ```text
//!   cargo test --release -p sim --test promotion -- --nocapture
//! ```
//! Invariant: a state is all there is; what a step does depends on it alone.

use std::collections::BTreeSet;
use std::time::Duration;

use stateright::{Checker as _, HasDiscoveries, Model, Property};

/// 0 or 1.
type Seat = u8;

/// Both members, as a set.
const BOTH: u8 = 3;

const fn bit(seat: Seat) -> u8 {
    1 << seat
}

/// What the voters hold.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
struct Record {
    version: u8,
    epoch: u8,
    live: Seat,
    /// A bit a seat.
    in_sync: u8,
    released: bool,
}

/// Nothing was read yet.
const UNREAD: Record = Record { version: 0, epoch: 0, live: u8::MAX, in_sync: 0, released: false };

/// A swap on its way to the voters.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
struct Swap {
    from: Seat,
    boot: u8,
    record: Record,
    /// The other member's disk, as it is named.
    named: u8,
}

/// What becomes of it, on its way back.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
struct Answer {
    to: Seat,
    boot: u8,
    asked: Record,
    is_won: bool,
    /// What stands.
    record: Record,
}

/// How much of the log is durable at who follows.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
struct Durable {
    from: Seat,
    epoch: u8,
    len: u8,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    Down,
    /// It follows, or waits.
    Idle,
    /// It has asked for the role.
    Candidate,
    Live,
    /// It has fenced itself and given the role away, as far as it knows.
    Leaving,
}

/// A member: its disk, and its process.
#[derive(Clone, Debug, Hash, PartialEq, Eq)]
struct Member {
    // The disk.
    disk: u8,
    /// The voters do not name this disk.
    is_new: bool,
    /// The epoch and number of each message.
    log: Vec<(u8, u8)>,
    synced: u8,
    promised: u8,
    // The process.
    boot: u8,
    role: Role,
    epoch: u8,
    known: Record,
    has_lease: bool,
    lease_version: u8,
    /// The maximal in-sync set: what stands, and what may come to stand (R6).
    required: u8,
    /// An expand that was asked for at this version may still be carried out.
    expanding: u8,
    matched: u8,
    /// Everything before is acknowledged.
    told: u8,
    /// The reign that it follows.
    follows: u8,
    /// What it waits for.
    asked: Option<Record>,
}

impl Member {
    fn new(seat: Seat, record: Record) -> Self {
        let is_live = seat == record.live;
        Self {
            disk: 0,
            is_new: false,
            log: Vec::new(),
            synced: 0,
            promised: 1,
            boot: 0,
            role: if is_live { Role::Live } else { Role::Idle },
            epoch: 1,
            known: record,
            has_lease: is_live,
            lease_version: u8::from(is_live),
            required: BOTH,
            expanding: 0,
            matched: 0,
            told: 0,
            follows: u8::from(!is_live),
            asked: None,
        }
    }

    fn len(&self) -> u8 {
        self.log.len() as u8
    }

    fn is_durable(&self) -> bool {
        self.synced == self.len()
    }

    fn reigns(&self) -> bool {
        self.role == Role::Live
    }

    fn serves(&self) -> bool {
        self.reigns() && self.has_lease
    }

    fn holds(&self, message: u8, below: u8) -> Option<usize> {
        self.log[..usize::from(below)].iter().position(|(_, other)| *other == message)
    }

    fn sync(&mut self) {
        self.synced = self.len();
    }

    /// It serves nobody any more, and gives the role away (R12).
    fn leaves(&mut self) {
        (self.role, self.has_lease) = (Role::Leaving, false);
    }

    fn stands_down(&mut self) {
        (self.role, self.follows, self.has_lease) = (Role::Idle, 0, false);
        self.expanding = 0;
    }

    /// The process is gone with what it knew.
    fn ends(&mut self) {
        let disk = (self.disk, self.is_new, std::mem::take(&mut self.log));
        let kept = (self.synced, self.promised, self.boot + 1);
        *self = Self { role: Role::Down, ..Self::new(0, UNREAD) };
        (self.disk, self.is_new, self.log) = disk;
        (self.synced, self.promised, self.boot) = kept;
        (self.epoch, self.required, self.follows) = (0, 0, 0);
        (self.has_lease, self.lease_version) = (false, 0);
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq)]
struct State {
    record: Record,
    members: [Member; 2],
    swaps: BTreeSet<Swap>,
    answers: BTreeSet<Answer>,
    durable: Option<Durable>,
    /// Leases of versions up to here are over.
    lapsed: u8,
    next: u8,
    /// At `replicated-sync`, in this order.
    acknowledged: Vec<u8>,
    /// At `sync`.
    acknowledged_alone: BTreeSet<u8>,
    exported: BTreeSet<u8>,
    /// Somebody has asked for the role of another.
    was_contested: bool,
    left: Left,
}

/// What may still happen.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
struct Left {
    crashes: u8,
    disks: u8,
    patience: u8,
    renewals: u8,
    resets: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// A message is appended.
    Write(Seat),
    /// All that was appended is durable.
    Sync(Seat),
    /// A message goes to who follows.
    Copy(Seat),
    /// Who follows says how much is durable.
    Report(Seat),
    HearReport,
    /// A producer is told, at `replicated-sync`.
    Acknowledge(Seat),
    /// A producer is told, at `sync`.
    AcknowledgeAlone(Seat),
    Shrink(Seat),
    Expand(Seat),
    Renew(Seat),
    /// A swap comes to the voters; whether its answer is sent.
    CarryOut(Swap, bool),
    Hear(Answer),
    /// An answer is not waited for any more.
    GiveUp(Seat),
    Read(Seat),
    /// Leases of what stands are over, by everybody's clock.
    Lapse,
    /// Asks for the role of the other member.
    Promote(Seat),
    /// Asks for its own once more.
    Resume(Seat),
    /// Joins the other's stream: cuts, exports, follows.
    Follow(Seat),
    Disconnect(Seat),
    /// Whether what was not durable is lost.
    Crash(Seat, bool),
    LoseDisk(Seat),
    Start(Seat),
    HandOver(Seat),
    Release(Seat),
}

/// A rule that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    /// R3.
    ChallengeAtOnce,
    /// R4.
    LateAnswerTaken,
    /// R5, of no answer.
    UnknownMeansFailed,
    /// R5, of a read.
    ReadResolves,
    /// R7.
    ShrinkAtOnce,
    /// R8.
    RequireAfterExpand,
    /// R8: the disk is not named.
    ExpandUnnamed,
    /// R9.
    MatchOutlivesSession,
    /// R10.
    PromoteOutOfSync,
    /// R10: a new disk passes for the old one.
    DiskKeepsIdentity,
    /// R11.
    CutByLength,
    /// R12.
    HandOverUndrained,
    /// R12.
    LeaveUnfenced,
    /// R12.
    ReleaseUnfenced,
    /// R14.
    TailDropped,
    /// R15.
    ReportBeforeSync,
}

/// How much of everything there is in a model.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    writes: u8,
    versions: u8,
    epochs: u8,
    left: Left,
    /// Somebody may hand over, or release.
    leaves: bool,
    /// Producers are told at `sync`, too.
    alone: bool,
    /// Nothing is ever lost for not being durable: fewer states, where that is not asked.
    always_synced: bool,
}

const QUIET: Left = Left { crashes: 0, disks: 0, patience: 0, renewals: 0, resets: 0 };

const PLAIN: Bounds = Bounds {
    writes: 2,
    versions: 5,
    epochs: 3,
    left: QUIET,
    leaves: false,
    alone: false,
    always_synced: false,
};

/// A takeover, and in sync again.
const SHORT: Bounds = Bounds { versions: 4, ..PLAIN };

#[derive(Clone, Copy, Debug)]
struct Pair {
    bounds: Bounds,
    broken: Option<Broken>,
}

impl Pair {
    fn breaks(&self, broken: Broken) -> bool {
        self.broken == Some(broken)
    }

    // ---- What may happen ------------------------------------------------------------------------

    fn of_any(&self, state: &State, seat: Seat, steps: &mut Vec<Step>) {
        let member = &state.members[usize::from(seat)];
        if state.left.disks > 0 {
            steps.push(Step::LoseDisk(seat));
        }
        if member.role == Role::Down {
            return steps.push(Step::Start(seat));
        }
        if state.left.crashes > 0 {
            steps.push(Step::Crash(seat, false));
            if !member.is_durable() {
                steps.push(Step::Crash(seat, true));
            }
        }
        if !member.is_durable() {
            steps.push(Step::Sync(seat));
        }
        if member.asked.is_some() && state.left.patience > 0 {
            steps.push(Step::GiveUp(seat));
        }
        let is_behind = member.known.version != state.record.version || member.expanding > 0;
        if member.asked.is_none() && is_behind {
            steps.push(Step::Read(seat));
        }
    }

    fn may_swap(&self, member: &Member) -> bool {
        let version = member.known.version;
        member.asked.is_none() && version > 0 && version < self.bounds.versions
    }

    fn of_live(&self, state: &State, seat: Seat, steps: &mut Vec<Step>) {
        let member = &state.members[usize::from(seat)];
        let other = &state.members[usize::from(1 - seat)];
        let is_followed = other.role == Role::Idle && other.follows == member.epoch;
        if member.reigns() && is_followed && other.len() < member.len() {
            steps.push(Step::Copy(seat));
        }
        let may_swap = self.may_swap(member);
        let holds_on = member.reigns() || member.role == Role::Leaving;
        if holds_on && may_swap && state.left.renewals > 0 {
            steps.push(Step::Renew(seat));
        }
        if !member.serves() {
            return;
        }
        if state.next <= self.bounds.writes {
            steps.push(Step::Write(seat));
        }
        if member.synced > member.told {
            let is_alone = member.required & bit(1 - seat) == 0;
            if is_alone || member.matched > member.told {
                steps.push(Step::Acknowledge(seat));
            }
            let (_, message) = member.log[usize::from(member.told)];
            if self.bounds.alone && !state.acknowledged_alone.contains(&message) {
                steps.push(Step::AcknowledgeAlone(seat));
            }
        }
        if !may_swap {
            return;
        }
        if member.known.in_sync == BOTH {
            steps.push(Step::Shrink(seat));
        } else if is_followed && member.matched >= member.told {
            steps.push(Step::Expand(seat));
        }
        if self.bounds.leaves {
            steps.push(Step::Release(seat));
            let is_in_sync = member.known.in_sync == BOTH && member.required == BOTH;
            let is_drained = member.matched == member.len() && member.told == member.len();
            let is_drained = is_drained || self.breaks(Broken::HandOverUndrained);
            let is_due = is_in_sync && member.expanding == 0 && is_drained && is_followed;
            if is_due && member.known.epoch < self.bounds.epochs {
                steps.push(Step::HandOver(seat));
            }
        }
    }

    fn of_idle(&self, state: &State, seat: Seat, steps: &mut Vec<Step>) {
        let member = &state.members[usize::from(seat)];
        let other = &state.members[usize::from(1 - seat)];
        if member.role != Role::Idle {
            return;
        }
        let report = Durable { from: seat, epoch: member.follows, len: member.synced };
        if member.follows > 0 && state.durable != Some(report) {
            steps.push(Step::Report(seat));
        }
        let known = member.known;
        if self.may_swap(member) && known.epoch < self.bounds.epochs && member.is_durable() {
            let is_named = known.in_sync & bit(seat) != 0 && !member.is_new;
            let is_named = is_named || self.breaks(Broken::PromoteOutOfSync);
            let is_free = known.released
                || known.version <= state.lapsed
                || self.breaks(Broken::ChallengeAtOnce);
            if known.live != seat && is_named && is_free {
                steps.push(Step::Promote(seat));
            }
            if known.live == seat && !member.is_new {
                steps.push(Step::Resume(seat));
            }
        }
        let is_news = other.epoch >= member.promised && member.follows != other.epoch;
        let may_join = !member.is_new || other.known.in_sync & bit(seat) == 0;
        if other.reigns() && is_news && may_join {
            steps.push(Step::Follow(seat));
        }
        if member.follows > 0 && other.reigns() && state.left.resets > 0 {
            steps.push(Step::Disconnect(seat));
        }
    }

    // ---- What becomes of it ---------------------------------------------------------------------

    fn ask(state: &mut State, seat: Seat, record: Record) {
        let named = state.members[usize::from(1 - seat)].disk;
        let member = &mut state.members[usize::from(seat)];
        let record = Record { version: member.known.version + 1, ..record };
        member.asked = Some(record);
        state.swaps.insert(Swap { from: seat, boot: member.boot, record, named });
    }

    fn known(state: &State, seat: Seat) -> Record {
        state.members[usize::from(seat)].known
    }

    fn shrink(&self, state: &mut State, seat: Seat) {
        let known = Self::known(state, seat);
        if self.breaks(Broken::ShrinkAtOnce) {
            state.members[usize::from(seat)].required = bit(seat);
        }
        Self::ask(state, seat, Record { in_sync: bit(seat), ..known });
    }

    fn expand(&self, state: &mut State, seat: Seat) {
        let known = Self::known(state, seat);
        let member = &mut state.members[usize::from(seat)];
        if !self.breaks(Broken::RequireAfterExpand) {
            member.required = BOTH;
        }
        member.expanding = known.version;
        Self::ask(state, seat, Record { in_sync: BOTH, ..known });
    }

    fn renew(state: &mut State, seat: Seat) {
        state.left.renewals -= 1;
        let known = Self::known(state, seat);
        Self::ask(state, seat, known);
    }

    fn hand_over(&self, state: &mut State, seat: Seat) {
        let known = Self::known(state, seat);
        if !self.breaks(Broken::LeaveUnfenced) {
            state.members[usize::from(seat)].leaves();
        }
        Self::ask(state, seat, Record { epoch: known.epoch + 1, live: 1 - seat, ..known });
    }

    fn release(&self, state: &mut State, seat: Seat) {
        let known = Self::known(state, seat);
        if !self.breaks(Broken::ReleaseUnfenced) {
            state.members[usize::from(seat)].leaves();
        }
        Self::ask(state, seat, Record { released: true, ..known });
    }

    fn promote(state: &mut State, seat: Seat) {
        state.was_contested = true;
        let known = Self::known(state, seat);
        let (epoch, in_sync, released) = (known.epoch + 1, bit(seat), false);
        Self::stand_for(state, seat, Record { epoch, live: seat, in_sync, released, ..known });
    }

    fn resume(state: &mut State, seat: Seat) {
        let known = Self::known(state, seat);
        Self::stand_for(state, seat, Record { epoch: known.epoch + 1, released: false, ..known });
    }

    fn stand_for(state: &mut State, seat: Seat, record: Record) {
        let member = &mut state.members[usize::from(seat)];
        (member.role, member.follows) = (Role::Candidate, 0);
        Self::ask(state, seat, record);
    }

    fn carry_out(&self, state: &mut State, swap: Swap, is_answered: bool) {
        state.swaps.remove(&swap);
        let is_won = state.record.version + 1 == swap.record.version;
        if is_won {
            for seat in [0, 1] {
                let member = &mut state.members[usize::from(seat)];
                let comes = swap.record.in_sync & !state.record.in_sync & bit(seat) != 0;
                let is_meant = member.disk == swap.named || self.breaks(Broken::ExpandUnnamed);
                if comes && (is_meant || seat == swap.from) {
                    member.is_new = false;
                }
            }
            state.record = swap.record;
        }
        if is_answered {
            let (to, boot, record) = (swap.from, swap.boot, state.record);
            state.answers.insert(Answer { to, boot, asked: swap.record, is_won, record });
        }
    }

    fn hear(&self, state: &mut State, answer: Answer) {
        state.answers.remove(&answer);
        let member = &mut state.members[usize::from(answer.to)];
        if member.role == Role::Down || member.boot != answer.boot {
            return;
        }
        let is_awaited = member.asked == Some(answer.asked);
        if !is_awaited && !self.breaks(Broken::LateAnswerTaken) {
            return;
        }
        if answer.record.version >= member.known.version {
            member.asked = None;
            self.learn(member, answer.to, answer.record, answer.is_won, state.lapsed);
        }
    }

    /// What stands, and whether it is what this member has asked for.
    fn learn(&self, member: &mut Member, seat: Seat, record: Record, is_won: bool, lapsed: u8) {
        let before = member.known;
        member.known = record;
        let is_free = record.version > lapsed;
        match member.role {
            Role::Down | Role::Idle => {}
            Role::Candidate => {
                if is_won && record.live == seat && record.epoch > before.epoch {
                    member.role = Role::Live;
                    (member.epoch, member.promised) = (record.epoch, record.epoch);
                    (member.required, member.expanding) = (record.in_sync, 0);
                    (member.matched, member.told) = (0, member.len());
                    (member.lease_version, member.has_lease) = (record.version, is_free);
                } else {
                    (member.role, member.follows) = (Role::Idle, 0);
                }
            }
            Role::Live | Role::Leaving => {
                let is_own = record.live == seat && record.epoch == member.epoch;
                if !is_own || record.released {
                    return member.stands_down();
                }
                let is_resolved =
                    record.version > member.expanding || self.breaks(Broken::ReadResolves);
                if is_resolved {
                    member.expanding = 0;
                }
                member.required = if member.expanding > 0 { BOTH } else { record.in_sync };
                if is_won {
                    (member.role, member.lease_version) = (Role::Live, record.version);
                    member.has_lease |= is_free;
                }
            }
        }
    }

    fn give_up(&self, state: &mut State, seat: Seat) {
        state.left.patience -= 1;
        let member = &mut state.members[usize::from(seat)];
        member.asked = None;
        if self.breaks(Broken::UnknownMeansFailed) && member.expanding > 0 {
            (member.required, member.expanding) = (member.known.in_sync, 0);
        }
        if member.role == Role::Candidate {
            (member.role, member.follows) = (Role::Idle, 0);
        }
    }

    fn follow(&self, state: &mut State, seat: Seat) {
        let [first, second] = &mut state.members;
        let (member, live) = if seat == 0 { (first, second) } else { (second, first) };
        let both = member.log.iter().zip(&live.log);
        let common = if self.breaks(Broken::CutByLength) {
            both.count()
        } else {
            both.take_while(|(mine, theirs)| mine == theirs).count()
        };
        if !self.breaks(Broken::TailDropped) {
            state.exported.extend(member.log[common..].iter().map(|(_, message)| message));
        }
        member.log.truncate(common);
        member.synced = member.synced.min(common as u8);
        (member.promised, member.follows) = (live.epoch, live.epoch);
        state.durable = None;
        if !self.breaks(Broken::MatchOutlivesSession) {
            live.matched = 0;
        }
    }

    fn lose_disk(&self, state: &mut State, seat: Seat) {
        state.left.disks -= 1;
        state.durable = None;
        let member = &mut state.members[usize::from(seat)];
        member.ends();
        member.log.clear();
        (member.synced, member.promised) = (0, 0);
        member.disk += 1;
        member.is_new = !self.breaks(Broken::DiskKeepsIdentity);
    }

    fn crash(state: &mut State, seat: Seat, loses: bool) {
        state.left.crashes -= 1;
        state.durable.take_if(|durable| durable.from == seat);
        let member = &mut state.members[usize::from(seat)];
        if loses {
            member.log.truncate(usize::from(member.synced));
        }
        member.synced = member.len();
        member.ends();
    }

    fn write(state: &mut State, seat: Seat) {
        let member = &mut state.members[usize::from(seat)];
        member.log.push((member.epoch, state.next));
        state.next += 1;
    }

    fn copy(state: &mut State, seat: Seat) {
        let at = state.members[usize::from(1 - seat)].log.len();
        let message = state.members[usize::from(seat)].log[at];
        state.members[usize::from(1 - seat)].log.push(message);
    }

    fn report(&self, state: &mut State, seat: Seat) {
        let member = &state.members[usize::from(seat)];
        let is_early = self.breaks(Broken::ReportBeforeSync);
        let len = if is_early { member.len() } else { member.synced };
        state.durable = Some(Durable { from: seat, epoch: member.follows, len });
    }

    fn acknowledge(state: &mut State, seat: Seat) {
        let member = &mut state.members[usize::from(seat)];
        state.acknowledged.push(member.log[usize::from(member.told)].1);
        member.told += 1;
    }

    fn acknowledge_alone(state: &mut State, seat: Seat) {
        let member = &state.members[usize::from(seat)];
        state.acknowledged_alone.insert(member.log[usize::from(member.told)].1);
    }

    fn hear_report(state: &mut State) {
        let Some(durable) = state.durable.take() else { return };
        let live = &mut state.members[usize::from(1 - durable.from)];
        if live.reigns() && live.epoch == durable.epoch {
            live.matched = live.matched.max(durable.len);
        }
    }

    fn lapse(state: &mut State) {
        state.lapsed = state.record.version;
        for member in &mut state.members {
            member.has_lease &= member.lease_version > state.lapsed;
        }
    }
}

impl Model for Pair {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let record = Record { version: 1, epoch: 1, live: 0, in_sync: BOTH, released: false };
        vec![State {
            record,
            members: [Member::new(0, record), Member::new(1, record)],
            swaps: BTreeSet::new(),
            answers: BTreeSet::new(),
            durable: None,
            lapsed: 0,
            next: 1,
            acknowledged: Vec::new(),
            acknowledged_alone: BTreeSet::new(),
            exported: BTreeSet::new(),
            was_contested: false,
            left: self.bounds.left,
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        for seat in [0, 1] {
            self.of_any(state, seat, steps);
            self.of_live(state, seat, steps);
            self.of_idle(state, seat, steps);
        }
        if state.durable.is_some() {
            steps.push(Step::HearReport);
        }
        for swap in &state.swaps {
            steps.extend([Step::CarryOut(*swap, true), Step::CarryOut(*swap, false)]);
        }
        steps.extend(state.answers.iter().map(|answer| Step::Hear(*answer)));
        if state.lapsed < state.record.version {
            steps.push(Step::Lapse);
        }
    }

    fn next_state(&self, before: &State, step: Step) -> Option<State> {
        let mut next = before.clone();
        let state = &mut next;
        match step {
            Step::Write(seat) => Self::write(state, seat),
            Step::Sync(seat) => state.members[usize::from(seat)].sync(),
            Step::Copy(seat) => Self::copy(state, seat),
            Step::Report(seat) => self.report(state, seat),
            Step::HearReport => Self::hear_report(state),
            Step::Acknowledge(seat) => Self::acknowledge(state, seat),
            Step::AcknowledgeAlone(seat) => Self::acknowledge_alone(state, seat),
            Step::Shrink(seat) => self.shrink(state, seat),
            Step::Expand(seat) => self.expand(state, seat),
            Step::Renew(seat) => Self::renew(state, seat),
            Step::CarryOut(swap, is_answered) => self.carry_out(state, swap, is_answered),
            Step::Hear(answer) => self.hear(state, answer),
            Step::GiveUp(seat) => self.give_up(state, seat),
            Step::Read(seat) => {
                let member = &mut state.members[usize::from(seat)];
                self.learn(member, seat, state.record, false, state.lapsed);
            }
            Step::Lapse => Self::lapse(state),
            Step::Promote(seat) => Self::promote(state, seat),
            Step::Resume(seat) => Self::resume(state, seat),
            Step::Follow(seat) => self.follow(state, seat),
            Step::Disconnect(seat) => {
                state.left.resets -= 1;
                state.durable = None;
                state.members[usize::from(seat)].follows = 0;
            }
            Step::Crash(seat, loses) => Self::crash(state, seat, loses),
            Step::LoseDisk(seat) => self.lose_disk(state, seat),
            Step::Start(seat) => state.members[usize::from(seat)].role = Role::Idle,
            Step::HandOver(seat) => self.hand_over(state, seat),
            Step::Release(seat) => self.release(state, seat),
        }
        if self.bounds.always_synced {
            state.members.iter_mut().for_each(Member::sync);
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("I1: at most one may serve", |_, state: &State| {
                !state.members.iter().all(Member::serves)
            }),
            Property::always(
                "I2: acknowledged is durable wherever the voters say",
                |_, state: &State| {
                    let is_held = |member: &Member| {
                        let held = |message: &u8| member.holds(*message, member.synced).is_some();
                        state.acknowledged.iter().all(held)
                    };
                    let seats = [0, 1].into_iter().zip(&state.members);
                    let named = seats.filter(|(seat, _)| state.record.in_sync & bit(*seat) != 0);
                    named.filter(|(_, member)| !member.is_new).all(|(_, member)| is_held(member))
                },
            ),
            Property::always(
                "I3: who reigns holds what was acknowledged, in order",
                |_, state: &State| {
                    let holds_all = |member: &Member| {
                        let places = state.acknowledged.iter();
                        let places = places.map(|message| member.holds(*message, member.len()));
                        let places: Option<Vec<usize>> = places.collect();
                        places.is_some_and(|places| places.is_sorted_by(|a, b| a < b))
                    };
                    let reigns =
                        |member: &&Member| member.reigns() && member.epoch == state.record.epoch;
                    state.members.iter().filter(reigns).all(holds_all)
                },
            ),
            Property::always("I5: nothing acknowledged alone vanishes", |_, state: &State| {
                let holds = |message: u8| {
                    state.members.iter().any(|one| one.holds(message, one.len()).is_some())
                };
                let kept = |message: &u8| state.exported.contains(message) || holds(*message);
                state.acknowledged_alone.iter().all(kept)
            }),
            Property::always(
                "I8: a switchover leaves nothing behind",
                |pair: &Self, state: &State| {
                    let was_calm = !state.was_contested
                        && state.left.crashes == pair.bounds.left.crashes
                        && state.left.disks == pair.bounds.left.disks;
                    !was_calm || state.exported.is_empty()
                },
            ),
            Property::sometimes("a takeover, and in sync again", |_, state: &State| {
                let [first, second] = &state.members;
                second.reigns()
                    && second.epoch == 2
                    && first.follows == 2
                    && state.record.in_sync == BOTH
                    && state.acknowledged.len() == 2
            }),
        ]
    }
}

/// Looks at every state, or at so many that something is noticed.
fn explore(bounds: Bounds, broken: Option<Broken>) -> (usize, Vec<&'static str>) {
    let checker = Pair { bounds, broken }.checker().threads(2).timeout(Duration::from_secs(300));
    let until = if broken.is_some() { HasDiscoveries::AnyFailures } else { HasDiscoveries::All };
    let checker = checker.finish_when(until).spawn_bfs().join();
    let states = checker.unique_state_count();
    assert!(checker.is_done(), "{bounds:?}: not all of {states} states in time");
    let mut found: Vec<&str> = checker.discoveries().into_keys().collect();
    found.sort_unstable();
    println!("{states:>9} states, {:>2} steps deep, {broken:?}: {found:?}", checker.max_depth());
    (states, found)
}

const TAKEOVER: &str = "a takeover, and in sync again";

/// Bounds, and how many states there are at least.
const EXPLORED: [(&str, Bounds, usize); 5] = [
    ("a crash", Bounds { left: Left { crashes: 1, ..QUIET }, ..SHORT }, 2_000_000),
    (
        "answers that are not waited for",
        Bounds { left: Left { patience: 1, ..QUIET }, ..SHORT },
        1_000_000,
    ),
    ("roles that are given away", Bounds { leaves: true, ..PLAIN }, 2_000_000),
    (
        "acknowledged alone, and a crash",
        Bounds { alone: true, always_synced: true, left: Left { crashes: 1, ..QUIET }, ..SHORT },
        3_000_000,
    ),
    (
        "a lost disk, and connections that break",
        Bounds { left: Left { disks: 1, resets: 1, ..QUIET }, always_synced: true, ..SHORT },
        900_000,
    ),
];

#[test]
#[cfg_attr(debug_assertions, ignore = "asked of a release build: tests/run seeds")]
fn every_order_of_steps_keeps_what_was_acknowledged_and_one_live() {
    for (name, bounds, least) in EXPLORED {
        let (states, found) = explore(bounds, None);
        assert_eq!(found, [TAKEOVER], "{name}");
        assert!(states >= least, "{name}: only {states} states");
    }
}

#[test]
#[cfg_attr(debug_assertions, ignore = "asked of a release build: tests/run seeds")]
fn each_broken_rule_is_noticed() {
    let crash = Bounds { left: Left { crashes: 1, ..QUIET }, ..PLAIN };
    let impatient = Bounds { left: Left { patience: 1, renewals: 1, ..QUIET }, ..PLAIN };
    let leaves = Bounds { leaves: true, ..PLAIN };
    let disk = Bounds { left: Left { disks: 1, resets: 1, ..QUIET }, ..PLAIN };
    let broken = [
        (Broken::ChallengeAtOnce, PLAIN),
        (Broken::LateAnswerTaken, Bounds { leaves: true, ..impatient }),
        (Broken::UnknownMeansFailed, impatient),
        (Broken::ReadResolves, impatient),
        (Broken::ShrinkAtOnce, PLAIN),
        (Broken::RequireAfterExpand, PLAIN),
        (Broken::ExpandUnnamed, disk),
        (Broken::MatchOutlivesSession, disk),
        (Broken::PromoteOutOfSync, PLAIN),
        (Broken::DiskKeepsIdentity, disk),
        (Broken::CutByLength, crash),
        (Broken::HandOverUndrained, leaves),
        (Broken::LeaveUnfenced, leaves),
        (Broken::ReleaseUnfenced, leaves),
        (Broken::TailDropped, Bounds { alone: true, ..PLAIN }),
        (Broken::ReportBeforeSync, crash),
    ];
    let unnoticed: Vec<Broken> = broken
        .into_iter()
        .filter(|(broken, bounds)| {
            explore(*bounds, Some(*broken)).1.iter().all(|name| *name == TAKEOVER)
        })
        .map(|(broken, _)| broken)
        .collect();
    assert!(unnoticed.is_empty(), "{unnoticed:?}");
}
