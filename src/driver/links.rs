//! A core's streams to the other member, on its own ring.
//!
//! ```text
//!   a task dials or greets (ha/streams.rs): TLS, the first frame
//!        └─ Linked ─▶ Up ──hang_up──▶ last frames, TLS's goodbye ──sent──▶ closed
//!                      └── the peer's end, a break, bytes that don't decode ─▶ closed
//!
//!   received ─▶ opened ─▶ Frame::decode ─▶ the shard, in the same turn
//!   frames of a turn ─▶ `out` ─▶ sealed ─▶ one send at a time
//! ```
//! So a batch goes from one member's core to the other's, and its confirmation back, with no other
//! thread on the way.
//!
//! Invariants: frames go out in the order in which they were said. A shard hears of a stream's end
//! once, and nothing of it afterwards; what came before the end is heard. What came and is no whole
//! frame yet is bounded by the largest frame; what waits to be sent, by what a live sends ahead of
//! a follower that says the truth of what it has.
//!
//! Failure: a stream that breaks is gone at the end of the turn; who dialled it is told, and dials
//! again. A peer that takes no bytes is broken off by the kernel (`mutual.rs` says when).

use std::convert::Infallible;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use broker::shard::pair::{PairEvent, StreamId};
use bytes::BytesMut;
use journal::ShardId;
use net::{Ring, SocketId};
use replica::wire::Frame;
use rustls::Connection;
use tokio::sync::oneshot;

/// A connection whose handshake and greeting are over, on its way to the core of its shard.
pub(crate) struct Linked {
    /// Whose stream it is.
    pub(crate) shard: ShardId,
    /// Its number, never given twice in a process.
    pub(crate) stream: StreamId,
    /// The connection; none once the ring has it.
    pub(crate) socket: Option<TcpStream>,
    /// Its TLS, if it has any.
    pub(crate) tls: Option<Box<Connection>>,
    /// What the other member began with.
    pub(crate) first: Option<Frame>,
    /// What came behind that.
    pub(crate) received: BytesMut,
    /// Dropped when the stream is over.
    pub(crate) held: oneshot::Sender<Infallible>,
}

impl std::fmt::Debug for Linked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Linked").field("shard", &self.shard).field("stream", &self.stream).finish()
    }
}

struct Link {
    socket: SocketId,
    stream: StreamId,
    shard: ShardId,
    tls: Option<Box<Connection>>,
    /// The beginning of a frame.
    received: BytesMut,
    /// Frames that wait for the send under way.
    out: BytesMut,
    /// A send is under way.
    sends: bool,
    /// Our side has ended it: what waits goes out, and what comes is nobody's.
    hung_up: bool,
    /// It is closed at the end of the turn, whatever waits.
    is_over: bool,
    /// Whoever made it waits for the end of this.
    _held: oneshot::Sender<Infallible>,
}

/// The streams of a core: as many as shards, and for moments an older one beside a newer.
#[derive(Default)]
pub(super) struct Links {
    links: Vec<Link>,
    /// Those that are over, for their shards to hear.
    over: Vec<(ShardId, StreamId)>,
}

impl Links {
    /// A stream begins; what its shard is to hear of it.
    pub(super) fn begin(&mut self, socket: SocketId, linked: Linked, hear: impl FnMut(PairEvent)) {
        let Linked { shard, stream, mut tls, first, received, held, socket: _ } = linked;
        if let Some(tls) = &mut tls {
            // What waits is bounded by what is said.
            tls.set_buffer_limit(None);
        }
        let mut link = Link {
            socket,
            stream,
            shard,
            tls,
            received,
            out: BytesMut::new(),
            sends: false,
            hung_up: false,
            is_over: false,
            _held: held,
        };
        let mut hear = hear;
        hear(PairEvent::Connected(stream));
        if let Some(frame) = first {
            hear(PairEvent::Heard(stream, frame));
        }
        // TLS may have opened some already.
        link.hear(&[], &mut hear);
        self.links.push(link);
    }

    /// Whether this is the socket of a stream.
    pub(super) fn has(&self, socket: SocketId) -> bool {
        self.links.iter().any(|link| link.socket == socket)
    }

    /// Bytes came for the stream of this socket: the frames that are whole, and whose.
    pub(super) fn received(
        &mut self,
        socket: SocketId,
        bytes: &[u8],
        mut hear: impl FnMut(ShardId, PairEvent),
    ) {
        let Some(link) = self.of(socket) else { return };
        if !link.hung_up && !link.is_over {
            let shard = link.shard;
            link.hear(bytes, &mut |event| hear(shard, event));
        }
    }

    /// A frame for a stream; of one that is over it is dropped.
    pub(super) fn say(&mut self, stream: StreamId, frame: &Frame) {
        let link = self.links.iter_mut().find(|link| link.stream == stream && !link.hung_up);
        if let Some(link) = link {
            frame.encode(&mut link.out);
        }
    }

    /// What was said last goes out, then the stream ends.
    pub(super) fn hang_up(&mut self, stream: StreamId) {
        if let Some(link) = self.links.iter_mut().find(|link| link.stream == stream) {
            link.hung_up = true;
        }
    }

    /// The send under way is over.
    pub(super) fn sent(&mut self, socket: SocketId) {
        if let Some(link) = self.of(socket) {
            link.sends = false;
        }
    }

    /// The socket has ended or broken. What else came of it in this turn is heard.
    pub(super) fn broken(&mut self, socket: SocketId) {
        if let Some(link) = self.of(socket) {
            link.is_over = true;
        }
    }

    /// Sends what has been said since the last time, one send a stream at a time; closes what is
    /// over.
    pub(super) fn flush(&mut self, ring: &mut Ring) {
        let mut at = 0;
        while at < self.links.len() {
            let link = &mut self.links[at];
            if link.is_over {
                self.end(ring, at);
                continue;
            }
            if link.sends {
                at += 1;
                continue;
            }
            let records = link.take_out();
            match records {
                Ok(records) if !records.is_empty() => {
                    link.sends = true;
                    ring.send(link.socket, records);
                    at += 1;
                }
                Ok(_) if !link.hung_up => at += 1,
                Ok(_) => self.end(ring, at),
                Err(why) => {
                    tracing::debug!(shard = link.shard.0, "stream ended: {why}");
                    self.end(ring, at);
                }
            }
        }
    }

    /// Streams that are over since the last time.
    pub(super) fn take_over(&mut self) -> Vec<(ShardId, StreamId)> {
        std::mem::take(&mut self.over)
    }

    fn of(&mut self, socket: SocketId) -> Option<&mut Link> {
        self.links.iter_mut().find(|link| link.socket == socket)
    }

    fn end(&mut self, ring: &mut Ring, at: usize) {
        let link = self.links.swap_remove(at);
        ring.close(link.socket);
        self.over.push((link.shard, link.stream));
    }
}

impl Link {
    /// Bytes came: the frames that are whole. Those before an end or a break are heard like others:
    /// the last one may say why.
    fn hear(&mut self, bytes: &[u8], hear: &mut impl FnMut(PairEvent)) {
        let opened = self.open(bytes);
        if let Err(why) = self.decode(hear).and(opened) {
            tracing::debug!(shard = self.shard.0, "stream ended: {why}");
            self.is_over = true;
        }
    }

    /// Opens records, or takes bytes as they are.
    fn open(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        let Some(tls) = &mut self.tls else {
            self.received.extend_from_slice(bytes);
            return Ok(());
        };
        loop {
            let state = tls.process_new_packets().map_err(|error| error.to_string())?;
            let (plain, ended) = (state.plaintext_bytes_to_read(), state.peer_has_closed());
            let before = self.received.len();
            self.received.resize(before + plain, 0);
            let read = tls.reader().read_exact(&mut self.received[before..]);
            read.map_err(|error| error.to_string())?;
            if ended {
                return Err("closed by the other member".to_owned());
            }
            if bytes.is_empty() {
                return Ok(());
            }
            if tls.read_tls(&mut bytes).map_err(|error| error.to_string())? == 0 {
                return Err("TLS takes nothing more".to_owned());
            }
        }
    }

    fn decode(&mut self, hear: &mut impl FnMut(PairEvent)) -> Result<(), String> {
        loop {
            let frame = Frame::decode(&mut self.received).map_err(|error| error.to_string())?;
            let Some(frame) = frame else { return Ok(()) };
            hear(PairEvent::Heard(self.stream, frame));
        }
    }

    /// What is to be sent: frames, what TLS has to say, and its goodbye.
    fn take_out(&mut self) -> Result<Vec<u8>, String> {
        let out = std::mem::take(&mut self.out);
        let Some(tls) = &mut self.tls else { return Ok(Vec::from(out)) };
        tls.writer().write_all(&out).map_err(|error| error.to_string())?;
        if self.hung_up {
            // Said once, however often.
            tls.send_close_notify();
        }
        let mut records = Vec::new();
        while tls.wants_write() {
            tls.write_tls(&mut records).map_err(|error| error.to_string())?;
        }
        Ok(records)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::Arc;
    use std::time::Duration;

    use net::{Completion, RingConfig};
    use rustls::crypto::aws_lc_rs;
    use rustls::pki_types::PrivateKeyDer;
    use rustls::version::TLS13;
    use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
    use tokio::sync::oneshot::error::TryRecvError;

    use super::*;

    const STREAM: StreamId = StreamId(7);

    fn ready(session: u64) -> Frame {
        Frame::Ready { session }
    }

    /// A ring with one stream, whoever waits for its end, and the other member's end.
    struct Bench {
        ring: Ring,
        links: Links,
        heard: Vec<PairEvent>,
        ended: oneshot::Receiver<Infallible>,
        other: TcpStream,
    }

    fn bench(first: Option<Frame>, received: BytesMut) -> Bench {
        bench_over(None, first, received)
    }

    fn bench_over(tls: Option<Box<Connection>>, first: Option<Frame>, received: BytesMut) -> Bench {
        let mut ring = Ring::new(RingConfig::default()).expect("a ring");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let other = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        other.set_read_timeout(Some(Duration::from_secs(10))).expect("bounded");
        let (ours, _) = listener.accept().expect("it is there");
        let socket = ring.adopt(ours).expect("a socket");
        let (held, ended) = oneshot::channel();
        let (shard, stream) = (ShardId(0), STREAM);
        let linked = Linked { shard, stream, socket: None, tls, first, received, held };
        let (mut links, mut heard) = (Links::default(), Vec::new());
        links.begin(socket, linked, |event| heard.push(event));
        ring.start_receive(socket);
        Bench { ring, links, heard, ended, other }
    }

    impl Bench {
        /// What the core does with completions, until this many were there.
        fn turns(&mut self, count: usize) {
            let (mut completions, mut seen) = (Vec::new(), 0);
            for _ in 0..1000 {
                self.links.flush(&mut self.ring);
                if seen >= count {
                    return;
                }
                let wait = Some(Duration::from_millis(10));
                self.ring.wait(wait, &mut completions).expect("a wait");
                for completion in completions.drain(..) {
                    seen += 1;
                    match completion {
                        Completion::Received { socket, lease } => {
                            let bytes = self.ring.bytes(&lease);
                            let heard = &mut self.heard;
                            self.links.received(socket, bytes, |_, event| heard.push(event));
                            self.ring.release(lease);
                        }
                        Completion::Sent { socket, result: Ok(()), .. } => self.links.sent(socket),
                        Completion::ReceiveEnded { socket, .. }
                        | Completion::Sent { socket, result: Err(_), .. } => {
                            self.links.broken(socket);
                        }
                        Completion::Closed { .. } => {}
                        other @ (Completion::Accepted { .. }
                        | Completion::AcceptFailed { .. }
                        | Completion::ListenerClosed { .. }
                        | Completion::Connected { .. }
                        | Completion::HandedOver { .. }
                        | Completion::Disk { .. }) => panic!("not under way: {other:?}"),
                    }
                }
            }
            panic!("{seen} of {count} completions in ten seconds");
        }

        fn sessions(&self) -> Vec<u64> {
            let mut sessions = Vec::new();
            for event in &self.heard {
                if let PairEvent::Heard(STREAM, Frame::Ready { session }) = event {
                    sessions.push(*session);
                }
            }
            sessions
        }
    }

    #[test]
    fn what_came_with_the_greeting_is_heard_first_and_in_order() {
        let mut came = BytesMut::new();
        ready(2).encode(&mut came);
        let mut later = BytesMut::new();
        ready(3).encode(&mut later);
        let cut = later.len() / 2;
        came.extend_from_slice(&later[..cut]);
        let mut bench = bench(Some(ready(1)), came);
        assert!(matches!(bench.heard[0], PairEvent::Connected(STREAM)));
        assert_eq!(bench.sessions(), [1, 2]);
        bench.other.write_all(&later[cut..]).expect("sent");
        bench.turns(1);
        assert_eq!(bench.sessions(), [1, 2, 3]);
    }

    #[test]
    fn who_hangs_up_has_sent_all_that_was_said() {
        let mut bench = bench(None, BytesMut::new());
        bench.links.say(STREAM, &ready(1));
        bench.links.flush(&mut bench.ring);
        // One send is under way: these wait for it.
        bench.links.say(STREAM, &ready(2));
        bench.links.hang_up(STREAM);
        bench.links.say(STREAM, &ready(3));
        bench.turns(3);
        assert_eq!(bench.links.take_over(), [(ShardId(0), STREAM)]);
        assert_eq!(bench.ended.try_recv(), Err(TryRecvError::Closed));
        let (mut all, mut sent) = (Vec::new(), BytesMut::new());
        bench.other.read_to_end(&mut all).expect("an end");
        ready(1).encode(&mut sent);
        ready(2).encode(&mut sent);
        assert_eq!(all, sent);
    }

    /// Both ends of a TLS connection whose handshake is over.
    fn secured() -> (Connection, Connection) {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("made");
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .and_then(|config| {
                config.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key)
            });
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).expect("a certificate");
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .expect("a version")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = "localhost".try_into().expect("a name");
        let client = ClientConnection::new(Arc::new(client), name).expect("a client");
        let server = ServerConnection::new(Arc::new(server.expect("usable"))).expect("a server");
        let (mut a, mut b) = (Connection::from(client), Connection::from(server));
        while a.is_handshaking() || b.is_handshaking() || a.wants_write() || b.wants_write() {
            carry(&mut a, &mut b);
            carry(&mut b, &mut a);
        }
        (a, b)
    }

    fn carry(from: &mut Connection, to: &mut Connection) {
        let mut bytes = Vec::new();
        while from.wants_write() {
            from.write_tls(&mut bytes).expect("records");
        }
        let mut bytes = &bytes[..];
        while !bytes.is_empty() {
            to.read_tls(&mut bytes).expect("taken");
            to.process_new_packets().expect("as it should be");
        }
    }

    #[test]
    fn over_tls_the_last_words_before_a_goodbye_are_heard() {
        let (ours, mut theirs) = secured();
        let mut bench = bench_over(Some(Box::new(ours)), None, BytesMut::new());
        let mut last = BytesMut::new();
        ready(9).encode(&mut last);
        theirs.writer().write_all(&last).expect("room");
        theirs.send_close_notify();
        let mut records = Vec::new();
        while theirs.wants_write() {
            theirs.write_tls(&mut records).expect("records");
        }
        bench.other.write_all(&records).expect("sent");
        bench.turns(1);
        assert_eq!(bench.sessions(), [9]);
        bench.turns(1);
        assert_eq!(bench.links.take_over(), [(ShardId(0), STREAM)]);
    }

    #[test]
    fn over_tls_who_hangs_up_has_sent_all_and_says_goodbye() {
        let (ours, mut theirs) = secured();
        let mut bench = bench_over(Some(Box::new(ours)), None, BytesMut::new());
        bench.links.say(STREAM, &ready(1));
        bench.links.flush(&mut bench.ring);
        bench.links.say(STREAM, &ready(2));
        bench.links.hang_up(STREAM);
        bench.turns(3);
        let (mut records, mut plain, mut said) = (Vec::new(), Vec::new(), BytesMut::new());
        bench.other.read_to_end(&mut records).expect("an end");
        let mut records = &records[..];
        while !records.is_empty() {
            theirs.read_tls(&mut records).expect("taken");
            let state = theirs.process_new_packets().expect("as it should be");
            let ended = state.peer_has_closed();
            if ended || state.plaintext_bytes_to_read() > 0 {
                drop(theirs.reader().read_to_end(&mut plain));
            }
            assert_eq!(ended, records.is_empty());
        }
        ready(1).encode(&mut said);
        ready(2).encode(&mut said);
        assert_eq!(plain, said);
    }

    #[test]
    fn bytes_that_no_member_sends_end_the_stream_and_are_told_once() {
        let mut bench = bench(None, BytesMut::new());
        assert_eq!(bench.ended.try_recv(), Err(TryRecvError::Empty));
        bench.other.write_all(&[0xff; 64]).expect("sent");
        bench.turns(2);
        assert_eq!(bench.links.take_over(), [(ShardId(0), STREAM)]);
        assert!(bench.links.take_over().is_empty());
        assert_eq!(bench.ended.try_recv(), Err(TryRecvError::Closed));
        assert!(bench.sessions().is_empty());
    }
}
