//! Agents and servers are killed with SIGKILL at random moments while events flow.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::Duration;

use tests::{Mesh, Observer, Publisher, mesh::path, random::Random};
use tokio::time::Instant;

const TREE: [&str; 5] = ["global", "s1", "s1/c1", "s1/c1/n1", "s1/c1/n2"];
/// Of both nodes together: about 1,000 events a second.
const RATE: u32 = 500;
const FOR: Duration = Duration::from_secs(20);
/// At least so many kills, however long it takes.
const ENOUGH: u32 = 4;
/// How long what was published may take to arrive after the last fault.
const ARRIVED_WITHIN: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, PartialEq)]
enum Victim {
    Agent,
    Server,
    Both,
}

/// Kills `victim` of the agent at `at` again and again, and starts the agent again where it was killed. Its
/// server is the agent's to start.
async fn kill_again_and_again(mesh: &mut Mesh, at: &str, victim: Victim) -> u32 {
    let mut random = Random::seeded();
    let until = Instant::now() + FOR;
    let mut kills = 0;
    loop {
        tokio::time::sleep(random.millis(500..4_000)).await;
        // Chance may make the pauses long; a run with few kills would prove little.
        if Instant::now() >= until && kills >= ENOUGH {
            return kills;
        }
        match victim {
            Victim::Agent => mesh.kill_agent(&path(at)).await,
            Victim::Server => drop(mesh.kill_server(at)),
            Victim::Both => mesh.kill_both(at).await,
        }
        kills += 1;
        if victim != Victim::Server {
            tokio::time::sleep(random.millis(0..1_000)).await;
            mesh.start_again(at).await;
        }
    }
}

async fn survives(at: &str, victim: Victim) {
    let mut mesh = Mesh::start(&TREE).await;
    let observer = Observer::start(&mesh).await;
    let n1 = Publisher::start(&mesh, "s1/c1/n1", RATE).await;
    let n2 = Publisher::start(&mesh, "s1/c1/n2", RATE).await;

    let kills = kill_again_and_again(&mut mesh, at, victim).await;

    mesh.linked(at).await;
    let (n1, n2) = (n1.stop().await, n2.stop().await);
    println!(
        "{kills} kills; {} and {} events, {} and {} published again",
        n1.acked.len(),
        n2.acked.len(),
        n1.again.len(),
        n2.again.len()
    );
    for ledger in [&n1, &n2] {
        let least = RATE as usize * FOR.as_secs() as usize / 10;
        assert!(
            ledger.acked.len() > least,
            "too little was published to prove anything: {}",
            ledger.acked.len()
        );
    }
    let (first, second) = (path("s1/c1/n1"), path("s1/c1/n2"));
    observer.expect_all([(&first, &n1), (&second, &n2)], ARRIVED_WITHIN).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_doubled_or_disordered_while_a_clusters_agent_is_killed_again_and_again() {
    survives("s1/c1", Victim::Agent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_doubled_or_disordered_while_a_clusters_server_is_killed_again_and_again() {
    survives("s1/c1", Victim::Server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_doubled_or_disordered_while_a_clusters_agent_and_server_are_killed_together() {
    survives("s1/c1", Victim::Both).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_doubled_or_disordered_while_a_nodes_agent_is_killed_again_and_again() {
    survives("s1/c1/n1", Victim::Agent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_doubled_or_disordered_while_a_nodes_server_is_killed_again_and_again() {
    survives("s1/c1/n1", Victim::Server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_doubled_or_disordered_while_a_nodes_agent_and_server_are_killed_together() {
    survives("s1/c1/n1", Victim::Both).await;
}

/// Whoever reads at global must not see what is taken back later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_doubled_or_disordered_while_globals_server_is_killed_again_and_again() {
    survives("global", Victim::Server).await;
}
