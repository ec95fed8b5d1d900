//! A pair of our own as child processes: two brokers and three voters on loopback.
//!
//! ```text
//!   voters, a, b ─ spawned at once ─▶ both ready: one serves, the other is in sync ─▶ live
//! ```
//! Directories, configurations and logs are below one directory of the caller's. Addresses have the
//! pair's default level, `replicated-sync`.
//!
//! Invariant: as for a single broker, nothing is left behind. Failure: in words. A role that moves
//! while a load runs fails the load: the old live closes its connections.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::broker::{Broker, BrokerPlan, Interrupt, ask, free_ports};
use crate::command::Failure;

const VOTERS: usize = 3;
const NAMES: [&str; 2] = ["a", "b"];
/// AMQP, HTTP and replication of each member, then the voters.
const PORTS: usize = 3 * NAMES.len() + VOTERS;

/// A pair that runs and is in sync.
#[derive(Debug)]
pub struct Pair {
    // Dropped in this order: a member that lost its voters would say so first.
    members: [Broker; 2],
    _voters: Vec<Voter>,
    live: usize,
}

impl Pair {
    /// Starts one below `directory`, with these flags for its brokers.
    ///
    /// # Errors
    /// A process cannot be started or ends, or the pair is not in sync in time.
    pub fn start(
        exe: Option<&PathBuf>,
        directory: &Path,
        flags: &[String],
        interrupt: &Interrupt,
    ) -> Result<Self, Failure> {
        fs::create_dir(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
        let ports = free_ports::<PORTS>().map_err(|error| format!("loopback: {error}"))?;
        let (members, voters) = ports.split_at(PORTS - VOTERS);
        let plan = |at: usize| -> Result<BrokerPlan, Failure> {
            let mut plan = BrokerPlan::new(directory.join(NAMES[at]))?;
            plan.exe = exe.cloned().unwrap_or(plan.exe);
            let config = directory.join(format!("{}.toml", NAMES[at]));
            write(&config, &member(at, members, voters))?;
            plan.flags = vec!["--config".to_owned(), config.display().to_string()];
            plan.flags.extend_from_slice(flags);
            Ok(plan)
        };
        let plans = [plan(0)?, plan(1)?];
        let mut seats = Vec::new();
        for seat in 1..=VOTERS {
            seats.push(Voter::spawn(&plans[0].exe, directory, seat, voters)?);
        }
        let spawn = |at: usize| Broker::spawn(&plans[at], members[3 * at], members[3 * at + 1]);
        let mut pair = Self { members: [spawn(0)?, spawn(1)?], _voters: seats, live: 0 };
        for (member, plan) in pair.members.iter_mut().zip(&plans) {
            member.wait(plan, interrupt)?;
        }
        let mut lives = (0..2).filter(|at| is_live(pair.members[*at].admin()));
        pair.live = lives.next().ok_or("no member of the pair says that it is live")?;
        Ok(pair)
    }

    /// The one that serves, as it was when the pair had started.
    #[must_use]
    pub fn live(&self) -> &Broker {
        &self.members[self.live]
    }
}

fn member(at: usize, members: &[SocketAddr], voters: &[SocketAddr]) -> String {
    let voters: Vec<String> = voters.iter().map(SocketAddr::to_string).collect();
    format!(
        "[ha]\npair = \"perf\"\nnode = \"{}\"\nreplication = \"{}\"\npeer = \"{}\"\n\
         voters = {voters:?}\n",
        NAMES[at],
        members[3 * at + 2],
        members[3 * (1 - at) + 2],
    )
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()).into())
}

/// A voter's process, ended when it is dropped.
#[derive(Debug)]
struct Voter(Child);

impl Voter {
    fn spawn(
        exe: &Path,
        directory: &Path,
        seat: usize,
        all: &[SocketAddr],
    ) -> Result<Self, Failure> {
        let data = directory.join(format!("voter-{seat}"));
        let mut text = format!("seat = {seat}\ndata = {data:?}\nallow-volatile = true\n");
        for addr in all {
            writeln!(text, "[[voter]]\naddress = \"{addr}\"").expect("memory takes text");
        }
        let config = data.with_extension("toml");
        write(&config, &text)?;
        let spawn = || -> std::io::Result<Child> {
            let log = File::create(data.with_extension("log"))?;
            let mut command = Command::new(exe);
            command.arg("voter").arg("--config").arg(&config);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
            // A signal of the terminal is for us.
            command.process_group(0).spawn()
        };
        let child = spawn().map_err(|error| format!("a voter cannot be started: {error}"))?;
        Ok(Self(child))
    }
}

impl Drop for Voter {
    fn drop(&mut self) {
        if self.0.kill().is_ok() {
            drop(self.0.wait());
        }
    }
}

fn is_live(admin: SocketAddr) -> bool {
    const WITHIN: Duration = Duration::from_secs(1);
    let role = |text: &str| -> Option<bool> {
        let (_, body) = text.split_once("\r\n\r\n")?;
        let status: serde_json::Value = serde_json::from_str(body).ok()?;
        Some(status["role"] == "live")
    };
    let answer = ask(admin, "GET /api/v1/ha", WITHIN);
    answer.ok().and_then(|text| role(&text)).unwrap_or(false)
}
