//! The anonymous relay: each message finds its own queue, on whatever shard, and each is answered.

use amqp::codec::{Composite, Writer};
use amqp::connection::Event as Amqp;
use amqp::definitions::Condition;
use amqp::delivery::Outcome;
use amqp::link::{LinkId, LinkSource, LinkTarget, NewLink};
use amqp::message::Properties;
use broker::admin::{AdminReply, AdminRequest};
use journal::{Level, ShardId};

use crate::host::{Host, Wish, message};

/// A link without a target address.
pub(crate) fn relay(host: &mut Host, at: usize, source: LinkSource) -> LinkId {
    let session = host.session(at);
    let link = NewLink {
        name: format!("relay-{}", host.clients[at].heard.len()),
        source,
        target: LinkTarget::default(),
        ..NewLink::default()
    };
    let link = host.clients[at].amqp.attach_sender(session, link).expect("attached");
    host.settle();
    link
}

/// A message of one byte to an address, or to none.
pub(crate) fn letter(to: Option<&str>, byte: u8) -> Vec<u8> {
    let mut letter = Vec::new();
    Properties { to, ..Properties::default() }.write_described(&mut Writer::new(&mut letter));
    letter.extend([0x00, 0x53, 0x75, 0xa0, 1, byte]);
    letter
}

pub(crate) fn send(host: &mut Host, at: usize, link: LinkId, letter: &[u8], settled: bool) {
    host.clients[at].amqp.send(link, &[letter], settled).expect("there is credit");
}

pub(crate) fn conditions(host: &Host, at: usize) -> Vec<Option<Condition>> {
    let known = |outcome: &Outcome| match outcome {
        Outcome::Rejected(Some(error)) => Condition::from_symbol(error.condition.as_str()),
        Outcome::Rejected(None)
        | Outcome::Accepted
        | Outcome::Released
        | Outcome::Modified { .. } => None,
    };
    host.outcomes(at).iter().map(known).collect()
}

/// The last byte of each message in a queue, as an operator sees them.
fn bodies(host: &mut Host, shard: usize, queue: &str) -> Vec<u8> {
    host.ask(shard, AdminRequest::Peek { queue: queue.to_owned(), count_max: 100 });
    host.settle();
    match host.replies.pop() {
        Some((_, AdminReply::Peeked(Some(messages)))) => {
            messages.iter().map(|each| *each.message.last().expect("a body")).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn item_37_messages_of_one_link_find_their_queues_on_every_shard_in_order() {
    let mut host = Host::new(Wish { shards: 3, ..Wish::default() });
    // One queue lives elsewhere, one lives here, one is not there yet.
    let far = host.connect(2);
    host.sender(far, "far");
    let at = host.connect(1);
    host.sender(at, "near");
    let link = relay(&mut host, at, LinkSource::default());
    for byte in 0..10 {
        for to in ["far", "near", "queue://new"] {
            send(&mut host, at, link, &letter(Some(to), byte), byte % 3 == 1);
        }
    }
    host.settle();
    let outcomes = host.outcomes(at);
    assert_eq!(outcomes.len(), 21);
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Accepted));
    for (shard, queue) in [(2, "far"), (1, "near"), (1, "new")] {
        assert_eq!(bodies(&mut host, shard, queue), (0..10).collect::<Vec<u8>>(), "{queue}");
    }
}

#[test]
fn item_37_what_has_no_queue_is_rejected_alone_with_the_error_of_an_attach() {
    let mut host = Host::new(Wish { shards: 2, ..Wish::default() });
    let at = host.connect(1);
    let link = relay(&mut host, at, LinkSource::default());
    let tos = [None, Some("a*"), Some("topic://t"), Some("$x"), Some("good")];
    for to in tos {
        send(&mut host, at, link, &letter(to, 1), false);
    }
    host.settle();
    let mut told = conditions(&host, at);
    told.sort_by_key(|condition| condition.map(|condition| condition.symbol().as_str()));
    let invalid = Some(Condition::InvalidField);
    assert_eq!(told, [None, invalid, invalid, invalid, Some(Condition::NotImplemented)]);
    assert_eq!(host.messages(), 1);
    // A message that is none is one message's fault, too.
    send(&mut host, at, link, &[0x00, 0x53, 0x75, 0xa0, 9], false);
    send(&mut host, at, link, &letter(Some("good"), 2), false);
    host.settle();
    assert_eq!(bodies(&mut host, 1, "good"), [1, 2]);
    assert_eq!(host.count(at, |event| matches!(event, Amqp::Detached { .. })), 0);
}

#[test]
fn item_37_a_sender_that_cannot_hear_rejected_is_detached_with_the_error() {
    let deaf = LinkSource { outcomes: vec!["amqp:accepted:list".into()], ..LinkSource::default() };
    for (source, settled) in [(LinkSource::default(), true), (deaf, false)] {
        let mut host = Host::new(Wish::default());
        let at = host.connect(0);
        let link = relay(&mut host, at, source);
        send(&mut host, at, link, &letter(None, 1), settled);
        host.settle();
        let [detached] =
            &host.clients[at].heard.iter().filter_map(detached).collect::<Vec<_>>()[..]
        else {
            panic!("one detach was expected");
        };
        assert_eq!(*detached, Condition::InvalidField);
        host.lose(at);
        host.assert_clean();
    }
}

/// Why the broker detached a link.
pub(crate) fn detached(event: &Amqp) -> Option<Condition> {
    let Amqp::DetachReceived { error: Some(error), closed: true, .. } = event else { return None };
    Condition::from_symbol(error.condition.as_str())
}

#[test]
fn item_34_a_refused_message_detaches_a_link_that_knows_no_rejected() {
    let mut host = Host::new(Wish::default());
    let at = host.connect(0);
    let session = host.session(at);
    let link = NewLink {
        name: "deaf".into(),
        source: LinkSource { outcomes: vec!["amqp:accepted:list".into()], ..LinkSource::default() },
        target: LinkTarget::at("q"),
        ..NewLink::default()
    };
    let link = host.clients[at].amqp.attach_sender(session, link).expect("attached");
    host.settle();
    send(&mut host, at, link, &message(10), false);
    send(&mut host, at, link, &[0xff; 9], false);
    host.settle();
    let told: Vec<_> = host.clients[at].heard.iter().filter_map(detached).collect();
    assert_eq!(told, [Condition::DecodeError]);
    assert_eq!(host.messages(), 1);
}

#[test]
fn answers_come_in_any_order_and_what_is_remembered_is_bounded() {
    let mut host = Host::new(Wish { shards: 2, level: Level::Async, ..Wish::default() });
    let far = host.connect(1);
    host.sender(far, "far");
    let at = host.connect(0);
    host.sender(at, "near");
    let link = relay(&mut host, at, LinkSource::default());
    // The first answer is late: it must hold neither the others' answers back nor credit for ever.
    host.mail_held = Some((ShardId(1), ShardId(0)));
    send(&mut host, at, link, &letter(Some("far"), 1), false);
    let mut sent = 0;
    while host.clients[at].amqp.can_send(link) && sent < 20_000 {
        send(&mut host, at, link, &letter(Some("near"), 2), false);
        host.settle();
        sent += 1;
        assert_eq!(host.outcomes(at).len(), sent);
    }
    assert!((4_096..10_000).contains(&sent), "{sent} were sent behind one that was not answered");
    host.mail_held = None;
    host.settle();
    assert_eq!(host.outcomes(at).len(), sent + 1);
    assert!(host.clients[at].amqp.can_send(link), "credit is given again");
}

#[test]
fn a_relay_that_goes_while_a_name_is_looked_up_leaves_nothing() {
    let mut host = Host::new(Wish { shards: 2, ..Wish::default() });
    let at = host.connect(1);
    let link = relay(&mut host, at, LinkSource::default());
    host.mail_held = Some((ShardId(0), ShardId(1)));
    send(&mut host, at, link, &letter(Some("new"), 1), false);
    host.settle();
    host.lose(at);
    host.mail_held = None;
    host.settle();
    host.assert_clean();

    // One that is closed in order first gets its answer.
    let at = host.connect(1);
    let link = relay(&mut host, at, LinkSource::default());
    host.mail_held = Some((ShardId(0), ShardId(1)));
    send(&mut host, at, link, &letter(Some("newer"), 1), false);
    host.settle();
    host.clients[at].amqp.detach(link, true, None);
    host.settle();
    assert_eq!(host.count(at, |event| matches!(event, Amqp::Detached { .. })), 0);
    host.mail_held = None;
    host.settle();
    assert_eq!(host.count(at, |event| matches!(event, Amqp::Detached { .. })), 1);
    assert_eq!(host.messages(), 1);
}

#[test]
fn what_waits_for_its_queue_counts_as_memory_and_is_bounded_by_it() {
    for stays in [true, false] {
        let mut host = Host::new(Wish { shards: 2, memory_bytes_max: 2_000, ..Wish::default() });
        let at = host.connect(1);
        let link = relay(&mut host, at, LinkSource::default());
        host.mail_held = Some((ShardId(0), ShardId(1)));
        for byte in 0..30 {
            send(&mut host, at, link, &letter(Some("new"), byte), false);
        }
        host.settle();
        let waiting = host.stats(1).memory_bytes;
        assert!(waiting > 1_000 && waiting <= 2_000, "{waiting} bytes wait");
        let refused = conditions(&host, at);
        assert!(refused.iter().all(|c| *c == Some(Condition::ResourceLimitExceeded)));
        if !stays {
            host.lose(at);
            assert_eq!(host.stats(1).memory_bytes, 0);
        }
        host.mail_held = None;
        host.settle();
        if stays {
            assert_eq!(host.outcomes(at).len(), 30);
            assert_eq!(host.messages() as usize, 30 - refused.len());
            assert_eq!(host.stats(1).memory_bytes, waiting, "now as messages of the queue");
        }
    }
}
