//! Files of the format as it was: every later version must read them to the same records, and this
//! version must write the same bytes.
//!
//! `cargo test -p journal --test log golden::make -- --ignored` writes them anew; that is right
//! only together with a new format version.

use std::fs;
use std::path::PathBuf;

use journal::limits::{BLOCK_BYTES, FORMAT_VERSION};
use journal::{
    FileId, Level, NodeSuperblock, Origin, QueueId, Record, RecordFlags, RecordKind, Sequence,
    ShardId, Slot, Urgency,
};

use crate::bed::{Bed, SEGMENT_BYTES, Seen, recover};
use crate::disk::Disk;

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("testdata/v{FORMAT_VERSION}"))
}

/// A log with every kind of record, every part, a message in fragments, a recycled head, and a last
/// opening that was closed.
fn log() -> (Disk, Vec<Seen>) {
    let (mut bed, _) = Bed::fresh();
    bed.settle();
    for sequence in 0..4 {
        bed.append(RecordKind::Message, sequence, &[u8::try_from(sequence).unwrap(); 20_000]);
        bed.settle();
    }
    for sequence in 0..4 {
        bed.append(RecordKind::Settle, sequence, b"");
    }
    bed.settle();
    bed.journal.recycle_head();
    bed.settle();
    for (sequence, kind) in (10..).zip(RecordKind::ALL) {
        bed.append(kind, sequence, format!("{kind:?}").as_bytes());
    }
    bed.settle();
    let mut record = Record::new(RecordKind::Message, QueueId(7), Sequence(100), b"every part");
    record.level = Level::ReplicatedSync;
    record.flags = RecordFlags::WHOLE.with(RecordFlags::NON_DURABLE);
    record.parts.duplicate_id = Some(b"duplicate");
    record.parts.origin =
        Some(Origin { shard: ShardId(1), queue: QueueId(2), sequence: Sequence(3) });
    record.parts.transaction_id = Some(b"transaction");
    record.parts.delivery_count = Some(5);
    record.parts.expiry_unix_ms = Some(1_800_000_000_000);
    record.parts.priority = Some(9);
    bed.journal.append(bed.now, &record, Urgency::Now).unwrap();
    bed.settle();
    let long: Vec<u8> = (0..60_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    bed.append(RecordKind::Message, 101, &long);
    bed.settle();
    bed.journal.close();
    bed.settle();
    let mut disk = bed.disk.clone();
    let node = NodeSuperblock::decode(&disk.contents(FileId::NodeSuperblock)).unwrap().unwrap();
    let (_, seen) = recover(&mut disk, &node);
    (bed.disk, seen)
}

fn files() -> Vec<(FileId, usize)> {
    let shard = ShardId(0);
    let segments = (0..4).map(|slot| {
        (FileId::Segment { shard, slot: Slot(slot) }, usize::try_from(SEGMENT_BYTES).unwrap())
    });
    let superblocks = [FileId::NodeSuperblock, FileId::ShardSuperblock(shard)];
    superblocks.map(|file| (file, 2 * BLOCK_BYTES)).into_iter().chain(segments).collect()
}

/// Without the zeros at the end.
fn trimmed(content: &[u8]) -> &[u8] {
    let len = content.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    &content[..len]
}

#[test]
#[ignore = "writes the golden files; only with a new format version"]
fn make() {
    let (disk, _) = log();
    for (file, _) in files() {
        let path = directory().join(file.to_string());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, trimmed(&disk.contents(file))).unwrap();
    }
}

#[test]
fn the_golden_files_are_read_and_written_as_they_were() {
    let (written, seen) = log();
    let mut disk = Disk::default();
    for (file, bytes) in files() {
        let mut content = fs::read(directory().join(file.to_string())).unwrap();
        assert!(content == trimmed(&written.contents(file)), "{file} is written otherwise");
        content.resize(bytes, 0);
        disk.platter.insert(file, content);
    }
    let node = NodeSuperblock::decode(&disk.contents(FileId::NodeSuperblock)).unwrap().unwrap();
    let (outcome, golden) = recover(&mut disk, &node);
    assert!(outcome.clean && outcome.truncated.is_none());
    assert_eq!(golden, seen);
    assert!(golden.len() >= RecordKind::ALL.len() + 3);
}
