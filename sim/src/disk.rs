//! A node's disk: what was written, what of it would survive, and everything that can go wrong.
//!
//! ```text
//!               submit            due, or never (hung)
//!   DiskOp ──────────▶ in flight ──────────────────────▶ durable     (each Write is data-synced)
//!                          │                                ▲
//!                          │ kill: any part of it           │ Sync
//!                          └───────────────▶ cache ─────────┘
//!                          │                   │
//!                          │ power cut: each sector old or new
//!                          ▼                   ▼
//!                        what the next start reads
//! ```
//! A file is its durable bytes and, by sector, what is in the kernel's cache above them. Operations
//! take a seeded time and end in any order; one that is in flight when the lights go out is lost,
//! whole, or torn: each sector of 512 bytes old or new by itself. A process that is killed keeps
//! what reached the kernel, which is not durable until somebody syncs it.
//!
//! Invariants: an operation is answered once or never, its buffer comes back with the answer; a
//! power cut loses no sector of a write that was answered; every fault is counted in [`Hits`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use journal::{BlockBuf, DiskDone, DiskError, DiskOp, FileId, OpId, ShardId, SlotFile};

use crate::hits::{Hit, Hits};
use crate::rng::Rng;

/// What a disk tears at: the smallest thing it writes whole.
pub const SECTOR_BYTES: usize = 512;
const BLOCK_BYTES: u64 = 4096;
const EIO: i32 = 5;

/// Whose operation it is: ids are unique only within one journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner(pub u16);

/// How a disk behaves. A fault that happens "one in n" never happens where n is zero.
#[derive(Clone, Debug)]
pub struct Profile {
    /// The shortest time that an operation takes.
    pub delay_min: Duration,
    /// The longest, but for slow ones.
    pub delay_max: Duration,
    /// One in so many operations takes `slow_factor` times as long.
    pub slow_one_in: u64,
    /// How much longer.
    pub slow_factor: u32,
    /// One in so many writes never ends.
    pub write_hung_one_in: u64,
    /// One in so many writes ends with an I/O error, and leaves anything or nothing.
    pub write_failed_one_in: u64,
    /// One in so many writes ends short.
    pub write_short_one_in: u64,
    /// One in so many reads ends with an I/O error.
    pub read_failed_one_in: u64,
    /// Bytes that all files together may have.
    pub bytes_max: u64,
}

impl Profile {
    /// A disk without faults: only order and durations vary.
    pub fn sound() -> Self {
        Self {
            delay_min: Duration::from_micros(20),
            delay_max: Duration::from_micros(400),
            slow_one_in: 0,
            slow_factor: 40,
            write_hung_one_in: 0,
            write_failed_one_in: 0,
            write_short_one_in: 0,
            read_failed_one_in: 0,
            bytes_max: u64::MAX,
        }
    }
}

/// What becomes of the writes in flight at a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Each by its own draw.
    Seeded,
    /// None leaves anything.
    Lost,
    /// Each is there, whole.
    Whole,
    /// Of each, some sectors.
    Torn,
}

/// How a node stops without being asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The machine: what is not durable may be gone.
    PowerCut(Fate),
    /// The process: what had reached the kernel stays.
    Kill(Fate),
}

/// Whether a write is made with data sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Durability {
    Synced,
    Cached,
}

#[derive(Debug)]
enum Work {
    Write { offset: u64, durability: Durability },
    Read { offset: u64 },
    Prewrite { bytes: u64 },
    Sync { sectors: Vec<u64> },
}

#[derive(Debug)]
struct Flight {
    owner: Owner,
    id: OpId,
    file: FileId,
    work: Work,
    buf: Option<BlockBuf>,
    since: Instant,
    failure: Option<DiskError>,
}

impl Flight {
    /// A write that promises wait for; nothing waits for a checkpoint.
    fn is_of_log(&self) -> bool {
        let is_beside = matches!(self.file, FileId::Checkpoint { .. });
        matches!(self.work, Work::Write { .. }) && !is_beside
    }
}

/// A file: durable bytes, and the kernel's cache above them.
#[derive(Clone, Debug, Default)]
struct File {
    /// Its directory entry is durable.
    linked: bool,
    durable: Vec<u8>,
    cache: BTreeMap<u64, [u8; SECTOR_BYTES]>,
    len: usize,
    /// Where the batches of its present use end, once its header was written over an older one.
    reused_to: Option<u64>,
}

/// A node's disk.
#[derive(Debug)]
pub struct Disk {
    rng: Rng,
    profile: Profile,
    files: BTreeMap<FileId, File>,
    flights: BTreeMap<u64, Flight>,
    due: BTreeSet<(Instant, u64)>,
    unreadable: BTreeSet<(FileId, u64)>,
    /// When the first write was submitted that has failed since the last crash.
    failed_since: Option<Instant>,
    next_ticket: u64,
    moments: u64,
    hits: Hits,
}

impl Disk {
    /// An empty disk.
    pub fn new(rng: Rng, profile: Profile) -> Self {
        Self {
            rng,
            profile,
            files: BTreeMap::new(),
            flights: BTreeMap::new(),
            due: BTreeSet::new(),
            unreadable: BTreeSet::new(),
            failed_since: None,
            next_ticket: 0,
            moments: 0,
            hits: Hits::default(),
        }
    }

    /// How often each fault took place.
    pub fn hits(&self) -> &Hits {
        &self.hits
    }

    /// Operations taken and operations answered, together: each is a moment to crash at.
    pub fn moments(&self) -> u64 {
        self.moments
    }

    /// How many operations are in flight.
    pub fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// How many writes are in flight.
    pub fn writes_in_flight(&self) -> usize {
        self.flights.values().filter(|flight| matches!(flight.work, Work::Write { .. })).count()
    }

    /// Whether an operation on a checkpoint is in flight.
    pub fn is_checkpointing(&self) -> bool {
        self.flights.values().any(|flight| {
            let is_read = matches!(flight.work, Work::Read { .. });
            !is_read && matches!(flight.file, FileId::Checkpoint { .. })
        })
    }

    /// When the oldest write was submitted that is in flight, or has failed.
    pub fn oldest_write(&self) -> Option<Instant> {
        let oldest = self.flights.values().find(|flight| flight.is_of_log());
        let oldest = oldest.map(|flight| flight.since);
        [oldest, self.failed_since].into_iter().flatten().min()
    }

    /// The segment files of a shard, as a host lists them at start.
    pub fn segments(&self, of: ShardId) -> Vec<SlotFile> {
        let mut found = Vec::new();
        for (id, file) in &self.files {
            if let FileId::Segment { shard, slot } = id
                && *shard == of
            {
                found.push(SlotFile { slot: *slot, bytes: file.len as u64 });
            }
        }
        found
    }

    /// A whole file, as a host reads it at start; empty where there is none.
    pub fn contents(&self, file: FileId) -> Vec<u8> {
        self.files.get(&file).map_or_else(Vec::new, |file| file.read(0, file.len))
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.values().map(|file| file.len as u64).sum()
    }

    /// Changes how the disk behaves from now on.
    pub fn profile_mut(&mut self) -> &mut Profile {
        &mut self.profile
    }

    /// Reads of this block fail until [`heal`](Self::heal).
    pub fn spoil(&mut self, file: FileId, block: u64) {
        self.unreadable.insert((file, block));
    }

    /// Every block can be read again.
    pub fn heal(&mut self) {
        self.unreadable.clear();
    }

    /// Turns one bit over, in what is durable: bit rot.
    ///
    /// # Panics
    /// If the file has no such byte.
    pub fn flip(&mut self, file: FileId, offset: usize, mask: u8) {
        let file = self.files.get_mut(&file).expect("the file is there");
        file.durable[offset] ^= mask;
    }

    /// Takes an operation.
    pub fn submit(&mut self, now: Instant, owner: Owner, op: DiskOp) {
        self.take(now, owner, op, Durability::Synced);
    }

    /// Takes an operation of a host with a fault: a write is answered without having been synced.
    pub fn submit_unsynced(&mut self, now: Instant, owner: Owner, op: DiskOp) {
        self.take(now, owner, op, Durability::Cached);
    }

    fn take(&mut self, now: Instant, owner: Owner, op: DiskOp, durability: Durability) {
        let (id, file) = (op.id(), op.file());
        let (work, buf) = match op {
            DiskOp::Write { offset, buf, .. } => {
                assert!(offset.is_multiple_of(BLOCK_BYTES), "a write at {offset}");
                assert!((buf.len() as u64).is_multiple_of(BLOCK_BYTES), "a write of {}", buf.len());
                assert!(self.files.contains_key(&file), "a write to {file}, which nobody made");
                (Work::Write { offset, durability }, Some(buf))
            }
            DiskOp::Read { offset, buf, .. } => {
                assert!(offset.is_multiple_of(BLOCK_BYTES), "a read at {offset}");
                (Work::Read { offset }, Some(buf))
            }
            DiskOp::Prewrite { bytes, .. } => (Work::Prewrite { bytes }, None),
            DiskOp::Sync { .. } => {
                let cached = self.files.get(&file).map(|file| file.cache.keys().copied().collect());
                (Work::Sync { sectors: cached.unwrap_or_default() }, None)
            }
        };
        let failure = self.draw_failure(&work, file, buf.as_ref().map_or(0, BlockBuf::len));
        let due = self.draw_due(now, &work);
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.moments += 1;
        if let Some(due) = due {
            self.due.insert((due, ticket));
        }
        self.flights.insert(ticket, Flight { owner, id, file, work, buf, since: now, failure });
    }

    fn draw_due(&mut self, now: Instant, work: &Work) -> Option<Instant> {
        let is_write = matches!(work, Work::Write { .. });
        if is_write && self.rng.one_in(self.profile.write_hung_one_in) {
            self.hits.add(Hit::Hung);
            return None;
        }
        let first = self.profile.delay_min.as_nanos() as u64;
        let last = self.profile.delay_max.as_nanos() as u64;
        let mut delay = Duration::from_nanos(self.rng.between(first, last));
        if self.rng.one_in(self.profile.slow_one_in) {
            self.hits.add(Hit::Slow);
            delay *= self.profile.slow_factor;
        }
        Some(now + delay)
    }

    fn draw_failure(&mut self, work: &Work, file: FileId, len: usize) -> Option<DiskError> {
        match work {
            Work::Write { offset, .. } => {
                let have = self.files.get(&file).map_or(0, |file| file.len as u64);
                let more = (offset + len as u64).saturating_sub(have);
                if more > 0 && self.bytes() + self.bytes_in_making() + more > self.profile.bytes_max
                {
                    self.hits.add(Hit::NoSpace);
                    let short = DiskError::Short { bytes: 0 };
                    return Some(*self.rng.pick(&[DiskError::NoSpace, short]));
                }
                if self.rng.one_in(self.profile.write_failed_one_in) {
                    self.hits.add(Hit::WriteFailed);
                    return Some(DiskError::Io(EIO));
                }
                if self.rng.one_in(self.profile.write_short_one_in) {
                    self.hits.add(Hit::WriteShort);
                    let bytes = self.rng.below(len as u64 / BLOCK_BYTES) * BLOCK_BYTES;
                    return Some(DiskError::Short { bytes: bytes as u32 });
                }
                None
            }
            Work::Read { offset } => {
                let blocks = offset / BLOCK_BYTES..(offset + len as u64).div_ceil(BLOCK_BYTES);
                let spoilt = self.unreadable.range((file, blocks.start)..(file, blocks.end));
                let failed = spoilt.count() > 0 || self.rng.one_in(self.profile.read_failed_one_in);
                if failed {
                    self.hits.add(Hit::ReadFailed);
                }
                failed.then_some(DiskError::Io(EIO))
            }
            Work::Prewrite { bytes } => {
                let have = self.files.get(&file).map_or(0, |file| file.len as u64);
                let more = bytes.saturating_sub(have);
                let full = self.bytes() + self.bytes_in_making() + more > self.profile.bytes_max;
                if full {
                    self.hits.add(Hit::NoSpace);
                }
                full.then_some(DiskError::NoSpace)
            }
            Work::Sync { .. } => None,
        }
    }

    fn bytes_in_making(&self) -> u64 {
        let making = |flight: &Flight| match flight.work {
            Work::Prewrite { bytes } if flight.failure.is_none() => {
                let have = self.files.get(&flight.file).map_or(0, |file| file.len as u64);
                bytes.saturating_sub(have)
            }
            Work::Prewrite { .. } | Work::Write { .. } | Work::Read { .. } | Work::Sync { .. } => 0,
        };
        self.flights.values().map(making).sum()
    }

    /// When the next operation ends.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// The next operation that has ended.
    pub fn poll_done(&mut self, now: Instant) -> Option<(Owner, DiskDone)> {
        let (due, ticket) = *self.due.first()?;
        if due > now {
            return None;
        }
        self.due.remove(&(due, ticket));
        let flight = self.flights.remove(&ticket).expect("what is due is in flight");
        self.moments += 1;
        let is_write = |flight: &Flight| matches!(flight.work, Work::Write { .. });
        let older = |other: &Flight| other.owner == flight.owner && is_write(other);
        if is_write(&flight) && self.flights.range(..ticket).any(|(_, other)| older(other)) {
            self.hits.add(Hit::Reordered);
        }
        Some(self.finish(flight))
    }

    fn finish(&mut self, mut flight: Flight) -> (Owner, DiskDone) {
        let result = match (&flight.work, flight.failure) {
            (Work::Write { offset, durability }, None) => {
                let bytes = flight.buf.as_ref().expect("a write has a buffer").as_slice();
                self.note_reuse(flight.file, *offset, bytes.len());
                let file = self.files.entry(flight.file).or_default();
                match durability {
                    Durability::Synced => file.write_durably(*offset, bytes),
                    Durability::Cached => file.write_cached(*offset, bytes, |_| true),
                }
                Ok(bytes.len() as u32)
            }
            (Work::Write { .. }, Some(error)) => {
                self.land(&flight, Fate::Seeded);
                if flight.is_of_log() {
                    self.failed_since.get_or_insert(flight.since);
                }
                Err(error)
            }
            (Work::Read { offset }, None) => {
                let buf = flight.buf.as_mut().expect("a read has a buffer");
                let want = buf.len();
                let bytes = self
                    .files
                    .get(&flight.file)
                    .map_or_else(Vec::new, |file| file.read(*offset as usize, want));
                buf.as_mut_slice()[..bytes.len()].copy_from_slice(&bytes);
                Ok(bytes.len() as u32)
            }
            (Work::Prewrite { bytes }, None) => {
                let file = self.files.entry(flight.file).or_default();
                file.linked = true;
                file.reused_to = None;
                if let FileId::Checkpoint { .. } = flight.file {
                    file.cut(*bytes as usize);
                }
                file.write_durably(0, &vec![0; *bytes as usize]);
                Ok(0)
            }
            (Work::Prewrite { .. }, Some(error)) => {
                self.land(&flight, Fate::Seeded);
                Err(error)
            }
            (Work::Sync { sectors }, None) => {
                if let Some(file) = self.files.get_mut(&flight.file) {
                    file.sync(sectors);
                }
                Ok(0)
            }
            (Work::Read { .. } | Work::Sync { .. }, Some(error)) => Err(error),
        };
        (flight.owner, DiskDone { id: flight.id, result, buf: flight.buf })
    }

    /// Counts uses of a segment's file after its first one.
    fn note_reuse(&mut self, id: FileId, offset: u64, len: usize) {
        let FileId::Segment { .. } = id else { return };
        let file = self.files.entry(id).or_default();
        if offset == 0 && file.durable.first_chunk().is_some_and(|magic: &[u8; 8]| *magic != [0; 8])
        {
            self.hits.add(Hit::Recycled);
            file.reused_to = Some(len as u64);
        } else if let Some(end) = &mut file.reused_to {
            *end = (*end).max(offset + len as u64);
        }
    }

    /// Stops the node. Nothing that was in flight is ever answered.
    pub fn crash(&mut self, crash: Crash) {
        let (fate, power) = match crash {
            Crash::PowerCut(fate) => (fate, true),
            Crash::Kill(fate) => (fate, false),
        };
        self.hits.add(if power { Hit::PowerCut } else { Hit::Kill });
        self.note_recycled_tail();
        self.due.clear();
        self.failed_since = None;
        let mut flights: Vec<Flight> = std::mem::take(&mut self.flights).into_values().collect();
        self.rng.shuffle(&mut flights);
        for flight in &flights {
            self.land(flight, fate);
        }
        if power {
            self.lose_cache(fate);
        }
    }

    fn note_recycled_tail(&mut self) {
        let stale = |file: &File| {
            let Some(end) = file.reused_to else { return false };
            let beyond = file.durable.get(end as usize..end as usize + 8);
            beyond.is_some_and(|bytes| bytes != [0; 8])
        };
        if self.files.values().any(stale) {
            self.hits.add(Hit::RecycledTail);
        }
    }

    /// Lets some part of an operation reach the cache, as its fate says.
    fn land(&mut self, flight: &Flight, fate: Fate) {
        match &flight.work {
            Work::Write { offset, .. } => {
                let bytes = flight.buf.as_ref().expect("a write has a buffer").as_slice();
                let sectors = self.draw_sectors(bytes.len() / SECTOR_BYTES, fate);
                let file = self.files.entry(flight.file).or_default();
                file.write_cached(*offset, bytes, |sector| sectors[sector]);
            }
            Work::Prewrite { bytes } => {
                self.hits.add(Hit::PrewriteCut);
                let reach = match fate {
                    Fate::Lost => return,
                    Fate::Whole => *bytes,
                    Fate::Seeded | Fate::Torn => {
                        self.rng.below(bytes / BLOCK_BYTES + 1) * BLOCK_BYTES
                    }
                };
                let room = self.profile.bytes_max.saturating_sub(self.bytes());
                let file = self.files.entry(flight.file).or_default();
                let reach = reach.min(file.len as u64 + room / BLOCK_BYTES * BLOCK_BYTES);
                file.write_cached(0, &vec![0; reach as usize], |_| true);
            }
            Work::Read { .. } | Work::Sync { .. } => {}
        }
    }

    /// Which sectors of a write in flight are there.
    fn draw_sectors(&mut self, count: usize, fate: Fate) -> Vec<bool> {
        let fate = match fate {
            Fate::Seeded => *self.rng.pick(&[Fate::Lost, Fate::Whole, Fate::Torn, Fate::Torn]),
            Fate::Lost | Fate::Whole | Fate::Torn => fate,
        };
        match fate {
            Fate::Lost => {
                self.hits.add(Hit::Lost);
                vec![false; count]
            }
            Fate::Whole => {
                self.hits.add(Hit::Whole);
                vec![true; count]
            }
            Fate::Seeded | Fate::Torn => {
                self.hits.add(Hit::Torn);
                self.draw_tear(count)
            }
        }
    }

    fn draw_tear(&mut self, count: usize) -> Vec<bool> {
        let edge = self.rng.index(count);
        match self.rng.below(5) {
            0 => (0..count).map(|sector| sector < edge).collect(),
            1 => (0..count).map(|sector| sector > edge).collect(),
            2 => (0..count).map(|sector| sector != edge).collect(),
            3 => (0..count).map(|sector| sector == edge).collect(),
            _ => (0..count).map(|_| self.rng.chance(500)).collect(),
        }
    }

    fn lose_cache(&mut self, fate: Fate) {
        let mut gone = Vec::new();
        for (id, file) in &mut self.files {
            let keep = match fate {
                Fate::Lost => 0,
                Fate::Whole => 1000,
                Fate::Torn => 500,
                Fate::Seeded => *self.rng.pick(&[0, 500, 1000]),
            };
            for (sector, bytes) in std::mem::take(&mut file.cache) {
                if self.rng.chance(keep) {
                    file.put(sector, &bytes);
                } else {
                    self.hits.add(Hit::CacheLost);
                }
            }
            // Its length is only as durable as its bytes: it may be anything in between.
            let blocks = (file.len - file.durable.len()) as u64 / BLOCK_BYTES;
            let more = self.rng.below(blocks + 1) * BLOCK_BYTES;
            file.durable.resize(file.durable.len() + more as usize, 0);
            file.len = file.durable.len();
            if !file.linked && !self.rng.chance(keep) {
                gone.push(*id);
            }
            file.linked = true;
        }
        for id in gone {
            self.files.remove(&id);
        }
    }
}

impl File {
    fn read(&self, offset: usize, want: usize) -> Vec<u8> {
        let end = (offset + want).min(self.len);
        if offset >= end {
            return Vec::new();
        }
        let mut out = vec![0; end - offset];
        let durable = self.durable.len().min(end);
        if offset < durable {
            out[..durable - offset].copy_from_slice(&self.durable[offset..durable]);
        }
        let sectors = (offset / SECTOR_BYTES) as u64..end.div_ceil(SECTOR_BYTES) as u64;
        for (sector, bytes) in self.cache.range(sectors) {
            let at = *sector as usize * SECTOR_BYTES;
            let (from, to) = (at.max(offset), (at + SECTOR_BYTES).min(end));
            out[from - offset..to - offset].copy_from_slice(&bytes[from - at..to - at]);
        }
        out
    }

    fn cut(&mut self, bytes: usize) {
        self.durable.truncate(bytes);
        self.cache.retain(|sector, _| (*sector as usize) < bytes / SECTOR_BYTES);
        self.len = self.len.min(bytes);
    }

    fn write_durably(&mut self, offset: u64, bytes: &[u8]) {
        let (start, end) = (offset as usize, offset as usize + bytes.len());
        if self.durable.len() < end {
            self.durable.resize(end, 0);
        }
        self.durable[start..end].copy_from_slice(bytes);
        self.len = self.len.max(end);
        self.linked = true;
        if !self.cache.is_empty() {
            for sector in start / SECTOR_BYTES..end / SECTOR_BYTES {
                self.cache.remove(&(sector as u64));
            }
        }
    }

    fn write_cached(&mut self, offset: u64, bytes: &[u8], lands: impl Fn(usize) -> bool) {
        let first = offset / SECTOR_BYTES as u64;
        for (index, sector) in bytes.chunks_exact(SECTOR_BYTES).enumerate() {
            if lands(index) {
                let at = first + index as u64;
                self.cache.insert(at, sector.try_into().expect("a whole sector"));
                self.len = self.len.max((at as usize + 1) * SECTOR_BYTES);
            }
        }
    }

    fn sync(&mut self, sectors: &[u64]) {
        self.linked = true;
        for sector in sectors {
            if let Some(bytes) = self.cache.remove(sector) {
                self.put(*sector, &bytes);
            }
        }
    }

    fn put(&mut self, sector: u64, bytes: &[u8; SECTOR_BYTES]) {
        let at = sector as usize * SECTOR_BYTES;
        if self.durable.len() < at + SECTOR_BYTES {
            self.durable.resize(at + SECTOR_BYTES, 0);
        }
        self.durable[at..at + SECTOR_BYTES].copy_from_slice(bytes);
        self.len = self.len.max(self.durable.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use journal::Slot;

    const FILE: FileId = FileId::Segment { shard: ShardId(0), slot: Slot(0) };
    const OWNER: Owner = Owner(0);

    struct Bench {
        disk: Disk,
        now: Instant,
        next_id: u64,
    }

    impl Bench {
        #[expect(clippy::disallowed_methods, reason = "an origin; only differences count")]
        fn new(profile: Profile) -> Self {
            let disk = Disk::new(Rng::stream(1, "disk", 0), profile);
            let mut bench = Self { disk, now: Instant::now(), next_id: 0 };
            bench.submit(|id| DiskOp::Prewrite { id, file: FILE, bytes: 65536 });
            bench.settle();
            bench
        }

        fn submit(&mut self, op: impl FnOnce(OpId) -> DiskOp) {
            self.next_id += 1;
            self.disk.submit(self.now, OWNER, op(OpId(self.next_id)));
        }

        fn write(&mut self, block: u64, value: u8) {
            let mut buf = BlockBuf::take(4096);
            buf.as_mut_slice().fill(value);
            self.submit(|id| DiskOp::Write { id, file: FILE, offset: block * 4096, buf });
        }

        fn settle(&mut self) -> Vec<DiskDone> {
            let mut done = Vec::new();
            while let Some(due) = self.disk.poll_timeout() {
                self.now = self.now.max(due);
                while let Some((_, answer)) = self.disk.poll_done(self.now) {
                    done.push(answer);
                }
            }
            done
        }

        fn block(&self, block: usize) -> Vec<u8> {
            self.disk.contents(FILE)[block * 4096..(block + 1) * 4096].to_vec()
        }
    }

    #[test]
    fn what_was_answered_survives_a_power_cut_whatever_else_happens() {
        for fate in [Fate::Lost, Fate::Whole, Fate::Torn, Fate::Seeded] {
            let mut bench = Bench::new(Profile::sound());
            bench.write(1, 7);
            bench.settle();
            bench.write(2, 8);
            bench.disk.crash(Crash::PowerCut(fate));
            assert_eq!(bench.block(1), vec![7; 4096]);
            let sevens = bench.block(2).iter().filter(|byte| **byte == 8).count();
            assert_eq!(sevens % SECTOR_BYTES, 0);
            match fate {
                Fate::Lost => assert_eq!(sevens, 0),
                Fate::Whole => assert_eq!(sevens, 4096),
                Fate::Torn => assert_eq!(bench.disk.hits().get(Hit::Torn), 1),
                Fate::Seeded => {}
            }
        }
    }

    #[test]
    fn a_kill_keeps_in_the_cache_what_a_power_cut_then_takes() {
        let mut bench = Bench::new(Profile::sound());
        bench.write(1, 7);
        bench.disk.crash(Crash::Kill(Fate::Whole));
        assert_eq!(bench.block(1), vec![7; 4096], "the next start sees it");
        bench.disk.crash(Crash::PowerCut(Fate::Lost));
        assert_eq!(bench.block(1), vec![0; 4096], "nobody synced it");
        bench.write(1, 7);
        bench.disk.crash(Crash::Kill(Fate::Whole));
        bench.submit(|id| DiskOp::Sync { id, file: FILE });
        bench.settle();
        bench.disk.crash(Crash::PowerCut(Fate::Lost));
        assert_eq!(bench.block(1), vec![7; 4096], "it was synced");
    }

    #[test]
    fn a_write_without_sync_can_be_lost_while_a_later_one_stays() {
        let mut bench = Bench::new(Profile::sound());
        let mut buf = BlockBuf::take(4096);
        buf.as_mut_slice().fill(1);
        let op = DiskOp::Write { id: OpId(99), file: FILE, offset: 4096, buf };
        bench.disk.submit_unsynced(bench.now, OWNER, op);
        bench.settle();
        bench.write(2, 2);
        bench.settle();
        bench.disk.crash(Crash::PowerCut(Fate::Lost));
        assert_eq!((bench.block(1), bench.block(2)), (vec![0; 4096], vec![2; 4096]));
    }

    #[test]
    fn completions_come_in_any_order() {
        let mut bench = Bench::new(Profile::sound());
        for block in 0..8 {
            bench.write(block, 1);
        }
        let order: Vec<u64> = bench.settle().iter().map(|done| done.id.0).collect();
        assert!(!order.is_sorted() && order.len() == 8, "{order:?}");
        assert!(bench.disk.hits().get(Hit::Reordered) > 0);
    }

    #[test]
    fn a_hung_write_is_never_answered_and_a_failed_one_says_so() {
        let mut bench = Bench::new(Profile::sound());
        bench.disk.profile_mut().write_hung_one_in = 1;
        bench.write(1, 1);
        assert!(bench.settle().is_empty());
        assert_eq!(bench.disk.in_flight(), 1);
        bench.disk.profile_mut().write_hung_one_in = 0;
        bench.disk.profile_mut().write_failed_one_in = 1;
        bench.write(2, 1);
        let done = bench.settle();
        assert_eq!(done[0].result, Err(DiskError::Io(EIO)));
        assert!(done[0].buf.is_some(), "the buffer comes home");
    }

    #[test]
    fn no_space_leaves_at_most_part_of_a_file() {
        let mut bench = Bench::new(Profile { bytes_max: 65536 + 8192, ..Profile::sound() });
        let file = FileId::Segment { shard: ShardId(0), slot: Slot(1) };
        bench.submit(|id| DiskOp::Prewrite { id, file, bytes: 65536 });
        assert_eq!(bench.settle()[0].result, Err(DiskError::NoSpace));
        assert!(bench.disk.bytes() <= 65536 + 8192);
    }

    #[test]
    fn a_cut_pre_write_leaves_a_file_that_is_too_short_or_none() {
        let mut bench = Bench::new(Profile::sound());
        let file = FileId::Segment { shard: ShardId(0), slot: Slot(1) };
        bench.submit(|id| DiskOp::Prewrite { id, file, bytes: 65536 });
        bench.disk.crash(Crash::PowerCut(Fate::Lost));
        assert_eq!(bench.disk.segments(ShardId(0)).len(), 1);
        bench.submit(|id| DiskOp::Prewrite { id, file, bytes: 65536 });
        bench.disk.crash(Crash::Kill(Fate::Whole));
        assert_eq!(bench.disk.segments(ShardId(0))[1].bytes, 65536);
        bench.disk.crash(Crash::PowerCut(Fate::Lost));
        let left = bench.disk.segments(ShardId(0));
        assert_eq!(left.len(), 1, "its directory entry was not durable");
    }

    #[test]
    fn a_spoilt_block_fails_reads_until_it_is_healed() {
        let mut bench = Bench::new(Profile::sound());
        bench.disk.spoil(FILE, 2);
        let read = |bench: &mut Bench, offset| {
            let buf = BlockBuf::take(8192);
            bench.submit(|id| DiskOp::Read { id, file: FILE, offset, buf });
            bench.settle().remove(0).result
        };
        assert_eq!(read(&mut bench, 0), Ok(8192));
        assert_eq!(read(&mut bench, 4096), Err(DiskError::Io(EIO)));
        bench.disk.heal();
        assert_eq!(read(&mut bench, 4096), Ok(8192));
        assert_eq!(read(&mut bench, 65536 - 4096), Ok(4096), "the file ends there");
    }

    #[test]
    fn a_header_over_an_older_one_is_a_recycled_segment() {
        let mut bench = Bench::new(Profile::sound());
        for block in 0..3 {
            bench.write(block, 9);
            bench.settle();
        }
        bench.write(0, 10);
        bench.settle();
        assert_eq!(bench.disk.hits().get(Hit::Recycled), 1);
        bench.disk.crash(Crash::PowerCut(Fate::Lost));
        assert_eq!(bench.disk.hits().get(Hit::RecycledTail), 1, "old batches lie behind the tail");
    }
}
