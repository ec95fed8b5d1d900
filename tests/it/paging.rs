//! A backlog of ten times the memory, in several queues, and what it costs to have and to drain.
//!
//! ```text
//!   memory-max 8 MiB   ◀── 80 MiB of 1 KiB messages, in turn for eight queues
//!   resident            what the process may have beside the bound is bounded too
//!   some queues         drained, in order, each message with its own bytes
//!   kill -9             the others are drained the same way
//! ```
//! Nobody is held back: whatever waits can be paged out. The same with messages of 4 MiB, which are
//! sent as their fragments are read: what their consumers have unsettled takes no memory.

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use ::perf::client::{Client, durable_message};
use amqp::connection::Sasl;
use amqp::delivery::Outcome;
use bytes::Bytes;

use crate::harness::{Broker, Scratch, Start, knob};

const MEMORY_MAX: u64 = 8 << 20;
/// Beside messages: the program, a ring, batch buffers and reads under way.
const BESIDE: u64 = 64 << 20;
const BODY_BYTES: usize = 1024;
const QUEUES: u64 = 8;
/// Messages on their way at once.
const WINDOW: u64 = 64;

fn connect(broker: &Broker) -> Client {
    Client::connect(broker.amqp, "paging", Sasl::Anonymous, Duration::from_secs(30))
        .expect("the broker takes connections")
}

fn name(queue: u64) -> String {
    format!("paged-{queue}")
}

/// The body of a queue's message: no two are alike.
fn body(queue: u64, number: u64) -> Vec<u8> {
    body_of(queue, number, BODY_BYTES)
}

fn body_of(queue: u64, number: u64, bytes: usize) -> Vec<u8> {
    let mut state = ((queue << 40) | number).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = (0..bytes / 8).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.collect()
}

/// Sends so many messages to each queue, in turn; the most that was resident meanwhile.
fn fill(broker: &Broker, each: u64) -> u64 {
    let mut client = connect(broker);
    let senders: Vec<_> =
        (0..QUEUES).map(|queue| client.sender(&name(queue)).expect("a link")).collect();
    let mut most = 0;
    for sent in 0..each * QUEUES + WINDOW {
        let (number, queue) = (sent / QUEUES, sent % QUEUES);
        if number < each {
            let message = durable_message(&body(queue, number));
            client.send(senders[queue as usize], &message).expect("there is credit in time");
        }
        if sent >= WINDOW {
            assert_eq!(client.next_outcome().expect("each is answered").1, Outcome::Accepted);
        }
        if sent % 8192 == 0 {
            most = most.max(broker.memory_bytes("VmRSS"));
            assert_eq!(broker.metric("memory_pressure"), 0, "after {sent} messages");
        }
    }
    client.close().expect("in order");
    most
}

/// Takes everything that is in a queue.
fn drain(broker: &Broker, queue: u64, each: u64) {
    let mut client = connect(broker);
    let receiver = client.receiver(&name(queue), 4 * WINDOW as u32).expect("a link");
    for number in 0..each {
        let received = client.receive().expect("it comes");
        assert!(received.message.ends_with(&body(queue, number)), "message {number} of {queue}");
        client.accept(&received);
        client.grant(receiver, 1);
    }
    client.close().expect("in order");
}

#[test]
fn a_backlog_of_ten_times_the_memory_is_kept_and_drained_in_order() {
    let scratch = Scratch::new("paging");
    let (data, config) = (scratch.join("data"), scratch.join("laelaps.toml"));
    let text =
        format!("memory-max = \"{MEMORY_MAX}\"\nmax-message-size = \"1048576\"\nshards = 1\n");
    std::fs::write(&config, text).expect("a file");
    let mut start = Start::new(&data);
    start.args.extend(["--config".into(), config.to_string_lossy().into_owned()]);
    let broker = start.ready();

    let times = knob("LAELAPS_PAGING_TIMES", 10);
    let each = times * MEMORY_MAX / BODY_BYTES as u64 / QUEUES;
    let most = fill(&broker, each);
    println!("{} messages, at most {} MiB resident", each * QUEUES, most >> 20);
    assert!(most <= MEMORY_MAX + BESIDE, "{most} bytes resident");
    let paged = broker.metric("paged_messages");
    assert!(paged > each * QUEUES / 2, "{paged} messages are paged out");
    (0..QUEUES / 2).for_each(|queue| drain(&broker, queue, each));
    let most = broker.memory_bytes("VmRSS");
    assert!(most <= MEMORY_MAX + BESIDE, "{most} bytes resident when half is drained");
    broker.kill();

    let broker = start.ready();
    let most = broker.memory_bytes("VmRSS");
    println!("after a start {} MiB resident", most >> 20);
    assert!(most <= MEMORY_MAX + BESIDE, "{most} bytes resident after a start");
    (QUEUES / 2..QUEUES).for_each(|queue| drain(&broker, queue, each));
    assert!(broker.metric("paged_in_total") > each);
    assert_eq!(broker.metric("paged_messages"), 0);
    assert!(broker.stop().success());
}

const LARGE_BYTES: usize = 4 << 20;
const LARGE_MEMORY_MAX: u64 = 32 << 20;

/// A broker for large messages, and how many of them are ten times its memory.
fn large(data: &Path) -> (Start<'_>, u64) {
    let config = data.with_extension("toml");
    let text = format!("memory-max = \"{LARGE_MEMORY_MAX}\"\nshards = 1\n");
    std::fs::write(&config, text).expect("a file");
    let mut start = Start::new(data);
    start.args.extend(["--config".into(), config.to_string_lossy().into_owned()]);
    let times = knob("LAELAPS_PAGING_TIMES", 10);
    (start, times * LARGE_MEMORY_MAX / LARGE_BYTES as u64)
}

/// Takes so many large messages, and settles none before all are here.
fn take_large(broker: &Broker, numbers: Range<u64>) -> u64 {
    let mut client = connect(broker);
    let count = numbers.end - numbers.start;
    client.receiver("large", count as u32).expect("a link");
    let (mut most, mut taken) = (0, Vec::new());
    for number in numbers {
        let mut received = client.receive().expect("it comes");
        let body = body_of(0, number, LARGE_BYTES);
        assert!(received.message.ends_with(&body), "message {number}");
        received.message = Bytes::new();
        taken.push(received);
        most = most.max(broker.memory_bytes("VmRSS"));
    }
    taken.iter().for_each(|received| client.accept(received));
    client.close().expect("in order");
    most
}

#[test]
fn large_messages_of_ten_times_the_memory_are_sent_as_they_are_read() {
    let scratch = Scratch::new("paging-large");
    let data = scratch.join("data");
    let (start, count) = large(&data);
    let broker = start.ready();
    let mut client = connect(&broker);
    let sender = client.sender("large").expect("a link");
    let mut most = 0;
    for number in 0..count {
        let message = durable_message(&body_of(0, number, LARGE_BYTES));
        client.send(sender, &message).expect("there is credit in time");
        assert_eq!(client.next_outcome().expect("each is answered").1, Outcome::Accepted);
        most = most.max(broker.memory_bytes("VmRSS"));
    }
    client.close().expect("in order");
    // What comes in is gathered whole, in a buffer that doubles, and held until it is written.
    let bound = LARGE_MEMORY_MAX + BESIDE + 4 * LARGE_BYTES as u64;
    println!("{count} messages of 4 MiB, at most {} MiB resident", most >> 20);
    assert!(most <= bound, "{most} bytes resident");
    let most = take_large(&broker, 0..count / 2);
    println!("{} MiB while half of them is sent", most >> 20);
    assert!(most <= bound, "{most} bytes resident while they are sent");
    broker.kill();

    let broker = start.ready();
    let most = broker.memory_bytes("VmRSS");
    println!("after a start {} MiB resident", most >> 20);
    assert!(most <= BESIDE, "{most} bytes resident: a start keeps their places only");
    assert_eq!(broker.metric("paged_messages"), count - count / 2);
    let most = take_large(&broker, count / 2..count);
    println!("{} MiB while the rest is sent", most >> 20);
    assert!(most <= BESIDE, "{most} bytes resident while they are sent");
    assert!(broker.stop().success());
}
