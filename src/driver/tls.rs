//! TLS between socket and shard: handshakes on threads of their own, then records on the core.
//!
//! ```text
//!   accepted ─▶ Securing ── first bytes ──▶ [ Work ] ─▶ handshake thread: certificates, keys
//!                  ▲                                        │ Shaken: back to the core
//!                  ├── More: the peer's turn ◀──────────────┤
//!                  ├── Failed: alert, reason in the log ◀───┤
//!                  └── Done ◀───────────────────────────────┘
//!                       └─▶ Serving: the shard hears `Accepted`, records are opened and sealed
//!                           on the core
//! ```
//! A signature costs up to a millisecond, and anybody may ask for one: so no core ever makes one.
//! The session itself travels to the thread and back, so nothing is shared. A shard knows nothing
//! of connections whose handshake is not over; they cost an entry, and a session once bytes came.
//!
//! Invariants: of a connection at most one piece of work is under way; a core has at most
//! [`HANDSHAKES_MAX`] handshakes, and fewer that have had their time where it may hold few
//! connections; where one more comes another one makes room (strangers.rs), so that peers who say
//! nothing lock nobody out; each ends within [`HANDSHAKE_WITHIN`] and [`HANDSHAKE_BYTES_MAX`].
//! Later the shard counts what is kept of records that are not whole as unfinished. At most one
//! buffer of the shard's is under way, and goes home when all records made of it are sent.
//!
//! Failure: the peer gets TLS's alert and an orderly end, the log the reason: at most
//! [`COMPLAINTS_PER_SECOND`] a core, then their number.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use broker::ConnId;
use broker::ration::Ration;
use crossbeam::channel::{Receiver, Sender, unbounded};
use net::tls::TlsSession;

use crate::fatal::{Cause, Failure};
use crate::machine;
use crate::node::{Inbox, Input};
use crate::tls::{Tls, count};

/// Handshakes that a core has under way.
pub(super) const HANDSHAKES_MAX: usize = 1024;

/// A handshake takes at most so long.
pub(super) const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);

/// Bytes that a peer may send until its handshake is over: a long chain of certificates fits twice.
const HANDSHAKE_BYTES_MAX: usize = 64 * 1024;

/// Threads that make handshakes, at most; one where there is one core.
const THREADS_MAX: usize = 4;

/// Refused handshakes that a core logs one by one.
const COMPLAINTS_PER_SECOND: u32 = 10;

/// The TLS of one connection.
pub(super) struct Channel {
    /// None before the first bytes, and while it is at a handshake thread.
    session: Option<Box<TlsSession>>,
    /// It is at a handshake thread.
    away: bool,
    /// Ciphertext that waits for the session.
    waiting: Vec<u8>,
    /// What came until the handshake was over, in bytes.
    gathered: usize,
    /// The shard's buffer under way, and after how many more ends of sends it goes home.
    lent: Option<(Vec<u8>, u32)>,
    /// The server's first answer was made, or is being made.
    answered: bool,
    /// The shard was told that its keys are nearly used up.
    worn: bool,
    /// Nobody waits for the handshake any more.
    abandoned: Arc<AtomicBool>,
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Channel")
    }
}

impl Drop for Channel {
    /// A peer that went before our first answer is owed no signature. One that went later may have
    /// said why.
    fn drop(&mut self) {
        if !self.answered {
            self.abandon();
        }
    }
}

impl Channel {
    pub(super) fn new() -> Self {
        Self {
            session: None,
            away: false,
            waiting: Vec::new(),
            gathered: 0,
            lent: None,
            answered: false,
            worn: false,
            abandoned: Arc::default(),
        }
    }

    /// Its handshake makes room for another one, or took too long.
    pub(super) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }

    /// Opens records: their plaintext piece by piece, and what is to be sent because of them.
    pub(super) fn open(
        &mut self,
        bytes: &[u8],
        plain: impl FnMut(&[u8]),
    ) -> Result<Vec<u8>, String> {
        let session = self.session.as_mut().expect("it is home once the handshake is over");
        let opened = session.receive(bytes, plain);
        opened.map_err(|error| error.to_string())?;
        let mut out = Vec::new();
        session.flush(&mut out);
        Ok(out)
    }

    /// Whether the peer has said that it sends no more.
    pub(super) fn has_peer_ended(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.has_peer_ended())
    }

    /// Bytes that it keeps of a record that is not whole.
    pub(super) fn held_bytes(&self) -> u64 {
        self.session.as_ref().map_or(0, |session| session.held_bytes() as u64)
    }

    /// Makes records of a shard's buffer, in an empty one; `sends` are under way once they are. A
    /// session that has failed, or whose keys are used up, makes none, and says why.
    pub(super) fn seal(
        &mut self,
        plain: Vec<u8>,
        mut records: Vec<u8>,
        sends: u32,
    ) -> Result<Vec<u8>, String> {
        let session = self.session.as_mut().expect("it is home once the handshake is over");
        session.send(&plain, &mut records).map_err(|error| error.to_string())?;
        assert!(self.lent.is_none(), "a shard has one send under way at a time");
        self.lent = Some((plain, sends));
        Ok(records)
    }

    /// Whether its keys are nearly used up; once.
    pub(super) fn wears_out(&mut self) -> bool {
        let worn = self.session.as_ref().is_some_and(|session| session.is_worn());
        worn && !std::mem::replace(&mut self.worn, true)
    }

    /// A send has ended: the shard's buffer, if it was all of it.
    pub(super) fn sent(&mut self) -> Option<Vec<u8>> {
        let (_, left) = self.lent.as_mut()?;
        *left -= 1;
        if *left > 0 {
            return None;
        }
        self.lent.take().map(|(plain, _)| plain)
    }

    /// The last words: an alert that waits, or that nothing more comes.
    pub(super) fn last_words(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        if let Some(session) = &mut self.session {
            session.end(&mut out);
        }
        out
    }

    /// Takes bytes of a handshake; false where there are too many.
    pub(super) fn gather(&mut self, bytes: &[u8]) -> bool {
        self.waiting.extend_from_slice(bytes);
        self.gathered += bytes.len();
        self.gathered <= HANDSHAKE_BYTES_MAX
    }

    /// The next piece of work, if the session is here and bytes wait for it.
    pub(super) fn work(&mut self, conn: ConnId, peer: SocketAddr, inbox: &Inbox) -> Option<Work> {
        if self.away || self.waiting.is_empty() {
            return None;
        }
        self.away = true;
        self.answered = self.session.is_some();
        Some(Work {
            conn,
            peer,
            session: self.session.take(),
            bytes: std::mem::take(&mut self.waiting),
            abandoned: Arc::clone(&self.abandoned),
            inbox: inbox.clone(),
        })
    }

    /// The session is back.
    pub(super) fn come_home(&mut self, session: Option<Box<TlsSession>>) {
        self.away = false;
        self.session = session;
    }

    /// What came while the handshake ended.
    pub(super) fn take_waiting(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.waiting)
    }
}

/// A piece of a handshake, on its way to a thread.
pub(super) struct Work {
    conn: ConnId,
    peer: SocketAddr,
    session: Option<Box<TlsSession>>,
    bytes: Vec<u8>,
    abandoned: Arc<AtomicBool>,
    inbox: Inbox,
}

/// What a thread has made of it.
pub(crate) struct Shaken {
    /// Whose handshake it is.
    pub(super) conn: ConnId,
    /// Who is at the other end.
    pub(super) peer: SocketAddr,
    /// The session; none where it could not begin.
    pub(super) session: Option<Box<TlsSession>>,
    /// For the peer.
    pub(super) out: Vec<u8>,
    /// How far it is.
    pub(super) step: Step,
}

impl std::fmt::Debug for Shaken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shaken").field("conn", &self.conn).field("step", &self.step).finish()
    }
}

/// How far a handshake is.
#[derive(Debug)]
pub(super) enum Step {
    /// The peer must say more.
    More,
    /// It is over, and what came behind it.
    Done {
        /// Plaintext that the peer sent with its last word.
        plain: Vec<u8>,
        /// The user whom its certificate names.
        user: Option<String>,
    },
    /// It failed, and why.
    Failed(String),
}

/// The handshake threads. They end when the last clone is gone.
#[derive(Clone)]
pub(super) struct Handshakes {
    /// Bounded by the handshakes that the cores have, each with one piece at most.
    work: Sender<Work>,
    pub(super) tls: Arc<Tls>,
}

impl Handshakes {
    /// Start them, for so many cores.
    pub(super) fn start(tls: Arc<Tls>, cores: usize) -> Result<Self, Failure> {
        let (work, queue) = unbounded();
        for number in 0..cores.clamp(1, THREADS_MAX) {
            let (tls, queue) = (Arc::clone(&tls), queue.clone());
            std::thread::Builder::new()
                .name(format!("tls-{number}"))
                .spawn(move || shake_all(&tls, &queue))
                .map_err(|error| {
                    let what = format!("no thread for TLS handshakes: {error}");
                    Failure::new(Cause::ResourceRefused, what)
                })?;
        }
        Ok(Self { work, tls })
    }

    /// Have a piece done.
    pub(super) fn go_on(&self, work: Work) {
        // The threads live as long as a sender does, and we are one.
        assert!(self.work.send(work).is_ok(), "the handshake threads are gone");
    }
}

fn shake_all(tls: &Tls, queue: &Receiver<Work>) {
    machine::give_way("TLS handshakes");
    for work in queue {
        if work.abandoned.load(Ordering::Relaxed) {
            continue;
        }
        let inbox = work.inbox.clone();
        inbox.put(Input::Shaken(shake(tls, work)));
    }
}

fn shake(tls: &Tls, work: Work) -> Shaken {
    let Work { conn, peer, session, bytes, .. } = work;
    let mut out = Vec::new();
    let begun = match session {
        Some(session) => Ok(session),
        None => TlsSession::server(tls.served()).map(Box::new),
    };
    let mut session = match begun {
        Ok(session) => session,
        Err(error) => {
            let step = Step::Failed(error.to_string());
            return Shaken { conn, peer, session: None, out, step };
        }
    };
    let mut plain = Vec::new();
    let received = session.receive(&bytes, |piece| plain.extend_from_slice(piece));
    session.flush(&mut out);
    let step = match received {
        Err(error) => Step::Failed(error.to_string()),
        Ok(()) if session.has_peer_ended() => Step::Failed("the peer ended it".to_owned()),
        Ok(()) if session.is_handshaking() => Step::More,
        Ok(()) => match tls.user_of(session.peer_certificates()) {
            Ok(user) => Step::Done { plain, user },
            Err(why) => Step::Failed(why),
        },
    };
    let figures = &tls.figures;
    match step {
        Step::More => {}
        Step::Done { .. } => count(&figures.handshakes_total),
        Step::Failed(_) => count(&figures.refused_total),
    }
    Shaken { conn, peer, session: Some(session), out, step }
}

/// Refused connections in the log, so that a flood of them is a few lines and a number.
#[derive(Debug, Default)]
pub(crate) struct Complaints(Ration<COMPLAINTS_PER_SECOND>);

impl Complaints {
    /// A handshake was refused, or a connection broke the protocol later.
    pub(crate) fn say(&mut self, now: Instant, peer: SocketAddr, why: &str) {
        self.tell(now, peer, "TLS connection refused", why);
    }

    /// A client has no way to log in.
    pub(crate) fn say_no_way(&mut self, now: Instant, peer: SocketAddr, why: &str) {
        self.tell(now, peer, "connection refused, it cannot log in", why);
    }

    /// A connection that was not open made room for another one.
    pub(super) fn say_made_room(&mut self, now: Instant, peer: SocketAddr) {
        self.tell(now, peer, "connection closed before it was open", "others wait for its place");
    }

    fn tell(&mut self, now: Instant, peer: SocketAddr, what: &str, why: &str) {
        if let Some(left_out) = self.0.line(now) {
            if left_out > 0 {
                tracing::info!("{left_out} more connections were refused");
            }
            tracing::info!(%peer, "{what}: {why}");
        }
    }
}
