//! TLS of one connection, without a socket: ciphertext in, plaintext out, and back.
//!
//! ```text
//!   from the socket ──▶ receive ──▶ each piece of plaintext, in order
//!   plaintext ────────▶ send ─────▶ appended to what goes to the socket
//!                       flush ────▶ appended: what TLS itself has to say (handshake, key update,
//!                                   alert), after every `receive`
//! ```
//! It wraps the buffered interface of `rustls`, for both sides. There is no clock, file or socket
//! here; a session can be handed to another thread between two calls.
//!
//! Invariants: everything received is turned to plaintext before `receive` returns, so nothing but
//! part of a record waits inside; `send` encrypts at once and keeps nothing, once the handshake is
//! over. So what a session holds is bounded by a record and what one call is given.
//!
//! Keys wear out: those of AES-GCM seal 2^24 records. Under TLS 1.3 `rustls` changes them in time
//! by itself. Under TLS 1.2 it would say `close_notify`, drop all that is sent from then on and
//! report success; so records are counted here, [`TlsSession::is_worn`] asks for a new connection
//! while there is time for a goodbye, and at the end `send` fails.
//!
//! Failure: a [`rustls::Error`] is final; the alert for the peer is then waiting to be flushed.

use std::io::{BufRead, Write};
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection,
    SupportedCipherSuite,
};

/// Bytes of plaintext that a record holds at most [RFC 5246, 6.2.1].
const RECORD_BYTES_MAX: usize = 1 << 14;

/// Records that TLS itself seals with the keys of TLS 1.2: `Finished`, and alerts.
const OWN_RECORDS: u64 = 8;

/// From the last of so many parts of its keys' life on, a session is worn.
const WORN_SHARE: u64 = 16;

/// One connection's TLS.
#[derive(Debug)]
pub struct TlsSession {
    connection: Connection,
    peer_ended: bool,
    /// Records sealed by `send`.
    records: u64,
    /// How many there may be; known when the handshake is over.
    records_max: Option<u64>,
}

impl TlsSession {
    /// The side that was connected to.
    ///
    /// # Errors
    /// The configuration does not fit its provider.
    pub fn server(config: Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        Ok(Self::new(ServerConnection::new(config)?.into()))
    }

    /// The side that connects, to a server of this name. Its hello is ready to be flushed.
    ///
    /// # Errors
    /// The configuration does not fit its provider.
    pub fn client(
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<Self, rustls::Error> {
        Ok(Self::new(ClientConnection::new(config, name)?.into()))
    }

    fn new(mut connection: Connection) -> Self {
        // Whoever calls bounds what it gives; a limit here would cut it silently.
        connection.set_buffer_limit(None);
        Self { connection, peer_ended: false, records: 0, records_max: None }
    }

    /// Whether keys are still being agreed on.
    pub fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
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

    /// The protocol version and cipher suite agreed on, for the log.
    pub fn agreed(&self) -> Option<String> {
        let version = self.connection.protocol_version()?;
        let suite = self.connection.negotiated_cipher_suite()?.suite();
        Some(format!("{version:?} {suite:?}"))
    }

    /// The certificates that the peer has shown and proved to own, its own first.
    pub fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        self.connection.peer_certificates().unwrap_or_default()
    }

    /// Takes bytes from the socket, and gives out the plaintext that they hold, piece by piece.
    ///
    /// # Errors
    /// The peer broke the protocol, or shows what is not to be trusted. Flush, then close.
    pub fn receive(
        &mut self,
        mut bytes: &[u8],
        mut plain: impl FnMut(&[u8]),
    ) -> Result<(), rustls::Error> {
        while !bytes.is_empty() && !self.peer_ended {
            // It refuses only where plaintext was left inside, and none is.
            let taken = self.connection.read_tls(&mut bytes);
            taken.map_err(|error| rustls::Error::General(error.to_string()))?;
            self.peer_ended |= self.connection.process_new_packets()?.peer_has_closed();
            if self.records_max.is_none() {
                self.records_max = records_max(&self.connection);
            }
            let mut reader = self.connection.reader();
            // An error is only that there is none, or none any more.
            while let Ok(piece) = reader.fill_buf()
                && !piece.is_empty()
            {
                plain(piece);
                let length = piece.len();
                reader.consume(length);
            }
        }
        Ok(())
    }

    /// Encrypts all of `plain` and appends it. During the handshake it is kept until the end of
    /// that.
    ///
    /// # Errors
    /// The session has failed before, or its keys are used up: nothing was sent.
    pub fn send(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), rustls::Error> {
        self.records += plain.len().div_ceil(RECORD_BYTES_MAX) as u64;
        if self.records_max.is_some_and(|max| self.records > max) {
            let why = "the keys of this TLS 1.2 connection have sealed all records that they may";
            return Err(rustls::Error::General(why.to_owned()));
        }
        let written = self.connection.writer().write_all(plain);
        written.map_err(|error| rustls::Error::General(error.to_string()))?;
        self.flush(out);
        Ok(())
    }

    /// Appends what TLS has to say to the peer.
    pub fn flush(&mut self, out: &mut Vec<u8>) {
        while self.connection.wants_write() {
            let written = self.connection.write_tls(out);
            written.expect("a vector takes all that is written");
        }
    }

    /// Says that we send nothing more, and appends that.
    pub fn end(&mut self, out: &mut Vec<u8>) {
        self.connection.send_close_notify();
        self.flush(out);
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
fn records_max(connection: &Connection) -> Option<u64> {
    let suite = connection.negotiated_cipher_suite().filter(|_| !connection.is_handshaking())?;
    Some(match suite {
        SupportedCipherSuite::Tls12(suite) => {
            suite.common.confidentiality_limit.saturating_sub(OWN_RECORDS)
        }
        // Its keys are changed on the way.
        SupportedCipherSuite::Tls13(_) => u64::MAX,
    })
}
