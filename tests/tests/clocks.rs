//! Wall clocks that are hours off, and that jump. The agents' alone: the nats-servers are static programs, which
//! libfaketime cannot reach.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::Duration;

use agent::{clock, dev::identities, status::Status};
use async_nats::jetstream;
use hierarchy::{Lane, Millis, envelope::Parsed, link::Skew, rollup::Health};
use tests::{
    Mesh, Observer, Publisher, burst, clocks::Clocks, eventually, eventually::when, mesh::lay_out, path,
    program,
};
use tokio::process::Command;

const HOURS: i64 = 3600;
const ARRIVED_WITHIN: Duration = Duration::from_secs(60);
/// The first question goes out with the session, and a clock that was set shows with the next answer.
const SEEN_WITHIN: Duration = Duration::from_secs(20);
/// Of all nodes each.
const RATE: u32 = 200;

/// Waits until `child` says that its clock is so many seconds ahead, and its parent says so, too.
async fn expect_skew(mesh: &Mesh, child: &str, seconds: i64) {
    let (child, parent) = (path(child), path(child).parent().unwrap());
    let found = |skew: Option<Skew>| {
        let by = skew.map(|skew| (skew.ahead_seconds() - seconds as f64).abs());
        by.is_some_and(|by| by < 1.0)
    };
    let wrong = seconds.abs() > 2;
    let (own, told) = eventually!(SEEN_WITHIN, {
        let (own, its) = (mesh.status(&child).await, mesh.status(&parent).await);
        let uplink = own.as_ref().and_then(|status| status.parent.clone());
        let uplink = uplink.filter(|uplink| found(uplink.clock) && uplink.is_apart() == wrong);
        let told = its.as_ref().and_then(|status| status.children.iter().find(|known| known.path == child));
        let told = told.filter(|told| found(told.clock)).cloned();
        uplink.zip(told).ok_or(format!("{own:?}\n{its:?}"))
    });
    println!("{child}: {:?}, and {parent} says {:?}", own.clock.unwrap(), told.clock.unwrap());
    let degraded = |status: &Status| (status.health == Health::Degraded) == wrong;
    let status = eventually!(SEEN_WITHIN, {
        let status = mesh.status(&child).await;
        status.clone().filter(degraded).ok_or(format!("{status:?}"))
    });
    let line = |text: String, word: &str| text.lines().find(|line| line.contains(word)).unwrap().to_owned();
    let said = line(status.to_text(), "parent  up");
    assert_eq!(said.contains("clock differs by"), wrong, "{said}");
    if wrong {
        let said = line(mesh.status(&parent).await.unwrap().to_text(), &child.to_string());
        let hours = format!("{}", seconds.abs() / 100);
        assert!(said.contains("clock differs by") && said.contains(&hours), "{said}");
        let own = mesh.numbers(&child.to_string()).await;
        let name = format!("lucent_clock_ahead_seconds{{peer=\"{parent}\"}}");
        let metric = own.value(&name);
        assert!((metric - seconds as f64).abs() < 1.0, "{metric}");
        let log = mesh.log(&child.to_string());
        let warned = log.lines().any(|line| {
            line.contains("clock differs from the parent's") && line.contains(&format!("child={child}"))
        });
        assert!(warned, "the log does not name who differs from whom");
    }
}

/// When the newest batch of a node's numbered events was signed, as it says itself.
async fn newest_stamp(mesh: &Mesh, node: &str) -> Millis {
    let js = jetstream::new(mesh.client("global").await);
    let subject = format!("lucent.hierarchy.node.{}.numbered", path(node).id());
    let stream = js.get_stream("HIERARCHY").await.unwrap();
    let stored = stream.get_last_raw_message_by_subject(&subject).await.unwrap();
    Parsed::parse(&stored.payload).unwrap().timestamp()
}

async fn expect_right_stamp(mesh: &Mesh, node: &str) {
    let (now, signed) = (clock::wall(), newest_stamp(mesh, node).await);
    let off = now.since(signed).max(signed.since(now));
    assert!(off < Duration::from_secs(60), "{node} dates what it signs {off:?} off");
}

struct Flow {
    observer: Observer,
    publishers: Vec<Publisher>,
}

impl Flow {
    async fn start(mesh: &Mesh, nodes: &[&str]) -> Flow {
        let observer = Observer::start(mesh).await;
        let mut publishers = Vec::new();
        for node in nodes {
            publishers.push(Publisher::start(mesh, node, RATE).await);
        }
        Flow { observer, publishers }
    }

    /// Waits until so many more events of each node have arrived.
    async fn goes_on(&self, more: usize) {
        for publisher in &self.publishers {
            let node = publisher.origin().to_string();
            let before = self.observer.seen().numbers(&node).len();
            eventually!(ARRIVED_WITHIN, {
                let arrived = self.observer.seen().numbers(&node).len();
                when(arrived >= before + more, format!("{node}: {before}, {arrived}"))
            });
        }
    }

    async fn end_exact(self, mesh: &Mesh) {
        for publisher in self.publishers {
            let node = publisher.origin().clone();
            let ledger = publisher.stop().await;
            self.observer.expect_all([(&node, &ledger)], ARRIVED_WITHIN).await;
            assert_eq!(mesh.status(&node).await.unwrap().refused, 0, "{node}");
        }
    }
}

/// By the clock of the one its certificate is over, by that of the other it does not hold yet: they hold from an
/// hour ago until in an hour, as SPIRE issues them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_whose_clocks_are_three_hours_ahead_and_behind_deliver_everything_and_say_so() {
    let Some(clocks) = Clocks::right() else { return };
    let nodes = ["s1/c1/n1", "s1/c1/n2"];
    clocks.set(nodes[0], 3 * HOURS);
    clocks.set(nodes[1], -3 * HOURS);
    let tree = ["global", "s1", "s1/c1", nodes[0], nodes[1]];
    let mut mesh = Mesh::start_program(clocks.program.clone(), &tree, |_, _| {}).await;
    for node in nodes {
        mesh.stop_one(&path(node)).await;
        let authority = &mesh.plan.authority;
        let identity = format!("spiffe://{}/mesh/{node}", identities::TRUST_DOMAIN).parse().unwrap();
        let svid = authority.issue_lasting(&identity, Duration::from_secs(3600)).unwrap();
        svid.write(&mesh.agent(&path(node)).config.with_file_name("identity")).unwrap();
        mesh.start_again(node).await;
    }
    let flow = Flow::start(&mesh, &nodes).await;
    expect_skew(&mesh, nodes[0], 3 * HOURS).await;
    expect_skew(&mesh, nodes[1], -3 * HOURS).await;
    expect_skew(&mesh, "s1/c1", 0).await;
    flow.goes_on(500).await;
    for node in nodes {
        expect_right_stamp(&mesh, node).await;
    }
    flow.end_exact(&mesh).await;
}

/// Only they differ from others: what they tell their nodes is the time of their site.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clusters_whose_clocks_are_three_hours_ahead_and_behind_relay_everything_and_their_nodes_are_not_blamed()
 {
    let Some(clocks) = Clocks::right() else { return };
    let (clusters, nodes) = (["s1/c1", "s1/c2"], ["s1/c1/n1", "s1/c2/n2"]);
    clocks.set(clusters[0], 3 * HOURS);
    clocks.set(clusters[1], -3 * HOURS);
    let tree = ["global", "s1", clusters[0], clusters[1], nodes[0], nodes[1]];
    let mesh = Mesh::start_program(clocks.program.clone(), &tree, |_, _| {}).await;
    let flow = Flow::start(&mesh, &nodes).await;
    expect_skew(&mesh, clusters[0], 3 * HOURS).await;
    expect_skew(&mesh, clusters[1], -3 * HOURS).await;
    for node in nodes {
        expect_skew(&mesh, node, 0).await;
    }
    flow.goes_on(500).await;
    for node in nodes {
        expect_right_stamp(&mesh, node).await;
    }
    flow.end_exact(&mesh).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks_that_jump_while_events_flow_stop_nothing_and_are_seen_to_be_set_right() {
    let Some(clocks) = Clocks::right() else { return };
    let (cluster, node) = ("s1/c1", "s1/c1/n1");
    let mesh = Mesh::start_program(clocks.program.clone(), &["global", "s1", cluster, node], |_, _| {}).await;
    let flow = Flow::start(&mesh, &[node]).await;
    flow.goes_on(100).await;
    for (ahead, behind) in [(node, cluster), (cluster, node)] {
        clocks.set(ahead, 3 * HOURS);
        clocks.set(behind, -3 * HOURS);
        expect_skew(&mesh, cluster, if ahead == cluster { 3 * HOURS } else { -3 * HOURS }).await;
        expect_skew(&mesh, node, if ahead == node { 3 * HOURS } else { -3 * HOURS }).await;
        flow.goes_on(200).await;
        expect_right_stamp(&mesh, node).await;
    }
    clocks.set(node, 0);
    clocks.set(cluster, 0);
    expect_skew(&mesh, cluster, 0).await;
    expect_skew(&mesh, node, 0).await;
    flow.goes_on(100).await;
    flow.end_exact(&mesh).await;
}

/// After a power cut that took the end of the inbox, on a machine whose clock went back with it: places are given
/// again, and times seem to be of before. Both are played here, since a server's clock cannot be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_after_inbox_and_clock_went_back_is_not_taken_to_be_packed_already() {
    const EVENTS: u64 = 300;
    let node = "s1/c1/n1";
    let mut mesh = Mesh::start(&["global", "s1", "s1/c1", node]).await;
    let observer = Observer::start(&mesh).await;
    let arrived = |last: u64| {
        let seen = burst::arrived(&observer.seen(), node, Lane::Normal);
        when(seen == (1..=last).collect::<Vec<_>>(), format!("{} of {last}", seen.len()))
    };
    burst::publish(&mesh.client(node).await, &path(node), Lane::Normal, 1..=EVENTS, 10).await;
    eventually!(ARRIVED_WITHIN, arrived(EVENTS));

    mesh.kill_agent(&path(node)).await;
    let js = jetstream::new(mesh.agents_client(node).await);
    let lane = js.get_stream("LANE_NORMAL").await.unwrap();
    let newest = lane.get_last_raw_message_by_subject("lucent.lane.normal.own").await.unwrap();
    let (place, latest) = newest.headers.get("Lucent-Inbox").unwrap().as_str().split_once(' ').unwrap();
    println!("the newest batch was packed up to place {place}, and time {latest}");
    let in_an_hour = clock::wall().0 + 3_600_000;
    let mut headers = newest.headers.clone();
    headers.insert("Lucent-Inbox", format!("{place} {in_an_hour}"));
    let again = js.publish_with_headers("lucent.lane.normal.own", headers, newest.payload.clone()).await;
    again.unwrap().await.unwrap();
    let config = js.get_stream("HIERARCHY").await.unwrap().cached_info().config.clone();
    js.delete_stream("HIERARCHY").await.unwrap();
    js.create_stream(config).await.unwrap();

    mesh.start_again(node).await;
    let more = EVENTS + 1..=EVENTS + EVENTS / 2;
    burst::publish(&mesh.client(node).await, &path(node), Lane::Normal, more, 10).await;
    eventually!(ARRIVED_WITHIN, arrived(EVENTS + EVENTS / 2));
}

/// By so much no clock is taken to be wrong.
#[tokio::test]
async fn an_agent_whose_certificate_is_over_for_more_than_a_day_by_its_clock_exits_77_and_names_the_clock() {
    let Some(clocks) = Clocks::right() else { return };
    let dir = tempfile::tempdir().unwrap();
    let plan = lay_out(dir.path(), &["global"], |_, _| {});
    clocks.set("global", 32 * 24 * HOURS);
    let mut command = Command::new(&clocks.program);
    command.args(["--level", "global", "--config"]).arg(&plan.agents[0].config);
    let ended = program::run(&mut command, Duration::from_secs(30)).await;
    assert_eq!(ended.code, Some(77), "{ended:?}");
    assert!(
        ended.stderr.contains("expired-binding") && ended.stderr.contains("this machine's clock"),
        "{ended:?}"
    );
}
