//! What an `[[address]]` says of its queues: depth, creation, consumers, priority.

use std::time::Duration;

use amqp::codec::{Composite, Writer};
use amqp::definitions::Condition;
use amqp::delivery::Outcome;
use amqp::link::{DistributionMode, LinkId, LinkSource, LinkTarget, NewLink};
use amqp::message::{Header, Properties, write_header};
use broker::admin::{AdminReply, AdminRequest, Undeletable};
use broker::settings::{FullPolicy, Said, Settings};
use journal::ShardId;

use crate::host::{Host, Wish, Writes, message};
use crate::relay::{conditions, letter, relay, send};
use crate::temporary::{detach, exists, told};

fn wish(rules: &[(&str, Said)]) -> Wish {
    let mut settings = Settings::default();
    for (pattern, said) in rules {
        settings.add(pattern, said.clone()).expect("a pattern");
    }
    Wish { shards: 2, settings, ..Wish::default() }
}

fn depth(messages_max: u64, full_policy: FullPolicy) -> Said {
    Said { messages_max: Some(messages_max), full_policy: Some(full_policy), ..Said::default() }
}

/// Messages of a queue, wherever it lives.
fn live(host: &Host, name: &str) -> u64 {
    let of = |shard: &broker::Shard| {
        let record = shard.state().catalogue.named(name)?;
        Some(shard.state().queue(record.id)?.live())
    };
    host.shards.iter().filter_map(of).sum()
}

fn settle_all(host: &mut Host, at: usize, outcome: &Outcome) {
    for (link, delivery, _) in host.deliveries(at) {
        host.clients[at].amqp.settle(link, delivery, outcome.clone());
    }
    // A settlement that nobody waits for waits for company.
    host.pass(Duration::from_millis(10));
}

/// A client here with a sender to a queue that another client has made on shard 0.
fn far_sender(host: &mut Host, queue: &str) -> (usize, LinkId) {
    let near = host.connect(0);
    host.sender(near, queue);
    let at = host.connect(1);
    let sender = host.sender(at, queue);
    (at, sender)
}

#[test]
fn a_full_queue_that_refuses_rejects_the_newest() {
    let mut host = Host::new(wish(&[("q", depth(3, FullPolicy::Refuse))]));
    let (at, sender) = far_sender(&mut host, "q");
    for _ in 0..5 {
        assert!(host.send(at, sender, 10, false));
    }
    let full = Some(Condition::ResourceLimitExceeded);
    assert_eq!(conditions(&host, at), [None, None, None, full, full]);
    let receiver = host.receiver(at, "q", 1);
    settle_all(&mut host, at, &Outcome::Accepted);
    assert!(host.send(at, sender, 10, false));
    assert_eq!(host.outcomes(at).pop(), Some(Outcome::Accepted), "there is room for one");
    assert_eq!(live(&host, "q"), 3);
    detach(&mut host, at, receiver);
}

#[test]
fn bytes_bound_a_queue_too() {
    let said =
        Said { bytes_max: Some(2500), full_policy: Some(FullPolicy::Refuse), ..Said::default() };
    let mut host = Host::new(wish(&[("#", said)]));
    let (at, sender) = far_sender(&mut host, "q");
    for bytes in [1000, 1000, 1000, 100] {
        assert!(host.send(at, sender, bytes, false));
    }
    let full = Some(Condition::ResourceLimitExceeded);
    assert_eq!(conditions(&host, at), [None, None, full, None]);
}

#[test]
fn a_full_queue_that_drops_accepts_what_it_drops_and_keeps_the_oldest() {
    let mut host = Host::new(wish(&[("q", depth(2, FullPolicy::Drop))]));
    let (at, sender) = far_sender(&mut host, "q");
    for bytes in 1..=4 {
        assert!(host.send(at, sender, bytes, false));
    }
    assert_eq!(host.outcomes(at), vec![Outcome::Accepted; 4]);
    assert_eq!((live(&host, "q"), host.stats(0).dropped_total), (2, 2));
    host.crash();
    let at = host.connect(0);
    host.receiver(at, "q", 10);
    let got: Vec<Vec<u8>> = host.deliveries(at).into_iter().map(|(_, _, got)| got).collect();
    let kept: Vec<bool> = (1..=2).zip(&got).map(|(n, got)| got.ends_with(&message(n))).collect();
    assert_eq!((got.len(), kept), (2, vec![true; 2]));
}

#[test]
fn a_full_queue_that_blocks_withholds_credit_until_it_is_half_empty() {
    for most in [1, 6, 10_000] {
        let mut host =
            Host::new(Wish { segments_max: 400, ..wish(&[("q", depth(most, FullPolicy::Block))]) });
        let (at, sender) = far_sender(&mut host, "q");
        let mut sent = 0;
        while sent < 1000 && host.send(at, sender, 10, false) {
            sent += 1;
        }
        assert!(host.outcomes(at).iter().all(|outcome| *outcome == Outcome::Accepted));
        if most == 10_000 {
            assert_eq!(sent, 1000);
            continue;
        }
        let allowed = most..=2 * most;
        assert!(allowed.contains(&sent), "{sent} were sent into a queue of {most}");
        // Whoever comes now, and after a restart, gets no credit either.
        let late = host.sender(at, "q");
        assert!(!host.send(at, late, 10, false));
        host.crash();
        let at = host.connect(1);
        let sender = host.sender(at, "q");
        assert!(!host.send(at, sender, 10, false));
        let receiver = host.receiver(at, "q", 1000);
        let all = host.deliveries(at);
        assert_eq!(all.len() as u64, sent);
        let mut left = sent;
        for (_, delivery, _) in all {
            assert_eq!(host.send(at, sender, 10, false), left <= most / 2, "{left} of {most}");
            if left <= most / 2 {
                break;
            }
            host.clients[at].amqp.settle(receiver, delivery, Outcome::Accepted);
            host.pass(Duration::from_millis(10));
            left -= 1;
        }
    }
}

#[test]
fn a_relay_hears_of_a_full_queue_by_a_rejection() {
    let mut host = Host::new(wish(&[("q", depth(1, FullPolicy::Block))]));
    let (at, sender) = far_sender(&mut host, "q");
    assert!(host.send(at, sender, 10, false));
    let session = host.session(at);
    let link =
        NewLink { name: "relay".to_owned(), target: LinkTarget::default(), ..NewLink::default() };
    let relay = host.clients[at].amqp.attach_sender(session, link).expect("attached");
    host.settle();
    for to in ["q", "other"] {
        let mut letter = Vec::new();
        let properties = Properties { to: Some(to), ..Properties::default() };
        properties.write_described(&mut Writer::new(&mut letter));
        letter.extend([0x00, 0x53, 0x75, 0xa0, 1, b'x']);
        host.clients[at].amqp.send(relay, &[&letter], false).expect("it has credit");
        host.settle();
    }
    let full = Some(Condition::ResourceLimitExceeded);
    assert_eq!(conditions(&host, at), [None, full, None]);
}

#[test]
fn dead_letters_wait_for_room_or_are_dropped_as_their_queue_says() {
    for policy in [FullPolicy::Refuse, FullPolicy::Block, FullPolicy::Drop] {
        let mut host = Host::new(wish(&[("DLQ", depth(1, policy))]));
        let other = host.connect(1);
        host.sender(other, "DLQ");
        let at = host.connect(0);
        let sender = host.sender(at, "q");
        for _ in 0..2 {
            assert!(host.send(at, sender, 10, false));
        }
        let receiver = host.receiver(at, "q", 2);
        settle_all(&mut host, at, &Outcome::Rejected(None));
        host.pass(Duration::from_millis(30));
        let waits = u64::from(policy != FullPolicy::Drop);
        assert_eq!((live(&host, "DLQ"), live(&host, "q")), (1, waits), "{policy:?}");
        assert_eq!(host.stats(0).dropped_total, 1 - waits);
        detach(&mut host, at, receiver);
        host.receiver(other, "DLQ", 10);
        settle_all(&mut host, other, &Outcome::Accepted);
        host.pass(Duration::from_secs(10));
        assert_eq!((live(&host, "DLQ"), live(&host, "q")), (waits, 0), "{policy:?}");
    }
}

#[test]
fn where_expired_messages_are_dropped_a_full_log_is_freed_of_them() {
    let said = Said { full_policy: Some(FullPolicy::Drop), ..Said::default() };
    let mut host = Host::new(Wish { segments_max: 5, ..wish(&[("ExpiryQueue", said)]) });
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    let mut mortal = Vec::new();
    write_header(&Header { ttl: Some(60_000), ..Header::default() }, &mut mortal);
    mortal.extend(message(10));
    while host.outcomes(at).iter().all(|outcome| *outcome == Outcome::Accepted) {
        host.clients[at].amqp.send(sender, &[&mortal], false).expect("there is credit");
        host.settle();
    }
    host.pass(Duration::from_secs(120));
    assert_eq!(live(&host, "q"), 0);
    assert!(host.stats(0).dropped_total > 20);
    assert!(!host.stats(0).journal_full);
}

#[test]
fn one_consumer_too_many_is_refused_and_takes_the_place_of_one_that_goes() {
    let said = Said { consumers_max: Some(2), ..Said::default() };
    let mut host = Host::new(wish(&[("q", said)]));
    let near = host.connect(0);
    let first = host.receiver(near, "q", 1);
    let far = host.connect(1);
    let second = host.receiver(far, "q", 1);
    for at in [near, far] {
        let third = host.receiver(at, "q", 1);
        assert_eq!(told(&host, at, third), Some(Condition::ResourceLimitExceeded));
    }
    // Who only looks is not counted.
    let session = host.session(far);
    let mut link = Host::link("look", "q", true);
    link.source.distribution_mode = Some(DistributionMode::Copy);
    let looks = host.clients[far].amqp.attach_receiver(session, link).expect("attached");
    host.settle();
    assert_eq!(told(&host, far, looks), None);
    detach(&mut host, near, first);
    let third = host.receiver(far, "q", 1);
    assert_eq!((told(&host, far, third), told(&host, far, second)), (None, None));
    let sender = host.sender(near, "q");
    for _ in 0..2 {
        assert!(host.send(near, sender, 10, false));
    }
    assert_eq!(host.deliveries(far).len(), 2);
}

#[test]
fn a_consumer_that_goes_while_its_place_is_asked_for_leaves_it_free() {
    let said = Said { consumers_max: Some(1), ..Said::default() };
    let mut host = Host::new(wish(&[("q", said)]));
    let near = host.connect(0);
    host.sender(near, "q");
    for held in [(0, 1), (1, 0)] {
        let at = host.connect(1);
        host.mail_held = Some((ShardId(held.0), ShardId(held.1)));
        host.receiver(at, "q", 1);
        host.lose(at);
        host.mail_held = None;
        host.settle();
        assert_eq!(host.shards[1].links(), 0);
    }
    let one = host.receiver(near, "q", 1);
    assert_eq!(told(&host, near, one), None);
}

#[test]
fn without_auto_create_only_what_is_there_is_found() {
    let said = Said { auto_create: Some(false), ..Said::default() };
    let yes = Said { auto_create: Some(true), ..Said::default() };
    let mut host = Host::new(wish(&[("#", said), ("known.*", yes)]));
    let at = host.connect(1);
    for queue in ["unknown", "known", "known.a.b"] {
        let link = host.sender(at, queue);
        assert_eq!(told(&host, at, link), Some(Condition::NotFound), "{queue}");
    }
    let sender = host.sender(at, "known.a");
    assert!(host.send(at, sender, 10, false));
    host.receiver(at, "known.a", 1);
    settle_all(&mut host, at, &Outcome::Rejected(None));
    host.pass(Duration::from_millis(10));
    assert_eq!(live(&host, "DLQ"), 1, "the broker's own are created when they are needed");
}

fn short_lived() -> Wish {
    let said = Said { auto_delete_after: Some(Duration::from_secs(1)), ..Said::default() };
    wish(&[("q", said)])
}

#[test]
fn an_idle_queue_goes_and_one_with_a_link_or_a_message_stays() {
    for home in [0, 1] {
        let mut host = Host::new(short_lived());
        let at = host.connect(home);
        let sender = host.sender(at, "q");
        let far = host.connect(1 - home);
        let receiver = host.receiver(far, "q", 0);
        host.pass(Duration::from_secs(5));
        detach(&mut host, far, receiver);
        host.pass(Duration::from_secs(5));
        assert!(exists(&host, "q"), "it has a producer");
        assert!(host.send(at, sender, 10, false));
        detach(&mut host, at, sender);
        host.pass(Duration::from_secs(5));
        assert!(exists(&host, "q"), "it has a message");
        let receiver = host.receiver(far, "q", 1);
        settle_all(&mut host, far, &Outcome::Accepted);
        detach(&mut host, far, receiver);
        host.pass(Duration::from_millis(900));
        assert!(exists(&host, "q"), "its time is not over");
        host.pass(Duration::from_millis(200));
        assert!(!exists(&host, "q"));
        host.crash();
        assert!(!exists(&host, "q"), "and stays gone");
        // Whoever asks again gets a new one, which is used and found after a restart.
        let at = host.connect(1 - home);
        let sender = host.sender(at, "q");
        assert!(host.send(at, sender, 10, false));
        host.pass(Duration::from_secs(5));
        host.crash();
        assert_eq!((exists(&host, "q"), live(&host, "q")), (true, 1));
        host.pass(Duration::from_secs(5));
        assert!(exists(&host, "q"));
        assert_eq!(host.unlisted_letters, 0, "no shard looks at all its links");
    }
}

#[test]
fn an_operator_deletes_a_queue_that_is_empty_and_hears_when_it_is_gone() {
    for home in [0, 1] {
        let mut host = Host::new(wish(&[]));
        let at = host.connect(home);
        let sender = host.sender(at, "q");
        assert!(host.send(at, sender, 10, false));
        let ask = |host: &mut Host| -> Vec<AdminReply> {
            for shard in 0..2 {
                host.ask(shard, AdminRequest::Delete { queue: "q".to_owned() });
            }
            host.pass(Duration::from_millis(50));
            let replies = host.replies.drain(..).map(|(_, reply)| reply);
            replies.filter(|reply| *reply != AdminReply::Deleted(None)).collect()
        };
        assert_eq!(ask(&mut host), [AdminReply::Deleted(Some(Err(Undeletable::HasMessages(1))))]);
        host.crash();
        assert_eq!(live(&host, "q"), 1, "it stays");

        let at = host.connect(1 - home);
        let receiver = host.receiver(at, "q", 1);
        settle_all(&mut host, at, &Outcome::Accepted);
        host.ask(home, AdminRequest::Delete { queue: "q".to_owned() });
        let gone = AdminReply::Deleted(Some(Ok(())));
        assert_eq!(ask(&mut host), [gone.clone(), gone], "each asker hears it");
        assert!(!exists(&host, "q"));
        assert_eq!(told(&host, at, receiver), Some(Condition::ResourceDeleted));
        host.crash();
        assert!(!exists(&host, "q"), "and stays gone");
        assert_eq!(ask(&mut host), []);
        let at = host.connect(home);
        let sender = host.sender(at, "q");
        assert!(host.send(at, sender, 10, false), "its name can be used");
    }
}

#[test]
fn whenever_the_power_goes_an_idle_queue_is_there_or_gone_and_its_name_can_be_used() {
    let mut ends = Vec::new();
    for kept in 0..4 {
        for held in [None, Some((ShardId(0), ShardId(1))), Some((ShardId(1), ShardId(0)))] {
            let mut host = Host::new(short_lived());
            let at = host.connect(1);
            let sender = host.sender(at, "q");
            detach(&mut host, at, sender);
            host.pass(Duration::from_millis(500));
            host.writes = Writes::Held;
            host.mail_held = held;
            host.pass(Duration::from_secs(1));
            for _ in 0..kept {
                if host.is_holding() {
                    host.let_go_first();
                }
            }
            host.mail_held = None;
            host.crash();
            ends.push(exists(&host, "q"));
            let at = host.connect(0);
            let sender = host.sender(at, "q");
            assert!(host.send(at, sender, 10, false), "{kept} {held:?}");
            assert_eq!(host.outcomes(at), [Outcome::Accepted]);
            host.crash();
            assert_eq!(live(&host, "q"), 1);
        }
    }
    assert!(ends.contains(&true) && ends.contains(&false), "both ends were seen");
}

/// The queue `q` was idle, and its deletion waits for the disk; it was made by this shard's client.
fn with_a_queue_that_goes(by: usize) -> Host {
    let mut host = Host::new(short_lived());
    let at = host.connect(by);
    let sender = host.sender(at, "q");
    detach(&mut host, at, sender);
    host.writes = Writes::Held;
    host.pass(Duration::from_secs(2));
    host
}

#[test]
fn what_comes_while_a_queue_goes_waits_for_a_new_one() {
    let mut host = with_a_queue_that_goes(0);
    // Shard 1 knows the old one: its link is ended. On shard 0 the name is free already.
    let far = host.connect(1);
    let early = host.sender(far, "q");
    host.let_go();
    assert_eq!(told(&host, far, early), Some(Condition::ResourceDeleted));
    let again = host.sender(far, "q");
    assert!(host.send(far, again, 10, false));
    assert_eq!(live(&host, "q"), 1);
}

#[test]
fn a_message_that_meets_a_deletion_is_released_and_makes_the_queue_anew() {
    for home in [0, 1] {
        let mut host = with_a_queue_that_goes(home);
        // Shard 1 knows the old one: a link of its own, and the relay.
        let far = host.connect(1);
        let early = host.sender(far, "q");
        assert!(host.send(far, early, 10, false));
        let other = host.connect(1);
        let through = relay(&mut host, other, LinkSource::at("client"));
        send(&mut host, other, through, &letter(Some("q"), 1), false);
        host.settle();
        assert_eq!(host.outcomes(far), [Outcome::Released]);
        assert_eq!(host.outcomes(other), [Outcome::Released]);
        host.let_go();
        host.writes = Writes::Done;
        send(&mut host, other, through, &letter(Some("q"), 2), false);
        host.settle();
        assert_eq!(host.outcomes(other), [Outcome::Released, Outcome::Accepted]);
        assert_eq!(live(&host, "q"), 1);
    }
}

#[test]
fn the_log_goes_round_after_a_queue_was_deleted() {
    let mut host = Host::new(Wish { segments_max: 5, ..short_lived() });
    let at = host.connect(1);
    let sender = host.sender(at, "q");
    detach(&mut host, at, sender);
    host.pass(Duration::from_secs(2));
    assert!(!exists(&host, "q"));
    let at = host.connect(0);
    let sender = host.sender(at, "other");
    let receiver = host.receiver(at, "other", 1000);
    let before = host.stats(0).journal_head_lsn;
    for n in 0..200 {
        assert!(host.send(at, sender, 1000, false), "{n}");
        let (_, delivery, _) = host.deliveries(at).pop().expect("it came");
        host.clients[at].amqp.settle(receiver, delivery, Outcome::Accepted);
        host.pass(Duration::from_millis(10));
    }
    assert!(host.stats(0).journal_head_lsn > before, "the head is stuck");
    host.crash();
    assert!(!exists(&host, "q") && exists(&host, "other"));
}

#[test]
fn an_exclusive_consumer_on_another_shard_gets_all_until_it_is_lost() {
    let said = Said { exclusive_consumer: Some(true), ..Said::default() };
    let mut host = Host::new(wish(&[("q", said)]));
    let (first, sender) = far_sender(&mut host, "q");
    host.receiver(first, "q", 10);
    let second = host.connect(0);
    host.receiver(second, "q", 10);
    for _ in 0..4 {
        assert!(host.send(first, sender, 10, false));
    }
    assert_eq!((host.deliveries(first).len(), host.deliveries(second).len()), (4, 0));
    host.lose(first);
    assert_eq!(host.deliveries(second).len(), 4);
}

#[test]
fn what_states_no_priority_has_its_addresss_through_a_restart() {
    let said = Said { priority_default: Some(7), ..Said::default() };
    let mut host = Host::new(wish(&[("q", said)]));
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    for (n, priority) in [(1, Some(4)), (2, None), (3, Some(9)), (4, Some(5)), (5, None)] {
        let mut bytes = Vec::new();
        write_header(&Header { priority, durable: Some(true), ..Header::default() }, &mut bytes);
        bytes.extend(message(n));
        host.clients[at].amqp.send(sender, &[&bytes], false).expect("there is credit");
        host.settle();
    }
    for _ in 0..2 {
        let other = host.connect(0);
        host.receiver(other, "q", 10);
        let order: Vec<usize> = host
            .deliveries(other)
            .iter()
            .map(|(_, _, got)| (1..=5).find(|n| got.ends_with(&message(*n))).expect("one of them"))
            .collect();
        assert_eq!(order, [3, 2, 5, 4, 1]);
        host.crash();
    }
    assert_eq!(live(&host, "q"), 5);
}

#[test]
fn a_consumer_whose_queue_goes_while_its_place_is_asked_for_hears_of_it() {
    let said = Said {
        consumers_max: Some(1),
        auto_delete_after: Some(Duration::from_secs(1)),
        ..Said::default()
    };
    let mut host = Host::new(Wish { shards: 3, ..wish(&[("q", said)]) });
    let at = host.connect(1);
    let sender = host.sender(at, "q");
    detach(&mut host, at, sender);
    host.writes = Writes::Held;
    host.pass(Duration::from_millis(1100));
    assert!(exists(&host, "q"), "its end is not committed");
    let far = host.connect(2);
    host.mail_held = Some((ShardId(1), ShardId(2)));
    let late = host.receiver(far, "q", 1);
    host.let_go();
    assert!(!exists(&host, "q"));
    host.mail_held = None;
    host.settle();
    assert_eq!(told(&host, far, late), Some(Condition::ResourceDeleted));
    assert_eq!(host.shards[2].links(), 0);
}
