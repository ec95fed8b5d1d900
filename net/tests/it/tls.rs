//! TLS sessions whose keys wear out, against each other in memory.
//!
//! The limits of cipher suites are lowered: 2^24 records take minutes.

use std::sync::Arc;

use net::tls::TlsSession;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::crypto::CipherSuiteCommon;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider};
use rustls::pki_types::PrivateKeyDer;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig, SupportedCipherSuite, SupportedProtocolVersion,
    Tls12CipherSuite, Tls13CipherSuite, version,
};

/// Records that a key of the tests seals.
const RECORDS_MAX: u64 = 1_000;

struct Pair {
    server: TlsSession,
    client: TlsSession,
}

impl Pair {
    fn new(suite: SupportedCipherSuite, version: &'static SupportedProtocolVersion) -> Self {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let mut provider = default_provider();
        provider.cipher_suites = vec![suite];
        let provider = Arc::new(provider);
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone()).unwrap();
        let key = PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap();
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut pair = Self {
            server: TlsSession::server(Arc::new(server)).unwrap(),
            client: TlsSession::client(Arc::new(client), "localhost".try_into().unwrap()).unwrap(),
        };
        while pair.server.is_handshaking() || pair.client.is_handshaking() {
            let mut bytes = Vec::new();
            pair.client.flush(&mut bytes);
            pair.server.receive(&bytes, |_| panic!("nothing was sent")).unwrap();
            bytes.clear();
            pair.server.flush(&mut bytes);
            pair.client.receive(&bytes, |_| panic!("nothing was sent")).unwrap();
        }
        pair
    }

    /// The server sends this, and the client receives it.
    fn carry(&mut self, plain: &[u8]) -> Result<(), rustls::Error> {
        let mut records = Vec::new();
        self.server.send(plain, &mut records)?;
        let mut heard = Vec::new();
        self.client.receive(&records, |piece| heard.extend_from_slice(piece))?;
        assert_eq!(heard.len(), plain.len(), "what is reported as sent arrives");
        // The answer to a change of keys.
        records.clear();
        self.client.flush(&mut records);
        self.server.receive(&records, |_| panic!("nothing was sent"))
    }
}

fn worn(common: &CipherSuiteCommon) -> CipherSuiteCommon {
    let CipherSuiteCommon { suite, hash_provider, .. } = *common;
    CipherSuiteCommon { suite, hash_provider, confidentiality_limit: RECORDS_MAX }
}

fn tls12() -> SupportedCipherSuite {
    let suite = cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256;
    let SupportedCipherSuite::Tls12(suite) = suite else { panic!("it is of TLS 1.2") };
    let Tls12CipherSuite { common, prf_provider, kx, sign, aead_alg } = suite;
    let (common, prf_provider, sign, aead_alg) = (worn(common), *prf_provider, *sign, *aead_alg);
    let suite = Tls12CipherSuite { common, prf_provider, kx: *kx, sign, aead_alg };
    SupportedCipherSuite::Tls12(Box::leak(Box::new(suite)))
}

fn tls13() -> SupportedCipherSuite {
    let suite = cipher_suite::TLS13_AES_128_GCM_SHA256.tls13().unwrap();
    let Tls13CipherSuite { common, hkdf_provider, aead_alg, quic } = suite;
    let (common, hkdf_provider, aead_alg) = (worn(common), *hkdf_provider, *aead_alg);
    let suite = Tls13CipherSuite { common, hkdf_provider, aead_alg, quic: *quic };
    SupportedCipherSuite::Tls13(Box::leak(Box::new(suite)))
}

#[test]
fn a_session_of_tls_1_2_says_that_its_keys_are_used_up_instead_of_falling_silent() {
    let mut pair = Pair::new(tls12(), &version::TLS12);
    let mut warned_at = None;
    for sent in 0..RECORDS_MAX {
        if pair.carry(b"payload").is_err() {
            assert!(sent > RECORDS_MAX - 10, "{sent} records are too few");
            let left = sent - warned_at.expect("it was worn before");
            assert!(left > RECORDS_MAX / 20, "{left} records are little time for a goodbye");
            // The end can still be said.
            let mut records = Vec::new();
            pair.server.end(&mut records);
            pair.client.receive(&records, |_| panic!("nothing was sent")).unwrap();
            assert!(pair.client.has_peer_ended());
            return;
        }
        if warned_at.is_none() && pair.server.is_worn() {
            warned_at = Some(sent);
        }
    }
    panic!("more records were sealed than the keys may");
}

/// A send of many records is one call.
#[test]
fn a_large_send_counts_each_of_its_records() {
    let mut pair = Pair::new(tls12(), &version::TLS12);
    let sends = (0..RECORDS_MAX).find(|_| pair.carry(&[7; 100_000]).is_err());
    assert_eq!(sends, Some((RECORDS_MAX - 8) / 7));
}

#[test]
fn tls_1_3_changes_its_keys_by_itself() {
    let mut pair = Pair::new(tls13(), &version::TLS13);
    for _ in 0..10 * RECORDS_MAX {
        pair.carry(b"payload").unwrap();
    }
    pair.carry(&vec![7; 16 << 20]).unwrap();
    assert!(!pair.server.is_worn());
}
