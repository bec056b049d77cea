//! The test vectors in `tests/vectors`: judged as they say, and written by this code as they stand.
//!
//! `LUCENT_VECTORS=write cargo test -p hierarchy --test vectors -- --ignored` writes anew what follows
//! from `world.json`; `LUCENT_VECTORS=new` makes another world first, with new certificates.
#![allow(clippy::unwrap_used)]

mod support;

use hierarchy::{
    Millis, Refusal,
    link::{ChildMessage, ParentMessage, batch::check_speaker, message},
    signing::{Binding, Verified, Verifier},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use support::{
    batch_cases, binding_cases, envelope_cases,
    vector::{self, Vector, VectorEvent},
    world::World,
};

/// Judges every vector of a file by `judge` and names those that are judged otherwise than they say.
fn walk(vectors: &[Vector], mut judge: impl FnMut(&Vector) -> Result<(), Refusal>) {
    let wrong: Vec<_> = vectors
        .iter()
        .filter_map(|vector| {
            let found = judge(vector).err().map_or("ok", Refusal::name);
            (found != vector.expect).then(|| format!("{}: {} but {found}", vector.name, vector.expect))
        })
        .collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), vectors.len(), wrong.join("\n"));
    assert!(vectors.iter().any(|v| v.expect == "ok") && vectors.iter().any(|v| v.expect != "ok"));
}

/// A sound vector tells what is in it; [`walk`] reports one that should not have been sound.
fn yields<T: PartialEq + std::fmt::Debug>(vector: &Vector, expected: &Option<T>, found: &T) {
    if vector.expect == "ok" {
        assert_eq!(expected.as_ref(), Some(found), "{}", vector.name);
    }
}

fn verify<'a>(verifier: &Verifier, vector: &Vector, bytes: &'a [u8]) -> Result<Verified<'a>, Refusal> {
    verifier.verify(bytes, Millis(vector.now.unwrap()), vector.timeliness.unwrap().into())
}

#[test]
fn every_envelope_is_judged_as_its_vector_says() {
    let verifier = World::committed().verifier();
    walk(&vector::read::<Vec<Vector>>("envelopes.json"), |vector| {
        let bytes = vector.bytes();
        let verified = verify(&verifier, vector, &bytes)?;
        yields(vector, &vector.digest, &verified.digest.to_string());
        Ok(())
    });
}

#[test]
fn every_batch_is_judged_as_its_vector_says() {
    let verifier = World::committed().verifier();
    walk(&vector::read::<Vec<Vector>>("batches.json"), |vector| {
        let bytes = vector.bytes();
        let envelope = verify(&verifier, vector, &bytes)?.envelope;
        check_speaker(&envelope.identity().path, &envelope)?;
        let events = batch_cases::events_of(&envelope)?;
        let events: Vec<VectorEvent> = events.iter().map(batch_cases::vector_event).collect();
        yields(vector, &vector.events, &events);
        Ok(())
    });
}

#[test]
fn every_binding_is_judged_as_its_vector_says() {
    let trust = World::committed().trust();
    walk(&vector::read::<Vec<Vector>>("bindings.json"), |vector| {
        let kid = Verifier::new(trust.clone(), 1).learn(&Binding::from_json(&vector.bytes())?)?;
        yields(vector, &vector.kid, &kid.to_string());
        Ok(())
    });
}

#[test]
fn bindings_to_fresh_certificates_are_judged_alike() {
    let (world, authorities) = World::new();
    walk(&binding_cases::all(&authorities), |vector| {
        Verifier::new(world.trust(), 1).learn(&Binding::from_json(&vector.bytes())?).map(drop)
    });
}

/// Names stand for the vectors in failure messages and in other languages' reports.
#[test]
fn no_two_vectors_of_a_file_share_a_name() {
    for file in ["envelopes.json", "batches.json", "bindings.json"] {
        let mut seen = std::collections::HashSet::new();
        for vector in vector::read::<Vec<Vector>>(file) {
            assert!(seen.insert(vector.name.clone()), "{file}: {} stands twice", vector.name);
        }
    }
}

/// One message of the link: what stands in `messageType` and in `payload`.
#[derive(Serialize, Deserialize)]
struct LinkExample {
    #[serde(rename = "messageType")]
    message_type: String,
    payload: Box<RawValue>,
}

#[test]
fn the_link_messages_in_the_vectors_are_read_and_written_as_they_stand() {
    for example in vector::read::<Vec<LinkExample>>("link.json") {
        let text = example.payload.get();
        let child = serde_json::from_str::<ChildMessage>(text)
            .map(|message| (message.kind(), serde_json::to_string(&message).unwrap()));
        let (kind, written) = child
            .or_else(|_| {
                serde_json::from_str::<ParentMessage>(text)
                    .map(|message| (message.kind(), serde_json::to_string(&message).unwrap()))
            })
            .unwrap_or_else(|e| panic!("{}: {e}", example.message_type));
        assert_eq!(kind, example.message_type);
        let same = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(same(&written), same(text), "{kind}");
    }
}

#[test]
fn a_link_message_that_leaves_out_a_lane_or_names_another_is_not_read() {
    let (mut read, mut refused) = (0, 0);
    for example in vector::read::<Vec<LinkExample>>("link.json") {
        let text = example.payload.get();
        let sound = |text: &str| {
            serde_json::from_str::<ChildMessage>(text).is_ok()
                || serde_json::from_str::<ParentMessage>(text).is_ok()
        };
        read += usize::from(sound(text));
        for (from, to) in
            [("\"bulk\":", "\"express\":"), ("\"normal\"", "\"express\""), ("\"lane\":", "\"l\":")]
        {
            if text.contains(from) {
                assert!(!sound(&text.replace(from, to)), "{from} in {text}");
                refused += 1;
            }
        }
    }
    assert_eq!((read, refused), (13, 14));
}

/// A frame as it travels: its envelope, a line feed, its batches.
#[test]
fn the_frame_in_the_vectors_is_cut_into_its_batches() {
    let frame = std::fs::read(vector::file("frame.bin")).unwrap();
    let end = frame.iter().position(|byte| *byte == b'\n').unwrap();
    let verifier = World::committed().verifier();
    let age = hierarchy::signing::Timeliness::Live(std::time::Duration::from_secs(60));
    let envelope = verifier.verify(&frame[..end], support::world::NOW, age).unwrap().envelope;
    let ChildMessage::Frame { lane, parcels, .. } = serde_json::from_str(envelope.payload().get()).unwrap()
    else {
        panic!("no frame");
    };
    let batches = message::cut(&parcels, bytes::Bytes::copy_from_slice(&frame[end + 1..])).unwrap();
    assert_eq!(batches.len(), 2);
    let mut answered_for = 0;
    for (head, batch) in parcels.iter().zip(&batches) {
        let age = hierarchy::signing::Timeliness::Stored(std::time::Duration::from_secs(60));
        let verified = verifier.verify(batch, support::world::NOW, age).unwrap();
        assert_eq!(verified.digest, head.digest);
        assert_eq!(verified.envelope.priority(), lane);
        let numbers = verified.envelope.batch().unwrap();
        assert_eq!(numbers.first, answered_for + 1, "batches follow each other without a gap");
        answered_for = numbers.last;
    }
    assert!(message::cut(&parcels, bytes::Bytes::copy_from_slice(&frame[end..])).is_none());
    assert!(message::cut(&parcels[..1], bytes::Bytes::copy_from_slice(&frame[end + 1..])).is_none());
}

/// What follows from a world, by file name.
fn derived(world: &World) -> Vec<(&'static str, Vec<u8>)> {
    let verifier = world.verifier();
    let mut envelopes = envelope_cases::all(world);
    for vector in envelopes.iter_mut().filter(|vector| vector.expect == "ok") {
        let bytes = vector.bytes();
        vector.digest = verify(&verifier, vector, &bytes).ok().map(|v| v.digest.to_string());
    }
    let golden = support::golden::all(world);
    let mut files = vec![
        ("envelopes.json", vector::text(&envelopes).into_bytes()),
        ("batches.json", vector::text(&batch_cases::all(world)).into_bytes()),
    ];
    files.extend(golden);
    files
}

#[test]
fn this_code_still_writes_exactly_the_bytes_that_are_committed() {
    let world = World::committed();
    for (name, agent) in &world.agents {
        assert_eq!(*world.signer(name).binding(), agent.binding, "the binding of {name}");
    }
    for (name, bytes) in derived(&world) {
        let committed = std::fs::read(vector::file(name)).unwrap();
        assert!(committed == bytes, "{name} differs; if that is meant, write it with LUCENT_VECTORS=write");
    }
}

#[test]
fn the_example_in_the_description_is_the_golden_envelope() {
    let text = std::fs::read_to_string(vector::file("../../../docs/wire-format.md")).unwrap();
    let golden = std::fs::read_to_string(vector::file("golden-envelope.json")).unwrap();
    let world = World::committed();
    let age = hierarchy::signing::Timeliness::Session;
    let verified = world.verifier().verify(golden.as_bytes(), support::world::NOW, age).unwrap().digest;
    let key = support::forge::base64url(world.pen("n1").key.verifying_key().as_bytes());
    for part in [golden, verified.to_string(), key] {
        assert!(text.contains(&part), "docs/wire-format.md does not show {part}");
    }
}

#[test]
#[ignore = "writes the vectors; see the head of this file"]
fn write_the_vectors() {
    let write = |name: &str, bytes: &[u8]| std::fs::write(vector::file(name), bytes).unwrap();
    match std::env::var("LUCENT_VECTORS").as_deref() {
        Ok("new") => {
            let (world, authorities) = World::new();
            write("world.json", vector::text(&world).as_bytes());
            write("bindings.json", vector::text(&binding_cases::all(&authorities)).as_bytes());
        }
        Ok("write") => {}
        _ => panic!("set LUCENT_VECTORS to `write` or `new`"),
    }
    for (name, bytes) in derived(&World::committed()) {
        write(name, &bytes);
    }
}
