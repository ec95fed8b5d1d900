//! A bell by which another thread ends a ring's wait.
//!
//! ```text
//!   any thread    knock()            write(eventfd) -> the ring's multishot poll completes
//!   a ring        Ring::knock(bell)  MSG_RING -> a completion in the other ring
//!                                    refused (its thread is gone, no memory): as any thread
//! ```
//!
//! Invariants: the eventfd is a counter, so a knock before the wait counts as well as one during
//! it. A bell keeps the descriptors it uses open: it never knocks at a stranger's.
//!
//! Failure: knocking at a ring that is gone does nothing.

#![expect(unsafe_code, reason = "eventfd has no safe form in std")]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

/// A bell that ends a ring's wait, from any thread. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Doorbell {
    bell: Arc<Bell>,
}

#[derive(Debug)]
struct Bell {
    eventfd: File,
    ring: OwnedFd,
}

impl Doorbell {
    /// `ring` is copied.
    pub(super) fn new(ring: BorrowedFd<'_>) -> io::Result<Self> {
        let ring = ring.try_clone_to_owned()?;
        // SAFETY: takes two integers and no memory.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just made this descriptor, and nobody else knows of it.
        let eventfd = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        Ok(Self { bell: Arc::new(Bell { eventfd, ring }) })
    }

    /// Ends the ring's wait: the one that runs, or else the next one. Costs a system call.
    pub fn knock(&self) {
        // A full counter refuses more, and is a knock that was not heard yet.
        let _ = (&self.bell.eventfd).write(&1u64.to_ne_bytes());
    }

    /// A knock through a ring came to this: if the kernel refused it, the other way is taken.
    pub(super) fn answered(&self, result: i32) {
        if result < 0 {
            self.knock();
        }
    }

    /// Forgets the knocks so far.
    pub(super) fn heard(&self) {
        // Nothing to read (`WouldBlock`) means that an earlier read took this knock too.
        let _ = (&self.bell.eventfd).read(&mut [0; 8]);
    }

    pub(super) fn eventfd(&self) -> RawFd {
        self.bell.eventfd.as_fd().as_raw_fd()
    }

    pub(super) fn ring(&self) -> RawFd {
        self.bell.ring.as_raw_fd()
    }
}
