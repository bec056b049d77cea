//! Orders in signed envelopes: what is read is what was packed, and whatever its author may not say is refused.
#![allow(clippy::unwrap_used)]

mod support;

use hierarchy::{
    Lane, Millis, Refusal,
    envelope::{BatchHead, Parsed},
    link::{Event, batch::Headers},
    order::{self, EXPIRES, MESSAGE_TYPE, Order, Target},
    signing::Timeliness,
};
use serde_json::value::RawValue;
use support::world::{NOW, World, draft};

const HALT: &str = "lucent.commands.trading.halt";
const SUBJECT: &str = "lucent.order.node.s1.c1.n1";

fn said(subject: &str) -> Event {
    let headers = Headers::from([
        (EXPIRES.to_owned(), vec!["2025-09-02T10:31:00.000Z".to_owned()]),
        ("Trace-Id".to_owned(), vec!["7".to_owned()]),
    ]);
    Event { ts: 1, subject: subject.to_owned(), headers, data: r#"{"why":"drill"}"#.into() }
}

/// What a receiver makes of an order that `author` signed.
fn receive(
    author: &str,
    subject: &str,
    kind: &str,
    (head, payload): (BatchHead, Box<RawValue>),
) -> Result<Order, Refusal> {
    let world = World::committed();
    let mut draft = draft(subject, &payload);
    (draft.message_type, draft.batch, draft.priority) = (kind, Some(head), Lane::Critical);
    let sealed = world.signer(author).seal(&draft);
    let verified = world.verifier().verify(&sealed.bytes, NOW, Timeliness::Session).unwrap();
    assert_eq!(Parsed::parse(&sealed.bytes).unwrap().digest(), verified.digest);
    Order::read(&verified.envelope)
}

#[test]
fn an_order_arrives_as_it_was_given() {
    let order = receive("core", SUBJECT, MESSAGE_TYPE, order::pack(7, 3, &said(HALT))).unwrap();
    assert_eq!(order.target, Target { path: "s1/c1/n1".parse().unwrap(), all: false });
    assert_eq!((order.span.incarnation, order.span.first, order.span.last), (7, 3, 3));
    assert_eq!(order.expires, "2025-09-02T10:31:00.000Z".parse::<Millis>().unwrap());
    assert_eq!(order.said, said(HALT));
    assert_eq!(order.author, hierarchy::Path::global());
}

#[test]
fn whoever_stands_above_all_that_an_order_is_for_may_give_it_and_nobody_else() {
    for (author, subject, expected) in [
        ("core", "lucent.order.global.all", Ok(())),
        ("c1", "lucent.order.node.s1.c1.n1", Ok(())),
        ("c1", "lucent.order.cluster.s1.c1.all", Ok(())),
        ("n1", "lucent.order.node.s1.c1.n1", Ok(())),
        ("c1", "lucent.order.site.s1", Err(Refusal::WrongSubject)),
        ("c1", "lucent.order.node.s1.c2.n1", Err(Refusal::WrongSubject)),
        ("n1", "lucent.order.node.s1.c1.n2", Err(Refusal::WrongSubject)),
        ("n1", "lucent.order.global.all", Err(Refusal::WrongSubject)),
        ("core", "lucent.order.node.s1.c1.n1.x", Err(Refusal::WrongSubject)),
        ("core", "lucent.hierarchy.node.n1", Err(Refusal::WrongSubject)),
    ] {
        let found = receive(author, subject, MESSAGE_TYPE, order::pack(7, 1, &said(HALT)));
        assert_eq!(found.map(|_| ()), expected, "{author}: {subject}");
    }
}

#[test]
fn an_order_that_is_not_one_is_refused_by_name() {
    let sound = || order::pack(7, 1, &said(HALT));
    let changed = |change: &dyn Fn(&mut BatchHead)| {
        let (mut head, payload) = sound();
        change(&mut head);
        (head, payload)
    };
    let without_expiry = Event { headers: Headers::new(), ..said(HALT) };
    let two = |head: &mut BatchHead| head.subjects.push(HALT.to_owned());
    for (name, kind, packed, refusal) in [
        ("another type", "EventBatch", sound(), Refusal::BadPayload),
        ("no expiry", MESSAGE_TYPE, order::pack(7, 1, &without_expiry), Refusal::BadPayload),
        ("two subjects", MESSAGE_TYPE, changed(&two), Refusal::BadPayload),
        (
            "another number",
            MESSAGE_TYPE,
            changed(&|head| (head.first, head.last) = (2, 2)),
            Refusal::BadPayload,
        ),
        ("backwards", MESSAGE_TYPE, changed(&|head| head.first = 2), Refusal::BadPayload),
        (
            "an event",
            MESSAGE_TYPE,
            order::pack(7, 1, &said("lucent.hierarchy.node.n1")),
            Refusal::NotPermitted,
        ),
        ("a task", MESSAGE_TYPE, order::pack(7, 1, &said("lucent.agents.a.b")), Refusal::NotPermitted),
        ("a wildcard", MESSAGE_TYPE, order::pack(7, 1, &said("lucent.commands.>")), Refusal::NotPermitted),
    ] {
        assert_eq!(receive("core", SUBJECT, kind, packed).unwrap_err(), refusal, "{name}");
    }
}
