//! The receive buffers that all sockets of a ring share.
//!
//! ```text
//!   memory   [ 0 ][ 1 ] ... [ n-1 ]        free [ 3, 0, 7 ]: the last one that came back is warm
//!
//!   a buffer is   free -> taken for one recv -> on loan (RecvLease)
//!                   ^---------'--- give_back ------'
//! ```
//!
//! Invariant: a buffer is in exactly one of these places.
//!
//! Failure: when all are out, a socket that has bytes waits in `Epoll::starved`.

use std::io;
use std::ops::Range;

use crate::buf::Pages;
use crate::lease::{Owner, RecvLease};

#[derive(Debug)]
pub(super) struct Buffers {
    owner: Owner,
    memory: Pages,
    buffer_bytes: usize,
    count: u16,
    free: Vec<u16>,
}

impl Buffers {
    /// Makes `count` buffers, all free.
    pub(super) fn new(count: u16, buffer_bytes: u32) -> io::Result<Self> {
        let buffer_bytes = buffer_bytes as usize;
        let memory = Pages::new(usize::from(count) * buffer_bytes)?;
        let free = (0..count).rev().collect();
        Ok(Self { owner: Owner::new(), memory, buffer_bytes, count, free })
    }

    /// Takes a free buffer out, to be lent or given back.
    pub(super) fn take(&mut self) -> Option<u16> {
        self.free.pop()
    }

    /// The memory of a buffer that was taken.
    pub(super) fn memory_mut(&mut self, buffer: u16) -> &mut [u8] {
        let range = self.range(buffer);
        &mut self.memory[range]
    }

    /// Hands out a buffer that was taken and filled.
    pub(super) fn lend(&self, buffer: u16, bytes: usize) -> RecvLease {
        assert!(bytes <= self.buffer_bytes, "the kernel filled {bytes} bytes of a buffer");
        RecvLease::new(self.owner, buffer, bytes as u32)
    }

    pub(super) fn give_back(&mut self, buffer: u16) {
        assert!(self.out() > 0, "more receive buffers came back than went out");
        self.free.push(buffer);
    }

    pub(super) fn bytes(&self, lease: &RecvLease) -> &[u8] {
        let range = self.range(lease.buffer(self.owner));
        &self.memory[range][..lease.bytes()]
    }

    /// Takes a lease home.
    pub(super) fn release(&mut self, lease: RecvLease) {
        self.give_back(lease.end(self.owner));
    }

    /// Buffers that aren't free.
    pub(super) fn out(&self) -> u16 {
        self.count - self.free()
    }

    /// Buffers that can be taken.
    pub(super) fn free(&self) -> u16 {
        u16::try_from(self.free.len()).expect("a free buffer is one of `count`")
    }

    fn range(&self, buffer: u16) -> Range<usize> {
        let start = usize::from(buffer) * self.buffer_bytes;
        start..start + self.buffer_bytes
    }
}
