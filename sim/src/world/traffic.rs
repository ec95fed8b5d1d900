//! Bytes between clients and shards: delayed, cut anywhere, and lost with their connection.
//!
//! ```text
//!   client ── to_broker ──▶ shard        withheld while the shard has paused its reads
//!   client ◀── to_client ── shard        each piece with the marks of the moment it was let go
//! ```
//! The bytes of one direction keep their order, whatever their pieces.

use std::rc::Rc;
use std::time::Duration;

use broker::{ConnId, Event, Moving};
use journal::ShardId;

use super::node::Node;
use super::{Due, Phase, Pipe, World};
use crate::check::Stamp;
use crate::client::Wish;
use crate::hits::Hit;

impl World {
    pub(super) fn tick(&mut self, client: usize) -> Result<(), String> {
        let max = self.plan.tick_max.as_nanos() as u64;
        let next = Duration::from_nanos(self.rng.between(max / 10, max));
        self.after(next, Due::Tick(client));
        if self.phase == Phase::Work && self.plan.purges > 0 && self.rng.chance(self.plan.purges) {
            self.purge()?;
        }
        let mut seen = Vec::new();
        self.desk.unix_ms = self.clock().unix_ms;
        let wish = self.clients[client].tick(&mut self.desk, &mut self.hits, &mut seen);
        self.see_all(&seen, None)?;
        match wish {
            Wish::None => {}
            Wish::Connect => self.connect(client),
            Wish::Cut => {
                self.hits.add(Hit::ConnectionLost);
                if let Some(conn) = self.conn_of(client) {
                    self.cut(conn)?;
                }
            }
        }
        self.flush_client(client)
    }

    pub(super) fn conn_of(&self, client: usize) -> Option<ConnId> {
        self.pipes.iter().find(|(_, pipe)| pipe.client == client).map(|(conn, _)| *conn)
    }

    pub(super) fn connect(&mut self, client: usize) {
        if self.stopping || !self.node.as_ref().is_some_and(Node::is_ready) {
            return;
        }
        self.next_conn += 1;
        let conn = ConnId(self.next_conn);
        let shard = ShardId(self.rng.below(u64::from(self.plan.shards)) as u16);
        let pipe = Pipe::new(client, shard);
        self.pipes.insert(conn, pipe);
        self.clients[client].connected();
        let delay = self.delay();
        self.after(delay, Due::Accept(conn));
    }

    /// A client hangs up: some of what it said may still arrive.
    pub(super) fn cut(&mut self, conn: ConnId) -> Result<(), String> {
        let process = self.process;
        while self.rng.chance(500) && self.says_something(conn) {
            self.bytes_to_broker(conn)?;
            if process != self.process {
                return Ok(());
            }
        }
        if let Some(pipe) = self.pipes.remove(&conn) {
            // Who is between two shards is missed by nobody.
            let is_missed = pipe.accepted && !pipe.closing && !pipe.moving;
            self.lost(pipe.client, is_missed)?;
            if is_missed {
                let delay = self.delay();
                self.after(delay, Due::Lost(conn, pipe.at));
            }
        }
        Ok(())
    }

    /// Whether the broker would read more bytes of a connection.
    pub(super) fn says_something(&self, conn: ConnId) -> bool {
        self.pipes.get(&conn).is_some_and(|pipe| !pipe.to_broker.is_empty() && pipe.is_read())
    }

    /// A client's connection is gone; it broke off, or the broker's end did.
    pub(super) fn lost(&mut self, client: usize, breaks_off: bool) -> Result<(), String> {
        let mut seen = Vec::new();
        self.clients[client].lost(breaks_off, &mut seen);
        self.see_all(&seen, None)
    }

    pub(super) fn flush_client(&mut self, client: usize) -> Result<(), String> {
        let Some(conn) = self.conn_of(client) else { return Ok(()) };
        let bytes = self.clients[client].take_output();
        if let Some(pipe) = self.pipes.get_mut(&conn) {
            pipe.to_broker.extend(bytes);
        }
        self.flush_to_broker(conn);
        if self.clients[client].is_over() {
            // Both have said close: what is left is hanging up.
            let process = self.process;
            while self.says_something(conn) {
                self.bytes_to_broker(conn)?;
                if process != self.process {
                    return Ok(());
                }
            }
            return self.cut(conn);
        }
        Ok(())
    }

    pub(super) fn flush_to_broker(&mut self, conn: ConnId) {
        let Some(pipe) = self.pipes.get_mut(&conn) else { return };
        if pipe.is_open() && !pipe.to_broker_due && !pipe.to_broker.is_empty() {
            pipe.to_broker_due = true;
            let delay = self.delay();
            self.after(delay, Due::ToBroker(conn));
        }
    }

    pub(super) fn bytes_to_broker(&mut self, conn: ConnId) -> Result<(), String> {
        let Some(pipe) = self.pipes.get_mut(&conn) else { return Ok(()) };
        pipe.to_broker_due = false;
        if pipe.closing || !pipe.accepted {
            pipe.to_broker.clear();
        }
        let len = pipe.to_broker.len() as u64;
        if len == 0 || !pipe.is_read() {
            return Ok(());
        }
        // Mostly whole, sometimes a few bytes, sometimes any part.
        let take = match self.rng.below(10) {
            0 => self.rng.between(1, len.min(9)),
            1..=3 => self.rng.between(1, len),
            _ => len.min(256 * 1024),
        };
        let Some(pipe) = self.pipes.get_mut(&conn) else { return Ok(()) };
        let bytes: Vec<u8> = pipe.to_broker.drain(..take as usize).collect();
        let shard = pipe.at;
        self.flush_to_broker(conn);
        self.tell(shard, Event::Received { conn, bytes: &bytes })
    }

    pub(super) fn send_to_client(&mut self, conn: ConnId, buf: Vec<u8>) {
        let stamp = Rc::new(Stamp { at: self.now, marks: self.audit.marks() });
        let Some(pipe) = self.pipes.get_mut(&conn) else { return };
        pipe.to_client.push_back((buf.clone(), stamp));
        pipe.sends += 1;
        self.flush_to_client(conn);
        let delay = self.delay();
        self.after(delay, Due::Sent(conn, buf));
    }

    /// A connection leaves its shard: it is on its way a while, and until its last send has ended.
    pub(super) fn leaves(&mut self, conn: ConnId, to: ShardId, moving: Box<Moving>) {
        self.hits.add(Hit::Moved);
        if let Some(pipe) = self.pipes.get_mut(&conn) {
            pipe.moving = true;
            let delay = self.delay();
            self.after(delay, Due::Moved(conn, to, moving));
        }
    }

    pub(super) fn moved(
        &mut self,
        conn: ConnId,
        to: ShardId,
        moving: Box<Moving>,
    ) -> Result<(), String> {
        let Some(pipe) = self.pipes.get_mut(&conn) else { return Ok(()) };
        if pipe.sends > 0 {
            let delay = self.delay();
            self.after(delay, Due::Moved(conn, to, moving));
            return Ok(());
        }
        (pipe.moving, pipe.paused, pipe.at) = (false, false, to);
        self.flush_to_broker(conn);
        self.tell(to, Event::Moved { conn, moving })
    }

    pub(super) fn flush_to_client(&mut self, conn: ConnId) {
        let Some(pipe) = self.pipes.get_mut(&conn) else { return };
        let anything = !pipe.to_client.is_empty() || pipe.closing;
        if anything && !pipe.to_client_due {
            pipe.to_client_due = true;
            let delay = self.delay();
            self.after(delay, Due::ToClient(conn));
        }
    }

    pub(super) fn bytes_to_client(&mut self, conn: ConnId) -> Result<(), String> {
        let Some(pipe) = self.pipes.get_mut(&conn) else { return Ok(()) };
        pipe.to_client_due = false;
        let client = pipe.client;
        let Some((mut bytes, stamp)) = pipe.to_client.pop_front() else {
            if pipe.closing {
                self.pipes.remove(&conn);
                self.lost(client, false)?;
            }
            return Ok(());
        };
        if self.rng.chance(200) && bytes.len() > 1 {
            let rest = bytes.split_off(self.rng.between(1, bytes.len() as u64 - 1) as usize);
            pipe.to_client.push_front((rest, Rc::clone(&stamp)));
        }
        let mut seen = Vec::new();
        let heard = self.clients[client].hear(&bytes, &mut self.desk, &mut self.hits, &mut seen);
        self.see_all(&seen, Some(&stamp))?;
        heard?;
        self.flush_to_client(conn);
        self.flush_client(client)
    }
}
