//! Our ring and glommio at the same two jobs, in turns: the figures behind ADR 0001.
//!
//! ```text
//!   append   4 KiB made durable, one in flight, round a pre-written file, O_DIRECT
//!            ours: RWF_DSYNC, registered       glommio: write, then fdatasync
//!   echo     256 bytes there and back, one message under way on each connection
//!            clients are threads of this process with blocking sockets
//!
//!   round 1: ours, glommio   round 2: glommio, ours   ...   -> the ratios of the rounds
//! ```
//!
//! CPU is what the server's thread ran, for an append the whole process, from the scheduler's own
//! books. Only the ratios of a round are to be trusted. On a machine that is busy with other things
//! the times of an append are the scheduler's, whoever sleeps most losing most: they are stamped
//! INVALID.
//!
//! Failure: says what, exit status 1.
#![forbid(unsafe_code)]
#![expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]

mod echo;
mod ours;
mod theirs;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use hdrhistogram::Histogram;
use net::file::{self, FileOpen};
use rustix::time::{ClockId, clock_gettime};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Bytes of an append.
const APPEND_BYTES: usize = 4096;

const ROUNDS: usize = 9;

/// How much of each job is done.
struct Jobs {
    appends: usize,
    /// Appends before those that count.
    warm_up: usize,
    /// Bytes of the file that the appends go round.
    file_bytes: usize,
    /// Connections of the echoes, and messages on each.
    echoes: [(usize, usize); 2],
}

const FULL: Jobs =
    Jobs { appends: 4000, warm_up: 200, file_bytes: 64 << 20, echoes: [(1, 20_000), (64, 1000)] };

/// What one append run showed.
struct Appends {
    latency_ns: Histogram<u64>,
    cpu: Duration,
}

/// One line of the table: what each of the two took, round by round.
struct Line {
    name: String,
    ours: Vec<f64>,
    glommio: Vec<f64>,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().map_or_else(|| PathBuf::from("."), PathBuf::from);
    let rounds = arguments.next().map_or(Ok(ROUNDS), |text| text.parse::<usize>());
    let path = directory.join(format!("beside-glommio-{}", std::process::id()));
    let measured = match rounds {
        Ok(rounds) => measure(&path, rounds.max(1), &FULL),
        Err(error) => Err(format!("ROUNDS is not a number: {error}").into()),
    };
    // It is not there if making it was what failed.
    let _ = fs::remove_file(&path);
    match measured {
        Ok(lines) => {
            print(&lines);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("beside-glommio: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether others want the CPUs too, by the load of the last minute.
fn is_busy() -> Outcome<bool> {
    let load = fs::read_to_string("/proc/loadavg")?;
    let load: f64 = load.split(' ').next().unwrap_or_default().parse()?;
    Ok(load > std::thread::available_parallelism()?.get() as f64 / 2.0)
}

fn measure(path: &Path, rounds: usize, jobs: &'static Jobs) -> Outcome<Vec<Line>> {
    let how = FileOpen { create: true, write: true, direct: true };
    let file = file::open(path, how)?;
    file.prewrite(jobs.file_bytes as u64)?;
    println!("{}, {}, {rounds} rounds", file::volume(path)?.kind, direct(file.direct()));
    drop(file);
    let name = |what: &str| Line { name: what.into(), ours: Vec::new(), glommio: Vec::new() };
    let stamp = if is_busy()? { " INVALID" } else { "" };
    let time = |what: &str| name(&format!("{what}{stamp}"));
    let mut lines = vec![time("append p50 us"), time("append p99 us"), name("append CPU us")];
    for (connections, _) in jobs.echoes {
        lines.push(name(&format!("echo CPU us, {connections} connections")));
    }
    for round in 0..rounds {
        // Who begins changes, so that neither always runs in the other's wake.
        for ours in [round.is_multiple_of(2), !round.is_multiple_of(2)] {
            for (line, figure) in lines.iter_mut().zip(one_round(path, ours, jobs)?) {
                if ours { &mut line.ours } else { &mut line.glommio }.push(figure);
            }
        }
    }
    Ok(lines)
}

fn direct(is_direct: bool) -> &'static str {
    if is_direct { "direct" } else { "buffered: no fair comparison" }
}

/// The figures of one side, in the order of the table.
fn one_round(path: &Path, ours: bool, jobs: &'static Jobs) -> Outcome<Vec<f64>> {
    let appends = if ours { ours::append(path, jobs)? } else { theirs::append(path, jobs)? };
    let us = |quantile| appends.latency_ns.value_at_quantile(quantile) as f64 / 1000.0;
    let cpu = appends.cpu.as_secs_f64() * 1e6 / jobs.appends as f64;
    let mut figures = vec![us(0.5), us(0.99), cpu];
    for (connections, messages) in jobs.echoes {
        let cpu = if ours {
            ours::echo(connections, messages)?
        } else {
            theirs::echo(connections, messages)?
        };
        figures.push(cpu.as_secs_f64() * 1e6 / (connections * messages) as f64);
    }
    Ok(figures)
}

fn print(lines: &[Line]) {
    println!("{:<26} {:>8} {:>8}   ratio (least to most)", "", "ours", "glommio");
    for Line { name, ours, glommio } in lines {
        let mut ratios: Vec<f64> = glommio.iter().zip(ours).map(|(its, ours)| its / ours).collect();
        let middle = median(&mut ratios);
        println!(
            "{name:<26} {:>8.1} {:>8.1}   {middle:.2} ({:.2} to {:.2})",
            median(&mut ours.clone()),
            median(&mut glommio.clone()),
            ratios[0],
            ratios[ratios.len() - 1]
        );
    }
}

/// Sorts them.
fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Where the append of this number goes.
fn offset(at: usize, jobs: &Jobs) -> u64 {
    (at * APPEND_BYTES % jobs.file_bytes) as u64
}

/// Time on a CPU of the calling thread.
fn thread_cpu() -> Duration {
    cpu(ClockId::ThreadCPUTime)
}

/// Time on a CPU of all threads of this process, the kernel's for its rings included.
fn process_cpu() -> Duration {
    cpu(ClockId::ProcessCPUTime)
}

/// By a clock, and not by `/proc`, whose books are up to a tick behind.
fn cpu(clock: ClockId) -> Duration {
    let spent = clock_gettime(clock);
    Duration::new(spent.tv_sec as u64, spent.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing is measured here: it must only go on working as `net` changes.
    const TINY: Jobs =
        Jobs { appends: 4, warm_up: 1, file_bytes: 1 << 20, echoes: [(1, 5), (3, 2)] };

    #[test]
    fn both_sides_do_both_jobs() {
        if let Err(refusal) = net::probe() {
            println!("left out, since glommio has nothing else: {refusal}");
            return;
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR"));
        let path = path.join(format!("target-tiny-{}", std::process::id()));
        let lines = measure(&path, 2, &TINY);
        let removed = fs::remove_file(&path);
        let lines = lines.expect("every job is done");
        removed.expect("it was made");
        assert_eq!(lines.len(), 5);
        for line in &lines {
            assert_eq!((line.ours.len(), line.glommio.len()), (2, 2), "{}", line.name);
            assert!(line.ours.iter().chain(&line.glommio).all(|figure| *figure > 0.0));
        }
        print(&lines);
    }
}
