//! Connections to the other member: a stream for each shard, and one for cards.
//!
//! ```text
//!   who follows dials a stream a shard     Hello first: says which shard
//!   the lower seat dials the one for cards  Card first
//!
//!   greeted ── Linked ─▶ the core of the shard: its ring has the socket (driver/links.rs)
//! ```
//! Invariants: who connects without a certificate that names the peer's address is not heard. A
//! task stays as long as its stream, to dial again or to end it. One connection for cards is in
//! use: the newer one. Who connects and says nothing keeps nobody out (`greetings.rs`).
//!
//! Failure: bytes that don't decode end their connection; a dial that fails is tried again.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use broker::ration::Ration;
use broker::shard::pair::StreamId;
use bytes::BytesMut;
use journal::ShardId;
use replica::card::Card;
use replica::wire::Frame;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::driver::{self, Linked};
use crate::greetings::Greetings;
use crate::mutual::{self, Mutual, Parts, Stream};
use crate::node::{Inbox, Input, core_of};

/// Connections that were refused are logged one by one up to here.
const COMPLAINTS_PER_SECOND: u32 = 5;
/// Cards that wait.
const CARDS_MAX: usize = 16;
const GREET_WITHIN: Duration = Duration::from_secs(5);
const RECONNECT_EVERY: Duration = Duration::from_millis(50);
const RECONNECT_MOST: Duration = Duration::from_millis(800);
const READ_BYTES: usize = 64 * 1024;

/// What the connection for cards says.
#[derive(Debug)]
pub(super) enum Heard {
    /// One stands, and cards go out by this; an older one counts no more.
    Up(u64, mpsc::Sender<Card>),
    /// A card came.
    Card(u64, Box<Card>),
    /// It broke.
    Down(u64),
}

/// What all connections share.
struct Shared {
    peer: SocketAddr,
    mutual: Option<Mutual>,
    cards: mpsc::Sender<Heard>,
    next: AtomicU64,
    /// None before the cores run.
    cores: Mutex<Vec<Inbox>>,
    shards: Mutex<u16>,
    complaints: Mutex<Ration<COMPLAINTS_PER_SECOND>>,
    /// Why the other member could not be reached, as it was said last.
    unreached: Mutex<String>,
}

/// The connections to the other member.
#[derive(Clone)]
pub(super) struct Streams(Arc<Shared>);

impl Streams {
    /// Listens; `dials_cards` makes this member the one that dials for cards.
    pub(super) fn start(
        listener: TcpListener,
        peer: SocketAddr,
        mutual: Option<Mutual>,
        dials_cards: bool,
    ) -> (Self, mpsc::Receiver<Heard>) {
        let (cards, heard) = mpsc::channel(CARDS_MAX);
        let shared = Shared {
            peer,
            mutual,
            cards,
            next: AtomicU64::new(1),
            cores: Mutex::default(),
            shards: Mutex::default(),
            complaints: Mutex::default(),
            unreached: Mutex::default(),
        };
        let streams = Self(Arc::new(shared));
        tokio::spawn(streams.clone().accept(listener));
        if dials_cards {
            tokio::spawn(streams.clone().dial_cards());
        }
        (streams, heard)
    }

    /// The cores run: streams may begin.
    pub(super) fn set_cores(&self, cores: Vec<Inbox>, shards: u16) {
        *lock(&self.0.shards) = shards;
        *lock(&self.0.cores) = cores;
    }

    /// Keeps a stream for this shard to the live, until the handle is aborted.
    pub(super) fn follow(&self, shard: ShardId) -> JoinHandle<()> {
        let streams = self.clone();
        tokio::spawn(async move {
            let mut pause = RECONNECT_EVERY;
            loop {
                if let Some(stream) = streams.dial().await {
                    let began = driver::clock();
                    streams.carry(shard, Reading::new(stream), None).await;
                    // Who is refused at once is so again, mostly.
                    let is_short = driver::clock() < began + RECONNECT_MOST;
                    pause = if is_short { pause * 2 } else { RECONNECT_EVERY };
                }
                pause = pause.min(RECONNECT_MOST);
                tokio::time::sleep(pause).await;
            }
        })
    }

    /// A connection to the other member; why there is none is said when it changes.
    async fn dial(&self) -> Option<Box<dyn Stream>> {
        let dialled = mutual::dial(self.0.peer, self.0.mutual.as_ref());
        let why = match tokio::time::timeout(GREET_WITHIN, dialled).await {
            Ok(Ok(stream)) => {
                lock(&self.0.unreached).clear();
                return Some(stream);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        let mut said = lock(&self.0.unreached);
        if *said != why {
            tracing::info!("no connection to the other member at {}: {why}", self.0.peer);
            *said = why;
        }
        None
    }

    async fn accept(self, listener: TcpListener) {
        let mut greetings = Greetings::new([self.0.peer.ip()]);
        loop {
            let (stream, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!("no connection of the other member taken: {error}");
                    tokio::time::sleep(RECONNECT_EVERY).await;
                    continue;
                }
            };
            let mut place = greetings.admit(from.ip());
            let streams = self.clone();
            tokio::spawn(async move {
                let greeted = tokio::select! {
                    greeted = tokio::time::timeout(GREET_WITHIN, streams.greet(stream)) => {
                        greeted.unwrap_or_else(|_| Err("it said nothing".to_owned()))
                    }
                    _ = &mut place => Err("it said nothing, and others wait".to_owned()),
                };
                drop(place);
                match greeted {
                    Ok((stream, Frame::Hello(hello))) => {
                        let shard = hello.shard;
                        streams.carry(shard, stream, Some(Frame::Hello(hello))).await;
                    }
                    Ok((stream, Frame::Card(card))) => streams.cards(stream, Some(card)).await,
                    Ok((_, frame)) => {
                        streams.complain(from, &format!("it begins with {}", frame.name()));
                    }
                    Err(why) => streams.complain(from, &why),
                }
            });
        }
    }

    /// Anybody may connect, and cause this line.
    fn complain(&self, from: SocketAddr, why: &str) {
        let Some(left_out) = lock(&self.0.complaints).line(driver::clock()) else { return };
        if left_out > 0 {
            tracing::info!("{left_out} more connections to `replication` were refused");
        }
        tracing::info!(%from, "a connection to `replication` is over: {why}");
    }

    /// The handshake, and the first frame.
    async fn greet(&self, stream: tokio::net::TcpStream) -> Result<(Reading, Frame), String> {
        let mutual = self.0.mutual.as_ref();
        let welcomed = mutual::welcome(stream, mutual).await;
        let (stream, shown) = welcomed.map_err(|error| error.to_string())?;
        if mutual.is_some() && !mutual::names(shown.as_deref(), self.0.peer) {
            return Err(format!(
                "its certificate does not name {}, the address of the peer",
                self.0.peer.ip()
            ));
        }
        let mut reading = Reading::new(stream);
        let first = reading.next().await?;
        Ok((reading, first))
    }

    // ---- a shard's stream ----------------------------------------------------------------------

    /// From its beginning to its end.
    async fn carry(&self, shard: ShardId, stream: Reading, first: Option<Frame>) {
        let inbox = {
            let cores = lock(&self.0.cores);
            let there = shard.0 < *lock(&self.0.shards);
            cores.get(core_of(shard, cores.len())).filter(|_| there).cloned()
        };
        let Some(inbox) = inbox else { return };
        let ((socket, tls), received) = match stream.into_parts() {
            Ok(parts) => parts,
            Err(error) => return tracing::info!("a stream was lost on its way: {error}"),
        };
        let stream = StreamId(self.0.next.fetch_add(1, Ordering::Relaxed));
        let (held, mut ended) = oneshot::channel();
        let socket = Some(socket);
        let linked = Linked { shard, stream, socket, tls, first, received, held };
        inbox.put(Input::Link(Box::new(linked)));
        // Where this task is aborted the stream is to end, and where it has ended nobody minds.
        let _unlink = Unlink { inbox, stream };
        let _ = (&mut ended).await;
    }

    // ---- cards ---------------------------------------------------------------------------------

    async fn dial_cards(self) {
        loop {
            if let Some(stream) = self.dial().await {
                self.cards(Reading::new(stream), None).await;
            }
            tokio::time::sleep(RECONNECT_EVERY).await;
        }
    }

    async fn cards(&self, mut stream: Reading, first: Option<Box<Card>>) {
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        let (outbox, mut cards) = mpsc::channel::<Card>(CARDS_MAX);
        let mut writer = stream.writer.take().expect("nobody writes yet");
        if self.0.cards.send(Heard::Up(number, outbox)).await.is_err() {
            return;
        }
        let gone = |_| "the process ends".to_owned();
        let reading = async {
            if let Some(card) = first {
                self.0.cards.send(Heard::Card(number, card)).await.map_err(gone)?;
            }
            loop {
                let Frame::Card(card) = stream.next().await? else {
                    return Err::<(), String>("a frame out of turn".to_owned());
                };
                self.0.cards.send(Heard::Card(number, card)).await.map_err(gone)?;
            }
        };
        let writing = async {
            while let Some(card) = cards.recv().await {
                let mut bytes = BytesMut::new();
                Frame::Card(Box::new(card)).encode(&mut bytes);
                let written = async {
                    writer.write_all(&bytes).await?;
                    writer.flush().await
                };
                written.await.map_err(|error: std::io::Error| error.to_string())?;
            }
            Err::<(), String>("a newer one took its place".to_owned())
        };
        let ended = tokio::select! {
            ended = reading => ended,
            ended = writing => ended,
        };
        if let Err(why) = ended {
            tracing::debug!("the connection for cards ended: {why}");
        }
        drop(self.0.cards.send(Heard::Down(number)).await);
    }
}

fn lock<T>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends a stream whose task ends.
struct Unlink {
    inbox: Inbox,
    stream: StreamId,
}

impl Drop for Unlink {
    fn drop(&mut self) {
        self.inbox.put(Input::Unlink(self.stream));
    }
}

/// A connection, read frame by frame.
struct Reading {
    reader: ReadHalf<Box<dyn Stream>>,
    writer: Option<tokio::io::WriteHalf<Box<dyn Stream>>>,
    received: BytesMut,
}

impl Reading {
    fn new(stream: Box<dyn Stream>) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self { reader, writer: Some(writer), received: BytesMut::new() }
    }

    /// The connection itself, its TLS, and what came and was not read as a frame.
    fn into_parts(self) -> std::io::Result<(Parts, BytesMut)> {
        let writer = self.writer.expect("nobody writes yet");
        Ok((self.reader.unsplit(writer).into_parts()?, self.received))
    }

    /// The next frame, or why there is none.
    async fn next(&mut self) -> Result<Frame, String> {
        loop {
            let frame = Frame::decode(&mut self.received).map_err(|error| error.to_string())?;
            if let Some(frame) = frame {
                return Ok(frame);
            }
            self.received.reserve(READ_BYTES);
            let read = self.reader.read_buf(&mut self.received).await;
            if read.map_err(|error| error.to_string())? == 0 {
                return Err("closed by the other member".to_owned());
            }
        }
    }
}
