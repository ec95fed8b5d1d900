//! Where the broker runs: the same data on machines of other sizes, and what limits do to it.
//!
//! Shards are fixed when a directory is made, threads are not: a machine of another size is the
//! same directory with another number of threads. What limits a container is set by a launcher
//! around the broker: affinity, locked memory.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use amqp::connection::Sasl;
use amqp::delivery::Outcome;
use perf::client::{Client, data_of, durable_message};

use crate::harness::{Broker, Scratch, Start};

const WAIT: Duration = Duration::from_secs(20);

/// Queues that a move is tried with; each has a connection of its own, which places it.
const QUEUES: usize = 10;

/// Messages that each life of the broker adds to each queue, and takes off it.
const SENT: u32 = 8;
const TAKEN: usize = 5;

fn connect(addr: SocketAddr, name: &str) -> Client {
    Client::connect(addr, name, Sasl::Anonymous, WAIT).expect("the broker takes connections")
}

/// What must be in each queue, oldest first.
#[derive(Default)]
pub(crate) struct Books {
    queues: BTreeMap<String, VecDeque<u32>>,
    next: u32,
}

impl Books {
    /// Each queue gets some messages and loses fewer, all of it confirmed.
    pub(crate) fn use_broker(&mut self, addr: SocketAddr) {
        for queue in (0..QUEUES).map(|number| format!("moved-{number}")) {
            let mut client = connect(addr, &queue);
            let link = client.sender(&queue).expect("a link");
            let kept = self.queues.entry(queue.clone()).or_default();
            for _ in 0..SENT {
                client.send(link, &durable_message(&self.next.to_be_bytes())).expect("sent");
                let (_, outcome) = client.next_outcome().expect("an answer");
                assert_eq!(outcome, Outcome::Accepted);
                kept.push_back(self.next);
                self.next += 1;
            }
            take(&mut client, &queue, kept, TAKEN);
            client.close().expect("what was settled is confirmed");
        }
    }

    /// Each queue holds what it must, in order, and nothing else.
    pub(crate) fn take_all(mut self, broker: &Broker) {
        for (queue, kept) in &mut self.queues {
            let mut client = connect(broker.amqp, queue);
            let left = kept.len();
            take(&mut client, queue, kept, left);
            client.close().expect("what was settled is confirmed");
            let stat = broker.get(&format!("/api/v1/queues/{queue}"));
            assert_eq!((&stat["available"], &stat["acquired"]), (&0.into(), &0.into()), "{stat}");
        }
    }
}

/// Take the oldest messages of a queue, which must be these.
fn take(client: &mut Client, queue: &str, kept: &mut VecDeque<u32>, count: usize) {
    let credit = u32::try_from(count).expect("a small number");
    client.receiver(queue, credit).expect("a link");
    for expected in kept.drain(..count) {
        let received = client.receive().expect("a message");
        let body = data_of(&received.message).expect("a body");
        assert_eq!(body, expected.to_be_bytes(), "{queue}: not {expected}");
        client.accept(&received);
    }
}

/// The value of `key=value` in the last line that says `ready`.
pub(crate) fn ready_line_says(broker: &Broker, key: &str) -> String {
    let said = broker.said();
    let line = said.lines().rfind(|line| line.contains(" ready ")).expect("it became ready");
    let pair = format!(" {key}=");
    let (_, value) = line.split_once(&pair).unwrap_or_else(|| panic!("no {key} in {line}"));
    value.split(' ').next().unwrap_or_default().trim_matches('"').to_owned()
}

#[test]
fn a_directory_moves_between_machines_of_1_2_and_8_cores() {
    for made_with in [1_usize, 2, 8] {
        let scratch = Scratch::new("moved");
        let data = scratch.join("data");
        let start_with = |threads: usize| {
            let mut start = Start::new(&data);
            start.args.extend(["--threads".into(), threads.to_string()]);
            start.ready()
        };
        let mut books = Books::default();
        for threads in [made_with, 8, 1, 2, 8] {
            let broker = start_with(threads);
            assert_eq!(ready_line_says(&broker, "shards"), made_with.to_string());
            assert_eq!(ready_line_says(&broker, "threads"), threads.min(made_with).to_string());
            books.use_broker(broker.amqp);
            broker.kill();
        }
        books.take_all(&start_with(1));
    }
}

/// A program that starts the broker with `before` done to itself.
fn launcher(scratch: &Scratch, before: &str) -> PathBuf {
    let path = scratch.join("launch");
    let broker = env!("CARGO_BIN_EXE_laelaps");
    fs::write(&path, format!("#!/bin/sh\n{before} {broker} \"$@\"\n")).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a file of ours");
    path
}

/// One that we may run on.
fn first_cpu() -> String {
    let status = fs::read_to_string("/proc/self/status").expect("Linux tells");
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let list = list.expect("Linux tells").trim();
    list.split([',', '-']).next().unwrap_or(list).to_owned()
}

#[test]
fn threads_follow_the_affinity_and_shards_do_not() {
    let scratch = Scratch::new("affinity");
    let data = scratch.join("data");
    let mut start = Start::new(&data);
    start.args.extend(["--shards".into(), "3".into()]);
    start.exe = launcher(&scratch, &format!("exec taskset -c {}", first_cpu()));
    let broker = start.ready();
    assert_eq!(ready_line_says(&broker, "shards"), "3");
    assert_eq!(ready_line_says(&broker, "threads"), "1");
    let mut books = Books::default();
    books.use_broker(broker.amqp);
    assert!(broker.stop().success());
    let broker = Start::new(&data).ready();
    assert_eq!(ready_line_says(&broker, "shards"), "3");
    books.take_all(&broker);
}
