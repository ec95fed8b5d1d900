//! Hands out the sealed batches of a part of a log: for a backup that is behind, and for an export.
//!
//! ```text
//!   segment      | batches that are only walked over | batches that are handed out |
//!   ^ its chain                                      ^ from                        ^ to
//!     is known
//! ```
//! The walk begins at the segment that holds `from`, because its chain is known there, and checks
//! what recovery checks. So the reader also finds the chain at `from`, which two members compare.
//!
//! Invariants: what it reads is durable when it begins, so it never meets a write under way; one
//! read is in flight, of at most `RECOVERY_READ_BYTES`; the host keeps the segments from being
//! recycled while it reads. Operation ids have the top
//! bit, so that they never meet the journal's, and each reader of a journal has its own.
//! Bytes that don't check are damage: they had been durable.

use std::fmt;

use crate::block_buf::BlockBuf;
use crate::canary::Canaries;
use crate::disk::{DiskDone, DiskError, DiskOp, FileId, OpId};
use crate::epochs::EpochTable;
use crate::identity::{Chain, LogSeed};
use crate::limits::SEGMENT_HEADER_BYTES;
use crate::lsn::{Incarnation, Lsn, ShardId, Term};
use crate::recovery::replay::{Candidate, Origin, ReadAt, Replay, Step};
use crate::sealed::SealedBatch;
use crate::segment::SegmentHeader;
use crate::space::Segment;
use crate::superblock::Truncation;

const READ_BIT: u64 = 1 << 63;

/// Reads batches of one shard's log while it runs.
#[derive(Debug)]
pub struct LogReader {
    seed: LogSeed,
    shard: ShardId,
    replay: Replay,
    from: Lsn,
    to: Lsn,
    wanted: Option<ReadAt>,
    flight: Option<(OpId, FileId, u64)>,
    op_next: u64,
    chain_from: Option<Chain>,
    failed: Option<ReadFailed>,
}

/// Why a reader stopped. What it reads had been durable, so this is the end of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadFailed {
    /// The disk could not read.
    Unreadable {
        /// Which file.
        file: FileId,
        /// Where in it.
        offset: u64,
        /// Why.
        error: DiskError,
    },
    /// What had been durable doesn't check.
    Damaged {
        /// Where in the log.
        lsn: Lsn,
    },
}

impl fmt::Display for ReadFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { file, offset, error } => {
                write!(f, "{file} can't be read at byte {offset}: {error}; see to the disk")
            }
            Self::Damaged { lsn } => write!(
                f,
                "the log is damaged at LSN {lsn}, which had been durable; \
                 look at it with `laelaps journal inspect`"
            ),
        }
    }
}

impl std::error::Error for ReadFailed {}

/// What a reader needs to know of the log.
#[derive(Debug)]
pub(crate) struct ReadFrom {
    pub(crate) seed: LogSeed,
    pub(crate) segment_bytes: u64,
    /// From the one that holds the first batch on.
    pub(crate) segments: Vec<Segment>,
    pub(crate) epochs: EpochTable,
    pub(crate) truncation: Truncation,
    pub(crate) from: Lsn,
    pub(crate) to: Lsn,
    /// How many readers this journal had before.
    pub(crate) number: u32,
}

impl LogReader {
    pub(crate) fn new(log: ReadFrom) -> Self {
        let first = log.segments.first().expect("the one that holds the first batch");
        let first_lsn =
            |segment: &Segment| Lsn(segment.number * log.segment_bytes + SEGMENT_HEADER_BYTES);
        let candidates = log.segments.iter().filter_map(|segment| {
            let first_lsn = first_lsn(segment);
            // Which opening wrote it shows in its first batch.
            let epoch = log.epochs.epoch_at(first_lsn);
            let term = Term { epoch, incarnation: Incarnation(u32::MAX) };
            let header = SegmentHeader { term, first_lsn, chain_before: segment.chain_before? };
            Some(Candidate { slot: segment.slot, header })
        });
        let candidates = candidates.collect();
        let origin = Origin {
            seed: log.seed,
            segment_bytes: log.segment_bytes,
            head: first_lsn(first),
            chain: first.chain_before.expect("its first batch is durable"),
            truncation: log.truncation,
            epochs: log.epochs,
        };
        let head = origin.head;
        let mut reader = Self {
            seed: log.seed,
            shard: log.seed.shard(),
            replay: Replay::new(origin, candidates, Canaries::default()),
            from: log.from,
            to: log.to,
            wanted: None,
            flight: None,
            op_next: READ_BIT | u64::from(log.number) << 32,
            chain_from: None,
            failed: None,
        };
        reader.note_chain(head, reader.replay.chain());
        reader
    }

    /// Whether an operation is a reader's.
    #[must_use]
    pub fn owns(id: OpId) -> bool {
        id.0 & READ_BIT != 0
    }

    /// Whether the answer to this operation is due here.
    #[must_use]
    pub fn awaits(&self, id: OpId) -> bool {
        self.flight.is_some_and(|(flight, _, _)| flight == id)
    }

    /// The next batch; none if something has to be read, or all was handed out.
    pub fn poll_batch(&mut self) -> Option<SealedBatch> {
        while self.wanted.is_none() && self.failed.is_none() && !self.is_over() {
            match self.replay.step() {
                Step::Read(at) => self.wanted = Some(at),
                Step::Records => {
                    let bytes = self.replay.take_batch().expect("a batch was entered");
                    let batch = SealedBatch::of_own(&self.seed, bytes);
                    self.note_chain(batch.first_lsn(), batch.chain_before());
                    self.note_chain(self.replay.lsn(), batch.chain_after());
                    if batch.first_lsn() >= self.from {
                        return Some(batch);
                    }
                }
                Step::End | Step::Version(_) | Step::Malformed(_) => {
                    self.failed = Some(ReadFailed::Damaged { lsn: self.replay.lsn() });
                }
            }
        }
        None
    }

    /// The next read; ask for batches first.
    pub fn poll_disk(&mut self) -> Option<DiskOp> {
        let at = self.wanted.filter(|_| self.flight.is_none())?;
        let (id, file) = (OpId(self.op_next), FileId::Segment { shard: self.shard, slot: at.slot });
        self.op_next += 1;
        self.flight = Some((id, file, at.offset));
        Some(DiskOp::Read { id, file, offset: at.offset, buf: BlockBuf::take(at.bytes) })
    }

    /// Takes the answer to the read.
    ///
    /// # Panics
    /// If none is in flight, or another.
    pub fn handle_disk(&mut self, done: DiskDone) {
        let (id, file, offset) = self.flight.take().expect("a read is in flight");
        assert_eq!(id, done.id, "an answer to another operation");
        match (done.result, done.buf) {
            (Ok(bytes), Some(buf)) => {
                self.wanted = None;
                self.replay.handle_read(buf, bytes as usize);
            }
            (Ok(bytes), None) => {
                let error = DiskError::Short { bytes };
                self.failed = Some(ReadFailed::Unreadable { file, offset, error });
            }
            (Err(error), _) => {
                self.failed = Some(ReadFailed::Unreadable { file, offset, error });
            }
        }
    }

    /// Whether everything up to the end was handed out.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.replay.lsn() >= self.to
    }

    /// The chain at the beginning, once the walk has come there.
    #[must_use]
    pub fn chain_from(&self) -> Option<Chain> {
        self.chain_from
    }

    /// Why it stopped, if it did.
    #[must_use]
    pub fn failed(&self) -> Option<ReadFailed> {
        self.failed
    }

    /// The walk stands at `lsn`, with this chain before it.
    fn note_chain(&mut self, lsn: Lsn, chain: Chain) {
        if lsn >= self.from {
            self.chain_from.get_or_insert(chain);
        }
    }
}
