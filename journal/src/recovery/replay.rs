//! Walks over the batches of a log, in order, as far as they prove each other.
//!
//! ```text
//!   at X:  batch header: this log, this place, this chain, a term not older, not cut off, of the
//!          epoch that the table has there, inside its segment, vouching for nothing beyond
//!          itself; body: checksum                              -> its records, go on
//!   else:  a segment header for the next number that names this chain          -> go on there, if
//!          its first batch is good; if not, the log ends at X all the same
//!   else:  the log ends at X (whether rightly, `scan` finds out)
//! ```
//!
//! Invariants: nothing is handed out of a batch before the whole of it checked; the walk never goes
//! back. Bytes are read in chunks that end with the segment; a batch cut by the end of a chunk is
//! read again from its start.

use std::collections::VecDeque;

use crate::batch::{BatchHeader, BatchRead};
use crate::block_buf::BlockBuf;
use crate::canary::{Canaries, Canary};
use crate::epochs::EpochTable;
use crate::identity::{Chain, LogSeed};
use crate::limits::{BATCH_HEADER_BYTES, BLOCK_BYTES, RECOVERY_READ_BYTES, SEGMENT_HEADER_BYTES};
use crate::lsn::{Lsn, Slot, Term};
use crate::record::{Record, RecordError, RecordKind};
use crate::segment::SegmentHeader;
use crate::space::Segment;
use crate::superblock::Truncation;

/// A segment header found at the start of a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) slot: Slot,
    pub(super) header: SegmentHeader,
}

/// What the walk needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A batch was entered: its records are there.
    Records,
    /// Bytes of a segment.
    Read(ReadAt),
    /// The log ends here.
    End,
    /// A batch of another version stands here.
    Version(u16),
    /// A batch that this broker can't make sense of stands here.
    Malformed(RecordError),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReadAt {
    pub(super) slot: Slot,
    pub(super) offset: u64,
    pub(super) bytes: usize,
}

#[derive(Debug)]
pub(super) struct Replay {
    seed: LogSeed,
    segment_bytes: u64,
    truncation: Truncation,
    epochs: EpochTable,
    canaries: Canaries,
    candidates: Vec<Candidate>,
    /// Segments that were accepted, head first.
    live: VecDeque<Segment>,
    abandoned: Option<Segment>,
    /// Where the log would end if the segment just entered turns out to hold nothing.
    entered_from: Lsn,
    lsn: Lsn,
    chain: Chain,
    term: Term,
    chunk: Option<Chunk>,
    batch: Option<BatchCursor>,
    /// Length of the record that was looked at and not taken yet.
    peeked: usize,
    /// Where it has to come by, and with which chain, until it has.
    due: Option<(Lsn, Chain)>,
}

#[derive(Debug)]
struct Chunk {
    buf: BlockBuf,
    /// The place of its first byte.
    start: Lsn,
}

/// Where in the chunk the next record of the entered batch begins.
#[derive(Clone, Copy, Debug)]
struct BatchCursor {
    at: usize,
    end: usize,
    lsn: Lsn,
    left: u32,
}

impl BatchCursor {
    fn after(self, record_bytes: usize) -> Self {
        Self {
            at: self.at + record_bytes,
            lsn: self.lsn.plus(record_bytes as u64),
            left: self.left - 1,
            ..self
        }
    }
}

/// Where a walk begins.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub(super) seed: LogSeed,
    pub(super) segment_bytes: u64,
    pub(super) head: Lsn,
    pub(super) chain: Chain,
    pub(super) truncation: Truncation,
    pub(super) epochs: EpochTable,
}

impl Replay {
    pub(super) fn new(origin: Origin, candidates: Vec<Candidate>, canaries: Canaries) -> Self {
        Self {
            seed: origin.seed,
            segment_bytes: origin.segment_bytes,
            truncation: origin.truncation,
            epochs: origin.epochs,
            canaries,
            candidates,
            live: VecDeque::new(),
            abandoned: None,
            entered_from: origin.head,
            lsn: origin.head,
            chain: origin.chain,
            term: Term::default(),
            chunk: None,
            batch: None,
            peeked: 0,
            due: None,
        }
    }

    /// The walk begins behind these segments, and has to come by a place with this chain.
    pub(super) fn begin_behind(&mut self, segments: VecDeque<Segment>, due: (Lsn, Chain)) {
        self.live = segments;
        self.due = Some(due);
    }

    /// Whether it came by where it had to.
    pub(super) fn came_by(&self) -> bool {
        self.due.is_none()
    }

    /// The segment that was entered last, if nothing in it was accepted: then the log ends before
    /// it.
    pub(super) fn abandoned(&self) -> Option<&Segment> {
        self.abandoned.as_ref()
    }

    /// The end of what was accepted.
    pub(super) fn lsn(&self) -> Lsn {
        self.lsn
    }

    pub(super) fn chain(&self) -> Chain {
        self.chain
    }

    pub(super) fn term(&self) -> Term {
        self.term
    }

    pub(super) fn live(&self) -> &VecDeque<Segment> {
        &self.live
    }

    /// Goes on as far as it can without reading.
    pub(super) fn step(&mut self) -> Step {
        assert!(self.batch.is_none(), "the records of a batch are taken first");
        loop {
            let Some(tail) = self.live.back().copied() else {
                if self.enter_segment(self.lsn.0 / self.segment_bytes) {
                    continue;
                }
                return Step::End;
            };
            let end = Lsn((tail.number + 1) * self.segment_bytes);
            let here = if self.lsn < end { self.read_batch(end) } else { Here::Nothing };
            match here {
                Here::Batch => return Step::Records,
                Here::Unread => return Step::Read(self.read_at(tail.slot, end)),
                Here::Version(version) => return Step::Version(version),
                Here::Malformed(error) => return Step::Malformed(error),
                // A segment is as good as none without its first batch, and nothing follows it.
                Here::Nothing if self.lsn == self.first_lsn(tail.number) => {
                    self.abandoned = self.live.pop_back();
                    self.lsn = self.entered_from;
                    return Step::End;
                }
                Here::Nothing if self.enter_segment(tail.number + 1) => {}
                Here::Nothing => return Step::End,
            }
        }
    }

    /// Takes what was read at [`Step::Read`]; fewer bytes if the file is shorter.
    pub(super) fn handle_read(&mut self, mut buf: BlockBuf, bytes: usize) {
        // What is not there reads as zeros, so that the walk ends at it.
        let len = buf.len();
        buf.as_mut_slice()[bytes.min(len)..].fill(0);
        self.chunk = Some(Chunk { buf, start: self.lsn });
    }

    /// Whether the entered batch has another record, and whether it can be read.
    pub(super) fn peek_record(&mut self) -> Option<Result<(), (Lsn, RecordError)>> {
        loop {
            let batch = self.batch?;
            if batch.left == 0 {
                self.batch = None;
                let filled = batch.at == batch.end;
                return (!filled).then_some(Err((batch.lsn, RecordError::Length)));
            }
            match self.decode(batch) {
                Ok((record, bytes)) => {
                    let dropped = record.kind == RecordKind::Settle
                        && self.canaries.has(Canary::SettleDroppedAtRecovery);
                    if !dropped {
                        self.peeked = bytes;
                        return Some(Ok(()));
                    }
                    self.batch = Some(batch.after(bytes));
                }
                Err(error) => return Some(Err((batch.lsn, error))),
            }
        }
    }

    /// The next record of the entered batch, if [`peek_record`](Self::peek_record) saw one.
    pub(super) fn take_record(&mut self) -> Option<(Lsn, Record<'_>)> {
        let batch = self.batch?;
        let bytes = &self.chunk.as_ref()?.buf.as_slice()[batch.at..batch.at + self.peeked];
        self.batch = Some(batch.after(self.peeked));
        let record = Record::parse(bytes).expect("it was read a moment ago");
        Some((batch.lsn, record))
    }

    /// The whole of the entered batch, header and records, in place of its records.
    pub(super) fn take_batch(&mut self) -> Option<&[u8]> {
        let batch = self.batch.take()?;
        let chunk = self.chunk.as_ref().expect("a batch is entered in a chunk");
        Some(&chunk.buf.as_slice()[batch.at - BATCH_HEADER_BYTES..batch.end])
    }

    fn decode(&self, batch: BatchCursor) -> Result<(Record<'_>, usize), RecordError> {
        let chunk = self.chunk.as_ref().expect("a batch is entered in a chunk");
        Record::decode(&self.seed, batch.lsn, &chunk.buf.as_slice()[batch.at..batch.end])
    }

    fn first_lsn(&self, number: u64) -> Lsn {
        Lsn(number * self.segment_bytes + SEGMENT_HEADER_BYTES)
    }

    /// Goes to the start of a segment if a header proves that the log went on there.
    fn enter_segment(&mut self, number: u64) -> bool {
        let first_lsn = self.first_lsn(number);
        let fitting = self.candidates.iter().filter(|candidate| {
            let header = &candidate.header;
            let chained = header.chain_before == self.chain
                || self.canaries.has(Canary::ChainUnchecked)
                || self.canaries.has(Canary::StaleBatchAccepted);
            header.first_lsn == first_lsn
                && chained
                && header.term >= self.term
                && self.may_hold(first_lsn, header.term)
        });
        let Some(found) = fitting.max_by_key(|candidate| candidate.header.term) else {
            return false;
        };
        let slot = found.slot;
        self.live.push_back(Segment::new(number, slot, Some(self.chain)));
        self.entered_from = self.lsn;
        self.lsn = first_lsn;
        self.chunk = None;
        true
    }

    fn read_at(&self, slot: Slot, end: Lsn) -> ReadAt {
        let rest = usize::try_from(end.since(self.lsn)).unwrap_or(usize::MAX);
        let bytes = rest.min(RECOVERY_READ_BYTES);
        ReadAt { slot, offset: self.lsn.0 % self.segment_bytes, bytes }
    }

    /// Looks at what stands at the current place, and enters it if it is the next batch.
    fn read_batch(&mut self, segment_end: Lsn) -> Here {
        let Some(chunk) = &self.chunk else { return Here::Unread };
        let at = usize::try_from(self.lsn.since(chunk.start)).expect("within a chunk");
        let bytes = chunk.buf.as_slice();
        if bytes.len() < at + BLOCK_BYTES {
            return Here::Unread;
        }
        let header = match BatchHeader::decode(&self.seed, &bytes[at..]) {
            BatchRead::Header(header) => header,
            BatchRead::Version(version) => return Here::Version(version),
            BatchRead::Malformed(error) => return Here::Malformed(error),
            BatchRead::Absent => return Here::Nothing,
        };
        if !self.follows(&header, segment_end) {
            return Here::Nothing;
        }
        if bytes.len() < at + header.bytes() {
            // A chunk that begins here reaches over the longest batch or to the segment's end.
            return if at > 0 { Here::Unread } else { Here::Nothing };
        }
        if header.body(&self.seed, &bytes[at..]).is_none() {
            return Here::Nothing;
        }
        let body_at = at + BATCH_HEADER_BYTES;
        self.batch = Some(BatchCursor {
            at: body_at,
            end: at + header.bytes(),
            lsn: header.first_lsn.plus(BATCH_HEADER_BYTES as u64),
            left: header.records,
        });
        if let Some(tail) = self.live.back_mut() {
            tail.padding_bytes += header.padding_bytes();
        }
        let ahead = header.end().since(header.first_lsn);
        self.lsn = self.lsn.plus(ahead);
        self.chain = header.chain_after();
        self.term = header.term;
        self.due = self.due.filter(|due| *due != (self.lsn, self.chain));
        Here::Batch
    }

    /// Whether what was written there in that term was neither cut off nor of another history.
    fn may_hold(&self, lsn: Lsn, term: Term) -> bool {
        let in_epoch =
            self.epochs.holds(term.epoch, lsn) || self.canaries.has(Canary::EpochTableUnread);
        in_epoch && !self.truncation.covers(lsn, term)
    }

    fn follows(&self, header: &BatchHeader, segment_end: Lsn) -> bool {
        if self.canaries.has(Canary::StaleBatchAccepted) {
            let offset = |lsn: Lsn| lsn.0 % self.segment_bytes;
            return offset(header.first_lsn) == offset(self.lsn)
                && self.lsn.plus(header.bytes() as u64) <= segment_end;
        }
        let chained =
            header.chain_before == self.chain || self.canaries.has(Canary::ChainUnchecked);
        header.first_lsn == self.lsn
            && chained
            && header.term >= self.term
            && self.may_hold(header.first_lsn, header.term)
            && header.end() <= segment_end
            && header.durable <= header.first_lsn
    }
}

enum Here {
    Batch,
    Unread,
    Nothing,
    Version(u16),
    Malformed(RecordError),
}
