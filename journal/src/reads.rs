//! Reads of a running log: what is durable is read back, a few reads at a time.
//!
//! ```text
//!   read ──▶ wanted ──poll_disk──▶ in flight ──handle_disk──▶ done ──poll_read──▶ whoever asked
//! ```
//!
//! Invariants: only durable bytes of segments between head and tail are read; a segment stays in
//! the log while a read of it is wanted or in flight; reads are answered in any order, each once. A
//! read that fails, ends short or hangs poisons the journal: what was durable is not there.

use std::collections::VecDeque;
use std::time::Instant;

use crate::block_buf::BlockBuf;
use crate::disk::OpId;
use crate::limits::READS_IN_FLIGHT_MAX;
use crate::lsn::{Lsn, Slot};

/// Bytes of the log: whole blocks inside one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Where they begin.
    pub lsn: Lsn,
    /// How many.
    pub bytes: usize,
}

/// Names a read until it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReadId(u64);

/// A read that is wanted or in flight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Read {
    id: ReadId,
    pub(crate) slot: Slot,
    pub(crate) offset: u64,
    bytes: usize,
}

#[derive(Debug)]
pub(crate) struct ReadFlight {
    op: OpId,
    pub(crate) since: Instant,
    pub(crate) read: Read,
}

/// See the head of the file.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    id_next: u64,
    wanted: VecDeque<Read>,
    flights: VecDeque<ReadFlight>,
    done: VecDeque<(ReadId, BlockBuf)>,
}

impl Reads {
    pub(crate) fn want(&mut self, slot: Slot, offset: u64, bytes: usize) -> ReadId {
        let id = ReadId(self.id_next);
        self.id_next += 1;
        self.wanted.push_back(Read { id, slot, offset, bytes });
        id
    }

    /// The next read, now in flight.
    pub(crate) fn submit(&mut self, op: OpId, now: Instant) -> Option<(Read, BlockBuf)> {
        if self.flights.len() == READS_IN_FLIGHT_MAX {
            return None;
        }
        let read = self.wanted.pop_front()?;
        self.flights.push_back(ReadFlight { op, since: now, read });
        // Buffers are kept by their size for ever: let there be few sizes.
        let mut buf = BlockBuf::take(read.bytes.next_power_of_two());
        buf.set_len(read.bytes);
        Some((read, buf))
    }

    /// Takes the read that this operation was, if it was one.
    pub(crate) fn take(&mut self, op: OpId) -> Option<Read> {
        let at = self.flights.iter().position(|flight| flight.op == op)?;
        self.flights.remove(at).map(|flight| flight.read)
    }

    pub(crate) fn handle_read(&mut self, read: &Read, buf: BlockBuf) {
        self.done.push_back((read.id, buf));
    }

    pub(crate) fn poll(&mut self) -> Option<(ReadId, BlockBuf)> {
        self.done.pop_front()
    }

    /// The read that is in flight for longest.
    pub(crate) fn oldest_flight(&self) -> Option<&ReadFlight> {
        self.flights.front()
    }

    /// Whether a read of this slot is wanted or in flight.
    pub(crate) fn holds(&self, slot: Slot) -> bool {
        let flights = self.flights.iter().map(|flight| &flight.read);
        self.wanted.iter().chain(flights).any(|read| read.slot == slot)
    }
}

impl Read {
    /// How many bytes the answer must have.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}
