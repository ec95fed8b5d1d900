//! What peers can cause is told in the log by the ration.
//!
//! ```text
//!   line ─▶ fewer than the ration in this second: told, with how many were left out before
//!      └──▶ else left out, and counted
//! ```
//! A flood is so a few lines a second and a number, and cannot drown what else the log says.

use std::time::{Duration, Instant};

/// At most so many lines a second.
#[derive(Debug, Default)]
pub struct Ration<const LINES_PER_SECOND: u32> {
    since: Option<Instant>,
    told: u32,
    left_out: u64,
}

impl<const LINES_PER_SECOND: u32> Ration<LINES_PER_SECOND> {
    /// Whether a line may be told now; if so, with how many were left out before.
    pub fn line(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now >= since + Duration::from_secs(1)) {
            (self.since, self.told) = (Some(now), 0);
        }
        if self.told >= LINES_PER_SECOND {
            self.left_out += 1;
            return None;
        }
        self.told += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_a_few_lines_and_a_number() {
        let mut ration = Ration::<2>::default();
        #[expect(clippy::disallowed_methods, reason = "a test has no other clock")]
        let now = Instant::now();
        let told =
            [0, 1, 2, 999, 1000, 1001].map(|ms| ration.line(now + Duration::from_millis(ms)));
        assert_eq!(told, [Some(0), Some(0), None, None, Some(2), Some(0)]);
    }
}
