//! An open-loop load on an AMQP 1.0 broker: the plan, the threads that carry it out, the blocks.
//!
//! ```text
//!   LoadPlan ─▶ thread 0: ring, connections, producers, schedules ─┐
//!               thread 1: ...                                      ├─▶ recorders ─▶ Block
//!                 1 connect, open, attach, credit    ◀─ all ready ─┤
//!                 2 one start for all; warm-up; planned stretch    │
//!                 3 the rest: what was due is sent, what was sent is waited for, both bounded
//! ```
//! With a rate the loop is open: each producer's schedule says when a message is due, and nothing
//! that the peer does moves it. Where the in-flight bound is reached the message is sent late, and
//! the time it waited counts. Without a rate the loop is closed: the next message is due when there
//! is room for it, which says what an answer takes and nothing about a tail under load.
//!
//! Invariants: every message that was due in the planned stretch is in the block, as completed,
//! refused, lost or unsent; all threads share one clock and one start.
//!
//! Failure: a [`LoadError`]; a load that lost a connection has no result.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use net::RingError;
use rustix::time::{ClockId, clock_gettime};

use crate::block::{Block, Ended, Recorder, Window};
use crate::machine;
use crate::schedule::{Arrivals, RATE_MAX, RATE_MIN};
use crate::tls::TlsClient;

mod peer;
mod runner;
mod stamp;

pub use stamp::STAMP_BYTES;

/// The peer, and how to log in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Where it listens.
    pub addr: SocketAddr,
    /// The host name that our open asks for.
    pub host: String,
    /// User and password for SASL PLAIN; none: ANONYMOUS.
    pub login: Option<(String, String)>,
    /// Whether TLS comes first, and with what.
    pub security: Security,
    /// The capability that asks for a queue; none where a broker does not want one.
    pub capability: Option<String>,
}

/// Whether TLS comes first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Security {
    /// It does not.
    #[default]
    Plain,
    /// It does, but whom to trust is not known yet.
    Wanted,
    /// It does, like this.
    Tls(TlsClient),
}

impl Target {
    /// A peer without a log-in.
    #[must_use]
    pub fn new(addr: SocketAddr) -> Self {
        let capability = Some("queue".to_owned());
        Self {
            addr,
            host: addr.ip().to_string(),
            login: None,
            security: Security::Plain,
            capability,
        }
    }
}

/// How many connections, and links on each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Links {
    /// Connections.
    pub connections: u32,
    /// Links on each connection.
    pub each: u32,
}

impl Links {
    /// No links.
    pub const NONE: Self = Self { connections: 0, each: 0 };
    /// One connection with one link.
    pub const ONE: Self = Self { connections: 1, each: 1 };

    /// Connections with one link each.
    #[must_use]
    pub fn alone(connections: u32) -> Self {
        Self { connections, each: 1 }
    }

    /// All links.
    #[must_use]
    pub fn total(self) -> u32 {
        self.connections * self.each
    }
}

/// How long a load goes on after its warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// Messages are due for so long.
    For(Duration),
    /// So many messages, over all producers or consumers.
    Count(u64),
}

/// A load. Change what differs from [`LoadPlan::new`].
#[derive(Clone, Debug)]
pub struct LoadPlan {
    /// On whom.
    pub target: Target,
    /// Queues; links take them in turn. At least one.
    pub addresses: Vec<String>,
    /// Those who send.
    pub producers: Links,
    /// Those who receive. Where there are producers too, they wait for all that was accepted.
    pub consumers: Links,
    /// Messages that a producer may have under way, at least 1.
    pub in_flight: u32,
    /// Messages that may come ahead of a consumer's settlements, at least 1.
    pub credit: u32,
    /// Messages a second that all consumers together let come; none: as fast as they do.
    pub receive_rate: Option<f64>,
    /// Messages that the consumers of a connection hold, once they have so many: then for each that
    /// comes they settle one of those, by chance. At the end they settle all of them.
    pub held: u32,
    /// Whether what comes is compared: in the order in which it was sent on each link, each once,
    /// with its own bytes. For one producer a queue, with messages of this size.
    pub checks: bool,
    /// Bytes of a message's body.
    pub size: usize,
    /// Whether messages say `durable=true`.
    pub durable: bool,
    /// Messages a second, of all producers together; none: a closed loop.
    pub rate: Option<f64>,
    /// How they are spread.
    pub arrivals: Arrivals,
    /// Chance of the Poisson schedule.
    pub seed: u64,
    /// Load before the block.
    pub warmup: Duration,
    /// The block.
    pub length: Length,
    /// Threads of ours, each with a ring, at least 1; connections take them in turn.
    pub threads: u32,
    /// CPUs that the threads are pinned to, in turn; none: not pinned.
    pub pin: Vec<usize>,
    /// The peer's process, where it is on this machine: for its CPU time.
    pub server_process: Option<u32>,
    /// How long an answer is waited for, at the start, and when nothing more is due.
    pub patience: Duration,
}

/// More threads than this help nobody.
const THREADS_MAX: u32 = 64;

/// More connections or links than this are a typing error.
const LINKS_MAX: u32 = 100_000;

/// A session takes 8,192 unsettled messages, credit among them.
const HELD_MAX: u32 = 4096;

/// The largest body.
const SIZE_MAX: usize = 256 << 20;

impl LoadPlan {
    /// One producer with one message of 256 durable bytes in flight, closed loop, for five seconds
    /// after one of warm-up.
    #[must_use]
    pub fn new(target: Target) -> Self {
        Self {
            target,
            addresses: vec!["laelaps-perf".to_owned()],
            producers: Links::ONE,
            consumers: Links::NONE,
            in_flight: 1,
            credit: 256,
            receive_rate: None,
            held: 0,
            checks: false,
            size: 256,
            durable: true,
            rate: None,
            arrivals: Arrivals::Constant,
            seed: 1,
            warmup: Duration::from_secs(1),
            length: Length::For(Duration::from_secs(5)),
            threads: 1,
            pin: Vec::new(),
            server_process: None,
            patience: Duration::from_secs(10),
        }
    }

    /// Whether every figure is within its bounds.
    ///
    /// # Errors
    /// [`LoadError::Plan`] names the figure.
    pub fn check(&self) -> Result<(), LoadError> {
        let links = [self.producers, self.consumers];
        let whole = |links: Links| (links.connections == 0) == (links.each == 0);
        let few = |links: Links| {
            u64::from(links.connections) * u64::from(links.each) <= u64::from(LINKS_MAX)
        };
        let rules = [
            (!self.addresses.is_empty(), "at least one address is needed"),
            (links.iter().any(|links| links.total() > 0), "neither producers nor consumers"),
            (links.into_iter().all(whole), "connections without links, or links without any"),
            (links.into_iter().all(few), "at most 100,000 links"),
            ((1..=THREADS_MAX).contains(&self.threads), "1 to 64 threads"),
            ((1..=1 << 20).contains(&self.in_flight), "1 to 1,048,576 messages in flight"),
            (
                u64::from(self.in_flight) * u64::from(self.producers.each) <= 1 << 24,
                "at most 16,777,216 messages in flight on a connection",
            ),
            ((1..=1 << 20).contains(&self.credit), "credit of 1 to 1,048,576"),
            (self.size <= SIZE_MAX, "a size of at most 256 MiB"),
            (
                self.rate.is_none_or(|rate| (RATE_MIN..=RATE_MAX).contains(&rate)),
                "a rate of 0.001 to 1,000,000,000 a second",
            ),
            (self.rate.is_none() || self.producers.total() > 0, "a rate is for producers"),
            (
                self.receive_rate.is_none_or(|rate| (RATE_MIN..=RATE_MAX).contains(&rate)),
                "a rate of 0.001 to 1,000,000,000 messages received a second",
            ),
            (self.held <= HELD_MAX, "at most 4,096 messages held on a connection"),
            (!self.checks || self.size >= STAMP_BYTES, "a size of at least 32 bytes to be checked"),
            (self.length != Length::Count(0), "a count of at least 1"),
            (self.length != Length::For(Duration::ZERO), "a duration above 0"),
            (
                links.iter().any(|links| links.total() == 0) || self.size >= STAMP_BYTES,
                "a size of at least 32 bytes, which hold the message's times",
            ),
        ];
        match rules.into_iter().find(|(holds, _)| !holds) {
            Some((_, rule)) => Err(LoadError::Plan(rule)),
            None => Ok(()),
        }
    }

    fn window(&self) -> Window {
        let planned_ns = match self.length {
            Length::For(duration) => nanos(duration),
            Length::Count(_) => u64::MAX,
        };
        Window { start_ns: nanos(self.warmup), planned_ns }
    }
}

/// Why a load has no result.
#[derive(Debug)]
pub enum LoadError {
    /// A figure of the plan is out of bounds.
    Plan(&'static str),
    /// The kernel gave us no ring, or took it away.
    Ring(RingError),
    /// A thread could not be started or pinned.
    Thread(io::Error),
    /// No connection could be made, or it broke.
    Unreachable {
        /// To where.
        addr: SocketAddr,
        /// What the kernel said.
        error: io::Error,
    },
    /// The peer said no.
    Refused(String),
    /// The peer was not ready in time.
    NotReady {
        /// What was missing.
        what: String,
        /// How long we waited.
        after: Duration,
    },
    /// The observer ended it.
    Stopped,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plan(rule) => write!(f, "the load cannot be run: {rule}"),
            Self::Ring(error) => error.fmt(f),
            Self::Thread(error) => write!(f, "a thread of the load cannot run: {error}"),
            Self::Unreachable { addr, error } => {
                write!(f, "{addr}: {error}; is a broker listening there?")
            }
            Self::Refused(why) => write!(f, "the broker refused or broke off: {why}"),
            Self::NotReady { what, after } => {
                write!(f, "the broker did not give {what} within {} s", after.as_secs_f64())
            }
            Self::Stopped => f.write_str("stopped before it was done"),
        }
    }
}

impl std::error::Error for LoadError {}

impl From<RingError> for LoadError {
    fn from(error: RingError) -> Self {
        Self::Ring(error)
    }
}

/// Totals so far, warm-up included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Since the start of the warm-up.
    pub elapsed: Duration,
    /// Messages sent.
    pub sent: u64,
    /// Messages answered.
    pub answered: u64,
    /// Messages received.
    pub received: u64,
    /// The longest intended latency since the last look, in nanoseconds.
    pub worst_ns: u64,
}

/// How often [`measure`] shows its progress.
pub const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// What a load measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// Sent to accepted.
    pub produced: Option<Block>,
    /// Sent to received. Of a load without producers: what came, by the time it came; the latency
    /// is then the age of those that say when they were sent.
    pub consumed: Option<Block>,
    /// Messages that were accepted, warm-up included: what a queue holds more than before.
    pub accepted: u64,
    /// Messages that were received and settled, warm-up included: what it holds less.
    pub received: u64,
    /// Of those, messages that were checked and not as they were sent, or not in order.
    pub wrong: u64,
}

/// Carries out a plan that has producers; their block. [`measure`] gives more.
///
/// # Errors
/// See [`LoadError`].
pub fn run(plan: &LoadPlan) -> Result<Block, LoadError> {
    if plan.producers.total() == 0 {
        return Err(LoadError::Plan("no producers"));
    }
    let measured = measure(plan, &mut |_| ControlFlow::Continue(()))?;
    Ok(measured.produced.expect("a plan with producers"))
}

/// Takes `count` messages from the plan's addresses, so that a queue is as it was; how many came
/// before none did for the plan's patience.
///
/// # Errors
/// See [`LoadError`].
pub fn drain(plan: &LoadPlan, count: u64) -> Result<u64, LoadError> {
    if count == 0 {
        return Ok(0);
    }
    let each = u32::try_from(plan.addresses.len()).unwrap_or(u32::MAX);
    let plan = LoadPlan {
        producers: Links::NONE,
        consumers: Links { connections: 1, each },
        credit: 1024,
        rate: None,
        receive_rate: None,
        held: 0,
        warmup: Duration::ZERO,
        length: Length::Count(count),
        threads: 1,
        ..plan.clone()
    };
    let measured = measure(&plan, &mut |_| ControlFlow::Continue(()))?;
    Ok(measured.consumed.map_or(0, |block| block.completed))
}

/// Carries out a plan. `observe` is shown the progress every [`PROGRESS_EVERY`], and may break off.
///
/// # Errors
/// See [`LoadError`].
pub fn measure(
    plan: &LoadPlan,
    observe: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
) -> Result<Measured, LoadError> {
    plan.check()?;
    let shared = Arc::new(Shared::new(plan));
    let (to_us, from_threads) = mpsc::channel();
    let crew = Crew::start(plan, &shared, &to_us)?;
    drop(to_us);
    let outcome = crew.lead(plan, &shared, &from_threads, observe);
    if outcome.is_err() {
        shared.abort.store(1, Ordering::Relaxed);
    }
    crew.dismiss();
    outcome
}

/// What the threads have in common.
#[derive(Debug, Default)]
struct Shared {
    /// Tells the messages of this run from others.
    run: u32,
    sent: AtomicU64,
    answered: AtomicU64,
    accepted: AtomicU64,
    received: AtomicU64,
    wrong: AtomicU64,
    worst_ns: AtomicU64,
    /// Producers that have nothing more to send or to wait for.
    producers_over: AtomicU64,
    /// Not 0: break off.
    abort: AtomicU64,
}

impl Shared {
    fn new(plan: &LoadPlan) -> Self {
        // Different for each run of a process and each process of a machine.
        static RUNS: AtomicU64 = AtomicU64::new(0);
        let number = RUNS.fetch_add(1, Ordering::Relaxed) ^ plan.seed.rotate_left(32);
        let run = (monotonic_ns() ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15)) >> 16;
        Self { run: run as u32, ..Self::default() }
    }

    fn progress(&self, elapsed: Duration) -> Progress {
        Progress {
            elapsed,
            sent: self.sent.load(Ordering::Relaxed),
            answered: self.answered.load(Ordering::Relaxed),
            received: self.received.load(Ordering::Relaxed),
            worst_ns: self.worst_ns.swap(0, Ordering::Relaxed),
        }
    }
}

/// Where offsets count from, on two scales of the same clock.
#[derive(Clone, Copy, Debug)]
struct Origin {
    at: Instant,
    /// CLOCK_MONOTONIC, for the stamps.
    monotonic_ns: u64,
}

impl Origin {
    fn in_a_moment() -> Self {
        const MOMENT: Duration = Duration::from_millis(2);
        let monotonic_ns = monotonic_ns() + nanos(MOMENT);
        Self { at: clock() + MOMENT, monotonic_ns }
    }

    /// Nanoseconds since then; 0 before.
    #[inline]
    fn elapsed_ns(self) -> u64 {
        nanos(clock().saturating_duration_since(self.at))
    }
}

/// What a thread says to the one that leads.
enum Word {
    Ready,
    Done(Box<Share>),
    Failed(LoadError),
}

/// What one thread recorded.
struct Share {
    produced: Recorder,
    consumed: Recorder,
    ended: Ended,
}

/// The threads of a load.
struct Crew {
    starts: Vec<mpsc::Sender<Origin>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Crew {
    fn start(
        plan: &LoadPlan,
        shared: &Arc<Shared>,
        to_us: &mpsc::Sender<Word>,
    ) -> Result<Self, LoadError> {
        let mut crew = Self { starts: Vec::new(), threads: Vec::new() };
        for number in 0..plan.threads {
            let (start, started) = mpsc::channel();
            let (plan, shared, to_us) = (plan.clone(), Arc::clone(shared), to_us.clone());
            let work = move || {
                let word = match runner::run(&plan, number, &shared, &to_us, &started) {
                    Ok(share) => Word::Done(Box::new(share)),
                    Err(error) => Word::Failed(error),
                };
                // Nobody listens any more where another thread failed first.
                drop(to_us.send(word));
            };
            let thread = std::thread::Builder::new()
                .name(format!("load-{number}"))
                .spawn(work)
                .map_err(LoadError::Thread)?;
            crew.starts.push(start);
            crew.threads.push(thread);
        }
        Ok(crew)
    }

    fn lead(
        &self,
        plan: &LoadPlan,
        shared: &Shared,
        words: &mpsc::Receiver<Word>,
        observe: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<Measured, LoadError> {
        for _ in &self.threads {
            match words.recv() {
                Ok(Word::Ready) => {}
                Ok(Word::Failed(error)) => return Err(error),
                Ok(Word::Done(_)) | Err(_) => return Err(LoadError::Stopped),
            }
        }
        let origin = Origin::in_a_moment();
        for start in &self.starts {
            // A thread that is gone has said why.
            let _ = start.send(origin);
        }
        let mut server = ServerCpu::new(plan);
        let mut shares: Vec<Share> = Vec::with_capacity(self.threads.len());
        while shares.len() < self.threads.len() {
            match words.recv_timeout(server.next_look(origin.elapsed_ns())) {
                Ok(Word::Done(share)) => shares.push(*share),
                Ok(Word::Failed(error)) => return Err(error),
                Ok(Word::Ready) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(LoadError::Stopped),
                Err(RecvTimeoutError::Timeout) => {
                    server.look(origin.elapsed_ns());
                    let progress = shared.progress(clock().saturating_duration_since(origin.at));
                    if observe(&progress).is_break() {
                        return Err(LoadError::Stopped);
                    }
                }
            }
        }
        let [accepted, received, wrong] = [&shared.accepted, &shared.received, &shared.wrong]
            .map(|count| count.load(Ordering::Relaxed));
        let merged = merge(plan, shares, server.spent());
        Ok(Measured { accepted, received, wrong, ..merged })
    }

    fn dismiss(self) {
        drop(self.starts);
        for thread in self.threads {
            // A panic aborts the process, so there is nothing to learn here.
            drop(thread.join());
        }
    }
}

/// The CPU time of the peer's process over the block: read where the warm-up ends and at the end.
struct ServerCpu {
    process: Option<u32>,
    start_ns: u64,
    at_start: Option<u64>,
}

impl ServerCpu {
    fn new(plan: &LoadPlan) -> Self {
        Self { process: plan.server_process, start_ns: plan.window().start_ns, at_start: None }
    }

    fn next_look(&self, now_ns: u64) -> Duration {
        if self.process.is_none() || self.at_start.is_some() {
            return PROGRESS_EVERY;
        }
        PROGRESS_EVERY.min(Duration::from_nanos(self.start_ns.saturating_sub(now_ns)))
    }

    fn look(&mut self, now_ns: u64) {
        if self.at_start.is_none() && now_ns >= self.start_ns {
            self.at_start = self.process.and_then(machine::cpu_of_process);
            // A process that cannot be read is not asked again.
            if self.at_start.is_none() {
                self.process = None;
            }
        }
    }

    fn spent(&self) -> Option<u64> {
        let now = machine::cpu_of_process(self.process?)?;
        now.checked_sub(self.at_start?)
    }
}

fn merge(plan: &LoadPlan, shares: Vec<Share>, cpu_server_ns: Option<u64>) -> Measured {
    let ended: Vec<Ended> = shares.iter().map(|share| share.ended).collect();
    let mut shares = shares.into_iter();
    let Share { mut produced, mut consumed, .. } = shares.next().expect("at least one thread");
    for share in shares {
        produced.add(&share.produced);
        consumed.add(&share.consumed);
    }
    let produces = plan.producers.total() > 0;
    let finish = |recorder: Recorder| Block { cpu_server_ns, ..recorder.finish(&ended) };
    let produced = produces.then(|| finish(produced));
    let consumed = (plan.consumers.total() > 0).then(|| {
        if let Some(produced) = &produced {
            consumed.never_came(produced.completed);
        }
        finish(consumed)
    });
    Measured { produced, consumed, accepted: 0, received: 0, wrong: 0 }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[expect(clippy::disallowed_methods, reason = "a tool that talks to the world reads its clock")]
fn clock() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn plan(addr: SocketAddr) -> LoadPlan {
        LoadPlan { patience: Duration::from_millis(100), ..LoadPlan::new(Target::new(addr)) }
    }

    fn refused(change: impl FnOnce(&mut LoadPlan)) -> &'static str {
        let mut plan = plan(SocketAddr::from(([127, 0, 0, 1], 1)));
        change(&mut plan);
        match plan.check() {
            Err(LoadError::Plan(rule)) => rule,
            Ok(()) | Err(_) => panic!("the plan is taken: {plan:?}"),
        }
    }

    #[test]
    fn a_plan_out_of_bounds_is_refused_with_its_rule() {
        assert!(plan(SocketAddr::from(([127, 0, 0, 1], 1))).check().is_ok());
        assert!(refused(|plan| plan.addresses.clear()).contains("address"));
        assert!(refused(|plan| plan.producers = Links::NONE).contains("neither"));
        assert!(refused(|plan| plan.producers.each = 0).contains("neither"));
        assert!(refused(|plan| plan.threads = 0).contains("threads"));
        assert!(refused(|plan| plan.in_flight = 0).contains("in flight"));
        assert!(refused(|plan| plan.rate = Some(0.0)).contains("rate"));
        assert!(refused(|plan| plan.length = Length::Count(0)).contains("count"));
        assert!(refused(|plan| plan.producers = Links::alone(100_001)).contains("links"));
        let small = |plan: &mut LoadPlan| (plan.consumers, plan.size) = (Links::ONE, 31);
        assert!(refused(small).contains("32 bytes"));
    }

    #[test]
    fn nobody_there_is_an_error_at_once_however_many_threads_ask() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = listener.local_addr().expect("bound");
        drop(listener);
        let plan = LoadPlan { threads: 3, producers: Links::alone(5), ..plan(addr) };
        assert!(matches!(run(&plan), Err(LoadError::Unreachable { .. })));
    }

    #[test]
    fn a_silent_peer_is_an_error_after_the_patience() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let plan = plan(listener.local_addr().expect("bound"));
        match run(&plan) {
            Err(LoadError::NotReady { what, after }) => {
                assert!(what.contains("session") && after == plan.patience, "{what}");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_peer_that_hangs_up_is_an_error_with_its_reason() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let plan = plan(listener.local_addr().expect("bound"));
        let hang_up = std::thread::Builder::new().spawn(move || drop(listener.accept()));
        let outcome = run(&plan);
        hang_up.expect("a thread").join().expect("it hangs up");
        // The kernel may tell of it as an end or as a reset.
        assert!(
            matches!(outcome, Err(LoadError::Refused(_) | LoadError::Unreachable { .. })),
            "{outcome:?}"
        );
    }
}
