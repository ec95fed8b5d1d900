//! Listeners and sockets of the io_uring engine.
//!
//! ```text
//!   receiving   Off --start--> On --pause--> Stopping --last completion--> Off, or On if resumed
//!                ^              |  ENOBUFS; or started before it is connected
//!                +--- pause --- Waiting --a buffer is free, connected--> On
//!               On, Stopping --end or error--> Ended
//!
//!   accepting   armed --sockets_max--> full --a socket is closed--> armed
//!                ^  '-- no descriptor, ...--> resting
//!                '------- ACCEPT_RETRY ----------'
//!
//!   sending     idle --send--> one operation with the kernel, the rest queued --> idle
//!               not connected yet: all queued
//!               an error: that send and all after it fail
//!
//!   closing     close: cancel, shut down both ways -> the last operation ends -> fd closed, Closed
//!   leaving     hand_over: stop receiving -> its last completion -> out of the table, HandedOver
//! ```
//!
//! Invariants: an operation's socket is in the table (it is removed when it has none), so a
//! completion always finds its socket. The shutdown makes sure that a receive or send ends even if
//! the kernel missed its cancel. Sockets are blocking ones: io_uring waits for readiness itself,
//! and would answer `EAGAIN` on a non-blocking one.
//!
//! Failure: a peer's reset ends in `ReceiveEnded` and `Sent` errors; the caller closes.

#![expect(unsafe_code, reason = "an accepted descriptor comes as a number")]

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::Instant;

use super::Uring;
use super::ops::Op;
use crate::ring::{ACCEPT_RETRY, Completion, ListenerId, SocketId, TcpListen};
use crate::slab::Key;
use crate::{now, tcp};

pub(super) struct Listener {
    pub(super) socket: socket2::Socket,
    accepting: Option<Key>,
    pub(super) resting_until: Option<Instant>,
    /// Until there is room for a socket.
    full: bool,
    closing: bool,
}

pub(super) struct Socket {
    pub(super) socket: socket2::Socket,
    connecting: Option<Key>,
    receiving: Receiving,
    sending: Option<Key>,
    unsent: VecDeque<Vec<u8>>,
    /// The errno that broke the sending side.
    broken: Option<i32>,
    shutdown_wanted: bool,
    closing: bool,
    /// On its way to another ring.
    leaving: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Receiving {
    Off,
    On(Key),
    Stopping {
        resume: bool,
    },
    /// For a buffer or the connection; then it is armed.
    Waiting,
    Ended,
}

impl Socket {
    fn new(socket: socket2::Socket) -> Self {
        Self {
            socket,
            connecting: None,
            receiving: Receiving::Off,
            sending: None,
            unsent: VecDeque::new(),
            broken: None,
            shutdown_wanted: false,
            closing: false,
            leaving: false,
        }
    }

    fn idle(&self) -> bool {
        let receiving = match self.receiving {
            Receiving::On(_) | Receiving::Stopping { .. } => true,
            Receiving::Off | Receiving::Waiting | Receiving::Ended => false,
        };
        !receiving && self.sending.is_none() && self.connecting.is_none()
    }
}

/// Commands.
impl Uring {
    pub(crate) fn listen(&mut self, listen: TcpListen) -> io::Result<(ListenerId, SocketAddr)> {
        let (socket, addr) = tcp::listener(listen)?;
        let listener =
            Listener { socket, accepting: None, resting_until: None, full: false, closing: false };
        let id = ListenerId(self.listeners.insert(listener));
        self.accept(id);
        Ok((id, addr))
    }

    pub(crate) fn stop_listening(&mut self, id: ListenerId) {
        let Some(listener) = self.listeners.get_mut(id.0).filter(|listener| !listener.closing)
        else {
            return;
        };
        listener.closing = true;
        listener.resting_until = None;
        // An error would mean that it doesn't listen; the cancel ends the accept too.
        let _ = listener.socket.shutdown(Shutdown::Both);
        match listener.accepting {
            Some(key) => self.cancel(key),
            None => self.finish_listener(id),
        }
    }

    pub(crate) fn connect(&mut self, addr: SocketAddr) -> io::Result<SocketId> {
        let socket = tcp::stream(addr)?;
        let id = SocketId(self.sockets.insert(Socket::new(socket)));
        let key = self.start(Op::Connect { socket: id, addr: Box::new(addr.into()) });
        self.socket_mut(id).connecting = Some(key);
        Ok(id)
    }

    pub(crate) fn adopt(&mut self, stream: TcpStream) -> io::Result<SocketId> {
        stream.set_nonblocking(false)?;
        Ok(SocketId(self.sockets.insert(Socket::new(stream.into()))))
    }

    pub(crate) fn hand_over(&mut self, id: SocketId) {
        self.pause_receive(id);
        let Some(socket) = self.open_socket(id) else { return };
        let unsent = socket.sending.is_some() || !socket.unsent.is_empty();
        assert!(!unsent && socket.connecting.is_none(), "{id:?} leaves with sends under way");
        socket.leaving = true;
        self.finish_socket(id);
    }

    pub(crate) fn start_receive(&mut self, id: SocketId) {
        let Some(socket) = self.open_socket(id) else { return };
        match socket.receiving {
            Receiving::Off if socket.connecting.is_some() => socket.receiving = Receiving::Waiting,
            Receiving::Off => self.receive(id),
            Receiving::Stopping { .. } => socket.receiving = Receiving::Stopping { resume: true },
            Receiving::On(_) | Receiving::Waiting | Receiving::Ended => {}
        }
    }

    pub(crate) fn pause_receive(&mut self, id: SocketId) {
        let Some(socket) = self.open_socket(id) else { return };
        match socket.receiving {
            Receiving::On(key) => {
                socket.receiving = Receiving::Stopping { resume: false };
                self.cancel(key);
            }
            Receiving::Stopping { .. } => socket.receiving = Receiving::Stopping { resume: false },
            Receiving::Waiting => socket.receiving = Receiving::Off,
            Receiving::Off | Receiving::Ended => {}
        }
    }

    pub(crate) fn send(&mut self, id: SocketId, buf: Vec<u8>) {
        let Some(socket) = self.open_socket(id) else {
            let result = Err(io::ErrorKind::NotConnected.into());
            self.ready.push(Completion::Sent { socket: id, buf, result });
            return;
        };
        if let Some(errno) = socket.broken {
            let result = Err(io::Error::from_raw_os_error(errno));
            self.ready.push(Completion::Sent { socket: id, buf, result });
            return;
        }
        socket.unsent.push_back(buf);
        self.send_next(id);
    }

    pub(crate) fn shutdown_write(&mut self, id: SocketId) {
        let Some(socket) = self.open_socket(id) else { return };
        socket.shutdown_wanted = true;
        self.send_next(id);
    }

    pub(crate) fn close(&mut self, id: SocketId) {
        let socket = self.sockets.get_mut(id.0).filter(|socket| !socket.closing);
        let Some(socket) = socket else { return };
        socket.closing = true;
        // Not connected (any more) is as good.
        let _ = socket.socket.shutdown(Shutdown::Both);
        let receiving = match socket.receiving {
            Receiving::On(key) => Some(key),
            Receiving::Off | Receiving::Stopping { .. } | Receiving::Waiting | Receiving::Ended => {
                None
            }
        };
        let sending = socket.sending;
        let under_way = [receiving, sending, socket.connecting];
        for key in under_way.into_iter().flatten() {
            self.cancel(key);
        }
        // Behind a send under way the queue fails after it, so that sends come back in order.
        if sending.is_none() {
            self.fail_unsent(id, libc::ECANCELED);
        }
        self.finish_socket(id);
    }
}

/// Completions.
impl Uring {
    pub(super) fn accepted(&mut self, id: ListenerId, result: i32, more: bool) {
        if result >= 0 {
            // SAFETY: the kernel just opened this descriptor for us, and nobody else knows of it.
            let fd = unsafe { OwnedFd::from_raw_fd(result) };
            self.welcome(id, socket2::Socket::from(fd));
        } else {
            self.accept_failed(id, -result);
        }
        if more {
            return;
        }
        let listener = self.listener_mut(id);
        listener.accepting = None;
        if listener.closing {
            self.finish_listener(id);
        } else if listener.resting_until.is_none() && !listener.full {
            self.accept(id);
        }
    }

    /// A connection that came after the listener was stopped, or is broken already, is dropped.
    fn welcome(&mut self, id: ListenerId, socket: socket2::Socket) {
        let ready = socket.set_tcp_nodelay(true).and_then(|()| tcp::inet(socket.peer_addr()?));
        if let Ok(peer) = ready
            && !self.listener(id).closing
        {
            if self.sockets.len() < self.sockets_max {
                let socket = SocketId(self.sockets.insert(Socket::new(socket)));
                self.ready.push(Completion::Accepted { listener: id, socket, peer });
            }
            if self.sockets.len() >= self.sockets_max {
                self.accept_no_more(id);
            }
        }
    }

    /// Leaves further connections to the kernel's queue until one of ours is closed.
    fn accept_no_more(&mut self, id: ListenerId) {
        let listener = self.listener_mut(id);
        if mem::replace(&mut listener.full, true) {
            return;
        }
        let accepting = listener.accepting;
        let error = io::ErrorKind::QuotaExceeded.into();
        self.ready.push(Completion::AcceptFailed { listener: id, error });
        if let Some(key) = accepting {
            self.cancel(key);
        }
    }

    fn accept_failed(&mut self, id: ListenerId, errno: i32) {
        let listener = self.listener_mut(id);
        if !tcp::passes(errno) && !listener.closing {
            listener.resting_until = Some(now() + ACCEPT_RETRY);
            let error = io::Error::from_raw_os_error(errno);
            self.ready.push(Completion::AcceptFailed { listener: id, error });
        }
    }

    pub(super) fn connected(&mut self, id: SocketId, result: i32) {
        let socket = self.socket_mut(id);
        socket.connecting = None;
        let waiting = socket.receiving == Receiving::Waiting && !socket.closing;
        if result < 0 {
            let error = io::Error::from_raw_os_error(-result);
            self.ready.push(Completion::Connected { socket: id, result: Err(error) });
            self.socket_mut(id).broken = Some(-result);
            self.fail_unsent(id, -result);
        } else {
            self.ready.push(Completion::Connected { socket: id, result: Ok(()) });
            self.send_next(id);
        }
        if waiting {
            self.receive(id);
        }
        self.finish_socket(id);
    }

    pub(super) fn received(&mut self, id: SocketId, result: i32, buffer: Option<u16>, more: bool) {
        let closing = self.socket(id).closing;
        match (buffer, u32::try_from(result)) {
            (Some(buffer), Ok(bytes)) if bytes > 0 => {
                let lease = self.buffers.lend(buffer, bytes);
                if closing {
                    self.release(lease);
                } else {
                    self.ready.push(Completion::Received { socket: id, lease });
                }
            }
            (Some(buffer), _) => self.buffers.refuse(buffer),
            (None, _) => {}
        }
        if more {
            return;
        }
        let socket = self.socket_mut(id);
        let resume = match socket.receiving {
            Receiving::On(_) => true,
            Receiving::Stopping { resume } => resume,
            Receiving::Off | Receiving::Waiting | Receiving::Ended => {
                unreachable!("{id:?} received without receiving")
            }
        };
        socket.receiving = Receiving::Off;
        if closing {
            self.finish_socket(id);
            return;
        }
        match -result {
            0 => self.receive_ended(id, Ok(())),
            libc::ENOBUFS if resume => {
                socket.receiving = Receiving::Waiting;
                self.starved.push_back(id);
                self.counters.recv_starved += 1;
            }
            // Data, whose multishot the kernel chose to end here; or nothing at all.
            i32::MIN..0 | libc::ENOBUFS | libc::ECANCELED | libc::EINTR | libc::EAGAIN => {
                if resume {
                    self.receive(id);
                }
            }
            errno => self.receive_ended(id, Err(io::Error::from_raw_os_error(errno))),
        }
        self.finish_socket(id);
    }

    fn receive_ended(&mut self, id: SocketId, result: io::Result<()>) {
        self.socket_mut(id).receiving = Receiving::Ended;
        self.ready.push(Completion::ReceiveEnded { socket: id, result });
    }

    pub(super) fn sent(&mut self, id: SocketId, buf: Vec<u8>, sent: usize, result: i32) {
        let sent = sent + usize::try_from(result).unwrap_or(0);
        let closing = self.socket(id).closing;
        self.socket_mut(id).sending = None;
        if sent == buf.len() {
            self.ready.push(Completion::Sent { socket: id, buf, result: Ok(()) });
            if closing {
                self.fail_unsent(id, libc::ECANCELED);
            } else {
                self.send_next(id);
            }
        } else if !closing && (result > 0 || matches!(-result, libc::EINTR | libc::EAGAIN)) {
            let key = self.start(Op::Send { socket: id, buf, sent });
            self.socket_mut(id).sending = Some(key);
        } else {
            // A stream socket that takes nothing, or was cut short by a close.
            let errno = if result < 0 { -result } else { libc::ECANCELED };
            let result = Err(io::Error::from_raw_os_error(errno));
            self.ready.push(Completion::Sent { socket: id, buf, result });
            self.socket_mut(id).broken = Some(errno);
            self.fail_unsent(id, errno);
        }
        self.finish_socket(id);
    }
}

/// Steps.
impl Uring {
    /// Arms the receives that found no buffer: as many as there are free buffers now. Those that
    /// changed their mind take no buffer, or the last in the line would wait for another's event.
    pub(super) fn feed_starved(&mut self) {
        let mut free = self.buffers.free();
        while free > 0
            && let Some(id) = self.starved.pop_front()
        {
            let waits = |socket: &mut Socket| socket.receiving == Receiving::Waiting;
            if self.open_socket(id).is_some_and(waits) {
                self.receive(id);
                free -= 1;
            }
        }
    }

    /// Goes on accepting where the rest is over, or there is room again.
    pub(super) fn wake_listeners(&mut self) {
        let waits = |listener: &Listener| listener.resting_until.is_some() || listener.full;
        if !self.listeners.iter().any(|(_, listener)| waits(listener)) {
            return;
        }
        let now = now();
        let room = self.sockets.len() < self.sockets_max;
        for id in self.listeners.keys().into_iter().map(ListenerId) {
            let listener = self.listener_mut(id);
            let before = waits(listener);
            listener.full &= !room;
            listener.resting_until = listener.resting_until.filter(|&until| until > now);
            let goes_on = before && !waits(listener) && !listener.closing;
            if goes_on && listener.accepting.is_none() {
                self.accept(id);
            }
        }
    }

    fn accept(&mut self, id: ListenerId) {
        let key = self.start(Op::Accept(id));
        self.listener_mut(id).accepting = Some(key);
    }

    fn receive(&mut self, id: SocketId) {
        let key = self.start(Op::Receive(id));
        self.socket_mut(id).receiving = Receiving::On(key);
    }

    /// Starts the next send, or ends our half of the stream behind the last one.
    fn send_next(&mut self, id: SocketId) {
        loop {
            let socket = self.socket_mut(id);
            if socket.sending.is_some() || socket.connecting.is_some() || socket.closing {
                return;
            }
            let Some(buf) = socket.unsent.pop_front() else {
                if mem::take(&mut socket.shutdown_wanted) {
                    // A peer that is gone made it needless.
                    let _ = socket.socket.shutdown(Shutdown::Write);
                }
                return;
            };
            if buf.is_empty() {
                self.ready.push(Completion::Sent { socket: id, buf, result: Ok(()) });
                continue;
            }
            let key = self.start(Op::Send { socket: id, buf, sent: 0 });
            self.socket_mut(id).sending = Some(key);
            return;
        }
    }

    fn fail_unsent(&mut self, id: SocketId, errno: i32) {
        for buf in mem::take(&mut self.socket_mut(id).unsent) {
            let result = Err(io::Error::from_raw_os_error(errno));
            self.ready.push(Completion::Sent { socket: id, buf, result });
        }
    }

    fn finish_socket(&mut self, id: SocketId) {
        let socket = self.socket(id);
        if !socket.idle() || !(socket.closing || socket.leaving) {
            return;
        }
        let closing = socket.closing;
        let gone = self.sockets.remove(id.0).expect("it was just looked at");
        self.ready.push(if closing {
            Completion::Closed { socket: id }
        } else {
            Completion::HandedOver { socket: id, stream: gone.socket.into() }
        });
    }

    fn finish_listener(&mut self, id: ListenerId) {
        drop(self.listeners.remove(id.0));
        self.ready.push(Completion::ListenerClosed { listener: id });
    }

    /// A socket of the caller's that stays.
    fn open_socket(&mut self, id: SocketId) -> Option<&mut Socket> {
        self.sockets.get_mut(id.0).filter(|socket| !socket.closing && !socket.leaving)
    }

    pub(super) fn socket(&self, id: SocketId) -> &Socket {
        self.sockets.get(id.0).expect("a socket outlives its operations")
    }

    fn socket_mut(&mut self, id: SocketId) -> &mut Socket {
        self.sockets.get_mut(id.0).expect("a socket outlives its operations")
    }

    pub(super) fn listener(&self, id: ListenerId) -> &Listener {
        self.listeners.get(id.0).expect("a listener outlives its operations")
    }

    fn listener_mut(&mut self, id: ListenerId) -> &mut Listener {
        self.listeners.get_mut(id.0).expect("a listener outlives its operations")
    }
}
