//! Which reign wrote which part of a log: the table that both members of a pair compare.
//!
//! ```text
//!   rows     (1, 4096)          (4, 90112)                (6, 126976)
//!   log      |==== epoch 1 =====|====== epoch 4 ==========|===== epoch 6 ====...
//!
//!   a batch belongs to this log only if its epoch is the one whose part it stands in
//!
//!   mine     1 ─────────── 4 ───────────────── 5 ──── end      newest epoch in both: 4
//!   theirs   1 ─────────── 4 ─────── 6 ─────────────── end      common: where 4 ends first
//!                                    ^
//! ```
//!
//! Invariants: epochs rise, and their places don't go back; an epoch has one writer and one
//! opening, so what two members hold of it agrees as far as both go. That is why logs are compared
//! by (epoch, place) and never by length: the longer log may be the one with the tail that nobody
//! was promised. A table keeps the newest [`EPOCHS_MAX`] rows; before its first row any older epoch
//! may stand. Two tables without a common epoch say nothing: then the log is installed whole.

use std::fmt;

use crate::lsn::{Epoch, Lsn};

/// Most reigns that the epoch table keeps; the oldest go first.
pub const EPOCHS_MAX: usize = 64;

/// Where each reign began, oldest first; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochTable {
    rows: Vec<(Epoch, Lsn)>,
}

impl EpochTable {
    /// The table of a log that begins at `first` in `epoch`.
    #[must_use]
    pub fn new(epoch: Epoch, first: Lsn) -> Self {
        Self { rows: vec![(epoch, first)] }
    }

    /// A table that was read, if it can be one.
    #[must_use]
    pub fn from_rows(rows: Vec<(Epoch, Lsn)>) -> Option<Self> {
        let in_order = |pair: &[(Epoch, Lsn)]| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1;
        let is_sound =
            !rows.is_empty() && rows.len() <= EPOCHS_MAX && rows.windows(2).all(in_order);
        is_sound.then_some(Self { rows })
    }

    /// Its rows, oldest first.
    #[must_use]
    pub fn rows(&self) -> &[(Epoch, Lsn)] {
        &self.rows
    }

    /// The newest reign.
    ///
    /// # Panics
    /// Never: a table has a row.
    #[must_use]
    pub fn newest(&self) -> (Epoch, Lsn) {
        *self.rows.last().expect("a table is never empty")
    }

    /// Who wrote what stands at `lsn`; before the first row, the youngest that it can have been.
    #[must_use]
    pub fn epoch_at(&self, lsn: Lsn) -> Epoch {
        let row = self.rows.iter().rev().find(|(_, first)| *first <= lsn);
        row.map_or(Epoch(self.rows[0].0.0.saturating_sub(1)), |(epoch, _)| *epoch)
    }

    /// Whether a batch of `epoch` at `lsn` can be part of the log.
    #[must_use]
    pub fn holds(&self, epoch: Epoch, lsn: Lsn) -> bool {
        match self.rows.iter().rev().find(|(_, first)| *first <= lsn) {
            Some((here, _)) => *here == epoch,
            None => epoch < self.rows[0].0,
        }
    }

    /// A reign begins at `lsn`. What had been said of the log beyond is forgotten: it isn't there.
    ///
    /// # Panics
    /// If the epoch is not newer than every other.
    pub fn enter(&mut self, epoch: Epoch, lsn: Lsn) {
        assert!(epoch > self.newest().0, "{epoch:?} after {:?}", self.newest());
        self.rows.retain(|(_, first)| *first <= lsn);
        if self.rows.len() == EPOCHS_MAX {
            self.rows.remove(0);
        }
        self.rows.push((epoch, lsn));
    }

    /// How far a log with this table, ending at `end`, and another one agree; none if the tables
    /// are too far apart to say.
    #[must_use]
    pub fn common(&self, end: Lsn, other: &Self, other_end: Lsn) -> Option<Lsn> {
        let is_shared = |epoch: &Epoch| other.rows.iter().any(|(theirs, _)| theirs == epoch);
        let (epoch, _) = self.rows.iter().rev().find(|(epoch, _)| is_shared(epoch))?;
        Some(self.end_of(*epoch, end).min(other.end_of(*epoch, other_end)))
    }

    /// Where the part of `epoch` ends in a log that ends at `end`.
    fn end_of(&self, epoch: Epoch, end: Lsn) -> Lsn {
        let next = self.rows.iter().find(|(later, _)| *later > epoch);
        next.map_or(end, |(_, first)| end.min(*first))
    }
}

impl fmt::Display for EpochTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (epoch, first)) in self.rows.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{} from {first}", epoch.0)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[(u64, u64)]) -> EpochTable {
        let rows = rows.iter().map(|(epoch, lsn)| (Epoch(*epoch), Lsn(*lsn))).collect();
        EpochTable::from_rows(rows).expect("in order")
    }

    #[test]
    fn a_batch_stands_in_the_part_of_its_epoch_and_nowhere_else() {
        let log = table(&[(2, 4096), (5, 8192), (6, 8192), (9, 40960)]);
        assert!(log.holds(Epoch(2), Lsn(4096)) && !log.holds(Epoch(2), Lsn(8192)));
        assert!(!log.holds(Epoch(5), Lsn(8192)), "it began and ended there");
        assert!(log.holds(Epoch(6), Lsn(36864)) && !log.holds(Epoch(7), Lsn(36864)));
        assert!(log.holds(Epoch(9), Lsn(1 << 40)) && !log.holds(Epoch(10), Lsn(1 << 40)));
        let cut = table(&[(5, 8192)]);
        assert!(cut.holds(Epoch(1), Lsn(4096)) && !cut.holds(Epoch(5), Lsn(4096)));
    }

    #[test]
    fn logs_agree_as_far_as_their_newest_common_epoch_went_on_both() {
        let mine = table(&[(1, 4096), (4, 40960), (5, 81920)]);
        let theirs = table(&[(1, 4096), (4, 40960), (6, 61440)]);
        let common = mine.common(Lsn(90112), &theirs, Lsn(69632));
        assert_eq!(common, Some(Lsn(61440)));
        assert_eq!(theirs.common(Lsn(69632), &mine, Lsn(90112)), common);
        // The longer log is not the right one.
        assert_eq!(mine.common(Lsn(90112), &theirs, Lsn(1 << 30)), common);
        // One that is only behind has nothing to cut.
        let behind = table(&[(1, 4096)]);
        assert_eq!(behind.common(Lsn(8192), &theirs, Lsn(69632)), Some(Lsn(8192)));
        let strange = table(&[(2, 4096)]);
        assert_eq!(strange.common(Lsn(8192), &theirs, Lsn(69632)), None);
    }

    #[test]
    fn a_reign_that_begins_before_others_ended_takes_their_place() {
        let mut log = table(&[(1, 4096), (4, 40960)]);
        log.enter(Epoch(7), Lsn(20480));
        assert_eq!(log, table(&[(1, 4096), (7, 20480)]));
        for epoch in 8..=100 {
            log.enter(Epoch(epoch), Lsn(4096 * epoch));
        }
        assert_eq!((log.rows().len(), log.rows()[0].0), (EPOCHS_MAX, Epoch(37)));
    }

    #[test]
    fn rows_out_of_order_are_no_table() {
        let rows = |rows: &[(u64, u64)]| -> Vec<(Epoch, Lsn)> {
            rows.iter().map(|(epoch, lsn)| (Epoch(*epoch), Lsn(*lsn))).collect()
        };
        assert_eq!(EpochTable::from_rows(Vec::new()), None);
        assert_eq!(EpochTable::from_rows(rows(&[(1, 4096), (1, 8192)])), None);
        assert_eq!(EpochTable::from_rows(rows(&[(1, 8192), (2, 4096)])), None);
        assert_eq!(EpochTable::from_rows(vec![(Epoch(1), Lsn(1)); EPOCHS_MAX + 1]), None);
    }
}
