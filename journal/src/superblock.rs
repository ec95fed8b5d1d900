//! What a directory and a shard's log are, in two blocks written in turn.

use crate::lsn::{Epoch, JournalUuid, LogId};

/// What is fixed when a directory is formatted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of a segment, all shards alike.
    pub segment_bytes: u64,
    /// How many shards.
    pub shards: u16,
}

/// Whether a log is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum NodeState {
    /// It can be started from.
    Whole = 1,
    /// A catch-up by segments was under way: it must be started again.
    Installing = 2,
}

/// The node's superblock: file `superblock`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSuperblock {
    /// Goes up with each writing.
    pub generation: u64,
    /// Which log.
    pub log_id: LogId,
    /// Which directory.
    pub journal_uuid: JournalUuid,
    /// Sizes.
    pub geometry: Geometry,
    /// No older epoch is followed or begun.
    pub epoch_promised: Epoch,
    /// Whether the log is whole.
    pub state: NodeState,
}

impl NodeSuperblock {
    /// Reads the whole file `superblock` (8192 bytes; fewer, or none, where it is shorter or
    /// missing). `Ok(None)`: never written, so the directory is not formatted.
    ///
    /// # Errors
    /// It was written and can't be read or must not be used.
    pub fn decode(_file: &[u8]) -> Result<Option<Self>, SuperblockError> {
        panic!("not in yet")
    }
}

/// Why a superblock can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SuperblockError {
    /// Both blocks were written and neither checks.
    Unreadable,
    /// A later version wrote it.
    NewerFormat {
        /// Its version.
        version: u16,
    },
    /// It has features that must not be ignored.
    UnknownFeatures(u64),
    /// It belongs to another log or shard.
    WrongLog,
    /// Its fields contradict each other.
    Malformed,
}
