//! A message that was here before is accepted and not stored again, through crashes and recycling.

use std::time::Duration;

use amqp::codec::{Composite, Writer};
use amqp::definitions::Condition;
use amqp::delivery::Outcome;
use amqp::link::{LinkId, LinkSource, LinkTarget, NewLink};
use amqp::message::Properties;
use broker::settings::{Said, Settings};
use journal::Level;

use crate::host::{Host, SEGMENT_BYTES, Wish, Writes};

/// A message with the duplicate id that `id` writes, and a body of so many bytes.
fn with(id: impl FnOnce(&mut Writer<'_>), bytes: usize) -> Vec<u8> {
    let mut message = Vec::new();
    let mut writer = Writer::new(&mut message);
    writer.descriptor(0x74);
    writer.map_with(|map| {
        map.element().string("before");
        map.element().uint(7);
        map.element().string("_AMQ_DUPL_ID");
        id(&mut map.element());
    });
    message.extend(crate::host::message(bytes));
    message
}

fn numbered(n: u64) -> Vec<u8> {
    with(|id| id.string(&format!("order-{n}")), 10)
}

fn send(host: &mut Host, at: usize, link: LinkId, message: &[u8]) {
    host.clients[at].amqp.send(link, &[message], false).expect("there is credit");
    host.settle();
}

/// Sends all of these from a new client to `q`, each of which is accepted.
fn send_all(host: &mut Host, numbers: impl Iterator<Item = u64>) {
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    for n in numbers {
        send(host, at, sender, &numbered(n));
        assert_eq!(host.outcomes(at).pop(), Some(Outcome::Accepted), "{n}");
    }
    host.lose(at);
}

/// Takes everything out of `q`.
fn drain(host: &mut Host) -> usize {
    let at = host.connect(0);
    host.receiver(at, "q", 100_000);
    let mut judged = 0;
    while host.messages() > 0 {
        let due = host.deliveries(at).split_off(judged);
        assert!(!due.is_empty(), "what is there is delivered");
        judged += due.len();
        for (link, delivery, _) in due {
            host.clients[at].amqp.settle(link, delivery, Outcome::Accepted);
        }
        host.pass(Duration::from_millis(10));
    }
    host.lose(at);
    judged
}

fn remembering(count: u32) -> Settings {
    let mut settings = Settings::default();
    let said = Said { duplicate_ids: Some(count), ..Said::default() };
    settings.add("q", said).expect("a pattern");
    settings
}

fn rejected_with(host: &Host, at: usize) -> Option<Condition> {
    match host.outcomes(at).pop() {
        Some(Outcome::Rejected(Some(error))) => Condition::from_symbol(error.condition.as_str()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_sent_again_after_a_crash_is_accepted_and_stored_once() {
    for (shards, level) in [(1, Level::Sync), (3, Level::Sync), (1, Level::ReplicatedSync)] {
        let mut host = Host::new(Wish { shards, level, ..Wish::default() });
        send_all(&mut host, 0..20);
        assert_eq!(drain(&mut host), 20, "what was consumed is remembered too");
        send_all(&mut host, 10..30);
        assert_eq!(host.messages(), 10);
        host.crash();
        send_all(&mut host, 0..40);
        assert_eq!(host.messages(), 20);
        let duplicates: u64 =
            (0..usize::from(shards)).map(|shard| host.stats(shard).duplicates_total).sum();
        assert_eq!(duplicates, 30);
    }
}

#[test]
fn ids_of_any_kind_count_by_queue_and_a_large_message_has_one_too() {
    let mut host = Host::new(Wish { shards: 2, ..Wish::default() });
    let messages = [
        with(|id| id.string("7"), 10),
        with(|id| id.binary(b"7"), 10),
        with(|id| id.ulong(7), 10),
        with(|id| id.value(&amqp::codec::Value::Uuid([7; 16])), 10),
        with(|id| id.string("large"), 200_000),
    ];
    for _ in 0..2 {
        for shard in 0..2 {
            let at = host.connect(shard);
            for queue in ["q", "other"] {
                let sender = host.sender(at, queue);
                // A log this small is short of room for a moment while it is compacted.
                host.pass(Duration::from_millis(100));
                messages.iter().for_each(|message| send(&mut host, at, sender, message));
                // Without an id each is itself.
                send(&mut host, at, sender, &with(|id| id.null(), 10));
                send(&mut host, at, sender, &crate::host::message(10));
            }
            assert_eq!(host.outcomes(at), vec![Outcome::Accepted; 14]);
        }
        host.crash();
    }
    // In each of two queues: five with ids, and two without from each of four clients.
    assert_eq!(host.messages(), 2 * (5 + 4 * 2));
}

/// Or a backup holds for needed what its live has carried forward.
#[test]
fn who_reads_the_log_knows_an_id_by_the_place_that_its_writer_gave_it() {
    for bytes in [10, 200_000] {
        let mut host = Host::new(Wish::default());
        let at = host.connect(0);
        let sender = host.sender(at, "q");
        send(&mut host, at, sender, &with(|id| id.string("7"), bytes));
        let oldest = |host: &Host| {
            let state = host.shards[0].state();
            state.duplicates.oldest(state.catalogue.named("q").expect("it was made").id)
        };
        let written = oldest(&host);
        assert!(written.is_some());
        host.crash();
        assert_eq!(oldest(&host), written, "{bytes} bytes");
    }
}

#[test]
fn a_duplicate_is_answered_when_the_first_is_durable_and_not_before() {
    for level in [Level::Sync, Level::Async] {
        let mut host = Host::new(Wish { level, ..Wish::default() });
        let at = host.connect(0);
        let sender = host.sender(at, "q");
        host.writes = Writes::Held;
        send(&mut host, at, sender, &numbered(1));
        send(&mut host, at, sender, &numbered(1));
        let early = usize::from(level == Level::Async);
        assert_eq!(host.outcomes(at).len(), early, "only the first at async, at its own risk");
        host.pass(Duration::from_millis(10));
        host.let_go();
        assert_eq!(host.outcomes(at), [Outcome::Accepted, Outcome::Accepted]);
        assert_eq!(host.messages(), 1);
        // Now it is durable, and what is not need not be waited for.
        host.writes = Writes::Held;
        send(&mut host, at, sender, &numbered(2));
        let before = host.outcomes(at).len();
        send(&mut host, at, sender, &numbered(1));
        assert_eq!(host.outcomes(at).len(), before + 1);
    }
}

#[test]
fn what_a_crash_has_taken_is_not_remembered() {
    let mut host = Host::new(Wish::default());
    send_all(&mut host, 0..1);
    host.writes = Writes::Held;
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    send(&mut host, at, sender, &numbered(1));
    host.crash();
    assert_eq!(host.messages(), 1);
    send_all(&mut host, 0..2);
    assert_eq!(host.messages(), 2);
}

#[test]
fn what_was_refused_is_not_remembered() {
    let mut host = Host::new(Wish { segments_max: 4, ..Wish::default() });
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    let message = |n: u64| with(|id| id.ulong(n), 3000);
    let refused = (0..100).find(|n| {
        send(&mut host, at, sender, &message(*n));
        host.outcomes(at).pop() != Some(Outcome::Accepted)
    });
    let refused = refused.expect("the log gets full");
    assert_eq!(rejected_with(&host, at), Some(Condition::ResourceLimitExceeded));
    // What is there already needs no room.
    send(&mut host, at, sender, &message(0));
    assert_eq!(host.outcomes(at).pop(), Some(Outcome::Accepted));
    drain(&mut host);
    host.pass(Duration::from_secs(2));
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    for n in [refused - 1, refused] {
        send(&mut host, at, sender, &message(n));
    }
    assert_eq!(host.outcomes(at), [Outcome::Accepted, Outcome::Accepted]);
    assert_eq!(host.messages(), 1);
}

#[test]
fn an_address_remembers_as_many_as_are_set_for_it() {
    for (count, stored) in [(0, 10), (4, 6), (10, 0)] {
        let settings = remembering(count);
        let mut host = Host::new(Wish { settings, ..Wish::default() });
        send_all(&mut host, 0..10);
        drain(&mut host);
        host.crash();
        // The newest first, so that none is pushed out by an older one.
        send_all(&mut host, (0..10).rev());
        assert_eq!(host.messages(), stored, "{count}");
        if count == 4 {
            host.wish.settings = remembering(2);
            host.crash();
            assert_eq!(host.stats(0).duplicate_ids_forgotten_total, 0);
            let queue = host.shards[0].state().catalogue.named("q").expect("it is there").id;
            assert_eq!(host.shards[0].state().duplicates.count(queue), 2);
        }
    }
}

#[test]
fn ids_outlive_the_segments_of_their_messages() {
    let mut host = Host::new(Wish { segments_max: 40, ..Wish::default() });
    send_all(&mut host, 0..300);
    drain(&mut host);
    let head = |host: &mut Host| host.stats(0).journal_head_lsn / SEGMENT_BYTES;
    // Messages without ids push the log round.
    let mut rounds = 0;
    while head(&mut host) < 40 {
        let at = host.connect(0);
        let sender = host.sender(at, "q");
        for _ in 0..40 {
            assert!(host.send(at, sender, 1000, false));
        }
        host.lose(at);
        drain(&mut host);
        rounds += 1;
        assert!(rounds < 200, "the head stands at {}", head(&mut host));
    }
    assert!(host.stats(0).journal_segments < 10);
    for _ in 0..2 {
        host.crash();
        send_all(&mut host, 0..310);
        assert_eq!(drain(&mut host), if rounds > 0 { 10 } else { 0 });
        rounds = 0;
    }
}

#[test]
fn in_a_short_log_ids_give_way_to_messages_and_are_not_carried_for_ever() {
    for segments_max in [4, 6] {
        let mut host = Host::new(Wish { segments_max, ..Wish::default() });
        let long = "x".repeat(900);
        for n in 0..2000 {
            let at = host.connect(0);
            let sender = host.sender(at, "q");
            let message = with(|id| id.string(&format!("{n}-{long}")), 10);
            send(&mut host, at, sender, &message);
            assert_eq!(host.outcomes(at), [Outcome::Accepted], "{n}");
            assert_eq!(drain(&mut host), 1);
            host.lose(at);
        }
        let stats = host.stats(0);
        assert!(stats.duplicate_ids_forgotten_total > 1000);
        let before = stats.journal_appended_lsn;
        host.pass(Duration::from_secs(10));
        assert!(host.stats(0).journal_appended_lsn < before + SEGMENT_BYTES, "it comes to rest");
        let at = host.connect(0);
        let sender = host.sender(at, "q");
        send(&mut host, at, sender, &with(|id| id.string(&format!("1999-{long}")), 10));
        assert_eq!((host.outcomes(at).len(), host.messages()), (1, 0), "the newest is known");
    }
}

#[test]
fn what_cannot_be_an_id_is_refused_and_says_why() {
    let mut host = Host::new(Wish::default());
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    let wrong = [
        with(|id| id.uint(7), 10),
        with(|id| id.string(""), 10),
        with(|id| id.binary(&[7; 1025]), 10),
    ];
    for message in &wrong {
        send(&mut host, at, sender, message);
        assert_eq!(rejected_with(&host, at), Some(Condition::InvalidField));
    }
    assert_eq!(host.messages(), 0);
    // Where nobody looks at ids they may be anything.
    let mut host = Host::new(Wish { settings: remembering(0), ..Wish::default() });
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    wrong.iter().for_each(|message| send(&mut host, at, sender, message));
    assert_eq!(host.outcomes(at), vec![Outcome::Accepted; 3]);
}

#[test]
fn a_relayed_message_has_an_id_and_a_dead_letter_is_never_a_duplicate() {
    let mut host = Host::new(Wish { shards: 2, ..Wish::default() });
    let at = host.connect(1);
    let session = host.session(at);
    let link = NewLink {
        name: "relay".to_owned(),
        source: LinkSource::at("client"),
        target: LinkTarget::default(),
        ..NewLink::default()
    };
    let relay = host.clients[at].amqp.attach_sender(session, link).expect("attached");
    host.settle();
    let mut letter = Vec::new();
    let to = Properties { to: Some("q"), ..Properties::default() };
    to.write_described(&mut Writer::new(&mut letter));
    letter.extend(numbered(1));
    for _ in 0..3 {
        send(&mut host, at, relay, &letter);
    }
    assert_eq!((host.outcomes(at).len(), host.messages()), (3, 1));
    // It dies, is not stored again in its queue, and is itself wherever it goes.
    host.sender(at, "DLQ");
    host.receiver(at, "q", 10);
    let (link, delivery, _) = host.deliveries(at).pop().expect("delivered");
    host.clients[at].amqp.settle(link, delivery, Outcome::Rejected(None));
    host.pass(Duration::from_millis(10));
    assert_eq!(host.messages(), 1);
    let dead = host.sender(at, "DLQ");
    send(&mut host, at, dead, &numbered(1));
    send(&mut host, at, relay, &letter);
    assert_eq!(host.messages(), 2, "the dead one, and one that was sent to that queue");
    host.crash();
    let at = host.connect(0);
    let dead = host.sender(at, "DLQ");
    send(&mut host, at, dead, &numbered(1));
    assert_eq!(host.messages(), 2);
}

#[test]
fn ids_count_as_memory_and_leave_room_for_messages() {
    let memory_bytes_max = 64 << 10;
    let mut host = Host::new(Wish { memory_bytes_max, ..Wish::default() });
    send_all(&mut host, 0..200);
    drain(&mut host);
    let held = host.stats(0).memory_bytes;
    assert!((4 << 10..=8 << 10).contains(&held), "{held} bytes of ids");
    assert!(host.stats(0).duplicate_ids_forgotten_total > 0);
    assert!(!host.stats(0).memory_pressure);
}
