//! The pair of which this broker is a member: the table `[ha]`.
//!
//! ```toml
//! [ha]
//! pair = "orders"                       # the same on both members
//! node = "a"                            # and "b" on the other one
//! replication = "10.0.0.1:7201"         # where the other member connects
//! peer = "10.0.0.2:7201"                # where it listens
//! voters = ["10.0.0.1:7101", "10.0.0.2:7101", "10.0.0.3:7101"]
//! tls-cert = "a.pem"                    # with tls-key and tls-ca; without them loopback only
//! ```
//! Invariants: what comes out can be started: the number of voters can decide, no address stands
//! for two things, and whoever could reach an address without a certificate is on this machine.
//! Failure: what is wrong is named by its key.

#[cfg(test)]
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use broker::Server;
use broker::server::HOST_BYTES_MAX;
use replica::limits::PAIR_NAME_BYTES_MAX;
use replica::voter::Seats;
use replica::{LeaseTerms, NodeId};
use serde::Deserialize;
use serde_json::{Value, json};

use super::value::Bytes;
use crate::mutual::Files;

/// The table, as it is written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Table {
    pair: String,
    node: Seat,
    replication: SocketAddr,
    peer: SocketAddr,
    voters: Vec<SocketAddr>,
    #[serde(default)]
    cluster: String,
    #[serde(default = "lease_ms_default")]
    lease_ms: u64,
    #[serde(default = "min_in_sync_default")]
    min_in_sync: u8,
    #[serde(default = "catch_up_rate_default")]
    catch_up_rate: String,
    #[serde(default)]
    advertise: Option<String>,
    #[serde(default)]
    #[expect(dead_code, reason = "for people; the voters' list is what is checked")]
    site: Option<String>,
    #[serde(default)]
    tls_cert: Option<PathBuf>,
    #[serde(default)]
    tls_key: Option<PathBuf>,
    #[serde(default)]
    tls_ca: Option<PathBuf>,
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Seat {
    A,
    B,
}

/// A member of a pair, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    /// Its name.
    pub(crate) name: String,
    /// Tells installations with pairs of one name apart.
    pub(crate) cluster: String,
    /// Which member this one is.
    pub(crate) node: NodeId,
    /// Where the other member connects.
    pub(crate) replication: SocketAddr,
    /// Where the other member listens.
    pub(crate) peer: SocketAddr,
    /// Every voter, by seat.
    pub(crate) voters: Vec<SocketAddr>,
    /// How many that is.
    pub(crate) seats: Seats,
    /// How long a lease is.
    pub(crate) terms: LeaseTerms,
    /// Members in sync without which nothing is acknowledged.
    pub(crate) in_sync_min: usize,
    /// How fast a live reads its log back for a backup, bytes a second.
    pub(crate) catch_up_rate: u64,
    /// Where the other member sends clients when this one is live.
    pub(crate) advertise: Option<String>,
    /// Without, everything is on loopback.
    pub(crate) tls: Option<Files>,
}

/// Rates at which a log may be read back for a backup, a second.
const CATCH_UP_RATES: RangeInclusive<Bytes> = Bytes(1 << 20)..=Bytes(1 << 40);

/// Why a table will not do.
pub(crate) enum Fault {
    /// A key has a value that can't be.
    Invalid(String),
    /// An address off loopback would be served without certificates.
    Exposed(String),
}

const fn lease_ms_default() -> u64 {
    2000
}

const fn min_in_sync_default() -> u8 {
    1
}

fn catch_up_rate_default() -> String {
    "40 MiB".to_owned()
}

/// How a member is called in the configuration and in what is shown.
pub(crate) fn node_name(node: NodeId) -> &'static str {
    if node.0 == 0 { "a" } else { "b" }
}

impl Table {
    /// What it says, checked.
    pub(crate) fn check(&self) -> Result<Pair, Fault> {
        let invalid = |why: String| Err(Fault::Invalid(format!("ha.{why}")));
        let length = 1..=PAIR_NAME_BYTES_MAX;
        if !length.contains(&self.pair.len()) || self.cluster.len() > PAIR_NAME_BYTES_MAX {
            let most = PAIR_NAME_BYTES_MAX;
            return invalid(format!("pair has 1 to {most} bytes, ha.cluster at most as many"));
        }
        let seats = match Seats::new(self.voters.len()) {
            Ok(seats) => seats,
            Err(error) => return invalid(format!("voters: {error}")),
        };
        let Some(terms) = LeaseTerms::new(Duration::from_millis(self.lease_ms)) else {
            return invalid(format!("lease-ms is {}, but must be 500 to 60000", self.lease_ms));
        };
        if !(1..=2).contains(&self.min_in_sync) {
            return invalid(format!("min-in-sync is {}, but must be 1 or 2", self.min_in_sync));
        }
        let catch_up_rate = match self.catch_up_rate.parse::<Bytes>() {
            Ok(rate) if CATCH_UP_RATES.contains(&rate) => rate.0,
            Ok(rate) => {
                let (least, most) = (CATCH_UP_RATES.start(), CATCH_UP_RATES.end());
                return invalid(format!("catch-up-rate is {rate}, but must be {least} to {most}"));
            }
            Err(error) => return invalid(format!("catch-up-rate: {error}")),
        };
        let mut addresses = self.voters.clone();
        addresses.extend([self.replication, self.peer]);
        for (at, address) in addresses.iter().enumerate() {
            if addresses[..at].contains(address) {
                return invalid(format!("voters, replication, peer: {address} is there twice"));
            }
        }
        if let Some(text) = self.advertise.as_ref().filter(|text| Server::read(text).is_none()) {
            return invalid(format!(
                "advertise is {text:?}, but must be `host:port` or `amqps://host:port`, with at \
                 most {HOST_BYTES_MAX} bytes of host, and no address that stands for all"
            ));
        }
        let tls = Files::of(self.tls_cert.clone(), self.tls_key.clone(), self.tls_ca.clone());
        let tls = match tls {
            Ok(tls) => tls,
            Err(why) => return invalid(why),
        };
        if let (None, Some(exposed)) = (&tls, addresses.iter().find(|a| !a.ip().is_loopback())) {
            return Err(Fault::Exposed(format!(
                "ha: {exposed} is off loopback: whoever reaches it without a certificate could \
                 promote a broker or read its log. Give ha.tls-cert, ha.tls-key and ha.tls-ca"
            )));
        }
        Ok(Pair {
            name: self.pair.clone(),
            cluster: self.cluster.clone(),
            node: NodeId(u8::from(self.node == Seat::B)),
            replication: self.replication,
            peer: self.peer,
            voters: self.voters.clone(),
            seats,
            terms,
            in_sync_min: self.min_in_sync.into(),
            catch_up_rate,
            advertise: self.advertise.clone(),
            tls,
        })
    }
}

/// Each key, what it is, and its default.
const KEYS: [(&str, &str, &str); 14] = [
    ("pair", "", "Name of the pair, the same on both members"),
    ("node", "", "Which member this is: `a` or `b`"),
    ("replication", "", "Where the other member connects, IP address and port"),
    ("peer", "", "Where the other member listens: its `replication`"),
    ("voters", "", "Addresses of all 3, 5 or 7 voters, in the order of their seats"),
    ("cluster", "\"\"", "Tells installations with pairs of one name apart"),
    ("lease-ms", "2000", "How long a live may serve on one word of the voters: 500 to 60000"),
    ("min-in-sync", "1", "With 2, a live without its backup answers nothing at replicated levels"),
    (
        "catch-up-rate",
        "40 MiB",
        "Bytes a second that a live reads back for a backup: 1 MiB to 1 TiB",
    ),
    ("advertise", "none", "Where clients reach this member, `host:port` or `amqps://host:port`"),
    ("site", "none", "Where this member stands, for people"),
    ("tls-cert", "none", "PEM file of this member's certificate, which names its addresses"),
    ("tls-key", "none", "PEM file of its key"),
    ("tls-ca", "none", "PEM file of the authority of all members and voters"),
];

/// The table in the reference page.
#[cfg(test)]
pub(super) fn page() -> String {
    let mut page = String::from(
        "\n## A pair\n\n`[ha]` makes the broker one of two members, of which one is live and the \
         other follows. With it\n`durability` is `replicated-sync` unless it is given. Off \
         loopback the three files are needed.\n\n| key | default | what it is |\n|---|---|---|\n",
    );
    for (key, default, what) in KEYS {
        let default = if default.is_empty() { "must be given" } else { default };
        writeln!(page, "| `{key}` | {default} | {what}. |").expect("memory");
    }
    page
}

/// The table in the schema.
pub(super) fn schema() -> Value {
    let mut properties = serde_json::Map::new();
    for (key, _, what) in KEYS {
        let kind = match key {
            "voters" => "array",
            "lease-ms" | "min-in-sync" => "integer",
            "pair" | "node" | "replication" | "peer" | "cluster" | "catch-up-rate"
            | "advertise" | "site" | "tls-cert" | "tls-key" | "tls-ca" => "string",
            other => unreachable!("{other} has no type"),
        };
        properties.insert(key.to_owned(), json!({ "description": what, "type": kind }));
    }
    let required: Vec<&str> =
        KEYS.iter().filter(|(_, default, _)| default.is_empty()).map(|(key, ..)| *key).collect();
    json!({
        "description": "The pair of which this broker is a member.",
        "type": "object",
        "additionalProperties": false,
        "required": required,
        "properties": properties,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "pair = \"p\"\nnode = \"b\"\nreplication = \"127.0.0.1:2\"\n\
                        peer = \"127.0.0.1:1\"\n\
                        voters = [\"127.0.0.1:3\", \"127.0.0.1:4\", \"127.0.0.1:5\"]\n";

    fn check(text: &str) -> Result<Pair, Fault> {
        toml::from_str::<Table>(text).expect("a table").check()
    }

    fn why(text: &str) -> String {
        match check(text).expect_err(text) {
            Fault::Invalid(why) | Fault::Exposed(why) => why,
        }
    }

    #[test]
    fn a_pair_needs_little_to_be_said() {
        let pair = check(GOOD).unwrap_or_else(|_| panic!("taken"));
        assert_eq!((pair.node, pair.seats.count(), pair.in_sync_min), (NodeId(1), 3, 1));
        assert_eq!(pair.terms.length(), Duration::from_secs(2));
        assert_eq!(pair.catch_up_rate, 40 * 1024 * 1024);
    }

    #[test]
    fn what_could_not_work_is_named() {
        assert!(why(&GOOD.replace(", \"127.0.0.1:5\"", "")).contains("2 voters"));
        assert!(why(&GOOD.replace("127.0.0.1:5", "127.0.0.1:1")).contains("twice"));
        assert!(why(&format!("{GOOD}lease-ms = 100\n")).contains("lease-ms"));
        for rate in ["1 KiB", "2048 GiB", "fast"] {
            let why = why(&format!("{GOOD}catch-up-rate = \"{rate}\"\n"));
            assert!(why.contains("ha.catch-up-rate"), "{why}");
        }
        assert!(why(&format!("{GOOD}min-in-sync = 3\n")).contains("min-in-sync"));
        assert!(why(&format!("{GOOD}tls-ca = \"x\"\n")).contains("go together"));
        assert!(why(&format!("{GOOD}advertise = \"here\"\n")).contains("host:port"));
        assert!(why(&GOOD.replace("\"p\"", "\"\"")).contains("pair"));
        assert!(why(&GOOD.replace("127.0.0.1:1", "10.0.0.1:1")).contains("off loopback"));
    }

    #[test]
    fn off_loopback_goes_with_certificates() {
        let files = "tls-cert = \"c\"\ntls-key = \"k\"\ntls-ca = \"a\"\n";
        let text = format!("{}{files}", GOOD.replace("127.0.0.1:1", "10.0.0.1:1"));
        assert!(check(&text).is_ok());
    }
}
