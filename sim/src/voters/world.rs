//! The run: one queue of events in virtual time, and the faults that a plan asks for.
//!
//! ```text
//!   event       letter, question, reply    what the network brings
//!               written(life)              a disk is done; a life that is over is told nothing
//!               wake(voter), act(client)   a timeout, the next operation
//!               fault, mend, start, heal   the nemesis
//! ```
//! A voter that is paused gets everything when it goes on, late. At a kill what was handed to the
//! disk reaches it or does not, each whole; at a power cut it may also be torn in sectors. A lost
//! disk comes back formatted. Never more disks are lost than a minority, so after all has healed
//! the rest must answer again.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use replica::history::{History, OpId};
use replica::voter::{
    Client, ClientId, Recovered, Seat, Seats, Standing, Voter, VoterSeed, VoterUuid, WalWrite,
    format,
};
use replica::{Answer, Canary, Outcome, PairId, Register, RequestId, Swap, Version};

use super::Counts;
use super::network::{Network, Node};
use super::plan::Plan;
use crate::rng::Rng;

const PAIR: PairId = PairId([1; 16]);
const SECTOR: usize = 512;
/// How long all may take to answer again after everything has healed.
const HEALED_WITHIN: Duration = Duration::from_secs(10);

/// What must have happened somewhere in a suite of a hundred seeds.
pub const REQUIRED: &[&str] = &[
    "clients restarted",
    "crashes while founding",
    "disks lost",
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
    "strangers",
    "swaps lost",
    "swaps unknown",
    "swaps unknown that were carried out",
    "swaps won",
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
    Letter { from: usize, to: usize, bytes: Vec<u8> },
    Question { to: usize, client: usize, life: u64, bytes: Vec<u8> },
    Reply { to: usize, life: u64, from: usize, bytes: Vec<u8> },
    Written { voter: usize, life: u64 },
    Wake { voter: usize, life: u64 },
    Act { client: usize, life: u64 },
    Fault,
    Mend,
    Start { voter: usize, life: u64 },
    Heal,
}

struct Place {
    voter: Option<Voter>,
    life: u64,
    file: Vec<u8>,
    /// Handed out, not ended, the oldest first.
    writes: VecDeque<WalWrite>,
    paused_until: Instant,
    woken_at: Option<Instant>,
    disks: u8,
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
    seed: u64,
    canary: Option<Canary>,
    base: Instant,
    now: Instant,
    queue: BTreeMap<(Instant, u64), Event>,
    queued: u64,
    rng: Rng,
    network: Network,
    places: Vec<Place>,
    askers: Vec<Asker>,
    history: History,
    counts: Counts,
    trace: u64,
    disks_lost: usize,
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
    world.sum_up();
    Ok(Report { counts: world.counts, events, trace: world.trace })
}

impl World {
    fn new(base: Instant, seed: u64, canary: Option<Canary>) -> Self {
        let plan = Plan::draw(seed);
        let seats = Seats::new(plan.voters).expect("an odd number");
        let mut world = Self {
            seed,
            canary,
            base,
            now: base,
            queue: BTreeMap::new(),
            queued: 0,
            rng: Rng::stream(seed, "voters-world", 0),
            network: Network::new(seed),
            places: Vec::new(),
            askers: Vec::new(),
            history: History::default(),
            counts: Counts::new(),
            trace: 0,
            disks_lost: 0,
            is_stuck: false,
            healed: false,
            plan,
        };
        for voter in 0..world.plan.voters {
            world.places.push(Place {
                voter: None,
                life: 0,
                file: Vec::new(),
                writes: VecDeque::new(),
                paused_until: base,
                woken_at: None,
                disks: 0,
            });
            world.format(voter);
            let after = Duration::from_millis(world.rng.below(300));
            world.push(after, Event::Start { voter, life: 0 });
        }
        for client in 0..world.plan.clients {
            let asker = Asker {
                client: Client::new(seats, 0),
                life: 0,
                open: None,
                known: Version::NONE,
                wins: 0,
            };
            world.askers.push(asker);
            world.begin_client(client);
        }
        let calm = if world.plan.early { 0 } else { 1_500 };
        world.push(Duration::from_millis(calm + 1), Event::Fault);
        world.push(Duration::from_millis(calm) + world.plan.faults_for, Event::Heal);
        world
    }

    fn carry_out(&mut self, events: &mut u64) -> Result<(), String> {
        let end = self.base + Duration::from_secs(2) + self.plan.faults_for + HEALED_WITHIN;
        while let Some(((at, _), event)) = self.queue.pop_first() {
            if at > end {
                break;
            }
            *events += 1;
            self.now = at;
            self.note(&event);
            self.handle(event)?;
            if self.healed && self.askers.iter().all(|asker| asker.wins > 0) {
                return Ok(());
            }
        }
        if self.is_stuck {
            return Ok(());
        }
        let standing: Vec<_> = self
            .places
            .iter()
            .map(|place| place.voter.as_ref().map(|voter| voter.status().standing))
            .collect();
        Err(format!("nobody answers {HEALED_WITHIN:?} after all has healed: {standing:?}"))
    }

    fn note(&mut self, event: &Event) {
        let (kind, who, len) = match event {
            Event::Letter { to, bytes, .. } => (1, *to, bytes.len()),
            Event::Question { to, client, bytes, .. } => (2, to * 16 + client, bytes.len()),
            Event::Reply { to, from, bytes, .. } => (3, to * 16 + from, bytes.len()),
            Event::Written { voter, .. } => (4, *voter, 0),
            Event::Wake { voter, .. } => (5, *voter, 0),
            Event::Act { client, .. } => (6, *client, 0),
            Event::Fault => (7, 0, 0),
            Event::Mend => (8, 0, 0),
            Event::Start { voter, .. } => (9, *voter, 0),
            Event::Heal => (10, 0, 0),
        };
        let at = self.now.duration_since(self.base).as_nanos() as u64;
        for word in [at, kind, who as u64, len as u64] {
            self.trace = (self.trace.rotate_left(9) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
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
            Event::Letter { from, to, bytes } => {
                if self.is_awake(to, |bytes| Event::Letter { from, to, bytes }, &bytes) {
                    let voter = self.places[to].voter.as_mut().expect("it is awake");
                    voter
                        .handle_letter(seat(from), &bytes)
                        .map_err(|error| format!("a letter: {error}"))?;
                }
                self.serve(to)?;
            }
            Event::Question { to, client, life, bytes } => {
                let again = |bytes| Event::Question { to, client, life, bytes };
                if self.is_awake(to, again, &bytes) {
                    let from = ClientId(client as u64 + life * 16);
                    let voter = self.places[to].voter.as_mut().expect("it is awake");
                    let read = voter.handle_question(from, &bytes);
                    read.map_err(|error| format!("a question: {error}"))?;
                }
                self.serve(to)?;
            }
            Event::Reply { to, life, from, bytes } => self.reply(to, life, from, &bytes)?,
            Event::Written { voter, life } => {
                if self.places[voter].life == life {
                    self.written(voter, life)?;
                }
            }
            Event::Wake { voter, life } => {
                if self.places[voter].life == life {
                    self.places[voter].woken_at = None;
                    self.serve(voter)?;
                }
            }
            Event::Act { client, life } => {
                if self.askers[client].life == life {
                    self.act(client)?;
                }
            }
            Event::Fault => self.fault(),
            Event::Mend => self.network.mend(),
            Event::Start { voter, life } => {
                if self.places[voter].life == life && self.places[voter].voter.is_none() {
                    self.start(voter)?;
                }
            }
            Event::Heal => self.heal(),
        }
        Ok(())
    }

    // ---- voters --------------------------------------------------------------------------------

    /// Whether it runs and is not paused; what comes during a pause is brought again after it.
    fn is_awake(&mut self, to: usize, again: impl Fn(Vec<u8>) -> Event, bytes: &[u8]) -> bool {
        let place = &self.places[to];
        if place.voter.is_none() {
            return false;
        }
        let until = place.paused_until;
        if until > self.now {
            self.push(until - self.now, again(bytes.to_vec()));
            return false;
        }
        true
    }

    /// Tells a voter the time and carries off what it has for others.
    fn serve(&mut self, at: usize) -> Result<(), String> {
        let place = &mut self.places[at];
        let Some(voter) = &mut place.voter else { return Ok(()) };
        let life = place.life;
        if place.paused_until > self.now {
            let wait = place.paused_until - self.now;
            self.push(wait, Event::Wake { voter: at, life });
            return Ok(());
        }
        voter.handle_time(self.now);
        if voter.has_forgotten() {
            return Err(format!("voter {} has forgotten what it acknowledged", at + 1));
        }
        let mut letters = Vec::new();
        let mut replies = Vec::new();
        while let Some(letter) = voter.poll_letter() {
            letters.push(letter);
        }
        while let Some(reply) = voter.poll_reply() {
            replies.push(reply);
        }
        let mut writes = 0;
        while let Some(write) = voter.poll_write() {
            if matches!(write, WalWrite::Replace { .. }) && voter.status().term > 0 {
                let name = "images taken from a leader or a log begun anew";
                *self.counts.entry(name).or_default() += 1;
            }
            place.writes.push_back(write);
            writes += 1;
        }
        let wake = voter.poll_timeout().filter(|at| place.woken_at != Some(*at));
        place.woken_at = wake.or(place.woken_at);
        for (to, bytes) in letters {
            let to = usize::from(to.0) - 1;
            for delay in self.network.fate(&self.plan, Node::Voter(at), Node::Voter(to)) {
                self.push(delay, Event::Letter { from: at, to, bytes: bytes.clone() });
            }
        }
        for (to, bytes) in replies {
            let (to, life) = ((to.0 % 16) as usize, to.0 / 16);
            for delay in self.network.fate(&self.plan, Node::Voter(at), Node::Client(to)) {
                self.push(delay, Event::Reply { to, life, from: at, bytes: bytes.clone() });
            }
        }
        for _ in 0..writes {
            let hangs = !self.healed && self.rng.one_in(500);
            let us = if hangs { 900_000 } else { self.plan.write_us_max };
            let after = Duration::from_micros(self.rng.between(40, us));
            self.push(after, Event::Written { voter: at, life });
        }
        if let Some(wake) = wake {
            let after = wake.saturating_duration_since(self.now);
            self.push(after, Event::Wake { voter: at, life });
        }
        Ok(())
    }

    fn written(&mut self, at: usize, life: u64) -> Result<(), String> {
        let place = &mut self.places[at];
        // The disk is done whether or not the process looks.
        if let Some(write) = place.writes.pop_front() {
            carry_out(&mut place.file, &write);
        }
        if place.paused_until > self.now {
            // The bytes are there; the process hears of it later.
            let wait = place.paused_until - self.now;
            self.push(wait, Event::Written { voter: at, life });
            // Nothing further is under way, so the next one says only that this one has ended.
            return Ok(());
        }
        if let Some(voter) = &mut place.voter {
            voter.handle_written();
        }
        self.serve(at)
    }

    fn format(&mut self, at: usize) {
        let place = &mut self.places[at];
        place.disks += 1;
        let mut uuid = [place.disks; 16];
        uuid[0] = u8::try_from(at).expect("seven at most");
        let seats = Seats::new(self.plan.voters).expect("an odd number");
        let WalWrite::Replace { bytes } = format(seat(at), seats, VoterUuid(uuid)) else {
            unreachable!("a new log is a whole file")
        };
        place.file = bytes;
    }

    fn start(&mut self, at: usize) -> Result<(), String> {
        let place = &mut self.places[at];
        let recovered = Recovered::read(&place.file)
            .map_err(|error| format!("voter {} can't read its log: {error}", at + 1))?;
        let start = self.rng.bits();
        let seed = VoterSeed { elections: self.seed ^ (at as u64) << 32, start };
        place.voter = Some(match self.canary {
            Some(canary) => Voter::broken(recovered, seed, canary),
            None => Voter::new(recovered, seed),
        });
        place.woken_at = None;
        self.askers.iter_mut().for_each(|asker| asker.client.handle_up(seat(at)));
        self.serve(at)
    }

    /// The process ends; what was on its way to the disk arrives or does not.
    fn crash(&mut self, at: usize, power: bool) {
        let now = self.now;
        let place = &mut self.places[at];
        let Some(voter) = place.voter.take() else { return };
        let founding = voter.status().standing == Standing::Founding;
        place.life += 1;
        place.paused_until = now;
        let writes = std::mem::take(&mut place.writes);
        let mut told = Vec::new();
        for write in writes {
            told.push(leave(&mut place.file, &write, power, &mut self.rng));
        }
        let life = place.life;
        told.into_iter().for_each(|name| self.count(name));
        if founding {
            self.count("crashes while founding");
        }
        self.askers.iter_mut().for_each(|asker| asker.client.handle_down(now, seat(at)));
        let after = Duration::from_millis(*self.rng.pick(&[1, 30, 400, 2_000]));
        self.push(after, Event::Start { voter: at, life });
    }

    // ---- faults --------------------------------------------------------------------------------

    fn fault(&mut self) {
        if self.healed {
            return;
        }
        let voters = self.plan.voters;
        let at = self.rng.index(voters);
        match self.rng.below(12) {
            0 | 1 => {
                self.count("kills");
                self.crash(at, false);
            }
            2 => {
                self.count("power cuts of one");
                self.crash(at, true);
            }
            3 => {
                self.count("power cuts of all");
                (0..voters).for_each(|at| self.crash(at, true));
            }
            4 | 5 => {
                self.count("pauses");
                let pause = Duration::from_millis(self.rng.between(20, 2_000));
                self.places[at].paused_until = self.now + pause;
            }
            6 => {
                self.count("voters cut off");
                self.cut_off(at);
            }
            7 | 8 => {
                self.count("links cut one way");
                let to = self.rng.index(voters + self.plan.clients);
                let to = to.checked_sub(voters).map_or(Node::Voter(to), Node::Client);
                self.network.cut(Node::Voter(at), to);
            }
            9 => self.lose_disk(at),
            10 => {
                self.count("clients restarted");
                let client = self.rng.index(self.askers.len());
                self.begin_client(client);
            }
            _ => self.network.mend(),
        }
        let mean = self.plan.fault_every.as_millis() as u64;
        let after = Duration::from_millis(self.rng.between(1, 2 * mean));
        self.push(after, Event::Fault);
    }

    fn cut_off(&mut self, at: usize) {
        for other in (0..self.plan.voters).filter(|other| *other != at) {
            self.network.cut(Node::Voter(at), Node::Voter(other));
            self.network.cut(Node::Voter(other), Node::Voter(at));
        }
        let after = Duration::from_millis(self.rng.between(50, 3_000));
        self.push(after, Event::Mend);
    }

    /// A disk is exchanged for an empty one; often somebody else is cut off at that moment, so that
    /// the new disk's word would count.
    fn lose_disk(&mut self, at: usize) {
        if self.disks_lost == self.plan.disks_lost_max {
            return;
        }
        self.disks_lost += 1;
        self.count("disks lost");
        let all_agreed = self.places.iter().all(|place| {
            Recovered::read(&place.file).is_ok_and(|read| read.identity().disks.is_some())
        });
        self.is_stuck |= !all_agreed;
        self.crash(at, true);
        self.format(at);
        if self.rng.one_in(2) {
            let leader = self.leader();
            self.network.mend();
            self.cut_off(leader.unwrap_or((at + 1) % self.plan.voters));
        }
    }

    fn leader(&self) -> Option<usize> {
        self.places.iter().position(|place| {
            place.voter.as_ref().is_some_and(|v| v.status().standing == Standing::Leader)
        })
    }

    fn heal(&mut self) {
        self.healed = true;
        self.network.heal();
        self.places.iter_mut().for_each(|place| place.paused_until = self.now);
        for at in 0..self.plan.voters {
            let life = self.places[at].life;
            self.push(Duration::from_millis(10), Event::Start { voter: at, life });
        }
        self.askers.iter_mut().for_each(|asker| asker.wins = 0);
    }

    // ---- clients -------------------------------------------------------------------------------

    /// A client begins, or begins anew and has forgotten everything.
    fn begin_client(&mut self, at: usize) {
        let seats = Seats::new(self.plan.voters).expect("an odd number");
        let mut client = Client::new(seats, self.rng.bits() >> 1);
        for (voter, place) in self.places.iter().enumerate() {
            if place.voter.is_some() {
                client.handle_up(seat(voter));
            }
        }
        let asker = &mut self.askers[at];
        asker.life += 1;
        asker.client = client;
        // What was open is never told: that is the same as unknown.
        asker.open = None;
        asker.known = Version::NONE;
        let life = asker.life;
        self.push(Duration::from_millis(1), Event::Act { client: at, life });
    }

    fn reply(&mut self, to: usize, life: u64, from: usize, bytes: &[u8]) -> Result<(), String> {
        let asker = &mut self.askers[to];
        if asker.life != life {
            return Ok(());
        }
        let read = asker.client.handle_reply(self.now, seat(from), bytes);
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
            let to = usize::from(to.0) - 1;
            for delay in self.network.fate(&self.plan, Node::Client(at), Node::Voter(to)) {
                let bytes = bytes.clone();
                self.push(delay, Event::Question { to, client: at, life, bytes });
            }
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

    fn sum_up(&mut self) {
        let leaders = self.places.iter().filter_map(|place| place.voter.as_ref());
        let terms = leaders.map(|voter| voter.status().term).max().unwrap_or(0);
        let strangers = self.places.iter().filter_map(|place| place.voter.as_ref());
        let strangers =
            strangers.filter(|voter| voter.status().standing == Standing::Stranger).count();
        for (name, times) in [
            ("leaders seen", terms),
            ("strangers", strangers as u64),
            ("letters lost", self.network.lost),
            ("letters twice", self.network.repeated),
            ("letters late", self.network.late),
            ("swaps unknown that were carried out", self.history.late),
        ] {
            *self.counts.entry(name).or_default() += times;
        }
    }
}

fn seat(at: usize) -> Seat {
    Seat(u8::try_from(at + 1).expect("seven at most"))
}

fn carry_out(file: &mut Vec<u8>, write: &WalWrite) {
    match write {
        WalWrite::Replace { bytes } => file.clone_from(bytes),
        WalWrite::Append { offset, bytes } => put(file, *offset as usize, bytes),
    }
}

fn put(file: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    file[offset..end].copy_from_slice(bytes);
}

/// What a write that had not ended leaves behind, and how that is called.
fn leave(file: &mut Vec<u8>, write: &WalWrite, power: bool, rng: &mut Rng) -> &'static str {
    match (rng.below(if power { 3 } else { 2 }), write) {
        (0, _) => "writes lost",
        // A file that takes another's name does so wholly or not.
        (1, _) | (_, WalWrite::Replace { .. }) => {
            carry_out(file, write);
            "writes whole, not answered"
        }
        (_, WalWrite::Append { offset, bytes }) => {
            for (at, sector) in bytes.chunks(SECTOR).enumerate() {
                if rng.one_in(2) {
                    put(file, *offset as usize + at * SECTOR, sector);
                }
            }
            "writes torn"
        }
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
            let caught = (0..60).any(|seed| run(base(), seed, Some(*canary)).is_err());
            assert!(caught, "{name} was not caught by sixty seeds");
        }
    }
}
