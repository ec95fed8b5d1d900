//! Listeners and sockets of the epoll engine.
//!
//! ```text
//!   what the kernel told     readable, writable: until a call answers "not now", or takes or gives
//!                            less than was asked for
//!   what the caller wants    Off <-- pause, start --> On -- end or error --> Ended
//!                            unsent: bytes; shutdown_wanted
//!
//!   serve:  connecting and writable     -> connected, or failed
//!           unsent and writable         -> one send of up to BATCH_BUFS buffers
//!           On and readable             -> one receive; no buffer: into `starved`
//!           and once more, behind the others, while either may go on
//!
//!   accept: readable, room, not resting -> one connection, and once more behind the others
//!   close:  what is unsent fails, the descriptor goes, Closed: nothing is ever under way in it
//!   hand_over: out of the table and of the kernel's list, HandedOver
//! ```
//!
//! A receive that fills less than its buffer has emptied the socket, so the call that would only
//! say so is saved. Not so where the end, an error or urgent data was told: no new event follows
//! for what lies behind that, so there it is read until the kernel says that it has nothing more.
//!
//! Invariants: who can go on is in `todo`, or in `starved` if only a buffer is missing. A socket
//! that is gone is not in the table, so an old id finds nothing.
//!
//! Failure: a peer's reset ends in `ReceiveEnded` and `Sent` errors; the caller closes.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Instant;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, SocketFlags};

use super::{Epoll, Waker};
use crate::ring::{ACCEPT_RETRY, Completion, ListenerId, SocketId, TcpListen};
use crate::{now, tcp};

/// Buffers that one send takes.
const BATCH_BUFS: usize = 16;

/// Bytes that one send takes: the bound on a turn's part for one socket.
const BATCH_BYTES: usize = 1 << 20;

pub(super) struct Listener {
    socket: socket2::Socket,
    /// Connections wait, as far as the kernel told.
    readable: bool,
    pub(super) resting_until: Option<Instant>,
    /// Until there is room for a socket.
    full: bool,
    /// It has a place in `todo`.
    queued: bool,
}

impl Listener {
    fn new(socket: socket2::Socket) -> Self {
        Self { socket, readable: false, resting_until: None, full: false, queued: false }
    }

    pub(super) fn accepts(&self) -> bool {
        !self.full && self.resting_until.is_none()
    }
}

pub(super) struct Socket {
    socket: socket2::Socket,
    connecting: bool,
    receiving: Receiving,
    readable: bool,
    /// A short receive has not emptied the socket: it must be asked until it says so.
    to_the_end: bool,
    writable: bool,
    unsent: VecDeque<Vec<u8>>,
    /// Bytes of the first unsent buffer that the kernel took.
    sent: usize,
    /// The error that broke the sending side.
    broken: Option<Errno>,
    shutdown_wanted: bool,
    /// It has a place in `todo`, or in `starved`.
    queued: bool,
    starved: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Receiving {
    Off,
    On,
    Ended,
}

impl Socket {
    fn new(socket: socket2::Socket, connecting: bool) -> Self {
        Self {
            socket,
            connecting,
            receiving: Receiving::Off,
            readable: false,
            to_the_end: false,
            writable: !connecting,
            unsent: VecDeque::new(),
            sent: 0,
            broken: None,
            shutdown_wanted: false,
            queued: false,
            starved: false,
        }
    }

    fn may_send(&self) -> bool {
        !self.connecting && self.writable && (!self.unsent.is_empty() || self.shutdown_wanted)
    }

    fn may_receive(&self) -> bool {
        !self.connecting && self.readable && self.receiving == Receiving::On
    }

    fn may_go_on(&self) -> bool {
        let connected = self.connecting && self.writable;
        connected || self.may_send() || (self.may_receive() && !self.starved)
    }

    /// As the other engine would have them with the kernel.
    pub(super) fn operations(&self) -> usize {
        let receiving = self.receiving == Receiving::On && !self.connecting && !self.starved;
        let sending = !self.connecting && !self.unsent.is_empty();
        [self.connecting, receiving, sending].into_iter().filter(|&under_way| under_way).count()
    }
}

/// Commands.
impl Epoll {
    pub(crate) fn listen(&mut self, listen: TcpListen) -> io::Result<(ListenerId, SocketAddr)> {
        let (socket, addr) = tcp::listener(listen)?;
        socket.set_nonblocking(true)?;
        let id = ListenerId(self.listeners.insert(Listener::new(socket)));
        let listener = self.listeners.get(id.0).expect("it was just put there");
        if let Err(error) = self.watch_listener(id, &listener.socket) {
            drop(self.listeners.remove(id.0));
            return Err(error);
        }
        Ok((id, addr))
    }

    pub(crate) fn stop_listening(&mut self, id: ListenerId) {
        if self.listeners.remove(id.0).is_some() {
            self.ready.push(Completion::ListenerClosed { listener: id });
        }
    }

    pub(crate) fn connect(&mut self, addr: SocketAddr) -> io::Result<SocketId> {
        let socket = tcp::stream(addr)?;
        socket.set_nonblocking(true)?;
        let begun = match socket.connect(&addr.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
            // Finished already is told like finished later, by an event.
            Ok(()) | Err(_) => Ok(()),
        };
        let id = self.add(socket, true)?;
        if let Err(error) = begun {
            self.connected(id, Err(error));
        }
        Ok(id)
    }

    pub(crate) fn adopt(&mut self, stream: TcpStream) -> io::Result<SocketId> {
        stream.set_nonblocking(true)?;
        self.add(stream.into(), false)
    }

    pub(crate) fn hand_over(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get(id.0) else { return };
        let unsent = !socket.unsent.is_empty();
        assert!(!unsent && !socket.connecting, "{id:?} leaves with sends under way");
        self.forget_socket(&socket.socket);
        let gone = self.sockets.remove(id.0).expect("it was just looked at");
        let stream = gone.socket.into();
        self.ready.push(Completion::HandedOver { socket: id, stream });
    }

    pub(crate) fn start_receive(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get_mut(id.0) else { return };
        if socket.receiving == Receiving::Off {
            socket.receiving = Receiving::On;
            self.go_on(id);
        }
    }

    pub(crate) fn pause_receive(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get_mut(id.0) else { return };
        if socket.receiving == Receiving::On {
            socket.receiving = Receiving::Off;
        }
    }

    pub(crate) fn send(&mut self, id: SocketId, buf: Vec<u8>) {
        let refused = match self.sockets.get_mut(id.0) {
            None => Err(io::ErrorKind::NotConnected.into()),
            Some(socket) => match socket.broken {
                Some(errno) => Err(errno.into()),
                None => {
                    socket.unsent.push_back(buf);
                    return self.go_on(id);
                }
            },
        };
        self.ready.push(Completion::Sent { socket: id, buf, result: refused });
    }

    pub(crate) fn shutdown_write(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get_mut(id.0) else { return };
        socket.shutdown_wanted = true;
        self.go_on(id);
    }

    pub(crate) fn close(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get(id.0) else { return };
        if socket.connecting {
            self.connected(id, Err(Errno::CANCELED.into()));
        }
        self.fail_unsent(id, Errno::CANCELED);
        drop(self.sockets.remove(id.0));
        self.ready.push(Completion::Closed { socket: id });
    }
}

/// What the kernel tells.
impl Epoll {
    pub(super) fn connections_came(&mut self, id: ListenerId) {
        self.listener_mut(id).readable = true;
        self.accept_more(id);
    }

    pub(super) fn socket_woke(&mut self, id: SocketId, flags: EventFlags) {
        let over = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
        let socket = self.socket_mut(id);
        socket.readable |= flags.intersects(EventFlags::IN | EventFlags::PRI | over);
        socket.to_the_end |= flags.intersects(EventFlags::PRI | over);
        socket.writable |= flags.intersects(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR);
        self.go_on(id);
    }
}

/// Listeners.
impl Epoll {
    /// Takes one connection, if one waits and may be taken.
    pub(super) fn accept(&mut self, id: ListenerId) {
        let Some(listener) = self.listeners.get_mut(id.0) else { return };
        listener.queued = false;
        if !listener.readable || !listener.accepts() {
            return;
        }
        if self.sockets.len() >= self.sockets_max {
            return self.accept_no_more(id);
        }
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        match rustix::net::acceptfrom_with(&listener.socket, flags) {
            Ok((fd, peer)) => {
                let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
                self.welcome(id, socket2::Socket::from(fd), peer);
            }
            Err(Errno::AGAIN) => {
                listener.readable = false;
                return;
            }
            Err(errno) if tcp::passes(errno.raw_os_error()) => {}
            Err(errno) => return self.rest(id, errno.into()),
        }
        self.accept_more(id);
    }

    /// Puts a listener in the line.
    fn accept_more(&mut self, id: ListenerId) {
        if !mem::replace(&mut self.listener_mut(id).queued, true) {
            self.todo.push_back(Waker::Listener(id));
        }
    }

    /// A connection that is broken already is dropped.
    fn welcome(&mut self, id: ListenerId, socket: socket2::Socket, peer: Option<SocketAddr>) {
        let (Some(peer), Ok(())) = (peer, socket.set_tcp_nodelay(true)) else { return };
        match self.add(socket, false) {
            Ok(socket) => self.ready.push(Completion::Accepted { listener: id, socket, peer }),
            Err(error) => return self.rest(id, error),
        }
        if self.sockets.len() >= self.sockets_max {
            self.accept_no_more(id);
        }
    }

    /// Leaves further connections to the kernel's queue until one of ours is closed.
    fn accept_no_more(&mut self, id: ListenerId) {
        if !mem::replace(&mut self.listener_mut(id).full, true) {
            let error = io::ErrorKind::QuotaExceeded.into();
            self.ready.push(Completion::AcceptFailed { listener: id, error });
        }
    }

    fn rest(&mut self, id: ListenerId, error: io::Error) {
        self.listener_mut(id).resting_until = Some(now() + ACCEPT_RETRY);
        self.ready.push(Completion::AcceptFailed { listener: id, error });
    }

    /// Goes on accepting where the rest is over, or there is room again.
    pub(super) fn wake_listeners(&mut self) {
        if self.listeners.iter().all(|(_, listener)| listener.accepts()) {
            return;
        }
        let now = now();
        let room = self.sockets.len() < self.sockets_max;
        for id in self.listeners.keys().into_iter().map(ListenerId) {
            let listener = self.listener_mut(id);
            let before = listener.accepts();
            listener.full &= !room;
            listener.resting_until = listener.resting_until.filter(|&until| until > now);
            if !before && listener.accepts() {
                self.accept_more(id);
            }
        }
    }

    fn listener_mut(&mut self, id: ListenerId) -> &mut Listener {
        self.listeners.get_mut(id.0).expect("the listener was just found")
    }
}

/// Sockets.
impl Epoll {
    /// Gives a socket its place, and the kernel the wish to hear of it.
    fn add(&mut self, socket: socket2::Socket, connecting: bool) -> io::Result<SocketId> {
        let id = SocketId(self.sockets.insert(Socket::new(socket, connecting)));
        let socket = self.sockets.get(id.0).expect("it was just put there");
        if let Err(error) = self.watch_socket(id, &socket.socket) {
            drop(self.sockets.remove(id.0));
            return Err(error);
        }
        Ok(id)
    }

    /// Puts a socket in the line, if there is something that it may do.
    fn go_on(&mut self, id: SocketId) {
        let socket = self.socket_mut(id);
        if socket.may_go_on() && !mem::replace(&mut socket.queued, true) {
            self.todo.push_back(Waker::Socket(id));
        }
    }

    /// Does what a socket may do, once each.
    pub(super) fn serve(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get_mut(id.0) else { return };
        socket.queued = false;
        if socket.connecting && socket.writable {
            let result = match socket.socket.take_error() {
                Ok(None) => Ok(()),
                Ok(Some(error)) | Err(error) => Err(error),
            };
            self.connected(id, result);
        }
        if self.socket_mut(id).may_send() {
            self.send_some(id);
        }
        if self.socket_mut(id).may_receive() {
            self.receive_some(id);
        }
        self.go_on(id);
    }

    fn connected(&mut self, id: SocketId, result: io::Result<()>) {
        let socket = self.socket_mut(id);
        socket.connecting = false;
        let broken = result.as_ref().err().map(|error| {
            // The next receive tells what became of the connection, without an event.
            socket.readable = true;
            Errno::from_io_error(error).unwrap_or(Errno::IO)
        });
        self.ready.push(Completion::Connected { socket: id, result });
        if let Some(errno) = broken {
            self.fail_unsent(id, errno);
        }
    }

    fn send_some(&mut self, id: SocketId) {
        let socket = self.sockets.get_mut(id.0).expect("the socket was just found");
        if socket.unsent.is_empty() {
            if mem::take(&mut socket.shutdown_wanted) {
                // A peer that is gone made it needless.
                let _ = socket.socket.shutdown(Shutdown::Write);
            }
            return;
        }
        let (taken, wanted) = send_batch(socket);
        match taken {
            Ok(0) if wanted > 0 => self.fail_unsent(id, Errno::PIPE),
            Ok(bytes) => {
                socket.writable = bytes == wanted;
                socket.sent += bytes;
                while let Some(first) = socket.unsent.front()
                    && socket.sent >= first.len()
                {
                    socket.sent -= first.len();
                    let buf = socket.unsent.pop_front().expect("it was just looked at");
                    self.ready.push(Completion::Sent { socket: id, buf, result: Ok(()) });
                }
            }
            Err(Errno::AGAIN) => socket.writable = false,
            Err(Errno::INTR) => {}
            Err(errno) => self.fail_unsent(id, errno),
        }
    }

    /// Breaks the sending side.
    fn fail_unsent(&mut self, id: SocketId, errno: Errno) {
        let socket = self.sockets.get_mut(id.0).expect("the socket was just found");
        socket.broken = Some(errno);
        socket.shutdown_wanted = false;
        socket.sent = 0;
        for buf in mem::take(&mut socket.unsent) {
            let result = Err(errno.into());
            self.ready.push(Completion::Sent { socket: id, buf, result });
        }
    }

    fn receive_some(&mut self, id: SocketId) {
        let socket = self.sockets.get_mut(id.0).expect("the socket was just found");
        let Some(buffer) = self.buffers.take() else {
            if !mem::replace(&mut socket.starved, true) {
                self.counters.recv_starved += 1;
                self.starved.push_back(id);
            }
            return;
        };
        let memory = self.buffers.memory_mut(buffer);
        let room = memory.len();
        let received = rustix::net::recv(&socket.socket, memory, RecvFlags::empty());
        let ended = match received.map(|(_, bytes)| bytes) {
            Ok(bytes) if bytes > 0 => {
                socket.readable = socket.to_the_end || bytes == room;
                let lease = self.buffers.lend(buffer, bytes);
                self.ready.push(Completion::Received { socket: id, lease });
                return;
            }
            Ok(_) => Some(Ok(())),
            Err(Errno::AGAIN) => {
                socket.readable = false;
                socket.to_the_end = false;
                None
            }
            Err(Errno::INTR) => None,
            Err(errno) => Some(Err(errno.into())),
        };
        self.buffers.give_back(buffer);
        if let Some(result) = ended {
            socket.receiving = Receiving::Ended;
            self.ready.push(Completion::ReceiveEnded { socket: id, result });
        }
    }

    /// Lets those go on who found no buffer: as many as there are free buffers now. Those that
    /// changed their mind take no buffer, or the last in the line would wait for another's event.
    /// They come before those whose events are newer.
    pub(super) fn feed_starved(&mut self) {
        let mut free = self.buffers.free();
        let mut fed = 0;
        while free > 0
            && let Some(id) = self.starved.pop_front()
        {
            let Some(socket) = self.sockets.get_mut(id.0) else { continue };
            socket.starved = false;
            if socket.may_receive() && !mem::replace(&mut socket.queued, true) {
                self.todo.insert(fed, Waker::Socket(id));
                fed += 1;
                free -= 1;
            }
        }
    }

    fn socket_mut(&mut self, id: SocketId) -> &mut Socket {
        self.sockets.get_mut(id.0).expect("the socket was just found")
    }
}

/// One system call for the first unsent buffers: bytes that the kernel took, and bytes it was
/// given.
fn send_batch(socket: &Socket) -> (Result<usize, Errno>, usize) {
    let mut slices = [IoSlice::new(&[]); BATCH_BUFS];
    let mut wanted = 0;
    let mut count = 0;
    let mut skip = socket.sent;
    for buf in socket.unsent.iter().take(BATCH_BUFS) {
        let rest = &buf[mem::take(&mut skip)..];
        let rest = &rest[..rest.len().min(BATCH_BYTES - wanted)];
        slices[count] = IoSlice::new(rest);
        count += 1;
        wanted += rest.len();
        if wanted == BATCH_BYTES {
            break;
        }
    }
    let taken = match &slices[..count] {
        _ if wanted == 0 => Ok(0),
        [only] => rustix::net::send(&socket.socket, only, SendFlags::NOSIGNAL),
        several => {
            let mut none = SendAncillaryBuffer::default();
            rustix::net::sendmsg(&socket.socket, several, &mut none, SendFlags::NOSIGNAL)
        }
    };
    (taken, wanted)
}
