//! What the pair has promised, and whether a log keeps it.
//!
//! ```text
//!   told      acknowledged: which record, at which level, by whom, and the other's boot then
//!   canon     committed: the chain at the end of each batch that is durable on the maximal set
//!   exported  records that a rejoin cut off, by what its delta file says
//! ```
//! Invariant: nothing is taken back; a later live either holds it or a promise is broken.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use journal::{Chain, Level, Lsn, RecordKind, SealedBatch, ShardId};

use super::Counts;

/// A record, by what never changes: its shard, whether it is a settlement, its sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) shard: ShardId,
    pub(crate) is_settle: bool,
    pub(crate) sequence: u64,
}

/// What a member's log holds, as it was read or written.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    /// The chain at the end of each batch.
    pub(crate) ends: BTreeMap<Lsn, Chain>,
    pub(crate) records: BTreeSet<Key>,
}

impl View {
    pub(crate) fn add(&mut self, shard: ShardId, seed: &journal::LogSeed, batch: &SealedBatch) {
        self.ends.insert(batch.end(), batch.chain_after());
        self.records.extend(keys_of(shard, seed, batch));
    }
}

pub(crate) fn keys_of(shard: ShardId, seed: &journal::LogSeed, batch: &SealedBatch) -> Vec<Key> {
    let records = batch.records(seed).map(|record| record.expect("a checked batch").1);
    records
        .map(|record| Key {
            shard,
            is_settle: record.kind == RecordKind::Settle,
            sequence: record.sequence.0,
        })
        .collect()
}

#[derive(Clone, Copy, Debug)]
struct Told {
    level: Level,
    by: usize,
    /// The other member's boot at that moment.
    other_boot: u64,
    /// The disk of who told it is gone.
    is_disk_lost: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    told: BTreeMap<Key, Told>,
    canon: BTreeMap<(ShardId, Lsn), Chain>,
    exported: BTreeSet<Key>,
    /// Messages that may be settled, by shard.
    settleable: BTreeMap<ShardId, Vec<u64>>,
    next: BTreeMap<ShardId, u64>,
    boots: [u64; 2],
}

impl Ledger {
    /// A sequence that no record had.
    pub(crate) fn next_sequence(&mut self, shard: ShardId) -> u64 {
        let next = self.next.entry(shard).or_insert(0);
        *next += 1;
        *next
    }

    /// A message that was acknowledged at the highest level, to be settled.
    pub(crate) fn take_settleable(&mut self, shard: ShardId) -> Option<u64> {
        self.settleable.get_mut(&shard)?.pop()
    }

    pub(crate) fn note_boot(&mut self, node: usize, boot: u64) {
        self.boots[node] = boot;
    }

    /// A client was told.
    pub(crate) fn tell(&mut self, by: usize, level: Level, key: Key, counts: &mut Counts) {
        let other_boot = self.boots[1 - by];
        self.told.insert(key, Told { level, by, other_boot, is_disk_lost: false });
        counts.acknowledged[level as usize] += 1;
        counts.settled += u64::from(key.is_settle);
        if !key.is_settle && level == Level::ReplicatedSync {
            self.settleable.entry(key.shard).or_default().push(key.sequence);
        }
    }

    /// The live says that everything below is committed.
    pub(crate) fn commit(
        &mut self,
        shard: ShardId,
        view: &View,
        from: Lsn,
        to: Lsn,
    ) -> Result<(), String> {
        if to <= from {
            return Ok(());
        }
        for (end, chain) in view.ends.range((Bound::Excluded(from), Bound::Included(to))) {
            let known = self.canon.insert((shard, *end), *chain);
            if known.is_some_and(|known| known != *chain) {
                return Err(format!("{shard:?}: two histories were committed at {end}"));
            }
        }
        Ok(())
    }

    /// A backup hands this to its state.
    pub(crate) fn show(&self, shard: ShardId, batch: &SealedBatch) -> Result<(), String> {
        match self.canon.get(&(shard, batch.end())) {
            Some(chain) if *chain == batch.chain_after() => Ok(()),
            Some(_) | None => {
                Err(format!("{shard:?}: shown at {} and never committed", batch.end()))
            }
        }
    }

    pub(crate) fn export(&mut self, keys: Vec<Key>) {
        self.exported.extend(keys);
    }

    /// This member's disk is gone, and with it what only it had promised to keep.
    pub(crate) fn lose_disk(&mut self, node: usize) {
        self.told.retain(|_, told| match told.level {
            Level::Async | Level::Sync => told.by != node,
            Level::Replicated | Level::ReplicatedSync => true,
        });
        for told in self.told.values_mut().filter(|told| told.by == node) {
            told.is_disk_lost = true;
        }
    }

    /// At level `replicated`: its disk is gone, and the other one's process has ended since.
    fn may_be_gone(&self, told: &Told) -> bool {
        told.level == Level::Replicated
            && told.is_disk_lost
            && told.other_boot != self.boots[1 - told.by]
    }

    /// This member is live from now on.
    pub(crate) fn check_live<'a>(
        &self,
        node: usize,
        boot: u64,
        view: impl Fn(ShardId) -> &'a View,
    ) -> Result<(), String> {
        for ((shard, end), chain) in &self.canon {
            if view(*shard).ends.get(end) != Some(chain) {
                return Err(format!(
                    "{shard:?}: node {node} goes live without what was committed at {end}"
                ));
            }
        }
        for (key, told) in &self.told {
            let is_there = view(key.shard).records.contains(key);
            let kept = match told.level {
                Level::ReplicatedSync => is_there,
                // In the memory of a process that is gone.
                Level::Replicated => {
                    is_there
                        || self.exported.contains(key)
                        || (told.by != node && told.other_boot != boot)
                        || self.may_be_gone(told)
                }
                Level::Async | Level::Sync => {
                    is_there || told.by != node || self.exported.contains(key)
                }
            };
            if !kept {
                return Err(format!(
                    "node {node} goes live without {key:?}, which {} had acknowledged at {:?}",
                    told.by, told.level
                ));
            }
        }
        Ok(())
    }

    /// Everything is at rest: what was acknowledged is in the log, or was exported.
    pub(crate) fn check_end<'a>(&self, view: impl Fn(ShardId) -> &'a View) -> Result<(), String> {
        for (key, told) in &self.told {
            let is_kept = view(key.shard).records.contains(key) || self.exported.contains(key);
            if !is_kept && !self.may_be_gone(told) {
                return Err(format!("{key:?}, acknowledged at {:?}, has vanished", told.level));
            }
        }
        Ok(())
    }
}
