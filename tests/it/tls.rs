//! AMQP over TLS: who is let in, what is refused and why, new certificates under load, floods.
//!
//! The certificates are those of `authority.rs`. What is refused is looked for in the log, since a
//! refusal without a reason costs an operator a day.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use amqp::connection::{Config, Connection, Event, Sasl, Side};
use amqp::delivery::Outcome;
use amqp::link::{LinkSource, LinkTarget, NewLink};
use perf::client::{Client, ClientError, data_of, durable_message};
use perf::tls::{TlsArguments, TlsClient};

use crate::authority::{Authority, Pair};
use crate::harness::{Broker, Scratch, Start, free_port, http_get};
use crate::users::dial_from;

const WAIT: Duration = Duration::from_secs(20);

/// A broker that serves TLS, and where.
struct World {
    broker: Broker,
    amqps: SocketAddr,
    _scratch: Scratch,
}

fn world(name: &str, scratch: Scratch, server: &Pair, args: &[&str]) -> World {
    world_of(None, name, scratch, server, args)
}

/// The same, of another executable than the broker itself.
fn world_of(
    exe: Option<PathBuf>,
    name: &str,
    scratch: Scratch,
    server: &Pair,
    args: &[&str],
) -> World {
    let amqps = free_port();
    let data = scratch.join(name);
    let mut start = Start::new(&data);
    start.exe = exe.unwrap_or(start.exe);
    start.args.extend(["--tls-listen".into(), amqps.to_string()]);
    start.args.extend(["--tls-cert".into(), shown(&server.cert)]);
    start.args.extend(["--tls-key".into(), shown(&server.key)]);
    start.args.extend(args.iter().map(|&arg| arg.to_owned()));
    World { broker: start.ready(), amqps, _scratch: scratch }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn connect(amqps: SocketAddr, trust: &TlsArguments, sasl: Sasl) -> Result<Client, ClientError> {
    let tls = TlsClient::new(trust, "localhost").expect("sound files");
    Client::connect_tls(amqps, &tls, "tls-test", sasl, WAIT)
}

/// A message there and back.
fn use_queue(client: &mut Client, queue: &str, body: &[u8]) {
    let sender = client.sender(queue).expect("a link");
    client.send(sender, &durable_message(body)).expect("sent");
    assert_eq!(client.next_outcome().expect("an answer").1, Outcome::Accepted);
    client.receiver(queue, 1).expect("a link");
    let received = client.receive().expect("a message");
    assert_eq!(data_of(&received.message), Some(body));
    client.accept(&received);
}

/// Waits until the log says all these words in one line.
fn wait_said(broker: &Broker, words: &[&str]) {
    let deadline = Instant::now() + WAIT;
    while !broker.said().lines().any(|line| words.iter().all(|word| line.contains(word))) {
        assert!(Instant::now() < deadline, "no line with {words:?}:\n{}", broker.said());
        thread::sleep(Duration::from_millis(20));
    }
}

fn metric(broker: &Broker, name: &str) -> u64 {
    let (_, text) = http_get(broker.admin, "/metrics").expect("the broker answers");
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("laelaps_{name} ")));
    line.unwrap_or_else(|| panic!("no {name}:\n{text}")).parse().expect("a number")
}

#[test]
fn messages_travel_over_tls_and_large_ones_too() {
    let scratch = Scratch::new("tls");
    let authority = Authority::new(scratch.path(), "a");
    let world = world("data", scratch, &authority.server("localhost"), &[]);
    let trust = authority.trusting(None);
    let mut client = connect(world.amqps, &trust, Sasl::Anonymous).expect("let in");
    use_queue(&mut client, "small", b"hello");
    client.close().expect("closed in order");
    let mut client = connect(world.amqps, &trust, Sasl::Anonymous).expect("let in");
    use_queue(&mut client, "large", &vec![7; 10 << 20]);
    client.close().expect("closed in order");
    // The port without TLS is there as before.
    let plain = Client::connect(world.broker.amqp, "plain", Sasl::Anonymous, WAIT).expect("let in");
    plain.close().expect("closed in order");
    assert_eq!(metric(&world.broker, "tls_handshakes_total"), 2);
    assert!(world.broker.stop().success());
}

#[test]
fn what_is_no_tls_or_too_old_is_refused() {
    /// The alert `protocol_version`.
    const PROTOCOL_VERSION: u8 = 70;
    let scratch = Scratch::new("tls-old");
    let authority = Authority::new(scratch.path(), "a");
    let world = world("data", scratch, &authority.server("localhost"), &[]);
    // A client hello of TLS 1.1: one cipher suite, no compression, the signatures that it takes.
    let mut hello = vec![0x16, 3, 1, 0, 57, 1, 0, 0, 53, 3, 2];
    hello.extend([9; 32]);
    hello.extend([0, 0, 2, 0xc0, 0x14, 1, 0, 0, 10, 0, 13, 0, 6, 0, 4, 4, 3, 8, 4]);
    let answer = exchange(world.amqps, &hello);
    assert_eq!((answer[0], answer[6]), (0x15, PROTOCOL_VERSION), "{answer:?}");
    wait_said(&world.broker, &["TLS connection refused", "127.0.0.1"]);
    // AMQP where TLS belongs.
    exchange(world.amqps, b"AMQP\x00\x01\x00\x00");
    let trust = authority.trusting(None);
    let mut client = connect(world.amqps, &trust, Sasl::Anonymous).expect("others are let in");
    use_queue(&mut client, "still", b"there");
    assert_eq!(metric(&world.broker, "tls_refused_total"), 2);
    assert!(world.broker.stop().success());
}

/// Each connection follows the queue, most likely to another core, with its keys.
#[test]
fn a_connection_over_tls_moves_with_its_keys() {
    let scratch = Scratch::new("tls-move");
    let authority = Authority::new(scratch.path(), "a");
    let args = ["--threads", "2", "--shards", "4"];
    let world = world("data", scratch, &authority.server("localhost"), &args);
    let trust = authority.trusting(None);
    for number in 0..24_u8 {
        let mut client = connect(world.amqps, &trust, Sasl::Anonymous).expect("let in");
        use_queue(&mut client, "one-queue", &[number; 20_000]);
        use_queue(&mut client, &format!("other-{number}"), &[number; 300]);
        client.close().expect("closed in order");
    }
    assert_eq!(metric(&world.broker, "tls_handshakes_total"), 24);
    assert!(world.broker.stop().success());
}

fn link() -> NewLink {
    NewLink {
        name: "ended".to_owned(),
        source: LinkSource::at("client"),
        target: LinkTarget::at("one-queue"),
        ..NewLink::default()
    }
}

/// The attach makes it move, and the end that TLS says comes with it: who serves it then must hear
/// of that end, since the socket says nothing.
#[test]
fn an_end_by_tls_is_heard_although_the_connection_moves() {
    let scratch = Scratch::new("tls-end");
    let authority = Authority::new(scratch.path(), "a");
    let args = ["--threads", "2", "--shards", "2"];
    let world = world("data", scratch, &authority.server("localhost"), &args);
    let tls = TlsClient::new(&authority.trusting(None), "localhost").expect("sound files");
    for _ in 0..12 {
        let mut stream = TcpStream::connect(world.amqps).expect("connected");
        stream.set_read_timeout(Some(WAIT)).expect("bounded");
        let mut session = tls.session().expect("begun");
        let config = Config { sasl: Sasl::Anonymous, ..Config::default() };
        let mut amqp = Connection::new(config, Side::Client, Instant::now());
        let mut begun = None;
        loop {
            let (mut plain, mut records) = (Vec::new(), Vec::new());
            amqp.poll_transmit(&mut plain);
            session.send(&plain, &mut records).expect("not failed");
            if let Some(at) = begun {
                amqp.attach_sender(at, link()).expect("open");
                plain.clear();
                amqp.poll_transmit(&mut plain);
                session.send(&plain, &mut records).expect("not failed");
                session.end(&mut records);
                stream.write_all(&records).expect("sent");
                break;
            }
            stream.write_all(&records).expect("sent");
            let mut bytes = [0; 4096];
            let count = stream.read(&mut bytes).expect("an answer");
            session
                .receive(&bytes[..count], |piece| amqp.handle_bytes(Instant::now(), piece))
                .expect("tls");
            while let Some(event) = amqp.poll_event() {
                if let Event::Opened(_) = event {
                    amqp.begin().expect("open");
                } else if let Event::SessionBegun { session } = event {
                    begun = Some(session);
                }
            }
        }
        // An answer or none; then the end, long before the silence would be noticed.
        let asked = Instant::now();
        stream.read_to_end(&mut Vec::new()).expect("an orderly end");
        assert!(asked.elapsed() < WAIT, "the broker waits for more, as nothing told it of the end");
    }
    assert!(world.broker.stop().success());
}

/// Send this, and read until the other side ends.
fn exchange(addr: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(addr).expect("connected");
    stream.set_read_timeout(Some(WAIT)).expect("bounded");
    stream.write_all(bytes).expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an orderly end");
    answer
}

#[test]
fn a_client_that_trusts_somebody_else_is_told_of_in_the_log() {
    let scratch = Scratch::new("tls-other");
    let authority = Authority::new(scratch.path(), "a");
    let other = Authority::new(scratch.path(), "b");
    let world = world("data", scratch, &authority.server("localhost"), &[]);
    let refused = connect(world.amqps, &other.trusting(None), Sasl::Anonymous);
    assert!(matches!(refused, Err(ClientError::Tls(_))), "it must not trust us");
    wait_said(&world.broker, &["TLS connection refused", "alert", "UnknownCA"]);
    assert!(world.broker.stop().success());
}

#[test]
fn a_wrong_expired_or_missing_client_certificate_is_refused_with_a_reason() {
    let scratch = Scratch::new("tls-mutual");
    let authority = Authority::new(scratch.path(), "a");
    let other = Authority::new(scratch.path(), "b");
    let (good, late) = (authority.client("app"), authority.expired("late"));
    let strange = other.client("app");
    let ca = shown(&authority.ca());
    let args = ["--tls-client-ca", &ca, "--tls-require-client-cert"];
    let server = authority.server("localhost");
    let world = world("data", scratch, &server, &args);
    let cases = [
        (Some(&strange), "UnknownIssuer"),
        (Some(&late), "certificate expired"),
        (None, "peer sent no certificates"),
    ];
    for (own, reason) in cases {
        let refused = connect(world.amqps, &authority.trusting(own), Sasl::Anonymous);
        assert!(refused.is_err(), "{own:?} was let in");
        wait_said(&world.broker, &["TLS connection refused", reason]);
    }
    let trust = authority.trusting(Some(&good));
    let mut client = connect(world.amqps, &trust, Sasl::Anonymous).expect("let in");
    use_queue(&mut client, "mutual", b"trust");
    client.close().expect("closed in order");
    assert_eq!(metric(&world.broker, "tls_refused_total"), 3);
    assert!(world.broker.stop().success());
}

#[test]
fn new_certificates_are_served_under_load_and_no_connection_is_lost() {
    let scratch = Scratch::new("tls-reload");
    let authorities = ["a", "b", "c"].map(|name| Authority::new(scratch.path(), name));
    let served = authorities[0].server("localhost");
    let next: Vec<Pair> = authorities[1..].iter().map(|a| a.server("localhost")).collect();
    let world = world("data", scratch, &served, &[]);
    let over = Arc::new(AtomicBool::new(false));
    let loads: Vec<_> = (0..4)
        .map(|number| {
            let (over, amqps) = (Arc::clone(&over), world.amqps);
            let trust = authorities[0].trusting(None);
            thread::spawn(move || {
                let mut client = connect(amqps, &trust, Sasl::Anonymous).expect("let in");
                let sender = client.sender(&format!("load-{number}")).expect("a link");
                let mut sent = 0;
                while !over.load(Ordering::Relaxed) {
                    client.send(sender, &durable_message(&[1; 256])).expect("not lost");
                    assert_eq!(client.next_outcome().expect("not lost").1, Outcome::Accepted);
                    sent += 1;
                }
                client.close().expect("closed in order");
                sent
            })
        })
        .collect();
    for (number, (authority, pair)) in authorities[1..].iter().zip(&next).enumerate() {
        pair.replace(&served);
        wait_metric(&world.broker, "tls_reloads_total", number as u64 + 1);
        connect(world.amqps, &authority.trusting(None), Sasl::Anonymous).expect("the new one");
        let old = authorities[0].trusting(None);
        assert!(connect(world.amqps, &old, Sasl::Anonymous).is_err(), "the old one is served");
    }
    // What cannot be used changes nothing: half a pair, no certificate at all, no file.
    let good = fs::read(&served.cert).expect("read");
    let served_now = authorities[2].trusting(None);
    for (number, bad) in
        [Some(fs::read(&next[0].cert).expect("read")), Some(vec![7]), None].into_iter().enumerate()
    {
        match bad {
            Some(bad) => fs::write(&served.cert, bad).expect("written"),
            None => fs::remove_file(&served.cert).expect("removed"),
        }
        wait_metric(&world.broker, "tls_reload_failures_total", number as u64 + 1);
        connect(world.amqps, &served_now, Sasl::Anonymous).expect("the old one stays");
    }
    wait_said(&world.broker, &["ERROR", "cannot be used, the old ones stay"]);
    fs::write(&served.cert, good).expect("written");
    over.store(true, Ordering::Relaxed);
    for load in loads {
        assert!(load.join().expect("no connection was lost") > 0);
    }
    assert!(world.broker.stop().success());
}

fn wait_metric(broker: &Broker, name: &str, wanted: u64) {
    let deadline = Instant::now() + WAIT;
    while metric(broker, name) < wanted {
        assert!(Instant::now() < deadline, "{name} never came to {wanted}:\n{}", broker.said());
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn half_open_handshakes_lock_nobody_out() {
    /// More than all cores keep at a time, so that the oldest must make room.
    const HALF_OPEN: usize = 3_000;
    let scratch = Scratch::new("tls-flood");
    let authority = Authority::new(scratch.path(), "a");
    let world = world("data", scratch, &authority.server("localhost"), &["--threads", "1"]);
    let trust = authority.trusting(None);
    let mut before = connect(world.amqps, &trust, Sasl::Anonymous).expect("let in");
    let mut flood = Vec::new();
    for number in 0..HALF_OPEN {
        let mut stream = TcpStream::connect(world.amqps).expect("connected");
        // Some say nothing, some begin to say something.
        if number % 2 == 0 {
            let _ = stream.write_all(&[0x16, 3, 1, 1, 0, 1, 0]);
        }
        flood.push(stream);
        if number % 500 == 499 {
            use_queue(&mut before, "before", b"still served");
            let mut new = connect(world.amqps, &trust, Sasl::Anonymous).expect("let in");
            use_queue(&mut new, "new", b"served too");
            new.close().expect("closed in order");
        }
    }
    let abandoned = metric(&world.broker, "tls_abandoned_total");
    assert!(abandoned as usize >= HALF_OPEN - 1024, "only {abandoned} made room");
    drop(flood);
    before.close().expect("closed in order");
    assert!(world.broker.stop().success());
}

/// A few hundred connections a second that say nothing, on either port, against a broker that may
/// hold few: whoever comes from elsewhere is served at once, and so is who is there already.
#[test]
fn who_says_nothing_locks_nobody_out_where_few_connections_may_be_open() {
    const FLOOD: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
    /// More than both cores may hold, which is 224.
    const SILENT: usize = 600;
    const SILENT_MAX: usize = 2_000;
    const SERVED_WITHIN: Duration = Duration::from_secs(5);
    let scratch = Scratch::new("tls-few");
    let authority = Authority::new(scratch.path(), "a");
    let exe = scratch.join("few-files");
    let script =
        format!("#!/bin/sh\nulimit -n 1024\nexec {} \"$@\"\n", env!("CARGO_BIN_EXE_laelaps"));
    fs::write(&exe, script).expect("written");
    fs::set_permissions(&exe, fs::Permissions::from_mode(0o755)).expect("executable");
    let server = authority.server("localhost");
    let args = ["--threads", "2", "--shards", "2"];
    let world = world_of(Some(exe), "data", scratch, &server, &args);
    let trust = authority.trusting(None);
    let plain = world.broker.amqp;
    let come = |to: SocketAddr| {
        let asked = Instant::now();
        // So many may come between two turns of a core that the ring has no place for all of them;
        // who gets none is reset, and tries again as any client does.
        let mut client = loop {
            let come = if to == plain {
                Client::connect(to, "comes", Sasl::Anonymous, WAIT)
            } else {
                connect(to, &trust, Sasl::Anonymous)
            };
            match come {
                Ok(client) => break client,
                Err(error) => assert!(asked.elapsed() < SERVED_WITHIN, "not let in: {error}"),
            }
            thread::sleep(Duration::from_millis(20));
        };
        use_queue(&mut client, "comes", b"served");
        client.close().expect("closed in order");
        let took = asked.elapsed();
        assert!(took < SERVED_WITHIN, "it was served after {took:?} only");
    };
    let mut there = connect(world.amqps, &trust, Sasl::Anonymous).expect("let in");
    for to in [plain, world.amqps] {
        let (full, over) = (AtomicBool::new(false), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                // It lets none of them go: who is closed is so by the broker.
                let mut silent = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    if silent.len() < SILENT_MAX {
                        silent.extend(dial_from(FLOOD, to));
                    }
                    if silent.len() >= SILENT {
                        full.store(true, Ordering::Relaxed);
                        thread::sleep(Duration::from_millis(3));
                    }
                }
            });
            let ends = Ends(&over);
            let began = Instant::now();
            while !full.load(Ordering::Relaxed) {
                assert!(began.elapsed() < WAIT, "the flood does not come in");
                thread::sleep(Duration::from_millis(5));
            }
            for _ in 0..10 {
                come(to);
            }
            drop(ends);
        });
        use_queue(&mut there, "there", b"still served");
    }
    there.close().expect("closed in order");
    wait_said(&world.broker, &["connection closed before it was open", "127.0.0.2"]);
    assert!(metric(&world.broker, "tls_abandoned_total") > 0, "no handshake made room");
    assert!(world.broker.stop().success());
}

/// Ends a flood however its test ends.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Records that lack a byte, of more connections than may keep so much together.
#[test]
fn records_that_never_end_are_bounded_for_all_connections() {
    const SILENT: usize = 200;
    let scratch = Scratch::new("tls-records");
    let authority = Authority::new(scratch.path(), "a");
    let memory = ["--memory-max", "16777216", "--max-message-size", "1048576"];
    let args = [&memory[..], &["--threads", "1", "--shards", "1"]].concat();
    let world = world("data", scratch, &authority.server("localhost"), &args);
    let tls = TlsClient::new(&authority.trusting(None), "localhost").expect("sound files");
    let mut silent = Vec::new();
    for _ in 0..SILENT {
        let mut stream = TcpStream::connect(world.amqps).expect("connected");
        stream.set_read_timeout(Some(WAIT)).expect("bounded");
        let mut session = tls.session().expect("begun");
        let mut bytes = [0; 4096];
        while session.is_handshaking() {
            let mut records = Vec::new();
            session.flush(&mut records);
            stream.write_all(&records).expect("sent");
            let count = stream.read(&mut bytes).expect("an answer");
            session.receive(&bytes[..count], |_| ()).expect("tls");
        }
        let mut records = Vec::new();
        session.send(&[0; 16 << 10], &mut records).expect("not failed");
        // What it says at the end of the handshake goes before, and the record lacks its last byte.
        stream.write_all(&records[..records.len() - 1]).expect("sent");
        silent.push(stream);
    }
    wait_said(&world.broker, &["unfinished messages of all connections exceeded their bound"]);
    let trust = authority.trusting(None);
    let mut client = connect(world.amqps, &trust, Sasl::Anonymous).expect("others are let in");
    use_queue(&mut client, "still", b"there");
    client.close().expect("closed in order");
    assert!(world.broker.stop().success());
}

#[test]
fn a_handshake_that_does_not_come_is_ended_in_time() {
    let scratch = Scratch::new("tls-silent");
    let authority = Authority::new(scratch.path(), "a");
    let world = world("data", scratch, &authority.server("localhost"), &[]);
    let mut silent = TcpStream::connect(world.amqps).expect("connected");
    silent.set_read_timeout(Some(WAIT)).expect("bounded");
    let since = Instant::now();
    assert_eq!(silent.read_to_end(&mut Vec::new()).expect("an orderly end"), 0);
    let took = since.elapsed();
    let wanted = Duration::from_secs(9)..Duration::from_secs(13);
    assert!(wanted.contains(&took), "it ended after {took:?}");
    assert_eq!(metric(&world.broker, "tls_abandoned_total"), 1);
    assert!(world.broker.stop().success());
}

/// What a change of the authority is for: whom the old one has signed is out, with the next
/// connection.
#[test]
fn a_new_client_ca_lets_its_own_in_and_the_old_ones_out() {
    let scratch = Scratch::new("tls-ca");
    let authority = Authority::new(scratch.path(), "a");
    let (old, new) = (Authority::new(scratch.path(), "b"), Authority::new(scratch.path(), "c"));
    let (of_old, of_new) = (old.client("app"), new.client("app"));
    let served = scratch.join("client-ca.pem");
    fs::copy(old.ca(), &served).expect("written");
    let ca = shown(&served);
    let args = ["--tls-client-ca", &ca, "--tls-require-client-cert"];
    let world = world("data", scratch, &authority.server("localhost"), &args);
    let come = |own: &Pair| connect(world.amqps, &authority.trusting(Some(own)), Sasl::Anonymous);
    let mut before = come(&of_old).expect("let in");
    use_queue(&mut before, "before", b"one");
    assert!(come(&of_new).is_err(), "nobody knows its authority yet");
    fs::copy(new.ca(), &served).expect("written");
    wait_metric(&world.broker, "tls_reloads_total", 1);
    assert!(come(&of_old).is_err(), "its authority is trusted no longer");
    wait_said(&world.broker, &["TLS connection refused", "UnknownIssuer"]);
    let mut client = come(&of_new).expect("let in");
    use_queue(&mut client, "after", b"two");
    client.close().expect("closed in order");
    use_queue(&mut before, "undisturbed", b"three");
    // A CA that cannot be read changes nothing.
    fs::write(&served, "no certificate").expect("written");
    wait_metric(&world.broker, "tls_reload_failures_total", 1);
    assert!(come(&of_old).is_err(), "the old one is back");
    come(&of_new).expect("the new one stays").close().expect("closed in order");
    before.close().expect("closed in order");
    assert!(world.broker.stop().success());
}

#[test]
fn files_that_cannot_be_served_stop_the_start() {
    let scratch = Scratch::new("tls-files");
    let authority = Authority::new(scratch.path(), "a");
    let (one, two) = (authority.server("one"), authority.server("two"));
    let data = scratch.join("data");
    for (cert, key, words) in [
        (&one.cert, &two.key, "two.key"),
        (&one.cert, &scratch.join("missing"), "missing"),
        (&one.key, &one.key, "no certificate"),
    ] {
        let mut start = Start::new(&data);
        start.args.extend(["--tls-listen".into(), "127.0.0.1:0".into()]);
        start.args.extend(["--tls-cert".into(), shown(cert), "--tls-key".into(), shown(key)]);
        let (status, said) = start.refused();
        assert_eq!(status, 7, "{said}");
        assert!(said.contains(words), "nothing about `{words}`:\n{said}");
    }
}
