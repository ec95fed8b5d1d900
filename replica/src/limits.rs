//! Every bound of the voters, of the pair's record and of its stream, checked against each other at
//! compile time.
//!
//! What is marked *format* is read by every later version and never changes; the rest are choices.

use std::time::Duration;

/// Fewest voters: with less no machine may fail.
pub const VOTERS_MIN: usize = 3;

/// Most voters: more only make each answer slower.
pub const VOTERS_MAX: usize = 7;

/// Most pairs that one ensemble of voters serves.
pub const PAIRS_MAX: usize = 64;

/// Longest value of a register. *Format.*
pub const VALUE_BYTES_MAX: usize = 64 * 1024;

/// Most bytes of all values together: the whole state travels as one snapshot.
pub const STATE_BYTES_MAX: usize = 1024 * 1024;

/// Bytes that a register takes in a snapshot beside its value.
pub const REGISTER_HEAD_BYTES: usize = 28;

/// Bytes before the registers in the image that voters send each other: the disks.
pub const IMAGE_HEAD_BYTES: usize = 256;

/// Most members of a pair that the record names.
pub const MEMBERS_MAX: usize = 2;

/// Most reigns that the record remembers; the oldest go first.
pub const REIGNS_MAX: usize = 32;

/// Most reigns by an operator's word that the record remembers; the oldest go first.
pub const FORCED_MAX: usize = 8;

/// Longest address in the record.
pub const ADDRESS_BYTES_MAX: usize = 255;

/// Most bytes of parts of the record that this version does not know and keeps.
pub const CARRIED_BYTES_MAX: usize = 8 * 1024;

/// Most questions of clients that wait at one voter.
pub const QUESTIONS_MAX: usize = 256;

/// Most entries in one message between voters: so many from the log, and what came meanwhile.
pub const ENTRIES_MAX: usize = STORED_ENTRIES_MAX + 2 * INBOX_MAX;

/// Most entries that are read from the log at once.
pub const STORED_ENTRIES_MAX: usize = 512;

/// Bytes of entries in one message between voters, one entry more or less.
pub const APPEND_BYTES_MAX: usize = 256 * 1024;

/// Most messages of others that wait while a voter writes; what comes beyond is dropped, as a
/// network may, and sent again.
pub const INBOX_MAX: usize = 256;

/// Longest frame between voters, or between a client and a voter.
pub const FRAME_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Bytes of a voter's log at which it is written anew from a snapshot.
pub const WAL_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Unit of a voter's log: every record begins at a multiple. *Format.*
pub const WAL_BLOCK_BYTES: usize = 4096;

/// The voters' unit of time.
pub const TICK: Duration = Duration::from_millis(20);

/// Ticks between two heartbeats of a leader.
pub const HEARTBEAT_TICKS: usize = 2;

/// Ticks without a leader before a voter stands for election: at least this, and less than twice
/// as much. It is far below any lease, so that a lost leader of the voters costs no broker its
/// role.
pub const ELECTION_TICKS: usize = 10;

/// Ticks after which an image that a voter was sent, and has said nothing of, is sent again.
pub const IMAGE_TICKS: u64 = 50;

/// How long a client waits for the answer to one question before its outcome counts as unknown.
pub const QUESTION_TIMEOUT: Duration = Duration::from_millis(500);

/// Most questions that a client has open.
pub const CLIENT_QUESTIONS_MAX: usize = 64;

const _: () = {
    assert!(VOTERS_MIN % 2 == 1 && VOTERS_MAX % 2 == 1 && VOTERS_MIN < VOTERS_MAX);
    assert!(VALUE_BYTES_MAX + REGISTER_HEAD_BYTES <= STATE_BYTES_MAX);
    // The whole state, or the longest run of entries, fits into a frame.
    assert!(STATE_BYTES_MAX + IMAGE_HEAD_BYTES + 4096 <= FRAME_BYTES_MAX);
    assert!(VOTERS_MAX * 20 + 32 <= IMAGE_HEAD_BYTES);
    assert!(APPEND_BYTES_MAX + 2 * VALUE_BYTES_MAX + ENTRIES_MAX * 64 + 4096 <= FRAME_BYTES_MAX);
    // The watermarks of all shards, with everything else that a record may hold, fit into a value.
    let watermark = journal::limits::SHARDS_MAX as usize * 16;
    let members = MEMBERS_MAX * (2 * ADDRESS_BYTES_MAX + 128);
    assert!(
        watermark + members + (REIGNS_MAX + FORCED_MAX) * 16 + CARRIED_BYTES_MAX + 1024
            <= VALUE_BYTES_MAX
    );
    assert!(HEARTBEAT_TICKS * 3 <= ELECTION_TICKS);
};

// ---- The stream between live and backup --------------------------------------------------------

/// Longest body of a frame between members: a batch and what goes before it.
pub const STREAM_BODY_BYTES_MAX: usize = 160 * 1024;

/// Longest name of a pair.
pub const PAIR_NAME_BYTES_MAX: usize = 64;

/// Longest explanation of a refusal.
pub const REASON_BYTES_MAX: usize = 256;

/// Bytes of batches sent to a backup and not durable there. It is far below what a follower lets
/// wait for its disk, so that an honest live never overruns one.
pub const SEND_AHEAD_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Batches sent to a backup and not durable there.
pub const SEND_AHEAD_BATCHES_MAX: usize = 256;

/// Slowest catch-up that can be asked for, bytes a second of one shard.
pub const CATCH_UP_RATE_MIN: u64 = 64 * 1024;

/// What a catch-up may send at once after it has waited is what its rate allows in this time.
pub const CATCH_UP_BURST: Duration = Duration::from_millis(20);

/// Bytes of batches that a live keeps in memory for its backup; older ones are read back.
pub const WINDOW_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Bytes that an in-sync backup may be behind before producers are held back.
pub const LAG_WITHHOLD_BYTES: u64 = 4 * 1024 * 1024;

/// How long an in-sync backup may be so far behind, although it makes progress, before it is to be
/// put out of the set.
pub const LAG_PATIENCE: Duration = Duration::from_secs(10);

/// How long an in-sync backup may make no progress before it is to be put out of the set.
pub const ACK_PATIENCE: Duration = Duration::from_millis(800);

/// How often a live that sends nothing says that it is there.
pub const BEAT_EVERY: Duration = Duration::from_millis(50);

/// Silence after which either side gives the connection up.
pub const SILENCE_MAX: Duration = Duration::from_secs(2);

/// How long the log is held for a backup that was being brought up and whose connection is gone: it
/// reads its own log again, and comes back.
pub const HOLD_AFTER: Duration = Duration::from_secs(10);

/// Bytes that a backup may be behind on a shard when it is to come into the in-sync set: more than
/// a busy live has under way, or no backup would be near while producers are at full speed; less
/// than what holds them back, or they would feel it at once.
pub const NEAR_BYTES: u64 = LAG_WITHHOLD_BYTES / 2;

// ---- A member ----------------------------------------------------------------------------------

/// How often a member tells the other one of itself, if nothing changes.
pub const CARD_EVERY: Duration = Duration::from_millis(250);

/// How long a member waits for the other one, or for what the voters should know, before its log
/// says that somebody should look.
pub const OTHERS_PATIENCE: Duration = Duration::from_secs(60);

/// How long a write to the journal may be under way before its member gives the role away.
pub const WRITE_AGE_MAX: Duration = Duration::from_secs(2);

const _: () = {
    let under_way =
        (journal::limits::WRITES_IN_FLIGHT_MAX * journal::limits::BATCH_BYTES_MAX) as u64;
    assert!(under_way <= NEAR_BYTES && NEAR_BYTES < LAG_WITHHOLD_BYTES);
    assert!(journal::limits::BATCH_BYTES_MAX + 16 <= STREAM_BODY_BYTES_MAX);
    assert!(SEND_AHEAD_BYTES_MAX * 2 <= journal::limits::BACKLOG_BYTES_MAX);
    assert!(LAG_WITHHOLD_BYTES <= journal::limits::BACKLOG_BYTES_MAX);
};
