//! Policies decide what goes up, and count what does not.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::BTreeMap, time::Duration};

use async_nats::jetstream;
use futures_util::StreamExt as _;
use hierarchy::{Level, envelope::Parsed, link::Batch};
use tests::{Mesh, eventually, eventually::when};

const SOON: Duration = Duration::from_secs(20);
const NODE_RULES: &str = r#"
[[policy]]
subject = "lucent.hierarchy.*.*.debug.>"
action = "drop"

[[policy]]
subject = "lucent.hierarchy.*.*.ticks"
action = "sample"
one_in = 5
"#;
const CLUSTER_RULES: &str = "\n[[policy]]\nsubject = \"lucent.hierarchy.node.*.local\"\naction = \"drop\"\n";

/// Counts the events of the next batch by the last token of their subjects.
async fn collect(arriving: &mut async_nats::Subscriber, arrived: &mut BTreeMap<String, usize>) {
    let message = tokio::time::timeout(SOON, arriving.next()).await.expect("another batch arrives").unwrap();
    let envelope = Parsed::parse(&message.payload).unwrap();
    for event in Batch::read(&envelope).unwrap().events {
        let subject = &envelope.batch().unwrap().subjects[usize::from(event.sub)];
        *arrived.entry(subject.rsplit('.').next().unwrap().to_owned()).or_default() += 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_rule_keeps_back_does_not_arrive_and_is_counted() {
    let mesh = Mesh::start_with(&["global", "s1", "s1/c1", "s1/c1/n1"], |path, config| match path.level() {
        Level::Node => config.push_str(NODE_RULES),
        Level::Cluster => config.push_str(CLUSTER_RULES),
        Level::Site | Level::Global => {}
    })
    .await;
    let mut arriving = mesh.client("global").await.subscribe("lucent.hierarchy.node.>").await.unwrap();
    let node = jetstream::new(mesh.client("s1/c1/n1").await);
    let publish = async |tail: &str, events: usize| {
        for number in 0..events {
            let subject = format!("lucent.hierarchy.node.n1.{tail}");
            node.publish(subject, number.to_string().into()).await.unwrap().await.unwrap();
        }
    };
    publish("debug.x", 10).await;
    publish("ticks", 20).await;
    let kept = async |at: &str, action: &str| {
        mesh.numbers(at).await.value(&format!("lucent_policy_kept_total{{reason=\"{action}\"}}"))
    };
    eventually!(SOON, {
        let kept = (kept("s1/c1/n1", "dropped").await, kept("s1/c1/n1", "sampled-out").await);
        when(kept == (10.0, 16.0), kept)
    });
    let mut arrived = BTreeMap::new();
    // The cluster decides whole batches: these events are alone in theirs once the ones before have gone.
    while arrived.get("ticks") != Some(&4) {
        collect(&mut arriving, &mut arrived).await;
    }
    publish("local", 3).await;
    eventually!(SOON, {
        let dropped = kept("s1/c1", "dropped").await;
        when(dropped >= 1.0, dropped)
    });
    publish("trades", 1).await;
    // The one trade is published last: when it is there, so is all that was before it.
    while !arrived.contains_key("trades") {
        collect(&mut arriving, &mut arrived).await;
    }
    assert_eq!(arrived.get("x"), None, "dropped at the node: {arrived:?}");
    assert_eq!(arrived.get("ticks"), Some(&4), "one in five: {arrived:?}");
    assert_eq!(arrived.get("local"), None, "dropped at the cluster: {arrived:?}");
}
