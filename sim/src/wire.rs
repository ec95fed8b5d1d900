//! A client's end of an AMQP connection, written against the frames alone.
//!
//! ```text
//!   headers, SASL ANONYMOUS or none, open, begin     all in one go, as pipelining clients do
//!   one session; links by handle; transfers cut to the peer's frame size
//!   hear(bytes) ──▶ Heard …                          take_output() ──▶ bytes
//! ```
//! It shares the codec with the broker and nothing else: what both ends of one engine would get
//! wrong together, this end does not. It also does what an engine would not let a host do:
//! outcomes that wait for the broker's settlement, dispositions over ranges, odd cuts of frames.
//!
//! Invariant: it obeys the broker's session window and link credit, and says [`Heard::Broken`]
//! where the broker does not obey its own, or sends what cannot be decoded.

use std::collections::{BTreeMap, VecDeque};

use amqp::codec::{Multiple, Reader, Symbol, Writer};
use amqp::definitions::{DeliveryId, Handle, Role, SenderSettleMode};
use amqp::frame::{self, FrameKind, FrameWriter, ProtocolId};
use amqp::performative::{
    AnySource, AnyTarget, Attach, Begin, Close, DeliveryState, Detach, Disposition, End, Error,
    Flow, Modified, Open, Performative, Rejected, Source, Target, Transfer,
};
use amqp::sasl::{SaslBody, SaslCode, SaslInit};

use crate::letter;

/// What a client asks for when it connects.
#[derive(Clone, Copy, Debug)]
pub struct Hello {
    /// With a SASL layer, ANONYMOUS.
    pub sasl: bool,
    /// The largest frame we take.
    pub max_frame_size: u32,
    /// Transfer frames we take before we say more.
    pub incoming_window: u32,
}

/// The outcome that a client gives a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Taken.
    Accepted,
    /// Invalid.
    Rejected,
    /// Given back.
    Released,
    /// Given back with changes.
    Modified {
        /// Counts as a failed delivery.
        failed: bool,
        /// Not to this link again.
        not_here: bool,
        /// An annotation, to be merged into the message's.
        note: Option<u32>,
    },
}

impl Verdict {
    /// Whether the message is done with, wherever it is. A rejected one goes to the dead letters.
    pub fn is_final(self) -> bool {
        match self {
            Self::Accepted => true,
            Self::Rejected | Self::Released | Self::Modified { .. } => false,
        }
    }
}

/// What came from the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The session is up: links may be attached.
    Ready,
    /// A link is up, or refused with null termini: then its `Detached` follows.
    Attached {
        /// Which.
        handle: u32,
    },
    /// A queue was made for this link, and is there as long as the link.
    Made {
        /// Which.
        handle: u32,
        /// Its name.
        address: String,
    },
    /// We send on this link, and there is credit.
    Credit {
        /// Which.
        handle: u32,
    },
    /// A whole message.
    Delivery {
        /// On which link.
        handle: u32,
        /// Its number in the session.
        id: u32,
        /// Settled by the broker already.
        settled: bool,
        /// Its bytes.
        message: Vec<u8>,
    },
    /// What became of deliveries that we sent.
    Outcome {
        /// The first.
        first: u32,
        /// The last.
        last: u32,
        /// `None`: an outcome that we do not expect.
        verdict: Option<Verdict>,
    },
    /// The broker has settled deliveries that we gave an outcome and did not settle.
    Settled {
        /// The first.
        first: u32,
        /// The last.
        last: u32,
    },
    /// A drain is over.
    Drained {
        /// The link.
        handle: u32,
    },
    /// The broker detached, or answered our detach.
    Detached {
        /// The link.
        handle: u32,
        /// Whether we asked for it.
        answered: bool,
        /// The condition, if by error.
        error: Option<String>,
    },
    /// The broker ended the session, or answered our end.
    Ended {
        /// Whether we asked for it.
        answered: bool,
    },
    /// The broker closed, or answered our close.
    Closed {
        /// Whether we asked for it.
        answered: bool,
        /// The condition, if by error.
        error: Option<String>,
    },
    /// The broker broke a rule.
    Broken(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    SaslHeader,
    SaslFrames,
    AmqpHeader,
    Frames,
    Over,
}

#[derive(Debug)]
struct Link {
    name: String,
    role: Role,
    /// The broker's handle for it.
    remote: Option<u32>,
    detach_sent: bool,
    /// Sender: deliveries sent. Receiver: deliveries received, drains included.
    delivery_count: u32,
    /// Sender: granted by the broker. Receiver: granted by us.
    limit: u32,
    draining: bool,
    partial: Option<Partial>,
}

#[derive(Debug)]
struct Partial {
    id: u32,
    settled: bool,
    message: Vec<u8>,
}

#[derive(Debug)]
struct Waiting {
    handle: u32,
    id: u32,
    settled: bool,
    message: Vec<u8>,
    sent: usize,
    /// Bytes of a frame's payload, at most.
    step: usize,
    /// So many frames may go, and no more before that is said; none: all.
    held: Option<u32>,
}

/// A client's end of a connection.
#[derive(Debug)]
pub struct Endpoint {
    hello: Hello,
    stage: Stage,
    input: Vec<u8>,
    output: Vec<u8>,
    heard: VecDeque<Heard>,
    links: BTreeMap<u32, Link>,
    frame_max: usize,
    next_outgoing_id: u32,
    next_delivery_id: u32,
    /// How many transfer frames the broker still takes.
    remote_window: u32,
    next_incoming_id: u32,
    /// How many transfer frames we still take.
    local_window: u32,
    /// A message that the session's window cut, or put off. One at a time, so that a delivery
    /// number is never left out.
    waiting: Option<Waiting>,
    end_sent: bool,
    close_sent: bool,
}

const HANDLES_MAX: u32 = 63;

impl Endpoint {
    /// A connection that has said hello, open and begin.
    pub fn new(container_id: &str, hello: Hello) -> Self {
        let mut endpoint = Self {
            hello,
            stage: if hello.sasl { Stage::SaslHeader } else { Stage::AmqpHeader },
            input: Vec::new(),
            output: Vec::new(),
            heard: VecDeque::new(),
            links: BTreeMap::new(),
            frame_max: 512,
            next_outgoing_id: 0xffff_fff0,
            next_delivery_id: 0xffff_fff8,
            remote_window: 0,
            next_incoming_id: 0,
            local_window: hello.incoming_window,
            waiting: None,
            end_sent: false,
            close_sent: false,
        };
        if hello.sasl {
            endpoint.output.extend(ProtocolId::Sasl.header());
            let init = SaslInit { mechanism: Symbol::new("ANONYMOUS"), ..SaslInit::default() };
            frame::write_sasl(&mut endpoint.output, &SaslBody::Init(init));
        }
        endpoint.output.extend(ProtocolId::Amqp.header());
        endpoint.write(&Performative::Open(Open {
            container_id,
            max_frame_size: hello.max_frame_size,
            channel_max: 0,
            ..Open::default()
        }));
        endpoint.write(&Performative::Begin(Begin {
            next_outgoing_id: endpoint.next_outgoing_id,
            incoming_window: endpoint.local_window,
            outgoing_window: u32::MAX,
            handle_max: Handle(HANDLES_MAX),
            ..Begin::default()
        }));
        endpoint
    }

    /// Everything to be sent.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// The next thing that was heard.
    pub fn poll_heard(&mut self) -> Option<Heard> {
        self.heard.pop_front()
    }

    /// Whether a message may be sent on this link now.
    pub fn can_send(&self, handle: u32) -> bool {
        let open = |link: &Link| link.remote.is_some() && !link.detach_sent;
        self.links.get(&handle).is_some_and(|link| {
            open(link) && link.limit.wrapping_sub(link.delivery_count) as i32 > 0
        }) && self.waiting.is_none()
            && !self.end_sent
            && !self.close_sent
    }

    // ---- Commands ------------------------------------------------------------------------------

    /// Asks for a link on which we send.
    /// Without an address each message says where it goes.
    pub fn attach_sender(&mut self, handle: u32, name: &str, address: Option<&str>) {
        self.attach(handle, name, Role::Sender, address, None);
    }

    /// Asks for a link on which we receive.
    pub fn attach_receiver(&mut self, handle: u32, name: &str, address: &str) {
        self.attach(handle, name, Role::Receiver, Some(address), None);
    }

    /// Asks for a link on which we receive from a queue that is made for it.
    pub fn attach_dynamic(&mut self, handle: u32, name: &str) {
        self.attach(handle, name, Role::Receiver, None, None);
    }

    /// Asks for a link on which we are shown what there is.
    pub fn attach_browser(&mut self, handle: u32, name: &str, address: &str) {
        self.attach(handle, name, Role::Receiver, Some(address), Some(Symbol::new("copy")));
    }

    fn attach(
        &mut self,
        handle: u32,
        name: &str,
        role: Role,
        address: Option<&str>,
        distribution_mode: Option<Symbol<'_>>,
    ) {
        let delivery_count = if role == Role::Sender { 0xffff_fffc } else { 0 };
        let outcomes = ["amqp:accepted:list", "amqp:rejected:list", "amqp:released:list"];
        let outcomes = outcomes.map(Symbol::new);
        self.write(&Performative::Attach(Attach {
            name,
            handle: Handle(handle),
            role,
            snd_settle_mode: SenderSettleMode::Mixed,
            source: Some(AnySource::Source(Source {
                address,
                outcomes: Multiple::from(&outcomes[..]),
                distribution_mode,
                dynamic: role == Role::Receiver && address.is_none(),
                ..Source::default()
            })),
            target: Some(AnyTarget::Target(Target { address, ..Target::default() })),
            initial_delivery_count: (role == Role::Sender).then_some(delivery_count),
            ..Attach::default()
        }));
        let link = Link {
            name: name.to_owned(),
            role,
            remote: None,
            detach_sent: false,
            delivery_count,
            limit: delivery_count,
            draining: false,
            partial: None,
        };
        self.links.insert(handle, link);
    }

    /// Gives the broker credit on a link, counted from what was received.
    pub fn grant(&mut self, handle: u32, credit: u32, drain: bool) {
        let Some(link) = self.links.get_mut(&handle) else { return };
        if link.detach_sent || link.remote.is_none() {
            return;
        }
        link.limit = link.delivery_count.wrapping_add(credit);
        link.draining = drain;
        let delivery_count = link.delivery_count;
        let flow = Flow {
            handle: Some(Handle(handle)),
            delivery_count: Some(delivery_count),
            link_credit: Some(credit),
            drain,
            ..self.session_flow()
        };
        self.write(&Performative::Flow(flow));
    }

    fn session_flow(&self) -> Flow<'static> {
        Flow {
            next_incoming_id: Some(self.next_incoming_id),
            incoming_window: self.local_window,
            next_outgoing_id: self.next_outgoing_id,
            outgoing_window: u32::MAX,
            ..Flow::default()
        }
    }

    /// Sends a message, for which there must be credit; its number in the session.
    ///
    /// # Panics
    /// If [`can_send`](Self::can_send) says no.
    pub fn send(&mut self, handle: u32, message: Vec<u8>, settled: bool) -> u32 {
        let id = self.send_nothing(handle);
        let step = self.frame_max - 128;
        self.waiting = Some(Waiting { handle, id, settled, message, sent: 0, step, held: None });
        self.transmit();
        id
    }

    /// Begins to send a message in frames of so many bytes; the rest waits for
    /// [`go_on`](Self::go_on).
    pub fn send_slowly(
        &mut self,
        handle: u32,
        message: Vec<u8>,
        settled: bool,
        step: usize,
    ) -> u32 {
        let id = self.send_nothing(handle);
        let held = Some(1);
        self.waiting = Some(Waiting { handle, id, settled, message, sent: 0, step, held });
        self.transmit();
        id
    }

    fn send_nothing(&mut self, handle: u32) -> u32 {
        assert!(self.can_send(handle), "asked first");
        let link = self.links.get_mut(&handle).expect("asked first");
        link.delivery_count = link.delivery_count.wrapping_add(1);
        let id = self.next_delivery_id;
        self.next_delivery_id = id.wrapping_add(1);
        id
    }

    /// Sends so many frames more of what is sent slowly; none: all of it.
    pub fn go_on(&mut self, frames: Option<u32>) {
        if let Some(waiting) = &mut self.waiting {
            waiting.held = frames;
        }
        self.transmit();
    }

    /// Gives up what is sent slowly, if the broker has some of it; the link and the delivery.
    pub fn abort(&mut self) -> Option<(u32, u32)> {
        let begun = |waiting: &mut Waiting| waiting.held.is_some() && waiting.sent > 0;
        if self.remote_window == 0 || self.end_sent || self.close_sent {
            return None;
        }
        let Waiting { handle, id, .. } = self.waiting.take_if(begun)?;
        let transfer = Transfer { handle: Handle(handle), aborted: true, ..Transfer::default() };
        let mut frame = FrameWriter::amqp(&mut self.output, 0);
        frame.composite(&transfer);
        frame.finish();
        self.remote_window -= 1;
        self.next_outgoing_id = self.next_outgoing_id.wrapping_add(1);
        // Its credit is used: the broker grants it again.
        Some((handle, id))
    }

    fn transmit(&mut self) {
        while self.remote_window > 0 && !self.end_sent && !self.close_sent {
            let Some(mut waiting) = self.waiting.take() else { return };
            if let Some(left) = &mut waiting.held {
                if *left == 0 {
                    self.waiting = Some(waiting);
                    return;
                }
                *left -= 1;
            }
            let end = (waiting.sent + waiting.step).min(waiting.message.len());
            let (first, more) = (waiting.sent == 0, end < waiting.message.len());
            let tag = waiting.id.to_be_bytes();
            let transfer = Transfer {
                handle: Handle(waiting.handle),
                delivery_id: first.then_some(DeliveryId(waiting.id)),
                delivery_tag: first.then_some(&tag[..]),
                message_format: first.then_some(0),
                settled: Some(waiting.settled),
                more,
                ..Transfer::default()
            };
            let mut frame = FrameWriter::amqp(&mut self.output, 0);
            frame.composite(&transfer);
            frame.payload(&waiting.message[waiting.sent..end]);
            frame.finish();
            self.remote_window -= 1;
            self.next_outgoing_id = self.next_outgoing_id.wrapping_add(1);
            waiting.sent = end;
            if more {
                self.waiting = Some(waiting);
            }
        }
    }

    /// Gives deliveries that came to us an outcome, and perhaps settles them.
    pub fn dispose(&mut self, first: u32, last: u32, verdict: Verdict, settled: bool) {
        let mut encoded = Vec::new();
        if let Verdict::Modified { note: Some(note), .. } = verdict {
            Writer::new(&mut encoded).map_with(|map| {
                map.element().symbol(Symbol::new(letter::NOTE));
                map.element().uint(note);
            });
        }
        let annotations = Reader::new(&encoded).map().ok();
        let state = match verdict {
            Verdict::Accepted => DeliveryState::Accepted,
            Verdict::Rejected => DeliveryState::Rejected(Rejected::default()),
            Verdict::Released => DeliveryState::Released,
            Verdict::Modified { failed, not_here, note: _ } => DeliveryState::Modified(Modified {
                delivery_failed: Some(failed),
                undeliverable_here: Some(not_here),
                message_annotations: annotations,
            }),
        };
        self.write(&Performative::Disposition(Disposition {
            role: Role::Receiver,
            first: DeliveryId(first),
            last: (last != first).then_some(DeliveryId(last)),
            settled,
            state: Some(state),
            batchable: false,
        }));
    }

    /// Whether a message is sent slowly, and is not all sent.
    pub fn is_held(&self) -> bool {
        self.waiting.as_ref().is_some_and(|waiting| waiting.held.is_some())
    }

    /// Detaches a link; `Detached` answers.
    pub fn detach(&mut self, handle: u32, closed: bool) {
        let Some(link) = self.links.get_mut(&handle) else { return };
        link.detach_sent = true;
        // The rest of what is sent slowly is never sent.
        let slow = |waiting: &mut Waiting| waiting.handle == handle && waiting.held.is_some();
        if let Some(waiting) = self.waiting.take_if(slow)
            && waiting.sent == 0
        {
            self.next_delivery_id = waiting.id;
        }
        self.write(&Performative::Detach(Detach {
            handle: Handle(handle),
            closed,
            ..Detach::default()
        }));
    }

    /// Whether a message waits for the session's window: its link must not be detached now.
    pub fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Ends the session; `Ended` answers.
    pub fn end(&mut self) {
        self.end_sent = true;
        self.write(&Performative::End(End::default()));
    }

    /// Closes the connection; `Closed` answers.
    pub fn close(&mut self) {
        self.close_sent = true;
        self.write(&Performative::Close(Close::default()));
    }

    /// Nothing more is said in a session that we have ended [2.5.6].
    fn write(&mut self, performative: &Performative<'_>) {
        let last_word = matches!(performative, Performative::End(_) | Performative::Close(_));
        if last_word || !(self.end_sent || self.close_sent) {
            frame::write(&mut self.output, 0, performative);
        }
    }

    // ---- Input ---------------------------------------------------------------------------------

    /// Takes bytes from the broker.
    pub fn hear(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        let mut input = std::mem::take(&mut self.input);
        let mut taken = 0;
        while self.stage != Stage::Over {
            match self.hear_one(&input[taken..]) {
                Ok(Some(used)) => taken += used,
                Ok(None) => break,
                Err(what) => {
                    self.stage = Stage::Over;
                    self.heard.push_back(Heard::Broken(what));
                }
            }
        }
        input.drain(..taken);
        self.input = input;
    }

    fn hear_one(&mut self, bytes: &[u8]) -> Result<Option<usize>, String> {
        match self.stage {
            Stage::SaslHeader | Stage::AmqpHeader => {
                let Some(id) = ProtocolId::parse(bytes).map_err(|error| error.to_string())? else {
                    return Ok(None);
                };
                let (want, next) = if self.stage == Stage::SaslHeader {
                    (ProtocolId::Sasl, Stage::SaslFrames)
                } else {
                    (ProtocolId::Amqp, Stage::Frames)
                };
                if id != want {
                    return Err(format!("the broker wants {id:?} where we want {want:?}"));
                }
                self.stage = next;
                Ok(Some(8))
            }
            Stage::SaslFrames | Stage::Frames => {
                let parsed = frame::parse(bytes, self.hello.max_frame_size);
                let Some((frame, used)) = parsed.map_err(|error| error.to_string())? else {
                    return Ok(None);
                };
                match (self.stage, frame.kind) {
                    (Stage::SaslFrames, FrameKind::Sasl) => self.hear_sasl(frame.body)?,
                    (Stage::Frames, FrameKind::Amqp) if frame.body.is_empty() => {}
                    (Stage::Frames, FrameKind::Amqp) => self.hear_frame(frame.body)?,
                    (stage, kind) => return Err(format!("a {kind:?} frame in stage {stage:?}")),
                }
                Ok(Some(used))
            }
            Stage::Over => Ok(None),
        }
    }

    fn hear_sasl(&mut self, body: &[u8]) -> Result<(), String> {
        match SaslBody::decode(body).map_err(|error| error.to_string())? {
            SaslBody::Mechanisms(offer) => {
                let offered = offer.sasl_server_mechanisms.contains("ANONYMOUS");
                offered.then_some(()).ok_or_else(|| "ANONYMOUS is not offered".to_owned())
            }
            SaslBody::Outcome(outcome) if outcome.code == SaslCode::Ok => {
                self.stage = Stage::AmqpHeader;
                Ok(())
            }
            SaslBody::Outcome(outcome) => Err(format!("SASL failed: {:?}", outcome.code)),
            SaslBody::Init(_) | SaslBody::Challenge(_) | SaslBody::Response(_) => {
                Err("a SASL frame that a server does not send".to_owned())
            }
        }
    }

    fn hear_frame(&mut self, body: &[u8]) -> Result<(), String> {
        let (performative, payload) =
            Performative::decode(body).map_err(|error| error.to_string())?;
        match performative {
            Performative::Open(open) => {
                self.frame_max = open.max_frame_size.min(1 << 20) as usize;
                Ok(())
            }
            Performative::Begin(begin) => {
                self.next_incoming_id = begin.next_outgoing_id;
                self.remote_window = begin.incoming_window;
                self.heard.push_back(Heard::Ready);
                Ok(())
            }
            Performative::Attach(attach) => self.hear_attach(&attach),
            Performative::Flow(flow) => self.hear_flow(&flow),
            Performative::Transfer(transfer) => self.hear_transfer(&transfer, payload),
            Performative::Disposition(disposition) => self.hear_disposition(&disposition),
            Performative::Detach(detach) => self.hear_detach(&detach),
            Performative::End(_) => {
                self.heard.push_back(Heard::Ended { answered: self.end_sent });
                self.links.clear();
                self.waiting = None;
                if !self.end_sent {
                    self.end();
                }
                Ok(())
            }
            Performative::Close(close) => {
                let error = close.error.as_ref().map(condition);
                self.heard.push_back(Heard::Closed { answered: self.close_sent, error });
                if !self.close_sent {
                    self.close();
                }
                self.stage = Stage::Over;
                Ok(())
            }
        }
    }

    fn hear_attach(&mut self, attach: &Attach<'_>) -> Result<(), String> {
        let found = self.links.iter_mut().find(|(_, link)| {
            link.remote.is_none() && link.role != attach.role && link.name == attach.name
        });
        let Some((handle, link)) = found else {
            return Err(format!("an attach for '{}', which we did not ask for", attach.name));
        };
        link.remote = Some(attach.handle.0);
        if let Some(count) = attach.initial_delivery_count
            && link.role == Role::Receiver
        {
            link.delivery_count = count;
            link.limit = count;
        }
        let refused = match link.role {
            Role::Sender => attach.target.is_none(),
            Role::Receiver => attach.source.is_none(),
        };
        if !refused {
            let handle = *handle;
            self.heard.push_back(Heard::Attached { handle });
            if let Some(AnySource::Source(Source { dynamic: true, address, .. })) = &attach.source {
                let address = address.ok_or("a queue was made, and has no name")?.to_owned();
                self.heard.push_back(Heard::Made { handle, address });
            }
        }
        Ok(())
    }

    fn by_remote(&mut self, handle: Handle) -> Option<(u32, &mut Link)> {
        let found = self.links.iter_mut().find(|(_, link)| link.remote == Some(handle.0));
        found.map(|(local, link)| (*local, link))
    }

    fn hear_flow(&mut self, flow: &Flow<'_>) -> Result<(), String> {
        let expected = flow.next_incoming_id.unwrap_or(self.next_outgoing_id);
        let ahead = self.next_outgoing_id.wrapping_sub(expected);
        self.remote_window = flow.incoming_window.saturating_sub(ahead);
        if let Some(remote) = flow.handle {
            let Some((handle, link)) = self.by_remote(remote) else {
                return Err(format!("a flow for handle {}, which is not attached", remote.0));
            };
            let mut heard = None;
            match link.role {
                Role::Sender => {
                    if let Some(credit) = flow.link_credit {
                        let count = flow.delivery_count.unwrap_or(0xffff_fffc);
                        link.limit = count.wrapping_add(credit);
                        heard = Some(Heard::Credit { handle });
                    }
                }
                Role::Receiver => {
                    if let Some(count) = flow.delivery_count
                        && link.draining
                        && count == link.limit
                    {
                        link.delivery_count = count;
                        link.draining = false;
                        heard = Some(Heard::Drained { handle });
                    }
                }
            }
            self.heard.extend(heard);
        }
        if flow.echo {
            let flow = self.session_flow();
            self.write(&Performative::Flow(flow));
        }
        self.transmit();
        Ok(())
    }

    fn hear_transfer(&mut self, transfer: &Transfer<'_>, payload: &[u8]) -> Result<(), String> {
        let Some(window) = self.local_window.checked_sub(1) else {
            return Err("a transfer beyond our session window".to_owned());
        };
        self.local_window = window;
        self.next_incoming_id = self.next_incoming_id.wrapping_add(1);
        let remote = transfer.handle;
        let Some((handle, link)) = self.by_remote(remote) else {
            return Err(format!("a transfer on handle {}, which is not attached", remote.0));
        };
        let mut partial = match link.partial.take() {
            Some(partial) => partial,
            None => {
                if link.limit.wrapping_sub(link.delivery_count) as i32 <= 0 {
                    return Err(format!("a delivery on handle {handle} beyond its credit"));
                }
                link.delivery_count = link.delivery_count.wrapping_add(1);
                let id = transfer.delivery_id.ok_or("a delivery without an id")?.0;
                Partial { id, settled: false, message: Vec::new() }
            }
        };
        partial.settled |= transfer.settled.unwrap_or(false);
        partial.message.extend_from_slice(payload);
        if transfer.more {
            link.partial = Some(partial);
        } else if !transfer.aborted {
            let Partial { id, settled, message } = partial;
            self.heard.push_back(Heard::Delivery { handle, id, settled, message });
        }
        if self.local_window < self.hello.incoming_window / 2 {
            self.local_window = self.hello.incoming_window;
            let flow = self.session_flow();
            self.write(&Performative::Flow(flow));
        }
        Ok(())
    }

    fn hear_disposition(&mut self, disposition: &Disposition<'_>) -> Result<(), String> {
        let first = disposition.first.0;
        let last = disposition.last.map_or(first, |last| last.0);
        match disposition.role {
            Role::Receiver => {
                let verdict = disposition.state.and_then(verdict_of);
                self.heard.push_back(Heard::Outcome { first, last, verdict });
            }
            Role::Sender if disposition.settled => {
                self.heard.push_back(Heard::Settled { first, last });
            }
            Role::Sender => {}
        }
        Ok(())
    }

    fn hear_detach(&mut self, detach: &Detach<'_>) -> Result<(), String> {
        let remote = detach.handle;
        let Some((handle, link)) = self.by_remote(remote) else {
            return Err(format!("a detach of handle {}, which is not attached", remote.0));
        };
        let answered = link.detach_sent;
        let error = detach.error.as_ref().map(condition);
        if !answered {
            self.detach(handle, detach.closed);
        }
        self.links.remove(&handle);
        if let Some(waiting) = self.waiting.take_if(|waiting| waiting.handle == handle)
            && waiting.sent == 0
        {
            self.next_delivery_id = waiting.id;
        }
        self.heard.push_back(Heard::Detached { handle, answered, error });
        Ok(())
    }
}

fn condition(error: &Error<'_>) -> String {
    format!("{}: {}", error.condition.as_str(), error.description.unwrap_or_default())
}

fn verdict_of(state: DeliveryState<'_>) -> Option<Verdict> {
    match state {
        DeliveryState::Accepted => Some(Verdict::Accepted),
        DeliveryState::Rejected(_) => Some(Verdict::Rejected),
        DeliveryState::Released => Some(Verdict::Released),
        DeliveryState::Modified(modified) => Some(Verdict::Modified {
            failed: modified.delivery_failed.unwrap_or(false),
            not_here: modified.undeliverable_here.unwrap_or(false),
            note: None,
        }),
        DeliveryState::Received(_)
        | DeliveryState::Declared(_)
        | DeliveryState::TransactionalState(_) => None,
    }
}
