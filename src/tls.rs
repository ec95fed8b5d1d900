//! What TLS is served with: certificate, key and client CA, read from files and read again when
//! they change.
//!
//! ```text
//!   files ──(every second)──▶ changed, and the same twice? ──▶ build ──▶ served from now on
//!                                                                └─ cannot: the old one stays,
//!                                                                   a line in the log, a metric
//! ```
//! A mounted secret changes under us: links are swapped, files are written one after another. So
//! the contents are compared, not times, and what changes is taken when it has stopped changing. A
//! connection keeps what it began with; handshakes take what is served at their first byte.
//!
//! TLS 1.2 and 1.3 only. No session is resumed: connections live for long, so it would save
//! nothing, and a resumed one would bring back a certificate that is no longer trusted. No early
//! data, no ALPN, no renegotiation (rustls has none).
//!
//! Invariants: nothing here is called on a core's thread. Failure: at the start, a [`Failure`] that
//! names the file; later, the old certificate stays.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::{TLS12, TLS13};
use x509_parser::objects::{oid_registry, oid2abbrev};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::config::{CertificateName, Config};
use crate::driver::{certificates, roots};
use crate::fatal::{Cause, Failure};

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A file of certificates is not larger; it is read whole.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// From so long before its end on, a certificate is complained of once a day.
const EXPIRY_NEAR_SECONDS: i64 = 14 * DAY_SECONDS;

const DAY_SECONDS: i64 = 24 * 60 * 60;

/// What `/metrics` says of TLS.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    /// Handshakes that ended well.
    pub(crate) handshakes_total: AtomicU64,
    /// Handshakes that were refused, by either side.
    pub(crate) refused_total: AtomicU64,
    /// Handshakes that took too long, or made room for others.
    pub(crate) abandoned_total: AtomicU64,
    /// Times that changed files were taken.
    pub(crate) reloads_total: AtomicU64,
    /// Times that changed files could not be taken.
    pub(crate) reload_failures_total: AtomicU64,
    /// When the certificate that is served ends, in seconds since 1970.
    pub(crate) certificate_not_after: AtomicI64,
}

/// One more.
pub(crate) fn count(figure: &AtomicU64) {
    figure.fetch_add(1, Ordering::Relaxed);
}

/// The files that make up what is served.
#[derive(Clone, Debug)]
struct Files {
    cert: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
    require_client_cert: bool,
}

/// What is served now.
pub(crate) struct Tls {
    files: Files,
    served: RwLock<Arc<ServerConfig>>,
    /// Names in client certificates, and whom they stand for.
    names: Vec<(CertificateName, String)>,
    /// What `/metrics` says.
    pub(crate) figures: Figures,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Tls {
    /// Read the files, and watch them from now on. None where the configuration wants no TLS.
    ///
    /// # Errors
    /// A file cannot be read or used, or there is no thread to watch them.
    pub(crate) fn start(config: &Config) -> Result<Option<Arc<Self>>, Failure> {
        let (Some(cert), Some(key)) = (&config.tls_cert.0, &config.tls_key.0) else {
            return Ok(None);
        };
        let files = Files {
            cert: cert.clone(),
            key: key.clone(),
            client_ca: config.tls_client_ca.0.clone(),
            require_client_cert: config.tls_require_client_cert,
        };
        let unusable = |why| Failure::new(Cause::TlsUnusable, why);
        let contents = files.read().map_err(unusable)?;
        let built = files.build(&contents).map_err(unusable)?;
        let figures = Figures::default();
        figures.certificate_not_after.store(built.not_after, Ordering::Relaxed);
        let of_user = |user: &crate::config::User| {
            let name = user.name.clone();
            user.certificates.clone().into_iter().map(move |known| (known, name.clone()))
        };
        let names = config.users.iter().flat_map(of_user).collect();
        let served = RwLock::new(Arc::new(built.config));
        let tls = Arc::new(Self { files, served, names, figures });
        let seen = contents.fingerprint();
        let watched = Arc::clone(&tls);
        std::thread::Builder::new()
            .name("tls-files".to_owned())
            .spawn(move || watched.watch(seen))
            .map_err(|error| {
                let what = format!("no thread to watch the certificate: {error}");
                Failure::new(Cause::ResourceRefused, what)
            })?;
        Ok(Some(tls))
    }

    /// What the next handshake is made with.
    pub(crate) fn served(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.served.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The user whom a client's certificate names, which was verified; none where it names nobody.
    ///
    /// # Errors
    /// It names two users: better nobody than the wrong one.
    pub(crate) fn user_of(
        &self,
        certificates: &[CertificateDer<'_>],
    ) -> Result<Option<String>, String> {
        let Some(certificate) = certificates.first().filter(|_| !self.names.is_empty()) else {
            return Ok(None);
        };
        let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
            return Err("its certificate cannot be read".to_owned());
        };
        let mut found: Option<&String> = None;
        for (name, user) in &self.names {
            if has_name(&certificate, name) {
                if let Some(other) = found.filter(|other| *other != user) {
                    return Err(format!("its certificate names two users, `{other}` and `{user}`"));
                }
                found = Some(user);
            }
        }
        Ok(found.cloned())
    }

    fn watch(&self, mut taken: Fingerprint) -> ! {
        let mut before = taken.clone();
        let mut complained_at = i64::MIN;
        loop {
            std::thread::sleep(LOOK_EVERY);
            complained_at = self.complain_of_expiry(complained_at);
            let contents = self.files.read();
            let now = match &contents {
                Ok(contents) => contents.fingerprint(),
                Err(why) => Fingerprint::Unreadable(why.clone()),
            };
            if now != taken && now == before {
                taken = now.clone();
                self.take(contents);
            }
            before = now;
        }
    }

    fn take(&self, contents: Result<Contents, String>) {
        match contents.and_then(|contents| self.files.build(&contents)) {
            Ok(built) => {
                let config = Arc::new(built.config);
                *self.served.write().unwrap_or_else(PoisonError::into_inner) = config;
                self.figures.certificate_not_after.store(built.not_after, Ordering::Relaxed);
                count(&self.figures.reloads_total);
                tracing::info!(
                    certificate = %self.files.cert.display(),
                    days = (built.not_after - unix_seconds()) / DAY_SECONDS,
                    "changed TLS files are served to new connections"
                );
            }
            Err(why) => {
                count(&self.figures.reload_failures_total);
                tracing::error!("changed TLS files cannot be used, the old ones stay: {why}");
            }
        }
    }

    /// Say once a day that the certificate ends soon; when that was.
    fn complain_of_expiry(&self, complained_at: i64) -> i64 {
        let now = unix_seconds();
        let left = self.figures.certificate_not_after.load(Ordering::Relaxed) - now;
        if left > EXPIRY_NEAR_SECONDS || now < complained_at.saturating_add(DAY_SECONDS) {
            return complained_at;
        }
        let cert = self.files.cert.display();
        if left > 0 {
            tracing::warn!("the certificate in {cert} ends in {} hours", left / 3600);
        } else {
            tracing::error!("the certificate in {cert} has ended: clients refuse it");
        }
        now
    }
}

fn unix_seconds() -> i64 {
    #[expect(clippy::disallowed_methods, reason = "certificates end by the calendar")]
    let now = SystemTime::now();
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// What the files hold.
struct Contents {
    cert: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

/// What the files held when they were looked at, without keeping the key.
#[derive(Clone, PartialEq, Eq)]
enum Fingerprint {
    Of(Vec<u8>),
    Unreadable(String),
}

impl Contents {
    fn fingerprint(&self) -> Fingerprint {
        let mut hash = digest::Context::new(&digest::SHA256);
        for part in [&self.cert, &self.key, self.client_ca.as_ref().unwrap_or(&Vec::new())] {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Fingerprint::Of(hash.finish().as_ref().to_vec())
    }
}

struct Built {
    config: ServerConfig,
    not_after: i64,
}

impl Files {
    fn read(&self) -> Result<Contents, String> {
        Ok(Contents {
            cert: read(&self.cert)?,
            key: read(&self.key)?,
            client_ca: self.client_ca.as_deref().map(read).transpose()?,
        })
    }

    fn build(&self, contents: &Contents) -> Result<Built, String> {
        let provider = Arc::new(default_provider());
        let chain = certificates(&self.cert, &contents.cert)?;
        let not_after = not_after(&chain[0])
            .ok_or_else(|| format!("{}: it is no X.509 certificate", self.cert.display()))?;
        let key = PrivateKeyDer::from_pem_slice(&contents.key)
            .map_err(|error| format!("{}: no private key: {error}", self.key.display()))?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(|error| error.to_string())?;
        let builder = match (&self.client_ca, &contents.client_ca) {
            (Some(path), Some(pem)) => {
                let roots = Arc::new(roots(path, pem)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
                let verifier = match self.require_client_cert {
                    true => verifier,
                    false => verifier.allow_unauthenticated(),
                };
                let verifier =
                    verifier.build().map_err(|error| format!("{}: {error}", path.display()))?;
                builder.with_client_cert_verifier(verifier)
            }
            (None, _) | (_, None) => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|error| {
            format!("{} with {}: {error}", self.cert.display(), self.key.display())
        })?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Built { config, not_after })
    }
}

/// A file of certificates or keys, whole.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let mut contents = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut contents).map_err(failed)?;
    if contents.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("{}: larger than {FILE_BYTES_MAX} bytes", path.display()));
    }
    Ok(contents)
}

fn has_name(certificate: &X509Certificate<'_>, wanted: &CertificateName) -> bool {
    let alternatives = certificate.subject_alternative_name().ok().flatten();
    let alternatives = alternatives.map(|names| &names.value.general_names[..]).unwrap_or_default();
    let any = |fits: &dyn Fn(&GeneralName<'_>) -> bool| alternatives.iter().any(fits);
    match wanted {
        CertificateName::Subject(parts) => {
            let shown = certificate.subject().iter_attributes().map(|attribute| {
                let kind = oid2abbrev(attribute.attr_type(), oid_registry()).ok()?;
                Some((kind.to_owned(), attribute.as_str().ok()?.to_owned()))
            });
            shown.collect::<Option<Vec<_>>>().is_some_and(|shown| is_subject(&shown, parts))
        }
        CertificateName::CommonName(name) => certificate
            .subject()
            .iter_common_name()
            .any(|attribute| attribute.as_str().is_ok_and(|shown| shown == name)),
        CertificateName::Dns(name) => any(
            &|shown| matches!(shown, GeneralName::DNSName(dns) if dns.eq_ignore_ascii_case(name)),
        ),
        CertificateName::Uri(name) => {
            any(&|shown| matches!(shown, GeneralName::URI(uri) if uri == name))
        }
        CertificateName::Email(name) => {
            any(&|shown| matches!(shown, GeneralName::RFC822Name(mail) if mail == name))
        }
    }
}

/// Part for part the same; `cn` is `CN`.
fn is_subject(shown: &[(String, String)], wanted: &[(String, String)]) -> bool {
    let same = |(shown, wanted): (&(String, String), &(String, String))| {
        shown.0.eq_ignore_ascii_case(&wanted.0) && shown.1 == wanted.1
    };
    shown.len() == wanted.len() && shown.iter().zip(wanted).all(same)
}

/// When a certificate ends, in seconds since 1970; none where it cannot be read.
fn not_after(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    Some(certificate.validity().not_after.timestamp())
}
