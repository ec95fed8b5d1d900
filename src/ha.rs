//! This process as a member of a pair: `[ha]`.
//!
//! ```text
//!   voters ══ voters.rs ══╗
//!                          ╠══ control.rs ── Duty, Gate ──▶ cores: shards that reign or follow
//!   other ══ streams.rs ══╝    replica::member ◀─ reports ──┘        (driver/pair.rs)
//!   member       ║                 │
//!                ╚═ a stream a shard, straight to and from its core
//!                                  ▼ News
//!                              serve.rs: listens while it may, begins anew when it may not
//!                              redirect.rs: listens while the other one serves, and says where
//! ```
//! Every decision is made by `replica::member::Membership`, sans-IO; this carries bytes, keeps the
//! time, and does what it says. One thread (`pair`), on tokio: a message's batch passes through it
//! on its way between core and socket, the rest is small.
//!
//! A member that reigned and may not any more has clients, mail and writes under way that no longer
//! count. It begins anew *as a process*: the same program with the same arguments takes its own
//! place (`serve.rs`), and recovers its log as after a kill. There is one way from a log to a
//! state, and it is that of every start.
//!
//! A child process stays when this one dies, and tells the voters (`watch.rs`).
//!
//! Invariants: without `[ha]` nothing here runs. A core needs nobody here to stop: it looks at the
//! gate itself.
//!
//! Failure: this thread's end is the process's.

mod clock;
mod control;
mod exports;
mod redirect;
mod renewals;
mod serve;
mod status;
mod streams;
mod voters;
mod watch;

use std::path::Path;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use broker::settings::Settings;
use crossbeam::channel::{Receiver, unbounded};
use journal::{JournalUuid, LogId, NodeSuperblock};
use replica::backup::Follows;
use replica::card::{HeldLog, Standing};
use replica::member::MemberConfig;
use replica::wire::Identity;
use replica::{MemberInfo, PairId};
use tokio::sync::{mpsc, oneshot};

use crate::config::{Config, Pair};
use crate::driver::{FromCore, PairLink, certificates};
use crate::fatal::{Cause, Failure};
use crate::mutual::Mutual;
use crate::node::Inbox;

pub(crate) use clock::{Clock, Gate};
pub(crate) use redirect::Doors;
pub(crate) use serve::{Served, serve, wait_for_format};
pub(crate) use status::{HaCommand, ha};

/// What the control thread has for the main one.
#[derive(Debug)]
pub(crate) enum News {
    /// The directory is empty, and this is what it is to become.
    Format(HeldLog),
    /// Clients may be served.
    Open,
    /// They may not.
    Closed,
    /// What it does, in a word, and whether that is what it is there for.
    Standing(Standing, bool),
    /// A shard may not reign any more: begin anew.
    GiveUp,
    /// After a stop: nobody waits for this member.
    MayEnd,
    /// An operator wants the other member to be live.
    SwitchOver,
}

/// What others have for the control thread.
pub(crate) enum Command {
    /// The directory is what it was to become.
    Formatted(HeldLog),
    /// The cores run, and host so many shards.
    Cores(Vec<Inbox>, u16),
    /// The process is to end; what was taken is answered for at most so long.
    Stop(Duration),
    /// How is the pair?
    Status(oneshot::Sender<serde_json::Value>),
    /// Give the role to the other member.
    SwitchOver(oneshot::Sender<Result<(), String>>),
    /// Make the pair's first record, although nobody knows what this node holds.
    Bootstrap(String, oneshot::Sender<Result<(), String>>),
    /// Take the role, although what this node has acknowledged may be lost.
    Promote(String, oneshot::Sender<Result<(), String>>),
}

/// The way to the control thread, and what it says.
pub(crate) struct Ha {
    pair: Pair,
    journal: JournalUuid,
    boot: [u8; 16],
    gate: std::sync::Arc<Gate>,
    from_cores: mpsc::UnboundedSender<FromCore>,
    /// For the control thread.
    pub(crate) commands: mpsc::UnboundedSender<Command>,
    /// From it.
    pub(crate) news: Receiver<News>,
}

/// What a member begins with.
pub(crate) struct Beginning<'a> {
    /// The configuration.
    pub(crate) config: &'a Config,
    /// Its part on pairs.
    pub(crate) pair: &'a Pair,
    /// What the directory was formatted as, if it was.
    pub(crate) node: Option<&'a NodeSuperblock>,
    /// The directory is locked, and that keeps out every other process: no earlier life of this
    /// member can still serve. If not, its own last lease is waited for like another's.
    pub(crate) is_sole: bool,
    /// What it would be formatted as, if this member is to found the pair.
    pub(crate) geometry: journal::Geometry,
    /// Where what is cut off a log is kept.
    pub(crate) exports: &'a Path,
    /// Where clients come to.
    pub(crate) doors: Doors,
}

impl Ha {
    /// Listens for the other member, and begins to ask the voters.
    ///
    /// # Errors
    /// The address is taken, a certificate can't be used, or the machine refuses a thread.
    pub(crate) fn start(begin: &Beginning<'_>) -> Result<Self, Failure> {
        let pair = begin.pair;
        let mutual = pair.tls.as_ref().map(Mutual::load).transpose()?;
        let listener = std::net::TcpListener::bind(pair.replication)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .map_err(|error| {
                let at = pair.replication;
                let message = format!("cannot listen for the other member on {at}: {error}");
                Failure::new(Cause::ListenFailed, message)
            })?;
        let config = member_config(begin)?;
        let (journal, boot) = (config.journal, config.boot);
        let held = begin.node.map(held_of);
        let gate = Gate::new(Clock::start());
        let (from_cores, cores) = mpsc::unbounded_channel();
        let (commands, queue) = mpsc::unbounded_channel();
        let (news, heard) = unbounded();
        let setup = control::Setup {
            pair: pair.clone(),
            pair_id: pair_id(pair),
            config,
            held,
            listener,
            mutual,
            gate: std::sync::Arc::clone(&gate),
            from_cores: cores,
            commands: queue,
            news,
            exports: begin.exports.to_owned(),
            first_question: random_u64()?,
            watcher: watch::Watcher::start(pair, pair_id(pair), random_u64()?)?,
            redirect: redirect::Redirect::start(begin.doors.clone())?,
        };
        control::start(setup)?;
        Ok(Self { pair: pair.clone(), journal, boot, gate, from_cores, commands, news: heard })
    }

    /// The number that an empty directory is to be formatted with.
    pub(crate) fn journal(&self) -> JournalUuid {
        self.journal
    }

    /// What the cores are to know.
    pub(crate) fn link(&self, node: &NodeSuperblock) -> PairLink {
        let cluster = digest_of(&["cluster", &self.pair.cluster]);
        let identity = Identity::new(&self.pair.name, cluster, node.log_id, node.geometry);
        PairLink {
            follows: Follows { identity, member: node.journal_uuid, boot: self.boot },
            catch_up_rate: self.pair.catch_up_rate,
            gate: std::sync::Arc::clone(&self.gate),
            news: self.from_cores.clone(),
        }
    }

    /// Says something to the control thread, which lives as long as the process.
    pub(crate) fn tell(&self, command: Command) {
        drop(self.commands.send(command));
    }
}

/// The log of a directory.
pub(crate) fn held_of(node: &NodeSuperblock) -> HeldLog {
    HeldLog { log: node.log_id, geometry: node.geometry }
}

fn member_config(begin: &Beginning<'_>) -> Result<MemberConfig, Failure> {
    let Beginning { config, pair, .. } = begin;
    // Without one nobody is sent here.
    let advertise = pair.advertise.clone().unwrap_or_default();
    let journal = match begin.node {
        Some(node) => node.journal_uuid,
        None => JournalUuid(random()?),
    };
    Ok(MemberConfig {
        pair: pair.name.clone(),
        cluster: digest_of(&["cluster", &pair.cluster]),
        info: MemberInfo {
            node: pair.node,
            replication: pair.replication.to_string(),
            advertise,
            certificate: fingerprint(pair)?,
        },
        journal,
        boot: random()?,
        settings: fingerprint_of_settings(config, pair, &config.address_settings()?),
        terms: pair.terms,
        is_sole: begin.is_sole,
        in_sync_min: pair.in_sync_min,
        founding: HeldLog { log: LogId(random()?), geometry: begin.geometry },
        seed: random_u64()?,
    })
}

/// The name of the pair's register: the same on both members.
fn pair_id(pair: &Pair) -> PairId {
    PairId(digest_of(&["pair", &pair.cluster, &pair.name]))
}

fn sha256(parts: &[&str]) -> [u8; 32] {
    let mut text = Vec::new();
    for part in parts {
        text.extend_from_slice(&(part.len() as u64).to_le_bytes());
        text.extend_from_slice(part.as_bytes());
    }
    let digest = digest(&SHA256, &text);
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

fn digest_of(parts: &[&str]) -> [u8; 16] {
    *sha256(parts).first_chunk().expect("half of 32 bytes")
}

/// Of the settings that both members must share: a producer must find the same on either,
/// and a failover must take as long.
fn fingerprint_of_settings(config: &Config, pair: &Pair, settings: &Settings) -> [u8; 32] {
    let durability = config.durability.to_string();
    let lease_ms = pair.terms.length().as_millis().to_string();
    let size = config.max_message_size.to_string();
    sha256(&[&durability, &size, &lease_ms, &format!("{settings:?}")])
}

/// SHA-256 of this member's certificate; zeros without one.
fn fingerprint(pair: &Pair) -> Result<[u8; 32], Failure> {
    let Some(files) = &pair.tls else { return Ok([0; 32]) };
    let unusable = |why: String| Failure::new(Cause::TlsUnusable, why);
    let read = crate::tls::read(&files.cert).map_err(unusable)?;
    let chain = certificates(&files.cert, &read).map_err(unusable)?;
    let first = chain.first().map_or(&[][..], |certificate| certificate.as_ref());
    Ok(digest(&SHA256, first).as_ref().try_into().expect("SHA-256 has 32 bytes"))
}

fn random<const N: usize>() -> Result<[u8; N], Failure> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| {
        Failure::new(Cause::ResourceRefused, format!("the system gives no randomness: {error}"))
    })?;
    Ok(bytes)
}

fn random_u64() -> Result<u64, Failure> {
    Ok(u64::from_le_bytes(random()?))
}
