//! TLS of one connection, without a socket: ciphertext in, plaintext out, and back.
//!
//! ```text
//!   from the socket ──▶ receive ──▶ each piece of plaintext, in order
//!   plaintext ────────▶ send ─────▶ appended to what goes to the socket
//!                       flush ────▶ appended: what TLS itself has to say (handshake, key update,
//!                                   alert), after every `receive`
//!
//!   receive   rest of the last call | bytes ──▶ steps of `rustls`, until it is Still
//!                                                 plaintext: given out     own words: kept for
//!             the rest, less than a record <──    `flush`                  the peer has ended
//! ```
//! It wraps the unbuffered interface of `rustls`, for both sides: that one opens records where they
//! lie, so that what was received is copied in once and out once, and nothing is cleared first.
//! There is no clock, file or socket here; a session can be handed to another thread between two
//! calls.
//!
//! Invariants: everything received is turned to plaintext before `receive` returns, so nothing but
//! part of a record waits inside, or of a message of the handshake (`REST_BYTES_MAX`); `send`
//! encrypts at once and keeps nothing, once the handshake is over. So what a session holds is
//! bounded by a record and what one call is given. `rustls` remembers places in what it has not
//! used up: each of its steps is given the rest as it stands, and after an error none is made but
//! to fetch the alert.
//!
//! Keys wear out: those of AES-GCM seal 2^24 records. Under TLS 1.3 `rustls` changes them in time
//! by itself. Under TLS 1.2 it would say `close_notify` and refuse to go on; so records are counted
//! here, [`TlsSession::is_worn`] asks for a new connection while there is time for a goodbye, and
//! at the end `send` fails.
//!
//! Failure: a [`rustls::Error`] is final; the alert for the peer is then waiting to be flushed.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus, WriteTraffic,
};
use rustls::{ClientConfig, CommonState, Error, RootCertStore, ServerConfig, SupportedCipherSuite};

/// Bytes of plaintext that a record holds at most [RFC 5246, 6.2.1].
const RECORD_BYTES_MAX: usize = 1 << 14;

/// What a record may be longer than its plaintext: header, type, nonce and tag.
const RECORD_EXTRA_BYTES: usize = 64;

/// Of a peer that sends so many bytes at once the next ones are expected.
const LONG_BYTES: usize = 4096;

/// Bytes that may wait for more: a message of the handshake, which has at most 64 KiB, in records
/// that are not tiny.
const REST_BYTES_MAX: usize = 128 * 1024;

/// Records that TLS itself seals with the keys of TLS 1.2: `Finished`, and alerts.
const OWN_RECORDS: u64 = 8;

/// From the last of so many parts of its keys' life on, a session is worn.
const WORN_SHARE: u64 = 16;

/// One connection's TLS.
#[derive(Debug)]
pub struct TlsSession {
    side: Side,
    /// What was received and is not used up.
    rest: Vec<u8>,
    /// What TLS has to say to the peer.
    own: Vec<u8>,
    /// Plaintext that waits for the end of the handshake.
    early: Vec<u8>,
    peer_ended: bool,
    failed: Option<Error>,
    /// Records sealed by `send`.
    records: u64,
    /// How many there may be; known when the handshake is over.
    records_max: Option<u64>,
}

enum Side {
    Server(Box<UnbufferedServerConnection>),
    Client(Box<UnbufferedClientConnection>),
}

impl fmt::Debug for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Server(_) => "Server",
            Self::Client(_) => "Client",
        })
    }
}

/// What is done with the state that a step of `rustls` comes to.
struct Work<'a> {
    plain: &'a mut dyn FnMut(&[u8]),
    own: &'a mut Vec<u8>,
    say: Say<'a>,
}

/// What we want to say, once `rustls` lets us.
#[derive(Clone, Copy)]
enum Say<'a> {
    Nothing,
    Data(&'a [u8]),
    Goodbye,
}

/// What became of a step.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// There may be another one.
    Further,
    /// The peer sends nothing more; there may be another step.
    PeerEnded,
    /// Nothing is left to be done.
    Still,
    /// What we wanted to say is said.
    Said,
}

impl TlsSession {
    /// The side that was connected to.
    ///
    /// # Errors
    /// The configuration does not fit its provider.
    pub fn server(config: Arc<ServerConfig>) -> Result<Self, Error> {
        let connection = UnbufferedServerConnection::new(config)?;
        Ok(Self::new(Side::Server(Box::new(connection))))
    }

    /// The side that connects, to a server of this name. Its hello is ready to be flushed.
    ///
    /// # Errors
    /// The configuration does not fit its provider.
    pub fn client(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Self, Error> {
        let connection = UnbufferedClientConnection::new(config, name)?;
        Ok(Self::new(Side::Client(Box::new(connection))))
    }

    fn new(side: Side) -> Self {
        Self {
            side,
            rest: Vec::new(),
            own: Vec::new(),
            early: Vec::new(),
            peer_ended: false,
            failed: None,
            records: 0,
            records_max: None,
        }
    }

    fn state(&self) -> &CommonState {
        match &self.side {
            Side::Server(connection) => connection,
            Side::Client(connection) => connection,
        }
    }

    /// Whether keys are still being agreed on.
    pub fn is_handshaking(&self) -> bool {
        self.state().is_handshaking()
    }

    /// Whether the peer has said that it sends nothing more.
    pub fn has_peer_ended(&self) -> bool {
        self.peer_ended
    }

    /// Whether its keys seal only few records more, a sixteenth of what they could: whoever uses it
    /// should say goodbye, and connect again.
    pub fn is_worn(&self) -> bool {
        self.records_max.is_some_and(|max| self.records >= max - max / WORN_SHARE)
    }

    /// Bytes that it keeps of a record, or of a message of the handshake, that is not whole.
    pub fn held_bytes(&self) -> usize {
        self.rest.capacity()
    }

    /// The protocol version and cipher suite agreed on, for the log.
    pub fn agreed(&self) -> Option<String> {
        let version = self.state().protocol_version()?;
        let suite = self.state().negotiated_cipher_suite()?.suite();
        Some(format!("{version:?} {suite:?}"))
    }

    /// The certificates that the peer has shown and proved to own, its own first.
    pub fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        self.state().peer_certificates().unwrap_or_default()
    }

    /// Takes bytes from the socket, and gives out the plaintext that they hold, piece by piece.
    ///
    /// # Errors
    /// The peer broke the protocol, or shows what is not to be trusted. Flush, then close.
    pub fn receive(&mut self, bytes: &[u8], mut plain: impl FnMut(&[u8])) -> Result<(), Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.peer_ended {
            return Ok(());
        }
        if self.rest.is_empty() && bytes.len() > LONG_BYTES {
            // The end of its last record follows, most likely, and finds room.
            self.rest.reserve_exact(bytes.len() + RECORD_BYTES_MAX + RECORD_EXTRA_BYTES);
        }
        self.rest.extend_from_slice(bytes);
        self.steps(Say::Nothing, &mut plain)?;
        if self.records_max.is_none() {
            self.records_max = records_max(self.state());
        }
        if self.rest.len() > REST_BYTES_MAX {
            return Err(self.fail(Error::General("a handshake in crumbs".to_owned())));
        }
        Ok(())
    }

    /// Encrypts all of `plain` and appends it. During the handshake it is kept until the end of
    /// that.
    ///
    /// # Errors
    /// The session has failed before, or its keys are used up: nothing was sent.
    pub fn send(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.records += plain.len().div_ceil(RECORD_BYTES_MAX) as u64;
        if self.records_max.is_some_and(|max| self.records > max) {
            let why = "the keys of this TLS 1.2 connection have sealed all records that they may";
            return Err(Error::General(why.to_owned()));
        }
        if self.is_handshaking() {
            self.early.extend_from_slice(plain);
            self.flush(out);
            return Ok(());
        }
        self.flush(out);
        self.say(Say::Data(plain), out)
    }

    /// Appends what TLS has to say to the peer.
    pub fn flush(&mut self, out: &mut Vec<u8>) {
        if self.is_handshaking() && self.failed.is_none() {
            // The first step of a client is made without anything received. An error is told to
            // whoever receives or sends next.
            let _ = self.steps(Say::Nothing, &mut |_| ());
        }
        out.append(&mut self.own);
        if !self.early.is_empty() && !self.is_handshaking() && self.failed.is_none() {
            let early = std::mem::take(&mut self.early);
            let _ = self.say(Say::Data(&early), out);
        }
    }

    /// Says that we send nothing more, and appends that. Before the handshake is over nothing can
    /// be said.
    pub fn end(&mut self, out: &mut Vec<u8>) {
        self.flush(out);
        if !self.is_handshaking() && self.failed.is_none() {
            // One that can't say it just ends.
            let _ = self.say(Say::Goodbye, out);
        }
    }

    fn say(&mut self, say: Say<'_>, out: &mut Vec<u8>) -> Result<(), Error> {
        std::mem::swap(&mut self.own, out);
        let said = self.steps(say, &mut |_| ());
        std::mem::swap(&mut self.own, out);
        said
    }

    /// Makes steps until there is nothing left to be done, or what we wanted to say is said.
    fn steps(&mut self, say: Say<'_>, plain: &mut dyn FnMut(&[u8])) -> Result<(), Error> {
        let mut used = 0;
        let outcome = loop {
            let mut work = Work { plain, own: &mut self.own, say };
            let (discard, step) = step(&mut self.side, &mut self.rest[used..], &mut work);
            used += discard;
            match step {
                Ok(Step::Further) => {}
                Ok(Step::PeerEnded) => self.peer_ended = true,
                Ok(Step::Said) => break Ok(()),
                Ok(Step::Still) if matches!(say, Say::Nothing) => break Ok(()),
                Ok(Step::Still) => break Err(Error::General("TLS takes no more words".to_owned())),
                Err(error) => break Err(error),
            }
        };
        if let Err(error) = outcome {
            return Err(self.fail(error));
        }
        if used == self.rest.len() || self.peer_ended {
            // Few are kept: it is for the next moment, and there may be ten thousand of them.
            self.rest = Vec::new();
        } else {
            self.rest.drain(..used);
        }
        Ok(())
    }

    /// Remembers the error, and takes the alert out.
    fn fail(&mut self, error: Error) -> Error {
        while self.state().wants_write() {
            let mut work = Work { plain: &mut |_| (), own: &mut self.own, say: Say::Nothing };
            if step(&mut self.side, &mut self.rest, &mut work).1.is_err() {
                break;
            }
        }
        self.rest = Vec::new();
        self.failed = Some(error.clone());
        error
    }
}

/// One step over what was received; how many bytes of that are used up.
fn step(side: &mut Side, rest: &mut [u8], work: &mut Work<'_>) -> (usize, Result<Step, Error>) {
    match side {
        Side::Server(connection) => take(connection.process_tls_records(rest), work),
        Side::Client(connection) => take(connection.process_tls_records(rest), work),
    }
}

fn take<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    work: &mut Work<'_>,
) -> (usize, Result<Step, Error>) {
    let UnbufferedStatus { mut discard, state } = status;
    let step = match state {
        Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
            match traffic.next_record() {
                Some(Ok(record)) => {
                    discard += record.discard;
                    (work.plain)(record.payload);
                }
                Some(Err(error)) => break Err(error),
                None => break Ok(Step::Further),
            }
        },
        Ok(ConnectionState::EncodeTlsData(data)) => encode(data, work.own),
        Ok(ConnectionState::TransmitTlsData(data)) => {
            data.done();
            Ok(Step::Further)
        }
        Ok(ConnectionState::PeerClosed) => Ok(Step::PeerEnded),
        Ok(ConnectionState::WriteTraffic(traffic)) => match work.say {
            Say::Nothing => Ok(Step::Still),
            Say::Data(plain) => seal(traffic, plain, work.own),
            Say::Goodbye => say_goodbye(traffic, work.own),
        },
        Ok(ConnectionState::BlockedHandshake | ConnectionState::Closed) => Ok(Step::Still),
        // Early data is never allowed; other states are of later versions.
        Ok(other) => Err(Error::General(format!("{other:?} was not asked for"))),
        Err(error) => Err(error),
    };
    (discard, step)
}

/// Words of its own.
fn encode<Data>(mut data: EncodeTlsData<'_, Data>, out: &mut Vec<u8>) -> Result<Step, Error> {
    let start = out.len();
    loop {
        match data.encode(&mut out[start..]) {
            Ok(_) => return Ok(Step::Further),
            Err(EncodeError::InsufficientSize(short)) => out.resize(start + short.required_size, 0),
            Err(error @ EncodeError::AlreadyEncoded) => {
                return Err(Error::General(error.to_string()));
            }
        }
    }
}

fn seal<Data>(
    mut traffic: WriteTraffic<'_, Data>,
    plain: &[u8],
    out: &mut Vec<u8>,
) -> Result<Step, Error> {
    let extra = (plain.len() / RECORD_BYTES_MAX + 1) * RECORD_EXTRA_BYTES;
    fill(out, plain.len() + extra, |out| traffic.encrypt(plain, out))
}

fn say_goodbye<Data>(
    mut traffic: WriteTraffic<'_, Data>,
    out: &mut Vec<u8>,
) -> Result<Step, Error> {
    fill(out, RECORD_EXTRA_BYTES, |out| traffic.queue_close_notify(out))
}

/// Appends what is written into a room of about so many bytes, or more if that is too little.
fn fill(
    out: &mut Vec<u8>,
    bytes: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, EncryptError>,
) -> Result<Step, Error> {
    let start = out.len();
    out.resize(start + bytes, 0);
    loop {
        match write(&mut out[start..]) {
            Ok(written) => {
                out.truncate(start + written);
                return Ok(Step::Said);
            }
            Err(EncryptError::InsufficientSize(short)) => {
                out.resize(start + short.required_size, 0);
            }
            Err(error @ EncryptError::EncryptExhausted) => {
                out.truncate(start);
                return Err(Error::General(error.to_string()));
            }
        }
    }
}

/// The certificates in the contents of a PEM file, at least one.
///
/// # Errors
/// There is none, or one cannot be read; the file is named.
pub fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let chain = chain.map_err(|error| format!("{}: {error}", path.display()))?;
    if chain.is_empty() {
        return Err(format!("{}: there is no certificate in it (PEM)", path.display()));
    }
    Ok(chain)
}

/// Those in the contents of a PEM file, as the CAs that are trusted.
///
/// # Errors
/// As [`certificates`], or one is of no use as a CA.
pub fn roots(path: &Path, pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, pem)? {
        roots.add(certificate).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(roots)
}

/// How many records `send` may seal, if the handshake is over.
fn records_max(state: &CommonState) -> Option<u64> {
    let suite = state.negotiated_cipher_suite().filter(|_| !state.is_handshaking())?;
    Some(match suite {
        SupportedCipherSuite::Tls12(suite) => {
            suite.common.confidentiality_limit.saturating_sub(OWN_RECORDS)
        }
        // Its keys are changed on the way.
        SupportedCipherSuite::Tls13(_) => u64::MAX,
    })
}
