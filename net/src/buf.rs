//! Page-aligned memory for direct I/O.
//!
//! ```text
//!   Pages::new(bytes)            zeroed, page-aligned, freed on drop      (cold paths)
//!      | leak()
//!      v
//!   &'static mut [u8]  +  StaticRegion                                    (journal buffers)
//!   given to the ring     names the same memory for Ring::register_memory
//! ```
//!
//! Invariant: a [`StaticRegion`] names memory that stays mapped until the process ends; only
//! [`Pages::leak`] makes one. So the kernel may keep it pinned, and a write from it may outlive its
//! ring.
//!
//! Failure: no memory is an `io::Error`.

use std::io;
use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

/// Zeroed memory of whole pages.
#[derive(Debug)]
pub struct Pages {
    map: MmapMut,
}

/// Names memory that is never unmapped. See [`Pages::leak`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StaticRegion {
    addr: usize,
    bytes: usize,
}

impl Pages {
    /// Maps `bytes` (at least 1) of zeroes, aligned to a page.
    ///
    /// # Errors
    /// `InvalidInput` for zero bytes; otherwise there is no memory.
    pub fn new(bytes: usize) -> io::Result<Self> {
        if bytes == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a mapping of no bytes"));
        }
        Ok(Self { map: MmapMut::map_anon(bytes)? })
    }

    /// Gives the memory to the process for good.
    pub fn leak(self) -> (&'static mut [u8], StaticRegion) {
        let memory: &'static mut [u8] = Box::leak(Box::new(self.map)).as_mut();
        let region =
            StaticRegion { addr: memory.as_mut_ptr().expose_provenance(), bytes: memory.len() };
        (memory, region)
    }
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.map
    }
}

impl StaticRegion {
    /// The first byte's address.
    pub(crate) fn addr(self) -> usize {
        self.addr
    }

    /// The length in bytes.
    pub fn bytes(self) -> usize {
        self.bytes
    }

    /// Whether `bytes` from `addr` on lie inside.
    pub(crate) fn contains(self, addr: usize, bytes: usize) -> bool {
        addr >= self.addr && bytes <= self.bytes && addr - self.addr <= self.bytes - bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_aligned_zeroed_and_nameable() {
        let pages = Pages::new(10_000).unwrap();
        assert!(pages.iter().all(|&byte| byte == 0));
        assert_eq!(pages.as_ptr().addr() % 4096, 0);
        let (memory, region) = pages.leak();
        assert_eq!(region.bytes(), 10_000);
        let addr = memory.as_ptr().addr();
        assert!(region.contains(addr, 10_000));
        assert!(region.contains(addr + 4096, 5_904));
        assert!(!region.contains(addr + 4096, 5_905));
        assert!(!region.contains(addr.wrapping_sub(1), 1));
        assert!(!region.contains(usize::MAX, 2));
    }

    #[test]
    fn no_bytes_are_refused() {
        assert_eq!(Pages::new(0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
