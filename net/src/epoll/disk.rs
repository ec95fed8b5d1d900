//! Files of the epoll engine: threads that do one call at a time, since there is no other way to
//! write past the page cache without waiting.
//!
//! ```text
//!   core                       shared                      writer threads, at most `writers_max`
//!   write_durable, read, sync -> jobs (FIFO) ------------> pwritev2(RWF_DSYNC) | pread | fdatasync
//!   wait <- results <----------- results, `announced` <--- and the bell, if nobody rang it yet
//! ```
//!
//! A thread is started when more jobs are under way than there are threads; the first at once, so
//! that a machine that gives none is found out before anything is promised.
//!
//! Invariants:
//! * A job owns its memory and its file, and each thread its share of the directory's lock, so
//!   nothing that a thread may still touch ends before it; not even a ring that gave up waiting
//!   takes anything back.
//! * No write is cancelled, split or tried again, and its result is handed on as it is. A file is
//!   closed when its last job is over.
//! * No wake-up is lost: a writer puts its result down and then sets `announced`; the core clears
//!   it and then looks. A writer that finds it set leaves the bell to the one who set it.
//! * Signals are for other threads: one in the middle of a write could end it early.
//!
//! A killed process keeps the directory locked as well: a thread inside a write leaves it only when
//! the disk has answered, and the process's descriptors, with the lock, go after its last thread.
//!
//! Failure: an error, or a write's short count, is handed on as it is.

#![expect(unsafe_code, reason = "a signal mask has no safe form")]

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crossbeam::queue::SegQueue;
use rustix::fs::MemfdFlags;
use rustix::io::{Errno, ReadWriteFlags};

use super::Epoll;
use crate::doorbell::Doorbell;
use crate::file::{DataFile, DirectoryLock, disk_bytes};
use crate::now;
use crate::ring::{Completion, DiskRead, DiskWrite, FileId};

/// Stack of a writer thread in bytes: it makes one system call after another.
const STACK_BYTES: usize = 256 * 1024;

pub(super) struct FileSlot {
    file: Arc<DataFile>,
    operations: u32,
    removed: bool,
}

struct Job {
    file: FileId,
    data: Arc<DataFile>,
    tag: u64,
    what: What,
}

enum What {
    Write { offset: u64, buf: &'static mut [u8], bytes: u32 },
    Read { offset: u64, buf: &'static mut [u8], bytes: u32 },
    Sync,
}

/// A job that is over.
struct Over {
    file: FileId,
    tag: u64,
    buf: Option<&'static mut [u8]>,
    result: io::Result<u32>,
}

/// The core's side of its writer threads.
pub(super) struct Writers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    threads_max: usize,
    under_way: usize,
    /// Some results have not been taken.
    results_left: bool,
}

struct Shared {
    jobs: Mutex<Jobs>,
    more: Condvar,
    results: SegQueue<Over>,
    announced: AtomicBool,
    bell: Doorbell,
    durably: Durably,
}

struct Jobs {
    queue: VecDeque<Job>,
    /// No more will come: who finds the queue empty ends.
    ended: bool,
    /// The directory's lock, until the last thread is gone.
    lock: Option<OwnedFd>,
}

/// How a write is made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Durably {
    /// By its own flag.
    Flag,
    /// By a sync behind it, where the flag is refused (sandboxes, old kernels).
    Sync,
}

/// Commands.
impl Epoll {
    pub(crate) fn add_file(&mut self, file: DataFile) -> Result<FileId, DataFile> {
        if self.files.len() == self.files_max {
            return Err(file);
        }
        let slot = FileSlot { file: Arc::new(file), operations: 0, removed: false };
        Ok(FileId(self.files.insert(slot)))
    }

    pub(crate) fn remove_file(&mut self, id: FileId) {
        self.file_mut(id).removed = true;
        self.finish_file(id);
    }

    pub(crate) fn keep_locked(&mut self, lock: &DirectoryLock) -> io::Result<()> {
        let lock = lock.as_fd().try_clone_to_owned()?;
        self.writers.shared.jobs().lock = Some(lock);
        Ok(())
    }

    pub(crate) fn write_durable(&mut self, write: DiskWrite) {
        let DiskWrite { file, offset, buf, len, tag } = write;
        let bytes = disk_bytes(len, buf.len());
        self.start(file, tag, What::Write { offset, buf, bytes });
    }

    pub(crate) fn read(&mut self, read: DiskRead) {
        let DiskRead { file, offset, buf, len, tag } = read;
        let bytes = disk_bytes(len, buf.len());
        self.start(file, tag, What::Read { offset, buf, bytes });
    }

    pub(crate) fn sync_data(&mut self, file: FileId, tag: u64) {
        self.start(file, tag, What::Sync);
    }

    fn start(&mut self, id: FileId, tag: u64, what: What) {
        let slot = self.file_mut(id);
        slot.operations += 1;
        let data = Arc::clone(&slot.file);
        self.writers.put(Job { file: id, data, tag, what });
    }

    /// Takes what the writers have done.
    pub(super) fn take_results(&mut self) {
        while self.ready.len() < self.results_max
            && let Some(over) = self.writers.take()
        {
            let Over { file, tag, buf, result } = over;
            self.ready.push(Completion::Disk { tag, buf, result });
            self.file_mut(file).operations -= 1;
            self.finish_file(file);
        }
    }

    fn finish_file(&mut self, id: FileId) {
        let slot = self.file_mut(id);
        if slot.removed && slot.operations == 0 {
            drop(self.files.remove(id.0));
        }
    }

    fn file_mut(&mut self, id: FileId) -> &mut FileSlot {
        self.files.get_mut(id.0).expect("the file was not removed from the ring")
    }
}

impl Writers {
    /// Starts the first of at most `threads_max` threads, which knock at `bell`.
    pub(super) fn start(threads_max: u16, bell: Doorbell) -> io::Result<Self> {
        let jobs = Jobs { queue: VecDeque::new(), ended: false, lock: None };
        let shared = Shared {
            jobs: Mutex::new(jobs),
            more: Condvar::new(),
            results: SegQueue::new(),
            announced: AtomicBool::new(false),
            bell,
            durably: Durably::find(),
        };
        let mut writers = Self {
            shared: Arc::new(shared),
            threads: Vec::new(),
            threads_max: usize::from(threads_max),
            under_way: 0,
            results_left: false,
        };
        writers.add_thread()?;
        Ok(writers)
    }

    /// Jobs whose results were not taken.
    pub(super) fn under_way(&self) -> usize {
        self.under_way
    }

    /// The bell rang: perhaps for us.
    pub(super) fn announced(&mut self) {
        self.results_left = true;
    }

    /// Whether results may be there to be taken.
    pub(super) fn has_results(&self) -> bool {
        self.results_left
    }

    fn take(&mut self) -> Option<Over> {
        if !self.results_left {
            return None;
        }
        let mut over = self.shared.results.pop();
        if over.is_none() && self.shared.announced.swap(false, Ordering::AcqRel) {
            // Whoever comes from now on knocks again; who came before is found by one more look.
            over = self.shared.results.pop();
        }
        self.results_left = over.is_some();
        self.under_way -= usize::from(over.is_some());
        over
    }

    fn put(&mut self, job: Job) {
        self.under_way += 1;
        if self.under_way > self.threads.len() && self.threads.len() < self.threads_max {
            // Without another thread the job waits for one of those that are there.
            let _ = self.add_thread();
        }
        self.shared.jobs().queue.push_back(job);
        self.shared.more.notify_one();
    }

    fn add_thread(&mut self) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let builder = Builder::new().name("writer".to_owned()).stack_size(STACK_BYTES);
        self.threads.push(builder.spawn(move || shared.write())?);
        Ok(())
    }

    /// Waits until every job is over, at most `patience`; then the threads end by themselves.
    pub(super) fn finish(&mut self, patience: Duration) {
        let mut jobs = self.shared.jobs();
        jobs.ended = true;
        self.shared.more.notify_all();
        drop(jobs);
        let until = now() + patience;
        while self.threads.iter().any(|thread| !thread.is_finished()) {
            if now() >= until {
                return;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        for thread in self.threads.drain(..) {
            // A panic ends the process where that is wanted; here it was reported already.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// A writer thread's life.
    fn write(&self) {
        block_signals();
        while let Some(Job { file, data, tag, what }) = self.next() {
            let (buf, result) = perform(&data, what, self.durably);
            // Before the result: then nobody but the core has the file.
            drop(data);
            self.results.push(Over { file, tag, buf, result });
            if !self.announced.swap(true, Ordering::AcqRel) {
                self.bell.knock();
            }
        }
    }

    fn next(&self) -> Option<Job> {
        let mut jobs = self.jobs();
        loop {
            if let Some(job) = jobs.queue.pop_front() {
                return Some(job);
            }
            if jobs.ended {
                return None;
            }
            jobs = self.more.wait(jobs).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Nothing that can panic is done under it, so poison would mean nothing.
    fn jobs(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn perform(
    file: &DataFile,
    what: What,
    durably: Durably,
) -> (Option<&'static mut [u8]>, io::Result<u32>) {
    match what {
        What::Write { offset, buf, bytes } => {
            let written = durably.write(file, &buf[..bytes as usize], offset);
            (Some(buf), count(written))
        }
        What::Read { offset, buf, bytes } => {
            let read = read(file, &mut buf[..bytes as usize], offset);
            (Some(buf), count(read))
        }
        What::Sync => (None, count(rustix::fs::fdatasync(file).map(|()| 0))),
    }
}

fn count(moved: Result<usize, Errno>) -> io::Result<u32> {
    moved.map(|bytes| bytes as u32).map_err(io::Error::from)
}

/// Reads until the file or the buffer ends; an error behind bytes that came is told as an error.
fn read(file: &DataFile, buf: &mut [u8], offset: u64) -> Result<usize, Errno> {
    let mut done = 0;
    loop {
        let some = rustix::io::pread(file, &mut buf[done..], offset + done as u64)?;
        done += some;
        if some == 0 || done == buf.len() || !file.may_have_more(done as u32) {
            return Ok(done);
        }
    }
}

impl Durably {
    /// Asks the kernel, with a byte in memory, whether it takes the flag.
    fn find() -> Self {
        let byte = [IoSlice::new(&[0])];
        let written = rustix::fs::memfd_create(c"laelaps-probe", MemfdFlags::CLOEXEC)
            .and_then(|file| rustix::io::pwritev2(&file, &byte, 0, ReadWriteFlags::DSYNC));
        // The other way is right everywhere, so it is also for those who can't be asked.
        if written.is_ok() { Self::Flag } else { Self::Sync }
    }

    /// One write; when all of its bytes are counted, they are durable.
    fn write(self, file: &DataFile, bytes: &[u8], offset: u64) -> Result<usize, Errno> {
        match self {
            Self::Flag => {
                let slices = [IoSlice::new(bytes)];
                rustix::io::pwritev2(file, &slices, offset, ReadWriteFlags::DSYNC)
            }
            Self::Sync => {
                let written = rustix::io::pwrite(file, bytes, offset)?;
                rustix::fs::fdatasync(file)?;
                Ok(written)
            }
        }
    }
}

/// Keeps signals from the calling thread.
fn block_signals() {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `all` is room for a set; it lives across the call, which fills it.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: the set was filled, and the old mask is not asked for. It cannot fail for these
    // arguments, and a thread that kept its signals would only be as others are.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), std::ptr::null_mut()) };
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::slab::Key;

    #[test]
    fn there_is_a_thread_for_each_job_up_to_the_bound() {
        let path = std::env::current_exe().unwrap();
        let how = crate::file::FileOpen { create: false, write: false, direct: false };
        let data = Arc::new(crate::file::open(&path, how).unwrap());
        let mut writers = Writers::start(3, Doorbell::new(None).unwrap()).unwrap();
        for (under_way, threads) in [(1, 1), (2, 2), (3, 3), (4, 3)] {
            let file = FileId(Key { slot: 0, generation: 0 });
            writers.put(Job { file, data: Arc::clone(&data), tag: 0, what: What::Sync });
            assert_eq!((writers.under_way(), writers.threads.len()), (under_way, threads));
        }
        writers.finish(Duration::from_secs(10));
        writers.announced();
        assert_eq!(std::iter::from_fn(|| writers.take()).count(), 4);
        assert_eq!((writers.under_way(), writers.has_results()), (0, false));
    }

    #[test]
    fn writers_get_no_signals_and_end_with_their_ring() {
        let bell = Doorbell::new(None).unwrap();
        let mut writers = Writers::start(1, bell).unwrap();
        // One thread of ours is there, and after a moment it has gone to sleep with its mask set.
        let blocked = || {
            let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
            let status = |task: fs::DirEntry| fs::read_to_string(task.path().join("status")).ok();
            let writers = tasks.filter_map(status).filter(|text| text.contains("Name:\twriter\n"));
            let masks = writers.map(|text| {
                let line = text.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
                u64::from_str_radix(line.trim(), 16).unwrap()
            });
            masks.collect::<Vec<_>>()
        };
        let asked = [libc::SIGTERM, libc::SIGINT, libc::SIGALRM, libc::SIGUSR1];
        let wanted = asked.iter().fold(0u64, |mask, signal| mask | 1 << (signal - 1));
        let until = now() + Duration::from_secs(10);
        while blocked().is_empty() || blocked().iter().any(|mask| mask & wanted != wanted) {
            assert!(now() < until, "a writer would take signals: {:x?}", blocked());
            std::thread::yield_now();
        }
        writers.finish(Duration::from_secs(10));
        assert!(writers.threads.is_empty(), "they were joined");
    }
}
