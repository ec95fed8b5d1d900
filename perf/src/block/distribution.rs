//! Histograms of nanoseconds: their bounds, their percentiles, their JSON and `.hgrm` forms.
//!
//! ```text
//!   JSON    {"count": 3, "min_ns": .., "mean_ns": .., "p50_ns": .., .. "max_ns": ..,
//!            "buckets": [[value_ns, count], ..]}          only buckets that hold something
//!   .hgrm   Value  Percentile  TotalCount  1/(1-Percentile)     microseconds, as HdrHistogram's
//!                                                               own tools write and plot it
//! ```
//! Invariant: a histogram that was read back is equal to the one that was written.
//!
//! Failure: a count without a bucket, or a value beyond the bounds, is an error of the reader.

use std::fmt::Write as _;

use hdrhistogram::{Counter, Histogram};
use serde::de::Error as _;
use serde::ser::SerializeStruct as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::LATENCY_NS_MAX;

/// An empty histogram of nanoseconds: 1 ns to [`LATENCY_NS_MAX`], 3 significant digits.
#[must_use]
pub fn empty_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("bounds that hold")
}

/// The percentiles that are printed, by their names in JSON (with `_ns` behind).
pub const PERCENTILES: [(&str, f64); 5] =
    [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999), ("p9999", 0.9999)];

/// The usual percentiles of a histogram, in nanoseconds; all zero where it is empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Percentiles {
    /// The median.
    pub p50: u64,
    /// 90 % are at most this.
    pub p90: u64,
    /// 99 %.
    pub p99: u64,
    /// 99.9 %.
    pub p999: u64,
    /// The largest.
    pub max: u64,
}

impl Percentiles {
    /// Of a histogram.
    #[must_use]
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: histogram.max() }
    }
}

/// Adds one histogram of our bounds to another of the same.
pub(super) fn add<C: Counter>(into: &mut Histogram<C>, from: &Histogram<C>) {
    into.add(from).expect("the same bounds");
}

/// The text that HdrHistogram's tools read and plot, values in microseconds.
#[must_use]
pub fn write_hgrm(histogram: &Histogram<u64>) -> String {
    const NS_PER_US: f64 = 1000.0;
    const TICKS_PER_HALF_DISTANCE: u32 = 5;
    let mut text = format!(
        "{:>12} {:>14} {:>10} {:>14}\n\n",
        "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
    );
    let mut total = 0;
    for step in histogram.iter_quantiles(TICKS_PER_HALF_DISTANCE) {
        total += step.count_since_last_iteration();
        let value = step.value_iterated_to() as f64 / NS_PER_US;
        let quantile = step.quantile_iterated_to();
        let line = if quantile < 1.0 {
            let inverse = 1.0 / (1.0 - quantile);
            writeln!(text, "{value:12.3} {quantile:14.12} {total:10} {inverse:14.2}")
        } else {
            writeln!(text, "{value:12.3} {quantile:14.12} {total:10}")
        };
        line.expect("memory takes text");
    }
    let us = |ns: f64| ns / NS_PER_US;
    let (mean, deviation) = (us(histogram.mean()), us(histogram.stdev()));
    let max = us(histogram.max() as f64);
    let lines = [
        format!("#[Mean    = {mean:12.3}, StdDeviation   = {deviation:12.3}]"),
        format!("#[Max     = {max:12.3}, Total count    = {:12}]", histogram.len()),
        format!(
            "#[Buckets = {:12}, SubBuckets     = {:12}]",
            histogram.buckets(),
            histogram.distinct_values() / usize::from(histogram.buckets()).max(1)
        ),
    ];
    for line in lines {
        text.push_str(&line);
        text.push('\n');
    }
    text
}

pub(super) fn serialize<S: Serializer>(
    histogram: &Histogram<u64>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    const NAMES: [&str; 5] = ["p50_ns", "p90_ns", "p99_ns", "p999_ns", "p9999_ns"];
    const { assert!(NAMES.len() == PERCENTILES.len()) };
    let mut fields = serializer.serialize_struct("Histogram", NAMES.len() + 5)?;
    fields.serialize_field("count", &histogram.len())?;
    fields.serialize_field("min_ns", &histogram.min())?;
    fields.serialize_field("mean_ns", &histogram.mean())?;
    for (name, (_, quantile)) in NAMES.into_iter().zip(PERCENTILES) {
        fields.serialize_field(name, &histogram.value_at_quantile(quantile))?;
    }
    fields.serialize_field("max_ns", &histogram.max())?;
    let buckets: Vec<(u64, u64)> = histogram
        .iter_recorded()
        .map(|step| (step.value_iterated_to(), step.count_at_value()))
        .collect();
    fields.serialize_field("buckets", &buckets)?;
    fields.end()
}

/// What is read back: the rest follows from it.
#[derive(Deserialize)]
struct Stored {
    count: u64,
    buckets: Vec<(u64, u64)>,
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Histogram<u64>, D::Error> {
    let stored = Stored::deserialize(deserializer)?;
    let mut histogram = empty_histogram();
    for (value, count) in stored.buckets {
        histogram.record_n(value, count).map_err(D::Error::custom)?;
    }
    if histogram.len() == stored.count {
        Ok(histogram)
    } else {
        let held = histogram.len();
        Err(D::Error::custom(format!("{held} values in buckets, but count says {}", stored.count)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled() -> Histogram<u64> {
        let mut histogram = empty_histogram();
        for value in 1..=10_000u64 {
            histogram.saturating_record(value * 1000);
        }
        histogram
    }

    #[test]
    fn three_digits_hold_over_the_whole_range() {
        let mut histogram = empty_histogram();
        for value in [1, 999, 123_456, 98_765_432, LATENCY_NS_MAX - 1] {
            histogram.clear();
            histogram.saturating_record(value);
            let held = histogram.value_at_quantile(0.5);
            assert!(held.abs_diff(value) * 1000 <= value, "{value} became {held}");
        }
        histogram.saturating_record(u64::MAX);
        assert!(histogram.max() >= LATENCY_NS_MAX);
    }

    #[test]
    fn percentiles_are_those_of_the_values() {
        let percentiles = Percentiles::of(&filled());
        let near = |ns: u64, us: u64| (ns / 1000).abs_diff(us) * 1000 <= us;
        assert!(near(percentiles.p50, 5000) && near(percentiles.p99, 9900), "{percentiles:?}");
        assert_eq!(Percentiles::of(&empty_histogram()), Percentiles::default());
    }

    #[test]
    fn hgrm_has_rising_values_and_the_total() {
        let text = write_hgrm(&filled());
        let values: Vec<f64> = text
            .lines()
            .skip(2)
            .take_while(|line| !line.starts_with('#'))
            .map(|line| line.split_whitespace().next().expect("a value").parse().expect("a number"))
            .collect();
        assert!(values.len() > 20 && values.is_sorted(), "{values:?}");
        assert!(text.contains("Total count    =        10000]"), "{text}");
    }

    #[test]
    fn a_count_that_does_not_fit_its_buckets_is_refused() {
        let read = |text: &str| deserialize(&mut serde_json::Deserializer::from_str(text));
        assert_eq!(read(r#"{"count": 2, "buckets": [[5, 2]]}"#).expect("sound").len(), 2);
        assert!(read(r#"{"count": 3, "buckets": [[5, 2]]}"#).is_err());
        assert!(read(r#"{"count": 1, "buckets": [[9000000000000000, 1]]}"#).is_err());
    }
}
