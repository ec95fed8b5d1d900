//! A segment: a fixed share of the log, in one of the shard's files.
//!
//! ```text
//!   log      |  segment 0   |  segment 1   |  segment 2   | ...     segment n = [n*S, (n+1)*S)
//!   files    slot 0           slot 3         slot 1                 whichever was free
//!
//!   0        4     6     8                16               24               32
//!   | magic  | ver |shard| epoch          | first LSN      | segment bytes  |
//!   32               40       44                                60       64            4096
//!   | chain before   | incarn.| log id                          | crc    | zeros ...  | batches
//! ```
//!
//! The header is one block and is written together with the first batch, in one operation: a
//! segment without a durable first batch is as good as none. `first LSN` is n*S + 4096. Term and
//! chain are the first batch's, so both members of a pair write the same bytes.
//!
//! Invariants: a segment is found by its header, never by the name of its file. A header proves
//! that the log went on from the chain value it names, so what was left of the segment before is
//! skipped. A slot that is used again keeps the batches of its last life behind the new ones; their
//! first LSN is not their place any more, and their chain doesn't fit, so they are never read.

use crate::identity::{Chain, LogSeed};
use crate::limits::{BLOCK_BYTES, FORMAT_VERSION, LSN_MAX, SEGMENT_HEADER_BYTES};
use crate::lsn::{Epoch, Incarnation, LogId, Lsn, ShardId, Term};
use crate::record::{u16_at, u32_at, u64_at};

/// "LLsg"
const MAGIC: [u8; 4] = *b"LLsg";

const LOG_ID_AT: usize = 44;
const CRC_AT: usize = 60;
const USED_BYTES: usize = 64;

/// The header of a segment whose checksum holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Who wrote its first batch.
    pub term: Term,
    /// The place of its first batch.
    pub first_lsn: Lsn,
    /// The chain before its first batch.
    pub chain_before: Chain,
}

/// What stands at the start of a segment's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentRead {
    /// Zeros: never used.
    Blank,
    /// Something that doesn't check.
    Unreadable,
    /// A segment of this log.
    Header(SegmentHeader),
    /// A segment of this log in a version that this broker doesn't read.
    Version(u16),
    /// A segment of another log, or of another shard.
    WrongLog(LogId),
}

impl SegmentHeader {
    /// Reads the first block of a segment's file.
    #[must_use]
    pub fn decode(seed: &LogSeed, segment_bytes: u64, bytes: &[u8]) -> SegmentRead {
        if bytes.iter().all(|byte| *byte == 0) {
            return SegmentRead::Blank;
        }
        let Some(bytes) = bytes.first_chunk::<USED_BYTES>() else {
            return SegmentRead::Unreadable;
        };
        // The checksum is seeded by the log and the shard that the header names, so that a segment
        // of others is told from a damaged one.
        let mut named = LogId::default();
        named.0.copy_from_slice(&bytes[LOG_ID_AT..CRC_AT]);
        let named_seed = LogSeed::new(named, ShardId(u16_at(bytes, 6)));
        if bytes[..4] != MAGIC || named_seed.crc(&bytes[..CRC_AT]) != u32_at(bytes, CRC_AT) {
            return SegmentRead::Unreadable;
        }
        if named != seed.log() || named_seed.shard() != seed.shard() {
            return SegmentRead::WrongLog(named);
        }
        let version = u16_at(bytes, 4);
        if version != FORMAT_VERSION {
            return SegmentRead::Version(version);
        }
        let first_lsn = Lsn(u64_at(bytes, 16));
        if u64_at(bytes, 24) != segment_bytes
            || first_lsn.0 > LSN_MAX
            || first_lsn.0 % segment_bytes != SEGMENT_HEADER_BYTES
        {
            return SegmentRead::Unreadable;
        }
        SegmentRead::Header(Self {
            term: Term {
                epoch: Epoch(u64_at(bytes, 8)),
                incarnation: Incarnation(u32_at(bytes, 40)),
            },
            first_lsn,
            chain_before: Chain(u64_at(bytes, 32)),
        })
    }

    /// Writes the header over the whole of `block`.
    pub(crate) fn encode(&self, seed: &LogSeed, segment_bytes: u64, block: &mut [u8]) {
        assert_eq!(block.len(), BLOCK_BYTES);
        assert_eq!(self.first_lsn.0 % segment_bytes, SEGMENT_HEADER_BYTES);
        block[..4].copy_from_slice(&MAGIC);
        block[4..6].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        block[6..8].copy_from_slice(&seed.shard().0.to_le_bytes());
        block[8..16].copy_from_slice(&self.term.epoch.0.to_le_bytes());
        block[16..24].copy_from_slice(&self.first_lsn.0.to_le_bytes());
        block[24..32].copy_from_slice(&segment_bytes.to_le_bytes());
        block[32..40].copy_from_slice(&self.chain_before.0.to_le_bytes());
        block[40..44].copy_from_slice(&self.term.incarnation.0.to_le_bytes());
        block[LOG_ID_AT..CRC_AT].copy_from_slice(&seed.log().0);
        let crc = seed.crc(&block[..CRC_AT]);
        block[CRC_AT..USED_BYTES].copy_from_slice(&crc.to_le_bytes());
        block[USED_BYTES..].fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 65536;

    fn header_of(log: LogId) -> (SegmentHeader, Vec<u8>) {
        let seed = LogSeed::new(log, ShardId(0));
        let header = SegmentHeader {
            term: Term { epoch: Epoch(1), incarnation: Incarnation(1) },
            first_lsn: Lsn(3 * S + 4096),
            chain_before: Chain(77),
        };
        let mut block = vec![1; 4096];
        header.encode(&seed, S, &mut block);
        (header, block)
    }

    #[test]
    fn each_kind_of_first_block_has_its_own_answer() {
        let log = LogId([5; 16]);
        let seed = LogSeed::new(log, ShardId(0));
        let (header, block) = header_of(log);
        let read = |block: &[u8]| SegmentHeader::decode(&seed, S, block);
        assert_eq!(read(&block), SegmentRead::Header(header));
        assert_eq!(read(&[0; 4096]), SegmentRead::Blank);
        assert_eq!(read(&header_of(LogId([6; 16])).1), SegmentRead::WrongLog(LogId([6; 16])));
        for bit in 0..USED_BYTES * 8 {
            let mut hurt = block.clone();
            hurt[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read(&hurt), SegmentRead::Unreadable, "bit {bit}");
        }
    }

    #[test]
    fn a_segment_of_another_shard_is_no_damaged_one() {
        let log = LogId([5; 16]);
        let (_, block) = header_of(log);
        let other = LogSeed::new(log, ShardId(1));
        assert_eq!(SegmentHeader::decode(&other, S, &block), SegmentRead::WrongLog(log));
    }

    #[test]
    fn a_segment_of_another_size_is_not_read() {
        let log = LogId([5; 16]);
        let seed = LogSeed::new(log, ShardId(0));
        let (_, block) = header_of(log);
        assert_eq!(SegmentHeader::decode(&seed, 2 * S, &block), SegmentRead::Unreadable);
    }
}
