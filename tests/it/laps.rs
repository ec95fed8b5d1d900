//! A small log, a stream that goes round it many times, and two messages that nobody takes.
//!
//! ```text
//!   disk-max 64 MiB   |seg|seg|seg| ... 16 of 4 MiB
//!   lagging           two messages at first, one of them in fragments
//!   stream            24 times disk-max, taken at once
//!   kill -9           the two are there, whole and in order
//! ```
//! Nothing is refused on the way, and the log stays within its bound: what lags is copied forward.

use std::time::Duration;

use ::perf::client::{Client, durable_message};
use amqp::connection::Sasl;
use amqp::delivery::Outcome;

use crate::harness::{Broker, Scratch, Start, knob};

const DISK_MAX: u64 = 64 << 20;
const SEGMENT_BYTES: u64 = 4 << 20;
const MESSAGE_BYTES: usize = 60_000;
/// Messages on their way at once.
const WINDOW: u64 = 16;

fn connect(broker: &Broker) -> Client {
    Client::connect(broker.amqp, "laps", Sasl::Anonymous, Duration::from_secs(30))
        .expect("the broker takes connections")
}

/// Sends so many messages and takes each of them.
fn stream(broker: &Broker, messages: u64) {
    let mut client = connect(broker);
    let sender = client.sender("stream").expect("a link");
    let receiver = client.receiver("stream", 4 * WINDOW as u32).expect("a link");
    let message = durable_message(&vec![7; MESSAGE_BYTES]);
    for sent in 0..messages + WINDOW {
        if sent < messages {
            client.send(sender, &message).expect("there is credit again in time");
        }
        if sent >= WINDOW {
            let (_, outcome) = client.next_outcome().expect("each is answered");
            assert_eq!(outcome, Outcome::Accepted, "message {}", sent - WINDOW);
            let received = client.receive().expect("each is delivered");
            client.accept(&received);
            client.grant(receiver, 1);
        }
        if sent % 512 == 0 {
            let segments = broker.metric("journal_segments");
            assert!(segments <= DISK_MAX / SEGMENT_BYTES, "{segments} segments");
        }
    }
    client.close().expect("in order");
}

#[test]
fn what_lags_behind_a_stream_of_many_laps_costs_no_room_and_survives() {
    let scratch = Scratch::new("laps");
    let (data, config) = (scratch.join("data"), scratch.join("laelaps.toml"));
    std::fs::write(&config, format!("disk-max = \"{DISK_MAX}\"\nshards = 1\n")).expect("a file");
    let mut start = Start::new(&data);
    start.args.extend(["--config".into(), config.to_string_lossy().into_owned()]);
    let broker = start.ready();

    let lagging = [vec![1; 1_000_000], vec![2; 100]].map(|body| durable_message(&body));
    let mut client = connect(&broker);
    let sender = client.sender("lagging").expect("a link");
    for message in &lagging {
        client.send(sender, message).expect("there is credit");
        assert_eq!(client.next_outcome().expect("it is answered").1, Outcome::Accepted);
    }
    client.close().expect("in order");

    let laps = knob("LAELAPS_LAPS", 24);
    stream(&broker, laps * DISK_MAX / MESSAGE_BYTES as u64);
    let copied = broker.metric("journal_copied_bytes_total");
    let lag_bytes = lagging.iter().map(|message| message.len() as u64).sum::<u64>();
    println!("{copied} bytes copied in {laps} laps, {lag_bytes} lag");
    assert!(copied > lag_bytes, "nothing was copied");
    // Once for each time that the log is used again, which is when four segments of it are dead.
    assert!(copied < laps * DISK_MAX / 8, "what lags costs a small part of what flows");
    broker.kill();

    let broker = start.ready();
    let mut client = connect(&broker);
    client.receiver("lagging", 10).expect("a link");
    for message in &lagging {
        let received = client.receive().expect("it is there");
        assert!(received.message.ends_with(&message[message.len() - 100..]));
        assert!(received.message.len() >= message.len(), "it is whole");
        client.accept(&received);
    }
    client.close().expect("in order");
    assert!(broker.stop().success());
}
