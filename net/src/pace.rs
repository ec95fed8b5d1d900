//! Whether polling before blocking pays.
//!
//! ```text
//!   completions   |  |   |  |                 |        gap, smoothed 1/8
//!   gap < cap:    poll                        block
//! ```
//!
//! Invariant: a cap of zero never polls. One pause makes it block, since a gap counts in full as
//! long as it lasts; some thirty fast arrivals bring polling back.
//!
//! Failure: none.

use std::time::{Duration, Instant};

use crate::now;

/// Polls only while completions come closer together than the cap.
pub(crate) struct Pace {
    pub(crate) cap: Duration,
    /// The smoothed time between two waits that found something.
    gap: Duration,
    last: Option<Instant>,
}

/// A gap counts as no longer than this, so that one pause doesn't end polling for long.
const GAP_MAX: Duration = Duration::from_millis(1);

impl Pace {
    pub(crate) fn new(cap: Duration) -> Self {
        Self { cap, gap: GAP_MAX, last: None }
    }

    pub(crate) fn worthwhile(&self) -> bool {
        self.gap < self.cap
    }

    pub(crate) fn arrived(&mut self) {
        if self.cap.is_zero() {
            return;
        }
        let now = now();
        if let Some(last) = self.last.replace(now) {
            let gap = now.saturating_duration_since(last).min(GAP_MAX);
            self.gap = self.gap - self.gap / 8 + gap / 8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polling_pays_only_while_completions_come_fast() {
        let mut pace = Pace::new(Duration::from_micros(50));
        assert!(!pace.worthwhile());
        pace.gap = Duration::from_micros(40);
        assert!(pace.worthwhile());
        pace.last = now().checked_sub(Duration::from_secs(1));
        pace.arrived();
        assert!(!pace.worthwhile(), "one long pause");
        // From the longest gap, some thirty fast arrivals bring polling back.
        pace.gap = GAP_MAX;
        for _ in 0..40 {
            pace.last = Some(now());
            pace.arrived();
        }
        assert!(pace.gap < GAP_MAX / 10, "{:?}", pace.gap);
        assert!(!Pace::new(Duration::ZERO).worthwhile());
    }
}
