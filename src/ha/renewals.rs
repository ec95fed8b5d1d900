//! How long the voters take for a renewal, and whether the lease is long enough for that.
//!
//! ```text
//!   note(took) ─┬─▶ counted for good, by bound   the histogram of the metrics
//!               └─▶ the last LAST_MAX            p99.9, and is the lease too short?
//! ```
//! A lease is to be ten times what 99.9 % of the renewals take. It is called too short where of the
//! last ones more than a thousandth took longer than a tenth of it, and at least two did: one
//! alone says nothing of how often that happens. Only renewals that were won are counted: what the
//! voters never answered ends in a fence, which has a counter of its own.
//!
//! Failure: none; nothing is decided by it.

use std::collections::VecDeque;
use std::time::Duration;

/// Upper bounds of the histogram, ms.
const BOUNDS_MS: [u64; 12] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000];
/// So many are looked at for p99.9: with the default lease those of the last 13 minutes.
const LAST_MAX: usize = 2000;
/// So many times p99.9 a lease is to be.
const LEASE_TIMES: u32 = 10;
/// Fewer slow renewals are chance.
const SLOW_MIN: usize = 2;

/// Renewals of this process.
#[derive(Debug, Default)]
pub(super) struct Renewals {
    /// Those within each bound that exceeded the one before.
    counts: [u64; BOUNDS_MS.len()],
    total: u64,
    sum: Duration,
    max: Duration,
    last: VecDeque<Duration>,
}

impl Renewals {
    /// One was won, so long after it was sent.
    pub(super) fn note(&mut self, took: Duration) {
        let bound = BOUNDS_MS.iter().position(|bound| took <= Duration::from_millis(*bound));
        if let Some(bound) = bound {
            self.counts[bound] += 1;
        }
        self.total += 1;
        self.sum += took;
        self.max = self.max.max(took);
        if self.last.len() == LAST_MAX {
            self.last.pop_front();
        }
        self.last.push_back(took);
    }

    /// Whether a lease of this length is too short for what the last ones took.
    pub(super) fn outgrow(&self, lease: Duration) -> bool {
        let slow = self.last.iter().filter(|took| **took * LEASE_TIMES > lease).count();
        slow >= SLOW_MIN && slow * 1000 > self.last.len()
    }

    /// What 99.9 % of the last ones did not exceed.
    pub(super) fn p999(&self) -> Duration {
        let mut last: Vec<Duration> = self.last.iter().copied().collect();
        last.sort_unstable();
        let rank = (last.len() * 999).div_ceil(1000);
        last.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }

    /// How many there were.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// What all of them took together.
    pub(super) fn sum(&self) -> Duration {
        self.sum
    }

    /// What the longest of them took.
    pub(super) fn max(&self) -> Duration {
        self.max
    }

    /// Each bound in milliseconds, and how many took no longer.
    pub(super) fn within(&self) -> impl Iterator<Item = (u64, u64)> {
        let so_far = |so_far: &mut u64, (bound, count): (u64, u64)| {
            *so_far += count;
            Some((bound, *so_far))
        };
        BOUNDS_MS.into_iter().zip(self.counts).scan(0, so_far)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const LEASE: Duration = Duration::from_secs(2);

    fn of(many: usize, ms: u64, renewals: &mut Renewals) {
        (0..many).for_each(|_| renewals.note(Duration::from_millis(ms)));
    }

    #[test]
    fn a_lease_is_too_short_by_more_than_a_thousandth_and_never_by_one() {
        let mut renewals = Renewals::default();
        assert!(!renewals.outgrow(LEASE));
        of(1, 201, &mut renewals);
        assert!(!renewals.outgrow(LEASE), "one is chance");
        of(1, 201, &mut renewals);
        assert!(renewals.outgrow(LEASE));
        of(1997, 200, &mut renewals);
        assert!(renewals.outgrow(LEASE), "two of 1999");
        of(1, 200, &mut renewals);
        assert!(!renewals.outgrow(LEASE), "two of 2000 are a thousandth");
        assert_eq!(renewals.p999(), Duration::from_millis(200));
        of(1, 201, &mut renewals);
        assert!(!renewals.outgrow(LEASE), "the oldest was forgotten");
        of(2, 201, &mut renewals);
        assert!(renewals.outgrow(LEASE));
        assert_eq!(renewals.p999(), Duration::from_millis(201));
    }

    #[test]
    fn the_histogram_is_cumulative_and_forgets_nothing() {
        let mut renewals = Renewals::default();
        of(LAST_MAX, 3, &mut renewals);
        of(LAST_MAX, 1, &mut renewals);
        of(1, 6000, &mut renewals);
        let within: Vec<(u64, u64)> = renewals.within().collect();
        assert_eq!(within[..3], [(1, 2000), (2, 2000), (5, 4000)]);
        assert_eq!(within[11], (5000, 4000));
        assert_eq!(renewals.total(), 4001);
        assert_eq!(renewals.sum(), Duration::from_secs(2 + 6 + 6));
        assert_eq!((renewals.max(), renewals.p999()), (6 * SECOND, SECOND / 1000));
    }
}
