//! Dead letters: from where they died to where they are kept, through every crash.

use std::time::Duration;

use amqp::codec::Value;
use amqp::delivery::Outcome;
use amqp::message::{Header, Sections, write_header};
use broker::queue::SlotState;
use broker::settings::{FullPolicy, Said, Settings};
use journal::{Level, ShardId};

use crate::host::{Host, UNIX_MS, Wish, Writes, message};

const FAILED: Outcome = Outcome::Modified {
    delivery_failed: true,
    undeliverable_here: false,
    message_annotations: None,
};

fn settings(said: Said) -> Settings {
    let mut settings = Settings::default();
    settings.add("#", said).expect("a pattern");
    settings
}

fn rejected() -> Outcome {
    Outcome::Rejected(None)
}

/// Messages in a queue, by state, wherever it lives.
pub(crate) fn count(host: &Host, name: &str, state: SlotState) -> u64 {
    let of = |shard: &broker::Shard| {
        let record = shard.state().catalogue.named(name)?;
        Some(shard.state().queue(record.id)?.count(state))
    };
    host.shards.iter().filter_map(of).sum()
}

/// A host with a message of so many bytes in `q`, whose home is shard 0, at a consumer.
fn delivered(wish: Wish, bytes: usize) -> (Host, usize, amqp::link::LinkId) {
    let mut host = Host::new(wish);
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    assert!(host.send(at, sender, bytes, false));
    let receiver = host.receiver(at, "q", 10);
    (host, at, receiver)
}

/// The same with a message of this priority.
fn delivered_at(wish: Wish, priority: Option<u8>) -> (Host, usize) {
    let mut host = Host::new(wish);
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    let bytes = mortal(1_000_000, priority);
    host.clients[at].amqp.send(sender, &[&bytes], false).expect("there is credit");
    host.settle();
    host.receiver(at, "q", 10);
    (host, at)
}

fn judge(host: &mut Host, at: usize, outcome: Outcome) {
    let (link, delivery, _) = host.deliveries(at).pop().expect("something was delivered");
    host.clients[at].amqp.settle(link, delivery, outcome);
    host.settle();
}

/// With these in it the queue for the dead takes no more.
const DEAD_MAX: usize = 3;

/// Two shards; the queue for the dead is bounded.
fn bounded(mut settings: Settings) -> Wish {
    let (messages_max, full_policy) = (Some(DEAD_MAX as u64), Some(FullPolicy::Refuse));
    let said = Said { messages_max, full_policy, ..Said::default() };
    settings.add("DLQ", said).expect("a pattern");
    Wish { shards: 2, settings, ..Wish::default() }
}

#[test]
fn a_rejected_message_is_found_among_the_dead_with_its_origin() {
    for shards in [1, 2] {
        let (mut host, at, _) = delivered(Wish { shards, ..Wish::default() }, 10);
        // The queue for the dead lives on the last shard.
        let other = host.connect(usize::from(shards) - 1);
        host.sender(other, "DLQ");
        judge(&mut host, at, rejected());
        host.pass(Duration::from_millis(10));
        assert_eq!(host.messages(), 1);
        let dead = host.receiver(other, "DLQ", 10);
        let (link, _, got) = host.deliveries(other).pop().expect("it is there");
        assert_eq!(link, dead);
        assert!(got.ends_with(&message(10)), "the bare message is as it was");
        let sections = Sections::scan(&got).expect("a message");
        let map = sections.message_annotations(&got).expect("sound").expect("there");
        assert_eq!(map.get("x-opt-ORIG-QUEUE"), Some(Value::String("q")));
        assert_eq!(map.get("x-opt-ORIG-ADDRESS"), Some(Value::String("q")));
        let time = Value::Timestamp(UNIX_MS as i64);
        assert_eq!(map.get("x-opt-DEATH-TIME"), Some(time));
        judge(&mut host, other, Outcome::Accepted);
        host.lose(at);
        host.lose(other);
        host.pass(Duration::from_millis(10));
        host.assert_clean();
    }
}

#[test]
fn ten_failures_are_the_end_unless_the_address_says_otherwise() {
    for (said, most) in
        [(Said::default(), 10), (Said { delivery_attempts_max: Some(2), ..Said::default() }, 2)]
    {
        let wish = Wish { settings: settings(said), ..Wish::default() };
        let (mut host, at, _) = delivered(wish, 10);
        for delivery in 1..=most {
            assert_eq!(host.deliveries(at).len(), delivery);
            judge(&mut host, at, FAILED);
        }
        host.pass(Duration::from_millis(10));
        assert_eq!(host.deliveries(at).len(), most);
        assert_eq!(count(&host, "DLQ", SlotState::Available), 1);
        host.crash();
        assert_eq!(host.messages(), 1);
        assert_eq!(count(&host, "DLQ", SlotState::Available), 1);
    }
}

#[test]
fn without_an_address_for_the_dead_they_are_dropped() {
    let said = Said {
        dead_letter_address: Some(String::new()),
        delivery_attempts_max: Some(1),
        ..Said::default()
    };
    for outcome in [FAILED, rejected()] {
        let wish = Wish { settings: settings(said.clone()), ..Wish::default() };
        let (mut host, at, _) = delivered(wish, 10);
        judge(&mut host, at, outcome);
        host.pass(Duration::from_millis(10));
        assert_eq!(host.messages(), 0);
    }
}

#[test]
fn in_the_queue_for_the_dead_failures_count_and_rejection_is_the_end() {
    let said = Said { delivery_attempts_max: Some(1), ..Said::default() };
    let mut host = Host::new(Wish { settings: settings(said), ..Wish::default() });
    let at = host.connect(0);
    let sender = host.sender(at, "DLQ");
    assert!(host.send(at, sender, 10, false));
    host.receiver(at, "DLQ", 10);
    for _ in 0..3 {
        judge(&mut host, at, FAILED);
    }
    assert_eq!(host.deliveries(at).len(), 4);
    judge(&mut host, at, rejected());
    host.pass(Duration::from_millis(10));
    assert_eq!(host.messages(), 0);
}

/// At each letter between the two shards, and with each of the writes kept back, the power goes.
#[test]
fn whenever_the_power_goes_the_message_is_in_one_place() {
    let mut ends = Vec::new();
    for (level, priority) in [
        (Level::Async, None),
        (Level::Sync, None),
        (Level::Sync, Some(9)),
        (Level::Sync, Some(0)),
        (Level::Async, Some(9)),
    ] {
        for kept in 0..12 {
            for held in [None, Some((ShardId(0), ShardId(1))), Some((ShardId(1), ShardId(0)))] {
                let wish = Wish { shards: 2, level, ..Wish::default() };
                let (mut host, at) = delivered_at(wish, priority);
                let other = host.connect(1);
                host.sender(other, "DLQ");
                host.pass(Duration::from_millis(300));
                host.writes = Writes::Held;
                host.mail_held = held;
                judge(&mut host, at, rejected());
                for _ in 0..kept {
                    host.pass(Duration::from_millis(10));
                    if host.is_holding() {
                        host.let_go_first();
                    }
                }
                host.mail_held = None;
                host.crash();
                host.pass(Duration::from_millis(100));
                assert_eq!(host.messages(), 1, "{level:?} {kept} {held:?}");
                let places = ["q", "DLQ"].map(|name| count(&host, name, SlotState::Available));
                assert_eq!(places[0] + places[1], 1, "{level:?} {kept} {held:?}");
                ends.push(places[1]);
                // Who looks for it where it died finds it only if it is there.
                let after = host.connect(0);
                host.receiver(after, "q", 10);
                host.pass(Duration::from_millis(10));
                assert_eq!(host.deliveries(after).len() as u64, places[0]);
                host.lose(after);
                host.crash();
                assert_eq!(host.messages(), 1);
            }
        }
    }
    assert!(ends.contains(&0) && ends.contains(&1), "both ends were seen");
}

#[test]
fn a_copy_is_not_shown_while_its_origin_may_come_back() {
    let (mut host, at, _) = delivered(Wish { shards: 2, ..Wish::default() }, 10);
    let other = host.connect(1);
    host.sender(other, "DLQ");
    host.receiver(other, "DLQ", 10);
    host.mail_held = Some((ShardId(1), ShardId(0)));
    judge(&mut host, at, rejected());
    host.pass(Duration::from_millis(10));
    assert_eq!(count(&host, "q", SlotState::Moving), 1);
    assert_eq!(count(&host, "DLQ", SlotState::Reserved), 1);
    assert_eq!(host.deliveries(other).len(), 0);
    host.mail_held = None;
    host.settle();
    assert_eq!(host.deliveries(other).len(), 1);
    assert_eq!(count(&host, "q", SlotState::Moving), 0);
}

#[test]
fn what_cannot_be_moved_stays_and_is_offered_again() {
    let (mut host, at, _) = delivered(bounded(Settings::default()), 1000);
    let other = host.connect(1);
    let full = host.sender(other, "DLQ");
    for _ in 0..DEAD_MAX {
        host.send(other, full, 1000, false);
    }
    judge(&mut host, at, rejected());
    host.pass(Duration::from_secs(1));
    assert_eq!(host.deliveries(at).len(), 2, "it is offered again");
    assert!(host.stats(0).move_failures_total > 0);
    host.receiver(other, "DLQ", 10);
    for (link, delivery, _) in host.deliveries(other) {
        host.clients[other].amqp.settle(link, delivery, Outcome::Accepted);
    }
    host.pass(Duration::from_millis(10));
    judge(&mut host, at, rejected());
    host.pass(Duration::from_millis(100));
    assert_eq!(host.deliveries(other).len(), 4, "and then it is moved");
    assert_eq!(host.messages(), 1);
}

#[test]
fn what_finds_no_room_is_offered_ever_later_and_costs_no_log() {
    for outcome in [rejected(), FAILED] {
        let said = Said { delivery_attempts_max: Some(1), ..Said::default() };
        let (mut host, at, _) = delivered(bounded(settings(said)), 1000);
        let other = host.connect(1);
        let full = host.sender(other, "DLQ");
        for _ in 0..DEAD_MAX {
            host.send(other, full, 1000, false);
        }
        judge(&mut host, at, outcome.clone());
        let appended = host.stats(0).journal_appended_lsn;
        let mut judged = 1;
        for _ in 0..1000 {
            host.pass(Duration::from_millis(10));
            if host.deliveries(at).len() > judged {
                judged += 1;
                judge(&mut host, at, outcome.clone());
            }
        }
        assert!(judged > 3 && judged < 12, "offered {judged} times in ten seconds");
        assert_eq!(host.stats(0).journal_appended_lsn, appended, "the log knows it already");
        host.receiver(other, "DLQ", 10);
        for (link, delivery, _) in host.deliveries(other) {
            host.clients[other].amqp.settle(link, delivery, Outcome::Accepted);
        }
        host.pass(Duration::from_secs(5));
        let (_, _, got) = host.deliveries(other).pop().expect("it is moved");
        let sections = Sections::scan(&got).expect("a message");
        let map = sections.message_annotations(&got).expect("sound").expect("there");
        let once = (outcome == FAILED).then_some(Value::Uint(1));
        assert_eq!(map.get("x-opt-DEATH-ATTEMPTS"), once, "each failure counts once");
        assert_eq!(host.messages(), 1);
    }
}

/// The queue for the dead, on shard 1, is full; the one that takes them can make room. A mortal
/// message in `q` on shard 0, rejected and refused again and again, has no consumer.
fn refused(ttl_ms: u32) -> (Host, usize) {
    let mut host = Host::new(bounded(Settings::default()));
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    host.clients[at].amqp.send(sender, &[&mortal(ttl_ms, None)], false).expect("there is credit");
    host.receiver(at, "q", 10);
    let other = host.connect(1);
    host.sender(other, "ExpiryQueue");
    let full = host.sender(other, "DLQ");
    for _ in 0..DEAD_MAX {
        assert!(host.send(other, full, 1000, false));
    }
    judge(&mut host, at, rejected());
    host.lose(at);
    assert_eq!(host.messages(), 1 + count(&host, "DLQ", SlotState::Available));
    (host, other)
}

fn make_room(host: &mut Host, at: usize) {
    host.receiver(at, "DLQ", 100);
    for (link, delivery, _) in host.deliveries(at) {
        host.clients[at].amqp.settle(link, delivery, Outcome::Accepted);
    }
    host.pass(Duration::from_millis(10));
}

#[test]
fn what_expires_while_its_next_try_is_pending_is_moved_once() {
    // The tries are at 0.05, 0.15, 0.35, 0.75, 1.55, 3.15, 6.35 and 11.35 seconds.
    for ttl_ms in [5000, 10_000, 11_000] {
        let (mut host, other) = refused(ttl_ms);
        host.pass(Duration::from_millis(u64::from(ttl_ms) - 500));
        assert_eq!(count(&host, "q", SlotState::Available), 1, "it is offered");
        make_room(&mut host, other);
        assert_eq!(host.messages(), 1);
        host.mail_held = Some((ShardId(0), ShardId(1)));
        host.pass(Duration::from_secs(3));
        assert_eq!(count(&host, "q", SlotState::Moving), 1, "it is under way");
        host.mail_held = None;
        host.pass(Duration::from_secs(20));
        assert_eq!(count(&host, "ExpiryQueue", SlotState::Available), 1, "{ttl_ms}");
        assert_eq!((host.messages(), host.stats(0).memory_bytes), (1, 0), "{ttl_ms}");
        host.crash();
        assert_eq!(host.messages(), 1, "{ttl_ms}");
    }
}

#[test]
fn of_two_copies_in_the_log_one_is_kept() {
    let (mut host, at, _) = delivered(Wish { shards: 2, ..Wish::default() }, 10);
    let other = host.connect(1);
    host.sender(other, "DLQ");
    host.mail_held = Some((ShardId(1), ShardId(0)));
    judge(&mut host, at, rejected());
    host.pass(Duration::from_millis(10));
    let state = host.shards[1].state();
    let queue = state.catalogue.named("DLQ").expect("it was made").id;
    let (_, _, origin) = state.arrivals().next().expect("a hidden copy");
    let again = broker::Mail::Publish {
        queue,
        whence: broker::mail::Whence::Moved(origin),
        message: message(10).into(),
        traits: broker::queue::Traits::default(),
    };
    host.event(1, broker::Event::Mail { from: ShardId(0), mail: again });
    host.pass(Duration::from_millis(10));
    assert_eq!(host.messages(), 3);
    host.mail_held = None;
    for _ in 0..2 {
        host.crash();
        host.pass(Duration::from_millis(10));
        assert_eq!((host.messages(), count(&host, "DLQ", SlotState::Available)), (1, 1));
    }
}

#[test]
fn what_was_rejected_before_its_address_changed_does_not_stay_between() {
    for (address, kept) in [("", 0), ("q", 1)] {
        let (mut host, _) = refused(0);
        host.pass(Duration::from_secs(1));
        let said = Said { dead_letter_address: Some(address.to_owned()), ..Said::default() };
        host.wish.settings = settings(said);
        host.crash();
        host.pass(Duration::from_secs(1));
        let in_q = |host: &Host| {
            [SlotState::Available, SlotState::Moving].map(|state| count(host, "q", state))
        };
        assert_eq!(in_q(&host), [kept, 0], "its address is '{address}'");
        let at = host.connect(0);
        host.receiver(at, "q", 10);
        for (link, delivery, _) in host.deliveries(at) {
            host.clients[at].amqp.settle(link, delivery, rejected());
        }
        host.pass(Duration::from_millis(10));
        assert_eq!(in_q(&host), [0, 0], "rejected where it lies, it is gone");
    }
}

#[test]
fn a_copy_on_its_way_counts_as_memory() {
    let (mut host, at, _) = delivered(Wish { shards: 2, ..Wish::default() }, 1000);
    let other = host.connect(1);
    host.sender(other, "DLQ");
    let before = host.stats(0).memory_bytes;
    host.mail_held = Some((ShardId(1), ShardId(0)));
    judge(&mut host, at, rejected());
    host.pass(Duration::from_millis(10));
    assert!(host.stats(0).memory_bytes > before + 1000);
    host.mail_held = None;
    host.pass(Duration::from_millis(10));
    assert_eq!(host.stats(0).memory_bytes, 0);
}

#[test]
fn a_purge_frees_a_log_that_is_full_of_what_has_expired() {
    let mut host = Host::new(Wish { segments_max: 5, ..Wish::default() });
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    let bytes = mortal(60_000, None);
    while host.outcomes(at).iter().all(|outcome| *outcome == Outcome::Accepted) {
        host.clients[at].amqp.send(sender, &[&bytes], false).expect("there is credit");
        host.settle();
    }
    host.pass(Duration::from_secs(120));
    let stuck = count(&host, "q", SlotState::Moving);
    assert!(stuck > 20, "{stuck} find no room");
    let other = host.connect(0);
    host.receiver(other, "q", 10);
    assert_eq!(host.deliveries(other).len(), 0, "nobody gets what has expired");
    host.ask(0, broker::admin::AdminRequest::Purge { queue: "q".to_owned() });
    host.pass(Duration::from_secs(10));
    let kept = count(&host, "ExpiryQueue", SlotState::Available);
    assert_eq!((host.messages(), host.fatal.take()), (kept, None));
    assert!(!host.stats(0).journal_full);
}

#[test]
fn a_pause_after_a_failure_holds_and_a_purge_ends_it() {
    let said = Said {
        redelivery_delay: Some(Duration::from_secs(1)),
        redelivery_multiplier_percent: Some(300),
        ..Said::default()
    };
    let wish = Wish { settings: settings(said), ..Wish::default() };
    let (mut host, at, _) = delivered(wish, 10);
    judge(&mut host, at, FAILED);
    host.pass(Duration::from_millis(990));
    assert_eq!(host.deliveries(at).len(), 1);
    host.pass(Duration::from_millis(20));
    assert_eq!(host.deliveries(at).len(), 2);
    judge(&mut host, at, FAILED);
    host.pass(Duration::from_millis(2900));
    assert_eq!(host.deliveries(at).len(), 2, "the second pause is longer");
    host.ask(0, broker::admin::AdminRequest::Purge { queue: "q".to_owned() });
    host.lose(at);
    host.pass(Duration::from_millis(10));
    assert_eq!(host.messages(), 0);
}

/// A message with a header that says how long it lives, and perhaps its priority.
fn mortal(ttl_ms: u32, priority: Option<u8>) -> Vec<u8> {
    let mut out = Vec::new();
    let header = Header { ttl: Some(ttl_ms), priority, ..Header::default() };
    write_header(&header, &mut out);
    out.extend(message(10));
    out
}

/// Of a queue that it was handed out of: to a client that takes one message at a time.
#[test]
fn what_expires_while_it_waits_for_a_clients_window_is_not_delivered() {
    for (bytes, crash) in [(10, false), (150_000, false), (150_000, true)] {
        for home in [0, 1] {
            let mut host = Host::new(Wish { shards: 2, ..Wish::default() });
            let at = host.connect(home);
            let sender = host.sender(at, "q");
            assert!(host.send(at, sender, 10, false));
            let mut dying = Vec::new();
            write_header(&Header { ttl: Some(1000), ..Header::default() }, &mut dying);
            dying.extend(message(bytes));
            host.clients[at].amqp.send(sender, &[&dying], false).expect("there is credit");
            host.pass(Duration::from_millis(10));
            assert!(host.send(at, sender, 20, false));
            if crash {
                host.crash();
            }
            let narrow = host.connect_narrow(0);
            let receiver = host.receiver(narrow, "q", 10);
            assert_eq!(host.deliveries(narrow).len(), 1, "its window is closed now");
            assert_eq!(count(&host, "q", SlotState::Acquired), 3, "the others wait for it");
            host.pass(Duration::from_secs(2));
            for (n, expected) in [10, 20].into_iter().enumerate() {
                let (_, delivery, bytes) = host.deliveries(narrow).swap_remove(n);
                assert!(bytes.ends_with(&message(expected)), "{} bytes", bytes.len());
                host.clients[narrow].amqp.settle(receiver, delivery, Outcome::Accepted);
                host.pass(Duration::from_millis(100));
            }
            assert_eq!(host.deliveries(narrow).len(), 2);
            assert_eq!(count(&host, "ExpiryQueue", SlotState::Available), 1);
            assert_eq!(host.messages(), 1);
        }
    }
}

#[test]
fn what_has_expired_is_not_delivered_and_is_found_elsewhere() {
    for crash in [false, true] {
        let mut host = Host::new(Wish::default());
        let at = host.connect(0);
        let sender = host.sender(at, "q");
        for ttl_ms in [100, 0] {
            let bytes = mortal(ttl_ms, None);
            host.clients[at].amqp.send(sender, &[&bytes], false).expect("there is credit");
            host.settle();
        }
        if crash {
            // It expires while nobody is there.
            host.now += Duration::from_secs(1);
            host.crash();
        }
        host.pass(Duration::from_secs(1));
        let other = host.connect(0);
        host.receiver(other, "q", 10);
        assert_eq!(host.deliveries(other).len(), 1, "ttl 0 is for ever");
        assert_eq!(count(&host, "ExpiryQueue", SlotState::Available), 1);
        assert_eq!(host.messages(), 2);
    }
}

#[test]
fn what_expires_together_goes_in_steps_and_nothing_of_it_is_delivered_meanwhile() {
    let said = Said { expiry_address: Some(String::new()), ..Said::default() };
    let wish = Wish { settings: settings(said), segments_max: 200, ..Wish::default() };
    let mut host = Host::new(wish);
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    let count_max = 1000;
    for (sent, ttl_ms) in std::iter::repeat_n(100, count_max).chain([0]).enumerate() {
        let bytes = mortal(ttl_ms, None);
        host.clients[at].amqp.send(sender, &[&bytes], false).expect("there is credit");
        // In company: a log that is mostly padding would be compacted meanwhile.
        if sent % 100 == 0 {
            host.settle();
        }
    }
    host.settle();
    host.now += Duration::from_secs(1);
    host.writes = Writes::Held;
    host.event(0, broker::Event::Timer);
    host.settle();
    let left = count(&host, "q", SlotState::Available) as usize;
    assert!(left > count_max / 2 && left < count_max, "{left} are left after one turn");
    host.receiver(at, "q", 10_000);
    assert_eq!(host.deliveries(at).len(), 0, "none is delivered while others should be gone");
    host.let_go();
    host.pass(Duration::from_millis(20));
    assert_eq!((host.messages(), host.deliveries(at).len()), (1, 1), "that without an end");
}

#[test]
fn what_expires_while_the_broker_stops_is_not_delivered_either() {
    let mut host = Host::new(Wish::default());
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    let holder = host.connect(0);
    host.receiver(holder, "q", 1);
    host.clients[at].amqp.send(sender, &[&mortal(100, None)], false).expect("there is credit");
    host.settle();
    assert_eq!(host.deliveries(holder).len(), 1);
    // Stays for the answer that it is owed, with credit for what the other one leaves behind.
    let other = host.receiver(at, "q", 10);
    host.writes = Writes::Held;
    assert!(host.send(at, sender, 10, false));
    host.shut_down();
    host.now += Duration::from_secs(1);
    host.lose(holder);
    host.event(0, broker::Event::Timer);
    host.settle();
    let over = host.deliveries(at).iter().filter(|(link, _, _)| *link == other).count();
    assert_eq!(over, 0, "its time is over");
    host.let_go();
    host.clients[at].amqp.close(None);
    host.settle();
    assert_eq!(host.drained, 1);
    host.crash();
    assert_eq!(host.messages(), 2, "nothing is lost");
}

#[test]
fn a_higher_priority_overtakes_and_keeps_it_through_a_restart_and_among_the_dead() {
    let mut host = Host::new(Wish::default());
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    for priority in [None, Some(9), Some(0), Some(9)] {
        let bytes = mortal(1_000_000, priority);
        host.clients[at].amqp.send(sender, &[&bytes], false).expect("there is credit");
        host.settle();
    }
    host.crash();
    let at = host.connect(0);
    host.receiver(at, "q", 10);
    let priority = |(_, _, message): (_, _, Vec<u8>)| {
        Sections::scan(&message).expect("a message").header_fields.priority
    };
    let got: Vec<Option<u8>> = host.deliveries(at).into_iter().map(priority).collect();
    assert_eq!(got, [Some(9), Some(9), None, Some(0)]);
    for (link, delivery, _) in host.deliveries(at) {
        host.clients[at].amqp.settle(link, delivery, rejected());
    }
    host.pass(Duration::from_millis(10));
    let other = host.connect(0);
    host.receiver(other, "DLQ", 10);
    let got: Vec<Option<u8>> = host.deliveries(other).into_iter().map(priority).collect();
    assert_eq!(got, [Some(9), Some(9), None, Some(0)]);
}

/// Of `a` many die, and of `b` one; where each goes is said by name. The shard's stats after this.
fn many_dead(to_a: &str, count: usize, time: Duration) -> Host {
    let mut settings = Settings::default();
    for (name, to) in [("a", to_a), ("b", "DLQ")] {
        let said = Said { dead_letter_address: Some(to.to_owned()), ..Said::default() };
        settings.add(name, said).expect("a pattern");
    }
    let mut host = Host::new(Wish { settings, segments_max: 400, ..Wish::default() });
    let at = host.connect(0);
    for (name, count) in [("a", count), ("b", 1)] {
        let sender = host.sender(at, name);
        for _ in 0..count {
            assert!(host.send(at, sender, 10, false));
        }
    }
    for name in ["a", "b"] {
        let other = host.connect(0);
        host.receiver(other, name, 10_000);
        for (link, delivery, _) in host.deliveries(other) {
            host.clients[other].amqp.settle(link, delivery, rejected());
        }
        host.pass(time);
    }
    host
}

#[test]
fn what_has_nowhere_to_go_holds_up_nothing_else_and_a_purge_takes_it() {
    // A name that the broker gives nobody.
    let mut host = many_dead("$temp.none", 1000, Duration::from_millis(500));
    assert_eq!(count(&host, "DLQ", SlotState::Available), 1, "of the other queue");
    assert_eq!(count(&host, "a", SlotState::Moving), 1000);
    let failures = host.stats(0).move_failures_total;
    host.pass(Duration::from_secs(60));
    let tries = host.stats(0).move_failures_total - failures;
    assert!(tries > 5 && tries < 30, "{tries} tries in a minute");
    // Of all these the one on its way may stay.
    host.ask(0, broker::admin::AdminRequest::Purge { queue: "a".to_owned() });
    host.pass(Duration::from_secs(1));
    assert!(count(&host, "a", SlotState::Moving) <= 1);
    assert_eq!(count(&host, "DLQ", SlotState::Available), 1);
}

#[test]
fn what_died_goes_when_there_is_room_again() {
    let mut host = many_dead("full", 0, Duration::ZERO);
    let said =
        Said { messages_max: Some(100), full_policy: Some(FullPolicy::Refuse), ..Said::default() };
    host.wish.settings.add("DLQ", said).expect("a pattern");
    host.crash();
    let at = host.connect(0);
    let sender = host.sender(at, "b");
    for _ in 0..300 {
        assert!(host.send(at, sender, 10, false));
    }
    host.receiver(at, "b", 10_000);
    for (link, delivery, _) in host.deliveries(at) {
        host.clients[at].amqp.settle(link, delivery, rejected());
    }
    host.pass(Duration::from_millis(10));
    host.lose(at);
    host.pass(Duration::from_secs(10));
    assert_eq!(count(&host, "DLQ", SlotState::Available), 100);
    assert_eq!(count(&host, "b", SlotState::Available), 64, "so many are offered meanwhile");
    assert_eq!(count(&host, "b", SlotState::Moving), 137);
    let other = host.connect(0);
    host.receiver(other, "DLQ", 10_000);
    host.settle_all(other, Duration::from_secs(6));
    assert_eq!((host.messages(), host.deliveries(other).len()), (0, 301));
    assert_eq!(host.stats(0).memory_bytes, 0, "nothing is kept of what had trouble");
}
