//! `laelaps pki`: a small authority, and certificates of it for members and voters of a trial.
//!
//! ```text
//!   pki init  --dir DIR NAME=ADDR[,ADDR]…   DIR/ca.pem    what every member and voter trusts
//!                                           DIR/ca.key    signs more of them: keep it elsewhere
//!                                           DIR/NAME.pem  one for each name, for both ends of a
//!                                           DIR/NAME.key  link; it names its addresses
//!   pki issue --dir DIR NAME=ADDR[,ADDR]…   more names, by the authority that is there
//! ```
//! Keys are P-256. Whoever has a key of this authority can speak to the members and voters of its
//! pair, so one authority is for one installation.
//!
//! Invariants: no file is ever written over, and nobody but their owner can read them.
//!
//! Failure: what could not be written is named; files that were written before it stay.

use std::fs::{self, DirBuilder, File};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};

use crate::fatal::Failure;
use crate::output;

/// How long a certificate may be asked to last, and the authority lasts.
const DAYS_MAX: u64 = 3650;
const DAY: Duration = Duration::from_hours(24);
/// Clocks of other machines may be behind by this.
const SKEW: Duration = Duration::from_hours(1);
const NAME_BYTES_MAX: usize = 64;

/// What `pki` can do.
#[derive(Subcommand)]
pub(crate) enum PkiCommand {
    /// Make an authority, and certificates for members and voters; nothing is written over
    Init(Options),
    /// Make more certificates by the authority of a directory
    Issue(Options),
}

/// What to make, and where.
#[derive(Args)]
pub(crate) struct Options {
    /// Where the files are, or are to be
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// How many days the certificates last
    #[arg(long, value_name = "DAYS", default_value_t = DAYS_MAX,
        value_parser = clap::value_parser!(u64).range(1..=DAYS_MAX))]
    days: u64,
    /// A member or voter, and the addresses at which others reach it (without ports)
    #[arg(required = true, value_name = "NAME=ADDR[,ADDR]", value_parser = Holder::read)]
    holders: Vec<Holder>,
}

/// Who is to have a certificate.
#[derive(Clone, Debug)]
pub(crate) struct Holder {
    name: String,
    addresses: Vec<SanType>,
}

/// `laelaps pki …`.
pub(crate) fn pki(command: &PkiCommand) -> Result<(), Failure> {
    match command {
        PkiCommand::Init(options) => init(options),
        PkiCommand::Issue(options) => issue(options),
    }
    .map_err(Failure::command)
}

fn init(options: &Options) -> Result<(), String> {
    let ca = Names::of(&options.dir, "ca");
    all_new(options, Some(&ca))?;
    make_private(&options.dir)?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    // Whoever has another one's certificate is told so: two authorities never have one name.
    let number = getrandom::u64().map_err(|error| format!("no random bytes: {error}"))?;
    params.distinguished_name = called(&format!("Laelaps authority {number:016x}"));
    last(&mut params, DAYS_MAX);
    let key = KeyPair::generate().map_err(told)?;
    let key_pem = key.serialize_pem();
    let issuer = CertifiedIssuer::self_signed(params, key).map_err(told)?;
    write(&ca.key, &key_pem)?;
    write(&ca.cert, &issuer.pem())?;
    output::line(format_args!("{}  the authority, which all trust", ca.cert.display()));
    output::line(format_args!("{}  signs more of them: keep it elsewhere", ca.key.display()));
    sign_all(options, &issuer)
}

fn issue(options: &Options) -> Result<(), String> {
    all_new(options, None)?;
    let ca = Names::of(&options.dir, "ca");
    let read = |path: &Path| {
        fs::read_to_string(path).map_err(|error| {
            format!("{}: {error}; `laelaps pki init` makes an authority", path.display())
        })
    };
    let unusable = |path: &Path| {
        let path = path.display().to_string();
        move |error: rcgen::Error| format!("{path} is not what `laelaps pki init` made: {error}")
    };
    let key = KeyPair::from_pem(&read(&ca.key)?).map_err(unusable(&ca.key))?;
    let issuer = Issuer::from_ca_cert_pem(&read(&ca.cert)?, key).map_err(unusable(&ca.cert))?;
    sign_all(options, &issuer)
}

impl Holder {
    fn read(text: &str) -> Result<Self, String> {
        let (name, addresses) = text.split_once('=').ok_or("write NAME=ADDR, as in a=10.0.0.1")?;
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let is_name = name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.len() <= NAME_BYTES_MAX
            && name.chars().all(is_plain);
        if !is_name || name == "ca" {
            return Err(format!(
                "`{name}` is to be the name of a file: up to {NAME_BYTES_MAX} letters, digits, \
                 `-`, `_` and `.`, and not `ca`"
            ));
        }
        let addresses: Result<Vec<SanType>, String> = addresses.split(',').map(address).collect();
        Ok(Self { name: name.to_owned(), addresses: addresses? })
    }
}

/// An IP address, or a host name.
fn address(text: &str) -> Result<SanType, String> {
    if let Ok(ip) = text.parse() {
        return Ok(SanType::IpAddress(ip));
    }
    let is_host = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    if text.is_empty() || !text.chars().all(is_host) {
        return Err(format!("`{text}` is neither an IP address nor a host name; no port, either"));
    }
    text.try_into().map(SanType::DnsName).map_err(told)
}

/// A certificate and its key, as files.
struct Names {
    cert: PathBuf,
    key: PathBuf,
}

impl Names {
    fn of(dir: &Path, name: &str) -> Self {
        Self { cert: dir.join(format!("{name}.pem")), key: dir.join(format!("{name}.key")) }
    }
}

/// Nothing is begun that would end at a file which is there.
fn all_new(options: &Options, ca: Option<&Names>) -> Result<(), String> {
    for (at, holder) in options.holders.iter().enumerate() {
        if options.holders[..at].iter().any(|other| other.name == holder.name) {
            return Err(format!("`{}` is there twice", holder.name));
        }
    }
    let holders = options.holders.iter().map(|holder| Names::of(&options.dir, &holder.name));
    let wanted = holders.chain(ca.map(|ca| Names { cert: ca.cert.clone(), key: ca.key.clone() }));
    match wanted.flat_map(|names| [names.cert, names.key]).find(|path| path.exists()) {
        None => Ok(()),
        Some(path) => Err(format!(
            "{} is there, and nothing is written over: choose another directory or name, or move \
             it away",
            path.display()
        )),
    }
}

fn sign_all(options: &Options, issuer: &Issuer<'_, KeyPair>) -> Result<(), String> {
    for holder in &options.holders {
        let mut params = CertificateParams::default();
        params.subject_alt_names.clone_from(&holder.addresses);
        params.distinguished_name = called(&holder.name);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        last(&mut params, options.days);
        let key = KeyPair::generate().map_err(told)?;
        let certificate = params.signed_by(&key, issuer).map_err(told)?;
        let names = Names::of(&options.dir, &holder.name);
        write(&names.key, &key.serialize_pem())?;
        write(&names.cert, &certificate.pem())?;
        let cert = names.cert.display();
        output::line(format_args!("{cert} and .key  for {}, {} days", holder.name, options.days));
    }
    Ok(())
}

fn called(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::OrganizationName, "Laelaps");
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn last(params: &mut CertificateParams, days: u64) {
    #[expect(clippy::disallowed_methods, reason = "a certificate is for a time of the calendar")]
    let now = SystemTime::now();
    params.not_before = (now - SKEW).into();
    params.not_after = (now + DAY * u32::try_from(days).expect("ten years at most")).into();
}

fn told(error: rcgen::Error) -> String {
    format!("no certificate could be made: {error}")
}

/// Makes a directory that only its owner can enter; one that is there stays as it is.
fn make_private(dir: &Path) -> Result<(), String> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|error| format!("{} cannot be made: {error}", dir.display()))
}

fn write(path: &Path, pem: &str) -> Result<(), String> {
    let written = File::options().write(true).create_new(true).mode(0o600).open(path);
    written
        .and_then(|mut file| file.write_all(pem.as_bytes()).and_then(|()| file.sync_all()))
        .map_err(|error| format!("{} cannot be written: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::fatal::Cause;
    use crate::mutual::{Files, Mutual};

    fn options(dir: &Path, holders: &[&str]) -> Options {
        let holders = holders.iter().map(|text| Holder::read(text).expect(text)).collect();
        Options { dir: dir.to_owned(), days: 30, holders }
    }

    fn load(dir: &Path, name: &str) -> Result<Mutual, Failure> {
        let names = Names::of(dir, name);
        Mutual::load(&Files { cert: names.cert, key: names.key, ca: dir.join("ca.pem") })
    }

    #[test]
    fn what_is_made_can_be_used_and_is_its_owner_s_alone() {
        let scratch = tempfile::tempdir().expect("a directory");
        let dir = scratch.path().join("pki");
        pki(&PkiCommand::Init(options(&dir, &["a=10.0.0.1,a.example", "voter-1=::1"])))
            .expect("made");
        load(&dir, "a").expect("usable");
        pki(&PkiCommand::Issue(options(&dir, &["voter-4=10.0.0.4"]))).expect("one more");
        load(&dir, "voter-4").expect("usable");
        let files: Vec<PathBuf> =
            fs::read_dir(&dir).expect("there").map(|entry| entry.expect("one").path()).collect();
        assert_eq!(files.len(), 8);
        for file in files.iter().chain([&dir]) {
            let mode = fs::metadata(file).expect("there").permissions().mode();
            assert_eq!(mode & 0o077, 0, "{} is {mode:o}", file.display());
        }
    }

    #[test]
    fn nothing_is_written_over() {
        let scratch = tempfile::tempdir().expect("a directory");
        let dir = scratch.path();
        fs::write(dir.join("b.key"), "mine").expect("written");
        let refused = pki(&PkiCommand::Init(options(dir, &["a=10.0.0.1", "b=10.0.0.2"])));
        let refused = refused.expect_err("b.key is there");
        assert!(refused.message.contains("b.key is there"), "{refused}");
        assert_eq!(fs::read_dir(dir).expect("there").count(), 1, "nothing was begun");
        pki(&PkiCommand::Init(options(dir, &["a=10.0.0.1"]))).expect("made");
        let before = fs::read(dir.join("ca.key")).expect("read");
        let again = pki(&PkiCommand::Init(options(dir, &["c=10.0.0.3"]))).expect_err("ca is there");
        assert!(again.message.contains("ca."), "{again}");
        assert_eq!(fs::read(dir.join("ca.key")).expect("read"), before);
        assert_eq!(fs::read(dir.join("b.key")).expect("read"), b"mine");
    }

    #[test]
    fn an_authority_that_is_not_there_signs_nothing() {
        let scratch = tempfile::tempdir().expect("a directory");
        let refused = pki(&PkiCommand::Issue(options(scratch.path(), &["a=10.0.0.1"])));
        let refused = refused.expect_err("there is none");
        assert!(refused.cause == Cause::Command && refused.message.contains("pki init"));
    }

    #[test]
    fn a_name_is_a_file_s_and_an_address_has_no_port() {
        for good in ["a=10.0.0.1", "voter-1=::1,host.example", "x_1.y=h"] {
            assert!(Holder::read(good).is_ok(), "{good}");
        }
        for bad in ["a", "=10.0.0.1", "ca=10.0.0.1", "../a=h", ".a=h", "a=", "a=10.0.0.1:7101"] {
            assert!(Holder::read(bad).is_err(), "{bad}");
        }
    }
}
