//! SIGTERM and SIGINT: everything ends in order, nothing is left behind, and nothing is lost.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    path::{Path as FilePath, PathBuf},
    time::Duration,
};

use agent::dev::fleet::FleetError;
use nix::sys::signal::Signal;
use tests::{Mesh, Observer, Publisher, mesh::path, processes, program};

const TREE: [&str; 4] = ["global", "s1", "s1/c1", "s1/c1/n1"];
/// A stop must be quicker than a service manager's patience.
const ENDED_WITHIN: Duration = Duration::from_secs(20);

/// All files below `dir` with this ending.
fn files_ending(dir: &FilePath, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_ending(&path, ending));
        } else if path.to_str().unwrap().ends_with(ending) {
            found.push(path);
        }
    }
    found
}

async fn each_role_ends_and_resumes(signal: Signal) {
    let mut mesh = Mesh::start(&TREE).await;
    let observer = Observer::start(&mesh).await;
    let publisher = Publisher::start(&mesh, "s1/c1/n1", 200).await;

    for role in TREE.into_iter().rev() {
        let (agent, server) = (mesh.agent_pid(&path(role)).unwrap(), mesh.server_pid(&path(role)).unwrap());
        let state = mesh.agent(&path(role)).state.clone();

        processes::signal(agent, signal);
        let ended = tokio::time::timeout(ENDED_WITHIN, mesh.first_exit()).await;
        let ended = ended.unwrap_or_else(|_| panic!("{role} does not end on {signal}"));
        let FleetError::Ended { path: who, code, tail, .. } = ended else { panic!("{ended}") };
        assert_eq!((who, code), (path(role), Some(0)), "{tail}");

        assert!(processes::is_gone(server), "the server of {role} outlived its agent");
        assert_eq!(processes::naming(&state), [], "processes of {role}");
        assert_eq!(files_ending(&state, ".next"), Vec::<PathBuf>::new(), "half-written files of {role}");
        for file in ["nats/nats-server.pid", "agent.json"] {
            assert!(!state.join(file).exists(), "{role} left its {file} behind");
        }

        mesh.stop_one(&path(role)).await;
        mesh.start_again(role).await;
        // Its children have to find it again before the next one goes.
        for child in TREE.into_iter().filter(|child| path(child).parent() == Some(path(role))) {
            mesh.linked(child).await;
        }
    }

    let ledger = publisher.stop().await;
    assert!(ledger.acked.len() > 300, "too little was published to prove anything: {}", ledger.acked.len());
    observer.expect_all([(&path("s1/c1/n1"), &ledger)], Duration::from_secs(60)).await;
    assert_eq!(mesh.stop().await, [], "processes of a mesh that was stopped");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_ends_each_role_without_a_trace_and_a_restart_resumes_with_nothing_lost() {
    each_role_ends_and_resumes(Signal::SIGTERM).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigint_ends_each_role_without_a_trace_and_a_restart_resumes_with_nothing_lost() {
    each_role_ends_and_resumes(Signal::SIGINT).await;
}

/// The whole time from its first moment to its readiness is tried, in small steps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_told_to_end_while_it_starts_leaves_no_process() {
    let mut mesh = Mesh::start(&["global"]).await;
    let global = path("global");
    mesh.stop_one(&global).await;
    let (config, state) = (mesh.agent(&global).config.clone(), mesh.agent(&global).state.clone());
    for delay in (0..600).step_by(60) {
        let args = ["--level".as_ref(), "global".as_ref(), "--config".as_ref(), config.as_os_str()];
        let mut agent = program::agent_command(args).stderr(std::process::Stdio::null()).spawn().unwrap();
        tokio::time::sleep(Duration::from_millis(delay)).await;
        processes::signal(agent.id().unwrap(), Signal::SIGTERM);
        let ended = tokio::time::timeout(ENDED_WITHIN, agent.wait()).await;
        let ended = ended.unwrap_or_else(|_| panic!("not ended after SIGTERM at {delay} ms")).unwrap();
        assert_eq!(processes::naming(&state), [], "after SIGTERM at {delay} ms ({ended})");
    }
}
