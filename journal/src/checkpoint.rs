//! A checkpoint: what a shard's log came to at a place, so that a start reads the log from there.
//!
//! ```text
//!   log    head ........... from ............... until ............ end
//!          |-- pages: what lives here --|
//!                           |------------ read at a start ---------------|
//!
//!   file   | head, one block | page 0 | page 1 | ...        each page whole blocks
//!   head   0        4     6     8                16               24               32
//!          | "LLcp" | ver |shard| generation     | from LSN       | chain at from  |
//!          32               40               48               56               64    68    72
//!          | until LSN      | chain at until | unix ms        | pages' bytes   |pages| crc | 0 ..
//!   page   0        4        8                16       20       24
//!          | crc    | length | generation     | number | kind   | payload | zeros to a block
//! ```
//! Two files, written in turn (`checkpoint-0`, `checkpoint-1`): the head is blanked, the pages are
//! written, then the head. So a crash at any moment leaves the other one as it was.
//!
//! Pages are told while the log goes on, a few at a time, and so of different moments. That is why
//! `from` lies at the start of a segment, and before anything that was not committed when the first
//! page was told: whatever changed since stands in the log behind it, and to read that twice
//! changes nothing. `until` lies behind everything that any page may know, and the head is written
//! only when all before it is durable and committed.
//!
//! Invariants: a checkpoint never replaces the log. From its head on the log says everything, so
//! one that can't be used, or none, costs time and nothing else. It is used only where the log
//! comes to `until` with the chain that it names: then both tell the same history. What its pages
//! tell of places before the head of the log is gone since, or stands in the log again behind
//! `from`.
//!
//! Failure: whatever doesn't check makes it useless, and nothing here stops a broker. A start is
//! stopped by one thing: its log, which never was a pair's, ends before `until` of a whole head.
//! All below that was durable and committed once, so what a client was told is lost.

use crate::block_buf::BlockBuf;
use crate::identity::{Chain, LogSeed};
use crate::limits::{BLOCK_BYTES, CHECKPOINT_PAGE_BYTES_MAX, CHECKPOINT_VERSION, block_ceil};
use crate::lsn::{Lsn, Slot};
use crate::record::{u16_at, u32_at, u64_at};
use crate::space::Segment;

/// "LLcp"
const MAGIC: [u8; 4] = *b"LLcp";
const CRC_AT: usize = 68;
const HEAD_BYTES: usize = 72;
/// Bytes before a page's payload.
pub(crate) const PAGE_HEADER_BYTES: usize = 24;
/// Bytes of a segment in a page.
const SEGMENT_ROW_BYTES: usize = 24;

/// Which of the two files.
pub(crate) const FILES: [u8; 2] = [0, 1];

/// What a page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageKind {
    /// Segments between the head of the log and `from`.
    Segments,
    /// The owner's.
    State,
}

/// The head of a checkpoint that was written to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointHead {
    /// One more with each checkpoint of the shard.
    pub generation: u64,
    /// The log is read from here: the first batch of a segment.
    pub from: Lsn,
    /// The chain before it.
    pub chain: Chain,
    /// No page knows of anything behind it. A batch ends here.
    pub until: Lsn,
    /// The chain behind that batch.
    pub until_chain: Chain,
    /// When it was begun, milliseconds since 1970.
    pub unix_ms: u64,
    /// Bytes of all pages, whole blocks.
    pub bytes: u64,
    /// How many pages.
    pub pages: u32,
}

/// Why a checkpoint is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointError {
    /// Its head is neither zeros nor a head of this log.
    Head,
    /// Another version wrote it.
    Version(u16),
    /// A page doesn't check.
    Page(u32),
    /// A page says something that cannot be.
    Content(&'static str),
    /// It could not be read.
    Unreadable,
    /// The segments that it names are not there.
    Segments,
    /// The log comes to where it ends by another way.
    History,
    /// The log ends before everything that had been durable when it was finished.
    Beyond {
        /// What had been durable.
        until: Lsn,
        /// Where the log ends.
        end: Lsn,
    },
}

impl std::fmt::Display for CheckpointError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Head => f.write_str("its head doesn't check"),
            Self::Version(version) => write!(f, "it has version {version}"),
            Self::Page(number) => write!(f, "its page {number} doesn't check"),
            Self::Content(what) => f.write_str(what),
            Self::Unreadable => f.write_str("it can't be read"),
            Self::Segments => f.write_str("the segments that it names are not there"),
            Self::Beyond { until, end } => write!(
                f,
                "it was finished when all below LSN {until} was durable, and the log ends at \
                 {end}: unless a rejoin has cut that off, acknowledged records are lost"
            ),
            Self::History => f.write_str("it is of another history than the log"),
        }
    }
}

impl std::error::Error for CheckpointError {}

impl CheckpointHead {
    /// Reads the first block of a file. None: there is no checkpoint in it, or one that was not
    /// written to its end.
    ///
    /// # Errors
    /// There is something else.
    pub fn decode(
        seed: &LogSeed,
        segment_bytes: u64,
        block: &[u8],
    ) -> Result<Option<Self>, CheckpointError> {
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let bytes = block.first_chunk::<HEAD_BYTES>().ok_or(CheckpointError::Head)?;
        if bytes[..4] != MAGIC || seed.crc(&bytes[..CRC_AT]) != u32_at(bytes, CRC_AT) {
            return Err(CheckpointError::Head);
        }
        if u16_at(bytes, 4) != CHECKPOINT_VERSION {
            return Err(CheckpointError::Version(u16_at(bytes, 4)));
        }
        let head = Self {
            generation: u64_at(bytes, 8),
            from: Lsn(u64_at(bytes, 16)),
            chain: Chain(u64_at(bytes, 24)),
            until: Lsn(u64_at(bytes, 32)),
            until_chain: Chain(u64_at(bytes, 40)),
            unix_ms: u64_at(bytes, 48),
            bytes: u64_at(bytes, 56),
            pages: u32_at(bytes, 64),
        };
        let is_sound = u16_at(bytes, 6) == seed.shard().0
            && head.from.0 % segment_bytes == BLOCK_BYTES as u64
            && head.until > head.from;
        is_sound.then_some(Some(head)).ok_or(CheckpointError::Head)
    }

    pub(crate) fn encode(&self, seed: &LogSeed) -> BlockBuf {
        let mut buf = BlockBuf::zeroed(BLOCK_BYTES);
        let block = buf.as_mut_slice();
        block[..4].copy_from_slice(&MAGIC);
        block[4..6].copy_from_slice(&CHECKPOINT_VERSION.to_le_bytes());
        block[6..8].copy_from_slice(&seed.shard().0.to_le_bytes());
        block[8..16].copy_from_slice(&self.generation.to_le_bytes());
        block[16..24].copy_from_slice(&self.from.0.to_le_bytes());
        block[24..32].copy_from_slice(&self.chain.0.to_le_bytes());
        block[32..40].copy_from_slice(&self.until.0.to_le_bytes());
        block[40..48].copy_from_slice(&self.until_chain.0.to_le_bytes());
        block[48..56].copy_from_slice(&self.unix_ms.to_le_bytes());
        block[56..64].copy_from_slice(&self.bytes.to_le_bytes());
        block[64..68].copy_from_slice(&self.pages.to_le_bytes());
        let crc = seed.crc(&block[..CRC_AT]);
        block[CRC_AT..HEAD_BYTES].copy_from_slice(&crc.to_le_bytes());
        buf
    }
}

/// Where a page belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageAt {
    pub(crate) generation: u64,
    pub(crate) number: u32,
}

/// A page, ready to be written.
///
/// # Panics
/// If the payload is too long.
pub(crate) fn encode_page(seed: &LogSeed, at: PageAt, kind: PageKind, payload: &[u8]) -> BlockBuf {
    let end = PAGE_HEADER_BYTES + payload.len();
    assert!(end <= CHECKPOINT_PAGE_BYTES_MAX, "a page of {end} bytes");
    // Buffers are kept by their size for ever: let there be few sizes.
    let mut buf = BlockBuf::zeroed(end.next_power_of_two().max(BLOCK_BYTES));
    buf.set_len(block_ceil(end));
    let bytes = buf.as_mut_slice();
    let length = u32::try_from(payload.len()).expect("a page is small");
    let kind: u32 = match kind {
        PageKind::Segments => 1,
        PageKind::State => 2,
    };
    bytes[4..8].copy_from_slice(&length.to_le_bytes());
    bytes[8..16].copy_from_slice(&at.generation.to_le_bytes());
    bytes[16..20].copy_from_slice(&at.number.to_le_bytes());
    bytes[20..24].copy_from_slice(&kind.to_le_bytes());
    bytes[PAGE_HEADER_BYTES..end].copy_from_slice(payload);
    let crc = seed.crc(&bytes[4..end]);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
    buf
}

/// What stands where a page should be.
pub(crate) enum PageRead {
    /// The page: its kind, and how many bytes its payload has.
    Page(PageKind, usize),
    /// It may go on behind these bytes.
    Cut,
    /// Not this page.
    Broken,
}

/// Reads the page that begins `bytes`.
pub(crate) fn decode_page(seed: &LogSeed, at: PageAt, bytes: &[u8]) -> PageRead {
    let Some(header) = bytes.first_chunk::<PAGE_HEADER_BYTES>() else { return PageRead::Cut };
    let length = u32_at(header, 4) as usize;
    let is_here = u64_at(header, 8) == at.generation && u32_at(header, 16) == at.number;
    if !is_here || length > CHECKPOINT_PAGE_BYTES_MAX - PAGE_HEADER_BYTES {
        return PageRead::Broken;
    }
    let Some(covered) = bytes.get(4..PAGE_HEADER_BYTES + length) else { return PageRead::Cut };
    if seed.crc(covered) != u32_at(header, 0) {
        return PageRead::Broken;
    }
    match u32_at(header, 20) {
        1 => PageRead::Page(PageKind::Segments, length),
        2 => PageRead::Page(PageKind::State, length),
        _ => PageRead::Broken,
    }
}

/// Segments as rows of a page, little-endian: number 8, slot 4, padding 4, chain before 8.
pub(crate) fn encode_segments(segments: &[Segment]) -> Vec<u8> {
    let mut out = Vec::with_capacity(segments.len() * SEGMENT_ROW_BYTES);
    for segment in segments {
        let chain = segment.chain_before.expect("batches stand behind it");
        let padding = u32::try_from(segment.padding_bytes).expect("a segment is small");
        out.extend_from_slice(&segment.number.to_le_bytes());
        out.extend_from_slice(&segment.slot.0.to_le_bytes());
        out.extend_from_slice(&padding.to_le_bytes());
        out.extend_from_slice(&chain.0.to_le_bytes());
    }
    out
}

/// Segments that fit into one page.
pub(crate) const SEGMENTS_OF_PAGE: usize =
    (CHECKPOINT_PAGE_BYTES_MAX - PAGE_HEADER_BYTES) / SEGMENT_ROW_BYTES;

/// The rows of a page; none if it has a part of one.
pub(crate) fn decode_segments(payload: &[u8]) -> Option<impl Iterator<Item = Segment> + '_> {
    let rows = payload.chunks_exact(SEGMENT_ROW_BYTES);
    rows.remainder().is_empty().then(|| {
        rows.map(|row| {
            let mut segment =
                Segment::new(u64_at(row, 0), Slot(u32_at(row, 8)), Some(Chain(u64_at(row, 16))));
            segment.padding_bytes = u64::from(u32_at(row, 12));
            segment
        })
    })
}

/// Judges a checkpoint's file by itself. None: there is none in it.
///
/// # Errors
/// What is wrong with it.
pub fn check_checkpoint(
    seed: &LogSeed,
    segment_bytes: u64,
    file: &[u8],
) -> Result<Option<CheckpointHead>, CheckpointError> {
    let block = &file[..file.len().min(BLOCK_BYTES)];
    let Some(head) = CheckpointHead::decode(seed, segment_bytes, block)? else { return Ok(None) };
    let mut at = BLOCK_BYTES;
    for number in 0..head.pages {
        let page = PageAt { generation: head.generation, number };
        match decode_page(seed, page, file.get(at..).unwrap_or_default()) {
            PageRead::Page(_, length) => at += block_ceil(PAGE_HEADER_BYTES + length),
            PageRead::Cut | PageRead::Broken => return Err(CheckpointError::Page(number)),
        }
    }
    let is_whole = (at - BLOCK_BYTES) as u64 == head.bytes;
    is_whole.then_some(Some(head)).ok_or(CheckpointError::Head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsn::{LogId, ShardId};

    const S: u64 = 65536;

    fn seed() -> LogSeed {
        LogSeed::new(LogId([7; 16]), ShardId(3))
    }

    fn head() -> CheckpointHead {
        CheckpointHead {
            generation: 9,
            from: Lsn(5 * S + 4096),
            chain: Chain(77),
            until: Lsn(6 * S + 8192),
            until_chain: Chain(78),
            unix_ms: 1_700_000_000_000,
            bytes: 4096,
            pages: 1,
        }
    }

    #[test]
    fn a_head_is_zeros_or_whole_or_nothing() {
        let block = head().encode(&seed());
        let read = |block: &[u8]| CheckpointHead::decode(&seed(), S, block);
        assert_eq!(read(block.as_slice()), Ok(Some(head())));
        assert_eq!((read(&[]), read(&[0; 4096])), (Ok(None), Ok(None)));
        for bit in 0..HEAD_BYTES * 8 {
            let mut hurt = block.as_slice().to_vec();
            hurt[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&hurt).is_err(), "bit {bit}");
        }
        let other = LogSeed::new(LogId([7; 16]), ShardId(4));
        let read = CheckpointHead::decode(&other, S, block.as_slice());
        assert_eq!(read, Err(CheckpointError::Head), "another shard's");
    }

    #[test]
    fn a_page_is_that_of_its_generation_and_number_or_none() {
        let at = PageAt { generation: 9, number: 4 };
        let page = encode_page(&seed(), at, PageKind::State, &[5; 5000]);
        let kind_of = |at: PageAt, bytes: &[u8]| match decode_page(&seed(), at, bytes) {
            PageRead::Page(kind, length) => Some((kind, length)),
            PageRead::Cut | PageRead::Broken => None,
        };
        let bytes = page.as_slice();
        assert_eq!((bytes.len(), kind_of(at, bytes)), (8192, Some((PageKind::State, 5000))));
        for other in [PageAt { generation: 8, ..at }, PageAt { number: 5, ..at }] {
            assert_eq!(kind_of(other, bytes), None);
        }
        for byte in 0..PAGE_HEADER_BYTES + 5000 {
            let mut hurt = bytes.to_vec();
            hurt[byte] ^= 1;
            assert_eq!(kind_of(at, &hurt), None, "byte {byte}");
        }
        assert!(matches!(decode_page(&seed(), at, &bytes[..4096]), PageRead::Cut));
    }

    #[test]
    fn segments_come_back_with_their_padding() {
        let mut segment = Segment::new(8, Slot(3), Some(Chain(5)));
        segment.padding_bytes = 12_345;
        let rows = encode_segments(&[segment; 3]);
        let read: Vec<Segment> = decode_segments(&rows).expect("whole rows").collect();
        let fields = |s: &Segment| (s.number, s.slot, s.chain_before, s.padding_bytes);
        assert_eq!(read.iter().map(fields).collect::<Vec<_>>(), [fields(&segment); 3]);
        assert!(decode_segments(&rows[1..]).is_none());
    }

    /// A head, segments, and a page of the owner's.
    fn file() -> Vec<u8> {
        let segment = Segment::new(4, Slot(2), Some(Chain(6)));
        let rows = encode_segments(&[segment]);
        let mut pages = Vec::new();
        for (number, kind, payload) in
            [(0, PageKind::Segments, &rows[..]), (1, PageKind::State, b"what it came to")]
        {
            let at = PageAt { generation: 9, number };
            pages.extend_from_slice(encode_page(&seed(), at, kind, payload).as_slice());
        }
        let head = CheckpointHead { pages: 2, bytes: pages.len() as u64, ..head() };
        [head.encode(&seed()).as_slice(), &pages].concat()
    }

    fn golden() -> std::path::PathBuf {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        root.join(format!("testdata/checkpoint-v{CHECKPOINT_VERSION}"))
    }

    #[test]
    #[ignore = "writes the golden file; only with a new version"]
    fn make() {
        std::fs::write(golden(), file()).unwrap();
    }

    #[test]
    fn the_golden_file_is_read_and_written_as_it_was() {
        let golden = std::fs::read(golden()).unwrap();
        assert!(file() == golden, "a checkpoint is written otherwise");
        let found = check_checkpoint(&seed(), S, &golden).expect("it checks");
        assert_eq!(found.map(|head| (head.generation, head.pages)), Some((9, 2)));
    }

    #[test]
    fn a_file_is_judged_to_its_last_page() {
        let page = encode_page(&seed(), PageAt { generation: 9, number: 0 }, PageKind::State, b"x");
        let mut file = head().encode(&seed()).as_slice().to_vec();
        file.extend_from_slice(page.as_slice());
        let check = |file: &[u8]| check_checkpoint(&seed(), S, file);
        assert_eq!(check(&file), Ok(Some(head())));
        assert_eq!(check(&file[..4096]), Err(CheckpointError::Page(0)));
        file[4096 + 24] ^= 1;
        assert_eq!(check(&file), Err(CheckpointError::Page(0)));
        file[..4096].fill(0);
        assert_eq!(check(&file), Ok(None), "it was not written to its end");
    }
}
