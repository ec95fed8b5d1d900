//! Reads every batch on its way to the disk, and knows by itself how much of each log is durable.
//!
//! ```text
//!   DiskOp::Write ──▶ header, records ──▶ Seen::Vouched, Seen::Written
//!                 ──▶ superblock ──▶ Seen::Headed
//!   its answer    ──▶ the contiguous prefix of a log's writes that have ended ──▶ Mark
//! ```
//! Batches are submitted in the order of their log, so the prefix is a queue whose front pops. What
//! a log holds is kept batch by batch, each under its end with the chain there: a member of a pair
//! may begin its reign with what the one before had lost.
//!
//! Invariant: nothing here is told by the broker; only recovery's end is taken from it, since what
//! recovery vouches for is checked by the next power cut.

use std::collections::{BTreeMap, VecDeque};

use journal::limits::SEGMENT_HEADER_BYTES;
use journal::{
    BatchHeader, BatchRead, Chain, DiskOp, FileId, Level, LogId, LogSeed, Lsn, OpId, Record,
    RecordFlags, RecordKind, SUPERBLOCK_FILE_BYTES, ShardId, ShardSuperblock,
};

use crate::check::{Mark, Seen, Written};
use crate::letter;

/// What is known of one shard's log.
#[derive(Debug)]
struct Log {
    seed: LogSeed,
    flights: VecDeque<Flight>,
    mark: Mark,
    unfinished: BTreeMap<(u64, u64), Written>,
    held: Held,
    /// Where it begins.
    head: Lsn,
}

/// The batches of a log, by their ends.
pub type Held = BTreeMap<Lsn, Batch>;

/// A batch of a log.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The chain at its end.
    pub chain: Chain,
    /// What is whole with it.
    pub records: Vec<Written>,
}

#[derive(Debug)]
struct Flight {
    id: OpId,
    end: Lsn,
    done: bool,
}

/// The reader of batches.
#[derive(Debug)]
pub struct Audit {
    logs: Vec<Log>,
}

impl Audit {
    /// An auditor of a node's logs.
    pub fn new(log_id: LogId, shards: u16) -> Self {
        let log = |shard| Log {
            seed: LogSeed::new(log_id, ShardId(shard)),
            flights: VecDeque::new(),
            mark: Mark::default(),
            unfinished: BTreeMap::new(),
            held: Held::new(),
            head: Lsn::ZERO,
        };
        Self { logs: (0..shards).map(log).collect() }
    }

    /// The marks of every shard.
    pub fn marks(&self) -> Vec<Mark> {
        self.logs.iter().map(|log| log.mark).collect()
    }

    /// What a log holds, as far as it was submitted.
    pub fn held(&self, shard: ShardId) -> &Held {
        &self.logs[usize::from(shard.0)].held
    }

    /// Where a log begins, by its superblock as it was submitted last.
    pub fn log_head(&self, shard: ShardId) -> Lsn {
        self.logs[usize::from(shard.0)].head
    }

    /// The second member's marks move.
    pub fn backup(&mut self, shard: ShardId, received: Lsn, backed_up: Lsn) {
        let mark = &mut self.logs[usize::from(shard.0)].mark;
        mark.received = mark.received.max(received);
        mark.backed_up = mark.backed_up.max(backed_up);
    }

    /// Where the records that were submitted end.
    pub fn submitted(&self, shard: ShardId) -> Lsn {
        let log = &self.logs[usize::from(shard.0)];
        log.flights.back().map_or(log.mark.durable, |flight| flight.end)
    }

    /// The process is gone, and all that was in flight with it. Of a message whose beginning a
    /// member's log has it may be sent the rest.
    pub fn crashed(&mut self) {
        for log in &mut self.logs {
            log.flights.clear();
        }
    }

    /// A log was recovered up to here; the second member has no more of it than that.
    pub fn recovered(&mut self, shard: ShardId, end: Lsn) {
        let log = &mut self.logs[usize::from(shard.0)];
        log.held.retain(|at, _| *at <= end);
        let mark = &mut log.mark;
        mark.durable = end;
        mark.received = mark.received.min(end);
        mark.backed_up = mark.backed_up.min(end);
    }

    /// Whether every record of a write is at level `async`.
    pub fn is_async(&self, op: &DiskOp) -> bool {
        let mut levels = Vec::new();
        let _header = self.read(op, |_, _, record| levels.push(record.level));
        !levels.is_empty() && levels.iter().all(|level| *level == Level::Async)
    }

    fn read(
        &self,
        op: &DiskOp,
        mut each: impl FnMut(Lsn, Lsn, &Record<'_>),
    ) -> Option<(ShardId, BatchHeader)> {
        let DiskOp::Write { file: FileId::Segment { shard, .. }, offset, buf, .. } = op else {
            return None;
        };
        let lead = if *offset == 0 { SEGMENT_HEADER_BYTES as usize } else { 0 };
        let batch = &buf.as_slice()[lead..];
        let seed = &self.logs[usize::from(shard.0)].seed;
        let BatchRead::Header(header) = BatchHeader::decode(seed, batch) else { return None };
        let body = header.body(seed, batch).expect("a batch is sealed with its checksum");
        for found in header.records(seed, body) {
            let (lsn, record) = found.expect("a batch is sealed with whole records");
            each(lsn, lsn.plus(record.encoded_len() as u64), &record);
        }
        Some((*shard, header))
    }

    /// Where a log begins, of a write of its superblock.
    fn head(&self, op: &DiskOp) -> Option<Seen> {
        let DiskOp::Write { file: FileId::ShardSuperblock(shard), offset, buf, .. } = op else {
            return None;
        };
        let log = &self.logs[usize::from(shard.0)];
        let mut file = vec![0; SUPERBLOCK_FILE_BYTES];
        let offset = usize::try_from(*offset).expect("one of two blocks");
        file[offset..offset + buf.len()].copy_from_slice(buf.as_slice());
        let superblock = ShardSuperblock::decode(&file, log.seed.log(), *shard).ok()??;
        Some(Seen::Headed { shard: *shard, head: superblock.head, mark: log.mark })
    }

    /// A write is submitted; what is in it.
    pub fn submit(&mut self, op: &DiskOp) -> Vec<Seen> {
        if let Some(headed) = self.head(op) {
            if let Seen::Headed { shard, head, .. } = &headed {
                self.logs[usize::from(shard.0)].head = *head;
            }
            return vec![headed];
        }
        let mut records = Vec::new();
        let read = self.read(op, |lsn, end, record| records.push(Found::new(lsn, end, record)));
        let Some((shard, header)) = read else { return Vec::new() };
        let log = &mut self.logs[usize::from(shard.0)];
        let (end, chain) = (header.end(), header.chain_after());
        let mut seen = vec![Seen::Vouched { shard, vouched: header.durable, end, chain }];
        let mut whole = Vec::new();
        for found in records {
            let flags = found.flags;
            let mut written = found.written(shard);
            let key = (written.queue.0, written.sequence.0);
            if !flags.has(RecordFlags::FIRST) {
                let Some(first) = log.unfinished.remove(&key) else { continue };
                written = Written { end: written.end, ..first };
            }
            if flags.has(RecordFlags::LAST) {
                whole.push(written);
            } else {
                log.unfinished.insert(key, written);
            }
        }
        log.held.insert(end, Batch { chain, records: whole.clone() });
        seen.extend(whole.into_iter().map(Seen::Written));
        log.flights.push_back(Flight { id: op.id(), end, done: false });
        seen
    }

    /// An operation of this shard ended well.
    pub fn done(&mut self, shard: ShardId, id: OpId) {
        let log = &mut self.logs[usize::from(shard.0)];
        if let Some(flight) = log.flights.iter_mut().find(|flight| flight.id == id) {
            flight.done = true;
        }
        while let Some(flight) = log.flights.pop_front_if(|flight| flight.done) {
            log.mark.durable = log.mark.durable.max(flight.end);
        }
    }
}

/// A record, or a fragment, with what outlives its batch.
struct Found {
    flags: RecordFlags,
    written: Written,
}

impl Found {
    fn new(lsn: Lsn, end: Lsn, record: &Record<'_>) -> Self {
        let letter = match record.kind {
            RecordKind::Message => letter::find(record.payload),
            RecordKind::Settle
            | RecordKind::DeliveryCount
            | RecordKind::Reference
            | RecordKind::QueueCreate
            | RecordKind::QueueDelete
            | RecordKind::NextSequence
            | RecordKind::NextQueueId
            | RecordKind::AddressCreate
            | RecordKind::AddressDelete
            | RecordKind::Prepare
            | RecordKind::Decide => None,
        };
        let name = (record.kind == RecordKind::QueueCreate)
            .then(|| broker::catalogue::QueueRecord::decode(record.queue, record.payload).ok())
            .flatten()
            .map(|queue| queue.name);
        let written = Written {
            shard: ShardId(0),
            kind: record.kind,
            level: record.level,
            queue: record.queue,
            sequence: record.sequence,
            lsn,
            end,
            letter,
            name,
            origin: record.parts.origin,
            identified: record.parts.duplicate_id.is_some(),
            doom: record.kind == RecordKind::DeliveryCount
                && record.payload.first().is_some_and(|reason| *reason > 0),
            delivery_count: record.parts.delivery_count,
            delivery_unix_ms: record.parts.delivery_unix_ms,
            found: false,
        };
        Self { flags: record.flags, written }
    }

    fn written(self, shard: ShardId) -> Written {
        Written { shard, ..self.written }
    }
}
