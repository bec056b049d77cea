//! `agent dev`: what it prints, and that nothing is left of it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::BTreeSet,
    fs,
    path::Path as FilePath,
    process::{Output, Stdio},
    time::Duration,
};

use agent::status;
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::{
    eventually,
    eventually::when,
    processes, program,
    scrape::{self, Numbers},
};
use tokio::{process::Child, sync::Mutex};

/// Eight agents are enough at once.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
/// To come up, to run, to let everything arrive, to stop.
const ENDED_WITHIN: Duration = Duration::from_secs(180);
const UP_WITHIN: Duration = Duration::from_secs(90);

/// `agent dev` with these arguments, whose temporary files go to `temp`.
fn dev(args: &[&str], temp: &FilePath) -> Child {
    let mut command = program::agent_command(["dev"].iter().chain(args));
    command.env("LUCENT_NATS_SERVER", program::nats_server()).env("TMPDIR", temp);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

async fn end(child: Child) -> Output {
    let ended = tokio::time::timeout(ENDED_WITHIN, child.wait_with_output()).await;
    ended.unwrap_or_else(|_| panic!("not ended within {ENDED_WITHIN:?}")).unwrap()
}

/// The directory that a mesh without `--state-dir` has made.
fn workplace(temp: &FilePath) -> Option<std::path::PathBuf> {
    fs::read_dir(temp).unwrap().next().map(|entry| entry.unwrap().path())
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap_or_else(|| panic!("an object: {value}")).keys().map(String::as_str).collect()
}

/// The one JSON object on standard output, with all its keys and sound figures.
fn summary(output: &Output) -> Value {
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{stdout}\n{stderr}");
    let summary: Value = serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}"));
    let all = ["agents", "events", "latency_ms", "levels", "nats_server", "tasks"];
    assert_eq!(keys(&summary), all.into());
    let events = ["at_global", "duplicated", "lost", "published", "rejected", "verified"];
    assert_eq!(keys(&summary["events"]), events.into());
    assert_eq!(keys(&summary["tasks"]), ["completed", "failed", "submitted"].into());
    assert_eq!(keys(&summary["latency_ms"]), ["p50", "p99"].into());

    let number = |pointer: &str| summary.pointer(pointer).and_then(Value::as_u64).unwrap();
    assert_eq!((number("/agents"), number("/levels")), (8, 4));
    let published = number("/events/published");
    assert!(published > 100, "{summary}");
    assert_eq!([number("/events/at_global"), number("/events/verified")], [published; 2], "{summary}");
    assert_eq!(["rejected", "lost", "duplicated"].map(|key| number(&format!("/events/{key}"))), [0; 3]);
    let submitted = number("/tasks/submitted");
    assert!(submitted > 0, "{summary}");
    assert_eq!((number("/tasks/completed"), number("/tasks/failed")), (submitted, 0));
    let latency = ["p50", "p99"].map(|key| summary["latency_ms"][key].as_f64().unwrap());
    assert!(0.0 < latency[0] && latency[0] <= latency[1], "{latency:?}");
    let version: Vec<u32> =
        summary["nats_server"].as_str().unwrap().split('.').map(|part| part.parse().unwrap()).collect();
    assert_eq!(version.len(), 3, "{summary}");
    summary
}

#[tokio::test]
async fn a_run_for_some_seconds_prints_one_json_object_and_leaves_neither_process_nor_file() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let temp = tempfile::tempdir().unwrap();
    let child = dev(&["--for", "5s", "--summary", "json"], temp.path());
    eventually!(UP_WITHIN, {
        let running = processes::naming(temp.path());
        // Eight agents and their servers: what is looked for at the end can be found.
        when(running.len() >= 16, running.len())
    });
    let summary = summary(&end(child).await);
    println!("{summary}");
    assert_eq!(processes::naming(temp.path()), []);
    assert_eq!(workplace(temp.path()), None, "its temporary directory is gone");
}

#[tokio::test]
async fn sigint_while_it_runs_stops_everything_and_still_sums_up() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let temp = tempfile::tempdir().unwrap();
    let state = temp.path().join("kept");
    let args = ["--summary", "json", "--rate", "50", "--state-dir", state.to_str().unwrap()];
    let child = dev(&args, temp.path());
    eventually!(UP_WITHIN, {
        let global = status::addresses(&state.join("global/state"));
        match &global {
            Ok(addresses) => {
                let numbers = Numbers::of(addresses.http).await;
                let stored = ["s1", "s2"]
                    .map(|site| numbers.value(&format!("lucent_events_stored_total{{child=\"{site}\"}}")));
                when(stored.iter().sum::<f64>() > 300.0, stored)
            }
            Err(error) => Err(error.to_string()),
        }
    });
    let global = status::addresses(&state.join("global/state")).unwrap().http;
    let told = std::time::Instant::now();
    processes::signal(child.id().unwrap(), Signal::SIGINT);
    let output = end(child).await;
    println!("ended {:?} after SIGINT: {}", told.elapsed(), summary(&output));
    assert_eq!(processes::naming(temp.path()), []);
    assert_eq!(scrape::get(global, "/livez").await, None);
    assert!(state.join("global/agent.log").exists(), "a directory that was named is kept");
}

/// From its first moments to when everything runs.
#[tokio::test]
async fn sigint_while_it_starts_leaves_no_process() {
    let _alone = ONE_AT_A_TIME.lock().await;
    for delay in [50, 150, 300, 450, 700, 1_000, 1_400] {
        let temp = tempfile::tempdir().unwrap();
        let child = dev(&["--summary", "json"], temp.path());
        tokio::time::sleep(Duration::from_millis(delay)).await;
        processes::signal(child.id().unwrap(), Signal::SIGINT);
        end(child).await;
        // A process that was killed may take a moment to go.
        eventually!(Duration::from_secs(5), {
            let left = processes::naming(temp.path());
            when(left.is_empty(), format!("after SIGINT at {delay} ms: {left:#?}"))
        });
    }
}
