//! The io_uring engine: one ring, its operations, and the loop around `io_uring_enter`.
//!
//! ```text
//!   command -> slab slot -> submission entry -> [SQ, or the backlog while it is full]
//!
//!   wait:  1 prepare   backlog, starved receives, rested listeners, free buffers published
//!          2 enter     submit; block unless something is ready; maybe poll first
//!                      (a timeout is the ring's alarm: set only where it would ring too late)
//!          3 reap      at most `completions_per_wait_max`: slot -> completion -> caller
//!
//!   drop:  1 close every socket and listener, cancel the bell     4 close the ring
//!          2 wait until no operation is left (disk included)      5 free the memory
//!          3 take files, memory and buffers back from the kernel
//! ```
//!
//! Setup: `SINGLE_ISSUER | DEFER_TASKRUN | TASKRUN_FLAG`, `SUBMIT_ALL`, `CLAMP` is off so that a
//! size that isn't given is an error. Completions are posted only inside our own `enter`.
//!
//! The alarm is one timer in the kernel for all waits. A wait that has a timeout of its own sets a
//! timer and takes it back again when something comes, on the way of every message. Most often the
//! alarm that was set before rings soon enough; a wait that it ends too early returns with nothing.
//!
//! Invariants: each operation under way is a slot of `ops`, which owns its memory; `start` is the
//! only place that writes an entry with an address in it, but for the alarm's time. What is
//! cancelled is still waited for, and a cancelled operation that succeeded all the same is
//! honoured.
//!
//! Failure: an error of `enter` other than "nothing yet" or "try again" loses the ring. A drop that
//! can't drain within `DRAIN_MAX` leaks the memory that the kernel may still write to.

#![expect(unsafe_code, reason = "submission entries carry addresses")]

mod buffers;
mod disk;
mod ops;
mod sockets;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

use self::buffers::Buffers;
use self::disk::FileSlot;
use self::ops::{Op, UserData};
use self::sockets::{Listener, Socket};
use crate::buf::StaticRegion;
use crate::doorbell::Doorbell;
use crate::lease::RecvLease;
use crate::now;
use crate::pace::Pace;
use crate::probe::refusal;
use crate::ring::{Completion, DRAIN_MAX, RingConfig, RingError, RingStats, SocketId, WAIT_MAX};
use crate::slab::{Key, Slab};

/// The largest send in one operation, in bytes; a longer buffer takes several.
const SEND_BYTES_MAX: usize = 1 << 30;

pub(crate) struct Uring {
    /// First, so that it is closed before the memory below is freed.
    ring: IoUring,
    ops: Slab<Op>,
    buffers: Buffers,
    bell: Doorbell,
    sockets: Slab<Socket>,
    sockets_max: usize,
    listeners: Slab<Listener>,
    files: Slab<FileSlot>,
    files_max: usize,
    /// The kernel has a table of `files_max` files.
    file_table: bool,
    /// The registered memory; a region's place is its number in the kernel.
    regions: Vec<StaticRegion>,
    /// Sockets whose receive waits for a free buffer; some may have changed their mind.
    starved: VecDeque<SocketId>,
    /// Entries that found the submission queue full.
    backlog: VecDeque<squeue::Entry>,
    ready: Vec<Completion>,
    reaped: Vec<cqueue::Entry>,
    reap_max: usize,
    pace: Pace,
    /// The alarm that is set, and when it rings.
    alarm: Option<(Key, Instant)>,
    /// In how long; the kernel reads it while it takes the entry, and keeps no address.
    alarm_time: Box<Timespec>,
    counters: RingStats,
    dropping: bool,
}

/// An alarm may ring so much later than a wait asks for: what the clock has moved on between two
/// looks at the same deadline sets no new one.
const ALARM_SLACK: Duration = Duration::from_micros(20);

/// Makes a ring with all the flags we rely on; the probe uses it too.
pub(crate) fn setup(entries: u32, completions: u32) -> io::Result<IoUring> {
    IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .setup_cqsize(completions)
        .build(entries)
}

/// The kernel gives the memory of a ring back a little after its end.
pub(crate) const RELEASED_WITHIN: Duration = Duration::from_secs(1);

/// Tries again for a while where memory is what lacks: a process that was killed a moment ago, or a
/// probe, may still hold what it had locked.
pub(crate) fn patiently<T>(mut make: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let since = now();
    loop {
        let made = make();
        let short = made.as_ref().err().and_then(io::Error::raw_os_error) == Some(libc::ENOMEM);
        if !short || since.elapsed() > RELEASED_WITHIN {
            return made;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Asks for a buffer ring of one small buffer, which needs Linux 5.19 and memory.
pub(crate) fn try_buffers(ring: &IoUring) -> io::Result<()> {
    Buffers::new(ring, 1, 256).map(|mut buffers| buffers.unregister(ring))
}

impl Uring {
    pub(crate) fn new(config: RingConfig) -> Result<Self, RingError> {
        let setup_error = |part| move |error| RingError::Setup { part, error };
        let ring = patiently(|| setup(config.entries, config.completions))
            .map_err(|error| RingError::Refused(refusal(error)))?;
        let (count, bytes) = (config.recv_buffers, config.recv_buffer_bytes);
        let buffers = patiently(|| Buffers::new(&ring, count, bytes))
            .map_err(setup_error("receive buffers"))?;
        // SAFETY: the descriptor is the ring's own, and the ring lives beyond the call.
        let descriptor = unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) };
        let bell = Doorbell::new(Some(descriptor)).map_err(setup_error("doorbell"))?;
        // A table beyond the limit on descriptors is refused: then files are looked up each time.
        // The place behind the files is the lock's; see `keep_locked`.
        let submitter = ring.submitter();
        let file_table = submitter.register_files_sparse(config.files_max + 1).is_ok();
        if !file_table {
            submitter.register_files_sparse(1).map_err(setup_error("table of files"))?;
        }
        let mut uring = Self {
            ring,
            ops: Slab::new(),
            buffers,
            bell,
            sockets: Slab::new(),
            sockets_max: config.sockets_max,
            listeners: Slab::new(),
            files: Slab::new(),
            files_max: config.files_max as usize,
            file_table,
            regions: Vec::new(),
            starved: VecDeque::new(),
            backlog: VecDeque::new(),
            ready: Vec::new(),
            reaped: Vec::new(),
            reap_max: config.completions_per_wait_max,
            pace: Pace::new(config.spin),
            alarm: None,
            alarm_time: Box::default(),
            counters: RingStats::default(),
            dropping: false,
        };
        uring.start(Op::Bell);
        Ok(uring)
    }

    pub(crate) fn wait(
        &mut self,
        timeout: Option<Duration>,
        completions: &mut Vec<Completion>,
    ) -> Result<(), RingError> {
        self.prepare();
        let entered = self.enter(timeout);
        self.reap();
        completions.append(&mut self.ready);
        entered.map_err(RingError::Wait)
    }

    pub(crate) fn bytes(&self, lease: &RecvLease) -> &[u8] {
        self.buffers.bytes(lease)
    }

    pub(crate) fn release(&mut self, lease: RecvLease) {
        self.buffers.release(lease);
    }

    pub(crate) fn doorbell(&self) -> Doorbell {
        self.bell.clone()
    }

    pub(crate) fn knock(&mut self, bell: &Doorbell) {
        match bell.uring() {
            Some(_) => drop(self.start(Op::Knock(bell.clone()))),
            None => bell.knock(),
        }
    }

    pub(crate) fn stats(&self) -> RingStats {
        RingStats {
            leases_out: u32::from(self.buffers.out()),
            sockets: u32::try_from(self.sockets.len()).unwrap_or(u32::MAX),
            operations: u32::try_from(self.ops.len() - usize::from(self.alarm.is_some()))
                .unwrap_or(u32::MAX),
            ..self.counters
        }
    }

    /// Gives an operation to the kernel: into the slab first, then its entry into the queue.
    fn start(&mut self, op: Op) -> Key {
        let key = self.ops.insert(op);
        let entry = self.entry(key).user_data(UserData::operation(key).encode());
        self.push(entry);
        key
    }

    /// Asks the kernel to end an operation early; its last completion still comes.
    fn cancel(&mut self, key: Key) {
        let builder = CancelBuilder::user_data(UserData::operation(key).encode()).all();
        let entry = opcode::AsyncCancel2::new(builder).build();
        self.push(entry.user_data(UserData::Cancel.encode()));
    }

    fn entry(&self, key: Key) -> squeue::Entry {
        let op = self.ops.get(key).expect("an operation is in the slab before its entry is made");
        match op {
            Op::Accept(listener) => {
                let fd = Fd(self.listener(*listener).socket.as_raw_fd());
                opcode::AcceptMulti::new(fd).flags(libc::SOCK_CLOEXEC).build()
            }
            Op::Connect { socket, addr } => {
                let fd = Fd(self.socket(*socket).socket.as_raw_fd());
                opcode::Connect::new(fd, addr.as_ptr().cast(), addr.len()).build()
            }
            Op::Receive(socket) => {
                let fd = Fd(self.socket(*socket).socket.as_raw_fd());
                opcode::RecvMulti::new(fd, buffers::GROUP).build()
            }
            Op::Send { socket, buf, sent } => {
                let fd = Fd(self.socket(*socket).socket.as_raw_fd());
                let rest = &buf[*sent..];
                let bytes = rest.len().min(SEND_BYTES_MAX) as u32;
                opcode::Send::new(fd, rest.as_ptr(), bytes)
                    .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
                    .build()
            }
            Op::Write(write) => self.write_entry(write),
            Op::Read(read) => self.read_entry(read),
            Op::Sync { file, .. } => self.sync_entry(*file),
            Op::Knock(bell) => {
                let heard = UserData::Knock.encode();
                let ring = bell.uring().expect("only bells of io_uring get a message");
                opcode::MsgRingData::new(Fd(ring), 0, heard, None).build()
            }
            Op::Bell => {
                let fd = Fd(self.bell.eventfd().as_raw_fd());
                opcode::PollAdd::new(fd, libc::POLLIN as u32).multi(true).build()
            }
            Op::Alarm => opcode::Timeout::new(&raw const *self.alarm_time).build(),
        }
    }

    fn push(&mut self, entry: squeue::Entry) {
        if !self.backlog.is_empty() {
            self.backlog.push_back(entry);
            return;
        }
        if self.try_push(&entry) {
            return;
        }
        // An error of this enter comes again at the next wait, which reports it.
        self.counters.enters += 1;
        let _ = self.ring.submit();
        if !self.try_push(&entry) {
            self.backlog.push_back(entry);
        }
    }

    fn try_push(&mut self, entry: &squeue::Entry) -> bool {
        let mut queue = self.ring.submission();
        // SAFETY: an entry's addresses are those of memory that a slot of `ops` owns on the heap or
        // lent for good, and a slot is emptied at the operation's last completion only (`handle`)
        // or leaked (`drop`); a cancel carries no address; an alarm's time, on the heap too, is
        // read while its entry is taken, which is in calls of ours on this ring. Descriptors in it
        // stay open as long, because a socket, listener or bell is dropped after its last
        // operation.
        let pushed = unsafe { queue.push(entry) };
        pushed.is_ok()
    }

    /// What can go on since the last wait.
    fn prepare(&mut self) {
        while let Some(entry) = self.backlog.pop_front() {
            if !self.try_push(&entry) {
                self.backlog.push_front(entry);
                break;
            }
        }
        self.buffers.publish();
        self.feed_starved();
        self.wake_listeners();
    }

    fn enter(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let at_hand = !self.ready.is_empty()
            || !self.backlog.is_empty()
            || !self.ring.completion().is_empty();
        let timeout = if at_hand { Some(Duration::ZERO) } else { self.shorten(timeout) };
        if timeout == Some(Duration::ZERO) {
            return self.submit();
        }
        if self.pace.worthwhile() {
            self.submit()?;
            if self.poll(timeout)? {
                self.counters.spin_hits += 1;
                return Ok(());
            }
        }
        if let Some(timeout) = timeout.filter(|_| !self.dropping) {
            self.set_alarm(timeout);
            if !self.backlog.is_empty() {
                return self.submit();
            }
        }
        self.counters.enters += 1;
        let submitter = self.ring.submitter();
        harmless(match timeout {
            // While the last operations are waited for none begins.
            Some(timeout) if self.dropping => {
                let timespec = Timespec::from(timeout);
                submitter.submit_with_args(1, &SubmitArgs::new().timespec(&timespec))
            }
            Some(_) | None => submitter.submit_and_wait(1),
        })
    }

    /// Sees to it that the alarm rings when `timeout` is over, or before.
    fn set_alarm(&mut self, timeout: Duration) {
        let now = now();
        let at = now + timeout;
        match self.alarm {
            Some((_, before)) if before <= at + ALARM_SLACK => {
                // Read only where the kernel refused to take the entry before.
                *self.alarm_time = Timespec::from(before.saturating_duration_since(now));
            }
            Some((key, _)) => {
                *self.alarm_time = Timespec::from(timeout);
                let alarm = UserData::operation(key).encode();
                let entry = opcode::TimeoutUpdate::new(alarm, &raw const *self.alarm_time).build();
                // Told only where the alarm rang just now, which ends the wait anyhow.
                let entry = entry.flags(squeue::Flags::SKIP_SUCCESS);
                self.push(entry.user_data(UserData::Cancel.encode()));
                self.alarm = Some((key, at));
            }
            None => {
                *self.alarm_time = Timespec::from(timeout);
                self.alarm = Some((self.start(Op::Alarm), at));
            }
        }
    }

    /// The caller's timeout, but no longer than the first listener rests or the kernel can count.
    fn shorten(&self, timeout: Option<Duration>) -> Option<Duration> {
        let timeout = timeout.map(|timeout| timeout.min(WAIT_MAX));
        let Some(rest) = self.listeners.iter().filter_map(|(_, l)| l.resting_until).min() else {
            return timeout;
        };
        let rest = rest.saturating_duration_since(now());
        Some(timeout.map_or(rest, |timeout| timeout.min(rest)))
    }

    /// Enters without blocking, if there is anything to enter for.
    fn submit(&mut self) -> io::Result<()> {
        let queue = self.ring.submission();
        let overflowed = queue.cq_overflow();
        let idle = queue.is_empty() && !queue.taskrun() && !overflowed;
        drop(queue);
        if idle {
            return Ok(());
        }
        self.counters.overflows += u64::from(overflowed);
        self.counters.enters += 1;
        harmless(self.ring.submit())
    }

    /// Watches for completions without blocking; whether there are some.
    fn poll(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        let until = now() + timeout.map_or(self.pace.cap, |timeout| timeout.min(self.pace.cap));
        loop {
            if self.ring.submission().taskrun() {
                self.submit()?;
            }
            if !self.ring.completion().is_empty() {
                return Ok(true);
            }
            if now() >= until {
                return Ok(false);
            }
            std::hint::spin_loop();
        }
    }

    fn reap(&mut self) {
        let mut reaped = mem::take(&mut self.reaped);
        reaped.extend(self.ring.completion().take(self.reap_max));
        let before = self.counters.completions;
        self.counters.completions += reaped.len() as u64;
        for completion in reaped.drain(..) {
            self.handle(&completion);
        }
        // The alarm is none.
        if self.counters.completions > before {
            self.pace.arrived();
        }
        self.reaped = reaped;
    }

    fn handle(&mut self, completion: &cqueue::Entry) {
        let result = completion.result();
        let buffer = cqueue::buffer_select(completion.flags());
        let more = cqueue::more(completion.flags());
        let key = match UserData::decode(completion.user_data()) {
            Some(UserData::Operation(number)) => self.ops.find(number),
            Some(UserData::Cancel | UserData::Knock) => return,
            None => None,
        };
        let Some(key) = key else {
            if let Some(buffer) = buffer {
                self.buffers.refuse(buffer);
            }
            debug_assert!(false, "a completion for no operation: {completion:?}");
            return;
        };
        if more {
            let op = self.ops.get(key).expect("the slab just named this key");
            match op {
                Op::Accept(listener) => self.accepted(*listener, result, more),
                Op::Receive(socket) => self.received(*socket, result, buffer, more),
                Op::Bell => self.bell.heard(),
                Op::Connect { .. }
                | Op::Send { .. }
                | Op::Write(_)
                | Op::Read(_)
                | Op::Sync { .. }
                | Op::Alarm
                | Op::Knock(_) => unreachable!("only multishot operations complete more than once"),
            }
            return;
        }
        let op = self.ops.remove(key).expect("the slab just named this key");
        match op {
            Op::Accept(listener) => self.accepted(listener, result, more),
            Op::Connect { socket, addr: _ } => self.connected(socket, result),
            Op::Receive(socket) => self.received(socket, result, buffer, more),
            Op::Send { socket, buf, sent } => self.sent(socket, buf, sent, result),
            Op::Write(disk) => {
                self.disk_done(disk.file, disk.tag, Some(disk.memory.back()), result);
            }
            Op::Read(disk) => self.read_some(disk, result),
            Op::Sync { file, tag } => self.disk_done(file, tag, None, result),
            Op::Knock(bell) => bell.answered(result),
            Op::Alarm => {
                self.alarm = None;
                self.counters.completions -= 1;
            }
            Op::Bell => {
                self.bell.heard();
                if !self.dropping {
                    self.start(Op::Bell);
                }
            }
        }
    }

    /// Ends every operation but the journal's, which end by themselves. Whether all did in time.
    fn drain(&mut self) -> bool {
        self.dropping = true;
        for key in self.sockets.keys() {
            self.close(SocketId(key));
        }
        for key in self.listeners.keys() {
            self.stop_listening(crate::ring::ListenerId(key));
        }
        let bells = self.ops.iter().filter(|(_, op)| matches!(op, Op::Bell | Op::Alarm));
        for key in bells.map(|(key, _)| key).collect::<Vec<_>>() {
            self.cancel(key);
        }
        let until = now() + DRAIN_MAX;
        let mut completions = Vec::new();
        while !self.ops.is_empty() {
            let left = until.saturating_duration_since(now());
            if left.is_zero() || self.wait(Some(left), &mut completions).is_err() {
                return false;
            }
            self.forget(&mut completions);
        }
        self.forget(&mut completions);
        true
    }

    /// Drops completions that nobody will see, with their leases taken home.
    fn forget(&mut self, completions: &mut Vec<Completion>) {
        completions.append(&mut self.ready);
        for completion in completions.drain(..) {
            if let Completion::Received { lease, .. } = completion {
                self.release(lease);
            }
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        if !self.drain() {
            mem::forget(mem::replace(&mut self.ops, Slab::new()));
            self.buffers.leak();
            self.forget(&mut Vec::new());
            return;
        }
        // Bells that others still have keep the kernel's ring alive: it must hold nothing of ours.
        self.buffers.unregister(&self.ring);
        let submitter = self.ring.submitter();
        let _ = submitter.unregister_files();
        let _ = submitter.unregister_buffers();
    }
}

impl fmt::Debug for Uring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uring").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// Answers of `io_uring_enter` that only mean "nothing yet" or "take completions first".
fn harmless(entered: io::Result<usize>) -> io::Result<()> {
    match entered {
        Ok(_) => Ok(()),
        Err(error) => match error.raw_os_error() {
            Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
            Some(_) | None => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::ops::{DiskOp, Lent};
    use super::*;
    use crate::buf::Pages;
    use crate::file::FileOpen;

    #[test]
    fn a_knock_that_the_kernel_refused_goes_the_other_way() {
        let mut uring = Uring::new(RingConfig::default()).unwrap();
        let heard = |uring: &mut Uring| {
            let before = uring.stats().completions;
            uring.wait(Some(Duration::from_millis(50)), &mut Vec::new()).unwrap();
            uring.stats().completions > before
        };
        uring.bell.answered(0);
        assert!(!heard(&mut uring));
        uring.bell.answered(-libc::ENOMEM);
        assert!(heard(&mut uring));
    }

    #[test]
    fn one_alarm_serves_all_waits_and_is_set_anew_only_to_ring_sooner() {
        let mut uring = Uring::new(RingConfig::default()).unwrap();
        let wait = |uring: &mut Uring, ms| {
            let since = now();
            uring.wait(Some(Duration::from_millis(ms)), &mut Vec::new()).unwrap();
            since.elapsed()
        };
        uring.set_alarm(Duration::from_secs(3600));
        let (key, hour) = uring.alarm.unwrap();
        // One that is later, or the same, changes nothing.
        uring.set_alarm(Duration::from_secs(3600));
        assert_eq!(uring.alarm, Some((key, hour)));
        // One that is sooner moves it, submitted or not.
        uring.set_alarm(Duration::from_secs(1800));
        assert!(wait(&mut uring, 30) >= Duration::from_millis(30));
        assert_eq!((uring.alarm, uring.stats().operations), (None, 1));
        uring.set_alarm(Duration::from_millis(20));
        let until = uring.alarm.unwrap().1;
        wait(&mut uring, 3_600_000);
        assert!(now() >= until, "it rang for the first of two");
        assert_eq!((uring.alarm, uring.stats().completions), (None, 0));
    }

    #[test]
    fn a_backlog_goes_out_in_order_with_the_next_wait() {
        let mut uring = Uring::new(RingConfig::default()).unwrap();
        uring.wait(Some(Duration::ZERO), &mut Vec::new()).unwrap();
        let nothing = opcode::Nop::new().build().user_data(UserData::Cancel.encode());
        uring.backlog.push_back(nothing);
        // What is commanded now must not overtake what waits.
        let bell = uring.bell.clone();
        uring.knock(&bell);
        assert_eq!(uring.backlog.len(), 2);
        let before = uring.stats().completions;
        while uring.stats().completions < before + 3 {
            uring.wait(Some(Duration::from_secs(10)), &mut Vec::new()).unwrap();
        }
        assert!(uring.backlog.is_empty());
        assert_eq!(uring.stats().operations, 1, "the bell alone is left");
    }

    #[test]
    fn a_read_that_was_cut_short_goes_on_to_the_end_or_the_error() {
        let path = std::env::current_exe().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for direct in [false, true] {
            let mut uring = Uring::new(RingConfig::default()).unwrap();
            let how = FileOpen { create: false, write: false, direct };
            let file = uring.add_file(crate::file::open(&path, how).unwrap()).unwrap();
            // As if the kernel had read one block of two, and then none, or failed.
            for (first, rest) in [(4096, Ok(8192)), (0, Ok(0)), (-libc::EIO, Err(libc::EIO))] {
                let (memory, _) = Pages::new(8192).unwrap().leak();
                uring.file_mut(file).operations += 1;
                let memory = Lent::new(memory);
                let read = DiskOp { file, tag: 7, offset: 8192, memory, bytes: 8192, done: 0 };
                uring.read_some(read, first);
                let mut completions = Vec::new();
                while completions.is_empty() {
                    uring.wait(Some(Duration::from_secs(10)), &mut completions).unwrap();
                }
                let Completion::Disk { tag: 7, buf: Some(buf), result } = completions.remove(0)
                else {
                    panic!("something else than the read");
                };
                assert_eq!(result.map_err(|error| error.raw_os_error().unwrap()), rest);
                assert!(first <= 0 || buf[4096..] == bytes[12_288..16_384]);
            }
        }
    }

    #[test]
    fn only_answers_that_mean_later_are_harmless() {
        for errno in [libc::ETIME, libc::EINTR, libc::EBUSY, libc::EAGAIN] {
            assert!(harmless(Err(io::Error::from_raw_os_error(errno))).is_ok());
        }
        for errno in [libc::EBADR, libc::EBADF, libc::EINVAL, libc::EFAULT, libc::EEXIST] {
            assert!(harmless(Err(io::Error::from_raw_os_error(errno))).is_err());
        }
        assert!(harmless(Ok(1)).is_ok());
    }
}
