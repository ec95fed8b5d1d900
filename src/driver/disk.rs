//! A core's journal files on its ring.
//!
//! ```text
//!   DiskOp ──┬─ Write, Read, Sync ─▶ ring, with a tag ─▶ Completion::Disk ─▶ DiskDone
//!            ├─ Prewrite ─────────▶ the cold thread ─────▶ Input::Cold ────▶ DiskDone
//!            └─ no such file ─────────────────────────────────────────────▶ DiskDone at once
//! ```
//! Tags are slots of a table that remembers whose operation it is. Files are opened when they are
//! first used; when the ring has room for no more, the one that was used longest ago goes, and
//! comes back when it is needed.
//!
//! Invariants: each operation is answered exactly once, with its buffer. A write that ended early
//! is an error, whatever the kernel calls it. Failure: errors are answers; the journal judges them.

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

#[cfg(test)]
mod tests {
    use journal::Slot;
    use net::{Completion, RingConfig};

    use super::*;
    use crate::driver::directory::{Directory, LockWait, Wanted};

    struct Bench {
        ring: Ring,
        disk: Disk,
        _root: tempfile::TempDir,
        _directory: Directory,
    }

    fn bench() -> Bench {
        let root = tempfile::tempdir().expect("a directory");
        let wanted = Wanted {
            segment_bytes: 64 * 1024,
            segment_bytes_given: false,
            shards: 1,
            shards_given: false,
            allow_volatile: true,
            identity: None,
        };
        let directory =
            Directory::open(root.path(), LockWait(None), &wanted, || {}).expect("formatted");
        let config = RingConfig { files_max: FILES_MAX + 1, ..RingConfig::default() };
        let ring = Ring::new(config).expect("a ring");
        let cold = Cold::start(directory.files()).expect("a thread");
        let bell = ring.doorbell();
        let (inbox, _inputs) = Inbox::new(move || bell.knock());
        let disk = Disk::new(directory.files(), cold, inbox);
        Bench { ring, disk, _root: root, _directory: directory }
    }

    impl Bench {
        fn perform(&mut self, op: DiskOp) -> DiskDone {
            self.disk.submit(&mut self.ring, ShardId(0), op);
            let mut completions = Vec::new();
            loop {
                if let Some((_, done)) = self.disk.poll() {
                    return done;
                }
                self.ring.wait(None, &mut completions).expect("a wait");
                if let Some(Completion::Disk { tag, buf, result }) = completions.pop() {
                    return self.disk.complete(tag, buf, result).1;
                }
            }
        }
    }

    fn segment(slot: u32) -> FileId {
        FileId::Segment { shard: ShardId(0), slot: Slot(slot) }
    }

    #[test]
    fn what_is_written_is_read_and_each_answer_has_its_name() {
        let mut bench = bench();
        let mut buf = BlockBuf::zeroed(8192);
        buf.as_mut_slice()[5000] = 7;
        let (file, offset) = (segment(0), 4096);
        let written = bench.perform(DiskOp::Write { id: OpId(1), file, offset, buf });
        assert_eq!((written.id, written.result), (OpId(1), Ok(8192)));
        let buf = BlockBuf::zeroed(8192);
        let read = bench.perform(DiskOp::Read { id: OpId(2), file, offset, buf });
        assert_eq!((read.id, read.result), (OpId(2), Ok(8192)));
        assert_eq!(read.buf.expect("the buffer").as_slice()[5000], 7);
        let synced = bench.perform(DiskOp::Sync { id: OpId(3), file });
        assert!(synced.result.is_ok() && synced.buf.is_none());
    }

    #[test]
    fn a_read_gives_what_there_is() {
        let mut bench = bench();
        let read =
            |file, offset| DiskOp::Read { id: OpId(1), file, offset, buf: BlockBuf::zeroed(8192) };
        assert_eq!(bench.perform(read(segment(0), 60 * 1024)).result, Ok(4096));
        assert_eq!(bench.perform(read(segment(99), 0)).result, Ok(0));
    }

    #[test]
    fn a_write_to_a_missing_file_is_an_error_with_its_buffer() {
        let mut bench = bench();
        let buf = BlockBuf::zeroed(4096);
        let op = DiskOp::Write { id: OpId(1), file: segment(99), offset: 0, buf };
        let done = bench.perform(op);
        assert!(matches!(done.result, Err(DiskError::Io(_))));
        assert!(done.buf.is_some());
    }

    #[test]
    fn more_files_than_the_ring_takes_are_opened_in_turn() {
        let mut bench = bench();
        for slot in 0..FILES_MAX + 20 {
            let path = bench.disk.files.path(segment(slot));
            if !path.exists() {
                std::fs::write(path, vec![0; 4096]).expect("a file");
            }
            let buf = BlockBuf::take(4096);
            let read = DiskOp::Read { id: OpId(1), file: segment(slot), offset: 0, buf };
            assert_eq!(bench.perform(read).result, Ok(4096), "slot {slot}");
        }
        assert_eq!(bench.disk.open.len(), FILES_MAX as usize);
    }

    #[test]
    fn a_pre_write_is_answered_by_the_inbox() {
        let mut bench = bench();
        let bell = bench.ring.doorbell();
        let (inbox, inputs) = Inbox::new(move || bell.knock());
        bench.disk.inbox = inbox;
        let op = DiskOp::Prewrite { id: OpId(9), file: segment(7), bytes: 65_536 };
        bench.disk.submit(&mut bench.ring, ShardId(0), op);
        let crate::node::Input::Cold { done, .. } = inputs.recv().expect("an answer") else {
            panic!("not an answer");
        };
        assert_eq!((done.id, done.result.is_ok()), (OpId(9), true));
        let path = bench.disk.files.path(segment(7));
        assert_eq!(std::fs::metadata(path).expect("there").len(), 65_536);
    }
}
