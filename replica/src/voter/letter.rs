//! What voters say to each other, in bytes of our own: the engine's protobuf never sees a network.
//!
//! ```text
//!   letter   from seat (1) to seat (1) kind (1), then
//!     1 hello      nonce (8)                            "who are you, which disks do you know?"
//!     2 i am       nonce (8) uuid (16) disks            the answer, with the asker's nonce
//!     3 engine     tag (8), then the fields of a raft message that voters exchange
//!
//!   disks    count (2), each uuid (16) before (4); if there are some: tag (8) changing seat (1)
//! ```
//! The whole list of engine messages is `ENGINE_KINDS`. Whatever only travels inside one voter is
//! refused.
//!
//! Invariants: a letter is bounded by its frame; entries are in order, each within the bound of a
//! value; a message from or to a disk of another seat than its letter's is refused.

use raft::eraftpb::{Entry, Message, MessageType, Snapshot};

use super::seats::{Disks, EnsembleTag, Seat, Seats, VoterUuid, seat_of_id};
use super::store::Image;
use super::wal::{put_entry, take_entry};
use crate::codec::{Reader, WireError, Writer};
use crate::limits::{ENTRIES_MAX, IMAGE_HEAD_BYTES, STATE_BYTES_MAX};

/// One letter.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Letter {
    pub(crate) from: Seat,
    pub(crate) to: Seat,
    pub(crate) body: Body,
}

/// What a letter says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Body {
    Hello { nonce: u64 },
    IAm { nonce: u64, uuid: VoterUuid, disks: Option<Disks> },
    Engine { tag: EnsembleTag, message: Box<Message> },
}

/// The engine's messages that travel, with their number on the wire.
const ENGINE_KINDS: &[(u8, MessageType)] = &[
    (1, MessageType::MsgAppend),
    (2, MessageType::MsgAppendResponse),
    (3, MessageType::MsgRequestVote),
    (4, MessageType::MsgRequestVoteResponse),
    (5, MessageType::MsgSnapshot),
    (6, MessageType::MsgHeartbeat),
    (7, MessageType::MsgHeartbeatResponse),
    (8, MessageType::MsgRequestPreVote),
    (9, MessageType::MsgRequestPreVoteResponse),
];

/// Longest context of a message: the number of a read, or the kind of a campaign.
const CONTEXT_BYTES_MAX: usize = 64;

impl Letter {
    /// Its bytes; none for a message of the engine that does not travel.
    pub(crate) fn encode(&self) -> Option<Vec<u8>> {
        let mut w = Writer::new();
        w.u8(self.from.0);
        w.u8(self.to.0);
        match &self.body {
            Body::Hello { nonce } => {
                w.u8(1);
                w.u64(*nonce);
            }
            Body::IAm { nonce, uuid, disks } => {
                w.u8(2);
                w.u64(*nonce);
                w.uuid(&uuid.0);
                Disks::put(disks.as_ref(), &mut w);
            }
            Body::Engine { tag, message } => {
                w.u8(3);
                w.u64(tag.0);
                put_message(&mut w, message)?;
            }
        }
        Some(w.finish())
    }

    /// Reads a letter between `seats`.
    pub(crate) fn decode(bytes: &[u8], seats: Seats) -> Result<Self, WireError> {
        let mut r = Reader::new(bytes);
        let (from, to) = (Seat(r.u8("from")?), Seat(r.u8("to")?));
        if !seats.has(from) || !seats.has(to) || from == to {
            return Err(WireError::Contradiction("from and to"));
        }
        let body = match r.u8("kind of letter")? {
            1 => Body::Hello { nonce: r.u64("nonce")? },
            2 => Body::IAm {
                nonce: r.u64("nonce")?,
                uuid: VoterUuid(r.uuid("uuid")?),
                disks: Disks::take(&mut r)?,
            },
            3 => {
                let tag = EnsembleTag(r.u64("ensemble")?);
                let message = take_message(&mut r)?;
                if seat_of_id(message.from) != from || seat_of_id(message.to) != to {
                    return Err(WireError::Contradiction("seats and disks"));
                }
                Body::Engine { tag, message: Box::new(message) }
            }
            other @ (0 | 4..) => return Err(WireError::Unknown("kind of letter", other.into())),
        };
        r.end()?;
        Ok(Self { from, to, body })
    }
}

fn put_message(w: &mut Writer, message: &Message) -> Option<()> {
    let kind = ENGINE_KINDS.iter().find(|(_, kind)| *kind == message.msg_type)?.0;
    w.u8(kind);
    w.u64(message.from);
    w.u64(message.to);
    w.u64(message.term);
    w.u64(message.log_term);
    w.u64(message.index);
    w.u64(message.commit);
    w.u64(message.commit_term);
    w.bool(message.reject);
    w.u64(message.reject_hint);
    w.u64(message.request_snapshot);
    w.bytes(&message.context);
    w.list(&message.entries, put_entry);
    let snapshot = message.get_snapshot();
    w.bool(message.has_snapshot());
    if message.has_snapshot() {
        w.u64(snapshot.get_metadata().index);
        w.u64(snapshot.get_metadata().term);
        w.bytes(&snapshot.data);
    }
    Some(())
}

fn take_message(r: &mut Reader<'_>) -> Result<Message, WireError> {
    let number = r.u8("kind of message")?;
    let known = ENGINE_KINDS.iter().find(|(known, _)| *known == number);
    let (_, kind) = known.ok_or(WireError::Unknown("kind of message", number.into()))?;
    let mut message = Message { msg_type: *kind, ..Default::default() };
    message.from = r.u64("from")?;
    message.to = r.u64("to")?;
    message.term = r.u64("term")?;
    message.log_term = r.u64("log term")?;
    message.index = r.u64("index")?;
    message.commit = r.u64("commit")?;
    message.commit_term = r.u64("commit term")?;
    message.reject = r.bool("reject")?;
    message.reject_hint = r.u64("reject hint")?;
    message.request_snapshot = r.u64("request snapshot")?;
    message.context = r.bytes(CONTEXT_BYTES_MAX, "context")?.to_vec().into();
    let entries: Vec<Entry> = r.list(ENTRIES_MAX, "entries", take_entry)?;
    let numbered = |(at, entry): (usize, &Entry)| {
        message.index.checked_add(at as u64 + 1) == Some(entry.index) && entry.term <= message.term
    };
    if !entries.iter().enumerate().all(numbered) {
        return Err(WireError::Contradiction("entries"));
    }
    message.set_entries(entries.into());
    if r.bool("snapshot")? {
        message.set_snapshot(take_snapshot(r)?);
    }
    Ok(message)
}

fn take_snapshot(r: &mut Reader<'_>) -> Result<Snapshot, WireError> {
    let (index, term) = (r.u64("snapshot index")?, r.u64("snapshot term")?);
    let data = r.bytes(STATE_BYTES_MAX + IMAGE_HEAD_BYTES, "snapshot")?;
    Ok(Image::read(index, term, data)?.snapshot())
}

#[cfg(test)]
mod tests {
    use raft::eraftpb::EntryType;

    use super::*;
    use crate::voter::seats::Replacement;

    fn seats() -> Seats {
        Seats::new(3).expect("three")
    }

    fn letters() -> Vec<Letter> {
        let disk = |n| VoterUuid([n; 16]);
        let disks = Disks::found(&[disk(1), disk(2), disk(3)]);
        let by = Replacement { seat: Seat(2), old: disk(2), new: disk(4) };
        let changing = disks.as_ref().and_then(|disks| disks.replaced(&by));
        let mut append = Message { msg_type: MessageType::MsgAppend, ..Default::default() };
        (append.from, append.to, append.term, append.index) = (1, 2, 4, 7);
        let entry = |index| Entry { index, term: 3, data: vec![1, 2].into(), ..Default::default() };
        let mut of_disks = Entry { context: vec![7; 33].into(), ..entry(10) };
        of_disks.data.clear();
        of_disks.set_entry_type(EntryType::EntryConfChangeV2);
        append.set_entries(vec![entry(8), entry(9), of_disks].into());
        let mut image = Message { msg_type: MessageType::MsgSnapshot, ..Default::default() };
        // To the new disk.
        (image.from, image.to, image.term) = (1, 10, 4);
        let registers = vec![0, 0];
        image.set_snapshot(Image { index: 5, term: 3, disks: changing, registers }.snapshot());
        let engine = |message| Body::Engine { tag: EnsembleTag(77), message: Box::new(message) };
        let bodies = [
            Body::Hello { nonce: 5 },
            Body::IAm { nonce: 5, uuid: disk(1), disks: None },
            Body::IAm { nonce: 5, uuid: disk(1), disks },
            engine(append),
            engine(image),
        ];
        bodies.into_iter().map(|body| Letter { from: Seat(1), to: Seat(2), body }).collect()
    }

    #[test]
    fn letters_arrive_as_they_were_sent() {
        for letter in letters() {
            let bytes = letter.encode().expect("it travels");
            assert_eq!(Letter::decode(&bytes, seats()), Ok(letter));
        }
    }

    #[test]
    fn a_snapshot_that_is_no_list_of_registers_is_refused() {
        let image = letters().pop().expect("the last one");
        let Body::Engine { tag, mut message } = image.body else { panic!("a snapshot") };
        let last = message.get_snapshot().data.len() - 2;
        let mut data = message.get_snapshot().data.to_vec();
        data[last] = 9;
        message.mut_snapshot().data = data.into();
        let body = Body::Engine { tag, message };
        let bytes = Letter { body, ..image }.encode().expect("it travels");
        assert!(Letter::decode(&bytes, seats()).is_err());
    }

    #[test]
    fn what_stays_inside_a_voter_does_not_travel() {
        for kind in [MessageType::MsgHup, MessageType::MsgPropose, MessageType::MsgTimeoutNow] {
            let message = Box::new(Message { msg_type: kind, ..Default::default() });
            let body = Body::Engine { tag: EnsembleTag(0), message };
            assert_eq!(Letter { from: Seat(1), to: Seat(2), body }.encode(), None);
        }
    }

    #[test]
    fn hostile_bytes_are_refused_or_mean_what_they_say() {
        for letter in letters() {
            let good = letter.encode().expect("it travels");
            for cut in 0..good.len() {
                assert!(Letter::decode(&good[..cut], seats()).is_err(), "cut at {cut}");
            }
            for at in 0..good.len() {
                for bit in 0..8 {
                    let mut bytes = good.clone();
                    bytes[at] ^= 1 << bit;
                    if let Ok(read) = Letter::decode(&bytes, seats()) {
                        assert_eq!(read.encode(), Some(bytes), "byte {at} bit {bit}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_voter_does_not_write_to_itself_or_to_a_seat_that_is_not() {
        let mut bytes = letters()[0].encode().expect("it travels");
        bytes[1] = 1;
        assert!(Letter::decode(&bytes, seats()).is_err());
        bytes[1] = 4;
        assert!(Letter::decode(&bytes, seats()).is_err());
    }
}
