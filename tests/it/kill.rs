//! `kill -9` at random moments under two clients that others wrote.
//!
//! ```text
//!   queue     producers           consumers                          what it shows
//!   alone     proton, rhea        proton: detach                     order, nothing left out
//!   asked     proton, rhea        rhea: outcome                  the broker settles when durable
//!   shared    proton, rhea        proton, rhea: mixed                returned and failed messages
//!   kept      proton              none, until the drain at the end   all of it is there
//!
//!   (start, some hundred milliseconds, SIGKILL) x LAELAPS_KILLS, start, drain, judge (`check.rs`)
//! ```
//!
//! The same load goes through some stops by SIGTERM, each of which must end with 0 in time.
//!
//! What `kill -9` can't show is whether anything was synced: the page cache survives it. That is
//! `power.rs`.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::check::{Rules, Verdict, check};
use crate::harness::{Broker, Chance, Scratch, Start, knob};
use crate::load::{Address, Client, Event, Load, What};

/// Queues whose one consumer settles all that it gets.
pub(crate) const STRICT: &[&str] = &["alone", "asked"];
const QUEUES: &[&str] = &["alone", "asked", "shared", "kept"];

/// The roles of the Proton process.
pub(crate) fn proton_roles() -> Value {
    json!({
        "producers": [
            {"name": "pa", "queue": "alone", "window": 20, "body": 300, "pause_ms": 4},
            {"name": "pb", "queue": "asked", "window": 20, "body": 900, "pause_ms": 4},
            {"name": "pc", "queue": "shared", "window": 20, "body": 100, "pause_ms": 6},
            {"name": "pk", "queue": "kept", "window": 5, "body": 5000, "pause_ms": 25},
        ],
        "consumers": [
            {"name": "ca", "queue": "alone", "style": "detach", "credit": 30, "batch": 25},
            {"name": "cc", "queue": "shared", "style": "mixed", "credit": 10, "batch": 25},
        ],
    })
}

/// The roles of the rhea process.
pub(crate) fn rhea_roles() -> Value {
    json!({
        "producers": [
            {"name": "ra", "queue": "alone", "window": 20, "body": 300, "pause_ms": 4},
            {"name": "rb", "queue": "asked", "window": 20, "body": 9000, "pause_ms": 6},
            {"name": "rc", "queue": "shared", "window": 20, "body": 100, "pause_ms": 6},
        ],
        "consumers": [
            {"name": "cb", "queue": "asked", "style": "outcome", "credit": 30},
            {"name": "cd", "queue": "shared", "style": "mixed", "credit": 10, "batch": 25},
        ],
    })
}

/// Ends the load, takes what is left in the queues, and hands out all events.
pub(crate) fn finish_and_drain(loads: Vec<Load>, address: &Address) -> Vec<Event> {
    let mut events: Vec<Event> = loads.into_iter().flat_map(Load::finish).collect();
    for queue in QUEUES {
        let name = format!("drain-{queue}");
        let consumer = json!({"name": name, "queue": queue, "style": "drain", "credit": 100});
        let drain = Load::start(Client::Proton, json!({"consumers": [consumer]}), address.path());
        wait_for(&drain, |what| matches!(what, What::Drained), 1);
        events.extend(drain.finish());
    }
    events
}

/// Waits until a client has said something `times` times.
pub(crate) fn wait_for(load: &Load, what: impl Fn(&What) -> bool, times: usize) {
    for _ in 0..3000 {
        if load.count(&what) >= times {
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
    panic!("a client did not say in a minute what it was waited for");
}

fn print(verdict: &Verdict, ends: u64) {
    let accepted: usize = verdict.accepted.values().sum();
    let least = verdict.accepted.values().min().copied().unwrap_or(0);
    println!(
        "{ends} ends: {accepted} accepted (least in a life {least}), {} received, {} of them \
         again, {} settlements confirmed {:?}",
        verdict.received,
        verdict.redelivered,
        verdict.confirmed_total(),
        verdict.confirmed
    );
}

#[test]
#[ignore = "needs the foreign clients: tests/run kill"]
fn nothing_accepted_is_lost_by_kill_9() {
    let kills = knob("LAELAPS_KILLS", 20);
    let verdict = lives_under_load("kill", kills, Broker::kill);
    verdict.assert_clean();
    let confirmed = verdict.confirmed_total();
    let wanted = 1000 * kills.clamp(1, 20) as usize / 20;
    assert!(confirmed >= wanted, "only {confirmed} settlements confirmed, {wanted} wanted");
    for way in ["detach", "end", "close", "outcome"] {
        assert!(verdict.confirmed.contains_key(way), "no settlement was confirmed by {way}");
    }
    let lives = verdict.accepted.len() as u64;
    assert_eq!(lives, kills + 1, "a life of the broker accepted nothing");
}

#[test]
#[ignore = "needs the foreign clients: tests/run kill"]
fn a_stop_under_load_answers_what_was_sent() {
    let stops = knob("LAELAPS_KILLS", 20) / 4;
    let verdict = lives_under_load("stop", stops, |broker| {
        let began = Instant::now();
        let status = broker.stop();
        assert!(status.success(), "SIGTERM ends the broker with 0, not {status}");
        assert!(began.elapsed() < Duration::from_secs(7), "it drains within its five seconds");
    });
    verdict.assert_clean();
    assert_eq!(verdict.accepted.len() as u64, stops + 1, "a life of the broker accepted nothing");
}

/// Runs the load through `ends` ends of the broker at random moments, and judges what was seen.
fn lives_under_load(name: &str, ends: u64, end: impl Fn(Broker)) -> Verdict {
    let seed = knob("LAELAPS_SEED", 1);
    println!("{name}: LAELAPS_SEED={seed}, {ends} times");
    let mut chance = Chance(seed);
    let scratch = Scratch::new(name);
    let data = scratch.join("data");
    let mut address = Address::new(scratch.join("address"));
    let start = Start::new(&data);
    let mut broker: Broker = start.ready();
    address.set(broker.amqp);
    let mut loads = vec![
        Load::start(Client::Proton, proton_roles(), address.path()),
        Load::start(Client::Rhea, rhea_roles(), address.path()),
    ];
    for _ in 0..ends {
        let before = accepted(&loads);
        // Each life is long enough to accept something, then ends at a random moment.
        while accepted(&loads) < before + 20 {
            loads.iter_mut().for_each(Load::assert_running);
            thread::sleep(Duration::from_millis(5));
        }
        thread::sleep(Duration::from_micros(chance.between(0, 900_000)));
        address.clear();
        end(broker);
        broker = start.ready();
        address.set(broker.amqp);
    }
    thread::sleep(Duration::from_secs(1));
    let events = finish_and_drain(loads, &address);
    let crashes = name == "kill";
    let verdict = check(events, &Rules { strict: STRICT, may_lose: false, crashes });
    print(&verdict, ends);
    assert!(broker.stop().success(), "the broker stops in order at the end");
    verdict
}

fn accepted(loads: &[Load]) -> usize {
    let accepted = |what: &What| matches!(what, What::Accepted { .. });
    loads.iter().map(|load| load.count(accepted)).sum()
}
