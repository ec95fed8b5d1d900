//! Foreign producers and consumers under the broker, and what they say happened.
//!
//! ```text
//!   Load::start ──spawn──▶ load.py / load.js ──JSON lines──▶ reader thread ──▶ events
//!   Address::set(port)     a new incarnation of the broker is there; clients connect to it
//!   Address::clear()       none is
//!   Load::finish           standard input closes; the client answers for what it has, and ends
//! ```
//!
//! The lines are described in `tests/clients/README.md`. A client that ends by itself, prints
//! what nobody understands or does not finish in time fails the test.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::Value;

const FINISH_WITHIN: Duration = Duration::from_secs(60);

/// One line of a client.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Event {
    /// `CLOCK_MONOTONIC`.
    pub(crate) t: u64,
    #[serde(flatten)]
    pub(crate) what: What,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "ev", rename_all = "lowercase")]
pub(crate) enum What {
    Up,
    Down,
    Sent { id: String, q: String, inc: u64 },
    Accepted { id: String, q: String, inc: u64 },
    Refused { id: String, why: String },
    Attached { inc: u64, link: String },
    Detached,
    BrokenOff { q: String },
    Received(Received),
    Outcome { id: String, link: String, kind: Kind },
    Confirmed { id: String, link: String, by: String },
    Drained,
    Error { who: String, why: String },
    Done,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Received {
    pub(crate) id: String,
    pub(crate) q: String,
    pub(crate) inc: u64,
    pub(crate) link: String,
    pub(crate) fa: bool,
    pub(crate) dc: u64,
    pub(crate) whole: bool,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Accepted,
    Released,
    Failed,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Client {
    Proton,
    Rhea,
}

impl Client {
    /// The command that runs one of this client's programs.
    pub(crate) fn command(self, program: &str) -> Command {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients");
        match self {
            Self::Proton => {
                let python = fetched("python/bin/python");
                let mut command = Command::new(python);
                command.arg(sources.join("proton").join(program).with_extension("py"));
                command
            }
            Self::Rhea => {
                let mut command = Command::new("node");
                command.arg(sources.join("rhea").join(program).with_extension("js"));
                command
            }
        }
    }
}

/// What `tests/run clients` has fetched.
pub(crate) fn fetched(name: &str) -> PathBuf {
    let dir = std::env::var("LAELAPS_CLIENTS").map_or_else(
        |_| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/clients"),
        PathBuf::from,
    );
    let path = dir.join(name);
    assert!(path.exists(), "{} is missing: tests/run packages clients", path.display());
    path
}

/// The file that tells the clients where the broker is, and which incarnation it is.
pub(crate) struct Address {
    path: PathBuf,
    incarnation: u64,
}

impl Address {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, incarnation: 0 }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A new incarnation listens on `at`.
    pub(crate) fn set(&mut self, at: SocketAddr) {
        self.incarnation += 1;
        let new = self.path.with_extension("new");
        fs::write(&new, format!("{} {}", self.incarnation, at.port()))
            .and_then(|()| fs::rename(&new, &self.path))
            .expect("the address file can be written");
    }

    pub(crate) fn clear(&self) {
        fs::remove_file(&self.path).expect("the address file was there");
    }
}

pub(crate) struct Load {
    name: &'static str,
    child: Child,
    reader: Option<JoinHandle<()>>,
    events: Arc<Mutex<Vec<Event>>>,
}

impl Load {
    /// Starts one client's roles; `address` is filled in.
    pub(crate) fn start(client: Client, mut spec: Value, address: &Path) -> Self {
        spec["address"] = Value::from(address.to_string_lossy());
        let mut command = client.command("load");
        command.arg(spec.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{client:?}: {error}"));
        let stdout = BufReader::new(child.stdout.take().expect("its output is piped"));
        let events = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&events);
        let reader = thread::Builder::new().name("events".into()).spawn(move || {
            for line in stdout.lines() {
                let line = line.expect("a client prints text");
                let event = serde_json::from_str(&line)
                    .unwrap_or_else(|error| panic!("not an event ({error}): {line}"));
                into.lock().expect("no reader panics with the lock").push(event);
            }
        });
        let name = match client {
            Client::Proton => "proton",
            Client::Rhea => "rhea",
        };
        Self { name, child, reader: Some(reader.expect("a thread can be started")), events }
    }

    /// How many events so far are of a kind.
    pub(crate) fn count(&self, of: impl Fn(&What) -> bool) -> usize {
        let events = self.events.lock().expect("no reader panics with the lock");
        events.iter().filter(|event| of(&event.what)).count()
    }

    pub(crate) fn assert_running(&mut self) {
        let ended = self.child.try_wait().expect("a child can be waited for");
        assert!(ended.is_none(), "the {} client ended by itself: {ended:?}", self.name);
    }

    /// Lets it answer for what it has, waits for its end, and hands out all its events.
    pub(crate) fn finish(mut self) -> Vec<Event> {
        drop(self.child.stdin.take());
        let deadline = Instant::now() + FINISH_WITHIN;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                break status;
            }
            assert!(Instant::now() < deadline, "the {} client does not finish", self.name);
            thread::sleep(Duration::from_millis(10));
        };
        assert!(status.success(), "the {} client ended with {status}", self.name);
        let reader = self.reader.take().expect("it is joined once");
        reader.join().expect("each line of the client is an event");
        let events = std::mem::take(&mut *self.events.lock().expect("its reader has ended"));
        let done = events.last().is_some_and(|last| matches!(last.what, What::Done));
        assert!(done, "the {} client did not end in order: {:?}", self.name, events.last());
        events
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // It has ended already unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
