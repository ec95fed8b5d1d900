//! The log as a whole, on a disk in memory that loses, tears and fails what it is told to.
//!
//! One binary: `disk` is the disk, `bed` the host around a journal; each other file is one
//! property.

#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps nothing")]

mod bed;
#[cfg(feature = "canary")]
mod canaries;
mod checkpoint;
mod crash_matrix;
mod damage;
mod disk;
mod early;
mod failure;
mod follower;
mod format;
mod golden;
mod hostile;
mod offline;
mod read_back;
mod recycle;
mod timing;
