//! What operators see: status, health, metrics, and the roll-ups that go up instead of raw samples.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::Duration;

use futures_util::StreamExt as _;
use hierarchy::{Level, envelope::Parsed, link::Batch, rollup::Rollup};
use serde_json::Value;
use tests::{Mesh, eventually, eventually::when, path, program, scrape};

const CHAIN: [&str; 4] = ["global", "s1", "s1/c1", "s1/c1/n1"];
const SOON: Duration = Duration::from_secs(30);

/// `agent status --json` of the agent at this path.
async fn status(mesh: &Mesh, at: &str) -> Value {
    let state = mesh.agent(&path(at)).state.display().to_string();
    let ended =
        program::run(&mut program::agent_command(["status", "--json", "--state-dir", &state]), SOON).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    serde_json::from_str(&ended.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_shows_its_child_up_then_absent_then_up_again() {
    let mut mesh = Mesh::start(&CHAIN).await;
    let child = async |mesh: &Mesh| status(mesh, "s1/c1").await["children"][0].clone();
    let shown = eventually!(SOON, {
        let shown = child(&mesh).await;
        when(shown["state"] == "up", &shown).map(|()| shown)
    });
    assert_eq!(shown["path"], "s1/c1/n1");
    assert_eq!(shown["version"], env!("CARGO_PKG_VERSION"));
    assert!(shown["lastSeenMsAgo"].is_u64() && shown["lag"].is_object(), "{shown}");

    mesh.stop_one(&path("s1/c1/n1")).await;
    eventually!(SOON, {
        let shown = child(&mesh).await;
        when(shown["state"] == "absent", shown)
    });
    mesh.start_again("s1/c1/n1").await;
    eventually!(SOON, {
        let shown = child(&mesh).await;
        when(shown["state"] == "up", shown)
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_agent_answers_probes_and_a_roll_up_of_the_site_reaches_global_instead_of_raw_samples() {
    let mesh = Mesh::start(&CHAIN).await;
    let client = mesh.client("global").await;
    let mut arriving = client.subscribe("lucent.hierarchy.>").await.unwrap();
    for at in CHAIN {
        let http = mesh.addresses(&path(at)).unwrap().http;
        for (page, word) in
            [("/livez", "ok"), ("/readyz", "\"ready\":true"), ("/metrics", "lucent_refused_total")]
        {
            let (code, body) = scrape::get(http, page).await.unwrap();
            assert_eq!(code, 200, "{at}{page}: {body}");
            assert!(body.contains(word), "{at}{page}: {body}");
        }
    }
    let rollup = tokio::time::timeout(Duration::from_secs(60), async {
        loop {
            let message = arriving.next().await.unwrap();
            assert!(
                !message.subject.ends_with("agent.telemetry"),
                "a raw sample at global: {}",
                message.subject
            );
            if message.subject.as_str() != "lucent.hierarchy.site.s1.agent.rollup" {
                continue;
            }
            let envelope = Parsed::parse(&message.payload).unwrap();
            let rollup = Rollup::parse(&Batch::read(&envelope).unwrap().events[0].bytes()).unwrap();
            // The first windows may have closed before the node's first sample arrived.
            let nodes = rollup.census.presence.get(&Level::Node).map_or(0, |nodes| nodes.present);
            if nodes == 1 && rollup.samples.get(&Level::Node).is_some_and(|samples| *samples > 0) {
                return rollup;
            }
        }
    });
    let rollup = rollup.await.expect("a roll-up that counts the node comes within a minute");
    assert!(!rollup.metrics.is_empty());
    for (metric, summary) in &rollup.metrics {
        assert!(
            summary.count() > 0 && summary.min() <= summary.mean() && summary.mean() <= summary.max(),
            "{metric:?}"
        );
    }
}
