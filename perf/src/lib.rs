//! The load and latency harness, and the client that it drives.
//!
//! ```text
//!   client    a blocking AMQP 1.0 client over TCP, on the engine's client role
//! ```
//! In this version there is only the client; floors, load and comparisons come with their own
//! issue. It serves `laelaps dev` and tests of ours. Whether the broker speaks AMQP as others
//! understand it is shown by clients that others wrote (`tests/it`): an error in our codec would be
//! at both ends here.
#![forbid(unsafe_code)]

pub mod block;
pub mod client;
pub mod floor;
pub mod journal;
pub mod load;
pub mod machine;
pub mod schedule;
pub mod stats;
