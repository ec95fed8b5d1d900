//! What a disk gives to this journal: the time from a record to its durable batch, by size and by
//! writes in flight.
//!
//! ```text
//!   Load { payload_bytes, in_flight, writes }*
//!      |
//!      v   poll_disk(now)                                handle_disk(now, DiskDone)
//!   record -> copied, checked, sealed -> DiskOp::Write ------------> a time, in nanoseconds
//!             '---------------- the time of a write ----------------'
//!
//!   one load after the other; in each: `in_flight` kept busy, the first tenth not counted
//! ```
//! The batches are built by the code that the journal uses, each of one record, and go round a file
//! of whole blocks that was pre-written. Whether a write is made durable is the host's business:
//! one that leaves the sync out measures what the sync costs.
//!
//! Invariants: no more than `in_flight` operations are out; each is timed from before its record is
//! copied to when the host says that it is done. Failure: the first failed or short write ends it;
//! nothing is tried again, and what is out is still taken back.

use std::time::{Duration, Instant};

use crate::batch::{OpenBatch, Seal};
use crate::disk::{DiskDone, DiskError, DiskOp, FileId, OpId};
use crate::identity::{Chain, LogSeed};
use crate::limits::{
    BATCH_HEADER_BYTES, BLOCK_BYTES, FRAGMENT_BYTES_MAX, RECORD_HEADER_BYTES, WRITES_IN_FLIGHT_MAX,
    block_ceil,
};
use crate::lsn::{Epoch, Incarnation, LogId, Lsn, QueueId, Sequence, ShardId, Term};
use crate::record::{Record, RecordKind};

/// Most writes of one load: their times are kept until the end.
pub const CALIBRATION_WRITES_MAX: usize = 1_000_000;

/// One line of the table that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CalibrationLoad {
    /// Payload of the one record in each batch, 1 to [`FRAGMENT_BYTES_MAX`].
    pub payload_bytes: usize,
    /// Writes kept in flight, 1 to [`WRITES_IN_FLIGHT_MAX`].
    pub in_flight: usize,
    /// Writes to time, 1 to [`CALIBRATION_WRITES_MAX`]; a tenth more come before, untimed.
    pub writes: usize,
}

/// What came of a load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CalibrationLine {
    /// What was asked for.
    pub load: CalibrationLoad,
    /// Bytes of one write: header, record and padding, whole blocks.
    pub write_bytes: usize,
    /// The time of each write in nanoseconds, ascending; never empty.
    pub times_ns: Vec<u64>,
    /// From the first timed write to the end of the last one.
    pub took: Duration,
}

impl CalibrationLine {
    /// The least time that `share` (0 to 1) of the writes didn't exceed, in nanoseconds.
    #[must_use]
    pub fn quantile_ns(&self, share: f64) -> u64 {
        let count = self.times_ns.len();
        // The cast keeps the floor; a share outside its bounds ends at one end or the other.
        let rank = (share * count as f64).ceil() as usize;
        self.times_ns[rank.clamp(1, count) - 1]
    }

    /// The longest write, in nanoseconds.
    #[must_use]
    pub fn max_ns(&self) -> u64 {
        *self.times_ns.last().expect("a line has writes")
    }

    /// Durable writes a second.
    #[must_use]
    pub fn writes_per_second(&self) -> f64 {
        self.times_ns.len() as f64 / self.took.as_secs_f64().max(1e-9)
    }

    /// Bytes a second, padding included.
    #[must_use]
    pub fn bytes_per_second(&self) -> f64 {
        self.writes_per_second() * self.write_bytes as f64
    }
}

/// How much a deeper load must give above a shallower one to be worth its longer tail.
const WORTHWHILE: f64 = 1.15;

/// How many writes in flight a table speaks for: the fewest beyond which no load of the same
/// payload gives another 15 % of writes a second. The table must not be empty.
///
/// # Panics
/// If there is no line.
#[must_use]
pub fn writes_in_flight(lines: &[CalibrationLine]) -> usize {
    let mut lines: Vec<_> = lines.iter().collect();
    lines.sort_by_key(|line| (line.load.payload_bytes, line.load.in_flight));
    let mut chosen = *lines.first().expect("a table has lines");
    for line in &lines {
        let same = line.load.payload_bytes == chosen.load.payload_bytes;
        if same && line.writes_per_second() > chosen.writes_per_second() * WORTHWHILE {
            chosen = line;
        }
    }
    chosen.load.in_flight
}

/// A calibration under way.
#[derive(Debug)]
pub struct Calibration {
    file: FileId,
    file_bytes: u64,
    seed: LogSeed,
    chain: Chain,
    next: Lsn,
    payload: Vec<u8>,
    loads: std::vec::IntoIter<CalibrationLoad>,
    now: Option<UnderWay>,
    lines: Vec<CalibrationLine>,
    out: Vec<(OpId, Instant, u32)>,
    next_id: u64,
    failed: Option<DiskError>,
    told: bool,
}

#[derive(Debug)]
struct UnderWay {
    load: CalibrationLoad,
    begun: usize,
    ended: usize,
    /// When the first timed write began.
    since: Option<Instant>,
    write_bytes: usize,
    times_ns: Vec<u64>,
}

impl UnderWay {
    fn warm_up(&self) -> usize {
        self.load.writes.div_ceil(10)
    }

    fn all(&self) -> usize {
        self.load.writes + self.warm_up()
    }
}

impl Calibration {
    /// Begins; the file must be pre-written and at least `file_bytes` long.
    ///
    /// # Panics
    /// If a load or the file's length is out of bounds: it holds at least
    /// [`WRITES_IN_FLIGHT_MAX`] of the longest writes, in whole blocks.
    #[must_use]
    pub fn new(file: FileId, file_bytes: u64, loads: Vec<CalibrationLoad>) -> Self {
        for load in &loads {
            assert!((1..=FRAGMENT_BYTES_MAX).contains(&load.payload_bytes), "{load:?}");
            assert!((1..=WRITES_IN_FLIGHT_MAX).contains(&load.in_flight), "{load:?}");
            assert!((1..=CALIBRATION_WRITES_MAX).contains(&load.writes), "{load:?}");
        }
        assert!(file_bytes.is_multiple_of(BLOCK_BYTES as u64), "a file of {file_bytes} bytes");
        let longest = batch_bytes(FRAGMENT_BYTES_MAX) * WRITES_IN_FLIGHT_MAX;
        assert!(file_bytes >= longest as u64, "a file of {file_bytes} bytes is too short");
        let seed = LogSeed::new(LogId(*b"calibration only"), ShardId(0));
        Self {
            file,
            file_bytes,
            seed,
            chain: seed.chain_start(),
            next: Lsn(0),
            payload: (0..FRAGMENT_BYTES_MAX).map(|at| (at % 251) as u8).collect(),
            loads: loads.into_iter(),
            now: None,
            lines: Vec::new(),
            out: Vec::new(),
            next_id: 0,
            failed: None,
            told: false,
        }
    }

    /// The next operation, while there is room in flight. `now` is read by the host just before.
    pub fn poll_disk(&mut self, now: Instant) -> Option<DiskOp> {
        if self.failed.is_some() {
            return None;
        }
        if self.now.is_none() {
            let load = self.loads.next()?;
            self.now = Some(UnderWay {
                load,
                begun: 0,
                ended: 0,
                since: None,
                write_bytes: batch_bytes(load.payload_bytes),
                times_ns: Vec::with_capacity(load.writes),
            });
        }
        let under_way = self.now.as_mut().expect("set above");
        if self.out.len() == under_way.load.in_flight || under_way.begun == under_way.all() {
            return None;
        }
        if under_way.begun == under_way.warm_up() {
            under_way.since = Some(now);
        }
        under_way.begun += 1;
        let payload_bytes = under_way.load.payload_bytes;
        Some(self.write(now, payload_bytes))
    }

    /// An operation is over.
    ///
    /// # Panics
    /// If it is none of ours.
    pub fn handle_disk(&mut self, now: Instant, done: DiskDone) {
        let at = self.out.iter().position(|(id, ..)| *id == done.id).expect("an operation of ours");
        let (_, begun, bytes) = self.out.swap_remove(at);
        match done.result {
            Ok(moved) if moved == bytes => {}
            Ok(moved) => self.failed = self.failed.or(Some(DiskError::Short { bytes: moved })),
            Err(error) => self.failed = self.failed.or(Some(error)),
        }
        let Some(under_way) = &mut self.now else { return };
        under_way.ended += 1;
        // Writes end in any order: that as many are left out as came first is close enough.
        if under_way.ended > under_way.warm_up() {
            under_way.times_ns.push(nanoseconds(now.saturating_duration_since(begun)));
        }
        if under_way.ended == under_way.all()
            && let Some(mut over) = self.now.take()
        {
            over.times_ns.sort_unstable();
            self.lines.push(CalibrationLine {
                load: over.load,
                write_bytes: over.write_bytes,
                took: now.saturating_duration_since(over.since.expect("it was begun")),
                times_ns: over.times_ns,
            });
        }
    }

    /// The table, once all is done, or why there is none; told once, when nothing is out any more.
    pub fn poll_outcome(&mut self) -> Option<Result<Vec<CalibrationLine>, DiskError>> {
        if self.told || !self.out.is_empty() {
            return None;
        }
        let over = self.now.is_none() && self.loads.as_slice().is_empty();
        let outcome = match self.failed {
            Some(error) => Err(error),
            None if over => Ok(std::mem::take(&mut self.lines)),
            None => return None,
        };
        self.told = true;
        Some(outcome)
    }

    /// A batch of one record, as the journal makes it.
    fn write(&mut self, now: Instant, payload_bytes: usize) -> DiskOp {
        let bytes = batch_bytes(payload_bytes);
        if self.next.0 + bytes as u64 > self.file_bytes {
            self.next = Lsn(0);
        }
        let offset = self.next.0;
        let payload = &self.payload[..payload_bytes];
        let mut batch = OpenBatch::new(self.next, bytes, false, now, now);
        let record = Record::new(RecordKind::Message, QueueId(1), Sequence(self.next_id), payload);
        batch.push(&self.seed, &record, record.encoded_len());
        let seal = Seal {
            term: Term { epoch: Epoch(1), incarnation: Incarnation(1) },
            durable: self.next,
            chain_before: self.chain,
            segment_bytes: self.file_bytes,
        };
        let (buf, end, chain) = batch.seal(&self.seed, &seal);
        (self.next, self.chain) = (end, chain);
        let id = OpId(self.next_id);
        self.next_id += 1;
        self.out.push((id, now, u32::try_from(buf.len()).expect("a batch is short")));
        DiskOp::Write { id, file: self.file, offset, buf }
    }
}

/// Bytes of a batch with one record of this payload.
fn batch_bytes(payload_bytes: usize) -> usize {
    block_ceil(BATCH_HEADER_BYTES + RECORD_HEADER_BYTES + payload_bytes)
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{BatchHeader, BatchRead};
    use crate::lsn::Slot;

    const FILE: FileId = FileId::Segment { shard: ShardId(0), slot: Slot(0) };
    const FILE_BYTES: u64 = 1 << 20;

    fn load(payload_bytes: usize, in_flight: usize, writes: usize) -> CalibrationLoad {
        CalibrationLoad { payload_bytes, in_flight, writes }
    }

    #[expect(clippy::disallowed_methods, reason = "a test needs some moment to begin at")]
    fn start() -> Instant {
        Instant::now()
    }

    /// A disk on which each write takes 100 µs, one after the other; the last in is the first out.
    fn run(loads: Vec<CalibrationLoad>) -> Vec<CalibrationLine> {
        let mut calibration = Calibration::new(FILE, FILE_BYTES, loads);
        let mut now = start();
        let mut most = 0;
        loop {
            let mut out = Vec::new();
            while let Some(op) = calibration.poll_disk(now) {
                out.push(op);
            }
            most = most.max(out.len());
            while let Some(DiskOp::Write { id, offset, buf, .. }) = out.pop() {
                assert!(offset + buf.len() as u64 <= FILE_BYTES);
                now += Duration::from_micros(100);
                let bytes = u32::try_from(buf.len()).expect("short");
                calibration.handle_disk(now, DiskDone { id, result: Ok(bytes), buf: Some(buf) });
            }
            if let Some(lines) = calibration.poll_outcome() {
                assert!(most <= WRITES_IN_FLIGHT_MAX);
                assert!(calibration.poll_outcome().is_none(), "told once");
                return lines.expect("nothing failed");
            }
        }
    }

    #[test]
    fn each_load_gives_a_line_with_as_many_times_as_were_asked_for() {
        let lines = run(vec![load(512, 1, 100), load(65_536, 8, 50)]);
        assert_eq!(lines.len(), 2);
        assert_eq!((lines[0].times_ns.len(), lines[0].write_bytes), (100, 4096));
        assert_eq!((lines[0].quantile_ns(0.5), lines[0].max_ns()), (100_000, 100_000));
        assert!((lines[0].writes_per_second() - 10_000.0).abs() < 1.0);
        assert_eq!((lines[1].times_ns.len(), lines[1].write_bytes), (50, 69_632));
        // Eight at a time on a disk that does one: the last waits for the seven before it.
        assert_eq!(lines[1].max_ns(), 800_000);
        assert!(lines[1].times_ns.is_sorted());
    }

    #[test]
    fn the_batches_are_the_journals_own() {
        let mut calibration = Calibration::new(FILE, FILE_BYTES, vec![load(100, 2, 2)]);
        let seed = LogSeed::new(LogId(*b"calibration only"), ShardId(0));
        for place in [0, 4096] {
            let Some(DiskOp::Write { offset, buf, .. }) = calibration.poll_disk(start()) else {
                panic!("two fit");
            };
            let BatchRead::Header(header) = BatchHeader::decode(&seed, buf.as_slice()) else {
                panic!("a header that checks");
            };
            assert_eq!((offset, header.first_lsn), (place, Lsn(place)));
            let body = header.body(&seed, buf.as_slice()).expect("a body that checks");
            let records: Vec<_> = header.records(&seed, body).collect();
            assert!(matches!(&records[..], [Ok((_, record))] if record.payload.len() == 100));
        }
        assert!(calibration.poll_disk(start()).is_none(), "two are out");
    }

    #[test]
    fn a_failure_ends_it_when_nothing_is_out_any_more() {
        for result in [Err(DiskError::NoSpace), Ok(512)] {
            let mut calibration = Calibration::new(FILE, FILE_BYTES, vec![load(100, 2, 9)]);
            let now = start();
            let ops = [calibration.poll_disk(now), calibration.poll_disk(now)];
            let [Some(first), Some(second)] = ops else { panic!("two fit") };
            calibration.handle_disk(now, DiskDone { id: first.id(), result, buf: None });
            assert!(calibration.poll_outcome().is_none(), "one is out");
            assert!(calibration.poll_disk(now).is_none());
            let well = DiskDone { id: second.id(), result: Ok(4096), buf: None };
            calibration.handle_disk(now, well);
            let expected = result.err().unwrap_or(DiskError::Short { bytes: 512 });
            assert_eq!(calibration.poll_outcome(), Some(Err(expected)));
        }
    }

    #[test]
    fn more_writes_in_flight_are_taken_only_where_they_give_more() {
        let line = |in_flight, took_ms| CalibrationLine {
            load: load(512, in_flight, 1),
            write_bytes: 4096,
            times_ns: vec![1; 1000],
            took: Duration::from_millis(took_ms),
        };
        assert_eq!(writes_in_flight(&[line(1, 100), line(4, 99), line(8, 98)]), 1);
        assert_eq!(writes_in_flight(&[line(8, 24), line(1, 100), line(2, 50), line(4, 25)]), 4);
        assert_eq!(writes_in_flight(&[line(1, 100), line(2, 90), line(4, 80)]), 4);
    }
}
