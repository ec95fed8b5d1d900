//! Each designed death has a status of its own and says what was wrong, where, and what to do.
//!
//! The statuses are those of `docs/operating/exit-statuses.md`. What a test needs of a disk
//! (errors, a quota, denied access) it gets from the file system of `tests/powerfs`, which works
//! alike for root, whom permissions don't stop.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::check::{Rules, check};
use crate::harness::{Scratch, Start, TMPFS, http_get};
use crate::kill::wait_for;
use crate::load::{Address, Client, Event, Load, What};
use crate::message::{number, numbered};
use crate::power_fs::PowerFs;
use crate::remote::Remote;

/// Expects a start to be refused with a status and all of these words.
fn assert_refused(start: &Start<'_>, status: i32, words: &[&str]) {
    let (code, said) = start.refused();
    assert_eq!(code, status, "the exit status; it said:\n{said}");
    for word in words {
        assert!(said.contains(word), "nothing about `{word}`:\n{said}");
    }
}

#[test]
fn replication_without_a_replica_is_a_status_of_its_own() {
    let scratch = Scratch::new("levels");
    let data = scratch.join("data");
    for level in ["replicated", "replicated-sync"] {
        let mut start = Start::new(&data);
        start.durability = level;
        assert_refused(&start, 4, &[level]);
        assert!(!data.exists(), "nothing was made for a start that was refused");
    }
}

#[test]
fn a_configuration_that_is_wrong_names_the_key() {
    let scratch = Scratch::new("config");
    let (data, config) = (scratch.join("data"), scratch.join("laelaps.toml"));
    for (text, word) in [("segment-sise = 1\n", "segment-sise"), ("drain = \"soon\"\n", "drain")] {
        fs::write(&config, text).expect("a file can be written");
        let mut start = Start::new(&data);
        start.args = vec!["--config".into(), config.to_string_lossy().into_owned()];
        assert_refused(&start, 3, &[word, "laelaps.toml"]);
    }
    let mut start = Start::new(&data);
    start.args = vec!["--no-such-flag".into()];
    assert_refused(&start, 2, &["--no-such-flag"]);
}

#[test]
fn off_loopback_without_users_is_refused() {
    let scratch = Scratch::new("exposed");
    let data = scratch.join("data");
    let mut start = Start::new(&data);
    let config = scratch.join("laelaps.toml");
    fs::write(&config, "listen = \"0.0.0.0:5672\"\n").expect("a file can be written");
    start.args = vec!["--config".into(), config.to_string_lossy().into_owned()];
    let output = Command::new(env!("CARGO_BIN_EXE_laelaps"))
        .args(["run", "--data"])
        .arg(&data)
        .args(["--listen", "0.0.0.0:0", "--admin", "127.0.0.1:0"])
        .stdin(Stdio::null())
        .output()
        .expect("the broker can be started");
    assert_eq!(output.status.code(), Some(5));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("0.0.0.0"), "{said}");
}

#[test]
fn a_port_that_is_taken_is_named() {
    let scratch = Scratch::new("port");
    let taken = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let port = taken.local_addr().expect("it is bound").to_string();
    for flag in ["--listen", "--admin"] {
        let other = if flag == "--listen" { "--admin" } else { "--listen" };
        let output = Command::new(env!("CARGO_BIN_EXE_laelaps"))
            .args(["run", "--segment-size", "4194304", "--data"])
            .arg(scratch.join("data"))
            .args([flag, &port, other, "127.0.0.1:0"])
            .stdin(Stdio::null())
            .output()
            .expect("the broker can be started");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(6), "{flag}: {said}");
        assert!(said.contains(&port), "{flag}: {said}");
    }
}

#[test]
fn a_directory_in_use_is_waited_for_or_refused() {
    let scratch = Scratch::new("lock");
    let data = scratch.join("data");
    let first = Start::new(&data).ready();
    let mut impatient = Start::new(&data);
    impatient.output = scratch.join("impatient.log");
    impatient.args.extend(["--lock-wait".into(), "0".into()]);
    assert_refused(&impatient, 10, &["data"]);
    let waiting = thread::scope(|scope| {
        let mut patient = Start::new(&data);
        patient.output = scratch.join("patient.log");
        let waiting = scope.spawn(move || patient.ready());
        thread::sleep(Duration::from_millis(500));
        assert!(!waiting.is_finished(), "the directory is in use");
        assert!(first.stop().success());
        waiting.join().expect("it takes over when the first has stopped")
    });
    assert!(waiting.is_ready());
}

#[test]
fn memory_is_no_disk() {
    let below = Path::new("/dev/shm");
    let kind = rustix::fs::statfs(below).expect("Linux has /dev/shm").f_type;
    assert_eq!(kind, TMPFS, "/dev/shm is a tmpfs");
    let memory = tempfile::tempdir_in(below).expect("everybody may write there");
    let scratch = Scratch::new("tmpfs");
    let data = memory.path().join("data");
    let mut start = Start::new(&data);
    start.output = scratch.join("broker.log");
    assert_refused(&start, 12, &["tmpfs", "--allow-volatile"]);
    start.args.push("--allow-volatile".into());
    let broker = start.ready();
    assert!(broker.said().contains("volatile=true"), "the ready line says it");
}

#[test]
fn an_unready_broker_says_so() {
    let scratch = Scratch::new("ready");
    let broker = Start::new(&scratch.join("data")).ready();
    let live = http_get(broker.admin, "/healthz/live").map(|(status, _)| status);
    assert_eq!(live, Some(200));
    let none = http_get(broker.admin, "/no/such/page").map(|(status, _)| status);
    assert_eq!(none, Some(404));
    assert!(broker.stop().success(), "SIGTERM ends it with 0");
}

// ---- With a disk that does as it is told
// ---------------------------------------------------------

struct Machine {
    disk: PowerFs,
    scratch: Scratch,
}

fn machine(name: &str) -> Machine {
    let scratch = Scratch::new(name);
    let disk = PowerFs::mount(scratch.join("mnt"), 1);
    Machine { disk, scratch }
}

impl Machine {
    fn start<'a>(&self, data: &'a Path) -> Start<'a> {
        let mut start = Start::new(data);
        start.output = self.scratch.join("broker.log");
        start
    }
}

#[test]
#[ignore = "needs FUSE: tests/run exits"]
fn access_denied_is_a_status_of_its_own() {
    let mut machine = machine("denied");
    let data = machine.disk.dir().join("data");
    machine.disk.ask("deny-opens on");
    let start = machine.start(&data);
    assert_refused(&start, 11, &["data"]);
    machine.disk.ask("deny-opens off");
    start.ready().kill();
    machine.disk.ask("deny-opens on");
    assert_refused(&start, 11, &["data"]);
}

#[test]
#[ignore = "needs FUSE: tests/run exits"]
fn no_space_to_begin_with() {
    let mut machine = machine("no-space");
    let data = machine.disk.dir().join("data");
    machine.disk.ask(format!("quota {}", 6 << 20));
    let start = machine.start(&data);
    assert_refused(&start, 17, &["space"]);
    machine.disk.ask("quota none");
    assert!(start.ready().stop().success(), "once there is space, the same start succeeds");
}

#[test]
#[ignore = "needs FUSE: tests/run exits"]
fn a_log_that_cannot_be_read_is_not_called_torn() {
    let mut machine = machine("unreadable");
    let data = machine.disk.dir().join("data");
    let start = machine.start(&data);
    start.ready().kill();
    machine.disk.ask("fail-reads on");
    assert_refused(&start, 15, &["data"]);
    machine.disk.ask("fail-reads off");
    assert!(start.ready().stop().success(), "nothing was changed by the refused start");
}

#[test]
#[ignore = "needs the foreign clients and FUSE: tests/run exits"]
fn a_failed_write_ends_the_process_and_loses_nothing() {
    let mut machine = machine("poisoned");
    let data = machine.disk.dir().join("data");
    let mut start = machine.start(&data);
    // One shard: the other would live on for a moment.
    start.args.extend(["--shards".into(), "1".into()]);
    let mut broker = start.ready();
    let mut remote = Remote::connected(Client::Proton, &broker);
    remote.sender("s", "poisoned");
    (0..20).for_each(|n| remote.send("s", &numbered(n)));
    machine.disk.ask("fail-writes on");
    let step = json!({"do": "send", "name": "s", "hex": crate::message::to_hex(&numbered(20))});
    let answer = remote.step(step);
    assert_ne!(answer["state"], "accepted", "its write failed");
    assert_eq!(broker.wait_exit().code(), Some(16), "{}", broker.said());
    assert!(broker.said().contains("segment"), "it says where:\n{}", broker.said());
    machine.disk.ask("fail-writes off");
    let broker = start.ready();
    let mut remote = Remote::connected(Client::Proton, &broker);
    remote.receiver("r", "poisoned", 100);
    let came: Vec<u32> = remote.take("r", 20).iter().map(|each| number(each)).collect();
    assert_eq!(came, (0..20).collect::<Vec<u32>>());
}

#[test]
#[ignore = "needs the foreign clients and FUSE: tests/run exits"]
fn a_sync_that_hangs_ends_the_process_within_a_bound() {
    let mut machine = machine("hung");
    let data = machine.disk.dir().join("data");
    let start = machine.start(&data);
    let mut broker = start.ready();
    let mut remote = Remote::connected(Client::Proton, &broker);
    remote.sender("s", "hung");
    remote.send("s", &numbered(0));
    machine.disk.ask("hang-syncs on");
    let step = json!({"do": "send", "name": "s", "nowait": true,
        "hex": crate::message::to_hex(&numbered(1))});
    remote.step(step);
    let began = Instant::now();
    while !broker.said().contains("journal-poisoned") {
        assert!(began.elapsed() < Duration::from_secs(60), "it hangs for ever");
        thread::sleep(Duration::from_millis(200));
    }
    // A process ends only when the kernel has its requests back.
    machine.disk.ask("freeze");
    machine.disk.ask("cut");
    assert_eq!(broker.wait_exit().code(), Some(16), "{}", broker.said());
    machine.disk.ask("hang-syncs off");
    machine.disk.ask("on");
    let broker = start.ready();
    let mut remote = Remote::connected(Client::Proton, &broker);
    remote.receiver("r", "hung", 100);
    // The message whose sync hung was never accepted; the cut may have spared it all the same.
    let came = remote.take_some("r", 2, 2000);
    assert_eq!(number(&came[0]), 0, "what was accepted before is there");
}

/// What the disk has taken of a killed process still lands: until then nobody else may write there.
#[test]
#[ignore = "needs the foreign clients and FUSE: tests/run exits"]
fn a_write_that_outlives_its_process_keeps_the_directory_locked() {
    let mut machine = machine("outlived");
    let data = machine.disk.dir().join("data");
    let start = machine.start(&data);
    let mut broker = start.ready();
    let mut remote = Remote::connected(Client::Proton, &broker);
    remote.sender("s", "outlived");
    remote.send("s", &numbered(0));
    machine.disk.ask("delay-sync 6000000");
    let step = json!({"do": "send", "name": "s", "nowait": true,
        "hex": crate::message::to_hex(&numbered(1))});
    remote.step(step);
    thread::sleep(Duration::from_millis(300));
    let killed = Instant::now();
    broker.send_kill();
    machine.disk.ask("delay-sync 0");
    let mut impatient = machine.start(&data);
    impatient.output = machine.scratch.join("impatient.log");
    impatient.args.extend(["--lock-wait".into(), "0".into()]);
    assert_refused(&impatient, 10, &["data"]);
    assert!(killed.elapsed() < Duration::from_secs(5), "the write may have ended by then");
    let next = start.ready();
    assert!(killed.elapsed() > Duration::from_secs(4), "it did not wait for that write");
    broker.wait_killed();
    let mut remote = Remote::connected(Client::Proton, &next);
    remote.receiver("r", "outlived", 100);
    assert_eq!(number(&remote.take_some("r", 2, 2000)[0]), 0, "what was accepted is there");
}

#[test]
#[ignore = "needs the foreign clients and FUSE: tests/run exits"]
fn a_second_signal_ends_a_drain_at_once() {
    let mut machine = machine("second-signal");
    let data = machine.disk.dir().join("data");
    let mut start = machine.start(&data);
    start.args.extend(["--drain".into(), "60s".into()]);
    let mut broker = start.ready();
    let mut remote = Remote::connected(Client::Proton, &broker);
    remote.sender("s", "signals");
    remote.send("s", &numbered(0));
    machine.disk.ask("hang-syncs on");
    let step = json!({"do": "send", "name": "s", "nowait": true,
        "hex": crate::message::to_hex(&numbered(1))});
    remote.step(step);
    thread::sleep(Duration::from_millis(200));
    broker.send_term();
    thread::sleep(Duration::from_millis(500));
    broker.send_term();
    let began = Instant::now();
    // The directory's name has these words too.
    while !broker.said().contains("cause=\"second-signal\"") {
        assert!(began.elapsed() < Duration::from_secs(5), "the second signal is not heeded");
        thread::sleep(Duration::from_millis(20));
    }
    machine.disk.ask("freeze");
    machine.disk.ask("cut");
    assert_eq!(broker.wait_exit().code(), Some(22));
}

/// Full, drained to empty in order by one settlement after the other, and in use again.
#[test]
#[ignore = "needs the foreign clients and FUSE: tests/run exits"]
fn a_full_disk_is_drained_to_empty_and_used_again() {
    let mut machine = machine("full");
    let data = machine.disk.dir().join("data");
    machine.disk.ask(format!("quota {}", 28 << 20));
    let mut start = machine.start(&data);
    start.args.extend(["--shards".into(), "1".into()]);
    let broker = start.ready();
    let mut address = Address::new(machine.scratch.join("address"));
    address.set(broker.amqp);
    let mut events = fill(&address, "first");
    let filled = accepted(&events);
    println!("{filled} messages of 256 B filled the disk");
    assert!(filled > 1000, "only {filled} messages on 28 MiB");
    // Another start on the full disk is no trouble.
    address.clear();
    broker.kill();
    let broker = start.ready();
    address.set(broker.amqp);
    let consumer = json!({"name": "c", "queue": "full", "style": "drain", "credit": 1});
    let drain = Load::start(Client::Proton, json!({"consumers": [consumer]}), address.path());
    wait_for(&drain, |what| matches!(what, What::Drained), 1);
    events.extend(drain.finish());
    let queue = broker.get("/api/v1/queues/full");
    assert_eq!((&queue["available"], &queue["acquired"]), (&json!(0), &json!(0)), "{queue}");
    let again = fill(&address, "second");
    assert!(accepted(&again) > filled / 4, "only {} of {filled} fit again", accepted(&again));
    // A full disk may refuse, where it does not withhold credit.
    events.retain(|event| !matches!(event.what, What::Refused { .. }));
    let verdict = check(events, &Rules { strict: &["full"], may_lose: false, crashes: true });
    verdict.assert_clean();
    assert!(verdict.received >= filled);
}

/// Sends until nothing is accepted any more; withheld credit and refusals are both right.
fn fill(address: &Address, producer: &str) -> Vec<Event> {
    let producer = json!({"name": producer, "queue": "full", "window": 2, "body": 256});
    let mut load = Load::start(Client::Proton, json!({"producers": [producer]}), address.path());
    let count = |load: &Load| load.count(|what| matches!(what, What::Accepted { .. }));
    let began = Instant::now();
    let mut last = (count(&load), Instant::now());
    while last.1.elapsed() < Duration::from_secs(3) {
        load.assert_running();
        assert!(began.elapsed() < Duration::from_secs(180), "the disk does not fill");
        thread::sleep(Duration::from_millis(100));
        if count(&load) > last.0 {
            last = (count(&load), Instant::now());
        }
    }
    load.finish()
}

fn accepted(events: &[Event]) -> usize {
    events.iter().filter(|event| matches!(event.what, What::Accepted { .. })).count()
}
