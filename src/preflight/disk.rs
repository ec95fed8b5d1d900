//! The place for the data: its directory, its file system, its disk, and how long a durable write
//! takes there.
//!
//! ```text
//!   the directory, or the nearest above it that is there
//!     ├─ superblock     how many shards, whether somebody uses it
//!     ├─ file system    by its type; its free space against what a format takes
//!     ├─ device         /sys/dev/block/MAJOR:MINOR, or the disk that the partition is on
//!     └─ a file of ours, pre-written, removed at the end
//!          the journal's own batches, a block each, 1 and 4 in flight, through the engine that
//!          would be taken
//! ```
//! Failure: what refuses the broker a start is a bad verdict with the start's own cause; a write
//! that does not end in [`WRITE_WITHIN`] counts as failed.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use journal::limits::{BLOCK_BYTES, FORMAT_SEGMENTS, SEGMENTS_MIN};
use journal::{
    BlockBuf, Calibration, CalibrationLine, CalibrationLoad, DiskDone, DiskOp, FileId, OpId,
};
use net::buf::Pages;
use net::file::{DataFile, FileOpen, Volume};
use net::{Completion, DiskWrite, Engine, MemoryUse, Ring, RingConfig};
use serde_json::{Value, json};

use super::{Check, bad, note, ok, rounded, warn};
use crate::config::{COUNT_MAX, Config};
use crate::driver::{self, Directory};
use crate::fatal::{Cause, Failure};

/// Payload of the one record of each batch: what a small message is, and one block on the disk.
const PAYLOAD_BYTES: usize = 256;

/// Writes that show how many a row can have.
const TRIAL_WRITES: usize = 20;

/// Writes of a row, at most.
const WRITES_MAX: usize = 2000;

/// A row takes about so long.
const ROW_WITHIN: Duration = Duration::from_millis(1500);

/// A write that takes longer is taken for hung.
const WRITE_WITHIN: Duration = Duration::from_secs(10);

/// Writes in flight of each row: what one careful producer meets, and what a shard uses.
const ROWS: [usize; 2] = [1, 4];

/// Bytes of the file that is measured on.
const FILE_BYTES: u64 = 4 << 20;

/// A durable write with this p99 is slow: every answer at `sync` waits for one.
const SLOW_P99_US: u64 = 20_000;

/// Where the data would be, as far as it can be seen without writing.
pub(super) struct Place {
    /// The directory, or the nearest above it that is there.
    pub(super) nearest: PathBuf,
    /// How many shards a start will find or make.
    pub(super) shards: u16,
    pub(super) checks: Vec<Check>,
}

impl Place {
    /// Look at what is in `data`, or would be made there for so many threads.
    pub(super) fn look(data: &Path, config: &Config, threads: usize) -> Self {
        let nearest = driver::nearest_there(data);
        let threads = u16::try_from(threads).unwrap_or(COUNT_MAX).min(COUNT_MAX);
        let mut checks = Vec::new();
        let shards = match Directory::inspect(data) {
            Ok((_, node, _)) => {
                let shards = node.geometry.shards;
                checks.push(formatted(shards, threads));
                Some(shards)
            }
            Err(failure) if failure.cause == Cause::LockHeld => {
                let change = "Stop the broker that uses it for figures that it does not disturb.";
                checks.push(note("directory", failure.message, change));
                None
            }
            // Not there yet, or never formatted.
            Err(failure) if failure.cause == Cause::Command => None,
            Err(failure) => {
                checks.push(bad("directory", failure));
                None
            }
        };
        match driver::volume(&nearest) {
            Ok(volume) => {
                checks.push(file_system(&nearest, &volume));
                if shards.is_none() {
                    checks.push(space(&volume, config, threads));
                }
            }
            Err(failure) => checks.push(bad("file system", failure)),
        }
        checks.extend(device_cache(&nearest));
        Self { nearest, shards: shards.unwrap_or(threads), checks }
    }
}

/// Shards are fixed when the directory is made; threads are not.
fn formatted(shards: u16, threads: u16) -> Check {
    let found = format!("{shards} shards, on {threads} threads");
    if shards < threads {
        let change = "CPUs beyond the number of shards stay idle: only a new directory, made \
                      here or with --shards, has more.";
        note("directory", found, change)
    } else {
        ok("directory", found)
    }
}

fn file_system(nearest: &Path, volume: &Volume) -> Check {
    const NAME: &str = "file system";
    let kind = volume.kind.as_str();
    let found = format!("{} on {kind}, {} free", nearest.display(), rounded(volume.free_bytes));
    if volume.volatile {
        let message = format!("{found}: it forgets at power-off, `sync` is refused");
        return bad(NAME, Failure::new(Cause::Volatile, message));
    }
    if volume.remote {
        let change = "Its syncs and its lock are another machine's word: use a local disk, or know \
                      what that server does at its own power-off.";
        return warn(NAME, found, change);
    }
    match kind {
        "overlay" => warn(
            NAME,
            found,
            "This is a container's own layer, and goes with the container: mount a volume.",
        ),
        "fuse" => warn(
            NAME,
            found,
            "A FUSE file system can drop the sync of a write without a word: use a disk, or know \
             that it does not answer an open with FOPEN_DIRECT_IO.",
        ),
        _ => ok(NAME, found),
    }
}

/// Whether what is free is enough to format, and to work.
fn space(volume: &Volume, config: &Config, shards: u16) -> Check {
    const NAME: &str = "space";
    let segments = |count: u32| u64::from(count) * u64::from(shards) * config.segment_size.0;
    let (format, work) = (segments(FORMAT_SEGMENTS), segments(SEGMENTS_MIN));
    let bound = config.disk_max.of(volume.free_bytes);
    let found = format!("disk-max {} is {}", config.disk_max, rounded(bound));
    if volume.free_bytes < format {
        let what = format!("{found}; a format takes {} for {shards} shards", rounded(format));
        return bad(NAME, Failure::new(Cause::DiskFull, what));
    }
    if bound < work {
        let found =
            format!("{found}, less than the {} that {shards} shards work with", rounded(work));
        return warn(NAME, found, "Give it more space, or a smaller --segment-size at the format.");
    }
    ok(NAME, found)
}

// ---- The device ---------------------------------------------------------------------------------

/// What the block layer says of the disk's own cache; nothing where there is no such disk.
fn device_cache(nearest: &Path) -> Option<Check> {
    let here = Path::new("/sys/dev/block").join(device_name(fs::metadata(nearest).ok()?.dev()));
    // A partition has no queue of its own.
    let said = |name: &str| {
        let of = |path: &str| fs::read_to_string(here.join(path).join("queue").join(name)).ok();
        of(".").or_else(|| of(".."))
    };
    Some(cache(said("write_cache")?.trim(), said("fua").as_deref().map(str::trim)))
}

/// `major:minor` of a device's number, whose bits lie as history put them.
fn device_name(device: u64) -> String {
    let major = (device >> 32 & 0xffff_f000) | (device >> 8 & 0xfff);
    let minor = (device >> 12 & 0xffff_ff00) | (device & 0xff);
    format!("{major}:{minor}")
}

fn cache(write_cache: &str, fua: Option<&str>) -> Check {
    const NAME: &str = "device cache";
    match write_cache {
        "write through" => ok(NAME, "none that forgets, by the device's own word".to_owned()),
        _ => {
            let how = match fua {
                Some("1") => "forced unit access",
                Some(_) | None => "a flush of the whole cache",
            };
            note(
                NAME,
                format!("{write_cache}; a durable write is made so by {how}"),
                "Nothing, if the disk is honest. Below a virtual disk nobody in here can see \
                 whether the host's cache survives a power cut: ask who runs it.",
            )
        }
    }
}

// ---- The measurement ----------------------------------------------------------------------------

/// Durable writes of a block, so many in flight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    in_flight: usize,
    writes: usize,
    p50_us: u64,
    p99_us: u64,
    p999_us: u64,
    max_us: u64,
    per_second: u64,
}

impl From<&CalibrationLine> for Row {
    fn from(line: &CalibrationLine) -> Self {
        let us = |share| line.quantile_ns(share) / 1000;
        Self {
            in_flight: line.load.in_flight,
            writes: line.times_ns.len(),
            p50_us: us(0.5),
            p99_us: us(0.99),
            p999_us: us(0.999),
            max_us: line.max_ns() / 1000,
            per_second: line.writes_per_second() as u64,
        }
    }
}

impl Row {
    pub(super) fn as_json(&self) -> Value {
        json!({
            "block_bytes": BLOCK_BYTES,
            "in_flight": self.in_flight,
            "writes": self.writes,
            "p50_us": self.p50_us,
            "p99_us": self.p99_us,
            "p999_us": self.p999_us,
            "max_us": self.max_us,
            "writes_per_second": self.per_second,
        })
    }
}

/// The rows for people; nothing where nothing was measured.
pub(super) fn table(rows: &[Row]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut text = format!(
        "\n{:<26}{:>9}{:>9}{:>10}{:>9}{:>9}{:>10}\n",
        "durable writes of 4 KiB", "p50 us", "p99 us", "p99.9 us", "max us", "writes", "a second"
    );
    for row in rows {
        text.push_str(&format!(
            "{:<26}{:>9}{:>9}{:>10}{:>9}{:>9}{:>10}\n",
            format!("  {} in flight", row.in_flight),
            row.p50_us,
            row.p99_us,
            row.p999_us,
            row.max_us,
            row.writes,
            row.per_second
        ));
    }
    text
}

/// Removed when it goes.
struct Probe(PathBuf);

impl Drop for Probe {
    fn drop(&mut self) {
        // It was made by us; if it cannot be removed its name says what it is.
        drop(fs::remove_file(&self.0));
    }
}

/// What can be told only by writing: into a file of our own in `directory`.
pub(super) fn measure(directory: &Path, engine: Option<Engine>) -> (Vec<Check>, Vec<Row>) {
    let path = directory.join(format!("laelaps-preflight-{}", std::process::id()));
    let probe = Probe(path);
    let how = FileOpen { create: true, write: true, direct: true };
    let opened = net::file::open(&probe.0, how)
        .and_then(|file| file.prewrite(FILE_BYTES).map(|()| file))
        .map_err(|error| driver::path_failure(&probe.0, "cannot be written", &error));
    let file = match opened {
        Ok(file) => file,
        Err(failure) => return (vec![bad("directory", failure)], Vec::new()),
    };
    let mut checks = vec![direct(&file)];
    let Some(engine) = engine else { return (checks, Vec::new()) };
    let mut rows = Vec::new();
    match durable_writes(file, engine, &mut rows) {
        Ok(()) => checks.extend(rows.first().map(latency)),
        Err(failure) => checks.push(bad("durable write", failure)),
    }
    (checks, rows)
}

fn direct(file: &DataFile) -> Check {
    const NAME: &str = "direct I/O";
    match (file.direct(), file.alignment()) {
        (false, _) => warn(
            NAME,
            "refused by the file system: buffered, with data sync".to_owned(),
            "It is as durable, and slower: use ext4 or xfs on a disk.",
        ),
        (true, Some(bytes)) if bytes as usize > BLOCK_BYTES => {
            let message = format!("the device needs blocks of {bytes} bytes; ours have 4096");
            bad(NAME, Failure::new(Cause::JournalUnreadable, message))
        }
        (true, Some(bytes)) => ok(NAME, format!("granted, blocks of {bytes} bytes")),
        (true, None) => ok(NAME, "granted".to_owned()),
    }
}

fn latency(row: &Row) -> Check {
    let found = format!("4 KiB, one in flight: p50 {} us, p99 {} us", row.p50_us, row.p99_us);
    if row.p99_us > SLOW_P99_US {
        let change = "Every answer at `sync` waits for one of these: use a faster disk, or see \
                      what else uses this one. `laelaps perf journal` says more.";
        warn("durable write", found, change)
    } else {
        ok("durable write", found)
    }
}

/// Fill the rows, one after the other, all on one ring.
fn durable_writes(file: DataFile, engine: Engine, rows: &mut Vec<Row>) -> Result<(), Failure> {
    let refused = |error: &dyn std::fmt::Display| {
        Failure::new(Cause::EngineRefused, format!("the measurement cannot begin: {error}"))
    };
    let config = RingConfig { engine, ..RingConfig::default() };
    let mut ring = Ring::new(config).map_err(|error| refused(&error))?;
    let file = ring.add_file(file).map_err(|_| refused(&"the ring takes no file"))?;
    for in_flight in ROWS {
        let load = |writes| CalibrationLoad { payload_bytes: PAYLOAD_BYTES, in_flight, writes };
        let trial = calibrate(&mut ring, file, load(TRIAL_WRITES))?;
        let writes = trial.writes_per_second() * ROW_WITHIN.as_secs_f64();
        let line = calibrate(&mut ring, file, load((writes as usize).clamp(1, WRITES_MAX)))?;
        rows.push(Row::from(&line));
    }
    Ok(())
}

/// Run one load of the journal's calibration on the ring.
fn calibrate(
    ring: &mut Ring,
    file: net::FileId,
    load: CalibrationLoad,
) -> Result<CalibrationLine, Failure> {
    let failed = |what: String| Failure::new(Cause::JournalPoisoned, what);
    let mut calibration = Calibration::new(FileId::NodeSuperblock, FILE_BYTES, vec![load]);
    let mut completions = Vec::new();
    let mut moved = driver::clock();
    loop {
        while let Some(op) = calibration.poll_disk(driver::clock()) {
            let DiskOp::Write { id, offset, buf, .. } = op else {
                unreachable!("a calibration only writes");
            };
            let (buf, len) = buf.into_static();
            ring.write_durable(DiskWrite { file, offset, buf, len, tag: id.0 });
        }
        if let Some(outcome) = calibration.poll_outcome() {
            let lines = outcome.map_err(|error| failed(format!("a durable write: {error}")))?;
            return Ok(lines.into_iter().next().expect("a line for the load"));
        }
        ring.wait(Some(WRITE_WITHIN), &mut completions)
            .map_err(|error| failed(format!("the measurement broke off: {error}")))?;
        // A wait may also end for nothing.
        if completions.is_empty() && driver::clock() - moved > WRITE_WITHIN {
            let bound = WRITE_WITHIN.as_secs();
            return Err(failed(format!("a durable write did not end within {bound} s")));
        }
        for completion in completions.drain(..) {
            if let Completion::Disk { tag, buf, result } = completion {
                moved = driver::clock();
                // All of them are blocks of ours, whole when they come back.
                let buf = buf.map(|memory| BlockBuf::from_static(memory, BLOCK_BYTES));
                let result =
                    result.map_err(|error| failed(format!("a durable write failed: {error}")))?;
                calibration.handle_disk(
                    driver::clock(),
                    DiskDone { id: OpId(tag), result: Ok(result), buf },
                );
            }
        }
    }
}

/// Whether so many bytes can be pinned beside a ring.
pub(super) fn pins(bytes: u64) -> Result<(), String> {
    let config = RingConfig { engine: Engine::Uring, ..RingConfig::default() };
    let mut ring = Ring::new(config).map_err(|error| error.to_string())?;
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX).next_multiple_of(BLOCK_BYTES);
    let pages = Pages::new(bytes).map_err(|error| error.to_string())?;
    let (_, region) = pages.leak();
    match ring.register_memory(&[region]) {
        MemoryUse::Unregistered(why) => Err(why),
        MemoryUse::Registered | MemoryUse::Unneeded => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use crate::config::Bytes;

    fn volume(kind: &str, free: u64) -> Volume {
        let kind = kind.to_owned();
        Volume { kind, volatile: false, remote: false, free_bytes: free }
    }

    #[test]
    fn a_directory_to_come_is_looked_at_where_it_would_be_made() {
        let there = tempfile::tempdir().expect("a directory");
        let place = Place::look(&there.path().join("a/b"), &Config::default(), 3);
        assert_eq!((place.nearest.as_path(), place.shards), (there.path(), 3));
    }

    #[test]
    fn a_row_is_in_microseconds() {
        let load = CalibrationLoad { payload_bytes: 256, in_flight: 4, writes: 1000 };
        let row = Row::from(&CalibrationLine {
            load,
            write_bytes: BLOCK_BYTES,
            times_ns: (1..=1000).map(|us| us * 1000).collect(),
            took: Duration::from_secs(2),
        });
        assert_eq!((row.p50_us, row.p99_us, row.p999_us, row.max_us), (500, 990, 999, 1000));
        assert_eq!((row.writes, row.per_second), (1000, 500));
        assert!(table(&[row]).contains("  4 in flight"));
    }

    #[test]
    fn file_systems_that_keep_less_than_they_seem_are_named() {
        let of = |volume: Volume| file_system(Path::new("/d"), &volume).verdict;
        assert_eq!(of(volume("ext4", 1 << 30)), Verdict::Ok);
        assert_eq!(of(volume("overlay", 1 << 30)), Verdict::Warn);
        assert_eq!(of(volume("fuse", 1 << 30)), Verdict::Warn);
        assert_eq!(of(Volume { remote: true, ..volume("nfs", 1 << 30) }), Verdict::Warn);
        let memory = Volume { volatile: true, ..volume("tmpfs", 1 << 30) };
        assert_eq!(of(memory), Verdict::Bad(Cause::Volatile));
    }

    #[test]
    fn space_is_held_against_a_format_and_against_work() {
        let config = Config::default();
        let segment = config.segment_size;
        assert_eq!(segment, Bytes(64 << 20));
        let of = |free: u64| space(&volume("ext4", free), &config, 2).verdict;
        assert_eq!(of(6 * segment.0 - 1), Verdict::Bad(Cause::DiskFull));
        assert_eq!(of(6 * segment.0), Verdict::Warn);
        assert_eq!(of(10 * segment.0), Verdict::Warn, "80% of it are less than eight");
        assert_eq!(of(11 * segment.0), Verdict::Ok);
    }

    #[test]
    fn more_threads_than_shards_is_worth_a_note() {
        assert_eq!(formatted(2, 8).verdict, Verdict::Note);
        assert_eq!(formatted(8, 2).verdict, Verdict::Ok);
    }

    #[test]
    fn a_device_has_its_name() {
        assert_eq!(device_name(0xfe00), "254:0");
        assert_eq!(device_name(0x4931_03e1), "259:300001");
    }

    #[test]
    fn a_cache_that_may_forget_is_worth_a_note() {
        assert_eq!(cache("write through", Some("0")).verdict, Verdict::Ok);
        let back = cache("write back", Some("0"));
        assert_eq!(back.verdict, Verdict::Note);
        assert!(back.found.contains("flush"), "{}", back.found);
        assert!(cache("write back", Some("1")).found.contains("forced unit access"));
    }
}
