//! AMQP 1.0, sans-IO, both roles: bytes in, events out, bytes out.
//!
//! ```text
//!  frame ─ performative ┐
//!          sasl         ├─ composites ─ codec        what is on the wire
//!          message      ┘  polymorphic, definitions
//! ```
//!
//! Clauses in square brackets are those of the OASIS standard, parts 1 to 5.

#![forbid(unsafe_code)]

pub mod codec;
pub mod composites;
pub mod connection;
pub mod definitions;
pub mod delivery;
pub mod error;
pub mod frame;
pub mod link;
pub mod message;
pub mod performative;
pub mod polymorphic;
pub mod sasl;
pub mod session;
