//! Any agent, any server, at any moment: killed with SIGKILL for minutes, while many events flow.
//!
//! `LUCENT_CHAOS_SEED` repeats a run's choices, `LUCENT_CHAOS_FOR` says for how many seconds.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::BTreeMap, fmt, time::Duration};

use agent::dev::fleet::FleetError;
use async_nats::jetstream;
use hierarchy::{Lane, Path};
use tests::{
    Mesh, Observer, Publisher, eventually, eventually::when, losses, mesh::LINKED_WITHIN, path,
    random::Random,
};
use tokio::time::{Instant, sleep, sleep_until, timeout};

const TREE: [&str; 4] = ["global", "s1", "s1/c1", NODE];
const NODE: &str = "s1/c1/n1";
/// Events a second.
const RATE: u32 = 2_000;
const LASTING: Duration = Duration::from_secs(180);
/// Between two kills, in milliseconds.
const PAUSE: std::ops::Range<u64> = 1_500..7_000;
/// How long a service manager may take to start an agent again, in milliseconds.
const ABSENT: std::ops::Range<u64> = 0..1_500;
const ARRIVED_WITHIN: Duration = Duration::from_secs(120);
/// Holes are given 15 s before they count as unaccounted.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);
/// The newest batch that has arrived stays, and the agents speak of themselves.
const EMPTY: u64 = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    Agent(&'static str),
    Server(&'static str),
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Victim::Agent(at) => write!(f, "agent of {at}"),
            Victim::Server(at) => write!(f, "server of {at}"),
        }
    }
}

/// Starts agents again as a service manager does.
#[derive(Default)]
struct Manager {
    absent: BTreeMap<Path, Instant>,
    ended: Vec<String>,
}

impl Manager {
    /// Does so until then.
    async fn keep(&mut self, mesh: &mut Mesh, until: Instant) {
        loop {
            // Looks at all of them at once, and then only again.
            if let Ok(FleetError::Ended { path, status, tail, .. }) =
                timeout(Duration::from_millis(20), mesh.first_exit()).await
                && !self.absent.contains_key(&path)
            {
                self.ended.push(format!(
                    "{path} ended by itself ({status}): {}",
                    tail.lines().last().unwrap_or("-")
                ));
                self.absent.insert(path, Instant::now() + Duration::from_millis(500));
            }
            let now = Instant::now();
            for at in self.absent.extract_if(.., |_, back| *back <= now).map(|(at, _)| at).collect::<Vec<_>>()
            {
                mesh.spawn(&at).unwrap();
            }
            if now >= until {
                return;
            }
            sleep_until(until.min(now + Duration::from_millis(200))).await;
        }
    }
}

fn lasting() -> Duration {
    let given = std::env::var("LUCENT_CHAOS_FOR").ok().and_then(|seconds| seconds.parse().ok());
    given.map_or(LASTING, Duration::from_secs)
}

/// Batches that lie in the lanes of a level.
async fn waiting(mesh: &Mesh, at: &str) -> u64 {
    let js = jetstream::new(mesh.client(at).await);
    let mut waiting = 0;
    for lane in Lane::ALL {
        let name = format!("LANE_{}", lane.as_str().to_uppercase());
        waiting += js.get_stream(name).await.unwrap().cached_info().state.messages;
    }
    waiting
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_arrives_once_and_in_order_whoever_is_killed_for_three_minutes() {
    let mut random = Random::seeded_by("LUCENT_CHAOS_SEED");
    let victims: Vec<Victim> =
        TREE.into_iter().flat_map(|at| [Victim::Agent(at), Victim::Server(at)]).collect();
    let mut mesh = Mesh::start(&TREE).await;
    let observer = Observer::start(&mesh).await;
    let publisher = Publisher::start(&mesh, NODE, RATE).await;

    let (began, mut manager) = (Instant::now(), Manager::default());
    let mut kills: BTreeMap<Victim, u32> = BTreeMap::new();
    while began.elapsed() < lasting() {
        manager.keep(&mut mesh, Instant::now() + random.millis(PAUSE)).await;
        let victim = *random.one_of(&victims);
        let killed = match victim {
            Victim::Agent(at) if manager.absent.contains_key(&path(at)) => false,
            Victim::Agent(at) => {
                mesh.kill_agent(&path(at)).await;
                manager.absent.insert(path(at), Instant::now() + random.millis(ABSENT));
                true
            }
            Victim::Server(at) => mesh.kill_server(at),
        };
        if killed {
            *kills.entry(victim).or_default() += 1;
            let (acked, arrived) = (publisher.acked(), observer.count(NODE));
            println!(
                "{:5.1} s: the {victim} is killed; {acked} acknowledged, {arrived} arrived",
                began.elapsed().as_secs_f64()
            );
        }
    }
    while !manager.absent.is_empty() {
        manager.keep(&mut mesh, Instant::now() + Duration::from_millis(500)).await;
    }
    let healing = Instant::now();
    for at in TREE {
        // One that ends while its server comes up is started again.
        eventually!(LINKED_WITHIN, {
            manager.keep(&mut mesh, Instant::now()).await;
            let status = mesh.status(&path(at)).await;
            let linked =
                status.as_ref().is_some_and(|status| status.parent.as_ref().is_none_or(|parent| parent.open));
            when(linked, format!("{at}: {status:?}"))
        });
    }
    let ledger = publisher.stop().await;
    println!("{} kills in {:.0?}: {kills:?}", kills.values().sum::<u32>(), healing - began);
    println!("{} ended by themselves: {:#?}", manager.ended.len(), manager.ended);
    println!(
        "all linked after {:.1?}; {} events, {} published again",
        healing.elapsed(),
        ledger.acked.len(),
        ledger.again.len()
    );
    let node = path(NODE);
    observer.expect_all([(&node, &ledger)], ARRIVED_WITHIN).await;
    println!("all arrived {:.1?} after the last kill", healing.elapsed());
    let least = lasting().as_secs() as usize * RATE as usize / 4;
    assert!(ledger.acked.len() > least, "too little was published to prove anything: {}", ledger.acked.len());
    assert!(lasting() < LASTING || kills.values().sum::<u32>() >= 25, "too few kills to prove anything");

    for at in &TREE[1..] {
        eventually!(SETTLED_WITHIN, {
            let left = waiting(&mesh, at).await;
            when(left <= EMPTY, format!("{left} batches in the lanes of {at}"))
        });
    }
    // Long enough for every hole to count.
    sleep(Duration::from_secs(16)).await;
    let report = eventually!(SETTLED_WITHIN, {
        losses::report(&mesh).await.and_then(|report| {
            let holes = report.rows.iter().filter(|row| row.totals.missing > 0).collect::<Vec<_>>();
            when(holes.is_empty() && !report.rows.is_empty(), holes).map(|()| report)
        })
    });
    for (lane, totals) in report.totals.iter() {
        assert_eq!((totals.missing, totals.unaccounted), (0, 0), "{lane}: {totals:?}");
        println!("{lane}: {totals:?}");
    }
    let lost: Vec<_> = report
        .rows
        .iter()
        .filter(|row| row.totals.lost.keys().any(|reason| reason.as_str() != "policy"))
        .collect();
    assert!(lost.is_empty(), "{lost:#?}");
}
