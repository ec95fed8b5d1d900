//! The bytes of one file, in pages of 4096.
//!
//! ```text
//!   page in the map: written      Some(bytes), or None where all of them are zero
//!   page not in it:  a hole       reads as zeros, takes no room of the quota
//! ```
//!
//! Pages of zeros are kept as `None`, so pre-written journal segments cost next to nothing.

use std::collections::BTreeMap;

pub(crate) const PAGE: u64 = 4096;

#[derive(Clone, Default)]
pub(crate) struct Sparse {
    pages: BTreeMap<u64, Option<Box<[u8]>>>,
    len: u64,
}

impl Sparse {
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Bytes that the written pages take.
    pub(crate) fn allocated(&self) -> u64 {
        self.pages.len() as u64 * PAGE
    }

    /// How many bytes a write would add to [`Self::allocated`].
    pub(crate) fn growth(&self, offset: u64, length: usize) -> u64 {
        let pages = pages_of(offset, length);
        let present = self.pages.range(pages.clone()).count() as u64;
        (pages.end - pages.start - present) * PAGE
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        for number in pages_of(offset, data.len()) {
            let start = number * PAGE;
            let from = offset.max(start);
            let to = (offset + data.len() as u64).min(start + PAGE);
            let part = &data[(from - offset) as usize..(to - offset) as usize];
            let page = self.pages.entry(number).or_insert(None);
            if part.len() as u64 == PAGE && is_zero(part) {
                *page = None;
                continue;
            }
            let bytes = page.get_or_insert_with(|| vec![0; PAGE as usize].into_boxed_slice());
            bytes[(from - start) as usize..(to - start) as usize].copy_from_slice(part);
        }
        self.len = self.len.max(offset + data.len() as u64);
    }

    /// The bytes from `offset` on, at most `length`, fewer at the end of the file.
    pub(crate) fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        let end = (offset + length as u64).min(self.len);
        let mut data = vec![0; end.saturating_sub(offset) as usize];
        for (number, page) in self.pages.range(pages_of(offset, data.len())) {
            let Some(bytes) = page else { continue };
            let start = number * PAGE;
            let (from, to) = (offset.max(start), end.min(start + PAGE));
            data[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&bytes[(from - start) as usize..(to - start) as usize]);
        }
        data
    }

    pub(crate) fn truncate(&mut self, len: u64) {
        let cut = self.pages.split_off(&len.div_ceil(PAGE));
        drop(cut);
        if let Some(Some(bytes)) = self.pages.get_mut(&(len / PAGE)) {
            bytes[(len % PAGE) as usize..].fill(0);
        }
        self.len = len;
    }
}

fn pages_of(offset: u64, length: usize) -> std::ops::Range<u64> {
    if length == 0 {
        return offset / PAGE..offset / PAGE;
    }
    offset / PAGE..(offset + length as u64).div_ceil(PAGE)
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_was_written_across_pages() {
        let mut file = Sparse::default();
        let data: Vec<u8> = (0..10_000).map(|n| (n % 251) as u8).collect();
        file.write(1000, &data);
        assert_eq!(file.len(), 11_000);
        assert_eq!(file.read(1000, 10_000), data);
        assert_eq!(file.read(0, 1000), vec![0; 1000]);
        assert_eq!(file.read(10_990, 100).len(), 10);
        assert_eq!(file.read(20_000, 100), []);
    }

    #[test]
    fn zeros_take_room_of_the_quota_and_holes_do_not() {
        let mut file = Sparse::default();
        file.truncate(1 << 20);
        assert_eq!(file.allocated(), 0);
        assert_eq!(file.growth(0, 8192), 8192);
        file.write(0, &[0; 8192]);
        assert_eq!(file.allocated(), 8192);
        assert_eq!(file.growth(4096, 8192), 4096);
    }

    #[test]
    fn truncation_leaves_zeros_behind() {
        let mut file = Sparse::default();
        file.write(0, &[7; 9000]);
        file.truncate(5000);
        file.truncate(9000);
        assert_eq!(file.read(4999, 2), [7, 0]);
        assert_eq!(file.read(8191, 10), [0; 10]);
        file.truncate(4096);
        file.truncate(8192);
        assert_eq!(file.read(4095, 2), [7, 0]);
    }
}
