//! Whole ensembles of voters under one seed: real voters, bad networks and disks, clients that keep
//! their history.
//!
//! ```text
//!   plan ─▶ world ─┬─ ensemble  replica::voter, one a seat, restarted after each crash
//!                  │            a file each: what was not synced is lost, torn or there
//!                  ├─ network   each directed link: delay, loss, repetition, cuts
//!                  └─ clients   replica::voter::Client ─▶ replica::history: linearizable?
//!
//!   faults for most of the run ─▶ everything heals ─▶ every client must win a swap again
//! ```
//! The same seed is the same run: its trace is a number that is compared.

pub(crate) mod ensemble;
pub(crate) mod network;
mod plan;
mod world;

pub use plan::{CANARIES, Conditions, Plan};
pub use world::{Failure, REQUIRED, Report, run};

use std::collections::BTreeMap;

/// What happened, counted by name.
pub type Counts = BTreeMap<&'static str, u64>;
