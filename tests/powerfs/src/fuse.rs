//! The file system as the kernel sees it: every request goes to the [`Disk`], behind one gate.
//!
//! ```text
//!   power   On      requests are served
//!           Frozen  requests wait, nothing later counts           (freeze)
//!           Off     those that waited and all new ones get EIO    (cut)
//!           On      the durable image is served again             (on)
//! ```
//!
//! A write with `RWF_DSYNC` arrives as WRITE and then FSYNC, but there is a trap (measured): where
//! open or create answer `FOPEN_DIRECT_IO`, the kernel drops the sync of each write without a word,
//! and a broker that syncs would be seen losing data. The opener's own `O_DIRECT` is enough.
//! `FUSE_ASYNC_DIO` stays off as a precaution, not measured: a write that the kernel has only
//! queued might be synced before it has ended. Nothing is cached between opens (lifetimes of zero),
//! so that after a cut nobody sees what the kernel remembers.
//!
//! Invariant: a request takes effect and is answered while the power is on, or it is answered EIO;
//! a sync takes effect at its end, so one that is under way at the freeze proves nothing.

use std::collections::BinaryHeap;
use std::ffi::OsStr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request,
    TimeOrNow, WriteFlags,
};
use rustix::fs::OFlags;
use rustix::time::{ClockId, clock_gettime};

use crate::disk::{Directory, Disk, File, Kind, Loss, Owner, Refusal};
use crate::sparse::PAGE;

/// Nothing is cached: what the kernel remembers would outlive a cut.
const TTL: Duration = Duration::ZERO;

/// A write that began this short before the freeze counts as under way: the kernel sends the sync
/// of a durable write only when it has the write's answer.
const YOUNG: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Power {
    On,
    Frozen,
    Off,
}

struct State {
    disk: Disk,
    power: Power,
    /// Rises with each cut: a slow request of an earlier life must not take effect.
    life: u64,
    frozen_ns: u64,
    waiting: Vec<Box<dyn FnOnce() + Send>>,
    knobs: Knobs,
    counts: Counts,
}

/// What a test may turn while the file system is in use.
#[derive(Clone, Copy, Default)]
pub(crate) struct Knobs {
    pub(crate) write_delay: Duration,
    pub(crate) sync_delay: Duration,
    pub(crate) writes_fail: bool,
    pub(crate) reads_fail: bool,
    pub(crate) syncs_hang: bool,
    pub(crate) opens_denied: bool,
    pub(crate) direct_refused: bool,
}

#[derive(Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) writes: u64,
    pub(crate) written_bytes: u64,
    pub(crate) syncs: u64,
    pub(crate) reads: u64,
}

/// The shared handle: the kernel's side, the command side and the timer hold one each.
#[derive(Clone)]
pub(crate) struct PowerFs {
    state: Arc<Mutex<State>>,
    timer: Arc<Timer>,
}

impl PowerFs {
    pub(crate) fn new(seed: u64) -> Self {
        let owner = Owner {
            mode: 0o755,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
        };
        let state = State {
            disk: Disk::new(seed, owner),
            power: Power::On,
            life: 0,
            frozen_ns: 0,
            waiting: Vec::new(),
            knobs: Knobs::default(),
            counts: Counts::default(),
        };
        Self { state: Arc::new(Mutex::new(state)), timer: Arc::new(Timer::default()) }
    }

    /// From here on requests wait; nothing that is not answered yet will count.
    pub(crate) fn freeze(&self) {
        let mut state = self.lock();
        state.power = Power::Frozen;
        state.frozen_ns = now_ns();
    }

    pub(crate) fn frozen_ns(&self) -> u64 {
        self.lock().frozen_ns
    }

    /// Loses what chance takes; whoever waits gets EIO, until [`Self::power_on`].
    pub(crate) fn cut(&self) -> Loss {
        let mut state = self.lock();
        state.power = Power::Off;
        state.life += 1;
        let longest = YOUNG + state.knobs.sync_delay + state.knobs.write_delay;
        let frozen_ns = state.frozen_ns;
        let loss = state.disk.cut(frozen_ns, longest.as_nanos() as u64);
        for refuse in state.waiting.drain(..) {
            refuse();
        }
        loss
    }

    pub(crate) fn power_on(&self) {
        self.lock().power = Power::On;
    }

    pub(crate) fn set_knobs(&self, change: impl FnOnce(&mut Knobs)) {
        change(&mut self.lock().knobs);
    }

    pub(crate) fn set_quota(&self, bytes: u64) {
        self.lock().disk.set_quota(bytes);
    }

    pub(crate) fn counts(&self) -> Counts {
        self.lock().counts
    }

    pub(crate) fn allocated_bytes(&self) -> u64 {
        self.lock().disk.allocated_bytes()
    }

    /// Runs the slow answers; returns only with the process.
    pub(crate) fn run_timer(&self) {
        self.timer.run();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no request panics while it holds the state")
    }

    /// The gate: the state if the power is on; otherwise `refuse` runs now or at the cut.
    fn enter<R: Send + 'static>(
        &self,
        reply: R,
        refuse: fn(R, Errno),
    ) -> Option<(MutexGuard<'_, State>, R)> {
        let mut state = self.lock();
        match state.power {
            Power::On => Some((state, reply)),
            Power::Off => {
                refuse(reply, Errno::EIO);
                None
            }
            Power::Frozen => {
                state.waiting.push(Box::new(move || refuse(reply, Errno::EIO)));
                None
            }
        }
    }

    /// Answers now or after `delay`; `finish` runs only if the power stayed on until then.
    fn answer<R: Send + 'static>(
        &self,
        mut state: MutexGuard<'_, State>,
        delay: Duration,
        reply: R,
        refuse: fn(R, Errno),
        finish: impl FnOnce(&mut State, R) + Send + 'static,
    ) {
        if delay.is_zero() {
            finish(&mut state, reply);
            return;
        }
        let life = state.life;
        drop(state);
        let fs = self.clone();
        self.timer.after(delay, move || {
            let Some((mut state, reply)) = fs.enter(reply, refuse) else { return };
            if state.life == life {
                finish(&mut state, reply);
            } else {
                refuse(reply, Errno::EIO);
            }
        });
    }
}

impl State {
    fn attributes(&self, ino: u64) -> Result<FileAttr, Refusal> {
        let node = self.disk.node(ino)?;
        let (kind, size, blocks, nlink) = match &node.kind {
            Kind::Directory(_) => (FileType::Directory, PAGE, PAGE / 512, 2),
            Kind::File(file) => {
                (FileType::RegularFile, file.view.len(), file.view.allocated() / 512, 1)
            }
        };
        let time = SystemTime::UNIX_EPOCH;
        Ok(FileAttr {
            ino: INodeNo(ino),
            size,
            blocks,
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm: (node.mode & 0o7777) as u16,
            nlink,
            uid: node.uid,
            gid: node.gid,
            rdev: 0,
            blksize: PAGE as u32,
            flags: 0,
        })
    }

    fn make(
        &mut self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        kind: Kind,
    ) -> Result<FileAttr, Refusal> {
        let owner = Owner { mode: mode & 0o7777, uid: req.uid(), gid: req.gid() };
        let ino = self.disk.create(parent.0, name, &owner, kind)?;
        self.attributes(ino)
    }
}

impl Filesystem for PowerFs {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // The nearest that the kernel allows is as good: larger writes arrive in parts.
        let _ = config.set_max_write(1 << 20);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let Some((state, reply)) = self.enter(reply, ReplyEntry::error) else { return };
        let found = state.disk.lookup(parent.0, name).and_then(|ino| state.attributes(ino));
        match found {
            Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
            Err(refusal) => reply.error(errno(refusal)),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let Some((state, reply)) = self.enter(reply, ReplyAttr::error) else { return };
        answer_attributes(&state, ino, reply);
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let Some((mut state, reply)) = self.enter(reply, ReplyAttr::error) else { return };
        let truncated = size.map_or(Ok(()), |len| state.disk.truncate(ino.0, len, now_ns()));
        if let Err(refusal) = truncated {
            reply.error(errno(refusal));
            return;
        }
        if let Ok(node) = state.disk.node_mut(ino.0) {
            node.mode = mode.map_or(node.mode, |mode| mode & 0o7777);
            node.uid = uid.unwrap_or(node.uid);
            node.gid = gid.unwrap_or(node.gid);
        }
        answer_attributes(&state, ino, reply);
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let Some((mut state, reply)) = self.enter(reply, ReplyEntry::error) else { return };
        if state.knobs.opens_denied {
            reply.error(Errno::EACCES);
            return;
        }
        let kind = Kind::Directory(Directory::default());
        match state.make(req, parent, name, mode & !umask, kind) {
            Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
            Err(refusal) => reply.error(errno(refusal)),
        }
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let Some((mut state, reply)) = self.enter(reply, ReplyCreate::error) else { return };
        if state.knobs.opens_denied {
            reply.error(Errno::EACCES);
            return;
        }
        match state.make(req, parent, name, mode & !umask, Kind::File(File::default())) {
            Ok(attr) => {
                let flags = FopenFlags::empty();
                reply.created(&TTL, &attr, Generation(0), FileHandle(0), flags);
            }
            Err(refusal) => reply.error(errno(refusal)),
        }
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let Some((mut state, reply)) = self.enter(reply, ReplyEmpty::error) else { return };
        answer_empty(state.disk.remove(parent.0, name), reply);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let Some((mut state, reply)) = self.enter(reply, ReplyEmpty::error) else { return };
        answer_empty(state.disk.remove(parent.0, name), reply);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let Some((mut state, reply)) = self.enter(reply, ReplyEmpty::error) else { return };
        if !flags.is_empty() {
            reply.error(Errno::EINVAL);
            return;
        }
        answer_empty(state.disk.rename((parent.0, name), (newparent.0, newname)), reply);
    }

    fn open(&self, _req: &Request, _ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let Some((state, reply)) = self.enter(reply, ReplyOpen::error) else { return };
        if state.knobs.opens_denied {
            reply.error(Errno::EACCES);
            return;
        }
        let direct = flags.0.cast_unsigned() & OFlags::DIRECT.bits() != 0;
        if direct && state.knobs.direct_refused {
            reply.error(Errno::EINVAL);
            return;
        }
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some((mut state, reply)) = self.enter(reply, ReplyData::error) else { return };
        state.counts.reads += 1;
        if state.knobs.reads_fail {
            reply.error(Errno::EIO);
            return;
        }
        match state.disk.file(ino.0) {
            Ok(file) => reply.data(&file.view.read(offset, size as usize)),
            Err(refusal) => reply.error(errno(refusal)),
        }
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let Some((mut state, reply)) = self.enter(reply, ReplyWrite::error) else { return };
        state.counts.writes += 1;
        state.counts.written_bytes += data.len() as u64;
        if state.knobs.writes_fail {
            reply.error(Errno::EIO);
            return;
        }
        if let Err(refusal) = state.disk.write(ino.0, offset, data, now_ns()) {
            reply.error(errno(refusal));
            return;
        }
        let (delay, length) = (state.knobs.write_delay, data.len() as u32);
        let finish = move |_: &mut State, reply: ReplyWrite| reply.written(length);
        self.answer(state, delay, reply, ReplyWrite::error, finish);
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // A close must always end, or a killed process could not.
        reply.ok();
    }

    fn fsync(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let Some((mut state, reply)) = self.enter(reply, ReplyEmpty::error) else { return };
        state.counts.syncs += 1;
        if state.knobs.writes_fail {
            reply.error(Errno::EIO);
            return;
        }
        if state.knobs.syncs_hang {
            state.waiting.push(Box::new(move || reply.error(Errno::EIO)));
            return;
        }
        let (delay, mark) = (state.knobs.sync_delay, state.disk.sync_mark());
        let finish = move |state: &mut State, reply| {
            answer_empty(state.disk.sync_file(ino.0, mark), reply);
        };
        self.answer(state, delay, reply, ReplyEmpty::error, finish);
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let Some((mut state, reply)) = self.enter(reply, ReplyEmpty::error) else { return };
        answer_empty(state.disk.sync_directory(ino.0), reply);
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        let Some((state, mut reply)) = self.enter(reply, ReplyDirectory::error) else { return };
        let names = match state.disk.directory(ino.0) {
            Ok(directory) => directory.view.iter(),
            Err(refusal) => return reply.error(errno(refusal)),
        };
        for (at, (name, child)) in names.enumerate().skip(offset as usize) {
            let kind = match state.disk.directory(*child) {
                Ok(_) => FileType::Directory,
                Err(_) => FileType::RegularFile,
            };
            if reply.add(INodeNo(*child), at as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let Some((state, reply)) = self.enter(reply, ReplyStatfs::error) else { return };
        // Without a quota it shows 64 GiB.
        let blocks = state.disk.quota_bytes().min(64 << 30) / PAGE;
        let free = blocks.saturating_sub(state.disk.allocated_bytes() / PAGE);
        reply.statfs(blocks, free, free, 1 << 20, 1 << 20, PAGE as u32, 255, PAGE as u32);
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        _length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        // Unwritten extents have no place here: who preallocates must write zeros.
        reply.error(Errno::EOPNOTSUPP);
    }
}

fn answer_attributes(state: &State, ino: INodeNo, reply: ReplyAttr) {
    match state.attributes(ino.0) {
        Ok(attr) => reply.attr(&TTL, &attr),
        Err(refusal) => reply.error(errno(refusal)),
    }
}

fn answer_empty(result: Result<(), Refusal>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(refusal) => reply.error(errno(refusal)),
    }
}

fn errno(refusal: Refusal) -> Errno {
    match refusal {
        Refusal::NotFound => Errno::ENOENT,
        Refusal::Exists => Errno::EEXIST,
        Refusal::NotDirectory => Errno::ENOTDIR,
        Refusal::IsDirectory => Errno::EISDIR,
        Refusal::NotEmpty => Errno::ENOTEMPTY,
        Refusal::NoSpace => Errno::ENOSPC,
    }
}

/// `CLOCK_MONOTONIC`, which the clients of the tests print as well.
fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Runs calls at their time, on one thread.
#[derive(Default)]
struct Timer {
    due: Mutex<BinaryHeap<Due>>,
    changed: Condvar,
}

struct Due {
    at: Instant,
    call: Box<dyn FnOnce() + Send>,
}

impl Timer {
    fn after(&self, delay: Duration, call: impl FnOnce() + Send + 'static) {
        let due = Due { at: now() + delay, call: Box::new(call) };
        self.due.lock().expect("no call runs under this lock").push(due);
        self.changed.notify_one();
    }

    fn run(&self) {
        let mut due = self.due.lock().expect("no call runs under this lock");
        loop {
            let next = due.peek().map(|first| first.at.saturating_duration_since(now()));
            due = match next {
                None => self.changed.wait(due).expect("no call runs under this lock"),
                Some(left) if left.is_zero() => {
                    let first = due.pop();
                    drop(due);
                    if let Some(first) = first {
                        (first.call)();
                    }
                    self.due.lock().expect("no call runs under this lock")
                }
                Some(left) => {
                    let waited = self.changed.wait_timeout(due, left);
                    waited.expect("no call runs under this lock").0
                }
            };
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a tool that delays real answers")]
fn now() -> Instant {
    Instant::now()
}

/// The earliest comes first out of the heap.
impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.at.cmp(&self.at)
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl Eq for Due {}
