//! A floor's server on a thread with a ring of its own, as a core of the broker is.
//!
//! ```text
//!   Served::start ── thread: ring, listen ──▶ its address
//!        │                    serve: echo, commit or copy
//!        └ stop: the flag, a knock at the ring's bell, the thread's end
//! ```
//! It runs in a process of its own: `process.rs`. Failure: what the server says when it is stopped.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use net::{Doorbell, TcpListen};

use super::commit::{self, Store};
use super::{FloorError, copy, echo, new_ring};

/// What is served.
pub(super) enum Service {
    /// Each byte comes back.
    Echo,
    /// Each request of so many bytes is answered once it is durable.
    Commit {
        /// Bytes of a request.
        request_bytes: usize,
        /// Where it is written.
        store: Store,
        /// Who writes it too, if somebody does.
        copy: Option<SocketAddr>,
    },
    /// Each group of a commit floor is answered once it is durable here.
    Copy(Store),
}

/// Set once: the server's thread is to end.
#[derive(Clone, Default)]
pub(super) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Seen once for each turn.
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A server that runs.
pub(super) struct Served {
    addr: SocketAddr,
    stop: Stop,
    bell: Doorbell,
    thread: Option<JoinHandle<Result<(), FloorError>>>,
}

impl Served {
    /// Starts a server on a free port of loopback.
    ///
    /// # Errors
    /// No thread, no ring, or no port.
    pub(super) fn start(service: Service) -> Result<Self, FloorError> {
        let stop = Stop::default();
        let (tell, told) = mpsc::channel();
        let body = {
            let stop = stop.clone();
            move || {
                let mut ring = new_ring()?;
                let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
                let listen = TcpListen { addr, reuse_port: false, backlog: 1024 };
                let (_, addr) = ring.listen(listen).map_err(FloorError::io("listen"))?;
                // Nobody listens any more only if the starter is gone.
                let _ = tell.send((addr, ring.doorbell()));
                match service {
                    Service::Echo => echo::serve(&mut ring, &stop).map_err(FloorError::Ring),
                    Service::Commit { request_bytes, store, copy } => {
                        commit::serve(&mut ring, &stop, request_bytes, &store, copy)
                    }
                    Service::Copy(store) => copy::serve(&mut ring, &stop, &store),
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("floor".to_owned())
            .spawn(body)
            .map_err(FloorError::io("a thread"))?;
        match told.recv() {
            Ok((addr, bell)) => Ok(Self { addr, stop, bell, thread: Some(thread) }),
            Err(mpsc::RecvError) => Err(ended(thread.join()).err().unwrap_or(FloorError::Ended)),
        }
    }

    /// Where it answers.
    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Ends it.
    ///
    /// # Errors
    /// What it failed with while it served.
    pub(super) fn stop(mut self) -> Result<(), FloorError> {
        self.end()
    }

    fn end(&mut self) -> Result<(), FloorError> {
        self.stop.0.store(true, Ordering::Relaxed);
        self.bell.knock();
        self.thread.take().map_or(Ok(()), |thread| ended(thread.join()))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // Whoever wants to know has called `stop`.
        let _ = self.end();
    }
}

fn ended(joined: std::thread::Result<Result<(), FloorError>>) -> Result<(), FloorError> {
    joined.unwrap_or(Err(FloorError::Ended))
}

/// An empty buffer, of those that came back if there is one.
pub(super) fn spare(idle: &mut Vec<Vec<u8>>) -> Vec<u8> {
    let mut buf = idle.pop().unwrap_or_default();
    buf.clear();
    buf
}
