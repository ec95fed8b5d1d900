//! The head is recycled, stale bytes stay dead, and a full log always drains in the order of the
//! log.

use std::collections::VecDeque;
use std::time::Duration;

use journal::limits::SETTLE_BYTES;
use journal::{
    AppendError, Config, FileId, Level, Lsn, QueueId, Record, RecordKind, Room, Sequence,
    ShardSuperblock, Urgency,
};

use crate::bed::{Bed, Recovering, SEGMENT_BYTES, SHARD, config, formatted, recover};

/// A broker in small: messages in order, and what of them is settled.
#[derive(Default)]
struct Owner {
    live: VecDeque<(u64, Lsn)>,
    next: u64,
}

impl Owner {
    fn accept(&mut self, bed: &mut Bed, bytes: usize) -> Result<(), AppendError> {
        let payload = vec![1; bytes];
        let appended = bed.try_append(RecordKind::Message, self.next, &payload, Urgency::Now)?;
        self.live.push_back((self.next, appended.lsn));
        self.next += 1;
        Ok(())
    }

    fn settle_oldest(&mut self, bed: &mut Bed) -> Result<(), AppendError> {
        let (sequence, _) = *self.live.front().expect("there is one");
        bed.try_append(RecordKind::Settle, sequence, b"", Urgency::Now)?;
        self.live.pop_front();
        Ok(())
    }

    /// Recycles the head as long as no live message is in it; the settlements in it are of messages
    /// before it.
    fn recycle(&self, bed: &mut Bed) -> u64 {
        let mut recycled = 0;
        while let Some(head) = bed.journal.head_segment() {
            if self.live.front().is_some_and(|(_, lsn)| *lsn < head.end_lsn) {
                break;
            }
            bed.journal.recycle_head();
            bed.settle();
            recycled += 1;
        }
        recycled
    }
}

fn bed_of(segments_max: u32) -> (Bed, journal::NodeSuperblock) {
    let (mut disk, node) = formatted();
    let config = Config { segments_max, ..config() };
    let (outcome, _) = Recovering::new(&disk, &node, &config).run(&mut disk);
    (Bed::new(outcome.unwrap().journal, disk), node)
}

#[test]
pub(crate) fn the_log_runs_over_its_slots_many_times_and_recovers_at_each_lap() {
    let (mut bed, node) = bed_of(6);
    bed.settle();
    let mut owner = Owner::default();
    let mut recycled = 0;
    for round in 0..400_u64 {
        let bytes = usize::try_from(round % 7).unwrap() * 3_000 + 100;
        while owner.accept(&mut bed, bytes) == Err(AppendError::Busy) {
            bed.settle();
        }
        bed.settle();
        if owner.live.len() > 3 {
            owner.settle_oldest(&mut bed).unwrap();
            bed.settle();
        }
        recycled += owner.recycle(&mut bed);
        if round % 10 == 9 {
            let mut disk = bed.disk.clone();
            let (outcome, seen) = recover(&mut disk, &node);
            let head = outcome.journal.head();
            let expected: Vec<_> = bed.seen().into_iter().filter(|seen| seen.lsn >= head).collect();
            assert_eq!(seen, expected, "round {round}");
            assert!(seen.first().is_none_or(|first| first.lsn < head.plus(SEGMENT_BYTES)));
        }
    }
    assert!(recycled > 50, "{recycled} segments recycled");
    assert!(bed.journal.usage().segments_made <= 6);
}

#[test]
fn a_slot_is_used_again_only_when_the_superblock_says_so() {
    let (mut bed, _) = bed_of(6);
    bed.settle();
    let mut owner = Owner::default();
    while bed.journal.head_segment().is_none() {
        owner.accept(&mut bed, 20_000).unwrap();
        bed.settle();
    }
    while !owner.live.is_empty() {
        owner.settle_oldest(&mut bed).unwrap();
    }
    bed.settle();
    let before = bed.journal.usage().free_bytes;
    bed.journal.recycle_head();
    bed.poll();
    assert_eq!(bed.journal.usage().free_bytes, before, "the superblock is still in flight");
    bed.settle();
    assert!(bed.journal.usage().free_bytes > before);
}

#[test]
fn the_committed_watermark_holds_the_head() {
    let (mut bed, _) = bed_of(6);
    bed.settle();
    let held = bed.journal.committed();
    for sequence in 0..5 {
        bed.append(RecordKind::Message, sequence, &[0; 20_000]);
        bed.poll();
        while !bed.pending.is_empty() {
            bed.complete(0);
            bed.poll();
        }
    }
    assert_eq!(bed.journal.committed(), held);
    assert!(bed.journal.head_segment().is_none(), "durable, not committed");
    bed.journal.set_committed(bed.journal.durable());
    assert!(bed.journal.head_segment().is_some());
}

/// Fills the log with small messages until it is full.
fn filled(bed: &mut Bed, owner: &mut Owner) {
    loop {
        match owner.accept(bed, 256) {
            Ok(()) if owner.next.is_multiple_of(40) => bed.settle(),
            Ok(()) => {}
            Err(AppendError::Busy) => bed.settle(),
            Err(AppendError::Full) => break,
            Err(error) => panic!("{error}"),
        }
    }
    bed.settle();
}

#[test]
fn a_full_log_drains_in_order_settled_one_by_one_and_takes_messages_again() {
    for segments_max in [4, 5, 8, 12] {
        let (mut bed, node) = bed_of(segments_max);
        bed.settle();
        let mut owner = Owner::default();
        filled(&mut bed, &mut owner);
        let messages = owner.live.len();
        assert!(messages as u64 * SETTLE_BYTES > 3_000, "{messages} messages");
        let (mut packed, mut scarce) = (0, 0);
        while !owner.live.is_empty() {
            // Each settlement comes long after the last one and wants an answer now: the worst
            // case.
            owner.settle_oldest(&mut bed).expect("a settlement always has room");
            match bed.journal.usage().room {
                Room::Packed => packed += 1,
                Room::Scarce => scarce += 1,
                Room::Plenty => {}
            }
            bed.wait(Duration::from_millis(60));
            owner.recycle(&mut bed);
        }
        assert!(scarce > 0 || packed > 0, "the disk was never short of room");
        bed.wait(Duration::from_millis(60));
        owner.recycle(&mut bed);
        assert_eq!(bed.promised(), bed.appended.len(), "all is written at the end");
        while owner.accept(&mut bed, 256) == Err(AppendError::Busy) {
            bed.settle();
        }
        bed.settle();
        assert_eq!(owner.live.len(), 1, "messages are taken again");
        recover(&mut bed.disk, &node);
    }
}

#[test]
fn a_full_log_drains_even_if_the_oldest_message_is_settled_last() {
    for segments_max in [4, 5, 8, 12] {
        let (mut bed, node) = bed_of(segments_max);
        bed.settle();
        let mut owner = Owner::default();
        filled(&mut bed, &mut owner);
        let (mut packed, mut held) = (0, 0);
        while let Some((sequence, _)) = owner.live.pop_back() {
            // Nothing can be recycled meanwhile, and each settlement comes alone.
            let settled = bed.try_append(RecordKind::Settle, sequence, b"", Urgency::Now);
            settled.expect("a settlement always has room");
            packed += usize::from(bed.journal.usage().room == Room::Packed);
            bed.wait(Duration::from_millis(2_000));
            if bed.promised() < bed.appended.len() {
                // What waits for company must not keep the durable mark from being written.
                for _ in 0..4 {
                    bed.wait(Duration::from_millis(2_000));
                }
                let superblock = bed.disk.contents(FileId::ShardSuperblock(SHARD));
                let mark = ShardSuperblock::decode(&superblock, node.log_id, SHARD);
                assert_eq!(mark.unwrap().unwrap().durable, bed.journal.durable());
                held += 1;
            }
        }
        assert!(packed > 0 && held > 0, "the log never came to its last segment");
        bed.wait(Duration::from_millis(2_000));
        assert_eq!(bed.promised(), bed.appended.len(), "the last block is written all the same");
        assert!(owner.recycle(&mut bed) > 0);
        while owner.accept(&mut bed, 256) == Err(AppendError::Busy) {
            bed.settle();
        }
        assert_eq!(owner.live.len(), 1, "messages are taken again");
    }
}

#[test]
fn a_message_that_a_full_log_refuses_takes_nothing_of_what_is_set_aside() {
    for segments_max in [4, 8] {
        let (mut bed, _) = bed_of(segments_max);
        bed.settle();
        let mut owner = Owner::default();
        filled(&mut bed, &mut owner);
        let large = vec![1; bed.journal.fragment_bytes_max()];
        let mut refused = Record::new(RecordKind::Message, QueueId(1), Sequence(1), &large);
        refused.level = Level::Async;
        while let Some((sequence, _)) = owner.live.pop_back() {
            let settled = bed.try_append(RecordKind::Settle, sequence, b"", Urgency::Now);
            settled.expect("a settlement always has room");
            let taken = bed.journal.append(bed.now, &refused, Urgency::Window);
            assert!(matches!(taken, Err(AppendError::Full | AppendError::Busy)));
            bed.wait(Duration::from_millis(2_000));
        }
        bed.wait(Duration::from_millis(2_000));
        assert_eq!(bed.promised(), bed.appended.len(), "the last block is written all the same");
    }
}

#[test]
fn a_full_log_also_drains_after_a_restart() {
    let (mut bed, node) = bed_of(6);
    bed.settle();
    let mut owner = Owner::default();
    filled(&mut bed, &mut owner);
    let config = Config { segments_max: 6, ..config() };
    let (outcome, seen) = Recovering::new(&bed.disk, &node, &config).run(&mut bed.disk);
    assert_eq!(seen.len(), owner.live.len());
    let mut bed = Bed::new(outcome.unwrap().journal, bed.disk);
    bed.journal.set_unsettled(owner.live.len() as u64);
    bed.settle();
    let refused = owner.accept(&mut bed, 256);
    assert_eq!(refused, Err(AppendError::Full));
    while !owner.live.is_empty() {
        owner.settle_oldest(&mut bed).expect("a settlement always has room");
        bed.wait(Duration::from_millis(60));
        owner.recycle(&mut bed);
    }
}

#[test]
fn copies_of_the_head_may_use_the_reserve() {
    let (mut bed, _) = bed_of(5);
    bed.settle();
    let mut owner = Owner::default();
    filled(&mut bed, &mut owner);
    let record = Record::new(RecordKind::NextSequence, QueueId(1), Sequence(owner.next), b"");
    let mut refused = bed.journal.append(bed.now, &record, Urgency::Now);
    while refused.is_ok() {
        bed.settle();
        refused = bed.journal.append(bed.now, &record, Urgency::Now);
    }
    assert_eq!(refused, Err(AppendError::Full));
    let copy = bed.journal.append_copy(bed.now, &record).expect("the reserve is for this");
    bed.settle();
    assert!(bed.journal.durable() >= copy.end, "written at once, however little room there is");
}

/// The segments that were made ahead and never used are blank, and full settlements must not have
/// to wait until they are made again.
#[test]
fn the_reserve_is_there_at_once_after_a_restart() {
    let (mut bed, node) = bed_of(12);
    bed.settle();
    let mut owner = Owner::default();
    for _ in 0..8 {
        owner.accept(&mut bed, 30_000).unwrap();
        bed.settle();
    }
    assert!(bed.journal.usage().segments_live > 3, "segments that the format didn't make");
    let free = bed.journal.usage().free_bytes;
    let (outcome, _) = Recovering::new(&bed.disk, &node, &config()).run(&mut bed.disk);
    let mut bed = Bed::new(outcome.unwrap().journal, bed.disk);
    bed.journal.set_unsettled(owner.live.len() as u64);
    assert_eq!(bed.journal.usage().free_bytes, free);
    // Nothing is made meanwhile; each settlement takes a block of its own.
    while !owner.live.is_empty() {
        owner.settle_oldest(&mut bed).expect("a settlement always has room");
        bed.journal.handle_timeout(bed.now);
        bed.poll();
        bed.pending.retain(|op| !matches!(op, journal::DiskOp::Prewrite { .. }));
        while !bed.pending.is_empty() {
            bed.complete(0);
        }
    }
}

/// At level `async` a settlement counts before it is written: the head that it empties must not go
/// before it.
#[test]
fn the_head_goes_on_disk_only_after_what_made_it_dead() {
    let (mut bed, node) = bed_of(6);
    bed.settle();
    let mut owner = Owner::default();
    while bed.journal.head_segment().is_none() {
        owner.accept(&mut bed, 20_000).unwrap();
        bed.settle();
    }
    let before = bed.journal.head();
    while !owner.live.is_empty() {
        owner.settle_oldest(&mut bed).unwrap();
    }
    bed.poll();
    bed.journal.recycle_head();
    bed.poll();
    let is_superblock = |op: &journal::DiskOp| op.file() == FileId::ShardSuperblock(SHARD);
    assert!(!bed.pending.iter().any(is_superblock), "the settlements are in flight");
    assert_eq!(recover(&mut bed.disk.clone(), &node).0.journal.head(), before);
    bed.complete(0);
    bed.poll();
    assert!(!bed.pending.iter().any(is_superblock), "durable, not committed");
    bed.journal.set_committed(bed.journal.durable());
    bed.poll();
    assert!(bed.pending.iter().any(is_superblock));
    bed.settle();
    assert!(recover(&mut bed.disk, &node).0.journal.head() > before);
}
