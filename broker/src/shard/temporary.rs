//! Temporary queues: dynamic nodes, which go with what made them.
//!
//! ```text
//!   attach, dynamic ── Make ──▶ shard 0: an id that is set aside ── Open ──▶ home: the asker's
//!                               none left: the log says that another thousand are given,
//!                               and when that is committed they are
//!   Made ─▶ the attach is answered with the queue's name
//!
//!   home:  links that are tied to it, whether its maker's is gone, how many messages it holds
//!          ── its policy says that this is the end ──▶ forget it ── Delete ──▶ shard 0
//!   Deleted, to all: links to it are detached with resource-deleted
//! ```
//! Such a queue is never in the log, only its messages are, at level `async`: a queue that goes
//! with its connection cannot outlive the process. What a start finds of it are records of an id
//! that was given and is not in the catalogue, and it forgets those.
//!
//! Invariants: an id is used only after the log has said, committed everywhere, that it is given; a
//! queue's `ties` counts its maker from the start, and each link exactly once; a connection's count
//! goes up when it asks, and down when it is refused or a queue of its goes; shard 0 alone tells
//! the others that a queue comes or goes, so they hear it in that order.

use std::collections::{BTreeSet, VecDeque};
use std::time::Instant;

use amqp::link::LifetimePolicy;
use journal::{AppendError, Level, QueueId, Record, RecordKind, Sequence, ShardId, Urgency};

use super::creation::Creation;
use super::ingress::refusal_of;
use super::link::{End, Link, LinkPhase, Tie};
use super::{Phase, Shard, terms};
use crate::apply::Effect;
use crate::catalogue::{QueueRecord, Temporary, temporary_name};
use crate::event::ConnId;
use crate::flat_map::FlatMap;
use crate::limits::{QUEUES_RESERVED, TEMPORARY_IDS};
use crate::mail::{LinkKey, LinkRef, Mail, Refusal};
use crate::pending::{Answer, Waiting};
use crate::queue::SlotState;

/// What a shard knows of temporary queues: shard 0 their ids, each shard the lives of its own.
#[derive(Debug, Default)]
pub(super) struct Temporaries {
    /// Ids that are set aside, next and end.
    ids: (u64, u64),
    /// A record that sets ids aside is appended, not committed.
    asked: bool,
    /// Who waits for an id.
    waiting: VecDeque<(LinkRef, Temporary)>,
    lives: FlatMap<QueueId, Life>,
    /// Those of each connection.
    owned: BTreeSet<(ConnId, QueueId)>,
    /// The links of this shard that hang on a queue which may go.
    links: BTreeSet<(QueueId, LinkKey)>,
}

/// What the life of a temporary queue hangs on.
#[derive(Debug)]
struct Life {
    policy: LifetimePolicy,
    /// The connection that alone may consume from it.
    owner: ConnId,
    /// Links to it.
    ties: u32,
    /// The link that it was made for is gone.
    maker_gone: bool,
    /// The owner is gone: nobody will ever consume what the queue holds.
    owner_gone: bool,
}

impl Temporaries {
    /// Whether nobody waits for a queue.
    pub(super) fn is_quiet(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether this is a temporary queue of this shard.
    pub(super) fn has(&self, queue: QueueId) -> bool {
        !self.lives.is_empty() && self.lives.contains_key(queue)
    }

    /// A queue's life begins, with its maker.
    pub(super) fn begin(&mut self, queue: QueueId, temporary: Temporary) {
        let Temporary { policy, owner: (_, owner) } = temporary;
        let life = Life { policy, owner, ties: 1, maker_gone: false, owner_gone: false };
        self.lives.insert(queue, life);
        self.owned.insert((owner, queue));
    }

    /// One more link to a queue.
    pub(super) fn tie(&mut self, queue: QueueId) {
        if let Some(life) = self.lives.get_mut(queue) {
            life.ties += 1;
        }
    }

    fn take_id(&mut self) -> Option<QueueId> {
        let (next, end) = &mut self.ids;
        let id = *next;
        (id < *end).then(|| {
            *next += 1;
            QueueId(id)
        })
    }
}

/// The side of the link that a queue is made for.
impl Shard {
    pub(super) fn ask_to_make(&mut self, conn: ConnId, key: LinkKey, policy: LifetimePolicy) {
        if let Some(conn) = self.conns.get_mut(conn) {
            // Its queue is here, and knows it by its number here.
            conn.may_move = false;
            conn.temporary_queues += 1;
        }
        let temporary = Temporary { policy, owner: (self.config.shard, conn) };
        self.post(ShardId(0), Mail::Make { asker: self.here(key), temporary });
    }

    /// The queue of a link was made (or was not).
    pub(super) fn made(
        &mut self,
        now: Instant,
        asker: LinkRef,
        owner: ConnId,
        result: Result<QueueId, Refusal>,
    ) {
        if result.is_err() {
            self.owns_one_less(owner);
        }
        let link = self.links.get_mut(asker.key);
        let link = link.filter(|link| matches!(link.phase, LinkPhase::Resolving));
        match (link, result) {
            (Some(link), Ok(queue)) => {
                link.queue = queue;
                link.tie = Tie::Maker;
                self.temporaries.links.insert((queue, asker.key));
                let record = self.state.catalogue.get(queue);
                if let Some((record, accept)) = record.zip(link.accept.as_deref_mut()) {
                    let policy = record.temporary.map(|temporary| temporary.policy);
                    terms::name_node(accept, &record.name, policy.unwrap_or_default());
                }
                self.opened_link(now, asker.key);
            }
            (Some(_), Err(refusal)) => self.refuse_attach(asker.key, &refusal),
            // The link went meanwhile, and the queue goes after it.
            (None, Ok(queue)) => {
                self.post(self.config.shard, Mail::Untied { queue, maker: true });
            }
            (None, Err(_)) => {}
        }
    }

    /// Whether a link may be attached to a queue: from a temporary one only its owner consumes.
    pub(super) fn may_attach(&self, link: &Link, queue: QueueId) -> Result<(), Refusal> {
        let record = self.state.catalogue.get(queue).ok_or(Refusal::QueueGone)?;
        match (&link.end, record.temporary) {
            (End::Consumer(_), Some(temporary))
                if temporary.owner != (self.config.shard, link.conn) =>
            {
                Err(Refusal::NotYours)
            }
            (End::Consumer(_) | End::Producer(_), Some(_) | None) => Ok(()),
        }
    }

    /// A link is about to open: its queue's home hears of it, if the queue goes with its users.
    pub(super) fn tie(&mut self, key: LinkKey) {
        let Some(link) = self.links.get(key) else { return };
        let (home, queue) = (link.home, link.queue);
        if self.state.catalogue.get(queue).is_some_and(|record| self.goes_unused(record)) {
            self.links.get_mut(key).expect("it was just looked at").tie = Tie::Guest;
            self.temporaries.links.insert((queue, key));
            self.post(home, Mail::Tied(queue));
        }
    }

    /// Whether a queue goes when nobody uses it: then the links to it are listed.
    pub(super) fn goes_unused(&self, record: &QueueRecord) -> bool {
        let settings = || self.config.settings.of(&record.name);
        record.temporary.is_some() || !settings().auto_delete_after.is_zero()
    }

    /// A link is gone.
    pub(super) fn untie(&mut self, key: LinkKey, link: &Link) {
        let maker = match link.tie {
            Tie::None => return,
            Tie::Guest => false,
            Tie::Maker => true,
        };
        self.temporaries.links.remove(&(link.queue, key));
        self.post(link.home, Mail::Untied { queue: link.queue, maker });
    }

    /// A queue is gone: nobody finds it any more, and links to it are detached.
    pub(super) fn deleted(&mut self, now: Instant, queue: QueueId, is_listed: bool) {
        self.state.catalogue.remove(queue);
        self.full_queues.remove(&queue);
        self.bury(now, queue);
        let first = LinkKey { slot: 0, generation: 0 };
        let links = self.temporaries.links.range((queue, first)..);
        let of_queue = links.map_while(|(of, key)| (*of == queue).then_some(*key));
        // An operator may delete any queue, and the links to some are not listed.
        let of_queue: Vec<_> = if is_listed {
            of_queue.collect()
        } else {
            let all = self.links.iter().filter(|(_, link)| link.queue == queue);
            all.map(|(key, _)| key).collect()
        };
        for key in of_queue {
            let Some(link) = self.links.get(key) else { continue };
            if matches!(link.phase, LinkPhase::Open) {
                self.expel_link(key, &Refusal::QueueGone);
            }
        }
    }
}

/// Shard 0: ids, and who is told.
impl Shard {
    pub(super) fn make_queue(&mut self, now: Instant, asker: LinkRef, temporary: Temporary) {
        if matches!(self.phase, Phase::Stopping | Phase::Stopped) {
            return self.not_made(asker, temporary, Refusal::Stopping);
        }
        if !self.has_room_for_queue(QUEUES_RESERVED) {
            return self.not_made(asker, temporary, Refusal::TooManyQueues);
        }
        match self.temporaries.take_id() {
            Some(id) => self.make_with(id, asker, temporary),
            None => {
                self.temporaries.waiting.push_back((asker, temporary));
                self.set_ids_aside(now);
            }
        }
    }

    fn make_with(&mut self, id: QueueId, asker: LinkRef, temporary: Temporary) {
        let record = QueueRecord {
            id,
            home: asker.shard,
            level: Level::Async,
            name: temporary_name(id, self.config.amqp.tag_seed),
            temporary: Some(temporary),
        };
        self.state.catalogue.insert(record.clone());
        let creation = Creation { record: record.clone(), askers: vec![asker] };
        self.creations.by_name.insert(record.name.clone(), creation);
        self.post(record.home, Mail::Open(record));
    }

    fn not_made(&mut self, asker: LinkRef, temporary: Temporary, refusal: Refusal) {
        let owner = temporary.owner.1;
        self.post(asker.shard, Mail::Made { asker, owner, result: Err(refusal) });
    }

    /// The journal may take again what it could not take before.
    pub(super) fn step_temporaries(&mut self, now: Instant) {
        if !self.temporaries.is_quiet() {
            self.set_ids_aside(now);
        }
    }

    fn set_ids_aside(&mut self, now: Instant) {
        let Some(journal) = &mut self.journal else { return };
        if self.temporaries.asked {
            return;
        }
        let first = self.state.catalogue.next_id();
        let end = QueueId(first.0 + TEMPORARY_IDS);
        let mut record = Record::new(RecordKind::NextQueueId, end, Sequence(0), &[]);
        record.level = Level::Sync;
        match journal.append(now, &record, Urgency::Now) {
            Ok(appended) => {
                self.temporaries.asked = true;
                self.temporaries.ids = (first.0, first.0);
                self.state.catalogue.skip_to(end);
                self.state.witness_next_queue_id(appended.lsn);
                let (effect, answer) = (Effect::None, Answer::IdsSetAside(end));
                let waiting = Waiting { end: appended.end, effect, answer };
                self.pending.push(Level::ReplicatedSync, waiting);
            }
            Err(AppendError::Busy) => {}
            Err(error) => {
                for (asker, temporary) in std::mem::take(&mut self.temporaries.waiting) {
                    self.not_made(asker, temporary, refusal_of(error));
                }
            }
        }
    }

    /// The log has said that ids below this one are given.
    pub(super) fn ids_set_aside(&mut self, end: QueueId) {
        self.temporaries.asked = false;
        self.temporaries.ids.1 = end.0;
        while let Some((asker, temporary)) = self.temporaries.waiting.front().copied() {
            // Whoever is left asks again in the next step.
            let Some(id) = self.temporaries.take_id() else { return };
            self.temporaries.waiting.pop_front();
            self.make_with(id, asker, temporary);
        }
    }

    /// A home has given a queue up. One that is temporary is not in the log.
    pub(super) fn delete_queue(&mut self, now: Instant, queue: QueueId) {
        let record = self.state.catalogue.get(queue);
        if record.is_some_and(|record| record.temporary.is_none()) {
            return self.append_deletion(now, queue);
        }
        self.state.catalogue.remove(queue);
        self.post_all(&Mail::Deleted { queue, is_listed: true });
    }
}

/// The home's side.
impl Shard {
    /// One more link to a queue.
    pub(super) fn tied(&mut self, queue: QueueId) {
        self.temporaries.tie(queue);
        self.idle.tie(queue);
    }

    /// A link to a queue is gone.
    pub(super) fn untied(&mut self, now: Instant, queue: QueueId, maker: bool) {
        self.idle.untie(now, queue);
        if let Some(life) = self.temporaries.lives.get_mut(queue) {
            life.ties -= 1;
            life.maker_gone |= maker;
            self.end_life(now, queue);
        }
    }

    /// A connection that has made queues is gone.
    pub(super) fn orphan(&mut self, now: Instant, owner: ConnId) {
        let owned = self.temporaries.owned.range((owner, QueueId(0))..);
        let orphans = owned.map_while(|(of, queue)| (*of == owner).then_some(*queue));
        for queue in orphans.collect::<Vec<_>>() {
            if let Some(life) = self.temporaries.lives.get_mut(queue) {
                life.owner_gone = true;
            }
            self.end_life(now, queue);
        }
    }

    fn owns_one_less(&mut self, owner: ConnId) {
        if let Some(conn) = self.conns.get_mut(owner) {
            conn.temporary_queues -= 1;
        }
    }

    /// Lets a queue go if its policy says so, or nobody could ever empty it for that.
    pub(super) fn end_life(&mut self, now: Instant, id: QueueId) {
        let Some(life) = self.temporaries.lives.get(id) else { return };
        let is_empty = self.state.queue(id).is_none_or(|queue| queue.live() == 0);
        let is_over = match life.policy {
            LifetimePolicy::OnClose => life.maker_gone,
            LifetimePolicy::OnNoLinks => life.ties == 0,
            LifetimePolicy::OnNoMessages => life.maker_gone && (is_empty || life.owner_gone),
            LifetimePolicy::OnNoLinksOrMessages => life.ties == 0 && (is_empty || life.owner_gone),
        };
        if !is_over {
            return;
        }
        let owner = life.owner;
        self.temporaries.lives.remove(id);
        self.temporaries.owned.remove(&(owner, id));
        self.owns_one_less(owner);
        self.forget_queue(now, id);
        self.abandon_purge(id);
        self.post(ShardId(0), Mail::Delete(id));
    }

    /// A queue goes with its messages. The room that was set aside for their settlements is free.
    pub(super) fn forget_queue(&mut self, now: Instant, id: QueueId) {
        self.end_inflows(now, id);
        self.end_moves_of(id);
        if let (Some(journal), Some(queue)) = (&mut self.journal, self.state.queue(id)) {
            let unsettled = queue.live() - queue.count(SlotState::Settling);
            journal.set_unsettled(journal.usage().unsettled.saturating_sub(unsettled));
        }
        self.state.forget_queue(id);
        self.gradual.begin(now);
    }
}
