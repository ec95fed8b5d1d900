//! What the load commands are told, and the plan that it makes.
//!
//! ```text
//!   --broker amqp[s]://[user[:password]@]host[:port]  Target
//!   --rate, --in-flight, --size, ...                  LoadPlan
//!   --json, --hgrm                                    Output
//! ```
//! Durations name their unit. A password is better in a file than in a flag, which every process of
//! the machine can read.
//!
//! Failure: a value that cannot be meant is an error that clap prints with the flag.

use std::net::ToSocketAddrs as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args};
use serde::{Deserialize, Serialize};

use crate::command::Failure;
use crate::load::{Length, Links, LoadPlan, Security, Target};
use crate::schedule::{Arrivals, RATE_MAX, RATE_MIN};
use crate::show;
use crate::tls::{TlsArguments, TlsClient};

/// The port of AMQP.
const PORT: u16 = 5672;

/// The port of AMQP over TLS.
const TLS_PORT: u16 = 5671;

/// Of a command that starts a broker of its own.
#[derive(Args, Clone, Debug)]
pub struct OwnBroker {
    /// Where to make a directory for the data, removed at the end
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub dir: PathBuf,
    /// Write the result as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// No line for each step
    #[arg(long)]
    pub quiet: bool,
    /// More flags for `laelaps run`
    #[arg(last = true, value_name = "FLAGS")]
    pub flags: Vec<String>,
}

impl OwnBroker {
    /// Prints what came of it, and writes the JSON if that is asked for.
    ///
    /// # Errors
    /// Standard output, or the file.
    pub fn show(&self, text: &str, result: &impl Serialize) -> Result<(), Failure> {
        show::print(text)?;
        self.json.as_deref().map_or(Ok(()), |path| show::write_json(path, result))
    }
}

/// Whom to load.
#[derive(Args, Clone, Debug)]
pub struct Peer {
    /// Any AMQP 1.0 broker: `amqp://HOST:PORT` or `amqps:`, with `USER:PASSWORD@` before the host
    #[arg(long, value_name = "URL", default_value = "amqp://127.0.0.1:5672",
          value_parser = parse_target)]
    pub broker: Target,
    /// Read the user's password from the first line of this file
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// Whom to trust.
    #[command(flatten)]
    pub tls: TlsArguments,
    /// The capability that asks for a queue; empty for none
    #[arg(long, value_name = "SYMBOL", default_value = "queue")]
    pub capability: String,
    /// The broker's process on this machine, for its CPU time
    #[arg(long, value_name = "PID")]
    pub server_pid: Option<u32>,
}

/// What to send.
#[derive(Args, Clone, Debug)]
pub struct Messages {
    /// Bytes of a message's body
    #[arg(long, value_name = "BYTES", default_value_t = 256)]
    pub size: usize,
    /// Whether messages are durable
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set,
          num_args = 0..=1, default_missing_value = "true")]
    pub durable: bool,
    /// Messages that each producer may have under way [default: 1, or 1024 with a rate]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub in_flight: Option<u32>,
    /// How send times are spread
    #[arg(long, value_enum, default_value_t = Arrivals::Constant)]
    pub arrivals: Arrivals,
    /// Chance of the Poisson schedule
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
}

/// Who sends or receives where.
#[derive(Args, Clone, Debug)]
pub struct Shape {
    /// A queue; several are taken in turn
    #[arg(long = "address", value_name = "NAME", default_value = "laelaps-perf")]
    pub addresses: Vec<String>,
    /// Connections
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub connections: u32,
    /// Links on each connection
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub links: u32,
    /// Threads of ours, each with a ring
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=64))]
    pub threads: u32,
    /// CPUs to pin the threads to, in turn
    #[arg(long, value_name = "CPU", value_delimiter = ',')]
    pub pin: Vec<usize>,
}

/// For how long.
#[derive(Args, Clone, Debug)]
pub struct Time {
    /// Load before anything counts
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_duration)]
    pub warmup: Duration,
    /// For how long messages are due
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    pub duration: Duration,
    /// So many messages, instead of a duration
    #[arg(long, value_name = "N", conflicts_with = "duration",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
}

/// Where results go, beside standard output.
#[derive(Args, Clone, Debug, Default)]
pub struct Output {
    /// Write the result as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the intended latency as an HdrHistogram text, for its plotters
    #[arg(long, value_name = "FILE")]
    pub hgrm: Option<PathBuf>,
    /// No progress line each second
    #[arg(long)]
    pub quiet: bool,
}

impl Peer {
    /// The target, with the password of the file.
    ///
    /// # Errors
    /// The file cannot be read, or nobody is there to whom the password belongs.
    pub fn target(&self) -> Result<Target, String> {
        let mut target = self.broker.clone();
        target.capability = Some(self.capability.clone()).filter(|symbol| !symbol.is_empty());
        if let Some(path) = &self.password_file {
            let text = std::fs::read_to_string(path)
                .map_err(|error| format!("--password-file {}: {error}", path.display()))?;
            let Some((_, password)) = &mut target.login else {
                return Err("--password-file: name the user in --broker amqp://USER@HOST".into());
            };
            text.lines().next().unwrap_or_default().clone_into(password);
        }
        if target.security == Security::Wanted {
            target.security = Security::Tls(TlsClient::new(&self.tls, &target.host)?);
        }
        Ok(target)
    }
}

impl Messages {
    /// Puts this into a plan; `rate` is a second, of all producers.
    pub fn apply(&self, plan: &mut LoadPlan, rate: Option<f64>) {
        plan.size = self.size;
        plan.durable = self.durable;
        plan.arrivals = self.arrivals;
        plan.seed = self.seed;
        plan.rate = rate;
        plan.in_flight = self.in_flight.unwrap_or(if rate.is_some() { 1024 } else { 1 });
    }
}

impl Shape {
    /// All links.
    #[must_use]
    pub fn links(&self) -> Links {
        Links { connections: self.connections, each: self.links }
    }

    /// Puts all but the links into a plan.
    pub fn apply(&self, plan: &mut LoadPlan) {
        plan.addresses.clone_from(&self.addresses);
        plan.threads = self.threads;
        plan.pin.clone_from(&self.pin);
    }
}

impl Time {
    /// Puts this into a plan.
    pub fn apply(&self, plan: &mut LoadPlan) {
        plan.warmup = self.warmup;
        plan.length = match self.count {
            Some(count) => Length::Count(count),
            None => Length::For(self.duration),
        };
    }
}

/// A plan as its JSON tells it: no address of a machine, no secret.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanSummary {
    /// Queues.
    pub addresses: u64,
    /// Connections and links of producers.
    pub producers: (u32, u32),
    /// Connections and links of consumers.
    pub consumers: (u32, u32),
    /// Messages that a producer may have under way.
    pub in_flight: u32,
    /// Messages ahead of a consumer's settlements.
    pub credit: u32,
    /// Bytes of a body.
    pub size: usize,
    /// Whether messages are durable.
    pub durable: bool,
    /// A second, of all producers; none: closed loop.
    pub rate: Option<f64>,
    /// How they are spread.
    pub arrivals: Arrivals,
    /// Chance of the schedule.
    pub seed: u64,
    /// Load before anything counts, in seconds.
    pub warmup_s: f64,
    /// For how long messages are due, in seconds.
    pub duration_s: Option<f64>,
    /// So many messages.
    pub count: Option<u64>,
    /// Threads of the client.
    pub threads: u32,
}

impl PlanSummary {
    /// Of a plan.
    #[must_use]
    pub fn of(plan: &LoadPlan) -> Self {
        let pair = |links: Links| (links.connections, links.each);
        let (duration_s, count) = match plan.length {
            Length::For(duration) => (Some(duration.as_secs_f64()), None),
            Length::Count(count) => (None, Some(count)),
        };
        Self {
            addresses: plan.addresses.len() as u64,
            producers: pair(plan.producers),
            consumers: pair(plan.consumers),
            in_flight: plan.in_flight,
            credit: plan.credit,
            size: plan.size,
            durable: plan.durable,
            rate: plan.rate,
            arrivals: plan.arrivals,
            seed: plan.seed,
            warmup_s: plan.warmup.as_secs_f64(),
            duration_s,
            count,
            threads: plan.threads,
        }
    }
}

/// `500ms`, `5s`, `2m`, `1h`: a whole or decimal number and its unit.
///
/// # Errors
/// What was expected.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no duration: write 500ms, 5s, 2m or 1h");
    let at = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(at);
    let seconds = match unit {
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(wrong()),
    };
    let number: f64 = number.trim().parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(number * seconds)
        .ok()
        .filter(|duration| *duration <= Duration::from_secs(30 * 24 * 3600))
        .ok_or_else(wrong)
}

/// A rate within its bounds.
///
/// # Errors
/// What was expected.
pub fn parse_rate(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|rate| (RATE_MIN..=RATE_MAX).contains(rate))
        .ok_or_else(|| format!("`{text}` is no rate: messages a second, {RATE_MIN} to {RATE_MAX}"))
}

/// `amqp[s]://[user[:password]@]host[:port]`; the scheme may be left out. Whom to trust over TLS is
/// for other flags to say.
///
/// # Errors
/// What was expected, or that the host has no address.
pub fn parse_target(text: &str) -> Result<Target, String> {
    let (security, default_port, rest) = match text.strip_prefix("amqps://") {
        Some(rest) => (Security::Wanted, TLS_PORT, rest),
        None => (Security::Plain, PORT, text.strip_prefix("amqp://").unwrap_or(text)),
    };
    let rest = rest.trim_end_matches('/');
    let (login, place) = match rest.rsplit_once('@') {
        Some((login, place)) => (Some(login), place),
        None => (None, rest),
    };
    // An IPv6 address has colons of its own, inside its brackets.
    let has_port = place.rfind(':').is_some_and(|at| !place[at..].contains(']'));
    let with_port = if has_port { place.to_owned() } else { format!("{place}:{default_port}") };
    let addr = with_port
        .to_socket_addrs()
        .map_err(|error| format!("`{place}`: {error}; write amqp://HOST:PORT"))?
        .next()
        .ok_or_else(|| format!("`{place}` has no address"))?;
    let host = with_port.rsplit_once(':').map_or(place, |(host, _)| host);
    let login = login.map(|login| {
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        (user.to_owned(), password.to_owned())
    });
    Ok(Target { host: host.to_owned(), login, security, ..Target::new(addr) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_name_their_unit() {
        let ms = |text| parse_duration(text).map(|duration| duration.as_millis());
        assert_eq!(ms("500ms"), Ok(500));
        assert_eq!(ms("1.5s"), Ok(1500));
        assert_eq!(ms("2m"), Ok(120_000));
        for wrong in ["5", "5 parsecs", "s", "-1s", "1e300h", "NaNs"] {
            assert!(ms(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_url_is_taken_apart() {
        let target = parse_target("amqp://ann:se:c@ret@127.0.0.1:1234/").expect("sound");
        assert_eq!(target.addr.to_string(), "127.0.0.1:1234");
        assert_eq!(target.login, Some(("ann".to_owned(), "se:c@ret".to_owned())));
        assert_eq!(target.host, "127.0.0.1");
        let plain = parse_target("127.0.0.1").expect("sound");
        assert_eq!((plain.addr.port(), plain.login), (PORT, None));
        assert_eq!(parse_target("amqp://[::1]").expect("sound").addr.to_string(), "[::1]:5672");
        let secure = parse_target("amqps://127.0.0.1").expect("sound");
        assert_eq!((secure.addr.port(), secure.security), (TLS_PORT, Security::Wanted));
        assert!(parse_target("amqp://127.0.0.1:port").is_err());
    }

    #[test]
    fn rates_have_bounds() {
        assert_eq!(parse_rate("0.5"), Ok(0.5));
        for wrong in ["0", "-1", "NaN", "inf", "many"] {
            assert!(parse_rate(wrong).is_err(), "{wrong}");
        }
    }
}
