//! Who may hold how much memory.
//!
//! ```text
//!   machine or container
//!   └─ memory-max ─┬─ batch buffers   every shard's, from the start on, mostly pinned
//!                  └─ messages        the rest, in equal parts for the shards
//!   outside of it: connections; their unfinished messages, at most a quarter as much as messages;
//!   the rings' own buffers; the program
//! ```
//! Invariant: each shard can hold a part of a message on its way into the log, and so a message of
//! the smallest size that `max-message-size` may have.
//!
//! Failure: a bound that leaves less is refused, since nothing could be accepted under it.

use crate::config::{Bytes, Config};
use crate::driver;
use crate::fatal::{Cause, Failure};

/// What `memory-max` comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Budget {
    /// Bytes in all.
    pub(crate) whole: u64,
    /// Bytes of the batch buffers of all shards.
    pub(crate) buffers: u64,
    /// Bytes that the messages of one shard may hold.
    pub(crate) shard_messages: u64,
}

/// The smallest bound that `max-message-size` can have.
const MESSAGE_BYTES_LEAST: u64 = 64 << 10;

impl Budget {
    /// Divide what a machine of `memory` bytes has among so many shards.
    ///
    /// # Errors
    /// Too little is left for messages: how much there is, and what to do.
    pub(crate) fn new(config: &Config, memory: u64, shards: u16) -> Result<Self, Failure> {
        let whole = config.memory_max.of(memory);
        let buffers = driver::batch_buffer_bytes(shards, config.writes_in_flight_max);
        let shard_messages = whole.saturating_sub(buffers) / u64::from(shards);
        if shard_messages < MESSAGE_BYTES_LEAST {
            let (whole, buffers) = (Bytes(whole), Bytes(buffers));
            return Err(Failure::new(
                Cause::ConfigInvalid,
                format!(
                    "memory-max comes to {whole}, of which the batch buffers of {shards} shards \
                     take {buffers}: too little is left for messages. Raise it, or lower \
                     writes-in-flight-max"
                ),
            ));
        }
        Ok(Self { whole, buffers, shard_messages })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seven buffers of 132 KiB.
    const BUFFERS: u64 = (7 * 132) << 10;

    #[test]
    fn buffers_come_off_before_messages() {
        let config = Config::default();
        let budget = Budget::new(&config, 4 << 30, 2).expect("plenty");
        assert_eq!(budget.whole, (4_u64 << 30) / 100 * 25);
        assert_eq!(budget.buffers, 2 * BUFFERS);
        assert_eq!(2 * budget.shard_messages, budget.whole - budget.buffers);
    }

    #[test]
    fn a_bound_that_leaves_no_room_for_a_message_is_refused() {
        let config = Config::default();
        let least = |shards: u16| 4 * u64::from(shards) * (BUFFERS + MESSAGE_BYTES_LEAST) + 400;
        for shards in [1, 8, 256] {
            let budget = Budget::new(&config, least(shards), shards).expect("just enough");
            assert!(budget.shard_messages <= MESSAGE_BYTES_LEAST + 100);
            let failure = Budget::new(&config, least(shards) - 800, shards).expect_err("too small");
            assert_eq!(failure.cause, Cause::ConfigInvalid);
        }
    }
}
