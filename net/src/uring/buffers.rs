//! The receive buffers that all sockets of a ring share: a provided buffer ring.
//!
//! ```text
//!   ring memory, 16 bytes an entry     [addr len bid TAIL][addr len bid -] ...
//!   buffers                            [ bid 0 ][ bid 1 ] ... [ bid n-1 ]
//!
//!   a buffer is   free (in the ring) -> filled (its id is in a completion) -> on loan (RecvLease)
//!                   ^----------------------- give_back + publish -------------------'
//! ```
//!
//! Invariants: a buffer is in exactly one of these places, so the ring never holds more entries
//! than it has; bytes of a buffer are read only while its lease is alive, and the kernel writes
//! only to free ones. The memory outlives its registration.
//!
//! Failure: when all are out, the kernel ends a receive with `ENOBUFS`; it is armed again once one
//! is back.

#![expect(unsafe_code, reason = "the buffer ring is memory shared with the kernel")]

use std::io;
use std::mem;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;

use crate::buf::Pages;
use crate::lease::{Owner, RecvLease};

/// The group under which the kernel knows the buffers.
pub(super) const GROUP: u16 = 0;

/// The buffers of one ring.
#[derive(Debug)]
pub(super) struct Buffers {
    owner: Owner,
    entries: NonNull<BufRingEntry>,
    memory: NonNull<u8>,
    count: u16,
    buffer_bytes: u32,
    /// Of the entries written, free-running.
    tail: u16,
    /// Buffers that aren't free.
    out: u16,
    /// What the pointers point into; `None` once it is leaked.
    pages: Option<(Pages, Pages)>,
}

impl Buffers {
    /// Makes `count` (a power of two) buffers and gives all of them to the kernel.
    pub(super) fn new(ring: &IoUring, count: u16, buffer_bytes: u32) -> io::Result<Self> {
        let mut entry_pages = Pages::new(usize::from(count) * size_of::<BufRingEntry>())?;
        let mut pages = Pages::new(usize::from(count) * buffer_bytes as usize)?;
        let entries = NonNull::from(&mut *entry_pages).cast::<BufRingEntry>();
        let memory = NonNull::from(&mut *pages).cast::<u8>();
        let addr = entries.as_ptr().expose_provenance() as u64;
        // SAFETY: the address is page-aligned memory for `count` entries; it is unmapped only after
        // `unregister` or never.
        unsafe { ring.submitter().register_buf_ring_with_flags(addr, count, GROUP, 0) }?;
        let mut buffers = Self {
            owner: Owner::new(),
            entries,
            memory,
            count,
            buffer_bytes,
            tail: 0,
            out: count,
            pages: Some((entry_pages, pages)),
        };
        for buffer in 0..count {
            buffers.give_back(buffer);
        }
        buffers.publish();
        Ok(buffers)
    }

    /// A filled buffer came with a completion.
    pub(super) fn lend(&mut self, buffer: u16, bytes: u32) -> RecvLease {
        assert!(buffer < self.count, "the kernel filled buffer {buffer} of {}", self.count);
        assert!(bytes <= self.buffer_bytes, "the kernel filled {bytes} bytes of a buffer");
        self.took(buffer);
        RecvLease::new(self.owner, buffer, bytes)
    }

    /// Counts a buffer that a completion named, as no longer free.
    fn took(&mut self, buffer: u16) {
        assert!(self.out < self.count, "buffer {buffer} was taken while none was free");
        self.out += 1;
    }

    /// A completion named a buffer without bytes in it.
    pub(super) fn refuse(&mut self, buffer: u16) {
        self.took(buffer);
        self.give_back(buffer);
    }

    pub(super) fn bytes(&self, lease: &RecvLease) -> &[u8] {
        let start = usize::from(lease.buffer(self.owner)) * self.buffer_bytes as usize;
        // SAFETY: `lend` checked that the buffer is inside the memory.
        let first = unsafe { self.memory.add(start) };
        // SAFETY: the bytes are initialised (the pages start as zeroes), inside the buffer (`lend`
        // checked), and nobody writes to them: the kernel has no buffer that is on loan, and the
        // lease, which isn't Clone, is borrowed as long as the slice.
        unsafe { slice::from_raw_parts(first.as_ptr(), lease.bytes()) }
    }

    /// Takes a lease home.
    pub(super) fn release(&mut self, lease: RecvLease) {
        self.give_back(lease.end(self.owner));
    }

    fn give_back(&mut self, buffer: u16) {
        assert!(self.out > 0, "more receive buffers came back than went out");
        self.out -= 1;
        let index = usize::from(self.tail & (self.count - 1));
        let start = usize::from(buffer) * self.buffer_bytes as usize;
        // SAFETY: `buffer` is below `count`: `lend` checked it, or `new` counted it.
        let first = unsafe { self.memory.add(start) };
        // SAFETY: `index` is below `count`.
        let mut entry = unsafe { self.entries.add(index) };
        // SAFETY: it is aligned memory of an entry, zeroed at first, and no other reference to it
        // exists; the kernel only reads entries, and not this one before its tail is published.
        let entry = unsafe { entry.as_mut() };
        entry.set_addr(first.as_ptr().expose_provenance() as u64);
        entry.set_len(self.buffer_bytes);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Shows the kernel the buffers that came back.
    pub(super) fn publish(&mut self) {
        // SAFETY: `entries` is the address of entry 0 of an initialised buffer ring.
        let tail = unsafe { BufRingEntry::tail(self.entries.as_ptr()) };
        // SAFETY: the tail is two aligned bytes inside the ring memory, which lives as long as
        // `self`; the kernel only reads them, and we write them only here, atomically.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }

    /// Buffers that aren't free: filled or on loan.
    pub(super) fn out(&self) -> u16 {
        self.out
    }

    /// Buffers that the kernel can fill, as far as the completions taken so far tell.
    pub(super) fn free(&self) -> u16 {
        self.count - self.out
    }

    /// Takes the ring back from the kernel; only when no receive is under way.
    pub(super) fn unregister(&mut self, ring: &IoUring) {
        if ring.submitter().unregister_buf_ring(GROUP).is_err() {
            self.leak();
        }
    }

    /// Leaves the memory to the kernel for good.
    pub(super) fn leak(&mut self) {
        mem::forget(self.pages.take());
    }
}
