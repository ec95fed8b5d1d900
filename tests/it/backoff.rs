//! What clients see of a death that choose themselves when to try again: Qpid JMS and Proton, with
//! lists and pauses of their own.
//!
//! ```text
//!   Watched   a library in a process of its own: connects once, sends one message after the other
//!             and notes when each was accepted; whatever becomes of its connection is its doing
//!
//!   kill -9   on loopback: the old broker's port refuses          here
//!   machine   silence: the library has to notice by itself        `cuts.rs`
//! ```
//! What is set is what docs/operating/clients.md says: a second at most between two tries of JMS.
//! Nothing is asserted of their times: they are printed beside those of a client that tries each
//! 20 ms. That they do come back is asserted where a port refuses; behind a machine that is silent
//! Proton was seen in its connect for longer than the machine was away, and that is printed.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::knob;
use crate::load::Client as Foreign;
use crate::machines::Inside;
use crate::pair::{PairOf, Producer};
use crate::remote::Remote;
use crate::table::java;

/// The longest pause of any, and what a machine that is busy with tests adds.
const BACK_WITHIN: Duration = Duration::from_secs(30);
/// A send of Proton whose broker is gone is never answered: it is not waited for longer.
const SEND_WITHIN_MS: u64 = 50;
const QUEUE: &str = "watched";

/// A library that works for itself.
pub(crate) struct Watched {
    pub(crate) name: &'static str,
    accepted: Arc<Mutex<Vec<Instant>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watched {
    /// Both, on a machine or on this one. `connect` has `failover`, the list.
    pub(crate) fn both(inside: Option<&Inside>, connect: &Value) -> Vec<Self> {
        let libraries = [
            ("Qpid JMS", java("jms", "JmsRemote")),
            ("Proton Python", Foreign::Proton.command("remote")),
        ];
        let start = |(name, command)| Self::start(name, placed(inside, command), connect.clone());
        libraries.map(start).into()
    }

    fn start(name: &'static str, command: Command, connect: Value) -> Self {
        let accepted = Arc::<Mutex<Vec<Instant>>>::default();
        let stop = Arc::<AtomicBool>::default();
        let (book, over) = (Arc::clone(&accepted), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let mut client = Remote::spawn(command);
            client.ok(connect);
            client.sender("s", QUEUE);
            let send = json!({"do": "send", "name": "s", "text": "x", "durable": true,
                "within_ms": SEND_WITHIN_MS});
            let is_wanted = || !over.load(Ordering::Relaxed);
            while is_wanted() {
                let Some(answer) = client.step_while(&send, is_wanted) else { break };
                // Any other answer is of a connection that is lost or comes back.
                if answer["state"] == "accepted" {
                    book.lock().expect("no panic there").push(Instant::now());
                }
                thread::sleep(Duration::from_millis(2));
            }
        });
        Self { name, accepted, stop, thread: Some(thread) }
    }

    /// The first acceptance from then on, waited for so long.
    pub(crate) fn first_from(&self, from: Instant, within: Duration) -> Option<Instant> {
        let since = Instant::now();
        loop {
            let found = {
                let accepted = self.accepted.lock().expect("no panic there");
                accepted.iter().copied().find(|at| *at >= from)
            };
            if found.is_some() || since.elapsed() > within {
                return found;
            }
            let is_over = self.thread.as_ref().is_some_and(JoinHandle::is_finished);
            assert!(!is_over, "{} has given up", self.name);
            thread::sleep(Duration::from_millis(2));
        }
    }

    pub(crate) fn finish(mut self) {
        self.end().expect("it goes on for ever");
    }

    fn end(&mut self) -> thread::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map_or(Ok(()), JoinHandle::join)
    }
}

/// A test that has failed leaves no library behind, which would try for ever.
impl Drop for Watched {
    fn drop(&mut self) {
        drop(self.end());
    }
}

/// The same command on a machine.
fn placed(inside: Option<&Inside>, command: Command) -> Command {
    let Some(inside) = inside else { return command };
    let mut there = inside.command(Path::new(command.get_program()));
    there.args(command.get_args());
    there
}

/// Times for each, and all of them in a line.
pub(crate) struct Gaps {
    who: &'static str,
    gaps: Vec<Duration>,
}

impl Gaps {
    pub(crate) fn of(who: &'static str) -> Self {
        Self { who, gaps: Vec::new() }
    }

    pub(crate) fn note(&mut self, gap: Duration) {
        self.gaps.push(gap);
    }

    pub(crate) fn most(&self) -> Duration {
        self.gaps.iter().copied().max().unwrap_or_default()
    }

    /// What nine of ten did not exceed.
    pub(crate) fn p90(&self) -> Duration {
        let mut gaps = self.gaps.clone();
        gaps.sort();
        let rank = (gaps.len() * 9).div_ceil(10);
        gaps.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }

    pub(crate) fn print(&mut self) {
        self.gaps.sort();
        let ms: Vec<u128> = self.gaps.iter().map(Duration::as_millis).collect();
        println!("  {}: {ms:?}", self.who);
    }
}

#[test]
#[ignore = "needs the foreign clients: tests/run pair"]
fn clients_with_pauses_of_their_own_come_back_after_kill_9() {
    let (mut pair, mut live) = PairOf::up("backoff");
    let connect = json!({"do": "connect", "port": pair.amqp[0].port(),
        "failover": pair.amqp.map(|at| at.port())});
    let watched = Watched::both(None, &connect);
    let mut ours = (Producer::new(), Gaps::of("tries each 20 ms"));
    let mut theirs: Vec<Gaps> = watched.iter().map(|one| Gaps::of(one.name)).collect();
    for _ in 0..knob("LAELAPS_PAIR_DEATHS", 3) {
        let settled = Instant::now();
        for one in &watched {
            one.first_from(settled, BACK_WITHIN).expect("it is served");
        }
        let cut = Instant::now();
        pair.kill(live);
        let dead = Instant::now();
        ours.1.note(ours.0.first_accepted(pair.amqp[1 - live], cut));
        for (one, gaps) in watched.iter().zip(&mut theirs) {
            gaps.note(one.first_from(dead, BACK_WITHIN).expect("it comes back") - cut);
        }
        pair.start(live);
        live = pair.wait_in_sync();
    }
    println!("from kill -9 of the live to the first accepted at the other, ms:");
    std::iter::once(&mut ours.1).chain(&mut theirs).for_each(Gaps::print);
    watched.into_iter().for_each(Watched::finish);
    ours.0.check(pair.amqp[live]);
}
