//! What the bytes of a log say, for tools that work on files at rest. Reads only.
//!
//! ```text
//!   verify         the whole of a shard, judged exactly as a start would judge it
//!   SegmentView    one file: its header, then what stands at each place where a batch could begin
//! ```
//!
//! Invariants: `verify` is recovery itself, stopped before its first write, so the two can't
//! disagree; nothing here changes a byte or panics at one.

use crate::batch::{BatchHeader, BatchRead, Records};
use crate::disk::{DiskDone, DiskOp, FileId};
use crate::identity::LogSeed;
use crate::journal::Config;
use crate::limits::{BLOCK_BYTES, SEGMENT_HEADER_BYTES, block_ceil};
use crate::lsn::{Lsn, ShardId, Slot};
use crate::recovery::{Recovery, RecoveryError, SlotFile, Truncated};
use crate::segment::{SegmentHeader, SegmentRead};
use crate::superblock::NodeSuperblock;

/// A segment's file: all its bytes, mapped or read.
#[derive(Clone, Copy, Debug)]
pub struct SegmentFile<'a> {
    /// The number in its name.
    pub slot: Slot,
    /// What it holds.
    pub bytes: &'a [u8],
}

/// A log that a start would accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Where it begins.
    pub head: Lsn,
    /// Where it ends.
    pub end: Lsn,
    /// Records between them.
    pub records: u64,
    /// Bytes of their payloads.
    pub payload_bytes: u64,
    /// What a start would cut off.
    pub truncated: Option<Truncated>,
    /// Whether it was closed.
    pub clean: bool,
}

/// Judges a shard's log as a start would. `superblock` is the shard's superblock file,
/// `checkpoints` are the two files of these, or none: their heads say how much was durable.
///
/// # Errors
/// What would stop the start.
///
/// # Panics
/// If the node has no such shard.
pub fn verify(
    node: &NodeSuperblock,
    shard: ShardId,
    superblock: &[u8],
    segments: &[SegmentFile<'_>],
    checkpoints: &[&[u8]],
) -> Result<Verified, RecoveryError> {
    let slots = segments
        .iter()
        .map(|segment| SlotFile { slot: segment.slot, bytes: segment.bytes.len() as u64 });
    let slots: Vec<_> = slots.collect();
    let recovery = Recovery::new(node, shard, &slots, Config::default());
    let mut recovery = recovery.hold_against(checkpoints);
    let (mut records, mut payload_bytes) = (0, 0);
    loop {
        while let Some((_, record)) = recovery.poll_record() {
            records += 1;
            payload_bytes += record.payload.len() as u64;
        }
        match recovery.poll_disk() {
            Some(DiskOp::Read { id, file, offset, mut buf }) => {
                let content = content_of(file, superblock, segments);
                let there = usize::try_from(offset).ok().and_then(|offset| content.get(offset..));
                let there = there.unwrap_or_default();
                let len = there.len().min(buf.len());
                buf.as_mut_slice()[..len].copy_from_slice(&there[..len]);
                let len = u32::try_from(len).expect("a read is small");
                recovery.take_read(DiskDone { id, result: Ok(len), buf: Some(buf) });
            }
            // It has made up its mind, and would write now.
            Some(DiskOp::Write { .. } | DiskOp::Sync { .. } | DiskOp::Prewrite { .. }) => break,
            None => match recovery.poll_outcome() {
                Some(Err(error)) => return Err(error),
                Some(Ok(_)) => unreachable!("a recovery writes before it ends well"),
                None => {}
            },
        }
    }
    let (head, end) = recovery.extent();
    let (truncated, clean) = recovery.judgement();
    Ok(Verified { head, end, records, payload_bytes, truncated, clean })
}

fn content_of<'a>(file: FileId, superblock: &'a [u8], segments: &[SegmentFile<'a>]) -> &'a [u8] {
    match file {
        FileId::NodeSuperblock | FileId::Checkpoint { .. } => &[],
        FileId::ShardSuperblock(_) => superblock,
        FileId::Segment { slot, .. } => {
            segments.iter().find(|segment| segment.slot == slot).map_or(&[], |found| found.bytes)
        }
    }
}

/// One segment's file.
#[derive(Clone, Copy, Debug)]
pub struct SegmentView<'a> {
    seed: LogSeed,
    segment_bytes: u64,
    bytes: &'a [u8],
}

/// What stands at a place where a batch could begin.
#[derive(Clone, Debug)]
pub struct BatchView<'a> {
    /// Where in the file, bytes.
    pub offset: u64,
    /// Its header.
    pub header: BatchHeader,
    /// What is the matter with it.
    pub state: BatchState,
    /// Its records; empty unless the body checks.
    pub records: Records<'a>,
}

/// What is the matter with a batch, looked at by itself (whether it follows the one before it is
/// for [`verify`] to say).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchState {
    /// It stands at its place and checks.
    Good,
    /// Its body doesn't check: torn or damaged.
    BodyBroken,
    /// It is of an earlier life of this file.
    Stale,
}

impl<'a> SegmentView<'a> {
    /// A view of a segment's file of that shard.
    #[must_use]
    pub fn new(node: &NodeSuperblock, shard: ShardId, bytes: &'a [u8]) -> Self {
        let seed = LogSeed::new(node.log_id, shard);
        Self { seed, segment_bytes: node.geometry.segment_bytes, bytes }
    }

    /// The segment's header.
    #[must_use]
    pub fn header(&self) -> SegmentRead {
        let block = &self.bytes[..self.bytes.len().min(BLOCK_BYTES)];
        SegmentHeader::decode(&self.seed, self.segment_bytes, block)
    }

    /// Every batch whose header checks, in the order of the file: the segment's own and, behind
    /// them, what is left of its file's earlier lives.
    pub fn batches(&self) -> impl Iterator<Item = BatchView<'a>> + use<'a> {
        let view = *self;
        let first = match view.header() {
            SegmentRead::Header(header) => Some(header.first_lsn),
            SegmentRead::Blank
            | SegmentRead::Unreadable
            | SegmentRead::Version(_)
            | SegmentRead::WrongLog(_) => None,
        };
        let mut at = usize::try_from(SEGMENT_HEADER_BYTES).expect("a block");
        std::iter::from_fn(move || {
            while at + BLOCK_BYTES <= view.bytes.len() {
                let offset = at as u64;
                let BatchRead::Header(header) = BatchHeader::decode(&view.seed, &view.bytes[at..])
                else {
                    at += BLOCK_BYTES;
                    continue;
                };
                let place = first.map(|first| first.plus(offset - SEGMENT_HEADER_BYTES));
                let body = header.body(&view.seed, &view.bytes[at..]);
                let state = match body {
                    None => BatchState::BodyBroken,
                    Some(_) if place == Some(header.first_lsn) => BatchState::Good,
                    Some(_) => BatchState::Stale,
                };
                // Behind a broken body other batches may begin at any block.
                at += if body.is_some() { block_ceil(header.bytes()) } else { BLOCK_BYTES };
                let counted =
                    BatchHeader { records: header.records * u32::from(body.is_some()), ..header };
                let records = counted.records(&view.seed, body.unwrap_or_default());
                return Some(BatchView { offset, header, state, records });
            }
            None
        })
    }
}
