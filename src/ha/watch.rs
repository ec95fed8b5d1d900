//! Who stays when the broker's process dies, and tells the voters: so a death costs one swap.
//! The lease is waited for where this one dies too, with the machine, its container or its group.
//!
//! ```text
//!   broker ── pipe: what it needs, then each epoch that it reigns in ──▶ watcher, its child
//!      ✝ ──── the pipe's end ───────────────────────────────────────────▶ reads the record:
//!                                          that epoch, that live? ──▶ swaps in `released`
//! ```
//! The pipe ends when the kernel has closed the broker's files, which is after its last thread has
//! run: nothing of it serves any more. What the kernel still writes for it are batches of its own
//! log, which its next recovery waits for.
//!
//! Invariants: a record is released only in the epoch that the pipe named last, and every reign has
//! an epoch of its own: a broker that was started again meanwhile is never released by the watcher
//! of the one before. A broker that ended in order has released its role itself.
//!
//! Failure: without it, or if it can't reach the voters, the lease is waited for. It ends soon
//! either way.

use std::io::{BufRead as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command as Program, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use journal::Epoch;
use replica::voter::{Client, Seats};
use replica::{NodeId, Outcome, PairId, PairRecord, Register as _, RequestId, Swap};
use rustix::process::{WaitOptions, waitpid};
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::voters::{Heard, Voters};
use crate::config::Pair;
use crate::driver::clock;
use crate::fatal::{Cause, Failure};
use crate::mutual::{Files, Mutual};

/// It tries for so long.
const WITHIN: Duration = Duration::from_secs(5);
/// After an answer that decides nothing.
const PAUSE: Duration = Duration::from_millis(20);

/// What a watcher is told first, in a line.
#[derive(Debug, Serialize, Deserialize)]
struct Told {
    pair: [u8; 16],
    node: u8,
    voters: Vec<SocketAddr>,
    /// Certificate, key, authority.
    tls: Option<[PathBuf; 3]>,
    first_question: u64,
}

/// The broker's end of it.
pub(super) struct Watcher(Child);

impl Watcher {
    /// Starts one.
    ///
    /// # Errors
    /// The machine refuses a process.
    pub(super) fn start(pair: &Pair, id: PairId, first_question: u64) -> Result<Self, Failure> {
        let told = Told {
            pair: id.0,
            node: pair.node.0,
            voters: pair.voters.clone(),
            tls: pair.tls.clone().map(|files| [files.cert, files.key, files.ca]),
            first_question,
        };
        let refused = |error: std::io::Error| {
            Failure::new(Cause::ResourceRefused, format!("no process to watch over us: {error}"))
        };
        reap();
        let mut child = Program::new("/proc/self/exe")
            .args(["ha", "watch"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .map_err(refused)?;
        let line = serde_json::to_string(&told).map_err(|error| refused(error.into()))?;
        let stdin = child.stdin.as_mut().expect("it is piped");
        writeln!(stdin, "{line}").map_err(refused)?;
        Ok(Self(child))
    }

    /// A reign has begun. A watcher that is gone is missed only by time.
    pub(super) fn reigns(&mut self, epoch: Epoch) {
        reap();
        let written = self.0.stdin.as_mut().map(|stdin| writeln!(stdin, "{}", epoch.0));
        if let Some(Err(error)) = written {
            tracing::warn!("nobody watches over this process ({error}): its death costs the lease");
        }
    }
}

/// A process that began anew has the watchers of those before it for children, and does not know
/// them; a broker has no other children, and waits for none.
fn reap() {
    while let Ok(Some(_)) = waitpid(None, WaitOptions::NOHANG) {}
}

/// `laelaps ha watch`: not for people.
pub(super) fn watch() -> Result<(), Failure> {
    let wrong = |why: String| Failure::command(format!("`ha watch` is started by a broker: {why}"));
    // What ends the broker must not end this one before.
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))
            .map_err(|error| wrong(error.to_string()))?;
    }
    let mut lines = std::io::stdin().lock().lines();
    let first = lines.next().and_then(Result::ok).unwrap_or_default();
    let told: Told = serde_json::from_str(&first).map_err(|error| wrong(error.to_string()))?;
    let epoch = lines.map_while(Result::ok).filter_map(|line| line.parse().ok()).last();
    let Some(epoch) = epoch.map(Epoch) else { return Ok(()) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| wrong(error.to_string()))?;
    let files = told.tls.clone().map(|[cert, key, ca]| Files { cert, key, ca });
    let mutual = files.as_ref().map(Mutual::load).transpose()?;
    runtime.block_on(async {
        let released = release(&told, mutual.as_ref(), epoch);
        match tokio::time::timeout(WITHIN, released).await {
            Ok(done) => done,
            Err(_) => Err(Failure::command("the voters did not answer: the lease is waited for")),
        }
    })
}

async fn release(told: &Told, mutual: Option<&Mutual>, epoch: Epoch) -> Result<(), Failure> {
    let seats = Seats::new(told.voters.len());
    let seats = seats.map_err(|error| Failure::command(error.to_string()))?;
    let (pair, mut number) = (PairId(told.pair), 1);
    let mut client = Client::new(seats, told.first_question >> 1);
    let mut voters = Voters::start(&told.voters, mutual);
    client.read(RequestId(number), pair);
    loop {
        let now = clock();
        client.handle_time(now);
        while let Some((seat, question)) = client.poll_question(now) {
            voters.ask(seat, question);
        }
        if let Some(answer) = client.poll_answer() {
            number += 1;
            match answer.outcome {
                Outcome::Won(_) => return Ok(()),
                Outcome::Stands(held) | Outcome::Lost(held) => {
                    let record = PairRecord::decode(&held.value).ok();
                    let ours = |record: &PairRecord| {
                        let live = record.live == Some(NodeId(told.node));
                        live && record.epoch == epoch && !record.released
                    };
                    let Some(mut record) = record.filter(ours) else { return Ok(()) };
                    record.released = true;
                    let value = record.encode();
                    client.cas(RequestId(number), Swap { pair, expect: held.version, value });
                }
                Outcome::Unknown | Outcome::NotDone(_) => {
                    tokio::time::sleep(PAUSE).await;
                    client.read(RequestId(number), pair);
                }
            }
            continue;
        }
        let due = client.poll_timeout(now).map_or(PAUSE, |at| at.saturating_duration_since(now));
        let nap = tokio::time::sleep(due.clamp(Duration::from_millis(1), PAUSE));
        tokio::select! {
            heard = voters.next() => match heard {
                Heard::Up(seat) => client.handle_up(seat),
                Heard::Reply(seat, bytes) => {
                    if let Err(error) = client.handle_reply(clock(), seat, &bytes) {
                        tracing::debug!(seat = seat.0, "a voter says what is no reply: {error}");
                    }
                }
                Heard::Down(seat) => client.handle_down(clock(), seat),
            },
            () = nap => {}
        }
    }
}
