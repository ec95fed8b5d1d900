//! `laelaps perf floor`: one floor as a command, or all of them checked.
//!
//! ```text
//!   --kind KIND   a load on one floor, a block as every load has it
//!   --check       each floor beside what others wrote: check.rs
//!   --serve WHAT  the server of a floor, started by one of the others: process.rs
//! ```
//! Failure: what could not be run; with `--check`, a floor that is too slow.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::check::{self, RATIO_MAX};
use super::process::{self, Role, ServerPlan};
use super::{Floor, FloorKind, FloorLoad, WRITES_IN_FLIGHT, check_even};
use crate::arguments::{parse_duration, parse_rate};
use crate::block::{Block, SCHEMA, write_hgrm};
use crate::command::Failure;
use crate::machine::{Machine, Noise, Place, Snapshot};
use crate::schedule::Arrivals;
use crate::show;
use crate::verdict::Verdict;

/// What `laelaps perf floor` is told.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Which floor
    #[arg(long, value_enum, default_value_t = FloorKind::Commit)]
    pub kind: FloorKind,
    /// Hold all floors against fio, an echo server on tokio, and each other
    #[arg(long)]
    pub check: bool,
    /// Rounds of --check
    #[arg(long, value_name = "N", default_value_t = 12,
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Bytes of a request; dev writes whole blocks
    #[arg(long, value_name = "BYTES", default_value_t = 256,
          value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub size: u32,
    /// Requests a second [default: the next one when the last is answered]
    #[arg(long, value_name = "N", value_parser = parse_rate)]
    pub rate: Option<f64>,
    /// How send times are spread
    #[arg(long, value_enum, default_value_t = Arrivals::Constant)]
    pub arrivals: Arrivals,
    /// Chance of the Poisson schedule
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// TCP connections
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub connections: u32,
    /// Requests under way on each connection; writes under way for dev
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub in_flight: u32,
    /// Threads of the client, each with a ring; they share the connections
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=64))]
    pub threads: u32,
    /// Writes of the commit floor under way
    #[arg(long, value_name = "N", default_value_t = WRITES_IN_FLIGHT as u32,
          value_parser = clap::value_parser!(u32).range(1..=64))]
    pub writes_in_flight: u32,
    /// Load before anything counts
    #[arg(long, value_name = "TIME", default_value = "500ms", value_parser = parse_duration)]
    pub warmup: Duration,
    /// For how long requests are due; of --check, an eighth of it is a block
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    pub duration: Duration,
    /// Write below this directory
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub dir: PathBuf,
    /// Write the result as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the latency as an HdrHistogram text, for its plotters
    #[arg(long, value_name = "FILE")]
    pub hgrm: Option<PathBuf>,
    /// Be the server of a floor until the input ends
    #[arg(long, value_enum, hide = true)]
    pub serve: Option<Role>,
    /// Where the commit floor's server finds the second disk
    #[arg(long, hide = true)]
    pub copy_at: Option<SocketAddr>,
}

#[derive(Serialize)]
struct FloorResult<'a> {
    schema: &'static str,
    kind: &'static str,
    verdict: Verdict,
    machine: Machine,
    place: Place,
    floor: FloorKind,
    load: FloorLoad,
    noise: Noise,
    block: &'a Block,
}

#[derive(Serialize)]
struct CheckResult<'a> {
    schema: &'static str,
    kind: &'static str,
    machine: Machine,
    place: Place,
    checked: &'a [check::Checked],
}

/// `laelaps perf floor`.
///
/// # Errors
/// What could not be run or written; a floor that is too slow.
pub fn command(options: &Options) -> Result<(), Failure> {
    if let Some(role) = options.serve {
        return Ok(process::serve(&server_plan(options, role))?);
    }
    let dir = &options.dir;
    let place = Place::of(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    check_even(options.connections, options.threads)?;
    if options.check { check_all(options, place) } else { one(options, place) }
}

fn server_plan(options: &Options, role: Role) -> ServerPlan {
    ServerPlan {
        writes_in_flight: options.writes_in_flight as usize,
        copy_at: options.copy_at,
        ..ServerPlan::new(role, &options.dir, options.size as usize)
    }
}

fn one(options: &Options, place: Place) -> Result<(), Failure> {
    let load = FloorLoad {
        connections: options.connections as usize,
        in_flight: options.in_flight as usize,
        threads: options.threads as usize,
        size: options.size as usize,
        rate: options.rate,
        arrivals: options.arrivals,
        seed: options.seed,
        warm_up: options.warmup,
        duration: options.duration,
    };
    let writes = options.writes_in_flight as usize;
    let floor = Floor::start(options.kind, &options.dir, load.size, writes)?;
    let before = Snapshot::take();
    let block = floor.run(&load)?;
    let noise = Noise::between(&before, &Snapshot::take());
    floor.stop()?;
    let mut verdict = Verdict::new();
    verdict.judge("", &block);
    if let Some(objection) = noise.objection() {
        verdict.object(objection);
    }
    if options.kind != FloorKind::Echo {
        if place.volatile {
            verdict.object(format!("volatile file system: {} forgets", place.file_system));
        }
        if let Some(note) = place.note() {
            verdict.note(note);
        }
    }
    show::print(&format!(
        "floor {}\n{}\n{verdict}\n",
        options.kind.name(),
        show::block(&block, "answered")
    ))?;
    if let Some(path) = &options.hgrm {
        show::write_file(path, &write_hgrm(&block.intended))?;
    }
    let Some(path) = &options.json else { return Ok(()) };
    show::write_json(
        path,
        &FloorResult {
            schema: SCHEMA,
            kind: "floor",
            verdict,
            machine: Machine::here(),
            place,
            floor: options.kind,
            load,
            noise,
            block: &block,
        },
    )
}

fn check_all(options: &Options, place: Place) -> Result<(), Failure> {
    let (rounds, block) = (options.rounds as usize, options.duration / 8);
    let size = options.size as usize;
    let checked = check::check(&options.dir, size, rounds, block, options.seed)?;
    show::print(&check::text(&checked))?;
    if let Some(path) = &options.json {
        let machine = Machine::here();
        let result =
            CheckResult { schema: SCHEMA, kind: "floor-check", machine, place, checked: &checked };
        show::write_json(path, &result)?;
    }
    let slow: Vec<&str> =
        checked.iter().filter(|one| !one.holds).map(|one| one.name.as_str()).collect();
    if slow.is_empty() {
        Ok(())
    } else {
        Err(format!("not at most {RATIO_MAX}: {}", slow.join(", ")).into())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn each_kind_runs_and_is_written_down() {
        let root = tempfile::tempdir().expect("a directory");
        for kind in ["echo", "dev", "commit", "replicated"] {
            let arguments = ["floor", "--kind", kind, "--duration", "100ms", "--rate", "500"];
            let mut options = Cli::parse_from(arguments).options;
            options.dir = root.path().to_owned();
            options.json = Some(root.path().join("floor.json"));
            options.hgrm = Some(root.path().join("floor.hgrm"));
            command(&options).expect("ran");
            let text = std::fs::read_to_string(root.path().join("floor.json")).expect("written");
            let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!(value["floor"], kind);
            assert_eq!(value["block"]["completed"], 50);
            assert!(
                std::fs::metadata(root.path().join("floor.hgrm")).expect("written").len() > 100
            );
        }
    }
}
