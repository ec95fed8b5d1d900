//! How a pair begins: who formats an empty directory as what, and who makes the first record.
//!
//! ```text
//!   record   here    there        then
//!   stands   empty   its log      format as there
//!   none     empty   empty        the lower seat formats a new log; the other one waits for it
//!   none     empty   a log        format as there
//!   none     a log   empty        this one makes the record
//!   none     a log   the same     who holds more makes it; the lower seat, where both are equal
//!   none     a log   another      nobody: an operator has to say
//! ```
//! The fourth column is never reached before both members have said what they hold: voters that
//! lost everything must not crown a log that is empty, or the older one. *More* is: the newer
//! epoch on any shard; where both know the same one, at least as much of every shard, by the
//! shard's own epoch and then by its length.
//!
//! Why that is enough: who won the newest epoch had everything that was acknowledged before it, and
//! in it nothing was acknowledged that was not durable there. If one member knows a newer epoch
//! than the other, it won that one. If both know it, one has won it and the other one's part of it
//! is a prefix, shard by shard, as far as anything was acknowledged; so who has at least as much
//! everywhere has it all. A shard that has not taken over the newest epoch yet has its old tail,
//! which may be longer than what the winner has there and says nothing. Where each has more of some
//! shard, the logs do not say who won.
//!
//! None is made while the other one says that it has the role, or that its voters hold a record:
//! then one of the two asks the wrong voters, or the other one's have lost theirs and it has not
//! noticed yet. Nor before a lease could be over that began just before the first look, unless the
//! other one's log has never been served from.
//!
//! The first record's epoch is above all that either log knows. By an operator's word alone it is
//! far above, for nobody has looked into the other log.

use journal::Epoch;

use crate::card::{Card, HeldLog, LogEnd};
use crate::record::NodeId;

/// How far an epoch made by an operator's word alone lies above the newest one that is known.
const EPOCHS_AHEAD: u64 = 1 << 20;

/// One side of the pair.
#[derive(Clone, Copy, Debug)]
pub(super) struct Side<'a> {
    pub(super) node: NodeId,
    pub(super) held: Option<HeldLog>,
    /// One a shard, once all are known.
    pub(super) ends: &'a [LogEnd],
}

impl<'a> Side<'a> {
    pub(super) fn of(card: &'a Card) -> Self {
        Self { node: card.node(), held: card.held, ends: &card.ends }
    }

    fn newest(&self) -> Epoch {
        self.ends.iter().map(|end| end.epoch).max().unwrap_or_default()
    }

    /// Whether nobody has served from it: a log is formatted in the first epoch, and a reign begins
    /// with one above.
    pub(super) fn is_new(&self) -> bool {
        self.held.is_none() || !self.ends.is_empty() && self.newest() <= Epoch(1)
    }

    fn has_all_of(&self, other: &Self) -> bool {
        let place = |end: &LogEnd| (end.epoch, end.end);
        self.ends.iter().zip(other.ends).all(|(mine, theirs)| place(mine) >= place(theirs))
    }
}

/// Who makes the pair's first record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Founder {
    /// This member, in this epoch.
    Me(Epoch),
    /// The other one, or nobody yet: something is still to be heard or done.
    NotYet,
    /// An operator has to say who.
    Unclear,
}

/// Who makes the first record, where there is none.
pub(super) fn founder(mine: &Side<'_>, other: &Side<'_>) -> Founder {
    let Some(held) = mine.held else { return Founder::NotYet };
    if mine.ends.is_empty() {
        return Founder::NotYet;
    }
    let above = Epoch(mine.newest().max(other.newest()).0 + 1);
    let Some(theirs) = other.held else { return Founder::Me(above) };
    if theirs != held {
        return Founder::Unclear;
    }
    if other.ends.is_empty() {
        return Founder::NotYet;
    }
    let by_epoch = mine.newest().cmp(&other.newest());
    let (more, less) = (mine.has_all_of(other), other.has_all_of(mine));
    let mine_first =
        by_epoch.is_gt() || by_epoch.is_eq() && more && (!less || mine.node < other.node);
    let other_first = by_epoch.is_lt() || by_epoch.is_eq() && less;
    match (mine_first, other_first) {
        (true, _) => Founder::Me(above),
        (false, true) => Founder::NotYet,
        (false, false) => Founder::Unclear,
    }
}

/// The epoch of a record that one member makes alone, by an operator's word.
pub(super) fn epoch_alone(ends: &[LogEnd]) -> Epoch {
    let newest = ends.iter().map(|end| end.epoch).max().unwrap_or_default();
    Epoch(newest.0 + EPOCHS_AHEAD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use journal::{Geometry, LogId, Lsn};

    const fn log(id: u8) -> HeldLog {
        HeldLog { log: LogId([id; 16]), geometry: Geometry { segment_bytes: 65536, shards: 2 } }
    }

    fn ends(epoch: u64, ends: [u64; 2]) -> Vec<LogEnd> {
        ends.map(|end| LogEnd { epoch: Epoch(epoch), end: Lsn(end) }).to_vec()
    }

    fn side(node: u8, held: Option<HeldLog>, ends: &[LogEnd]) -> Side<'_> {
        Side { node: NodeId(node), held, ends }
    }

    /// What each of two members does.
    fn both(a: &Side<'_>, b: &Side<'_>) -> (Founder, Founder) {
        (founder(a, b), founder(b, a))
    }

    #[test]
    fn an_empty_directory_is_never_crowned() {
        let some = ends(3, [8192, 4096]);
        let (empty, full) = (side(0, None, &[]), side(1, Some(log(1)), &some));
        assert_eq!(both(&empty, &full), (Founder::NotYet, Founder::Me(Epoch(4))));
        let unread = side(1, Some(log(1)), &[]);
        assert_eq!(both(&empty, &unread), (Founder::NotYet, Founder::NotYet));
        assert_eq!(both(&empty, &side(1, None, &[])), (Founder::NotYet, Founder::NotYet));
    }

    #[test]
    fn who_holds_more_begins_and_never_both() {
        let (old, new) = (ends(3, [90112, 90112]), ends(4, [4096, 8192]));
        let (a, b) = (side(0, Some(log(1)), &old), side(1, Some(log(1)), &new));
        assert_eq!(both(&a, &b), (Founder::NotYet, Founder::Me(Epoch(5))), "the newer epoch");
        let (less, more) = (ends(3, [4096, 8192]), ends(3, [8192, 8192]));
        let (a, b) = (side(0, Some(log(1)), &less), side(1, Some(log(1)), &more));
        assert_eq!(both(&a, &b), (Founder::NotYet, Founder::Me(Epoch(4))), "the longer log");
        let (a, b) = (side(0, Some(log(1)), &less), side(1, Some(log(1)), &less));
        assert_eq!(both(&a, &b), (Founder::Me(Epoch(4)), Founder::NotYet), "the lower seat");
    }

    #[test]
    fn a_longer_tail_of_an_older_epoch_is_not_more() {
        let of = |shards: [(u64, u64); 2]| {
            shards.map(|(epoch, end)| LogEnd { epoch: Epoch(epoch), end: Lsn(end) })
        };
        let half_taken_over = of([(5, 8192), (4, 90112)]);
        let winner = of([(5, 8192), (5, 61440)]);
        let (a, b) = (side(0, Some(log(1)), &half_taken_over), side(1, Some(log(1)), &winner));
        assert_eq!(both(&a, &b), (Founder::NotYet, Founder::Me(Epoch(6))));
    }

    #[test]
    fn what_the_logs_do_not_say_is_left_to_an_operator() {
        let (one, two) = (ends(3, [4096, 8192]), ends(3, [8192, 4096]));
        let (a, b) = (side(0, Some(log(1)), &one), side(1, Some(log(1)), &two));
        assert_eq!(both(&a, &b), (Founder::Unclear, Founder::Unclear));
        let b = side(1, Some(log(2)), &one);
        assert_eq!(both(&a, &b), (Founder::Unclear, Founder::Unclear));
        assert!(epoch_alone(&one) > Epoch(1000));
    }
}
