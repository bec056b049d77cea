//! Orders as an application gives them, and as they lie where they are for.

use std::time::Duration;

use async_nats::{
    Client, HeaderMap,
    jetstream::{self, consumer::pull},
};
use futures_util::StreamExt as _;
use serde_json::Value;

use crate::{Mesh, eventually};

/// How long an answer may take to come at last.
const ANSWERED_WITHIN: Duration = Duration::from_secs(60);
/// Silence that means that no more is stored.
const SILENCE: Duration = Duration::from_millis(500);

/// Asks for an order on a subject without its `lucent.send.`, such as `node.s1.c1.n1.commands.x`, until there is an
/// answer.
pub async fn send(client: &Client, subject: &str, headers: HeaderMap, body: &Value) -> Value {
    let (subject, body) = (format!("lucent.send.{subject}"), body.to_string());
    let answer = eventually!(ANSWERED_WITHIN, {
        client.request_with_headers(subject.clone(), headers.clone(), body.clone().into()).await
    });
    serde_json::from_slice(&answer.payload).expect("an answer is JSON")
}

/// The field `number` of all orders that lie at a level for its applications, in their order. Nothing while the
/// level's store does not answer.
pub async fn numbers_at(mesh: &Mesh, at: &str) -> Vec<u64> {
    let js = jetstream::new(mesh.client(at).await);
    let Ok(stream) = js.get_stream("ORDERS").await else { return Vec::new() };
    let config = pull::OrderedConfig {
        name: Some(format!("look-{}", uuid::Uuid::new_v4().simple())),
        filter_subject: "orders.here.>".into(),
        ..Default::default()
    };
    let mut numbers = Vec::new();
    let Ok(consumer) = stream.create_consumer(config).await else { return numbers };
    let Ok(mut messages) = consumer.messages().await else { return numbers };
    while let Ok(Some(Ok(message))) = tokio::time::timeout(SILENCE, messages.next()).await {
        let body: Value = serde_json::from_slice(&message.payload).unwrap_or_default();
        numbers.extend(body["number"].as_u64());
        if message.info().is_ok_and(|info| info.pending == 0) {
            break;
        }
    }
    numbers
}
