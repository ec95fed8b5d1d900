//! A name becomes a queue: looked up, or created, by shard 0.
//!
//! ```text
//!   Resolve ─▶ known? ──────────────────────────────────────────────────────────▶ Resolved
//!      └─▶ being created? wait with the others ──────────────────────┐
//!      └─▶ append the creation … commit … ─▶ Open ─▶ Opened ─▶ Catalogued to all ─▶ Resolved
//! ```
//! `Provide` is the same for a shard that needs a queue itself; `Catalogued` is all that it hears,
//! or `NotProvided`.
//!
//! Invariants: no shard writes a record of a queue before its creation is committed, under the
//! whole watermark whatever the queue's level; one name is one queue, however many ask at once; an
//! asker hears `Resolved` after its own read map has the queue. A crash after the commit and before
//! `Open` costs nothing: the catalogue is told to everybody at start.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use journal::{AppendError, Level, QueueId, Record, RecordKind, Sequence, ShardId, Urgency};

use super::ingress::refusal_of;
use super::{Phase, Shard};
use crate::canary::Canary;
use crate::catalogue::{QueueRecord, is_temporary};
use crate::limits::{QUEUES_MAX, QUEUES_RESERVED};
use crate::mail::{LinkRef, Mail, Refusal};
use crate::pending::{Answer, Waiting};

/// Queues on their way into the catalogue.
#[derive(Debug, Default)]
pub(super) struct Creations {
    pub(super) by_name: BTreeMap<String, Creation>,
    /// The journal was behind, or the queue of this name is about to go: they ask again.
    parked: VecDeque<Parked>,
}

/// Who is to ask again.
#[derive(Debug, PartialEq, Eq)]
enum Parked {
    Asker(LinkRef, Wish),
    /// A shard, and the name of the queue that it needs itself.
    Shard(ShardId, String),
}

impl Creations {
    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_name.is_empty() && self.parked.is_empty()
    }
}

/// A queue that is not there yet, and who waits for it.
#[derive(Debug)]
pub(super) struct Creation {
    pub(super) record: QueueRecord,
    pub(super) askers: Vec<LinkRef>,
}

/// The queue that somebody asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) name: String,
    /// Its creation is not refused to who asks.
    pub(super) may_create: bool,
}

/// Why there is no queue.
enum Uncreated {
    Busy,
    Refused(Refusal),
}

impl From<Refusal> for Uncreated {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Shard {
    pub(super) fn resolve(&mut self, now: Instant, asker: LinkRef, wish: Wish) {
        let name = &wish.name;
        if let Some(creation) = self.creations.by_name.get_mut(name) {
            creation.askers.push(asker);
            return;
        }
        let result = match self.state.catalogue.named(name) {
            Some(record) if self.state.is_deleting(record.id) => {
                return self.creations.parked.push_back(Parked::Asker(asker, wish));
            }
            Some(record) => Ok(record.id),
            None if !wish.may_create && !is_temporary(name) => Err(Refusal::Unauthorized(format!(
                "there is no queue '{name}', and the user may not create it"
            ))),
            None => match self.create(now, asker.shard, Some(asker), name) {
                Ok(()) => return,
                Err(Uncreated::Busy) => {
                    return self.creations.parked.push_back(Parked::Asker(asker, wish));
                }
                Err(Uncreated::Refused(refusal)) => Err(refusal),
            },
        };
        self.post(asker.shard, Mail::Resolved { asker, name: wish.name, result });
    }

    /// A shard needs a queue of this name. If it can't be had, the shard asks again.
    pub(super) fn provide(&mut self, now: Instant, shard: ShardId, name: String) {
        // If it is known here, its letter to the asker is on its way.
        let is_known = self.state.catalogue.named(&name).is_some();
        if is_known || self.creations.by_name.contains_key(&name) {
            return;
        }
        match self.create(now, shard, None, &name) {
            Ok(()) => {}
            Err(Uncreated::Busy) => {
                let parked = Parked::Shard(shard, name);
                if !self.creations.parked.contains(&parked) {
                    self.creations.parked.push_back(parked);
                }
            }
            Err(Uncreated::Refused(refusal)) => {
                tracing::warn!(name, ?refusal, "a queue for dead letters could not be created");
                self.post(shard, Mail::NotProvided { name, refusal });
            }
        }
    }

    /// The journal may take again the creations that it could not take before.
    pub(super) fn step_creations(&mut self, now: Instant) {
        for parked in std::mem::take(&mut self.creations.parked) {
            match parked {
                Parked::Asker(asker, wish) => self.resolve(now, asker, wish),
                Parked::Shard(shard, name) => self.provide(now, shard, name),
            }
        }
    }

    fn create(
        &mut self,
        now: Instant,
        home: ShardId,
        asker: Option<LinkRef>,
        name: &str,
    ) -> Result<(), Uncreated> {
        if matches!(self.phase, Phase::Stopping | Phase::Stopped) {
            return Err(Refusal::Stopping.into());
        }
        if is_temporary(name) {
            return Err(Refusal::NotFound(format!("there is no temporary queue '{name}'")).into());
        }
        // Who asks leaves room for what the broker needs itself.
        let reserved = if asker.is_some() { QUEUES_RESERVED } else { 0 };
        if !self.has_room_for_queue(reserved) {
            return Err(Refusal::TooManyQueues.into());
        }
        let settings = self.config.settings.of(name);
        if asker.is_some() && !settings.auto_create {
            let what = format!("there is no queue '{name}', and auto-create is off for it");
            return Err(Refusal::NotFound(what).into());
        }
        let level = settings.level.unwrap_or(self.config.level);
        let journal = self.journal.as_mut().ok_or(Refusal::Stopping)?;
        let record = QueueRecord {
            id: self.state.catalogue.next_id(),
            home,
            level,
            name: name.to_owned(),
            temporary: None,
        };
        let payload = record.encode();
        let mut entry = Record::new(RecordKind::QueueCreate, record.id, Sequence(0), &payload);
        entry.level = record.level;
        let appended = match journal.append(now, &entry, Urgency::Now) {
            Ok(appended) => appended,
            Err(AppendError::Busy) => return Err(Uncreated::Busy),
            Err(error) => return Err(refusal_of(error).into()),
        };
        let effect = self.state.apply_create(appended.lsn, record.clone());
        let waiting = Waiting { end: appended.end, effect, answer: Answer::Nobody };
        self.pending.push(Level::ReplicatedSync, waiting);
        let early = self.config.canaries.has(Canary::MessageBeforeCreation);
        if early {
            self.post(record.home, Mail::Open(record.clone()));
            self.state.catalogue.insert(record.clone());
        }
        self.creations
            .by_name
            .insert(name.to_owned(), Creation { record, askers: asker.into_iter().collect() });
        Ok(())
    }

    /// Whether there may be one more queue, and so many reserved ones.
    pub(super) fn has_room_for_queue(&self, reserved: usize) -> bool {
        self.state.catalogue.len() + self.creations.len() + reserved < QUEUES_MAX
    }

    /// A creation is committed: its home holds it before anybody else hears of it.
    pub(super) fn created(&mut self, queue: QueueId) {
        if let Some(record) = self.state.catalogue.get(queue).cloned() {
            self.post(record.home, Mail::Open(record));
        }
    }

    /// The home's part.
    pub(super) fn open_queue(&mut self, now: Instant, record: QueueRecord) {
        let id = record.id;
        self.state.open_queue(id);
        if let Some(temporary) = record.temporary {
            self.temporaries.begin(id, temporary);
            // Its owner may have gone before its queue came.
            if !self.conns.contains_key(temporary.owner.1) {
                self.orphan(now, temporary.owner.1);
            }
        }
        self.adopt_queue(now, id, &record.name);
        self.state.catalogue.insert(record);
        self.post(ShardId(0), Mail::Opened(id));
    }

    /// What is set for its address holds for a queue that lives here.
    pub(super) fn adopt_queue(&mut self, now: Instant, id: QueueId, name: &str) {
        let settings = self.config.settings.of(name);
        self.state.duplicates.limit(id, settings.duplicate_ids);
        if let Some(queue) = self.state.queue_mut(id) {
            queue.adopt(name, settings);
        }
        self.state.recount(id);
        self.watch_idle(now, id);
        self.tell_depth(id);
        self.may_leave(id);
    }

    /// A queue is there: everybody may use it.
    pub(super) fn catalogued(&mut self, now: Instant, record: QueueRecord) {
        let name = record.name.clone();
        self.state.catalogue.insert(record);
        self.provided(now, &name);
    }

    /// The home holds it: everybody may know.
    pub(super) fn opened(&mut self, queue: QueueId) {
        let Some(name) = self.state.catalogue.get(queue).map(|record| record.name.clone()) else {
            return;
        };
        let Some(creation) = self.creations.by_name.remove(&name) else { return };
        let owner = creation.record.temporary.map(|temporary| temporary.owner.1);
        self.post_all(&Mail::Catalogued(creation.record));
        for asker in creation.askers {
            if let Some(owner) = owner {
                self.post(asker.shard, Mail::Made { asker, owner, result: Ok(queue) });
                continue;
            }
            let name = name.clone();
            self.post(asker.shard, Mail::Resolved { asker, name, result: Ok(queue) });
        }
    }
}
