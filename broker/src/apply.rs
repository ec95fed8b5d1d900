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
//! A start may begin with what a checkpoint tells (`apply/checkpoint.rs`) and go on with the log.
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
//! changed by that (`queue/payload.rs`). Of a message in fragments what is read keeps the places
//! and no bytes, so that it may be longer than memory. Its last fragment makes it a message, and
//! takes the slot. A chain that is not whole (`halves.rs`) keeps the segment in which it begins for
//! as long as the rest may come: until it is settled (it was given up, or was a copy), or another
//! reign begins. Its sequence is given from its first fragment on, and never to another.
//!
//! Invariants: a settlement, a count, a copy or a fact applied twice changes nothing the second
//! time; a copy that says something else than the original, like any record that cannot be, is
//! damage and stops the start.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroU64;
use std::ops::Range;

use bytes::Bytes;
use journal::limits::RECORD_HEADER_BYTES;
use journal::{FragmentAt, Lsn, Origin, Parts, QueueId, Record, RecordFlags, RecordKind, Sequence};

use crate::catalogue::{Catalogue, QueueRecord};
use crate::duplicates::{self, DuplicateId, Duplicates, Told};
use crate::flat_map::FlatMap;
use crate::halves::{Half, Halves};
use crate::limits::{ARRIVAL_BYTES, INDEX_BYTES, SCHEDULE_BYTES, SLOT_BYTES};
use crate::queue::{Archived, Chain, Filled, Hand, Large, PagedOut, Queue, Shed, Traits, Wanted};
use crate::setback::Setback;

mod checkpoint;

pub use checkpoint::{Cursor, Load};

/// What happens to the state when a record is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing more.
    None,
    /// A message becomes visible.
    Visible(QueueId, Sequence),
    /// A message is there, and becomes visible when its time comes.
    Scheduled(QueueId, Sequence),
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
    /// Queues that were deleted, with the messages that count still.
    forgotten: VecDeque<Box<Queue>>,
    /// Which queues there are. Shard 0's is the truth, the others' a read map.
    pub catalogue: Catalogue,
    creating: BTreeMap<QueueId, QueueRecord>,
    /// Deletions that are in the log and not committed.
    deleting: BTreeSet<QueueId>,
    halves: Halves,
    /// When messages expire, or are to be delivered, by queue: each queue once, with a time that is
    /// not after its next.
    due: BTreeSet<(u64, QueueId)>,
    due_at: BTreeMap<QueueId, u64>,
    /// Copies that are hidden, by their place; whence each came.
    arrivals: BTreeMap<(QueueId, Sequence), Origin>,
    live: FlatMap<u64, u64>,
    /// The places of copies that are not committed, in the order of the log.
    copies: VecDeque<(Lsn, Option<Chain>)>,
    witness: BTreeMap<Fact, u64>,
    /// What was witnessed last: most often the same is again.
    witnessed: Option<(u64, Fact)>,
    facts: BTreeSet<(u64, Fact)>,
    memory_bytes: u64,
    /// What queues keep of messages beside that, when each was last looked at: [`Self::recount`].
    order_bytes: u64,
    /// Messages whose bytes are on the disk only.
    paged_out: PagedOut,
    /// Of messages in fragments that were taken in, how long the longest was.
    longest_bytes: u64,
    /// What was here before, by the ids that producers gave it.
    pub duplicates: Duplicates,
    /// The log is not read to its end yet: settings of queues are not known.
    recovering: bool,
    /// The newest sequences that the log has told since the checkpoint that the state began with.
    read: Option<BTreeMap<QueueId, Sequence>>,
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
    let Parts { priority, expiry_unix_ms, delivery_unix_ms, .. } = record.parts;
    let delivery_unix_ms = delivery_unix_ms.and_then(NonZeroU64::new);
    let is_whole = record.flags.has(RecordFlags::WHOLE);
    let parts_bytes = u16::try_from(record.parts_len()).ok().filter(|_| is_whole);
    Traits { priority, expiry_unix_ms, delivery_unix_ms, parts_bytes, ..Traits::default() }
}

impl State {
    /// The state of an empty log with segments of this size.
    pub fn new(segment_bytes: u64, duplicates: Duplicates) -> Self {
        Self {
            segment_bytes,
            queues: FlatMap::default(),
            forgotten: VecDeque::new(),
            catalogue: Catalogue::new(),
            creating: BTreeMap::new(),
            deleting: BTreeSet::new(),
            halves: Halves::default(),
            due: BTreeSet::new(),
            due_at: BTreeMap::new(),
            arrivals: BTreeMap::new(),
            live: FlatMap::default(),
            copies: VecDeque::new(),
            witness: BTreeMap::new(),
            witnessed: None,
            facts: BTreeSet::new(),
            memory_bytes: 0,
            order_bytes: 0,
            paged_out: PagedOut::default(),
            longest_bytes: 0,
            duplicates,
            recovering: true,
            read: None,
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

    /// A queue was deleted. Its messages count until they are [cleared](Self::clear) away.
    pub fn forget_queue(&mut self, id: QueueId) {
        let Some(queue) = self.queues.remove(id) else { return };
        self.duplicates.forget_queue(id);
        self.change_halves(|halves| halves.forget_queue(id));
        let before = self.arrivals_bytes();
        self.arrivals.retain(|(queue, _), _| *queue != id);
        self.memory_bytes -= before - self.arrivals_bytes();
        if let Some(at) = self.due_at.remove(&id) {
            self.due.remove(&(at, id));
        }
        self.forgotten.push_back(queue);
        self.forget_fact(Fact::Queue(id));
        self.forget_fact(Fact::NextSequence(id));
    }

    /// Up to `count_max` messages of queues that were deleted count no more.
    pub fn clear(&mut self, count_max: usize) {
        for _ in 0..count_max {
            let Some(queue) = self.forgotten.front_mut() else { return };
            match queue.drop_first() {
                Some(archived) => {
                    count_anew(&mut self.order_bytes, queue);
                    self.let_go(archived);
                }
                None => {
                    self.order_bytes -= queue.recount().0;
                    self.forgotten.pop_front();
                }
            }
        }
    }

    /// Who has a priority or came back may have changed in this queue: what that takes of memory
    /// counts as it is now.
    #[inline]
    pub fn recount(&mut self, id: QueueId) {
        if let Some(queue) = self.queues.get_mut(id) {
            count_anew(&mut self.order_bytes, queue);
        }
    }

    /// Whether messages of deleted queues count still.
    pub fn is_clearing(&self) -> bool {
        !self.forgotten.is_empty()
    }

    /// A message is gone.
    fn let_go(&mut self, archived: Archived) {
        if archived.was_paged_out {
            self.restore_memory(PagedOut::one(archived.message_bytes));
        }
        self.memory_bytes -= archived.memory_bytes;
        self.unpin(archived.lsn);
    }

    fn forget_fact(&mut self, fact: Fact) {
        self.witnessed = None;
        if let Some(segment) = self.witness.remove(&fact) {
            self.facts.remove(&(segment, fact));
        }
    }

    /// Bytes of payload, index, what is kept for the order of messages, and duplicate ids held in
    /// memory.
    #[inline]
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes + self.order_bytes + self.duplicates.memory_bytes()
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
            RecordKind::Settle => {
                // What was given up, a copy too, for that nothing more comes.
                self.take_half((record.queue, record.sequence));
                Ok(self.apply_settle(record.queue, record.sequence))
            }
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
        let Stored { lsn, queue: id, sequence, message, traits, origin } = stored;
        let queue = self.queues.get_or_insert_with(id, || Box::new(Queue::new(id)));
        if sequence < queue.next_sequence() {
            let stored = Stored { lsn, queue: id, sequence, message, traits, origin };
            return self.apply_again(stored);
        }
        self.memory_bytes += Queue::memory_bytes(message.len());
        queue.reserve(sequence, lsn, message, traits);
        self.pin(lsn);
        self.witnessed(lsn, Fact::NextSequence(id));
        Ok(self.applied((id, sequence), traits, origin))
    }

    /// What becomes of a message that is in the log, when that is committed.
    #[inline(always)]
    fn applied(
        &mut self,
        (id, sequence): (QueueId, Sequence),
        traits: Traits,
        origin: Option<Origin>,
    ) -> Effect {
        if traits.expiry_unix_ms.is_some() {
            self.note_due(id);
            self.recount(id);
        }
        match (origin, traits.delivery_unix_ms) {
            (None, None) => Effect::Visible(id, sequence),
            (None, Some(unix_ms)) => self.schedule(id, sequence, unix_ms),
            (Some(origin), _) => {
                if self.arrivals.insert((id, sequence), origin).is_none() {
                    self.memory_bytes += ARRIVAL_BYTES;
                }
                Effect::Arrived(id, sequence)
            }
        }
    }

    #[cold]
    fn schedule(&mut self, id: QueueId, sequence: Sequence, unix_ms: NonZeroU64) -> Effect {
        if let Some(queue) = self.queues.get_mut(id) {
            queue.schedule(sequence, unix_ms.get());
            self.memory_bytes += SCHEDULE_BYTES;
        }
        self.note_due(id);
        Effect::Scheduled(id, sequence)
    }

    /// A message in fragments is in the log, the last of them too: its slot is taken. Its sequence
    /// may be behind that of others; where it is there already, this is its copy.
    ///
    /// # Errors
    /// Its sequence was given to another.
    pub fn apply_large(
        &mut self,
        (id, sequence): (QueueId, Sequence),
        large: Large,
        traits: Traits,
        origin: Option<Origin>,
    ) -> Result<Effect, ApplyError> {
        let queue = self.queues.get_or_insert_with(id, || Box::new(Queue::new(id)));
        let lsn = large.chain.lsn();
        match queue.message_bytes(sequence) {
            Some(bytes) if bytes != large.message_bytes => return Err(differs(lsn, id, sequence)),
            Some(_) => return Ok(self.apply_copy(lsn, Some(large.chain), (id, sequence))),
            None => {}
        }
        self.memory_bytes += Queue::memory_bytes(large.message_bytes) + large.chain.memory_bytes();
        self.longest_bytes = self.longest_bytes.max(large.message_bytes as u64);
        let outside = large.message.is_none().then_some(large.message_bytes as u64);
        let is_newest = sequence >= queue.next_sequence();
        queue.take_large(sequence, large, traits);
        if let Some(message_bytes) = outside {
            self.count_outside(message_bytes);
        }
        self.pin(lsn);
        if is_newest {
            self.witnessed(lsn, Fact::NextSequence(id));
        }
        Ok(self.applied((id, sequence), traits, origin))
    }

    /// A message was taken in whose bytes are on the disk only.
    fn count_outside(&mut self, message_bytes: u64) {
        let outside = PagedOut::one(message_bytes);
        self.paged_out.add(outside);
        self.memory_bytes -= memory_won(outside);
    }

    /// How long the longest message in fragments was, in bytes, of all since the start.
    pub fn longest_bytes(&self) -> u64 {
        self.longest_bytes
    }

    /// Where the oldest message begins whose last fragment may yet come, and which it is: the log
    /// is needed from there on, and a state that is built from a later place lacks it.
    pub fn oldest_half(&self) -> Option<(Lsn, QueueId, Sequence)> {
        self.halves.oldest()
    }

    /// Whether a chain that may yet end begins before `lsn`.
    pub fn has_chain_before(&self, lsn: Lsn) -> bool {
        self.halves.oldest().is_some_and(|(begins, ..)| begins < lsn)
    }

    /// Nothing more comes of chains that begin before `lsn`: who wrote them ended there.
    pub fn forget_chains_before(&mut self, lsn: Lsn) {
        if self.has_chain_before(lsn) {
            self.change_halves(|halves| halves.forget_before(lsn));
        }
    }

    /// Where the first message begins that begins before `lsn` and ends behind it, or may.
    pub fn chain_over(&self, lsn: Lsn) -> Option<Lsn> {
        let whole = self.queues.values().filter_map(|queue| queue.chain_over(lsn)).min();
        let half = self.halves.oldest().map(|(begins, ..)| begins).filter(|begins| *begins < lsn);
        whole.into_iter().chain(half).min()
    }

    /// Changes what has begun and not ended, which counts as memory.
    fn change_halves<T>(&mut self, change: impl FnOnce(&mut Halves) -> T) -> T {
        let before = self.halves.memory_bytes();
        let changed = change(&mut self.halves);
        self.memory_bytes = self.memory_bytes + self.halves.memory_bytes() - before;
        changed
    }

    /// A message is whole, or nothing more comes of it.
    fn take_half(&mut self, key: (QueueId, Sequence)) -> Option<Half> {
        // Nearly always there is none.
        if self.halves.is_empty() { None } else { self.change_halves(|halves| halves.take(key)) }
    }

    /// The messages of a queue that are not whole.
    pub fn halves_of(&self, id: QueueId) -> impl Iterator<Item = Sequence> {
        self.halves.of_queue(id)
    }

    /// Fragments of a message that is not whole.
    pub fn half_fragments(&self, id: QueueId, sequence: Sequence) -> Option<usize> {
        self.halves.fragments((id, sequence))
    }

    /// Every message that is not whole becomes one, as far as it came (a canary).
    pub(crate) fn show_halves(&mut self) {
        for (id, sequence) in self.halves.keys() {
            let Some(half) = self.take_half((id, sequence)) else { continue };
            if half.chain.len() > 1
                && let Ok(effect) = self.apply_half((id, sequence), half)
            {
                self.commit(effect);
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
            Some(true) => return Ok(self.apply_copy(lsn, None, (id, sequence))),
            None => {}
        }
        self.memory_bytes += Queue::memory_bytes(message.len());
        queue.restore(sequence, lsn, message, traits);
        self.pin(lsn);
        Ok(self.applied((id, sequence), traits, origin))
    }

    /// A live message was copied to `lsn`, one in fragments to this chain. Until that is committed
    /// it lives where it was.
    pub fn apply_copy(
        &mut self,
        lsn: Lsn,
        chain: Option<Chain>,
        (id, sequence): (QueueId, Sequence),
    ) -> Effect {
        self.copies.push_back((lsn, chain));
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
            Filled::Part | Filled::Needless | Filled::Moved(_) | Filled::Damaged => {}
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
        if let Effect::Visible(id, _) | Effect::Scheduled(id, _) | Effect::Counted(id, _) = effect {
            self.recount(id);
        }
        if self.memory_bytes() > memory_bytes_max {
            self.page_out_read(effect);
        }
    }

    fn page_out_read(&mut self, effect: Effect) {
        let (Effect::Visible(id, sequence)
        | Effect::Scheduled(id, sequence)
        | Effect::Arrived(id, sequence)) = effect
        else {
            return;
        };
        let Some(queue) = self.queues.get_mut(id) else { return };
        let bytes = queue.message(sequence).map_or(0, Bytes::len) as u64;
        if queue.page_out_read(Lsn(u64::MAX), sequence) {
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
        let beside = self.halves.memory_bytes() + self.arrivals_bytes();
        let whole = self.memory_bytes - beside + memory_won(self.paged_out);
        let all_bytes = whole + self.halves.message_bytes();
        all_bytes - self.messages() * in_memory + self.duplicates.carried_bytes()
    }

    /// When some message expires or is to be delivered next, milliseconds since 1970; it may be
    /// gone by then.
    pub fn next_due(&self) -> Option<u64> {
        self.due.first().map(|(unix_ms, _)| *unix_ms)
    }

    /// Up to `count_max` messages of the queue that is next expire, or become available, if it is
    /// time. Gives the queue, and how many were looked at.
    pub fn come_due(&mut self, unix_ms: u64, count_max: usize) -> Option<(QueueId, usize)> {
        let (at, id) = self.due.first().copied().filter(|(at, _)| *at <= unix_ms)?;
        self.due.remove(&(at, id));
        self.due_at.remove(&id);
        let mut count = 0;
        if let Some(queue) = self.queues.get_mut(id) {
            // What has expired must not become available before.
            count = queue.expire(unix_ms, count_max);
            count += queue.ripen(unix_ms, count_max - count);
        }
        self.note_due(id);
        Some((id, count))
    }

    /// What is due next in this queue may be so sooner than what is known.
    fn note_due(&mut self, id: QueueId) {
        let next = self.queues.get_mut(id).and_then(|queue| {
            let times = [queue.next_expiry(), queue.next_delivery()];
            times.into_iter().flatten().min()
        });
        let known = self.due_at.get(&id).copied();
        if let Some(next) = next
            && known.is_none_or(|known| next < known)
        {
            self.due_at.insert(id, next);
            self.due.insert((next, id));
            if let Some(known) = known {
                self.due.remove(&(known, id));
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

    fn arrivals_bytes(&self) -> u64 {
        self.arrivals.len() as u64 * ARRIVAL_BYTES
    }

    /// Whence a copy came is of no interest any more. False if it was not.
    fn forget_arrival(&mut self, id: QueueId, sequence: Sequence) -> bool {
        let was_hidden = self.arrivals.remove(&(id, sequence)).is_some();
        self.memory_bytes -= if was_hidden { ARRIVAL_BYTES } else { 0 };
        was_hidden
    }

    /// The origin of a hidden copy is gone for good: consumers may see the copy.
    pub fn land(&mut self, id: QueueId, sequence: Sequence) {
        if self.forget_arrival(id, sequence)
            && let Some(queue) = self.queues.get_mut(id)
        {
            queue.commit(sequence);
            queue.adopt_one(sequence);
        }
    }

    /// A hidden copy is one too many: its settlement is to be appended. False if it is gone.
    pub fn drop_copy(&mut self, id: QueueId, sequence: Sequence) -> bool {
        let was_hidden = self.forget_arrival(id, sequence);
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
        // The copy of an older queue's record does not tell it.
        if self.catalogue.next_id() == QueueId(id.0 + 1) {
            self.witnessed(lsn, Fact::NextQueueId);
        }
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
    #[inline(always)]
    pub fn commit(&mut self, effect: Effect) {
        match effect {
            Effect::None | Effect::Arrived(..) => {}
            Effect::Copied(id, sequence) => {
                let (to, chain) = self.copies.pop_front().expect("each copy is committed once");
                let Some(queue) = self.queues.get_mut(id) else { return };
                self.memory_bytes -= queue.chain_bytes();
                let from = queue.relocate(sequence, to, chain);
                self.memory_bytes += queue.chain_bytes();
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
            Effect::Scheduled(id, sequence) => {
                if let Some(queue) = self.queues.get_mut(id) {
                    queue.commit_scheduled(sequence);
                }
            }
            Effect::Counted(id, sequence) => {
                if let Some(queue) = self.queues.get_mut(id) {
                    queue.counted(sequence);
                }
            }
            Effect::Gone(id, sequence) => {
                let Some(queue) = self.queues.get_mut(id) else { return };
                if let Some(archived) = queue.archive(sequence) {
                    count_anew(&mut self.order_bytes, queue);
                    self.let_go(archived);
                    if !self.arrivals.is_empty() {
                        self.forget_arrival(id, sequence);
                    }
                }
            }
        }
    }

    /// Every record was read: what was begun and not ended is garbage, and everything recovered may
    /// have been delivered before.
    pub fn end_recovery(&mut self) {
        self.change_halves(Halves::clear);
        (self.recovering, self.read) = (false, None);
        for queue in self.queues.values_mut() {
            queue.end_recovery();
        }
    }

    fn apply_fragment(&mut self, lsn: Lsn, record: &Record<'_>) -> Result<Effect, ApplyError> {
        let key = (record.queue, record.sequence);
        let is_newest_read = self.note_read(key);
        if record.flags.has(RecordFlags::WHOLE) {
            return self.apply_whole(lsn, record);
        }
        let at = FragmentAt::new(lsn, record);
        if record.flags.has(RecordFlags::FIRST) {
            let (id, sequence) = key;
            let queue = self.queues.get_or_insert_with(id, || Box::new(Queue::new(id)));
            let is_original = sequence >= queue.next_sequence();
            if is_original {
                queue.skip_to(Sequence(sequence.0 + 1));
                self.witnessed(lsn, Fact::NextSequence(id));
            }
            let mut half = Half::begin(at, record, traits_of(record), is_original);
            half.is_newest_read = is_newest_read;
            self.change_halves(|halves| halves.begin(key, half));
            return Ok(Effect::None);
        }
        let Some(fragments) = self.halves.fragments(key) else {
            // Its beginning was recycled: the message is settled, and this is what is left of it.
            return Ok(Effect::None);
        };
        if usize::from(record.fragment) != fragments {
            return Err(ApplyError::Damage(format!(
                "fragment {} at LSN {lsn} follows {fragments} fragments of message {} of queue {}",
                record.fragment, record.sequence.0, record.queue.0
            )));
        }
        self.change_halves(|halves| halves.go_on(key, at, record.payload.len()));
        if !record.flags.has(RecordFlags::LAST) {
            return Ok(Effect::None);
        }
        match self.take_half(key) {
            Some(half) => self.apply_half(key, half),
            None => Ok(Effect::None),
        }
    }

    /// A message has come to its end.
    fn apply_half(&mut self, key: (QueueId, Sequence), half: Half) -> Result<Effect, ApplyError> {
        let Half { chain, traits, origin, duplicate_id, message_bytes, .. } = half;
        let (is_original, is_newest_read) = (half.is_original, half.is_newest_read);
        let chain = Chain::new(chain);
        let place = chain.lsn()..chain.end();
        let large = Large { chain, message: None, message_bytes };
        let is_copy = self.queue(key.0).is_some_and(|queue| queue.message_bytes(key.1).is_some());
        let effect = self.apply_large(key, large, traits, origin)?;
        if let Some(id) = duplicate_id {
            // It is remembered from its end on, like one that came whole then.
            let next = self.queues.get(key.0).map_or(key.1, |queue| queue.next_sequence());
            let may_be = is_newest_read && !is_copy;
            let rank = if is_original { next } else { self.rank_of_end(key, &id, may_be) };
            self.apply_duplicate_id(place, key.0, rank, &id);
        }
        Ok(effect)
    }

    fn apply_whole(&mut self, lsn: Lsn, record: &Record<'_>) -> Result<Effect, ApplyError> {
        let (queue, sequence) = (record.queue, record.sequence);
        let (traits, origin) = (traits_of(record), record.parts.origin);
        let message = Bytes::copy_from_slice(record.payload);
        let effect =
            self.apply_message(Stored { lsn, queue, sequence, message, traits, origin })?;
        if let Some(id) = record.parts.duplicate_id.map(DuplicateId::from_record) {
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
        // Behind a checkpoint, records are read that are older than what that knows.
        if self.witness.get(&fact).is_some_and(|known| *known >= segment) {
            return;
        }
        if let Some(before) = self.witness.insert(fact, segment) {
            self.facts.remove(&(before, fact));
        }
        self.facts.insert((segment, fact));
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

/// What a queue keeps beside its slots counts as it is now.
#[inline]
fn count_anew(order_bytes: &mut u64, queue: &mut Queue) {
    let (before, now) = queue.recount();
    *order_bytes = *order_bytes - before + now;
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
    use crate::queue::SlotState;

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
    fn a_chain_keeps_the_segment_in_which_it_begins_until_it_can_have_no_end() {
        let part = |number: u16, flags: RecordFlags, payload: &'static [u8]| {
            let mut record = message(0, payload);
            (record.fragment, record.flags) = (number, flags);
            record
        };
        let (none, last) = (RecordFlags::WHOLE.without(RecordFlags::WHOLE), RecordFlags::LAST);
        let first = part(0, RecordFlags::FIRST, b"a");
        let mut state = State::new(SEGMENT, Duplicates::default());
        replay(&mut state, 900, &first);
        replay(&mut state, 1100, &part(1, none, b"b"));
        let kept = |state: &State| (state.messages_in(0), state.has_chain_before(Lsn(SEGMENT)));
        assert_eq!(kept(&state), (0, true));
        replay(&mut state, 2100, &part(2, last, b"c"));
        assert_eq!(kept(&state), (1, false), "it is a message");
        // A copy without an end goes with its message, and any chain with the reign that began it.
        replay(&mut state, 2200, &first);
        assert!(state.has_chain_before(Lsn(3000)) && !state.has_chain_before(Lsn(2200)));
        replay(&mut state, 2300, &settle(0));
        assert!(!state.has_chain_before(Lsn(3000)));
        let mut next = part(0, RecordFlags::FIRST, b"d");
        next.sequence = Sequence(1);
        replay(&mut state, 2400, &next);
        state.forget_chains_before(Lsn(2400));
        assert!(state.has_chain_before(Lsn(3000)));
        state.forget_chains_before(Lsn(2401));
        assert!(!state.has_chain_before(Lsn(3000)));
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
    fn a_time_to_be_delivered_at_is_found_in_the_record_and_in_its_copy() {
        let mut state = State::new(SEGMENT, Duplicates::default());
        let queue = QueueId(1);
        let mut later = message(0, b"later");
        later.parts.delivery_unix_ms = Some(50);
        replay(&mut state, 10, &message(7, b"now"));
        // The original is gone; one that was moved here has no time any more.
        replay(&mut state, 1010, &later);
        let mut moved = Record { sequence: Sequence(8), ..later };
        moved.parts.origin =
            Some(Origin { shard: journal::ShardId(0), queue, sequence: Sequence(1) });
        replay(&mut state, 1020, &moved);
        assert_eq!(state.next_due(), Some(50));
        let delayed = |state: &State| state.queue(queue).unwrap().count(SlotState::Delayed);
        assert_eq!((state.come_due(49, 9), delayed(&state)), (None, 1));
        // Its own copy changes the place and nothing else.
        let memory_bytes = state.memory_bytes();
        replay(&mut state, 2010, &later);
        assert_eq!((state.memory_bytes(), delayed(&state)), (memory_bytes, 1));
        assert_eq!((state.come_due(50, 9), delayed(&state)), (Some((queue, 1)), 0));
        assert_eq!((state.next_due(), state.come_due(99, 9)), (None, None));
        for sequence in [0, 7] {
            replay(&mut state, 3010 + sequence, &settle(sequence));
        }
        assert_eq!(state.memory_bytes(), Queue::memory_bytes(5) + ARRIVAL_BYTES);
    }

    #[test]
    fn a_message_that_is_settled_before_its_copy_is_committed_keeps_nothing() {
        let mut state = State::new(SEGMENT, Duplicates::default());
        replay(&mut state, 10, &message(0, b"a"));
        replay(&mut state, 20, &message(1, b"b"));
        let (queue, first, second) = (QueueId(1), Sequence(0), Sequence(1));
        let copied = [first, second].map(|sequence| {
            assert!(state.lives_at(queue, sequence, Lsn(10 + 10 * sequence.0)));
            state.apply_copy(Lsn(2010 + 10 * sequence.0), None, (queue, sequence))
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
    fn the_copy_of_an_older_queues_record_does_not_tell_the_next_id() {
        let mut state = State::new(SEGMENT, Duplicates::default());
        let mut create = |lsn, id: u64| {
            let queue = QueueRecord {
                id: QueueId(id),
                home: journal::ShardId(0),
                level: journal::Level::Sync,
                name: format!("q{id}"),
                temporary: None,
            };
            let effect = state.apply_create(Lsn(lsn), queue);
            state.commit(effect);
            state.facts_up_to(0, 9)
        };
        create(10, 1);
        let [first, second] = [1, 2].map(|id| Fact::Queue(QueueId(id)));
        assert_eq!(create(20, 2), [Fact::NextQueueId, first, second]);
        assert_eq!(create(2010, 1), [Fact::NextQueueId, second], "recycled, id 2 was given again");
        assert_eq!(create(2020, 3), [second], "the newest one tells it");
    }

    /// However many of them there are, and though each is hidden until its origin is asked for.
    #[test]
    fn copies_that_are_read_leave_their_bytes_on_the_disk() {
        const MAX: u64 = 10_000;
        let mut state = State::new(SEGMENT, Duplicates::default());
        let payload = [7; 1000];
        for n in 0..1000 {
            let mut copy = message(n, &payload);
            let (shard, queue) = (journal::ShardId(1), QueueId(2));
            copy.parts.origin = Some(Origin { shard, queue, sequence: Sequence(n) });
            let effect = state.apply(Lsn(n * 1100), &copy).unwrap();
            assert_eq!(effect, Effect::Arrived(QueueId(1), Sequence(n)));
            state.commit_read(effect, MAX);
        }
        let memory_bytes = state.memory_bytes();
        let index_bytes = 1000 * (INDEX_BYTES + ARRIVAL_BYTES);
        assert!(memory_bytes > index_bytes && memory_bytes <= MAX + index_bytes, "{memory_bytes}");
        state.land(QueueId(1), Sequence(999));
        assert_eq!(state.memory_bytes(), memory_bytes - ARRIVAL_BYTES);
        assert_eq!(state.queue(QueueId(1)).unwrap().count(SlotState::Available), 1);
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
        assert_eq!(state.paged_out(), PagedOut { messages: 1, bytes: 5 });
        let memory_bytes = state.memory_bytes();
        assert!(memory_bytes > INDEX_BYTES && memory_bytes < 4 * SLOT_BYTES, "{memory_bytes}");
        // A copy has places of its own, and the same bytes.
        replay(&mut state, 5010, &first);
        replay(&mut state, 6010, &last);
        assert_eq!((state.messages_in(0), state.messages_in(5)), (0, 1));
        assert_eq!((state.messages(), state.memory_bytes()), (1, memory_bytes));
        let chain = state.queue(QueueId(1)).and_then(|queue| queue.chain(Sequence(0)));
        assert_eq!(chain.map(|chain| chain.fragments()[1].lsn), Some(Lsn(6010)));
        first.sequence = Sequence(1);
        replay(&mut state, 1990, &first);
        state.end_recovery();
        assert_eq!(state.messages(), 1);
        last.sequence = Sequence(9);
        replay(&mut state, 2990, &last);
        assert_eq!(state.messages(), 1, "an end without its beginning is nothing");
        replay(&mut state, 7000, &settle(0));
        assert_eq!((state.messages(), state.memory_bytes()), (0, 0));
        assert_eq!(state.paged_out(), PagedOut::default());
    }

    #[test]
    fn a_queue_record_of_a_later_version_is_refused() {
        let mut state = State::new(SEGMENT, Duplicates::default());
        let record = Record::new(RecordKind::AddressDelete, QueueId(1), Sequence(0), &[]);
        assert!(matches!(state.apply(Lsn(1), &record), Err(ApplyError::Newer(_))));
    }
}
