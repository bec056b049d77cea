//! A link is cut on purpose, comes back by itself, and a report tells what it did.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::Duration;

use serde_json::Value;
use tests::{Mesh, Observer, Publisher, eventually, eventually::when, path, program};

const TREE: [&str; 4] = ["global", "s1", "s1/c1", "s1/c1/n1"];
const NODE: &str = "s1/c1/n1";

async fn drill(mesh: &Mesh, at: &str, cut: &str, lasting: &str) -> program::Ended {
    let state = mesh.agent(&path(at)).state.display().to_string();
    let args = ["drill", "--cut", cut, "--for", lasting, "--json", "--state-dir", &state];
    program::run(&mut program::agent_command(args), Duration::from_secs(60)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drill_cuts_a_sites_link_for_as_long_as_it_says_and_reports_what_waited() {
    let mesh = Mesh::start(&TREE).await;
    let observer = Observer::start(&mesh).await;
    let publisher = Publisher::start(&mesh, NODE, 200).await;
    eventually!(Duration::from_secs(20), {
        let arrived = observer.seen().numbers(NODE).len();
        when(arrived > 100, arrived)
    });

    // Asked for at global, carried out at the site.
    let (ended, stood_still) = tokio::join!(drill(&mesh, "global", "s1", "6s"), async {
        let mut before = 0;
        // Less arrives in a second than is published in a tenth of one: the link is cut.
        eventually!(Duration::from_secs(6), {
            let arrived = observer.seen().numbers(NODE).len();
            let came = arrived - std::mem::replace(&mut before, arrived);
            tokio::time::sleep(Duration::from_secs(1)).await;
            when(came < 20, came)
        });
        true
    });
    assert!(stood_still);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    println!("{report}");
    assert_eq!((report["cut"].as_str(), report["seconds"].as_u64()), (Some("s1"), Some(6)));
    assert!(report["buffered"].as_u64().unwrap() > 10, "{report}");
    assert!(report["healedAfterMs"].as_u64().unwrap() < 6_000, "{report}");
    assert!(report["drainedAfterMs"].as_u64().unwrap() < 10_000, "{report}");

    let ledger = publisher.stop().await;
    let node = path(NODE);
    observer.expect_all([(&node, &ledger)], Duration::from_secs(30)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drill_that_cannot_be_is_refused_with_its_reason() {
    let mesh = Mesh::start(&TREE).await;
    for (at, cut, reason) in
        [("global", "global", "global has no link"), ("s1/c1", "s2", "s2 is not below s1/c1")]
    {
        let ended = drill(&mesh, at, cut, "2s").await;
        assert_eq!(ended.code, Some(1), "{}", ended.stdout);
        assert!(ended.stderr.contains(reason), "{}", ended.stderr);
    }
}
