//! Rules that a test may break on purpose, to see that the checkers notice.
//!
//! A canary can be named only where the feature `canary` is on; without it every question below is
//! answered by a constant, and no build that is released has the feature.

/// A rule of the broker, broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Canary {
    /// What was written last goes out last: a message that comes back stands behind newer ones.
    OrderByLsn,
    /// Recovery misses the settlements of the head segment, as if they had been recycled before the
    /// messages that they settle.
    SettlementRecycledEarly,
    /// The head is recycled without copying the queues' next sequences.
    SequenceReused,
    /// Nothing expires.
    NeverExpires,
    /// What expires some day expires at once.
    ExpiresEarly,
    /// A message is delivered at once, whatever it says.
    DeliveredEarly,
    /// Recovery forgets when messages are to be delivered.
    ScheduleForgotten,
    /// What has expired is settled, and goes nowhere.
    ExpiredDropped,
    /// Recovery forgets what consumers have added to messages' annotations.
    AnnotationsForgotten,
    /// Every message is of the usual priority.
    PriorityIgnored,
    /// A message is settled when its move is sent, not when its copy is committed.
    SettledBeforeMoved,
    /// A part in the middle of a message that moves is left out.
    PartLeftOut,
    /// A copy is shown when it is committed, not when its origin is settled.
    CopyShownEarly,
    /// Recovery keeps a message whose copy stands elsewhere.
    DoubleKept,
    /// Recovery counts no failed deliveries.
    AttemptsForgotten,
    /// A copy's record does not say whence it came.
    OriginDropped,
    /// Recovery remembers no duplicate ids of messages.
    DuplicatesForgotten,
    /// The head is recycled without carrying its duplicate ids forward.
    DuplicatesNotCarried,
    /// A duplicate is answered at once, though its first copy may not be durable.
    DuplicateAnsweredEarly,
    /// A compaction copies what it has found, settled since or not.
    CopiedAfterSettlement,
    /// A copy counts as the message's place when it is appended, not when it is committed.
    CopyCountsEarly,
    /// A compaction copies the first fragment of a message, and none of the others.
    FragmentChainCut,
    /// Recovery shows messages of which only a part had come.
    HalfShown,
    /// A segment is recycled in which a message begins that is still coming.
    HalfRecycled,
    /// What is read back is believed, whatever it is.
    ReadBackUnchecked,
    /// Bytes of messages are paged out before their records are durable.
    DroppedBeforeDurable,
    /// A purge goes on with what has come since it was asked for.
    PurgeTakesNewer,
    /// A purge is answered when its settlements are appended, not when they are committed.
    PurgeAnsweredEarly,
    /// What a consumer held goes back as far as one step goes, and the rest is forgotten.
    WindowForgotten,
    /// A queue is handed out when its creation is appended, not when it is committed.
    MessageBeforeCreation,
}

/// Which rule is broken, if any.
#[derive(Clone, Copy, Debug, Default)]
pub struct Canaries {
    /// The rule.
    #[cfg(feature = "canary")]
    pub broken: Option<Canary>,
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
