//! Browsing: a link with distribution-mode copy sees everything and takes nothing.

use amqp::connection::Event as Amqp;
use amqp::definitions::Condition;
use amqp::delivery::Outcome;
use amqp::link::{DistributionMode, LinkId, LinkSource, LinkTarget, NewLink};
use broker::limits::BROWSER_WINDOW;
use journal::ShardId;

use crate::host::{Host, Wish};

pub(crate) fn browser(host: &mut Host, at: usize, queue: &str, credit: u32) -> LinkId {
    let session = host.session(at);
    let link = NewLink {
        name: format!("browse-{}", host.clients[at].heard.len()),
        source: LinkSource {
            distribution_mode: Some(DistributionMode::Copy),
            ..LinkSource::at(queue)
        },
        target: LinkTarget::at("client"),
        ..NewLink::default()
    };
    let link = host.clients[at].amqp.attach_receiver(session, link).expect("attached");
    host.clients[at].amqp.grant_credit(link, credit);
    host.settle();
    link
}

/// A queue on shard 0 with messages of 1, 2, 3 .. bytes.
fn filled(shards: u16, count: usize) -> Host {
    let mut host = Host::new(Wish { shards, ..Wish::default() });
    let owner = host.connect(0);
    let sender = host.sender(owner, "q");
    for bytes in 1..=count {
        assert!(host.send(owner, sender, bytes, false));
    }
    host
}

fn sizes(host: &Host, at: usize, link: LinkId) -> Vec<usize> {
    let deliveries = host.deliveries(at).into_iter();
    deliveries
        .filter(|(of, ..)| *of == link)
        .map(|(.., bytes)| bytes.iter().rev().take_while(|byte| **byte == b'x').count())
        .collect()
}

fn drained(host: &Host, at: usize, of: LinkId) -> usize {
    host.count(at, |event| matches!(event, Amqp::Drained { link } if *link == of))
}

#[test]
fn a_browser_sees_all_from_the_head_and_its_drain_ends() {
    let count = 5 * BROWSER_WINDOW as usize + 3;
    for shards in [1, 2] {
        let mut host = filled(shards, count);
        let at = host.connect(usize::from(shards) - 1);
        let link = browser(&mut host, at, "q", 1000);
        host.clients[at].amqp.drain(link);
        host.settle();
        assert_eq!(sizes(&host, at, link), (1..=count).collect::<Vec<_>>());
        assert_eq!((drained(&host, at, link), host.clients[at].amqp.link_credit(link)), (1, 0));
        // And once more, with nothing new: answered again.
        host.clients[at].amqp.grant_credit(link, 7);
        host.clients[at].amqp.drain(link);
        host.settle();
        assert_eq!((sizes(&host, at, link).len(), drained(&host, at, link)), (count, 2));
        assert_eq!(host.messages(), count as u64);
        // All of it is there for a consumer, as if nobody had looked.
        let consumer = host.receiver(at, "q", 1000);
        assert_eq!(sizes(&host, at, consumer), (1..=count).collect::<Vec<_>>());
        let first = host.deliveries(at).into_iter().find(|(of, ..)| *of == consumer).unwrap();
        assert!(first.2.starts_with(b"\x00\x53\x70"), "a header with first-acquirer");
    }
}

#[test]
fn what_a_browser_says_of_a_message_changes_nothing_and_is_answered() {
    let mut host = filled(2, 5);
    let at = host.connect(1);
    let link = browser(&mut host, at, "q", 100);
    let outcomes = [
        Outcome::Accepted,
        Outcome::Rejected(None),
        Outcome::Released,
        Outcome::Modified {
            delivery_failed: true,
            undeliverable_here: true,
            message_annotations: None,
        },
    ];
    let deliveries: Vec<_> = host.deliveries(at).iter().map(|(_, id, _)| *id).collect();
    for (outcome, delivery) in outcomes.into_iter().zip(deliveries) {
        host.clients[at].amqp.settle(link, delivery, outcome);
    }
    host.settle();
    assert_eq!((host.messages(), sizes(&host, at, link).len()), (5, 5));
    // The link goes with one delivery unsettled; nothing comes back, for nothing had left.
    host.clients[at].amqp.detach(link, true, None);
    host.settle();
    assert_eq!(host.count(at, |event| matches!(event, Amqp::Detached { error: None, .. })), 1);
    let consumer = host.receiver(at, "q", 100);
    assert_eq!(sizes(&host, at, consumer), [1, 2, 3, 4, 5]);
    host.crash();
    assert_eq!(host.messages(), 5);
}

#[test]
fn a_browser_sees_new_messages_and_not_those_that_consumers_hold() {
    let mut host = filled(1, 4);
    let at = host.connect(0);
    let consumer = host.receiver(at, "q", 2);
    let link = browser(&mut host, at, "q", 100);
    assert_eq!(sizes(&host, at, link), [3, 4]);
    let taken: Vec<_> = host.deliveries(at).iter().take(2).map(|(_, id, _)| *id).collect();
    host.clients[at].amqp.settle(consumer, taken[0], Outcome::Accepted);
    host.clients[at].amqp.settle(consumer, taken[1], Outcome::Accepted);
    host.settle();
    let sender = host.sender(at, "q");
    assert!(host.send(at, sender, 9, false));
    assert_eq!(sizes(&host, at, link), [3, 4, 9]);
    assert_eq!(host.messages(), 3);
}

#[test]
fn credit_that_is_taken_back_shows_no_message_twice() {
    let mut host = filled(2, 40);
    let at = host.connect(1);
    host.mail_held = Some((ShardId(0), ShardId(1)));
    let link = browser(&mut host, at, "q", 30);
    // The credit is gone before the messages come.
    host.clients[at].amqp.grant_credit(link, 0);
    host.settle();
    host.mail_held = None;
    host.settle();
    assert_eq!(sizes(&host, at, link), [] as [usize; 0]);
    host.clients[at].amqp.drain(link);
    host.settle();
    host.clients[at].amqp.grant_credit(link, 100);
    host.settle();
    assert_eq!(sizes(&host, at, link), (1..=40).collect::<Vec<_>>());
}

#[test]
fn a_source_without_an_address_is_refused() {
    let mut host = Host::new(Wish::default());
    let at = host.connect(0);
    let session = host.session(at);
    let link = NewLink { name: "nowhere".into(), ..NewLink::default() };
    host.clients[at].amqp.attach_receiver(session, link).expect("attached");
    host.settle();
    let invalid = |event: &Amqp| {
        matches!(event, Amqp::Detached { error: Some(error), .. }
            if error.condition == Condition::InvalidField)
    };
    assert_eq!(host.count(at, invalid), 1);
}
