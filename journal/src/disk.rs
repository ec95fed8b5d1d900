//! What a journal asks of its disk, and what it hears back. All of it is data.
//!
//! ```text
//!  Journal, Recovery, Format --poll_disk--> DiskOp --(host: ring, threads or a seed)--+
//!        ^                                                                           |
//!        +----------------------- handle_disk <------------- DiskDone <--------------+
//! ```
//!
//! Contract for the host:
//! 1. Each operation is answered once, in any order; its buffer comes back with the answer.
//! 2. A `Write` is complete only when data *and* what is needed to read it back are durable
//!    (`RWF_DSYNC`). One that wrote less than all is answered [`DiskError::Short`]; it is never
//!    retried.
//! 3. Operations in flight have no order among themselves.
//! 4. A file that is too short for a `Read` gives as many bytes as there are (zero if it is not
//!    there).
//! 5. A `Write` behind the end of a file that is there makes it longer.
//! 6. `Prewrite` creates the file where it is missing (and its directory), writes zeros over all of
//!    it, and syncs file and directory. The host may cut it into pieces; it ends when all is
//!    durable. That of a checkpoint also takes away what lies behind.
//! 7. No operation is ever cancelled.

use std::fmt;

use crate::block_buf::BlockBuf;
use crate::lsn::{ShardId, Slot};

/// Names an operation until it is answered. Unique within one journal, recovery or format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OpId(pub u64);

/// A file of the data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileId {
    /// `superblock`: what the whole directory is.
    NodeSuperblock,
    /// `shard-000/superblock`: where one shard's log begins.
    ShardSuperblock(ShardId),
    /// `shard-000/segment-00000`: one segment after the other.
    Segment {
        /// Whose log.
        shard: ShardId,
        /// Which file.
        slot: Slot,
    },
    /// `shard-000/checkpoint-0`: what the log came to at a place; written in turn.
    Checkpoint {
        /// Whose log.
        shard: ShardId,
        /// Which of the two: 0 or 1.
        which: u8,
    },
}

impl fmt::Display for FileId {
    /// The path of the file inside the data directory.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NodeSuperblock => f.write_str("superblock"),
            Self::ShardSuperblock(shard) => write!(f, "shard-{:03}/superblock", shard.0),
            Self::Segment { shard, slot } => {
                write!(f, "shard-{:03}/segment-{:05}", shard.0, slot.0)
            }
            Self::Checkpoint { shard, which } => {
                write!(f, "shard-{:03}/checkpoint-{which}", shard.0)
            }
        }
    }
}

/// Something to be done on the disk. It owns its buffer.
#[derive(Debug)]
pub enum DiskOp {
    /// Write the whole of `buf` at `offset`, with data sync.
    Write {
        /// Comes back in the answer.
        id: OpId,
        /// Where.
        file: FileId,
        /// Where in the file: a whole number of blocks.
        offset: u64,
        /// What: a whole number of blocks.
        buf: BlockBuf,
    },
    /// Fill `buf` from `offset`.
    Read {
        /// Comes back in the answer.
        id: OpId,
        /// From where.
        file: FileId,
        /// From where in the file: a whole number of blocks.
        offset: u64,
        /// Filled from its start, a whole number of blocks.
        buf: BlockBuf,
    },
    /// Create the file where missing and write zeros over its first `bytes` bytes, durably.
    Prewrite {
        /// Comes back in the answer.
        id: OpId,
        /// Any file.
        file: FileId,
        /// How long the file is to be.
        bytes: u64,
    },
    /// Make durable what the file holds (`fdatasync`).
    Sync {
        /// Comes back in the answer.
        id: OpId,
        /// Which.
        file: FileId,
    },
}

impl DiskOp {
    /// The name under which the answer comes back.
    #[must_use]
    pub fn id(&self) -> OpId {
        match self {
            Self::Write { id, .. }
            | Self::Read { id, .. }
            | Self::Prewrite { id, .. }
            | Self::Sync { id, .. } => *id,
        }
    }

    /// The file it works on.
    #[must_use]
    pub fn file(&self) -> FileId {
        match self {
            Self::Write { file, .. }
            | Self::Read { file, .. }
            | Self::Prewrite { file, .. }
            | Self::Sync { file, .. } => *file,
        }
    }
}

/// The answer to a [`DiskOp`].
#[derive(Debug)]
pub struct DiskDone {
    /// Which operation.
    pub id: OpId,
    /// Bytes moved (zero for `Sync` and `Prewrite`), or why not.
    pub result: Result<u32, DiskError>,
    /// The buffer of a `Write` or `Read`.
    pub buf: Option<BlockBuf>,
}

/// Why an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskError {
    /// The disk or the kernel refused; the error number of the system call.
    Io(i32),
    /// No space on the file system (`ENOSPC`, `EDQUOT`).
    NoSpace,
    /// A write ended before its buffer did, or a read before the file's end.
    Short {
        /// How many bytes were moved.
        bytes: u32,
    },
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(errno) => write!(f, "I/O error (errno {errno})"),
            Self::NoSpace => f.write_str("no space left on the file system"),
            Self::Short { bytes } => write!(f, "it ended early, after {bytes} bytes"),
        }
    }
}

impl std::error::Error for DiskError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_prints_as_its_path() {
        let file = FileId::Segment { shard: ShardId(3), slot: Slot(12) };
        assert_eq!(file.to_string(), "shard-003/segment-00012");
        assert_eq!(FileId::ShardSuperblock(ShardId(0)).to_string(), "shard-000/superblock");
        assert_eq!(FileId::NodeSuperblock.to_string(), "superblock");
        let file = FileId::Checkpoint { shard: ShardId(3), which: 1 };
        assert_eq!(file.to_string(), "shard-003/checkpoint-1");
    }
}
