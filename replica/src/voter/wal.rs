//! A voter's log on the disk: one file of records, each of which is all or nothing.
//!
//! ```text
//!   a record, at a multiple of 4096; zeros up to the next
//!   0        4        6      8        12       16               24
//!   | magic  | format | kind | length | crc    | number         | body
//!
//!   kind 1  Base   the whole state: disk uuid, seat, seats, disks, hard state, image (with the
//!                  disks then), entries
//!   kind 2  Step   hard state, and entries that replace all from the first of them on
//!
//!   | Base, number n | Step n + 1 | Step n + 2 | ...      the file
//! ```
//!
//! Little-endian. The checksum is crc32c over the disk's uuid, then the record without the checksum
//! itself; a Base names the uuid that it is checked with.
//!
//! Invariants:
//! * What the engine calls one `Ready` is one record: hard state, entries, and with an image (which
//!   makes it a Base) that too. None of them is ever there without the others.
//! * One write is under way at a time. A Base is written to another file, which takes the name of
//!   the log when it is whole and durable; so a file begins with a whole Base, always.
//! * The end of the file that does not check was never answered for, if nothing later checks: it is
//!   cut. If something later does, a record that was durable is damaged, and a voter that forgot a
//!   vote must not vote: recovery refuses. The last record alone can't be told from a torn one.

use std::fmt;

use raft::eraftpb::{Entry, EntryType, HardState};

use super::seats::{Disks, Seat, Seats, VoterUuid};
use super::store::{Image, Store};
use crate::codec::{Reader, WireError, Writer};
use crate::limits::{STATE_BYTES_MAX, VALUE_BYTES_MAX, WAL_BLOCK_BYTES};

const MAGIC: [u8; 4] = *b"LLvw";
/// Version 1 knew no replacements of disks.
const FORMAT: u16 = 2;
const KIND_BASE: u16 = 1;
const KIND_STEP: u16 = 2;
const HEADER_BYTES: usize = 24;
/// Longest body: an image and a log that was just about to be written anew.
const RECORD_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Entries in one record, at most.
const ENTRIES_MAX: usize = u16::MAX as usize;

/// What a host writes, and reports back when it is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WalWrite {
    /// Put these bytes at this offset of the file, with data sync.
    Append {
        /// Where: a multiple of 4096, at or before the end of the file.
        offset: u64,
        /// What: whole blocks.
        bytes: Vec<u8>,
    },
    /// Make a file of these bytes alone take the place of the log: written and synced under
    /// another name, renamed, the directory synced.
    Replace {
        /// What: whole blocks.
        bytes: Vec<u8>,
    },
}

/// Why a voter's log is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalError {
    /// The first record is not whole. It was when the file got its name.
    NoBase,
    /// A record does not check though a later one does; the offset.
    Damaged(u64),
    /// A record checks and says what it can't.
    Malformed(u64, WireError),
    /// The log is of another version.
    Format(u16),
}

impl fmt::Display for WalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const WAY_OUT: &str = "this disk must not vote; replace the voter";
        match self {
            Self::NoBase => write!(f, "its first record is damaged: {WAY_OUT}"),
            Self::Damaged(at) => {
                write!(f, "the record at byte {at} is damaged, later ones are not: {WAY_OUT}")
            }
            Self::Malformed(at, error) => write!(f, "the record at byte {at}: {error}: {WAY_OUT}"),
            Self::Format(version) => {
                write!(f, "it has format {version}, not {FORMAT}: use the program that wrote it")
            }
        }
    }
}

impl std::error::Error for WalError {}

/// Who a voter is, as its disk says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its place in the config.
    pub seat: Seat,
    /// How many voters the config named at format.
    pub seats: Seats,
    /// This disk.
    pub uuid: VoterUuid,
    /// The disks of the ensemble when this one came in: once that is agreed.
    pub disks: Option<Disks>,
}

/// The writing side: where the next record goes.
#[derive(Clone, Debug)]
pub(crate) struct Wal {
    uuid: VoterUuid,
    number: u64,
    end: usize,
}

impl Wal {
    pub(crate) const fn new(uuid: VoterUuid) -> Self {
        Self { uuid, number: 0, end: 0 }
    }

    pub(crate) const fn bytes(&self) -> usize {
        self.end
    }

    /// Everything anew.
    pub(crate) fn base(&mut self, identity: &Identity, store: &Store) -> WalWrite {
        let mut w = Writer::new();
        w.uuid(&identity.uuid.0);
        w.u8(identity.seat.0);
        w.u8(identity.seats.count());
        Disks::put(identity.disks.as_ref(), &mut w);
        put_hard(&mut w, &store.hard);
        w.u64(store.image.index);
        w.u64(store.image.term);
        Disks::put(store.image.disks.as_ref(), &mut w);
        w.bytes(&store.image.registers);
        w.list(store.entries_after_image(), put_entry);
        self.end = 0;
        let bytes = self.record(KIND_BASE, &w.finish());
        WalWrite::Replace { bytes }
    }

    /// One more step.
    pub(crate) fn step(&mut self, hard: &HardState, entries: &[Entry]) -> WalWrite {
        let mut w = Writer::new();
        put_hard(&mut w, hard);
        w.list(entries, put_entry);
        let offset = self.end as u64;
        let bytes = self.record(KIND_STEP, &w.finish());
        WalWrite::Append { offset, bytes }
    }

    fn record(&mut self, kind: u16, body: &[u8]) -> Vec<u8> {
        let length = HEADER_BYTES + body.len();
        assert!(length <= RECORD_BYTES_MAX, "a record of {length} bytes could not be read again");
        self.number += 1;
        let mut w = Writer::new();
        MAGIC.iter().for_each(|byte| w.u8(*byte));
        w.u16(FORMAT);
        w.u16(kind);
        w.u32(u32::try_from(length).expect("16 MiB at most"));
        w.u32(0);
        w.u64(self.number);
        let mut bytes = w.finish();
        bytes.extend_from_slice(body);
        let crc = checksum(self.uuid, &bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        bytes.resize(length.next_multiple_of(WAL_BLOCK_BYTES), 0);
        self.end += bytes.len();
        bytes
    }
}

/// What a file of records says.
#[derive(Debug)]
pub struct Recovered {
    pub(crate) identity: Identity,
    pub(crate) store: Store,
    pub(crate) wal: Wal,
}

impl Recovered {
    /// Reads a voter's log.
    ///
    /// # Errors
    /// It is damaged, or of another version: the voter must not vote.
    pub fn read(file: &[u8]) -> Result<Self, WalError> {
        let base = record_at(file, 0, None)?.ok_or(WalError::NoBase)?;
        let malformed = |at: usize| move |error| WalError::Malformed(at as u64, error);
        if base.kind != KIND_BASE {
            return Err(WalError::NoBase);
        }
        let (identity, mut store) = read_base(base.body).map_err(malformed(0))?;
        let mut wal = Wal { uuid: identity.uuid, number: base.number, end: base.padded };
        while wal.end < file.len() {
            let Some(step) = record_at(file, wal.end, Some(identity.uuid))? else { break };
            if step.number != wal.number + 1 || step.kind != KIND_STEP {
                break;
            }
            read_step(step.body, &mut store).map_err(malformed(wal.end))?;
            wal.number = step.number;
            wal.end += step.padded;
        }
        nothing_later(file, &wal)?;
        Ok(Self { identity, store, wal })
    }

    /// Who the voter is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }
}

/// A record that checks.
struct Found<'a> {
    kind: u16,
    number: u64,
    body: &'a [u8],
    padded: usize,
}

/// The record at a place, if it checks; by the uuid in it, where none is given.
fn record_at(
    file: &[u8],
    at: usize,
    uuid: Option<VoterUuid>,
) -> Result<Option<Found<'_>>, WalError> {
    let Some(bytes) = file.get(at..) else { return Ok(None) };
    let Some((header, rest)) = bytes.split_at_checked(HEADER_BYTES) else { return Ok(None) };
    let u16_at = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let u32_at = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four"));
    let length = u32_at(8) as usize;
    if header[..4] != MAGIC || !(HEADER_BYTES..=RECORD_BYTES_MAX).contains(&length) {
        return Ok(None);
    }
    let Some(body) = rest.get(..length - HEADER_BYTES) else { return Ok(None) };
    let seed = uuid.or_else(|| Reader::new(body).uuid("uuid").ok().map(VoterUuid));
    let Some(seed) = seed else { return Ok(None) };
    if checksum(seed, &bytes[..length]) != u32_at(12) {
        return Ok(None);
    }
    if u16_at(4) != FORMAT {
        return Err(WalError::Format(u16_at(4)));
    }
    let number = u64::from_le_bytes(header[16..24].try_into().expect("eight"));
    Ok(Some(Found { kind: u16_at(6), number, body, padded: length.next_multiple_of(4096) }))
}

/// Whether the rest is a torn write, and not something that was durable and is damaged.
fn nothing_later(file: &[u8], wal: &Wal) -> Result<(), WalError> {
    for at in (wal.end..file.len()).step_by(WAL_BLOCK_BYTES) {
        let later = record_at(file, at, Some(wal.uuid))?;
        if later.is_some_and(|record| record.number > wal.number) {
            return Err(WalError::Damaged(wal.end as u64));
        }
    }
    Ok(())
}

fn checksum(uuid: VoterUuid, record: &[u8]) -> u32 {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&uuid.0), &record[..12]);
    crc32c::crc32c_append(crc, &record[16..])
}

fn read_base(body: &[u8]) -> Result<(Identity, Store), WireError> {
    let mut r = Reader::new(body);
    let uuid = VoterUuid(r.uuid("uuid")?);
    let seat = Seat(r.u8("seat")?);
    let seats = Seats::new(r.u8("seats")?.into()).map_err(|_| WireError::Contradiction("seats"))?;
    let disks = Disks::take(&mut r)?;
    let of_others = disks.as_ref().is_some_and(|d| d.seats() != seats || d.of(seat) != Some(uuid));
    if !seats.has(seat) || of_others {
        return Err(WireError::Contradiction("disks"));
    }
    let hard = take_hard(&mut r)?;
    let (index, term) = (r.u64("image index")?, r.u64("image term")?);
    let then = Disks::take(&mut r)?;
    // Two bytes count the registers.
    let registers = r.bytes(STATE_BYTES_MAX + 2, "image")?.to_vec();
    if index > 0 && then.is_none() {
        return Err(WireError::Contradiction("disks of the image"));
    }
    let image = Image { index, term, disks: then, registers };
    let mut store = Store::new(hard, image);
    let entries = r.list(ENTRIES_MAX, "entries", take_entry)?;
    r.end()?;
    append(&mut store, &entries)?;
    Ok((Identity { seat, seats, uuid, disks }, store))
}

fn read_step(body: &[u8], store: &mut Store) -> Result<(), WireError> {
    let mut r = Reader::new(body);
    let hard = take_hard(&mut r)?;
    let entries = r.list(ENTRIES_MAX, "entries", take_entry)?;
    r.end()?;
    store.hard = hard;
    append(store, &entries)
}

fn append(store: &mut Store, entries: &[Entry]) -> Result<(), WireError> {
    let joins = entries
        .first()
        .is_none_or(|first| (store.image.index + 1..=store.last() + 1).contains(&first.index));
    let in_order = entries.windows(2).all(|two| two[1].index == two[0].index + 1);
    if !joins || !in_order {
        return Err(WireError::Contradiction("entries"));
    }
    store.append(entries);
    let committed = store.image.index..=store.last();
    if committed.contains(&store.hard.commit) {
        Ok(())
    } else {
        Err(WireError::Contradiction("commit"))
    }
}

fn put_hard(w: &mut Writer, hard: &HardState) {
    w.u64(hard.term);
    w.u64(hard.vote);
    w.u64(hard.commit);
}

fn take_hard(r: &mut Reader<'_>) -> Result<HardState, WireError> {
    let (term, vote, commit) = (r.u64("term")?, r.u64("vote")?, r.u64("commit")?);
    Ok(HardState { term, vote, commit, ..Default::default() })
}

/// An entry is a swap, or says of disks what the engine's own words for it are made of again.
pub(super) fn put_entry(w: &mut Writer, entry: &Entry) {
    w.u64(entry.index);
    w.u64(entry.term);
    let is_of_disks = entry.get_entry_type() == EntryType::EntryConfChangeV2;
    w.bool(is_of_disks);
    w.bytes(if is_of_disks { &entry.context } else { &entry.data });
}

pub(super) fn take_entry(r: &mut Reader<'_>) -> Result<Entry, WireError> {
    let mut entry =
        Entry { index: r.u64("entry index")?, term: r.u64("entry term")?, ..Default::default() };
    let is_of_disks = r.bool("entry of disks")?;
    let bytes = r.bytes(VALUE_BYTES_MAX + 64, "entry")?.to_vec().into();
    if is_of_disks {
        entry.set_entry_type(EntryType::EntryConfChangeV2);
        entry.context = bytes;
    } else {
        entry.data = bytes;
    }
    Ok(entry)
}

impl Recovered {
    /// These are its disks from now on. Those of a founding have decided since the first entry; who
    /// is admitted later is told by an image, which begins no earlier.
    pub(super) fn join(&mut self, disks: Disks) -> WalWrite {
        self.store.image.disks = (!disks.were_replaced()).then(|| disks.clone());
        self.identity.disks = Some(disks);
        self.wal.base(&self.identity, &self.store)
    }
}

#[cfg(test)]
#[path = "wal/tests.rs"]
mod tests;
