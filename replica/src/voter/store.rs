//! What a voter has written down, in memory: hard state, snapshot and the entries after it.
//!
//! ```text
//!   | snapshot: everything up to (index, term) | entries index + 1 ..= last |   hard state
//! ```
//! The same is on the disk (`wal`): this is changed when the write is asked for, and the engine is
//! told of it only when the write has ended. Nothing here blocks, so no question is ever put off.
//!
//! Invariants: entries stand next to each other from `snapshot.index + 1`; the committed index is
//! at or beyond the snapshot's.

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Storage, StorageError};

use super::seats::Disks;
use crate::codec::{Reader, WireError, Writer};
use crate::limits::{STATE_BYTES_MAX, STORED_ENTRIES_MAX};
use crate::register::Registers;

/// Everything as it was after an entry.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Image {
    pub(crate) index: u64,
    pub(crate) term: u64,
    /// Who decides; none on a new disk that has not been told.
    pub(crate) disks: Option<Disks>,
    pub(crate) registers: Vec<u8>,
}

/// A voter's durable state.
#[derive(Clone, Debug, Default)]
pub(crate) struct Store {
    pub(crate) hard: HardState,
    pub(crate) image: Image,
    entries: Vec<Entry>,
}

impl Image {
    /// What travels of it beside index and term.
    pub(crate) fn data(&self) -> Vec<u8> {
        let mut w = Writer::new();
        Disks::put(self.disks.as_ref(), &mut w);
        w.bytes(&self.registers);
        w.finish()
    }

    /// What travelled, checked: the engine takes it as it is.
    pub(crate) fn read(index: u64, term: u64, data: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(data);
        let disks = Disks::take(&mut r)?.ok_or(WireError::Contradiction("disks"))?;
        // Two bytes count the registers.
        let registers = r.bytes(STATE_BYTES_MAX + 2, "registers")?.to_vec();
        r.end()?;
        Registers::decode(&registers)?;
        Ok(Self { index, term, disks: Some(disks), registers })
    }

    /// It as the engine has it.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot { data: self.data().into(), ..Default::default() };
        let metadata = snapshot.mut_metadata();
        metadata.index = self.index;
        metadata.term = self.term;
        metadata.set_conf_state(conf_state(self.disks.as_ref()));
        snapshot
    }
}

impl Store {
    /// An image and nothing after it.
    pub(crate) const fn new(hard: HardState, image: Image) -> Self {
        Self { hard, image, entries: Vec::new() }
    }

    pub(crate) fn entries_after_image(&self) -> &[Entry] {
        &self.entries
    }

    pub(crate) fn last(&self) -> u64 {
        self.image.index + self.entries.len() as u64
    }

    /// Adds entries; those that stood at their places or beyond are gone.
    ///
    /// # Panics
    /// If they would leave a hole, or replace what the image holds.
    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(
            first.index > self.image.index && first.index <= self.last() + 1,
            "entries from {} do not join a log of {} to {}",
            first.index,
            self.image.index,
            self.last()
        );
        let kept = first.index - self.image.index - 1;
        self.entries.truncate(usize::try_from(kept).expect("within what is there"));
        self.entries.extend_from_slice(entries);
    }

    /// Takes an image in place of everything up to it.
    pub(crate) fn install(&mut self, image: Image) {
        let covered = image.index.saturating_sub(self.image.index);
        let whole = self.term(image.index).is_ok_and(|term| term == image.term);
        let covered = usize::try_from(covered).unwrap_or(usize::MAX).min(self.entries.len());
        // What follows a place where the terms agree is the same log; else it is another's.
        self.entries.drain(..if whole { covered } else { self.entries.len() });
        self.hard.commit = self.hard.commit.max(image.index);
        self.image = image;
    }
}

/// Who decides, as the engine has it: nobody where it is not known.
fn conf_state(disks: Option<&Disks>) -> ConfState {
    let (voters, voters_outgoing) = disks.map(Disks::ids).unwrap_or_default();
    let auto_leave = !voters_outgoing.is_empty();
    ConfState { voters, voters_outgoing, auto_leave, ..Default::default() }
}

impl Storage for Store {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard.clone(), conf_state(self.image.disks.as_ref())))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.image.index {
            return Err(Error::Store(StorageError::Compacted));
        }
        let at = |index: u64| usize::try_from(index - self.image.index - 1).expect("in memory");
        let bytes_max = max_size.into().unwrap_or(u64::MAX);
        let mut bytes = 0;
        let within = |entry: &&Entry| {
            let first = bytes == 0;
            bytes += entry.data.len() as u64 + 32;
            first || bytes <= bytes_max
        };
        let run = &self.entries[at(low)..at(high)];
        Ok(run.iter().take(STORED_ENTRIES_MAX).take_while(within).cloned().collect())
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.image.index {
            return Ok(self.image.term);
        }
        let at = index.checked_sub(self.image.index + 1);
        let at = at.ok_or(Error::Store(StorageError::Compacted))?;
        let entry = usize::try_from(at).ok().and_then(|at| self.entries.get(at));
        entry.map(|entry| entry.term).ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.image.index + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        if self.image.index == 0 || self.image.index < request_index {
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        Ok(self.image.snapshot())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, data: vec![0; 10].into(), ..Default::default() }
    }

    fn store() -> Store {
        let mut store = Store::default();
        store.append(&[entry(1, 1), entry(2, 1), entry(3, 2)]);
        store
    }

    fn terms(store: &Store) -> Vec<u64> {
        store.entries_after_image().iter().map(|entry| entry.term).collect()
    }

    #[test]
    fn newer_entries_take_the_place_of_older_ones() {
        let mut store = store();
        store.append(&[entry(2, 3)]);
        assert_eq!((terms(&store), store.last()), (vec![1, 3], 2));
    }

    #[test]
    #[should_panic(expected = "do not join")]
    fn a_hole_is_never_left() {
        store().append(&[entry(5, 2)]);
    }

    #[test]
    fn an_image_keeps_what_follows_it_and_drops_another_history() {
        let image = |index, term| Image { index, term, ..Image::default() };
        let mut same = store();
        same.install(image(2, 1));
        assert_eq!((terms(&same), same.last(), same.hard.commit), (vec![2], 3, 2));
        assert_eq!(same.term(2).ok(), Some(1));
        assert!(matches!(same.term(1), Err(Error::Store(StorageError::Compacted))));
        let mut other = store();
        other.install(image(2, 9));
        assert_eq!((terms(&other), other.last()), (vec![], 2));
        let mut ahead = store();
        ahead.install(image(7, 2));
        assert_eq!((terms(&ahead), ahead.last()), (vec![], 7));
    }

    #[test]
    fn a_run_of_entries_has_at_least_one() {
        let store = store();
        let read = |max: u64| store.entries(1, 4, max, GetEntriesContext::empty(false));
        assert_eq!(read(0).map(|e| e.len()).ok(), Some(1));
        assert_eq!(read(90).map(|e| e.len()).ok(), Some(2));
    }
}
