//! Clients that go from member to member until one serves them, and write down what they see as the
//! foreign ones do: `check.rs` judges it.
//!
//! ```text
//!   producer   number 0, 1, 2, ...  16 at once; what a broken connection leaves without an answer
//!              stays in doubt, or is sent again first, with the same duplicate id
//!   consumer   settles each message at once; closes now and then, which confirms that
//!   both       an error, or silence: the next address, 20 ms later
//! ```
//! Each acceptance is kept with the connection that it came on, so that two brokers which accept at
//! one time are seen: see [`Seen::assert_one_at_a_time`].
//!
//! They are threads of this process: nobody restarts one, whatever becomes of the brokers.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use amqp::codec::Writer;
use amqp::connection::Sasl;
use amqp::delivery::{DeliveryId, Outcome};
use amqp::message::{Head, Header, write_header};
use perf::client::{Client, ClientError, Received as Message, data_of};

use crate::check::{Rules, check};
use crate::load::{Event, Kind, Received, What};
use crate::machines::Inside;

const TRY_EVERY: Duration = Duration::from_millis(20);
const WINDOW: usize = 16;
/// A producer without an answer for so long goes on to the next address.
const ANSWER_WITHIN: Duration = Duration::from_secs(4);
/// A consumer without a message for so long does.
const SILENCE: Duration = Duration::from_secs(1);
/// Messages after which a consumer closes.
const VISIT: usize = 300;

/// Where and how a client works.
#[derive(Clone)]
pub(crate) struct Role {
    pub(crate) name: &'static str,
    pub(crate) queue: &'static str,
    /// Tried in turn.
    pub(crate) addresses: Vec<SocketAddr>,
    /// Between two messages of a producer.
    pub(crate) pause: Duration,
    /// A producer gives duplicate ids, and sends again what has no answer.
    pub(crate) repeats: bool,
    pub(crate) inside: Option<Inside>,
}

/// An acceptance.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Accepted {
    pub(crate) at: Instant,
    pub(crate) by: SocketAddr,
    connection: u64,
}

/// Those that run.
pub(crate) struct Clients {
    book: Arc<Book>,
    threads: Vec<JoinHandle<()>>,
}

/// What all clients of a test have seen so far.
struct Book {
    origin: Instant,
    events: Mutex<Vec<Event>>,
    accepted: Mutex<Vec<Accepted>>,
    connections: AtomicU64,
    /// Producers are to end.
    stop: AtomicBool,
    /// Consumers are to end when nothing is left.
    drain: AtomicBool,
}

/// What they saw.
pub(crate) struct Seen {
    pub(crate) events: Vec<Event>,
    /// By time.
    pub(crate) accepted: Vec<Accepted>,
}

impl Clients {
    pub(crate) fn new() -> Self {
        let book = Book {
            origin: Instant::now(),
            events: Mutex::default(),
            accepted: Mutex::default(),
            connections: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            drain: AtomicBool::new(false),
        };
        Self { book: Arc::new(book), threads: Vec::new() }
    }

    pub(crate) fn produce(&mut self, role: Role) {
        let producer = Producer {
            role,
            book: Arc::clone(&self.book),
            next: 0,
            open: VecDeque::new(),
            again: VecDeque::new(),
        };
        self.spawn(move || producer.run());
    }

    pub(crate) fn consume(&mut self, role: Role) {
        let consumer = Consumer { role, book: Arc::clone(&self.book) };
        self.spawn(move || consumer.run());
    }

    fn spawn(&mut self, run: impl FnOnce() + Send + 'static) {
        self.threads.push(thread::spawn(run));
    }

    /// How many messages were accepted so far.
    pub(crate) fn accepted(&self) -> usize {
        self.book.accepted.lock().expect("no panic").len()
    }

    /// The first acceptance by this broker at this time or later.
    pub(crate) fn first_by(&self, by: SocketAddr, from: Instant) -> Option<Instant> {
        let accepted = self.book.accepted.lock().expect("no panic");
        accepted.iter().find(|one| one.by == by && one.at >= from).map(|one| one.at)
    }

    /// The last acceptance by this broker.
    pub(crate) fn last_by(&self, by: SocketAddr) -> Option<Instant> {
        let accepted = self.book.accepted.lock().expect("no panic");
        accepted.iter().rev().find(|one| one.by == by).map(|one| one.at)
    }

    /// Ends the producers, lets the consumers take all that is left, and hands out what was seen.
    pub(crate) fn finish(mut self) -> Seen {
        self.book.stop.store(true, Ordering::Relaxed);
        // A consumer that finds nothing left while a producer has an answer to come is too early.
        thread::sleep(ANSWER_WITHIN);
        self.book.drain.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("a client does not panic");
        }
        let events = std::mem::take(&mut *self.book.events.lock().expect("no panic"));
        let accepted = std::mem::take(&mut *self.book.accepted.lock().expect("no panic"));
        Seen { events, accepted }
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.book.stop.store(true, Ordering::Relaxed);
        self.book.drain.store(true, Ordering::Relaxed);
    }
}

impl Seen {
    /// No connection to one broker heard of acceptances while one to the other did: from its first
    /// to its last, none of the other comes between.
    pub(crate) fn assert_one_at_a_time(&self) {
        let mut spans: BTreeMap<u64, (SocketAddr, Instant, Instant)> = BTreeMap::new();
        for Accepted { at, by, connection } in &self.accepted {
            let span = spans.entry(*connection).or_insert((*by, *at, *at));
            (span.1, span.2) = (span.1.min(*at), span.2.max(*at));
        }
        let spans: Vec<_> = spans.into_values().collect();
        for (nth, one) in spans.iter().enumerate() {
            for other in spans[nth + 1..].iter().filter(|other| other.0 != one.0) {
                let apart = one.2 < other.1 || other.2 < one.1;
                assert!(apart, "two brokers accepted at one time: {one:?} and {other:?}");
            }
        }
    }

    /// What was accepted is there, in order, and nothing comes twice that was not given back. Gives
    /// the longest time in which nothing was accepted.
    pub(crate) fn judge(self, strict: &'static [&'static str]) -> Duration {
        let gap = self.longest_gap();
        let rules = Rules { strict, may_lose: false, crashes: true };
        let verdict = check(self.events, &rules);
        println!(
            "{} accepted, {} received, {} of them again; longest time without an acceptance: {} ms",
            verdict.accepted.values().sum::<usize>(),
            verdict.received,
            verdict.redelivered,
            gap.as_millis()
        );
        verdict.assert_clean();
        gap
    }

    /// The longest time in which nothing was accepted.
    fn longest_gap(&self) -> Duration {
        let gaps = self.accepted.windows(2).map(|two| two[1].at - two[0].at);
        gaps.max().unwrap_or_default()
    }
}

impl Book {
    fn note(&self, what: What) {
        let t = u64::try_from(self.origin.elapsed().as_nanos()).expect("a short run");
        self.events.lock().expect("no panic").push(Event { t, what });
    }

    fn is(&self, what: &AtomicBool) -> bool {
        what.load(Ordering::Relaxed)
    }
}

struct Producer {
    role: Role,
    book: Arc<Book>,
    next: u64,
    /// Sent on this connection and not answered.
    open: VecDeque<(DeliveryId, u64)>,
    /// To be sent again.
    again: VecDeque<u64>,
}

impl Producer {
    fn run(mut self) {
        if let Some(inside) = &self.role.inside {
            inside.enter();
        }
        for address in self.role.addresses.clone().into_iter().cycle() {
            // Why it ended is of no interest: what it was told counts.
            let _ = self.visit(address);
            let without: Vec<u64> = self.open.drain(..).map(|(_, number)| number).collect();
            if self.role.repeats {
                // In their order: what was given back while older ones had no answer yet went out
                // behind newer ones.
                self.again.extend(without);
                self.again.make_contiguous().sort_unstable();
            }
            if self.book.is(&self.book.stop) {
                return;
            }
            thread::sleep(TRY_EVERY);
        }
    }

    fn visit(&mut self, address: SocketAddr) -> Result<(), ClientError> {
        let connection = self.book.connections.fetch_add(1, Ordering::Relaxed);
        let mut client = Client::connect(address, self.role.name, Sasl::Anonymous, ANSWER_WITHIN)?;
        let link = client.sender(self.role.queue)?;
        loop {
            let stops = self.book.is(&self.book.stop);
            while self.open.len() < WINDOW && (!stops || !self.again.is_empty()) {
                let number = self.number();
                let message = self.message(number);
                // In doubt from here on, sent or not.
                let delivery = client.send(link, &message);
                let delivery = delivery.inspect_err(|_| self.again.push_front(number))?;
                self.open.push_back((delivery, number));
            }
            if self.open.is_empty() {
                return client.close();
            }
            let (delivery, outcome) = client.next_outcome()?;
            let at = self.open.iter().position(|(sent, _)| *sent == delivery);
            let (_, number) =
                self.open.remove(at.expect("an answer to what was sent")).expect("it is");
            self.answer(number, &outcome, Accepted { at: Instant::now(), by: address, connection });
            thread::sleep(self.role.pause);
        }
    }

    fn number(&mut self) -> u64 {
        if let Some(number) = self.again.pop_front() {
            return number;
        }
        let number = self.next;
        self.next += 1;
        let (id, q) = (self.id(number), self.role.queue.to_owned());
        self.book.note(What::Sent { id, q, inc: 0 });
        number
    }

    fn answer(&mut self, number: u64, outcome: &Outcome, accepted: Accepted) {
        let id = self.id(number);
        match outcome {
            Outcome::Accepted => {
                self.book.accepted.lock().expect("no panic").push(accepted);
                self.book.note(What::Accepted { id, q: self.role.queue.to_owned(), inc: 0 });
            }
            // Who stops gives back what comes too late.
            Outcome::Released if self.role.repeats => self.again.push_back(number),
            Outcome::Released => {}
            Outcome::Rejected(_) | Outcome::Modified { .. } => {
                self.book.note(What::Refused { id, why: format!("{outcome:?}") });
            }
        }
    }

    fn id(&self, number: u64) -> String {
        format!("{}-{number}", self.role.name)
    }

    /// A durable message whose body is its id.
    fn message(&self, number: u64) -> Vec<u8> {
        /// The descriptors of application properties and of a data section [3.2.5, 3.2.6].
        const PROPERTIES: u64 = 0x74;
        const DATA: u64 = 0x75;
        let id = self.id(number);
        let mut message = Vec::new();
        write_header(&Header { durable: Some(true), ..Header::default() }, &mut message);
        let mut writer = Writer::new(&mut message);
        if self.role.repeats {
            writer.descriptor(PROPERTIES);
            writer.map_with(|pairs| {
                pairs.element().string("_AMQ_DUPL_ID");
                pairs.element().string(&id);
            });
        }
        writer.descriptor(DATA);
        writer.binary(id.as_bytes());
        message
    }
}

struct Consumer {
    role: Role,
    book: Arc<Book>,
}

impl Consumer {
    fn run(self) {
        if let Some(inside) = &self.role.inside {
            inside.enter();
        }
        for address in self.role.addresses.iter().cycle() {
            let is_empty = self.visit(*address).unwrap_or(false);
            if is_empty && self.book.is(&self.book.drain) {
                self.book.note(What::Drained);
                return;
            }
            thread::sleep(TRY_EVERY);
        }
    }

    /// Takes messages until there are none for a while, or enough; whether there were none at all.
    fn visit(&self, address: SocketAddr) -> Result<bool, ClientError> {
        let client = Client::connect(address, self.role.name, Sasl::Anonymous, SILENCE)?;
        let found = self.take(client);
        if found.is_err() {
            self.book.note(What::BrokenOff { q: self.role.queue.to_owned() });
        }
        found
    }

    fn take(&self, mut client: Client) -> Result<bool, ClientError> {
        let number = self.book.connections.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}/{number}", self.role.name);
        let link = client.receiver(self.role.queue, 50)?;
        self.book.note(What::Attached { inc: 0, link: name.clone() });
        let mut taken = Vec::new();
        while taken.len() < VISIT {
            let message = match client.receive() {
                Ok(message) => message,
                Err(ClientError::TimedOut(_)) => break,
                Err(error) => return Err(error),
            };
            let id = self.receive(&message, &name);
            client.accept(&message);
            self.book.note(What::Outcome {
                id: id.clone(),
                link: name.clone(),
                kind: Kind::Accepted,
            });
            taken.push(id);
            client.grant(link, 1);
        }
        client.close()?;
        let is_empty = taken.is_empty();
        for id in taken {
            self.book.note(What::Confirmed { id, link: name.clone(), by: "close".to_owned() });
        }
        Ok(is_empty)
    }

    fn receive(&self, message: &Message, link: &str) -> String {
        let body = data_of(&message.message).expect("one data section");
        let id = std::str::from_utf8(body).expect("an id").to_owned();
        let header = Head::read(&message.message).expect("it was checked").fields;
        self.book.note(What::Received(Received {
            id: id.clone(),
            q: self.role.queue.to_owned(),
            inc: 0,
            link: link.to_owned(),
            fa: header.first_acquirer.unwrap_or(false),
            dc: header.delivery_count.unwrap_or(0).into(),
            whole: true,
        }));
        id
    }
}
