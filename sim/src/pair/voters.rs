//! The voters as an oracle: one record, changed by compare-and-set, with outcomes that come late,
//! get lost, or are carried out after their asker has given up.
//!
//! ```text
//!   ask ──(delay)──▶ carried out or not ──(delay)──▶ answer
//!        └──────────────── or unknown, before or after it was carried out
//! ```
//! Invariant: the version goes up by one with each change, and only a change that expected the
//! version that stands is carried out.

use std::fmt;
use std::time::{Duration, Instant};

use journal::{Epoch, JournalUuid};
use replica::Version;
use replica::in_sync::{Change, Stands};

use super::Counts;
use crate::rng::Rng;

/// What a node hears.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    pub(crate) node: usize,
    pub(crate) epoch: Epoch,
    pub(crate) says: Says,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Says {
    Stands(Stands),
    Unknown,
}

#[derive(Debug)]
struct Attempt {
    due: Instant,
    node: usize,
    epoch: Epoch,
    /// None: a read.
    change: Option<(Version, Change)>,
    is_answered: bool,
}

#[derive(Debug)]
pub(crate) struct Voters {
    rng: Rng,
    version: u64,
    epoch: u64,
    live: Option<usize>,
    /// Whether each node is in the set.
    in_sync: [bool; 2],
    backup: Option<JournalUuid>,
    attempts: Vec<Attempt>,
    answers: Vec<(Instant, Answer)>,
    renew_at: Option<Instant>,
}

impl Voters {
    pub(crate) fn new(rng: Rng) -> Self {
        Self {
            rng,
            version: 1,
            epoch: 1,
            live: None,
            in_sync: [true, false],
            backup: None,
            attempts: Vec::new(),
            answers: Vec::new(),
            renew_at: None,
        }
    }

    pub(crate) fn live(&self) -> Option<usize> {
        self.live
    }

    pub(crate) fn epoch(&self) -> Epoch {
        Epoch(self.epoch)
    }

    pub(crate) fn version(&self) -> Version {
        Version(self.version)
    }

    pub(crate) fn is_in_sync(&self, node: usize) -> bool {
        self.in_sync[node]
    }

    /// A node has won the role; its peer stays in the set if it was and is kept.
    pub(crate) fn give(
        &mut self,
        winner: usize,
        keep: bool,
        peer: JournalUuid,
    ) -> (Epoch, Option<JournalUuid>) {
        assert!(self.in_sync[winner], "the role is for members of the set");
        self.version += 1;
        self.epoch += 1;
        self.live = Some(winner);
        self.in_sync[1 - winner] &= keep;
        self.backup = self.in_sync[1 - winner].then_some(peer);
        (Epoch(self.epoch), self.backup)
    }

    /// The live renews now and then: nothing changes but the version.
    pub(crate) fn renew(&mut self, now: Instant) {
        if self.renew_at.is_none_or(|at| at <= now) {
            self.version += 1;
            self.renew_at = Some(now + Duration::from_millis(40));
        }
    }

    pub(crate) fn ask(&mut self, now: Instant, node: usize, epoch: Epoch, change: Option<Change>) {
        let due = now + Duration::from_micros(self.rng.between(200, 20_000));
        let change = change.map(|change| (Version(self.version), change));
        let is_lost = change.is_some() && self.rng.one_in(5);
        if is_lost {
            // Given up before or after it is carried out, which may be never.
            let at = now + Duration::from_micros(self.rng.between(200, 30_000));
            self.answers.push((at, Answer { node, epoch, says: Says::Unknown }));
            if self.rng.one_in(3) {
                return;
            }
        }
        self.attempts.push(Attempt { due, node, epoch, change, is_answered: is_lost });
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let attempts = self.attempts.iter().map(|attempt| attempt.due);
        attempts.chain(self.answers.iter().map(|(due, _)| *due)).min()
    }

    pub(crate) fn pump(&mut self, now: Instant, counts: &mut Counts) -> Vec<Answer> {
        let due: Vec<Attempt> = self.attempts.extract_if(.., |one| one.due <= now).collect();
        for attempt in due {
            if let Some((expect, change)) = attempt.change
                && expect.0 == self.version
                && attempt.epoch.0 == self.epoch
            {
                self.version += 1;
                let peer = 1 - attempt.node;
                match change {
                    Change::Add(uuid) => {
                        (self.in_sync[peer], self.backup) = (true, Some(uuid));
                        counts.expands += 1;
                    }
                    Change::Remove => {
                        (self.in_sync[peer], self.backup) = (false, None);
                        counts.shrinks += 1;
                    }
                }
            }
            if !attempt.is_answered {
                let stands = Stands { version: Version(self.version), backup: self.backup };
                let says = Says::Stands(stands);
                let at = now + Duration::from_micros(self.rng.between(100, 8000));
                let answer = Answer { node: attempt.node, epoch: attempt.epoch, says };
                self.answers.push((at, answer));
            }
        }
        let due = self.answers.extract_if(.., |(due, _)| *due <= now);
        let due: Vec<Answer> = due.map(|(_, answer)| answer).collect();
        counts.unknown +=
            due.iter().filter(|answer| matches!(answer.says, Says::Unknown)).count() as u64;
        due
    }
}

impl fmt::Display for Voters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, epoch, live, in_sync, .. } = self;
        write!(f, "version {version}, epoch {epoch}, live {live:?}, in sync {in_sync:?}")
    }
}
