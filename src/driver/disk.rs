//! A core's journal files on its ring.
//!
//! ```text
//!   DiskOp ──┬─ Write, Read, Sync ─▶ ring, with a tag ─▶ Completion::Disk ─▶ DiskDone
//!            ├─ Prewrite ─────────▶ the cold thread ─────▶ Input::Cold ────▶ DiskDone
//!            └─ no such file ─────────────────────────────────────────────▶ DiskDone at once
//! ```
//! Tags are slots of a table that remembers whose operation it is. Files are opened when they are
//! first used; when the ring has room for no more, the one that was used longest ago goes, and comes
//! back when it is needed.
//!
//! Invariants: each operation is answered exactly once, with its buffer. A write that ended early is
//! an error, whatever the kernel calls it. Failure: errors are answers; the journal judges them.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use journal::{BlockBuf, DiskDone, DiskError, DiskOp, FileId, OpId, ShardId};
use net::{DiskRead, DiskWrite, Ring};

use super::cold::{Cold, Prewrite};
use super::directory::{Files, disk_error};
use crate::node::Inbox;

/// Journal files that a ring has open.
pub(super) const FILES_MAX: u32 = 512;

/// What a tag stands for.
#[derive(Clone, Copy)]
struct Under {
    shard: ShardId,
    id: OpId,
    kind: Kind,
    /// Bytes of the buffer that are in use.
    bytes: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Write,
    Read,
    Sync,
}

/// An open file, and when it was last used, in operations.
struct Open {
    file: net::FileId,
    used: u64,
}

/// The journal files of a core.
pub(super) struct Disk {
    files: Files,
    cold: Cold,
    inbox: Inbox,
    open: BTreeMap<FileId, Open>,
    clock: u64,
    under_way: Vec<Option<Under>>,
    free: Vec<usize>,
    answered: VecDeque<(ShardId, DiskDone)>,
}

impl Disk {
    /// No file is open yet.
    pub(super) fn new(files: Files, cold: Cold, inbox: Inbox) -> Self {
        Self {
            files,
            cold,
            inbox,
            open: BTreeMap::new(),
            clock: 0,
            under_way: Vec::new(),
            free: Vec::new(),
            answered: VecDeque::new(),
        }
    }

    /// Begin an operation.
    pub(super) fn submit(&mut self, ring: &mut Ring, shard: ShardId, op: DiskOp) {
        if let DiskOp::Prewrite { id, file, bytes } = op {
            let inbox = self.inbox.clone();
            return self.cold.prewrite(Prewrite { shard, id, file, bytes, inbox });
        }
        #[cfg(feature = "canary")]
        let op = match (op, crate::canary::chosen()) {
            (DiskOp::Write { id, file, offset, buf }, Some(crate::canary::Canary::NoDataSync)) => {
                let written = self.files.write_unsynced(file, buf.as_slice(), offset);
                let bytes = u32::try_from(buf.len()).expect("a batch");
                let result = written.map(|()| bytes).map_err(|error| disk_error(&error));
                let done = DiskDone { id, result, buf: Some(buf) };
                return self.answered.push_back((shard, done));
            }
            (op, _) => op,
        };
        match self.file(ring, op.file()) {
            Ok(file) => self.begin(ring, shard, file, op),
            Err(error) => self.answer_at_once(shard, op, &error),
        }
    }

    /// An answer that needs no ring, if there is one.
    pub(super) fn poll(&mut self) -> Option<(ShardId, DiskDone)> {
        self.answered.pop_front()
    }

    /// Whether an answer waits to be polled.
    pub(super) fn has_answers(&self) -> bool {
        !self.answered.is_empty()
    }

    /// What a completion means.
    ///
    /// # Panics
    /// If the ring completes what was not begun.
    pub(super) fn complete(
        &mut self,
        tag: u64,
        memory: Option<&'static mut [u8]>,
        result: io::Result<u32>,
    ) -> (ShardId, DiskDone) {
        let slot = usize::try_from(tag).expect("a tag is a slot");
        let under = self.under_way[slot].take().expect("a completion of an operation under way");
        self.free.push(slot);
        let buf = memory.map(|memory| BlockBuf::from_static(memory, under.bytes));
        let result = match result {
            Ok(bytes) if under.kind == Kind::Write && bytes as usize != under.bytes => {
                Err(DiskError::Short { bytes })
            }
            Ok(bytes) => Ok(bytes),
            Err(error) => Err(disk_error(&error)),
        };
        (under.shard, DiskDone { id: under.id, result, buf })
    }

    fn begin(&mut self, ring: &mut Ring, shard: ShardId, file: net::FileId, op: DiskOp) {
        let id = op.id();
        match op {
            DiskOp::Write { offset, buf, .. } => {
                let (memory, len) = buf.into_static();
                let tag = self.tag(Under { shard, id, kind: Kind::Write, bytes: len });
                ring.write_durable(DiskWrite { file, offset, buf: memory, len, tag });
            }
            DiskOp::Read { offset, buf, .. } => {
                let (memory, len) = buf.into_static();
                let tag = self.tag(Under { shard, id, kind: Kind::Read, bytes: len });
                ring.read(DiskRead { file, offset, buf: memory, len, tag });
            }
            DiskOp::Sync { .. } => {
                let tag = self.tag(Under { shard, id, kind: Kind::Sync, bytes: 0 });
                ring.sync_data(file, tag);
            }
            DiskOp::Prewrite { .. } => unreachable!("pre-writes go to the cold thread"),
        }
    }

    fn tag(&mut self, under: Under) -> u64 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.under_way.push(None);
            self.under_way.len() - 1
        });
        self.under_way[slot] = Some(under);
        slot as u64
    }

    /// A file that is not there holds no bytes; every other error is one.
    fn answer_at_once(&mut self, shard: ShardId, op: DiskOp, error: &io::Error) {
        let id = op.id();
        let missing = error.kind() == io::ErrorKind::NotFound;
        let (result, buf) = match op {
            DiskOp::Read { buf, .. } if missing => (Ok(0), Some(buf)),
            DiskOp::Read { buf, .. } | DiskOp::Write { buf, .. } => {
                (Err(disk_error(error)), Some(buf))
            }
            DiskOp::Sync { .. } | DiskOp::Prewrite { .. } => (Err(disk_error(error)), None),
        };
        self.answered.push_back((shard, DiskDone { id, result, buf }));
    }

    fn file(&mut self, ring: &mut Ring, file: FileId) -> io::Result<net::FileId> {
        self.clock += 1;
        if let Some(open) = self.open.get_mut(&file) {
            open.used = self.clock;
            return Ok(open.file);
        }
        let data = self.files.open(file)?;
        if self.open.len() >= FILES_MAX as usize {
            self.close_oldest(ring);
        }
        let added = ring.add_file(data).map_err(|_| {
            io::Error::other("the ring has no room for another file, though one was closed")
        })?;
        self.open.insert(file, Open { file: added, used: self.clock });
        Ok(added)
    }

    fn close_oldest(&mut self, ring: &mut Ring) {
        let oldest = self.open.iter().min_by_key(|(_, open)| open.used).map(|(file, _)| *file);
        if let Some(open) = oldest.and_then(|file| self.open.remove(&file)) {
            ring.remove_file(open.file);
        }
    }
}
