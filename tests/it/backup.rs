//! A backup of a running broker, restored elsewhere: what was acknowledged before its point is
//! there, and nothing after it.
//!
//! ```text
//!   producer   0, 1, 2 ...  one at a time ──────────────────────────────────▶
//!   backup             |‾ point 1 ‾|            |‾ point 2 ‾|
//!   restored           0 .. k, accepted before the command ≤ k ≤ sent before it returned
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use ::perf::client::{Client, data_of, durable_message};
use amqp::connection::Sasl;
use amqp::delivery::Outcome;

use crate::harness::{Broker, Scratch, Start};

/// Settled before the first point, and left.
const SETTLED: u32 = 20;
const LEFT: u32 = 30;
const BODY_BYTES: usize = 20_000;

fn connect(broker: &Broker, name: &str) -> Client {
    Client::connect(broker.amqp, name, Sasl::Anonymous, Duration::from_secs(30))
        .expect("the broker takes connections")
}

fn laelaps(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_laelaps")).args(args).output().expect("it can be run")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

/// A body that begins with its number.
fn body(number: u64) -> Vec<u8> {
    let mut body = number.to_be_bytes().to_vec();
    body.resize(BODY_BYTES, number as u8);
    body
}

/// What a producer has sent, and what of it was accepted.
#[derive(Default)]
struct Told {
    sent: AtomicU64,
    accepted: AtomicU64,
    stop: AtomicBool,
}

fn produce(mut client: Client, told: &Told) {
    let sender = client.sender("orders").expect("a link");
    for number in 0.. {
        if told.stop.load(Ordering::Acquire) {
            break;
        }
        told.sent.store(number + 1, Ordering::Release);
        client.send(sender, &durable_message(&body(number))).expect("there is credit");
        assert_eq!(client.next_outcome().expect("it is answered").1, Outcome::Accepted);
        told.accepted.store(number + 1, Ordering::Release);
    }
    client.close().expect("in order");
}

/// A queue on the other shard, some of whose messages are settled.
fn settle_some(broker: &Broker) {
    let mut client = connect(broker, "settles");
    let sender = client.sender("parts").expect("a link");
    for number in 0..SETTLED + LEFT {
        client.send(sender, &durable_message(&body(number.into()))).expect("there is credit");
        client.next_outcome().expect("it is answered");
    }
    client.receiver("parts", SETTLED).expect("a link");
    for _ in 0..SETTLED {
        let received = client.receive().expect("it is there");
        client.accept(&received);
    }
    client.close().expect("each settlement is committed");
}

/// One backup: its point, the bytes copied, accepted before it and sent before it returned.
fn back_up(broker: &Broker, to: &Path, told: &Told) -> (String, u64, u64, u64) {
    let accepted = told.accepted.load(Ordering::Acquire);
    let admin = format!("http://{}", broker.admin);
    let done = laelaps(&["backup", "--to", text(to), "--admin", &admin, "--json"]);
    let sent = told.sent.load(Ordering::Acquire);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let answer: serde_json::Value = serde_json::from_slice(&done.stdout).expect("JSON");
    let name = answer["point"].as_str().expect("a name").to_owned();
    (name, answer["copied_bytes"].as_u64().expect("a number"), accepted, sent)
}

/// What is in `orders` and how many are in `parts` where a point is started.
fn restored(from: &Path, point: &str, to: &Path) -> (u64, u64) {
    let done = laelaps(&["restore", "--from", text(from), "--to", text(to), "--point", point]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let broker = Start::new(to).ready();
    let counts = ["orders", "parts"].map(|name| {
        broker.get(&format!("/api/v1/queues/{name}"))["available"].as_u64().expect("a number")
    });
    let mut client = connect(&broker, "reads");
    client.receiver("orders", u32::try_from(counts[0]).expect("few")).expect("a link");
    for number in 0..counts[0] {
        let received = client.receive().expect("it is there");
        assert_eq!(data_of(&received.message), Some(&body(number)[..]), "message {number}");
        client.accept(&received);
    }
    client.close().expect("in order");
    assert!(broker.stop().success());
    (counts[0], counts[1])
}

fn wait_for(told: &Told, accepted: u64) {
    while told.accepted.load(Ordering::Acquire) < accepted {
        thread::sleep(Duration::from_millis(5));
    }
}

/// Where a message lies in a store.
const SPOILT: usize = 100_000;

/// A segment of a store in which there is a message there.
fn a_segment(store: &Path) -> PathBuf {
    let shards = ["shard-000", "shard-001"].map(|shard| store.join(shard));
    let entries = shards.iter().flat_map(|shard| fs::read_dir(shard).expect("a shard"));
    let mut paths = entries.map(|entry| entry.expect("an entry").path());
    let is_used = |path: &PathBuf| fs::read(path).expect("a file")[SPOILT] != 0;
    paths.find(is_used).expect("one is used")
}

#[test]
fn a_point_has_what_was_accepted_before_it_and_nothing_after() {
    let scratch = Scratch::new("backup");
    let (data, store) = (scratch.join("data"), scratch.join("store"));
    let mut start = Start::new(&data);
    start.args.extend(["--shards".into(), "2".into()]);
    let broker = start.ready();
    settle_some(&broker);
    let told = Arc::new(Told::default());
    let producer = {
        let (client, told) = (connect(&broker, "orders"), Arc::clone(&told));
        thread::spawn(move || produce(client, &told))
    };
    wait_for(&told, 100);
    let (first, copied, accepted, sent) = back_up(&broker, &store, &told);
    wait_for(&told, sent + 20);
    let (second, copied_more, accepted_later, sent_later) = back_up(&broker, &store, &told);
    wait_for(&told, sent_later + 20);
    told.stop.store(true, Ordering::Release);
    producer.join().expect("it ends");
    broker.kill();
    println!("{first}: {copied} bytes, {accepted}..={sent}; {second}: {copied_more} bytes more");
    assert!(copied > 100 * BODY_BYTES as u64);
    let between = (sent_later - accepted) * (BODY_BYTES as u64 + 10_000);
    assert!(copied_more < between, "{copied_more} bytes for what was sent since: {between}");

    let list = laelaps(&["restore", "--from", text(&store), "--list"]);
    assert_eq!(String::from_utf8_lossy(&list.stdout), format!("{first}\n{second}\n"));

    let (orders, parts) = restored(&store, &first, &scratch.join("one"));
    assert!((accepted..=sent).contains(&orders), "{orders}, not {accepted}..={sent}");
    assert_eq!(parts, u64::from(LEFT), "what was settled stays settled");
    let (orders, parts) = restored(&store, &second, &scratch.join("two"));
    assert!((accepted_later..=sent_later).contains(&orders), "{orders}");
    assert_eq!(parts, u64::from(LEFT));

    // The copy is no more the directory that this store is of.
    let copy = scratch.join("one");
    let broker = Start::new(&copy).ready();
    let admin = format!("http://{}", broker.admin);
    let refused = laelaps(&["backup", "--to", text(&store), "--admin", &admin]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("another directory"), "{refused:?}");
    assert!(broker.stop().success());
}

#[test]
fn a_flipped_bit_fails_the_restore_and_nothing_can_be_started_from_it() {
    let scratch = Scratch::new("backup-bit");
    let (data, store) = (scratch.join("data"), scratch.join("store"));
    let mut start = Start::new(&data);
    start.args.extend(["--shards".into(), "2".into()]);
    let broker = start.ready();
    settle_some(&broker);
    let (point, ..) = back_up(&broker, &store, &Told::default());
    broker.kill();
    let segment = a_segment(&store);
    let mut bytes = fs::read(&segment).expect("a segment");
    bytes[SPOILT] ^= 1;
    fs::write(&segment, bytes).expect("spoilt");
    let to = scratch.join("restored");
    let failed = laelaps(&["restore", "--from", text(&store), "--to", text(&to)]);
    let said = String::from_utf8_lossy(&failed.stderr);
    assert_eq!(failed.status.code(), Some(14), "{point}: {said}");
    assert!(said.contains("segment-"), "{said}");
    let (status, said) = Start::new(&to).refused();
    assert_eq!(status, 14, "{said}");
}
