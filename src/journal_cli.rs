//! `laelaps journal …`: the journals of a directory at rest, read and never changed.
//!
//! ```text
//!   inspect DIR    each segment: its place in the log, its batches and how each one is
//!                  (--records: each record's kind, queue, sequence and size, never its payload)
//!   verify  DIR    each shard's log, the whole of it, judged exactly as a start would judge it,
//!                  and each checkpoint, which a start may do without
//!   replay  FILE   what a rejoin has cut off, sent to a running broker (`replay.rs`)
//! ```
//! Segments are mapped, not read, so that a large log needs no memory. The directory's lock is held
//! meanwhile (under it no process of ours writes or truncates), and a running broker's directory is
//! refused; a copy on a read-only file system is read without the lock.
//!
//! Failure: `verify` ends with the status that a start would end with: 14 damaged, 13 newer format,
//! 15 unreadable; a torn tail is no failure, it is reported.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use journal::{
    BatchState, BatchView, FileId, LogSeed, NodeSuperblock, RecoveryError, SegmentFile,
    SegmentRead, SegmentView, ShardId, Slot, SuperblockError, Verified, check_checkpoint, verify,
};

use crate::driver::{Directory, Files, Mapped, path_failure};
use crate::fatal::{Cause, Failure};
use crate::output;
use crate::replay::{Replay, replay};

/// What can be asked of journals at rest.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Show what each segment holds
    Inspect(Inspect),
    /// Send what a rejoin has cut off and kept in `exports/` to the broker that serves
    ///
    /// A message may then be there twice: where the broker had it already under no duplicate id,
    /// where the log had copied it, and where its address has forgotten its id (it remembers the
    /// last 20,000) when a file is replayed again. Look with --dry-run first.
    Replay(Box<Replay>),
    /// Judge each shard's log as a start would
    Verify {
        /// The data directory
        dir: PathBuf,
    },
}

/// What `inspect` is told.
#[derive(Args)]
pub(crate) struct Inspect {
    /// The data directory
    dir: PathBuf,
    /// Only this shard
    #[arg(long, value_name = "N")]
    shard: Option<u16>,
    /// Show each batch
    #[arg(long)]
    batches: bool,
    /// Show each record
    #[arg(long)]
    records: bool,
}

/// `laelaps journal …`.
pub(crate) fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::Inspect(options) => inspect(options),
        Command::Replay(options) => replay(options),
        Command::Verify { dir } => verify_all(dir),
    }
}

fn inspect(options: &Inspect) -> Result<(), Failure> {
    let (files, node, _lock) = Directory::inspect(&options.dir)?;
    output::line(node_line(&node));
    for shard in (0..node.geometry.shards).map(ShardId) {
        if options.shard.is_some_and(|wanted| wanted != shard.0) {
            continue;
        }
        print_checkpoints(&map_checkpoints(&files, shard)?, &node, shard);
        for (slot, map) in files.map_segments(shard)? {
            let file = FileId::Segment { shard, slot };
            let view = SegmentView::new(&node, shard, map.bytes());
            output::line(format_args!("{file}: {}", segment_line(&view)));
            for batch in view.batches().filter(|_| options.batches || options.records) {
                output::line(format_args!("  {}", batch_line(&batch)));
                if options.records {
                    print_records(&batch);
                }
            }
        }
    }
    Ok(())
}

fn verify_all(dir: &Path) -> Result<(), Failure> {
    let (files, node, _lock) = Directory::inspect(dir)?;
    output::line(node_line(&node));
    let mut worst = None;
    for shard in (0..node.geometry.shards).map(ShardId) {
        let checkpoints = map_checkpoints(&files, shard)?;
        print_checkpoints(&checkpoints, &node, shard);
        let heads = checkpoints.each_ref().map(bytes_of);
        let superblock = files.shard_superblock(shard)?;
        match judge(&node, shard, &superblock, &files.map_segments(shard)?, &heads) {
            Ok(log) => {
                let torn = log.truncated.map_or(String::new(), |cut| {
                    format!("; a start will cut {} bytes behind LSN {}", cut.bytes, cut.lsn)
                });
                output::line(format_args!(
                    "shard {}: sound, LSN {} to {}, {} records, {} bytes of payload, {}{torn}",
                    shard.0,
                    log.head,
                    log.end,
                    log.records,
                    log.payload_bytes,
                    if log.clean { "closed in order" } else { "not closed in order" },
                ));
            }
            Err(failure) => {
                output::line(&failure);
                worst = worst.or(Some(failure));
            }
        }
    }
    worst.map_or(Ok(()), Err)
}

/// The two files of checkpoints, where they are there.
fn map_checkpoints(files: &Files, shard: ShardId) -> Result<[Option<Mapped>; 2], Failure> {
    let mut maps = [None, None];
    for (which, map) in (0..).zip(&mut maps) {
        let path = files.path(FileId::Checkpoint { shard, which });
        if path.exists() {
            let opened = Mapped::open(&path);
            *map = Some(opened.map_err(|error| path_failure(&path, "cannot be mapped", &error))?);
        }
    }
    Ok(maps)
}

fn bytes_of(map: &Option<Mapped>) -> &[u8] {
    map.as_ref().map_or(&[][..], Mapped::bytes)
}

/// A checkpoint that does not check is no failure: the log says the same.
fn print_checkpoints(maps: &[Option<Mapped>; 2], node: &NodeSuperblock, shard: ShardId) {
    let seed = LogSeed::new(node.log_id, shard);
    for (which, map) in (0..).zip(maps) {
        let Some(map) = map else { continue };
        let file = FileId::Checkpoint { shard, which };
        let line = match check_checkpoint(&seed, node.geometry.segment_bytes, map.bytes()) {
            Ok(None) => "none: it was not written to its end".to_owned(),
            Ok(Some(head)) => format!(
                "generation {}: what lives before LSN {}, the log from there on has to pass LSN \
                 {}; {} pages, {} bytes",
                head.generation, head.from, head.until, head.pages, head.bytes
            ),
            Err(error) => format!("of no use: {error}"),
        };
        output::line(format_args!("{file}: {line}"));
    }
}

/// A shard's log as a start would judge it; `segments` by slot, and the heads of its checkpoints.
pub(crate) fn judge(
    node: &NodeSuperblock,
    shard: ShardId,
    superblock: &[u8],
    segments: &[(Slot, Mapped)],
    checkpoints: &[&[u8]],
) -> Result<Verified, Failure> {
    let segments: Vec<SegmentFile<'_>> = segments
        .iter()
        .map(|(slot, map)| SegmentFile { slot: *slot, bytes: map.bytes() })
        .collect();
    verify(node, shard, superblock, &segments, checkpoints)
        .map_err(|error| Failure::new(cause_of(&error), format!("shard {}: {error}", shard.0)))
}

fn cause_of(error: &RecoveryError) -> Cause {
    match error {
        RecoveryError::Version { .. }
        | RecoveryError::Superblock(
            SuperblockError::Version(_)
            | SuperblockError::UnknownFeatures(_)
            | SuperblockError::UnknownPart(_),
        ) => Cause::FormatUnknown,
        RecoveryError::Superblock(
            SuperblockError::Unreadable | SuperblockError::WrongLog(_) | SuperblockError::Malformed,
        )
        | RecoveryError::NotFormatted
        | RecoveryError::NotWhole { .. }
        | RecoveryError::WrongLog { .. }
        | RecoveryError::Damaged { .. }
        | RecoveryError::Record { .. } => Cause::JournalDamaged,
        RecoveryError::Unreadable { .. } | RecoveryError::Unwritable { .. } => {
            Cause::JournalUnreadable
        }
    }
}

fn node_line(node: &NodeSuperblock) -> String {
    format!(
        "log {}, directory {}: {} shards, segments of {} bytes, generation {}, {:?}",
        node.log_id,
        node.journal_uuid,
        node.geometry.shards,
        node.geometry.segment_bytes,
        node.generation,
        node.state,
    )
}

fn segment_line(view: &SegmentView<'_>) -> String {
    let header = match view.header() {
        SegmentRead::Blank => return "blank".to_owned(),
        SegmentRead::Unreadable => "its header does not check".to_owned(),
        SegmentRead::Version(version) => format!("format version {version}"),
        SegmentRead::WrongLog(log) => format!("of another log, {log}"),
        SegmentRead::Header(header) => format!("from LSN {}", header.first_lsn),
    };
    let (mut good, mut broken, mut stale, mut records) = (0, 0, 0, 0_u64);
    for batch in view.batches() {
        match batch.state {
            BatchState::Good => {
                good += 1;
                records += u64::from(batch.header.records);
            }
            BatchState::BodyBroken => broken += 1,
            BatchState::Stale => stale += 1,
        }
    }
    format!(
        "{header}: {good} batches, {records} records; {broken} broken, {stale} of earlier lives"
    )
}

fn batch_line(batch: &BatchView<'_>) -> String {
    let state = match batch.state {
        BatchState::Good => "good",
        BatchState::BodyBroken => "its body does not check",
        BatchState::Stale => "of an earlier life",
    };
    let header = &batch.header;
    format!(
        "at {}: batch at LSN {}, {} records, {} bytes, durable {}: {state}",
        batch.offset, header.first_lsn, header.records, header.body_bytes, header.durable
    )
}

fn print_records(batch: &BatchView<'_>) {
    for record in batch.records.clone() {
        match record {
            Ok((lsn, record)) => output::line(format_args!(
                "    LSN {lsn}: {:?}, queue {}, sequence {}, fragment {}, {} bytes",
                record.kind,
                record.queue.0,
                record.sequence.0,
                record.fragment,
                record.payload.len()
            )),
            Err((lsn, error)) => output::line(format_args!("    LSN {lsn}: {error}")),
        }
    }
}
