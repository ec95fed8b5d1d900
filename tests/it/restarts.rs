//! A pair that is stopped, killed, started and switched over under clients that nobody restarts.
//!
//! ```text
//!   one       {live, backup} x {stop, kill}                       the other serves, it comes back
//!   both      {live, backup} first x {stop, kill} x {stop, kill} x {first, last} started first
//!             who went last has what was accepted last, and serves; who went first waits for it
//!   at once   both killed in one moment, either started first     both had all: the first serves
//!   together  as both and at once, both started in one moment
//!   switchover  x LAELAPS_PAIR_SWITCHOVERS, producers with duplicate ids
//!   stuck       a disk that does not fail, but stands
//! ```
//! Which member is to serve stands beside each step. Traffic flows before, between and after: two
//! producers and a consumer (`roam.rs`), judged by `check.rs`. LAELAPS_PAIR_RESTARTS=all makes the
//! whole matrix, a short one else.

use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{Scratch, knob};
use crate::pair::PairOf;
use crate::power_fs::PowerFs;
use crate::roam::{Clients, Role};

const WITHIN: Duration = Duration::from_secs(30);
/// More than a lease and all that is waited beside it: who serves after that may.
const LONG_ALONE: Duration = Duration::from_secs(3);
/// A log must reach back to where the other member left it.
const SEGMENT_BYTES: u64 = 64 * 1024 * 1024;
/// Has one consumer, which takes everything.
const TAKEN: &str = "taken";
/// Has none before the end.
const KEPT: &str = "kept";

/// How a member goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Stop,
    Kill,
}

/// Who comes back first of two that are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Back {
    /// Who went first, alone for a while.
    First,
    /// Who went last, alone until it serves.
    Last,
    Together,
}

/// A pair and the clients that it has.
struct World {
    pair: PairOf,
    live: usize,
    clients: Clients,
}

impl World {
    fn new(name: &str, repeats: bool) -> Self {
        let mut pair = PairOf::new(name);
        pair.segment_bytes = SEGMENT_BYTES;
        (0..2).for_each(|at| pair.start(at));
        let live = pair.wait_in_sync();
        Self::with(pair, live, repeats)
    }

    fn with(pair: PairOf, live: usize, repeats: bool) -> Self {
        let role = |name, queue, pause| Role {
            name,
            queue,
            addresses: pair.amqp.to_vec(),
            pause: Duration::from_millis(pause),
            repeats,
            inside: None,
        };
        let mut clients = Clients::new();
        clients.produce(role("p", TAKEN, 10));
        clients.produce(role("k", KEPT, 10));
        clients.consume(role("c", TAKEN, 0));
        Self { pair, live, clients }
    }

    fn end(&mut self, at: usize, way: Way) {
        match way {
            Way::Stop => self.pair.stop(at),
            Way::Kill => self.pair.kill(at),
        }
    }

    /// Some more messages are accepted.
    fn traffic(&self) {
        let (since, before) = (Instant::now(), self.clients.accepted());
        while self.clients.accepted() < before + 100 {
            assert!(since.elapsed() < WITHIN, "nothing is accepted:\n{}", self.pair.said());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Both are there, this one is live, and clients are served.
    fn wait_in_sync(&mut self, live: usize) {
        assert_eq!(self.pair.wait_in_sync(), live, "the wrong one serves:\n{}", self.pair.said());
        self.live = live;
        self.traffic();
    }

    /// One goes and comes back; the other one serves then.
    fn one(&mut self, at: usize, way: Way) {
        let other = 1 - at;
        self.end(at, way);
        self.pair.wait_live(other);
        self.traffic();
        self.pair.start(at);
        self.wait_in_sync(other);
    }

    /// One goes, the other serves alone and goes; both come back.
    fn both(&mut self, first: usize, ways: [Way; 2], back: Back) {
        let last = 1 - first;
        self.end(first, ways[0]);
        self.pair.wait_live(last);
        self.traffic();
        self.end(last, ways[1]);
        match back {
            Back::First => {
                self.pair.start(first);
                thread::sleep(LONG_ALONE);
                let role = self.pair.role(first);
                assert_eq!(role.as_deref(), Some("joining"), "{}", self.pair.said());
                self.pair.start(last);
            }
            Back::Last => {
                self.pair.start(last);
                self.pair.wait_live(last);
                self.traffic();
                self.pair.start(first);
            }
            Back::Together => {
                self.pair.start(first);
                self.pair.start(last);
            }
        }
        self.wait_in_sync(last);
    }

    /// Both are killed in one moment; who comes back first serves, since both have everything.
    fn at_once(&mut self, back: usize) {
        let killed = [0, 1].map(|at| self.pair.running[at].take().expect("it runs"));
        let killers = killed.map(|broker| thread::spawn(move || broker.kill()));
        killers.into_iter().for_each(|killer| killer.join().expect("killed"));
        self.pair.start(back);
        self.pair.wait_live(back);
        self.traffic();
        self.pair.start(1 - back);
        self.wait_in_sync(back);
    }

    /// Both are killed and started in one moment: either may serve.
    fn at_once_together(&mut self) {
        let killed = [0, 1].map(|at| self.pair.running[at].take().expect("it runs"));
        let killers = killed.map(|broker| thread::spawn(move || broker.kill()));
        killers.into_iter().for_each(|killer| killer.join().expect("killed"));
        (0..2).for_each(|at| self.pair.start(at));
        let live = self.pair.wait_in_sync();
        self.wait_in_sync(live);
    }

    /// What was accepted is there, in order, and nothing comes twice that was not given back.
    fn judge(self) -> Duration {
        let Self { pair, mut clients, .. } = self;
        clients.consume(Role {
            name: "d",
            queue: KEPT,
            addresses: pair.amqp.to_vec(),
            pause: Duration::ZERO,
            repeats: false,
            inside: None,
        });
        clients.finish().judge(&[TAKEN, KEPT])
    }
}

#[test]
#[ignore = "takes a minute: tests/run pair"]
fn whoever_goes_and_comes_back_in_whatever_order_the_right_one_serves() {
    use Back::{First, Last, Together};
    use Way::{Kill, Stop};
    let is_whole = std::env::var("LAELAPS_PAIR_RESTARTS").is_ok_and(|value| value == "all");
    let mut world = World::new("pair-restarts", false);
    for way in [Stop, Kill] {
        world.one(world.live, way);
        world.one(1 - world.live, way);
    }
    for back in [0, 1] {
        world.at_once(back);
    }
    world.at_once_together();
    let short = [
        (true, [Stop, Kill], First),
        (true, [Kill, Stop], Last),
        (false, [Kill, Kill], First),
        (false, [Stop, Stop], Together),
    ];
    let firsts = [true, false].into_iter();
    let all = firsts.flat_map(|is_live| {
        [[Stop, Stop], [Stop, Kill], [Kill, Stop], [Kill, Kill]].into_iter().flat_map(move |ways| {
            [First, Last, Together].into_iter().map(move |back| (is_live, ways, back))
        })
    });
    let plan: Vec<_> = if is_whole { all.collect() } else { short.to_vec() };
    for (is_live, ways, back) in plan {
        let first = if is_live { world.live } else { 1 - world.live };
        let began = Instant::now();
        world.both(first, ways, back);
        let who = if is_live { "live" } else { "backup" };
        println!("{who} first, {ways:?}, back: {back:?}: {} ms", began.elapsed().as_millis());
    }
    world.judge();
}

#[test]
#[ignore = "takes half a minute: tests/run pair"]
fn switchovers_under_load_lose_nothing_and_store_nothing_twice() {
    let switchovers = knob("LAELAPS_PAIR_SWITCHOVERS", 5);
    let mut world = World::new("pair-switch", true);
    world.traffic();
    for _ in 0..switchovers {
        let (old, new) = (world.live, 1 - world.live);
        world.pair.switch_over(old);
        world.pair.wait_live(new);
        world.wait_in_sync(new);
    }
    let gap = world.judge();
    println!("{switchovers} switchovers");
    assert!(gap < Duration::from_secs(1), "nothing was accepted for {gap:?}");
}

/// How long a write may be under way, as `docs/operating/high-availability.md` says.
const WRITE_AGE: Duration = Duration::from_secs(2);

#[test]
#[ignore = "needs the file system that stands: tests/run pair"]
fn a_disk_that_stands_costs_the_live_its_role() {
    let home = Scratch::new("pair-stuck-disk");
    let mut disk = PowerFs::mount(home.join("disk"), 1);
    let mut pair = PairOf::new("pair-stuck");
    pair.data[0] = disk.dir().join("a");
    (0..2).for_each(|at| pair.start(at));
    if pair.wait_in_sync() == 1 {
        pair.switch_over(1);
        pair.wait_live(0);
        pair.wait_in_sync();
    }
    let mut world = World::with(pair, 0, false);
    world.traffic();
    disk.ask(format!("delay-write {}", Duration::from_secs(15).as_micros()));
    let stuck = Instant::now();
    world.pair.wait_live(1);
    world.traffic();
    let first = world.clients.first_by(world.pair.amqp[1], stuck).expect("it serves");
    let took = first - stuck;
    println!("from a disk that stands to the first accepted at the other: {} ms", took.as_millis());
    assert!(took < WRITE_AGE * 2, "the role went too late: {took:?}");
    // It does its writes after all.
    disk.ask("delay-write 0");
    world.wait_in_sync(1);
    world.judge();
}
