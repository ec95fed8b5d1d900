//! The join of broker and kernel: one thread a core, each with its ring and some shards.
//!
//! ```text
//!   run.rs                     core 0 .. n                     cold threads
//!   ──────                     ───────────                     ────────────
//!   start ──────── Setup ────▶ ring, mesh port, shards ──────▶ pre-writes  (driver/cold.rs)
//!         ◀────── Report ───── started, ready, listening,
//!                              drained, failed
//!   Inbox ──────── Input ────▶ log-ins, operators, shutdown
//! ```
//! ```text
//!   one turn of a core (driver/core.rs)
//!   1 wait on the ring: sockets, files, doorbell; no longer than the nearest deadline
//!   2 completions become events, each for its shard
//!   3 mail from other cores, then from shards of this one
//!   4 inputs of cold threads
//!   5 deadlines that have passed
//!   6 each shard is polled until it has nothing more: actions become ring operations
//!   7 connections that were lost are reported, after the answers to what they had sent
//! ```
//! A shard is polled only after *all* completions of a turn, so everything that came together is
//! committed together: that is group commit, without a timer that holds anything back.
//!
//! **Why two shards cannot wait for each other.** Nobody ever waits to send. What a full mailbox
//! refuses stays with the sender, in order, and is tried again at its next turn, which comes soon;
//! meanwhile it goes on to receive. What can pile up there is bounded by the credit of links.
//!
//! Failure: `Action::Fatal` ends the process from the core that saw it, before anything else is
//! sent; a lost ring does the same. A core that cannot start reports why.

use std::net::SocketAddr;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use broker::ShardConfig;
use broker::clock::WallClock;
use broker::event::RecoveryReport;
use crossbeam::channel::{Receiver, Sender, unbounded};
use net::cpu::CpuPlan;
use net::{Engine, EngineWanted};

use crate::auth::Authenticator;
use crate::config::{Count, EngineChoice};
use crate::fatal::{Cause, Failure};
use crate::node::{Inbox, core_of};
use crate::tls::Tls;

mod cold;
mod core;
mod crowds;
mod directory;
mod disk;
mod links;
mod pair;
mod sockets;
mod strangers;
mod tls;

pub(crate) use directory::{
    Directory, Files, LockWait, Mapped, Wanted, make_durably, nearest_there, path_failure, random,
    superblock_failure, sync_directory, volume,
};
pub(crate) use links::Linked;
pub(crate) use net::tls::{certificates, roots};
pub(crate) use pair::{FromCore, PairLink};
pub(crate) use tls::{Complaints, Shaken};

use cold::Cold;
use crowds::{Crowds, Limits, MOVERS_MAX};
use tls::Handshakes;

/// Letters that wait between two cores before the sender keeps them.
const MAILBOX_LETTERS: usize = 1024;

/// What a core tells the thread that started it.
#[derive(Debug)]
pub(crate) enum Report {
    /// Its loop turns.
    Started {
        /// Which core.
        core: usize,
        /// The way in.
        inbox: InboxOf,
    },
    /// It listens.
    Listening(SocketAddr),
    /// A shard has recovered.
    Ready(RecoveryReport),
    /// A shard has answered everything and closed every connection.
    Drained,
    /// The core could not start, or could not listen.
    Failed(Failure),
}

/// An inbox that can be printed.
pub(crate) struct InboxOf(pub(crate) Inbox);

impl std::fmt::Debug for InboxOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Inbox")
    }
}

/// What the cores are started with.
pub(crate) struct Plan {
    /// Where the data is; formatted.
    pub(crate) directory: Directory,
    /// One for each shard, in order.
    pub(crate) shards: Vec<ShardConfig>,
    /// The knobs of each journal.
    pub(crate) journal: journal::Config,
    /// Verifies log-ins.
    pub(crate) authenticator: Authenticator,
    /// How many threads there are to be, and where.
    pub(crate) cpus: CpuPlan,
    /// What drives sockets and files.
    pub(crate) engine: Engine,
    /// What TLS is served with, if it is.
    pub(crate) tls: Option<Arc<Tls>>,
    /// In a pair: what the cores are to know of it.
    pub(crate) pair: Option<PairLink>,
}

/// The running cores.
pub(crate) struct Driver {
    /// What they have to tell.
    pub(crate) reports: Receiver<Report>,
    /// How many there are.
    pub(crate) cores: usize,
}

/// Which CPUs this machine gives us, and how many threads follow from that or were asked for.
///
/// # Errors
/// The kernel does not tell.
pub(crate) fn cpus(threads: Count) -> Result<CpuPlan, Failure> {
    let plan = CpuPlan::detect().map_err(|error| {
        Failure::new(Cause::ResourceRefused, format!("the usable CPUs are not known: {error}"))
    })?;
    Ok(match threads {
        Count::Auto => plan,
        Count::Just(threads) => plan.with_threads(usize::from(threads)),
    })
}

/// Bytes that the batch buffers of all shards hold from the start on.
pub(crate) fn batch_buffer_bytes(shards: u16, writes_in_flight_max: u8) -> u64 {
    let buffers = core::batch_buffers(usize::from(writes_in_flight_max));
    u64::from(shards) * (buffers * core::BATCH_BUFFER_BYTES) as u64
}

/// The engine that this machine gives for what is wanted, on so many cores, and why.
///
/// # Errors
/// It gives none of that kind: why, and what to do.
pub(crate) fn engine(wanted: EngineChoice, cores: usize) -> Result<net::EngineChoice, Failure> {
    let wanted = match wanted {
        EngineChoice::Auto => EngineWanted::Auto,
        EngineChoice::Uring => EngineWanted::Only(Engine::Uring),
        EngineChoice::Epoll => EngineWanted::Only(Engine::Epoll),
    };
    Engine::choose_for(wanted, cores)
        .map_err(|refusal| Failure::new(Cause::EngineRefused, refusal.to_string()))
}

/// Start one thread for each core, no more than there are shards.
///
/// # Errors
/// The machine refused a thread. What goes wrong on a core's own thread is a [`Report`].
pub(crate) fn start(plan: Plan) -> Result<Driver, Failure> {
    let cpus = &plan.cpus;
    let cores = cpus.threads.min(plan.shards.len());
    let (reports, inbox) = unbounded();
    let cold = Cold::start(plan.directory.files())?;
    let handshakes = plan.tls.map(|tls| Handshakes::start(tls, cores)).transpose()?;
    let ports = net::mesh::mesh(u16::try_from(cores).unwrap_or(u16::MAX), MAILBOX_LETTERS);
    let limits = limits(cores);
    let all_have_rings = Arc::new(Barrier::new(cores));
    let crowds = Arc::new(Crowds::new(cores, plan.shards.len(), limits));
    let mut hosted: Vec<Vec<ShardConfig>> = (0..cores).map(|_| Vec::new()).collect();
    for shard in plan.shards {
        hosted[core_of(shard.shard, cores)].push(shard);
    }
    for (core, (port, shards)) in ports.into_iter().zip(hosted).enumerate() {
        let setup = core::Setup {
            core,
            cores,
            sockets_max: limits.sockets_max,
            pin: cpus.pin.then(|| cpus.affinity[core % cpus.affinity.len()]),
            shards,
            store: plan.directory.store(),
            journal: plan.journal.clone(),
            authenticator: plan.authenticator.clone(),
            engine: plan.engine,
            cold: cold.clone(),
            handshakes: handshakes.clone(),
            port,
            crowds: Arc::clone(&crowds),
            all_have_rings: Arc::clone(&all_have_rings),
            reports: reports.clone(),
            pair: plan.pair.clone(),
        };
        spawn(core, setup, reports.clone())?;
    }
    Ok(Driver { reports: inbox, cores })
}

/// Descriptors beside sockets and journal files: admin API, epolls, log, what libraries open.
const DESCRIPTORS_ELSE: u64 = 512;

/// How many connections a core may hold, and how many be on their way to it. They must not use up
/// the descriptors: a journal that cannot open its next segment is poisoned.
fn limits(cores: usize) -> Limits {
    let limit = net::limit::raise_open_files().unwrap_or_else(|error| {
        tracing::warn!("the limit on open files cannot be raised: {error}");
        crate::machine::soft_limit("Max open files").unwrap_or(1024)
    });
    let cores = cores as u64;
    let kept = cores * u64::from(disk::FILES_MAX + core::FILES_SPARE) + DESCRIPTORS_ELSE;
    let sockets = limit.saturating_sub(kept).max(limit / 4) / cores;
    let sockets = usize::try_from(sockets).unwrap_or(usize::MAX);
    let movers_max = (sockets / 8).clamp(1, MOVERS_MAX);
    let sockets_max = sockets.saturating_sub(movers_max).clamp(1, sockets::SOCKETS_MAX);
    Limits { sockets_max, movers_max }
}

fn spawn(core: usize, setup: core::Setup, reports: Sender<Report>) -> Result<(), Failure> {
    std::thread::Builder::new()
        .name(format!("core-{core}"))
        .spawn(move || {
            if let Err(failure) = core::run(setup) {
                // Whoever started us is gone only when the process is going too.
                drop(reports.send(Report::Failed(failure)));
            }
        })
        .map(drop)
        .map_err(|error| {
            Failure::new(Cause::ResourceRefused, format!("no thread for core {core}: {error}"))
        })
}

/// The time of day, beside the moment at which it was asked.
pub(crate) fn wall_clock() -> WallClock {
    #[expect(clippy::disallowed_methods, reason = "the driver is where time enters")]
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    WallClock { at: clock(), unix_ms: since.map_or(0, |since| since.as_millis() as u64) }
}

/// Time since the machine was started, sleep included: what leases are counted by.
pub(crate) fn boot_time() -> Duration {
    net::boot_time()
}

/// The one clock of the process's hot side; everything below it takes the time as an argument.
#[expect(clippy::disallowed_methods, reason = "the driver is where time enters")]
pub(crate) fn clock() -> Instant {
    Instant::now()
}
