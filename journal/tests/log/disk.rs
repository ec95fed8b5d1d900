//! A disk in memory, with sync modelled for each write.
//!
//! ```text
//!   submit -> pending --complete--> platter                 (a write is synced: it is durable)
//!                     --crash-----> lost | torn | whole     (each pending write by itself)
//!                     --kill------> cache                   (visible, and gone at a power cut
//!                                                            unless its file is synced first)
//! ```
//!
//! Tearing is by block; nothing orders the writes that are pending.

use std::collections::{BTreeMap, BTreeSet};

use journal::limits::BLOCK_BYTES;
use journal::{DiskDone, DiskError, DiskOp, FileId, ShardId, SlotFile};

#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) file: FileId,
    pub(crate) offset: usize,
    pub(crate) bytes: Vec<u8>,
}

/// What becomes of a pending write when the power goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Lost,
    Whole,
    /// Only its first block.
    Front,
    /// All but its first block.
    Back,
}

impl Fate {
    pub(crate) const ALL: [Self; 4] = [Self::Lost, Self::Whole, Self::Front, Self::Back];
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    pub(crate) platter: BTreeMap<FileId, Vec<u8>>,
    pub(crate) cache: Vec<Write>,
    /// Blocks that can't be read.
    pub(crate) unreadable: BTreeSet<(FileId, usize)>,
    pub(crate) writes: usize,
}

impl Disk {
    fn put(&mut self, file: FileId, offset: usize, bytes: &[u8]) {
        let content = self.platter.entry(file).or_default();
        content.resize(content.len().max(offset + bytes.len()), 0);
        content[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn contents(&self, file: FileId) -> Vec<u8> {
        let mut content = self.platter.get(&file).cloned().unwrap_or_default();
        for write in self.cache.iter().filter(|write| write.file == file) {
            content.resize(content.len().max(write.offset + write.bytes.len()), 0);
            content[write.offset..write.offset + write.bytes.len()].copy_from_slice(&write.bytes);
        }
        content
    }

    /// Does it, as asked.
    pub(crate) fn complete(&mut self, op: DiskOp) -> DiskDone {
        match op {
            DiskOp::Write { id, file, offset, buf } => {
                self.writes += 1;
                let offset = usize::try_from(offset).unwrap();
                assert!(
                    offset.is_multiple_of(BLOCK_BYTES) && buf.len().is_multiple_of(BLOCK_BYTES)
                );
                self.put(file, offset, buf.as_slice());
                let bytes = u32::try_from(buf.len()).unwrap();
                DiskDone { id, result: Ok(bytes), buf: Some(buf) }
            }
            DiskOp::Read { id, file, offset, mut buf } => {
                let offset = usize::try_from(offset).unwrap();
                let hurt = (file, offset)..(file, offset + buf.len());
                if self.unreadable.range(hurt).next().is_some() {
                    return DiskDone { id, result: Err(DiskError::Io(5)), buf: Some(buf) };
                }
                let content = self.contents(file);
                let there = content.get(offset..).unwrap_or_default();
                let len = there.len().min(buf.len());
                buf.as_mut_slice()[..len].copy_from_slice(&there[..len]);
                DiskDone { id, result: Ok(u32::try_from(len).unwrap()), buf: Some(buf) }
            }
            DiskOp::Prewrite { id, file, bytes } => {
                self.writes += 1;
                self.platter.insert(file, vec![0; usize::try_from(bytes).unwrap()]);
                DiskDone { id, result: Ok(0), buf: None }
            }
            DiskOp::Sync { id, file } => {
                let (synced, cache) = self.cache.drain(..).partition(|write| write.file == file);
                self.cache = cache;
                let synced: Vec<Write> = synced;
                for write in synced {
                    self.put(write.file, write.offset, &write.bytes);
                }
                DiskDone { id, result: Ok(0), buf: None }
            }
        }
    }

    /// The power goes while `write` is pending.
    pub(crate) fn crash(&mut self, write: &Write, fate: Fate) {
        let split = BLOCK_BYTES.min(write.bytes.len());
        match fate {
            Fate::Lost => {}
            Fate::Whole => self.put(write.file, write.offset, &write.bytes),
            Fate::Front => self.put(write.file, write.offset, &write.bytes[..split]),
            Fate::Back => self.put(write.file, write.offset + split, &write.bytes[split..]),
        }
    }

    pub(crate) fn slots(&self, shard: ShardId) -> Vec<SlotFile> {
        let files = self.platter.iter().filter_map(|(file, content)| match file {
            FileId::Segment { shard: of, slot } if *of == shard => {
                Some(SlotFile { slot: *slot, bytes: content.len() as u64 })
            }
            FileId::Segment { .. }
            | FileId::NodeSuperblock
            | FileId::ShardSuperblock(_)
            | FileId::Checkpoint { .. } => None,
        });
        files.collect()
    }
}
