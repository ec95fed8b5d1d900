//! A pair on machines of its own, between which wires are cut, and machines that die.
//!
//! ```text
//!   machine  0, 1      members, and a producer each that knows its own broker alone
//!            2, 3, 4   voters
//!            5         a producer and a consumer that go where they are served
//!
//!   cut                                 who serves then
//!   live | backup                       the live, alone
//!   live | majority of the voters       the backup
//!   backup | majority of the voters     the live
//!   live | everybody                    the backup
//!   the voters' leader | everybody      the live
//! ```
//! Each of them both ways, and each way alone; LAELAPS_PAIR_WIRES times (1). The majority is one
//! with the voters' leader, through which everything goes.
//!
//! Never do two brokers accept at one time, by what the clients on both saw. Who has lost the
//! majority stops answering within its lease. When the wires are whole again the pair comes in sync
//! by itself. In the end everything that was accepted is there, in order.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::backoff::{Gaps, Watched};
use crate::harness::knob;
use crate::machines::Network;
use crate::pair::PairOf;
use crate::roam::{Clients, Role};

/// `lease-ms`.
const LEASE: Duration = Duration::from_secs(2);
/// For one that is cut off.
const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(7);
/// For a machine that dies; a debug build, beside others, may take longer.
const DEAD_WITHIN: Duration = Duration::from_secs(if cfg!(debug_assertions) { 5 } else { 3 });
/// Who is to go on serves through so many leases.
const HELD: Duration = Duration::from_secs(6);
/// A log must reach back to where the other member left it.
const SEGMENT_BYTES: u64 = 64 * 1024 * 1024;
/// A machine that has died stays away for so long, where somebody still waits.
const AWAY: Duration = Duration::from_secs(40);
/// What the libraries are given for their idle timeout.
const SILENCE: Duration = Duration::from_secs(2);
/// Has one consumer, which takes everything.
const TAKEN: &str = "taken";
/// Has none before the end.
const KEPT: &str = "kept";

#[derive(Clone, Copy, Debug)]
enum Between {
    LiveAndBackup,
    LiveAndMajority,
    BackupAndMajority,
    LiveAndAll,
    LeaderAndAll,
}

#[derive(Clone, Copy, Debug)]
enum Lost {
    Both,
    /// What the first one sends.
    Sent,
    /// What is sent to it.
    Received,
}

struct World {
    network: Network,
    pair: PairOf,
    live: usize,
    clients: Clients,
}

impl World {
    /// None where tests that need such machines are left out.
    fn new(name: &str) -> Option<Self> {
        let network = Network::new(6)?;
        let mut pair = PairOf::over(name, &network);
        pair.segment_bytes = SEGMENT_BYTES;
        (0..2).for_each(|at| pair.start(at));
        let live = pair.wait_in_sync();
        let role = |name, queue, at: usize, addresses: &[SocketAddr]| Role {
            name,
            queue,
            addresses: addresses.to_vec(),
            pause: Duration::from_millis(10),
            repeats: false,
            inside: Some(network.inside(at)),
        };
        let mut clients = Clients::new();
        clients.produce(role("a", KEPT, 0, &pair.amqp[..1]));
        clients.produce(role("b", KEPT, 1, &pair.amqp[1..]));
        clients.produce(role("p", TAKEN, 5, &pair.amqp));
        clients.consume(role("c", TAKEN, 5, &pair.amqp));
        let world = Self { network, pair, live, clients };
        world.traffic(live, Instant::now());
        Some(world)
    }

    /// The first acceptance by this one from then on.
    fn traffic(&self, by: usize, from: Instant) -> Instant {
        let since = Instant::now();
        loop {
            if let Some(at) = self.clients.first_by(self.pair.amqp[by], from) {
                return at;
            }
            let waits = since.elapsed() < TAKEN_OVER_WITHIN * 2;
            assert!(waits, "nothing is accepted by {by}:\n{}", self.pair.said());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The two sides of a cut, and whether the live goes on.
    fn sides(&self, between: Between) -> (usize, Vec<usize>, bool) {
        let (live, backup) = (self.live, 1 - self.live);
        let leader = 2 + self.pair.voters.leader().expect("one leads");
        let majority = vec![leader, if leader == 4 { 2 } else { leader + 1 }];
        match between {
            Between::LiveAndBackup => (live, vec![backup], true),
            Between::LiveAndMajority => (live, majority, false),
            Between::BackupAndMajority => (backup, majority, true),
            Between::LiveAndAll => (live, vec![backup, 2, 3, 4], false),
            Between::LeaderAndAll => (leader, (0..5).filter(|at| *at != leader).collect(), true),
        }
    }

    fn cut(&mut self, between: Between, lost: Lost) {
        let (one, others, goes_on) = self.sides(between);
        let (live, backup) = (self.live, 1 - self.live);
        let cut = Instant::now();
        for other in others {
            if let Lost::Both | Lost::Sent = lost {
                self.network.cut(one, other);
            }
            if let Lost::Both | Lost::Received = lost {
                self.network.cut(other, one);
            }
        }
        let done = Instant::now();
        let ahead = self.pair.amqp[backup];
        if goes_on {
            thread::sleep(HELD);
            self.traffic(live, Instant::now());
            let other = self.clients.first_by(ahead, cut);
            assert!(other.is_none(), "two may serve:\n{}", self.pair.said());
            println!("{between:?}, lost: {lost:?}: {live} goes on");
        } else {
            let first = self.traffic(backup, cut);
            // Whatever the old one still answers, it answers now.
            thread::sleep(LEASE);
            let last = self
                .clients
                .last_by(self.pair.amqp[live])
                .map_or(Duration::ZERO, |last| last.saturating_duration_since(done));
            let took = first.saturating_duration_since(done);
            println!(
                "{between:?}, lost: {lost:?}: the last accepted by {live} after {} ms, the first \
                 by {backup} after {} ms",
                last.as_millis(),
                took.as_millis()
            );
            assert!(last <= LEASE, "it answered after its lease");
            assert!(took <= TAKEN_OVER_WITHIN, "taken over too late");
            self.live = backup;
        }
        self.network.heal();
        let healed = Instant::now();
        assert_eq!(self.pair.wait_in_sync(), self.live, "{}", self.pair.said());
        println!("  in sync {} ms after the wires are whole", healed.elapsed().as_millis());
        self.traffic(self.live, Instant::now());
    }

    /// Libraries on the machine of the clients, which ask for a frame from their broker each so
    /// often: nothing else tells them that its machine is gone.
    fn watched(&self) -> Vec<Watched> {
        let list = self.pair.amqp.map(|at| at.to_string());
        let connect = json!({"do": "connect", "port": self.pair.amqp[0].port(), "failover": list,
            "idle_ms": SILENCE.as_millis() as u64});
        Watched::both(Some(&self.network.inside(5)), &connect)
    }

    /// Its plug is pulled, then everything on it is killed: when the other one accepts from us, and
    /// from each of those while the dead machine stays away.
    fn die(&mut self, watched: &[Watched]) -> (Duration, Vec<Option<Duration>>) {
        let (live, backup) = (self.live, 1 - self.live);
        let cut = Instant::now();
        self.network.unplug(live);
        self.network.kill_all(live);
        self.pair.kill(live);
        let took = self.traffic(backup, cut) - cut;
        // What was on its way is over by then.
        let dead = cut + took;
        let theirs = watched.iter().map(|one| {
            let left = AWAY.saturating_sub(cut.elapsed());
            one.first_from(dead, left).map(|at| at - cut)
        });
        let theirs = theirs.collect();
        self.network.heal();
        self.pair.start(live);
        self.live = backup;
        assert_eq!(self.pair.wait_in_sync(), backup, "{}", self.pair.said());
        self.traffic(backup, Instant::now());
        (took, theirs)
    }

    fn judge(self) {
        let Self { network, pair, mut clients, .. } = self;
        clients.consume(Role {
            name: "d",
            queue: KEPT,
            addresses: pair.amqp.to_vec(),
            pause: Duration::ZERO,
            repeats: false,
            inside: Some(network.inside(5)),
        });
        let seen = clients.finish();
        seen.assert_one_at_a_time();
        seen.judge(&[TAKEN, KEPT]);
    }
}

#[test]
#[ignore = "needs root, and three minutes: tests/run pair"]
fn whatever_wire_is_cut_one_broker_accepts_at_a_time() {
    let Some(mut world) = World::new("pair-cuts") else { return };
    for _ in 0..knob("LAELAPS_PAIR_WIRES", 1) {
        for between in [
            Between::LiveAndBackup,
            Between::LiveAndMajority,
            Between::BackupAndMajority,
            Between::LiveAndAll,
            Between::LeaderAndAll,
        ] {
            for lost in [Lost::Both, Lost::Sent, Lost::Received] {
                world.cut(between, lost);
            }
        }
    }
    world.judge();
}

#[test]
#[ignore = "needs root and the foreign clients: tests/run pair"]
fn the_other_one_accepts_soon_after_a_machine_has_died() {
    let Some(mut world) = World::new("pair-deaths") else { return };
    let watched = world.watched();
    let mut ours = Gaps::of("tries each 20 ms");
    let mut theirs: Vec<Gaps> = watched.iter().map(|one| Gaps::of(one.name)).collect();
    for _ in 0..knob("LAELAPS_PAIR_DEATHS", 3) {
        for one in &watched {
            if one.first_from(Instant::now(), AWAY).is_none() {
                println!("{} has not come back since the last death", one.name);
            }
        }
        let (took, watched_took) = world.die(&watched);
        ours.note(took);
        for (gaps, took) in theirs.iter_mut().zip(watched_took) {
            gaps.note(took.unwrap_or(AWAY));
        }
    }
    println!(
        "from the cut to the first accepted at the other, ms ({} s: not before the machine was \
         back); these libraries ask for a frame each {} s:",
        AWAY.as_secs(),
        SILENCE.as_secs()
    );
    std::iter::once(&mut ours).chain(&mut theirs).for_each(Gaps::print);
    assert!(ours.most() <= DEAD_WITHIN, "taken over too late: the bound is {DEAD_WITHIN:?}");
    watched.into_iter().for_each(Watched::finish);
    world.judge();
}
