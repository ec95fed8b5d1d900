//! Where two logs part, and what becomes of what only one of them has.
//!
//! ```text
//!   1 meet      the live: last common LSN by (epoch, place) of both tables; its chain there
//!   2 verify    the backup: the same chain at that LSN, or the logs differ where they agree
//!   3 export    the backup: every batch beyond it into a delta, durable
//!   4 cut       the backup: one write of the superblock: the live's table, the end     (follower)
//!   5 recover   the backup: the log again from its head, so that no state outlives the cut
//!   6 follow    Hello again: now nothing is beyond, and the batches come
//!
//!   delta   | "LLdx" | ver | overruled | shard | log id | from | to | epochs
//!           | (length, batch)* | 0 | crc |      since version 3 from before `from` on, where a
//! ```                                           message that ends behind it begins there
//! Each step is durable before the next one begins, and each can be begun again: a crash before 4
//! finds the old log and makes the delta anew; a crash after it finds the shorter one.
//!
//! Where the live's log begins after the common LSN, or there is none, the log is *installed
//! whole*: everything that lives is in the live's log from its head on.
//! ```text
//!   1 Install   the live: its head, the chain there, and how far its log is durable: so far the
//!               copies of all that lived before the head reach
//!   2 export    the backup: every batch that the live may never have had into a delta, durable
//!   3 begin     the backup: one write of the superblock: that head, chain and table, no file that
//!               counts, and "whole at that LSN"
//!   4 follow    Hello again: an empty log that begins there; the batches come as ever
//! ```
//! Until it goes so far the log says that it is not whole: its member has no ends to show, asks for
//! no role and is no founder, whatever happens to it meanwhile; and it goes on where it is after a
//! restart, or begins again where the live's log has moved on. A member that the live still waits
//! for (R6) is put out of the set first.
//!
//! Invariants: logs are compared by epoch and place, never by length or by what was committed
//! (R11). Nothing is deleted at a cut (R14): a delta holds the bytes as they stood in the log,
//! checked again when they are read, and says of each record whether it may have been acknowledged.

use std::fmt;

use bytes::{Bytes, BytesMut};
use journal::limits::{BATCH_BYTES_MAX, LSN_MAX};
use journal::{EPOCHS_MAX, Epoch, EpochTable, Level, LogId, LogSeed, Lsn, SealedBatch, ShardId};

use crate::canary::{Canaries, Canary};
use crate::codec::{Reader, WireError, Writer};
use crate::wire::Hello;

const MAGIC: [u8; 4] = *b"LLdx";
const VERSION: u16 = 3;

/// Where a backup's log and the live's part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meeting {
    /// Both agree up to here, as far as the tables say.
    At(Lsn),
    /// The backup's log begins after the place where they part.
    TooFarBehind(Lsn),
    /// The tables have no epoch in common.
    Diverged,
}

/// Compares a backup's log with the live's, which ends at `end`.
pub(crate) fn meet(epochs: &EpochTable, end: Lsn, hello: &Hello, canaries: Canaries) -> Meeting {
    let common = if canaries.has(Canary::CutByLength) {
        Some(end.min(hello.end))
    } else {
        epochs.common(end, &hello.epochs, hello.end)
    };
    match common {
        Some(from) if from < hello.head => Meeting::TooFarBehind(from),
        Some(from) => Meeting::At(from),
        None => Meeting::Diverged,
    }
}

/// What a producer or consumer may have been told of a record that was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Told {
    /// Its level waits for the backup's disk, which never had it: nobody was told.
    Unacknowledged,
    /// Its level does not wait for the backup's disk, or the backup was not in the set: it may be
    /// known to somebody as accepted or settled. At `replicated` the backup's memory is enough, and
    /// what was there alone is gone with its process.
    MayBeAcknowledged,
}

impl Told {
    /// Of a record at this level, cut from a log whose live had its backup in sync, or had not.
    #[must_use]
    pub fn of(level: Level, backup_in_sync: bool) -> Self {
        match level {
            Level::ReplicatedSync if backup_in_sync => Self::Unacknowledged,
            Level::Async | Level::Sync | Level::Replicated | Level::ReplicatedSync => {
                Self::MayBeAcknowledged
            }
        }
    }
}

/// The end of a shard's log, by which its [`Delta`] is known: a log never holds two that differ in
/// what they hold, and not in this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail {
    /// The newest reign that the log knows.
    pub epoch: Epoch,
    /// Where it begins.
    pub from: Lsn,
    /// Where the log ends.
    pub to: Lsn,
}

/// Whose and which part of a log a [`Delta`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeltaHead {
    /// Of which log.
    pub log: LogId,
    /// Of which shard.
    pub shard: ShardId,
    /// Where the logs part.
    pub from: Lsn,
    /// Where the log that was cut ended.
    pub to: Lsn,
    /// Which reign wrote which part of it.
    pub epochs: EpochTable,
    /// The live that it was cut for has the role by an operator's word: also what waited for a
    /// backup may have been acknowledged.
    pub is_overruled: bool,
}

/// What was cut off a shard's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    /// Whose, and which part.
    pub head: DeltaHead,
    /// What stood there, in order; before it, from `from` back, what holds the beginnings of
    /// messages that ended there.
    pub batches: Vec<SealedBatch>,
}

/// A part of a delta, on its way into a file: first the head, then batches, then the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Where it begins.
    Head(Box<DeltaHead>),
    /// The next batches.
    Batches(Vec<SealedBatch>),
    /// All of it was said.
    End,
}

/// Puts a delta into bytes, piece by piece.
#[derive(Debug, Default)]
pub struct DeltaWriter {
    crc: u32,
}

impl DeltaWriter {
    /// The bytes of the next piece.
    pub fn write(&mut self, piece: &Piece, out: &mut BytesMut) {
        let begin = out.len();
        match piece {
            Piece::Head(head) => head.write(out),
            Piece::Batches(batches) => {
                for batch in batches {
                    let bytes = batch.bytes();
                    let length = u32::try_from(bytes.len()).expect("a batch is bounded");
                    out.extend_from_slice(&length.to_le_bytes());
                    out.extend_from_slice(bytes);
                }
            }
            Piece::End => out.extend_from_slice(&[0; 4]),
        }
        self.crc = crc32c::crc32c_append(self.crc, &out[begin..]);
        if *piece == Piece::End {
            out.extend_from_slice(&self.crc.to_le_bytes());
        }
    }
}

/// Why bytes are no delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeltaError {
    /// They are none, or were cut short.
    NotWhole,
    /// Another version wrote them.
    Version(u16),
    /// A field doesn't decode.
    Field(WireError),
    /// A batch doesn't check, or does not follow the one before.
    Batch,
}

impl fmt::Display for DeltaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotWhole => f.write_str("not a whole delta: it was cut short or damaged"),
            Self::Version(version) => write!(f, "a delta of version {version}, unknown here"),
            Self::Field(error) => write!(f, "the delta does not decode: {error}"),
            Self::Batch => f.write_str("a batch of the delta is damaged or out of order"),
        }
    }
}

impl std::error::Error for DeltaError {}

impl From<WireError> for DeltaError {
    fn from(error: WireError) -> Self {
        Self::Field(error)
    }
}

impl DeltaHead {
    /// Which one it is.
    #[must_use]
    pub fn tail(&self) -> Tail {
        Tail { epoch: self.epochs.newest().0, from: self.from, to: self.to }
    }

    /// What somebody may have been told of a record of this level.
    #[must_use]
    pub fn told(&self, level: Level) -> Told {
        Told::of(level, !self.is_overruled)
    }

    fn write(&self, out: &mut BytesMut) {
        let mut w = Writer::new();
        w.bool(self.is_overruled);
        w.u16(self.shard.0);
        w.uuid(&self.log.0);
        w.u64(self.from.0);
        w.u64(self.to.0);
        w.list(self.epochs.rows(), |w, (epoch, first)| {
            w.u64(epoch.0);
            w.u64(first.0);
        });
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&w.finish());
    }
}

impl Delta {
    /// The whole file.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let (mut writer, mut out) = (DeltaWriter::default(), BytesMut::new());
        writer.write(&Piece::Head(Box::new(self.head.clone())), &mut out);
        writer.write(&Piece::Batches(self.batches.clone()), &mut out);
        writer.write(&Piece::End, &mut out);
        out.freeze()
    }

    /// Reads a whole file.
    ///
    /// # Errors
    /// It is none of this version, or not whole.
    pub fn decode(file: &Bytes) -> Result<Self, DeltaError> {
        let (head, rest) = file.split_at_checked(6).ok_or(DeltaError::NotWhole)?;
        let (body, crc) = file.split_last_chunk::<4>().ok_or(DeltaError::NotWhole)?;
        if head[..4] != MAGIC || crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
            return Err(DeltaError::NotWhole);
        }
        let version = u16::from_le_bytes([head[4], head[5]]);
        let mut r = Reader::new(rest.get(..rest.len().saturating_sub(4)).unwrap_or_default());
        let is_overruled = match version {
            // It does not say.
            1 => true,
            2 | VERSION => r.bool("is overruled")?,
            0 | 4.. => return Err(DeltaError::Version(version)),
        };
        let shard = ShardId(r.u16("shard")?);
        let log = LogId(r.uuid("log")?);
        let (from, to) = (read_lsn(&mut r, "from")?, read_lsn(&mut r, "to")?);
        let rows = r.list(EPOCHS_MAX, "epochs", |r| {
            Ok((Epoch(r.u64("epoch")?), read_lsn(r, "its first LSN")?))
        })?;
        let epochs = EpochTable::from_rows(rows).ok_or(WireError::Contradiction("epochs"))?;
        let seed = LogSeed::new(log, shard);
        let mut batches: Vec<SealedBatch> = Vec::new();
        loop {
            let bytes = r.bytes(BATCH_BYTES_MAX, "batch")?;
            if bytes.is_empty() {
                break;
            }
            let batch = SealedBatch::check(&seed, file.slice_ref(bytes));
            let batch = batch.ok_or(DeltaError::Batch)?;
            let follows = batches.last().is_none_or(|last| {
                last.end() <= batch.first_lsn() && last.chain_after() == batch.chain_before()
            });
            // What leads to it is for messages that began before and ended in it.
            let leads = version < 3 && batch.first_lsn() < from;
            if !follows || leads || batch.end() > to {
                return Err(DeltaError::Batch);
            }
            batches.push(batch);
        }
        r.end()?;
        let head = DeltaHead { log, shard, from, to, epochs, is_overruled };
        Ok(Self { head, batches })
    }
}

fn read_lsn(r: &mut Reader<'_>, field: &'static str) -> Result<Lsn, WireError> {
    let lsn = r.u64(field)?;
    if lsn > LSN_MAX { Err(WireError::TooLong(field)) } else { Ok(Lsn(lsn)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Identity;
    use journal::{Chain, Geometry, JournalUuid};

    fn table(rows: &[(u64, u64)]) -> EpochTable {
        let rows = rows.iter().map(|(epoch, lsn)| (Epoch(*epoch), Lsn(*lsn))).collect();
        EpochTable::from_rows(rows).expect("in order")
    }

    fn hello(head: u64, end: u64, rows: &[(u64, u64)]) -> Hello {
        let geometry = Geometry { segment_bytes: 65536, shards: 1 };
        Hello {
            identity: Identity::new("p", [0; 16], LogId([1; 16]), geometry),
            member: JournalUuid([2; 16]),
            boot: [3; 16],
            shard: ShardId(0),
            head: Lsn(head),
            end: Lsn(end),
            chain: Chain(4),
            epochs: table(rows),
        }
    }

    fn met(live: &[(u64, u64)], end: u64, hello: &Hello) -> Meeting {
        meet(&table(live), Lsn(end), hello, Canaries::default())
    }

    #[test]
    fn logs_part_where_an_epoch_ended_first_and_not_where_one_of_them_ends() {
        let live = [(1, 4096), (3, 61440)];
        // The old live wrote on in epoch 1 beyond the place where epoch 3 began; it is the longer.
        let old = hello(4096, 204_800, &[(1, 4096)]);
        assert_eq!(met(&live, 102_400, &old), Meeting::At(Lsn(61440)));
        // It was live itself in between, and nobody followed.
        let lone = hello(4096, 90112, &[(1, 4096), (2, 53248)]);
        assert_eq!(met(&live, 102_400, &lone), Meeting::At(Lsn(53248)));
        let behind = hello(4096, 8192, &[(1, 4096)]);
        assert_eq!(met(&live, 102_400, &behind), Meeting::At(Lsn(8192)));
        let recycled = hello(65536 + 4096, 204_800, &[(1, 4096)]);
        assert_eq!(met(&live, 102_400, &recycled), Meeting::TooFarBehind(Lsn(61440)));
        let strange = hello(4096, 8192, &[(2, 4096)]);
        assert_eq!(met(&live, 102_400, &strange), Meeting::Diverged);
    }

    #[test]
    fn only_what_waited_for_the_backups_disk_is_surely_unknown() {
        assert_eq!(Told::of(Level::ReplicatedSync, true), Told::Unacknowledged);
        assert_eq!(Told::of(Level::ReplicatedSync, false), Told::MayBeAcknowledged);
        // Both processes may have died, and the backup's memory with them.
        assert_eq!(Told::of(Level::Replicated, true), Told::MayBeAcknowledged);
        assert_eq!(Told::of(Level::Replicated, false), Told::MayBeAcknowledged);
        assert_eq!(Told::of(Level::Sync, true), Told::MayBeAcknowledged);
        assert_eq!(Told::of(Level::Async, true), Told::MayBeAcknowledged);
    }

    #[test]
    fn a_delta_is_read_whole_or_not_at_all() {
        let head = DeltaHead {
            log: LogId([1; 16]),
            shard: ShardId(1),
            from: Lsn(8192),
            to: Lsn(16384),
            epochs: table(&[(1, 4096)]),
            is_overruled: true,
        };
        assert_eq!(head.told(Level::ReplicatedSync), Told::MayBeAcknowledged);
        let delta = Delta { head, batches: Vec::new() };
        let file = delta.encode();
        assert_eq!(Delta::decode(&file), Ok(delta));
        for len in 0..file.len() {
            assert!(Delta::decode(&file.slice(..len)).is_err(), "{len} bytes");
        }
        for bit in 0..file.len() * 8 {
            let mut hurt = file.to_vec();
            hurt[bit / 8] ^= 1 << (bit % 8);
            assert!(Delta::decode(&hurt.into()).is_err(), "bit {bit}");
        }
    }
}
