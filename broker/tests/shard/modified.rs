//! Annotations of `modified` outcomes: merged, durable, copied forward, carried to the dead.

use std::sync::Arc;

use amqp::codec::{Symbol, Value, Writer};
use amqp::delivery::Outcome;
use amqp::error::{Condition, Error};
use amqp::link::LinkId;
use amqp::message::Sections;
use broker::limits::ADDED_BYTES_MAX;
use broker::settings::{Said, Settings};
use journal::{QueueId, Sequence};

use crate::compaction::{Stream, small_log};
use crate::host::{Host, Wish, Writes, message};

/// An encoded map of symbols to strings.
pub(crate) fn map(entries: &[(&str, &str)]) -> Arc<[u8]> {
    let mut out = Vec::new();
    Writer::new(&mut out).map_with(|map| {
        for (key, value) in entries {
            map.element().symbol(Symbol::new(key));
            map.element().string(value);
        }
    });
    out.into()
}

fn modified(delivery_failed: bool, entries: &[(&str, &str)]) -> Outcome {
    Outcome::Modified {
        delivery_failed,
        undeliverable_here: false,
        message_annotations: Some(map(entries)),
    }
}

/// A host with a message in `q`, whose home is shard 0, at a consumer on the last shard.
fn delivered(wish: Wish) -> (Host, usize, LinkId) {
    let last = usize::from(wish.shards) - 1;
    let mut host = Host::new(wish);
    let owner = host.connect(0);
    let sender = host.sender(owner, "q");
    assert!(host.send(owner, sender, 10, false));
    let at = host.connect(last);
    let receiver = host.receiver(at, "q", 10);
    (host, at, receiver)
}

/// The last delivery of a client: failed deliveries, and what its annotations say under the keys.
fn last(host: &Host, at: usize, keys: &[&str]) -> (u32, Vec<Option<String>>) {
    let (_, _, got) = host.deliveries(at).pop().expect("something was delivered");
    assert!(got.ends_with(&message(10)), "the bare message is as it was");
    let sections = Sections::scan(&got).expect("a message");
    let map = sections.message_annotations(&got).expect("sound");
    let text = |key: &&str| match map.and_then(|map| map.get(key)) {
        Some(Value::String(text)) => Some(text.to_owned()),
        Some(_) | None => None,
    };
    let count = sections.header_fields.delivery_count.unwrap_or(0);
    (count, keys.iter().map(text).collect())
}

fn judge(host: &mut Host, at: usize, outcome: Outcome) {
    let (link, delivery, _) = host.deliveries(at).pop().expect("something was delivered");
    host.clients[at].amqp.settle(link, delivery, outcome);
    host.settle();
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[test]
fn item_34_annotations_of_modified_are_merged_and_stay() {
    for shards in [1, 2] {
        let (mut host, at, _) = delivered(Wish { shards, ..Wish::default() });
        let memory = host.shards[0].state().memory_bytes();
        judge(&mut host, at, modified(true, &[("x-opt-why", "slow"), ("x-opt-who", "a")]));
        let keys = ["x-opt-why", "x-opt-who"];
        assert_eq!(last(&host, at, &keys), (1, vec![some("slow"), some("a")]));
        // A later value takes the place of an earlier one, and nothing is counted.
        judge(&mut host, at, modified(false, &[("x-opt-why", "late")]));
        assert_eq!(last(&host, at, &keys), (1, vec![some("late"), some("a")]));
        assert!(host.shards[0].state().memory_bytes() > memory, "it is counted");
        // What says nothing of them leaves them.
        let failed = Outcome::Modified {
            delivery_failed: true,
            undeliverable_here: false,
            message_annotations: None,
        };
        judge(&mut host, at, failed);
        judge(&mut host, at, Outcome::Released);
        assert_eq!(last(&host, at, &keys), (2, vec![some("late"), some("a")]));
        host.crash();
        let at = host.connect(0);
        host.receiver(at, "q", 10);
        assert_eq!(last(&host, at, &keys), (2, vec![some("late"), some("a")]));
        judge(&mut host, at, Outcome::Accepted);
        host.pass(std::time::Duration::from_millis(100));
        assert_eq!((host.messages(), host.shards[0].state().memory_bytes()), (0, 0));
    }
}

#[test]
fn item_34_annotations_that_do_not_fit_leave_the_rest_of_the_outcome() {
    let (mut host, at, _) = delivered(Wish::default());
    let long = "x".repeat(ADDED_BYTES_MAX);
    judge(&mut host, at, modified(true, &[("x-opt-long", &long)]));
    assert_eq!(last(&host, at, &["x-opt-long"]), (1, vec![None]));
    // Half of the bound fits once, and again under its key; two of them do not.
    let half = "y".repeat(ADDED_BYTES_MAX / 2);
    for (key, count) in [("x-opt-a", 2), ("x-opt-a", 3), ("x-opt-b", 4)] {
        judge(&mut host, at, modified(true, &[(key, &half)]));
        assert_eq!(last(&host, at, &["x-opt-a", "x-opt-b"]), (count, vec![some(&half), None]));
    }
    assert_eq!(host.stats(0).annotations_refused_total, 2);
}

/// `{0: 0, 1: 1, ..}`, each number in nine bytes where two would do.
fn wide(count: u8) -> Arc<[u8]> {
    let entry = |n: u8| [[0x80, 0, 0, 0, 0, 0, 0, 0, n]; 2].concat();
    let entries: Vec<u8> = (0..count).flat_map(entry).collect();
    let size = 4 + entries.len() as u32;
    let head = [&[0xd1], &size.to_be_bytes()[..], &(2 * u32::from(count)).to_be_bytes()[..]];
    [head.concat(), entries].concat().into()
}

#[test]
fn item_34_annotations_are_measured_as_they_came_and_not_looked_into_beyond_the_bound() {
    for shards in [1, 2] {
        let (mut host, at, _) = delivered(Wish { shards, ..Wish::default() });
        for (count, refused) in [(200, 0), (250, 1)] {
            let annotations = wide(count);
            assert_eq!(annotations.len() > ADDED_BYTES_MAX, refused > 0);
            judge(
                &mut host,
                at,
                Outcome::Modified {
                    delivery_failed: true,
                    undeliverable_here: false,
                    message_annotations: Some(annotations),
                },
            );
            // The connection's shard counts, where nothing is read.
            let last_shard = usize::from(shards) - 1;
            assert_eq!(host.stats(last_shard).annotations_refused_total, refused);
            let (_, _, got) = host.deliveries(at).pop().expect("it is delivered again");
            let sections = Sections::scan(&got).expect("a message");
            let map = sections.message_annotations(&got).expect("sound").expect("some were added");
            let failed = Some(1 + refused as u32);
            assert_eq!((map.len(), sections.header_fields.delivery_count), (200, failed));
        }
    }
}

#[test]
fn item_34_dead_letters_carry_what_consumers_added() {
    let (mut host, at, _) = delivered(Wish { shards: 2, ..Wish::default() });
    judge(&mut host, at, modified(true, &[("x-opt-why", "slow"), ("x-opt-ORIG-QUEUE", "lie")]));
    judge(&mut host, at, Outcome::Rejected(None));
    host.pass(std::time::Duration::from_millis(10));
    let dead = host.connect(0);
    host.receiver(dead, "DLQ", 10);
    let keys = ["x-opt-why", "x-opt-ORIG-QUEUE"];
    assert_eq!(last(&host, dead, &keys), (0, vec![some("slow"), some("q")]));
}

#[test]
fn item_34_added_annotations_are_copied_forward() {
    let mut host = Host::new(small_log());
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    assert!(host.send(at, sender, 10, false));
    let consumer = host.connect(0);
    host.receiver(consumer, "q", 10);
    judge(&mut host, consumer, modified(false, &[("x-opt-why", "slow")]));
    host.clients[consumer].amqp.close(None);
    host.settle();
    let setback = host.shards[0].state().setback(QueueId(1), Sequence(0)).expect("it is logged");
    assert_eq!((setback.count, setback.added.is_some()), (0, true));
    for _ in 0..2 {
        let mut stream = Stream::new(&mut host);
        stream.flow_round(&mut host);
        host.crash();
        let now = host.shards[0].state().setback(QueueId(1), Sequence(0));
        assert_eq!(now.as_ref(), Some(&setback));
    }
    let consumer = host.connect(0);
    host.receiver(consumer, "q", 10);
    assert_eq!(last(&host, consumer, &["x-opt-why"]), (0, vec![some("slow")]));
}

#[test]
fn item_34_a_rejections_error_is_kept_with_the_dead_letter() {
    for (shards, crashes) in [(1, false), (2, false), (1, true)] {
        let (mut host, at, _) = delivered(Wish { shards, ..Wish::default() });
        judge(
            &mut host,
            at,
            modified(true, &[("x-opt-why", "slow"), ("x-opt-DEATH-DESCRIPTION", "lie")]),
        );
        // It is not a consumer's to say.
        assert_eq!(
            last(&host, at, &["x-opt-why", "x-opt-DEATH-DESCRIPTION"]).1,
            [some("slow"), None]
        );
        let error = Error::new(Condition::DecodeError, "no such größe");
        if crashes {
            host.writes = Writes::Held;
        }
        judge(&mut host, at, Outcome::Rejected(Some(Arc::new(error))));
        if crashes {
            // The rejection is in the log, and nothing of the move.
            host.let_go_first();
            host.crash();
        }
        host.pass(std::time::Duration::from_millis(10));
        let dead = host.connect(0);
        host.receiver(dead, "DLQ", 10);
        let keys = ["x-opt-why", "x-opt-DEATH-DESCRIPTION"];
        assert_eq!(last(&host, dead, &keys), (0, vec![some("slow"), some("no such größe")]));
        let (_, _, got) = host.deliveries(dead).pop().expect("it is there");
        let sections = Sections::scan(&got).expect("a message");
        let map = sections.message_annotations(&got).expect("sound").expect("there");
        assert_eq!(
            map.get("x-opt-DEATH-ERROR"),
            Some(Value::Symbol(Symbol::new("amqp:decode-error")))
        );
        assert_eq!(map.get("x-opt-DEATH-REASON"), Some(Value::Symbol(Symbol::new("rejected"))));
    }
}

#[test]
fn item_34_an_error_is_told_of_the_dead_alone() {
    let mut settings = Settings::default();
    let full = Said { messages_max: Some(1), ..Said::default() };
    settings.add("DLQ", full).expect("a pattern");
    let (mut host, at, _) = delivered(Wish { settings, ..Wish::default() });
    let dead = host.connect(0);
    let sender = host.sender(dead, "DLQ");
    assert!(host.send(dead, sender, 10, false));
    judge(&mut host, at, modified(false, &[("x-opt-why", "slow")]));
    let error = Error::new(Condition::DecodeError, "what");
    judge(&mut host, at, Outcome::Rejected(Some(Arc::new(error))));
    host.pass(std::time::Duration::from_secs(1));
    assert_eq!(host.deliveries(at).len(), 3, "it finds no room and is offered again");
    let keys = ["x-opt-why", "x-opt-DEATH-DESCRIPTION"];
    assert_eq!(last(&host, at, &keys).1, [some("slow"), None]);
    host.receiver(dead, "DLQ", 10);
    judge(&mut host, dead, Outcome::Accepted);
    judge(&mut host, at, Outcome::Rejected(None));
    host.pass(std::time::Duration::from_secs(10));
    assert_eq!(last(&host, dead, &keys).1, [some("slow"), some("what")]);
}
