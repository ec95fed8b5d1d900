//! What two members say to each other about one shard's log: a stream a shard, each its own
//! connection.
//!
//! ```text
//!   0        4     6     7     8        12       16
//!   | "LLrp" | ver |kind |  0  | length | crc32c | body: `length` bytes
//!
//!   backup                                             live
//!     │ 1 Hello    who I am, where my log ends, epochs   │
//!     │ ───────────────────────────────────────────────▶ │   the last common LSN
//!     │      2 Welcome  session, epoch, from, chain, epochs
//!     │ ◀─────────────────────────────────────────────── │   (or: 9 Install, from its head on)
//!     │ 3 Ready    my chain there is the same, adopted    │   (or: cut, recover, Hello again)
//!     │ ───────────────────────────────────────────────▶ │
//!     │      4 Batch   committed, the sealed batch        │   many in flight
//!     │ ◀─────────────────────────────────────────────── │
//!     │ 5 Ack      received, durable                      │
//!     │ ───────────────────────────────────────────────▶ │
//!     │      6 Beat    committed                          │   7 Refuse, either way: why, the end
//!
//!   beside the shards' streams, both ways: 8 Card, what a member is, holds and does
//! ```
//! Little-endian. The checksum covers the head before it and the body, but for the batch in a
//! `Batch`: that has its own, and both members' disks hold them.
//!
//! Invariants: a body is at most [`STREAM_BODY_BYTES_MAX`], checked before anything waits for it;
//! what decodes is encoded again to the same bytes. A frame that doesn't decode ends the
//! connection: bytes from another program, or a fault; there is nothing to resynchronise with.
//! Every frame after `Welcome` names the session, so that what an older connection still carries is
//! known as old (R9).

use std::fmt;

use bytes::{Buf, Bytes, BytesMut};
use journal::limits::{BATCH_BYTES_MAX, BLOCK_BYTES, FORMAT_VERSION, LSN_MAX};
use journal::{
    Chain, EPOCHS_MAX, Epoch, EpochTable, Geometry, JournalUuid, LogId, LogStart, Lsn, ShardId,
};

use crate::card::Card;
use crate::codec::{Reader, WireError, Writer};
use crate::limits::{PAIR_NAME_BYTES_MAX, REASON_BYTES_MAX, STREAM_BODY_BYTES_MAX};

const MAGIC: [u8; 4] = *b"LLrp";
const VERSION: u16 = 1;
const HEAD_BYTES: usize = 16;
const CRC_AT: usize = 12;
/// Session and committed, in front of a batch.
const BATCH_FIELDS_BYTES: usize = 16;

/// What both members must have in common before one follows the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The pair's name, as configured.
    pub pair: String,
    /// The installation, as configured: two pairs of one name stay apart.
    pub cluster: [u8; 16],
    /// Which log.
    pub log: LogId,
    /// Its sizes.
    pub geometry: Geometry,
    /// Version of the log's format.
    pub format: u16,
    /// Bytes of a block.
    pub block_bytes: u32,
}

impl Identity {
    /// That of a log which this broker writes.
    #[must_use]
    pub fn new(pair: &str, cluster: [u8; 16], log: LogId, geometry: Geometry) -> Self {
        let block_bytes = u32::try_from(BLOCK_BYTES).expect("4096");
        Self { pair: pair.into(), cluster, log, geometry, format: FORMAT_VERSION, block_bytes }
    }

    /// The first thing in which the other one differs.
    #[must_use]
    pub fn differs(&self, other: &Self) -> Option<Reason> {
        let differences = [
            (self.pair != other.pair, Reason::Pair),
            (self.cluster != other.cluster, Reason::Cluster),
            (self.format != other.format, Reason::Format),
            (self.log != other.log, Reason::Log),
            (self.geometry.shards != other.geometry.shards, Reason::Shards),
            (self.geometry.segment_bytes != other.geometry.segment_bytes, Reason::SegmentBytes),
            (self.block_bytes != other.block_bytes, Reason::BlockBytes),
        ];
        differences.into_iter().find(|(differs, _)| *differs).map(|(_, reason)| reason)
    }
}

/// A backup's log, as it asks to follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// What must be in common.
    pub identity: Identity,
    /// Whose disk: a wiped one is another member.
    pub member: JournalUuid,
    /// Which start of the process.
    pub boot: [u8; 16],
    /// Which shard's log this stream carries.
    pub shard: ShardId,
    /// Where its log begins.
    pub head: Lsn,
    /// Where its log ends.
    pub end: Lsn,
    /// The chain there.
    pub chain: Chain,
    /// Which reign wrote which part of it.
    pub epochs: EpochTable,
}

/// Where a backup is to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// This connection, never used before by this live.
    pub session: u64,
    /// The live's epoch.
    pub epoch: Epoch,
    /// The last LSN up to which both logs agree.
    pub from: Lsn,
    /// The chain there, at the live.
    pub chain: Chain,
    /// Which reign wrote which part of the live's log.
    pub epochs: EpochTable,
}

/// The live's log from its head on: there is no place from which a backup could go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Install {
    /// This connection, never used before by this live.
    pub session: u64,
    /// The live's epoch.
    pub epoch: Epoch,
    /// What the backup has before this the live had too; 0 where nothing is known to be common.
    pub common: Lsn,
    /// Where the live's log begins, and how far it must go to be whole.
    pub start: LogStart,
    /// Which reign wrote which part of the live's log.
    pub epochs: EpochTable,
}

/// How far a backup has come. The same meaning as the commit rule's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// Received in its memory.
    pub received: Lsn,
    /// Durable on its disk.
    pub durable: Lsn,
}

/// One thing said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The backup asks to follow.
    Hello(Box<Hello>),
    /// The live says from where.
    Welcome(Box<Welcome>),
    /// The backup is there.
    Ready {
        /// Of this connection.
        session: u64,
    },
    /// The next batch of the log.
    Batch {
        /// Of this connection.
        session: u64,
        /// Everything below is committed.
        committed: Lsn,
        /// Header and records, as sealed; checked by whoever writes them.
        batch: Bytes,
    },
    /// How far the backup is.
    Ack {
        /// Of this connection.
        session: u64,
        /// How far.
        marks: Marks,
    },
    /// The live is there and has nothing to send.
    Beat {
        /// Of this connection.
        session: u64,
        /// Everything below is committed.
        committed: Lsn,
    },
    /// This connection ends.
    Refuse {
        /// Why.
        reason: Reason,
        /// The same for a log line, at most [`REASON_BYTES_MAX`].
        detail: String,
    },
    /// What the other member is: the only frame of the connection beside the streams.
    Card(Box<Card>),
    /// The live says that its log is to be begun at its head.
    Install(Box<Install>),
}

/// Why a member does not go on with the other one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    /// Another pair's name.
    Pair = 1,
    /// Another cluster id.
    Cluster = 2,
    /// Another log.
    Log = 3,
    /// Another number of shards, or no such shard.
    Shards = 4,
    /// Another segment size.
    SegmentBytes = 5,
    /// Another block size.
    BlockBytes = 6,
    /// Another version of the log's format.
    Format = 7,
    /// An older epoch than the one that the other has promised to follow.
    StaleEpoch = 8,
    /// The live's log no longer reaches back to where the logs part: install it whole.
    TooFarBehind = 9,
    /// The logs have no epoch in common, or differ where they should agree: install it whole.
    Diverged = 10,
    /// A batch that does not fit.
    Batch = 11,
    /// Something said out of turn, or a mark that can't be.
    Protocol = 12,
    /// A newer connection took its place.
    Replaced = 13,
    /// This member is not live.
    NotLive = 14,
}

impl Reason {
    const ALL: [Self; 14] = [
        Self::Pair,
        Self::Cluster,
        Self::Log,
        Self::Shards,
        Self::SegmentBytes,
        Self::BlockBytes,
        Self::Format,
        Self::StaleEpoch,
        Self::TooFarBehind,
        Self::Diverged,
        Self::Batch,
        Self::Protocol,
        Self::Replaced,
        Self::NotLive,
    ];
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pair => "the members have different pair names: make `ha.pair` the same on both",
            Self::Cluster => "the members have different cluster ids: one of them is misdirected",
            Self::Log => {
                "the members hold different logs: one of the directories is not this pair's"
            }
            Self::Shards => "the members have different numbers of shards: format one anew",
            Self::SegmentBytes => "the members have different segment sizes: format one anew",
            Self::BlockBytes => "the members have different block sizes: use the same version",
            Self::Format => "the members have different log formats: use the same version",
            Self::StaleEpoch => "the member that offers its log is no longer live",
            Self::TooFarBehind => "the log no longer reaches back to where the members part",
            Self::Diverged => "the members' logs have nothing in common that could be gone on from",
            Self::Batch => "a batch does not fit into the log",
            Self::Protocol => "the other member said something out of turn",
            Self::Replaced => "a newer connection of the same member took its place",
            Self::NotLive => "this member is not live: ask the other one",
        })
    }
}

/// Why bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// They don't begin like one: another program.
    Magic,
    /// Another version of this protocol.
    Version(u16),
    /// The body is longer than any frame's.
    TooLong(u32),
    /// The checksum doesn't hold.
    Checksum,
    /// A kind that this version doesn't know.
    Kind(u8),
    /// The body doesn't decode.
    Body(WireError),
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic => f.write_str("what is connected there is not another member"),
            Self::Version(version) => write!(
                f,
                "the other member speaks version {version} of the replication protocol, \
                 this one {VERSION}: use the same version"
            ),
            Self::TooLong(bytes) => write!(f, "a frame of {bytes} bytes is too long"),
            Self::Checksum => f.write_str("a frame was damaged on its way"),
            Self::Kind(kind) => write!(f, "a frame of kind {kind}, unknown here"),
            Self::Body(error) => write!(f, "a frame does not decode: {error}"),
        }
    }
}

impl std::error::Error for FrameError {}

impl From<WireError> for FrameError {
    fn from(error: WireError) -> Self {
        Self::Body(error)
    }
}

impl Frame {
    /// Appends the frame to what is to be sent.
    pub fn encode(&self, out: &mut BytesMut) {
        let (kind, fields) = self.fields();
        let batch = match self {
            Self::Batch { batch, .. } => &batch[..],
            Self::Hello(_)
            | Self::Welcome(_)
            | Self::Ready { .. }
            | Self::Ack { .. }
            | Self::Beat { .. }
            | Self::Refuse { .. }
            | Self::Card(_)
            | Self::Install(_) => &[],
        };
        let length = u32::try_from(fields.len() + batch.len()).expect("bounded");
        assert!(length as usize <= STREAM_BODY_BYTES_MAX, "a body of {length} bytes");
        let mut head = [0; CRC_AT];
        head[..4].copy_from_slice(&MAGIC);
        head[4..6].copy_from_slice(&VERSION.to_le_bytes());
        head[6] = kind;
        head[8..].copy_from_slice(&length.to_le_bytes());
        out.reserve(HEAD_BYTES + length as usize);
        out.extend_from_slice(&head);
        out.extend_from_slice(&crc_of(&head, &fields).to_le_bytes());
        out.extend_from_slice(&fields);
        out.extend_from_slice(batch);
    }

    /// What it is, for a log line: a frame may hold a batch.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "Hello",
            Self::Welcome(_) => "Welcome",
            Self::Ready { .. } => "Ready",
            Self::Batch { .. } => "Batch",
            Self::Ack { .. } => "Ack",
            Self::Beat { .. } => "Beat",
            Self::Refuse { .. } => "Refuse",
            Self::Card(_) => "Card",
            Self::Install(_) => "Install",
        }
    }

    /// Takes the next frame off what was received; none while it is not all there.
    ///
    /// # Errors
    /// The bytes are no frame; the connection is of no use any more.
    pub fn decode(received: &mut BytesMut) -> Result<Option<Self>, FrameError> {
        let known = received.len().min(MAGIC.len());
        if received[..known] != MAGIC[..known] {
            return Err(FrameError::Magic);
        }
        let Some(head) = received.first_chunk::<HEAD_BYTES>() else { return Ok(None) };
        let version = u16::from_le_bytes([head[4], head[5]]);
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        let length = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
        if length as usize > STREAM_BODY_BYTES_MAX {
            return Err(FrameError::TooLong(length));
        }
        if received.len() < HEAD_BYTES + length as usize {
            return Ok(None);
        }
        let head = *head;
        received.advance(HEAD_BYTES);
        let body = received.split_to(length as usize).freeze();
        Self::decode_body(&head, body).map(Some)
    }

    fn decode_body(head: &[u8; HEAD_BYTES], body: Bytes) -> Result<Self, FrameError> {
        let kind = head[6];
        let covered = match kind {
            4 => body.get(..BATCH_FIELDS_BYTES).ok_or(WireError::Short("batch"))?,
            0..=3 | 5.. => &body[..],
        };
        let crc = u32::from_le_bytes([head[12], head[13], head[14], head[15]]);
        if head[7] != 0 || crc_of(&head[..CRC_AT], covered) != crc {
            return Err(FrameError::Checksum);
        }
        let mut r = Reader::new(covered);
        let frame = match kind {
            1 => Self::Hello(Box::new(read_hello(&mut r)?)),
            2 => Self::Welcome(Box::new(read_welcome(&mut r)?)),
            3 => Self::Ready { session: r.u64("session")? },
            4 => {
                let (session, committed) = (r.u64("session")?, read_lsn(&mut r, "committed")?);
                Self::Batch { session, committed, batch: body.slice(BATCH_FIELDS_BYTES..) }
            }
            5 => {
                let session = r.u64("session")?;
                let received = read_lsn(&mut r, "received")?;
                let durable = read_lsn(&mut r, "durable")?;
                Self::Ack { session, marks: Marks { received, durable } }
            }
            6 => {
                Self::Beat { session: r.u64("session")?, committed: read_lsn(&mut r, "committed")? }
            }
            7 => read_refuse(&mut r)?,
            8 => Self::Card(Box::new(Card::read(&mut r)?)),
            9 => Self::Install(Box::new(read_install(&mut r)?)),
            0 | 10.. => return Err(FrameError::Kind(kind)),
        };
        r.end()?;
        Ok(frame)
    }

    /// Its kind, and all of its body but for a batch.
    fn fields(&self) -> (u8, Vec<u8>) {
        let mut w = Writer::new();
        let kind = match self {
            Self::Hello(hello) => {
                write_hello(&mut w, hello);
                1
            }
            Self::Welcome(welcome) => {
                w.u64(welcome.session);
                w.u64(welcome.epoch.0);
                w.u64(welcome.from.0);
                w.u64(welcome.chain.0);
                write_epochs(&mut w, &welcome.epochs);
                2
            }
            Self::Ready { session } => {
                w.u64(*session);
                3
            }
            Self::Batch { session, committed, .. } => {
                w.u64(*session);
                w.u64(committed.0);
                4
            }
            Self::Ack { session, marks } => {
                w.u64(*session);
                w.u64(marks.received.0);
                w.u64(marks.durable.0);
                5
            }
            Self::Beat { session, committed } => {
                w.u64(*session);
                w.u64(committed.0);
                6
            }
            Self::Refuse { reason, detail } => {
                w.u8(*reason as u8);
                let most = detail.floor_char_boundary(REASON_BYTES_MAX);
                w.bytes(&detail.as_bytes()[..most]);
                7
            }
            Self::Card(card) => {
                card.write(&mut w);
                8
            }
            Self::Install(install) => {
                w.u64(install.session);
                w.u64(install.epoch.0);
                w.u64(install.common.0);
                w.u64(install.start.head.0);
                w.u64(install.start.chain.0);
                w.u64(install.start.whole_at.0);
                write_epochs(&mut w, &install.epochs);
                9
            }
        };
        (kind, w.finish())
    }
}

fn read_install(r: &mut Reader<'_>) -> Result<Install, WireError> {
    let (session, epoch) = (r.u64("session")?, Epoch(r.u64("epoch")?));
    let (common, head) = (read_lsn(r, "common")?, read_lsn(r, "head")?);
    let (chain, whole_at) = (Chain(r.u64("chain")?), read_lsn(r, "where it is whole")?);
    let epochs = read_epochs(r)?;
    if epochs.newest().0 != epoch || whole_at < head {
        return Err(WireError::Contradiction("epochs"));
    }
    let start = LogStart { head, chain, whole_at };
    Ok(Install { session, epoch, common, start, epochs })
}

fn crc_of(head: &[u8], covered: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(head), covered)
}

fn read_lsn(r: &mut Reader<'_>, field: &'static str) -> Result<Lsn, WireError> {
    let lsn = r.u64(field)?;
    if lsn > LSN_MAX { Err(WireError::TooLong(field)) } else { Ok(Lsn(lsn)) }
}

fn write_epochs(w: &mut Writer, epochs: &EpochTable) {
    w.list(epochs.rows(), |w, (epoch, first)| {
        w.u64(epoch.0);
        w.u64(first.0);
    });
}

fn read_epochs(r: &mut Reader<'_>) -> Result<EpochTable, WireError> {
    let rows = r.list(EPOCHS_MAX, "epochs", |r| {
        Ok((Epoch(r.u64("epoch")?), read_lsn(r, "its first LSN")?))
    })?;
    EpochTable::from_rows(rows).ok_or(WireError::Contradiction("epochs"))
}

fn write_hello(w: &mut Writer, hello: &Hello) {
    let identity = &hello.identity;
    w.bytes(identity.pair.as_bytes());
    w.uuid(&identity.cluster);
    w.uuid(&identity.log.0);
    w.u64(identity.geometry.segment_bytes);
    w.u16(identity.geometry.shards);
    w.u16(identity.format);
    w.u32(identity.block_bytes);
    w.uuid(&hello.member.0);
    w.uuid(&hello.boot);
    w.u16(hello.shard.0);
    w.u64(hello.head.0);
    w.u64(hello.end.0);
    w.u64(hello.chain.0);
    write_epochs(w, &hello.epochs);
}

fn read_hello(r: &mut Reader<'_>) -> Result<Hello, WireError> {
    let pair = r.bytes(PAIR_NAME_BYTES_MAX, "pair")?;
    let pair = str::from_utf8(pair).map_err(|_| WireError::Contradiction("pair"))?.to_owned();
    let identity = Identity {
        pair,
        cluster: r.uuid("cluster")?,
        log: LogId(r.uuid("log")?),
        geometry: Geometry { segment_bytes: r.u64("segment bytes")?, shards: r.u16("shards")? },
        format: r.u16("format")?,
        block_bytes: r.u32("block bytes")?,
    };
    let hello = Hello {
        identity,
        member: JournalUuid(r.uuid("member")?),
        boot: r.uuid("boot")?,
        shard: ShardId(r.u16("shard")?),
        head: read_lsn(r, "head")?,
        end: read_lsn(r, "end")?,
        chain: Chain(r.u64("chain")?),
        epochs: read_epochs(r)?,
    };
    if hello.head > hello.end {
        return Err(WireError::Contradiction("head"));
    }
    Ok(hello)
}

fn read_welcome(r: &mut Reader<'_>) -> Result<Welcome, WireError> {
    let welcome = Welcome {
        session: r.u64("session")?,
        epoch: Epoch(r.u64("epoch")?),
        from: read_lsn(r, "from")?,
        chain: Chain(r.u64("chain")?),
        epochs: read_epochs(r)?,
    };
    if welcome.epochs.newest().0 != welcome.epoch {
        return Err(WireError::Contradiction("epoch"));
    }
    Ok(welcome)
}

fn read_refuse(r: &mut Reader<'_>) -> Result<Frame, WireError> {
    let code = r.u8("reason")?;
    let reason = Reason::ALL.into_iter().find(|reason| *reason as u8 == code);
    let reason = reason.ok_or(WireError::Unknown("reason", code.into()))?;
    let detail = r.bytes(REASON_BYTES_MAX, "detail")?;
    let detail = str::from_utf8(detail).map_err(|_| WireError::Contradiction("detail"))?;
    Ok(Frame::Refuse { reason, detail: detail.to_owned() })
}

const _: () = {
    assert!(BATCH_FIELDS_BYTES + BATCH_BYTES_MAX <= STREAM_BODY_BYTES_MAX);
    assert!(PAIR_NAME_BYTES_MAX + 160 + EPOCHS_MAX * 16 <= STREAM_BODY_BYTES_MAX);
    assert!(REASON_BYTES_MAX + 8 <= STREAM_BODY_BYTES_MAX);
};

#[cfg(test)]
#[path = "wire/tests.rs"]
mod tests;
