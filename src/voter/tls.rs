//! Mutual TLS on a voter's connections: each side shows a certificate of the one authority.
//!
//! ```text
//!   we connect   the other's certificate is of our CA, and names the address that we called
//!   we accept    the client's certificate is of our CA; a voter's names the address of its seat
//! ```
//! So whoever reaches the port without a certificate can ask nothing, and who has one can't speak
//! for a seat that is not his. The files are read at the start.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::verify_server_name;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig};

use crate::driver::{certificates, roots};
use crate::fatal::{Cause, Failure};
use crate::tls::read;

/// The three files: all of them, or none.
#[derive(Clone, Debug)]
pub(super) struct Files {
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
    pub(super) ca: PathBuf,
}

/// What connections are made and taken with.
#[derive(Clone, Debug)]
pub(super) struct Mutual {
    pub(super) client: Arc<ClientConfig>,
    pub(super) server: Arc<ServerConfig>,
}

impl Mutual {
    /// Reads the files. TLS 1.3 alone: both ends are ours.
    pub(super) fn load(files: &Files) -> Result<Self, Failure> {
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
        Ok(Self { client: Arc::new(client), server: Arc::new(server) })
    }
}

/// How a voter is called in its certificate: by its address.
pub(super) fn name_of(address: SocketAddr) -> ServerName<'static> {
    ServerName::IpAddress(address.ip().into())
}

/// Whether the certificate that a connection showed names this address.
pub(super) fn names(shown: Option<&[CertificateDer<'_>]>, address: SocketAddr) -> bool {
    let first = shown.and_then(<[CertificateDer<'_>]>::first);
    let parsed = first.and_then(|certificate| ParsedCertificate::try_from(certificate).ok());
    parsed.is_some_and(|parsed| verify_server_name(&parsed, &name_of(address)).is_ok())
}
