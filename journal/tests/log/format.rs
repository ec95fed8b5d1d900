//! A format that is cut anywhere leaves the directory not formatted, or complete.

use journal::{DiskOp, FileId, Format, Geometry, JournalUuid, LogId, NodeSuperblock, ShardId};

use crate::bed::{Recovering, config, writes_of};
use crate::disk::{Disk, Fate};

fn format() -> Format {
    let geometry = Geometry { segment_bytes: 64 * 1024, shards: 2 };
    Format::new(LogId([3; 16]), JournalUuid([4; 16]), geometry)
}

/// Runs up to `operations` operations; the one that is pending then, if there is one.
fn run(disk: &mut Disk, operations: usize) -> Option<DiskOp> {
    let mut format = format();
    for _ in 0..operations {
        let op = format.poll_disk()?;
        let done = disk.complete(op);
        format.handle_disk(done);
    }
    format.poll_disk()
}

#[test]
fn cut_at_any_operation_it_is_formatted_or_not() {
    let (mut formatted, mut not) = (0, 0);
    for operations in 0..20 {
        for fate in Fate::ALL {
            let mut disk = Disk::default();
            let pending = run(&mut disk, operations);
            for write in writes_of(pending.as_slice()) {
                disk.crash(&write, fate);
            }
            let node = NodeSuperblock::decode(&disk.contents(FileId::NodeSuperblock)).unwrap();
            if node.is_none() {
                // It is begun again, over whatever is there.
                not += 1;
                assert!(run(&mut disk, usize::MAX).is_none());
            } else {
                formatted += 1;
            }
            let node = NodeSuperblock::decode(&disk.contents(FileId::NodeSuperblock)).unwrap();
            let node = node.expect("formatted by now");
            for shard in [ShardId(0), ShardId(1)] {
                let recovery = journal::Recovery::new(&node, shard, &disk.slots(shard), config());
                let recovering = Recovering { recovery, seen: Vec::new() };
                let (outcome, seen) = recovering.run(&mut disk);
                assert!(outcome.unwrap().clean && seen.is_empty());
            }
        }
    }
    assert!(formatted > 10 && not > 30, "{formatted} formatted, {not} not");
}
