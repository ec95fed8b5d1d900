//! How long who may serve, and how long who must wait: arithmetic on one's own clock.
//!
//! ```text
//!   live        sends a swap ├──────────────── D - guard ────────────┤ fenced
//!   voters            version v stands ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─
//!   challenger             reads v, done ├───────── D (1 + 2ρ) + ε ─────────┤ may challenge
//! ```
//!
//! Why they never overlap (I1): v was sent before it stood, and stood before it was read. So the
//! challenger's wait begins after the live's lease does, and it is longer by more than two clocks
//! can drift apart meanwhile, if the rate of each is off by at most ρ. The two clocks are the
//! brokers' own, those that go on while a machine sleeps; what the voters' clocks say plays no
//! part. The two may be configured with different leases: the record says by which one its live
//! serves, and the challenger waits for the longer of that and its own.
//!
//! If a clock breaks this bound two brokers may serve at once for a moment; nothing that was
//! acknowledged is lost even then, since that rests on the in-sync set alone.

use std::time::{Duration, Instant};

/// The drift that is allowed for, in thousandths: ρ.
const DRIFT_PERMILLE: u32 = 10;
/// What is added for the grain of clocks: ε.
const EPSILON: Duration = Duration::from_millis(100);
/// Shortest lease.
const LEASE_MIN: Duration = Duration::from_millis(500);
/// Longest lease.
const LEASE_MAX: Duration = Duration::from_secs(60);

/// The length of a lease, D, and what follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTerms {
    length: Duration,
}

impl LeaseTerms {
    /// A lease of this length: from half a second to a minute. Parts of a millisecond are dropped.
    #[must_use]
    pub fn new(length: Duration) -> Option<Self> {
        let is_bounded = (LEASE_MIN..=LEASE_MAX).contains(&length);
        let length = Duration::from_millis(u64::try_from(length.as_millis()).ok()?);
        is_bounded.then_some(Self { length })
    }

    /// D in milliseconds, as it is written.
    pub(crate) fn millis(self) -> u32 {
        u32::try_from(self.length.as_millis()).unwrap_or(u32::MAX)
    }

    /// The longer of two: for whoever waits for a lease that may be either.
    #[must_use]
    pub(crate) fn longer(self, other: Self) -> Self {
        Self { length: self.length.max(other.length) }
    }

    /// D.
    #[must_use]
    pub const fn length(self) -> Duration {
        self.length
    }

    /// R2: until when the live may serve whose swap, sent then, was won.
    #[must_use]
    pub fn fence_at(self, sent: Instant) -> Instant {
        sent + self.length - self.guard()
    }

    /// R3: from when on a version may be challenged that was read then, and stands still.
    #[must_use]
    pub fn challenge_from(self, read: Instant) -> Instant {
        read + self.length + self.length * (2 * DRIFT_PERMILLE) / 1000 + EPSILON
    }

    /// Between the end of serving and the end of the lease: what is under way at the fence.
    #[must_use]
    pub fn guard(self) -> Duration {
        self.length / 10
    }

    /// Between two renewals.
    #[must_use]
    pub fn renew_every(self) -> Duration {
        self.length / 5
    }

    /// Between two reads of who does not serve.
    #[must_use]
    pub fn read_every(self) -> Duration {
        self.length / 6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the origin of virtual time")]
    fn i1_a_challenge_comes_after_the_fence_however_the_clocks_drift() {
        let start = Instant::now();
        for ms in [500_u32, 2_000, 5_000, 60_000] {
            let terms = LeaseTerms::new(Duration::from_millis(ms.into())).expect("in bounds");
            let serves = terms.fence_at(start) - start + terms.guard();
            let waits = terms.challenge_from(start) - start;
            // The live's clock is slow by ρ, the challenger's is fast by as much.
            let latest = serves * 1000 / (1000 - DRIFT_PERMILLE);
            let earliest = waits * 1000 / (1000 + DRIFT_PERMILLE);
            assert!(earliest > latest, "a lease of {ms} ms: {earliest:?} <= {latest:?}");
        }
    }

    #[test]
    fn a_lease_has_bounds() {
        assert_eq!(LeaseTerms::new(Duration::from_millis(499)), None);
        assert_eq!(LeaseTerms::new(Duration::from_secs(61)), None);
    }
}
