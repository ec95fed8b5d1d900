//! A connection driven by a stranger's frames and its host's commands, in any order.
//!
//! ```text
//!  libFuzzer ── bytes ── operations::drive ── Connection
//! ```
//!
//! A test of the engine feeds the same function from seeds.
#![no_main]

#[path = "../../amqp/tests/engine/operations.rs"]
mod operations;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| operations::drive(std::time::Instant::now(), bytes));
