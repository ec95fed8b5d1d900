//! A pair and its voters over mutual TLS, with certificates of `laelaps pki init`.
//!
//! ```text
//!   pki init ─▶ three voters, two members: founded, in sync
//!     plain TCP is answered by nobody
//!     a voter, then the backup, with a certificate of another authority   refused, and said why
//!     a voter with one of ours for another address                        the same
//!     the backup with another pair's name                                 the same
//!     kill -9 the live ─▶ the other serves ─▶ the killed one is in sync again
//!     each voter's disk lost, and replaced by `ha voters replace`; one more killed: it serves on
//! ```
//! What is exposed off loopback without certificates does not start at all.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{Scratch, free_port};
use crate::pair::{PairOf, Producer};
use crate::voters::Voters;

const WITHIN: Duration = Duration::from_secs(30);

/// An authority and its certificates, all for 127.0.0.1 but for `elsewhere`.
fn pki(dir: &Path) -> PathBuf {
    let names = ["a", "b", "voter-1", "voter-2", "voter-3"].map(|name| format!("{name}=127.0.0.1"));
    let output = laelaps("pki")
        .arg("init")
        .arg("--dir")
        .arg(dir)
        .args(names)
        .arg("elsewhere=127.0.0.9")
        .output()
        .expect("the program runs");
    assert!(output.status.success(), "{}", said(&output));
    dir.to_owned()
}

fn laelaps(command: &str) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_laelaps"));
    program.arg(command);
    program
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Three lines of a configuration.
fn lines(pki: &Path, name: &str) -> String {
    let file = |name: String| pki.join(name).display().to_string();
    let (cert, key) = (file(format!("{name}.pem")), file(format!("{name}.key")));
    format!("tls-cert = {cert:?}\ntls-key = {key:?}\ntls-ca = {:?}\n", file("ca.pem".to_owned()))
}

/// Until this is said in what a process wrote after `from`.
fn wait_for(what: &str, from: usize, said: impl Fn() -> String) {
    let since = Instant::now();
    while !said().get(from..).is_some_and(|said| said.contains(what)) {
        assert!(since.elapsed() < WITHIN, "`{what}` is not said:\n{}", said());
        thread::sleep(Duration::from_millis(50));
    }
}

fn log_of(pair: &PairOf, at: usize) -> String {
    let path = pair.scratch.join(&format!("{}.log", ["a", "b"][at]));
    fs::read_to_string(path).unwrap_or_default()
}

/// A pair in sync whose every link has certificates: which one serves.
fn up(name: &str) -> (PairOf, PathBuf, usize) {
    let mut voters = Voters::stopped(&format!("{name}-voters"));
    let dir = pki(&voters.data(0).with_file_name("pki"));
    for at in 0..3 {
        voters.tls[at] = lines(&dir, &format!("voter-{}", at + 1));
        voters.start(at);
    }
    let mut pair = PairOf::with(name, voters);
    pair.lines = ["a", "b"].map(|name| lines(&dir, name));
    pair.start(0);
    pair.start(1);
    let live = pair.wait_in_sync();
    (pair, dir, live)
}

#[test]
fn a_pair_with_certificates_is_founded_fails_over_and_is_whole_again() {
    let (mut pair, _, live) = up("trust-pair");
    let mut producer = Producer::new();
    producer.send(pair.amqp[live], 100).expect("accepted");
    pair.kill(live);
    let killed = Instant::now();
    let gap = producer.first_accepted(pair.amqp[1 - live], killed);
    println!("from kill -9 to the first accepted at the other: {} ms", gap.as_millis());
    // The watcher reached the voters with the broker's certificate.
    assert!(gap < Duration::from_millis(1500), "a lease was waited for: {gap:?}");
    pair.start(live);
    assert_eq!(pair.wait_in_sync(), 1 - live);
    producer.send(pair.amqp[1 - live], 100).expect("accepted");
    producer.check(pair.amqp[1 - live]);
}

#[test]
fn who_has_no_certificate_of_ours_is_refused_and_the_log_says_why() {
    let (mut pair, ours, live) = up("trust-strangers");
    let others = pki(&ours.with_file_name("others"));
    let backup = 1 - live;

    // Whoever looks first says UnknownIssuer, and is UnknownCA to the other end.
    // A voter of another authority, and one of ours that is not of that address.
    let refused = [
        (lines(&others, "voter-3"), "Unknown"),
        (
            lines(&ours, "elsewhere"),
            "its certificate does not name 127.0.0.1, the address of seat 3",
        ),
    ];
    for (certificate, why) in refused {
        pair.voters.kill(2);
        let from = pair.voters.said(0).len();
        pair.voters.tls[2] = certificate;
        pair.voters.start(2);
        wait_for(why, from, || pair.voters.said(0));
    }
    pair.voters.kill(2);
    pair.voters.tls[2] = lines(&ours, "voter-3");
    pair.voters.start(2);

    // A backup of another authority, one of ours with another address, and another pair's.
    let mut refused_member = |lines: String, name: &'static str, why: &str| {
        pair.kill(backup);
        let from = log_of(&pair, live).len();
        pair.lines[backup] = lines;
        pair.names[backup] = name;
        pair.start(backup);
        wait_for(why, from, || log_of(&pair, live));
        // Not in sync, whatever it thinks itself.
        pair.wait("left out", |pair| {
            let in_sync = pair.status(live).map(|status| status["in_sync"].clone());
            in_sync.is_some_and(|in_sync| in_sync.as_array().map(Vec::len) == Some(1))
        });
    };
    let name = ["a", "b"][backup];
    refused_member(lines(&others, name), "test", "Unknown");
    refused_member(lines(&ours, "elsewhere"), "test", "its certificate does not name 127.0.0.1");
    refused_member(lines(&ours, name), "another", "the peer has another pair name");
    pair.kill(backup);
    pair.names[backup] = "test";
    pair.start(backup);
    assert_eq!(pair.wait_in_sync(), live);

    // Plain text is answered by neither.
    for address in [pair.replication[live], pair.voters.addresses[0]] {
        use std::io::{Read as _, Write as _};
        let mut plain = TcpStream::connect(address).expect("the kernel takes it");
        plain.set_read_timeout(Some(WITHIN)).expect("a time limit");
        plain.write_all(b"LLvt\x01\x02\x00\x00, or anything else").expect("written");
        let mut answer = Vec::new();
        let _ = plain.read_to_end(&mut answer);
        // An alert of TLS at most.
        assert!(answer.is_empty() || answer[0] == 0x15, "{answer:?}");
    }
}

fn replace(pair: &PairOf, seat: usize) -> Output {
    let config = pair.voters.config(0);
    let mut program = laelaps("ha");
    program.args(["voters", "replace", &seat.to_string(), "--config"]).arg(config);
    program.output().expect("the program runs")
}

#[test]
fn a_voter_that_lost_its_disk_is_put_in_again_while_the_pair_serves() {
    let (mut pair, _, live) = up("trust-voter");
    let mut producer = Producer::new();
    producer.send(pair.amqp[live], 50).expect("accepted");
    let output = replace(&pair, 3);
    assert!(!output.status.success() && said(&output).contains("nothing to replace"));
    // Each of them once, so also the one that leads.
    for at in 0..3 {
        pair.voters.kill(at);
        let output = replace(&pair, at + 1);
        let said_of = said(&output);
        assert!(!output.status.success() && said_of.contains("does not answer"), "{said_of}");
        fs::remove_dir_all(pair.voters.data(at)).expect("removed");
        pair.voters.start(at);
        wait_for("know another disk for this seat", 0, || pair.voters.said(at));
        assert_eq!(pair.voters.standings()[at], "stranger");
        let output = replace(&pair, at + 1);
        assert!(output.status.success(), "{}{}", said(&output), pair.voters.all_said());
        producer.send(pair.amqp[live], 50).expect("accepted");
    }
    // One more away, the pair lives by the new ones; the renewals of three leases need them.
    pair.voters.kill(0);
    let renewals = |pair: &PairOf| {
        let status = pair.status(live).expect("it is there");
        status["renewals_total"].as_u64().expect("a number")
    };
    let before = renewals(&pair);
    thread::sleep(Duration::from_secs(6));
    assert!(renewals(&pair) >= before + 5, "{}", pair.said());
    assert_eq!(pair.role(live).as_deref(), Some("live"), "{}", pair.said());
    producer.send(pair.amqp[live], 50).expect("accepted");
    pair.kill(live);
    producer.first_accepted(pair.amqp[1 - live], Instant::now());
    producer.check(pair.amqp[1 - live]);
}

#[test]
fn off_loopback_there_is_no_plain_mode() {
    let scratch = Scratch::new("trust-exposed");
    let config = scratch.join("a.toml");
    let voters: Vec<String> =
        (0..3).map(|_| free_port()).map(|port: SocketAddr| port.to_string()).collect();
    let text = format!(
        "[ha]\npair = \"p\"\nnode = \"a\"\nreplication = \"{}\"\npeer = \"192.0.2.1:7201\"\n\
         voters = {voters:?}\n",
        free_port()
    );
    fs::write(&config, text).expect("written");
    let output = laelaps("run").arg("--config").arg(&config).output().expect("the program runs");
    let said = said(&output);
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(said.contains("192.0.2.1:7201 is off loopback"), "{said}");
}
