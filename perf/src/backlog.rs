//! `perf backlog`: a backlog far beyond memory: what it takes, how it drains, what that disturbs.
//!
//! ```text
//!   read     the disk's sequential direct reads (`perf journal --read`)
//!   memory   what fits is sent and drained, three times: the consumers' own rate
//!   fill     --bytes in --queues queues, a message to each in turn
//!   cold     kill -9, start; all queues but one are drained as fast as they go, for a block
//!   blocks   alone:  a steady producer           beside: the same, while those queues are drained
//!                                                at half of the rate that they had
//!   rest     those queues to their end, then the one that lagged
//! ```
//! All in one shard. Every message is compared: its bytes, its order in its queue, and the count of
//! all. What the process and its directory take is looked at from the fill to the end.
//!
//! Failure: see [`Failure`]; broker and directory are gone in any case.

use std::fmt::Write as _;
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::arguments::{OwnBroker, parse_duration, parse_rate};
use crate::beside::{Beside, Watch, Watched, run};
use crate::block::{Block, SCHEMA};
use crate::broker::{Broker, BrokerPlan, Interrupt, Scratch};
use crate::command::Failure;
use crate::journal;
use crate::load::{Length, Links, LoadPlan, Measured};
use crate::machine::{Machine, Place};
use crate::show;
use crate::stats::{Estimate, estimate, median};
use crate::verdict::Verdict;

/// What `perf backlog` is told.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Bytes of all messages together
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 30)]
    bytes: u64,
    /// Queues that they wait in
    #[arg(long, value_name = "N", default_value_t = 50,
          value_parser = clap::value_parser!(u32).range(2..=1000))]
    queues: u32,
    /// Bytes of a message's body
    #[arg(long, value_name = "BYTES", default_value_t = 1024,
          value_parser = clap::value_parser!(u32).range(32..=65_536))]
    size: u32,
    /// The broker's `memory-max`, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 256 << 20)]
    memory_max: u64,
    /// Messages a second of the steady producer
    #[arg(long, value_name = "N", default_value = "500", value_parser = parse_rate)]
    rate: f64,
    /// How long each block is
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = parse_duration)]
    block: Duration,
    /// Blocks of each kind
    #[arg(long, value_name = "N", default_value_t = 5,
          value_parser = clap::value_parser!(u32).range(1..=100))]
    blocks: u32,
    #[command(flatten)]
    own: OwnBroker,
}

/// The p99 of the steady producer and of the bare writes beside it, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SteadyBlock {
    /// Whether queues were drained meanwhile.
    pub beside: bool,
    /// Sent to accepted.
    pub p99_ms: f64,
    /// Bare durable writes.
    pub probe_p99_ms: f64,
    /// Messages of the backlog received a second; 0 alone.
    pub drained_per_second: f64,
}

/// What `perf backlog` gave, as its JSON tells it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BacklogResult {
    /// [`SCHEMA`].
    pub schema: String,
    /// `backlog`.
    pub kind: String,
    /// The machine.
    pub machine: Machine,
    /// Where the data was.
    pub place: Place,
    /// Messages.
    pub messages: u64,
    /// In so many queues.
    pub queues: u32,
    /// Bytes of a body.
    pub size: u32,
    /// The broker's bound, in bytes.
    pub memory_max: u64,
    /// Bytes a second of sequential direct reads of 64 KiB, the best of one to eight in flight.
    pub read_bytes_per_second: f64,
    /// Messages a second that the consumers took from memory: the median of three.
    pub from_memory: f64,
    /// Messages a second that were accepted while the backlog was filled.
    pub filled: f64,
    /// From the start after the kill to ready, in milliseconds.
    pub ready_ms: f64,
    /// Messages a second that they took after the start, for a block.
    pub cold: f64,
    /// Messages a second of the rest of these queues, to their end.
    pub rest: f64,
    /// Messages a second of the queue that lagged.
    pub lagging: f64,
    /// The blocks, in the order in which they ran.
    pub blocks: Vec<SteadyBlock>,
    /// The p99 beside the drain by that of the block alone before it.
    pub p99_ratio: Option<Estimate>,
    /// The most that the broker took, from the fill on.
    pub watched: Watched,
    /// Whether it may be believed.
    pub verdict: Verdict,
}

/// `laelaps perf backlog`.
///
/// # Errors
/// See [`Failure`].
pub fn backlog(options: &Options) -> Result<(), Failure> {
    let interrupt = Interrupt::listen()?;
    let scratch = Scratch::new(&options.own.dir)?;
    let result = Run::new(options, &scratch, &interrupt)?.carry_out()?;
    options.own.show(&result.text(), &result)
}

/// A scenario under way.
struct Run<'a> {
    options: &'a Options,
    interrupt: &'a Interrupt,
    scratch: &'a Scratch,
    plan: BrokerPlan,
    /// What was received of the backlog, by whom ever.
    received: u64,
    wrong: u64,
    watched: Watched,
    /// What is said of the steady producer's blocks.
    steady: Verdict,
}

impl<'a> Run<'a> {
    fn new(
        options: &'a Options,
        scratch: &'a Scratch,
        interrupt: &'a Interrupt,
    ) -> Result<Self, Failure> {
        let config = scratch.join("laelaps.toml");
        let disk_max = 2 * options.bytes + (1 << 30);
        let Options { memory_max, .. } = options;
        let text = format!(
            "memory-max = \"{memory_max}\"\ndisk-max = \"{disk_max}\"\nshards = 1\n\
             max-message-size = \"1 MiB\"\n"
        );
        show::write_file(&config, &text)?;
        let mut plan = BrokerPlan::new(scratch.join("data"))?;
        plan.flags = vec!["--config".to_owned(), config.display().to_string()];
        plan.flags.extend(options.own.flags.iter().cloned());
        plan.ready_within = Duration::from_secs(120);
        Ok(Self {
            options,
            interrupt,
            scratch,
            plan,
            received: 0,
            wrong: 0,
            watched: Watched::default(),
            steady: Verdict::default(),
        })
    }

    fn carry_out(mut self) -> Result<BacklogResult, Failure> {
        let mut result = self.begin()?;
        let broker = Broker::start(&self.plan, self.interrupt)?;
        result.from_memory = self.measure_memory(&broker)?;
        let watch = Watch::start(&broker, &self.plan.data)?;
        self.say(&format!("sending {} messages", show::grouped(result.messages)));
        result.filled = self.fill(&broker, result.messages)?;
        self.watched = self.watched.max(watch.stop());
        broker.kill()?;

        let broker = Broker::start(&self.plan, self.interrupt)?;
        result.ready_ms = broker.ready_after().as_secs_f64() * 1000.0;
        let watch = Watch::start(&broker, &self.plan.data)?;
        self.say("draining all but one");
        let cold = self.take(self.drain_of(&broker, Length::For(self.options.block)))?;
        result.cold = achieved(&cold);
        if result.cold == 0.0 {
            return Err(
                "nothing of the backlog came within a block: choose a longer --block".into()
            );
        }
        result.blocks = self.blocks(&broker, result.cold / 2.0)?;
        self.say("draining the rest");
        let lagging = result.messages / u64::from(self.options.queues);
        let left = (result.messages - lagging).saturating_sub(self.received);
        if left > 0 {
            result.rest = achieved(&self.take(self.drain_of(&broker, Length::Count(left)))?);
        }
        let last = LoadPlan {
            addresses: vec![name(0)],
            consumers: Links::ONE,
            ..self.drain_of(&broker, Length::Count(lagging))
        };
        result.lagging = achieved(&self.take(last)?);
        result.watched = self.watched.max(watch.stop());
        broker.stop()?;
        self.judge(&mut result);
        Ok(result)
    }

    fn begin(&self) -> Result<BacklogResult, Failure> {
        let Options { bytes, queues, size, memory_max, .. } = *self.options;
        let each = (bytes / u64::from(size) / u64::from(queues)).max(1);
        self.say("reading");
        let read = journal::reads_at_best(self.scratch.path())?;
        Ok(BacklogResult {
            schema: SCHEMA.to_owned(),
            kind: "backlog".to_owned(),
            machine: Machine::here(),
            place: Place::of(self.scratch.path())
                .map_err(|error| format!("{}: {error}", self.options.own.dir.display()))?,
            messages: each * u64::from(queues),
            queues,
            size,
            memory_max,
            read_bytes_per_second: read,
            from_memory: 0.0,
            filled: 0.0,
            ready_ms: 0.0,
            cold: 0.0,
            rest: 0.0,
            lagging: 0.0,
            blocks: Vec::new(),
            p99_ratio: None,
            watched: Watched::default(),
            verdict: Verdict::new(),
        })
    }

    /// The rate of the same consumers when nothing is on the disk only.
    fn measure_memory(&mut self, broker: &Broker) -> Result<f64, Failure> {
        const TIMES: usize = 3;
        /// What a message takes beside its body, at most.
        const BESIDE_BYTES: u64 = 128;
        let Options { memory_max, queues, size, .. } = *self.options;
        let fits = memory_max / 2 / (u64::from(size) + BESIDE_BYTES);
        let others = u64::from(queues) - 1;
        let count = fits / others * others;
        let mut rates = Vec::new();
        for _ in 0..TIMES {
            let fill = LoadPlan { addresses: self.others(), ..self.fill_of(broker, count) };
            self.must_accept(&fill, count)?;
            rates.push(achieved(&self.take(self.drain_of(broker, Length::Count(count)))?));
        }
        self.received = 0;
        Ok(median(&rates).unwrap_or(f64::NAN))
    }

    fn fill(&self, broker: &Broker, count: u64) -> Result<f64, Failure> {
        let measured = self.must_accept(&self.fill_of(broker, count), count)?;
        Ok(measured.produced.as_ref().map_or(0.0, Block::achieved))
    }

    fn must_accept(&self, plan: &LoadPlan, count: u64) -> Result<Measured, Failure> {
        let measured = run(plan, self.interrupt)?;
        if measured.accepted == count {
            Ok(measured)
        } else {
            Err(format!("only {} of {count} messages were accepted", measured.accepted).into())
        }
    }

    /// A producer alone, then beside consumers, in turn.
    fn blocks(&mut self, broker: &Broker, rate: f64) -> Result<Vec<SteadyBlock>, Failure> {
        let beside = Beside::new(broker.target(), self.options.rate, self.scratch.path())?;
        let length = self.options.block;
        let mut blocks = Vec::new();
        for _ in 0..self.options.blocks {
            let (steady, ()) = beside.measure(length, self.interrupt, || Ok(()))?;
            self.wrong += steady.wrong;
            self.steady.judge("alone", &steady.produced);
            let (p99_ms, probe_p99_ms) = steady.p99_ms();
            let (beside_it, drained_per_second) = (false, 0.0);
            blocks.push(SteadyBlock {
                beside: beside_it,
                p99_ms,
                probe_p99_ms,
                drained_per_second,
            });

            // A little longer than the block, so that all of it has company.
            let drain = LoadPlan {
                receive_rate: Some(rate),
                ..self.drain_of(broker, Length::For(length + Duration::from_millis(1500)))
            };
            let interrupt = self.interrupt;
            let (steady, measured) =
                beside.measure(length, interrupt, || run(&drain, interrupt))?;
            self.count(&measured);
            self.wrong += steady.wrong;
            self.steady.judge("beside", &steady.produced);
            let (p99_ms, probe_p99_ms) = steady.p99_ms();
            let drained_per_second = achieved(&measured);
            blocks.push(SteadyBlock { beside: true, p99_ms, probe_p99_ms, drained_per_second });
            self.say(&line(&blocks));
        }
        Ok(blocks)
    }

    fn take(&mut self, plan: LoadPlan) -> Result<Measured, Failure> {
        let measured = run(&plan, self.interrupt)?;
        self.count(&measured);
        Ok(measured)
    }

    fn count(&mut self, measured: &Measured) {
        self.received += measured.received;
        self.wrong += measured.wrong;
    }

    fn fill_of(&self, broker: &Broker, count: u64) -> LoadPlan {
        LoadPlan {
            addresses: (0..self.options.queues).map(name).collect(),
            producers: Links { connections: 1, each: self.options.queues },
            in_flight: 16,
            size: self.options.size as usize,
            warmup: Duration::ZERO,
            length: Length::Count(count),
            patience: PATIENCE,
            ..LoadPlan::new(broker.target())
        }
    }

    fn drain_of(&self, broker: &Broker, length: Length) -> LoadPlan {
        LoadPlan {
            addresses: self.others(),
            producers: Links::NONE,
            consumers: Links { connections: 1, each: self.options.queues - 1 },
            checks: true,
            length,
            ..self.fill_of(broker, 1)
        }
    }

    /// All queues but the one that lags.
    fn others(&self) -> Vec<String> {
        (1..self.options.queues).map(name).collect()
    }

    fn judge(&self, result: &mut BacklogResult) {
        let BacklogResult { verdict, messages, blocks, .. } = result;
        verdict.include(&self.steady);
        if self.received != *messages {
            verdict.object(format!("{} of {messages} messages came", self.received));
        }
        if self.wrong > 0 {
            verdict.object(format!("{} came out of order, or with other bytes", self.wrong));
        }
        let drained = |block: &SteadyBlock| {
            !block.beside || block.drained_per_second > DRAINED_SHARE_MIN * result.cold / 2.0
        };
        if !blocks.iter().all(drained) {
            verdict.object("the drain beside did not keep its rate: too few --bytes, or too slow");
        }
        let ratios = blocks.chunks_exact(2).map(|pair| pair[1].p99_ms / pair[0].p99_ms);
        result.p99_ratio = estimate(&ratios.collect::<Vec<f64>>(), 1);
        if let Some(note) = result.place.note() {
            verdict.note(note);
        }
        verdict.note("after a kill the host may have what the log holds in its cache");
    }

    fn say(&self, text: &str) {
        if !self.options.own.quiet {
            eprintln!("{text}");
        }
    }
}

/// A drain beside that is slower than this share of its rate is not what was meant.
const DRAINED_SHARE_MIN: f64 = 0.8;

/// How long a word of the broker is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

fn name(queue: u32) -> String {
    format!("backlog-{queue}")
}

fn achieved(measured: &Measured) -> f64 {
    measured.consumed.as_ref().map_or(0.0, Block::achieved)
}

fn line(blocks: &[SteadyBlock]) -> String {
    let mut line = String::new();
    for block in &blocks[blocks.len().saturating_sub(2)..] {
        let SteadyBlock { beside, p99_ms, probe_p99_ms, drained_per_second } = block;
        let what = if *beside { "beside" } else { "alone" };
        write!(line, "{what} {p99_ms:.2} ms (bare writes {probe_p99_ms:.2})").expect("memory");
        if *beside {
            let rate = show::grouped(*drained_per_second as u64);
            write!(line, " and {rate} a second drained").expect("memory");
        } else {
            line.push_str(", ");
        }
    }
    line
}

impl BacklogResult {
    /// The result as text.
    #[must_use]
    pub fn text(&self) -> String {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let bytes_of = |rate: f64| rate * f64::from(self.size) / 1e6;
        let mut text = format!(
            "{} messages of {} B in {} queues, memory-max {:.0} MiB, on {}\n",
            show::grouped(self.messages),
            self.size,
            self.queues,
            mib(self.memory_max),
            self.place.file_system,
        );
        let Watched { resident_bytes, anonymous_bytes, data_bytes } = self.watched;
        writeln!(
            text,
            "resident at most {:.0} MiB ({:.0} MiB of no file), {:.2} times memory-max; data {:.0} \
             MiB; ready after {:.0} ms",
            mib(resident_bytes),
            mib(anonymous_bytes),
            resident_bytes as f64 / self.memory_max as f64,
            mib(data_bytes),
            self.ready_ms,
        )
        .expect("memory takes text");
        for (what, rate) in [
            ("filled", self.filled),
            ("drained from memory", self.from_memory),
            ("drained after the start", self.cold),
            ("drained to the end", self.rest),
            ("the queue that lagged", self.lagging),
        ] {
            let (rate, mb) = (show::grouped(rate as u64), bytes_of(rate));
            writeln!(text, "{what:<26} {rate:>10}/s {mb:>9.1} MB/s").expect("memory takes text");
        }
        let read = self.read_bytes_per_second / 1e6;
        writeln!(text, "{:<26} {:>12} {read:>9.1} MB/s", "direct reads", "").expect("memory");
        let bound = self.read_bytes_per_second.min(bytes_of(self.from_memory) * 1e6);
        let share = bytes_of(self.cold) * 1e6 / bound;
        writeln!(text, "after the start, of the smaller of reads and memory: {share:.2}")
            .expect("memory takes text");
        for pair in self.blocks.chunks(2) {
            writeln!(text, "{}", line(pair)).expect("memory takes text");
        }
        if let Some(Estimate { median, low, high }) = self.p99_ratio {
            writeln!(text, "p99 beside / alone: {median:.2} ({low:.2}-{high:.2})").expect("memory");
        }
        format!("{text}{}\n", self.verdict)
    }
}
