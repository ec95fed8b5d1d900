//! Attach, detach, stealing, credit and drain.

use std::time::Duration;

use amqp::codec::{Reader, Value};
use amqp::connection::{BeginError, Config, Event, Side};
use amqp::definitions::{Condition, Handle, ReceiverSettleMode, SenderSettleMode};
use amqp::error::Error;
use amqp::frame::{self, ProtocolId};
use amqp::link::{LinkSource, LinkTarget, NewLink};
use amqp::performative::{
    AnySource, AnyTarget, Attach, Begin, Coordinator, Detach, End, Flow, Open, Performative,
    Source, Target, Transfer,
};
use amqp::session::SessionId;

use crate::peer::{
    Peer, begin, config, credit, detach, error, open, receiver, sender, session_of, transfer,
};

#[test]
fn item_19_a_refused_link_is_attached_without_terminus_and_detached() {
    let mut peer = Peer::in_session(config());
    let mut attach = receiver("in", 4);
    attach.snd_settle_mode = SenderSettleMode::Unsettled;
    peer.say(0, Performative::Attach(attach));
    let link = peer.attached();
    peer.engine.refuse_link(link, Error::new(Condition::NotFound, "no such queue"));
    assert_eq!(
        peer.hears(),
        ["attach@0 0 in sender unsettled first null>null", "detach@0 0 closed amqp:not-found",]
    );
    // Credit that was pipelined is dropped, and the peer's detach frees the handles.
    peer.say(0, Performative::Flow(credit(4, 10)));
    peer.say(0, detach(4, true));
    assert!(peer.hears().is_empty() && peer.events().is_empty());
    let link = peer.attach(receiver("in", 4));
    assert_eq!(peer.hears(), ["attach@0 0 in sender mixed first q>q"]);
    assert_eq!(peer.engine.link_credit(link), 0);
}

#[test]
fn item_20_the_answer_states_what_is_in_force() {
    let mut peer = Peer::in_session(Config { max_message_size: 4321, ..config() });
    let mut attach = sender("out", 0);
    attach.snd_settle_mode = SenderSettleMode::Settled;
    attach.rcv_settle_mode = ReceiverSettleMode::Second;
    peer.say(0, Performative::Attach(attach));
    let link = peer.attached();
    peer.accept(link);
    let bytes = peer.hears_bytes();
    let (frame, _) = frame::parse(&bytes, u32::MAX).unwrap().unwrap();
    let Ok((Performative::Attach(answer), _)) = Performative::decode(frame.body) else { panic!() };
    assert_eq!(answer.snd_settle_mode, SenderSettleMode::Settled);
    assert_eq!(answer.rcv_settle_mode, ReceiverSettleMode::First);
    assert_eq!(answer.max_message_size, Some(4321));
    assert_eq!((answer.initial_delivery_count, answer.unsettled), (None, None));
    // As sender: our first delivery-count, and no limit of ours.
    peer.attach(receiver("in", 1));
    let bytes = peer.hears_bytes();
    let (frame, _) = frame::parse(&bytes, u32::MAX).unwrap().unwrap();
    let Ok((Performative::Attach(answer), _)) = Performative::decode(frame.body) else { panic!() };
    assert_eq!((answer.initial_delivery_count, answer.max_message_size), (Some(0), None));
    assert!(matches!(answer.source, Some(AnySource::Source(source)) if source.filter.is_none()));
}

#[test]
fn item_21_detach_is_answered_in_kind() {
    for closed in [true, false] {
        let (mut peer, link) = Peer::receiving(config(), 5);
        peer.say(0, detach(0, closed));
        assert_eq!(peer.events(), [Event::DetachReceived { link, closed, error: None }]);
        assert!(peer.hears().is_empty(), "the host answers");
        peer.engine.detach(link, !closed, None);
        let answer = if closed { "detach@0 0 closed" } else { "detach@0 0" };
        assert_eq!(peer.hears(), [answer]);
        assert!(peer.events().is_empty());
        peer.engine.detach(link, true, None);
        assert!(peer.hears().is_empty(), "the id names nothing any more");
    }
    // Both at once.
    let (mut peer, link) = Peer::receiving(config(), 5);
    peer.engine.detach(link, true, Some(Error::new(Condition::ResourceDeleted, "")));
    peer.say(0, detach(0, false));
    assert_eq!(peer.hears(), ["detach@0 0 closed amqp:resource-deleted"]);
    assert_eq!(peer.events(), [Event::Detached { link, error: None }]);
}

#[test]
fn item_21_a_link_detached_before_it_was_accepted_is_still_attached_first() {
    let mut peer = Peer::in_session(config());
    peer.say(0, Performative::Attach(sender("out", 0)));
    peer.say(0, detach(0, true));
    let events = peer.events();
    let [Event::AttachReceived { link, .. }, Event::DetachReceived { .. }] = &events[..] else {
        panic!("{events:?}");
    };
    peer.accept(*link);
    assert!(peer.hears().is_empty(), "too late");
    peer.engine.detach(*link, true, None);
    assert_eq!(
        peer.hears(),
        ["attach@0 0 out receiver mixed first null>null", "detach@0 0 closed"]
    );
}

#[test]
fn item_22_a_second_attach_of_the_name_steals_the_link() {
    let mut peer = Peer::in_session(config());
    let old = peer.attach(receiver("sub", 0));
    // The same name in the other direction is another link.
    let other = peer.attach(sender("sub", 1));
    peer.hears();
    peer.say(0, Performative::Attach(receiver("sub", 2)));
    let events = peer.events();
    let [Event::Detached { link, error: Some(error) }, Event::AttachReceived { link: new, .. }] =
        &events[..]
    else {
        panic!("{events:?}");
    };
    assert_eq!((*link, &error.condition), (old, &Condition::Stolen.into()));
    peer.accept(*new);
    assert_eq!(
        peer.hears(),
        ["detach@0 0 amqp:link:stolen", "attach@0 2 sub sender mixed first q>q",]
    );
    peer.say(0, detach(0, false));
    peer.say(0, Performative::Flow(credit(2, 1)));
    assert!(matches!(&peer.events()[..], [Event::CreditChanged { link, .. }] if link == new));
    peer.engine.grant_credit(other, 1);
    peer.engine.grant_credit(old, 1);
    assert_eq!(peer.hears(), ["flow@0 in 0+2048 link 1 0+1"]);

    // From another session, and before the host has accepted the first.
    let mut peer = Peer::in_session(config());
    peer.say(1, Performative::Begin(begin()));
    peer.say(0, Performative::Attach(receiver("sub", 0)));
    peer.say(1, Performative::Attach(receiver("sub", 0)));
    let events = peer.events();
    let [
        Event::SessionBegun { .. },
        Event::AttachReceived { link: old, .. },
        Event::Detached { link: gone, .. },
        Event::AttachReceived { link: new, .. },
    ] = &events[..]
    else {
        panic!("{events:?}");
    };
    assert_eq!(gone, old);
    peer.accept(*old);
    peer.accept(*new);
    assert_eq!(
        peer.hears(),
        [
            "begin@1 for 1",
            "attach@0 0 sub sender mixed first null>null",
            "detach@0 0 amqp:link:stolen",
            "attach@1 0 sub sender mixed first q>q",
        ]
    );
}

#[test]
fn two_ends_that_steal_from_each_other_are_not_served_for_ever() {
    let mut peer = Peer::in_session(config());
    peer.say(1, Performative::Begin(begin()));
    peer.say(0, Performative::Attach(receiver("sub", 0)));
    peer.hears();
    let mut thefts = 0;
    for turn in 1..100 {
        let loser = (turn + 1) % 2;
        peer.say(turn % 2, Performative::Attach(receiver("sub", 0)));
        let heard = peer.hears();
        if heard.iter().any(|line| line.contains("resource-limit-exceeded")) {
            assert!(heard.iter().all(|line| !line.contains("stolen")), "the holder keeps it");
            break;
        }
        assert!(heard.iter().any(|line| line.contains("stolen")), "{heard:?}");
        peer.say(loser, detach(0, false));
        thefts += 1;
    }
    assert_eq!(thefts, 16);
}

#[test]
fn item_22_a_new_attach_waits_for_the_answer_to_the_old_detach() {
    let (mut peer, link) = Peer::receiving(config(), 5);
    peer.say(0, detach(0, false));
    peer.say(0, Performative::Attach(receiver("in", 0)));
    assert!(matches!(peer.events()[..], [Event::DetachReceived { .. }]));
    assert!(!peer.engine.wants_read());
    peer.engine.detach(link, false, None);
    let next = peer.attached();
    assert_ne!(next, link);
    peer.accept(next);
    assert_eq!(peer.hears(), ["detach@0 0", "attach@0 0 in sender mixed first q>q"]);
}

#[test]
fn item_23_an_attach_without_source_reaches_the_host() {
    let mut peer = Peer::in_session(config());
    let look_up = Attach { source: None, ..receiver("sub", 0) };
    peer.say(0, Performative::Attach(look_up));
    let events = peer.events();
    let [Event::AttachReceived { link, attach }] = &events[..] else { panic!("{events:?}") };
    assert_eq!((attach.source.as_ref(), &attach.name[..]), (None, "sub"));
    peer.accept(*link);
    assert_eq!(peer.hears(), ["attach@0 0 sub sender mixed first q>q"]);
}

#[test]
fn item_24_a_sender_without_credit_and_one_with() {
    let (mut peer, link) = Peer::receiving(config(), 2);
    peer.engine.send(link, &[b"a"], true).unwrap();
    // The receiver had not seen that one yet when it granted three.
    peer.say(0, Performative::Flow(credit(0, 3)));
    assert!(matches!(peer.events()[..], [Event::CreditChanged { credit: 2, drain: false, .. }]));
    // Lowered below what is in flight.
    peer.engine.send(link, &[b"b"], true).unwrap();
    peer.say(0, Performative::Flow(credit(0, 1)));
    assert!(matches!(peer.events()[..], [Event::CreditChanged { credit: 0, .. }]));
    assert!(!peer.engine.can_send(link));
}

#[test]
fn item_24_a_receiver_is_not_sent_more_than_it_granted() {
    let (mut peer, link) = Peer::sending(config(), 2);
    peer.transfer(transfer(0, 0), b"m");
    peer.engine.grant_credit(link, 5);
    assert_eq!(peer.hears(), ["flow@0 in 1+2048 link 0 1+5"]);
    // Lowering takes nothing back that may be on its way.
    peer.engine.grant_credit(link, 0);
    for id in 1..6 {
        peer.transfer(transfer(0, id), b"m");
    }
    assert_eq!(peer.events().len(), 6);
    peer.transfer(transfer(0, 6), b"m");
    assert!(matches!(&peer.events()[..], [Event::Detached { .. }]));
}

fn drain(handle: u32, link_credit: u32) -> Performative<'static> {
    Performative::Flow(Flow { drain: true, ..credit(handle, link_credit) })
}

#[test]
fn item_25_a_drain_is_always_answered() {
    // With messages to send first.
    let (mut peer, link) = Peer::receiving(config(), 0);
    peer.say(0, drain(0, 10));
    assert_eq!(peer.events(), [Event::CreditChanged { link, credit: 10, drain: true }]);
    peer.engine.send(link, &[b"m"], true).unwrap();
    assert_eq!(peer.hears(), ["transfer@0 0 id 0 settled 1 B"]);
    peer.engine.drained(link);
    assert_eq!(peer.hears(), ["flow@0 in 0+2048 link 0 10+0 drain"]);
    peer.engine.drained(link);
    assert!(peer.hears().is_empty(), "once");
    // With no credit at all: the engine answers by itself.
    let (mut peer, link) = Peer::receiving(config(), 0);
    peer.say(0, drain(0, 0));
    assert_eq!(peer.hears(), ["flow@0 in 0+2048 link 0 0+0 drain"]);
    peer.engine.drained(link);
    assert!(peer.hears().is_empty());
    // With exactly as many messages as credit.
    let (mut peer, link) = Peer::receiving(config(), 0);
    peer.say(0, drain(0, 2));
    peer.engine.send(link, &[b"m"], true).unwrap();
    peer.engine.send(link, &[b"m"], true).unwrap();
    let heard = peer.hears();
    assert_eq!(heard[2..], ["flow@0 in 0+2048 link 0 2+0 drain"]);
    // Before the link is accepted.
    let mut peer = Peer::in_session(config());
    peer.say(0, Performative::Attach(receiver("in", 0)));
    peer.say(0, drain(0, 0));
    let link = peer.attached();
    peer.accept(link);
    assert_eq!(peer.hears()[1..], ["flow@0 in 0+2048 link 0 0+0 drain"]);
    // New credit without drain ends it.
    let (mut peer, link) = Peer::receiving(config(), 0);
    peer.say(0, drain(0, 4));
    peer.say(0, Performative::Flow(credit(0, 4)));
    peer.engine.drained(link);
    assert!(peer.hears().is_empty());
    assert_eq!(peer.engine.link_credit(link), 4);
}

#[test]
fn item_25_a_drain_waits_for_a_large_message_under_way() {
    let small = Open { max_frame_size: 512, ..open() };
    let narrow = Begin { incoming_window: 1, ..begin() };
    let mut peer = Peer::in_session_with(config(), &small, &narrow);
    let link = peer.attach(receiver("in", 0));
    peer.say(0, Performative::Flow(Flow { incoming_window: 1, ..credit(0, 10) }));
    peer.events();
    peer.engine.send(link, &[&[0; 900]], true).unwrap();
    peer.say(0, Performative::Flow(Flow { incoming_window: 1, drain: true, ..credit(0, 10) }));
    peer.engine.drained(link);
    let heard = peer.hears();
    assert!(heard.last().unwrap().starts_with("transfer@0 0 id 0 settled more"), "{heard:?}");
    let wide = Flow {
        next_incoming_id: Some(1),
        handle: None,
        delivery_count: None,
        link_credit: None,
        ..credit(0, 0)
    };
    peer.say(0, Performative::Flow(wide));
    let heard = peer.hears();
    assert!(heard[0].starts_with("transfer@0 0 id 0 settled ") && !heard[0].contains("more"));
    assert_eq!(heard[1..], ["flow@0 in 0+2048 link 0 10+0 drain"]);
}

#[test]
fn item_25_a_drain_of_ours_is_over_when_the_credit_is() {
    let (mut peer, link) = Peer::sending(config(), 10);
    peer.engine.drain(link);
    assert_eq!(peer.hears(), ["flow@0 in 0+2048 link 0 0+10 drain"]);
    peer.transfer(transfer(0, 0), b"m");
    let answer = Flow { delivery_count: Some(10), ..credit(0, 0) };
    peer.say(0, Performative::Flow(Flow { drain: true, ..answer }));
    let events = peer.events();
    assert_eq!(events[1..], [Event::Drained { link }]);
    peer.say(0, Performative::Flow(Flow { drain: true, ..answer }));
    assert!(peer.events().is_empty(), "once");
    peer.engine.grant_credit(link, 1);
    assert_eq!(peer.hears(), ["flow@0 in 1+2048 link 0 10+1"]);
}

#[test]
fn item_46_a_coordinator_is_refused_without_the_host() {
    let mut peer = Peer::in_session(config());
    let target = AnyTarget::Coordinator(Coordinator::default());
    peer.say(0, Performative::Attach(Attach { target: Some(target), ..sender("tx", 0) }));
    assert_eq!(
        peer.hears(),
        ["attach@0 0 tx receiver mixed first null>null", "detach@0 0 closed amqp:not-implemented",]
    );
    assert!(peer.events().is_empty());
    peer.say(0, detach(0, true));
    peer.attach(sender("tx", 0));
}

#[test]
fn a_target_that_the_spec_does_not_have_is_refused_like_a_coordinator() {
    let kinds: [&[u8]; 3] = [
        b"\x00\xa3\x10acme:target:list\xc0\x03\x01\xa1\x00",
        b"\x00\x80\0\0\x12\x34\0\0\0\x01\xc1\x01\x00",
        b"\x00\x53\x24\x45",
    ];
    for kind in kinds {
        let mut peer = Peer::in_session(config());
        let Ok(Value::Described(other)) = Reader::new(kind).value() else { panic!("{kind:?}") };
        let target = Some(AnyTarget::Other(other));
        peer.say(0, Performative::Attach(Attach { target, ..sender("odd", 0) }));
        let heard = peer.hears();
        assert_eq!(heard[1..], ["detach@0 0 closed amqp:not-implemented"], "{heard:?}");
        assert!(peer.events().is_empty());
        peer.say(0, detach(0, true));
        peer.attach(sender("odd", 0));
    }
    // One that is cut short or too deep is still a decode error.
    let deep = [&b"\x00\xa3\x01x"[..], &[0xc0, 2, 1].repeat(40)].concat();
    assert!(Reader::new(&deep).value().is_err());
}

#[test]
fn a_source_that_the_spec_does_not_have_refuses_its_link_and_no_more() {
    let mut peer = Peer::in_session(config());
    let kind: &[u8] = b"\x00\xa3\x10acme:source:list\xc0\x03\x01\xa1\x00";
    let Ok(Value::Described(other)) = Reader::new(kind).value() else { panic!() };
    for (handle, attach) in [(0, receiver("in", 0)), (1, sender("out", 1))] {
        let source = Some(AnySource::Other(other));
        peer.say(0, Performative::Attach(Attach { source, ..attach }));
        let heard = peer.hears();
        let detach_line = format!("detach@0 {handle} closed amqp:not-implemented");
        assert_eq!(heard[1..], [detach_line], "{heard:?}");
        assert!(peer.events().is_empty());
    }
    peer.say(0, detach(0, true));
    peer.attach(receiver("in", 0));
}

#[test]
fn item_32_a_receivers_second_is_in_force_and_a_senders_wish_is_not() {
    let mut peer = Peer::in_session(config());
    let second = ReceiverSettleMode::Second;
    peer.attach(Attach { rcv_settle_mode: second, ..receiver("in", 0) });
    assert_eq!(peer.hears(), ["attach@0 0 in sender mixed second q>q"]);
    peer.attach(Attach { rcv_settle_mode: second, ..sender("out", 1) });
    assert_eq!(peer.hears(), ["attach@0 1 out receiver mixed first q>q"]);
}

#[test]
fn a_temporary_queue_as_qpid_jms_asks_for_it_reaches_the_host() {
    // Source: dynamic, lifetime-policy delete-on-close, link-detach, modified, temporary-queue.
    let attach = include_bytes!("../../../fuzz/corpus/frame/attach-dynamic");
    let mut peer = Peer::in_session(config());
    peer.say_bytes(attach);
    let events = peer.events();
    let [Event::AttachReceived { attach, .. }] = &events[..] else { panic!("{events:?}") };
    let source = attach.source.as_ref().unwrap();
    assert!(source.dynamic && source.address.is_none());
    assert!(source.dynamic_node_properties.is_some());
    assert_eq!(source.outcomes, ["amqp:accepted:list", "amqp:rejected:list"]);
    assert_eq!(source.capabilities, ["temporary-queue"]);
}

#[test]
fn the_memory_for_link_names_is_bounded_and_comes_back() {
    let name: &'static str = "n".repeat(900_000).leak();
    let names = |n: usize| &name[n..];
    let (mut peer, mut links) = (Peer::in_session(config()), 0);
    while peer.engine.transmit_bytes_pending() < 20_000_000 {
        peer.say(0, Performative::Attach(sender(names(links), links as u32)));
        let events = peer.events();
        if let [Event::AttachReceived { link, .. }] = events[..] {
            peer.engine.refuse_link(link, Error::new(Condition::NotFound, ""));
            links += 1;
        } else {
            assert!(matches!(events[..], [Event::Ended { error: Some(_), .. }]), "{events:?}");
            break;
        }
    }
    assert_eq!(links, 9, "of which none was answered by a detach");
    let heard = peer.hears();
    assert_eq!(heard.last().unwrap(), "end@0 amqp:resource-limit-exceeded");
    peer.say(0, Performative::End(Default::default()));
    peer.say(0, Performative::Begin(begin()));
    peer.events();
    for _ in 0..20 {
        peer.attach(sender(name, 0));
        peer.say(0, detach(0, true));
        let events = peer.events();
        let Some(Event::DetachReceived { link, .. }) = events.last() else { panic!("{events:?}") };
        peer.engine.detach(*link, true, None);
        peer.hears();
    }
}

#[test]
fn a_sender_must_say_where_it_counts_from() {
    let mut peer = Peer::in_session(config());
    let attach = Attach { initial_delivery_count: None, ..sender("out", 0) };
    peer.say(0, Performative::Attach(attach));
    assert_eq!(peer.hears()[1..], ["detach@0 0 closed amqp:invalid-field"]);
    assert!(peer.events().is_empty());
}

#[test]
fn item_35_an_unsettled_map_is_answered_by_an_empty_one() {
    let mut peer = Peer::in_session(config());
    let resumed = Attach { unsettled: Some(amqp::codec::Map::EMPTY), ..sender("out", 0) };
    peer.say(0, Performative::Attach(resumed));
    let events = peer.events();
    let [Event::AttachReceived { link, attach }] = &events[..] else { panic!("{events:?}") };
    assert!(attach.unsettled);
    peer.accept(*link);
    let bytes = peer.hears_bytes();
    let (frame, _) = frame::parse(&bytes, u32::MAX).unwrap().unwrap();
    let Ok((Performative::Attach(answer), _)) = Performative::decode(frame.body) else { panic!() };
    assert_eq!(answer.unsettled, Some(amqp::codec::Map::EMPTY));
    // What it tries to resume all the same is ignored to its end, and costs no credit.
    peer.engine.grant_credit(*link, 1);
    peer.hears();
    let resume = |id| Transfer { resume: true, ..transfer(0, id) };
    peer.transfer(resume(0), b"m");
    peer.transfer(Transfer { more: true, ..resume(1) }, b"m");
    peer.transfer(Transfer { delivery_id: None, delivery_tag: None, ..transfer(0, 1) }, b"n");
    peer.transfer(Transfer { more: true, ..resume(2) }, b"m");
    peer.transfer(Transfer { aborted: true, ..transfer(0, 2) }, b"");
    assert!(peer.events().is_empty());
    assert_eq!(peer.hears(), ["flow@0 in 5+2048 link 0 3+1"]);
    peer.transfer(transfer(0, 3), b"new");
    assert!(matches!(&peer.events()[..], [Event::Transfer { message, .. }] if message == "new"));
}

#[test]
fn an_answer_beyond_the_peers_frame_size_is_not_sent() {
    let small = Open { max_frame_size: 512, ..open() };
    let mut peer = Peer::in_session_with(config(), &small, &begin());
    peer.say(0, Performative::Attach(receiver("in", 0)));
    let link = peer.attached();
    let source = Some(LinkSource::at("q".repeat(600)));
    peer.engine.accept_link(link, amqp::link::AcceptLink { source, ..Default::default() });
    assert_eq!(
        peer.hears(),
        ["detach@0 0 closed amqp:frame-size-too-small"]
            .map(|detach| vec!["attach@0 0 in sender mixed first null>null", detach])
            .concat()
    );
    assert!(matches!(&peer.events()[..], [Event::Detached { .. }]));
}

/// A client in a session of its own.
fn client() -> (Peer, SessionId) {
    client_of(&open())
}

fn client_of(open: &Open<'_>) -> (Peer, SessionId) {
    let mut peer = Peer::new(config(), Side::Client);
    peer.say_bytes(&ProtocolId::Amqp.header());
    peer.say(0, Performative::Open(*open));
    peer.engine.begin().unwrap();
    peer.say(0, Performative::Begin(Begin { remote_channel: Some(0), ..begin() }));
    let session = session_of(&peer.events());
    peer.hears();
    (peer, session)
}

fn new_link(name: &str) -> NewLink {
    NewLink {
        name: name.into(),
        source: LinkSource::at("q"),
        target: LinkTarget::at("q"),
        ..NewLink::default()
    }
}

#[test]
fn a_client_attaches_and_is_answered() {
    let (mut peer, session) = client();
    let out = peer.engine.attach_sender(session, new_link("l")).unwrap();
    let inn = peer.engine.attach_receiver(session, new_link("l")).unwrap();
    assert_eq!(peer.engine.attach_sender(session, new_link("l")), Err(BeginError::NameInUse));
    peer.engine.grant_credit(inn, 7);
    assert_eq!(
        peer.hears(),
        ["attach@0 0 l sender mixed first q>q", "attach@0 1 l receiver mixed first q>q",]
    );
    peer.say(0, Performative::Attach(receiver("l", 5)));
    let mut counted = sender("l", 6);
    counted.initial_delivery_count = Some(0xFFFF_FFFE);
    peer.say(0, Performative::Attach(counted));
    let events = peer.events();
    let [Event::Attached { link: a, .. }, Event::Attached { link: b, .. }] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!((*a, *b), (out, inn));
    // The credit that was granted before the sender said where it counts from.
    assert_eq!(peer.hears(), ["flow@0 in 0+2048 link 1 4294967294+7"]);
    for id in 0..7 {
        peer.transfer(transfer(6, id), b"m");
    }
    assert_eq!(peer.events().len(), 7);
}

#[test]
fn a_client_is_refused() {
    let (mut peer, session) = client();
    let link = peer.engine.attach_sender(session, new_link("l")).unwrap();
    peer.hears();
    peer.say(0, Performative::Attach(Attach { target: None, source: None, ..receiver("l", 0) }));
    assert!(peer.events().is_empty());
    let why = Some(error(Condition::NotFound));
    peer.say(0, Performative::Detach(Detach { handle: Handle(0), closed: true, error: why }));
    let events = peer.events();
    let [Event::Detached { link: gone, error: Some(error) }] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!((*gone, &error.condition), (link, &Condition::NotFound.into()));
    assert_eq!(peer.hears(), ["detach@0 0 closed"]);
    // Given up before the answer: attach and detach cross.
    let link = peer.engine.attach_receiver(session, new_link("l")).unwrap();
    peer.engine.detach(link, true, None);
    peer.say(0, Performative::Attach(sender("l", 3)));
    assert!(peer.events().is_empty());
    peer.say(0, detach(3, true));
    assert_eq!(peer.events(), [Event::Detached { link, error: None }]);
    assert_eq!(peer.hears(), ["attach@0 0 l receiver mixed first q>q", "detach@0 0 closed"]);
    // A sender that does not say where it counts from.
    let link = peer.engine.attach_receiver(session, new_link("l")).unwrap();
    peer.hears();
    peer.say(0, Performative::Attach(Attach { initial_delivery_count: None, ..sender("l", 3) }));
    assert!(matches!(&peer.events()[..], [Event::Detached { link: gone, .. }] if *gone == link));
    assert_eq!(peer.hears(), ["detach@0 0 closed amqp:invalid-field"]);
}

#[test]
fn handles_are_used_again_and_ids_are_not() {
    let mut peer = Peer::in_session(config());
    let mut seen = Vec::new();
    for round in 0..100 {
        let attach = Attach {
            source: Some(AnySource::Source(Source { address: Some("q"), ..Source::default() })),
            target: Some(AnyTarget::Target(Target::default())),
            ..receiver("in", 3)
        };
        let link = peer.attach(attach);
        assert!(!seen.contains(&link));
        seen.push(link);
        if round % 2 == 0 {
            peer.say(0, detach(3, true));
            peer.events();
            peer.engine.detach(link, true, None);
        } else {
            peer.engine.detach(link, true, None);
            peer.say(0, detach(3, true));
            assert_eq!(peer.events(), [Event::Detached { link, error: None }]);
        }
        let heard = peer.hears();
        assert_eq!(heard, ["attach@0 0 in sender mixed first q>q", "detach@0 0 closed"]);
    }
}

#[test]
fn links_whose_detach_the_host_owes_are_bounded() {
    let names = ["a", "b", "c", "d", "e"];
    let mut peer = Peer::in_session(Config { handle_max: 3, ..config() });
    let mut links = Vec::new();
    for name in &names[..4] {
        peer.say(0, Performative::Attach(receiver(name, 0)));
        links.push(peer.attached());
        peer.say(0, detach(0, true));
        peer.events();
    }
    peer.say(0, Performative::Attach(receiver(names[4], 0)));
    assert!(peer.events().is_empty() && !peer.engine.wants_read());
    peer.engine.detach(links[2], true, None);
    let link = peer.attached();
    peer.accept(link);
    assert_eq!(
        peer.hears(),
        [
            "attach@0 2 c sender mixed first null>null",
            "detach@0 2 closed",
            "attach@0 2 e sender mixed first q>q",
        ]
    );
}

#[test]
fn a_link_beyond_what_there_may_be_waits_for_the_detaches_that_the_host_owes() {
    let names = ["a", "b", "c", "d"];
    let mut peer = Peer::in_session(Config { links_max: 4, ..config() });
    let mut links = Vec::new();
    for (handle, name) in (0..).zip(names) {
        peer.say(0, Performative::Attach(receiver(name, handle)));
        links.push(peer.attached());
    }
    peer.say(0, detach(1, true));
    peer.events();
    peer.say(0, Performative::Attach(receiver("e", 7)));
    assert!(peer.events().is_empty() && !peer.engine.wants_read());
    peer.engine.detach(links[1], true, None);
    let link = peer.attached();
    peer.accept(link);
    // Where it owes none it is too much.
    peer.hears();
    peer.say(0, Performative::Attach(receiver("f", 8)));
    assert_eq!(peer.hears(), ["end@0 amqp:resource-limit-exceeded"]);
}

#[test]
fn links_that_were_refused_and_never_detached_are_bounded() {
    let mut peer = Peer::in_session(Config { links_max: 40, ..config() });
    peer.say(1, Performative::Begin(begin()));
    peer.events();
    peer.hears();
    for handle in 0..40 {
        let name = Box::leak(format!("no-{handle}").into_boxed_str());
        peer.say((handle % 2) as u16, Performative::Attach(sender(name, handle)));
        let link = peer.attached();
        peer.engine.refuse_link(link, Error::new(Condition::NotFound, "no"));
    }
    peer.hears();
    peer.say(1, Performative::Attach(sender("one more", 100)));
    assert_eq!(peer.hears(), ["end@1 amqp:resource-limit-exceeded"]);
    let events = peer.events();
    assert!(matches!(&events[..], [Event::Ended { error: Some(_), .. }]), "{events:?}");
    // The session's links went with it, and the other session goes on.
    peer.attach(sender("in their place", 100));
    assert_eq!(peer.hears(), ["attach@0 20 in their place receiver mixed first q>q"]);
}

#[test]
fn a_refusal_that_does_not_fit_the_peers_frames_ends_the_session() {
    let small = Open { max_frame_size: 512, ..open() };
    let name = Box::leak("n".repeat(600).into_boxed_str());
    let mut peer = Peer::in_session_with(config(), &small, &begin());
    peer.say(0, Performative::Attach(receiver(name, 0)));
    let link = peer.attached();
    peer.engine.refuse_link(link, Error::new(Condition::NotFound, "no such queue"));
    assert_eq!(peer.hears(), ["end@0 amqp:frame-size-too-small"]);
    assert!(matches!(&peer.events()[..], [Event::Ended { error: Some(_), .. }]));
    // The same where the engine refuses, here since the name is taken over.
    let mut peer = Peer::in_session_with(config(), &small, &begin());
    peer.say(0, Performative::Attach(receiver(name, 0)));
    peer.attached();
    peer.say(0, Performative::Attach(receiver(name, 1)));
    assert_eq!(peer.hears(), ["end@0 amqp:frame-size-too-small"]);
    assert!(matches!(&peer.events()[..], [Event::Ended { error: Some(_), .. }]));
}

#[test]
fn a_client_does_not_attach_by_a_frame_that_is_too_long() {
    let (mut peer, session) = client_of(&Open { max_frame_size: 512, ..open() });
    for _ in 0..2 {
        let long = new_link(&"n".repeat(600));
        assert_eq!(peer.engine.attach_sender(session, long), Err(BeginError::TooLong));
    }
    assert!(peer.hears().is_empty());
    assert!(peer.engine.attach_sender(session, new_link("short")).is_ok());
    assert_eq!(peer.hears(), ["attach@0 0 short sender mixed first q>q"]);
}

#[test]
fn item_17_an_echo_that_is_asked_for_before_the_link_is_up_is_answered_when_it_is() {
    let mut peer = Peer::in_session(config());
    for (handle, attach) in [(0, sender("out", 0)), (1, receiver("in", 1))] {
        peer.say(0, Performative::Attach(attach));
        let link = peer.attached();
        let flow = Flow { echo: true, ..credit(handle, 0) };
        peer.say(0, Performative::Flow(flow));
        assert!(peer.hears().is_empty());
        peer.accept(link);
        let heard = peer.hears();
        let flow = format!("flow@0 in 0+2048 link {handle} 0+0");
        assert_eq!(heard.get(1), Some(&flow), "{heard:?}");
        assert_eq!(heard.len(), 2);
    }
}

#[test]
fn item_35_a_receiver_whose_unsettled_map_is_not_whole_is_refused() {
    let mut peer = Peer::in_session(config());
    let attach = Attach { incomplete_unsettled: true, ..receiver("in", 0) };
    peer.say(0, Performative::Attach(attach));
    assert!(peer.events().is_empty());
    let heard = peer.hears();
    assert_eq!(heard.last().map(String::as_str), Some("detach@0 0 closed amqp:not-implemented"));
    peer.say(0, detach(0, true));
    // What a sender leaves out is its own affair: to us all of it is unknown.
    peer.attach(Attach { incomplete_unsettled: true, ..sender("out", 0) });
}

/// How long it takes that links come and go, in a session with so many unsettled deliveries.
fn links_that_come_and_go(deliveries: u32) -> Duration {
    let roomy = Config {
        incoming_window: 60_000,
        unsettled_incoming_max: 60_000,
        unsettled_max: 1 << 20,
        ..config()
    };
    let (mut peer, _) = Peer::sending(roomy, 60_000);
    for id in 0..deliveries {
        let tag = id.to_be_bytes();
        peer.transfer(Transfer { delivery_tag: Some(&tag), ..transfer(0, id) }, b"");
    }
    assert_eq!(peer.events().len(), deliveries as usize);
    let start = crate::peer::start();
    for _ in 0..200 {
        peer.say(0, Performative::Attach(receiver("in", 1)));
        let link = peer.attached();
        peer.accept(link);
        peer.say(0, detach(1, true));
        peer.events();
        peer.engine.detach(link, true, None);
        peer.hears();
    }
    for handle in 1..1000 {
        let name = Box::leak(format!("in-{handle}").into_boxed_str());
        peer.say(0, Performative::Attach(receiver(name, handle)));
    }
    peer.say(0, Performative::End(End { error: None }));
    let begun = peer.events();
    let Some(Event::EndReceived { session, .. }) = begun.last() else { panic!("{begun:?}") };
    peer.engine.end(*session, None);
    start.elapsed()
}

#[test]
fn a_link_that_goes_does_not_cost_time_by_the_deliveries_of_others() {
    // The best of some: nothing but the walks makes each of them slow.
    let ratio = |_| {
        let (alone, full) = (links_that_come_and_go(0), links_that_come_and_go(50_000));
        full.as_secs_f64() / alone.as_secs_f64()
    };
    let ratios: Vec<f64> = (0..3).map(ratio).collect();
    assert!(ratios.iter().any(|ratio| *ratio < 3.0), "{ratios:?} times as long");
}
