//! `laelaps perf` against the real broker: a stall that cannot hide, and each command once, tiny.
//!
//! ```text
//!   due       | | | | | | | | | | | | | | |        every 2 ms, whatever the broker does
//!   broker    ────────┤ stopped 200 ms ├──────
//!   intended           200 198 196 ...  2          each message that was due waited
//!   actual             200                         only those that were under way did
//! ```
//! A harness that waits for its replies sends next to nothing while the broker is stopped, and so
//! counts the stall once. That is what the second histogram would say alone.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use ::perf::block::{Block, Histogram};
use ::perf::broker::{Broker, BrokerPlan, Interrupt};
use ::perf::load::{self, Length, LoadPlan};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::harness::Scratch;

fn start(data: &Path, flags: &[&str]) -> Broker {
    let plan = BrokerPlan {
        exe: PathBuf::from(env!("CARGO_BIN_EXE_laelaps")),
        data: data.to_owned(),
        flags: ["--segment-size", "4 MiB"].iter().chain(flags).map(ToString::to_string).collect(),
        ready_within: Duration::from_secs(30),
    };
    Broker::start(&plan, &Interrupt::never()).expect("the broker starts")
}

/// Samples of at least so many milliseconds.
fn beyond(histogram: &Histogram<u64>, ms: u64) -> u64 {
    histogram.count_between(ms * 1_000_000, u64::MAX)
}

#[test]
fn a_broker_that_is_stopped_shows_in_the_intended_times_and_hardly_in_the_actual_ones() {
    const RATE: u64 = 500;
    const IN_FLIGHT: u32 = 4;
    const STOP_AT: Duration = Duration::from_millis(800);
    const STOPPED: Duration = Duration::from_millis(200);
    let scratch = Scratch::new("stall");
    // No disk in this test: it is about the clock.
    let broker = start(&scratch.join("data"), &["--durability", "async"]);
    let process = Pid::from_raw(broker.process().cast_signed()).expect("a process has an id");
    let plan = LoadPlan {
        rate: Some(RATE as f64),
        in_flight: IN_FLIGHT,
        warmup: Duration::from_millis(300),
        length: Length::For(Duration::from_millis(1500)),
        ..LoadPlan::new(broker.target())
    };
    let mut stopped = false;
    let measured = load::measure(&plan, &mut |progress| {
        if !stopped && progress.elapsed >= STOP_AT {
            stopped = true;
            kill_process(process, Signal::STOP).expect("ours to stop");
            std::thread::sleep(STOPPED);
            kill_process(process, Signal::CONT).expect("ours to wake");
        }
        ControlFlow::Continue(())
    });
    let block = measured.expect("the load runs to its end").produced.expect("it produced");
    assert!(stopped, "the load was over before the broker was stopped");
    assert_eq!((block.completed, block.lost, block.unsent), (block.offered, 0, 0));

    // Those due in the stall waited for its rest: evenly spread from its length down to nothing.
    let due = RATE * STOPPED.as_millis() as u64 / 1000;
    for (ms, share) in [(150, 0.25), (100, 0.5), (50, 0.75)] {
        let waited = beyond(&block.intended, ms);
        let expected = (due as f64 * share) as u64;
        let whole = expected * 8 / 10;
        assert!(waited >= whole, "{waited} waited {ms} ms or more, of about {expected}");
    }
    let longest = block.intended.max() / 1_000_000;
    assert!(longest >= 190, "the longest wait is {longest} ms");
    // By the actual times only what was under way when it stopped was slow.
    let slow = beyond(&block.actual, 100);
    // A busy machine may stall once more by itself.
    assert!((1..=3 * u64::from(IN_FLIGHT)).contains(&slow), "{slow} were under way for 100 ms");
    assert!(beyond(&block.intended, 100) >= 3 * slow, "the stall hides");
    // We were not late ourselves: the in-flight bound held them up, and that is counted apart.
    assert!(block.held_up >= due / 2, "{} were held up", block.held_up);
    assert_eq!(beyond(&block.lag, 100), 0, "the stall is booked as ours");
}

/// Runs a command that writes JSON; that and what it printed.
fn perf(scratch: &Scratch, arguments: &[&str]) -> (Value, String) {
    let json = scratch.join("result.json");
    let output = Command::new(env!("CARGO_BIN_EXE_laelaps"))
        .args(["perf", arguments[0], "--json"])
        .arg(&json)
        .args(&arguments[1..])
        .stdin(Stdio::null())
        .output()
        .expect("the command runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "perf {arguments:?}: {said}{complained}");
    let text = fs::read_to_string(&json).expect("the result was written");
    let value: Value = serde_json::from_str(&text).expect("it is JSON");
    assert_eq!(value["schema"], "laelaps.perf/1");
    assert_eq!(value["kind"], arguments[0]);
    assert!(value["verdict"]["valid"].is_boolean() && value["machine"]["kernel"].is_string());
    (value, said)
}

fn block(value: &Value) -> Block {
    serde_json::from_value(value.clone()).expect("a block is read as it was written")
}

#[test]
fn what_is_produced_is_consumed_and_both_are_told() {
    let scratch = Scratch::new("perf-stream");
    let broker = start(&scratch.join("data"), &[]);
    let url = format!("amqp://{}", broker.target().addr);
    let hgrm = scratch.join("latency.hgrm");
    let hgrm_flag = hgrm.to_str().expect("a path of ours");
    let (value, said) = perf(
        &scratch,
        &[
            "produce",
            "--broker",
            &url,
            "--count",
            "60",
            "--rate",
            "300",
            "--arrivals",
            "poisson",
            "--connections",
            "2",
            "--links",
            "2",
            "--size",
            "64",
            "--address",
            "a",
            "--address",
            "b",
            "--warmup",
            "100ms",
            "--threads",
            "2",
            "--hgrm",
            hgrm_flag,
        ],
    );
    let produced = block(&value["produced"]);
    assert_eq!((produced.completed, produced.intended.len()), (60, 60));
    assert!(produced.cpu_client_ns > 0 && said.contains("60 accepted"), "{said}");
    assert!(fs::read_to_string(hgrm).expect("written").contains("Total count    =           60]"));

    // Those of the warm-up are there too.
    let sent = value["accepted"].as_u64().expect("a number");
    let count = sent.to_string();
    let (value, _) = perf(
        &scratch,
        &[
            "consume",
            "--broker",
            &url,
            "--count",
            &count,
            "--links",
            "2",
            "--address",
            "a",
            "--address",
            "b",
            "--quiet",
        ],
    );
    let consumed = block(&value["consumed"]);
    assert_eq!((consumed.completed, consumed.intended.len()), (sent, sent), "with their ages");

    let process = broker.process().to_string();
    let (value, said) = perf(
        &scratch,
        &[
            "e2e",
            "--broker",
            &url,
            "--rate",
            "200",
            "--duration",
            "300ms",
            "--warmup",
            "50ms",
            "--address",
            "a",
            "--server-pid",
            &process,
        ],
    );
    let (produced, consumed) = (block(&value["produced"]), block(&value["consumed"]));
    assert_eq!((produced.completed, consumed.completed, consumed.lost), (60, 60, 0));
    assert!(consumed.actual.min() > 0 && produced.cpu_server_ns.is_some_and(|ns| ns > 0), "{said}");
    broker.stop().expect("it stops well");
}

#[test]
fn a_sweep_rises_and_leaves_no_message() {
    let scratch = Scratch::new("perf-sweep");
    let broker = start(&scratch.join("data"), &["--durability", "async"]);
    let url = format!("amqp://{}", broker.target().addr);
    let (value, said) = perf(
        &scratch,
        &[
            "sweep",
            "--broker",
            &url,
            "--from",
            "50",
            "--to",
            "100",
            "--factor",
            "2",
            "--duration",
            "400ms",
            "--warmup",
            "50ms",
            "--quiet",
        ],
    );
    let steps = value["steps"].as_array().expect("steps");
    assert!(!steps.is_empty() && steps.len() <= 4, "{said}");
    assert_eq!(steps[0]["rate"], 50.0);
    assert_eq!(block(&steps[0]["block"]).offered, 20);
    // What is taken is exact where one link takes it.
    let three = LoadPlan {
        length: Length::Count(3),
        warmup: Duration::ZERO,
        ..LoadPlan::new(broker.target())
    };
    load::run(&three).expect("three are sent");
    assert_eq!(load::drain(&three, 2).expect("two come"), 2);
    assert_eq!(load::drain(&three, 1).expect("the third was left"), 1);
    let drained =
        LoadPlan { patience: Duration::from_millis(300), ..LoadPlan::new(broker.target()) };
    assert_eq!(load::drain(&drained, 1).expect("the broker answers"), 0, "a message was left");
}

#[test]
fn a_broker_that_was_killed_is_timed_and_has_its_backlog() {
    let scratch = Scratch::new("perf-recover");
    let dir = scratch.path().to_str().expect("a path of ours");
    let (value, said) = perf(
        &scratch,
        &[
            "recover",
            "--backlog",
            "0,50",
            "--history",
            "50",
            "--restarts",
            "2",
            "--dir",
            dir,
            "--quiet",
            "--",
            "--segment-size",
            "4 MiB",
        ]
        .map(|argument| argument),
    );
    let points = value["points"].as_array().expect("points");
    assert_eq!(points.len(), 3, "{said}");
    for (point, waits) in points.iter().zip([0, 50, 0]) {
        assert_eq!(point["backlog"], waits);
        assert_eq!(point["recovered"], waits);
        let times = point["ready_ms"].as_array().expect("times");
        assert!(times.len() == 2 && times.iter().all(|ms| ms.as_f64() > Some(1.0)), "{said}");
    }
    let left = fs::read_dir(scratch.path()).expect("ours").flatten().map(|entry| entry.file_name());
    assert_eq!(left.collect::<Vec<_>>(), ["result.json"], "something was left behind");
}

#[test]
fn a_backlog_beyond_memory_is_measured_and_every_message_compared() {
    let scratch = Scratch::new("perf-backlog");
    let dir = scratch.path().to_str().expect("a path of ours");
    let (value, said) = perf(
        &scratch,
        &[
            "backlog",
            "--bytes",
            "48000000",
            "--queues",
            "4",
            "--memory-max",
            "4194304",
            "--rate",
            "100",
            "--block",
            "500ms",
            "--blocks",
            "1",
            "--dir",
            dir,
            "--quiet",
            "--",
            "--segment-size",
            "4 MiB",
        ],
    );
    assert_all_came(&value, &said);
    assert_eq!(value["messages"], 4 * (48_000_000 / 1024 / 4), "{said}");
    assert!(value["from_memory"].as_f64() > Some(0.0) && value["cold"].as_f64() > Some(0.0));
    assert!(value["watched"]["resident_bytes"].as_u64() > Some(1 << 20), "{said}");
    let blocks = value["blocks"].as_array().expect("blocks");
    assert_eq!(blocks.iter().map(|block| &block["beside"]).collect::<Vec<_>>(), [false, true]);
    assert!(blocks.iter().all(|block| block["p99_ms"].as_f64() > Some(0.0)), "{said}");
}

/// A busy machine may spoil figures; what is said of messages holds anywhere.
fn assert_all_came(value: &Value, said: &str) {
    let reasons = value["verdict"]["reasons"].as_array().expect("reasons");
    let of_messages = |reason: &Value| {
        let reason = reason.as_str().unwrap_or_default();
        ["came", "left", "refused"].iter().any(|word| reason.contains(word))
    };
    assert!(!reasons.iter().any(of_messages), "{said}");
}

#[test]
fn laps_over_a_small_log_copy_what_is_held_and_lose_nothing() {
    let scratch = Scratch::new("perf-laps");
    let dir = scratch.path().to_str().expect("a path of ours");
    let (value, said) = perf(
        &scratch,
        &[
            "laps",
            "--disk-max",
            "67108864",
            "--laps",
            "3",
            "--size",
            "16384",
            "--load-rate",
            "2000",
            "--queues",
            "2",
            "--rate",
            "100",
            "--dir",
            dir,
            "--quiet",
            "--",
            "--segment-size",
            "4 MiB",
        ],
    );
    assert_all_came(&value, &said);
    assert!(value["laps"].as_f64() > Some(2.0), "{said}");
    assert!(value["copied_bytes"].as_u64() > Some(1 << 20), "nothing was copied: {said}");
    assert!(value["watched"]["data_bytes"].as_u64() <= Some(67_108_864 + (1 << 20)), "{said}");
    assert!(value["stalls"]["p99_ms"].as_f64() > Some(0.0), "{said}");
}

#[test]
fn a_backup_that_was_away_catches_up_beside_a_producer() {
    let scratch = Scratch::new("perf-catch-up");
    let dir = scratch.path().to_str().expect("a path of ours");
    let (value, said) = perf(
        &scratch,
        &[
            "catch-up", "--bytes", "4194304", "--rate", "100", "--rounds", "1", "--dir", dir,
            "--quiet",
        ],
    );
    let round = &value["rounds"][0];
    for key in ["alone_p99_ms", "back_p99_ms", "alone_probe_p99_ms", "in_sync_ms"] {
        assert!(round[key].as_f64() > Some(0.0), "{key}: {said}");
    }
    assert!(value["p99_ratio"]["median"].as_f64() > Some(0.0), "{said}");
    let left = fs::read_dir(scratch.path()).expect("ours").flatten().map(|entry| entry.file_name());
    assert_eq!(left.collect::<Vec<_>>(), ["result.json"], "something was left behind");
}

#[test]
fn a_broker_that_is_not_there_is_an_error_in_words() {
    let output = Command::new(env!("CARGO_BIN_EXE_laelaps"))
        .args(["perf", "produce", "--broker", "amqp://127.0.0.1:1", "--count", "1"])
        .output()
        .expect("the command runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("is a broker listening there?"), "{said}");
}
