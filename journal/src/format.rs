//! A new directory: pre-write, superblocks of the shards, then the node's.

use crate::disk::{DiskDone, DiskError, DiskOp, FileId};
use crate::lsn::{JournalUuid, LogId};
use crate::superblock::{Geometry, NodeSuperblock};

/// Makes a log out of an empty directory; a crash leaves it not formatted, or complete.
#[derive(Debug)]
pub struct Format {}

/// What stopped a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FormatError {
    /// On which file.
    pub file: FileId,
    /// Why.
    pub error: DiskError,
}

impl Format {
    /// Both ids are drawn by the caller, from the system's generator.
    #[must_use]
    pub fn new(_log_id: LogId, _journal_uuid: JournalUuid, _geometry: Geometry) -> Self {
        panic!("not in yet")
    }

    /// The next thing to do on the disk, if any.
    pub fn poll_disk(&mut self) -> Option<DiskOp> {
        panic!("not in yet")
    }

    /// Takes the answer to an operation.
    pub fn handle_disk(&mut self, _done: DiskDone) {
        panic!("not in yet")
    }

    /// The end, once: the node's superblock as written, or what failed.
    pub fn poll_outcome(&mut self) -> Option<Result<NodeSuperblock, FormatError>> {
        panic!("not in yet")
    }
}
