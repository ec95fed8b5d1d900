//! Rules that a test may break on purpose, to see that the checkers notice.
//!
//! A canary can be named only where the feature `canary` is on; without it every question below is
//! answered by a constant, and no build that is released has the feature. This crate's own tests
//! have it.

/// A rule of the pair or of its voters, broken.
#[cfg_attr(
    not(any(test, feature = "canary")),
    expect(unreachable_pub, reason = "exported where the feature is on")
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Canary {
    /// A voter answers others before its own write has ended.
    VoteBeforeSync,
    /// A voter whose disk was lost takes the place that its members' list gives to the old disk.
    VoteFromAmnesia,
    /// A disk that takes another's place is taken for that one.
    ReplaceInPlace,
    /// A read is answered from what this voter has applied, without asking the others.
    ReadStale,
    /// A lost race is answered as won.
    CasUnchecked,
    /// A backup says that a batch is durable when it has received it (R15).
    BackupAnswersBeforeFlush,
    /// Logs are compared by their length, not by epoch and place (R11).
    CutByLength,
    /// The live waits for its backup only when the voters hold it to be in sync (R8).
    RequireAfterExpand,
    /// R2: a lease begins when its answer comes.
    LeaseFromAnswer,
    /// R3: a challenger does not wait for the live's lease.
    ChallengeAtOnce,
    /// R3: a challenger waits for a lease of its own length, whatever the live's is.
    OwnLeaseOnly,
    /// A version below the known one is taken for old news, not for a register that was lost.
    TrustLostRegister,
    /// R5, R6: a swap whose outcome is unknown counts as failed.
    UnknownMeansFailed,
    /// R7: a member that is to be left out is not waited for, before the voters have recorded it.
    ShrinkAtOnce,
    /// R10: a member that is not in sync asks for the role.
    PromoteOutOfSync,
    /// R12: who gives the role away serves on until its lease ends.
    LeaveUnfenced,
    /// R12: the role is handed over before what was taken is durable at the other one.
    HandOverUndrained,
    /// R17: a shard that is silent, or a write that stands, changes nothing.
    RenewUnwell,
}

/// Which rule is broken, if any.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Canaries {
    #[cfg(any(test, feature = "canary"))]
    pub(crate) broken: Option<Canary>,
}

impl Canaries {
    #[cfg(any(test, feature = "canary"))]
    pub(crate) fn has(self, canary: Canary) -> bool {
        self.broken == Some(canary)
    }

    #[cfg(not(any(test, feature = "canary")))]
    #[expect(clippy::unused_self, reason = "the same question with and without the feature")]
    pub(crate) const fn has(self, _canary: Canary) -> bool {
        false
    }
}
