//! fe2o3-amqp on strings: each line of standard input is a step, each line printed its answer.
//!
//! The steps are described in `tests/clients/README.md`. The library's tasks run on a thread of
//! their own, so its heartbeats go on while this one waits for a step.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{self, BufRead, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fe2o3_amqp::connection::ConnectionHandle;
use fe2o3_amqp::link::delivery::DeliveryInfo;
use fe2o3_amqp::link::receiver::CreditMode;
use fe2o3_amqp::sasl_profile::SaslProfile;
use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::types::definitions::{self, AmqpError};
use fe2o3_amqp::types::messaging::annotations::OwnedKey;
use fe2o3_amqp::types::messaging::{
    Body, Data, DistributionMode, Header, Message, MessageId, Outcome, Properties, Source,
};
use fe2o3_amqp::types::primitives::{Binary, Value as Amqp};
use fe2o3_amqp::{Connection, Receiver, Sender, Session};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::time::timeout;

type Answer = Result<Value, Box<dyn Error>>;

/// How long a drained message may be on its way, since nothing says when a drain is over.
const DRAINED_WITHIN: Duration = Duration::from_millis(500);

#[derive(Default)]
struct Remote {
    connection: Option<ConnectionHandle<()>>,
    session: Option<SessionHandle<()>>,
    senders: BTreeMap<String, Sender>,
    receivers: BTreeMap<String, Receiver>,
    /// What came and nobody took.
    came: BTreeMap<String, Vec<(DeliveryInfo, Value)>>,
    /// By the name that a test gives: the link's and the delivery.
    deliveries: BTreeMap<String, (String, DeliveryInfo)>,
}

fn main() -> io::Result<()> {
    let runtime = Runtime::new()?;
    let mut remote = Remote::default();
    for line in io::stdin().lock().lines() {
        let answer = match serde_json::from_str(&line?) {
            Ok(step) => runtime.block_on(remote.answer(&step)),
            Err(error) => Err(error.into()),
        };
        let answer = answer.unwrap_or_else(
            |error| json!({"error": {"condition": "none", "description": error.to_string()}}),
        );
        writeln!(io::stdout().lock(), "{answer}")?;
    }
    Ok(())
}

fn text<'a>(step: &'a Value, name: &str) -> &'a str {
    step[name].as_str().unwrap_or_default()
}

fn within(step: &Value) -> Duration {
    Duration::from_millis(step["within_ms"].as_u64().unwrap_or(10_000))
}

impl Remote {
    async fn answer(&mut self, step: &Value) -> Answer {
        let name = text(step, "name");
        match text(step, "do") {
            "about" => Ok(json!({"version": version()})),
            "connect" => timeout(within(step), self.connect(step)).await?,
            "sender" => timeout(within(step), self.sender(name, text(step, "to"))).await?,
            "receiver" => timeout(within(step), self.receiver(name, step)).await?,
            "send" => timeout(within(step), self.send(name, step)).await?,
            "take" => self.take(name, step).await,
            "settle" => self.settle(step).await,
            "drain" => self.drain(name, step).await,
            "detach" => timeout(within(step), self.detach(name)).await?,
            "close" => timeout(within(step), self.close()).await?,
            "idle" => {
                let for_ms = step["ms"].as_u64().unwrap_or_default();
                tokio::time::sleep(Duration::from_millis(for_ms)).await;
                let open = self.connection.as_ref().is_some_and(|handle| !handle.is_closed());
                Ok(json!({"open": open}))
            }
            other => Err(format!("no such step: {other}").into()),
        }
    }

    async fn connect(&mut self, step: &Value) -> Answer {
        if step.get("failover").is_some() {
            let why = "fe2o3-amqp connects once; the program makes connection, session and links \
                       anew";
            return Ok(json!({"lacks": why}));
        }
        // A connection that is gone can't be closed in order.
        let _ = timeout(Duration::from_secs(1), self.close()).await;
        *self = Self::default();
        let mut builder = Connection::builder()
            .container_id("fe2o3")
            .sasl_profile(SaslProfile::Anonymous)
            // TLS from the first byte, as everybody does it, and not behind a header of AMQP.
            .alt_tls_establishment(true);
        if let Some(idle_ms) = step["idle_ms"].as_u64() {
            builder = builder.idle_time_out(idle_ms as u32);
        }
        let port = &step["port"];
        let connection = if let Some(ca) = step["tls_ca"].as_str() {
            let url = format!("amqps://localhost:{port}");
            builder.tls_connector(trusting(ca)?).open(&url[..]).await?
        } else {
            builder.open(&format!("amqp://127.0.0.1:{port}")[..]).await?
        };
        let connection = self.connection.insert(connection);
        self.session = Some(Session::begin(connection).await?);
        Ok(json!({}))
    }

    fn session(&mut self) -> Result<&mut SessionHandle<()>, Box<dyn Error>> {
        self.session.as_mut().ok_or_else(|| "no session".into())
    }

    async fn sender(&mut self, name: &str, to: &str) -> Answer {
        let sender = Sender::attach(self.session()?, name, to).await?;
        let address = sender.target().as_ref().and_then(|target| target.address.clone());
        self.senders.insert(name.to_owned(), sender);
        Ok(json!({"address": address}))
    }

    async fn receiver(&mut self, name: &str, step: &Value) -> Answer {
        let mut source = Source::builder();
        if step["dynamic"] == true {
            source = source.dynamic(true);
        } else {
            source = source.address(text(step, "from"));
        }
        if step["copy"] == true {
            source = source.distribution_mode(DistributionMode::Copy);
        }
        let mut receiver = Receiver::builder()
            .name(name)
            .source(source.build())
            .credit_mode(CreditMode::Manual)
            .attach(self.session()?)
            .await?;
        if let Some(credit @ 1..) = step["credit"].as_u64() {
            receiver.set_credit(credit as u32).await?;
        }
        let address = receiver.source().as_ref().and_then(|source| source.address.clone());
        self.receivers.insert(name.to_owned(), receiver);
        Ok(json!({"address": address}))
    }

    async fn send(&mut self, name: &str, step: &Value) -> Answer {
        let sender = self.senders.get_mut(name).ok_or("no such sender")?;
        let head = Message::builder()
            .header(Header { durable: step["durable"] == true, ..Header::default() })
            .properties(Properties {
                reply_to: step["reply_to"].as_str().map(str::to_owned),
                correlation_id: step["correlation"].as_str().map(|id| id.to_owned().into()),
                ..Properties::default()
            });
        let outcome = if let Some(text) = step["text"].as_str() {
            sender.send(head.value(text.to_owned()).build()).await?
        } else {
            let body = bytes_of(text(step, "body"))?;
            sender.send(head.data(Data(Binary::from(body))).build()).await?
        };
        let state = match outcome {
            Outcome::Accepted(_) => "accepted",
            Outcome::Rejected(_) => "rejected",
            Outcome::Released(_) => "released",
            Outcome::Modified(_) => "modified",
        };
        Ok(json!({"state": state}))
    }

    /// Puts what comes until a time aside.
    async fn listen(
        &mut self,
        name: &str,
        count: usize,
        within: Duration,
    ) -> Result<(), Box<dyn Error>> {
        let deadline = Instant::now() + within;
        let receiver = self.receivers.get_mut(name).ok_or("no such receiver")?;
        let came = self.came.entry(name.to_owned()).or_default();
        while came.len() < count {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(delivery) = timeout(left, receiver.recv::<Body<Amqp>>()).await else { break };
            let delivery = delivery?;
            came.push((DeliveryInfo::from(&delivery), shown(delivery.message())));
        }
        Ok(())
    }

    async fn take(&mut self, name: &str, step: &Value) -> Answer {
        let count = step["count"].as_u64().unwrap_or(1) as usize;
        self.listen(name, count, within(step)).await?;
        let mut messages = Vec::new();
        for (at, (info, message)) in
            self.came.remove(name).unwrap_or_default().into_iter().enumerate()
        {
            self.deliveries.insert(format!("{name}:{at}"), (name.to_owned(), info));
            messages.push(message);
        }
        Ok(json!({"messages": messages}))
    }

    async fn settle(&mut self, step: &Value) -> Answer {
        let delivery = self.deliveries.remove(text(step, "delivery"));
        let (link, info) = delivery.ok_or("no such delivery")?;
        let receiver = self.receivers.get(&link).ok_or("no such receiver")?;
        match text(step, "outcome") {
            "accepted" => receiver.accept(info).await?,
            "released" => receiver.release(info).await?,
            "rejected" => {
                let why = Some("the test says so".to_owned());
                let error = definitions::Error::new(AmqpError::DecodeError, why, None);
                receiver.reject(info, error).await?;
            }
            other => return Err(format!("no such outcome: {other}").into()),
        }
        Ok(json!({}))
    }

    async fn drain(&mut self, name: &str, step: &Value) -> Answer {
        let credit = step["credit"].as_u64().unwrap_or_default() as u32;
        let receiver = self.receivers.get_mut(name).ok_or("no such receiver")?;
        receiver.set_credit(credit).await?;
        receiver.drain().await?;
        self.listen(name, credit as usize, DRAINED_WITHIN).await?;
        let note = "`drain` asks for it; nothing says when it is over, so the program waits 0.5 s";
        Ok(json!({"done": true, "note": note}))
    }

    async fn detach(&mut self, name: &str) -> Answer {
        if let Some(sender) = self.senders.remove(name) {
            sender.close().await?;
        } else {
            self.receivers.remove(name).ok_or("no such link")?.close().await?;
        }
        Ok(json!({"answered": true}))
    }

    async fn close(&mut self) -> Answer {
        if let Some(mut session) = self.session.take() {
            session.end().await?;
        }
        if let Some(mut connection) = self.connection.take() {
            connection.close().await?;
        }
        Ok(json!({"answered": true}))
    }
}

/// Of the library, from the lock file that this was built with.
fn version() -> Option<&'static str> {
    let mut lines = include_str!("../Cargo.lock").lines();
    lines.find(|line| *line == "name = \"fe2o3-amqp\"")?;
    lines.next()?.strip_prefix("version = \"")?.strip_suffix('"')
}

fn trusting(ca: &str) -> Result<tokio_rustls::TlsConnector, Box<dyn Error>> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca)? {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config).into())
}

fn bytes_of(hex: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    let pairs = hex.as_bytes().chunks(2);
    let bytes = pairs.map(|pair| u8::from_str_radix(str::from_utf8(pair)?, 16).map_err(Into::into));
    bytes.collect()
}

fn hex_of(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |four: u8| char::from(DIGITS[usize::from(four)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// A message as an application reads it.
fn shown(message: &Message<Body<Amqp>>) -> Value {
    let properties = message.properties.clone().unwrap_or_default();
    let correlation = match properties.correlation_id {
        Some(MessageId::String(id)) => Some(id),
        _ => None,
    };
    let mut annotations = BTreeMap::new();
    if let Some(section) = &message.message_annotations {
        for (key, value) in section.0.iter() {
            if let OwnedKey::Symbol(key) = key {
                annotations.insert(key.0.clone(), plain(value));
            }
        }
    }
    let mut shown = json!({"reply_to": properties.reply_to, "correlation": correlation,
        "annotations": annotations});
    match &message.body {
        Body::Value(value) => shown["text"] = plain(&value.0).into(),
        Body::Data(sections) => {
            let bytes: Vec<u8> = sections.iter().flat_map(|data| data.0.iter().copied()).collect();
            shown["body"] = hex_of(&bytes).into();
        }
        Body::Sequence(_) | Body::Empty => {}
    }
    shown
}

/// A string or symbol as text; what is neither, as Rust shows it.
fn plain(value: &Amqp) -> String {
    match value {
        Amqp::String(text) => text.clone(),
        Amqp::Symbol(symbol) => symbol.0.clone(),
        other => format!("{other:?}"),
    }
}
