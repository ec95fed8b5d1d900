//! The floor of a durable answer: receive, write with data sync, answer with 16 bytes.
//!
//! ```text
//!   receive ──copy──▶ open group ──(a write slot is free)──▶ RWF_DSYNC ──▶ 16 bytes a request
//!                     128 KiB, aligned                       up to 4 in flight, answered in order
//! ```
//! The same group commit as the journal's, with nothing else: an idle disk gets what is there at
//! once, a busy one collects. No record, no checksum, no parsing: requests have one length, and
//! their bytes lie in the file as they came. The file was pre-written and is gone round.
//!
//! With a copy, which is the replicated floor, a group also goes to `copy.rs` while it is written
//! here, and is answered when both are durable.
//!
//! Invariants: a request is answered when its last byte, and everything received before it, is
//! durable, in both places where there are two. Nothing is allocated once the buffers have gone
//! round. Failure: a failed or short write ends the server, and nothing more is answered.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use net::buf::Pages;
use net::file::{self, DataFile, FileOpen};
use net::{Completion, DiskWrite, FileId, MemoryUse, RecvLease, Ring, SocketId};

use super::FloorError;
use super::copy::{DURABLE_BYTES, HEADER_BYTES};
use super::serve::{Stop, spare};

/// Bytes of an answer.
pub const ANSWER_BYTES: usize = 16;

/// Unit of a write.
pub const BLOCK_BYTES: usize = 4096;

/// Length of the file that is gone round.
pub const FILE_BYTES: u64 = 64 << 20;

/// Most bytes in one write.
pub(super) const GROUP_BYTES_MAX: usize = 128 * 1024;

/// A pre-written file, removed when it is dropped.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    direct: bool,
    in_flight: usize,
}

impl Store {
    /// Pre-writes a file in a directory that is there; so many writes will be in flight.
    ///
    /// # Errors
    /// What the file system said.
    pub fn new(directory: &Path, in_flight: usize) -> Result<Self, FloorError> {
        /// Tells the files of one process apart.
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = directory.join(format!("laelaps-floor-{}-{number}", std::process::id()));
        let failed = |error| FloorError::File { path: path.clone(), error };
        let how = FileOpen { create: true, write: true, direct: true };
        let file = file::open(&path, how).map_err(failed)?;
        let store = Self { path: path.clone(), direct: file.direct(), in_flight };
        file.prewrite(FILE_BYTES).map_err(failed)?;
        Ok(store)
    }

    /// Whether it is written past the page cache.
    #[must_use]
    pub fn direct(&self) -> bool {
        self.direct
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes that may be in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Opens it for a ring.
    pub(crate) fn open(&self) -> Result<DataFile, FloorError> {
        let how = FileOpen { create: false, write: true, direct: true };
        let failed = |error| FloorError::File { path: self.path.clone(), error };
        file::open(&self.path, how).map_err(failed)
    }

    /// Opens it in a ring, with memory of `buffers` times `bytes` that is registered if it may be.
    pub(crate) fn enter(
        &self,
        ring: &mut Ring,
        buffers: usize,
        bytes: usize,
    ) -> Result<(FileId, Vec<&'static mut [u8]>), FloorError> {
        let file = ring.add_file(self.open()?).map_err(|_| FloorError::Ended)?;
        let pages = Pages::new(buffers * bytes).map_err(FloorError::io("memory"))?;
        let (memory, region) = pages.leak();
        match ring.register_memory(&[region]) {
            // Costs some CPU; the broker's own rings are in the same place.
            MemoryUse::Registered | MemoryUse::Unregistered(_) | MemoryUse::Unneeded => {}
        }
        Ok((file, memory.chunks_mut(bytes).collect()))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Serves until it is told to stop; with a copy at that address, if there is one.
pub(super) fn serve(
    ring: &mut Ring,
    stop: &Stop,
    request_bytes: usize,
    store: &Store,
    copy: Option<SocketAddr>,
) -> Result<(), FloorError> {
    let copy = copy.map(|addr| ring.connect(addr)).transpose();
    let copy = copy.map_err(FloorError::io("a connection"))?;
    let buffers = 2 * store.in_flight + 1;
    let (file, free) = store.enter(ring, buffers, GROUP_BYTES_MAX)?;
    let mut server = Server {
        request_bytes,
        in_flight_max: store.in_flight,
        file,
        offset: 0,
        free,
        open: None,
        full: VecDeque::new(),
        flights: VecDeque::new(),
        next_tag: 0,
        peers: Vec::new(),
        waiting: VecDeque::new(),
        to_answer: Vec::new(),
        idle_owed: Vec::new(),
        idle_answers: Vec::new(),
        copy: copy.map(|socket| Link { socket, partial: 0 }),
    };
    let mut completions = Vec::new();
    let mut served = Ok(());
    while served.is_ok() && !stop.is_set() {
        ring.wait(None, &mut completions).map_err(FloorError::Ring)?;
        for completion in completions.drain(..) {
            served = served.and(server.handle(ring, completion));
        }
        server.collect_waiting(ring);
        server.submit(ring);
        server.answer(ring);
    }
    // Leases go home before the ring does.
    for (_, lease, _) in server.waiting.drain(..) {
        ring.release(lease);
    }
    served
}

/// Whether a write is what it should be: whole.
pub(super) fn written(result: std::io::Result<u32>, bytes: usize) -> Result<(), FloorError> {
    match result {
        Ok(count) if count as usize == bytes => Ok(()),
        Ok(count) => Err(FloorError::Write(std::io::Error::other(format!(
            "{count} bytes of {bytes} were written"
        )))),
        Err(error) => Err(FloorError::Write(error)),
    }
}

/// Who has how many requests in a group.
type Owed = Vec<(SocketId, u32)>;

struct Group {
    buf: &'static mut [u8],
    bytes: usize,
    owed: Owed,
}

struct Flight {
    tag: u64,
    len: usize,
    done: bool,
    /// Durable at the copy too, or there is none.
    copied: bool,
    owed: Owed,
}

/// The way to the copy.
struct Link {
    socket: SocketId,
    /// Bytes of the answer that has not come whole.
    partial: usize,
}

#[derive(Clone, Copy, Default)]
struct Peer {
    /// Bytes of the request that has not come whole.
    partial: usize,
    /// Answers to be sent at the end of the turn.
    answers: u32,
}

struct Server {
    request_bytes: usize,
    in_flight_max: usize,
    file: FileId,
    offset: u64,
    free: Vec<&'static mut [u8]>,
    open: Option<Group>,
    full: VecDeque<Group>,
    flights: VecDeque<Flight>,
    next_tag: u64,
    /// By the socket's slot.
    peers: Vec<Peer>,
    /// Came when no buffer was free: the socket, its bytes, and how many are copied.
    waiting: VecDeque<(SocketId, RecvLease, usize)>,
    to_answer: Vec<SocketId>,
    idle_owed: Vec<Owed>,
    idle_answers: Vec<Vec<u8>>,
    copy: Option<Link>,
}

impl Server {
    fn handle(&mut self, ring: &mut Ring, completion: Completion) -> Result<(), FloorError> {
        match completion {
            Completion::Accepted { socket, .. } => {
                let slots = self.peers.len().max(socket.slot() + 1);
                self.peers.resize(slots, Peer::default());
                self.peers[socket.slot()] = Peer::default();
                ring.start_receive(socket);
            }
            Completion::Received { socket, lease } if self.is_copy(socket) => {
                let bytes = ring.bytes(&lease).len();
                ring.release(lease);
                self.copied(bytes);
            }
            Completion::Received { socket, lease } => {
                self.waiting.push_back((socket, lease, 0));
                self.collect_waiting(ring);
            }
            Completion::Disk { tag, buf, result } => {
                let place = self.flights.iter().position(|flight| flight.tag == tag);
                let flight = &mut self.flights[place.expect("a write of ours")];
                let buf = buf.expect("a write has memory");
                written(result, flight.len)?;
                flight.done = true;
                self.free.push(buf);
                self.prefix();
            }
            Completion::Sent { socket, buf, result } => {
                if result.is_err() {
                    ring.close(socket);
                }
                self.idle_answers.push(buf);
            }
            Completion::Connected { socket, result } => {
                result.map_err(FloorError::io("a connection"))?;
                ring.start_receive(socket);
            }
            Completion::ReceiveEnded { socket, .. } if self.is_copy(socket) => {
                return Err(FloorError::Ended);
            }
            Completion::ReceiveEnded { socket, .. } => ring.close(socket),
            Completion::AcceptFailed { .. }
            | Completion::ListenerClosed { .. }
            | Completion::Closed { .. }
            | Completion::HandedOver { .. } => {}
        }
        Ok(())
    }

    /// Copies what came into groups, as long as there are buffers.
    fn collect_waiting(&mut self, ring: &mut Ring) {
        while let Some((socket, lease, from)) = self.waiting.pop_front() {
            let bytes = ring.bytes(&lease);
            let to = from + self.collect(socket, &bytes[from..]);
            if to < bytes.len() {
                self.waiting.push_front((socket, lease, to));
                return;
            }
            ring.release(lease);
        }
    }

    /// How many of the bytes were taken.
    fn collect(&mut self, socket: SocketId, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while taken < bytes.len() {
            if self.open.as_ref().is_some_and(|group| group.bytes == group.buf.len()) {
                self.full.extend(self.open.take());
            }
            let group = match &mut self.open {
                Some(group) => group,
                none => {
                    let Some(buf) = self.free.pop() else { return taken };
                    let owed = self.idle_owed.pop().unwrap_or_default();
                    none.insert(Group { buf, bytes: 0, owed })
                }
            };
            let count = (bytes.len() - taken).min(group.buf.len() - group.bytes);
            group.buf[group.bytes..group.bytes + count]
                .copy_from_slice(&bytes[taken..taken + count]);
            group.bytes += count;
            taken += count;
            let peer = &mut self.peers[socket.slot()];
            let whole = (peer.partial + count) / self.request_bytes;
            peer.partial = (peer.partial + count) % self.request_bytes;
            if whole > 0 {
                // Bounded by the bytes of a buffer.
                group.owed.push((socket, whole as u32));
            }
        }
        taken
    }

    /// Gives the disk what it may have.
    fn submit(&mut self, ring: &mut Ring) {
        while self.flights.len() < self.in_flight_max {
            let Some(group) = self.full.pop_front().or_else(|| self.open.take()) else { return };
            let len = group.bytes.next_multiple_of(BLOCK_BYTES);
            if self.offset + len as u64 > FILE_BYTES {
                self.offset = 0;
            }
            let (offset, tag) = (self.offset, self.next_tag);
            self.offset += len as u64;
            self.next_tag += 1;
            let mut copied = true;
            if let Some(link) = &self.copy {
                let mut frame = spare(&mut self.idle_answers);
                frame.reserve(HEADER_BYTES + len);
                frame.extend_from_slice(&(len as u64).to_le_bytes());
                frame.extend_from_slice(&group.buf[..len]);
                ring.send(link.socket, frame);
                copied = false;
            }
            self.flights.push_back(Flight { tag, len, done: false, copied, owed: group.owed });
            ring.write_durable(DiskWrite { file: self.file, offset, buf: group.buf, len, tag });
        }
    }

    fn is_copy(&self, socket: SocketId) -> bool {
        self.copy.as_ref().is_some_and(|link| link.socket == socket)
    }

    /// The copy answers in order, so many bytes a group.
    fn copied(&mut self, bytes: usize) {
        let Some(link) = &mut self.copy else { return };
        let groups = (link.partial + bytes) / DURABLE_BYTES;
        link.partial = (link.partial + bytes) % DURABLE_BYTES;
        for flight in self.flights.iter_mut().filter(|flight| !flight.copied).take(groups) {
            flight.copied = true;
        }
        self.prefix();
    }

    /// What lies before the first write that is under way, here or there, is durable.
    fn prefix(&mut self) {
        while self.flights.front().is_some_and(|flight| flight.done && flight.copied) {
            let Some(mut flight) = self.flights.pop_front() else { return };
            for (socket, count) in flight.owed.drain(..) {
                let peer = &mut self.peers[socket.slot()];
                if peer.answers == 0 {
                    self.to_answer.push(socket);
                }
                peer.answers += count;
            }
            self.idle_owed.push(flight.owed);
        }
    }

    fn answer(&mut self, ring: &mut Ring) {
        for socket in self.to_answer.drain(..) {
            let count = std::mem::take(&mut self.peers[socket.slot()].answers);
            let mut buf = spare(&mut self.idle_answers);
            buf.resize(count as usize * ANSWER_BYTES, 0xA5);
            ring.send(socket, buf);
        }
    }
}
