//! A client in another language that knows nothing of the mesh but a subject.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::BTreeMap, process::Stdio, time::Duration};

use async_nats::jetstream;
use bytes::Bytes;
use futures_util::StreamExt as _;
use hierarchy::{envelope::Parsed, link::Batch, signing::Timeliness, subject::Speaker};
use serde::Deserialize;
use tests::{Mesh, Observer, eventually, eventually::when, mesh::path, observer, program};
use tokio::process::Command;

const ARRIVED_WITHIN: Duration = Duration::from_secs(30);

#[derive(Debug, Deserialize)]
struct Published {
    subject: String,
    data: String,
    headers: BTreeMap<String, String>,
}

/// What is compared: subject, bytes and headers.
type Event = (String, Vec<u8>, BTreeMap<String, Vec<String>>);

impl Published {
    fn event(&self) -> Event {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        let headers = self.headers.iter().map(|(name, value)| (name.clone(), vec![value.clone()])).collect();
        (self.subject.clone(), STANDARD.decode(&self.data).unwrap(), headers)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_published_by_a_python_client_at_a_node_arrives_at_global_once_in_order_verified() {
    let Some(python) = program::python() else { return };
    let mesh = Mesh::start(&["global", "s1", "s1/c1", "s1/c1/n1"]).await;
    let node = path("s1/c1/n1");
    let observer = Observer::start(&mesh).await;
    let global = mesh.client("global").await;
    let mut live = global.subscribe("lucent.hierarchy.>").await.unwrap();
    global.flush().await.unwrap();

    let url = format!("nats://{}", mesh.addresses(&node).unwrap().nats);
    let script = program::source_file("python/publish.py");
    let mut command = Command::new(python);
    command.arg(script).args([url.as_str(), node.id()]).stderr(Stdio::inherit());
    let ended = program::run(&mut command, Duration::from_secs(30)).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let published: Vec<Published> = serde_json::from_str(&ended.stdout).unwrap();
    let published: Vec<Event> = published.iter().map(Published::event).collect();
    assert_eq!(published.len(), 20);

    // From the stream: once, in order, to the letter, every batch verified.
    let arrived = |events: &[&observer::Arrived]| -> Vec<Event> {
        events
            .iter()
            .map(|event| (event.subject.clone(), event.data.to_vec(), event.headers.clone()))
            .collect()
    };
    eventually!(ARRIVED_WITHIN, {
        let seen = observer.seen();
        when(seen.of("s1/c1/n1").len() >= published.len(), seen.of("s1/c1/n1").len())
    });
    let seen = observer.seen();
    assert_eq!(arrived(&seen.of("s1/c1/n1")), published);
    assert_eq!(seen.unverified, Vec::<String>::new());

    // By a plain subscription: the same, verified by hand.
    let mut heard: Vec<Event> = Vec::new();
    let mut verifier = observer::verifier(&mesh);
    let js = jetstream::new(global);
    while heard.len() < published.len() {
        let message =
            tokio::time::timeout(ARRIVED_WITHIN, live.next()).await.expect("more is heard").unwrap();
        let Ok(envelope) = Parsed::parse(&message.payload) else { continue };
        if envelope.identity().path != node || message.subject.contains(".agent.") {
            continue;
        }
        let binding =
            observer::binding(&js, &envelope.kid().to_string()).await.expect("the binding is published");
        verifier.learn(&binding).unwrap();
        let stored = Timeliness::Stored(Duration::from_secs(60));
        let verified = verifier.verify(&message.payload, agent::clock::wall(), stored).unwrap();
        assert_eq!(verified.envelope.identity().to_string(), "spiffe://lucent.dev/mesh/s1/c1/n1");
        assert_eq!(Speaker::parse(&message.subject), Some(Speaker::of(&node)));
        let head = verified.envelope.batch().unwrap();
        for event in Batch::read(&verified.envelope).unwrap().events {
            heard.push((head.subjects[usize::from(event.sub)].clone(), event.bytes(), event.hdr.clone()));
        }
        // A single changed byte is noticed.
        let mut forged = message.payload.to_vec();
        let digit = forged.iter().rposition(u8::is_ascii_digit).unwrap();
        forged[digit] = if forged[digit] == b'1' { b'2' } else { b'1' };
        let forged = Bytes::from(forged);
        assert!(verifier.verify(&forged, agent::clock::wall(), stored).is_err());
    }
    assert_eq!(heard, published);
}

/// The verifier was written from the document alone: where it and this code judge differently, one of the
/// three is wrong.
#[tokio::test]
async fn a_verifier_written_in_python_from_the_document_agrees_on_every_vector() {
    let Some(python) = program::python() else { return };
    let mut command = Command::new(python);
    command.arg(program::source_file("python/verify_vectors.py"));
    let ended = program::run(&mut command, Duration::from_secs(60)).await;
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    assert!(ended.stdout.contains(" 0 judged wrongly"), "{}", ended.stdout);
}
