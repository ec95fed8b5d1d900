//! Every bound of the format and of the commit path, checked against each other at compile time.
//!
//! What is marked *format* is read by every later version and never changes; the rest are choices.

use std::time::Duration;

/// The version written in every header. *Format.* Data of version 0, from before the freeze, is
/// refused like that of any other version.
pub const FORMAT_VERSION: u16 = 1;

/// Unit of alignment, of tearing and of padding. *Format.*
pub const BLOCK_BYTES: usize = 4096;

/// Bytes of the header that stands at the start of each segment: one block. *Format.*
pub const SEGMENT_HEADER_BYTES: u64 = BLOCK_BYTES as u64;

/// Bytes of a batch's header. *Format.*
pub const BATCH_HEADER_BYTES: usize = 64;

/// Bytes of a record's header. *Format.*
pub const RECORD_HEADER_BYTES: usize = 32;

/// Longest batch, header and padding included. *Format*: recovery refuses longer ones.
pub const BATCH_BYTES_MAX: usize = 128 * 1024;

/// Most payload in one record; longer messages are split. *Format.*
pub const FRAGMENT_BYTES_MAX: usize = 64 * 1024;

/// Most bytes of optional parts in one record. *Format.*
pub const PARTS_BYTES_MAX: usize = 4096;

/// Smallest segment a test may ask for.
pub const SEGMENT_BYTES_MIN: u64 = 64 * 1024;

/// Largest segment.
pub const SEGMENT_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Segments that messages never use: one for settlements on a full disk, one for copies.
pub const RESERVE_SEGMENTS: u32 = 2;

/// Segments a shard gets at format: the first one and the reserve.
pub const FORMAT_SEGMENTS: u32 = 1 + RESERVE_SEGMENTS;

/// Fewest segments a shard can work with: head, tail and the reserve.
pub const SEGMENTS_MIN: u32 = FORMAT_SEGMENTS + 1;

/// Bytes set aside for the settlement of each accepted message: its record, its share of the
/// header of a full block, and of what a full block leaves over.
pub const SETTLE_BYTES: u64 = 40;

/// Most writes of batches in flight.
pub const WRITES_IN_FLIGHT_MAX: usize = 8;

/// Writes that may run beyond those: a slot is kept for a batch that vouches.
pub const WRITES_KEPT: usize = 1;

/// Most batches between the oldest write that has not ended and the last one submitted, both
/// counted: with it recovery knows how far behind a lost segment header others can lie. *Format.*
pub const WRITES_WINDOW_MAX: usize = 2 * WRITES_IN_FLIGHT_MAX;

/// No LSN is ever beyond this, so that no sum of places overflows. *Format.*
pub const LSN_MAX: u64 = 1 << 62;

/// Bytes of batches appended and not yet durable at which messages are put off.
pub const BACKLOG_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// How long a settlement waits for company when the disk is full.
pub const PACK_WINDOW: Duration = Duration::from_millis(50);

/// How long a settlement waits for company when the last reserved segment is in use.
pub const PACK_WINDOW_LAST: Duration = Duration::from_secs(1);

/// A pre-write moves a whole segment: it may take this many times as long as a write.
pub const PREWRITE_BOUND_TIMES: u32 = 10;

/// Idle time after which the durable mark is written.
pub const DURABLE_MARK_IDLE: Duration = Duration::from_millis(200);

/// How long after the disk was found full another segment is asked for.
pub const SPACE_RETRY: Duration = Duration::from_secs(1);

/// Bytes that recovery reads at once.
pub const RECOVERY_READ_BYTES: usize = 1024 * 1024;

/// Bytes that a walk over a segment of the running log reads at once.
pub const SCAN_READ_BYTES: usize = 256 * 1024;

/// Most reads of the running log in flight.
pub const READS_IN_FLIGHT_MAX: usize = 8;

/// The version of a checkpoint's files. One that is of another version is not used.
pub const CHECKPOINT_VERSION: u16 = 1;

/// Longest page of a checkpoint, header and padding included. *Format* of that version.
pub const CHECKPOINT_PAGE_BYTES_MAX: usize = 1024 * 1024;

/// How long a page is put off for what was appended.
pub const CHECKPOINT_PATIENCE: Duration = Duration::from_millis(20);

/// Pages that wait to be written before more is asked for.
pub const CHECKPOINT_PAGES_WAITING: usize = 1;

/// A checkpoint is worth its writes when a start need not read so many segments.
pub const CHECKPOINT_SEGMENTS_MIN: u64 = 2;

/// Most shards of a directory.
pub const SHARDS_MAX: u16 = 1024;

const _: () = {
    assert!(BATCH_BYTES_MAX.is_multiple_of(BLOCK_BYTES));
    assert!(SEGMENT_BYTES_MIN.is_multiple_of(BLOCK_BYTES as u64));
    assert!(SEGMENT_BYTES_MAX < u32::MAX as u64);
    // The longest record fits into the longest batch.
    assert!(
        BATCH_HEADER_BYTES + RECORD_HEADER_BYTES + PARTS_BYTES_MAX + FRAGMENT_BYTES_MAX
            <= BATCH_BYTES_MAX
    );
    // A chunk read by recovery holds a whole batch, wherever in the chunk it begins at a block.
    assert!(
        RECOVERY_READ_BYTES >= BATCH_BYTES_MAX && RECOVERY_READ_BYTES.is_multiple_of(BLOCK_BYTES)
    );
    // So does one read by a walk over a segment: each of them gets on.
    assert!(SCAN_READ_BYTES >= BATCH_BYTES_MAX && SCAN_READ_BYTES.is_multiple_of(BLOCK_BYTES));
    // A read of a checkpoint holds a whole page, wherever that begins.
    assert!(RECOVERY_READ_BYTES >= CHECKPOINT_PAGE_BYTES_MAX);
    assert!(CHECKPOINT_PAGE_BYTES_MAX.is_multiple_of(BLOCK_BYTES));
    // While settlements use up one segment, the live records of another can be copied.
    assert!(RESERVE_SEGMENTS >= 2);
    // Settlements packed into full blocks take no more than was set aside for them.
    let in_block = (BLOCK_BYTES - BATCH_HEADER_BYTES) / RECORD_HEADER_BYTES;
    assert!((BLOCK_BYTES as u64) <= in_block as u64 * SETTLE_BYTES);
};

/// `bytes` rounded up to whole blocks.
#[must_use]
pub const fn block_ceil(bytes: usize) -> usize {
    bytes.div_ceil(BLOCK_BYTES) * BLOCK_BYTES
}
