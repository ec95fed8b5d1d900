//! What users may do: on links, for each message of a relay, and when a queue is not there yet.

use std::collections::BTreeMap;
use std::sync::Arc;

use amqp::connection::Event as Amqp;
use amqp::definitions::{Condition, Role};
use amqp::link::{LinkId, LinkSource};
use broker::access::{Access, Right, Rights};
use broker::pattern::Pattern;
use journal::ShardId;

use crate::browsing::browser;
use crate::host::{Host, Wish};
use crate::relay::{conditions, letter, relay, send};
use crate::temporary::{make, node, told};

const DENIED: Option<Condition> = Some(Condition::UnauthorizedAccess);

/// A node where users have these rights on these addresses, and nobody any other.
fn host(shards: u16, rights: &[(&str, Right, &str)]) -> Host {
    let mut users: BTreeMap<String, Rights> = BTreeMap::new();
    for (user, right, pattern) in rights {
        let pattern = Pattern::parse(pattern).expect("a pattern");
        users.entry((*user).to_owned()).or_default().give(*right, pattern);
    }
    let users = users.into_iter().map(|(user, rights)| (user, Arc::new(rights))).collect();
    Host::new(Wish { shards, access: Access::of(users), ..Wish::default() })
}

/// The attach was answered, and with a terminus.
fn is_open(host: &Host, at: usize, of: LinkId) -> bool {
    host.clients[at].heard.iter().any(|event| {
        let Amqp::Attached { link, attach } = event else { return false };
        let node = match attach.role {
            Role::Receiver => attach.target.is_some(),
            Role::Sender => attach.source.is_some(),
        };
        *link == of && node
    })
}

#[test]
fn a_link_that_its_user_may_not_have_is_refused_and_the_connection_stays() {
    let mut host = host(
        1,
        &[
            ("ann", Right::Send, "orders.#"),
            ("ann", Right::Create, "orders.#"),
            ("bob", Right::Consume, "orders.*"),
            ("eve", Right::Browse, "orders.eu"),
        ],
    );
    let [ann, bob, eve] = ["ann", "bob", "eve"].map(|user| host.connect_user(0, false, user));
    let sender = host.sender(ann, "orders.eu");
    assert!(is_open(&host, ann, sender) && host.send(ann, sender, 3, false));
    let refused = [
        (ann, host.receiver(ann, "orders.eu", 1)),
        (ann, host.sender(ann, "parts")),
        (bob, host.sender(bob, "orders.eu")),
        (bob, browser(&mut host, bob, "orders.eu", 0)),
        (eve, host.receiver(eve, "orders.eu", 1)),
        (eve, host.sender(eve, "orders.eu")),
    ];
    for (at, link) in refused {
        assert_eq!(told(&host, at, link), DENIED);
        assert!(!is_open(&host, at, link), "a refusal has no terminus");
    }
    let allowed = [
        (bob, host.receiver(bob, "queue://orders.eu", 0)),
        (eve, browser(&mut host, eve, "orders.eu", 0)),
    ];
    for (at, link) in allowed {
        assert!(is_open(&host, at, link) && told(&host, at, link).is_none());
    }
    // Who has no role has no right.
    let mallory = host.connect_user(0, false, "mallory");
    let link = host.sender(mallory, "orders.eu");
    assert_eq!(told(&host, mallory, link), DENIED);
    assert!(!host.clients[mallory].closed);
}

/// The shard of an attach may not have heard yet of a queue that another one has: shard 0 decides.
#[test]
fn a_queue_is_created_only_for_who_may_and_found_by_all() {
    let mut host = host(
        3,
        &[
            ("ann", Right::Send, "#"),
            ("ann", Right::Create, "made.#"),
            ("bob", Right::Consume, "#"),
        ],
    );
    let bob = host.connect_user(2, true, "bob");
    let link = host.receiver(bob, "made.one", 1);
    assert_eq!(told(&host, bob, link), DENIED);
    let ann = host.connect_user(1, false, "ann");
    let link = host.sender(ann, "other");
    assert_eq!(told(&host, ann, link), DENIED);
    assert!(host.shards[0].state().catalogue.is_empty(), "nothing was created");
    // Shard 2 does not hear of the new queue before bob asks for it.
    host.mail_held = Some((ShardId(0), ShardId(2)));
    let link = host.sender(ann, "made.one");
    assert!(is_open(&host, ann, link));
    let bob = host.connect_user(2, false, "bob");
    let link = host.receiver(bob, "made.one", 1);
    host.mail_held = None;
    host.settle();
    assert!(is_open(&host, bob, link) && told(&host, bob, link).is_none());
}

#[test]
fn each_message_of_a_relay_needs_the_right_to_send_where_it_goes() {
    let rights = [("ann", Right::Send, "a.#"), ("ann", Right::Create, "a.new")];
    let mut host = host(2, &rights);
    let ann = host.connect_user(1, false, "ann");
    let link = relay(&mut host, ann, LinkSource::default());
    for to in ["a.new", "b", "a.other", "a.new"] {
        send(&mut host, ann, link, &letter(Some(to), 1), false);
    }
    host.settle();
    let heard = conditions(&host, ann);
    assert_eq!(heard.iter().filter(|condition| **condition == DENIED).count(), 2, "{heard:?}");
    assert_eq!(heard.iter().filter(|condition| condition.is_none()).count(), 2, "{heard:?}");
    assert_eq!(host.messages(), 2);
    // Settled ones cannot be rejected: the link goes.
    send(&mut host, ann, link, &letter(Some("b"), 1), true);
    host.settle();
    assert_eq!(told(&host, ann, link), DENIED);
}

#[test]
fn a_dynamic_node_needs_a_right_and_is_its_makers() {
    let rights = [("ann", Right::Create, "$temp.#"), ("bob", Right::Send, "$temp.#")];
    let mut host = host(1, &rights);
    let [ann, bob, eve] = ["ann", "bob", "eve"].map(|user| host.connect_user(0, false, user));
    for at in [bob, eve] {
        let link = make(&mut host, at, Role::Receiver, None);
        assert_eq!(told(&host, at, link), DENIED);
    }
    let link = make(&mut host, ann, Role::Sender, None);
    let (name, _) = node(&host, ann, link);
    // JMS makes it by a sender, and consumes from it by its name.
    let own = host.receiver(ann, &name, 1);
    assert!(is_open(&host, ann, own));
    let answer = host.sender(bob, &name);
    assert!(is_open(&host, bob, answer) && host.send(bob, answer, 3, false));
    assert_eq!(host.deliveries(ann).len(), 1);
    // The relay asks no more than a link does.
    let anonymous = relay(&mut host, ann, LinkSource::default());
    send(&mut host, ann, anonymous, &letter(Some(&name), 1), false);
    host.settle();
    assert_eq!(conditions(&host, ann), [None]);
    let strange = host.sender(eve, &name);
    assert_eq!(told(&host, eve, strange), DENIED);
}

#[test]
fn rights_go_with_a_connection_that_moves() {
    let rights =
        [("root", Right::Send, "#"), ("root", Right::Create, "#"), ("ann", Right::Send, "far")];
    let mut host = host(2, &rights);
    let root = host.connect_user(1, false, "root");
    host.sender(root, "far");
    host.sender(root, "secret");
    let ann = host.connect_user(0, true, "ann");
    let link = host.sender(ann, "far");
    assert!(is_open(&host, ann, link));
    assert_eq!(host.clients[ann].shard, 1, "it has moved");
    let link = host.sender(ann, "secret");
    assert_eq!(told(&host, ann, link), DENIED);
}
