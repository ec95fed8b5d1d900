//! Where the bytes of a queue's messages are: in memory, or on the disk only.
//!
//! ```text
//!            page out: memory is short, and the record is committed
//!   in memory ────────────────────────────────────▶ on the disk only
//!     ▲    ▲                                            │ asked for: it is the turn of what
//!     │    │ fill: at this place stood this record      │ stands behind it, or its own
//!     │    └───────────────── being read ◀──────────────┘
//!     │                           │ it was copied elsewhere meanwhile: asked for again
//!     │                           └──────────────────────────────▶ on the disk only
//!     └ stays: not committed, with somebody who sends it, or read for its turn
//! ```
//! `ahead` has what was asked for in the order of dispatch and is not handed out yet, read or not:
//! as long as somebody can take it, it is not paged out again. So what is read is used once, and a
//! queue whose next message is ahead gets on, however short memory is.
//!
//! Paged out first is what goes out last, by sequence from the end: what a consumer needs next
//! stays.
//!
//! One in fragments is handed out without its bytes: they are fetched as it is sent
//! (`shard/outflow.rs`). It comes back only for those who need all of it; then its fragments are
//! gathered (`chain.rs`).
//!
//! Invariants: only what is committed to its last record is paged out, and only while nobody else
//! has the bytes, so that memory is won; `paged_out` counts exactly the live messages without
//! bytes.

use std::collections::BTreeMap;

use bytes::Bytes;
use journal::{Lsn, QueueId, Sequence};

use super::index::Index;
use super::{Chain, Queue, Slot, SlotState};
use crate::limits::{READ_AHEAD_MESSAGES, READ_AHEAD_REQUEUED};

/// Messages whose bytes are on the disk only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PagedOut {
    /// How many.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl PagedOut {
    /// More of them.
    pub(crate) fn add(&mut self, more: Self) {
        self.messages += more.messages;
        self.bytes += more.bytes;
    }

    /// Some are no more.
    pub(crate) fn sub(&mut self, gone: Self) {
        self.messages -= gone.messages;
        self.bytes -= gone.bytes;
    }

    pub(crate) fn one(bytes: u64) -> Self {
        Self { messages: 1, bytes }
    }
}

/// A message that is to be read, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its queue.
    pub queue: QueueId,
    /// Its sequence there.
    pub sequence: Sequence,
    /// Where its record begins.
    pub lsn: Lsn,
    /// Bytes of its record.
    pub record_bytes: usize,
    /// Which of its fragments that is, if it is in fragments.
    pub fragment: Option<u16>,
    /// Bytes of the message.
    pub message_bytes: usize,
}

/// What became of bytes that were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// The message has them.
    Held(SlotState),
    /// They are a fragment of it, and others are missing.
    Part,
    /// Nobody needs them: it is gone, or has them.
    Needless,
    /// The record is somewhere else by now: this is to be read.
    Moved(Wanted),
    /// Its record is there, and what was read is not it.
    Damaged,
}

/// How far the payloads of a queue were looked through, from its end.
#[derive(Clone, Copy, Debug)]
pub struct Hand {
    /// Chunks from this number on are done with.
    pub below: u64,
    /// So many messages may be paged out yet.
    pub drops_left: usize,
    /// So many chunks may be looked at yet.
    pub looks_left: usize,
}

/// What a look through a queue's payloads came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shed {
    /// What was paged out.
    pub paged_out: PagedOut,
    /// There is nothing to look at any more, or enough was paged out.
    pub is_over: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Asked,
    Here,
}

/// See the head of the file.
#[derive(Debug, Default)]
pub(super) struct Paged {
    paged_out: PagedOut,
    ahead: BTreeMap<Sequence, (Stage, u64)>,
    ahead_bytes: u64,
    /// Fresh messages before this were looked at: they are in memory, or ahead.
    looked: Sequence,
    /// Whose bytes dispatch or a browser has found missing.
    awaited: Option<Sequence>,
}

impl Paged {
    #[inline(always)]
    pub(super) fn awaits_nothing(&mut self) {
        self.awaited = None;
    }

    pub(super) fn is_awaited(&self) -> bool {
        self.awaited.is_some()
    }

    #[cold]
    pub(super) fn await_bytes(&mut self, sequence: Sequence) {
        self.awaited = Some(sequence);
    }

    /// Its bytes are with a consumer.
    #[inline(always)]
    pub(super) fn handed_out(&mut self, sequence: Sequence) {
        if !self.ahead.is_empty() {
            self.take_back(sequence);
        }
    }

    /// A message is taken in whose bytes are on the disk only.
    pub(super) fn begin_outside(&mut self, sequence: Sequence, bytes: u64) {
        self.paged_out.add(PagedOut::one(bytes));
        self.looked = self.looked.min(sequence);
    }

    /// The message is gone.
    #[inline(always)]
    pub(super) fn forget(&mut self, sequence: Sequence, slot: &Slot, was_paged_out: bool) {
        if was_paged_out {
            self.paged_out.sub(PagedOut::one(u64::from(slot.message_bytes)));
        }
        self.handed_out(sequence);
    }

    fn take_back(&mut self, sequence: Sequence) {
        if let Some((_, bytes)) = self.ahead.remove(&sequence) {
            self.ahead_bytes -= bytes;
        }
    }

    /// Nobody takes anything: what was read is as good as what was not.
    fn call_off(&mut self, cursor: Sequence) {
        self.ahead.retain(|_, (stage, _)| *stage == Stage::Asked);
        self.ahead_bytes = self.ahead.values().map(|(_, bytes)| bytes).sum();
        self.looked = cursor;
    }
}

impl Queue {
    /// Messages whose bytes are on the disk only.
    pub fn paged_out(&self) -> PagedOut {
        self.paged.paged_out
    }

    /// Bytes of messages that are in memory.
    pub fn resident_bytes(&self) -> u64 {
        self.payload_bytes - self.paged.paged_out.bytes
    }

    /// Whether bytes are awaited, or soon will be, given how many may be read ahead.
    pub fn wants_payloads(&self, window_bytes: u64) -> bool {
        let Paged { paged_out, ahead_bytes, awaited, looked, .. } = &self.paged;
        let is_near = looked.0 < self.cursor.0 + READ_AHEAD_MESSAGES / 2;
        let is_low = is_near && *ahead_bytes <= window_bytes / 2;
        paged_out.messages > 0 && self.has_takers() && (awaited.is_some() || is_low)
    }

    /// Whether dispatch or a browser has found that bytes are not in memory.
    pub fn awaits_bytes(&self) -> bool {
        self.paged.is_awaited()
    }

    /// Asks for what will be dispatched next and is not in memory, until so many bytes are ahead;
    /// not for what is in fragments, which is fetched as it is sent. False if there is nothing on
    /// the disk only, or nobody to take it.
    pub fn ask_ahead(&mut self, window_bytes: u64, wanted: &mut Vec<Wanted>) -> bool {
        if self.paged.paged_out.messages == 0 || !self.has_takers() {
            return false;
        }
        if let Some(awaited) = self.paged.awaited {
            self.ask(awaited, wanted);
        }
        // What comes back is near, and not much.
        let requeued = self.requeued.iter().take(READ_AHEAD_REQUEUED);
        let requeued: Vec<Sequence> = requeued.map(|place| place.sequence).collect();
        for sequence in requeued {
            if self.paged.ahead_bytes < window_bytes && self.chains.get(sequence).is_none() {
                self.ask(sequence, wanted);
            }
        }
        let end = Sequence(self.cursor.0 + READ_AHEAD_MESSAGES);
        let mut from = self.paged.looked.max(self.cursor);
        while self.paged.ahead_bytes < window_bytes && from < end {
            let Some((sequence, slot)) = self.index.first_from(from) else { break };
            if slot.state == SlotState::Reserved {
                break;
            }
            if slot.state == SlotState::Available && slot.record_bytes().is_some() {
                self.ask(sequence, wanted);
            }
            from = Sequence(sequence.0 + 1);
        }
        self.paged.looked = from;
        true
    }

    /// Asks for the bytes of one message, unless they are here or were asked for.
    pub fn ask(&mut self, sequence: Sequence, wanted: &mut Vec<Wanted>) {
        let Some(slot) = self.index.get(sequence) else { return };
        if self.index.payload(sequence).is_some() || self.paged.ahead.contains_key(&sequence) {
            return;
        }
        let (queue, lsn, message_bytes) = (self.id, slot.lsn, slot.message_bytes as usize);
        if let Some(record_bytes) = slot.record_bytes() {
            let fragment = None;
            wanted.push(Wanted { queue, sequence, lsn, record_bytes, fragment, message_bytes });
        } else {
            let chain = self.chains.get(sequence).expect("what is paged out has its places");
            let fragments = (0..).zip(chain.fragments());
            wanted.extend(fragments.map(|(fragment, at)| Wanted {
                queue,
                sequence,
                lsn: at.lsn,
                record_bytes: at.record_bytes as usize,
                fragment: Some(fragment),
                message_bytes,
            }));
        }
        self.paged.ahead.insert(sequence, (Stage::Asked, message_bytes as u64));
        self.paged.ahead_bytes += message_bytes as u64;
    }

    /// Whether a message's bytes were asked for, and are not here.
    pub(super) fn is_asked(&self, sequence: Sequence) -> bool {
        let ahead = self.paged.ahead.get(&sequence);
        ahead.is_some_and(|(stage, _)| *stage == Stage::Asked)
    }

    /// The bytes of a message, or of a fragment of it, were read where its record was when they
    /// were asked for. Without `read`, they are not what they should be.
    pub fn fill(&mut self, wanted: &Wanted, read: impl FnOnce() -> Option<Bytes>) -> Filled {
        let sequence = wanted.sequence;
        let Some(slot) = self.index.get(sequence) else { return Filled::Needless };
        if self.index.payload(sequence).is_some() {
            return Filled::Needless;
        }
        let (state, lsn) = (slot.state, self.place_of(slot, wanted));
        if lsn != Some(wanted.lsn) {
            return lsn.map_or(Filled::Needless, |lsn| Filled::Moved(Wanted { lsn, ..*wanted }));
        }
        let Some(read) = read() else { return Filled::Damaged };
        let message = match wanted.fragment {
            None => Some(read),
            Some(fragment) => self.chains.gather(sequence, fragment, read),
        };
        let Some(message) = message else { return Filled::Part };
        self.index.hold(sequence, message);
        self.paged.paged_out.sub(PagedOut::one(wanted.message_bytes as u64));
        if let Some((stage, _)) = self.paged.ahead.get_mut(&sequence) {
            *stage = Stage::Here;
        }
        Filled::Held(state)
    }

    /// Where the record is now that somebody wanted.
    fn place_of(&self, slot: &Slot, wanted: &Wanted) -> Option<Lsn> {
        let Some(fragment) = wanted.fragment else { return Some(slot.lsn) };
        let chain = self.chains.get(wanted.sequence)?;
        chain.fragments().get(usize::from(fragment)).map(|at| at.lsn)
    }

    /// Drops the bytes of messages from the end on, until no more than `share_bytes` are in memory.
    pub fn shed(&mut self, committed: Lsn, share_bytes: u64, hand: &mut Hand) -> Shed {
        if !self.has_takers() && !self.paged.ahead.is_empty() {
            self.paged.call_off(self.cursor);
        }
        let before = self.paged.paged_out;
        let mut is_over = self.resident_bytes() <= share_bytes;
        while !is_over && hand.drops_left > 0 && hand.looks_left > 0 {
            match self.index.last_held(hand.below, &mut hand.looks_left) {
                Ok(number) => {
                    hand.below = number;
                    for sequence in Index::sequences_of(number).rev().map(Sequence) {
                        is_over = self.resident_bytes() <= share_bytes;
                        if !is_over && self.page_out(committed, sequence) {
                            hand.drops_left = hand.drops_left.saturating_sub(1);
                        }
                    }
                }
                Err(on) => hand.below = on,
            }
            is_over |= hand.below == 0;
        }
        let mut paged_out = self.paged.paged_out;
        paged_out.sub(before);
        Shed { paged_out, is_over }
    }

    /// Drops the bytes of a message, if its record is committed and nobody else has them.
    pub fn page_out(&mut self, committed: Lsn, sequence: Sequence) -> bool {
        let is_hidden = self.state(sequence) == Some(SlotState::Reserved);
        !is_hidden && self.page_out_read(committed, sequence)
    }

    /// The same of one that was read from the log, which may be hidden though it is committed: a
    /// copy, until it is known whether its origin still lives.
    pub fn page_out_read(&mut self, committed: Lsn, sequence: Sequence) -> bool {
        let Self { index, chains, .. } = self;
        let Some((slot, Some(payload))) = index.get_whole(sequence) else { return false };
        let is_settled_in = match slot.state {
            SlotState::Available
            | SlotState::Acquired
            | SlotState::Counting
            | SlotState::Delayed
            | SlotState::Moving
            | SlotState::Reserved => true,
            SlotState::Settling => false,
        };
        let end = match slot.record_bytes() {
            Some(bytes) => Some(slot.lsn.plus(bytes as u64)),
            None => chains.get(sequence).map(Chain::end),
        };
        let is_on_disk = end.is_some_and(|end| end <= committed);
        let may_go = is_settled_in && is_on_disk && payload.is_unique();
        if !may_go || self.paged.ahead.contains_key(&sequence) {
            return false;
        }
        let bytes = u64::from(slot.message_bytes);
        self.index.let_go(sequence);
        self.paged.paged_out.add(PagedOut::one(bytes));
        self.paged.looked = self.paged.looked.min(sequence);
        true
    }

    fn has_takers(&self) -> bool {
        self.has_credit() || self.has_browser_credit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::Traits;
    use crate::queue::tests::{drain_to, link};

    const ALL: Lsn = Lsn(u64::MAX);
    const BYTES: u64 = 10;

    /// Messages of ten bytes, each with a record of its own, committed.
    fn queue_of(count: u64) -> Queue {
        let mut queue = Queue::new(QueueId(1));
        let traits = Traits { parts_bytes: Some(0), ..Traits::default() };
        for n in 0..count {
            queue.reserve(Sequence(n), Lsn(n * 100), bytes(n), traits);
            queue.commit(Sequence(n));
        }
        queue
    }

    fn bytes(n: u64) -> Bytes {
        Bytes::from(vec![n as u8; BYTES as usize])
    }

    fn shed(queue: &mut Queue, committed: Lsn, share_bytes: u64) -> u64 {
        let mut hand = Hand { below: u64::MAX, drops_left: 10_000, looks_left: 10_000 };
        let shed = queue.shed(committed, share_bytes, &mut hand);
        assert!(shed.is_over);
        assert_eq!(shed.paged_out.bytes, shed.paged_out.messages * BYTES);
        shed.paged_out.messages
    }

    fn read(queue: &mut Queue, window_bytes: u64) -> Vec<u64> {
        let mut wanted = Vec::new();
        queue.ask_ahead(window_bytes, &mut wanted);
        for wanted in &wanted {
            let n = wanted.sequence.0;
            let place = (wanted.lsn, wanted.record_bytes, wanted.message_bytes);
            assert_eq!(place, (Lsn(n * 100), 32 + BYTES as usize, BYTES as usize));
            let filled = queue.fill(wanted, || Some(bytes(n)));
            assert_eq!(filled, Filled::Held(SlotState::Available));
        }
        wanted.iter().map(|wanted| wanted.sequence.0).collect()
    }

    #[test]
    fn what_goes_out_last_is_paged_out_first_and_read_in_order_when_its_turn_comes() {
        let mut queue = queue_of(200);
        assert_eq!(shed(&mut queue, ALL, 50 * BYTES), 150);
        queue.attach(link(1));
        queue.add_credit(link(1), 500, true);
        assert_eq!(drain_to(&mut queue), (0..50).map(|n| (1, n)).collect::<Vec<_>>());
        assert!(queue.awaits_bytes() && queue.poll_drained().is_none(), "there is more");
        assert_eq!(read(&mut queue, 20 * BYTES), (50..70).collect::<Vec<_>>());
        assert_eq!(read(&mut queue, 20 * BYTES), [], "enough is ahead");
        // What is read for its turn stays, however short memory is.
        assert_eq!(shed(&mut queue, ALL, 0), 50, "those that the consumer has");
        assert_eq!(drain_to(&mut queue).len(), 20);
        while queue.awaits_bytes() {
            read(&mut queue, 20 * BYTES);
            drain_to(&mut queue);
        }
        assert_eq!(queue.poll_drained(), Some((link(1), 300)));
    }

    #[test]
    fn what_is_not_committed_or_in_use_or_has_no_place_stays() {
        let mut queue = queue_of(4);
        let fragments = Traits::default();
        queue.reserve(Sequence(4), Lsn(400), bytes(4), fragments);
        queue.commit(Sequence(4));
        queue.reserve(
            Sequence(5),
            Lsn(500),
            bytes(5),
            Traits { parts_bytes: Some(0), ..fragments },
        );
        let in_use = queue.message(Sequence(1)).expect("in memory").clone();
        let committed = Lsn(200 + 32 + BYTES);
        assert_eq!(shed(&mut queue, committed, 0), 2);
        let here: Vec<u64> = (0..6).filter(|n| queue.message(Sequence(*n)).is_some()).collect();
        assert_eq!(here, [1, 3, 4, 5]);
        drop(in_use);
        assert_eq!(shed(&mut queue, ALL, 0), 2);
        assert_eq!(queue.resident_bytes(), 2 * BYTES);
    }

    #[test]
    fn a_read_that_comes_late_is_believed_only_where_the_record_is() {
        let mut queue = queue_of(3);
        assert_eq!(shed(&mut queue, ALL, 0), 3);
        let mut wanted = Vec::new();
        [0, 1, 2, 0].into_iter().for_each(|n| queue.ask(Sequence(n), &mut wanted));
        assert_eq!(wanted.len(), 3, "what was asked for is not asked for again");
        queue.relocate(Sequence(0), Lsn(9000), None);
        let moved = Wanted { lsn: Lsn(9000), ..wanted[0] };
        assert_eq!(queue.fill(&wanted[0], || panic!("not looked at")), Filled::Moved(moved));
        queue.settle_from_log(Sequence(1));
        assert!(queue.archive(Sequence(1)).is_some_and(|archived| archived.was_paged_out));
        assert_eq!(queue.fill(&wanted[1], || panic!("not looked at")), Filled::Needless);
        assert_eq!(queue.fill(&wanted[2], || None), Filled::Damaged);
        assert_eq!(queue.paged_out(), PagedOut { messages: 2, bytes: 2 * BYTES });
    }

    #[test]
    fn a_lap_goes_on_where_it_was_and_ends_at_the_share() {
        let mut queue = queue_of(1000);
        let mut hand = Hand { below: u64::MAX, drops_left: 100, looks_left: 10_000 };
        let mut paged_out = 0;
        for _ in 0..100 {
            let shed = queue.shed(ALL, 300 * BYTES, &mut hand);
            paged_out += shed.paged_out.messages;
            assert!(shed.paged_out.messages < 100 + crate::limits::CHUNK_SLOTS as u64);
            if shed.is_over {
                break;
            }
            hand.drops_left = 100;
        }
        assert_eq!((paged_out, queue.resident_bytes()), (700, 300 * BYTES));
        assert!(queue.message(Sequence(299)).is_some() && queue.message(Sequence(300)).is_none());
    }
}
