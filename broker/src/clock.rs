//! The time of day, for a core that has only moments.
//!
//! ```text
//!   host: at this moment it is so many milliseconds since 1970 ──▶ WallClock
//!   moment ──▶ milliseconds since 1970                             milliseconds ──▶ moment
//! ```
//! A host says it in the configuration and again by `Event::WallClock`, now and then: the time of
//! day is set while a process runs. A step back only makes what expires wait.

use std::time::{Duration, Instant};

/// The time of day at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WallClock {
    /// The moment.
    pub at: Instant,
    /// Milliseconds since 1970 (UTC) then.
    pub unix_ms: u64,
}

impl WallClock {
    /// Milliseconds since 1970 (UTC) at a moment.
    pub fn unix_ms(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.at).as_millis() as u64;
        let before = self.at.saturating_duration_since(now).as_millis() as u64;
        self.unix_ms.saturating_add(since).saturating_sub(before)
    }

    /// The first moment at which it is so late; one that is far away may come out too early.
    pub fn when(&self, unix_ms: u64) -> Instant {
        const FAR_MS: u64 = 1000 * 3600 * 24;
        let ahead = unix_ms.saturating_sub(self.unix_ms).min(FAR_MS);
        self.at + Duration::from_millis(ahead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "the origin of virtual time")]
    #[test]
    fn a_moment_is_found_again() {
        let at = Instant::now();
        let clock = WallClock { at, unix_ms: 5_000_000 };
        let later = at + Duration::from_millis(1_500);
        assert_eq!(clock.unix_ms(later), 5_001_500);
        assert_eq!(clock.when(5_001_500), later);
        assert_eq!(clock.when(4_000_000), at);
        assert!(clock.when(u64::MAX) > later);
    }
}
