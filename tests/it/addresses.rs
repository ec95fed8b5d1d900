//! What an `[[address]]` says, as foreign clients see it.

use std::fs;
use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::harness::{Broker, Scratch, Start};
use crate::message::{number, numbered, to_hex};
use crate::remote::{BOTH, Remote};
use crate::table::java;

const LIMIT: &str = "amqp:resource-limit-exceeded";

/// A broker with these tables.
fn broker(scratch: &Scratch, tables: &str) -> Broker {
    let path = scratch.join("laelaps.toml");
    fs::write(&path, tables).expect("a file can be written");
    let data = scratch.join("data");
    let mut start = Start::new(&data);
    start.args.extend(["--config".into(), path.display().to_string()]);
    start.ready()
}

#[test]
#[ignore = "needs the foreign clients: tests/run interop"]
fn a_full_queue_does_what_its_address_says() {
    let scratch = Scratch::new("depth");
    let broker = broker(
        &scratch,
        "[[address]]\nmatch = 'refuse.*'\nmax-messages = 2\nfull-policy = 'refuse'\n\
         [[address]]\nmatch = 'drop.*'\nmax-messages = 2\nfull-policy = 'drop'\n\
         [[address]]\nmatch = 'block.*'\nmax-messages = 4\n",
    );
    for client in BOTH {
        let mut remote = Remote::connected(client, &broker);
        for (policy, third) in [("refuse", "rejected"), ("drop", "accepted")] {
            let queue = format!("{policy}.{client:?}");
            remote.sender(policy, &queue);
            (0..2).for_each(|n| remote.send(policy, &numbered(n)));
            let hex = to_hex(&numbered(2));
            let answer = remote.step(json!({"do": "send", "name": policy, "hex": hex}));
            assert_eq!(answer["state"], third, "{client:?}: {answer}");
            if policy == "refuse" {
                assert_eq!(answer["error"]["condition"], LIMIT, "{client:?}: {answer}");
            }
            let got = format!("from-{policy}");
            remote.receiver(&got, &queue, 5);
            let kept: Vec<u32> =
                remote.take_some(&got, 3, 500).iter().map(|message| number(message)).collect();
            assert_eq!(kept, [0, 1], "{client:?} {policy}: the oldest stay");
        }
        let queue = format!("block.{client:?}");
        remote.sender("block", &queue);
        let credit = remote.ok(json!({"do": "credit", "name": "block", "least": 1}));
        assert_eq!(credit["credit"], 4, "{client:?}: no more than the queue holds");
    }
}

#[test]
#[ignore = "needs the foreign clients: tests/run interop"]
fn a_jms_producer_waits_for_room_and_loses_nothing() {
    let scratch = Scratch::new("block");
    let broker = broker(&scratch, "[[address]]\nmatch = 'q'\nmax-messages = 4\n");
    let port = broker.amqp.port();
    let count = 40;
    let producer = thread::spawn(move || {
        let mut jms = Remote::spawn(java("jms", "JmsRemote"));
        jms.ok(json!({"do": "connect", "port": port}));
        jms.ok(json!({"do": "sender", "name": "s", "to": "q"}));
        for n in 0..count {
            let answer =
                jms.ok(json!({"do": "send", "name": "s", "text": format!("{n}"), "durable": true}));
            assert_eq!(answer["state"], "accepted", "message {n}");
        }
    });
    // Long enough for many more than the queue holds.
    let mut remote = Remote::connected(BOTH[0], &broker);
    let mut deepest = 0;
    let mut taken = 0;
    let mut since_full = 0;
    while taken < count {
        let queues = broker.get("/api/v1/queues");
        let available = queues["queues"]
            .as_array()
            .and_then(|queues| queues.iter().find(|queue| queue["name"] == "q"))
            .and_then(|queue| queue["available"].as_u64())
            .unwrap_or(0);
        deepest = deepest.max(available);
        since_full = if available >= 4 { since_full + 1 } else { 0 };
        thread::sleep(Duration::from_millis(50));
        if since_full < 5 && taken + 8 < count {
            continue;
        }
        let name = format!("r{taken}");
        remote.receiver(&name, "q", 100);
        let got = remote.take_some(&name, 4, 500).len();
        (0..got).for_each(|n| remote.settle(&format!("{name}:{n}"), "accepted"));
        remote.answered(json!({"do": "detach", "name": name}));
        taken += got;
    }
    assert!((4..=8).contains(&deepest), "{deepest} messages stood in a queue of 4");
    producer.join().expect("the producer is done");
}

#[test]
#[ignore = "needs the foreign clients: tests/run interop"]
fn who_may_not_come_hears_the_condition() {
    let scratch = Scratch::new("attach");
    let broker = broker(
        &scratch,
        "[[address]]\nmatch = '#'\nauto-create = false\n\
         [[address]]\nmatch = 'q.*'\nauto-create = true\nmax-consumers = 1\n",
    );
    for client in BOTH {
        let mut remote = Remote::connected(client, &broker);
        let sender = json!({"do": "sender", "name": "s", "to": "elsewhere"});
        assert_eq!(remote.refused(sender), "amqp:not-found", "{client:?}");
        let queue = format!("q.{client:?}");
        remote.receiver("first", &queue, 1);
        let second = json!({"do": "receiver", "name": "second", "from": queue, "credit": 1});
        assert_eq!(remote.refused(second), LIMIT, "{client:?}");
        remote.answered(json!({"do": "detach", "name": "first"}));
        remote.receiver("third", &queue, 1);
    }
}
