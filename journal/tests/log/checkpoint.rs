//! A checkpoint shortens a start, survives a crash at each of its operations, and is never believed
//! where it can't be.

use std::time::Duration;

use journal::{
    CheckpointError, CheckpointHead, DiskDone, DiskError, DiskOp, Evidence, FileId, Lsn,
    NodeSuperblock, RecordKind, Recovery, RecoveryError, RecoveryOutcome, Usage, check_checkpoint,
};

use crate::bed::{Bed, Recovering, SEGMENT_BYTES, SHARD, Seen, config, recover, start};
use crate::disk::Disk;
use crate::offline::verified;

const PAGES: [&[u8]; 3] = [b"one", &[7; 100_000], b"three"];

fn file(which: u8) -> FileId {
    FileId::Checkpoint { shard: SHARD, which }
}

/// A log of about so many segments.
fn bed(segments: u64) -> (Bed, NodeSuperblock) {
    let (mut bed, node) = Bed::fresh();
    grow(&mut bed, segments);
    (bed, node)
}

fn grow(bed: &mut Bed, segments: u64) {
    let until = bed.journal.appended().plus(segments * SEGMENT_BYTES);
    let mut sequence = bed.appended.len() as u64;
    while bed.journal.appended() < until {
        bed.append(RecordKind::Message, sequence, &[1; 5000]);
        sequence += 1;
        bed.settle();
    }
}

/// Puts all pages, and does what is to be done meanwhile.
fn put_pages(bed: &mut Bed) {
    for page in PAGES {
        bed.settle();
        assert!(bed.journal.wants_page());
        bed.journal.put_page(page);
    }
    bed.settle();
    bed.journal.end_pages();
}

fn checkpoint(bed: &mut Bed) -> CheckpointHead {
    let from = bed.journal.begin_checkpoint(Lsn(u64::MAX), 5).expect("it is worth it");
    put_pages(bed);
    bed.settle();
    let head = bed.journal.poll_checkpoint_end().expect("it ends").expect("it ends well");
    assert_eq!((head.from, head.unix_ms), (from, 5));
    assert!(!bed.journal.is_checkpointing() && bed.journal.checkpoint() == Some(&head));
    head
}

/// A start that makes use of checkpoints: its pages, its records.
fn begin(disk: &mut Disk, node: &NodeSuperblock) -> (RecoveryOutcome, Vec<Vec<u8>>, Vec<Seen>) {
    let (outcome, pages, seen) = judge(disk, Recovering::new(disk, node, &config()));
    (outcome.expect("a whole log"), pages, seen)
}

type Begun = (Result<RecoveryOutcome, RecoveryError>, Vec<Vec<u8>>, Vec<Seen>);

fn judge(disk: &mut Disk, mut start_up: Recovering) -> Begun {
    start_up.recovery = start_up.recovery.with_checkpoints();
    let mut pages = Vec::new();
    let now = start();
    loop {
        if start_up.recovery.poll_void() {
            pages.clear();
            start_up.seen.clear();
        }
        while let Some(page) = start_up.recovery.poll_page() {
            pages.push(page.to_vec());
        }
        match start_up.next_op() {
            Some(op) => {
                let done = disk.complete(op);
                start_up.recovery.handle_disk(now, done);
            }
            None if start_up.recovery.has_void() => {}
            None => break,
        }
    }
    (start_up.recovery.poll_outcome().expect("it has ended"), pages, start_up.seen)
}

fn behind(bed: &Bed, from: Lsn) -> Vec<Seen> {
    bed.seen().into_iter().filter(|seen| seen.lsn > from).collect()
}

#[test]
fn a_start_reads_the_pages_and_the_log_behind_them() {
    let (mut bed, node) = bed(6);
    let head = checkpoint(&mut bed);
    grow(&mut bed, 1);
    for which in [0, 1] {
        let content = bed.disk.contents(file(which));
        let found = check_checkpoint(bed.journal.seed(), SEGMENT_BYTES, &content);
        assert_eq!(found, Ok((u64::from(which) == head.generation % 2).then_some(head)));
    }
    let (outcome, pages, seen) = begin(&mut bed.disk.clone(), &node);
    assert_eq!((outcome.checkpoint, outcome.refused), (Some(head), vec![]));
    assert_eq!(pages, PAGES);
    assert_eq!(seen, behind(&bed, head.from));
    assert!(seen.len() < bed.appended.len() / 2, "{} of {}", seen.len(), bed.appended.len());
    // Who does not ask for checkpoints reads all; and both go on alike.
    let (whole, all) = recover(&mut bed.disk.clone(), &node);
    assert_eq!((whole.checkpoint, all), (None, bed.seen()));
    let usage = outcome.journal.usage();
    assert_eq!(usage, whole.journal.usage(), "padding and segments are known");
    let mut on = Bed::new(outcome.journal, bed.disk.clone());
    on.appended.clone_from(&bed.appended);
    grow(&mut on, 1);
    let newer = checkpoint(&mut on);
    assert!(newer.generation > head.generation && newer.from > head.from);
    let (outcome, _, seen) = begin(&mut on.disk.clone(), &node);
    assert_eq!((outcome.checkpoint, seen), (Some(newer), behind(&on, newer.from)));
}

#[test]
fn a_crash_at_each_operation_finds_the_one_before_or_the_new_one() {
    let (mut bed, node) = bed(6);
    let older = checkpoint(&mut bed);
    grow(&mut bed, 4);
    let (mut ops, mut is_newer) = (0, false);
    for stop in 0.. {
        let mut disk = bed.disk.clone();
        let (outcome, _, _) = begin(&mut disk.clone(), &node);
        let mut on = Bed::new(outcome.journal, disk.clone());
        on.settle();
        on.journal.begin_checkpoint(Lsn(u64::MAX), 6).expect("it is worth it");
        let mut pages = PAGES.iter();
        let mut done = 0;
        while done < stop && on.journal.is_checkpointing() {
            if on.journal.wants_page() {
                match pages.next() {
                    Some(page) => on.journal.put_page(page),
                    None => on.journal.end_pages(),
                }
            }
            on.poll();
            on.journal.set_committed(on.journal.durable());
            if !on.pending.is_empty() {
                done += 1;
                on.complete(0);
            }
        }
        // What was in flight is torn.
        on.poll();
        disk = on.disk.clone();
        for op in &on.pending {
            if let DiskOp::Write { file, offset, buf, .. } = op {
                let content = disk.platter.entry(*file).or_default();
                let at = usize::try_from(*offset).unwrap();
                content.resize(content.len().max(at + buf.len()), 0);
                content[at..at + 100].copy_from_slice(&buf.as_slice()[..100]);
            }
        }
        let is_over = !on.journal.is_checkpointing();
        let (outcome, pages, _) = begin(&mut disk, &node);
        let found = outcome.checkpoint.expect("one of them").generation;
        assert!(found == older.generation || is_over || found > older.generation);
        assert_eq!(pages, PAGES, "after {stop}");
        (ops, is_newer) = (stop, found > older.generation);
        if is_over {
            break;
        }
    }
    assert!(ops > 4 && is_newer, "{ops} operations");
}

#[test]
fn whatever_is_wrong_with_both_the_log_says_all() {
    let (mut bed, node) = bed(6);
    let first = checkpoint(&mut bed);
    grow(&mut bed, 3);
    let second = checkpoint(&mut bed);
    let of = |head: CheckpointHead| file(u8::from(head.generation % 2 == 1));
    let all = bed.seen();
    for (at, error) in [(8, CheckpointError::Head), (3 * 4096 + 7, CheckpointError::Page(2))] {
        let mut disk = bed.disk.clone();
        disk.platter.get_mut(&of(second)).unwrap()[at] ^= 1;
        let (outcome, pages, seen) = begin(&mut disk.clone(), &node);
        assert_eq!(outcome.refused, [(of(second), error)]);
        assert_eq!((outcome.checkpoint, pages.len()), (Some(first), PAGES.len()));
        assert_eq!(seen, behind(&bed, first.from));
        disk.unreadable.insert((of(first), 2));
        let (outcome, pages, seen) = begin(&mut disk, &node);
        assert_eq!(outcome.refused.len(), 2);
        assert_eq!((outcome.checkpoint, pages.len(), seen), (None, 0, all.clone()));
    }
}

#[test]
fn one_of_another_history_is_found_out_and_what_it_said_is_void() {
    let (mut one, node) = bed(6);
    let mut disk = one.disk.clone();
    grow(&mut one, 3);
    let head = checkpoint(&mut one);
    // The same log took another way.
    let mut other = Bed::new(recover(&mut disk, &node).0.journal, disk);
    other.appended = one.appended[..one.appended.len() / 2].to_vec();
    other.settle();
    for sequence in 0..60 {
        other.append(RecordKind::Settle, sequence, &[2; 4000]);
        other.settle();
    }
    let which = file(u8::from(head.generation % 2 == 1));
    other.disk.platter.insert(which, one.disk.contents(which));
    let (whole, all) = recover(&mut other.disk.clone(), &node);
    assert!(whole.journal.durable() > head.until);
    let (outcome, pages, seen) = begin(&mut other.disk, &node);
    assert!(outcome.checkpoint.is_none() && pages.is_empty() && seen == all);
    assert!(matches!(
        outcome.refused[..],
        [(_, CheckpointError::History | CheckpointError::Segments)]
    ));
}

/// What a checkpoint knows to have been durable is not there: of a broker alone that is damage, of
/// a member it may be what a rejoin has cut off, and the other one has the rest.
#[test]
fn a_log_that_ends_before_a_checkpoint_has_lost_something_unless_it_is_a_pairs() {
    let (mut bed, node) = bed(6);
    let before = bed.disk.clone();
    let all = bed.seen();
    let end = bed.journal.durable();
    grow(&mut bed, 3);
    let head = checkpoint(&mut bed);
    let which = u8::from(head.generation % 2 == 1);
    let mut content = bed.disk.contents(file(which));
    for is_whole in [true, false] {
        // Its head says so, whatever became of its pages.
        content[3 * 4096 + 7] ^= u8::from(!is_whole);
        let mut disk = before.clone();
        disk.platter.insert(file(which), content.clone());
        let alone = Recovering::new(&disk, &node, &config());
        match judge(&mut disk, alone).0 {
            Err(RecoveryError::Damaged { lsn, evidence, .. }) => {
                let expected = Evidence::Checkpoint { which, until: head.until };
                assert_eq!((lsn, evidence), (end, expected));
            }
            other => panic!("{other:?}"),
        }
        let judged = verified(&disk, &node);
        assert!(matches!(judged, Err(RecoveryError::Damaged { .. })), "{judged:?}");
        assert!(verified(&before, &node).is_ok());
        let recovery = Recovery::of_member(&node, SHARD, &disk.slots(SHARD), config());
        let (outcome, pages, seen) = judge(&mut disk, Recovering { recovery, seen: Vec::new() });
        let outcome = outcome.expect("a member goes on");
        assert_eq!((outcome.checkpoint, pages.len(), outcome.refused.len()), (None, 0, 1));
        assert_eq!(seen, all);
    }
}

#[test]
fn a_failed_write_ends_the_checkpoint_and_nothing_else() {
    let (mut bed, node) = bed(6);
    let older = checkpoint(&mut bed);
    for (nth, error) in
        [(0, DiskError::NoSpace), (1, DiskError::Short { bytes: 0 }), (3, DiskError::Io(5))]
    {
        grow(&mut bed, 3);
        bed.journal.begin_checkpoint(Lsn(u64::MAX), 6).expect("it is worth it");
        let mut pages = PAGES.iter();
        for done in 0.. {
            if bed.journal.wants_page() {
                bed.journal.put_page(pages.next().expect("it has ended before"));
            }
            bed.poll();
            if done == nth {
                let op = bed.pending.remove(0);
                let id = op.id();
                let done = DiskDone { id, result: Err(error), buf: None };
                bed.journal.handle_disk(bed.now, done);
                break;
            }
            bed.complete(0);
        }
        assert_eq!(bed.journal.poll_checkpoint_end(), Some(Err(error)));
        assert!(bed.journal.poisoned().is_none() && !bed.journal.is_checkpointing());
        let (outcome, pages, _) = begin(&mut bed.disk.clone(), &node);
        assert_eq!((outcome.checkpoint, pages.len()), (Some(older), PAGES.len()), "after {nth}");
    }
    grow(&mut bed, 1);
    assert!(checkpoint(&mut bed).generation > older.generation);
}

/// What a checkpoint takes is what the log lacks then.
#[test]
fn a_segment_that_finds_no_space_goes_before_a_checkpoint() {
    let (mut bed, node) = bed(6);
    let older = checkpoint(&mut bed);
    grow(&mut bed, 3);
    bed.journal.begin_checkpoint(Lsn(u64::MAX), 6).expect("it is worth it");
    for page in &PAGES[..2] {
        bed.settle();
        bed.journal.put_page(page);
    }
    bed.settle();
    let is_segment =
        |op: &DiskOp| matches!(op, DiskOp::Prewrite { file: FileId::Segment { .. }, .. });
    let making = loop {
        bed.append(RecordKind::Message, 900, &[1; 5000]);
        bed.poll();
        if let Some(at) = bed.pending.iter().position(is_segment) {
            break bed.pending.remove(at);
        }
        bed.settle();
    };
    let done = DiskDone { id: making.id(), result: Err(DiskError::NoSpace), buf: None };
    bed.journal.handle_disk(bed.now, done);
    assert_eq!(bed.journal.poll_checkpoint_end(), Some(Err(DiskError::NoSpace)));
    bed.settle();
    let which = file(u8::from(older.generation.is_multiple_of(2)));
    assert_eq!(bed.disk.contents(which).len(), 4096, "it gives back what it took");
    assert_eq!(bed.journal.begin_checkpoint(Lsn(u64::MAX), 6), None, "as long as that lasts");
    let (outcome, pages, _) = begin(&mut bed.disk.clone(), &node);
    assert_eq!((outcome.checkpoint, pages.len()), (Some(older), PAGES.len()));
    assert!(bed.journal.lacks_space());
    // Also while the disk is asked again.
    bed.now += Duration::from_secs(4);
    bed.poll();
    assert!(bed.pending.iter().any(is_segment));
    assert_eq!(bed.journal.begin_checkpoint(Lsn(u64::MAX), 6), None);
    bed.settle();
    assert!(!bed.journal.lacks_space());
    assert!(checkpoint(&mut bed).generation > older.generation);
}

#[test]
fn it_begins_where_all_is_committed_and_only_where_that_saves_something() {
    let (mut bed, _) = bed(6);
    let limit = Lsn(3 * SEGMENT_BYTES + 5000);
    assert_eq!(bed.journal.begin_checkpoint(Lsn(SEGMENT_BYTES), 0), None, "hardly anything");
    let from = bed.journal.begin_checkpoint(limit, 0);
    assert_eq!(from, Some(Lsn(3 * SEGMENT_BYTES + 4096)));
    assert_eq!(bed.journal.begin_checkpoint(limit, 0), None, "one at a time");
    // What was appended when the last page was put has to be durable and committed.
    put_pages(&mut bed);
    bed.append(RecordKind::Message, 900, b"late");
    for _ in 0..20 {
        bed.poll();
        if !bed.pending.is_empty() {
            bed.complete(0);
        }
    }
    let told = bed.journal.durable();
    bed.journal.set_committed(told);
    bed.settle();
    let head = bed.journal.poll_checkpoint_end().expect("it ends").expect("well");
    assert!(head.until <= told && head.until > limit);
    assert_eq!(bed.journal.begin_checkpoint(limit, 0), None, "it would say the same");
}

/// Pages know what was appended when they were put: not before that is committed does it count.
#[test]
fn it_does_not_count_before_what_it_knows_is_committed() {
    let (mut bed, node) = bed(6);
    bed.journal.begin_checkpoint(Lsn(u64::MAX), 0).expect("it is worth it");
    let committed = bed.journal.committed();
    put_pages(&mut bed);
    bed.append(RecordKind::Message, 900, b"known to the last page");
    bed.journal.give_up_checkpoint();
    bed.settle();
    bed.journal.begin_checkpoint(Lsn(u64::MAX), 0).expect("it is worth it");
    for page in PAGES {
        bed.settle();
        bed.journal.put_page(page);
    }
    bed.settle();
    bed.append(RecordKind::Message, 901, b"known to the last page");
    bed.journal.end_pages();
    let told = bed.journal.appended();
    // All is durable, and nobody says that it is committed.
    for _ in 0..20 {
        bed.poll();
        if !bed.pending.is_empty() {
            bed.complete(0);
        }
    }
    assert!(bed.journal.durable() >= told && bed.journal.committed() < told);
    assert!(bed.journal.committed() >= committed);
    assert!(bed.journal.is_checkpointing());
    assert_eq!(begin(&mut bed.disk.clone(), &node).0.checkpoint, None);
    bed.settle();
    bed.journal.set_committed(bed.journal.durable());
    bed.settle();
    let head = bed.journal.poll_checkpoint_end().expect("it ends").expect("well");
    assert!(head.until >= told);
    assert_eq!(begin(&mut bed.disk, &node).0.checkpoint, Some(head));
}

#[test]
fn what_was_recycled_since_is_no_hindrance() {
    let (mut bed, node) = bed(8);
    let head = checkpoint(&mut bed);
    for _ in 0..3 {
        bed.journal.recycle_head();
        bed.settle();
    }
    let (outcome, pages, seen) = begin(&mut bed.disk.clone(), &node);
    assert_eq!((outcome.checkpoint, pages.len()), (Some(head), PAGES.len()));
    assert_eq!(seen, behind(&bed, head.from));
    let unsettled = bed.journal.usage().unsettled;
    assert_eq!(Usage { unsettled, ..outcome.journal.usage() }, bed.journal.usage());
    // When the head has come to where it begins, it says nothing any more.
    grow(&mut bed, 2);
    while bed.journal.head() <= head.from {
        bed.journal.recycle_head();
        bed.settle();
    }
    let (outcome, pages, _) = begin(&mut bed.disk, &node);
    assert_eq!((outcome.checkpoint, outcome.refused.len(), pages.len()), (None, 0, 0));
}

#[test]
fn an_operation_that_never_ends_is_the_end_like_a_pre_write() {
    let (mut bed, _) = bed(6);
    bed.journal.begin_checkpoint(Lsn(u64::MAX), 0).expect("it is worth it");
    bed.poll();
    assert!(matches!(bed.pending[..], [DiskOp::Prewrite { .. }]));
    let due = bed.journal.poll_timeout().expect("it is waited for, not for ever");
    bed.journal.handle_timeout(due - Duration::from_secs(1));
    assert_eq!(bed.journal.poisoned(), None);
    bed.journal.handle_timeout(due);
    let poison = bed.journal.poisoned().expect("it hung");
    assert_eq!(poison.cause, journal::PoisonCause::Hung);
    assert!(matches!(poison.file, FileId::Checkpoint { .. }));
}

/// What was appended goes first, and a page that has waited goes all the same.
#[test]
fn a_busy_disk_puts_a_page_off_for_a_moment() {
    let (mut bed, _) = bed(6);
    let mut sequence = 1000;
    while bed.journal.is_disk_free() {
        bed.append(RecordKind::Message, sequence, &[1; 5000]);
        sequence += 1;
        bed.poll();
    }
    bed.journal.begin_checkpoint(Lsn(u64::MAX), 0).expect("it is worth it");
    let is_page = |op: &DiskOp| matches!(op.file(), FileId::Checkpoint { .. });
    bed.poll();
    assert!(!bed.pending.iter().any(is_page));
    bed.now += journal::limits::CHECKPOINT_PATIENCE;
    bed.poll();
    assert!(bed.pending.iter().any(is_page));
}
