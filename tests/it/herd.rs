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
use std::sync::{Arc, Barrier};
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

/// When each of them was served, from when they were let go.
struct Herd {
    threads: Vec<thread::JoinHandle<Instant>>,
}

impl Herd {
    /// Each begins where `first` says, as soon as `go` lets it.
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
                let mut at = number;
                loop {
                    if served(addresses[at % 2], &tls, &name).is_some() {
                        return Instant::now();
                    }
                    thread::sleep(TRY_EVERY);
                    at += 1;
                }
            };
            let builder = thread::Builder::new().stack_size(STACK_BYTES);
            builder.spawn(life).expect("a thread")
        };
        Self { threads: (0..count).map(one).collect() }
    }

    /// How long they took since then: the median, and all.
    fn finish(self, what: &str, since: Instant) -> Duration {
        let joined = self.threads.into_iter().map(|thread| thread.join().expect("no panic"));
        let mut took: Vec<Duration> =
            joined.map(|when| when.saturating_duration_since(since)).collect();
        took.sort_unstable();
        let (median, most) = (took[took.len() / 2], *took.last().expect("some"));
        println!(
            "{what}: {} TLS clients served, half of them after {} ms, all after {} ms",
            took.len(),
            median.as_millis(),
            most.as_millis()
        );
        most
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
    let together = Arc::new(Barrier::new(count + 1));
    let wait = Arc::clone(&together);
    let calm = Herd::new(count, [amqps[live]; 2], &tls, move || {
        wait.wait();
    });
    together.wait();
    let most = calm.finish("a live that has stood for long", Instant::now());
    assert!(most < WITHIN, "{}", pair.said());

    let waiting = Arc::new(Barrier::new(count + 1));
    let (begun, its_live, its_tls) = (Arc::clone(&waiting), amqps[live], tls.clone());
    let herd = Herd::new(count, amqps, &tls, move || {
        let mut client = served(its_live, &its_tls, "before").expect("the live serves");
        begun.wait();
        // Until its live is gone.
        while client.next_outcome().is_ok() {}
    });
    waiting.wait();
    pair.kill(live);
    let most = herd.finish("after kill -9 of the live", Instant::now());
    assert!(most < WITHIN, "{}", pair.said());
    let (_, metrics) = pair.broker(1 - live).http("/metrics").expect("it answers");
    metrics.lines().filter(|line| line.starts_with("laelaps_tls_")).for_each(|line| {
        println!("the new live: {line}");
    });
}
