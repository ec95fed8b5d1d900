//! How clients come in: accepted, secured, given to a shard, and who makes room for them.
//!
//! ```text
//!   accepted ── may be full: a stranger makes room (strangers.rs) ──▶ over, or its handshake ends
//!      ├─ TLS ──▶ handshake (driver/tls.rs) ── shaken ──▶ Event::Accepted
//!      └─ else ─────────────────────────────────────────▶ Event::Accepted ── open ──▶ known
//! ```
//! Invariant: who has no credentials keeps nobody out. A connection is a stranger until AMQP is
//! open, so a place that is held by silence, by half a log-in or by a goodbye that nobody reads is
//! given to the next one before accepting would stop.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use broker::Event;
use broker::limits::CONNECTIONS_MAX;
use journal::ShardId;
use net::SocketId;

use super::super::sockets::{Evicted, Inbound, Served};
use super::super::tls::{Shaken, Step};
use super::{Core, Over, shard_of};

/// Trouble with accepting is logged once in this time.
const ACCEPT_TROUBLE_EVERY: Duration = Duration::from_secs(10);

impl Core {
    pub(super) fn accepted(&mut self, now: Instant, socket: SocketId, peer: SocketAddr, tls: bool) {
        if self.draining {
            self.ring.close(socket);
            return;
        }
        if tls {
            self.make_room(now);
            let shard = self.shard_with_room();
            let full = self.sockets.add_secure(&mut self.ring, now, socket, shard, peer);
            self.count_abandoned(usize::from(full));
        } else {
            let Some(login) = self.authenticator.log_in(peer, false, None) else {
                // All users have certificates, and come by TLS.
                self.complaints.say_no_way(now, peer, "users log in over TLS alone");
                return self.ring.close(socket);
            };
            self.make_room(now);
            let shard = self.shard_with_room();
            let conn = self.sockets.add_stranger(now, socket, shard, peer, None);
            let peer = peer.to_string();
            self.handle(now, shard, Event::Accepted { conn, peer, may_move: true, login });
        }
        self.ring.start_receive(socket);
    }

    /// Where one more connection may find no place, one that is not open makes room.
    fn make_room(&mut self, now: Instant) {
        let shards = &mut self.shards;
        let is_open = |Served { conn, shard }| shard_of(shards, shard).has_opened(conn);
        match self.sockets.make_room(&mut self.ring, now, is_open) {
            None => {}
            Some(Evicted::Handshake) => self.count_abandoned(1),
            Some(Evicted::Connection { socket, peer }) => {
                self.complaints.say_made_room(now, peer);
                self.over.push((socket, Over::Broken));
            }
        }
    }

    /// A stranger may be known now.
    pub(super) fn look_for_open(&mut self, socket: SocketId) {
        if let Some(Served { conn, shard }) = self.sockets.stranger(socket)
            && shard_of(&mut self.shards, shard).has_opened(conn)
        {
            self.sockets.is_known(socket);
        }
    }

    /// The shard that serves the next connection: each in turn, but those that are full.
    fn shard_with_room(&mut self) -> ShardId {
        let count = self.shards.len();
        let in_turn = (0..count).map(|step| (self.next_shard + step) % count);
        let with_room = in_turn.clone().find(|at| self.shards[*at].connections() < CONNECTIONS_MAX);
        let next = with_room.unwrap_or(self.next_shard);
        self.next_shard = (next + 1) % count;
        self.shards[next].id()
    }

    /// A step of a handshake is done.
    pub(super) fn shaken(&mut self, now: Instant, shaken: Shaken) {
        let Shaken { conn, peer, session, out, step } = shaken;
        if let Step::Failed(why) = &step {
            // Also of a peer that is gone: its last word may have been why.
            self.complaints.say(now, peer, why);
        }
        let Some((socket, channel)) = self.sockets.securing(conn) else { return };
        channel.come_home(session);
        let work = match step {
            Step::More => channel.work(conn, peer, &self.inbox),
            Step::Done { .. } | Step::Failed(_) => None,
        };
        self.sockets.transmit(&mut self.ring, socket, out);
        if let (Some(work), Some(handshakes)) = (work, &self.handshakes) {
            handshakes.go_on(work);
        }
        match step {
            Step::More => {}
            Step::Failed(_) => {
                self.sockets.fail(&mut self.ring, now, socket);
            }
            Step::Done { plain, user } => {
                let Some(login) = self.authenticator.log_in(peer, true, user) else {
                    let why = "its certificate names no user, and nobody has a password";
                    self.complaints.say_no_way(now, peer, why);
                    self.sockets.fail(&mut self.ring, now, socket);
                    return;
                };
                let Some(Served { conn, shard }) = self.sockets.secured(conn) else { return };
                let serving = shard_of(&mut self.shards, shard);
                let peer = peer.to_string();
                serving.handle(now, Event::Accepted { conn, peer, may_move: true, login });
                if !plain.is_empty() {
                    serving.handle(now, Event::Received { conn, bytes: &plain });
                }
                let Inbound::Sealed(_, channel) = self.sockets.inbound(socket) else { return };
                let waiting = channel.take_waiting();
                self.take_kept(now, socket, &waiting);
                self.look_for_open(socket);
            }
        }
    }

    pub(super) fn count_abandoned(&self, handshakes: usize) {
        if let Some(tls) = self.handshakes.as_ref().map(|handshakes| &handshakes.tls) {
            tls.figures.abandoned_total.fetch_add(handshakes as u64, Ordering::Relaxed);
        }
    }

    pub(super) fn accept_failed(&mut self, now: Instant, error: &std::io::Error) {
        let quiet = self.accept_trouble.is_some_and(|at| now < at + ACCEPT_TROUBLE_EVERY);
        if !quiet {
            self.accept_trouble = Some(now);
            tracing::warn!(
                "core {} cannot accept connections: {error}; it goes on trying; raise the limit on \
                 open files if there are too many",
                self.core
            );
        }
    }
}
