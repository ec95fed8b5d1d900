//! Which messages were here before: the ids that producers give them, and until when they count.
//!
//! ```text
//!   application property _AMQ_DUPL_ID        the message's record            what is remembered
//!   string, binary, ulong or uuid     ─▶     part 1: | kind u8 | bytes |  ─▶ sequence ─▶ id
//!                                                                            id ─▶ sequence
//!   when the head segment goes: NextSequence of the queue, its payload
//!     (sequence u64, length u16, id)*        little-endian, ids as in the part
//! ```
//! An id is kept whole: two messages are never taken for one because something of theirs collides,
//! since the second would be lost. Kinds never equal each other. An address remembers its newest
//! ids by the sequences of their messages, whether these are there still, are consumed, or were
//! moved elsewhere. What is newest does not depend on the order in which the log tells it, so
//! recovery comes to the same ids from messages and from what was carried forward.
//!
//! Invariants: an id is remembered if and only if its message is in the log (a refused one never
//! is); each id once, with the newest sequence; where its newest record stands follows from the log
//! alone, and so does, in the end, which were forgotten (`apply/head.rs`), so that a
//! backup's segments go as the live's do. All ids of a shard together have a bound
//! in bytes, which count as memory: no consumer can make room there, so at the bound nothing is
//! refused, but queues that hold more than an equal share forget their oldest ids. A record of a
//! carried id that cannot be read is damage.

use std::borrow::Borrow;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::Arc;

use amqp::message::{MessageId, Survey, id_at};
use journal::{Lsn, QueueId, Sequence};

use crate::flat_map::FlatMap;
use crate::limits::{DUPLICATE_ID_BYTES, DUPLICATE_ID_BYTES_MAX};

/// The application property, by Artemis's name.
const PROPERTY: &str = "_AMQ_DUPL_ID";
/// What stands before each id that is carried forward: sequence and length.
const CARRIED_HEADER_BYTES: usize = 10;

/// Where in a message its duplicate id begins, if it has one. Zero is where the message begins.
#[inline]
pub fn find(survey: &Survey, message: &[u8]) -> Option<NonZeroU32> {
    let at = survey.application_property(message, PROPERTY)?;
    u32::try_from(at).ok().and_then(NonZeroU32::new)
}

/// What makes a repeated message known as such.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DuplicateId(Arc<[u8]>);

impl DuplicateId {
    /// Reads the id that begins at `at`, as [`find`] has found it.
    ///
    /// # Errors
    /// A sentence that says why it cannot be one.
    pub fn read(message: &[u8], at: NonZeroU32) -> Result<Self, String> {
        let wrong = |what: &str| Err(format!("{PROPERTY} {what}"));
        let Ok(id) = id_at(message, at.get() as usize) else {
            return wrong("must be a string, binary, uuid or ulong");
        };
        let number;
        let (kind, bytes) = match &id {
            MessageId::Ulong(id) => {
                number = id.to_be_bytes();
                (0, &number[..])
            }
            MessageId::Uuid(id) => (1, &id[..]),
            MessageId::Binary(id) => (2, *id),
            MessageId::String(id) => (3, id.as_bytes()),
        };
        if bytes.is_empty() {
            return wrong("is empty: all such messages but the first would be lost");
        }
        if bytes.len() > DUPLICATE_ID_BYTES_MAX {
            let len = bytes.len();
            return wrong(&format!("has {len} bytes; at most {DUPLICATE_ID_BYTES_MAX} are kept"));
        }
        Ok(Self(std::iter::once(kind).chain(bytes.iter().copied()).collect()))
    }

    /// The id that stands in a record.
    pub fn from_record(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    /// The id as it stands in a record.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    fn memory_bytes(&self) -> u64 {
        DUPLICATE_ID_BYTES + self.0.len() as u64
    }

    fn carried_bytes(&self) -> usize {
        CARRIED_HEADER_BYTES + self.0.len()
    }
}

impl Borrow<[u8]> for DuplicateId {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

/// What a record tells of an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told<'a> {
    /// Its message's; of one that came in parts, the next that was given when it ended.
    pub sequence: Sequence,
    /// The id as it stands in the record.
    pub id: &'a [u8],
    /// The record's segment.
    pub segment: u64,
    /// The newest segment with a record that names it: this one, mostly.
    pub named: u64,
    /// Where the message's record ends, if it may not be durable yet.
    pub end: Lsn,
}

/// How much a shard may remember.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes of all ids.
    pub bytes_max: u64,
    /// Ids of one queue, as long as nobody knows its settings.
    pub count_max: u32,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { bytes_max: u64::MAX, count_max: u32::MAX }
    }
}

/// Its place among the ids of its queue, the oldest first: the sequence of its message, or the next
/// one when a message that came in parts had come to its end; and which of those with that.
pub type Rank = (Sequence, u32);

/// An id, and the segment with the newest record that tells it.
#[derive(Debug)]
struct Known {
    id: DuplicateId,
    segment: u64,
    end: Lsn,
}

/// What one queue remembers.
#[derive(Debug, Default)]
struct Ids {
    by_rank: BTreeMap<Rank, Known>,
    by_id: BTreeMap<DuplicateId, Rank>,
    bytes: u64,
    /// How many stand in which segment.
    segments: BTreeMap<u64, u32>,
    /// The newest segment that names an id with a lower rank than is known, if that is further on:
    /// a copy of a message that came in parts, for the most part. Few have one.
    named: BTreeMap<Rank, u64>,
    /// How far the last record went that carries ids of this segment forward.
    carried_to: Option<(u64, Rank)>,
}

impl Ids {
    /// Where the oldest record stands that is needed, if there is any.
    fn place(&self) -> Option<u64> {
        self.segments.first_key_value().map(|(segment, _)| *segment)
    }

    fn stands_in(&mut self, segment: u64) {
        *self.segments.entry(segment).or_default() += 1;
    }

    fn stands_no_more_in(&mut self, segment: u64) {
        let Entry::Occupied(mut count) = self.segments.entry(segment) else {
            panic!("an id stood in segment {segment}, where there is none");
        };
        *count.get_mut() -= 1;
        if *count.get() == 0 {
            count.remove();
        }
    }

    /// What the ids take in records that carry them.
    fn carried_bytes(&self) -> u64 {
        let count = self.by_rank.len() as u64;
        self.bytes - count * DUPLICATE_ID_BYTES + count * CARRIED_HEADER_BYTES as u64
    }

    /// What a record carries, of the ids from this one on that stand up to this segment.
    fn piece(&self, from: Rank, segment: u64, bytes_max: usize) -> Piece {
        let mut payload = Vec::new();
        for (rank, Known { id, segment: at, .. }) in self.by_rank.range(from..) {
            if *at > segment {
                continue;
            }
            if payload.len() + id.carried_bytes() > bytes_max {
                return Piece { payload, ends_before: Some(*rank) };
            }
            payload.extend_from_slice(&rank.0.0.to_le_bytes());
            let len = u16::try_from(id.0.len()).expect("bounded when it was read");
            payload.extend_from_slice(&len.to_le_bytes());
            payload.extend_from_slice(&id.0);
        }
        Piece { payload, ends_before: None }
    }

    /// From now on its newest record stands in this segment, unless it does further on.
    fn move_to(&mut self, rank: Rank, segment: u64) {
        if let Some(known) = self.by_rank.get_mut(&rank)
            && segment > known.segment
        {
            let before = std::mem::replace(&mut known.segment, segment);
            self.stands_no_more_in(before);
            self.stands_in(segment);
        }
    }

    /// A record in this segment names it.
    fn name_in(&mut self, rank: Rank, segment: u64) {
        if self.by_rank.get(&rank).is_some_and(|known| segment > known.segment) {
            let named = self.named.entry(rank).or_default();
            *named = segment.max(*named);
        }
    }

    fn learn(&mut self, told: Told<'_>) {
        let Told { sequence, id, segment, named, end } = told;
        let mut named = named;
        match self.by_id.get(id).copied() {
            Some(rank) if rank.0 == sequence => {
                self.move_to(rank, segment);
                return self.name_in(rank, named);
            }
            Some(rank) if rank.0 > sequence => return self.name_in(rank, named),
            Some(rank) => {
                named = named.max(self.named.get(&rank).copied().unwrap_or_default());
                self.forget(rank);
            }
            None => {}
        }
        // Nearly always it is the only one.
        let equals = self.by_rank.range((sequence, 0)..=(sequence, u32::MAX));
        let rank = (sequence, equals.last().map_or(0, |((_, last), _)| last + 1));
        let id = DuplicateId::from_record(id);
        self.bytes += id.memory_bytes();
        self.stands_in(segment);
        self.by_id.insert(id.clone(), rank);
        self.by_rank.insert(rank, Known { id, segment, end });
        if named > segment {
            self.named.insert(rank, named);
        }
    }

    fn forget(&mut self, rank: Rank) {
        self.named.remove(&rank);
        if let Some(known) = self.by_rank.remove(&rank) {
            self.bytes -= known.id.memory_bytes();
            self.by_id.remove(&known.id);
            self.stands_no_more_in(known.segment);
        }
    }

    /// Of the first from there on nothing counts before this segment; where to go on.
    fn forget_before(&mut self, segment: u64, from: Rank) -> Option<Rank> {
        let (rank, known) = self.by_rank.range(from..).next()?;
        let (rank, is_old) = (*rank, known.segment < segment);
        match self.named.get(&rank).copied().filter(|named| *named >= segment) {
            Some(named) if is_old => self.move_to(rank, named),
            None if is_old => self.forget(rank),
            Some(_) | None => {}
        }
        Some((rank.0, rank.1 + 1))
    }

    /// Forgets the oldest until so many are left, of so many bytes; how many went.
    fn trim(&mut self, count_max: usize, bytes_max: u64) -> u64 {
        let mut forgotten = 0;
        while self.by_rank.len() > count_max || self.bytes > bytes_max {
            let Some((rank, _)) = self.by_rank.first_key_value() else { break };
            self.forget(*rank);
            forgotten += 1;
        }
        forgotten
    }
}

/// Ids for one record.
struct Piece {
    payload: Vec<u8>,
    /// The first that had no room.
    ends_before: Option<Rank>,
}

/// What a shard's queues remember.
#[derive(Debug, Default)]
pub struct Duplicates {
    bounds: Bounds,
    /// Those that remember anything.
    queues: FlatMap<QueueId, Ids>,
    /// The same by [`Ids::place`].
    by_segment: BTreeSet<(u64, QueueId)>,
    bytes: u64,
    /// What it would take to carry them all forward.
    carried_bytes: u64,
    forgotten_early: u64,
}

impl Duplicates {
    /// Remembers nothing yet.
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, ..Self::default() }
    }

    /// Ids that a queue may remember whose settings are not known.
    pub fn count_max(&self) -> u32 {
        self.bounds.count_max
    }

    /// What the ids take in memory.
    #[inline]
    pub fn memory_bytes(&self) -> u64 {
        self.bytes
    }

    /// What they take in the log when all are carried forward.
    pub fn carried_bytes(&self) -> u64 {
        self.carried_bytes
    }

    /// How many a queue remembers.
    pub fn count(&self, queue: QueueId) -> u64 {
        self.queues.get(queue).map_or(0, |ids| ids.by_rank.len() as u64)
    }

    /// The sequence of the oldest that a queue remembers: of older messages it has forgotten the
    /// ids, if they had any.
    pub fn oldest(&self, queue: QueueId) -> Option<Sequence> {
        let ids = self.queues.get(queue)?;
        ids.by_rank.first_key_value().map(|((sequence, _), _)| *sequence)
    }

    /// Ids that went because all together had reached their bound.
    pub fn forgotten_early(&self) -> u64 {
        self.forgotten_early
    }

    /// What is known of a queue's ids, from this rank on.
    pub fn told_from(&self, queue: QueueId, from: Rank) -> impl Iterator<Item = (Rank, Told<'_>)> {
        let ids = self.queues.get(queue);
        let known = ids.into_iter().flat_map(move |ids| ids.by_rank.range(from..));
        known.map(move |(rank, known)| {
            let Known { id, segment, end } = known;
            let named = ids.and_then(|ids| ids.named.get(rank)).copied();
            let (sequence, id, segment, end) = (rank.0, id.as_bytes(), *segment, *end);
            let named = named.unwrap_or_default().max(segment);
            (*rank, Told { sequence, id, segment, named, end })
        })
    }

    /// Where the record of the message with this id ends, if that was here; or some place before
    /// that, if it is durable.
    pub fn known(&self, queue: QueueId, id: &DuplicateId) -> Option<Lsn> {
        let ids = self.queues.get(queue)?;
        ids.by_rank.get(ids.by_id.get(id)?).map(|known| known.end)
    }

    /// A record in this segment tells the id of a message; the queue remembers so many at most.
    pub fn remember(&mut self, queue: QueueId, told: Told<'_>, count_max: u32) {
        self.change(queue, |ids| {
            ids.learn(told);
            ids.trim(count_max as usize, u64::MAX);
        });
        if self.bytes > self.bounds.bytes_max {
            self.make_room(queue);
        }
    }

    /// A queue remembers so many and no more.
    pub fn limit(&mut self, queue: QueueId, count_max: u32) {
        if self.count(queue) > u64::from(count_max) {
            self.change(queue, |ids| ids.trim(count_max as usize, u64::MAX));
        }
    }

    /// A queue was deleted.
    pub fn forget_queue(&mut self, queue: QueueId) {
        self.limit(queue, 0);
    }

    /// Looks at a queue's first id from this rank on: if no record in this segment or behind it
    /// names that, it is no longer remembered. Gives where to go on; none: that was the last.
    pub fn forget_before(&mut self, queue: QueueId, segment: u64, from: Rank) -> Option<Rank> {
        self.change(queue, |ids| ids.forget_before(segment, from))
    }

    /// Whether a queue has ids whose newest record stands before this segment.
    pub fn stands_before(&self, queue: QueueId, segment: u64) -> bool {
        self.queues.get(queue).and_then(Ids::place).is_some_and(|place| place < segment)
    }

    /// Queues with ids whose newest record stands in this segment or before it.
    pub fn queues_up_to(&self, segment: u64) -> impl Iterator<Item = QueueId> {
        self.by_segment.range(..(segment + 1, QueueId(0))).map(|(_, queue)| *queue)
    }

    /// A queue's ids that stand in this segment or before it, for a record that carries them
    /// forward; no more than so many bytes. Empty if there are none. It goes on where the last one
    /// ended, and looks again from the first before it says that there are none: a record may not
    /// have been appended.
    pub fn carry(&mut self, queue: QueueId, segment: u64, bytes_max: usize) -> Vec<u8> {
        let Some(ids) = self.queues.get(queue) else { return Vec::new() };
        let begun = ids.carried_to.filter(|(of, _)| *of == segment);
        let Piece { payload, ends_before } = match begun {
            None => ids.piece((Sequence(0), 0), segment, bytes_max),
            Some((_, from)) => {
                let piece = ids.piece(from, segment, bytes_max);
                let is_over = piece.payload.is_empty();
                if is_over { ids.piece((Sequence(0), 0), segment, bytes_max) } else { piece }
            }
        };
        if let Some(ids) = self.queues.get_mut(queue) {
            ids.carried_to = ends_before.map(|next| (segment, next));
        }
        payload
    }

    /// Forgets the oldest of whoever has more than an equal share of so many bytes, if all together
    /// have more than that.
    pub fn shed(&mut self, bytes_max: u64) {
        if self.bytes <= bytes_max {
            return;
        }
        let share = bytes_max / self.queues.len().max(1) as u64;
        let all: Vec<QueueId> = self.queues.keys().collect();
        for queue in all {
            self.forgotten_early += self.change(queue, |ids| ids.trim(usize::MAX, share));
        }
    }

    /// The one that has just got more gives first, and only as much as is needed. If it has no more
    /// than its share, somebody else has, and all give what is beyond theirs.
    #[cold]
    fn make_room(&mut self, queue: QueueId) {
        let bytes_max = self.bounds.bytes_max;
        let share = bytes_max / self.queues.len().max(1) as u64;
        let excess = self.bytes - bytes_max;
        self.forgotten_early += self.change(queue, |ids| {
            let enough = ids.bytes.saturating_sub(excess);
            ids.trim(usize::MAX, enough.max(share))
        });
        self.shed(bytes_max);
    }

    /// Changes what a queue remembers, and what is known of that here. A queue that remembers
    /// nothing is none of ours.
    fn change<T>(&mut self, queue: QueueId, change: impl FnOnce(&mut Ids) -> T) -> T {
        let ids = self.queues.get_or_insert_with(queue, Ids::default);
        let (place, bytes, carried) = (ids.place(), ids.bytes, ids.carried_bytes());
        let changed = change(ids);
        self.bytes = self.bytes - bytes + ids.bytes;
        self.carried_bytes = self.carried_bytes - carried + ids.carried_bytes();
        let now = ids.place();
        if now != place {
            if let Some(segment) = place {
                self.by_segment.remove(&(segment, queue));
            }
            if let Some(segment) = now {
                self.by_segment.insert((segment, queue));
            }
        }
        if now.is_none() {
            self.queues.remove(queue);
        }
        changed
    }
}

/// The ids in the payload of a record that carries them.
pub fn carried(
    payload: &[u8],
    segment: u64,
) -> impl Iterator<Item = Result<Told<'_>, &'static str>> {
    let mut rest = payload;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let told = read_carried(&mut rest, segment);
        if told.is_none() {
            rest = &[];
        }
        Some(told.ok_or("its list of duplicate ids ends in the middle"))
    })
}

fn read_carried<'a>(rest: &mut &'a [u8], segment: u64) -> Option<Told<'a>> {
    let (sequence, after) = rest.split_first_chunk()?;
    let (len, after) = after.split_first_chunk()?;
    let (id, after) = after.split_at_checked(usize::from(u16::from_le_bytes(*len)))?;
    *rest = after;
    let sequence = Sequence(u64::from_le_bytes(*sequence));
    Some(Told { sequence, id, segment, named: segment, end: Lsn::ZERO })
}

#[cfg(test)]
mod tests {
    use super::*;

    const Q: QueueId = QueueId(1);

    fn told(sequence: u64, id: &[u8], segment: u64) -> Told<'_> {
        Told { sequence: Sequence(sequence), id, segment, named: segment, end: Lsn::ZERO }
    }

    fn knows(duplicates: &Duplicates, queue: QueueId, id: &[u8]) -> bool {
        duplicates.known(queue, &DuplicateId(id.into())).is_some()
    }

    /// What is counted is what there is.
    fn count(duplicates: &Duplicates) {
        let all = || duplicates.queues.values();
        assert_eq!(duplicates.bytes, all().map(|ids| ids.bytes).sum::<u64>());
        assert_eq!(duplicates.carried_bytes, all().map(Ids::carried_bytes).sum::<u64>());
        assert_eq!(duplicates.by_segment.len(), duplicates.queues.len());
        for ids in all() {
            let known = || ids.by_rank.values();
            assert_eq!(ids.bytes, known().map(|known| known.id.memory_bytes()).sum::<u64>());
            assert_eq!(ids.by_id.len(), ids.by_rank.len());
            assert_eq!(ids.segments.values().sum::<u32>() as usize, ids.by_rank.len());
            assert_eq!(ids.place(), known().map(|known| known.segment).min());
        }
    }

    #[test]
    fn the_newest_are_remembered_in_whatever_order_they_are_told() {
        let ids: Vec<[u8; 2]> = (0..20).map(|n| [3, n]).collect();
        for turn in 0..20 {
            let mut duplicates = Duplicates::default();
            for at in 0..20 {
                let n = (at * 7 + turn) % 20;
                duplicates.remember(Q, told(n as u64, &ids[n], 0), 8);
                count(&duplicates);
            }
            for (n, id) in ids.iter().enumerate() {
                assert_eq!(knows(&duplicates, Q, id), n >= 12, "{n} in turn {turn}");
            }
        }
    }

    #[test]
    fn told_twice_an_id_is_one_and_a_newer_message_with_it_counts() {
        let mut duplicates = Duplicates::default();
        duplicates.remember(Q, told(1, b"a", 0), 2);
        duplicates.remember(Q, told(1, b"a", 3), 2);
        assert_eq!((duplicates.count(Q), duplicates.memory_bytes()), (1, DUPLICATE_ID_BYTES + 1));
        duplicates.remember(Q, told(5, b"a", 4), 2);
        duplicates.remember(Q, told(3, b"b", 4), 2);
        duplicates.remember(Q, told(6, b"c", 4), 2);
        assert!(knows(&duplicates, Q, b"a") && !knows(&duplicates, Q, b"b"));
        assert!(!knows(&duplicates, QueueId(2), b"a"));
        count(&duplicates);
        duplicates.forget_queue(Q);
        assert_eq!((duplicates.memory_bytes(), duplicates.carried_bytes()), (0, 0));
        count(&duplicates);
    }

    #[test]
    fn what_stands_in_old_segments_is_carried_forward_and_then_stands_there_no_more() {
        let mut duplicates = Duplicates::default();
        for n in 0..10_u8 {
            duplicates.remember(Q, told(u64::from(n), &[3, n], u64::from(n) / 4), 100);
        }
        assert_eq!(duplicates.queues_up_to(0).collect::<Vec<_>>(), [Q]);
        // In two records: four ids, three of which find room in the first.
        for (bytes, ids) in [(40, 3), (40, 1)] {
            let payload = duplicates.carry(Q, 0, bytes);
            let again: Vec<Told<'_>> = carried(&payload, 9).map(Result::unwrap).collect();
            assert_eq!(again.len(), ids);
            again.into_iter().for_each(|told| duplicates.remember(Q, told, 100));
        }
        assert_eq!(duplicates.carry(Q, 0, 40), []);
        assert_eq!(duplicates.queues_up_to(0).count(), 0);
        assert_eq!(duplicates.queues_up_to(1).collect::<Vec<_>>(), [Q]);
        assert_eq!(duplicates.count(Q), 10);
        count(&duplicates);
        assert_eq!(carried(&duplicates.carry(Q, 9, 1 << 16), 9).count() as u64, 10);
        assert_eq!(duplicates.carry(Q, 9, 1 << 16).len() as u64, duplicates.carried_bytes());
    }

    /// A backup carries nothing itself: it hears the live's records, and nothing else.
    #[test]
    fn who_only_hears_what_was_carried_forward_knows_that_it_stands_there_no_more() {
        let (mut live, mut backup) = (Duplicates::default(), Duplicates::default());
        for n in 0..10_u8 {
            for one in [&mut live, &mut backup] {
                one.remember(Q, told(u64::from(n), &[3, n], u64::from(n) / 4), 100);
            }
        }
        for head in 0..3 {
            let payload = live.carry(Q, head, 1 << 16);
            for one in [&mut live, &mut backup] {
                assert_eq!(one.queues_up_to(head).collect::<Vec<_>>(), [Q]);
                let again = carried(&payload, 9).map(Result::unwrap);
                again.for_each(|told| one.remember(Q, told, 100));
                assert_eq!(one.queues_up_to(head).count(), 0);
                count(one);
            }
        }
        // Where the oldest are forgotten, their segments go too.
        backup.remember(Q, told(10, b"new", 12), 100);
        backup.limit(Q, 1);
        assert_eq!(backup.queues_up_to(11).count(), 0);
        count(&backup);
    }

    /// Members may rank the id of a message in parts differently: where a record names it, it is
    /// known, whatever rank that says.
    #[test]
    fn an_id_is_not_forgotten_while_a_record_further_on_names_it() {
        let mut ids = Duplicates::default();
        let forget_before = |ids: &mut Duplicates, segment: u64| {
            let mut from = Some((Sequence(0), 0));
            while let Some(next) = from {
                from = ids.forget_before(Q, segment, next);
                count(ids);
            }
            assert!(!ids.stands_before(Q, segment));
        };
        for (sequence, id, segment) in [(22, b"a", 2), (30, b"b", 2), (6, b"a", 3), (5, b"a", 4)] {
            ids.remember(Q, told(sequence, id, segment), 100);
        }
        let known = |ids: &Duplicates| {
            let told = ids.told_from(Q, (Sequence(0), 0));
            told.map(|(rank, told)| (rank.0.0, told.segment, told.named)).collect::<Vec<_>>()
        };
        assert_eq!(known(&ids), [(22, 2, 4), (30, 2, 2)]);
        forget_before(&mut ids, 2);
        assert_eq!(known(&ids), [(22, 2, 4), (30, 2, 2)]);
        forget_before(&mut ids, 3);
        assert_eq!(known(&ids), [(22, 4, 4)]);
        forget_before(&mut ids, 5);
        assert_eq!((known(&ids), ids.memory_bytes()), (vec![], 0));
        // A message that has it anew has its own place; what was further on is further on still.
        for (sequence, segment) in [(40, 6), (39, 9), (41, 7)] {
            ids.remember(Q, told(sequence, b"a", segment), 100);
        }
        assert_eq!(known(&ids), [(41, 7, 9)]);
        ids.forget_queue(Q);
        assert!(ids.queues.get(Q).is_none());
    }

    /// Each goes on where the one before ended; what was not appended is carried after all.
    #[test]
    fn a_record_that_was_not_appended_is_carried_again() {
        let mut duplicates = Duplicates::default();
        for n in 0..10_u8 {
            duplicates.remember(Q, told(u64::from(n), &[3, n], 0), 100);
        }
        let mut sequences = Vec::new();
        for turn in 0.. {
            let payload = duplicates.carry(Q, 0, 40);
            if payload.is_empty() {
                break;
            }
            let again: Vec<Told<'_>> = carried(&payload, 9).map(Result::unwrap).collect();
            sequences.extend(again.iter().map(|told| told.sequence.0));
            if turn != 1 {
                again.into_iter().for_each(|told| duplicates.remember(Q, told, 100));
            }
        }
        assert_eq!(sequences, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 3, 4, 5]);
        assert_eq!(duplicates.queues_up_to(0).count(), 0);
    }

    #[test]
    fn a_list_that_is_cut_is_an_error_and_no_panic() {
        let mut duplicates = Duplicates::default();
        duplicates.remember(Q, told(7, b"abc", 0), 9);
        let payload = duplicates.carry(Q, 0, 100);
        for len in 1..payload.len() {
            assert!(carried(&payload[..len], 0).any(|told| told.is_err()), "{len}");
        }
        assert_eq!(carried(&payload, 0).collect::<Vec<_>>(), [Ok(told(7, b"abc", 0))]);
    }

    #[test]
    fn at_the_bound_those_with_more_than_their_share_forget() {
        let one = DUPLICATE_ID_BYTES + 2;
        let mut duplicates = Duplicates::new(Bounds { bytes_max: 10 * one, count_max: 100 });
        let remember = |duplicates: &mut Duplicates, queue, n: u8| {
            duplicates.remember(QueueId(queue), told(u64::from(n), &[3, n], 0), 100);
            count(duplicates);
            assert!(duplicates.memory_bytes() <= 10 * one);
        };
        for n in 0..12 {
            remember(&mut duplicates, 1, n);
        }
        assert_eq!((duplicates.count(Q), duplicates.forgotten_early()), (10, 2));
        assert!(knows(&duplicates, Q, &[3, 11]) && !knows(&duplicates, Q, &[3, 1]));
        // Another has a right to half of the room, and no more.
        for n in 0..12 {
            remember(&mut duplicates, 2, n);
        }
        assert_eq!((duplicates.count(Q), duplicates.count(QueueId(2))), (5, 5));
        for n in 20..30 {
            remember(&mut duplicates, 1, n);
        }
        assert_eq!((duplicates.count(Q), duplicates.count(QueueId(2))), (5, 5));
    }

    #[test]
    fn ids_of_every_kind_and_width_are_read_and_others_are_not() {
        let read = |value: &[u8]| {
            let message = [b"\0", value].concat();
            DuplicateId::read(&message, NonZeroU32::MIN).map(|id| id.as_bytes().to_vec())
        };
        assert_eq!(read(b"\xa1\x02ab"), Ok(b"\x03ab".to_vec()));
        assert_eq!(read(b"\xb1\0\0\0\x02ab"), Ok(b"\x03ab".to_vec()));
        assert_eq!(read(b"\xa0\x02ab"), Ok(b"\x02ab".to_vec()));
        for seven in [&b"\x53\x07"[..], b"\x80\0\0\0\0\0\0\0\x07"] {
            assert_eq!(read(seven), Ok(b"\0\0\0\0\0\0\0\0\x07".to_vec()));
        }
        assert_eq!(read(&[&[0x98][..], &[7; 16]].concat()).map(|id| id.len()), Ok(17));
        for wrong in
            [&b"\x41"[..], b"\x54\x07", b"\xa3\x01a", b"\xa1\x00", b"\xa0\x00", b"\xa1\x05a"]
        {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
        let long = |len: usize| {
            let prefix = (len as u32).to_be_bytes();
            read(&[&[0xb0], &prefix[..], &vec![7; len]].concat())
        };
        assert_eq!(long(DUPLICATE_ID_BYTES_MAX).map(|id| id.len()), Ok(DUPLICATE_ID_BYTES_MAX + 1));
        assert!(long(DUPLICATE_ID_BYTES_MAX + 1).is_err());
    }
}
