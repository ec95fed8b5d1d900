//! TCP sockets as both engines make them.
//!
//! ```text
//!   listener(TcpListen)   SO_REUSEADDR, SO_REUSEPORT on demand, bind, listen -> socket, address
//!   stream(addr)          a socket to connect, TCP_NODELAY
//!   passes(errno)         an accept that failed for the peer's sake: the next may do
//! ```
//!
//! Failure: the kernel's word.

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::ring::TcpListen;

/// Binds and listens.
pub(crate) fn listener(listen: TcpListen) -> io::Result<(Socket, SocketAddr)> {
    let socket = socket(listen.addr)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(listen.reuse_port)?;
    socket.bind(&listen.addr.into())?;
    socket.listen(i32::from(listen.backlog))?;
    let addr = inet(socket.local_addr()?)?;
    Ok((socket, addr))
}

/// A socket to be connected.
pub(crate) fn stream(addr: SocketAddr) -> io::Result<Socket> {
    let socket = socket(addr)?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket)
}

/// Whether a failed accept says nothing about the next one.
pub(crate) fn passes(errno: i32) -> bool {
    matches!(
        errno,
        libc::ECANCELED | libc::ECONNABORTED | libc::EINTR | libc::EAGAIN | libc::EPROTO
    )
}

pub(crate) fn inet(addr: SockAddr) -> io::Result<SocketAddr> {
    addr.as_socket().ok_or_else(|| io::ErrorKind::Unsupported.into())
}

fn socket(addr: SocketAddr) -> io::Result<Socket> {
    Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))
}
