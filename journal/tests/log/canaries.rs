//! Breaks one rule of the journal at a time and asks that a test notices.

use std::cell::Cell;

use journal::Canary;

use crate::crash_matrix::whatever_is_cut_the_promised_is_there as crash_matrix;
use crate::follower::a_batch_that_says_more_than_this_disk_holds_is_held_back as held_back;
use crate::follower::evidence_of_a_stale_epoch_proves_nothing_after_the_cut as stale_evidence;
use crate::recycle::the_log_runs_over_its_slots_many_times_and_recovers_at_each_lap as recycling;

thread_local! {
    static BROKEN: Cell<Option<Canary>> = const { Cell::new(None) };
}

/// The rule that is broken in this thread's journals.
pub(crate) fn broken() -> Option<Canary> {
    BROKEN.get()
}

fn is_caught(canary: Canary, test: fn()) -> bool {
    BROKEN.set(Some(canary));
    let caught = std::panic::catch_unwind(test).is_err();
    BROKEN.set(None);
    caught
}

#[test]
fn the_crash_matrix_catches_what_breaks_the_commit_rule_or_the_chain() {
    for canary in [
        Canary::AckBeforeDurable,
        Canary::PrefixNotContiguous,
        Canary::DurableFieldBeyondOwn,
        Canary::ChainUnchecked,
    ] {
        assert!(is_caught(canary, crash_matrix), "{canary:?}");
    }
}

#[test]
fn recycling_catches_what_accepts_the_past_or_forgets_settlements() {
    for canary in [Canary::StaleBatchAccepted, Canary::SettleDroppedAtRecovery] {
        assert!(is_caught(canary, recycling), "{canary:?}");
    }
}

#[test]
fn following_catches_what_reads_no_epochs_or_says_more_than_its_disk() {
    assert!(is_caught(Canary::EpochTableUnread, stale_evidence));
    assert!(is_caught(Canary::FollowerNeverHoldsBack, held_back));
}
