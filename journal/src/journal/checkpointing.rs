//! A running log's checkpoint is written: page by page, beside everything else.
//!
//! ```text
//!   begin ─▶ Pages ── put_page, one at a time ── end ─▶ Settle ─▶ Until ─▶ Head ─▶ ended
//!            └ first the old head is blanked             │        └ and committed, to a batch
//!                                                        └ all that a page may know is durable
//! ```
//! What comes of it is the owner's to say (`put_page`); where it stands in the log is known here.
//! Its operations come last, one at a time, and while something that was appended waits for the
//! disk each is put off for a moment: nobody waits for a checkpoint. None is put off any more when
//! the log has grown by two segments meanwhile: what a start reads stays bounded.
//!
//! Invariants: those of `checkpoint`. The file that is written is never the one that was finished
//! last. A failed write, also for want of space, ends this checkpoint and nothing else, and its
//! file gives the space back; the journal is not poisoned by it. So does a segment that finds no
//! space: the log's go first, and while it waits for that no checkpoint is begun. An operation that
//! never ends poisons it like a pre-write.

use std::collections::VecDeque;
use std::time::Instant;

use super::Journal;
use crate::block_buf::BlockBuf;
use crate::canary::Canary;
use crate::checkpoint::{
    CheckpointHead, PageAt, PageKind, SEGMENTS_OF_PAGE, encode_page, encode_segments,
};
use crate::disk::{DiskDone, DiskError, DiskOp, FileId, OpId};
use crate::identity::Chain;
use crate::limits::{
    BLOCK_BYTES, CHECKPOINT_PAGES_WAITING, CHECKPOINT_PATIENCE, CHECKPOINT_SEGMENTS_MIN,
};
use crate::lsn::Lsn;

/// See the head of the file.
#[derive(Debug, Default)]
pub(crate) struct Checkpoints {
    /// The highest that either file has, or had.
    generation: u64,
    /// The newest that is whole.
    last: Option<CheckpointHead>,
    writing: Option<Writing>,
    flight: Option<Flight>,
    /// This file is to give back the space that it took in vain.
    emptying: Option<u8>,
    ended: Option<Result<CheckpointHead, DiskError>>,
}

#[derive(Clone, Copy, Debug)]
struct Flight {
    id: OpId,
    bytes: u32,
    since: Instant,
    file: FileId,
}

#[derive(Debug)]
struct Writing {
    head: CheckpointHead,
    /// The head that was in the file is blank.
    is_cleared: bool,
    stage: Stage,
    pages: VecDeque<BlockBuf>,
    /// Where the log ended when it was begun, and the chain there.
    begun: (Lsn, Chain),
    /// Since when its next operation is put off for what was appended.
    put_off: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Pages,
    /// The last page was put; no page knows of anything behind this.
    Settle(Lsn),
    /// The same, and it ends at a batch.
    Until,
    Head,
}

impl Checkpoints {
    /// What a start has found.
    pub(crate) fn new(generation: u64, last: Option<CheckpointHead>) -> Self {
        Self { generation, last, ..Self::default() }
    }

    /// The next one goes into the file that does not have the last one.
    fn number_next(&mut self) {
        self.generation += 1;
        if self.last.is_some_and(|last| file_of(last.generation) == file_of(self.generation)) {
            self.generation += 1;
        }
    }

    /// It can't be written on; what it took is perhaps what the log lacks.
    pub(crate) fn fail(&mut self, error: DiskError) {
        if let Some(writing) = self.writing.take() {
            self.ended = Some(Err(error));
            self.emptying = Some(file_of(writing.head.generation));
        }
    }

    /// Whatever is being written counts for nothing.
    pub(crate) fn give_up(&mut self) {
        self.writing = None;
    }

    /// The operation that is on its way to the disk: its file, and since when.
    pub(crate) fn flight(&self) -> Option<(FileId, Instant)> {
        self.flight.map(|flight| (flight.file, flight.since))
    }

    /// Nothing is on its way to the disk.
    pub(crate) fn is_idle(&self) -> bool {
        self.flight.is_none()
    }
}

/// Which of the two files has this generation.
fn file_of(generation: u64) -> u8 {
    u8::from(generation % 2 == 1)
}

impl Journal {
    /// Begins a checkpoint of what the log has come to, and says from where a start will read the
    /// log then: its pages tell what lives before that. Of what begins at `limit` or behind it the
    /// log alone is to tell. None: there is one under way, it would not be worth its writes, or
    /// a segment has found no space.
    pub fn begin_checkpoint(&mut self, limit: Lsn, unix_ms: u64) -> Option<Lsn> {
        let Checkpoints { writing, flight, .. } = &self.checkpoints;
        if writing.is_some() || flight.is_some() || self.closing || self.poison.is_some() {
            return None;
        }
        if self.lacks_space() {
            return None;
        }
        let reached = self.committed.min(self.durable()).min(limit);
        let mut number = reached.0 / self.segment_bytes;
        // Its first batch is to be before that.
        if reached <= self.space.first_lsn(number) {
            number = number.checked_sub(1)?;
        }
        let chain = self.space.segment(number)?.chain_before?;
        let first = self.space.head()?.number;
        let from = self.space.first_lsn(number);
        let is_news = self.checkpoints.last.is_none_or(|last| last.from < from);
        if number < first + CHECKPOINT_SEGMENTS_MIN || !is_news {
            return None;
        }
        let before = (first..number).filter_map(|number| self.space.segment(number).copied());
        let before: Vec<_> = before.collect();
        self.checkpoints.number_next();
        let head = CheckpointHead {
            generation: self.checkpoints.generation,
            from,
            chain,
            until: from,
            until_chain: chain,
            unix_ms,
            bytes: 0,
            pages: 0,
        };
        let begun = (self.commit.sealed_end(), self.commit.chain());
        let pages = VecDeque::new();
        self.checkpoints.ended = None;
        self.checkpoints.writing = Some(Writing {
            head,
            is_cleared: false,
            stage: Stage::Pages,
            pages,
            begun,
            put_off: None,
        });
        for rows in before.chunks(SEGMENTS_OF_PAGE) {
            self.queue_page(PageKind::Segments, &encode_segments(rows));
        }
        Some(from)
    }

    /// Whether the last segment that was wanted found no space: no checkpoint is begun then.
    #[must_use]
    pub fn lacks_space(&self) -> bool {
        self.space.lacks_space()
    }

    /// Whether a checkpoint is being written.
    #[must_use]
    pub fn is_checkpointing(&self) -> bool {
        self.checkpoints.writing.is_some()
    }

    /// Whether another page of the checkpoint may be put now.
    #[must_use]
    pub fn wants_page(&self) -> bool {
        let is_open = |writing: &Writing| {
            writing.stage == Stage::Pages && writing.pages.len() < CHECKPOINT_PAGES_WAITING
        };
        self.checkpoints.writing.as_ref().is_some_and(is_open)
    }

    /// The next page of the checkpoint.
    ///
    /// # Panics
    /// If none is wanted, or it is longer than a page can be.
    pub fn put_page(&mut self, payload: &[u8]) {
        assert!(self.wants_page(), "a page that nobody wants");
        self.queue_page(PageKind::State, payload);
    }

    fn queue_page(&mut self, kind: PageKind, payload: &[u8]) {
        let writing = self.checkpoints.writing.as_mut().expect("the caller has begun one");
        let at = PageAt { generation: writing.head.generation, number: writing.head.pages };
        writing.head.pages += 1;
        writing.pages.push_back(encode_page(self.commit.seed(), at, kind, payload));
    }

    /// The checkpoint that is being written is not to be.
    pub fn give_up_checkpoint(&mut self) {
        self.checkpoints.give_up();
    }

    /// All pages are put. It counts when everything appended by now is durable and committed.
    pub fn end_pages(&mut self) {
        let told = self.commit.appended();
        if let Some(writing) = &mut self.checkpoints.writing {
            assert_eq!(writing.stage, Stage::Pages, "pages end once");
            writing.stage = Stage::Settle(told);
        }
    }

    /// What came of the checkpoint, once.
    pub fn poll_checkpoint_end(&mut self) -> Option<Result<CheckpointHead, DiskError>> {
        self.checkpoints.ended.take()
    }

    /// The newest checkpoint that is whole, as far as is known.
    #[must_use]
    pub fn checkpoint(&self) -> Option<&CheckpointHead> {
        self.checkpoints.last.as_ref()
    }

    /// Bytes that a start would read of the log, about.
    #[must_use]
    pub fn tail_bytes(&self) -> u64 {
        let from = self.checkpoint().map_or(Lsn::ZERO, |head| head.from);
        self.appended().since(from.max(self.first_kept()).min(self.appended()))
    }

    /// The next operation of a checkpoint.
    pub(super) fn poll_checkpoint(&mut self, id: OpId, now: Instant) -> Option<DiskOp> {
        let Checkpoints { writing, emptying, flight: None, .. } = &self.checkpoints else {
            return None;
        };
        if (writing.is_none() && emptying.is_none()) || self.closing {
            return None;
        }
        let is_free = self.is_disk_free();
        let op = self.next_of_checkpoint(id, now, is_free)?;
        let file = op.file();
        let bytes = match &op {
            DiskOp::Write { buf, .. } => buf.len(),
            DiskOp::Read { .. } | DiskOp::Prewrite { .. } | DiskOp::Sync { .. } => 0,
        };
        let bytes = u32::try_from(bytes).expect("a page is small");
        self.checkpoints.flight = Some(Flight { id, bytes, since: now, file });
        Some(op)
    }

    fn next_of_checkpoint(&mut self, id: OpId, now: Instant, is_free: bool) -> Option<DiskOp> {
        let is_past = self.config.canaries().has(Canary::CheckpointPastWatermark);
        let (durable, committed) = (self.durable(), self.committed);
        let reached = durable.min(committed);
        let sealed = (self.commit.sealed_end(), self.commit.chain());
        let file = |which: u8| FileId::Checkpoint { shard: self.shard, which };
        let blank = |which| DiskOp::Prewrite { id, file: file(which), bytes: BLOCK_BYTES as u64 };
        let Some(writing) = &mut self.checkpoints.writing else {
            return self.checkpoints.emptying.take().map(blank);
        };
        // Others go first, but not for ever, and not while the log grows by more than what lets the
        // next one begin.
        let since = *writing.put_off.get_or_insert(now);
        let is_late = sealed.0.since(writing.begun.0) > 2 * self.segment_bytes;
        if !is_free && !is_late && now.saturating_duration_since(since) < CHECKPOINT_PATIENCE {
            return None;
        }
        let which = file_of(writing.head.generation);
        if !writing.is_cleared {
            writing.put_off = None;
            self.checkpoints.emptying.take_if(|file| *file == which);
            return Some(blank(which));
        }
        if let Some(buf) = writing.pages.pop_front() {
            writing.put_off = None;
            let offset = BLOCK_BYTES as u64 + writing.head.bytes;
            writing.head.bytes += buf.len() as u64;
            return Some(DiskOp::Write { id, file: file(which), offset, buf });
        }
        if let Stage::Settle(told) = writing.stage
            && (told <= durable || is_past)
        {
            let (until, chain) = if is_past { writing.begun } else { sealed };
            (writing.head.until, writing.head.until_chain) = (until, chain);
            writing.stage = Stage::Until;
        }
        if writing.stage == Stage::Until && (writing.head.until <= reached || is_past) {
            writing.stage = Stage::Head;
            let buf = writing.head.encode(self.commit.seed());
            return Some(DiskOp::Write { id, file: file(which), offset: 0, buf });
        }
        None
    }

    /// Takes an answer, if it is to one of these operations.
    pub(super) fn checkpoint_done(&mut self, done: &DiskDone) -> bool {
        let flight = self.checkpoints.flight.take_if(|flight| flight.id == done.id);
        let Some(Flight { bytes, .. }) = flight else { return false };
        let Some(writing) = &mut self.checkpoints.writing else { return true };
        let result = match done.result {
            Ok(written) if written != bytes => Err(DiskError::Short { bytes: written }),
            result => result,
        };
        let head = writing.head;
        match (result, writing.stage) {
            (Err(error), _) => self.checkpoints.fail(error),
            (Ok(_), Stage::Head) => {
                self.checkpoints.ended = Some(Ok(head));
                self.checkpoints.last = Some(head);
            }
            (Ok(_), Stage::Pages | Stage::Settle(_) | Stage::Until) => {
                writing.is_cleared = true;
                return true;
            }
        }
        self.checkpoints.give_up();
        true
    }
}
