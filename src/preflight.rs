//! `laelaps preflight`: what this machine allows, before anything is promised.
//!
//! ```text
//!   check        good                     poor (a warning)          unusable
//!   engine       io_uring                 epoll: why, what to do
//!   directory    writable                                           no permission
//!   file system  a local disk             remote, or forgets at power-off
//!   direct I/O   block at most 4096       buffered with data sync   a larger block
//!   sync         p50 and p99 of 4 KiB RWF_DSYNC writes, one in flight, on a pre-written file
//!   cores        affinity, quota, threads less than one core
//!   memory, locked memory, open files
//! ```
//! Nothing is left behind: the file that is measured on is removed. The exit status is 0 if a
//! broker can run here at `sync`, else that of the first cause against it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use journal::BlockBuf;
use journal::limits::BLOCK_BYTES;
use net::cpu::CpuPlan;
use net::file::FileOpen;
use net::{Completion, DiskWrite, Engine, Ring, RingConfig};
use serde_json::{Value, json};

use crate::config::{Bytes, EngineChoice};
use crate::fatal::{Cause, Failure};
use crate::{driver, machine, output};

/// What `preflight` is told.
#[derive(Args)]
pub(crate) struct Options {
    /// The directory that the broker would use; it need not be there yet
    #[arg(long, value_name = "DIR", default_value = "./laelaps-data")]
    data: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Good,
    Poor,
    Unusable(Cause),
}

/// One thing that was looked at.
struct Check {
    name: &'static str,
    verdict: Verdict,
    found: String,
}

/// Writes that are measured, at most.
const WRITES_MAX: usize = 300;

/// The measurement takes no longer.
const MEASURE_WITHIN: Duration = Duration::from_secs(3);

/// Bytes of the file that is measured on.
const FILE_BYTES: u64 = 1 << 20;

/// Fewer open files than this are soon used up by connections.
const OPEN_FILES_FEW: u64 = 4096;

/// `laelaps preflight`.
pub(crate) fn command(options: &Options) -> ExitCode {
    let checks = look(&options.data);
    if options.json {
        output::line(format_args!("{:#}", as_json(&checks)));
    } else {
        output::text_of(as_text(&checks));
    }
    let against = checks.iter().find_map(|check| match check.verdict {
        Verdict::Unusable(cause) => Some(cause),
        Verdict::Good | Verdict::Poor => None,
    });
    against.map_or(ExitCode::SUCCESS, |cause| ExitCode::from(cause.status()))
}

fn look(data: &Path) -> Vec<Check> {
    let directory = driver::nearest_there(data);
    let (engine, ring) = engine();
    let mut checks = vec![
        good("kernel", format!("Linux {}, seccomp {}", machine::kernel(), machine::seccomp())),
        engine,
        cores(),
        good("memory", Bytes(machine::Memory::detect().bytes).to_string()),
        locked_memory(),
        open_files(),
        file_system(&directory),
    ];
    checks.extend(disk(&directory, ring));
    checks
}

fn good(name: &'static str, found: String) -> Check {
    Check { name, verdict: Verdict::Good, found }
}

fn poor(name: &'static str, found: String) -> Check {
    Check { name, verdict: Verdict::Poor, found }
}

fn unusable(name: &'static str, failure: Failure) -> Check {
    Check { name, verdict: Verdict::Unusable(failure.cause), found: failure.message }
}

/// The engine that `auto` takes, if there is one.
fn engine() -> (Check, Option<Engine>) {
    match driver::engine(EngineChoice::Auto) {
        Ok(chosen) => {
            let found = format!("{}: {}", chosen.engine, chosen.reason);
            let check = match chosen.advice {
                None => good("engine", found),
                Some(advice) => poor("engine", format!("{found}; {advice}")),
            };
            (check, Some(chosen.engine))
        }
        Err(failure) => (unusable("engine", failure), None),
    }
}

fn cores() -> Check {
    match CpuPlan::detect() {
        Ok(plan) => {
            let quota =
                plan.quota.as_ref().map_or("no quota".to_owned(), |quota| format!("quota {quota}"));
            let pinned = if plan.pin { "pinned" } else { "not pinned" };
            let cpus = plan.affinity.len();
            let found = format!("{} threads of {cpus} CPUs, {quota}, {pinned}", plan.threads);
            let verdict = match plan.quota {
                Some(quota) if quota < 1.0 => Verdict::Poor,
                Some(_) | None => Verdict::Good,
            };
            Check { name: "cores", verdict, found }
        }
        Err(error) => poor("cores", format!("not known: {error}")),
    }
}

fn locked_memory() -> Check {
    let limit = machine::soft_limit("Max locked memory");
    good("locked memory", limit.map_or("no limit".to_owned(), |bytes| Bytes(bytes).to_string()))
}

fn open_files() -> Check {
    match machine::soft_limit("Max open files") {
        Some(limit) if limit < OPEN_FILES_FEW => {
            poor("open files", format!("{limit}: few; raise it (ulimit -n, LimitNOFILE=)"))
        }
        Some(limit) => good("open files", limit.to_string()),
        None => good("open files", "no limit".to_owned()),
    }
}

fn file_system(directory: &Path) -> Check {
    match driver::volume(directory) {
        Ok(volume) => {
            let free = Bytes(volume.free_bytes >> 20 << 20);
            let found = format!("{} on {}, {free} free", directory.display(), volume.kind);
            if volume.volatile {
                let why = "it forgets at power-off; `sync` is refused without --allow-volatile";
                let failure = Failure::new(Cause::Volatile, format!("{found}: {why}"));
                unusable("file system", failure)
            } else if volume.remote {
                poor("file system", format!("{found}: syncs are another machine's word"))
            } else {
                good("file system", found)
            }
        }
        Err(failure) => unusable("file system", failure),
    }
}

/// Removed when it goes.
struct Probe(PathBuf);

impl Drop for Probe {
    fn drop(&mut self) {
        // It was made by us; if it cannot be removed its name says what it is.
        drop(std::fs::remove_file(&self.0));
    }
}

fn disk(directory: &Path, engine: Option<Engine>) -> Vec<Check> {
    let path = directory.join(format!("laelaps-preflight-{}", std::process::id()));
    let probe = Probe(path);
    let how = FileOpen { create: true, write: true, direct: true };
    let opened = net::file::open(&probe.0, how)
        .and_then(|file| file.prewrite(FILE_BYTES).map(|()| file))
        .map_err(|error| driver::path_failure(&probe.0, "cannot be written", &error));
    let file = match opened {
        Ok(file) => file,
        Err(failure) => return vec![unusable("directory", failure)],
    };
    let mut checks = vec![good("directory", "can be written".to_owned()), direct(&file)];
    if let Some(engine) = engine {
        checks.push(match sync_latency(file, engine) {
            Ok(mut micros) => latency(&mut micros),
            Err(failure) => unusable("sync", failure),
        });
    }
    checks
}

fn direct(file: &net::file::DataFile) -> Check {
    match (file.direct(), file.alignment()) {
        (false, _) => poor("direct I/O", "refused: buffered, with data sync".to_owned()),
        (true, Some(bytes)) if bytes as usize > BLOCK_BYTES => {
            let message = format!("the device needs blocks of {bytes} bytes; ours have 4096");
            unusable("direct I/O", Failure::new(Cause::JournalUnreadable, message))
        }
        (true, Some(bytes)) => good("direct I/O", format!("granted, blocks of {bytes} bytes")),
        (true, None) => good("direct I/O", "granted".to_owned()),
    }
}

/// Microseconds of each durable write of a block, one after the other.
fn sync_latency(file: net::file::DataFile, engine: Engine) -> Result<Vec<u128>, Failure> {
    let refused = |error: &dyn std::fmt::Display| {
        Failure::new(Cause::EngineRefused, format!("the measurement failed: {error}"))
    };
    let mut ring = Ring::new(RingConfig { engine, ..RingConfig::default() })
        .map_err(|error| refused(&error))?;
    let file = ring.add_file(file).map_err(|_| refused(&"the ring takes no file"))?;
    let (mut buf, len) = BlockBuf::zeroed(BLOCK_BYTES).into_static();
    let mut micros = Vec::new();
    let mut completions = Vec::new();
    let start = driver::clock();
    for number in 0..WRITES_MAX as u64 {
        let offset = number * BLOCK_BYTES as u64 % FILE_BYTES;
        let before = driver::clock();
        ring.write_durable(DiskWrite { file, offset, buf, len, tag: number });
        buf = loop {
            ring.wait(None, &mut completions).map_err(|error| refused(&error))?;
            if let Some(Completion::Disk { buf: Some(buf), result, .. }) = completions.pop() {
                result.map_err(|error| refused(&error))?;
                break buf;
            }
        };
        let after = driver::clock();
        micros.push((after - before).as_micros());
        if after - start > MEASURE_WITHIN {
            break;
        }
    }
    drop(BlockBuf::from_static(buf, len));
    Ok(micros)
}

fn latency(micros: &mut [u128]) -> Check {
    micros.sort_unstable();
    let at = |percent: usize| micros[(micros.len() - 1) * percent / 100];
    let (p50, p99) = (at(50), at(99));
    let count = micros.len();
    good("sync", format!("4 KiB durable: p50 {p50} us, p99 {p99} us ({count} writes)"))
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Good => "good",
        Verdict::Poor => "poor",
        Verdict::Unusable(_) => "unusable",
    }
}

fn as_text(checks: &[Check]) -> String {
    checks
        .iter()
        .map(|check| format!("{:<9} {:<14} {}\n", word(check.verdict), check.name, check.found))
        .collect()
}

fn as_json(checks: &[Check]) -> Value {
    let checks: Vec<Value> = checks
        .iter()
        .map(|check| {
            let cause = match check.verdict {
                Verdict::Unusable(cause) => Some(cause.name()),
                Verdict::Good | Verdict::Poor => None,
            };
            json!({
                "check": check.name,
                "verdict": word(check.verdict),
                "cause": cause,
                "found": check.found,
            })
        })
        .collect();
    json!({ "checks": checks })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_to_come_is_looked_at_where_it_would_be_made() {
        let there = tempfile::tempdir().expect("a directory");
        assert_eq!(driver::nearest_there(&there.path().join("a/b")), there.path());
    }

    #[test]
    fn nothing_is_left_behind() {
        let there = tempfile::tempdir().expect("a directory");
        let checks = look(there.path());
        assert!(checks.iter().any(|check| check.name == "directory"));
        assert_eq!(std::fs::read_dir(there.path()).expect("listed").count(), 0);
    }

    #[test]
    fn percentiles_are_of_the_sorted_times() {
        let check = latency(&mut (0..=100).rev().collect::<Vec<u128>>());
        assert!(check.found.contains("p50 50 us, p99 99 us (101 writes)"), "{}", check.found);
    }
}
