//! One connection for a container, where its peer asks for that: the extension "Enforcing
//! Connection Uniqueness" 1.0. The names that are taken are in a register, on shard 0.
//!
//! ```text
//!   open, desired: sole-connection-for-container
//!   ── Claim ──▶ 0   free ───────────────────────────────────▶ Claimed: our open
//!                    taken, refuse-connection ───────────────▶ refused: open, close invalid-field
//!                    taken, close-existing ── GiveUp ──▶ the holder's shard: close resource-locked
//!                                          ◀─ Unclaim ── the name is free ─▶ Claimed: our open
//!   the connection ends ── Unclaim ──▶ 0   free
//!   it leaves this shard ── Departed ──▶ 0   in transit
//!   it arrives at another ── Arrived ──▶ 0   that is its shard now
//! ```
//! A name is a user and a container-id: nobody takes another user's. Only connections that ask for
//! it are looked at (the detection policy `weak`, as our open says); the others cost nothing. What
//! the new one asks for decides which of two stays; until the old one has been told to go, the new
//! one is not open, and one that comes meanwhile takes its turn: the last that asked for it stays.
//!
//! A host may drop a connection that is in transit. Nobody says so; then its name is free
//! [`TRANSIT_WITHIN`] after it left, or as soon as somebody asks for `close-existing`. If it comes
//! all the same, and another has its name, it is told to go.
//!
//! Invariants: a connection has at most one claim, whose number no other gets; it is in `mine` of
//! the shard where the connection is; each claim hears `Claimed` once, unless its connection ends
//! before; there are no more names than connections, and those lost in transit in the last seconds.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use amqp::codec::{Reader, Symbol, Value};
use amqp::connection::RemoteOpen;
use amqp::error::{Condition, Error};
use journal::ShardId;

use super::Shard;
use super::link::Farewell;
use super::terms::{self, SOLE_CONNECTION};
use crate::event::ConnId;
use crate::limits::{CONTAINER_ID_BYTES_MAX, TRANSIT_WITHIN};
use crate::mail::{ClaimId, Mail, SoleName};

/// What a connection has of the register.
#[derive(Debug)]
pub(crate) struct Claim {
    id: ClaimId,
    name: Arc<SoleName>,
}

/// What a shard knows of claims: its own, and shard 0 all of them.
#[derive(Debug, Default)]
pub(super) struct Soles {
    claims: u64,
    /// The connections here that have a claim, or wait for one.
    mine: BTreeMap<ClaimId, ConnId>,
    /// Who has each name.
    holders: BTreeMap<Arc<SoleName>, Holder>,
    /// The name that each claim is for.
    names: BTreeMap<ClaimId, Arc<SoleName>>,
    /// Those that have left, in the order of time.
    departed: VecDeque<(Instant, ClaimId)>,
}

/// Who has a name.
#[derive(Debug)]
struct Holder {
    claim: ClaimId,
    shard: ShardId,
    transit: Transit,
    /// Who gets the name when the holder has been told to go.
    next: Option<(ClaimId, ShardId)>,
}

/// Where a holder is: a connection moves once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transit {
    Before,
    Since(Instant),
    Over,
}

/// The connection's side.
impl Shard {
    /// The peer's open has come: it is answered, or its name is asked for first.
    pub(super) fn peer_opened(&mut self, id: ConnId, open: RemoteOpen) {
        let wants = open.desired_capabilities.iter().any(|wanted| wanted == SOLE_CONNECTION);
        let closes_existing = wants && closes_existing(open.properties.as_deref());
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.container_id = open.container_id;
        conn.opened = true;
        if !wants {
            return conn.amqp.open();
        }
        if conn.container_id.len() > CONTAINER_ID_BYTES_MAX {
            return self.refuse_open(id, "the container-id is too long to be kept as a name");
        }
        let container = conn.container_id.clone();
        let name = Arc::new(SoleName { user: conn.user.clone(), container });
        self.soles.claims += 1;
        let claim = ClaimId { shard: self.config.shard, number: self.soles.claims };
        conn.claim = Some(Box::new(Claim { id: claim, name: Arc::clone(&name) }));
        self.soles.mine.insert(claim, id);
        self.post(ShardId(0), Mail::Claim { claim, name, closes_existing });
    }

    /// The register has answered.
    pub(super) fn claimed(&mut self, claim: ClaimId, is_granted: bool) {
        let Some(id) = self.soles.mine.get(&claim).copied() else { return };
        if is_granted {
            return self.engine(id, amqp::connection::Connection::open);
        }
        self.soles.mine.remove(&claim);
        if let Some(conn) = self.conns.get_mut(id) {
            conn.claim = None;
        }
        self.refuse_open(id, "another connection of this container is open");
    }

    fn refuse_open(&mut self, id: ConnId, why: &str) {
        let field = |map: &mut amqp::codec::CompoundWriter<'_>| {
            map.element().symbol(Symbol::new("invalid-field"));
            map.element().symbol(Symbol::new("container-id"));
        };
        let error = Error::new(Condition::InvalidField, why).with_info(field);
        self.engine(id, |amqp| amqp.refuse_open(terms::refused_properties(), error));
    }

    /// Another connection takes this one's name: this one closes, and what it held is available.
    pub(super) fn give_up(&mut self, claim: ClaimId) {
        let Some(id) = self.soles.mine.get(&claim).copied() else { return };
        let info = |map: &mut amqp::codec::CompoundWriter<'_>| {
            map.element().symbol(Symbol::new("sole-connection-enforcement"));
            map.element().boolean(true);
        };
        let why = "another connection of this container has taken its place";
        let error = Error::new(Condition::ResourceLocked, why).with_info(info);
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.goodbye = true;
        let links: Vec<_> = conn.links.values().copied().collect();
        self.engine(id, |amqp| amqp.close(Some(error)));
        links.into_iter().for_each(|key| self.retire(key, Farewell::Gone));
        self.unclaim(id);
    }

    /// A connection is over: its name is free.
    pub(super) fn unclaim(&mut self, id: ConnId) {
        let claim = self.conns.get_mut(id).and_then(|conn| conn.claim.take());
        if let Some(claim) = claim {
            self.drop_claim(&claim);
        }
    }

    /// The same of a connection that is not here yet.
    pub(super) fn drop_claim(&mut self, claim: &Claim) {
        self.soles.mine.remove(&claim.id);
        self.post(ShardId(0), Mail::Unclaim(claim.id));
    }

    /// A connection with this claim leaves.
    pub(super) fn claim_departs(&mut self, claim: &Claim) {
        self.soles.mine.remove(&claim.id);
        self.post(ShardId(0), Mail::Departed(claim.id));
    }

    /// A connection with a claim has come.
    pub(super) fn claim_arrives(&mut self, id: ConnId) {
        let claim = self.conns.get_mut(id).and_then(|conn| conn.claim.as_deref());
        let Some(claim) = claim else { return };
        let (claim, name) = (claim.id, Arc::clone(&claim.name));
        self.soles.mine.insert(claim, id);
        self.post(ShardId(0), Mail::Arrived { claim, name, shard: self.config.shard });
    }
}

/// The register's side.
impl Shard {
    pub(super) fn claim(
        &mut self,
        now: Instant,
        claim: ClaimId,
        name: Arc<SoleName>,
        closes_existing: bool,
    ) {
        let Some(holder) = self.soles.holders.get_mut(&name) else {
            return self.grant_name(claim, claim.shard, name);
        };
        let is_lost = match holder.transit {
            Transit::Since(left) => closes_existing || now >= left + TRANSIT_WITHIN,
            Transit::Before | Transit::Over => false,
        };
        if is_lost {
            self.soles.names.remove(&holder.claim);
            return self.grant_name(claim, claim.shard, name);
        }
        if !closes_existing {
            return self.post(claim.shard, Mail::Claimed { claim, is_granted: false });
        }
        let (held, shard) = (holder.claim, holder.shard);
        let before = holder.next.replace((claim, claim.shard));
        self.soles.names.insert(claim, name);
        match before {
            None => self.post(shard, Mail::GiveUp(held)),
            Some((loser, shard)) => {
                self.soles.names.remove(&loser);
                self.post(shard, Mail::Claimed { claim: loser, is_granted: false });
            }
        }
    }

    fn grant_name(&mut self, claim: ClaimId, shard: ShardId, name: Arc<SoleName>) {
        let holder = Holder { claim, shard, transit: Transit::Before, next: None };
        self.soles.names.insert(claim, Arc::clone(&name));
        self.soles.holders.insert(name, holder);
        self.post(shard, Mail::Claimed { claim, is_granted: true });
    }

    /// A claim is no longer: whoever is next has the name.
    pub(super) fn unclaimed(&mut self, claim: ClaimId) {
        let Some(name) = self.soles.names.remove(&claim) else { return };
        let Some(holder) = self.soles.holders.get_mut(&name) else { return };
        if holder.claim != claim {
            holder.next.take_if(|(next, _)| *next == claim);
            return;
        }
        match holder.next {
            Some((next, shard)) => self.grant_name(next, shard, name),
            None => drop(self.soles.holders.remove(&name)),
        }
    }

    pub(super) fn departed(&mut self, now: Instant, claim: ClaimId) {
        // Of those before, whoever has not arrived is lost.
        while let Some((left, lost)) = self.soles.departed.front().copied()
            && now >= left + TRANSIT_WITHIN
        {
            self.soles.departed.pop_front();
            if self.holder_of(lost).is_some_and(|holder| holder.transit == Transit::Since(left)) {
                self.unclaimed(lost);
            }
        }
        if let Some(holder) = self.holder_of(claim)
            && holder.transit == Transit::Before
        {
            // Who waits for the name need not wait for it to arrive: it hears that it has to go.
            if holder.next.is_some() {
                return self.unclaimed(claim);
            }
            holder.transit = Transit::Since(now);
            self.soles.departed.push_back((now, claim));
        }
    }

    pub(super) fn arrived_with(&mut self, claim: ClaimId, name: Arc<SoleName>, shard: ShardId) {
        match self.soles.holders.get_mut(&name) {
            Some(holder) if holder.claim == claim => {
                (holder.shard, holder.transit) = (shard, Transit::Over);
                if holder.next.is_some() {
                    self.post(shard, Mail::GiveUp(claim));
                }
            }
            Some(_) => self.post(shard, Mail::GiveUp(claim)),
            // It was held to be lost.
            None => {
                let holder = Holder { claim, shard, transit: Transit::Over, next: None };
                self.soles.names.insert(claim, Arc::clone(&name));
                self.soles.holders.insert(name, holder);
            }
        }
    }

    fn holder_of(&mut self, claim: ClaimId) -> Option<&mut Holder> {
        let name = self.soles.names.get(&claim)?;
        self.soles.holders.get_mut(name).filter(|holder| holder.claim == claim)
    }

    /// Names that are taken, for the checker of leaks.
    pub fn sole_names(&self) -> usize {
        self.soles.holders.len()
    }
}

/// What the peer's open wants to become of an older connection; `refuse-connection` where it does
/// not say.
fn closes_existing(properties: Option<&[u8]>) -> bool {
    let map = properties.and_then(|encoded| Reader::new(encoded).map().ok());
    let policy = map.and_then(|map| map.get("sole-connection-enforcement-policy"));
    policy == Some(Value::Uint(CLOSE_EXISTING))
}

const CLOSE_EXISTING: u32 = 1;
