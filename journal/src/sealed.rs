//! A batch as it stands in the log, on its way to another member or to an export.
//!
//! ```text
//!   on disk   | segment header? | batch header | records ......... | zeros to the block |
//!   here                        | batch header | records ......... |
//! ```
//! Padding and segment headers are left out: both follow from the batch, so that whoever takes it
//! writes the same bytes ([`image`](SealedBatch::image)).
//!
//! Invariants: header, body and each record check, and the records fill the body; a batch that
//! doesn't is never one of these, whoever sent it.

use bytes::Bytes;

use crate::batch::{BatchHeader, BatchRead, Records};
use crate::block_buf::BlockBuf;
use crate::identity::{Chain, LogSeed};
use crate::limits::{SEGMENT_HEADER_BYTES, block_ceil};
use crate::lsn::{Lsn, Term};
use crate::segment::SegmentHeader;

/// A sealed batch, whole and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedBatch {
    header: BatchHeader,
    bytes: Bytes,
}

impl SealedBatch {
    /// Checks the bytes of a batch of the log with this seed: header, body, each record, and that
    /// nothing follows. None if anything of it is not as a member of the same version seals it.
    #[must_use]
    pub fn check(seed: &LogSeed, bytes: Bytes) -> Option<Self> {
        let BatchRead::Header(header) = BatchHeader::decode(seed, &bytes) else { return None };
        let body = header.body(seed, &bytes)?;
        let is_whole = bytes.len() == header.bytes();
        let records_check = header.records(seed, body).all(|record| record.is_ok());
        (is_whole && records_check).then_some(Self { header, bytes })
    }

    /// A batch that this process sealed or has checked itself.
    pub(crate) fn of_own(seed: &LogSeed, batch: &[u8]) -> Self {
        let BatchRead::Header(header) = BatchHeader::decode(seed, batch) else {
            panic!("a batch that was just sealed or read has a header");
        };
        Self { header, bytes: Bytes::copy_from_slice(&batch[..header.bytes()]) }
    }

    /// Header and records.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Its place.
    #[must_use]
    pub fn first_lsn(&self) -> Lsn {
        self.header.first_lsn
    }

    /// Where the next batch begins, if it follows in the same segment.
    #[must_use]
    pub fn end(&self) -> Lsn {
        self.header.end()
    }

    /// Bytes up to the next batch that are no record's: its header, and padding.
    #[must_use]
    pub fn padding_bytes(&self) -> u64 {
        self.header.padding_bytes()
    }

    /// How far the writer's log was durable when it was sealed.
    #[must_use]
    pub fn durable(&self) -> Lsn {
        self.header.durable
    }

    /// Who wrote it.
    #[must_use]
    pub fn term(&self) -> Term {
        self.header.term
    }

    /// The chain before it.
    #[must_use]
    pub fn chain_before(&self) -> Chain {
        self.header.chain_before
    }

    /// The chain after it.
    #[must_use]
    pub fn chain_after(&self) -> Chain {
        self.header.chain_after()
    }

    /// Its records, in order; none of them fails.
    pub fn records(&self, seed: &LogSeed) -> Records<'_> {
        self.header.records(seed, &self.bytes[self.bytes.len() - self.header.body_bytes as usize..])
    }

    /// What its writer wrote: padded to whole blocks, and behind the segment's header where it
    /// opens a segment.
    pub(crate) fn image(&self, seed: &LogSeed, segment_bytes: u64) -> BlockBuf {
        let opens = self.first_lsn().0 % segment_bytes == SEGMENT_HEADER_BYTES;
        let lead = if opens { SEGMENT_HEADER_BYTES as usize } else { 0 };
        let mut buf = BlockBuf::take(lead + block_ceil(self.bytes.len()));
        let (segment, batch) = buf.as_mut_slice().split_at_mut(lead);
        if opens {
            let header = SegmentHeader {
                term: self.term(),
                first_lsn: self.first_lsn(),
                chain_before: self.chain_before(),
            };
            header.encode(seed, segment_bytes, segment);
        }
        let (used, padding) = batch.split_at_mut(self.bytes.len());
        used.copy_from_slice(&self.bytes);
        padding.fill(0);
        buf
    }
}
