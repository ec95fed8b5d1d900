//! Every client library, every feature: the table of `docs/operating/clients.md`, made by the run.
//!
//! ```text
//!   program of the library (tests/clients) ◀── steps ── exercise ── steps ──▶ another library
//!                    │                            │                                 │
//!                    └────────▶ broker ◀──────────┼── kill -9, start elsewhere ─────┘
//!                                                 ▼
//!          a cell for each feature ── compared with the page's row, or written (LAELAPS_BLESS=1)
//! ```
//!
//! What a library says nobody else believes: what it sends another one receives, and the other way
//! round. A cell is `yes`, `yes*` where the program had to connect again because the library does
//! not, or `-` where the library has no way to ask for the feature; the reason comes from the
//! program and stands below the table. What fails, fails the test: a cell can't say `no`.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Instant;

use serde_json::{Value, json};

use crate::authority::Authority;
use crate::harness::{Broker, Scratch, Start, free_port};
use crate::load::{Client, fetched};
use crate::message::{pattern, to_hex};
use crate::remote::Remote;

const PAGE: &str = "docs/operating/clients.md";
const BODY_MIB: usize = 10;

/// A library and how its program is started.
struct Library {
    name: &'static str,
    command: fn() -> Command,
}

const LIBRARIES: &[Library] = &[
    Library { name: "Proton Python", command: || Client::Proton.command("remote") },
    Library { name: "Proton C", command: || Command::new(fetched("proton-c/remote")) },
    Library { name: "rhea", command: || Client::Rhea.command("remote") },
    Library { name: "go-amqp", command: || Command::new(fetched("go-amqp/remote")) },
    Library { name: "fe2o3-amqp", command: || Command::new(fetched("fe2o3/remote")) },
    Library { name: "Qpid JMS 2.x", command: || java("jms", "JmsRemote") },
    Library { name: "Qpid JMS 1.x", command: || java("jms1", "JmsRemote") },
    Library { name: "protonj2", command: || java("protonj2", "ProtonJ2Remote") },
    Library { name: "Vert.x AMQP client", command: || java("vertx", "VertxRemote") },
];

#[test]
#[ignore = "needs the foreign clients: tests/run table"]
fn proton_python() {
    row_holds("Proton Python");
}

#[test]
#[ignore = "needs the foreign clients: tests/run table"]
fn proton_c() {
    row_holds("Proton C");
}

#[test]
#[ignore = "needs the foreign clients: tests/run table"]
fn rhea() {
    row_holds("rhea");
}

#[test]
#[ignore = "needs the foreign clients: tests/run table"]
fn go_amqp() {
    row_holds("go-amqp");
}

#[test]
#[ignore = "needs the foreign clients: tests/run table"]
fn fe2o3_amqp() {
    row_holds("fe2o3-amqp");
}

#[test]
#[ignore = "needs the foreign clients: tests/run table"]
fn qpid_jms_2() {
    row_holds("Qpid JMS 2.x");
}

#[test]
#[ignore = "needs the foreign clients: tests/run table"]
fn qpid_jms_1() {
    row_holds("Qpid JMS 1.x");
}

#[test]
#[ignore = "needs the foreign clients: tests/run table"]
fn protonj2() {
    row_holds("protonj2");
}

#[test]
#[ignore = "needs the foreign clients: tests/run table"]
fn vertx() {
    row_holds("Vert.x AMQP client");
}

/// What `tests/run clients` has built of a module of `tests/clients/java`.
pub(crate) fn java(module: &str, class: &str) -> Command {
    let (classes, libraries) = (format!("java/{module}/classes"), format!("java/{module}/lib"));
    let path = format!("{}:{}/*", fetched(&classes).display(), fetched(&libraries).display());
    let mut command = Command::new("java");
    // A client that lives for seconds: its start counts, not its speed.
    command.args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", &path, class]);
    command
}

// ---- The features -------------------------------------------------------------------------------

type Exercise = fn(&mut World) -> Cell;

const FEATURES: &[(&str, Exercise)] = &[
    ("send", send),
    ("receive", receive),
    ("browse", browse),
    ("drain", drain),
    ("10 MiB", large),
    ("heartbeats", heartbeats),
    ("request/reply", request_and_reply),
    ("TLS", tls),
    ("dead letters", dead_letters),
    ("reconnect", reconnect),
];

enum Cell {
    Yes,
    /// It works by the program's doing, for the reason given.
    ByProgram(String),
    /// The library has no way to ask for it, for the reason given.
    Lacking(String),
}

impl Cell {
    fn shown(&self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::ByProgram(_) => "yes*",
            Self::Lacking(_) => "-",
        }
    }

    fn reason(&self) -> Option<&str> {
        match self {
            Self::Yes => None,
            Self::ByProgram(reason) | Self::Lacking(reason) => Some(reason),
        }
    }
}

/// A library's program, another library's as witness, and a broker that listens for both kinds.
struct World {
    scratch: Scratch,
    ca: PathBuf,
    tls_args: Vec<String>,
    tls_port: u16,
    broker: Option<Broker>,
    client: Remote,
    witness: Remote,
}

impl World {
    fn new(library: &Library) -> Self {
        let scratch = Scratch::new("table");
        let authority = Authority::new(scratch.path(), "table");
        let server = authority.server("localhost");
        let tls = free_port();
        let shown = |path: &Path| path.display().to_string();
        // What the broker must hear from clients. Shorter, and a client that takes 10 MiB on a busy
        // machine is late.
        let config = scratch.join("laelaps.toml");
        fs::write(&config, "idle-timeout = \"10s\"\n").expect("a file can be written");
        let tls_args = vec![
            ("--tls-listen", tls.to_string()),
            ("--tls-cert", shown(&server.cert)),
            ("--tls-key", shown(&server.key)),
            ("--config", shown(&config)),
        ];
        let tls_args = tls_args.into_iter().flat_map(|(name, value)| [name.to_owned(), value]);
        let other = if library.name == "Proton Python" { Client::Rhea } else { Client::Proton };
        let mut world = Self {
            ca: authority.ca(),
            tls_args: tls_args.collect(),
            tls_port: tls.port(),
            broker: None,
            client: Remote::spawn((library.command)()),
            witness: Remote::start(other),
            scratch,
        };
        world.start(free_port().port());
        world
    }

    /// Starts the broker with the data there are.
    fn start(&mut self, port: u16) {
        let data = self.scratch.join("data");
        let mut start = Start::new(&data);
        start.listen = Some(([127, 0, 0, 1], port).into());
        start.args.extend_from_slice(&self.tls_args);
        self.broker = Some(start.ready());
        self.witness.ok(json!({"do": "connect", "port": port}));
    }

    fn broker(&self) -> &Broker {
        self.broker.as_ref().expect("it is started before a feature and after each kill")
    }

    /// A new connection of the client.
    fn connect(&mut self) {
        let port = self.broker().amqp.port();
        self.client.ok(json!({"do": "connect", "port": port}));
    }

    fn sends(&mut self, queue: &str, texts: &[&str]) {
        self.client.sender("s", queue);
        texts.iter().for_each(|text| say(&mut self.client, "s", text));
        self.client.answered(json!({"do": "detach", "name": "s"}));
    }

    fn witness_sends(&mut self, queue: &str, texts: &[&str]) {
        self.witness.sender("w", queue);
        texts.iter().for_each(|text| say(&mut self.witness, "w", text));
        self.witness.answered(json!({"do": "detach", "name": "w"}));
    }

    /// Takes all of them in order, and settles them.
    fn witness_receives(&mut self, queue: &str, texts: &[&str]) {
        receives(&mut self.witness, queue, texts);
    }
}

fn say(remote: &mut Remote, name: &str, text: &str) {
    let step = json!({"do": "send", "name": name, "text": text, "durable": true});
    assert_eq!(remote.ok(step)["state"], "accepted", "{text}");
}

/// Takes messages by their text, as `name:0`, `name:1` ...
fn hears(remote: &mut Remote, name: &str, texts: &[&str]) -> Vec<Value> {
    let messages = remote.read(name, texts.len(), 10_000);
    let heard: Vec<&str> = messages.iter().filter_map(|each| each["text"].as_str()).collect();
    assert_eq!(heard, texts, "of {messages:?}");
    messages
}

fn receives(remote: &mut Remote, queue: &str, texts: &[&str]) {
    remote.receiver("r", queue, texts.len() as u32);
    hears(remote, "r", texts);
    (0..texts.len()).for_each(|n| remote.settle(&format!("r:{n}"), "accepted"));
    remote.answered(json!({"do": "detach", "name": "r"}));
}

fn lacking(answer: &Value) -> Option<String> {
    Some(answer.get("lacks")?.as_str().expect("a reason is text").to_owned())
}

/// It works, with what the program says is to be known of it.
fn noted(answer: &Value) -> Cell {
    match answer["note"].as_str() {
        Some(note) => Cell::ByProgram(note.to_owned()),
        None => Cell::Yes,
    }
}

const THREE: &[&str] = &["one", "zwei: grüße", "three"];

fn send(world: &mut World) -> Cell {
    world.connect();
    world.sends("send", THREE);
    world.witness_receives("send", THREE);
    Cell::Yes
}

fn receive(world: &mut World) -> Cell {
    world.connect();
    world.witness_sends("receive", THREE);
    receives(&mut world.client, "receive", THREE);
    // A connection that is closed has told the broker what it settled.
    world.client.answered(json!({"do": "close"}));
    let queue = world.broker().get("/api/v1/queues/receive");
    assert_eq!((&queue["available"], &queue["acquired"]), (&json!(0), &json!(0)), "{queue}");
    Cell::Yes
}

fn browse(world: &mut World) -> Cell {
    world.connect();
    world.witness_sends("browse", THREE);
    let step = json!({"do": "receiver", "name": "b", "from": "browse", "copy": true, "credit": 9});
    let answer = world.client.ok(step);
    if let Some(reason) = lacking(&answer) {
        return Cell::Lacking(reason);
    }
    hears(&mut world.client, "b", THREE);
    world.client.answered(json!({"do": "detach", "name": "b"}));
    world.witness_receives("browse", THREE);
    noted(&answer)
}

/// Credit that a drain has taken back brings no message later.
fn drain(world: &mut World) -> Cell {
    let port = world.broker().amqp.port();
    world.client.ok(json!({"do": "connect", "port": port, "prefetch": 0}));
    world.witness_sends("drain", &["one", "two"]);
    world.client.receiver("r", "drain", 0);
    let answer = world.client.ok(json!({"do": "drain", "name": "r", "credit": 10}));
    if let Some(reason) = lacking(&answer) {
        return Cell::Lacking(reason);
    }
    assert_eq!(answer["done"], true, "{answer}");
    hears(&mut world.client, "r", &["one", "two"]);
    world.witness_sends("drain", &["three"]);
    let queue = world.broker().get("/api/v1/queues/drain");
    assert_eq!(queue["available"], 1, "no credit is left: {queue}");
    let answer = world.client.ok(json!({"do": "drain", "name": "r", "credit": 10}));
    assert_eq!(answer["done"], true, "{answer}");
    hears(&mut world.client, "r", &["three"]);
    noted(&answer)
}

fn large(world: &mut World) -> Cell {
    world.connect();
    let body = to_hex(&pattern(BODY_MIB << 20));
    let step = json!({"do": "send", "name": "s", "body": body, "durable": true});
    // There, through a library on each side, and back.
    let (client, witness) = (&mut world.client, &mut world.witness);
    for (from, to, queue) in [(0, 1, "large-there"), (1, 0, "large-back")] {
        let pair = [&mut *client, &mut *witness];
        pair[from].sender("s", queue);
        assert_eq!(pair[from].ok(step.clone())["state"], "accepted");
        pair[from].answered(json!({"do": "detach", "name": "s"}));
        pair[to].receiver("r", queue, 1);
        let came = pair[to].read("r", 1, 30_000).remove(0);
        assert!(came["body"].as_str() == Some(&body), "{queue}: {BODY_MIB} MiB came out changed");
        pair[to].settle("r:0", "accepted");
        pair[to].answered(json!({"do": "detach", "name": "r"}));
    }
    Cell::Yes
}

/// A silence longer than either side's idle timeout: 2 s the client's, 10 s the broker's. The page
/// says so too.
const SILENCE_MS: u64 = 12_000;

fn connection_ids(world: &mut World) -> Vec<u64> {
    let listed = world.broker().get("/api/v1/connections");
    let listed = listed["connections"].as_array().expect("a list").iter();
    listed.map(|connection| connection["id"].as_u64().expect("an id")).collect()
}

fn heartbeats(world: &mut World) -> Cell {
    let port = world.broker().amqp.port();
    let answer = world.client.ok(json!({"do": "connect", "port": port, "idle_ms": 2000}));
    if let Some(reason) = lacking(&answer) {
        return Cell::Lacking(reason);
    }
    world.client.sender("s", "heartbeats");
    let connections = connection_ids(world);
    assert!(!connections.is_empty(), "the client has one");
    let answer = world.client.ok(json!({"do": "idle", "ms": SILENCE_MS}));
    assert_eq!(answer["open"], true, "the broker's heartbeats come");
    assert_eq!(connection_ids(world), connections, "the client's heartbeats come");
    say(&mut world.client, "s", "after the silence");
    world.witness_receives("heartbeats", &["after the silence"]);
    Cell::Yes
}

/// Each side asks once, through a queue that the broker makes and names.
fn request_and_reply(world: &mut World) -> Cell {
    world.connect();
    let (client, witness) = (&mut world.client, &mut world.witness);
    for (asks, answers, queue) in [(0, 1, "ask-there"), (1, 0, "ask-here")] {
        let pair = [&mut *client, &mut *witness];
        let step = json!({"do": "receiver", "name": "back", "dynamic": true, "credit": 1});
        let made = pair[asks].ok(step);
        if let Some(reason) = lacking(&made) {
            return Cell::Lacking(reason);
        }
        let back = made["address"].as_str().expect("the broker names the queue").to_owned();
        pair[asks].sender("ask", queue);
        let question = json!({"do": "send", "name": "ask", "text": "how late?", "reply_to": back,
            "correlation": "question 7"});
        assert_eq!(pair[asks].ok(question)["state"], "accepted");
        pair[answers].receiver("asked", queue, 1);
        let asked = hears(pair[answers], "asked", &["how late?"]).remove(0);
        assert_eq!(asked["reply_to"], back.as_str(), "{queue}");
        pair[answers].ok(json!({"do": "sender", "name": "answer", "to": back}));
        let answer = json!({"do": "send", "name": "answer", "text": "five",
            "correlation": asked["correlation"]});
        assert_eq!(pair[answers].ok(answer)["state"], "accepted");
        let came = hears(pair[asks], "back", &["five"]).remove(0);
        assert_eq!(came["correlation"], "question 7", "{queue}");
        pair[answers].settle("asked:0", "accepted");
        for (side, name) in [(answers, "asked"), (answers, "answer"), (asks, "ask"), (asks, "back")]
        {
            pair[side].answered(json!({"do": "detach", "name": name}));
        }
    }
    Cell::Yes
}

fn tls(world: &mut World) -> Cell {
    let ca = world.ca.display().to_string();
    world.client.ok(json!({"do": "connect", "port": world.tls_port, "tls_ca": ca}));
    world.sends("tls", THREE);
    receives(&mut world.client, "tls", THREE);
    // Whoever trusts another authority must not be served.
    let other = Authority::new(world.scratch.path(), "other").ca().display().to_string();
    let refused = world.client.step(json!({"do": "connect", "port": world.tls_port,
        "tls_ca": other, "within_ms": 5000}));
    assert!(refused.get("error").is_some(), "a certificate that nobody vouches for: {refused}");
    Cell::Yes
}

/// What is rejected is in the dead-letter queue, for this client and for another one.
fn dead_letters(world: &mut World) -> Cell {
    world.connect();
    world.sends("poison", &["poison"]);
    world.client.receiver("r", "poison", 1);
    hears(&mut world.client, "r", &["poison"]);
    world.client.settle("r:0", "rejected");
    world.client.answered(json!({"do": "detach", "name": "r"}));
    world.client.receiver("dead", "DLQ", 1);
    let seen = hears(&mut world.client, "dead", &["poison"]).remove(0);
    world.client.settle("dead:0", "released");
    world.client.answered(json!({"do": "close"}));
    world.witness.receiver("dead", "DLQ", 1);
    let judged = hears(&mut world.witness, "dead", &["poison"]).remove(0);
    world.witness.settle("dead:0", "accepted");
    world.witness.answered(json!({"do": "detach", "name": "dead"}));
    let said = |message: &Value| {
        let annotations = &message["annotations"];
        ["x-opt-ORIG-ADDRESS", "x-opt-ORIG-QUEUE", "x-opt-DEATH-REASON"]
            .map(|name| annotations[name].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(said(&judged), ["poison", "poison", "rejected"], "{judged}");
    match seen["annotations_hidden"].as_str() {
        Some(reason) => Cell::ByProgram(reason.to_owned()),
        None => {
            assert_eq!(said(&seen), said(&judged), "{seen}");
            Cell::Yes
        }
    }
}

/// The broker dies and comes back elsewhere with its data, as the other half of a pair would.
fn reconnect(world: &mut World) -> Cell {
    let [here, there] = [world.broker().amqp.port(), free_port().port()];
    let failover = json!({"do": "connect", "port": here, "failover": [here, there],
        "idle_ms": 5000});
    let reason = lacking(&world.client.ok(failover));
    if reason.is_some() {
        world.connect();
    }
    world.client.sender("s", "again");
    say(&mut world.client, "s", "before");
    world.client.receiver("r", "again-back", 10);
    world.witness_sends("again-back", &["before"]);
    hears(&mut world.client, "r", &["before"]);
    world.client.settle("r:0", "accepted");
    world.client.ok(json!({"do": "idle", "ms": 200}));
    world.broker.take().expect("it runs").kill();
    world.start(there);
    if reason.is_some() {
        world.connect();
        world.client.sender("s", "again");
        world.client.receiver("r", "again-back", 10);
    }
    let after = json!({"do": "send", "name": "s", "text": "after", "durable": true,
        "within_ms": 40_000});
    assert_eq!(world.client.ok(after)["state"], "accepted");
    world.witness_sends("again-back", &["after"]);
    hears(&mut world.client, "r", &["after"]);
    world.client.settle("r:0", "accepted");
    world.witness_receives("again", &["before", "after"]);
    match reason {
        Some(reason) => Cell::ByProgram(reason),
        None => Cell::Yes,
    }
}

// ---- The page -----------------------------------------------------------------------------------

/// Runs all features of a library and compares its row and its notes with the page's.
fn row_holds(name: &str) {
    let library = LIBRARIES.iter().find(|each| each.name == name).expect("it is in the list");
    let mut world = World::new(library);
    let version = world.client.ok(json!({"do": "about"}))["version"].clone();
    let version = version.as_str().expect("a library has a version").to_owned();
    let (mut cells, mut notes, mut failed) = (vec![name.to_owned(), version], vec![], vec![]);
    for (feature, exercise) in FEATURES {
        let began = Instant::now();
        // A failure of one feature must not hide the others.
        let cell = catch_unwind(AssertUnwindSafe(|| exercise(&mut world)));
        println!("{name}: {feature}: {} ms", began.elapsed().as_millis());
        let Ok(cell) = cell else {
            failed.push(*feature);
            continue;
        };
        cells.push(cell.shown().to_owned());
        if let Some(reason) = cell.reason() {
            notes.push(format!("* {name}, {feature}: {reason}"));
        }
    }
    assert!(failed.is_empty(), "{name} fails: {failed:?}");
    page_holds(name, &format!("| {} |", cells.join(" | ")), &notes);
}

const TABLE: [&str; 2] = ["<!-- table -->", "<!-- end of table -->"];
const NOTES: [&str; 2] = ["<!-- notes -->", "<!-- end of notes -->"];

/// One test at a time writes the page.
static WRITING: Mutex<()> = Mutex::new(());

fn page_holds(name: &str, row: &str, notes: &[String]) {
    let _one = WRITING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let page = fs::read_to_string(&file).expect("the page is there");
    let with_row = replaced(&page, TABLE, &format!("| {name} |"), &[row.to_owned()]);
    let fresh = replaced(&with_row, NOTES, &format!("* {name},"), notes);
    if std::env::var_os("LAELAPS_BLESS").is_some() {
        fs::write(&file, &fresh).expect("the page can be written");
    }
    let page = fs::read_to_string(&file).expect("the page is there");
    assert!(page == fresh, "{PAGE} says otherwise: LAELAPS_BLESS=1 tests/run table writes\n{row}");
}

/// The page with the lines of one library, between two marks, replaced; in the libraries' order.
fn replaced(page: &str, marks: [&str; 2], start: &str, lines: &[String]) -> String {
    let [begin, end] = marks.map(|mark| page.find(mark).expect("the page has its marks"));
    let begin = begin + marks[0].len() + 1;
    let mut kept: Vec<&str> =
        page[begin..end].lines().filter(|line| !line.starts_with(start)).collect();
    kept.extend(lines.iter().map(String::as_str));
    let place = |line: &str| {
        let names = LIBRARIES.iter();
        names.map(|each| each.name).position(|name| line[2..].starts_with(name)).unwrap_or(0)
    };
    // Heads and lines of one library stay in their order.
    kept.sort_by_key(|line| if is_head(line) { 0 } else { 1 + place(line) });
    let text: String = kept.iter().flat_map(|line| [line, "\n"]).collect();
    format!("{}{text}{}", &page[..begin], &page[end..])
}

fn is_head(line: &str) -> bool {
    line.is_empty() || line.starts_with("| client") || line.starts_with("|--")
}

/// The page has a row for each library and no other, with the features in their order.
#[test]
fn the_page_has_the_libraries_and_features() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let page = fs::read_to_string(page).expect("the page is there");
    let [begin, end] = TABLE.map(|mark| page.find(mark).expect("the page has its marks"));
    let rows: Vec<&str> = page[begin..end].lines().skip(1).collect();
    let heads = FEATURES.iter().flat_map(|(name, _)| [" | ", name]).collect::<String>();
    assert_eq!(rows[0], format!("| client | version{heads} |"));
    let names: Vec<&str> =
        rows[2..].iter().filter_map(|row| row.split(" | ").next()?.strip_prefix("| ")).collect();
    let libraries: Vec<&str> = LIBRARIES.iter().map(|each| each.name).collect();
    assert_eq!(names, libraries);
}
