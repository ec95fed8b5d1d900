//! One voter, sans-IO: a small durable memory that agrees with the others on what stands.
//!
//! ```text
//!             handle_letter   handle_question   handle_time     handle_written
//!                   │                │               │                │
//!   a new disk      ▼                ▼               ▼                ▼
//!   ┌─ founding ── who has which disk?   (founding)     every seat heard ──▶ agreed, written
//!   │                                                   put in a seat    ──▶    │
//!   └─ member ◀─────────────────────────────────────────────────────────────────┘
//!        the engine: raft, the log, the registers      (engine, store, wal)
//!                   │                │                                │
//!                   ▼                ▼                                ▼
//!             poll_letter        poll_reply                      poll_write
//! ```
//! A question that comes to one that follows is passed on to the one that leads (`relay`):
//! `poll_relay` there, `handle_relay_reply` back, and the leader is given it by `handle_relayed`.
//!
//! Invariants: one write is under way at a time, and nothing that rests on it leaves before it has
//! ended. A voter answers whoever asks; that only a member or a broker can ask is its host's duty.
//! A write that fails ends the process: a voter that can't remember must not speak.

mod client;
mod engine;
mod founding;
mod frame;
mod letter;
mod question;
mod relay;
mod seats;
mod store;
mod wal;

use std::collections::VecDeque;
use std::time::Instant;

use journal::mix64;

use crate::canary::{Canaries, Canary};
use crate::codec::WireError;
use crate::limits::{ELECTION_TICKS, TICK};
use crate::register::{NotDone, Outcome, Registers};

pub use client::Client;
pub use frame::{Frames, PREFACE_BYTES, Preface, frame};
pub use question::{Ask, Question, Reply, Says, Standing, VoterStatus};
pub use seats::{Disks, EnsembleTag, Replacement, Seat, Seats, SeatsError, VoterUuid};
pub use wal::{Identity, Recovered, WalError, WalWrite};

use engine::Engine;
use founding::{Finding, Founding, Heard};
use letter::{Body, Letter};
use relay::Relays;
use store::Store;
use wal::Wal;

/// A client's connection, as the host numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClientId(pub u64);

/// What a voter asks of its host.
#[derive(Debug, Default)]
struct Outputs {
    letters: VecDeque<(Seat, Vec<u8>)>,
    replies: VecDeque<(ClientId, Vec<u8>)>,
    writes: VecDeque<WalWrite>,
}

#[derive(Debug)]
enum Phase {
    /// The disk belongs to no ensemble.
    Founding { founding: Founding, recovered: Recovered, ticks_to_hello: usize },
    /// The ensemble is being written down.
    Agreeing(Option<Recovered>),
    /// It votes.
    Member(Box<Engine>),
}

/// Chance, from the host.
#[derive(Clone, Copy, Debug)]
pub struct VoterSeed {
    /// Of the election timeouts; another on each voter.
    pub elections: u64,
    /// Of this start: never the same twice.
    pub start: u64,
}

/// One voter.
#[derive(Debug)]
pub struct Voter {
    phase: Phase,
    seed: VoterSeed,
    tick_at: Option<Instant>,
    foreign: u64,
    relays: Relays,
    out: Outputs,
    canaries: Canaries,
}

/// The log of a new disk: what a host writes before the first start.
#[must_use]
pub fn format(seat: Seat, seats: Seats, uuid: VoterUuid) -> WalWrite {
    let identity = Identity { seat, seats, uuid, disks: None };
    Wal::new(uuid).base(&identity, &Store::default())
}

impl Voter {
    /// A voter whose log says this.
    #[must_use]
    pub fn new(recovered: Recovered, seed: VoterSeed) -> Self {
        Self::start(recovered, seed, Canaries::default())
    }

    /// A voter that breaks a rule.
    #[cfg(feature = "canary")]
    #[must_use]
    pub fn broken(recovered: Recovered, seed: VoterSeed, canary: Canary) -> Self {
        Self::start(recovered, seed, Canaries { broken: Some(canary) })
    }

    fn start(recovered: Recovered, seed: VoterSeed, canaries: Canaries) -> Self {
        let identity = recovered.identity();
        let phase = if identity.disks.is_some() {
            Phase::Member(Box::new(Engine::new(recovered, seed.elections, canaries)))
        } else {
            let founding = Founding::new(identity.seats, identity.seat, identity.uuid, seed.start);
            Phase::Founding { founding, recovered, ticks_to_hello: 1 }
        };
        let relays = Relays::new(mix64(seed.start), canaries);
        let (tick_at, out) = (None, Outputs::default());
        Self { phase, seed, tick_at, foreign: 0, relays, out, canaries }
    }

    // ---- getters -------------------------------------------------------------------------------

    /// Who this is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        match &self.phase {
            Phase::Founding { recovered, .. } => recovered.identity(),
            Phase::Agreeing(recovered) => {
                recovered.as_ref().expect("held until written").identity()
            }
            Phase::Member(engine) => engine.identity(),
        }
    }

    /// How it is.
    #[must_use]
    pub fn status(&self) -> VoterStatus {
        let standing = match &self.phase {
            Phase::Founding { founding, .. } => match founding.finding() {
                Finding::Stranger => Standing::Stranger,
                Finding::Waiting | Finding::Admitted(_) | Finding::Agreed(_) => Standing::Founding,
            },
            Phase::Agreeing(_) => Standing::Founding,
            Phase::Member(engine) => return engine.status(),
        };
        let Identity { seat, uuid, .. } = *self.identity();
        VoterStatus { seat, uuid, standing, term: 0, committed: 0, pairs: 0, disks: None }
    }

    /// What it has applied, which may be behind: for a look, never for a decision.
    #[must_use]
    pub fn registers(&self) -> Option<&Registers> {
        match &self.phase {
            Phase::Founding { .. } | Phase::Agreeing(_) => None,
            Phase::Member(engine) => Some(engine.registers()),
        }
    }

    /// How many letters came from another ensemble, or from nobody's: a mistake in a config.
    #[must_use]
    pub const fn foreign_letters(&self) -> u64 {
        self.foreign
    }

    /// Whether its disk has lost what it had acknowledged: it must be replaced, and says nothing.
    #[must_use]
    pub fn has_forgotten(&self) -> bool {
        match &self.phase {
            Phase::Founding { .. } | Phase::Agreeing(_) => false,
            Phase::Member(engine) => engine.has_forgotten(),
        }
    }

    /// When it wants to be told the time next.
    #[must_use]
    pub const fn poll_timeout(&self) -> Option<Instant> {
        self.tick_at
    }

    // ---- inputs --------------------------------------------------------------------------------

    /// The time. After a long pause it counts as one tick: what was missed was not waited for.
    pub fn handle_time(&mut self, now: Instant) {
        if self.tick_at.is_some_and(|at| now < at) {
            return;
        }
        self.tick_at = Some(now + TICK);
        self.relays.handle_tick(&mut self.out);
        match &mut self.phase {
            Phase::Founding { founding, recovered, ticks_to_hello } => {
                *ticks_to_hello -= 1;
                if *ticks_to_hello == 0 {
                    *ticks_to_hello = ELECTION_TICKS;
                    let Identity { seat: from, seats, .. } = *recovered.identity();
                    for to in seats.iter().filter(|to| *to != from) {
                        let body = Body::Hello { nonce: founding.nonce() };
                        post(&mut self.out, Letter { from, to, body });
                    }
                }
            }
            Phase::Agreeing(_) => {}
            Phase::Member(engine) => engine.handle_tick(&mut self.out),
        }
    }

    /// A letter of another voter, `link`, as the host knows it.
    ///
    /// # Errors
    /// It is none, not for this seat, or of another voter than the link's. The host drops the link.
    pub fn handle_letter(&mut self, link: Seat, bytes: &[u8]) -> Result<(), WireError> {
        let Identity { seat, seats, uuid, ref disks } = *self.identity();
        let letter = Letter::decode(bytes, seats)?;
        if letter.to != seat {
            return Err(WireError::Contradiction("to"));
        }
        if letter.from != link {
            return Err(WireError::Contradiction("from"));
        }
        let from = letter.from;
        match letter.body {
            Body::Hello { nonce } => {
                let disks = match &self.phase {
                    // What is not durable yet is not agreed.
                    Phase::Founding { .. } | Phase::Agreeing(_) => None,
                    Phase::Member(engine) => engine.disks().cloned(),
                };
                let body = Body::IAm { nonce, uuid, disks };
                post(&mut self.out, Letter { from: seat, to: from, body });
            }
            Body::IAm { nonce, uuid, disks } => {
                if let Phase::Founding { founding, .. } = &mut self.phase {
                    founding.handle_i_am(from, nonce, Heard { uuid, disks });
                    self.agree_if_found();
                }
            }
            Body::Engine { tag, message } => {
                let known = disks.as_ref().map(Disks::tag) == Some(tag);
                match &mut self.phase {
                    Phase::Member(engine) if known => {
                        engine.handle_message(message, &mut self.out);
                    }
                    Phase::Member(_) => self.foreign += 1,
                    Phase::Founding { .. } | Phase::Agreeing(_) => {}
                }
            }
        }
        Ok(())
    }

    /// A question of a client. One that follows passes it on.
    ///
    /// # Errors
    /// It is none. The host drops the connection.
    pub fn handle_question(&mut self, from: ClientId, bytes: &[u8]) -> Result<(), WireError> {
        let question = Question::decode(bytes)?;
        let leader = match &self.phase {
            Phase::Member(engine) => engine.follows(),
            Phase::Founding { .. } | Phase::Agreeing(_) => None,
        };
        let is_passed = leader.is_some_and(|leader| self.pass(from, &question, leader));
        if !is_passed {
            self.answer_here(from, question);
        }
        Ok(())
    }

    /// A question that another voter passes on: it is answered here, and goes no further.
    ///
    /// # Errors
    /// It is none. The host drops the connection.
    pub fn handle_relayed(&mut self, from: ClientId, bytes: &[u8]) -> Result<(), WireError> {
        let question = Question::decode(bytes)?;
        self.answer_here(from, question);
        Ok(())
    }

    /// A connection for passing questions on to another voter was made.
    pub fn handle_relay_up(&mut self, seat: Seat) {
        self.relays.handle_up(seat);
    }

    /// It broke.
    pub fn handle_relay_down(&mut self, seat: Seat) {
        self.relays.handle_down(seat, &mut self.out);
    }

    /// What another voter says to a question that was passed on to it.
    ///
    /// # Errors
    /// It is no reply, and answers nothing.
    pub fn handle_relay_reply(&mut self, from: Seat, bytes: &[u8]) -> Result<(), WireError> {
        self.relays.handle_reply(from, bytes, &mut self.out)
    }

    /// The last write that was handed out is durable.
    ///
    /// # Panics
    /// If none was under way.
    pub fn handle_written(&mut self) {
        match &mut self.phase {
            Phase::Founding { .. } => panic!("a founding voter writes nothing"),
            Phase::Agreeing(recovered) => {
                let recovered = recovered.take().expect("held until written");
                let engine = Engine::new(recovered, self.seed.elections, self.canaries);
                self.phase = Phase::Member(Box::new(engine));
            }
            Phase::Member(engine) => engine.handle_written(&mut self.out),
        }
    }

    // ---- outputs -------------------------------------------------------------------------------

    /// A letter, and the seat it is for. It may be lost, repeated or late.
    pub fn poll_letter(&mut self) -> Option<(Seat, Vec<u8>)> {
        self.out.letters.pop_front()
    }

    /// A question that is passed on, and the voter it is for. It goes over a connection of its own.
    pub fn poll_relay(&mut self) -> Option<(Seat, Vec<u8>)> {
        self.relays.poll_question()
    }

    /// A reply, and the client it is for.
    pub fn poll_reply(&mut self) -> Option<(ClientId, Vec<u8>)> {
        self.out.replies.pop_front()
    }

    /// A write; the next one is handed out after [`handle_written`](Self::handle_written).
    pub fn poll_write(&mut self) -> Option<WalWrite> {
        self.out.writes.pop_front()
    }

    // ---- details -------------------------------------------------------------------------------

    fn pass(&mut self, from: ClientId, question: &Question, leader: Seat) -> bool {
        if let (Ask::Read(pair), Some(stale)) = (&question.ask, self.registers())
            && self.canaries.has(Canary::RelayStale)
        {
            let says = Says::Outcome(Outcome::Stands(stale.get(*pair)));
            let reply = Reply { request: question.request, leader: Some(leader), says };
            self.out.replies.push_back((from, reply.encode()));
            return true;
        }
        self.relays.pass(from, question, leader)
    }

    fn answer_here(&mut self, from: ClientId, question: Question) {
        if let Phase::Member(engine) = &mut self.phase {
            engine.handle_question(from, question, &mut self.out);
            return;
        }
        let says = match question.ask {
            Ask::Status => Says::Status(self.status()),
            Ask::Read(_) | Ask::Cas(_) | Ask::Replace(_) => {
                Says::Outcome(Outcome::NotDone(NotDone::NoLeader))
            }
        };
        let reply = Reply { request: question.request, leader: None, says };
        self.out.replies.push_back((from, reply.encode()));
    }

    fn agree_if_found(&mut self) {
        let Phase::Founding { founding, recovered, .. } = &mut self.phase else { return };
        let disks = match founding.finding() {
            Finding::Agreed(disks) | Finding::Admitted(disks) => disks,
            Finding::Stranger if self.canaries.has(Canary::VoteFromAmnesia) => {
                let usurped = founding.usurped().expect("somebody has agreed");
                recovered.identity.uuid = usurped.of(recovered.identity.seat).expect("a seat");
                recovered.wal = Wal::new(recovered.identity.uuid);
                usurped
            }
            Finding::Waiting | Finding::Stranger => return,
        };
        self.out.writes.push_back(recovered.join(disks));
        let agreeing = Phase::Agreeing(None);
        let Phase::Founding { recovered, .. } = std::mem::replace(&mut self.phase, agreeing) else {
            unreachable!("it was founding a line ago");
        };
        self.phase = Phase::Agreeing(Some(recovered));
    }
}

fn post(out: &mut Outputs, letter: Letter) {
    let to = letter.to;
    out.letters.extend(letter.encode().map(|bytes| (to, bytes)));
}

#[cfg(test)]
mod tests;
