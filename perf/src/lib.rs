//! The load and latency harness, and the client that it drives.
//!
//! ```text
//!   command     laelaps perf ...                         every command, one function each
//!      │
//!      ├─ stream, sweep, recover,    a load on a broker  ─┐
//!      │  backlog, laps, catch_up                         │
//!      ├─ floor, journal             the machine alone    ├─ all by schedule, all into a block
//!      ├─ compare                    both, interleaved   ─┘
//!      └─ report, gate               a result as a page; against a baseline
//!
//!   schedule    when messages are due                    pure
//!   block       what was measured, histograms, JSON      pure
//!   load        schedule ─▶ AMQP engine on a ring ─▶ block
//!   broker      a broker of our own as a child; `pair`: two and their voters
//!   verdict     VALID, or why not
//!   stats       paired ratios, their median and its interval    pure
//!   machine     what it is, and what it did meanwhile
//!   tls         whom a client trusts
//!   client      a blocking client, for `laelaps dev` and for tests
//! ```
//! Open loop first: what a schedule would suffer is what is measured, and a closed loop says so.
//! Whether the broker speaks AMQP as others understand it is shown by clients that others wrote
//! (`tests/it`): an error in our codec would be at both ends here.
#![forbid(unsafe_code)]

pub mod arguments;
pub mod backlog;
pub mod beside;
pub mod block;
pub mod broker;
pub mod catch_up;
pub mod client;
pub mod command;
pub mod compare;
pub mod floor;
pub mod gate;
pub mod journal;
pub mod laps;
pub mod load;
pub mod machine;
pub mod pair;
pub mod recover;
pub mod report;
pub mod schedule;
pub mod show;
pub mod stats;
pub mod stream;
pub mod sweep;
pub mod tls;
pub mod verdict;
