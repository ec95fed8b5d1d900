//! The first figures: one durable message, and sixteen producers, beside the bare disk.
//!
//! ```text
//!   first_figures LAELAPS DIRECTORY [ROUNDS] [MESSAGES]
//!
//!   a round, in turn (the order is reversed in every other one):
//!     disk      one aligned 4 KiB RWF_DSYNC write after the other, to a pre-written file
//!     sync x1   one producer, one message in flight: send, wait for accepted
//!     sync x16  sixteen producers, one message in flight each
//! ```
//! Each round gives a ratio, and the figure is the median of the ratios: the machine's minute falls
//! out of it. The producers are blocking clients on loopback and share the cores with the broker,
//! so what is shown is client, loopback, broker and disk together. The loop is closed (the next
//! send waits for the answer): it says what an answer takes, not what a schedule would suffer.
//!
//! The broker is the binary named, started on a free port in DIRECTORY, which it removes at the
//! end. Failure: says what, exit status 1. A debug build is refused: its figures are nobody's.
#![forbid(unsafe_code)]
#![expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use amqp::connection::Sasl;
use amqp::delivery::Outcome;
use bench::disk::{FILE_BYTES, Figures, Load, through_ring};
use hdrhistogram::Histogram;
use net::file::{self, FileOpen};
use perf::client::{Client, durable_message};

const PAYLOAD_BYTES: usize = 256;
const PRODUCERS: usize = 16;
const WAIT: Duration = Duration::from_secs(30);

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("first_figures: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Failure> {
    if cfg!(debug_assertions) {
        return Err("built without optimisation; build with --release".into());
    }
    let mut args = std::env::args().skip(1);
    let usage = "usage: first_figures LAELAPS DIRECTORY [ROUNDS] [MESSAGES]";
    let (Some(laelaps), Some(directory)) = (args.next(), args.next()) else {
        return Err(usage.into());
    };
    let rounds = args.next().map_or(Ok(12), |text| text.parse::<usize>())?;
    let messages = args.next().map_or(Ok(2000), |text| text.parse::<usize>())?;
    let directory = PathBuf::from(directory).join(format!("figures-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let broker = Broker::start(Path::new(&laelaps), &directory)?;
    let figures = measure(&broker, &directory, rounds, messages);
    drop(broker);
    std::fs::remove_dir_all(&directory)?;
    report(&figures?);
    Ok(())
}

/// A broker of our own, killed when it is dropped.
struct Broker {
    child: Child,
    addr: SocketAddr,
}

impl Broker {
    fn start(laelaps: &Path, directory: &Path) -> Result<Self, Failure> {
        let free = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr();
        let (addr, admin) = (free()?, free()?);
        let child = Command::new(laelaps)
            .args(["run", "--durability", "sync", "--data"])
            .arg(directory.join("data"))
            .args(["--listen", &addr.to_string(), "--admin", &admin.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let broker = Self { child, addr };
        let since = Instant::now();
        while broker.client("probe").is_err() {
            if since.elapsed() > WAIT {
                return Err("the broker did not come up".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(broker)
    }

    fn client(&self, name: &str) -> Result<Client, Failure> {
        Ok(Client::connect(self.addr, name, Sasl::Anonymous, WAIT)?)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One block of a round.
struct Block {
    latency_ns: Histogram<u64>,
    rate: f64,
}

struct Round {
    disk: Block,
    one: Block,
    sixteen: Block,
}

fn measure(
    broker: &Broker,
    directory: &Path,
    rounds: usize,
    messages: usize,
) -> Result<Vec<Round>, Failure> {
    let path = directory.join("bare");
    let how = FileOpen { create: true, write: true, direct: true };
    file::open(&path, how)?.prewrite(FILE_BYTES as u64)?;
    let mut out = Vec::new();
    // The first round warms everything up and is not counted.
    for round in 0..=rounds {
        let bare = || bare_writes(&path, messages);
        let one = || producers(broker, 1, messages);
        let sixteen = || producers(broker, PRODUCERS, messages / 4);
        let measured = if round.is_multiple_of(2) {
            let disk = bare()?;
            let one = one()?;
            Round { disk, one, sixteen: sixteen()? }
        } else {
            let sixteen = sixteen()?;
            let one = one()?;
            Round { disk: bare()?, one, sixteen }
        };
        drain(broker)?;
        if round > 0 {
            out.push(measured);
        }
    }
    Ok(out)
}

fn bare_writes(path: &Path, writes: usize) -> Result<Block, Failure> {
    let how = FileOpen { create: false, write: true, direct: true };
    let load = Load { size: 4096, depth: 1, writes };
    let Figures { latency_ns, took } = through_ring(file::open(path, how)?, load)?;
    Ok(Block { latency_ns, rate: writes as f64 / took.as_secs_f64() })
}

fn producers(broker: &Broker, count: usize, messages: usize) -> Result<Block, Failure> {
    let clients: Vec<Client> =
        (0..count).map(|n| broker.client(&format!("p{n}"))).collect::<Result<_, _>>()?;
    let start = Instant::now();
    let parts: Vec<Result<Histogram<u64>, Failure>> = std::thread::scope(|scope| {
        let threads: Vec<_> = clients
            .into_iter()
            .map(|client| scope.spawn(move || produce(client, messages)))
            .collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|_| Err("a producer panicked".into()))
        };
        threads.into_iter().map(join).collect()
    });
    let took = start.elapsed().as_secs_f64();
    let mut latency_ns = Histogram::new(3)?;
    for part in parts {
        latency_ns.add(part?)?;
    }
    Ok(Block { rate: latency_ns.len() as f64 / took, latency_ns })
}

fn produce(mut client: Client, messages: usize) -> Result<Histogram<u64>, Failure> {
    let link = client.sender("figures")?;
    let message = durable_message(&[7; PAYLOAD_BYTES]);
    let mut latency_ns = Histogram::new(3)?;
    for _ in 0..messages {
        let one = Instant::now();
        client.send(link, &message)?;
        let (_, outcome) = client.next_outcome()?;
        if outcome != Outcome::Accepted {
            return Err(format!("a message was not accepted: {outcome:?}").into());
        }
        latency_ns.record(one.elapsed().as_nanos() as u64)?;
    }
    client.close()?;
    Ok(latency_ns)
}

/// Takes off what was sent, so that the rounds are alike.
fn drain(broker: &Broker) -> Result<(), Failure> {
    let mut client =
        Client::connect(broker.addr, "drain", Sasl::Anonymous, Duration::from_secs(1))?;
    let link = client.receiver("figures", 1000)?;
    while let Ok(received) = client.receive() {
        client.accept(&received);
        client.grant(link, 1000);
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn report(rounds: &[Round]) {
    let us = |block: &Block, q: f64| block.latency_ns.value_at_quantile(q) as f64 / 1000.0;
    println!("{} rounds, 256 B durable messages, 4 KiB bare writes; medians", rounds.len());
    println!("             p50 us   p99 us   a second   p50/disk   p99/disk   rate/disk");
    type Pick = fn(&Round) -> &Block;
    let blocks: [(&str, Pick); 3] =
        [("disk", |r| &r.disk), ("sync x1", |r| &r.one), ("sync x16", |r| &r.sixteen)];
    for (name, block) in blocks {
        let of = |f: &dyn Fn(&Round) -> f64| median(rounds.iter().map(f).collect());
        println!(
            "{name:<10} {:>8.0} {:>8.0} {:>10.0} {:>10.2} {:>10.2} {:>11.2}",
            of(&|r| us(block(r), 0.5)),
            of(&|r| us(block(r), 0.99)),
            of(&|r| block(r).rate),
            of(&|r| us(block(r), 0.5) / us(&r.disk, 0.5)),
            of(&|r| us(block(r), 0.99) / us(&r.disk, 0.99)),
            of(&|r| block(r).rate / r.disk.rate),
        );
    }
}
