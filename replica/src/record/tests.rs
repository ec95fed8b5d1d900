//! The record: golden bytes, what it keeps, what it refuses, and hostile bytes.

use super::*;

const GOLDEN: &[u8] = include_bytes!("../../testdata/record-v1.bin");

fn member(node: u8, journal: u8) -> Member {
    Member { node: NodeId(node), journal: JournalUuid([journal; 16]) }
}

pub(crate) fn sample() -> PairRecord {
    let first = PairRecord::first(LogId([7; 16]), 2, member(0, 1), Epoch(1));
    let mut record = first.granted(NodeId(1), vec![member(1, 2), member(0, 1)]);
    record.watermark =
        vec![Mark { lsn: Lsn(4096), chain: Chain(11) }, Mark { lsn: Lsn(8192), chain: Chain(12) }];
    record.members = vec![MemberInfo {
        node: NodeId(0),
        replication: "a.example:5673".into(),
        advertise: "a.example:5672".into(),
        certificate: [9; 32],
    }];
    record.carried = vec![1, 1, 3, 0, 0, 0, b'n', b'e', b'w'];
    record
}

#[test]
fn the_golden_record_is_read_and_written_again() {
    if std::env::var_os("LAELAPS_BLESS").is_some() {
        std::fs::write("testdata/record-v1.bin", sample().encode()).expect("written");
    }
    assert_eq!(PairRecord::decode(GOLDEN), Ok(sample()));
    assert_eq!(sample().encode(), GOLDEN);
}

#[test]
fn a_new_reign_is_remembered_and_the_oldest_forgotten() {
    let mut record = PairRecord::first(LogId([7; 16]), 1, member(0, 1), Epoch(1));
    for _ in 0..40 {
        let next = record.granted(NodeId(0), vec![member(0, 1)]);
        assert_eq!(next.follows(&record), Ok(()));
        record = next;
    }
    assert_eq!(record.reigns.len(), REIGNS_MAX);
    assert_eq!(record.reigns.last().map(|reign| reign.epoch), Some(record.epoch));
    assert_eq!(PairRecord::decode(&record.encode()), Ok(record));
}

#[test]
fn what_breaks_a_rule_is_named() {
    let broken = |change: fn(&mut PairRecord)| {
        let mut record = sample();
        change(&mut record);
        record.check()
    };
    assert_eq!(broken(|r| r.in_sync.clear()), Err(RecordFault::InSync));
    assert_eq!(broken(|r| r.in_sync.push(member(0, 3))), Err(RecordFault::InSync));
    assert_eq!(broken(|r| r.in_sync[0].node = NodeId(0)), Err(RecordFault::InSync));
    assert_eq!(broken(|r| r.live = Some(NodeId(5))), Err(RecordFault::LiveNotInSync));
    assert_eq!(broken(|r| r.epoch = Epoch(9)), Err(RecordFault::Reigns));
    assert_eq!(broken(|r| r.watermark.truncate(1)), Err(RecordFault::Watermark));
    assert_eq!(broken(|r| r.members[0].advertise = "x".repeat(256)), Err(RecordFault::Bounds));
}

#[test]
fn i4_an_epoch_has_one_live_and_never_goes_back() {
    let old = sample();
    let mut next = old.clone();
    next.live = None;
    assert_eq!(next.follows(&old), Err(RecordFault::EpochShared));
    let mut revived = old.clone();
    revived.released = true;
    assert_eq!(revived.follows(&old), Ok(()));
    assert_eq!(old.follows(&revived), Err(RecordFault::EpochShared));
    let newer = old.granted(NodeId(0), old.in_sync.clone());
    assert_eq!(newer.follows(&old), Ok(()));
    assert_eq!(old.follows(&newer), Err(RecordFault::EpochBack));
    let mut other = newer.clone();
    other.log = LogId([8; 16]);
    assert_eq!(other.follows(&old), Err(RecordFault::OtherLog));
}

#[test]
fn a_newer_record_is_refused_and_unknown_parts_are_kept() {
    let mut bytes = sample().encode();
    assert_eq!(PairRecord::decode(&bytes).map(|r| r.carried.len()), Ok(9));
    bytes[2] = 1;
    assert_eq!(PairRecord::decode(&bytes), Err(WireError::Unknown("record features", 1)));
    bytes[0] = 2;
    assert_eq!(PairRecord::decode(&bytes), Err(WireError::Unknown("record format", 2)));
}

#[test]
fn the_lease_of_the_live_is_in_it_and_one_out_of_bounds_is_refused() {
    let length = Duration::from_micros(20_000_999);
    let mut record = sample();
    record.lease = LeaseTerms::new(length);
    let bytes = record.encode();
    assert_eq!(PairRecord::decode(&bytes), Ok(record));
    let part = [2, 0, 4, 0, 0, 0, 0x20, 0x4e, 0, 0];
    let at = sample().encode().len() - 9;
    assert_eq!(bytes[at..at + part.len()], part, "20,000 ms");
    let mut too_long = bytes;
    too_long[at + 8] = 1;
    assert_eq!(PairRecord::decode(&too_long), Err(WireError::Contradiction("lease")));
}

#[test]
fn hostile_bytes_are_refused_or_mean_what_they_say() {
    let good = sample().encode();
    for cut in 0..good.len() {
        // The last part may be cut off whole: what is left is a record without it.
        let read = PairRecord::decode(&good[..cut]);
        assert!(read.is_err() || read.is_ok_and(|r| r.encode() == good[..cut]), "cut at {cut}");
    }
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << bit;
            if let Ok(record) = PairRecord::decode(&bytes) {
                assert_eq!(record.encode(), bytes, "byte {at} bit {bit}");
            }
        }
    }
}
