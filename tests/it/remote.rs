//! A foreign client on strings: one step out, one answer back (`tests/clients/README.md`).

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::Broker;
use crate::load::Client;
use crate::message::{from_hex, to_hex};

pub(crate) const BOTH: [Client; 2] = [Client::Proton, Client::Rhea];

/// No step may take longer, whatever a library waits for.
const ANSWER_WITHIN: Duration = Duration::from_secs(90);

pub(crate) struct Remote {
    child: Child,
    input: ChildStdin,
    answers: mpsc::Receiver<String>,
}

impl Remote {
    pub(crate) fn start(client: Client) -> Self {
        Self::spawn(client.command("remote"))
    }

    /// Any program that takes steps and answers each with a line.
    pub(crate) fn spawn(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let input = child.stdin.take().expect("its input is piped");
        let output = BufReader::new(child.stdout.take().expect("its output is piped"));
        let (lines, answers) = mpsc::channel();
        thread::spawn(move || {
            // It ends with the client, or with the test that no longer listens.
            for line in output.lines().map_while(Result::ok) {
                if lines.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, input, answers }
    }

    /// A client that is connected to the broker.
    pub(crate) fn connected(client: Client, broker: &Broker) -> Self {
        let mut remote = Self::start(client);
        remote.ok(json!({"do": "connect", "port": broker.amqp.port()}));
        remote
    }

    pub(crate) fn step(&mut self, step: Value) -> Value {
        writeln!(self.input, "{step}").expect("the client listens");
        let line = self.answers.recv_timeout(ANSWER_WITHIN);
        let line = line.unwrap_or_else(|error| panic!("{}: {error}", brief(&step)));
        serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("{}: {error}: the client said `{line}`", brief(&step)))
    }

    /// A step whose answer may take for ever: none once nobody wants it any more.
    pub(crate) fn step_while(
        &mut self,
        step: &Value,
        is_wanted: impl Fn() -> bool,
    ) -> Option<Value> {
        const LOOK_EVERY: Duration = Duration::from_millis(100);
        writeln!(self.input, "{step}").expect("the client listens");
        loop {
            match self.answers.recv_timeout(LOOK_EVERY) {
                Ok(line) => return Some(serde_json::from_str(&line).expect("an answer is JSON")),
                Err(RecvTimeoutError::Timeout) if is_wanted() => {}
                Err(RecvTimeoutError::Timeout) => return None,
                Err(RecvTimeoutError::Disconnected) => panic!("{}: the client ended", brief(step)),
            }
        }
    }

    /// A step that must not end in an error.
    pub(crate) fn ok(&mut self, step: Value) -> Value {
        let answer = self.step(step.clone());
        assert!(answer.get("error").is_none(), "{} failed: {answer}", brief(&step));
        answer
    }

    /// A step that must be refused; the condition.
    pub(crate) fn refused(&mut self, step: Value) -> String {
        let answer = self.step(step.clone());
        let condition = answer["error"]["condition"].as_str();
        condition.unwrap_or_else(|| panic!("{step} was not refused: {answer}")).to_owned()
    }

    pub(crate) fn sender(&mut self, name: &str, to: &str) {
        let answer = self.ok(json!({"do": "sender", "name": name, "to": to}));
        assert_eq!(answer["address"], to);
    }

    pub(crate) fn receiver(&mut self, name: &str, from: &str, credit: u32) {
        let step = json!({"do": "receiver", "name": name, "from": from, "credit": credit});
        let answer = self.ok(step);
        assert_eq!(answer["address"], from);
    }

    /// Sends and waits for `accepted`.
    pub(crate) fn send(&mut self, name: &str, message: &[u8]) {
        let step = json!({"do": "send", "name": name, "hex": to_hex(message)});
        let answer = self.step(step);
        assert_eq!(answer, json!({"state": "accepted"}), "a message of {} bytes", message.len());
    }

    /// Waits for `count` messages, to be settled as `name:0`, `name:1` ...
    pub(crate) fn take(&mut self, name: &str, count: usize) -> Vec<Vec<u8>> {
        let messages = self.take_some(name, count, 10_000);
        assert_eq!(messages.len(), count, "messages on {name}");
        messages
    }

    /// What has come within a time, as soon as it is `count`.
    pub(crate) fn take_some(&mut self, name: &str, count: usize, within_ms: u64) -> Vec<Vec<u8>> {
        let step = json!({"do": "take", "name": name, "count": count, "within_ms": within_ms});
        let answer = self.ok(step);
        let messages = answer["messages"].as_array().expect("a list").iter();
        messages.map(|each| from_hex(each["hex"].as_str().expect("a string"))).collect()
    }

    /// What has come, as the library reads it: `text` or `body`, `reply_to`, `annotations` ...
    pub(crate) fn read(&mut self, name: &str, count: usize, within_ms: u64) -> Vec<Value> {
        let step = json!({"do": "take", "name": name, "count": count, "within_ms": within_ms,
            "read": true});
        let mut answer = self.ok(step);
        serde_json::from_value(answer["messages"].take()).expect("a list")
    }

    pub(crate) fn settle(&mut self, delivery: &str, outcome: &str) {
        self.ok(json!({"do": "settle", "delivery": delivery, "outcome": outcome}));
    }

    pub(crate) fn answered(&mut self, step: Value) {
        let answer = self.ok(step.clone());
        assert_eq!(answer["answered"], true, "{step} was not answered");
    }

    /// The client dies without a word.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("a child of ours can be killed");
        self.child.wait().expect("a child can be waited for");
    }
}

/// A step as a message of a failure shows it: some carry megabytes.
fn brief(step: &Value) -> String {
    step.to_string().chars().take(300).collect()
}

impl Drop for Remote {
    fn drop(&mut self) {
        // It may have been killed already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
