//! A message in fragments moves to another queue fragment by fragment: however long it is, one of
//! them is in memory.
//!
//! ```text
//!   source's home                               destination's home (`inflow.rs`)
//!   fragment 0 is read; its head says what
//!   happened (`moved.rs`), and is longer by that
//!   Part First ───────────────────────────────▶ room, depth? ─▶ FIRST appended, with its origin
//!        ◀────────────────────────────────────── MovedOn
//!   the next is read ─▶ Part Next ────────────▶ appended
//!        ◀────────────────────────────────────── MovedOn
//!   Part Last ────────────────────────────────▶ LAST appended: a copy (`dead_letters.rs`)
//!        ◀──────────────────────────── Moved
//! ```
//! Reads are those of messages that are sent (`outflow.rs`), in turn with them. [`FLOWS_MAX`]
//! messages of a shard are read and written at once, and hold one fragment each; the others wait in
//! their queues.
//!
//! Invariants: one part of a message is on its way; a copy is one when its last part is committed,
//! so a crash before leaves the message where it was and half of one that is nothing.
//!
//! Failure: not taken, or not to its end: `NotMoved`, at once, and what is in the log of the copy
//! is dead. The message goes with its queue: the copy is given up.
//!
//! [`FLOWS_MAX`]: crate::limits::FLOWS_MAX

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use journal::{Journal, Origin, QueueId, Sequence, ShardId};

use super::Shard;
use super::outflow::Asks;
use crate::canary::Canary;
use crate::limits::PART_BYTES;
use crate::mail::{Fetched, Mail, Part, Share, Whence};
use crate::moved::{Death, moved};
use crate::queue::{Queue, Traits};

/// How far a message is.
#[derive(Debug)]
pub(super) struct Flow {
    /// Where it goes.
    to: (QueueId, ShardId),
    /// When it set off, milliseconds since 1970.
    unix_ms: u64,
    /// The fragment that is read next.
    next: u16,
    /// It is being read; if not, a part is on its way, or all parts are there.
    reads: bool,
    /// What was read and is not sent.
    parts: VecDeque<Bytes>,
    /// How long it is where it goes.
    message_bytes: u64,
    /// Its first part is on its way, or there.
    begun: bool,
    /// All of it was read.
    read: bool,
}

impl Flow {
    /// The next part, and which it is; none where that is to be read first.
    fn poll(&mut self, priority: Option<u8>) -> Option<(Share, Bytes)> {
        let bytes = self.parts.pop_front()?;
        let share = if !std::mem::replace(&mut self.begun, true) {
            let traits = Traits { priority, ..Traits::default() };
            Share::First { traits, message_bytes: self.message_bytes }
        } else if self.read && self.parts.is_empty() {
            Share::Last
        } else {
            Share::Next
        };
        Some((share, bytes))
    }
}

impl Shard {
    /// A message in fragments sets off.
    pub(super) fn begin_flow(
        &mut self,
        now: Instant,
        place: (QueueId, Sequence),
        to: (QueueId, ShardId),
    ) {
        let unix_ms = self.config.clock.unix_ms(now);
        let (parts, message_bytes) = (VecDeque::new(), 0);
        let (next, reads, begun, read) = (0, true, false, false);
        let Some(moving) = self.moves.sets_off(place) else { return };
        moving.flow = Some(Flow { to, unix_ms, next, reads, parts, message_bytes, begun, read });
        self.fetch_to_move(place, 0);
    }

    fn fetch_to_move(&mut self, (queue, sequence): (QueueId, Sequence), fragment: u16) {
        self.fetch(Asks::Move { queue, sequence, fragment });
    }

    /// A fragment was read; or its message is gone with its queue.
    pub(super) fn move_fragment(
        &mut self,
        place: (QueueId, Sequence),
        fragment: u16,
        fetched: Option<Fetched>,
    ) {
        let (id, sequence) = place;
        let Some(moving) = self.moves.get_mut(place) else { return };
        let (reason, before) = (moving.reason, moving.memory_bytes);
        let Some(flow) = &mut moving.flow else { return };
        if flow.next != fragment || !flow.reads {
            // Asked for by an earlier try.
            return;
        }
        let Some(Fetched { mut payload, fragments, message_bytes }) = fetched else {
            return self.give_up_flow(place);
        };
        flow.reads = false;
        flow.next += 1;
        flow.read = flow.next == fragments;
        if fragment == 0 {
            flow.message_bytes = message_bytes - payload.len() as u64;
            let name = self.state.catalogue.get(id).map_or("", |record| &record.name);
            if let Some(queue) = self.state.queue(id)
                && let Some((_, delivery_count)) = queue.moving(sequence)
            {
                let (unix_ms, added) = (flow.unix_ms, queue.added(sequence));
                let death =
                    Death { queue: name, reason, unix_ms, delivery_count, added: added.as_ref() };
                // One that can't be read any more (an older version took it) is moved as it is.
                payload = moved(&payload, &death).unwrap_or(payload);
            }
            flow.message_bytes += payload.len() as u64;
        }
        let memory_bytes = Queue::memory_bytes(payload.len());
        let part_bytes = self.journal.as_ref().map_or(PART_BYTES, Journal::fragment_bytes_max);
        while payload.len() > part_bytes {
            flow.parts.push_back(payload.split_to(part_bytes));
        }
        flow.parts.push_back(payload);
        moving.memory_bytes = memory_bytes;
        self.aside_bytes = self.aside_bytes + memory_bytes - before;
        self.move_on(place);
    }

    /// The last part is in the log: the next goes, or is read.
    pub(super) fn moved_on(&mut self, origin: Origin) {
        self.move_on((origin.queue, origin.sequence));
    }

    fn move_on(&mut self, place: (QueueId, Sequence)) {
        let (queue, sequence) = place;
        let priority = self.state.queue(queue).map(|queue| queue.priority(sequence));
        let Some(flow) = self.moves.get_mut(place).and_then(|moving| moving.flow.as_mut()) else {
            return;
        };
        let (to, next) = (flow.to, flow.next);
        let polled = flow.poll(priority);
        let is_cut = self.config.canaries.has(Canary::PartLeftOut);
        let Some((share, bytes)) = polled.filter(|(share, _)| !(is_cut && *share == Share::Next))
        else {
            flow.reads = true;
            return self.fetch_to_move(place, next);
        };
        self.send_part_of(place, to, share, bytes);
    }

    fn send_part_of(
        &mut self,
        (queue, sequence): (QueueId, Sequence),
        (to, home): (QueueId, ShardId),
        share: Share,
        bytes: Bytes,
    ) {
        let origin = Origin { shard: self.config.shard, queue, sequence };
        let (whence, conn, settled) = (Whence::Moved(origin), None, false);
        let part = Part { queue: to, whence, conn, share, settled, bytes };
        self.post(home, Mail::Part(Box::new(part)));
    }

    /// There is no such message any more.
    fn give_up_flow(&mut self, place: (QueueId, Sequence)) {
        let flow = self.end_move(place).and_then(|moving| moving.flow);
        if let Some(flow) = flow.filter(|flow| flow.begun) {
            self.send_part_of(place, flow.to, Share::Abandoned, Bytes::new());
        }
    }
}
