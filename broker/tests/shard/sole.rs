//! One connection for a container: the register, races for a name, and how names come free.

use std::time::Duration;

use amqp::codec::{Reader, Symbol, Value, Writer};
use amqp::connection::{Config, Event as Amqp, RemoteOpen, Sasl};
use amqp::delivery::Outcome;
use amqp::error::{Condition, Error};
use broker::access::LogIn;
use broker::limits::{CONTAINER_ID_BYTES_MAX, TRANSIT_WITHIN};
use bytes::Bytes;
use journal::ShardId;

use crate::host::{Host, Wish};

const REFUSES: u32 = 0;
const CLOSES: u32 = 1;

fn two_shards() -> Host {
    Host::new(Wish { shards: 2, ..Wish::default() })
}

/// A client that wants to be the only one of this container; nothing moves yet.
fn comes(host: &mut Host, shard: usize, container: &str, policy: u32) -> usize {
    let mut properties = Vec::new();
    Writer::new(&mut properties).map_with(|map| {
        map.element().symbol(Symbol::new("sole-connection-enforcement-policy"));
        map.element().uint(policy);
    });
    let config = Config {
        container_id: container.to_owned(),
        sasl: Sasl::Anonymous,
        idle_time_out: None,
        desired_capabilities: vec!["sole-connection-for-container".to_owned()],
        properties: Some(Bytes::from(properties)),
        ..Config::default()
    };
    host.accept(shard, true, config, LogIn::default())
}

fn connect(host: &mut Host, shard: usize, container: &str, policy: u32) -> usize {
    let at = comes(host, shard, container, policy);
    host.settle();
    at
}

fn open_of(host: &Host, at: usize) -> Option<&RemoteOpen> {
    let open = |event: &'_ Amqp| matches!(event, Amqp::Opened(_));
    let found = host.clients[at].heard.iter().find(|event| open(event));
    if let Some(Amqp::Opened(open)) = found { Some(open) } else { None }
}

/// The error of the close that a client heard.
fn closed_with(host: &Host, at: usize) -> Option<&Error> {
    host.clients[at].heard.iter().find_map(|event| {
        if let Amqp::CloseReceived { error } = event { error.as_ref() } else { None }
    })
}

fn is_open(host: &Host, at: usize) -> bool {
    open_of(host, at).is_some() && closed_with(host, at).is_none()
}

fn names(host: &Host) -> usize {
    host.shards[0].sole_names()
}

/// Whether a map has `true`, or a symbol, under a key.
fn says(map: Option<&Bytes>, key: &str, value: &Value<'_>) -> bool {
    let map = map.and_then(|encoded| Reader::new(encoded).map().ok());
    map.and_then(|map| map.get(key)).as_ref() == Some(value)
}

#[test]
fn item_13_the_second_connection_of_a_container_is_refused() {
    let mut host = two_shards();
    let first = connect(&mut host, 1, "c", REFUSES);
    let open = open_of(&host, first).expect("it is open");
    assert!(open.offered_capabilities.iter().any(|c| c == "sole-connection-for-container"));
    let detection = "sole-connection-detection-policy";
    assert!(says(open.properties.as_ref(), detection, &Value::Uint(1)));
    for shard in [0, 1] {
        let second = connect(&mut host, shard, "c", REFUSES);
        let open = open_of(&host, second).expect("an open comes first");
        let failed = "amqp:connection-establishment-failed";
        assert!(says(open.properties.as_ref(), failed, &Value::Boolean(true)));
        let error = closed_with(&host, second).expect("then the close");
        assert_eq!(error.condition, Condition::InvalidField);
        let field = Value::Symbol(Symbol::new("container-id"));
        assert!(says(error.info.as_ref(), "invalid-field", &field));
    }
    assert!(is_open(&host, first));
    // Others are not asked, and take no name.
    let plain = host.connect(0);
    assert!(is_open(&host, plain) && names(&host) == 1);
    // The name is free when its connection ends, in whatever way.
    host.clients[first].amqp.close(None);
    host.settle();
    assert_eq!(names(&host), 0);
    let next = connect(&mut host, 0, "c", REFUSES);
    assert!(is_open(&host, next));
    host.lose(next);
    assert_eq!(names(&host), 0);
    let long = connect(&mut host, 0, &"x".repeat(CONTAINER_ID_BYTES_MAX + 1), REFUSES);
    assert_eq!(
        closed_with(&host, long).map(|e| &e.condition),
        Some(&Condition::InvalidField.into())
    );
    assert_eq!(names(&host), 0);
}

#[test]
fn item_13_the_older_connection_goes_where_the_newer_asks_for_it() {
    let mut host = two_shards();
    let owner = host.connect(0);
    let sender = host.sender(owner, "q");
    assert!(host.send(owner, sender, 10, false));
    let first = connect(&mut host, 0, "c", REFUSES);
    host.begin_first(first);
    host.receiver(first, "q", 10);
    assert_eq!(host.deliveries(first).len(), 1);
    // The older one answers nothing any more; what it held is available at once.
    host.clients[first].reads = false;
    let second = connect(&mut host, 1, "c", CLOSES);
    assert!(is_open(&host, second));
    host.begin_first(second);
    host.receiver(second, "q", 10);
    assert_eq!(host.deliveries(second).len(), 1);
    host.clients[first].reads = true;
    host.settle();
    let error = closed_with(&host, first).expect("it hears why");
    assert_eq!(error.condition, Condition::ResourceLocked);
    assert!(says(error.info.as_ref(), "sole-connection-enforcement", &Value::Boolean(true)));
    // What the older one still says changes nothing.
    let (link, delivery, _) = host.deliveries(first)[0].clone();
    host.clients[first].amqp.settle(link, delivery, Outcome::Accepted);
    host.lose(first);
    assert_eq!((host.messages(), names(&host)), (1, 1));
}

#[test]
fn item_13_of_many_at_once_exactly_one_stays() {
    for policy in [REFUSES, CLOSES] {
        for order in [[0, 1, 0, 1], [1, 1, 0, 0], [1, 0, 1, 1]] {
            let mut host = two_shards();
            let all = order.map(|shard| comes(&mut host, shard, "c", policy));
            host.settle();
            let open = all.iter().filter(|at| is_open(&host, **at)).count();
            assert_eq!((open, names(&host)), (1, 1), "{policy} {order:?}");
            // Each of the others heard an open, and why it is closed.
            let closed = all.iter().filter(|at| closed_with(&host, **at).is_some()).count();
            assert_eq!(closed, 3);
            all.iter().for_each(|at| host.lose(*at));
            assert_eq!(names(&host), 0);
        }
    }
}

#[test]
fn item_13_none_is_open_before_the_older_one_was_told_and_the_last_one_stays() {
    let mut host = two_shards();
    let first = connect(&mut host, 1, "c", CLOSES);
    host.mail_held = Some((ShardId(0), ShardId(1)));
    let second = connect(&mut host, 0, "c", CLOSES);
    let third = connect(&mut host, 0, "c", CLOSES);
    let refused = connect(&mut host, 0, "c", REFUSES);
    let open: Vec<bool> = [first, second, third].map(|at| is_open(&host, at)).to_vec();
    assert_eq!(open, [true, false, false]);
    assert!(closed_with(&host, second).is_some() && closed_with(&host, refused).is_some());
    // The one that waits may go: then nobody has the name when the older one is gone.
    let gone = comes(&mut host, 0, "c", CLOSES);
    host.settle();
    host.lose(gone);
    host.mail_held = None;
    host.settle();
    assert!(closed_with(&host, first).is_some() && !is_open(&host, third));
    assert_eq!(names(&host), 0);
}

#[test]
fn item_13_a_name_moves_with_its_connection() {
    let mut host = two_shards();
    let owner = host.connect(0);
    host.sender(owner, "q");
    let first = connect(&mut host, 1, "c", REFUSES);
    host.begin_first(first);
    host.sender(first, "q");
    assert_eq!(host.clients[first].shard, 0, "it has moved to its queue");
    let second = connect(&mut host, 1, "c", REFUSES);
    assert!(is_open(&host, first) && !is_open(&host, second));
    let third = connect(&mut host, 1, "c", CLOSES);
    assert!(closed_with(&host, first).is_some() && is_open(&host, third));
    host.lose(first);
    host.lose(third);
    assert_eq!(names(&host), 0);
}

#[test]
fn item_13_what_is_lost_in_transit_keeps_its_name_a_while_only() {
    for policy in [REFUSES, CLOSES] {
        let mut host = two_shards();
        let owner = host.connect(0);
        host.sender(owner, "q");
        let first = connect(&mut host, 1, "c", REFUSES);
        host.begin_first(first);
        host.drops_moving = true;
        host.sender(first, "q");
        assert_eq!(names(&host), 1);
        host.drops_moving = false;
        let second = connect(&mut host, 0, "c", policy);
        assert_eq!(is_open(&host, second), policy == CLOSES);
        host.pass(TRANSIT_WITHIN);
        if policy == REFUSES {
            let third = connect(&mut host, 0, "c", REFUSES);
            assert!(is_open(&host, third));
        }
    }
}

#[test]
fn item_13_a_stop_and_a_start_leave_no_name_behind() {
    let mut host = two_shards();
    let first = connect(&mut host, 1, "c", REFUSES);
    host.shut_down();
    host.pass(Duration::from_secs(6));
    assert!(closed_with(&host, first).is_some());
    assert_eq!((names(&host), host.drained), (0, 2));
    host.crash();
    assert_eq!(names(&host), 0);
    let again = connect(&mut host, 0, "c", REFUSES);
    assert!(is_open(&host, again));
}
