//! Where the log's segments live, and who may still use what is free.
//!
//! ```text
//!   log    head                    tail                      files, by slot
//!          | seg 7 | seg 8 | seg 9 ....|                     ready:   pre-written, nobody's
//!                                                            making:  being pre-written
//!   free = room in the tail + ready segments                 max:     the disk budget
//!
//!   free   0 ......... 1 segment + set aside ...... 2 segments + set aside ............ all
//!            Packed      |       Scarce               |       Plenty
//!            settlements |  settlements wait 50 ms    |  messages are taken
//!            fill blocks |  for company               |
//! ```
//!
//! Each accepted message sets aside the bytes of its settlement in a full block. So whatever is in
//! the log can be settled, in any order: while `Scarce`, blocks that are not full eat at most one
//! segment; when `Packed`, half of one, more slowly; then a block is written only full, and full
//! blocks fit into what was set aside. The other half of the last reserved segment is for the
//! copies that recycling the head needs. Once all is settled the last block is written however full
//! it is.
//!
//! Invariants: a slot is in exactly one place (a segment, ready, released but not yet free); a slot
//! is claimed for a segment the moment its first batch opens, so that nothing that was taken can
//! lack a place later. A full file system is a smaller budget, not a failure: asked again every
//! second.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::disk::OpId;
use crate::identity::Chain;
use crate::limits::{
    PACK_WINDOW, PACK_WINDOW_LAST, RESERVE_SEGMENTS, SEGMENT_HEADER_BYTES, SETTLE_BYTES,
    SPACE_RETRY,
};
use crate::lsn::{Lsn, Slot};

/// How much room is left, and so how settlements are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Messages are taken.
    Plenty,
    /// Messages are not taken; settlements wait up to 50 ms for company.
    Scarce,
    /// Settlements fill blocks; those that are alone wait for a second, and in the end for ever.
    Packed,
}

/// A segment of the live log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) number: u64,
    pub(crate) slot: Slot,
    /// Known once its first batch is sealed.
    pub(crate) chain_before: Option<Chain>,
    /// Its bytes that are no record's, as far as they were seen.
    pub(crate) padding_bytes: u64,
}

impl Segment {
    /// One without batches.
    pub(crate) fn new(number: u64, slot: Slot, chain_before: Option<Chain>) -> Self {
        Self { number, slot, chain_before, padding_bytes: SEGMENT_HEADER_BYTES }
    }
}

#[derive(Debug)]
pub(crate) struct Space {
    segment_bytes: u64,
    segments_max: u32,
    /// Head first, tail last, without gaps.
    segments: VecDeque<Segment>,
    /// Of all of them.
    padding_bytes: u64,
    ready: VecDeque<Slot>,
    /// Ready slots that recovery found to name a segment which is still to be opened.
    named: Vec<(u64, Slot)>,
    /// Files that are there but not known to be written through.
    remake: VecDeque<Slot>,
    making: Option<Making>,
    /// Numbers below are taken.
    slot_next: u32,
    /// How many files there are, those to be remade included.
    files: u32,
    /// How many slots the superblock still has to let go, or to say that they are made.
    releasing: u32,
    retry_at: Option<Instant>,
    /// The last file that was wanted found no space, and it is wanted still.
    lacks_space: bool,
    unsettled: u64,
    /// Bytes that an append that was put off needs beyond the rest.
    demand: u64,
    /// The same of a copy in several segments.
    copy_demand: u64,
    /// What lives in the head is being copied forward: a segment will be free.
    compacting: bool,
}

/// A segment file that is being pre-written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Making {
    pub(crate) id: OpId,
    pub(crate) slot: Slot,
    pub(crate) since: Instant,
}

/// What an append wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Makes state bigger: leaves the reserve alone, and what is set aside.
    Grow {
        /// Settlements that it will need.
        settlements: u64,
    },
    /// A settlement: takes what there is.
    Settle,
    /// Makes state smaller in another way, or moves it: leaves what is set aside.
    Shrink,
}

impl Space {
    pub(crate) fn new(
        segment_bytes: u64,
        segments_max: u32,
        segments: VecDeque<Segment>,
        others: Files,
    ) -> Self {
        let known = segments.iter().map(|segment| segment.slot);
        let known = known.chain(others.ready.iter().chain(&others.remake).copied());
        let (mut files, mut slot_next) = (0, 0);
        for slot in known {
            files += 1;
            slot_next = slot_next.max(slot.0 + 1);
        }
        Self {
            segment_bytes,
            segments_max,
            padding_bytes: segments.iter().map(|segment| segment.padding_bytes).sum(),
            segments,
            ready: others.ready.into(),
            named: others.named,
            remake: others.remake.into(),
            making: None,
            slot_next,
            files,
            releasing: 0,
            retry_at: None,
            lacks_space: false,
            unsettled: 0,
            demand: 0,
            copy_demand: 0,
            compacting: false,
        }
    }

    pub(crate) fn tail(&self) -> Option<&Segment> {
        self.segments.back()
    }

    pub(crate) fn head(&self) -> Option<&Segment> {
        self.segments.front()
    }

    /// The segment after the head, if its place in the chain is known.
    pub(crate) fn after_head(&self) -> Option<(u64, Chain)> {
        let next = self.segments.get(1)?;
        next.chain_before.map(|chain| (next.number, chain))
    }

    /// The segments from the one that holds `lsn` on; none if the log begins after it.
    pub(crate) fn segments_from(&self, lsn: Lsn) -> Vec<Segment> {
        let number = lsn.0 / self.segment_bytes;
        // A place at the very end of a segment is that segment's.
        let number = if lsn.0.is_multiple_of(self.segment_bytes) { number - 1 } else { number };
        let from = self.segments.iter().filter(|segment| segment.number >= number);
        let from: Vec<Segment> = from.copied().collect();
        if from.first().is_some_and(|first| first.number == number) { from } else { Vec::new() }
    }

    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    pub(crate) fn first_lsn(&self, number: u64) -> Lsn {
        Lsn(number * self.segment_bytes + SEGMENT_HEADER_BYTES)
    }

    fn usable_bytes(&self) -> u64 {
        self.segment_bytes - SEGMENT_HEADER_BYTES
    }

    /// Bytes between `next`, where the next batch may begin, and the end of the tail.
    pub(crate) fn tail_room(&self, next: Lsn) -> u64 {
        self.tail().map_or(0, |tail| Lsn((tail.number + 1) * self.segment_bytes).since(next))
    }

    fn set_aside(&self, settlements: u64) -> u64 {
        (self.unsettled + settlements).saturating_mul(SETTLE_BYTES)
    }

    pub(crate) fn free_bytes(&self, next: Lsn) -> u64 {
        self.tail_room(next) + self.ready.len() as u64 * self.usable_bytes()
    }

    pub(crate) fn room(&self, next: Lsn) -> Room {
        self.room_in(self.free_bytes(next))
    }

    /// What room so many free bytes are.
    pub(crate) fn room_in(&self, free_bytes: u64) -> Room {
        let free = free_bytes.saturating_sub(self.set_aside(0));
        if free >= u64::from(RESERVE_SEGMENTS) * self.usable_bytes() {
            Room::Plenty
        } else if free >= self.usable_bytes() {
            Room::Scarce
        } else {
            Room::Packed
        }
    }

    /// Bytes that messages may still use in the tail, with what is set aside for them.
    pub(crate) fn spare_bytes(&self, next: Lsn) -> u64 {
        let reserve = u64::from(RESERVE_SEGMENTS);
        if (self.ready.len() as u64) < reserve {
            return 0;
        }
        let kept = reserve * self.usable_bytes() + self.set_aside(0);
        self.free_bytes(next).saturating_sub(kept).min(self.tail_room(next))
    }

    /// How long a block that is not full has to wait. None: until it is full.
    ///
    /// Half of the last segment is kept for copies and for full blocks. Where everything is settled
    /// nothing more has to be kept: that last block makes the whole log free.
    pub(crate) fn patience(&self, next: Lsn) -> Option<Duration> {
        match self.room(next) {
            Room::Plenty => Some(Duration::ZERO),
            Room::Scarce => Some(PACK_WINDOW),
            Room::Packed => {
                let kept = self.set_aside(0) + self.usable_bytes() / 2;
                let may = self.unsettled == 0 || self.free_bytes(next) >= kept;
                may.then_some(PACK_WINDOW_LAST)
            }
        }
    }

    /// Whether batches of these sizes (whole blocks, in order) may be appended behind `next`.
    pub(crate) fn admit(
        &mut self,
        claim: Claim,
        next: Lsn,
        batches: impl Iterator<Item = u64>,
    ) -> bool {
        let (mut room, mut slots) = (self.tail_room(next), 0);
        for batch in batches {
            if batch > room {
                slots += 1;
                room = self.usable_bytes();
            }
            assert!(batch <= room, "a batch of {batch} bytes in a segment");
            room -= batch;
        }
        // What a batch leaves over at the end of a segment is as lost as what it takes.
        let ready = (self.ready.len() as u64).checked_sub(slots);
        let leaves = |bytes| ready.is_some_and(|left| room + left * self.usable_bytes() >= bytes);
        match claim {
            Claim::Settle => ready.is_some(),
            Claim::Shrink => {
                let fits = leaves(self.set_aside(0));
                // So does the copy of one, until it has what it needs or the head goes.
                if !fits || slots > 1 {
                    self.copy_demand = if fits { 0 } else { slots * self.usable_bytes() };
                }
                fits
            }
            Claim::Grow { settlements } => {
                let reserve = u64::from(RESERVE_SEGMENTS);
                let kept = reserve * self.usable_bytes() + self.set_aside(settlements);
                let fits = ready.is_some_and(|left| left >= reserve) && leaves(kept);
                // Segments are made ahead for what is usual; a large message says what it needs.
                self.demand = if fits { 0 } else { slots * self.usable_bytes() };
                fits
            }
        }
    }

    /// Whether more room is on its way. What a compaction itself needs does not come from it.
    pub(crate) fn expects_room(&self, claim: Claim) -> bool {
        let can_make = self.files < self.segments_max || !self.remake.is_empty();
        let is_copied = self.compacting && claim != Claim::Shrink;
        self.releasing > 0 || is_copied || (can_make && self.retry_at.is_none())
    }

    pub(crate) fn set_compacting(&mut self, compacting: bool) {
        self.compacting = compacting;
    }

    /// The segment of this number, if it is between head and tail.
    pub(crate) fn segment(&self, number: u64) -> Option<&Segment> {
        let at = number.checked_sub(self.head()?.number)?;
        self.segments.get(usize::try_from(at).ok()?)
    }

    /// Takes a ready slot for the next segment: the one that names it already, if there is one. A
    /// follower is sent again, in the same term, what a crash tore from it: two files that named
    /// the same segment could not be told apart.
    pub(crate) fn open_segment(&mut self, number: u64) -> Slot {
        if let Some(tail) = self.tail() {
            assert_eq!(tail.number + 1, number, "segments follow each other");
        }
        let named = self.named.iter().rev().find(|(named, _)| *named == number);
        let named = named.and_then(|(_, slot)| self.ready.iter().position(|ready| ready == slot));
        let slot = self.ready.remove(named.unwrap_or(0)).expect("admitted only with a slot");
        self.named.retain(|(_, other)| *other != slot);
        let segment = Segment::new(number, slot, None);
        self.padding_bytes += segment.padding_bytes;
        self.segments.push_back(segment);
        slot
    }

    pub(crate) fn set_tail_chain(&mut self, chain: Chain) {
        let tail = self.segments.back_mut().expect("its first batch is being sealed");
        assert!(tail.chain_before.is_none(), "a segment has one first batch");
        tail.chain_before = Some(chain);
    }

    /// A batch in the tail was sealed with so much that is no record's.
    pub(crate) fn count_padding(&mut self, bytes: u64) {
        self.segments.back_mut().expect("a batch is sealed in the tail").padding_bytes += bytes;
        self.padding_bytes += bytes;
    }

    pub(crate) fn padding_bytes(&self) -> u64 {
        self.padding_bytes
    }

    /// Gives up the head; its slot is free once the superblock says so, by [`Self::release`].
    pub(crate) fn drop_head(&mut self) -> Slot {
        assert!(self.segments.len() > 1, "the tail is never recycled");
        self.releasing += 1;
        self.copy_demand = 0;
        let head = self.segments.pop_front().expect("more than one");
        self.padding_bytes -= head.padding_bytes;
        head.slot
    }

    pub(crate) fn release(&mut self, slot: Slot) {
        assert!(self.releasing > 0 && !self.ready.contains(&slot));
        self.releasing -= 1;
        self.ready.push_back(slot);
    }

    /// Which file to pre-write next, if one is wanted now.
    pub(crate) fn poll_make(&mut self, id: OpId, now: Instant) -> Option<Slot> {
        if self.making.is_some() || self.retry_at.is_some_and(|at| now < at) {
            return None;
        }
        self.retry_at = None;
        let coming = self.ready.len() as u64 + u64::from(self.releasing);
        let wanted = (u64::from(RESERVE_SEGMENTS) + 1) * self.usable_bytes()
            + self.set_aside(0)
            + self.demand
            + self.copy_demand;
        if coming * self.usable_bytes() >= wanted {
            self.lacks_space = false;
            return None;
        }
        let slot = match self.remake.front() {
            Some(slot) => *slot,
            None if self.files < self.segments_max => Slot(self.slot_next),
            None => return None,
        };
        self.making = Some(Making { id, slot, since: now });
        Some(slot)
    }

    pub(crate) fn making(&self) -> Option<Making> {
        self.making
    }

    /// The slot is written through; it is ready when the superblock says so, by [`Self::release`].
    pub(crate) fn handle_made(&mut self) -> Slot {
        let Making { slot, .. } = self.making.take().expect("one was being made");
        self.lacks_space = false;
        if self.remake.front() == Some(&slot) {
            self.remake.pop_front();
        } else {
            self.files += 1;
            self.slot_next = slot.0 + 1;
        }
        self.releasing += 1;
        slot
    }

    pub(crate) fn handle_no_space(&mut self, now: Instant) {
        self.making = None;
        self.lacks_space = true;
        self.retry_at = Some(now + SPACE_RETRY);
    }

    pub(crate) fn lacks_space(&self) -> bool {
        self.lacks_space
    }

    pub(crate) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    pub(crate) fn count_accepted(&mut self, messages: u64) {
        self.unsettled += messages;
    }

    pub(crate) fn count_settled(&mut self) {
        self.unsettled = self.unsettled.saturating_sub(1);
    }

    pub(crate) fn set_unsettled(&mut self, messages: u64) {
        self.unsettled = messages;
    }

    pub(crate) fn unsettled(&self) -> u64 {
        self.unsettled
    }

    pub(crate) fn segments_len(&self) -> usize {
        self.segments.len()
    }

    /// Every file's number is below.
    pub(crate) fn slots(&self) -> u32 {
        self.slot_next
    }

    pub(crate) fn files(&self) -> u32 {
        self.files
    }
}

/// Files that recovery found outside the live log.
#[derive(Debug, Default)]
pub(crate) struct Files {
    /// Written through.
    pub(crate) ready: Vec<Slot>,
    /// Those of them that name a segment behind the end of the log; the latest term last.
    pub(crate) named: Vec<(u64, Slot)>,
    /// Nothing is known about them: they are pre-written again before they are used.
    pub(crate) remake: Vec<Slot>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 65536;
    const START: Lsn = Lsn(4096);

    fn space(slots: u32, segments_max: u32) -> Space {
        let files = Files { ready: (0..slots).map(Slot).collect(), ..Files::default() };
        Space::new(S, segments_max, VecDeque::new(), files)
    }

    #[test]
    fn messages_leave_the_reserve_and_settlements_may_use_it() {
        let mut space = space(3, 3);
        let grow = Claim::Grow { settlements: 1 };
        assert!(space.admit(grow, START, [4096].into_iter()));
        space.open_segment(0);
        let at_end = Lsn(S);
        assert!(!space.admit(grow, at_end, [4096].into_iter()));
        assert!(space.admit(Claim::Shrink, at_end, [4096].into_iter()));
        assert_eq!(space.room(at_end), Room::Plenty);
        space.count_accepted(1);
        assert_eq!(space.room(at_end), Room::Scarce);
    }

    #[test]
    fn what_is_set_aside_is_not_given_to_messages() {
        let mut space = space(4, 4);
        space.open_segment(0);
        space.set_unsettled((S - 4096) / SETTLE_BYTES);
        let grow = Claim::Grow { settlements: 1 };
        assert!(!space.admit(grow, Lsn(S), [4096].into_iter()));
        space.set_unsettled(0);
        assert!(space.admit(grow, Lsn(S), [4096].into_iter()));
    }

    #[test]
    fn what_is_set_aside_is_for_settlements_alone() {
        let mut space = space(3, 3);
        space.open_segment(0);
        space.set_unsettled(2 * (S - 4096) / SETTLE_BYTES);
        assert!(space.admit(Claim::Shrink, Lsn(S - 8192), [4096].into_iter()));
        assert!(!space.admit(Claim::Shrink, Lsn(S), [4096].into_iter()));
        assert!(space.admit(Claim::Settle, Lsn(S), [4096].into_iter()));
    }

    /// A long fragment goes into the next segment whole: the rest of this one is lost with it.
    #[test]
    fn what_is_left_over_at_a_segments_end_is_no_room_for_settlements() {
        let left_over = 13 * 4096;
        let (fits, goes_on) = ([left_over], [left_over + 4096]);
        let next = Lsn(S - left_over);
        let claims = [(2, Claim::Shrink), (4, Claim::Grow { settlements: 1 })];
        for (slots, claim) in claims {
            let mut space = space(slots, slots);
            space.open_segment(0);
            assert!(space.admit(claim, next, goes_on.into_iter()));
            space.set_unsettled(760);
            assert!(!space.admit(claim, next, goes_on.into_iter()), "{claim:?}");
            assert!(space.admit(claim, next, fits.into_iter()), "{claim:?}");
            assert!(space.admit(Claim::Settle, next, goes_on.into_iter()));
        }
    }

    #[test]
    fn a_full_file_system_is_asked_again_and_is_no_failure() {
        let now = start();
        let mut space = space(2, 8);
        assert_eq!(space.poll_make(OpId(1), now), Some(Slot(2)));
        assert_eq!(space.poll_make(OpId(2), now), None, "one at a time");
        space.handle_no_space(now);
        assert!(!space.expects_room(Claim::Settle));
        assert_eq!(space.poll_make(OpId(2), now), None);
        let later = now + SPACE_RETRY;
        assert_eq!(space.poll_make(OpId(2), later), Some(Slot(2)));
        let made = space.handle_made();
        assert_eq!(space.poll_make(OpId(3), later), None, "the reserve and a spare are there");
        assert_eq!(space.free_bytes(START), 2 * (S - 4096), "not before the superblock knows");
        space.release(made);
        assert_eq!(space.free_bytes(START), 3 * (S - 4096));
    }

    #[test]
    fn files_of_which_nothing_is_known_are_made_again() {
        let now = start();
        let files = Files {
            ready: (0..3).map(Slot).collect(),
            remake: vec![Slot(3), Slot(4)],
            ..Files::default()
        };
        let mut space = Space::new(S, 9, VecDeque::new(), files);
        space.open_segment(0);
        assert_eq!(space.poll_make(OpId(1), now), Some(Slot(3)));
        let _made = space.handle_made();
        assert_eq!((space.files(), space.slot_next), (5, 5));
    }

    #[expect(clippy::disallowed_methods, reason = "a test needs some moment to begin at")]
    fn start() -> Instant {
        Instant::now()
    }
}
