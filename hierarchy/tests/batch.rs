//! From events to batches and back, to the letter. The single refusals are in the vectors, see
//! `vectors.rs`; which numbers a batch answers for is in `numbering.rs`.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use hierarchy::{
    Path, Refusal,
    envelope::Parsed,
    link::{
        Event, Pack, PackLimits, Packer, Tick,
        batch::{Headers, MAX_SUBJECTS, check_speaker},
    },
};
use proptest::prelude::*;

use support::{
    batch_cases::{DATA, Numbered, carry, event, numbered, packer, push},
    world::{World, seal_pack},
};

const OWN: &str = "lucent.hierarchy.node.n1";

fn limits(events: usize, bytes: usize) -> PackLimits {
    PackLimits { events, bytes, linger: Duration::from_millis(2) }
}

/// Packs all events, at once.
fn pack(mut packer: Packer, events: &[Numbered]) -> Vec<Pack> {
    let mut packs: Vec<_> = events.iter().flat_map(|event| push(&mut packer, event)).collect();
    packs.extend(packer.close());
    assert!(packer.close().is_none());
    packs
}

fn carried(packs: &[Pack]) -> Vec<Numbered> {
    let world = World::committed();
    packs.iter().flat_map(|pack| carry(&world, pack).unwrap()).collect()
}

fn data() -> impl Strategy<Value = Vec<u8>> {
    let json =
        "[ \n]{0,2}(\\{\"[a-b]\":[0-9]{1,3},\"[a-b]\":\"\\PC{0,6}\"\\}|[0-9]{1,30}|null|\\[\\])[ \n]{0,2}";
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..300),
        json.prop_map(String::into_bytes),
        ".{0,80}".prop_map(String::into_bytes),
        proptest::sample::select(DATA.as_slice()).prop_map(<[u8]>::to_vec),
    ]
}

fn headers() -> impl Strategy<Value = Headers> {
    proptest::collection::btree_map(".{1,8}", proptest::collection::vec(".{0,12}", 0..3), 0..3)
}

fn events() -> impl Strategy<Value = Vec<Numbered>> {
    let tail =
        proptest::sample::select(vec!["", ".a", ".b.c", ".agent.telemetry", ".agent.rollup", ".agents"]);
    let one = (1u64..5, any::<u64>(), tail, headers(), data());
    proptest::collection::vec(one, 1..60).prop_map(|parts| {
        let mut seq = 0;
        parts
            .into_iter()
            .map(|(step, ts, tail, headers, data)| {
                seq += step;
                (seq, Event { ts, subject: format!("{OWN}{tail}"), headers, data: data.into() })
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_event_arrives_once_in_order_and_to_the_letter(
        events in events(),
        count in 1usize..20,
        bytes in 1usize..4000,
    ) {
        let packs = pack(packer(limits(count, bytes)), &events);
        for pack in &packs {
            prop_assert!(pack.head.count as usize <= count);
            prop_assert!(pack.head.count == 1 || pack.payload.get().len() <= bytes);
        }
        prop_assert_eq!(carried(&packs), events);
    }
}

#[test]
fn a_batch_is_closed_by_its_count() {
    let mut packer = packer(limits(3, 100_000));
    let sizes: Vec<_> = (1..=7).map(|n| packer.push(&event(n, OWN, b"{}"), Tick::ZERO).len()).collect();
    assert_eq!(sizes, [0, 0, 1, 0, 0, 1, 0], "a full batch does not wait for the next event");
    let rest = packer.close().unwrap();
    assert_eq!((rest.head.first, rest.head.last, rest.head.count), (7, 7, 1));
}

#[test]
fn a_batch_is_closed_by_its_bytes_as_they_stand_on_the_wire() {
    // 300 bytes each; what is not JSON grows by a third.
    for data in [format!("{:?}", "x".repeat(298)).into_bytes(), vec![0xff; 300]] {
        let events: Vec<_> = (1..=40).map(|seq| numbered(seq, OWN, &data)).collect();
        let packs = pack(packer(limits(1000, 2100)), &events);
        assert!(packs.iter().all(|pack| pack.payload.get().len() <= 2100));
        let fullest = packs.iter().map(|pack| pack.payload.get().len()).max().unwrap();
        assert!(fullest > 1500, "batches are cut too early: {fullest} of 2100 bytes");
        assert_eq!(carried(&packs), events);
    }
}

#[test]
fn an_event_larger_than_a_batch_travels_alone() {
    let large = "7".repeat(5000);
    let events = [numbered(1, OWN, b"1"), numbered(2, OWN, large.as_bytes()), numbered(3, OWN, b"3")];
    let packs = pack(packer(limits(100, 1000)), &events);
    assert_eq!(packs.iter().map(|pack| pack.head.count).collect::<Vec<_>>(), [1, 1, 1]);
    assert_eq!(carried(&packs), events);
}

#[test]
fn a_batch_is_due_when_its_first_event_has_waited_long_enough() {
    let ms = Duration::from_millis;
    let mut packer = packer(limits(100, 100_000));
    assert_eq!(packer.due(), None);
    packer.push(&event(1, OWN, b"1"), ms(10));
    packer.push(&event(2, OWN, b"2"), ms(11));
    assert_eq!(packer.due(), Some(ms(12)));
    assert_eq!(packer.close().unwrap().head.count, 2);
    assert_eq!(packer.due(), None);
    packer.push(&event(3, OWN, b"3"), ms(20));
    assert_eq!(packer.due(), Some(ms(22)), "the wait begins with the batch");
}

#[test]
fn a_batch_of_one_subject_carries_it_and_one_of_several_carries_its_origin() {
    let [a, b] = ["a", "b"].map(|tail| format!("{OWN}.{tail}"));
    let one = [numbered(1, &a, b"1"), numbered(2, &a, b"2")];
    assert_eq!(pack(packer(PackLimits::default()), &one)[0].subject, a);
    let two = [numbered(1, &a, b"1"), numbered(2, &b, b"2")];
    let packs = pack(packer(PackLimits::default()), &two);
    assert_eq!(packs[0].subject, OWN);
    assert_eq!(packs[0].head.subjects, [a, b]);
}

#[test]
fn the_agents_own_subjects_travel_in_batches_of_their_own() {
    let tails = ["a", "b", "agent.telemetry", "agent.telemetry", "agent.rollup", "a", "agent", "agentx"];
    let events: Vec<_> =
        tails.iter().zip(1..).map(|(tail, seq)| numbered(seq, &format!("{OWN}.{tail}"), b"{}")).collect();
    let packs = pack(packer(PackLimits::default()), &events);
    let found: Vec<_> = packs.iter().map(|p| (p.subject.as_str(), p.head.count)).collect();
    assert_eq!(
        found,
        [
            (OWN, 2),
            ("lucent.hierarchy.node.n1.agent.telemetry", 2),
            ("lucent.hierarchy.node.n1.agent.rollup", 1),
            (OWN, 3)
        ]
    );
    assert_eq!(carried(&packs), events);
}

#[test]
fn a_batch_holds_no_more_than_64_subjects() {
    let events: Vec<_> = (1..=130).map(|seq| numbered(seq, &format!("{OWN}.s{seq}"), b"{}")).collect();
    let packs = pack(packer(PackLimits::default()), &events);
    let sizes: Vec<_> = packs.iter().map(|pack| pack.head.subjects.len()).collect();
    assert_eq!(sizes, [MAX_SUBJECTS, MAX_SUBJECTS, 2]);
    assert_eq!(carried(&packs), events);
}

/// A local application can publish on any subject that the node's server lets it. What the parent
/// must refuse takes nothing else with it.
#[test]
fn an_event_that_must_be_refused_takes_no_other_with_it() {
    let world = World::committed();
    for unfit in [
        "lucent.hierarchy.node.n1.\"quoted\"",
        "lucent.hierarchy.node.n1.back\\slash",
        "lucent.hierarchy.node.n1.\u{7}",
        "lucent.hierarchy.node.n1.*",
        "lucent.hierarchy.node.n2.theirs",
        "lucent.commands.trading.execute",
    ] {
        let own = format!("{OWN}.a");
        let events = [numbered(1, &own, b"1"), numbered(2, unfit, b"2"), numbered(3, &own, b"3")];
        let packs = pack(packer(PackLimits::default()), &events);
        let found: Vec<_> = packs.iter().map(|pack| carry(&world, pack).map(|events| events.len())).collect();
        let refusal = *found[1].as_ref().unwrap_err();
        assert!(matches!(refusal, Refusal::WrongSubject | Refusal::Malformed), "{unfit}: {refusal}");
        assert_eq!(found, [Ok(1), Err(refusal), Ok(1)], "{unfit}");
    }
}

#[test]
fn nobody_speaks_for_another() {
    let world = World::committed();
    let pack = pack(packer(PackLimits::default()), &[numbered(1, &format!("{OWN}.a"), b"1")]).remove(0);
    let sealed = seal_pack(&world.signer("n1"), &pack);
    let envelope = Parsed::parse(&sealed.bytes).unwrap();
    let check = |path: &str| check_speaker(&path.parse::<Path>().unwrap(), &envelope);
    assert_eq!(check("s1/c1/n1"), Ok(()));
    for other in ["s1/c1/n2", "s1/c1/n10", "s1/n1", "n1", "s1/c1", "global"] {
        assert_eq!(check(other), Err(Refusal::WrongSubject), "{other}");
    }
}
