//! The deterministic world: whole shards, their disk, their mail and their clients under one seed.
//!
//! ```text
//!   rng ─▶ plan ─▶ world ─┬─ world/node   the process: the same Shard that the driver runs
//!                         ├─ disk         what is durable, and all that can go wrong
//!                         ├─ client, wire, letter   clients that share the codec and no engine
//!                         ├─ audit        every batch on its way to the disk
//!                         └─ check        one checker for each promise
//!   pipe   a connection of a client, in either world of brokers
//!   voters whole ensembles of voters: is their register linearizable?
//!   solo   one journal alone, for the crash matrix
//!   hits   what happened, counted: a suite that hit nothing proves nothing
//! ```
//! The same seed is the same run, event by event. A failure prints the command that replays it.
#![forbid(unsafe_code)]

pub mod audit;
pub mod check;
pub mod client;
pub mod disk;
pub mod hits;
pub mod letter;
pub mod pair;
mod pipe;
pub mod plan;
pub mod rng;
pub mod solo;
mod starts;
pub mod voters;
pub mod wire;
pub mod world;
