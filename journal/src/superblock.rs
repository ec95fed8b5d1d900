//! What a directory is, and where a shard's log begins: two blocks each, written in turn.
//!
//! ```text
//!   0        4     6     8        12       16               24               32              40
//!   | magic  | ver |shard| length | crc    | generation     | must know      | may know       |
//!   40                              56
//!   | log id                        | node or shard fields, then parts (type, length, bytes)*
//!
//!   node    56 journal uuid (16)   72 segment bytes (8)   80 block bytes (4)   84 shards (2)
//!           86 state (1)   87 zero (1)   88 promised epoch (8)   96 parts
//!   shard   56 head LSN (8)   64 chain before the head (8)   72 durable mark (8)
//!           80 truncation: LSN (8)   88 epoch (8)   96 incarnation (4)
//!           100 incarnation of the last opening (4)   104 clean (1)   105 zeros (3)
//!           108 slots made (4)   112 parts
//!           part 1: the epoch table, (epoch 8, first LSN 8)*
//!           part 2, to be understood, of a log begun in the middle of another's: where it is whole
//!           (8), files that were there (4); gone when it goes so far and they are written through
//! ```
//!
//! Little-endian; the checksum (unseeded: these blocks are where the seed is found) covers `length`
//! bytes but itself. Generation g goes to block (g - 1) % 2, with data sync.
//!
//! Invariants: the highest valid generation wins. A write tears at most the older block. A format
//! writes generation 1 into block 0 within one sector, which a power cut leaves old or new: a block
//! that is neither zero nor valid has been written and was damaged later. So there are three
//! answers: never written, good, and written but unreadable, and the last stops the start. A valid
//! block of a newer version or with features that must be known stops it too; the older block is no
//! way out. Parts that aren't known are kept. A log that was begun in the middle of another's is a
//! state only from a certain LSN on (part 2): until it goes so far nobody starts from it.

use std::fmt;

use crate::block_buf::BlockBuf;
use crate::epochs::{EPOCHS_MAX, EpochTable};
use crate::identity::Chain;
use crate::limits::{
    BLOCK_BYTES, FORMAT_SEGMENTS, FORMAT_VERSION, LSN_MAX, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN,
    SEGMENT_HEADER_BYTES, SHARDS_MAX,
};
use crate::lsn::{Epoch, Incarnation, JournalUuid, LogId, Lsn, ShardId, Slot, Term};
use crate::record::{PART_REQUIRED, PartReader, u16_at, u32_at, u64_at};

/// Bytes of a superblock's file.
pub const SUPERBLOCK_FILE_BYTES: usize = 2 * BLOCK_BYTES;

const NODE_MAGIC: [u8; 4] = *b"LLnd";
const SHARD_MAGIC: [u8; 4] = *b"LLsh";
/// Stands where a shard's superblock has the number of its shard.
const NODE_SHARD: u16 = u16::MAX;
const FEATURES_KNOWN: u64 = 0;
/// A catch-up is under way: what is there is no log yet.
const FEATURE_INSTALLING: u64 = 1;
const CRC_AT: usize = 12;
const FIELDS_AT: usize = 56;
const NODE_PARTS_AT: usize = 96;
const SHARD_PARTS_AT: usize = 112;
const PART_EPOCHS: u16 = 1;
const PART_BEGUN: u16 = 2 | PART_REQUIRED;
/// The epoch of a log that was formatted here, until a reign of a pair begins in it.
const FORMAT_EPOCH: Epoch = Epoch(1);
/// Most bytes of parts that may be unknown, with their headers, so that there is room to keep them.
const CARRIED_BYTES_MAX: usize = 2048;

/// What is fixed when a directory is formatted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of a segment, all shards alike.
    pub segment_bytes: u64,
    /// How many shards.
    pub shards: u16,
}

impl Geometry {
    /// Whether the numbers are within their bounds.
    #[must_use]
    pub const fn is_valid(&self) -> bool {
        self.segment_bytes.is_multiple_of(BLOCK_BYTES as u64)
            && self.segment_bytes >= SEGMENT_BYTES_MIN
            && self.segment_bytes <= SEGMENT_BYTES_MAX
            && self.shards >= 1
            && self.shards <= SHARDS_MAX
    }
}

/// Whether a log is whole. A broker that can catch up by segments writes 2, installing, while it
/// does, and sets a feature that must be known; this one can't, and refuses such a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum NodeState {
    /// It can be started from.
    Whole = 1,
}

/// The node's superblock: file `superblock`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSuperblock {
    /// Goes up with each writing.
    pub generation: u64,
    /// Which log.
    pub log_id: LogId,
    /// Which directory.
    pub journal_uuid: JournalUuid,
    /// Sizes.
    pub geometry: Geometry,
    /// No older epoch is followed or begun.
    pub epoch_promised: Epoch,
    /// Whether the log is whole.
    pub state: NodeState,
    /// Parts that this version doesn't know.
    carried: Vec<u8>,
}

impl NodeSuperblock {
    /// The first one of a directory.
    pub(crate) fn first(log_id: LogId, journal_uuid: JournalUuid, geometry: Geometry) -> Self {
        Self {
            generation: 1,
            log_id,
            journal_uuid,
            geometry,
            epoch_promised: FORMAT_EPOCH,
            state: NodeState::Whole,
            carried: Vec::new(),
        }
    }

    /// Reads the whole file `superblock` (8192 bytes; none where it is missing). `Ok(None)`: never
    /// written, so the directory is not formatted.
    ///
    /// # Errors
    /// It was written and can't be read or must not be used.
    pub fn decode(file: &[u8]) -> Result<Option<Self>, SuperblockError> {
        newest(file, NODE_MAGIC, NODE_SHARD, |block| {
            let fields = block.get(..NODE_PARTS_AT).ok_or(SuperblockError::Malformed)?;
            let state = match fields[86] {
                1 => NodeState::Whole,
                2 => return Err(SuperblockError::UnknownFeatures(FEATURE_INSTALLING)),
                3.. | 0 => return Err(SuperblockError::Malformed),
            };
            let geometry =
                Geometry { segment_bytes: u64_at(fields, 72), shards: u16_at(fields, 84) };
            if !geometry.is_valid() || u32_at(fields, 80) as usize != BLOCK_BYTES {
                return Err(SuperblockError::Malformed);
            }
            let mut carried = Vec::new();
            read_parts(&block[NODE_PARTS_AT..], &mut carried, |_, _| Ok(false))?;
            let mut journal_uuid = JournalUuid::default();
            journal_uuid.0.copy_from_slice(&fields[56..72]);
            Ok(Self {
                generation: u64_at(fields, 16),
                log_id: log_id_of(fields),
                journal_uuid,
                geometry,
                epoch_promised: Epoch(u64_at(fields, 88)),
                state,
                carried,
            })
        })
    }

    /// Its block, and where that goes.
    pub(crate) fn encode(&self) -> (BlockBuf, u64) {
        let mut buf = BlockBuf::zeroed(BLOCK_BYTES);
        let block = buf.as_mut_slice();
        block[56..72].copy_from_slice(&self.journal_uuid.0);
        block[72..80].copy_from_slice(&self.geometry.segment_bytes.to_le_bytes());
        let block_bytes = u32::try_from(BLOCK_BYTES).expect("4096");
        block[80..84].copy_from_slice(&block_bytes.to_le_bytes());
        block[84..86].copy_from_slice(&self.geometry.shards.to_le_bytes());
        block[86] = self.state as u8;
        block[88..96].copy_from_slice(&self.epoch_promised.0.to_le_bytes());
        let end = put_bytes(block, NODE_PARTS_AT, &self.carried);
        let head = Head {
            magic: NODE_MAGIC,
            shard: NODE_SHARD,
            generation: self.generation,
            log_id: self.log_id,
        };
        head.finish(block, end);
        (buf, block_offset(self.generation))
    }
}

/// Everything at or beyond `at` that was written in `term` or before was cut off: it proves nothing
/// and is never read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncation {
    /// Where the log was cut.
    pub at: Lsn,
    /// The last term of what was cut.
    pub term: Term,
}

impl Truncation {
    /// Whether what this term wrote at `lsn` was cut off.
    #[must_use]
    pub fn covers(&self, lsn: Lsn, term: Term) -> bool {
        lsn >= self.at && term <= self.term
    }
}

/// A shard's superblock: file `shard-000/superblock`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardSuperblock {
    /// Goes up with each writing.
    pub generation: u64,
    /// Which log.
    pub log_id: LogId,
    /// Whose.
    pub shard: ShardId,
    /// Where the first live segment's first batch stands.
    pub head: Lsn,
    /// The chain before it.
    pub head_chain: Chain,
    /// Everything below was durable when this was written.
    pub durable: Lsn,
    /// What was cut off.
    pub truncation: Truncation,
    /// The number of the last opening.
    pub incarnation: Incarnation,
    /// The log was closed: nothing was under way.
    pub clean: bool,
    /// Every slot with a smaller number was written through before it was used.
    pub slots_made: u32,
    /// Where each reign began.
    pub epochs: EpochTable,
    /// Of a log that was begun in the middle of another's.
    pub begun: Option<Begun>,
    carried: Vec<u8>,
}

/// What is still to be done for a log that was begun in the middle of another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun {
    /// It is whole once it goes so far.
    pub whole_at: Lsn,
    /// Slots with a smaller number had files, which hold nothing of this log until they are made.
    pub slots_before: u32,
}

/// Where a log can be begun in the middle of another's, and how far it must go to be whole: what
/// still lived before the beginning has its copies below that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogStart {
    /// Where the first batch stands.
    pub head: Lsn,
    /// The chain before it.
    pub chain: Chain,
    /// The log is whole once it goes so far.
    pub whole_at: Lsn,
}

impl ShardSuperblock {
    /// The first one of a shard.
    pub(crate) fn first(log_id: LogId, shard: ShardId, chain: Chain) -> Self {
        let start = Lsn(SEGMENT_HEADER_BYTES);
        Self {
            generation: 1,
            log_id,
            shard,
            head: start,
            head_chain: chain,
            durable: start,
            truncation: Truncation { at: start, term: Term::default() },
            incarnation: Incarnation(0),
            clean: true,
            slots_made: FORMAT_SEGMENTS,
            epochs: EpochTable::new(FORMAT_EPOCH, start),
            begun: None,
            carried: Vec::new(),
        }
    }

    /// Reads the whole file; see [`NodeSuperblock::decode`].
    ///
    /// # Errors
    /// It was written and can't be read or must not be used here.
    pub fn decode(
        file: &[u8],
        log_id: LogId,
        shard: ShardId,
    ) -> Result<Option<Self>, SuperblockError> {
        let found = newest(file, SHARD_MAGIC, shard.0, |block| {
            let fields = block.get(..SHARD_PARTS_AT).ok_or(SuperblockError::Malformed)?;
            let (mut epochs, mut begun, mut carried) = (None, None, Vec::new());
            read_parts(&block[SHARD_PARTS_AT..], &mut carried, |code, part| {
                if code == PART_BEGUN {
                    let part: &[u8; 12] =
                        part.try_into().map_err(|_| SuperblockError::Malformed)?;
                    let (whole_at, slots_before) = (Lsn(u64_at(part, 0)), u32_at(part, 8));
                    begun = Some(Begun { whole_at, slots_before });
                    return Ok(true);
                }
                if code != PART_EPOCHS {
                    return Ok(false);
                }
                let (rows, rest) = part.as_chunks::<16>();
                let rows = rows.iter().map(|row| (Epoch(u64_at(row, 0)), Lsn(u64_at(row, 8))));
                epochs = EpochTable::from_rows(rows.collect()).filter(|_| rest.is_empty());
                Ok(true)
            })?;
            let epochs = epochs.ok_or(SuperblockError::Malformed)?;
            let truncation = Truncation {
                at: Lsn(u64_at(fields, 80)),
                term: Term {
                    epoch: Epoch(u64_at(fields, 88)),
                    incarnation: Incarnation(u32_at(fields, 96)),
                },
            };
            Ok(Self {
                generation: u64_at(fields, 16),
                log_id: log_id_of(fields),
                shard,
                head: Lsn(u64_at(fields, 56)),
                head_chain: Chain(u64_at(fields, 64)),
                durable: Lsn(u64_at(fields, 72)),
                truncation,
                incarnation: Incarnation(u32_at(fields, 100)),
                clean: fields[104] == 1,
                slots_made: u32_at(fields, 108),
                epochs,
                begun,
                carried,
            })
        })?;
        match found {
            Some(found) if found.log_id != log_id => Err(SuperblockError::WrongLog(found.log_id)),
            Some(found) if !found.is_sound() => Err(SuperblockError::Malformed),
            Some(_) | None => Ok(found),
        }
    }

    /// The log is given up for one that begins in the middle of another's. None of its files, whose
    /// slots have smaller numbers than `slots_before`, counts any more: each is written through
    /// again before it is used.
    pub(crate) fn begin_at(&mut self, start: LogStart, epochs: EpochTable, slots_before: u32) {
        let LogStart { head, chain, whole_at } = start;
        (self.head, self.head_chain, self.durable) = (head, chain, head);
        self.truncation = Truncation { at: head, term: Term::default() };
        (self.slots_made, self.clean, self.epochs) = (0, false, epochs);
        self.begun = Some(Begun { whole_at, slots_before });
    }

    /// How far the log must still go to be whole, if it ends at `end`.
    #[must_use]
    pub fn lacks(&self, end: Lsn) -> Option<Lsn> {
        self.begun.map(|begun| begun.whole_at).filter(|whole_at| end < *whole_at)
    }

    /// Whether no reign of a pair has begun in this log: it has the epoch of its format alone.
    pub(crate) fn is_never_a_pairs(&self) -> bool {
        self.epochs.newest().0 == FORMAT_EPOCH
    }

    /// Whether this slot has a file of a log that was given up.
    #[must_use]
    pub fn is_stale(&self, slot: Slot) -> bool {
        let before = self.begun.map_or(0, |begun| begun.slots_before);
        slot.0 < before && slot.0 >= self.slots_made
    }

    /// The epoch that goes on from `lsn`: at least `epoch`, and never back. A new one gets its row.
    pub(crate) fn enter_epoch(&mut self, epoch: Epoch, lsn: Lsn) -> Epoch {
        let (current, first) = self.epochs.newest();
        // A part that the log never came to is another's: its epoch can't begin earlier here.
        let epoch = if first > lsn { epoch.max(Epoch(current.0 + 1)) } else { epoch };
        if epoch > current {
            self.epochs.enter(epoch, lsn);
        }
        current.max(epoch)
    }

    /// Whether its fields fit together, and leave room to be counted on.
    fn is_sound(&self) -> bool {
        self.head <= self.durable
            && self.durable.0 <= LSN_MAX
            && self.begun.is_none_or(|begun| begun.whole_at.0 <= LSN_MAX)
            && self.truncation.at.0 <= LSN_MAX
            && self.incarnation.0 < u32::MAX
            && self.truncation.term.incarnation.0 < u32::MAX
            && self.generation < u64::MAX / 2
    }

    /// Its block, and where that goes.
    pub(crate) fn encode(&self) -> (BlockBuf, u64) {
        assert!(self.durable >= self.head);
        let mut buf = BlockBuf::zeroed(BLOCK_BYTES);
        let block = buf.as_mut_slice();
        block[56..64].copy_from_slice(&self.head.0.to_le_bytes());
        block[64..72].copy_from_slice(&self.head_chain.0.to_le_bytes());
        block[72..80].copy_from_slice(&self.durable.0.to_le_bytes());
        block[80..88].copy_from_slice(&self.truncation.at.0.to_le_bytes());
        block[88..96].copy_from_slice(&self.truncation.term.epoch.0.to_le_bytes());
        block[96..100].copy_from_slice(&self.truncation.term.incarnation.0.to_le_bytes());
        block[100..104].copy_from_slice(&self.incarnation.0.to_le_bytes());
        block[104] = u8::from(self.clean);
        block[108..112].copy_from_slice(&self.slots_made.to_le_bytes());
        let rows =
            self.epochs.rows().iter().flat_map(|(epoch, lsn)| {
                epoch.0.to_le_bytes().into_iter().chain(lsn.0.to_le_bytes())
            });
        let rows: Vec<u8> = rows.collect();
        let rows_bytes = u16::try_from(rows.len()).expect("bounded by EPOCHS_MAX");
        let end = put_bytes(block, SHARD_PARTS_AT, &PART_EPOCHS.to_le_bytes());
        let end = put_bytes(block, end, &rows_bytes.to_le_bytes());
        let mut end = put_bytes(block, end, &rows);
        let is_open =
            |begun: &Begun| begun.whole_at > self.durable || begun.slots_before > self.slots_made;
        if let Some(begun) = self.begun.filter(is_open) {
            end = put_bytes(block, end, &PART_BEGUN.to_le_bytes());
            end = put_bytes(block, end, &12u16.to_le_bytes());
            end = put_bytes(block, end, &begun.whole_at.0.to_le_bytes());
            end = put_bytes(block, end, &begun.slots_before.to_le_bytes());
        }
        let end = put_bytes(block, end, &self.carried);
        let head = Head {
            magic: SHARD_MAGIC,
            shard: self.shard.0,
            generation: self.generation,
            log_id: self.log_id,
        };
        head.finish(block, end);
        (buf, block_offset(self.generation))
    }
}

/// Why a superblock can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SuperblockError {
    /// It was written, and no block of it checks.
    Unreadable,
    /// Another version of the broker wrote it.
    Version(u16),
    /// It has features that must not be ignored.
    UnknownFeatures(u64),
    /// It has a part that must not be ignored.
    UnknownPart(u16),
    /// It belongs to this other log.
    WrongLog(LogId),
    /// It belongs to another shard, or its fields contradict each other.
    Malformed,
}

impl fmt::Display for SuperblockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable => f.write_str("neither of its two blocks can be read"),
            Self::Version(version) => {
                write!(f, "it has format version {version}, this broker has {FORMAT_VERSION}")
            }
            Self::UnknownFeatures(FEATURE_INSTALLING) => f.write_str(
                "a catch-up of this directory was under way, so it is not whole; \
                 start the broker that was catching up",
            ),
            Self::UnknownFeatures(bits) => write!(f, "it needs features {bits:#x}, unknown here"),
            Self::UnknownPart(code) => write!(f, "it has a part {code:#06x} that must be known"),
            Self::WrongLog(log) => write!(f, "it belongs to another log ({log})"),
            Self::Malformed => f.write_str("its fields contradict each other"),
        }
    }
}

impl std::error::Error for SuperblockError {}

struct Head {
    magic: [u8; 4],
    shard: u16,
    generation: u64,
    log_id: LogId,
}

impl Head {
    fn finish(&self, block: &mut [u8], end: usize) {
        assert!(self.generation > 0 && end <= block.len());
        let length = u32::try_from(end).expect("a block");
        block[..4].copy_from_slice(&self.magic);
        block[4..6].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        block[6..8].copy_from_slice(&self.shard.to_le_bytes());
        block[8..12].copy_from_slice(&length.to_le_bytes());
        block[16..24].copy_from_slice(&self.generation.to_le_bytes());
        block[24..32].copy_from_slice(&FEATURES_KNOWN.to_le_bytes());
        block[40..56].copy_from_slice(&self.log_id.0);
        let crc = crc_of(&block[..end]);
        block[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
    }
}

fn crc_of(block: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&block[..CRC_AT]), &block[CRC_AT + 4..])
}

fn put_bytes(block: &mut [u8], at: usize, bytes: &[u8]) -> usize {
    block[at..at + bytes.len()].copy_from_slice(bytes);
    at + bytes.len()
}

fn block_offset(generation: u64) -> u64 {
    (generation - 1) % 2 * BLOCK_BYTES as u64
}

fn log_id_of(fields: &[u8]) -> LogId {
    let mut log_id = LogId::default();
    log_id.0.copy_from_slice(&fields[40..FIELDS_AT]);
    log_id
}

/// Reads both blocks; the newest one that checks is decoded, and no older one takes its place.
fn newest<T>(
    file: &[u8],
    magic: [u8; 4],
    shard: u16,
    decode: impl Fn(&[u8]) -> Result<T, SuperblockError>,
) -> Result<Option<T>, SuperblockError> {
    let written = file.iter().any(|byte| *byte != 0);
    // Half of it is not enough: the other half may be the newer one.
    if written && file.len() < SUPERBLOCK_FILE_BYTES {
        return Err(SuperblockError::Unreadable);
    }
    let valid = file.chunks_exact(BLOCK_BYTES).take(2).filter_map(|block| {
        let covered = block.get(..u32_at(block, 8) as usize)?;
        let checks = covered.len() >= FIELDS_AT
            && covered[..4] == magic
            && crc_of(covered) == u32_at(covered, CRC_AT);
        checks.then_some(covered)
    });
    let Some(block) = valid.max_by_key(|block| u64_at(block, 16)) else {
        return if written { Err(SuperblockError::Unreadable) } else { Ok(None) };
    };
    let (version, features) = (u16_at(block, 4), u64_at(block, 24));
    if version != FORMAT_VERSION {
        return Err(SuperblockError::Version(version));
    }
    if features & !FEATURES_KNOWN != 0 {
        return Err(SuperblockError::UnknownFeatures(features & !FEATURES_KNOWN));
    }
    if u16_at(block, 6) != shard || u64_at(block, 16) == 0 {
        return Err(SuperblockError::Malformed);
    }
    decode(block).map(Some)
}

/// Hands each part to `known`; what that doesn't take is kept in `carried`.
fn read_parts(
    area: &[u8],
    carried: &mut Vec<u8>,
    mut known: impl FnMut(u16, &[u8]) -> Result<bool, SuperblockError>,
) -> Result<(), SuperblockError> {
    for part in PartReader::new(area) {
        let (code, bytes) = part.map_err(|_| SuperblockError::Malformed)?;
        if known(code, bytes)? {
            continue;
        }
        if code & PART_REQUIRED != 0 {
            return Err(SuperblockError::UnknownPart(code));
        }
        let len = u16::try_from(bytes.len()).expect("read from a length of two bytes");
        carried.extend_from_slice(&code.to_le_bytes());
        carried.extend_from_slice(&len.to_le_bytes());
        carried.extend_from_slice(bytes);
        if carried.len() > CARRIED_BYTES_MAX {
            return Err(SuperblockError::Malformed);
        }
    }
    Ok(())
}

const _: () = {
    // A format's first write of either kind stays within one sector of 512 bytes.
    assert!(NODE_PARTS_AT <= 512 && SHARD_PARTS_AT + 4 + 16 <= 512);
    // What must be kept always fits beside what is known.
    assert!(NODE_PARTS_AT + CARRIED_BYTES_MAX <= BLOCK_BYTES);
    assert!(SHARD_PARTS_AT + 4 + EPOCHS_MAX * 16 + 16 + CARRIED_BYTES_MAX <= BLOCK_BYTES);
};

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: LogId = LogId([4; 16]);

    fn node(generation: u64) -> NodeSuperblock {
        let geometry = Geometry { segment_bytes: 65536, shards: 2 };
        let mut node = NodeSuperblock::first(LOG, JournalUuid([9; 16]), geometry);
        node.generation = generation;
        node
    }

    fn file(blocks: &[&NodeSuperblock]) -> Vec<u8> {
        let mut file = vec![0; SUPERBLOCK_FILE_BYTES];
        for node in blocks {
            let (buf, offset) = node.encode();
            let offset = usize::try_from(offset).unwrap();
            file[offset..offset + BLOCK_BYTES].copy_from_slice(buf.as_slice());
        }
        file
    }

    #[test]
    fn never_written_good_and_unreadable_are_three_answers() {
        assert_eq!(NodeSuperblock::decode(&[]), Ok(None));
        assert_eq!(NodeSuperblock::decode(&[0; SUPERBLOCK_FILE_BYTES]), Ok(None));
        let mut bytes = file(&[&node(1)]);
        assert_eq!(NodeSuperblock::decode(&bytes), Ok(Some(node(1))));
        bytes[60] ^= 1;
        assert_eq!(NodeSuperblock::decode(&bytes), Err(SuperblockError::Unreadable));
    }

    #[test]
    fn a_directory_that_is_being_installed_is_refused_by_its_state_and_by_its_feature() {
        for (at, value) in [(86, 2), (24, 1)] {
            let mut bytes = file(&[&node(1)]);
            bytes[at] = value;
            let crc = crc_of(&bytes[..NODE_PARTS_AT]);
            bytes[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
            let error = NodeSuperblock::decode(&bytes).unwrap_err();
            assert_eq!(error, SuperblockError::UnknownFeatures(FEATURE_INSTALLING));
            assert!(error.to_string().contains("catch-up"), "{error}");
        }
    }

    #[test]
    fn the_highest_valid_generation_wins() {
        let mut bytes = file(&[&node(3), &node(4)]);
        assert_eq!(NodeSuperblock::decode(&bytes), Ok(Some(node(4))));
        bytes[BLOCK_BYTES + 30] ^= 1;
        assert_eq!(NodeSuperblock::decode(&bytes), Ok(Some(node(3))));
        // A file that ends early may have lost the newer block.
        let cut = NodeSuperblock::decode(&file(&[&node(3), &node(4)])[..BLOCK_BYTES]);
        assert_eq!(cut, Err(SuperblockError::Unreadable));
    }

    #[test]
    fn a_newer_version_or_feature_stops_even_if_an_older_block_is_good() {
        for (at, error) in
            [(4, SuperblockError::Version(8)), (24, SuperblockError::UnknownFeatures(8))]
        {
            let mut bytes = file(&[&node(3), &node(4)]);
            let block = &mut bytes[BLOCK_BYTES..];
            block[at] = 8;
            let crc = crc_of(&block[..NODE_PARTS_AT]);
            block[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
            assert_eq!(NodeSuperblock::decode(&bytes), Err(error));
        }
    }

    #[test]
    fn unknown_parts_are_kept_unless_they_must_be_known() {
        let mut newer = node(1);
        newer.carried = vec![7, 0, 1, 0, 42];
        let read = NodeSuperblock::decode(&file(&[&newer])).unwrap().unwrap();
        assert_eq!(read, newer);
        newer.carried[1] = 0x80;
        let error = NodeSuperblock::decode(&file(&[&newer])).unwrap_err();
        assert_eq!(error, SuperblockError::UnknownPart(0x8007));
    }

    #[test]
    fn parts_that_could_not_be_kept_are_refused() {
        let mut newer = ShardSuperblock::first(LOG, ShardId(1), Chain(5));
        for epoch in 2..=100 {
            newer.enter_epoch(Epoch(epoch), Lsn(4096 * epoch));
        }
        assert_eq!((newer.epochs.rows().len(), newer.epochs.rows()[0].0), (EPOCHS_MAX, Epoch(37)));
        newer.durable = Lsn(4096 * 200);
        let mut read = |bytes: u16| {
            newer.carried = [7, bytes].iter().flat_map(|field| field.to_le_bytes()).collect();
            newer.carried.resize(4 + usize::from(bytes), 1);
            let mut file = vec![0; SUPERBLOCK_FILE_BYTES];
            file[..BLOCK_BYTES].copy_from_slice(newer.encode().0.as_slice());
            ShardSuperblock::decode(&file, LOG, ShardId(1))
        };
        assert_eq!(read(2044).unwrap().unwrap().carried.len(), 2048);
        assert_eq!(read(2045), Err(SuperblockError::Malformed));
    }

    #[test]
    fn a_bit_that_may_be_unknown_is_no_hindrance_and_is_not_passed_on() {
        let mut bytes = file(&[&node(1)]);
        bytes[32] = 1;
        let crc = crc_of(&bytes[..NODE_PARTS_AT]);
        bytes[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        let read = NodeSuperblock::decode(&bytes).unwrap().unwrap();
        assert_eq!(read.encode().0.as_slice()[32..40], [0; 8]);
    }

    #[test]
    fn a_shards_superblock_comes_back_and_only_to_its_own_log_and_shard() {
        let mut shard = ShardSuperblock::first(LOG, ShardId(1), Chain(5));
        shard.durable = Lsn(8192);
        shard.incarnation = Incarnation(3);
        shard.epochs.enter(Epoch(2), Lsn(8192));
        let (buf, offset) = shard.encode();
        assert_eq!(offset, 0);
        let mut bytes = buf.as_slice().to_vec();
        bytes.resize(SUPERBLOCK_FILE_BYTES, 0);
        assert_eq!(ShardSuperblock::decode(&bytes, LOG, ShardId(1)), Ok(Some(shard)));
        let other_shard = ShardSuperblock::decode(&bytes, LOG, ShardId(2));
        assert_eq!(other_shard, Err(SuperblockError::Malformed));
        let other_log = ShardSuperblock::decode(&bytes, LogId([1; 16]), ShardId(1));
        assert_eq!(other_log, Err(SuperblockError::WrongLog(LOG)));
    }

    #[test]
    fn a_log_begun_in_the_middle_says_so_until_it_is_whole() {
        let mut shard = ShardSuperblock::first(LOG, ShardId(1), Chain(5));
        let (head, chain, whole_at) = (Lsn(69632), Chain(9), Lsn(81920));
        let epochs = EpochTable::new(Epoch(3), Lsn(4096));
        shard.begin_at(LogStart { head, chain, whole_at }, epochs.clone(), 4);
        let read = |shard: &ShardSuperblock| {
            let mut file = vec![0; SUPERBLOCK_FILE_BYTES];
            file[..BLOCK_BYTES].copy_from_slice(shard.encode().0.as_slice());
            ShardSuperblock::decode(&file, LOG, ShardId(1)).unwrap().unwrap()
        };
        assert_eq!(read(&shard), shard);
        assert_eq!((shard.lacks(Lsn(77824)), shard.lacks(whole_at)), (Some(whole_at), None));
        assert_eq!((shard.slots_made, &shard.epochs), (0, &epochs));
        (shard.durable, shard.slots_made) = (whole_at, 3);
        let stale: Vec<u32> = (0..6).filter(|slot| read(&shard).is_stale(Slot(*slot))).collect();
        assert_eq!(stale, [3], "one file is still to be written through");
        shard.slots_made = 4;
        assert_eq!(read(&shard).begun, None, "and then no more");
    }

    #[test]
    fn no_flipped_bit_passes() {
        let bytes = file(&[&node(1)]);
        for bit in 0..NODE_PARTS_AT * 8 {
            let mut hurt = bytes.clone();
            hurt[bit / 8] ^= 1 << (bit % 8);
            assert!(NodeSuperblock::decode(&hurt).is_err(), "bit {bit}");
        }
    }
}
