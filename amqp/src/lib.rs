//! AMQP 1.0, sans-IO, both roles: bytes in, events out, bytes out.
//!
//! ```text
//!             bytes in, commands                      events, bytes out
//!                    │                                        ▲
//!  connection ───────▼────────────────────────────────────────┴─┐
//!    session   windows, handles, unsettled    ┐                 │  the engine: states, bounds,
//!      link    credit, termini                ├─ error ─────────┤  what goes wrong and its scope
//!        delivery   ids, tags, outcomes       ┘                 │
//!  ───────┬─────────────────────────────────────────────────────┘
//!  frame ─ performative ┐
//!          sasl         ├─ composites ─ codec           the wire: borrowed views, no state
//!          message      ┘  polymorphic, definitions
//! ```
//!
//! A host drives a [`connection::Connection`]; `message` is for the host alone: the engine never
//! looks into what it carries.
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
mod shortcuts;
