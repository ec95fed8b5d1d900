//! The 33 composite types of the specification, in one table.
//!
//! ```text
//!  Name = "name" descriptor {
//!      field: type, mandatory;             T           absent or null is an error
//!      field: type, optional;              Option<T>
//!      field: type, default(value);        T           written as null where it is the default
//!      field: type, stated(value);         T           the same, but always written out
//!      field: Multiple, multiple;          Multiple    empty where absent
//!      field: Multiple, mandatory_multiple;            must hold one symbol at least
//!  }
//! ```
//!
//! `stated` is for settle modes: some clients take what the answer shows, not what it implies.
//! What SASL mechanisms exchange is left out where a composite is shown for debugging.
//! The hot ones need no code of their own: compiled, a transfer decodes in about 260 instructions.
//! A test holds this table against the OASIS XML: names, descriptors, order, types, defaults.

use crate::codec::{
    Composite, CompositeSpec, CompoundWriter, DecodeError, Fault, Field, FieldSpec, Fields, Map,
    Multiple, Place, Presence, Reader, Symbol, Value, Writer, composites, is_secret, read_code,
};
use crate::definitions::{
    DeliveryId, Handle, ReceiverSettleMode, Role, SaslCode, SenderSettleMode, TerminusDurability,
    TerminusExpiryPolicy, Timestamp,
};
use crate::polymorphic::{AnySource, AnyTarget, DeliveryState, MessageId, Outcome};

composites! {
    /// Begins a connection: what each side can do [2.7.1].
    Open<'a> = "open" 0x10 {
        /// The name of the sender's container.
        container_id: &'a str, mandatory;
        /// The host the peer meant to reach.
        hostname: &'a str, optional;
        /// The largest frame that the sender of this can take, in bytes; at least 512.
        max_frame_size: u32, default(u32::MAX);
        /// The highest channel that the sender of this can take.
        channel_max: u16, default(u16::MAX);
        /// The sender's idle timeout in milliseconds.
        idle_time_out: u32, optional;
        /// Locales the sender can write.
        outgoing_locales: Multiple<'a>, multiple;
        /// Locales the sender wants to read.
        incoming_locales: Multiple<'a>, multiple;
        /// Extensions the sender supports.
        offered_capabilities: Multiple<'a>, multiple;
        /// Extensions the sender may use.
        desired_capabilities: Multiple<'a>, multiple;
        /// Anything else about the connection.
        properties: Map<'a>, optional;
    }

    /// Begins a session on a channel [2.7.2].
    Begin<'a> = "begin" 0x11 {
        /// The channel of the begin that this one answers.
        remote_channel: u16, optional;
        /// The transfer-id of the next frame the sender of this will send.
        next_outgoing_id: u32, mandatory;
        /// How many transfer frames the sender of this can take.
        incoming_window: u32, mandatory;
        /// How many transfer frames the sender of this may have in flight.
        outgoing_window: u32, mandatory;
        /// The highest handle that the sender of this can take.
        handle_max: Handle, default(Handle(u32::MAX));
        /// Extensions the sender supports.
        offered_capabilities: Multiple<'a>, multiple;
        /// Extensions the sender may use.
        desired_capabilities: Multiple<'a>, multiple;
        /// Anything else about the session.
        properties: Map<'a>, optional;
    }

    /// Attaches a link to a session [2.7.3].
    Attach<'a> = "attach" 0x12 {
        /// The name of the link.
        name: &'a str, mandatory;
        /// What stands for the link in frames of this direction.
        handle: Handle, mandatory;
        /// The end that the sender of this is.
        role: Role, mandatory;
        /// How the sender settles.
        snd_settle_mode: SenderSettleMode, stated(SenderSettleMode::Mixed);
        /// How the receiver settles.
        rcv_settle_mode: ReceiverSettleMode, stated(ReceiverSettleMode::First);
        /// Where messages come from.
        source: AnySource<'a>, optional;
        /// Where messages go to.
        target: AnyTarget<'a>, optional;
        /// Unsettled delivery states by delivery tag.
        unsettled: Map<'a>, optional;
        /// Whether `unsettled` is only a part.
        incomplete_unsettled: bool, default(false);
        /// The sender's first delivery-count; the receiver leaves it out.
        initial_delivery_count: u32, optional;
        /// The largest message, in bytes; zero or absent is no limit.
        max_message_size: u64, optional;
        /// Extensions the sender supports.
        offered_capabilities: Multiple<'a>, multiple;
        /// Extensions the sender may use.
        desired_capabilities: Multiple<'a>, multiple;
        /// Anything else about the link.
        properties: Map<'a>, optional;
    }

    /// The state of a session's windows and, with a handle, of a link's credit [2.7.4].
    Flow<'a> = "flow" 0x13 {
        /// The transfer-id expected next; absent until the peer's begin was seen.
        next_incoming_id: u32, optional;
        /// How many transfer frames the sender of this can take.
        incoming_window: u32, mandatory;
        /// The transfer-id of the next frame the sender of this will send.
        next_outgoing_id: u32, mandatory;
        /// How many transfer frames the sender of this may have in flight.
        outgoing_window: u32, mandatory;
        /// The link that the fields below are about.
        handle: Handle, optional;
        /// The link's delivery-count.
        delivery_count: u32, optional;
        /// How many deliveries the receiver grants from there on.
        link_credit: u32, optional;
        /// How many deliveries the sender has waiting.
        available: u32, optional;
        /// Use all credit now or give it up.
        drain: bool, default(false);
        /// Answer with a flow.
        echo: bool, default(false);
        /// Anything else about the link.
        properties: Map<'a>, optional;
    }

    /// A delivery, or a part of it; the message follows in the frame [2.7.5].
    Transfer<'a> = "transfer" 0x14 {
        /// The link.
        handle: Handle, mandatory;
        /// The number of the delivery; may be left out after the first transfer of it.
        delivery_id: DeliveryId, optional;
        /// Names the delivery among the link's unsettled ones; at most 32 bytes.
        delivery_tag: &'a [u8], optional;
        /// How to read the message; zero is AMQP's own.
        message_format: u32, optional;
        /// Whether the sender has settled; counts if any transfer of the delivery says so.
        settled: bool, optional;
        /// Whether more transfers of this delivery follow.
        more: bool, default(false);
        /// How the receiver is to settle this one.
        rcv_settle_mode: ReceiverSettleMode, optional;
        /// The state of the delivery at the sender.
        state: DeliveryState<'a>, optional;
        /// Whether this resumes a delivery of an earlier attachment.
        resume: bool, default(false);
        /// Whether the delivery is given up; wins over `more`.
        aborted: bool, default(false);
        /// Whether the answer may wait for company.
        batchable: bool, default(false);
    }

    /// A change in the state of a range of deliveries [2.7.6].
    Disposition<'a> = "disposition" 0x15 {
        /// The end that the sender of this is; the deliveries are those of the other direction.
        role: Role, mandatory;
        /// The first delivery.
        first: DeliveryId, mandatory;
        /// The last one; absent: `first`.
        last: DeliveryId, optional;
        /// Whether the sender of this has settled them.
        settled: bool, default(false);
        /// Their state.
        state: DeliveryState<'a>, optional;
        /// Whether the answer may wait for company.
        batchable: bool, default(false);
    }

    /// Detaches a link [2.7.7].
    Detach<'a> = "detach" 0x16 {
        /// The link.
        handle: Handle, mandatory;
        /// Whether its terminus goes, too.
        closed: bool, default(false);
        /// Why, if something was wrong.
        error: Error<'a>, optional;
    }

    /// Ends a session [2.7.8].
    End<'a> = "end" 0x17 {
        /// Why, if something was wrong.
        error: Error<'a>, optional;
    }

    /// Closes a connection [2.7.9].
    Close<'a> = "close" 0x18 {
        /// Why, if something was wrong.
        error: Error<'a>, optional;
    }

    /// What went wrong [2.8.14].
    Error<'a> = "error" 0x1d {
        /// Its kind: one of [`Condition`](crate::definitions::Condition), or another symbol.
        condition: Symbol<'a>, mandatory;
        /// In words.
        description: &'a str, optional;
        /// Anything else.
        info: Map<'a>, optional;
    }

    /// How far into a message its receiver got [3.4.1].
    Received = "received" 0x23 {
        /// The section.
        section_number: u32, mandatory;
        /// The byte in it.
        section_offset: u64, mandatory;
    }

    /// The outcome of a message that was taken [3.4.2].
    Accepted = "accepted" 0x24 {}

    /// The outcome of a message that is invalid [3.4.3].
    Rejected<'a> = "rejected" 0x25 {
        /// What is wrong with it.
        error: Error<'a>, optional;
    }

    /// The outcome of a message that was not and will not be acted upon [3.4.4].
    Released = "released" 0x26 {}

    /// The outcome of a message that was given back with changes [3.4.5].
    Modified<'a> = "modified" 0x27 {
        /// Count this as a failed delivery.
        delivery_failed: bool, optional;
        /// Don't deliver it to this link again.
        undeliverable_here: bool, optional;
        /// Merge these into the message annotations.
        message_annotations: Map<'a>, optional;
    }

    /// Where messages come from [3.5.3].
    Source<'a> = "source" 0x28 {
        /// The node.
        address: &'a str, optional;
        /// What the terminus keeps.
        durable: TerminusDurability, default(TerminusDurability::None);
        /// When its expiry timer starts.
        expiry_policy: TerminusExpiryPolicy, default(TerminusExpiryPolicy::SessionEnd);
        /// How long the timer runs, in seconds.
        timeout: u32, default(0);
        /// Make a node for this link.
        dynamic: bool, default(false);
        /// Properties of that node.
        dynamic_node_properties: Map<'a>, optional;
        /// `move` or `copy`.
        distribution_mode: Symbol<'a>, optional;
        /// Filters by name.
        filter: Map<'a>, optional;
        /// The outcome of a delivery that was settled without one.
        default_outcome: Outcome<'a>, optional;
        /// The symbolic descriptors of the outcomes that may be used.
        outcomes: Multiple<'a>, multiple;
        /// Extensions.
        capabilities: Multiple<'a>, multiple;
    }

    /// Where messages go to [3.5.4].
    Target<'a> = "target" 0x29 {
        /// The node; absent: each message says where to.
        address: &'a str, optional;
        /// What the terminus keeps.
        durable: TerminusDurability, default(TerminusDurability::None);
        /// When its expiry timer starts.
        expiry_policy: TerminusExpiryPolicy, default(TerminusExpiryPolicy::SessionEnd);
        /// How long the timer runs, in seconds.
        timeout: u32, default(0);
        /// Make a node for this link.
        dynamic: bool, default(false);
        /// Properties of that node.
        dynamic_node_properties: Map<'a>, optional;
        /// Extensions.
        capabilities: Multiple<'a>, multiple;
    }

    /// A dynamic node lives as long as the link that made it [3.5.10].
    DeleteOnClose = "delete-on-close" 0x2b {}

    /// A dynamic node lives as long as it has links [3.5.11].
    DeleteOnNoLinks = "delete-on-no-links" 0x2c {}

    /// A dynamic node lives, after its link, as long as it has messages [3.5.12].
    DeleteOnNoMessages = "delete-on-no-messages" 0x2d {}

    /// A dynamic node lives as long as it has links or messages [3.5.13].
    DeleteOnNoLinksOrMessages = "delete-on-no-links-or-messages" 0x2e {}

    /// The target of a link that controls transactions [4.5.1].
    Coordinator<'a> = "coordinator" 0x30 {
        /// What the transactions must be able to do.
        capabilities: Multiple<'a>, multiple;
    }

    /// The message that begins a transaction [4.5.2].
    Declare<'a> = "declare" 0x31 {
        /// The id of a distributed transaction.
        global_id: Value<'a>, optional;
    }

    /// The message that ends a transaction [4.5.3].
    Discharge<'a> = "discharge" 0x32 {
        /// The transaction.
        txn_id: &'a [u8], mandatory;
        /// Roll it back.
        fail: bool, optional;
    }

    /// The outcome of a declare [4.5.5].
    Declared<'a> = "declared" 0x33 {
        /// The transaction; at most 32 bytes.
        txn_id: &'a [u8], mandatory;
    }

    /// The state of a delivery within a transaction [4.5.6].
    TransactionalState<'a> = "transactional-state" 0x34 {
        /// The transaction.
        txn_id: &'a [u8], mandatory;
        /// The outcome once the transaction succeeds.
        outcome: Outcome<'a>, optional;
    }

    /// The mechanisms that a server offers [5.3.3.1].
    SaslMechanisms<'a> = "sasl-mechanisms" 0x40 {
        /// Best first.
        sasl_server_mechanisms: Multiple<'a>, mandatory_multiple;
    }

    /// The mechanism that a client chose [5.3.3.2].
    SaslInit<'a> = "sasl-init" 0x41 {
        /// Its name.
        mechanism: Symbol<'a>, mandatory;
        /// The first response, which may hold a password.
        initial_response: &'a [u8], optional;
        /// The host the client meant to reach.
        hostname: &'a str, optional;
    }

    /// A challenge of the server [5.3.3.3].
    SaslChallenge<'a> = "sasl-challenge" 0x42 {
        /// As the mechanism has it.
        challenge: &'a [u8], mandatory;
    }

    /// A response of the client [5.3.3.4].
    SaslResponse<'a> = "sasl-response" 0x43 {
        /// As the mechanism has it.
        response: &'a [u8], mandatory;
    }

    /// How the exchange ended [5.3.3.5].
    SaslOutcome<'a> = "sasl-outcome" 0x44 {
        /// Success, or what failed.
        code: SaslCode, mandatory;
        /// As the mechanism has it.
        additional_data: &'a [u8], optional;
    }

    /// How to transport a message [3.2.1].
    Header = "header" 0x70 {
        /// The message must not be lost while a broker holds it; absent: false.
        durable: bool, optional;
        /// 0 to 255, higher first; absent: 4.
        priority: u8, optional;
        /// Time to live in milliseconds.
        ttl: u32, optional;
        /// No other link has acquired the message before; absent: false.
        first_acquirer: bool, optional;
        /// How many deliveries of it have failed; absent: 0.
        delivery_count: u32, optional;
    }

    /// The immutable properties of a message [3.2.4].
    Properties<'a> = "properties" 0x73 {
        /// Names the message.
        message_id: MessageId<'a>, optional;
        /// The user who made it.
        user_id: &'a [u8], optional;
        /// The node it is meant for.
        to: &'a str, optional;
        /// What it is about.
        subject: &'a str, optional;
        /// The node for answers.
        reply_to: &'a str, optional;
        /// The message that it belongs to.
        correlation_id: MessageId<'a>, optional;
        /// The MIME type of the body.
        content_type: Symbol<'a>, optional;
        /// The encoding of the body.
        content_encoding: Symbol<'a>, optional;
        /// When it expires.
        absolute_expiry_time: Timestamp, optional;
        /// When it was made.
        creation_time: Timestamp, optional;
        /// The group it belongs to.
        group_id: &'a str, optional;
        /// Its place in the group.
        group_sequence: u32, optional;
        /// The group for answers.
        reply_to_group_id: &'a str, optional;
    }
}

/// The numeric descriptor of the composite type with this symbolic one. The whole symbol counts.
#[must_use]
pub fn code_of(symbol: &str) -> Option<u64> {
    ALL.iter().find(|spec| spec.symbol == symbol).map(|spec| spec.code)
}
