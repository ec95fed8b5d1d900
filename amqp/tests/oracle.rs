//! Our codec against one that others wrote (`serde_amqp`, `fe2o3-amqp-types`): random values, there
//! and back.
//!
//! ```text
//!  value ── ours ──▶ bytes ── theirs ──▶ their value ── theirs ──▶ bytes ── ours ──▶ same value
//! ```
//!
//! What both sides would get wrong alike is not found here; the field order is held against the
//! OASIS XML in `spec.rs`. A failure prints the seed of the value.

use amqp::codec::{Map, Multiple, Reader, Symbol, Value, Writer};
use amqp::composites::{
    Attach, Begin, Close, Coordinator, Declared, Detach, Disposition, End, Error, Flow, Header,
    Modified, Open, Properties, Received, Rejected, SaslInit, SaslMechanisms, SaslOutcome, Source,
    Target, TransactionalState, Transfer,
};
use amqp::definitions::{
    DeliveryId, Handle, ReceiverSettleMode, Role, SaslCode, SenderSettleMode, TerminusDurability,
    TerminusExpiryPolicy, Timestamp,
};
use amqp::message::{MessageId, Sections};
use amqp::performative::{AnySource, AnyTarget, DeliveryState, Outcome, Performative};
use amqp::sasl::SaslBody;
use fe2o3_amqp_types::{messaging, performatives, sasl};
use serde_amqp::{from_slice, to_vec};

const SEEDS: u64 = 2_000;

/// A seeded generator (SplitMix64). What it makes borrows from leaked memory: the run is short.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number of any size, small ones and the ends often.
    fn number(&mut self) -> u64 {
        match self.next() % 4 {
            0 => self.next() % 4,
            1 => 253 + self.next() % 6,
            2 => self.next() >> (self.next() % 64),
            _ => u64::MAX,
        }
    }

    fn u32(&mut self) -> u32 {
        u32::try_from(self.number() & u64::from(u32::MAX)).expect("masked")
    }

    fn bool(&mut self) -> bool {
        self.next() & 1 == 1
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        let index = self.next() % choices.len() as u64;
        choices[usize::try_from(index).expect("small")]
    }

    fn option<T>(&mut self, some: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.bool().then(|| some(self))
    }

    fn text(&mut self) -> &'static str {
        let len = self.one_of(&[0, 1, 5, 254, 255, 256, 300]);
        let byte = b'a' + u8::try_from(self.next() % 26).expect("small");
        String::from_utf8(vec![byte; len]).expect("ASCII").leak()
    }

    fn symbol(&mut self) -> Symbol<'static> {
        Symbol::new(self.text())
    }

    fn multiple(&mut self) -> Multiple<'static> {
        let count = self.next() % 4;
        let symbols: Vec<Symbol<'static>> = (0..count).map(|_| self.symbol()).collect();
        Multiple::from(&*symbols.leak())
    }

    fn map(&mut self) -> Map<'static> {
        self.map_at(2)
    }

    fn map_at(&mut self, depth: u32) -> Map<'static> {
        let mut bytes = Vec::new();
        let count = self.next() % 4;
        Writer::new(&mut bytes).map_with(|map| {
            for index in 0..count {
                let key = format!("{index}{}", self.text());
                map.field(&Symbol::new(&key));
                map.field(&self.value_at(depth));
            }
        });
        Reader::new(bytes.leak()).map().expect("our own encoding")
    }

    fn list_at(&mut self, depth: u32) -> Value<'static> {
        let mut bytes = Vec::new();
        let count = self.next() % 5;
        Writer::new(&mut bytes).list_with(|list| {
            for _ in 0..count {
                list.element().value(&self.value_at(depth));
            }
        });
        Reader::new(bytes.leak()).value().expect("our own encoding")
    }

    fn described_at(&mut self, depth: u32) -> Value<'static> {
        let mut bytes = Vec::new();
        let writer = &mut Writer::new(&mut bytes);
        writer.descriptor(self.number());
        writer.value(&self.value_at(depth));
        Reader::new(bytes.leak()).value().expect("our own encoding")
    }

    fn value_at(&mut self, depth: u32) -> Value<'static> {
        let bits = self.number();
        let [b0, b1, b2, b3, ..] = bits.to_be_bytes();
        let scalars = 21;
        match self.next() % if depth == 0 { scalars } else { scalars + 4 } {
            0 => Value::Null,
            1 => Value::Boolean(self.bool()),
            2 => Value::Ubyte(b0),
            3 => Value::Ushort(u16::from_be_bytes([b0, b1])),
            4 => Value::Uint(self.u32()),
            5 => Value::Ulong(bits),
            6 => Value::Byte(b0.cast_signed()),
            7 => Value::Short(i16::from_be_bytes([b0, b1])),
            8 => Value::Int(self.u32().cast_signed()),
            9 => Value::Long(bits.cast_signed()),
            10 => Value::Float(self.u32() & 0xff7f_ffff),
            11 => Value::Double(bits & 0xffef_ffff_ffff_ffff),
            12 => Value::Decimal32([b0, b1, b2, b3]),
            13 => Value::Decimal64(bits.to_be_bytes()),
            14 => Value::Decimal128([b0; 16]),
            // Theirs takes scalar values only.
            15 => Value::Char(self.u32() % 0xd800),
            16 => Value::Timestamp(bits.cast_signed()),
            17 => Value::Uuid([b1; 16]),
            18 => Value::Binary(self.text().as_bytes()),
            19 => Value::String(self.text()),
            20 => Value::Symbol(self.symbol()),
            21 => self.list_at(depth - 1),
            22 => Value::Map(self.map_at(depth - 1)),
            23 => self.described_at(depth - 1),
            _ => array_of_uints(self.next() % 300),
        }
    }

    fn error(&mut self) -> Error<'static> {
        Error {
            condition: self.symbol(),
            description: self.option(Self::text),
            info: self.option(Self::map),
        }
    }

    fn modified(&mut self) -> Modified<'static> {
        Modified {
            delivery_failed: self.option(Self::bool),
            undeliverable_here: self.option(Self::bool),
            message_annotations: self.option(Self::map),
        }
    }

    fn outcome(&mut self) -> Outcome<'static> {
        match self.next() % 5 {
            0 => Outcome::Accepted,
            1 => Outcome::Rejected(Rejected { error: self.option(Self::error) }),
            2 => Outcome::Released,
            3 => Outcome::Modified(self.modified()),
            _ => Outcome::Declared(Declared { txn_id: self.text().as_bytes() }),
        }
    }

    fn state(&mut self) -> DeliveryState<'static> {
        match self.next() % 7 {
            0 => DeliveryState::Received(Received {
                section_number: self.u32(),
                section_offset: self.number(),
            }),
            1 => DeliveryState::TransactionalState(TransactionalState {
                txn_id: self.text().as_bytes(),
                outcome: self.option(Self::outcome),
            }),
            _ => self.outcome().into(),
        }
    }

    fn open(&mut self) -> Open<'static> {
        Open {
            container_id: self.text(),
            hostname: self.option(Self::text),
            max_frame_size: self.u32(),
            channel_max: self.one_of(&[0, 1, 255, 256, u16::MAX]),
            idle_time_out: self.option(Self::u32),
            outgoing_locales: self.multiple(),
            incoming_locales: self.multiple(),
            offered_capabilities: self.multiple(),
            desired_capabilities: self.multiple(),
            properties: self.option(Self::map),
        }
    }

    fn begin(&mut self) -> Begin<'static> {
        Begin {
            remote_channel: self.option(|r| r.one_of(&[0, 1, u16::MAX])),
            next_outgoing_id: self.u32(),
            incoming_window: self.u32(),
            outgoing_window: self.u32(),
            handle_max: Handle(self.u32()),
            offered_capabilities: self.multiple(),
            desired_capabilities: self.multiple(),
            properties: self.option(Self::map),
        }
    }

    fn source(&mut self) -> Source<'static> {
        Source {
            address: self.option(Self::text),
            durable: self.one_of(TerminusDurability::ALL),
            expiry_policy: self.one_of(TerminusExpiryPolicy::ALL),
            timeout: self.u32(),
            dynamic: self.bool(),
            dynamic_node_properties: self.option(Self::map),
            distribution_mode: self.option(|r| Symbol::new(r.one_of(&["move", "copy"]))),
            filter: self.option(Self::map),
            default_outcome: self.option(Self::outcome),
            outcomes: self.multiple(),
            capabilities: self.multiple(),
        }
    }

    fn target(&mut self) -> AnyTarget<'static> {
        if self.bool() {
            const LOCAL: &[Symbol<'_>] = &[Symbol::new("amqp:local-transactions")];
            return AnyTarget::Coordinator(Coordinator { capabilities: LOCAL.into() });
        }
        AnyTarget::Target(Target {
            address: self.option(Self::text),
            durable: self.one_of(TerminusDurability::ALL),
            expiry_policy: self.one_of(TerminusExpiryPolicy::ALL),
            timeout: self.u32(),
            dynamic: self.bool(),
            dynamic_node_properties: self.option(Self::map),
            capabilities: self.multiple(),
        })
    }

    fn attach(&mut self) -> Attach<'static> {
        Attach {
            name: self.text(),
            handle: Handle(self.u32()),
            role: self.one_of(Role::ALL),
            snd_settle_mode: self.one_of(SenderSettleMode::ALL),
            rcv_settle_mode: self.one_of(ReceiverSettleMode::ALL),
            source: self.option(Self::source).map(AnySource::Source),
            target: self.option(Self::target),
            unsettled: None,
            incomplete_unsettled: self.bool(),
            initial_delivery_count: self.option(Self::u32),
            max_message_size: self.option(Self::number),
            offered_capabilities: self.multiple(),
            desired_capabilities: self.multiple(),
            properties: self.option(Self::map),
        }
    }

    fn flow(&mut self) -> Flow<'static> {
        Flow {
            next_incoming_id: self.option(Self::u32),
            incoming_window: self.u32(),
            next_outgoing_id: self.u32(),
            outgoing_window: self.u32(),
            handle: self.option(|r| Handle(r.u32())),
            delivery_count: self.option(Self::u32),
            link_credit: self.option(Self::u32),
            available: self.option(Self::u32),
            drain: self.bool(),
            echo: self.bool(),
            properties: self.option(Self::map),
        }
    }

    fn transfer(&mut self) -> Transfer<'static> {
        Transfer {
            handle: Handle(self.u32()),
            delivery_id: self.option(|r| DeliveryId(r.u32())),
            delivery_tag: self.option(|r| r.text().as_bytes()),
            message_format: self.option(Self::u32),
            settled: self.option(Self::bool),
            more: self.bool(),
            rcv_settle_mode: self.option(|r| r.one_of(ReceiverSettleMode::ALL)),
            state: self.option(Self::state),
            resume: self.bool(),
            aborted: self.bool(),
            batchable: self.bool(),
        }
    }

    fn disposition(&mut self) -> Disposition<'static> {
        Disposition {
            role: self.one_of(Role::ALL),
            first: DeliveryId(self.u32()),
            last: self.option(|r| DeliveryId(r.u32())),
            settled: self.bool(),
            state: self.option(Self::state),
            batchable: self.bool(),
        }
    }

    fn detach(&mut self) -> Detach<'static> {
        Detach { handle: Handle(self.u32()), closed: self.bool(), error: self.option(Self::error) }
    }

    fn message_id(&mut self) -> MessageId<'static> {
        match self.next() % 4 {
            0 => MessageId::Ulong(self.number()),
            1 => MessageId::Uuid([7; 16]),
            2 => MessageId::Binary(self.text().as_bytes()),
            _ => MessageId::String(self.text()),
        }
    }

    fn properties(&mut self) -> Properties<'static> {
        Properties {
            message_id: self.option(Self::message_id),
            user_id: self.option(|r| r.text().as_bytes()),
            to: self.option(Self::text),
            subject: self.option(Self::text),
            reply_to: self.option(Self::text),
            correlation_id: self.option(Self::message_id),
            content_type: self.option(Self::symbol),
            content_encoding: self.option(Self::symbol),
            absolute_expiry_time: self.option(|r| Timestamp(r.number().cast_signed())),
            creation_time: self.option(|r| Timestamp(r.number().cast_signed())),
            group_id: self.option(Self::text),
            group_sequence: self.option(Self::u32),
            reply_to_group_id: self.option(Self::text),
        }
    }

    fn header(&mut self) -> Header {
        Header {
            durable: self.option(Self::bool),
            priority: self.option(|r| r.one_of(&[0, 4, 9, 255])),
            ttl: self.option(Self::u32),
            first_acquirer: self.option(Self::bool),
            delivery_count: self.option(Self::u32),
        }
    }
}

fn array_of_uints(count: u64) -> Value<'static> {
    let count = u32::try_from(count).expect("small");
    let mut bytes = vec![0xf0];
    bytes.extend((5 + 4 * count).to_be_bytes());
    bytes.extend(count.to_be_bytes());
    bytes.push(0x70);
    (0..count).for_each(|n| bytes.extend(n.to_be_bytes()));
    Reader::new(bytes.leak()).value().expect("an array")
}

/// Through their decoder and encoder.
fn there_and_back(ours: &Performative<'_>, seed: u64) -> performatives::Performative {
    let mut bytes = Vec::new();
    ours.encode(&mut bytes);
    let theirs: performatives::Performative =
        from_slice(&bytes).unwrap_or_else(|e| panic!("seed {seed}: {e} for {ours:?}"));
    let back = to_vec(&theirs).expect("what they decoded");
    let (decoded, payload) = Performative::decode(&back).expect("what they encoded");
    assert_eq!(decoded, *ours, "seed {seed}");
    assert!(payload.is_empty());
    theirs
}

#[test]
fn performatives_of_both_codecs_are_the_same() {
    for seed in 0..SEEDS {
        let random = &mut Random(seed);
        let performatives = [
            Performative::Open(random.open()),
            Performative::Begin(random.begin()),
            Performative::Attach(random.attach()),
            Performative::Detach(random.detach()),
            Performative::End(End { error: random.option(Random::error) }),
            Performative::Close(Close { error: random.option(Random::error) }),
        ];
        for performative in &performatives {
            there_and_back(performative, seed);
        }
    }
}

#[test]
fn the_hot_ones_agree_field_by_field() {
    for seed in 0..SEEDS * 4 {
        let random = &mut Random(seed);
        let flow = random.flow();
        let theirs = there_and_back(&Performative::Flow(flow), seed);
        let performatives::Performative::Flow(theirs) = theirs else { panic!("a flow") };
        assert_eq!(theirs.next_incoming_id, flow.next_incoming_id);
        assert_eq!(theirs.incoming_window, flow.incoming_window);
        assert_eq!(theirs.next_outgoing_id, flow.next_outgoing_id);
        assert_eq!(theirs.outgoing_window, flow.outgoing_window);
        assert_eq!(theirs.handle.map(|h| h.0), flow.handle.map(|h| h.0));
        assert_eq!(theirs.delivery_count, flow.delivery_count);
        assert_eq!(theirs.link_credit, flow.link_credit);
        assert_eq!(theirs.available, flow.available);
        assert_eq!((theirs.drain, theirs.echo), (flow.drain, flow.echo));

        let transfer = random.transfer();
        let theirs = there_and_back(&Performative::Transfer(transfer), seed);
        let performatives::Performative::Transfer(theirs) = theirs else { panic!("a transfer") };
        assert_eq!(theirs.handle.0, transfer.handle.0);
        assert_eq!(theirs.delivery_id, transfer.delivery_id.map(|id| id.0));
        assert_eq!(theirs.delivery_tag.as_ref().map(|tag| &tag[..]), transfer.delivery_tag);
        assert_eq!(theirs.message_format, transfer.message_format);
        assert_eq!((theirs.settled, theirs.more), (transfer.settled, transfer.more));
        assert_eq!((theirs.resume, theirs.aborted), (transfer.resume, transfer.aborted));
        assert_eq!(theirs.batchable, transfer.batchable);

        let disposition = random.disposition();
        let theirs = there_and_back(&Performative::Disposition(disposition), seed);
        let performatives::Performative::Disposition(theirs) = theirs else {
            panic!("a disposition")
        };
        assert_eq!(theirs.first, disposition.first.0);
        assert_eq!(theirs.last, disposition.last.map(|id| id.0));
        assert_eq!(theirs.settled, disposition.settled);
        assert_eq!(theirs.batchable, disposition.batchable);
    }
}

#[test]
fn values_of_both_codecs_are_the_same() {
    for seed in 0..SEEDS * 4 {
        let value = Random(seed).value_at(3);
        let mut bytes = Vec::new();
        Writer::new(&mut bytes).value(&value);
        let theirs: serde_amqp::Value =
            from_slice(&bytes).unwrap_or_else(|e| panic!("seed {seed}: {e} for {value:?}"));
        let back = to_vec(&theirs).expect("what they decoded");
        assert_eq!(Reader::new(&back).value(), Ok(value), "seed {seed}");
    }
}

#[test]
fn message_sections_of_both_codecs_are_the_same() {
    for seed in 0..SEEDS {
        let random = &mut Random(seed);
        let (header, properties) = (random.header(), random.properties());
        let mut bytes = Vec::new();
        amqp::codec::Field::write(&header, &mut Writer::new(&mut bytes));
        let theirs: messaging::Header = from_slice(&bytes).expect("a header");
        assert_eq!(theirs.durable, header.is_durable());
        assert_eq!(theirs.priority.0, header.priority_or_default());
        assert_eq!(theirs.ttl, header.ttl);
        assert_eq!(theirs.first_acquirer, header.first_acquirer.unwrap_or(false));
        assert_eq!(theirs.delivery_count, header.delivery_count.unwrap_or(0));

        bytes.clear();
        amqp::codec::Field::write(&properties, &mut Writer::new(&mut bytes));
        let theirs: messaging::Properties = from_slice(&bytes).expect("properties");
        let back = to_vec(&theirs).expect("what they decoded");
        let sections = Sections::scan(&back).expect("what they encoded");
        assert_eq!(sections.properties(&back), Ok(Some(properties)), "seed {seed}");
    }
}

#[test]
fn sasl_frames_of_both_codecs_are_the_same() {
    let encoded = |body: &SaslBody<'_>| {
        let mut bytes = Vec::new();
        body.encode(&mut bytes);
        bytes
    };
    let mechanisms = [Symbol::new("ANONYMOUS"), Symbol::new("PLAIN")];
    for count in 1..=mechanisms.len() {
        let body = SaslBody::Mechanisms(SaslMechanisms {
            sasl_server_mechanisms: mechanisms[..count].into(),
        });
        let theirs: sasl::SaslMechanisms = from_slice(&encoded(&body)).expect("mechanisms");
        assert_eq!(theirs.sasl_server_mechanisms.0.len(), count);
        assert_eq!(SaslBody::decode(&to_vec(&theirs).expect("theirs")), Ok(body));
    }
    for initial_response in [None, Some(&b""[..]), Some(b"\0user\0password")] {
        let body = SaslBody::Init(SaslInit {
            mechanism: mechanisms[1],
            initial_response,
            hostname: Some("localhost"),
        });
        let theirs: sasl::SaslInit = from_slice(&encoded(&body)).expect("init");
        assert_eq!(theirs.hostname.as_deref(), Some("localhost"));
        assert_eq!(SaslBody::decode(&to_vec(&theirs).expect("theirs")), Ok(body));
    }
    for code in SaslCode::ALL {
        let body = SaslBody::Outcome(SaslOutcome { code: *code, additional_data: None });
        let theirs: sasl::SaslOutcome = from_slice(&encoded(&body)).expect("outcome");
        assert_eq!(SaslBody::decode(&to_vec(&theirs).expect("theirs")), Ok(body));
    }
}
