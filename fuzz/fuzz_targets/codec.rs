//! Values and messages from strangers: checked, walked, written again.
//!
//! ```text
//!  libFuzzer ── bytes ── properties::codec
//! ```
//!
//! The properties are those that `amqp/tests/corpus.rs` asks of the corpus in every test run.
#![no_main]

#[path = "../../amqp/tests/corpus/properties.rs"]
#[expect(dead_code, reason = "each target asks one of them")]
mod properties;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| properties::codec(bytes));
