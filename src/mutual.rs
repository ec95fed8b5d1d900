//! Connections between members and voters: each side shows a certificate of the one authority.
//!
//! ```text
//!   we connect   the other's certificate is of our CA, and names the address that we called
//!   we accept    the client's certificate is of our CA; a voter's names the address of its seat,
//!                a member's that of the peer
//! ```
//! So whoever reaches the port without a certificate can ask nothing, and who has one can't speak
//! for a seat that is not his. The files are read at the start. What we sign for somebody who
//! connects is signed on another thread, [`SIGNING_MAX`] at once.

use std::io;
use std::net::{SocketAddr, TcpStream as Socket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::verify_server_name;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{Acceptor, NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, Connection, ServerConfig};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::{LazyConfigAcceptor, TlsConnector};

use crate::driver::{certificates, roots};
use crate::fatal::{Cause, Failure};
use crate::tls::read;

/// The three files: all of them, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Files {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) ca: PathBuf,
}

impl Files {
    /// What a configuration says of them.
    ///
    /// # Errors
    /// Only some of them are given.
    pub(crate) fn of(
        cert: Option<PathBuf>,
        key: Option<PathBuf>,
        ca: Option<PathBuf>,
    ) -> Result<Option<Self>, String> {
        match (cert, key, ca) {
            (Some(cert), Some(key), Some(ca)) => Ok(Some(Self { cert, key, ca })),
            (None, None, None) => Ok(None),
            (Some(_) | None, Some(_) | None, Some(_) | None) => {
                Err("tls-cert, tls-key and tls-ca go together".to_owned())
            }
        }
    }
}

/// What connections are made and taken with.
#[derive(Clone, Debug)]
pub(crate) struct Mutual {
    pub(crate) client: Arc<ClientConfig>,
    pub(crate) server: Arc<ServerConfig>,
    signing: Arc<Semaphore>,
}

/// Signatures for those who connect that are under way at once, each on a thread of its own.
const SIGNING_MAX: usize = 4;

impl Mutual {
    /// Reads the files. TLS 1.3 alone: both ends are ours.
    pub(crate) fn load(files: &Files) -> Result<Self, Failure> {
        Self::build(files).map_err(|why| Failure::new(Cause::TlsUnusable, why))
    }

    fn build(files: &Files) -> Result<Self, String> {
        let provider = Arc::new(default_provider());
        let chain = certificates(&files.cert, &read(&files.cert)?)?;
        let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?)
            .map_err(|error| format!("{}: no private key: {error}", files.key.display()))?;
        let roots = Arc::new(roots(&files.ca, &read(&files.ca)?)?);
        let pair = |error: rustls::Error| {
            format!("{} with {}: {error}", files.cert.display(), files.key.display())
        };
        let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| error.to_string())?
            .with_root_certificates(Arc::clone(&roots))
            .with_client_auth_cert(chain.clone(), key.clone_key())
            .map_err(pair)?;
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .build()
            .map_err(|error| format!("{}: {error}", files.ca.display()))?;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| error.to_string())?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(pair)?;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        let signing = Arc::new(Semaphore::new(SIGNING_MAX));
        Ok(Self { client: Arc::new(client), server: Arc::new(server), signing })
    }
}

/// A connection's socket, and its TLS if it has any.
pub(crate) type Parts = (Socket, Option<Box<Connection>>);

/// A connection, with TLS or without.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {
    /// The socket and its TLS apart, for who goes on without this runtime.
    fn into_parts(self: Box<Self>) -> io::Result<Parts>;
}

impl Stream for TcpStream {
    fn into_parts(self: Box<Self>) -> io::Result<Parts> {
        Ok((self.into_std()?, None))
    }
}

impl Stream for tokio_rustls::client::TlsStream<TcpStream> {
    fn into_parts(self: Box<Self>) -> io::Result<Parts> {
        let (socket, tls) = self.into_inner();
        Ok((socket.into_std()?, Some(Box::new(tls.into()))))
    }
}

impl Stream for tokio_rustls::server::TlsStream<TcpStream> {
    fn into_parts(self: Box<Self>) -> io::Result<Parts> {
        let (socket, tls) = self.into_inner();
        Ok((socket.into_std()?, Some(Box::new(tls.into()))))
    }
}

/// Bytes that the other end's kernel does not confirm for so long end the connection; so does,
/// after as much silence, a probe that nobody answers.
const DEAD_AFTER: Duration = Duration::from_secs(5);
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// What is said is short and goes at once; an end that is gone without a word is found out.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let probes = TcpKeepalive::new().with_time(DEAD_AFTER).with_interval(PROBE_EVERY);
    socket.set_tcp_keepalive(&probes.with_retries(3))?;
    socket.set_tcp_user_timeout(Some(DEAD_AFTER))
}

/// Connects; on loopback without files there is no TLS.
pub(crate) async fn dial(
    address: SocketAddr,
    mutual: Option<&Mutual>,
) -> io::Result<Box<dyn Stream>> {
    let stream = TcpStream::connect(address).await?;
    prepare(&stream)?;
    Ok(match mutual {
        None => Box::new(stream),
        Some(mutual) => {
            let connector = TlsConnector::from(Arc::clone(&mutual.client));
            Box::new(connector.connect(name_of(address), stream).await?)
        }
    })
}

/// What a client has shown: its certificate first.
pub(crate) type Shown = Option<Vec<CertificateDer<'static>>>;

/// Makes a connection of one that was accepted.
pub(crate) async fn welcome(
    stream: TcpStream,
    mutual: Option<&Mutual>,
) -> io::Result<(Box<dyn Stream>, Shown)> {
    prepare(&stream)?;
    let Some(mutual) = mutual else { return Ok((Box::new(stream), None)) };
    let hello = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
    let permit = Arc::clone(&mutual.signing).acquire_owned().await.expect("never closed");
    let server = Arc::clone(&mutual.server);
    // Here we sign. Anybody may ask for that, and a lease may hang on the caller's thread.
    let signed = tokio::task::spawn_blocking(move || {
        let signed = hello.into_stream(server);
        drop(permit);
        signed
    });
    let stream = signed.await?.await?;
    let shown = stream.get_ref().1.peer_certificates().map(<[_]>::to_vec);
    Ok((Box::new(stream), shown))
}

/// How a voter is called in its certificate: by its address.
pub(crate) fn name_of(address: SocketAddr) -> ServerName<'static> {
    ServerName::IpAddress(address.ip().into())
}

/// Whether the certificate that a connection showed names this address.
pub(crate) fn names(shown: Option<&[CertificateDer<'_>]>, address: SocketAddr) -> bool {
    let first = shown.and_then(<[CertificateDer<'_>]>::first);
    let parsed = first.and_then(|certificate| ParsedCertificate::try_from(certificate).ok());
    parsed.is_some_and(|parsed| verify_server_name(&parsed, &name_of(address)).is_ok())
}
