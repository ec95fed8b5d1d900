//! Who is let in, and what they may do there: passwords, proofs, certificates, roles, floods.
//!
//! What a flood from elsewhere does is seen from other addresses of loopback, which a client can
//! have as its own: the broker knows addresses, not clients.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use amqp::codec::Symbol;
use amqp::connection::{Password, Sasl, SaslCode};
use amqp::delivery::Outcome;
use amqp::frame::{self, ProtocolId};
use amqp::sasl::{SaslBody, SaslInit};
use perf::client::{Client, ClientError, durable_message};
use perf::tls::TlsClient;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::authority::{Authority, Pair};
use crate::harness::{Broker, Scratch, Start, built, free_port};
use crate::message::numbered;
use crate::remote::{BOTH, Remote};
use crate::table::java;

const WAIT: Duration = Duration::from_secs(20);

/// What `laelaps user hash` makes of a password.
fn hash(password: &str, wanted: &str) -> String {
    let mut child = Command::new(built("laelaps"))
        .args(["user", "hash", "--for", wanted])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the broker's binary can be started");
    let mut input = child.stdin.take().expect("its input is piped");
    input.write_all(password.as_bytes()).expect("it reads the password");
    drop(input);
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "user hash: {}", output.status);
    String::from_utf8(output.stdout).expect("a hash is text").trim().to_owned()
}

pub(crate) fn user(name: &str, password: &str, kinds: &[&str], more: &str) -> String {
    let hashes: Vec<String> = kinds.iter().map(|kind| hash(password, kind)).collect();
    format!("[[users]]\nname = \"{name}\"\npassword-hash = {hashes:?}\n{more}\n")
}

fn config(scratch: &Scratch, text: &str) -> PathBuf {
    let path = scratch.join("laelaps.toml");
    fs::write(&path, text).expect("a file can be written");
    path
}

fn start(data: &Path, config: &Path) -> Broker {
    let mut start = Start::new(data);
    start.args.extend(["--config".into(), config.display().to_string()]);
    start.ready()
}

pub(crate) fn plain(user: &str, password: &str) -> Sasl {
    Sasl::Plain { user: user.to_owned(), password: Password::new(password.as_bytes()) }
}

/// A connection from an address of loopback.
pub(crate) fn dial_from(from: Ipv4Addr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from((from, 0)).into()).expect("loopback has many addresses");
    socket.connect_timeout(&to.into(), WAIT)?;
    Ok(TcpStream::from(socket))
}

/// A log-in by PLAIN from an address of loopback, as far as its first byte is awaited.
fn attempt(from: Ipv4Addr, to: SocketAddr, user: &str, password: &str) -> TcpStream {
    let mut stream = dial_from(from, to).expect("connected");
    stream.set_read_timeout(Some(WAIT)).expect("bounded");
    let response = format!("\0{user}\0{password}");
    let mut bytes = ProtocolId::Sasl.header().to_vec();
    let init = SaslInit {
        mechanism: Symbol::new("PLAIN"),
        initial_response: Some(response.as_bytes()),
        hostname: None,
    };
    frame::write_sasl(&mut bytes, &SaslBody::Init(init));
    stream.write_all(&bytes).expect("sent");
    stream
}

/// Everything that the broker says to it, and the outcome in there.
fn answer(mut stream: TcpStream) -> (Vec<u8>, SaslCode) {
    let mut said = Vec::new();
    stream.read_to_end(&mut said).expect("an orderly end");
    let mut rest = &said[ProtocolId::Sasl.header().len()..];
    while let Some((frame, len)) = frame::parse(rest, u32::MAX).expect("frames") {
        if let SaslBody::Outcome(outcome) = SaslBody::decode(frame.body).expect("a SASL frame") {
            return (said.clone(), outcome.code);
        }
        rest = &rest[len..];
    }
    panic!("no outcome: {said:?}");
}

fn wait_said(broker: &Broker, words: &[&str]) {
    let deadline = Instant::now() + WAIT;
    while !broker.said().lines().any(|line| words.iter().all(|word| line.contains(word))) {
        assert!(Instant::now() < deadline, "no line with {words:?}:\n{}", broker.said());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_wrong_password_and_an_unknown_user_are_answered_alike_and_late() {
    const ROUNDS: u8 = 5;
    let scratch = Scratch::new("alike");
    let users = user("ann", "right-of-ann", &["argon2id"], "")
        + &user("bob", "right-of-bob", &["scram-sha-256", "scram-sha-512"], "");
    let broker = start(&scratch.join("data"), &config(&scratch, &users));
    let mut took: [Vec<Duration>; 3] = Default::default();
    let mut answers = Vec::new();
    for round in 1..=ROUNDS {
        for (at, name) in ["ann", "bob", "nobody"].into_iter().enumerate() {
            // Each from an address of its own: the second failure of one is answered later.
            let from = Ipv4Addr::new(127, 0, 1 + at as u8, round);
            let began = Instant::now();
            let (said, code) = answer(attempt(from, broker.amqp, name, "wrong-word"));
            took[at].push(began.elapsed());
            assert_eq!(code, SaslCode::Auth);
            answers.push(said);
        }
    }
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "{answers:?}");
    let median = took.map(|mut some| {
        some.sort_unstable();
        some[some.len() / 2]
    });
    println!("ann, bob, nobody: {median:?}");
    let (least, most) = (median.iter().min().expect("some"), median.iter().max().expect("some"));
    assert!(*least >= Duration::from_millis(100), "{median:?}");
    assert!(*most < *least * 2, "the time tells who is there: {median:?}");
    for (name, password) in [("ann", "right-of-ann"), ("bob", "right-of-bob")] {
        let client = Client::connect(broker.amqp, "right", plain(name, password), WAIT);
        client.expect("let in").close().expect("closed in order");
    }
    let said = broker.said();
    assert!(said.contains("a log-in was refused") && said.contains("nobody"), "{said}");
    for secret in ["right-of", "wrong-word", "argon2id$", "SCRAM-SHA-256$"] {
        assert!(!said.contains(secret), "`{secret}` is in the log:\n{said}");
    }
    // Neither ANONYMOUS nor the bare protocol goes around it.
    for way in [Sasl::Anonymous, Sasl::None] {
        assert!(Client::connect(broker.amqp, "none", way, WAIT).is_err());
    }
    assert!(broker.stop().success());
}

#[test]
fn a_flood_of_failures_stops_no_right_log_in_from_elsewhere() {
    const FLOOD: usize = 300;
    let scratch = Scratch::new("guesses");
    let users = user("ann", "right", &["argon2id"], "");
    let broker = start(&scratch.join("data"), &config(&scratch, &users));
    let eve = Ipv4Addr::new(127, 0, 0, 66);
    let flood: Vec<TcpStream> =
        (0..FLOOD).map(|n| attempt(eve, broker.amqp, "ann", &format!("tried-{n}"))).collect();
    for number in 0..5 {
        let began = Instant::now();
        let client = Client::connect(broker.amqp, "ann", plain("ann", "right"), WAIT);
        client.unwrap_or_else(|error| panic!("log-in {number}: {error}")).close().expect("closed");
        assert!(began.elapsed() < Duration::from_secs(5), "log-in {number} waited");
    }
    let codes: Vec<SaslCode> = flood.into_iter().map(|stream| answer(stream).1).collect();
    let busy = codes.iter().filter(|code| **code == SaslCode::SysTemp).count();
    let refused = codes.iter().filter(|code| **code == SaslCode::Auth).count();
    println!("{busy} were told to come later, {refused} were refused");
    assert_eq!(busy + refused, FLOOD);
    assert!(busy > 0 && refused > 0, "{codes:?}");
    let said = broker.said();
    let lines = said.lines().filter(|line| line.contains("a log-in was refused")).count();
    assert!(lines >= 1 && lines < refused.max(2), "{lines} lines for {refused} refusals");
    assert!(!said.contains("tried-"), "a guess is in the log:\n{said}");
    assert!(broker.stop().success());
}

/// Certificates of the authority's clients: `CN=…, O=Test`, and the DNS name `….test`.
#[test]
fn a_certificate_logs_in_as_the_user_that_it_names() {
    let scratch = Scratch::new("external");
    let names = [
        ("by-cn", "cn:one"),
        ("by-dns", "dns:TWO.test"),
        ("by-subject", "subject:o=Test, cn=three"),
        ("first", "cn:four"),
        ("second", "dns:four.test"),
    ];
    let mut text = user("word", "pass-word", &["argon2id"], "");
    for (user, name) in names {
        text += &format!("[[users]]\nname = \"{user}\"\ncertificates = [\"{name}\"]\n");
    }
    let (broker, amqps, authority) = certified(&scratch, &text);
    let connect = |own: Option<&Pair>, sasl: Sasl| {
        let tls = TlsClient::new(&authority.trusting(own), "localhost").expect("sound files");
        Client::connect_tls(amqps, &tls, "certified", sasl, WAIT)
    };
    for (certificate, name) in [("one", "by-cn"), ("two", "by-dns"), ("three", "by-subject")] {
        let pair = authority.client(certificate);
        let client = connect(Some(&pair), Sasl::External).expect("let in");
        let listed = broker.get("/api/v1/connections");
        assert_eq!(listed["connections"][0]["user"], name, "{listed}");
        client.close().expect("closed in order");
    }
    // No certificate, or one that is nobody's: there are passwords still.
    let nobody = authority.client("nobody");
    for own in [None, Some(&nobody)] {
        assert!(connect(own, Sasl::External).is_err(), "{own:?} was let in");
        connect(own, plain("word", "pass-word")).expect("let in").close().expect("closed");
    }
    // A certificate that two users claim is an answer to neither.
    assert!(connect(Some(&authority.client("four")), Sasl::External).is_err());
    wait_said(&broker, &["its certificate names two users"]);
    assert!(broker.stop().success());
}

/// `docs/operating/security.md`: who copies it gets a broker that starts.
#[test]
fn the_worked_example_is_a_configuration() {
    let scratch = Scratch::new("example");
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operating/security.md");
    let page = fs::read_to_string(page).expect("the page is there");
    let (_, example) = page.split_once("```toml\n").expect("an example");
    let (example, _) = example.split_once("```\n").expect("its end");
    let checked = |text: &str| {
        let path = config(&scratch, text);
        let output = Command::new(built("laelaps")).args(["config", "check"]).arg(path).output();
        let output = output.expect("the broker's binary can be started");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(checked(example), (Some(0), String::new()));
    // It is looked at: a role that is not there, and no authority for the certificates.
    for (text, replaced) in [("roles = [\"orders-in\"", "roles = [\"no\""), ("tls-client-ca", "#")]
    {
        assert!(example.contains(text));
        assert_eq!(checked(&example.replace(text, replaced)).0, Some(3), "{text}");
    }
}

#[test]
fn a_user_may_do_what_its_roles_say_and_nothing_else() {
    let scratch = Scratch::new("roles");
    let text = user("ann", "a", &["argon2id"], "roles = [\"sender\"]")
        + &user("bob", "b", &["argon2id"], "roles = [\"receiver\", \"asker\"]")
        + "[[roles]]\nname = \"sender\"\nsend = [\"orders.#\"]\ncreate = [\"orders.*\"]\n\
           [[roles]]\nname = \"receiver\"\nconsume = [\"orders.#\"]\n\
           [[roles]]\nname = \"asker\"\ncreate = [\"$temp.#\"]\n";
    let broker = start(&scratch.join("data"), &config(&scratch, &text));
    let as_user = |name: &str, password: &str| {
        Client::connect(broker.amqp, name, plain(name, password), WAIT).expect("let in")
    };
    let mut ann = as_user("ann", "a");
    let sender = ann.sender("orders.eu").expect("allowed");
    ann.send(sender, &durable_message(b"one")).expect("sent");
    assert_eq!(ann.next_outcome().expect("an answer").1, Outcome::Accepted);
    denied(ann.receiver("orders.eu", 1));
    let mut bob = as_user("bob", "b");
    bob.receiver("orders.eu", 1).expect("allowed");
    bob.receive().expect("a message");
    denied(bob.sender("orders.eu"));
    denied(as_user("bob", "b").receiver("orders.us", 1));
    denied(as_user("ann", "a").sender("orders.eu.new"));
    wait_said(&broker, &["a user may not do that", "user=\"bob\"", "right=\"send\""]);
    assert!(broker.stop().success());
}

fn denied<T>(result: Result<T, ClientError>) {
    match result {
        Ok(_) => panic!("it is allowed"),
        Err(error) => {
            let said = format!("{error:?}");
            assert!(said.contains("UnauthorizedAccess"), "{said}");
        }
    }
}

#[test]
#[ignore = "needs the foreign clients: tests/run interop"]
fn users_log_in_with_their_password_only() {
    let scratch = Scratch::new("sasl");
    let config = config(&scratch, &user("app", "secret", &["argon2id"], ""));
    let broker = start(&scratch.join("data"), &config);
    for client in BOTH {
        let connect = |user: Option<(&str, &str)>| match user {
            Some((user, password)) => {
                json!({"do": "connect", "port": broker.amqp.port(), "user": user,
                    "password": password})
            }
            None => json!({"do": "connect", "port": broker.amqp.port()}),
        };
        let mut remote = Remote::start(client);
        remote.ok(connect(Some(("app", "secret"))));
        remote.sender("s", "sasl");
        remote.send("s", &numbered(1));
        for wrong in [Some(("app", "Secret")), Some(("nobody", "secret")), Some(("app", "")), None]
        {
            let mut remote = Remote::start(client);
            let answer = remote.step(connect(wrong));
            assert!(!answer["error"].is_null(), "{client:?}: {wrong:?} got in: {answer}");
        }
    }
    let said = broker.said();
    assert!(!said.contains("secret") && !said.contains("Secret"), "a password is in the log");
}

/// A broker that serves TLS to these users beside, and the authority of its clients.
fn certified(scratch: &Scratch, users: &str) -> (Broker, SocketAddr, Authority) {
    let authority = Authority::new(scratch.path(), "a");
    let (server, amqps) = (authority.server("localhost"), free_port());
    let files =
        [("tls-cert", &server.cert), ("tls-key", &server.key), ("tls-client-ca", &authority.ca())]
            .map(|(key, path)| format!("{key} = \"{}\"\n", path.display()))
            .concat();
    let text = format!("tls-listen = \"{amqps}\"\n{files}{users}");
    (start(&scratch.join("data"), &config(scratch, &text)), amqps, authority)
}

#[test]
#[ignore = "needs the foreign clients: tests/run interop"]
fn foreign_clients_log_in_by_their_certificate() {
    let scratch = Scratch::new("foreign");
    let users = "[[users]]\nname = \"shop\"\ncertificates = [\"cn:shop\"]\n";
    let (broker, amqps, authority) = certified(&scratch, users);
    for client in BOTH {
        let connect = |own: &Pair| {
            json!({"do": "connect", "port": amqps.port(), "tls_ca": authority.ca(),
                "tls_cert": own.cert, "tls_key": own.key, "mechs": "EXTERNAL", "within_ms": 5000})
        };
        let mut remote = Remote::start(client);
        remote.ok(connect(&authority.client("shop")));
        remote.sender("s", "certified");
        remote.send("s", &numbered(1));
        let listed = broker.get("/api/v1/connections").to_string();
        assert!(listed.contains("\"user\":\"shop\""), "{client:?}: {listed}");
        let answer = Remote::start(client).step(connect(&authority.client("other")));
        assert!(!answer["error"].is_null(), "{client:?}: another name got in: {answer}");
    }
    assert!(broker.stop().success());
}

/// JMS takes the strongest mechanism that is offered.
#[test]
#[ignore = "needs the foreign clients: tests/run interop"]
fn jms_proves_its_password_by_scram() {
    let scratch = Scratch::new("jms-scram");
    let hashes = ["scram-sha-256", "scram-sha-512"];
    let broker =
        start(&scratch.join("data"), &config(&scratch, &user("app", "secret", &hashes, "")));
    let send = |password: &str, only: &str| {
        let url = format!("amqp://{}?jms.username=app&jms.password={password}{only}", broker.amqp);
        let mut client = java("jms", "JmsClient");
        client.args(["send", &url, "scram", "3"]).output().expect("java can be started")
    };
    for only in ["", "&amqp.saslMechanisms=SCRAM-SHA-256", "&amqp.saslMechanisms=SCRAM-SHA-512"] {
        let output = send("secret", only);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("done"), "{only}: {said}{errors}");
    }
    assert!(!send("Secret", "").status.success(), "a wrong password got in");
    assert_eq!(broker.get("/api/v1/queues/scram")["available"], 9);
    assert!(broker.stop().success());
}

/// Proton chooses among what Cyrus SASL knows; both sides prove that they know the password.
#[test]
#[ignore = "needs the foreign clients: tests/run interop"]
fn proton_proves_its_password_by_scram() {
    let scratch = Scratch::new("scram");
    let hashes = ["scram-sha-256", "scram-sha-512"];
    let users = user("a,b=c", "se cret", &hashes, "") + &user("app", "secret", &hashes, "");
    let broker = start(&scratch.join("data"), &config(&scratch, &users));
    let step = |name: &str, password: &str, mechanisms: &str| -> Value {
        json!({"do": "connect", "port": broker.amqp.port(), "user": name, "password": password,
            "mechs": mechanisms})
    };
    let proton = || Remote::start(BOTH[0]);
    for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512", "SCRAM-SHA-256 SCRAM-SHA-512 PLAIN"] {
        for (name, password) in [("app", "secret"), ("a,b=c", "se cret")] {
            let mut remote = proton();
            remote.ok(step(name, password, mechanism));
            remote.sender("s", "scram");
            remote.send("s", &numbered(1));
            let listed = broker.get("/api/v1/connections").to_string();
            assert!(listed.contains(name), "{listed}");
        }
        for (name, password) in [("app", "Secret"), ("nobody", "secret")] {
            let answer = proton().step(step(name, password, mechanism));
            assert!(!answer["error"].is_null(), "{mechanism}: {name} got in: {answer}");
        }
    }
    assert!(broker.stop().success());
}
