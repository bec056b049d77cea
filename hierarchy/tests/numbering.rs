//! Which numbers an origin gives its events, and which batch answers for each of them.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use hierarchy::{
    Lane,
    envelope::Parsed,
    link::{Pack, PackLimits, Packer, Span, Tick},
};
use proptest::prelude::*;

use support::{
    batch_cases::{Numbered, carry, event, numbered, packer, packer_of, push},
    world::{World, seal_pack},
};

const OWN: &str = "lucent.hierarchy.node.n1";

fn limits(events: usize) -> PackLimits {
    PackLimits { events, bytes: 100_000, linger: Duration::ZERO }
}

/// What a batch answers for, and how many of it are events.
fn answers_for(pack: &Pack) -> (u64, u64, u32) {
    (pack.head.first, pack.head.last, pack.head.count)
}

fn pass(packer: &mut Packer, events: u64) -> Vec<Pack> {
    (0..events).flat_map(|n| packer.push(&event(n, OWN, b"{}"), Tick::ZERO)).collect()
}

/// What happens at an origin.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// An event on the subject with this tail.
    Event(&'static str),
    Dropped,
    Close,
    TakeSkipped,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => proptest::sample::select(vec!["", ".a", ".agent.telemetry"]).prop_map(Step::Event),
        3 => Just(Step::Dropped),
        1 => Just(Step::Close),
        1 => Just(Step::TakeSkipped),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_number_is_answered_for_once_and_in_order(
        steps in proptest::collection::vec(step(), 0..80),
        count in 1usize..6,
    ) {
        let (world, mut packer) = (World::committed(), packer(limits(count)));
        let (mut events, mut arrived): (Vec<Numbered>, Vec<Numbered>) = Default::default();
        let (mut number, mut answered) = (0, 0);
        for step in steps.into_iter().chain([Step::Close, Step::TakeSkipped]) {
            let packs = match step {
                Step::Event(tail) => {
                    number += 1;
                    events.push(numbered(number, &format!("{OWN}{tail}"), b"{}"));
                    push(&mut packer, &events[events.len() - 1])
                }
                Step::Dropped => {
                    number += 1;
                    packer.skip();
                    Vec::new()
                }
                Step::Close => packer.close().into_iter().collect(),
                Step::TakeSkipped => {
                    if let Some(span) = packer.take_skipped() {
                        prop_assert_eq!((span.incarnation, span.first), (1, answered + 1));
                        answered = span.last;
                    }
                    Vec::new()
                }
            };
            prop_assert_eq!(packer.last(), number);
            for pack in packs {
                prop_assert_eq!((pack.head.incarnation, pack.head.first), (1, answered + 1));
                answered = pack.head.last;
                arrived.extend(carry(&world, &pack).unwrap());
            }
        }
        prop_assert_eq!(answered, number);
        prop_assert_eq!(arrived, events);
    }
}

#[test]
fn numbers_begin_with_one_and_each_batch_begins_behind_the_last() {
    let mut packer = packer(limits(3));
    assert_eq!((packer.last(), packer.incarnation()), (0, 1));
    let mut packs = pass(&mut packer, 7);
    packs.extend(packer.close());
    assert_eq!(packs.iter().map(answers_for).collect::<Vec<_>>(), [(1, 3, 3), (4, 6, 3), (7, 7, 1)]);
    assert_eq!(packer.last(), 7);
}

#[test]
fn a_batch_answers_for_what_was_dropped_before_between_and_behind_its_events() {
    let mut packer = packer(limits(100));
    let events = [numbered(3, OWN, b"3"), numbered(4, OWN, b"4"), numbered(6, OWN, b"6")];
    for event in &events {
        assert!(push(&mut packer, event).is_empty());
    }
    (0..3).for_each(|_| packer.skip());
    let pack = packer.close().unwrap();
    assert_eq!(answers_for(&pack), (1, 9, 3));
    assert_eq!(carry(&World::committed(), &pack).unwrap(), events);
    assert_eq!(packer.take_skipped(), None, "the batch answers for them");
}

#[test]
fn what_is_dropped_behind_a_full_batch_is_answered_for_by_the_next() {
    let mut packer = packer(limits(2));
    let full = pass(&mut packer, 2);
    packer.skip();
    pass(&mut packer, 1);
    let next = packer.close().unwrap();
    assert_eq!([answers_for(&full[0]), answers_for(&next)], [(1, 2, 2), (3, 4, 1)]);
}

/// The event that does not fit has its number already when the batch before it is closed.
#[test]
fn a_batch_does_not_answer_for_the_event_that_it_has_no_room_for() {
    let small = PackLimits { bytes: 1000, ..limits(100) };
    for (name, limits, subject) in
        [("by bytes", small, OWN.to_owned()), ("by subject", limits(100), format!("{OWN}.agent.telemetry"))]
    {
        let mut packer = packer(limits);
        pass(&mut packer, 1);
        packer.skip();
        let data = format!("\"{}\"", "x".repeat(990));
        let closed = packer.push(&event(3, &subject, data.as_bytes()), Tick::ZERO);
        assert_eq!(answers_for(&closed[0]), (1, 2, 1), "{name}");
        let own = closed.into_iter().skip(1).chain(packer.close()).next().unwrap();
        assert_eq!(answers_for(&own), (3, 3, 1), "{name}");
    }
}

#[test]
fn dropped_numbers_can_be_taken_once_no_event_waits_and_no_batch_answers_for_them_then() {
    let mut packer = packer(limits(100));
    assert_eq!(packer.take_skipped(), None, "no number was given");
    packer.skip();
    packer.skip();
    assert_eq!(packer.take_skipped(), Some(Span { incarnation: 1, first: 1, last: 2 }));
    assert_eq!(packer.take_skipped(), None, "they were taken");
    packer.skip();
    pass(&mut packer, 1);
    assert_eq!(packer.take_skipped(), None, "the batch of the waiting event answers for them");
    assert_eq!(answers_for(&packer.close().unwrap()), (3, 4, 1));
    assert!(packer.close().is_none(), "dropped events alone make no batch");
}

#[test]
fn each_lane_has_a_packer_numbers_and_batches_of_its_own() {
    let world = World::committed();
    for (events, lane) in (1..).zip(Lane::ALL) {
        let mut packer = packer_of(lane, limits(100));
        pass(&mut packer, events);
        let pack = packer.close().unwrap();
        assert_eq!((pack.lane, answers_for(&pack)), (lane, (1, events, events as u32)));
        let sealed = seal_pack(&world.signer("n1"), &pack);
        assert_eq!(Parsed::parse(&sealed.bytes).unwrap().priority(), lane);
    }
}
