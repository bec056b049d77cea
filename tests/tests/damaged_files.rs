//! Every file that the agent writes itself, damaged in every way, under a server that runs on and under one that was
//! killed: it is healed by itself. Never a panic, another identity, another store or a second server.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    path::{Path as FilePath, PathBuf},
    time::Duration,
};

use async_nats::jetstream;
use tests::{Mesh, eventually, eventually::when, path, processes};

const SOON: Duration = Duration::from_secs(30);
const AT: &str = "global";

/// Below the state directory. The server writes `nats-server.pid` and `.log`, and the agent reads them.
const FILES: [&str; 6] = [
    "agent.json",
    "lock",
    "nats/passwords",
    "nats/nats-server.conf",
    "nats/nats-server.pid",
    "nats/nats-server.log",
];

#[derive(Debug, Clone, Copy)]
enum Damage {
    /// Half of it, as after a torn write.
    Torn,
    /// One bit.
    Flipped,
    Empty,
    /// As it was at an earlier start.
    Old,
    /// Bytes that mean nothing.
    Garbage,
    Removed,
}

const DAMAGES: [Damage; 6] =
    [Damage::Torn, Damage::Flipped, Damage::Empty, Damage::Old, Damage::Garbage, Damage::Removed];

impl Damage {
    fn done_to(self, file: &FilePath, earlier: &FilePath) {
        let mut bytes = fs::read(file).unwrap_or_default();
        match self {
            Damage::Torn => bytes.truncate(bytes.len() / 2),
            Damage::Flipped => {
                let middle = bytes.len() / 2;
                if let Some(byte) = bytes.get_mut(middle) {
                    *byte ^= 0x01;
                }
            }
            Damage::Empty => bytes.clear(),
            Damage::Old => bytes = fs::read(earlier).unwrap_or_default(),
            Damage::Garbage => bytes = vec![0xff; 64],
            Damage::Removed => return fs::remove_file(file).unwrap_or_default(),
        }
        fs::write(file, bytes).unwrap();
    }
}

/// Publishes one event and waits for the store's word; how many there are now.
async fn publish(mesh: &Mesh) -> u64 {
    let js = jetstream::new(mesh.client(AT).await);
    js.publish("lucent.hierarchy.global.kept", "x".into()).await.unwrap().await.unwrap();
    let request = js.get_stream("HIERARCHY").await.unwrap();
    let info = request.info_with_subjects("lucent.hierarchy.global.kept").await.unwrap();
    let counted: Vec<(String, usize)> = futures_util::TryStreamExt::try_collect(info).await.unwrap();
    counted.first().map_or(0, |(_, count)| *count as u64)
}

fn servers(mesh: &Mesh) -> Vec<processes::Process> {
    let mut all = processes::naming(mesh.dir());
    all.retain(|process| process.command.contains("nats-server.conf"));
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_file_of_the_agents_may_be_damaged_and_is_healed() {
    let mut mesh = Mesh::start(&[AT]).await;
    let state = mesh.agent(&path(AT)).state.clone();
    let earlier = mesh.dir().join("earlier");
    let kept = |file: &str| -> PathBuf { earlier.join(file.replace('/', "-")) };
    fs::create_dir_all(&earlier).unwrap();
    for file in FILES {
        let _ = fs::copy(state.join(file), kept(file));
    }
    let mut events = publish(&mesh).await;
    let began = std::time::Instant::now();
    for file in FILES {
        for damage in DAMAGES {
            for server_lives in [true, false] {
                let case = format!("{file} {damage:?}, server lives: {server_lives}");
                if server_lives {
                    mesh.kill_agent(&path(AT)).await;
                } else {
                    mesh.kill_both(AT).await;
                }
                damage.done_to(&state.join(file), &kept(file));
                mesh.spawn(&path(AT)).unwrap();
                let pid = mesh.agent_pid(&path(AT)).unwrap();
                eventually!(SOON, {
                    let status = mesh.status(&path(AT)).await;
                    let up =
                        status.is_some_and(|status| status.addresses.pid == pid && status.path == path(AT));
                    when(up, (&case, mesh.log(AT).lines().last().map(str::to_owned)))
                });
                events += 1;
                assert_eq!(publish(&mesh).await, events, "another store: {case}");
                assert_eq!(servers(&mesh).len(), 1, "{case}: {:?}", servers(&mesh));
                assert!(!mesh.log(AT).contains("panicked"), "{case}");
            }
        }
    }
    println!("{} cases in {:.1?}", FILES.len() * DAMAGES.len() * 2, began.elapsed());
}

/// The server's configuration may be damaged while all runs: it is written anew before each start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_that_is_damaged_under_way_does_not_keep_the_server_from_coming_back() {
    let mesh = Mesh::start(&[AT]).await;
    let events = publish(&mesh).await;
    let config = mesh.agent(&path(AT)).state.join("nats/nats-server.conf");
    fs::write(&config, "torn {").unwrap();
    let server = mesh.server_pid(&path(AT));
    assert!(mesh.kill_server(AT));
    eventually!(SOON, {
        let new = mesh.server_pid(&path(AT));
        when(new.is_some() && new != server, new)
    });
    eventually!(SOON, {
        let answers = async_nats::connect(mesh.addresses(&path(AT)).unwrap().nats).await;
        answers.map(drop)
    });
    assert_eq!(publish(&mesh).await, events + 1);
}
