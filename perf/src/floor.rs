//! The floors: the least that this machine takes, in this minute, for what a broker does.
//!
//! ```text
//!   echo     client ──▶ server ──▶ client               what an answer takes
//!   dev      aligned write with data sync               what the disk takes
//!   commit   client ──▶ server ──▶ disk ──▶ server ──▶ client
//!                       group commit, 16 bytes back     what a durable answer takes
//!   replicated   the same, and ──▶ server ──▶ disk beside it: what an answer takes that is durable
//!                in two places
//!
//!   client   raw bytes, the schedule and the recorder of every other load; one thread with one
//!            ring, or several that share the connections
//!   server   a process of its own, one ring: what a core of the broker has, without the broker
//! ```
//! A broker is judged by the distance to its floor, so a lazy floor would be a lie: `check` holds
//! each against something that others wrote.
//!
//! Invariants: the same ring as the broker's, the same kind of file, the same client pacing. What a
//! floor writes is gone when it is dropped. Failure: a [`FloorError`]; nothing is tried again.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use net::{Engine, EngineWanted, Ring, RingConfig, RingError};
use serde::{Deserialize, Serialize};

use crate::block::Block;
use crate::schedule::Arrivals;

mod check;
mod client;
mod command;
mod commit;
mod copy;
mod dev;
mod echo;
mod pace;
mod process;
mod serve;

pub use self::check::{Checked, RATIO_MAX, check};
pub use self::command::{Options, command};
pub use self::commit::{ANSWER_BYTES, BLOCK_BYTES, FILE_BYTES, Store};
pub use self::process::Role;

use self::process::{Server, ServerPlan};

/// Which floor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FloorKind {
    /// TCP echo: what comes goes back.
    Echo,
    /// Aligned durable writes, without a network.
    Dev,
    /// Receive, aligned group commit, an answer of 16 bytes.
    Commit,
    /// The same, with each group durable at a second server too.
    Replicated,
}

impl FloorKind {
    /// Its name in commands and results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Dev => "dev",
            Self::Commit => "commit",
            Self::Replicated => "replicated",
        }
    }
}

/// What a floor is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FloorLoad {
    /// TCP connections, at least 1; `dev` has none.
    pub connections: usize,
    /// Requests under way on each connection, at least 1; writes under way for `dev`.
    pub in_flight: usize,
    /// Threads of the client, at least 1, that divide the connections; `dev` has one, and no load
    /// has more than connections.
    pub threads: usize,
    /// Bytes of a request, at least 1; `dev` writes whole blocks.
    pub size: usize,
    /// Requests a second; `None`: the next one when the last is answered.
    pub rate: Option<f64>,
    /// How send times are spread.
    pub arrivals: Arrivals,
    /// For the arrivals.
    pub seed: u64,
    /// Not counted.
    pub warm_up: Duration,
    /// Counted.
    pub duration: Duration,
}

/// Writes of the commit floor that are in flight at most.
pub const WRITES_IN_FLIGHT: usize = 4;

/// Whether threads can share connections so that each has as many: a thread has its share of the
/// rate, which must be no other for a connection of its than for those of the others.
///
/// # Errors
/// What to do.
pub(crate) fn check_even(connections: u32, threads: u32) -> Result<(), String> {
    if connections.is_multiple_of(threads.min(connections)) {
        return Ok(());
    }
    Err(format!(
        "{connections} connections cannot be shared evenly by {threads} threads: give \
                 --threads that divide them"
    ))
}

/// Why there is no figure.
#[derive(Debug)]
pub enum FloorError {
    /// The ring.
    Ring(RingError),
    /// A socket, a thread, a process, or memory; which one.
    Io {
        /// What was wanted.
        what: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
    /// The file that is written to.
    File {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// A write failed or was short.
    Write(io::Error),
    /// A server or a connection ended in the middle.
    Ended,
    /// A server failed; its own words.
    Server(String),
    /// No connection within ten seconds.
    Silent,
    /// An answer came that nobody had asked for.
    Unasked,
}

impl FloorError {
    fn io(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |error| Self::Io { what, error }
    }
}

impl fmt::Display for FloorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring(error) => error.fmt(f),
            Self::Io { what, error } => write!(f, "{what} failed: {error}"),
            Self::File { path, error } => write!(
                f,
                "{} cannot be written: {error}; choose a directory by --dir",
                path.display()
            ),
            Self::Write(error) => write!(f, "a durable write failed: {error}"),
            Self::Server(said) => write!(f, "the server of a floor failed: {said}"),
            Self::Ended => f.write_str("the server of a floor ended in the middle"),
            Self::Silent => f.write_str("no connection on loopback within 10 s"),
            Self::Unasked => f.write_str("an answer came that nobody had asked for"),
        }
    }
}

impl std::error::Error for FloorError {}

/// A ring as a core of the broker has it, on the engine that this machine gives.
pub(crate) fn new_ring() -> Result<Ring, FloorError> {
    let choice = Engine::choose(EngineWanted::Auto).map_err(RingError::Refused);
    let engine = choice.map_err(FloorError::Ring)?.engine;
    let writers_max = WRITERS_MAX;
    Ring::new(RingConfig { engine, writers_max, ..RingConfig::default() }).map_err(FloorError::Ring)
}

/// Writes that a ring without io_uring does at once: as many as a load of writes may have.
const WRITERS_MAX: u16 = 8;

/// A floor that runs: its server is up and its file pre-written.
pub struct Floor {
    kind: FloorKind,
    request_bytes: usize,
    running: Running,
}

enum Running {
    Served(Server),
    /// Who is asked, and who writes a copy: stopped in that order.
    Replicated(Server, Server),
    Disk(Store),
}

impl Floor {
    /// Starts a floor for requests of `request_bytes`; what it writes goes to `directory`, with so
    /// many writes in flight at most.
    ///
    /// # Errors
    /// See [`FloorError`].
    pub fn start(
        kind: FloorKind,
        directory: &Path,
        request_bytes: usize,
        writes_in_flight: usize,
    ) -> Result<Self, FloorError> {
        assert!(request_bytes > 0 && writes_in_flight > 0, "a request has bytes");
        let plan = |role| ServerPlan {
            writes_in_flight,
            ..ServerPlan::new(role, directory, request_bytes)
        };
        let running = match kind {
            FloorKind::Echo => Running::Served(Server::start(&plan(Role::Echo))?),
            FloorKind::Dev => Running::Disk(Store::new(directory, writes_in_flight)?),
            FloorKind::Commit => Running::Served(Server::start(&plan(Role::Commit))?),
            FloorKind::Replicated => {
                let copy = Server::start(&plan(Role::Copy))?;
                let copy_at = Some(copy.addr());
                let asked = ServerPlan { copy_at, ..plan(Role::Commit) };
                Running::Replicated(Server::start(&asked)?, copy)
            }
        };
        Ok(Self { kind, request_bytes, running })
    }

    /// Runs a load against it.
    ///
    /// # Errors
    /// See [`FloorError`].
    ///
    /// # Panics
    /// If the load's requests are not those that it was started for.
    pub fn run(&self, load: &FloorLoad) -> Result<Block, FloorError> {
        assert_eq!(load.size, self.request_bytes, "a floor serves requests of one length");
        assert!(load.connections > 0 && load.in_flight > 0, "nothing in flight");
        assert!(load.threads > 0, "nobody asks");
        let threads = load.threads.min(load.connections);
        assert!(load.connections.is_multiple_of(threads), "a connection that is asked more");
        match &self.running {
            Running::Disk(store) => dev::run(store, load),
            Running::Served(served) | Running::Replicated(served, _) => {
                let answer_bytes = match self.kind {
                    FloorKind::Commit | FloorKind::Replicated => ANSWER_BYTES,
                    FloorKind::Echo | FloorKind::Dev => load.size,
                };
                let cpu_ns = || served.cpu_ns();
                let peer = client::Peer { addr: served.addr(), answer_bytes, cpu_ns: &cpu_ns };
                client::run(&peer, load)
            }
        }
    }

    /// Ends it, and says what went wrong with its server.
    ///
    /// # Errors
    /// See [`FloorError`].
    pub fn stop(self) -> Result<(), FloorError> {
        match self.running {
            Running::Served(served) => served.stop(),
            Running::Replicated(served, copy) => served.stop().and(copy.stop()),
            Running::Disk(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(connections: usize, in_flight: usize, size: usize, rate: Option<f64>) -> FloorLoad {
        FloorLoad {
            connections,
            in_flight,
            threads: 1,
            size,
            rate,
            arrivals: Arrivals::Constant,
            seed: 1,
            warm_up: Duration::from_millis(20),
            duration: Duration::from_millis(150),
        }
    }

    fn run(kind: FloorKind, load: &FloorLoad) -> Block {
        let root = tempfile::tempdir().expect("a directory");
        let floor = Floor::start(kind, root.path(), load.size, 4).expect("started");
        let block = floor.run(load).expect("a block");
        floor.stop().expect("served well");
        assert_eq!(std::fs::read_dir(root.path()).expect("there").count(), 0, "nothing is left");
        block
    }

    #[test]
    fn each_floor_answers_all_that_was_due() {
        for &kind in FloorKind::value_variants() {
            let block = run(kind, &load(1, 4, 256, Some(400.0)));
            assert_eq!((block.offered, block.completed), (60, 60), "{kind:?}");
            assert_eq!((block.lost, block.refused, block.unsent), (0, 0, 0), "{kind:?}");
            assert!(block.intended.min() > 1000, "{kind:?}: an answer within a microsecond");
            assert!(block.cpu_client_ns > 0);
            assert_eq!(block.cpu_server_ns.is_some(), kind != FloorKind::Dev);
        }
    }

    #[test]
    fn closed_loops_keep_every_place_busy_and_lose_nothing() {
        for &kind in FloorKind::value_variants() {
            // Requests that don't fit blocks, and more of them than a group holds.
            let block = run(kind, &load(3, 100, 3001, None));
            assert!(block.completed > 0, "{kind:?}: none in 150 ms");
            assert_eq!(block.sent, block.completed);
        }
    }

    #[test]
    fn threads_share_the_load_and_none_is_lost() {
        // Two connections a thread, and more threads than connections.
        for (threads, connections) in [(2, 4), (4, 2)] {
            let load = FloorLoad { threads, ..load(connections, 2, 256, Some(400.0)) };
            let block = run(FloorKind::Echo, &load);
            assert_eq!((block.offered, block.completed), (60, 60), "{threads} threads");
            assert!(block.cpu_server_ns.is_some());
        }
        assert!(check_even(3, 2).is_err() && check_even(4, 2).is_ok() && check_even(2, 64).is_ok());
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let refused = Floor::start(FloorKind::Dev, Path::new("/no/such/place"), 1, 1);
        let error = refused.err().expect("no directory").to_string();
        assert!(error.contains("/no/such/place") && error.contains("--dir"), "{error}");
    }
}
