//! The connections between two nodes, one a shard and one for cards: bytes that come late, in
//! order, or not at all.
//!
//! ```text
//!   live ═══ frames, encoded ═══▶ backup        a cut direction delays (as TCP does),
//!        ◀══════════════════════                a reset loses what is under way
//!   live ═══ frames ══════▶ ✗     backup        half open: one end has heard of the reset, the
//!                                               other speaks to nobody until its own patience or
//!                                               that of its kernel is over, or a new one stands
//! ```
//! Who follows dials, and the lower seat for cards: a dialler that has not heard of the end keeps
//! to what it has, and does not dial.
//!
//! Invariant: within one connection and direction bytes keep their order; connections of different
//! shards have none among them. At most one connection of a kind carries anything.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use journal::ShardId;
use replica::wire::Frame;

use super::ledger::Ledger;
use super::node::Node;
use super::{Counts, SHARDS};
use crate::rng::Rng;

/// After so long a kernel finds out that nobody is at the other end.
const UNHEARD_MAX_MS: u64 = 5_000;

/// Who has not heard of the end of a connection, and when it will.
#[derive(Clone, Copy, Debug)]
struct Unheard {
    node: usize,
    until: Instant,
}

#[derive(Debug)]
struct Connection {
    live: usize,
    session: u64,
    /// Towards node 0 and node 1: when each piece arrives.
    flows: [VecDeque<(Instant, Bytes)>; 2],
    received: [BytesMut; 2],
    unheard: Option<Unheard>,
}

/// The connection for cards.
#[derive(Debug, Default)]
struct Link {
    /// Towards node 0 and node 1.
    flows: [VecDeque<(Instant, Bytes)>; 2],
    received: [BytesMut; 2],
    unheard: Option<Unheard>,
}

#[derive(Debug)]
pub(crate) struct Wires {
    rng: Rng,
    /// Of a thousand resets of a connection, so many are heard of at one end only.
    half_open_permille: u32,
    half_open: u64,
    connections: Vec<Option<Connection>>,
    link: Option<Link>,
    link_retry_at: Instant,
    retry_at: Vec<Instant>,
    /// Nothing arrives at node 0, or node 1, before.
    cut_until: [Instant; 2],
}

impl Wires {
    pub(crate) fn new(rng: Rng, base: Instant) -> Self {
        let connections = (0..SHARDS).map(|_| None).collect();
        let retry_at = vec![base; usize::from(SHARDS)];
        let (link, link_retry_at, cut_until) = (None, base, [base; 2]);
        let (half_open_permille, half_open) = (0, 0);
        Self {
            rng,
            half_open_permille,
            half_open,
            connections,
            link,
            link_retry_at,
            retry_at,
            cut_until,
        }
    }

    /// Of a thousand resets of a connection, so many are heard of at one end only.
    pub(crate) fn set_half_open(&mut self, permille: u32) {
        self.half_open_permille = permille;
    }

    /// Connections of which one end did not hear that they were over.
    pub(crate) fn half_open(&self) -> u64 {
        self.half_open
    }

    /// Cuts direction 1, 2, or (3) both.
    pub(crate) fn cut(&mut self, until: Instant, directions: u64) {
        for (index, cut_until) in self.cut_until.iter_mut().enumerate() {
            if directions & (1 << index) != 0 {
                *cut_until = until.max(*cut_until);
            }
        }
    }

    pub(crate) fn heal(&mut self, now: Instant) {
        self.cut_until = self.cut_until.map(|until| until.min(now));
    }

    /// All connections break. A process that has just ended hears of nothing any more.
    pub(crate) fn reset_all(&mut self, now: Instant, nodes: &mut [Node; 2], ended: Option<usize>) {
        for shard in 0..SHARDS {
            self.reset(now, ShardId(shard), nodes, ended);
        }
        self.link_retry_at = now + Duration::from_millis(self.rng.between(1, 40));
        let Some(mut link) = self.link.take() else { return };
        let before = link.unheard;
        link.unheard = self.unheard(now, before, ended);
        for (index, node) in nodes.iter_mut().enumerate() {
            let has_heard = before.is_some_and(|unheard| unheard.node != index);
            if !has_heard && link.unheard.is_none_or(|unheard| unheard.node != index) {
                node.linked(now, false);
            }
        }
        if link.unheard.is_some() {
            (link.flows, link.received) = Default::default();
            self.link = Some(link);
        }
    }

    /// Who goes on not to hear of an end; who of both does not, by chance, if it is a new one.
    fn unheard(
        &mut self,
        now: Instant,
        before: Option<Unheard>,
        ended: Option<usize>,
    ) -> Option<Unheard> {
        if before.is_some() || self.half_open_permille == 0 {
            return before.filter(|unheard| Some(unheard.node) != ended);
        }
        let node = self.rng.index(2);
        let lasts = Duration::from_millis(self.rng.between(20, UNHEARD_MAX_MS));
        let is_half_open = self.rng.chance(self.half_open_permille) && Some(node) != ended;
        self.half_open += u64::from(is_half_open);
        is_half_open.then_some(Unheard { node, until: now + lasts })
    }

    /// A connection breaks, or one end has closed it.
    fn reset(&mut self, now: Instant, shard: ShardId, nodes: &mut [Node; 2], ended: Option<usize>) {
        let index = usize::from(shard.0);
        self.retry_at[index] = now + Duration::from_millis(self.rng.between(1, 40));
        let Some(mut gone) = self.connections[index].take() else { return };
        let before = gone.unheard;
        gone.unheard = self.unheard(now, before, ended);
        for node in [0, 1] {
            let has_heard = before.is_some_and(|unheard| unheard.node != node);
            if !has_heard && gone.unheard.is_none_or(|unheard| unheard.node != node) {
                gone.told(now, shard, nodes, node);
            }
        }
        if gone.unheard.is_some() {
            (gone.flows, gone.received) = Default::default();
            self.connections[index] = Some(gone);
        }
    }

    /// When something arrives.
    pub(crate) fn timeouts(&self) -> impl Iterator<Item = Instant> {
        let connections = self.connections.iter().flatten();
        let all = connections.map(|connection| (&connection.flows, connection.unheard));
        let all = all.chain(self.link.iter().map(|link| (&link.flows, link.unheard)));
        all.flat_map(|(flows, unheard)| {
            let arrives = flows.iter().zip(self.cut_until).filter_map(|(flow, cut)| {
                let (due, _) = flow.front()?;
                Some((*due).max(cut))
            });
            arrives.chain(unheard.map(|unheard| unheard.until))
        })
    }

    pub(crate) fn pump(
        &mut self,
        now: Instant,
        nodes: &mut [Node; 2],
        ledger: &mut Ledger,
        counts: &mut Counts,
    ) -> Result<bool, String> {
        let mut progress = self.pump_cards(now, nodes)?;
        for shard in (0..SHARDS).map(ShardId) {
            self.connect(now, shard, nodes);
            let index = usize::from(shard.0);
            progress |= self.pump_half_open(now, shard, nodes);
            let Some(connection) = &mut self.connections[index] else { continue };
            if connection.unheard.is_some() {
                continue;
            }
            let (live, session) = (connection.live, connection.session);
            for (node, member) in nodes.iter_mut().enumerate() {
                if !member.is_shard_awake(now, shard) {
                    continue;
                }
                while let Some(frame) = member.shard(shard).poll_frame() {
                    send(now, &mut self.rng, &mut connection.flows[1 - node], &frame);
                    progress = true;
                }
            }
            let mut closed_by = None;
            for (node, member) in nodes.iter_mut().enumerate() {
                if self.cut_until[node] > now || !member.is_shard_awake(now, shard) {
                    continue;
                }
                let (flow, received) =
                    (&mut connection.flows[node], &mut connection.received[node]);
                progress |= receive(now, flow, received);
                let member = member.shard(shard);
                loop {
                    let frame = Frame::decode(received);
                    let Some(frame) = frame.map_err(|error| error.to_string())? else { break };
                    if node == live {
                        member.hear_as_live(now, session, frame);
                    } else {
                        member.hear_as_backup(now, frame);
                    }
                    progress = true;
                }
                if member.take_closed() {
                    closed_by = Some(node);
                }
            }
            if closed_by.is_some() {
                self.reset(now, shard, nodes, closed_by);
                progress = true;
            }
        }
        for node in nodes.iter_mut() {
            progress |= node.pump(now, ledger, counts)?;
        }
        Ok(progress)
    }

    /// One end of a connection that is over speaks to nobody, until it hears of that.
    fn pump_half_open(&mut self, now: Instant, shard: ShardId, nodes: &mut [Node; 2]) -> bool {
        let kept = &mut self.connections[usize::from(shard.0)];
        let Some(connection) = kept.as_ref() else { return false };
        let Some(Unheard { node, until }) = connection.unheard else { return false };
        if !nodes[node].is_shard_awake(now, shard) {
            return false;
        }
        let speaker = nodes[node].shard(shard);
        let mut progress = false;
        while speaker.poll_frame().is_some() {
            progress = true;
        }
        if speaker.take_closed() {
            *kept = None;
            return true;
        }
        if until <= now {
            connection.told(now, shard, nodes, node);
            *kept = None;
            return true;
        }
        progress
    }

    fn connect(&mut self, now: Instant, shard: ShardId, nodes: &mut [Node; 2]) {
        let index = usize::from(shard.0);
        let is_cut = self.cut_until.iter().any(|until| *until > now);
        if is_cut || self.retry_at[index] > now {
            return;
        }
        let may = |live: usize, nodes: &mut [Node; 2]| {
            nodes.iter().all(|node| node.is_shard_awake(now, shard))
                && nodes[live].shard(shard).live_epoch().is_some()
                && nodes[1 - live].shard(shard).wants_to_follow()
        };
        let Some(live) = [0, 1].into_iter().find(|live| may(*live, nodes)) else { return };
        if let Some(connection) = &self.connections[index]
            && connection.unheard.is_none_or(|unheard| unheard.node != live)
        {
            return;
        }
        // What was said of an earlier one.
        for node in nodes.iter_mut() {
            node.shard(shard).take_closed();
        }
        let session = nodes[live].shard(shard).connected_live(now);
        nodes[1 - live].shard(shard).connected_backup(now);
        let (flows, received) = Default::default();
        self.connections[index] =
            Some(Connection { live, session, flows, received, unheard: None });
    }

    /// Carries cards, over a connection that is made again when it was lost.
    fn pump_cards(&mut self, now: Instant, nodes: &mut [Node; 2]) -> Result<bool, String> {
        let is_cut = self.cut_until.iter().any(|until| *until > now);
        let all_awake = nodes.iter().all(|node| node.is_awake(now));
        let unheard = self.link.as_ref().map(|link| link.unheard);
        // The lower seat dials; a newer connection takes the place of what the other one has.
        let may_dial = unheard.is_none_or(|unheard| unheard.is_some_and(|other| other.node == 1));
        if may_dial && !is_cut && all_awake && self.link_retry_at <= now {
            if unheard.is_some() {
                nodes[1].linked(now, false);
            }
            self.link = Some(Link::default());
            nodes.iter_mut().for_each(|node| node.linked(now, true));
        }
        let Some(link) = &mut self.link else { return Ok(false) };
        let mut progress = false;
        if let Some(Unheard { node, until }) = link.unheard {
            if nodes[node].is_awake(now) {
                while nodes[node].poll_card(now).is_some() {}
                if until <= now {
                    nodes[node].linked(now, false);
                    self.link = None;
                    return Ok(true);
                }
            }
            return Ok(false);
        }
        for (index, node) in nodes.iter_mut().enumerate().filter(|(_, node)| node.is_awake(now)) {
            while let Some(card) = node.poll_card(now) {
                send(now, &mut self.rng, &mut link.flows[1 - index], &Frame::Card(Box::new(card)));
                progress = true;
            }
            if self.cut_until[index] <= now {
                progress |= receive(now, &mut link.flows[index], &mut link.received[index]);
            }
            let frame = Frame::decode(&mut link.received[index]);
            if let Some(frame) = frame.map_err(|error| error.to_string())? {
                let Frame::Card(card) = frame else { return Err(format!("no card: {frame:?}")) };
                node.hear_card(now, *card);
                progress = true;
            }
        }
        Ok(progress)
    }
}

impl Connection {
    /// A node hears that it is over.
    fn told(&self, now: Instant, shard: ShardId, nodes: &mut [Node; 2], node: usize) {
        let host = nodes[node].shard(shard);
        if node == self.live {
            host.disconnected_live(now, self.session);
        } else {
            host.disconnected_backup(now);
        }
    }
}

fn send(now: Instant, rng: &mut Rng, flow: &mut VecDeque<(Instant, Bytes)>, frame: &Frame) {
    let mut bytes = BytesMut::new();
    frame.encode(&mut bytes);
    let slow = rng.one_in(150);
    let most = if slow { 30_000 } else { 600 };
    let due = now + Duration::from_micros(rng.between(40, most));
    let due = flow.back().map_or(due, |(last, _)| due.max(*last));
    flow.push_back((due, bytes.freeze()));
}

fn receive(now: Instant, flow: &mut VecDeque<(Instant, Bytes)>, received: &mut BytesMut) -> bool {
    let mut progress = false;
    while let Some((_, bytes)) = flow.pop_front_if(|(due, _)| *due <= now) {
        received.extend_from_slice(&bytes);
        progress = true;
    }
    progress
}
