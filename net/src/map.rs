//! A file mapped read-only, for the offline tools.
//!
//! ```text
//!   FileMap::open(path) -> &[u8]      journal inspect, journal verify
//! ```
//!
//! Invariant: nothing in a running broker maps a file; it reads by the ring.
//!
//! Failure: a file that is cut or goes bad while it is mapped ends the process with SIGBUS. The
//! tools take the directory's lock first, so that no broker of ours does that.

#![expect(unsafe_code, reason = "mapping a file is unsafe: others can change it")]

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

/// The bytes of a file.
#[derive(Debug)]
pub struct FileMap {
    map: Mmap,
}

impl FileMap {
    /// Maps the whole file.
    ///
    /// # Errors
    /// The file can't be opened or mapped.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the map is private to this process and read-only; the callers are offline tools
        // that hold the data directory's lock, under which no process of ours writes or truncates.
        let map = unsafe { Mmap::map(&file) }?;
        Ok(Self { map })
    }
}

impl Deref for FileMap {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_shows_the_file() {
        let path = std::env::temp_dir().join(format!("net-map-{}", std::process::id()));
        std::fs::write(&path, b"laelaps").unwrap();
        assert_eq!(&*FileMap::open(&path).unwrap(), b"laelaps");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(FileMap::open(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
