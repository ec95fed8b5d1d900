//! A client and a server that hear nobody but each other, and their hosts' commands in any order.
//!
//! ```text
//!  libFuzzer ── bytes ── both::drive ── Connection ⇄ Connection
//! ```
//!
//! A test of the engine feeds the same function from seeds and from the corpus.
#![no_main]

#[path = "../../amqp/tests/engine/both.rs"]
mod both;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    both::drive(std::time::Instant::now(), bytes);
});
