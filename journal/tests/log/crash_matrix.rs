//! Stops after every disk operation, with each pending write lost, whole or torn, and asks:
//! is all that was promised there, in order, and nothing that was never appended?
//!
//! The workload keeps three writes in flight and answers the youngest first half of the time, so
//! that holes in the middle are common; it crosses segments and recycles. After the first recovery
//! it goes on, is cut again, and recovers again: what was cut off the first time must not come
//! back.

use journal::limits::BLOCK_BYTES;
use journal::{Config, DiskOp, FileId, Journal, NodeSuperblock, RecordKind};

use crate::bed::{Bed, Recovering, SHARD, Seen, recover, writes_of};
use crate::disk::{Disk, Fate, Write};

/// Where a run was cut, and what it had promised.
struct Cut {
    disk: Disk,
    pending: Vec<Write>,
    appended: Vec<Seen>,
    promised: usize,
}

/// Runs `steps` steps and gives the state at the end of each.
fn run(journal: Journal, disk: Disk, sequence: u64, steps: u64) -> Vec<Cut> {
    let mut bed = Bed::new(journal, disk);
    let mut cuts = Vec::new();
    bed.poll();
    bed.make_segments();
    for step in 0..steps {
        let sequence = sequence + step;
        let bytes = [200, 5_000, 40_000, 64, 9_000][usize::try_from(sequence % 5).unwrap()];
        bed.append(
            RecordKind::Message,
            sequence,
            &vec![u8::try_from(sequence % 251).unwrap(); bytes],
        );
        bed.poll();
        bed.make_segments();
        if bed.pending.len() >= 3 {
            let index = if step % 2 == 0 { bed.pending.len() - 1 } else { 0 };
            bed.complete(index);
            bed.poll();
        }
        cuts.push(Cut {
            disk: bed.disk.clone(),
            pending: writes_of(&bed.pending),
            appended: bed.seen(),
            promised: bed.promised(),
        });
    }
    cuts
}

/// Every way in which the pending writes can end, each with the disk that is left.
fn fates(cut: &Cut) -> Vec<Disk> {
    let pending = &cut.pending;
    let ways = Fate::ALL.len().pow(u32::try_from(pending.len()).unwrap());
    let disks = (0..ways).map(|mut way| {
        let mut disk = cut.disk.clone();
        for write in pending {
            disk.crash(write, Fate::ALL[way % Fate::ALL.len()]);
            way /= Fate::ALL.len();
        }
        disk
    });
    disks.collect()
}

fn check(before: &[Seen], cut: &Cut, seen: &[Seen]) {
    let whole: Vec<Seen> = before.iter().chain(&cut.appended).cloned().collect();
    assert!(seen.len() >= before.len() + cut.promised, "a promised record is gone");
    assert!(seen.len() <= whole.len(), "more than was appended");
    assert_eq!(seen, &whole[..seen.len()], "not a prefix of what was appended");
}

fn three_in_flight() -> Config {
    Config { writes_in_flight_max: 3, ..crate::bed::config() }
}

fn begin(disk: &mut Disk, node: &NodeSuperblock) -> (Journal, Vec<Seen>) {
    let (outcome, seen) = Recovering::new(disk, node, &three_in_flight()).run(disk);
    (outcome.expect("the log is whole").journal, seen)
}

#[test]
pub(crate) fn whatever_is_cut_the_promised_is_there() {
    let (mut disk, node) = crate::bed::formatted();
    let (journal, _) = begin(&mut disk, &node);
    let (mut recoveries, mut torn) = (0, 0);
    for cut in run(journal, disk, 0, 24) {
        for (way, mut disk) in fates(&cut).into_iter().enumerate() {
            let (journal, seen) = begin(&mut disk, &node);
            check(&[], &cut, &seen);
            recoveries += 1;
            // One way in five goes on, so that each way does at some cut.
            if way % 5 != cut.appended.len() % 5 {
                continue;
            }
            for second in run(journal, disk, 1_000, 4) {
                for mut disk in fates(&second).into_iter().step_by(3) {
                    let (outcome, again) = recover(&mut disk, &node);
                    check(&seen, &second, &again);
                    recoveries += 1;
                    torn += usize::from(outcome.truncated.is_some());
                }
            }
        }
    }
    assert!(recoveries > 1_500 && torn > 500, "{recoveries} recoveries, {torn} torn");
}

#[test]
fn a_recovery_that_is_cut_at_any_operation_recovers_to_the_same() {
    let (mut disk, node) = crate::bed::formatted();
    let (journal, _) = begin(&mut disk, &node);
    let cut = run(journal, disk, 0, 12).pop().unwrap();
    for disk in fates(&cut) {
        let (_, expected) = recover(&mut disk.clone(), &node);
        for operations in 0..100 {
            let mut disk = disk.clone();
            let mut recovering = Recovering::new(&disk, &node, &three_in_flight());
            for _ in 0..operations {
                let Some(op) = recovering.next_op() else { break };
                let done = disk.complete(op);
                recovering.recovery.handle_disk(crate::bed::start(), done);
            }
            let last = recovering.next_op();
            let is_over = last.is_none();
            for fate in Fate::ALL {
                let mut disk = disk.clone();
                for write in writes_of(last.as_slice()) {
                    disk.crash(&write, fate);
                }
                assert_eq!(recover(&mut disk, &node).1, expected);
            }
            if is_over {
                break;
            }
        }
    }
}

#[test]
fn what_a_killed_process_left_in_the_cache_is_synced_before_it_counts() {
    let (mut disk, node) = crate::bed::formatted();
    let (journal, _) = begin(&mut disk, &node);
    let cut = run(journal, disk, 0, 12).pop().unwrap();
    let mut disk = cut.disk.clone();
    disk.cache = cut.pending.clone();
    let (_, seen) = recover(&mut disk, &node);
    assert_eq!(seen, cut.appended, "all of it was in the cache");
    // The power goes after the recovery: what it called durable must have been synced.
    disk.cache.clear();
    assert_eq!(recover(&mut disk, &node).1, seen);
}

#[test]
fn a_superblock_that_is_only_in_the_cache_is_synced_before_the_other_is_written_over() {
    let (mut bed, node) = Bed::fresh();
    bed.settle();
    for sequence in 1..3 {
        bed.append(RecordKind::Message, sequence, b"x");
        bed.settle();
    }
    // The mark of the idle period is written and the process killed before it is durable.
    bed.now = bed.journal.poll_timeout().unwrap();
    bed.poll();
    bed.disk.cache = writes_of(&bed.pending);
    let file = FileId::ShardSuperblock(SHARD);
    assert!(bed.disk.cache.iter().any(|write| write.file == file));

    let mut recovering = Recovering::new(&bed.disk, &node, &three_in_flight());
    let mut disk = bed.disk.clone();
    let offset = loop {
        match recovering.next_op().expect("it ends with a write") {
            DiskOp::Write { offset, .. } => break usize::try_from(offset).unwrap(),
            op @ (DiskOp::Read { .. } | DiskOp::Sync { .. } | DiskOp::Prewrite { .. }) => {
                let done = disk.complete(op);
                recovering.recovery.handle_disk(crate::bed::start(), done);
            }
        }
    };
    // That write is torn within its block, and what was only in the cache is gone.
    disk.cache.clear();
    disk.platter.get_mut(&file).unwrap()[offset..offset + BLOCK_BYTES / 2].fill(0x55);
    assert_eq!(recover(&mut disk, &node).1, bed.seen());
    let superblock = disk.contents(file);
    let superblock = journal::ShardSuperblock::decode(&superblock, node.log_id, SHARD);
    let generation = superblock.unwrap().unwrap().generation;
    assert_eq!(generation, 6, "format, opening, two slots made, the mark, and this opening");
}
