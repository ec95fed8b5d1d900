//! Rules that a test may break on purpose, to see that the checkers notice.
//!
//! A canary can be named only where the feature `canary` is on; without it every question below is
//! answered by a constant, and no build that is released has the feature.

/// A rule of the journal, broken.
#[cfg_attr(
    not(feature = "canary"),
    expect(unreachable_pub, reason = "exported where the feature is on")
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Canary {
    /// `durable()` passes a batch when its write is submitted.
    AckBeforeDurable,
    /// `durable()` is the end of the furthest write that ended, holes or not.
    PrefixNotContiguous,
    /// A batch is sealed with a durable field that runs ahead of our own durable LSN.
    DurableFieldBeyondOwn,
    /// Recovery takes any batch that stands at its place, whatever its chain.
    ChainUnchecked,
    /// Recovery takes a batch of an earlier life of a slot.
    StaleBatchAccepted,
    /// Recovery leaves out settlements.
    SettleDroppedAtRecovery,
    /// Recovery takes what another history left behind: the epoch table is not read.
    EpochTableUnread,
    /// A backup submits a batch whose durable field exceeds its own durable LSN.
    FollowerNeverHoldsBack,
    /// The head moves on disk before what made it dead is durable.
    HeadMovesEarly,
    /// The head is recycled when it is durable here, committed or not.
    RecycledPastWatermark,
    /// A checkpoint is finished before what its pages know is durable and committed.
    CheckpointPastWatermark,
}

/// Which rule is broken, if any.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Canaries {
    #[cfg(feature = "canary")]
    pub(crate) broken: Option<Canary>,
}

impl Canaries {
    #[cfg(feature = "canary")]
    pub(crate) fn has(self, canary: Canary) -> bool {
        self.broken == Some(canary)
    }

    #[cfg(not(feature = "canary"))]
    #[expect(clippy::unused_self, reason = "the same question with and without the feature")]
    pub(crate) const fn has(self, _canary: Canary) -> bool {
        false
    }
}
