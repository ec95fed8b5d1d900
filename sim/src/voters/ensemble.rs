//! Voters with their disks and their links, hosted: whoever has questions puts them, and is told.
//!
//! ```text
//!   ask ──▶ question ──▶ Voter ──▶ letters ──▶ other voters      each directed link by itself
//!                        │   │└──▶ what is passed on, and the answers back
//!                        │   └───▶ writes ──▶ its file: lost, torn or there at a crash
//!   poll_heard ◀── reply ┘
//!
//!   event       letter, question, reply    what the network brings
//!               relayed, told              a question that was passed on; the answer to it
//!               written(life)              a disk is done; a life that is over is told nothing
//!               wake, start                a timeout, a process
//! ```
//! A voter that is paused gets everything when it goes on, late. At a kill what was handed to the
//! disk reaches it or does not, each whole; at a power cut it may also be torn in sectors. A lost
//! disk comes back formatted; an operator has the others put it in the place of the old one.
//!
//! Invariants: one event at a time, in the order of time; a reply is for the life of the client
//! that asked.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use replica::voter::{
    Ask, ClientId, Disks, Question, Recovered, Replacement, Reply, Says, Seat, Seats, Standing,
    Voter, VoterSeed, VoterUuid, WalWrite, format,
};
use replica::{Canary, Held, Outcome, PairId, RequestId};

use super::Counts;
use super::network::{Network, Node};
use super::plan::Conditions;
use crate::rng::Rng;

const SECTOR: usize = 512;
/// Clients that can ask: a client's number and its life share a word.
const CLIENTS_MAX: u64 = 16;
/// The operator, among the clients: nobody waits for what it is told.
const OPERATOR: usize = 15;
/// Where the numbers begin by which a voter knows others that pass something on to it.
const RELAYS_FROM: u64 = u64::MAX - 8;

/// What a client hears.
#[derive(Clone, Debug)]
pub(crate) enum Heard {
    /// A voter has answered.
    Reply { client: usize, life: u64, from: Seat, bytes: Vec<u8> },
    /// Everybody's link to this voter stands.
    Up(Seat),
    /// It broke.
    Down(Seat),
}

#[derive(Debug)]
enum Event {
    Letter { from: usize, to: usize, bytes: Vec<u8> },
    Question { to: usize, client: usize, life: u64, bytes: Vec<u8> },
    Reply { client: usize, life: u64, from: usize, bytes: Vec<u8> },
    Relayed { from: usize, to: usize, bytes: Vec<u8> },
    Told { from: usize, to: usize, bytes: Vec<u8> },
    Written { voter: usize, life: u64 },
    Wake { voter: usize, life: u64 },
    Start { voter: usize, life: u64 },
}

#[derive(Debug)]
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

/// All voters.
#[derive(Debug)]
pub(crate) struct Ensemble {
    conditions: Conditions,
    seats: Seats,
    seed: u64,
    canary: Option<Canary>,
    base: Instant,
    now: Instant,
    queue: BTreeMap<(Instant, u64), Event>,
    queued: u64,
    rng: Rng,
    network: Network,
    places: Vec<Place>,
    heard: VecDeque<Heard>,
    counts: Counts,
    trace: u64,
    healed: bool,
    /// The newest list of disks that a voter was seen with.
    newest: Option<Disks>,
}

impl Ensemble {
    /// Voters that are about to start, each on a new disk.
    pub(crate) fn new(
        base: Instant,
        seed: u64,
        conditions: Conditions,
        canary: Option<Canary>,
    ) -> Self {
        let place = |_| Place {
            voter: None,
            life: 0,
            file: Vec::new(),
            writes: VecDeque::new(),
            paused_until: base,
            woken_at: None,
            disks: 0,
        };
        let mut ensemble = Self {
            seats: Seats::new(conditions.voters).expect("an odd number"),
            seed,
            canary,
            base,
            now: base,
            queue: BTreeMap::new(),
            queued: 0,
            rng: Rng::stream(seed, "ensemble", 0),
            network: Network::new(seed, conditions),
            places: (0..conditions.voters).map(place).collect(),
            heard: VecDeque::new(),
            counts: Counts::new(),
            trace: 0,
            healed: false,
            newest: None,
            conditions,
        };
        for voter in 0..conditions.voters {
            ensemble.format(voter);
            let after = Duration::from_millis(ensemble.rng.below(300));
            ensemble.push(after, Event::Start { voter, life: 0 });
        }
        ensemble
    }

    // ---- getters -------------------------------------------------------------------------------

    /// How many there are.
    pub(crate) fn seats(&self) -> Seats {
        self.seats
    }

    /// Whose process runs: a new client's links to them stand.
    pub(crate) fn up(&self) -> impl Iterator<Item = Seat> {
        let running = self.places.iter().enumerate().filter(|(_, place)| place.voter.is_some());
        running.map(|(at, _)| seat(at))
    }

    /// How each of them is.
    pub(crate) fn standings(&self) -> Vec<Option<Standing>> {
        let standing = |place: &Place| place.voter.as_ref().map(|voter| voter.status().standing);
        self.places.iter().map(standing).collect()
    }

    /// Whether every disk knows who the others are: before that a lost one may wait for ever.
    pub(crate) fn has_agreed(&self) -> bool {
        self.places.iter().all(|place| {
            Recovered::read(&place.file).is_ok_and(|read| read.identity().disks.is_some())
        })
    }

    /// Who leads.
    pub(crate) fn leader(&self) -> Option<usize> {
        self.standings().iter().position(|standing| *standing == Some(Standing::Leader))
    }

    /// The newest that a running voter has applied; what stands may be newer.
    pub(crate) fn applied(&self, pair: PairId) -> Held {
        let voters = self.places.iter().filter_map(|place| place.voter.as_ref());
        let held = voters.filter_map(|voter| Some(voter.registers()?.get(pair)));
        held.max_by_key(|held| held.version).unwrap_or_default()
    }

    /// Everything that has happened, in a number.
    pub(crate) fn trace(&self) -> u64 {
        self.trace
    }

    /// When something happens next.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.queue.first_key_value().map(|((at, _), _)| *at)
    }

    // ---- inputs --------------------------------------------------------------------------------

    /// A client asks.
    pub(crate) fn ask(&mut self, now: Instant, from: (usize, u64), to: Seat, bytes: &[u8]) {
        self.now = now;
        let (client, life) = from;
        let to = usize::from(to.0) - 1;
        if let Some(delay) = self.network.once(now, Node::Client(client), Node::Voter(to)) {
            self.push(delay, Event::Question { to, client, life, bytes: bytes.to_vec() });
        }
    }

    /// One thing happens, if it is time; whether anything did.
    ///
    /// # Errors
    /// A promise was broken.
    pub(crate) fn step(&mut self, now: Instant) -> Result<bool, String> {
        if self.poll_timeout().is_none_or(|at| at > now) {
            return Ok(false);
        }
        let ((at, _), event) = self.queue.pop_first().expect("just seen");
        self.now = at.max(self.now);
        self.note(&event);
        self.handle(event)?;
        Ok(true)
    }

    /// What clients hear.
    pub(crate) fn poll_heard(&mut self) -> Option<Heard> {
        self.heard.pop_front()
    }

    // ---- faults --------------------------------------------------------------------------------

    /// The process ends; what was on its way to the disk arrives or does not.
    pub(crate) fn crash(&mut self, now: Instant, at: usize, power: bool) {
        self.now = now;
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
        for other in self.places.iter_mut().filter_map(|place| place.voter.as_mut()) {
            other.handle_relay_down(seat(at));
        }
        told.into_iter().for_each(|name| self.count(name));
        if founding {
            self.count("crashes while founding");
        }
        self.heard.push_back(Heard::Down(seat(at)));
        let after = Duration::from_millis(*self.rng.pick(&[1, 30, 400, 2_000]));
        self.push(after, Event::Start { voter: at, life });
    }

    /// A disk is exchanged for an empty one.
    pub(crate) fn lose_disk(&mut self, now: Instant, at: usize) {
        self.count("disks lost");
        self.crash(now, at, true);
        self.format(at);
    }

    /// Seats whose disk is not one that the others count on, or whose last one they still count on.
    pub(crate) fn lost(&mut self) -> Vec<usize> {
        let seen = self.places.iter().filter_map(|place| place.voter.as_ref()?.status().disks);
        let progress = |disks: &Disks| (disks.replacements(), !disks.is_changing());
        let before = self.newest.as_ref().map_or(0, Disks::replacements);
        self.newest = seen.chain(self.newest.take()).max_by_key(progress);
        let after = self.newest.as_ref().map_or(0, Disks::replacements);
        *self.counts.entry("disks replaced").or_default() += after - before;
        let is_lost = |at: &usize| {
            let place = &self.places[*at];
            let mine = Some(disk(*at, place.disks));
            self.newest.as_ref().map_or(place.disks > 1, |disks| {
                disks.of(seat(*at)) != mine || disks.is_changing() && place.disks > 1
            })
        };
        (0..self.places.len()).filter(is_lost).collect()
    }

    /// Whether everybody votes.
    pub(crate) fn are_well(&mut self) -> bool {
        let votes = |standing: &Option<Standing>| {
            matches!(standing, Some(Standing::Follower | Standing::Leader))
        };
        self.standings().iter().all(votes) && self.lost().is_empty()
    }

    /// Who says that he has a new disk is put in his seat, by whoever leads.
    pub(crate) fn replace_strangers(&mut self, now: Instant) {
        let Some(leader) = self.leader() else { return };
        let known = self.places[leader].voter.as_ref().and_then(|voter| voter.status().disks);
        let Some(known) = known else { return };
        for at in 0..self.places.len() {
            let status = self.places[at].voter.as_ref().map(Voter::status);
            let Some(status) = status.filter(|s| s.standing == Standing::Stranger) else {
                continue;
            };
            let old = known.of(seat(at)).expect("a seat");
            let ask = Ask::Replace(Replacement { seat: seat(at), old, new: status.uuid });
            let bytes = Question { request: RequestId(1), ask }.encode();
            self.count("replacements asked for");
            self.ask(now, (OPERATOR, 0), seat(leader), &bytes);
        }
    }

    /// It stands still before.
    pub(crate) fn pause(&mut self, at: usize, until: Instant) {
        self.places[at].paused_until = until;
    }

    /// Nothing that is sent in this direction arrives, before.
    pub(crate) fn cut(&mut self, from: Node, to: Node, until: Instant) {
        self.network.cut(from, to, until);
    }

    /// Between one voter and all others.
    pub(crate) fn cut_off(&mut self, at: usize, until: Instant) {
        for other in (0..self.places.len()).filter(|other| *other != at) {
            self.network.cut(Node::Voter(at), Node::Voter(other), until);
            self.network.cut(Node::Voter(other), Node::Voter(at), until);
        }
    }

    /// What is sent in this direction takes so much longer.
    pub(crate) fn slow_down(&mut self, from: Node, to: Node, by: Duration) {
        self.network.slow_down(from, to, by);
    }

    /// All cuts are mended.
    pub(crate) fn mend(&mut self) {
        self.network.mend();
    }

    /// Nothing goes wrong any more, and everybody starts.
    pub(crate) fn heal(&mut self, now: Instant) {
        if std::mem::replace(&mut self.healed, true) {
            return;
        }
        self.now = now;
        self.network.heal();
        self.places.iter_mut().for_each(|place| place.paused_until = now);
        for voter in 0..self.places.len() {
            let life = self.places[voter].life;
            self.push(Duration::from_millis(10), Event::Start { voter, life });
        }
    }

    /// What has happened, counted by name.
    pub(crate) fn counts(&self) -> Counts {
        let mut counts = self.counts.clone();
        let statuses: Vec<_> =
            self.places.iter().filter_map(|place| Some(place.voter.as_ref()?.status())).collect();
        let terms = statuses.iter().map(|status| status.term).max().unwrap_or(0);
        let is_stranger =
            |status: &&replica::voter::VoterStatus| status.standing == Standing::Stranger;
        for (name, times) in [
            ("leaders seen", terms),
            ("strangers", statuses.iter().filter(is_stranger).count() as u64),
            ("letters lost", self.network.lost),
            ("letters twice", self.network.repeated),
            ("letters late", self.network.late),
        ] {
            *counts.entry(name).or_default() += times;
        }
        counts
    }

    // ---- details -------------------------------------------------------------------------------

    fn note(&mut self, event: &Event) {
        let (kind, who, len) = match event {
            Event::Letter { to, bytes, .. } => (1, *to, bytes.len()),
            Event::Question { to, client, bytes, .. } => (2, to * 16 + client, bytes.len()),
            Event::Reply { client, from, bytes, .. } => (3, client * 16 + from, bytes.len()),
            Event::Relayed { from, to, bytes } => (7, to * 16 + from, bytes.len()),
            Event::Told { from, to, bytes } => (8, to * 16 + from, bytes.len()),
            Event::Written { voter, .. } => (4, *voter, 0),
            Event::Wake { voter, .. } => (5, *voter, 0),
            Event::Start { voter, .. } => (6, *voter, 0),
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

    /// Answers that came by way of a voter that does not lead.
    fn count_relayed(&mut self, client: usize, from: usize, bytes: &[u8]) {
        let Ok(Reply { leader: Some(leader), says, .. }) = Reply::decode(bytes) else { return };
        let leader_at = usize::from(leader.0) - 1;
        if leader_at == from {
            return;
        }
        let name = match says {
            Says::Outcome(Outcome::Stands(_)) => "reads relayed",
            Says::Outcome(Outcome::Won(_)) => "swaps won, relayed",
            Says::Outcome(Outcome::Lost(_)) => "swaps lost, relayed",
            Says::Outcome(Outcome::Unknown | Outcome::NotDone(_)) | Says::Status(_) => return,
        };
        self.count(name);
        let (client, leader) = (Node::Client(client), Node::Voter(leader_at));
        let cut = |from, to| self.network.is_cut(self.now, from, to);
        if cut(client, leader) || cut(leader, client) {
            self.count("answers relayed around a cut");
        }
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
                    let from = ClientId(client as u64 + life * CLIENTS_MAX);
                    let voter = self.places[to].voter.as_mut().expect("it is awake");
                    let read = voter.handle_question(from, &bytes);
                    read.map_err(|error| format!("a question: {error}"))?;
                }
                self.serve(to)?;
            }
            Event::Relayed { from, to, bytes } => {
                if self.is_awake(to, |bytes| Event::Relayed { from, to, bytes }, &bytes) {
                    let voter = self.places[to].voter.as_mut().expect("it is awake");
                    let read = voter.handle_relayed(ClientId(RELAYS_FROM + from as u64), &bytes);
                    read.map_err(|error| format!("a question that was passed on: {error}"))?;
                }
                self.serve(to)?;
            }
            Event::Told { from, to, bytes } => {
                if self.is_awake(to, |bytes| Event::Told { from, to, bytes }, &bytes) {
                    let voter = self.places[to].voter.as_mut().expect("it is awake");
                    let read = voter.handle_relay_reply(seat(from), &bytes);
                    read.map_err(|error| format!("a reply to what was passed on: {error}"))?;
                }
                self.serve(to)?;
            }
            Event::Reply { client: OPERATOR, .. } => {}
            Event::Reply { client, life, from, bytes } => {
                self.count_relayed(client, from, &bytes);
                let from = seat(from);
                self.heard.push_back(Heard::Reply { client, life, from, bytes });
            }
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
            Event::Start { voter, life } => {
                if self.places[voter].life == life && self.places[voter].voter.is_none() {
                    self.start(voter)?;
                }
            }
        }
        Ok(())
    }

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
        let letters: Vec<_> = std::iter::from_fn(|| voter.poll_letter()).collect();
        let replies: Vec<_> = std::iter::from_fn(|| voter.poll_reply()).collect();
        let relays: Vec<_> = std::iter::from_fn(|| voter.poll_relay()).collect();
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
            for delay in self.network.fate(self.now, Node::Voter(at), Node::Voter(to)) {
                self.push(delay, Event::Letter { from: at, to, bytes: bytes.clone() });
            }
        }
        for (to, bytes) in relays {
            let to = usize::from(to.0) - 1;
            if let Some(delay) = self.network.once(self.now, Node::Voter(at), Node::Voter(to)) {
                self.push(delay, Event::Relayed { from: at, to, bytes });
            }
        }
        for (to, bytes) in replies {
            if let Some(to) = to.0.checked_sub(RELAYS_FROM) {
                let to = to as usize;
                for delay in self.network.fate(self.now, Node::Voter(at), Node::Voter(to)) {
                    self.push(delay, Event::Told { from: at, to, bytes: bytes.clone() });
                }
                continue;
            }
            let (client, life) = ((to.0 % CLIENTS_MAX) as usize, to.0 / CLIENTS_MAX);
            for delay in self.network.fate(self.now, Node::Voter(at), Node::Client(client)) {
                self.push(delay, Event::Reply { client, life, from: at, bytes: bytes.clone() });
            }
        }
        for _ in 0..writes {
            let hangs = !self.healed && self.rng.one_in(500);
            let us = if hangs { 900_000 } else { self.conditions.write_us_max };
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
            // The bytes are there; the process hears of it later. Nothing further is under way, so
            // the next one says only that this one has ended.
            let wait = place.paused_until - self.now;
            self.push(wait, Event::Written { voter: at, life });
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
        let uuid = disk(at, place.disks);
        let WalWrite::Replace { bytes } = format(seat(at), self.seats, uuid) else {
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
        let mut voter = match self.canary {
            Some(canary) => Voter::broken(recovered, seed, canary),
            None => Voter::new(recovered, seed),
        };
        place.woken_at = None;
        for (of, place) in self.places.iter_mut().enumerate() {
            let Some(other) = &mut place.voter else { continue };
            other.handle_relay_up(seat(at));
            voter.handle_relay_up(seat(of));
        }
        self.places[at].voter = Some(voter);
        self.heard.push_back(Heard::Up(seat(at)));
        self.serve(at)
    }
}

fn seat(at: usize) -> Seat {
    Seat(u8::try_from(at + 1).expect("seven at most"))
}

/// The number of a seat's disk, by how many it has had.
fn disk(at: usize, disks: u8) -> VoterUuid {
    let mut uuid = [disks; 16];
    uuid[0] = u8::try_from(at).expect("seven at most");
    VoterUuid(uuid)
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
