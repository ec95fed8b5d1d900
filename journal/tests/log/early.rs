//! Whatever comes in whatever order: what is answered before it is written is on its way when its
//! flush window ends, and a host that does what is due has nothing due.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use journal::limits::{SEGMENT_HEADER_BYTES, WRITES_WINDOW_MAX};
use journal::{
    AppendError, BatchHeader, BatchRead, Config, DiskOp, FileId, Level, Lsn, OpId, QueueId, Record,
    RecordKind, Room, Sequence, Urgency,
};

use crate::bed::{Bed, LONG_SEGMENT_BYTES, Recovering, SEGMENT_BYTES, config, formatted_with};
use crate::hostile::Random;

/// A host that answers early what it may, with a disk that ends its writes in any order.
struct Host {
    bed: Bed,
    random: Random,
    writes_in_flight_max: usize,
    window: Duration,
    /// Ends of records that were answered early, and by when they must be on their way.
    early: VecDeque<(Lsn, Instant)>,
    /// Writes that were submitted, in order, and whether each has ended.
    submitted: VecDeque<(OpId, bool)>,
    submitted_to: Lsn,
    /// Messages that are not settled, in the order of the log.
    live: Vec<(u64, Lsn)>,
    next: u64,
    vouched: u64,
    put_off: u64,
    kept: u64,
}

impl Host {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let segment_bytes = [SEGMENT_BYTES, LONG_SEGMENT_BYTES][random.next(2)];
        let (mut disk, node) = formatted_with(segment_bytes);
        let config = Config {
            writes_in_flight_max: 1 + random.next(8),
            segments_max: [5, 8, 24, 24][random.next(4)],
            ..config()
        };
        let (outcome, _) = Recovering::new(&disk, &node, &config).run(&mut disk);
        let mut bed = Bed::new(outcome.unwrap().journal, disk);
        bed.settle();
        let submitted_to = bed.journal.durable();
        Self {
            bed,
            random,
            writes_in_flight_max: config.writes_in_flight_max,
            window: config.flush_window,
            early: VecDeque::new(),
            submitted: VecDeque::new(),
            submitted_to,
            live: Vec::new(),
            next: 1,
            vouched: 0,
            put_off: 0,
            kept: 0,
        }
    }

    fn append(&mut self) {
        let level = if self.random.next(3) == 0 { Level::Sync } else { Level::Async };
        let bytes = match self.random.next(20) {
            0 => self.random.next(300_000),
            1..=5 => self.random.next(60_000),
            _ => self.random.next(600),
        };
        let payload = vec![7; bytes];
        let settles = self.random.next(3) == 0 && !self.live.is_empty();
        let (kind, sequence) = if settles {
            let at = if self.random.next(2) == 0 { 0 } else { self.random.next(self.live.len()) };
            (RecordKind::Settle, self.live[at].0)
        } else if self.random.next(20) == 0 {
            (RecordKind::DeliveryCount, 1)
        } else {
            (RecordKind::Message, self.next)
        };
        let payload = if kind == RecordKind::Message { &payload[..] } else { &[] };
        let mut record = Record::new(kind, QueueId(1), Sequence(sequence), payload);
        record.level = level;
        let urgency = if self.random.next(2) == 0 { Urgency::Now } else { Urgency::Window };
        match self.bed.journal.append(self.bed.now, &record, urgency) {
            Ok(appended) => {
                assert!(!appended.vouched || level == Level::Async);
                if appended.vouched {
                    self.early.push_back((appended.end, self.bed.now + self.window));
                    self.vouched += 1;
                }
                if kind == RecordKind::Message {
                    self.live.push((sequence, appended.lsn));
                    self.next += 1;
                } else if kind == RecordKind::Settle {
                    self.live.retain(|(live, _)| *live != sequence);
                }
            }
            Err(AppendError::Busy) => self.put_off += 1,
            Err(AppendError::Full) => assert_ne!(kind, RecordKind::Settle, "its room is set aside"),
            Err(error) => panic!("{error}"),
        }
    }

    /// Does what is due, and looks whether that was all.
    fn poll(&mut self) {
        let now = self.bed.now;
        self.bed.journal.handle_timeout(now);
        while let Some(op) = self.bed.journal.poll_disk(now) {
            self.look_at(&op);
            self.bed.pending.push(op);
        }
        assert_eq!(self.bed.journal.poisoned(), None);
        let due = self.bed.journal.poll_timeout();
        assert!(due.is_none_or(|at| at > now), "due again at once: the host would never sleep");
        while let Some((end, by)) = self.early.front() {
            if self.submitted_to >= *end {
                self.early.pop_front();
                continue;
            }
            assert!(now < *by, "answered early, and not on its way when its window ended");
            break;
        }
        let running = self.submitted.iter().filter(|(_, done)| !done).count();
        self.kept += u64::from(running > self.writes_in_flight_max);
        assert!(running <= self.writes_in_flight_max + 1);
        assert!(self.submitted.len() <= WRITES_WINDOW_MAX);
    }

    fn look_at(&mut self, op: &DiskOp) {
        let DiskOp::Write { id, file: FileId::Segment { .. }, offset, buf } = op else { return };
        let header = if *offset == 0 { SEGMENT_HEADER_BYTES } else { 0 };
        let batch = &buf.as_slice()[usize::try_from(header).unwrap()..];
        let seed = self.bed.journal.seed();
        let BatchRead::Header(header) = BatchHeader::decode(seed, batch) else { panic!("a batch") };
        assert!(header.end() > self.submitted_to, "in the order of the log");
        self.submitted_to = header.end();
        self.submitted.push_back((*id, false));
    }

    fn complete(&mut self, index: usize) {
        let id = self.bed.pending[index].id();
        if let Some((_, done)) = self.submitted.iter_mut().find(|(known, _)| *known == id) {
            *done = true;
        }
        while self.submitted.front().is_some_and(|(_, done)| *done) {
            self.submitted.pop_front();
        }
        self.bed.complete(index);
        let durable = self.bed.journal.durable();
        self.bed.journal.set_committed(durable);
    }

    fn recycle(&mut self) {
        while let Some(head) = self.bed.journal.head_segment() {
            if self.live.iter().any(|(_, lsn)| *lsn < head.end_lsn) {
                return;
            }
            self.bed.journal.recycle_head();
        }
    }

    /// The host wakes when something ends, or when it said that it must.
    fn pass_time(&mut self) {
        let most = Duration::from_micros(self.random.next(12_000) as u64);
        let end = self.bed.now + most;
        let due = self.bed.journal.poll_timeout().unwrap_or(end);
        self.bed.now = due.clamp(self.bed.now, end);
        let waits = self.early.iter().find(|(end, _)| *end > self.submitted_to);
        assert!(waits.is_none_or(|(_, by)| self.bed.now <= *by), "nobody woke the host in time");
    }

    fn run(&mut self) {
        // How many of ten operations on the disk the oldest one outlives.
        let stuck = self.random.next(11);
        for _ in 0..600 {
            match self.random.next(10) {
                0..=4 => {
                    for _ in 0..=self.random.next(3) {
                        self.append();
                    }
                }
                5 | 6 => self.pass_time(),
                7 | 8 if !self.bed.pending.is_empty() => {
                    let oldest = self.random.next(10) >= stuck || self.bed.pending.len() == 1;
                    let pending = self.bed.pending.len();
                    let index = if oldest { 0 } else { 1 + self.random.next(pending - 1) };
                    self.complete(index);
                }
                _ => self.recycle(),
            }
            self.poll();
        }
    }

    /// The disk ends what it has; then everything is durable, and a message is taken early.
    fn come_to_rest(&mut self) {
        while !self.bed.pending.is_empty() || self.bed.journal.durable() < self.submitted_to {
            self.complete(0);
            self.poll();
        }
        while self.bed.journal.durable() < self.bed.journal.appended() {
            if self.bed.journal.usage().room != Room::Plenty {
                return;
            }
            self.pass_time();
            self.poll();
            while !self.bed.pending.is_empty() {
                self.complete(0);
                self.poll();
            }
        }
        let mut record = Record::new(RecordKind::Message, QueueId(1), Sequence(self.next), b"x");
        record.level = Level::Async;
        match self.bed.journal.append(self.bed.now, &record, Urgency::Window) {
            Ok(appended) => assert!(appended.vouched),
            Err(error) => assert_eq!(error, AppendError::Full, "nothing is under way"),
        }
    }
}

#[test]
fn what_is_answered_early_is_on_its_way_in_time_whatever_the_disk_does() {
    let (mut vouched, mut put_off, mut kept) = (0, 0, 0);
    for seed in 1..=150 {
        let mut host = Host::new(seed);
        host.run();
        host.come_to_rest();
        vouched += host.vouched;
        put_off += host.put_off;
        kept += host.kept;
    }
    assert!(vouched > 5_000 && put_off > 500 && kept > 500, "{vouched} {put_off} {kept}");
}
