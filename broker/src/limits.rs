//! Every bound of a shard, and the assertions between them.
//!
//! A bound is here because something outside decides how much arrives. Near a bound the broker
//! withholds credit; at it, it refuses with `amqp:resource-limit-exceeded`. What an operator may
//! change is in the process's configuration; these are the ones that follow from the design.

use std::time::Duration;

/// Credit given to a producer's link; topped up when half of it is used.
pub const PRODUCER_CREDIT: u32 = 256;
/// Transfers that a producer's link remembers, answered ones behind an unanswered one among them;
/// above it, it gets no credit.
pub const PRODUCER_TOKENS_MAX: usize = 4_096;
/// Messages that a home shard may have on their way to one consumer's connection.
pub const CONSUMER_WINDOW: u32 = 128;
/// Messages that a home shard may have on their way to one browser's connection. Few: a message
/// that is settled meanwhile is kept by nothing else, and counted nowhere.
pub const BROWSER_WINDOW: u32 = 16;
/// Bytes of messages of one connection that wait to be accepted; above it, its reads are withheld.
pub const UNACCEPTED_BYTES_MAX: u64 = 8 << 20;
/// Bytes that wait in a connection's engine to be sent; above it, deliveries wait outside.
pub const TRANSMIT_BYTES_HIGH: usize = 256 << 10;
/// How long a peer may take to read our last bytes when all else is over.
pub const LAST_BYTES_WITHIN: Duration = Duration::from_secs(5);
/// Share of the memory bound (in 1/16) above which producers' credit is withheld.
pub const PRESSURE_SIXTEENTHS: u64 = 13;
/// Share of the memory bound (in 1/16) below which it flows again.
pub const RELIEF_SIXTEENTHS: u64 = 11;
/// Bytes of messages that wait for the journal above which producers' credit is withheld.
pub const PARKED_BYTES: u64 = 1 << 20;
/// Or how long they have waited.
pub const PARKED_FOR: Duration = Duration::from_millis(10);
/// How long producers' credit is withheld beyond the last reason for it.
pub const PRESSURE_HOLD: Duration = Duration::from_millis(50);
/// How long it is withheld after a message was refused because the log is full.
pub const FULL_HOLD: Duration = Duration::from_secs(1);
/// Pressure is told in the log once in this time, and in between to those who debug.
pub const PRESSURE_LOG_EVERY: Duration = Duration::from_secs(10);
/// Messages that are looked at in one step of what concerns very many, like a purge.
pub const GRADUAL_STEP: usize = 512;
/// Pause between two such steps where somebody waits: there is one in a turn of the host.
pub const GRADUAL_MOMENT: Duration = Duration::from_micros(1);
/// The same where nobody does.
pub const GRADUAL_PAUSE: Duration = Duration::from_millis(1);
/// A shard takes no mail of others for so long at most, while all of them name one moment.
pub const FREEZE_MAX: Duration = Duration::from_millis(250);
/// A log is held for who copies it for so long, unless it is asked for again.
pub const HOLD_MAX: Duration = Duration::from_secs(30);
/// Index and bookkeeping of one message in memory, in bytes; counted against the memory bound.
pub const SLOT_BYTES: u64 = 64;
/// What is kept beside that of a message that says when it is to be delivered.
pub const SCHEDULE_BYTES: u64 = 64;
/// What is kept beside it of a message that expires: two entries of ordered trees, 53 to 69 bytes.
pub const EXPIRY_BYTES: u64 = 72;
/// Of one that stands out of the order of sequences, by its priority or its time, or since it came
/// back: an entry of an ordered tree, 50 bytes.
pub const PLACE_BYTES: u64 = 56;
/// Of one that a consumer has given back, while it lives: another, 16 to 21 bytes.
pub const TOUCHED_BYTES: u64 = 24;
/// Of one that has to go: why, and its turn.
pub const DOOM_BYTES: u64 = 64;
/// Of one that some consumers do not get again, beside their links.
pub const EXCLUDED_BYTES: u64 = 96;
/// Of a copy that is hidden since its origin may still live: whence it came.
pub const ARRIVAL_BYTES: u64 = 64;
/// What is left of a slot when the message's bytes are on the disk only.
pub const INDEX_BYTES: u64 = 32;
/// What a message in fragments takes beside that, in bytes, and counts against the memory bound.
pub const CHAIN_BYTES: u64 = 96;
/// And for each of its fragments, whose place it is.
pub const FRAGMENT_PLACE_BYTES: u64 = 16;
/// What a message takes, beside the places of its fragments, while only a part of it has come.
pub const HALF_BYTES: u64 = 256;
/// A message that comes in several transfers is gathered up to so many bytes; a longer one goes
/// into the log as it comes.
pub const GATHER_BYTES_MAX: u64 = 256 << 10;
/// Bytes of a fragment that goes into the log as it comes: two of them fill a batch.
pub const PART_BYTES: usize = 63 << 10;
/// Where memory is short what has come of a message goes into the log, if it is so much.
pub const PART_BYTES_MIN: usize = 4 << 10;
/// A message of which nothing has come for so long is given up, where its beginning keeps this many
/// segments from being recycled.
pub const HALF_IDLE: Duration = Duration::from_secs(30);
/// See there.
pub const HALF_IDLE_SEGMENTS: u64 = 4;
/// One that comes slowly is given up after so long, where the log behind its beginning is so many
/// times as long as all that lives in it.
pub const HALF_SLOW: Duration = Duration::from_secs(600);
/// See there.
pub const HALF_TIMES: u64 = 4;
/// Bytes of one connection's messages on their way to the log; above it, its reads are withheld.
pub const INFLOW_BYTES_MAX: u64 = 256 << 10;
/// Slots that are allocated and freed together.
pub const CHUNK_SLOTS: usize = 32;
/// Messages and frames that have begun and not ended may take one of so many parts of the memory
/// bound, beside what is stored; beyond it the connections that take longest to finish are closed.
pub const UNFINISHED_SHARE: u64 = 4;
/// Share of the memory bound (in 1/16) above which messages' bytes are dropped from memory, if they
/// can be read back; below pressure, so that producers are not held back by what can go.
pub const SHED_SIXTEENTHS: u64 = 10;
/// Share (in 1/16) at which that ends.
pub const SHED_UNTIL_SIXTEENTHS: u64 = 9;
/// While a log is read at a start, bytes of messages are kept until so many sixteenths of the bound
/// are used: how large the index will be is not known before its end, and it needs room too.
pub const KEPT_AT_START_SIXTEENTHS: u64 = 3;
/// Messages whose bytes are dropped in one step.
pub const SHED_STEP: usize = 1_024;
/// Chunks of slots that are looked at in one step for that.
pub const SHED_LOOKS: usize = 16_384;
/// A peer that takes all of a send within so long is slow, and not deaf.
pub const READS_WITHIN: Duration = Duration::from_secs(30);
/// Room of buffers is looked for when what connections hold has grown by one of so many parts of
/// its bound, all together.
pub const TRIM_SHARE: u64 = 2;
/// All connections are trimmed once in this time at the most.
pub const TRIM_EVERY: Duration = Duration::from_millis(50);
/// A connection keeps a buffer that came home, up to so many bytes of room.
pub const SPARE_BYTES_MAX: usize = 512 << 10;
/// And that is what is left of it when the connection is trimmed.
pub const SPARE_BYTES_KEPT: usize = 64 << 10;
/// When nothing can be dropped, it is tried again after this long.
pub const SHED_REST: Duration = Duration::from_millis(5);
/// Bytes of one queue that are read before their turn, at most; many queues share an eighth of the
/// memory bound.
pub const READ_AHEAD_BYTES: u64 = 1 << 20;
/// What is read before its turn takes one of so many parts of the memory bound.
pub const READ_AHEAD_SHARE: u64 = 8;
/// So far behind the next message it is looked for what is to be read.
pub const READ_AHEAD_MESSAGES: u64 = 4_096;
/// The same among messages that came back.
pub const READ_AHEAD_REQUEUED: usize = 64;
/// Bytes that one read brings back.
pub const READ_BACK_BYTES: usize = 256 << 10;
/// Bytes between two wanted records that are read along rather than skipped.
pub const READ_BACK_GAP_BYTES: u64 = 16 << 10;
/// Fragments that are on their way to a consumer, answered or not; and of one message of a session
/// those that are on their way to its connection, or wait there.
pub const OUTFLOW_FRAGMENTS: u16 = 2;
/// Header and annotations of a message in fragments: they are in the first of them, also when the
/// broker has added its own.
pub const HEAD_BYTES_MAX: usize = 48 << 10;
/// Reads that wait or are under way before more is asked for.
pub const READ_BACKS_MAX: usize = 32;
/// Messages that one peek shows.
pub const PEEK_MESSAGES_MAX: usize = 100;
/// Bytes of messages that one peek shows; of one that is longer, nothing but its length.
pub const PEEK_BYTES_MAX: usize = 8 << 20;
/// Bytes of a log that are put into an export at once, a batch more or less.
pub const EXPORT_PIECE_BYTES: usize = 1 << 20;
/// Records that a copy of the head segment's catalogue and sequences appends in one step.
pub const COPY_STEP: usize = 256;
/// Bytes of live records that a compaction gathers before it copies them, by queue; it may be more
/// by what one read brings.
pub const COPY_WINDOW_BYTES: usize = 2 << 20;
/// Bytes that may lie between what is committed and the last copy, for another to be appended.
pub const COPIES_IN_FLIGHT_BYTES: u64 = 64 << 10;
/// The same where room is short.
pub const COPIES_IN_FLIGHT_BYTES_SHORT: u64 = 256 << 10;
/// A page of a checkpoint is told until so many bytes are full.
pub const CHECKPOINT_PAGE_BYTES: usize = 60 << 10;
/// Messages that are looked at for one.
pub const CHECKPOINT_LOOKS: usize = 4_096;
/// What a message takes in a checkpoint, in bytes, about.
pub const CHECKPOINT_MESSAGE_BYTES: u64 = 24;
/// How long after a checkpoint was given up another is begun; twice as long after each more.
pub const CHECKPOINT_RETRY: Duration = Duration::from_secs(10);
/// It doubles so many times: up to ten minutes, about.
pub const CHECKPOINT_RETRY_DOUBLINGS: u32 = 6;
/// Bytes of an address.
pub const ADDRESS_BYTES_MAX: usize = 512;
/// Queues of one node.
pub const QUEUES_MAX: usize = 65_536;
/// Of them, those that nobody who asks can have: the broker's own, for dead and expired messages.
pub const QUEUES_RESERVED: usize = 64;
/// Temporary queues of one connection, and those that it has asked for.
pub const TEMPORARY_QUEUES_PER_CONNECTION_MAX: u32 = 256;
/// Queue ids that are set aside at once for temporary queues, which are then made without a write.
pub const TEMPORARY_IDS: u64 = 1_024;
/// Connections of one shard.
pub const CONNECTIONS_MAX: usize = 16_384;
/// Bytes of a container-id that a connection may claim for itself.
pub const CONTAINER_ID_BYTES_MAX: usize = 1_024;
/// How long a connection may be on its way to another shard; then its host has dropped it.
pub const TRANSIT_WITHIN: Duration = Duration::from_secs(30);
/// Lines in a second that a shard's log has for connections that end before they are open.
pub const STRANGER_LINES_PER_SECOND: u32 = 10;
/// Links of one connection.
pub const LINKS_PER_CONNECTION_MAX: usize = 4_096;
/// The same with those that were refused and that the peer has not detached: at it, the session of
/// one more is ended.
pub const LINKS_WITH_REFUSED_MAX: usize = 2 * LINKS_PER_CONNECTION_MAX;
/// Bytes of a link's name: clients make it of an id and an address.
pub const LINK_NAME_BYTES_MAX: usize = 1_024;
/// Links that one consumer excluded message remembers (`undeliverable-here`).
pub const EXCLUSIONS_MAX: usize = 16;
/// Bytes of annotations that consumers may add to one message (`modified`), encoded.
pub const ADDED_BYTES_MAX: usize = 4_096;
/// Bytes of the condition that a message was rejected with, as far as it is kept.
pub const ERROR_BYTES_MAX: usize = 256;
/// The same of the error's description.
pub const DESCRIPTION_BYTES_MAX: usize = 1_024;
/// Messages that expire, and moves that begin, in one step of a shard; the next step is in the next
/// turn.
pub const EXPIRE_STEP: usize = 256;
/// Messages that one shard has on their way to other queues; the rest wait in theirs.
pub const MOVES_MAX: usize = 256;
/// Of those, messages in fragments that are read and written at once; the rest wait for that.
pub const FLOWS_MAX: usize = 8;
/// Messages of a queue that are offered to consumers while they find no room where they go.
pub const OFFERED_MAX: usize = 64;
/// Bytes of a duplicate id.
pub const DUPLICATE_ID_BYTES_MAX: usize = 1_024;
/// Bookkeeping of one duplicate id in memory, in bytes; counted against the memory bound.
pub const DUPLICATE_ID_BYTES: u64 = 128;
/// All duplicate ids of a shard may take one of so many parts of its memory, and of its log.
pub const DUPLICATES_SHARE: u64 = 8;
/// The log is let grow to so many times the bytes of all ids before a segment with nothing but ids
/// is recycled: carrying them forward must not be what fills the log.
pub const CARRY_TIMES: u64 = 4;
/// Segments that must be free for that, the journal's reserve among them and the largest message
/// not.
pub const CARRY_ROOM_SEGMENTS: u64 = 4;
/// Bytes of ids in one record that carries them forward.
pub const CARRY_RECORD_BYTES: usize = 32 << 10;
/// Bytes of the copies that are appended in one step; ids make them long.
pub const CARRY_STEP_BYTES: usize = 128 << 10;
/// How long a message waits before it is moved again when it was not taken.
pub const MOVE_RETRY_MIN: Duration = Duration::from_millis(50);
/// The longest that this gets, doubling each time.
pub const MOVE_RETRY_MAX: Duration = Duration::from_secs(5);

const _: () = {
    // Relief must be below pressure, or the credit would flap at one message.
    assert!(RELIEF_SIXTEENTHS < PRESSURE_SIXTEENTHS);
    assert!(PRESSURE_SIXTEENTHS < 16);
    assert!(KEPT_AT_START_SIXTEENTHS < SHED_UNTIL_SIXTEENTHS);
    assert!(KEPT_AT_START_SIXTEENTHS + PRESSURE_SIXTEENTHS <= 16);
    // What can go goes before anybody is held back.
    assert!(SHED_UNTIL_SIXTEENTHS < SHED_SIXTEENTHS && SHED_SIXTEENTHS < RELIEF_SIXTEENTHS);
    assert!(INDEX_BYTES <= SLOT_BYTES);
    assert!(size_of::<journal::FragmentAt>() as u64 <= FRAGMENT_PLACE_BYTES);
    // The longest record that can be read back fits into one read, wherever its blocks begin.
    let longest = journal::limits::RECORD_HEADER_BYTES
        + journal::limits::PARTS_BYTES_MAX
        + journal::limits::FRAGMENT_BYTES_MAX;
    assert!(READ_BACK_BYTES >= longest + 2 * journal::limits::BLOCK_BYTES);
    // A chunk is a power of two: sequence -> chunk is a shift.
    assert!(CHUNK_SLOTS.is_power_of_two());
    // An id and its kind fit among the optional parts of a record, and into one that carries it.
    assert!(DUPLICATE_ID_BYTES_MAX + 256 <= journal::limits::PARTS_BYTES_MAX);
    assert!(DUPLICATE_ID_BYTES_MAX + 16 <= CARRY_RECORD_BYTES);
    assert!(CARRY_ROOM_SEGMENTS > journal::limits::RESERVE_SEGMENTS as u64);
    // Segments that are kept for their ids alone leave half of the log to messages.
    assert!(2 * CARRY_TIMES <= DUPLICATES_SHARE);
    // What is added to a message and why it goes fit into one fragment.
    assert!(ADDED_BYTES_MAX < CARRY_RECORD_BYTES);
    // The error of a rejection leaves room for what was added before.
    assert!(ERROR_BYTES_MAX + DESCRIPTION_BYTES_MAX <= ADDED_BYTES_MAX / 2);
    // An address, and as much again for what a client puts beside it.
    assert!(LINK_NAME_BYTES_MAX >= 2 * ADDRESS_BYTES_MAX);
    // A top-up happens at half, so there must be a half.
    assert!(PRODUCER_TOKENS_MAX > 2 * PRODUCER_CREDIT as usize);
    // Most queues are for those who ask.
    assert!(QUEUES_RESERVED < QUEUES_MAX / 2);
    assert!(PRODUCER_CREDIT >= 2 && CONSUMER_WINDOW >= 2);
};
