//! Whom the live waits for: the maximal in-sync set, and how it grows and shrinks.
//!
//! ```text
//!            wish to add          all shards require it     durable beyond all    asked
//!   Alone ───────────────▶ Asking ────────────────────▶ Reaching ──────────▶ Adding ──won──▶ Both
//!     ▲  ▲                   │ peer lost                   │ peer lost         │ │           │
//!     │  └───────────────────┴─────────────────────────────┘                   │ │      wish to
//!     │            nothing was asked of the voters: relax at once      unknown ▼ │      remove
//!     │                                                               ┌─────────┐│           │
//!     ├──── a version above the expected one stands: it says who ─────│  Unsure │◀─ unknown ─┤
//!     │                                                               └─────────┘            ▼
//!     └──────────────────────────────── won: only now relax ──────────────────────── Removing
//! ```
//! Required is everything but `Alone`: an acknowledgement waits for the union of every in-sync set
//! that stands or may come to stand (R6).
//!
//! Invariants: the set shrinks here only after the voters have the smaller one (R6). Before the
//! voters are asked for the larger one every shard has begun to wait for the peer, and the peer is
//! durable beyond all that any shard had committed without it (R8). Marks count for one session of
//! each shard: where one is lost while the peer is not in the set, the addition begins again (R9).
//! An unknown outcome is resolved by a version above the expected one, and by nothing else (R5).
//! It says what it wishes of the record ([`InSync::poll_change`]); who holds the role makes the
//! compare-and-set, together with its own renewals, and reports what came of it.

use std::collections::VecDeque;

use journal::{JournalUuid, Lsn, ShardId};

use crate::canary::{Canaries, Canary};
use crate::register::Version;

/// What the voters are to be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// This disk into the set.
    Add(JournalUuid),
    /// Everybody but the live out of it.
    Remove,
}

/// Which time the shards were told to wait: an answer to an earlier one says nothing, for an order
/// to relax may lie between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Round(u64);

/// What every shard is to do. Each carries orders out one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Wait for this disk from now on, and say how far it had committed without it:
    /// [`InSync::handle_required`].
    Require(Round, JournalUuid),
    /// Do not wait for it any more.
    Relax,
}

/// What stands at the voters, as far as the in-sync set goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stands {
    /// Its version.
    pub version: Version,
    /// The member in the set beside the live.
    pub backup: Option<JournalUuid>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Alone,
    /// The shards are being told; those that have answered, and how far they had committed.
    Asking {
        peer: JournalUuid,
        answers: Vec<Option<Lsn>>,
    },
    /// The peer has yet to be durable beyond these.
    Reaching {
        peer: JournalUuid,
        positions: Vec<Lsn>,
        reached: Vec<bool>,
    },
    Adding {
        peer: JournalUuid,
        sent: Option<Version>,
    },
    Both {
        peer: JournalUuid,
    },
    Removing {
        peer: JournalUuid,
        sent: Option<Version>,
    },
    /// An attempt from `expect` on was carried out, was not, or still may be.
    Unsure {
        peer: JournalUuid,
        expect: Version,
    },
}

/// The in-sync set of a live, for all its shards.
#[derive(Clone, Debug)]
pub struct InSync {
    shards: usize,
    state: State,
    round: Round,
    orders: VecDeque<Order>,
    canaries: Canaries,
}

impl InSync {
    /// At the beginning of a reign, from the record that gave it.
    ///
    /// # Panics
    /// If there is no shard.
    #[must_use]
    pub fn new(shards: u16, backup: Option<JournalUuid>) -> Self {
        assert!(shards > 0, "a log has a shard");
        let state = backup.map_or(State::Alone, |peer| State::Both { peer });
        let (orders, canaries) = (VecDeque::new(), Canaries::default());
        Self { shards: shards.into(), state, round: Round::default(), orders, canaries }
    }

    /// Breaks a rule, for a test.
    #[cfg(feature = "canary")]
    pub fn break_rule(&mut self, canary: Canary) {
        self.canaries.broken = Some(canary);
    }

    /// The disk that the shards wait for.
    #[must_use]
    pub fn required(&self) -> Option<JournalUuid> {
        match &self.state {
            State::Alone => None,
            State::Asking { peer, .. }
            | State::Reaching { peer, .. }
            | State::Adding { peer, .. }
            | State::Both { peer }
            | State::Removing { peer, .. }
            | State::Unsure { peer, .. } => Some(*peer),
        }
    }

    /// Whether the shards wait for a peer.
    #[must_use]
    pub fn is_required(&self) -> bool {
        self.required().is_some()
    }

    /// Whether the voters are known to hold the peer to be in sync.
    #[must_use]
    pub fn is_in_sync(&self) -> bool {
        matches!(self.state, State::Both { .. } | State::Removing { .. })
    }

    /// The peer follows on every shard and is nearly there: it may come into the set.
    pub fn add(&mut self, peer: JournalUuid) {
        if self.state != State::Alone {
            return;
        }
        if self.canaries.has(Canary::RequireAfterExpand) {
            self.state = State::Adding { peer, sent: None };
            return;
        }
        self.state = State::Asking { peer, answers: vec![None; self.shards] };
        self.require(peer);
    }

    /// The peer makes no progress, or goes by its own wish.
    pub fn remove(&mut self) {
        match &self.state {
            State::Asking { .. } | State::Reaching { .. } => self.give_up(),
            State::Both { peer } => {
                self.state = State::Removing { peer: *peer, sent: None };
                if self.canaries.has(Canary::AckBeforeShrink) {
                    self.orders.push_back(Order::Relax);
                }
            }
            // What is out must be known first: then the wish comes again, if it still holds.
            State::Alone | State::Adding { .. } | State::Removing { .. } | State::Unsure { .. } => {
            }
        }
    }

    /// A shard's session with the peer ended, or began anew: marks of before count for nothing.
    pub fn handle_session_lost(&mut self) {
        match self.state {
            State::Asking { .. } | State::Reaching { .. } => self.give_up(),
            State::Adding { sent: None, .. } => self.give_up(),
            State::Alone
            | State::Adding { .. }
            | State::Both { .. }
            | State::Removing { .. }
            | State::Unsure { .. } => {}
        }
    }

    /// A shard waits for the peer since this order, and had committed this far without it.
    pub fn handle_required(&mut self, round: Round, shard: ShardId, committed: Lsn) {
        let State::Asking { peer, answers } = &mut self.state else { return };
        if round != self.round {
            return;
        }
        if let Some(answer) = answers.get_mut(usize::from(shard.0)) {
            answer.get_or_insert(committed);
        }
        let positions: Option<Vec<Lsn>> = answers.iter().copied().collect();
        if let Some(positions) = positions {
            let reached = vec![false; positions.len()];
            self.state = State::Reaching { peer: *peer, positions, reached };
        }
    }

    /// How far a disk is durable on a shard, in the session that runs.
    pub fn handle_durable(&mut self, shard: ShardId, member: JournalUuid, durable: Lsn) {
        let State::Reaching { peer, positions, reached } = &mut self.state else { return };
        if member != *peer {
            return;
        }
        let shard = usize::from(shard.0);
        if positions.get(shard).is_some_and(|position| durable >= *position) {
            reached[shard] = true;
        }
        if reached.iter().all(|reached| *reached) {
            self.state = State::Adding { peer: *peer, sent: None };
        }
    }

    /// What every shard is to do next.
    pub fn poll_order(&mut self) -> Option<Order> {
        self.orders.pop_front()
    }

    /// What the voters are to be asked for, if that was not done yet. Whoever asks says so by
    /// [`handle_sent`](Self::handle_sent).
    #[must_use]
    pub fn poll_change(&self) -> Option<Change> {
        match &self.state {
            State::Adding { peer, sent: None } => Some(Change::Add(*peer)),
            State::Removing { sent: None, .. } => Some(Change::Remove),
            State::Alone
            | State::Asking { .. }
            | State::Reaching { .. }
            | State::Adding { .. }
            | State::Both { .. }
            | State::Removing { .. }
            | State::Unsure { .. } => None,
        }
    }

    /// The change was asked for, where this version was expected.
    pub fn handle_sent(&mut self, expect: Version) {
        if let Some(sent) = self.sent_mut() {
            *sent = Some(expect);
        }
    }

    /// The change was not carried out and never will be: it is asked for again.
    pub fn handle_not_done(&mut self) {
        if let Some(sent) = self.sent_mut() {
            *sent = None;
        }
    }

    /// Nobody knows what came of it.
    pub fn handle_unknown(&mut self) {
        match self.state {
            State::Adding { peer, sent: Some(expect) }
            | State::Removing { peer, sent: Some(expect) } => {
                self.state = State::Unsure { peer, expect };
            }
            State::Alone
            | State::Asking { .. }
            | State::Reaching { .. }
            | State::Adding { .. }
            | State::Both { .. }
            | State::Removing { .. }
            | State::Unsure { .. } => {}
        }
    }

    /// This stands at the voters: the outcome of an attempt, or what a read showed. The reign goes
    /// on; a record of another live ends it, and all this with it.
    pub fn handle_stands(&mut self, stands: Stands) {
        let expect = match &self.state {
            State::Adding { sent: Some(expect), .. }
            | State::Removing { sent: Some(expect), .. }
            | State::Unsure { expect, .. } => *expect,
            State::Alone
            | State::Asking { .. }
            | State::Reaching { .. }
            | State::Adding { sent: None, .. }
            | State::Both { .. }
            | State::Removing { sent: None, .. } => return,
        };
        if stands.version <= expect {
            return;
        }
        match stands.backup {
            Some(peer) => {
                self.state = State::Both { peer };
                // For a shard that a broken rule has let go, or not told yet.
                self.require(peer);
            }
            None => {
                self.state = State::Alone;
                self.orders.push_back(Order::Relax);
            }
        }
    }

    fn require(&mut self, peer: JournalUuid) {
        self.round.0 += 1;
        self.orders.push_back(Order::Require(self.round, peer));
    }

    /// The version that a change under way expects, if that was sent.
    fn sent_mut(&mut self) -> Option<&mut Option<Version>> {
        match &mut self.state {
            State::Adding { sent, .. } | State::Removing { sent, .. } => Some(sent),
            State::Alone
            | State::Asking { .. }
            | State::Reaching { .. }
            | State::Both { .. }
            | State::Unsure { .. } => None,
        }
    }

    /// Nothing was asked of the voters: the shards need not wait.
    fn give_up(&mut self) {
        self.state = State::Alone;
        self.orders.push_back(Order::Relax);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: JournalUuid = JournalUuid([7; 16]);

    fn stands(version: u64, backup: Option<JournalUuid>) -> Stands {
        Stands { version: Version(version), backup }
    }

    fn orders(set: &mut InSync) -> Vec<Order> {
        std::iter::from_fn(|| set.poll_order()).collect()
    }

    /// Both shards have answered, and the peer is beyond both.
    fn ready_to_add() -> InSync {
        let mut set = InSync::new(2, None);
        set.add(PEER);
        assert_eq!(orders(&mut set), [Order::Require(Round(1), PEER)]);
        set.handle_required(Round(1), ShardId(0), Lsn(8192));
        set.handle_required(Round(1), ShardId(1), Lsn(4096));
        set.handle_durable(ShardId(0), PEER, Lsn(8192));
        set.handle_durable(ShardId(1), PEER, Lsn(12288));
        set
    }

    #[test]
    fn r8_the_voters_are_asked_only_when_every_shard_waits_and_the_peer_is_beyond_all() {
        let mut set = InSync::new(2, None);
        set.add(PEER);
        assert!(set.is_required() && !set.is_in_sync());
        set.handle_durable(ShardId(0), PEER, Lsn(1 << 40));
        set.handle_required(Round(1), ShardId(0), Lsn(8192));
        assert_eq!(set.poll_change(), None, "a shard has not answered");
        set.handle_required(Round(1), ShardId(1), Lsn(4096));
        assert_eq!(set.poll_change(), None, "what was said before counts for nothing");
        set.handle_durable(ShardId(0), PEER, Lsn(4096));
        set.handle_durable(ShardId(1), PEER, Lsn(4096));
        set.handle_durable(ShardId(0), JournalUuid([8; 16]), Lsn(1 << 40));
        assert_eq!(set.poll_change(), None, "not beyond what shard 0 had committed");
        set.handle_durable(ShardId(0), PEER, Lsn(8192));
        assert_eq!(set.poll_change(), Some(Change::Add(PEER)));
        set.handle_sent(Version(4));
        assert_eq!(set.poll_change(), None);
        set.handle_stands(stands(5, Some(PEER)));
        assert!(set.is_in_sync());
    }

    #[test]
    fn r9_a_session_that_is_lost_before_the_voters_were_asked_begins_the_addition_again() {
        let mut set = ready_to_add();
        assert_eq!(set.poll_change(), Some(Change::Add(PEER)));
        set.handle_session_lost();
        assert!(!set.is_required());
        assert_eq!((set.poll_change(), orders(&mut set)), (None, vec![Order::Relax]));
        let mut asked = ready_to_add();
        asked.handle_sent(Version(4));
        asked.handle_session_lost();
        assert!(asked.is_required(), "the voters may take the peer in at any moment");
    }

    /// The order to relax is still on its way to the shard when it answers the first order to wait.
    #[test]
    fn r8_an_answer_to_an_earlier_round_says_nothing() {
        let mut set = InSync::new(1, None);
        set.add(PEER);
        set.handle_session_lost();
        set.add(PEER);
        let (first, second) = (Order::Require(Round(1), PEER), Order::Require(Round(2), PEER));
        assert_eq!(orders(&mut set), [first, Order::Relax, second]);
        set.handle_required(Round(1), ShardId(0), Lsn(4096));
        set.handle_durable(ShardId(0), PEER, Lsn(4096));
        assert_eq!(set.poll_change(), None);
        set.handle_required(Round(2), ShardId(0), Lsn(8192));
        set.handle_durable(ShardId(0), PEER, Lsn(8192));
        assert_eq!(set.poll_change(), Some(Change::Add(PEER)));
    }

    #[test]
    fn r6_the_smaller_set_counts_only_once_the_voters_have_it() {
        let mut set = InSync::new(1, Some(PEER));
        set.remove();
        assert_eq!(set.poll_change(), Some(Change::Remove));
        assert!(set.is_required() && orders(&mut set).is_empty());
        set.handle_sent(Version(9));
        set.handle_stands(stands(9, Some(PEER)));
        assert!(set.is_required() && orders(&mut set).is_empty());
        set.handle_stands(stands(10, None));
        assert_eq!((set.is_required(), orders(&mut set)), (false, vec![Order::Relax]));
    }

    #[test]
    fn r5_an_unknown_outcome_is_resolved_by_a_greater_version_alone() {
        for found in [None, Some(PEER)] {
            let mut set = InSync::new(1, Some(PEER));
            set.remove();
            set.handle_sent(Version(9));
            set.handle_unknown();
            set.handle_stands(stands(9, Some(PEER)));
            assert!(set.is_required(), "it may still be carried out");
            assert_eq!(set.poll_change(), None, "and nothing else is asked for meanwhile");
            set.handle_stands(stands(10, found));
            assert_eq!(set.is_required(), found.is_some());
        }
        let mut adding = ready_to_add();
        adding.handle_sent(Version(4));
        adding.handle_unknown();
        adding.handle_stands(stands(4, None));
        assert!(adding.is_required(), "the peer may come in yet");
        adding.handle_stands(stands(5, None));
        assert!(!adding.is_required());
    }

    #[test]
    fn a_change_that_was_surely_not_made_is_asked_for_again() {
        let mut set = InSync::new(1, Some(PEER));
        set.remove();
        set.handle_sent(Version(9));
        set.handle_not_done();
        assert_eq!(set.poll_change(), Some(Change::Remove));
        assert!(set.is_required());
    }
}
