//! The corpora of the fuzzers, replayed: what once was found stays found.
//!
//! ```text
//!  fuzz/corpus/frame/* ── properties::frame        also each cut short, and with a bit flipped
//!  fuzz/corpus/codec/* ── properties::codec
//!  fuzz/corpus/engine/* ── operations::drive       each also cut short, as a run that ends there
//!  fuzz/corpus/both/*  ── both::drive
//! ```

#[path = "engine/both.rs"]
mod both;
#[path = "engine/operations.rs"]
mod operations;
#[path = "corpus/properties.rs"]
mod properties;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The files of a corpus.
fn files(corpus: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(corpus);
    let entries = fs::read_dir(&directory).expect("the corpus is checked in");
    entries.map(|entry| entry.expect("a file").path()).collect()
}

/// Asks `property` of each file of a corpus, of all its beginnings, and of it with each byte
/// changed in one bit. Gives the number of files.
fn replay(corpus: &str, property: fn(&[u8])) -> usize {
    let files = files(corpus);
    for path in &files {
        let mut bytes = fs::read(path).expect("a file");
        property(&bytes);
        // Large files are for the fuzzer: here it would take quadratic time.
        for index in 0..bytes.len().min(512) {
            property(&bytes[..index]);
            bytes[index] ^= 1 << (index % 8);
            property(&bytes);
            bytes[index] ^= 1 << (index % 8);
        }
    }
    files.len()
}

/// Drives an engine by each file of a corpus, and by some of its beginnings. Gives the number of
/// files.
fn replay_operations(corpus: &str, drive: impl Fn(Instant, &[u8])) -> usize {
    #[expect(clippy::disallowed_methods, reason = "any moment does")]
    let now = Instant::now();
    let files = files(corpus);
    for path in &files {
        let bytes = fs::read(path).expect("a file");
        for part in 1..=8 {
            drive(now, &bytes[..bytes.len() * part / 8]);
        }
    }
    files.len()
}

#[test]
fn frames_of_the_corpus_hold() {
    assert!(replay("frame", properties::frame) >= 20);
}

#[test]
fn values_and_messages_of_the_corpus_hold() {
    assert!(replay("codec", properties::codec) >= 20);
}

#[test]
fn operations_of_the_corpus_hold() {
    assert!(replay_operations("engine", operations::drive) >= 20);
}

#[test]
fn pairs_of_the_corpus_hold() {
    let drive = |now: Instant, bytes: &[u8]| {
        both::drive(now, bytes);
    };
    assert!(replay_operations("both", drive) >= 20);
}
