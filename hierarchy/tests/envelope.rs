//! What is written is what is read, and nothing else is. The single refusals are in the vectors; see
//! `vectors.rs`.
#![allow(clippy::unwrap_used)]

mod support;

use std::{collections::BTreeMap, time::Duration};

use hierarchy::{
    Digest, Lane, Millis, Refusal,
    envelope::{BatchHead, Draft, MAX_BYTES, MAX_EVENT_BYTES, Parsed, Sealed},
    link::{Event, PackLimits, Tick},
    signing::{Timeliness, Verifier},
};
use proptest::prelude::*;

use support::{
    batch_cases,
    world::{NOW, SIGNED, World, draft, marked, raw, seal_pack},
};

const AGE: Timeliness = Timeliness::Stored(Duration::from_secs(3600));

/// Text that may stand in an outer field: no quote, no backslash, no control character.
fn outer_text() -> impl Strategy<Value = String> {
    "[ !#-\\[\\]-~à-ÿ一-丏😀]{0,40}"
}

fn json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        ".{0,20}".prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
            proptest::collection::btree_map(".{0,8}", inner, 0..6)
                .prop_map(|map: BTreeMap<_, _>| { serde_json::Value::Object(map.into_iter().collect()) }),
        ]
    })
}

fn head() -> impl Strategy<Value = BatchHead> {
    let subjects = proptest::collection::vec(outer_text(), 0..5);
    (any::<u64>(), any::<u64>(), any::<u64>(), any::<u32>(), subjects).prop_map(
        |(incarnation, first, last, count, subjects)| BatchHead {
            incarnation,
            first,
            last,
            count,
            subjects,
            tell: Vec::new(),
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_sealed_is_read_as_it_was_meant(
        id in any::<u128>(),
        (correlation, causation, reply_to) in (
            proptest::option::of(outer_text()),
            proptest::option::of(outer_text()),
            proptest::option::of(outer_text()),
        ),
        (message_type, subject) in (outer_text(), outer_text()),
        priority in prop_oneof![Just(Lane::Critical), Just(Lane::Normal), Just(Lane::Bulk)],
        batch in proptest::option::of(head()),
        value in json(),
        pretty in any::<bool>(),
        agent in prop_oneof![Just("n1"), Just("c1"), Just("core")],
        timestamp in SIGNED.0 - 60_000..SIGNED.0 + 60_000,
    ) {
        let world = World::committed();
        let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) };
        let payload = raw(&text.unwrap());
        let draft = Draft {
            message_id: uuid::Uuid::from_u128(id),
            correlation_id: correlation.as_deref(),
            causation_id: causation.as_deref(),
            timestamp: Millis(timestamp),
            message_type: &message_type,
            subject: &subject,
            reply_to: reply_to.as_deref(),
            priority,
            batch: batch.clone(),
            payload: &payload,
        };
        let signer = world.signer(agent);
        let sealed = signer.seal(&draft);
        let verified = world.verifier().verify(&sealed.bytes, NOW, AGE).unwrap();
        let read = verified.envelope;
        prop_assert_eq!(verified.digest, sealed.digest);
        prop_assert_eq!(read.digest(), sealed.digest);
        prop_assert_eq!(read.kid(), signer.kid());
        prop_assert_eq!(read.identity(), signer.identity());
        prop_assert_eq!(read.level(), signer.identity().path.level());
        prop_assert_eq!(read.sender().node_id.as_ref(), signer.identity().path.to_string());
        prop_assert_eq!(read.message_id().as_u128(), id);
        prop_assert_eq!(read.correlation_id(), correlation.as_deref());
        prop_assert_eq!(read.timestamp(), Millis(timestamp));
        prop_assert_eq!(read.message_type(), message_type);
        prop_assert_eq!(read.subject(), subject);
        prop_assert_eq!(read.reply_to(), reply_to.as_deref());
        prop_assert_eq!(read.priority(), priority);
        prop_assert_eq!(read.batch(), batch.as_ref());
        prop_assert_eq!(read.payload().get(), payload.get());
    }

    /// The description in `docs/wire-format.md`, followed by hand, gives the same bytes.
    #[test]
    fn a_writer_of_another_make_writes_the_same_signature(value in json()) {
        let world = World::committed();
        let payload = raw(&value.to_string());
        let sealed = world.signer("n1").seal(&draft("lucent.hierarchy.node.n1", &payload));
        let text = marked(&sealed);
        prop_assert_eq!(&world.pen("n1").sign(&text)[..], &sealed.bytes[..]);
        prop_assert_eq!(support::forge::digest(text.as_bytes()), sealed.digest.0);
    }

    #[test]
    fn no_changed_byte_of_a_large_envelope_verifies(
        data in proptest::collection::vec(any::<u8>(), 0..20_000),
        place in any::<proptest::sample::Index>(),
        change in 1u8..,
    ) {
        let world = World::committed();
        let mut packer = batch_cases::packer(PackLimits::default());
        packer.push(&batch_cases::event(1, "lucent.hierarchy.node.n1", &data), Tick::ZERO);
        let sealed = seal_pack(&world.signer("n1"), &packer.close().unwrap());
        let mut bytes = sealed.bytes.to_vec();
        bytes[place.index(sealed.bytes.len())] ^= change;
        prop_assert!(world.verifier().verify(&bytes, NOW, AGE).is_err());
    }

    #[test]
    fn nothing_that_arrives_makes_the_reader_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        from in any::<proptest::sample::Index>(),
        to in any::<proptest::sample::Index>(),
    ) {
        let world = World::committed();
        let sealed = small(&world);
        let (from, to) = (from.index(sealed.bytes.len()), to.index(sealed.bytes.len()));
        let spliced = [&sealed.bytes[..from], &bytes, &sealed.bytes[to..]].concat();
        let _ = Parsed::parse(&bytes);
        if spliced != sealed.bytes {
            prop_assert!(world.verifier().verify(&spliced, NOW, AGE).is_err());
        }
    }
}

fn small(world: &World) -> Sealed {
    world.signer("n1").seal(&draft("lucent.hierarchy.node.n1.trades", &raw(r#"{"a":[1,"x"]}"#)))
}

fn refused(verifier: &Verifier, bytes: &[u8]) -> bool {
    verifier.verify(bytes, NOW, AGE).is_err()
}

#[test]
fn no_single_byte_of_an_envelope_can_be_changed_dropped_doubled_or_swapped() {
    let world = World::committed();
    let (verifier, sealed) = (world.verifier(), small(&world).bytes);
    assert!(!refused(&verifier, &sealed));
    let mut changes = 0;
    for at in 0..sealed.len() {
        let mut bytes = sealed.to_vec();
        for value in 0..=255 {
            bytes[at] = value;
            if value != sealed[at] {
                assert!(refused(&verifier, &bytes), "byte {at} changed to {value}");
                changes += 1;
            }
        }
        let (front, rest) = sealed.split_at(at);
        assert!(refused(&verifier, &[front, &rest[1..]].concat()), "byte {at} dropped");
        assert!(refused(&verifier, &[front, &rest[..1], rest].concat()), "byte {at} doubled");
        assert!(refused(&verifier, front), "cut at {at}");
        if rest.len() > 1 && rest[0] != rest[1] {
            let mut bytes = sealed.to_vec();
            bytes.swap(at, at + 1);
            assert!(refused(&verifier, &bytes), "bytes {at} and {} swapped", at + 1);
        }
    }
    assert_eq!(changes, sealed.len() * 255);
}

#[test]
fn each_message_has_a_digest_of_its_own() {
    let world = World::committed();
    let payload = raw("{}");
    let base = draft("lucent.hierarchy.node.n1", &payload);
    let other_id = Draft { message_id: uuid::Uuid::from_u128(1), ..base.clone() };
    let (n1, n2) = (world.signer("n1"), world.signer("n2"));
    let digests: std::collections::HashSet<Digest> =
        [n1.seal(&base), n1.seal(&other_id), n2.seal(&base)].map(|sealed| sealed.digest).into();
    assert_eq!(digests.len(), 3);
    assert_eq!(n1.seal(&base).bytes, n1.seal(&base).bytes, "sealing draws no random numbers");
}

#[test]
fn the_largest_event_fits_into_an_envelope_whatever_its_bytes() {
    let world = World::committed();
    let mut event: Event = batch_cases::event(1, "lucent.hierarchy.node.n1", &vec![0xff; MAX_EVENT_BYTES]);
    event.headers.insert("X-Long".into(), vec!["h".repeat(64 * 1024)]);
    let mut packer = batch_cases::packer(PackLimits::default());
    let pack = &packer.push(&event, Tick::ZERO)[0];
    let sealed = seal_pack(&world.signer("n1"), pack);
    assert!(sealed.bytes.len() <= MAX_BYTES, "{} bytes", sealed.bytes.len());
    assert!(world.verifier().verify(&sealed.bytes, NOW, AGE).is_ok());
}

#[test]
fn size_is_looked_at_first() {
    let padding = "x".repeat(MAX_BYTES);
    let world = World::committed();
    let sealed = world.signer("n1").seal(&draft("lucent.hierarchy.node.n1", &raw(&format!("{padding:?}"))));
    assert_eq!(Parsed::parse(&sealed.bytes).unwrap_err(), Refusal::Oversized);
}
