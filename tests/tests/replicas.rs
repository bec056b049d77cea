//! Two replicas of global's coordinator on servers that others run: one acts, the other takes over, and nothing
//! is lost, doubled or out of order.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::Duration;

use async_nats::{
    Client, HeaderMap,
    jetstream::{
        self,
        consumer::{DeliverPolicy, pull},
        message::PublishMessage,
    },
};
use futures_util::StreamExt as _;
use nix::sys::signal::Signal;
use serde_json::json;
use tests::{Core, Mesh, Observer, Publisher, eventually, eventually::when, orders, path, random::Random};
use tokio::time::Instant;

const TREE: [&str; 3] = ["s1", "s1/c1", NODE];
const NODE: &str = "s1/c1/n1";
const RATE: u32 = 500;
/// The promise: from the fault to the first new event that is durable at global.
const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(5);
/// For a single take-over, where two meshes and their servers share the cores of this machine.
const AT_MOST: Duration = Duration::from_secs(8);
const ARRIVED_WITHIN: Duration = Duration::from_secs(60);
const FENCE: &str = "lucent.hierarchy.global.agent.fence";

/// A core, a mesh below it with events on their way, and somebody who holds them against what arrives.
struct Scene {
    core: Core,
    observer: Observer,
    publisher: Publisher,
    _mesh: Mesh,
}

impl Scene {
    async fn of_servers(servers: usize) -> Scene {
        let (core, mesh) = Core::start(servers, &TREE).await;
        let observer = Observer::start(&mesh).await;
        let publisher = Publisher::start(&mesh, NODE, RATE).await;
        let scene = Scene { core, observer, publisher, _mesh: mesh };
        scene.flows().await;
        scene
    }

    /// Waits until a good second's events have arrived.
    async fn flows(&self) {
        let before = self.observer.count(NODE);
        eventually!(ARRIVED_WITHIN, {
            let arrived = self.observer.count(NODE) - before;
            when(arrived > RATE as usize, arrived)
        });
    }

    /// Signals the holder; how long it took until new events were durable at global, under the other one.
    async fn strike(&mut self, signal: Signal) -> (&'static str, Duration) {
        self.fail(|core, victim| core.signal(victim, signal)).await
    }

    async fn fail(&mut self, fault: impl FnOnce(&mut Core, &str)) -> (&'static str, Duration) {
        let victim = self.core.wait_for_holder(None).await;
        let other = self.core.other(victim);
        let acted = |log: String| log.matches("this replica acts epoch").count();
        let before = acted(self.core.log(other));
        let struck = Instant::now();
        fault(&mut self.core, victim);
        // What arrives now may still be the victim's.
        eventually!(TAKEN_OVER_WITHIN * 4, {
            let acted = acted(self.core.log(other));
            when(acted > before, format!("{other} does not act yet"))
        });
        let count = self.observer.count(NODE);
        eventually!(TAKEN_OVER_WITHIN * 4, {
            let arrived = self.observer.count(NODE);
            when(arrived > count + RATE as usize / 10, format!("{other} acts, but nothing arrives"))
        });
        (victim, struck.elapsed())
    }

    /// Waits until a replica that held the lease knows that it does not.
    async fn stands_by(&self, victim: &str) {
        eventually!(ARRIVED_WITHIN, {
            let status = self.core.status(victim).await.and_then(|status| status.replica);
            when(status.as_ref().is_some_and(|replica| !replica.acts), status)
        });
    }

    /// Nothing is lost, doubled or out of order; global's ledger knows what became of everything; and each batch
    /// was let in by a fence that was the newest.
    async fn holds_up(self) {
        let ledger = self.publisher.stop().await;
        let node = path(NODE);
        self.observer.expect_all([(&node, &ledger)], ARRIVED_WITHIN).await;
        eventually!(ARRIVED_WITHIN, {
            let report = self.core.losses().await;
            let settled = report.as_ref().is_some_and(|report| {
                report.totals.iter().all(|(_, totals)| totals.missing == 0 && totals.unaccounted == 0)
            });
            when(settled, report)
        });
        let batches = let_in_by_the_newest_fence(&self.core.agents_client().await).await;
        println!("{} events, {batches} batches, nothing lost, doubled or out of order", ledger.acked.len());
    }
}

fn header<T: std::str::FromStr>(headers: Option<&HeaderMap>, name: &str) -> Option<T> {
    headers?.get(name)?.as_str().parse().ok()
}

/// Reads all of global's stream; how many batches there are.
async fn let_in_by_the_newest_fence(client: &Client) -> usize {
    let js = jetstream::new(client.clone());
    let stream = js.get_stream("HIERARCHY").await.unwrap();
    let last = stream.cached_info().state.last_sequence;
    let config =
        pull::OrderedConfig { deliver_policy: DeliverPolicy::All, headers_only: true, ..Default::default() };
    let mut messages = stream.create_consumer(config).await.unwrap().messages().await.unwrap();
    let (mut fence, mut batches, mut group) = (0, 0, None);
    while let Some(message) = messages.next().await {
        let message = message.unwrap();
        let place = message.info().unwrap().stream_sequence;
        let headers = message.headers.as_ref();
        if message.subject.as_str() == FENCE {
            fence = place;
        } else if header::<String>(headers, "Lucent-Link").is_some() {
            // Of those that are stored together the first one speaks for all.
            let of_group: Option<String> = header(headers, "Nats-Batch-Id");
            let speaks = header::<u64>(headers, "Nats-Batch-Sequence").is_none_or(|at| at == 1);
            if speaks {
                let named: u64 =
                    header(headers, "Nats-Expected-Last-Subject-Sequence").expect("it names a fence");
                assert_eq!(named, fence, "the batch at {place} names an old fence");
                group = of_group;
            } else {
                assert_eq!(of_group, group, "the batch at {place} stands apart from its group");
            }
            batches += 1;
        }
        if place >= last {
            break;
        }
    }
    batches
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_is_killed_is_replaced_within_seconds() {
    let mut scene = Scene::of_servers(1).await;
    let (victim, took) = scene.strike(Signal::SIGKILL).await;
    println!("SIGKILL: taken over after {took:.2?}");
    scene.core.start_again(victim).await;
    scene.flows().await;
    scene.holds_up().await;
    assert!(took < AT_MOST, "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_ends_in_order_is_replaced_at_once() {
    let mut scene = Scene::of_servers(1).await;
    let (victim, took) = scene.strike(Signal::SIGTERM).await;
    println!("SIGTERM: taken over after {took:.2?}");
    scene.core.start_again(victim).await;
    scene.flows().await;
    scene.holds_up().await;
    assert!(took < AT_MOST, "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_was_stopped_for_long_writes_nothing_when_it_goes_on() {
    let mut scene = Scene::of_servers(1).await;
    let (victim, took) = scene.strike(Signal::SIGSTOP).await;
    println!("SIGSTOP: taken over after {took:.2?}");
    tokio::time::sleep(Duration::from_secs(30)).await;
    scene.core.signal(victim, Signal::SIGCONT);
    scene.stands_by(victim).await;
    scene.flows().await;
    assert_eq!(scene.core.holder().await, Some(scene.core.other(victim)));
    scene.holds_up().await;
    assert!(took < AT_MOST, "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_are_said_once_and_in_order_whoever_holds_the_lease_meanwhile() {
    let (mut core, mesh) = Core::start(1, &TREE).await;
    let client = core.agents_client().await;
    let mut number = 0;
    let mut give = async || {
        for _ in 0..10 {
            number += 1;
            let mut headers = HeaderMap::new();
            headers.insert("Nats-Msg-Id", format!("order-{number}"));
            let body = json!({ "number": number });
            let answer = orders::send(&client, "node.s1.c1.n1.commands.n", headers, &body).await;
            assert!(answer["error"].is_null(), "{answer}");
        }
    };
    core.wait_for_holder(None).await;
    give().await;
    let killed = core.wait_for_holder(None).await;
    core.signal(killed, Signal::SIGKILL);
    give().await;
    core.start_again(killed).await;
    let stopped = core.wait_for_holder(None).await;
    core.signal(stopped, Signal::SIGSTOP);
    core.wait_for_holder(Some(stopped)).await;
    give().await;
    core.signal(stopped, Signal::SIGCONT);
    give().await;
    eventually!(ARRIVED_WITHIN, {
        let numbers = orders::numbers_at(&mesh, NODE).await;
        when(numbers.len() >= 40, numbers.len())
    });
    assert_eq!(orders::numbers_at(&mesh, NODE).await, (1..=40).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holders_change_again_and_again_at_random() {
    let mut random = Random::seeded();
    let mut scene = Scene::of_servers(1).await;
    let mut times = Vec::new();
    for round in 1..=6 {
        tokio::time::sleep(random.millis(0..2_000)).await;
        let signal = [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGSTOP][random.number() as usize % 3];
        let (victim, took) = scene.strike(signal).await;
        println!("round {round}, {signal}: taken over after {took:.2?}");
        times.push(took);
        if signal == Signal::SIGSTOP {
            tokio::time::sleep(random.millis(0..4_000)).await;
            scene.core.signal(victim, Signal::SIGCONT);
            // It has to have noticed before it can take over.
            scene.stands_by(victim).await;
        } else {
            scene.core.start_again(victim).await;
        }
    }
    scene.flows().await;
    scene.holds_up().await;
    times.sort();
    assert!(times[times.len() / 2] < TAKEN_OVER_WITHIN && times[times.len() - 1] < AT_MOST, "{times:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_is_ready_says_that_it_stands_by_and_acts_on_nothing() {
    let (core, _mesh) = Core::start(1, &["s1"]).await;
    let holder = core.wait_for_holder(None).await;
    let standby = core.other(holder);
    assert_eq!(core.page(standby, "/livez").await.unwrap().0, 200);
    let (code, ready) = core.page(standby, "/readyz").await.unwrap();
    assert!(code == 200 && ready.contains("\"acts\":false"), "{code} {ready}");
    // It looks at the lease four times a second.
    eventually!(ARRIVED_WITHIN, {
        let replica = core.status(standby).await.unwrap().replica.unwrap();
        assert!(!replica.acts);
        when((replica.holder.as_deref(), replica.epoch) == (Some(holder), 1), replica)
    });
    let (_, metrics) = core.page(standby, "/metrics").await.unwrap();
    for line in ["lucent_lease_held 0", "lucent_lease_epoch 1", "lucent_take_overs_total 0"] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    assert!(core.status(holder).await.unwrap().children.iter().any(|child| child.path == path("s1")));
    assert!(core.status(standby).await.unwrap().children.is_empty());
}

/// What an earlier holder still has under way is refused by the stream itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stream_refuses_what_names_the_fence_of_an_earlier_holder() {
    let mut scene = Scene::of_servers(1).await;
    let client = scene.core.agents_client().await;
    let js = jetstream::new(client.clone());
    let stream = js.get_stream("HIERARCHY").await.unwrap();
    let fence = stream.get_last_raw_message_by_subject(FENCE).await.unwrap().sequence;
    scene.strike(Signal::SIGTERM).await;

    let mut headers = HeaderMap::new();
    headers.insert("Nats-Expected-Last-Subject-Sequence", fence.to_string());
    headers.insert("Nats-Expected-Last-Subject-Sequence-Subject", FENCE);
    let late = PublishMessage::build().payload("late".into()).headers(headers);
    let refused = js.send_publish("lucent.hierarchy.node.n1", late).await.unwrap().await.unwrap_err();
    assert!(refused.to_string().contains("wrong last sequence"), "{refused}");
}

/// Connections stay open: what the holder had sent arrives when another one acts already.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_holder_sent_that_was_cut_off_arrives_late_and_is_refused() {
    let mut scene = Scene::of_servers(1).await;
    let (victim, took) = scene.fail(|core, victim| core.valve(victim).shut()).await;
    println!("cut off: taken over after {took:.2?}");
    scene.core.valve(victim).open();
    scene.stands_by(victim).await;
    scene.flows().await;
    scene.holds_up().await;
    assert!(took < AT_MOST, "{took:?}");
}

/// Streams of three copies. A server takes one conditional write at a time for each subject there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_cluster_of_three_servers_replicas_take_over() {
    let mut scene = Scene::of_servers(3).await;
    let mut slowest = Duration::ZERO;
    for signal in [Signal::SIGKILL, Signal::SIGSTOP, Signal::SIGTERM] {
        let (victim, took) = scene.strike(signal).await;
        println!("three servers, {signal}: taken over after {took:.2?}");
        slowest = slowest.max(took);
        match signal {
            Signal::SIGSTOP => {
                scene.core.signal(victim, Signal::SIGCONT);
                scene.stands_by(victim).await;
            }
            _ => scene.core.start_again(victim).await,
        }
        scene.flows().await;
    }
    scene.holds_up().await;
    assert!(slowest < AT_MOST, "{slowest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "on two cores nothing arrived for a minute after a server's death, once in four runs; why is not known yet"]
async fn a_server_of_three_may_die_and_come_back() {
    let mut scene = Scene::of_servers(3).await;
    for server in [1, 2] {
        scene.core.kill_server(server);
        scene.flows().await;
        scene.core.start_server_again(server);
        scene.flows().await;
    }
    scene.holds_up().await;
}

/// Notes the task.
const WORK: &str = r#"echo "$LUCENT_TASK_ID" >>runs; cat >/dev/null; printf '{"result":1}\n'"#;

/// Two coordinators each have the same task in hand for a moment: one that was stopped, and its successor.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_task_runs_once_while_holders_are_stopped() {
    const TASKS: usize = 120;
    let runner = format!(
        "\n[[runner]]\nagent_type = \"yield\"\ntask = \"*\"\nslots = 4\ncommand = {:?}\n",
        ["sh", "-c", WORK]
    );
    let (core, mesh) = Core::start_with(1, &TREE, |at, config| {
        if *at == path(NODE) {
            config.push_str(&runner);
        }
    })
    .await;
    let js = jetstream::new(mesh.client("global").await);
    // Dropped before the mesh, whose files it shows where the test fails.
    let mut core = core;
    let tasks: Vec<String> = (1..=TASKS).map(|number| format!("t-{number}")).collect();
    for (number, task) in tasks.iter().enumerate() {
        let body = serde_json::json!({ "messageId": task, "payload": number }).to_string();
        js.publish("lucent.agents.yield.analysis", body.into()).await.unwrap().await.unwrap();
        if number % 40 == 39 {
            let holder = core.wait_for_holder(None).await;
            core.signal(holder, Signal::SIGSTOP);
            core.wait_for_holder(Some(holder)).await;
            core.signal(holder, Signal::SIGCONT);
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let file = mesh.agent(&path(NODE)).config.with_file_name("runs");
    eventually!(ARRIVED_WITHIN * 2, {
        let mut runs: Vec<String> =
            std::fs::read_to_string(&file).unwrap_or_default().lines().map(str::to_owned).collect();
        let left = js.get_stream("AGENT_COORDINATION").await.unwrap().cached_info().state.messages;
        runs.sort();
        let once = runs.windows(2).all(|pair| pair[0] != pair[1]);
        assert!(once, "a task ran twice: {runs:?}");
        when(runs.len() == TASKS && left == 0, (runs.len(), left))
    });
}
