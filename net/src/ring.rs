//! One core's reactor: sockets, files and doorbells behind a single wait.
//!
//! ```text
//!  command                      completions, each handed out by `wait`
//!  listen        ------------>  Accepted*  AcceptFailed*   ... stop_listening -> ListenerClosed
//!  connect       ------------>  Connected
//!  start_receive ------------>  Received*  then at most one ReceiveEnded
//!  send          ------------>  Sent, one for each send, in order
//!  close         ------------>  Closed, the last word about a socket
//!  hand_over     ------------>  HandedOver, the same; another ring can `adopt` what it brings
//!  write_durable, read, sync -> Disk, one for each, in any order
//!  Doorbell::knock ---------->  nothing: it only ends a wait, so look at the mail after each
//! ```
//!
//! Invariants:
//! * Every buffer that goes in comes out exactly once, whatever happened.
//! * A socket's `Closed` comes after every other completion of that socket, and its descriptor is
//!   closed only when no operation holds it. Ids carry a generation: an old one never reaches the
//!   socket that took its place.
//! * A journal write is never cancelled, not even when the ring is dropped.
//!
//! Failure: an operation's error is in its completion. An error of [`Ring::wait`] itself is final.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::buf::StaticRegion;
use crate::doorbell::Doorbell;
use crate::engine::Engine;
use crate::epoll::Epoll;
use crate::file::{DataFile, DirectoryLock};
use crate::lease::RecvLease;
use crate::probe::Refusal;
use crate::slab::Key;
use crate::uring::Uring;

/// What a [`Ring`] is made of. The default suits a broker's core.
#[derive(Debug, Clone)]
pub struct RingConfig {
    /// What drives it; what [`Engine::choose`] has found. By default io_uring.
    pub engine: Engine,
    /// Submission queue entries of io_uring, 8 to 4,096; a fuller turn submits more than once.
    pub entries: u32,
    /// Completion queue entries of io_uring, at least `entries`, at most 65,536. What doesn't fit
    /// is kept by the kernel, which costs.
    pub completions: u32,
    /// Completions that one [`Ring::wait`] takes from the kernel, at least 1: the bound on a turn.
    /// (A call of the epoll engine may end several sends at once, and go beyond it by those.)
    pub completions_per_wait_max: usize,
    /// Receive buffers, a power of two, 1 to 32,768. All sockets of the ring share them.
    pub recv_buffers: u16,
    /// Bytes of one receive buffer, 256 to 1 MiB.
    pub recv_buffer_bytes: u32,
    /// Files that can be open in the ring at once, 1 to 4,096.
    pub files_max: u32,
    /// Threads that do the epoll engine's file operations, 1 to 64, each one at a time: so many are
    /// under way together. They are started as they are needed.
    pub writers_max: u16,
    /// Sockets beyond which none is accepted before one is closed, at least 1. Peers take
    /// descriptors that files need: see [`crate::limit`]. Some may be accepted beyond it and are
    /// dropped at once, up to `completions` of them at a time.
    pub sockets_max: usize,
    /// How long a wait polls before it blocks, at most 50 µs. It polls only while completions come
    /// closer together than this. Zero, the default, always blocks: right where cores are shared.
    pub spin: Duration,
}

/// The longest [`RingConfig::spin`].
pub const SPIN_MAX: Duration = Duration::from_micros(50);

impl Default for RingConfig {
    fn default() -> Self {
        Self {
            engine: Engine::Uring,
            entries: 256,
            completions: 4096,
            completions_per_wait_max: 256,
            recv_buffers: 256,
            recv_buffer_bytes: 16 * 1024,
            files_max: 64,
            writers_max: 4,
            sockets_max: 16_384,
            spin: Duration::ZERO,
        }
    }
}

/// A TCP socket of one ring: a slot and a generation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SocketId(pub(crate) Key);

impl SocketId {
    /// The slot: small, dense, reused after [`Completion::Closed`]. Good for a table of
    /// connections.
    pub fn slot(self) -> usize {
        self.0.slot as usize
    }
}

impl fmt::Debug for SocketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "socket {}.{}", self.0.slot, self.0.generation)
    }
}

/// A listening socket of one ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListenerId(pub(crate) Key);

/// A file given to one ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileId(pub(crate) Key);

/// Where and how to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpListen {
    /// Address and port; port 0 takes a free one.
    pub addr: SocketAddr,
    /// `SO_REUSEPORT`: several rings listen on one address and the kernel spreads the connections.
    pub reuse_port: bool,
    /// Connections that may wait to be accepted, 1 to 65,535 (the kernel caps it at `somaxconn`).
    pub backlog: u16,
}

/// A durable write: the first `len` bytes of `buf` go to `offset`, with data sync.
#[derive(Debug)]
pub struct DiskWrite {
    /// The file.
    pub file: FileId,
    /// Byte position in the file; a multiple of the file's alignment where the file is direct.
    pub offset: u64,
    /// The memory written from, owned by the ring until [`Completion::Disk`] brings it back.
    pub buf: &'static mut [u8],
    /// Bytes to write, 1 to `buf.len()` and under 2 GiB.
    pub len: usize,
    /// Comes back with the completion.
    pub tag: u64,
}

/// A read of `len` bytes at `offset` into the start of `buf`.
#[derive(Debug)]
pub struct DiskRead {
    /// The file.
    pub file: FileId,
    /// Byte position in the file; a multiple of the file's alignment where the file is direct.
    pub offset: u64,
    /// The memory read into, owned by the ring until [`Completion::Disk`] brings it back.
    pub buf: &'static mut [u8],
    /// Bytes to read, 1 to `buf.len()` and under 2 GiB.
    pub len: usize,
    /// Comes back with the completion.
    pub tag: u64,
}

/// What the kernel finished.
#[derive(Debug)]
pub enum Completion {
    /// A peer connected. The socket has `TCP_NODELAY` and doesn't receive yet.
    Accepted {
        /// Who accepted it.
        listener: ListenerId,
        /// The new socket; it must be closed in the end.
        socket: SocketId,
        /// The peer's address.
        peer: SocketAddr,
    },
    /// Accepting failed (out of descriptors or memory, mostly); it is tried again after
    /// [`ACCEPT_RETRY`]. At [`RingConfig::sockets_max`] it is `QuotaExceeded`, and goes on once a
    /// socket is closed.
    AcceptFailed {
        /// Which listener.
        listener: ListenerId,
        /// What the kernel said.
        error: io::Error,
    },
    /// The answer to [`Ring::stop_listening`]; the address is free.
    ListenerClosed {
        /// Which listener.
        listener: ListenerId,
    },
    /// The answer to [`Ring::connect`]. After an error the socket must still be closed.
    Connected {
        /// The socket.
        socket: SocketId,
        /// Whether it is connected.
        result: io::Result<()>,
    },
    /// Bytes arrived: see [`Ring::bytes`]. The lease must be given to [`Ring::release`].
    Received {
        /// The socket.
        socket: SocketId,
        /// The receive buffer, on loan.
        lease: RecvLease,
    },
    /// Nothing more will be received: `Ok` when the peer ended its stream, `Err` when it broke. The
    /// kernel tells a break once: where a send was told, this one may be `Ok`.
    ReceiveEnded {
        /// The socket.
        socket: SocketId,
        /// How it ended.
        result: io::Result<()>,
    },
    /// A send is over and its buffer is back.
    Sent {
        /// The socket.
        socket: SocketId,
        /// The bytes given to [`Ring::send`], unchanged.
        buf: Vec<u8>,
        /// `Ok`: the kernel took every byte. `Err`: an unknown part of them; later sends of this
        /// socket fail too.
        result: io::Result<()>,
    },
    /// The answer to [`Ring::close`]; the id is dead.
    Closed {
        /// The socket that was.
        socket: SocketId,
    },
    /// The answer to [`Ring::hand_over`]; the id is dead.
    HandedOver {
        /// The socket that was.
        socket: SocketId,
        /// The connection, for [`Ring::adopt`] on any thread. An end or an error that was told here
        /// already is told there again, perhaps as a plain end.
        stream: TcpStream,
    },
    /// A file operation is over.
    Disk {
        /// The caller's tag.
        tag: u64,
        /// The memory, for a read or a write.
        buf: Option<&'static mut [u8]>,
        /// Bytes read, fewer than asked for only at the end of the file; or bytes written, exactly
        /// as the kernel said (it can be fewer); or 0 for a sync.
        result: io::Result<u32>,
    },
}

/// How long a listener rests after [`Completion::AcceptFailed`].
pub const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// How long a dropped ring waits for its last operations.
pub(crate) const DRAIN_MAX: Duration = Duration::from_secs(5);

/// The longest single wait: a longer timeout would not fit the kernel's clock. Waits may end early.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(3600);

/// Why a ring can't be made or went away.
#[derive(Debug)]
pub enum RingError {
    /// The configuration is outside its bounds; the text names the field.
    Config(&'static str),
    /// This system refuses io_uring.
    Refused(Refusal),
    /// Setting up a part of the ring failed.
    Setup {
        /// Which part.
        part: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
    /// `io_uring_enter` or `epoll_wait` failed: the ring is lost.
    Wait(io::Error),
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(what) => write!(f, "the ring's configuration is out of bounds: {what}"),
            Self::Refused(refusal) => refusal.fmt(f),
            Self::Setup { part, error } => write!(f, "the ring's {part} cannot be set up: {error}"),
            Self::Wait(error) => write!(f, "waiting on the ring failed, it is lost: {error}"),
        }
    }
}

impl std::error::Error for RingError {}

/// Whether the kernel holds the journal's memory pinned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemoryUse {
    /// Registered: writes from it skip the pinning of pages.
    Registered,
    /// Not registered, which only costs CPU; the text says why and what to do.
    Unregistered(String),
    /// This engine's writes gain nothing by it.
    Unneeded,
}

/// Counters of one ring since its start, and what it holds now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RingStats {
    /// Calls that submit or wait: `io_uring_enter`, `epoll_wait`.
    pub enters: u64,
    /// Completions taken from the kernel.
    pub completions: u64,
    /// Times io_uring's completion queue was found overflowed.
    pub overflows: u64,
    /// Times a socket's receive stopped because no receive buffer was free.
    pub recv_starved: u64,
    /// Times a wait found work by polling and didn't block.
    pub spin_hits: u64,
    /// Receive buffers on loan.
    pub leases_out: u32,
    /// Sockets that aren't closed yet.
    pub sockets: u32,
    /// Operations under way, one for the ring's own bell among them.
    pub operations: u32,
}

/// One core's reactor. It lives and dies on the thread that made it:
///
/// ```compile_fail
/// fn moves<T: Send>() {}
/// moves::<net::Ring>();
/// ```
///
/// Dropping it closes its sockets and waits for its disk operations, 5 s at most. A process that
/// dies by design (a hung disk, say) should exit without dropping it.
#[derive(Debug)]
pub struct Ring {
    driven: Driven,
}

/// The engine behind a ring. A branch on it costs nothing beside the system calls that follow.
#[derive(Debug)]
enum Driven {
    Uring(Box<Uring>),
    Epoll(Box<Epoll>),
}

/// Hands a call to the engine.
macro_rules! by {
    ($ring:expr, $engine:ident => $call:expr) => {
        match &mut $ring.driven {
            Driven::Uring($engine) => $call,
            Driven::Epoll($engine) => $call,
        }
    };
    (ref $ring:expr, $engine:ident => $call:expr) => {
        match &$ring.driven {
            Driven::Uring($engine) => $call,
            Driven::Epoll($engine) => $call,
        }
    };
}

impl Ring {
    /// Makes the ring of the calling thread.
    ///
    /// # Errors
    /// [`RingError::Refused`] says why io_uring can't be had; see [`Engine::choose`].
    pub fn new(config: RingConfig) -> Result<Self, RingError> {
        check(&config)?;
        let driven = match config.engine {
            Engine::Uring => Driven::Uring(Box::new(Uring::new(config)?)),
            Engine::Epoll => Driven::Epoll(Box::new(Epoll::new(&config)?)),
        };
        Ok(Self { driven })
    }

    /// What drives it.
    pub fn engine(&self) -> Engine {
        match &self.driven {
            Driven::Uring(_) => Engine::Uring,
            Driven::Epoll(_) => Engine::Epoll,
        }
    }

    /// Submits what was commanded, waits until something completes, a doorbell is knocked or
    /// `timeout` is over (`None`: for ever), and appends the completions.
    ///
    /// It may return with nothing; it never blocks while completions are at hand.
    ///
    /// # Errors
    /// [`RingError::Wait`]: the ring is lost, nothing more will complete.
    pub fn wait(
        &mut self,
        timeout: Option<Duration>,
        completions: &mut Vec<Completion>,
    ) -> Result<(), RingError> {
        by!(self, engine => engine.wait(timeout, completions))
    }

    /// Binds and listens; connections come as [`Completion::Accepted`]. Also gives the bound
    /// address.
    ///
    /// # Errors
    /// What `bind` or `listen` said, such as `AddrInUse`.
    pub fn listen(&mut self, listen: TcpListen) -> io::Result<(ListenerId, SocketAddr)> {
        by!(self, engine => engine.listen(listen))
    }

    /// Stops accepting. Connections that the kernel had queued are reset. Idempotent.
    pub fn stop_listening(&mut self, listener: ListenerId) {
        by!(self, engine => engine.stop_listening(listener));
    }

    /// Starts a connection; [`Completion::Connected`] tells how it went. Sends and receives that
    /// are commanded before wait for it.
    ///
    /// # Errors
    /// No socket could be made.
    pub fn connect(&mut self, addr: SocketAddr) -> io::Result<SocketId> {
        by!(self, engine => engine.connect(addr))
    }

    /// Takes over a connection that another ring gave up. It doesn't receive yet. The bound
    /// [`RingConfig::sockets_max`] is not asked: it holds back what is accepted.
    ///
    /// # Errors
    /// What the kernel said; the connection is closed then.
    pub fn adopt(&mut self, stream: TcpStream) -> io::Result<SocketId> {
        by!(self, engine => engine.adopt(stream))
    }

    /// Gives a connection up, so that another ring can adopt it: receiving stops, and when what the
    /// kernel had put into buffers has arrived, [`Completion::HandedOver`] follows. Commands for it
    /// find nothing meanwhile, but [`Ring::close`], which closes it as ever.
    ///
    /// # Panics
    /// If a send is under way, or it is not connected yet.
    pub fn hand_over(&mut self, socket: SocketId) {
        by!(self, engine => engine.hand_over(socket));
    }

    /// Begins to receive, or goes on after [`Ring::pause_receive`]. Idempotent; nothing happens
    /// once receiving ended or the socket is closing.
    pub fn start_receive(&mut self, socket: SocketId) {
        by!(self, engine => engine.start_receive(socket));
    }

    /// Stops receiving, so that the peer is held back by its window. What the kernel had already
    /// put into buffers still arrives. Idempotent.
    pub fn pause_receive(&mut self, socket: SocketId) {
        by!(self, engine => engine.pause_receive(socket));
    }

    /// The received bytes.
    ///
    /// # Panics
    /// If the lease is another ring's.
    pub fn bytes(&self, lease: &RecvLease) -> &[u8] {
        by!(ref self, engine => engine.bytes(lease))
    }

    /// Gives a receive buffer back to the kernel. It is refilled at the next wait.
    ///
    /// # Panics
    /// If the lease is another ring's.
    pub fn release(&mut self, lease: RecvLease) {
        by!(self, engine => engine.release(lease));
    }

    /// Sends all of `buf`. One send a socket is with the kernel at a time; more are queued behind
    /// it in order. The queue has no bound of its own: hold back by counting [`Completion::Sent`].
    /// One for a socket that is closing or gone comes back, failed, at the next wait.
    pub fn send(&mut self, socket: SocketId, buf: Vec<u8>) {
        by!(self, engine => engine.send(socket, buf));
    }

    /// Ends our half of the stream once the sends so far are over.
    pub fn shutdown_write(&mut self, socket: SocketId) {
        by!(self, engine => engine.shutdown_write(socket));
    }

    /// Closes at once: what is queued to be sent fails, what was received is dropped, and
    /// [`Completion::Closed`] follows when the kernel has let go. To close politely, wait for the
    /// last `Sent`, then [`Ring::shutdown_write`], then the peer's end for a bounded time.
    /// Idempotent.
    pub fn close(&mut self, socket: SocketId) {
        by!(self, engine => engine.close(socket));
    }

    /// Gives a file to the ring.
    ///
    /// # Errors
    /// The file, when [`RingConfig::files_max`] are there already.
    pub fn add_file(&mut self, file: DataFile) -> Result<FileId, DataFile> {
        by!(self, engine => engine.add_file(file))
    }

    /// Closes a file as soon as its operations are over.
    ///
    /// # Panics
    /// If the id is dead.
    pub fn remove_file(&mut self, file: FileId) {
        by!(self, engine => engine.remove_file(file));
    }

    /// Keeps a directory locked as long as the kernel may still write for this ring. The lock alone
    /// ends with the process, but a write that the disk had taken does not: let go early, it would
    /// land on top of what the next process has written there. To be called once, before the
    /// first write.
    ///
    /// # Errors
    /// What the kernel said; then the lock ends with the process.
    pub fn keep_locked(&mut self, lock: &DirectoryLock) -> io::Result<()> {
        by!(self, engine => engine.keep_locked(lock))
    }

    /// Writes with data sync (`RWF_DSYNC`): when its [`Completion::Disk`] is `Ok` with the whole
    /// length, the bytes are durable. Several may be in flight and they end in any order. Never
    /// cancelled, never retried, never split.
    ///
    /// # Panics
    /// If the file's id is dead, or `len` is out of bounds.
    pub fn write_durable(&mut self, write: DiskWrite) {
        by!(self, engine => engine.write_durable(write));
    }

    /// Reads; fewer bytes than asked for mean the end of the file, never an error behind them.
    ///
    /// # Panics
    /// If the file's id is dead, or `len` is out of bounds.
    pub fn read(&mut self, read: DiskRead) {
        by!(self, engine => engine.read(read));
    }

    /// Makes everything written to the file durable (`fdatasync`). Costs a device flush even with
    /// nothing to do: [`Ring::write_durable`] needs none after it.
    ///
    /// # Panics
    /// If the file's id is dead.
    pub fn sync_data(&mut self, file: FileId, tag: u64) {
        by!(self, engine => engine.sync_data(file, tag));
    }

    /// Pins memory for the kernel, so that writes from it cost less. To be called at most once,
    /// before the first file operation. Where it is refused the ring works on without.
    pub fn register_memory(&mut self, regions: &[StaticRegion]) -> MemoryUse {
        by!(self, engine => engine.register_memory(regions))
    }

    /// A bell by which any thread can end this ring's wait.
    pub fn doorbell(&self) -> Doorbell {
        by!(ref self, engine => engine.doorbell())
    }

    /// Knocks at another ring's bell from this one: between two that io_uring drives cheaper than
    /// [`Doorbell::knock`], but then on its way only at the next wait.
    pub fn knock(&mut self, bell: &Doorbell) {
        by!(self, engine => engine.knock(bell));
    }

    /// Counters and gauges.
    pub fn stats(&self) -> RingStats {
        by!(ref self, engine => engine.stats())
    }
}

fn check(config: &RingConfig) -> Result<(), RingError> {
    let checks = [
        ((8..=4096).contains(&config.entries), "entries must be 8 to 4096"),
        (
            (config.entries..=65_536).contains(&config.completions),
            "completions must be at least entries and at most 65536",
        ),
        (config.completions_per_wait_max >= 1, "completions_per_wait_max must be at least 1"),
        (
            config.recv_buffers.is_power_of_two() && config.recv_buffers <= 32_768,
            "recv_buffers must be a power of two, 1 to 32768",
        ),
        (
            (256..=1 << 20).contains(&config.recv_buffer_bytes),
            "recv_buffer_bytes must be 256 to 1048576",
        ),
        ((1..=4096).contains(&config.files_max), "files_max must be 1 to 4096"),
        ((1..=64).contains(&config.writers_max), "writers_max must be 1 to 64"),
        (config.sockets_max >= 1, "sockets_max must be at least 1"),
        (config.spin <= SPIN_MAX, "spin must be at most 50 microseconds"),
    ];
    match checks.iter().find(|(holds, _)| !holds) {
        Some((_, what)) => Err(RingError::Config(what)),
        None => Ok(()),
    }
}
