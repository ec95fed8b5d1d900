//! Connections to the voters: one each, kept, and made again when it breaks.
//!
//! ```text
//!   control, or a voter ── question ──▶ link of a seat ══ preface, frames ══▶ voter
//!                       ◀── Up, Reply, Down ──┘
//! ```
//! A voter has such links to the others, for what it passes on to the one that leads.
//!
//! Failure: a link that breaks, or that can't be made, is tried again soon; what it was asked has
//! no answer, and the register's client (`replica::voter::Client`) says what that means.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use replica::voter::{Frames, Preface, Seat, frame};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

use crate::mutual::{self, Mutual};

/// Questions that wait for one link.
const QUESTIONS_MAX: usize = 64;
/// What comes from all links and waits for the control thread.
const HEARD_MAX: usize = 256;
const CONNECT_WITHIN: Duration = Duration::from_secs(1);
const RECONNECT_EVERY: Duration = Duration::from_millis(50);
/// Of a voter's links: one of before them refuses each.
const RECONNECT_RELAYS_EVERY: Duration = Duration::from_millis(500);
const READ_BYTES: usize = 16 * 1024;

/// What a link says.
#[derive(Debug)]
pub(crate) enum Heard {
    /// It stands.
    Up(Seat),
    /// A voter's reply.
    Reply(Seat, Vec<u8>),
    /// It broke.
    Down(Seat),
}

/// The links.
pub(crate) struct Voters {
    heard: mpsc::Receiver<Heard>,
    links: BTreeMap<Seat, mpsc::Sender<Vec<u8>>>,
}

impl Voters {
    /// Begins to connect to all of them.
    pub(super) fn start(addresses: &[SocketAddr], mutual: Option<&Mutual>) -> Self {
        Self::connect(addresses, Preface::Client, RECONNECT_EVERY, mutual)
    }

    /// Begins to connect to the others of a voter, which passes questions on to them.
    pub(crate) fn start_relays(
        me: Seat,
        addresses: &[SocketAddr],
        mutual: Option<&Mutual>,
    ) -> Self {
        Self::connect(addresses, Preface::Relay(me), RECONNECT_RELAYS_EVERY, mutual)
    }

    fn connect(
        addresses: &[SocketAddr],
        preface: Preface,
        every: Duration,
        mutual: Option<&Mutual>,
    ) -> Self {
        let (sender, heard) = mpsc::channel(HEARD_MAX);
        let seats = addresses.iter().zip((1..).map(Seat));
        let others = seats.filter(|(_, seat)| preface != Preface::Relay(*seat));
        let links = others.map(|(address, seat)| {
            let (questions, queue) = mpsc::channel(QUESTIONS_MAX);
            let (address, mutual, heard) = (*address, mutual.cloned(), sender.clone());
            let link = Link { seat, address, preface, every, mutual, heard };
            tokio::spawn(link.keep(queue));
            (seat, questions)
        });
        Self { heard, links: links.collect() }
    }

    /// What a link says next.
    pub(crate) async fn next(&mut self) -> Heard {
        self.heard.recv().await.expect("links never end")
    }

    /// Asks; what a link can't take now is lost, which its client takes for silence.
    pub(crate) fn ask(&self, seat: Seat, question: Vec<u8>) {
        let asked = self.links.get(&seat).map(|link| link.try_send(question));
        if let Some(Err(error)) = asked {
            tracing::debug!(seat = seat.0, "a question to a voter is lost: {error}");
        }
    }
}

struct Link {
    seat: Seat,
    address: SocketAddr,
    preface: Preface,
    every: Duration,
    mutual: Option<Mutual>,
    heard: mpsc::Sender<Heard>,
}

impl Link {
    async fn keep(self, mut questions: mpsc::Receiver<Vec<u8>>) {
        let mut said = String::new();
        loop {
            match tokio::time::timeout(CONNECT_WITHIN, self.connect()).await {
                Ok(Ok(stream)) => {
                    said.clear();
                    // What waited was asked of a link that is gone.
                    while questions.try_recv().is_ok() {}
                    if self.heard.send(Heard::Up(self.seat)).await.is_err() {
                        return;
                    }
                    let why = self.converse(stream, &mut questions).await;
                    tracing::debug!(seat = self.seat.0, "link to {} ended: {why}", self.address);
                    if self.heard.send(Heard::Down(self.seat)).await.is_err() {
                        return;
                    }
                }
                Ok(Err(error)) if error.to_string() != said => {
                    said = error.to_string();
                    tracing::info!("no link to voter {} at {}: {said}", self.seat, self.address);
                }
                Ok(Err(_)) | Err(_) => {}
            }
            tokio::time::sleep(self.every).await;
        }
    }

    async fn connect(&self) -> std::io::Result<Box<dyn mutual::Stream>> {
        let mut stream = mutual::dial(self.address, self.mutual.as_ref()).await?;
        stream.write_all(&self.preface.encode()).await?;
        stream.flush().await?;
        Ok(stream)
    }

    /// Until it breaks: why.
    async fn converse(
        &self,
        stream: Box<dyn mutual::Stream>,
        questions: &mut mpsc::Receiver<Vec<u8>>,
    ) -> String {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let reading = async {
            let mut frames = Frames::default();
            let mut buffer = vec![0; READ_BYTES];
            loop {
                let read = reader.read(&mut buffer).await.map_err(|error| error.to_string())?;
                if read == 0 {
                    return Err::<(), String>("closed by the voter".to_owned());
                }
                frames.handle_bytes(&buffer[..read]);
                while let Some(bytes) = frames.poll_frame().map_err(|error| error.to_string())? {
                    let heard = self.heard.send(Heard::Reply(self.seat, bytes)).await;
                    heard.map_err(|_| "the process ends")?;
                }
            }
        };
        let writing = async {
            while let Some(question) = questions.recv().await {
                let written = async {
                    writer.write_all(&frame(&question)).await?;
                    writer.flush().await
                };
                written.await.map_err(|error| error.to_string())?;
            }
            Err::<(), String>("the process ends".to_owned())
        };
        let ended = tokio::select! {
            ended = reading => ended,
            ended = writing => ended,
        };
        ended.err().unwrap_or_default()
    }
}
