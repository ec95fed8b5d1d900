//! Starting, stopping and connections that end.

use std::time::Duration;

use amqp::connection::{CloseReason, Event as Amqp};
use amqp::delivery::Outcome;
use broker::{ConnId, Event};
use journal::Level;

use crate::host::{Host, Wish, Writes, message};

#[test]
fn an_idle_connection_hears_goodbye_in_the_turn_of_the_stop() {
    let mut host = Host::new(Wish { shards: 2, ..Wish::default() });
    let (here, there) = (host.connect(0), host.connect(1));
    host.shut_down();
    for at in [here, there] {
        let forced = |event: &Amqp| {
            matches!(event, Amqp::CloseReceived { error: Some(error) }
                if error.condition.as_str() == "amqp:connection:forced")
        };
        assert_eq!(host.count(at, forced), 1, "{:?}", host.clients[at].heard);
        host.clients[at].amqp.close(None);
    }
    host.settle();
    assert_eq!(host.drained, 2);
    host.assert_clean();
}

#[test]
fn a_stop_answers_what_was_sent_and_takes_no_more() {
    let mut host = Host::new(Wish { shards: 2, ..Wish::default() });
    // The queue lives on shard 0, both its clients on shard 1.
    let owner = host.connect(0);
    let first = host.sender(owner, "q");
    assert!(host.send(owner, first, 10, false));
    let at = host.connect(1);
    let sender = host.sender(at, "q");
    host.receiver(at, "q", 10);
    host.writes = Writes::Held;
    let (link, delivery, _) = host.deliveries(at).pop().expect("delivered");
    assert!(host.send(at, sender, 10, false));
    host.clients[at].amqp.settle(link, delivery, Outcome::Accepted);
    host.shut_down();
    assert!(host.send(at, sender, 10, false));
    let closing = |event: &Amqp| matches!(event, Amqp::CloseReceived { .. });
    assert_eq!(host.outcomes(at), [Outcome::Released], "too late, and not lost");
    assert_eq!(host.count(at, closing), 0, "an answer is owed");
    assert_eq!(host.drained, 0);
    host.pass(Duration::from_millis(6));
    host.let_go();
    assert_eq!(host.outcomes(at), [Outcome::Released, Outcome::Accepted]);
    for at in [owner, at] {
        assert_eq!(host.count(at, closing), 1);
        host.clients[at].amqp.close(None);
    }
    host.settle();
    assert_eq!(host.drained, 2);
    host.crash();
    assert_eq!(host.messages(), 1, "the settled one is gone, the accepted one is there");
}

#[test]
fn a_shard_that_is_stopped_before_it_serves_never_does() {
    let mut host = Host::stopped(Wish { shards: 2, ..Wish::default() });
    host.build();
    host.mail_held = Some((journal::ShardId(0), journal::ShardId(1)));
    host.settle();
    assert_eq!(host.ready, 1, "shard 1 waits for the catalogue");
    host.shut_down();
    host.mail_held = None;
    host.settle();
    assert_eq!((host.ready, host.drained), (1, 2));
}

#[test]
fn a_connection_that_is_lost_in_any_state_leaves_nothing() {
    for held in [false, true] {
        for step in 0..6 {
            let mut host = Host::new(Wish { shards: 2, ..Wish::default() });
            let owner = host.connect(0);
            let first = host.sender(owner, "q");
            assert!(host.send(owner, first, 10, false));
            let at = host.connect(1);
            if held {
                host.writes = Writes::Held;
            }
            let sender = host.sender(at, if step == 0 { "new" } else { "q" });
            if step > 1 {
                host.receiver(at, "q", 10);
            }
            if step > 2 {
                host.send(at, sender, 70_000, false);
            }
            let link = host.deliveries(at).pop();
            if let (true, Some((link, delivery, _))) = (step > 3, link) {
                host.clients[at].amqp.settle(link, delivery, Outcome::Accepted);
                host.settle();
                if step > 4 {
                    host.clients[at].amqp.detach(link, true, None);
                    host.settle();
                }
            }
            host.lose(at);
            host.lose(owner);
            host.let_go();
            host.pass(Duration::from_millis(20));
            host.writes = Writes::Done;
            let at = host.connect(1);
            host.receiver(at, "q", 10);
            for (link, delivery, _) in host.deliveries(at) {
                host.clients[at].amqp.settle(link, delivery, Outcome::Accepted);
            }
            host.settle();
            host.lose(at);
            host.pass(Duration::from_millis(20));
            host.assert_clean();
        }
    }
}

#[test]
fn a_peer_that_breaks_a_rule_and_reads_nothing_is_let_go() {
    let mut host = Host::new(Wish { level: Level::Async, ..Wish::default() });
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    host.clients[at].reads = false;
    assert!(host.send(at, sender, 10, false));
    // Its answer is under way and never taken. Now a frame that is none.
    let bytes = [0, 0, 0, 1, 2, 0, 0, 0];
    host.event(0, Event::Received { conn: ConnId(at as u64), bytes: &bytes });
    host.pass(Duration::from_secs(60));
    assert!(host.clients[at].closed, "it holds its place for ever");
    assert_eq!(host.shards[0].links(), 0);
    host.shut_down();
    assert_eq!(host.drained, 1);
}

#[test]
fn a_peer_that_reads_late_still_hears_why_it_was_closed() {
    let mut host = Host::new(Wish::default());
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    host.clients[at].reads = false;
    let text = message(10);
    host.clients[at].amqp.send(sender, &[&text], false).expect("sent");
    host.settle();
    host.event(0, Event::Received { conn: ConnId(at as u64), bytes: &[0, 0, 0, 1, 2, 0, 0, 0] });
    host.settle();
    host.clients[at].reads = true;
    host.settle();
    let why = |event: &Amqp| {
        matches!(event, Amqp::CloseReceived { error: Some(_) })
            || matches!(event, Amqp::Closed { reason: CloseReason::Closed(Some(_)) })
    };
    assert_eq!(host.count(at, why), 1, "{:?}", host.clients[at].heard);
}

#[test]
fn a_client_that_closes_and_ends_its_half_still_gets_its_answers() {
    let mut host = Host::new(Wish::default());
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    host.writes = Writes::Held;
    assert!(host.send(at, sender, 10, false));
    host.clients[at].amqp.close(None);
    host.settle();
    host.event(0, Event::PeerEnded { conn: ConnId(at as u64) });
    host.settle();
    assert!(!host.clients[at].closed);
    host.let_go();
    assert_eq!(host.count(at, |event| matches!(event, Amqp::Closed { .. })), 1);
    assert_eq!(host.messages(), 1);
    assert!(host.clients[at].closed, "and then the socket is closed");
    // One that ends without a close has broken off.
    let at = host.connect(0);
    host.receiver(at, "q", 1);
    host.event(0, Event::PeerEnded { conn: ConnId(at as u64) });
    host.settle();
    assert!(host.clients[at].closed);
    // What it had counts as failed, which is written before its link is forgotten.
    host.pass(Duration::from_millis(10));
    assert_eq!(host.shards[0].links(), 0);
}
