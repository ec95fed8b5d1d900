//! Micro benchmarks, and the floors that they are held against.
//!
//! Each binary says at its top what it measures and how it is run; what two of them share is here.
#![forbid(unsafe_code)]

pub mod disk;
pub mod micro;
pub mod rooms;
