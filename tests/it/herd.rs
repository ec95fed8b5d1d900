//! Clients that all come to the new live at once, over TLS, after the old one was killed.
//!
//! ```text
//!   each    connected to the live ─ kill -9 ─▶ the next address of its list each 20 ms ─▶ TLS,
//!           open, attach, one message ─▶ `accepted`: it is served
//! ```
//! LAELAPS_HERD clients (100), all on this machine, so what they compute themselves is in the
//! figure. Beside it: the same herd at once at a live that has stood for long, which is what the
//! handshakes cost alone.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use amqp::connection::Sasl;
use amqp::delivery::Outcome;
use perf::client::{Client, durable_message};
use perf::tls::TlsClient;

use crate::authority::Authority;
use crate::harness::{free_port, knob};
use crate::pair::PairOf;

/// For all of them, in a debug build and beside other tests.
const WITHIN: Duration = Duration::from_secs(60);
const TRY_EVERY: Duration = Duration::from_millis(20);
/// A client needs little more.
const STACK_BYTES: usize = 256 * 1024;

/// One client: connected, and a message accepted.
fn served(at: SocketAddr, tls: &TlsClient, name: &str) -> Option<Client> {
    let mut client = Client::connect_tls(at, tls, name, Sasl::Anonymous, WITHIN).ok()?;
    let link = client.sender("herd").ok()?;
    client.send(link, &durable_message(name.as_bytes())).ok()?;
    let (_, outcome) = client.next_outcome().ok()?;
    (outcome == Outcome::Accepted).then_some(client)
}

/// When each of them was served; none who was not in time.
struct Herd {
    threads: Vec<thread::JoinHandle<Option<Instant>>>,
}

impl Herd {
    /// Each begins as soon as `go` is over, and tries for [`WITHIN`].
    fn new(
        count: usize,
        addresses: [SocketAddr; 2],
        tls: &TlsClient,
        go: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let go = Arc::new(go);
        let one = |number: usize| {
            let (tls, go) = (tls.clone(), Arc::clone(&go));
            let life = move || {
                go();
                let name = format!("of-the-herd-{number}");
                let (began, mut at) = (Instant::now(), number);
                while began.elapsed() < WITHIN {
                    if served(addresses[at % 2], &tls, &name).is_some() {
                        return Some(Instant::now());
                    }
                    thread::sleep(TRY_EVERY);
                    at += 1;
                }
                None
            };
            let builder = thread::Builder::new().stack_size(STACK_BYTES);
            builder.spawn(life).expect("a thread")
        };
        Self { threads: (0..count).map(one).collect() }
    }

    /// Says how long they took since then, the median and all; how many were not served.
    fn finish(self, what: &str, since: Instant) -> usize {
        let count = self.threads.len();
        let joined = self.threads.into_iter().map(|thread| thread.join().expect("no panic"));
        let mut took: Vec<Duration> =
            joined.flatten().map(|when| when.saturating_duration_since(since)).collect();
        let late = count - took.len();
        if took.is_empty() {
            return late;
        }
        took.sort_unstable();
        let (median, most) = (took[took.len() / 2], *took.last().expect("some"));
        println!(
            "{what}: {} TLS clients served, half of them after {} ms, all after {} ms",
            took.len(),
            median.as_millis(),
            most.as_millis()
        );
        late
    }
}

#[test]
fn a_herd_of_tls_clients_is_served_by_the_new_live() {
    let mut pair = PairOf::new("herd");
    let authority = Authority::new(pair.scratch.path(), "a");
    let files = authority.server("localhost");
    let amqps = [free_port(), free_port()];
    for (at, amqps) in amqps.iter().enumerate() {
        pair.lines[at] = format!("advertise = \"amqps://localhost:{}\"\n", amqps.port());
        pair.args[at].extend(["--tls-listen".into(), amqps.to_string()]);
        pair.args[at].extend(["--tls-cert".into(), files.cert.display().to_string()]);
        pair.args[at].extend(["--tls-key".into(), files.key.display().to_string()]);
    }
    let live = pair.start_both();
    let tls = TlsClient::new(&authority.trusting(None), "localhost").expect("sound files");
    let count = usize::try_from(knob("LAELAPS_HERD", 100)).expect("some");

    // What the handshakes and the first messages cost by themselves.
    let is_let_go = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&is_let_go);
    let calm = Herd::new(count, [amqps[live]; 2], &tls, move || {
        while !told.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(1));
        }
    });
    let began = Instant::now();
    is_let_go.store(true, Ordering::Relaxed);
    let late = calm.finish("a live that has stood for long", began);
    assert_eq!(late, 0, "not served in time: {}", pair.said());

    let (ready, readies) = mpsc::channel();
    let (its_live, its_tls) = (amqps[live], tls.clone());
    let herd = Herd::new(count, amqps, &tls, move || {
        let client = served(its_live, &its_tls, "before");
        ready.send(client.is_some()).expect("the test listens");
        // Until its live is gone.
        client.into_iter().for_each(|mut client| while client.next_outcome().is_ok() {});
    });
    for _ in 0..count {
        let is_served = readies.recv_timeout(2 * WITHIN).expect("each tells");
        assert!(is_served, "the first live serves: {}", pair.said());
    }
    pair.kill(live);
    let late = herd.finish("after kill -9 of the live", Instant::now());
    assert_eq!(late, 0, "not served in time: {}", pair.said());
    let (_, metrics) = pair.broker(1 - live).http("/metrics").expect("it answers");
    metrics.lines().filter(|line| line.starts_with("laelaps_tls_")).for_each(|line| {
        println!("the new live: {line}");
    });
}
