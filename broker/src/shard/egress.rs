//! Messages go out: queue and credit become transfers, dispositions become settlements.
//!
//! ```text
//!   client's flow ─▶ Credit ─▶ home: dispatch ─▶ Deliver ─▶ stash ─▶ transfer ─▶ client
//!   client's disposition ─▶ Settle ─▶ home: append ─ … commit … ─▶ Settled ─▶ settled=true
//! ```
//! A client may give two thousand million credits; the home shard gets at most `CONSUMER_WINDOW` of
//! them at a time. What came and cannot be sent yet waits in the stash, inside that window; what
//! expires there goes back to its queue, which knows where to.
//!
//! A message in fragments is sent as they are fetched (`outflow.rs`).
//!
//! A drain is exact: the home sends what there is and says what credit was left. Nothing left means
//! that the window was the limit, so the next window is asked for; some left means that the queue
//! is empty, and the client is told.
//!
//! Only what the log knows counts as a failed delivery, or as rejected: the message is available
//! again, or on its way to the dead-letter address, when that is committed, and while the journal
//! is behind, it waits. If the disk is too full even for that record, the message goes back as if
//! it had been released.
//!
//! Where a connection breaks off, each message that was sent on it and not settled counts as a
//! failed delivery: it may be what ends its consumers. Nobody waits for that to be committed, and
//! the messages are back in their places at once, but for those that have failed too often. Of one
//! link the first [`BROKEN_OFF_MAX`](crate::limits::BROKEN_OFF_MAX) count, and what the log does
//! not take at once does not, but for the very first, which waits for a log that is behind. Who
//! detaches, ends or closes has given back what it did not settle.

use std::time::Instant;

use amqp::connection::SendError;
use amqp::delivery::{DeliveryId, Outcome as AmqpOutcome};
use amqp::link::LinkId;
use amqp::message::{Head, write_header};
use amqp::session::SessionId;
use bytes::Bytes;
use journal::{AppendError, Level, QueueId, Record, RecordKind, Sequence, ShardId, Urgency};

use super::Shard;
use super::link::{Consumer, Drain, End, LinkPhase, Stashed};
use crate::apply::Effect;
use crate::canary::Canary;
use crate::event::{ConnId, Fatal};
use crate::limits::{BROWSER_WINDOW, CONSUMER_WINDOW, TRANSMIT_BYTES_HIGH};
use crate::mail::{LinkKey, LinkRef, Mail, Outcome, Refusal};
use crate::moved::{Reason, rejection};
use crate::pending::{Answer, Waiting};
use crate::queue::{Dispatched, Queue};
use crate::setback::Setback;

/// What a consumer says of one message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Verdict {
    pub(super) sequence: Sequence,
    pub(super) outcome: Outcome,
    pub(super) confirm: bool,
}

/// The connection's side.
impl Shard {
    pub(super) fn credit_changed(&mut self, now: Instant, conn: ConnId, link: LinkId, drain: bool) {
        let Some(key) = self.key(conn, link) else { return };
        if let Some(End::Consumer(consumer)) = self.links.get_mut(key).map(|link| &mut link.end) {
            if drain && consumer.drain == Drain::No {
                consumer.drain = Drain::Wanted;
            } else if !drain {
                consumer.drain = Drain::No;
            }
        }
        self.send_stash(now, key);
    }

    pub(super) fn send_ready(&mut self, now: Instant, conn: ConnId, session: SessionId) {
        let Some(conn) = self.conns.get(conn) else { return };
        let keys: Vec<LinkKey> = conn.links.values().copied().collect();
        for key in keys {
            if self.links.get(key).is_some_and(|link| link.session == session) {
                self.send_stash(now, key);
            }
        }
    }

    /// The engine's bytes were taken: what waited for that goes on, if anything did.
    pub(super) fn send_stalled(&mut self, now: Instant, conn: ConnId) {
        let Some(conn) = self.conns.get_mut(conn) else { return };
        if !std::mem::take(&mut conn.stalled) {
            return;
        }
        let keys: Vec<LinkKey> = conn.links.values().copied().collect();
        for key in keys {
            self.send_stash(now, key);
        }
    }

    /// A message for a consumer of ours; if it is gone, its `Unconsume` requeues the message.
    pub(super) fn deliver(&mut self, now: Instant, at: LinkRef, stashed: Stashed) {
        if let Some(consumer) = self.consumer_mut(at.key) {
            consumer.at_home = consumer.at_home.saturating_sub(1);
            consumer.stash.push_back(stashed);
            self.send_stash(now, at.key);
        }
    }

    pub(super) fn drained(&mut self, now: Instant, at: LinkRef, unused: u32) {
        if let Some(consumer) = self.consumer_mut(at.key) {
            consumer.at_home = consumer.at_home.saturating_sub(unused);
            if consumer.drain == Drain::Asked {
                consumer.drain = if unused > 0 { Drain::Empty } else { Drain::Wanted };
            }
            self.send_stash(now, at.key);
        }
    }

    /// A disposition of the client.
    pub(super) fn disposition(
        &mut self,
        now: Instant,
        conn: ConnId,
        link: LinkId,
        delivery: DeliveryId,
        outcome: Option<AmqpOutcome>,
        settled: bool,
    ) {
        let Some(key) = self.key(conn, link) else { return };
        let consumer_ref = self.here(key);
        let Some(found) = self.links.get_mut(key) else { return };
        let (queue, home) = (found.queue, found.home);
        let End::Consumer(consumer) = &mut found.end else { return };
        if consumer.browses {
            // Whatever it says, nothing happens to the message: there is nothing to wait for.
            if !settled {
                self.engine(conn, |amqp| amqp.settle_outgoing(link, delivery));
            }
            return;
        }
        let Some(sequence) = consumer.unsettled.take(delivery) else { return };
        // Settled without an outcome: the source's default, and where there is none, not processed.
        let outcome =
            outcome.or_else(|| consumer.default_outcome.clone()).unwrap_or(AmqpOutcome::Released);
        if !settled {
            consumer.confirming.insert(sequence, delivery);
        }
        let verdict = Verdict { sequence, outcome: outcome_of(&outcome), confirm: !settled };
        match outcome {
            AmqpOutcome::Modified { message_annotations: Some(annotations), .. } => {
                self.post_modified(now, (home, queue), consumer_ref, verdict, annotations);
            }
            AmqpOutcome::Rejected(Some(error)) => {
                let annotations = rejection(&error);
                self.post_modified(now, (home, queue), consumer_ref, verdict, annotations);
            }
            AmqpOutcome::Accepted
            | AmqpOutcome::Rejected(None)
            | AmqpOutcome::Released
            | AmqpOutcome::Modified { message_annotations: None, .. } => {
                self.post_verdict(now, (home, queue), consumer_ref, verdict);
            }
        }
    }

    /// Tells a queue's home what a consumer says of a message.
    pub(super) fn post_verdict(
        &mut self,
        now: Instant,
        (home, queue): (ShardId, QueueId),
        consumer: LinkRef,
        verdict: Verdict,
    ) {
        if self.is_next(home) {
            return self.settle(now, queue, consumer, verdict);
        }
        let Verdict { sequence, outcome, confirm } = verdict;
        self.post(home, Mail::Settle { queue, consumer, sequence, outcome, confirm });
    }

    /// A settlement that the client waits for is committed.
    pub(super) fn settled(&mut self, at: LinkRef, sequence: Sequence) {
        let Some(link) = self.links.get_mut(at.key) else { return };
        let (conn, id) = (link.conn, link.id);
        let End::Consumer(consumer) = &mut link.end else { return };
        if let Some(delivery) = consumer.confirming.remove(&sequence) {
            self.engine(conn, |amqp| amqp.settle_outgoing(id, delivery));
        }
    }

    fn consumer_mut(&mut self, key: LinkKey) -> Option<&mut Consumer> {
        let link = self.links.get_mut(key)?;
        match (&link.phase, &mut link.end) {
            (LinkPhase::Open, End::Consumer(consumer)) => Some(consumer),
            (LinkPhase::Resolving | LinkPhase::Asking | LinkPhase::Closing(_), _)
            | (LinkPhase::Open, End::Producer(_)) => None,
        }
    }

    /// Sends what waits, as far as the engine takes it; then asks the home for more, or ends a
    /// drain.
    pub(super) fn send_stash(&mut self, now: Instant, key: LinkKey) {
        let consumer_ref = self.here(key);
        let Some(link) = self.links.get_mut(key) else { return };
        let (conn_id, id, queue, home) = (link.conn, link.id, link.queue, link.home);
        let (LinkPhase::Open, End::Consumer(consumer)) = (&link.phase, &mut link.end) else {
            return;
        };
        let Some(conn) = self.conns.get_mut(conn_id) else { return };
        let mut presettled = Vec::new();
        let mut flows = consumer.outflow.is_some();
        while let Some(next) = consumer.stash.front() {
            if next.has_expired(now, &self.config.clock) {
                // Its time came while it waited here: where it goes is its queue's to say.
                let back = consumer.stash.pop_front().expect("it was at the front");
                if !consumer.browses {
                    presettled.push((back.sequence, Outcome::Expired));
                }
                continue;
            }
            let Some(message) = &next.message else {
                flows = true;
                break;
            };
            if conn.amqp.transmit_bytes_pending() > TRANSMIT_BYTES_HIGH {
                conn.stalled = true;
                break;
            }
            let how = (next, consumer.presettled);
            match send_one(&mut conn.amqp, id, message, how, &mut self.head) {
                Ok(delivery) => {
                    let sent = consumer.stash.pop_front().expect("it was at the front");
                    if consumer.browses {
                        continue;
                    }
                    if consumer.presettled {
                        presettled.push((sent.sequence, Outcome::Accepted));
                    } else {
                        consumer.unsettled.push(delivery, sent.sequence);
                    }
                }
                Err(SendError::TooLarge) => {
                    // This client cannot take it; others may.
                    let sent = consumer.stash.pop_front().expect("it was at the front");
                    if consumer.browses {
                        continue;
                    }
                    let outcome =
                        Outcome::Modified { delivery_failed: false, undeliverable_here: true };
                    presettled.push((sent.sequence, outcome));
                }
                Err(
                    SendError::Gone
                    | SendError::NoCredit
                    | SendError::NotReady
                    | SendError::SettleMode,
                ) => break,
            }
        }
        let credit = conn.amqp.link_credit(id);
        // Credit was taken back: what came under it goes back to its place.
        // A browser's stays: nobody else waits for it.
        while consumer.stash.len() as u64 > u64::from(credit) && !consumer.browses {
            let Some(back) = consumer.stash.pop_back() else { break };
            presettled.push((back.sequence, Outcome::Released));
        }
        let more = window(consumer, credit);
        consumer.at_home += more;
        let drain = consumer.drain == Drain::Wanted && consumer.at_home > 0;
        if drain {
            consumer.drain = Drain::Asked;
        }
        if consumer.is_drained(credit) {
            consumer.drain = Drain::No;
            conn.amqp.drained(id);
        }
        for (sequence, outcome) in presettled {
            let verdict = Verdict { sequence, outcome, confirm: false };
            self.post_verdict(now, (home, queue), consumer_ref, verdict);
        }
        if (more > 0 || drain) && self.is_next(home) {
            self.credit(queue, consumer_ref, more, drain);
        } else if more > 0 || drain {
            self.post(home, Mail::Credit { queue, consumer: consumer_ref, more, drain });
        }
        self.touch(conn_id);
        if flows {
            self.want_flow(now, key);
        }
    }
}

/// How much more credit the home shard should get.
fn window(consumer: &Consumer, credit: u32) -> u32 {
    let out = consumer.at_home + consumer.stash.len() as u32;
    let most = if consumer.browses { BROWSER_WINDOW } else { CONSUMER_WINDOW };
    let want = credit.min(most);
    let more = want.saturating_sub(out);
    // Small top-ups are saved up, but not while the home shard has nothing left to send on.
    let worth = more >= CONSUMER_WINDOW / 4 || consumer.at_home == 0;
    if worth || consumer.drain == Drain::Wanted || credit <= CONSUMER_WINDOW { more } else { 0 }
}

fn send_one(
    amqp: &mut amqp::connection::Connection,
    id: LinkId,
    message: &Bytes,
    (stashed, presettled): (&Stashed, bool),
    head: &mut Vec<u8>,
) -> Result<DeliveryId, SendError> {
    let from = write_head(stashed, message, head);
    amqp.send_shared(id, head, (message, from), presettled)
}

/// Writes what comes before the bytes of a message, of which the first are enough, that are sent on
/// as they are. Gives where these begin.
pub(super) fn write_head(stashed: &Stashed, message: &[u8], head: &mut Vec<u8>) -> usize {
    head.clear();
    // It was scanned when it came in; if this version reads it otherwise, it goes out as it is.
    let Ok(read) = Head::read(message) else { return 0 };
    let mut header = read.fields;
    header.delivery_count = (stashed.delivery_count > 0).then_some(stashed.delivery_count);
    header.first_acquirer = stashed.first_acquirer.then_some(true);
    write_header(&header, head);
    // Sections that cannot be told apart go out as they came.
    let added = stashed.added.as_ref().and_then(|added| added.write_section(message, head).ok());
    added.unwrap_or(read.forwarded_from)
}

fn outcome_of(outcome: &AmqpOutcome) -> Outcome {
    match outcome {
        AmqpOutcome::Accepted => Outcome::Accepted,
        AmqpOutcome::Rejected(_) => Outcome::Rejected,
        AmqpOutcome::Released => Outcome::Released,
        AmqpOutcome::Modified { delivery_failed, undeliverable_here, .. } => Outcome::Modified {
            delivery_failed: *delivery_failed,
            undeliverable_here: *undeliverable_here,
        },
    }
}

/// The queue's side.
impl Shard {
    /// A link is to be served; where it asks, it is only if there may be one more consumer.
    pub(super) fn consume(&mut self, queue: QueueId, consumer: LinkRef, browses: bool, asks: bool) {
        let result = match self.state.queue_mut(queue) {
            None => Err(Refusal::QueueGone),
            Some(queue) if asks && queue.is_crowded() => Err(Refusal::TooManyConsumers),
            Some(queue) if browses => {
                queue.attach_browser(consumer);
                Ok(())
            }
            Some(queue) => {
                queue.attach(consumer);
                Ok(())
            }
        };
        if asks {
            self.post(consumer.shard, Mail::Consumes { consumer, result });
        }
    }

    pub(super) fn credit(&mut self, id: QueueId, consumer: LinkRef, more: u32, drain: bool) {
        if let Some(queue) = self.state.queue_mut(id) {
            queue.add_credit(consumer, more, drain);
            self.dirty_queues.insert(id);
        }
    }

    /// A pause may have begun in this queue.
    pub(super) fn may_wake(&mut self, id: QueueId) {
        let wake = self.state.queue(id).and_then(Queue::next_wake);
        if let Some(at) = wake {
            self.pausing.insert((at, id));
        }
    }

    /// Pauses after failed deliveries end.
    pub(super) fn step_pauses(&mut self, now: Instant) {
        while let Some((at, id)) = self.pausing.first().copied()
            && at <= now
        {
            self.pausing.pop_first();
            if self.state.queue_mut(id).is_some_and(|queue| queue.wake(now)) {
                self.dirty_queues.insert(id);
            }
            self.may_wake(id);
        }
    }

    /// Visible messages meet credit.
    pub(super) fn step_dispatch(&mut self, now: Instant) {
        if self.config.canaries.has(Canary::OrderByLsn) {
            self.state.break_order();
        }
        // Most often nothing is.
        let are_overdue = self.next_due().is_some_and(|due| due <= now);
        while let Some(id) = self.dirty_queues.pop_first() {
            if are_overdue && self.is_overdue(now, id) {
                self.overdue_queues.push(id);
                continue;
            }
            while let Some(next) = self.state.queue_mut(id).and_then(Queue::dispatch) {
                self.counters.delivered_total += 1;
                self.hand_out(now, next);
            }
            if self.state.queue(id).is_some_and(Queue::has_browsers) {
                while let Some(next) = self.state.queue_mut(id).and_then(Queue::browse) {
                    self.hand_out(now, next);
                }
            }
            self.state.recount(id);
            self.pages(id);
            // What came back may have expired meanwhile.
            self.may_leave(id);
            while let Some((consumer, unused)) =
                self.state.queue_mut(id).and_then(Queue::poll_drained)
            {
                self.post(consumer.shard, Mail::Drained { consumer, unused });
            }
        }
    }

    fn hand_out(&mut self, now: Instant, next: Dispatched) {
        let Dispatched {
            consumer,
            sequence,
            message,
            delivery_count,
            first_acquirer,
            added,
            expiry_unix_ms,
        } = next;
        if self.is_next(consumer.shard) {
            let stashed = Stashed {
                sequence,
                message,
                delivery_count,
                first_acquirer,
                added,
                expiry_unix_ms,
            };
            self.deliver(now, consumer, stashed);
        } else {
            let mail = Mail::Deliver {
                consumer,
                sequence,
                message,
                delivery_count,
                first_acquirer,
                added,
                expiry_unix_ms,
            };
            self.post(consumer.shard, mail);
        }
    }

    /// A consumer's verdict on a message that it holds. One that it does not hold any more (it was
    /// requeued when the link went) is answered all the same: nothing is pending for it.
    pub(super) fn settle(
        &mut self,
        now: Instant,
        id: QueueId,
        consumer: LinkRef,
        verdict: Verdict,
    ) {
        let Verdict { sequence, outcome, confirm } = verdict;
        let answer = if confirm { Answer::Settled(consumer, sequence) } else { Answer::Nobody };
        let level = self.state.catalogue.get(id).map(|record| record.level);
        let (Some(level), Some(queue)) = (level, self.state.queue_mut(id)) else {
            return self.answer(answer);
        };
        let held = match outcome {
            Outcome::Accepted => queue.settle(consumer, sequence).map(|()| Next::Settle),
            Outcome::Rejected | Outcome::Modified { delivery_failed: true, .. }
                if queue.is_doomed(sequence) =>
            {
                queue.give_back(consumer, sequence).map(|()| Next::Nothing)
            }
            Outcome::Rejected if queue.buries_elsewhere() => {
                queue.put_back(consumer, sequence).map(|count| {
                    queue.counters.rejected += 1;
                    let doom = Some(Reason::Rejected);
                    Next::SetBack(Setback { count, doom, added: None })
                })
            }
            Outcome::Rejected => queue.settle(consumer, sequence).map(|()| {
                queue.counters.rejected += 1;
                Next::Settle
            }),
            Outcome::Released
            | Outcome::Modified { delivery_failed: false, undeliverable_here: false } => {
                queue.release(consumer, sequence).map(|()| Next::Nothing)
            }
            Outcome::Expired => queue.release_expired(consumer, sequence).map(|()| Next::Nothing),
            Outcome::Modified { delivery_failed: false, undeliverable_here: true } => {
                queue.release(consumer, sequence).map(|()| Next::Nothing)
            }
            Outcome::Modified { delivery_failed: true, .. } => {
                let count = queue.fail(now, consumer, sequence);
                count.map(|count| Next::SetBack(Setback::failed(count)))
            }
        };
        if matches!(outcome, Outcome::Modified { undeliverable_here: true, .. }) && held.is_ok() {
            queue.exclude(consumer, sequence);
        }
        self.dirty_queues.insert(id);
        let urgency = if confirm { Urgency::Now } else { Urgency::Window };
        match held {
            Ok(Next::Settle) => self.append_settle(now, id, level, sequence, answer, urgency),
            Ok(Next::SetBack(setback)) => {
                self.append_setback(now, (id, level), sequence, setback, answer);
            }
            Ok(Next::Nothing) | Err(_) => self.answer(answer),
        }
    }

    /// Appends the settlement of a message whose slot is settling already.
    pub(super) fn append_settle(
        &mut self,
        now: Instant,
        id: QueueId,
        level: Level,
        sequence: Sequence,
        answer: Answer,
        urgency: Urgency,
    ) {
        let mut record = Record::new(RecordKind::Settle, id, sequence, &[]);
        record.level = level;
        let Some(journal) = &mut self.journal else { return };
        match journal.append(now, &record, urgency) {
            Ok(appended) => {
                let effect = self.state.apply_settle(id, sequence);
                let level = appended.answered_at(level);
                self.pending.push(level, Waiting { end: appended.end, effect, answer });
            }
            // Its room was set aside when the message was accepted, but may still be in the making.
            Err(AppendError::Busy) => {
                self.waiting.push_back(Parked::Settle { id, level, sequence, answer, urgency });
            }
            Err(error @ (AppendError::Full | AppendError::TooLarge)) => {
                self.fatal(Fatal::JournalPoisoned(format!(
                    "there is no room for a settlement ({error}), though it was set aside"
                )));
            }
            Err(AppendError::Poisoned | AppendError::Closed) => {}
        }
    }

    pub(super) fn append_setback(
        &mut self,
        now: Instant,
        (id, level): (QueueId, Level),
        sequence: Sequence,
        setback: Setback,
        answer: Answer,
    ) {
        let payload = setback.payload();
        let mut record = Record::new(RecordKind::DeliveryCount, id, sequence, &payload);
        record.level = level;
        record.parts.delivery_count = Some(setback.count);
        let Some(journal) = &mut self.journal else { return };
        match journal.append(now, &record, Urgency::Now) {
            Ok(appended) => {
                let effect = self.state.apply_setback(id, sequence, setback);
                let level = appended.answered_at(level);
                self.pending.push(level, Waiting { end: appended.end, effect, answer });
            }
            // The message stays where no consumer sees it, and the answer waits.
            Err(AppendError::Busy) => {
                let place = (id, level);
                self.waiting.push_back(Parked::Setback { place, sequence, setback, answer });
            }
            Err(AppendError::Full | AppendError::TooLarge) => {
                self.state.commit(Effect::Counted(id, sequence));
                self.dirty_queues.insert(id);
                self.may_leave(id);
                self.may_wake(id);
                self.answer(answer);
            }
            Err(AppendError::Poisoned | AppendError::Closed) => {}
        }
    }

    /// The journal may take again what it could not take before.
    pub(super) fn step_waiting(&mut self, now: Instant) {
        for parked in std::mem::take(&mut self.waiting) {
            match parked {
                Parked::Settle { id, level, sequence, answer, urgency } => {
                    self.append_settle(now, id, level, sequence, answer, urgency);
                }
                Parked::Setback { place, sequence, setback, answer } => {
                    self.append_setback(now, place, sequence, setback, answer);
                }
                Parked::Mark { level, answer } => self.answer_behind_all(level, answer),
            }
        }
    }

    /// A consumer goes: what it held is requeued, and it is answered when everything that it
    /// settled before is committed.
    pub(super) fn unconsume(
        &mut self,
        now: Instant,
        id: QueueId,
        consumer: LinkRef,
        failed: &[Sequence],
    ) {
        let level = self.state.catalogue.get(id).map(|record| record.level);
        if let Some(level) = level.filter(|_| !failed.is_empty()) {
            self.count_broken_off(now, (id, level), consumer, failed);
        }
        if let Some(queue) = self.state.queue_mut(id) {
            queue.detach(consumer);
            self.dirty_queues.insert(id);
        }
        self.begin_return(now, id);
        let answer = Answer::Unconsumed(consumer);
        match level {
            Some(level) => self.answer_behind_all(level, answer),
            None => self.answer(answer),
        }
    }

    /// What a consumer was sent whose connection broke off has failed, as far as the log takes it.
    fn count_broken_off(
        &mut self,
        now: Instant,
        (id, level): (QueueId, Level),
        consumer: LinkRef,
        failed: &[Sequence],
    ) {
        let mut is_first = true;
        for sequence in failed.iter().copied() {
            let Some(queue) = self.state.queue_mut(id) else { return };
            let Some(count) = queue.count_with(consumer, sequence) else { continue };
            let mut record = Record::new(RecordKind::DeliveryCount, id, sequence, &[]);
            record.level = level;
            record.parts.delivery_count = Some(count);
            let Some(journal) = &mut self.journal else { return };
            let appended = match journal.append(now, &record, Urgency::Window) {
                Ok(appended) => appended,
                // What it had in hand may be what ended it: that waits for the journal.
                Err(AppendError::Busy) if is_first => {
                    if queue.put_back(consumer, sequence).is_ok() {
                        let (place, setback) = ((id, level), Setback::failed(count));
                        let answer = Answer::Nobody;
                        self.waiting.push_back(Parked::Setback {
                            place,
                            sequence,
                            setback,
                            answer,
                        });
                    }
                    return;
                }
                Err(_) => return,
            };
            is_first = false;
            let effect = self.state.apply_setback(id, sequence, Setback::failed(count));
            let goes = self.state.queue_mut(id).is_some_and(|q| q.end_if_over(consumer, sequence));
            if goes {
                let level = appended.answered_at(level);
                let (end, answer) = (appended.end, Answer::Nobody);
                self.pending.push(level, Waiting { end, effect, answer });
            }
        }
    }

    /// Answers when everything up to now is committed, what waits for the journal included.
    pub(super) fn answer_behind_all(&mut self, level: Level, answer: Answer) {
        if !self.waiting.is_empty() {
            self.waiting.push_back(Parked::Mark { level, answer });
        } else if let Some(journal) = &self.journal {
            let end = journal.appended();
            // What an `async` settlement before it could not have at once, it waits for too.
            let waits = level == Level::Async && self.pending.waits_at(Level::Sync);
            let level = if waits { Level::Sync } else { level };
            self.pending.push(level, Waiting { end, effect: Effect::None, answer });
        }
    }
}

/// What is left to do once a slot has moved.
enum Next {
    Settle,
    SetBack(Setback),
    Nothing,
}

/// What waits for a journal that is behind, in order.
#[derive(Debug)]
pub(super) enum Parked {
    /// A settlement that it could not take yet.
    Settle { id: QueueId, level: Level, sequence: Sequence, answer: Answer, urgency: Urgency },
    /// A message that came back, which it could not be told yet.
    Setback { place: (QueueId, Level), sequence: Sequence, setback: Setback, answer: Answer },
    /// An answer to what came before.
    Mark { level: Level, answer: Answer },
}
