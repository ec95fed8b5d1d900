//! Whom a client trusts over TLS, and who it says that it is.
//!
//! ```text
//!   --tls-ca FILE                CAs whose servers are trusted        ─┐
//!   --insecure-tls               any server, for measurements alone    ├─▶ TlsClient, for any
//!   --tls-cert, --tls-key FILE   our own certificate, if one is wanted ─┘    number of sessions
//! ```
//! There is no list of the system's CAs: a broker's certificate is of a CA of its own, mostly.
//!
//! Failure: a file that cannot be read or used is named.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use net::tls::{TlsSession, certificates, roots};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};

/// What a client is told about TLS.
#[derive(clap::Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsArguments {
    /// For amqps: PEM file of the CAs that the broker's certificate may be of
    #[arg(long, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// For amqps: trust any certificate; only to measure
    #[arg(long, conflicts_with = "tls_ca")]
    pub insecure_tls: bool,
    /// For amqps: PEM file of a certificate of ours
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// For amqps: PEM file of its key
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
}

/// What sessions with one server are made of.
#[derive(Clone, Debug)]
pub struct TlsClient {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl PartialEq for TlsClient {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.config, &other.config) && self.name == other.name
    }
}

impl Eq for TlsClient {}

impl TlsClient {
    /// For sessions with the server of this host name or address.
    ///
    /// # Errors
    /// Nobody is trusted, a file cannot be used, or the host is no name.
    pub fn new(arguments: &TlsArguments, host: &str) -> Result<Self, String> {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| format!("`{host}` is no name of a TLS server: {error}"))?;
        let provider = Arc::new(default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let builder = match (&arguments.tls_ca, arguments.insecure_tls) {
            (Some(ca), false) => builder.with_root_certificates(roots(ca, &read(ca)?)?),
            (None, true) => {
                builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)))
            }
            (None, false) | (Some(_), true) => {
                return Err("amqps:// needs --tls-ca FILE, or --insecure-tls".to_owned());
            }
        };
        let config = match (&arguments.tls_cert, &arguments.tls_key) {
            (Some(cert), Some(key)) => {
                let pem = PrivateKeyDer::from_pem_file(key)
                    .map_err(|error| format!("{}: {error}", key.display()))?;
                builder
                    .with_client_auth_cert(certificates(cert, &read(cert)?)?, pem)
                    .map_err(|error| format!("{}: {error}", cert.display()))?
            }
            (None, _) | (_, None) => builder.with_no_client_auth(),
        };
        Ok(Self { config: Arc::new(config), name })
    }

    /// Begins a session.
    ///
    /// # Errors
    /// See [`TlsSession::client`].
    pub fn session(&self) -> Result<TlsSession, rustls::Error> {
        TlsSession::client(Arc::clone(&self.config), self.name.clone())
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// Believes any certificate, but still wants the peer to have its key.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn somebody_must_be_trusted() {
        let nobody = TlsClient::new(&TlsArguments::default(), "localhost");
        assert!(nobody.expect_err("refused").contains("--tls-ca"));
        let missing = TlsArguments { tls_ca: Some("/no/such".into()), ..TlsArguments::default() };
        assert!(TlsClient::new(&missing, "localhost").expect_err("refused").contains("/no/such"));
        let anybody = TlsArguments { insecure_tls: true, ..TlsArguments::default() };
        TlsClient::new(&anybody, "[::1]").expect("an address will do").session().expect("begun");
    }
}
