//! `laelaps preflight`: what this machine allows, before anything is promised.
//!
//! ```text
//!   check          ok               note, warn: it works, but ...        bad: no start at `sync`
//!   kernel         its release
//!   engine         uring            epoll: why
//!   cores          affinity, quota  less than one CPU; part of one idle
//!   memory         memory-max       room for no large message            for none at all
//!   open files     the hard limit   few
//!   directory      can be written   in use; more threads than shards     no permission
//!   file system    a local disk     a container's layer, FUSE, remote    forgets at power-off
//!   space          for all shards   for a start only                     not for a start
//!   direct I/O     granted          buffered, with data sync             blocks above 4 KiB
//!   device cache   none             flushed at each sync
//!   durable write  p50, p99 ...     slow                                 fails or hangs
//!   locked memory  rings, buffers   buffers not pinned
//! ```
//! Each line has its verdict, and what to change if it is not `ok`. `--json` gives the same, with
//! the engine and the table of the disk apart. `laelaps perf journal` is the long form of the last.
//!
//! Invariants: nothing is left behind, the file that is measured on is removed; a broker that runs
//! on the directory is not disturbed, but for the load. The exit status is 0 if a broker can run
//! here at `sync` with the default configuration, else that of the first cause against it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use net::Engine;
use net::cpu::CpuPlan;
use serde_json::{Value, json};

use crate::budget::Budget;
use crate::config::{Bytes, Config, Count, EngineChoice};
use crate::fatal::{Cause, Failure};
use crate::machine::{self, Memory};
use crate::{driver, output};

mod disk;

use disk::Row;

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

/// How a check came out, the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Ok,
    Note,
    Warn,
    Bad(Cause),
}

/// One thing that was looked at.
struct Check {
    name: &'static str,
    verdict: Verdict,
    found: String,
    /// What to change; empty where nothing need be.
    change: String,
}

/// All that was found.
struct Findings {
    engine: Option<net::EngineChoice>,
    checks: Vec<Check>,
    disk: Vec<Row>,
}

/// Fewer open files than this are soon used up by connections.
const OPEN_FILES_FEW: u64 = 4096;

/// What a ring locks for itself, on kernels that count it; measured: 90 KiB.
const RING_LOCKED_BYTES: u64 = 128 << 10;

/// `laelaps preflight`.
pub(crate) fn command(options: &Options) -> ExitCode {
    let findings = look(options);
    if options.json {
        output::line(format_args!("{:#}", findings.as_json()));
    } else {
        output::text_of(findings.as_text());
    }
    let against = findings.checks.iter().find_map(|check| match check.verdict {
        Verdict::Bad(cause) => Some(cause),
        Verdict::Ok | Verdict::Note | Verdict::Warn => None,
    });
    against.map_or(ExitCode::SUCCESS, |cause| ExitCode::from(cause.status()))
}

fn look(options: &Options) -> Findings {
    let config = Config::default();
    let plan = driver::cpus(Count::Auto);
    let threads = plan.as_ref().map_or(1, |plan| plan.threads);
    let place = disk::Place::look(&options.data, &config, threads);
    let shards = place.shards;
    let rings = threads.min(usize::from(shards));
    let (engine_check, engine) = engine(rings);
    let mut checks = vec![
        ok("kernel", format!("Linux {}, seccomp {}", machine::kernel(), machine::seccomp())),
        engine_check,
        plan.map_or_else(|failure| bad("cores", failure), |plan| cores(&plan)),
        memory(&config, &Memory::detect(), shards),
        open_files(),
    ];
    checks.extend(place.checks);
    let chosen = engine.as_ref().map(|choice| choice.engine);
    let (more, disk) = disk::measure(&place.nearest, chosen);
    checks.extend(more);
    // The last one: what a ring had locked comes back a little after its end.
    if chosen == Some(Engine::Uring) {
        let buffers = driver::batch_buffer_bytes(shards, config.writes_in_flight_max);
        checks.push(locked_memory(rings as u64 * RING_LOCKED_BYTES, buffers));
    }
    Findings { engine, checks, disk }
}

fn ok(name: &'static str, found: String) -> Check {
    Check { name, verdict: Verdict::Ok, found, change: String::new() }
}

fn note(name: &'static str, found: String, change: &str) -> Check {
    Check { name, verdict: Verdict::Note, found, change: change.to_owned() }
}

fn warn(name: &'static str, found: String, change: &str) -> Check {
    Check { name, verdict: Verdict::Warn, found, change: change.to_owned() }
}

fn bad(name: &'static str, failure: Failure) -> Check {
    let change = failure.cause.remedy().to_owned();
    Check { name, verdict: Verdict::Bad(failure.cause), found: failure.message, change }
}

/// The engine that `auto` takes on so many cores.
fn engine(rings: usize) -> (Check, Option<net::EngineChoice>) {
    match driver::engine(EngineChoice::Auto, rings) {
        Ok(chosen) => {
            let found = format!("{}: {}", chosen.engine, chosen.reason);
            let check = match chosen.advice {
                None => ok("engine", found),
                Some(advice) => warn("engine", found, advice),
            };
            (check, Some(chosen))
        }
        Err(failure) => (bad("engine", failure), None),
    }
}

fn cores(plan: &CpuPlan) -> Check {
    let quota = match (plan.quota, &plan.quota_file) {
        (Some(quota), Some(file)) => format!("quota {quota:.2} ({})", file.display()),
        (Some(quota), None) => format!("quota {quota:.2}"),
        (None, _) => "no quota".to_owned(),
    };
    let pinned = if plan.pin { "pinned" } else { "not pinned" };
    let cpus = plan.affinity.len();
    let found = format!("{} threads of {cpus} CPUs, {quota}, {pinned}", plan.threads);
    match plan.quota {
        Some(quota) if quota < 1.0 => warn(
            "cores",
            found,
            "Give it a whole CPU: below that the kernel stops the broker in the middle of a \
             period, and every answer under way waits for the next.",
        ),
        Some(quota) if quota < cpus as f64 && quota.fract() > 0.0 => note(
            "cores",
            found,
            "A whole number of CPUs serves better: the rest is left to HTTP and the kernel.",
        ),
        Some(_) | None => ok("cores", found),
    }
}

fn memory(config: &Config, memory: &Memory, shards: u16) -> Check {
    let from = memory.limited_by.as_ref().map_or("machine".to_owned(), |f| f.display().to_string());
    let there = format!("{} ({from})", rounded(memory.bytes));
    match Budget::new(config, memory.bytes, shards) {
        Err(failure) => {
            bad("memory", Failure { message: format!("{there}; {}", failure.message), ..failure })
        }
        Ok(budget) => {
            let found = format!(
                "{there}; memory-max {} is {}: {} of batch buffers, {} of messages in each of {} \
                 shards",
                config.memory_max,
                rounded(budget.whole),
                rounded(budget.buffers),
                rounded(budget.shard_messages),
                shards
            );
            ok("memory", found)
        }
    }
}

/// Rounded down for people: whole mebibytes, or kibibytes where there are few of them.
fn rounded(bytes: u64) -> String {
    let bits = if bytes < 10 << 20 { 10 } else { 20 };
    Bytes(bytes >> bits << bits).to_string()
}

/// Tried on a ring, since root and some kernels don't count what is locked.
fn locked_memory(rings: u64, buffers: u64) -> Check {
    const NAME: &str = "locked memory";
    let limit = machine::soft_limit("Max locked memory");
    let limit = limit.map_or("no limit".to_owned(), |bytes| format!("limit {}", Bytes(bytes)));
    let wanted = rings + buffers;
    match disk::pins(wanted) {
        Ok(()) => ok(NAME, format!("{limit}; {} can be pinned", Bytes(wanted))),
        Err(why) => warn(
            NAME,
            format!("{limit}; {why}: writes go from memory that is not pinned, and cost more"),
            &format!(
                "Raise it to {} or more (ulimit -l, LimitMEMLOCK=, --ulimit memlock=).",
                Bytes(wanted.next_power_of_two())
            ),
        ),
    }
}

fn open_files() -> Check {
    // As a start does, so that what is said is what it will have.
    let limit = net::limit::raise_open_files()
        .unwrap_or_else(|_| machine::soft_limit("Max open files").unwrap_or(u64::MAX));
    if limit < OPEN_FILES_FEW {
        let change = "Raise the hard limit (ulimit -Hn, LimitNOFILE=, --ulimit nofile=).";
        warn("open files", format!("{limit}: few connections"), change)
    } else {
        ok("open files", limit.to_string())
    }
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warn => "warn",
            Self::Bad(_) => "bad",
        }
    }

    /// How bad, for comparisons.
    fn rank(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Note => 1,
            Self::Warn => 2,
            Self::Bad(_) => 3,
        }
    }
}

impl Findings {
    fn worst(&self) -> Verdict {
        let verdicts = self.checks.iter().map(|check| check.verdict);
        verdicts.max_by_key(|verdict| verdict.rank()).unwrap_or(Verdict::Ok)
    }

    fn as_text(&self) -> String {
        let mut text = String::new();
        for Check { name, verdict, found, change } in &self.checks {
            text.push_str(&format!("{:<5} {name:<14} {found}\n", verdict.word()));
            if !change.is_empty() {
                text.push_str(&format!("{:20} -> {change}\n", ""));
            }
        }
        text.push_str(&disk::table(&self.disk));
        text
    }

    /// Its fields are an interface: they are added to, never renamed.
    fn as_json(&self) -> Value {
        let checks: Vec<Value> = self.checks.iter().map(Check::as_json).collect();
        let engine = self.engine.as_ref().map(|choice| {
            json!({
                "name": choice.engine.name(),
                "reason": choice.reason,
            })
        });
        json!({
            "verdict": self.worst().word(),
            "engine": engine,
            "checks": checks,
            "disk": self.disk.iter().map(Row::as_json).collect::<Vec<_>>(),
        })
    }
}

impl Check {
    fn as_json(&self) -> Value {
        let cause = match self.verdict {
            Verdict::Bad(cause) => Some(cause.name()),
            Verdict::Ok | Verdict::Note | Verdict::Warn => None,
        };
        json!({
            "check": self.name,
            "verdict": self.verdict.word(),
            "cause": cause,
            "found": self.found,
            "change": if self.change.is_empty() { None } else { Some(&self.change) },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(cpus: usize, quota: Option<f64>) -> CpuPlan {
        let quota_file = quota.map(|_| PathBuf::from("/sys/fs/cgroup/cpu.max"));
        CpuPlan { affinity: (0..cpus).collect(), quota, quota_file, threads: 1, pin: false }
    }

    #[test]
    fn a_part_of_a_cpu_is_a_warning_and_names_the_file() {
        let check = cores(&plan(8, Some(0.5)));
        assert_eq!(check.verdict, Verdict::Warn);
        assert!(check.found.contains("0.50 (/sys/fs/cgroup/cpu.max)"), "{}", check.found);
        assert_eq!(cores(&plan(8, Some(2.5))).verdict, Verdict::Note);
        assert_eq!(cores(&plan(8, Some(4.0))).verdict, Verdict::Ok);
        assert_eq!(cores(&plan(2, Some(2.5))).verdict, Verdict::Ok, "more than there are");
        assert_eq!(cores(&plan(1, None)).verdict, Verdict::Ok);
    }

    #[test]
    fn memory_is_judged_by_what_a_start_would_say_of_it() {
        let of = |bytes| {
            let limited_by = Some(PathBuf::from("/sys/fs/cgroup/memory.max"));
            memory(&Config::default(), &Memory { bytes, limited_by }, 8)
        };
        assert_eq!(of(8 << 30).verdict, Verdict::Ok);
        assert_eq!(of(256 << 20).verdict, Verdict::Ok);
        let small = of(16 << 20);
        assert_eq!(small.verdict, Verdict::Bad(Cause::ConfigInvalid));
        assert!(small.found.contains("memory.max"), "{}", small.found);
    }

    #[test]
    fn all_that_is_not_ok_says_what_to_change() {
        let there = tempfile::tempdir().expect("a directory");
        let findings = look(&Options { data: there.path().join("data"), json: true });
        let json = findings.as_json();
        assert_eq!(json["engine"]["name"], findings.engine.expect("one is given").engine.name());
        for check in json["checks"].as_array().expect("checks") {
            assert_eq!(check["verdict"] == "ok", check["change"].is_null(), "{check}");
            assert_eq!(check["verdict"] == "bad", check["cause"].is_string(), "{check}");
        }
        assert_eq!(std::fs::read_dir(there.path()).expect("listed").count(), 0, "nothing is left");
    }

    #[test]
    fn the_worst_verdict_is_that_of_the_whole() {
        let with = |checks| Findings { engine: None, checks, disk: Vec::new() };
        let of = |check: fn() -> Check| with(vec![ok("a", String::new()), check()]);
        assert_eq!(of(|| note("b", String::new(), "c")).worst().word(), "note");
        assert_eq!(of(|| warn("b", String::new(), "c")).worst().word(), "warn");
        let failed = of(|| bad("b", Failure::new(Cause::Volatile, "c")));
        assert_eq!(failed.worst(), Verdict::Bad(Cause::Volatile));
        assert!(failed.as_text().contains("bad   b"), "{}", failed.as_text());
    }
}
