//! `laelaps ha voters replace SEAT`: the others count on the new disk of a voter that lost its own.
//!
//! ```text
//!   1  ask every voter how it is      a majority votes; SEAT answers, as a stranger
//!   2  ask the leader to put it there one entry of the voters' log, decided by a majority
//!   3  until SEAT votes, at most half a minute: 1 again, and 2 as long as it is a stranger
//! ```
//! The disk that is put there is the one that SEAT's address answers with now; the one that goes is
//! the one that the leader knows. Both are in the request: if either has changed meanwhile, nothing
//! is done, and it is looked at again.
//!
//! Failure: who stops in the middle asks again: what was decided stays, what was not is asked anew.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use replica::voter::{Ask, Replacement, Seat, Standing, VoterStatus, VoterUuid};

use super::settings;
use super::status::{ask, ask_all, decides, name};
use crate::driver::clock;
use crate::fatal::Failure;
use crate::mutual::Mutual;
use crate::output;

const WITHIN: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What `ha voters replace` is told.
#[derive(Args)]
pub(super) struct ReplaceOptions {
    /// The TOML file of any of the voters
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Whose disk was lost: its place in the list, from 1
    seat: u8,
}

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// It votes, with this disk.
    Done(VoterUuid),
    /// Ask the leader.
    Ask(SocketAddr, Replacement),
    /// Look again.
    Wait(&'static str),
    /// It can't be.
    Refused(String),
}

/// `laelaps ha voters replace`.
pub(super) fn replace(options: &ReplaceOptions) -> Result<(), Failure> {
    let (addresses, files) = settings::addresses(&options.config)?;
    let mutual = files.as_ref().map(Mutual::load).transpose()?;
    let mutual = mutual.as_ref();
    let at = usize::from(options.seat).wrapping_sub(1);
    if at >= addresses.len() {
        let message = format!("voter {}: there are 1 to {}", options.seat, addresses.len());
        return Err(Failure::command(message));
    }
    let began = clock();
    let mut was_asked = false;
    loop {
        let why = match next(&ask_all(&addresses, mutual), at, was_asked) {
            Step::Done(disk) => {
                output::line(format_args!("voter {} votes, with disk {disk}", options.seat));
                return Ok(());
            }
            Step::Refused(why) => return Err(Failure::command(why)),
            Step::Ask(leader, replacement) => {
                if !was_asked {
                    let Replacement { old, new, .. } = replacement;
                    output::line(format_args!("disk {new} takes the place of {old}"));
                }
                was_asked = true;
                // What came of it is seen, whatever is answered.
                ask(leader, mutual, Ask::Replace(replacement)).err().unwrap_or_default()
            }
            Step::Wait(why) => why.to_owned(),
        };
        if clock() >= began + WITHIN {
            let message = format!("voter {} does not vote yet: {why}; ask again", options.seat);
            return Err(Failure::command(message));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn next(voters: &[(SocketAddr, Result<VoterStatus, String>)], at: usize, was_asked: bool) -> Step {
    let (address, status) = &voters[at];
    let number = at + 1;
    let status = match status {
        Ok(status) => status,
        Err(_) if was_asked => return Step::Wait("it does not answer"),
        Err(why) => {
            return Step::Refused(format!(
                "voter {number} at {address} does not answer ({why}): start it with an empty \
                 directory first"
            ));
        }
    };
    let well = voters.iter().filter(|(_, status)| status.as_ref().is_ok_and(decides)).count();
    match status.standing {
        Standing::Follower | Standing::Leader if was_asked => return Step::Done(status.uuid),
        Standing::Follower | Standing::Leader => {
            return Step::Refused(format!(
                "voter {number} votes, with disk {}: there is nothing to replace",
                status.uuid
            ));
        }
        Standing::Replaced => {
            return Step::Refused(format!(
                "voter {number} has a disk whose place another one has taken: start it with an \
                 empty directory"
            ));
        }
        Standing::Joining => return Step::Wait("it has not been told what the others know"),
        Standing::Founding | Standing::Stranger => {}
    }
    if well <= voters.len() / 2 {
        return Step::Refused(format!(
            "{well} of {} voters vote, no majority: nothing can be decided until more of the old \
             disks are back",
            voters.len()
        ));
    }
    let leads = |status: &&VoterStatus| status.standing == Standing::Leader;
    let leader = voters.iter().find_map(|(address, status)| {
        let status = status.as_ref().ok().filter(leads)?;
        Some((*address, status.disks.as_ref()?))
    });
    let Some((leader, disks)) = leader else { return Step::Wait("nobody leads") };
    let seat = Seat(u8::try_from(number).expect("seven at most"));
    match disks.of(seat) {
        Some(old) if old == status.uuid => Step::Wait("it has not heard that it may"),
        Some(_) if status.standing != Standing::Stranger => Step::Wait(name(Standing::Founding)),
        Some(old) => Step::Ask(leader, Replacement { seat, old, new: status.uuid }),
        None => Step::Refused(format!(
            "{leader} has {} voters and knows no voter {number}: it has another list",
            disks.seats().count()
        )),
    }
}
