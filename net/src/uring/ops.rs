//! The operations that the kernel holds, each with all that the kernel may touch.
//!
//! ```text
//!   user_data   kind:8 | generation:24 | slot:32
//!               OPERATION  an entry of this slab
//!               CANCEL     the answer to a cancel request: carries nothing
//!               KNOCK      another ring's MSG_RING: carries nothing
//! ```
//!
//! Invariants: an operation enters the slab before its submission entry is written and leaves it at
//! its last completion (no `F_MORE`) and not before, so the memory that the entry points into
//! stays. That memory is on the heap or static: the slab itself may grow and move.
//!
//! Failure: a completion for a slot that is free would be a kernel bug; it is counted by nobody and
//! its buffer goes home.

#![expect(
    unsafe_code,
    reason = "memory goes to the kernel as an address and comes back as a slice"
)]

use std::ptr::NonNull;
use std::slice;

use socket2::SockAddr;

use crate::doorbell::Doorbell;
use crate::ring::{FileId, ListenerId, SocketId};
use crate::slab::Key;

/// One operation under way.
#[derive(Debug)]
pub(super) enum Op {
    /// Multishot: one completion for each connection.
    Accept(ListenerId),
    Connect {
        socket: SocketId,
        addr: Box<SockAddr>,
    },
    /// Multishot: one completion for each filled receive buffer.
    Receive(SocketId),
    Send {
        socket: SocketId,
        buf: Vec<u8>,
        /// Bytes the kernel took before, fewer than `buf` has.
        sent: usize,
    },
    Write(DiskOp),
    Read(DiskOp),
    Sync {
        file: FileId,
        tag: u64,
    },
    /// A knock at another ring, whose descriptor the bell keeps open.
    Knock(Doorbell),
    /// Multishot poll of our own eventfd.
    Bell,
    /// The timer that ends waits.
    Alarm,
}

#[derive(Debug)]
pub(super) struct DiskOp {
    pub(super) file: FileId,
    pub(super) tag: u64,
    pub(super) offset: u64,
    pub(super) memory: Lent,
    pub(super) bytes: u32,
    /// Bytes that were read before; a write has one go.
    pub(super) done: u32,
}

impl DiskOp {
    /// Where the rest goes; `done` is at most `bytes`, which lie in the memory.
    pub(super) fn rest(&self) -> *mut u8 {
        self.memory.addr().wrapping_add(self.done as usize)
    }
}

/// Static memory while the kernel has it. No reference to it exists meanwhile.
#[derive(Debug)]
pub(super) struct Lent {
    addr: NonNull<u8>,
    bytes: usize,
}

impl Lent {
    pub(super) fn new(memory: &'static mut [u8]) -> Self {
        let bytes = memory.len();
        Self { addr: NonNull::from(memory).cast(), bytes }
    }

    pub(super) fn addr(&self) -> *mut u8 {
        self.addr.as_ptr()
    }

    /// Takes the memory back, at the last completion of the operation that held it.
    pub(super) fn back(self) -> &'static mut [u8] {
        // SAFETY: `new` consumed the only reference to these static bytes and this consumes the
        // only `Lent`, so the new reference is the only one; the kernel has let go, because an
        // operation is taken from the slab at its last completion only.
        unsafe { slice::from_raw_parts_mut(self.addr.as_ptr(), self.bytes) }
    }
}

/// What a completion's `user_data` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UserData {
    /// By its [`Key::number`].
    Operation(u64),
    Cancel,
    Knock,
}

const OPERATION: u64 = 1 << Key::NUMBER_BITS;
const CANCEL: u64 = 2 << Key::NUMBER_BITS;
const KNOCK: u64 = 3 << Key::NUMBER_BITS;
const NUMBER_MASK: u64 = OPERATION - 1;

impl UserData {
    pub(super) fn operation(key: Key) -> Self {
        Self::Operation(key.number())
    }

    pub(super) fn encode(self) -> u64 {
        match self {
            Self::Operation(number) => OPERATION | number,
            Self::Cancel => CANCEL,
            Self::Knock => KNOCK,
        }
    }

    /// `None`: no number of ours.
    pub(super) fn decode(number: u64) -> Option<Self> {
        match number & !NUMBER_MASK {
            OPERATION => Some(Self::Operation(number & NUMBER_MASK)),
            CANCEL => Some(Self::Cancel),
            KNOCK => Some(Self::Knock),
            0..=u64::MAX => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_data_survives_its_number() {
        let key = Key { slot: u32::MAX, generation: 0xFFAB_CDEF };
        for user_data in [UserData::operation(key), UserData::Cancel, UserData::Knock] {
            assert_eq!(UserData::decode(user_data.encode()), Some(user_data));
        }
        assert_eq!(UserData::decode(0), None);
        assert_eq!(UserData::decode(u64::MAX), None);
    }

    #[test]
    fn lent_memory_comes_back_whole() {
        let memory: &'static mut [u8] = Box::leak(vec![7; 32].into_boxed_slice());
        assert_eq!(Lent::new(memory).back(), [7; 32]);
    }
}
