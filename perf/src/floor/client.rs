//! The raw client of a floor: requests of one length over TCP, answered in order.
//!
//! ```text
//!   due ──▶ a connection with room, in turn ──▶ what is due in one turn goes in one send
//!   answers: so many bytes each; the oldest request of the connection is done
//! ```
//! It drives any server that answers each request by a known number of bytes, in order: the floors,
//! and the echo servers of others that they are checked against. Nothing is allocated once the
//! buffers have gone round. Several threads share the connections and the rate, and begin together
//! once all are connected.
//!
//! Failure: a connection that is refused or ends while requests are under way is an error.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use net::{Completion, Ring, SocketId};

use super::pace::{Pace, Sent, clock};
use super::serve::spare;
use super::{FloorError, FloorLoad, new_ring};
use crate::block::{Block, Ended, Recorder};
use crate::schedule::Share;

/// How long a connection may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// Whom to ask, and what an answer looks like.
pub(super) struct Peer<'a> {
    /// Where.
    pub(super) addr: SocketAddr,
    /// Bytes of each answer.
    pub(super) answer_bytes: usize,
    /// Nanoseconds that the server has spent on CPUs, where it is known.
    pub(super) cpu_ns: &'a (dyn Fn() -> Option<u64> + Sync),
}

struct Line {
    socket: SocketId,
    under_way: VecDeque<Sent>,
    /// Bytes of the answer that has not come whole.
    partial: usize,
    /// What goes out at the end of the turn.
    out: Vec<u8>,
    free_since_ns: u64,
}

/// Runs a load against a server.
pub(super) fn run(peer: &Peer<'_>, load: &FloorLoad) -> Result<Block, FloorError> {
    let of = load.threads.min(load.connections) as u32;
    let (ready, others_ready) = mpsc::channel();
    std::thread::scope(|scope| {
        let (mut starts, mut others) = (Vec::new(), Vec::new());
        for index in 1..of {
            let (start, started) = mpsc::channel();
            starts.push(start);
            let (ready, peer) = (ready.clone(), Peer { cpu_ns: &|| None, ..*peer });
            let work = move || {
                let begin = move || {
                    // Whoever waits for this has ended where nobody listens.
                    let _ = ready.send(());
                    drop(ready);
                    started.recv().map_err(|_| FloorError::Ended)
                };
                run_share(&peer, load, Share { index, of }, begin)
            };
            let thread = std::thread::Builder::new().name(format!("floor-client-{index}"));
            let thread = thread.spawn_scoped(scope, work);
            others.push(thread.map_err(FloorError::io("a thread"))?);
        }
        drop(ready);
        // A thread that fails before its word takes its sender along, and its error is told below.
        let begin = move || {
            let all = others_ready.iter().count() == starts.len();
            let start = clock();
            if all {
                for one in &starts {
                    // A thread that is gone says why below.
                    let _ = one.send(start);
                }
            }
            all.then_some(start).ok_or(FloorError::Ended)
        };
        let mine = run_share(peer, load, Share { index: 0, of }, begin);
        let others = others.into_iter().map(|one| one.join().unwrap_or(Err(FloorError::Ended)));
        merge(std::iter::once(mine).chain(others).collect())
    })
}

/// Puts the threads' shares together. Where one failed, others have merely ended: its error counts.
fn merge(shares: Vec<Result<Recorded, FloorError>>) -> Result<Block, FloorError> {
    let failed =
        |share: &Result<_, _>| share.as_ref().is_err_and(|e| !matches!(e, FloorError::Ended));
    let mut shares = shares;
    if let Some(at) = shares.iter().position(failed) {
        shares.swap(0, at);
    }
    let mut shares = shares.into_iter();
    let first = shares.next().expect("at least one thread")?;
    let (mut recorder, mut ended) = (first.recorder, vec![first.ended]);
    for share in shares {
        let share = share?;
        recorder.add(&share.recorder);
        ended.push(share.ended);
    }
    Ok(Block { cpu_server_ns: first.cpu_server_ns, ..recorder.finish(&ended) })
}

/// What one thread recorded.
struct Recorded {
    recorder: Recorder,
    ended: Ended,
    cpu_server_ns: Option<u64>,
}

/// Connects, waits for `begin` to give the start, and runs its share of the load.
fn run_share(
    peer: &Peer<'_>,
    load: &FloorLoad,
    share: Share,
    begin: impl FnOnce() -> Result<Instant, FloorError>,
) -> Result<Recorded, FloorError> {
    let mut ring = new_ring()?;
    let mut client = Client::connect(&mut ring, peer, load, share)?;
    let mut pace = Pace::new(load, share, begin()?);
    let mut server_cpu_ns = None;
    let mut completions = Vec::new();
    loop {
        let now_ns = pace.now_ns();
        if pace.window_begins(now_ns) {
            server_cpu_ns = (peer.cpu_ns)();
        }
        client.send_due(&mut ring, &mut pace, now_ns);
        if pace.is_over(now_ns, client.under_way) {
            let end = (peer.cpu_ns)();
            let left = client.lines.into_iter().flat_map(|line| line.under_way);
            let (recorder, ended) = pace.finish(left);
            let cpu_server_ns =
                // A thread of the server that has ended takes its share along.
                end.zip(server_cpu_ns).and_then(|(end, start)| end.checked_sub(start));
            return Ok(Recorded { recorder, ended, cpu_server_ns });
        }
        let timeout = pace.timeout(now_ns, client.under_way < client.room);
        ring.wait(Some(timeout), &mut completions).map_err(FloorError::Ring)?;
        if completions.is_empty() {
            continue;
        }
        let now_ns = pace.now_ns();
        pace.spun(now_ns);
        for completion in completions.drain(..) {
            client.handle(&mut ring, &mut pace, now_ns, completion)?;
        }
    }
}

struct Client {
    lines: Vec<Line>,
    /// A socket's slot to its place in `lines`.
    place: Vec<usize>,
    request: Vec<u8>,
    answer_bytes: usize,
    in_flight: usize,
    under_way: usize,
    /// Requests that may be under way on all connections.
    room: usize,
    /// Whose turn it is.
    turn: usize,
    idle: Vec<Vec<u8>>,
}

impl Client {
    fn connect(
        ring: &mut Ring,
        peer: &Peer<'_>,
        load: &FloorLoad,
        share: Share,
    ) -> Result<Self, FloorError> {
        let ours = |connection: &usize| *connection as u32 % share.of == share.index;
        let connections = (0..load.connections).filter(ours).count();
        let mut client = Self {
            lines: Vec::with_capacity(connections),
            place: Vec::new(),
            request: (0..load.size).map(|at| (at % 251) as u8).collect(),
            answer_bytes: peer.answer_bytes,
            in_flight: load.in_flight,
            under_way: 0,
            room: connections * load.in_flight,
            turn: 0,
            idle: Vec::new(),
        };
        for _ in 0..connections {
            let socket = ring.connect(peer.addr).map_err(FloorError::io("a connection"))?;
            ring.start_receive(socket);
            client.place.resize(client.place.len().max(socket.slot() + 1), usize::MAX);
            client.place[socket.slot()] = client.lines.len();
            client.lines.push(Line {
                socket,
                under_way: VecDeque::with_capacity(load.in_flight),
                partial: 0,
                out: Vec::new(),
                free_since_ns: 0,
            });
        }
        let mut connected = 0;
        let mut completions = Vec::new();
        while connected < client.lines.len() {
            ring.wait(Some(CONNECT_WITHIN), &mut completions).map_err(FloorError::Ring)?;
            if completions.is_empty() {
                return Err(FloorError::Silent);
            }
            for completion in completions.drain(..) {
                match completion {
                    Completion::Connected { result, .. } => {
                        result.map_err(FloorError::io("a connection"))?;
                        connected += 1;
                    }
                    Completion::ReceiveEnded { .. } => return Err(FloorError::Ended),
                    Completion::Received { lease, .. } => ring.release(lease),
                    Completion::Accepted { .. }
                    | Completion::AcceptFailed { .. }
                    | Completion::ListenerClosed { .. }
                    | Completion::Sent { .. }
                    | Completion::Closed { .. }
                    | Completion::HandedOver { .. }
                    | Completion::Disk { .. } => {}
                }
            }
        }
        Ok(client)
    }

    fn send_due(&mut self, ring: &mut Ring, pace: &mut Pace, now_ns: u64) {
        let mut sent_any = false;
        while self.under_way < self.room {
            while self.lines[self.turn].under_way.len() == self.in_flight {
                self.turn = (self.turn + 1) % self.lines.len();
            }
            let line = &mut self.lines[self.turn];
            let Some(sent) = pace.due(now_ns, line.free_since_ns) else { break };
            if line.out.capacity() == 0 {
                line.out = spare(&mut self.idle);
            }
            line.out.extend_from_slice(&self.request);
            line.under_way.push_back(sent);
            self.under_way += 1;
            self.turn = (self.turn + 1) % self.lines.len();
            sent_any = true;
        }
        if sent_any {
            pace.spun(now_ns);
            for line in self.lines.iter_mut().filter(|line| !line.out.is_empty()) {
                ring.send(line.socket, std::mem::take(&mut line.out));
            }
        }
    }

    fn handle(
        &mut self,
        ring: &mut Ring,
        pace: &mut Pace,
        now_ns: u64,
        completion: Completion,
    ) -> Result<(), FloorError> {
        match completion {
            Completion::Received { socket, lease } => {
                let count = ring.bytes(&lease).len();
                ring.release(lease);
                let line = &mut self.lines[self.place[socket.slot()]];
                if line.under_way.len() == self.in_flight {
                    line.free_since_ns = now_ns;
                }
                let bytes = line.partial + count;
                line.partial = bytes % self.answer_bytes;
                for _ in 0..bytes / self.answer_bytes {
                    let sent = line.under_way.pop_front().ok_or(FloorError::Unasked)?;
                    self.under_way -= 1;
                    pace.done(sent, now_ns);
                }
            }
            Completion::Sent { buf, result, .. } => {
                result.map_err(FloorError::io("a send"))?;
                self.idle.push(buf);
            }
            Completion::ReceiveEnded { result, .. } => {
                result.map_err(FloorError::io("a connection"))?;
                return Err(FloorError::Ended);
            }
            Completion::Connected { .. }
            | Completion::Accepted { .. }
            | Completion::AcceptFailed { .. }
            | Completion::ListenerClosed { .. }
            | Completion::Closed { .. }
            | Completion::HandedOver { .. }
            | Completion::Disk { .. } => {}
        }
        Ok(())
    }
}
