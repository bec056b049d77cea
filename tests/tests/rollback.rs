//! A node's store goes back in time, as after a power cut that took what had not reached the disk.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::BTreeSet, fs, path::Path as FilePath, time::Duration};

use async_nats::jetstream;
use nix::sys::signal::Signal;
use tests::{Mesh, Observer, eventually, eventually::when, losses, mesh::path, processes};

const NODE: &str = "s1/c1/n1";
const ARRIVED_WITHIN: Duration = Duration::from_secs(60);

/// Publishes so many events and waits for the store's word on each; their bodies.
async fn publish(mesh: &Mesh, what: &str, count: u64) -> BTreeSet<String> {
    let client = eventually!(Duration::from_secs(30), {
        let address = mesh.addresses(&path(NODE)).map(|addresses| addresses.nats);
        async_nats::connect(address.ok_or("no address yet").unwrap_or_default()).await
    });
    let js = jetstream::new(client);
    let mut bodies = BTreeSet::new();
    for number in 1..=count {
        let body = format!("{what} {number}");
        let ack = eventually!(Duration::from_secs(30), {
            match js.publish("lucent.hierarchy.node.n1.x", body.clone().into()).await {
                Ok(ack) => ack.await,
                Err(error) => Err(error),
            }
        });
        assert_eq!(ack.stream, "HIERARCHY");
        bodies.insert(body);
    }
    bodies
}

async fn arrive(observer: &Observer, bodies: &BTreeSet<String>) {
    eventually!(ARRIVED_WITHIN, {
        let seen = observer.seen();
        let arrived: BTreeSet<String> =
            seen.of(NODE).iter().map(|event| String::from_utf8_lossy(&event.data).into_owned()).collect();
        let missing: Vec<&String> = bodies.difference(&arrived).collect();
        when(missing.is_empty(), (missing.len(), missing.iter().take(5).collect::<Vec<_>>()))
    });
}

fn copy(from: &FilePath, to: &FilePath) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// The node comes back with the store of an earlier moment and takes `new` events before its parent is there.
async fn nothing_new_is_lost_with(new: u64) {
    let mut mesh = Mesh::start(&["global", "s1", "s1/c1", NODE]).await;
    let observer = Observer::start(&mesh).await;
    let store = mesh.agent(&path(NODE)).state.join("nats/jetstream");
    let earlier = mesh.dir().join("earlier");

    arrive(&observer, &publish(&mesh, "before", 200).await).await;
    mesh.stop_one(&path(NODE)).await;
    copy(&store, &earlier);
    mesh.start_again(NODE).await;
    arrive(&observer, &publish(&mesh, "gone from the node", 200).await).await;
    mesh.stop_one(&path("s1/c1")).await;
    mesh.stop_one(&path(NODE)).await;
    fs::remove_dir_all(&store).unwrap();
    copy(&earlier, &store);

    mesh.spawn(&path(NODE)).unwrap();
    let taken = publish(&mesh, "new", new).await;
    mesh.start_again("s1/c1").await;
    arrive(&observer, &taken).await;
    arrive(&observer, &publish(&mesh, "newer", 50).await).await;

    // Everything once: a new life of the store repeats nothing that was sent in the old one.
    let seen = observer.seen();
    let bodies: Vec<_> = seen.of(NODE).iter().map(|event| event.data.clone()).collect();
    let once: BTreeSet<_> = bodies.iter().collect();
    assert_eq!(bodies.len(), once.len(), "some arrived more than once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_went_back_behind_what_the_parent_has_loses_nothing_new() {
    nothing_new_is_lost_with(20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_went_back_and_has_grown_beyond_what_the_parent_has_loses_nothing_new() {
    nothing_new_is_lost_with(400).await;
}

/// Where the whole store is lost, as after a new disk, the node begins anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lost_its_whole_store_loses_nothing_new() {
    let mut mesh = Mesh::start(&["global", "s1", "s1/c1", NODE]).await;
    let observer = Observer::start(&mesh).await;
    let state = mesh.agent(&path(NODE)).state.clone();
    arrive(&observer, &publish(&mesh, "before", 200).await).await;
    mesh.stop_one(&path("s1/c1")).await;
    mesh.stop_one(&path(NODE)).await;
    fs::remove_dir_all(&state).unwrap();

    mesh.spawn(&path(NODE)).unwrap();
    let taken = publish(&mesh, "new", 400).await;
    mesh.start_again("s1/c1").await;
    arrive(&observer, &taken).await;
}

/// The whole directory is put back as it was half a minute before, as from a snapshot of the disk: with the server
/// running, at one moment.
async fn restored_from_half_a_minute_ago(at: &str) {
    const OLD: Duration = Duration::from_secs(30);
    let mut mesh = Mesh::start(&["global", "s1", "s1/c1", NODE]).await;
    let observer = Observer::start(&mesh).await;
    let store = mesh.agent(&path(at)).state.join("nats/jetstream");
    let earlier = mesh.dir().join("earlier");
    arrive(&observer, &publish(&mesh, "before", 200).await).await;

    let server = mesh.server_pid(&path(at)).expect("the server runs");
    processes::signal(server, Signal::SIGSTOP);
    copy(&store, &earlier);
    processes::signal(server, Signal::SIGCONT);
    let (copied, mut gone) = (tokio::time::Instant::now(), BTreeSet::new());
    while copied.elapsed() < OLD {
        gone.append(&mut publish(&mesh, &format!("{:?} after the copy", copied.elapsed()), 100).await);
    }
    arrive(&observer, &gone).await;
    println!("{} events in the {:.0?} after the copy", gone.len(), copied.elapsed());

    mesh.kill_both(at).await;
    fs::remove_dir_all(&store).unwrap();
    copy(&earlier, &store);
    mesh.start_again(at).await;
    arrive(&observer, &publish(&mesh, "new", 500).await).await;

    let seen = observer.seen();
    let bodies: Vec<_> = seen.of(NODE).iter().map(|event| event.data.clone()).collect();
    let once: BTreeSet<_> = bodies.iter().collect();
    assert_eq!(bodies.len(), once.len(), "some arrived more than once");
    // A hole would count after 15 s.
    tokio::time::sleep(Duration::from_secs(16)).await;
    let report = losses::report(&mesh).await.unwrap();
    for row in report.rows.iter().filter(|row| row.origin == path(NODE)) {
        println!("{} {}: {:?}", row.origin, row.lane, row.totals);
    }
    assert_eq!(report.totals.normal.unaccounted, 0, "{report:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nodes_store_restored_from_a_copy_30_seconds_old_loses_and_doubles_nothing_that_had_arrived() {
    restored_from_half_a_minute_ago(NODE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clusters_store_restored_from_a_copy_30_seconds_old_loses_and_doubles_nothing_that_had_arrived() {
    restored_from_half_a_minute_ago("s1/c1").await;
}
