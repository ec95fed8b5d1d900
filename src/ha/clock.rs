//! The clock of leases, and the gate that every core looks at.
//!
//! ```text
//!   control thread ── fence_at ──▶ Gate ◀── is it before the fence? ── each core, each turn
//! ```
//! Leases are counted by the clock that goes on while the machine sleeps (`CLOCK_BOOTTIME`). The
//! control thread's instants are made from it, so they are no instants of the cores' clock.
//!
//! Invariant: a core that reads the gate needs nobody else: a control thread that hangs can't keep
//! it serving.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::driver;

/// The lease clock of this process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: Instant,
    booted: Duration,
}

impl Clock {
    /// A clock; one a process.
    pub(crate) fn start() -> Self {
        Self { origin: driver::clock(), booted: driver::boot_time() }
    }

    /// How long it has been running, sleep included.
    pub(crate) fn elapsed(self) -> Duration {
        driver::boot_time().saturating_sub(self.booted)
    }

    /// Now, as the control thread counts.
    pub(crate) fn now(self) -> Instant {
        self.origin + self.elapsed()
    }

    /// An instant of the cores' clock, as the control thread counts.
    pub(crate) fn of_core(self, at: Instant) -> Instant {
        let now = self.now();
        now.checked_sub(driver::clock().saturating_duration_since(at)).unwrap_or(now)
    }
}

/// Until when the cores may serve.
#[derive(Debug)]
pub(crate) struct Gate {
    clock: Clock,
    /// Nanoseconds of the clock; 0: closed.
    fence: AtomicU64,
}

impl Gate {
    /// A gate that is closed.
    pub(crate) fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Self { clock, fence: AtomicU64::new(0) })
    }

    /// The clock that it is read by.
    pub(crate) fn clock(&self) -> Clock {
        self.clock
    }

    /// Opens it until then, or closes it.
    pub(crate) fn set(&self, fence_at: Option<Instant>) {
        let since = fence_at.map_or(Duration::ZERO, |at| at - self.clock.origin);
        self.fence.store(nanos(since), Ordering::Release);
    }

    /// Whether the fence is not reached.
    pub(crate) fn is_open(&self) -> bool {
        nanos(self.clock.elapsed()) < self.fence.load(Ordering::Acquire)
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_closes_by_itself() {
        let clock = Clock::start();
        let gate = Gate::new(clock);
        assert!(!gate.is_open());
        gate.set(Some(clock.now() + Duration::from_millis(50)));
        assert!(gate.is_open());
        std::thread::sleep(Duration::from_millis(60));
        assert!(!gate.is_open());
        gate.set(Some(clock.now() + Duration::from_secs(60)));
        assert!(gate.is_open());
        gate.set(None);
        assert!(!gate.is_open());
    }
}
