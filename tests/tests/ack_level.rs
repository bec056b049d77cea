//! A publisher is answered when its event is durable at the level that it names.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::{Duration, Instant};

use async_nats::{Client, HeaderMap};
use serde_json::Value;
use tests::{Mesh, Observer, eventually, eventually::when, path};

const TREE: [&str; 4] = ["global", "s1", "s1/c1", "s1/c1/n1"];
const NODE: &str = "s1/c1/n1";
const SOON: Duration = Duration::from_secs(20);

/// The answer to a request to publish `body` with these headers.
async fn ask(client: &Client, headers: &[(&str, &str)], body: &str) -> Value {
    let mut map = HeaderMap::new();
    headers.iter().for_each(|(name, value)| map.insert(*name, *value));
    let subject = "lucent.publish.hierarchy.node.n1.trades";
    let request = client.request_with_headers(subject, map, body.to_owned().into());
    let answer = tokio::time::timeout(SOON, request).await.expect("an answer").unwrap();
    serde_json::from_slice(&answer.payload).unwrap()
}

fn arrived(observer: &Observer, body: &str) -> bool {
    observer.seen().of(NODE).iter().any(|event| event.data == body)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_is_durable_at_the_level_that_its_publisher_is_told() {
    let mut mesh = Mesh::start(&TREE).await;
    let observer = Observer::start(&mesh).await;
    let client = mesh.client(NODE).await;
    let mut took = Vec::new();
    for number in 0..20 {
        let body = format!("\"global {number}\"");
        let asked = Instant::now();
        let answer = ask(&client, &[("Lucent-Ack-Level", "global")], &body).await;
        took.push(asked.elapsed());
        assert_eq!(answer["level"], "global", "{answer}");
        // The observer reads behind the store.
        eventually!(Duration::from_secs(2), { when(arrived(&observer, &body), &body) });
    }
    took.sort_unstable();
    println!("answered from global: median {:.1?}, longest {:.1?}", took[10], took[19]);

    let answer = ask(&client, &[], "\"here\"").await;
    assert_eq!(answer["level"], "node", "{answer}");

    // Above the cluster nobody is there.
    mesh.stop_one(&path("s1")).await;
    let answer = ask(&client, &[("Lucent-Ack-Level", "cluster")], "\"cluster\"").await;
    assert_eq!(answer["level"], "cluster", "{answer}");
    let headers = [("Lucent-Ack-Level", "global"), ("Lucent-Ack-Within", "2")];
    let asked = Instant::now();
    let answer = ask(&client, &headers, "\"in vain\"").await;
    assert!((2..6).contains(&asked.elapsed().as_secs()), "{:?}", asked.elapsed());
    assert_eq!(answer["error"]["code"], 408, "{answer}");
    let description = answer["error"]["description"].as_str().unwrap();
    assert!(description.starts_with("timeout: event") && description.contains("at global"), "{description}");

    // It was on its way all the same.
    mesh.start_again("s1").await;
    eventually!(SOON, { when(arrived(&observer, "\"in vain\""), "not yet") });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wish_that_makes_no_sense_is_refused() {
    let mesh = Mesh::start(&["global", "s1", "s1/c1", NODE]).await;
    let client = mesh.client(NODE).await;
    for headers in [
        [("Lucent-Ack-Level", "moon"), ("Lucent-Ack-Within", "2")],
        [("Lucent-Ack-Level", "global"), ("Lucent-Ack-Within", "soon")],
        [("Lucent-Ack-Level", "global"), ("Lucent-Ack-Within", "0")],
    ] {
        let answer = ask(&client, &headers, "\"x\"").await;
        assert_eq!(answer["error"]["code"], 400, "{answer}");
    }
}
