//! Walks over the records of a segment of the running log, in pieces that somebody else reads.
//!
//! ```text
//!   wanted() ─▶ Span ─▶ read ─▶ handle_read ─▶ each record, with its bytes
//!      ▲                             │
//!      └── a batch that is cut off ──┘          over: the chain is the one that the next
//!          is read again from its start               segment's header names
//! ```
//!
//! Invariants: every batch of the segment is seen once, in order, and every byte that is handed
//! out was covered by a checksum; the walk ends only where the chain says that the segment ended.
//! So nothing that lives in a segment can be overlooked. What does not check is damage: it was
//! durable.

use std::fmt;

use crate::batch::{BatchHeader, BatchRead};
use crate::identity::{Chain, LogSeed};
use crate::limits::SCAN_READ_BYTES;
use crate::lsn::Lsn;
use crate::reads::Span;
use crate::record::Record;

/// A walk over one segment.
#[derive(Debug)]
pub struct SegmentScan {
    seed: LogSeed,
    number: u64,
    /// Where the next batch stands.
    next: Lsn,
    /// The end of the segment's share of the log.
    end: Lsn,
    chain: Chain,
    chain_at_end: Chain,
}

/// A segment to be walked over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    pub(crate) number: u64,
    pub(crate) first_lsn: Lsn,
    pub(crate) end: Lsn,
    pub(crate) chain_before: Chain,
    pub(crate) chain_after: Chain,
}

/// A place in the running log whose bytes are not what was written there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damaged {
    /// The batch that doesn't check.
    pub lsn: Lsn,
}

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the batch at LSN {} was durable and does not check any more; look at it with \
             `laelaps journal verify`, and restore the directory from a copy",
            self.lsn
        )
    }
}

impl std::error::Error for Damaged {}

impl SegmentScan {
    pub(crate) fn new(seed: LogSeed, extent: &Extent) -> Self {
        Self {
            seed,
            number: extent.number,
            next: extent.first_lsn,
            end: extent.end,
            chain: extent.chain_before,
            chain_at_end: extent.chain_after,
        }
    }

    /// The number of the segment.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// What is to be read next. None: it is over.
    #[must_use]
    pub fn wanted(&self) -> Option<Span> {
        if self.chain == self.chain_at_end {
            return None;
        }
        let left = usize::try_from(self.end.since(self.next)).unwrap_or(usize::MAX);
        Some(Span { lsn: self.next, bytes: left.min(SCAN_READ_BYTES) })
    }

    /// Takes what [`wanted`](Self::wanted) asked for; `each` gets every record that is whole in it:
    /// its place, what it says, and its bytes as they stand there.
    ///
    /// # Errors
    /// [`Damaged`]; the records before it were handed out.
    pub fn handle_read(
        &mut self,
        bytes: &[u8],
        mut each: impl FnMut(Lsn, &Record<'_>, &[u8]),
    ) -> Result<(), Damaged> {
        let begin = self.next;
        while self.chain != self.chain_at_end {
            let damaged = Damaged { lsn: self.next };
            let at = usize::try_from(self.next.since(begin)).map_err(|_| damaged)?;
            let rest = bytes.get(at..).unwrap_or_default();
            if rest.is_empty() && at > 0 {
                break;
            }
            let BatchRead::Header(header) = BatchHeader::decode(&self.seed, rest) else {
                return Err(damaged);
            };
            if header.first_lsn != self.next || header.chain_before != self.chain {
                return Err(damaged);
            }
            if header.bytes() > rest.len() && at > 0 {
                break;
            }
            let body = header.body(&self.seed, rest).ok_or(damaged)?;
            let mut records = header.records(&self.seed, body);
            while let Some(found) = records.next_with_bytes() {
                let (lsn, record, bytes) = found.map_err(|_| damaged)?;
                each(lsn, &record, bytes);
            }
            (self.chain, self.next) = (header.chain_after(), header.end());
        }
        Ok(())
    }
}
