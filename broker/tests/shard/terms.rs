//! What an attach is answered with, and what is kept of it.

use amqp::connection::Event as Amqp;
use amqp::definitions::{DeliveryId, Handle, Role, TerminusDurability, TerminusExpiryPolicy};
use amqp::delivery::Outcome;
use amqp::error::{Condition, Error};
use amqp::frame::{self, FrameWriter};
use amqp::link::{LinkId, LinkSource, LinkTarget, NewLink, RemoteAttach};
use amqp::message::Sections;
use amqp::performative::{AnyTarget, Attach, Disposition, Performative, Target};
use broker::limits::{ADDED_BYTES_MAX, LINK_NAME_BYTES_MAX};
use broker::{ConnId, Event};

use crate::host::{Host, Wish};
use crate::modified::map;
use crate::temporary::told;

fn answer(host: &Host, at: usize, of: LinkId) -> Option<RemoteAttach> {
    host.clients[at].heard.iter().find_map(|event| {
        let Amqp::Attached { link, attach } = event else { return None };
        (*link == of).then(|| (**attach).clone())
    })
}

fn attach(host: &mut Host, at: usize, role: Role, link: NewLink) -> LinkId {
    let session = host.session(at);
    let amqp = &mut host.clients[at].amqp;
    let link = match role {
        Role::Sender => amqp.attach_sender(session, link),
        Role::Receiver => amqp.attach_receiver(session, link),
    };
    host.settle();
    link.expect("attached")
}

fn listed(all: &[&str]) -> Vec<String> {
    all.iter().map(|each| (*each).to_owned()).collect()
}

#[test]
fn item_20_the_answer_claims_nothing_that_is_not_kept() {
    let mut host = Host::new(Wish::default());
    let at = host.connect(0);
    let properties = Some(map(&[("x-opt-of", "a node that is not dynamic")]));
    let properties = properties.map(|map| map.to_vec().into());
    let source = LinkSource {
        durable: TerminusDurability::UnsettledState,
        expiry_policy: TerminusExpiryPolicy::Never,
        timeout_s: 60,
        dynamic_node_properties: properties.clone(),
        outcomes: listed(&["amqp:accepted:list", "unheard:list", "amqp:modified:list"]),
        capabilities: listed(&["shared", "queue", "queue", "global"]),
        ..LinkSource::at("q")
    };
    let target = LinkTarget {
        durable: TerminusDurability::Configuration,
        expiry_policy: TerminusExpiryPolicy::ConnectionClose,
        timeout_s: 60,
        dynamic_node_properties: properties,
        capabilities: listed(&["temporary-queue", "shared"]),
        ..LinkTarget::at("q")
    };
    for role in [Role::Receiver, Role::Sender] {
        let (source, target) = (source.clone(), target.clone());
        let link = NewLink { name: "l".to_owned(), source, target, ..NewLink::default() };
        let link = attach(&mut host, at, role, link);
        let said = answer(&host, at, link).expect("it is answered");
        let source = LinkSource {
            expiry_policy: TerminusExpiryPolicy::LinkDetach,
            outcomes: listed(&["amqp:accepted:list", "amqp:modified:list"]),
            capabilities: listed(&["queue"]),
            ..LinkSource::at("q")
        };
        let target = LinkTarget {
            expiry_policy: TerminusExpiryPolicy::LinkDetach,
            capabilities: listed(&["temporary-queue"]),
            ..LinkTarget::at("q")
        };
        assert_eq!((said.source, said.target), (Some(source), Some(target)), "{role:?}");
    }
}

#[test]
fn a_link_has_a_name_of_bounded_length() {
    let mut host = Host::new(Wish::default());
    let at = host.connect(0);
    for (bytes, refused) in
        [(LINK_NAME_BYTES_MAX, None), (LINK_NAME_BYTES_MAX + 1, Some(Condition::InvalidField))]
    {
        for role in [Role::Receiver, Role::Sender] {
            let link = Host::link(&"n".repeat(bytes), "q", role == Role::Receiver);
            let link = attach(&mut host, at, role, link);
            assert_eq!(told(&host, at, link), refused);
            assert_eq!(answer(&host, at, link).is_some(), refused.is_none());
        }
    }
}

#[test]
fn what_is_kept_of_a_default_outcome_is_bounded() {
    let long = "x".repeat(ADDED_BYTES_MAX);
    let modified = |annotations| Outcome::Modified {
        delivery_failed: true,
        undeliverable_here: false,
        message_annotations: annotations,
    };
    let short = map(&[("x-opt-why", "slow")]);
    let error = Error::new(Condition::InternalError, &long);
    for (said, kept, refused) in [
        (modified(Some(map(&[("x-opt-why", &long)]))), modified(None), 1),
        (modified(Some(short.clone())), modified(Some(short)), 0),
        (Outcome::Rejected(Some(error.into())), Outcome::Rejected(None), 0),
    ] {
        let mut host = Host::new(Wish::default());
        let at = host.connect(0);
        let sender = host.sender(at, "q");
        assert!(host.send(at, sender, 10, false));
        let at = host.connect(0);
        let source = LinkSource { default_outcome: Some(said), ..LinkSource::at("q") };
        let plain = Host::link("l", "q", true);
        let link = attach(&mut host, at, Role::Receiver, NewLink { source, ..plain });
        let source = answer(&host, at, link).and_then(|attach| attach.source);
        assert_eq!(source.and_then(|source| source.default_outcome), Some(kept.clone()));
        assert_eq!(host.stats(0).annotations_refused_total, refused);

        // It holds for what is settled without an outcome.
        host.clients[at].amqp.grant_credit(link, 10);
        host.settle();
        assert_eq!(host.deliveries(at).len(), 1);
        let mut bytes = Vec::new();
        let mut frame = FrameWriter::amqp(&mut bytes, 0);
        frame.composite(&Disposition {
            role: Role::Receiver,
            first: DeliveryId(0),
            last: None,
            settled: true,
            state: None,
            batchable: false,
        });
        frame.finish();
        host.event(0, Event::Received { conn: ConnId(at as u64), bytes: &bytes });
        host.pass(std::time::Duration::from_millis(20));
        let Outcome::Modified { message_annotations, .. } = kept else {
            assert_eq!(host.deliveries(at).len(), 1, "it is with the dead");
            continue;
        };
        let (_, _, got) = host.deliveries(at).pop().expect("it is delivered again");
        let sections = Sections::scan(&got).expect("a message");
        assert_eq!(sections.header_fields.delivery_count, Some(1));
        let map = sections.message_annotations(&got).expect("sound");
        assert_eq!(map.map(|map| map.len()), message_annotations.map(|_| 1));
    }
}

#[test]
fn item_23_a_look_up_of_a_durable_subscription_finds_none() {
    let mut host = Host::new(Wish::default());
    let at = host.connect(0);
    host.session(at);
    let mut bytes = Vec::new();
    let look_up = Attach {
        name: "subscription",
        handle: Handle(0),
        role: Role::Receiver,
        target: Some(AnyTarget::Target(Target::default())),
        ..Attach::default()
    };
    frame::write(&mut bytes, 0, &Performative::Attach(look_up));
    host.event(0, Event::Received { conn: ConnId(at as u64), bytes: &bytes });
    host.settle();
    let why = host.clients[at].heard.iter().find_map(|event| {
        let Amqp::DetachReceived { error, .. } = event else { return None };
        error.as_ref().map(|error| error.condition.clone())
    });
    assert_eq!(why, Some(Condition::NotFound.into()), "{:?}", host.clients[at].heard);
}
