//! How much and how fast children may send: none is starved by another, and a limit is held without loss.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::Duration;

use hierarchy::Lane;
use tests::{Mesh, Observer, burst, eventually, eventually::when, path};
use tokio::time::Instant;

const MESH: [&str; 3] = ["global", "s1", "s2"];
const SOON: Duration = Duration::from_secs(10);
/// Bytes in a second that `s1` may send.
const LIMIT: u64 = 256 << 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limited_childs_bulk_waits_while_its_critical_events_and_its_siblings_pass() {
    let mesh = Mesh::start_with(&MESH, |at, config| {
        if *at == path("global") {
            *config += &format!("\n[[child_limit]]\nchild = \"s1\"\nbytes_per_s = {LIMIT}\n");
        }
    })
    .await;
    let observer = Observer::start(&mesh).await;
    let (limited, sibling) = (mesh.client("s1").await, mesh.client("s2").await);
    let arrived = |origin: &str, lane| burst::arrived(&observer.seen(), origin, lane).len() as u64;

    let (events, bytes) = (1_000, 2_000);
    let began = Instant::now();
    burst::publish(&limited, &path("s1"), Lane::Bulk, 1..=events, bytes).await;
    // While it waits, what is urgent and what others send passes.
    for number in 1..=3 {
        let sent = Instant::now();
        burst::publish(&limited, &path("s1"), Lane::Critical, number..=number, 10).await;
        burst::publish(&sibling, &path("s2"), Lane::Bulk, number..=number, 10).await;
        eventually!(SOON, when(arrived("s1", Lane::Critical) >= number, number));
        eventually!(SOON, when(arrived("s2", Lane::Bulk) >= number, number));
        assert!(sent.elapsed() < Duration::from_secs(2), "it took {:?}", sent.elapsed());
    }
    let early = arrived("s1", Lane::Bulk);
    assert!(early < events * 9 / 10, "{early} of {events} bulk events are there already");

    // Beyond what the bucket held and one batch, all of it keeps to the limit.
    let due = Duration::from_secs_f64((events * bytes as u64) as f64 / LIMIT as f64);
    eventually!(due * 3 + SOON, when(arrived("s1", Lane::Bulk) >= events, arrived("s1", Lane::Bulk)));
    let took = began.elapsed();
    println!("{events} events of {bytes} B at {LIMIT} B/s took {took:?}; {due:?} at the limit exactly");
    assert!(took + Duration::from_millis(2_200) > due, "{took:?} is faster than the limit");
    assert!(took < due * 2, "{took:?} is much slower than the limit");
    let seen = observer.seen();
    assert_eq!(burst::arrived(&seen, "s1", Lane::Bulk), (1..=events).collect::<Vec<_>>());
    assert_eq!(seen.unverified, Vec::<String>::new());
}
