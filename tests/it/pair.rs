//! Two brokers and three voters as real processes on loopback.
//!
//! ```text
//!   empty directories, either first   one is live, the other in sync
//!   (kill -9 the live while it accepts, the other serves, start it again) x LAELAPS_PAIR_KILLS
//!   SIGSTOP the live                  the other serves; awake again, the old one follows
//!   two of three voters gone          nobody serves; back, somebody does
//!   both gone                         who was left behind waits for who went on alone
//!   SIGTERM, switchover               the other serves at once, nothing lost
//!   away for several laps, or empty   brought up whole, with no command; then the live is killed
//!   the live lost for good            promote --force-data-loss; back, its own is kept, replayed
//!   the voters lost everything        ha bootstrap
//! ```
//! Producers are the built-in client, which numbers its messages and tries the other member every
//! 20 ms; what was accepted must come out at the end, in order. The foreign clients have a test of
//! their own, judged by `check.rs`.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use amqp::connection::Sasl;
use amqp::delivery::Outcome;
use perf::client::{Client, ClientError, data_of, durable_message};
use rustix::process::Signal;
use serde_json::Value;

use crate::authority::Authority;
use crate::backoff::Gaps;
use crate::check::{Rules, check};
use crate::half_sent::{self, Peer};
use crate::harness::{Broker, Chance, Scratch, Start, free_port, knob};
use crate::kill::{STRICT, finish_and_drain, proton_roles, rhea_roles};
use crate::load::{Address, Client as Foreign, Load, What};
use crate::machines::{Inside, Network, address};
use crate::voters::Voters;

const WITHIN: Duration = Duration::from_secs(30);
/// A debug build beside others was seen to take over half a minute for what a machine that had been
/// away for as long had missed.
const SO_WITHIN: Duration = Duration::from_secs(90);
const TRY_EVERY: Duration = Duration::from_millis(20);
/// From the death of a live's process to the first message that the other one accepts. It is
/// released by who watches over it: the lease, which is longer, is not waited for.
const DEAD_WITHIN: Duration = Duration::from_millis(1500);
/// The same in nine of ten; a debug build, beside others, may take longer.
const DEAD_P90: Duration = Duration::from_millis(if cfg!(debug_assertions) { 1000 } else { 500 });
/// So few kills have no p90.
const P90_KILLS: u64 = 10;
const QUEUE: &str = "numbers";
const SEGMENT_BYTES: u64 = 4 * 1024 * 1024;
const NAMES: [&str; 2] = ["a", "b"];
/// Bytes of a message that comes in parts.
const LONG: usize = 1 << 20;

/// Two members, those that run.
pub(crate) struct PairOf {
    pub(crate) scratch: Scratch,
    pub(crate) voters: Voters,
    pub(crate) amqp: [SocketAddr; 2],
    pub(crate) replication: [SocketAddr; 2],
    /// Where each keeps its log.
    pub(crate) data: [PathBuf; 2],
    /// Of each segment of their logs.
    pub(crate) segment_bytes: u64,
    /// The pair's name, as each one has it.
    pub(crate) names: [&'static str; 2],
    /// More lines of each one's `[ha]`.
    pub(crate) lines: [String; 2],
    /// More of each one's command line.
    pub(crate) args: [Vec<String>; 2],
    /// The machines that they run on, if those are not this one.
    inside: [Option<Inside>; 2],
    pub(crate) running: [Option<Broker>; 2],
}

impl PairOf {
    /// Nobody runs but the voters.
    pub(crate) fn new(name: &str) -> Self {
        Self::with(name, Voters::new(&format!("{name}-voters")))
    }

    /// Nobody runs but these voters, if they do.
    pub(crate) fn with(name: &str, voters: Voters) -> Self {
        let scratch = Scratch::new(name);
        Self {
            data: NAMES.map(|name| scratch.join(name)),
            scratch,
            voters,
            amqp: [free_port(), free_port()],
            replication: [free_port(), free_port()],
            segment_bytes: SEGMENT_BYTES,
            inside: [None, None],
            running: [None, None],
            names: ["test"; 2],
            lines: Default::default(),
            args: Default::default(),
        }
    }

    /// Members on machines 0 and 1, voters on 2, 3 and 4; nobody runs but those.
    pub(crate) fn over(name: &str, network: &Network) -> Self {
        let scratch = Scratch::new(name);
        let authority = Authority::new(&scratch.join("pki"), "ca");
        let at = |machine, port| SocketAddr::new(address(machine), port);
        let lines = |at: usize| authority.member_lines(NAMES[at], &address(at).to_string());
        let voters = Voters::over(
            &format!("{name}-voters"),
            (2..5).map(|machine| at(machine, 7101)).collect(),
            (2..5).map(|machine| network.inside(machine)).collect(),
            &authority,
        );
        Self {
            data: NAMES.map(|name| scratch.join(name)),
            voters,
            amqp: [at(0, 5672), at(1, 5672)],
            replication: [at(0, 7201), at(1, 7201)],
            segment_bytes: SEGMENT_BYTES,
            names: ["test"; 2],
            lines: [lines(0), lines(1)],
            args: Default::default(),
            inside: [0, 1].map(|machine| Some(network.inside(machine))),
            running: [None, None],
            scratch,
        }
    }

    /// Both are there: which one is live.
    pub(crate) fn up(name: &str) -> (Self, usize) {
        let mut pair = Self::new(name);
        let live = pair.start_both();
        (pair, live)
    }

    /// Until they are in sync: which one is live.
    pub(crate) fn start_both(&mut self) -> usize {
        self.start(0);
        self.start(1);
        self.wait_in_sync()
    }

    pub(crate) fn config(&self, at: usize) -> PathBuf {
        let path = self.scratch.join(&format!("{}.toml", NAMES[at]));
        let text = format!(
            "[ha]\npair = {:?}\nnode = \"{}\"\nreplication = \"{}\"\npeer = \"{}\"\n\
             voters = {:?}\n{}",
            self.names[at],
            NAMES[at],
            self.replication[at],
            self.replication[1 - at],
            self.voters.addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>(),
            self.lines[at],
        );
        fs::write(&path, text).expect("written");
        path
    }

    pub(crate) fn start(&mut self, at: usize) {
        let mut start = Start::new(&self.data[at]);
        start.output = self.scratch.join(&format!("{}.log", NAMES[at]));
        start.listen = Some(self.amqp[at]);
        start.durability = "replicated-sync";
        start.inside.clone_from(&self.inside[at]);
        start.args = vec!["--segment-size".into(), self.segment_bytes.to_string()];
        start.args.extend(["--config".into(), self.config(at).display().to_string()]);
        start.args.extend(self.args[at].iter().cloned());
        if start.inside.is_some() {
            start.args.push("--insecure".into());
        }
        self.running[at] = Some(start.spawn());
    }

    pub(crate) fn broker(&self, at: usize) -> &Broker {
        self.running[at].as_ref().expect("it runs")
    }

    pub(crate) fn kill(&mut self, at: usize) {
        self.running[at].take().expect("it runs").kill();
    }

    /// What a member says of itself; none while it says nothing.
    pub(crate) fn status(&self, at: usize) -> Option<Value> {
        let (status, body) = self.running[at].as_ref()?.http("/api/v1/ha")?;
        (status == 200).then(|| serde_json::from_str(&body).expect("JSON"))
    }

    pub(crate) fn role(&self, at: usize) -> Option<String> {
        self.status(at)?["role"].as_str().map(str::to_owned)
    }

    pub(crate) fn is_ready(&self, at: usize) -> bool {
        self.running[at].as_ref().is_some_and(Broker::is_ready)
    }

    /// SIGTERM, and its end in order.
    pub(crate) fn stop(&mut self, at: usize) {
        assert!(self.running[at].take().expect("it runs").stop().success(), "{}", self.said());
    }

    /// Asks the live to give the role to the other one.
    pub(crate) fn switch_over(&self, live: usize) {
        let url = format!("http://{}/api/v1/ha/switchover", self.broker(live).admin);
        ureq::post(url).send_empty().expect("it may");
    }

    /// Until it serves.
    pub(crate) fn wait_live(&self, at: usize) {
        self.wait("live", |pair| pair.is_ready(at) && pair.role(at).as_deref() == Some("live"));
    }

    /// Until one serves and the other is in sync: which one serves.
    pub(crate) fn wait_in_sync(&self) -> usize {
        self.wait("in sync", |pair| {
            let status: Vec<Value> = (0..2).filter_map(|at| pair.status(at)).collect();
            let in_sync = |status: &Value| status["in_sync"].as_array().map(Vec::len) == Some(2);
            (0..2).all(|at| pair.is_ready(at)) && status.len() == 2 && status.iter().all(in_sync)
        });
        let live = |at: &usize| self.role(*at).as_deref() == Some("live");
        let lives: Vec<usize> = (0..2).filter(live).collect();
        assert_eq!(lives.len(), 1, "one member is live: {}", self.said());
        lives[0]
    }

    pub(crate) fn wait(&self, what: &str, so: impl Fn(&Self) -> bool) {
        let since = Instant::now();
        while !so(self) {
            assert!(since.elapsed() < SO_WITHIN, "not {what} in time:\n{}", self.said());
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn said(&self) -> String {
        let said = |at: usize| {
            let log = fs::read_to_string(self.scratch.join(&format!("{}.log", NAMES[at])));
            let status = self.status(at);
            format!("{}: {status:?}\n{}", NAMES[at], log.unwrap_or_default())
        };
        said(0) + &said(1)
    }
}

/// Numbers that are sent and not answered.
const WINDOW: usize = 16;

/// Sends numbers to whoever takes them.
pub(crate) struct Producer {
    next: u64,
    /// In the order of sending.
    accepted: Vec<u64>,
    sent: BTreeSet<u64>,
}

impl Producer {
    pub(crate) const fn new() -> Self {
        Self { next: 0, accepted: Vec::new(), sent: BTreeSet::new() }
    }

    /// Sends `count` numbers and waits for each answer; an error is that of the connection, and
    /// what was not answered stays in doubt.
    pub(crate) fn send(&mut self, addr: SocketAddr, count: usize) -> Result<(), ClientError> {
        let mut client = Client::connect(addr, "numbers", Sasl::Anonymous, WITHIN)?;
        let link = client.sender(QUEUE)?;
        let mut open = Vec::new();
        let mut left = count;
        while left > 0 || !open.is_empty() {
            while left > 0 && open.len() < WINDOW {
                let number = self.next;
                let delivery = client.send(link, &durable_message(&number.to_be_bytes()))?;
                self.next += 1;
                self.sent.insert(number);
                open.push((delivery, number));
                left -= 1;
            }
            let (delivery, outcome) = client.next_outcome()?;
            let at = open.iter().position(|(sent, _)| *sent == delivery);
            let (_, number) = open.swap_remove(at.expect("an answer to what was sent"));
            assert!(matches!(outcome, Outcome::Accepted), "{number}: {outcome:?}");
            self.accepted.push(number);
        }
        Ok(())
    }

    /// Tries until one more number is accepted: how long that took.
    pub(crate) fn first_accepted(&mut self, addr: SocketAddr, since: Instant) -> Duration {
        let before = self.accepted.len();
        loop {
            drop(self.send(addr, 1));
            if self.accepted.len() > before {
                return since.elapsed();
            }
            assert!(since.elapsed() < WITHIN, "nobody takes anything");
            thread::sleep(TRY_EVERY);
        }
    }

    /// Takes everything: what was accepted is there, in order, and nothing that was never sent.
    pub(crate) fn check(&self, addr: SocketAddr) {
        let mut client =
            Client::connect(addr, "check", Sasl::Anonymous, Duration::from_secs(2)).expect("live");
        let link = client.receiver(QUEUE, 100).expect("a queue");
        let mut got = Vec::new();
        // The last wait ends by its time.
        while let Ok(received) = client.receive() {
            let data = data_of(&received.message).expect("one data section");
            got.push(u64::from_be_bytes(data.try_into().expect("a number")));
            client.accept(&received);
            client.grant(link, 1);
        }
        assert!(got.windows(2).all(|two| two[0] < two[1]), "in order, none twice");
        let there: BTreeSet<u64> = got.into_iter().collect();
        let lost: Vec<&u64> = self.accepted.iter().filter(|n| !there.contains(n)).collect();
        assert!(lost.is_empty(), "accepted and lost: {lost:?}");
        assert!(there.is_subset(&self.sent), "never sent");
    }
}

#[test]
fn a_pair_begins_with_empty_directories_in_any_order() {
    for first in [0, 1] {
        let mut pair = PairOf::new(&format!("pair-begin-{first}"));
        pair.start(first);
        thread::sleep(Duration::from_millis(500));
        assert_ne!(pair.role(first).as_deref(), Some("live"), "alone it does not know enough");
        pair.start(1 - first);
        let live = pair.wait_in_sync();
        let mut producer = Producer::new();
        producer.send(pair.amqp[live], 100).expect("accepted");
        producer.check(pair.amqp[live]);
        let backup = Client::connect(pair.amqp[1 - live], "x", Sasl::Anonymous, WITHIN);
        assert!(backup.is_err(), "a backup serves nobody");
    }
}

#[test]
fn each_address_of_a_pair_waits_for_its_own_level() {
    let mut pair = PairOf::new("pair-levels");
    let levels = [("alone", "sync"), ("received", "replicated"), ("both", "replicated-sync")];
    for lines in &mut pair.lines {
        for (name, level) in levels {
            lines.push_str(&format!("[[address]]\nmatch = {name:?}\ndurability = {level:?}\n"));
        }
    }
    let live = pair.start_both();
    let mut clients = levels.map(|(name, level)| {
        let wait = Duration::from_millis(if level == "sync" { 2000 } else { 100 });
        let mut client =
            Client::connect(pair.amqp[live], name, Sasl::Anonymous, wait).expect("live");
        let link = client.sender(name).expect("a link");
        (client, link, level)
    });
    let (_, body) = pair.broker(live).http("/api/v1/queues").expect("it serves");
    for (name, level) in levels {
        let queues: Value = serde_json::from_str(&body).expect("JSON");
        let mut queues = queues["queues"].as_array().expect("queues").iter();
        let queue = queues.find(|queue| queue["name"] == name).expect("it was made");
        assert_eq!(queue["durability"], level);
    }
    // While the backup sleeps and is in sync still, only who does not need it is answered.
    pair.broker(1 - live).signal(Signal::STOP);
    for (client, link, level) in clients.iter_mut().rev() {
        client.send(*link, &durable_message(b"m")).expect("it is sent");
        assert_eq!(client.next_outcome().is_ok(), *level == "sync", "{level}");
    }
    pair.broker(1 - live).signal(Signal::CONT);
}

#[test]
fn what_was_acknowledged_survives_kill_9_of_the_live() {
    let (kills, seed) = (knob("LAELAPS_PAIR_KILLS", 3), knob("LAELAPS_SEED", 1));
    println!("LAELAPS_SEED={seed}, {kills} kills");
    let (mut pair, mut live) = PairOf::up("pair-kill");
    let (mut chance, mut producer) = (Chance(seed), Producer::new());
    let mut gaps = Gaps::of("tries each 20 ms");
    for _ in 0..kills {
        let victim = pair.running[live].take().expect("it runs");
        let pause = Duration::from_millis(chance.between(50, 600));
        let killer = thread::spawn(move || {
            thread::sleep(pause);
            let at = Instant::now();
            victim.kill();
            at
        });
        // Ends with the connection.
        let ended = producer.send(pair.amqp[live], usize::MAX);
        assert!(ended.is_err(), "its broker was killed");
        let killed = killer.join().expect("killed");
        gaps.note(producer.first_accepted(pair.amqp[1 - live], killed));
        pair.start(live);
        live = pair.wait_in_sync();
    }
    println!(
        "{} accepted; from kill -9 to the first accepted at the other, ms:",
        producer.accepted.len()
    );
    gaps.print();
    assert!(gaps.most() <= DEAD_WITHIN, "a lease was waited for");
    if kills >= P90_KILLS {
        assert!(gaps.p90() <= DEAD_P90, "p90 is {:?}: the bound is {DEAD_P90:?}", gaps.p90());
    }
    assert!(producer.accepted.len() as u64 >= kills * 20, "hardly anything was accepted");
    producer.check(pair.amqp[live]);
}

#[test]
fn a_live_that_sleeps_has_lost_the_role_when_it_wakes() {
    let (pair, live) = PairOf::up("pair-sleep");
    let mut producer = Producer::new();
    producer.send(pair.amqp[live], 50).expect("accepted");
    let mut asleep =
        Client::connect(pair.amqp[live], "asleep", Sasl::Anonymous, Duration::from_secs(1))
            .expect("live");
    let link = asleep.sender("asleep").expect("a link");
    pair.broker(live).signal(Signal::STOP);
    let stopped = Instant::now();
    let gap = producer.first_accepted(pair.amqp[1 - live], stopped);
    println!("from SIGSTOP to the first accepted at the other: {} ms", gap.as_millis());
    // What waits in its socket when it wakes is not accepted any more.
    asleep.send(link, &durable_message(b"late")).expect("it is only sent");
    pair.broker(live).signal(Signal::CONT);
    assert!(asleep.next_outcome().is_err(), "accepted by who was not live any more");
    assert_eq!(pair.wait_in_sync(), 1 - live);
    producer.check(pair.amqp[1 - live]);
}

#[test]
fn without_a_majority_of_voters_nobody_serves() {
    let (mut pair, live) = PairOf::up("pair-majority");
    let mut producer = Producer::new();
    producer.send(pair.amqp[live], 50).expect("accepted");
    (0..2).for_each(|at| pair.voters.kill(at));
    let since = Instant::now();
    pair.wait("fenced", |pair| (0..2).all(|at| pair.role(at).as_deref() != Some("live")));
    println!("fenced after {} ms", since.elapsed().as_millis());
    for addr in pair.amqp {
        let refused = Client::connect(addr, "x", Sasl::Anonymous, Duration::from_secs(1));
        assert!(refused.is_err(), "somebody serves without a majority");
    }
    (0..2).for_each(|at| pair.voters.start(at));
    let live = pair.wait_in_sync();
    producer.send(pair.amqp[live], 50).expect("accepted again");
    producer.check(pair.amqp[live]);
}

#[test]
fn who_was_left_behind_waits_for_who_went_on_alone() {
    let (mut pair, live) = PairOf::up("pair-behind");
    let mut producer = Producer::new();
    producer.send(pair.amqp[live], 50).expect("accepted");
    let backup = 1 - live;
    pair.kill(backup);
    // First it waits for the backup, then the voters leave that out.
    producer.send(pair.amqp[live], 200).expect("accepted alone");
    pair.kill(live);
    pair.start(backup);
    thread::sleep(Duration::from_secs(5));
    assert_eq!(pair.role(backup).as_deref(), Some("joining"), "{}", pair.said());
    pair.start(live);
    pair.wait_live(live);
    assert_eq!(pair.wait_in_sync(), live);
    producer.check(pair.amqp[live]);
}

#[test]
fn a_stop_and_a_switchover_give_the_role_away_at_once() {
    let (mut pair, live) = PairOf::up("pair-stop");
    let mut producer = Producer::new();
    producer.send(pair.amqp[live], 100).expect("accepted");
    let renewed = |pair: &PairOf| pair.status(live).and_then(|s| s["renewals_total"].as_u64());
    pair.wait("renewed", |pair| renewed(pair) > Some(2));
    let (_, metrics) = pair.broker(live).http("/metrics").expect("it answers");
    assert!(metrics.contains("laelaps_pair_renewal_ms_bucket{le=\"5000\"} "), "{metrics}");
    assert!(metrics.contains("laelaps_pair_lease_too_short "), "{metrics}");
    let stopped = Instant::now();
    let broker = pair.running[live].take().expect("it runs");
    let stopping = thread::spawn(move || broker.stop());
    let gap = producer.first_accepted(pair.amqp[1 - live], stopped);
    println!("from SIGTERM to the first accepted at the other: {} ms", gap.as_millis());
    assert!(gap < Duration::from_millis(1500), "a lease was waited for: {gap:?}");
    assert!(stopping.join().expect("stopped").success());
    pair.start(live);
    assert_eq!(pair.wait_in_sync(), 1 - live);

    let asked = Instant::now();
    pair.switch_over(1 - live);
    let gap = producer.first_accepted(pair.amqp[live], asked);
    println!("from switchover to the first accepted at the other: {} ms", gap.as_millis());
    assert_eq!(pair.wait_in_sync(), live);
    assert!(pair.said().contains("begins anew: the role is given away"), "{}", pair.said());
    producer.check(pair.amqp[live]);
}

/// Several laps of a log go through the live.
fn churn(addr: SocketAddr) {
    let mut client = Client::connect(addr, "churn", Sasl::Anonymous, WITHIN).expect("live");
    let (sender, receiver) = (client.sender("churn"), client.receiver("churn", 10));
    let (sender, receiver) = (sender.expect("a link"), receiver.expect("a link"));
    for _ in 0..400 {
        client.send(sender, &durable_message(&[7; 100_000])).expect("sent");
        let received = client.receive().expect("it comes back");
        client.accept(&received);
        client.grant(receiver, 1);
    }
    client.close().expect("settled");
}

#[test]
fn a_member_that_was_away_for_laps_or_is_empty_is_brought_up_whole() {
    for is_emptied in [false, true] {
        let (mut pair, live) = PairOf::up(&format!("pair-install-{is_emptied}"));
        let mut producer = Producer::new();
        producer.send(pair.amqp[live], 100).expect("accepted");
        let backup = 1 - live;
        pair.kill(backup);
        churn(pair.amqp[live]);
        // The log is held for a member that was there a moment ago.
        thread::sleep(Duration::from_secs(11));
        churn(pair.amqp[live]);
        producer.send(pair.amqp[live], 100).expect("accepted alone");
        if is_emptied {
            fs::remove_dir_all(pair.scratch.join(NAMES[backup])).expect("removed");
        }
        pair.start(backup);
        assert_eq!(pair.wait_in_sync(), live);
        assert!(pair.said().contains("begins anew where this log begins"), "{}", pair.said());
        producer.send(pair.amqp[live], 100).expect("accepted by both");
        pair.kill(live);
        pair.wait_live(backup);
        producer.check(pair.amqp[backup]);
    }
}

fn laelaps(args: &[&str]) -> (bool, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_laelaps")).args(args).output();
    let output = output.expect("the program runs");
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn what_a_forced_promotion_overrules_is_kept_and_can_be_replayed() {
    let mut pair = PairOf::new("pair-force");
    let authority = Authority::new(pair.scratch.path(), "a");
    let files = authority.server("localhost");
    let amqps = [free_port(), free_port()];
    for (args, amqps) in pair.args.iter_mut().zip(amqps) {
        args.extend(["--tls-listen".into(), amqps.to_string()]);
        args.extend(["--tls-cert".into(), files.cert.display().to_string()]);
        args.extend(["--tls-key".into(), files.key.display().to_string()]);
    }
    let lost = pair.start_both();
    let mut producer = Producer::new();
    producer.send(pair.amqp[lost], 50).expect("accepted");
    // One begins while both are there, and comes to its end when one has gone.
    let mut slow = Peer::connect(pair.amqp[lost], 16 << 10);
    let session = slow.session();
    let long = slow.link(session, "long", "long".to_owned(), false);
    let session = slow.session();
    let short = slow.link(session, "long", "short".to_owned(), false);
    half_sent::begin(&mut slow, long, 3, LONG, LONG / 2);
    half_sent::begin(&mut slow, short, 4, 200, 100);
    slow.send_on(short, &half_sent::bytes_of(4, 100, 100).into(), true);
    assert_eq!(slow.outcome(), Outcome::Accepted, "with all that came before it");
    let other = 1 - lost;
    pair.kill(other);
    producer.send(pair.amqp[lost], 50).expect("accepted alone");
    slow.send_on(long, &half_sent::bytes_of(3, LONG / 2, LONG / 2).into(), true);
    assert_eq!(slow.outcome(), Outcome::Accepted);
    drop(slow);
    pair.kill(lost);
    pair.start(other);
    pair.wait("left behind", |pair| pair.role(other).as_deref() == Some("joining"));
    let url = format!("http://{}", pair.broker(other).admin);
    let promote = |lose: &str| {
        laelaps(&["ha", "promote", "--force-data-loss", "--yes-i-lose", lose, "--admin", &url])
    };
    assert!(
        !laelaps(&["ha", "promote", "--force-data-loss", "--admin", &url]).0,
        "it is not named"
    );
    let (is_done, said) = promote(NAMES[other]);
    assert!(!is_done && said.contains("name the other one"), "{said}");
    pair.wait("promoted", |_| promote(NAMES[lost]).0);
    pair.wait_live(other);
    let status = pair.status(other).expect("it says so");
    assert_eq!(status["forced"].as_array().map(Vec::len), Some(1), "{status}");

    pair.start(lost);
    assert_eq!(pair.wait_in_sync(), other);
    let status = pair.status(lost).expect("it says so");
    assert!(status["exported_deltas"].as_u64() >= Some(1), "{status}");
    let exports = pair.scratch.join(NAMES[lost]).join("exports");
    let files: Vec<String> = fs::read_dir(exports)
        .expect("exports")
        .map(|entry| entry.expect("readable").path().display().to_string())
        .collect();
    let to = pair.amqp[other].to_string();
    let to_tls = format!("amqps://localhost:{}", amqps[other].port());
    let ca = authority.trusting(None).tls_ca.expect("its own").display().to_string();
    let stranger = Authority::new(pair.scratch.path(), "b").trusting(None);
    let wrong_ca = stranger.tls_ca.expect("its own").display().to_string();
    let replay = |to: &str, more: &[&str]| {
        let mut args = vec!["journal", "replay", "--to", to, "--admin", &url];
        args.extend(more);
        args.extend(files.iter().map(String::as_str));
        laelaps(&args)
    };
    let (is_done, said) = replay(&to, &["--dry-run"]);
    assert!(is_done && said.contains("may have been acknowledged"), "{said}");
    let (is_done, said) = replay(&to_tls, &["--tls-ca", &wrong_ca]);
    assert!(!is_done && said.contains("is it with TLS?"), "{said}");
    for (to, more) in [(&to, &[][..]), (&to_tls, &["--tls-ca", &ca])] {
        let (is_done, said) = replay(to, more);
        assert!(is_done && said.contains("51 messages accepted"), "{said}");
    }
    // They come behind what was there, once each.
    producer.check(pair.amqp[other]);
    let mut peer = Peer::connect(pair.amqp[other], 1 << 20);
    let session = peer.session();
    let link = peer.link(session, "long", "all".to_owned(), true);
    peer.amqp.grant_credit(link, 9);
    assert_eq!(half_sent::receive(&mut peer, link, 200), 4);
    assert_eq!(half_sent::receive(&mut peer, link, LONG), 3);
}

#[test]
fn where_the_voters_lost_everything_an_operator_says_who_begins() {
    let (mut pair, live) = PairOf::up("pair-bootstrap");
    let mut producer = Producer::new();
    producer.send(pair.amqp[live], 50).expect("accepted");
    pair.kill(1 - live);
    producer.send(pair.amqp[live], 50).expect("accepted alone");
    let url = format!("http://{}", pair.broker(live).admin);
    let bootstrap = |admin: &str| {
        laelaps(&["ha", "bootstrap", "--yes-without", NAMES[1 - live], "--admin", admin])
    };
    let (is_done, said) = bootstrap(&url);
    assert!(!is_done && said.contains("the voters hold a record"), "{said}");
    pair.kill(live);
    pair.voters.lose_everything();
    pair.start(live);
    pair.wait("waiting", |pair| {
        let waits =
            pair.status(live).and_then(|status| status["waits"].as_str().map(str::to_owned));
        waits.is_some_and(|waits| waits.starts_with("for the other member: the voters hold no"))
    });
    let url = format!("http://{}", pair.broker(live).admin);
    let promote = ["ha", "promote", "--force-data-loss", "--yes-i-lose", NAMES[1 - live]];
    let (is_done, said) = laelaps(&[&promote[..], &["--admin", &url]].concat());
    assert!(!is_done && said.contains("laelaps ha bootstrap"), "{said}");
    let (_, said) = laelaps(&["ha", "status", "--admin", &url]);
    assert!(said.contains("before one is made both must say what they hold"), "{said}");
    let (is_done, said) = bootstrap(&url);
    assert!(is_done, "{said}");
    pair.wait_live(live);
    pair.start(1 - live);
    assert_eq!(pair.wait_in_sync(), live);
    producer.check(pair.amqp[live]);
}

/// Which member serves, once one does.
fn serving(pair: &PairOf) -> usize {
    let live =
        |pair: &PairOf, at: usize| pair.is_ready(at) && pair.role(at).as_deref() == Some("live");
    pair.wait("live", |pair| (0..2).any(|at| live(pair, at)));
    (0..2).find(|at| live(pair, *at)).expect("one is")
}

#[test]
#[ignore = "needs the foreign clients: tests/run pair"]
fn failovers_lose_nothing_that_foreign_clients_were_promised() {
    let (kills, seed) = (knob("LAELAPS_PAIR_KILLS", 3), knob("LAELAPS_SEED", 1));
    println!("LAELAPS_SEED={seed}, {kills} kills");
    let (mut pair, mut live) = PairOf::up("pair-load");
    let mut chance = Chance(seed);
    let mut address = Address::new(pair.scratch.join("address"));
    address.set(pair.amqp[live]);
    let mut loads = vec![
        Load::start(Foreign::Proton, proton_roles(), address.path()),
        Load::start(Foreign::Rhea, rhea_roles(), address.path()),
    ];
    let accepted = |loads: &[Load]| -> usize {
        loads.iter().map(|load| load.count(|what| matches!(what, What::Accepted { .. }))).sum()
    };
    for _ in 0..kills {
        let before = accepted(&loads);
        while accepted(&loads) < before + 20 {
            loads.iter_mut().for_each(Load::assert_running);
            thread::sleep(Duration::from_millis(5));
        }
        thread::sleep(Duration::from_micros(chance.between(0, 900_000)));
        address.clear();
        pair.kill(live);
        let other = serving(&pair);
        address.set(pair.amqp[other]);
        pair.start(live);
        live = pair.wait_in_sync();
        assert_eq!(live, other, "it goes on where it went");
    }
    thread::sleep(Duration::from_secs(1));
    let events = finish_and_drain(loads, &address);
    let verdict = check(events, &Rules { strict: STRICT, may_lose: false, crashes: true });
    println!(
        "{kills} failovers: {} accepted, {} received, {} of them again",
        verdict.accepted.values().sum::<usize>(),
        verdict.received,
        verdict.redelivered
    );
    verdict.assert_clean();
}
