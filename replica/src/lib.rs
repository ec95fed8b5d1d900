//! Replication, and who is live: sans-IO.
//!
//! ```text
//!   record    what the voters hold for a pair: epoch, live, in-sync set, ...
//!   register  read and compare-and-set, linearizable, without a clock: all that is asked of them
//!   voter     one voter, and the client that asks them
//!   history   whether answers can have come from one register: what every engine is held to
//!   lease     how long who may serve, and how long who must wait
//!   election  one member's part: who is live, who is in sync, what may be acknowledged
//!
//!   wire      what two members say to each other, a stream a shard
//!   live      the live's side of it: batches from memory or from the log, marks, pressure
//!   backup    the backup's: joins, writes them as they are, answers
//!   catchup   where two logs part, and what becomes of what only one has
//!
//!   card      what one member tells the other of itself
//!   member    all of it for one member: what its shards are to be, what it asks and says
//! ```
//!
//! Nothing here does I/O, reads a clock, or draws a random number: the host does, and hands in what
//! came of it. `docs/internals/promotion.md` is the argument; the rules are called R1 to R17 there
//! and here.

#![forbid(unsafe_code)]

pub mod backup;
mod canary;
pub mod card;
pub mod catchup;
mod codec;
mod election;
pub mod history;
mod lease;
pub mod limits;
pub mod live;
pub mod member;
mod pace;
mod record;
mod register;
pub mod voter;
pub mod wire;

#[cfg(feature = "canary")]
pub use canary::Canary;
pub use codec::WireError;
pub use election::{Election, ElectionConfig, Query, Refused, Role, Session, Turn};
pub use lease::LeaseTerms;
pub use record::{Forced, Mark, Member, MemberInfo, NodeId, PairRecord, RecordFault, Reign};
pub use register::{
    Answer, Attempt, Held, LocalRegister, NotDone, Outcome, PairId, Register, Registers, RequestId,
    Swap, Version,
};
