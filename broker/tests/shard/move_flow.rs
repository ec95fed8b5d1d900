//! Long messages that move to another queue: part by part, never whole in memory, and in one place
//! whatever happens.

use std::time::Duration;

use amqp::codec::Value;
use amqp::definitions::Role;
use amqp::delivery::Outcome;
use amqp::link::LinkId;
use amqp::message::Sections;
use broker::admin::{AdminReply, AdminRequest};
use broker::limits::FLOWS_MAX;
use broker::queue::SlotState;
use broker::settings::{FullPolicy, Said, Settings};
use bytes::Bytes;
use journal::ShardId;

use crate::dead_letters::count;
use crate::host::{Host, Wish, Writes};
use crate::inflow::{begin, go_on, message, parts, take};
use crate::temporary::{make, node};

/// Less than the messages below.
const MEMORY: u64 = 256 << 10;

fn narrow(shards: u16) -> Wish {
    Wish { shards, memory_bytes_max: MEMORY, segments_max: 200, ..parts() }
}

/// Sends all of a message, as fast as the log takes it.
fn send(host: &mut Host, at: usize, link: LinkId, message: &[u8]) {
    let mut rest = begin(host, at, link, message, 10_000);
    while !rest.is_empty() {
        let part = rest.slice(..rest.len().min(20_000));
        if go_on(host, at, link, &part, part.len() == rest.len()) {
            rest = rest.slice(part.len()..);
        }
        host.pass(Duration::from_millis(1));
    }
    host.pass(Duration::from_millis(20));
    assert_eq!(host.outcomes(at).last(), Some(&Outcome::Accepted));
}

/// A message of so many bytes in `q`, whose home is shard 0, at a consumer; who is dead goes to the
/// last shard.
fn delivered(wish: Wish, bytes: usize) -> (Host, usize, Vec<u8>) {
    let last = usize::from(wish.shards) - 1;
    let mut host = Host::new(wish);
    let other = host.connect(last);
    host.sender(other, "DLQ");
    let at = host.connect_with_small_frames(0);
    let link = host.sender(at, "q");
    let long = message(b"", 1, bytes);
    send(&mut host, at, link, &long);
    host.lose(at);
    host.lose(other);
    let consumer = host.connect(0);
    host.receiver(consumer, "q", 10);
    host.pass(Duration::from_millis(100));
    assert_eq!(host.deliveries(consumer).len(), 1);
    (host, consumer, long)
}

fn reject(host: &mut Host, at: usize) {
    let (link, delivery, _) = host.deliveries(at).pop().expect("something was delivered");
    host.clients[at].amqp.settle(link, delivery, Outcome::Rejected(None));
    host.settle();
}

#[test]
fn one_that_dies_goes_in_parts_and_is_what_it_was() {
    for shards in [1, 2] {
        let (mut host, at, long) = delivered(narrow(shards), 1 << 20);
        reject(&mut host, at);
        let mut most = 0;
        for _ in 0..200 {
            host.pass(Duration::from_millis(1));
            for shard in 0..usize::from(shards) {
                most = most.max(host.stats(shard).memory_bytes);
            }
        }
        assert!(most < 64 << 10, "{most} bytes");
        assert_eq!(count(&host, "DLQ", SlotState::Available), 1, "{shards}");
        host.lose(at);
        host.crash();
        let came = take(&mut host, usize::from(shards) - 1, "DLQ");
        assert!(came.len() == 1 && came[0].ends_with(&long));
        let sections = Sections::scan_annotations(&came[0]).expect("a message");
        let map = sections.message_annotations(&came[0]).expect("sound").expect("there");
        assert_eq!(map.get("x-opt-ORIG-QUEUE"), Some(Value::String("q")));
        host.pass(Duration::from_millis(50));
        host.assert_clean();
    }
}

/// However many die at once, a few are half there at a time, and all get there.
#[test]
fn many_that_die_at_once_take_turns() {
    let many = 20;
    let mut host = Host::new(narrow(2));
    let other = host.connect(1);
    host.sender(other, "DLQ");
    let at = host.connect_with_small_frames(0);
    let link = host.sender(at, "q");
    let long: Vec<Vec<u8>> = (0..many).map(|number| message(b"", number, 100_000)).collect();
    for message in &long {
        send(&mut host, at, link, message);
    }
    host.lose(at);
    host.lose(other);
    let consumer = host.connect(0);
    host.receiver(consumer, "q", many as u32);
    host.pass(Duration::from_millis(200));
    let came = host.deliveries(consumer);
    assert_eq!(came.len(), many);
    for (link, delivery, _) in came {
        host.clients[consumer].amqp.settle(link, delivery, Outcome::Rejected(None));
    }
    let id = host.shards[1].state().catalogue.named("DLQ").expect("it is there").id;
    // The first parts are there, and nobody hears of it.
    host.mail_held = Some((ShardId(1), ShardId(0)));
    host.pass(Duration::from_millis(100));
    let begun = host.shards[1].state().halves_of(id).count();
    host.mail_held = None;
    host.pass(Duration::from_millis(500));
    assert_eq!(begun, FLOWS_MAX, "at once");
    assert_eq!(count(&host, "DLQ", SlotState::Available), many as u64);
    host.lose(consumer);
    let came = take(&mut host, 1, "DLQ");
    for message in &long {
        assert!(came.iter().any(|one| one.ends_with(message)));
    }
    host.assert_clean();
}

/// With each of the writes kept back, and at each letter between the shards, the power goes.
#[test]
fn whenever_the_power_goes_it_is_in_one_place() {
    let mut ends = Vec::new();
    for kept in 0..16 {
        for held in [None, Some((ShardId(0), ShardId(1))), Some((ShardId(1), ShardId(0)))] {
            let (mut host, at, long) = delivered(narrow(2), 30_000);
            host.writes = Writes::Held;
            reject(&mut host, at);
            for step in 0..kept {
                if step == 4 {
                    host.mail_held = held;
                }
                host.pass(Duration::from_millis(10));
                if host.is_holding() {
                    host.let_go_first();
                }
            }
            host.mail_held = None;
            host.crash();
            host.pass(Duration::from_millis(100));
            let places = ["q", "DLQ"].map(|name| count(&host, name, SlotState::Available));
            assert_eq!((host.messages(), places[0] + places[1]), (1, 1), "{kept} {held:?}");
            ends.push(places[1]);
            // What came of it ends where it belongs.
            if places[0] == 1 {
                let at = host.connect(0);
                host.receiver(at, "q", 10);
                host.pass(Duration::from_millis(20));
                reject(&mut host, at);
                host.pass(Duration::from_millis(100));
                host.lose(at);
            }
            let came = take(&mut host, 1, "DLQ");
            assert!(came.len() == 1 && came[0].ends_with(&long), "{kept} {held:?}");
        }
    }
    assert!(ends.contains(&0) && ends.contains(&1), "both ends were seen");
}

#[test]
fn one_that_finds_no_room_is_offered_again_and_nothing_of_it_is_written_in_vain() {
    let mut settings = Settings::default();
    let refuse = Some(FullPolicy::Refuse);
    let said = Said { bytes_max: Some(50_000), full_policy: refuse, ..Said::default() };
    settings.add("DLQ", said).expect("a pattern");
    let (mut host, at, _) = delivered(Wish { settings, ..narrow(2) }, 100_000);
    reject(&mut host, at);
    host.pass(Duration::from_secs(1));
    assert_eq!(host.deliveries(at).len(), 2, "it is offered again");
    let failures = host.stats(0).move_failures_total;
    let appended = host.stats(1).journal_appended_lsn;
    host.lose(at);
    host.pass(Duration::from_secs(30));
    assert!(host.stats(0).move_failures_total > failures);
    assert!(host.stats(1).journal_appended_lsn < appended + 50_000);
    assert_eq!(host.shards[1].state().oldest_half(), None);
}

#[test]
fn one_that_the_log_has_no_room_for_is_not_begun() {
    let mut host = Host::new(Wish { segments_max: 10, ..Wish::default() });
    let at = host.connect(0);
    let link = host.sender(at, "q");
    host.sender(at, "DLQ");
    assert!(host.send(at, link, 200_000, false));
    host.pass(Duration::from_millis(20));
    // What a start finds of it is on the disk only.
    host.crash();
    let at = host.connect(0);
    host.receiver(at, "q", 10);
    host.pass(Duration::from_millis(50));
    let appended = host.stats(0).journal_appended_lsn;
    reject(&mut host, at);
    host.pass(Duration::from_secs(5));
    assert!(host.stats(0).move_failures_total > 0);
    assert!(host.stats(0).journal_appended_lsn < appended + 50_000);
    assert!(host.deliveries(at).len() > 1, "it is offered again");
}

#[test]
fn a_copy_that_is_half_there_goes_with_the_queue_it_came_from() {
    let mut host = Host::new(narrow(2));
    let other = host.connect(1);
    host.sender(other, "DLQ");
    let owner = host.connect(0);
    let own = make(&mut host, owner, Role::Receiver, None);
    let (name, _) = node(&host, owner, own);
    let at = host.connect_with_small_frames(0);
    let link = host.sender(at, &name);
    send(&mut host, at, link, &message(b"", 1, 200_000));
    host.clients[owner].amqp.grant_credit(own, 5);
    host.pass(Duration::from_millis(50));
    host.mail_held = Some((ShardId(1), ShardId(0)));
    reject(&mut host, owner);
    host.pass(Duration::from_millis(50));
    let half = host.shards[1].state().oldest_half();
    host.mail_held = None;
    assert!(half.is_some(), "it has begun");
    for at in [owner, at, other] {
        host.lose(at);
    }
    host.pass(Duration::from_millis(200));
    assert_eq!(host.shards[1].state().oldest_half(), None);
    host.assert_clean();
}

#[test]
fn a_peek_shows_how_long_it_is_and_takes_no_memory_for_it() {
    let wish = Wish { message_bytes_max: 16 << 20, segments_max: 400, ..narrow(1) };
    let mut host = Host::new(wish);
    let at = host.connect_with_small_frames(0);
    let link = host.sender(at, "q");
    let long = message(b"", 1, 9 << 20);
    send(&mut host, at, link, &long);
    let short = message(b"", 2, 100);
    assert!(host.clients[at].amqp.send(link, &[&short], false).is_ok());
    host.pass(Duration::from_millis(20));
    host.ask(0, AdminRequest::Peek { queue: "q".to_owned(), count_max: 9 });
    host.pass(Duration::from_millis(50));
    let Some((_, AdminReply::Peeked(Some(shown)))) = host.replies.pop() else {
        panic!("it is answered");
    };
    let shown: Vec<_> = shown.into_iter().map(|one| (one.message_bytes, one.message)).collect();
    let whole = (short.len(), Bytes::from(short));
    assert_eq!(shown, [(long.len(), Bytes::new()), whole]);
}
