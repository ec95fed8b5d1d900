//! A broker of our own as a child process: started on free ports, watched until ready, ended.
//!
//! ```text
//!   Scratch::new(--dir) ─▶ Broker::start ─ spawn ─▶ GET /healthz/ready until 200 ─▶ running
//!      removed when           │    ▲                                                  │
//!      dropped                │    └── on the same data again ──── kill: SIGKILL ─────┤
//!                             └ ends, or takes too long: its last lines    stop: SIGTERM
//! ```
//! It is this very binary (`current_exe`) unless the plan names another, listens on loopback alone,
//! and logs into a file of the scratch directory.
//!
//! Invariant: however a command ends, but for a SIGKILL of itself, no broker and no directory of
//! its own is left behind. For that, whoever starts one looks at [`Interrupt`] between its steps.
//!
//! Failure: in words, with the end of the broker's log.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::command::Failure;
use crate::load::Target;

/// A start that takes longer has failed, unless the plan says otherwise.
pub const READY_WITHIN: Duration = Duration::from_secs(60);

/// A stop that takes longer becomes a kill.
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// How often a starting broker is asked: the error of a time to ready.
const ASK_EVERY: Duration = Duration::from_millis(1);

/// Somebody else may take a port between our look and the broker's.
const PORT_TRIES: u32 = 3;

/// What to start.
#[derive(Clone, Debug)]
pub struct BrokerPlan {
    /// The binary.
    pub exe: PathBuf,
    /// Its data directory; the log is beside it.
    pub data: PathBuf,
    /// More flags of `laelaps run`, such as `--durability async`.
    pub flags: Vec<String>,
    /// How long it may take to be ready.
    pub ready_within: Duration,
}

impl BrokerPlan {
    /// This binary, on this directory.
    ///
    /// # Errors
    /// The kernel does not tell our own path.
    pub fn new(data: PathBuf) -> Result<Self, Failure> {
        let exe = std::env::current_exe()
            .map_err(|error| format!("the path of this binary is not known: {error}"))?;
        Ok(Self { exe, data, flags: Vec::new(), ready_within: READY_WITHIN })
    }

    fn log(&self) -> PathBuf {
        self.data.with_extension("log")
    }
}

/// A broker that runs.
#[derive(Debug)]
pub struct Broker {
    child: Child,
    log: PathBuf,
    addr: SocketAddr,
    admin: SocketAddr,
    began: Instant,
    ready_after: Duration,
}

impl Broker {
    /// Starts it and waits until it serves.
    ///
    /// # Errors
    /// It cannot be started, ends, or is not ready in time; or we are interrupted.
    pub fn start(plan: &BrokerPlan, interrupt: &Interrupt) -> Result<Self, Failure> {
        let mut tries = PORT_TRIES;
        loop {
            tries -= 1;
            match Self::try_start(plan, interrupt) {
                Err(NotStarted::PortTaken) if tries > 0 => {}
                Err(NotStarted::PortTaken) => return Err("no free port on loopback".into()),
                Err(NotStarted::Failed(failure)) => return Err(failure),
                Ok(broker) => return Ok(broker),
            }
        }
    }

    fn try_start(plan: &BrokerPlan, interrupt: &Interrupt) -> Result<Self, NotStarted> {
        let failed = |what: String| NotStarted::Failed(what.into());
        let [addr, admin] = free_ports().map_err(|error| failed(format!("loopback: {error}")))?;
        let mut broker = Self::spawn(plan, addr, admin).map_err(NotStarted::Failed)?;
        broker.wait_ready(plan.ready_within, interrupt)?;
        Ok(broker)
    }

    /// Starts it on these addresses, and does not wait.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn spawn(
        plan: &BrokerPlan,
        addr: SocketAddr,
        admin: SocketAddr,
    ) -> Result<Self, Failure> {
        let log = plan.log();
        let sink = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(|error| format!("{}: {error}", log.display()))?;
        let mut command = Command::new(&plan.exe);
        command.arg("run").arg("--data").arg(&plan.data);
        command.args(["--listen", &addr.to_string(), "--admin", &admin.to_string()]);
        command.args(&plan.flags);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(sink);
        // A signal of the terminal is for us: we end the broker in our own time.
        command.process_group(0);
        let began = clock();
        let child = command
            .spawn()
            .map_err(|error| format!("{} cannot be started: {error}", plan.exe.display()))?;
        Ok(Self { child, log, addr, admin, began, ready_after: Duration::ZERO })
    }

    /// Until it serves, or is in sync.
    ///
    /// # Errors
    /// It ends, or is not ready in time; or we are interrupted.
    pub(crate) fn wait(&mut self, plan: &BrokerPlan, interrupt: &Interrupt) -> Result<(), Failure> {
        self.wait_ready(plan.ready_within, interrupt).map_err(|failed| match failed {
            NotStarted::PortTaken => self.failure("cannot listen: its port was taken"),
            NotStarted::Failed(failure) => failure,
        })
    }

    fn wait_ready(&mut self, within: Duration, interrupt: &Interrupt) -> Result<(), NotStarted> {
        /// The exit status of a broker that cannot listen (`docs/operating/exit-statuses.md`).
        const LISTEN_FAILED: i32 = 6;
        while !is_ready(self.admin) {
            if let Ok(Some(status)) = self.child.try_wait() {
                if status.code() == Some(LISTEN_FAILED) {
                    return Err(NotStarted::PortTaken);
                }
                return Err(NotStarted::Failed(self.failure(&format!("ended with {status}"))));
            }
            if self.began.elapsed() > within {
                let what = format!("was not ready within {} s", within.as_secs());
                return Err(NotStarted::Failed(self.failure(&what)));
            }
            interrupt.check().map_err(NotStarted::Failed)?;
            std::thread::sleep(ASK_EVERY);
        }
        self.ready_after = self.began.elapsed();
        Ok(())
    }

    /// Its process.
    #[must_use]
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Where it serves AMQP.
    #[must_use]
    pub fn target(&self) -> Target {
        Target::new(self.addr)
    }

    /// Where it serves HTTP.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// How long it took from its start until it served.
    #[must_use]
    pub fn ready_after(&self) -> Duration {
        self.ready_after
    }

    /// SIGKILL, and its end.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn kill(mut self) -> Result<(), Failure> {
        self.child
            .kill()
            .and_then(|()| self.child.wait())
            .map(drop)
            .map_err(|error| format!("the broker could not be killed: {error}").into())
    }

    /// SIGTERM, and its end, as an operator would.
    ///
    /// # Errors
    /// It does not end, or not well.
    pub fn stop(mut self) -> Result<(), Failure> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)
            .map_err(|error| format!("the broker could not be signalled: {error}"))?;
        let began = clock();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => {
                    return Err(self.failure(&format!("did not stop well: {status}")));
                }
                Ok(None) if began.elapsed() < STOP_WITHIN => std::thread::sleep(10 * ASK_EVERY),
                Ok(None) => return Err(self.failure("did not stop in time")),
                Err(error) => return Err(format!("the broker: {error}").into()),
            }
        }
    }

    /// What happened, with the last lines of its log.
    fn failure(&self, what: &str) -> Failure {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(5).collect();
        let tail: Vec<&str> = lines.into_iter().rev().collect();
        format!("the broker {what}; the end of its log:\n{}", tail.join("\n")).into()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) && self.child.kill().is_ok() {
            drop(self.child.wait());
        }
    }
}

enum NotStarted {
    PortTaken,
    Failed(Failure),
}

/// Ports of loopback that nobody listens on at this moment.
pub(crate) fn free_ports<const N: usize>() -> std::io::Result<[SocketAddr; N]> {
    // All are held until all are known, so that none comes twice.
    let mut held = Vec::with_capacity(N);
    let mut found = [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)); N];
    for addr in &mut found {
        let listener = TcpListener::bind(*addr)?;
        *addr = listener.local_addr()?;
        held.push(listener);
    }
    Ok(found)
}

/// What a broker's admin address answers to a request without a body: status line, headers, body.
pub(crate) fn ask(admin: SocketAddr, request: &str, within: Duration) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&admin, within)?;
    stream.set_read_timeout(Some(within))?;
    write!(
        stream,
        "{request} HTTP/1.1\r\nHost: {admin}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Whether the answer to a request says that it went well.
pub(crate) fn is_well(answer: &str) -> bool {
    answer.starts_with("HTTP/1.1 200")
}

/// Whether a broker's admin address says that it serves.
fn is_ready(admin: SocketAddr) -> bool {
    const WITHIN: Duration = Duration::from_secs(1);
    ask(admin, "GET /healthz/ready", WITHIN).is_ok_and(|answer| is_well(&answer))
}

/// A directory of our own, removed in the end.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// A new directory below `parent`.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new(parent: &Path) -> Result<Self, Failure> {
        let path = parent.join(format!("laelaps-perf-{}", std::process::id()));
        fs::create_dir(&path).map_err(|error| {
            format!("{} cannot be made: {error}; choose another place by --dir", path.display())
        })?;
        Ok(Self { path })
    }

    /// A path in it.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("laelaps: {} is left behind: {error}", self.path.display());
        }
    }
}

/// Whether somebody asked us to stop: looked at between steps, so that what we started goes with
/// us.
#[derive(Clone, Debug)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Takes SIGINT, SIGTERM and SIGHUP.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn listen() -> Result<Self, Failure> {
        let asked = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&asked))
                .map_err(|error| format!("signals cannot be handled: {error}"))?;
        }
        Ok(Self(asked))
    }

    /// Nobody asks; signals do what they always do.
    #[must_use]
    pub fn never() -> Self {
        Self(Arc::default())
    }

    /// Whether it happened.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Fails once it happened.
    ///
    /// # Errors
    /// It did.
    pub fn check(&self) -> Result<(), Failure> {
        if self.is_set() { Err("stopped before it was done".into()) } else { Ok(()) }
    }
}

#[expect(clippy::disallowed_methods, reason = "a child process is waited for by a real clock")]
fn clock() -> Instant {
    Instant::now()
}
