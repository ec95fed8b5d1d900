//! The voters as their promise: one linearizable register, asked over a network that delays, loses
//! and repeats nothing, and whose answers may never be heard.
//!
//! ```text
//!   query ──(delay)──▶ carried out ──(delay)──▶ answer
//!     └── lost ───────▶ never                     └── lost, or after the question was given up:
//!                                                     Unknown, half a second after it was asked
//! ```
//! What real voters add to this is the business of `sim/src/voters`, which holds them to it.
//!
//! Invariant: each question gets at most one answer, in the life of the process that asked.

use std::fmt;
use std::time::{Duration, Instant};

use replica::limits::QUESTION_TIMEOUT;
use replica::{Answer, Outcome, PairId, PairRecord, Query, Registers, RequestId, Swap};

use super::Counts;
use crate::rng::Rng;

const PAIR: PairId = PairId([1; 16]);

/// What a node hears.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(crate) node: usize,
    pub(crate) boot: u64,
    pub(crate) answer: Answer,
}

#[derive(Debug)]
struct Asked {
    due: Instant,
    node: usize,
    boot: u64,
    query: Query,
    given_up_at: Instant,
}

#[derive(Debug)]
pub(crate) struct Voters {
    rng: Rng,
    registers: Registers,
    asked: Vec<Asked>,
    answers: Vec<(Instant, Heard)>,
    /// Nothing that a node asks arrives, and nothing that it is told is heard, before.
    deaf_until: [[Instant; 2]; 2],
}

impl Voters {
    pub(crate) fn new(rng: Rng, base: Instant) -> Self {
        let (asked, answers) = (Vec::new(), Vec::new());
        let registers = Registers::default();
        Self { rng, registers, asked, answers, deaf_until: [[base; 2]; 2] }
    }

    /// What stands, as nobody can know it.
    pub(crate) fn record(&self) -> Option<PairRecord> {
        PairRecord::decode(&self.registers.get(PAIR).value).ok()
    }

    /// Cuts a node's way to the voters, or theirs to it, or (3) both.
    pub(crate) fn cut(&mut self, node: usize, until: Instant, directions: u64) {
        for (index, deaf_until) in self.deaf_until[node].iter_mut().enumerate() {
            if directions & (1 << index) != 0 {
                *deaf_until = until.max(*deaf_until);
            }
        }
    }

    pub(crate) fn heal(&mut self, now: Instant) {
        self.deaf_until = self.deaf_until.map(|both| both.map(|until| until.min(now)));
    }

    pub(crate) fn ask(&mut self, now: Instant, node: usize, boot: u64, query: Query) {
        let given_up_at = now + QUESTION_TIMEOUT;
        let fate = self.rng.below(40);
        let is_lost = fate == 0 || self.deaf_until[node][0] > now;
        let most_us = if fate == 1 { 3_000_000 } else { 5_000 };
        let due = now + Duration::from_micros(self.rng.between(200, most_us));
        if is_lost || due >= given_up_at {
            self.give_up(given_up_at, node, boot, query.request());
        }
        if !is_lost {
            self.asked.push(Asked { due, node, boot, query, given_up_at });
        }
    }

    fn give_up(&mut self, at: Instant, node: usize, boot: u64, request: RequestId) {
        let answer = Answer { request, outcome: Outcome::Unknown };
        self.answers.push((at, Heard { node, boot, answer }));
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let asked = self.asked.iter().map(|asked| asked.due);
        asked.chain(self.answers.iter().map(|(due, _)| *due)).min()
    }

    pub(crate) fn pump(&mut self, now: Instant, counts: &mut Counts) -> Vec<Heard> {
        let due: Vec<Asked> = self.asked.extract_if(.., |one| one.due <= now).collect();
        for Asked { node, boot, query, given_up_at, .. } in due {
            let request = query.request();
            let outcome = match query {
                Query::Read(_) => Outcome::Stands(self.registers.get(PAIR)),
                Query::Cas(_, expect, record) => {
                    let before = self.in_sync();
                    let value = record.encode();
                    let outcome = self.registers.apply(Swap { pair: PAIR, expect, value });
                    counts.expands += u64::from(before < self.in_sync() && before > 0);
                    counts.shrinks += u64::from(before > self.in_sync());
                    outcome
                }
            };
            if now >= given_up_at {
                continue;
            }
            let most_us = if self.rng.one_in(60) { 450_000 } else { 8000 };
            let at = now + Duration::from_micros(self.rng.between(100, most_us));
            if self.rng.one_in(40) || self.deaf_until[node][1] > at || at >= given_up_at {
                self.give_up(given_up_at, node, boot, request);
            } else {
                let answer = Answer { request, outcome };
                self.answers.push((at, Heard { node, boot, answer }));
            }
        }
        let due = self.answers.extract_if(.., |(due, _)| *due <= now);
        let due: Vec<Heard> = due.map(|(_, answer)| answer).collect();
        let is_unknown = |heard: &&Heard| heard.answer.outcome == Outcome::Unknown;
        counts.unknown += due.iter().filter(is_unknown).count() as u64;
        due
    }

    fn in_sync(&self) -> usize {
        self.record().map_or(0, |record| record.in_sync.len())
    }
}

impl fmt::Display for Voters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.record())
    }
}
