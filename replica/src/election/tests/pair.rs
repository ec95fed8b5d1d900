//! Two members, a register that is asked over a bad network, two logs and two clocks that drift:
//! who serves, and where is what was acknowledged?
//!
//! ```text
//!   true time ──▶ each member's own clock, at its own rate
//!   writes at the live ─▶ sync ─▶ the other's log ─▶ sync ─▶ acknowledged
//!   faults: crash (what was not synced is lost), pause, cut of the link, lost and late swaps
//! ```
//! At every step: I1 at most one may serve; at every acknowledgement: I2 every member in the
//! standing record has it; at every new reign: I3 the live has everything that was acknowledged.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::register::{PairId, Registers, Swap};

const PAIR: PairId = PairId([1; 16]);
const STEP_US: u64 = 1_000;

struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix64(self.0) % end
    }

    fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

struct Broker {
    me: Member,
    election: Option<Election>,
    life: u64,
    /// Its clock's rate, in thousandths of the true one.
    rate_permille: u64,
    paused_until: u64,
    /// Entries are (epoch, number).
    log: Vec<(u64, u64)>,
    synced: usize,
    /// How much of its log was acknowledged.
    acknowledged: usize,
    /// What the other has durable, in this session.
    matched: usize,
    /// Whose log it copies.
    follows: Option<Epoch>,
    serving: bool,
}

enum Event {
    /// A question arrives at the voters; its answer goes back if it is heard.
    Arrive {
        from: usize,
        life: u64,
        query: Query,
        is_heard: bool,
    },
    Answer {
        to: usize,
        life: u64,
        answer: Answer,
    },
}

struct Pair {
    now_us: u64,
    base: Instant,
    chance: Chance,
    registers: Registers,
    brokers: [Broker; 2],
    events: BTreeMap<(u64, u64), Event>,
    queued: u64,
    link_up: bool,
    session: Session,
    written: u64,
    acknowledged: BTreeSet<u64>,
    reigns: u64,
    broken: Option<Canary>,
}

impl Pair {
    fn new(seed: u64, broken: Option<Canary>) -> Self {
        let mut chance = Chance(seed);
        let mut registers = Registers::default();
        let value = record(&[A, B]).encode();
        registers.apply(Swap { pair: PAIR, expect: Version::NONE, value });
        let brokers = [A, B].map(|me| Broker {
            me,
            election: None,
            life: 0,
            rate_permille: 990 + chance.below(21),
            paused_until: 0,
            log: Vec::new(),
            synced: 0,
            acknowledged: 0,
            matched: 0,
            follows: None,
            serving: false,
        });
        Self {
            now_us: 0,
            base: start(),
            chance,
            registers,
            brokers,
            events: BTreeMap::new(),
            queued: 0,
            link_up: true,
            session: Session(0),
            written: 0,
            acknowledged: BTreeSet::new(),
            reigns: 0,
            broken,
        }
    }

    fn clock(&self, at: usize) -> Instant {
        self.base + Duration::from_micros(self.now_us * self.brokers[at].rate_permille / 1000)
    }

    fn push(&mut self, after_us: u64, event: Event) {
        self.queued += 1;
        self.events.insert((self.now_us + after_us, self.queued), event);
    }

    fn begin(&mut self, at: usize) {
        let seed = self.chance.below(1 << 40);
        let broker = &mut self.brokers[at];
        let config = ElectionConfig { seed, ..config(broker.me) };
        broker.election = Some(match self.broken {
            Some(canary) => Election::broken(config, canary),
            None => Election::new(config),
        });
    }

    // ---- faults --------------------------------------------------------------------------------

    fn faults(&mut self) {
        let at = self.chance.below(2) as usize;
        match self.chance.below(6_000) {
            0 => self.crash(at),
            1 | 2 => {
                let pause = self.chance.below(4_000_000);
                self.brokers[at].paused_until = self.now_us + pause;
            }
            3 | 4 => {
                self.link_up = !self.link_up;
                self.part();
            }
            5 => self.hand_over(at),
            _ => {}
        }
    }

    fn crash(&mut self, at: usize) {
        let broker = &mut self.brokers[at];
        broker.life += 1;
        broker.election = None;
        broker.log.truncate(broker.synced);
        broker.serving = false;
        self.part();
        self.brokers[at].paused_until = self.now_us + 10_000 + self.chance.below(4_000_000);
    }

    /// The session between the two is over.
    fn part(&mut self) {
        for at in 0..2 {
            let now = self.clock(at);
            let broker = &mut self.brokers[at];
            broker.matched = 0;
            broker.follows = None;
            if let Some(election) = &mut broker.election {
                election.handle_left(now);
                election.handle_link_lost(now);
            }
        }
    }

    /// A switchover, where everything is durable and acknowledged on both.
    fn hand_over(&mut self, at: usize) {
        let now = self.clock(at);
        let drained = self.brokers[0].log == self.brokers[1].log
            && self.brokers.iter().all(|broker| broker.synced == broker.log.len());
        let other = self.brokers[1 - at].me;
        if drained && self.serves(at) {
            let election = self.brokers[at].election.as_mut().expect("it serves");
            // Refused where the other is not in sync.
            let _ = election.hand_over(now, other);
        }
    }

    // ---- the run -------------------------------------------------------------------------------

    fn step(&mut self) {
        self.now_us += STEP_US;
        self.faults();
        while let Some(entry) = self.events.first_entry() {
            if entry.key().0 > self.now_us {
                break;
            }
            match entry.remove() {
                Event::Arrive { from, life, query, is_heard } => {
                    self.arrive(from, life, query, is_heard);
                }
                Event::Answer { to, life, answer } => self.answer(to, life, answer),
            }
        }
        for at in 0..2 {
            if self.brokers[at].paused_until <= self.now_us {
                self.turn(at);
            }
        }
        assert!(!(self.serves(0) && self.serves(1)), "I1: two serve at {} µs", self.now_us);
    }

    fn arrive(&mut self, from: usize, life: u64, query: Query, is_heard: bool) {
        let (request, outcome) = match query {
            Query::Read(request) => (request, Outcome::Stands(self.registers.get(PAIR))),
            Query::Cas(request, expect, record) => {
                let swap = Swap { pair: PAIR, expect, value: record.encode() };
                (request, self.registers.apply(swap))
            }
        };
        if is_heard {
            let is_late = self.chance.one_in(60);
            let after = 500 + self.chance.below(if is_late { 4_000_000 } else { 5_000 });
            let answer = Answer { request, outcome };
            self.push(after, Event::Answer { to: from, life, answer });
        }
    }

    fn answer(&mut self, to: usize, life: u64, answer: Answer) {
        if self.brokers[to].life != life {
            return;
        }
        if self.brokers[to].paused_until > self.now_us {
            let after = self.brokers[to].paused_until - self.now_us;
            return self.push(after, Event::Answer { to, life, answer });
        }
        let now = self.clock(to);
        if let Some(election) = &mut self.brokers[to].election {
            election.handle_answer(now, answer);
        }
    }

    fn turn(&mut self, at: usize) {
        if self.brokers[at].election.is_none() {
            self.begin(at);
        }
        let now = self.clock(at);
        let broker = &mut self.brokers[at];
        let election = broker.election.as_mut().expect("just begun");
        election.handle_durable(Some(vec![Lsn(broker.synced as u64)]));
        election.handle_time(now);
        let queries: Vec<Query> = std::iter::from_fn(|| election.poll_query()).collect();
        let turns: Vec<Turn> = std::iter::from_fn(|| election.poll_turn()).collect();
        queries.into_iter().for_each(|query| self.ask(at, query));
        turns.into_iter().for_each(|turn| self.obey(at, turn));
        self.replicate(at);
        self.write(at);
        self.acknowledge(at);
    }

    /// Most swaps come through; some are lost, some late, of some nobody hears.
    fn ask(&mut self, from: usize, query: Query) {
        let life = self.brokers[from].life;
        let request = match &query {
            Query::Read(request) | Query::Cas(request, ..) => *request,
        };
        let fate = self.chance.below(40);
        let is_heard = fate > 3;
        if !is_heard {
            let answer = Answer { request, outcome: Outcome::Unknown };
            self.push(500_000, Event::Answer { to: from, life, answer });
        }
        if fate > 0 {
            let is_late = fate == 1;
            let after = self.chance.below(if is_late { 3_000_000 } else { 5_000 });
            self.push(500 + after, Event::Arrive { from, life, query, is_heard });
        }
    }

    fn obey(&mut self, at: usize, turn: Turn) {
        let now = self.clock(at);
        match turn {
            Turn::Promise(epoch) => {
                let election = self.brokers[at].election.as_mut().expect("it runs");
                election.handle_promised(now, epoch);
            }
            Turn::Serve(_) if !self.brokers[at].serving => self.reign(at),
            Turn::Serve(_) | Turn::Fence(_) => {}
            Turn::Lost => panic!("these voters lose nothing"),
            Turn::Depose(_) => {
                self.brokers[at].serving = false;
                self.part();
            }
        }
    }

    fn reign(&mut self, at: usize) {
        self.reigns += 1;
        let broker = &mut self.brokers[at];
        let has: BTreeSet<u64> = broker.log.iter().map(|(_, number)| *number).collect();
        let lacks: Vec<&u64> = self.acknowledged.difference(&has).take(3).collect();
        assert!(lacks.is_empty(), "I3: a reign lacks {lacks:?}, which were acknowledged");
        let known = |(_, number): &&(u64, u64)| self.acknowledged.contains(number);
        broker.acknowledged = broker.log.iter().take_while(known).count();
        broker.matched = 0;
        broker.follows = None;
        broker.serving = true;
    }

    /// The other cuts its log to what both have (R11), follows, and is taken in when it has all.
    fn replicate(&mut self, at: usize) {
        let other = 1 - at;
        let awake = self.brokers[other].paused_until <= self.now_us;
        let Some(Role::Live(epoch)) = self.role(at) else { return };
        let follows = self.role(other) == Some(Role::Follower);
        if !self.link_up || !awake || !follows || !self.serves(at) {
            return;
        }
        let now = self.clock(at);
        let member = self.brokers[other].me;
        let joins = self.brokers[other].follows != Some(epoch);
        let slow = self.chance.one_in(3);
        let (live, backup) = self.live_and_backup(at);
        if joins {
            let same = live.log.iter().zip(&backup.log).take_while(|(a, b)| a == b).count();
            backup.log.truncate(same);
            backup.synced = backup.synced.min(same);
            backup.follows = Some(epoch);
            live.matched = 0;
            self.session.0 += 1;
            let session = self.session;
            let election = self.brokers[at].election.as_mut().expect("it serves");
            return election.handle_joined(now, member, session);
        }
        backup.log.extend_from_slice(&live.log[backup.log.len()..]);
        if !slow {
            backup.synced = backup.log.len();
            live.matched = backup.synced;
        }
        let caught_up = live.matched >= live.acknowledged;
        let session = self.session;
        let election = self.brokers[at].election.as_mut().expect("it serves");
        if caught_up && !election.requires(member) {
            election.expand(now, member, session).expect("R8: it is in this session");
        }
    }

    fn write(&mut self, at: usize) {
        let Some(Role::Live(epoch)) = self.role(at) else { return };
        if !self.serves(at) {
            return;
        }
        if self.chance.one_in(4) {
            self.written += 1;
            self.brokers[at].log.push((epoch.0, self.written));
        }
        if self.chance.one_in(2) {
            self.brokers[at].synced = self.brokers[at].log.len();
        }
        let now = self.clock(at);
        let waits = self.brokers[at].log.len() - self.brokers[at].acknowledged;
        let other = self.brokers[1 - at].me;
        let is_gone = !self.link_up || self.brokers[1 - at].paused_until > self.now_us;
        let election = self.brokers[at].election.as_mut().expect("it serves");
        if waits > 100 && is_gone && election.requires(other) {
            election.shrink(now).expect("it serves");
        }
    }

    fn acknowledge(&mut self, at: usize) {
        let now = self.clock(at);
        let (me, other) = (self.brokers[at].me, self.brokers[1 - at].me);
        loop {
            let broker = &mut self.brokers[at];
            let next = broker.acknowledged;
            let on = if broker.matched > next { vec![me, other] } else { vec![me] };
            let election = broker.election.as_ref().expect("it runs");
            let may = broker.serving && election.may_acknowledge(now, &on);
            if !may || next >= broker.synced {
                return;
            }
            broker.acknowledged += 1;
            let number = broker.log[next].1;
            self.acknowledged.insert(number);
            self.i2_every_member_in_sync_has(number);
        }
    }

    // ---- what is so ----------------------------------------------------------------------------

    fn i2_every_member_in_sync_has(&self, number: u64) {
        let standing = PairRecord::decode(&self.registers.get(PAIR).value).expect("a record");
        for broker in self.brokers.iter().filter(|broker| standing.holds(broker.me)) {
            let has = broker.log[..broker.synced].iter().rev().any(|(_, n)| *n == number);
            assert!(has, "I2: {number} is acknowledged and not on {}", broker.me.node);
        }
    }

    fn serves(&self, at: usize) -> bool {
        let clock = self.clock(at);
        let election = self.brokers[at].election.as_ref();
        self.brokers[at].serving && election.is_some_and(|election| election.may_serve(clock))
    }

    fn role(&self, at: usize) -> Option<Role> {
        self.brokers[at].election.as_ref().map(Election::role)
    }

    fn live_and_backup(&mut self, live: usize) -> (&mut Broker, &mut Broker) {
        let [a, b] = &mut self.brokers;
        if live == 0 { (a, b) } else { (b, a) }
    }
}

fn run(seed: u64, broken: Option<Canary>) -> Pair {
    let mut pair = Pair::new(seed, broken);
    for _ in 0..60_000 {
        pair.step();
    }
    pair
}

#[test]
fn a_pair_keeps_its_promises_whatever_fails() {
    let (mut reigns, mut acknowledged) = (0, 0);
    let seeds = std::env::var("LAELAPS_SEEDS").ok().and_then(|seeds| seeds.parse().ok());
    for seed in 0..seeds.unwrap_or(12) {
        let pair = run(seed, None);
        reigns += pair.reigns;
        acknowledged += pair.acknowledged.len();
    }
    assert!(reigns > 30, "only {reigns} reigns");
    assert!(acknowledged > 10_000, "only {acknowledged} acknowledged");
}

#[test]
fn each_broken_rule_is_noticed() {
    let rules = [
        Canary::LeaseFromAnswer,
        Canary::ChallengeAtOnce,
        Canary::UnknownMeansFailed,
        Canary::ShrinkAtOnce,
        Canary::PromoteOutOfSync,
        Canary::LeaveUnfenced,
    ];
    for rule in rules {
        let notices =
            |seed: &u64| std::panic::catch_unwind(|| drop(run(*seed, Some(rule)))).is_err();
        let caught = (0..40).find(notices);
        assert!(caught.is_some(), "{rule:?} was not noticed");
    }
}
