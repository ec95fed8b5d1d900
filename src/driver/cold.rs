//! Slow file work, off the cores: a segment's worth of zeros takes the disk a moment.
//!
//! One thread does it for all shards, one piece after another; each journal has at most one piece
//! under way, so the queue is as long as there are shards at most. The answer goes to the shard by
//! its core's inbox and bell.
//!
//! Failure: a piece that fails is answered with the error and what it left behind is pre-written
//! again or never used; that is the journal's business.

use crossbeam::channel::{Sender, unbounded};
use journal::{DiskDone, FileId, OpId, ShardId};

use super::directory::Files;
use crate::fatal::{Cause, Failure};
use crate::node::{Inbox, Input};

/// A file to be filled with zeros, durably.
pub(super) struct Prewrite {
    /// Whose journal asked.
    pub(super) shard: ShardId,
    /// The name of the request.
    pub(super) id: OpId,
    /// Which file.
    pub(super) file: FileId,
    /// How long it is to be.
    pub(super) bytes: u64,
    /// Where the answer goes.
    pub(super) inbox: Inbox,
}

/// The cold thread. It ends when the last clone is gone.
#[derive(Clone)]
pub(super) struct Cold {
    work: Sender<Prewrite>,
}

impl Cold {
    /// Start it.
    pub(super) fn start(files: Files) -> Result<Self, Failure> {
        let (work, queue) = unbounded::<Prewrite>();
        std::thread::Builder::new()
            .name("prewrite".to_owned())
            .spawn(move || {
                for piece in queue {
                    let result = files.prewrite(piece.file, piece.bytes).map(|()| 0);
                    let done = DiskDone { id: piece.id, result, buf: None };
                    piece.inbox.put(Input::Cold { shard: piece.shard, done });
                }
            })
            .map_err(|error| {
                Failure::new(Cause::ResourceRefused, format!("no thread for pre-writes: {error}"))
            })?;
        Ok(Self { work })
    }

    /// Have a piece done.
    pub(super) fn prewrite(&self, piece: Prewrite) {
        // The thread lives as long as a sender does, and we are one.
        assert!(self.work.send(piece).is_ok(), "the pre-write thread is gone");
    }
}
