//! What clients are told of a pair: a backup sends them to the live, whose open lists both.
//!
//! ```text
//!   both advertise       the backup's port: amqp:connection:redirect, the live's address, for
//!                        those who follow it; for others it is closed before an open
//!                        an open of the live: failover-server-list, both
//!   kill -9 the live     its port is the other one's to give away no more; the other serves there
//!   the killed one back  its port sends clients to the new live
//!   over TLS             the same on the other port, for those who came by TLS
//!   one does not say     no list, and nobody is sent to it
//!   long names           the list is left out where a client's frames are short; who is sent
//!                        away hears it whole
//!   users                who logs in is told where the live is, and who gives a wrong word is not
//!   strangers            that say nothing keep nobody from another address out
//!   foreign clients      that come to the backup first, and then lose their live
//! ```

use std::io::{ErrorKind, Read as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use amqp::codec::{Reader, Symbol, Value, Writer};
use amqp::connection::{CloseReason, Config, Sasl, SaslCode};
use amqp::definitions::Condition;
use amqp::error::Error;
use bytes::Bytes;
use perf::client::{Client, ClientError};
use perf::tls::TlsClient;

use serde_json::json;

use crate::authority::Authority;
use crate::harness::free_port;
use crate::load::Client as Foreign;
use crate::pair::{PairOf, Producer};
use crate::remote::Remote;
use crate::table::java;
use crate::users::{dial_from, plain, user};

const WITHIN: Duration = Duration::from_secs(10);

/// A client that says which library it is.
fn connect(
    address: SocketAddr,
    tls: Option<&TlsClient>,
    product: &str,
) -> Result<Client, ClientError> {
    connect_as(address, tls, product, Config::default())
}

/// The same, with frames and a log-in of its own.
fn connect_as(
    address: SocketAddr,
    tls: Option<&TlsClient>,
    product: &str,
    config: Config,
) -> Result<Client, ClientError> {
    let mut properties = Vec::new();
    Writer::new(&mut properties).map_with(|map| {
        map.element().symbol(Symbol::new("product"));
        map.element().string(product);
    });
    let config = Config {
        container_id: "anybody".to_owned(),
        sasl: if config.sasl == Sasl::None { Sasl::Anonymous } else { config.sasl },
        properties: Some(Bytes::from(properties)),
        ..config
    };
    Client::connect_with(address, tls, config, WITHIN)
}

/// What a client that follows redirects hears at an address.
fn refusal(address: SocketAddr, tls: Option<&TlsClient>) -> Option<Error> {
    refusal_as(address, tls, Config::default())
}

fn refusal_as(address: SocketAddr, tls: Option<&TlsClient>, config: Config) -> Option<Error> {
    match connect_as(address, tls, "QpidJMS", config) {
        Err(ClientError::Closed(CloseReason::Closed(error))) => error,
        Ok(_) | Err(_) => None,
    }
}

/// Whether a client with a list of its own goes on in it: it hears no open and no error.
fn goes_on(address: SocketAddr, tls: Option<&TlsClient>) -> bool {
    match connect(address, tls, "another") {
        Err(ClientError::Io(_) | ClientError::Closed(CloseReason::Eof)) => true,
        Ok(_) | Err(_) => false,
    }
}

/// What a map says of a server: host, port and scheme.
fn place(map: &amqp::codec::Map<'_>) -> String {
    let of = |key| match map.get(key) {
        Some(Value::String(text)) => text.to_owned(),
        Some(Value::Int(number)) => number.to_string(),
        other => panic!("{key} is {other:?}"),
    };
    assert_eq!(of("hostname"), of("network-host"));
    format!("{}://{}:{}", of("scheme"), of("network-host"), of("port"))
}

fn is_sent(pair: &PairOf, from: SocketAddr, tls: Option<&TlsClient>, to: &str) {
    pair.wait("sent to the live", |_| refusal(from, tls).is_some());
    let error = refusal(from, tls).expect("it was a moment ago");
    assert_eq!(error.condition, Condition::ConnectionRedirect);
    let info = error.info.expect("where to go");
    assert_eq!(place(&Reader::new(&info).map().expect("a map")), to);
    assert!(goes_on(from, tls), "an error ends others for good");
}

/// What an open lists.
fn listed(address: SocketAddr, tls: Option<&TlsClient>) -> Option<Vec<String>> {
    listed_as(address, tls, Config::default())
}

fn listed_as(address: SocketAddr, tls: Option<&TlsClient>, config: Config) -> Option<Vec<String>> {
    let client = connect_as(address, tls, "another", config).expect("it serves");
    let properties = client.remote_open().properties.clone().expect("some");
    let map = Reader::new(&properties).map().expect("a map");
    let Value::List(list) = map.get("failover-server-list")? else { panic!("{map:?}") };
    let places = list.iter().map(|each| {
        let Value::Map(map) = each else { panic!("{each:?}") };
        place(&map)
    });
    Some(places.collect())
}

#[test]
fn a_backup_sends_clients_to_the_live_and_serves_when_it_is_its_turn() {
    let mut pair = PairOf::new("redirect");
    pair.lines = pair.amqp.map(|address| format!("advertise = \"{address}\"\n"));
    let live = pair.start_both();
    let places = pair.amqp.map(|address| format!("amqp://{address}"));
    is_sent(&pair, pair.amqp[1 - live], None, &places[live]);
    let mut producer = Producer::new();
    producer.send(pair.amqp[live], 50).expect("accepted");
    let mut both = listed(pair.amqp[live], None).expect("a list");
    both.sort();
    let mut all = places.to_vec();
    all.sort();
    assert_eq!(both, all);
    pair.kill(live);
    let killed = Instant::now();
    let gap = producer.first_accepted(pair.amqp[1 - live], killed);
    println!("from kill -9 to the first accepted at the other: {} ms", gap.as_millis());
    assert!(gap < Duration::from_millis(1500), "the port was not free: {gap:?}");
    assert_eq!(listed(pair.amqp[1 - live], None).map(|list| list.len()), Some(2));
    pair.start(live);
    assert_eq!(pair.wait_in_sync(), 1 - live);
    is_sent(&pair, pair.amqp[live], None, &places[1 - live]);
    producer.check(pair.amqp[1 - live]);
}

#[test]
fn over_tls_clients_are_sent_to_where_tls_is() {
    let mut pair = PairOf::new("redirect-tls");
    let authority = Authority::new(pair.scratch.path(), "a");
    let files = authority.server("localhost");
    let shown = |path: &Path| path.display().to_string();
    let amqps = [free_port(), free_port()];
    for (at, amqps) in amqps.iter().enumerate() {
        pair.lines[at] = format!("advertise = \"amqps://localhost:{}\"\n", amqps.port());
        pair.args[at] = vec!["--tls-listen".into(), amqps.to_string()];
        pair.args[at].extend(["--tls-cert".into(), shown(&files.cert)]);
        pair.args[at].extend(["--tls-key".into(), shown(&files.key)]);
    }
    let live = pair.start_both();
    let tls = TlsClient::new(&authority.trusting(None), "localhost").expect("sound files");
    let to = format!("amqps://localhost:{}", amqps[live].port());
    is_sent(&pair, amqps[1 - live], Some(&tls), &to);
    assert!(refusal(pair.amqp[1 - live], None).is_none(), "whoever comes in clear is refused");
    let strange = Authority::new(pair.scratch.path(), "b").trusting(None);
    let strange = TlsClient::new(&strange, "localhost").expect("sound files");
    assert!(connect(amqps[1 - live], Some(&strange), "another").is_err(), "it must not trust us");
    let counted = |pair: &PairOf| {
        let (_, metrics) = pair.broker(1 - live).http("/metrics").expect("it answers");
        metrics.contains("laelaps_tls_refused_total 1\n")
    };
    pair.wait("a refusal over TLS in the log and in the metrics", |pair| {
        let said = pair.broker(1 - live).said();
        counted(pair) && said.contains("TLS connection refused") && said.contains("UnknownCA")
    });
    assert_eq!(listed(amqps[live], Some(&tls)).map(|list| list.len()), Some(2));
    assert_eq!(listed(pair.amqp[live], None), None, "whoever came in clear is not sent to TLS");
    pair.kill(live);
    pair.wait_live(1 - live);
    connect(amqps[1 - live], Some(&tls), "another").expect("its port was free");
}

#[test]
fn nobody_is_sent_to_a_live_that_says_no_address() {
    let mut pair = PairOf::new("redirect-none");
    pair.lines[0] = "advertise = \"a.example:5672\"\n".to_owned();
    let live = pair.start_both();
    // Half a list would take a client's own away.
    assert_eq!(listed(pair.amqp[live], None), None);
    let (a, b) = (pair.amqp[0], pair.amqp[1]);
    if live == 0 {
        is_sent(&pair, b, None, "amqp://a.example:5672");
    } else {
        assert!(refusal(a, None).is_none() && goes_on(a, None));
    }
}

#[test]
fn what_is_said_of_a_pair_with_long_names_fits_the_smallest_frame() {
    let mut pair = PairOf::new("redirect-long");
    let names = ["a", "b"].map(|name| format!("{}.example:5672", name.repeat(96 - 8)));
    pair.lines = names.clone().map(|name| format!("advertise = \"{name}\"\n"));
    let live = pair.start_both();
    // An open or a close that is longer than this is an error to our client, like to others.
    let smallest = || Config { max_frame_size: 512, ..Config::default() };
    let (here, there) = (pair.amqp[live], pair.amqp[1 - live]);
    pair.wait("both listed", |_| listed(here, None).is_some_and(|list| list.len() == 2));
    assert_eq!(listed_as(here, None, smallest()), None);
    pair.wait("sent to the live", |_| refusal(there, None).is_some());
    let error = refusal_as(there, None, smallest()).expect("told");
    assert_eq!(error.condition, Condition::ConnectionRedirect);
    let info = error.info.expect("where to go");
    let whole = format!("amqp://{}", names[live]);
    assert_eq!(place(&Reader::new(&info).map().expect("a map")), whole);
}

#[test]
fn who_logs_in_is_told_where_the_live_is_and_nobody_else() {
    let mut pair = PairOf::new("redirect-users");
    let users = user("ann", "right-of-ann", &["scram-sha-256"], "");
    for at in 0..2 {
        pair.lines[at] = format!("advertise = \"{}\"\n{users}", pair.amqp[at]);
    }
    let live = pair.start_both();
    let there = pair.amqp[1 - live];
    let with = |password| {
        let config = Config { sasl: plain("ann", password), ..Config::default() };
        connect_as(there, None, "QpidJMS", config)
    };
    let is_told = || {
        let told = with("right-of-ann").err();
        matches!(told, Some(ClientError::Closed(CloseReason::Closed(Some(error))))
            if error.condition == Condition::ConnectionRedirect)
    };
    pair.wait("sent to the live", |_| is_told());
    for said in [with("wrong"), connect(there, None, "QpidJMS")] {
        let why = said.err().expect("not let in");
        assert!(
            matches!(why, ClientError::Closed(CloseReason::SaslFailed(SaslCode::Auth))),
            "{why}"
        );
    }
}

/// JMS takes the strongest mechanism that is offered, at the backup and at the live.
#[test]
#[ignore = "needs the foreign clients: tests/run pair"]
fn jms_proves_its_password_by_scram_to_be_told_where_the_live_is() {
    let mut pair = PairOf::new("redirect-scram");
    let users = user("app", "secret", &["scram-sha-256"], "");
    for at in 0..2 {
        pair.lines[at] = format!("advertise = \"{}\"\n{users}", pair.amqp[at]);
    }
    let live = pair.start_both();
    let send = |password: &str| {
        let url = format!(
            "failover:(amqp://{})?jms.username=app&jms.password={password}\
             &failover.maxReconnectAttempts=20",
            pair.amqp[1 - live]
        );
        let mut client = java("jms", "JmsClient");
        client.args(["send", &url, "scram", "3"]).output().expect("java can be started")
    };
    let output = send("secret");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("done"), "{said}{errors}");
    assert!(!send("Secret").status.success(), "a wrong password was told");
}

#[test]
fn strangers_that_say_nothing_keep_nobody_else_out() {
    let mut pair = PairOf::new("redirect-strangers");
    pair.lines = pair.amqp.map(|address| format!("advertise = \"{address}\"\n"));
    let live = pair.start_both();
    let (there, to) = (pair.amqp[1 - live], format!("amqp://{}", pair.amqp[live]));
    is_sent(&pair, there, None, &to);
    let stranger = || dial_from(Ipv4Addr::new(127, 0, 0, 9), there).expect("connected");
    let strangers: Vec<TcpStream> = (0..300).map(|_| stranger()).collect();
    let is_open = |stream: &TcpStream| {
        stream.set_read_timeout(Some(Duration::from_millis(1))).expect("bounded");
        let read = (&*stream).read(&mut [0]);
        read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    };
    assert!(refusal(there, None).is_some(), "another address is heard meanwhile");
    let held = strangers.iter().filter(|stream| is_open(stream)).count();
    assert!((1..=64).contains(&held), "{held} places of one address");
}

/// Libraries that come to the backup first; Qpid JMS knows no other address.
#[test]
#[ignore = "needs the foreign clients: tests/run pair"]
fn foreign_clients_find_the_live_from_the_backup_and_the_other_one_when_it_dies() {
    let mut pair = PairOf::new("redirect-foreign");
    pair.lines = pair.amqp.map(|address| format!("advertise = \"{address}\"\n"));
    let live = pair.start_both();
    let [one, other] = [1 - live, live].map(|at| pair.amqp[at].port());
    is_sent(&pair, pair.amqp[1 - live], None, &format!("amqp://{}", pair.amqp[live]));
    let libraries: [(&str, Command, &[u16]); 5] = [
        ("Qpid JMS 2.x", java("jms", "JmsRemote"), &[one]),
        ("Qpid JMS 1.x", java("jms1", "JmsRemote"), &[one]),
        ("Proton Python", Foreign::Proton.command("remote"), &[one, other]),
        ("rhea", Foreign::Rhea.command("remote"), &[one, other]),
        ("protonj2", java("protonj2", "ProtonJ2Remote"), &[one, other]),
    ];
    let send =
        json!({"do": "send", "name": "s", "text": "x", "durable": true, "within_ms": 40_000});
    let mut clients = Vec::new();
    for (name, command, failover) in libraries {
        let mut client = Remote::spawn(command);
        let began = Instant::now();
        client.ok(json!({"do": "connect", "port": one, "failover": failover}));
        client.sender("s", "told");
        assert_eq!(client.ok(send.clone())["state"], "accepted", "{name}");
        println!("{name}: from its start to `accepted` by the live, {:?}", began.elapsed());
        clients.push((name, client));
    }
    pair.kill(live);
    for (name, client) in &mut clients {
        assert_eq!(client.ok(send.clone())["state"], "accepted", "{name}, after the live's death");
    }
}
