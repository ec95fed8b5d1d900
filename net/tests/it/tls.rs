//! TLS sessions against each other in memory: in pieces, damaged, and with keys that wear out.
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
        let mut pair = Self::strangers(suite, version);
        pair.shake(usize::MAX);
        pair
    }

    fn strangers(suite: SupportedCipherSuite, version: &'static SupportedProtocolVersion) -> Self {
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
        Self {
            server: TlsSession::server(Arc::new(server)).unwrap(),
            client: TlsSession::client(Arc::new(client), "localhost".try_into().unwrap()).unwrap(),
        }
    }

    /// The handshake, in pieces of so many bytes.
    fn shake(&mut self, piece_bytes: usize) {
        while self.server.is_handshaking() || self.client.is_handshaking() {
            let mut bytes = Vec::new();
            self.client.flush(&mut bytes);
            for piece in bytes.chunks(piece_bytes) {
                self.server.receive(piece, |_| panic!("nothing was sent")).unwrap();
            }
            bytes.clear();
            self.server.flush(&mut bytes);
            for piece in bytes.chunks(piece_bytes) {
                self.client.receive(piece, |_| panic!("nothing was sent")).unwrap();
            }
        }
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

#[test]
fn records_may_come_in_any_pieces() {
    for (suite, version) in [(tls12(), &version::TLS12), (tls13(), &version::TLS13)] {
        for piece_bytes in [1, 7, 4096, 100_000] {
            let mut pair = Pair::strangers(suite, version);
            pair.shake(piece_bytes);
            let sent: Vec<u8> = (0..50_000_u32).map(|at| at as u8).collect();
            let mut records = Vec::new();
            pair.server.flush(&mut records);
            for part in sent.chunks(20_000) {
                pair.server.send(part, &mut records).unwrap();
            }
            let mut heard = Vec::new();
            for piece in records.chunks(piece_bytes) {
                pair.client.receive(piece, |plain| heard.extend_from_slice(plain)).unwrap();
            }
            assert!(heard == sent, "{version:?} in pieces of {piece_bytes}");
        }
    }
}

#[test]
fn what_is_sent_before_the_end_of_the_handshake_follows_it() {
    for (suite, version) in [(tls12(), &version::TLS12), (tls13(), &version::TLS13)] {
        let mut pair = Pair::strangers(suite, version);
        let mut bytes = Vec::new();
        pair.client.send(b"in a ", &mut bytes).unwrap();
        pair.client.send(b"hurry", &mut bytes).unwrap();
        let mut heard = Vec::new();
        while heard.len() < 10 {
            pair.server.receive(&bytes, |plain| heard.extend_from_slice(plain)).unwrap();
            bytes.clear();
            pair.server.flush(&mut bytes);
            pair.client.receive(&bytes, |_| panic!("nothing was sent")).unwrap();
            bytes.clear();
            pair.client.flush(&mut bytes);
        }
        assert_eq!(heard, b"in a hurry");
    }
}

/// Each is final, is told again, and leaves an alert: of 7 bytes in the clear, or sealed.
#[test]
fn damage_is_an_error_with_an_alert_for_the_peer() {
    for (suite, version) in [(tls12(), &version::TLS12), (tls13(), &version::TLS13)] {
        let mut pair = Pair::new(suite, version);
        let mut records = Vec::new();
        pair.client.send(&[7; 100], &mut records).unwrap();
        *records.last_mut().expect("a record") ^= 1;
        let garbled = pair.server.receive(&records, |_| panic!("it is damaged"));
        assert_eq!(garbled, Err(rustls::Error::DecryptError));
        let mut alert = Vec::new();
        pair.server.flush(&mut alert);
        let heard = pair.client.receive(&alert, |_| panic!("nothing was sent"));
        assert!(matches!(heard, Err(rustls::Error::AlertReceived(_))), "{heard:?}");
        let (mut more, mut none) = (Vec::new(), Vec::new());
        pair.client.send(b"more", &mut more).expect_err("it has failed");
        assert_eq!(pair.server.receive(&more, |_| panic!("it has failed")), garbled);
        pair.server.end(&mut none);
        assert!(more.is_empty() && none.is_empty(), "the alert is sent once");
    }
    let mut pair = Pair::strangers(tls13(), &version::TLS13);
    pair.server.receive(b"GET / HTTP/1.1\r\n\r\n", |_| ()).expect_err("no TLS");
    let mut alert = Vec::new();
    pair.server.flush(&mut alert);
    assert_eq!((alert.len(), alert[0]), (7, 21), "an alert");
}

/// A message of the handshake that never ends, in records of a byte.
#[test]
fn a_handshake_in_crumbs_is_refused_before_it_fills_the_memory() {
    let mut pair = Pair::strangers(tls13(), &version::TLS13);
    // The head of a hello of 65,535 bytes, which come one by one.
    pair.server.receive(&[22, 3, 1, 0, 4, 1, 0, 0xff, 0xff], |_| ()).unwrap();
    let crumbs = [22, 3, 1, 0, 1, 0].repeat(1_000);
    let taken = (0..60).take_while(|_| pair.server.receive(&crumbs, |_| ()).is_ok()).count();
    assert!((10..30).contains(&taken), "{} bytes of crumbs", taken * crumbs.len());
}
