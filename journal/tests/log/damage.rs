//! Damage inside the log stops the start and changes nothing; a torn tail does not stop it.

use journal::limits::BLOCK_BYTES;
use journal::{
    DiskError, DiskOp, Evidence, FileId, Lsn, NodeSuperblock, RecordKind, RecoveryError, Slot,
    SuperblockError,
};

use crate::bed::{Bed, SEGMENT_BYTES, SHARD, Seen, recover, recover_error, writes_of};
use crate::disk::{Disk, Fate};

const FIRST: FileId = FileId::Segment { shard: SHARD, slot: Slot(0) };

/// A log of `batches` batches of one block each, each durable before the next, and not closed.
fn log_of(batches: u64) -> (Disk, NodeSuperblock, Vec<Seen>) {
    let (mut bed, node) = Bed::fresh();
    for sequence in 0..batches {
        bed.append(RecordKind::Message, sequence, b"payload");
        bed.settle();
    }
    assert_eq!(bed.promised() as u64, batches);
    let seen = bed.seen();
    (bed.disk, node, seen)
}

fn flip(disk: &mut Disk, file: FileId, offset: usize) {
    disk.platter.get_mut(&file).unwrap()[offset] ^= 0x10;
}

#[test]
fn a_flipped_bit_that_a_later_batch_covers_stops_the_start_and_names_the_place() {
    let (disk, node, _) = log_of(5);
    // Batch k stands in block k + 1 of the file. The last one is covered by nothing.
    for batch in 0..4_usize {
        for at in [3, 25, 50, 70] {
            let mut hurt = disk.clone();
            let offset = (batch + 1) * BLOCK_BYTES;
            flip(&mut hurt, FIRST, offset + at);
            let error = recover_error(&mut hurt, &node);
            let RecoveryError::Damaged { file, offset: named, lsn, evidence } = error else {
                panic!("{error}");
            };
            assert_eq!((file, named, lsn), (FIRST, offset as u64, Lsn(offset as u64)));
            // The first one is covered by the superblock too: a slot was made after it.
            let by_mark = matches!(evidence, Evidence::DurableMark(_));
            assert_eq!(by_mark, batch == 0, "{evidence}");
        }
    }
}

#[test]
fn the_last_batch_is_torn_unless_the_durable_mark_covers_it() {
    let (mut disk, node, seen) = log_of(5);
    let mut hurt = disk.clone();
    flip(&mut hurt, FIRST, 5 * BLOCK_BYTES + 70);
    let (outcome, left) = recover(&mut hurt, &node);
    assert_eq!(left, seen[..4]);
    let truncated = outcome.truncated.expect("a batch was cut off");
    assert_eq!((truncated.lsn, truncated.batches), (Lsn(5 * BLOCK_BYTES as u64), 1));
    assert!(!outcome.clean);

    // A recovery marks what it found as durable: now the same flip is damage.
    recover(&mut disk, &node);
    flip(&mut disk, FIRST, 5 * BLOCK_BYTES + 70);
    let error = recover_error(&mut disk, &node);
    let mark = Lsn(6 * BLOCK_BYTES as u64);
    let expected = Evidence::DurableMark(mark);
    assert!(matches!(error, RecoveryError::Damaged { evidence, .. } if evidence == expected));
}

#[test]
fn a_lost_segment_file_or_header_is_damage() {
    let (mut bed, node) = Bed::fresh();
    for sequence in 0..6 {
        bed.append(RecordKind::Message, sequence, &[7; 30_000]);
        bed.settle();
    }
    let mut gone = bed.disk.clone();
    gone.platter.remove(&FIRST);
    let error = recover_error(&mut gone, &node);
    assert!(matches!(error, RecoveryError::Damaged { lsn: Lsn(4096), .. }), "{error}");
    let mut hurt = bed.disk.clone();
    flip(&mut hurt, FIRST, 20);
    let error = recover_error(&mut hurt, &node);
    assert!(matches!(error, RecoveryError::Damaged { file: FIRST, .. }), "{error}");
    let second = FileId::Segment { shard: SHARD, slot: Slot(1) };
    flip(&mut bed.disk, second, BLOCK_BYTES + 100);
    let error = recover_error(&mut bed.disk, &node);
    let place = (second, BLOCK_BYTES as u64);
    assert!(
        matches!(error, RecoveryError::Damaged { file, offset, .. } if (file, offset) == place)
    );
}

#[test]
fn a_block_that_cant_be_read_is_neither_torn_nor_damaged() {
    let (disk, node, _) = log_of(3);
    for block in 0..8 {
        let mut hurt = disk.clone();
        hurt.unreadable.insert((FIRST, block * BLOCK_BYTES));
        let error = recover_error(&mut hurt, &node);
        let RecoveryError::Unreadable { file, error, .. } = error else { panic!("{error}") };
        assert_eq!((file, error), (FIRST, DiskError::Io(5)));
    }
}

#[test]
fn a_superblock_that_was_written_and_cant_be_read_stops_the_start() {
    let (disk, node, seen) = log_of(3);
    let file = FileId::ShardSuperblock(SHARD);
    let mut one = disk.clone();
    flip(&mut one, file, 60);
    assert_eq!(recover(&mut one, &node).1, seen, "the other block is enough");
    let mut both = disk.clone();
    flip(&mut both, file, 60);
    flip(&mut both, file, BLOCK_BYTES + 60);
    let error = recover_error(&mut both, &node);
    assert_eq!(error, RecoveryError::Superblock(SuperblockError::Unreadable));
    let mut never = disk;
    never.platter.remove(&file);
    assert_eq!(recover_error(&mut never, &node), RecoveryError::NotFormatted);
}

#[test]
fn a_segment_of_another_log_is_refused() {
    let (mut disk, node, _) = log_of(2);
    let mut other = node.clone();
    other.log_id.0[0] ^= 1;
    let error = recover_error(&mut disk, &other);
    let wrong = RecoveryError::Superblock(SuperblockError::WrongLog(node.log_id));
    assert_eq!(error, wrong);
}

#[test]
fn a_clean_end_is_known_as_such() {
    let (mut bed, node) = Bed::fresh();
    bed.append(RecordKind::Message, 1, b"last words");
    bed.journal.close();
    bed.settle();
    assert!(bed.journal.is_closed());
    let (outcome, seen) = recover(&mut bed.disk, &node);
    assert!(outcome.clean && outcome.truncated.is_none());
    assert_eq!(seen, bed.seen());
    let (outcome, _) = recover(&mut bed.disk, &node);
    assert!(!outcome.clean, "the opening before was not closed");
}

/// The first batch of a segment never reached the disk, its slot still has the header of an earlier
/// life, and behind it stands a batch that vouches for what was damaged before.
#[test]
fn proof_behind_the_header_of_an_earlier_life_is_found() {
    let (mut bed, node) = Bed::fresh();
    bed.settle();
    let mut sequence = 0;
    let mut next = || {
        sequence += 1;
        sequence
    };
    // Nothing is kept, so the slots go round; from the tenth segment on all are used ones.
    let opening = loop {
        bed.append(RecordKind::Settle, next(), b"");
        bed.settle();
        while bed.journal.head_segment().is_some() {
            bed.journal.recycle_head();
            bed.settle();
        }
        let last = bed.journal.durable();
        bed.append(RecordKind::Message, next(), &[1; 20_000]);
        bed.poll();
        bed.make_segments();
        let opens = bed.pending.iter().position(|op| {
            matches!(op, DiskOp::Write { file: FileId::Segment { .. }, offset: 0, .. })
        });
        match opens {
            Some(opening) if bed.journal.appended() > Lsn(10 * SEGMENT_BYTES) => {
                bed.append(RecordKind::Message, next(), b"vouches for all before");
                bed.poll();
                break (opening, last);
            }
            Some(_) | None => bed.settle(),
        }
    };
    let (opening, last) = opening;
    let lost = bed.pending.remove(opening).file();
    let header = &bed.disk.platter[&lost][..BLOCK_BYTES];
    assert!(header.iter().any(|byte| *byte != 0), "the slot was used before");
    for write in writes_of(&bed.pending) {
        bed.disk.crash(&write, Fate::Whole);
    }
    recover(&mut bed.disk.clone(), &node);

    // Now the last batch before, which was durable, is hurt.
    let hurt = last.0 - BLOCK_BYTES as u64;
    let names = bed.disk.platter.keys().copied().filter(|file| *file != lost);
    let segments = names.filter(|file| matches!(file, FileId::Segment { .. }));
    for file in segments.collect::<Vec<_>>() {
        let at = usize::try_from(hurt % SEGMENT_BYTES).unwrap();
        let block = &bed.disk.platter[&file][at..];
        if block[16..24] == hurt.to_le_bytes() {
            flip(&mut bed.disk, file, at + 70);
        }
    }
    let error = recover_error(&mut bed.disk, &node);
    let RecoveryError::Damaged { lsn, evidence, .. } = error else { panic!("{error}") };
    assert_eq!(lsn, Lsn(hurt));
    assert!(matches!(evidence, Evidence::LaterBatch { durable, .. } if durable == last));
}

/// The last batch of a log of `batches`, with the field at `at` of its header set and its checksum
/// made right: what a later version could have written.
fn newer_batch(batches: u64, at: usize, value: u32) -> (Disk, NodeSuperblock) {
    let (mut disk, node, _) = log_of(batches);
    let seed = crc32c::crc32c_append(crc32c::crc32c(&node.log_id.0), &SHARD.0.to_le_bytes());
    let begin = usize::try_from(batches).unwrap() * BLOCK_BYTES;
    let header = &mut disk.platter.get_mut(&FIRST).unwrap()[begin..begin + 64];
    header[at..at + 4].copy_from_slice(&value.to_le_bytes());
    let crc = crc32c::crc32c_append(seed, &header[..60]);
    header[60..].copy_from_slice(&crc.to_le_bytes());
    (disk, node)
}

#[test]
fn a_batch_that_checks_and_makes_no_sense_is_not_cut_off() {
    // Flags; no records; a body that is too long.
    for (at, value) in [(56, 1), (44, 0), (48, 1 << 20)] {
        let (mut disk, node) = newer_batch(3, at, value);
        let error = recover_error(&mut disk, &node);
        let RecoveryError::Record { lsn, error } = error else { panic!("{error}") };
        assert_eq!((lsn, error.is_newer_format()), (Lsn(3 * BLOCK_BYTES as u64), at == 56));
        // Behind a torn one it is found as well.
        disk.platter.get_mut(&FIRST).unwrap()[2 * BLOCK_BYTES..3 * BLOCK_BYTES].fill(0);
        let error = recover_error(&mut disk, &node);
        assert!(matches!(error, RecoveryError::Record { .. }), "{error}");
    }
}

#[test]
fn a_read_that_ends_before_the_file_does_is_no_end_of_the_log() {
    let (disk, node, _) = log_of(5);
    let mut reads = 0;
    for short in 1.. {
        let mut hurt = disk.clone();
        let mut recovering = crate::bed::Recovering::new(&hurt, &node, &crate::bed::config());
        let mut seen = 0;
        while let Some(op) = recovering.next_op() {
            let is_read = matches!(op, DiskOp::Read { file: FileId::Segment { .. }, .. });
            let mut done = hurt.complete(op);
            seen += usize::from(is_read);
            if is_read && seen == short {
                done.result = done.result.map(|bytes| bytes / 2);
            }
            recovering.recovery.handle_disk(crate::bed::start(), done);
        }
        let outcome = recovering.recovery.poll_outcome().unwrap();
        if seen < short {
            break;
        }
        reads += 1;
        let error = outcome.map(|_| ()).expect_err("it was not read");
        assert!(matches!(error, RecoveryError::Unreadable { .. }), "{error}");
        assert_eq!(hurt.platter, disk.platter);
    }
    assert!(reads > 5, "{reads} reads");
}
