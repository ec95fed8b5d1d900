//! A batch: the unit of checksum, disk write, replication and recovery.
//!
//! ```text
//!   0        4     6     8                16               24               32
//!   | magic  | ver |shard| epoch          | first LSN      | durable LSN    |
//!   32               40       44       48       52       56       60       64
//!   | chain before   | incarn.| records| body   |body crc| flags  | crc    | body ... | zeros |
//! ```
//!
//! Little-endian. `first LSN` is the position of the header itself; records follow it, so the first
//! one stands 64 bytes later. `durable LSN` is how far the writer's own log was durable when the
//! batch was sealed. The header's checksum covers bytes 0..60. Zeros fill the last block.
//!
//! Invariants: a batch begins at a block and never leaves its segment; its durable LSN is not
//! beyond its first LSN; its term is not below the term before it; it holds at least one record.
//! Magic, version and the checksum of the first 60 bytes keep their place in every version, so that
//! a newer format is known as such.

use std::time::Instant;

use crate::block_buf::BlockBuf;
use crate::identity::{Chain, LogSeed};
use crate::limits::{
    BATCH_BYTES_MAX, BATCH_HEADER_BYTES, BLOCK_BYTES, FORMAT_VERSION, LSN_MAX,
    SEGMENT_HEADER_BYTES, block_ceil,
};
use crate::lsn::{Epoch, Incarnation, Lsn, Term};
use crate::record::{Record, RecordError, u16_at, u32_at, u64_at};
use crate::segment::SegmentHeader;

/// "LLbt"
const MAGIC: [u8; 4] = *b"LLbt";

const CRC_AT: usize = 60;

/// Above about 2 KiB a fill is one instruction of microcode with a start of its own.
const PADDING_STROKE_BYTES: usize = 1024;

/// The header of a batch whose checksum holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// Who wrote it.
    pub term: Term,
    /// Its place.
    pub first_lsn: Lsn,
    /// How far the writer's log was durable when it was sealed.
    pub durable: Lsn,
    /// The chain before it.
    pub chain_before: Chain,
    /// How many records it holds.
    pub records: u32,
    /// Bytes of its records.
    pub body_bytes: u32,
    /// Checksum of its records.
    pub body_crc: u32,
    /// Checksum of the header.
    pub header_crc: u32,
}

/// What stands where a batch might begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchRead {
    /// No batch of this log: zeros, the inside of another batch, or a header that is torn.
    Absent,
    /// A header of this log. Nothing is said about its place or its body.
    Header(BatchHeader),
    /// A header of this log in a version that this broker doesn't read.
    Version(u16),
    /// A header of this log, of this version, that this broker can't make sense of: it was written
    /// by another one. It is not torn, for its checksum holds.
    Malformed(RecordError),
}

impl BatchHeader {
    /// Reads the header at the start of `bytes`.
    #[must_use]
    pub fn decode(seed: &LogSeed, bytes: &[u8]) -> BatchRead {
        let Some(bytes) = bytes.first_chunk::<BATCH_HEADER_BYTES>() else {
            return BatchRead::Absent;
        };
        let header_crc = u32_at(bytes, CRC_AT);
        if bytes[..4] != MAGIC || seed.crc(&bytes[..CRC_AT]) != header_crc {
            return BatchRead::Absent;
        }
        let version = u16_at(bytes, 4);
        if version != FORMAT_VERSION {
            return BatchRead::Version(version);
        }
        let header = Self {
            term: Term {
                epoch: Epoch(u64_at(bytes, 8)),
                incarnation: Incarnation(u32_at(bytes, 40)),
            },
            first_lsn: Lsn(u64_at(bytes, 16)),
            durable: Lsn(u64_at(bytes, 24)),
            chain_before: Chain(u64_at(bytes, 32)),
            records: u32_at(bytes, 44),
            body_bytes: u32_at(bytes, 48),
            body_crc: u32_at(bytes, 52),
            header_crc,
        };
        let sound = u16_at(bytes, 6) == seed.shard().0
            && header.first_lsn.0.is_multiple_of(BLOCK_BYTES as u64)
            && header.first_lsn.0 <= LSN_MAX
            && header.records > 0
            && header.body_bytes as usize <= BATCH_BYTES_MAX - BATCH_HEADER_BYTES;
        let flags = u32_at(bytes, 56);
        if flags != 0 {
            return BatchRead::Malformed(RecordError::UnknownBatchFlags(flags));
        }
        if sound { BatchRead::Header(header) } else { BatchRead::Malformed(RecordError::Batch) }
    }

    /// Writes the header over the first bytes of `out` and returns its checksum.
    fn encode(&self, seed: &LogSeed, out: &mut [u8]) -> u32 {
        out[..4].copy_from_slice(&MAGIC);
        out[4..6].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        out[6..8].copy_from_slice(&seed.shard().0.to_le_bytes());
        out[8..16].copy_from_slice(&self.term.epoch.0.to_le_bytes());
        out[16..24].copy_from_slice(&self.first_lsn.0.to_le_bytes());
        out[24..32].copy_from_slice(&self.durable.0.to_le_bytes());
        out[32..40].copy_from_slice(&self.chain_before.0.to_le_bytes());
        out[40..44].copy_from_slice(&self.term.incarnation.0.to_le_bytes());
        out[44..48].copy_from_slice(&self.records.to_le_bytes());
        out[48..52].copy_from_slice(&self.body_bytes.to_le_bytes());
        out[52..56].copy_from_slice(&self.body_crc.to_le_bytes());
        out[56..CRC_AT].fill(0);
        let crc = seed.crc(&out[..CRC_AT]);
        out[CRC_AT..BATCH_HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
        crc
    }

    /// Bytes of header and records, without padding.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        BATCH_HEADER_BYTES + self.body_bytes as usize
    }

    /// Where the next batch begins, if it follows in the same segment.
    #[must_use]
    pub const fn end(&self) -> Lsn {
        self.first_lsn.plus(block_ceil(self.bytes()) as u64)
    }

    /// Bytes up to the next batch that are no record's: the header, and padding.
    #[must_use]
    pub const fn padding_bytes(&self) -> u64 {
        (block_ceil(self.bytes()) - self.body_bytes as usize) as u64
    }

    /// The chain after it.
    #[must_use]
    pub const fn chain_after(&self) -> Chain {
        self.chain_before.next(self.header_crc, self.body_crc)
    }

    /// The records in `batch` (which begins with this header), if they are there and check.
    #[must_use]
    pub fn body<'a>(&self, seed: &LogSeed, batch: &'a [u8]) -> Option<&'a [u8]> {
        let body = batch.get(BATCH_HEADER_BYTES..self.bytes())?;
        (seed.crc(body) == self.body_crc).then_some(body)
    }

    /// Walks over the records of a body.
    #[must_use]
    pub fn records<'a>(&self, seed: &LogSeed, body: &'a [u8]) -> Records<'a> {
        let lsn = self.first_lsn.plus(BATCH_HEADER_BYTES as u64);
        Records { seed: *seed, lsn, rest: body, left: self.records }
    }
}

/// The records of a batch, in order.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    seed: LogSeed,
    lsn: Lsn,
    rest: &'a [u8],
    left: u32,
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<(Lsn, Record<'a>), (Lsn, RecordError)>;

    /// After an error there is nothing more.
    fn next(&mut self) -> Option<Self::Item> {
        let found = self.next_with_bytes()?;
        Some(found.map(|(lsn, record, _)| (lsn, record)))
    }
}

/// A record's place, what it says, and the bytes that it was decoded from.
type WithBytes<'a> = (Lsn, Record<'a>, &'a [u8]);

impl<'a> Records<'a> {
    pub(crate) fn next_with_bytes(&mut self) -> Option<Result<WithBytes<'a>, (Lsn, RecordError)>> {
        if self.left == 0 && self.rest.is_empty() {
            return None;
        }
        let lsn = self.lsn;
        let decoded = match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Record::decode(&self.seed, lsn, self.rest)
            }
            None => Err(RecordError::Length),
        };
        match decoded {
            Ok((record, len)) => {
                let (bytes, rest) = self.rest.split_at(len);
                (self.rest, self.lsn) = (rest, lsn.plus(len as u64));
                Some(Ok((lsn, record, bytes)))
            }
            Err(error) => {
                (self.left, self.rest) = (0, &[]);
                Some(Err((lsn, error)))
            }
        }
    }
}

/// A batch that still takes records.
#[derive(Debug)]
pub(crate) struct OpenBatch {
    buf: BlockBuf,
    /// Bytes before the batch in the buffer: the segment's header, where it opens a segment.
    lead: usize,
    first_lsn: Lsn,
    bytes: usize,
    bytes_max: usize,
    records: u32,
    /// When the first record came.
    pub(crate) since: Instant,
    /// When it is to be written at the latest.
    pub(crate) due: Instant,
    /// It must not be held back for company, not even on a full disk.
    pub(crate) forced: bool,
}

/// What a batch is sealed with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seal {
    pub(crate) term: Term,
    pub(crate) durable: Lsn,
    pub(crate) chain_before: Chain,
    pub(crate) segment_bytes: u64,
}

impl OpenBatch {
    /// A batch at `first_lsn` of at most `bytes_max` bytes; the first of its segment brings the
    /// segment's header along.
    pub(crate) fn new(
        first_lsn: Lsn,
        bytes_max: usize,
        opens_segment: bool,
        now: Instant,
        due: Instant,
    ) -> Self {
        assert!(bytes_max.is_multiple_of(BLOCK_BYTES) && bytes_max <= BATCH_BYTES_MAX);
        let lead = if opens_segment { SEGMENT_HEADER_BYTES as usize } else { 0 };
        // Always the same size, so that one list of free buffers serves all batches.
        let buf = BlockBuf::take(BATCH_BYTES_MAX + SEGMENT_HEADER_BYTES as usize);
        let bytes = BATCH_HEADER_BYTES;
        Self { buf, lead, first_lsn, bytes, bytes_max, records: 0, since: now, due, forced: false }
    }

    pub(crate) fn fits(&self, record_bytes: usize) -> bool {
        self.bytes + record_bytes <= self.bytes_max
    }

    /// Copies the record, which takes `len` bytes, in; returns its place and its end.
    #[inline(always)]
    pub(crate) fn push(&mut self, seed: &LogSeed, record: &Record<'_>, len: usize) -> (Lsn, Lsn) {
        assert!(self.fits(len), "a record of {len} bytes in a batch of {}", self.bytes_max);
        let lsn = self.first_lsn.plus(self.bytes as u64);
        let at = self.lead + self.bytes;
        record.encode(seed, lsn, &mut self.buf.as_mut_slice()[at - 4..at + len]);
        self.bytes += len;
        self.records += 1;
        (lsn, lsn.plus(len as u64))
    }

    /// Bytes that would be zeros if it were sealed now.
    pub(crate) fn padding(&self) -> usize {
        block_ceil(self.bytes) - self.bytes
    }

    /// Where the next batch begins if this one is sealed now.
    pub(crate) fn end(&self) -> Lsn {
        self.first_lsn.plus(block_ceil(self.bytes) as u64)
    }

    /// Where its last record ends.
    pub(crate) fn record_end(&self) -> Lsn {
        self.first_lsn.plus(self.bytes as u64)
    }

    pub(crate) fn first_lsn(&self) -> Lsn {
        self.first_lsn
    }

    /// Makes it final: the header, checksums and padding, and the chain after it.
    pub(crate) fn seal(mut self, seed: &LogSeed, seal: &Seal) -> (BlockBuf, Lsn, Chain) {
        assert!(self.records > 0, "an empty batch");
        assert!(self.lead == 0 || seal.segment_bytes > 0);
        let (lead, bytes, end) = (self.lead, self.bytes, self.end());
        self.buf.set_len(lead + block_ceil(bytes));
        let (segment, batch) = self.buf.as_mut_slice().split_at_mut(lead);
        if !segment.is_empty() {
            let header = SegmentHeader {
                term: seal.term,
                first_lsn: self.first_lsn,
                chain_before: seal.chain_before,
            };
            header.encode(seed, seal.segment_bytes, segment);
        }
        let body_crc = seed.crc(&batch[BATCH_HEADER_BYTES..bytes]);
        // In short strokes: a long one is no faster at this length.
        batch[bytes..].chunks_mut(PADDING_STROKE_BYTES).for_each(|padding| padding.fill(0));
        let mut header = BatchHeader {
            term: seal.term,
            first_lsn: self.first_lsn,
            durable: seal.durable,
            chain_before: seal.chain_before,
            records: self.records,
            body_bytes: u32::try_from(bytes - BATCH_HEADER_BYTES).expect("bounded by bytes_max"),
            body_crc,
            header_crc: 0,
        };
        header.header_crc = header.encode(seed, batch);
        (self.buf, end, header.chain_after())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsn::{LogId, QueueId, Sequence, ShardId};
    use crate::record::RecordKind;

    fn seed() -> LogSeed {
        LogSeed::new(LogId([3; 16]), ShardId(1))
    }

    #[expect(clippy::disallowed_methods, reason = "a test needs some moment to begin at")]
    fn sealed(records: u64, opens_segment: bool) -> (BlockBuf, Chain) {
        let now = Instant::now();
        let mut batch = OpenBatch::new(Lsn(4096), 8192, opens_segment, now, now);
        for sequence in 0..records {
            let record = Record::new(RecordKind::Settle, QueueId(1), Sequence(sequence), &[]);
            batch.push(&seed(), &record, record.encoded_len());
        }
        let term = Term { epoch: Epoch(1), incarnation: Incarnation(2) };
        let seal = Seal {
            term,
            durable: Lsn(4096),
            chain_before: seed().chain_start(),
            segment_bytes: 65536,
        };
        let (buf, end, chain) = batch.seal(&seed(), &seal);
        assert_eq!(end, Lsn(8192));
        (buf, chain)
    }

    #[test]
    fn a_batch_comes_back_with_its_records_and_chain() {
        let (buf, chain) = sealed(3, false);
        let BatchRead::Header(header) = BatchHeader::decode(&seed(), buf.as_slice()) else {
            panic!("no header");
        };
        assert_eq!((header.records, header.first_lsn, header.end()), (3, Lsn(4096), Lsn(8192)));
        assert_eq!(header.chain_after(), chain);
        let body = header.body(&seed(), buf.as_slice()).unwrap();
        let read: Vec<_> = header.records(&seed(), body).map(|record| record.unwrap()).collect();
        assert_eq!(read.len(), 3);
        assert_eq!(read[2].1.sequence, Sequence(2));
        assert_eq!(read[2].0, Lsn(4096 + 64 + 2 * 32));
    }

    #[test]
    fn the_first_batch_brings_its_segments_header() {
        let (buf, _) = sealed(1, true);
        assert_eq!(buf.len(), 8192);
        assert!(matches!(
            BatchHeader::decode(&seed(), &buf.as_slice()[4096..]),
            BatchRead::Header(_)
        ));
        assert_eq!(BatchHeader::decode(&seed(), buf.as_slice()), BatchRead::Absent);
    }

    #[test]
    fn every_flipped_bit_of_header_and_body_is_noticed_and_padding_is_zero() {
        let (buf, _) = sealed(2, false);
        let bytes = buf.as_slice();
        let used = BATCH_HEADER_BYTES + 2 * 32;
        assert!(bytes[used..].iter().all(|byte| *byte == 0));
        for bit in 0..used * 8 {
            let mut hurt = bytes.to_vec();
            hurt[bit / 8] ^= 1 << (bit % 8);
            let intact = match BatchHeader::decode(&seed(), &hurt) {
                BatchRead::Header(header) => header.body(&seed(), &hurt).is_some(),
                BatchRead::Absent | BatchRead::Version(_) | BatchRead::Malformed(_) => false,
            };
            assert!(!intact, "bit {bit}");
        }
    }

    #[test]
    fn another_version_is_known_as_such() {
        let (buf, _) = sealed(1, false);
        let mut bytes = buf.as_slice().to_vec();
        bytes[4] = 9;
        let crc = seed().crc(&bytes[..CRC_AT]);
        bytes[CRC_AT..64].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(BatchHeader::decode(&seed(), &bytes), BatchRead::Version(9));
    }

    #[test]
    fn a_count_that_lies_ends_in_an_error() {
        let (buf, _) = sealed(2, false);
        let BatchRead::Header(header) = BatchHeader::decode(&seed(), buf.as_slice()) else {
            panic!("no header");
        };
        let body = header.body(&seed(), buf.as_slice()).unwrap();
        for records in [1, 3] {
            let lying = BatchHeader { records, ..header };
            assert!(lying.records(&seed(), body).last().unwrap().is_err(), "{records}");
        }
    }
}
