//! Producers that lose the answer and send everything again: each message is there once.
//!
//! ```text
//!   ids 0 .. n, answers not awaited ─▶ SIGKILL somewhere in between ─▶ start ─▶ once more, and
//!   further ─▶ … ─▶ all of them again, each accepted ─▶ take what is there: every number once
//! ```

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Chance, Scratch, Start, http_get, knob};
use crate::load::Client;
use crate::remote::{BOTH, Remote};

const LIVES: u64 = 5;
const MORE_IN_EACH: u64 = 60;

fn send(remote: &mut Remote, n: u64, waits: bool) -> Value {
    let step = json!({"do": "send", "name": "s", "text": format!("number {n}"), "durable": true,
        "duplicate_id": format!("order-{n}"), "nowait": !waits});
    remote.step(step)
}

/// A series of the metrics, over all shards.
fn metric(page: &str, name: &str) -> u64 {
    let lines = page.lines().filter(|line| line.starts_with(name));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

fn every_number_once(client: Client) {
    let seed = knob("LAELAPS_SEED", 1);
    println!("LAELAPS_SEED={seed}");
    let mut chance = Chance(seed);
    let scratch = Scratch::new("duplicates");
    let data = scratch.join("data");
    let start = Start::new(&data);
    let mut broker = start.ready();
    for life in 1..=LIVES {
        let mut remote = Remote::connected(client, &broker);
        remote.sender("s", "orders");
        for n in 0..life * MORE_IN_EACH {
            send(&mut remote, n, false);
        }
        thread::sleep(Duration::from_millis(chance.between(0, 30)));
        broker.kill();
        broker = start.ready();
    }
    let total = LIVES * MORE_IN_EACH;
    let mut remote = Remote::connected(client, &broker);
    remote.sender("s", "orders");
    for n in 0..total {
        assert_eq!(send(&mut remote, n, true)["state"], "accepted", "{n}");
    }
    let (_, page) = http_get(broker.admin, "/metrics").expect("it answers");
    let duplicates = metric(&page, "laelaps_duplicates_total");
    assert!((1..=total).contains(&duplicates), "{duplicates} of {total} were there before");
    remote.receiver("r", "orders", 1000);
    // What would come twice has time to come.
    let got = remote.read("r", total as usize + 1, 3000);
    let mut texts: Vec<&str> = got.iter().filter_map(|each| each["text"].as_str()).collect();
    texts.sort_unstable();
    let mut wanted: Vec<String> = (0..total).map(|n| format!("number {n}")).collect();
    wanted.sort_unstable();
    assert_eq!(texts, wanted);
}

#[test]
#[ignore = "needs the foreign clients: tests/run interop"]
fn what_is_sent_again_after_kill_9_is_there_once() {
    BOTH.into_iter().for_each(every_number_once);
}
