//! A broker as a process: started on free ports, watched until ready, killed by its own id.
//!
//! ```text
//!   Start::ready ── spawn, output to a file ──▶ GET /healthz/ready until 200 ──▶ Broker
//!        │                                            │ it exits or takes too long
//!        │                                            └──▶ panic with the end of its output
//!        ├── kill()   SIGKILL, wait        what a crash is
//!        ├── stop()   SIGTERM, wait        what an operator does
//!        └── drop     SIGKILL, wait        nothing is left behind, whatever the test did
//! ```
//!
//! `LAELAPS_ENGINE` (`--engine`) and `LAELAPS_IO_URING_REFUSED` (`EPERM` or `ENOSYS`: it is started
//! without io_uring) put every test on the other engine.
//!
//! A broker may run on a machine of `machines.rs`; what it is asked then is asked from there.
//!
//! Data lies below the target directory, on a real disk: a memory file system would be refused by
//! the broker, and would prove nothing. A test that fails leaves its directory and says where it
//! is.

use std::fs::{self, File};
use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::machines::Inside;

/// How long a broker may take from its start to `ready` on a busy machine of two cores.
const READY_WITHIN: Duration = Duration::from_secs(30);
const EXIT_WITHIN: Duration = Duration::from_secs(30);

/// What to start, with defaults for most tests: the broker under test, at `sync`.
pub(crate) struct Start<'a> {
    pub(crate) exe: PathBuf,
    pub(crate) data: &'a Path,
    /// Where it listens; a free port where the test does not care.
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) output: PathBuf,
    pub(crate) durability: &'a str,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(&'a str, &'a str)>,
    /// `--engine`, where it matters.
    pub(crate) engine: Option<String>,
    /// The error with which io_uring is refused to it: `EPERM` or `ENOSYS`.
    pub(crate) io_uring_refused: Option<String>,
    /// The machine that it runs on, if that is not this one.
    pub(crate) inside: Option<Inside>,
}

pub(crate) struct Broker {
    child: Child,
    output: PathBuf,
    inside: Option<Inside>,
    pub(crate) amqp: SocketAddr,
    pub(crate) admin: SocketAddr,
}

impl<'a> Start<'a> {
    /// The broker under test with its data in `data`; what it prints goes into a file beside that.
    pub(crate) fn new(data: &'a Path) -> Self {
        Self {
            exe: PathBuf::from(env!("CARGO_BIN_EXE_laelaps")),
            data,
            listen: None,
            output: data.with_extension("log"),
            durability: "sync",
            args: vec!["--segment-size".into(), "4194304".into()],
            env: Vec::new(),
            engine: std::env::var("LAELAPS_ENGINE").ok(),
            io_uring_refused: std::env::var("LAELAPS_IO_URING_REFUSED").ok(),
            inside: None,
        }
    }

    fn command(&self, amqp: SocketAddr, admin: SocketAddr) -> Command {
        let log = File::options().create(true).append(true).open(&self.output);
        let log = log.expect("the broker's output can be written beside its data");
        let mut command = match &self.io_uring_refused {
            None => command_in(self.inside.as_ref(), &self.exe),
            Some(errno) => {
                let mut refuse = command_in(self.inside.as_ref(), &built("refuse"));
                // As a container runtime of today, and as a sandbox that knows no newer call.
                let calls = match errno.as_str() {
                    "EPERM" => "io_uring",
                    _ => "io_uring,pwritev2,epoll_pwait2",
                };
                refuse.args([errno, calls, "--"]).arg(&self.exe);
                refuse
            }
        };
        command.arg("run").arg("--data").arg(self.data);
        command.args(["--listen", &amqp.to_string(), "--admin", &admin.to_string()]);
        command.args(["--durability", self.durability]).args(&self.args);
        if let Some(engine) = &self.engine {
            command.args(["--engine", engine]);
        }
        command.envs(self.env.iter().copied());
        command.stdin(Stdio::null());
        command.stderr(log.try_clone().expect("a file can be shared")).stdout(log);
        command
    }

    /// Starts it and waits for nothing.
    pub(crate) fn spawn(&self) -> Broker {
        let (amqp, admin) = (self.listen.unwrap_or_else(free_port), free_port());
        let child = self.command(amqp, admin).spawn().expect("the broker can be started");
        Broker { child, output: self.output.clone(), inside: self.inside.clone(), amqp, admin }
    }

    /// Starts it and waits until it serves.
    pub(crate) fn ready(&self) -> Broker {
        self.try_ready().unwrap_or_else(|said| panic!("the broker refuses to start:\n{said}"))
    }

    /// Starts it; where it ends before it serves, what it said.
    pub(crate) fn try_ready(&self) -> Result<Broker, String> {
        let mut broker = self.spawn();
        let deadline = Instant::now() + READY_WITHIN;
        while !broker.is_ready() {
            if let Some(status) = broker.child.try_wait().expect("a child can be waited for") {
                return Err(format!("{status}\n{}", tail(&broker.said())));
            }
            assert!(Instant::now() < deadline, "not ready in time:\n{}", tail(&broker.said()));
            thread::sleep(Duration::from_millis(10));
        }
        self.assert_engine(&broker);
        Ok(broker)
    }

    /// A test that runs on another engine than it means to would show nothing.
    fn assert_engine(&self, broker: &Broker) {
        let refused = self.io_uring_refused.as_ref().map(|_| "epoll");
        let expected = self.engine.as_deref().filter(|&engine| engine != "auto").or(refused);
        if let Some(engine) = expected {
            let (_, metrics) = broker.http("/metrics").expect("a broker that is ready");
            let label = format!("engine=\"{engine}\"");
            assert!(metrics.contains(&label), "the engine is not {engine}:\n{metrics}");
        }
    }

    /// Starts it and waits for its end, which the test expects: status and what it said.
    pub(crate) fn refused(&self) -> (i32, String) {
        let mut broker = self.spawn();
        let status = broker.wait_exit();
        let code = status.code().unwrap_or_else(|| panic!("ended by a signal: {status}"));
        (code, broker.said())
    }
}

impl Broker {
    /// All that it and those before it with the same data have printed.
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.output).unwrap_or_default()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A line of `/proc/PID/status`, in bytes.
    pub(crate) fn memory_bytes(&self, what: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it lives");
        let line = status.lines().find(|line| line.starts_with(what)).expect("Linux tells");
        let kib = line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok());
        kib.expect("a number") * 1024
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.http("/healthz/ready").is_some_and(|(status, _)| status == 200)
    }

    /// Status and body, or none where it does not answer.
    pub(crate) fn http(&self, path: &str) -> Option<(u16, String)> {
        match &self.inside {
            None => http_get(self.admin, path),
            Some(inside) => inside.run(|| http_get(self.admin, path)),
        }
    }

    /// SIGKILL, and its end.
    pub(crate) fn kill(mut self) {
        self.send_kill();
        self.wait_killed();
    }

    /// SIGKILL alone: a process whose requests to a file system hang ends only when they do.
    pub(crate) fn send_kill(&mut self) {
        self.child.kill().expect("a child of ours can be killed");
    }

    pub(crate) fn wait_killed(mut self) {
        self.wait_exit();
    }

    pub(crate) fn send_term(&self) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).expect("a child of ours can be signalled");
    }

    /// Any signal that leaves it there.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("a child can be signalled");
    }

    /// SIGTERM, and its end.
    pub(crate) fn stop(mut self) -> ExitStatus {
        self.send_term();
        self.wait_exit()
    }

    pub(crate) fn wait_exit(&mut self) -> ExitStatus {
        let deadline = Instant::now() + EXIT_WITHIN;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return status;
            }
            assert!(Instant::now() < deadline, "did not end in time:\n{}", tail(&self.said()));
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// A metric of one shard: the first that is listed.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let (_, text) = self.http("/metrics").expect("it answers");
        let line = text.lines().find(|line| line.starts_with(&format!("laelaps_{name}{{")));
        let value = line.and_then(|line| line.rsplit_once(' ')).expect("there is such a metric").1;
        value.parse().expect("a number")
    }

    pub(crate) fn get(&self, path: &str) -> serde_json::Value {
        let (status, body) = self.http(path).expect("the broker answers HTTP");
        assert_eq!(status, 200, "GET {path}: {body}");
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("GET {path}: {error}: {body}"))
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("---- the broker's output\n{}\n----", tail(&self.said()));
        }
        // It may have ended already; that is as good. One whose requests to a file system hang ends
        // with that file system, which the test drops after this.
        let _ = self.child.kill();
        for _ in 0..1000 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn command_in(inside: Option<&Inside>, exe: &Path) -> Command {
    inside.map_or_else(|| Command::new(exe), |inside| inside.command(exe))
}

/// A directory of a test's own on a real disk, left behind when the test fails.
pub(crate) struct Scratch {
    dir: Option<tempfile::TempDir>,
}

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        let below = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        fs::create_dir_all(&below).expect("the target directory can be written");
        let kind = rustix::fs::statfs(&below).expect("a directory has a file system").f_type;
        assert!(kind != TMPFS, "{} is in memory: set CARGO_TARGET_DIR to a disk", below.display());
        let dir = tempfile::Builder::new().prefix(name).tempdir_in(below);
        Self { dir: Some(dir.expect("a directory can be made below the target directory")) }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.as_ref().expect("it lives as long as the test").path()
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }
}

/// The `f_type` of a tmpfs.
pub(crate) const TMPFS: rustix::fs::FsWord = 0x0102_1994;

impl Drop for Scratch {
    fn drop(&mut self) {
        if thread::panicking()
            && let Some(dir) = self.dir.take()
        {
            eprintln!("left for a look: {}", dir.keep().display());
        }
    }
}

/// An address that nobody listens on, and that is given once in this process. It is below those
/// that the kernel gives to connections, one of which could take it before it is used.
pub(crate) fn free_port() -> SocketAddr {
    const FIRST: u32 = 16_000;
    const PORTS: u32 = 16_000;
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    // Other processes of tests begin elsewhere.
    let offset = std::process::id().wrapping_mul(61);
    loop {
        let given = GIVEN.fetch_add(1, Ordering::Relaxed);
        assert!(given < PORTS, "every port was given or is taken");
        let port = FIRST + offset.wrapping_add(given) % PORTS;
        let port = u16::try_from(port).expect("below 32,000");
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            return listener.local_addr().expect("a bound socket has an address");
        }
    }
}

/// Status and body, or none where nobody answers.
pub(crate) fn http_get(addr: SocketAddr, path: &str) -> Option<(u16, String)> {
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(5)))
        .build();
    let agent = ureq::Agent::new_with_config(config);
    let mut response = agent.get(format!("http://{addr}{path}")).call().ok()?;
    let mut body = String::new();
    response.body_mut().as_reader().read_to_string(&mut body).ok()?;
    Some((response.status().as_u16(), body))
}

/// A number from the environment, so that a longer run needs no other build.
pub(crate) fn knob(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(value) => value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number")),
        Err(_) => default,
    }
}

/// A tool that `tests/run` builds beside the broker.
pub(crate) fn built(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_BIN_EXE_laelaps")).with_file_name(name);
    assert!(path.exists(), "{} is missing: tests/run binaries", path.display());
    path
}

/// The last lines of a log, enough to see what went wrong.
pub(crate) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// SplitMix64: what a test leaves to chance comes from its seed, which it prints.
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }
}
