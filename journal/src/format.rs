//! A new directory: every file is made and durable before the one that says it is a log.
//!
//! ```text
//!   1 for each shard   pre-write its superblock's file and its first segments
//!   2 for each shard   write generation 1 of its superblock
//!   3                  pre-write the node's superblock file
//!   4                  write generation 1 of the node's superblock      <- formatted from here on
//! ```
//!
//! Invariants: each step is durable before the next; only step 4 makes [`NodeSuperblock::decode`]
//! find anything, and it is a write within one sector, so a crash leaves the directory not
//! formatted or complete, never in between. A format of a directory that is not formatted may be
//! begun again any number of times. Never begin one where the node's superblock is good or
//! unreadable: step 1 would write zeros over a log.
//! The first failure ends it; nothing is retried here.

use std::collections::VecDeque;

use crate::disk::{DiskDone, DiskError, DiskOp, FileId, OpId};
use crate::identity::LogSeed;
use crate::limits::FORMAT_SEGMENTS;
use crate::lsn::{JournalUuid, LogId, ShardId, Slot};
use crate::superblock::{Geometry, NodeSuperblock, SUPERBLOCK_FILE_BYTES, ShardSuperblock};

/// Makes a log out of an empty directory.
#[derive(Debug)]
pub struct Format {
    node: NodeSuperblock,
    steps: VecDeque<Step>,
    flight: Option<(OpId, FileId)>,
    op_next: u64,
    failed: Option<FormatError>,
    is_over: bool,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Make(FileId),
    WriteShard(ShardId),
    WriteNode,
}

/// What stopped a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FormatError {
    /// On which file.
    pub file: FileId,
    /// Why.
    pub error: DiskError,
}

impl std::fmt::Display for FormatError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "formatting {}: {}", self.file, self.error)
    }
}

impl std::error::Error for FormatError {}

impl Format {
    /// Both ids are drawn by the caller, from the system's generator.
    ///
    /// # Panics
    /// If the geometry is not [valid](Geometry::is_valid).
    #[must_use]
    pub fn new(log_id: LogId, journal_uuid: JournalUuid, geometry: Geometry) -> Self {
        assert!(geometry.is_valid(), "checked with the configuration: {geometry:?}");
        let shards = (0..geometry.shards).map(ShardId);
        let files = shards.clone().flat_map(|shard| {
            let segments =
                (0..FORMAT_SEGMENTS).map(move |slot| FileId::Segment { shard, slot: Slot(slot) });
            std::iter::once(FileId::ShardSuperblock(shard)).chain(segments)
        });
        let steps = files
            .map(Step::Make)
            .chain(shards.map(Step::WriteShard))
            .chain([Step::Make(FileId::NodeSuperblock), Step::WriteNode])
            .collect();
        Self {
            node: NodeSuperblock::first(log_id, journal_uuid, geometry),
            steps,
            flight: None,
            op_next: 0,
            failed: None,
            is_over: false,
        }
    }

    /// The next thing to do on the disk, if any: one at a time.
    pub fn poll_disk(&mut self) -> Option<DiskOp> {
        if self.flight.is_some() || self.failed.is_some() {
            return None;
        }
        let id = OpId(self.op_next);
        let op = match self.steps.pop_front()? {
            Step::Make(file) => DiskOp::Prewrite { id, file, bytes: self.bytes_of(file) },
            Step::WriteShard(shard) => {
                let seed = LogSeed::new(self.node.log_id, shard);
                let first = ShardSuperblock::first(self.node.log_id, shard, seed.chain_start());
                let (buf, offset) = first.encode();
                DiskOp::Write { id, file: FileId::ShardSuperblock(shard), offset, buf }
            }
            Step::WriteNode => {
                let (buf, offset) = self.node.encode();
                DiskOp::Write { id, file: FileId::NodeSuperblock, offset, buf }
            }
        };
        self.op_next += 1;
        self.flight = Some((id, op.file()));
        Some(op)
    }

    /// Takes the answer to an operation.
    ///
    /// # Panics
    /// If the answer is to no operation in flight.
    pub fn handle_disk(&mut self, done: DiskDone) {
        let (id, file) = self.flight.take().expect("an operation is in flight");
        assert_eq!(id, done.id, "an answer to another operation");
        let written = done.buf.as_ref().map_or(0, |buf| buf.len());
        match done.result {
            Ok(bytes) if done.buf.is_some() && bytes as usize != written => {
                self.failed = Some(FormatError { file, error: DiskError::Short { bytes } });
            }
            Ok(_) => {}
            Err(error) => self.failed = Some(FormatError { file, error }),
        }
    }

    /// The end, once: the node's superblock as written, or what failed.
    pub fn poll_outcome(&mut self) -> Option<Result<NodeSuperblock, FormatError>> {
        let is_done = self.steps.is_empty() && self.flight.is_none();
        if self.is_over || (self.failed.is_none() && !is_done) {
            return None;
        }
        self.is_over = true;
        Some(self.failed.map_or_else(|| Ok(self.node.clone()), Err))
    }

    fn bytes_of(&self, file: FileId) -> u64 {
        match file {
            FileId::NodeSuperblock | FileId::ShardSuperblock(_) => SUPERBLOCK_FILE_BYTES as u64,
            FileId::Segment { .. } => self.node.geometry.segment_bytes,
            FileId::Checkpoint { .. } => unreachable!("a log begins without one"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format() -> Format {
        let geometry = Geometry { segment_bytes: 65536, shards: 2 };
        Format::new(LogId([1; 16]), JournalUuid([2; 16]), geometry)
    }

    #[test]
    fn the_nodes_superblock_comes_last() {
        let mut format = format();
        let mut files = Vec::new();
        while let Some(op) = format.poll_disk() {
            assert!(format.poll_disk().is_none(), "one at a time");
            files.push(op.file());
            let id = op.id();
            let done = match op {
                DiskOp::Write { buf, .. } => DiskDone { id, result: Ok(4096), buf: Some(buf) },
                DiskOp::Prewrite { .. } => DiskDone { id, result: Ok(0), buf: None },
                DiskOp::Read { .. } | DiskOp::Sync { .. } => panic!("not asked here"),
            };
            assert!(format.poll_outcome().is_none());
            format.handle_disk(done);
        }
        assert_eq!(files.len(), 2 * 4 + 2 + 2);
        assert_eq!(files.last(), Some(&FileId::NodeSuperblock));
        assert!(format.poll_outcome().is_some_and(|outcome| outcome.is_ok()));
        assert!(format.poll_outcome().is_none(), "once");
    }

    #[test]
    fn the_first_failure_ends_it() {
        let mut format = format();
        let id = format.poll_disk().unwrap().id();
        format.handle_disk(DiskDone { id, result: Err(DiskError::NoSpace), buf: None });
        assert!(format.poll_disk().is_none());
        let failed = format.poll_outcome().unwrap().unwrap_err();
        assert_eq!(failed.error, DiskError::NoSpace);
    }
}
