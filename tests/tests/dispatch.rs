//! Tasks that are submitted at global with plain NATS, and what becomes of them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{fs, time::Duration};

use async_nats::{Client, Subscriber, jetstream};
use futures_util::StreamExt as _;
use hierarchy::{
    envelope::Parsed,
    signing::{Timeliness, Verifier},
};
use serde_json::{Value, json};
use tests::{Mesh, Observer, eventually, eventually::when, letters, mesh::path, observer, program};
use tokio::time::Instant;

const NODE: &str = "s1/c1/n1";
const TREE: [&str; 4] = ["global", "s1", "s1/c1", NODE];
const ANALYSIS: &str = "lucent.agents.yield.analysis";
const SOON: Duration = Duration::from_secs(30);
/// What an agent that was killed had in hand is delivered again 20 s after its last word.
const REDELIVERED_WITHIN: Duration = Duration::from_secs(60);

/// Notes the task, and gives back what it was given.
const ECHO: &str = r#"echo "$LUCENT_TASK_ID" >>runs; printf '{"result":%s}\n' "$(cat)""#;

/// The section of a runner with one slot that serves `lucent.agents.yield.{task}`.
fn runner(task: &str, command: &[&str]) -> String {
    format!("\n[[runner]]\nagent_type = \"yield\"\ntask = \"{task}\"\ncommand = {command:?}\n")
}

/// A mesh whose node runs these shell scripts, by task; their working directory is the node's.
async fn mesh_with(scripts: &[(&str, &str)]) -> Mesh {
    let sections: String = scripts.iter().map(|(task, script)| runner(task, &["sh", "-c", script])).collect();
    Mesh::start_with(&TREE, |at, config| {
        if *at == path(NODE) {
            config.push_str(&sections);
        }
    })
    .await
}

/// The lines that the node's scripts have written to `runs`, one for each run.
fn runs(mesh: &Mesh) -> Vec<String> {
    let file = mesh.agent(&path(NODE)).config.with_file_name("runs");
    fs::read_to_string(file).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// Submits as any application at `at` does, and waits for the queue's word.
async fn submit(client: &Client, subject: &str, body: impl ToString) {
    let js = jetstream::new(client.clone());
    let ack = js.publish(subject.to_owned(), body.to_string().into()).await.unwrap().await.unwrap();
    assert_eq!(ack.stream, "AGENT_COORDINATION");
}

/// What global answers, verified.
struct Answers {
    heard: Subscriber,
    js: jetstream::Context,
    verifier: Verifier,
}

struct Answer {
    /// The whole envelope.
    envelope: Value,
    payload: Value,
}

impl Answers {
    async fn on(mesh: &Mesh, client: &Client, subject: &str) -> Answers {
        let heard = client.subscribe(subject.to_owned()).await.unwrap();
        client.flush().await.unwrap();
        Answers { heard, js: jetstream::new(client.clone()), verifier: observer::verifier(mesh) }
    }

    async fn next(&mut self, within: Duration) -> Answer {
        let message = tokio::time::timeout(within, self.heard.next()).await;
        let message = message.unwrap_or_else(|_| panic!("no answer within {within:?}")).unwrap();
        let kid = Parsed::parse(&message.payload).unwrap().kid().to_string();
        let binding = observer::binding(&self.js, &kid).await.expect("global's binding is published");
        self.verifier.learn(&binding).unwrap();
        let live = Timeliness::Live(Duration::from_secs(60));
        self.verifier.verify(&message.payload, agent::clock::wall(), live).unwrap();
        let parsed = Parsed::parse(&message.payload).unwrap();
        assert_eq!(parsed.identity().path, path("global"));
        assert_eq!(parsed.message_type(), "TaskResult");
        assert_eq!(parsed.subject(), message.subject.as_str());
        Answer {
            envelope: serde_json::from_slice(&message.payload).unwrap(),
            payload: serde_json::from_str(parsed.payload().get()).unwrap(),
        }
    }

    /// The next answer, which must be of this task.
    async fn of(&mut self, task: &str, within: Duration) -> Value {
        let payload = self.next(within).await.payload;
        assert_eq!(payload["taskId"], task, "{payload}");
        payload
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_submitted_at_global_runs_on_a_node_and_its_signed_result_is_told_where_it_is_awaited() {
    let mesh = mesh_with(&[("analysis", ECHO)]).await;
    let client = mesh.client("global").await;
    let inbox = client.new_inbox();
    let mut reply = Answers::on(&mesh, &client, &inbox).await;
    let mut public = Answers::on(&mesh, &client, "lucent.responses.agents.>").await;

    let payload = json!({ "pools": ["eth/usdc", "ü"], "horizon": 6, "exact": 0.1 });
    let task = json!({ "messageId": "t-1", "messageType": "YieldAnalysisJob", "subject": ANALYSIS,
        "correlationId": "conversation-7", "replyTo": inbox, "payload": payload, "metadata": { "priority": "high" } });
    submit(&client, ANALYSIS, task).await;

    let (reply, public) = (reply.next(SOON).await, public.next(SOON).await);
    assert_eq!(public.envelope["subject"], "lucent.responses.agents.t-1");
    assert_eq!(reply.envelope["subject"], inbox);
    assert_eq!(reply.payload, public.payload);
    for answer in [reply, public] {
        assert_eq!(answer.envelope["correlationId"], "conversation-7", "{}", answer.envelope);
        let said = &answer.payload;
        let expected = json!(["succeeded", NODE, "t-1", 1, "yield", "analysis"]);
        let fields = ["state", "node", "taskId", "attempt", "agentType", "task"].map(|key| said[key].clone());
        assert_eq!(json!(fields), expected, "{said}");
        assert_eq!(said["result"]["payload"], payload, "what the worker was given");
        assert_eq!(said["result"]["metadata"], json!({ "priority": "high" }));
    }
    assert_eq!(runs(&mesh), ["t-1"]);
    assert_eq!(mesh.numbers("global").await.value("lucent_tasks_total{reason=\"completed\"}"), 1.0);
    // The custody of it has ended at every level.
    for at in TREE {
        let js = jetstream::new(mesh.client(at).await);
        eventually!(SOON, {
            let state = js.get_stream("AGENT_COORDINATION").await.unwrap().cached_info().state.clone();
            when(state.messages == 0, (at, state.messages))
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_example_worker_forecasts_and_its_progress_arrives_at_global() {
    if std::process::Command::new("python3").arg("--version").output().is_err() {
        println!("skipped: there is no python3");
        return;
    }
    let worker = program::source_file("../examples/workers/yield_forecast.py");
    let section = runner("*", &["python3", worker.to_str().unwrap()]);
    let mesh = Mesh::start_with(&TREE, |at, config| {
        if *at == path(NODE) {
            config.push_str(&section);
        }
    })
    .await;
    let observer = Observer::start(&mesh).await;
    let client = mesh.client("global").await;
    let mut answers = Answers::on(&mesh, &client, "lucent.responses.agents.>").await;
    let history: Vec<f64> = (0..80).map(|n| 5.0 + (f64::from(n) / 7.0).sin()).collect();
    let task = json!({ "messageId": "forecast", "payload": { "history": history, "horizon": 6 } });
    submit(&client, ANALYSIS, task).await;

    let said = answers.of("forecast", SOON).await;
    assert_eq!(said["state"], "succeeded", "{said}");
    let forecast: Vec<f64> = serde_json::from_value(said["result"]["forecast"].clone()).unwrap();
    assert_eq!(forecast.len(), 6);
    assert!(forecast.iter().all(|value| (3.0..7.0).contains(value)), "{forecast:?}");
    eventually!(SOON, {
        let events = observer.seen().events.remove(&path(NODE)).unwrap_or_default();
        let progress = events.iter().any(|event| {
            event.subject == "lucent.hierarchy.node.n1.agent.task.progress"
                && serde_json::from_slice::<Value>(&event.data).is_ok_and(|said| said["task"] == "forecast")
        });
        when(progress, events.len())
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_task_is_tried_as_often_as_asked_and_then_dead_lettered_with_its_last_words() {
    let failing = r#"echo "$LUCENT_TASK_ID" >>runs; echo "no such pool: doge/shib" >&2; exit 7"#;
    let flaky = r#"[ -e once ] && { echo '{"result":"at last"}'; exit; }; touch once; exit 1"#;
    let mesh = mesh_with(&[("analysis", failing), ("flaky", flaky)]).await;
    let client = mesh.client("global").await;
    let mut answers = Answers::on(&mesh, &client, "lucent.responses.agents.>").await;

    let retries = |times: u32| json!({ "max_retries": times });
    submit(
        &client,
        "lucent.agents.yield.flaky",
        json!({ "messageId": "f", "payload": 1, "metadata": retries(1) }),
    )
    .await;
    let said = answers.of("f", SOON).await;
    assert_eq!(json!([said["state"], said["attempt"], said["result"]]), json!(["succeeded", 2, "at last"]));

    submit(&client, ANALYSIS, json!({ "messageId": "d", "payload": "P", "metadata": retries(2) })).await;
    let said = answers.of("d", SOON).await;
    assert_eq!(json!([said["state"], said["attempt"], said["node"]]), json!(["dead", 3, NODE]), "{said}");
    assert!(said["error"].as_str().unwrap().contains("code 7"), "{said}");
    assert!(said["logTail"].as_str().unwrap().contains("no such pool: doge/shib"), "{said}");

    let letter = eventually!(SOON, {
        let letters = letters::all(&mesh, "global").await;
        letters.iter().find(|letter| letter.reason() == "tries-exhausted").cloned().ok_or(letters.len())
    });
    assert_eq!(letter.header("Lucent-Subject"), ANALYSIS);
    let kept: Value = serde_json::from_slice(&letter.bytes).unwrap();
    assert!(kept["logTail"].as_str().unwrap().contains("no such pool: doge/shib"), "{kept}");
    assert_eq!(
        json!([kept["task"]["id"], kept["task"]["payload"]]),
        json!(["d", "P"]),
        "the task can be submitted anew"
    );
    // Another try would have begun before another task is done.
    submit(&client, "lucent.agents.yield.flaky", json!({ "messageId": "g", "payload": 1 })).await;
    answers.of("g", SOON).await;
    assert_eq!(runs(&mesh), ["d"; 3]);
    let numbers = mesh.numbers("global").await;
    assert_eq!(
        ["completed", "dead"].map(|r| numbers.value(&format!("lucent_tasks_total{{reason=\"{r}\"}}"))),
        [2.0, 1.0]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_is_submitted_again_under_its_id_runs_once_and_takes_nobodys_place() {
    let mesh = mesh_with(&[("analysis", ECHO)]).await;
    let client = mesh.client("global").await;
    let mut answers = Answers::on(&mesh, &client, "lucent.responses.agents.>").await;
    let task = |id: &str| json!({ "messageId": id, "payload": {} });
    submit(&client, ANALYSIS, task("same")).await;
    submit(&client, ANALYSIS, task("same")).await;
    answers.of("same", SOON).await;
    // And once it is long done.
    submit(&client, ANALYSIS, task("same")).await;
    for other in ["other-1", "other-2"] {
        submit(&client, ANALYSIS, task(other)).await;
        answers.of(other, SOON).await;
    }
    assert_eq!(runs(&mesh), ["same", "other-1", "other-2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_nobody_serves_waits_for_a_runner_and_holds_up_no_other() {
    let mut mesh = mesh_with(&[("analysis", ECHO)]).await;
    let client = mesh.client("global").await;
    let mut answers = Answers::on(&mesh, &client, "lucent.responses.agents.>").await;
    submit(&client, "lucent.agents.yield.training", json!({ "messageId": "waits", "payload": {} })).await;
    for served in ["a", "b"] {
        submit(&client, ANALYSIS, json!({ "messageId": served, "payload": {} })).await;
        answers.of(served, SOON).await;
    }
    assert_eq!(runs(&mesh), ["a", "b"]);
    let js = jetstream::new(client.clone());
    eventually!(SOON, {
        let state = js.get_stream("AGENT_COORDINATION").await.unwrap().cached_info().state.clone();
        when(state.messages == 1, state.messages)
    });
    assert_eq!(letters::all(&mesh, "global").await.len(), 0);

    let node = path(NODE);
    mesh.stop_one(&node).await;
    let config = mesh.agent(&node).config.clone();
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text + &runner("training", &["sh", "-c", ECHO])).unwrap();
    mesh.start_again(NODE).await;
    assert_eq!(answers.of("waits", SOON).await["state"], "succeeded");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_task_is_dead_lettered_under_its_reason_and_the_queue_goes_on() {
    let mesh = mesh_with(&[("analysis", ECHO)]).await;
    let client = mesh.client("global").await;
    let mut answers = Answers::on(&mesh, &client, "lucent.responses.agents.>").await;
    let cases = [
        ("global", ANALYSIS, "malformed", "no JSON at all"),
        ("global", ANALYSIS, "malformed", r#"{"messageId":"without-payload"}"#),
        ("global", ANALYSIS, "malformed", r#"{"payload":1,"payload":2}"#),
        ("global", ANALYSIS, "bad-payload", r#"{"payload":1,"replyTo":"everybody.>"}"#),
        ("global", ANALYSIS, "bad-payload", r#"{"payload":1,"messageId":"../../etc"}"#),
        ("global", ANALYSIS, "wrong-subject", r#"{"payload":1,"subject":"lucent.agents.a.b"}"#),
        ("global", "lucent.agents.yield", "wrong-subject", r#"{"payload":1}"#),
        (NODE, ANALYSIS, "not-permitted", r#"{"payload":1,"messageId":"at-a-node"}"#),
    ];
    for (at, subject, reason, body) in cases {
        submit(&mesh.client(at).await, subject, body).await;
        let letter = eventually!(SOON, {
            let letters = letters::all(&mesh, at).await;
            letters.iter().find(|letter| letter.bytes == body.as_bytes()).cloned().ok_or(letters.len())
        });
        assert_eq!((letter.reason(), letter.header("Lucent-Subject")), (reason, subject), "{body}");
        assert_eq!(letter.header("Lucent-Origin"), at, "{body}");
    }
    submit(&client, ANALYSIS, json!({ "messageId": "sound", "payload": {} })).await;
    answers.of("sound", SOON).await;
    assert_eq!(runs(&mesh), ["sound"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_whose_nodes_agent_is_killed_with_sigkill_still_completes_and_is_answered_once() {
    // The first run hangs until it is released; a killed agent leaves it behind.
    let script = r#"echo "$LUCENT_EPOCH" >>runs; [ "$(wc -l <runs)" -gt 1 ] && { echo '{"result":2}'; exit; }
        i=0; while [ ! -e release ] && [ $i -lt 900 ]; do i=$((i+1)); sleep 0.1; done; echo '{"result":1}'"#;
    let mut mesh = mesh_with(&[("analysis", script), ("other", ECHO)]).await;
    let node = path(NODE);
    let client = mesh.client("global").await;
    let mut answers = Answers::on(&mesh, &client, "lucent.responses.agents.>").await;
    submit(&client, ANALYSIS, json!({ "messageId": "long", "payload": {} })).await;
    eventually!(SOON, when(runs(&mesh).len() == 1, runs(&mesh)));

    mesh.kill_agent(&node).await;
    let killed = Instant::now();
    mesh.start_again(NODE).await;
    let said = answers.of("long", REDELIVERED_WITHIN).await;
    println!("answered {:?} after the kill", killed.elapsed());
    fs::write(mesh.agent(&node).config.with_file_name("release"), "").unwrap();
    assert_eq!(json!([said["state"], said["attempt"], said["result"]]), json!(["succeeded", 1, 2]), "{said}");
    assert_eq!(runs(&mesh), ["1", "1"], "the same try ran twice");
    // The next answer is that of the next task.
    submit(&client, "lucent.agents.yield.other", json!({ "messageId": "next", "payload": {} })).await;
    answers.of("next", SOON).await;
}

/// As after a crash of the cluster's agent between the node's taking of a task and its own letting go of it: the
/// queue delivers the task again, and the cluster hands it down again, when the node may be done with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hand_off_that_is_repeated_after_the_task_has_ended_takes_nobodys_place() {
    let mesh = mesh_with(&[("analysis", ECHO)]).await;
    let client = mesh.client("global").await;
    let mut answers = Answers::on(&mesh, &client, "lucent.responses.agents.>").await;
    let body = json!({ "messageId": "same", "payload": {} }).to_string();
    submit(&client, ANALYSIS, &body).await;
    answers.of("same", SOON).await;

    let spec =
        hierarchy::task::TaskSpec::from_submission(ANALYSIS, body.as_bytes(), path("global"), "".into());
    let queued = serde_json::to_vec(&spec.unwrap()).unwrap();
    let mut headers = async_nats::HeaderMap::new();
    headers.insert(agent::dispatch::TASK_HEADER, "same");
    let cluster = jetstream::new(mesh.client("s1/c1").await);
    cluster.publish_with_headers(ANALYSIS, headers, queued.into()).await.unwrap().await.unwrap();
    eventually!(SOON, {
        let state = cluster.get_stream("AGENT_COORDINATION").await.unwrap().cached_info().state.clone();
        when(state.messages == 0, state.messages)
    });
    for other in ["other-1", "other-2"] {
        submit(&client, ANALYSIS, json!({ "messageId": other, "payload": {} })).await;
        answers.of(other, SOON).await;
    }
    assert_eq!(runs(&mesh), ["same", "other-1", "other-2"]);
}
