//! The anonymous relay: a link whose target has no address, so each message says where it goes.
//!
//! ```text
//!   transfer ─▶ `to` ─▶ known ─────────────▶ Publish, to its queue's home ──▶ Published
//!                │  └─▶ not known: Resolve      ▲ each, in order              (from any shard,
//!                │      it waits, and those ────┘                             in any order)
//!                │      to the same name with it
//!                └─▶ no address, or no queue: rejected with the error that an attach would meet;
//!                    where the sender cannot hear that, its link is detached with it
//! ```
//! Invariants: messages of one link to one queue keep their order, also while its name is resolved;
//! what waits for a name was sent under credit, counts as unaccepted, like all that waits for an
//! answer, and against the memory bound. The rules are those of "Using the AMQP Anonymous Terminus
//! for Message Routing" 1.0.

use std::collections::BTreeMap;
use std::time::Instant;

use amqp::codec::DecodeError;
use amqp::message::Sections;
use bytes::Bytes;
use journal::{QueueId, ShardId};

use super::Shard;
use super::ingress::Publish;
use super::link::End;
use crate::access::Right;
use crate::catalogue::{AddressError, queue_name};
use crate::mail::{LinkKey, LinkRef, Mail, Part, Refusal, Share, Token, Whence};
use crate::queue::{Queue, Traits};

/// What a relaying link remembers: messages whose queue is looked up, or created.
#[derive(Debug, Default)]
pub(crate) struct Relay {
    unresolved: Vec<Unresolved>,
}

#[derive(Debug)]
struct Unresolved {
    name: String,
    messages: Vec<Waits>,
}

/// What waits for a queue.
#[derive(Debug)]
enum Waits {
    Message(Relayed),
    /// A part of a message that comes in parts.
    Part(Part),
}

impl Waits {
    fn memory_bytes(&self) -> u64 {
        match self {
            Self::Message(relayed) => relayed.memory_bytes(),
            Self::Part(part) => part.memory_bytes(),
        }
    }
}

/// A message on its way through the relay.
#[derive(Debug)]
pub(super) struct Relayed {
    pub(super) token: Token,
    /// Its sender has settled it, and hears of nothing.
    pub(super) settled: bool,
    pub(super) message: Bytes,
    /// What its queue has to know of it.
    pub(super) traits: Traits,
}

impl Relayed {
    fn memory_bytes(&self) -> u64 {
        Queue::memory_bytes(self.message.len())
    }
}

impl Relay {
    /// What the messages that wait here count against the memory bound.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.unresolved.iter().flat_map(|of| &of.messages).map(Waits::memory_bytes).sum()
    }

    /// Bytes of parts that wait here.
    pub(super) fn part_bytes(&self) -> u64 {
        let bytes = |waits: &Waits| match waits {
            Waits::Message(_) => 0,
            Waits::Part(part) => part.bytes.len() as u64,
        };
        self.unresolved.iter().flat_map(|of| &of.messages).map(bytes).sum()
    }

    fn waits_for(&self, name: &str) -> bool {
        self.unresolved.iter().any(|other| other.name == name)
    }

    /// Lets a message wait for its queue; whether it is the first.
    fn wait(&mut self, name: &str, waits: Waits) -> bool {
        if let Some(of_name) = self.unresolved.iter_mut().find(|other| other.name == name) {
            of_name.messages.push(waits);
            return false;
        }
        self.unresolved.push(Unresolved { name: name.to_owned(), messages: vec![waits] });
        true
    }

    fn take(&mut self, name: &str) -> Vec<Waits> {
        match self.unresolved.iter().position(|other| other.name == name) {
            Some(at) => self.unresolved.remove(at).messages,
            None => Vec::new(),
        }
    }
}

impl Shard {
    /// A message of a link without a target address.
    pub(super) fn relay(&mut self, now: Instant, key: LinkKey, relayed: Relayed) {
        let name = match self.destination_of(key, &relayed.message) {
            Ok(name) => name,
            Err(refusal) => return self.unroutable(key, &relayed, refusal),
        };
        let name = name.as_str();
        let known = self.state.catalogue.named(name).map(|record| (record.id, record.home));
        let memory_bytes = relayed.memory_bytes();
        let is_room = self.memory_bytes() + memory_bytes <= self.config.memory_bytes_max;
        let Some(relay) = self.relay_mut(key) else { return };
        match known.filter(|_| !relay.waits_for(name)) {
            Some(queue) => self.relay_to(now, key, queue, relayed),
            None if !is_room => self.unroutable(key, &relayed, Refusal::MemoryFull),
            None => self.relay_later(key, name, Waits::Message(relayed)),
        }
    }

    /// What is to go to a queue that is looked up, or created, waits for that.
    fn relay_later(&mut self, key: LinkKey, name: &str, waits: Waits) {
        let memory_bytes = waits.memory_bytes();
        let asker = self.here(key);
        let Some(conn) = self.links.get(key).map(|link| link.conn) else { return };
        let Some(relay) = self.relay_mut(key) else { return };
        let asks = relay.wait(name, waits);
        self.aside_bytes += memory_bytes;
        if asks {
            let may_create = self.has(conn, Right::Create, name);
            self.post(ShardId(0), Mail::Resolve { asker, name: name.to_owned(), may_create });
        }
    }

    /// The name of the queue that a message says it goes to, or why there is none for its sender.
    pub(super) fn destination_of(
        &mut self,
        key: LinkKey,
        message: &[u8],
    ) -> Result<String, Refusal> {
        let to = destination(message)?;
        let name = match to.as_deref().map(queue_name) {
            Some(Ok(name)) => name,
            Some(Err(AddressError::Invalid(what))) => return Err(Refusal::Address(what)),
            Some(Err(AddressError::NotBuilt(what))) => return Err(Refusal::NotBuilt(what)),
            None => {
                let what = "the message has no 'to': on a link without a target address it says \
                            where the message goes";
                return Err(Refusal::Address(what.to_owned()));
            }
        };
        let conn = self.links.get(key).map(|link| link.conn).ok_or(Refusal::QueueGone)?;
        if !(self.has(conn, Right::Send, name) || self.holds(conn, name)) {
            self.may(conn, Right::Send, name)?;
        }
        Ok(name.to_owned())
    }

    /// A part of a message of a link without a target address.
    pub(super) fn relay_part(&mut self, now: Instant, key: LinkKey, name: &str, part: Part) {
        let known = self.state.catalogue.named(name).map(|record| (record.id, record.home));
        let waits = self.relay_mut(key).is_some_and(|relay| relay.waits_for(name));
        let Some((queue, home)) = known.filter(|_| !waits) else {
            return self.relay_part_later(key, name, part);
        };
        match self.may_begin(queue, &part) {
            Ok(()) => self.relay_part_to(now, key, (queue, home), part),
            Err(refusal) => self.unroutable_part(key, &part, &refusal),
        }
    }

    /// A part waits for its queue, as long as there is memory for that.
    fn relay_part_later(&mut self, key: LinkKey, name: &str, part: Part) {
        let bytes = part.memory_bytes();
        if self.memory_bytes() + bytes <= self.config.memory_bytes_max {
            return self.relay_later(key, name, Waits::Part(part));
        }
        if part.share == Share::Last {
            // What waits of it goes nowhere.
            let rest = Part { share: Share::Abandoned, bytes: Bytes::new(), ..part.clone() };
            self.relay_later(key, name, Waits::Part(rest));
        }
        self.unroutable_part(key, &part, &Refusal::MemoryFull);
    }

    /// A part goes to its queue's home, and all that follows it too.
    fn relay_part_to(
        &mut self,
        now: Instant,
        key: LinkKey,
        (queue, home): (QueueId, ShardId),
        part: Part,
    ) {
        if let (Share::First { .. }, Whence::Producer(_, token)) = (part.share, part.whence) {
            self.note_home(key, token, (queue, home));
        }
        self.part_to(now, home, Part { queue, ..part });
    }

    /// The same of one that is given up before any of it has gone to its queue's home.
    pub(super) fn relay_abandoned(&mut self, key: LinkKey, name: &str, part: Part) {
        if self.relay_mut(key).is_some_and(|relay| relay.waits_for(name)) {
            self.relay_later(key, name, Waits::Part(part));
        }
    }

    /// Whether a queue takes a message of which this is the beginning. Credit is for all of the
    /// link's queues: it can't be withheld for one.
    fn may_begin(&self, queue: QueueId, part: &Part) -> Result<(), Refusal> {
        let is_full =
            matches!(part.share, Share::First { .. }) && self.full_queues.contains(&queue);
        if is_full { Err(Refusal::QueueFull) } else { Ok(()) }
    }

    /// There is no queue for a part of a message: the message is refused at its end.
    fn unroutable_part(&mut self, key: LinkKey, part: &Part, refusal: &Refusal) {
        let (Whence::Producer(link, token), Some(conn)) = (part.whence, part.conn) else { return };
        self.taken(conn, part.bytes.len() as u64);
        match part.share {
            // Its end came while its queue was looked up.
            Share::Last if part.settled => {
                self.counters.refused_total += 1;
                self.expel_link(key, refusal);
            }
            Share::Last => {
                self.counters.refused_total += 1;
                let result = Err(refusal.clone());
                self.post(link.shard, Mail::Published { link, token, result });
            }
            Share::First { .. } | Share::Next => self.refuse_relayed(key, token, refusal),
            Share::Abandoned => {}
        }
    }

    /// A name that messages of a relaying link wait for was resolved, or was not.
    pub(super) fn relay_resolved(
        &mut self,
        now: Instant,
        key: LinkKey,
        name: &str,
        result: &Result<(QueueId, ShardId), Refusal>,
    ) {
        let messages = self.relay_mut(key).map(|relay| relay.take(name)).unwrap_or_default();
        // The end of a message may wait behind its beginning, and is answered by what became of
        // that.
        let mut refused: BTreeMap<Whence, Refusal> = BTreeMap::new();
        for waits in messages {
            self.aside_bytes -= waits.memory_bytes();
            match waits {
                Waits::Message(relayed) => match result {
                    Ok(queue) => self.relay_to(now, key, *queue, relayed),
                    Err(refusal) => self.unroutable(key, &relayed, refusal.clone()),
                },
                Waits::Part(part) => {
                    let known = refused.get(&part.whence).cloned().map_or(Ok(()), Err);
                    let may_go = known.and_then(|()| result.clone()).and_then(|(queue, home)| {
                        self.may_begin(queue, &part).map(|()| (queue, home))
                    });
                    match may_go {
                        Ok(queue) => self.relay_part_to(now, key, queue, part),
                        Err(refusal) => {
                            self.unroutable_part(key, &part, &refusal);
                            refused.insert(part.whence, refusal);
                        }
                    }
                }
            }
        }
    }

    fn relay_to(
        &mut self,
        now: Instant,
        key: LinkKey,
        (queue, home): (QueueId, ShardId),
        relayed: Relayed,
    ) {
        if self.full_queues.contains(&queue) {
            // Credit is for all of its queues: it can't be withheld for one.
            return self.unroutable(key, &relayed, Refusal::QueueFull);
        }
        let Relayed { token, settled: _, message, traits } = relayed;
        let whence = Whence::Producer(self.here(key), token);
        self.publish_at(now, home, Publish { queue, whence, message, traits });
    }

    /// There is no queue for a message: its sender hears what an attach would have met.
    fn unroutable(&mut self, key: LinkKey, relayed: &Relayed, refusal: Refusal) {
        if self.links.get(key).is_none() {
            return;
        }
        self.counters.refused_total += 1;
        if relayed.settled {
            self.expel_link(key, &refusal);
        } else {
            let link: LinkRef = self.here(key);
            let token = relayed.token;
            self.post(link.shard, Mail::Published { link, token, result: Err(refusal) });
        }
    }

    fn relay_mut(&mut self, key: LinkKey) -> Option<&mut Relay> {
        match &mut self.links.get_mut(key)?.end {
            End::Producer(producer) => producer.relay.as_deref_mut(),
            End::Consumer(_) => None,
        }
    }
}

/// Where a message says that it goes.
fn destination(message: &[u8]) -> Result<Option<String>, Refusal> {
    let read = || -> Result<Option<String>, DecodeError> {
        let properties = Sections::scan_head(message)?.properties(message)?;
        Ok(properties.and_then(|properties| properties.to).map(str::to_owned))
    };
    read().map_err(|error| Refusal::Malformed(format!("its properties: {error}")))
}
