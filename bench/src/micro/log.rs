//! The journal without its disk: checksums, records and batches.
//!
//! ```text
//!   append ──▶ batch ──▶ seal ──▶ DiskOp::Write ──▶ answered at once, nothing is copied
//! ```

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Instant;

use journal::{
    BatchHeader, BatchRead, Config, DiskDone, DiskOp, FileId, Format, Geometry, Journal,
    JournalUuid, LogId, LogSeed, NodeSuperblock, QueueId, Record, RecordKind, Recovery, Sequence,
    ShardId, Urgency,
};

use super::{Row, Work};

const PAYLOAD: [u8; 256] = [7; 256];
const SEGMENT_BYTES: u64 = 1 << 20;

/// Records that a batch gathers while the write before it runs.
const BATCH_RECORDS: u64 = 16;

pub(super) const CASES: &[Row] = &[
    ("crc/256 B", 256, || crc(256)),
    ("crc/4 KiB", 4096, || crc(4096)),
    ("crc/128 KiB", 128 << 10, || crc(128 << 10)),
    ("record/append 256 B, alone in its batch", 256, || append(1)),
    ("record/append 256 B, 16 in a batch", 256, || append(BATCH_RECORDS)),
    ("record/decode 256 B", 256, decode_record),
    ("batch/check and read one of 16 records", 0, read_batch),
];

fn crc(bytes: usize) -> Work {
    let data = vec![7; bytes];
    Box::new(move |operations| {
        for _ in 0..operations {
            black_box(crc32c::crc32c(black_box(&data)));
        }
    })
}

/// A journal and a disk that has done everything before it is asked.
struct Log {
    journal: Journal,
    now: Instant,
    next: u64,
    /// The last batch that was written without a segment's header before it.
    batch: Vec<u8>,
    keeps_batches: bool,
}

/// Enough of a disk to format and recover on.
#[derive(Default)]
struct Disk(BTreeMap<FileId, Vec<u8>>);

impl Disk {
    fn run(&mut self, op: DiskOp) -> DiskDone {
        match op {
            DiskOp::Write { id, file, offset, buf } => {
                let (bytes, at) = (self.0.entry(file).or_default(), offset as usize);
                bytes.resize(bytes.len().max(at + buf.len()), 0);
                bytes[at..at + buf.len()].copy_from_slice(buf.as_slice());
                DiskDone { id, result: Ok(buf.len() as u32), buf: Some(buf) }
            }
            DiskOp::Read { id, file, offset, mut buf } => {
                let (bytes, at) = (self.0.entry(file).or_default(), offset as usize);
                let there = bytes.get(at..).unwrap_or_default();
                let count = there.len().min(buf.len());
                buf.as_mut_slice()[..count].copy_from_slice(&there[..count]);
                DiskDone { id, result: Ok(count as u32), buf: Some(buf) }
            }
            DiskOp::Prewrite { id, file, bytes } => {
                self.0.insert(file, vec![0; bytes as usize]);
                DiskDone { id, result: Ok(0), buf: None }
            }
            DiskOp::Sync { id, .. } => DiskDone { id, result: Ok(0), buf: None },
        }
    }

    fn format(&mut self) -> NodeSuperblock {
        let geometry = Geometry { segment_bytes: SEGMENT_BYTES, shards: 1 };
        let mut format = Format::new(LogId([7; 16]), JournalUuid([8; 16]), geometry);
        while let Some(op) = format.poll_disk() {
            format.handle_disk(self.run(op));
        }
        format.poll_outcome().expect("it has ended").expect("memory does not fail")
    }
}

impl Log {
    #[expect(clippy::disallowed_methods, reason = "a journal begins at some moment")]
    fn new() -> Self {
        let (mut disk, now) = (Disk::default(), Instant::now());
        let node = disk.format();
        let config = Config { segments_max: 8, ..Config::default() };
        let slots: Vec<journal::SlotFile> = disk
            .0
            .iter()
            .filter_map(|(file, bytes)| match file {
                FileId::Segment { slot, .. } => {
                    Some(journal::SlotFile { slot: *slot, bytes: bytes.len() as u64 })
                }
                FileId::NodeSuperblock | FileId::ShardSuperblock(_) | FileId::Checkpoint { .. } => {
                    None
                }
            })
            .collect();
        let mut recovery = Recovery::new(&node, ShardId(0), &slots, config);
        while let Some(op) = recovery.poll_disk() {
            recovery.handle_disk(now, disk.run(op));
        }
        let outcome = recovery.poll_outcome().expect("it has ended").expect("the log is empty");
        Self { journal: outcome.journal, now, next: 0, batch: Vec::new(), keeps_batches: false }
    }

    fn append(&mut self) {
        let sequence = Sequence(self.next);
        self.next += 1;
        let record = Record::new(RecordKind::Message, QueueId(1), sequence, &PAYLOAD);
        self.journal.append(self.now, &record, Urgency::Now).expect("there is room");
    }

    /// The disk does all there is to do, and nothing that was written is needed any more.
    fn settle(&mut self) {
        loop {
            while let Some(op) = self.journal.poll_disk(self.now) {
                let done = self.answer(op);
                self.journal.handle_disk(self.now, done);
            }
            self.journal.set_committed(self.journal.durable());
            self.journal.set_unsettled(0);
            if self.journal.head_segment().is_none() {
                return;
            }
            self.journal.recycle_head();
        }
    }

    fn answer(&mut self, op: DiskOp) -> DiskDone {
        match op {
            DiskOp::Write { id, file, offset, buf } => {
                let is_batch = matches!(file, FileId::Segment { .. }) && offset > 0;
                if self.keeps_batches && is_batch {
                    self.batch = buf.as_slice().to_vec();
                }
                DiskDone { id, result: Ok(buf.len() as u32), buf: Some(buf) }
            }
            DiskOp::Read { id, buf, .. } => {
                DiskDone { id, result: Ok(buf.len() as u32), buf: Some(buf) }
            }
            DiskOp::Prewrite { id, .. } | DiskOp::Sync { id, .. } => {
                DiskDone { id, result: Ok(0), buf: None }
            }
        }
    }

    /// The bytes of a batch, and the seed of its log.
    fn batch_of(records: u64) -> (Vec<u8>, LogSeed) {
        let mut log = Self { keeps_batches: true, ..Self::new() };
        while log.batch.is_empty() {
            (0..records).for_each(|_| log.append());
            log.settle();
        }
        (log.batch, *log.journal.seed())
    }
}

/// One operation is one record; so many share a batch.
fn append(batch_records: u64) -> Work {
    let mut log = Log::new();
    Box::new(move |operations| {
        for number in 1..=operations {
            log.append();
            if number.is_multiple_of(batch_records) {
                log.settle();
            }
        }
        log.settle();
    })
}

fn header_of(seed: &LogSeed, batch: &[u8]) -> BatchHeader {
    match BatchHeader::decode(seed, batch) {
        BatchRead::Header(header) => header,
        other @ (BatchRead::Absent | BatchRead::Version(_) | BatchRead::Malformed(_)) => {
            panic!("a batch of ours: {other:?}")
        }
    }
}

fn decode_record() -> Work {
    let (batch, seed) = Log::batch_of(1);
    let header = header_of(&seed, &batch);
    let lsn = header.first_lsn.plus(journal::limits::BATCH_HEADER_BYTES as u64);
    let body = header.body(&seed, &batch).expect("a body of ours").to_vec();
    Box::new(move |operations| {
        for _ in 0..operations {
            black_box(Record::decode(&seed, lsn, black_box(&body)).expect("a record of ours"));
        }
    })
}

fn read_batch() -> Work {
    let (batch, seed) = Log::batch_of(BATCH_RECORDS);
    Box::new(move |operations| {
        for _ in 0..operations {
            let batch = black_box(batch.as_slice());
            let header = header_of(&seed, batch);
            let body = header.body(&seed, batch).expect("a body of ours");
            let records = header.records(&seed, body).map(|record| record.expect("one of ours"));
            assert_eq!(records.count() as u64, BATCH_RECORDS);
        }
    })
}
