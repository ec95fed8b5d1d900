//! A failed, short or hung write poisons the journal; a full file system does not.

use std::time::Duration;

use journal::limits::PREWRITE_BOUND_TIMES;
use journal::{AppendError, DiskDone, DiskError, DiskOp, PoisonCause, RecordKind, Urgency};

use crate::bed::{Bed, recover};

fn answer(bed: &mut Bed, op: DiskOp, result: Result<u32, DiskError>) {
    let id = op.id();
    let buf = match op {
        DiskOp::Write { buf, .. } | DiskOp::Read { buf, .. } => Some(buf),
        DiskOp::Prewrite { .. } | DiskOp::Sync { .. } => None,
    };
    bed.journal.handle_disk(bed.now, DiskDone { id, result, buf });
}

fn take_write(bed: &mut Bed) -> DiskOp {
    bed.poll();
    let is_write = |op: &DiskOp| matches!(op, DiskOp::Write { .. });
    let index = bed.pending.iter().position(is_write).expect("a write is pending");
    bed.pending.remove(index)
}

#[test]
fn a_failed_or_short_write_poisons() {
    for result in [Err(DiskError::Io(5)), Err(DiskError::NoSpace), Ok(4096)] {
        let (mut bed, node) = Bed::fresh();
        bed.settle();
        bed.append(RecordKind::Message, 1, b"safe");
        bed.settle();
        bed.append(RecordKind::Message, 2, &[0; 5000]);
        let op = take_write(&mut bed);
        let file = op.file();
        let durable = bed.journal.durable();
        answer(&mut bed, op, result);
        let poison = *bed.journal.poisoned().expect("it failed");
        let expected = result.err().unwrap_or(DiskError::Short { bytes: 4096 });
        assert_eq!((poison.cause, poison.file), (PoisonCause::Failed(expected), file));
        let refused = bed.try_append(RecordKind::Settle, 1, b"", Urgency::Now);
        assert_eq!(refused, Err(AppendError::Poisoned));
        assert!(bed.journal.poll_disk(bed.now).is_none());
        assert_eq!(bed.journal.durable(), durable);
        assert_eq!(recover(&mut bed.disk, &node).1, bed.seen()[..1]);
    }
}

#[test]
fn a_write_without_an_answer_poisons_after_its_bound() {
    let (mut bed, _) = Bed::fresh();
    bed.settle();
    bed.append(RecordKind::Message, 1, b"stuck");
    let stuck = take_write(&mut bed);
    let bound = bed.journal.poll_timeout().expect("the bound is a timeout");
    assert_eq!(bound, bed.now + Duration::from_secs(30));
    bed.journal.handle_timeout(bound - Duration::from_millis(1));
    assert!(bed.journal.poisoned().is_none());
    bed.journal.handle_timeout(bound);
    assert_eq!(bed.journal.poisoned().map(|poison| poison.cause), Some(PoisonCause::Hung));
    // Its late answer counts for nothing.
    let durable = bed.journal.durable();
    answer(&mut bed, stuck, Ok(8192));
    assert_eq!(bed.journal.durable(), durable);
}

#[test]
fn a_file_system_without_space_is_a_smaller_budget_and_is_asked_again() {
    let (mut bed, _) = Bed::fresh();
    bed.append(RecordKind::Message, 0, b"opens the first segment");
    bed.poll();
    let making = bed.pending.pop().expect("a spare segment is wanted");
    assert!(matches!(making, DiskOp::Prewrite { .. }));
    answer(&mut bed, making, Err(DiskError::NoSpace));
    bed.settle();
    assert!(bed.journal.poisoned().is_none());
    // The format left the first segment and the reserve: messages use up the first.
    while bed.try_append(RecordKind::Message, 1, &[0; 9_000], Urgency::Now).is_ok() {
        bed.settle();
    }
    let refused = bed.try_append(RecordKind::Message, 1, &[0; 9_000], Urgency::Now);
    assert_eq!(refused, Err(AppendError::Full));
    bed.wait(Duration::from_secs(2)); // the durable mark
    bed.wait(Duration::from_secs(2)); // the disk is asked again
    assert!(bed.journal.poll_timeout().is_none(), "nothing is due any more");
    assert!(bed.try_append(RecordKind::Message, 1, &[0; 9_000], Urgency::Now).is_ok());
}

#[test]
fn who_closes_does_not_ask_a_full_file_system_again() {
    let (mut bed, _) = Bed::fresh();
    bed.append(RecordKind::Message, 0, b"opens the first segment");
    bed.poll();
    let making = bed.pending.pop().expect("a spare segment is wanted");
    answer(&mut bed, making, Err(DiskError::NoSpace));
    bed.settle();
    assert!(bed.journal.poll_timeout().is_some(), "it is asked again later");
    bed.journal.close();
    bed.settle();
    assert!(bed.journal.is_closed());
    assert_eq!(bed.journal.poll_timeout(), None);
}

#[test]
fn an_error_while_pre_writing_poisons() {
    let (mut bed, _) = Bed::fresh();
    bed.append(RecordKind::Message, 0, b"opens the first segment");
    bed.poll();
    let making = bed.pending.pop().expect("a spare segment is wanted");
    answer(&mut bed, making, Err(DiskError::Io(5)));
    let cause = bed.journal.poisoned().map(|poison| poison.cause);
    assert_eq!(cause, Some(PoisonCause::Failed(DiskError::Io(5))));
}

#[test]
fn a_pre_write_without_an_answer_poisons_after_its_own_bound() {
    let (mut bed, _) = Bed::fresh();
    bed.append(RecordKind::Message, 0, b"opens the first segment");
    bed.poll();
    let making = bed.pending.pop().expect("a spare segment is wanted");
    assert!(matches!(making, DiskOp::Prewrite { .. }));
    let begun = bed.now;
    while !bed.pending.is_empty() {
        bed.complete(0);
        bed.poll();
    }
    let bound = Duration::from_secs(30) * PREWRITE_BOUND_TIMES;
    bed.journal.handle_timeout(begun + bound - Duration::from_millis(1));
    assert!(bed.journal.poisoned().is_none());
    assert!(bed.journal.poll_timeout().is_some_and(|at| at <= begun + bound));
    bed.journal.handle_timeout(begun + bound);
    assert_eq!(bed.journal.poisoned().map(|poison| poison.cause), Some(PoisonCause::Hung));
}
