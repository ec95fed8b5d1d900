//! What the machine believes it has written, and what the platters hold.
//!
//! ```text
//!   file       view ◀── writes land here at once, reads see it
//!              pending: the changes since, in order ──fsync──▶ durable
//!   directory  view, pending name changes ──fsync of the directory──▶ durable
//!
//!   cut: of what is pending, a chance subset survives, per 512-byte sector, in any order;
//!        then view := durable, and nothing is pending
//! ```
//!
//! This is the least that POSIX promises, less than any one file system gives: a synced file whose
//! directory was never synced may be gone. Names survive as a prefix of their directory's changes,
//! as a metadata journal would have it. Bytes survive sector by sector, as a device's cache has it:
//! a later write may stay while an earlier one is lost.
//!
//! Invariant: `durable` changes only by a sync and by a cut. Chance comes from one seed, and the
//! same operations with the same seed lose the same bytes.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use crate::sparse::Sparse;

pub(crate) const ROOT: u64 = 1;
const SECTOR: usize = 512;

pub(crate) struct Disk {
    nodes: BTreeMap<u64, Node>,
    next_ino: u64,
    next_change: u64,
    /// Most bytes that the files may take together.
    quota_bytes: u64,
    chance: Chance,
}

pub(crate) struct Node {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) kind: Kind,
}

pub(crate) enum Kind {
    Directory(Directory),
    File(File),
}

#[derive(Default)]
pub(crate) struct Directory {
    pub(crate) view: BTreeMap<OsString, u64>,
    durable: BTreeMap<OsString, u64>,
    pending: Vec<NameChange>,
}

#[derive(Clone)]
enum NameChange {
    Add(OsString, u64),
    Remove(OsString),
    Rename { from: OsString, to: OsString, ino: u64 },
}

#[derive(Default)]
pub(crate) struct File {
    pub(crate) view: Sparse,
    durable: Sparse,
    pending: Vec<Change>,
}

struct Change {
    /// Rises over the whole disk; a sync covers the changes that are older than itself.
    number: u64,
    started_ns: u64,
    what: What,
}

enum What {
    Write { offset: u64, data: Vec<u8> },
    Truncate(u64),
}

/// Why an operation is refused, in the words of errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    NotFound,
    Exists,
    NotDirectory,
    IsDirectory,
    NotEmpty,
    NoSpace,
}

/// What a power cut did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Loss {
    pub(crate) writes_pending: usize,
    pub(crate) writes_lost: usize,
    pub(crate) writes_torn: usize,
    pub(crate) names_lost: usize,
    /// The bytes of writes that were under way, for who wants to know what may be lost.
    pub(crate) in_flight: Vec<u8>,
    /// When the oldest of them began.
    pub(crate) in_flight_since_ns: Option<u64>,
}

/// How a cut treats one file's pending writes.
enum Fate {
    AllLost,
    WholeWrites,
    Sectors,
    TornLast,
    AllKept,
}

/// SplitMix64: small, seeded, good enough to choose what is lost.
struct Chance(u64);

pub(crate) struct Owner {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Disk {
    pub(crate) fn new(seed: u64, root: Owner) -> Self {
        let kind = Kind::Directory(Directory::default());
        let root = Node { mode: root.mode, uid: root.uid, gid: root.gid, kind };
        Self {
            nodes: BTreeMap::from([(ROOT, root)]),
            next_ino: ROOT + 1,
            next_change: 1,
            quota_bytes: u64::MAX,
            chance: Chance(seed),
        }
    }

    pub(crate) fn node(&self, ino: u64) -> Result<&Node, Refusal> {
        self.nodes.get(&ino).ok_or(Refusal::NotFound)
    }

    pub(crate) fn node_mut(&mut self, ino: u64) -> Result<&mut Node, Refusal> {
        self.nodes.get_mut(&ino).ok_or(Refusal::NotFound)
    }

    pub(crate) fn lookup(&self, parent: u64, name: &OsStr) -> Result<u64, Refusal> {
        self.directory(parent)?.view.get(name).copied().ok_or(Refusal::NotFound)
    }

    pub(crate) fn directory(&self, ino: u64) -> Result<&Directory, Refusal> {
        match &self.node(ino)?.kind {
            Kind::Directory(directory) => Ok(directory),
            Kind::File(_) => Err(Refusal::NotDirectory),
        }
    }

    pub(crate) fn file(&self, ino: u64) -> Result<&File, Refusal> {
        match &self.node(ino)?.kind {
            Kind::File(file) => Ok(file),
            Kind::Directory(_) => Err(Refusal::IsDirectory),
        }
    }

    pub(crate) fn allocated_bytes(&self) -> u64 {
        self.files().map(|file| file.view.allocated()).sum()
    }

    pub(crate) fn quota_bytes(&self) -> u64 {
        self.quota_bytes
    }

    pub(crate) fn set_quota(&mut self, bytes: u64) {
        self.quota_bytes = bytes;
    }

    pub(crate) fn create(
        &mut self,
        parent: u64,
        name: &OsStr,
        owner: &Owner,
        kind: Kind,
    ) -> Result<u64, Refusal> {
        if self.directory(parent)?.view.contains_key(name) {
            return Err(Refusal::Exists);
        }
        let ino = self.next_ino;
        self.next_ino += 1;
        let node = Node { mode: owner.mode, uid: owner.uid, gid: owner.gid, kind };
        self.nodes.insert(ino, node);
        self.directory_mut(parent)?.change(NameChange::Add(name.into(), ino));
        Ok(ino)
    }

    /// Takes a name away; the bytes stay until a cut finds that no name leads to them.
    pub(crate) fn remove(&mut self, parent: u64, name: &OsStr) -> Result<(), Refusal> {
        let ino = self.lookup(parent, name)?;
        if let Kind::Directory(directory) = &self.node(ino)?.kind
            && !directory.view.is_empty()
        {
            return Err(Refusal::NotEmpty);
        }
        self.directory_mut(parent)?.change(NameChange::Remove(name.into()));
        Ok(())
    }

    pub(crate) fn rename(&mut self, from: (u64, &OsStr), to: (u64, &OsStr)) -> Result<(), Refusal> {
        let ino = self.lookup(from.0, from.1)?;
        if from.0 == to.0 {
            let change = NameChange::Rename { from: from.1.into(), to: to.1.into(), ino };
            self.directory_mut(from.0)?.change(change);
        } else {
            self.directory_mut(to.0)?.change(NameChange::Add(to.1.into(), ino));
            self.directory_mut(from.0)?.change(NameChange::Remove(from.1.into()));
        }
        Ok(())
    }

    pub(crate) fn write(
        &mut self,
        ino: u64,
        offset: u64,
        data: &[u8],
        now_ns: u64,
    ) -> Result<(), Refusal> {
        let growth = self.file(ino)?.view.growth(offset, data.len());
        if growth > 0 && self.allocated_bytes().saturating_add(growth) > self.quota_bytes {
            return Err(Refusal::NoSpace);
        }
        let what = What::Write { offset, data: data.to_vec() };
        self.change_file(ino, what, now_ns)
    }

    pub(crate) fn truncate(&mut self, ino: u64, len: u64, now_ns: u64) -> Result<(), Refusal> {
        self.change_file(ino, What::Truncate(len), now_ns)
    }

    /// The mark up to which a sync that begins now reaches.
    pub(crate) fn sync_mark(&self) -> u64 {
        self.next_change
    }

    /// Ends a sync: the file's changes before `mark` are durable.
    pub(crate) fn sync_file(&mut self, ino: u64, mark: u64) -> Result<(), Refusal> {
        let Kind::File(file) = &mut self.node_mut(ino)?.kind else {
            return Err(Refusal::IsDirectory);
        };
        let rest = file.pending.partition_point(|change| change.number < mark);
        for change in file.pending.drain(..rest) {
            change.what.apply(&mut file.durable);
        }
        Ok(())
    }

    pub(crate) fn sync_directory(&mut self, ino: u64) -> Result<(), Refusal> {
        let directory = self.directory_mut(ino)?;
        for change in std::mem::take(&mut directory.pending) {
            change.apply(&mut directory.durable);
        }
        Ok(())
    }

    /// The power goes: what was not synced is lost, torn or kept by chance. `young_ns` says how
    /// short ago a write must have begun to count as under way.
    pub(crate) fn cut(&mut self, now_ns: u64, young_ns: u64) -> Loss {
        let mut loss = Loss::default();
        for node in self.nodes.values_mut() {
            match &mut node.kind {
                Kind::Directory(directory) => directory.cut(&mut self.chance, &mut loss),
                Kind::File(file) => file.cut(&mut self.chance, &mut loss, now_ns - young_ns),
            }
        }
        self.forget_unreachable();
        loss
    }

    fn forget_unreachable(&mut self) {
        let mut reached = vec![ROOT];
        let mut at = 0;
        while at < reached.len() {
            if let Ok(directory) = self.directory(reached[at]) {
                reached.extend(directory.view.values());
            }
            at += 1;
        }
        self.nodes.retain(|ino, _| reached.contains(ino));
    }

    fn files(&self) -> impl Iterator<Item = &File> {
        self.nodes.values().filter_map(|node| match &node.kind {
            Kind::File(file) => Some(file),
            Kind::Directory(_) => None,
        })
    }

    fn directory_mut(&mut self, ino: u64) -> Result<&mut Directory, Refusal> {
        match &mut self.node_mut(ino)?.kind {
            Kind::Directory(directory) => Ok(directory),
            Kind::File(_) => Err(Refusal::NotDirectory),
        }
    }

    fn change_file(&mut self, ino: u64, what: What, started_ns: u64) -> Result<(), Refusal> {
        let number = self.next_change;
        let Kind::File(file) = &mut self.node_mut(ino)?.kind else {
            return Err(Refusal::IsDirectory);
        };
        what.apply(&mut file.view);
        file.pending.push(Change { number, started_ns, what });
        self.next_change += 1;
        Ok(())
    }
}

impl Directory {
    fn change(&mut self, change: NameChange) {
        change.clone().apply(&mut self.view);
        self.pending.push(change);
    }

    fn cut(&mut self, chance: &mut Chance, loss: &mut Loss) {
        let kept = chance.below(self.pending.len() + 1);
        loss.names_lost += self.pending.len() - kept;
        for change in self.pending.drain(..).take(kept) {
            change.apply(&mut self.durable);
        }
        self.view = self.durable.clone();
    }
}

impl NameChange {
    fn apply(self, names: &mut BTreeMap<OsString, u64>) {
        match self {
            Self::Add(name, ino) => drop(names.insert(name, ino)),
            Self::Remove(name) => drop(names.remove(&name)),
            Self::Rename { from, to, ino } => {
                names.remove(&from);
                names.insert(to, ino);
            }
        }
    }
}

impl File {
    fn cut(&mut self, chance: &mut Chance, loss: &mut Loss, young_since_ns: u64) {
        let mut pending = std::mem::take(&mut self.pending);
        let young = pending.iter().filter(|change| change.started_ns >= young_since_ns);
        for change in young {
            change.what.copy_to(&mut loss.in_flight);
            let oldest = loss.in_flight_since_ns.unwrap_or(u64::MAX).min(change.started_ns);
            loss.in_flight_since_ns = Some(oldest);
        }
        loss.writes_pending += pending.len();
        let fate = Fate::choose(chance);
        match fate {
            Fate::WholeWrites | Fate::Sectors => chance.shuffle(&mut pending),
            Fate::AllLost | Fate::TornLast | Fate::AllKept => {}
        }
        let last = pending.len().saturating_sub(1);
        for (at, change) in pending.into_iter().enumerate() {
            let keep = match fate {
                Fate::AllLost => Keep::Nothing,
                Fate::AllKept => Keep::All,
                Fate::WholeWrites => chance.all_or_nothing(),
                Fate::Sectors => Keep::SomeSectors,
                Fate::TornLast if at == last => Keep::FirstSectors,
                Fate::TornLast => Keep::All,
            };
            change.what.survive(&keep, chance, &mut self.durable, loss);
        }
        self.view = self.durable.clone();
    }
}

enum Keep {
    Nothing,
    All,
    SomeSectors,
    FirstSectors,
}

impl Fate {
    fn choose(chance: &mut Chance) -> Self {
        match chance.below(8) {
            0 | 1 => Self::AllLost,
            2 | 3 => Self::WholeWrites,
            4 | 5 => Self::Sectors,
            6 => Self::TornLast,
            7.. => Self::AllKept,
        }
    }
}

impl What {
    fn apply(&self, bytes: &mut Sparse) {
        match self {
            Self::Write { offset, data } => bytes.write(*offset, data),
            Self::Truncate(len) => bytes.truncate(*len),
        }
    }

    fn copy_to(&self, out: &mut Vec<u8>) {
        match self {
            Self::Write { data, .. } => out.extend_from_slice(data),
            Self::Truncate(_) => {}
        }
    }

    fn survive(&self, keep: &Keep, chance: &mut Chance, durable: &mut Sparse, loss: &mut Loss) {
        let Self::Write { offset, data } = self else {
            if chance.below(2) == 0 {
                self.apply(durable);
            }
            return;
        };
        let sectors = data.len().div_ceil(SECTOR);
        let first = chance.below(sectors + 1);
        let mut kept = 0;
        for (at, sector) in data.chunks(SECTOR).enumerate() {
            let survives = match keep {
                Keep::Nothing => false,
                Keep::All => true,
                Keep::SomeSectors => chance.below(2) == 0,
                Keep::FirstSectors => at < first,
            };
            if survives {
                durable.write(offset + (at * SECTOR) as u64, sector);
                kept += 1;
            }
        }
        match kept {
            0 => loss.writes_lost += 1,
            _ if kept < sectors => loss.writes_torn += 1,
            _ => {}
        }
    }
}

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to `bound` - 1.
    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn all_or_nothing(&mut self) -> Keep {
        if self.below(2) == 0 { Keep::All } else { Keep::Nothing }
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, self.below(at + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Owner = Owner { mode: 0o644, uid: 0, gid: 0 };

    fn disk_with_file(seed: u64) -> (Disk, u64) {
        let mut disk = Disk::new(seed, OWNER);
        let kind = Kind::File(File::default());
        let ino = disk.create(ROOT, OsStr::new("f"), &OWNER, kind).unwrap();
        disk.sync_directory(ROOT).unwrap();
        (disk, ino)
    }

    fn bytes(disk: &Disk, ino: u64) -> Vec<u8> {
        let view = &disk.file(ino).unwrap().view;
        view.read(0, view.len() as usize)
    }

    #[test]
    fn what_was_synced_survives_each_seed() {
        for seed in 0..200 {
            let (mut disk, ino) = disk_with_file(seed);
            disk.write(ino, 0, &[1; 8192], 0).unwrap();
            disk.sync_file(ino, disk.sync_mark()).unwrap();
            disk.write(ino, 8192, &[2; 4096], 0).unwrap();
            disk.cut(100, 50);
            assert_eq!(bytes(&disk, ino)[..8192], [1; 8192], "seed {seed}");
        }
    }

    #[test]
    fn what_was_not_synced_is_lost_torn_and_kept_over_the_seeds() {
        let (mut lost, mut torn, mut kept, mut reordered) = (0, 0, 0, 0);
        for seed in 0..200 {
            let (mut disk, ino) = disk_with_file(seed);
            disk.write(ino, 0, &[1; 4096], 0).unwrap();
            disk.write(ino, 4096, &[2; 4096], 0).unwrap();
            let loss = disk.cut(100, 50);
            lost += usize::from(loss.writes_lost == 2);
            torn += usize::from(loss.writes_torn > 0);
            kept += usize::from(loss.writes_torn + loss.writes_lost == 0);
            let now = bytes(&disk, ino);
            let second_alone =
                now.len() == 8192 && now[4096..] == [2; 4096] && now[..4096] == [0; 4096];
            reordered += usize::from(second_alone);
        }
        for count in [lost, torn, kept, reordered] {
            assert!(count > 5, "lost {lost}, torn {torn}, kept {kept}, reordered {reordered}");
        }
    }

    #[test]
    fn a_sync_covers_what_was_written_before_it_began() {
        for seed in 0..50 {
            let (mut disk, ino) = disk_with_file(seed);
            disk.write(ino, 0, &[1; 512], 0).unwrap();
            let mark = disk.sync_mark();
            disk.write(ino, 0, &[2; 512], 0).unwrap();
            disk.sync_file(ino, mark).unwrap();
            let pending = disk.cut(100, 50).writes_pending;
            assert_eq!(pending, 1);
            assert!(bytes(&disk, ino)[0] == 1 || bytes(&disk, ino)[0] == 2);
        }
    }

    #[test]
    fn a_name_needs_its_directory_synced() {
        let mut gone = 0;
        for seed in 0..50 {
            let mut disk = Disk::new(seed, OWNER);
            let kind = Kind::File(File::default());
            let ino = disk.create(ROOT, OsStr::new("f"), &OWNER, kind).unwrap();
            disk.write(ino, 0, &[1; 512], 0).unwrap();
            disk.sync_file(ino, disk.sync_mark()).unwrap();
            disk.cut(100, 50);
            match disk.lookup(ROOT, OsStr::new("f")) {
                Ok(found) => assert_eq!(bytes(&disk, found), [1; 512]),
                Err(refusal) => {
                    assert_eq!(refusal, Refusal::NotFound);
                    gone += 1;
                }
            }
        }
        assert!((5..45).contains(&gone), "{gone} of 50 names lost");
    }

    #[test]
    fn a_rename_is_there_or_not_but_never_both() {
        for seed in 0..50 {
            let (mut disk, ino) = disk_with_file(seed);
            disk.rename((ROOT, OsStr::new("f")), (ROOT, OsStr::new("g"))).unwrap();
            disk.cut(100, 50);
            let names = ["f", "g"].map(|name| disk.lookup(ROOT, OsStr::new(name)).ok());
            assert!(names == [Some(ino), None] || names == [None, Some(ino)], "{names:?}");
        }
    }

    #[test]
    fn a_full_disk_refuses_new_pages_only() {
        let (mut disk, ino) = disk_with_file(1);
        disk.set_quota(8192);
        disk.write(ino, 0, &[1; 8192], 0).unwrap();
        assert_eq!(disk.write(ino, 8192, &[1], 0), Err(Refusal::NoSpace));
        disk.write(ino, 0, &[2; 8192], 0).unwrap();
    }

    #[test]
    fn young_writes_are_handed_out_and_old_ones_are_not() {
        let (mut disk, ino) = disk_with_file(1);
        disk.write(ino, 0, b"old", 10).unwrap();
        disk.write(ino, 3, b"new", 90).unwrap();
        let loss = disk.cut(100, 50);
        assert_eq!((loss.in_flight.as_slice(), loss.in_flight_since_ns), (&b"new"[..], Some(90)));
    }

    #[test]
    fn the_same_seed_loses_the_same() {
        let run = || {
            let (mut disk, ino) = disk_with_file(42);
            for n in 0..20 {
                disk.write(ino, n * 512, &[n as u8; 1024], 0).unwrap();
            }
            (disk.cut(100, 50), bytes(&disk, ino))
        };
        assert!(run() == run());
    }
}
