//! Rules that a test breaks on purpose in a whole process, to see that the checkers notice.
//!
//! Only with the feature `canary`, which no released build has; then `LAELAPS_CANARY` names one:
//!
//! ```text
//!   no-data-sync     journal writes go to the page cache and are called durable
//!   ack-on-submit    a batch counts as durable when its write is submitted
//! ```
//! An unknown name stops the start: a canary that does not sing would be taken for a sound broker.

/// A rule, broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Canary {
    /// Journal writes without data sync.
    NoDataSync,
    /// Durable when submitted.
    AckOnSubmit,
}

/// The rule that `LAELAPS_CANARY` names, if it is set.
///
/// # Panics
/// If it names none.
pub(crate) fn chosen() -> Option<Canary> {
    let name = std::env::var("LAELAPS_CANARY").ok()?;
    match name.as_str() {
        "no-data-sync" => Some(Canary::NoDataSync),
        "ack-on-submit" => Some(Canary::AckOnSubmit),
        other => panic!("LAELAPS_CANARY={other} is no canary"),
    }
}
