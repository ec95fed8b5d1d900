//! `laelaps run`: from nothing to a broker that serves, and back.
//!
//! ```text
//!    1 configuration, log                      ConfigInvalid, ReplicationMissing, Exposed
//!    2 engine (again for all cores after 5)    EngineRefused
//!    3 admin API, if its port is free          (else after 4: the old process may hold it)
//!    4 data directory: lock, superblock        LockHeld, NoPermission, Volatile, FormatUnknown, …
//!    5 the AMQP port is free                   ListenFailed
//!    6 cores and shards; each recovers         JournalDamaged, JournalUnreadable, DiskFull, …
//!    7 every shard is ready: listen, one line in the log
//!    8 SIGTERM or SIGINT: no new connections, every shard drains, exit 0
//! ```
//! Nobody can connect before step 7: a shard that is not ready has no listener. A member of a pair
//! asks the voters and its peer from step 4 on, and what step 7 is for it stands in `ha/serve.rs`.
//!
//! Invariants: the AMQP address is bound without sharing first, at step 5 and again at step 7 (in
//! a long recovery another broker may have come), so that two brokers can't share a port by
//! accident, each with a part of the clients; a signal before step 7 just ends the process
//! (recovery does no harm half-way).
//!
//! Failure: one line in the log, with what, where and what to do, and the cause's status.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use amqp::connection::Sasl;
use amqp::sasl::Mechanisms;
use broker::ShardConfig;
use broker::access::Access;
use broker::event::RecoveryReport;
use crossbeam::channel::{Receiver, after, bounded, never, select};
use journal::{Geometry, Level, ShardId};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::admin::Guard;
use crate::auth::Authenticator;
use crate::budget::Budget;
use crate::config::{COUNT_MAX, Config, Count, Durability, Layer, LogFormat, Pair, Patience};
use crate::driver::{self, Directory, Driver, LockWait, Plan, Report, Wanted};
use crate::fatal::{Cause, Failure};
use crate::ha::{Beginning, Command, Doors, Ha, Served, held_of};
use crate::machine::Memory;
use crate::node::{Facts, Inbox, Input, Node, Stage};
use crate::tls::Tls;
use crate::{admin, log, watchdog};

/// `laelaps run`.
pub(crate) fn run(file: Option<&Path>, flags: Layer) -> ExitCode {
    let loaded = Config::load(file, flags);
    log::start(loaded.as_ref().map_or(LogFormat::Text, |config| config.log));
    let ended = loaded.and_then(|config| serve(&config));
    if let Err(failure) = &ended {
        failure.log();
    }
    log::flush();
    ended.map_or_else(|failure| failure.exit_code(), |()| ExitCode::SUCCESS)
}

fn serve(config: &Config) -> Result<(), Failure> {
    let signals = signals()?;
    // Refused before anything is touched; for all cores it is asked again, when whoever had the
    // directory is gone with all that it held of the machine.
    driver::engine(config.engine, 0)?;
    let node = Arc::new(Node::new());
    let tls = Tls::start(config)?;
    if let Some(tls) = &tls {
        node.set_tls(Arc::clone(tls));
    }
    let authenticator = Authenticator::start(config)?;
    node.set_authenticator(authenticator.clone());
    let access = crate::config::access(&config.users, &config.roles);
    let users = (!config.users.is_empty()).then(|| (authenticator.clone(), access.clone()));
    let guard = Guard { users, on_loopback: config.admin.ip().is_loopback() };
    let mut admin = Admin { wanted: config.admin, bound: None, node: Arc::clone(&node), guard };
    admin.start_if_free()?;
    let cpus = driver::cpus(config.threads)?;
    let pair = config.pair()?;
    let (directory, ha) = match &pair {
        None => (open_directory(config, cpus.threads, &signals)?, None),
        Some(pair) => {
            let tls = config.tls_listen.0.zip(tls.clone());
            let doors = Doors { listen: config.listen, tls, authenticator: authenticator.clone() };
            let (directory, ha) = open_member(config, pair, cpus.threads, &signals, &node, doors)?;
            (directory, Some(ha))
        }
    };
    let admin_addr = admin.start()?;
    for addr in [Some(config.listen), config.tls_listen.0].into_iter().flatten() {
        drop(bind_alone(addr)?);
    }
    node.enter(Stage::Recovering);
    let cores = cpus.threads.min(usize::from(directory.node().geometry.shards));
    let engine = driver::engine(config.engine, cores)?;
    if let Some(advice) = engine.advice {
        tracing::warn!("the engine is {}: {}; {advice}", engine.engine, engine.reason);
    }

    let facts = Facts {
        engine: engine.engine.name(),
        engine_reason: engine.reason,
        durability: config.durability.to_string(),
        volatile: directory.volume().volatile,
        direct: directory.is_direct(),
        data: std::path::absolute(&config.data.0).unwrap_or_else(|_| config.data.0.clone()),
    };
    let storage = Storage::of(&directory);
    warn_of_bounds(config, &directory);
    let shards = shard_configs(config, &directory, &access)?;
    let shard_count = storage.shards;
    let journal = journal_config(config, &directory);
    let write_bound = journal.write_bound;
    let link = ha.as_ref().map(|ha| ha.link(&directory.node()));
    let driver = driver::start(Plan {
        journal,
        authenticator,
        directory,
        shards,
        cpus,
        engine: engine.engine,
        tls,
        pair: link,
    })?;
    if let Some(ha) = ha {
        let inboxes = wait_started(&driver, write_bound, &signals)?;
        node.set_cores(inboxes.clone(), shard_count, facts);
        node.enter(Stage::Joining);
        let (node, driver, inboxes, signals) = (&*node, &driver, &*inboxes, &signals);
        let served = Served { config, node, driver, inboxes, shards: shard_count, signals };
        tracing::info!(data = %config.data, admin = %admin_addr, "a member of a pair has started");
        return crate::ha::serve(&ha, &served);
    }
    let (inboxes, recovered) = wait_ready(&driver, shard_count, write_bound, &signals)?;
    let listening = listen(&driver, &inboxes, config.listen, false)?;
    let tls_listening =
        config.tls_listen.0.map(|addr| listen(&driver, &inboxes, addr, true)).transpose()?;
    node.set_cores(inboxes.clone(), shard_count, facts.clone());
    let cores = driver.cores;
    Started { config, facts, storage, recovered, listening, tls_listening, admin_addr, cores }
        .log();
    node.enter(Stage::Ready);

    wait_for_signal(&driver, &signals)?;
    drain(config, &node, &driver, &inboxes, &signals)
}

/// Signals that ask us to stop, as they come.
fn signals() -> Result<Receiver<i32>, Failure> {
    let refused = |error: std::io::Error| {
        Failure::new(Cause::ResourceRefused, format!("signals cannot be handled: {error}"))
    };
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT]).map_err(refused)?;
    // Two are enough: the second ends the process.
    let (sender, receiver) = bounded(2);
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for signal in signals.forever() {
                if sender.try_send(signal).is_err() {
                    // The first two still wait: a third says nothing new.
                }
            }
        })
        .map_err(refused)?;
    Ok(receiver)
}

/// A signal before there is anything to drain: the end.
fn stop_if_asked(signals: &Receiver<i32>) {
    if signals.try_recv().is_ok() {
        stop_early();
    }
}

fn stop_early() -> ! {
    tracing::info!("stopped before it was ready");
    log::flush();
    std::process::exit(0)
}

/// The admin API, whose port the process before us may still hold.
struct Admin {
    wanted: SocketAddr,
    bound: Option<SocketAddr>,
    node: Arc<Node>,
    guard: Guard,
}

impl Admin {
    fn start_if_free(&mut self) -> Result<(), Failure> {
        match admin::listen(self.wanted) {
            Ok(listener) => self.serve(listener),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Ok(()),
            Err(error) => Err(self.refused(&error)),
        }
    }

    fn start(&mut self) -> Result<SocketAddr, Failure> {
        if let Some(bound) = self.bound {
            return Ok(bound);
        }
        let listener = admin::listen(self.wanted).map_err(|error| self.refused(&error))?;
        self.serve(listener)?;
        Ok(self.bound.unwrap_or(self.wanted))
    }

    fn serve(&mut self, listener: TcpListener) -> Result<(), Failure> {
        self.bound = listener.local_addr().ok();
        admin::serve(listener, Arc::clone(&self.node), self.guard.clone())
    }

    fn refused(&self, error: &std::io::Error) -> Failure {
        let message = format!("the admin API cannot listen on {}: {error}", self.wanted);
        Failure::new(Cause::ListenFailed, message)
    }
}

fn wanted(config: &Config, threads: usize) -> Wanted {
    let shards = match config.shards {
        Count::Just(count) => count,
        Count::Auto => u16::try_from(threads).map_or(COUNT_MAX, |count| count.min(COUNT_MAX)),
    };
    Wanted {
        segment_bytes: config.segment_size.0,
        segment_bytes_given: config.is_given("segment-size"),
        shards,
        shards_given: matches!(config.shards, Count::Just(_)),
        allow_volatile: config.allow_volatile || config.durability == Durability::Async,
        identity: None,
    }
}

fn lock_wait(config: &Config) -> LockWait {
    match config.lock_wait {
        Patience::Forever => LockWait(None),
        Patience::For(span) => LockWait(Some(span.0)),
    }
}

fn open_directory(
    config: &Config,
    threads: usize,
    signals: &Receiver<i32>,
) -> Result<Directory, Failure> {
    let wanted = wanted(config, threads);
    Directory::open(&config.data.0, lock_wait(config), &wanted, || stop_if_asked(signals))
}

/// A member's directory. An empty one is formatted only when voters and peer have said as what.
fn open_member(
    config: &Config,
    pair: &Pair,
    threads: usize,
    signals: &Receiver<i32>,
    node: &Node,
    doors: Doors,
) -> Result<(Directory, Ha), Failure> {
    let mut wanted = wanted(config, threads);
    let root = &config.data.0;
    let waiting = || stop_if_asked(signals);
    let taken = Directory::take(root, lock_wait(config), wanted.allow_volatile, waiting)?;
    let geometry = Geometry { segment_bytes: wanted.segment_bytes, shards: wanted.shards };
    let exports = root.join("exports");
    let formatted = taken.node();
    let begin = Beginning {
        config,
        pair,
        node: formatted,
        is_sole: taken.is_sole(),
        geometry,
        exports: &exports,
        doors,
    };
    let ha = Ha::start(&begin)?;
    node.set_ha(ha.commands.clone());
    if formatted.is_some() {
        return Ok((taken.open(&wanted)?, ha));
    }
    node.enter(Stage::Joining);
    let held = crate::ha::wait_for_format(&ha, waiting)?;
    wanted.identity = Some((held.log, ha.journal()));
    wanted.segment_bytes = held.geometry.segment_bytes;
    wanted.shards = held.geometry.shards;
    let directory = taken.open(&wanted)?;
    ha.tell(Command::Formatted(held_of(&directory.node())));
    Ok((directory, ha))
}

/// Take the address without sharing it, to see that nobody has it.
fn bind_alone(addr: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(addr).map_err(|error| {
        Failure::new(Cause::ListenFailed, format!("cannot listen on {addr}: {error}"))
    })
}

/// A peer has at least so long to answer our close.
const CLOSE_WITHIN_MIN: Duration = Duration::from_millis(500);

/// And at most so long.
const CLOSE_WITHIN_MAX: Duration = Duration::from_secs(5);

/// Bytes that all journals may have together, as it was asked for.
fn disk_bytes_max(config: &Config, directory: &Directory) -> u64 {
    let there = directory.bytes_used();
    config.disk_max.of(directory.volume().free_bytes.saturating_add(there))
}

/// Segments that each shard may have; never fewer than a log needs.
fn segments_max(config: &Config, directory: &Directory) -> u32 {
    let geometry = directory.node().geometry;
    let segments =
        disk_bytes_max(config, directory) / geometry.segment_bytes / u64::from(geometry.shards);
    u32::try_from(segments).unwrap_or(u32::MAX).max(journal::limits::SEGMENTS_MIN)
}

/// Say where the bounds of the whole are too small for its shards.
fn warn_of_bounds(config: &Config, directory: &Directory) {
    let Geometry { segment_bytes, shards } = directory.node().geometry;
    let wanted = disk_bytes_max(config, directory);
    let least = u64::from(shards) * u64::from(journal::limits::SEGMENTS_MIN) * segment_bytes;
    if wanted < least {
        tracing::warn!(
            "disk-max comes to {wanted} bytes, but {shards} shards need {least}: that is the bound"
        );
    }
}

fn journal_config(config: &Config, directory: &Directory) -> journal::Config {
    journal::Config {
        writes_in_flight_max: usize::from(config.writes_in_flight_max),
        segments_max: segments_max(config, directory),
        #[cfg(feature = "canary")]
        canary: crate::canary::chosen()
            .filter(|canary| *canary == crate::canary::Canary::AckOnSubmit)
            .map(|_| journal::Canary::AckBeforeDurable),
        ..journal::Config::default()
    }
}

fn shard_configs(
    config: &Config,
    directory: &Directory,
    access: &Access,
) -> Result<Vec<ShardConfig>, Failure> {
    let geometry = directory.node().geometry;
    let budget = Budget::new(config, Memory::detect().bytes, geometry.shards)?;
    let tag_seed = getrandom::u64().map_err(|error| {
        Failure::new(Cause::ResourceRefused, format!("the system gives no randomness: {error}"))
    })?;
    let amqp = amqp::connection::Config {
        container_id: "laelaps".to_owned(),
        idle_time_out: Some(config.idle_timeout.0),
        // Who does not answer our goodbye must not hold up a stop.
        close_timeout: (config.drain.0 / 2).clamp(CLOSE_WITHIN_MIN, CLOSE_WITHIN_MAX),
        max_message_size: config.max_message_size.0,
        // Each connection's own is made where it comes from (`auth.rs`).
        sasl: Sasl::Server { mechanisms: Mechanisms::ANONYMOUS, bare: true },
        tag_seed,
        ..amqp::connection::Config::default()
    };
    let level = match config.durability {
        Durability::Async => Level::Async,
        Durability::Sync => Level::Sync,
        Durability::Replicated => Level::Replicated,
        Durability::ReplicatedSync => Level::ReplicatedSync,
    };
    let settings = Arc::new(config.address_settings()?);
    let shard = |shard| ShardConfig {
        shard: ShardId(shard),
        shards: geometry.shards,
        segment_bytes: geometry.segment_bytes,
        level,
        memory_bytes_max: budget.shard_messages,
        amqp: amqp.clone(),
        backup: false,
        segments_max: u64::from(segments_max(config, directory)),
        disk_bound: journal::Config::default().write_bound,
        clock: driver::wall_clock(),
        settings: settings.clone(),
        access: access.clone(),
        canaries: broker::canary::Canaries::default(),
    };
    Ok((0..geometry.shards).map(shard).collect())
}

/// Until every core runs.
fn wait_started(
    driver: &Driver,
    write_bound: Duration,
    signals: &Receiver<i32>,
) -> Result<Vec<Inbox>, Failure> {
    let mut inboxes: Vec<Option<Inbox>> = vec![None; driver.cores];
    while inboxes.iter().any(Option::is_none) {
        select! {
            recv(driver.reports) -> report => match report.map_err(|_| cores_gone())? {
                Report::Started { core, inbox } => {
                    watchdog::watch(core, inbox.0.clone(), write_bound)?;
                    inboxes[core] = Some(inbox.0);
                }
                Report::Failed(failure) => return Err(failure),
                Report::Ready(_) | Report::Listening(_) | Report::Drained => {}
            },
            recv(signals) -> _ => stop_early(),
        }
    }
    Ok(inboxes.into_iter().flatten().collect())
}

/// Until every core runs and every shard has recovered.
fn wait_ready(
    driver: &Driver,
    shards: u16,
    write_bound: Duration,
    signals: &Receiver<i32>,
) -> Result<(Vec<Inbox>, Vec<RecoveryReport>), Failure> {
    let mut inboxes: Vec<Option<Inbox>> = vec![None; driver.cores];
    let mut recovered = Vec::new();
    while recovered.len() < usize::from(shards) {
        select! {
            recv(driver.reports) -> report => match report.map_err(|_| cores_gone())? {
                Report::Started { core, inbox } => {
                    watchdog::watch(core, inbox.0.clone(), write_bound)?;
                    inboxes[core] = Some(inbox.0);
                }
                Report::Ready(report) => recovered.push(report),
                Report::Failed(failure) => return Err(failure),
                Report::Listening(_) | Report::Drained => {}
            },
            recv(signals) -> _ => stop_early(),
        }
    }
    let inboxes: Option<Vec<Inbox>> = inboxes.into_iter().collect();
    Ok((inboxes.expect("a core reports that it started before its shards do"), recovered))
}

pub(crate) fn cores_gone() -> Failure {
    Failure::new(Cause::ResourceRefused, "the core threads are gone without a word")
}

/// Has every core listen; the first one tells the port where any free one is wanted.
pub(crate) fn listen(
    driver: &Driver,
    inboxes: &[Inbox],
    wanted: SocketAddr,
    tls: bool,
) -> Result<SocketAddr, Failure> {
    drop(bind_alone(wanted)?);
    let mut addr = wanted;
    for inbox in inboxes {
        inbox.put(Input::Listen { addr, shared: inboxes.len() > 1, tls });
        loop {
            match driver.reports.recv().map_err(|_| cores_gone())? {
                Report::Listening(bound) => {
                    addr = bound;
                    break;
                }
                Report::Failed(failure) => return Err(failure),
                Report::Started { .. } | Report::Ready(_) | Report::Drained => {}
            }
        }
    }
    Ok(addr)
}

/// Serve until we are asked to stop.
fn wait_for_signal(driver: &Driver, signals: &Receiver<i32>) -> Result<(), Failure> {
    loop {
        select! {
            recv(signals) -> _ => return Ok(()),
            recv(driver.reports) -> report => match report.map_err(|_| cores_gone())? {
                Report::Failed(failure) => return Err(failure),
                Report::Started { .. }
                | Report::Listening(_)
                | Report::Ready(_)
                | Report::Drained => {}
            }
        }
    }
}

/// Answer what was sent, then go; at the latest when the time for it is over.
fn drain(
    config: &Config,
    node: &Node,
    driver: &Driver,
    inboxes: &[Inbox],
    signals: &Receiver<i32>,
) -> Result<(), Failure> {
    node.enter(Stage::Draining);
    tracing::info!("stopping: answering what was sent, for at most {}", config.drain);
    for inbox in inboxes {
        inbox.put(Input::Shutdown);
    }
    let over = if config.drain.0.is_zero() { never() } else { after(config.drain.0) };
    let mut left = node.shards();
    while left > 0 && !config.drain.0.is_zero() {
        select! {
            recv(driver.reports) -> report => match report.map_err(|_| cores_gone())? {
                Report::Drained => left -= 1,
                Report::Failed(failure) => return Err(failure),
                Report::Started { .. } | Report::Listening(_) | Report::Ready(_) => {}
            },
            recv(signals) -> _ => {
                let message = "ended at once by a second signal";
                return Err(Failure::new(Cause::SecondSignal, message));
            }
            recv(over) -> _ => break,
        }
    }
    match left {
        0 => tracing::info!("stopped: everything sent was answered"),
        left => tracing::warn!(
            "stopped after {}: {left} shards had not answered all; what they accepted is safe",
            config.drain
        ),
    }
    Ok(())
}

/// How the data is kept.
struct Storage {
    shards: u16,
    segment_bytes: u64,
    file_system: String,
    remote: bool,
    new: bool,
}

impl Storage {
    fn of(directory: &Directory) -> Self {
        let geometry = directory.node().geometry;
        Self {
            shards: geometry.shards,
            segment_bytes: geometry.segment_bytes,
            file_system: directory.volume().kind.clone(),
            remote: directory.volume().remote,
            new: directory.is_new(),
        }
    }
}

/// What the line at start says.
struct Started<'a> {
    config: &'a Config,
    facts: Facts,
    storage: Storage,
    recovered: Vec<RecoveryReport>,
    listening: SocketAddr,
    tls_listening: Option<SocketAddr>,
    admin_addr: SocketAddr,
    cores: usize,
}

impl Started<'_> {
    fn log(&self) {
        let torn: Vec<&str> =
            self.recovered.iter().filter_map(|report| report.truncated.as_deref()).collect();
        for refused in self.recovered.iter().flat_map(|report| &report.refused) {
            tracing::warn!("{refused}");
        }
        if self.storage.remote {
            tracing::warn!(
                "the data is on {}: its syncs and locks are another machine's word",
                self.storage.file_system
            );
        }
        if self.facts.volatile {
            tracing::warn!("the data is on {}: it is gone at power-off", self.storage.file_system);
        }
        tracing::info!(
            amqp = %self.listening,
            amqps = self.tls_listening.map_or_else(|| "off".to_owned(), |addr| addr.to_string()),
            admin = %self.admin_addr,
            data = %self.config.data,
            new = self.storage.new,
            shards = self.storage.shards,
            threads = self.cores,
            engine = self.facts.engine,
            engine_reason = self.facts.engine_reason,
            block = journal::limits::BLOCK_BYTES,
            io = if self.facts.direct { "direct" } else { "buffered" },
            segment = self.storage.segment_bytes,
            file_system = self.storage.file_system,
            volatile = self.facts.volatile,
            durability = self.facts.durability,
            login = if self.config.users.is_empty() { "anonymous" } else { "users" },
            recovered = self.recovered.iter().map(|report| report.messages).sum::<u64>(),
            records = self.recovered.iter().map(|report| report.records).sum::<u64>(),
            checkpoints = self.recovered.iter().filter_map(|report| report.checkpoint).count(),
            torn = if torn.is_empty() { "nothing".to_owned() } else { torn.join("; ") },
            "ready"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_was_taken_during_the_recovery_is_not_shared() {
        let holder = TcpListener::bind("127.0.0.1:0").expect("a port");
        let taken = holder.local_addr().expect("bound");
        let (_reports, reports) = bounded(1);
        let (inbox, inputs) = Inbox::new(|| {});
        let failure =
            listen(&Driver { reports, cores: 1 }, &[inbox], taken, false).expect_err("taken");
        assert_eq!(failure.cause, Cause::ListenFailed);
        assert!(inputs.is_empty(), "no core was told to listen");
    }
}
