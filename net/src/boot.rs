//! The clock that goes on while the machine sleeps.
//!
//! What a lease is measured by: `CLOCK_MONOTONIC` stands still in a sleep, and a broker that slept
//! would take a lease for valid that is long over. It is read without a system call.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Time since the machine was started, sleep included.
#[must_use]
pub fn boot_time() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on() {
        let before = boot_time();
        std::thread::sleep(Duration::from_millis(2));
        assert!(boot_time() >= before + Duration::from_millis(2));
    }
}
