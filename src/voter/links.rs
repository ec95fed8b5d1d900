//! A voter's connections: letters to and from the others, questions of clients.
//!
//! ```text
//!   to each other voter   one connection that we make: our letters, nothing back
//!   from each of them     one that it makes: its letters
//!   from a client         its questions, our replies
//!
//!   accept ─ TLS, if there is ─ preface, both within 5 s ─ frames ─▶ inputs ─▶ the voter
//! ```
//! Letters may be lost: a queue that is full, or a voter that is away, drops them, and the engine
//! sends again. A reply that a client does not take costs the client its connection.
//!
//! Invariants: three bounds, so that neither strangers nor clients keep a voter out: connections
//! that have not said yet who they are, for 5 s each, where the oldest makes room for others
//! (`greetings.rs`); clients; and one connection of each other voter, where the newer one ends the
//! older. Each has bounded memory; the queue of inputs is
//! bounded, and whoever fills it waits. The kernel ends what is dead at the other end within 8 s: a
//! silent link is no fault between two voters that follow. Bytes that don't decode end the
//! connection they came on.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use broker::ration::Ration;
use replica::limits::PAIRS_MAX;
use replica::voter::{ClientId, Frames, PREFACE_BYTES, Preface, Seat, frame};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};

use super::seat_of;
use super::settings::Settings;
use crate::driver::clock;
use crate::fatal::{Cause, Failure};
use crate::greetings::Greetings;
use crate::mutual::{self, Mutual, Stream};

/// Clients; those after them are refused. Two brokers a pair, and room for those that watch them
/// and for commands.
const CLIENTS_MAX: usize = 2 * PAIRS_MAX + 64;
/// Inputs that wait for the voter.
const INPUTS_MAX: usize = 256;
/// Letters that wait for one connection, and replies for one client.
const OUTPUTS_MAX: usize = 128;
const PREFACE_WITHIN: Duration = Duration::from_secs(5);
/// A link on which nothing can be written for so long is made anew.
const WRITE_WITHIN: Duration = Duration::from_secs(5);
const RECONNECT_EVERY: Duration = Duration::from_millis(100);
const READ_BYTES: usize = 64 * 1024;
/// Connections that were refused are logged one by one up to here.
const COMPLAINTS_PER_SECOND: u32 = 5;

/// What came.
pub(super) enum Input {
    /// From another voter.
    Letter { from: ClientId, seat: Seat, bytes: Vec<u8> },
    /// From a client.
    Question { client: ClientId, bytes: Vec<u8> },
}

/// What every connection that is taken shares.
struct Door {
    addresses: Vec<SocketAddr>,
    mutual: Option<Mutual>,
    inputs: mpsc::Sender<Input>,
    writers: Writers,
    clients: Semaphore,
    /// The newest connection of each other voter.
    newest: Mutex<BTreeMap<Seat, u64>>,
    complaints: Mutex<Ration<COMPLAINTS_PER_SECOND>>,
}

impl Door {
    /// Anybody may connect, and cause this line.
    fn complain(&self, from: SocketAddr, why: &str) {
        let Some(left_out) = lock(&self.complaints).line(clock()) else { return };
        if left_out > 0 {
            tracing::info!("{left_out} more connections were refused");
        }
        tracing::info!(%from, "a connection is refused: {why}");
    }
}

/// Queues of replies, by the number of the connection.
type Writers = Arc<Mutex<BTreeMap<u64, mpsc::Sender<Vec<u8>>>>>;

/// All connections.
pub(super) struct Links {
    address: SocketAddr,
    inputs: mpsc::Receiver<Input>,
    voters: BTreeMap<Seat, mpsc::Sender<Vec<u8>>>,
    writers: Writers,
}

impl Links {
    /// Listens, and begins to connect to the others.
    pub(super) async fn start(settings: &Settings) -> Result<Self, Failure> {
        let refused = |error: std::io::Error| {
            let message = format!("{} cannot be listened on: {error}", settings.listen);
            Failure::new(Cause::ListenFailed, message)
        };
        let listener = TcpListener::bind(settings.listen).await.map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        let mutual = settings.tls.as_ref().map(Mutual::load).transpose()?;
        let (sender, inputs) = mpsc::channel(INPUTS_MAX);
        let writers = Writers::default();
        let door = Door {
            addresses: settings.addresses.clone(),
            mutual: mutual.clone(),
            inputs: sender,
            writers: Arc::clone(&writers),
            clients: Semaphore::new(CLIENTS_MAX),
            newest: Mutex::default(),
            complaints: Mutex::default(),
        };
        tokio::spawn(accept(listener, Arc::new(door)));
        let mut voters = BTreeMap::new();
        for (at, address) in settings.addresses.iter().enumerate() {
            let seat = seat_of(at);
            if seat != settings.seat {
                let (letters, queue) = mpsc::channel(OUTPUTS_MAX);
                tokio::spawn(deliver(*address, settings.seat, mutual.clone(), queue));
                voters.insert(seat, letters);
            }
        }
        Ok(Self { address, inputs, voters, writers })
    }

    /// Where it listens.
    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next input.
    pub(super) async fn next(&mut self) -> Input {
        self.inputs.recv().await.expect("the listener never ends")
    }

    /// The next input, if there is one now.
    pub(super) fn try_next(&mut self) -> Option<Input> {
        self.inputs.try_recv().ok()
    }

    /// A letter. It may be lost.
    pub(super) fn send(&self, to: Seat, letter: &[u8]) {
        if let Some(letters) = self.voters.get(&to) {
            // A queue that is full is a voter that is away.
            let _ = letters.try_send(frame(letter));
        }
    }

    /// A reply, if its client is still there.
    pub(super) fn reply(&self, to: ClientId, reply: &[u8]) {
        let mut writers = lock(&self.writers);
        if writers.get(&to.0).is_some_and(|writer| writer.try_send(frame(reply)).is_err()) {
            writers.remove(&to.0);
        }
    }

    /// What came is nonsense: its connection ends.
    pub(super) fn refuse(&self, input: &Input, why: &str) {
        let (Input::Letter { from: ClientId(number), .. }
        | Input::Question { client: ClientId(number), .. }) = input;
        tracing::warn!(connection = number, "refused: {why}");
        lock(&self.writers).remove(number);
    }
}

fn lock<T>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes connections, each with a number of its own.
async fn accept(listener: TcpListener, door: Arc<Door>) {
    let mut greetings = Greetings::new(door.addresses.iter().map(SocketAddr::ip));
    for number in 0_u64.. {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("no connection taken: {error}");
                tokio::time::sleep(RECONNECT_EVERY).await;
                continue;
            }
        };
        let mut place = greetings.admit(from.ip());
        let door = Arc::clone(&door);
        tokio::spawn(async move {
            let greeted = tokio::select! {
                greeted = tokio::time::timeout(PREFACE_WITHIN, greet(stream, &door)) => {
                    greeted.unwrap_or_else(|_| Err("no preface in time".to_owned()))
                }
                _ = &mut place => Err("no preface, and others wait".to_owned()),
            };
            drop(place);
            match greeted {
                Ok((stream, voter)) => {
                    if let Err(why) = converse(stream, number, voter, &door).await {
                        tracing::debug!(connection = number, "ended: {why}");
                    }
                    lock(&door.writers).remove(&number);
                }
                Err(why) => door.complain(from, &why),
            }
        });
    }
}

/// The handshake and the preface: the connection, and whose it is.
async fn greet(stream: TcpStream, door: &Door) -> Result<(Box<dyn Stream>, Option<Seat>), String> {
    let told = |error: std::io::Error| error.to_string();
    let (mut stream, shown) = mutual::welcome(stream, door.mutual.as_ref()).await.map_err(told)?;
    let mut preface = [0; PREFACE_BYTES];
    stream.read_exact(&mut preface).await.map_err(told)?;
    let Preface::Voter(seat) = Preface::decode(preface).map_err(|error| error.to_string())? else {
        return Ok((stream, None));
    };
    let address = door.addresses.get(usize::from(seat.0) - 1);
    let address = *address.ok_or_else(|| format!("there is no seat {seat}"))?;
    if door.mutual.is_some() && !mutual::names(shown.as_deref(), address) {
        return Err(format!(
            "its certificate does not name {}, the address of seat {seat}",
            address.ip()
        ));
    }
    Ok((stream, Some(seat)))
}

/// One connection, from behind its preface to its end.
async fn converse(
    stream: Box<dyn Stream>,
    number: u64,
    voter: Option<Seat>,
    door: &Door,
) -> Result<(), String> {
    let told = |error: std::io::Error| error.to_string();
    let _room = match voter {
        Some(seat) => {
            if let Some(older) = lock(&door.newest).insert(seat, number) {
                lock(&door.writers).remove(&older);
            }
            None
        }
        None => Some(door.clients.try_acquire().map_err(|_| "there are too many clients")?),
    };
    let from = ClientId(number);
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (replies, mut queue) = mpsc::channel::<Vec<u8>>(OUTPUTS_MAX);
    lock(&door.writers).insert(number, replies);
    let reading = async {
        let mut frames = Frames::default();
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let read = reader.read(&mut buffer).await.map_err(told)?;
            if read == 0 {
                return Err::<(), String>("closed by its maker".to_owned());
            }
            frames.handle_bytes(&buffer[..read]);
            while let Some(bytes) = frames.poll_frame().map_err(|error| error.to_string())? {
                let input = match voter {
                    Some(seat) => Input::Letter { from, seat, bytes },
                    None => Input::Question { client: from, bytes },
                };
                door.inputs.send(input).await.map_err(|_| "the voter has ended")?;
            }
        }
    };
    let writing = async {
        // Ends when the queue does: the connection was refused, or its client takes nothing.
        while let Some(bytes) = queue.recv().await {
            let writing = async {
                writer.write_all(&bytes).await?;
                writer.flush().await
            };
            let written = tokio::time::timeout(WRITE_WITHIN, writing).await;
            written.map_err(|_| "its client takes nothing")?.map_err(told)?;
        }
        Err::<(), String>("refused".to_owned())
    };
    tokio::select! {
        ended = reading => ended,
        ended = writing => ended,
    }
}

async fn connect(
    address: SocketAddr,
    me: Seat,
    mutual: Option<&Mutual>,
) -> std::io::Result<Box<dyn Stream>> {
    let mut stream = mutual::dial(address, mutual).await?;
    stream.write_all(&Preface::Voter(me).encode()).await?;
    stream.flush().await?;
    Ok(stream)
}

/// Keeps a connection to another voter and sends it what is for it.
async fn deliver(
    address: SocketAddr,
    me: Seat,
    mutual: Option<Mutual>,
    mut letters: mpsc::Receiver<Vec<u8>>,
) {
    let mut said = String::new();
    loop {
        let connecting = connect(address, me, mutual.as_ref());
        match tokio::time::timeout(PREFACE_WITHIN, connecting).await {
            Ok(Ok(mut stream)) => {
                said.clear();
                // What waited is old: the engine has better to say now.
                while letters.try_recv().is_ok() {}
                while let Some(letter) = letters.recv().await {
                    let writing = async {
                        stream.write_all(&letter).await?;
                        stream.flush().await
                    };
                    if !matches!(tokio::time::timeout(WRITE_WITHIN, writing).await, Ok(Ok(()))) {
                        break;
                    }
                }
            }
            Ok(Err(error)) if error.to_string() != said => {
                said = error.to_string();
                tracing::info!("no link to {address}: {said}");
            }
            Ok(Err(_)) | Err(_) => {}
        }
        tokio::time::sleep(RECONNECT_EVERY).await;
        while letters.try_recv().is_ok() {}
    }
}
