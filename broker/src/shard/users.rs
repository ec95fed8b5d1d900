//! Who a connection is, and what its user may do.
//!
//! ```text
//!   PLAIN, SCRAM ─▶ Authenticate ─▶ verified elsewhere ─▶ Authenticated ─┬▶ challenge, outcome
//!   EXTERNAL     ─▶ the user whom the certificate names ────────────────┴▶ user, with its rights
//!     for another name ─▶ Authenticate, for the refusal: late, paced, in the log
//!
//!   attach    the right to send, consume or browse; a dynamic node: to create `$temp`
//!   relay     the right to send, for each message
//!   Resolve   goes with the right to create: shard 0 alone knows whether the queue is there
//! ```
//! Invariants: a user has its rights from the moment that it is one, and until the connection ends;
//! who holds a temporary queue needs no right to use it. What is refused is refused on the link or
//! for the message, with `amqp:unauthorized-access`, and told once a connection in the log.

use std::time::Instant;

use amqp::connection::SaslCode;
use amqp::definitions::Role;
use amqp::link::RemoteAttach;

use super::Shard;
use super::terms::{self, Wanted};
use crate::access::Right;
use crate::catalogue::TEMPORARY_NODES;
use crate::event::{Action, Attempt, AuthVerdict, ConnId};
use crate::mail::Refusal;

impl Shard {
    /// Has a log-in verified, elsewhere than on this thread; the connection's reads wait.
    pub(super) fn verify(&mut self, id: ConnId, attempt: Attempt) {
        self.actions.push_back(Action::Authenticate { conn: id, attempt });
    }

    /// The client wants to be the user of its certificate, and no other.
    pub(super) fn external(&mut self, id: ConnId, authzid: &str) {
        let user = self.conns.get(id).and_then(|conn| conn.certificate_user.clone());
        match user.filter(|user| authzid.is_empty() || authzid == user) {
            Some(user) => self.logged_in(id, user, &[]),
            None => self.verify(id, Attempt::Foreign(authzid.to_owned())),
        }
    }

    /// What became of a log-in.
    pub(super) fn authenticated(&mut self, now: Instant, id: ConnId, verdict: AuthVerdict) {
        match verdict {
            AuthVerdict::Accepted { user, last_word } => self.logged_in(id, user, &last_word),
            AuthVerdict::Challenge(challenge) => {
                self.engine(id, |amqp| amqp.sasl_challenge(&challenge));
            }
            AuthVerdict::Refused => self.log_in_failed(id, SaslCode::Auth),
            AuthVerdict::Busy => self.log_in_failed(id, SaslCode::SysTemp),
        }
        self.pump(now, id);
    }

    /// Who verifies has told the log, as much as is good of a flood.
    fn log_in_failed(&mut self, id: ConnId, code: SaslCode) {
        if let Some(conn) = self.conns.get_mut(id) {
            conn.refusal_told = true;
        }
        self.engine(id, |amqp| amqp.sasl_outcome(code));
    }

    /// The client is this user, from now on.
    fn logged_in(&mut self, id: ConnId, user: String, last_word: &[u8]) {
        let rights = self.config.access.rights(&user);
        let Some(conn) = self.conns.get_mut(id) else { return };
        tracing::debug!(conn = id.0, peer = %conn.peer, user, "logged in");
        (conn.user, conn.rights) = (user, rights);
        let last_word = Some(last_word).filter(|word| !word.is_empty());
        self.engine(id, |amqp| amqp.sasl_outcome_with(SaslCode::Ok, last_word));
    }

    /// Whether the user of a connection has a right on an address.
    pub(super) fn has(&self, id: ConnId, right: Right, address: &str) -> bool {
        let rights = self.conns.get(id).and_then(|conn| conn.rights.as_ref());
        rights.is_none_or(|rights| rights.has(right, address))
    }

    /// The same, with a refusal and a line in the log.
    pub(super) fn may(&mut self, id: ConnId, right: Right, address: &str) -> Result<(), Refusal> {
        if self.has(id, right, address) {
            return Ok(());
        }
        let (right, mut user) = (right.name(), String::new());
        if let Some(conn) = self.conns.get_mut(id) {
            user.clone_from(&conn.user);
            if !std::mem::replace(&mut conn.refusal_told, true) {
                let (conn, peer) = (id.0, &conn.peer);
                tracing::info!(conn, %peer, user, right, address, "a user may not do that");
            }
        }
        Err(Refusal::Unauthorized(format!("the user '{user}' may not {right} '{address}'")))
    }

    /// Whether a link may have what its attach asks for.
    pub(super) fn may_have(
        &mut self,
        id: ConnId,
        attach: &RemoteAttach,
        wanted: &Wanted,
    ) -> Result<(), Refusal> {
        match wanted {
            Wanted::Queue(name) if self.holds(id, name) => Ok(()),
            Wanted::Queue(name) => {
                let right = match attach.role {
                    Role::Receiver => Right::Send,
                    Role::Sender if terms::browses(attach) => Right::Browse,
                    Role::Sender => Right::Consume,
                };
                self.may(id, right, name)
            }
            Wanted::Temporary(_) => self.may(id, Right::Create, TEMPORARY_NODES),
            // Each message is looked at, when it says where it goes.
            Wanted::Relay => Ok(()),
        }
    }

    /// Whether this is a temporary queue that the connection has made.
    pub(super) fn holds(&self, id: ConnId, name: &str) -> bool {
        let temporary = self.state.catalogue.named(name).and_then(|record| record.temporary);
        temporary.is_some_and(|temporary| temporary.owner == (self.config.shard, id))
    }
}
