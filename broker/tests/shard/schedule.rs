//! Messages that are to be delivered later: accepted and durable at once, seen in their time.

use std::time::Duration;

use amqp::codec::{Symbol, Value, Writer};
use amqp::connection::Event as Amqp;
use amqp::delivery::Outcome;
use amqp::link::LinkId;
use broker::Event;
use broker::admin::{AdminReply, AdminRequest};
use broker::clock::WallClock;
use broker::delivery_time::CAPABILITY;

use crate::host::{Host, UNIX_MS, Wish, message};

const TIME: &str = "x-opt-delivery-time";
const DELAY: &str = "x-opt-delivery-delay";

/// A message of so many bytes with this annotation.
fn annotated(bytes: usize, name: &str, value: &Value<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    let mut writer = Writer::new(&mut out);
    writer.descriptor(0x72);
    writer.map_with(|map| {
        map.element().symbol(Symbol::new(name));
        map.element().value(value);
    });
    out.extend(message(bytes));
    out
}

fn send(host: &mut Host, at: usize, link: LinkId, message: &[u8]) {
    host.clients[at].amqp.send(link, &[message], false).expect("there is credit");
    host.settle();
}

/// The bytes of the bodies that a client was sent.
fn got(host: &Host, at: usize) -> Vec<usize> {
    let body = |message: &Vec<u8>| message.iter().rev().take_while(|byte| **byte == b'x').count();
    host.deliveries(at).iter().map(|(_, _, message)| body(message)).collect()
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn it_is_accepted_at_once_and_seen_in_its_time() {
    let mut host = Host::new(Wish { shards: 2, ..Wish::default() });
    let near = host.connect(0);
    host.sender(near, "q");
    // Over the mesh too.
    let at = host.connect(1);
    let sender = host.sender(at, "q");
    host.receiver(at, "q", 10);
    send(&mut host, at, sender, &annotated(1, TIME, &Value::Long(UNIX_MS as i64 + 30)));
    send(&mut host, at, sender, &annotated(2, DELAY, &Value::Ulong(20)));
    send(&mut host, at, sender, &annotated(3, TIME, &Value::Timestamp(UNIX_MS as i64 - 1)));
    send(&mut host, at, sender, &annotated(4, DELAY, &Value::String("20")));
    assert_eq!(host.outcomes(at), vec![Outcome::Accepted; 4]);
    assert_eq!(got(&host, at), [3, 4]);
    host.pass(ms(19));
    assert_eq!(got(&host, at), [3, 4]);
    host.pass(ms(1));
    assert_eq!(got(&host, at), [3, 4, 2]);
    host.pass(ms(10));
    assert_eq!(got(&host, at), [3, 4, 2, 1]);
}

#[test]
fn its_time_is_in_the_log() {
    let mut host = Host::new(Wish::default());
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    send(&mut host, at, sender, &annotated(1, DELAY, &Value::Ulong(50)));
    send(&mut host, at, sender, &annotated(2, DELAY, &Value::Ulong(20)));
    // In fragments: the first has it.
    send(&mut host, at, sender, &annotated(70_000, DELAY, &Value::Ulong(30)));
    host.pass(ms(10));
    host.crash();
    let at = host.connect(0);
    host.receiver(at, "q", 10);
    host.pass(ms(9));
    assert_eq!(got(&host, at), [] as [usize; 0]);
    host.pass(ms(1));
    assert_eq!(got(&host, at), [2]);
    host.crash();
    // What comes due while nobody is there goes out by its time.
    host.pass(ms(100));
    let at = host.connect(0);
    let receiver = host.receiver(at, "q", 10);
    assert_eq!(got(&host, at), [2, 70_000, 1]);
    for (_, delivery, _) in host.deliveries(at) {
        host.clients[at].amqp.settle(receiver, delivery, Outcome::Accepted);
    }
    host.pass(ms(10));
    host.lose(at);
    host.assert_clean();
}

#[test]
fn the_time_of_day_decides_and_it_may_be_set() {
    let mut host = Host::new(Wish::default());
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    host.receiver(at, "q", 10);
    let hour = 3_600_000;
    send(&mut host, at, sender, &annotated(1, DELAY, &Value::Ulong(hour)));
    send(&mut host, at, sender, &annotated(2, DELAY, &Value::Ulong(100 * 24 * hour)));
    host.pass(ms(10));
    let unix_ms = UNIX_MS + hour;
    let now = host.now;
    host.event(0, Event::WallClock(unix_ms));
    assert!(WallClock { at: now, unix_ms }.when(unix_ms) <= now);
    host.pass(Duration::ZERO);
    assert_eq!(got(&host, at), [1]);
    // One that is far away is waited for with patience, not with a busy loop.
    host.lose(at);
    host.pass(Duration::from_secs(1));
    let due = host.shards[0].poll_timeout().expect("there is one to come");
    assert!(due > host.now + Duration::from_secs(3600), "{:?}", due - host.now);
}

#[test]
fn many_come_due_in_bounded_steps() {
    let mut host = Host::new(Wish { segments_max: 200, ..Wish::default() });
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    let one = annotated(1, TIME, &Value::Ulong(UNIX_MS + 50));
    for _ in 0..1000 {
        send(&mut host, at, sender, &one);
    }
    host.now += ms(60);
    let queue = host.shards[0].state().catalogue.named("q").expect("it is there").id;
    let available = |host: &Host| {
        let queue = host.shards[0].state().queue(queue).expect("it is there");
        queue.count(broker::queue::SlotState::Available)
    };
    let (mut before, mut turns) = (0, 0);
    while before < 1000 {
        host.event(0, Event::Timer);
        while host.shards[0].poll(host.now).is_some() {}
        let now = available(&host);
        assert!(now > before && now - before <= 256, "{} at once", now - before);
        (before, turns) = (now, turns + 1);
    }
    assert_eq!(turns, 4);
}

#[test]
fn a_purge_takes_what_waits_for_its_time_too() {
    let mut host = Host::new(Wish::default());
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    send(&mut host, at, sender, &annotated(1, DELAY, &Value::Ulong(50)));
    assert!(host.send(at, sender, 2, false));
    host.ask(0, AdminRequest::Purge { queue: "q".to_owned() });
    host.pass(ms(20));
    assert!(matches!(host.replies.pop(), Some((_, AdminReply::Purged(Some(2))))));
    host.lose(at);
    host.assert_clean();
    host.pass(ms(100));
}

#[test]
fn clients_that_look_for_it_find_it_offered() {
    let mut host = Host::new(Wish::default());
    let at = host.connect(0);
    let offers = |event: &Amqp| {
        let Amqp::Opened(open) = event else { return false };
        open.offered_capabilities.iter().any(|offered| offered == CAPABILITY)
    };
    assert_eq!(host.count(at, offers), 1);
    let session = host.session(at);
    let mut link = Host::link("s", "q", false);
    link.desired_capabilities = vec![CAPABILITY.to_owned(), "unheard-of".to_owned()];
    host.clients[at].amqp.attach_sender(session, link).expect("attached");
    host.settle();
    let answers = |event: &Amqp| {
        let Amqp::Attached { attach, .. } = event else { return false };
        attach.offered_capabilities == [CAPABILITY]
    };
    assert_eq!(host.count(at, answers), 1);
}
