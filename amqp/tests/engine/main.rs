//! The engine against a scripted peer and against itself.
//!
//! ```text
//!  peer.rs        a raw peer: says any frame, hears the answers as lines of text
//!  handshake.rs   headers, SASL, open, close, timers
//!  sessions.rs    channels, windows, dispositions
//!  links.rs       attach, detach, credit, drain
//!  deliveries.rs  transfers in both directions
//!  pair.rs        client and server in memory, random byte splits and commands, by seed
//!  hostile.rs     random frames in any order: no panic, bounded memory
//!  operations.rs  the same driven by bytes, for the fuzzer and for seeds
//!  both.rs        client and server in memory driven by bytes, likewise
//! ```
//!
//! `item_N` in a test's name is the item in the list of what AMQP servers get wrong that it is
//! for, so that the list can be held against the tests.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]
#![expect(clippy::wildcard_enum_match_arm, reason = "an event that was not expected fails a test")]

mod both;
mod deliveries;
mod handshake;
mod hostile;
mod links;
mod operations;
mod pair;
mod peer;
mod sessions;
