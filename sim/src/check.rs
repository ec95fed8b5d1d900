//! What was seen, and one checker for each promise.
//!
//! ```text
//!   clients ──┐                    ┌─▶ survival    accepted, or delivered, and lost
//!   the log ──┼─▶ Seen ─▶ Facts ───┼─▶ settlement  confirmed, and back again
//!   the world ┘                    ├─▶ order       a producer's messages overtake each other
//!                                  └─▶ …           one file, one promise
//! ```
//! [`Facts`] is what all of them need to know (which letter is which, what crashed when); a checker
//! keeps what only it needs. A broken promise is an `Err` with a sentence; the world adds the seed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use amqp::message::PRIORITY_DEFAULT;
use broker::admin::QueueStat;
use broker::clock::WallClock;
use journal::{Chain, Level, Lsn, Origin, QueueId, RecordKind, Sequence, ShardId};

use crate::hits::Hits;
use crate::letter::{Later, LetterId};
use crate::wire::Verdict;

mod attempts;
mod browse;
mod commit;
mod compaction;
mod count;
mod creation;
mod early;
mod expiry;
mod holder;
mod moved;
mod note;
mod once;
mod order;
mod purge;
mod recovery;
mod refusal;
mod schedule;
mod sequence;
mod settlement;
mod survival;
mod vouch;

/// A link of a client, numbered over the whole run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkKey(pub u64);

/// How durable one shard's log really is, by the disk and not by the broker's word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// The end of the contiguous prefix of writes that have ended.
    pub durable: Lsn,
    /// What the second member was said to have received.
    pub received: Lsn,
    /// What it was said to have made durable.
    pub backed_up: Lsn,
}

/// The moment at which the broker let bytes go.
#[derive(Clone, Debug)]
pub struct Stamp {
    /// When.
    pub at: Instant,
    /// The marks of every shard then.
    pub marks: Vec<Mark>,
}

/// A record on its way to the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Whose log.
    pub shard: ShardId,
    /// What it is.
    pub kind: RecordKind,
    /// The level it asks for.
    pub level: Level,
    /// Its queue.
    pub queue: QueueId,
    /// Its sequence.
    pub sequence: Sequence,
    /// Its place.
    pub lsn: Lsn,
    /// The end of its last fragment.
    pub end: Lsn,
    /// The letter in it.
    pub letter: Option<LetterId>,
    /// The name in it, of a queue's creation.
    pub name: Option<String>,
    /// Whence it was moved.
    pub origin: Option<Origin>,
    /// It has a duplicate id.
    pub identified: bool,
    /// It says that its message has to go: nothing failed.
    pub doom: bool,
    /// The failed deliveries that it counts.
    pub delivery_count: Option<u32>,
    /// When its message is to be delivered.
    pub delivery_unix_ms: Option<u64>,
    /// A reign begins with it that the one before had lost, or never had: whether it might be
    /// written was judged when it was.
    pub found: bool,
}

/// A queue's state as an operator is shown it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueView {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: QueueId,
    /// Where it lives.
    pub shard: u16,
    /// Messages in it, whatever their state.
    pub messages: u64,
    /// Those of them that wait for a commit.
    pub uncommitted: u64,
    /// Those of them that wait for their time, or are on their way to another queue.
    pub away: u64,
    /// Those that wait for their time.
    pub delayed: u64,
    /// The next sequence.
    pub next_sequence: Sequence,
}

impl From<QueueStat> for QueueView {
    fn from(queue: QueueStat) -> Self {
        Self {
            name: queue.name,
            id: queue.id,
            shard: queue.shard,
            messages: queue.available
                + queue.acquired
                + queue.uncommitted
                + queue.delayed
                + queue.moving,
            uncommitted: queue.uncommitted,
            away: queue.delayed + queue.moving,
            delayed: queue.delayed,
            next_sequence: queue.next_sequence,
        }
    }
}

/// A link that goes.
#[derive(Clone, Copy, Debug)]
pub struct Parting {
    /// Which.
    pub link: LinkKey,
    /// The queue that it consumed, if its connection has broken off while the broker lived; said
    /// of one link of each.
    pub broke_off: Option<usize>,
}

/// One thing that was seen.
#[derive(Clone, Debug)]
pub enum Seen {
    /// A client sent a letter.
    Sent {
        /// Which.
        letter: LetterId,
        /// On which link.
        link: LinkKey,
        /// To which queue, by the client's own numbering.
        queue: usize,
        /// Sent settled: nothing is promised.
        settled: bool,
        /// It was sent before, and has a duplicate id.
        again: bool,
        /// When it expires, if it does.
        expiry_unix_ms: Option<u64>,
        /// Its priority, if it states one.
        priority: Option<u8>,
        /// When it is to be delivered, if it says so.
        later: Option<Later>,
        /// When it was sent.
        sent_unix_ms: u64,
    },
    /// The broker accepted it.
    Accepted(LetterId),
    /// The broker did not take it.
    Refused(LetterId),
    /// A letter came.
    Delivered {
        /// Which.
        letter: LetterId,
        /// On which link.
        link: LinkKey,
        /// Failed deliveries, as the header says.
        delivery_count: u32,
        /// As the header says.
        first_acquirer: bool,
        /// The only consumer of its queue, of a broker that is otherwise at rest.
        alone: bool,
        /// It came from a queue for what died.
        grave: bool,
        /// The annotation that a consumer gave it.
        note: Option<u32>,
    },
    /// A letter was shown to somebody who only looks.
    Browsed {
        /// Which.
        letter: LetterId,
        /// On which link.
        link: LinkKey,
        /// It was in a queue for what died.
        grave: bool,
        /// When it began to look: what it is shown may have gone since.
        since_unix_ms: u64,
    },
    /// A client gave a delivery its outcome.
    Judged {
        /// Which letter.
        letter: LetterId,
        /// The outcome.
        verdict: Verdict,
    },
    /// The broker has confirmed that outcome.
    Confirmed {
        /// Which letter.
        letter: LetterId,
        /// The outcome.
        verdict: Verdict,
    },
    /// A link is on its way out, or gone: what it holds goes back.
    Parted(Parting),
    /// An operator asks for a purge.
    Purging {
        /// Of which queue.
        queue: QueueId,
        /// The first sequence that is not given yet: what has it, or a higher one, stays.
        below: Sequence,
    },
    /// The operator was told that what was asked of this queue is over.
    Purged(QueueId),
    /// Duplicate ids were forgotten before their time: all of messages below these.
    Forgotten {
        /// The oldest sequences whose ids the queues of a shard remember; the next ones, where they
        /// remember none.
        below: Vec<(QueueId, Sequence)>,
    },
    /// A record was submitted to the disk.
    Written(Written),
    /// A batch was submitted that vouches for everything below `vouched`.
    Vouched {
        /// Whose log.
        shard: ShardId,
        /// What it vouches for.
        vouched: Lsn,
        /// Where it ends.
        end: Lsn,
        /// The chain there.
        chain: Chain,
    },
    /// A superblock was submitted: the log begins here from now on.
    Headed {
        /// Whose log.
        shard: ShardId,
        /// Where it begins.
        head: Lsn,
        /// How durable the log is.
        mark: Mark,
    },
    /// A shard's log ends here after recovery: what was written beyond is gone.
    Recovered {
        /// Whose log.
        shard: ShardId,
        /// Its end.
        end: Lsn,
    },
    /// All shards serve; this is what they hold.
    Ready {
        /// Every queue.
        queues: Vec<QueueView>,
    },
    /// The process is gone. What was accepted at `async` since `async_from` may be, too.
    Crash {
        /// The beginning of the flush window and the writes in flight.
        async_from: Instant,
    },
}

/// A letter's way so far.
#[derive(Clone, Debug)]
pub struct Letter {
    /// Its place among all letters of its producer's link.
    pub link: LinkKey,
    /// The queue, by the client's own numbering.
    pub queue: usize,
    /// Its newest record in a log.
    pub written: Option<Written>,
    /// The incarnation of the broker in which that was written.
    pub incarnation: u64,
    /// The record of its settlement.
    pub settled: Option<Written>,
    /// Its records in the queues that it was moved to, the newest last. A crash can take that one,
    /// and the one before is what there is again.
    pub copies: Vec<Copied>,
    /// When it expires, if it does.
    pub expiry_unix_ms: Option<u64>,
    /// Its priority.
    pub priority: u8,
    /// When it is to be delivered, if it says so.
    pub later: Option<Later>,
    /// When it was sent first.
    pub sent_unix_ms: u64,
    /// It was sent more than once: its place in the order is that of any of them.
    pub repeated: bool,
    /// It was stored twice, since its id had been forgotten.
    pub twice: bool,
    /// The log says that it has to go: it is there only between two tries to move it.
    pub doomed: bool,
}

/// A letter in a queue that it was moved to.
#[derive(Clone, Debug)]
pub struct Copied {
    /// Its record there.
    pub written: Written,
    /// The record of that copy's settlement.
    pub settled: Option<Written>,
}

impl Letter {
    /// Where it was moved to last.
    pub fn copy(&self) -> Option<&Written> {
        self.copies.last().map(|copy| &copy.written)
    }

    /// Whether a record of it at this place of a queue is known: another one there is a copy, that
    /// a compaction made.
    fn is_at(&self, place: (QueueId, Sequence)) -> bool {
        let copies = self.copies.iter().map(|copy| &copy.written);
        copies.chain(&self.written).any(|known| (known.queue, known.sequence) == place)
    }

    fn is_copied(&mut self, written: Written) {
        let place = |written: &Written| (written.queue, written.sequence);
        self.copies.retain(|copy| place(&copy.written) != place(&written));
        self.copies.push(Copied { written, settled: None });
    }

    fn is_settled(&mut self, settled: Written) {
        let here = |copy: &&mut Copied| {
            (copy.written.queue, copy.written.sequence) == (settled.queue, settled.sequence)
        };
        match self.copies.iter_mut().find(here) {
            Some(copy) => copy.settled = Some(settled),
            None => self.settled = Some(settled),
        }
    }

    /// What a crash has cut off was never written. Gives the places that it had there.
    fn is_cut(&mut self, is_lost: impl Fn(&Written) -> bool) -> Vec<(QueueId, Sequence)> {
        let records = self.copies.iter().map(|copy| &copy.written).chain(&self.written);
        let lost = records.filter(|at| is_lost(at)).map(|at| (at.queue, at.sequence)).collect();
        self.written.take_if(|at| is_lost(at));
        self.settled.take_if(|at| is_lost(at));
        self.copies.retain(|copy| !is_lost(&copy.written));
        for copy in &mut self.copies {
            copy.settled.take_if(|at| is_lost(at));
        }
        lost
    }
}

/// What every checker may know.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// All letters.
    pub letters: BTreeMap<LetterId, Letter>,
    /// Which letter has which place in which queue.
    pub places: BTreeMap<(QueueId, Sequence), LetterId>,
    /// Each end of the process: from when `async` was at risk, and when it was.
    pub crashes: Vec<(Instant, Instant)>,
    /// The creations of queues by id, as the log has them.
    pub queues: BTreeMap<QueueId, Written>,
    /// The names of queues, in the clients' numbering.
    pub names: Vec<String>,
    /// Starts of the broker.
    pub incarnation: u64,
    /// The time of day when the world began, and when that was.
    pub clock: Option<WallClock>,
    /// When who serves stood still, or one shard of it: what it had on its way waited.
    pub stood: Vec<(Instant, Instant)>,
    /// A second member is in the in-sync set.
    pub backup: bool,
    /// What a reign finds in its log is promised only once the other member has it.
    pub pair: bool,
    /// Queues of which a purge was asked for.
    pub purged: BTreeSet<QueueId>,
    /// Ids of messages before these were forgotten, some time.
    pub vague: BTreeMap<QueueId, Sequence>,
    /// Queues that drop what they have no room for, in the clients' numbering.
    pub dropping: BTreeSet<usize>,
    /// Log, disk or memory may get full.
    pub tight: bool,
    /// Shards that could not move a message: what died there may be offered again.
    pub stuck: BTreeSet<ShardId>,
    /// The queues are drained although something was still on its way to another.
    pub disordered: bool,
    /// Failed deliveries after which a message goes to the dead letters.
    pub attempts_max: u32,
    /// How long what is answered before it is written may wait: the flush window, and a slack.
    pub early_bound: Duration,
    /// The stamp of what is being seen.
    pub stamp: Option<Stamp>,
}

impl Facts {
    /// The letter, which must have been sent.
    pub fn letter(&self, id: LetterId) -> Result<&Letter, String> {
        self.letters.get(&id).ok_or_else(|| format!("{id:?} was never sent"))
    }

    /// Whether the broker may have accepted a letter and dropped it: it is in no log, or was sent
    /// once more.
    pub fn may_be_dropped(&self, id: LetterId) -> bool {
        self.letters.get(&id).is_some_and(|letter| {
            let is_there = letter.written.is_some() && !letter.repeated;
            !is_there && self.dropping.contains(&letter.queue)
        })
    }

    /// Whether a letter that has to go may be offered to consumers meanwhile.
    pub fn may_be_offered(&self, letter: &Letter) -> bool {
        letter.written.as_ref().is_some_and(|written| self.stuck.contains(&written.shard))
    }

    /// Whether the id of the message at this place was forgotten before its time.
    pub fn is_vague(&self, (queue, sequence): (QueueId, Sequence)) -> bool {
        self.vague.get(&queue).is_some_and(|below| sequence < *below)
    }

    /// Whether a letter may be stored twice: what happens to the one says nothing of the other. At
    /// `async` the second may come before the disk has seen it.
    pub fn may_be_twice(&self, letter: &Letter) -> bool {
        let is_vague = |written: &Written| self.is_vague((written.queue, written.sequence));
        letter.twice || letter.repeated && letter.written.as_ref().is_some_and(is_vague)
    }

    /// Whether a purge may have taken a letter: the log says that it is settled where it was.
    pub fn may_be_purged(&self, id: LetterId) -> bool {
        self.letters.get(&id).is_some_and(|letter| {
            let settled = letter.settled.as_ref().filter(|_| letter.copies.is_empty());
            settled.is_some_and(|at| self.purged.contains(&at.queue))
        })
    }

    /// The level of a letter's queue. One that was never written may be at `async`, and lost.
    pub fn level(&self, id: LetterId) -> Level {
        let Some(letter) = self.letters.get(&id) else { return Level::Sync };
        if let Some(copy) = letter.copy() {
            return self.queues.get(&copy.queue).map_or(Level::Sync, |creation| creation.level);
        }
        if let Some(written) = &letter.written {
            return written.level;
        }
        let name = self.names.get(letter.queue);
        let creation = self.queues.values().find(|creation| creation.name.as_ref() == name);
        creation.map_or(Level::Sync, |creation| creation.level)
    }

    /// Whether what was seen concerns this letter, or everything.
    pub fn concerns(&self, seen: &Seen, id: LetterId) -> bool {
        match seen {
            Seen::Sent { letter, .. }
            | Seen::Accepted(letter)
            | Seen::Refused(letter)
            | Seen::Delivered { letter, .. }
            | Seen::Browsed { letter, .. }
            | Seen::Judged { letter, .. }
            | Seen::Confirmed { letter, .. } => *letter == id,
            Seen::Written(record) => {
                let place = (record.queue, record.sequence);
                record.letter == Some(id) || self.places.get(&place) == Some(&id)
            }
            Seen::Vouched { .. }
            | Seen::Headed { .. }
            | Seen::Parted(_)
            | Seen::Purging { .. }
            | Seen::Purged(_)
            | Seen::Forgotten { .. } => false,
            Seen::Recovered { .. } | Seen::Ready { .. } | Seen::Crash { .. } => true,
        }
    }

    /// For how long who serves stood still, as far as that was between these moments.
    pub fn stood_between(&self, from: Instant, to: Instant) -> Duration {
        let overlap = |(began, ended): &(Instant, Instant)| {
            (*ended).min(to).saturating_duration_since((*began).max(from))
        };
        self.stood.iter().map(overlap).sum()
    }

    /// Whether something promised at this time, at level `async`, may be lost.
    pub fn at_risk(&self, promised: Instant) -> bool {
        self.crashes.iter().any(|(from, to)| *from <= promised && promised <= *to)
    }
}

/// One promise, watched over.
pub trait Check {
    /// The promise, in a few words.
    fn promise(&self) -> &'static str;

    /// Takes what was seen.
    ///
    /// # Errors
    /// How the promise was broken.
    fn see(&mut self, now: Instant, facts: &Facts, seen: &Seen) -> Result<(), String>;

    /// Everything is delivered, settled and at rest.
    ///
    /// # Errors
    /// How the promise was broken.
    fn finish(&mut self, _facts: &Facts, _hits: &mut Hits) -> Result<(), String> {
        Ok(())
    }
}

/// All checkers.
pub struct Checks {
    /// What is known.
    pub facts: Facts,
    checks: Vec<Box<dyn Check>>,
}

impl std::fmt::Debug for Checks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let promises = self.checks.iter().map(|check| check.promise());
        f.debug_list().entries(promises).finish()
    }
}

impl Default for Checks {
    fn default() -> Self {
        Self {
            facts: Facts::default(),
            checks: vec![
                Box::new(attempts::Attempts),
                Box::new(browse::Browse::default()),
                Box::new(note::Note::default()),
                Box::new(expiry::Expiry),
                Box::new(moved::Moved::default()),
                Box::new(commit::Commit),
                Box::new(compaction::Compaction::default()),
                Box::new(count::Count::default()),
                Box::new(creation::Creation::default()),
                Box::new(early::Early::default()),
                Box::new(holder::Holder::default()),
                Box::new(once::Once::default()),
                Box::new(order::Order::default()),
                Box::new(purge::Purge::default()),
                Box::new(recovery::Recovery::default()),
                Box::new(refusal::Refusal::default()),
                Box::new(schedule::Schedule::default()),
                Box::new(sequence::SequenceOnce::default()),
                Box::new(settlement::Settlement::default()),
                Box::new(survival::Survival::default()),
                Box::new(vouch::Vouch),
            ],
        }
    }
}

impl Checks {
    /// Shows every checker what was seen.
    ///
    /// # Errors
    /// The promise that was broken, and how.
    pub fn see(&mut self, now: Instant, seen: &Seen) -> Result<(), String> {
        self.learn(seen);
        for check in &mut self.checks {
            let judged = check.see(now, &self.facts, seen);
            judged.map_err(|what| format!("{}: {what}", check.promise()))?;
        }
        if let Seen::Crash { async_from } = seen {
            self.facts.crashes.push((*async_from, now));
        }
        Ok(())
    }

    /// Asks every checker for its last word.
    ///
    /// # Errors
    /// The promise that was broken, and how.
    pub fn finish(&mut self, hits: &mut Hits) -> Result<(), String> {
        for check in &mut self.checks {
            let judged = check.finish(&self.facts, hits);
            judged.map_err(|what| format!("{}: {what}", check.promise()))?;
        }
        Ok(())
    }

    fn learn(&mut self, seen: &Seen) {
        let facts = &mut self.facts;
        match seen {
            Seen::Sent { letter, again: true, .. } => {
                facts.letters.entry(*letter).and_modify(|letter| letter.repeated = true);
            }
            Seen::Sent {
                letter,
                link,
                queue,
                expiry_unix_ms,
                priority,
                later,
                sent_unix_ms,
                ..
            } => {
                let priority = priority.unwrap_or(PRIORITY_DEFAULT);
                let expiry_unix_ms = *expiry_unix_ms;
                let (link, queue, incarnation) = (*link, *queue, facts.incarnation);
                let new = Letter {
                    link,
                    queue,
                    written: None,
                    incarnation,
                    settled: None,
                    copies: Vec::new(),
                    expiry_unix_ms,
                    priority,
                    later: *later,
                    sent_unix_ms: *sent_unix_ms,
                    repeated: false,
                    twice: false,
                    doomed: false,
                };
                facts.letters.insert(*letter, new);
            }
            Seen::Written(written) => {
                let place = (written.queue, written.sequence);
                let letter = written.letter.and_then(|id| facts.letters.get_mut(&id));
                if let Some(letter) = letter.filter(|letter| !letter.is_at(place)) {
                    match written.origin {
                        None => {
                            letter.twice |= letter.written.is_some();
                            letter.written = Some(written.clone());
                        }
                        Some(_) => letter.is_copied(written.clone()),
                    }
                    letter.incarnation = facts.incarnation;
                }
                if let (RecordKind::Message, Some(letter)) = (written.kind, written.letter) {
                    facts.places.insert(place, letter);
                }
                if written.kind == RecordKind::DeliveryCount
                    && let Some(id) = facts.places.get(&place)
                    && let Some(letter) = facts.letters.get_mut(id)
                {
                    let count = written.delivery_count.unwrap_or(0);
                    letter.doomed |= written.doom || count >= facts.attempts_max;
                }
                if written.kind == RecordKind::Settle
                    && let Some(id) = facts.places.get(&place)
                    && let Some(letter) = facts.letters.get_mut(id)
                {
                    letter.is_settled(written.clone());
                }
                if written.kind == RecordKind::QueueDelete {
                    // What comes to a new queue of that name is known to nobody.
                    facts.vague.insert(written.queue, Sequence(u64::MAX));
                }
                if written.kind == RecordKind::QueueCreate && written.name.is_some() {
                    facts.queues.entry(written.queue).or_insert_with(|| written.clone());
                }
            }
            Seen::Recovered { shard, end } => {
                for (id, letter) in &mut facts.letters {
                    for place in letter.is_cut(|at| at.shard == *shard && at.end > *end) {
                        if facts.places.get(&place) == Some(id) {
                            facts.places.remove(&place);
                        }
                    }
                }
                facts.queues.retain(|_, at| at.shard != *shard || at.end <= *end);
            }
            Seen::Ready { .. } => facts.incarnation += 1,
            Seen::Purging { queue, .. } => drop(facts.purged.insert(*queue)),
            Seen::Forgotten { below } => {
                for (queue, below) in below {
                    // What a start finds in the log again may have been stored twice by then.
                    let known = facts.vague.entry(*queue).or_default();
                    *known = (*known).max(*below);
                }
            }
            Seen::Accepted(_)
            | Seen::Refused(_)
            | Seen::Delivered { .. }
            | Seen::Browsed { .. }
            | Seen::Judged { .. }
            | Seen::Confirmed { .. }
            | Seen::Parted(_)
            | Seen::Purged(_)
            | Seen::Vouched { .. }
            | Seen::Headed { .. }
            | Seen::Crash { .. } => {}
        }
    }
}
