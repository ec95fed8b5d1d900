//! Transfers in both directions.

use amqp::connection::{Config, Event, SendError};
use amqp::definitions::{Condition, DeliveryId, Handle, ReceiverSettleMode, SenderSettleMode};
use amqp::delivery::Outcome;
use amqp::error::Error;
use amqp::frame;
use amqp::link::LinkId;
use amqp::performative::{
    Attach, Begin, DeliveryState, End, Flow, Open, Performative, TransactionalState, Transfer,
};
use bytes::Bytes;

use crate::peer::{Peer, begin, config, credit, detach, open, receiver, sender, transfer};

/// The error by which the link with handle 0 was detached.
fn detached(peer: &mut Peer) -> Condition {
    let events = peer.events();
    let Some(Event::Detached { error: Some(error), .. }) = events.last() else {
        panic!("the link should have been detached: {events:?}");
    };
    let heard = peer.hears();
    let line = format!("detach@0 0 closed {}", error.condition.as_str());
    assert_eq!(heard.last(), Some(&line), "{heard:?}");
    Condition::from_symbol(error.condition.as_str()).unwrap()
}

fn messages(peer: &mut Peer) -> Vec<(u32, bool, Vec<u8>)> {
    let message = |event| match event {
        Event::Transfer { delivery, settled, message, .. } => (delivery.0, settled, message.into()),
        other => panic!("a transfer was expected: {other:?}"),
    };
    peer.events().into_iter().map(message).collect()
}

/// A transfer that says as little as one may that is not the first.
fn rest(more: bool) -> Transfer<'static> {
    Transfer { handle: Handle(0), more, ..Transfer::default() }
}

fn more(id: u32) -> Transfer<'static> {
    Transfer { more: true, ..transfer(0, id) }
}

#[test]
fn item_29_continuations_may_be_short_and_empty() {
    let (mut peer, link) = Peer::sending(config(), 10);
    peer.transfer(more(0), b"one ");
    peer.transfer(rest(true), b"");
    peer.transfer(rest(true), b"two ");
    peer.transfer(Transfer { settled: Some(true), ..rest(false) }, b"three");
    peer.transfer(more(1), b"");
    peer.transfer(more(1), b"x");
    peer.transfer(rest(false), b"");
    assert_eq!(
        messages(&mut peer),
        [(0, true, b"one two three".to_vec()), (1, false, b"x".to_vec())]
    );
    assert_eq!(peer.engine.link_credit(link), 8);
    // The first was settled by its last transfer: there is nothing to answer.
    peer.engine.settle(link, DeliveryId(0), Outcome::Accepted);
    peer.engine.settle(link, DeliveryId(1), Outcome::Accepted);
    assert_eq!(peer.hears(), ["disposition@0 receiver 1..=1 settled accepted"]);
}

#[test]
fn item_29_continuations_that_differ_detach_the_link() {
    let differing = [
        Transfer { delivery_id: Some(DeliveryId(1)), ..rest(false) },
        Transfer { delivery_tag: Some(b"other"), ..rest(false) },
        Transfer { message_format: Some(7), ..rest(false) },
    ];
    for second in differing {
        let (mut peer, _) = Peer::sending(config(), 10);
        peer.transfer(more(0), b"one");
        peer.transfer(second, b"two");
        assert_eq!(detached(&mut peer), Condition::InvalidField);
        peer.transfer(rest(false), b"dropped");
        assert!(peer.events().is_empty());
    }
}

#[test]
fn item_29_deliveries_of_two_links_may_interleave() {
    let mut peer = Peer::in_session(config());
    for handle in [0, 1] {
        let link = peer.attach(sender(["a", "b"][handle as usize], handle));
        peer.engine.grant_credit(link, 10);
    }
    peer.transfer(more(0), b"a");
    peer.transfer(Transfer { more: true, ..transfer(1, 1) }, b"b");
    peer.transfer(rest(false), b"A");
    peer.transfer(Transfer { handle: Handle(1), ..rest(false) }, b"B");
    assert_eq!(messages(&mut peer), [(0, false, b"aA".to_vec()), (1, false, b"bB".to_vec())]);
}

#[test]
fn item_30_an_aborted_delivery_leaves_nothing_behind() {
    let (mut peer, link) = Peer::sending(config(), 3);
    peer.transfer(more(0), b"half");
    // Aborted wins over more.
    peer.transfer(Transfer { aborted: true, ..rest(true) }, b"x");
    peer.transfer(Transfer { aborted: true, ..transfer(0, 1) }, b"whole");
    // Its tag is free, and the next delivery works.
    peer.transfer(Transfer { delivery_id: Some(DeliveryId(2)), ..transfer(0, 0) }, b"good");
    assert_eq!(messages(&mut peer), [(2, false, b"good".to_vec())]);
    // What was aborted never reached the host: its credit is granted again, once.
    assert_eq!(peer.engine.link_credit(link), 2);
    peer.engine.settle(link, DeliveryId(0), Outcome::Accepted);
    assert_eq!(peer.hears(), ["flow@0 in 4+2048 link 0 3+2"]);
    for id in 3..6 {
        peer.transfer(transfer(0, id), b"m");
    }
    assert_eq!(detached(&mut peer), Condition::TransferLimitExceeded);
}

#[test]
fn item_30_a_sender_that_aborts_all_the_time_keeps_its_credit() {
    let (mut peer, link) = Peer::sending(config(), 2);
    for id in 0..100 {
        let aborted = Transfer { aborted: true, ..transfer(0, id) };
        if id % 2 == 0 {
            peer.transfer(aborted, b"whole");
        } else {
            peer.transfer(more(id), b"half");
            peer.transfer(Transfer { aborted: true, ..rest(false) }, b"");
        }
        assert_eq!(peer.hears().len(), 1, "the peer is told");
    }
    peer.transfer(transfer(0, 100), b"good");
    assert_eq!(messages(&mut peer), [(100, false, b"good".to_vec())]);
    // Credit that the host lowered meanwhile stays lowered, and a drain uses it up.
    peer.engine.grant_credit(link, 3);
    peer.transfer(more(101), b"half");
    peer.engine.grant_credit(link, 0);
    peer.transfer(Transfer { aborted: true, ..rest(false) }, b"");
    assert_eq!(peer.engine.link_credit(link), 0);
    peer.engine.grant_credit(link, 3);
    peer.engine.drain(link);
    peer.transfer(Transfer { aborted: true, ..transfer(0, 102) }, b"");
    assert_eq!(peer.engine.link_credit(link), 2);
}

#[test]
fn item_31_the_settle_mode_is_enforced() {
    let cases = [
        (SenderSettleMode::Settled, false, false),
        (SenderSettleMode::Settled, true, true),
        (SenderSettleMode::Unsettled, true, false),
        (SenderSettleMode::Unsettled, false, true),
        (SenderSettleMode::Mixed, true, true),
        (SenderSettleMode::Mixed, false, true),
    ];
    for (snd_settle_mode, settled, allowed) in cases {
        for pieces in [1, 2] {
            let mut peer = Peer::in_session(config());
            let link = peer.attach(Attach { snd_settle_mode, ..sender("out", 0) });
            peer.engine.grant_credit(link, 1);
            peer.hears();
            let settled = Some(settled);
            if pieces == 2 {
                peer.transfer(more(0), b"m");
                peer.transfer(Transfer { settled, ..rest(false) }, b"m");
            } else {
                peer.transfer(Transfer { settled, ..transfer(0, 0) }, b"m");
            }
            if allowed {
                assert_eq!(messages(&mut peer).len(), 1);
            } else {
                assert_eq!(detached(&mut peer), Condition::InvalidField);
            }
        }
        // The same where we send.
        let mut peer = Peer::in_session(config());
        let link = peer.attach(Attach { snd_settle_mode, ..receiver("in", 0) });
        peer.say(0, Performative::Flow(credit(0, 1)));
        let sent = peer.engine.send(link, &[b"m"], settled);
        assert_eq!(sent.is_ok(), allowed);
        assert!(allowed || sent == Err(SendError::SettleMode));
    }
}

#[test]
fn item_31_a_tag_is_unique_while_unsettled_and_at_most_32_bytes() {
    let tagged = |id, tag| Transfer { delivery_tag: Some(tag), ..transfer(0, id) };
    let (mut peer, link) = Peer::sending(config(), 100);
    peer.transfer(tagged(0, &[7; 32]), b"m");
    peer.transfer(tagged(1, b""), b"m");
    peer.engine.settle(link, DeliveryId(0), Outcome::Accepted);
    peer.transfer(tagged(2, &[7; 32]), b"m");
    // Settled ones are forgotten at once.
    for id in 3..6 {
        peer.transfer(Transfer { settled: Some(true), ..tagged(id, b"s") }, b"m");
    }
    assert_eq!(messages(&mut peer).len(), 6);
    peer.transfer(tagged(6, &[7; 32]), b"m");
    assert_eq!(detached(&mut peer), Condition::NotAllowed);

    let (mut peer, _) = Peer::sending(config(), 100);
    peer.transfer(tagged(0, &[7; 33]), b"m");
    assert_eq!(detached(&mut peer), Condition::InvalidField);
    let (mut peer, _) = Peer::sending(config(), 100);
    peer.transfer(Transfer { delivery_tag: None, ..transfer(0, 0) }, b"m");
    assert_eq!(detached(&mut peer), Condition::InvalidField);
    // Two links may use the same tag.
    let (mut peer, _) = Peer::sending(config(), 100);
    let other = peer.attach(sender("other", 1));
    peer.engine.grant_credit(other, 1);
    peer.transfer(tagged(0, b"t"), b"m");
    peer.transfer(Transfer { handle: Handle(1), ..tagged(1, b"t") }, b"m");
    assert_eq!(messages(&mut peer).len(), 2);
}

#[test]
fn delivery_ids_must_be_there_and_rise() {
    for id in [None, Some(DeliveryId(5)), Some(DeliveryId(4)), Some(DeliveryId(0x8000_0005))] {
        let (mut peer, _) = Peer::sending(config(), 100);
        peer.transfer(transfer(0, 5), b"m");
        peer.transfer(
            Transfer { delivery_id: id, delivery_tag: Some(b"x"), ..transfer(0, 0) },
            b"m",
        );
        assert_eq!(peer.hears(), ["end@0 amqp:invalid-field"]);
    }
}

#[test]
fn item_32_second_is_not_for_one_delivery_of_a_first_link() {
    let (mut peer, _) = Peer::sending(config(), 100);
    let second = Some(ReceiverSettleMode::Second);
    peer.transfer(Transfer { rcv_settle_mode: second, ..transfer(0, 0) }, b"m");
    assert_eq!(detached(&mut peer), Condition::InvalidField);
}

#[test]
fn item_46_a_transfer_in_a_transaction_is_refused() {
    let (mut peer, _) = Peer::sending(config(), 100);
    let state =
        DeliveryState::TransactionalState(TransactionalState { txn_id: b"t", outcome: None });
    peer.transfer(Transfer { state: Some(state), ..transfer(0, 0) }, b"m");
    assert_eq!(detached(&mut peer), Condition::NotImplemented);
}

#[test]
fn item_46_a_continuation_in_a_transaction_is_refused() {
    let (mut peer, _) = Peer::sending(config(), 10);
    peer.transfer(more(0), b"m");
    let state =
        DeliveryState::TransactionalState(TransactionalState { txn_id: b"t", outcome: None });
    peer.transfer(Transfer { state: Some(state), ..rest(false) }, b"");
    assert_eq!(detached(&mut peer), Condition::NotImplemented);
}

#[test]
fn a_transfer_from_the_receiving_side_is_refused() {
    let (mut peer, _) = Peer::receiving(config(), 5);
    peer.transfer(transfer(0, 0), b"m");
    assert_eq!(detached(&mut peer), Condition::NotAllowed);
}

#[test]
fn item_28_a_message_above_the_limit_detaches_and_its_rest_is_dropped() {
    let bounded = || Config { max_message_size: 1000, ..config() };
    let (mut peer, _) = Peer::sending(bounded(), 10);
    peer.transfer(transfer(0, 0), &[1; 1000]);
    assert_eq!(messages(&mut peer).len(), 1);
    peer.transfer(transfer(0, 1), &[1; 1001]);
    assert_eq!(detached(&mut peer), Condition::MessageSizeExceeded);

    let (mut peer, _) = Peer::sending(bounded(), 10);
    peer.transfer(more(0), &[1; 600]);
    peer.transfer(rest(true), &[1; 401]);
    assert_eq!(detached(&mut peer), Condition::MessageSizeExceeded);
    for _ in 0..20 {
        peer.transfer(rest(true), &[1; 600]);
    }
    peer.transfer(rest(false), &[1; 600]);
    peer.transfer(transfer(0, 1), b"next");
    assert!(peer.events().is_empty() && peer.hears().is_empty());
    peer.say(0, detach(0, true));
    assert!(peer.events().is_empty());
    let link = peer.attach(sender("out", 0));
    peer.engine.grant_credit(link, 1);
    peer.transfer(transfer(0, 2), b"works");
    assert_eq!(messages(&mut peer), [(2, false, b"works".to_vec())]);
}

#[test]
fn item_48_unfinished_messages_hold_bounded_memory() {
    let mut peer = Peer::in_session(Config { reassembly_bytes_max: 3000, ..config() });
    let names = ["a", "b", "c", "d"];
    for handle in 0..4u32 {
        let link = peer.attach(sender(names[handle as usize], handle));
        peer.engine.grant_credit(link, 10);
    }
    peer.hears();
    for handle in 0..3 {
        peer.transfer(Transfer { more: true, ..transfer(handle, handle) }, &[0; 1000]);
    }
    assert!(peer.events().is_empty());
    peer.transfer(Transfer { more: true, ..transfer(3, 3) }, &[0; 1]);
    assert_eq!(peer.hears(), ["detach@0 3 closed amqp:resource-limit-exceeded"]);
    // What is finished, aborted or detached makes room.
    peer.transfer(Transfer { handle: Handle(0), ..rest(false) }, b"");
    peer.transfer(Transfer { handle: Handle(1), aborted: true, ..rest(false) }, b"");
    peer.say(0, detach(2, true));
    peer.transfer(Transfer { more: true, ..transfer(0, 10) }, &[0; 3000]);
    let events = peer.events();
    assert!(
        matches!(
            &events[..],
            [Event::Detached { .. }, Event::Transfer { .. }, Event::DetachReceived { .. }]
        ),
        "{events:?}"
    );
}

#[test]
fn item_2_frames_fit_the_peers_size_to_the_byte() {
    for max_frame_size in [512, 513, 600, 4096] {
        let frames = Open { max_frame_size, ..open() };
        let mut peer = Peer::in_session_with(config(), &frames, &begin());
        let link = peer.attach(receiver("in", 0));
        peer.say(0, Performative::Flow(credit(0, 10_000)));
        peer.hears();
        let (mut sizes, mut whole) = (Vec::new(), 0);
        for len in (400..700).chain([4000, 4050, 4090, 4100, 20_000]) {
            let message: Vec<u8> = (0..len).map(|n| n as u8).collect();
            let (head, tail) = message.split_at(len / 3);
            peer.engine.send(link, &[head, b"", tail], true).unwrap();
            let bytes = peer.hears_bytes();
            let (mut rest, mut got) = (&bytes[..], Vec::new());
            while !rest.is_empty() {
                let (frame, size) = frame::parse(rest, max_frame_size).unwrap().unwrap();
                let (performative, payload) = Performative::decode(frame.body).unwrap();
                let Performative::Transfer(transfer) = performative else { panic!() };
                got.extend_from_slice(payload);
                rest = &rest[size..];
                assert_eq!(transfer.more, !rest.is_empty());
                sizes.push(size);
                whole += usize::from(!transfer.more && size == max_frame_size as usize);
            }
            assert_eq!(got, message);
        }
        assert_eq!(sizes.iter().max(), Some(&(max_frame_size as usize)));
        assert!(max_frame_size > 700 || whole > 0, "some message should fill a last frame");
    }
}

#[test]
fn a_message_beyond_the_peers_limit_is_not_sent() {
    let mut peer = Peer::in_session(config());
    let link = peer.attach(Attach { max_message_size: Some(10), ..receiver("in", 0) });
    peer.say(0, Performative::Flow(credit(0, 5)));
    peer.hears();
    assert_eq!(peer.engine.send(link, &[&[0; 6], &[0; 5]], true), Err(SendError::TooLarge));
    assert_eq!(peer.engine.send(link, &[&[0; 5], &[0; 5]], true), Ok(DeliveryId(0)));
    assert_eq!(peer.hears(), ["transfer@0 0 id 0 settled 10 B"]);
    peer.events();
    let unlimited = peer.attach(Attach { max_message_size: Some(0), ..receiver("all", 1) });
    peer.say(0, Performative::Flow(credit(1, 5)));
    assert_eq!(peer.engine.send(unlimited, &[&[0; 11]], true), Ok(DeliveryId(1)));
}

/// Two links that we send on, of small frames and with a small buffer.
fn two_links(incoming_window: u32) -> (Peer, LinkId, LinkId) {
    let bounded = Config { transmit_bytes_max: 1000, ..config() };
    let small = Open { max_frame_size: 600, ..open() };
    let begin = Begin { incoming_window, ..begin() };
    let mut peer = Peer::in_session_with(bounded, &small, &begin);
    let links = [peer.attach(receiver("large", 0)), peer.attach(receiver("small", 1))];
    for handle in [0, 1] {
        peer.say(0, Performative::Flow(Flow { incoming_window, ..credit(handle, 100) }));
    }
    peer.hears();
    peer.events();
    (peer, links[0], links[1])
}

#[test]
fn small_messages_of_other_links_pass_a_large_one_that_is_under_way() {
    let (mut peer, large, small) = two_links(2048);
    peer.engine.send(large, &[&[1; 5000]], true).unwrap();
    let mut bytes = Vec::new();
    peer.engine.poll_transmit(&mut bytes);
    assert!(!peer.engine.can_send(large), "one message a link at a time");
    assert_eq!(peer.engine.send(small, &[&[2; 700]], true), Err(SendError::NotReady));
    assert_eq!(peer.engine.send(small, &[b"m"], true), Ok(DeliveryId(1)));
    let heard = peer.hears();
    assert_eq!(heard[0], "transfer@0 1 id 1 settled 1 B", "{heard:?}");
    let mut rest = heard[1..].iter();
    assert!(rest.len() > 2 && rest.all(|line| line.starts_with("transfer@0 0 id 0 ")), "{heard:?}");
    assert!(!heard.last().unwrap().contains("more"));
    assert!(peer.events().iter().any(|event| matches!(event, Event::SendReady { .. })));
    assert_eq!(peer.engine.send(small, &[&[2; 700]], true), Ok(DeliveryId(2)));
}

#[test]
fn the_rest_of_a_large_message_gets_the_last_frame_of_a_window_and_one_of_a_full_buffer() {
    // Two frames are written at once, one when that is taken: of four one is left.
    for (window, passes) in [(3, false), (4, false), (5, true)] {
        let (mut peer, large, small) = two_links(window);
        peer.engine.send(large, &[&[1; 5000]], true).unwrap();
        peer.engine.poll_transmit(&mut Vec::new());
        assert_eq!(peer.engine.can_send(small), passes, "a window of {window}");
    }
    let (mut peer, large, small) = two_links(2048);
    peer.engine.send(large, &[&[1; 5000]], true).unwrap();
    peer.engine.poll_transmit(&mut Vec::new());
    for _ in 0..8 {
        while peer.engine.can_send(small) {
            peer.engine.send(small, &[&[2; 100]], true).unwrap();
        }
        peer.engine.poll_transmit(&mut Vec::new());
    }
    assert!(peer.engine.can_send(large), "small ones without end do not keep it from going on");
}

#[test]
fn what_waits_of_a_shared_message_is_not_copied() {
    let (mut peer, large, _) = two_links(2048);
    let message = Bytes::from((0..5000_u32).flat_map(u32::to_be_bytes).collect::<Vec<u8>>());
    peer.engine.send_shared(large, b"head", (&message, 7), true).unwrap();
    assert!(!message.is_unique(), "the rest is held");
    let bytes = peer.hears_bytes();
    assert!(message.is_unique());
    let (mut rest, mut heard) = (&bytes[..], Vec::new());
    while let Some((frame, length)) = frame::parse(rest, u32::MAX).unwrap() {
        let (_, payload) = Performative::decode(frame.body).unwrap();
        heard.extend_from_slice(payload);
        rest = &rest[length..];
    }
    assert_eq!(heard, [b"head", &message[7..]].concat());
}

#[test]
fn a_full_buffer_holds_messages_back_and_tells_when_it_is_taken() {
    let bounded = Config { transmit_bytes_max: 1000, ..config() };
    let small = Open { max_frame_size: 600, ..open() };
    let mut peer = Peer::in_session_with(bounded, &small, &begin());
    let link = peer.attach(receiver("in", 0));
    peer.say(0, Performative::Flow(credit(0, 100)));
    peer.hears();
    peer.events();
    peer.engine.send(link, &[&[1; 5000]], true).unwrap();
    assert!(peer.engine.transmit_bytes_pending() < 1700);
    assert!(!peer.engine.can_send(link));
    assert!(peer.engine.wants_read(), "messages alone must not stop the reading");
    assert_eq!(peer.engine.send(link, &[b"m"], true), Err(SendError::NotReady));
    let heard = peer.hears();
    assert_eq!(heard.len(), 9, "{heard:?}");
    assert!(!heard[8].contains("more"));
    let events = peer.events();
    assert!(!events.is_empty() && events.iter().all(|e| matches!(e, Event::SendReady { .. })));
    assert!(peer.engine.can_send(link));
}

#[test]
fn the_rest_of_a_message_of_an_ended_session_waits_for_nothing() {
    let bounded = Config { transmit_bytes_max: 1000, ..config() };
    let small = Open { max_frame_size: 600, ..open() };
    let mut peer = Peer::in_session_with(bounded, &small, &begin());
    let link = peer.attach(receiver("in", 0));
    peer.say(0, Performative::Flow(credit(0, 100)));
    peer.hears();
    peer.engine.send(link, &[&[1; 5000]], true).unwrap();
    // The buffer's bound has cut the message; before its rest is written the peer ends.
    peer.say(0, Performative::End(End { error: None }));
    peer.hears();
    assert!(!peer.engine.wants_transmit(), "a host that writes until nothing is left would spin");
    let ended = peer.events().into_iter().find_map(|event| match event {
        Event::EndReceived { session, .. } => Some(session),
        _ => None,
    });
    peer.engine.end(ended.unwrap(), None);
    assert_eq!(peer.hears(), ["end@0"]);
}

#[test]
fn the_rest_of_a_message_does_not_follow_its_links_detach() {
    let small = Open { max_frame_size: 512, ..open() };
    let narrow = Begin { incoming_window: 1, ..begin() };
    for ours in [true, false] {
        let mut peer = Peer::in_session_with(config(), &small, &narrow);
        let link = peer.attach(receiver("in", 0));
        let other = peer.attach(receiver("other", 1));
        let one = |handle, seen, window| {
            let mut flow = credit(handle, 5);
            flow.next_incoming_id = Some(seen);
            flow.incoming_window = window;
            Performative::Flow(flow)
        };
        peer.say(0, one(0, 0, 1));
        peer.say(0, one(1, 0, 1));
        peer.engine.send(link, &[&[1; 2000]], false).unwrap();
        peer.hears();
        if ours {
            peer.engine.detach(link, true, None);
            peer.say(0, detach(0, true));
        } else {
            peer.say(0, detach(0, true));
            peer.engine.detach(link, true, None);
        }
        peer.say(0, one(1, 1, 10));
        assert_eq!(peer.hears(), ["detach@0 0 closed"]);
        // The ids on the wire go on without a gap.
        assert_eq!(peer.engine.send(other, &[b"m"], false), Ok(DeliveryId(1)));
        assert_eq!(peer.hears(), ["transfer@0 1 id 1 1 B"]);
    }
}

#[test]
fn a_message_given_in_parts_is_one_delivery_that_small_ones_pass_and_may_be_given_up() {
    let small = Open { max_frame_size: 600, ..open() };
    let mut peer = Peer::in_session_with(config(), &small, &begin());
    let link = peer.attach(receiver("in", 0));
    let other = peer.attach(receiver("other", 1));
    peer.say(0, Performative::Flow(credit(0, 100)));
    peer.say(0, Performative::Flow(credit(1, 100)));
    peer.hears();
    peer.events();
    let begun = peer.engine.send_begin(link, &[&[1; 10], &[2; 690]], 1000, false);
    assert_eq!(begun, Ok(DeliveryId(0)));
    assert_eq!(peer.events(), [Event::PartWanted { link }]);
    let heard = peer.hears();
    assert!(heard.len() == 2 && heard.iter().all(|frame| frame.contains("more")), "{heard:?}");
    // It is the one of its session; what fits a frame passes.
    assert_eq!(peer.engine.send(link, &[b"m"], true), Err(SendError::NotReady));
    assert_eq!(peer.engine.send(other, &[&[0; 900]], true), Err(SendError::NotReady));
    assert_eq!(peer.engine.send(other, &[b"m"], true), Ok(DeliveryId(1)));
    assert!(!peer.engine.send_part(other, Bytes::from_static(b"part"), true));
    assert!(peer.engine.send_part(link, Bytes::from(vec![3; 300]), true));
    let heard = peer.hears();
    assert!(heard.len() == 2 && !heard[1].contains("more"), "{heard:?}");
    assert!(!peer.engine.send_part(link, Bytes::from_static(b"part"), true), "it is over");
    peer.events();
    // Too large for this peer by what is announced.
    let bounded = peer.attach(Attach { max_message_size: Some(99), ..receiver("bounded", 2) });
    peer.say(0, Performative::Flow(credit(2, 1)));
    let sent = peer.engine.send_begin(bounded, &[b"m"], 100, false);
    assert_eq!(sent, Err(SendError::TooLarge));
    // One that is given up ends with a frame that says so, and the session goes on.
    assert!(peer.engine.send_begin(link, &[b"begin"], 1000, false).is_ok());
    peer.hears();
    peer.events();
    peer.engine.send_abort(link);
    let heard = peer.hears();
    assert!(heard.len() == 1 && heard[0].contains("aborted"), "{heard:?}");
    assert!(peer.engine.send(other, &[&[0; 900]], true).is_ok());
}

#[test]
fn item_35_what_a_link_leaves_unsettled_is_forgotten_with_it() {
    let (mut peer, link) = Peer::receiving(config(), 10);
    for _ in 0..3 {
        peer.engine.send(link, &[b"m"], false).unwrap();
    }
    peer.hears();
    peer.say(0, detach(0, false));
    peer.engine.detach(link, false, None);
    peer.events();
    let all = crate::peer::disposition(amqp::definitions::Role::Receiver, 0, u32::MAX);
    peer.say(0, Performative::Disposition(all));
    assert!(peer.events().is_empty());
    // Before the host has answered, the peer may still settle.
    let (mut peer, link) = Peer::receiving(config(), 10);
    peer.engine.send(link, &[b"m"], false).unwrap();
    peer.hears();
    peer.say(0, detach(0, false));
    peer.say(0, Performative::Disposition(all));
    assert!(matches!(
        peer.events()[..],
        [Event::DetachReceived { .. }, Event::Disposition { settled: true, .. }]
    ));
}

#[test]
fn a_sender_that_settles_by_itself_frees_the_tag() {
    let (mut peer, link) = Peer::sending(config(), 10);
    peer.transfer(transfer(0, 0), b"m");
    let settled = crate::peer::disposition(amqp::definitions::Role::Sender, 0, 0);
    peer.say(0, Performative::Disposition(settled));
    peer.transfer(Transfer { delivery_id: Some(DeliveryId(1)), ..transfer(0, 0) }, b"m");
    assert_eq!(messages(&mut peer).len(), 2);
    peer.engine.settle(link, DeliveryId(0), Outcome::Accepted);
    assert!(peer.hears().is_empty(), "nothing is left to answer");
}

#[test]
fn reading_stops_where_answers_pile_up_unread() {
    let bounded = Config { transmit_bytes_max: 1000, max_frame_size: 512, ..config() };
    let mut peer = Peer::in_session(bounded);
    let mut rounds = 0;
    while peer.engine.wants_read() {
        peer.say(0, Performative::Attach(sender("out", 0)));
        let link = peer.attached();
        peer.accept(link);
        peer.say(0, detach(0, true));
        peer.events();
        peer.engine.detach(link, true, None);
        rounds += 1;
        assert!(rounds < 200, "a peer that never reads must be stopped");
    }
    assert!(peer.engine.transmit_bytes_pending() > 2000);
    peer.hears();
    assert!(peer.engine.wants_read());
}

#[test]
fn item_36_batchable_never_holds_an_answer_back() {
    let (mut peer, link) = Peer::sending(config(), 10);
    for id in 0..2 {
        peer.transfer(Transfer { batchable: true, ..transfer(0, id) }, b"m");
        peer.engine.settle(link, DeliveryId(id), Outcome::Accepted);
        let answer = format!("disposition@0 receiver {id}..={id} settled accepted");
        assert_eq!(peer.hears(), [answer], "also when nothing follows");
    }
}

/// Parts of messages and what ended them: the delivery, the bytes, and whether they are the last.
fn parts(peer: &mut Peer) -> Vec<(u32, Vec<u8>, bool)> {
    let part = |event| match event {
        Event::Part { delivery, part, is_last, .. } => (delivery.0, part.into(), is_last),
        Event::Transfer { delivery, message, .. } => (delivery.0, message.into(), true),
        Event::Aborted { .. } => (u32::MAX, Vec::new(), true),
        other => panic!("a part was expected: {other:?}"),
    };
    peer.events().into_iter().map(part).collect()
}

#[test]
fn a_message_longer_than_is_gathered_comes_in_parts_and_one_that_is_not_comes_whole() {
    let in_parts = || Config {
        gather_bytes_max: 10,
        part_bytes: 4,
        max_message_size: 40,
        reassembly_bytes_max: 1000,
        ..config()
    };
    let (mut peer, link) = Peer::sending(in_parts(), 10);
    peer.transfer(more(0), b"0123456");
    peer.transfer(rest(true), b"789");
    assert_eq!((parts(&mut peer), peer.engine.unfinished_bytes()), (vec![], 10));
    peer.transfer(rest(false), b"");
    assert_eq!(parts(&mut peer), [(0, b"0123456789".to_vec(), true)]);
    peer.transfer(more(1), b"0123456789a");
    let given = [(1, b"0123".to_vec(), false), (1, b"4567".to_vec(), false)];
    assert_eq!((parts(&mut peer), peer.engine.unfinished_bytes()), (given.to_vec(), 3));
    peer.transfer(rest(true), b"b");
    assert!(parts(&mut peer).is_empty());
    peer.transfer(rest(true), b"");
    peer.transfer(rest(false), b"");
    assert_eq!(parts(&mut peer), [(1, b"89ab".to_vec(), true)]);
    peer.engine.settle(link, DeliveryId(1), Outcome::Accepted);
    assert_eq!(peer.engine.unfinished_bytes(), 0);
    // Given up by its sender: the host is told if it has something of it.
    for (id, bytes, told) in [(2, &b"0123456789a"[..], 3), (3, b"0123", 0)] {
        peer.transfer(more(id), bytes);
        peer.transfer(Transfer { aborted: true, ..rest(false) }, b"");
        let parts = parts(&mut peer);
        assert_eq!(parts.len(), told, "{parts:?}");
        assert_eq!((peer.engine.unfinished_bytes(), peer.engine.link_credit(link)), (0, 8));
    }
    // What the host has counts too.
    peer.transfer(more(4), &[1; 30]);
    assert_eq!(parts(&mut peer).len(), 7);
    peer.transfer(rest(true), &[1; 11]);
    assert_eq!(detached(&mut peer), Condition::MessageSizeExceeded);
}

#[test]
fn where_memory_is_short_parts_are_given_early_but_never_before_the_head_is_there() {
    let head = b"\x00\x53\x73\xc0\x04\x01\xa1\x01i\x00\x53\x75\xb0\x00\x00\x00\x40";
    let config = Config { gather_bytes_max: 1 << 20, reassembly_bytes_max: 9_000, ..config() };
    let (mut peer, _) = Peer::sending(config, 10);
    peer.transfer(more(0), &head[..8]);
    peer.engine.give_parts(1);
    assert!(parts(&mut peer).is_empty());
    peer.transfer(rest(true), &head[8..]);
    peer.engine.give_parts(100);
    assert!(parts(&mut peer).is_empty(), "so little is not worth it");
    peer.engine.give_parts(10);
    let given = parts(&mut peer);
    assert_eq!(given, [(0, head[..head.len() - 1].to_vec(), false)]);
    assert_eq!(peer.engine.unfinished_bytes(), 1);
    // A connection that holds too much gives what it can, before it is too much.
    peer.transfer(rest(true), &[0; 9_000]);
    assert_eq!((parts(&mut peer).len(), peer.engine.unfinished_bytes()), (1, 1));
    peer.transfer(rest(false), &[0; 3]);
    assert_eq!(parts(&mut peer), [(0, vec![0; 4], true)]);
    peer.transfer(more(1), &[0; 9_001]);
    assert_eq!(detached(&mut peer), Condition::ResourceLimitExceeded);
}

/// A head that takes long to look over, and is never whole: annotations with many keys, then
/// application properties that are longer than what may come of them.
fn endless_head() -> Vec<u8> {
    let key = |key: u16| [0xA3, 2, (key / 128) as u8, (key % 128) as u8, 0x40];
    let keys: Vec<u8> = (0..12_000).flat_map(key).collect();
    let count = 2 * keys.len() as u32 / 5;
    let mut head = b"\x00\x53\x72\xd1".to_vec();
    head.extend((keys.len() as u32 + 4).to_be_bytes());
    head.extend(count.to_be_bytes());
    head.extend(keys);
    head.extend(b"\x00\x53\x74\xd1\x00\x01\x00\x00\x00\x00\x00\x02");
    head.resize(66_000, 0xA1);
    head
}

#[test]
fn a_head_that_is_never_whole_is_not_looked_for_again_and_again() {
    const HEADS: u32 = 8;
    const MORE: u32 = 60;
    let head = endless_head();
    let full = Config {
        gather_bytes_max: 256 << 10,
        reassembly_bytes_max: u64::from(HEADS) * head.len() as u64,
        ..config()
    };
    let mut peer = Peer::in_session(full);
    for handle in 0..HEADS + MORE {
        let name = Box::leak(format!("out-{handle}").into_boxed_str());
        let link = peer.attach(sender(name, handle));
        peer.engine.grant_credit(link, 10);
    }
    let took = |peer: &mut Peer, handles: std::ops::Range<u32>, payload: &[u8]| {
        let start = crate::peer::start();
        for handle in handles {
            let first = Transfer { more: true, ..transfer(handle, handle) };
            peer.transfer(first, payload);
        }
        start.elapsed()
    };
    // Each is looked over as it comes, which nobody is spared.
    let filled = took(&mut peer, 0..HEADS, &head);
    assert!(parts(&mut peer).is_empty());
    // There is no room, and nothing that could make any: who begins a message is refused at once.
    let refused = took(&mut peer, HEADS..HEADS + MORE, &[0; 100]);
    let events = peer.events();
    assert_eq!(events.len(), MORE as usize, "{events:?}");
    assert!(events.iter().all(|event| matches!(event, Event::Detached { error: Some(_), .. })));
    assert!(refused < filled, "{MORE} refusals took {refused:?}, {HEADS} heads {filled:?}");
}

#[test]
fn what_waits_for_a_peer_to_read_counts_against_it() {
    let mut peer = Peer::in_session(config());
    let mut rounds = 0;
    while peer.engine.unread_bytes() == 0 {
        peer.say(0, Performative::Attach(sender("out", 0)));
        let link = peer.attached();
        peer.engine.refuse_link(link, Error::new(Condition::NotFound, "no".repeat(500)));
        peer.say(0, detach(0, true));
        peer.events();
        rounds += 1;
        assert!(rounds < 200, "a peer that reads nothing is owed nothing?");
        assert!(peer.engine.wants_read(), "it is far from what stops us");
    }
    let owed = peer.engine.unread_bytes();
    assert!((64 << 10..66 << 10).contains(&owed), "{owed}");
    assert_eq!((peer.engine.unfinished_bytes(), peer.engine.unfinished_since()), (owed, None));
    peer.hears();
    assert_eq!((peer.engine.unfinished_bytes(), peer.engine.unread_bytes()), (0, 0));
}

#[test]
fn who_is_expelled_for_what_it_does_not_read_leaves_nothing_behind() {
    let mut peer = Peer::in_session(config());
    while peer.engine.unread_bytes() == 0 {
        peer.say(0, Performative::Attach(sender("out", 0)));
        let link = peer.attached();
        peer.engine.refuse_link(link, Error::new(Condition::NotFound, "no".repeat(500)));
        peer.say(0, detach(0, true));
    }
    // Who reads gets all that it is owed, and the reason last.
    let owed = peer.engine.transmit_bytes_pending();
    peer.engine.expel(Error::new(Condition::ResourceLimitExceeded, "too much"), false);
    assert!(peer.engine.transmit_bytes_pending() > owed);
    peer.engine.expel(Error::new(Condition::ResourceLimitExceeded, "too much"), true);
    assert_eq!(peer.engine.transmit_bytes_pending(), 0);
    assert!(peer.engine.is_drained());
}
