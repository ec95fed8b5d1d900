//! `powerfs DIR --seed N`: a file system in memory whose power a test can cut.
//!
//! ```text
//!   stdin     freeze                    requests wait from now on          ok AT_NS
//!             cut [FILE]                lose what was not synced, EIO      ok PENDING LOST TORN
//!                                       for all; write what was in flight     NAMES SINCE_NS
//!                                       to FILE
//!             on                        serve the durable image            ok
//!             delay-write US            answer writes that much later      ok
//!             delay-sync US             and syncs                          ok
//!             fail-writes on|off        EIO for writes and syncs           ok
//!             fail-reads on|off         EIO for reads                      ok
//!             hang-syncs on|off         no answer to syncs, until a cut    ok
//!             deny-opens on|off         EACCES for open, create and mkdir   ok
//!             refuse-direct on|off      EINVAL for opens with O_DIRECT     ok
//!             quota BYTES|none          ENOSPC beyond                      ok
//!             counts                    ok WRITES WRITTEN_BYTES SYNCS READS ALLOCATED_BYTES
//!             end of input              unmount, exit 0
//!   stdout    "ready" once mounted, then one line for each command; a mistake answers "no: WHY"
//! ```
//!
//! For tests only: everything is gone when it ends. To kill a broker in the middle of its writes:
//! `freeze`, send it SIGKILL, `cut` (its requests get an answer, so it can die), wait for it, `on`.
#![forbid(unsafe_code)]

mod disk;
mod fuse;
mod sparse;

use std::fs;
use std::io::{self, BufRead, Write};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use fuser::{Config, MountOption};

use crate::fuse::PowerFs;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let parsed = match args.as_slice() {
        [dir, flag, seed] if flag == "--seed" => seed.parse().ok().map(|seed| (dir, seed)),
        _ => None,
    };
    let Some((dir, seed)) = parsed else {
        eprintln!("usage: powerfs DIR --seed N");
        return ExitCode::from(2);
    };
    match serve(dir, seed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("powerfs: {dir}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(dir: &str, seed: u64) -> io::Result<()> {
    let fs = PowerFs::new(seed);
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("powerfs".into()),
        MountOption::DefaultPermissions,
        MountOption::NoAtime,
    ];
    let timer = fs.clone();
    thread::Builder::new().name("timer".into()).spawn(move || timer.run_timer())?;
    let session = fuser::spawn_mount(fs.clone(), dir, &config)?;
    println!("ready");
    for line in io::stdin().lock().lines() {
        let answer = obey(&fs, &line?);
        println!("{}", answer.unwrap_or_else(|why| format!("no: {why}")));
        io::stdout().flush()?;
    }
    // Whoever started it may have unmounted it already, lazily.
    let _ = session.umount_and_join();
    Ok(())
}

fn obey(fs: &PowerFs, line: &str) -> Result<String, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        ["freeze"] => {
            fs.freeze();
            return Ok(format!("ok {}", fs.frozen_ns()));
        }
        ["cut", file @ ..] => return cut(fs, file.first().copied()),
        ["on"] => fs.power_on(),
        ["delay-write", us] => {
            let delay = micros(us)?;
            fs.set_knobs(|knobs| knobs.write_delay = delay);
        }
        ["delay-sync", us] => {
            let delay = micros(us)?;
            fs.set_knobs(|knobs| knobs.sync_delay = delay);
        }
        ["fail-writes", word] => {
            let fail = on_or_off(word)?;
            fs.set_knobs(|knobs| knobs.writes_fail = fail);
        }
        ["fail-reads", word] => {
            let fail = on_or_off(word)?;
            fs.set_knobs(|knobs| knobs.reads_fail = fail);
        }
        ["hang-syncs", word] => {
            let hang = on_or_off(word)?;
            fs.set_knobs(|knobs| knobs.syncs_hang = hang);
        }
        ["deny-opens", word] => {
            let denied = on_or_off(word)?;
            fs.set_knobs(|knobs| knobs.opens_denied = denied);
        }
        ["refuse-direct", word] => {
            let refused = on_or_off(word)?;
            fs.set_knobs(|knobs| knobs.direct_refused = refused);
        }
        ["quota", "none"] => fs.set_quota(u64::MAX),
        ["quota", bytes] => {
            fs.set_quota(bytes.parse().map_err(|_| format!("`{bytes}` is not a number"))?);
        }
        ["counts"] => {
            let counts = fs.counts();
            let (writes, bytes) = (counts.writes, counts.written_bytes);
            let (syncs, reads, allocated) = (counts.syncs, counts.reads, fs.allocated_bytes());
            return Ok(format!("ok {writes} {bytes} {syncs} {reads} {allocated}"));
        }
        _ => return Err(format!("`{line}` is not a command")),
    }
    Ok("ok".into())
}

fn cut(fs: &PowerFs, file: Option<&str>) -> Result<String, String> {
    let loss = fs.cut();
    if let Some(file) = file {
        fs::write(file, &loss.in_flight).map_err(|error| format!("{file}: {error}"))?;
    }
    let (pending, lost, torn) = (loss.writes_pending, loss.writes_lost, loss.writes_torn);
    let since_ns = loss.in_flight_since_ns.unwrap_or(fs.frozen_ns());
    Ok(format!("ok {pending} {lost} {torn} {} {since_ns}", loss.names_lost))
}

fn micros(word: &str) -> Result<Duration, String> {
    let us = word.parse().map_err(|_| format!("`{word}` is not a number of microseconds"))?;
    Ok(Duration::from_micros(us))
}

fn on_or_off(word: &str) -> Result<bool, String> {
    match word {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("`{word}` is neither on nor off")),
    }
}
