//! Files and registered memory of the io_uring engine.
//!
//! ```text
//!   write_durable   WRITE, or WRITE_FIXED where the bytes lie in registered memory, with RWF_DSYNC
//!   read            READ, again for the rest until the file or the read ends
//!   sync_data       FSYNC with DATASYNC
//!
//!   a file's slot in our table = its place in the kernel's; outside of it where that was refused
//! ```
//!
//! Invariants: nothing here is cancelled, and no write is split or tried again: the journal must
//! hear exactly what happened to each. A file is closed when its last operation is over. A core
//! never blocks in a file system that does its work inside the system call (`DataFile::queues`).
//!
//! Failure: an error, or a write's short count, is handed on as it is.

#![expect(unsafe_code, reason = "registering memory passes addresses")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use io_uring::types::{Fd, FsyncFlags};
use io_uring::{opcode, squeue};

use super::Uring;
use super::ops::{DiskOp, Lent, Op};
use crate::buf::StaticRegion;
use crate::file::{DataFile, DirectoryLock, disk_bytes};
use crate::ring::{Completion, DiskRead, DiskWrite, FileId, MemoryUse};

pub(super) struct FileSlot {
    file: DataFile,
    /// It is in the kernel's table too, at the same place.
    in_table: bool,
    pub(super) operations: u32,
    removed: bool,
}

impl Uring {
    pub(crate) fn add_file(&mut self, file: DataFile) -> Result<FileId, DataFile> {
        if self.files.len() == self.files_max {
            return Err(file);
        }
        let fd = file.as_fd().as_raw_fd();
        let slot = FileSlot { file, in_table: false, operations: 0, removed: false };
        let key = self.files.insert(slot);
        if self.file_table {
            let placed = self.ring.submitter().register_files_update(key.slot, &[fd]);
            self.file_mut(FileId(key)).in_table = placed.is_ok_and(|count| count == 1);
        }
        Ok(FileId(key))
    }

    /// The kernel's table goes only with the ring's last operation, even if the process was killed
    /// long before, and what is in it stays open.
    pub(crate) fn keep_locked(&mut self, lock: &DirectoryLock) -> io::Result<()> {
        let place = if self.file_table { self.files_max } else { 0 };
        let place = u32::try_from(place).expect("a table has at most 4096 files");
        let fd = lock.as_fd().as_raw_fd();
        self.ring.submitter().register_files_update(place, &[fd]).map(drop)
    }

    pub(crate) fn remove_file(&mut self, id: FileId) {
        self.file_mut(id).removed = true;
        self.finish_file(id);
    }

    pub(crate) fn write_durable(&mut self, write: DiskWrite) {
        let DiskWrite { file, offset, buf, len, tag } = write;
        self.file_mut(file).operations += 1;
        let bytes = disk_bytes(len, buf.len());
        self.start(Op::Write(DiskOp { file, tag, offset, memory: Lent::new(buf), bytes, done: 0 }));
    }

    pub(crate) fn read(&mut self, read: DiskRead) {
        let DiskRead { file, offset, buf, len, tag } = read;
        self.file_mut(file).operations += 1;
        let bytes = disk_bytes(len, buf.len());
        self.start(Op::Read(DiskOp { file, tag, offset, memory: Lent::new(buf), bytes, done: 0 }));
    }

    pub(crate) fn sync_data(&mut self, file: FileId, tag: u64) {
        self.file_mut(file).operations += 1;
        self.start(Op::Sync { file, tag });
    }

    pub(crate) fn register_memory(&mut self, regions: &[StaticRegion]) -> MemoryUse {
        if regions.is_empty() || !self.regions.is_empty() {
            return MemoryUse::Unregistered("memory is registered once, and not none".to_owned());
        }
        let vectors = regions
            .iter()
            .map(|region| libc::iovec {
                iov_base: std::ptr::with_exposed_provenance_mut(region.addr()),
                iov_len: region.bytes(),
            })
            .collect::<Vec<_>>();
        // SAFETY: a `StaticRegion` names memory that stays mapped until the process ends.
        match unsafe { self.ring.submitter().register_buffers(&vectors) } {
            Ok(()) => {
                self.regions = regions.to_vec();
                MemoryUse::Registered
            }
            Err(error) => {
                let bytes = regions.iter().map(|region| region.bytes()).sum::<usize>();
                let advice = match error.raw_os_error() {
                    Some(libc::ENOMEM) => {
                        "raise the limit on locked memory (ulimit -l, LimitMEMLOCK=)"
                    }
                    Some(_) | None => "a region may have at most 1 GiB",
                };
                MemoryUse::Unregistered(format!(
                    "{bytes} bytes cannot be pinned ({error}): {advice}"
                ))
            }
        }
    }

    pub(super) fn write_entry(&self, write: &DiskOp) -> squeue::Entry {
        let (fd, flags) = self.bytes_target(write.file);
        let addr = write.memory.addr();
        let inside = |region: &StaticRegion| region.contains(addr.addr(), write.bytes as usize);
        match self.regions.iter().position(inside).and_then(|place| u16::try_from(place).ok()) {
            Some(place) => opcode::WriteFixed::new(fd, addr, write.bytes, place)
                .offset(write.offset)
                .rw_flags(libc::RWF_DSYNC)
                .build()
                .flags(flags),
            None => opcode::Write::new(fd, addr, write.bytes)
                .offset(write.offset)
                .rw_flags(libc::RWF_DSYNC)
                .build()
                .flags(flags),
        }
    }

    pub(super) fn read_entry(&self, read: &DiskOp) -> squeue::Entry {
        let (fd, flags) = self.bytes_target(read.file);
        opcode::Read::new(fd, read.rest(), read.bytes - read.done)
            .offset(read.offset + u64::from(read.done))
            .build()
            .flags(flags)
    }

    pub(super) fn sync_entry(&self, file: FileId) -> squeue::Entry {
        let (fd, flags) = self.target(file);
        opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build().flags(flags)
    }

    /// Goes on with a read that ended early, where it may.
    pub(super) fn read_some(&mut self, mut read: DiskOp, result: i32) {
        let some = u32::try_from(result).unwrap_or(0);
        read.done += some;
        let file = &self.file(read.file).file;
        if some > 0 && read.done < read.bytes && file.may_have_more(read.done) {
            self.start(Op::Read(read));
            return;
        }
        let result = if result < 0 { result } else { read.done.cast_signed() };
        self.disk_done(read.file, read.tag, Some(read.memory.back()), result);
    }

    pub(super) fn disk_done(
        &mut self,
        file: FileId,
        tag: u64,
        buf: Option<&'static mut [u8]>,
        result: i32,
    ) {
        let result = u32::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
        self.ready.push(Completion::Disk { tag, buf, result });
        self.file_mut(file).operations -= 1;
        self.finish_file(file);
    }

    fn finish_file(&mut self, id: FileId) {
        let slot = self.file(id);
        if !slot.removed || slot.operations > 0 {
            return;
        }
        if slot.in_table {
            // The kernel's table would only keep the file open until its place is taken again.
            let _ = self.ring.submitter().register_files_update(id.0.slot, &[-1]);
        }
        drop(self.files.remove(id.0));
    }

    /// The number by which an entry names a file, and the flag that says which kind of number.
    fn target(&self, id: FileId) -> (Fd, squeue::Flags) {
        let slot = self.file(id);
        if slot.in_table {
            let place = i32::try_from(id.0.slot).expect("a table has at most 4096 files");
            (Fd(place), squeue::Flags::FIXED_FILE)
        } else {
            (Fd(slot.file.as_fd().as_raw_fd()), squeue::Flags::empty())
        }
    }

    /// The same for an operation that moves bytes: it may take its time in the kernel, so where the
    /// file system doesn't queue it, one of the kernel's own threads waits for it, not the core.
    fn bytes_target(&self, id: FileId) -> (Fd, squeue::Flags) {
        let (fd, flags) = self.target(id);
        let queues = self.file(id).file.queues();
        (fd, if queues { flags } else { flags | squeue::Flags::ASYNC })
    }

    fn file(&self, id: FileId) -> &FileSlot {
        self.files.get(id.0).expect("the file is in the ring until its last operation is over")
    }

    pub(super) fn file_mut(&mut self, id: FileId) -> &mut FileSlot {
        self.files.get_mut(id.0).expect("the file was not removed from the ring")
    }
}
