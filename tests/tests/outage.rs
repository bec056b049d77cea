//! The parent is away for a while.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::Duration;

use agent::status::Status;
use hierarchy::rollup::Health;
use tests::{Mesh, Observer, Publisher, eventually, eventually::when, mesh::path};

/// How long the parent is away.
const AWAY_FOR: Duration = Duration::from_secs(60);
/// Events a second.
const RATE: u32 = 200;
const ARRIVED_WITHIN: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_parent_is_away_for_60_seconds_the_node_stores_and_all_of_it_arrives_in_order_afterwards() {
    let (node, cluster) = (path("s1/c1/n1"), path("s1/c1"));
    let mut mesh = Mesh::start(&["global", "s1", "s1/c1", "s1/c1/n1"]).await;
    let observer = Observer::start(&mesh).await;
    let publisher = Publisher::start(&mesh, "s1/c1/n1", RATE).await;
    let arrived = || observer.seen().of("s1/c1/n1").len();
    eventually!(Duration::from_secs(20), when(arrived() > 100, arrived()));

    mesh.stop_one(&cluster).await;
    assert_eq!(mesh.server_pid(&cluster), None, "the cluster's server went with its agent");
    let (acked_before, back_at) = (publisher.acked(), tokio::time::Instant::now() + AWAY_FOR);

    let status = eventually!(Duration::from_secs(30), {
        let status = mesh.status(&node).await;
        let cut_off = |s: &Status| s.parent.as_ref().is_some_and(|p| !p.open) && s.health == Health::Degraded;
        status.clone().filter(cut_off).ok_or(format!("{status:?}"))
    });
    let ready = tests::scrape::get(status.addresses.http, "/readyz").await.map(|(code, _)| code);
    assert_eq!(ready, Some(200), "and goes on taking events");

    // Nothing gets through, and everything is taken and kept.
    let stuck = arrived();
    tokio::time::sleep_until(back_at).await;
    let waiting = publisher.acked() - acked_before;
    let expected = RATE as usize * AWAY_FOR.as_secs() as usize;
    assert!(
        waiting > expected * 9 / 10,
        "{waiting} of {expected} events were taken while the parent was away"
    );
    assert!(arrived() - stuck <= RATE as usize, "events arrived past a parent that was away");

    mesh.start_again("s1/c1").await;
    let ledger = publisher.stop().await;
    assert_eq!(ledger.again.len(), 0, "the node's own server was never away");
    observer.expect_all([(&node, &ledger)], ARRIVED_WITHIN).await;
    let numbers: Vec<u64> = observer.seen().numbers("s1/c1/n1");
    let all: Vec<u64> = (1..=ledger.acked.len() as u64).collect();
    assert!(numbers == all, "{} numbers arrived, {} were published", numbers.len(), all.len());
    let status = mesh.status(&node).await.expect("the node answers");
    assert_eq!(status.refused, 0);

    // What has arrived leaves the node's store.
    let js = async_nats::jetstream::new(mesh.client("s1/c1/n1").await);
    eventually!(Duration::from_secs(10), {
        let kept = js.get_stream("HIERARCHY").await.map(|stream| stream.cached_info().state.messages);
        when(kept.as_ref().is_ok_and(|kept| *kept < 20), kept)
    });
}
