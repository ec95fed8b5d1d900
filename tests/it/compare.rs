//! `laelaps perf compare` against real brokers, tiny; then its report and its gate.
//!
//! ```text
//!   compare ─▶ result.json, result.html     brokers and files of its own, gone in the end
//!   report  ─▶ the page again, .hgrm        gate ─▶ 0 against itself, 1 against a better one
//! ```
//! The figures of such a run mean nothing and are not looked at.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::harness::Scratch;

fn perf(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_laelaps"))
        .current_dir(directory)
        .arg("perf")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("the command runs")
}

fn said(output: &Output) -> String {
    let texts = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    texts.concat()
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).expect("written")).expect("JSON")
}

#[test]
fn a_pair_is_compared_with_a_floor_of_two_disks() {
    let scratch = Scratch::new("compare-pair");
    let root = scratch.join("work");
    fs::create_dir(&root).expect("made");
    let compare = ["compare", "--replicated", "--floor", "--pairs", "1", "--quiet"];
    let short = ["--block", "200ms", "--warmup", "50ms", "--rate", "100", "--json", "pair.json"];
    let many = ["--producers", "2", "--threads", "2"];
    let output = perf(&root, &[compare.as_slice(), &short, &many].concat());
    assert!(output.status.success(), "{}", said(&output));
    let result = read(&root.join("pair.json"));
    assert_eq!(
        (&result["plan"]["threads"], &result["plan"]["saturation"]),
        (&2.into(), &Value::Null)
    );
    for round in result["rounds"].as_array().expect("rounds") {
        let blocks = round["blocks"].as_object().expect("blocks");
        let names: Vec<&str> = blocks.keys().map(String::as_str).collect();
        assert_eq!(names, ["pair-floor", "replicated"]);
        assert!(blocks.values().all(|block| block["completed"].as_u64() > Some(0)), "{round}");
    }
    let left: Vec<_> = fs::read_dir(&root).expect("there").collect();
    assert_eq!(left.len(), 2, "the result and its page, and no directory: {left:?}");
}

#[test]
fn brokers_and_floors_are_compared_reported_and_judged() {
    let scratch = Scratch::new("compare");
    let root = scratch.join("work");
    fs::create_dir(&root).expect("made");
    let compare = ["compare", "--sync", "--async", "--floor", "--pairs", "2", "--quiet"];
    let short = ["--block", "150ms", "--warmup", "50ms", "--rate", "100", "--json", "one.json"];
    let output = perf(&root, &[compare.as_slice(), &short].concat());
    assert!(output.status.success(), "{}", said(&output));
    let result = read(&root.join("one.json"));
    assert_eq!((&result["schema"], &result["kind"]), (&"laelaps.perf/1".into(), &"compare".into()));
    assert_eq!(result["verdict"]["valid"], false, "two rounds are no result");
    for ratio in ["sync/floor", "async/echo", "sync/async"] {
        for key in ["p50", "p90", "p99", "p999", "low", "high"] {
            // With one clean round, or more, there is a ratio; a noisy machine may have none.
            let figure = &result["ratios"][ratio][key];
            assert!(figure.is_null() || figure.as_f64().is_some_and(|n| n > 0.0), "{ratio} {key}");
        }
    }
    let rounds = result["rounds"].as_array().expect("rounds");
    assert!(rounds.len() >= 2);
    for round in rounds {
        let blocks = round["blocks"].as_object().expect("blocks");
        assert_eq!(blocks.len(), 5, "{round}");
        for name in ["sync", "async"] {
            assert!(blocks[name]["completed"].as_u64().is_some_and(|n| n > 0), "{round}");
            assert!(blocks[name]["cpu_server_ns"].as_f64().is_some_and(|n| n > 0.0), "{round}");
        }
    }
    let mut left: Vec<String> = fs::read_dir(&root)
        .expect("there")
        .map(|entry| entry.expect("read").file_name().into_string().expect("a name of ours"))
        .collect();
    left.sort();
    assert_eq!(left, ["one.html", "one.json"], "brokers and floors leave nothing");

    let output = perf(&root, &["report", "one.json", "--html", "page.html", "--hgrm", "plots"]);
    assert!(output.status.success(), "{}", said(&output));
    let page = fs::read_to_string(root.join("page.html")).expect("written");
    assert_eq!(page, fs::read_to_string(root.join("one.html")).expect("written"));
    assert!(page.contains("INVALID"));
    // Where time was stolen from every round there is nothing to plot.
    let has_figures = result["ratios"]["sync/floor"].is_object();
    assert!(page.contains("<svg") || !has_figures);

    let gate = |baseline: &str| {
        perf(&root, &["gate", "--against", baseline, "one.json", "--allow-invalid"])
    };
    if has_figures {
        assert!(gate("one.json").status.success());
        let mut better = result.clone();
        better["ratios"]["sync/floor"]["p50"] = 1e-6.into();
        better["ratios"]["sync/floor"]["intervals"]["p50"] = vec![1e-6, 1e-6].into();
        fs::write(root.join("better.json"), better.to_string()).expect("written");
        let output = gate("better.json");
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains("worse: sync/floor p50"), "{}", said(&output));
    }
    let output = perf(&root, &["gate", "--against", "one.json", "one.json"]);
    assert!(said(&output).contains("cannot be judged by"), "{}", said(&output));
}

#[test]
fn a_binary_that_is_no_broker_is_an_error_and_nothing_is_left() {
    let scratch = Scratch::new("compare-wrong");
    let root = scratch.join("work");
    fs::create_dir(&root).expect("made");
    let output = perf(&root, &["compare", "--sync", "--binary", "/bin/false"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("the broker ended with"), "{}", said(&output));
    assert_eq!(fs::read_dir(&root).expect("there").count(), 0);
}
