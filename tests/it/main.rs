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
//!   roam      clients in this process that go where the live is; nobody restarts one
//!   restarts  both stopped and killed in every order, switchovers under load, a disk that stands
//!   machines  network namespaces on a switch, whose wires are cut one way or both
//!   cuts      a pair on such machines: who serves while which wire is cut; machines that die
//!   backoff   what clients see of a death that choose themselves when to try again
//!   redirect  what clients are told of a pair: where the live is, and where both are
//!   herd      many TLS clients that come to a new live at once
//!   trust     a pair and its voters with certificates of `pki init`, and who is refused
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
mod backoff;
mod backup;
mod check;
mod compare;
mod cuts;
mod damage;
mod duplicates;
mod engine;
mod exits;
mod half_sent;
mod harness;
mod herd;
mod hostile;
mod interop;
mod kill;
mod laps;
mod load;
mod machines;
mod message;
mod paging;
mod pair;
mod perf;
mod place;
mod power;
mod power_fs;
mod redirect;
mod remote;
mod restarts;
mod roam;
mod table;
mod tls;
mod trust;
mod users;
mod voters;
