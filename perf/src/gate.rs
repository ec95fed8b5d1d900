//! Whether a change made a ratio worse.
//!
//! ```text
//!   baseline   |----low----median----high----|
//!   result                   |----low----median----high----|
//!
//!   worse:   the result's median is beyond the baseline's high, and
//!            the baseline's median is below the result's low
//! ```
//! Ratios only: an absolute time is the machine's minute. Both intervals have to agree, so that
//! neither a wide baseline nor a wide result decides alone. Latencies are worse when they grow,
//! rates when they shrink. Where one of the two is known no closer than a factor of four, as a p99
//! is on a disk that stands still in some blocks and not in others, nothing is said of it but that:
//! such a median is a throw of dice, and would call the same binary worse each other time.
//!
//! Failure: a regression, a result that is INVALID, or nothing to compare, is a failure of the
//! command: the text says which ratio and by how much.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::command::Failure;
use crate::compare::{Comparison, Ratio};
use crate::show;
use crate::stats::Estimate;

/// What `laelaps perf gate` is told.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The comparison that must not be left behind, as JSON
    #[arg(long, value_name = "FILE")]
    pub against: PathBuf,
    /// The comparison to judge, as JSON
    #[arg(value_name = "FILE", default_value = "laelaps-compare.json")]
    pub result: PathBuf,
    /// Judge results that are INVALID too
    #[arg(long)]
    pub allow_invalid: bool,
}

/// One ratio, before and after.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Such as `sync/floor p99`.
    pub name: String,
    /// The baseline's.
    pub before: Estimate,
    /// The result's.
    pub after: Estimate,
    /// What there is to say of it.
    pub found: Found,
}

/// What two intervals say together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Not worse, as far as the intervals tell.
    Kept,
    /// Worse, and both intervals agree.
    Worse,
    /// One interval is too wide to tell.
    Unknown,
}

/// An interval wider than this factor says nothing.
const KNOWN_WITHIN: f64 = 4.0;

/// `laelaps perf gate`.
///
/// # Errors
/// A regression, or why none can be told.
pub fn command(options: &Options) -> Result<(), Failure> {
    let baseline = read(&options.against)?;
    let result = read(&options.result)?;
    for (path, comparison) in [(&options.against, &baseline), (&options.result, &result)] {
        if !comparison.verdict.is_valid() && !options.allow_invalid {
            let (path, verdict) = (path.display(), &comparison.verdict);
            return Err(format!("{path} cannot be judged by: {verdict}").into());
        }
    }
    if baseline.plan.size != result.plan.size
        || baseline.plan.connections != result.plan.connections
        || baseline.plan.in_flight != result.plan.in_flight
        || baseline.plan.threads != result.plan.threads
        || baseline.plan.saturation.is_some() != result.plan.saturation.is_some()
        || baseline.plan.rate.is_some() != result.plan.rate.is_some()
        || baseline.plan.arrivals != result.plan.arrivals
    {
        return Err("the two comparisons measured different loads: same --size, --producers, \
                    --in-flight, --threads, --half, --closed and --arrivals, please"
            .into());
    }
    if let Some(name) = baseline.ratios.keys().find(|name| !result.ratios.contains_key(*name)) {
        return Err(format!("the result has no {name}: compare the same things, please").into());
    }
    let changes = changes(&baseline, &result);
    if changes.is_empty() {
        return Err("the two comparisons have no ratio in common".into());
    }
    show::print(&text(&changes))?;
    if changes.iter().all(|one| one.found == Found::Unknown) {
        return Err("nothing can be told: run more --pairs, or longer --blocks".into());
    }
    let worse: Vec<&str> = changes
        .iter()
        .filter(|one| one.found == Found::Worse)
        .map(|one| one.name.as_str())
        .collect();
    if worse.is_empty() { Ok(()) } else { Err(format!("worse: {}", worse.join(", ")).into()) }
}

/// Reads a comparison.
///
/// # Errors
/// The file is not there, or is something else.
pub fn read(path: &Path) -> Result<Comparison, Failure> {
    let named = |what: String| format!("{}: {what}", path.display());
    let text = std::fs::read_to_string(path).map_err(|error| named(error.to_string()))?;
    let comparison: Comparison = serde_json::from_str(&text)
        .map_err(|error| named(format!("no comparison of `laelaps perf compare`: {error}")))?;
    Ok(comparison)
}

/// Every ratio that both have.
#[must_use]
pub fn changes(baseline: &Comparison, result: &Comparison) -> Vec<Change> {
    let mut changes = Vec::new();
    for (name, before) in &baseline.ratios {
        let Some(after) = result.ratios.get(name) else { continue };
        for ((percentile, before), (_, after)) in
            before.estimates().into_iter().zip(after.estimates())
        {
            changes.push(Change {
                name: format!("{name} {percentile}"),
                before,
                after,
                found: found(before, after),
            });
        }
        // A rate that shrinks is a time that grows. At a given rate all do the same.
        if baseline.plan.rate.is_none() && result.plan.rate.is_none() {
            let rates = |ratio: &Ratio| ratio.rate.map(inverse);
            if let (Some(before), Some(after)) = (rates(before), rates(after)) {
                let found = found(before, after);
                changes.push(Change { name: format!("{name} 1/rate"), before, after, found });
            }
        }
    }
    changes
}

fn found(before: Estimate, after: Estimate) -> Found {
    if [before, after].iter().any(|one| one.high > KNOWN_WITHIN * one.low) {
        Found::Unknown
    } else if after.median > before.high && before.median < after.low {
        Found::Worse
    } else {
        Found::Kept
    }
}

fn inverse(estimate: Estimate) -> Estimate {
    let Estimate { median, low, high } = estimate;
    Estimate { median: 1.0 / median, low: 1.0 / high, high: 1.0 / low }
}

fn text(changes: &[Change]) -> String {
    let show = |estimate: Estimate| {
        let Estimate { median, low, high } = estimate;
        format!("{median:.2} ({low:.2}-{high:.2})")
    };
    let mut text = format!("{:<26} {:>20} {:>20}\n", "ratio (5-95 %)", "baseline", "now");
    for change in changes {
        let word = match change.found {
            Found::Kept => "",
            Found::Worse => "  WORSE",
            Found::Unknown => "  not known",
        };
        let (before, after) = (show(change.before), show(change.after));
        text.push_str(&format!("{:<26} {before:>20} {after:>20}{word}\n", change.name));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::tests::comparison;

    fn written(root: &Path, name: &str, comparison: &Comparison) -> PathBuf {
        let path = root.join(name);
        show::write_json(&path, comparison).expect("written");
        path
    }

    fn gate(before_us: u64, after_us: u64) -> Result<(), String> {
        let root = tempfile::tempdir().expect("a directory");
        let options = Options {
            against: written(root.path(), "before.json", &comparison(before_us, None)),
            result: written(root.path(), "after.json", &comparison(after_us, None)),
            // A debug build's are.
            allow_invalid: true,
        };
        command(&options).map_err(|failure| failure.to_string())
    }

    #[test]
    fn a_ratio_that_grew_fails_and_is_named() {
        let failure = gate(150, 190).expect_err("worse");
        assert!(failure.contains("sync/floor p50") && failure.contains("p999"), "{failure}");
    }

    #[test]
    fn a_ratio_that_stayed_or_shrank_passes() {
        gate(150, 150).expect("the same");
        gate(150, 120).expect("better");
    }

    #[test]
    fn intervals_that_hold_each_others_medians_are_no_regression() {
        let estimate = |low, median, high| Estimate { median, low, high };
        let wide = found(estimate(1.0, 1.2, 1.6), estimate(1.3, 1.5, 1.7));
        assert_eq!(wide, Found::Kept, "a wide baseline");
        let wide = found(estimate(1.1, 1.2, 1.3), estimate(1.1, 1.5, 1.9));
        assert_eq!(wide, Found::Kept, "a wide result");
        assert_eq!(found(estimate(1.1, 1.2, 1.3), estimate(1.25, 1.4, 1.6)), Found::Worse);
    }

    #[test]
    fn an_interval_of_more_than_four_times_says_nothing_and_is_shown() {
        let estimate = |low, median, high| Estimate { median, low, high };
        let (before, after) = (estimate(0.1, 0.3, 0.3), estimate(3.0, 6.0, 8.0));
        assert_eq!(found(before, after), Found::Worse, "known well enough");
        let after = estimate(3.0, 6.0, 12.5);
        assert_eq!(found(before, after), Found::Unknown);
        assert_eq!(found(after, before), Found::Unknown);
        let change = Change { name: "p99".into(), before, after, found: Found::Unknown };
        assert!(text(&[change]).contains("not known"));
    }

    #[test]
    fn an_invalid_result_is_not_judged_by() {
        let root = tempfile::tempdir().expect("a directory");
        let noisy = written(root.path(), "noisy.json", &comparison(150, Some("stolen")));
        let options = Options { against: noisy.clone(), result: noisy, allow_invalid: false };
        assert!(command(&options).expect_err("invalid").to_string().contains("clean pairs"));
    }

    #[test]
    fn other_loads_and_other_files_are_refused() {
        let root = tempfile::tempdir().expect("a directory");
        let one = written(root.path(), "one.json", &comparison(150, None));
        let mut other = comparison(150, None);
        other.plan.size = 1024;
        let other = written(root.path(), "other.json", &other);
        let options = Options { against: one, result: other, allow_invalid: true };
        assert!(command(&options).expect_err("other").to_string().contains("different loads"));
        let mut lacking = comparison(150, None);
        lacking.ratios.clear();
        let lacking = written(root.path(), "lacking.json", &lacking);
        let options = Options { result: lacking, ..options };
        assert!(command(&options).expect_err("lacking").to_string().contains("sync/floor"));
        let text = root.path().join("text");
        std::fs::write(&text, "{}").expect("written");
        let error = read(&text).expect_err("no comparison").to_string();
        assert!(error.contains("perf compare"), "{error}");
    }
}
