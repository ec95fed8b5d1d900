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
//! A message in fragments goes in parts (`move_flow.rs`), of which the last makes the copy: a few
//! at a time, and their queues wait while others go on.
//!
//! Who takes no copy says so, and the way there is closed for a while, longer and longer. Then one
//! message is tried; all others that go there wait in their queues, and when one is taken the way
//! is open. To a queue that is not there yet one is on its way too. So what is stuck costs one
//! read and one place among [`MOVES_MAX`] for each name that it goes to, and what goes elsewhere
//! passes it; the queues take turns, message by message.
//!
//! Where disk, memory or the other queue is full, [`OFFERED_MAX`] messages of the queue are offered
//! to consumers between two tries, who alone can make room (but one that has expired is not); that
//! they fail again is neither counted nor written: the log knows already that they have to go.
//! Where the other queue drops what it has no room for, the message is settled instead, for which
//! the log has always room.
//!
//! Invariants: at most [`MOVES_MAX`] are under way; each is in `under_way` from 1 to 9 or until it
//! is refused; a move is sent again only after a refusal, so there is never a second copy; copies
//! count as memory until their destination has answered; a queue in which something waits to be
//! moved is in `waiting` or in `hindered`, and nothing is hindered once no way is closed or tried
//! and fewer than [`FLOWS_MAX`] messages in fragments are under way.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use journal::{Level, Origin, QueueId, Sequence, ShardId, Urgency};

use super::move_flow::Flow;
use super::{Phase, Shard};
use crate::canary::Canary;
use crate::event::earlier;
use crate::limits::{
    EXPIRE_STEP, FLOWS_MAX, GRADUAL_PAUSE, MOVE_RETRY_MAX, MOVE_RETRY_MIN, MOVES_MAX, OFFERED_MAX,
    PRESSURE_LOG_EVERY,
};
use crate::mail::{CopyRef, Mail, Refusal, Whence};
use crate::moved::{Death, Reason, moved};
use crate::pending::{Answer, Waiting};
use crate::queue::{Exit, Leaving, Queue, Traits};
use crate::settings::FullPolicy;

/// What is on its way to other queues.
#[derive(Debug, Default)]
pub(super) struct Moves {
    under_way: BTreeMap<(QueueId, Sequence), Move>,
    /// Committed everywhere: they may be sent.
    ready: Vec<(QueueId, Sequence)>,
    /// Queues in which something waits to be moved.
    waiting: BTreeSet<QueueId>,
    /// Whose turn was last.
    last: QueueId,
    /// Queues in which it waits until a way is open.
    hindered: BTreeSet<QueueId>,
    /// The ways to queues that took nothing the last time, or are not there yet, by their names.
    ways: BTreeMap<String, Way>,
    /// When the next may begin, if many have begun in one turn.
    begin_at: Option<Instant>,
    /// Of those under way, messages in fragments.
    flows: usize,
    /// Names that shard 0 was asked to provide, and how long that is waited for.
    asked: BTreeMap<String, Instant>,
    /// When it was last told in the log that what has expired cannot go.
    logged: Option<Instant>,
    /// Hidden copies that the other shards have of ours, until we serve.
    arrivals: Vec<(Origin, CopyRef)>,
    /// Hidden copies here whose origin has another one: they go when we serve.
    doubles: Vec<CopyRef>,
    /// Shards that have told them.
    told: u16,
    /// We have not told ours.
    untold: bool,
}

/// One message on its way.
#[derive(Debug)]
pub(super) struct Move {
    /// The name of the queue that it goes to.
    to: String,
    pub(super) reason: Reason,
    stage: Stage,
    /// Nothing else goes there until it is known what becomes of it.
    tries_way: bool,
    /// What the copy counts against the memory bound while it is sent.
    pub(super) memory_bytes: u64,
    /// It goes fragment by fragment,
    is_long: bool,
    /// and is so far.
    pub(super) flow: Option<Flow>,
}

/// Where nothing was taken.
#[derive(Clone, Copy, Debug, Default)]
struct Way {
    /// How often in a row.
    times: u32,
    /// Before that nothing is tried again.
    closed_until: Option<Instant>,
    /// Something is.
    is_tried: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// 2: the log is behind.
    Committing,
    /// 3: there is no such queue yet.
    Provided,
    /// 4: its bytes are on the disk only.
    Read,
    /// 4 to 9.
    Sent,
}

impl Moves {
    /// Whether nothing is on its way.
    pub(super) fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Whether there is nothing to do: mostly.
    #[inline]
    fn rests(&self) -> bool {
        self.under_way.is_empty()
            && self.waiting.is_empty()
            && self.ways.is_empty()
            && self.asked.is_empty()
            && self.begin_at.is_none()
    }

    pub(super) fn get_mut(&mut self, place: (QueueId, Sequence)) -> Option<&mut Move> {
        self.under_way.get_mut(&place)
    }

    /// A message in fragments is on its way from now on.
    pub(super) fn sets_off(&mut self, place: (QueueId, Sequence)) -> Option<&mut Move> {
        let moving = self.get_mut(place)?;
        moving.stage = Stage::Sent;
        Some(moving)
    }

    /// What waits until there is a queue of this name.
    fn waiting_for(&self, name: &str) -> Vec<(QueueId, Sequence)> {
        let waits = |moving: &Move| moving.stage == Stage::Provided && moving.to == name;
        let found = self.under_way.iter().filter(|(_, moving)| waits(moving));
        found.map(|(place, _)| *place).collect()
    }

    /// Whether something may go to the queue of this name.
    fn is_free(&self, to: &str) -> bool {
        self.ways.get(to).is_none_or(|way| way.closed_until.is_none() && !way.is_tried)
    }

    /// It was not taken there. Gives how often in a row that was so, those aside that were under
    /// way together.
    fn close(&mut self, now: Instant, to: &str) -> u32 {
        let way = self.ways.entry(to.to_owned()).or_default();
        if way.closed_until.is_none() {
            way.times = way.times.saturating_add(1);
            way.closed_until = Some(now + retry_after(way.times));
        }
        way.times
    }

    /// It was taken there.
    fn open(&mut self, to: &str) {
        // What was under way when another was refused says nothing.
        if self.ways.get(to).is_some_and(|way| way.closed_until.is_none()) {
            self.ways.remove(to);
            self.waiting.append(&mut self.hindered);
        }
    }

    /// Ways that are no longer closed may be tried.
    fn try_ways(&mut self, now: Instant) {
        for way in self.ways.values_mut() {
            if way.closed_until.is_some_and(|until| until <= now) {
                way.closed_until = None;
                self.waiting.append(&mut self.hindered);
            }
        }
    }

    /// The queue whose turn it is.
    fn next_waiting(&mut self) -> Option<QueueId> {
        let behind = self.waiting.range(QueueId(self.last.0 + 1)..).next();
        self.last = behind.or_else(|| self.waiting.first()).copied()?;
        Some(self.last)
    }

    /// When something is to be tried again.
    fn due(&self) -> Option<Instant> {
        let retry = self.ways.values().filter_map(|way| way.closed_until).min();
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

    /// When something may expire, or is to be delivered, next. Who stops still hands out what
    /// others leave behind, so what is over expires then too; it is moved after the next start.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let unix_ms = self.state.next_due()?;
        let hands_out = matches!(self.phase, Phase::Serving | Phase::Stopping);
        hands_out.then(|| self.config.clock.when(unix_ms))
    }

    /// Whether something may be sent on its way at once.
    pub(super) fn has_to_move(&self) -> bool {
        let room = self.moves.under_way.len() < MOVES_MAX && self.moves.begin_at.is_none();
        room && !self.moves.waiting.is_empty() && matches!(self.phase, Phase::Serving)
    }

    /// What is over goes, before anything is dispatched, and what is to be delivered from now on is
    /// available: so much at once, the rest in the next turn.
    pub(super) fn step_due(&mut self, now: Instant) {
        while let Some(id) = self.overdue_queues.pop() {
            self.dirty_queues.insert(id);
        }
        if self.next_due().is_none_or(|due| now < due) {
            return;
        }
        let unix_ms = self.config.clock.unix_ms(now);
        let mut left = EXPIRE_STEP;
        while left > 0
            && let Some((id, count)) = self.state.come_due(unix_ms, left)
        {
            left = left.saturating_sub(count.max(1));
            self.moves.waiting.insert(id);
            self.dirty_queues.insert(id);
        }
    }

    /// Whether messages of this queue should have expired and have not: until they have, none of
    /// its messages is handed out.
    pub(super) fn is_overdue(&self, now: Instant, id: QueueId) -> bool {
        let next = self.state.queue(id).and_then(Queue::next_expiry);
        next.is_some_and(|unix_ms| unix_ms <= self.config.clock.unix_ms(now))
    }

    pub(super) fn step_moves(&mut self, now: Instant) {
        if self.moves.rests() || !matches!(self.phase, Phase::Serving) {
            return;
        }
        self.moves.try_ways(now);
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
            let Some(id) = self.moves.next_waiting() else { return };
            match self.next_leaving(id) {
                Some((leaving, to)) => self.begin_move(now, id, leaving, to),
                None => drop(self.moves.waiting.remove(&id)),
            }
        }
        self.moves.begin_at = Some(now + GRADUAL_PAUSE);
    }

    /// The next message of a queue that may go, and where; none to go to: it is dropped.
    fn next_leaving(&mut self, id: QueueId) -> Option<(Leaving, Option<String>)> {
        for exit in [Exit::Dead, Exit::Expired] {
            let queue = self.state.queue(id)?;
            if !queue.has_leaving_by(exit) {
                continue;
            }
            let name = &self.state.catalogue.get(id)?.name;
            let (to, is_dropped) = match exit {
                Exit::Dead => (&queue.settings().dead_letter_address, false),
                Exit::Expired => {
                    let is_dropped = self.config.canaries.has(Canary::ExpiredDropped);
                    (&queue.settings().expiry_address, is_dropped)
                }
            };
            let to = (!to.is_empty() && to != name && !is_dropped).then(|| to.clone());
            if to.as_ref().is_some_and(|to| !self.moves.is_free(to)) {
                self.moves.hindered.insert(id);
                continue;
            }
            let queue = self.state.queue_mut(id)?;
            let Some(leaving) = queue.poll_leaving(exit) else { continue };
            let is_long = to.is_some() && queue.chain(leaving.sequence).is_some();
            if is_long && self.moves.flows >= FLOWS_MAX {
                queue.leave_again(leaving.sequence);
                self.moves.hindered.insert(id);
                continue;
            }
            return Some((leaving, to));
        }
        None
    }

    fn begin_move(&mut self, now: Instant, id: QueueId, leaving: Leaving, to: Option<String>) {
        let Leaving { sequence, reason } = leaving;
        if self.moves.under_way.contains_key(&(id, sequence)) {
            return;
        }
        let Some(to) = to else {
            self.counters.dropped_total += 1;
            self.settle_moved(now, id, sequence, Answer::Nobody);
            return;
        };
        if self.state.catalogue.named(&to).is_none() {
            self.moves.ways.entry(to.clone()).or_default();
        }
        let way = self.moves.ways.get_mut(&to);
        let tries_way = way.map(|way| way.is_tried = true).is_some();
        let is_long = self.state.queue(id).is_some_and(|queue| queue.chain(sequence).is_some());
        self.moves.flows += usize::from(is_long);
        let (stage, memory_bytes, flow) = (Stage::Committing, 0, None);
        let moving = Move { to, reason, stage, tries_way, memory_bytes, is_long, flow };
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

    /// The bytes of a message that leaves were read: for its way, or before it was known to leave,
    /// and then it may have been sent, or what the log says of it is not committed.
    pub(super) fn has_bytes(&mut self, id: QueueId, sequence: Sequence) {
        let moving = self.moves.under_way.get(&(id, sequence));
        if moving.is_some_and(|moving| moving.stage == Stage::Read) {
            self.movable(id, sequence);
        }
    }

    /// It goes, as soon as there is a queue that it can go to.
    fn set_off(&mut self, now: Instant, id: QueueId, sequence: Sequence) {
        let Some(moving) = self.moves.under_way.get_mut(&(id, sequence)) else { return };
        let to = moving.to.clone();
        if self.state.catalogue.named(&to).is_some() {
            return self.send_move(now, (id, sequence));
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

    /// Nobody has provided these queues, nor said why: what waits for them was not taken.
    fn give_up_waiting(&mut self, now: Instant) {
        let due = |(_, at): &(&String, &Instant)| **at <= now;
        let names: Vec<String> =
            self.moves.asked.iter().filter(due).map(|(name, _)| name.clone()).collect();
        for name in names {
            self.not_provided(now, &name, &Refusal::NotFound(String::new()));
        }
    }

    /// There is no such queue, and why.
    pub(super) fn not_provided(&mut self, now: Instant, name: &str, refusal: &Refusal) {
        self.moves.asked.remove(name);
        for (queue, sequence) in self.moves.waiting_for(name) {
            let origin = Origin { shard: self.config.shard, queue, sequence };
            self.not_moved(now, origin, refusal);
        }
    }

    /// A queue is known: what waited for it goes.
    pub(super) fn provided(&mut self, now: Instant, name: &str) {
        if self.moves.asked.remove(name).is_none() {
            return;
        }
        let due = self.moves.waiting_for(name);
        due.into_iter().for_each(|place| self.send_move(now, place));
    }

    fn send_move(&mut self, now: Instant, (id, sequence): (QueueId, Sequence)) {
        // What is on its way has to fit in at its end too.
        let taken = self.memory_bytes() + self.aside_bytes;
        let room = self.config.memory_bytes_max.saturating_sub(taken);
        let Some(moving) = self.moves.under_way.get_mut(&(id, sequence)) else { return };
        let Some(record) = self.state.catalogue.named(&moving.to) else { return };
        let (to, home) = (record.id, record.home);
        // A temporary queue may be gone meanwhile, with all that was in it.
        let Some(queue) = self.state.queue(id) else { return drop(self.end_move((id, sequence))) };
        let Some((message, delivery_count)) = queue.moving(sequence) else {
            return drop(self.end_move((id, sequence)));
        };
        if queue.chain(sequence).is_some() {
            return self.begin_flow(now, (id, sequence), (to, home));
        }
        let Some(message) = message else {
            moving.stage = Stage::Read;
            return self.want_bytes(id, sequence);
        };
        let origin = Origin { shard: self.config.shard, queue: id, sequence };
        if Queue::memory_bytes(message.len()) > room {
            return self.not_moved(now, origin, &Refusal::MemoryFull);
        }
        let Some(record) = self.state.catalogue.get(id) else { return };
        let unix_ms = self.config.clock.unix_ms(now);
        let added = queue.added(sequence);
        let (name, reason, added) = (&record.name, moving.reason, added.as_ref());
        let death = Death { queue: name, reason, unix_ms, delivery_count, added };
        // A message that can't be read any more (an older version took it) is moved as it is.
        let message = moved(message, &death).unwrap_or_else(|_| message.clone());
        let priority = queue.priority(sequence);
        moving.stage = Stage::Sent;
        moving.memory_bytes = Queue::memory_bytes(message.len());
        self.aside_bytes += moving.memory_bytes;
        let (whence, traits) =
            (Whence::Moved(origin), Traits { priority: Some(priority), ..Traits::default() });
        self.post(home, Mail::Publish { queue: to, whence, message, traits });
        if self.config.canaries.has(Canary::SettledBeforeMoved) {
            self.settle_moved(now, id, sequence, Answer::Nobody);
        }
    }

    /// The copy is there and committed.
    pub(super) fn copied(&mut self, now: Instant, origin: Origin, copy: CopyRef) {
        let Origin { queue, sequence, .. } = origin;
        if let Some(moving) = self.end_move((queue, sequence)) {
            self.moves.open(&moving.to);
        }
        if !self.settle_moved(now, queue, sequence, Answer::Landed(copy)) {
            self.post(copy.shard, Mail::Landed(vec![copy]));
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
        self.end_move((id, sequence));
        let moving = self.state.queue_mut(id).is_some_and(|queue| queue.settle_moving(sequence));
        if moving {
            let level = Level::ReplicatedSync;
            self.append_settle(now, id, level, sequence, answer, Urgency::Now);
        }
        moving
    }

    /// A message is not on its way any more, and what its copy took is free.
    pub(super) fn end_move(&mut self, place: (QueueId, Sequence)) -> Option<Move> {
        let moving = self.moves.under_way.remove(&place)?;
        self.aside_bytes -= moving.memory_bytes;
        if moving.is_long {
            self.moves.flows -= 1;
            self.moves.waiting.append(&mut self.moves.hindered);
        }
        if moving.tries_way
            && let Some(way) = self.moves.ways.get_mut(&moving.to)
        {
            way.is_tried = false;
            self.moves.waiting.append(&mut self.moves.hindered);
        }
        Some(moving)
    }

    /// A queue is gone, and what was in it: nothing of it goes any further. What was sent is
    /// answered.
    pub(super) fn end_moves_of(&mut self, id: QueueId) {
        let of_queue = self.moves.under_way.range((id, Sequence(0))..=(id, Sequence(u64::MAX)));
        let unsent = of_queue.filter(|(_, moving)| moving.stage != Stage::Sent);
        let places: Vec<_> = unsent.map(|(place, _)| *place).collect();
        for place in places {
            drop(self.end_move(place));
        }
    }

    /// The copy was not taken.
    pub(super) fn not_moved(&mut self, now: Instant, origin: Origin, refusal: &Refusal) {
        let place = (origin.queue, origin.sequence);
        let Some(moving) = self.end_move(place) else { return };
        if refusal.is_full() && self.config.settings.of(&moving.to).full_policy == FullPolicy::Drop
        {
            self.counters.dropped_total += 1;
            self.settle_moved(now, place.0, place.1, Answer::Nobody);
            return;
        }
        self.counters.move_failures_total += 1;
        let times = self.moves.close(now, &moving.to);
        if !refusal.is_full() || times == 1 && moving.reason != Reason::Expired {
            let Some(queue) = self.state.queue_mut(place.0) else { return };
            queue.leave_again(place.1);
        } else if !self.offer_again(place, moving.reason) {
            self.log_stuck(now, place.0, &moving.to);
        }
        self.may_leave(place.0);
    }

    /// Messages that find no room are offered to consumers. False if this one may not be.
    fn offer_again(&mut self, (id, sequence): (QueueId, Sequence), reason: Reason) -> bool {
        let Some(queue) = self.state.queue_mut(id) else { return true };
        if reason == Reason::Expired || !queue.offer_again(sequence) {
            queue.leave_again(sequence);
            return false;
        }
        queue.offer_leaving(OFFERED_MAX);
        self.dirty_queues.insert(id);
        true
    }

    /// Says what an operator can do where nobody else can do anything.
    fn log_stuck(&mut self, now: Instant, id: QueueId, to: &str) {
        if self.moves.logged.is_some_and(|at| now < at + PRESSURE_LOG_EVERY) {
            return;
        }
        self.moves.logged = Some(now);
        let name = self.state.catalogue.get(id).map_or("", |record| &record.name);
        tracing::warn!(
            queue = name,
            to,
            "expired messages find no room where they go: consume other messages, purge this \
             queue, or give the broker more room"
        );
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
    /// They are to be told, once nothing can take them back.
    pub(super) fn owe_arrivals(&mut self) {
        self.moves.untold = true;
        self.tell_arrivals_if_kept();
    }

    /// Tells them when what the log held at its start is committed. Nobody serves before, so
    /// nothing is shown, settled or answered for on the strength of a tail that a pair may lose.
    pub(super) fn tell_arrivals_if_kept(&mut self) {
        if self.moves.untold && self.keeps_what_it_found() {
            self.moves.untold = false;
            self.tell_arrivals();
        }
    }

    /// Tells every shard which hidden copies of its messages are here.
    fn tell_arrivals(&mut self) {
        let mut of: Vec<Vec<(Origin, CopyRef)>> = vec![Vec::new(); usize::from(self.config.shards)];
        let mut strangers = Vec::new();
        let mut origins = BTreeSet::new();
        for (queue, sequence, origin) in self.state.arrivals() {
            let copy = CopyRef { shard: self.config.shard, queue, sequence };
            // An earlier version could send a message twice.
            if !origins.insert((origin.shard, origin.queue, origin.sequence)) {
                self.moves.doubles.push(copy);
                continue;
            }
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
        for CopyRef { queue, sequence, .. } in std::mem::take(&mut self.moves.doubles) {
            tracing::warn!(?queue, ?sequence, "a second copy of a dead letter is dropped");
            if self.state.drop_copy(queue, sequence) {
                let (level, answer) = (Level::ReplicatedSync, Answer::Nobody);
                self.append_settle(now, queue, level, sequence, answer, Urgency::Now);
            }
        }
        let copies = std::mem::take(&mut self.moves.arrivals);
        let mut landed: BTreeMap<ShardId, Vec<CopyRef>> = BTreeMap::new();
        for (origin, copy) in copies {
            let Origin { queue, sequence, .. } = origin;
            let is_double = !self.config.canaries.has(Canary::DoubleKept)
                && self.state.queue_mut(queue).is_some_and(|q| q.has_copy(sequence));
            if is_double {
                self.copied(now, origin, copy);
            } else {
                landed.entry(copy.shard).or_default().push(copy);
            }
        }
        for (shard, copies) in landed {
            self.post(shard, Mail::Landed(copies));
        }
    }
}

fn retry_after(times: u32) -> Duration {
    MOVE_RETRY_MIN.saturating_mul(1 << (times - 1).min(16)).min(MOVE_RETRY_MAX)
}
