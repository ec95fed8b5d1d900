//! Who is how much slower, in one run: brokers, floors and peers in interleaved blocks.
//!
//! ```text
//!   start      floors, brokers of our own on free ports, all at once and all idle
//!   probe      a closed loop on each: half of the slowest rate is the rate of all; or, with
//!              --half, half of the highest rate of an open loop that all of them hold
//!   rounds     A B C   C B A   B A C   C A B ...     a block of each; every other order is the
//!                 │       │                          one before it, backwards
//!              noisy? its pairs are dropped, and another round is run, up to three times the
//!              planned time
//!   ratios     within rounds; their median, its interval; VALID or INVALID
//! ```
//! What runs side by side shares the machine's minute, so the ratio is worth more than either
//! figure. A queue is emptied after each block.
//!
//! Failure: a variant that cannot be started or loaded ends the comparison; brokers and files are
//! gone in any case, also on Ctrl-C.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{ArgAction, Args};

use crate::arguments::{parse_duration, parse_rate, parse_target};
use crate::block::{Block, Percentiles, SCHEMA};
use crate::broker::{Broker, BrokerPlan, Interrupt, Scratch, ask, is_well};
use crate::command::Failure;
use crate::floor::{Floor, FloorKind, FloorLoad, Store, WRITES_IN_FLIGHT, check_even};
use crate::load::{self, Length, Links, LoadPlan, Target};
use crate::machine::{Machine, Noise, Place, Snapshot};
use crate::pair::Pair;
use crate::schedule::Arrivals;
use crate::show;
use crate::stats::{Chance, Estimate};
use crate::verdict::Verdict;

mod result;
mod saturation;

pub use self::result::{BlockSummary, Comparison, Intervals, Plan, Ratio, Round, Variant, ratio};

use self::result::{clean_pairs, pool};
use self::saturation::Saturation;

/// What `laelaps perf compare` is told.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// A broker that answers when a message is durable
    #[arg(long)]
    pub sync: bool,
    /// A broker that answers before
    #[arg(long = "async")]
    pub asynchronous: bool,
    /// A pair that answers when a message is durable at both members
    #[arg(long)]
    pub replicated: bool,
    /// What they stand on: group commit and durable write below --sync, TCP echo below --async,
    /// group commit in two places below --replicated. With none of the four: sync, async and floors
    #[arg(long)]
    pub floor: bool,
    /// The brokers' engine; several are compared with each other
    #[arg(long = "engine", value_name = "uring|epoll")]
    pub engines: Vec<String>,
    /// Another broker that runs already: amqp://HOST:PORT, or amqp://USER:PASSWORD@HOST:PORT
    #[arg(long = "peer", value_name = "URL", value_parser = parse_target)]
    pub peers: Vec<Target>,
    /// Rounds to compare; fewer than 12 make no valid result
    #[arg(long, value_name = "N", default_value_t = 12,
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub pairs: u32,
    /// How long each block is
    #[arg(long, value_name = "TIME", default_value = "600ms", value_parser = parse_duration)]
    pub block: Duration,
    /// Load before each block
    #[arg(long, value_name = "TIME", default_value = "100ms", value_parser = parse_duration)]
    pub warmup: Duration,
    /// Bytes of a message's body, and of a floor's request
    #[arg(long, value_name = "BYTES", default_value_t = 256,
          value_parser = clap::value_parser!(u32).range(32..=1 << 20))]
    pub size: u32,
    /// Messages a second [default: half of what the slowest does in a closed loop]
    #[arg(long, value_name = "N", value_parser = parse_rate, conflicts_with = "closed")]
    pub rate: Option<f64>,
    /// No schedule: each next message when there is room in flight
    #[arg(long, action = ArgAction::SetTrue)]
    pub closed: bool,
    /// Messages a second: half of the highest rate that all of them hold, found as `sweep` does
    #[arg(long, action = ArgAction::SetTrue, conflicts_with_all = ["rate", "closed"])]
    pub half: bool,
    /// How send times are spread
    #[arg(long, value_enum, default_value_t = Arrivals::Constant)]
    pub arrivals: Arrivals,
    /// Producers, each with a connection
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub producers: u32,
    /// Messages that each producer may have under way
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub in_flight: u32,
    /// Threads of the client, each with a ring; they share the connections
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=64))]
    pub threads: u32,
    /// Chance of orders, arrivals and intervals
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Keep the brokers' data and the floors' files in a directory below this one
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub dir: PathBuf,
    /// Write the result here, and a report beside it that ends in .html
    #[arg(long, value_name = "FILE", default_value = "laelaps-compare.json")]
    pub json: PathBuf,
    /// Compare the brokers of this binary [default: this one]
    #[arg(long, value_name = "FILE")]
    pub binary: Option<PathBuf>,
    /// No progress line for each round
    #[arg(long)]
    pub quiet: bool,
}

/// A ratio whose interval is wider than this factor is not known.
const SPREAD_MAX: f64 = 1.5;

/// Fewer clean pairs make no valid result.
pub const PAIRS_MIN: usize = 12;

/// The queue of a broker that is compared.
const QUEUE: &str = "laelaps-compare";

/// How long it may take to empty a queue.
const PURGE_WITHIN: Duration = Duration::from_secs(120);

/// A peer's queue is taken for empty when nothing came for so long.
const QUIET: Duration = Duration::from_millis(300);

/// `laelaps perf compare`.
///
/// # Errors
/// What could not be started, loaded or written.
pub fn command(options: &Options) -> Result<(), Failure> {
    let comparison = compare(options, &Interrupt::listen()?)?;
    show::write_json(&options.json, &comparison)?;
    let html = options.json.with_extension("html");
    show::write_file(&html, &crate::report::comparison(&comparison))?;
    show::print(&comparison.text())?;
    let (json, html) = (options.json.display(), html.display());
    show::print(&format!("result {json}, report {html}\n"))
}

/// Runs a comparison; an interrupt ends it early, as a failure.
///
/// # Errors
/// What could not be started or loaded.
pub fn compare(options: &Options, stop: &Interrupt) -> Result<Comparison, Failure> {
    check_even(options.producers, options.threads)?;
    let scratch = Scratch::new(&options.dir)?;
    let mut place = Place::of(scratch.path())?;
    place.direct = Some(Store::new(scratch.path(), 1)?.direct());
    let contenders = start(options, &scratch, stop, place.volatile)?;
    let mut run = Run { options, stop, contenders, seed: options.seed };
    let mut plan = Plan {
        pairs: options.pairs as usize,
        block_s: options.block.as_secs_f64(),
        warm_up_s: options.warmup.as_secs_f64(),
        size: options.size as usize,
        rate: options.rate,
        probed: BTreeMap::new(),
        saturation: None,
        gave_way: None,
        connections: options.producers as usize,
        in_flight: options.in_flight as usize,
        threads: options.threads as usize,
        arrivals: options.arrivals,
        seed: options.seed,
    };
    let mut saturation = None;
    if options.rate.is_none() && !options.closed {
        plan.probed = run.probe()?;
        let mut slowest = plan.probed.values().copied().fold(f64::INFINITY, f64::min);
        if options.half {
            let found = run.saturation(slowest)?;
            slowest = found.rate;
            plan.saturation = Some(found.rate);
            plan.gave_way = found.gave_way().map(str::to_owned);
            saturation = Some(found);
        }
        plan.rate = Some(two_digits(slowest / 2.0));
    }
    let mut pooled: BTreeMap<String, Option<Block>> = BTreeMap::new();
    let rounds = run.rounds(&plan, &mut pooled)?;
    let ratios: BTreeMap<String, Ratio> = pairings(&run.names())
        .into_iter()
        .filter_map(|(over, under)| {
            Some((format!("{over}/{under}"), ratio(&rounds, &over, &under, options.seed)?))
        })
        .collect();
    let variants: Vec<Variant> = run
        .contenders
        .iter()
        .map(|one| Variant {
            name: one.name.clone(),
            what: one.what.clone(),
            pooled: pooled.remove(&one.name).flatten(),
        })
        .collect();
    let mut verdict = judge(&plan, &place, &variants, &rounds);
    judge_intervals(&mut verdict, &ratios);
    saturation.iter().for_each(|found: &Saturation| found.judge(&mut verdict));
    Ok(Comparison {
        schema: SCHEMA.to_owned(),
        kind: "compare".to_owned(),
        verdict,
        machine: Machine::here(),
        place,
        plan,
        variants,
        rounds,
        ratios,
    })
}

/// One who is compared, up and idle.
struct Contender {
    name: String,
    what: String,
    server: Server,
}

enum Server {
    Broker(Broker),
    Pair(Box<Pair>),
    Floor(Floor),
    Peer(Target),
}

fn start(
    options: &Options,
    scratch: &Scratch,
    stop: &Interrupt,
    volatile: bool,
) -> Result<Vec<Contender>, Failure> {
    let none = !options.sync && !options.asynchronous && !options.replicated && !options.floor;
    let (sync, asynchronous) = (options.sync || none, options.asynchronous || none);
    let size = options.size as usize;
    let mut contenders = Vec::new();
    if options.floor || none {
        // Only floors that something here stands on: each takes its share of the time, and what
        // objects to one objects to the whole.
        let alone = !sync && !asynchronous && !options.replicated && options.peers.is_empty();
        let durable = alone || sync || !options.peers.is_empty();
        let mut kinds = Vec::new();
        if durable {
            let what = "receive, aligned group commit, 16 bytes back";
            kinds.push(("floor", FloorKind::Commit, what));
        }
        if alone || asynchronous {
            kinds.push(("echo", FloorKind::Echo, "TCP echo"));
        }
        // A device alone knows no group commit: it is like the others only with one in flight.
        if durable && options.producers * options.in_flight == 1 {
            kinds.push(("dev", FloorKind::Dev, "aligned 4 KiB writes with data sync"));
        }
        if options.replicated {
            let what = "receive, aligned group commit in two places, 16 bytes back";
            kinds.push(("pair-floor", FloorKind::Replicated, what));
        }
        for (name, kind, what) in kinds {
            let floor = Floor::start(kind, scratch.path(), size, WRITES_IN_FLIGHT)?;
            let (name, what) = (name.to_owned(), what.to_owned());
            contenders.push(Contender { name, what, server: Server::Floor(floor) });
        }
    }
    let engines: Vec<Option<String>> = if options.engines.is_empty() {
        vec![None]
    } else {
        options.engines.iter().cloned().map(Some).collect()
    };
    for (wanted, durability) in [(sync, "sync"), (asynchronous, "async")] {
        for engine in engines.iter().filter(|_| wanted) {
            let name = match engine {
                Some(engine) if engines.len() > 1 => format!("{durability}-{engine}"),
                Some(_) | None => durability.to_owned(),
            };
            let what = match engine {
                Some(engine) => format!("this broker at level {durability}, engine {engine}"),
                None => format!("this broker at level {durability}"),
            };
            let mut plan = BrokerPlan::new(scratch.join(&name))?;
            plan.exe = options.binary.clone().unwrap_or(plan.exe);
            plan.flags = ["--durability", durability].map(str::to_owned).to_vec();
            if let Some(engine) = engine {
                plan.flags.extend(["--engine".to_owned(), engine.clone()]);
            }
            if volatile {
                plan.flags.push("--allow-volatile".to_owned());
            }
            let broker = Broker::start(&plan, stop)?;
            contenders.push(Contender { name, what, server: Server::Broker(broker) });
        }
    }
    if options.replicated {
        let flags: &[String] = if volatile { &["--allow-volatile".to_owned()] } else { &[] };
        let directory = scratch.join("replicated");
        let pair = Pair::start(options.binary.as_ref(), &directory, flags, stop)?;
        let what = "a pair of this broker at level replicated-sync".to_owned();
        contenders.push(Contender {
            name: "replicated".to_owned(),
            what,
            server: Server::Pair(Box::new(pair)),
        });
    }
    for (number, peer) in (1..).zip(&options.peers) {
        let (name, what) = (format!("peer{number}"), format!("the broker on {}", peer.addr));
        contenders.push(Contender { name, what, server: Server::Peer(peer.clone()) });
    }
    Ok(contenders)
}

/// Who is divided by whom.
fn pairings(names: &[String]) -> Vec<(String, String)> {
    let has = |name: &str| names.iter().any(|one| one == name);
    let mut pairs = Vec::new();
    let mut pair = |over: &str, under: &str| pairs.push((over.to_owned(), under.to_owned()));
    let of = |kind: &'static str| {
        let own = format!("{kind}-");
        names.iter().filter(move |name| *name == kind || name.starts_with(&own))
    };
    for (kind, floor) in [("sync", "floor"), ("async", "echo"), ("replicated", "pair-floor")] {
        for name in of(kind).filter(|_| has(floor)) {
            pair(name, floor);
        }
        let engines: Vec<&String> = of(kind).collect();
        for others in engines.iter().skip(1) {
            pair(others, engines[0]);
        }
    }
    for (sync, asynchronous) in of("sync").zip(of("async")) {
        pair(sync, asynchronous);
    }
    for peer in names.iter().filter(|name| name.starts_with("peer")) {
        let under = of("sync").next().map(String::as_str).or(has("floor").then_some("floor"));
        if let Some(under) = under {
            pair(peer, under);
        }
    }
    pairs
}

struct Run<'a> {
    options: &'a Options,
    stop: &'a Interrupt,
    contenders: Vec<Contender>,
    seed: u64,
}

/// What one block is asked to do.
#[derive(Clone, Copy)]
struct Ask {
    rate: Option<f64>,
    warm_up: Duration,
    duration: Duration,
    seed: u64,
}

impl Run<'_> {
    /// What each does in a closed loop, a second.
    fn probe(&mut self) -> Result<BTreeMap<String, f64>, Failure> {
        // As long as a block: what a burst does says nothing of what can be kept up.
        let ask = Ask {
            rate: None,
            warm_up: self.options.warmup,
            duration: self.options.block,
            seed: self.options.seed,
        };
        let mut rates = BTreeMap::new();
        for contender in &self.contenders {
            let block = self.block(contender, ask)?;
            if block.completed == 0 {
                return Err(
                    format!("{} answered nothing in {:?}", contender.name, ask.duration).into()
                );
            }
            rates.insert(contender.name.clone(), block.achieved());
        }
        Ok(rates)
    }

    fn names(&self) -> Vec<String> {
        self.contenders.iter().map(|one| one.name.clone()).collect()
    }

    /// Rounds until enough are clean, or the time is up.
    fn rounds(
        &mut self,
        plan: &Plan,
        pooled: &mut BTreeMap<String, Option<Block>>,
    ) -> Result<Vec<Round>, Failure> {
        let block = self.options.block + self.options.warmup;
        let planned = block * (plan.pairs * self.contenders.len()) as u32;
        let started = clock();
        let mut chance = Chance::new(self.options.seed);
        let mut order: Vec<usize> = (0..self.contenders.len()).collect();
        let mut rounds: Vec<Round> = Vec::new();
        let names = self.names();
        let mut clean = 0;
        while clean < plan.pairs && (clean == 0 || started.elapsed() < planned * 3) {
            if rounds.len() > 3 * plan.pairs {
                break;
            }
            if rounds.len().is_multiple_of(2) {
                chance.shuffle(&mut order);
            } else {
                order.reverse();
            }
            self.seed = self.seed.wrapping_add(1);
            let (round, blocks) = self.round(plan, &order)?;
            for (name, block) in &blocks {
                if round.blocks[name].dropped.is_none() {
                    pool(pooled.entry(name.clone()).or_default(), block);
                }
            }
            let state = round.noise();
            rounds.push(round);
            clean = pairs_min(&names, &rounds);
            if !self.options.quiet {
                eprintln!("round {:>3}: {clean:>3} of {} clean; {state}", rounds.len(), plan.pairs);
            }
        }
        Ok(rounds)
    }

    fn round(
        &self,
        plan: &Plan,
        order: &[usize],
    ) -> Result<(Round, Vec<(String, Block)>), Failure> {
        let ask = Ask {
            rate: plan.rate,
            warm_up: self.options.warmup,
            duration: self.options.block,
            seed: self.seed,
        };
        let mut round = Round { order: Vec::new(), blocks: BTreeMap::new() };
        let mut blocks = Vec::new();
        for &at in order {
            let contender = &self.contenders[at];
            let before = Snapshot::take();
            let block = self.block(contender, ask)?;
            let noise = Noise::between(&before, &Snapshot::take());
            let name = contender.name.clone();
            round.order.push(name.clone());
            round.blocks.insert(name.clone(), BlockSummary::of(&block, noise));
            blocks.push((name, block));
        }
        Ok((round, blocks))
    }

    fn block(&self, contender: &Contender, ask: Ask) -> Result<Block, Failure> {
        self.stop.check()?;
        let named = |error: &dyn std::fmt::Display| format!("{}: {error}", contender.name);
        match &contender.server {
            Server::Floor(floor) => {
                let load = FloorLoad {
                    connections: self.options.producers as usize,
                    in_flight: self.options.in_flight as usize,
                    threads: self.options.threads as usize,
                    size: self.options.size as usize,
                    rate: ask.rate,
                    arrivals: self.options.arrivals,
                    seed: ask.seed,
                    warm_up: ask.warm_up,
                    duration: ask.duration,
                };
                Ok(floor.run(&load).map_err(|error| named(&error))?)
            }
            Server::Broker(broker) => self.ours(broker, ask, &named),
            Server::Pair(pair) => self.ours(pair.live(), ask, &named),
            Server::Peer(target) => {
                let plan = self.load(target.clone(), None, ask);
                let block = self.produce(&plan).map_err(|error| named(&error))?;
                self.drain(&plan).map_err(|error| named(&error))?;
                Ok(block)
            }
        }
    }

    fn ours(
        &self,
        broker: &Broker,
        ask: Ask,
        named: &dyn Fn(&dyn std::fmt::Display) -> String,
    ) -> Result<Block, Failure> {
        let plan = self.load(broker.target(), Some(broker.process()), ask);
        let block = self.produce(&plan).map_err(|error| named(&error))?;
        purge(broker.admin()).map_err(|error| named(&error))?;
        Ok(block)
    }

    fn load(&self, target: Target, process: Option<u32>, ask: Ask) -> LoadPlan {
        LoadPlan {
            addresses: vec![QUEUE.to_owned()],
            producers: Links::alone(self.options.producers),
            in_flight: self.options.in_flight,
            size: self.options.size as usize,
            rate: ask.rate,
            arrivals: self.options.arrivals,
            seed: ask.seed,
            warmup: ask.warm_up,
            length: Length::For(ask.duration),
            threads: self.options.threads,
            server_process: process,
            ..LoadPlan::new(target)
        }
    }

    fn produce(&self, plan: &LoadPlan) -> Result<Block, Failure> {
        let measured = load::measure(plan, &mut |_| self.go_on())?;
        measured.produced.ok_or_else(|| "a load without producers".into())
    }

    /// Takes what is in a peer's queue, as a consumer would.
    fn drain(&self, plan: &LoadPlan) -> Result<(), Failure> {
        let plan = LoadPlan {
            producers: Links::NONE,
            consumers: Links::ONE,
            credit: 1000,
            rate: None,
            warmup: Duration::ZERO,
            length: Length::Count(u64::MAX),
            threads: 1,
            patience: QUIET,
            ..plan.clone()
        };
        load::measure(&plan, &mut |_| self.go_on())?;
        Ok(())
    }

    fn go_on(&self) -> ControlFlow<()> {
        if self.stop.is_set() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

/// Takes away what a block has left in the queue of a broker of ours.
fn purge(admin: SocketAddr) -> Result<(), Failure> {
    let answer = ask(admin, &format!("POST /api/v1/queues/{QUEUE}/purge"), PURGE_WITHIN)?;
    if is_well(&answer) {
        return Ok(());
    }
    let status = answer.lines().next().unwrap_or_default();
    Err(format!("{QUEUE} cannot be emptied: {status}").into())
}

fn judge(plan: &Plan, place: &Place, variants: &[Variant], rounds: &[Round]) -> Verdict {
    let mut verdict = Verdict::new();
    let names: Vec<String> = variants.iter().map(|one| one.name.clone()).collect();
    let clean = pairs_min(&names, rounds);
    if clean < PAIRS_MIN {
        verdict.object(format!("{clean} clean pairs: at least {PAIRS_MIN} are needed"));
    } else if clean < plan.pairs {
        verdict.note(format!("{clean} of {} pairs were clean in the time", plan.pairs));
    }
    let blocks = || rounds.iter().flat_map(|round| round.blocks.values());
    let noisy = blocks().filter(|block| block.dropped.is_some()).count();
    if noisy > 0 {
        verdict.note(format!("{noisy} noisy blocks of {} were dropped", blocks().count()));
    }
    for variant in variants {
        if let Some(pooled) = &variant.pooled {
            verdict.judge(&variant.name, pooled);
        }
    }
    if place.volatile {
        verdict.object(format!("volatile file system: {} forgets", place.file_system));
    }
    if place.direct == Some(false) {
        verdict.object("buffered I/O: the file system refuses direct writes");
    }
    if let Some(note) = place.note() {
        verdict.note(note);
    }
    if plan.rate.is_none() {
        verdict.note("closed loops: they say what an answer takes, not what a schedule suffers");
    }
    verdict
}

/// A median that could be anything is none; a wide tail is told.
fn judge_intervals(verdict: &mut Verdict, ratios: &BTreeMap<String, Ratio>) {
    for (name, ratio) in ratios {
        let [low, high] = ratio.intervals.p50;
        if high > SPREAD_MAX * low {
            verdict.object(format!(
                "{name}: its p50 lies anywhere from {low:.2} to {high:.2}: run more pairs, or \
                 longer blocks"
            ));
        }
        let [low, high] = ratio.intervals.p99;
        if high > SPREAD_MAX * low {
            verdict.note(format!("{name}: its p99 is known no closer than {low:.2} to {high:.2}"));
        }
    }
}

/// Clean pairs of the ratio that has the fewest; where there is nothing to compare, clean blocks.
fn pairs_min(names: &[String], rounds: &[Round]) -> usize {
    let mut pairings = pairings(names);
    if pairings.is_empty() {
        pairings = names.iter().map(|name| (name.clone(), name.clone())).collect();
    }
    let counts = pairings.iter().map(|(over, under)| clean_pairs(rounds, over, under).count());
    counts.min().unwrap_or(0)
}

impl Comparison {
    /// The result as text.
    #[must_use]
    pub fn text(&self) -> String {
        let Plan { connections, in_flight, size, .. } = self.plan;
        let of = |rate: f64| show::grouped(rate.round() as u64);
        let rate = match (self.plan.rate, self.plan.saturation) {
            (Some(rate), Some(all)) => format!("{} a second, half of {}", of(rate), of(all)),
            (Some(rate), None) => format!("{} a second", of(rate)),
            (None, _) => "closed loop".to_owned(),
        };
        let mut text = format!(
            "{}, {} CPUs, Linux {}, {}\n{size} B, {connections} x {in_flight} in flight, {rate}, \
             {} rounds of {} ms, seed {}\n\n",
            self.machine.cpu,
            self.machine.cpus,
            self.machine.kernel,
            self.place.file_system,
            self.rounds.len(),
            (self.plan.block_s * 1000.0).round(),
            self.plan.seed,
        );
        writeln!(
            text,
            "{:<12} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}   CPU us a message",
            "us", "a second", "p50", "p90", "p99", "p99.9", "max"
        )
        .expect("memory takes text");
        for variant in &self.variants {
            let Some(block) = &variant.pooled else { continue };
            let Percentiles { p50, p90, p99, p999, max } = Percentiles::of(&block.intended);
            let us = |ns: u64| format!("{:9.0}", ns as f64 / 1000.0);
            let server = block.cpu_server_ns_per_message();
            let server = server.map_or("-".to_owned(), |ns| format!("{:.0}", ns / 1000.0));
            writeln!(
                text,
                "{:<12} {:>9.0} {} {} {} {} {}   client {:.0}, server {server}",
                variant.name,
                block.achieved(),
                us(p50),
                us(p90),
                us(p99),
                us(p999),
                us(max),
                block.cpu_client_ns_per_message() / 1000.0,
            )
            .expect("memory takes text");
        }
        writeln!(
            text,
            "\n{:<22} {:>18} {:>18} {:>18} {:>18} {:>18}",
            "ratio (5-95 %)", "p50", "p90", "p99", "p99.9", "rate"
        )
        .expect("memory takes text");
        for (name, ratio) in &self.ratios {
            let show = |estimate: Estimate| {
                let Estimate { median, low, high } = estimate;
                format!("{median:.2} ({low:.2}-{high:.2})")
            };
            let [p50, p90, p99, p999] = ratio.estimates().map(|(_, estimate)| show(estimate));
            let rate = ratio.rate.map_or("-".to_owned(), show);
            writeln!(text, "{name:<22} {p50:>18} {p90:>18} {p99:>18} {p999:>18} {rate:>18}")
                .expect("memory takes text");
        }
        writeln!(text, "\n{}", self.verdict).expect("memory takes text");
        text
    }
}

/// Rounded to two digits: a rate that a person can repeat.
fn two_digits(rate: f64) -> f64 {
    let unit = 10f64.powf(rate.log10().floor() - 1.0);
    ((rate / unit).floor() * unit).max(1.0)
}

#[expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]
fn clock() -> Instant {
    Instant::now()
}

#[cfg(test)]
pub(crate) mod tests {
    use clap::Parser;

    use super::result::tests::{block, round};
    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    /// A comparison that was never run.
    pub(crate) fn comparison(sync_us: u64, dropped: Option<&str>) -> Comparison {
        let names = ["floor", "sync"];
        let pair = [("floor", 100), ("sync", sync_us)];
        let rounds: Vec<Round> =
            (0..14).map(|number| round(&pair, dropped.filter(|_| number > 2))).collect();
        let variants: Vec<Variant> = names
            .iter()
            .zip(pair)
            .map(|(name, (_, us))| Variant {
                name: (*name).to_owned(),
                what: String::new(),
                pooled: Some(block(us)),
            })
            .collect();
        let plan = Plan {
            pairs: 12,
            block_s: 1.0,
            warm_up_s: 0.1,
            size: 256,
            rate: Some(100.0),
            probed: BTreeMap::new(),
            saturation: None,
            gave_way: None,
            connections: 1,
            in_flight: 1,
            threads: 1,
            arrivals: Arrivals::Constant,
            seed: 1,
        };
        let place = Place {
            file_system: "ext4".to_owned(),
            volatile: false,
            remote: false,
            direct: Some(true),
            write_cache: Some("write through".to_owned()),
            forced_unit_access: Some(true),
        };
        let ratios = ratio(&rounds, "sync", "floor", 1)
            .map(|ratio| ("sync/floor".to_owned(), ratio))
            .into_iter()
            .collect();
        Comparison {
            schema: SCHEMA.to_owned(),
            kind: "compare".to_owned(),
            verdict: judge(&plan, &place, &variants, &rounds),
            machine: Machine::here(),
            place,
            plan,
            variants,
            rounds,
            ratios,
        }
    }

    #[test]
    fn the_defaults_of_the_command_are_within_a_minute() {
        let Options { pairs, block, warmup, .. } = Cli::parse_from(["compare"]).options;
        assert!((block + warmup) * pairs * 5 < Duration::from_secs(45));
        assert!(pairs as usize >= PAIRS_MIN);
    }

    #[test]
    fn each_broker_has_the_floor_that_it_can_reach() {
        let pairs = |names: &[&str]| -> Vec<String> {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let pairs = pairings(&names).into_iter();
            pairs.map(|(over, under)| format!("{over}/{under}")).collect()
        };
        assert_eq!(
            pairs(&["floor", "echo", "dev", "sync", "async"]),
            ["sync/floor", "async/echo", "sync/async"]
        );
        assert_eq!(
            pairs(&["floor", "echo", "sync-uring", "sync-epoll"]),
            ["sync-uring/floor", "sync-epoll/floor", "sync-epoll/sync-uring"]
        );
        assert_eq!(pairs(&["sync", "peer1", "peer2"]), ["peer1/sync", "peer2/sync"]);
        assert_eq!(pairs(&["floor", "echo", "peer1"]), ["peer1/floor"]);
    }

    #[test]
    fn too_few_clean_rounds_make_it_invalid() {
        let good = comparison(150, None);
        let reasons = good.verdict.reasons();
        // In a debug build that is the only one.
        assert!(reasons.iter().all(|reason| reason.contains("debug")), "{reasons:?}");
        let noisy = comparison(150, Some("stolen"));
        assert!(noisy.verdict.reasons().iter().any(|reason| reason.contains("3 clean")));
        assert!(noisy.verdict.notes().iter().any(|note| note.contains("22 noisy")));
    }

    #[test]
    fn a_median_that_could_be_anything_makes_it_invalid() {
        let made = comparison(150, None);
        let mut verdict = Verdict::default();
        judge_intervals(&mut verdict, &made.ratios);
        assert_eq!(verdict, Verdict::default());
        let mut wide = made.ratios;
        let ratio = wide.get_mut("sync/floor").expect("it is there");
        ratio.intervals.p99 = [0.5, 3.0];
        judge_intervals(&mut verdict, &wide);
        assert!(verdict.is_valid() && verdict.notes()[0].contains("p99"), "{verdict}");
        wide.get_mut("sync/floor").expect("it is there").intervals.p50 = [1.0, 1.6];
        judge_intervals(&mut verdict, &wide);
        assert!(verdict.reasons()[0].contains("sync/floor"), "{verdict}");
    }

    #[test]
    fn memory_and_caches_make_it_invalid() {
        let made = comparison(150, None);
        for (volatile, direct, word) in [(true, true, "volatile"), (false, false, "buffered")] {
            let place = Place { volatile, direct: Some(direct), ..made.place.clone() };
            let verdict = judge(&made.plan, &place, &made.variants, &made.rounds);
            assert!(verdict.reasons().iter().any(|reason| reason.contains(word)), "{verdict}");
        }
    }

    #[test]
    fn it_goes_through_json_and_has_the_shape_that_was_promised() {
        let made = comparison(150, None);
        let text = serde_json::to_string(&made).expect("plain data");
        let back: Comparison = serde_json::from_str(&text).expect("what we wrote");
        assert_eq!(back.text(), made.text());
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let ratio = &value["ratios"]["sync/floor"];
        for key in ["p50", "p90", "p99", "p999", "low", "high"] {
            let figure = ratio[key].as_f64().expect(key);
            assert!((figure - 1.5).abs() < 0.05, "{key} {figure}");
        }
        assert!(value["verdict"]["valid"].is_boolean());
    }

    #[test]
    fn rates_are_rounded_down_to_two_digits() {
        assert!((two_digits(4567.0) - 4500.0).abs() < 1e-6);
        assert!((two_digits(98.7) - 98.0).abs() < 1e-6);
        assert!((two_digits(0.3) - 1.0).abs() < 1e-6);
    }

    #[test]
    fn floors_alone_can_be_compared() {
        let root = tempfile::tempdir().expect("a directory");
        let mut options = Cli::parse_from(["compare", "--floor", "--quiet"]).options;
        options.dir = root.path().to_owned();
        (options.pairs, options.block) = (2, Duration::from_millis(60));
        let stop = Interrupt::listen().expect("signals");
        let result = compare(&options, &stop).expect("a result");
        assert_eq!(result.variants.len(), 3);
        // On a machine whose time is stolen, what every round lost is in none.
        let counts =
            |name: &str| result.rounds.iter().any(|round| round.blocks[name].dropped.is_none());
        assert!(result.variants.iter().all(|one| one.pooled.is_some() == counts(&one.name)));
        assert!(result.plan.rate.is_some_and(|rate| rate >= 1.0));
        let orders: Vec<_> = result.rounds.iter().map(|round| round.order.clone()).collect();
        let mut backwards = orders[1].clone();
        backwards.reverse();
        assert_eq!(orders[0], backwards, "A B B A");
        assert_eq!(std::fs::read_dir(root.path()).expect("there").count(), 0, "nothing is left");
    }
}
