//! Tasks from submission to answer, with real programs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::Duration;

use async_nats::{Client, Subscriber, jetstream};
use futures_util::StreamExt as _;
use hierarchy::envelope::Parsed;
use serde_json::{Value, json};
use tests::{Mesh, eventually, eventually::when, letters};

const CHAIN: [&str; 4] = ["global", "s1", "s1/c1", "s1/c1/n1"];
const ANSWERED_WITHIN: Duration = Duration::from_secs(40);
const SUBJECT: &str = "lucent.agents.yield.analysis";

/// A mesh whose node runs this shell script for every task; `$RUNS` names a file that it may write to.
async fn mesh_running(script: &str) -> Mesh {
    let script = script.to_owned();
    Mesh::start_with(&CHAIN, |path, config| {
        if path.segments().len() == 3 {
            config.push_str(&format!(
                "\n[[runner]]\nagent_type = \"yield\"\ntask = \"*\"\ncommand = [\"sh\", \"-c\", {script:?}]\nslots = 2\nenv = {{ RUNS = \"runs\" }}\n"
            ));
        }
    })
    .await
}

/// What the script has written, a line each.
fn runs(mesh: &Mesh) -> usize {
    let file = mesh.agent(&tests::path("s1/c1/n1")).config.with_file_name("runs");
    std::fs::read_to_string(file).map_or(0, |text| text.lines().count())
}

async fn submit(client: &Client, id: &str, reply_to: &str, max_retries: u32) {
    let body = json!({
        "messageId": id, "correlationId": "trade-7", "messageType": "YieldAnalysisJob", "subject": SUBJECT,
        "replyTo": reply_to, "payload": { "history": [1, 2, 3] }, "metadata": { "max_retries": max_retries },
    });
    let ack = jetstream::new(client.clone()).publish(SUBJECT, body.to_string().into()).await.unwrap();
    ack.await.unwrap();
}

/// The payload and correlation id of the next answer, a signed envelope.
async fn answer(answers: &mut Subscriber) -> (Value, Option<String>) {
    let message =
        tokio::time::timeout(ANSWERED_WITHIN, answers.next()).await.expect("an answer comes").unwrap();
    let envelope = Parsed::parse(&message.payload).unwrap();
    assert_eq!(envelope.identity().to_string(), "spiffe://lucent.dev/mesh", "the home level answers");
    let payload = serde_json::from_str(envelope.payload().get()).unwrap();
    (payload, envelope.correlation_id().map(str::to_owned))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_published_at_global_runs_on_a_node_and_its_result_returns_to_whoever_waits() {
    let mesh = mesh_running(
        "cat >/dev/null; echo run >>$RUNS; echo '{\"progress\":0.5}'; echo '{\"result\":{\"apy\":5.5}}'",
    )
    .await;
    let client = mesh.client("global").await;
    let mut reply = client.subscribe("results.mine").await.unwrap();
    let mut own = client.subscribe("lucent.responses.agents.task-1").await.unwrap();
    client.flush().await.unwrap();
    submit(&client, "task-1", "results.mine", 0).await;
    for answers in [&mut reply, &mut own] {
        let (payload, correlation) = answer(answers).await;
        assert_eq!(payload["state"], "succeeded", "{payload}");
        assert_eq!(payload["result"]["apy"], 5.5);
        assert_eq!(payload["node"], "s1/c1/n1");
        assert_eq!(correlation.as_deref(), Some("trade-7"));
    }
    // The same task once more is the same task: a third one shows that the second had its chance.
    submit(&client, "task-1", "results.mine", 0).await;
    submit(&client, "task-2", "results.mine", 0).await;
    let (payload, _) = answer(&mut reply).await;
    assert_eq!(payload["taskId"], "task-2");
    assert_eq!(runs(&mesh), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_task_is_tried_again_as_often_as_it_may_and_then_kept_with_its_reason() {
    let mesh = mesh_running("cat >/dev/null; echo run >>$RUNS; echo 'no such model: lstm' >&2; exit 3").await;
    let client = mesh.client("global").await;
    let mut reply = client.subscribe("results.mine").await.unwrap();
    client.flush().await.unwrap();
    submit(&client, "task-1", "results.mine", 2).await;
    let (payload, _) = answer(&mut reply).await;
    assert_eq!(payload["state"], "dead", "{payload}");
    assert_eq!(payload["attempt"], 3);
    assert!(payload["error"].as_str().unwrap().contains("code 3"), "{payload}");
    assert_eq!(runs(&mesh), 3);
    let letter = eventually!(Duration::from_secs(10), {
        let letters = letters::all(&mesh, "global").await;
        letters.into_iter().find(|letter| letter.reason() == "tries-exhausted").ok_or("no dead letter")
    });
    assert!(String::from_utf8_lossy(&letter.bytes).contains("no such model: lstm"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_survives_the_death_of_the_agent_that_runs_it() {
    // The first run hangs, the next one answers.
    let script =
        "cat >/dev/null; echo run >>$RUNS; [ $(wc -l <$RUNS) -gt 1 ] || sleep 600; echo '{\"result\":1}'";
    let mut mesh = mesh_running(script).await;
    let client = mesh.client("global").await;
    let mut reply = client.subscribe("results.mine").await.unwrap();
    client.flush().await.unwrap();
    submit(&client, "task-1", "results.mine", 0).await;
    eventually!(ANSWERED_WITHIN, when(runs(&mesh) == 1, runs(&mesh)));
    mesh.kill_agent(&tests::path("s1/c1/n1")).await;
    mesh.start_again("s1/c1/n1").await;
    let (payload, _) = answer(&mut reply).await;
    assert_eq!(payload["state"], "succeeded", "{payload}");
    assert_eq!(runs(&mesh), 2);
}
