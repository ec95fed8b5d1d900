//! The machine under a measurement: what it is, and what it did to us while we measured.
//!
//! ```text
//!   Machine     once      kernel, CPU, clock, build profile
//!   Place       once      the file system and the device's cache under a directory
//!   Snapshot ── block ── Snapshot
//!        └──────┬───────────┘
//!             Noise       steal     /proc/stat, the column that the hypervisor fills
//!                         pressure  /proc/pressure/{cpu,io,memory}: `some`, in total
//!                         throttled cgroup cpu.stat, v1 or v2, of our group and those above it
//!   cpu_of_process                  /proc/…/schedstat, nanoseconds on a CPU, up to a tick late
//!   cpu_of_thread                   the clock of the calling thread, nanoseconds on a CPU
//! ```
//! Everything is read, nothing guessed: what a system doesn't tell is `None` or zero, and a pair of
//! blocks is dropped only for what was told. Parsing is apart from reading, so that it is tested.
//!
//! Failure: none. A file that isn't there says nothing.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// More steal than this share of a block's time and its pair is dropped.
pub const STEAL_SHARE_MAX: f64 = 0.02;

/// What a result was measured on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The kernel's release.
    pub kernel: String,
    /// The CPU's name.
    pub cpu: String,
    /// CPUs that this process may use.
    pub cpus: usize,
    /// CPUs' worth of time that the control group allows, if it limits it.
    pub cpu_quota: Option<f64>,
    /// The kernel's clock source.
    pub clock: String,
    /// How TCP paces itself.
    pub congestion: String,
    /// `release` or `debug`.
    pub build: String,
    /// The version of this binary.
    pub version: String,
}

impl Machine {
    /// This one.
    #[must_use]
    pub fn here() -> Self {
        let plan = net::cpu::CpuPlan::detect().ok();
        let line = |path: &str| read(path).lines().next().unwrap_or("unknown").trim().to_owned();
        Self {
            kernel: line("/proc/sys/kernel/osrelease"),
            cpu: cpu_model(&read("/proc/cpuinfo")).unwrap_or_else(|| "unknown".to_owned()),
            cpus: plan.as_ref().map_or(1, |plan| plan.affinity.len()),
            cpu_quota: plan.and_then(|plan| plan.quota),
            clock: line("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
            congestion: line("/proc/sys/net/ipv4/tcp_congestion_control"),
            build: if is_debug() { "debug" } else { "release" }.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// Whether this binary was built without optimisation: its figures are nobody's.
#[must_use]
pub fn is_debug() -> bool {
    cfg!(debug_assertions)
}

/// A directory that is written to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Its file system.
    pub file_system: String,
    /// It forgets at power-off (tmpfs, ramfs).
    pub volatile: bool,
    /// Another machine keeps it.
    pub remote: bool,
    /// Files in it are written past the page cache; `None` until one was opened.
    pub direct: Option<bool>,
    /// What the block device says of its cache: `write back` or `write through`.
    pub write_cache: Option<String>,
    /// Whether the device takes a write that is forced through its cache.
    pub forced_unit_access: Option<bool>,
}

impl Place {
    /// Looks at a directory that is there.
    ///
    /// # Errors
    /// What `statfs` said.
    pub fn of(directory: &Path) -> std::io::Result<Self> {
        let volume = net::file::volume(directory)?;
        let queue = block_queue(directory);
        let told = |name: &str| {
            let text = fs::read_to_string(queue.as_ref()?.join(name)).ok()?;
            Some(text.trim().to_owned())
        };
        Ok(Self {
            file_system: volume.kind,
            volatile: volume.volatile,
            remote: volume.remote,
            direct: None,
            write_cache: told("write_cache"),
            forced_unit_access: told("fua").map(|fua| fua == "1"),
        })
    }

    /// What a reader must know about the word "durable" here.
    #[must_use]
    pub fn note(&self) -> Option<&'static str> {
        let back = self.write_cache.as_deref() == Some("write back");
        if back && self.forced_unit_access != Some(true) {
            return Some(
                "the device has a cache and no forced unit access: it is flushed, but whether a \
                 flush reaches the medium (a virtual disk may not pass it on) is not known here",
            );
        }
        if self.write_cache.is_none() {
            return Some("the block device doesn't tell about its cache: it may be volatile");
        }
        None
    }
}

/// The counters of a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    cpu: CpuTicks,
    pressure_us: Pressure,
    throttled_us: u64,
}

impl Snapshot {
    /// Now.
    #[must_use]
    pub fn take() -> Self {
        let stalled = |what: &str| pressure(&read(&format!("/proc/pressure/{what}"))).unwrap_or(0);
        Self {
            cpu: cpu_ticks(&read("/proc/stat")).unwrap_or_default(),
            pressure_us: Pressure {
                cpu: stalled("cpu"),
                io: stalled("io"),
                memory: stalled("memory"),
            },
            throttled_us: throttled_us(Path::new("/sys/fs/cgroup"), &read("/proc/self/cgroup")),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct CpuTicks {
    all: u64,
    steal: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pressure {
    cpu: u64,
    io: u64,
    memory: u64,
}

/// What the machine did between two snapshots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Noise {
    /// Share of all CPUs' time that the hypervisor gave to others, 0 to 1.
    pub steal: f64,
    /// Microseconds in which somebody waited for a CPU.
    pub pressure_cpu_us: u64,
    /// Microseconds in which somebody waited for I/O. A measurement of durable writes does.
    pub pressure_io_us: u64,
    /// Microseconds in which somebody waited for memory.
    pub pressure_memory_us: u64,
    /// Microseconds for which our control group, or one above it, was kept off the CPUs.
    pub throttled_us: u64,
}

impl Noise {
    /// From one moment to a later one. A counter that went back counts as unmoved.
    #[must_use]
    pub fn between(before: &Snapshot, after: &Snapshot) -> Self {
        let all = after.cpu.all.saturating_sub(before.cpu.all);
        let steal = after.cpu.steal.saturating_sub(before.cpu.steal);
        let (was, is) = (before.pressure_us, after.pressure_us);
        Self {
            steal: if all == 0 { 0.0 } else { steal as f64 / all as f64 },
            pressure_cpu_us: is.cpu.saturating_sub(was.cpu),
            pressure_io_us: is.io.saturating_sub(was.io),
            pressure_memory_us: is.memory.saturating_sub(was.memory),
            throttled_us: after.throttled_us.saturating_sub(before.throttled_us),
        }
    }

    /// Why a pair with this block is dropped, if it is.
    #[must_use]
    pub fn objection(&self) -> Option<String> {
        if self.throttled_us > 0 {
            return Some(format!("throttled for {} us", self.throttled_us));
        }
        let percent = self.steal * 100.0;
        (self.steal > STEAL_SHARE_MAX).then(|| format!("{percent:.1} % of the time was stolen"))
    }
}

/// Nanoseconds that a process has spent on CPUs, the kernel's threads for its rings included;
/// `None` if it is gone. A thread that ended is not counted any more.
#[must_use]
pub fn cpu_of_process(process: u32) -> Option<u64> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).ok()?;
    let sum = threads
        .flatten()
        .filter_map(|thread| schedstat(&fs::read_to_string(thread.path().join("schedstat")).ok()?))
        .sum();
    Some(sum)
}

/// Bytes of a process that are resident, and those of them that are of no file; 0 if it is gone.
#[must_use]
pub fn resident(process: u32) -> (u64, u64) {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    (status_bytes(&status, "VmRSS:"), status_bytes(&status, "RssAnon:"))
}

fn status_bytes(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or_default() * 1024
}

/// Nanoseconds that the calling thread has spent on CPUs.
#[must_use]
pub fn cpu_of_thread() -> u64 {
    let spent = clock_gettime(ClockId::ThreadCPUTime);
    spent.tv_sec as u64 * 1_000_000_000 + spent.tv_nsec as u64
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn cpu_model(cpuinfo: &str) -> Option<String> {
    // x86 says "model name", ARM in parts only: then there is none.
    let line = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"))?;
    Some(line.trim_start().strip_prefix(':')?.trim().to_owned())
}

/// The line `cpu`: user nice system idle iowait irq softirq steal guest guest_nice. Guests are in
/// user and nice already.
fn cpu_ticks(stat: &str) -> Option<CpuTicks> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_whitespace().take(8).map_while(|n| n.parse().ok()).collect();
    let steal = *ticks.get(7)?;
    Some(CpuTicks { all: ticks.iter().sum(), steal })
}

/// The sum in the line `some avg10=… total=N`.
fn pressure(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with("some "))?;
    line.split_whitespace().find_map(|field| field.strip_prefix("total="))?.parse().ok()
}

/// On-CPU time, time waited, and slices.
fn schedstat(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

/// How long our control groups were throttled, all together. `groups` is `/proc/self/cgroup`.
fn throttled_us(root: &Path, groups: &str) -> u64 {
    let mut sum = 0;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(group)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let base = if controllers.is_empty() {
            root.to_owned()
        } else if controllers.split(',').any(|controller| controller == "cpu") {
            let joint = root.join(controllers);
            if joint.is_dir() { joint } else { root.join("cpu") }
        } else {
            continue;
        };
        for level in Path::new(group.trim_start_matches('/')).ancestors() {
            let stat = fs::read_to_string(base.join(level).join("cpu.stat")).unwrap_or_default();
            sum += throttled_in(&stat);
        }
    }
    sum
}

/// v2 counts microseconds (`throttled_usec`), v1 nanoseconds (`throttled_time`).
fn throttled_in(cpu_stat: &str) -> u64 {
    let value = |name: &str| -> Option<u64> {
        let line = cpu_stat.lines().find_map(|line| line.strip_prefix(name))?;
        line.strip_prefix(' ')?.trim().parse().ok()
    };
    value("throttled_usec").or_else(|| Some(value("throttled_time")? / 1000)).unwrap_or(0)
}

/// The `queue` directory of the block device under a path; a partition's is its disk's.
fn block_queue(path: &Path) -> Option<PathBuf> {
    use std::os::unix::fs::MetadataExt as _;
    let device = fs::metadata(path).ok()?.dev();
    // How the C library takes a device number apart.
    let major = ((device >> 8) & 0xFFF) | ((device >> 32) & !0xFFF);
    let minor = (device & 0xFF) | ((device >> 12) & !0xFF);
    let node = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    [Some(node.as_path()), node.parent()]
        .into_iter()
        .flatten()
        .map(|at| at.join("queue"))
        .find(|queue| queue.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steal_is_a_share_of_all_ticks() {
        let ticks = |text: &str| cpu_ticks(text).expect("a line");
        let before = ticks("cpu  100 0 100 800 0 0 0 0 50 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n");
        let after = ticks("cpu  150 0 150 870 0 0 0 30 90 0\n");
        assert_eq!((before.all, before.steal), (1000, 0));
        let at = |cpu| Snapshot { cpu, ..Snapshot::default() };
        let noise = Noise::between(&at(before), &at(after));
        assert!((noise.steal - 0.15).abs() < 1e-9, "{noise:?}");
        assert!(noise.objection().expect("too much").contains("15.0 %"));
        assert_eq!(cpu_ticks("cpu  1 2 3\n"), None);
        assert_eq!(cpu_ticks(""), None);
    }

    #[test]
    fn what_is_resident_is_read_from_the_status() {
        let status = "Name:\tx\nVmRSS:\t  2048 kB\nRssAnon:\t    3 kB\n";
        assert_eq!(status_bytes(status, "VmRSS:"), 2 << 20);
        assert_eq!(status_bytes(status, "RssAnon:"), 3 << 10);
        let (resident, anonymous) = resident(std::process::id());
        assert!(resident > anonymous && anonymous > 0);
    }

    #[test]
    fn a_quiet_block_has_no_objection_and_a_throttled_one_has() {
        let noise = Noise { steal: STEAL_SHARE_MAX, pressure_io_us: 9, ..Noise::default() };
        assert_eq!(noise.objection(), None);
        let noise = Noise { throttled_us: 1, ..Noise::default() };
        assert_eq!(noise.objection().as_deref(), Some("throttled for 1 us"));
    }

    #[test]
    fn pressure_is_the_sum_of_some() {
        let text = "some avg10=39.27 avg60=31.36 avg300=23.08 total=4563005330\n\
                    full avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        assert_eq!(pressure(text), Some(4_563_005_330));
        assert_eq!(pressure("full total=1\n"), None);
    }

    #[test]
    fn throttling_is_read_in_both_versions_and_up_the_tree() {
        assert_eq!(throttled_in("nr_throttled 3\nthrottled_usec 1500\n"), 1500);
        assert_eq!(throttled_in("nr_throttled 3\nthrottled_time 1500000\n"), 1500);
        assert_eq!(throttled_in("usage_usec 5\n"), 0);
        let root = std::env::temp_dir().join(format!("perf-cgroup-{}", std::process::id()));
        fs::create_dir_all(root.join("a/b")).expect("made");
        fs::create_dir_all(root.join("cpu,cpuacct/x")).expect("made");
        fs::write(root.join("a/cpu.stat"), "throttled_usec 10\n").expect("written");
        fs::write(root.join("a/b/cpu.stat"), "throttled_usec 5\n").expect("written");
        fs::write(root.join("cpu,cpuacct/x/cpu.stat"), "throttled_time 2000\n").expect("written");
        assert_eq!(throttled_us(&root, "0::/a/b\n"), 15);
        assert_eq!(throttled_us(&root, "4:memory:/x\n3:cpu,cpuacct:/x\nnonsense\n"), 2);
        fs::remove_dir_all(&root).expect("removed");
    }

    #[test]
    fn this_process_and_this_thread_have_run() {
        let spin = (0..2_000_000u64).fold(0, |sum, n| std::hint::black_box(sum ^ n));
        assert!(cpu_of_thread() > 0, "{spin}");
        assert!(cpu_of_process(std::process::id()).expect("told") > 0);
        assert_eq!(cpu_of_process(u32::MAX), None);
        assert_eq!(schedstat("123 4 5\n"), Some(123));
    }

    #[test]
    fn the_machine_and_a_place_have_names() {
        let machine = Machine::here();
        assert!(machine.cpus >= 1 && !machine.kernel.is_empty() && !machine.cpu.is_empty());
        assert_eq!(cpu_model("x: 1\nmodel name\t: AMD EPYC\n").as_deref(), Some("AMD EPYC"));
        let place = Place::of(&std::env::temp_dir()).expect("there");
        assert!(!place.file_system.is_empty());
        assert!(Place::of(Path::new("/no/such/place")).is_err());
    }

    #[test]
    fn what_is_not_known_about_a_device_is_noted() {
        let place = |cache: Option<&str>, fua| Place {
            file_system: "ext4".to_owned(),
            volatile: false,
            remote: false,
            direct: None,
            write_cache: cache.map(str::to_owned),
            forced_unit_access: fua,
        };
        assert!(place(Some("write back"), Some(false)).note().is_some());
        assert!(place(Some("write back"), Some(true)).note().is_none());
        assert!(place(Some("write through"), Some(false)).note().is_none());
        assert!(place(None, None).note().is_some());
    }
}
