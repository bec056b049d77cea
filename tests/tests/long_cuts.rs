//! Each link of a chain is cut for longer than a JetStream store remembers what it has: two minutes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::BTreeMap, time::Duration};

use tests::{Mesh, Observer, Publisher, eventually, eventually::when, path, valve::Valve};
use tokio::time::{Instant, sleep_until};

const NODE: &str = "s1/c1/n1";
const TREE: [&str; 4] = ["global", "s1", "s1/c1", NODE];
const LINKS: [&str; 3] = [NODE, "s1/c1", "s1"];
/// JetStream's window is 120 s.
const CUT_FOR: Duration = Duration::from_secs(130);
/// The cuts begin and end one after the other, and each of them reaches into the others.
const APART: Duration = Duration::from_secs(4);
const RATE: u32 = 200;
const ARRIVED_WITHIN: Duration = Duration::from_secs(90);

async fn is_open(mesh: &Mesh, at: &str) -> Option<bool> {
    mesh.status(&path(at)).await?.parent.map(|parent| parent.open)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_that_are_cut_for_longer_than_the_stores_remember_lose_and_double_nothing() {
    let mut wires = BTreeMap::new();
    let mesh = Mesh::start_with(&TREE, |path, config| {
        wires.extend(Valve::in_config(config).map(|wire| (path.to_string(), wire)));
    })
    .await;
    let observer = Observer::start(&mesh).await;
    let publisher = Publisher::start(&mesh, NODE, RATE).await;
    let count = || observer.seen().numbers(NODE).len();
    eventually!(Duration::from_secs(20), when(count() > 200, count()));

    let began = Instant::now();
    for (link, after) in LINKS.iter().zip(0..) {
        sleep_until(began + APART * after).await;
        wires[*link].shut();
        println!("{:.1?}: the link of {link} is cut", began.elapsed());
    }
    for link in LINKS {
        eventually!(Duration::from_secs(40), {
            let open = is_open(&mesh, link).await;
            when(open == Some(false), format!("{link}: {open:?}"))
        });
    }
    let stuck = count();
    for (link, after) in LINKS.iter().zip(0..) {
        sleep_until(began + APART * after + CUT_FOR).await;
        if after == 0 {
            assert_eq!(count(), stuck, "something passed a cut link");
        }
        wires[*link].open();
        println!("{:.1?}: the link of {link} is whole again", began.elapsed());
    }
    for link in LINKS {
        eventually!(Duration::from_secs(60), {
            let open = is_open(&mesh, link).await;
            when(open == Some(true), format!("{link}: {open:?}"))
        });
    }
    let waited = publisher.acked() - stuck;
    let expected = RATE as usize * CUT_FOR.as_secs() as usize;
    assert!(waited > expected / 2, "{waited} of {expected} events were taken while the links were cut");
    let ledger = publisher.stop().await;
    assert_eq!(ledger.again.len(), 0, "the node's own server was never away");
    let node = path(NODE);
    observer.expect_all([(&node, &ledger)], ARRIVED_WITHIN).await;
    println!(
        "{:.1?}: {} events arrived once and in order, {waited} of them had waited",
        began.elapsed(),
        ledger.acked.len()
    );
}
