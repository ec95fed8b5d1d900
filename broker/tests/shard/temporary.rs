//! Dynamic nodes: queues that are made for a link and go with what their policy names.

use amqp::connection::Event as Amqp;
use amqp::definitions::{Condition, Role};
use amqp::delivery::Outcome;
use amqp::link::{LifetimePolicy, LinkId, LinkSource, LinkTarget, NewLink};
use broker::catalogue::QueueRecord;
use broker::limits::{QUEUES_MAX, QUEUES_RESERVED, TEMPORARY_QUEUES_PER_CONNECTION_MAX};
use broker::{Event, Mail};
use journal::{Level, QueueId, ShardId};

use crate::host::{Host, Wish, Writes};

/// Asks for a dynamic node, as its receiver or as its sender.
pub(crate) fn make(
    host: &mut Host,
    at: usize,
    role: Role,
    policy: Option<LifetimePolicy>,
) -> LinkId {
    let session = host.session(at);
    let properties = policy.map(LifetimePolicy::to_properties);
    let name = format!("dynamic-{}", host.clients[at].heard.len());
    let plain = NewLink { name, ..NewLink::default() };
    let amqp = &mut host.clients[at].amqp;
    let link = match role {
        Role::Receiver => {
            let source = LinkSource {
                dynamic: true,
                dynamic_node_properties: properties,
                ..LinkSource::default()
            };
            let target = LinkTarget::at("client");
            amqp.attach_receiver(session, NewLink { source, target, ..plain })
        }
        Role::Sender => {
            let target = LinkTarget {
                dynamic: true,
                dynamic_node_properties: properties,
                ..LinkTarget::default()
            };
            let source = LinkSource::at("client");
            amqp.attach_sender(session, NewLink { source, target, ..plain })
        }
    };
    host.settle();
    link.expect("attached")
}

/// What the answer to an attach says: address and policy of its dynamic node.
pub(crate) fn node(host: &Host, at: usize, of: LinkId) -> (String, Option<LifetimePolicy>) {
    let answer = host.clients[at].heard.iter().find_map(|event| {
        let Amqp::Attached { link, attach } = event else { return None };
        (*link == of).then_some(attach)
    });
    let attach = answer.expect("the attach was answered");
    let (address, dynamic, properties) = match attach.role {
        Role::Receiver => {
            let source = attach.source.clone().expect("a source");
            (source.address, source.dynamic, source.dynamic_node_properties)
        }
        Role::Sender => {
            let target = attach.target.clone().expect("a target");
            (target.address, target.dynamic, target.dynamic_node_properties)
        }
    };
    assert!(dynamic);
    let policy = properties.as_deref().and_then(LifetimePolicy::of_properties);
    (address.expect("a name"), policy)
}

pub(crate) fn exists(host: &Host, name: &str) -> bool {
    let there: Vec<bool> =
        host.shards.iter().map(|shard| shard.state().catalogue.named(name).is_some()).collect();
    assert!(there.iter().all(|each| *each == there[0]), "shards disagree about {name}");
    there[0]
}

/// The condition with which a link of ours was detached or refused.
pub(crate) fn told(host: &Host, at: usize, of: LinkId) -> Option<Condition> {
    host.clients[at].heard.iter().find_map(|event| {
        let (Amqp::DetachReceived { link, error: Some(error), .. }
        | Amqp::Detached { link, error: Some(error) }) = event
        else {
            return None;
        };
        let known = || Condition::from_symbol(error.condition.as_str());
        (*link == of).then(known).flatten()
    })
}

pub(crate) fn detach(host: &mut Host, at: usize, link: LinkId) {
    host.clients[at].amqp.detach(link, true, None);
    host.settle();
}

fn accept_all(host: &mut Host, at: usize, link: LinkId) {
    for (of, delivery, _) in host.deliveries(at) {
        if of == link {
            host.clients[at].amqp.settle(link, delivery, Outcome::Accepted);
        }
    }
    host.settle();
}

#[test]
fn item_27_a_reply_queue_takes_answers_from_everywhere_and_goes_with_its_link() {
    for how in ["detach", "end", "lost"] {
        let mut host = Host::new(Wish { shards: 3, ..Wish::default() });
        let at = host.connect(1);
        let link = make(&mut host, at, Role::Receiver, None);
        let (name, policy) = node(&host, at, link);
        assert_eq!(policy, Some(LifetimePolicy::OnClose), "what holds is said");
        assert!(exists(&host, &name));
        host.clients[at].amqp.grant_credit(link, 2);
        let other = host.connect(2);
        let sender = host.sender(other, &name);
        for _ in 0..4 {
            assert!(host.send(other, sender, 10, false));
        }
        assert_eq!((host.outcomes(other).len(), host.deliveries(at).len()), (4, 2));
        match how {
            "detach" => detach(&mut host, at, link),
            "end" => {
                let session = host.session(at);
                host.clients[at].amqp.end(session, None);
                host.settle();
            }
            _ => host.lose(at),
        }
        assert!(!exists(&host, &name), "{how}");
        assert_eq!(host.messages(), 0, "{how}: its messages went with it");
        assert_eq!(told(&host, other, sender), Some(Condition::ResourceDeleted), "{how}");
        host.lose(other);
        host.lose(at);
        host.assert_clean();
    }
}

#[test]
fn item_27_each_policy_ends_a_queue_when_it_says() {
    use LifetimePolicy::{OnClose, OnNoLinks, OnNoLinksOrMessages, OnNoMessages};
    for policy in LifetimePolicy::ALL {
        let mut host = Host::new(Wish { shards: 2, ..Wish::default() });
        let at = host.connect(1);
        let maker = make(&mut host, at, Role::Sender, Some(policy));
        let (name, said) = node(&host, at, maker);
        assert_eq!(said, Some(policy));
        assert!(host.send(at, maker, 10, false));
        let consumer = host.receiver(at, &name, 0);
        detach(&mut host, at, maker);
        assert_eq!(exists(&host, &name), policy != OnClose, "{policy:?}: the maker is gone");
        if policy == OnClose {
            assert_eq!(told(&host, at, consumer), Some(Condition::ResourceDeleted));
            continue;
        }
        host.clients[at].amqp.grant_credit(consumer, 1);
        host.settle();
        accept_all(&mut host, at, consumer);
        assert_eq!(exists(&host, &name), policy != OnNoMessages, "{policy:?}: it is empty");
        if policy == OnNoMessages {
            continue;
        }
        // With a message and without a link.
        let other = host.connect(0);
        let sender = host.sender(other, &name);
        assert!(host.send(other, sender, 10, false));
        detach(&mut host, at, consumer);
        assert!(exists(&host, &name), "{policy:?}: it has a link");
        host.lose(other);
        assert_eq!(exists(&host, &name), policy == OnNoLinksOrMessages, "{policy:?}: no links");
        if policy == OnNoLinks {
            continue;
        }
        let consumer = host.receiver(at, &name, 1);
        accept_all(&mut host, at, consumer);
        assert!(exists(&host, &name));
        detach(&mut host, at, consumer);
        assert!(!exists(&host, &name), "{policy:?}: neither links nor messages");
        assert_eq!(host.messages(), 0);
    }
}

#[test]
fn a_queue_that_only_its_lost_owner_could_empty_goes_with_it() {
    for policy in [LifetimePolicy::OnNoMessages, LifetimePolicy::OnNoLinksOrMessages] {
        for maker_first in [true, false] {
            let mut host = Host::new(Wish { shards: 2, ..Wish::default() });
            let at = host.connect(1);
            let maker = make(&mut host, at, Role::Receiver, Some(policy));
            let (name, _) = node(&host, at, maker);
            let other = host.connect(0);
            let sender = host.sender(other, &name);
            assert!(host.send(other, sender, 10, false));
            if maker_first {
                detach(&mut host, at, maker);
                assert!(exists(&host, &name), "its owner may come back for the message");
            }
            host.lose(at);
            let lives_on = policy == LifetimePolicy::OnNoLinksOrMessages;
            assert_eq!(exists(&host, &name), lives_on, "{policy:?}: the other has a link");
            host.lose(other);
            assert!(!exists(&host, &name), "{policy:?}");
            host.pass(std::time::Duration::from_millis(10));
            host.assert_clean();
        }
    }
}

#[test]
fn item_27_others_may_send_to_a_temporary_queue_and_not_consume() {
    let mut host = Host::new(Wish { shards: 2, ..Wish::default() });
    let at = host.connect(1);
    let maker = make(&mut host, at, Role::Receiver, None);
    let (name, _) = node(&host, at, maker);
    for shard in [0, 1] {
        let other = host.connect(shard);
        let thief = host.receiver(other, &name, 10);
        assert_eq!(told(&host, other, thief), Some(Condition::ResourceLocked));
    }
    let own = host.receiver(at, &name, 10);
    assert_eq!(told(&host, at, own), None);
    // A name that is not, or no longer, there is not created by asking for it.
    let late = host.sender(at, "$temp.4711.0123456789abcdef");
    assert_eq!(told(&host, at, late), Some(Condition::NotFound));
    detach(&mut host, at, maker);
    let late = host.sender(at, &name);
    assert_eq!(told(&host, at, late), Some(Condition::NotFound));
}

#[test]
fn names_are_never_given_twice_and_after_a_crash_the_queues_are_gone() {
    let mut host = Host::new(Wish { shards: 2, ..Wish::default() });
    let mut names = std::collections::BTreeSet::new();
    for _ in 0..3 {
        let at = host.connect(1);
        let maker = make(&mut host, at, Role::Sender, None);
        let (name, _) = node(&host, at, maker);
        assert!(names.insert(name.clone()), "{name} was given twice");
        assert!(host.send(at, maker, 10, false));
        let lasting = host.sender(at, "lasting");
        assert!(host.send(at, lasting, 10, false));
        host.pass(std::time::Duration::from_millis(20));
        host.crash();
        assert!(!exists(&host, &name), "{name} outlived its process");
    }
    assert_eq!(host.messages(), 3, "those of the queue that stays");
}

#[test]
fn nobody_hears_a_name_before_its_id_is_durable() {
    let mut host = Host::new(Wish { shards: 2, ..Wish::default() });
    let at = host.connect(1);
    host.writes = Writes::Held;
    let maker = make(&mut host, at, Role::Receiver, None);
    let answered = |event: &Amqp| matches!(event, Amqp::Attached { .. });
    assert_eq!(host.count(at, answered), 0);
    host.let_go();
    assert_eq!(host.count(at, answered), 1);
    // The next thousand cost no write.
    host.writes = Writes::Held;
    let second = make(&mut host, at, Role::Receiver, None);
    assert_eq!(host.count(at, answered), 2);
    assert_ne!(node(&host, at, maker), node(&host, at, second));
}

#[test]
fn a_link_that_goes_before_its_queue_is_made_leaves_nothing() {
    let mut host = Host::new(Wish { shards: 2, ..Wish::default() });
    let at = host.connect(1);
    host.mail_held = Some((ShardId(0), ShardId(1)));
    make(&mut host, at, Role::Receiver, None);
    host.lose(at);
    host.mail_held = None;
    host.settle();
    assert!(host.shards.iter().all(|shard| shard.state().catalogue.is_empty()));
    host.assert_clean();
}

#[test]
fn the_room_for_settlements_of_a_deleted_queue_comes_back() {
    let mut host = Host::new(Wish::default());
    let lasting = host.connect(0);
    let sender = host.sender(lasting, "lasting");
    assert!(host.send(lasting, sender, 10, false));
    // Far more than the log could hold, if any of it stayed.
    for _ in 0..200 {
        let at = host.connect(0);
        let maker = make(&mut host, at, Role::Sender, None);
        for _ in 0..20 {
            assert!(host.send(at, maker, 1000, false));
        }
        host.pass(std::time::Duration::from_millis(10));
        host.lose(at);
        let consumer = host.receiver(lasting, "lasting", 1);
        accept_all(&mut host, lasting, consumer);
        detach(&mut host, lasting, consumer);
        assert!(host.send(lasting, sender, 10, false));
    }
    assert_eq!(host.fatal, None);
    assert_eq!(host.messages(), 1);
}

const TOO_MANY: Option<Condition> = Some(Condition::ResourceLimitExceeded);

#[test]
fn a_connection_has_a_bounded_number_of_queues_and_gets_their_places_back() {
    let mut host = Host::new(Wish { shards: 2, ..Wish::default() });
    let at = host.connect(1);
    let many = 0..TEMPORARY_QUEUES_PER_CONNECTION_MAX;
    let links: Vec<LinkId> = many.map(|_| make(&mut host, at, Role::Receiver, None)).collect();
    assert!(links.iter().all(|link| told(&host, at, *link).is_none()));
    let more = make(&mut host, at, Role::Receiver, None);
    assert_eq!(told(&host, at, more), TOO_MANY);
    let other = host.connect(1);
    let others = make(&mut host, other, Role::Receiver, None);
    assert_eq!(told(&host, other, others), None);
    detach(&mut host, at, links[3]);
    let again = make(&mut host, at, Role::Receiver, None);
    assert_eq!(told(&host, at, again), None);
    // All of them go with their connection, and no others.
    let (kept, _) = node(&host, other, others);
    host.lose(at);
    assert!(exists(&host, &kept));
    assert_eq!(host.shards[0].state().catalogue.len(), 1);
    host.lose(other);
    host.pass(std::time::Duration::from_millis(10));
    host.assert_clean();
}

#[test]
fn who_asks_leaves_the_broker_queues_for_the_dead() {
    let mut host = Host::new(Wish::default());
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    assert!(host.send(at, sender, 10, false));
    host.receiver(at, "q", 1);
    let there = host.shards[0].state().catalogue.len();
    for number in there..QUEUES_MAX - QUEUES_RESERVED {
        let record = QueueRecord {
            id: QueueId(10_000 + number as u64),
            home: ShardId(0),
            level: Level::Sync,
            name: format!("filler-{number}"),
            temporary: None,
        };
        host.event(0, Event::Mail { from: ShardId(0), mail: Mail::Catalogued(record) });
    }
    host.settle();
    let late = host.sender(at, "one-more");
    assert_eq!(told(&host, at, late), TOO_MANY);
    for _ in 0..=TEMPORARY_QUEUES_PER_CONNECTION_MAX {
        let late = make(&mut host, at, Role::Receiver, None);
        assert_eq!(told(&host, at, late), TOO_MANY);
    }
    let (link, delivery, _) = host.deliveries(at).pop().expect("it was delivered");
    host.clients[at].amqp.settle(link, delivery, Outcome::Rejected(None));
    host.settle();
    host.pass(std::time::Duration::from_millis(10));
    assert!(exists(&host, "DLQ"), "the dead find their queue");
    // Two queues less: one for the dead took a reserved place.
    for number in [there, there + 1] {
        let gone = Mail::Deleted { queue: QueueId(10_000 + number as u64), is_listed: true };
        host.event(0, Event::Mail { from: ShardId(0), mail: gone });
    }
    host.settle();
    let link = make(&mut host, at, Role::Receiver, None);
    assert_eq!(told(&host, at, link), None, "what was refused is not counted");
}

#[test]
fn a_queue_that_goes_before_its_dead_letters_do_leaves_none_under_way() {
    let mut host = Host::new(Wish { shards: 2, segments_max: 64, ..Wish::default() });
    let at = host.connect(1);
    let maker = make(&mut host, at, Role::Receiver, None);
    let (name, _) = node(&host, at, maker);
    let sender = host.sender(at, &name);
    // There is no queue for the dead yet, and its making is not heard of.
    host.mail_held = Some((ShardId(0), ShardId(1)));
    // More than may be under way.
    for _ in 0..300 {
        assert!(host.send(at, sender, 10, false));
        host.clients[at].amqp.grant_credit(maker, 1);
        host.settle();
        let (link, delivery, _) = host.deliveries(at).pop().expect("it was delivered");
        host.clients[at].amqp.settle(link, delivery, Outcome::Rejected(None));
        host.settle();
    }
    host.lose(at);
    host.mail_held = None;
    host.pass(std::time::Duration::from_millis(10));
    host.assert_clean();
    let at = host.connect(1);
    let sender = host.sender(at, "q");
    assert!(host.send(at, sender, 10, false));
    host.receiver(at, "q", 1);
    let (link, delivery, _) = host.deliveries(at).pop().expect("it was delivered");
    host.clients[at].amqp.settle(link, delivery, Outcome::Rejected(None));
    host.pass(std::time::Duration::from_millis(10));
    assert_eq!((host.messages(), host.stats(1).moved_in_total), (1, 1));
}
