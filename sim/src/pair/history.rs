//! What the checks know of each log of a pair, and what they are told when a reign begins.
//!
//! ```text
//!   known   b1 ─ b2 ─ b3 ─ b4          as far as reigns have told
//!   held    b1 ─ b2 ─ c3               the log that the next one begins with
//!                └─ Recovered (b2), Written (what is in c3, as found), Recovered (end of c3)
//! ```
//! What is not acknowledged may be lost by one member and held by the other, and the other may
//! reign later: a place says nothing of what is there. Two logs are the same up to a batch whose
//! end has the same chain in both.
//!
//! Invariant: after the beginning of a reign the checks know of exactly what its log holds. What
//! was promised is none of this: it stays, whatever is cut off.

use std::collections::BTreeMap;

use journal::{Chain, Lsn, ShardId};

use crate::audit::Held;
use crate::check::{Seen, Written};

/// The chain at the end of each batch that the checks know of, by log.
#[derive(Debug, Default)]
pub(super) struct History {
    known: BTreeMap<ShardId, BTreeMap<Lsn, Chain>>,
}

impl History {
    /// A batch of the newest reign.
    pub(super) fn goes_on(&mut self, seen: &Seen) {
        if let Seen::Vouched { shard, end, chain, .. } = seen {
            self.known.entry(*shard).or_default().insert(*end, *chain);
        }
    }

    /// What the checks are to see when a reign begins with a log that ends here.
    pub(super) fn begins(&mut self, shard: ShardId, held: &Held, end: Lsn) -> Vec<Seen> {
        let known = self.known.entry(shard).or_default();
        let batches = || held.range(..=end);
        let common = batches().rev().find(|(at, batch)| known.get(*at) == Some(&batch.chain));
        let common = common.map_or(Lsn::ZERO, |(at, _)| *at);
        known.retain(|at, _| *at <= common);
        let mut seen = vec![Seen::Recovered { shard, end: common }];
        for (at, batch) in batches().filter(|(at, _)| **at > common) {
            known.insert(*at, batch.chain);
            let found = |record: &Written| Seen::Written(Written { found: true, ..record.clone() });
            seen.extend(batch.records.iter().map(found));
        }
        seen.push(Seen::Recovered { shard, end });
        seen
    }
}

/// Where the newest batch of `other` up to `end` ends, if `own` has the same: then both have all
/// before it.
pub(super) fn agreed(own: &Held, other: &Held, end: Lsn) -> Option<Lsn> {
    let (end, batch) = other.range(..=end).next_back()?;
    own.get(end).is_some_and(|own| own.chain == batch.chain).then_some(*end)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use journal::{Level, QueueId, RecordKind, Sequence};

    use super::*;
    use crate::audit::Batch;
    use crate::check::{Checks, LinkKey, Mark, Stamp};
    use crate::letter::LetterId;
    use crate::wire::Verdict;

    const SHARD: ShardId = ShardId(0);
    const QUEUE: QueueId = QueueId(3);

    fn record(kind: RecordKind, sequence: u64, letter: Option<u64>) -> Written {
        Written {
            shard: SHARD,
            kind,
            level: Level::ReplicatedSync,
            queue: QUEUE,
            sequence: Sequence(sequence),
            lsn: Lsn::ZERO,
            end: Lsn::ZERO,
            letter: letter.map(LetterId),
            name: (kind == RecordKind::QueueCreate).then(|| "q".to_owned()),
            origin: None,
            identified: false,
            doom: false,
            delivery_count: None,
            delivery_unix_ms: None,
            found: false,
        }
    }

    /// A batch of one record; its chain is given.
    fn batch(at: u64, chain: u64, record: Written) -> (Lsn, Batch) {
        let record = Written { lsn: Lsn(at - 1), end: Lsn(at), ..record };
        (Lsn(at), Batch { chain: Chain(chain), records: vec![record] })
    }

    fn creation() -> (Lsn, Batch) {
        batch(10, 1, record(RecordKind::QueueCreate, 0, None))
    }

    /// The message of a letter, at this place of the log and in its queue.
    fn message(at: u64, chain: u64, (letter, sequence): (u64, u64)) -> (Lsn, Batch) {
        batch(at, chain, record(RecordKind::Message, sequence, Some(letter)))
    }

    fn settlement(at: u64, chain: u64, sequence: u64) -> (Lsn, Batch) {
        batch(at, chain, record(RecordKind::Settle, sequence, None))
    }

    /// All checks, and the members' history by hand.
    struct Told {
        now: Instant,
        checks: Checks,
        history: History,
    }

    impl Told {
        #[expect(clippy::disallowed_methods, reason = "the origin of virtual time")]
        fn new() -> Self {
            let mut checks = Checks::default();
            (checks.facts.backup, checks.facts.pair) = (true, true);
            checks.facts.names = vec!["q".to_owned()];
            checks.facts.attempts_max = 5;
            Self { now: Instant::now(), checks, history: History::default() }
        }

        /// Something is seen when both disks hold the log up to here.
        fn see(&mut self, held: u64, seen: &Seen) -> Result<(), String> {
            self.now += Duration::from_millis(1);
            let (at, end) = (self.now, Lsn(held));
            let mark = Mark { durable: end, received: end, backed_up: end };
            self.checks.facts.stamp = Some(Stamp { at, marks: vec![mark] });
            self.checks.see(self.now, seen)
        }

        fn reigns(&mut self, log: &[(Lsn, Batch)]) {
            let held: Held = log.iter().cloned().collect();
            let end = *held.last_key_value().expect("a log").0;
            self.see(0, &Seen::Crash { async_from: self.now }).expect("no promise");
            for seen in self.history.begins(SHARD, &held, end) {
                self.see(0, &seen).expect("no promise");
            }
            self.see(end.0, &Seen::Ready { queues: Vec::new() }).expect("no promise");
        }

        fn writes(&mut self, (end, batch): (Lsn, Batch)) {
            let chain = batch.chain;
            self.history.goes_on(&Seen::Vouched { shard: SHARD, vouched: end, end, chain });
            for record in batch.records {
                self.see(end.0 - 1, &Seen::Written(record)).expect("no promise");
            }
        }

        fn sent(&mut self, letter: u64) {
            let sent = Seen::Sent {
                letter: LetterId(letter),
                link: LinkKey(letter),
                queue: 0,
                settled: false,
                again: false,
                expiry_unix_ms: None,
                priority: None,
                later: None,
                sent_unix_ms: 0,
            };
            self.see(0, &sent).expect("no promise");
        }

        fn delivered(&mut self, held: u64, letter: u64) -> Result<(), String> {
            let delivered = Seen::Delivered {
                letter: LetterId(letter),
                link: LinkKey(99),
                delivery_count: 0,
                first_acquirer: false,
                alone: false,
                grave: false,
                note: None,
            };
            self.see(held, &delivered)
        }

        fn finish(mut self) -> Result<(), String> {
            self.checks.finish(&mut crate::hits::Hits::default())
        }

        /// Letter 1 is in the log, for a moment or for good.
        fn with_one() -> Self {
            let mut told = Self::new();
            told.reigns(&[creation()]);
            told.sent(1);
            told.writes(message(20, 2, (1, 7)));
            told
        }
    }

    #[test]
    fn what_one_member_lost_and_the_other_kept_is_there_again() {
        let mut told = Told::with_one();
        // Nobody was told of letter 1. The live loses it, gives its place to another one, and
        // loses that too; the other member has had the first one all the while.
        told.reigns(&[creation()]);
        told.sent(2);
        told.writes(message(25, 3, (2, 7)));
        told.reigns(&[creation(), message(20, 2, (1, 7))]);
        let letters = &told.checks.facts.letters;
        assert!(letters[&LetterId(1)].written.as_ref().is_some_and(|record| record.found));
        assert!(letters[&LetterId(2)].written.is_none());
        told.delivered(20, 1).expect("it is in both logs");
        let (letter, verdict) = (LetterId(1), Verdict::Accepted);
        told.see(20, &Seen::Judged { letter, verdict }).expect("it has the letter");
        told.writes(settlement(30, 4, 7));
        // Its settlement is lost by one member and kept by the other.
        told.reigns(&[creation(), message(20, 2, (1, 7))]);
        told.reigns(&[creation(), message(20, 2, (1, 7)), settlement(30, 4, 7)]);
        told.see(30, &Seen::Confirmed { letter, verdict }).expect("it is in both logs");
        told.finish().expect("no promise was broken");
    }

    #[test]
    fn logs_agree_up_to_a_batch_that_both_have_with_its_chain() {
        let held = |log: &[(Lsn, Batch)]| log.iter().cloned().collect::<Held>();
        let own = held(&[creation(), message(20, 2, (1, 7)), message(40, 4, (3, 8))]);
        let other = held(&[creation(), message(20, 2, (1, 7)), message(40, 5, (2, 8))]);
        assert_eq!(agreed(&own, &other, Lsn(39)), Some(Lsn(20)));
        assert_eq!(agreed(&own, &other, Lsn(40)), None, "the other one's end is another");
        assert_eq!(agreed(&own, &own, Lsn(99)), Some(Lsn(40)));
        assert_eq!(agreed(&own, &other, Lsn(0)), None);
    }

    #[test]
    fn what_is_found_must_be_committed_like_all_else() {
        let mut told = Told::with_one();
        told.reigns(&[creation()]);
        told.reigns(&[creation(), message(20, 2, (1, 7))]);
        let broken = told.delivered(19, 1).expect_err("one member has it");
        assert!(broken.contains("was not committed"), "{broken}");
    }

    #[test]
    fn what_was_accepted_and_no_log_has_is_lost() {
        let mut told = Told::with_one();
        told.see(20, &Seen::Accepted(LetterId(1))).expect("it is in both logs");
        // This one goes further, and has something else in its place.
        told.sent(2);
        told.sent(3);
        told.reigns(&[creation(), message(20, 3, (2, 7)), message(40, 4, (3, 8))]);
        let broken = told.finish().expect_err("letter 1 is gone");
        assert!(broken.contains("LetterId(1) was accepted and is lost; its record: None"));
    }

    #[test]
    fn a_confirmed_settlement_that_no_log_has_is_missed_when_its_letter_comes() {
        let mut told = Told::with_one();
        told.delivered(20, 1).expect("it is in both logs");
        let (letter, verdict) = (LetterId(1), Verdict::Accepted);
        told.see(20, &Seen::Judged { letter, verdict }).expect("it has the letter");
        told.writes(settlement(30, 3, 7));
        told.see(30, &Seen::Confirmed { letter, verdict }).expect("it is in both logs");
        told.reigns(&[creation(), message(20, 2, (1, 7))]);
        told.delivered(30, 1).expect_err("it came again");
    }
}
