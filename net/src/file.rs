//! Files and directories of the journal, and what the file system under them is worth.
//!
//! ```text
//!   volume(dir)            which file system, volatile or not, room left
//!   DirectoryLock::acquire one process a directory; waits for the one that holds it
//!   open(path, FileOpen)   O_DIRECT where the file system takes it, else buffered, and says which
//!     DataFile  prewrite   zeros, then fsync: the blocks are real before the first durable write
//!               -> Ring::add_file
//!   sync_directory(dir)    makes created and removed names durable
//! ```
//!
//! Everything here blocks: for starts, tools and threads beside the cores, never a core's loop.
//!
//! Invariants: a file that isn't direct says so in [`DataFile::direct`]; a pre-written file has no
//! unwritten extents (they cost every durable write a metadata transaction, 1.9 times its time).
//!
//! Failure: every error is the kernel's, with its number. A lock that is held names its holder.

#![expect(unsafe_code, reason = "statfs and statx have no safe form in std")]

use std::ffi::CString;
use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::buf::Pages;
use crate::now;

/// Bytes that [`DataFile::prewrite`] writes at a time.
pub const PREWRITE_CHUNK: usize = 1 << 20;

/// A direct read's unit in bytes where the kernel doesn't tell it.
const DIRECT_BLOCK: u32 = 512;

/// The most bytes that the kernel moves in one call (`MAX_RW_COUNT`, with 4 KiB pages).
const DISK_BYTES_MAX: usize = 0x7FFF_F000;

/// How to open a [`DataFile`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileOpen {
    /// Make it; an existing file is an error (`AlreadyExists`).
    pub create: bool,
    /// For writing too, not only for reading.
    pub write: bool,
    /// Past the page cache, if the file system can.
    pub direct: bool,
}

/// An open file for a ring or for blocking use.
#[derive(Debug)]
pub struct DataFile {
    file: File,
    path: PathBuf,
    direct: bool,
    alignment: Option<u32>,
    queues: bool,
}

/// Opens a file.
///
/// # Errors
/// What `open` said. A refused `O_DIRECT` is not an error: see [`DataFile::direct`].
pub fn open(path: &Path, how: FileOpen) -> io::Result<DataFile> {
    let mut options = OpenOptions::new();
    options.read(true).write(how.write).create_new(how.create);
    let (file, direct) = if how.direct {
        // Buffered open first: a refused O_DIRECT open leaves the file it created behind.
        let buffered = options.open(path)?;
        options.create_new(false).custom_flags(libc::O_DIRECT);
        match options.open(path) {
            Ok(file) => (file, true),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => (buffered, false),
            Err(error) => return Err(error),
        }
    } else {
        (options.open(path)?, false)
    };
    let alignment = if direct { direct_alignment(file.as_fd())? } else { None };
    let queues = direct && QUEUEING.contains(&kind_number(file.as_fd())?);
    Ok(DataFile { file, path: path.to_owned(), direct, alignment, queues })
}

impl DataFile {
    /// Whether reads and writes go past the page cache.
    pub fn direct(&self) -> bool {
        self.direct
    }

    /// The multiple in bytes that offsets, lengths and addresses of direct I/O must keep, where the
    /// kernel tells (`statx`, 6.1).
    pub fn alignment(&self) -> Option<u32> {
        self.alignment
    }

    /// Whether reads and writes are handed to the disk and waited for elsewhere. Otherwise (FUSE,
    /// network, anything buffered) they may be done inside the system call that asks for them.
    pub fn queues(&self) -> bool {
        self.queues
    }

    /// Whether a read that stopped after `bytes` must be asked for the rest. One may end early
    /// before a place that the disk can't give: only the next one tells an error from the end of
    /// the file, and the journal takes the end for "never written". A direct read that ends inside
    /// a block has reached the end.
    pub(crate) fn may_have_more(&self, bytes: u32) -> bool {
        let block = if self.direct { self.alignment.unwrap_or(DIRECT_BLOCK) } else { 1 };
        bytes.is_multiple_of(block)
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size in bytes.
    ///
    /// # Errors
    /// What `stat` said.
    pub fn bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Makes the file `bytes` long, every byte zero and on the disk, with its size durable.
    ///
    /// # Errors
    /// The first failed write or sync; no room is `StorageFull`. The file is then not usable.
    pub fn prewrite(&self, bytes: u64) -> io::Result<()> {
        let zeros = Pages::new(PREWRITE_CHUNK)?;
        let mut at = 0;
        while at < bytes {
            let left = bytes - at;
            let chunk = usize::try_from(left).map_or(PREWRITE_CHUNK, |n| n.min(PREWRITE_CHUNK));
            self.file.write_all_at(&zeros[..chunk], at)?;
            at += chunk as u64;
        }
        self.file.sync_all()
    }

    /// Reads exactly `buf.len()` bytes; aligned like the file's direct I/O.
    ///
    /// # Errors
    /// `UnexpectedEof` beyond the end, else what `pread` said.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    /// Writes all of `buf` and makes it durable; aligned like the file's direct I/O.
    ///
    /// # Errors
    /// What `pwrite` or `fdatasync` said. Don't retry: the kernel reports a lost write only once.
    pub fn write_durable_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(buf, offset)?;
        self.file.sync_data()
    }
}

/// The length of one read or write of a ring.
///
/// # Panics
/// If it is out of bounds.
pub(crate) fn disk_bytes(len: usize, buf_bytes: usize) -> u32 {
    assert!(len >= 1 && len <= buf_bytes, "{len} bytes of a buffer of {buf_bytes}");
    assert!(len <= DISK_BYTES_MAX, "{len} bytes in one disk operation");
    len as u32
}

impl AsFd for DataFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Makes the names in a directory durable: after files were created, renamed or removed.
///
/// # Errors
/// What `open` or `fsync` said.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// The file system under a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its type: `ext4`, `tmpfs`, or `0x…` where we don't know the number.
    pub kind: String,
    /// Its content is gone after a restart of the machine (tmpfs, ramfs).
    pub volatile: bool,
    /// Another machine keeps it (NFS, SMB): its syncs and locks are that machine's word.
    pub remote: bool,
    /// Bytes that an ordinary user may still write.
    pub free_bytes: u64,
}

/// What each file system's number stands for: kind, volatile, remote. From `linux/magic.h`.
const FILE_SYSTEMS: [(u32, &str, bool, bool); 13] = [
    (0x0000_EF53, "ext4", false, false),
    (0x5846_5342, "xfs", false, false),
    (0x9123_683E, "btrfs", false, false),
    (0xF2F5_2010, "f2fs", false, false),
    (0xCA45_1A4E, "bcachefs", false, false),
    (0x2FC1_2FC1, "zfs", false, false),
    (0x794C_7630, "overlay", false, false),
    (0x6573_5546, "fuse", false, false),
    (0x0102_1994, "tmpfs", true, false),
    (0x8584_58F6, "ramfs", true, false),
    (0x0000_6969, "nfs", false, true),
    (0xFF53_4D42, "cifs", false, true),
    (0xFE53_4D42, "smb2", false, true),
];

/// The numbers of those known to queue direct reads and writes: ext4, xfs, btrfs, f2fs.
const QUEUEING: [u32; 4] = [0x0000_EF53, 0x5846_5342, 0x9123_683E, 0xF2F5_2010];

/// The number of the file system that holds an open file.
fn kind_number(file: BorrowedFd<'_>) -> io::Result<u32> {
    let mut stat = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: `file` is open and `stat` is room for a statfs; both live across the call.
    if unsafe { libc::fstatfs(file.as_raw_fd(), stat.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fstatfs returned 0, so the kernel filled the whole structure.
    let stat = unsafe { stat.assume_init() };
    // The numbers are 32 bits wide; the field is wider and signed.
    Ok(stat.f_type as u32)
}

/// Whether this machine's kernel alone gives locks on files there. Of a file system that we don't
/// know nothing is assumed.
fn locks_are_local(number: u32) -> bool {
    let known = FILE_SYSTEMS.iter().find(|(known, ..)| *known == number);
    known.is_some_and(|(_, kind, _, remote)| !remote && *kind != "fuse")
}

/// Looks at the file system that holds `path`.
///
/// # Errors
/// What `statfs` said, such as `NotFound`.
pub fn volume(path: &Path) -> io::Result<Volume> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut stat = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: `name` is a NUL-terminated string and `stat` is room for a statfs; both live across
    // the call.
    if unsafe { libc::statfs(name.as_ptr(), stat.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: statfs returned 0, so the kernel filled the whole structure.
    let stat = unsafe { stat.assume_init() };
    // The numbers are 32 bits wide; the field is wider and signed.
    let magic = stat.f_type as u32;
    let free_bytes = stat.f_bavail.saturating_mul(u64::try_from(stat.f_bsize).unwrap_or(0));
    let known = FILE_SYSTEMS.iter().find(|(number, ..)| *number == magic);
    Ok(match known {
        Some(&(_, kind, volatile, remote)) => {
            Volume { kind: kind.to_owned(), volatile, remote, free_bytes }
        }
        None => {
            let kind = format!("{magic:#010x}");
            Volume { kind, volatile: false, remote: false, free_bytes }
        }
    })
}

fn direct_alignment(file: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    let mut stat = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is a NUL-terminated empty string, which AT_EMPTY_PATH reads as the open
    // descriptor; `stat` is room for a statx and lives across the call.
    let result = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            stat.as_mut_ptr(),
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: every field of a statx is an integer, and it was zeroed before the kernel filled it.
    let stat = unsafe { stat.assume_init() };
    let told = stat.stx_mask & libc::STATX_DIOALIGN != 0 && stat.stx_dio_offset_align != 0;
    Ok(told.then(|| stat.stx_dio_offset_align.max(stat.stx_dio_mem_align)))
}

/// The sole right to a data directory, until it is dropped or the process ends, and every ring that
/// keeps it ([`crate::Ring::keep_locked`]) has done its last write.
#[derive(Debug)]
pub struct DirectoryLock {
    file: File,
}

impl AsFd for DirectoryLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Why a directory can't be locked.
#[derive(Debug)]
pub enum LockError {
    /// Another process holds it and kept it for the whole wait.
    Held {
        /// The lock's file.
        path: PathBuf,
        /// What the holder wrote into it, mostly its process number.
        holder: String,
    },
    /// The lock's file can't be made, or locking isn't possible there.
    Io {
        /// The lock's file.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
}

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held { path, holder } => write!(
                f,
                "{} is locked by another process ({holder}): stop it, or use another directory",
                path.display()
            ),
            Self::Io { path, error } => write!(f, "cannot lock {}: {error}", path.display()),
        }
    }
}

impl std::error::Error for LockError {}

/// The name of the lock's file in its directory.
const LOCK_NAME: &str = "lock";

/// How often a held lock is tried again.
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// How long the kernel may take to let go of the rings of a process that is gone; some 40 ms here.
const LOCK_GRACE: Duration = Duration::from_secs(1);

impl DirectoryLock {
    /// Locks `directory` (with `flock` on a file in it), waiting at most `wait` for another
    /// process, and a second where that process is gone but its last writes are not. While it
    /// waits, `waiting` is told who holds the lock and for how long we wait by now: at once, then
    /// every `LOCK_RETRY` (20 ms).
    ///
    /// # Errors
    /// [`LockError::Held`] when the wait is over, [`LockError::Io`] at once.
    pub fn acquire(
        directory: &Path,
        wait: Duration,
        mut waiting: impl FnMut(&str, Duration),
    ) -> Result<Self, LockError> {
        let path = directory.join(LOCK_NAME);
        let io_error = |error| LockError::Io { path: path.clone(), error };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(&path).map_err(io_error)?;
        let start = now();
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => {
                    let holder = holder(&mut file);
                    let waited = start.elapsed();
                    let wait = if is_there(&holder) { wait } else { wait.max(LOCK_GRACE) };
                    if waited >= wait {
                        return Err(LockError::Held { path, holder });
                    }
                    waiting(&holder, waited);
                    std::thread::sleep(LOCK_RETRY.min(wait - waited));
                }
                Err(TryLockError::Error(error)) => return Err(io_error(error)),
            }
        }
        write_holder(&mut file).map_err(io_error)?;
        Ok(Self { file })
    }

    /// Whether no other process can hold it, on whatever machine: this one's kernel alone gives it.
    /// It is asked of the file that is locked; another one may be mounted over its path by now.
    #[must_use]
    pub fn is_sole(&self) -> bool {
        kind_number(self.as_fd()).is_ok_and(locks_are_local)
    }
}

fn holder(file: &mut File) -> String {
    let mut text = [0; 64];
    let read = file.rewind().and_then(|()| file.read(&mut text)).unwrap_or(0);
    let text = String::from_utf8_lossy(&text[..read]);
    if text.trim().is_empty() { "unknown".to_owned() } else { text.trim().to_owned() }
}

/// Whether a holder, by what it wrote, is a process that runs here.
fn is_there(holder: &str) -> bool {
    holder.strip_prefix("process ").is_some_and(|id| Path::new("/proc").join(id).exists())
}

fn write_holder(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "process {}", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_sole_only_where_this_kernel_alone_gives_it() {
        for (number, is_local) in [
            (0x0000_EF53, true),
            (0x0102_1994, true),
            (0x0000_6969, false),
            (0xFF53_4D42, false),
            (0xFE53_4D42, false),
            (0x6573_5546, false),
            (0x00C3_6400, false),
        ] {
            assert_eq!(locks_are_local(number), is_local, "{number:#x}");
        }
    }
}
