//! The admin API's listener: a bound on connections, so that they cannot use up the descriptors
//! that the journals need.
//!
//! ```text
//!   accept ──▶ a permit is free: the connection holds it until it is closed
//!              none is free: the next connections wait in the kernel's queue
//!   no byte either way for IDLE ──▶ the connection fails, and gives its permit back
//! ```
//! Without the second rule, connections that say nothing would lock out the orchestrator's probes.
//!
//! Failure: an accept that fails is tried again after a moment, as axum's own listener does.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

/// Connections that are open at a time.
const CONNECTIONS_MAX: usize = 256;

/// A connection on which nothing moves for so long is closed. Longer than any answer takes.
const IDLE: Duration = Duration::from_secs(90);

/// After a failed accept.
const RETRY: Duration = Duration::from_millis(100);

/// A listener whose connections are counted.
pub(super) struct Bounded {
    listener: TcpListener,
    permits: Arc<Semaphore>,
}

impl Bounded {
    /// At most [`CONNECTIONS_MAX`] of this listener's connections at a time.
    pub(super) fn new(listener: TcpListener) -> Self {
        Self { listener, permits: Arc::new(Semaphore::new(CONNECTIONS_MAX)) }
    }
}

impl axum::serve::Listener for Bounded {
    type Io = Counted;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Counted, SocketAddr) {
        loop {
            let permits = Arc::clone(&self.permits);
            let permit = permits.acquire_owned().await.expect("the semaphore is never closed");
            match self.listener.accept().await {
                Ok((stream, peer)) => return (Counted::new(stream, permit, IDLE), peer),
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

/// A connection that holds its permit, and fails when nothing moves on it.
pub(super) struct Counted {
    stream: TcpStream,
    idle: Duration,
    over: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

impl Counted {
    fn new(stream: TcpStream, permit: OwnedSemaphorePermit, idle: Duration) -> Self {
        Self { stream, idle, over: Box::pin(tokio::time::sleep(idle)), _permit: permit }
    }

    /// What the stream said, unless it has been silent for too long.
    fn unless_idle<T>(
        &mut self,
        context: &mut Context<'_>,
        said: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if said.is_ready() {
            let idle = self.idle;
            self.over.set(tokio::time::sleep(idle));
            return said;
        }
        ready!(self.over.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
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
    use super::*;

    #[test]
    fn a_connection_that_says_nothing_gives_its_permit_back() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let addr = listener.local_addr().expect("bound");
            let _silent = TcpStream::connect(addr).await.expect("connected");
            let (stream, _) = listener.accept().await.expect("accepted");
            let permits = Arc::new(Semaphore::new(1));
            let permit = Arc::clone(&permits).acquire_owned().await.expect("free");
            let mut counted = Counted::new(stream, permit, Duration::from_millis(50));
            let (mut byte, within) = ([0], Duration::from_secs(10));
            let read = std::future::poll_fn(|context| {
                Pin::new(&mut counted).poll_read(context, &mut ReadBuf::new(&mut byte))
            });
            let error = tokio::time::timeout(within, read)
                .await
                .expect("it ends by itself")
                .expect_err("nothing was said");
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            drop(counted);
            assert_eq!(permits.available_permits(), 1);
        });
    }
}
