//! Parent and child have streams and consumers of equal names. On one JetStream account across a leaf link, an
//! acknowledgement on one side would acknowledge, and so lose, messages on the other, and each side's streams
//! would capture what is published on the other.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::BTreeSet, time::Duration};

use async_nats::{
    Client, Subscriber,
    jetstream::{
        self, Message,
        consumer::{AckPolicy, PullConsumer, pull},
    },
};
use futures_util::StreamExt as _;
use tests::{Mesh, eventually, eventually::when};

const SOON: Duration = Duration::from_secs(20);
const MESSAGES: u64 = 10;
/// No agent touches this one: it is the applications' work queue.
const JOBS: &str = "JOBS";

async fn stored(client: &Client, stream: &str) -> u64 {
    let stream = jetstream::new(client.clone()).get_stream(stream).await.unwrap();
    stream.cached_info().state.messages
}

/// A durable consumer of an application: of one name on both sides.
async fn worker(client: &Client) -> PullConsumer {
    let config = pull::Config {
        durable_name: Some("worker".into()),
        ack_policy: AckPolicy::Explicit,
        filter_subject: "jobs.>".into(),
        ..Default::default()
    };
    let stream = jetstream::new(client.clone()).get_stream(JOBS).await.unwrap();
    stream.create_consumer(config).await.unwrap()
}

async fn publish(client: &Client, what: &str) {
    let js = jetstream::new(client.clone());
    for number in 1..=MESSAGES {
        js.publish("jobs.export", format!("{what} {number}").into()).await.unwrap().await.unwrap();
    }
}

/// What the consumer hands out, not yet acknowledged.
async fn take(consumer: &PullConsumer) -> Vec<Message> {
    let batch = consumer.fetch().max_messages(MESSAGES as usize * 2).messages().await.unwrap();
    batch.map(Result::unwrap).collect().await
}

fn bodies(messages: &[Message]) -> Vec<String> {
    messages.iter().map(|message| String::from_utf8(message.payload.to_vec()).unwrap()).collect()
}

fn numbered(what: &str) -> Vec<String> {
    (1..=MESSAGES).map(|number| format!("{what} {number}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_meshes_streams_with_equal_names_cannot_acknowledge_or_capture_each_others_messages() {
    let mesh = Mesh::start(&["global", "s1", "s1/c1", "s1/c1/n1"]).await;
    for (above, below) in [("s1/c1", "s1/c1/n1"), ("global", "s1")] {
        equal_names_do_not_meet(&mesh.client(above).await, &mesh.client(below).await).await;
    }
}

async fn equal_names_do_not_meet(parent: &Client, child: &Client) {
    let (above, below) = (worker(parent).await, worker(child).await);
    publish(parent, "above").await;
    publish(child, "below").await;

    // Nothing is captured on the other side.
    assert_eq!((stored(parent, JOBS).await, stored(child, JOBS).await), (MESSAGES, MESSAGES));
    let (taken_above, taken_below) = (take(&above).await, take(&below).await);
    assert_eq!(bodies(&taken_above), numbered("above"));
    assert_eq!(bodies(&taken_below), numbered("below"));
    // The trap: what acknowledges a message names neither account nor domain.
    let ack =
        |message: &Message| message.reply.clone().unwrap().split('.').take(6).collect::<Vec<_>>().join(".");
    for (message, other) in taken_above.iter().zip(&taken_below) {
        assert_eq!(ack(message), ack(other));
    }

    // What is acknowledged below stays above, even where the subject is the other side's to the letter.
    for (message, other) in taken_below.iter().zip(&taken_above) {
        message.double_ack().await.unwrap();
        child.publish(other.reply.clone().unwrap(), "+ACK".into()).await.unwrap();
    }
    child.flush().await.unwrap();
    publish(child, "again").await;
    assert_eq!((stored(parent, JOBS).await, stored(child, JOBS).await), (MESSAGES, MESSAGES));
    // And the other way round.
    let taken_below = take(&below).await;
    for (message, other) in taken_above.iter().zip(&taken_below) {
        message.double_ack().await.unwrap();
        parent.publish(other.reply.clone().unwrap(), "+ACK".into()).await.unwrap();
    }
    parent.flush().await.unwrap();
    publish(parent, "again").await;
    assert_eq!((stored(parent, JOBS).await, stored(child, JOBS).await), (MESSAGES, MESSAGES));
    assert_eq!(bodies(&take(&above).await), numbered("again"));
}

/// Hears everything that is said from now on. Flushing only hands the subscription to the system; that the
/// server knows of it before it takes another connection's messages is sure once something was heard.
async fn hear_all(agent: &Client) -> Subscriber {
    let mut heard = agent.subscribe(">").await.unwrap();
    agent.publish("lucent.tests.begin", "".into()).await.unwrap();
    let begun = async { while heard.next().await.unwrap().subject.as_str() != "lucent.tests.begin" {} };
    tokio::time::timeout(SOON, begun).await.expect("the agent's connection hears what it says");
    heard
}

/// The agents' own streams and consumers bear equal names at every level, and applications may name subjects of
/// the other side.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_on_one_side_of_a_link_is_neither_heard_nor_stored_on_the_other() {
    let mesh = Mesh::start(&["global", "s1"]).await;
    let (parent, child) = (mesh.client("global").await, mesh.client("s1").await);
    let (above, below) = (mesh.agents_client("global").await, mesh.agents_client("s1").await);
    let (mut heard_above, mut heard_below) = (hear_all(&above).await, hear_all(&below).await);

    let subjects = [
        "lucent.agents.secret.task",
        "lucent.events.domain.trade.executed",
        "lucent.commands.trading.execute",
        "lucent.responses.trading.1",
        "lucent.services.x.health",
        "jobs.x",
        "signals.x",
        // Acknowledgements for the agents' streams, as an application's consumer would send them.
        "$JS.ACK.HIERARCHY.worker.1.1.1.1.0",
        "$JS.ACK.AGENT_COORDINATION.worker.1.1.1.1.0",
        "_INBOX.someone",
    ];
    for subject in subjects {
        parent.publish(subject, format!("above on {subject}").into()).await.unwrap();
        child.publish(subject, format!("below on {subject}").into()).await.unwrap();
    }
    // Hierarchy events of the child do go up, in a signed batch and no other way.
    child.publish("lucent.hierarchy.site.s1.plain", "below on its own".into()).await.unwrap();
    parent.publish("lucent.hierarchy.global.plain", "above on its own".into()).await.unwrap();
    parent.flush().await.unwrap();
    child.flush().await.unwrap();

    for (heard, own, others) in
        [(&mut heard_above, "above on", "below on"), (&mut heard_below, "below on", "above on")]
    {
        let mut missing: BTreeSet<String> =
            subjects.iter().map(|subject| format!("{own} {subject}")).collect();
        missing.insert(format!("{own} its own"));
        let all = async {
            while !missing.is_empty() {
                let message = heard.next().await.unwrap();
                let text = String::from_utf8_lossy(&message.payload).into_owned();
                assert!(!text.starts_with(others), "heard from the other side: {} {text}", message.subject);
                missing.remove(&text);
            }
        };
        let all = tokio::time::timeout(SOON, all).await;
        assert!(all.is_ok(), "not heard within {SOON:?}: {missing:#?}");
    }
    // Both agents' consumers of AGENT_COORDINATION are called the same; each refuses its own side's task.
    eventually!(SOON, {
        let queues =
            (stored(&parent, "AGENT_COORDINATION").await, stored(&child, "AGENT_COORDINATION").await);
        when(queues.1 == 0, queues)
    });
}
