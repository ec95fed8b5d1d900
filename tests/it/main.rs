//! Tests of the real process: clients that others wrote, kill -9, power cuts, damage, exits.
//!
//! ```text
//!   harness   a broker as a process, scratch directories
//!   load      foreign producers and consumers that outlive the broker
//!   check     judges what they saw; its own rules are tested without a broker
//!   power_fs  the file system that loses what was not synced (tests/powerfs)
//!   perf      the harness that is shipped, against the real broker
//!   authority  certificates for tests
//!   table     each foreign client and what works with it, as docs/operating/clients.md says
//!   duplicates  producers that send again after kill -9
//!   voters    those who remember who is live, killed in turn
//!   pair      two brokers and their voters: killed, stopped, paused, started in any order
//!   laps      a small log, a long stream, and what lags behind it
//!   backup    a point of a running broker, restored elsewhere
//!   paging    a backlog of ten times the memory
//!   kill, power, interop, addresses, exits, damage, engine, place, tls, users, hostile  the tests
//! ```
//!
//! What needs foreign clients or the file system is `#[ignore]`d under plain `cargo test` and run
//! by
//! `tests/run`, which fetches and builds both. Everything is bounded in time, binds to loopback
//! only, and ends every process that it started.
#![forbid(unsafe_code)]
#![expect(clippy::disallowed_methods, reason = "real processes are waited for by a real clock")]

mod addresses;
mod authority;
mod backup;
mod check;
mod compare;
mod damage;
mod duplicates;
mod engine;
mod exits;
mod harness;
mod hostile;
mod interop;
mod kill;
mod laps;
mod load;
mod message;
mod paging;
mod pair;
mod perf;
mod place;
mod power;
mod power_fs;
mod remote;
mod table;
mod tls;
mod users;
mod voters;
