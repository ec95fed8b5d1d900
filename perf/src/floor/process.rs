//! A floor's server as a process of its own: what a broker is too.
//!
//! ```text
//!   Server::start ── spawn: laelaps perf floor --serve WHAT ──▶ "serving ADDR" on its output
//!        │                       serves on a thread (serve.rs), its first thread waits
//!        └ stop: its input ends ──▶ it ends; what it complains of is the failure
//! ```
//! A switch between two processes may cost more than one between two threads, so a floor that was a
//! thread of the client's process would be lower than any broker can come. It is started as
//! `broker.rs` starts brokers: this very binary, in a process group of its own, on no CPU in
//! particular.
//!
//! Invariant: however the starter ends, the server goes with it, and its file with the server: it
//! lives no longer than its input. Failure: in the server's own words.

use std::ffi::OsString;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use clap::ValueEnum;

use super::FloorError;
use super::check::TokioEcho;
use super::commit::Store;
use super::serve::{Served, Service};
use crate::machine::cpu_of_process;

/// What a server says once it serves, before its address.
const SERVING: &str = "serving ";

/// What is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Each byte comes back.
    Echo,
    /// The same, by the library that others use.
    TokioEcho,
    /// Each request is answered once it is durable.
    Commit,
    /// Each group of a commit floor is answered once it is durable here.
    Copy,
}

/// A server to be.
#[derive(Clone, Debug)]
pub(super) struct ServerPlan {
    pub(super) role: Role,
    /// Bytes of a request.
    pub(super) request_bytes: usize,
    /// Where it writes, if it does.
    pub(super) directory: PathBuf,
    /// Writes that it has under way at most.
    pub(super) writes_in_flight: usize,
    /// Who writes what a commit floor writes too, if somebody does.
    pub(super) copy_at: Option<SocketAddr>,
}

impl ServerPlan {
    pub(super) fn new(role: Role, directory: &Path, request_bytes: usize) -> Self {
        let directory = directory.to_owned();
        Self { role, request_bytes, directory, writes_in_flight: 1, copy_at: None }
    }

    /// What `laelaps perf floor` is told to make this plan.
    fn arguments(&self) -> Vec<OsString> {
        let role = self.role.to_possible_value().expect("no role is hidden");
        let mut arguments: Vec<OsString> = vec![
            format!("--serve={}", role.get_name()).into(),
            format!("--size={}", self.request_bytes).into(),
            format!("--writes-in-flight={}", self.writes_in_flight).into(),
            "--dir".into(),
            self.directory.clone().into(),
        ];
        arguments.extend(self.copy_at.map(|addr| format!("--copy-at={addr}").into()));
        arguments
    }
}

/// Serves in this process until its input ends.
///
/// # Errors
/// It cannot be started, or failed while it served.
pub(super) fn serve(plan: &ServerPlan) -> Result<(), FloorError> {
    let store = || Store::new(&plan.directory, plan.writes_in_flight);
    let service = match plan.role {
        Role::TokioEcho => {
            let echo = TokioEcho::start().map_err(FloorError::io("the echo server on tokio"))?;
            return tell_and_wait(echo.addr());
        }
        Role::Echo => Service::Echo,
        Role::Commit => {
            let (request_bytes, copy) = (plan.request_bytes, plan.copy_at);
            Service::Commit { request_bytes, store: store()?, copy }
        }
        Role::Copy => Service::Copy(store()?),
    };
    let served = Served::start(service)?;
    tell_and_wait(served.addr()).and(served.stop())
}

fn tell_and_wait(addr: SocketAddr) -> Result<(), FloorError> {
    let mut out = io::stdout().lock();
    let told = writeln!(out, "{SERVING}{addr}").and_then(|()| out.flush());
    told.and_then(|()| io::copy(&mut io::stdin().lock(), &mut io::sink()))
        .map(drop)
        .map_err(FloorError::io("the way to who started this server"))
}

/// A server that runs in another process.
#[derive(Debug)]
pub(super) struct Server {
    child: Child,
    addr: SocketAddr,
}

impl Server {
    /// Starts it, and waits until it serves.
    ///
    /// # Errors
    /// No process, or the server's own words.
    pub(super) fn start(plan: &ServerPlan) -> Result<Self, FloorError> {
        let failed = FloorError::io("the process of a server");
        let mut command = command(&plan.arguments()).map_err(&failed)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A signal of the terminal is for us: we end the server in our own time.
        command.process_group(0);
        let mut child = command.spawn().map_err(&failed)?;
        let told = child.stdout.take().and_then(|out| {
            let mut lines = BufReader::new(out).lines().map_while(Result::ok);
            lines.find_map(|line| line.strip_prefix(SERVING)?.parse().ok())
        });
        match told {
            Some(addr) => Ok(Self { child, addr }),
            None => Err(end(&mut child).err().unwrap_or(FloorError::Ended)),
        }
    }

    /// Where it answers.
    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Nanoseconds that it has spent on CPUs.
    pub(super) fn cpu_ns(&self) -> Option<u64> {
        cpu_of_process(self.child.id())
    }

    /// Ends it.
    ///
    /// # Errors
    /// What it failed with while it served.
    pub(super) fn stop(mut self) -> Result<(), FloorError> {
        end(&mut self.child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Whoever wants to know has called `stop`; then this finds it gone.
        let _ = end(&mut self.child);
    }
}

/// Ends a server by the end of its input, and hears its last words.
fn end(child: &mut Child) -> Result<(), FloorError> {
    drop(child.stdin.take());
    let mut said = String::new();
    if let Some(mut errors) = child.stderr.take() {
        // What can't be read is not said.
        let _ = errors.read_to_string(&mut said);
    }
    let status = child.wait().map_err(FloorError::io("the process of a server"))?;
    if status.success() { Ok(()) } else { Err(FloorError::Server(said.trim().to_owned())) }
}

/// This binary, as a server.
#[cfg(not(test))]
fn command(arguments: &[OsString]) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["perf", "floor"]).args(arguments);
    Ok(command)
}

/// The tests are another binary: one of them plays the part of `laelaps perf floor`.
#[cfg(test)]
fn command(arguments: &[OsString]) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--ignored", "--nocapture", "--exact", "floor::process::tests::as_a_server"]);
    // With one thread the name of a test stands before what it says first.
    command.arg("--test-threads=2");
    command.env(tests::ARGUMENTS, arguments.join(std::ffi::OsStr::new("\n")));
    Ok(command)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::floor::{Options, command as floor};

    /// What the server is told.
    pub(super) const ARGUMENTS: &str = "LAELAPS_TEST_FLOOR";

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    #[ignore = "it is the server that the other tests start"]
    fn as_a_server() {
        let Ok(arguments) = std::env::var(ARGUMENTS) else { return };
        let arguments = ["floor"].into_iter().chain(arguments.lines());
        let served = floor(&Cli::parse_from(arguments).options);
        if let Err(error) = &served {
            eprintln!("{error}");
        }
        // The test runner's summary would find nobody to read it.
        std::process::exit(i32::from(served.is_err()));
    }

    #[test]
    fn it_ends_with_its_input_and_takes_its_file_along() {
        let root = tempfile::tempdir().expect("a directory");
        let plan = ServerPlan::new(Role::Commit, root.path(), 256);
        let count = || std::fs::read_dir(root.path()).expect("there").count();
        let server = Server::start(&plan).expect("it serves");
        assert!(server.cpu_ns().is_some_and(|ns| ns > 0));
        assert_eq!(count(), 1);
        server.stop().expect("it served well");
        assert_eq!(count(), 0);
        drop(Server::start(&plan).expect("it serves"));
        assert_eq!(count(), 0);
    }

    #[test]
    fn why_it_does_not_serve_is_told_in_its_own_words() {
        let plan = ServerPlan::new(Role::Copy, Path::new("/no/such/place"), 1);
        let error = Server::start(&plan).expect_err("no directory").to_string();
        assert!(error.contains("/no/such/place") && error.contains("--dir"), "{error}");
    }
}
