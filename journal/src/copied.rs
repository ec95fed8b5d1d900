//! The superblocks of a copy: a log as it stood at a moment when it was durable up to some LSN.
//!
//! ```text
//!   the log      | gone | head ............ durable | what came after
//!   the copy            | head ............ durable |
//!                        the segments' bytes, cut off here, and these superblocks
//! ```
//! Whoever copies gets the bytes; here is only what the copy says of itself. It is a directory that
//! a start accepts, as after a power cut at that moment.
//!
//! Invariants: the durable mark of the copy is where it was cut, so a copy in which a byte is
//! missing or wrong is damaged and not shorter; the directory's own id is new, so nobody takes the
//! copy for the disk that it was made of. What is not known here is copied with the rest.

use crate::identity::Chain;
use crate::lsn::{JournalUuid, Lsn};
use crate::superblock::{Begun, NodeSuperblock, SUPERBLOCK_FILE_BYTES, ShardSuperblock};

/// What of a shard's log is in its copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogCopy {
    /// Where its first segment's first batch stands.
    pub head: Lsn,
    /// The chain before it.
    pub head_chain: Chain,
    /// The end of its last batch.
    pub durable: Lsn,
    /// How many segment files it has, numbered from 0.
    pub slots: u32,
}

impl NodeSuperblock {
    /// The file `superblock` of a copy that is in another directory.
    #[must_use]
    pub fn copied(&self, journal_uuid: JournalUuid) -> Vec<u8> {
        let mut copy = self.clone();
        (copy.generation, copy.journal_uuid) = (1, journal_uuid);
        file_of(copy.encode().0.as_slice())
    }
}

impl ShardSuperblock {
    /// The file `shard-000/superblock` of a copy.
    ///
    /// # Panics
    /// If the copy ends before it begins.
    #[must_use]
    pub fn copied(&self, copy: &LogCopy) -> Vec<u8> {
        let LogCopy { head, head_chain, durable, slots } = *copy;
        let mut superblock = self.clone();
        (superblock.generation, superblock.clean) = (1, false);
        (superblock.head, superblock.head_chain) = (head, head_chain);
        (superblock.durable, superblock.slots_made) = (durable, slots);
        // Files of a log that was given up are not copied.
        superblock.begun = superblock.begun.map(|begun| Begun { slots_before: 0, ..begun });
        file_of(superblock.encode().0.as_slice())
    }
}

/// The first generation stands in the first of both blocks; the second was never written.
fn file_of(block: &[u8]) -> Vec<u8> {
    let mut file = block.to_vec();
    file.resize(SUPERBLOCK_FILE_BYTES, 0);
    file
}
