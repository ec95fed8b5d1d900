//! A voter's directory: a lock, and the log.
//!
//! ```text
//!   DIR/lock            held while a voter uses the directory
//!   DIR/voter.log       the records (replica::voter), appended with data sync
//!   DIR/voter.log.new   a log that is being written anew; takes the name when it is durable
//! ```
//! Invariant: what is read at a start was made durable before. A process that was killed between a
//! write and its sync leaves records in the page cache alone, and a voter answers from what it
//! reads.
//! Failure: a write or sync that fails is never tried again; the process ends.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use replica::voter::{WalWrite, format};

use super::new_uuid;
use super::settings::Settings;
use crate::driver::{path_failure, volume};
use crate::fatal::{Cause, Failure};

/// A voter's directory, which this process holds.
pub(super) struct Disk {
    dir: PathBuf,
    path: PathBuf,
    log: Option<File>,
    /// Ours until the process ends.
    _lock: File,
}

impl Disk {
    /// Takes the directory; a new one is formatted.
    pub(super) fn open(settings: &Settings) -> Result<Self, Failure> {
        let dir = settings.data.clone();
        make_durable(&dir).map_err(|error| path_failure(&dir, "cannot be made", &error))?;
        let volume = volume(&dir)?;
        if volume.volatile && !settings.allow_volatile {
            let message = format!(
                "{} is on {}, which forgets at power-off: a voter that forgets must not vote. Put \
                 it on a disk, or say --allow-volatile for a trial",
                dir.display(),
                volume.kind
            );
            return Err(Failure::new(Cause::Volatile, message));
        }
        let lock = Self::lock(&dir.join("lock"))?;
        let path = dir.join("voter.log");
        let mut disk = Self { dir, path, log: None, _lock: lock };
        match File::options().read(true).write(true).open(&disk.path) {
            Ok(log) => {
                let synced = log.sync_all().and_then(|()| File::open(&disk.dir)?.sync_all());
                synced.map_err(|error| disk.poisoned("synced", &error))?;
                disk.log = Some(log);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let uuid = new_uuid()?;
                tracing::info!(disk = %uuid, "a new directory: {}", disk.dir.display());
                disk.write(format(settings.seat, settings.seats, uuid))?;
            }
            Err(error) => return Err(path_failure(&disk.path, "cannot be opened", &error)),
        }
        Ok(disk)
    }

    fn lock(path: &Path) -> Result<File, Failure> {
        let failed = |error| path_failure(path, "cannot be locked", &error);
        let lock = File::options().create(true).truncate(false).write(true).open(path);
        let lock = lock.map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(lock),
            Err(TryLockError::WouldBlock) => {
                let message = format!("{}: another voter holds this directory", path.display());
                Err(Failure::new(Cause::LockHeld, message))
            }
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// Where the log is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The whole log.
    pub(super) fn read(&self) -> Result<Vec<u8>, Failure> {
        fs::read(&self.path).map_err(|error| path_failure(&self.path, "cannot be read", &error))
    }

    /// Carries out a write; when it returns, it is durable.
    pub(super) fn write(&mut self, write: WalWrite) -> Result<(), Failure> {
        let written = match write {
            WalWrite::Append { offset, bytes } => self.append(offset, &bytes),
            WalWrite::Replace { bytes } => self.replace(&bytes),
        };
        written.map_err(|error| self.poisoned("written", &error))
    }

    fn poisoned(&self, what: &str, error: &io::Error) -> Failure {
        let message = format!("{} cannot be {what}: {error}", self.path.display());
        Failure::new(Cause::JournalPoisoned, message)
    }

    fn append(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let log = self.log.as_ref().expect("a log has its first record before others");
        log.write_all_at(bytes, offset)?;
        log.sync_data()
    }

    fn replace(&mut self, bytes: &[u8]) -> io::Result<()> {
        let new = self.dir.join("voter.log.new");
        let mut log =
            File::options().create(true).truncate(true).read(true).write(true).open(&new)?;
        log.write_all(bytes)?;
        log.sync_all()?;
        fs::rename(&new, &self.path)?;
        File::open(&self.dir)?.sync_all()?;
        self.log = Some(log);
        Ok(())
    }
}

/// Makes a directory, and those above it that are missing, durably. The one that holds it is synced
/// even if nothing was missing: whoever made it may have been killed before.
fn make_durable(dir: &Path) -> io::Result<()> {
    let above = |path: &Path| match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
        Some(parent) => parent.to_owned(),
        None => path.to_owned(),
    };
    let mut holders = vec![above(dir)];
    while let Some(holder) = holders.last().filter(|holder| !holder.exists()) {
        holders.push(above(holder));
    }
    fs::create_dir_all(dir)?;
    holders.iter().try_for_each(|holder| File::open(holder)?.sync_all())
}
