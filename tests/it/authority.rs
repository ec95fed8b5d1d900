//! A small certificate authority, for tests alone: its own certificate, and those it signs.
//!
//! ```text
//!   Authority::new(dir, "a") ─▶ a.ca.pem
//!     .server("localhost")   ─▶ a.localhost.pem, a.localhost.key     for 127.0.0.1 too
//!     .member("v", "127.0.0.1")  ▶ for both ends of a link
//!     .client("app")         ─▶ a.app.pem, a.app.key                 CN=app, and a DNS name
//!     .expired("late")       ─▶ the same, over since 2001
//! ```
//! Keys are P-256; nothing is ever used outside of a test's directory.

use std::fs;
use std::path::{Path, PathBuf};

use perf::tls::TlsArguments;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, date_time_ymd,
};

pub(crate) struct Authority {
    name: String,
    dir: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key, as files.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

impl Pair {
    /// Put this pair where another one is, as a mounted secret changes: both files at once are
    /// not to be had.
    pub(crate) fn replace(&self, other: &Self) {
        fs::copy(&self.cert, &other.cert).expect("written");
        fs::copy(&self.key, &other.key).expect("written");
    }
}

impl Authority {
    pub(crate) fn new(dir: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("Test authority {name}"));
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("signed");
        let authority = Self { name: name.to_owned(), dir: dir.to_owned(), issuer };
        fs::create_dir_all(dir).expect("a directory");
        fs::write(authority.ca(), authority.issuer.pem()).expect("written");
        authority
    }

    /// Its own certificate.
    pub(crate) fn ca(&self) -> PathBuf {
        self.dir.join(format!("{}.ca.pem", self.name))
    }

    pub(crate) fn server(&self, name: &str) -> Pair {
        let names = vec![name.to_owned(), "127.0.0.1".to_owned()];
        let params = CertificateParams::new(names).expect("names");
        self.sign(name, params, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// One that connects and is connected to: a voter, by its address.
    pub(crate) fn member(&self, name: &str, address: &str) -> Pair {
        let mut params = CertificateParams::new(vec![address.to_owned()]).expect("a name");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(name, params, ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// The same, as lines of a configuration.
    pub(crate) fn member_lines(&self, name: &str, address: &str) -> String {
        let Pair { cert, key } = self.member(name, address);
        let file = |key: &str, path: &Path| format!("{key} = \"{}\"\n", path.display());
        file("tls-cert", &cert) + &file("tls-key", &key) + &file("tls-ca", &self.ca())
    }

    pub(crate) fn client(&self, name: &str) -> Pair {
        let params = CertificateParams::new(vec![format!("{name}.test")]).expect("names");
        self.sign(name, params, ExtendedKeyUsagePurpose::ClientAuth)
    }

    pub(crate) fn expired(&self, name: &str) -> Pair {
        let mut params = CertificateParams::new(vec![format!("{name}.test")]).expect("names");
        (params.not_before, params.not_after) =
            (date_time_ymd(2000, 1, 1), date_time_ymd(2001, 1, 1));
        self.sign(name, params, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn sign(
        &self,
        name: &str,
        mut params: CertificateParams,
        use_: ExtendedKeyUsagePurpose,
    ) -> Pair {
        params.extended_key_usages.push(use_);
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Test");
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        let file = |end| self.dir.join(format!("{}.{name}.{end}", self.name));
        let pair = Pair { cert: file("pem"), key: file("key") };
        fs::write(&pair.cert, certificate.pem()).expect("written");
        fs::write(&pair.key, key.serialize_pem()).expect("written");
        pair
    }

    /// A client that trusts this authority, and shows a certificate if it has one.
    pub(crate) fn trusting(&self, own: Option<&Pair>) -> TlsArguments {
        TlsArguments {
            tls_ca: Some(self.ca()),
            tls_cert: own.map(|pair| pair.cert.clone()),
            tls_key: own.map(|pair| pair.key.clone()),
            ..TlsArguments::default()
        }
    }
}
