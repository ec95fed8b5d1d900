//! What the kernel says of this machine and of the container around us: memory, limits, release.
//!
//! ```text
//!   memory    the least of MemTotal and what our control groups allow (net/src/cgroup.rs)
//!   limits    /proc/self/limits
//! ```
//! Read, never guessed: a file that is not there or makes no sense counts as "no limit". Parsing is
//! apart from reading, so that it is tested.

use std::fs;
use std::path::PathBuf;

use net::cgroup::Groups;

/// Cores go before other threads, which get a quarter of a CPU that is fought for.
pub(crate) const NICE: i32 = 5;

/// The calling thread goes behind the cores from now on; if it may not, the log says what runs
/// beside them.
pub(crate) fn give_way(what: &str) {
    if let Err(error) = net::cpu::give_way(NICE) {
        tracing::info!("{what} run beside the cores, not behind them: {error}");
    }
}

/// How much memory this process may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    /// Bytes, by machine and container.
    pub(crate) bytes: u64,
    /// What limits it to less than the machine has.
    pub(crate) limited_by: Option<PathBuf>,
}

impl Memory {
    /// Look at machine and container.
    pub(crate) fn detect() -> Self {
        let total = mem_total(&read("/proc/meminfo")).unwrap_or(u64::MAX);
        match Groups::of_this_process().memory_max() {
            Some(limit) if limit.value < total => {
                Self { bytes: limit.value, limited_by: Some(limit.file) }
            }
            Some(_) | None => Self { bytes: total, limited_by: None },
        }
    }
}

/// A soft limit of this process by its name in `/proc/self/limits`; `None` is no limit.
pub(crate) fn soft_limit(name: &str) -> Option<u64> {
    limit(&read("/proc/self/limits"), name)
}

/// The kernel's release.
pub(crate) fn kernel() -> String {
    read("/proc/sys/kernel/osrelease").trim().to_owned()
}

/// How system calls are filtered, as `/proc/self/status` says it.
pub(crate) fn seccomp() -> &'static str {
    let status = read("/proc/self/status");
    let mode = status.lines().find_map(|line| line.strip_prefix("Seccomp:")).map(str::trim);
    match mode {
        Some("0") => "off",
        Some("1") => "strict",
        Some("2") => "filter",
        Some(_) | None => "unknown",
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn mem_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

fn limit(limits: &str, name: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_kib() {
        assert_eq!(mem_total("MemFree: 1 kB\nMemTotal:       2048 kB\n"), Some(2 << 20));
        assert_eq!(mem_total("MemTotal: lots\n"), None);
        assert!(Memory::detect().bytes > 1 << 20);
    }

    #[test]
    fn limits_are_found_by_name() {
        let text = "Limit      Soft Limit   Hard Limit   Units\n\
                    Max open files            1024                 524288               files\n\
                    Max locked memory         unlimited            unlimited            bytes\n";
        assert_eq!(limit(text, "Max open files"), Some(1024));
        assert_eq!(limit(text, "Max locked memory"), None);
    }
}
