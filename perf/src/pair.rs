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
    live: Broker,
    /// None while it is dead.
    backup: Option<Broker>,
    backup_plan: BrokerPlan,
    _voters: Vec<Voter>,
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
        let mut brokers = [spawn(0)?, spawn(1)?];
        for (member, plan) in brokers.iter_mut().zip(&plans) {
            member.wait(plan, interrupt)?;
        }
        let [a, b] = brokers;
        let [plan_a, plan_b] = plans;
        let (live, backup, backup_plan) = if is_live(a.admin()) {
            (a, b, plan_b)
        } else if is_live(b.admin()) {
            (b, a, plan_a)
        } else {
            return Err("no member of the pair says that it is live".into());
        };
        Ok(Self { live, backup: Some(backup), backup_plan, _voters: seats })
    }

    /// The one that serves, as it was when the pair had started.
    #[must_use]
    pub fn live(&self) -> &Broker {
        &self.live
    }

    /// SIGKILL of the backup, until the live serves without it.
    ///
    /// # Errors
    /// The kernel refuses, the live does not go on alone in time, or we are interrupted.
    pub fn lose_backup(&mut self, interrupt: &Interrupt) -> Result<(), Failure> {
        const ALONE_WITHIN: Duration = Duration::from_secs(20);
        const ASK_EVERY: Duration = Duration::from_millis(20);
        if let Some(backup) = self.backup.take() {
            backup.kill()?;
        }
        for _ in 0..ALONE_WITHIN.as_millis() / ASK_EVERY.as_millis() {
            let members = status(self.live.admin())
                .and_then(|status| status["in_sync"].as_array().map(Vec::len));
            if members == Some(1) {
                return Ok(());
            }
            interrupt.check()?;
            std::thread::sleep(ASK_EVERY);
        }
        Err("the live does not go on without its backup: see `laelaps ha status`".into())
    }

    /// Starts the backup again; how long until it is in sync.
    ///
    /// # Errors
    /// It ends or is not in sync in time, or we are interrupted.
    pub fn start_backup(&mut self, interrupt: &Interrupt) -> Result<Duration, Failure> {
        let Self { backup, backup_plan: plan, .. } = self;
        let [addr, admin] = free_ports().map_err(|error| format!("loopback: {error}"))?;
        let backup = backup.insert(Broker::spawn(plan, addr, admin)?);
        backup.wait(plan, interrupt)?;
        Ok(backup.ready_after())
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
    status(admin).is_some_and(|status| status["role"] == "live")
}

/// What a member says of the pair, if it answers.
fn status(admin: SocketAddr) -> Option<serde_json::Value> {
    const WITHIN: Duration = Duration::from_secs(1);
    let text = ask(admin, "GET /api/v1/ha", WITHIN).ok()?;
    let (_, body) = text.split_once("\r\n\r\n")?;
    serde_json::from_str(body).ok()
}
