//! Where the broker runs: the same data on machines of other sizes, and what limits do to it.
//!
//! Shards are fixed when a directory is made, threads are not: a machine of another size is the
//! same directory with another number of threads. What limits a container is set by a launcher
//! around the broker: affinity, locked memory.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use amqp::connection::Sasl;
use amqp::delivery::Outcome;
use perf::client::{Client, data_of, durable_message};
use serde_json::Value;

use crate::harness::{Broker, Scratch, Start, http_get};
use crate::power_fs::PowerFs;

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
    // The log has a thread of its own.
    let deadline = Instant::now() + Duration::from_secs(10);
    let line = loop {
        let said = broker.said();
        match said.lines().rfind(|line| line.contains(" ready ")) {
            Some(line) => break line.to_owned(),
            None => assert!(Instant::now() < deadline, "it did not become ready:\n{said}"),
        }
        thread::sleep(Duration::from_millis(10));
    };
    let pair = format!(" {key}=");
    let (_, value) = line.split_once(&pair).unwrap_or_else(|| panic!("no {key} in {line}"));
    value.split(' ').next().unwrap_or_default().trim_matches('"').to_owned()
}

/// On one core and across two, by either engine, while all of them use it.
#[test]
fn the_clients_of_a_queue_are_served_where_it_lives() {
    const CLIENTS: usize = 12;
    for (engine, threads) in [("uring", "1"), ("uring", "2"), ("epoll", "1"), ("epoll", "2")] {
        let scratch = Scratch::new("follow");
        let data = scratch.join("data");
        let mut start = Start::new(&data);
        start.engine = Some(engine.to_owned());
        start.io_uring_refused = None;
        start.args.extend(["--shards", "4", "--threads", threads].map(Into::into));
        let broker = start.ready();
        let mut clients = Vec::new();
        for number in 0..CLIENTS {
            let mut client = connect(broker.amqp, &format!("follower-{number}"));
            let link = client.sender("followed").expect("a link");
            clients.push((client, link));
        }
        for (client, link) in &mut clients {
            client.send(*link, &durable_message(b"here")).expect("sent");
            assert_eq!(client.next_outcome().expect("an answer").1, Outcome::Accepted);
        }
        let (_, metrics) = http_get(broker.admin, "/metrics").expect("metrics");
        let mut of_shards: Vec<_> = metrics
            .lines()
            .filter_map(|line| line.strip_prefix("laelaps_connections{")?.split_once("} "))
            .map(|(_, count)| count.parse::<usize>().expect("a count"))
            .collect();
        of_shards.sort_unstable();
        assert_eq!(of_shards, [0, 0, 0, CLIENTS], "{engine}, {threads} threads");
        drop(clients);
        assert!(broker.stop().success());
    }
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

/// What takes away the right to lock memory beyond the limit, which root has.
const LOCKED_AS_FOR_ANYBODY: &str = "if [ $(id -u) = 0 ]; then drop='setpriv \
    --bounding-set=-ipc_lock --inh-caps=-ipc_lock'; fi; exec $drop";

/// The limit is one for all cores: what one pins must leave the others their rings.
#[test]
fn memory_that_may_not_be_locked_costs_the_pinning_and_not_the_start() {
    if !rustix::process::getuid().is_root() {
        // The kernel adds up what all processes of a user lock, and other tests run beside this.
        println!("left out: only root has no other process that counts");
        return;
    }
    let scratch = Scratch::new("memlock");
    for life in 0..3 {
        let data = scratch.join(&format!("data-{life}"));
        let mut start = Start::new(&data);
        start.exe = launcher(&scratch, &format!("ulimit -l 1200; {LOCKED_AS_FOR_ANYBODY}"));
        start.args.extend(["--threads".into(), "8".into()]);
        let broker = start.ready();
        assert_eq!(ready_line_says(&broker, "threads"), "8");
        if ready_line_says(&broker, "engine") == "uring" {
            assert!(broker.said().contains("memory that is not pinned"), "{}", broker.said());
        }
        assert!(broker.stop().success());
    }
}

#[test]
fn where_too_little_may_be_locked_for_every_ring_another_engine_is_taken() {
    // Nothing; and enough for a ring, but not for four.
    for kib in [0, 200] {
        with_another_engine(kib);
    }
}

fn with_another_engine(locked_kib: u32) {
    let scratch = Scratch::new("nolock");
    let data = scratch.join("data");
    let mut start = Start::new(&data);
    start.args.extend(["--threads".into(), "4".into()]);
    start.exe = launcher(&scratch, &format!("ulimit -l {locked_kib}; {LOCKED_AS_FOR_ANYBODY}"));
    let broker = start.ready();
    // A kernel before 6.14 does not count the memory of rings.
    let engine = ready_line_says(&broker, "engine");
    if engine == "epoll" && std::env::var_os("LAELAPS_ENGINE").is_none() {
        assert!(broker.said().contains("locked memory"), "it says why:\n{}", broker.said());
    }
    let mut books = Books::default();
    books.use_broker(broker.amqp);
    broker.kill();
    books.take_all(&start.ready());
}

/// `laelaps preflight --json` with `before` done to it: its status, and what it says.
fn preflight(scratch: &Scratch, before: &str, data: &Path) -> (Option<i32>, Value) {
    let output = Command::new(launcher(scratch, before))
        .args(["preflight", "--json", "--data"])
        .arg(data)
        .stdin(Stdio::null())
        .output()
        .expect("it can be started");
    let text = String::from_utf8_lossy(&output.stdout);
    let said = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output.status.code(), said)
}

fn verdict_of<'a>(said: &'a Value, name: &str) -> &'a str {
    let checks = said["checks"].as_array().expect("a list");
    let check = checks.iter().find(|check| check["check"] == name);
    check.unwrap_or_else(|| panic!("no {name} in {said}"))["verdict"].as_str().expect("a word")
}

#[test]
fn preflight_says_what_a_start_would_meet() {
    let scratch = Scratch::new("preflight");
    let data = scratch.join("data");
    let (status, said) = preflight(&scratch, "exec", &data);
    assert_eq!(status, Some(0), "{said}");
    assert!(["uring", "epoll"].contains(&said["engine"]["name"].as_str().expect("a name")));
    assert!(said["engine"]["reason"].is_string(), "{said}");
    let rows = said["disk"].as_array().expect("a table");
    let in_flight: Vec<_> = rows.iter().map(|row| row["in_flight"].as_u64()).collect();
    assert_eq!(in_flight, [Some(1), Some(4)]);
    for row in rows {
        let us = |name: &str| row[name].as_u64().unwrap_or_else(|| panic!("{name}: {row}"));
        assert!(0 < us("p50_us") && us("p50_us") <= us("p99_us"), "{row}");
        assert!(us("p99_us") <= us("p999_us") && us("p999_us") <= us("max_us"), "{row}");
    }
    assert!(!data.exists(), "it makes nothing");

    let memory = tempfile::tempdir_in("/dev/shm").expect("everybody may write there");
    let (status, said) = preflight(&scratch, "exec", memory.path());
    assert_eq!(status, Some(12), "{said}");
    assert_eq!((verdict_of(&said, "file system"), &said["verdict"]), ("bad", &"bad".into()));

    let (status, said) =
        preflight(&scratch, &format!("ulimit -n 256; ulimit -l 0; {LOCKED_AS_FOR_ANYBODY}"), &data);
    assert_eq!(status, Some(0), "{said}");
    assert_eq!(verdict_of(&said, "open files"), "warn");
    let locked = if said["engine"]["name"] == "uring" { "locked memory" } else { "engine" };
    assert_eq!(verdict_of(&said, locked), "warn");

    // A broker is not disturbed, and what it made is judged as it is.
    let mut start = Start::new(&data);
    start.args.extend(["--shards".into(), "1".into()]);
    let broker = start.ready();
    let (status, said) = preflight(&scratch, "exec", &data);
    assert_eq!((status, verdict_of(&said, "directory")), (Some(0), "note"), "{said}");
    assert!(broker.stop().success());
    let (_, said) = preflight(&scratch, "exec", &data);
    assert!(said.to_string().contains("1 shards"), "{said}");
}

#[test]
#[ignore = "needs FUSE: tests/run exits"]
fn a_file_system_without_direct_io_is_used_buffered_and_loses_nothing() {
    let scratch = Scratch::new("buffered");
    let mut disk = PowerFs::mount(scratch.join("mnt"), 1);
    disk.ask("refuse-direct on");
    let data = disk.dir().join("data");
    let mut start = Start::new(&data);
    start.output = scratch.join("broker.log");
    let mut books = Books::default();
    for _ in 0..3 {
        let broker = start.ready();
        assert_eq!(ready_line_says(&broker, "io"), "buffered");
        books.use_broker(broker.amqp);
        disk.cut(broker);
    }
    let (status, said) = preflight(&scratch, "exec", disk.dir());
    assert_eq!((status, verdict_of(&said, "direct I/O")), (Some(0), "warn"), "{said}");
    assert_eq!(verdict_of(&said, "file system"), "warn", "FUSE is named");
    assert!(disk.counts().syncs > 0, "syncs arrive, or nothing would be proved");
    books.take_all(&start.ready());
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
