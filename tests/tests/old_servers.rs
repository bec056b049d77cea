//! Levels whose nats-server is older than that of their neighbours: on loopback, where it may be.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::BTreeMap, path::Path as FilePath, time::Duration};

use tests::{Mesh, Observer, Publisher, eventually, eventually::when, path, program, wire::Wire};

const NODE: &str = "s1/c1/n1";
const TREE: [&str; 4] = ["global", "s1", "s1/c1", NODE];
const RATE: u32 = 200;
const LINKED_WITHIN: Duration = Duration::from_secs(60);
const ARRIVED_WITHIN: Duration = Duration::from_secs(60);

/// A mesh whose agents at `old` run an old server, with a wire above each agent.
async fn mesh_with(old: &[&str], server: &FilePath) -> (Mesh, BTreeMap<String, Wire>) {
    let (new, server) = (program::nats_server(), format!("{server:?}"));
    let mut wires = BTreeMap::new();
    let mesh = Mesh::start_with(&TREE, |path, config| {
        if old.contains(&path.to_string().as_str()) {
            *config = config.replace(&format!("{new:?}"), &server);
        }
        wires.extend(Wire::into(config).map(|wire| (path.to_string(), wire)));
    })
    .await;
    (mesh, wires)
}

/// Events flow through a kill of an old server, and through a cut of the link below it and of the one above.
async fn flows_past(old: &[&str]) {
    let Some(server) = program::from_setup("LUCENT_NATS_SERVER_OLD") else {
        return println!("skipped: there is no old nats-server; scripts/setup test says why");
    };
    let (mut mesh, wires) = mesh_with(old, &server).await;
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
        more(300).await;
        mesh.linked(at).await;
    }
    // Longer than a session lasts without a sign of life.
    let cut: Vec<&str> = TREE[1..].iter().copied().filter(|at| touches(at, old)).collect();
    for at in &cut {
        wires[*at].cut();
    }
    for at in &cut {
        eventually!(Duration::from_secs(40), {
            let open =
                mesh.status(&path(at)).await.and_then(|status| status.parent).map(|parent| parent.open);
            when(open == Some(false), format!("{at}: {open:?}"))
        });
    }
    for at in &cut {
        wires[*at].heal();
    }
    for at in &cut {
        eventually!(LINKED_WITHIN, {
            let open =
                mesh.status(&path(at)).await.and_then(|status| status.parent).map(|parent| parent.open);
            when(open == Some(true), format!("{at}: {open:?}"))
        });
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
