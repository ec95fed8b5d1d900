//! What concerns very many messages stalls nobody: counted in messages a turn, not in time.

use std::time::Duration;

use amqp::definitions::Role;
use amqp::delivery::Outcome;
use amqp::link::LinkId;
use broker::Event;
use broker::admin::{AdminReply, AdminRequest};
use broker::limits::GRADUAL_STEP;
use broker::queue::{Queue, SlotState};

use crate::host::{Host, Wish};
use crate::temporary::{make, node};

const MANY: u64 = 6 * GRADUAL_STEP as u64;

fn host() -> Host {
    Host::new(Wish { segments_max: 400, ..Wish::default() })
}

fn queue<'a>(host: &'a Host, name: &str) -> &'a Queue {
    let state = host.shards[0].state();
    let record = state.catalogue.named(name).expect("it is there");
    state.queue(record.id).expect("it is here")
}

/// Messages that no purge has taken.
fn untaken(host: &Host, name: &str) -> u64 {
    let queue = queue(host, name);
    queue.count(SlotState::Available) + queue.count(SlotState::Acquired)
}

fn fill(host: &mut Host, at: usize, link: LinkId, count: u64) {
    for _ in 0..count {
        assert!(host.send(at, link, 10, false));
    }
}

/// One turn of the shard at a time until `left` is nothing, with another queue that is used in
/// between. Gives the most that went in one turn, and how many turns there were.
fn turns(host: &mut Host, left: impl Fn(&Host) -> u64) -> (u64, usize) {
    let at = host.connect(0);
    let sender = host.sender(at, "other");
    let receiver = host.receiver(at, "other", 1000);
    let (mut before, mut most, mut count) = (left(host), 0, 0);
    while before > 0 {
        let delivered = host.deliveries(at).len();
        assert!(host.send(at, sender, 10, false));
        assert_eq!(host.deliveries(at).len(), delivered + 1, "the other queue goes on");
        let delivery = host.deliveries(at)[delivered].1;
        host.clients[at].amqp.settle(receiver, delivery, Outcome::Accepted);
        let due = host.shards[0].poll_timeout().expect("there is more to do");
        host.now = host.now.max(due);
        host.event(0, Event::Timer);
        host.settle();
        let now = left(host);
        most = most.max(before.saturating_sub(now));
        (before, count) = (now, count + 1);
        assert!(count < 1000, "{now} are left");
    }
    (most, count)
}

#[test]
fn a_large_window_comes_back_in_small_steps_and_in_order() {
    let mut host = host();
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    fill(&mut host, at, sender, MANY);
    let holder = host.connect(0);
    host.receiver(holder, "q", MANY as u32);
    assert_eq!(queue(&host, "q").count(SlotState::Acquired), MANY);
    let waiting = host.connect(0);
    host.receiver(waiting, "q", 10);
    host.lose(holder);
    let (most, turns) = turns(&mut host, |host| {
        let queue = queue(host, "q");
        if queue.is_returning() { queue.count(SlotState::Acquired) } else { 0 }
    });
    assert!(most <= GRADUAL_STEP as u64 && turns >= 3, "{most} in one of {turns} turns");
    host.settle();
    assert_eq!(host.deliveries(waiting).len(), 10);
}

#[test]
fn a_purge_waits_for_what_is_on_its_way_back_and_goes_on_after_a_crash() {
    let mut host = host();
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    fill(&mut host, at, sender, MANY);
    let holder = host.connect(0);
    host.receiver(holder, "q", MANY as u32 / 2);
    host.lose(holder);
    host.ask(0, AdminRequest::Purge { queue: "q".to_owned() });
    let (most, turns) = turns(&mut host, |host| untaken(host, "q"));
    assert!(most <= GRADUAL_STEP as u64 && turns >= 6, "{most} in one of {turns} turns");
    host.pass(Duration::from_millis(10));
    assert_eq!(host.replies.pop().map(|(_, reply)| reply), Some(AdminReply::Purged(Some(MANY))));
    fill(&mut host, at, sender, MANY);
    host.ask(0, AdminRequest::Purge { queue: "q".to_owned() });
    host.pass(Duration::from_millis(2));
    host.crash();
    let left = queue(&host, "q").live();
    assert!(left > 0 && left < MANY, "{left} of {MANY}");
    host.ask(0, AdminRequest::Purge { queue: "q".to_owned() });
    host.pass(Duration::from_millis(100));
    assert_eq!(host.replies.pop().map(|(_, reply)| reply), Some(AdminReply::Purged(Some(left))));
    host.crash();
    assert_eq!(queue(&host, "q").live(), 0, "what was answered is durable");
}

#[test]
fn purges_take_turns() {
    let mut host = host();
    let at = host.connect(0);
    for name in ["a", "b", "c"] {
        let sender = host.sender(at, name);
        fill(&mut host, at, sender, 2 * GRADUAL_STEP as u64);
    }
    for name in ["a", "b", "c"] {
        host.ask(0, AdminRequest::Purge { queue: name.to_owned() });
    }
    let left = |host: &Host| ["a", "b", "c"].map(|name| untaken(host, name)).iter().sum();
    let (most, _) = turns(&mut host, left);
    assert!(most <= GRADUAL_STEP as u64, "{most} in one turn");
}

#[test]
fn a_queue_that_goes_with_its_messages_takes_its_time() {
    let mut host = host();
    let at = host.connect(0);
    let link = make(&mut host, at, Role::Receiver, None);
    let (name, _) = node(&host, at, link);
    let other = host.connect(0);
    let sender = host.sender(other, &name);
    fill(&mut host, other, sender, MANY);
    host.lose(at);
    assert!(host.messages() > MANY / 2, "not all at once");
    let (most, turns) = turns(&mut host, |host| host.messages().saturating_sub(1));
    assert!(most <= GRADUAL_STEP as u64 && turns >= 3, "{most} in one of {turns} turns");
}
