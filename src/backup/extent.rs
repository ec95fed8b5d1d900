//! Which segments a log consists of, by the headers that its files have.
//!
//! ```text
//!   slot 0  |hdr 7|...   slot 1  |hdr 5|...   slot 2  |hdr 6|..   slot 3  |hdr 4|..
//!   first LSN in segment 5, durable in 7:   5 = slot 1, 6 = slot 2, 7 = slot 0
//! ```
//! Invariant: each segment from the first to the one that the durable mark stands in is there once;
//! of two with one number the later term's is meant, as the other one was cut off.

use std::io;

use journal::limits::SEGMENT_HEADER_BYTES;
use journal::{
    FileId, LogCopy, LogSeed, NodeSuperblock, SegmentHeader, SegmentRead, ShardId, ShardSuperblock,
    Slot,
};

use super::At;
use crate::driver::{Files, path_failure};
use crate::fatal::{Cause, Failure};

/// What of a shard's log is copied.
pub(super) struct Extent {
    /// What its superblock will say.
    pub(super) copy: LogCopy,
    /// Its segments, by number.
    pub(super) segments: Vec<Piece>,
}

/// A segment, as far as it is copied.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) number: u64,
    pub(super) slot: Slot,
    /// How much of it is below the durable mark.
    pub(super) bytes: u64,
}

impl Extent {
    /// The log of a shard from the first segment that is held to where it was durable.
    pub(super) fn of(
        files: &Files,
        node: &NodeSuperblock,
        shard: ShardId,
        superblock: &ShardSuperblock,
        at: At,
    ) -> Result<Self, Failure> {
        let headers = headers(files, node, shard)?;
        let newest = |number: u64| {
            let of = |(_, header): &&(Slot, SegmentHeader)| {
                header.first_lsn.0 == number * node.geometry.segment_bytes + SEGMENT_HEADER_BYTES
            };
            headers.iter().filter(of).max_by_key(|(_, header)| header.term)
        };
        let numbers = numbers(node, at);
        let mut segments = Vec::new();
        for number in numbers.clone() {
            let (slot, _) = newest(number).ok_or_else(|| {
                let what = format!("segment {number} of shard {} is in none of its files", shard.0);
                Failure::new(Cause::JournalDamaged, what)
            })?;
            segments.push(Piece { number, slot: *slot, bytes: bytes_in(node, number, at) });
        }
        // A log in which nothing was written yet has no segment to ask.
        let head_chain = newest(numbers.start).map(|(_, header)| header.chain_before);
        let copy = LogCopy {
            head: at.first,
            head_chain: head_chain
                .filter(|_| !segments.is_empty())
                .unwrap_or(superblock.head_chain),
            durable: at.durable,
            slots: u32::try_from(segments.len()).expect("as many as there are files"),
        };
        Ok(Self { copy, segments })
    }
}

/// The numbers of the segments that hold a log.
pub(super) fn numbers(node: &NodeSuperblock, at: At) -> std::ops::Range<u64> {
    let segment_bytes = node.geometry.segment_bytes;
    let first = at.first.0 / segment_bytes;
    if at.durable <= at.first { first..first } else { first..at.durable.0.div_ceil(segment_bytes) }
}

/// How much of a segment is below the durable mark; batches end at blocks.
pub(super) fn bytes_in(node: &NodeSuperblock, number: u64, at: At) -> u64 {
    let segment_bytes = node.geometry.segment_bytes;
    (at.durable.0 - number * segment_bytes).min(segment_bytes)
}

fn headers(
    files: &Files,
    node: &NodeSuperblock,
    shard: ShardId,
) -> Result<Vec<(Slot, SegmentHeader)>, Failure> {
    let seed = LogSeed::new(node.log_id, shard);
    let mut headers = Vec::new();
    for file in files.slots(shard)? {
        let path = files.path(FileId::Segment { shard, slot: file.slot });
        let block =
            first_block(&path).map_err(|error| path_failure(&path, "cannot be read", &error))?;
        if let SegmentRead::Header(header) =
            SegmentHeader::decode(&seed, node.geometry.segment_bytes, &block)
        {
            headers.push((file.slot, header));
        }
    }
    Ok(headers)
}

fn first_block(path: &std::path::Path) -> io::Result<Vec<u8>> {
    use io::Read as _;
    let mut block = Vec::new();
    std::fs::File::open(path)?.take(SEGMENT_HEADER_BYTES).read_to_end(&mut block)?;
    Ok(block)
}
