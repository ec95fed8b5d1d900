//! The disk under the broker's own journal code, beside the bare device.
//!
//! ```text
//!   for each size and each number of writes in flight, one after the other:
//!     journal   journal::Calibration: record, checksums, batch ─▶ ring ─▶ RWF_DSYNC
//!     device    the same bytes, no journal                     ─▶ ring ─▶ RWF_DSYNC
//!     no sync   the journal's batches, plain direct writes from as many threads
//!   or, with --read:
//!     reads     so many bytes each, one behind the other                    ─▶ ring ─▶ direct read
//! ```
//! `journal` beside `device` says what the journal adds; beside `no sync`, what durability costs.
//! The broker never writes without data sync: that line is there to be compared with. The reads are
//! what a backlog that is on the disk alone could be drained at.
//!
//! Failure: what the file system said, with the path. The files are removed in any case.

use std::error::Error;
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use hdrhistogram::Histogram;
use journal::{
    BlockBuf, Calibration, CalibrationLine, CalibrationLoad, DiskDone, DiskError, DiskOp, FileId,
    OpId, ShardId, Slot,
};
use net::{Completion, DiskRead, DiskWrite};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::block::{Percentiles, SCHEMA, empty_histogram};
use crate::floor::{BLOCK_BYTES, FILE_BYTES, Store, new_ring};
use crate::machine::{Machine, Place, is_debug};

/// What `laelaps perf journal` is told.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Measure the disk under this directory
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub dir: PathBuf,
    /// Payload of the one record in each write, or bytes of each read
    #[arg(long, value_name = "BYTES", value_delimiter = ',',
          default_values_t = [512, 4096, 16_384, 65_536],
          value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub sizes: Vec<u32>,
    /// Writes, or reads, in flight
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 2, 4, 8],
          value_parser = clap::value_parser!(u8).range(1..=8))]
    pub in_flight: Vec<u8>,
    /// Sequential direct reads instead, of whole blocks
    #[arg(long, conflicts_with = "short")]
    pub read: bool,
    /// Writes, or reads, for each line
    #[arg(long, value_name = "N", default_value_t = 1000,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub writes: u32,
    /// Only the journal's durable writes of 512 bytes, one and four in flight
    #[arg(long)]
    pub short: bool,
    /// Write the result to this file too, as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Who wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Writer {
    /// The journal's batches, with data sync.
    Journal,
    /// The same bytes without a journal, with data sync.
    Device,
    /// The journal's batches, without data sync.
    NoSync,
    /// Nobody: they were read.
    Reads,
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Who wrote.
    pub writer: Writer,
    /// Payload of the record in each write, in bytes.
    pub payload_bytes: usize,
    /// Bytes of one write.
    pub write_bytes: usize,
    /// Writes in flight.
    pub in_flight: usize,
    /// The time of a write, in nanoseconds.
    pub time_ns: Percentiles,
    /// Writes a second.
    pub writes_per_second: f64,
    /// Bytes a second, padding included.
    pub bytes_per_second: f64,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JournalResult {
    /// [`SCHEMA`].
    pub schema: String,
    /// `journal`.
    pub kind: String,
    /// The machine.
    pub machine: Machine,
    /// Where it was written to.
    pub place: Place,
    /// The table.
    pub lines: Vec<Line>,
    /// How many writes in flight the table speaks for; none where it is of reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writes_in_flight: Option<usize>,
    /// What a reader must know.
    pub notes: Vec<String>,
}

type Failure = Box<dyn Error + Send + Sync>;

/// The segment that the calibration's operations name; there is only one file.
const FILE: FileId = FileId::Segment { shard: ShardId(0), slot: Slot(0) };

/// `laelaps perf journal`: the result, for the caller to print.
///
/// # Errors
/// What the file system or the ring said.
pub fn command(options: &Options) -> Result<JournalResult, Failure> {
    let result = measure(options)?;
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&result)?;
        std::fs::write(path, text + "\n")
            .map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(result)
}

/// Measures a directory's disk.
///
/// # Errors
/// What the file system or the ring said.
pub fn measure(options: &Options) -> Result<JournalResult, Failure> {
    let mut place =
        Place::of(&options.dir).map_err(|error| format!("{}: {error}", options.dir.display()))?;
    let store = Store::new(&options.dir, 1)?;
    place.direct = Some(store.direct());
    let (sizes, depths) = match (options.short, options.read) {
        (true, _) => (vec![512], vec![1, 4]),
        (false, true) => (Vec::new(), Vec::new()),
        (false, false) => (options.sizes.clone(), options.in_flight.clone()),
    };
    let mut lines = Vec::new();
    let mut durable = Vec::new();
    if options.read {
        lines = reads(&store, options)?;
    }
    for &size in &sizes {
        for &depth in &depths {
            let load = CalibrationLoad {
                payload_bytes: size as usize,
                in_flight: usize::from(depth),
                writes: options.writes as usize,
            };
            let line = through_ring(&store, load)?;
            lines.push(told(Writer::Journal, &line));
            durable.push(line.clone());
            if !options.short {
                let (bytes, count) = (line.write_bytes, load.writes);
                let stream = Stream { reads: false, bytes, depth: load.in_flight, count };
                lines.push(Line { payload_bytes: load.payload_bytes, ..bare(&store, stream)? });
                lines.push(unsynced(&store, load)?);
            }
        }
    }
    let mut notes: Vec<String> = place.note().map(str::to_owned).into_iter().collect();
    if options.read {
        notes.push(
            "what is read was just written: a device or host with a cache may have it there"
                .to_owned(),
        );
    }
    if is_debug() {
        notes.push("a debug build: its figures are nobody's".to_owned());
    }
    if place.volatile {
        notes.push(format!("{} forgets at power-off", place.file_system));
    }
    if place.direct == Some(false) {
        notes.push("direct I/O is refused here: the writes went through the page cache".to_owned());
    }
    Ok(JournalResult {
        schema: SCHEMA.to_owned(),
        kind: "journal".to_owned(),
        machine: Machine::here(),
        place,
        lines,
        writes_in_flight: (!durable.is_empty()).then(|| journal::writes_in_flight(&durable)),
        notes,
    })
}

/// Bytes a second of sequential direct reads of 64 KiB in this directory: the best of one to eight
/// in flight.
///
/// # Errors
/// What the file system or the ring said.
pub fn reads_at_best(directory: &Path) -> Result<f64, Failure> {
    let store = Store::new(directory, 1)?;
    let mut best: f64 = 0.0;
    for depth in [1, 2, 4, 8] {
        let stream = Stream { reads: true, bytes: 65_536, depth, count: 4096 };
        best = best.max(bare(&store, stream)?.bytes_per_second);
    }
    Ok(best)
}

impl JournalResult {
    /// The table as text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!(
            "{} on {}, {}\n{:<8} {:>8} {:>8} {:>9} {:>8} {:>8} {:>8} {:>8} {:>9} {:>9} {:>8}\n",
            if self.place.direct == Some(true) { "direct I/O" } else { "buffered I/O" },
            self.place.file_system,
            self.machine.cpu,
            "writer",
            "payload",
            "write",
            "in flight",
            "p50 us",
            "p90 us",
            "p99 us",
            "p999 us",
            "max us",
            "writes/s",
            "MB/s",
        );
        for line in &self.lines {
            let us = |ns: u64| ns as f64 / 1000.0;
            let name = match line.writer {
                Writer::Journal => "journal",
                Writer::Device => "device",
                Writer::NoSync => "no sync",
                Writer::Reads => "reads",
            };
            let time = line.time_ns;
            writeln!(
                text,
                "{name:<8} {:>8} {:>8} {:>9} {:>8.0} {:>8.0} {:>8.0} {:>8.0} {:>9.0} {:>9.0} \
                 {:>8.1}",
                line.payload_bytes,
                line.write_bytes,
                line.in_flight,
                us(time.p50),
                us(time.p90),
                us(time.p99),
                us(time.p999),
                us(time.max),
                line.writes_per_second,
                line.bytes_per_second / 1e6,
            )
            .expect("memory takes text");
        }
        if let Some(speaks) = self.writes_in_flight {
            writeln!(
                text,
                "more than {speaks} in flight gives less than 15 % more writes a second"
            )
            .expect("memory takes text");
        }
        for note in &self.notes {
            writeln!(text, "note: {note}").expect("memory takes text");
        }
        text
    }
}

fn told(writer: Writer, line: &CalibrationLine) -> Line {
    let at = |share| line.quantile_ns(share);
    Line {
        writer,
        payload_bytes: line.load.payload_bytes,
        write_bytes: line.write_bytes,
        in_flight: line.load.in_flight,
        time_ns: Percentiles {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: line.max_ns(),
        },
        writes_per_second: line.writes_per_second(),
        bytes_per_second: line.bytes_per_second(),
    }
}

/// The journal's writes, as the broker does them: through the ring, with data sync.
fn through_ring(store: &Store, load: CalibrationLoad) -> Result<CalibrationLine, Failure> {
    let mut ring = new_ring()?;
    let Ok(file) = ring.add_file(store.open()?) else { return Err("no room for a file".into()) };
    let mut calibration = Calibration::new(FILE, FILE_BYTES, vec![load]);
    let mut lengths = std::collections::BTreeMap::new();
    let mut completions = Vec::new();
    loop {
        while let Some(op) = calibration.poll_disk(clock()) {
            let DiskOp::Write { id, offset, buf, .. } = op else {
                return Err("a calibration only writes".into());
            };
            let (buf, len) = buf.into_static();
            lengths.insert(id.0, len);
            ring.write_durable(DiskWrite { file, offset, buf, len, tag: id.0 });
        }
        if let Some(outcome) = calibration.poll_outcome() {
            return one(outcome, store);
        }
        ring.wait(None, &mut completions)?;
        for completion in completions.drain(..) {
            let Completion::Disk { tag, buf, result } = completion else { continue };
            let len = lengths.remove(&tag).unwrap_or(0);
            let buf = buf.map(|memory| BlockBuf::from_static(memory, len));
            let result = result.map_err(disk_error);
            calibration.handle_disk(clock(), DiskDone { id: OpId(tag), result, buf });
        }
    }
}

fn reads(store: &Store, options: &Options) -> Result<Vec<Line>, Failure> {
    let blocks = |size: &u32| (*size as usize).next_multiple_of(BLOCK_BYTES);
    let mut sizes: Vec<usize> = options.sizes.iter().map(blocks).collect();
    sizes.dedup();
    let depths = || options.in_flight.iter().map(|depth| usize::from(*depth));
    let lines = sizes.iter().flat_map(|&bytes| depths().map(move |depth| (bytes, depth)));
    let count = options.writes as usize;
    lines.map(|(bytes, depth)| bare(store, Stream { reads: true, bytes, depth, count })).collect()
}

/// One operation behind the other, through the whole file and again.
#[derive(Clone, Copy, Debug)]
struct Stream {
    reads: bool,
    /// Of each operation.
    bytes: usize,
    depth: usize,
    count: usize,
}

/// The disk without a journal.
fn bare(store: &Store, stream: Stream) -> Result<Line, Failure> {
    let Stream { reads, bytes: len, depth, count } = stream;
    let mut ring = new_ring()?;
    let (file, mut idle) = store.enter(&mut ring, depth, len)?;
    let warm_up = count.div_ceil(10);
    let all = count + warm_up;
    let mut begun = vec![clock(); depth];
    let mut slots: Vec<usize> = (0..depth).collect();
    let (mut next, mut ended, mut offset) = (0, 0, 0);
    let mut since = clock();
    let mut times = empty_histogram();
    let mut completions = Vec::new();
    while ended < all {
        while next < all && !slots.is_empty() {
            let (Some(slot), Some(buf)) = (slots.pop(), idle.pop()) else { break };
            begun[slot] = clock();
            let tag = slot as u64;
            if reads {
                ring.read(DiskRead { file, offset, buf, len, tag });
            } else {
                ring.write_durable(DiskWrite { file, offset, buf, len, tag });
            }
            next += 1;
            offset += len as u64;
            if offset + len as u64 > FILE_BYTES {
                offset = 0;
            }
        }
        ring.wait(None, &mut completions)?;
        let now = clock();
        for completion in completions.drain(..) {
            let Completion::Disk { tag, buf, result } = completion else { continue };
            if result? as usize != len {
                return Err("a short read or write".into());
            }
            let slot = usize::try_from(tag)?;
            ended += 1;
            if ended == warm_up {
                since = now;
            } else if ended > warm_up {
                record(&mut times, now.saturating_duration_since(begun[slot]));
            }
            slots.push(slot);
            idle.extend(buf);
        }
    }
    let took = clock().saturating_duration_since(since).as_secs_f64().max(1e-9);
    let writes_per_second = times.len() as f64 / took;
    Ok(Line {
        writer: if reads { Writer::Reads } else { Writer::Device },
        payload_bytes: len,
        write_bytes: len,
        in_flight: depth,
        time_ns: Percentiles::of(&times),
        writes_per_second,
        bytes_per_second: writes_per_second * len as f64,
    })
}

/// The journal's batches without data sync, from as many threads as there are writes in flight.
fn unsynced(store: &Store, load: CalibrationLoad) -> Result<Line, Failure> {
    let depth = load.in_flight;
    let part = FILE_BYTES / depth as u64 / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
    let each = CalibrationLoad { in_flight: 1, writes: load.writes.div_ceil(depth), ..load };
    let start = clock();
    let lines = std::thread::scope(|scope| -> Result<Vec<CalibrationLine>, Failure> {
        let threads = (0..depth).map(|thread| {
            let base = thread as u64 * part;
            std::thread::Builder::new()
                .name(format!("unsynced-{thread}"))
                .spawn_scoped(scope, move || inline(store, each, base, part))
        });
        let threads = threads.collect::<Result<Vec<_>, _>>()?;
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err("a thread panicked".into())))
            .collect()
    })?;
    let took = clock().saturating_duration_since(start).as_secs_f64().max(1e-9);
    let mut times = empty_histogram();
    for &ns in lines.iter().flat_map(|line| &line.times_ns) {
        times.saturating_record(ns);
    }
    let first = lines.first().ok_or("no line")?;
    // The warm-up of each thread is in the time.
    let writes = lines.iter().map(|line| line.times_ns.len() + line.load.writes.div_ceil(10));
    let writes_per_second = writes.sum::<usize>() as f64 / took;
    Ok(Line {
        in_flight: depth,
        time_ns: Percentiles::of(&times),
        writes_per_second,
        bytes_per_second: writes_per_second * first.write_bytes as f64,
        ..told(Writer::NoSync, first)
    })
}

/// One thread's share: each write ends before the next begins.
fn inline(
    store: &Store,
    load: CalibrationLoad,
    base: u64,
    bytes: u64,
) -> Result<CalibrationLine, Failure> {
    let file = plain(store.path(), store.direct())?;
    let mut calibration = Calibration::new(FILE, bytes, vec![load]);
    loop {
        if let Some(outcome) = calibration.poll_outcome() {
            return one(outcome, store);
        }
        let Some(DiskOp::Write { id, offset, buf, .. }) = calibration.poll_disk(clock()) else {
            return Err("a calibration that goes no further".into());
        };
        let len = u32::try_from(buf.len())?;
        let written = file.write_all_at(buf.as_slice(), base + offset);
        let result = written.map(|()| len).map_err(disk_error);
        calibration.handle_disk(clock(), DiskDone { id, result, buf: Some(buf) });
    }
}

fn plain(path: &Path, direct: bool) -> io::Result<File> {
    let mut options = File::options();
    options.write(true);
    if direct {
        options.custom_flags(OFlags::DIRECT.bits().cast_signed());
    }
    options.open(path)
}

fn one(
    outcome: Result<Vec<CalibrationLine>, DiskError>,
    store: &Store,
) -> Result<CalibrationLine, Failure> {
    let lines = outcome.map_err(|error| format!("{}: {error}", store.path().display()))?;
    lines.into_iter().next().ok_or_else(|| "a calibration without a line".into())
}

fn disk_error(error: io::Error) -> DiskError {
    let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
    if full.contains(&error.kind()) {
        return DiskError::NoSpace;
    }
    DiskError::Io(error.raw_os_error().unwrap_or(0))
}

fn record(times: &mut Histogram<u64>, time: Duration) {
    times.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
}

#[expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]
fn clock() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(dir: &Path) -> Options {
        Options {
            dir: dir.to_owned(),
            sizes: vec![512, 65_536],
            in_flight: vec![1, 3],
            writes: 20,
            short: false,
            read: false,
            json: Some(dir.join("journal.json")),
        }
    }

    #[test]
    fn each_size_and_depth_has_its_three_lines() {
        let root = tempfile::tempdir().expect("a directory");
        let result = command(&options(root.path())).expect("measured");
        assert_eq!(result.lines.len(), 2 * 2 * 3);
        for line in &result.lines {
            assert!(line.time_ns.p50 > 1000 && line.writes_per_second > 1.0, "{line:?}");
            assert!(line.time_ns.p50 <= line.time_ns.p99 && line.time_ns.p99 <= line.time_ns.max);
            assert_eq!(line.write_bytes, if line.payload_bytes == 512 { 4096 } else { 69_632 });
        }
        assert!([Some(1), Some(3)].contains(&result.writes_in_flight));
        assert_eq!(result.text().lines().count(), 2 + 12 + 1 + result.notes.len());
        let json = std::fs::read_to_string(root.path().join("journal.json")).expect("written");
        let back: JournalResult = serde_json::from_str(&json).expect("what we wrote");
        assert_eq!(back.lines.len(), 12);
        let left = std::fs::read_dir(root.path()).expect("there").count();
        assert_eq!(left, 1, "only the JSON is left");
    }

    #[test]
    fn the_short_form_is_two_lines() {
        let root = tempfile::tempdir().expect("a directory");
        let options = Options { short: true, json: None, ..options(root.path()) };
        let result = measure(&options).expect("measured");
        let shape: Vec<_> = result.lines.iter().map(|line| (line.writer, line.in_flight)).collect();
        assert_eq!(shape, [(Writer::Journal, 1), (Writer::Journal, 4)]);
    }

    #[test]
    fn reads_are_of_whole_blocks_and_each_has_one_line() {
        let root = tempfile::tempdir().expect("a directory");
        let sizes = vec![512, 4096, 65_536];
        let options = Options { read: true, sizes, json: None, ..options(root.path()) };
        let result = measure(&options).expect("measured");
        let shape: Vec<_> = result
            .lines
            .iter()
            .map(|line| (line.writer, line.write_bytes, line.in_flight))
            .collect();
        let line = |bytes, depth| (Writer::Reads, bytes, depth);
        assert_eq!(shape, [line(4096, 1), line(4096, 3), line(65_536, 1), line(65_536, 3)]);
        assert!(result.lines.iter().all(|line| line.bytes_per_second > 4096.0));
        assert!(!result.text().contains("writes a second"), "{}", result.text());
    }

    #[test]
    fn a_missing_directory_is_named() {
        let missing = options(Path::new("/no/such/place"));
        assert!(measure(&missing).expect_err("not there").to_string().contains("/no/such/place"));
    }
}
