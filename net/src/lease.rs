//! A receive buffer on loan: how both engines hand out what arrived without copying it.
//!
//! ```text
//!   an engine's buffers --lend--> RecvLease in Completion::Received --Ring::release--> home
//! ```
//!
//! Invariant: a lease names one buffer of one ring, and there is never a second one for it: so the
//! bytes may be read as long as the lease is alive.
//!
//! Failure: a lease that is dropped instead of released is a lost buffer: a panic in debug builds.

use std::mem;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

/// A receive buffer on loan, with what was received. It must go home: see [`crate::Ring::release`].
#[derive(Debug)]
#[must_use = "a receive buffer must go home by Ring::release"]
pub struct RecvLease {
    owner: Owner,
    buffer: u16,
    bytes: u32,
}

/// Tells one ring's leases from another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner(u32);

impl Owner {
    pub(crate) fn new() -> Self {
        static OWNERS: AtomicU32 = AtomicU32::new(0);
        Self(OWNERS.fetch_add(1, Ordering::Relaxed))
    }
}

impl RecvLease {
    /// Only for a buffer of `owner` that holds `bytes` and is lent to nobody else.
    pub(crate) fn new(owner: Owner, buffer: u16, bytes: u32) -> Self {
        Self { owner, buffer, bytes }
    }

    /// Bytes received, at least 1.
    pub fn bytes(&self) -> usize {
        self.bytes as usize
    }

    /// The buffer it names.
    ///
    /// # Panics
    /// If it is not one of `owner`'s.
    pub(crate) fn buffer(&self, owner: Owner) -> u16 {
        assert_eq!(self.owner, owner, "a receive buffer was used at another ring");
        self.buffer
    }

    /// Ends the loan: the buffer is its owner's again.
    pub(crate) fn end(self, owner: Owner) -> u16 {
        let buffer = self.buffer(owner);
        mem::forget(self);
        buffer
    }
}

impl Drop for RecvLease {
    fn drop(&mut self) {
        debug_assert!(
            thread::panicking(),
            "receive buffer {} was dropped: give it to Ring::release",
            self.buffer
        );
    }
}
