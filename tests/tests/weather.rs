//! The link on bad networks.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::{Duration, Instant};

use hierarchy::Lane;
use tests::{
    Mesh, Observer, Publisher, burst, door, eventually,
    eventually::when,
    path,
    random::Random,
    weather::{Proxy, Weather},
};

const TREE: [&str; 4] = ["global", "s1", "s1/c1", "s1/c1/n1"];
const NODE: &str = "s1/c1/n1";
const CLUSTER: &str = "s1/c1";
const ARRIVED_WITHIN: Duration = Duration::from_secs(60);

/// A mesh with a network of the test's making between this agent and its parent.
async fn mesh_with(at: &str, random: &mut Random) -> (Mesh, Proxy) {
    let mut proxy = None;
    let mesh = Mesh::start_with(&TREE, |path, config| {
        if path.to_string() == at {
            proxy = Some(Proxy::in_config(config, Random::of(random.number())));
        }
    })
    .await;
    (mesh, proxy.expect("the agent is in the mesh"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_drains_over_50_kbit_a_second_without_the_link_breaking_and_alerts_pass_it() {
    let mut random = Random::seeded();
    let (mesh, proxy) = mesh_with(CLUSTER, &mut random).await;
    let observer = Observer::start(&mesh).await;
    let publisher = Publisher::start(&mesh, NODE, 4).await;
    eventually!(ARRIVED_WITHIN, when(observer.seen().numbers(NODE).len() > 10, "few"));
    proxy.set(Weather::Slow(50_000));
    let (connections, before, began) = (proxy.connections(), proxy.bytes(), Instant::now());

    let node = path(NODE);
    let client = mesh.client(NODE).await;
    burst::publish(&client, &node, Lane::Bulk, 1..=2_000, 200).await;
    let published = Instant::now();
    // Meanwhile alerts: how long each takes from the node's store to global's.
    let mut slowest = Duration::ZERO;
    for alert in 1..=8 {
        tokio::time::sleep(Duration::from_secs(3)).await;
        let asked = Instant::now();
        burst::publish(&client, &node, Lane::Critical, alert..=alert, 10).await;
        eventually!(ARRIVED_WITHIN, {
            let arrived = burst::arrived(&observer.seen(), NODE, Lane::Critical).len() as u64;
            when(arrived >= alert, arrived)
        });
        slowest = slowest.max(asked.elapsed());
        println!("alert {alert} after {:.1?}, bulk {}", asked.elapsed(), burst::arrived(&observer.seen(), NODE, Lane::Bulk).len());
    }
    eventually!(Duration::from_secs(240), {
        let arrived = burst::arrived(&observer.seen(), NODE, Lane::Bulk).len();
        when(arrived >= 2_000, arrived)
    });
    let (up, down) = proxy.bytes();
    println!(
        "drained in {:.1?}, {} bytes up, {} down, slowest alert {slowest:.1?}, {} connections more",
        published.elapsed(), up - before.0, down - before.1, proxy.connections() - connections
    );
    let _ = (began, door::in_lane(Lane::Bulk));
    assert_eq!(proxy.connections(), connections, "the link was not made anew");
    let ledger = publisher.stop().await;
    observer.expect_all([(&node, &ledger)], ARRIVED_WITHIN).await;
    let numbers: Vec<u64> = (1..=2_000).collect();
    assert_eq!(burst::arrived(&observer.seen(), NODE, Lane::Bulk), numbers);
}
