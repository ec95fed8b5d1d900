//! The checkpoints that a start finds: which one it takes, and its pages.
//!
//! ```text
//!   both heads ─▶ newest ─ its pages ─▶ the log from there ─ it comes to `until` ─▶ taken
//!                   │         │                │
//!                   └─────────┴────────────────┴─▶ of no use: the older one, then the whole log
//! ```
//! Invariant: what was handed out of a checkpoint counts only when the log has come to where the
//! checkpoint ends by the way that it names; before that the host may be told that it is void.

use std::collections::VecDeque;

use crate::block_buf::BlockBuf;
use crate::checkpoint::{
    CheckpointError, CheckpointHead, FILES, PAGE_HEADER_BYTES, PageAt, PageKind, PageRead,
    decode_page, decode_segments,
};
use crate::disk::FileId;
use crate::identity::LogSeed;
use crate::limits::{BLOCK_BYTES, RECOVERY_READ_BYTES, SEGMENT_HEADER_BYTES, block_ceil};
use crate::lsn::{Lsn, ShardId};
use crate::segment::SegmentHeader;
use crate::space::Segment;

use super::Recovery;
use super::replay::Candidate;

/// Where the head of the log is, and what lies in its files.
#[derive(Clone, Copy, Debug)]
struct Ground<'a> {
    head: Lsn,
    segment_bytes: u64,
    /// By slot.
    files: &'a [Candidate],
}

/// See the head of the file.
#[derive(Debug)]
pub(super) struct Loading {
    seed: LogSeed,
    segment_bytes: u64,
    /// The best is last.
    candidates: Vec<(u8, CheckpointHead)>,
    /// The highest that was seen.
    generation: u64,
    /// How far a whole head knows of the log: in which file, and the place.
    furthest: Option<(u8, Lsn)>,
    taken: Option<Taken>,
    is_void: bool,
    refused: Vec<(FileId, CheckpointError)>,
    /// The segments' files, by slot.
    files: Vec<Candidate>,
}

/// The one that is being read, or was.
#[derive(Debug)]
struct Taken {
    which: u8,
    head: CheckpointHead,
    /// Segments from the head of the log to `from`.
    segments: VecDeque<Segment>,
    number: u32,
    /// Where in the file the next page begins.
    offset: u64,
    chunk: Option<Chunk>,
}

/// Bytes of the file.
#[derive(Debug)]
struct Chunk {
    offset: u64,
    buf: BlockBuf,
    bytes: usize,
}

/// What the pages need next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pages {
    /// So many bytes of this file.
    Read { which: u8, offset: u64, bytes: usize },
    /// A page of the host's is there: so many bytes of its payload.
    Page { bytes: usize },
    /// There are no more.
    Over,
}

impl Loading {
    pub(super) fn new(seed: LogSeed, segment_bytes: u64) -> Self {
        Self {
            seed,
            segment_bytes,
            candidates: Vec::new(),
            generation: 0,
            furthest: None,
            taken: None,
            is_void: false,
            refused: Vec::new(),
            files: Vec::new(),
        }
    }

    fn file(&self, which: u8) -> FileId {
        let shard: ShardId = self.seed.shard();
        FileId::Checkpoint { shard, which }
    }

    /// The first block of a file.
    pub(super) fn handle_head(&mut self, which: u8, block: Option<&[u8]>) {
        let head = match block {
            Some(block) => CheckpointHead::decode(&self.seed, self.segment_bytes, block),
            None => Err(CheckpointError::Unreadable),
        };
        match head {
            Ok(Some(head)) => {
                self.generation = self.generation.max(head.generation);
                if self.furthest.is_none_or(|(_, until)| until < head.until) {
                    self.furthest = Some((which, head.until));
                }
                self.candidates.push((which, head));
                self.candidates.sort_by_key(|(_, head)| head.generation);
            }
            Ok(None) => {}
            Err(error) => self.refused.push((self.file(which), error)),
        }
    }

    /// Goes on with the next one; false if there is none.
    pub(super) fn take_next(&mut self, head: Lsn, files: Vec<Candidate>) -> bool {
        (self.taken, self.files) = (None, files);
        while let Some((which, checkpoint)) = self.candidates.pop() {
            // What lies before the head has gone since: the log alone is shorter.
            if checkpoint.from > head {
                self.taken = Some(Taken {
                    which,
                    head: checkpoint,
                    segments: VecDeque::new(),
                    number: 0,
                    offset: BLOCK_BYTES as u64,
                    chunk: None,
                });
                return true;
            }
        }
        false
    }

    /// The one that was taken is of no use, nor is what was handed out of it.
    pub(super) fn refuse(&mut self, error: CheckpointError) {
        if let Some(taken) = self.taken.take() {
            self.refused.push((self.file(taken.which), error));
            self.is_void = true;
        }
    }

    pub(super) fn is_void(&self) -> bool {
        self.is_void
    }

    /// Whether what was handed out so far counts for nothing; once.
    pub(super) fn take_void(&mut self) -> bool {
        std::mem::take(&mut self.is_void)
    }

    pub(super) fn head(&self) -> Option<&CheckpointHead> {
        self.taken.as_ref().map(|taken| &taken.head)
    }

    /// How far the log was durable when a checkpoint was finished, whatever became of its pages: by
    /// the one of the two that says most.
    pub(super) fn furthest(&self) -> Option<(u8, Lsn)> {
        self.furthest
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn take_refused(&mut self) -> Vec<(FileId, CheckpointError)> {
        std::mem::take(&mut self.refused)
    }

    /// The segments before `from`, once the pages are over.
    pub(super) fn segments(&self) -> VecDeque<Segment> {
        self.taken.as_ref().map(|taken| taken.segments.clone()).unwrap_or_default()
    }

    /// What was read at [`Pages::Read`].
    pub(super) fn handle_read(&mut self, buf: BlockBuf, bytes: usize) {
        if let Some(taken) = &mut self.taken {
            taken.chunk = Some(Chunk { offset: taken.offset, buf, bytes });
        }
    }

    /// Goes on with the pages.
    ///
    /// # Errors
    /// The checkpoint is of no use.
    pub(super) fn step(&mut self, head: Lsn) -> Result<Pages, CheckpointError> {
        let ground = Ground { head, segment_bytes: self.segment_bytes, files: &self.files };
        loop {
            let Some(taken) = &mut self.taken else { return Ok(Pages::Over) };
            let end = BLOCK_BYTES as u64 + taken.head.bytes;
            if taken.number == taken.head.pages {
                taken.chunk = None;
                return if taken.offset == end && taken.is_joined(&ground) {
                    Ok(Pages::Over)
                } else {
                    Err(CheckpointError::Segments)
                };
            }
            let here = taken.chunk.as_ref().map(|chunk| (chunk, taken.offset - chunk.offset));
            let here = here.filter(|(chunk, at)| *at < chunk.bytes as u64);
            let Some((chunk, at)) = here else { return Ok(taken.read(end)) };
            let at = usize::try_from(at).expect("within a chunk");
            let page = PageAt { generation: taken.head.generation, number: taken.number };
            let bytes = &chunk.buf.as_slice()[at..chunk.bytes];
            match decode_page(&self.seed, page, bytes) {
                // One that begins a chunk is in it, or not whole in the file.
                PageRead::Cut if at > 0 => return Ok(taken.read(end)),
                PageRead::Cut | PageRead::Broken => {
                    return Err(CheckpointError::Page(taken.number));
                }
                PageRead::Page(PageKind::State, length) => {
                    return Ok(Pages::Page { bytes: length });
                }
                PageRead::Page(PageKind::Segments, length) => {
                    let rows = &bytes[PAGE_HEADER_BYTES..PAGE_HEADER_BYTES + length];
                    let rows = decode_segments(rows).ok_or(CheckpointError::Segments)?;
                    taken.segments.extend(rows.filter(|row| ground.is_kept(row)));
                    taken.pass(length);
                }
            }
        }
    }

    /// The payload of the page that [`Pages::Page`] spoke of; the next step goes on behind it.
    pub(super) fn take_page(&mut self, length: usize) -> Option<&[u8]> {
        let taken = self.taken.as_mut()?;
        let before = taken.offset;
        taken.pass(length);
        let chunk = taken.chunk.as_ref()?;
        let at = usize::try_from(before - chunk.offset).ok()? + PAGE_HEADER_BYTES;
        chunk.buf.as_slice().get(at..at + length)
    }
}

impl Recovery {
    /// A log that is judged alone, and held against what the heads in these files know of it.
    pub(crate) fn hold_against(mut self, files: &[&[u8]]) -> Self {
        let mut loading = Loading::new(self.seed, self.segment_bytes);
        for (which, file) in FILES.into_iter().zip(files) {
            loading.handle_head(which, Some(&file[..file.len().min(BLOCK_BYTES)]));
        }
        loading.candidates.clear();
        self.loading = Some(loading);
        self
    }
}

impl Taken {
    fn pass(&mut self, length: usize) {
        self.offset += block_ceil(PAGE_HEADER_BYTES + length) as u64;
        self.number += 1;
    }

    fn read(&mut self, end: u64) -> Pages {
        let rest = usize::try_from(end.saturating_sub(self.offset)).unwrap_or(usize::MAX);
        let bytes = rest.clamp(BLOCK_BYTES, RECOVERY_READ_BYTES);
        Pages::Read { which: self.which, offset: self.offset, bytes }
    }

    /// Whether its segments lead from the head of the log, or behind it, to `from`, and are there.
    /// Those before the first were given up before it was finished.
    fn is_joined(&self, ground: &Ground<'_>) -> bool {
        let end = self.head.from.0 / ground.segment_bytes;
        let first = end - (self.segments.len() as u64).min(end);
        let in_order = (first..end).zip(&self.segments).all(|(number, row)| row.number == number);
        in_order && !self.segments.is_empty() && self.segments.iter().all(|row| ground.has(row))
    }
}

impl Ground<'_> {
    fn first_lsn(&self, number: u64) -> Lsn {
        Lsn(number * self.segment_bytes + SEGMENT_HEADER_BYTES)
    }

    fn is_kept(&self, segment: &Segment) -> bool {
        segment.number >= self.head.0 / self.segment_bytes
    }

    fn has(&self, segment: &Segment) -> bool {
        let first_lsn = self.first_lsn(segment.number);
        let is_it = |header: &SegmentHeader| {
            header.first_lsn == first_lsn && Some(header.chain_before) == segment.chain_before
        };
        let found = self.files.binary_search_by_key(&segment.slot, |file| file.slot);
        found.is_ok_and(|at| is_it(&self.files[at].header))
    }
}
