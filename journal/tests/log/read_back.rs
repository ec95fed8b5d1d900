//! What is durable is read back while the log runs: all of it, or it is damage.

use journal::limits::BLOCK_BYTES;
use journal::{
    DiskDone, DiskError, DiskOp, Lsn, PoisonCause, RecordKind, SegmentScan, Span, Urgency,
};

use crate::bed::{Bed, SEGMENT_BYTES, Seen, recover};

/// A log with a head that could be recycled.
fn with_head() -> (Bed, journal::NodeSuperblock) {
    let (mut bed, node) = Bed::fresh();
    bed.settle();
    for sequence in 0.. {
        if bed.journal.head_segment().is_some() {
            break;
        }
        let bytes = usize::try_from(sequence).unwrap() * 700 % 6_000;
        bed.append(RecordKind::Message, sequence, &vec![sequence as u8; bytes]);
        if sequence % 3 == 0 {
            bed.append(RecordKind::Settle, sequence / 2, b"");
        }
        bed.settle();
    }
    (bed, node)
}

/// Reads what the walk wants.
fn read(bed: &mut Bed, span: Span) -> Vec<u8> {
    let id = bed.journal.read_back(span);
    assert!(bed.journal.head_segment().is_none(), "a read holds the head");
    bed.settle();
    let (answered, buf) = bed.journal.poll_read().expect("it was carried out");
    assert_eq!((answered, bed.journal.poll_read().is_none()), (id, true));
    buf.as_slice().to_vec()
}

/// Walks over the head, with at most so many bytes in each piece.
fn walk(bed: &mut Bed, bytes_max: usize) -> Vec<Seen> {
    let mut scan = bed.journal.scan_head().expect("the head is over");
    let mut seen = Vec::new();
    while let Some(span) = scan.wanted() {
        let bytes = read(bed, span);
        let bytes = &bytes[..bytes.len().min(bytes_max)];
        let walked = scan.handle_read(bytes, |lsn, record, raw| {
            assert_eq!(raw.len(), record.encoded_len());
            let (sequence, payload) = (record.sequence.0, record.payload.to_vec());
            seen.push(Seen { lsn, kind: record.kind, sequence, payload });
        });
        walked.expect("the log is whole");
    }
    seen
}

#[test]
fn a_walk_sees_every_record_of_the_head_once() {
    let (mut bed, node) = with_head();
    for _ in 0..40 {
        let head = bed.journal.head_segment().expect("there is one");
        let here = |seen: &Seen| (head.first_lsn..head.end_lsn).contains(&seen.lsn);
        let expected: Vec<_> = bed.seen().into_iter().filter(here).collect();
        assert!(expected.len() > 5);
        for blocks in [3, 5, 16] {
            assert_eq!(walk(&mut bed, blocks * BLOCK_BYTES), expected, "{blocks} blocks");
        }
        bed.journal.recycle_head();
        bed.settle();
        while bed.journal.head_segment().is_none() {
            let sequence = bed.appended.len() as u64;
            let appended = bed.try_append(RecordKind::Message, sequence, &[7; 900], Urgency::Now);
            appended.expect("there is room");
            bed.settle();
        }
    }
    // What recovery begins with is walked over like what was appended.
    let head = bed.journal.head();
    let (outcome, seen) = recover(&mut bed.disk, &node);
    let mut again = Bed::new(outcome.journal, bed.disk);
    let end = Lsn(head.0 + SEGMENT_BYTES);
    let expected: Vec<_> = seen.into_iter().filter(|seen| seen.lsn < end).collect();
    assert_eq!(walk(&mut again, 4 * BLOCK_BYTES), expected);
}

#[test]
fn what_was_durable_and_does_not_check_is_damage() {
    let (mut bed, _) = with_head();
    let mut whole = bed.journal.scan_head().expect("the head is over");
    let span = whole.wanted().expect("nothing is read yet");
    let bytes = read(&mut bed, span);
    let mut places = Vec::new();
    let walked = whole.handle_read(&bytes, |lsn, _, raw| places.push((lsn, raw.len())));
    assert_eq!((walked, whole.wanted()), (Ok(()), None));
    let judge = |mut scan: SegmentScan, bytes: &[u8]| {
        let mut seen = Vec::new();
        scan.handle_read(bytes, |lsn, _, _| seen.push(lsn)).map(|()| seen.len())
    };
    for (lsn, len) in places {
        let at = usize::try_from(lsn.since(span.lsn)).unwrap() + len / 2;
        let mut bytes = bytes.clone();
        bytes[at] ^= 4;
        let damaged = judge(bed.journal.scan_head().expect("still there"), &bytes);
        let damaged = damaged.expect_err("a flipped bit");
        assert!(damaged.lsn <= lsn && lsn.since(damaged.lsn) < 128 * 1024);
    }
    // A segment that another one has written over, and one that was never written.
    let scan = bed.journal.scan_head().expect("still there");
    assert!(judge(scan, &bytes[BLOCK_BYTES..]).is_err());
    let scan = bed.journal.scan_head().expect("still there");
    assert!(judge(scan, &vec![0; bytes.len()]).is_err());
    let scan = bed.journal.scan_head().expect("still there");
    assert!(judge(scan, &[]).is_err(), "no bytes are no end");
}

#[test]
fn a_read_that_fails_or_ends_early_poisons() {
    let results = [Err(DiskError::Io(5)), Ok(4096)];
    for result in results {
        let (mut bed, _) = with_head();
        let span = bed.journal.scan_head().and_then(|scan| scan.wanted()).expect("there is some");
        let _id = bed.journal.read_back(span);
        bed.poll();
        let is_read = |op: &DiskOp| matches!(op, DiskOp::Read { .. });
        let at = bed.pending.iter().position(is_read).expect("it is asked for");
        let DiskOp::Read { id, file, offset, buf } = bed.pending.remove(at) else { unreachable!() };
        bed.journal.handle_disk(bed.now, DiskDone { id, result, buf: Some(buf) });
        let poison = *bed.journal.poisoned().expect("what was durable is not there");
        let error = result.err().unwrap_or(DiskError::Short { bytes: 4096 });
        assert_eq!(poison.cause, PoisonCause::Unreadable(error));
        assert_eq!((poison.file, poison.offset), (file, offset));
        assert!(bed.journal.poll_read().is_none());
    }
}

#[test]
fn a_read_without_an_answer_poisons_after_its_bound() {
    let (mut bed, _) = with_head();
    bed.wait(std::time::Duration::from_millis(300));
    let span = bed.journal.scan_head().and_then(|scan| scan.wanted()).expect("there is some");
    let _id = bed.journal.read_back(span);
    bed.poll();
    let bound = bed.journal.poll_timeout().expect("the bound is a timeout");
    assert_eq!(bound, bed.now + std::time::Duration::from_secs(30));
    bed.journal.handle_timeout(bound);
    assert_eq!(bed.journal.poisoned().map(|poison| poison.cause), Some(PoisonCause::Hung));
}
