//! `agent dev`, as somebody at a terminal or a script runs it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{process::Stdio, time::Duration};

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::{eventually, eventually::when, processes, program};

const ENDS_WITHIN: Duration = Duration::from_secs(150);

/// Runs `agent dev` in a directory of its own; sends it a signal once the mesh is up, if one is given.
async fn dev(args: &[&str], signal: Option<Signal>) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().display().to_string();
    let mut command =
        program::agent_command(["dev", "--summary", "json", "--state-dir", &state].iter().chain(args));
    let mut child = command
        .env("LUCENT_NATS_SERVER", program::nats_server())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    if let Some(signal) = signal {
        // All eight agents have said where they are.
        let up = || {
            let agents = std::fs::read_dir(dir.path()).into_iter().flatten().flatten();
            agents.filter(|agent| agent.path().join("state/agent.json").exists()).count()
        };
        eventually!(Duration::from_secs(90), when(up() == 8, up()));
        // And some events have come through.
        tokio::time::sleep(Duration::from_secs(3)).await;
        processes::signal(child.id().unwrap(), signal);
    }
    let output = tokio::time::timeout(ENDS_WITHIN, async {
        let mut text = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut child.stdout.take().unwrap(), &mut text).await.unwrap();
        (child.wait().await.unwrap().code(), text)
    });
    let output = output.await.expect("it ends");
    assert_eq!(processes::naming(dir.path()).len(), 0, "no process is left");
    output
}

fn sound(summary: &str) -> Value {
    assert_eq!(summary.lines().count(), 1, "one object on one line: {summary}");
    let summary: Value = serde_json::from_str(summary).unwrap();
    let number = |pointer: &str| summary.pointer(pointer).and_then(Value::as_f64).unwrap_or(f64::NAN);
    assert_eq!((number("/agents"), number("/levels")), (8.0, 4.0), "{summary}");
    for nothing in ["rejected", "lost", "duplicated"] {
        assert_eq!(number(&format!("/events/{nothing}")), 0.0, "{summary}");
    }
    assert!(number("/events/published") > 0.0, "{summary}");
    assert_eq!(number("/events/published"), number("/events/at_global"), "{summary}");
    assert_eq!(number("/events/published"), number("/events/verified"), "{summary}");
    assert_eq!(number("/tasks/submitted"), number("/tasks/completed"), "{summary}");
    assert_eq!(number("/tasks/failed"), 0.0, "{summary}");
    assert!(number("/latency_ms/p50") <= number("/latency_ms/p99"), "{summary}");
    assert!(summary["nats_server"].is_string(), "{summary}");
    summary
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unattended_run_prints_one_object_and_leaves_no_process() {
    let (code, stdout) = dev(&["--for", "5s"], None).await;
    let summary = sound(&stdout);
    assert_eq!(code, Some(0), "{summary}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ctrl_c_stops_everything_and_still_sums_up() {
    let (code, stdout) = dev(&[], Some(Signal::SIGINT)).await;
    let summary = sound(&stdout);
    assert_eq!(code, Some(0), "{summary}");
}
