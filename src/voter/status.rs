//! `laelaps ha voters`: how each voter is, as it says itself.
//!
//! ```text
//!   for each address: connect, preface, status? ──▶ seat, standing, term, committed, pairs, disk
//! ```
//! Everything is bounded by a second a voter; one that does not answer is a line of its own, and
//! makes the command fail only where no majority answers.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use replica::RequestId;
use replica::voter::{Ask, Frames, Preface, Question, Reply, Says, Standing, VoterStatus, frame};
use rustls::{ClientConnection, StreamOwned};
use serde_json::json;

use super::settings;
use crate::fatal::Failure;
use crate::mutual::{self, Mutual};
use crate::output;

const WITHIN: Duration = Duration::from_secs(1);

/// What `ha voters` is told.
#[derive(Args)]
pub(crate) struct VotersOptions {
    /// The TOML file of any of the voters
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// `laelaps ha voters`.
pub(crate) fn ask_all(options: &VotersOptions) -> Result<(), Failure> {
    let (addresses, files) = settings::addresses(&options.config)?;
    let mutual = files.as_ref().map(Mutual::load).transpose()?;
    let asked: Vec<(SocketAddr, Result<VoterStatus, String>)> =
        addresses.into_iter().map(|address| (address, ask(address, mutual.as_ref()))).collect();
    if options.json {
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

fn decides(status: &VoterStatus) -> bool {
    match status.standing {
        Standing::Follower | Standing::Leader => true,
        Standing::Founding | Standing::Stranger => false,
    }
}

fn name(standing: Standing) -> &'static str {
    match standing {
        Standing::Founding => "founding",
        Standing::Stranger => "stranger",
        Standing::Follower => "follower",
        Standing::Leader => "leader",
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

fn ask(address: SocketAddr, mutual: Option<&Mutual>) -> Result<VoterStatus, String> {
    let told = |error: std::io::Error| error.to_string();
    let stream = TcpStream::connect_timeout(&address, WITHIN).map_err(told)?;
    stream.set_read_timeout(Some(WITHIN)).map_err(told)?;
    stream.set_write_timeout(Some(WITHIN)).map_err(told)?;
    let Some(mutual) = mutual else { return status_of(stream) };
    let session = ClientConnection::new(Arc::clone(&mutual.client), mutual::name_of(address));
    status_of(StreamOwned::new(session.map_err(|error| error.to_string())?, stream))
}

fn status_of(mut stream: impl Read + Write) -> Result<VoterStatus, String> {
    let told = |error: std::io::Error| error.to_string();
    let question = Question { request: RequestId(1), ask: Ask::Status }.encode();
    stream.write_all(&Preface::Client.encode()).map_err(told)?;
    stream.write_all(&frame(&question)).map_err(told)?;
    let mut frames = Frames::default();
    // A status is a few dozen bytes; who sends more is no voter.
    for _ in 0..16 {
        let mut buffer = [0; 256];
        let read = stream.read(&mut buffer).map_err(told)?;
        if read == 0 {
            break;
        }
        frames.handle_bytes(&buffer[..read]);
        let Some(bytes) = frames.poll_frame().map_err(|error| error.to_string())? else { continue };
        let reply = Reply::decode(&bytes).map_err(|error| error.to_string())?;
        return match reply.says {
            Says::Status(status) => Ok(status),
            Says::Outcome(_) => Err("it answers something else: it is no voter".to_owned()),
        };
    }
    Err("it closed the connection without an answer".to_owned())
}
