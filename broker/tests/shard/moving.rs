//! A connection that moves to the shard of the first queue that it attaches to.

use std::time::Duration;

use amqp::connection::Event as Amqp;
use amqp::delivery::Outcome;

use crate::host::{Host, Wish, Writes};

/// Two shards, and a queue that lives on shard 0.
fn two_shards() -> Host {
    let mut host = Host::new(Wish { shards: 2, ..Wish::default() });
    let owner = host.connect(0);
    host.sender(owner, "q");
    host.lose(owner);
    host
}

#[test]
fn the_first_attach_moves_it_and_later_ones_do_not() {
    let mut host = two_shards();
    let other = host.connect(1);
    host.sender(other, "elsewhere");
    let at = host.connect_to_move(1);
    assert_eq!(host.clients[at].shard, 1, "a session alone says nothing of a queue");
    let sender = host.sender(at, "q");
    assert_eq!(host.clients[at].shard, 0);
    let receiver = host.receiver(at, "q", 10);
    let far = host.sender(at, "elsewhere");
    assert_eq!(host.clients[at].shard, 0, "it stays with its first queue");
    assert!(host.send(at, sender, 100, false) && host.send(at, far, 100, false));
    assert_eq!(host.outcomes(at), [Outcome::Accepted, Outcome::Accepted]);
    let (_, delivery, _) = host.deliveries(at)[0].clone();
    host.clients[at].amqp.settle(receiver, delivery, Outcome::Accepted);
    host.pass(Duration::from_millis(10));
    assert_eq!(host.messages(), 1, "the one that lies elsewhere");
    let here = host.stats(0);
    assert_eq!((here.connections, host.stats(1).connections), (1, 1));
    host.clients[at].amqp.close(None);
    host.settle();
    assert_eq!(host.count(at, |event| matches!(event, Amqp::Closed { .. })), 1);
    host.lose(other);
    assert_eq!(host.shards.iter().map(broker::Shard::links).sum::<usize>(), 0);
}

/// What came behind the attach in the same bytes, and what was not sent yet, goes with it.
#[test]
fn what_is_pipelined_behind_the_attach_is_served_there() {
    let mut host = two_shards();
    let at = host.connect_to_move(1);
    let session = host.session(at);
    let client = &mut host.clients[at].amqp;
    client.begin().expect("another session");
    let receiver = client.attach_receiver(session, Host::link("from-q", "q", true));
    client.grant_credit(receiver.expect("attached"), 3);
    let sender = client.attach_sender(session, Host::link("to-q", "q", false)).expect("attached");
    host.settle();
    assert_eq!(host.clients[at].shard, 0);
    assert!(host.send(at, sender, 10, false));
    assert_eq!(host.deliveries(at).len(), 1, "the credit came along");
    assert_eq!(host.count(at, |event| matches!(event, Amqp::SessionBegun { .. })), 2);
}

/// A host may have more bytes for a shard before it polls it.
#[test]
fn what_comes_before_the_host_knows_of_the_move_is_not_lost() {
    let mut host = two_shards();
    let at = host.connect_to_move(1);
    let session = host.session(at);
    let conn = broker::ConnId(at as u64);
    let link = Host::link("to-q", "q", false);
    host.clients[at].amqp.attach_sender(session, link).expect("attached");
    let mut bytes = Vec::new();
    while host.clients[at].amqp.poll_transmit(&mut bytes) {}
    host.clients[at].amqp.begin().expect("another session");
    while host.clients[at].amqp.poll_transmit(&mut bytes) {}
    for piece in bytes.chunks(7) {
        host.event(1, broker::Event::Received { conn, bytes: piece });
    }
    host.settle();
    assert_eq!(host.clients[at].shard, 0);
    assert_eq!(host.count(at, |event| matches!(event, Amqp::SessionBegun { .. })), 2);
    assert_eq!(host.count(at, |event| matches!(event, Amqp::Attached { .. })), 1);
}

#[test]
fn a_queue_that_is_created_is_where_its_first_connection_is() {
    let mut host = Host::new(Wish { shards: 2, ..Wish::default() });
    let at = host.connect_to_move(1);
    host.sender(at, "new");
    assert_eq!(host.clients[at].shard, 1);
}

#[test]
fn one_that_arrives_where_nobody_serves_any_more_hears_why() {
    let mut host = two_shards();
    let at = host.connect_to_move(1);
    host.writes = Writes::Held;
    host.event(0, broker::Event::Shutdown);
    host.sender(at, "q");
    host.pass(Duration::from_millis(10));
    assert!(host.clients[at].closed);
    assert_eq!(closed_with(&host, at), ["amqp:connection:forced"]);
    assert_eq!(host.shards.iter().map(broker::Shard::links).sum::<usize>(), 0);
}

/// The host asks for room before it carries one away; but who comes all the same hears why it is
/// not served.
#[test]
fn one_that_arrives_where_all_is_taken_hears_why() {
    let mut host = two_shards();
    let at = host.connect_to_move(1);
    for number in 0..broker::limits::CONNECTIONS_MAX as u64 {
        let (conn, peer) = (broker::ConnId(1 << 32 | number), String::new());
        let login = broker::access::LogIn::default();
        host.event(0, broker::Event::Accepted { conn, peer, may_move: false, login });
    }
    host.sender(at, "q");
    assert!(host.clients[at].closed);
    assert_eq!(closed_with(&host, at), ["amqp:resource-limit-exceeded"]);
    assert_eq!(host.shards[0].connections(), broker::limits::CONNECTIONS_MAX);
}

/// A host that can't carry a connection much longer has it closed with its reason, once.
#[test]
fn one_that_must_end_hears_why() {
    let mut host = two_shards();
    let at = host.connect(0);
    for _ in 0..2 {
        let conn = broker::ConnId(at as u64);
        host.event(0, broker::Event::MustEnd { conn, why: "worn out" });
        host.settle();
    }
    assert_eq!(closed_with(&host, at), ["amqp:connection:forced"]);
    host.clients[at].amqp.close(None);
    host.settle();
    assert!(host.clients[at].closed);
}

/// The conditions of the closes that a client has heard.
fn closed_with(host: &Host, at: usize) -> Vec<String> {
    let condition = |event: &Amqp| {
        let Amqp::CloseReceived { error: Some(error) } = event else { return None };
        Some(error.condition.as_str().to_owned())
    };
    host.clients[at].heard.iter().filter_map(condition).collect()
}
