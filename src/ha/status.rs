//! `laelaps ha …`: how a pair and its voters are, and the command that turns it over.
//!
//! ```text
//!   ha status      ─▶ GET  /api/v1/ha             ─▶ Membership::status
//!   ha switchover  ─▶ POST /api/v1/ha/switchover  ─▶ drains, gives the role away, begins anew
//!   ha bootstrap   ─▶ POST /api/v1/ha/bootstrap   ─▶ makes the first record, by an operator's word
//!   ha promote     ─▶ POST /api/v1/ha/promote     ─▶ takes the role, whatever is lost by it
//!   ha voters …    ─▶ each voter itself (`voter/status.rs`, `voter/replace.rs`)
//! ```
//! The keys of the JSON are an interface: they are added to, never renamed.

use clap::Subcommand;
use replica::NodeId;
use replica::member::Status;
use serde_json::{Value, json};

use super::control::Figures;
use crate::admin_client::{self, Server};
use crate::config::node_name;
use crate::fatal::Failure;
use crate::voter::{self, VotersOptions};

/// What can be asked about a pair.
#[derive(Subcommand)]
pub(crate) enum HaCommand {
    /// What this member of a pair does, and how far the other one is
    Status {
        #[command(flatten)]
        server: Server,
    },
    /// Have the other member be live: clients are answered, then sent there
    Switchover {
        #[command(flatten)]
        server: Server,
    },
    /// Have this member begin the pair, where the voters hold no record and can't have one
    ///
    /// Only where the other member can't say what it holds, or the logs do not say who is ahead.
    /// What the other one has more is exported when it comes back.
    Bootstrap {
        /// Name the other member: what it holds more than this one is not served any more
        #[arg(long, value_name = "NODE")]
        yes_without: String,
        #[command(flatten)]
        server: Server,
    },
    /// Have this member serve although it is not in sync; what the other one acknowledged is lost
    ///
    /// Only where the other member is gone for good. If it comes back, what it had more is
    /// exported.
    Promote {
        /// There is no other way to promote a member: others take over by themselves
        #[arg(long, required = true)]
        force_data_loss: bool,
        /// Name the other member: what it acknowledged alone is lost
        #[arg(long, value_name = "NODE")]
        yes_i_lose: String,
        #[command(flatten)]
        server: Server,
    },
    /// Ask each voter how it is, or put a new one in the place of a lost one
    Voters(VotersOptions),
    /// Stays when a broker dies, and tells the voters; a broker starts it
    #[command(hide = true)]
    Watch,
}

/// `laelaps ha …`.
pub(crate) fn ha(command: &HaCommand) -> Result<(), Failure> {
    match command {
        HaCommand::Status { server } => admin_client::ha_status(server),
        HaCommand::Switchover { server } => admin_client::ha_switchover(server),
        HaCommand::Bootstrap { yes_without, server } => {
            admin_client::ha_bootstrap(server, yes_without)
        }
        // The flag has to be there to come so far.
        HaCommand::Promote { force_data_loss: _, yes_i_lose, server } => {
            admin_client::ha_promote(server, yes_i_lose)
        }
        HaCommand::Voters(options) => voter::voters(options),
        HaCommand::Watch => super::watch::watch(),
    }
}

/// A member, as JSON.
pub(super) fn value(status: &Status, voters: (usize, usize), figures: &Figures) -> Value {
    let name = |node: NodeId| node_name(node);
    let in_sync: Vec<&str> = status.in_sync.iter().map(|node| name(*node)).collect();
    let shards: Vec<Value> = status
        .shards
        .iter()
        .map(|shard| {
            json!({
                "shard": shard.shard.0,
                "durable_lsn": shard.durable.0,
                "committed_lsn": shard.committed.0,
                "backup_durable_lsn": shard.backup_durable.map(|lsn| lsn.0),
            })
        })
        .collect();
    let forced: Vec<Value> = status
        .forced
        .iter()
        .map(|forced| json!({ "epoch": forced.epoch.0, "at_unix_ms": forced.at_ms }))
        .collect();
    let renewals = &figures.renewals;
    let within: Vec<[u64; 2]> = renewals.within().map(|(ms, count)| [ms, count]).collect();
    json!({
        "pair": status.pair,
        "node": name(status.node),
        "role": status.role.to_string(),
        "ready": status.is_ready(),
        "waits": status.waits.map(|waits| waits.to_string()),
        "epoch": status.epoch.map(|epoch| epoch.0),
        "version": status.version.map(|version| version.0),
        "live": status.live.map(name),
        "in_sync": in_sync,
        "lease_left_ms": status.lease_left.map(|left| left.as_millis() as u64),
        "lag_bytes": status.lag_bytes,
        "lag_ms": status.lag.map(|lag| lag.as_millis() as u64),
        "peer_is_there": status.peer_is_there,
        "fault": status.fault.map(|fault| fault.to_string()),
        "settings_differ": status.settings_differ,
        "voters": voters.1,
        "voters_reachable": voters.0,
        "forced": forced,
        "exported_deltas": figures.exported_deltas,
        "elections_total": figures.elections,
        "fencings_total": figures.fencings,
        "renewals_total": renewals.total(),
        "renewal_ms_max": renewals.max().as_millis() as u64,
        "renewal_ms_p999": renewals.p999().as_millis() as u64,
        "renewal_ms_sum": renewals.sum().as_millis() as u64,
        "renewals_within_ms": within,
        "lease_too_short": figures.lease_too_short,
        "shards": shards,
    })
}
