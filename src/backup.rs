//! `laelaps backup` and `laelaps restore`: what was durable at a named moment, kept elsewhere.
//!
//! ```text
//!   backup    broker ── POST /api/v1/point ─▶ one moment of all shards; their logs are held
//!             data/shard-000/segment-* ─▶ BACKUP/shard-000/segment-<number>    what is new of them
//!             broker ── DELETE /api/v1/point
//!             read back, judged as a start would judge it
//!             BACKUP/points/<time>/superblock, shard-000/superblock            last, by a rename
//!
//!   restore   points/<time>/shard-000/superblock ─▶ DATA
//!             each segment up to the point's durable mark, zeros behind it ─▶ DATA
//!             read back, judged as a start would judge it
//!             points/<time>/superblock ─▶ DATA                                 last
//! ```
//! A point is the superblocks of a directory that ends there; the segments are shared by all points
//! and only grow. So a backup costs what was written since the last one, and no point needs
//! another: each is its log from the head to the durable mark, which is what a power cut at that
//! moment would have left.
//!
//! Invariants: a point that is listed is whole, durable, and was read back. The broker's directory
//! is only read. A restored directory can be started only when all of it is durable.
//!
//! Failure: what stops a backup leaves segments that the next one uses, and no point. A byte of a
//! backup that has changed fails its restore, with the place (status 14), and never makes it
//! shorter.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use journal::{Lsn, NodeSuperblock, ShardId, ShardSuperblock};
use serde_json::{Value, json};

use crate::admin_client::{Method, Server};
use crate::driver::{Files, make_durably, path_failure, random, superblock_failure};
use crate::fatal::Failure;
use crate::output;

mod extent;
mod store;

use extent::Extent;
use store::{Copier, Store};

/// What `backup` is told.
#[derive(Args)]
pub(crate) struct Backup {
    /// The directory of backups; made if it is not there
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// The broker's data directory, where it is not at the path that the broker names
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    #[command(flatten)]
    server: Server,
}

/// What `restore` is told.
#[derive(Args)]
pub(crate) struct Restore {
    /// The directory of backups
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// The data directory to be made: not there yet, or empty
    #[arg(long, value_name = "DIR", required_unless_present = "list")]
    to: Option<PathBuf>,
    /// Which point: the newest, if it is not said
    #[arg(long, value_name = "POINT")]
    point: Option<String>,
    /// Only list the points, oldest first
    #[arg(long, conflicts_with_all = ["to", "point"])]
    list: bool,
}

const POINT: &str = "/api/v1/point";

/// The logs stay held if that is asked for at least this often.
const KEEP_EVERY: Duration = Duration::from_secs(5);

/// `laelaps backup`.
pub(crate) fn backup(options: &Backup) -> Result<(), Failure> {
    let server = &options.server;
    let answer = server.send(Method::Post, POINT)?;
    let copied = copy(options, &answer);
    // Also after a failure; where this fails too, the broker lets go by itself.
    let let_go = server.send(Method::Delete, POINT);
    let copied = copied?;
    let_go?;
    let (store, node) = (&copied.store, &copied.node);
    for (shard, bytes) in &copied.superblocks {
        store.judge(node, *shard, bytes)?;
    }
    let name = store.publish(node, &copied.superblocks)?;
    let answer = json!({ "point": name, "copied_bytes": copied.bytes });
    server.show(&answer, |_| format!("point {name}: {} bytes copied\n", copied.bytes));
    Ok(())
}

/// What of the broker's logs is in the store now.
struct Copied {
    store: Store,
    node: NodeSuperblock,
    /// Of the copy, by shard.
    superblocks: Vec<(ShardId, Vec<u8>)>,
    bytes: u64,
}

#[expect(clippy::disallowed_methods, reason = "a tool: what it waits for is real")]
fn copy(options: &Backup, answer: &Value) -> Result<Copied, Failure> {
    let named = answer["data"].as_str().map(PathBuf::from);
    let data = options.data.clone().or(named);
    let data = data.ok_or_else(|| Failure::command("the broker names no data directory"))?;
    let source = Files::at(&data);
    let node = source.node_superblock()?.ok_or_else(|| {
        let data = data.display();
        Failure::command(format!("{data} has no superblock: is it the broker's, on this machine?"))
    })?;
    let store = Store::open(&options.to, &node)?;
    let mut asked = Instant::now();
    let mut copier = Copier::new(|| {
        if asked.elapsed() >= KEEP_EVERY {
            options.server.send(Method::Put, POINT)?;
            asked = Instant::now();
        }
        Ok(())
    });
    let mut superblocks = Vec::new();
    for (shard, at) in points(answer, node.geometry.shards)? {
        let superblock = shard_superblock(&source, &node, shard)?;
        let extent = Extent::of(&source, &node, shard, &superblock, at)?;
        store.grow(&source, &node, (shard, &extent), &mut copier)?;
        superblocks.push((shard, superblock.copied(&extent.copy)));
    }
    let bytes = copier.bytes();
    Ok(Copied { store, node, superblocks, bytes })
}

/// A shard's log at the broker's point.
#[derive(Clone, Copy, Debug)]
struct At {
    first: Lsn,
    durable: Lsn,
}

fn points(answer: &Value, shards: u16) -> Result<Vec<(ShardId, At)>, Failure> {
    let lsn = |point: &Value, key: &str| point[key].as_u64().map(Lsn);
    let of = |shard: u16| {
        let point = &answer["shards"][usize::from(shard)];
        let at = At { first: lsn(point, "first_lsn")?, durable: lsn(point, "durable_lsn")? };
        Some((ShardId(shard), at))
    };
    let points: Option<Vec<_>> = (0..shards).map(of).collect();
    points.ok_or_else(|| Failure::command("the broker's shards are not those of the directory"))
}

fn shard_superblock(
    files: &Files,
    node: &NodeSuperblock,
    shard: ShardId,
) -> Result<ShardSuperblock, Failure> {
    let path = files.path(journal::FileId::ShardSuperblock(shard));
    let bytes = files.shard_superblock(shard)?;
    let read = ShardSuperblock::decode(&bytes, node.log_id, shard);
    let found = read.map_err(|error| superblock_failure(&path, &error))?;
    found.ok_or_else(|| Failure::command(format!("{} was never written", path.display())))
}

/// `laelaps restore`.
pub(crate) fn restore(options: &Restore) -> Result<(), Failure> {
    let store = Store::at(&options.from);
    let names = store.names()?;
    if options.list {
        names.iter().for_each(output::line);
        return Ok(());
    }
    let Some(to) = &options.to else { return Err(Failure::command("--to says where to")) };
    let name = match &options.point {
        Some(point) if names.contains(point) => point,
        Some(point) => {
            let from = options.from.display();
            return Err(Failure::command(format!(
                "there is no point {point} in {from}: see `laelaps restore --from {from} --list`"
            )));
        }
        None => names.last().ok_or_else(|| {
            Failure::command(format!("{} holds no point", options.from.display()))
        })?,
    };
    let (point, node) = store.point(name)?;
    make_empty(to)?;
    let target = Files::at(to);
    let mut copier = Copier::new(|| Ok(()));
    for shard in (0..node.geometry.shards).map(ShardId) {
        let superblock = shard_superblock(&point, &node, shard)?;
        store.fill(&target, &node, &superblock, &mut copier)?;
        let bytes = point.shard_superblock(shard)?;
        store::write_durably(&target.path(journal::FileId::ShardSuperblock(shard)), &bytes)?;
        let segments = target.map_segments(shard)?;
        let log = crate::journal_cli::judge(&node, shard, &bytes, &segments, &[])?;
        output::line(format_args!(
            "shard {}: LSN {} to {}, {} records, {} bytes of payload",
            shard.0, log.head, log.end, log.records, log.payload_bytes
        ));
    }
    let superblock = node.copied(journal::JournalUuid(random()?));
    store::write_durably(&target.path(journal::FileId::NodeSuperblock), &superblock)?;
    output::line(format_args!("point {name} is in {}", to.display()));
    Ok(())
}

/// The directory that a restore fills.
fn make_empty(to: &Path) -> Result<(), Failure> {
    make_durably(to).map_err(|error| path_failure(to, "cannot be made", &error))?;
    let mut entries =
        std::fs::read_dir(to).map_err(|error| path_failure(to, "cannot be listed", &error))?;
    match entries.next() {
        None => Ok(()),
        Some(_) => Err(Failure::command(format!(
            "{} is not empty: a restore makes a data directory of its own",
            to.display()
        ))),
    }
}
