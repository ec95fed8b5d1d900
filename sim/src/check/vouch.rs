//! No batch vouches for more than is durable when it is submitted.
//!
//! The durable field of a batch is the evidence by which recovery tells damage from a torn tail: a
//! field that runs ahead would turn a torn tail into damage.

use std::time::Instant;

use super::{Check, Facts, Seen};

#[derive(Debug)]
pub(super) struct Vouch;

impl Check for Vouch {
    fn promise(&self) -> &'static str {
        "no batch vouches for more than is durable"
    }

    fn see(&mut self, _now: Instant, facts: &Facts, seen: &Seen) -> Result<(), String> {
        let Seen::Vouched { shard, vouched, .. } = seen else { return Ok(()) };
        let stamp = facts.stamp.as_ref().ok_or("a write without a stamp")?;
        let durable = stamp.marks[usize::from(shard.0)].durable;
        if *vouched <= durable {
            return Ok(());
        }
        Err(format!("a batch of shard {} vouches for {vouched}, durable is {durable}", shard.0))
    }
}
