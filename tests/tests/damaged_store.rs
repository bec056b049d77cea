//! Files of the store are damaged while nothing runs: the agent comes up, keeps what was damaged, says so, and new
//! events flow; what is lost shows in global's ledger.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path as FilePath, PathBuf},
    time::Duration,
};

use hierarchy::{Lane, rollup::Health};
use tests::{Mesh, Observer, burst, eventually, eventually::when, losses, path, program};

const TREE: [&str; 4] = ["global", "s1", CLUSTER, NODE];
const CLUSTER: &str = "s1/c1";
const NODE: &str = "s1/c1/n1";
const SOON: Duration = Duration::from_secs(30);
const ARRIVED_WITHIN: Duration = Duration::from_secs(60);

fn nats(mesh: &Mesh, at: &str) -> PathBuf {
    mesh.agent(&path(at)).state.join("nats")
}

fn stream(mesh: &Mesh, at: &str, name: &str) -> PathBuf {
    nats(mesh, at).join("jetstream/jetstream/MESH/streams").join(name)
}

/// One bit of a file, in its middle.
fn flip(file: &FilePath) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(file, bytes).unwrap();
}

/// What is left of a file after a torn write.
fn tear(file: &FilePath) {
    let length = fs::metadata(file).unwrap().len();
    fs::File::options().write(true).open(file).unwrap().set_len(length / 2).unwrap();
}

fn blocks(mesh: &Mesh, at: &str, name: &str) -> Vec<PathBuf> {
    let files = fs::read_dir(stream(mesh, at, name).join("msgs")).unwrap();
    let mut blocks: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    blocks.retain(|file| file.extension().is_some_and(|extension| extension == "blk"));
    blocks.sort();
    blocks
}

async fn publish(mesh: &Mesh, numbers: std::ops::RangeInclusive<u64>) {
    burst::publish(&mesh.client(NODE).await, &path(NODE), Lane::Normal, numbers, 200).await;
}

fn arrived(observer: &Observer) -> BTreeSet<u64> {
    let numbers = burst::arrived(&observer.seen(), NODE, Lane::Normal);
    let once: BTreeSet<u64> = numbers.iter().copied().collect();
    assert_eq!(once.len(), numbers.len(), "something arrived twice");
    once
}

async fn arrive(observer: &Observer, numbers: std::ops::RangeInclusive<u64>) {
    eventually!(ARRIVED_WITHIN, {
        let arrived = arrived(observer);
        let missing: Vec<u64> = numbers.clone().filter(|number| !arrived.contains(number)).collect();
        when(missing.is_empty(), missing)
    });
}

/// What was set aside at an agent, by the names of the streams; health and metrics tell of it.
async fn set_aside(mesh: &Mesh, at: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(nats(mesh, at).join("set-aside")).into_iter().flatten();
    let entries: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    eventually!(SOON, {
        let status = mesh.status(&path(at)).await.ok_or_else(|| "no answer".to_owned());
        status.and_then(|status| {
            let told = status.store.set_aside == entries.len()
                && (status.health == Health::Ok) == entries.is_empty();
            when(told, (status.health, status.store))
        })
    });
    assert_eq!(mesh.numbers(at).await.value("lucent_store_set_aside"), entries.len() as f64);
    entries
}

/// Events 1 to 100 arrive, 101 to 200 wait in the node's lane, for the cluster is away. Then the node loses its power.
async fn with_events_that_wait() -> (Mesh, Observer) {
    let mut mesh = Mesh::start(&TREE).await;
    let observer = Observer::start(&mesh).await;
    publish(&mesh, 1..=100).await;
    arrive(&observer, 1..=100).await;
    mesh.stop_one(&path(CLUSTER)).await;
    publish(&mesh, 101..=200).await;
    let js = async_nats::jetstream::new(mesh.client(NODE).await);
    eventually!(SOON, {
        let inbox = js.get_stream("HIERARCHY").await.unwrap().cached_info().state.messages;
        when(inbox == 0, inbox)
    });
    mesh.kill_both(NODE).await;
    (mesh, observer)
}

/// Both come back; whatever waits goes up, and what is new.
async fn come_back(mesh: &mut Mesh, observer: &Observer) {
    mesh.spawn(&path(NODE)).unwrap();
    eventually!(SOON, mesh.status(&path(NODE)).await.ok_or("the node is not up"));
    mesh.start_again(CLUSTER).await;
    publish(mesh, 201..=250).await;
    arrive(observer, 201..=250).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_whose_description_is_damaged_is_made_anew_over_its_events_and_nothing_is_lost() {
    let (mut mesh, observer) = with_events_that_wait().await;
    let damaged: Vec<PathBuf> =
        [("LANE_NORMAL", "meta.inf"), ("HIERARCHY", "meta.sum"), ("KV_LUCENT_LINK", "meta.inf")]
            .map(|(name, file)| stream(&mesh, NODE, name).join(file))
            .into();
    flip(&damaged[0]);
    tear(&damaged[1]);
    fs::write(&damaged[2], "").unwrap();
    let bytes = fs::read(&damaged[0]).unwrap();

    come_back(&mut mesh, &observer).await;
    arrive(&observer, 1..=250).await;
    let kept = set_aside(&mesh, NODE).await;
    assert_eq!(kept.len(), 3, "{kept:?}");
    let lane = kept.iter().find(|place| place.display().to_string().ends_with("-LANE_NORMAL")).unwrap();
    assert_eq!(fs::read(lane.join("meta.inf")).unwrap(), bytes, "what was damaged is kept");
    // Whoever has looked removes them, and all is well.
    fs::remove_dir_all(nats(&mesh, NODE).join("set-aside")).unwrap();
    assert_eq!(set_aside(&mesh, NODE).await, Vec::<PathBuf>::new());
}

/// What only a damaged block held is lost, and shows at global as far as anybody had heard of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_damaged_block_held_is_lost_and_global_says_so_and_new_events_flow() {
    const LANE: Lane = Lane::Bulk;
    let mut mesh = Mesh::start(&TREE).await;
    let observer = Observer::start(&mesh).await;
    let publish = async |mesh: &Mesh, numbers, bytes| {
        burst::publish(&mesh.client(NODE).await, &path(NODE), LANE, numbers, bytes).await;
    };
    let arrived = || burst::arrived(&observer.seen(), NODE, LANE);
    let arrive = async |last| {
        eventually!(ARRIVED_WITHIN, {
            let arrived = arrived();
            when(arrived.last() == Some(&last), arrived)
        });
    };
    publish(&mesh, 1..=20, 10).await;
    arrive(20).await;
    // The site is away: what the cluster has of the node's waits there, and leaves the node but for the newest.
    mesh.stop_one(&path("s1")).await;
    for number in 21..=60 {
        publish(&mesh, number..=number, 4000).await;
    }
    let at_node = async_nats::jetstream::new(mesh.client(NODE).await);
    let at_cluster = async_nats::jetstream::new(mesh.client(CLUSTER).await);
    let batches = async |js: &async_nats::jetstream::Context| {
        js.get_stream("LANE_BULK").await.unwrap().cached_info().state.messages
    };
    eventually!(SOON, {
        let waiting = (batches(&at_node).await, batches(&at_cluster).await);
        when(waiting.0 <= 1 && waiting.1 > 10, waiting)
    });
    mesh.stop_one(&path(NODE)).await;
    mesh.kill_both(CLUSTER).await;
    let damaged = blocks(&mesh, CLUSTER, "LANE_BULK");
    damaged.iter().for_each(|block| flip(block));
    let bytes = fs::read(&damaged[0]).unwrap();

    mesh.spawn(&path(CLUSTER)).unwrap();
    eventually!(SOON, mesh.status(&path(CLUSTER)).await.ok_or("the cluster is not up"));
    mesh.start_again("s1").await;
    mesh.start_again(NODE).await;
    publish(&mesh, 61..=80, 10).await;
    arrive(80).await;
    let arrived = arrived();
    let once: BTreeSet<&u64> = arrived.iter().collect();
    assert_eq!(once.len(), arrived.len(), "something arrived twice: {arrived:?}");
    let lost = 80 - arrived.len() as u64;
    assert!((1..40).contains(&lost), "{arrived:?}");
    let totals = eventually!(ARRIVED_WITHIN, {
        let totals = losses::of(&mesh, NODE, LANE).await;
        totals.and_then(|totals| {
            let stated = totals.unaccounted + totals.lost_events() == lost && totals.published == 80;
            when(stated, &totals).map(|()| totals)
        })
    });
    println!("lost with the block: {lost} events; {totals:?}");
    let kept = set_aside(&mesh, CLUSTER).await;
    assert_eq!(fs::read(kept[0].join(damaged[0].file_name().unwrap())).unwrap(), bytes, "kept whole");
}

/// A stream that is gone altogether, while the agent runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_gone_is_made_anew_by_the_running_agent_and_new_events_flow() {
    let mesh = Mesh::start(&TREE).await;
    let observer = Observer::start(&mesh).await;
    publish(&mesh, 1..=100).await;
    arrive(&observer, 1..=100).await;
    let agent = mesh.agent_pid(&path(CLUSTER));
    fs::remove_dir_all(stream(&mesh, CLUSTER, "LANE_NORMAL")).unwrap();
    assert!(mesh.kill_server(CLUSTER));
    eventually!(SOON, when(stream(&mesh, CLUSTER, "LANE_NORMAL").exists(), "the stream is not there"));
    publish(&mesh, 101..=200).await;
    arrive(&observer, 1..=200).await;
    assert_eq!(mesh.agent_pid(&path(CLUSTER)), agent, "the agent stays up");
}

/// A server that dies while it reads a block with this word in it, as one with a fault of its own would. No damage is
/// known over which nats-server 2.14.5 really does.
const FATAL: &str = "over this the server dies";

/// An agent that runs such a server.
fn with_a_server_that_dies(dir: &FilePath) -> PathBuf {
    let server = program_in(
        dir,
        "dying-nats-server",
        &format!(
            r#"# --config FILE --log FILE
streams="$(dirname "$2")/jetstream/jetstream/MESH/streams"
for stream in "$streams"/*; do
    if [ "$1" = --config ] && grep -qs '{FATAL}' "$stream"/msgs/*.blk; then
        echo "[7] [INF]   Starting restore for stream 'MESH > $(basename "$stream")'" >>"$4"
        exit 2
    fi
done
exec {:?} "$@""#,
            program::nats_server()
        ),
    );
    // Whoever runs the tests may have named a server there, too.
    let agent = format!("LUCENT_NATS_SERVER={server:?} exec {:?} \"$@\"", program::agent());
    program_in(dir, "agent", &agent)
}

fn program_in(dir: &FilePath, name: &str, script: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;

    let program = dir.join(name);
    fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    program
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_over_which_the_server_dies_is_set_aside_at_a_start_and_under_way() {
    let dir = tempfile::tempdir().unwrap();
    let agent = with_a_server_that_dies(dir.path());
    let mut mesh = Mesh::start_program(agent, &["global"], |_, _| {}).await;
    let fatal = |mesh: &Mesh, name: &str| {
        fs::write(stream(mesh, "global", name).join("msgs/1.blk"), FATAL).unwrap();
    };
    let up = async |mesh: &Mesh, name: &str| {
        eventually!(ARRIVED_WITHIN, {
            let js = async_nats::jetstream::new(mesh.client("global").await);
            js.get_stream(name).await.map(drop)
        });
    };

    mesh.kill_both("global").await;
    fatal(&mesh, "JOBS");
    mesh.spawn(&path("global")).unwrap();
    eventually!(SOON, mesh.status(&path("global")).await.ok_or("the agent is not up"));
    up(&mesh, "JOBS").await;
    let kept = set_aside(&mesh, "global").await;
    assert_eq!(fs::read_to_string(kept[0].join("msgs/1.blk")).unwrap(), FATAL);

    let agent = mesh.agent_pid(&path("global"));
    fatal(&mesh, "SIGNALS");
    assert!(mesh.kill_server("global"));
    eventually!(SOON, when(set_aside(&mesh, "global").await.len() == 2, "one stream is set aside"));
    eventually!(SOON, when(stream(&mesh, "global", "SIGNALS").join("meta.inf").exists(), "not made anew"));
    eventually!(SOON, mesh.status(&path("global")).await.ok_or("the agent is not up"));
    up(&mesh, "SIGNALS").await;
    assert_eq!(mesh.agent_pid(&path("global")), agent, "the agent stays up");
}
