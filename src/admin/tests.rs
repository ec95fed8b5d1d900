//! The admin API against a scripted shard, over real HTTP.

use broker::admin::{PeekedMessage, PointAt};
use bytes::Bytes;
use journal::{Lsn, QueueId, Sequence};

use super::*;
use crate::admin_client::{self, QueueCommand, Server};
use crate::auth::{self, Authenticator, HashFor, base64};
use crate::config::{self, Config};
use crate::node::{Facts, Inbox};

/// A node of two shards on one core whose answers are canned, and the URL of its API.
fn start(stage: Stage) -> String {
    start_behind(stage, Guard { users: None, on_loopback: true })
}

fn start_behind(stage: Stage, guard: Guard) -> String {
    let node = Arc::new(Node::new());
    let (inbox, inputs) = Inbox::new(|| {});
    let facts = Facts {
        engine: "uring",
        engine_reason: "asked".to_owned(),
        durability: "sync".to_owned(),
        volatile: false,
        direct: true,
        data: "/data".into(),
    };
    node.set_cores(vec![inbox], 2, facts);
    node.enter(stage);
    std::thread::Builder::new()
        .spawn(move || {
            for input in inputs {
                match input {
                    Input::Admin { shard, request, answer } => {
                        drop(answer.send(reply(shard, &request)));
                    }
                    Input::Ping(answer) => drop(answer.send(())),
                    other @ (Input::Verdict { .. }
                    | Input::Cold { .. }
                    | Input::Listen { .. }
                    | Input::Shaken(_)
                    | Input::Pair { .. }
                    | Input::Link(_)
                    | Input::Unlink(_)
                    | Input::Look
                    | Input::CloseClients
                    | Input::Shutdown) => panic!("the API has no business with {other:?}"),
                }
            }
        })
        .expect("a thread");
    let listener = listen("127.0.0.1:0".parse().expect("an address")).expect("listening");
    let addr = listener.local_addr().expect("bound");
    serve(listener, node, guard).expect("serving");
    format!("http://{addr}")
}

fn reply(shard: ShardId, request: &AdminRequest) -> AdminReply {
    let here = |name: &str| name == "a/b" && shard == ShardId(1);
    match request {
        AdminRequest::Queues if shard == ShardId(1) => AdminReply::Queues(vec![QueueStat {
            id: QueueId(4),
            name: "a/b".to_owned(),
            shard: 1,
            durability: "sync",
            available: 3,
            acquired: 0,
            delayed: 0,
            moving: 0,
            uncommitted: 0,
            payload_bytes: 10,
            resident_bytes: 10,
            consumers: 0,
            enqueued_total: 3,
            settled_total: 0,
            rejected_total: 0,
            delivered_total: 0,
            next_sequence: Sequence(3),
        }]),
        AdminRequest::Queues => AdminReply::Queues(Vec::new()),
        AdminRequest::Peek { queue, count_max } => AdminReply::Peeked(here(queue).then(|| {
            assert!(*count_max <= broker::limits::PEEK_MESSAGES_MAX);
            vec![PeekedMessage {
                sequence: Sequence(0),
                acquired: false,
                delivery_count: 0,
                message_bytes: 2,
                message: Bytes::from_static(b"\x00\x53"),
            }]
        })),
        AdminRequest::Delete { queue } if queue == "full" && shard == ShardId(0) => {
            AdminReply::Deleted(Some(Err(Undeletable::HasMessages(3))))
        }
        AdminRequest::Delete { queue } if queue == GONE => {
            DELETES.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            AdminReply::Deleted((shard == ShardId(0)).then_some(Ok(())))
        }
        AdminRequest::Delete { queue } => AdminReply::Deleted(here(queue).then_some(Ok(()))),
        AdminRequest::Purge { queue } if queue == DEEP => {
            std::thread::sleep(Duration::from_millis(250));
            AdminReply::Purged((shard == ShardId(1)).then_some(7))
        }
        AdminRequest::Purge { queue } => AdminReply::Purged(here(queue).then_some(3)),
        AdminRequest::Connections => AdminReply::Connections(Vec::new()),
        AdminRequest::CloseConnection(id) => {
            AdminReply::ConnectionClosed(*id == ConnId(7) && shard == ShardId(1))
        }
        AdminRequest::Stats => {
            AdminReply::Stats(Box::new(ShardStats { shard: shard.0, ..ShardStats::default() }))
        }
        AdminRequest::Freeze => AdminReply::Frozen,
        AdminRequest::Point => {
            let durable = Lsn(8192 + u64::from(shard.0));
            AdminReply::Point(PointAt { first: Lsn(4096), durable })
        }
        AdminRequest::Thaw => AdminReply::Thawed(true),
        AdminRequest::KeepPoint => AdminReply::Held(shard == ShardId(0)),
        AdminRequest::ForgetPoint => AdminReply::Held(false),
    }
}

/// A queue whose purge takes a while.
const DEEP: &str = "deep";

/// A queue that the first shard deletes.
const GONE: &str = "gone";

/// How many shards were asked to.
static DELETES: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

/// What was logged, by whichever test.
static SAID: std::sync::Mutex<Vec<u8>> = std::sync::Mutex::new(Vec::new());

struct Said;

impl std::io::Write for Said {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        SAID.lock().expect("nobody panics in it").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().http_status_as_error(false).build().into()
}

fn get(url: &str) -> (u16, String) {
    let mut answer = agent().get(url).call().expect("an answer");
    (answer.status().as_u16(), answer.body_mut().read_to_string().expect("text"))
}

#[test]
fn the_answers_of_all_shards_are_merged() {
    let url = start(Stage::Ready);
    let (status, body) = get(&format!("{url}/api/v1/queues"));
    assert_eq!(status, 200, "{body}");
    assert!(body.contains("\"name\":\"a/b\""), "{body}");
    assert_eq!(get(&format!("{url}/api/v1/queues/a%2Fb")).0, 200);
    assert_eq!(get(&format!("{url}/api/v1/queues/c")).0, 404);
    let (status, body) = get(&format!("{url}/api/v1/queues/a%2Fb/messages?count=100000"));
    assert_eq!(status, 200);
    assert!(body.contains("\"encoded_hex\":\"0053\""), "{body}");
    let (_, text) = get(&format!("{url}/metrics"));
    assert!(text.contains("laelaps_queue_available{queue=\"a/b\"} 3"), "{text}");
    assert!(text.contains("laelaps_connections{shard=\"1\"} 0"), "{text}");
}

#[test]
fn a_point_is_of_all_shards_and_held_by_all_of_them() {
    let url = start(Stage::Ready);
    let ask = |method: &str| {
        let uri = format!("{url}/api/v1/point");
        let request = axum::http::Request::builder().method(method).uri(uri);
        let mut answer = agent().run(request.body(()).expect("a request")).expect("an answer");
        let body = answer.body_mut().read_to_string().expect("text");
        (answer.status().as_u16(), serde_json::from_str::<Value>(&body).expect("JSON"))
    };
    let (status, point) = ask("POST");
    assert_eq!((status, &point["data"]), (200, &"/data".into()), "{point}");
    let second = &point["shards"][1];
    assert_eq!((&second["first_lsn"], &second["durable_lsn"]), (&4096.into(), &8193.into()));
    assert_eq!(ask("PUT").0, 409, "shard 1 holds it no longer");
    assert_eq!(ask("DELETE").0, 200);
}

#[test]
fn whatever_is_refused_is_refused_in_json() {
    let url = start(Stage::Ready);
    let said = |method: &str, path: &str| {
        let request = axum::http::Request::builder().method(method).uri(format!("{url}{path}"));
        let mut answer = agent().run(request.body(()).expect("a request")).expect("an answer");
        let body = answer.body_mut().read_to_string().expect("text");
        let body: Value = serde_json::from_str(&body).unwrap_or_else(|_| panic!("{path}: {body}"));
        let why = body["error"].as_str().unwrap_or_else(|| panic!("{path}: {body}")).to_owned();
        (answer.status().as_u16(), why)
    };
    let (status, why) = said("DELETE", "/api/v1/connections/seven");
    assert_eq!(status, 400);
    assert!(why.contains("seven"), "{why}");
    let (status, why) = said("GET", "/api/v1/queues/a%2Fb/messages?count=many");
    assert_eq!(status, 400);
    assert!(why.contains("count"), "{why}");
    assert_eq!(said("GET", "/api/v1/queues/%ff").0, 400);
    assert_eq!(said("GET", "/api/v2/queues").0, 404);
    let (status, why) = said("POST", "/api/v1/queues");
    assert_eq!(status, 405);
    assert!(why.contains("POST"), "{why}");
    assert_eq!(said("GET", "/api/v1/queues/c").0, 404);
}

#[test]
fn commands_reach_the_shard_that_knows_their_object() {
    let url = start(Stage::Ready);
    let mut purged =
        agent().post(format!("{url}/api/v1/queues/a%2Fb/purge")).send_empty().expect("an answer");
    assert_eq!(purged.status().as_u16(), 200);
    assert!(purged.body_mut().read_to_string().expect("text").contains("\"purged\":3"));
    let close = |id: u64| {
        let url = format!("{url}/api/v1/connections/{id}");
        agent().delete(url).call().expect("an answer").status().as_u16()
    };
    assert_eq!((close(7), close(8)), (200, 404));
    let delete = |name: &str| {
        let mut answer =
            agent().delete(format!("{url}/api/v1/queues/{name}")).call().expect("an answer");
        (answer.status().as_u16(), answer.body_mut().read_to_string().expect("text"))
    };
    assert_eq!(delete("a%2Fb").0, 200);
    let (status, why) = delete("full");
    assert_eq!(status, 409);
    assert!(why.contains("'full' holds 3 messages: purge it first"), "{why}");
    assert_eq!(delete("nowhere").0, 404);
    assert_eq!(delete(GONE).0, 200);
    let asked = DELETES.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(asked, 1, "a queue of that name may be made anew at the next");
}

#[test]
fn a_purge_whose_caller_hangs_up_is_told_of_from_its_beginning_to_its_end() {
    tracing_subscriber::fmt().with_writer(|| Said).with_ansi(false).init();
    let url = start(Stage::Ready);
    let short = ureq::Agent::config_builder().timeout_global(Some(Duration::from_millis(100)));
    let short: ureq::Agent = short.build().into();
    let purge = format!("{url}/api/v1/queues/{DEEP}/purge");
    short.post(purge).send_empty().expect_err("it hangs up before the end");
    let said = |words: &[&str]| {
        let said = SAID.lock().expect("nobody panics in it");
        let said = String::from_utf8_lossy(&said);
        said.lines().any(|line| words.iter().all(|word| line.contains(word)))
    };
    agent().delete(format!("{url}/api/v1/queues/a%2Fb")).call().expect("an answer");
    for words in [
        &["a purge was asked for", DEEP][..],
        &["purged by an operator", DEEP, "count=7"],
        &["a deletion was asked for", "a/b"],
        &["deleted by an operator", "a/b"],
    ] {
        let in_time = (0..500).any(|_| {
            std::thread::sleep(Duration::from_millis(20));
            said(words)
        });
        assert!(in_time, "nothing was said of {words:?}");
    }
}

#[test]
fn health_says_ready_only_when_ready() {
    for (stage, status) in [
        (Stage::Locking, 503),
        (Stage::Recovering, 503),
        (Stage::Ready, 200),
        (Stage::Draining, 503),
    ] {
        let url = start(stage);
        assert_eq!(get(&format!("{url}/healthz/ready")).0, status, "{stage:?}");
        assert_eq!(get(&format!("{url}/healthz/live")).0, 200, "{stage:?}");
    }
}

#[test]
fn metrics_answer_even_when_shards_do_not() {
    let url = start(Stage::Recovering);
    let (status, text) = get(&format!("{url}/metrics"));
    assert_eq!(status, 200);
    assert!(text.contains("laelaps_ready 0"), "{text}");
}

#[test]
fn a_web_page_cannot_command() {
    let url = start(Stage::Ready);
    let post = |name: &str, value: &str| {
        let request = agent().post(format!("{url}/api/v1/queues/a%2Fb/purge")).header(name, value);
        request.send_empty().expect("an answer").status().as_u16()
    };
    assert_eq!(post("Origin", "http://evil.example"), 403);
    assert_eq!(post("Host", "evil.example:8161"), 403);
    assert_eq!(post("Host", "LOCALHOST:8161"), 200);
    assert_eq!(post("Host", "[::1]:8161"), 200);
    assert_eq!(post("X-Forwarded-For", "192.0.2.1"), 403, "a proxy lets nobody in unasked");
}

#[test]
fn off_loopback_a_user_manages_what_its_roles_say() {
    let mut text = String::new();
    for (user, password) in [("root", "all"), ("ann", "some"), ("eve", "none")] {
        let hash = auth::hash(password, HashFor::ScramSha256).expect("hashed");
        text += &format!("[[users]]\nname = \"{user}\"\npassword-hash = \"{hash}\"\n");
        text += &format!("roles = [\"{user}\"]\n");
    }
    text += "[[roles]]\nname = \"root\"\nmanage = [\"#\"]\n\
             delete = [\"#\"]\n\
         [[roles]]\nname = \"ann\"\nmanage = [\"a/b\"]\n\
             [[roles]]\nname = \"eve\"\nsend = [\"#\"]\n";
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), text).expect("written");
    let config = Config::load(Some(file.path()), config::Layer::default()).expect("sound");
    let authenticator = Authenticator::start(&config).expect("started");
    let access = config::access(&config.users, &config.roles);
    let users = Some((authenticator, access));
    let url = start_behind(Stage::Ready, Guard { users, on_loopback: false });
    let ask = |who: Option<(&str, &str)>, method: &str, path: &str| {
        let mut request = axum::http::Request::builder().method(method).uri(format!("{url}{path}"));
        if let Some((user, password)) = who {
            let encoded = base64::encode(format!("{user}:{password}").as_bytes());
            request = request.header(header::AUTHORIZATION, format!("Basic {encoded}"));
        }
        let mut answer = agent().run(request.body(()).expect("a request")).expect("an answer");
        let asked = answer.headers().contains_key(header::WWW_AUTHENTICATE);
        let body = answer.body_mut().read_to_string().expect("text");
        assert_eq!(asked, answer.status() == StatusCode::UNAUTHORIZED, "{body}");
        (answer.status().as_u16(), body)
    };
    let (root, ann, eve) = (Some(("root", "all")), Some(("ann", "some")), Some(("eve", "none")));
    let queue = "/api/v1/queues/a%2Fb";
    for who in [None, Some(("root", "some")), Some(("nobody", "all")), Some(("root", ""))] {
        assert_eq!(ask(who, "GET", queue).0, 401, "{who:?}");
        assert_eq!(ask(who, "GET", "/healthz/ready").0, 200, "probes have no password");
    }
    assert_eq!(ask(None, "GET", "/api/v2").0, 401, "nothing is told before");
    for (who, own, all) in [(root, 200, 200), (ann, 200, 403), (eve, 403, 403)] {
        for path in [queue, "/api/v1/queues/a%2Fb/messages"] {
            assert_eq!(ask(who, "GET", path).0, own, "{who:?} {path}");
        }
        assert_eq!(ask(who, "POST", "/api/v1/queues/a%2Fb/purge").0, own, "{who:?}");
        assert_eq!(ask(who, "DELETE", queue).0, if who == root { 200 } else { 403 }, "{who:?}");
        assert_eq!(ask(who, "GET", "/metrics").0, all, "{who:?}");
        assert_eq!(ask(who, "GET", "/api/v1/connections").0, all, "{who:?}");
        assert_eq!(ask(who, "DELETE", "/api/v1/connections/7").0, all, "{who:?}");
        let (status, listed) = ask(who, "GET", "/api/v1/queues");
        assert_eq!((status, listed.contains("a/b")), (200, own == 200), "{who:?}: {listed}");
    }
    let denied = ask(ann, "GET", "/api/v1/queues/other").1;
    assert!(denied.contains("the user 'ann' may not manage 'other'"), "{denied}");

    // `laelaps queue` says who it is, with the password of a file.
    #[derive(clap::Parser)]
    struct Asked {
        #[command(flatten)]
        server: Server,
    }
    let password = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(password.path(), "all\nnot this\n").expect("written");
    let by = |user: &str| {
        let file = password.path().as_os_str().to_owned();
        let flags = ["laelaps", "--admin", &url, "--user", user, "--password-file"];
        let flags = flags.map(std::ffi::OsString::from).into_iter().chain([file]);
        let Asked { server } = clap::Parser::parse_from(flags);
        admin_client::queue(&server, &QueueCommand::Stat { name: "a/b".to_owned() })
    };
    by("root").expect("let in");
    let failure = by("ann").expect_err("it is not her password");
    assert!(failure.message.contains("HTTP Basic"), "{failure}");
    assert!(!failure.message.contains("all"), "{failure}");
}
