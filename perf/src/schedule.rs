//! When messages are due: intended send times, fixed before anything is sent.
//!
//! ```text
//!   constant   0    1/r    2/r    3/r   ...          offset n is exactly n · 10⁹ / rate ns
//!   poisson    e₁   e₁+e₂  ...                       gaps are exponential, mean 1/rate, seeded
//! ```
//! A schedule knows nothing of replies: that is what makes a load open. Several producers each have
//! one, of a share of the rate, and a constant one begins at its place among them, so that all
//! together are constant again; independent Poisson streams add up to a Poisson stream.
//!
//! Invariants: pure; the same rate, arrivals and seed give the same times; times never go back; a
//! constant schedule does not drift, however long it runs.
//!
//! Failure: a rate outside its bounds is a panic: whoever reads it from outside checks it first.

/// The lowest rate, a second: one message in about a quarter of an hour.
pub const RATE_MIN: f64 = 0.001;

/// The highest rate, a second: one message a nanosecond.
pub const RATE_MAX: f64 = 1e9;

/// How send times are spread.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    clap::ValueEnum,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Arrivals {
    /// One each 1/rate.
    #[default]
    Constant,
    /// Memoryless: many independent senders look like this.
    Poisson,
}

/// The place of one schedule among those that share a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Which one, from 0.
    pub index: u32,
    /// Among how many, at least 1.
    pub of: u32,
}

impl Share {
    /// The only one.
    pub const WHOLE: Self = Self { index: 0, of: 1 };
}

/// Intended send times of one producer, in nanoseconds from the start of the run.
#[derive(Clone, Debug)]
pub struct Schedule {
    arrivals: Arrivals,
    /// Messages a second of all that share.
    rate: f64,
    share: Share,
    /// How many were handed out.
    count: u64,
    /// Poisson: the time of the last one; as a float, so that fractions are not lost one by one.
    at_ns: f64,
    random: SplitMix,
}

impl Schedule {
    /// A schedule of `rate` messages a second.
    ///
    /// # Panics
    /// If the rate is not within [`RATE_MIN`] and [`RATE_MAX`].
    pub fn new(arrivals: Arrivals, rate: f64, seed: u64) -> Self {
        Self::shared(arrivals, rate, seed, Share::WHOLE)
    }

    /// One of several schedules that make up `rate` messages a second together.
    ///
    /// # Panics
    /// As [`Schedule::new`], and if the share makes no sense.
    pub fn shared(arrivals: Arrivals, rate: f64, seed: u64, share: Share) -> Self {
        assert!((RATE_MIN..=RATE_MAX).contains(&rate), "a rate of {rate} a second");
        assert!(share.index < share.of, "share {} of {}", share.index, share.of);
        let mut random = SplitMix(seed);
        // Neighbouring seeds must not give neighbouring streams.
        let random = SplitMix(random.next() ^ u64::from(share.index).wrapping_mul(GOLDEN));
        Self { arrivals, rate, share, count: 0, at_ns: 0.0, random }
    }

    /// The next intended time, in nanoseconds from the start.
    #[inline]
    pub fn next_ns(&mut self) -> u64 {
        let number = self.count;
        self.count += 1;
        match self.arrivals {
            Arrivals::Constant => {
                let place = number as u128 * u128::from(self.share.of);
                self.constant_ns(place + u128::from(self.share.index))
            }
            Arrivals::Poisson => {
                let mean_ns = 1e9 * f64::from(self.share.of) / self.rate;
                self.at_ns -= mean_ns * self.random.open_unit().ln();
                self.at_ns as u64
            }
        }
    }

    /// The time of message `number` of the whole rate. Micro-messages a second are exact enough and
    /// keep it in integers.
    fn constant_ns(&self, number: u128) -> u64 {
        const MICRO: f64 = 1e6;
        let rate_micro = (self.rate * MICRO).round() as u128;
        (number * 1_000_000_000 * 1_000_000 / rate_micro) as u64
    }
}

/// 2⁶⁴ divided by the golden ratio.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// Steele, Lea and Flood's generator: enough for arrival times, and nothing to seed wrongly.
#[derive(Clone, Debug)]
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Above 0 and at most 1, so that its logarithm is finite.
    fn open_unit(&mut self) -> f64 {
        const STEPS: f64 = (1u64 << 53) as f64;
        ((self.next() >> 11) + 1) as f64 / STEPS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(mut schedule: Schedule, count: usize) -> Vec<u64> {
        (0..count).map(|_| schedule.next_ns()).collect()
    }

    #[test]
    fn a_constant_rate_does_not_drift() {
        let schedule = Schedule::new(Arrivals::Constant, 3.0, 1);
        assert_eq!(times(schedule, 4), [0, 333_333_333, 666_666_666, 1_000_000_000]);
        let mut schedule = Schedule::new(Arrivals::Constant, 70_000.0, 1);
        schedule.count = 70_000 * 86_400 * 365;
        assert_eq!(schedule.next_ns(), 86_400 * 365 * 1_000_000_000);
        let mut slow = Schedule::new(Arrivals::Constant, 0.5, 1);
        slow.next_ns();
        assert_eq!(slow.next_ns(), 2_000_000_000);
    }

    #[test]
    fn shares_of_a_constant_rate_are_constant_together() {
        let whole = times(Schedule::new(Arrivals::Constant, 7000.0, 1), 300);
        let mut together: Vec<u64> = (0..3)
            .map(|index| Share { index, of: 3 })
            .flat_map(|share| times(Schedule::shared(Arrivals::Constant, 7000.0, 1, share), 100))
            .collect();
        together.sort_unstable();
        assert_eq!(together, whole);
    }

    #[test]
    fn poisson_gaps_have_their_mean_and_their_spread() {
        let times = times(Schedule::new(Arrivals::Poisson, 1000.0, 7), 100_000);
        assert!(times.is_sorted());
        let gaps: Vec<f64> =
            times.windows(2).map(|pair| (pair[1] - pair[0]) as f64 / 1e6).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        // An exponential's deviation is its mean: 1 ms here.
        assert!((mean - 1.0).abs() < 0.02, "mean {mean}");
        assert!((variance.sqrt() - 1.0).abs() < 0.03, "deviation {}", variance.sqrt());
        let long = gaps.iter().filter(|gap| **gap > 3.0).count() as f64 / gaps.len() as f64;
        assert!((long - (-3.0f64).exp()).abs() < 0.005, "{long} are beyond three means");
    }

    #[test]
    fn shares_of_a_poisson_rate_are_independent_and_add_up() {
        let streams: Vec<Vec<u64>> = (0..4)
            .map(|index| Share { index, of: 4 })
            .map(|share| times(Schedule::shared(Arrivals::Poisson, 4000.0, 7, share), 10_000))
            .collect();
        assert_ne!(streams[0], streams[1]);
        for stream in streams {
            let seconds = stream.last().copied().unwrap_or(0) as f64 / 1e9;
            assert!((seconds - 10.0).abs() < 0.5, "10,000 took {seconds} s at 1,000 a second");
        }
    }

    #[test]
    fn a_seed_gives_the_same_times_again() {
        let run = |seed| times(Schedule::new(Arrivals::Poisson, 1000.0, seed), 100);
        assert_eq!(run(3), run(3));
        assert_ne!(run(3), run(4));
    }

    #[test]
    #[should_panic(expected = "a rate of")]
    fn a_rate_of_nothing_is_refused() {
        Schedule::new(Arrivals::Constant, 0.0, 1);
    }
}
