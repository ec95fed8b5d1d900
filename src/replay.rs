//! `laelaps journal replay`: what a rejoin has cut off and kept, sent to the broker that serves.
//!
//! ```text
//!   exports/*.delta ─▶ records ─▶ messages that nobody settled there ─▶ their queues
//!                        │                                                by duplicate id
//!                        └ names of queues: created in these files, else asked of the broker
//! ```
//! By default those are sent that somebody may know to be accepted; with `--unacknowledged` also
//! the rest, which producers have been told nothing of and may have sent again.
//!
//! Invariants: a message goes with its own duplicate id, or with one that is made of its log,
//! shard, queue and sequence: the same in each replay, so it is stored once as long as its address
//! remembers that id (its last 20,000). The files are read and never changed. Not known again, and
//! so there twice: what the broker had before under no id, and a copy that compaction made under
//! another name.
//!
//! Failure: the first message that can't be sent or is not accepted ends the command (status 1) and
//! says how many were before it. A queue that can't be resolved skips its messages: they are
//! counted, and the command ends with status 1.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use amqp::codec::Writer;
use amqp::connection::{Password, Sasl};
use amqp::delivery::Outcome;
use amqp::link::LinkId;
use amqp::message::Sections;
use broker::apply::head;
use broker::catalogue::QueueRecord;
use bytes::Bytes;
use clap::Args;
use journal::{LogSeed, Lsn, QueueId, Record, RecordFlags, RecordKind, Sequence};
use perf::arguments::parse_target;
use perf::client::{Client, ClientError};
use perf::load::{Security, Target};
use perf::tls::{TlsArguments, TlsClient};
use replica::catchup::{Delta, DeltaHead, Told};

use crate::admin_client::Server;
use crate::driver::path_failure;
use crate::fatal::{Cause, Failure};
use crate::output;

/// No wait for the broker is longer.
const WAIT: Duration = Duration::from_secs(30);
/// Messages that are sent and not answered.
const WINDOW: usize = 64;
const CONTAINER: &str = "laelaps-replay";
/// By which a broker knows a message again.
const DUPLICATE_ID: &str = "_AMQ_DUPL_ID";
/// Descriptor of the application's properties [3.2.5].
const APPLICATION_PROPERTIES: u64 = 0x74;

/// What `replay` is told.
#[derive(Args)]
pub(crate) struct Replay {
    /// Files of `exports/`
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Where the broker serves AMQP: HOST:PORT, `amqp://HOST:PORT` or `amqps://HOST:PORT`
    #[arg(long, value_name = "URL", default_value = "amqp://127.0.0.1:5672",
          value_parser = parse_target)]
    to: Target,
    /// For amqps: PEM file of the CAs that the broker's certificate may be of
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// Also what no producer was told to be accepted
    #[arg(long)]
    unacknowledged: bool,
    /// Only say what would be sent
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    server: Server,
}

/// A message of an export.
struct Message {
    name: (QueueId, Sequence),
    told: Told,
    bytes: Vec<u8>,
    is_whole: bool,
}

/// What a file holds.
struct Export {
    path: PathBuf,
    head: DeltaHead,
    messages: Vec<Message>,
    /// Settlements of messages that are not in it.
    settled_elsewhere: usize,
    /// Messages that end in it and of which it has not the beginning.
    headless: BTreeSet<(QueueId, Sequence)>,
    /// Queues that were made in it.
    made: BTreeMap<QueueId, String>,
}

/// `laelaps journal replay`.
pub(crate) fn replay(options: &Replay) -> Result<(), Failure> {
    let exports: Vec<Export> =
        options.files.iter().map(|path| read(path)).collect::<Result<_, _>>()?;
    let mut names = Names { options, made: BTreeMap::new(), there: None };
    for export in &exports {
        names.learn(export)?;
    }
    let mut sender = Sender { options, client: None, links: BTreeMap::new(), open: 0, sent: 0 };
    let (mut left, mut lost) = (0, 0);
    for export in &exports {
        for message in &export.messages {
            let Some(queue) = names.of(export, message.name.0)? else {
                lost += 1;
                continue;
            };
            let is_wanted = options.unacknowledged || message.told == Told::MayBeAcknowledged;
            let told = match message.told {
                Told::Unacknowledged => "unacknowledged",
                Told::MayBeAcknowledged => "may have been acknowledged",
            };
            if options.dry_run {
                output::line(format_args!(
                    "{}: queue {queue}, sequence {}, {} bytes, {told}{}",
                    export.path.display(),
                    message.name.1.0,
                    message.bytes.len(),
                    if is_wanted { "" } else { ": not without --unacknowledged" },
                ));
            }
            if !is_wanted {
                left += 1;
            } else if !options.dry_run {
                sender.send(&queue, &with_id(export, message)?)?;
            }
        }
        if export.settled_elsewhere > 0 {
            output::line(format_args!(
                "{}: {} settlements of messages that are not in it: those may be delivered again",
                export.path.display(),
                export.settled_elsewhere,
            ));
        }
    }
    sender.finish()?;
    for export in exports.iter().filter(|export| !export.headless.is_empty()) {
        output::line(format_args!(
            "{}: the beginnings of {} messages are not in it: they can't be sent",
            export.path.display(),
            export.headless.len(),
        ));
    }
    output::line(format_args!("{} messages accepted, {left} left out", sender.sent));
    if options.dry_run {
        output::line(format_args!(
            "what the broker has already under no duplicate id, or one that it has forgotten, \
             would be there twice"
        ));
    }
    if lost > 0 {
        return Err(Failure::command(format!(
            "{lost} messages were skipped: their queues are neither made in these files, or in \
             those of shard 0 beside them, nor at the broker: they were deleted"
        )));
    }
    Ok(())
}

fn read(path: &Path) -> Result<Export, Failure> {
    let bytes =
        std::fs::read(path).map_err(|error| path_failure(path, "cannot be read", &error))?;
    let delta = Delta::decode(&Bytes::from(bytes)).map_err(|error| {
        Failure::new(Cause::JournalDamaged, format!("{}: {error}", path.display()))
    })?;
    let seed = LogSeed::new(delta.head.log, delta.head.shard);
    let mut export = Export {
        path: path.to_owned(),
        head: delta.head,
        messages: Vec::new(),
        settled_elsewhere: 0,
        headless: BTreeSet::new(),
        made: BTreeMap::new(),
    };
    for batch in &delta.batches {
        for record in batch.records(&seed) {
            let (lsn, record) = record.map_err(|error| {
                let what = format!("{}: the record at {error:?}", path.display());
                Failure::new(Cause::JournalDamaged, what)
            })?;
            export.take(lsn, &record).map_err(|why| {
                let what = format!("{}: the record at LSN {lsn}: {why}", path.display());
                Failure::new(Cause::JournalDamaged, what)
            })?;
        }
    }
    // A chain of fragments that did not end was never a message.
    export.messages.retain(|message| message.is_whole);
    Ok(export)
}

impl Export {
    /// Takes the next record. What stands before the export only leads to it: of that a message
    /// counts which has not come to its end there.
    fn take(&mut self, lsn: Lsn, record: &Record<'_>) -> Result<(), String> {
        let name = (record.queue, record.sequence);
        let leads = lsn < self.head.from;
        if leads && !matches!(record.kind, RecordKind::Message | RecordKind::Settle) {
            return Ok(());
        }
        match record.kind {
            RecordKind::Message => {
                let is_last = record.flags.has(RecordFlags::LAST);
                if record.flags.has(RecordFlags::FIRST) {
                    // A copy that was carried forward takes the place of the first.
                    self.messages.retain(|message| message.name != name);
                    let told = self.head.told(record.level);
                    let bytes = record.payload.to_vec();
                    self.messages.push(Message { name, told, bytes, is_whole: is_last });
                } else if let Some(message) =
                    self.messages.iter_mut().rev().find(|message| message.name == name)
                {
                    message.bytes.extend_from_slice(record.payload);
                    message.is_whole = is_last;
                } else if !leads {
                    self.headless.insert(name);
                }
                if leads && is_last {
                    self.messages.retain(|message| message.name != name);
                }
            }
            // Where the log begins: no message's settlement.
            RecordKind::Settle if head::is_told(record) => {}
            RecordKind::Settle => {
                let before = self.messages.len();
                self.messages.retain(|message| message.name != name);
                let is_known = self.messages.len() < before || self.headless.remove(&name);
                self.settled_elsewhere += usize::from(!leads && !is_known);
            }
            RecordKind::QueueCreate => {
                let queue = QueueRecord::decode(record.queue, record.payload)?;
                self.made.insert(queue.id, queue.name);
            }
            RecordKind::QueueDelete => {
                self.messages.retain(|message| message.name.0 != record.queue);
                self.made.remove(&record.queue);
            }
            RecordKind::DeliveryCount
            | RecordKind::Reference
            | RecordKind::NextSequence
            | RecordKind::NextQueueId
            | RecordKind::AddressCreate
            | RecordKind::AddressDelete
            | RecordKind::Prepare
            | RecordKind::Decide => {}
        }
        Ok(())
    }
}

/// Which queue has which number.
struct Names<'a> {
    options: &'a Replay,
    /// By the log's epoch: a number that was given in a part that was cut was given again since.
    made: BTreeMap<(u64, QueueId), String>,
    there: Option<BTreeMap<QueueId, String>>,
}

impl Names<'_> {
    /// Queues are made on shard 0: what was cut with this export may be in the files beside it.
    fn learn(&mut self, export: &Export) -> Result<(), Failure> {
        let epoch = export.head.tail().epoch;
        let folder = export.path.parent().map(Path::to_owned).unwrap_or_default();
        let folder = if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder };
        let beside = std::fs::read_dir(&folder)
            .map_err(|error| path_failure(&folder, "cannot be listed", &error))?;
        let prefix = format!("shard-000-{}-", epoch.0);
        let mut files = BTreeSet::from([export.path.clone()]);
        for entry in beside.filter_map(Result::ok) {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(&prefix) && name.ends_with(".delta") {
                files.insert(entry.path());
            }
        }
        for path in files {
            let made = read(&path)?.made.into_iter();
            self.made.extend(made.map(|(id, name)| ((epoch.0, id), name)));
        }
        Ok(())
    }

    /// None: it is nowhere any more.
    fn of(&mut self, export: &Export, id: QueueId) -> Result<Option<String>, Failure> {
        if let Some(name) = self.made.get(&(export.head.tail().epoch.0, id)) {
            return Ok(Some(name.clone()));
        }
        let there = match &self.there {
            Some(there) => there,
            None => {
                let queues = self.options.server.queues()?;
                self.there
                    .insert(queues.into_iter().map(|(id, name)| (QueueId(id), name)).collect())
            }
        };
        Ok(there.get(&id).cloned())
    }
}

/// The message with an id by which it is known again.
fn with_id(export: &Export, message: &Message) -> Result<Vec<u8>, Failure> {
    let (queue, sequence) = message.name;
    let head = &export.head;
    let id = format!("laelaps-{}-{}-{}-{}", head.log, head.shard.0, queue.0, sequence.0);
    put_id(&message.bytes, &id).map_err(|why| {
        let what = format!("message {} of queue {}: {why}", sequence.0, queue.0);
        Failure::new(Cause::JournalDamaged, format!("{}: {what}", export.path.display()))
    })
}

fn put_id(message: &[u8], id: &str) -> Result<Vec<u8>, String> {
    let survey = amqp::message::check(message).map_err(|error| error.to_string())?;
    if survey.application_property(message, DUPLICATE_ID).is_some() {
        return Ok(message.to_vec());
    }
    let sections = Sections::scan(message).map_err(|error| error.to_string())?;
    let there = sections.application_properties(message).map_err(|error| error.to_string())?;
    // Both halves of each entry, as they were.
    let mut entries = Vec::new();
    let mut count = 2;
    let mut writer = Writer::new(&mut entries);
    for (key, value) in there.iter().flat_map(|there| there.iter()) {
        writer.value(&key);
        writer.value(&value);
        count += 2;
    }
    writer.string(DUPLICATE_ID);
    writer.string(id);
    let behind = match (sections.body.is_empty(), &sections.footer) {
        (false, _) => sections.body.start,
        (true, Some(footer)) => footer.start,
        (true, None) => message.len(),
    };
    let section = sections.application_properties.unwrap_or(behind..behind);
    let mut out = message[..section.start].to_vec();
    Writer::new(&mut out).descriptor(APPLICATION_PROPERTIES);
    let size = u32::try_from(entries.len() + 4).map_err(|_| "too long".to_owned())?;
    // A map with lengths of four bytes [1.6.23].
    out.push(0xd1);
    out.extend_from_slice(&size.to_be_bytes());
    out.extend_from_slice(&u32::to_be_bytes(count));
    out.extend_from_slice(&entries);
    out.extend_from_slice(&message[section.end..]);
    Ok(out)
}

/// The broker, and what it has answered.
struct Sender<'a> {
    options: &'a Replay,
    client: Option<Client>,
    links: BTreeMap<String, LinkId>,
    open: usize,
    sent: usize,
}

impl Sender<'_> {
    fn send(&mut self, queue: &str, message: &[u8]) -> Result<(), Failure> {
        while self.open >= WINDOW {
            self.hear()?;
        }
        let link = self.link(queue)?;
        let sent = self.client.as_mut().expect("a link has one").send(link, message);
        sent.map_err(|error| self.failed(&error.to_string()))?;
        self.open += 1;
        Ok(())
    }

    fn link(&mut self, queue: &str) -> Result<LinkId, Failure> {
        if let Some(link) = self.links.get(queue) {
            return Ok(*link);
        }
        let client = match &mut self.client {
            Some(client) => client,
            none => none.insert(connect(self.options)?),
        };
        let link = client.sender(queue);
        let link = link.map_err(|error| self.failed(&format!("queue {queue}: {error}")))?;
        self.links.insert(queue.to_owned(), link);
        Ok(link)
    }

    fn hear(&mut self) -> Result<(), Failure> {
        let heard = self.client.as_mut().map(Client::next_outcome);
        match heard {
            Some(Ok((_, Outcome::Accepted))) => {
                self.open -= 1;
                self.sent += 1;
                Ok(())
            }
            Some(Ok((_, outcome))) => Err(self.failed(&format!("not accepted: {outcome:?}"))),
            Some(Err(error)) => Err(self.failed(&error.to_string())),
            None => Ok(()),
        }
    }

    fn finish(&mut self) -> Result<(), Failure> {
        while self.open > 0 {
            self.hear()?;
        }
        match self.client.take().map(Client::close) {
            Some(Err(error)) => Err(self.failed(&error.to_string())),
            Some(Ok(())) | None => Ok(()),
        }
    }

    fn failed(&self, why: &str) -> Failure {
        let (to, sent) = (self.options.to.addr, self.sent);
        Failure::command(format!(
            "{to}: {why}; {sent} messages were accepted; begin again: those whose ids their \
             addresses remember (the last 20,000) are not stored twice"
        ))
    }
}

fn connect(options: &Replay) -> Result<Client, Failure> {
    let to = &options.to;
    if to.login.is_some() {
        // Every process of the machine can read a command line.
        let how = "--to names no user: say --user NAME, and the password as it describes";
        return Err(Failure::command(how.to_owned()));
    }
    let is_plain = to.security == Security::Plain;
    if is_plain && options.tls_ca.is_some() {
        let how = "--tls-ca is for --to amqps://HOST:PORT: without that, nothing is encrypted";
        return Err(Failure::command(how.to_owned()));
    }
    let sasl = match options.server.credentials()? {
        Some((user, password)) => Sasl::Plain { user, password: Password::new(password) },
        None => Sasl::Anonymous,
    };
    let (connected, is_it) = if is_plain {
        (Client::connect(to.addr, CONTAINER, sasl, WAIT), "without TLS")
    } else {
        let Some(ca) = options.tls_ca.clone() else {
            return Err(Failure::command("--to amqps:// needs --tls-ca FILE".to_owned()));
        };
        let trusted = TlsArguments { tls_ca: Some(ca), ..TlsArguments::default() };
        let tls = TlsClient::new(&trusted, &to.host).map_err(Failure::command)?;
        (Client::connect_tls(to.addr, &tls, CONTAINER, sasl, WAIT), "with TLS")
    };
    connected.map_err(|error: ClientError| {
        Failure::command(format!("{}: {error}; is it the live, and is it {is_it}?", to.addr))
    })
}

#[cfg(test)]
mod tests {
    use perf::client::durable_message;

    use super::*;

    /// A fragment, by its place and its flags.
    fn fragment(payload: &[u8], flags: RecordFlags, number: u16) -> Record<'_> {
        let mut record = Record::new(RecordKind::Message, QueueId(1), Sequence(7), payload);
        (record.flags, record.fragment) = (flags, number);
        record
    }

    #[test]
    fn a_message_that_began_before_the_cut_is_whole_and_one_that_ended_there_is_none() {
        let head = DeltaHead {
            log: journal::LogId([1; 16]),
            shard: journal::ShardId(0),
            from: Lsn(1000),
            to: Lsn(9000),
            epochs: journal::EpochTable::from_rows(vec![(journal::Epoch(1), Lsn(100))])
                .expect("one reign"),
            is_overruled: false,
        };
        let export = || Export {
            path: PathBuf::new(),
            head: head.clone(),
            messages: Vec::new(),
            settled_elsewhere: 0,
            headless: BTreeSet::new(),
            made: BTreeMap::new(),
        };
        let [first, next, last] = [
            fragment(b"he", RecordFlags::FIRST, 0),
            fragment(b"l", RecordFlags::default(), 1),
            fragment(b"lo", RecordFlags::LAST, 2),
        ];
        let settle = Record::new(RecordKind::Settle, QueueId(1), Sequence(7), &[]);
        let taken = |records: &[(u64, &Record<'_>)]| {
            let mut export = export();
            for (lsn, record) in records {
                export.take(Lsn(*lsn), record).expect("it can be read");
            }
            export.messages.retain(|message| message.is_whole);
            let bytes: Vec<Vec<u8>> = export.messages.into_iter().map(|one| one.bytes).collect();
            (bytes, export.headless.len(), export.settled_elsewhere)
        };
        let hello = vec![b"hello".to_vec()];
        assert_eq!(taken(&[(200, &first), (2000, &next), (3000, &last)]), (hello, 0, 0));
        assert_eq!(taken(&[(2000, &next), (3000, &last)]), (vec![], 1, 0), "it says so");
        let ended = [(200, &first), (300, &next), (400, &last)];
        assert_eq!(taken(&ended), (vec![], 0, 0), "it is not of the export");
        let settled = [(200, &first), (2000, &settle)];
        assert_eq!(taken(&settled), (vec![], 0, 0), "it was given up");
        assert_eq!(taken(&[(200, &settle), (2000, &settle)]), (vec![], 0, 1));
        let mut payload = [0; 8];
        assert_eq!(taken(&[(2000, &head::moved_to(Lsn(900), &mut payload))]), (vec![], 0, 0));
    }

    #[test]
    fn a_message_gets_an_id_once_and_keeps_all_else() {
        let message = durable_message(b"body");
        let with = put_id(&message, "one").expect("a message");
        let sections = Sections::scan(&with).expect("a message");
        let there = sections.application_properties(&with).expect("a map").expect("a section");
        assert_eq!(there.iter().count(), 1);
        assert_eq!(&with[sections.body.clone()], &message[message.len() - sections.body.len()..]);
        assert_eq!(put_id(&with, "two").expect("a message"), with, "its own id stays");
    }
}
