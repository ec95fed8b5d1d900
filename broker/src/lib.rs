//! The deterministic core of the broker: what a shard does, and nothing that touches the world.
//!
//! ```text
//!   Event ──▶ Shard::handle ──▶ Shard::poll ──▶ Action
//!               │ ingress   a transfer becomes a record and a reserved slot
//!               │ commit    the watermark moved: answers go out, messages become visible
//!               │ egress    visible messages meet credit, dispositions become settle records
//!               └ apply     one record -> state; recovery and the live path use the same function
//! ```
//!
//! Two hosts run the same [`Shard`]: the process's driver on a ring, the simulator on a seed.
//! Neither finds a socket, a file, a clock, a thread or a source of randomness in here. The same
//! events in the same order give the same actions, always.
#![forbid(unsafe_code)]

pub mod access;
pub mod admin;
pub mod apply;
pub mod canary;
pub mod catalogue;
pub mod clock;
pub mod delivery_time;
pub mod duplicates;
pub mod event;
mod flat_map;
mod halves;
pub mod limits;
pub mod mail;
pub mod moved;
pub mod pattern;
pub mod pending;
pub mod queue;
pub mod ration;
pub mod server;
pub mod setback;
pub mod settings;
pub mod shard;

pub use event::{Action, ConnId, Event, Fatal};
pub use mail::Mail;
pub use server::Server;
pub use shard::{Moving, Shard, ShardConfig};
