//! Replication, and who is live: sans-IO.
//!
//! ```text
//!   record    what the voters hold for a pair: epoch, live, in-sync set, ...
//!   register  read and compare-and-set, linearizable, without a clock: all that is asked of them
//!   voter     one voter, and the client that asks them
//! ```
//!
//! Nothing here does I/O, reads a clock, or draws a random number: the host does, and hands in what
//! came of it. `docs/internals/promotion.md` is the argument; the rules are called R1 to R17 there
//! and here.

#![forbid(unsafe_code)]

mod canary;
mod codec;
pub mod limits;
mod record;
mod register;
pub mod voter;

#[cfg(feature = "canary")]
pub use canary::Canary;
pub use codec::WireError;
pub use record::{Mark, Member, MemberInfo, NodeId, PairRecord, RecordFault, Reign};
pub use register::{
    Answer, Attempt, Held, LocalRegister, NotDone, Outcome, PairId, Register, Registers, RequestId,
    Swap, Version,
};
