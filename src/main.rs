//! The command line of `laelaps`: what can be said, and who answers it.
//!
//! ```text
//!   run                      src/run.rs          the broker
//!   voter                    src/voter.rs        one of those who remember who is live
//!   ha                       src/voter/status.rs how each voter is
//!   pki                      src/pki.rs          certificates for a pair and its voters
//!   dev                      src/dev.rs          a demonstration on this machine
//!   preflight                src/preflight.rs    what this machine allows
//!   config, user             src/config.rs, src/auth.rs
//!   queue, connection        src/admin_client.rs over HTTP to a running broker
//!   journal                  src/journal_cli.rs  offline, read-only
//!   backup, restore          src/backup.rs       of a running broker; into a new directory
//!   perf                     perf/src/command.rs loads, floors and what they say
//! ```
//! A command that is not built is not listed. Every failure is a [`Failure`]: one message on
//! standard error, one exit status (`docs/operating/exit-statuses.md`).
#![forbid(unsafe_code)]

use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::config::{Config, Layer};
use crate::fatal::{Cause, Failure};

mod admin;
mod admin_client;
mod auth;
mod backup;
mod budget;
#[cfg(feature = "canary")]
mod canary;
mod config;
mod dev;
mod driver;
mod fatal;
mod greetings;
mod ha;
mod journal_cli;
mod log;
mod machine;
mod mutual;
mod node;
mod output;
mod pki;
mod preflight;
#[cfg(test)]
mod reference;
mod replay;
mod run;
mod tls;
mod voter;
mod watchdog;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A message broker that never loses an acknowledged message.
#[derive(Parser)]
#[command(name = "laelaps", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve AMQP 1.0 from a data directory
    Run {
        /// Read this TOML file first; flags win over it
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        #[command(flatten)]
        flags: Box<Layer>,
    },
    /// Remember who is live, with two, four or six others
    Voter(voter::Options),
    /// Look at a pair and at those who remember who is live
    #[command(subcommand)]
    Ha(ha::HaCommand),
    /// Make certificates for a pair and its voters
    #[command(subcommand)]
    Pki(pki::PkiCommand),
    /// Start a broker, send to it, kill it with SIGKILL, start it again: nothing is lost
    Dev(dev::Options),
    /// Say what this machine allows: io_uring, direct I/O, sync latency, cores, limits
    Preflight(preflight::Options),
    /// Check a configuration file, or print its schema
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Prepare users for the configuration
    #[command(subcommand)]
    User(UserCommand),
    /// Look at the queues of a running broker
    Queue {
        #[command(subcommand)]
        command: admin_client::QueueCommand,
        #[command(flatten)]
        server: admin_client::Server,
    },
    /// Look at the connections of a running broker
    Connection {
        #[command(subcommand)]
        command: admin_client::ConnectionCommand,
        #[command(flatten)]
        server: admin_client::Server,
    },
    /// Read journals without a broker, changing nothing; replay what a rejoin has cut off
    #[command(subcommand)]
    Journal(journal_cli::Command),
    /// Keep what a running broker holds at this moment in another directory
    Backup(backup::Backup),
    /// Make a data directory of a backup
    Restore(backup::Restore),
    /// Measure: a load on a broker, this machine's floors, and one against the other
    #[command(subcommand)]
    Perf(Box<perf::command::Command>),
    /// Print a completion script
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Read a file as `run --config` would, and say what is wrong with it
    Check {
        /// The TOML file
        file: PathBuf,
    },
    /// Print the JSON schema of the file
    Schema,
}

#[derive(Subcommand)]
enum UserCommand {
    /// Read a password from standard input and print its hash for `password-hash`
    Hash {
        /// For which log-ins
        #[arg(long = "for", value_enum, value_name = "KIND", default_value = "argon2id")]
        wanted: auth::HashFor,
    },
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run { config, flags } => {
            return run::run(config.as_deref(), *flags);
        }
        Command::Voter(options) => voter::run(&options),
        Command::Ha(command) => ha::ha(&command),
        Command::Pki(command) => pki::pki(&command),
        Command::Dev(options) => dev::dev(&options),
        Command::Preflight(options) => return preflight::command(&options),
        Command::Config(ConfigCommand::Check { file }) => {
            Config::load(Some(&file), Layer::default())
                .map(|_| output::line(format_args!("{}: fine", file.display())))
        }
        Command::Config(ConfigCommand::Schema) => {
            output::line(format_args!("{:#}", config::schema()));
            Ok(())
        }
        Command::User(UserCommand::Hash { wanted }) => hash_password(wanted),
        Command::Queue { command, server } => admin_client::queue(&server, &command),
        Command::Connection { command, server } => admin_client::connection(&server, &command),
        Command::Journal(command) => journal_cli::run(&command),
        Command::Backup(options) => backup::backup(&options),
        Command::Restore(options) => backup::restore(&options),
        Command::Perf(command) => {
            perf::command::run(&command).map_err(|failure| Failure::command(failure.to_string()))
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "laelaps", &mut std::io::stdout());
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("laelaps: {failure}");
            failure.exit_code()
        }
    }
}

/// Passwords are at most this long; what is longer is a wrong file.
pub(crate) const PASSWORD_BYTES_MAX: u64 = 1024;

/// One line of standard input, never a flag: flags are seen by every process of the machine.
fn hash_password(wanted: auth::HashFor) -> Result<(), Failure> {
    let mut password = String::new();
    let wrong = |why: &str| Failure::new(Cause::Command, format!("standard input: {why}"));
    std::io::stdin()
        .take(PASSWORD_BYTES_MAX + 1)
        .read_to_string(&mut password)
        .map_err(|error| wrong(&error.to_string()))?;
    let password = password.strip_suffix('\n').unwrap_or(&password);
    let password = password.strip_suffix('\r').unwrap_or(password);
    if password.is_empty() {
        return Err(wrong("no password; write `printf %s PASSWORD | laelaps user hash`"));
    }
    if password.len() as u64 > PASSWORD_BYTES_MAX || password.contains('\n') {
        return Err(wrong("a password is one line of at most 1024 bytes"));
    }
    output::line(auth::hash(password, wanted)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_switch_needs_no_value_and_takes_none_by_space() {
        let cli = Cli::try_parse_from(["laelaps", "run", "--insecure", "--drain", "1s"]);
        assert!(cli.is_ok());
        assert!(Cli::try_parse_from(["laelaps", "run", "--insecure", "true"]).is_err());
    }
}
