//! When batches are sealed, and what is written when nothing happens.

use std::time::Duration;

use journal::limits::{DURABLE_MARK_IDLE, WRITES_WINDOW_MAX};
use journal::{
    AppendError, Appended, DiskOp, FileId, Level, QueueId, Record, RecordFlags, RecordKind,
    Sequence, Urgency,
};

use crate::bed::{Bed, LONG_SEGMENT_BYTES, SEGMENT_BYTES, SHARD, recover};

fn written(bed: &mut Bed) -> usize {
    bed.poll();
    bed.pending.iter().filter(|op| matches!(op, DiskOp::Write { .. })).count()
}

/// Opens the first segment and lets the spare one be made.
fn warm_up(bed: &mut Bed) {
    bed.append(RecordKind::Message, 0, b"warm-up");
    bed.settle();
    bed.appended.clear();
}

#[test]
fn an_idle_disk_gets_the_first_record_at_once_and_a_busy_one_the_rest_together() {
    let (mut bed, _) = Bed::fresh();
    warm_up(&mut bed);
    for sequence in 0..4 {
        bed.append(RecordKind::Message, sequence, b"one by one");
        assert_eq!(written(&mut bed), 1 + usize::try_from(sequence).unwrap());
    }
    for sequence in 4..100 {
        bed.append(RecordKind::Message, sequence, b"together");
        assert_eq!(written(&mut bed), 4, "four writes in flight at most");
    }
    bed.complete(0);
    assert_eq!(written(&mut bed), 4);
    let before = bed.disk.writes;
    bed.settle();
    assert_eq!(bed.disk.writes - before, 4, "what came meanwhile is one batch");
    assert_eq!(bed.promised(), 100);
}

#[test]
fn the_durable_lsn_waits_for_the_oldest_write() {
    let (mut bed, _) = Bed::fresh();
    warm_up(&mut bed);
    for sequence in 0..3 {
        bed.append(RecordKind::Message, sequence, b"x");
        bed.poll();
    }
    let durable = bed.journal.durable();
    bed.complete(2);
    bed.complete(1);
    assert_eq!((bed.journal.durable(), bed.promised()), (durable, 0));
    bed.complete(0);
    assert_eq!(bed.promised(), 3);
}

#[test]
fn what_nobody_waits_for_waits_for_company_but_not_longer_than_the_window() {
    let (mut bed, _) = Bed::fresh();
    bed.settle();
    bed.try_append(RecordKind::Settle, 1, b"", Urgency::Window).unwrap();
    assert_eq!(written(&mut bed), 0);
    assert_eq!(bed.journal.poll_timeout(), Some(bed.now + Duration::from_millis(5)));
    bed.wait(Duration::from_millis(4));
    assert_eq!(bed.promised(), 0);
    bed.wait(Duration::from_millis(1));
    assert_eq!(bed.promised(), 1);
    bed.try_append(RecordKind::Settle, 2, b"", Urgency::Window).unwrap();
    bed.append(RecordKind::Message, 3, b"somebody waits");
    bed.settle();
    assert_eq!(bed.promised(), 3);
}

#[test]
fn the_durable_mark_is_written_once_in_an_idle_period_and_after_the_answers() {
    let (mut bed, node) = Bed::fresh();
    warm_up(&mut bed);
    bed.append(RecordKind::Message, 1, b"x");
    bed.settle();
    let (idle, before) = (bed.now, bed.disk.writes);
    bed.wait(Duration::from_secs(1));
    assert_eq!(bed.now, idle + DURABLE_MARK_IDLE);
    assert_eq!(bed.disk.writes, before + 1);
    bed.wait(Duration::from_secs(1));
    assert_eq!(bed.disk.writes, before + 1, "once");
    // Now the last batch is covered: losing it is damage.
    let slot = FileId::Segment { shard: SHARD, slot: journal::Slot(0) };
    bed.disk.platter.get_mut(&slot).unwrap()[8192..12288].fill(0);
    crate::bed::recover_error(&mut bed.disk, &node);
}

#[test]
fn a_message_of_many_fragments_is_there_whole_or_not_at_all() {
    let (mut bed, node) = Bed::fresh();
    bed.settle();
    let payload: Vec<u8> = (0..150_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let refused = bed.try_append(RecordKind::Message, 1, &payload, Urgency::Now);
    assert_eq!(refused, Err(AppendError::Busy), "more segments are on their way");
    bed.settle();
    bed.append(RecordKind::Message, 1, &payload);
    bed.settle();
    let (_, seen) = recover(&mut bed.disk, &node);
    assert!(seen.len() >= 3);
    let whole: Vec<u8> = seen.iter().flat_map(|seen| seen.payload.clone()).collect();
    assert_eq!(whole, payload);
}

#[test]
fn no_more_than_a_window_of_batches_runs_ahead_of_a_write_that_does_not_end() {
    let (mut bed, _) = Bed::fresh();
    warm_up(&mut bed);
    let durable = bed.journal.durable();
    let mut submitted = 0;
    for sequence in 0..100 {
        bed.append(RecordKind::Message, sequence, b"behind the one that hangs");
        bed.poll();
        bed.make_segments();
        // All but the oldest are answered.
        while bed.pending.len() > 1 {
            bed.complete(1);
            submitted += 1;
        }
    }
    // One is kept for a batch that vouches.
    assert_eq!(submitted + 1, WRITES_WINDOW_MAX - 1);
    assert_eq!(bed.journal.durable(), durable);
    bed.settle();
    assert_eq!(bed.promised(), 100);
}

#[test]
fn an_async_message_never_waits_behind_a_sealed_batch() {
    let (mut bed, _) = Bed::fresh();
    warm_up(&mut bed);
    let payload = [7; 20_000];
    let mut taken = 0;
    let refused = loop {
        let mut record =
            Record::new(RecordKind::Message, QueueId(1), Sequence(10 + taken), &payload);
        record.level = Level::Async;
        match bed.journal.append(bed.now, &record, Urgency::Window) {
            Ok(_) => taken += 1,
            Err(error) => break error,
        }
        bed.poll();
        assert!(taken < 1000, "nothing holds it back");
    };
    assert_eq!(refused, AppendError::Busy);
    // Four batches under way, one sealed by the record that found it full, one open: six of 128
    // KiB.
    assert!(taken * 20_000 <= 6 * 128 * 1024, "{taken} messages");
    bed.complete(0);
    bed.poll();
    bed.append(RecordKind::Message, 5, b"room again");
}

/// The window of `async` in these tests, the default.
const WINDOW: Duration = Duration::from_millis(5);

fn append_async(bed: &mut Bed, sequence: u64, payload: &[u8]) -> Result<Appended, AppendError> {
    let mut record = Record::new(RecordKind::Message, QueueId(1), Sequence(sequence), payload);
    record.level = Level::Async;
    bed.journal.append(bed.now, &record, Urgency::Window)
}

/// Four writes that do not end, so that no slot is left but the one that is kept.
fn with_all_slots_taken() -> Bed {
    let (mut bed, _) = Bed::fresh();
    warm_up(&mut bed);
    for sequence in 1..5 {
        bed.append(RecordKind::Message, sequence, b"stuck");
        bed.poll();
    }
    assert_eq!(bed.pending.len(), 4);
    bed
}

#[test]
fn what_was_answered_early_is_on_its_way_when_its_window_ends() {
    let mut bed = with_all_slots_taken();
    assert!(append_async(&mut bed, 5, b"early").unwrap().vouched);
    bed.poll();
    assert_eq!(bed.pending.len(), 4, "the window is open");
    assert_eq!(bed.journal.poll_timeout(), Some(bed.now + WINDOW));
    bed.now += WINDOW;
    bed.append(RecordKind::Message, 6, b"joins it");
    bed.poll();
    assert_eq!(bed.pending.len(), 5);
    bed.append(RecordKind::Message, 7, b"waits for a slot of its own");
    bed.poll();
    assert_eq!(bed.pending.len(), 5);
}

#[test]
fn a_batch_past_its_time_makes_way_for_the_next_where_a_slot_is_free() {
    let (mut bed, _) = Bed::fresh();
    warm_up(&mut bed);
    assert!(append_async(&mut bed, 1, b"early").unwrap().vouched);
    bed.now += 2 * WINDOW;
    assert!(append_async(&mut bed, 2, b"before anybody polled").unwrap().vouched);
    bed.poll();
    assert_eq!(bed.pending.len(), 1, "the first is on its way, the second has its own window");
    assert_eq!(bed.journal.poll_timeout(), Some(bed.now + WINDOW));
}

#[test]
fn nothing_is_answered_early_while_the_kept_slot_is_taken() {
    let mut bed = with_all_slots_taken();
    append_async(&mut bed, 5, b"early").unwrap();
    bed.now += WINDOW;
    bed.poll();
    assert_eq!(append_async(&mut bed, 6, b"late"), Err(AppendError::Busy));
    bed.complete(4);
    assert!(append_async(&mut bed, 6, b"now").unwrap().vouched);
}

/// It would wait for the kept slot, and hold up whoever waits behind it.
#[test]
fn nobody_answers_a_fragment_so_it_is_not_hurried() {
    let mut bed = with_all_slots_taken();
    append_async(&mut bed, 5, b"early").unwrap();
    for fragment in 0..3 {
        let mut part = Record::new(RecordKind::Message, QueueId(1), Sequence(6), b"part");
        part.level = Level::Async;
        (part.flags, part.fragment) = match fragment {
            0 => (RecordFlags::FIRST, 0),
            1 => (RecordFlags::default(), 1),
            last => (RecordFlags::LAST, last),
        };
        assert!(!bed.journal.append(bed.now, &part, Urgency::Window).unwrap().vouched);
        bed.now += WINDOW;
        bed.poll();
    }
}

#[test]
fn an_async_message_of_several_batches_is_answered_when_durable() {
    let (mut bed, _) = Bed::fresh();
    warm_up(&mut bed);
    let large = vec![7; 140_000];
    let appended = loop {
        match append_async(&mut bed, 1, &large) {
            Ok(appended) => break appended,
            Err(error) => assert_eq!(error, AppendError::Busy, "segments are being made"),
        }
        bed.settle();
    };
    assert!(!appended.vouched);
    bed.poll();
    assert_eq!(append_async(&mut bed, 2, b"behind it"), Err(AppendError::Busy));
    bed.settle();
    assert!(bed.journal.durable() >= appended.end);
    assert!(append_async(&mut bed, 2, b"behind it").unwrap().vouched);
}

/// Alone, and behind one that was granted room for it.
#[test]
fn an_async_message_does_not_join_a_batch_that_is_overdue() {
    for segment_bytes in [SEGMENT_BYTES, LONG_SEGMENT_BYTES] {
        let (mut bed, _) = Bed::fresh_with(segment_bytes);
        warm_up(&mut bed);
        // Four writes hang, so what comes then stays in the open batch.
        for sequence in 2..6 {
            bed.append(RecordKind::Message, sequence, b"stuck");
            bed.poll();
        }
        for (sequence, later_ms) in [(6, 0), (7, 4)] {
            bed.now += Duration::from_millis(later_ms);
            let appended = append_async(&mut bed, sequence, b"in time").expect("taken");
            assert!(appended.vouched, "{sequence} in segments of {segment_bytes}");
            assert_eq!(
                bed.journal.poll_timeout(),
                Some(bed.now + WINDOW - Duration::from_millis(later_ms))
            );
        }
        bed.now += Duration::from_millis(1);
        assert_eq!(append_async(&mut bed, 8, b"late"), Err(AppendError::Busy));
    }
}
