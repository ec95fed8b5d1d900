//! A message moves to another queue, on this shard or another: the one thing that crosses shards.
//!
//! ```text
//!   source's home                                   destination's home
//!   1 Moving: nobody gets it here
//!   2 what the log says of it is committed
//!     everywhere: its sequence is its for ever
//!   3 the destination is found, or provided
//!   4 Publish ────────────────────────────────────▶ 5 the copy is appended, with its origin
//!                                                   6 committed everywhere; still hidden
//!   8 the settlement is appended ◀─────────── Moved 7
//!   9 committed everywhere ────────────── Landed ──▶ 10 shown
//! ```
//! Whenever it stops, the logs say where the message is:
//!
//! | stopped before | source | copy | after recovery |
//! |---|---|---|---|
//! | 6 | live | none, or whole | as below |
//! | 9 | live | hidden | each shard tells the others its hidden copies: the source is settled, 8 |
//! | 10 | gone | hidden | the source's home knows no such message: shown, 10 |
//!
//! The questions are asked before any shard serves, so no consumer has the source while its copy
//! waits. A copy is shown only when its source can't come back, and a source is settled only when
//! its copy can't be lost: the message is in exactly one place. Step 2 is why an origin never names
//! another message: a sequence that was lost with the tail of a log is given again.
//!
//! Who takes no copy says so. With disk or memory full there, the message is offered to consumers
//! again, who alone can make room (but one that has expired is not), and moves after its next
//! failure; otherwise it stays hidden and is tried again, later and later.
//!
//! Invariants: at most [`MOVES_MAX`] are under way; each is in `under_way` from 1 to 9 or until it
//! is given up; a move is sent again only after a refusal, so there is never a second copy.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use journal::{Level, Origin, QueueId, Sequence, ShardId, Urgency};

use super::{Phase, Shard};
use crate::canary::Canary;
use crate::event::earlier;
use crate::limits::{EXPIRE_STEP, MOVE_RETRY_MAX, MOVE_RETRY_MIN, MOVES_MAX, PURGE_PAUSE};
use crate::mail::{CopyRef, Mail, Refusal, Whence};
use crate::moved::{Death, Reason, moved};
use crate::pending::{Answer, Waiting};
use crate::queue::{Leaving, Queue, Traits};

/// What is on its way to other queues.
#[derive(Debug, Default)]
pub(super) struct Moves {
    under_way: BTreeMap<(QueueId, Sequence), Move>,
    /// Committed everywhere: they may be sent.
    ready: Vec<(QueueId, Sequence)>,
    /// Queues in which something waits to be moved.
    waiting: BTreeSet<QueueId>,
    /// What was not taken, by the time of its next try.
    retries: BTreeSet<(Instant, QueueId, Sequence)>,
    /// When the next may begin, if many have begun in one turn.
    begin_at: Option<Instant>,
    /// Names that shard 0 was asked to provide, and how long that is waited for.
    asked: BTreeMap<String, Instant>,
    /// Failures in a row of what was not taken.
    failures: BTreeMap<(QueueId, Sequence), u32>,
    /// Hidden copies that the other shards have of ours, until we serve.
    arrivals: Vec<(Origin, CopyRef)>,
    /// Shards that have told them.
    told: u16,
}

/// One message on its way.
#[derive(Debug)]
struct Move {
    /// The name of the queue that it goes to.
    to: String,
    /// As it will be there.
    message: Bytes,
    reason: Reason,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// 2: the log is behind.
    Committing,
    /// 3: there is no such queue yet.
    Provided,
    /// 4 to 9.
    Sent,
}

impl Moves {
    /// Whether nothing is on its way.
    pub(super) fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    /// What waits until there is a queue of this name.
    fn waiting_for(&self, name: &str) -> Vec<(QueueId, Sequence)> {
        let waits = |moving: &Move| moving.stage == Stage::Provided && moving.to == name;
        let found = self.under_way.iter().filter(|(_, moving)| waits(moving));
        found.map(|(place, _)| *place).collect()
    }

    /// When something is to be tried again.
    fn due(&self) -> Option<Instant> {
        let retry = self.retries.first().map(|(at, _, _)| *at);
        earlier(earlier(retry, self.begin_at), self.asked.values().copied().min())
    }
}

/// The source's side.
impl Shard {
    /// When a move is to be tried again. Who stops begins none.
    pub(super) fn moves_due(&self) -> Option<Instant> {
        if matches!(self.phase, Phase::Serving) { self.moves.due() } else { None }
    }

    /// Something in this queue may have to be moved.
    pub(super) fn may_leave(&mut self, id: QueueId) {
        if self.state.queue(id).is_some_and(Queue::has_leaving) {
            self.moves.waiting.insert(id);
        }
    }

    /// When something may expire next. Who stops lets nothing expire.
    pub(super) fn expiry_due(&self) -> Option<Instant> {
        let (unix_ms, _) = self.state.next_expiry()?;
        self.lets_expire().then(|| self.config.clock.when(unix_ms))
    }

    fn lets_expire(&self) -> bool {
        matches!(self.phase, Phase::Serving) && !self.config.canaries.has(Canary::NeverExpires)
    }

    /// Whether something may be sent on its way at once.
    pub(super) fn has_to_move(&self) -> bool {
        let room = self.moves.under_way.len() < MOVES_MAX && self.moves.begin_at.is_none();
        room && !self.moves.waiting.is_empty() && matches!(self.phase, Phase::Serving)
    }

    /// What is over goes, before anything is dispatched: so much at once, the rest in the next
    /// turn.
    pub(super) fn step_expiry(&mut self, now: Instant) {
        while let Some(id) = self.overdue_queues.pop() {
            self.dirty_queues.insert(id);
        }
        if self.expiry_due().is_none_or(|due| now < due) {
            return;
        }
        let unix_ms = self.config.clock.unix_ms(now);
        let mut left = EXPIRE_STEP;
        while left > 0
            && let Some((id, count)) = self.state.expire_next(unix_ms, left)
        {
            left = left.saturating_sub(count.max(1));
            self.moves.waiting.insert(id);
        }
    }

    /// Whether messages of this queue should have expired and have not: until they have, none of
    /// its messages is handed out.
    pub(super) fn is_overdue(&self, now: Instant, id: QueueId) -> bool {
        let next = self.state.queue(id).and_then(Queue::next_expiry);
        next.is_some_and(|unix_ms| unix_ms <= self.config.clock.unix_ms(now))
    }

    pub(super) fn step_moves(&mut self, now: Instant) {
        if !matches!(self.phase, Phase::Serving) {
            return;
        }
        while let Some((at, id, sequence)) = self.moves.retries.first().copied()
            && at <= now
        {
            self.moves.retries.pop_first();
            if let Some(queue) = self.state.queue_mut(id) {
                queue.leave_again(sequence);
                self.moves.waiting.insert(id);
            }
        }
        self.give_up_waiting(now);
        for (id, sequence) in std::mem::take(&mut self.moves.ready) {
            self.set_off(now, id, sequence);
        }
        self.begin_moves(now);
    }

    /// As many as may be under way, and so many in one turn: what is dropped is under way never.
    fn begin_moves(&mut self, now: Instant) {
        if self.moves.begin_at.is_some_and(|at| now < at) {
            return;
        }
        self.moves.begin_at = None;
        for _ in 0..EXPIRE_STEP {
            if self.moves.under_way.len() >= MOVES_MAX {
                return;
            }
            let Some(id) = self.moves.waiting.first().copied() else { return };
            match self.state.queue_mut(id).and_then(Queue::poll_leaving) {
                Some(leaving) => self.begin_move(now, id, leaving),
                None => drop(self.moves.waiting.remove(&id)),
            }
        }
        self.moves.begin_at = Some(now + PURGE_PAUSE);
    }

    fn begin_move(&mut self, now: Instant, id: QueueId, leaving: Leaving) {
        let Leaving { sequence, reason, message, delivery_count } = leaving;
        let Some(queue) = self.state.queue(id) else { return };
        let to = match reason {
            Reason::Rejected | Reason::Attempts => &queue.settings().dead_letter_address,
            Reason::Expired => &queue.settings().expiry_address,
        };
        let Some(record) = self.state.catalogue.get(id) else { return };
        if to.is_empty() || *to == record.name {
            self.counters.dropped_total += 1;
            self.settle_moved(now, id, sequence, Answer::Nobody);
            return;
        }
        let unix_ms = self.config.clock.unix_ms(now);
        let death = Death { queue: &record.name, reason, unix_ms, delivery_count };
        // A message that can't be read any more (an older version took it) is moved as it is.
        let message = moved(&message, &death).unwrap_or(message);
        let moving = Move { to: to.clone(), message, reason, stage: Stage::Committing };
        self.moves.under_way.insert((id, sequence), moving);
        let Some(journal) = &self.journal else { return };
        let (end, effect) = (journal.appended(), crate::apply::Effect::None);
        let answer = Answer::Movable(id, sequence);
        self.pending.push(Level::ReplicatedSync, Waiting { end, effect, answer });
    }

    /// What the log says of it is committed: its sequence is its for ever.
    pub(super) fn movable(&mut self, id: QueueId, sequence: Sequence) {
        self.moves.ready.push((id, sequence));
    }

    /// It goes, as soon as there is a queue that it can go to.
    fn set_off(&mut self, now: Instant, id: QueueId, sequence: Sequence) {
        let Some(moving) = self.moves.under_way.get_mut(&(id, sequence)) else { return };
        let to = moving.to.clone();
        if self.state.catalogue.named(&to).is_some() {
            return self.send_move(now, id, sequence);
        }
        moving.stage = Stage::Provided;
        if !self.moves.asked.contains_key(&to) {
            self.ask_for(now, to);
        }
    }

    fn ask_for(&mut self, now: Instant, name: String) {
        self.moves.asked.insert(name.clone(), now + MOVE_RETRY_MAX);
        self.post(ShardId(0), Mail::Provide { shard: self.config.shard, name });
    }

    /// Nobody has provided these queues, as where the catalogue's log is full: what waits for them
    /// was not taken.
    fn give_up_waiting(&mut self, now: Instant) {
        let due = |(_, at): &(&String, &Instant)| **at <= now;
        let names: Vec<String> =
            self.moves.asked.iter().filter(due).map(|(name, _)| name.clone()).collect();
        for name in names {
            self.moves.asked.remove(&name);
            for (queue, sequence) in self.moves.waiting_for(&name) {
                let origin = Origin { shard: self.config.shard, queue, sequence };
                self.not_moved(now, origin, &Refusal::DiskFull);
            }
        }
    }

    /// A queue is known: what waited for it goes.
    pub(super) fn provided(&mut self, now: Instant, name: &str) {
        if self.moves.asked.remove(name).is_none() {
            return;
        }
        let due = self.moves.waiting_for(name);
        due.into_iter().for_each(|(id, sequence)| self.send_move(now, id, sequence));
    }

    fn send_move(&mut self, now: Instant, id: QueueId, sequence: Sequence) {
        let Some(moving) = self.moves.under_way.get_mut(&(id, sequence)) else { return };
        let Some(record) = self.state.catalogue.named(&moving.to) else { return };
        let (queue, home) = (record.id, record.home);
        moving.stage = Stage::Sent;
        let message = std::mem::take(&mut moving.message);
        let origin = Origin { shard: self.config.shard, queue: id, sequence };
        let priority = self.state.queue(id).map_or(0, |queue| queue.priority(sequence));
        let (whence, traits) = (Whence::Moved(origin), Traits { priority, ..Traits::default() });
        self.post(home, Mail::Publish { queue, whence, message, traits });
        if self.config.canaries.has(Canary::SettledBeforeMoved) {
            self.settle_moved(now, id, sequence, Answer::Nobody);
        }
    }

    /// The copy is there and committed.
    pub(super) fn copied(&mut self, now: Instant, origin: Origin, copy: CopyRef) {
        let Origin { queue, sequence, .. } = origin;
        if !self.settle_moved(now, queue, sequence, Answer::Landed(copy)) {
            self.post(copy.shard, Mail::Landed(copy));
        }
    }

    /// False if it is gone already.
    fn settle_moved(
        &mut self,
        now: Instant,
        id: QueueId,
        sequence: Sequence,
        answer: Answer,
    ) -> bool {
        self.moves.under_way.remove(&(id, sequence));
        self.moves.failures.remove(&(id, sequence));
        let moving = self.state.queue_mut(id).is_some_and(|queue| queue.settle_moving(sequence));
        if moving {
            let level = Level::ReplicatedSync;
            self.append_settle(now, id, level, sequence, answer, Urgency::Now);
        }
        moving
    }

    /// The copy was not taken.
    pub(super) fn not_moved(&mut self, now: Instant, origin: Origin, refusal: &Refusal) {
        let place = (origin.queue, origin.sequence);
        let Some(moving) = self.moves.under_way.remove(&place) else { return };
        self.counters.move_failures_total += 1;
        let Some(queue) = self.state.queue_mut(place.0) else { return };
        let full = matches!(refusal, Refusal::DiskFull | Refusal::MemoryFull);
        if full && moving.reason != Reason::Expired {
            queue.offer_again(place.1);
            self.moves.failures.remove(&place);
            self.dirty_queues.insert(place.0);
            return;
        }
        let failures = self.moves.failures.entry(place).or_insert(0);
        let pause = retry_after(*failures);
        *failures = failures.saturating_add(1);
        self.moves.retries.insert((now + pause, place.0, place.1));
        let name = self.state.catalogue.get(place.0).map_or("", |record| &record.name);
        tracing::debug!(queue = name, to = moving.to, ?refusal, "a message could not be moved");
    }
}

/// The destination's side.
impl Shard {
    /// The copy is committed.
    pub(super) fn arrived(&mut self, origin: Origin, copy: CopyRef) {
        if self.config.canaries.has(Canary::CopyShownEarly) {
            self.landed(copy);
        }
        self.post(origin.shard, Mail::Moved { origin, copy });
    }

    /// Its origin is gone for good.
    pub(super) fn landed(&mut self, copy: CopyRef) {
        self.state.land(copy.queue, copy.sequence);
        self.counters.moved_in_total += 1;
        self.dirty_queues.insert(copy.queue);
        self.may_leave(copy.queue);
    }
}

/// After recovery.
impl Shard {
    /// Tells every shard which hidden copies of its messages are here.
    pub(super) fn tell_arrivals(&mut self) {
        let mut of: Vec<Vec<(Origin, CopyRef)>> = vec![Vec::new(); usize::from(self.config.shards)];
        let mut strangers = Vec::new();
        for (queue, sequence, origin) in self.state.arrivals() {
            let copy = CopyRef { shard: self.config.shard, queue, sequence };
            match of.get_mut(usize::from(origin.shard.0)) {
                Some(copies) => copies.push((origin, copy)),
                // There is no such shard (any more): nothing there can come back.
                None => strangers.push(copy),
            }
        }
        strangers.into_iter().for_each(|copy| self.landed(copy));
        for (shard, copies) in (0..).map(ShardId).zip(of) {
            self.post(shard, Mail::Arrivals(copies));
        }
    }

    /// A shard has told its hidden copies of our messages.
    pub(super) fn heard_arrivals(&mut self, now: Instant, copies: Vec<(Origin, CopyRef)>) {
        self.moves.arrivals.extend(copies);
        self.moves.told += 1;
        self.serve_if_complete(now);
    }

    /// Whether every shard has told its hidden copies.
    pub(super) fn knows_arrivals(&self) -> bool {
        self.moves.told >= self.config.shards
    }

    /// Settles what has a copy elsewhere; copies of what is gone are shown.
    pub(super) fn settle_arrivals(&mut self, now: Instant) {
        let copies = std::mem::take(&mut self.moves.arrivals);
        for (origin, copy) in copies {
            let Origin { queue, sequence, .. } = origin;
            let is_double = !self.config.canaries.has(Canary::DoubleKept)
                && self.state.queue_mut(queue).is_some_and(|q| q.has_copy(sequence));
            if is_double {
                self.copied(now, origin, copy);
            } else {
                self.post(copy.shard, Mail::Landed(copy));
            }
        }
    }
}

fn retry_after(failures: u32) -> Duration {
    MOVE_RETRY_MIN.saturating_mul(1 << failures.min(16)).min(MOVE_RETRY_MAX)
}
