//! Keeps the shard's superblock: one write at a time, in turn to its two blocks.
//!
//! ```text
//!   recycle, slot made, idle, close --> wanted --> in flight (generation + 1) --> done: slots go
//! ```
//!
//! Invariants: at most one write is in flight, so the block before it stays whole; a slot of the
//! old head is free only when a superblock with the new head is durable, and a slot just made when
//! one that counts it is; the head moves on disk only when all is durable and committed that had
//! been appended when it was given up: what made it dead, and its copies. The durable mark written
//! is our own durable LSN at that moment, or where a cut leaves the log: never more. What is wanted
//! while a write is in flight goes into the next one. A failure poisons the journal, like that of a
//! batch.

use std::collections::VecDeque;
use std::time::Instant;

use crate::block_buf::BlockBuf;
use crate::disk::OpId;
use crate::epochs::EpochTable;
use crate::identity::Chain;
use crate::lsn::{Incarnation, Lsn, Slot};
use crate::superblock::{LogStart, ShardSuperblock, Truncation};

#[derive(Debug)]
pub(crate) struct Keeper {
    /// As last submitted, or as wanted.
    superblock: ShardSuperblock,
    wanted: bool,
    /// Heads that wait for what was appended before them.
    heads: VecDeque<NewHead>,
    /// The log ends here, whatever was durable beyond.
    cut_at: Option<Lsn>,
    /// Slots that the next superblock lets go, and those that the one in flight does.
    releasing: Vec<Slot>,
    flight: Option<KeeperFlight>,
}

/// How far the log has come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reached {
    pub(crate) durable: Lsn,
    pub(crate) committed: Lsn,
}

/// A head that the log is to get.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewHead {
    pub(crate) head: Lsn,
    pub(crate) chain: Chain,
    /// The slot that it lets go.
    pub(crate) released: Slot,
    /// How far the log must be durable and committed before.
    pub(crate) after: Lsn,
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
        let (heads, releasing) = (VecDeque::new(), Vec::new());
        Self { superblock, wanted: false, heads, cut_at: None, releasing, flight: None }
    }

    pub(crate) fn head(&self) -> Lsn {
        self.heads.back().map_or(self.superblock.head, |last| last.head)
    }

    pub(crate) fn durable_mark(&self) -> Lsn {
        self.superblock.durable
    }

    pub(crate) fn want_head(&mut self, head: NewHead) {
        assert!(head.head > self.head(), "the head only moves on");
        self.heads.push_back(head);
    }

    /// The slot was written through.
    pub(crate) fn want_made(&mut self, slot: Slot) {
        self.superblock.slots_made = self.superblock.slots_made.max(slot.0 + 1);
        self.releasing.push(slot);
        self.wanted = true;
    }

    /// The history of the log, as its next writer knows it.
    pub(crate) fn epochs(&self) -> &EpochTable {
        &self.superblock.epochs
    }

    pub(crate) fn truncation(&self) -> Truncation {
        self.superblock.truncation
    }

    pub(crate) fn incarnation(&self) -> Incarnation {
        self.superblock.incarnation
    }

    /// Another history, and where this log is cut to follow it. Heads that wait are given up with a
    /// cut: the log is recovered from the head that is on disk.
    pub(crate) fn want_epochs(&mut self, epochs: EpochTable, cut_at: Option<Lsn>) {
        assert!(cut_at.is_none_or(|at| at >= self.superblock.head));
        if cut_at.is_some() {
            self.heads.clear();
        }
        self.superblock.epochs = epochs;
        self.cut_at = cut_at;
        self.wanted = true;
    }

    /// Another log takes this one's place, from `start` on. Nothing of this one is let go: no file
    /// of it counts.
    pub(crate) fn want_start(&mut self, start: LogStart, epochs: EpochTable, slots_before: u32) {
        self.heads.clear();
        self.releasing.clear();
        self.superblock.begin_at(start, epochs, slots_before);
        self.cut_at = Some(start.head);
        self.wanted = true;
    }

    /// How far the log must go to be whole, where it was begun in the middle of another's.
    pub(crate) fn whole_at(&self) -> Option<Lsn> {
        self.superblock.begun.map(|begun| begun.whole_at)
    }

    /// Whether the head that the log was given last is the one on the disk.
    pub(crate) fn is_head_durable(&self) -> bool {
        self.heads.is_empty() && self.is_idle()
    }

    /// The chain before the head that is, or will be, on the disk.
    pub(crate) fn head_chain(&self) -> Chain {
        self.heads.back().map_or(self.superblock.head_chain, |last| last.chain)
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
        reached: Reached,
    ) -> Option<(BlockBuf, u64)> {
        if self.flight.is_some() {
            return None;
        }
        let may_go = |head: &NewHead| head.after <= reached.committed.min(reached.durable);
        while let Some(next) = self.heads.pop_front_if(|head| may_go(head)) {
            (self.superblock.head, self.superblock.head_chain) = (next.head, next.chain);
            self.releasing.push(next.released);
            self.wanted = true;
        }
        if !self.wanted {
            return None;
        }
        self.wanted = false;
        self.superblock.generation += 1;
        self.superblock.durable = self.cut_at.unwrap_or(reached.durable);
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
