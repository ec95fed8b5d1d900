//! The connections between two nodes, one a shard and one for cards: bytes that come late, in
//! order, or not at all.
//!
//! ```text
//!   live ═══ frames, encoded ═══▶ backup        a cut direction delays (as TCP does),
//!        ◀══════════════════════                a reset loses what is under way
//! ```
//! Invariant: within one connection and direction bytes keep their order; connections of different
//! shards have none among them.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use journal::ShardId;
use replica::wire::Frame;

use super::ledger::Ledger;
use super::node::Node;
use super::{Counts, SHARDS};
use crate::rng::Rng;

#[derive(Debug)]
struct Connection {
    live: usize,
    session: u64,
    /// Towards node 0 and node 1: when each piece arrives.
    flows: [VecDeque<(Instant, Bytes)>; 2],
    received: [BytesMut; 2],
}

/// The connection for cards.
#[derive(Debug, Default)]
struct Link {
    /// Towards node 0 and node 1.
    flows: [VecDeque<(Instant, Bytes)>; 2],
    received: [BytesMut; 2],
}

#[derive(Debug)]
pub(crate) struct Wires {
    rng: Rng,
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
        Self { rng, connections, link, link_retry_at, retry_at, cut_until }
    }

    /// Cuts direction 1, 2, or (3) both.
    pub(crate) fn cut(&mut self, until: Instant, directions: u64) {
        for (index, cut_until) in self.cut_until.iter_mut().enumerate() {
            if directions & (1 << index) != 0 {
                *cut_until = until.max(*cut_until);
            }
        }
    }

    pub(crate) fn heal(&mut self) {
        let now = self.retry_at[0];
        self.cut_until = self.cut_until.map(|until| until.min(now));
    }

    pub(crate) fn reset_all(&mut self, now: Instant, nodes: &mut [Node; 2]) {
        for shard in 0..SHARDS {
            self.reset(now, ShardId(shard), nodes);
        }
        if self.link.take().is_some() {
            nodes.iter_mut().for_each(|node| node.linked(now, false));
        }
        self.link_retry_at = now + Duration::from_millis(self.rng.between(1, 40));
    }

    fn reset(&mut self, now: Instant, shard: ShardId, nodes: &mut [Node; 2]) {
        let index = usize::from(shard.0);
        if let Some(gone) = self.connections[index].take() {
            nodes[gone.live].shard(shard).disconnected_live(now, gone.session);
            nodes[1 - gone.live].shard(shard).disconnected_backup();
        }
        let wait = Duration::from_millis(self.rng.between(1, 40));
        self.retry_at[index] = now + wait;
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let open = self.connections.iter().flatten();
        let due = open.flat_map(|connection| {
            let towards = connection.flows.iter().zip(self.cut_until);
            towards.filter_map(|(flow, cut)| flow.front().map(|(due, _)| (*due).max(cut)))
        });
        let link = self.link.iter().flat_map(|link| {
            let towards = link.flows.iter().zip(self.cut_until);
            towards.filter_map(|(flow, cut)| flow.front().map(|(due, _)| (*due).max(cut)))
        });
        due.chain(link).min()
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
            let Some(connection) = &mut self.connections[index] else { continue };
            let (live, session) = (connection.live, connection.session);
            for (node, member) in nodes.iter_mut().enumerate() {
                if !member.is_awake(now) {
                    continue;
                }
                while let Some(frame) = member.shard(shard).poll_frame() {
                    send(now, &mut self.rng, &mut connection.flows[1 - node], &frame);
                    progress = true;
                }
            }
            let mut is_over = false;
            for (node, member) in nodes.iter_mut().enumerate() {
                if self.cut_until[node] > now || !member.is_awake(now) {
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
                is_over |= member.take_closed();
            }
            if is_over {
                self.reset(now, shard, nodes);
                progress = true;
            }
        }
        for node in nodes.iter_mut() {
            progress |= node.pump(now, ledger, counts)?;
        }
        Ok(progress)
    }

    fn connect(&mut self, now: Instant, shard: ShardId, nodes: &mut [Node; 2]) {
        let index = usize::from(shard.0);
        let is_cut = self.cut_until.iter().any(|until| *until > now);
        if self.connections[index].is_some() || is_cut || self.retry_at[index] > now {
            return;
        }
        let may = |live: usize, nodes: &mut [Node; 2]| {
            nodes.iter().all(|node| node.is_awake(now))
                && nodes[live].shard(shard).live_epoch().is_some()
                && nodes[1 - live].shard(shard).wants_to_follow()
        };
        let Some(live) = [0, 1].into_iter().find(|live| may(*live, nodes)) else { return };
        let session = nodes[live].shard(shard).connected_live(now);
        nodes[1 - live].shard(shard).connected_backup(now);
        let (flows, received) = Default::default();
        self.connections[index] = Some(Connection { live, session, flows, received });
    }

    /// Carries cards, over a connection that is made again when it was lost.
    fn pump_cards(&mut self, now: Instant, nodes: &mut [Node; 2]) -> Result<bool, String> {
        let is_cut = self.cut_until.iter().any(|until| *until > now);
        let all_awake = nodes.iter().all(|node| node.is_awake(now));
        if self.link.is_none() && !is_cut && all_awake && self.link_retry_at <= now {
            self.link = Some(Link::default());
            nodes.iter_mut().for_each(|node| node.linked(now, true));
        }
        let Some(link) = &mut self.link else { return Ok(false) };
        let mut progress = false;
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
