//! One shard's log, sans-IO: records go in, disk operations come out, completions make them
//! durable.
//!
//! ```text
//!              append                    poll_disk                  handle_disk
//!   Record ------------> open batch ---> sealed ---> in flight ---> durable prefix
//!                        (collects)      DiskOp::Write, data-synced     durable()
//!
//!   Format  -> an empty directory becomes a log       (before the first start)
//!   Recovery -> the records of a log, then a Journal  (each start)
//!   Journal -> append, commit, read back, recycle     (while it runs)
//!   Checkpoint -> what the log came to, beside it     (a start reads the log from there)
//!   SegmentScan -> what is in a segment               (before it is recycled)
//!   Follower -> the same log at a backup: sealed batches go in    (replica)
//!   LogReader -> sealed batches come out again                    (replica)
//!   Calibration -> what a disk gives to all this       (tools)
//!   inspect -> what a segment's bytes say             (offline tools)
//! ```
//!
//! Nothing here does I/O, reads a clock, or draws a random number: the host does, and hands in what
//! came of it. `docs/internals/journal-format.md` has every byte, and the failure analysis.
//!
//! Reading order: `lsn`, `identity`, `record`, `batch`, `segment`, `superblock`, `journal`,
//! `commit`, `space`, `reads`, `scan`, `recovery`, `checkpoint`.

#![forbid(unsafe_code)]

mod batch;
mod block_buf;
mod calibrate;
mod canary;
mod checkpoint;
mod commit;
mod copied;
mod disk;
mod epochs;
mod format;
mod fragment;
mod identity;
mod inspect;
mod journal;
mod keeper;
pub mod limits;
mod lsn;
mod reads;
mod record;
mod recovery;
mod scan;
mod sealed;
mod segment;
mod space;
mod superblock;

pub use batch::{BatchHeader, BatchRead, Records};
pub use block_buf::BlockBuf;
pub use calibrate::{
    CALIBRATION_WRITES_MAX, Calibration, CalibrationLine, CalibrationLoad, writes_in_flight,
};
#[cfg(feature = "canary")]
pub use canary::Canary;
pub use checkpoint::{CheckpointError, CheckpointHead, check_checkpoint};
pub use copied::LogCopy;
pub use disk::{DiskDone, DiskError, DiskOp, FileId, OpId};
pub use epochs::{EPOCHS_MAX, EpochTable};
pub use format::{Format, FormatError};
pub use fragment::{FragmentAt, Gather, Gathered};
pub use identity::{Chain, LogSeed, mix64};
pub use inspect::{BatchState, BatchView, SegmentFile, SegmentView, Verified, verify};
pub use journal::{
    AppendError, Appended, Config, Follower, FollowerRecovery, Journal, Poison, PoisonCause,
    Refused, Rejoined, SegmentInfo, Urgency, Usage,
};
pub use lsn::{
    Epoch, Incarnation, JournalUuid, LogId, Lsn, QueueId, Sequence, ShardId, Slot, Term,
};
pub use reads::{ReadId, Span};
pub use record::{Level, Origin, Parts, Record, RecordError, RecordFlags, RecordKind};
pub use recovery::{
    Evidence, LogReader, ReadFailed, Recovery, RecoveryError, RecoveryOutcome, SlotFile, Truncated,
};
pub use scan::{Damaged, SegmentScan};
pub use sealed::SealedBatch;
pub use segment::{SegmentHeader, SegmentRead};
pub use space::Room;
pub use superblock::{
    Begun, Geometry, LogStart, NodeState, NodeSuperblock, SUPERBLOCK_FILE_BYTES, ShardSuperblock,
    SuperblockError, Truncation,
};
