//! `laelaps ha voters`: how each voter is, as it says itself; and how one of them is asked.
//!
//! ```text
//!   for each address: connect, preface, status? ──▶ seat, standing, term, committed, pairs, disk
//! ```
//! Everything is bounded by a second a voter; one that does not answer is a line of its own, and
//! makes the command fail only where no majority answers.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use replica::RequestId;
use replica::voter::{Ask, Frames, Preface, Question, Reply, Says, Standing, VoterStatus, frame};
use rustls::{ClientConnection, StreamOwned};
use serde_json::json;

use super::replace::{self, ReplaceOptions};
use super::settings;
use crate::fatal::Failure;
use crate::mutual::{self, Mutual};
use crate::output;

const WITHIN: Duration = Duration::from_secs(1);

/// What `ha voters` is told.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct VotersOptions {
    /// The TOML file of any of the voters
    #[arg(long, value_name = "FILE", required = true)]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    command: Option<VotersCommand>,
}

/// What can be done about voters.
#[derive(Subcommand)]
enum VotersCommand {
    /// Have the others count on the new disk of a voter that has lost its own
    Replace(ReplaceOptions),
}

/// `laelaps ha voters …`.
pub(crate) fn voters(options: &VotersOptions) -> Result<(), Failure> {
    match (&options.command, &options.config) {
        (Some(VotersCommand::Replace(options)), _) => replace::replace(options),
        (None, Some(config)) => show(config, options.json),
        (None, None) => Err(Failure::command("no --config: the file of any of the voters")),
    }
}

/// Each voter's address, and what it says of itself.
pub(super) fn ask_all(
    addresses: &[SocketAddr],
    mutual: Option<&Mutual>,
) -> Vec<(SocketAddr, Result<VoterStatus, String>)> {
    addresses.iter().map(|address| (*address, status_of(*address, mutual))).collect()
}

fn show(config: &Path, json: bool) -> Result<(), Failure> {
    let (addresses, files) = settings::addresses(config)?;
    let mutual = files.as_ref().map(Mutual::load).transpose()?;
    let asked = ask_all(&addresses, mutual.as_ref());
    if json {
        let voters: Vec<_> =
            asked.iter().enumerate().map(|(at, (a, s))| value(at, *a, s)).collect();
        output::line(format_args!("{:#}", json!({ "voters": voters })));
    } else {
        asked.iter().enumerate().for_each(|(at, (address, status))| match status {
            Ok(status) => output::line(format_args!(
                "{} {address}  {}  term {}  committed {}  pairs {}  disk {}",
                at + 1,
                name(status.standing),
                status.term,
                status.committed,
                status.pairs,
                status.uuid
            )),
            Err(why) => output::line(format_args!("{} {address}  {why}", at + 1)),
        });
    }
    let well = asked.iter().filter(|(_, status)| status.as_ref().is_ok_and(decides)).count();
    if well > asked.len() / 2 {
        return Ok(());
    }
    Err(Failure::command(format!(
        "{well} of {} voters can decide, no majority: no broker can take or keep the role",
        asked.len()
    )))
}

/// Whether it votes.
pub(super) fn decides(status: &VoterStatus) -> bool {
    match status.standing {
        Standing::Follower | Standing::Leader => true,
        Standing::Founding | Standing::Stranger | Standing::Joining | Standing::Replaced => false,
    }
}

/// How a standing is called.
pub(super) fn name(standing: Standing) -> &'static str {
    match standing {
        Standing::Founding => "founding",
        Standing::Stranger => "stranger",
        Standing::Follower => "follower",
        Standing::Leader => "leader",
        Standing::Joining => "joining",
        Standing::Replaced => "replaced",
    }
}

fn value(
    at: usize,
    address: SocketAddr,
    status: &Result<VoterStatus, String>,
) -> serde_json::Value {
    match status {
        Ok(status) => json!({
            "seat": at + 1,
            "address": address.to_string(),
            "standing": name(status.standing),
            "term": status.term,
            "committed": status.committed,
            "pairs": status.pairs,
            "disk": status.uuid.to_string(),
        }),
        Err(why) => json!({ "seat": at + 1, "address": address.to_string(), "error": why }),
    }
}

fn status_of(address: SocketAddr, mutual: Option<&Mutual>) -> Result<VoterStatus, String> {
    match ask(address, mutual, Ask::Status)? {
        Says::Status(status) => Ok(status),
        Says::Outcome(_) => Err("it answers something else: it is no voter".to_owned()),
    }
}

/// Asks one voter one thing.
pub(super) fn ask(address: SocketAddr, mutual: Option<&Mutual>, what: Ask) -> Result<Says, String> {
    let told = |error: std::io::Error| error.to_string();
    let stream = TcpStream::connect_timeout(&address, WITHIN).map_err(told)?;
    stream.set_read_timeout(Some(WITHIN)).map_err(told)?;
    stream.set_write_timeout(Some(WITHIN)).map_err(told)?;
    let Some(mutual) = mutual else { return ask_on(stream, what) };
    let session = ClientConnection::new(Arc::clone(&mutual.client), mutual::name_of(address));
    ask_on(StreamOwned::new(session.map_err(|error| error.to_string())?, stream), what)
}

fn ask_on(mut stream: impl Read + Write, what: Ask) -> Result<Says, String> {
    let told = |error: std::io::Error| error.to_string();
    let question = Question { request: RequestId(1), ask: what }.encode();
    stream.write_all(&Preface::Client.encode()).map_err(told)?;
    stream.write_all(&frame(&question)).map_err(told)?;
    let mut frames = Frames::default();
    // An answer is a few hundred bytes; who sends more is no voter.
    for _ in 0..16 {
        let mut buffer = [0; 512];
        let read = stream.read(&mut buffer).map_err(told)?;
        if read == 0 {
            break;
        }
        frames.handle_bytes(&buffer[..read]);
        let Some(bytes) = frames.poll_frame().map_err(|error| error.to_string())? else { continue };
        return Reply::decode(&bytes).map(|reply| reply.says).map_err(|error| error.to_string());
    }
    Err("it closed the connection without an answer".to_owned())
}
