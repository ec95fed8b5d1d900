//! `laelaps queue …` and `laelaps connection …`: a running broker asked over its admin API.
//!
//! ```text
//!   command ─▶ one HTTP request ─▶ JSON ─┬─ --json   printed as it came
//!                                        └─ table    one line an object, for people
//! ```
//! Names are percent-encoded into one path segment, so a queue may be called `a/b`. What the peer
//! chose (names, container ids) is printed without its control characters: a terminal obeys them.
//! A password comes from a file or the environment: arguments are seen by every process.
//!
//! Failure: no answer, or one with `error`, is the message and status 1.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::Value;

use crate::PASSWORD_BYTES_MAX;
use crate::auth::base64;
use crate::fatal::Failure;
use crate::output;

/// Which broker, and how to print.
#[derive(Args)]
pub(crate) struct Server {
    /// Where its admin API is
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8161", global = true)]
    admin: String,
    /// Print JSON as the broker sent it
    #[arg(long, global = true)]
    json: bool,
    /// Log in as this user, where the broker asks for one; the password is in LAELAPS_PASSWORD
    #[arg(long, value_name = "NAME", global = true)]
    user: Option<String>,
    /// Read the password from the first line of this file instead
    #[arg(long, value_name = "FILE", requires = "user", global = true)]
    password_file: Option<PathBuf>,
}

/// What can be asked about queues.
#[derive(Subcommand)]
pub(crate) enum QueueCommand {
    /// Every queue
    List,
    /// One queue
    Stat {
        /// Its name
        name: String,
    },
    /// Its oldest messages, without taking them
    Peek {
        /// Its name
        name: String,
        /// How many
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100))]
        count: u32,
    },
    /// Remove every message that no consumer holds
    Purge {
        /// Its name
        name: String,
    },
    /// Delete it, if it is empty; its links are detached
    Delete {
        /// Its name
        name: String,
    },
}

/// What can be asked about connections.
#[derive(Subcommand)]
pub(crate) enum ConnectionCommand {
    /// Every connection
    List,
    /// Close one with amqp:connection:forced
    Close {
        /// Its id in the list
        id: u64,
    },
}

/// `laelaps queue …`.
pub(crate) fn queue(server: &Server, command: &QueueCommand) -> Result<(), Failure> {
    match command {
        QueueCommand::List => {
            let answer = server.get("/api/v1/queues")?;
            server.show(&answer, |answer| table(&answer["queues"], QUEUE_COLUMNS));
        }
        QueueCommand::Stat { name } => {
            let answer = server.get(&format!("/api/v1/queues/{}", segment(name)))?;
            server.show(&answer, fields);
        }
        QueueCommand::Peek { name, count } => {
            let path = format!("/api/v1/queues/{}/messages?count={count}", segment(name));
            let answer = server.get(&path)?;
            server.show(&answer, |answer| table(&answer["messages"], MESSAGE_COLUMNS));
        }
        QueueCommand::Purge { name } => {
            let path = format!("/api/v1/queues/{}/purge", segment(name));
            let answer = server.send(Method::Post, &path)?;
            server.show(&answer, |answer| format!("{} messages removed\n", answer["purged"]));
        }
        QueueCommand::Delete { name } => {
            let path = format!("/api/v1/queues/{}", segment(name));
            let answer = server.send(Method::Delete, &path)?;
            server.show(&answer, |_| format!("{name} is deleted\n"));
        }
    }
    Ok(())
}

/// `laelaps connection …`.
pub(crate) fn connection(server: &Server, command: &ConnectionCommand) -> Result<(), Failure> {
    match command {
        ConnectionCommand::List => {
            let answer = server.get("/api/v1/connections")?;
            server.show(&answer, |answer| table(&answer["connections"], CONNECTION_COLUMNS));
        }
        ConnectionCommand::Close { id } => {
            let answer = server.send(Method::Delete, &format!("/api/v1/connections/{id}"))?;
            server.show(&answer, |_| format!("connection {id} is closed\n"));
        }
    }
    Ok(())
}

/// `laelaps ha status`.
pub(crate) fn ha_status(server: &Server) -> Result<(), Failure> {
    let answer = server.get("/api/v1/ha")?;
    server.show(&answer, fields);
    Ok(())
}

/// `laelaps ha switchover`.
pub(crate) fn ha_switchover(server: &Server) -> Result<(), Failure> {
    let answer = server.send(Method::Post, "/api/v1/ha/switchover")?;
    server.show(&answer, |_| "the other member takes over\n".to_owned());
    Ok(())
}

/// `laelaps ha bootstrap`.
pub(crate) fn ha_bootstrap(server: &Server, without: &str) -> Result<(), Failure> {
    let path = format!("/api/v1/ha/bootstrap?without={}", segment(without));
    let answer = server.send(Method::Post, &path)?;
    server.show(&answer, |_| "this member begins the pair: see `laelaps ha status`\n".to_owned());
    Ok(())
}

/// `laelaps ha promote --force-data-loss`.
pub(crate) fn ha_promote(server: &Server, lose: &str) -> Result<(), Failure> {
    let path = format!("/api/v1/ha/promote?lose={}", segment(lose));
    let answer = server.send(Method::Post, &path)?;
    server.show(&answer, |_| "this member takes the role: see `laelaps ha status`\n".to_owned());
    Ok(())
}

/// A question is answered within this.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// And a command that takes as long as a queue is deep (the broker's own bound is below this).
const CARRIED_OUT_WITHIN: Duration = Duration::from_secs(660);

/// Columns of a table: heading and key.
type Columns = &'static [(&'static str, &'static str)];

const QUEUE_COLUMNS: Columns = &[
    ("NAME", "name"),
    ("SHARD", "shard"),
    ("LEVEL", "durability"),
    ("AVAILABLE", "available"),
    ("ACQUIRED", "acquired"),
    ("CONSUMERS", "consumers"),
    ("ENQUEUED", "enqueued_total"),
    ("SETTLED", "settled_total"),
];

const MESSAGE_COLUMNS: Columns = &[
    ("SEQUENCE", "sequence"),
    ("ACQUIRED", "acquired"),
    ("FAILED", "delivery_count"),
    ("BYTES", "bytes"),
    ("ENCODED", "encoded_hex"),
];

const CONNECTION_COLUMNS: Columns = &[
    ("ID", "id"),
    ("PEER", "peer"),
    ("CONTAINER", "container_id"),
    ("USER", "user"),
    ("PRODUCERS", "producers"),
    ("CONSUMERS", "consumers"),
    ("RECEIVED", "received_bytes"),
    ("PAUSED", "paused"),
];

/// The requests that change something.
#[derive(Clone, Copy)]
pub(crate) enum Method {
    Post,
    Put,
    Delete,
}

impl Server {
    fn agent(&self, within: Duration) -> ureq::Agent {
        ureq::Agent::config_builder()
            .http_status_as_error(false)
            // The broker is near; a proxy that the environment names would reach another machine.
            .proxy(None)
            .timeout_connect(Some(ANSWER_WITHIN))
            .timeout_global(Some(within))
            .build()
            .into()
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.admin.trim_end_matches('/'))
    }

    /// Every queue: its number and its name.
    pub(crate) fn queues(&self) -> Result<Vec<(u64, String)>, Failure> {
        let answer = self.get("/api/v1/queues")?;
        let of = |queue: &Value| Some((queue["id"].as_u64()?, queue["name"].as_str()?.to_owned()));
        let queues = answer["queues"].as_array().map(|queues| queues.iter().map(of).collect());
        queues
            .flatten()
            .ok_or_else(|| Failure::command(format!("--admin {}: it lists no queues", self.admin)))
    }

    fn get(&self, path: &str) -> Result<Value, Failure> {
        self.ask("GET", path, ANSWER_WITHIN)
    }

    /// Ask the broker for something that changes something.
    pub(crate) fn send(&self, method: Method, path: &str) -> Result<Value, Failure> {
        match method {
            Method::Post => self.ask("POST", path, CARRIED_OUT_WITHIN),
            Method::Put => self.ask("PUT", path, ANSWER_WITHIN),
            Method::Delete => self.ask("DELETE", path, ANSWER_WITHIN),
        }
    }

    fn ask(&self, method: &str, path: &str, within: Duration) -> Result<Value, Failure> {
        let url = self.url(path);
        let mut request = ureq::http::Request::builder().method(method).uri(&url);
        if let Some(authorization) = self.authorization()? {
            request = request.header(ureq::http::header::AUTHORIZATION, authorization);
        }
        let request = request
            .body(())
            .map_err(|error| Failure::command(format!("--admin {}: {error}", self.admin)))?;
        self.read(&url, self.agent(within).run(request))
    }

    /// What HTTP Basic says of the user, if one is named.
    fn authorization(&self) -> Result<Option<String>, Failure> {
        let Some((user, password)) = self.credentials()? else { return Ok(None) };
        if user.contains(':') {
            return Err(Failure::command(format!("--user {user}: HTTP Basic knows no `:` in it")));
        }
        Ok(Some(format!("Basic {}", base64::encode(format!("{user}:{password}").as_bytes()))))
    }

    /// The user, if one is named, and the password.
    pub(crate) fn credentials(&self) -> Result<Option<(String, String)>, Failure> {
        let Some(user) = &self.user else { return Ok(None) };
        let password = match &self.password_file {
            Some(path) => first_line(path)?,
            None => std::env::var(PASSWORD_VARIABLE).map_err(|_| {
                Failure::command(format!(
                    "--user {user}: give its password by --password-file, or in \
                     {PASSWORD_VARIABLE}"
                ))
            })?,
        };
        Ok(Some((user.clone(), password)))
    }

    fn read(
        &self,
        url: &str,
        answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<Value, Failure> {
        let failed = |why: String| Failure::command(format!("{url}: {why}"));
        let mut answer = answer.map_err(|error| {
            failed(format!("{error}; is the broker running, and is its admin API at this --admin?"))
        })?;
        let status = answer.status();
        let body = answer.body_mut().read_json::<Value>().map_err(|error| {
            failed(format!(
                "HTTP {status} without a JSON body ({error}); is this a Laelaps broker?"
            ))
        })?;
        match body.get("error") {
            Some(error) => Err(failed(error.as_str().unwrap_or("failed").to_owned())),
            None if status.is_success() => Ok(body),
            None => Err(failed(format!("HTTP {status}"))),
        }
    }

    /// Print an answer, as it came or for people.
    pub(crate) fn show(&self, answer: &Value, for_people: impl Fn(&Value) -> String) {
        if self.json {
            output::line(format_args!("{answer:#}"));
        } else {
            output::text_of(for_people(answer));
        }
    }
}

/// Where a password may be that is in no file.
const PASSWORD_VARIABLE: &str = "LAELAPS_PASSWORD";

/// The password in a file: its first line.
fn first_line(path: &Path) -> Result<String, Failure> {
    let wrong =
        |why: String| Failure::command(format!("--password-file {}: {why}", path.display()));
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| wrong(error.to_string()))?;
    let read = file.take(PASSWORD_BYTES_MAX + 2).read_to_string(&mut text);
    read.map_err(|error| wrong(error.to_string()))?;
    let line = text.lines().next().unwrap_or_default();
    if line.is_empty() || line.len() as u64 > PASSWORD_BYTES_MAX {
        return Err(wrong(format!("its first line has to be 1 to {PASSWORD_BYTES_MAX} bytes")));
    }
    Ok(line.to_owned())
}

/// One path segment, with everything encoded that could end it.
fn segment(name: &str) -> String {
    use std::fmt::Write as _;
    name.bytes().fold(String::new(), |mut text, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                text.push(char::from(byte));
            }
            _ => write!(text, "%{byte:02X}").expect("a string takes all that is written"),
        }
        text
    })
}

/// Cells wider than this are cut.
const CELL_CHARS_MAX: usize = 60;

fn cell(value: &Value) -> String {
    let text = match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => text.chars().filter(|c| !c.is_control()).collect(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    };
    if text.chars().count() <= CELL_CHARS_MAX {
        return text;
    }
    text.chars().take(CELL_CHARS_MAX - 1).chain(['…']).collect()
}

fn table(rows: &Value, columns: Columns) -> String {
    let empty = Vec::new();
    let rows = rows.as_array().unwrap_or(&empty);
    let mut lines = vec![columns.iter().map(|(heading, _)| (*heading).to_owned()).collect()];
    lines.extend(
        rows.iter()
            .map(|row| columns.iter().map(|(_, key)| cell(&row[key])).collect::<Vec<String>>()),
    );
    let width = |column: usize| {
        lines.iter().map(|line: &Vec<String>| line[column].chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let cells: Vec<String> =
            line.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn fields(answer: &Value) -> String {
    let empty = serde_json::Map::new();
    let object = answer.as_object().unwrap_or(&empty);
    let whole = |value: &Value| match value.as_str().filter(|said| !said.is_empty()) {
        // What an operator is to do stands at the end of a long one.
        Some(said) => said.chars().filter(|c| !c.is_control()).collect(),
        None => cell(value),
    };
    object.iter().map(|(key, value)| format!("{key:<16} {}\n", whole(value))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_name_stays_one_segment() {
        assert_eq!(segment("a/b?c#d é"), "a%2Fb%3Fc%23d%20%C3%A9");
        assert_eq!(segment("plain-1.x_~"), "plain-1.x_~");
    }

    #[test]
    fn a_table_lines_up_and_control_characters_are_dropped() {
        let rows = json!([{ "id": 1, "peer": "\u{1b}[2J::1" }, { "id": 22, "user": "" }]);
        let text = table(&rows, CONNECTION_COLUMNS);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].starts_with("1   [2J::1"), "{text}");
        assert!(lines[2].starts_with("22  -"), "{text}");
    }

    #[test]
    fn long_cells_are_cut() {
        assert_eq!(cell(&json!("x".repeat(200))).chars().count(), CELL_CHARS_MAX);
    }

    #[test]
    fn what_one_object_says_is_printed_whole() {
        let waits = format!("{} run this\u{1b}[2J", "x".repeat(200));
        let text = fields(&json!({ "fault": "", "waits": waits }));
        assert!(text.ends_with("x run this[2J\n"), "{text}");
        assert!(text.starts_with("fault            -\n"), "{text}");
    }
}
