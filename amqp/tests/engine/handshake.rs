//! Headers, SASL, open, close and the timers.

use std::time::Duration;

use amqp::codec::Symbol;
use amqp::connection::{CloseReason, Config, Event, Password, Sasl, SaslCode, Side};
use amqp::definitions::Condition;
use amqp::error::Error;
use amqp::frame::{self, ProtocolId};
use amqp::performative::{Close, Open, Performative};
use amqp::sasl::{
    Mechanism, Mechanisms, SaslBody, SaslInit, SaslMechanisms, SaslOutcome, SaslResponse,
};

use crate::peer::{Peer, begin, config, encode, error, open};

const PLAIN_TOO: Mechanisms = Mechanisms::ANONYMOUS.with(Mechanism::Plain, true);

const SERVER_SASL: Sasl = Sasl::Server { mechanisms: PLAIN_TOO, bare: false };

fn secured() -> Peer {
    let mut peer = Peer::new(Config { sasl: SERVER_SASL, ..config() }, Side::Server);
    peer.say_bytes(&ProtocolId::Sasl.header());
    assert_eq!(peer.hears(), ["header 3", "mechanisms PLAIN ANONYMOUS"]);
    peer
}

fn init(mechanism: &'static str, initial_response: Option<&'static [u8]>) -> SaslBody<'static> {
    SaslBody::Init(SaslInit { mechanism: Symbol::new(mechanism), initial_response, hostname: None })
}

fn closed_reason(peer: &mut Peer) -> CloseReason {
    let mut events = peer.events();
    match events.pop() {
        Some(Event::Closed { reason }) => reason,
        other => panic!("the connection should be over: {other:?}"),
    }
}

fn violation(peer: &mut Peer) -> Condition {
    match closed_reason(peer) {
        CloseReason::Violation(error) => {
            Condition::from_symbol(error.condition.as_str()).expect("a condition of the spec")
        }
        other => panic!("a violation was expected: {other:?}"),
    }
}

#[test]
fn item_1_frames_that_cannot_be_are_framing_errors() {
    let frames: [&[u8]; 5] = [
        &[0, 0, 0, 7, 2, 0, 0, 0],
        &[0, 0, 0, 8, 1, 0, 0, 0],
        &[0, 0, 0, 8, 3, 0, 0, 0],
        &[0xFF, 0xFF, 0xFF, 0xFF, 2, 0, 0, 0],
        &[0, 0, 0, 8, 2, 9, 0, 0],
    ];
    for frame in frames {
        let mut peer = Peer::in_session(config());
        peer.say_bytes(frame);
        assert_eq!(peer.hears(), ["close amqp:connection:framing-error"]);
        assert_eq!(violation(&mut peer), Condition::FramingError);
    }
    // An extended header is legal: doff 3, four bytes to skip.
    let mut peer = Peer::in_session(config());
    peer.say_bytes(&[0, 0, 0, 12, 3, 0, 0, 0, 1, 2, 3, 4]);
    assert!(peer.hears().is_empty() && peer.events().is_empty());
}

#[test]
fn item_2_our_own_frame_size_is_stated_and_kept() {
    let mut peer = Peer::in_session(Config { max_frame_size: 512, ..config() });
    let mut frame = vec![0, 0, 2, 1, 2, 0, 0, 0];
    frame.resize(513, 0);
    peer.say_bytes(&frame);
    assert_eq!(peer.hears(), ["close amqp:connection:framing-error"]);

    let mut peer = Peer::new(config(), Side::Server);
    peer.say_bytes(&ProtocolId::Amqp.header());
    peer.say(0, Performative::Open(Open { max_frame_size: 511, ..open() }));
    assert_eq!(peer.hears(), ["header 0", "open", "close amqp:invalid-field"]);
}

#[test]
fn item_3_empty_frames_are_heartbeats_but_not_in_sasl() {
    let mut peer = Peer::in_session(config());
    for channel in [0, 7, 0xFFFF] {
        let mut empty = vec![0, 0, 0, 8, 2, 0];
        empty.extend_from_slice(&u16::to_be_bytes(channel));
        peer.say_bytes(&empty);
    }
    assert!(peer.hears().is_empty() && peer.events().is_empty());

    let mut peer = secured();
    peer.say_bytes(&[0, 0, 0, 8, 2, 1, 0, 0]);
    assert_eq!(violation(&mut peer), Condition::DecodeError);
    assert!(peer.engine.is_finished());
}

#[test]
fn item_4_a_foreign_header_is_answered_with_the_one_that_fits() {
    let foreign: [&[u8]; 5] = [
        b"AMQP\x00\x00\x09\x01",
        b"AMQP\x02\x01\x00\x00",
        b"GET / HTTP/1.1",
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"AMQP\x00\x01\x00\x00",
    ];
    for header in foreign {
        let mut peer = Peer::new(Config { sasl: SERVER_SASL, ..config() }, Side::Server);
        peer.say_bytes(header);
        assert_eq!(peer.hears(), ["header 3"]);
        assert_eq!(closed_reason(&mut peer), CloseReason::HeaderMismatch);
        assert!(peer.engine.is_finished());
    }
    let mut peer = Peer::new(config(), Side::Server);
    peer.say_bytes(&ProtocolId::Sasl.header());
    assert_eq!(peer.hears(), ["header 0"]);
    assert_eq!(closed_reason(&mut peer), CloseReason::HeaderMismatch);
}

#[test]
fn item_4_a_bare_header_is_taken_where_it_is_allowed() {
    let sasl = Sasl::Server { mechanisms: Mechanisms::ANONYMOUS, bare: true };
    let mut peer = Peer::new(Config { sasl, ..config() }, Side::Server);
    peer.say_bytes(&ProtocolId::Amqp.header());
    assert_eq!(peer.hears(), ["header 0"]);
    let mut peer = Peer::new(
        Config { sasl: Sasl::Server { mechanisms: Mechanisms::ANONYMOUS, bare: true }, ..config() },
        Side::Server,
    );
    peer.say_bytes(&ProtocolId::Sasl.header());
    assert_eq!(peer.hears(), ["header 3", "mechanisms ANONYMOUS"]);
}

/// Everything that a client can say without an answer, in one packet.
fn pipelined() -> Vec<u8> {
    let mut packet = ProtocolId::Sasl.header().to_vec();
    frame::write_sasl(&mut packet, &init("PLAIN", Some(b"\0ann\0secret")));
    packet.extend_from_slice(&ProtocolId::Amqp.header());
    packet.extend_from_slice(&encode(0, &Performative::Open(open())));
    packet.extend_from_slice(&encode(0, &Performative::Begin(begin())));
    let attach = crate::peer::receiver("in", 0);
    packet.extend_from_slice(&encode(0, &Performative::Attach(attach)));
    packet.extend_from_slice(&encode(0, &Performative::Flow(crate::peer::credit(0, 5))));
    packet
}

#[test]
fn item_5_all_may_come_in_one_packet_or_byte_by_byte() {
    for piece in [1, 2, 3, 7, 64, 1000] {
        let mut peer = Peer::new(Config { sasl: SERVER_SASL, ..config() }, Side::Server);
        for bytes in pipelined().chunks(piece) {
            peer.say_bytes(bytes);
        }
        let events = peer.events();
        let [Event::SaslPlain(plain)] = &events[..] else { panic!("{events:?}") };
        assert_eq!((&plain.user[..], plain.password.reveal()), ("ann", &b"secret"[..]));
        assert!(!peer.engine.wants_read());
        peer.engine.sasl_outcome(SaslCode::Ok);
        assert!(matches!(&peer.events()[..], [Event::Opened(_)]));
        peer.engine.open();
        let events = peer.events();
        let [Event::SessionBegun { .. }, Event::AttachReceived { link, .. }] = &events[..] else {
            panic!("{events:?}");
        };
        assert!(peer.engine.wants_read());
        peer.accept(*link);
        assert!(matches!(peer.events()[..], [Event::CreditChanged { credit: 5, .. }]));
        peer.engine.send(*link, &[b"m"], true).unwrap();
        assert_eq!(
            peer.hears(),
            [
                "header 3",
                "mechanisms PLAIN ANONYMOUS",
                "outcome ok",
                "header 0",
                "open",
                "begin@0 for 0",
                "attach@0 0 in sender mixed first q>q",
                "transfer@0 0 id 0 settled 1 B",
            ]
        );
    }
}

#[test]
fn item_6_after_a_failed_outcome_nothing_more_is_taken() {
    for code in [SaslCode::Auth, SaslCode::Sys, SaslCode::SysPerm, SaslCode::SysTemp] {
        let mut peer = Peer::new(Config { sasl: SERVER_SASL, ..config() }, Side::Server);
        peer.say_bytes(&pipelined());
        peer.events();
        peer.engine.sasl_outcome(code);
        let outcome = format!("outcome {}", code.name());
        assert_eq!(peer.hears()[2..], [outcome]);
        assert_eq!(closed_reason(&mut peer), CloseReason::SaslFailed(code));
        peer.say_bytes(&ProtocolId::Amqp.header());
        peer.say(0, Performative::Open(open()));
        peer.engine.sasl_outcome(SaslCode::Ok);
        peer.engine.open();
        assert!(peer.hears().is_empty() && peer.events().is_empty());
        assert!(peer.engine.is_finished());
    }
}

/// A server that offers what is not a password in the clear.
fn offering(mechanisms: Mechanisms) -> Peer {
    let sasl = Sasl::Server { mechanisms, bare: false };
    let mut peer = Peer::new(Config { sasl, ..config() }, Side::Server);
    peer.say_bytes(&ProtocolId::Sasl.header());
    peer
}

#[test]
fn item_7_scram_takes_two_messages_and_the_hosts_last_word() {
    let scram = Mechanisms::NONE
        .with(Mechanism::ScramSha256, true)
        .with(Mechanism::ScramSha512, true)
        .with(Mechanism::Plain, true);
    // With an initial response, and without one.
    for asked in [false, true] {
        let mut peer = offering(scram);
        let offered = "mechanisms SCRAM-SHA-512 SCRAM-SHA-256 PLAIN";
        assert_eq!(peer.hears(), ["header 3", offered]);
        if asked {
            peer.sasl(&init("SCRAM-SHA-256", None));
            assert_eq!(peer.hears(), ["challenge"]);
            peer.sasl(&SaslBody::Response(SaslResponse { response: b"first" }));
        } else {
            peer.sasl(&init("SCRAM-SHA-256", Some(b"first")));
        }
        let events = peer.events();
        let [Event::SaslScram(scram)] = &events[..] else { panic!("{events:?}") };
        assert_eq!((scram.mechanism, scram.first), (Mechanism::ScramSha256, true));
        assert_eq!(scram.message.reveal(), b"first");
        peer.engine.sasl_challenge(b"r=x");
        assert_eq!(peer.hears(), ["challenge"]);
        peer.sasl(&SaslBody::Response(SaslResponse { response: b"second" }));
        let events = peer.events();
        let [Event::SaslScram(scram)] = &events[..] else { panic!("{events:?}") };
        assert!(!scram.first && scram.message.reveal() == b"second");
        peer.engine.sasl_outcome_with(SaslCode::Ok, Some(b"v=y"));
        let said = peer.hears_bytes();
        let (frame, _) = frame::parse(&said, u32::MAX).expect("sound").expect("whole");
        let outcome = SaslOutcome { code: SaslCode::Ok, additional_data: Some(b"v=y") };
        assert_eq!(SaslBody::decode(frame.body), Ok(SaslBody::Outcome(outcome)));
        peer.say_bytes(&ProtocolId::Amqp.header());
        assert_eq!(peer.hears(), ["header 0"]);
    }
}

#[test]
fn item_7_nobody_speaks_out_of_turn_in_scram() {
    let scram = Mechanisms::NONE.with(Mechanism::ScramSha512, true);
    // A second init, a response to nothing, and a response while the host thinks.
    let mut peer = offering(scram);
    peer.sasl(&init("SCRAM-SHA-512", None));
    peer.sasl(&init("SCRAM-SHA-512", Some(b"first")));
    assert_eq!(violation(&mut peer), Condition::IllegalState);
    let mut peer = offering(scram);
    peer.sasl(&SaslBody::Response(SaslResponse { response: b"second" }));
    assert_eq!(violation(&mut peer), Condition::IllegalState);
    let mut peer = offering(scram);
    peer.sasl(&init("SCRAM-SHA-512", Some(b"first")));
    peer.sasl(&SaslBody::Response(SaslResponse { response: b"second" }));
    assert!(matches!(&peer.events()[..], [Event::SaslScram(first)] if first.first), "it waits");
    // A host that refuses the first message; a late word changes nothing.
    peer.engine.sasl_outcome(SaslCode::Auth);
    assert_eq!(closed_reason(&mut peer), CloseReason::SaslFailed(SaslCode::Auth));
    peer.engine.sasl_challenge(b"r=x");
    assert_eq!(peer.hears().last().map(String::as_str), Some("outcome auth"));
}

#[test]
fn item_7_external_says_whom_the_client_wants_to_be() {
    let external = Mechanisms::NONE.with(Mechanism::External, true);
    let mut responses = [None, Some(&b""[..]), Some(b"ann")].into_iter();
    for wanted in ["", "", "ann"] {
        let mut peer = offering(external);
        peer.sasl(&init("EXTERNAL", responses.next().expect("as many")));
        let wanted = Event::SaslExternal { authzid: wanted.to_owned() };
        assert_eq!(peer.events(), [wanted]);
    }
    let mut peer = offering(external);
    peer.sasl(&init("EXTERNAL", Some(b"\xff")));
    assert_eq!(peer.hears()[2..], ["outcome auth"]);
}

#[test]
fn item_7_mechanisms_and_responses() {
    // Not offered.
    let mut peer = secured();
    peer.sasl(&init("SCRAM-SHA-256", Some(b"n,,n=ann")));
    assert_eq!(peer.hears(), ["outcome auth"]);
    assert_eq!(closed_reason(&mut peer), CloseReason::SaslFailed(SaslCode::Auth));
    // An authzid that equals the user.
    let mut peer = secured();
    peer.sasl(&init("PLAIN", Some(b"ann\0ann\0pass\0word")));
    let events = peer.events();
    let [Event::SaslPlain(plain)] = &events[..] else { panic!("{events:?}") };
    assert_eq!((&plain.authzid[..], &plain.user[..]), ("ann", "ann"));
    assert_eq!(plain.password.reveal(), b"pass\0word");
    assert_eq!(format!("{:?}", plain.password), "Password(…)");
    // No initial response: asked for, and then given.
    let mut peer = secured();
    peer.sasl(&init("PLAIN", None));
    assert_eq!(peer.hears(), ["challenge"]);
    peer.sasl(&SaslBody::Response(SaslResponse { response: b"\0ann\0secret" }));
    assert!(matches!(&peer.events()[..], [Event::SaslPlain(_)]));
    // Not RFC 4616.
    for response in [&b""[..], b"ann", b"\0ann", b"\0\0secret", b"\0\xFF\0secret"] {
        let mut peer = secured();
        let init = SaslInit {
            initial_response: Some(response),
            mechanism: Symbol::new("PLAIN"),
            hostname: None,
        };
        peer.sasl(&SaslBody::Init(init));
        assert_eq!(peer.hears(), ["outcome auth"]);
    }
    // ANONYMOUS, whatever trace it leaves.
    let mut peer = secured();
    peer.sasl(&init("ANONYMOUS", Some(b"trace@example")));
    assert_eq!(peer.events(), [Event::SaslAnonymous]);
}

#[test]
fn item_7_frames_of_the_servers_part_are_refused_from_a_client() {
    let mechanisms = [Symbol::new("PLAIN")];
    let bodies = [
        SaslBody::Mechanisms(SaslMechanisms { sasl_server_mechanisms: (&mechanisms[..]).into() }),
        SaslBody::Outcome(SaslOutcome { code: SaslCode::Ok, additional_data: None }),
        SaslBody::Response(SaslResponse { response: b"" }),
    ];
    for body in bodies {
        let mut peer = secured();
        peer.sasl(&body);
        assert_eq!(violation(&mut peer), Condition::IllegalState);
        assert!(peer.hears().is_empty() && peer.engine.is_finished());
    }
    // AMQP before SASL is over.
    let mut peer = secured();
    peer.say(0, Performative::Open(open()));
    assert_eq!(violation(&mut peer), Condition::FramingError);
}

#[test]
fn item_8_memory_and_time_before_authentication_are_bounded() {
    let mut peer = secured();
    peer.say_bytes(&[0, 0, 0x40, 1, 2, 1, 0, 0]);
    assert_eq!(violation(&mut peer), Condition::FramingError);

    let mut peer = secured();
    peer.sasl(&init("ANONYMOUS", None));
    peer.events();
    for _ in 0..300 {
        peer.say_bytes(&[0; 4096]);
    }
    assert_eq!(violation(&mut peer), Condition::ResourceLimitExceeded);

    let mut peer = secured();
    peer.wait(Duration::from_secs(9));
    assert!(peer.events().is_empty());
    peer.wait(Duration::from_secs(1));
    assert_eq!(closed_reason(&mut peer), CloseReason::HandshakeTimeout);
    assert!(peer.engine.is_finished());
}

#[test]
fn item_9_a_refused_open_is_open_then_close() {
    let mut peer = Peer::new(config(), Side::Server);
    peer.say_bytes(&ProtocolId::Amqp.header());
    let mut packet = encode(0, &Performative::Open(open()));
    packet.extend_from_slice(&encode(0, &Performative::Begin(begin())));
    peer.say_bytes(&packet);
    assert!(matches!(&peer.events()[..], [Event::Opened(_)]));
    peer.engine.close(Some(Error::new(Condition::UnauthorizedAccess, "not you")));
    assert_eq!(peer.hears(), ["header 0", "open", "close amqp:unauthorized-access"]);
    assert!(peer.events().is_empty(), "the pipelined begin is ignored");
    peer.say(0, Performative::Close(Close { error: None }));
    assert_eq!(closed_reason(&mut peer), CloseReason::Closed(None));
    assert!(peer.engine.is_finished());
}

#[test]
fn a_peer_that_never_reads_again_is_not_kept() {
    for close in [false, true] {
        let mut peer = Peer::in_session(config());
        peer.engine.begin().unwrap();
        if close {
            peer.engine.close(None);
        }
        peer.wait(if close { config().close_timeout } else { Duration::from_secs(60) });
        let reason = closed_reason(&mut peer);
        let expected = if close { CloseReason::CloseTimeout } else { CloseReason::IdleTimeout };
        assert_eq!(reason, expected);
        assert!(!peer.engine.is_finished(), "there are last words");
        assert!(peer.engine.poll_timeout().is_some());
        peer.wait(config().close_timeout);
        assert!(peer.engine.is_finished());
        assert_eq!(peer.engine.poll_timeout(), None);
        assert!(peer.hears().is_empty());
    }
}

#[test]
fn item_10_a_peer_that_is_not_read_is_not_blamed_for_silence() {
    let config = Config { idle_time_out: Some(Duration::from_secs(60)), ..config() };
    let mut peer = Peer::in_session_with(config, &open(), &begin());
    peer.events();
    peer.engine.withhold_reads(peer.now, true);
    peer.wait(Duration::from_secs(600));
    assert!(peer.events().is_empty());
    peer.engine.withhold_reads(peer.now, false);
    peer.wait(Duration::from_secs(59));
    assert!(peer.events().is_empty());
    peer.wait(Duration::from_secs(1));
    assert_eq!(closed_reason(&mut peer), CloseReason::IdleTimeout);
}

#[test]
fn item_10_idle_time_outs_of_both_sides() {
    let idle = |ms| Open { idle_time_out: Some(ms), ..open() };
    let config = || Config { idle_time_out: Some(Duration::from_secs(60)), ..config() };
    // Ours: advertised by half, enforced whole.
    let mut peer = Peer::new(config(), Side::Server);
    peer.say_bytes(&ProtocolId::Amqp.header());
    peer.say(0, Performative::Open(open()));
    peer.engine.open();
    let bytes = peer.hears_bytes();
    let (frame, _) = frame::parse(&bytes[8..], u32::MAX).unwrap().unwrap();
    let Ok((Performative::Open(ours), _)) = Performative::decode(frame.body) else { panic!() };
    assert_eq!(ours.idle_time_out, Some(30_000));
    peer.events();
    peer.wait(Duration::from_secs(59));
    // Any byte resets it, also half a frame.
    peer.say_bytes(&[0]);
    peer.wait(Duration::from_secs(59));
    assert!(peer.events().is_empty());
    peer.wait(Duration::from_secs(1));
    assert_eq!(closed_reason(&mut peer), CloseReason::IdleTimeout);
    assert_eq!(peer.hears(), ["close amqp:resource-limit-exceeded"]);

    // The peer's: a heartbeat at half, only where nothing else was said.
    let mut peer =
        Peer::in_session_with(Config { idle_time_out: None, ..config() }, &idle(10_000), &begin());
    peer.wait(Duration::from_millis(4_999));
    assert!(peer.hears().is_empty());
    peer.wait(Duration::from_millis(1));
    assert_eq!(peer.hears(), ["heartbeat"]);
    peer.wait(Duration::from_secs(3));
    peer.engine.begin().unwrap();
    peer.engine.handle_timeout(peer.now);
    assert_eq!(peer.hears(), ["begin@1"]);
    peer.wait(Duration::from_millis(4_999));
    assert!(peer.hears().is_empty());
    peer.wait(Duration::from_millis(1));
    assert_eq!(peer.hears(), ["heartbeat"]);

    // 0 and absent are none, a tiny one is refused.
    let none =
        Peer::in_session_with(Config { idle_time_out: None, ..config() }, &idle(0), &begin());
    assert_eq!(none.engine.poll_timeout(), None);
    let mut peer = Peer::new(config(), Side::Server);
    peer.say_bytes(&ProtocolId::Amqp.header());
    peer.say(0, Performative::Open(idle(10)));
    assert_eq!(peer.hears(), ["header 0", "open", "close amqp:invalid-field"]);
}

#[test]
fn item_12_after_our_close_all_is_dropped_until_the_peers() {
    let mut peer = Peer::in_session(config());
    peer.engine.close(Some(Error::new(Condition::ConnectionForced, "shutting down")));
    assert_eq!(peer.hears(), ["close amqp:connection:forced"]);
    peer.say(0, Performative::Attach(crate::peer::sender("late", 0)));
    peer.say(9, Performative::Begin(begin()));
    assert!(peer.hears().is_empty() && peer.events().is_empty());
    assert!(!peer.engine.is_finished());
    peer.say(0, Performative::Close(Close { error: None }));
    assert_eq!(closed_reason(&mut peer), CloseReason::Closed(None));
    assert!(peer.engine.is_finished());

    let mut peer = Peer::in_session(config());
    peer.engine.close(None);
    peer.hears();
    peer.wait(Duration::from_secs(5));
    assert_eq!(closed_reason(&mut peer), CloseReason::CloseTimeout);
}

#[test]
fn item_12_the_peers_close_waits_for_the_hosts_answer() {
    let mut peer = Peer::in_session(config());
    peer.say(0, Performative::Close(Close { error: Some(error(Condition::InternalError)) }));
    let events = peer.events();
    let [Event::CloseReceived { error: Some(error) }] = &events[..] else { panic!("{events:?}") };
    assert_eq!(error.condition, Condition::InternalError);
    assert!(peer.hears().is_empty());
    peer.engine.close(None);
    assert_eq!(peer.hears(), ["close"]);
    assert_eq!(closed_reason(&mut peer), CloseReason::Closed(None));
    assert!(peer.engine.is_finished() && peer.engine.poll_timeout().is_none());
}

#[test]
fn what_comes_before_open_and_after_close_is_an_error() {
    let mut peer = Peer::new(config(), Side::Server);
    peer.say_bytes(&ProtocolId::Amqp.header());
    peer.say(0, Performative::Begin(begin()));
    assert_eq!(peer.hears(), ["header 0", "open", "close amqp:illegal-state"]);
    let mut peer = Peer::in_session(config());
    peer.say(0, Performative::Open(open()));
    assert_eq!(peer.hears(), ["close amqp:illegal-state"]);
    // A frame that does not decode ends the connection, and its end is still understood.
    let mut peer = Peer::in_session(config());
    let mut packet = vec![0, 0, 0, 11, 2, 0, 0, 0, 0x00, 0x53, 0x99];
    packet.extend_from_slice(&encode(0, &Performative::Close(Close { error: None })));
    peer.say_bytes(&packet);
    assert_eq!(peer.hears(), ["close amqp:decode-error"]);
    assert_eq!(violation(&mut peer), Condition::DecodeError);
    assert!(peer.engine.is_finished());
}

#[test]
fn the_end_of_the_bytes_ends_the_connection_once() {
    let mut peer = Peer::in_session(config());
    peer.engine.handle_eof(peer.now);
    peer.engine.handle_eof(peer.now);
    assert_eq!(peer.events(), [Event::Closed { reason: CloseReason::Eof }]);
    assert!(peer.engine.is_finished());
    assert!(peer.engine.begin().is_err());
}

#[test]
fn a_client_speaks_first_and_chooses_what_it_was_told() {
    let plain = || Sasl::Plain { user: "ann".into(), password: Password::new("secret") };
    let mut peer = Peer::new(Config { sasl: plain(), ..config() }, Side::Client);
    assert_eq!(peer.hears(), ["header 3"]);
    peer.say_bytes(&ProtocolId::Sasl.header());
    let mechanisms = [Symbol::new("ANONYMOUS"), Symbol::new("PLAIN")];
    let offer = |from| {
        SaslBody::Mechanisms(SaslMechanisms { sasl_server_mechanisms: mechanisms[from..].into() })
    };
    peer.sasl(&offer(0));
    assert_eq!(peer.hears(), ["init PLAIN"]);
    peer.sasl(&SaslBody::Outcome(SaslOutcome { code: SaslCode::Ok, additional_data: None }));
    assert_eq!(peer.hears(), ["header 0", "open"]);
    peer.say_bytes(&ProtocolId::Amqp.header());
    peer.say(0, Performative::Open(open()));
    assert!(matches!(&peer.events()[..], [Event::Opened(_)]));
    peer.engine.begin().unwrap();
    assert_eq!(peer.hears(), ["begin@0"]);

    // Its mechanism is not offered; a server that says no; one that speaks something else.
    let mut peer = Peer::new(Config { sasl: Sasl::Anonymous, ..config() }, Side::Client);
    peer.say_bytes(&ProtocolId::Sasl.header());
    peer.sasl(&offer(1));
    assert_eq!(closed_reason(&mut peer), CloseReason::SaslFailed(SaslCode::Auth));
    let mut peer = Peer::new(Config { sasl: plain(), ..config() }, Side::Client);
    peer.say_bytes(&ProtocolId::Sasl.header());
    peer.sasl(&offer(1));
    peer.sasl(&SaslBody::Outcome(SaslOutcome { code: SaslCode::Auth, additional_data: None }));
    assert_eq!(closed_reason(&mut peer), CloseReason::SaslFailed(SaslCode::Auth));
    assert_eq!(peer.hears(), ["header 3", "init PLAIN"]);
    let mut peer = Peer::new(config(), Side::Client);
    assert_eq!(peer.hears(), ["header 0", "open"]);
    peer.say_bytes(b"AMQP\x03\x01\x00\x00");
    assert_eq!(closed_reason(&mut peer), CloseReason::HeaderMismatch);
    assert!(peer.hears().is_empty());
}
