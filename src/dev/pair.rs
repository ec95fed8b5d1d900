//! `laelaps dev --pair`: two brokers and three voters on loopback, and what becomes of them.
//!
//! ```text
//!   base      AMQP and HTTP of a, AMQP and HTTP of b
//!   base + 4  replication of a, of b
//!   base + 6  the voters
//!
//!   DIR/dev.json   {"nodes": [{"id", "kind", "pid", "amqp", "admin", "replication"}]}
//! ```
//! Each child is a process of its own, with a directory, a configuration and a log in DIR; a voter
//! or broker that is killed is started again after a pause, so that a rejoin is seen too. What
//! changes of the roles is a line. With `--once` a failover is shown: send, kill -9 the live,
//! receive from the other one, wait until the killed one is in sync again, stop.
//!
//! Invariant: as for a single broker, nothing is left behind however it ends.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Asked, Options, STEP_WITHIN, Scratch, http, receive, say, send};
use crate::driver::clock;
use crate::fatal::Failure;

/// Ports that are taken, from the base on.
const PORTS: u16 = 9;
/// What is looked at so often.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A child that ended stays away for so long.
const REST: Duration = Duration::from_secs(3);
const VOTERS: usize = 3;
const NAMES: [&str; 2] = ["a", "b"];

/// `laelaps dev --pair`.
pub(super) fn run(options: &Options, asked: &Asked) -> Result<(), Failure> {
    let ports = choose(options.base_port)?;
    let scratch = Scratch::new(options.dir.as_deref())?;
    let mut nodes = Nodes::start(&scratch, &ports)?;
    let live = nodes.wait_in_sync(asked)?;
    for node in &nodes.all {
        let (kind, at) = (node.kind, node.amqp.unwrap_or(node.replication));
        say(format_args!("{kind:<7} {:<8} process {} on {at}", node.id, node.child.id()))?;
    }
    let (a, b) = (nodes.amqp(0), nodes.amqp(1));
    say(format_args!("clients  failover:(amqp://{a},amqp://{b})"))?;
    say(format_args!("live     {}; data, logs and dev.json in {}", NAMES[live], scratch.show()))?;
    if options.once {
        nodes.show_failover(options.messages, live, asked)?;
    } else {
        say(format_args!("\nKill the live with `kill -9`, and see. Ctrl-C stops all of them."))?;
        nodes.watch(asked)?;
    }
    nodes.stop()
}

fn choose(base: Option<u16>) -> Result<Vec<SocketAddr>, Failure> {
    let on = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let from = |base: u16| -> Vec<SocketAddr> { (base..base + PORTS).map(on).collect() };
    let are_free = |ports: &[SocketAddr]| ports.iter().all(|port| TcpListener::bind(port).is_ok());
    match base {
        Some(base) if base == 0 || base > u16::MAX - PORTS => {
            Err(Failure::command(format!("--base-port {base}: 1 to {}", u16::MAX - PORTS)))
        }
        Some(base) if !are_free(&from(base)) => {
            let last = base + PORTS - 1;
            let message = format!("--base-port {base}: a port from there to {last} is taken");
            Err(Failure::command(message))
        }
        Some(base) => Ok(from(base)),
        None if are_free(&from(5672)) => Ok(from(5672)),
        None => {
            let bound: std::io::Result<Vec<TcpListener>> =
                (0..PORTS).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect();
            bound
                .and_then(|all| all.iter().map(TcpListener::local_addr).collect())
                .map_err(|error| Failure::command(format!("no free ports: {error}")))
        }
    }
}

/// A broker or voter.
struct Node {
    id: String,
    kind: &'static str,
    arguments: Vec<String>,
    log: PathBuf,
    child: Child,
    amqp: Option<SocketAddr>,
    admin: Option<SocketAddr>,
    replication: SocketAddr,
    /// It ended, and is started again then.
    back_at: Option<Instant>,
}

impl Node {
    fn json(&self) -> Value {
        let text = |addr: Option<SocketAddr>| addr.map(|addr| addr.to_string());
        json!({
            "id": self.id,
            "kind": self.kind,
            "pid": self.child.id(),
            "amqp": text(self.amqp),
            "admin": text(self.admin),
            "replication": self.replication.to_string(),
        })
    }

    fn failure(&self, what: &str) -> Failure {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(5)..].join("\n");
        Failure::command(format!("{} {what}; the end of its log:\n{tail}", self.id))
    }
}

fn spawn(arguments: &[String], log: &PathBuf) -> Result<Child, Failure> {
    let failed =
        |error: std::io::Error| Failure::command(format!("a process cannot be started: {error}"));
    let sink = File::options().create(true).append(true).open(log).map_err(failed)?;
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(sink);
    // Ctrl-C is for us.
    command.process_group(0).spawn().map_err(failed)
}

/// All of them: the brokers first.
struct Nodes {
    all: Vec<Node>,
    dev_json: PathBuf,
}

impl Nodes {
    fn start(scratch: &Scratch, ports: &[SocketAddr]) -> Result<Self, Failure> {
        let directory = std::path::absolute(&scratch.path)
            .map_err(|error| Failure::command(format!("{}: {error}", scratch.show())))?;
        let write = |name: String, text: String| {
            let path = directory.join(name);
            fs::write(&path, text)
                .map(|()| path.display().to_string())
                .map_err(|error| Failure::command(format!("{}: {error}", path.display())))
        };
        let voters: Vec<String> = ports[6..6 + VOTERS].iter().map(SocketAddr::to_string).collect();
        let mut nodes = Self { all: Vec::new(), dev_json: directory.join("dev.json") };
        for (at, id) in NAMES.into_iter().enumerate() {
            let text = format!(
                "data = {:?}\nlisten = \"{}\"\nadmin = \"{}\"\nsegment-size = \"4 MiB\"\n\
                 allow-volatile = true\n[ha]\npair = \"dev\"\nnode = \"{id}\"\n\
                 replication = \"{}\"\npeer = \"{}\"\nvoters = {voters:?}\n",
                directory.join(format!("data-{id}")),
                ports[2 * at],
                ports[2 * at + 1],
                ports[4 + at],
                ports[5 - at],
            );
            let config = write(format!("{id}.toml"), text)?;
            let arguments = vec!["run".to_owned(), "--config".to_owned(), config];
            nodes.add(Node {
                log: directory.join(format!("{id}.log")),
                child: spawn(&arguments, &directory.join(format!("{id}.log")))?,
                id: id.to_owned(),
                kind: "broker",
                arguments,
                amqp: Some(ports[2 * at]),
                admin: Some(ports[2 * at + 1]),
                replication: ports[4 + at],
                back_at: None,
            });
        }
        for seat in 1..=VOTERS {
            let list: String =
                voters.iter().map(|addr| format!("[[voter]]\naddress = \"{addr}\"\n")).collect();
            let data = directory.join(format!("voter-{seat}"));
            let text = format!("seat = {seat}\ndata = {data:?}\nallow-volatile = true\n{list}");
            let config = write(format!("voter-{seat}.toml"), text)?;
            let arguments = vec!["voter".to_owned(), "--config".to_owned(), config];
            let log = directory.join(format!("voter-{seat}.log"));
            nodes.add(Node {
                child: spawn(&arguments, &log)?,
                log,
                id: format!("voter-{seat}"),
                kind: "voter",
                arguments,
                amqp: None,
                admin: None,
                replication: ports[5 + seat],
                back_at: None,
            });
        }
        nodes.write_down()?;
        Ok(nodes)
    }

    fn add(&mut self, node: Node) {
        self.all.push(node);
    }

    fn write_down(&self) -> Result<(), Failure> {
        let nodes: Vec<Value> = self.all.iter().map(Node::json).collect();
        let new = self.dev_json.with_extension("new");
        fs::write(&new, format!("{:#}\n", json!({ "nodes": nodes })))
            .and_then(|()| fs::rename(&new, &self.dev_json))
            .map_err(|error| Failure::command(format!("{}: {error}", self.dev_json.display())))
    }

    fn amqp(&self, at: usize) -> SocketAddr {
        self.all[at].amqp.expect("a broker")
    }

    /// What a broker says of its pair.
    fn status(&self, at: usize) -> Option<Value> {
        let url = format!("http://{}/api/v1/ha", self.all[at].admin?);
        http().get(&url).call().ok()?.body_mut().read_json().ok()
    }

    fn live(&self) -> Option<usize> {
        (0..2).find(|at| self.status(*at).is_some_and(|status| status["role"] == "live"))
    }

    fn wait_in_sync(&mut self, asked: &Asked) -> Result<usize, Failure> {
        let since = clock();
        loop {
            let status: Vec<Value> = (0..2).filter_map(|at| self.status(at)).collect();
            let ready = status.iter().filter(|status| status["ready"] == true).count();
            if let Some(live) = self.live().filter(|_| ready == 2) {
                return Ok(live);
            }
            self.keep_up()?;
            asked.check()?;
            if clock() >= since + STEP_WITHIN {
                return Err(self.all[0].failure("is not in a pair that is in sync"));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Starts those again that ended a while ago.
    fn keep_up(&mut self) -> Result<(), Failure> {
        let mut changed = false;
        for node in &mut self.all {
            let is_gone = matches!(node.child.try_wait(), Ok(Some(_)));
            match node.back_at {
                None if is_gone => {
                    say(format_args!("ended    {}", node.id))?;
                    node.back_at = Some(clock() + REST);
                }
                Some(at) if at <= clock() => {
                    node.child = spawn(&node.arguments, &node.log)?;
                    node.back_at = None;
                    changed = true;
                    say(format_args!("started  {} as process {}", node.id, node.child.id()))?;
                }
                Some(_) | None => {}
            }
        }
        if changed { self.write_down() } else { Ok(()) }
    }

    /// Says what changes, until it is asked to stop.
    fn watch(&mut self, asked: &Asked) -> Result<(), Failure> {
        let mut said = String::new();
        while !asked.is_set() {
            self.keep_up()?;
            let now = match self.live().and_then(|live| Some((live, self.status(live)?))) {
                Some((live, status)) => {
                    let in_sync = status["in_sync"].as_array().map_or(0, Vec::len);
                    format!("live     {}, {in_sync} in sync", NAMES[live])
                }
                None => "live     nobody".to_owned(),
            };
            if now != said {
                say(format_args!("{now}"))?;
                said = now;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// What was accepted by one is received from the other.
    fn show_failover(&mut self, count: u32, live: usize, asked: &Asked) -> Result<(), Failure> {
        send(self.amqp(live), count, asked)?;
        say(format_args!("sent     {count} messages to {}: each one accepted", NAMES[live]))?;
        let killed_at = clock();
        let killed = self.all[live].child.kill();
        killed.map_err(|error| Failure::command(format!("it could not be killed: {error}")))?;
        say(format_args!("killed   {} with SIGKILL", NAMES[live]))?;
        let other = 1 - live;
        while self.live() != Some(other) || TcpListener::bind(self.amqp(other)).is_ok() {
            asked.check()?;
            if clock() >= killed_at + STEP_WITHIN {
                return Err(self.all[other].failure("did not take over"));
            }
            std::thread::sleep(LOOK_EVERY);
        }
        let took = (clock() - killed_at).as_millis();
        say(format_args!("live     {} after {took} ms", NAMES[other]))?;
        receive(self.amqp(other), count, asked)?;
        say(format_args!("received {count} messages from {}, in order", NAMES[other]))?;
        self.wait_in_sync(asked)?;
        say(format_args!("in sync  {} follows {}", NAMES[live], NAMES[other]))
    }

    /// Stops them as an operator would: backup, live, voters.
    fn stop(mut self) -> Result<(), Failure> {
        let live = self.live().unwrap_or(0);
        let mut order = vec![1 - live, live];
        order.extend(2..self.all.len());
        for at in order {
            let node = &mut self.all[at];
            if !matches!(node.child.try_wait(), Ok(None)) {
                continue;
            }
            let failed = |error: std::io::Error| {
                Failure::command(format!("a process could not be stopped: {error}"))
            };
            let id = node.child.id().to_string();
            Command::new("kill").args(["-TERM", &id]).status().map_err(failed)?;
            node.child.wait().map_err(failed)?;
        }
        say(format_args!("stopped  in order"))
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for node in &mut self.all {
            if matches!(node.child.try_wait(), Ok(None)) && node.child.kill().is_ok() {
                drop(node.child.wait());
            }
        }
    }
}
