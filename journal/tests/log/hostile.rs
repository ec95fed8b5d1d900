//! Recovery reads whatever the disk holds: it ends, panics at nothing, invents nothing, and writes
//! nothing when it refuses.

use journal::limits::BLOCK_BYTES;
use journal::{FileId, RecordKind, Slot};

use crate::bed::{Bed, Recovering, SHARD, config};

/// A small generator, so that every failure can be repeated from its seed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % below as u64).unwrap()
    }
}

#[test]
fn hurt_bytes_are_refused_or_give_a_prefix() {
    let (mut bed, node) = Bed::fresh();
    bed.settle();
    for sequence in 0..20 {
        bed.append(
            RecordKind::Message,
            sequence,
            &vec![7; 10 + usize::try_from(sequence).unwrap() * 900],
        );
        bed.settle();
    }
    let (files, appended) = (bed.disk.platter.clone(), bed.seen());
    let names: Vec<FileId> = files.keys().copied().collect();
    let (mut refused, mut opened) = (0, 0);
    for seed in 1..1_500_u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut disk = bed.disk.clone();
        for _ in 0..=random.next(3) {
            let file = names[random.next(names.len())];
            let content = disk.platter.get_mut(&file).unwrap();
            if content.len() < BLOCK_BYTES {
                continue;
            }
            let at = random.next(content.len() / 512) * 512;
            match random.next(5) {
                0 => content[at + random.next(128)] ^= 1 << random.next(8),
                1 => content[at..at + 512].fill(0),
                2 => {
                    let from = random.next(content.len() / BLOCK_BYTES) * BLOCK_BYTES;
                    let to = random.next(content.len() / BLOCK_BYTES) * BLOCK_BYTES;
                    content.copy_within(from..from + BLOCK_BYTES, to);
                }
                3 => content.truncate(at),
                _ => content[at..at + 512].fill_with(|| u8::try_from(random.next(256)).unwrap()),
            }
        }
        let before = disk.platter.clone();
        let (outcome, seen) = Recovering::new(&disk, &node, &config()).run(&mut disk);
        assert!(appended.starts_with(&seen), "seed {seed}: more than was appended");
        match outcome {
            Ok(_) => opened += 1,
            Err(_) => {
                assert_eq!(disk.platter, before, "seed {seed}: a refusal writes nothing");
                refused += 1;
            }
        }
    }
    assert!(refused > 300 && opened > 300, "{refused} refused, {opened} opened");
}

#[test]
fn a_payload_that_looks_like_the_log_proves_nothing() {
    let (mut bed, node) = Bed::fresh();
    bed.settle();
    bed.append(RecordKind::Message, 0, b"first");
    bed.settle();
    // A message whose payload is the log so far, shifted so that its batches begin at blocks.
    let slot = FileId::Segment { shard: SHARD, slot: Slot(0) };
    let copy = bed.disk.platter[&slot][BLOCK_BYTES..3 * BLOCK_BYTES].to_vec();
    let lead = BLOCK_BYTES - 64 - 32;
    let mut payload = vec![0; lead];
    payload.extend_from_slice(&copy);
    payload.extend_from_slice(&copy);
    let appended = bed.append(RecordKind::Message, 1, &payload);
    bed.settle();
    // The batch around it is torn: only its inside is left.
    let at = usize::try_from(appended.lsn.0).unwrap() / BLOCK_BYTES * BLOCK_BYTES;
    bed.disk.platter.get_mut(&slot).unwrap()[at..at + BLOCK_BYTES].fill(0);
    let (outcome, seen) = crate::bed::recover(&mut bed.disk, &node);
    assert_eq!(seen, bed.seen()[..1]);
    assert!(outcome.truncated.is_none(), "the inside of a batch is no batch");
}

#[test]
fn a_superblock_that_checks_but_makes_no_sense_stops_the_start_without_a_panic() {
    let (mut bed, node) = Bed::fresh();
    bed.append(RecordKind::Message, 1, b"x");
    bed.settle();
    let file = FileId::ShardSuperblock(SHARD);
    let mut refused = 0;
    for seed in 1..2_000_u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut disk = bed.disk.clone();
        let content = disk.platter.get_mut(&file).unwrap();
        for block in content.chunks_exact_mut(BLOCK_BYTES) {
            let length = usize::from(u16::from_le_bytes([block[8], block[9]]));
            for _ in 0..=random.next(4) {
                let at = 16 + random.next(length - 16);
                let byte = [0, 1, 0x7f, 0xff, 0x10][random.next(5)];
                let run = (at + 1 + random.next(8)).min(length);
                block[at..run].fill(byte);
            }
            let crc = crc32c::crc32c_append(crc32c::crc32c(&block[..12]), &block[16..length]);
            block[12..16].copy_from_slice(&crc.to_le_bytes());
        }
        let (outcome, seen) = Recovering::new(&disk, &node, &config()).run(&mut disk);
        assert!(seen.is_empty() || seen == bed.seen(), "seed {seed}");
        refused += usize::from(outcome.is_err());
    }
    assert!(refused > 500, "{refused} refused");
}
