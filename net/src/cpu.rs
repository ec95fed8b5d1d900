//! How many core threads this process should run, and whether to pin them.
//!
//! ```text
//!   affinity   sched_getaffinity: the CPUs we may run on
//!   quota      the tightest of our control groups (`cgroup.rs`); none visible = none
//!   threads  = floor(min(|affinity|, quota)), at least 1; a quota of 4 or more counts as one less,
//!              so that HTTP, telemetry and kernel workers don't get the cores throttled
//!   pin      = the process has the CPUs of its set for itself: fewer than the machine has, and a
//!              quota, if any, of just as many
//! ```
//!
//! Invariant: what is read is reported next to what was decided.
//!
//! Failure: a file that can't be read or makes no sense counts as "no limit"; a pin that the kernel
//! refuses is an error for the caller to log, nothing worse.

#![expect(unsafe_code, reason = "sched_getaffinity and sched_setaffinity have no safe form in std")]

use std::fs;
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::path::PathBuf;

use crate::cgroup::{Groups, Limit};

/// What the machine offers and what follows from it.
#[derive(Debug, Clone, PartialEq)]
pub struct CpuPlan {
    /// The CPUs this process may run on, ascending; never empty.
    pub affinity: Vec<usize>,
    /// CPUs' worth of time that the control group allows, if it limits it.
    pub quota: Option<f64>,
    /// The file of the control group that says so.
    pub quota_file: Option<PathBuf>,
    /// Core threads to run by default, at least 1.
    pub threads: usize,
    /// Whether to pin thread `i` to `affinity[i]`.
    pub pin: bool,
}

impl CpuPlan {
    /// Looks at this process.
    ///
    /// # Errors
    /// The kernel doesn't tell the affinity.
    pub fn detect() -> io::Result<Self> {
        let affinity = affinity()?;
        let limit = Groups::of_this_process().cpu_quota();
        let quota = limit.as_ref().map(|limit| limit.value);
        let machine =
            online_cpus(&fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default());
        let quota_file = limit.map(|Limit { file, .. }| file);
        Ok(Self { quota_file, ..Self::decide(affinity, quota, machine) })
    }

    /// The same machine with this many threads, because somebody wants them.
    ///
    /// # Panics
    /// If there are none.
    #[must_use]
    pub fn with_threads(mut self, threads: usize) -> Self {
        assert!(threads > 0, "somebody has to do the work");
        // Two threads that are pinned to one CPU could not even move apart.
        self.pin &= threads <= self.affinity.len();
        self.threads = threads;
        self
    }

    fn decide(affinity: Vec<usize>, quota: Option<f64>, machine: Option<usize>) -> Self {
        let cpus = affinity.len();
        let threads = match quota {
            None => cpus,
            // A quota is positive and finite (see `cgroup`), so the cast keeps its floor.
            Some(quota) if quota < 4.0 => cpus.min(quota as usize).max(1),
            Some(quota) => cpus.min(quota as usize - 1),
        };
        let own_set = machine.is_some_and(|machine| cpus < machine);
        let whole_quota = quota.is_none_or(|quota| quota == cpus as f64);
        Self { affinity, quota, quota_file: None, threads, pin: own_set && whole_quota }
    }
}

/// Pins the calling thread to one CPU.
///
/// # Errors
/// There is no such CPU, or the process may not use it.
pub fn pin_current_thread(cpu: usize) -> io::Result<()> {
    let mut set = MaybeUninit::<libc::cpu_set_t>::zeroed();
    if cpu >= 8 * size_of::<libc::cpu_set_t>() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no such CPU"));
    }
    // SAFETY: a cpu_set_t is an array of integers, for which zero is a value.
    let set_ref = unsafe { set.assume_init_mut() };
    // SAFETY: `cpu` was checked to be inside the set.
    unsafe { libc::CPU_SET(cpu, set_ref) };
    // SAFETY: the pointer and the size are those of a live cpu_set_t; 0 is the calling thread.
    let result = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), set_ref) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets other threads go before the calling one where there are not enough CPUs for all: `nice`, 0
/// to 19, is how far.
///
/// # Errors
/// The kernel refused.
pub fn give_way(nice: i32) -> io::Result<()> {
    // For Linux "this process" is the calling thread.
    Ok(rustix::process::setpriority_process(None, nice)?)
}

fn affinity() -> io::Result<Vec<usize>> {
    let mut set = MaybeUninit::<libc::cpu_set_t>::zeroed();
    // SAFETY: the pointer and the size are those of a live cpu_set_t; 0 is the calling thread.
    let result =
        unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), set.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was zeroed, and zero is a value of an array of integers.
    let set = unsafe { set.assume_init() };
    let cpus = (0..8 * size_of::<libc::cpu_set_t>())
        // SAFETY: `cpu` is inside the set.
        .filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) })
        .collect::<Vec<_>>();
    assert!(!cpus.is_empty(), "a running thread runs on some CPU");
    Ok(cpus)
}

/// How many CPUs a list such as `0-3,6` names.
fn online_cpus(list: &str) -> Option<usize> {
    list.trim().split(',').try_fold(0, |sum, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        Some(sum + last.checked_sub(first)? + 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(cpus: usize, quota: Option<f64>, machine: usize) -> (usize, bool) {
        let plan = CpuPlan::decide((0..cpus).collect(), quota, Some(machine));
        (plan.threads, plan.pin)
    }

    #[test]
    fn threads_follow_the_smaller_of_affinity_and_quota() {
        assert_eq!(plan(8, None, 8), (8, false));
        assert_eq!(plan(8, Some(0.5), 8), (1, false));
        assert_eq!(plan(8, Some(3.9), 8), (3, false));
        assert_eq!(plan(8, Some(4.0), 8), (3, false));
        assert_eq!(plan(2, Some(4.0), 8), (2, false));
        assert_eq!(plan(8, Some(8.0), 16), (7, true));
        assert_eq!(plan(1, Some(64.0), 8), (1, false));
    }

    #[test]
    fn only_a_set_of_its_own_is_pinned() {
        assert_eq!(plan(2, None, 8), (2, true));
        assert_eq!(plan(2, Some(2.0), 8), (2, true));
        assert_eq!(plan(2, Some(1.5), 8), (1, false));
        assert!(!CpuPlan::decide(vec![0], None, None).pin);
    }

    #[test]
    fn threads_that_are_asked_for_are_pinned_only_if_each_has_a_cpu() {
        let own = CpuPlan::decide(vec![2, 3], None, Some(8));
        assert!(own.pin);
        let fewer = own.clone().with_threads(1);
        assert_eq!((fewer.threads, fewer.pin), (1, true));
        let more = own.with_threads(8);
        assert_eq!((more.threads, more.pin), (8, false));
    }

    #[test]
    fn this_process_has_a_plan() {
        let plan = CpuPlan::detect().unwrap();
        assert!(plan.threads >= 1 && plan.threads <= plan.affinity.len());
    }

    #[test]
    fn a_thread_can_be_pinned() {
        let cpu = *CpuPlan::detect().unwrap().affinity.last().unwrap();
        let thread = std::thread::Builder::new().name("pin".to_owned()).spawn(move || {
            pin_current_thread(cpu).unwrap();
            affinity().unwrap()
        });
        assert_eq!(thread.unwrap().join().unwrap(), [cpu]);
        assert!(pin_current_thread(usize::MAX).is_err());
    }

    #[test]
    fn cpu_lists_are_counted() {
        assert_eq!(online_cpus("0-3,6\n"), Some(5));
        assert_eq!(online_cpus("0"), Some(1));
        assert_eq!(online_cpus(""), None);
        assert_eq!(online_cpus("3-1"), None);
    }
}
