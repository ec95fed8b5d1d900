//! The state as the pages of a checkpoint tell it, and back.
//!
//! ```text
//!   page   item item item ...                         little-endian, each begins with its kind
//!   1  next queue id   zero 7 │ id 8 │ segment 8
//!   2  queue (shard 0) zero 5 │ length 2 │ id 8 │ segment 8 │ the payload of its create record
//!   3  queue's turn    zero 7 │ id 8 │ next sequence 8 │ segment 8: what follows is its
//!   4  message         rank 1 │ parts' bytes 2 │ message bytes 4 │ sequence 8 │ LSN 8
//!   5  in fragments    rank 1 │ count 2 │ message bytes 4 │ sequence 8 │ (LSN 8, bytes 4)*
//!   6  it expires      zero 7 │ unix ms 8
//!   7  delivered later zero 7 │ unix ms 8
//!   8  came back       zero 1 │ length 2 │ count 4 │ what its record said
//!   9  came from       zero 1 │ shard 2 │ zero 4 │ queue 8 │ sequence 8
//!  10  duplicate id    zero 5 │ length 2 │ sequence 8 │ segment 8 │ id
//! ```
//! Items 6 to 9 belong to the message before them, in the same page. A *segment* is that of the
//! newest record of a fact; all ones: there is none.
//!
//! Pages are told one at a time while the state goes on, so each is true of its own moment. What
//! begins in the log at `from` or behind it is left out: a start reads that there. All else that
//! has changed since the first page stands behind `from` too, and to apply it once more, to a state
//! that knows it already or does not, comes to the same.
//!
//! Invariants: of a queue's messages each is told at most once, in order; what lies before the head
//! of the log is not taken in: its segment went because it was settled, or copied to where the log
//! is read, or because its queue is gone.

use std::num::NonZeroU64;

use journal::{FragmentAt, Lsn, Origin, QueueId, Sequence, ShardId};

use super::{Fact, State};
use crate::catalogue::QueueRecord;
use crate::duplicates::{DuplicateId, Rank, Told};
use crate::limits::{CHECKPOINT_LOOKS, CHECKPOINT_PAGE_BYTES};
use crate::queue::{Chain, InQueue, Large, Queue, Traits};
use crate::setback::Setback;

/// In place of a segment.
const NONE: u64 = u64::MAX;

/// How far the pages have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cursor {
    /// The catalogue, from this id on.
    Catalogue(QueueId),
    /// The queues from this id on.
    Queues(QueueId),
    /// The messages of this queue, from the first of these on. What has a later sequence came when
    /// its turn was told already, and stands behind `from`.
    Messages(QueueId, (Sequence, Sequence)),
    /// Its duplicate ids, from this rank on and up to that of the next sequence then: one that came
    /// in parts may have that.
    Duplicates(QueueId, (Rank, Sequence)),
    /// All is told.
    Over,
}

impl Cursor {
    /// Nothing is told yet.
    pub const START: Self = Self::Catalogue(QueueId(0));
}

/// What pages have said so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    queue: Option<QueueId>,
}

/// The page cannot be: it says so.
type Wrong = &'static str;

impl State {
    /// The next page: what lives before `from`, from the cursor on. Stops at an item's end when so
    /// many bytes are full, or so many messages were looked at: a page may be empty. One message in
    /// fragments may take it beyond. False if something cannot be told.
    pub fn tell(&self, cursor: &mut Cursor, from: Lsn, page: &mut Vec<u8>) -> bool {
        let mut looks_left = CHECKPOINT_LOOKS;
        while page.len() < CHECKPOINT_PAGE_BYTES && looks_left > 0 {
            *cursor = match *cursor {
                Cursor::Catalogue(id) => self.tell_catalogue(id, page),
                Cursor::Queues(id) => match self.first_queue_from(id) {
                    None => Cursor::Over,
                    Some(id) => {
                        let end = self.tell_turn(id, page);
                        Cursor::Messages(id, (Sequence(0), end))
                    }
                },
                Cursor::Messages(id, range) => {
                    let next = self.tell_messages((id, range), from, page, &mut looks_left);
                    let Some(next) = next else { return false };
                    next
                }
                Cursor::Duplicates(id, range) => self.tell_duplicates(id, range, page),
                Cursor::Over => return true,
            };
        }
        true
    }

    /// The segment with the newest record of a fact; all ones: there is none.
    pub fn segment_of(&self, fact: Fact) -> u64 {
        self.witness.get(&fact).copied().unwrap_or(NONE)
    }

    fn tell_catalogue(&self, from: QueueId, page: &mut Vec<u8>) -> Cursor {
        if from == QueueId(0) {
            put(page, [1, 0, 0, 0, 0, 0, 0, 0]);
            put(page, self.catalogue.next_id().0.to_le_bytes());
            put(page, self.segment_of(Fact::NextQueueId).to_le_bytes());
        }
        // Other shards know it by mail, and this one only if its own log says so.
        let facts = Fact::Queue(from)..=Fact::Queue(QueueId(u64::MAX));
        for (fact, segment) in self.witness.range(facts) {
            let Fact::Queue(id) = *fact else { continue };
            let Some(queue) = self.catalogue.get(id) else { continue };
            if page.len() >= CHECKPOINT_PAGE_BYTES {
                return Cursor::Catalogue(queue.id);
            }
            let payload = queue.encode();
            let [low, high] = u16::try_from(payload.len()).expect("names are short").to_le_bytes();
            put(page, [2, 0, 0, 0, 0, 0, low, high]);
            put(page, queue.id.0.to_le_bytes());
            put(page, segment.to_le_bytes());
            page.extend_from_slice(&payload);
        }
        Cursor::Queues(QueueId(0))
    }

    /// Gives what its next message gets.
    fn tell_turn(&self, id: QueueId, page: &mut Vec<u8>) -> Sequence {
        let next = self.queue(id).map_or(Sequence(0), Queue::next_sequence);
        put(page, [3, 0, 0, 0, 0, 0, 0, 0]);
        put(page, id.0.to_le_bytes());
        put(page, next.0.to_le_bytes());
        put(page, self.segment_of(Fact::NextSequence(id)).to_le_bytes());
        next
    }

    fn tell_messages(
        &self,
        (id, (sequence, end)): (QueueId, (Sequence, Sequence)),
        from: Lsn,
        page: &mut Vec<u8>,
        looks_left: &mut usize,
    ) -> Option<Cursor> {
        // It may be gone since the last page.
        let Some(queue) = self.queue(id) else { return Some(Cursor::Queues(after(id))) };
        let mut next = sequence;
        while let Some(message) = queue.stored_from(next).filter(|of| of.sequence < end) {
            if page.len() >= CHECKPOINT_PAGE_BYTES || *looks_left == 0 {
                return Some(Cursor::Messages(id, (message.sequence, end)));
            }
            *looks_left -= 1;
            if message.lsn < from && !self.tell_message(queue, &message, page) {
                return None;
            }
            next = Sequence(message.sequence.0 + 1);
        }
        Some(Cursor::Duplicates(id, ((Sequence(0), 0), end)))
    }

    fn tell_message(&self, queue: &Queue, message: &InQueue, page: &mut Vec<u8>) -> bool {
        let InQueue { sequence, lsn, message_bytes, traits } = *message;
        let priority = traits.priority.unwrap_or_default();
        let chain = queue.chain(sequence).map(Chain::fragments);
        let (kind, half) = match (traits.parts_bytes, chain) {
            (Some(parts_bytes), _) => (4, parts_bytes),
            (None, Some(chain)) => {
                let Ok(count) = u16::try_from(chain.len()) else { return false };
                (5, count)
            }
            (None, None) => return false,
        };
        let [low, high] = half.to_le_bytes();
        put(page, [kind, priority, low, high]);
        put(page, message_bytes.to_le_bytes());
        put(page, sequence.0.to_le_bytes());
        match chain.filter(|_| kind == 5) {
            None => put(page, lsn.0.to_le_bytes()),
            Some(chain) => chain.iter().for_each(|at| {
                put(page, at.lsn.0.to_le_bytes());
                put(page, at.record_bytes.to_le_bytes());
            }),
        }
        let times = [(6, traits.expiry_unix_ms), (7, queue.delivery_time(sequence))];
        for (kind, unix_ms) in times {
            if let Some(unix_ms) = unix_ms {
                put(page, [kind, 0, 0, 0, 0, 0, 0, 0]);
                put(page, unix_ms.to_le_bytes());
            }
        }
        if let Some(setback) = queue.setback(sequence) {
            let payload = setback.payload();
            let Ok(length) = u16::try_from(payload.len()) else { return false };
            let [low, high] = length.to_le_bytes();
            put(page, [8, 0, low, high]);
            put(page, setback.count.to_le_bytes());
            page.extend_from_slice(&payload);
        }
        if let Some(origin) = self.origin_of(queue.id(), sequence) {
            let [low, high] = origin.shard.0.to_le_bytes();
            put(page, [9, 0, low, high, 0, 0, 0, 0]);
            put(page, origin.queue.0.to_le_bytes());
            put(page, origin.sequence.0.to_le_bytes());
        }
        true
    }

    fn tell_duplicates(
        &self,
        id: QueueId,
        (from, end): (Rank, Sequence),
        page: &mut Vec<u8>,
    ) -> Cursor {
        let known = self.duplicates.told_from(id, from).take_while(|(rank, _)| rank.0 <= end);
        for (rank, Told { sequence, id: bytes, segment, .. }) in known {
            if page.len() >= CHECKPOINT_PAGE_BYTES {
                return Cursor::Duplicates(id, (rank, end));
            }
            let length = u16::try_from(bytes.len()).expect("bounded when it was read");
            let [low, high] = length.to_le_bytes();
            put(page, [10, 0, 0, 0, 0, 0, low, high]);
            put(page, sequence.0.to_le_bytes());
            put(page, segment.to_le_bytes());
            page.extend_from_slice(bytes);
        }
        Cursor::Queues(after(id))
    }

    /// Takes in what a page says, of a log that begins at `head`.
    ///
    /// # Errors
    /// What of it cannot be; the state is then of no use.
    pub fn load(&mut self, load: &mut Load, head: Lsn, page: &[u8]) -> Result<(), Wrong> {
        self.read.get_or_insert_default();
        let mut items = Items(page);
        while let Some([kind, rank, fixed @ ..]) = items.next() {
            let half = u16::from_le_bytes([fixed[0], fixed[1]]);
            let word = u32::from_le_bytes([fixed[2], fixed[3], fixed[4], fixed[5]]);
            let length = usize::from(u16::from_le_bytes([fixed[4], fixed[5]]));
            match kind {
                1 => {
                    let (next, segment) = (QueueId(items.long()?), items.long()?);
                    // Other shards know it by mail.
                    if segment != NONE {
                        self.catalogue.skip_to(next);
                        self.load_fact(Fact::NextQueueId, segment);
                    }
                }
                2 => {
                    let (id, segment) = (QueueId(items.long()?), items.long()?);
                    let queue = QueueRecord::decode(id, items.bytes(length)?);
                    self.catalogue.insert(queue.map_err(|_| "a queue cannot be read")?);
                    self.load_fact(Fact::Queue(id), segment);
                }
                3 => {
                    let (id, next) = (QueueId(items.long()?), Sequence(items.long()?));
                    self.open_queue(id);
                    if let Some(queue) = self.queue_mut(id) {
                        queue.skip_to(next);
                    }
                    self.load_fact(Fact::NextSequence(id), items.long()?);
                    load.queue = Some(id);
                }
                4 | 5 => {
                    let id = load.queue.ok_or("a message has no queue")?;
                    let told = Message::read(&mut items, kind == 5, half, word, rank)?;
                    self.load_message(id, head, told)?;
                }
                10 => {
                    let id = load.queue.ok_or("an id has no queue")?;
                    let (sequence, segment) = (Sequence(items.long()?), items.long()?);
                    let bytes = items.bytes(length)?;
                    if segment >= head.0 / self.segment_bytes {
                        let end = Lsn::ZERO;
                        self.remember(id, Told { sequence, id: bytes, segment, end });
                    }
                }
                _ => return Err("an item is of no known kind"),
            }
        }
        if items.0.is_empty() { Ok(()) } else { Err("it ends in the middle of an item") }
    }

    /// The log tells of this message; whether it is the newest of its queue that it has told of
    /// since the checkpoint.
    #[inline]
    pub(super) fn note_read(&mut self, (id, sequence): (QueueId, Sequence)) -> bool {
        let Some(read) = &mut self.read else { return false };
        let before = read.get(&id).copied();
        let is_newest = before.is_none_or(|before| sequence > before);
        if is_newest {
            read.insert(id, sequence);
        }
        is_newest
    }

    /// How new the id is of a message in parts that has come to its end, where its sequence was
    /// known before: it is a copy, or its queue's turn was told by a later page. Then all that came
    /// between its first part and its last was read, so what was next at its end is known; unless
    /// pages have told that too.
    pub(super) fn rank_of_end(
        &self,
        key: (QueueId, Sequence),
        id: &DuplicateId,
        may_be_original: bool,
    ) -> Sequence {
        let is_told = !may_be_original || self.duplicates.known(key.0, id).is_some();
        let read = self.read.as_ref().filter(|_| !is_told).and_then(|read| read.get(&key.0));
        read.map_or(key.1, |newest| Sequence(newest.0 + 1))
    }

    fn load_fact(&mut self, fact: Fact, segment: u64) {
        if segment != NONE {
            self.witnessed_anew(segment, fact);
        }
    }

    fn load_message(&mut self, id: QueueId, head: Lsn, told: Message) -> Result<(), Wrong> {
        let Message { stored, chain, delivery_unix_ms, setback, origin } = told;
        let sequence = stored.sequence;
        if stored.lsn < head {
            return Ok(());
        }
        let queue = self.queues.get_mut(id).ok_or("a queue is not there")?;
        if !queue.takes_stored(sequence) {
            return Err("a message is out of its turn");
        }
        let traits = Traits { delivery_unix_ms, ..stored.traits };
        let effect = match chain {
            Some(chain) => {
                let message_bytes = stored.message_bytes as usize;
                let large = Large { chain, message: None, message_bytes };
                self.apply_large((id, sequence), large, traits, origin)
                    .map_err(|_| "a message is there twice")?
            }
            None => {
                queue.take_stored(stored);
                self.memory_bytes += Queue::memory_bytes(stored.message_bytes as usize);
                self.count_outside(u64::from(stored.message_bytes));
                self.pin(stored.lsn);
                self.applied((id, sequence), traits, origin)
            }
        };
        self.commit(effect);
        if let Some(setback) = setback {
            let effect = self.apply_setback(id, sequence, setback);
            self.commit(effect);
        }
        self.recount(id);
        Ok(())
    }

    /// Where the log alone is to tell what begins there or behind it: something that is under way
    /// began there, and would not be whole without that.
    pub fn told_by_log_from(&self) -> Lsn {
        let half = self.oldest_half().map(|(begins, ..)| begins);
        let copies = self.copies.iter().map(|(lsn, _)| *lsn);
        half.into_iter().chain(copies).min().unwrap_or(Lsn(u64::MAX))
    }
}

/// A message and all that is said of it.
struct Message {
    stored: InQueue,
    chain: Option<Chain>,
    delivery_unix_ms: Option<NonZeroU64>,
    setback: Option<Setback>,
    origin: Option<Origin>,
}

impl Message {
    fn read(
        items: &mut Items<'_>,
        is_large: bool,
        half: u16,
        message_bytes: u32,
        priority: u8,
    ) -> Result<Self, Wrong> {
        let sequence = Sequence(items.long()?);
        let (lsn, chain) = if is_large {
            let mut fragments = Vec::with_capacity(usize::from(half));
            for _ in 0..half {
                let lsn = Lsn(items.long()?);
                fragments.push(FragmentAt { lsn, record_bytes: items.word()? });
            }
            if fragments.len() < 2 {
                return Err("a chain has one fragment");
            }
            (fragments[0].lsn, Some(Chain::new(fragments)))
        } else {
            (Lsn(items.long()?), None)
        };
        let parts_bytes = (!is_large).then_some(half);
        let traits = Traits { priority: Some(priority), parts_bytes, ..Traits::default() };
        let stored = InQueue { sequence, lsn, message_bytes, traits };
        let (delivery_unix_ms, setback, origin) = (None, None, None);
        let mut told = Self { stored, chain, delivery_unix_ms, setback, origin };
        while let Some(kind @ 6..=9) = items.0.first().copied() {
            let Some([_, _, fixed @ ..]) = items.next() else { return Err("an item is cut") };
            let half = u16::from_le_bytes([fixed[0], fixed[1]]);
            match kind {
                6 => told.stored.traits.expiry_unix_ms = Some(items.long()?),
                7 => told.delivery_unix_ms = NonZeroU64::new(items.long()?),
                8 => {
                    let count = u32::from_le_bytes([fixed[2], fixed[3], fixed[4], fixed[5]]);
                    let payload = items.bytes(usize::from(half))?;
                    told.setback = Some(Setback::read(count, payload)?);
                }
                _ => {
                    let (queue, sequence) = (QueueId(items.long()?), Sequence(items.long()?));
                    told.origin = Some(Origin { shard: ShardId(half), queue, sequence });
                }
            }
        }
        Ok(told)
    }
}

/// The rest of a page.
struct Items<'a>(&'a [u8]);

impl<'a> Items<'a> {
    fn next(&mut self) -> Option<[u8; 8]> {
        let (fixed, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*fixed)
    }

    fn long(&mut self) -> Result<u64, Wrong> {
        self.next().map(u64::from_le_bytes).ok_or("an item is cut")
    }

    fn word(&mut self) -> Result<u32, Wrong> {
        let bytes = self.bytes(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn bytes(&mut self, length: usize) -> Result<&'a [u8], Wrong> {
        let (bytes, rest) = self.0.split_at_checked(length).ok_or("an item is cut")?;
        self.0 = rest;
        Ok(bytes)
    }
}

#[inline]
fn put<const N: usize>(page: &mut Vec<u8>, bytes: [u8; N]) {
    page.extend_from_slice(&bytes);
}

fn after(id: QueueId) -> QueueId {
    QueueId(id.0 + 1)
}

#[cfg(test)]
mod tests {
    use journal::limits::CHECKPOINT_VERSION;
    use journal::{Record, RecordFlags, RecordKind};

    use super::*;
    use crate::catalogue::QueueRecord;
    use crate::duplicates::Duplicates;
    use crate::limits::{INDEX_BYTES, PLACE_BYTES};
    use crate::queue::SlotState;

    const SEGMENT: u64 = 1000;
    const ALL: Lsn = Lsn(u64::MAX);

    fn replay(state: &mut State, lsn: u64, record: &Record<'_>) {
        let effect = state.apply(Lsn(lsn), record).expect("it can be applied");
        state.commit(effect);
    }

    fn message(queue: u64, sequence: u64, payload: &[u8]) -> Record<'_> {
        Record::new(RecordKind::Message, QueueId(queue), Sequence(sequence), payload)
    }

    fn empty() -> State {
        State::new(SEGMENT, Duplicates::default())
    }

    /// Every kind of item.
    fn state() -> State {
        let mut state = empty();
        let created = QueueRecord {
            id: QueueId(1),
            home: ShardId(0),
            level: journal::Level::Sync,
            name: "q".to_owned(),
            temporary: None,
        };
        let payload = created.encode();
        let create = Record::new(RecordKind::QueueCreate, QueueId(1), Sequence(0), &payload);
        replay(&mut state, 10, &create);
        replay(&mut state, 20, &message(1, 0, b"plain"));
        let mut rich = message(1, 1, b"rich");
        rich.parts.priority = Some(9);
        rich.parts.expiry_unix_ms = Some(5000);
        rich.parts.delivery_unix_ms = Some(4000);
        rich.parts.duplicate_id = Some(b"\x03id");
        replay(&mut state, 1010, &rich);
        let mut failed = Record::new(RecordKind::DeliveryCount, QueueId(1), Sequence(1), &[1]);
        failed.parts.delivery_count = Some(3);
        replay(&mut state, 1100, &failed);
        let mut moved = message(7, 40, b"moved");
        moved.parts.origin =
            Some(Origin { shard: ShardId(2), queue: QueueId(3), sequence: Sequence(4) });
        replay(&mut state, 1200, &moved);
        for (lsn, flags, fragment) in [(1300, RecordFlags::FIRST, 0), (2050, RecordFlags::LAST, 1)]
        {
            let mut part = message(7, 41, b"part");
            (part.flags, part.fragment) = (flags, fragment);
            replay(&mut state, lsn, &part);
        }
        let mut next = Record::new(RecordKind::NextSequence, QueueId(9), Sequence(77), &[]);
        replay(&mut state, 2100, &next);
        next = Record::new(RecordKind::NextQueueId, QueueId(20), Sequence(0), &[]);
        replay(&mut state, 2200, &next);
        state
    }

    fn pages(state: &State, from: Lsn) -> Vec<Vec<u8>> {
        let (mut cursor, mut pages) = (Cursor::START, Vec::new());
        while cursor != Cursor::Over {
            let mut page = Vec::new();
            assert!(state.tell(&mut cursor, from, &mut page), "all can be told");
            pages.push(page);
        }
        pages
    }

    fn load(pages: &[Vec<u8>], head: Lsn) -> State {
        let (mut state, mut load) = (empty(), Load::default());
        for page in pages {
            state.load(&mut load, head, page).expect("it was told so");
        }
        state
    }

    fn assert_same(one: &State, other: &State) {
        let ids = |state: &State| state.queues().map(Queue::id).collect::<Vec<_>>();
        assert_eq!(ids(one), ids(other));
        for id in ids(one) {
            let of = |state: &State| {
                let queue = state.queue(id).expect("it is there");
                let mut messages = Vec::new();
                let mut from = Sequence(0);
                while let Some(stored) = queue.stored_from(from) {
                    let sequence = stored.sequence;
                    from = after_message(sequence);
                    messages.push((
                        stored,
                        queue.delivery_time(sequence),
                        queue.setback(sequence),
                        queue.chain(sequence).cloned(),
                        state.origin_of(id, sequence),
                    ));
                }
                (queue.next_sequence(), messages, state.duplicates.count(id))
            };
            assert_eq!(of(one), of(other));
        }
        for segment in 0..9 {
            assert_eq!(one.messages_in(segment), other.messages_in(segment), "{segment}");
            assert_eq!(one.facts_up_to(segment, 99), other.facts_up_to(segment, 99));
        }
        let catalogue = |state: &State| state.catalogue.iter().cloned().collect::<Vec<_>>();
        assert_eq!(catalogue(one), catalogue(other));
        assert_eq!(one.catalogue.next_id(), other.catalogue.next_id());
        assert_eq!(one.next_due(), other.next_due());
        assert_eq!(one.log_bytes(), other.log_bytes());
    }

    fn after_message(sequence: Sequence) -> Sequence {
        Sequence(sequence.0 + 1)
    }

    #[test]
    fn a_state_that_is_told_and_read_is_the_same() {
        let state = state();
        let mut back = load(&pages(&state, ALL), Lsn::ZERO);
        assert_same(&state, &back);
        assert_eq!((back.messages(), back.paged_out().messages), (4, 4));
        let known = DuplicateId::from_record(b"\x03id");
        assert!(back.duplicates.known(QueueId(1), &known).is_some());
        assert_eq!(back.queue(QueueId(1)).expect("there").count(SlotState::Delayed), 1);
        // All that was counted is counted out again.
        for (queue, sequence) in [(1, 0), (1, 1), (7, 40), (7, 41)] {
            let settle = Record::new(RecordKind::Settle, QueueId(queue), Sequence(sequence), &[]);
            replay(&mut back, 3000, &settle);
        }
        back.duplicates.forget_queue(QueueId(1));
        assert_eq!((back.messages(), back.memory_bytes()), (0, 0));
        assert_eq!(back.paged_out(), crate::queue::PagedOut::default());
    }

    /// As soon as it is read: the log behind it is read into what memory is left.
    #[test]
    fn a_place_out_of_the_order_counts_where_a_page_tells_it() {
        let mut state = empty();
        let mut first = message(1, 0, b"first");
        first.parts.priority = Some(9);
        replay(&mut state, 10, &first);
        let back = load(&pages(&state, ALL), Lsn::ZERO);
        assert_eq!(back.memory_bytes(), INDEX_BYTES + PLACE_BYTES);
    }

    /// Pages of an older state, with the log behind them read into a state that the later pages
    /// knew already: the same as the log alone.
    #[test]
    fn pages_of_different_moments_and_the_log_behind_them_make_one_state() {
        let from = Lsn(2000);
        let origin = Origin { shard: ShardId(2), queue: QueueId(3), sequence: Sequence(4) };
        let later: Vec<(u64, Record<'_>)> = {
            let settle = |queue, sequence| {
                Record::new(RecordKind::Settle, QueueId(queue), Sequence(sequence), &[])
            };
            let mut copy = message(7, 40, b"moved");
            copy.parts.origin = Some(origin);
            vec![
                (2300, message(1, 2, b"new")),
                (2310, message(7, 42, b"new and gone")),
                (2320, settle(1, 0)),
                (2330, settle(7, 42)),
                (3010, copy),
                (3020, message(7, 43, b"newest")),
            ]
        };
        for told_before in 0..=later.len() {
            let mut state = state();
            for (lsn, record) in &later[..told_before] {
                replay(&mut state, *lsn, record);
            }
            let told = pages(&state, from);
            for (lsn, record) in &later[told_before..] {
                replay(&mut state, *lsn, record);
            }
            let mut back = load(&told, Lsn::ZERO);
            // The log from there on.
            let mut next = Record::new(RecordKind::NextSequence, QueueId(9), Sequence(77), &[]);
            let mut part = message(7, 41, b"part");
            (part.flags, part.fragment) = (RecordFlags::LAST, 1);
            replay(&mut back, 2050, &part);
            replay(&mut back, 2100, &next);
            next = Record::new(RecordKind::NextQueueId, QueueId(20), Sequence(0), &[]);
            replay(&mut back, 2200, &next);
            for (lsn, record) in &later {
                replay(&mut back, *lsn, record);
            }
            assert_same(&state, &back);
        }
    }

    #[test]
    fn what_lies_before_the_head_is_gone_and_what_lies_behind_is_the_logs_to_tell() {
        let state = state();
        let back = load(&pages(&state, Lsn(1200)), Lsn(1000));
        let stored = |queue: u64| {
            let queue = back.queue(QueueId(queue))?;
            queue.stored_from(Sequence(0)).map(|stored| stored.sequence.0)
        };
        assert_eq!((stored(1), stored(7), back.messages()), (Some(1), None, 1));
        assert_eq!(back.queue(QueueId(7)).expect("there").next_sequence(), Sequence(42));
    }

    /// Else whoever sends faster than pages are written would never see the end of one.
    #[test]
    fn what_comes_while_pages_are_told_does_not_make_them_more() {
        let mut state = empty();
        replay(&mut state, 10, &message(1, 0, b"old"));
        let (mut cursor, mut pages, mut next) = (Cursor::START, 0, 1);
        while cursor != Cursor::Over {
            // More than are looked at for a page.
            for _ in 0..CHECKPOINT_LOOKS + 1 {
                let mut new = message(1, next, b"");
                let id = next.to_string();
                new.parts.duplicate_id = Some(id.as_bytes());
                replay(&mut state, 1000 + next, &new);
                next += 1;
            }
            assert!(state.tell(&mut cursor, Lsn(1000), &mut Vec::new()));
            pages += 1;
            assert!(pages < 5, "it comes to its end");
        }
    }

    /// They rank with the next sequence when they end, all of them with the same here.
    #[test]
    fn the_ids_of_messages_that_came_in_parts_are_told_however_many_rank_alike() {
        let mut state = empty();
        let count = 3_000;
        for (flags, fragment) in [(RecordFlags::FIRST, 0), (RecordFlags::LAST, 1)] {
            for n in 0..count {
                let id = format!("{n:030}");
                let mut part = message(1, n, b"part");
                (part.flags, part.fragment) = (flags, fragment);
                part.parts.duplicate_id = (fragment == 0).then_some(id.as_bytes());
                replay(&mut state, 1 + u64::from(fragment) * count + n, &part);
            }
        }
        assert_eq!(state.duplicates.count(QueueId(1)), count);
        let back = load(&pages(&state, ALL), Lsn::ZERO);
        assert_same(&state, &back);
        assert_eq!(back.duplicates.count(QueueId(1)), count);
    }

    /// Whichever of its parts were in the log when the page was told.
    #[test]
    fn an_id_of_a_message_in_parts_is_as_new_as_its_end() {
        let part = |fragment, flags| {
            let mut part = message(1, 0, b"part");
            (part.flags, part.fragment) = (flags, fragment);
            part.parts.duplicate_id = (fragment == 0).then_some(&b"\x03parts"[..]);
            part
        };
        let whole = |sequence, id: &'static [u8]| {
            let mut whole = message(1, sequence, b"whole");
            whole.parts.duplicate_id = Some(id);
            whole
        };
        let log = [
            (100, part(0, RecordFlags::FIRST)),
            (200, whole(1, b"\x03a")),
            (300, whole(2, b"\x03b")),
            (400, part(1, RecordFlags::LAST)),
            (500, whole(3, b"\x03c")),
        ];
        for told_before in 0..=log.len() {
            let mut state = empty();
            for (lsn, record) in &log[..told_before] {
                replay(&mut state, *lsn, record);
            }
            let mut back = load(&pages(&state, Lsn(100)), Lsn::ZERO);
            for (lsn, record) in &log {
                replay(&mut back, *lsn, record);
            }
            back.duplicates.limit(QueueId(1), 2);
            let is_known = |id: &[u8]| {
                let id = DuplicateId::from_record(id);
                back.duplicates.known(QueueId(1), &id).is_some()
            };
            let known = [&b"\x03parts"[..], b"\x03a", b"\x03b", b"\x03c"].map(is_known);
            assert_eq!(known, [true, false, false, true], "{told_before}");
        }
    }

    /// What its queue had forgotten when the page was told is not the newest now.
    #[test]
    fn a_forgotten_id_of_a_message_in_parts_stays_old() {
        let ids: Vec<Vec<u8>> = (0..6).map(|n| vec![3, b'0' + n]).collect();
        let part = |n: u64, fragment| {
            let mut part = message(1, n, b"part");
            let flags = if fragment == 0 { RecordFlags::FIRST } else { RecordFlags::LAST };
            (part.flags, part.fragment) = (flags, fragment);
            part.parts.duplicate_id = (fragment == 0).then_some(&ids[n as usize][..]);
            part
        };
        // The first of them goes on.
        let mut log = vec![(50, part(0, 0))];
        for n in 1..6 {
            log.extend([(100 * n, part(n, 0)), (100 * n + 50, part(n, 1))]);
        }
        let mut state = empty();
        for (lsn, record) in &log {
            replay(&mut state, *lsn, record);
        }
        state.duplicates.limit(QueueId(1), 2);
        let mut back = load(&pages(&state, Lsn(50)), Lsn::ZERO);
        for (lsn, record) in &log {
            replay(&mut back, *lsn, record);
        }
        back.duplicates.limit(QueueId(1), 2);
        let is_known = |id: &Vec<u8>| {
            let id = DuplicateId::from_record(id);
            back.duplicates.known(QueueId(1), &id).is_some()
        };
        let known: Vec<bool> = ids.iter().map(is_known).collect();
        assert_eq!(known, [false, false, false, false, true, true]);
    }

    /// A chain that goes on is told by the log alone, from its first fragment on.
    #[test]
    fn what_is_under_way_is_the_logs_to_tell() {
        let mut state = state();
        assert_eq!(state.told_by_log_from(), ALL);
        let mut part = message(7, 50, b"first");
        part.flags = RecordFlags::FIRST;
        replay(&mut state, 2400, &part);
        assert_eq!(state.told_by_log_from(), Lsn(2400));
        let copied = state.apply_copy(Lsn(2300), None, (QueueId(1), Sequence(0)));
        assert_eq!(state.told_by_log_from(), Lsn(2300));
        state.commit(copied);
        assert_eq!(state.told_by_log_from(), Lsn(2400));
    }

    #[test]
    fn a_page_is_bounded_and_the_next_one_goes_on() {
        let mut state = empty();
        let count = 20_000;
        for n in 0..count {
            let id = n.to_string();
            let mut one = message(1 + n % 3, n / 3, b"x");
            one.parts.duplicate_id = (n % 5 == 0).then_some(id.as_bytes());
            replay(&mut state, 10 + n, &one);
        }
        let pages = pages(&state, ALL);
        assert!(pages.len() > 8, "{}", pages.len());
        assert!(pages.iter().all(|page| page.len() < CHECKPOINT_PAGE_BYTES + 100));
        let plain = count as usize * 24 + count as usize / 5 * 40;
        assert!(pages.iter().map(Vec::len).sum::<usize>() < plain);
        assert_same(&state, &load(&pages, Lsn::ZERO));
    }

    #[test]
    fn a_page_that_cannot_be_is_refused() {
        let told = pages(&state(), ALL);
        for len in 0..told[0].len() {
            let cut = &told[0][..len];
            let (mut state, mut load) = (empty(), Load::default());
            // At an item's end it is a shorter page.
            let _maybe = state.load(&mut load, Lsn::ZERO, cut);
        }
        let refused = |page: &[u8]| empty().load(&mut Load::default(), Lsn::ZERO, page).is_err();
        assert!(refused(&[99, 0, 0, 0, 0, 0, 0, 0]) && refused(&[1, 0, 0]));
        assert!(refused(&[4, 4, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]));
        let twice = [&told[0][..], &told[0][..]].concat();
        assert!(refused(&twice), "a message is there twice");
    }

    #[test]
    fn the_copy_of_an_older_queue_does_not_tell_the_next_id() {
        let mut state = state();
        let payload = state.catalogue.get(QueueId(1)).expect("there").encode();
        let copy = Record::new(RecordKind::QueueCreate, QueueId(1), Sequence(0), &payload);
        replay(&mut state, 5010, &copy);
        assert!(state.facts_up_to(2, 99).contains(&Fact::NextQueueId));
        assert_eq!(state.catalogue.next_id(), QueueId(20));
    }

    fn golden() -> std::path::PathBuf {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        root.join(format!("testdata/checkpoint-v{CHECKPOINT_VERSION}.page"))
    }

    #[test]
    #[ignore = "writes the golden file; only with a new version"]
    fn make() {
        std::fs::write(golden(), pages(&state(), ALL).concat()).unwrap();
    }

    #[test]
    fn the_golden_page_is_read_and_written_as_it_was() {
        let golden = std::fs::read(golden()).unwrap();
        assert!(pages(&state(), ALL).concat() == golden, "a page is written otherwise");
        assert_same(&state(), &load(&[golden], Lsn::ZERO));
    }
}
