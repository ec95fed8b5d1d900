//! One record: a message, a settlement, or a fact of the catalogue.
//!
//! ```text
//!   0        4        8    9    10       12       14       16               24               32
//!   | crc32c | length |kind|levl| flags  | parts  |fragment| queue id       | sequence       |
//!   +--------+--------+----+----+--------+--------+--------+----------------+----------------+
//!   | parts: (type u16, length u16, bytes)*                | payload, to the end of `length` |
//! ```
//!
//! Little-endian. `length` is the whole record; `parts` the bytes of its optional parts. Records
//! follow each other in a batch without padding.
//!
//! Invariants: the checksum covers the record's own LSN and everything behind the checksum, and is
//! seeded by the log, so that a record proves that it is this one, at this place, of this log. An
//! unknown kind, level or flag is refused. An unknown part is skipped, and written again when the
//! record is copied, unless its type has the high bit (`PART_REQUIRED`): then it is refused.
//! A record that doesn't decode inside a batch whose checksum holds is damage or a newer format,
//! never a torn tail.

use std::fmt;

use crate::identity::LogSeed;
use crate::limits::{PARTS_BYTES_MAX, RECORD_HEADER_BYTES};
use crate::lsn::{Lsn, QueueId, Sequence, ShardId};

/// What a record is. The codes are the format's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum RecordKind {
    /// A message, or a fragment of one; its payload belongs to the broker.
    Message = 1,
    /// A message is done with: consumed, rejected, or expired.
    Settle = 2,
    /// A message's delivery count (and what a `modified` outcome changed).
    DeliveryCount = 3,
    /// A message that lives in the log already is also in this queue (multicast).
    Reference = 4,
    /// A queue exists.
    QueueCreate = 16,
    /// A queue is gone, with all its messages.
    QueueDelete = 17,
    /// The next sequence of a queue: it never goes back.
    NextSequence = 18,
    /// The next queue id of the catalogue: it never goes back.
    NextQueueId = 19,
    /// An address exists, with its home shard.
    AddressCreate = 20,
    /// An address is gone.
    AddressDelete = 21,
    /// Part of a transaction over several shards: ready, not decided.
    Prepare = 32,
    /// The decision about a transaction.
    Decide = 33,
}

impl RecordKind {
    /// Every kind there is.
    pub const ALL: [Self; 12] = [
        Self::Message,
        Self::Settle,
        Self::DeliveryCount,
        Self::Reference,
        Self::QueueCreate,
        Self::QueueDelete,
        Self::NextSequence,
        Self::NextQueueId,
        Self::AddressCreate,
        Self::AddressDelete,
        Self::Prepare,
        Self::Decide,
    ];

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == code)
    }

    /// Whether the record makes state smaller (or keeps a promise), so that it may use the space
    /// that a full disk keeps in reserve.
    #[must_use]
    pub const fn may_use_reserve(self) -> bool {
        match self {
            Self::Settle | Self::QueueDelete | Self::AddressDelete | Self::Decide => true,
            Self::Message
            | Self::DeliveryCount
            | Self::Reference
            | Self::QueueCreate
            | Self::NextSequence
            | Self::NextQueueId
            | Self::AddressCreate
            | Self::Prepare => false,
        }
    }
}

/// The level of durability that a record asks for (`docs/`: the promise table).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// Answered at once.
    Async = 0,
    /// Answered when durable here.
    #[default]
    Sync = 1,
    /// And received by every backup in sync.
    Replicated = 2,
    /// And durable on every member in sync.
    ReplicatedSync = 3,
}

impl Level {
    fn from_code(code: u8) -> Option<Self> {
        [Self::Async, Self::Sync, Self::Replicated, Self::ReplicatedSync]
            .into_iter()
            .find(|level| *level as u8 == code)
    }
}

/// Marks of a record. Bits that this version doesn't know are refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordFlags(u16);

impl RecordFlags {
    /// The first fragment of a message, or a record that is not split.
    pub const FIRST: Self = Self(1);
    /// The last fragment: it commits the message.
    pub const LAST: Self = Self(2);
    /// First and last: the record is whole.
    pub const WHOLE: Self = Self(3);
    /// The message's own header said `durable=false`.
    pub const NON_DURABLE: Self = Self(4);

    const KNOWN: u16 = 7;

    /// Both sets of marks.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// These marks but for `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether all of `other` are set.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Where a copied or moved message came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// Its shard then.
    pub shard: ShardId,
    /// Its queue then.
    pub queue: QueueId,
    /// Its sequence then.
    pub sequence: Sequence,
}

/// The optional parts of a record. At most [`PARTS_BYTES_MAX`] bytes when encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts<'a> {
    /// What makes a repeated message known as such.
    pub duplicate_id: Option<&'a [u8]>,
    /// Where a copy came from: recovery drops the double by it.
    pub origin: Option<Origin>,
    /// The transaction that the record belongs to.
    pub transaction_id: Option<&'a [u8]>,
    /// Failed deliveries as the log knows them.
    pub delivery_count: Option<u32>,
    /// When the message expires, milliseconds since 1970 (UTC).
    pub expiry_unix_ms: Option<u64>,
    /// AMQP priority.
    pub priority: Option<u8>,
    /// Before this nobody gets the message, milliseconds since 1970 (UTC).
    pub delivery_unix_ms: Option<u64>,
    /// The parts area that this record was decoded from; the parts in it that this version doesn't
    /// know are written again after the known ones. Empty in a new record.
    pub carried: &'a [u8],
}

/// A record to be written, or one that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// What it is.
    pub kind: RecordKind,
    /// The level asked for.
    pub level: Level,
    /// Its marks.
    pub flags: RecordFlags,
    /// Which fragment of the message, from 0.
    pub fragment: u16,
    /// The queue it is about.
    pub queue: QueueId,
    /// The message it is about, or the sequence it tells.
    pub sequence: Sequence,
    /// What only some records have.
    pub parts: Parts<'a>,
    /// The rest: the broker's.
    pub payload: &'a [u8],
}

impl<'a> Record<'a> {
    /// A whole record without parts, at level `sync`.
    #[must_use]
    pub const fn new(
        kind: RecordKind,
        queue: QueueId,
        sequence: Sequence,
        payload: &'a [u8],
    ) -> Self {
        Self {
            kind,
            level: Level::Sync,
            flags: RecordFlags::WHOLE,
            fragment: 0,
            queue,
            sequence,
            parts: Parts {
                duplicate_id: None,
                origin: None,
                transaction_id: None,
                delivery_count: None,
                expiry_unix_ms: None,
                priority: None,
                delivery_unix_ms: None,
                carried: &[],
            },
            payload,
        }
    }

    /// Settlements that it will need: one for a message that it begins, which is settled also where
    /// it is given up before its end.
    #[inline(always)]
    pub(crate) fn settlements(&self) -> u64 {
        match self.kind {
            RecordKind::Message | RecordKind::Reference => {
                u64::from(self.flags.has(RecordFlags::FIRST))
            }
            RecordKind::Settle
            | RecordKind::DeliveryCount
            | RecordKind::QueueCreate
            | RecordKind::QueueDelete
            | RecordKind::NextSequence
            | RecordKind::NextQueueId
            | RecordKind::AddressCreate
            | RecordKind::AddressDelete
            | RecordKind::Prepare
            | RecordKind::Decide => 0,
        }
    }

    /// How many bytes the record takes in a batch.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        RECORD_HEADER_BYTES + self.parts.encoded_len() + self.payload.len()
    }

    /// Bytes of its optional parts when encoded.
    #[must_use]
    pub fn parts_len(&self) -> usize {
        self.parts.encoded_len()
    }

    /// Writes the record, which will stand at `lsn`, over all of `room` but the first four bytes.
    /// Those are what stands before it; they are the same afterwards.
    ///
    /// # Panics
    /// If `room` is not four bytes longer than [`encoded_len`](Self::encoded_len), or the parts are
    /// too long.
    #[inline(always)]
    pub(crate) fn encode(&self, seed: &LogSeed, lsn: Lsn, room: &mut [u8]) {
        let (before, out) = room.split_first_chunk_mut::<4>().expect("there is room");
        let before = *before;
        let length = u32::try_from(out.len()).expect("a record fits into a batch");
        let parts_len = out.len() - RECORD_HEADER_BYTES - self.payload.len();
        assert!(parts_len <= PARTS_BYTES_MAX, "parts of {parts_len} bytes");
        let parts_len = u16::try_from(parts_len).expect("checked above");
        let (header, rest) =
            out.split_first_chunk_mut::<RECORD_HEADER_BYTES>().expect("counted above");
        header[4..8].copy_from_slice(&length.to_le_bytes());
        header[8] = self.kind as u8;
        header[9] = self.level as u8;
        header[10..12].copy_from_slice(&self.flags.0.to_le_bytes());
        header[12..14].copy_from_slice(&parts_len.to_le_bytes());
        header[14..16].copy_from_slice(&self.fragment.to_le_bytes());
        header[16..24].copy_from_slice(&self.queue.0.to_le_bytes());
        header[24..].copy_from_slice(&self.sequence.0.to_le_bytes());
        let (parts, payload) = rest.split_at_mut(usize::from(parts_len));
        if !parts.is_empty() {
            self.parts.encode(parts);
        }
        payload.copy_from_slice(self.payload);
        // For one pass over both, the place stands before what the checksum covers: where the
        // checksum goes, and over what stands before.
        let (place, _) = room.split_first_chunk_mut::<8>().expect("longer than its header");
        *place = lsn.0.to_le_bytes();
        let crc = seed.crc(room);
        room[..4].copy_from_slice(&before);
        room[4..8].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads the record that begins `bytes` and stands at `lsn`; also how many bytes it takes.
    ///
    /// # Errors
    /// What is wrong with it. Nothing in `bytes` can make it panic or allocate.
    pub fn decode(seed: &LogSeed, lsn: Lsn, bytes: &'a [u8]) -> Result<(Self, usize), RecordError> {
        let header = bytes.first_chunk::<RECORD_HEADER_BYTES>().ok_or(RecordError::Length)?;
        let length = u32_at(header, 4) as usize;
        let parts_len = usize::from(u16_at(header, 12));
        if length > bytes.len() || length < RECORD_HEADER_BYTES + parts_len {
            return Err(RecordError::Length);
        }
        if parts_len > PARTS_BYTES_MAX {
            return Err(RecordError::Parts);
        }
        if seed.record_crc(lsn, &bytes[4..length]) != u32_at(header, 0) {
            return Err(RecordError::Checksum);
        }
        Self::parse(&bytes[..length]).map(|record| (record, length))
    }

    /// Reads a record whose length and checksum were found to be right.
    pub(crate) fn parse(record: &'a [u8]) -> Result<Self, RecordError> {
        let header = record.first_chunk::<RECORD_HEADER_BYTES>().ok_or(RecordError::Length)?;
        let flags = u16_at(header, 10);
        if flags & !RecordFlags::KNOWN != 0 {
            return Err(RecordError::UnknownFlags(flags));
        }
        let (parts, payload) = record[RECORD_HEADER_BYTES..]
            .split_at_checked(usize::from(u16_at(header, 12)))
            .ok_or(RecordError::Length)?;
        Ok(Self {
            kind: RecordKind::from_code(header[8]).ok_or(RecordError::UnknownKind(header[8]))?,
            level: Level::from_code(header[9]).ok_or(RecordError::UnknownLevel(header[9]))?,
            flags: RecordFlags(flags),
            fragment: u16_at(header, 14),
            queue: QueueId(u64_at(header, 16)),
            sequence: Sequence(u64_at(header, 24)),
            parts: Parts::decode(parts)?,
            payload,
        })
    }
}

/// Why bytes are not a record of this log at this place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordError {
    /// The lengths don't fit into each other or into the batch.
    Length,
    /// The checksum differs.
    Checksum,
    /// A kind of a later version.
    UnknownKind(u8),
    /// A level of a later version.
    UnknownLevel(u8),
    /// Flags of a later version.
    UnknownFlags(u16),
    /// A part of a later version that must not be skipped.
    UnknownPart(u16),
    /// Flags of a batch that a later version wrote.
    UnknownBatchFlags(u32),
    /// A batch's header whose fields contradict each other although its checksum holds.
    Batch,
    /// A known part that has the wrong length, or parts that end in the middle.
    Parts,
}

impl RecordError {
    /// Whether a later version of the broker may be able to read it.
    #[must_use]
    pub const fn is_newer_format(self) -> bool {
        match self {
            Self::UnknownKind(_)
            | Self::UnknownLevel(_)
            | Self::UnknownFlags(_)
            | Self::UnknownBatchFlags(_)
            | Self::UnknownPart(_) => true,
            Self::Length | Self::Checksum | Self::Batch | Self::Parts => false,
        }
    }
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length => f.write_str("the record's lengths don't fit"),
            Self::Checksum => f.write_str("the record's checksum is wrong"),
            Self::UnknownKind(code) => write!(f, "record kind {code} is unknown here"),
            Self::UnknownLevel(code) => write!(f, "record level {code} is unknown here"),
            Self::UnknownFlags(bits) => write!(f, "record flags {bits:#06x} are unknown here"),
            Self::UnknownBatchFlags(bits) => write!(f, "batch flags {bits:#x} are unknown here"),
            Self::Batch => f.write_str("the fields of its batch's header contradict each other"),
            Self::UnknownPart(code) => write!(f, "record part {code:#06x} must be understood"),
            Self::Parts => f.write_str("the record's optional parts are malformed"),
        }
    }
}

impl std::error::Error for RecordError {}

/// Set in the type of a part that must be refused where it isn't known.
pub(crate) const PART_REQUIRED: u16 = 0x8000;

const PART_DUPLICATE_ID: u16 = 1;
const PART_ORIGIN: u16 = 2;
const PART_TRANSACTION_ID: u16 = 3 | PART_REQUIRED;
const PART_DELIVERY_COUNT: u16 = 4;
const PART_EXPIRY: u16 = 5;
const PART_PRIORITY: u16 = 6;
const PART_DELIVERY_TIME: u16 = 7;

const PART_HEADER_BYTES: usize = 4;
const ORIGIN_BYTES: usize = 18;

fn part_is_known(code: u16) -> bool {
    matches!(
        code,
        PART_DUPLICATE_ID
            | PART_ORIGIN
            | PART_TRANSACTION_ID
            | PART_DELIVERY_COUNT
            | PART_EXPIRY
            | PART_PRIORITY
            | PART_DELIVERY_TIME
    )
}

impl<'a> Parts<'a> {
    /// Whether there are any.
    #[inline]
    pub(crate) fn is_some(&self) -> bool {
        self.duplicate_id.is_some()
            | self.origin.is_some()
            | self.transaction_id.is_some()
            | self.delivery_count.is_some()
            | self.expiry_unix_ms.is_some()
            | self.priority.is_some()
            | self.delivery_unix_ms.is_some()
            | !self.carried.is_empty()
    }

    fn encoded_len(&self) -> usize {
        if !self.is_some() {
            return 0;
        }
        let part = |len: Option<usize>| len.map_or(0, |len| PART_HEADER_BYTES + len);
        let known = part(self.duplicate_id.map(<[u8]>::len))
            + part(self.origin.map(|_| ORIGIN_BYTES))
            + part(self.transaction_id.map(<[u8]>::len))
            + part(self.delivery_count.map(|_| 4))
            + part(self.expiry_unix_ms.map(|_| 8))
            + part(self.priority.map(|_| 1))
            + part(self.delivery_unix_ms.map(|_| 8));
        let carried = self.unknown().map(|(_, bytes)| PART_HEADER_BYTES + bytes.len());
        known + carried.sum::<usize>()
    }

    fn unknown(&self) -> impl Iterator<Item = (u16, &'a [u8])> {
        PartReader::new(self.carried)
            .map_while(Result::ok)
            .filter(|(code, _)| !part_is_known(*code))
    }

    fn encode(&self, out: &mut [u8]) {
        let mut at = 0;
        let mut put = |code: u16, part: &[u8]| {
            let len = u16::try_from(part.len()).expect("parts are bounded");
            out[at..at + 2].copy_from_slice(&code.to_le_bytes());
            out[at + 2..at + 4].copy_from_slice(&len.to_le_bytes());
            out[at + 4..at + 4 + part.len()].copy_from_slice(part);
            at += PART_HEADER_BYTES + part.len();
        };
        if let Some(id) = self.duplicate_id {
            put(PART_DUPLICATE_ID, id);
        }
        if let Some(origin) = self.origin {
            let mut part = [0; ORIGIN_BYTES];
            part[..2].copy_from_slice(&origin.shard.0.to_le_bytes());
            part[2..10].copy_from_slice(&origin.queue.0.to_le_bytes());
            part[10..].copy_from_slice(&origin.sequence.0.to_le_bytes());
            put(PART_ORIGIN, &part);
        }
        if let Some(id) = self.transaction_id {
            put(PART_TRANSACTION_ID, id);
        }
        if let Some(count) = self.delivery_count {
            put(PART_DELIVERY_COUNT, &count.to_le_bytes());
        }
        if let Some(expiry) = self.expiry_unix_ms {
            put(PART_EXPIRY, &expiry.to_le_bytes());
        }
        if let Some(priority) = self.priority {
            put(PART_PRIORITY, &[priority]);
        }
        if let Some(unix_ms) = self.delivery_unix_ms {
            put(PART_DELIVERY_TIME, &unix_ms.to_le_bytes());
        }
        for (code, part) in self.unknown() {
            put(code, part);
        }
        assert_eq!(at, out.len(), "parts fill their area");
    }

    fn decode(area: &'a [u8]) -> Result<Self, RecordError> {
        let mut parts = Self::default();
        for part in PartReader::new(area) {
            let (code, bytes) = part?;
            if code == PART_DUPLICATE_ID {
                parts.duplicate_id = Some(bytes);
            } else if code == PART_ORIGIN {
                let origin = bytes.first_chunk::<ORIGIN_BYTES>();
                let origin = origin.filter(|_| bytes.len() == ORIGIN_BYTES);
                let origin = origin.ok_or(RecordError::Parts)?;
                parts.origin = Some(Origin {
                    shard: ShardId(u16_at(origin, 0)),
                    queue: QueueId(u64_at(origin, 2)),
                    sequence: Sequence(u64_at(origin, 10)),
                });
            } else if code == PART_TRANSACTION_ID {
                parts.transaction_id = Some(bytes);
            } else if code == PART_DELIVERY_COUNT {
                parts.delivery_count = Some(u32::from_le_bytes(exact(bytes)?));
            } else if code == PART_EXPIRY {
                parts.expiry_unix_ms = Some(u64::from_le_bytes(exact(bytes)?));
            } else if code == PART_PRIORITY {
                parts.priority = Some(u8::from_le_bytes(exact(bytes)?));
            } else if code == PART_DELIVERY_TIME {
                parts.delivery_unix_ms = Some(u64::from_le_bytes(exact(bytes)?));
            } else if code & PART_REQUIRED != 0 {
                return Err(RecordError::UnknownPart(code));
            } else {
                parts.carried = area;
            }
        }
        Ok(parts)
    }
}

fn exact<const N: usize>(bytes: &[u8]) -> Result<[u8; N], RecordError> {
    bytes.try_into().map_err(|_| RecordError::Parts)
}

/// Walks over optional parts; after an error there is nothing more.
pub(crate) struct PartReader<'a> {
    rest: &'a [u8],
}

impl<'a> PartReader<'a> {
    pub(crate) fn new(area: &'a [u8]) -> Self {
        Self { rest: area }
    }
}

impl<'a> Iterator for PartReader<'a> {
    type Item = Result<(u16, &'a [u8]), RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let split = self.rest.split_first_chunk::<PART_HEADER_BYTES>().and_then(|(head, rest)| {
            rest.split_at_checked(usize::from(u16_at(head, 2))).map(|split| (head, split))
        });
        let Some((head, (part, rest))) = split else {
            self.rest = &[];
            return Some(Err(RecordError::Parts));
        };
        self.rest = rest;
        Some(Ok((u16_at(head, 0), part)))
    }
}

/// The little-endian number at `at`. Panics where `bytes` is too short: callers hold whole headers.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

/// See [`u16_at`].
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// See [`u16_at`].
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsn::LogId;

    const AT: Lsn = Lsn(4160);

    fn seed() -> LogSeed {
        LogSeed::new(LogId([7; 16]), ShardId(0))
    }

    fn full() -> Record<'static> {
        let mut record = Record::new(RecordKind::Message, QueueId(5), Sequence(9), b"payload");
        record.level = Level::ReplicatedSync;
        record.flags = RecordFlags::FIRST.with(RecordFlags::NON_DURABLE);
        record.fragment = 3;
        record.parts = Parts {
            duplicate_id: Some(b"order-17"),
            origin: Some(Origin { shard: ShardId(1), queue: QueueId(2), sequence: Sequence(3) }),
            transaction_id: Some(b"tx"),
            delivery_count: Some(4),
            expiry_unix_ms: Some(1_700_000_000_000),
            priority: Some(7),
            delivery_unix_ms: Some(1_600_000_000_000),
            carried: &[],
        };
        record
    }

    fn encoded(record: &Record<'_>) -> Vec<u8> {
        let mut room = vec![0xaa; 4 + record.encoded_len()];
        record.encode(&seed(), AT, &mut room);
        assert_eq!(room[..4], [0xaa; 4], "what stands before it is the same afterwards");
        room.split_off(4)
    }

    fn resealed(mut bytes: Vec<u8>) -> Vec<u8> {
        let crc = seed().record_crc(AT, &bytes[4..]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        let record = full();
        let bytes = encoded(&record);
        assert_eq!(Record::decode(&seed(), AT, &bytes), Ok((record, bytes.len())));
    }

    #[test]
    fn a_record_is_not_accepted_at_another_place_or_in_another_log() {
        let bytes = encoded(&full());
        let elsewhere = Record::decode(&seed(), AT.plus(4096), &bytes);
        assert_eq!(elsewhere, Err(RecordError::Checksum));
        let other_log = LogSeed::new(LogId([8; 16]), ShardId(0));
        assert_eq!(Record::decode(&other_log, AT, &bytes), Err(RecordError::Checksum));
        let other_shard = LogSeed::new(LogId([7; 16]), ShardId(1));
        assert_eq!(Record::decode(&other_shard, AT, &bytes), Err(RecordError::Checksum));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = encoded(&full());
        for bit in 0..bytes.len() * 8 {
            let mut hurt = bytes.clone();
            hurt[bit / 8] ^= 1 << (bit % 8);
            assert!(Record::decode(&seed(), AT, &hurt).is_err(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(Record::decode(&seed(), AT, &bytes[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn what_a_later_version_wrote_is_refused_as_such() {
        let mut bytes = encoded(&full());
        bytes[8] = 200;
        let error = Record::decode(&seed(), AT, &resealed(bytes.clone())).unwrap_err();
        assert_eq!(error, RecordError::UnknownKind(200));
        assert!(error.is_newer_format());
        bytes[8] = RecordKind::Settle as u8;
        bytes[9] = 4;
        let error = Record::decode(&seed(), AT, &resealed(bytes)).unwrap_err();
        assert_eq!(error, RecordError::UnknownLevel(4));
    }

    #[test]
    fn unknown_parts_are_skipped_and_carried_or_refused() {
        let mut record = Record::new(RecordKind::Message, QueueId(1), Sequence(1), b"x");
        record.parts.carried = &[0x39, 0, 2, 0, 0xca, 0xfe];
        record.parts.priority = Some(3);
        let bytes = encoded(&record);
        let (read, _) = Record::decode(&seed(), AT, &bytes).unwrap();
        assert_eq!(read.parts.priority, Some(3));
        assert_eq!(read.payload, b"x");
        assert_eq!(encoded(&read), bytes, "a copy keeps the unknown part");

        let mut required = bytes;
        let at = RECORD_HEADER_BYTES + 5;
        assert_eq!(required[at], 0x39);
        required[at + 1] = 0x80;
        let error = Record::decode(&seed(), AT, &resealed(required)).unwrap_err();
        assert_eq!(error, RecordError::UnknownPart(0x8039));
    }

    #[test]
    fn codes_are_the_formats_and_unique() {
        let codes: Vec<u8> = RecordKind::ALL.iter().map(|kind| *kind as u8).collect();
        assert_eq!(codes, [1, 2, 3, 4, 16, 17, 18, 19, 20, 21, 32, 33]);
    }
}
