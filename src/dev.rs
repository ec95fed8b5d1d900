//! `laelaps dev`: the promise shown on this machine, needing nothing else.
//!
//! ```text
//!   1 start a broker, this same program, as a child in a scratch directory
//!   2 send messages by the built-in client over TCP; each is accepted at `sync`
//!   3 kill -9 the broker
//!   4 start it again on the same directory
//!   5 receive: every message is there, in order; settle, and close
//!   6 ask the broker: the queue is empty
//!   7 leave it running until Ctrl-C (`--once`: stop it)
//! ```
//! The child is a process of its own, so that the kill is a real one. Its log is `broker.log` in
//! the directory. Whatever is not as it should be is a failure, never a line that passes.
//!
//! Invariant: however it ends (done, failed, Ctrl-C, a closed terminal or pipe), no broker and no
//! scratch directory is left behind; only a `kill -9` of this process itself leaves them.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use amqp::connection::Sasl;
use amqp::delivery::Outcome;
use clap::Args;
use perf::client::{Client, ClientError, data_of, durable_message};
use serde_json::Value;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::fatal::Failure;
use crate::output;

mod pair;

/// What `dev` is told.
#[derive(Args)]
pub(crate) struct Options {
    /// Where to keep data and log [default: a new one in this directory, removed at the end]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Two brokers and three voters instead of one broker
    #[arg(long)]
    pair: bool,
    /// AMQP on this port, HTTP on the next [default: 5672, or free ones where that is taken]
    #[arg(long, value_name = "N")]
    base_port: Option<u16>,
    /// Messages to send
    #[arg(long, value_name = "N", default_value_t = 1000,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    messages: u32,
    /// Stop after the demonstration
    #[arg(long)]
    once: bool,
}

/// The queue of the demonstration.
const QUEUE: &str = "demo";

/// No step may take longer.
const STEP_WITHIN: Duration = Duration::from_secs(30);

/// Messages that the broker may send ahead of our settlements.
const CREDIT: u32 = 200;

/// `laelaps dev`.
pub(crate) fn dev(options: &Options) -> Result<(), Failure> {
    let asked = Asked::listen()?;
    // What a signal interrupts fails in many ways; they all mean the same.
    let shown =
        if options.pair { pair::run(options, &asked) } else { demonstrate(options, &asked) };
    shown.map_err(|failure| asked.check().err().unwrap_or(failure))
}

fn demonstrate(options: &Options, asked: &Asked) -> Result<(), Failure> {
    let ports = Ports::choose(options.base_port)?;
    let scratch = Scratch::new(options.dir.as_deref())?;
    let count = options.messages;
    let broker = Broker::start(&scratch.path, ports, asked)?;
    say(format_args!(
        "broker     process {} on {}, data in {}",
        broker.id(),
        ports.amqp,
        scratch.show()
    ))?;

    send(ports.amqp, count, asked)?;
    say(format_args!("sent       {count} durable messages to `{QUEUE}`: each one accepted"))?;
    let killed = broker.id();
    broker.kill()?;
    say(format_args!("killed     process {killed} with SIGKILL"))?;

    let mut broker = Broker::start(&scratch.path, ports, asked)?;
    say(format_args!("restarted  as process {}", broker.id()))?;
    receive(ports.amqp, count, asked)?;
    say(format_args!("received   {count} messages, in order, none twice; each one settled"))?;
    let left = available(ports.admin)?;
    if left != 0 {
        return Err(Failure::command(format!("`{QUEUE}` still has {left} messages after that")));
    }
    say(format_args!("queue      `{QUEUE}` is empty"))?;
    if !options.once {
        say(format_args!(
            "\nThe broker goes on: amqp://{} and http://{}. Ctrl-C stops it.",
            ports.amqp, ports.admin
        ))?;
        asked.wait(&mut broker)?;
    }
    broker.stop()
}

/// Print a line. A reader that is gone ends us as a failure does: with nothing left behind.
fn say(text: std::fmt::Arguments<'_>) -> Result<(), Failure> {
    writeln!(std::io::stdout(), "{text}")
        .map_err(|error| Failure::command(format!("standard output: {error}")))
}

/// Whether somebody asked us to stop: seen between steps, so that the broker goes with us.
struct Asked(Arc<AtomicBool>);

impl Asked {
    fn listen() -> Result<Self, Failure> {
        let asked = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&asked))
                .map_err(|error| Failure::command(format!("signals cannot be handled: {error}")))?;
        }
        Ok(Self(asked))
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Fails once we are asked to stop in the middle of a step.
    fn check(&self) -> Result<(), Failure> {
        if self.is_set() { Err(Failure::command("stopped before it was done")) } else { Ok(()) }
    }

    /// Until we are asked to stop, as long as the broker runs.
    fn wait(&self, broker: &mut Broker) -> Result<(), Failure> {
        while !self.is_set() {
            if let Ok(Some(status)) = broker.child.try_wait() {
                return Err(broker.failure(&format!("ended by itself with {status}")));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}

/// A directory, removed at the end if we made it.
struct Scratch {
    path: PathBuf,
    ours: bool,
}

impl Scratch {
    fn new(wanted: Option<&Path>) -> Result<Self, Failure> {
        let ours = wanted.is_none();
        let path = wanted.map_or_else(
            || PathBuf::from(format!("laelaps-dev-{}", std::process::id())),
            Path::to_owned,
        );
        // What we remove at the end, we must have made.
        let made = if ours { fs::create_dir(&path) } else { fs::create_dir_all(&path) };
        made.map_err(|error| {
            let path = path.display();
            Failure::command(format!("{path} cannot be made: {error}; choose another by --dir"))
        })?;
        Ok(Self { path, ours })
    }

    fn show(&self) -> std::path::Display<'_> {
        self.path.display()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            eprintln!("laelaps: {} is left behind: {error}", self.path.display());
        }
    }
}

/// Where the broker answers.
#[derive(Clone, Copy)]
struct Ports {
    amqp: SocketAddr,
    admin: SocketAddr,
}

impl Ports {
    const BASE: u16 = 5672;

    fn choose(base: Option<u16>) -> Result<Self, Failure> {
        let on = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let pair = |base: u16| Self { amqp: on(base), admin: on(base + 1) };
        match base {
            // Whoever is there already would answer in the place of our broker.
            Some(base @ 1..=65_534) if !pair(base).are_free() => Err(Failure::command(format!(
                "--base-port {base}: port {base} or {} is taken; choose another, or none",
                base + 1
            ))),
            Some(base @ 1..=65_534) => Ok(pair(base)),
            Some(base) => Err(Failure::command(format!("--base-port {base}: 1 to 65534"))),
            None if pair(Self::BASE).are_free() => Ok(pair(Self::BASE)),
            None => Self::free().map_err(|error| {
                Failure::command(format!("no free port on {}: {error}", Ipv4Addr::LOCALHOST))
            }),
        }
    }

    fn are_free(self) -> bool {
        TcpListener::bind(self.amqp).is_ok() && TcpListener::bind(self.admin).is_ok()
    }

    fn free() -> std::io::Result<Self> {
        let any = (Ipv4Addr::LOCALHOST, 0);
        let (amqp, admin) = (TcpListener::bind(any)?, TcpListener::bind(any)?);
        Ok(Self { amqp: amqp.local_addr()?, admin: admin.local_addr()? })
    }
}

/// A broker that runs as a child.
struct Broker {
    child: Child,
    log: PathBuf,
}

impl Broker {
    fn start(scratch: &Path, ports: Ports, asked: &Asked) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| {
            Failure::command(format!("the broker cannot be started: {error}"))
        };
        let log = scratch.join("broker.log");
        let sink = File::options().create(true).append(true).open(&log).map_err(failed)?;
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.arg("run").arg("--data").arg(scratch.join("data"));
        command.args(["--listen", &ports.amqp.to_string(), "--admin", &ports.admin.to_string()]);
        // Scratch directories are often small and sometimes in memory; a kill is survived there
        // too.
        command.args(["--segment-size", "4 MiB", "--allow-volatile"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(sink);
        // Ctrl-C is for us: a second signal from the terminal would cut its goodbye short.
        command.process_group(0);
        let child = command.spawn().map_err(failed)?;
        let mut broker = Self { child, log };
        broker.wait_ready(ports, asked)?;
        Ok(broker)
    }

    fn id(&self) -> u32 {
        self.child.id()
    }

    fn wait_ready(&mut self, ports: Ports, asked: &Asked) -> Result<(), Failure> {
        let url = format!("http://{}/healthz/ready", ports.admin);
        let step = Duration::from_millis(20);
        for _ in 0..STEP_WITHIN.as_millis() / step.as_millis() {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(self.failure(&format!("ended with {status}")));
            }
            if http().get(&url).call().is_ok() {
                return Ok(());
            }
            asked.check()?;
            std::thread::sleep(step);
        }
        Err(self.failure(&format!("was not ready within {} s", STEP_WITHIN.as_secs())))
    }

    /// What happened, with the last lines of its log.
    fn failure(&self, what: &str) -> Failure {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(5).collect();
        let tail: Vec<&str> = lines.into_iter().rev().collect();
        Failure::command(format!("the broker {what}; the end of its log:\n{}", tail.join("\n")))
    }

    fn kill(mut self) -> Result<(), Failure> {
        self.child
            .kill()
            .and_then(|()| self.child.wait())
            .map(drop)
            .map_err(|error| Failure::command(format!("the broker could not be killed: {error}")))
    }

    /// Stop it as an operator would, and see that it ends well.
    fn stop(mut self) -> Result<(), Failure> {
        let failed = |error: std::io::Error| {
            Failure::command(format!("the broker could not be stopped: {error}"))
        };
        if self.child.try_wait().map_err(failed)?.is_none() {
            let id = self.child.id().to_string();
            Command::new("kill").args(["-TERM", &id]).status().map_err(failed)?;
        }
        let status = self.child.wait().map_err(failed)?;
        if !status.success() {
            return Err(self.failure(&format!("did not stop well: {status}")));
        }
        output::line(format_args!("stopped    in order"));
        Ok(())
    }
}

impl Drop for Broker {
    /// No broker is left behind by a demonstration that failed.
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) && self.child.kill().is_ok() {
            drop(self.child.wait());
        }
    }
}

/// To our own broker, never by a proxy that the environment names.
fn http() -> ureq::Agent {
    ureq::Agent::config_builder().proxy(None).timeout_global(Some(STEP_WITHIN)).build().into()
}

fn client_failure(error: ClientError) -> Failure {
    Failure::command(format!("the built-in client: {error}"))
}

fn connect(addr: SocketAddr) -> Result<Client, Failure> {
    Client::connect(addr, "laelaps-dev", Sasl::Anonymous, STEP_WITHIN).map_err(client_failure)
}

fn body(number: u32) -> Vec<u8> {
    format!("message {number}").into_bytes()
}

/// Send them all, then count the answers.
fn send(addr: SocketAddr, count: u32, asked: &Asked) -> Result<(), Failure> {
    let mut client = connect(addr)?;
    let link = client.sender(QUEUE).map_err(client_failure)?;
    for number in 0..count {
        asked.check()?;
        client.send(link, &durable_message(&body(number))).map_err(client_failure)?;
    }
    for _ in 0..count {
        asked.check()?;
        match client.next_outcome().map_err(client_failure)? {
            (_, Outcome::Accepted) => {}
            (_, other) => {
                return Err(Failure::command(format!("a message was not accepted: {other:?}")));
            }
        }
    }
    // No close: the broker is killed in the middle of the connection.
    Ok(())
}

/// Receive them all and compare each with what it should be.
fn receive(addr: SocketAddr, count: u32, asked: &Asked) -> Result<(), Failure> {
    let mut client = connect(addr)?;
    let link = client.receiver(QUEUE, CREDIT).map_err(client_failure)?;
    for number in 0..count {
        asked.check()?;
        let received = client.receive().map_err(client_failure)?;
        if data_of(&received.message) != Some(&body(number)) {
            return Err(Failure::command(format!(
                "expected message {number}, but got {:?}",
                data_of(&received.message).map(String::from_utf8_lossy)
            )));
        }
        client.accept(&received);
        client.grant(link, CREDIT);
    }
    client.close().map_err(client_failure)
}

/// Messages that the broker says are in the queue.
fn available(admin: SocketAddr) -> Result<u64, Failure> {
    let url = format!("http://{admin}/api/v1/queues/{QUEUE}");
    let failed = |error: ureq::Error| Failure::command(format!("{url}: {error}"));
    let stat: Value =
        http().get(&url).call().map_err(failed)?.body_mut().read_json().map_err(failed)?;
    let count = |key: &str| stat[key].as_u64();
    match (count("available"), count("acquired")) {
        (Some(available), Some(acquired)) => Ok(available + acquired),
        (None, _) | (_, None) => Err(Failure::command(format!("{url}: no counts in {stat}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_port_that_somebody_holds_is_refused() {
        let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = holder.local_addr().expect("bound").port();
        let refused = Ports::choose(Some(port)).map(drop).expect_err("taken");
        assert!(refused.message.contains("is taken"), "{refused}");
    }

    #[test]
    fn a_directory_that_was_there_is_never_removed() {
        let root = tempfile::tempdir().expect("a directory");
        let mine = root.path().join("mine");
        fs::create_dir(&mine).expect("made");
        drop(Scratch::new(Some(&mine)).expect("taken as it is"));
        assert!(mine.exists());
    }
}
