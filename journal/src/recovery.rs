//! From the bytes of a log to its records, and to a journal that goes on behind them.
//!
//! ```text
//!   1 Superblock  read the shard's superblock: head, chain, durable mark, truncation
//!   2 Headers     read the first block of each segment file
//!   * Heads       read the first block of each checkpoint, if checkpoints are asked for
//!   * Pages       hand out the pages of the newest one that may be used (`loading`)
//!   3 Replay      walk over the batches; hand out their records (`replay`)
//!   4 Scan        look behind the end for proof that it is none (`scan`)
//!   5 Sync        make durable the superblock that was read, and what was accepted beyond its mark
//!   6 Mark        write the superblock: end, truncation, incarnation + 1, not clean
//!   7             Journal
//! ```
//!
//! Torn or damaged: the log ends at the first place X that nothing valid stands at. If a later
//! batch or the superblock says that more than X had been durable, what stood at X was promised:
//! damage, and the start stops. If nothing does, it was never promised: it is cut off. A checkpoint
//! says it too, of a log that never was a pair's.
//!
//! With a checkpoint the walk begins where that says. If it is found at the end of the log that the
//! checkpoint is not of this history, all that was handed out is void and the walk begins anew,
//! with the older checkpoint or without one: then at the head, for the log alone says everything.
//!
//! Invariants: before step 6 nothing is written, and every error comes before it or is its failure.
//! Step 6 is one block with data sync; the other block stays whole; so a crash at any step leaves a
//! log that recovers to the same records. Step 5 comes first: after a killed process the cache
//! shows writes that were never synced; step 6 calls those of the segments durable, and writes over
//! the superblock block that would be needed if the other one were only in the cache. Every opening
//! has a new incarnation, and the truncation covers all that went before it: what was cut off can't
//! come back. A member of a pair writes no truncation: it may be sent again, as it was, what it cut
//! off, and the epoch table says which part of the log is whose. A block that can't be read is
//! neither torn nor damaged: it is an error of its own.

mod loading;
mod reader;
mod replay;
mod scan;

use std::collections::VecDeque;
use std::fmt;
use std::time::Instant;

use crate::block_buf::BlockBuf;
use crate::checkpoint::{CheckpointError, CheckpointHead, FILES};
use crate::commit::{Commit, Start};
use crate::disk::{DiskDone, DiskError, DiskOp, FileId, OpId};
use crate::identity::LogSeed;
use crate::journal::{Checkpoints, Config, Journal, Resume};
use crate::limits::{BATCH_BYTES_MAX, BLOCK_BYTES, SEGMENT_HEADER_BYTES, WRITES_WINDOW_MAX};
use crate::lsn::{Epoch, Incarnation, LogId, Lsn, ShardId, Slot, Term};
use crate::record::{Record, RecordError};
use crate::segment::{SegmentHeader, SegmentRead};
use crate::space::{Files, Space};
use crate::superblock::{
    NodeSuperblock, SUPERBLOCK_FILE_BYTES, ShardSuperblock, SuperblockError, Truncation,
};
use loading::{Loading, Pages};
pub(crate) use reader::ReadFrom;
pub use reader::{LogReader, ReadFailed};
use replay::{Candidate, Origin, ReadAt, Replay, Step};
use scan::{Found, History, Range, Scan};

/// How far from its start a file can hold batches beyond the end of the log although its header is
/// of an older segment: as far as batches can run ahead of the write that brings the header.
const OLDER_REACH_BYTES: u64 = SEGMENT_HEADER_BYTES + (WRITES_WINDOW_MAX * BATCH_BYTES_MAX) as u64;

/// A segment file that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotFile {
    /// The number in its name.
    pub slot: Slot,
    /// How long it is.
    pub bytes: u64,
}

/// Reads one shard's log. One operation is in flight at a time.
#[derive(Debug)]
pub struct Recovery {
    seed: LogSeed,
    shard: ShardId,
    segment_bytes: u64,
    opening: Opening,
    config: Config,
    slots: Vec<SlotFile>,
    stage: Stage,
    flight: Option<OpId>,
    op_next: u64,
    /// Known from the first stage on.
    superblock: Option<ShardSuperblock>,
    headers: Vec<SegmentRead>,
    /// Checkpoints are asked for.
    loading: Option<Loading>,
    /// Known from the third stage on.
    replay: Option<Replay>,
    cut: Option<Truncated>,
    clean: bool,
    outcome: Option<Result<RecoveryOutcome, RecoveryError>>,
}

/// Under whose term the log goes on.
#[derive(Clone, Copy, Debug)]
enum Opening {
    /// Under a new one of its own: what was cut off at the end never fits again.
    Alone {
        /// No older epoch is begun.
        epoch_promised: Epoch,
    },
    /// Under another's, or under a reign that is still to be given: what was cut off may be sent
    /// again as it was, so no truncation is written. The epoch table says what counts.
    Member,
}

#[derive(Debug)]
enum Stage {
    Superblock,
    /// The slot whose first block is next.
    Headers(usize),
    /// The checkpoint whose first block is next.
    Heads(usize),
    /// What is to be read of the checkpoint that was taken, if anything.
    Pages(Option<(u8, u64, usize)>),
    Replay(Option<ReadAt>),
    Scan(Scan),
    /// Files still to be synced.
    Sync(VecDeque<FileId>),
    Mark,
    Over,
}

/// A log that was read to its end.
#[derive(Debug)]
pub struct RecoveryOutcome {
    /// Goes on behind the last record.
    pub journal: Journal,
    /// What was cut off at the end, if anything.
    pub truncated: Option<Truncated>,
    /// Whether the journal had been closed, so that every answer it gave is known to be given.
    pub clean: bool,
    /// The checkpoint that the start began with, if any.
    pub checkpoint: Option<CheckpointHead>,
    /// Checkpoints that were of no use, and why.
    pub refused: Vec<(FileId, CheckpointError)>,
}

/// What was cut off: written, never promised durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncated {
    /// Where the log ends now.
    pub lsn: Lsn,
    /// How many bytes of batches lay beyond, as far as their headers could be read.
    pub bytes: u64,
    /// How many batches.
    pub batches: u64,
}

/// Why a log can't be opened. Nothing has been written then (but for `Unwritable`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecoveryError {
    /// The shard's superblock can't be used.
    Superblock(SuperblockError),
    /// The shard's superblock was never written although the node is formatted.
    NotFormatted,
    /// What had been durable is not there or doesn't check.
    Damaged {
        /// In which file; the superblock's where the segment is missing.
        file: FileId,
        /// Where in it.
        offset: u64,
        /// Where in the log.
        lsn: Lsn,
        /// What shows that it had been durable.
        evidence: Evidence,
    },
    /// The disk could not read: nothing is known about the bytes.
    Unreadable {
        /// Which file.
        file: FileId,
        /// Where in it.
        offset: u64,
        /// Why.
        error: DiskError,
    },
    /// The disk could not sync what was read or write the superblock.
    Unwritable {
        /// Which file.
        file: FileId,
        /// Why.
        error: DiskError,
    },
    /// Another version wrote it.
    Version {
        /// In which file.
        file: FileId,
        /// Its version.
        version: u16,
    },
    /// A segment of another log or shard lies in the directory.
    WrongLog {
        /// In which file.
        file: FileId,
        /// Which log.
        log_id: LogId,
    },
    /// The log was begun in the middle of another's, and does not go far enough to be a state.
    NotWhole {
        /// Where it ends.
        end: Lsn,
        /// How far it must go.
        whole_at: Lsn,
    },
    /// A record that this version must not skip, or can't read.
    Record {
        /// Its place.
        lsn: Lsn,
        /// What is wrong.
        error: RecordError,
    },
}

impl fmt::Display for RecoveryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Superblock(error) => write!(
                f,
                "the shard's superblock: {error}; restore it or the directory from a copy"
            ),
            Self::NotFormatted => f.write_str(
                "the shard's superblock is missing although the directory was formatted; \
                 restore the directory from a copy",
            ),
            Self::Damaged { file, offset, lsn, evidence } => write!(
                f,
                "{file} is damaged at byte {offset} (LSN {lsn}): {evidence}; nothing was changed; \
                 look at it with `laelaps journal inspect`, and restore the directory from a copy"
            ),
            Self::Unreadable { file, offset, error } => write!(
                f,
                "{file} can't be read at byte {offset}: {error}; nothing was changed; \
                 see to the disk"
            ),
            Self::Unwritable { file, error } => {
                write!(f, "{file} can't be written: {error}; see to the disk")
            }
            Self::Version { file, version } => {
                write!(f, "{file} has format version {version}; start the broker that wrote it")
            }
            Self::WrongLog { file, log_id } => {
                write!(f, "{file} belongs to another shard or log (log {log_id}); move it away")
            }
            Self::NotWhole { end, whole_at } => write!(
                f,
                "the log ends at LSN {end}, on its way to {whole_at}: a member of a pair was being \
                 brought up, so it is not whole; start it as that member, with `[ha]`"
            ),
            Self::Record { lsn, error } if error.is_newer_format() => write!(
                f,
                "the record at LSN {lsn}: {error}; nothing was changed; \
                 start the broker that wrote it"
            ),
            Self::Record { lsn, error } => write!(
                f,
                "the record at LSN {lsn}: {error}; nothing was changed; \
                 look at it with `laelaps journal inspect`, and restore the directory from a copy"
            ),
        }
    }
}

impl std::error::Error for RecoveryError {}

/// What shows that bytes had been durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// A later batch was sealed when everything below `durable` was durable.
    LaterBatch {
        /// The batch.
        lsn: Lsn,
        /// What it says.
        durable: Lsn,
    },
    /// The superblock's durable mark.
    DurableMark(Lsn),
    /// A checkpoint was finished when everything below `until` was durable.
    Checkpoint {
        /// Which of the two files.
        which: u8,
        /// What had been durable.
        until: Lsn,
    },
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LaterBatch { lsn, durable } => write!(
                f,
                "the batch at LSN {lsn} was written when everything below {durable} was durable"
            ),
            Self::DurableMark(mark) => write!(f, "everything below LSN {mark} was durable"),
            Self::Checkpoint { which, until } => write!(
                f,
                "checkpoint-{which} was finished when everything below LSN {until} was durable, so \
                 acknowledged records are lost"
            ),
        }
    }
}

impl Recovery {
    /// A recovery of `shard` of a formatted node, with the segment files that its directory has.
    ///
    /// # Panics
    /// If the node has no such shard.
    #[must_use]
    pub fn new(node: &NodeSuperblock, shard: ShardId, slots: &[SlotFile], config: Config) -> Self {
        let opening = Opening::Alone { epoch_promised: node.epoch_promised };
        Self::open(node, shard, slots, config, opening)
    }

    /// The same for a member of a pair, whose role is not known yet: for [`Follower::new`].
    ///
    /// [`Follower::new`]: crate::Follower::new
    ///
    /// # Panics
    /// If the node has no such shard.
    #[must_use]
    pub fn of_member(
        node: &NodeSuperblock,
        shard: ShardId,
        slots: &[SlotFile],
        config: Config,
    ) -> Self {
        Self::open(node, shard, slots, config, Opening::Member)
    }

    fn open(
        node: &NodeSuperblock,
        shard: ShardId,
        slots: &[SlotFile],
        config: Config,
        opening: Opening,
    ) -> Self {
        assert!(shard.0 < node.geometry.shards, "{shard:?} of {:?}", node.geometry);
        Self {
            seed: LogSeed::new(node.log_id, shard),
            shard,
            segment_bytes: node.geometry.segment_bytes,
            opening,
            config,
            slots: in_order(slots),
            stage: Stage::Superblock,
            flight: None,
            op_next: 0,
            superblock: None,
            headers: Vec::new(),
            loading: None,
            replay: None,
            cut: None,
            clean: false,
            outcome: None,
        }
    }

    /// Begins with a checkpoint where there is one: then pages come before the records.
    #[must_use]
    pub fn with_checkpoints(mut self) -> Self {
        self.loading = Some(Loading::new(self.seed, self.segment_bytes));
        self
    }

    /// Whether all that was handed out before counts for nothing, once: forget it.
    pub fn poll_void(&mut self) -> bool {
        self.loading.as_mut().is_some_and(Loading::take_void)
    }

    /// Whether [`poll_void`](Self::poll_void) would say so.
    #[must_use]
    pub fn has_void(&self) -> bool {
        self.loading.as_ref().is_some_and(Loading::is_void)
    }

    /// The next page of the checkpoint. Ask until none before records are asked for.
    pub fn poll_page(&mut self) -> Option<&[u8]> {
        let Stage::Pages(None) = self.stage else { return None };
        let head = self.superblock().head;
        match self.loading.as_mut().map(|loading| loading.step(head)) {
            Some(Ok(Pages::Page { bytes })) => {
                return self.loading.as_mut().and_then(|loading| loading.take_page(bytes));
            }
            Some(Ok(Pages::Read { which, offset, bytes })) => {
                self.stage = Stage::Pages(Some((which, offset, bytes)));
            }
            Some(Ok(Pages::Over)) | None => self.begin_replay(),
            Some(Err(error)) => self.refuse(error),
        }
        None
    }

    /// The checkpoint whose page was handed out last says what cannot be.
    pub fn refuse_page(&mut self, what: &'static str) {
        self.refuse(CheckpointError::Content(what));
    }

    /// The checkpoint that is used, as far as is known.
    #[must_use]
    pub fn checkpoint(&self) -> Option<&CheckpointHead> {
        self.loading.as_ref().and_then(Loading::head)
    }

    /// Checkpoints that were of no use, and why; once.
    pub fn take_refused(&mut self) -> Vec<(FileId, CheckpointError)> {
        self.loading.as_mut().map(Loading::take_refused).unwrap_or_default()
    }

    /// Goes on with the next one, or without.
    fn refuse(&mut self, error: CheckpointError) {
        if let Some(loading) = &mut self.loading {
            loading.refuse(error);
        }
        self.begin_with_checkpoint();
    }

    /// Where places lie of which the pages may still tell though they are gone: everything before
    /// this.
    #[must_use]
    pub fn head(&self) -> Lsn {
        self.superblock.as_ref().map_or(Lsn::ZERO, |superblock| superblock.head)
    }

    /// The next thing to do on the disk, if any. Take all pages and records before.
    pub fn poll_disk(&mut self) -> Option<DiskOp> {
        if self.flight.is_some() {
            return None;
        }
        let id = OpId(self.op_next);
        let op = match &mut self.stage {
            Stage::Superblock => {
                let buf = BlockBuf::take(SUPERBLOCK_FILE_BYTES);
                DiskOp::Read { id, file: FileId::ShardSuperblock(self.shard), offset: 0, buf }
            }
            Stage::Headers(next) => {
                let file = FileId::Segment { shard: self.shard, slot: self.slots[*next].slot };
                DiskOp::Read { id, file, offset: 0, buf: BlockBuf::take(BLOCK_BYTES) }
            }
            Stage::Heads(next) => {
                let file = FileId::Checkpoint { shard: self.shard, which: FILES[*next] };
                DiskOp::Read { id, file, offset: 0, buf: BlockBuf::take(BLOCK_BYTES) }
            }
            Stage::Pages(wanted) => {
                let (which, offset, bytes) = (*wanted)?;
                let file = FileId::Checkpoint { shard: self.shard, which };
                DiskOp::Read { id, file, offset, buf: BlockBuf::take(bytes) }
            }
            Stage::Replay(wanted) => {
                let at = (*wanted)?;
                let file = FileId::Segment { shard: self.shard, slot: at.slot };
                DiskOp::Read { id, file, offset: at.offset, buf: BlockBuf::take(at.bytes) }
            }
            Stage::Scan(scan) => {
                let at = scan.step().expect("a scan that is over has moved on");
                let file = FileId::Segment { shard: self.shard, slot: at.slot };
                DiskOp::Read { id, file, offset: at.offset, buf: BlockBuf::take(at.bytes) }
            }
            Stage::Sync(files) => {
                let file = *files.front().expect("a sync that is over has moved on");
                DiskOp::Sync { id, file }
            }
            Stage::Mark => {
                let (buf, offset) = self.superblock().encode();
                DiskOp::Write { id, file: FileId::ShardSuperblock(self.shard), offset, buf }
            }
            Stage::Over => return None,
        };
        self.op_next += 1;
        self.flight = Some(id);
        Some(op)
    }

    /// Takes the answer to an operation.
    ///
    /// # Panics
    /// If the answer is to no operation in flight.
    pub fn handle_disk(&mut self, _now: Instant, done: DiskDone) {
        self.take_read(done);
    }

    /// The same without the time, of which recovery makes no use so far.
    ///
    /// # Panics
    /// If the answer is to no operation in flight.
    pub fn take_read(&mut self, done: DiskDone) {
        let id = self.flight.take().expect("an operation is in flight");
        assert_eq!(id, done.id, "an answer to another operation");
        let handled = match done.result {
            // A checkpoint is read as far as that goes.
            _ if matches!(self.stage, Stage::Heads(_) | Stage::Pages(_)) => {
                self.handle_checkpoint(done);
                Ok(())
            }
            // Fewer bytes than the file has are no end of the log: what is missing was not read.
            Ok(bytes) if self.bytes_due(&done).is_some_and(|due| (bytes as usize) < due) => {
                Err(self.io_error(DiskError::Short { bytes }))
            }
            Ok(bytes) => self.handle_done(bytes as usize, done.buf),
            Err(error) => Err(self.io_error(error)),
        };
        if let Err(error) = handled {
            self.end(Err(error));
        }
    }

    /// The next record, in order. None: more has to be read, or it is over. Ask until none before
    /// the next `poll_disk`; whatever was handed out counts only if the outcome is no error.
    pub fn poll_record(&mut self) -> Option<(Lsn, Record<'_>)> {
        let mut failed = None;
        // Find out first whether there is a record, so that the borrow of it is the last one.
        while let Stage::Replay(None) = self.stage {
            let replay = self.replay.as_mut().expect("set with the stage");
            match replay.peek_record() {
                Some(Ok(())) => break,
                Some(Err((lsn, error))) => {
                    failed = Some(RecoveryError::Record { lsn, error });
                    break;
                }
                None => self.walk(),
            }
        }
        if let Some(error) = failed {
            self.end(Err(error));
        }
        match self.stage {
            Stage::Replay(None) => self.replay.as_mut().and_then(Replay::take_record),
            Stage::Superblock
            | Stage::Headers(_)
            | Stage::Heads(_)
            | Stage::Pages(_)
            | Stage::Replay(Some(_))
            | Stage::Scan(_)
            | Stage::Sync(_)
            | Stage::Mark
            | Stage::Over => None,
        }
    }

    /// The end, once.
    pub fn poll_outcome(&mut self) -> Option<Result<RecoveryOutcome, RecoveryError>> {
        self.outcome.take()
    }

    /// Where the log begins and ends, once that is decided.
    pub(crate) fn extent(&self) -> (Lsn, Lsn) {
        (self.superblock().head, self.superblock().durable)
    }

    /// What is to be cut off, and whether the log was closed, once that is decided.
    pub(crate) fn judgement(&self) -> (Option<Truncated>, bool) {
        (self.cut, self.clean)
    }

    fn superblock(&self) -> &ShardSuperblock {
        self.superblock.as_ref().expect("read in the first stage")
    }

    fn end(&mut self, outcome: Result<RecoveryOutcome, RecoveryError>) {
        self.stage = Stage::Over;
        self.outcome = Some(outcome);
    }

    fn segment_file(&self, slot: Slot) -> FileId {
        FileId::Segment { shard: self.shard, slot }
    }

    /// How many bytes the answer to a read of a segment must have: all that were asked for, as far
    /// as the file goes.
    fn bytes_due(&mut self, done: &DiskDone) -> Option<usize> {
        let (slot, offset) = match &mut self.stage {
            Stage::Headers(next) => (self.slots[*next].slot, 0),
            Stage::Replay(at) => at.map(|at| (at.slot, at.offset))?,
            Stage::Scan(scan) => scan.step().map(|at| (at.slot, at.offset))?,
            Stage::Superblock
            | Stage::Heads(_)
            | Stage::Pages(_)
            | Stage::Sync(_)
            | Stage::Mark
            | Stage::Over => return None,
        };
        let file = self.slots.iter().find(|file| file.slot == slot)?;
        let there = usize::try_from(file.bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
        Some(done.buf.as_ref()?.len().min(there))
    }

    fn io_error(&mut self, error: DiskError) -> RecoveryError {
        let superblock = FileId::ShardSuperblock(self.shard);
        let (file, offset) = match &mut self.stage {
            Stage::Superblock => (superblock, 0),
            Stage::Headers(next) => {
                let slot = self.slots[*next].slot;
                (self.segment_file(slot), 0)
            }
            Stage::Replay(at) => {
                let at = at.expect("it was being read");
                (self.segment_file(at.slot), at.offset)
            }
            Stage::Scan(scan) => {
                let at = scan.step().expect("it was being read");
                (self.segment_file(at.slot), at.offset)
            }
            Stage::Sync(files) => {
                let file = *files.front().expect("it was being synced");
                return RecoveryError::Unwritable { file, error };
            }
            Stage::Mark => return RecoveryError::Unwritable { file: superblock, error },
            Stage::Heads(_) | Stage::Pages(_) => unreachable!("one that can't be read is passed"),
            Stage::Over => unreachable!("nothing is asked for when it is over"),
        };
        RecoveryError::Unreadable { file, offset, error }
    }

    fn handle_done(&mut self, bytes: usize, buf: Option<BlockBuf>) -> Result<(), RecoveryError> {
        let read = buf.as_ref().map_or(&[][..], |buf| &buf.as_slice()[..bytes.min(buf.len())]);
        match &mut self.stage {
            Stage::Superblock => {
                let superblock = ShardSuperblock::decode(read, self.seed.log(), self.shard);
                let superblock = superblock.map_err(RecoveryError::Superblock)?;
                let superblock = superblock.ok_or(RecoveryError::NotFormatted)?;
                if superblock.head.0 % self.segment_bytes != SEGMENT_HEADER_BYTES {
                    return Err(RecoveryError::Superblock(SuperblockError::Malformed));
                }
                self.superblock = Some(superblock);
                self.stage = Stage::Headers(0);
                self.begin_replay_when_ready();
            }
            Stage::Headers(next) => {
                let slot = self.slots[*next].slot;
                let file = FileId::Segment { shard: self.shard, slot };
                let is_stale = self.superblock.as_ref().is_some_and(|sb| sb.is_stale(slot));
                let header = if is_stale {
                    SegmentRead::Blank
                } else {
                    SegmentHeader::decode(&self.seed, self.segment_bytes, read)
                };
                if let SegmentRead::WrongLog(log_id) = header {
                    return Err(RecoveryError::WrongLog { file, log_id });
                }
                if let SegmentRead::Version(version) = header {
                    return Err(RecoveryError::Version { file, version });
                }
                *next += 1;
                self.headers.push(header);
                self.begin_replay_when_ready();
            }
            Stage::Heads(_) | Stage::Pages(_) => unreachable!("handled by itself"),
            Stage::Replay(wanted) => {
                *wanted = None;
                let replay = self.replay.as_mut().expect("set with the stage");
                replay.handle_read(buf.expect("a read brings its buffer back"), bytes);
            }
            Stage::Scan(scan) => {
                let found = scan.handle_read(read);
                let is_over = scan.step().is_none();
                if let Err(found) = found {
                    return Err(self.proof(found));
                }
                if is_over {
                    self.accept();
                }
            }
            Stage::Sync(files) => {
                files.pop_front();
                if files.is_empty() {
                    self.stage = Stage::Mark;
                }
            }
            Stage::Mark => {
                if bytes != BLOCK_BYTES {
                    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
                    return Err(self.io_error(DiskError::Short { bytes }));
                }
                self.finish();
            }
            Stage::Over => unreachable!("nothing is asked for when it is over"),
        }
        Ok(())
    }

    fn begin_replay_when_ready(&mut self) {
        if self.headers.len() < self.slots.len() {
            return;
        }
        if self.loading.is_some() {
            self.stage = Stage::Heads(0);
        } else {
            self.begin_replay();
        }
    }

    /// What was read of a checkpoint, or nothing where it could not be read.
    fn handle_checkpoint(&mut self, done: DiskDone) {
        let bytes = done.result.ok().map(|bytes| bytes as usize);
        let Some(loading) = &mut self.loading else { return };
        if let Stage::Heads(next) = self.stage {
            let buf = done.buf.as_ref();
            let block = bytes.zip(buf).map(|(bytes, buf)| &buf.as_slice()[..bytes]);
            loading.handle_head(FILES[next], block);
            if next + 1 < FILES.len() {
                self.stage = Stage::Heads(next + 1);
            } else {
                self.begin_with_checkpoint();
            }
        } else if let (Some(bytes @ 1..), Some(buf)) = (bytes, done.buf) {
            loading.handle_read(buf, bytes);
            self.stage = Stage::Pages(None);
        } else {
            self.refuse(CheckpointError::Unreadable);
        }
    }

    /// The newest checkpoint of those that are left, or the log alone.
    fn begin_with_checkpoint(&mut self) {
        let (head, files) = (self.superblock().head, self.candidates());
        if self.loading.as_mut().is_some_and(|loading| loading.take_next(head, files)) {
            self.stage = Stage::Pages(None);
        } else {
            self.begin_replay();
        }
    }

    fn candidates(&self) -> Vec<Candidate> {
        let files = self.slots.iter().zip(&self.headers).filter_map(|(file, read)| {
            let header = header_of(read)?;
            Some(Candidate { slot: file.slot, header })
        });
        files.collect()
    }

    fn begin_replay(&mut self) {
        let superblock = self.superblock();
        let checkpoint = self.loading.as_ref().and_then(Loading::head).copied();
        let origin = Origin {
            seed: self.seed,
            segment_bytes: self.segment_bytes,
            head: checkpoint.map_or(superblock.head, |checkpoint| checkpoint.from),
            chain: checkpoint.map_or(superblock.head_chain, |checkpoint| checkpoint.chain),
            truncation: superblock.truncation,
            epochs: superblock.epochs.clone(),
        };
        let mut replay = Replay::new(origin, self.candidates(), self.config.canaries());
        if let (Some(loading), Some(checkpoint)) = (&self.loading, checkpoint) {
            replay.begin_behind(loading.segments(), (checkpoint.until, checkpoint.until_chain));
        }
        self.replay = Some(replay);
        self.stage = Stage::Replay(None);
        self.walk();
    }

    /// Goes on with the replay until there are records, something to read, or the end.
    fn walk(&mut self) {
        let replay = self.replay.as_mut().expect("set with the stage");
        match replay.step() {
            Step::Records => {}
            Step::Read(at) => self.stage = Stage::Replay(Some(at)),
            Step::Version(version) => {
                let tail = replay.live().back().expect("a batch stands in a segment").slot;
                let file = self.segment_file(tail);
                self.end(Err(RecoveryError::Version { file, version }));
            }
            Step::Malformed(error) => {
                let lsn = replay.lsn();
                self.end(Err(RecoveryError::Record { lsn, error }));
            }
            Step::End => self.begin_scan(),
        }
    }

    fn begin_scan(&mut self) {
        let replay = self.replay.as_ref().expect("it has ended");
        if !replay.came_by() {
            let (until, end) = (self.checkpoint().map_or(Lsn::ZERO, |it| it.until), replay.lsn());
            let error = match until > end {
                true => CheckpointError::Beyond { until, end },
                false => CheckpointError::History,
            };
            return self.refuse(error);
        }
        let (end, tail) = (replay.lsn(), replay.live().back().copied());
        let mark = self.superblock().durable;
        if mark > end {
            let error = self.damaged(Evidence::DurableMark(mark));
            return self.end(Err(error));
        }
        if let Some(evidence) = self.lost_since_checkpoint(end) {
            let error = self.damaged(evidence);
            return self.end(Err(error));
        }
        if let (Opening::Alone { .. }, Some(whole_at)) =
            (self.opening, self.superblock().lacks(end))
        {
            return self.end(Err(RecoveryError::NotWhole { end, whole_at }));
        }
        let is_live = |slot| replay.live().iter().any(|segment| segment.slot == slot);
        let superblock = self.superblock();
        let is_other = |slot: Slot| !superblock.is_stale(slot) && !is_live(slot);
        let others = self.slots.iter().zip(&self.headers).filter(|(file, _)| is_other(file.slot));
        let mut ranges: Vec<_> = others
            .map(|(file, read)| {
                let is_older = header_of(read).is_some_and(|header| header.first_lsn < end);
                let reach = if is_older { OLDER_REACH_BYTES } else { self.segment_bytes };
                let end = file.bytes.min(self.segment_bytes).min(reach);
                Range { slot: file.slot, offset: SEGMENT_HEADER_BYTES, end }
            })
            .collect();
        if let Some(tail) = tail {
            let start = tail.number * self.segment_bytes;
            let offset = end.since(Lsn(start));
            ranges.push(Range { slot: tail.slot, offset, end: self.segment_bytes });
        }
        let history = History {
            truncation: self.superblock().truncation,
            epochs: self.superblock().epochs.clone(),
            canaries: self.config.canaries(),
        };
        let mut scan = Scan::new(self.seed, self.segment_bytes, history, end, ranges);
        let is_over = scan.step().is_none();
        self.stage = Stage::Scan(scan);
        if is_over {
            self.accept();
        }
    }

    /// A checkpoint knows of more than this log has, in which nobody but the format began a reign.
    /// Where one did, a rejoin may have cut that; and a member has it from the other one.
    fn lost_since_checkpoint(&self, end: Lsn) -> Option<Evidence> {
        let (which, until) = self.loading.as_ref().and_then(Loading::furthest)?;
        let is_alone = match self.opening {
            Opening::Alone { .. } => self.superblock().is_never_a_pairs(),
            Opening::Member => false,
        };
        (until > end && is_alone).then_some(Evidence::Checkpoint { which, until })
    }

    fn proof(&self, found: Found) -> RecoveryError {
        match found {
            Found::Proof { lsn, durable } => self.damaged(Evidence::LaterBatch { lsn, durable }),
            Found::Version(version) => {
                let (file, _) = self.place_of_end();
                RecoveryError::Version { file, version }
            }
            Found::Malformed(error) => {
                let lsn = self.replay.as_ref().expect("it has ended").lsn();
                RecoveryError::Record { lsn, error }
            }
        }
    }

    fn damaged(&self, evidence: Evidence) -> RecoveryError {
        let lsn = self.replay.as_ref().expect("it has ended").lsn();
        let (file, offset) = self.place_of_end();
        RecoveryError::Damaged { file, offset, lsn, evidence }
    }

    /// The file and offset where the log ends: in a segment without a first batch; in the tail;
    /// else the file whose header can't be read; else the superblock, which names a segment that is
    /// not there.
    fn place_of_end(&self) -> (FileId, u64) {
        let replay = self.replay.as_ref().expect("it has ended");
        if let Some(segment) = replay.abandoned() {
            return (self.segment_file(segment.slot), SEGMENT_HEADER_BYTES);
        }
        if let Some(tail) = replay.live().back() {
            let offset = replay.lsn().since(Lsn(tail.number * self.segment_bytes));
            if offset < self.segment_bytes {
                return (self.segment_file(tail.slot), offset);
            }
        }
        let mut files = self.slots.iter().zip(&self.headers);
        let unreadable = files.find(|(_, read)| matches!(read, SegmentRead::Unreadable));
        unreadable.map_or((FileId::ShardSuperblock(self.shard), 0), |(file, _)| {
            (self.segment_file(file.slot), 0)
        })
    }

    /// The end is right: what was accepted becomes durable, then the superblock says so.
    fn accept(&mut self) {
        let replay = self.replay.as_ref().expect("it has ended");
        let Stage::Scan(scan) = &self.stage else { unreachable!("called by the scan") };
        self.cut = scan.cut();
        let (end, mark) = (replay.lsn(), self.superblock().durable);
        let checkpoint = self.loading.as_ref().and_then(Loading::head);
        let beyond_mark = replay
            .live()
            .iter()
            .filter(|segment| end > mark && Lsn((segment.number + 1) * self.segment_bytes) > mark);
        let segments = beyond_mark.map(|segment| self.segment_file(segment.slot));
        let superblock = FileId::ShardSuperblock(self.shard);
        let files = std::iter::once(superblock).chain(segments).collect();

        let headers = self.headers.iter().filter_map(header_of).map(|header| header.term);
        let (scanned, incarnation) = scan.terms();
        let terms = headers.chain([scanned, replay.term()]);
        let (last, incarnation) = terms
            .fold((scanned, incarnation), |(last, incarnation), term| {
                (last.max(term), incarnation.max(term.incarnation))
            });
        let first = replay.live().front().copied();
        let superblock = self.superblock.as_mut().expect("read in the first stage");
        if let Some(first) = first.filter(|_| checkpoint.is_some()) {
            // What the checkpoint does not name any more was given up, and that is committed.
            let head = Lsn(first.number * self.segment_bytes + SEGMENT_HEADER_BYTES);
            if let Some(chain) = first.chain_before.filter(|_| head > superblock.head) {
                (superblock.head, superblock.head_chain) = (head, chain);
            }
        }
        let incarnation = incarnation.max(superblock.incarnation);
        self.clean = superblock.clean && superblock.durable == end && self.cut.is_none();
        superblock.generation += 1;
        superblock.durable = end;
        superblock.clean = false;
        superblock.incarnation = Incarnation(incarnation.0 + 1);
        if let Opening::Alone { epoch_promised } = self.opening {
            let epoch = superblock.enter_epoch(last.epoch.max(epoch_promised), end);
            superblock.truncation = Truncation { at: end, term: Term { epoch, incarnation } };
        }
        self.stage = Stage::Sync(files);
    }

    fn finish(&mut self) {
        let replay = self.replay.take().expect("it has ended");
        let superblock = self.superblock.take().expect("read in the first stage");
        let end = replay.lsn();
        let live = replay.live().clone();
        let mut files = Files::default();
        let mut named = Vec::new();
        for (file, read) in self.slots.iter().zip(&self.headers) {
            let is_live = live.iter().any(|segment| segment.slot == file.slot);
            let is_made =
                !matches!(read, SegmentRead::Blank) || file.slot.0 < superblock.slots_made;
            if is_live {
                continue;
            } else if is_made && file.bytes >= self.segment_bytes {
                files.ready.push(file.slot);
                let header = header_of(read).filter(|header| header.first_lsn >= end);
                named.extend(header.map(|header| (header, file.slot)));
            } else {
                files.remake.push(file.slot);
            }
        }
        named.sort_by_key(|(header, _)| header.term);
        let number = |header: &SegmentHeader| header.first_lsn.0 / self.segment_bytes;
        files.named = named.iter().map(|(header, slot)| (number(header), *slot)).collect();
        let start = Start {
            seed: self.seed,
            term: match self.opening {
                Opening::Alone { .. } => Term {
                    epoch: superblock.truncation.term.epoch,
                    incarnation: superblock.incarnation,
                },
                // Nothing is written in it: it is what the next batch must not be older than.
                Opening::Member => replay.term(),
            },
            segment_bytes: self.segment_bytes,
            writes_in_flight_max: self.config.writes_in_flight_max,
            chain: replay.chain(),
            next: end,
            durable: end,
        };
        let generation = self.loading.as_ref().map_or(0, Loading::generation);
        let (checkpoint, refused) = (self.checkpoint().copied(), self.take_refused());
        let journal = Journal::new(Resume {
            superblock,
            segment_bytes: self.segment_bytes,
            config: self.config.clone(),
            commit: Commit::new(&start, self.config.canaries()),
            space: Space::new(self.segment_bytes, self.config.segments_max, live, files),
            checkpoints: Checkpoints::new(generation, checkpoint),
            op_next: self.op_next,
        });
        let (truncated, clean) = (self.cut, self.clean);
        self.end(Ok(RecoveryOutcome { journal, truncated, clean, checkpoint, refused }));
    }
}

/// Segments are made in the order of their numbers, and made again in it.
fn in_order(slots: &[SlotFile]) -> Vec<SlotFile> {
    let mut slots = slots.to_vec();
    slots.sort_unstable_by_key(|file| file.slot);
    slots
}

fn header_of(read: &SegmentRead) -> Option<SegmentHeader> {
    match read {
        SegmentRead::Header(header) => Some(*header),
        SegmentRead::Blank
        | SegmentRead::Unreadable
        | SegmentRead::Version(_)
        | SegmentRead::WrongLog(_) => None,
    }
}
