//! The run: clients that keep their history, and the faults that a plan asks for.
//!
//! ```text
//!   ensemble ── heard ──▶ clients ── history: linearizable?
//!            ◀── asks ──    ▲
//!            ◀── faults ── act(client), fault, heal: one queue of events in virtual time
//! ```
//! An operator replaces lost disks at moments of chance, and a seat may lose one after the other.
//! Never more than a minority is lost and not replaced, so after all has healed the rest must
//! answer again, and each seat must vote.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use replica::history::{History, OpId};
use replica::voter::{Client, Seat};
use replica::{Answer, Canary, Outcome, PairId, Register, RequestId, Swap, Version};

use super::Counts;
use super::ensemble::{Ensemble, Heard};
use super::network::Node;
use super::plan::Plan;
use crate::rng::Rng;

const PAIR: PairId = PairId([1; 16]);
/// How long all may take to answer again after everything has healed.
const HEALED_WITHIN: Duration = Duration::from_secs(10);
/// A cut that is mended by hand.
const LONG: Duration = Duration::from_secs(3600);

/// What must have happened somewhere in a suite of a hundred seeds.
pub const REQUIRED: &[&str] = &[
    "answers relayed around a cut",
    "clients cut from the leader",
    "clients restarted",
    "crashes while founding",
    "disks lost",
    "disks replaced",
    "images taken from a leader or a log begun anew",
    "kills",
    "leaders seen",
    "letters late",
    "letters lost",
    "letters twice",
    "links cut one way",
    "pauses",
    "power cuts of all",
    "power cuts of one",
    "reads",
    "reads relayed",
    "replacements asked for",
    "strangers",
    "swaps lost",
    "swaps lost, relayed",
    "swaps unknown",
    "swaps unknown that were carried out",
    "swaps won",
    "swaps won, relayed",
    "voters cut off",
    "writes lost",
    "writes torn",
    "writes whole, not answered",
];

/// A run that kept every promise.
#[derive(Debug)]
pub struct Report {
    /// What happened.
    pub counts: Counts,
    /// How many events.
    pub events: u64,
    /// All of them, in a number.
    pub trace: u64,
}

/// A run that did not.
#[derive(Debug)]
pub struct Failure {
    /// Which promise.
    pub what: String,
    /// After so much virtual time.
    pub after: Duration,
}

#[derive(Debug)]
enum Event {
    Act { client: usize, life: u64 },
    Fault,
    Mend,
    Heal,
    Operator,
}

struct Asker {
    client: Client,
    life: u64,
    /// What is asked now, and under which number.
    open: Option<(RequestId, OpId)>,
    known: Version,
    wins: u64,
}

struct World {
    plan: Plan,
    base: Instant,
    now: Instant,
    queue: BTreeMap<(Instant, u64), Event>,
    queued: u64,
    rng: Rng,
    ensemble: Ensemble,
    askers: Vec<Asker>,
    history: History,
    counts: Counts,
    canary: Option<Canary>,
    /// A disk was lost before all knew the ensemble: it may wait for an operator for ever.
    is_stuck: bool,
    healed: bool,
}

/// Runs a seed.
///
/// # Errors
/// A promise was broken.
pub fn run(base: Instant, seed: u64, canary: Option<Canary>) -> Result<Report, Failure> {
    let mut world = World::new(base, seed, canary);
    let mut events = 0;
    let result = world.carry_out(&mut events);
    let after = world.now.duration_since(base);
    result.map_err(|what| Failure { what, after })?;
    let mut counts = world.ensemble.counts();
    for (name, times) in &world.counts {
        *counts.entry(name).or_default() += times;
    }
    *counts.entry("swaps unknown that were carried out").or_default() += world.history.late;
    Ok(Report { counts, events, trace: world.ensemble.trace() })
}

impl World {
    fn new(base: Instant, seed: u64, canary: Option<Canary>) -> Self {
        let plan = Plan::draw(seed);
        let ensemble = Ensemble::new(base, seed, plan.conditions, canary);
        let asker = |_| Asker {
            client: Client::new(ensemble.seats(), 0),
            life: 0,
            open: None,
            known: Version::NONE,
            wins: 0,
        };
        let mut world = Self {
            base,
            now: base,
            queue: BTreeMap::new(),
            queued: 0,
            rng: Rng::stream(seed, "voters-world", 0),
            askers: (0..plan.clients).map(asker).collect(),
            ensemble,
            history: History::default(),
            counts: Counts::new(),
            canary,
            is_stuck: false,
            healed: false,
            plan,
        };
        (0..world.plan.clients).for_each(|client| world.begin_client(client));
        let calm = if world.plan.early { 0 } else { 1_500 };
        world.push(Duration::from_millis(calm + 1), Event::Fault);
        world.push(world.plan.operator_every, Event::Operator);
        world.push(Duration::from_millis(calm) + world.plan.faults_for, Event::Heal);
        world
    }

    fn carry_out(&mut self, events: &mut u64) -> Result<(), String> {
        let end = self.base + Duration::from_secs(2) + self.plan.faults_for + HEALED_WITHIN;
        loop {
            let own = self.queue.first_key_value().map(|((at, _), _)| *at);
            let theirs = self.ensemble.poll_timeout();
            let Some(at) = own.into_iter().chain(theirs).min().filter(|at| *at <= end) else {
                break;
            };
            *events += 1;
            self.now = at;
            if own == Some(at) {
                let (_, event) = self.queue.pop_first().expect("just seen");
                self.handle(event)?;
            } else {
                self.ensemble.step(at)?;
            }
            while let Some(heard) = self.ensemble.poll_heard() {
                self.heard(heard)?;
            }
            let answer = self.healed && self.askers.iter().all(|asker| asker.wins > 0);
            // A broken rule is to be noticed by what clients see.
            if answer && (self.is_stuck || self.canary.is_some() || self.ensemble.are_well()) {
                return Ok(());
            }
        }
        if self.is_stuck {
            return Ok(());
        }
        let standings = self.ensemble.standings();
        Err(format!("nobody answers {HEALED_WITHIN:?} after all has healed: {standings:?}"))
    }

    fn push(&mut self, after: Duration, event: Event) {
        self.queued += 1;
        self.queue.insert((self.now + after, self.queued), event);
    }

    fn count(&mut self, name: &'static str) {
        *self.counts.entry(name).or_default() += 1;
    }

    fn handle(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Act { client, life } => {
                if self.askers[client].life == life {
                    self.act(client)?;
                }
            }
            Event::Fault => self.fault(),
            Event::Mend => self.ensemble.mend(),
            Event::Operator => {
                let mean =
                    if self.healed { 200 } else { self.plan.operator_every.as_millis() as u64 };
                let after = Duration::from_millis(self.rng.between(1, 2 * mean));
                self.push(after, Event::Operator);
                self.ensemble.replace_strangers(self.now);
            }
            Event::Heal => {
                self.healed = true;
                self.push(Duration::from_millis(200), Event::Operator);
                self.ensemble.heal(self.now);
                self.askers.iter_mut().for_each(|asker| asker.wins = 0);
            }
        }
        Ok(())
    }

    // ---- faults --------------------------------------------------------------------------------

    fn fault(&mut self) {
        if self.healed {
            return;
        }
        let voters = self.plan.conditions.voters;
        let at = self.rng.index(voters);
        match self.rng.below(14) {
            0 | 1 => {
                self.count("kills");
                self.ensemble.crash(self.now, at, false);
            }
            2 => {
                self.count("power cuts of one");
                self.ensemble.crash(self.now, at, true);
            }
            3 => {
                self.count("power cuts of all");
                (0..voters).for_each(|at| self.ensemble.crash(self.now, at, true));
            }
            4 | 5 => {
                self.count("pauses");
                let pause = Duration::from_millis(self.rng.between(20, 2_000));
                self.ensemble.pause(at, self.now + pause);
            }
            6 => {
                self.count("voters cut off");
                self.cut_off(at);
            }
            7 | 8 => {
                self.count("links cut one way");
                let to = self.rng.index(voters + self.plan.clients);
                let to = to.checked_sub(voters).map_or(Node::Voter(to), Node::Client);
                self.ensemble.cut(Node::Voter(at), to, self.now + LONG);
            }
            9 => self.lose_disk(at),
            10 => {
                self.count("clients restarted");
                let client = self.rng.index(self.askers.len());
                self.begin_client(client);
            }
            11 | 12 => self.cut_from_leader(),
            _ => self.ensemble.mend(),
        }
        let mean = self.plan.fault_every.as_millis() as u64;
        let after = Duration::from_millis(self.rng.between(1, 2 * mean));
        self.push(after, Event::Fault);
    }

    fn cut_off(&mut self, at: usize) {
        self.ensemble.cut_off(at, self.now + LONG);
        let after = Duration::from_millis(self.rng.between(50, 3_000));
        self.push(after, Event::Mend);
    }

    /// The way between a client and the voter that leads is cut, nothing else.
    fn cut_from_leader(&mut self) {
        let Some(leader) = self.ensemble.leader() else { return };
        self.count("clients cut from the leader");
        let client = self.rng.index(self.askers.len());
        let (client, leader) = (Node::Client(client), Node::Voter(leader));
        for (from, to) in *self.rng.pick(&[
            &[(client, leader), (leader, client)][..],
            &[(client, leader)],
            &[(leader, client)],
        ]) {
            self.ensemble.cut(*from, *to, self.now + LONG);
        }
        let after = Duration::from_millis(self.rng.between(500, 4_000));
        self.push(after, Event::Mend);
    }

    /// A disk is exchanged for an empty one; often somebody else is cut off at that moment, so that
    /// the new disk's word would count.
    fn lose_disk(&mut self, at: usize) {
        let lost = self.ensemble.lost();
        if lost.contains(&at) || lost.len() >= self.plan.disks_lost_max {
            return;
        }
        self.is_stuck |= !self.ensemble.has_agreed();
        self.ensemble.lose_disk(self.now, at);
        if self.rng.one_in(2) {
            let leader = self.ensemble.leader();
            self.ensemble.mend();
            self.cut_off(leader.unwrap_or((at + 1) % self.plan.conditions.voters));
        }
    }

    // ---- clients -------------------------------------------------------------------------------

    /// A client begins, or begins anew and has forgotten everything.
    fn begin_client(&mut self, at: usize) {
        let mut client = Client::new(self.ensemble.seats(), self.rng.bits() >> 1);
        self.ensemble.up().for_each(|seat| client.handle_up(seat));
        let asker = &mut self.askers[at];
        asker.life += 1;
        asker.client = client;
        // What was open is never told: that is the same as unknown.
        asker.open = None;
        asker.known = Version::NONE;
        let life = asker.life;
        self.push(Duration::from_millis(1), Event::Act { client: at, life });
    }

    fn heard(&mut self, heard: Heard) -> Result<(), String> {
        match heard {
            Heard::Reply { client, life, from, bytes } => self.reply(client, life, from, &bytes),
            Heard::Up(seat) => {
                self.askers.iter_mut().for_each(|asker| asker.client.handle_up(seat));
                Ok(())
            }
            Heard::Down(seat) => {
                let now = self.now;
                self.askers.iter_mut().for_each(|asker| asker.client.handle_down(now, seat));
                Ok(())
            }
        }
    }

    fn reply(&mut self, to: usize, life: u64, from: Seat, bytes: &[u8]) -> Result<(), String> {
        let asker = &mut self.askers[to];
        if asker.life != life {
            return Ok(());
        }
        let read = asker.client.handle_reply(self.now, from, bytes);
        read.map_err(|error| format!("a reply: {error}"))?;
        self.hear(to)?;
        self.ask(to);
        Ok(())
    }

    /// The next operation, if none is open; else the time.
    fn act(&mut self, at: usize) -> Result<(), String> {
        let asker = &mut self.askers[at];
        asker.client.handle_time(self.now);
        self.hear(at)?;
        let asker = &mut self.askers[at];
        if asker.open.is_none() {
            let expect = (!self.rng.one_in(3)).then_some(asker.known);
            let op = self.history.ask(expect);
            let request = RequestId(op.0);
            asker.open = Some((request, op));
            match expect {
                None => asker.client.read(request, PAIR),
                Some(expect) => {
                    let value = History::value(op, self.plan.value_bytes);
                    asker.client.cas(request, Swap { pair: PAIR, expect, value });
                }
            }
        }
        self.ask(at);
        let life = self.askers[at].life;
        let after = Duration::from_micros(self.rng.between(500, 20_000));
        self.push(after, Event::Act { client: at, life });
        Ok(())
    }

    fn ask(&mut self, at: usize) {
        let life = self.askers[at].life;
        while let Some((to, bytes)) = self.askers[at].client.poll_question(self.now) {
            self.ensemble.ask(self.now, (at, life), to, &bytes);
        }
    }

    fn hear(&mut self, at: usize) -> Result<(), String> {
        while let Some(Answer { request, outcome }) = self.askers[at].client.poll_answer() {
            let asker = &mut self.askers[at];
            let (open, op) = asker.open.take().expect("it asked");
            assert_eq!(open, request, "one at a time");
            let name = match &outcome {
                Outcome::Stands(held) => {
                    asker.known = held.version;
                    "reads"
                }
                Outcome::Lost(held) => {
                    asker.known = held.version;
                    "swaps lost"
                }
                Outcome::Won(version) => {
                    asker.known = *version;
                    asker.wins += 1;
                    "swaps won"
                }
                Outcome::Unknown => "swaps unknown",
                Outcome::NotDone(_) => "questions not done",
            };
            self.count(name);
            self.history.tell(op, &outcome)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::voters::CANARIES;

    #[expect(clippy::disallowed_methods, reason = "the origin of virtual time")]
    fn base() -> Instant {
        Instant::now()
    }

    #[test]
    fn a_few_seeds_keep_every_promise_and_are_the_same_again() {
        for seed in 0..6 {
            let once = run(base(), seed, None).expect("a good run");
            let again = run(base(), seed, None).expect("a good run");
            assert_eq!((once.trace, once.events), (again.trace, again.events), "seed {seed}");
        }
    }

    #[test]
    fn every_canary_is_caught() {
        for (name, canary) in CANARIES {
            let caught = (0..120).any(|seed| run(base(), seed, Some(*canary)).is_err());
            assert!(caught, "{name} was not caught by 120 seeds");
        }
    }
}
