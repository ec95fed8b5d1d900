//! A bell by which another thread ends a ring's wait.
//!
//! ```text
//!   any thread    knock()            write(eventfd) -> the ring's poll sees it
//!   a ring        Ring::knock(bell)  both io_uring: MSG_RING -> a completion in the other ring
//!                                    refused (its thread is gone, no memory): as any thread
//!                                    else: as any thread
//! ```
//!
//! Invariants: the eventfd is a counter, so a knock before the wait counts as well as one during
//! it. A bell keeps the descriptors it uses open: it never knocks at a stranger's.
//!
//! Failure: knocking at a ring that is gone does nothing.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::event::EventfdFlags;

/// A bell that ends a ring's wait, from any thread. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Doorbell {
    bell: Arc<Bell>,
}

#[derive(Debug)]
struct Bell {
    eventfd: OwnedFd,
    /// The io_uring that other ones can reach without a system call of its own.
    uring: Option<OwnedFd>,
}

impl Doorbell {
    /// `uring` is copied.
    pub(crate) fn new(uring: Option<BorrowedFd<'_>>) -> io::Result<Self> {
        let uring = uring.map(|uring| uring.try_clone_to_owned()).transpose()?;
        let eventfd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { bell: Arc::new(Bell { eventfd, uring }) })
    }

    /// Ends the ring's wait: the one that runs, or else the next one. Costs a system call.
    pub fn knock(&self) {
        // A full counter refuses more, and is a knock that was not heard yet.
        let _ = rustix::io::write(&self.bell.eventfd, &1u64.to_ne_bytes());
    }

    /// A knock through a ring came to this: if the kernel refused it, the other way is taken.
    pub(crate) fn answered(&self, result: i32) {
        if result < 0 {
            self.knock();
        }
    }

    /// Forgets the knocks so far.
    pub(crate) fn heard(&self) {
        // Nothing to read (`AGAIN`) means that an earlier read took this knock too.
        let _ = rustix::io::read(&self.bell.eventfd, &mut [0; 8]);
    }

    pub(crate) fn eventfd(&self) -> BorrowedFd<'_> {
        self.bell.eventfd.as_fd()
    }

    /// The io_uring that answers it, if one does.
    pub(crate) fn uring(&self) -> Option<RawFd> {
        self.bell.uring.as_ref().map(AsRawFd::as_raw_fd)
    }
}
