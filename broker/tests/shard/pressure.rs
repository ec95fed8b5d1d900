//! Back-pressure: credit that is withheld, reads that wait, and messages that are refused.

use std::time::Duration;

use amqp::connection::Event as Amqp;
use amqp::definitions::Role;
use amqp::delivery::Outcome;
use amqp::message::Sections;
use amqp::message::{Header, write_header};
use broker::limits::{
    EXPIRY_BYTES, INDEX_BYTES, PLACE_BYTES, PRESSURE_HOLD, PRODUCER_CREDIT, SLOT_BYTES,
    TOUCHED_BYTES,
};
use broker::queue::Queue;
use broker::settings::{FullPolicy, Said, Settings};
use journal::ShardId;

use crate::host::{Host, Wish, Writes, message};
use crate::temporary::make;

#[test]
fn a_full_log_says_so_withholds_credit_and_takes_messages_again_when_drained() {
    let mut host = Host::new(Wish { segments_max: 5, ..Wish::default() });
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    let mut sent = 0;
    while host.send(at, sender, 1000, false) {
        sent += 1;
        assert!(sent < 2000, "credit is not withheld");
    }
    let outcomes = host.outcomes(at);
    let taken = outcomes.iter().filter(|outcome| **outcome == Outcome::Accepted).count();
    assert!(taken > 20 && taken < outcomes.len(), "{taken} of {}", outcomes.len());
    assert!(host.stats(0).journal_full, "messages are refused for a full log");
    let receiver = host.receiver(at, "q", 10_000);
    assert_eq!(host.deliveries(at).len(), taken);
    for (_, delivery, _) in host.deliveries(at) {
        host.clients[at].amqp.settle(receiver, delivery, Outcome::Accepted);
    }
    host.pass(Duration::from_secs(3));
    assert!(!host.stats(0).journal_full);
    let before = host.outcomes(at).len();
    assert!(host.send(at, sender, 1000, false), "credit is given again");
    host.pass(PRESSURE_HOLD);
    assert_eq!(host.outcomes(at)[before..], [Outcome::Accepted]);
}

#[test]
fn what_was_sent_settled_meets_back_pressure_too() {
    let mut host = Host::new(Wish { shards: 2, ..Wish::default() });
    let owner = host.connect(0);
    host.sender(owner, "q");
    let at = host.connect(1);
    let sender = host.sender(at, "q");
    host.mail_held = Some((ShardId(1), ShardId(0)));
    let mut sent = 0;
    while host.send(at, sender, 10, true) {
        sent += 1;
        assert!(sent <= 3 * PRODUCER_CREDIT, "nothing bounds what is under way");
    }
    host.mail_held = None;
    host.settle();
    assert_eq!(host.messages(), u64::from(sent));
    assert!(host.send(at, sender, 10, true), "credit comes back");
}

#[test]
fn a_queue_can_be_created_while_the_journal_is_behind() {
    let mut host = Host::new(Wish { segments_max: 600, ..Wish::default() });
    host.writes = Writes::Held;
    let mut clients = Vec::new();
    for _ in 0..3 {
        host.writes = Writes::Done;
        let at = host.connect(0);
        let sender = host.sender(at, "q");
        clients.push((at, sender));
    }
    host.writes = Writes::Held;
    for _ in 0..150 {
        for (at, sender) in &clients {
            host.send(*at, *sender, 60_000, false);
        }
    }
    assert!(!host.shards[0].is_quiet());
    assert!(host.clients.iter().any(|client| client.paused), "reads are withheld");
    let at = host.connect(0);
    host.sender(at, "new");
    let gone = |event: &Amqp| matches!(event, Amqp::Detached { .. } | Amqp::DetachReceived { .. });
    assert_eq!(
        host.count(at, gone),
        0,
        "it waits, and is not refused: {:?}",
        host.clients[at].heard
    );
    host.let_go();
    host.pass(Duration::from_secs(1));
    assert_eq!(host.count(at, |event| matches!(event, Amqp::Attached { .. })), 1);
    assert!(host.clients.iter().all(|client| !client.paused));
    let accepted: usize = clients.iter().map(|(at, _)| host.outcomes(*at).len()).sum();
    assert_eq!(accepted as u64, host.messages(), "everything was answered, nothing was dropped");
}

#[test]
fn a_queue_for_the_dead_waits_for_a_journal_that_is_behind_and_nothing_is_dropped() {
    let mut settings = Settings::default();
    let drops = Said { full_policy: Some(FullPolicy::Drop), ..Said::default() };
    settings.add("DLQ", drops).expect("a pattern");
    let mut host = Host::new(Wish { shards: 2, segments_max: 600, settings, ..Wish::default() });
    let other = host.connect(1);
    let sender = host.sender(other, "q");
    assert!(host.send(other, sender, 10, false));
    host.receiver(other, "q", 1);
    let clients: Vec<_> = (0..3)
        .map(|_| {
            let at = host.connect(0);
            (at, host.sender(at, "busy"))
        })
        .collect();
    // Shard 0 is asked for the queue when its log takes nothing for a while.
    host.mail_held = Some((ShardId(1), ShardId(0)));
    let (link, delivery, _) = host.deliveries(other).pop().expect("it came");
    host.clients[other].amqp.settle(link, delivery, Outcome::Rejected(None));
    host.pass(Duration::from_millis(10));
    host.writes = Writes::Held;
    for _ in 0..150 {
        for (at, sender) in &clients {
            host.send(*at, *sender, 60_000, false);
        }
    }
    assert!(host.clients.iter().any(|client| client.paused), "reads are withheld");
    host.mail_held = None;
    host.pass(Duration::from_secs(10));
    assert_eq!(host.stats(1).dropped_total, 0, "nothing is full");
    host.let_go();
    host.pass(Duration::from_secs(10));
    assert_eq!((host.stats(1).dropped_total, host.stats(0).dropped_total), (0, 0));
    let dead = host.connect(1);
    host.receiver(dead, "DLQ", 1);
    assert_eq!(host.deliveries(dead).len(), 1);
}

#[test]
fn what_a_broken_connection_had_in_hand_counts_when_the_journal_is_behind() {
    let mut host = Host::new(Wish { segments_max: 600, ..Wish::default() });
    let holder = host.connect(0);
    let sender = host.sender(holder, "q");
    assert!(host.send(holder, sender, 10, false));
    assert!(host.send(holder, sender, 20, false));
    host.receiver(holder, "q", 2);
    assert_eq!(host.deliveries(holder).len(), 2);
    let clients: Vec<_> = (0..3)
        .map(|_| {
            let at = host.connect(0);
            (at, host.sender(at, "busy"))
        })
        .collect();
    host.writes = Writes::Held;
    for _ in 0..150 {
        for (at, sender) in &clients {
            host.send(*at, *sender, 60_000, false);
        }
    }
    assert!(host.clients.iter().any(|client| client.paused), "reads are withheld");
    host.lose(holder);
    host.let_go();
    host.pass(Duration::from_secs(1));
    let other = host.connect(0);
    host.receiver(other, "q", 2);
    let count = |(_, _, got): &(_, _, Vec<u8>)| {
        Sections::scan(got).expect("a message").header_fields.delivery_count.unwrap_or(0)
    };
    let counts: Vec<u32> = host.deliveries(other).iter().map(count).collect();
    assert_eq!(counts, [1, 0], "in their order, and the first of them has failed");
}

#[test]
fn pressure_is_told_once_however_often_its_reason_comes_and_goes() {
    // The index of so few messages is what cannot be paged out.
    let wish = Wish { shards: 2, memory_bytes_max: 800, segments_max: 200, ..Wish::default() };
    let mut host = Host::new(wish);
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    let receiver = host.receiver(at, "q", 1);
    let mut done = 0;
    for _ in 0..400 {
        // Fills until credit is withheld, takes one message away, and again.
        host.send(at, sender, 10, false);
        if host.stats(0).memory_pressure {
            let (_, delivery, _) = host.deliveries(at)[done];
            done += 1;
            host.clients[at].amqp.settle(receiver, delivery, Outcome::Accepted);
            host.clients[at].amqp.grant_credit(receiver, 1);
            host.pass(Duration::from_millis(6));
        }
    }
    assert!(done > 100, "{done}");
    assert!(host.pressure_letters < 40, "{} letters", host.pressure_letters);
}

#[test]
fn what_expires_has_a_priority_or_came_back_counts_until_it_is_gone() {
    let ttl = Header { ttl: Some(3_600_000), ..Header::default() };
    let priority = Header { priority: Some(9), ..Header::default() };
    let both = Header { ttl: Some(3_600_000), ..priority };
    for (header, expiry, place) in [
        (Header::default(), 0, 0),
        (ttl, EXPIRY_BYTES, 0),
        (priority, 0, PLACE_BYTES),
        (both, EXPIRY_BYTES, PLACE_BYTES),
    ] {
        let count = 100;
        let mut host = Host::new(Wish::default());
        let at = host.connect(0);
        let sender = host.sender(at, "q");
        let mut bytes = Vec::new();
        write_header(&header, &mut bytes);
        bytes.extend(message(10));
        for _ in 0..count {
            host.clients[at].amqp.send(sender, &[&bytes], false).expect("there is credit");
            host.settle();
        }
        host.lose(at);
        // As if no bytes were on the disk only: a start with a checkpoint leaves them there.
        let memory = |host: &Host| {
            let (state, slot) = (host.shards[0].state(), SLOT_BYTES - INDEX_BYTES);
            let outside = state.paged_out();
            state.memory_bytes() + outside.bytes + outside.messages * slot
        };
        let slot = Queue::memory_bytes(bytes.len());
        assert_eq!(memory(&host), count * (slot + expiry + place), "{header:?}");
        host.crash();
        assert_eq!(memory(&host), count * (slot + expiry + place), "after a restart: {header:?}");
        let at = host.connect(0);
        host.receiver(at, "q", 1000);
        assert_eq!(host.deliveries(at).len() as u64, count);
        assert_eq!(memory(&host), count * (slot + expiry), "in its consumer's hands, {header:?}");
        host.lose(at);
        let came_back = PLACE_BYTES + TOUCHED_BYTES;
        assert_eq!(memory(&host), count * (slot + expiry + came_back), "{header:?}");
        let at = host.connect(0);
        host.receiver(at, "q", 1000);
        host.settle_all(at, Duration::from_millis(20));
        host.lose(at);
        host.assert_clean();
    }
}

#[test]
fn what_a_deleted_queue_kept_for_its_order_is_given_back() {
    let mut host = Host::new(Wish::default());
    let at = host.connect(0);
    let link = make(&mut host, at, Role::Sender, None);
    let mut bytes = Vec::new();
    let priority = Some(9);
    write_header(&Header { ttl: Some(3_600_000), priority, ..Header::default() }, &mut bytes);
    bytes.extend(message(10));
    for _ in 0..100 {
        host.clients[at].amqp.send(link, &[&bytes], false).expect("there is credit");
    }
    host.settle();
    assert!(host.shards[0].state().memory_bytes() > 100 * (EXPIRY_BYTES + PLACE_BYTES));
    host.lose(at);
    host.pass(Duration::from_millis(100));
    host.assert_clean();
}
