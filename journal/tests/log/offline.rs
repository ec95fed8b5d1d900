//! What the offline tools see: the same as a start, and every byte as it is.

use journal::limits::BLOCK_BYTES;
use journal::{
    BatchState, FileId, NodeSuperblock, RecordKind, RecoveryError, SegmentFile, SegmentRead,
    SegmentView, Slot, Verified, verify,
};

use crate::bed::{Bed, SHARD, recover};
use crate::disk::Disk;

pub(crate) fn verified(disk: &Disk, node: &NodeSuperblock) -> Result<Verified, RecoveryError> {
    let superblock = disk.contents(FileId::ShardSuperblock(SHARD));
    let contents: Vec<_> = disk
        .slots(SHARD)
        .iter()
        .map(|file| (file.slot, disk.contents(FileId::Segment { shard: SHARD, slot: file.slot })))
        .collect();
    let files = contents.iter().map(|(slot, bytes)| SegmentFile { slot: *slot, bytes });
    let checkpoints = [0, 1].map(|which| FileId::Checkpoint { shard: SHARD, which });
    let checkpoints =
        checkpoints.map(|file| disk.platter.get(&file).map_or(&[][..], Vec::as_slice));
    verify(node, SHARD, &superblock, &files.collect::<Vec<_>>(), &checkpoints)
}

fn log() -> (Disk, NodeSuperblock) {
    let (mut bed, node) = Bed::fresh();
    bed.settle();
    for sequence in 0..6 {
        bed.append(RecordKind::Message, sequence, &[1; 20_000]);
        bed.settle();
    }
    (bed.disk, node)
}

#[test]
fn verify_judges_as_a_start_does() {
    let (disk, node) = log();
    let good = verified(&disk, &node).unwrap();
    let (outcome, seen) = recover(&mut disk.clone(), &node);
    assert_eq!((good.records, good.payload_bytes), (seen.len() as u64, 6 * 20_000));
    assert_eq!((good.head, good.end), (outcome.journal.head(), outcome.journal.durable()));
    let slot = FileId::Segment { shard: SHARD, slot: Slot(0) };
    let mut hurt = disk;
    hurt.platter.get_mut(&slot).unwrap()[2 * BLOCK_BYTES] ^= 1;
    let (start, _) =
        crate::bed::Recovering::new(&hurt, &node, &crate::bed::config()).run(&mut hurt.clone());
    assert_eq!(verified(&hurt, &node).map(|_| ()), start.map(|_| ()));
    assert!(verified(&hurt, &node).is_err());
}

#[test]
fn inspect_shows_good_broken_and_stale_batches() {
    let (disk, node) = log();
    let slot = FileId::Segment { shard: SHARD, slot: Slot(0) };
    let mut bytes = disk.contents(slot);
    let view = SegmentView::new(&node, SHARD, &bytes);
    assert!(matches!(view.header(), SegmentRead::Header(_)));
    let states: Vec<_> = view.batches().map(|batch| batch.state).collect();
    assert!(states.len() >= 2 && states.iter().all(|state| *state == BatchState::Good));
    let records = view.batches().flat_map(|batch| batch.records);
    assert!(records.map(Result::unwrap).all(|(_, record)| record.kind == RecordKind::Message));

    bytes[BLOCK_BYTES + 100] ^= 1;
    bytes.copy_within(BLOCK_BYTES * 6..BLOCK_BYTES * 11, BLOCK_BYTES * 7);
    let view = SegmentView::new(&node, SHARD, &bytes);
    let states: Vec<_> = view.batches().map(|batch| batch.state).collect();
    // One hurt, one half overwritten, and the copy that overwrote it.
    let expected = [BatchState::BodyBroken, BatchState::BodyBroken, BatchState::Stale];
    assert_eq!(states[..3], expected);
    assert_eq!(view.batches().next().unwrap().records.count(), 0);
}
