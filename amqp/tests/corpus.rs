//! The corpora of the fuzzers, replayed: what once was found stays found.
//!
//! ```text
//!  fuzz/corpus/frame/* ── properties::frame        also each cut short, and with a bit flipped
//!  fuzz/corpus/codec/* ── properties::codec
//! ```

#[path = "corpus/properties.rs"]
mod properties;

use std::fs;
use std::path::Path;

/// Asks `property` of each file of a corpus, of all its beginnings, and of it with each byte
/// changed in one bit. Gives the number of files.
fn replay(corpus: &str, property: fn(&[u8])) -> usize {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(corpus);
    let mut files = 0;
    for entry in fs::read_dir(&directory).expect("the corpus is checked in") {
        let path = entry.expect("a file").path();
        let mut bytes = fs::read(&path).expect("a file");
        property(&bytes);
        // Large files are for the fuzzer: here it would take quadratic time.
        for index in 0..bytes.len().min(512) {
            property(&bytes[..index]);
            bytes[index] ^= 1 << (index % 8);
            property(&bytes);
            bytes[index] ^= 1 << (index % 8);
        }
        files += 1;
    }
    files
}

#[test]
fn frames_of_the_corpus_hold() {
    assert!(replay("frame", properties::frame) >= 20);
}

#[test]
fn values_and_messages_of_the_corpus_hold() {
    assert!(replay("codec", properties::codec) >= 20);
}
