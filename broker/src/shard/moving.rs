//! A connection follows its queue: it moves to the shard of the first queue that it attaches to.
//!
//! ```text
//!   shard of the accept           host                          home of the queue
//!   attach, resolved elsewhere
//!   ── Action::Move ────────────▶ reads no more, waits for the
//!      (nothing is left here)     last `Sent`, takes what was
//!                                 received meanwhile along
//!                                 ── Event::Moved ───────────▶  attach is answered
//!                                 ── Event::Received ────────▶  goes on
//! ```
//! Most clients have a connection for one queue. Each message of one that stays elsewhere crosses
//! two mailboxes, wakes a second core and waits for it: half of an answer's time where nothing
//! waits for the disk. A connection that has several queues stays with its first one, and the
//! others are served by mail.
//!
//! Invariants: it moves at most once, at its first attach, before any other shard has heard of its
//! link; so no reference to it is left behind. What its engine had read and not told, and had to
//! say and not sent, travels in the engine.
//!
//! Failure: a host whose socket breaks meanwhile drops what it carries, and nobody misses it. A
//! shard that serves no more, or is full, closes what arrives with an error; a host asks for room
//! ([`Shard::connections`]) before it sends one away.

use std::time::Instant;

use amqp::error::{Condition, Error};
use journal::{QueueId, ShardId};

use super::Shard;
use super::link::{Conn, Link, LinkPhase};
use crate::event::{Action, ConnId};
use crate::limits::CONNECTIONS_MAX;
use crate::mail::LinkKey;

/// A connection between two shards. Only a shard can open it.
#[derive(Debug)]
pub struct Moving {
    conn: Box<Conn>,
    link: Link,
    /// Of its queue. Mail that tells the home of a new one may come later than the connection.
    name: String,
    /// What came behind the attach before the host took the action.
    bytes: Vec<u8>,
}

impl Shard {
    /// Sends the connection of a link whose queue was just found to the queue's home, if it may go;
    /// whether it went.
    pub(super) fn follow(&mut self, key: LinkKey, queue: QueueId, home: ShardId) -> bool {
        let Some(link) = self.links.get(key) else { return false };
        let id = link.conn;
        let Some(conn) = self.conns.get_mut(id) else { return false };
        // Only the first attach is asked.
        let first = std::mem::take(&mut conn.may_move);
        let alone = conn.links.len() == 1 && conn.ending.is_empty();
        let leaving = conn.over || conn.close_wanted || conn.goodbye;
        if !first || !alone || leaving || home == self.config.shard || !self.is_serving() {
            return false;
        }
        let Some(name) = self.state.catalogue.get(queue).map(|record| record.name.clone()) else {
            return false;
        };
        let link = self.links.remove(key).expect("it was just looked at");
        let mut conn = self.conns.remove(id).expect("it was just looked at");
        if let Some(at) = conn.deadline.take() {
            self.deadlines.remove(&(at, id));
        }
        conn.links.remove(link.id);
        conn.dirty = false;
        self.forget_unfinished(std::mem::take(&mut conn.unfinished_bytes));
        if let Some(claim) = &conn.claim {
            self.claim_departs(claim);
        }
        let moving = Box::new(Moving { conn, link, name, bytes: Vec::new() });
        self.actions.push_back(Action::Move { conn: id, to: home, moving });
        true
    }

    /// A connection has come, under the number that its host gives it here.
    pub(super) fn moved(&mut self, now: Instant, id: ConnId, moving: Moving) {
        if !self.is_serving() {
            return self.turn_away(
                id,
                moving,
                Condition::ConnectionForced,
                "the broker is stopping",
            );
        }
        if self.conns.len() >= CONNECTIONS_MAX {
            let why = "the shard of this queue has as many connections as it takes";
            return self.turn_away(id, moving, Condition::ResourceLimitExceeded, why);
        }
        let Moving { mut conn, mut link, name, bytes } = moving;
        assert!(matches!(link.phase, LinkPhase::Resolving) && conn.links.is_empty());
        // The host has waited for the last send, and reads again as soon as we are told.
        (conn.id, conn.sending, conn.paused) = (id, false, false);
        (conn.sending_bytes, conn.unread_since) = (0, None);
        link.conn = id;
        let of_engine = link.id;
        let key = self.links.insert(link);
        conn.links.insert(of_engine, key);
        conn.amqp.withhold_reads(now, false);
        self.conns.insert(id, conn);
        self.claim_arrives(id);
        self.count_unfinished(now, id);
        self.look_up(now, key, name);
        self.pump(now, id);
        if !bytes.is_empty() {
            self.received(now, id, &bytes);
        }
    }

    /// A connection that has come is not served: its peer hears why, and that is all.
    fn turn_away(&mut self, id: ConnId, moving: Moving, condition: Condition, why: &str) {
        let Moving { mut conn, .. } = moving;
        if let Some(claim) = conn.claim.take() {
            self.drop_claim(&claim);
        }
        tracing::info!(conn = id.0, peer = %conn.peer, "connection turned away: {why}");
        conn.amqp.close(Some(Error::new(condition, why)));
        let mut buf = Vec::new();
        if conn.amqp.poll_transmit(&mut buf) {
            self.actions.push_back(Action::Send { conn: id, buf });
        }
        self.actions.push_back(Action::Close(id));
    }

    /// Bytes came for a connection that is not here: one whose `Move` waits to be taken gets them.
    pub(super) fn received_late(&mut self, id: ConnId, bytes: &[u8]) {
        for action in &mut self.actions {
            if let Action::Move { conn, moving, .. } = action
                && *conn == id
            {
                moving.bytes.extend_from_slice(bytes);
            }
        }
    }
}
