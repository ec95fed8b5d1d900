//! The connections between two nodes, one a shard: bytes that come late, in order, or not at all.
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

#[derive(Debug)]
pub(crate) struct Wires {
    rng: Rng,
    connections: Vec<Option<Connection>>,
    retry_at: Vec<Instant>,
    /// Nothing arrives at node 0, or node 1, before.
    cut_until: [Instant; 2],
}

impl Wires {
    pub(crate) fn new(rng: Rng, base: Instant) -> Self {
        let connections = (0..SHARDS).map(|_| None).collect();
        let retry_at = vec![base; usize::from(SHARDS)];
        Self { rng, connections, retry_at, cut_until: [base; 2] }
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
    }

    fn reset(&mut self, now: Instant, shard: ShardId, nodes: &mut [Node; 2]) {
        let index = usize::from(shard.0);
        if let Some(gone) = self.connections[index].take() {
            nodes[gone.live].disconnected_live(now, shard, gone.session);
            nodes[1 - gone.live].disconnected_backup(shard);
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
        due.min()
    }

    pub(crate) fn pump(
        &mut self,
        now: Instant,
        nodes: &mut [Node; 2],
        ledger: &mut Ledger,
        counts: &mut Counts,
    ) -> Result<bool, String> {
        let mut progress = false;
        for shard in (0..SHARDS).map(ShardId) {
            self.connect(now, shard, nodes);
            let index = usize::from(shard.0);
            let Some(connection) = &mut self.connections[index] else { continue };
            let (live, session) = (connection.live, connection.session);
            for (node, member) in nodes.iter_mut().enumerate() {
                while let Some(frame) = member.poll_frame(shard) {
                    let mut bytes = BytesMut::new();
                    frame.encode(&mut bytes);
                    let slow = self.rng.one_in(150);
                    let most = if slow { 30_000 } else { 600 };
                    let due = now + Duration::from_micros(self.rng.between(40, most));
                    let flow = &mut connection.flows[1 - node];
                    let due = flow.back().map_or(due, |(last, _)| due.max(*last));
                    flow.push_back((due, bytes.freeze()));
                    progress = true;
                }
            }
            let mut is_over = false;
            for (node, member) in nodes.iter_mut().enumerate() {
                if self.cut_until[node] > now {
                    continue;
                }
                while let Some((_, bytes)) =
                    connection.flows[node].pop_front_if(|(due, _)| *due <= now)
                {
                    progress = true;
                    connection.received[node].extend_from_slice(&bytes);
                }
                loop {
                    let frame = Frame::decode(&mut connection.received[node]);
                    let Some(frame) = frame.map_err(|error| error.to_string())? else { break };
                    if node == live {
                        member.hear_as_live(now, shard, session, frame);
                    } else {
                        member.hear_as_backup(now, shard, frame);
                    }
                    progress = true;
                }
                is_over |= member.take_closed(shard);
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
        let live = [0, 1]
            .into_iter()
            .find(|live| nodes[*live].is_live_on(shard) && nodes[1 - *live].is_standing_on(shard));
        let Some(live) = live else { return };
        let session = nodes[live].connected_live(now, shard);
        nodes[1 - live].connected_backup(now, shard);
        let (flows, received) = Default::default();
        self.connections[index] = Some(Connection { live, session, flows, received });
    }
}
