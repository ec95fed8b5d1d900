//! The second disk of the replicated floor: what comes is written, and said to be durable.
//!
//! ```text
//!   frame     length, 8 bytes │ a group, whole blocks
//!   receive ──copied once──▶ aligned buffer ──(whole)──▶ RWF_DSYNC ──▶ 8 bytes a group, in order
//! ```
//! What the backup of a pair does, with nothing else: no check, no state that is kept warm. There
//! is one sender, which has no more groups under way than this side has buffers.
//!
//! Invariant: an answer goes out when its group, and every one before it, is durable. Failure: a
//! failed or short write, or a sender that keeps to no frame, ends the server.

use std::collections::VecDeque;

use net::{Completion, DiskWrite, FileId, Ring, SocketId};

use super::FloorError;
use super::commit::{BLOCK_BYTES, FILE_BYTES, GROUP_BYTES_MAX, Store, written};
use super::serve::{Stop, spare};

/// Bytes before a group: its length.
pub(super) const HEADER_BYTES: usize = 8;

/// Bytes that say that a group is durable.
pub(super) const DURABLE_BYTES: usize = 8;

/// Serves until it is told to stop.
pub(super) fn serve(ring: &mut Ring, stop: &Stop, store: &Store) -> Result<(), FloorError> {
    let (file, free) = store.enter(ring, store.in_flight() + 1, GROUP_BYTES_MAX)?;
    let mut copy = Copy {
        file,
        offset: 0,
        free,
        header: Vec::with_capacity(HEADER_BYTES),
        open: None,
        flights: VecDeque::new(),
        next_tag: 0,
        idle: Vec::new(),
    };
    let mut completions = Vec::new();
    while !stop.is_set() {
        ring.wait(None, &mut completions).map_err(FloorError::Ring)?;
        let mut served = Ok(());
        for completion in completions.drain(..) {
            served = served.and(copy.handle(ring, completion));
        }
        served?;
        copy.answer(ring);
    }
    Ok(())
}

/// A group that has not come whole.
struct Open {
    buf: &'static mut [u8],
    have: usize,
    len: usize,
}

struct Flight {
    tag: u64,
    len: usize,
    done: bool,
    to: SocketId,
}

struct Copy {
    file: FileId,
    offset: u64,
    free: Vec<&'static mut [u8]>,
    header: Vec<u8>,
    open: Option<Open>,
    flights: VecDeque<Flight>,
    next_tag: u64,
    idle: Vec<Vec<u8>>,
}

impl Copy {
    fn handle(&mut self, ring: &mut Ring, completion: Completion) -> Result<(), FloorError> {
        match completion {
            Completion::Accepted { socket, .. } => ring.start_receive(socket),
            Completion::Received { socket, lease } => {
                // Taken out of the ring's buffer before anything else can be asked of the ring.
                let mut buf = spare(&mut self.idle);
                buf.extend_from_slice(ring.bytes(&lease));
                ring.release(lease);
                let taken = self.take(ring, socket, &buf);
                self.idle.push(buf);
                taken?;
            }
            Completion::Disk { tag, buf, result } => {
                let flight = self.flights.iter_mut().find(|flight| flight.tag == tag);
                let flight = flight.expect("a write of ours");
                written(result, flight.len)?;
                flight.done = true;
                self.free.push(buf.expect("a write has memory"));
            }
            Completion::Sent { socket, buf, result } => {
                if result.is_err() {
                    ring.close(socket);
                }
                self.idle.push(buf);
            }
            Completion::ReceiveEnded { socket, .. } => ring.close(socket),
            Completion::AcceptFailed { .. }
            | Completion::ListenerClosed { .. }
            | Completion::Connected { .. }
            | Completion::Closed { .. }
            | Completion::HandedOver { .. } => {}
        }
        Ok(())
    }

    fn take(
        &mut self,
        ring: &mut Ring,
        from: SocketId,
        mut bytes: &[u8],
    ) -> Result<(), FloorError> {
        while !bytes.is_empty() {
            let Some(open) = &mut self.open else {
                let (header, rest) =
                    bytes.split_at(bytes.len().min(HEADER_BYTES - self.header.len()));
                self.header.extend_from_slice(header);
                bytes = rest;
                let Ok(len) = <[u8; HEADER_BYTES]>::try_from(self.header.as_slice()) else {
                    return Ok(());
                };
                self.header.clear();
                let len = u64::from_le_bytes(len) as usize;
                let fits = len > 0 && len <= GROUP_BYTES_MAX && len.is_multiple_of(BLOCK_BYTES);
                let buf = self.free.pop().filter(|_| fits).ok_or(FloorError::Ended)?;
                self.open = Some(Open { buf, have: 0, len });
                continue;
            };
            let (part, rest) = bytes.split_at(bytes.len().min(open.len - open.have));
            open.buf[open.have..open.have + part.len()].copy_from_slice(part);
            open.have += part.len();
            bytes = rest;
            if open.have == open.len
                && let Some(whole) = self.open.take()
            {
                self.write(ring, from, whole);
            }
        }
        Ok(())
    }

    fn write(&mut self, ring: &mut Ring, to: SocketId, Open { buf, len, .. }: Open) {
        if self.offset + len as u64 > FILE_BYTES {
            self.offset = 0;
        }
        let (offset, tag) = (self.offset, self.next_tag);
        self.offset += len as u64;
        self.next_tag += 1;
        self.flights.push_back(Flight { tag, len, done: false, to });
        ring.write_durable(DiskWrite { file: self.file, offset, buf, len, tag });
    }

    fn answer(&mut self, ring: &mut Ring) {
        while let Some(flight) = self.flights.pop_front_if(|flight| flight.done) {
            let mut buf = spare(&mut self.idle);
            buf.resize(DURABLE_BYTES, 0x5A);
            ring.send(flight.to, buf);
        }
    }
}
