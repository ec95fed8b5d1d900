//! Memory for direct I/O: aligned to a block, owned by whoever holds it, never freed.
//!
//! ```text
//!  leaked allocation   |...pad...|== 4096-aligned, a whole number of blocks ==|...pad...|
//!                                 \____________ BlockBuf: &'static mut ______/
//!  drop                pushes the slice on this thread's list, by size; the next taker reuses it
//! ```
//!
//! Invariants: the memory of a `BlockBuf` is never given back to the allocator, so that an address
//! registered with the kernel can't go stale; the address and the capacity are whole blocks; the
//! contents of a reused buffer are what the last owner left (whoever seals a batch zeroes the
//! padding).
//! The memory held is the largest number of buffers that were out at once on a thread; buffers that
//! die on another thread than the one that made them stay with that thread.

use std::cell::Cell;
use std::collections::BTreeMap;

use crate::limits::{BLOCK_BYTES, block_ceil};

/// Buffers that nobody holds, by their size.
type FreeLists = BTreeMap<usize, Vec<&'static mut [u8]>>;

thread_local! {
    static FREE: Cell<FreeLists> = const { Cell::new(BTreeMap::new()) };
}

/// Block-aligned memory of which the first [`len`](Self::len) bytes are in use.
pub struct BlockBuf {
    /// Empty only in a buffer whose slice was taken out.
    memory: &'static mut [u8],
    len: usize,
}

impl BlockBuf {
    /// A buffer of at least `bytes`, rounded up to whole blocks, with `len` set to the whole of it.
    ///
    /// New memory is zero; reused memory holds what its last owner wrote.
    #[must_use]
    pub fn take(bytes: usize) -> Self {
        let capacity = block_ceil(bytes.max(1));
        let reused = FREE.try_with(|free| {
            let mut lists = free.take();
            let found = lists.get_mut(&capacity).and_then(Vec::pop);
            free.set(lists);
            found
        });
        let memory = reused.ok().flatten().unwrap_or_else(|| leak_aligned(capacity));
        Self { memory, len: capacity }
    }

    /// Like [`take`](Self::take), with every byte set to zero.
    #[must_use]
    pub fn zeroed(bytes: usize) -> Self {
        let buf = Self::take(bytes);
        buf.memory.fill(0);
        buf
    }

    /// How many bytes are in use.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no byte is in use.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many bytes the memory has: a whole number of blocks.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.memory.len()
    }

    /// Says how many bytes are in use.
    ///
    /// # Panics
    /// If `len` exceeds the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "{len} bytes in a buffer of {}", self.capacity());
        self.len = len;
    }

    /// The bytes in use.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.memory[..self.len]
    }

    /// The bytes in use, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.memory[..self.len]
    }

    /// The whole memory and the number of bytes in use. Whoever takes it answers for giving it
    /// back by [`from_static`](Self::from_static); if not, it is lost, never freed.
    #[must_use]
    pub fn into_static(mut self) -> (&'static mut [u8], usize) {
        (std::mem::take(&mut self.memory), self.len)
    }

    /// Takes memory that must be aligned to a block and a whole number of blocks long.
    ///
    /// # Panics
    /// If it is not, or if `len` exceeds it.
    #[must_use]
    pub fn from_static(memory: &'static mut [u8], len: usize) -> Self {
        assert!(!memory.is_empty(), "an empty buffer");
        assert_eq!(memory.len() % BLOCK_BYTES, 0, "a buffer of {} bytes", memory.len());
        assert_eq!(memory.as_ptr().align_offset(BLOCK_BYTES), 0, "a buffer off its alignment");
        assert!(len <= memory.len(), "{len} bytes in a buffer of {}", memory.len());
        Self { memory, len }
    }
}

impl Drop for BlockBuf {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        if memory.is_empty() {
            return;
        }
        // A thread that is going away has no list any more: the memory is lost, as promised.
        let _lost = FREE.try_with(|free| {
            let mut lists = free.take();
            lists.entry(memory.len()).or_default().push(memory);
            free.set(lists);
        });
    }
}

impl std::fmt::Debug for BlockBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BlockBuf({} of {} bytes)", self.len, self.capacity())
    }
}

fn leak_aligned(capacity: usize) -> &'static mut [u8] {
    let leaked: &'static mut [u8] = Box::leak(vec![0; capacity + BLOCK_BYTES].into_boxed_slice());
    let lead = leaked.as_ptr().align_offset(BLOCK_BYTES);
    assert!(lead <= BLOCK_BYTES, "the allocator's memory can't be aligned");
    let (_, aligned) = leaked.split_at_mut(lead);
    &mut aligned[..capacity]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_rounded_up_and_reused() {
        let buf = BlockBuf::take(5000);
        assert_eq!((buf.len(), buf.capacity()), (8192, 8192));
        let address = buf.as_slice().as_ptr();
        assert_eq!(address.align_offset(BLOCK_BYTES), 0);
        drop(buf);
        assert_eq!(BlockBuf::take(8000).as_slice().as_ptr(), address);
    }

    #[test]
    fn memory_taken_out_comes_back_whole() {
        let mut buf = BlockBuf::zeroed(4096);
        buf.as_mut_slice()[7] = 9;
        buf.set_len(100);
        let (memory, len) = buf.into_static();
        assert_eq!((memory.len(), len), (4096, 100));
        assert_eq!(BlockBuf::from_static(memory, len).as_slice()[7], 9);
    }

    #[test]
    #[should_panic(expected = "a buffer of 4095 bytes")]
    fn memory_that_is_no_whole_block_is_refused() {
        let (memory, _) = BlockBuf::take(4096).into_static();
        let _refused = BlockBuf::from_static(&mut memory[1..], 0);
    }
}
