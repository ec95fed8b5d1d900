//! Channels, handles, windows and dispositions.

use amqp::connection::{BeginError, Config, Event, SendError, Side};
use amqp::definitions::{Condition, DeliveryId, Handle, Role};
use amqp::delivery::Outcome;
use amqp::error::Error;
use amqp::frame::{self, ProtocolId};
use amqp::performative::{
    Begin, DeliveryState, Disposition, End, Flow, Modified, Open, Performative, Received, Rejected,
    TransactionalState, Transfer,
};

use crate::peer::{
    Peer, begin, config, credit, detach, disposition, error, open, receiver, sender, session_of,
    transfer,
};

/// The one error that ended the session, as the host and the peer learnt it.
fn ended(peer: &mut Peer) -> Condition {
    let events = peer.events();
    let Some(Event::Ended { error: Some(error), .. }) = events.last() else {
        panic!("the session should have ended by an error: {events:?}");
    };
    let heard = peer.hears();
    let line = format!("end@0 {}", error.condition.as_str());
    assert_eq!(heard.last(), Some(&line), "{heard:?}");
    Condition::from_symbol(error.condition.as_str()).unwrap()
}

#[test]
fn item_5_begin_may_follow_end_on_the_only_channel() {
    let only = Open { channel_max: 0, ..open() };
    let mut peer = Peer::in_session_with(config(), &only, &begin());
    peer.say(0, Performative::End(End { error: None }));
    peer.say(0, Performative::Begin(begin()));
    peer.say(0, Performative::Attach(sender("out", 0)));
    let events = peer.events();
    let [Event::EndReceived { session, error: None }] = &events[..] else { panic!("{events:?}") };
    // Our only channel is in use until the host has answered the end.
    assert!(peer.hears().is_empty() && !peer.engine.wants_read());
    peer.engine.end(*session, None);
    assert_eq!(peer.hears(), ["end@0", "begin@0 for 0"]);
    let events = peer.events();
    let [Event::SessionBegun { session: next }, Event::AttachReceived { .. }] = &events[..] else {
        panic!("{events:?}");
    };
    assert_ne!(next, session);
    peer.engine.end(*session, None);
    assert!(peer.hears().is_empty(), "the old id names nothing");
}

#[test]
fn item_11_channel_max_and_handle_max_are_enforced() {
    let mut peer = Peer::in_session(Config { channel_max: 3, ..config() });
    peer.say(3, Performative::Begin(begin()));
    assert_eq!(peer.hears(), ["begin@1 for 3"]);
    peer.say(4, Performative::Begin(begin()));
    assert_eq!(peer.hears(), ["close amqp:connection:framing-error"]);

    let mut peer = Peer::in_session(Config { handle_max: 3, ..config() });
    peer.say(0, Performative::Attach(sender("a", 3)));
    assert!(matches!(&peer.events()[..], [Event::AttachReceived { .. }]));
    peer.say(0, Performative::Attach(sender("b", 4)));
    assert_eq!(peer.hears(), ["close amqp:connection:framing-error"]);

    // The peer's own bounds: it takes one channel and one handle.
    let narrow = Begin { handle_max: Handle(0), ..begin() };
    let mut peer = Peer::in_session_with(config(), &Open { channel_max: 0, ..open() }, &narrow);
    assert_eq!(peer.engine.begin(), Err(BeginError::Exhausted));
    peer.attach(sender("a", 0));
    peer.hears();
    peer.say(0, Performative::Attach(sender("b", 1)));
    assert_eq!(ended(&mut peer), Condition::ResourceLimitExceeded);
    peer.say(1, Performative::Begin(begin()));
    assert_eq!(peer.hears(), ["close amqp:resource-limit-exceeded"]);
}

#[test]
fn channels_that_are_mapped_or_not() {
    let mut peer = Peer::in_session(config());
    peer.say(0, Performative::Begin(begin()));
    assert_eq!(peer.hears(), ["close amqp:not-allowed"]);
    let mut peer = Peer::in_session(config());
    peer.say(5, Performative::Attach(sender("a", 0)));
    assert_eq!(peer.hears(), ["close amqp:not-allowed"]);
    for remote_channel in [0, 1, 0xFFFF] {
        let mut peer = Peer::in_session(config());
        let answer = Begin { remote_channel: Some(remote_channel), ..begin() };
        peer.say(5, Performative::Begin(answer));
        assert_eq!(peer.hears(), ["close amqp:not-allowed"], "nothing of ours waits for it");
    }
}

#[test]
fn sessions_of_ours_and_their_ends() {
    let mut peer = Peer::in_session(config());
    let session = peer.engine.begin().unwrap();
    assert_eq!(peer.hears(), ["begin@1"]);
    assert!(peer.events().is_empty());
    peer.say(7, Performative::Begin(Begin { remote_channel: Some(1), ..begin() }));
    assert_eq!(session_of(&peer.events()), session);
    peer.engine.end(session, None);
    assert_eq!(peer.hears(), ["end@1"]);
    // What crosses our end is dropped.
    peer.say(7, Performative::Attach(sender("late", 0)));
    peer.say(7, Performative::Flow(credit(9, 1)));
    assert!(peer.hears().is_empty() && peer.events().is_empty());
    peer.say(7, Performative::End(End { error: None }));
    assert_eq!(peer.events(), [Event::Ended { session, error: None }]);
    // Ended before the peer began it.
    let session = peer.engine.begin().unwrap();
    peer.engine.end(session, None);
    assert_eq!(peer.hears(), ["begin@1", "end@1"]);
    peer.say(7, Performative::Begin(Begin { remote_channel: Some(1), ..begin() }));
    assert!(peer.events().is_empty());
    peer.say(7, Performative::End(End { error: Some(error(Condition::NotAllowed)) }));
    assert!(matches!(&peer.events()[..], [Event::Ended { error: Some(_), .. }]));
    assert_eq!(peer.engine.begin().map(|_| peer.hears()), Ok(vec!["begin@1".to_owned()]));
}

#[test]
fn item_14_serial_numbers_wrap_on_the_wire() {
    let late = Begin { next_outgoing_id: 0xFFFF_FFF0, ..begin() };
    let small = Config { incoming_window: 8, ..config() };
    let mut peer = Peer::in_session_with(small, &open(), &late);
    let mut attach = sender("out", 0);
    attach.initial_delivery_count = Some(0xFFFF_FFF0);
    let link = peer.attach(attach);
    peer.engine.grant_credit(link, 100);
    peer.hears();
    let mut settled = 0;
    for n in 0..40u32 {
        peer.transfer(transfer(0, 0xFFFF_FFF0u32.wrapping_add(n)), b"m");
        for event in peer.events() {
            let Event::Transfer { delivery, .. } = event else { panic!("{event:?}") };
            assert_eq!(delivery, DeliveryId(0xFFFF_FFF0u32.wrapping_add(n)));
            peer.engine.settle(link, delivery, Outcome::Accepted);
            settled += 1;
        }
        peer.hears();
    }
    assert_eq!((settled, peer.engine.link_credit(link)), (40, 60));
    peer.engine.grant_credit(link, 100);
    assert_eq!(peer.hears(), ["flow@0 in 24+8 link 0 24+100"]);
    // A range across the wrap.
    peer.transfer(transfer(0, 0x8000_0010), b"m");
    peer.transfer(transfer(0, 0xFFFF_FFFE), b"m");
    peer.transfer(transfer(0, 0xFFFF_FFFF), b"m");
    peer.transfer(transfer(0, 0), b"m");
    for event in peer.events() {
        let Event::Transfer { delivery, .. } = event else { panic!("{event:?}") };
        peer.engine.settle(link, delivery, Outcome::Accepted);
    }
    let heard = peer.hears();
    assert_eq!(
        heard[..2],
        [
            "disposition@0 receiver 2147483664..=2147483664 settled accepted",
            "disposition@0 receiver 4294967294..=0 settled accepted",
        ]
    );
}

#[test]
fn item_15_windows_count_frames_and_credit_counts_deliveries() {
    let small = Open { max_frame_size: 512, ..open() };
    let narrow = Begin { incoming_window: 3, ..begin() };
    let mut peer = Peer::in_session_with(config(), &small, &narrow);
    let link = peer.attach(receiver("in", 0));
    peer.say(0, Performative::Flow(Flow { incoming_window: 3, ..credit(0, 2) }));
    peer.hears();
    peer.events();
    // Five frames of one delivery: three pass, and the rest waits for the window.
    let message = vec![7; 2200];
    peer.engine.send(link, &[&message], false).unwrap();
    assert_eq!(peer.engine.link_credit(link), 1);
    let heard = peer.hears();
    assert_eq!(heard.len(), 3);
    assert!(heard.iter().all(|line| line.starts_with("transfer@0 0 id 0 more ")), "{heard:?}");
    assert!(!peer.engine.can_send(link));
    assert_eq!(peer.engine.send(link, &[b"x"], false), Err(SendError::NotReady));
    let next = Flow { next_incoming_id: Some(3), incoming_window: 3, ..credit(0, 2) };
    peer.say(
        0,
        Performative::Flow(Flow { handle: None, delivery_count: None, link_credit: None, ..next }),
    );
    let heard = peer.hears();
    assert_eq!(heard.len(), 2);
    assert!(heard[1].starts_with("transfer@0 0 id 0 ") && !heard[1].contains("more"));
    assert!(matches!(&peer.events()[..], [Event::SendReady { .. }]));
    assert!(peer.engine.can_send(link));
    peer.engine.send(link, &[b"x"], false).unwrap();
    assert_eq!(peer.hears(), ["transfer@0 0 id 1 1 B"]);
    assert!(!peer.engine.can_send(link));
    assert_eq!(peer.engine.send(link, &[b"x"], false), Err(SendError::NoCredit));
}

#[test]
fn item_16_the_window_is_renewed_without_any_link_flow() {
    let (mut peer, link) = Peer::sending(Config { incoming_window: 8, ..config() }, 100);
    let mut flows = 0;
    for id in 0..64 {
        peer.transfer(Transfer { settled: Some(true), ..transfer(0, id) }, b"m");
        flows += peer.hears().len();
    }
    assert_eq!(peer.events().len(), 64);
    assert!((8..=16).contains(&flows), "{flows} flows");
    assert_eq!(peer.engine.link_credit(link), 36);
}

#[test]
fn item_16_more_frames_than_the_window_end_the_session() {
    let (mut peer, _) = Peer::sending(Config { incoming_window: 8, ..config() }, 100);
    for id in 0..8 {
        peer.transfer(transfer(0, id), b"m");
    }
    assert_eq!(peer.events().len(), 8);
    peer.transfer(transfer(0, 8), b"m");
    assert_eq!(ended(&mut peer), Condition::WindowViolation);
}

#[test]
fn item_16_a_closed_window_lets_flow_disposition_and_detach_through() {
    let shut = Begin { incoming_window: 0, ..begin() };
    let mut peer = Peer::in_session_with(config(), &open(), &shut);
    let out = peer.attach(sender("out", 0));
    peer.engine.grant_credit(out, 10);
    let link = peer.attach(receiver("in", 1));
    peer.say(0, Performative::Flow(Flow { incoming_window: 0, ..credit(1, 5) }));
    peer.transfer(transfer(0, 0), b"m");
    assert_eq!(peer.engine.send(link, &[b"m"], false), Err(SendError::NotReady));
    peer.hears();
    peer.engine.settle(out, DeliveryId(0), Outcome::Accepted);
    peer.engine.detach(link, true, None);
    peer.engine.grant_credit(out, 10);
    assert_eq!(
        peer.hears(),
        [
            "disposition@0 receiver 0..=0 settled accepted",
            "detach@0 1 closed",
            "flow@0 in 1+2048 link 0 1+10",
        ]
    );
}

#[test]
fn item_17_echo_is_answered_once_and_without_echo() {
    let (mut peer, link) = Peer::receiving(config(), 3);
    let session =
        Flow { echo: true, handle: None, delivery_count: None, link_credit: None, ..credit(0, 0) };
    peer.say(0, Performative::Flow(session));
    assert_eq!(peer.hears(), ["flow@0 in 0+2048"]);
    for _ in 0..100 {
        peer.say(0, Performative::Flow(Flow { echo: true, ..credit(0, 3) }));
    }
    assert_eq!(peer.hears(), ["flow@0 in 0+2048 link 0 0+3"]);
    assert!(peer.hears().is_empty());
    assert_eq!(peer.engine.link_credit(link), 3);
}

#[test]
fn item_17_flows_that_make_no_sense_end_the_session() {
    let mut peer = Peer::in_session(config());
    peer.say(0, Performative::Flow(credit(3, 1)));
    assert_eq!(ended(&mut peer), Condition::UnattachedHandle);
    let mut peer = Peer::in_session(config());
    peer.say(0, Performative::Flow(Flow { handle: None, ..credit(0, 1) }));
    assert_eq!(ended(&mut peer), Condition::InvalidField);
    // A peer that has not seen our begin leaves next-incoming-id out.
    let mut peer = Peer::in_session(config());
    peer.attach(receiver("in", 0));
    peer.say(
        0,
        Performative::Flow(Flow { next_incoming_id: None, delivery_count: None, ..credit(0, 4) }),
    );
    assert!(matches!(peer.events()[..], [Event::CreditChanged { credit: 4, .. }]));
}

#[test]
fn item_18_errors_end_what_is_at_fault_and_no_more() {
    let mut peer = Peer::in_session(config());
    let first = peer.attach(sender("a", 0));
    let second = peer.attach(sender("b", 1));
    peer.engine.grant_credit(first, 1);
    peer.engine.grant_credit(second, 1);
    peer.hears();
    peer.transfer(transfer(0, 0), b"m");
    peer.transfer(transfer(0, 1), b"beyond the credit");
    let events = peer.events();
    let [Event::Transfer { .. }, Event::Detached { link, error: Some(error) }] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!((*link, &error.condition), (first, &Condition::TransferLimitExceeded.into()));
    assert_eq!(peer.hears(), ["detach@0 0 closed amqp:link:transfer-limit-exceeded"]);
    // The rest of what the peer had on its way is dropped, and the other link works on.
    peer.transfer(transfer(0, 2), b"m");
    peer.transfer(transfer(1, 3), b"m");
    let events = peer.events();
    let [Event::Transfer { link, delivery: DeliveryId(3), .. }] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(*link, second);
    peer.say(0, detach(0, true));
    peer.engine.settle(first, DeliveryId(0), Outcome::Accepted);
    peer.engine.settle(second, DeliveryId(3), Outcome::Accepted);
    assert_eq!(peer.hears(), ["disposition@0 receiver 3..=3 settled accepted"]);

    // A handle in use ends the session; its channel may be used again, and others live on.
    let mut peer = Peer::in_session(config());
    peer.say(1, Performative::Begin(begin()));
    peer.events();
    peer.hears();
    peer.attach(sender("a", 0));
    peer.hears();
    peer.say(0, Performative::Attach(sender("b", 0)));
    assert_eq!(ended(&mut peer), Condition::HandleInUse);
    peer.transfer(transfer(0, 0), b"dropped");
    peer.say(0, Performative::End(End { error: None }));
    peer.say(0, Performative::Begin(begin()));
    peer.say(1, Performative::Attach(sender("c", 0)));
    assert_eq!(peer.hears(), ["begin@0 for 0"]);
    let events = peer.events();
    assert!(
        matches!(&events[..], [Event::SessionBegun { .. }, Event::AttachReceived { .. }]),
        "{events:?}"
    );
    for frame in [Performative::Flow(credit(9, 1)), detach(9, true)] {
        let mut peer = Peer::in_session(config());
        peer.say(0, frame);
        assert_eq!(ended(&mut peer), Condition::UnattachedHandle);
    }
    let mut peer = Peer::in_session(config());
    peer.transfer(transfer(9, 0), b"m");
    assert_eq!(ended(&mut peer), Condition::UnattachedHandle);
}

/// Sends `count` messages unsettled on one link.
fn sent(peer: &mut Peer, link: amqp::link::LinkId, count: u32) {
    for id in 0..count {
        assert_eq!(peer.engine.send(link, &[b"m"], false), Ok(DeliveryId(id)));
    }
    peer.hears();
}

#[test]
fn item_33_a_range_costs_only_the_deliveries_that_exist() {
    let (mut peer, link) = Peer::receiving(config(), 100);
    sent(&mut peer, link, 10);
    peer.say(0, Performative::Disposition(disposition(Role::Receiver, 3, 5)));
    let ids = |events: Vec<Event>| -> Vec<(u32, Option<Outcome>, bool)> {
        let id = |event| match event {
            Event::Disposition { delivery, outcome, settled, .. } => (delivery.0, outcome, settled),
            other => panic!("{other:?}"),
        };
        events.into_iter().map(id).collect()
    };
    let accepted = |id| (id, Some(Outcome::Accepted), true);
    assert_eq!(ids(peer.events()), [accepted(3), accepted(4), accepted(5)]);
    for _ in 0..1000 {
        peer.say(0, Performative::Disposition(disposition(Role::Receiver, 3, 5)));
    }
    assert!(peer.events().is_empty(), "what is settled is ignored");
    peer.say(0, Performative::Disposition(disposition(Role::Receiver, 0, u32::MAX)));
    assert_eq!(ids(peer.events()), [0, 1, 2, 6, 7, 8, 9].map(accepted));
    // `last` absent is `first`; the other direction has other deliveries.
    sent_from(&mut peer, link, 10);
    let mut one = disposition(Role::Receiver, 10, 10);
    one.last = None;
    peer.say(0, Performative::Disposition(one));
    assert_eq!(ids(peer.events()), [accepted(10)]);
    peer.say(0, Performative::Disposition(disposition(Role::Sender, 0, u32::MAX)));
    assert!(peer.events().is_empty());
}

fn sent_from(peer: &mut Peer, link: amqp::link::LinkId, first: u32) {
    for id in first..first + 2 {
        assert_eq!(peer.engine.send(link, &[b"m"], false), Ok(DeliveryId(id)));
    }
}

#[test]
fn item_33_received_settles_nothing_and_the_first_outcome_counts() {
    let (mut peer, link) = Peer::receiving(config(), 100);
    sent(&mut peer, link, 2);
    let say = |peer: &mut Peer, state, settled| {
        let disposition = Disposition { state, settled, ..disposition(Role::Receiver, 0, 1) };
        peer.say(0, Performative::Disposition(disposition));
        peer.events()
    };
    let received = DeliveryState::Received(Received { section_number: 0, section_offset: 9 });
    assert!(say(&mut peer, Some(received), false).is_empty());
    let events = say(&mut peer, Some(DeliveryState::Released), false);
    assert!(
        matches!(
            &events[..],
            [
                Event::Disposition { outcome: Some(Outcome::Released), settled: false, .. },
                Event::Disposition { outcome: Some(Outcome::Released), settled: false, .. }
            ]
        ),
        "{events:?}"
    );
    for _ in 0..100 {
        assert!(say(&mut peer, Some(DeliveryState::Accepted), false).is_empty());
    }
    peer.engine.settle_outgoing(link, DeliveryId(0));
    peer.engine.settle_outgoing(link, DeliveryId(0));
    assert_eq!(peer.hears(), ["disposition@0 sender 0..=0 settled"]);
    let events = say(&mut peer, None, true);
    assert_eq!(
        events,
        [Event::Disposition { link, delivery: DeliveryId(1), outcome: None, settled: true }]
    );
}

#[test]
fn item_34_outcomes_come_through_whole() {
    let (mut peer, link) = Peer::receiving(config(), 100);
    sent(&mut peer, link, 3);
    let states = [
        DeliveryState::Rejected(Rejected { error: Some(error(Condition::InvalidField)) }),
        DeliveryState::Modified(Modified {
            delivery_failed: Some(true),
            undeliverable_here: None,
            message_annotations: Some(amqp::codec::Map::EMPTY),
        }),
        DeliveryState::Rejected(Rejected { error: None }),
    ];
    for (id, state) in (0..).zip(states) {
        let one = Disposition { state: Some(state), ..disposition(Role::Receiver, id, id) };
        peer.say(0, Performative::Disposition(one));
    }
    let outcomes: Vec<Outcome> = peer
        .events()
        .into_iter()
        .map(|event| match event {
            Event::Disposition { outcome: Some(outcome), .. } => outcome,
            other => panic!("{other:?}"),
        })
        .collect();
    let [Outcome::Rejected(Some(error)), modified, Outcome::Rejected(None)] = &outcomes[..] else {
        panic!("{outcomes:?}");
    };
    assert_eq!(error.condition, Condition::InvalidField);
    assert_eq!(
        *modified,
        Outcome::Modified {
            delivery_failed: true,
            undeliverable_here: false,
            message_annotations: Some([0xC1, 1, 0].into()),
        }
    );
    // And back out.
    let (mut peer, link) = Peer::sending(config(), 10);
    for id in 0..4 {
        peer.transfer(transfer(0, id), b"m");
    }
    let why = Error::new(Condition::InternalError, "x".repeat(10_000));
    peer.engine.settle(link, DeliveryId(0), Outcome::Rejected(Some(why.into())));
    peer.engine.settle(link, DeliveryId(1), modified.clone());
    peer.engine.settle(link, DeliveryId(2), Outcome::Released);
    peer.engine.settle(link, DeliveryId(3), Outcome::Released);
    assert_eq!(
        peer.hears(),
        [
            "disposition@0 receiver 0..=0 settled rejected",
            "disposition@0 receiver 1..=1 settled modified",
            "disposition@0 receiver 2..=3 settled released",
        ]
    );
}

#[test]
fn item_46_transactional_states_are_refused() {
    let (mut peer, link) = Peer::receiving(config(), 100);
    sent(&mut peer, link, 1);
    let state =
        DeliveryState::TransactionalState(TransactionalState { txn_id: b"t", outcome: None });
    let one = Disposition { state: Some(state), ..disposition(Role::Receiver, 0, 0) };
    peer.say(0, Performative::Disposition(one));
    assert_eq!(ended(&mut peer), Condition::NotImplemented);
}

#[test]
fn settlements_come_before_the_answers_that_confirm_them() {
    let (mut peer, link) = Peer::sending(config(), 10);
    for id in 0..3 {
        peer.transfer(transfer(0, id), b"m");
    }
    peer.say(0, detach(0, true));
    let events = peer.events();
    assert!(matches!(events[3], Event::DetachReceived { closed: true, .. }));
    peer.engine.settle(link, DeliveryId(0), Outcome::Accepted);
    peer.engine.settle(link, DeliveryId(1), Outcome::Accepted);
    peer.engine.detach(link, true, None);
    peer.engine.settle(link, DeliveryId(2), Outcome::Accepted);
    assert_eq!(
        peer.hears(),
        ["disposition@0 receiver 0..=1 settled accepted", "detach@0 0 closed",]
    );
    // The same for end and close.
    for close in [false, true] {
        let (mut peer, link) = Peer::sending(config(), 10);
        peer.transfer(transfer(0, 0), b"m");
        let session = peer.engine.link_session(link).unwrap();
        let (last, answer) = if close {
            (Performative::Close(amqp::performative::Close { error: None }), "close")
        } else {
            (Performative::End(End { error: None }), "end@0")
        };
        peer.say(0, last);
        peer.engine.settle(link, DeliveryId(0), Outcome::Accepted);
        if close {
            peer.engine.close(None);
        } else {
            peer.engine.end(session, None);
        }
        let settled = "disposition@0 receiver 0..=0 settled accepted";
        assert_eq!(peer.hears(), [settled, answer]);
    }
}

#[test]
fn unsettled_deliveries_of_both_directions_are_bounded() {
    let bounded = Config {
        unsettled_incoming_max: 10,
        unsettled_outgoing_max: 10,
        incoming_window: 100,
        ..config()
    };
    let (mut peer, link) = Peer::receiving(bounded.clone(), 100);
    sent(&mut peer, link, 10);
    assert_eq!(peer.engine.send(link, &[b"m"], false), Err(SendError::NotReady));
    peer.say(0, Performative::Disposition(disposition(Role::Receiver, 4, 4)));
    assert!(matches!(peer.events()[..], [Event::Disposition { .. }, Event::SendReady { .. }]));
    assert!(peer.engine.can_send(link));

    let (mut peer, link) = Peer::sending(bounded, 100);
    for id in 0..10 {
        peer.transfer(transfer(0, id), b"m");
    }
    assert_eq!(peer.events().len(), 10);
    for id in 0..5 {
        peer.engine.settle(link, DeliveryId(id), Outcome::Accepted);
    }
    let heard = peer.hears();
    assert_eq!(heard, ["disposition@0 receiver 0..=4 settled accepted", "flow@0 in 10+5"]);
    for id in 10..15 {
        peer.transfer(transfer(0, id), b"m");
    }
    assert_eq!(peer.events().len(), 5);
    peer.transfer(transfer(0, 15), b"m");
    assert_eq!(ended(&mut peer), Condition::WindowViolation);
}

#[test]
fn a_state_that_the_spec_does_not_have_ends_its_session_and_no_more() {
    let states: [&[u8]; 3] =
        [b"\x00\xa3\x0facme:state:list\x45", b"\x00\x53\x99\x45", b"\x00\xa1\x01x\x45"];
    for state in states {
        let (mut peer, link) = Peer::receiving(config(), 5);
        sent(&mut peer, link, 1);
        let body = [&b"\x00\x53\x15\xc0"[..], &[state.len() as u8 + 5, 5], b"\x41\x43\x40\x41"];
        let body = [&body.concat()[..], state].concat();
        let size = (body.len() + 8) as u32;
        let frame = [&size.to_be_bytes()[..], &[2, 0, 0, 0], &body].concat();
        peer.say_bytes(&frame);
        assert_eq!(ended(&mut peer), Condition::NotImplemented);
        // Dropped until the peer's end; the connection goes on.
        peer.say_bytes(&frame);
        peer.say(0, Performative::End(End { error: None }));
        peer.say(0, Performative::Begin(begin()));
        assert_eq!(peer.hears(), ["begin@0 for 0"]);
    }
}

#[test]
fn a_link_that_goes_makes_room_for_the_others_and_tells() {
    for steal in [false, true] {
        let bounded = Config { unsettled_outgoing_max: 10, ..config() };
        let (mut peer, first) = Peer::receiving(bounded, 100);
        let second = peer.attach(receiver("other", 1));
        peer.say(0, Performative::Flow(credit(1, 100)));
        sent(&mut peer, first, 10);
        assert_eq!(peer.engine.send(second, &[b"m"], false), Err(SendError::NotReady));
        peer.events();
        if steal {
            peer.say(0, Performative::Attach(receiver("in", 2)));
        } else {
            peer.say(0, detach(0, true));
            peer.engine.detach(first, true, None);
        }
        let events = peer.events();
        let told = events.iter().filter(|e| matches!(e, Event::SendReady { .. })).count();
        assert_eq!(told, 1, "{events:?}");
        assert!(peer.engine.can_send(second));
    }
}

#[test]
fn a_session_that_was_refused_leaves_nothing_behind() {
    let mut peer = Peer::new(config(), Side::Server);
    peer.say_bytes(&ProtocolId::Amqp.header());
    peer.say(0, Performative::Open(open()));
    peer.engine.open();
    for round in 0..1000 {
        peer.say(0, Performative::Begin(begin()));
        peer.say(0, Performative::Attach(receiver("in", 0)));
        peer.say(0, Performative::End(End { error: None }));
        let events = peer.events();
        let ended = events.iter().find_map(|event| match event {
            Event::EndReceived { session, .. } => Some(*session),
            _ => None,
        });
        peer.engine.end(ended.unwrap(), None);
        let heard = peer.hears();
        let heard = if round == 0 { &heard[2..] } else { &heard[..] };
        assert_eq!(heard, ["begin@0 for 0", "end@0"]);
    }
}

#[test]
fn unsettled_deliveries_of_all_sessions_are_bounded_together() {
    let max = Config { unsettled_max: 4096, incoming_window: 2048, ..config() };
    let mut peer = Peer::in_session(max);
    let windows = |peer: &mut Peer| -> Vec<u32> {
        let bytes = peer.hears_bytes();
        let mut rest = &bytes[..];
        let mut windows = Vec::new();
        while let Some((frame, len)) = frame::parse(rest, u32::MAX).unwrap() {
            if let Ok((Performative::Begin(begin), _)) = Performative::decode(frame.body) {
                windows.push(begin.incoming_window);
            }
            rest = &rest[len..];
        }
        windows
    };
    // The first session has half of it already. What a session had is another's when it is gone.
    for _ in 0..3 {
        peer.say(1, Performative::Begin(begin()));
        assert_eq!(windows(&mut peer), [1024]);
        let session = session_of(&peer.events());
        peer.engine.end(session, None);
        peer.say(1, Performative::End(End::default()));
        peer.hears_bytes();
    }
    for channel in 1..=255 {
        peer.say(channel, Performative::Begin(begin()));
    }
    let granted = windows(&mut peer);
    assert_eq!((granted.len(), &granted[..3]), (255, &[1024, 512, 256][..]));
    assert!(granted.iter().all(|window| *window >= 256), "each session goes on");
    assert!(2048 + granted.iter().sum::<u32>() <= 4096 + 255 * 256);
}
