//! `laelaps voter`: one of the three, five or seven that remember who is live.
//!
//! ```text
//!   config ─▶ check seats, sites, addresses ─▶ lock DIR ─▶ voter.log ─▶ replica::voter::Voter
//!                                                             │ none: a new disk, formatted
//!   links (tokio, one thread)                                 ▼
//!     accept ─ preface ─┬─ a voter's letters ─────────▶ ┌───────────┐ ─▶ write, data sync (blocks)
//!                       └─ a client's questions ──────▶ │ one task  │ ─▶ letters ─▶ voters
//!     ticks ──────────────────────────────────────────▶ └───────────┘ ─▶ replies ─▶ clients
//! ```
//! It is small and cold: nothing of a message passes here. While the disk is written nothing else
//! happens, which is what a voter with a stuck disk should look like to others.
//!
//! `laelaps ha voters` asks each of them how it is (`voter/status.rs`), `laelaps ha voters replace`
//! has them count on a new disk (`voter/replace.rs`).
//!
//! Failure: a write that fails ends the process (status 16); a log that is damaged, or that has
//! forgotten what it acknowledged, stops it for good (status 14): replace the voter.

mod disk;
mod links;
mod replace;
mod settings;
mod status;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use replica::limits::TICK;
use replica::voter::{Recovered, Seat, Standing, Voter, VoterSeed, VoterUuid};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::config::LogFormat;
use crate::fatal::{Cause, Failure};
use crate::ha::voters::Heard;
use crate::log;

use disk::Disk;
use links::{Input, Links};
pub(crate) use settings::Options;
use settings::Settings;
pub(crate) use status::{VotersOptions, voters};

/// `laelaps voter`.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let settings = Settings::load(options)?;
    log::start(LogFormat::Text);
    let stop = Arc::new(AtomicBool::new(true));
    for signal in [SIGTERM, SIGINT] {
        // Everything that was answered is durable: there is nothing to wait for.
        signal_hook::flag::register_conditional_shutdown(signal, 0, Arc::clone(&stop))
            .map_err(|error| refused("no handler for signals", &error))?;
    }
    let disk = Disk::open(&settings)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| refused("no runtime for the links", &error))?;
    let outcome: Result<std::convert::Infallible, Failure> =
        runtime.block_on(async { Served::start(settings, disk).await?.serve().await });
    let failure = match outcome {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    failure.log();
    log::flush();
    Err(failure)
}

fn refused(what: &str, error: &std::io::Error) -> Failure {
    Failure::new(Cause::ResourceRefused, format!("{what}: {error}"))
}

/// A voter at work.
struct Served {
    voter: Voter,
    disk: Disk,
    links: Links,
    said: Option<Standing>,
    foreign_said: bool,
}

impl Served {
    async fn start(settings: Settings, disk: Disk) -> Result<Self, Failure> {
        let damaged = |error| {
            let cause = match error {
                replica::voter::WalError::Format(_) => Cause::FormatUnknown,
                replica::voter::WalError::NoBase
                | replica::voter::WalError::Damaged(_)
                | replica::voter::WalError::Malformed(..) => Cause::JournalDamaged,
            };
            Failure::new(cause, format!("{}: {error}", disk.path().display()))
        };
        let recovered = Recovered::read(&disk.read()?).map_err(damaged)?;
        let (seat, seats) = (recovered.identity().seat, recovered.identity().seats);
        if (seat, seats) != (settings.seat, settings.seats) {
            let message = format!(
                "{} is of voter {seat} of {}, the configuration says {} of {}: a disk keeps its \
                 seat",
                disk.path().display(),
                seats.count(),
                settings.seat,
                settings.seats.count()
            );
            return Err(Failure::new(Cause::DirectoryMismatch, message));
        }
        let seed = VoterSeed { elections: random()?, start: random()? };
        let voter = Voter::new(recovered, seed);
        let links = Links::start(&settings).await?;
        tracing::info!(
            seat = seat.0,
            of = seats.count(),
            disk = %voter.identity().uuid,
            "voter on {}",
            links.address()
        );
        Ok(Self { voter, disk, links, said: None, foreign_said: false })
    }

    async fn serve(mut self) -> Result<std::convert::Infallible, Failure> {
        loop {
            #[expect(clippy::disallowed_methods, reason = "the voter's clock")]
            let now = Instant::now();
            self.voter.handle_time(now);
            self.work()?;
            let wake = self.voter.poll_timeout().unwrap_or(now + TICK);
            let input = tokio::time::timeout_at(wake.into(), self.links.next()).await;
            let Ok(input) = input else { continue };
            self.take(input);
            // What came together shares a write.
            while let Some(input) = self.links.try_next() {
                self.take(input);
            }
        }
    }

    fn take(&mut self, input: Input) {
        let read = match &input {
            Input::Letter { seat, bytes, .. } => self.voter.handle_letter(*seat, bytes),
            Input::Question { client, bytes } => self.voter.handle_question(*client, bytes),
            Input::Relayed { client, bytes } => self.voter.handle_relayed(*client, bytes),
            Input::Relay(Heard::Reply(seat, bytes)) => self.voter.handle_relay_reply(*seat, bytes),
            Input::Relay(Heard::Up(seat)) => {
                self.voter.handle_relay_up(*seat);
                Ok(())
            }
            Input::Relay(Heard::Down(seat)) => {
                self.voter.handle_relay_down(*seat);
                Ok(())
            }
        };
        if let Err(error) = read {
            self.links.refuse(&input, &error.to_string());
        }
    }

    /// Carries out what the voter asks for, until it asks for nothing more.
    fn work(&mut self) -> Result<(), Failure> {
        loop {
            while let Some((to, bytes)) = self.voter.poll_letter() {
                self.links.send(to, &bytes);
            }
            while let Some((to, bytes)) = self.voter.poll_relay() {
                self.links.relay(to, bytes);
            }
            while let Some((to, bytes)) = self.voter.poll_reply() {
                self.links.reply(to, &bytes);
            }
            let Some(write) = self.voter.poll_write() else { break };
            self.disk.write(write)?;
            self.voter.handle_written();
        }
        if self.voter.has_forgotten() {
            let message = format!(
                "{}: the leader counts on entries that this disk had acknowledged and has lost",
                self.disk.path().display()
            );
            return Err(Failure::new(Cause::JournalDamaged, message));
        }
        self.say_standing();
        Ok(())
    }

    fn say_standing(&mut self) {
        let standing = self.voter.status().standing;
        if self.said != Some(standing) {
            self.said = Some(standing);
            match standing {
                Standing::Founding => tracing::info!("a new disk: waiting to hear every voter"),
                Standing::Stranger => tracing::error!(
                    "the other voters know another disk for this seat: this one does not vote. \
                     Bring the old disk back, or say `laelaps ha voters replace {}`",
                    self.voter.identity().seat
                ),
                Standing::Joining => {
                    tracing::info!("put in its place: waiting to be told the rest")
                }
                Standing::Replaced => tracing::error!(
                    "another disk was put in the place of this one: it decides nothing any more. \
                     Start this voter with an empty directory, or stop it"
                ),
                Standing::Follower => tracing::info!("follows"),
                Standing::Leader => tracing::info!("leads"),
            }
        }
        if self.voter.foreign_letters() > 0 && !self.foreign_said {
            self.foreign_said = true;
            tracing::error!(
                "a voter of another ensemble writes to this one: its directory or an address in \
                 its configuration is of another ensemble"
            );
        }
    }
}

/// 64 bits from the kernel.
fn random() -> Result<u64, Failure> {
    let mut bytes = [0; 8];
    fill_random(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn fill_random(bytes: &mut [u8]) -> Result<(), Failure> {
    getrandom::fill(bytes).map_err(|error| {
        Failure::new(Cause::ResourceRefused, format!("the kernel gives no random bytes: {error}"))
    })
}

/// A new disk's number.
fn new_uuid() -> Result<VoterUuid, Failure> {
    let mut uuid = VoterUuid::default();
    fill_random(&mut uuid.0)?;
    Ok(uuid)
}

/// Whose seat this is, for messages.
fn seat_of(at: usize) -> Seat {
    Seat(u8::try_from(at + 1).expect("seven at most"))
}
