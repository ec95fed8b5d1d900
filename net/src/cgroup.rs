//! The control groups that this process is in, and what they allow it of CPU and memory.
//!
//! ```text
//!   /proc/self/mountinfo   where each hierarchy is mounted, and which group is its root there
//!   /proc/self/cgroup      which group of each hierarchy is ours
//!       |
//!       v
//!   directories from our own group up to the mount: the tightest limit on the way holds
//!
//!            version 2                  version 1
//!   CPU      cpu.max                    cpu.cfs_quota_us / cpu.cfs_period_us
//!   memory   memory.max, memory.high    memory.limit_in_bytes, memory.stat's hierarchical limit
//! ```
//! Both versions may be there at once (hybrid). A controller lives in one of them and has no files
//! in the other, so both are asked.
//!
//! Invariant: a limit is reported with the file that said it, so that whoever set it finds it.
//!
//! Failure: a file that can't be read or makes no sense is no limit. A namespace may hide the
//! groups above its own root; what they allow can't be seen from inside.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// The directories of our groups that may limit us.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Groups {
    cpu: Vec<Level>,
    memory: Vec<Level>,
}

/// A limit, and the file that says it.
#[derive(Debug, Clone, PartialEq)]
pub struct Limit<T> {
    /// How much.
    pub value: T,
    /// Where it is written.
    pub file: PathBuf,
}

/// One group, ours or one above it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Level {
    version: Version,
    directory: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// What reads a file: the kernel's in earnest, a table's in tests.
type Read<'a> = &'a dyn Fn(&Path) -> Option<String>;

impl Groups {
    /// Looks at this process.
    pub fn of_this_process() -> Self {
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        Self::parse(&text("/proc/self/cgroup"), &text("/proc/self/mountinfo"))
    }

    /// From the texts of `/proc/self/cgroup` and `/proc/self/mountinfo`.
    pub fn parse(groups: &str, mounts: &str) -> Self {
        let mounts: Vec<Mount> = mounts.lines().filter_map(Mount::parse).collect();
        Self { cpu: levels(groups, &mounts, "cpu"), memory: levels(groups, &mounts, "memory") }
    }

    /// The directories that may hold `cpu.max` or `cpu.stat`, our own first.
    pub fn cpu_directories(&self) -> impl Iterator<Item = &Path> {
        self.cpu.iter().map(|level| level.directory.as_path())
    }

    /// How many CPUs' worth of time we may use.
    pub fn cpu_quota(&self) -> Option<Limit<f64>> {
        self.cpu_quota_by(&|path| fs::read_to_string(path).ok())
    }

    /// How many bytes of memory we may use.
    pub fn memory_max(&self) -> Option<Limit<u64>> {
        self.memory_max_by(&|path| fs::read_to_string(path).ok())
    }

    fn cpu_quota_by(&self, read: Read<'_>) -> Option<Limit<f64>> {
        let quotas = self.cpu.iter().filter_map(|level| match level.version {
            Version::One => quota_v1(&level.directory, read),
            Version::Two => quota_v2(&level.directory, read),
        });
        quotas.min_by(|a, b| a.value.total_cmp(&b.value))
    }

    fn memory_max_by(&self, read: Read<'_>) -> Option<Limit<u64>> {
        let limits = self.memory.iter().flat_map(|level| match level.version {
            Version::One => memory_v1(&level.directory, read),
            Version::Two => memory_v2(&level.directory, read),
        });
        limits.min_by_key(|limit| limit.value)
    }
}

// ---- Where our groups are -----------------------------------------------------------------------

/// A mounted hierarchy.
struct Mount {
    /// None for version 2, which has all of them.
    controllers: Option<Vec<String>>,
    /// The group that is seen at `point`.
    root: PathBuf,
    point: PathBuf,
}

impl Mount {
    /// A line of mountinfo: `31 23 0:28 ROOT POINT OPTIONS [TAG...] - TYPE SOURCE CONTROLLERS`.
    fn parse(line: &str) -> Option<Self> {
        let (place, kind) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let (root, point) = (unescaped(place.next()?), unescaped(place.next()?));
        let mut kind = kind.split(' ');
        let controllers = match kind.next()? {
            "cgroup" => Some(kind.nth(1)?.split(',').map(str::to_owned).collect()),
            "cgroup2" => None,
            _ => return None,
        };
        Some(Self { controllers, root: root.into(), point: point.into() })
    }

    fn has(&self, version: Version, controller: &str) -> bool {
        match (&self.controllers, version) {
            (None, Version::Two) => true,
            (Some(there), Version::One) => there.iter().any(|name| name == controller),
            (None, Version::One) | (Some(_), Version::Two) => false,
        }
    }

    /// Where `group` is seen below this mount, if it is.
    fn directory_of(&self, group: &Path) -> Option<PathBuf> {
        let below = group.strip_prefix(&self.root).ok()?;
        let plain = below.components().all(|part| matches!(part, Component::Normal(_)));
        plain.then(|| self.point.join(below))
    }
}

/// Spaces and their like are written as `\040` in mountinfo.
fn unescaped(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (escape, plain)| text.replace(escape, plain))
}

/// Our group of a controller and those above it, of both versions.
fn levels(groups: &str, mounts: &[Mount], controller: &str) -> Vec<Level> {
    let mut levels = Vec::new();
    for line in groups.lines() {
        // hierarchy:controllers:group; version 2 has no controllers.
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (fields.next(), fields.next()) else { continue };
        let version = if controllers.is_empty() { Version::Two } else { Version::One };
        if version == Version::One && !controllers.split(',').any(|name| name == controller) {
            continue;
        }
        let mounted: Vec<&Mount> =
            mounts.iter().filter(|mount| mount.has(version, controller)).collect();
        let seen = mounted
            .iter()
            .find_map(|mount| Some((mount.directory_of(Path::new(group))?, mount.point.as_path())));
        // A namespace can show a group that is not below any mount: then the mount is all we have.
        let first = || mounted.first().map(|mount| (mount.point.clone(), mount.point.as_path()));
        let Some((own, top)) = seen.or_else(first) else { continue };
        let up = own.ancestors().take_while(|path| path.starts_with(top));
        levels.extend(up.map(|path| Level { version, directory: path.to_owned() }));
    }
    levels
}

// ---- What they say ------------------------------------------------------------------------------

fn quota_v2(group: &Path, read: Read<'_>) -> Option<Limit<f64>> {
    let file = group.join("cpu.max");
    let text = read(&file)?;
    let (quota, period) = text.trim().split_once(' ')?;
    Some(Limit { value: cpus(quota, period)?, file })
}

fn quota_v1(group: &Path, read: Read<'_>) -> Option<Limit<f64>> {
    let file = group.join("cpu.cfs_quota_us");
    let value = cpus(&read(&file)?, &read(&group.join("cpu.cfs_period_us"))?)?;
    Some(Limit { value, file })
}

/// `max` and `-1` are no limit.
fn cpus(quota: &str, period: &str) -> Option<f64> {
    let quota = quota.trim().parse::<u64>().ok()?;
    let period = period.trim().parse::<u64>().ok()?;
    (quota > 0 && period > 0).then(|| quota as f64 / period as f64)
}

/// Above `memory.high` the kernel makes us wait instead of ending us: as bad for a broker.
fn memory_v2(group: &Path, read: Read<'_>) -> Vec<Limit<u64>> {
    let limit = |name: &str| {
        let file = group.join(name);
        let value = bytes(&read(&file)?)?;
        Some(Limit { value, file })
    };
    ["memory.max", "memory.high"].into_iter().filter_map(limit).collect()
}

/// The hierarchical limit knows of groups above those that we see.
fn memory_v1(group: &Path, read: Read<'_>) -> Vec<Limit<u64>> {
    let own = group.join("memory.limit_in_bytes");
    let stat = group.join("memory.stat");
    let of_own = read(&own).and_then(|text| bytes(&text));
    let of_all = read(&stat).and_then(|text| {
        bytes(text.lines().find_map(|line| line.strip_prefix("hierarchical_memory_limit "))?)
    });
    let limit = |value: Option<u64>, file| Some(Limit { value: value?, file });
    [limit(of_own, own), limit(of_all, stat)].into_iter().flatten().collect()
}

/// From here on a number of bytes means "no limit": version 1 writes the most it can count.
const UNLIMITED_BYTES: u64 = 1 << 62;

/// `max` is no limit.
fn bytes(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|&bytes| bytes > 0 && bytes < UNLIMITED_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS_V2: &str = "\
        22 28 0:20 / /proc rw,nosuid - proc proc rw\n\
        31 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

    const MOUNTS_HYBRID: &str = "\
        31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
        32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    const GROUPS_HYBRID: &str = "\
        5:name=systemd:/user.slice\n\
        4:memory:/slice/broker\n\
        3:cpuset:/\n\
        2:cpu,cpuacct:/slice/broker\n\
        0::/user.slice\n";

    /// What a process sees of its limits: quota, memory, and the files that said them.
    #[derive(Debug, PartialEq)]
    struct Seen {
        cpus: Option<(f64, String)>,
        memory: Option<(u64, String)>,
    }

    fn seen(groups: &str, mounts: &str, files: &[(&str, &str)]) -> Seen {
        let read = |path: &Path| {
            let found = files.iter().find(|(name, _)| Path::new(name) == path);
            found.map(|(_, text)| (*text).to_owned())
        };
        let groups = Groups::parse(groups, mounts);
        let name = |file: PathBuf| file.to_string_lossy().into_owned();
        Seen {
            cpus: groups.cpu_quota_by(&read).map(|limit| (limit.value, name(limit.file))),
            memory: groups.memory_max_by(&read).map(|limit| (limit.value, name(limit.file))),
        }
    }

    fn at<T>(value: T, file: &str) -> Option<(T, String)> {
        Some((value, file.to_owned()))
    }

    #[test]
    fn version_2_takes_the_tightest_on_the_way_up() {
        let files = [
            ("/sys/fs/cgroup/a/b/cpu.max", "max 100000\n"),
            ("/sys/fs/cgroup/a/cpu.max", "150000 100000\n"),
            ("/sys/fs/cgroup/a/b/memory.max", "2000\n"),
            ("/sys/fs/cgroup/a/b/memory.high", "max\n"),
            ("/sys/fs/cgroup/a/memory.max", "1000\n"),
            ("/sys/fs/cgroup/elsewhere/memory.max", "1\n"),
        ];
        let found = seen("0::/a/b\n", MOUNTS_V2, &files);
        assert_eq!(found.cpus, at(1.5, "/sys/fs/cgroup/a/cpu.max"));
        assert_eq!(found.memory, at(1000, "/sys/fs/cgroup/a/memory.max"));
    }

    #[test]
    fn max_everywhere_is_no_limit() {
        let files = [
            ("/sys/fs/cgroup/a/cpu.max", "max 100000\n"),
            ("/sys/fs/cgroup/a/memory.max", "max\n"),
            ("/sys/fs/cgroup/a/memory.high", "max\n"),
        ];
        let none = Seen { cpus: None, memory: None };
        assert_eq!(seen("0::/a\n", MOUNTS_V2, &files), none);
        assert_eq!(seen("0::/a\n", MOUNTS_V2, &[]), none);
        assert_eq!(seen("", "", &[]), none);
        assert_eq!(seen("nonsense\n0::\n", "nonsense\n1 2 - x\n", &[]), none);
    }

    #[test]
    fn where_the_kernel_begins_to_hold_us_back_is_a_limit_too() {
        let files =
            [("/sys/fs/cgroup/memory.max", "1000\n"), ("/sys/fs/cgroup/memory.high", "900\n")];
        let found = seen("0::/\n", MOUNTS_V2, &files);
        assert_eq!(found.memory, at(900, "/sys/fs/cgroup/memory.high"));
    }

    #[test]
    fn version_1_beside_an_empty_version_2_is_read() {
        let memory = "/sys/fs/cgroup/memory/slice/broker/memory.limit_in_bytes";
        let cpu = "/sys/fs/cgroup/cpu,cpuacct/slice/cpu.cfs_quota_us";
        let files = [
            (memory, "500000\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/slice/broker/cpu.cfs_quota_us", "-1\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/slice/broker/cpu.cfs_period_us", "100000\n"),
            (cpu, "50000\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/slice/cpu.cfs_period_us", "100000\n"),
            // The cpuset hierarchy limits no time.
            ("/sys/fs/cgroup/cpuset/cpu.cfs_quota_us", "1\n"),
        ];
        let found = seen(GROUPS_HYBRID, MOUNTS_HYBRID, &files);
        assert_eq!(found, Seen { cpus: at(0.5, cpu), memory: at(500_000, memory) });
    }

    #[test]
    fn the_limit_of_a_group_that_is_hidden_is_in_the_statistics() {
        let own = "/sys/fs/cgroup/memory/slice/broker/memory.limit_in_bytes";
        let stat = "/sys/fs/cgroup/memory/slice/broker/memory.stat";
        let files = [
            (own, "9223372036854771712\n"),
            (stat, "cache 1\nhierarchical_memory_limit 700000\nhierarchical_memsw_limit 1\n"),
        ];
        let found = seen(GROUPS_HYBRID, MOUNTS_HYBRID, &files);
        assert_eq!(found.memory, at(700_000, stat));
    }

    /// Docker on version 1: the group's path is the host's, the mount shows our group as its root.
    #[test]
    fn a_container_sees_its_group_at_the_mount() {
        let mounts = "\
            32 31 0:29 /docker/ab12 /sys/fs/cgroup/cpu ro master:1 - cgroup cgroup rw,cpu\n\
            35 31 0:32 /docker/ab12 /sys/fs/cgroup/memory ro master:2 - cgroup cgroup rw,memory\n";
        let groups = "4:memory:/docker/ab12\n1:cpu:/docker/ab12\n";
        let memory = "/sys/fs/cgroup/memory/memory.limit_in_bytes";
        let cpu = "/sys/fs/cgroup/cpu/cpu.cfs_quota_us";
        let files = [
            (memory, "1073741824\n"),
            (cpu, "250000\n"),
            ("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
        ];
        let found = seen(groups, mounts, &files);
        assert_eq!(found, Seen { cpus: at(2.5, cpu), memory: at(1 << 30, memory) });
        // A group that no mount shows: what the mount says is better than nothing.
        let found = seen("4:memory:/kubepods/x\n", mounts, &files);
        assert_eq!(found.memory, at(1 << 30, memory));
        let found = seen("0::/../../x\n", MOUNTS_V2, &[("/sys/fs/cgroup/cpu.max", "1 2")]);
        assert_eq!(found.cpus, at(0.5, "/sys/fs/cgroup/cpu.max"));
    }

    /// A mount of somebody else's group is not ours, and a name with a space is a name.
    #[test]
    fn of_several_mounts_the_one_that_shows_us_counts() {
        let mounts = "\
            31 22 0:26 /other /other rw - cgroup2 cgroup2 rw\n\
            32 22 0:26 / /my\\040groups rw shared:1 master:2 - cgroup2 cgroup2 rw\n";
        let files = [("/other/memory.max", "1\n"), ("/my groups/a/memory.max", "2\n")];
        let found = seen("0::/a\n", mounts, &files);
        assert_eq!(found.memory, at(2, "/my groups/a/memory.max"));
    }

    #[test]
    fn quotas_that_make_no_sense_are_none() {
        for text in ["", "max", "0 100000", "100000 0", "-1 100000", "a b"] {
            assert_eq!(seen("0::/\n", MOUNTS_V2, &[("/sys/fs/cgroup/cpu.max", text)]).cpus, None);
        }
        let found = seen("0::/\n", MOUNTS_V2, &[("/sys/fs/cgroup/memory.max", "0\n")]);
        assert_eq!(found.memory, None);
    }

    #[test]
    fn this_process_is_looked_at() {
        let groups = Groups::of_this_process();
        assert!(groups.cpu_quota().is_none_or(|quota| quota.value > 0.0));
        assert!(groups.memory_max().is_none_or(|limit| limit.value > 1 << 20));
        assert!(groups.cpu_directories().all(Path::is_absolute));
    }
}
