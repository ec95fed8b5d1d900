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
//!   foreign clients      that come to the backup first, and then lose their live
//! ```

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use amqp::codec::{Reader, Symbol, Value, Writer};
use amqp::connection::{CloseReason, Config, Sasl};
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

const WITHIN: Duration = Duration::from_secs(10);

/// A client that says which library it is.
fn connect(
    address: SocketAddr,
    tls: Option<&TlsClient>,
    product: &str,
) -> Result<Client, ClientError> {
    let mut properties = Vec::new();
    Writer::new(&mut properties).map_with(|map| {
        map.element().symbol(Symbol::new("product"));
        map.element().string(product);
    });
    let config = Config {
        container_id: "anybody".to_owned(),
        sasl: Sasl::Anonymous,
        properties: Some(Bytes::from(properties)),
        ..Config::default()
    };
    Client::connect_with(address, tls, config, WITHIN)
}

/// What a client that follows redirects hears at an address.
fn refusal(address: SocketAddr, tls: Option<&TlsClient>) -> Option<Error> {
    match connect(address, tls, "QpidJMS") {
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
    let client = connect(address, tls, "another").expect("it serves");
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
