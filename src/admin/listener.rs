//! The admin API's listener: bounds on connections, so that they cannot use up the descriptors that
//! the journals need, nor lock out the orchestrator's probes.
//!
//! ```text
//!   accept ──▶ its address has its share: the oldest of that address is broken off
//!          ──▶ a permit is free: the connection holds it until it is closed
//!              none is free: the oldest of all is broken off, and its permit waited for
//!   no byte either way for IDLE, and no request under way ──▶ the connection fails, and gives its
//!              permit back
//! ```
//! So whoever holds connections open, with a byte now and then or without, holds up nobody: a probe
//! is the newest when it comes, and is over long before it is the oldest.
//!
//! Failure: an accept that fails is tried again after a moment, as axum's own listener does. A
//! connection that is told to go and does not, for a request of it is carried out, goes after that;
//! the next one is told meanwhile.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Sleep;

use crate::auth::address;

/// Connections that are open at a time.
const CONNECTIONS_MAX: usize = 256;

/// Connections that are open at a time from one address, loopback too.
const PER_ADDRESS_MAX: usize = 64;

/// A connection on which nothing moves for so long is closed, unless it waits for an answer.
const IDLE: Duration = Duration::from_secs(90);

/// After a failed accept, and for a connection that was told to go.
const RETRY: Duration = Duration::from_millis(100);

/// A listener whose connections are counted.
pub(super) struct Bounded {
    listener: TcpListener,
    permits: Arc<Semaphore>,
    per_address_max: usize,
    /// Those that were not told to go, oldest first.
    open: VecDeque<Open>,
}

/// A connection, as its listener knows it. It is told to go by the end of this.
struct Open {
    from: IpAddr,
    stays: oneshot::Sender<Infallible>,
}

impl Bounded {
    /// At most [`CONNECTIONS_MAX`] of this listener's connections at a time, [`PER_ADDRESS_MAX`]
    /// of them from one address.
    pub(super) fn new(listener: TcpListener) -> Self {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        Self { listener, permits, per_address_max: PER_ADDRESS_MAX, open: VecDeque::new() }
    }

    /// Room for one more connection; old ones make it where there is none.
    async fn room_for(&mut self, from: IpAddr) -> OwnedSemaphorePermit {
        self.open.retain(|one| !one.stays.is_closed());
        let mut of_address = (0..self.open.len()).filter(|at| self.open[*at].from == from);
        let oldest = of_address.next();
        let mut told = oldest.is_some() && of_address.count() + 1 >= self.per_address_max;
        if let Some(oldest) = oldest.filter(|_| told) {
            self.open.remove(oldest);
        }
        loop {
            let free = Arc::clone(&self.permits).try_acquire_owned();
            if let Ok(permit) = free {
                return permit;
            }
            if !std::mem::take(&mut told) {
                self.open.pop_front();
            }
            let freed = Arc::clone(&self.permits).acquire_owned();
            if let Ok(permit) = tokio::time::timeout(RETRY, freed).await {
                return permit.expect("the semaphore is never closed");
            }
        }
    }
}

impl axum::serve::Listener for Bounded {
    type Io = Counted;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Counted, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let from = address(peer);
                    let permit = self.room_for(from).await;
                    let (stays, told) = oneshot::channel();
                    self.open.push_back(Open { from, stays });
                    return (Counted::new(stream, permit, told, IDLE), peer);
                }
                Err(error) => {
                    tracing::debug!("the admin API cannot accept: {error}");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that holds its permit, and fails when nothing moves on it, or it is told to go.
pub(super) struct Counted {
    stream: TcpStream,
    idle: Duration,
    over: Pin<Box<Sleep>>,
    under_way: Arc<AtomicUsize>,
    told: oneshot::Receiver<Infallible>,
    _permit: OwnedSemaphorePermit,
}

impl Counted {
    fn new(
        stream: TcpStream,
        permit: OwnedSemaphorePermit,
        told: oneshot::Receiver<Infallible>,
        idle: Duration,
    ) -> Self {
        let (over, under_way) = (Box::pin(tokio::time::sleep(idle)), Arc::default());
        Self { stream, idle, over, under_way, told, _permit: permit }
    }

    /// How many requests of this connection are being carried out.
    pub(super) fn under_way(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.under_way)
    }

    /// An error where it was told to go. Asked first: what fails has neither read nor written.
    fn stays(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        // One that has answered may not be asked again.
        if self.told.is_terminated() || Pin::new(&mut self.told).poll(context).is_ready() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }

    /// What the stream said, unless it has been silent for too long.
    fn unless_idle<T>(
        &mut self,
        context: &mut Context<'_>,
        said: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let idle = self.idle;
        if said.is_ready() {
            self.over.set(tokio::time::sleep(idle));
            return said;
        }
        loop {
            ready!(self.over.as_mut().poll(context));
            if self.under_way.load(Ordering::Relaxed) == 0 {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            self.over.set(tokio::time::sleep(idle));
        }
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stays(context)?;
        let said = Pin::new(&mut self.stream).poll_read(context, buf);
        self.unless_idle(context, said)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stays(context)?;
        let said = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.unless_idle(context, said)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use axum::serve::Listener as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// A listener of so many connections, so many of them from one address.
    async fn bounded(connections_max: usize, per_address_max: usize) -> (Bounded, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("bound");
        let permits = Arc::new(Semaphore::new(connections_max));
        (Bounded { permits, per_address_max, ..Bounded::new(listener) }, addr)
    }

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            tokio::time::timeout(Duration::from_secs(10), test).await.expect("it ends by itself");
        });
    }

    /// A client from this address of loopback, which says a byte, and its connection here.
    async fn client(listener: &mut Bounded, to: SocketAddr, from: &str) -> (TcpStream, Counted) {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::new(from.parse().expect("an address"), 0)).expect("bound");
        let mut client = socket.connect(to).await.expect("connected");
        client.write_all(b"G").await.expect("written");
        let (counted, _) = listener.accept().await;
        (client, counted)
    }

    /// What is read from a connection until nothing is there.
    async fn read(counted: &mut Counted) -> io::Result<()> {
        let mut said = Vec::new();
        let all = counted.read_to_end(&mut said);
        match tokio::time::timeout(Duration::from_millis(50), all).await {
            Ok(ended) => ended.map(drop),
            Err(_) => Ok(()),
        }
    }

    #[test]
    fn a_connection_that_says_nothing_gives_its_permit_back() {
        run(async {
            let (mut listener, addr) = bounded(1, 1).await;
            let (_silent, counted) = client(&mut listener, addr, "127.0.0.1").await;
            let mut counted = Counted { idle: Duration::from_millis(50), ..counted };
            let error = counted.read_to_end(&mut Vec::new()).await.expect_err("no more");
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            drop(counted);
            assert_eq!(listener.permits.available_permits(), 1);
        });
    }

    #[test]
    fn who_waits_for_an_answer_is_not_idle() {
        run(async {
            let (mut listener, addr) = bounded(1, 1).await;
            let (_asking, counted) = client(&mut listener, addr, "127.0.0.1").await;
            let mut counted = Counted { idle: Duration::from_millis(50), ..counted };
            counted.over.set(tokio::time::sleep(counted.idle));
            let under_way = counted.under_way();
            under_way.fetch_add(1, Ordering::Relaxed);
            let mut none = Vec::new();
            let wait =
                tokio::time::timeout(Duration::from_millis(200), counted.read_to_end(&mut none));
            wait.await.expect_err("it stays");
            under_way.fetch_sub(1, Ordering::Relaxed);
            let error = counted.read_to_end(&mut none).await.expect_err("no more");
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        });
    }

    #[test]
    fn where_no_permit_is_free_the_oldest_makes_room() {
        run(async {
            let (mut listener, addr) = bounded(2, 2).await;
            let mut first = client(&mut listener, addr, "127.0.0.2").await;
            let mut second = client(&mut listener, addr, "127.0.0.3").await;
            read(&mut first.1).await.expect("it stays");
            // As its task would: a connection that is told to go is dropped.
            let first = tokio::spawn(async move {
                let error = first.1.read_to_end(&mut Vec::new()).await;
                error.expect_err("it goes").kind()
            });
            let mut probe = client(&mut listener, addr, "127.0.0.1").await;
            assert_eq!(first.await.expect("it ends"), io::ErrorKind::ConnectionAborted);
            read(&mut second.1).await.expect("it stays");
            read(&mut probe.1).await.expect("it stays");
        });
    }

    #[test]
    fn an_address_takes_no_room_from_the_others() {
        run(async {
            let (mut listener, addr) = bounded(8, 2).await;
            let mut other = client(&mut listener, addr, "127.0.0.1").await;
            let mut many = Vec::new();
            for _ in 0..4 {
                many.push(client(&mut listener, addr, "127.0.0.2").await);
            }
            for (at, (_, counted)) in many.iter_mut().enumerate() {
                assert_eq!(read(counted).await.is_ok(), at >= 2, "{at}");
            }
            read(&mut other.1).await.expect("it stays");
            drop(many);
            client(&mut listener, addr, "127.0.0.2").await;
            assert_eq!(listener.open.len(), 2, "what is over is forgotten");
        });
    }
}
