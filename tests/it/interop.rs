//! The broker as clients that others wrote see it: one test for each thing that they rely on.
//!
//! Messages are written by hand (`message.rs`) and travel through a foreign client on each side, so
//! neither end of a test knows our codec. Unless it says otherwise, a test runs with Proton and
//! with rhea, on a queue of its own.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Broker, Scratch, Start};
use crate::load::Client;
use crate::message::{
    Header, data, durable, header, kept, later, number, numbered, pattern, samples, to, to_hex,
};
use crate::remote::{BOTH, Remote};
use crate::table::java;

/// A broker with a directory of its own.
struct World {
    broker: Broker,
    scratch: Scratch,
}

fn world(name: &str) -> World {
    let scratch = Scratch::new(name);
    let broker = Start::new(&scratch.join("data")).ready();
    World { broker, scratch }
}

fn numbers(messages: &[Vec<u8>]) -> Vec<u32> {
    messages.iter().map(|message| number(message)).collect()
}

#[test]
#[ignore = "needs the foreign clients: tests/run interop"]
fn messages_come_out_as_they_went_in() {
    let world = world("exact");
    for (at, (from, to)) in [(0, 1), (1, 0), (0, 0), (1, 1)].into_iter().enumerate() {
        let queue = format!("exact-{at}");
        let mut sender = Remote::connected(BOTH[from], &world.broker);
        sender.sender("s", &queue);
        let samples = samples();
        for sample in &samples {
            sender.send("s", &sample.bytes);
        }
        let mut receiver = Remote::connected(BOTH[to], &world.broker);
        receiver.receiver("r", &queue, 1);
        for sample in &samples {
            let came = receiver.take("r", 1).remove(0);
            let what = format!("{} from {:?} to {:?}", sample.what, BOTH[from], BOTH[to]);
            assert!(kept(&came) == kept(&sample.bytes), "{what} came out changed");
            assert!(header(&came).first_acquirer, "{what}: nobody had it before");
            let was_durable = header(&sample.bytes).durable;
            assert_eq!(header(&came).durable, was_durable, "{what}: durable");
            receiver.settle("r:0", "accepted");
            receiver.ok(json!({"do": "flow", "name": "r", "credit": 1}));
        }
        receiver.answered(json!({"do": "close"}));
    }
}

#[test]
#[ignore = "needs the foreign clients: tests/run interop"]
fn credit_is_obeyed() {
    let world = world("credit");
    for client in BOTH {
        let queue = format!("credit-{client:?}");
        let mut remote = Remote::connected(client, &world.broker);
        remote.sender("s", &queue);
        (0..10).for_each(|n| remote.send("s", &numbered(n)));
        remote.receiver("r", &queue, 3);
        assert_eq!(numbers(&remote.take_some("r", 4, 500)), [0, 1, 2], "{client:?}");
        remote.settle("r:0", "accepted");
        assert!(remote.take_some("r", 1, 300).is_empty(), "{client:?}: settling is no credit");
        remote.ok(json!({"do": "flow", "name": "r", "credit": 2}));
        assert_eq!(numbers(&remote.take_some("r", 3, 500)), [3, 4], "{client:?}");
    }
}

#[test]
#[ignore = "needs the foreign clients: tests/run interop"]
fn drain_is_always_answered() {
    let world = world("drain");
    for client in BOTH {
        let queue = format!("drain-{client:?}");
        let mut remote = Remote::connected(client, &world.broker);
        remote.sender("s", &queue);
        remote.receiver("r", &queue, 0);
        let drain = json!({"do": "drain", "name": "r", "credit": 10});
        let answer = remote.ok(drain.clone());
        assert_eq!(answer, json!({"done": true, "unused": 10}), "{client:?}: an empty queue");
        (0..2).for_each(|n| remote.send("s", &numbered(n)));
        let answer = remote.ok(drain);
        assert_eq!(answer, json!({"done": true, "unused": 8}), "{client:?}: two messages");
        assert_eq!(numbers(&remote.take("r", 2)), [0, 1], "{client:?}");
        remote.send("s", &numbered(2));
        assert!(remote.take_some("r", 1, 300).is_empty(), "{client:?}: no credit is left");
    }
}

#[test]
#[ignore = "needs the foreign clients: tests/run interop"]
fn outcomes_do_what_they_say() {
    let world = world("outcomes");
    for client in BOTH {
        let queue = format!("outcomes-{client:?}");
        let mut remote = Remote::connected(client, &world.broker);
        remote.sender("s", &queue);
        remote.receiver("r", &queue, 100);
        let expect = |remote: &mut Remote, n: u32, first_acquirer: bool, delivery_count: u64| {
            let came = remote.take("r", 1).remove(0);
            assert_eq!(number(&came), n, "{client:?}");
            let Header { first_acquirer: first, delivery_count: count, .. } = header(&came);
            assert_eq!((first, count), (first_acquirer, delivery_count), "{client:?}: {n}");
        };
        remote.send("s", &numbered(1));
        expect(&mut remote, 1, true, 0);
        remote.settle("r:0", "released");
        expect(&mut remote, 1, false, 0);
        remote
            .ok(json!({"do": "settle", "delivery": "r:0", "outcome": "modified", "failed": true}));
        expect(&mut remote, 1, false, 1);
        remote.ok(json!({"do": "settle", "delivery": "r:0", "outcome": "modified"}));
        expect(&mut remote, 1, false, 1);
        remote.settle("r:0", "rejected");
        remote.send("s", &numbered(2));
        expect(&mut remote, 2, true, 0);
        remote.settle("r:0", "accepted");
        assert!(
            remote.take_some("r", 1, 300).is_empty(),
            "{client:?}: rejected is not redelivered"
        );
    }
}

#[test]
#[ignore = "needs the foreign clients: tests/run interop"]
fn undeliverable_here_goes_elsewhere() {
    let world = world("elsewhere");
    for client in BOTH {
        let queue = format!("elsewhere-{client:?}");
        let mut remote = Remote::connected(client, &world.broker);
        remote.sender("s", &queue);
        remote.send("s", &numbered(1));
        remote.receiver("a", &queue, 10);
        remote.take("a", 1);
        let settle = json!({"do": "settle", "delivery": "a:0", "outcome": "modified",
            "undeliverable": true});
        remote.ok(settle);
        assert!(remote.take_some("a", 1, 300).is_empty(), "{client:?}: not here again");
        remote.receiver("b", &queue, 10);
        assert_eq!(numbers(&remote.take("b", 1)), [1], "{client:?}");
    }
}

#[test]
#[ignore = "needs the foreign clients: tests/run interop"]
fn what_a_dead_consumer_held_comes_in_order() {
    let world = world("dead");
    for client in BOTH {
        let queue = format!("dead-{client:?}");
        let mut remote = Remote::connected(client, &world.broker);
        remote.sender("s", &queue);
        (0..10).for_each(|n| remote.send("s", &numbered(n)));
        let mut dying = Remote::connected(client, &world.broker);
        dying.receiver("r", &queue, 5);
        assert_eq!(numbers(&dying.take("r", 5)), [0, 1, 2, 3, 4]);
        dying.settle("r:1", "accepted");
        dying.ok(json!({"do": "idle", "ms": 200}));
        dying.kill();
        remote.receiver("r", &queue, 100);
        let came = remote.take("r", 9);
        assert_eq!(numbers(&came), [0, 2, 3, 4, 5, 6, 7, 8, 9], "{client:?}");
        let first: Vec<bool> = came.iter().map(|each| header(each).first_acquirer).collect();
        assert_eq!(first, [[false; 4].as_slice(), &[true; 5]].concat(), "{client:?}");
        assert!(came.iter().all(|each| header(each).delivery_count == 0), "{client:?}");
    }
}

#[test]
#[ignore = "needs the foreign clients: tests/run interop"]
fn an_unsettled_outcome_is_settled_by_the_broker() {
    let world = world("unsettled");
    for client in BOTH {
        let queue = format!("unsettled-{client:?}");
        let mut remote = Remote::connected(client, &world.broker);
        remote.sender("s", &queue);
        (0..2).for_each(|n| remote.send("s", &numbered(n)));
        remote.receiver("r", &queue, 10);
        remote.take("r", 2);
        let unsettled = json!({"do": "settle", "delivery": "r:1", "outcome": "accepted",
            "unsettled": true});
        assert_eq!(remote.ok(unsettled), json!({"settled": true}), "{client:?}");
        remote.answered(json!({"do": "detach", "name": "r"}));
        remote.receiver("r", &queue, 10);
        assert_eq!(numbers(&remote.take_some("r", 2, 500)), [0], "{client:?}");
    }
}

#[test]
#[ignore = "needs the foreign clients: tests/run interop"]
fn each_ending_is_answered() {
    let world = world("endings");
    for client in BOTH {
        let queue = format!("endings-{client:?}");
        let mut remote = Remote::connected(client, &world.broker);
        for closed in [true, false] {
            remote.sender("s", &queue);
            remote.receiver("r", &queue, 10);
            remote.answered(json!({"do": "detach", "name": "s", "closed": closed}));
            remote.answered(json!({"do": "detach", "name": "r", "closed": closed}));
        }
        remote.sender("s", &queue);
        remote.answered(json!({"do": "end"}));
        remote.sender("s", &queue);
        remote.send("s", &numbered(1));
        remote.answered(json!({"do": "close"}));
    }
}

#[test]
#[ignore = "needs the foreign clients: tests/run interop"]
fn what_is_not_built_is_refused() {
    let world = world("refused");
    for client in BOTH {
        let mut remote = Remote::connected(client, &world.broker);
        remote.sender("s", "refused");
        remote.send("s", &numbered(1));
        let mut steps = vec![
            json!({"do": "receiver", "name": "filtered", "from": "refused", "selector": "a > 1"}),
            json!({"do": "receiver", "name": "topic", "from": "topic://t"}),
        ];
        if matches!(client, Client::Proton) {
            steps.push(json!({"do": "sender", "name": "coordinator", "coordinator": true}));
        }
        for step in steps {
            let condition = remote.refused(step.clone());
            assert_eq!(condition, "amqp:not-implemented", "{client:?}: {step}");
        }
        remote.send("s", &numbered(2));
        let second = json!({"do": "receiver", "name": "r", "from": "refused",
            "rcv_settle": "second"});
        assert_eq!(remote.ok(second)["rcv_settle"], 1, "{client:?}: what is in force is said");
    }
}

#[test]
#[ignore = "needs the foreign clients: tests/run interop"]
fn a_browser_sees_everything_and_takes_nothing() {
    let world = world("browse");
    for client in BOTH {
        let queue = format!("browse-{client:?}");
        let mut remote = Remote::connected(client, &world.broker);
        remote.sender("s", &queue);
        (0..30).for_each(|n| remote.send("s", &numbered(n)));
        let expected: Vec<u32> = (0..30).collect();
        remote.ok(json!({"do": "receiver", "name": "b", "from": queue, "copy": true}));
        let answer = remote.ok(json!({"do": "drain", "name": "b", "credit": 50}));
        assert_eq!(answer, json!({"done": true, "unused": 20}), "{client:?}");
        assert_eq!(numbers(&remote.take("b", 30)), expected, "{client:?}");
        remote.settle("b:3", "accepted");
        remote.settle("b:4", "rejected");
        remote.answered(json!({"do": "detach", "name": "b"}));
        remote.receiver("r", &queue, 50);
        assert_eq!(numbers(&remote.take("r", 30)), expected, "{client:?}: all is there");
    }
}

#[test]
#[ignore = "needs the foreign clients: tests/run interop"]
fn an_answer_finds_its_way_through_relay_and_temporary_queue() {
    let world = world("reply");
    for (asks, answers) in [(0, 1), (1, 0)].map(|(a, b)| (BOTH[a], BOTH[b])) {
        let what = format!("{asks:?} asks {answers:?}");
        let mut asking = Remote::connected(asks, &world.broker);
        let made = asking.ok(json!({"do": "receiver", "name": "r", "dynamic": true, "credit": 9}));
        let name = made["address"].as_str().expect("the broker names the queue").to_owned();
        let mut answering = Remote::connected(answers, &world.broker);
        answering.ok(json!({"do": "sender", "name": "relay", "within_ms": 1000}));
        (0..5).for_each(|n| answering.send("relay", &to(&name, &numbered(n))));
        assert_eq!(numbers(&asking.take("r", 5)), [0, 1, 2, 3, 4], "{what}");
        // A queue that is not there yet is made, as by an attach; no address is one's own fault.
        let queue = format!("relayed-{asks:?}");
        answering.send("relay", &to(&queue, &numbered(7)));
        let lost = json!({"do": "send", "name": "relay", "hex": to_hex(&numbered(8))});
        assert_eq!(answering.refused(lost), "amqp:invalid-field", "{what}");
        answering.receiver("q", &queue, 9);
        assert_eq!(numbers(&answering.take("q", 1)), [7], "{what}");
        asking.answered(json!({"do": "detach", "name": "r"}));
        let late = json!({"do": "send", "name": "relay", "hex": to_hex(&to(&name, &numbered(9)))});
        assert_eq!(answering.refused(late), "amqp:not-found", "{what}: it went with its link");
    }
}

#[test]
#[ignore = "needs the foreign clients: tests/run interop"]
fn a_message_too_large_ends_its_link_only() {
    let scratch = Scratch::new("large");
    let directory = scratch.join("data");
    let mut start = Start::new(&directory);
    start.args.extend(["--max-message-size".into(), (16 << 20).to_string()]);
    let world = World { broker: start.ready(), scratch };
    let mut remote = Remote::connected(Client::Proton, &world.broker);
    remote.sender("s", "large");
    let largest = remote.ok(json!({"do": "sender", "name": "m", "to": "large"}));
    assert_eq!(largest["max_message_size"], 16 << 20);
    let hex = to_hex(&data(&pattern(17 << 20)));
    let condition = remote.refused(json!({"do": "send", "name": "s", "hex": hex}));
    assert_eq!(condition, "amqp:link:message-size-exceeded");
    remote.send("m", &data(&pattern(15 << 20)));
    remote.receiver("r", "large", 10);
    let came = remote.take_some("r", 2, 2000);
    assert_eq!(came.len(), 1);
    assert!(kept(&came[0]) == data(&pattern(15 << 20)));
}

#[test]
#[ignore = "needs the foreign clients: tests/run interop"]
fn an_aborted_delivery_leaves_no_trace() {
    let world = world("aborted");
    let mut remote = Remote::connected(Client::Proton, &world.broker);
    remote.sender("s", "aborted");
    let hex = to_hex(&data(&pattern(300_000)));
    remote.ok(json!({"do": "send", "name": "s", "hex": hex, "abort": true}));
    remote.send("s", &numbered(1));
    remote.receiver("r", "aborted", 10);
    assert_eq!(numbers(&remote.take_some("r", 2, 500)), [1]);
}

#[test]
#[ignore = "needs the foreign clients: tests/run interop"]
fn an_idle_connection_is_kept_alive() {
    let world = world("idle");
    for client in BOTH {
        let mut remote = Remote::start(client);
        let port = world.broker.amqp.port();
        remote.ok(json!({"do": "connect", "port": port, "idle_ms": 1000}));
        let answer = remote.ok(json!({"do": "idle", "ms": 4000}));
        assert_eq!(answer["open"], true, "{client:?}: the broker sends its heartbeats");
        remote.sender("s", "idle");
        remote.send("s", &numbered(1));
    }
}

#[test]
#[ignore = "needs the foreign clients: tests/run interop"]
fn a_stop_tells_the_clients_and_keeps_the_messages() {
    let scratch = Scratch::new("stop");
    let data = scratch.join("data");
    let start = Start::new(&data);
    let mut broker = start.ready();
    for client in BOTH {
        let queue = format!("stop-{client:?}");
        let mut remote = Remote::connected(client, &broker);
        remote.sender("s", &queue);
        (0..50).for_each(|n| remote.send("s", &durable(&numbered(n))));
        broker.send_term();
        let answer = remote.step(json!({"do": "connection_closed"}));
        assert_eq!(answer["closed"], true, "{client:?}");
        assert_eq!(answer["error"]["condition"], "amqp:connection:forced", "{client:?}");
        let began = Instant::now();
        assert!(broker.wait_exit().success());
        assert!(began.elapsed() < Duration::from_secs(6), "drained within --drain");
        broker = start.ready();
        let mut remote = Remote::connected(client, &broker);
        remote.receiver("r", &queue, 100);
        assert_eq!(numbers(&remote.take("r", 50)), (0..50).collect::<Vec<u32>>(), "{client:?}");
    }
}

#[test]
#[ignore = "needs the foreign clients: tests/run interop"]
fn two_shards_make_one_queue() {
    let scratch = Scratch::new("shards");
    let data = scratch.join("data");
    let mut start = Start::new(&data);
    start.args.extend(["--shards".into(), "2".into()]);
    let broker = start.ready();
    let mut remotes: Vec<Remote> =
        (0..6).map(|n| Remote::connected(BOTH[n % 2], &broker)).collect();
    for round in 0..5 {
        let queue = format!("made-{round}");
        for remote in &mut remotes {
            remote.sender(&queue, &queue);
        }
        for (n, remote) in remotes.iter_mut().enumerate() {
            remote.send(&queue, &numbered(n as u32));
        }
        let reader = &mut remotes[round % 6];
        reader.receiver("r", &queue, 100);
        assert_eq!(numbers(&reader.take("r", 6)), [0, 1, 2, 3, 4, 5], "{queue}");
        (0..6).for_each(|n| reader.settle(&format!("r:{n}"), "accepted"));
        reader.answered(json!({"do": "detach", "name": "r"}));
    }
    let queues = broker.get("/api/v1/queues");
    let text = queues.to_string();
    for round in 0..5 {
        assert_eq!(text.matches(&format!("\"made-{round}\"")).count(), 1, "{queues}");
    }
}

#[test]
#[ignore = "needs the foreign clients: tests/run interop"]
fn the_admin_api_counts_what_is_there() {
    let world = world("counts");
    let mut remote = Remote::connected(Client::Proton, &world.broker);
    remote.sender("s", "counts");
    (0..5).for_each(|n| remote.send("s", &numbered(n)));
    remote.receiver("r", "counts", 2);
    remote.take("r", 2);
    let queue = world.broker.get("/api/v1/queues/counts");
    let numbers = ["available", "acquired", "consumers", "enqueued_total"].map(|name| &queue[name]);
    assert_eq!(numbers, [3, 2, 1, 5].map(Value::from).each_ref(), "{queue}");
    let connections = world.broker.get("/api/v1/connections").to_string();
    assert!(connections.contains("127.0.0.1"), "{connections}");
}

fn jms(args: &[&str], broker: &Broker) -> Vec<Value> {
    let url = format!("amqp://{}", broker.amqp);
    let output = java("jms", "JmsClient")
        .args([args[0], &url])
        .args(&args[1..])
        .output()
        .expect("java can be started");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "JMS {args:?}: {text}{errors}");
    let lines: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect();
    assert_eq!(lines.last(), Some(&json!({"ev": "done"})));
    lines
}

#[test]
#[ignore = "needs the foreign clients: tests/run interop"]
fn jms_asks_and_is_answered_through_a_temporary_queue() {
    let world = world("jms-ask");
    let lines = jms(&["ask", "questions", "20"], &world.broker);
    for (n, line) in lines[..20].iter().enumerate() {
        assert_eq!(*line, json!({"ev": "answered", "number": n, "fits": true}));
    }
    assert_eq!(lines[20], json!({"ev": "deleted"}));
    let queues = world.broker.get("/api/v1/queues").to_string();
    assert!(queues.contains("questions") && !queues.contains("$temp"), "{queues}");
}

#[test]
#[ignore = "needs the foreign clients: tests/run interop"]
fn jms_browses_and_takes_nothing() {
    let world = world("jms-browse");
    jms(&["send", "browse", "40"], &world.broker);
    for _ in 0..2 {
        let lines = jms(&["browse", "browse"], &world.broker);
        assert_eq!(lines.len(), 41, "40 messages and the end");
        for (n, line) in lines[..40].iter().enumerate() {
            assert_eq!((&line["number"], &line["whole"]), (&json!(n), &json!(true)), "{line}");
        }
    }
    let lines = jms(&["receive", "browse", "40", "auto"], &world.broker);
    assert!(lines[..40].iter().all(|line| line["redelivered"] == false));
}

#[test]
#[ignore = "needs the foreign clients: tests/run interop"]
fn jms_sends_and_receives() {
    let world = world("jms");
    for how in ["auto", "client"] {
        let queue = format!("jms-{how}");
        jms(&["send", &queue, "50"], &world.broker);
        let lines = jms(&["receive", &queue, "50", how], &world.broker);
        for (n, line) in lines[..50].iter().enumerate() {
            let expected = json!({"ev": "received", "number": n, "whole": true,
                "redelivered": false, "count": 1});
            assert_eq!(*line, expected, "{how}");
        }
        let queue = world.broker.get(&format!("/api/v1/queues/{queue}"));
        assert_eq!((&queue["available"], &queue["acquired"]), (&json!(0), &json!(0)), "{how}");
    }
}

/// By the annotation, and by JMS, which asks for `DELAYED_DELIVERY` before it delays anything.
#[test]
#[ignore = "needs the foreign clients: tests/run interop"]
fn a_message_for_later_comes_in_its_time_and_not_before() {
    let world = world("later");
    let delay = Duration::from_millis(1500);
    for client in BOTH {
        let mut remote = Remote::connected(client, &world.broker);
        let queue = format!("later-{client:?}");
        remote.sender("s", &queue);
        remote.receiver("r", &queue, 10);
        let (late, at_once) = (later(1500, &numbered(0)), numbered(1));
        let sent = Instant::now();
        remote.send("s", &late);
        remote.send("s", &at_once);
        assert_eq!(kept(&remote.take("r", 1)[0]), at_once, "{client:?}");
        let waits = world.broker.get(&format!("/api/v1/queues/{queue}"))["delayed"].clone();
        assert_eq!((sent.elapsed() > delay, waits), (false, json!(1)), "{client:?}");
        assert_eq!(kept(&remote.take("r", 1)[0]), late, "{client:?}");
        assert!(sent.elapsed() >= delay, "{client:?}: after {:?}", sent.elapsed());
    }
    let mut jms = Remote::spawn(java("jms", "JmsRemote"));
    jms.ok(json!({"do": "connect", "port": world.broker.amqp.port()}));
    jms.sender("s", "later-jms");
    jms.receiver("r", "later-jms", 10);
    let sent = Instant::now();
    for (text, delay_ms) in [("late", 1500), ("at once", 0)] {
        let step = json!({"do": "send", "name": "s", "text": text, "delay_ms": delay_ms});
        assert_eq!(jms.ok(step)["state"], "accepted");
    }
    assert_eq!(jms.read("r", 1, 10_000)[0]["text"], "at once");
    assert!(sent.elapsed() < delay);
    assert_eq!(jms.read("r", 1, 10_000)[0]["text"], "late");
    assert!(sent.elapsed() >= delay, "after {:?}", sent.elapsed());
}

#[test]
#[ignore = "needs the foreign clients: tests/run interop"]
fn jms_recovers_and_is_refused_clearly() {
    let world = world("jms-recover");
    jms(&["send", "recover", "5"], &world.broker);
    let lines = jms(&["receive", "recover", "5", "recover"], &world.broker);
    let flags: Vec<bool> = lines[..10].iter().map(|line| line["redelivered"] == true).collect();
    assert_eq!(flags, [[false; 5], [true; 5]].concat());
    let order: Vec<&Value> = lines[..10].iter().map(|line| &line["number"]).collect();
    assert_eq!(order, [0, 1, 2, 3, 4, 0, 1, 2, 3, 4].map(Value::from).each_ref());
    for what in ["selector", "topic"] {
        let lines = jms(&["refuse", "recover", what], &world.broker);
        assert_eq!(lines[0]["ev"], "refused", "{what}: {}", lines[0]);
    }
    drop(world.scratch);
}
