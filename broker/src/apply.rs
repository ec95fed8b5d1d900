//! One record -> state. Recovery, the live path (and later a backup) rebuild state only here.
//!
//! ```text
//!   append ─▶ apply  ─────────────▶ Effect ──(its batch is committed)──▶ commit
//!             slots are taken,              messages become visible, settled ones go,
//!             sequences move on             failed deliveries go back to their places
//! ```
//! The live path waits between the two, for the watermark; recovery does not: what it reads is
//! committed. So a record has one meaning, and it is written down once.
//!
//! Also here: what keeps the head segment from being recycled. A segment holds
//! - messages: until their settlements are committed, or copies of them further on;
//! - settlements and delivery counts: nothing, since their messages lie before them, copies too;
//! - witnesses: the newest record that tells a queue's next sequence, a queue's existence, or the
//!   next queue id. Those are copied forward before the segment goes;
//! - duplicate ids that are remembered (`duplicates.rs`): carried forward too.
//!
//! A message that was moved here brings its origin. It is hidden (its slot stays reserved) until
//! the settlement of its origin is committed: `land` shows it. What recovery finds is hidden too,
//! until the shards have asked each other which origins still live.
//!
//! A message that is read a second time is its copy: it replaces the place and nothing else. The
//! original may be gone already; then the copy takes its slot, among those that were given later.
//! A copy never follows its message's settlement, so nothing comes back by it.
//!
//! A message's bytes may be paged out, since the log has them; what it is to its queue is not
//! changed by that (`queue/payload.rs`).
//!
//! Invariants: a settlement, a count, a copy or a fact applied twice changes nothing the second
//! time; a copy that says something else than the original, like any record that cannot be, is
//! damage and stops the start.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use journal::limits::RECORD_HEADER_BYTES;
use journal::{Lsn, Origin, Parts, QueueId, Record, RecordFlags, RecordKind, Sequence};

use crate::catalogue::{Catalogue, QueueRecord};
use crate::duplicates::{self, DuplicateId, Duplicates, Told};
use crate::flat_map::FlatMap;
use crate::limits::{INDEX_BYTES, SLOT_BYTES};
use crate::queue::{Filled, Hand, PagedOut, Queue, Shed, Traits, Wanted};
use crate::setback::Setback;

/// What happens to the state when a record is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing more.
    None,
    /// A message becomes visible.
    Visible(QueueId, Sequence),
    /// A moved message is here, and hidden while its origin lives.
    Arrived(QueueId, Sequence),
    /// A failed delivery is counted; the message is available again.
    Counted(QueueId, Sequence),
    /// A settled message is gone.
    Gone(QueueId, Sequence),
    /// A message's place is that of its copy.
    Copied(QueueId, Sequence),
    /// A queue exists.
    Created(QueueId),
    /// A queue is gone.
    Deleted(QueueId),
}

/// A fact whose newest record must stay in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fact {
    /// The catalogue's next id.
    NextQueueId,
    /// That a queue exists.
    Queue(QueueId),
    /// A queue's next sequence.
    NextSequence(QueueId),
    /// Duplicate ids that a queue remembers; they are many, and stand in many records.
    DuplicateIds(QueueId),
}

/// Why a record cannot be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApplyError {
    /// The log contradicts itself.
    Damage(String),
    /// A later version wrote it.
    Newer(String),
}

/// Everything a shard's log says.
#[derive(Debug)]
pub struct State {
    segment_bytes: u64,
    queues: FlatMap<QueueId, Box<Queue>>,
    /// Which queues there are. Shard 0's is the truth, the others' a read map.
    pub catalogue: Catalogue,
    creating: BTreeMap<QueueId, QueueRecord>,
    /// Deletions that are in the log and not committed.
    deleting: BTreeSet<QueueId>,
    unfinished: BTreeMap<(QueueId, Sequence), Unfinished>,
    /// When messages expire, by queue: each queue once, with a time that is not after its next.
    expiring: BTreeSet<(u64, QueueId)>,
    expiring_at: BTreeMap<QueueId, u64>,
    /// Copies that are hidden, by their place; whence each came.
    arrivals: BTreeMap<(QueueId, Sequence), Origin>,
    live: FlatMap<u64, u64>,
    /// The places of copies that are not committed, in the order of the log.
    copies: VecDeque<Lsn>,
    witness: BTreeMap<Fact, u64>,
    /// What was witnessed last: most often the same is again.
    witnessed: Option<(u64, Fact)>,
    facts: BTreeSet<(u64, Fact)>,
    memory_bytes: u64,
    /// Messages whose bytes are on the disk only.
    paged_out: PagedOut,
    /// What was here before, by the ids that producers gave it.
    pub duplicates: Duplicates,
    /// The log is not read to its end yet: settings of queues are not known.
    recovering: bool,
}

#[derive(Debug)]
struct Unfinished {
    lsn: Lsn,
    fragments: u16,
    traits: Traits,
    origin: Option<Origin>,
    duplicate_id: Option<DuplicateId>,
    bytes: BytesMut,
}

/// A message that is in the log, and where.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Where its record begins.
    pub lsn: Lsn,
    /// Its queue.
    pub queue: QueueId,
    /// Its sequence there.
    pub sequence: Sequence,
    /// Its bytes.
    pub message: Bytes,
    /// What the queue has to know of it.
    pub traits: Traits,
    /// Whence it was moved here.
    pub origin: Option<Origin>,
}

/// What a message's first record says to its queue.
fn traits_of(record: &Record<'_>) -> Traits {
    let Parts { priority, expiry_unix_ms, .. } = record.parts;
    let is_whole = record.flags.has(RecordFlags::WHOLE);
    let parts_bytes = u16::try_from(record.parts_len()).ok().filter(|_| is_whole);
    Traits { priority, expiry_unix_ms, parts_bytes, ..Traits::default() }
}

impl State {
    /// The state of an empty log with segments of this size.
    pub fn new(segment_bytes: u64, duplicates: Duplicates) -> Self {
        Self {
            segment_bytes,
            queues: FlatMap::default(),
            catalogue: Catalogue::new(),
            creating: BTreeMap::new(),
            deleting: BTreeSet::new(),
            unfinished: BTreeMap::new(),
            expiring: BTreeSet::new(),
            expiring_at: BTreeMap::new(),
            arrivals: BTreeMap::new(),
            live: FlatMap::default(),
            copies: VecDeque::new(),
            witness: BTreeMap::new(),
            witnessed: None,
            facts: BTreeSet::new(),
            memory_bytes: 0,
            paged_out: PagedOut::default(),
            duplicates,
            recovering: true,
        }
    }

    /// A queue that lives here.
    pub fn queue(&self, id: QueueId) -> Option<&Queue> {
        self.queues.get(id).map(Box::as_ref)
    }

    /// A queue that lives here, to change it.
    pub fn queue_mut(&mut self, id: QueueId) -> Option<&mut Queue> {
        self.queues.get_mut(id).map(Box::as_mut)
    }

    /// The queues that live here, by id.
    pub fn queues(&self) -> impl Iterator<Item = &Queue> {
        self.queues.values().map(Box::as_ref)
    }

    /// The first queue that lives here, from this id on.
    pub fn first_queue_from(&self, id: QueueId) -> Option<QueueId> {
        self.queues.first_from(id)
    }

    /// A queue is to live here.
    pub fn open_queue(&mut self, id: QueueId) {
        self.queues.get_or_insert_with(id, || Box::new(Queue::new(id)));
    }

    /// Breaks the order of every queue on purpose (a canary).
    pub(crate) fn break_order(&mut self) {
        self.queues.values_mut().for_each(|queue| queue.break_order());
    }

    /// A queue was deleted: its messages count no more.
    pub fn forget_queue(&mut self, id: QueueId) {
        let Some(queue) = self.queues.remove(id) else { return };
        self.duplicates.forget_queue(id);
        self.arrivals.retain(|(queue, _), _| *queue != id);
        if let Some(at) = self.expiring_at.remove(&id) {
            self.expiring.remove(&(at, id));
        }
        self.restore_memory(queue.paged_out());
        for (_, lsn, len) in queue.live_messages() {
            self.memory_bytes -= Queue::memory_bytes(len);
            self.unpin(lsn);
        }
        self.memory_bytes -= queue.added_bytes();
        self.forget_fact(Fact::Queue(id));
        self.forget_fact(Fact::NextSequence(id));
    }

    fn forget_fact(&mut self, fact: Fact) {
        self.witnessed = None;
        if let Some(segment) = self.witness.remove(&fact) {
            self.facts.remove(&(segment, fact));
        }
    }

    /// Bytes of payload, index and duplicate ids held in memory.
    #[inline]
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes + self.duplicates.memory_bytes()
    }

    /// Messages that are in the log and not gone.
    pub fn messages(&self) -> u64 {
        self.live.values().sum()
    }

    /// Messages that keep this segment.
    pub fn messages_in(&self, segment: u64) -> u64 {
        self.live.get(segment).copied().unwrap_or(0)
    }

    /// Facts whose newest record lies in this segment or before it, at most `count_max`: what
    /// still counts of a segment without messages.
    pub fn facts_up_to(&self, segment: u64, count_max: usize) -> Vec<Fact> {
        let facts = self.facts.range(..(segment + 1, Fact::NextQueueId)).map(|(_, fact)| *fact);
        let ids = self.duplicates.queues_up_to(segment).map(Fact::DuplicateIds);
        facts.chain(ids).take(count_max).collect()
    }

    /// Applies a record that stands at `lsn`, as recovery reads it.
    ///
    /// # Errors
    /// [`ApplyError`]; the state is then of no use.
    pub fn apply(&mut self, lsn: Lsn, record: &Record<'_>) -> Result<Effect, ApplyError> {
        match record.kind {
            RecordKind::Message => self.apply_fragment(lsn, record),
            RecordKind::Settle => Ok(self.apply_settle(record.queue, record.sequence)),
            RecordKind::DeliveryCount => {
                let count = record.parts.delivery_count.ok_or_else(|| {
                    ApplyError::Damage(format!("a delivery count at LSN {lsn} has no count"))
                })?;
                let setback = Setback::read(count, record.payload).map_err(|what| {
                    ApplyError::Damage(format!("the delivery count at LSN {lsn}: {what}"))
                })?;
                Ok(self.apply_setback(record.queue, record.sequence, setback))
            }
            RecordKind::QueueCreate => {
                let queue = QueueRecord::decode(record.queue, record.payload)
                    .map_err(|what| ApplyError::Damage(format!("{what} at LSN {lsn}")))?;
                Ok(self.apply_create(lsn, queue))
            }
            RecordKind::NextSequence => {
                self.apply_next_sequence(lsn, record.queue, record.sequence);
                let segment = lsn.0 / self.segment_bytes;
                for told in duplicates::carried(record.payload, segment) {
                    let told = told.map_err(|what| {
                        ApplyError::Damage(format!("the record at LSN {lsn} is damaged: {what}"))
                    })?;
                    self.remember(record.queue, told);
                }
                Ok(Effect::None)
            }
            RecordKind::NextQueueId => {
                self.catalogue.skip_to(record.queue);
                self.witnessed(lsn, Fact::NextQueueId);
                Ok(Effect::None)
            }
            RecordKind::QueueDelete => Ok(self.apply_delete(record.queue)),
            RecordKind::Reference
            | RecordKind::AddressCreate
            | RecordKind::AddressDelete
            | RecordKind::Prepare
            | RecordKind::Decide => Err(ApplyError::Newer(format!(
                "the record at LSN {lsn} is a {:?}, which this version does not know",
                record.kind
            ))),
        }
    }

    /// A whole message is in the log: its slot is taken.
    ///
    /// # Errors
    /// Its sequence was given before.
    #[inline(always)]
    pub fn apply_message(&mut self, stored: Stored) -> Result<Effect, ApplyError> {
        let id = stored.queue;
        let queue = self.queues.get_or_insert_with(id, || Box::new(Queue::new(id)));
        if stored.sequence < queue.next_sequence() {
            return self.apply_again(stored);
        }
        let Stored { lsn, sequence, message, traits, origin, .. } = stored;
        self.memory_bytes += Queue::memory_bytes(message.len());
        queue.reserve(sequence, lsn, message, traits);
        if traits.expiry_unix_ms.is_some() {
            self.note_expiry(id);
        }
        self.pin(lsn);
        self.witnessed(lsn, Fact::NextSequence(id));
        match origin {
            None => Ok(Effect::Visible(id, sequence)),
            Some(origin) => {
                self.arrivals.insert((id, sequence), origin);
                Ok(Effect::Arrived(id, sequence))
            }
        }
    }

    /// A message has a duplicate id. Its record stands at `place.start`, and is durable or ends at
    /// `place.end`.
    pub fn apply_duplicate_id(
        &mut self,
        place: Range<Lsn>,
        queue: QueueId,
        sequence: Sequence,
        id: &DuplicateId,
    ) {
        let segment = place.start.0 / self.segment_bytes;
        self.remember(queue, Told { sequence, id: id.as_bytes(), segment, end: place.end });
    }

    fn remember(&mut self, id: QueueId, told: Told<'_>) {
        let settings = self.queues.get(id).filter(|_| !self.recovering).map(|q| q.settings());
        let count_max = settings.map_or(self.duplicates.count_max(), |said| said.duplicate_ids);
        self.duplicates.remember(id, told, count_max);
    }

    /// A message is in the log that was there before: what recovery finds is its copy.
    #[cold]
    fn apply_again(&mut self, stored: Stored) -> Result<Effect, ApplyError> {
        let Stored { lsn, queue: id, sequence, message, traits, origin } = stored;
        let queue = self.queues.get_mut(id).expect("the caller has it");
        match queue.may_be(sequence, &message) {
            Some(false) => return Err(differs(lsn, id, sequence)),
            Some(true) => return Ok(self.apply_copy(lsn, id, sequence)),
            None => {}
        }
        self.memory_bytes += Queue::memory_bytes(message.len());
        queue.restore(sequence, lsn, message, traits);
        if traits.expiry_unix_ms.is_some() {
            self.note_expiry(id);
        }
        self.pin(lsn);
        match origin {
            None => Ok(Effect::Visible(id, sequence)),
            Some(origin) => {
                self.arrivals.insert((id, sequence), origin);
                Ok(Effect::Arrived(id, sequence))
            }
        }
    }

    /// A live message was copied to `lsn`. Until that is committed it lives where it was.
    pub fn apply_copy(&mut self, lsn: Lsn, id: QueueId, sequence: Sequence) -> Effect {
        self.copies.push_back(lsn);
        // Of a queue's messages only the last one tells the next sequence.
        if self.queue(id).is_some_and(|queue| queue.next_sequence().0 == sequence.0 + 1) {
            self.witnessed(lsn, Fact::NextSequence(id));
        }
        Effect::Copied(id, sequence)
    }

    /// Whether the record at `lsn` is that of a live message whose settlement is not under way: a
    /// segment is no longer needed for its messages when none of its records are.
    pub fn lives_at(&self, id: QueueId, sequence: Sequence, lsn: Lsn) -> bool {
        self.queue(id).is_some_and(|queue| queue.lives_at(sequence, lsn))
    }

    /// Messages whose bytes are on the disk only.
    pub fn paged_out(&self) -> PagedOut {
        self.paged_out
    }

    /// Bytes were read for a message, from the place that it was said to be at.
    pub fn fill(&mut self, wanted: &Wanted, read: impl FnOnce() -> Option<Bytes>) -> Filled {
        let Some(queue) = self.queues.get_mut(wanted.queue) else { return Filled::Needless };
        let filled = queue.fill(wanted, read);
        match filled {
            Filled::Held(_) => {
                self.restore_memory(PagedOut::one(wanted.message_bytes as u64));
            }
            Filled::Needless | Filled::Moved | Filled::Damaged => {}
        }
        filled
    }

    /// Drops bytes of a queue's messages; see [`Queue::shed`].
    pub fn shed(&mut self, id: QueueId, committed: Lsn, share_bytes: u64, hand: &mut Hand) -> Shed {
        let Some(queue) = self.queues.get_mut(id) else {
            return Shed { paged_out: PagedOut::default(), is_over: true };
        };
        let shed = queue.shed(committed, share_bytes, hand);
        self.paged_out.add(shed.paged_out);
        self.memory_bytes -= memory_won(shed.paged_out);
        shed
    }

    /// Commits what was read from the log: beyond so much memory its bytes stay on the disk only.
    pub fn commit_read(&mut self, effect: Effect, memory_bytes_max: u64) {
        self.commit(effect);
        if self.memory_bytes() > memory_bytes_max {
            self.page_out_read(effect);
        }
    }

    fn page_out_read(&mut self, effect: Effect) {
        let Effect::Visible(id, sequence) = effect else { return };
        let Some(queue) = self.queues.get_mut(id) else { return };
        let bytes = queue.message(sequence).map_or(0, Bytes::len) as u64;
        if queue.page_out(Lsn(u64::MAX), sequence) {
            let one = PagedOut::one(bytes);
            self.paged_out.add(one);
            self.memory_bytes -= memory_won(one);
        }
    }

    fn restore_memory(&mut self, paged_out: PagedOut) {
        self.paged_out.sub(paged_out);
        self.memory_bytes += memory_won(paged_out);
    }

    /// The bytes of a live message, if they are in memory.
    pub fn message(&self, id: QueueId, sequence: Sequence) -> Option<&Bytes> {
        self.queue(id)?.message(sequence)
    }

    /// What the log says of a live message that came back, if anything.
    pub fn setback(&self, id: QueueId, sequence: Sequence) -> Option<Setback> {
        self.queue(id)?.setback(sequence)
    }

    /// Bytes that what lives would take in the log, about; an id may count with its message too.
    pub fn log_bytes(&self) -> u64 {
        let in_memory = Queue::memory_bytes(0) - RECORD_HEADER_BYTES as u64;
        let all_bytes = self.memory_bytes + memory_won(self.paged_out);
        all_bytes - self.messages() * in_memory + self.duplicates.carried_bytes()
    }

    /// When some message expires next, and in which queue; it may be gone by then.
    pub fn next_expiry(&self) -> Option<(u64, QueueId)> {
        self.expiring.first().copied()
    }

    /// Up to `count_max` messages of the queue that is next expire, if their time is over. Gives
    /// the queue, and how many were looked at.
    pub fn expire_next(&mut self, unix_ms: u64, count_max: usize) -> Option<(QueueId, usize)> {
        let (at, id) = self.expiring.first().copied().filter(|(at, _)| *at <= unix_ms)?;
        self.expiring.remove(&(at, id));
        self.expiring_at.remove(&id);
        let count = self.queues.get_mut(id).map_or(0, |queue| queue.expire(unix_ms, count_max));
        self.note_expiry(id);
        Some((id, count))
    }

    /// The next expiry of this queue may be sooner than what is known.
    fn note_expiry(&mut self, id: QueueId) {
        let next = self.queues.get_mut(id).and_then(|queue| queue.next_expiry());
        let known = self.expiring_at.get(&id).copied();
        if let Some(next) = next
            && known.is_none_or(|known| next < known)
        {
            self.expiring_at.insert(id, next);
            self.expiring.insert((next, id));
            if let Some(known) = known {
                self.expiring.remove(&(known, id));
            }
        }
    }

    /// Whence a hidden copy came.
    pub fn origin_of(&self, id: QueueId, sequence: Sequence) -> Option<Origin> {
        self.arrivals.get(&(id, sequence)).copied()
    }

    /// Every hidden copy: its place, and whence it came.
    pub fn arrivals(&self) -> impl Iterator<Item = (QueueId, Sequence, Origin)> {
        self.arrivals.iter().map(|((id, sequence), origin)| (*id, *sequence, *origin))
    }

    /// The origin of a hidden copy is gone for good: consumers may see the copy.
    pub fn land(&mut self, id: QueueId, sequence: Sequence) {
        if self.arrivals.remove(&(id, sequence)).is_some()
            && let Some(queue) = self.queues.get_mut(id)
        {
            queue.commit(sequence);
            queue.adopt_one(sequence);
        }
    }

    /// A hidden copy is one too many: its settlement is to be appended. False if it is gone.
    pub fn drop_copy(&mut self, id: QueueId, sequence: Sequence) -> bool {
        let was_hidden = self.arrivals.remove(&(id, sequence)).is_some();
        was_hidden && self.queues.get_mut(id).is_some_and(|queue| queue.drop_copy(sequence))
    }

    /// A settlement is in the log. The live path has moved the slot before; recovery has not.
    pub fn apply_settle(&mut self, id: QueueId, sequence: Sequence) -> Effect {
        let is_live = self.queues.get_mut(id).is_some_and(|q| q.settle_from_log(sequence));
        if is_live { Effect::Gone(id, sequence) } else { Effect::None }
    }

    /// It is in the log that a message came back, perhaps as one that has to go.
    pub fn apply_setback(&mut self, id: QueueId, sequence: Sequence, setback: Setback) -> Effect {
        match self.queues.get_mut(id) {
            Some(queue) if queue.lsn(sequence).is_some() => {
                self.memory_bytes -= queue.added_bytes();
                queue.set_back(sequence, setback);
                self.memory_bytes += queue.added_bytes();
                Effect::Counted(id, sequence)
            }
            Some(_) | None => Effect::None,
        }
    }

    /// A queue's creation is in the log (of shard 0). Its id is taken; the queue is there when that
    /// is committed, and not before.
    pub fn apply_create(&mut self, lsn: Lsn, queue: QueueRecord) -> Effect {
        let id = queue.id;
        self.catalogue.skip_to(QueueId(id.0 + 1));
        self.creating.insert(id, queue);
        self.witnessed(lsn, Fact::Queue(id));
        self.witnessed(lsn, Fact::NextQueueId);
        Effect::Created(id)
    }

    /// A queue's deletion is in the log (of shard 0). The queue is gone when that is committed.
    pub fn apply_delete(&mut self, id: QueueId) -> Effect {
        self.deleting.insert(id);
        Effect::Deleted(id)
    }

    /// Whether a deletion is in the log and not committed: of this queue nothing is written again.
    pub fn is_deleting(&self, id: QueueId) -> bool {
        self.deleting.contains(&id)
    }

    /// A queue's next sequence was written again.
    pub fn apply_next_sequence(&mut self, lsn: Lsn, id: QueueId, next: Sequence) {
        self.queues.get_or_insert_with(id, || Box::new(Queue::new(id))).skip_to(next);
        self.witnessed(lsn, Fact::NextSequence(id));
    }

    /// The catalogue's next id was written again at `lsn`.
    pub fn witness_next_queue_id(&mut self, lsn: Lsn) {
        self.witnessed(lsn, Fact::NextQueueId);
    }

    /// A queue's creation was written again at `lsn`.
    pub fn witness_queue(&mut self, lsn: Lsn, id: QueueId) {
        self.witnessed(lsn, Fact::Queue(id));
    }

    /// The batch of a record is committed. What it lets go of is counted out.
    pub fn commit(&mut self, effect: Effect) {
        match effect {
            Effect::None | Effect::Arrived(..) => {}
            Effect::Copied(id, sequence) => {
                let to = self.copies.pop_front().expect("each copy is committed once");
                let from = self.queues.get_mut(id).and_then(|queue| queue.relocate(sequence, to));
                if let Some(from) = from {
                    self.unpin(from);
                    self.pin(to);
                }
            }
            Effect::Created(id) => {
                if let Some(queue) = self.creating.remove(&id) {
                    self.catalogue.insert(queue);
                }
            }
            Effect::Deleted(id) => {
                self.deleting.remove(&id);
                self.catalogue.remove(id);
                self.forget_fact(Fact::Queue(id));
            }
            Effect::Visible(id, sequence) => {
                if let Some(queue) = self.queues.get_mut(id) {
                    queue.commit(sequence);
                }
            }
            Effect::Counted(id, sequence) => {
                if let Some(queue) = self.queues.get_mut(id) {
                    queue.counted(sequence);
                }
            }
            Effect::Gone(id, sequence) => {
                let archived = self.queues.get_mut(id).and_then(|queue| queue.archive(sequence));
                if let Some(archived) = archived {
                    if archived.was_paged_out {
                        self.restore_memory(PagedOut::one(archived.message_bytes));
                    }
                    self.memory_bytes -= archived.memory_bytes;
                    self.unpin(archived.lsn);
                    if !self.arrivals.is_empty() {
                        self.arrivals.remove(&(id, sequence));
                    }
                }
            }
        }
    }

    /// Every record was read: what was begun and not ended is garbage, and everything recovered may
    /// have been delivered before.
    pub fn end_recovery(&mut self) {
        self.unfinished.clear();
        self.recovering = false;
        for queue in self.queues.values_mut() {
            queue.end_recovery();
        }
    }

    fn apply_fragment(&mut self, lsn: Lsn, record: &Record<'_>) -> Result<Effect, ApplyError> {
        let key = (record.queue, record.sequence);
        let begun = || Unfinished {
            lsn,
            fragments: 1,
            traits: traits_of(record),
            origin: record.parts.origin,
            duplicate_id: record.parts.duplicate_id.map(DuplicateId::from_record),
            bytes: BytesMut::from(record.payload),
        };
        if record.flags.has(RecordFlags::WHOLE) {
            return self.apply_whole(key, begun());
        }
        if record.flags.has(RecordFlags::FIRST) {
            self.unfinished.insert(key, begun());
            return Ok(Effect::None);
        }
        let Some(unfinished) = self.unfinished.get_mut(&key) else {
            // Its beginning was recycled: the message is settled, and this is what is left of it.
            return Ok(Effect::None);
        };
        if record.fragment != unfinished.fragments {
            return Err(ApplyError::Damage(format!(
                "fragment {} at LSN {lsn} follows {} fragments of message {} of queue {}",
                record.fragment, unfinished.fragments, record.sequence.0, record.queue.0
            )));
        }
        unfinished.fragments += 1;
        unfinished.bytes.extend_from_slice(record.payload);
        if !record.flags.has(RecordFlags::LAST) {
            return Ok(Effect::None);
        }
        match self.unfinished.remove(&key) {
            Some(whole) => self.apply_whole(key, whole),
            None => Ok(Effect::None),
        }
    }

    fn apply_whole(
        &mut self,
        (queue, sequence): (QueueId, Sequence),
        whole: Unfinished,
    ) -> Result<Effect, ApplyError> {
        let Unfinished { lsn, traits, origin, duplicate_id, bytes, .. } = whole;
        let message = bytes.freeze();
        let effect =
            self.apply_message(Stored { lsn, queue, sequence, message, traits, origin })?;
        if let Some(id) = duplicate_id {
            self.apply_duplicate_id(lsn..lsn, queue, sequence, &id);
        }
        Ok(effect)
    }

    /// The newest record of a fact stands at `lsn`.
    #[inline]
    fn witnessed(&mut self, lsn: Lsn, fact: Fact) {
        let segment = lsn.0 / self.segment_bytes;
        if self.witnessed != Some((segment, fact)) {
            self.witnessed_anew(segment, fact);
        }
    }

    fn witnessed_anew(&mut self, segment: u64, fact: Fact) {
        self.witnessed = Some((segment, fact));
        let before = self.witness.insert(fact, segment);
        if before != Some(segment) {
            if let Some(before) = before {
                self.facts.remove(&(before, fact));
            }
            self.facts.insert((segment, fact));
        }
    }

    #[inline(always)]
    fn pin(&mut self, lsn: Lsn) {
        *self.live.get_or_insert_with(lsn.0 / self.segment_bytes, || 0) += 1;
    }

    fn unpin(&mut self, lsn: Lsn) {
        let segment = lsn.0 / self.segment_bytes;
        let count = self.live.get_mut(segment).expect("a live message is counted in its segment");
        *count -= 1;
        if *count == 0 {
            self.live.remove(segment);
        }
    }
}

/// The memory that was won by dropping bytes: the index stays.
fn memory_won(paged_out: PagedOut) -> u64 {
    paged_out.bytes + paged_out.messages * (SLOT_BYTES - INDEX_BYTES)
}

#[cold]
fn differs(lsn: Lsn, id: QueueId, sequence: Sequence) -> ApplyError {
    ApplyError::Damage(format!(
        "the message at LSN {lsn} has sequence {} of queue {}, which was given to another before",
        sequence.0, id.0
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::moved::Reason;

    const SEGMENT: u64 = 1000;

    fn message(sequence: u64, payload: &[u8]) -> Record<'_> {
        Record::new(RecordKind::Message, QueueId(1), Sequence(sequence), payload)
    }

    fn settle(sequence: u64) -> Record<'static> {
        Record::new(RecordKind::Settle, QueueId(1), Sequence(sequence), &[])
    }

    fn replay(state: &mut State, lsn: u64, record: &Record<'_>) {
        let effect = state.apply(Lsn(lsn), record).unwrap();
        state.commit(effect);
    }

    #[test]
    fn a_settled_message_frees_its_segment_and_its_memory() {
        let mut state = State::new(SEGMENT, Duplicates::default());
        replay(&mut state, 10, &message(0, b"a"));
        replay(&mut state, 1010, &message(1, b"b"));
        assert_eq!((state.messages_in(0), state.messages_in(1)), (1, 1));
        replay(&mut state, 1100, &settle(0));
        assert_eq!((state.messages_in(0), state.messages()), (0, 1));
        assert_eq!(state.memory_bytes(), Queue::memory_bytes(1));
    }

    #[test]
    fn a_settlement_applied_twice_changes_nothing() {
        let mut state = State::new(SEGMENT, Duplicates::default());
        replay(&mut state, 10, &message(0, b"a"));
        replay(&mut state, 20, &settle(0));
        replay(&mut state, 20, &settle(0));
        assert_eq!((state.messages(), state.memory_bytes()), (0, 0));
        assert_eq!(state.queue(QueueId(1)).unwrap().next_sequence(), Sequence(1));
    }

    #[test]
    fn a_sequence_that_is_given_to_another_message_is_damage() {
        let mut state = State::new(SEGMENT, Duplicates::default());
        replay(&mut state, 10, &message(5, b"a"));
        let again = state.apply(Lsn(20), &message(5, b"b"));
        assert!(matches!(again, Err(ApplyError::Damage(_))), "{again:?}");
    }

    #[test]
    fn a_copy_replaces_the_place_and_nothing_else() {
        let mut state = State::new(SEGMENT, Duplicates::default());
        replay(&mut state, 10, &message(0, b"a"));
        replay(&mut state, 20, &message(1, b"b"));
        let mut failed = Record::new(RecordKind::DeliveryCount, QueueId(1), Sequence(0), &[1]);
        failed.parts.delivery_count = Some(3);
        replay(&mut state, 30, &failed);
        let memory_bytes = state.memory_bytes();
        for lsn in [2010, 3010, 3050] {
            replay(&mut state, lsn, &message(0, b"a"));
            assert_eq!((state.messages(), state.memory_bytes()), (2, memory_bytes));
            assert_eq!((state.messages_in(0), state.messages_in(lsn / SEGMENT)), (1, 1));
        }
        let rejected = Setback { count: 3, doom: Some(Reason::Rejected), added: None };
        assert_eq!(state.setback(QueueId(1), Sequence(0)), Some(rejected));
        // The last message of a queue tells its next sequence, others don't.
        assert_eq!(state.facts_up_to(0, 9), [Fact::NextSequence(QueueId(1))]);
        replay(&mut state, 4010, &message(1, b"b"));
        assert_eq!(state.facts_up_to(3, 9), []);
        replay(&mut state, 4020, &settle(0));
        replay(&mut state, 4030, &settle(1));
        assert_eq!((state.messages(), state.memory_bytes(), state.log_bytes()), (0, 0, 0));
    }

    #[test]
    fn a_copy_without_its_original_takes_its_place_in_the_order() {
        let mut state = State::new(SEGMENT, Duplicates::default());
        for sequence in [70, 71, 200] {
            replay(&mut state, 10 + sequence, &message(sequence, b"later"));
        }
        let mut expiring = message(3, b"oldest");
        expiring.parts.expiry_unix_ms = Some(1);
        for (lsn, sequence) in [(2010, 3), (2020, 69), (2030, 100)] {
            replay(&mut state, lsn, &Record { sequence: Sequence(sequence), ..expiring });
        }
        assert_eq!((state.messages(), state.messages_in(2)), (6, 3));
        let queue = state.queue(QueueId(1)).unwrap();
        let order: Vec<u64> = queue.live_messages().map(|(sequence, ..)| sequence.0).collect();
        assert_eq!(order, [3, 69, 70, 71, 100, 200]);
        assert_eq!((queue.next_sequence(), queue.next_expiry()), (Sequence(201), Some(1)));
        assert_eq!(state.facts_up_to(0, 9), [Fact::NextSequence(QueueId(1))], "not the copies");
    }

    #[test]
    fn a_message_that_is_settled_before_its_copy_is_committed_keeps_nothing() {
        let mut state = State::new(SEGMENT, Duplicates::default());
        replay(&mut state, 10, &message(0, b"a"));
        replay(&mut state, 20, &message(1, b"b"));
        let (queue, first, second) = (QueueId(1), Sequence(0), Sequence(1));
        let copied = [first, second].map(|sequence| {
            assert!(state.lives_at(queue, sequence, Lsn(10 + 10 * sequence.0)));
            state.apply_copy(Lsn(2010 + 10 * sequence.0), queue, sequence)
        });
        assert_eq!(state.messages_in(0), 2, "it lives where it was until the copy is committed");
        let gone = state.apply_settle(queue, first);
        assert!(!state.lives_at(queue, first, Lsn(10)), "a settlement is appended");
        state.commit(gone);
        copied.into_iter().for_each(|effect| state.commit(effect));
        assert_eq!((state.messages_in(0), state.messages_in(2), state.messages()), (0, 1, 1));
        assert!(state.lives_at(queue, second, Lsn(2020)));
    }

    #[test]
    fn the_newest_witness_of_a_sequence_is_what_must_be_copied() {
        let mut state = State::new(SEGMENT, Duplicates::default());
        replay(&mut state, 10, &message(0, b"a"));
        assert_eq!(state.facts_up_to(0, 9), [Fact::NextSequence(QueueId(1))]);
        let mut next = Record::new(RecordKind::NextSequence, QueueId(1), Sequence(1), &[]);
        replay(&mut state, 2010, &next);
        assert_eq!(state.facts_up_to(1, 9), []);
        next.sequence = Sequence(0);
        replay(&mut state, 2020, &next);
        assert_eq!(state.queue(QueueId(1)).unwrap().next_sequence(), Sequence(1));
    }

    #[test]
    fn fragments_make_a_message_and_half_of_one_makes_nothing() {
        let mut state = State::new(SEGMENT, Duplicates::default());
        let mut first = message(0, b"he");
        first.flags = RecordFlags::FIRST;
        let mut last = message(0, b"llo");
        last.flags = RecordFlags::LAST;
        last.fragment = 1;
        replay(&mut state, 990, &first);
        assert_eq!(state.messages(), 0);
        replay(&mut state, 1010, &last);
        assert_eq!((state.messages_in(0), state.messages_in(1)), (1, 0));
        first.sequence = Sequence(1);
        replay(&mut state, 1990, &first);
        state.end_recovery();
        assert_eq!(state.messages(), 1);
        last.sequence = Sequence(9);
        replay(&mut state, 2990, &last);
        assert_eq!(state.messages(), 1, "an end without its beginning is nothing");
    }

    #[test]
    fn a_queue_record_of_a_later_version_is_refused() {
        let mut state = State::new(SEGMENT, Duplicates::default());
        let record = Record::new(RecordKind::AddressDelete, QueueId(1), Sequence(0), &[]);
        assert!(matches!(state.apply(Lsn(1), &record), Err(ApplyError::Newer(_))));
    }
}
