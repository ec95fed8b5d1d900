//! Keeps the shard's superblock: one write at a time, in turn to its two blocks.
//!
//! ```text
//!   recycle, idle, close --> wanted --> in flight (generation + 1) --> done: slots are let go
//! ```
//!
//! Invariants: at most one write is in flight, so the block before it stays whole; a slot of the
//! old head is free only when a superblock with the new head is durable; the durable mark written
//! is our own durable LSN at that moment, never more. What is wanted while a write is in flight
//! goes into the next one. A failure poisons the journal, like that of a batch.

use std::time::Instant;

use crate::block_buf::BlockBuf;
use crate::disk::OpId;
use crate::identity::Chain;
use crate::lsn::{Lsn, Slot};
use crate::superblock::ShardSuperblock;

#[derive(Debug)]
pub(crate) struct Keeper {
    /// As last submitted; the head already as wanted.
    superblock: ShardSuperblock,
    wanted: bool,
    /// Slots that the next superblock lets go, and those that the one in flight does.
    releasing: Vec<Slot>,
    flight: Option<KeeperFlight>,
}

#[derive(Debug)]
pub(crate) struct KeeperFlight {
    pub(crate) id: OpId,
    pub(crate) offset: u64,
    pub(crate) bytes: u32,
    pub(crate) since: Instant,
    releasing: Vec<Slot>,
}

impl Keeper {
    pub(crate) fn new(superblock: ShardSuperblock) -> Self {
        Self { superblock, wanted: false, releasing: Vec::new(), flight: None }
    }

    pub(crate) fn head(&self) -> Lsn {
        self.superblock.head
    }

    pub(crate) fn durable_mark(&self) -> Lsn {
        self.superblock.durable
    }

    pub(crate) fn want_head(&mut self, head: Lsn, chain: Chain, released: Slot) {
        assert!(head > self.superblock.head, "the head only moves on");
        (self.superblock.head, self.superblock.head_chain) = (head, chain);
        self.releasing.push(released);
        self.wanted = true;
    }

    pub(crate) fn want_mark(&mut self) {
        self.wanted = true;
    }

    pub(crate) fn want_clean(&mut self) {
        self.superblock.clean = true;
        self.wanted = true;
    }

    pub(crate) fn is_idle(&self) -> bool {
        !self.wanted && self.flight.is_none()
    }

    pub(crate) fn is_clean(&self) -> bool {
        self.superblock.clean && self.is_idle()
    }

    pub(crate) fn flight(&self) -> Option<&KeeperFlight> {
        self.flight.as_ref()
    }

    /// The next write, if one is wanted and none in flight.
    pub(crate) fn submit(
        &mut self,
        id: OpId,
        now: Instant,
        durable: Lsn,
    ) -> Option<(BlockBuf, u64)> {
        if !self.wanted || self.flight.is_some() {
            return None;
        }
        self.wanted = false;
        self.superblock.generation += 1;
        self.superblock.durable = durable;
        let (buf, offset) = self.superblock.encode();
        let bytes = u32::try_from(buf.len()).expect("a block");
        let releasing = std::mem::take(&mut self.releasing);
        self.flight = Some(KeeperFlight { id, offset, bytes, since: now, releasing });
        Some((buf, offset))
    }

    /// The write ended well: these slots are free.
    pub(crate) fn handle_written(&mut self) -> Vec<Slot> {
        self.flight.take().expect("the caller looked it up").releasing
    }
}
