//! Bytes of the log changed by hand: what the broker may cut, and what must stop it.
//!
//! ```text
//!   the last batch, nothing after it says it was durable     torn: starts, says how much was cut
//!   any batch that a later one covers                        damage: status 14, segment, offset
//!   a superblock of a newer format                           status 13
//!   both copies of a superblock                              stops
//! ```
//!
//! Whoever is refused must have changed nothing: all files are compared byte by byte.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::harness::{Scratch, Start};
use crate::load::Client;
use crate::message::{data, kept};
use crate::remote::Remote;

const MESSAGES: usize = 40;
const BLOCK: usize = 4096;

/// A body that is found nowhere else in the log.
fn body(at: usize) -> Vec<u8> {
    data(format!("message number {at:04}; ").repeat(8).as_bytes())
}

/// A broker that accepted [`MESSAGES`] and was killed, at once or after it went idle.
fn killed(scratch: &Scratch, idle: Duration) -> PathBuf {
    let directory = scratch.join("data");
    let broker = start(&directory).ready();
    let mut remote = Remote::connected(Client::Proton, &broker);
    remote.sender("s", "damage");
    for at in 0..MESSAGES {
        remote.send("s", &body(at));
    }
    thread::sleep(idle);
    broker.kill();
    directory
}

fn start(directory: &Path) -> Start<'_> {
    let mut start = Start::new(directory);
    start.args.extend(["--shards".into(), "1".into()]);
    start
}

/// All files of a directory but the lock, whose bytes mean nothing.
fn contents(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut left = vec![directory.to_owned()];
    while let Some(next) = left.pop() {
        for entry in fs::read_dir(&next).expect("the data directory can be listed") {
            let path = entry.expect("an entry can be read").path();
            match path.is_dir() {
                true => left.push(path),
                false if path.ends_with("lock") => {}
                false => {
                    let bytes = fs::read(&path).expect("a file can be read");
                    found.insert(path, bytes);
                }
            }
        }
    }
    found
}

/// The one place in the log that holds a message's body.
fn place(directory: &Path, at: usize) -> (PathBuf, usize) {
    let body = body(at);
    let needle = &body[8..];
    let mut places = Vec::new();
    for (path, bytes) in contents(directory) {
        let found = bytes.windows(needle.len()).position(|window| window == needle);
        places.extend(found.map(|offset| (path.clone(), offset)));
    }
    assert_eq!(places.len(), 1, "message {at} is in the log once: {places:?}");
    places.remove(0)
}

fn flip(directory: &Path, at: usize) -> (PathBuf, usize) {
    let (path, offset) = place(directory, at);
    let mut bytes = fs::read(&path).expect("a segment can be read");
    bytes[offset + 5] ^= 0x10;
    fs::write(&path, bytes).expect("a segment can be written");
    (path, offset)
}

fn assert_stops(directory: &Path, status: i32, words: &[&str]) {
    let before = contents(directory);
    let (code, said) = start(directory).refused();
    assert_eq!(code, status, "{said}");
    for word in words {
        assert!(said.contains(word), "nothing about `{word}`:\n{said}");
    }
    assert!(contents(directory) == before, "a refused start has changed the directory");
}

#[test]
#[ignore = "needs the foreign clients: tests/run exits"]
fn a_flipped_bit_inside_stops_the_start() {
    let scratch = Scratch::new("flipped");
    let directory = killed(&scratch, Duration::ZERO);
    let (path, offset) = flip(&directory, MESSAGES / 2);
    let name = path.file_name().and_then(|name| name.to_str()).expect("a plain name").to_owned();
    // The batch begins at the block that holds the message, or a little before it.
    let batch = offset / BLOCK * BLOCK;
    assert_stops(&directory, 14, &[&name, &batch.to_string()]);
    assert_stops(&directory, 14, &["verify"]);
    flip(&directory_restored(&path, offset, &directory), MESSAGES / 4);
    assert_stops(&directory, 14, &[&name]);
}

/// Undoes a flip, so that the next one is the only damage.
fn directory_restored(path: &Path, offset: usize, directory: &Path) -> PathBuf {
    let mut bytes = fs::read(path).expect("a segment can be read");
    bytes[offset + 5] ^= 0x10;
    fs::write(path, bytes).expect("a segment can be written");
    directory.to_owned()
}

#[test]
#[ignore = "needs the foreign clients: tests/run exits"]
fn a_torn_tail_is_cut_and_said() {
    let scratch = Scratch::new("torn");
    let directory = killed(&scratch, Duration::ZERO);
    flip(&directory, MESSAGES - 1);
    let broker = start(&directory).ready();
    let said = broker.said();
    let ready = said.lines().rfind(|line| line.contains("ready")).expect("it was ready");
    assert!(!ready.contains("torn=\"nothing\""), "it cut without a word:\n{ready}");
    assert!(ready.contains("bytes"), "it does not say how much was cut:\n{ready}");
    let mut remote = Remote::connected(Client::Proton, &broker);
    remote.receiver("r", "damage", 100);
    let came = remote.take("r", MESSAGES - 1);
    for (at, message) in came.iter().enumerate() {
        assert!(kept(message) == body(at), "message {at}");
    }
    // What was cut stays cut, and the log goes on from there.
    remote.sender("s", "damage");
    remote.send("s", &body(MESSAGES));
    broker.kill();
    let broker = start(&directory).ready();
    let mut remote = Remote::connected(Client::Proton, &broker);
    remote.receiver("r", "damage", 100);
    let came = remote.take("r", MESSAGES);
    assert!(kept(&came[MESSAGES - 1]) == body(MESSAGES));
}

#[test]
#[ignore = "needs the foreign clients: tests/run exits"]
fn the_last_batch_of_an_idle_log_is_no_torn_tail() {
    let scratch = Scratch::new("idle-mark");
    let directory = killed(&scratch, Duration::from_secs(2));
    flip(&directory, MESSAGES - 1);
    assert_stops(&directory, 14, &["segment-"]);
}

#[test]
fn a_newer_format_is_left_alone() {
    let scratch = Scratch::new("newer");
    let directory = scratch.join("data");
    start(&directory).ready().kill();
    let path = directory.join("superblock");
    let mut bytes = fs::read(&path).expect("the superblock can be read");
    for block in bytes.chunks_mut(BLOCK).filter(|block| block.iter().any(|byte| *byte != 0)) {
        block[4..6].copy_from_slice(&99_u16.to_le_bytes());
        let covered = u32::from_le_bytes(block[8..12].try_into().expect("four bytes")) as usize;
        let sum = crc32c(&[&block[..12], &block[16..covered]]);
        block[12..16].copy_from_slice(&sum.to_le_bytes());
    }
    fs::write(&path, bytes).expect("the superblock can be written");
    assert_stops(&directory, 13, &["99", "superblock"]);
}

#[test]
fn a_superblock_without_a_good_copy_stops_the_start() {
    for name in ["superblock", "shard-000/superblock"] {
        let scratch = Scratch::new("superblock");
        let directory = scratch.join("data");
        start(&directory).ready().kill();
        let path = directory.join(name);
        let mut bytes = fs::read(&path).expect("the superblock can be read");
        bytes.iter_mut().step_by(64).for_each(|byte| *byte ^= 0xff);
        fs::write(&path, bytes).expect("the superblock can be written");
        assert_stops(&directory, 14, &["superblock"]);
    }
}

/// CRC-32C by the bit, so that our own code has no part in it.
fn crc32c(parts: &[&[u8]]) -> u32 {
    let mut sum = !0_u32;
    for byte in parts.iter().copied().flatten() {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = sum >> 1 ^ (0x82f6_3b78 & (sum & 1).wrapping_neg());
        }
    }
    !sum
}

#[test]
fn crc32c_is_the_right_one() {
    assert_eq!(crc32c(&[b"12345", b"6789"]), 0xe306_9283);
}
