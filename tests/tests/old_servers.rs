//! Levels whose nats-server is older than that of their neighbours: on loopback, where it may be.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{path::Path as FilePath, time::Duration};

use futures_util::future::join_all;
use tests::{Mesh, Observer, Publisher, eventually, eventually::when, path, program};

const NODE: &str = "s1/c1/n1";
const TREE: [&str; 4] = ["global", "s1", "s1/c1", NODE];
const RATE: u32 = 200;
const ARRIVED_WITHIN: Duration = Duration::from_secs(60);

/// A mesh whose agents at `old` run an old server.
async fn mesh_with(old: &[&str], server: &FilePath, dir: &FilePath) -> Mesh {
    let old: Vec<String> = old.iter().map(|at| at.replace('/', "_")).collect();
    // The environment's server is used whatever the configuration says.
    let lines = format!("case $at in {}) export LUCENT_NATS_SERVER={server:?} ;; esac", old.join("|"));
    Mesh::start_program(program::wrapped_agent(dir, &lines), &TREE, |_, _| {}).await
}

/// Cuts the link of an agent to its parent for a while.
async fn drill(mesh: &Mesh, at: &str) -> program::Ended {
    let state = mesh.agent(&path(at)).state.display().to_string();
    let args = ["drill", "--cut", at, "--for", "20s", "--state-dir", &state];
    program::run(&mut program::agent_command(args), Duration::from_secs(120)).await
}

/// Events flow through a kill of an old server, and through a cut of the link below it and of the one above.
async fn flows_past(old: &[&str]) {
    let Some(server) = program::from_setup("LUCENT_NATS_SERVER_OLD") else {
        return println!("skipped: there is no old nats-server; scripts/setup test says why");
    };
    let dir = tempfile::tempdir().unwrap();
    let mut mesh = mesh_with(old, &server, dir.path()).await;
    for at in TREE {
        let (version, log) = (mesh.status(&path(at)).await.unwrap().nats_server, mesh.log(at));
        println!("{at}: nats-server {version}");
        let warned = log.lines().find(|line| line.contains("this nats-server lacks features"));
        assert_eq!(warned.is_some(), old.contains(&at), "{at}: {warned:?}");
        for word in [&version, "leaf compression", "a choice of when to sync to disk"] {
            assert!(warned.is_none_or(|line| line.contains(word)), "`{word}` is not said: {warned:?}");
        }
    }
    let observer = Observer::start(&mesh).await;
    let publisher = Publisher::start(&mesh, NODE, RATE).await;
    let more = async |events: usize| {
        let before = observer.count(NODE);
        eventually!(ARRIVED_WITHIN, when(observer.count(NODE) >= before + events, observer.count(NODE)));
    };
    more(300).await;
    for at in old {
        assert!(mesh.kill_server(at));
        // What had passed it arrives meanwhile.
        eventually!(ARRIVED_WITHIN, mesh.connect(&path(at)).await);
        more(300).await;
        mesh.linked(at).await;
    }
    // By drills: an old server dials the address that its parent's names, and so goes round any wire.
    let cut = TREE[1..].iter().filter(|at| touches(at, old)).map(|at| drill(&mesh, at));
    for ended in join_all(cut).await {
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        println!("{}", ended.stdout.trim());
    }
    more(300).await;
    let ledger = publisher.stop().await;
    let node = path(NODE);
    observer.expect_all([(&node, &ledger)], ARRIVED_WITHIN).await;
    println!("{} events, {} published again", ledger.acked.len(), ledger.again.len());
}

/// Whether one end of the link above `at` is an old server.
fn touches(at: &str, old: &[&str]) -> bool {
    let parent = path(at).parent().map(|parent| parent.to_string()).unwrap_or_default();
    old.contains(&at) || old.contains(&parent.as_str())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_exact_through_a_kill_and_a_cut_where_the_parents_at_site_and_global_have_old_servers() {
    flows_past(&["global", "s1"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_exact_through_a_kill_and_a_cut_where_children_have_old_servers_below_a_new_one() {
    flows_past(&["s1/c1", NODE]).await;
}
