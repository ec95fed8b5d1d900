//! Hostile and idle peers against the real process: memory stays bounded, and others are served.
//!
//! ```text
//!   victim      a well-behaved producer        calm │ attack │ calm │ attack │ ...
//!   attackers   threads that do one bad thing         ^^^^^^          ^^^^^^
//!   /proc       VmHWM, set back before the attack, read after it
//! ```
//! Blocks of calm and attack take turns, so that what else the machine does weighs on both alike;
//! what is compared is the median of the blocks' p99. Attackers have machines of their own; here
//! their work is on the broker's cores, and what they take of them is not its doing. So they rest a
//! little between two blows, and run at the lowest priority: they get what is left of the cores,
//! and give it up at once when broker or victim wakes.
//!
//! Half-open and idle connections need a descriptor at either end: as many as the machine's hard
//! limit allows are made, which is said.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use amqp::codec::Symbol;
use amqp::connection::Sasl;
use amqp::definitions::{DeliveryId, Handle, Role};
use amqp::frame::{self, FrameWriter, ProtocolId};
use amqp::performative::{
    AnySource, AnyTarget, Attach, Begin, Detach, End, Flow, Open, Performative, Source, Target,
    Transfer,
};
use amqp::sasl::SaslBody;
use perf::client::{Client, durable_message};
use rustix::process::{Resource, Rlimit, getrlimit, setpriority_process, setrlimit};
use rustix::thread::gettid;

use crate::harness::{Broker, Chance, Scratch, Start};

const MIB: u64 = 1 << 20;

/// How long anything may take before the test gives up on it.
const WAIT: Duration = Duration::from_secs(30);

/// Rounds of calm and attack, and messages that the victim sends in each half.
const ROUNDS: usize = 5;
const MESSAGES: usize = 300;

/// How often it is measured at most: what an attack does it does each time, what else the machine
/// does it does not.
const ATTEMPTS: usize = 3;

/// What the p99 of the victim may rise to under an attack.
const P99_RATIO_MAX: f64 = 2.0;

/// Below this p99s are what a scheduler does to a thread on cores that others want as well: their
/// ratio says nothing there.
const P99_FLOOR: Duration = Duration::from_millis(1);

/// Queues of the idle connections: one that names a queue comes to its core, and a core holds only
/// its share of the descriptors.
const IDLE_QUEUES: usize = 64;

/// Beyond both of these an attack has harmed the victim, on whatever machine: that fails always.
/// Less fails where [`P99_RATIO_MAX`] is asked for.
const P99_BREAK_RATIO: f64 = 5.0;
const P99_BREAK: Duration = Duration::from_millis(20);

/// The lowest priority of a thread, as `nice` counts.
const NICEST: i32 = 19;

/// What the process may grow by in any attack beyond what its knobs say.
const GROWTH_MAX: u64 = 64 * MIB;

/// What an idle connection with a session and a link may cost, in bytes.
const IDLE_BYTES_MAX: u64 = 16 * 1024;

// ---- Peers --------------------------------------------------------------------------------------

/// What comes before a session: SASL ANONYMOUS, open.
fn opening(container: &str) -> Vec<u8> {
    let mut bytes = ProtocolId::Sasl.header().to_vec();
    let init = amqp::sasl::SaslInit {
        mechanism: Symbol::new("ANONYMOUS"),
        initial_response: None,
        hostname: None,
    };
    frame::write_sasl(&mut bytes, &SaslBody::Init(init));
    bytes.extend(ProtocolId::Amqp.header());
    let open = Open { container_id: container, ..Open::default() };
    frame::write(&mut bytes, 0, &Performative::Open(open));
    bytes
}

/// Opening and a session on channel 0.
fn in_session(container: &str) -> Vec<u8> {
    let mut bytes = opening(container);
    frame::write(&mut bytes, 0, &Performative::Begin(begin()));
    bytes
}

fn begin() -> Begin<'static> {
    Begin { incoming_window: 1000, outgoing_window: 1000, ..Begin::default() }
}

fn attach<'a>(name: &'a str, handle: u32, role: Role, address: &'a str) -> Performative<'a> {
    Performative::Attach(Attach {
        name,
        handle: Handle(handle),
        role,
        source: Some(AnySource::Source(Source { address: Some(address), ..Source::default() })),
        target: Some(AnyTarget::Target(Target { address: Some(address), ..Target::default() })),
        initial_delivery_count: (role == Role::Sender).then_some(0),
        ..Attach::default()
    })
}

fn detach(handle: u32) -> Performative<'static> {
    Performative::Detach(Detach { handle: Handle(handle), closed: true, error: None })
}

fn transfer(delivery: u32, more: bool, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut frame = FrameWriter::amqp(&mut bytes, 0);
    frame.composite(&Transfer {
        handle: Handle(0),
        delivery_id: Some(DeliveryId(delivery)),
        delivery_tag: Some(&delivery.to_be_bytes()),
        message_format: Some(0),
        more,
        ..Transfer::default()
    });
    frame.payload(payload);
    frame.finish();
    bytes
}

fn dial(addr: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&addr, WAIT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(WAIT))?;
    stream.set_write_timeout(Some(Duration::from_secs(1)))?;
    Ok(stream)
}

/// Descriptors as the broker writes them; nothing else in what the tests are answered has them.
const ATTACH: &[u8] = b"\x00\x53\x12";
const FLOW: &[u8] = b"\x00\x53\x13";
const DETACH: &[u8] = b"\x00\x53\x16";

/// Reads until these bytes came.
fn until(stream: &mut TcpStream, words: &[u8]) -> io::Result<()> {
    let mut got = Vec::new();
    let mut bytes = [0; 4096];
    while !got.windows(words.len()).any(|word| word == words) {
        let count = stream.read(&mut bytes)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        got.extend_from_slice(&bytes[..count]);
    }
    Ok(())
}

/// Takes what has come, without waiting: an attacker that does read.
fn sip(stream: &mut TcpStream) -> io::Result<()> {
    let mut bytes = [0; 16 * 1024];
    stream.set_nonblocking(true)?;
    let read = loop {
        match stream.read(&mut bytes) {
            Ok(0) => break Err(io::ErrorKind::ConnectionAborted.into()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    stream.set_nonblocking(false)?;
    read
}

// ---- The measure --------------------------------------------------------------------------------

/// Attackers do their blows while this says so, and count them.
struct Field {
    addr: SocketAddr,
    on: AtomicBool,
    /// An attack that takes a while to be whole says here that it is.
    armed: AtomicBool,
    over: AtomicBool,
    blows: AtomicU64,
}

/// Ends the attack however the test ends: its threads are waited for.
struct Truce<'a>(&'a Field);

impl Drop for Truce<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

impl Field {
    /// Waits until it is on; false when all is over.
    fn fights(&self) -> bool {
        while !self.on.load(Ordering::Relaxed) {
            if self.over.load(Ordering::Relaxed) {
                return false;
            }
            thread::sleep(Duration::from_millis(2));
        }
        !self.over.load(Ordering::Relaxed)
    }

    fn struck(&self) {
        self.blows.fetch_add(1, Ordering::Relaxed);
    }
}

/// A kind of attacker: what one of its threads does until the field is over. What the broker
/// answers, and whether it closes, is its own affair.
struct Attack {
    name: &'static str,
    threads: usize,
    run: fn(&Field, usize),
    /// It says when it is whole: nothing is measured before.
    slow_to_arm: bool,
    /// What memory may grow by.
    growth_max: u64,
}

/// The victim sends, one at a time, and waits for each answer: the p99 of that.
fn p99(victim: &mut Client, link: amqp::link::LinkId) -> Duration {
    let message = durable_message(&[7; 256]);
    let mut took: Vec<Duration> = (0..MESSAGES)
        .map(|_| {
            let start = Instant::now();
            victim.send(link, &message).expect("a well-behaved client has credit");
            victim.next_outcome().expect("a well-behaved client is answered");
            start.elapsed()
        })
        .collect();
    took.sort_unstable();
    took[MESSAGES * 99 / 100]
}

fn median(mut values: Vec<Duration>) -> Duration {
    values.sort_unstable();
    values[values.len() / 2]
}

/// Lets `VmHWM` begin anew at what is resident now, and says how much that is.
fn resident_from_now(broker: &Broker) -> u64 {
    let path = format!("/proc/{}/clear_refs", broker.pid());
    fs::write(path, "5").expect("a child of ours");
    broker.memory_bytes("VmRSS")
}

/// The median p99 of the blocks in calm, and of those under attack.
fn compare(
    victim: &mut Client,
    link: amqp::link::LinkId,
    field: &Field,
    slow_to_arm: bool,
) -> (Duration, Duration) {
    let mut blocks = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        blocks.0.push(p99(victim, link));
        field.armed.store(!slow_to_arm, Ordering::Relaxed);
        field.on.store(true, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(300));
        let start = Instant::now();
        while !field.armed.load(Ordering::Relaxed) {
            assert!(start.elapsed() < WAIT, "the attack is not whole after {WAIT:?}");
            thread::sleep(Duration::from_millis(2));
        }
        blocks.1.push(p99(victim, link));
        field.on.store(false, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(200));
    }
    (median(blocks.0), median(blocks.1))
}

fn is_bearable((calm, attacked): (Duration, Duration)) -> bool {
    attacked <= P99_FLOOR || attacked.as_secs_f64() <= calm.as_secs_f64() * P99_RATIO_MAX
}

fn is_broken((calm, attacked): (Duration, Duration)) -> bool {
    attacked > calm + P99_BREAK && attacked.as_secs_f64() > calm.as_secs_f64() * P99_BREAK_RATIO
}

/// The broker to attack: `LAELAPS_EXE`, or the one under test.
fn started(data: &Path) -> Start<'_> {
    let mut start = Start::new(data);
    if let Some(exe) = std::env::var_os("LAELAPS_EXE") {
        start.exe = exe.into();
    }
    start
}

fn withstand(attack: &Attack) {
    let scratch = Scratch::new("hostile");
    let data = scratch.join("data");
    let mut start = started(&data);
    start.args.extend(["--memory-max".into(), (64 * MIB).to_string()]);
    let broker = start.ready();
    let mut victim = Client::connect(broker.amqp, "victim", Sasl::Anonymous, WAIT).expect("served");
    let link = victim.sender("victim").expect("a link");
    p99(&mut victim, link);

    let field = Field {
        addr: broker.amqp,
        on: AtomicBool::new(false),
        armed: AtomicBool::new(false),
        over: AtomicBool::new(false),
        blows: AtomicU64::new(0),
    };
    let before = resident_from_now(&broker);
    let (calm, attacked) = thread::scope(|scope| {
        for nth in 0..attack.threads {
            let field = &field;
            scope.spawn(move || {
                // Of this thread alone: Linux takes the id of a thread for that of a process here.
                setpriority_process(Some(gettid()), NICEST).expect("lower is allowed to all");
                (attack.run)(field, nth);
            });
        }
        let _truce = Truce(&field);
        let mut compared = compare(&mut victim, link, &field, attack.slow_to_arm);
        for _ in 1..ATTEMPTS {
            if is_bearable(compared) {
                break;
            }
            println!("hostile {}: {compared:?}, once more", attack.name);
            compared = compare(&mut victim, link, &field, attack.slow_to_arm);
        }
        compared
    });
    let growth = broker.memory_bytes("VmHWM").saturating_sub(before);
    let blows = field.blows.load(Ordering::Relaxed);
    let ratio = attacked.as_secs_f64() / calm.as_secs_f64();
    println!(
        "hostile {}: {blows} blows, memory grew by {} KiB, p99 {calm:?} in calm, {attacked:?} \
         under attack: {ratio:.2}",
        attack.name,
        growth / 1024,
    );
    assert!(blows > 0, "nobody attacked");
    assert!(growth <= attack.growth_max, "{}: memory grew by {growth} bytes", attack.name);
    // A machine that others use too makes a tail of its own: only who has one to himself judges by
    // small differences.
    let is_quiet = std::env::var_os("LAELAPS_HOSTILE_P99").is_some();
    let harmed = is_broken((calm, attacked)) || (is_quiet && !is_bearable((calm, attacked)));
    assert!(!harmed, "{}: the p99 of a well-behaved client rose {ratio:.2} times", attack.name);
    // Nobody else was harmed: another client comes, and the broker ends in order.
    let mut late = Client::connect(broker.amqp, "late", Sasl::Anonymous, WAIT).expect("served");
    let link = late.sender("late").expect("a link");
    late.send(link, &durable_message(b"late")).expect("credit");
    late.next_outcome().expect("an answer");
    late.close().expect("in order");
    victim.close().expect("in order");
    assert!(broker.stop().success());
}

/// Descriptors that this process may have beside what it needs itself; raises its own limit.
fn descriptors() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    let _ = setrlimit(Resource::Nofile, raised);
    let may = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    // The broker keeps some for its files: see `sockets_max` in `src/driver.rs`.
    usize::try_from(may.saturating_sub(2000) * 3 / 4).unwrap_or(usize::MAX)
}

/// As many, or as the limit on open files allows where fewer are allowed by the environment.
fn connections(wanted: usize) -> usize {
    let have = descriptors().min(wanted);
    if have < wanted {
        println!("hostile: the limit on open files allows {have} connections, not {wanted}");
        let fewer = std::env::var_os("LAELAPS_FEWER_CONNECTIONS").is_some();
        assert!(fewer, "raise it (ulimit -Hn), or allow fewer: LAELAPS_FEWER_CONNECTIONS=1");
    }
    have
}

// ---- Attacks ------------------------------------------------------------------------------------

/// Connections that say nothing, or half of a header, or half of SASL: as many as may be, and then
/// each in turn for a new one.
fn half_open(field: &Field, _nth: usize) {
    let wanted = connections(10_000);
    let sasl = opening("half");
    while field.fights() {
        let mut held: VecDeque<TcpStream> = VecDeque::new();
        while field.on.load(Ordering::Relaxed) {
            if held.len() >= wanted {
                field.armed.store(true, Ordering::Relaxed);
                held.pop_front();
                thread::sleep(Duration::from_millis(2));
            }
            let Ok(mut stream) = dial(field.addr) else { continue };
            let said = [0, 4, 8, 20][held.len() % 4];
            if stream.write_all(&sasl[..said]).is_ok() {
                held.push_back(stream);
                field.struck();
            }
        }
    }
}

#[test]
#[ignore = "takes the machine for itself: tests/run hostile"]
fn half_open_connections_harm_nobody() {
    withstand(&Attack {
        name: "half-open",
        threads: 1,
        run: half_open,
        slow_to_arm: true,
        growth_max: GROWTH_MAX + 10_000 * IDLE_BYTES_MAX,
    });
}

/// One connection after the other: begun with `hello`, then a blow at a time until it breaks.
fn again_and_again(
    field: &Field,
    hello: &[u8],
    rest: Duration,
    mut blow: impl FnMut(&mut TcpStream, u32) -> io::Result<()>,
) {
    while field.fights() {
        let Ok(mut stream) = dial(field.addr) else { continue };
        if stream.write_all(hello).is_err() {
            continue;
        }
        for nth in 0.. {
            if !field.fights() || blow(&mut stream, nth).is_err() {
                break;
            }
            field.struck();
            thread::sleep(rest);
        }
    }
}

/// A byte a second on each of many connections, before SASL, within it, and after it.
fn slow(field: &Field, nth: usize) {
    let wanted = connections(1000);
    let words = in_session("slow");
    let pace = Duration::from_secs(1) / u32::try_from(wanted).expect("a small number");
    // Where each begins to dawdle: at once, in SASL, in its open, in its begin.
    let head = [0, 12, 60, words.len() - 8][nth % 4];
    while field.fights() {
        let mut held: Vec<(TcpStream, usize)> = Vec::new();
        for turn in 0.. {
            if !field.fights() {
                break;
            }
            if held.len() < wanted / 4 {
                let Ok(mut stream) = dial(field.addr) else { continue };
                if stream.write_all(&words[..head]).is_ok() {
                    held.push((stream, head));
                }
                continue;
            }
            let at = turn % held.len();
            let (stream, said) = &mut held[at];
            let spoken = words.get(*said).map(|byte| stream.write_all(&[*byte]));
            *said += 1;
            match spoken {
                Some(Ok(())) => field.struck(),
                Some(Err(_)) | None => drop(held.swap_remove(at)),
            }
            thread::sleep(pace * 4);
        }
    }
}

/// All the credit there is, again and again, with a wish for an answer, on an empty queue.
fn credit_flood(field: &Field, nth: usize) {
    let mut hello = in_session("credit");
    frame::write(&mut hello, 0, &attach("credit", 0, Role::Receiver, "nothing"));
    let mut flood = Vec::new();
    for drain in [false, false, false, true] {
        let flow = Flow {
            next_incoming_id: Some(0),
            incoming_window: u32::MAX,
            outgoing_window: u32::MAX,
            handle: Some(Handle(0)),
            delivery_count: Some(0),
            link_credit: Some(u32::MAX),
            drain,
            echo: true,
            ..Flow::default()
        };
        frame::write(&mut flood, 0, &Performative::Flow(flow));
    }
    let flood = flood.repeat(25);
    // One reads what it is answered; the other does not.
    again_and_again(field, &hello, Duration::from_millis(2), |stream, _| {
        stream.write_all(&flood)?;
        if nth == 0 { sip(stream) } else { Ok(()) }
    });
}

/// Nine bytes that announce a list, map or array of 2 GiB, wherever a value may be.
fn huge_counts(field: &Field, _nth: usize) {
    let bombs: [&[u8]; 4] = [
        b"\xf0\x7f\xff\xff\xff\x7f\xff\xff\xff",
        b"\xf0\x00\x00\x00\x05\x80\x00\x00\x00\x40",
        b"\xd0\x00\x00\x00\x04\x80\x00\x00\x00",
        b"\xd1\x00\x00\x00\x04\x80\x00\x00\x00",
    ];
    let frames: Vec<Vec<u8>> = bombs
        .iter()
        .flat_map(|bomb| {
            // As the capabilities and properties of an open, and as message annotations.
            let mut open = b"\x00\x53\x10\xd0".to_vec();
            let fields = [b"\xa1\x01c\x40\x40\x40\x40\x40\x40", *bomb].concat();
            open.extend((fields.len() as u32 + 4).to_be_bytes());
            open.extend(8u32.to_be_bytes());
            open.extend(fields);
            let mut framed = (open.len() as u32 + 8).to_be_bytes().to_vec();
            framed.extend([2, 0, 0, 0]);
            framed.extend(open);
            let message = [b"\x00\x53\x72", *bomb].concat();
            [framed, transfer(0, false, &message)]
        })
        .collect();
    let sasl = opening("bomb");
    // All of the opening but the open itself.
    let before_open = sasl.len() - sasl_open_len();
    while field.fights() {
        for (nth, bomb) in frames.iter().enumerate() {
            let Ok(mut stream) = dial(field.addr) else { continue };
            // Each is looked into: what it is answered with says so.
            let answer = if nth % 2 == 0 {
                let opened = stream.write_all(&sasl[..before_open]);
                opened.and_then(|()| stream.write_all(bomb))
            } else {
                let mut words = in_session("bomb");
                frame::write(&mut words, 0, &attach("bomb", 0, Role::Sender, "bombs"));
                let attached = stream.write_all(&words).and_then(|()| until(&mut stream, FLOW));
                attached.and_then(|()| stream.write_all(bomb))
            }
            .and_then(|()| until(&mut stream, b"amqp:decode-error"));
            answer.unwrap_or_else(|error| panic!("bomb {nth} is no decode error: {error}"));
            field.struck();
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn sasl_open_len() -> usize {
    let mut bytes = Vec::new();
    let open = Open { container_id: "bomb", ..Open::default() };
    frame::write(&mut bytes, 0, &Performative::Open(open));
    bytes.len()
}

/// Messages of many frames that never end, on many links of many connections.
fn endless(field: &Field, _nth: usize) {
    let mut hello = in_session("endless");
    for handle in 0..8 {
        let name = format!("endless-{handle}");
        frame::write(&mut hello, 0, &attach(&name, handle, Role::Sender, "endless"));
    }
    let payload = vec![7; 60_000];
    again_and_again(field, &hello, Duration::from_millis(20), |stream, nth| {
        if nth == 0 {
            until(stream, FLOW)?;
        }
        let mut bytes = Vec::new();
        let mut frame = FrameWriter::amqp(&mut bytes, 0);
        let (link, first) = (nth % 8, nth < 8);
        frame.composite(&Transfer {
            handle: Handle(link),
            delivery_id: first.then_some(DeliveryId(link)),
            delivery_tag: first.then_some(b"tag"),
            message_format: first.then_some(0),
            more: true,
            ..Transfer::default()
        });
        frame.payload(&payload);
        frame.finish();
        stream.write_all(&bytes)?;
        sip(stream)
    });
}

/// Links come, many at once, and go.
fn attach_storm(field: &Field, nth: usize) {
    let hello = in_session("storm");
    again_and_again(field, &hello, Duration::from_millis(2), |stream, round| {
        let mut bytes = Vec::new();
        for handle in 0..20 {
            let name = format!("storm-{nth}-{round}-{handle}");
            let role = if handle % 2 == 0 { Role::Sender } else { Role::Receiver };
            frame::write(&mut bytes, 0, &attach(&name, handle, role, "storm"));
        }
        for handle in 0..20 {
            frame::write(&mut bytes, 0, &detach(handle));
        }
        stream.write_all(&bytes)?;
        sip(stream)
    });
}

/// The same by many who never read an answer.
fn deaf(field: &Field, nth: usize) {
    let hello = in_session("deaf");
    again_and_again(field, &hello, Duration::from_millis(30), |stream, round| {
        let mut bytes = Vec::new();
        for handle in 0..20 {
            let name = format!("deaf-{nth}-{round}-{handle}");
            frame::write(&mut bytes, 0, &attach(&name, handle, Role::Receiver, "a b"));
            frame::write(&mut bytes, 0, &detach(handle));
        }
        stream.write_all(&bytes)
    });
}

/// As many links as a connection may have, and then more, never detached.
fn attach_pile(field: &Field, nth: usize) {
    let hello = in_session("pile");
    again_and_again(field, &hello, Duration::from_millis(2), |stream, round| {
        let mut bytes = Vec::new();
        for handle in round * 20..(round + 1) * 20 {
            let name = format!("pile-{nth}-{handle}");
            let role = if handle % 2 == 0 { Role::Sender } else { Role::Receiver };
            frame::write(&mut bytes, 0, &attach(&name, handle, role, "pile"));
        }
        stream.write_all(&bytes)?;
        sip(stream)
    });
}

/// Sessions come and go.
fn begin_storm(field: &Field, _nth: usize) {
    let hello = opening("begins");
    again_and_again(field, &hello, Duration::from_millis(2), |stream, _| {
        let mut bytes = Vec::new();
        for channel in 0..100 {
            frame::write(&mut bytes, channel, &Performative::Begin(begin()));
        }
        for channel in 0..100 {
            frame::write(&mut bytes, channel, &Performative::End(End { error: None }));
        }
        stream.write_all(&bytes)?;
        sip(stream)
    });
}

/// What is no SASL: random bytes after its header, frames too large, mechanisms that nobody has.
fn sasl_garbage(field: &Field, nth: usize) {
    let mut chance = Chance(nth as u64 + 1);
    while field.fights() {
        let Ok(mut stream) = dial(field.addr) else { continue };
        let mut bytes = ProtocolId::Sasl.header().to_vec();
        let len = chance.between(1, 600);
        match chance.between(0, 2) {
            0 => bytes.extend((0..len).map(|_| chance.next() as u8)),
            1 => {
                bytes.extend([0, 0, 0x40, 0, 2, 1, 0, 0]);
                bytes.extend(vec![0; 0x3FF8]);
            }
            _ => {
                let init = amqp::sasl::SaslInit {
                    mechanism: Symbol::new("SCRAM-SHA-1"),
                    initial_response: Some(b"\0\0\0"),
                    hostname: None,
                };
                frame::write_sasl(&mut bytes, &SaslBody::Init(init));
            }
        }
        if stream.write_all(&bytes).and_then(|()| sip(&mut stream)).is_ok() {
            field.struck();
        }
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
#[ignore = "takes the machine for itself: tests/run hostile"]
fn slow_peers_harm_nobody() {
    withstand(&Attack {
        name: "slow-loris",
        threads: 4,
        run: slow,
        slow_to_arm: false,
        growth_max: GROWTH_MAX,
    });
}

#[test]
#[ignore = "takes the machine for itself: tests/run hostile"]
fn floods_of_credit_harm_nobody() {
    withstand(&Attack {
        name: "credit flood",
        threads: 2,
        run: credit_flood,
        slow_to_arm: false,
        growth_max: GROWTH_MAX,
    });
}

#[test]
#[ignore = "takes the machine for itself: tests/run hostile"]
fn counts_without_content_harm_nobody() {
    withstand(&Attack {
        name: "2 GiB array",
        threads: 2,
        run: huge_counts,
        slow_to_arm: false,
        growth_max: GROWTH_MAX,
    });
}

#[test]
#[ignore = "takes the machine for itself: tests/run hostile"]
fn messages_without_end_harm_nobody() {
    withstand(&Attack {
        name: "endless",
        threads: 24,
        run: endless,
        slow_to_arm: false,
        growth_max: 2 * GROWTH_MAX,
    });
}

#[test]
#[ignore = "takes the machine for itself: tests/run hostile"]
fn storms_of_attaches_harm_nobody() {
    withstand(&Attack {
        name: "attach storm",
        threads: 2,
        run: attach_storm,
        slow_to_arm: false,
        growth_max: GROWTH_MAX,
    });
    withstand(&Attack {
        name: "attach pile",
        threads: 2,
        run: attach_pile,
        slow_to_arm: false,
        growth_max: GROWTH_MAX,
    });
}

#[test]
#[ignore = "takes the machine for itself: tests/run hostile"]
fn who_never_reads_harms_nobody() {
    withstand(&Attack {
        name: "deaf",
        threads: 12,
        run: deaf,
        slow_to_arm: false,
        growth_max: 2 * GROWTH_MAX,
    });
}

#[test]
#[ignore = "takes the machine for itself: tests/run hostile"]
fn storms_of_begins_harm_nobody() {
    withstand(&Attack {
        name: "begin storm",
        threads: 2,
        run: begin_storm,
        slow_to_arm: false,
        growth_max: GROWTH_MAX,
    });
}

#[test]
#[ignore = "takes the machine for itself: tests/run hostile"]
fn garbage_for_sasl_harms_nobody() {
    withstand(&Attack {
        name: "SASL garbage",
        threads: 2,
        run: sasl_garbage,
        slow_to_arm: false,
        growth_max: GROWTH_MAX,
    });
}

// ---- Idle connections ---------------------------------------------------------------------------

/// A frame of 1 MB leaves nothing behind: here of a delivery that is aborted with it.
#[test]
fn connections_that_once_sent_a_large_frame_keep_no_room_for_it() {
    const CONNECTIONS: u64 = 150;
    let scratch = Scratch::new("large-frames");
    let data = scratch.join("data");
    let mut start = started(&data);
    start.args.extend(["--memory-max".into(), (64 * MIB).to_string()]);
    let broker = start.ready();
    let mut words = in_session("large");
    frame::write(&mut words, 0, &attach("large", 0, Role::Sender, "large"));
    let mut large = Vec::new();
    let mut frame = FrameWriter::amqp(&mut large, 0);
    frame.composite(&Transfer {
        delivery_id: Some(DeliveryId(0)),
        delivery_tag: Some(b"large"),
        aborted: true,
        ..Transfer::default()
    });
    frame.payload(&vec![7; 1_000_000]);
    frame.finish();
    frame::write(&mut large, 0, &detach(0));
    let before = resident_from_now(&broker);
    let held: Vec<TcpStream> = (0..CONNECTIONS)
        .map(|_| {
            let mut stream = dial(broker.amqp).expect("a connection");
            stream.set_write_timeout(Some(WAIT)).expect("a socket");
            stream.write_all(&words).expect("written");
            until(&mut stream, FLOW).expect("credit");
            stream.write_all(&large).expect("written");
            until(&mut stream, DETACH).expect("all of it was read");
            stream
        })
        .collect();
    // Room is looked for twenty times a second.
    let asked = Instant::now();
    let mut growth = u64::MAX;
    while growth >= CONNECTIONS * MIB / 2 && asked.elapsed() < Duration::from_secs(5) {
        thread::sleep(Duration::from_millis(200));
        growth = broker.memory_bytes("VmRSS").saturating_sub(before);
    }
    println!("hostile large frames: memory grew by {} KiB", growth / 1024);
    assert!(growth < CONNECTIONS * MIB / 2, "memory grew by {growth} bytes");
    drop(held);
    assert!(broker.stop().success());
}

#[test]
#[ignore = "takes the machine for itself: tests/run hostile"]
fn an_idle_connection_costs_little() {
    let wanted = connections(10_000);
    let scratch = Scratch::new("idle");
    let data = scratch.join("data");
    let broker = started(&data).ready();
    let open = |count: usize| -> Vec<TcpStream> {
        (0..count)
            .map(|nth| {
                let mut stream = dial(broker.amqp).expect("a connection");
                let mut words = in_session(&format!("idle-{nth}"));
                let role = if nth % 2 == 0 { Role::Sender } else { Role::Receiver };
                let queue = format!("idle-{}", nth % IDLE_QUEUES);
                frame::write(&mut words, 0, &attach("idle", 0, role, &queue));
                if role == Role::Receiver {
                    let flow = Flow {
                        next_incoming_id: Some(0),
                        incoming_window: 1000,
                        outgoing_window: 1000,
                        handle: Some(Handle(0)),
                        delivery_count: Some(0),
                        link_credit: Some(100),
                        ..Flow::default()
                    };
                    frame::write(&mut words, 0, &Performative::Flow(flow));
                }
                stream.write_all(&words).expect("written");
                until(&mut stream, ATTACH).expect("an answer");
                stream
            })
            .collect()
    };
    // What the first ones cost the process once is no part of what each costs.
    let first = open(100);
    let before = broker.memory_bytes("VmRSS");
    let held = open(wanted);
    let after = broker.memory_bytes("VmRSS");
    let each = (after - before) / wanted as u64;
    println!(
        "hostile idle: {wanted} connections, each with a session and a link: {each} bytes each, \
         {} KiB in all",
        (after - before) / 1024
    );
    assert!(each <= IDLE_BYTES_MAX, "an idle connection costs {each} bytes");
    drop((first, held));
    assert!(broker.stop().success());
}
