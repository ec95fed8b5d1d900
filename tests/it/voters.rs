//! Voters as real processes on loopback: killed in turn while clients swap, down to one and back.
//!
//! What clients were told is held against `replica::history`, the checker of the simulator's
//! voters.

use std::collections::VecDeque;
use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use replica::history::History;
use replica::voter::{Client, Frames, Preface, Seat, Seats, frame};
use replica::{Answer, Outcome, PairId, Register, RequestId, Swap, Version};

use crate::authority::{Authority, Pair};
use crate::harness::{Scratch, free_port};
use crate::machines::Inside;

const PAIR: PairId = PairId([7; 16]);
const WAIT: Duration = Duration::from_secs(20);

/// Three voters, those that run.
pub(crate) struct Voters {
    /// Lines of each one's configuration.
    pub(crate) tls: [String; 3],
    /// The machines that they run on, if those are not this one.
    inside: Vec<Inside>,
    scratch: Scratch,
    pub(crate) addresses: Vec<SocketAddr>,
    running: Vec<Option<Child>>,
}

impl Voters {
    pub(crate) fn new(name: &str) -> Self {
        let mut voters = Self::stopped(name);
        (0..3).for_each(|at| voters.start(at));
        voters
    }

    pub(crate) fn stopped(name: &str) -> Self {
        let addresses: Vec<SocketAddr> = (0..3).map(|_| free_port()).collect();
        let running = vec![None, None, None];
        let (tls, inside) = (<[String; 3]>::default(), Vec::new());
        Self { tls, inside, scratch: Scratch::new(name), addresses, running }
    }

    /// Each on a machine of its own.
    pub(crate) fn over(
        name: &str,
        addresses: Vec<SocketAddr>,
        inside: Vec<Inside>,
        authority: &Authority,
    ) -> Self {
        let mut voters = Self::stopped(name);
        for (at, address) in addresses.iter().enumerate() {
            let name = format!("voter-{}", at + 1);
            voters.tls[at] = authority.member_lines(&name, &address.ip().to_string());
        }
        (voters.addresses, voters.inside) = (addresses, inside);
        (0..3).for_each(|at| voters.start(at));
        voters
    }

    fn command(&self, at: usize) -> Command {
        let exe = env!("CARGO_BIN_EXE_laelaps");
        self.inside.get(at).map_or_else(|| Command::new(exe), |inside| inside.command(exe.as_ref()))
    }

    /// Which one leads.
    pub(crate) fn leader(&self) -> Option<usize> {
        self.standings().iter().position(|standing| standing == "leader")
    }

    /// What each voter says of itself, as `ha voters` prints it.
    pub(crate) fn standings(&self) -> Vec<String> {
        let output = self
            .command(0)
            .args(["ha", "voters", "--json", "--config"])
            .arg(self.config(0))
            .output()
            .expect("the program runs");
        let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let voters = said["voters"].as_array().expect("a list");
        voters
            .iter()
            .map(|voter| voter["standing"].as_str().unwrap_or("no answer").to_owned())
            .collect()
    }

    pub(crate) fn data(&self, at: usize) -> PathBuf {
        self.scratch.join(&format!("voter-{}", at + 1))
    }

    pub(crate) fn config(&self, at: usize) -> PathBuf {
        let list: String = self
            .addresses
            .iter()
            .map(|address| format!("[[voter]]\naddress = \"{address}\"\n"))
            .collect();
        let path = self.scratch.join(&format!("voter-{}.toml", at + 1));
        fs::write(&path, format!("seat = {}\n{}{list}", at + 1, self.tls[at])).expect("written");
        path
    }

    pub(crate) fn start(&mut self, at: usize) {
        let said = fs::File::options()
            .create(true)
            .append(true)
            .open(self.scratch.join(&format!("voter-{}.said", at + 1)))
            .expect("a file for what it says");
        let child = self
            .command(at)
            .arg("voter")
            .arg("--config")
            .arg(self.config(at))
            .arg("--data")
            .arg(self.data(at))
            .arg("--allow-volatile")
            .stdin(Stdio::null())
            .stdout(said.try_clone().expect("a second handle"))
            .stderr(said)
            .spawn();
        self.running[at] = Some(child.expect("the program runs"));
    }

    pub(crate) fn kill(&mut self, at: usize) {
        if let Some(mut child) = self.running[at].take() {
            child.kill().expect("it is ours");
            child.wait().expect("it ends");
        }
    }

    /// All of them get new disks.
    pub(crate) fn lose_everything(&mut self) {
        for at in 0..3 {
            self.kill(at);
            fs::remove_dir_all(self.data(at)).expect("removed");
        }
        (0..3).for_each(|at| self.start(at));
    }

    pub(crate) fn said(&self, at: usize) -> String {
        let path = self.scratch.join(&format!("voter-{}.said", at + 1));
        fs::read_to_string(path).unwrap_or_default()
    }

    pub(crate) fn all_said(&self) -> String {
        (0..3).map(|at| format!("voter {}:\n{}\n", at + 1, self.said(at))).collect()
    }
}

impl Drop for Voters {
    fn drop(&mut self) {
        (0..3).for_each(|at| self.kill(at));
    }
}

/// A client with a link to each voter.
struct Asker {
    client: Client,
    addresses: Vec<SocketAddr>,
    links: Vec<Option<(TcpStream, Frames)>>,
    tried: Instant,
}

impl Asker {
    fn new(addresses: &[SocketAddr], name: u64) -> Self {
        let seats = Seats::new(addresses.len()).expect("an odd number");
        Self {
            client: Client::new(seats, name << 32),
            addresses: addresses.to_vec(),
            links: addresses.iter().map(|_| None).collect(),
            tried: Instant::now() - WAIT,
        }
    }

    fn connect(&mut self) {
        if self.tried.elapsed() < Duration::from_millis(30) {
            return;
        }
        self.tried = Instant::now();
        for (at, link) in self.links.iter_mut().enumerate().filter(|(_, link)| link.is_none()) {
            let within = Duration::from_millis(100);
            let Ok(mut stream) = TcpStream::connect_timeout(&self.addresses[at], within) else {
                continue;
            };
            let ready = stream.write_all(&Preface::Client.encode()).is_ok()
                && stream.set_nodelay(true).is_ok()
                && stream.set_nonblocking(true).is_ok();
            if ready {
                *link = Some((stream, Frames::default()));
                self.client.handle_up(seat(at));
            }
        }
    }

    fn turn(&mut self) {
        self.connect();
        let now = Instant::now();
        self.client.handle_time(now);
        while let Some((to, bytes)) = self.client.poll_question(now) {
            let at = usize::from(to.0) - 1;
            let link = self.links[at].as_mut().expect("only who is up is asked");
            if link.0.write_all(&frame(&bytes)).is_err() {
                self.links[at] = None;
                self.client.handle_down(now, to);
            }
        }
        let mut buffer = [0; 4096];
        for at in 0..self.links.len() {
            let Some((stream, frames)) = &mut self.links[at] else { continue };
            match stream.read(&mut buffer) {
                Ok(read) if read > 0 => frames.handle_bytes(&buffer[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Ok(_) | Err(_) => {
                    self.links[at] = None;
                    self.client.handle_down(now, seat(at));
                    continue;
                }
            }
            while let Some(bytes) = frames.poll_frame().expect("voters send frames") {
                self.client.handle_reply(now, seat(at), &bytes).expect("voters send replies");
            }
        }
    }

    fn answer(&mut self) -> Outcome {
        let since = Instant::now();
        loop {
            self.turn();
            if let Some(Answer { outcome, .. }) = self.client.poll_answer() {
                return outcome;
            }
            assert!(since.elapsed() < WAIT, "a question has no answer");
            thread::sleep(Duration::from_micros(300));
        }
    }

    fn cas(&mut self, expect: Version, value: Vec<u8>) -> Outcome {
        self.client.cas(RequestId(1), Swap { pair: PAIR, expect, value });
        self.answer()
    }

    /// Writes where nothing stands yet and nobody else asks: who loses has won before, and did not
    /// hear of it.
    fn write_first(&mut self, voters: &Voters) {
        let since = Instant::now();
        while !matches!(self.cas(Version::NONE, vec![1; 8]), Outcome::Won(_) | Outcome::Lost(_)) {
            assert!(since.elapsed() < WAIT, "no swap is won\n{}", voters.all_said());
        }
    }

    fn read(&mut self) -> Outcome {
        self.client.read(RequestId(1), PAIR);
        self.answer()
    }

    /// Swaps, and reads in between, until told to stop; what was told goes into the history.
    fn work(mut self, history: &Mutex<History>, wins: &AtomicU64, stop: &AtomicBool) {
        let mut known = Version::NONE;
        let mut turn = 0_u64;
        while !stop.load(Ordering::Relaxed) {
            turn += 1;
            let swap = (!turn.is_multiple_of(3)).then_some(known);
            let op = history.lock().expect("no panic before").ask(swap);
            let outcome = match swap {
                Some(expect) => self.cas(expect, History::value(op, 200)),
                None => self.read(),
            };
            match &outcome {
                Outcome::Won(version) => {
                    known = *version;
                    wins.fetch_add(1, Ordering::Relaxed);
                }
                Outcome::Stands(held) | Outcome::Lost(held) => known = held.version,
                Outcome::Unknown | Outcome::NotDone(_) => {}
            }
            let told = history.lock().expect("no panic before").tell(op, &outcome);
            told.unwrap_or_else(|why| panic!("not linearizable: {why}"));
        }
    }
}

fn seat(at: usize) -> Seat {
    Seat(u8::try_from(at + 1).expect("three"))
}

/// Until the voters answer a swap, or do not.
fn wait_for_wins(wins: &AtomicU64, more: u64, voters: &Voters) {
    let (since, before) = (Instant::now(), wins.load(Ordering::Relaxed));
    while wins.load(Ordering::Relaxed) < before + more {
        assert!(since.elapsed() < WAIT, "no swap is won\n{}", voters.all_said());
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn voters_killed_in_turn_lose_nothing_and_one_of_three_decides_nothing() {
    let mut voters = Voters::new("voters");
    let history = Arc::new(Mutex::new(History::default()));
    let (wins, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let workers: VecDeque<_> = (1..=2)
        .map(|name| {
            let asker = Asker::new(&voters.addresses, name);
            let (history, wins) = (Arc::clone(&history), Arc::clone(&wins));
            let stop = Arc::clone(&stop);
            thread::spawn(move || asker.work(&history, &wins, &stop))
        })
        .collect();
    wait_for_wins(&wins, 20, &voters);
    for round in 0..6 {
        let at = round % 3;
        voters.kill(at);
        wait_for_wins(&wins, 20, &voters);
        voters.start(at);
        wait_for_wins(&wins, 20, &voters);
    }
    // Two at once: whoever is left may not decide.
    voters.kill(0);
    voters.kill(1);
    thread::sleep(Duration::from_secs(1));
    let before = wins.load(Ordering::Relaxed);
    thread::sleep(Duration::from_secs(1));
    assert_eq!(wins.load(Ordering::Relaxed), before, "one of three decided");
    voters.start(0);
    wait_for_wins(&wins, 20, &voters);
    // All at once, as a power cut of a house does it but for the page cache.
    voters.start(1);
    (0..3).for_each(|at| voters.kill(at));
    (0..3).for_each(|at| voters.start(at));
    wait_for_wins(&wins, 20, &voters);
    stop.store(true, Ordering::Relaxed);
    for worker in workers {
        worker.join().expect("what was told is linearizable");
    }
    let late = history.lock().expect("no panic").late;
    println!("{} swaps won, {late} of unknown outcome carried out", wins.load(Ordering::Relaxed));
}

#[test]
fn a_voter_that_lost_its_disk_says_so_and_two_such_decide_nothing() {
    let mut voters = Voters::new("voters-disks");
    let mut asker = Asker::new(&voters.addresses, 1);
    asker.write_first(&voters);
    for at in [0, 1] {
        voters.kill(at);
        fs::remove_dir_all(voters.data(at)).expect("removed");
        voters.start(at);
    }
    let since = Instant::now();
    while !(0..2).all(|at| voters.said(at).contains("know another disk for this seat")) {
        assert!(since.elapsed() < WAIT, "nobody says so\n{}", voters.all_said());
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(voters.standings()[..2], ["stranger", "stranger"]);
    let outcome = asker.cas(Version(1), vec![2; 8]);
    assert!(matches!(outcome, Outcome::NotDone(_) | Outcome::Unknown), "{outcome:?}");
}

fn linked(address: SocketAddr, preface: Preface) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("the kernel takes it");
    stream.write_all(&preface.encode()).expect("written");
    stream.set_read_timeout(Some(Duration::from_millis(300))).expect("a time limit");
    stream
}

/// Whether the other end has closed it.
fn is_closed(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0; 16]) {
        Ok(read) => read == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

/// Each of these once filled a voter's 256 connections for good.
#[test]
fn clients_and_links_that_stay_keep_no_voter_out() {
    let mut voters = Voters::stopped("links");
    voters.start(0);
    let began = Instant::now();
    while TcpStream::connect(voters.addresses[0]).is_err() {
        assert!(began.elapsed() < WAIT, "{}", voters.said(0));
        thread::sleep(Duration::from_millis(20));
    }
    let mut clients: Vec<TcpStream> =
        (0..200).map(|_| linked(voters.addresses[0], Preface::Client)).collect();
    let mut older = linked(voters.addresses[0], Preface::Voter(seat(1)));
    assert!(!is_closed(&mut older), "a voter's link has room where no client has");
    assert!(is_closed(clients.last_mut().expect("200")) && !is_closed(&mut clients[0]));
    let mut others: Vec<TcpStream> =
        (0..200).map(|_| linked(voters.addresses[0], Preface::Voter(seat(1)))).collect();
    let newest = others.last_mut().expect("200");
    assert!(!is_closed(newest), "the newest of a seat stays");
    assert!(is_closed(&mut older), "and ends the older");
    drop(clients);
    voters.start(1);
    voters.start(2);
    Asker::new(&voters.addresses, 1).write_first(&voters);
}

#[test]
fn who_connects_and_says_nothing_keeps_no_client_out() {
    let voters = Voters::new("voters-silent");
    let mut first = Asker::new(&voters.addresses, 1);
    first.write_first(&voters);
    let silent: Vec<TcpStream> = voters
        .addresses
        .iter()
        .flat_map(|address| (0..300).map(move |_| TcpStream::connect(address)))
        .collect::<Result<_, _>>()
        .expect("the kernel takes them");
    let mut late = Asker::new(&voters.addresses, 2);
    let began = Instant::now();
    while !matches!(late.cas(Version::NONE, vec![2]), Outcome::Lost(_)) {
        assert!(began.elapsed() < Duration::from_secs(3), "{}", voters.all_said());
    }
    drop(silent);
}

#[test]
fn what_a_voter_must_not_serve_is_refused_with_a_status() {
    let voters = Voters::new("voters-refused");
    let run = |config: &str, data: &str| {
        let path = voters.scratch.join("refused.toml");
        fs::write(&path, config).expect("written");
        let output = Command::new(env!("CARGO_BIN_EXE_laelaps"))
            .args(["voter", "--config"])
            .arg(&path)
            .arg("--data")
            .arg(voters.scratch.join(data))
            .arg("--allow-volatile")
            .output()
            .expect("the program runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let list = |addresses: &[&str]| -> String {
        addresses.iter().map(|a| format!("[[voter]]\naddress = \"{a}\"\n")).collect()
    };
    let four = ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", "127.0.0.1:4"];
    let (status, said) = run(&format!("seat = 1\n{}", list(&four)), "none");
    assert!(status == Some(3) && said.contains("name 3, 5 or 7"), "{status:?} {said}");
    let off = ["127.0.0.1:1", "127.0.0.1:2", "192.0.2.1:3"];
    let (status, said) = run(&format!("seat = 1\n{}", list(&off)), "none");
    assert!(status == Some(5) && said.contains("192.0.2.1:3"), "{status:?} {said}");
    let since = Instant::now();
    while !voters.data(0).join("voter.log").exists() {
        assert!(since.elapsed() < WAIT, "{}", voters.all_said());
        thread::sleep(Duration::from_millis(10));
    }
    let three = format!("seat = 1\n{}", list(&four[..3]));
    let (status, said) = run(&three, "voter-1");
    assert!(status == Some(10) && said.contains("another voter holds"), "{status:?} {said}");
}

/// The first two wait for the third, now and for as long as links take to come up.
fn stay_founding(voters: &Voters) {
    let since = Instant::now();
    while voters.standings()[..2] != ["founding", "founding"] {
        assert!(since.elapsed() < WAIT, "{}", voters.all_said());
    }
    thread::sleep(Duration::from_secs(2));
    assert_eq!(voters.standings()[..2], ["founding", "founding"], "{}", voters.all_said());
}

#[test]
fn voters_with_certificates_take_nobody_without() {
    let mut voters = Voters::stopped("voters-tls");
    let dir = voters.scratch.join("pki");
    let (ours, others) = (Authority::new(&dir, "ours"), Authority::new(&dir, "others"));
    let lines = |ca: &Authority, pair: &Pair| {
        let (cert, key, ca) = (pair.cert.display(), pair.key.display(), ca.ca());
        format!("tls-cert = {cert:?}\ntls-key = {key:?}\ntls-ca = {ca:?}\n").replace("\\", "")
    };
    for at in 0..3 {
        // The third has a certificate of ours for another address: it may ask, and not vote.
        let address = if at == 2 { "127.0.0.9" } else { "127.0.0.1" };
        voters.tls[at] = lines(&ours, &ours.member(&format!("voter-{at}"), address));
        voters.start(at);
    }
    stay_founding(&voters);
    voters.kill(2);
    voters.tls[2] = lines(&others, &others.member("voter-2", "127.0.0.1"));
    voters.start(2);
    stay_founding(&voters);
    voters.kill(2);
    voters.tls[2] = lines(&ours, &ours.member("voter-3", "127.0.0.1"));
    voters.start(2);
    let since = Instant::now();
    while !voters.standings().contains(&"leader".to_owned()) {
        assert!(since.elapsed() < WAIT, "nobody leads\n{}", voters.all_said());
        thread::sleep(Duration::from_millis(100));
    }
    // Who has no certificate is not even answered: that is unknown to who had asked when time was
    // over, and not done to who was between two links.
    let mut plain = Asker::new(&voters.addresses, 1);
    let outcome = plain.read();
    assert!(matches!(outcome, Outcome::NotDone(_) | Outcome::Unknown), "{outcome:?}");
}
