//! Reading a log while it runs: the walk over the head, and the bytes that it wants.
//!
//! ```text
//!   scan_head ─▶ SegmentScan ── wanted ─▶ read_back ─▶ DiskOp::Read ─▶ poll_read ─▶ handle_read
//! ```
//! Invariants: those of `reads` and `scan`. Reads come behind batches and the superblock; who
//! closes reads nothing more.

use std::time::Instant;

use super::{Journal, SegmentInfo};
use crate::block_buf::BlockBuf;
use crate::disk::{DiskDone, DiskError, DiskOp, OpId};
use crate::limits::BLOCK_BYTES;
use crate::lsn::Lsn;
use crate::reads::{ReadId, Span};
use crate::recovery::{LogReader, ReadFrom};
use crate::scan::{Extent, SegmentScan};
use crate::superblock::LogStart;

impl Journal {
    /// A walk over the head, to find what lives in it, if it could be recycled once nothing does.
    #[must_use]
    pub fn scan_head(&self) -> Option<SegmentScan> {
        let head = self.head_segment()?;
        let chain_before = self.space.head()?.chain_before?;
        let (_, chain_after) = self.space.after_head()?;
        let SegmentInfo { number, first_lsn, .. } = head;
        let end = Lsn((number + 1) * self.segment_bytes);
        let extent = Extent { number, first_lsn, end, chain_before, chain_after };
        Some(SegmentScan::new(*self.commit.seed(), &extent))
    }

    /// Where another member can begin this log in its middle, and how far it must go then. None
    /// while a segment is being given up: until that is durable the log may come back with it.
    #[must_use]
    pub fn start(&self) -> Option<LogStart> {
        let (head, chain) = (self.keeper.head(), self.keeper.head_chain());
        let start = LogStart { head, chain, whole_at: self.durable() };
        self.keeper.is_head_durable().then_some(start)
    }

    /// Reads what is durable of the log from `from` on. None if the log begins after it, or does
    /// not reach it.
    #[must_use]
    pub fn read(&mut self, from: Lsn) -> Option<LogReader> {
        let segments = self.space.segments_from(from);
        let to = self.commit.durable();
        if segments.is_empty() || from > to || from < self.head() {
            return None;
        }
        self.readers = self.readers.wrapping_add(1) & (u32::MAX >> 1);
        Some(LogReader::new(ReadFrom {
            seed: *self.seed(),
            segment_bytes: self.segment_bytes,
            segments,
            epochs: self.epochs().clone(),
            truncation: self.keeper.truncation(),
            from,
            to,
            number: self.readers,
        }))
    }

    /// Asks for bytes of the log. The answer comes from [`poll_read`](Self::poll_read); until then
    /// their segment is not recycled. A read that fails poisons the journal.
    ///
    /// # Panics
    /// If they are not whole blocks inside one segment that is in the log, or not durable.
    pub fn read_back(&mut self, span: Span) -> ReadId {
        let Span { lsn, bytes } = span;
        let (number, offset) = (lsn.0 / self.segment_bytes, lsn.0 % self.segment_bytes);
        let end = lsn.plus(bytes as u64);
        assert!(offset.is_multiple_of(BLOCK_BYTES as u64) && bytes.is_multiple_of(BLOCK_BYTES));
        assert!(offset + bytes as u64 <= self.segment_bytes, "{span:?} leaves its segment");
        let segment = self.space.segment(number).expect("only what is in the log is read");
        assert!(end <= self.commit.durable(), "{span:?} is not durable");
        self.reads.want(segment.slot, offset, bytes)
    }

    /// Bytes that were read, whole.
    pub fn poll_read(&mut self) -> Option<(ReadId, BlockBuf)> {
        self.reads.poll()
    }

    pub(super) fn poll_reads(&mut self, id: OpId, now: Instant) -> Option<DiskOp> {
        if self.closing {
            return None;
        }
        let (read, buf) = self.reads.submit(id, now)?;
        Some(DiskOp::Read { id, file: self.segment_file(read.slot), offset: read.offset, buf })
    }
}

pub(super) fn read_whole(done: DiskDone, bytes: usize) -> Result<BlockBuf, DiskError> {
    let read = done.result?;
    match done.buf {
        Some(buf) if read as usize >= bytes => Ok(buf),
        Some(_) | None => Err(DiskError::Short { bytes: read }),
    }
}
