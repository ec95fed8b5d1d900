//! Frames and sections: what a transfer, its answer and its credit cost to read and to write.

use std::hint::black_box;

use amqp::definitions::{DeliveryId, Handle, Role};
use amqp::frame;
use amqp::message::Sections;
use amqp::performative::{DeliveryState, Disposition, Flow, Performative, Transfer};
use perf::client::durable_message;

use super::{Row, Work};

const BODY_BYTES: usize = 256;

/// No frame here is as large.
const FRAME_BYTES_MAX: u32 = 64 * 1024;

pub(super) const CASES: &[Row] = &[
    ("codec/write transfer of 256 B", 0, || write(transfer(), message())),
    ("codec/read transfer of 256 B", 0, || read(transfer(), message())),
    ("codec/write disposition", 0, || write(disposition(), Vec::new())),
    ("codec/read disposition", 0, || read(disposition(), Vec::new())),
    ("codec/read flow", 0, || read(flow(), Vec::new())),
    ("codec/scan sections of 256 B", 0, scan),
];

fn message() -> Vec<u8> {
    durable_message(&[7; BODY_BYTES])
}

fn transfer() -> Performative<'static> {
    Performative::Transfer(Transfer {
        handle: Handle(3),
        delivery_id: Some(DeliveryId(70_000)),
        delivery_tag: Some(b"00001117"),
        message_format: Some(0),
        settled: Some(false),
        ..Transfer::default()
    })
}

fn disposition() -> Performative<'static> {
    Performative::Disposition(Disposition {
        role: Role::Receiver,
        first: DeliveryId(70_000),
        last: Some(DeliveryId(70_063)),
        settled: true,
        state: Some(DeliveryState::Accepted),
        ..Disposition::default()
    })
}

fn flow() -> Performative<'static> {
    Performative::Flow(Flow {
        incoming_window: 2048,
        outgoing_window: 2048,
        handle: Some(Handle(3)),
        link_credit: Some(256),
        ..Flow::default()
    })
}

fn append(out: &mut Vec<u8>, performative: &Performative<'_>, payload: &[u8]) {
    if let Performative::Transfer(transfer) = performative {
        let mut writer = frame::FrameWriter::amqp(out, 1);
        writer.composite(transfer);
        writer.payload(payload);
        writer.finish();
    } else {
        frame::write(out, 1, performative);
    }
}

fn write(performative: Performative<'static>, payload: Vec<u8>) -> Work {
    let mut out = Vec::new();
    Box::new(move |operations| {
        for _ in 0..operations {
            out.clear();
            append(&mut out, black_box(&performative), &payload);
            black_box(&out);
        }
    })
}

fn read(performative: Performative<'static>, payload: Vec<u8>) -> Work {
    let mut bytes = Vec::new();
    append(&mut bytes, &performative, &payload);
    Box::new(move |operations| {
        for _ in 0..operations {
            let parsed = frame::parse(black_box(&bytes), FRAME_BYTES_MAX).expect("a frame of ours");
            let (frame, _) = parsed.expect("the whole of it");
            black_box(Performative::decode(frame.body).expect("a performative of ours"));
        }
    })
}

fn scan() -> Work {
    let message = message();
    Box::new(move |operations| {
        for _ in 0..operations {
            black_box(Sections::scan(black_box(&message)).expect("a message of ours"));
        }
    })
}
