//! What the kernel says of this machine and of the container around us: memory, limits, release.
//!
//! ```text
//!   memory    least of  MemTotal, cgroup v2 memory.max, v1 memory.limit_in_bytes
//!   limits    /proc/self/limits
//! ```
//! Read, never guessed: a file that is not there or makes no sense counts as "no limit". Parsing is
//! apart from reading, so that it is tested.

use std::fs;
use std::path::{Path, PathBuf};

/// Bytes of memory that this process may use, by machine and container.
pub(crate) fn memory_bytes() -> u64 {
    let total = mem_total(&read("/proc/meminfo")).unwrap_or(u64::MAX);
    let groups = read("/proc/self/cgroup");
    memory_limit(Path::new("/sys/fs/cgroup"), &groups).map_or(total, |limit| limit.min(total))
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

/// The smallest memory limit of our control groups. `groups` is `/proc/self/cgroup`.
fn memory_limit(root: &Path, groups: &str) -> Option<u64> {
    let mut least: Option<u64> = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(group)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (base, file) = if controllers.is_empty() {
            (root.to_owned(), "memory.max")
        } else if controllers.split(',').any(|controller| controller == "memory") {
            (root.join("memory"), "memory.limit_in_bytes")
        } else {
            continue;
        };
        for directory in up_to(&base, group) {
            let limit = fs::read_to_string(directory.join(file)).ok();
            let limit = limit.and_then(|text| text.trim().parse::<u64>().ok());
            least = match (least, limit) {
                (Some(least), Some(limit)) => Some(least.min(limit)),
                (least, limit) => least.or(limit),
            };
        }
    }
    least
}

/// The directories of a group, from its own up to the base.
fn up_to(base: &Path, group: &str) -> Vec<PathBuf> {
    let own = base.join(group.trim_start_matches('/'));
    own.ancestors().take_while(|path| path.starts_with(base)).map(Path::to_owned).collect()
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
        assert!(memory_bytes() > 1 << 20);
    }

    #[test]
    fn the_smallest_limit_up_the_tree_wins_in_both_hierarchies() {
        let root = tempfile::tempdir().expect("a directory");
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, text).expect("written");
        };
        write("a/b/memory.max", "max\n");
        write("a/memory.max", "1000\n");
        assert_eq!(memory_limit(root.path(), "0::/a/b\n"), Some(1000));
        write("memory/x/memory.limit_in_bytes", "500\n");
        assert_eq!(memory_limit(root.path(), "0::/a/b\n7:cpu,memory:/x\n"), Some(500));
        assert_eq!(memory_limit(root.path(), "0::/elsewhere\nnonsense\n"), None);
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
