//! What a voter is told: which seat it has, and where the others are.
//!
//! ```toml
//! seat = 1                              # which of the voters below this one is
//! data = "/var/lib/laelaps-voter"       # or --data
//! listen = "127.0.0.1:7101"             # or --listen; its address in the list if left out
//! tls-cert = "voter-1.pem"              # with tls-key and tls-ca; without them loopback only
//! [[voter]]                             # the same list, in the same order, on every voter
//! address = "127.0.0.1:7101"
//! site = "east"
//! ```
//! Refused, with the reason: another number than 3, 5 or 7; a site that holds a majority (unless
//! `--allow-unsafe-topology`); an address twice; an address off loopback without TLS.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use replica::voter::{Seat, Seats};
use serde::Deserialize;

use super::seat_of;
use crate::fatal::{Cause, Failure};
use crate::mutual::Files;

/// What `voter` is told.
#[derive(Args)]
pub(crate) struct Options {
    /// Read the voters, and which of them this one is, from this TOML file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Keep the voter's log in this directory
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Listen on this address [default: the one in the list]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// Let one site hold a majority: when it is lost, so are the voters
    #[arg(long)]
    allow_unsafe_topology: bool,
    /// Keep the log where it is forgotten at power-off, for a trial
    #[arg(long)]
    allow_volatile: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    seat: u8,
    data: Option<PathBuf>,
    listen: Option<SocketAddr>,
    #[serde(default)]
    allow_unsafe_topology: bool,
    #[serde(default)]
    allow_volatile: bool,
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    tls_ca: Option<PathBuf>,
    voter: Vec<Peer>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Peer {
    address: SocketAddr,
    site: Option<String>,
}

/// What was said, checked.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(super) seat: Seat,
    pub(super) seats: Seats,
    pub(super) data: PathBuf,
    pub(super) allow_volatile: bool,
    pub(super) listen: SocketAddr,
    /// Every voter's address, by seat.
    pub(super) addresses: Vec<SocketAddr>,
    /// Without, everything is on loopback.
    pub(super) tls: Option<Files>,
}

/// Every voter's address, by seat, for who asks them, and with which certificate.
pub(super) fn addresses(path: &Path) -> Result<(Vec<SocketAddr>, Option<Files>), Failure> {
    let file = read(path)?;
    let tls = tls_files(&file, path)?;
    Ok((file.voter.into_iter().map(|peer| peer.address).collect(), tls))
}

/// All three files, or none.
fn tls_files(file: &File, path: &Path) -> Result<Option<Files>, Failure> {
    Files::of(file.tls_cert.clone(), file.tls_key.clone(), file.tls_ca.clone())
        .map_err(|why| Failure::new(Cause::ConfigInvalid, format!("{}: {why}", path.display())))
}

fn read(path: &Path) -> Result<File, Failure> {
    let invalid =
        |why: String| Failure::new(Cause::ConfigInvalid, format!("{}: {why}", path.display()));
    let text = fs::read_to_string(path).map_err(|error| invalid(error.to_string()))?;
    toml::from_str(&text).map_err(|error| invalid(error.to_string()))
}

impl Settings {
    pub(super) fn load(options: &Options) -> Result<Self, Failure> {
        let path = &options.config;
        let mut file = read(path)?;
        file.allow_unsafe_topology |= options.allow_unsafe_topology;
        file.allow_volatile |= options.allow_volatile;
        file.listen = options.listen.or(file.listen);
        file.data = options.data.clone().or(file.data);
        Self::check(file, path)
    }

    fn check(file: File, path: &Path) -> Result<Self, Failure> {
        let invalid =
            |why: String| Failure::new(Cause::ConfigInvalid, format!("{}: {why}", path.display()));
        let seats = Seats::new(file.voter.len()).map_err(|error| invalid(error.to_string()))?;
        let seat = Seat(file.seat);
        if !seats.has(seat) {
            let why = format!("seat = {seat}: there are the seats 1 to {}", seats.count());
            return Err(invalid(why));
        }
        let addresses: Vec<SocketAddr> = file.voter.iter().map(|peer| peer.address).collect();
        for (at, address) in addresses.iter().enumerate() {
            if let Some(other) = addresses[..at].iter().position(|other| other == address) {
                let (a, b) = (seat_of(other), seat_of(at));
                return Err(invalid(format!(
                    "voters {a} and {b} have the same address, {address}"
                )));
            }
        }
        if !file.allow_unsafe_topology {
            no_site_decides(&file.voter).map_err(invalid)?;
        }
        let listen = file.listen.unwrap_or(addresses[usize::from(file.seat) - 1]);
        let tls = tls_files(&file, path)?;
        let exposed = addresses.iter().chain([&listen]).find(|a| !a.ip().is_loopback());
        if let Some(exposed) = exposed.filter(|_| tls.is_none()) {
            let message = format!(
                "{}: {exposed} is off loopback: whoever reaches it without a certificate could \
                 promote a broker. Give tls-cert, tls-key and tls-ca, or use 127.0.0.0/8",
                path.display()
            );
            return Err(Failure::new(Cause::Exposed, message));
        }
        let missing = || invalid("no `data`, and no --data: where is the log to be kept?".into());
        let data = file.data.ok_or_else(missing)?;
        Ok(Self { tls, seat, seats, data, allow_volatile: file.allow_volatile, listen, addresses })
    }
}

/// No site holds a majority of the voters that name one.
fn no_site_decides(voters: &[Peer]) -> Result<(), String> {
    let mut sites: BTreeMap<&str, usize> = BTreeMap::new();
    for site in voters.iter().filter_map(|peer| peer.site.as_deref()) {
        *sites.entry(site).or_default() += 1;
    }
    let majority = voters.len() / 2 + 1;
    match sites.into_iter().find(|(_, count)| *count >= majority) {
        None => Ok(()),
        Some((site, count)) => Err(format!(
            "site `{site}` holds {count} of {} voters: when it is lost nothing can be decided. \
             Spread them over three sites, or say --allow-unsafe-topology for a trial",
            voters.len()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Settings, Failure> {
        let file: File = toml::from_str(text).expect("TOML");
        Settings::check(file, Path::new("voter.toml"))
    }

    fn text(seat: u8, voters: &[(&str, &str)]) -> String {
        let mut text = format!("seat = {seat}\ndata = \"d\"\n");
        for (address, site) in voters {
            text += &format!("[[voter]]\naddress = \"{address}\"\n");
            if !site.is_empty() {
                text += &format!("site = \"{site}\"\n");
            }
        }
        text
    }

    const THREE: [(&str, &str); 3] =
        [("127.0.0.1:1", "a"), ("127.0.0.1:2", "b"), ("127.0.0.1:3", "c")];

    fn why(text: &str) -> (Cause, String) {
        let failure = check(text).expect_err("refused");
        (failure.cause, failure.message)
    }

    #[test]
    fn three_voters_at_three_sites_are_taken() {
        let settings = check(&text(2, &THREE)).expect("taken");
        assert_eq!((settings.seat, settings.seats.count()), (Seat(2), 3));
        assert_eq!(settings.listen, settings.addresses[1]);
    }

    #[test]
    fn what_could_not_decide_is_refused_with_the_reason() {
        let (cause, message) = why(&text(1, &THREE[..2]));
        assert!(cause == Cause::ConfigInvalid && message.contains("2 voters"), "{message}");
        let four = [THREE[0], THREE[1], THREE[2], ("127.0.0.1:4", "d")];
        assert!(why(&text(1, &four)).1.contains("no more of them can fail than of 3"));
        assert!(why(&text(4, &THREE)).1.contains("seats 1 to 3"));
        let twice = [THREE[0], THREE[1], ("127.0.0.1:1", "c")];
        assert!(why(&text(1, &twice)).1.contains("voters 1 and 3"));
    }

    #[test]
    fn a_site_with_a_majority_is_refused_unless_for_a_trial() {
        let two = [THREE[0], ("127.0.0.1:2", "a"), THREE[2]];
        assert!(why(&text(1, &two)).1.contains("site `a` holds 2 of 3"));
        let trial = format!("allow-unsafe-topology = true\n{}", text(1, &two));
        assert!(check(&trial).is_ok());
    }

    #[test]
    fn addresses_off_loopback_need_certificates() {
        let off = [THREE[0], THREE[1], ("10.0.0.1:3", "c")];
        let (cause, message) = why(&text(1, &off));
        assert!(cause == Cause::Exposed && message.contains("10.0.0.1:3"), "{message}");
        let listens = format!("listen = \"0.0.0.0:1\"\n{}", text(1, &THREE));
        assert_eq!(why(&listens).0, Cause::Exposed);
        let half = format!("tls-cert = \"c\"\n{}", text(1, &off));
        assert!(why(&half).1.contains("go together"));
        let whole = format!("tls-cert = \"c\"\ntls-key = \"k\"\ntls-ca = \"a\"\n{}", text(1, &off));
        assert!(check(&whole).is_ok());
    }
}
