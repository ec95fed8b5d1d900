//! A voter's log: what it keeps, at every cut and after every damage.

use super::*;

fn identity() -> Identity {
    let disk = |n| VoterUuid([n; 16]);
    Identity {
        seat: Seat(2),
        seats: Seats::new(3).expect("three"),
        uuid: disk(2),
        disks: Disks::found(&[disk(1), disk(2), disk(3)]),
    }
}

fn entry(index: u64, term: u64, len: usize) -> Entry {
    Entry { index, term, data: vec![index as u8; len].into(), ..Default::default() }
}

fn hard(term: u64, commit: u64) -> HardState {
    HardState { term, vote: 1, commit, ..Default::default() }
}

/// A file of a base and three steps; for each, where its bytes end and where its padding does.
fn file() -> (Vec<u8>, Vec<(usize, usize)>) {
    let mut wal = Wal::new(identity().uuid);
    let mut store = Store::default();
    store.image.disks = identity().disks;
    let mut file = Vec::new();
    let mut ends = Vec::new();
    let writes = [
        wal.base(&identity(), &store),
        wal.step(&hard(1, 0), &[entry(1, 1, 10), entry(2, 1, 9000)]),
        wal.step(&hard(2, 1), &[entry(2, 2, 10)]),
        wal.step(&hard(2, 2), &[]),
    ];
    for write in writes {
        let (WalWrite::Append { bytes, .. } | WalWrite::Replace { bytes }) = write;
        let length = u32::from_le_bytes(bytes[8..12].try_into().expect("four")) as usize;
        ends.push((file.len() + length, file.len() + bytes.len()));
        file.extend_from_slice(&bytes);
    }
    assert_eq!(wal.bytes(), file.len());
    (file, ends)
}

#[test]
fn what_was_written_is_there_again() {
    let (file, _) = file();
    let read = Recovered::read(&file).expect("whole");
    assert_eq!(read.identity, identity());
    assert_eq!(read.store.hard, hard(2, 2));
    let terms: Vec<_> = read.store.entries_after_image().iter().map(|e| e.term).collect();
    assert_eq!(terms, [1, 2]);
    assert_eq!((read.wal.end, read.wal.number), (file.len(), 4));
}

#[test]
fn the_format_is_pinned() {
    let (file, _) = file();
    assert_eq!(crc32c::crc32c(&file), 0x6b69_920c, "{:#x}", crc32c::crc32c(&file));
}

#[test]
fn a_cut_leaves_the_steps_before_it_and_never_half_of_one() {
    let (file, ends) = file();
    for cut in (0..=file.len()).step_by(7) {
        let whole = ends.iter().filter(|(used, _)| *used <= cut).count();
        match Recovered::read(&file[..cut]) {
            Ok(read) => {
                assert_eq!(read.wal.number, whole as u64, "cut at {cut}");
                assert_eq!(read.store.hard.term, [0, 1, 2, 2][whole - 1]);
            }
            Err(error) => assert_eq!((error, whole), (WalError::NoBase, 0), "cut at {cut}"),
        }
    }
}

#[test]
fn damage_before_the_last_record_stops_the_voter() {
    let (file, ends) = file();
    for at in (0..ends[2].1).step_by(5) {
        let is_padding = ends.iter().any(|(used, padded)| (*used..*padded).contains(&at));
        let mut damaged = file.clone();
        damaged[at] ^= 0x40;
        let read = Recovered::read(&damaged);
        assert_eq!(read.is_ok(), is_padding, "a flip at {at}");
    }
}

#[test]
fn a_log_of_another_disk_does_not_continue_this_one() {
    let (mut file, ends) = file();
    let mut other = Wal { uuid: VoterUuid([9; 16]), number: 2, end: ends[1].1 };
    let WalWrite::Append { bytes, .. } = other.step(&hard(9, 9), &[]) else { panic!("a step") };
    file.truncate(ends[1].1);
    file.extend_from_slice(&bytes);
    let read = Recovered::read(&file).expect("its own records are whole");
    assert_eq!((read.wal.number, read.store.hard.term), (2, 1));
}
