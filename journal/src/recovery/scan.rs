//! Looks behind the end of a log for proof that it did not end there.
//!
//! ```text
//!   end X       |<- rest of the tail ->|<- other files ->|<- start of files with older headers ->|
//!   each block  a batch header of this log, at its own place, beyond X, not cut off before, of
//!               the epoch that the table has there:
//!                 its durable field > X   -> X was durable: damage
//!                 else                    -> written, never promised: it is cut off
//! ```
//!
//! Invariants: every place where a batch beyond X can lie is looked at: the rest of the tail, each
//! file that doesn't begin with the header of a segment before X, and of the others the start: a
//! segment's header goes out with its first batch, and at most `WRITES_WINDOW_MAX` batches run
//! ahead of it.
//! A block inside a batch can't pass for a header: no client knows the seed.

use crate::batch::{BatchHeader, BatchRead};
use crate::canary::{Canaries, Canary};
use crate::epochs::EpochTable;
use crate::identity::LogSeed;
use crate::limits::{BLOCK_BYTES, RECOVERY_READ_BYTES, block_ceil};
use crate::lsn::{Incarnation, Lsn, Slot, Term};
use crate::record::RecordError;
use crate::recovery::Truncated;
use crate::recovery::replay::ReadAt;
use crate::superblock::Truncation;

/// What proves that the log went on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A batch sealed when everything below `durable` was durable.
    Proof { lsn: Lsn, durable: Lsn },
    /// A batch of this log in another version.
    Version(u16),
    /// A batch of this log that this broker can't make sense of.
    Malformed(RecordError),
}

/// A part of a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    pub(super) slot: Slot,
    pub(super) offset: u64,
    pub(super) end: u64,
}

/// What of the bytes of this log counts as its history.
#[derive(Debug)]
pub(super) struct History {
    pub(super) truncation: Truncation,
    pub(super) epochs: EpochTable,
    pub(super) canaries: Canaries,
}

impl History {
    fn excludes(&self, lsn: Lsn, term: Term) -> bool {
        let of_another =
            !self.epochs.holds(term.epoch, lsn) && !self.canaries.has(Canary::EpochTableUnread);
        of_another || self.truncation.covers(lsn, term)
    }
}

#[derive(Debug)]
pub(super) struct Scan {
    seed: LogSeed,
    segment_bytes: u64,
    history: History,
    end: Lsn,
    ranges: Vec<Range>,
    cut: Truncated,
    term_max: Term,
    incarnation_max: Incarnation,
}

impl Scan {
    pub(super) fn new(
        seed: LogSeed,
        segment_bytes: u64,
        history: History,
        end: Lsn,
        ranges: Vec<Range>,
    ) -> Self {
        let cut = Truncated { lsn: end, bytes: 0, batches: 0 };
        Self {
            seed,
            segment_bytes,
            history,
            end,
            ranges,
            cut,
            term_max: Term::default(),
            incarnation_max: Incarnation(0),
        }
    }

    /// What to read next. None: everything was looked at.
    pub(super) fn step(&mut self) -> Option<ReadAt> {
        while self.ranges.last().is_some_and(|range| range.offset >= range.end) {
            self.ranges.pop();
        }
        let range = self.ranges.last()?;
        let rest = usize::try_from(range.end - range.offset).unwrap_or(usize::MAX);
        let bytes = rest.min(RECOVERY_READ_BYTES);
        Some(ReadAt { slot: range.slot, offset: range.offset, bytes })
    }

    /// Takes what was read at [`step`](Self::step); where the file ended, its range ends.
    pub(super) fn handle_read(&mut self, bytes: &[u8]) -> Result<(), Found> {
        let range = self.ranges.last_mut().expect("something was asked for");
        let start = range.offset;
        let blocks = bytes.len() / BLOCK_BYTES;
        range.offset = if blocks == 0 { range.end } else { start + (blocks * BLOCK_BYTES) as u64 };
        for (index, block) in bytes.chunks_exact(BLOCK_BYTES).enumerate() {
            let offset = start + (index * BLOCK_BYTES) as u64;
            match BatchHeader::decode(&self.seed, block) {
                BatchRead::Header(header) => self.handle_header(&header, offset)?,
                BatchRead::Version(version) => {
                    return Err(Found::Version(version));
                }
                BatchRead::Malformed(error) => return Err(Found::Malformed(error)),
                BatchRead::Absent => {}
            }
        }
        Ok(())
    }

    fn handle_header(&mut self, header: &BatchHeader, offset: u64) -> Result<(), Found> {
        let own_place = header.first_lsn.0 % self.segment_bytes == offset;
        if !own_place || header.first_lsn < self.end {
            return Ok(());
        }
        self.term_max = self.term_max.max(header.term);
        self.incarnation_max = self.incarnation_max.max(header.term.incarnation);
        if self.history.excludes(header.first_lsn, header.term) {
            return Ok(());
        }
        if header.durable > self.end {
            return Err(Found::Proof { lsn: header.first_lsn, durable: header.durable });
        }
        self.cut.batches += 1;
        self.cut.bytes += block_ceil(header.bytes()) as u64;
        Ok(())
    }

    /// What lies beyond the end, if anything does.
    pub(super) fn cut(&self) -> Option<Truncated> {
        (self.cut.batches > 0).then_some(self.cut)
    }

    /// The youngest term seen, and the highest incarnation in any epoch.
    pub(super) fn terms(&self) -> (Term, Incarnation) {
        (self.term_max, self.incarnation_max)
    }
}
