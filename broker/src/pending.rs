//! What waits for which LSN.
//!
//! A record that was appended has an effect on the state and perhaps an answer for somebody. Both
//! happen when its batch is committed at the level that its queue asks for, and not before:
//! ```text
//!   level             committed up to
//!   async             everything appended
//!   sync              the local durable LSN
//!   replicated        the local durable LSN, and what the backup has received
//!   replicated-sync   the local durable LSN, and what the backup has made durable
//! ```
//! This table is the commit rule: nothing else in the broker compares an LSN with durability. With
//! no backup in the in-sync set the two upper levels are worth `sync`, as the promise says. What is
//! appended at `async` without the journal's vouching for it waits as at `sync`.
//!
//! Invariants: within a level, entries are in the order of their LSNs, so a prefix pops; of all
//! that is committed, what comes first in the log pops first.

use std::collections::VecDeque;

use journal::{Level, Lsn, Origin, QueueId, Sequence};

use crate::apply::Effect;
use crate::mail::{CopyRef, LEVELS, LinkRef, Token};

/// How far each kind of durability has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    /// The end of the contiguous prefix that is durable here.
    pub durable: Lsn,
    /// What the in-sync backup has received and made durable; `None` without one.
    pub backup: Option<BackupMarks>,
}

/// How far a backup has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackupMarks {
    /// Received in its memory.
    pub received: Lsn,
    /// Durable on its disk.
    pub durable: Lsn,
}

impl BackupMarks {
    /// Takes newer marks; one that is behind (a late answer) changes nothing.
    pub fn advance(&mut self, newer: Self) {
        self.received = self.received.max(newer.received);
        self.durable = self.durable.max(newer.durable);
    }
}

impl Watermarks {
    /// Everything that ends at or below this is committed at the level.
    pub fn of(&self, level: Level) -> Lsn {
        match level {
            Level::Async => Lsn(u64::MAX),
            Level::Sync => self.durable,
            Level::Replicated => match self.backup {
                Some(backup) => self.durable.min(backup.received),
                None => self.durable,
            },
            Level::ReplicatedSync => self.everywhere(),
        }
    }

    /// Everything below this is durable on every member: recycling never passes it.
    pub fn everywhere(&self) -> Lsn {
        match self.backup {
            Some(backup) => self.durable.min(backup.durable),
            None => self.durable,
        }
    }
}

/// Who is told when it is committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nobody.
    Nobody,
    /// A producer.
    Published(LinkRef, Token),
    /// A consumer that asked to be told.
    Settled(LinkRef, Sequence),
    /// A consumer that goes.
    Unconsumed(LinkRef),
    /// The purge of a queue has come to its end.
    Purged(QueueId),
    /// A message may be moved: what the log says of it is committed everywhere.
    Movable(QueueId, Sequence),
    /// The copy of a moved message is there: its origin is told.
    Moved(Box<(Origin, CopyRef)>),
    /// The origin of a copy is settled: the copy may be shown.
    Landed(CopyRef),
    /// Ids for temporary queues, up to this one, are set aside.
    IdsSetAside(QueueId),
    /// The copies of the head segment's catalogue and sequences are there.
    HeadCopied,
}

/// Something that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The end of the record it waits for.
    pub end: Lsn,
    /// What happens to the state.
    pub effect: Effect,
    /// Who is told, afterwards.
    pub answer: Answer,
}

/// All that waits on one shard.
#[derive(Debug)]
pub struct Pending {
    levels: [VecDeque<Waiting>; 4],
    /// In all of them.
    len: usize,
    /// Where something was pushed last: often nothing waits at any other level.
    recent: Level,
}

impl Default for Pending {
    fn default() -> Self {
        Self::new()
    }
}

impl Pending {
    /// Nothing waits.
    pub fn new() -> Self {
        Self { levels: Default::default(), len: 0, recent: Level::Sync }
    }

    /// Lets something wait at a level.
    ///
    /// # Panics
    /// If it ends before what was pushed last: the log only grows.
    #[inline]
    pub fn push(&mut self, level: Level, waiting: Waiting) {
        let queue = &mut self.levels[level as usize];
        if let Some(last) = queue.back() {
            assert!(last.end <= waiting.end, "{:?} waits behind {:?}", waiting.end, last.end);
        }
        queue.push_back(waiting);
        self.recent = level;
        self.len += 1;
    }

    /// Lets something wait at a level for what was appended before, perhaps long before.
    pub fn insert(&mut self, level: Level, waiting: Waiting) {
        let queue = &mut self.levels[level as usize];
        let at = queue.partition_point(|other| other.end <= waiting.end);
        queue.insert(at, waiting);
        self.recent = level;
        self.len += 1;
    }

    /// The next that is committed.
    #[inline]
    pub fn pop(&mut self, marks: &Watermarks) -> Option<Waiting> {
        if self.len == 0 {
            return None;
        }
        let queue = &mut self.levels[self.recent as usize];
        if queue.len() == self.len {
            let end = marks.of(self.recent);
            let waiting = queue.pop_front_if(|first| first.end <= end)?;
            self.len -= 1;
            return Some(waiting);
        }
        let level = self.next_level(marks)?;
        self.len -= 1;
        self.levels[level as usize].pop_front()
    }

    /// The level whose first is committed, and before the others' firsts.
    #[cold]
    fn next_level(&self, marks: &Watermarks) -> Option<Level> {
        let first = |level: &Level| Some(self.levels[*level as usize].front()?.end);
        let committed = |level: &Level| first(level).filter(|end| *end <= marks.of(*level));
        LEVELS.into_iter().filter_map(|l| Some((committed(&l)?, l))).min().map(|(_, level)| level)
    }

    /// Whether `pop` would give something.
    pub fn has_committed(&self, marks: &Watermarks) -> bool {
        self.len > 0
            && LEVELS.iter().any(|level| {
                let first = self.levels[*level as usize].front();
                first.is_some_and(|first| first.end <= marks.of(*level))
            })
    }

    /// Whether anything waits at this level.
    pub fn waits_at(&self, level: Level) -> bool {
        !self.levels[level as usize].is_empty()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(end: u64) -> Waiting {
        Waiting { end: Lsn(end), effect: Effect::None, answer: Answer::Nobody }
    }

    #[test]
    fn each_level_waits_for_its_own_mark() {
        let mut pending = Pending::new();
        for level in LEVELS {
            pending.push(level, waiting(10 + level as u64));
        }
        let mut marks = Watermarks {
            durable: Lsn(0),
            backup: Some(BackupMarks { received: Lsn(0), durable: Lsn(0) }),
        };
        let ends = |pending: &mut Pending, marks: &Watermarks| -> Vec<u64> {
            std::iter::from_fn(|| pending.pop(marks)).map(|waiting| waiting.end.0).collect()
        };
        assert_eq!(ends(&mut pending, &marks), [10]);
        marks.durable = Lsn(99);
        assert_eq!(ends(&mut pending, &marks), [11]);
        marks.backup = Some(BackupMarks { received: Lsn(99), durable: Lsn(0) });
        assert_eq!(ends(&mut pending, &marks), [12]);
        marks.backup = Some(BackupMarks { received: Lsn(99), durable: Lsn(13) });
        assert_eq!(ends(&mut pending, &marks), [13]);
        assert!(pending.is_empty());
    }

    #[test]
    fn what_waits_for_an_older_record_does_not_wait_for_newer_ones() {
        let mut pending = Pending::new();
        [10, 20, 30].into_iter().for_each(|end| pending.push(Level::Sync, waiting(end)));
        pending.insert(Level::Sync, waiting(20));
        pending.insert(Level::Sync, waiting(5));
        let marks = Watermarks { durable: Lsn(20), backup: None };
        let popped = std::iter::from_fn(|| pending.pop(&marks)).map(|waiting| waiting.end.0);
        assert_eq!(popped.collect::<Vec<_>>(), [5, 10, 20, 20]);
        pending.push(Level::Sync, waiting(30));
    }

    #[test]
    fn what_comes_first_in_the_log_pops_first() {
        let mut pending = Pending::new();
        pending.push(Level::Sync, waiting(10));
        pending.push(Level::Async, waiting(20));
        let marks = Watermarks { durable: Lsn(10), backup: None };
        assert_eq!(pending.pop(&marks).map(|waiting| waiting.end), Some(Lsn(10)));
        assert_eq!(pending.pop(&marks).map(|waiting| waiting.end), Some(Lsn(20)));
    }

    #[test]
    fn without_a_backup_the_upper_levels_are_worth_sync_and_never_less() {
        let marks = Watermarks { durable: Lsn(5), backup: None };
        for level in [Level::Sync, Level::Replicated, Level::ReplicatedSync] {
            assert_eq!(marks.of(level), Lsn(5));
        }
    }

    #[test]
    fn a_backup_ahead_of_us_commits_nothing_that_is_not_durable_here() {
        let backup = BackupMarks { received: Lsn(50), durable: Lsn(50) };
        let marks = Watermarks { durable: Lsn(5), backup: Some(backup) };
        assert_eq!(marks.of(Level::Replicated), Lsn(5));
        assert_eq!(marks.everywhere(), Lsn(5));
    }

    #[test]
    #[should_panic(expected = "waits behind")]
    fn the_log_only_grows() {
        let mut pending = Pending::new();
        pending.push(Level::Sync, waiting(10));
        pending.push(Level::Sync, waiting(9));
    }
}
