//! Processes that hang are not gone: nobody is told, and connections stay open.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::{Duration, Instant};

use coordinator::registry::LinkState;
use nix::sys::signal::Signal;
use tests::{Mesh, Observer, Publisher, eventually, eventually::when, path, processes};

const TREE: [&str; 4] = ["global", "s1", "s1/c1", "s1/c1/n1"];
const NODE: &str = "s1/c1/n1";
const ARRIVED_WITHIN: Duration = Duration::from_secs(60);
/// Noticed within 6 s, and a little for this machine.
const NOTICED_WITHIN: Duration = Duration::from_secs(8);
/// Longer than a session lasts without a sign of life.
const HANGS_FOR: Duration = Duration::from_secs(30);

/// What the parent says of a child.
async fn state_of(mesh: &Mesh, child: &str) -> Option<LinkState> {
    let child = path(child);
    let status = mesh.status(&child.parent()?).await?;
    status.children.iter().find(|known| known.path == child).map(|known| known.state)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hangs_is_noticed_within_seconds_and_replaced_and_nothing_is_lost() {
    for at in ["s1/c1", NODE] {
        let mesh = Mesh::start(&TREE).await;
        let observer = Observer::start(&mesh).await;
        let publisher = Publisher::start(&mesh, NODE, 200).await;
        eventually!(ARRIVED_WITHIN, {
            let arrived = observer.seen().numbers(NODE).len();
            when(arrived > 100, arrived)
        });

        let stopped = Instant::now();
        let pid = mesh.server_pid(&path(at)).expect("the server runs");
        processes::signal(pid, Signal::SIGSTOP);
        eventually!(NOTICED_WITHIN, {
            let log = mesh.log(at);
            when(log.contains("did not answer for"), format!("{:?} after the stop", stopped.elapsed()))
        });
        println!("{at}: noticed after {:.1?}", stopped.elapsed());
        eventually!(Duration::from_secs(30), {
            let server = mesh.server_pid(&path(at));
            when(server.is_some_and(|new| new != pid), server)
        });
        let before = observer.seen().numbers(NODE).len();
        eventually!(ARRIVED_WITHIN, {
            let arrived = observer.seen().numbers(NODE).len();
            when(arrived > before + 200, arrived - before)
        });
        let ledger = publisher.stop().await;
        let node = path(NODE);
        observer.expect_all([(&node, &ledger)], ARRIVED_WITHIN).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_hangs_for_30_seconds_is_silent_to_its_parent_within_6_and_loses_nothing() {
    let mesh = Mesh::start(&TREE).await;
    let observer = Observer::start(&mesh).await;
    let publisher = Publisher::start(&mesh, NODE, 200).await;
    for at in ["s1/c1", NODE] {
        let pid = mesh.agent_pid(&path(at)).expect("the agent runs");
        let stopped = Instant::now();
        processes::signal(pid, Signal::SIGSTOP);
        for (silent, within) in [(LinkState::Suspect, 6_000), (LinkState::Absent, 8_000)] {
            eventually!(Duration::from_millis(within), {
                let state = state_of(&mesh, at).await;
                when(state == Some(silent), state)
            });
            println!("{at}: {silent:?} at its parent after {:.1?}", stopped.elapsed());
        }
        tokio::time::sleep_until((stopped + HANGS_FOR).into()).await;
        processes::signal(pid, Signal::SIGCONT);
        eventually!(Duration::from_secs(10), {
            let state = state_of(&mesh, at).await;
            when(state == Some(LinkState::Up), state)
        });
        let before = observer.seen().numbers(NODE).len();
        eventually!(ARRIVED_WITHIN, {
            let arrived = observer.seen().numbers(NODE).len();
            when(arrived > before + 200, arrived - before)
        });
    }
    let ledger = publisher.stop().await;
    let node = path(NODE);
    observer.expect_all([(&node, &ledger)], ARRIVED_WITHIN).await;
}
