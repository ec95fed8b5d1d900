//! Files of one ring, on the disk that holds the build.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use net::buf::{Pages, StaticRegion};
use net::file::{self, DataFile, DirectoryLock, FileOpen, LockError};
use net::{Completion, DiskRead, DiskWrite, Engine, FileId, MemoryUse, RingConfig};

use crate::{Core, on};

over_both_engines! {
    several_durable_writes_in_flight,
    registered_memory_writes_the_same,
    memory_that_is_refused_is_used_all_the_same,
    the_kernels_word_is_handed_on,
    a_read_that_is_cut_short_goes_on,
    a_removed_file_ends_its_writes_first,
    a_dropped_ring_finishes_its_writes,
    #[should_panic(expected = "was not removed")]
    a_dead_file_id_is_a_bug,
    a_ring_keeps_the_lock_as_long_as_it_may_write,
}

const BLOCK: usize = 4096;

/// A directory that is removed in the end, beside the test's binary: `/tmp` may be memory.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        // The same test runs once for each engine, at the same time.
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let beside = std::env::current_exe().unwrap();
        let path = beside.with_file_name(format!("net-{name}-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn create(path: &Path, bytes: u64) -> DataFile {
    let file = file::open(path, FileOpen { create: true, write: true, direct: true }).unwrap();
    file.prewrite(bytes).unwrap();
    file
}

fn blocks(count: usize) -> (Vec<&'static mut [u8]>, StaticRegion) {
    let (memory, region) = Pages::new(count * BLOCK).unwrap().leak();
    (memory.chunks_mut(BLOCK).collect(), region)
}

/// Writes block `n` of the file from each buffer, all at once, several rounds, then reads them
/// back.
fn write_and_read_back(core: &mut Core, file: FileId, mut buffers: Vec<&'static mut [u8]>) {
    let count = buffers.len();
    for round in 1..=20u8 {
        for (at, buf) in buffers.drain(..).enumerate() {
            buf.fill(round ^ at as u8);
            let (offset, tag) = ((at * BLOCK) as u64, at as u64);
            core.ring.write_durable(DiskWrite { file, offset, buf, len: BLOCK, tag });
        }
        let mut back = (0..count).map(|_| None).collect::<Vec<_>>();
        for _ in 0..count {
            let Completion::Disk { tag, buf, result } = core.next() else {
                panic!("something else than a disk completion");
            };
            assert_eq!(result.unwrap(), BLOCK as u32);
            let slot = &mut back[tag as usize];
            assert!(slot.is_none(), "tag {tag} came twice");
            *slot = buf;
        }
        buffers.extend(back.into_iter().flatten());
        assert_eq!(buffers.len(), count);
    }
    for (at, buf) in buffers.into_iter().enumerate() {
        buf.fill(0);
        let (offset, tag) = ((at * BLOCK) as u64, at as u64);
        core.ring.read(DiskRead { file, offset, buf, len: BLOCK, tag });
    }
    for _ in 0..count {
        let Completion::Disk { tag, buf: Some(buf), result } = core.next() else {
            panic!("something else than a read");
        };
        assert_eq!(result.unwrap(), BLOCK as u32);
        assert!(buf.iter().all(|&byte| byte == 20 ^ tag as u8));
    }
}

fn several_durable_writes_in_flight(engine: Engine) {
    let scratch = Scratch::new("writes");
    let mut core = Core::new(on(engine));
    let path = scratch.0.join("a");
    drop(create(&path, 64 * 4096));
    for direct in [true, false] {
        let how = FileOpen { create: false, write: true, direct };
        let file = core.ring.add_file(file::open(&path, how).unwrap()).unwrap();
        let (buffers, _) = blocks(16);
        write_and_read_back(&mut core, file, buffers);
    }
}

fn registered_memory_writes_the_same(engine: Engine) {
    let scratch = Scratch::new("registered");
    let mut core = Core::new(on(engine));
    let (mut buffers, first) = blocks(8);
    let (more, second) = blocks(4);
    // Memory that isn't registered works beside memory that is.
    let (unregistered, _) = blocks(2);
    let uses = [&[first, second][..], &[first]].map(|memory| core.ring.register_memory(memory));
    match engine {
        Engine::Uring => {
            assert!(matches!(uses, [MemoryUse::Registered, MemoryUse::Unregistered(_)]));
        }
        Engine::Epoll => assert_eq!(uses, [MemoryUse::Unneeded, MemoryUse::Unneeded]),
    }
    buffers.extend(more);
    buffers.extend(unregistered);
    let file = core.ring.add_file(create(&scratch.0.join("a"), 64 * 4096)).unwrap();
    write_and_read_back(&mut core, file, buffers);
}

fn memory_that_is_refused_is_used_all_the_same(engine: Engine) {
    let scratch = Scratch::new("refused");
    let mut core = Core::new(on(engine));
    // Over the kernel's 1 GiB a region; never touched but for its first blocks.
    let (memory, region) = Pages::new((1 << 30) + BLOCK).unwrap().leak();
    match core.ring.register_memory(&[region]) {
        MemoryUse::Unregistered(why) => assert!(why.contains("cannot be pinned"), "{why}"),
        MemoryUse::Unneeded => assert_eq!(engine, Engine::Epoll),
        MemoryUse::Registered => panic!("more than 1 GiB were registered"),
    }
    let file = core.ring.add_file(create(&scratch.0.join("a"), 64 * 4096)).unwrap();
    write_and_read_back(&mut core, file, memory.chunks_mut(BLOCK).take(4).collect());
}

fn the_kernels_word_is_handed_on(engine: Engine) {
    let scratch = Scratch::new("word");
    let path = scratch.0.join("a");
    drop(create(&path, 2 * 4096));
    let mut core = Core::new(on(engine));
    let read_only = FileOpen { create: false, write: false, direct: true };
    let file = core.ring.add_file(file::open(&path, read_only).unwrap()).unwrap();
    let (mut buffers, _) = blocks(2);
    // A read over the end is short, one beyond it is empty, a write where none may be is refused.
    for (offset, expected) in [(4096, Some(4096)), (8192, Some(0)), (0, None)] {
        let (two, tag) = (buffers.pop().unwrap(), offset);
        match expected {
            Some(_) => core.ring.read(DiskRead { file, offset, buf: two, len: BLOCK, tag }),
            None => core.ring.write_durable(DiskWrite { file, offset, buf: two, len: BLOCK, tag }),
        }
        let Completion::Disk { buf: Some(buf), result, .. } = core.next() else {
            panic!("something else than a disk completion");
        };
        match expected {
            Some(bytes) => assert_eq!(result.unwrap(), bytes),
            None => assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EBADF)),
        }
        buffers.push(buf);
    }
    core.ring.sync_data(file, 77);
    assert!(matches!(core.next(), Completion::Disk { tag: 77, buf: None, result: Ok(0) }));
}

/// The kernel makes this file as it is read, a page or so at a time.
fn a_read_that_is_cut_short_goes_on(engine: Engine) {
    let path = Path::new("/proc/self/smaps");
    let (memory, _) = Pages::new(4 * BLOCK).unwrap().leak();
    let (buf, len) = (memory, 4 * BLOCK);
    let at_once = fs::File::open(path).unwrap().read_at(buf, 0).unwrap();
    assert!(at_once < len, "the kernel gave {at_once} bytes at once: this test shows nothing");
    let mut core = Core::new(on(engine));
    let how = FileOpen { create: false, write: false, direct: false };
    let file = core.ring.add_file(file::open(path, how).unwrap()).unwrap();
    core.ring.read(DiskRead { file, offset: 0, buf, len, tag: 1 });
    match core.next() {
        Completion::Disk { tag: 1, result, .. } => assert_eq!(result.unwrap() as usize, len),
        other => panic!("{other:?} instead of a read"),
    }
}

fn a_removed_file_ends_its_writes_first(engine: Engine) {
    let scratch = Scratch::new("removed");
    let config = RingConfig { files_max: 1, ..on(engine) };
    let mut core = Core::new(config);
    for round in 0..3 {
        let path = scratch.0.join(format!("{round}"));
        let file = core.ring.add_file(create(&path, 8 * 4096)).unwrap();
        let other = create(&scratch.0.join(format!("{round}-other")), 4096);
        drop(core.ring.add_file(other).unwrap_err());
        for (at, buf) in blocks(8).0.into_iter().enumerate() {
            buf.fill(9);
            let (offset, tag) = ((at * BLOCK) as u64, at as u64);
            core.ring.write_durable(DiskWrite { file, offset, buf, len: BLOCK, tag });
        }
        core.ring.remove_file(file);
        for _ in 0..8 {
            assert!(matches!(core.next(), Completion::Disk { result: Ok(4096), .. }));
        }
        assert_eq!(fs::read(path).unwrap(), [9; 8 * BLOCK]);
    }
}

fn a_dropped_ring_finishes_its_writes(engine: Engine) {
    let scratch = Scratch::new("dropped");
    let path = scratch.0.join("a");
    let mut core = Core::new(on(engine));
    let file = core.ring.add_file(create(&path, 32 * 4096)).unwrap();
    for (at, buf) in blocks(32).0.into_iter().enumerate() {
        buf.fill(5);
        let (offset, tag) = ((at * BLOCK) as u64, at as u64);
        core.ring.write_durable(DiskWrite { file, offset, buf, len: BLOCK, tag });
    }
    drop(core);
    assert_eq!(fs::read(path).unwrap(), [5; 32 * BLOCK]);
}

fn a_dead_file_id_is_a_bug(engine: Engine) {
    let scratch = Scratch::new("dead");
    let mut core = Core::new(on(engine));
    let file = core.ring.add_file(create(&scratch.0.join("a"), 4096)).unwrap();
    core.ring.remove_file(file);
    core.ring.sync_data(file, 0);
}

#[test]
fn a_prewritten_file_is_zeroes_of_its_size() {
    let scratch = Scratch::new("prewritten");
    let path = scratch.0.join("a");
    let bytes = (file::PREWRITE_CHUNK * 2 + BLOCK) as u64;
    let file = create(&path, bytes);
    assert_eq!(file.bytes().unwrap(), bytes);
    assert!(fs::read(&path).unwrap().iter().all(|&byte| byte == 0));
    let (mut buffers, _) = blocks(1);
    let buf = &mut *buffers[0];
    buf.fill(3);
    file.write_durable_at(buf, 4096).unwrap();
    buf.fill(0);
    file.read_at(buf, 4096).unwrap();
    assert!(buf.iter().all(|&byte| byte == 3));
    file::sync_directory(&scratch.0).unwrap();
    if let Some(alignment) = file.alignment() {
        assert!(file.direct() && alignment.is_power_of_two());
    }
    let again = file::open(&path, FileOpen { create: true, write: true, direct: true });
    assert_eq!(again.unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
}

#[test]
fn a_refused_direct_open_is_buffered_and_says_so() {
    let how = FileOpen { create: false, write: false, direct: true };
    let file = file::open(Path::new("/proc/self/status"), how).unwrap();
    assert!(!file.direct() && !file.queues());
    assert_eq!(file.alignment(), None);
}

#[test]
fn a_full_disk_is_told_as_full() {
    let how = FileOpen { create: false, write: true, direct: false };
    let error = file::open(Path::new("/dev/full"), how).unwrap().prewrite(4096).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
}

#[test]
fn memory_is_told_from_disk() {
    let memory = file::volume(Path::new("/dev/shm")).unwrap();
    assert_eq!((memory.kind.as_str(), memory.volatile), ("tmpfs", true));
    let disk = file::volume(&std::env::current_exe().unwrap()).unwrap();
    assert!(!disk.volatile && disk.free_bytes > 0, "{disk:?}");
    assert!(file::volume(Path::new("/nowhere")).is_err());
}

#[test]
fn a_directory_has_one_holder() {
    let scratch = Scratch::new("lock");
    let lock = |wait, told: &mut Vec<String>| {
        DirectoryLock::acquire(&scratch.0, wait, |holder, _| told.push(holder.to_owned()))
    };
    let mut told = Vec::new();
    let held = lock(Duration::ZERO, &mut told).unwrap();
    // By the file that is locked: where its directory is now, or what is there, says nothing.
    let elsewhere = scratch.0.with_extension("moved");
    fs::rename(&scratch.0, &elsewhere).unwrap();
    assert!(held.is_sole());
    fs::rename(&elsewhere, &scratch.0).unwrap();
    let error = lock(Duration::from_millis(250), &mut told).unwrap_err();
    let me = format!("process {}", std::process::id());
    assert!(matches!(&error, LockError::Held { holder, .. } if *holder == me), "{error}");
    assert!(told.len() >= 2 && told.iter().all(|holder| *holder == me), "{told:?}");
    let waiting = scratch.0.clone();
    let waiter = std::thread::Builder::new()
        .name("waiter".to_owned())
        .spawn(move || DirectoryLock::acquire(&waiting, crate::PATIENCE, |_, _| {}).map(drop));
    std::thread::sleep(Duration::from_millis(50));
    drop(held);
    waiter.unwrap().join().unwrap().unwrap();
    let missing = DirectoryLock::acquire(&scratch.0.join("no"), Duration::ZERO, |_, _| {});
    assert!(matches!(missing, Err(LockError::Io { .. })));
}

fn a_ring_keeps_the_lock_as_long_as_it_may_write(engine: Engine) {
    let scratch = Scratch::new("kept");
    let lock = |wait| DirectoryLock::acquire(&scratch.0, wait, |_, _| {});
    for files_max in [64, 4096] {
        let mut core = Core::new(RingConfig { files_max, ..on(engine) });
        let held = lock(crate::PATIENCE).unwrap();
        core.ring.keep_locked(&held).unwrap();
        // Files that come and go don't push it out.
        for round in 0..3 {
            let path = scratch.0.join(format!("{files_max}-{round}"));
            let file = core.ring.add_file(create(&path, 4096)).unwrap();
            core.ring.remove_file(file);
        }
        drop(held);
        assert!(matches!(lock(Duration::ZERO), Err(LockError::Held { .. })));
        // As if its holder were gone: then there is a moment's patience.
        fs::write(scratch.0.join("lock"), "process 0\n").unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| lock(Duration::ZERO).map(drop));
            std::thread::sleep(Duration::from_millis(100));
            assert!(!waiter.is_finished());
            drop(core);
            waiter.join().unwrap().unwrap();
        });
    }
}
