//! Whether this system gives us io_uring, and if not, why and what to do.
//!
//! ```text
//!   io_uring_setup with all our flags -> probe the operations -> register a buffer ring -> close
//!        |            any refusal: errno + /proc/sys/kernel/io_uring_disabled + Seccomp: of
//!        v            /proc/self/status + kernel release
//!   Refusal { cause, error, detail }          Display says what was wrong and what to do
//! ```
//!
//! Invariant: the probe asks the kernel, under the filters that hold now; the version is only
//! quoted.
//!
//! Failure: none but the refusal itself. It costs some hundred microseconds, and where memory is
//! short up to [`uring::RELEASED_WITHIN`].

use std::fmt;
use std::fs;
use std::io;

use io_uring::{Probe, opcode};

use crate::limit;
use crate::ring::RingConfig;
use crate::uring;

/// What the probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// The kernel's release, such as `6.6.139`.
    pub kernel: String,
}

/// Why io_uring can't be had.
#[derive(Debug)]
pub struct Refusal {
    /// The reason as far as it can be told.
    pub cause: RefusalCause,
    /// What the kernel said.
    pub error: io::Error,
    /// The kernel's release.
    pub kernel: String,
}

/// The reasons for a [`Refusal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalCause {
    /// `kernel.io_uring_disabled` is 1 or 2.
    Sysctl,
    /// A seccomp filter refuses the calls, as container runtimes do by default.
    Seccomp,
    /// The kernel was built without io_uring, or a sandbox hides it.
    Absent,
    /// The kernel is older than 6.1.
    OldKernel,
    /// The limit on locked memory, or the memory itself, is too small.
    Memory,
    /// The process has no descriptor left.
    Descriptors,
    /// A security module or something else we don't know.
    Other,
}

impl RefusalCause {
    /// What to do about it.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Sysctl => "set kernel.io_uring_disabled to 0 (2 refuses everybody)",
            Self::Seccomp => {
                "a seccomp filter refuses it: allow io_uring_setup, io_uring_enter and \
                 io_uring_register (Docker: --security-opt seccomp=unconfined or a profile of your \
                 own; Kubernetes: seccompProfile)"
            }
            Self::Absent => "use a kernel built with CONFIG_IO_URING, and no sandbox that hides it",
            Self::OldKernel => "use Linux 6.1 or newer",
            Self::Memory => {
                "raise the limit on locked memory (ulimit -l, LimitMEMLOCK=, \
                 --ulimit memlock) or the container's memory"
            }
            Self::Descriptors => "raise the limit on open files (ulimit -n, LimitNOFILE=)",
            Self::Other => "see the kernel's message; a security module may refuse it",
        }
    }
}

impl fmt::Display for RefusalCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sysctl => "sysctl",
            Self::Seccomp => "seccomp",
            Self::Absent => "absent",
            Self::OldKernel => "old kernel",
            Self::Memory => "memory",
            Self::Descriptors => "descriptors",
            Self::Other => "unknown cause",
        })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cause, error, kernel } = self;
        write!(f, "io_uring is refused here (Linux {kernel}): {error}; {}", cause.advice())
    }
}

impl std::error::Error for Refusal {}

/// Asks the kernel for all that a [`crate::Ring`] needs.
///
/// # Errors
/// The [`Refusal`].
pub fn probe() -> Result<Capabilities, Refusal> {
    let ring = uring::setup(8, 16).map_err(refusal)?;
    let mut operations = Probe::new();
    ring.submitter().register_probe(&mut operations).map_err(refusal)?;
    if !NEEDED.iter().all(|&code| operations.is_supported(code)) {
        return Err(refusal(io::Error::from_raw_os_error(libc::EINVAL)));
    }
    uring::try_buffers(&ring).map_err(refusal)?;
    Ok(Capabilities { kernel: kernel_release() })
}

/// Asks as [`probe`] does, and for so many rings at once: their memory may count against the limit
/// on locked memory (seen on 6.18, about 90 KiB each), which one small ring would not show.
///
/// # Errors
/// The [`Refusal`].
pub fn probe_rings(rings: usize) -> Result<Capabilities, Refusal> {
    let there = probe()?;
    let ample = rings as u64 * RING_LOCKED_BYTES * 4;
    if limit::locked_memory().is_none_or(|bytes| bytes >= ample) {
        return Ok(there);
    }
    let RingConfig { entries, completions, .. } = RingConfig::default();
    let ring = || uring::patiently(|| uring::setup(entries, completions));
    let held: io::Result<Vec<_>> = (0..rings).map(|_| ring()).collect();
    held.map_err(refusal)?;
    Ok(there)
}

/// More than a ring locks. What is tried here comes back late, so it is not tried where the limit
/// is far off: the buffers that will be pinned need it.
const RING_LOCKED_BYTES: u64 = 128 << 10;

/// The operations that the engine uses. Multishot receive (6.0) can't be asked for; the setup flag
/// `DEFER_TASKRUN` (6.1) stands for it.
const NEEDED: [u8; 11] = [
    opcode::AcceptMulti::CODE,
    opcode::AsyncCancel2::CODE,
    opcode::Connect::CODE,
    opcode::Fsync::CODE,
    opcode::MsgRingData::CODE,
    opcode::PollAdd::CODE,
    opcode::Read::CODE,
    opcode::RecvMulti::CODE,
    opcode::Send::CODE,
    opcode::Write::CODE,
    opcode::WriteFixed::CODE,
];

/// Puts an error of the setup into words.
pub(crate) fn refusal(error: io::Error) -> Refusal {
    let sysctl = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let cause = classify(error.raw_os_error(), &sysctl, &status);
    Refusal { cause, error, kernel: kernel_release() }
}

fn classify(errno: Option<i32>, sysctl: &str, status: &str) -> RefusalCause {
    let filtered = status.lines().any(|line| {
        line.strip_prefix("Seccomp:").is_some_and(|mode| matches!(mode.trim(), "1" | "2"))
    });
    match errno {
        Some(libc::EPERM) if filtered && sysctl.trim() != "2" => RefusalCause::Seccomp,
        Some(libc::EPERM) if matches!(sysctl.trim(), "1" | "2") => RefusalCause::Sysctl,
        Some(libc::EPERM) => RefusalCause::Seccomp,
        Some(libc::ENOSYS) if filtered => RefusalCause::Seccomp,
        Some(libc::ENOSYS) => RefusalCause::Absent,
        Some(libc::EINVAL) => RefusalCause::OldKernel,
        Some(libc::ENOMEM) => RefusalCause::Memory,
        Some(libc::EMFILE | libc::ENFILE) => RefusalCause::Descriptors,
        Some(_) | None => RefusalCause::Other,
    }
}

fn kernel_release() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    if release.is_empty() { "unknown".to_owned() } else { release.trim().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_errno_has_its_cause() {
        const FREE: &str = "Name:\tx\nSeccomp:\t0\nSeccomp_filters:\t0\n";
        const FILTERED: &str = "Name:\tx\nSeccomp:\t2\nSeccomp_filters:\t1\n";
        let table = [
            (libc::EPERM, "0", FILTERED, RefusalCause::Seccomp),
            (libc::EPERM, "1\n", FREE, RefusalCause::Sysctl),
            (libc::EPERM, "2\n", FILTERED, RefusalCause::Sysctl),
            (libc::EPERM, "", FREE, RefusalCause::Seccomp),
            (libc::ENOSYS, "0", FILTERED, RefusalCause::Seccomp),
            (libc::ENOSYS, "0", FREE, RefusalCause::Absent),
            (libc::EINVAL, "0", FREE, RefusalCause::OldKernel),
            (libc::ENOMEM, "0", FREE, RefusalCause::Memory),
            (libc::EMFILE, "0", FREE, RefusalCause::Descriptors),
            (libc::EACCES, "0", FREE, RefusalCause::Other),
        ];
        for (errno, sysctl, status, cause) in table {
            assert_eq!(classify(Some(errno), sysctl, status), cause, "{errno} {sysctl:?}");
        }
        assert_eq!(classify(None, "", ""), RefusalCause::Other);
    }
}
