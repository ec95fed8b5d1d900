//! The epoll engine: readiness, non-blocking calls, and the loop around `epoll_wait`.
//!
//! ```text
//!   kernel: edge-triggered events --> readable, writable of a socket or listener (remembered)
//!   caller: commands              --> wants to receive, has bytes to send
//!                                        both --> a place in `todo`
//!
//!   wait:  1 work    `todo`: accept, send, receive, at most `completions_per_wait_max` results
//!          2 ask     epoll_wait; block unless there are results or work; maybe poll first
//!          3 work    what the events woke, and the writers' results
//!
//!   files: a job -> a writer thread -> pwritev2(RWF_DSYNC) -> results + eventfd   (disk.rs)
//! ```
//!
//! Each socket is added once, edge-triggered, for all events, and never modified: what the kernel
//! told is remembered until a call says otherwise, so that receiving can pause and go on without a
//! system call. Results at hand are handed out without asking the kernel first, but never twice in
//! a row: so an answer costs a send and no `epoll_wait`, and new events come a turn later at most.
//!
//! Invariants: what wants work and may go on is in `todo`, or waits for a buffer in `starved`. An
//! event for a socket that is gone is recognised by its generation. This engine has no `unsafe`,
//! but for the signals in `disk.rs`.
//!
//! Failure: an error of `epoll_wait` other than an interruption loses the ring. A drop waits for
//! the writers as long as `DRAIN_MAX`; those that take longer go on by themselves, with all that
//! they need.

mod buffers;
mod disk;
mod sockets;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;

use self::buffers::Buffers;
use self::disk::{FileSlot, Writers};
use self::sockets::{Listener, Socket};
use crate::buf::StaticRegion;
use crate::doorbell::Doorbell;
use crate::lease::RecvLease;
use crate::now;
use crate::pace::Pace;
use crate::ring::{
    Completion, DRAIN_MAX, ListenerId, MemoryUse, RingConfig, RingError, RingStats, SocketId,
    WAIT_MAX,
};
use crate::slab::{Key, Slab};

/// Events that one `epoll_wait` takes; what is left comes with the next.
const EVENTS_MAX: usize = 256;

pub(crate) struct Epoll {
    epoll: OwnedFd,
    bell: Doorbell,
    buffers: Buffers,
    sockets: Slab<Socket>,
    sockets_max: usize,
    listeners: Slab<Listener>,
    files: Slab<FileSlot>,
    files_max: usize,
    writers: Writers,
    /// Who may be able to go on.
    todo: VecDeque<Waker>,
    /// Sockets that found no receive buffer; some may have changed their mind.
    starved: VecDeque<SocketId>,
    ready: Vec<Completion>,
    events: Vec<Event>,
    results_max: usize,
    /// The last wait asked the kernel.
    asked: bool,
    pace: Pace,
    clock: Clock,
    counters: RingStats,
}

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waker {
    Bell,
    Listener(ListenerId),
    Socket(SocketId),
}

impl Epoll {
    pub(crate) fn new(config: &RingConfig) -> Result<Self, RingError> {
        let setup_error = |part| move |error: io::Error| RingError::Setup { part, error };
        let epoll = epoll::create(CreateFlags::CLOEXEC)
            .map_err(|errno| setup_error("epoll")(errno.into()))?;
        let bell = Doorbell::new(None).map_err(setup_error("doorbell"))?;
        let buffers = Buffers::new(config.recv_buffers, config.recv_buffer_bytes)
            .map_err(setup_error("receive buffers"))?;
        let writers = Writers::start(config.writers_max, bell.clone())
            .map_err(setup_error("writer threads"))?;
        // Edge-triggered, the counter needs no reading: each knock is an edge.
        epoll::add(&epoll, bell.eventfd(), Waker::Bell.encode(), EventFlags::IN | EventFlags::ET)
            .map_err(|errno| setup_error("doorbell")(errno.into()))?;
        Ok(Self {
            epoll,
            bell,
            buffers,
            sockets: Slab::new(),
            sockets_max: config.sockets_max,
            listeners: Slab::new(),
            files: Slab::new(),
            files_max: config.files_max as usize,
            writers,
            todo: VecDeque::new(),
            starved: VecDeque::new(),
            ready: Vec::new(),
            events: Vec::with_capacity(EVENTS_MAX),
            results_max: config.completions_per_wait_max,
            asked: false,
            pace: Pace::new(config.spin),
            clock: Clock::Fine,
            counters: RingStats::default(),
        })
    }

    pub(crate) fn wait(
        &mut self,
        timeout: Option<Duration>,
        completions: &mut Vec<Completion>,
    ) -> Result<(), RingError> {
        self.feed_starved();
        self.wake_listeners();
        self.work();
        let asked = self.ask(timeout);
        self.work();
        self.counters.completions += self.ready.len() as u64;
        completions.append(&mut self.ready);
        asked.map_err(RingError::Wait)
    }

    pub(crate) fn bytes(&self, lease: &RecvLease) -> &[u8] {
        self.buffers.bytes(lease)
    }

    pub(crate) fn release(&mut self, lease: RecvLease) {
        self.buffers.release(lease);
    }

    pub(crate) fn doorbell(&self) -> Doorbell {
        self.bell.clone()
    }

    pub(crate) fn knock(&mut self, bell: &Doorbell) {
        bell.knock();
    }

    /// Threads that copy need no pinned memory.
    pub(crate) fn register_memory(&mut self, _regions: &[StaticRegion]) -> MemoryUse {
        MemoryUse::Unneeded
    }

    /// Who waits for the kernel or a writer counts as an operation, and the bell.
    pub(crate) fn stats(&self) -> RingStats {
        let accepting = self.listeners.iter().filter(|(_, listener)| listener.accepts()).count();
        let sockets = self.sockets.iter().map(|(_, socket)| socket.operations()).sum::<usize>();
        let operations = 1 + accepting + sockets + self.writers.under_way();
        RingStats {
            leases_out: u32::from(self.buffers.out()),
            sockets: u32::try_from(self.sockets.len()).unwrap_or(u32::MAX),
            operations: u32::try_from(operations).unwrap_or(u32::MAX),
            ..self.counters
        }
    }

    /// Lets everyone go on who may, until this turn has results enough.
    fn work(&mut self) {
        self.take_results();
        while self.ready.len() < self.results_max
            && let Some(waker) = self.todo.pop_front()
        {
            match waker {
                Waker::Socket(id) => self.serve(id),
                Waker::Listener(id) => self.accept(id),
                Waker::Bell => unreachable!("the bell has no work of its own"),
            }
        }
    }

    /// Takes events from the kernel, and waits for them where nothing else is there to be done.
    fn ask(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let fed = !self.starved.is_empty() && self.buffers.free() > 0;
        let at_hand =
            fed || !self.ready.is_empty() || !self.todo.is_empty() || self.writers.has_results();
        if at_hand && std::mem::take(&mut self.asked) {
            return Ok(());
        }
        self.asked = true;
        let timeout = if at_hand { Some(Duration::ZERO) } else { self.shorten(timeout) };
        if timeout != Some(Duration::ZERO) && self.pace.worthwhile() && self.poll(timeout)? {
            self.counters.spin_hits += 1;
            return Ok(());
        }
        self.collect(timeout).map(drop)
    }

    /// The caller's timeout, but no longer than the first listener rests.
    fn shorten(&self, timeout: Option<Duration>) -> Option<Duration> {
        let timeout = timeout.map(|timeout| timeout.min(WAIT_MAX));
        let rests = self.listeners.iter().filter_map(|(_, listener)| listener.resting_until);
        let Some(rest) = rests.min() else { return timeout };
        let rest = rest.saturating_duration_since(now());
        Some(timeout.map_or(rest, |timeout| timeout.min(rest)))
    }

    /// Watches for events without blocking; whether there were some.
    fn poll(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        let until = now() + timeout.map_or(self.pace.cap, |timeout| timeout.min(self.pace.cap));
        loop {
            if self.collect(Some(Duration::ZERO))? {
                return Ok(true);
            }
            if now() >= until {
                return Ok(false);
            }
            std::hint::spin_loop();
        }
    }

    /// One `epoll_wait`; whether it brought events.
    fn collect(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        self.counters.enters += 1;
        self.events.clear();
        match self.clock.wait(&self.epoll, &mut self.events, timeout) {
            Ok(()) => {}
            Err(Errno::INTR) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        }
        let mut events = std::mem::take(&mut self.events);
        let some = !events.is_empty();
        if some {
            self.pace.arrived();
        }
        for event in events.drain(..) {
            let flags = event.flags;
            match self.woken(event.data.u64()) {
                Some(Waker::Bell) => self.writers.announced(),
                Some(Waker::Listener(id)) => self.connections_came(id),
                Some(Waker::Socket(id)) => self.socket_woke(id, flags),
                // It was closed after the kernel had told.
                None => {}
            }
        }
        self.events = events;
        Ok(some)
    }

    /// Whom an event is about, if it is still there.
    fn woken(&self, data: u64) -> Option<Waker> {
        match data & KIND_MASK {
            BELL => Some(Waker::Bell),
            LISTENER => self.listeners.find(data).map(|key| Waker::Listener(ListenerId(key))),
            SOCKET => self.sockets.find(data).map(|key| Waker::Socket(SocketId(key))),
            0..=u64::MAX => unreachable!("an event of nothing that was ever watched: {data:#x}"),
        }
    }

    fn watch_socket(&self, id: SocketId, socket: &socket2::Socket) -> io::Result<()> {
        let flags =
            EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::PRI | EventFlags::ET;
        Ok(epoll::add(&self.epoll, socket, Waker::Socket(id).encode(), flags)?)
    }

    /// No more events for a socket that stays open.
    fn forget_socket(&self, socket: &socket2::Socket) {
        // It was added and is open: there is nothing that could fail.
        epoll::delete(&self.epoll, socket).expect("a socket of the table is in the list");
    }

    fn watch_listener(&self, id: ListenerId, socket: &socket2::Socket) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::ET;
        Ok(epoll::add(&self.epoll, socket, Waker::Listener(id).encode(), flags)?)
    }
}

impl Drop for Epoll {
    /// Peers need not wait for the disk. Nothing that was not handed out holds a lease.
    fn drop(&mut self) {
        self.sockets = Slab::new();
        self.listeners = Slab::new();
        self.writers.finish(DRAIN_MAX);
    }
}

impl fmt::Debug for Epoll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Epoll").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// How finely a wait can be timed: `epoll_pwait2` (5.11) takes nanoseconds, but filters may not
/// know it; then milliseconds, rounded up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Clock {
    Fine,
    Coarse,
}

impl Clock {
    /// Waits for events. (`rustix` takes the old call for whole milliseconds.)
    fn wait(
        &mut self,
        epoll: &OwnedFd,
        events: &mut Vec<Event>,
        timeout: Option<Duration>,
    ) -> Result<(), Errno> {
        let waited = epoll::wait(
            epoll,
            rustix::buffer::spare_capacity(events),
            timeout.map(|timeout| self.timespec(timeout)).as_ref(),
        );
        match waited {
            Err(Errno::NOSYS | Errno::PERM) if *self == Self::Fine => {
                *self = Self::Coarse;
                self.wait(epoll, events, timeout)
            }
            waited => waited.map(drop),
        }
    }

    fn timespec(self, timeout: Duration) -> Timespec {
        let timeout = match self {
            Self::Fine => timeout,
            Self::Coarse => {
                let millis = timeout.as_nanos().div_ceil(1_000_000);
                Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
            }
        };
        let seconds = timeout.as_secs().try_into().expect("waits are shorter than WAIT_MAX");
        Timespec { tv_sec: seconds, tv_nsec: timeout.subsec_nanos().into() }
    }
}

/// What an event carries: `kind:8 | generation:24 | slot:32`.
const BELL: u64 = 1 << KIND_SHIFT;
const LISTENER: u64 = 2 << KIND_SHIFT;
const SOCKET: u64 = 3 << KIND_SHIFT;
const KIND_SHIFT: u32 = Key::NUMBER_BITS;
const KIND_MASK: u64 = !((1 << KIND_SHIFT) - 1);

impl Waker {
    fn encode(self) -> EventData {
        EventData::new_u64(match self {
            Self::Bell => BELL,
            Self::Listener(id) => LISTENER | id.0.number(),
            Self::Socket(id) => SOCKET | id.0.number(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coarse_wait_is_never_shorter() {
        let millis = |clock: Clock, micros| {
            let timespec = clock.timespec(Duration::from_micros(micros));
            (timespec.tv_sec, timespec.tv_nsec)
        };
        assert_eq!(millis(Clock::Coarse, 0), (0, 0));
        assert_eq!(millis(Clock::Coarse, 1), (0, 1_000_000));
        assert_eq!(millis(Clock::Coarse, 2_000), (0, 2_000_000));
        assert_eq!(millis(Clock::Coarse, 1_999_001), (2, 0));
        assert_eq!(millis(Clock::Fine, 200), (0, 200_000));
    }

    #[test]
    fn an_event_finds_whom_it_is_about_and_nobody_later() {
        let mut epoll = Epoll::new(&RingConfig::default()).unwrap();
        let (first, _) = epoll.listen(listen()).unwrap();
        let data = Waker::Listener(first).encode().u64();
        assert_eq!(epoll.woken(data), Some(Waker::Listener(first)));
        epoll.stop_listening(first);
        let (second, _) = epoll.listen(listen()).unwrap();
        assert_eq!(second.0.slot, first.0.slot);
        assert_eq!(epoll.woken(data), None);
        assert_eq!(epoll.woken(Waker::Bell.encode().u64()), Some(Waker::Bell));
    }

    fn listen() -> crate::ring::TcpListen {
        let addr = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        crate::ring::TcpListen { addr, reuse_port: false, backlog: 1 }
    }
}
