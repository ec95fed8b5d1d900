//! AMQP 1.0, sans-IO, both roles.

pub mod connection;
pub mod delivery;
pub mod error;
pub mod link;
pub mod session;
