//! What a consumer says of a message, and when it is answered.

use std::time::Duration;

use amqp::connection::Event as Amqp;
use amqp::delivery::Outcome;
use broker::Event;
use broker::admin::{AdminReply, AdminRequest};
use broker::limits::{CONSUMER_WINDOW, GRADUAL_STEP};
use broker::pending::BackupMarks;
use journal::{Level, Lsn, ShardId};

use crate::host::{Host, Wish, Writes};

/// How a client goes that wants to be sure.
#[derive(Clone, Copy, Debug)]
enum Goodbye {
    Detach,
    End,
    Close,
}

#[test]
fn detach_end_and_close_are_answered_when_the_settlements_before_are_committed() {
    for goodbye in [Goodbye::Detach, Goodbye::End, Goodbye::Close] {
        // The queue's home is another shard than the client's.
        let mut host = Host::new(Wish { shards: 2, ..Wish::default() });
        let owner = host.connect(0);
        let sender = host.sender(owner, "q");
        for _ in 0..2 {
            assert!(host.send(owner, sender, 10, false));
        }
        let at = host.connect(1);
        let session = host.begin(at);
        let receiver = host.receiver_on(at, session, "q", 2);
        let first = host.deliveries(at)[0].1;
        host.writes = Writes::Held;
        let client = &mut host.clients[at].amqp;
        client.settle(receiver, first, Outcome::Accepted);
        match goodbye {
            Goodbye::Detach => client.detach(receiver, true, None),
            Goodbye::End => client.end(session, None),
            Goodbye::Close => client.close(None),
        }
        host.pass(Duration::from_millis(10));
        let answer = |event: &Amqp| {
            matches!(event, Amqp::Detached { .. } | Amqp::Ended { .. } | Amqp::Closed { .. })
        };
        assert_eq!(host.count(at, answer), 0, "{goodbye:?} is answered before the commit");
        host.let_go();
        assert_eq!(host.count(at, answer), 1, "{goodbye:?}");
        host.crash();
        assert_eq!(host.messages(), 1, "{goodbye:?}: what was settled came back");
    }
}

#[test]
fn a_drain_gives_everything_there_is_and_then_says_so_once() {
    let count = 2 * CONSUMER_WINDOW as usize + 17;
    for shards in [1, 2] {
        let mut host = Host::new(Wish { shards, segments_max: 64, ..Wish::default() });
        let owner = host.connect(0);
        let sender = host.sender(owner, "q");
        for _ in 0..count {
            assert!(host.send(owner, sender, 10, false));
        }
        let at = host.connect(usize::from(shards) - 1);
        let receiver = host.receiver(at, "q", 0);
        host.clients[at].amqp.grant_credit(receiver, 100_000);
        host.clients[at].amqp.drain(receiver);
        host.settle();
        let drained = |event: &Amqp| matches!(event, Amqp::Drained { .. });
        assert_eq!((host.deliveries(at).len(), host.count(at, drained)), (count, 1));
        assert_eq!(host.clients[at].amqp.link_credit(receiver), 0);
        assert!(host.send(owner, sender, 10, false));
        assert_eq!(host.deliveries(at).len(), count, "the credit is gone");
        host.clients[at].amqp.grant_credit(receiver, 1);
        host.settle();
        assert_eq!(host.deliveries(at).len(), count + 1);
    }
}

#[test]
fn what_comes_back_keeps_its_order_for_the_next_consumer() {
    let mut host = Host::new(Wish::default());
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    for bytes in 1..=6 {
        assert!(host.send(at, sender, bytes, false));
    }
    let first = host.receiver(at, "q", 4);
    let held = host.deliveries(at);
    assert_eq!(held.len(), 4);
    // 2 is done, 3 failed, 1 and 4 go back with the link.
    host.clients[at].amqp.settle(first, held[1].1, Outcome::Accepted);
    let failed = Outcome::Modified {
        delivery_failed: true,
        undeliverable_here: false,
        message_annotations: None,
    };
    host.clients[at].amqp.settle(first, held[2].1, failed);
    host.clients[at].amqp.detach(first, true, None);
    host.pass(Duration::from_millis(10));
    host.receiver(at, "q", 100);
    let bodies: Vec<usize> = host.deliveries(at)[4..]
        .iter()
        .map(|(_, _, message)| message.iter().filter(|byte| **byte == b'x').count())
        .collect();
    assert_eq!(bodies, [1, 3, 4, 5, 6]);
}

#[test]
fn nothing_is_answered_or_delivered_before_the_mark_of_its_level() {
    for level in [Level::Sync, Level::Replicated, Level::ReplicatedSync] {
        let mut host = Host::new(Wish { level, backup: true, ..Wish::default() });
        let all = Lsn(1 << 40);
        let mark = |host: &mut Host, received: Lsn, durable: Lsn| {
            host.event(0, Event::Backup(BackupMarks { received, durable }));
            host.settle();
        };
        let at = host.connect(0);
        // The creation is under the whole watermark, whatever the level.
        let sender = host.sender(at, "q");
        assert!(!host.send(at, sender, 10, false), "not attached yet");
        let stats = host.stats(0);
        let so_far = Lsn(stats.journal_appended_lsn);
        mark(&mut host, so_far, so_far);
        host.receiver(at, "q", 10);
        host.writes = Writes::Held;
        assert!(host.send(at, sender, 10, false));
        let heard = |host: &Host| (host.outcomes(at).len(), host.deliveries(at).len());
        assert_eq!(heard(&host), (0, 0), "{level:?}: nothing is durable");
        host.let_go();
        assert_eq!(heard(&host) == (1, 1), level == Level::Sync, "{level:?}: durable here");
        mark(&mut host, all, so_far);
        assert_eq!(heard(&host) == (1, 1), level != Level::ReplicatedSync, "{level:?}: received");
        mark(&mut host, all, all);
        assert_eq!(heard(&host), (1, 1), "{level:?}: durable everywhere");
    }
}

#[test]
fn a_purge_goes_in_steps_at_every_level_and_each_asker_hears_its_end() {
    for level in [Level::Async, Level::Sync] {
        let mut host = Host::new(Wish { level, segments_max: 64, ..Wish::default() });
        let at = host.connect(0);
        let sender = host.sender(at, "q");
        let count = 3 * GRADUAL_STEP as u64 + 1;
        for _ in 0..count {
            assert!(host.send(at, sender, 10, false));
        }
        host.ask(0, AdminRequest::Purge { queue: "q".to_owned() });
        host.settle();
        assert!(host.messages() >= count - GRADUAL_STEP as u64, "{level:?}: all in one turn");
        host.ask(0, AdminRequest::Purge { queue: "q".to_owned() });
        host.pass(Duration::from_millis(50));
        assert_eq!(host.messages(), 0);
        let replies: Vec<_> = host.replies.drain(..).map(|(_, reply)| reply).collect();
        assert_eq!(replies, [AdminReply::Purged(Some(count)), AdminReply::Purged(Some(count))]);
        host.crash();
        assert_eq!(host.messages(), 0);
    }
}

#[test]
fn a_second_purge_is_not_answered_by_the_commit_of_the_first() {
    let mut host = Host::new(Wish::default());
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    for _ in 0..2 {
        assert!(host.send(at, sender, 10, false));
    }
    let receiver = host.receiver(at, "q", 1);
    host.writes = Writes::Held;
    let purge = || AdminRequest::Purge { queue: "q".to_owned() };
    host.ask(0, purge());
    host.pass(Duration::from_millis(6));
    // What a consumer held comes back, and goes by the second purge.
    host.clients[at].amqp.detach(receiver, true, None);
    host.settle();
    host.ask(0, purge());
    host.pass(Duration::from_millis(6));
    host.let_go_first();
    assert_eq!(host.replies, [], "the second settlement is not committed");
    host.let_go();
    assert_eq!(host.replies.len(), 2);
    host.crash();
    assert_eq!(host.messages(), 0);
}

#[test]
fn credit_that_is_taken_back_loses_nothing_and_leaks_nothing() {
    let mut host = Host::new(Wish { shards: 2, ..Wish::default() });
    let owner = host.connect(0);
    let sender = host.sender(owner, "q");
    let at = host.connect(1);
    let receiver = host.receiver(at, "q", 100);
    host.clients[at].amqp.grant_credit(receiver, 0);
    host.settle();
    for bytes in 1..=200 {
        assert!(host.send(owner, sender, bytes, false));
    }
    assert_eq!(host.deliveries(at).len(), 0, "beyond its credit");
    for round in 1..=20 {
        host.clients[at].amqp.grant_credit(receiver, 10);
        host.settle();
        assert_eq!(host.deliveries(at).len(), round * 10);
    }
    let lengths = host.deliveries(at).iter().map(|(_, _, m)| m.len()).collect::<Vec<_>>();
    assert!(lengths.is_sorted(), "{lengths:?}");
}

#[test]
fn mail_that_comes_after_its_link_is_gone_is_for_nobody() {
    let mut host = Host::new(Wish { shards: 2, ..Wish::default() });
    let owner = host.connect(0);
    let sender = host.sender(owner, "q");
    for _ in 0..5 {
        assert!(host.send(owner, sender, 10, false));
    }
    let at = host.connect(1);
    host.mail_held = Some((ShardId(0), ShardId(1)));
    host.receiver(at, "q", 3);
    let to = host.sender(at, "q");
    host.send(at, to, 10, false);
    host.lose(at);
    // The slots are used again before the letters come.
    let at = host.connect(1);
    host.receiver(at, "q", 100);
    host.mail_held = None;
    host.settle();
    let mut deliveries = host.deliveries(at);
    deliveries.sort_by_key(|(_, delivery, _)| delivery.0);
    deliveries.dedup();
    assert_eq!(deliveries.len() as u64, host.messages());
    for (link, delivery, _) in deliveries {
        host.clients[at].amqp.settle(link, delivery, Outcome::Accepted);
    }
    host.pass(Duration::from_millis(10));
    host.lose(at);
    host.lose(owner);
    host.pass(Duration::from_millis(10));
    host.assert_clean();
}
