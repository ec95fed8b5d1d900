//! The ring against the real kernel: sockets on 127.0.0.1, files on a disk, several threads.
//!
//! ```text
//!   sockets    accept, receive, send, back-pressure, resets, closing, teardown
//!   disk       durable writes in flight, registered memory, files that come and go
//!   crossing   mail and doorbells between rings, where a lost wake-up would hang
//!   storm      random commands under seeds; the books must balance
//!   tls        sessions whose keys wear out
//!   refused    what a process hears that may not have io_uring
//! ```
//!
//! Each test of a ring runs over both engines (`over_both_engines`), which must not be told apart
//! but by what they cost.
//!
//! Invariant: every wait is bounded (`PATIENCE`); a test that hangs is a failure with a name.

#![expect(clippy::unwrap_used, reason = "a test's unwrap is an assertion")]
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a test expects one completion, panics at others"
)]

/// Makes a test of each function for each engine: `sockets::uring::…`, `sockets::epoll::…`.
macro_rules! over_both_engines {
    ($($(#[$how:meta])* $test:ident,)*) => {
        mod uring {
            $(#[test] $(#[$how])* fn $test() { super::$test(net::Engine::Uring); })*
        }
        mod epoll {
            $(#[test] $(#[$how])* fn $test() { super::$test(net::Engine::Epoll); })*
        }
    };
}

mod crossing;
mod disk;
mod refused;
mod sockets;
mod storm;
mod tls;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use net::{Completion, Engine, ListenerId, Ring, RingConfig, SocketId, TcpListen};

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// The clock of the tests' own patience.
#[expect(clippy::disallowed_methods, reason = "tests of the kernel side measure real time")]
fn now() -> Instant {
    Instant::now()
}

/// The defaults, on this engine.
fn on(engine: Engine) -> RingConfig {
    RingConfig { engine, ..RingConfig::default() }
}

/// A ring with the completions that no test step has taken yet.
struct Core {
    ring: Ring,
    seen: VecDeque<Completion>,
}

impl Core {
    fn new(config: RingConfig) -> Self {
        Self { ring: Ring::new(config).unwrap(), seen: VecDeque::new() }
    }

    fn listen(&mut self) -> (ListenerId, SocketAddr) {
        let addr = SocketAddr::from(([127, 0, 0, 1], 0));
        self.ring.listen(TcpListen { addr, reuse_port: false, backlog: 1024 }).unwrap()
    }

    /// Waits once and keeps what came.
    fn turn(&mut self, timeout: Duration) {
        let mut completions = Vec::new();
        self.ring.wait(Some(timeout), &mut completions).unwrap();
        self.seen.extend(completions);
    }

    /// The next completion. It waits long, so that nothing but what must wake the ring does.
    fn next(&mut self) -> Completion {
        let until = now() + PATIENCE;
        loop {
            if let Some(completion) = self.seen.pop_front() {
                return completion;
            }
            assert!(now() < until, "nothing completes");
            self.turn(until - now());
        }
    }

    /// Everything that completes within `time`.
    fn settle(&mut self, time: Duration) -> Vec<Completion> {
        let until = now() + time;
        while now() < until {
            self.turn(Duration::from_millis(5));
        }
        self.seen.drain(..).collect()
    }

    fn accepted(&mut self) -> SocketId {
        match self.next() {
            Completion::Accepted { socket, .. } => socket,
            other => panic!("{other:?} instead of a connection"),
        }
    }

    /// The bytes of the next completion, which must be received ones.
    fn received(&mut self) -> (SocketId, Vec<u8>) {
        match self.next() {
            Completion::Received { socket, lease } => {
                let bytes = self.ring.bytes(&lease).to_vec();
                assert_eq!(bytes.len(), lease.bytes());
                self.ring.release(lease);
                (socket, bytes)
            }
            other => panic!("{other:?} instead of bytes"),
        }
    }

    /// Takes leases home that the test doesn't care for.
    fn drop_all(&mut self, completions: Vec<Completion>) {
        for completion in completions {
            if let Completion::Received { lease, .. } = completion {
                self.ring.release(lease);
            }
        }
    }
}
