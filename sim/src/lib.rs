//! The deterministic world.
#![forbid(unsafe_code)]

pub mod disk;
pub mod hits;
pub mod letter;
pub mod rng;
pub mod solo;
pub mod wire;
