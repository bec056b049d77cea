//! A disk that is full, and a stream into which a write failed: the agent stays up, says so, refuses what it cannot
//! keep, and goes on by itself.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    process::Command,
    time::{Duration, Instant},
};

use agent::status::Status;
use async_nats::HeaderMap;
use hierarchy::{Path, rollup::Health};
use serde_json::Value;
use tests::{Mesh, Observer, Publisher, eventually, eventually::when, path, small_disk::SmallDisk};

const TREE: [&str; 4] = ["global", "s1", CLUSTER, NODE];
const CLUSTER: &str = "s1/c1";
const NODE: &str = "s1/c1/n1";
const MIB: u32 = 96;
const SOON: Duration = Duration::from_secs(30);
const ARRIVED_WITHIN: Duration = Duration::from_secs(90);

async fn status(mesh: &Mesh, at: &str) -> Result<Status, String> {
    mesh.status(&path(at)).await.ok_or_else(|| "no answer".to_owned())
}

/// Waits until the agent says that its store takes nothing; why.
async fn in_trouble(mesh: &Mesh, at: &str, frozen: bool) -> String {
    eventually!(SOON, {
        status(mesh, at).await.and_then(|status| {
            let trouble = status.store.trouble.clone().filter(|_| status.health == Health::Failing);
            let trouble = trouble.filter(|_| !frozen || !status.store.frozen.is_empty());
            trouble.ok_or_else(|| format!("{:?} {:?}", status.health, status.store))
        })
    })
}

async fn sound_again(mesh: &Mesh, at: &str) {
    eventually!(ARRIVED_WITHIN, {
        status(mesh, at).await.and_then(|status| when(status.store.trouble.is_none(), &status.store))
    });
}

/// The answer at the door, or at the stream, to one event.
async fn answer(mesh: &Mesh, at: &str, prefix: &str) -> Value {
    let at = path(at);
    let subject = format!("{prefix}{}", hierarchy::subject::Speaker::of(&at).with_tail("asked"));
    let client = mesh.client(&at.to_string()).await;
    let request = client.request_with_headers(subject, HeaderMap::new(), "{}".into());
    let answer = tokio::time::timeout(Duration::from_secs(4), request).await;
    match answer {
        Ok(Ok(message)) => serde_json::from_slice(&message.payload).unwrap(),
        other => Value::String(format!("{other:?}")),
    }
}

/// `lucent.publish.hierarchy...` is the door to `lucent.hierarchy...`.
async fn refused_at_the_door(mesh: &Mesh, at: &str, word: &str) {
    let at = path(at);
    let subject =
        hierarchy::subject::Speaker::of(&at).with_tail("asked").replacen("lucent.", "lucent.publish.", 1);
    let client = mesh.client(&at.to_string()).await;
    let answer = client.request(subject, "{}".into()).await.unwrap();
    let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
    assert_eq!(answer["error"]["code"], 503, "{answer}");
    assert!(answer["error"]["description"].as_str().unwrap().contains(word), "{answer}");
}

async fn expect_all(observer: &Observer, ledgers: &[(Path, tests::publisher::Ledger)]) {
    let ledgers: Vec<_> = ledgers.iter().map(|(path, ledger)| (path, ledger)).collect();
    observer.expect_all(ledgers, ARRIVED_WITHIN).await;
}

/// Events are published at the node below and at the level itself; the level's disk is filled and emptied.
async fn a_full_disk_is_survived(at: &str) {
    let mut mesh = Mesh::start(&TREE).await;
    let Some(disk) = SmallDisk::under(&mut mesh, at, MIB).await else { return };
    let observer = Observer::start(&mesh).await;
    let mut publishers = vec![Publisher::start(&mesh, NODE, 200).await];
    if at != NODE {
        publishers.push(Publisher::start(&mesh, at, 100).await);
    }
    eventually!(ARRIVED_WITHIN, {
        let arrived = observer.seen().numbers(NODE).len();
        when(arrived > 200, arrived)
    });
    let agent = mesh.agent_pid(&path(at));

    let filled = Instant::now();
    disk.fill();
    let trouble = in_trouble(&mesh, at, true).await;
    println!("{at}: said after {:.1?}: {trouble}", filled.elapsed());
    assert!(trouble.contains("disk full"), "{trouble}");
    refused_at_the_door(&mesh, at, "disk full").await;
    // By the stream, too, as soon as it is frozen.
    eventually!(SOON, {
        let answer = answer(&mesh, at, "").await;
        let said = answer["error"]["description"].as_str().unwrap_or_default().contains("disk full");
        when(said, answer)
    });
    let numbers = mesh.numbers(at).await;
    assert!(numbers.value("lucent_store_frozen") > 0.0);
    let restarts = numbers.value("lucent_server_restarts_total");
    // For a while: nothing is started again where it would be in vain.
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert_eq!(mesh.numbers(at).await.value("lucent_server_restarts_total"), restarts);
    assert_eq!(mesh.agent_pid(&path(at)), agent, "the agent stays up");

    disk.empty();
    let emptied = Instant::now();
    sound_again(&mesh, at).await;
    let warnings = status(&mesh, at).await.unwrap().store.warnings;
    assert!(warnings.iter().any(|warning| warning.contains("nats.max_file")), "a small disk: {warnings:?}");
    println!("{at}: sound {:.1?} after there was room", emptied.elapsed());
    let before = observer.seen().numbers(at).len();
    eventually!(ARRIVED_WITHIN, {
        let arrived = observer.seen().numbers(at).len();
        when(arrived > before + 100, arrived - before)
    });
    println!("{at}: new events arrive {:.1?} after there was room", emptied.elapsed());
    let mut ledgers = Vec::new();
    for publisher in publishers {
        let origin = publisher.origin().clone();
        ledgers.push((origin, publisher.stop().await));
    }
    expect_all(&observer, &ledgers).await;
    assert_eq!(mesh.agent_pid(&path(at)), agent, "the agent stays up");
    assert_eq!(mesh.numbers(at).await.value("lucent_server_restarts_total"), restarts + 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_whose_disk_is_full_says_so_and_goes_on_by_itself_and_nothing_acknowledged_is_lost() {
    a_full_disk_is_survived(CLUSTER).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_disk_is_full_says_so_and_goes_on_by_itself_and_nothing_acknowledged_is_lost() {
    a_full_disk_is_survived(NODE).await;
}

/// The agent is there while it waits, alive and not ready.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_started_on_a_full_disk_waits_for_room_and_says_so() {
    const AT: &str = "global";
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let listen = format!("[http]\nlisten = \"{free}\"");
    let mut mesh = Mesh::start_with(&[AT], |_, config| {
        *config = config.replace("[http]\nlisten = \"127.0.0.1:0\"", &listen);
    })
    .await;
    let Some(disk) = SmallDisk::under(&mut mesh, AT, MIB).await else { return };
    mesh.kill_both(AT).await;
    disk.fill();
    mesh.spawn(&path(AT)).unwrap();
    let ready = async || {
        let url = format!("http://{free}/readyz");
        let asked = move || {
            let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
            agent
                .get(url)
                .call()
                .map_err(|error| error.to_string())?
                .body_mut()
                .read_to_string()
                .map_err(|e| e.to_string())
        };
        tokio::task::spawn_blocking(asked).await.unwrap()
    };
    eventually!(SOON, {
        let answer = ready().await;
        when(answer.as_ref().is_ok_and(|answer| answer.contains("disk full")), answer)
    });
    assert_eq!(mesh.server_pid(&path(AT)), None, "no server is started");
    let agent = mesh.agent_pid(&path(AT));
    disk.empty();
    eventually!(SOON, status(&mesh, AT).await);
    assert!(ready().await.unwrap().contains("\"ready\":true"));
    assert_eq!(mesh.agent_pid(&path(AT)), agent, "the agent stays up");
}

/// No write may go beyond this: each one fails, as on a disk that is failing, while there is room.
fn let_writes_fail(server: u32) -> bool {
    let limited =
        Command::new("prlimit").args([&format!("--pid={server}"), "--fsize=1024:unlimited"]).status();
    let limited = limited.is_ok_and(|status| status.success());
    if !limited {
        println!("skipped: prlimit cannot make a server's writes fail here");
    }
    limited
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_a_failed_write_has_frozen_is_noticed_and_its_server_replaced_and_nothing_is_lost() {
    for at in [CLUSTER, NODE] {
        let mesh = Mesh::start(&TREE).await;
        let observer = Observer::start(&mesh).await;
        let publisher = Publisher::start(&mesh, NODE, 200).await;
        eventually!(ARRIVED_WITHIN, {
            let arrived = observer.seen().numbers(NODE).len();
            when(arrived > 100, arrived)
        });
        let (agent, server) = (mesh.agent_pid(&path(at)), mesh.server_pid(&path(at)).unwrap());
        if !let_writes_fail(server) {
            return;
        }
        let failed = Instant::now();
        let trouble = in_trouble(&mesh, at, true).await;
        println!("{at}: said after {:.1?}: {trouble}", failed.elapsed());
        assert!(trouble.contains("file too large"), "{trouble}");
        eventually!(SOON, {
            let new = mesh.server_pid(&path(at));
            when(new.is_some_and(|new| new != server), new)
        });
        sound_again(&mesh, at).await;
        println!("{at}: sound after {:.1?}", failed.elapsed());
        let before = observer.seen().numbers(NODE).len();
        eventually!(ARRIVED_WITHIN, {
            let arrived = observer.seen().numbers(NODE).len();
            when(arrived > before + 200, arrived - before)
        });
        println!("{at}: new events arrive after {:.1?}", failed.elapsed());
        let ledger = publisher.stop().await;
        expect_all(&observer, &[(path(NODE), ledger)]).await;
        assert_eq!(mesh.agent_pid(&path(at)), agent, "the agent stays up");
    }
}
