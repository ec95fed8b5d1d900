//! How fast a live reads its log back for a backup that has to catch up.
//!
//! ```text
//!   time ─ rate ─▶ ┐
//!   appended, twice ▶ budget ──▶ a batch that was read back takes its bytes
//!                    └ by time never more than a burst
//! ```
//! A copy at full speed takes the disk and the cores from the producers beside it. What is appended
//! meanwhile is allowed twice, so that a backup comes nearer whatever the producers do.
//!
//! Invariants: a batch goes when the budget is not spent, and may overdraw it by itself; what is
//! sent from memory, to a backup that is near, is never held back. Nothing here fails.

use std::time::{Duration, Instant};

use journal::limits::BATCH_BYTES_MAX;

use crate::limits::{CATCH_UP_BURST, CATCH_UP_RATE_MIN, SEND_AHEAD_BYTES_MAX};

/// What may be sent now, and when more may be.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Bytes a second.
    rate: u64,
    burst: u64,
    budget: u64,
    /// Bytes sent beyond the budget.
    owed: u64,
    at: Instant,
    /// Something was held back.
    holds: bool,
}

impl Pace {
    pub(crate) fn new(now: Instant, rate: u64) -> Self {
        let rate = rate.max(CATCH_UP_RATE_MIN);
        let burst = bytes_in(rate, CATCH_UP_BURST).max(BATCH_BYTES_MAX as u64);
        Self { rate, burst, budget: burst, owed: 0, at: now, holds: false }
    }

    /// Takes the time.
    pub(crate) fn refill(&mut self, now: Instant) {
        let gained = bytes_in(self.rate, now.saturating_duration_since(self.at));
        // Less than a byte's time is kept for the next look.
        if gained > 0 {
            self.at = now;
            self.allow(gained, self.burst);
        }
        self.holds &= self.budget == 0;
    }

    /// The log has become longer.
    pub(crate) fn appended(&mut self, bytes: u64) {
        self.allow(2 * bytes, SEND_AHEAD_BYTES_MAX.max(self.burst));
    }

    /// Whether a batch may go now; if not, [`due`](Self::due) says when.
    pub(crate) fn may_send(&mut self) -> bool {
        self.holds = self.budget == 0;
        !self.holds
    }

    pub(crate) fn sent(&mut self, bytes: u64) {
        self.owed += bytes.saturating_sub(self.budget);
        self.budget = self.budget.saturating_sub(bytes);
    }

    /// When what is held back may go, if something is.
    pub(crate) fn due(&self) -> Option<Instant> {
        let missing = self.owed + self.burst / 2;
        let wait = Duration::from_nanos(
            (u128::from(missing) * 1_000_000_000 / u128::from(self.rate)) as u64,
        );
        self.holds.then(|| self.at + wait)
    }

    fn allow(&mut self, bytes: u64, most: u64) {
        let paid = self.owed.min(bytes);
        self.owed -= paid;
        self.budget = (self.budget + bytes - paid).min(most.max(self.budget));
    }
}

fn bytes_in(rate: u64, time: Duration) -> u64 {
    let bytes = u128::from(rate) * time.as_nanos() / 1_000_000_000;
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: u64 = 10 * 1024 * 1024;

    #[expect(clippy::disallowed_methods, reason = "the origin of virtual time")]
    fn now() -> Instant {
        Instant::now()
    }

    /// Bytes that go in a second, in batches of so many, while so many are appended.
    fn sent_in_a_second(batch: u64, appended: u64) -> u64 {
        let mut at = now();
        let end = at + Duration::from_secs(1);
        let mut pace = Pace::new(at, RATE);
        let mut sent = 0;
        let mut looks = 0;
        while at < end {
            while pace.may_send() {
                pace.sent(batch);
                sent += batch;
            }
            at = pace.due().expect("it holds back").min(end);
            pace.appended(appended / 100);
            pace.refill(at);
            looks += 1;
        }
        assert!(looks < 1000, "{looks} looks a second");
        sent
    }

    #[test]
    fn a_second_sends_what_the_rate_allows_whatever_the_batches() {
        for batch in [4096, 60 * 1024, BATCH_BYTES_MAX as u64] {
            let sent = sent_in_a_second(batch, 0);
            assert!((RATE * 9 / 10..=RATE * 11 / 10).contains(&sent), "{sent} in {batch}");
        }
    }

    #[test]
    fn who_appends_does_not_outrun_it() {
        let sent = sent_in_a_second(BATCH_BYTES_MAX as u64, 8 * RATE);
        assert!(sent >= 8 * RATE, "{sent}");
    }

    #[test]
    fn an_idle_second_is_not_saved_up() {
        let mut at = now();
        let mut pace = Pace::new(at, RATE);
        at += Duration::from_secs(60);
        pace.refill(at);
        let mut sent = 0;
        while pace.may_send() {
            pace.sent(4096);
            sent += 4096;
        }
        assert!(sent <= bytes_in(RATE, CATCH_UP_BURST) + 4096, "{sent}");
        assert!(pace.due().expect("it holds back") > at);
    }
}
