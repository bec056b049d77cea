//! Nothing missing, or exactly this: whatever gives way, is kept back or lost is stated, and global's ledger adds
//! up.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::BTreeMap, fs, time::Duration};

use async_nats::jetstream;
use coordinator::ledger::Totals;
use hierarchy::{
    Lane,
    envelope::Parsed,
    link::Batch,
    loss::{LossReason, LossReceipt},
};
use tests::{Mesh, Observer, Publisher, burst, door::in_lane, eventually, eventually::when, losses, path};

const CHAIN: [&str; 4] = ["global", "s1", CLUSTER, NODE];
const CLUSTER: &str = "s1/c1";
const NODE: &str = "s1/c1/n1";
const SOON: Duration = Duration::from_secs(30);
const ARRIVED_WITHIN: Duration = Duration::from_secs(60);
/// The grace of a hole is 15 s; receipts, words and looks take some more.
const UNACCOUNTED_WITHIN: Duration = Duration::from_secs(40);

/// A mesh in which these lines stand in the configuration of the agent at this path.
async fn chain_with(at: &str, lines: &str) -> Mesh {
    Mesh::start_with(&CHAIN, |path, config| {
        if path.to_string() == at {
            config.push_str(lines);
        }
    })
    .await
}

async fn publish(mesh: &Mesh, lane: Lane, numbers: std::ops::RangeInclusive<u64>, bytes: usize) {
    burst::publish(&mesh.client(NODE).await, &path(NODE), lane, numbers, bytes).await;
}

/// Waits until everything of the node's lane has arrived or is accounted for, and so many were published.
async fn settled(mesh: &Mesh, lane: Lane, published: u64) -> Totals {
    eventually!(ARRIVED_WITHIN, {
        losses::of(mesh, NODE, lane).await.and_then(|totals| {
            let settled = losses::is_settled(&totals) && totals.published >= published;
            when(settled, &totals).map(|()| totals)
        })
    })
}

/// Batches and bytes that lie in a lane's stream.
async fn waiting(mesh: &Mesh, at: &str, lane: Lane) -> (u64, u64) {
    let js = jetstream::new(mesh.client(at).await);
    let name = format!("LANE_{}", lane.as_str().to_uppercase());
    let state = js.get_stream(name).await.unwrap().cached_info().state.clone();
    (state.messages, state.bytes)
}

fn only(reason: LossReason, events: u64) -> BTreeMap<LossReason, u64> {
    [(reason, events)].into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_a_lane_is_full_the_oldest_give_way_and_are_stated_to_the_last_event() {
    const EVENTS: u64 = 400;
    const BYTES: usize = 16 * 1024;
    const BOUND: u64 = 2 << 20;
    let mut mesh = chain_with(NODE, "\n[lanes]\nbulk_bytes = \"2MiB\"\n").await;
    let observer = Observer::start(&mesh).await;
    publish(&mesh, Lane::Bulk, 1..=5, 10).await;
    settled(&mesh, Lane::Bulk, 5).await;

    mesh.stop_one(&path(CLUSTER)).await;
    publish(&mesh, Lane::Bulk, 6..=EVENTS, BYTES).await;
    publish(&mesh, Lane::Normal, 1..=50, 100).await;
    eventually!(SOON, {
        let (_, bytes) = waiting(&mesh, NODE, Lane::Bulk).await;
        when(bytes <= BOUND, bytes)
    });
    mesh.start_again(CLUSTER).await;

    let totals = settled(&mesh, Lane::Bulk, EVENTS).await;
    let lost = losses::lost(&totals, LossReason::Overflow);
    println!("{totals:?}");
    assert_eq!((totals.published, totals.policy), (EVENTS, 0));
    assert_eq!(totals.lost, only(LossReason::Overflow, lost), "for no other reason");
    assert!(lost > 0 && totals.arrived == EVENTS - lost);
    // Not more gave way than had to.
    assert!(totals.arrived * BYTES as u64 > BOUND / 2, "{totals:?}");

    // The newest are there, in order and without a hole.
    let arrived = burst::arrived(&observer.seen(), NODE, Lane::Bulk);
    let expected: Vec<u64> = (1..=5).chain(6 + lost..=EVENTS).collect();
    assert_eq!(arrived, expected);
    assert_eq!(burst::arrived(&observer.seen(), NODE, Lane::Normal), (1..=50).collect::<Vec<u64>>());
    let normal = settled(&mesh, Lane::Normal, 50).await;
    assert_eq!(losses::lost(&normal, LossReason::Overflow), 0, "{normal:?}");
    assert_eq!(observer.seen().unverified, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_too_long_gives_way_and_is_stated_to_the_last_event() {
    const OLD: u64 = 60;
    const NEW: u64 = 20;
    let mut mesh = chain_with(NODE, "\n[lanes]\nbulk_age = \"4s\"\n").await;
    let observer = Observer::start(&mesh).await;
    mesh.stop_one(&path(CLUSTER)).await;
    publish(&mesh, Lane::Bulk, 1..=OLD, 100).await;
    publish(&mesh, Lane::Normal, 1..=50, 100).await;
    eventually!(SOON, {
        let (batches, _) = waiting(&mesh, NODE, Lane::Bulk).await;
        when(batches == 0, batches)
    });
    mesh.start_again(CLUSTER).await;
    let normal = settled(&mesh, Lane::Normal, 50).await;
    assert_eq!(losses::lost(&normal, LossReason::Age), 0, "{normal:?}");
    // What is younger arrives.
    publish(&mesh, Lane::Bulk, OLD + 1..=OLD + NEW, 100).await;

    let totals = settled(&mesh, Lane::Bulk, OLD + NEW).await;
    assert_eq!((totals.published, totals.arrived), (OLD + NEW, NEW), "{totals:?}");
    assert_eq!(totals.lost, only(LossReason::Age, OLD));
    let new: Vec<u64> = (OLD + 1..=OLD + NEW).collect();
    assert_eq!(burst::arrived(&observer.seen(), NODE, Lane::Bulk), new);
}

const DROP_DEBUG: &str = "\n[[policy]]\nsubject = \"lucent.hierarchy.*.*.debug\"\naction = \"drop\"\n";
const DROP_LOCAL: &str = "\n[[policy]]\nsubject = \"lucent.hierarchy.node.*.local\"\naction = \"drop\"\n";

/// A coordinator decides whole batches by their subject, so these are published in runs of one subject.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_policies_drop_at_the_origin_and_on_the_way_is_accounted_for() {
    let mesh = Mesh::start_with(&CHAIN, |at, config| match at.to_string().as_str() {
        NODE => config.push_str(DROP_DEBUG),
        CLUSTER => config.push_str(DROP_LOCAL),
        _ => {}
    })
    .await;
    let observer = Observer::start(&mesh).await;
    let js = jetstream::new(mesh.client(NODE).await);
    let mut published = 0;
    for (tail, events) in [("debug", 30), ("trades", 20), ("local", 40), ("trades", 20), ("debug", 10)] {
        for number in 0..events {
            let subject = format!("lucent.hierarchy.node.n1.{tail}");
            let body = format!("{tail} {number}");
            let sent = js.publish_with_headers(subject, in_lane(Lane::Bulk), body.into()).await.unwrap();
            sent.await.unwrap();
        }
        published += events;
        // So that no batch holds two subjects.
        let numbered = published;
        eventually!(SOON, {
            let totals = losses::of(&mesh, NODE, Lane::Bulk).await;
            totals.and_then(|totals| when(totals.published == numbered, totals))
        });
    }
    let totals = settled(&mesh, Lane::Bulk, published).await;
    assert_eq!((totals.published, totals.arrived, totals.policy), (120, 40, 40), "{totals:?}");
    assert_eq!(totals.lost, only(LossReason::Policy, 40), "the cluster's hop states what it kept back");
    let by_policy =
        |numbers: tests::scrape::Numbers| numbers.value("lucent_lost_events_total{reason=\"policy\"}");
    assert!(by_policy(mesh.numbers(CLUSTER).await) >= 40.0);
    let seen = observer.seen();
    assert!(seen.of(NODE).iter().all(|event| event.subject.ends_with(".trades")));
    assert_eq!(seen.of(NODE).len(), 40);
}

/// The node loses everything that it has, and is started again.
async fn lose_state(mesh: &mut Mesh) {
    let node = path(NODE);
    let state = mesh.agent(&node).state.clone();
    mesh.stop_one(&node).await;
    fs::remove_dir_all(&state).unwrap();
    mesh.spawn(&node).unwrap();
    eventually!(SOON, mesh.status(&node).await.ok_or("the node is not up"));
}

/// What only the lost store knew of nobody can miss: the ledger goes as far as the node's words did.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_had_heard_of_when_the_store_was_lost_is_in_no_ledger_and_the_rest_adds_up() {
    let mut mesh = Mesh::start(&CHAIN).await;
    let observer = Observer::start(&mesh).await;
    publish(&mesh, Lane::Bulk, 1..=100, 100).await;
    settled(&mesh, Lane::Bulk, 100).await;
    mesh.stop_one(&path(CLUSTER)).await;
    publish(&mesh, Lane::Bulk, 101..=300, 100).await;
    lose_state(&mut mesh).await;
    publish(&mesh, Lane::Bulk, 301..=350, 100).await;
    mesh.start_again(CLUSTER).await;

    let totals = settled(&mesh, Lane::Bulk, 150).await;
    assert_eq!((totals.published, totals.arrived), (150, 150), "{totals:?}");
    let expected: Vec<u64> = (1..=100).chain(301..=350).collect();
    assert_eq!(burst::arrived(&observer.seen(), NODE, Lane::Bulk), expected);
}

/// A cluster whose bulk lane is small: while the site is away the node's bulk soon has to wait at the node.
const SMALL_BULK: &str = "\n[lanes]\nbulk_bytes = \"1MiB\"\n";

/// Stops the site and publishes bulk until the cluster takes no more of it, but hears how far the node has
/// numbered. How many were published, of which the last `held` are at the node alone.
async fn publish_what_only_the_node_holds(mesh: &mut Mesh, held: u64) -> u64 {
    mesh.stop_one(&path("s1")).await;
    let mut published = 0;
    eventually!(SOON, {
        published += 1;
        publish(mesh, Lane::Bulk, published..=published, 12 * 1024).await;
        let bytes = mesh.numbers(CLUSTER).await.value("lucent_lane_bytes{lane=\"bulk\"}");
        when(bytes >= f64::from(1 << 20) * 0.9, bytes)
    });
    // What the cluster had room for is there.
    publish(mesh, Lane::Bulk, published + 1..=published + held, 1024).await;
    let published = published + held;
    let js = jetstream::new(mesh.client(CLUSTER).await);
    eventually!(SOON, {
        let said = words(&js).await;
        when(said == Some(published), said)
    });
    published
}

/// How far the node has numbered its bulk, by its last words that the cluster has.
async fn words(cluster: &jetstream::Context) -> Option<u64> {
    let lane = cluster.get_stream("LANE_CRITICAL").await.ok()?;
    let subject = "lucent.lane.critical.below.node.n1.agent.loss";
    let batch = lane.get_last_raw_message_by_subject(subject).await.ok()?;
    let envelope = Parsed::parse(&batch.payload).ok()?;
    let events = Batch::read(&envelope).ok()?.events;
    let receipts = events.iter().filter_map(|event| LossReceipt::parse(&event.bytes()).ok());
    receipts.filter_map(|receipt| receipt.published).next_back().map(|published| published.lanes.bulk)
}

/// The parent remembers how far its child said to have numbered, and states what can never come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_parent_had_heard_of_when_the_store_was_lost_is_stated_as_lost_with_the_store() {
    const HELD: u64 = 30;
    const NEW: u64 = 10;
    let mut mesh = chain_with(CLUSTER, SMALL_BULK).await;
    let observer = Observer::start(&mesh).await;
    let published = publish_what_only_the_node_holds(&mut mesh, HELD).await;
    lose_state(&mut mesh).await;
    mesh.start_again("s1").await;
    publish(&mesh, Lane::Bulk, published + 1..=published + NEW, 100).await;

    let totals = settled(&mesh, Lane::Bulk, published + NEW).await;
    println!("{totals:?}");
    let lost = losses::lost(&totals, LossReason::StoreLost);
    assert!((HELD..published).contains(&lost), "{totals:?}");
    // Before the cluster held the node back it may have dropped some for want of room.
    let overflow = losses::lost(&totals, LossReason::Overflow);
    assert_eq!((totals.published, totals.lost_events()), (published + NEW, lost + overflow));
    let numbers = burst::arrived(&observer.seen(), NODE, Lane::Bulk);
    let expected: Vec<u64> =
        (overflow + 1..=published - lost).chain(published + 1..=published + NEW).collect();
    assert_eq!(numbers, expected, "{totals:?}");
}

/// Where the parent has forgotten the words, too, nobody can say why: that is for people to look into.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_missing_and_nobody_accounts_for_raises_the_alarm_at_global() {
    const HELD: u64 = 30;
    const NEW: u64 = 10;
    let mut mesh = chain_with(CLUSTER, SMALL_BULK).await;
    let published = publish_what_only_the_node_holds(&mut mesh, HELD).await;
    mesh.kill_agent(&path(CLUSTER)).await;
    lose_state(&mut mesh).await;
    mesh.spawn(&path(CLUSTER)).unwrap();
    mesh.start_again("s1").await;
    mesh.linked(CLUSTER).await;
    publish(&mesh, Lane::Bulk, published + 1..=published + NEW, 100).await;

    let totals = eventually!(UNACCOUNTED_WITHIN, {
        let totals = losses::of(&mesh, NODE, Lane::Bulk).await;
        totals.and_then(|totals| when(totals.unaccounted > 0, &totals).map(|()| totals))
    });
    println!("{totals:?}");
    assert!((HELD..published).contains(&totals.unaccounted), "{totals:?}");
    assert_eq!((totals.published, totals.in_flight), (published + NEW, 0));
    assert_eq!(totals.missing, totals.unaccounted);
    let shown = "lucent_ledger_events{lane=\"bulk\",state=\"unaccounted\"}";
    eventually!(SOON, {
        let value = mesh.numbers("global").await.value(shown);
        when(value as u64 == totals.unaccounted, value)
    });
    let cried =
        |line: &&str| line.contains("ERROR") && line.contains("events are missing that nobody accounts for");
    assert!(mesh.log("global").lines().any(|line| cried(&line)));
}

/// A lane keeps the newest batch that has arrived, to compare it with the parent's when a session begins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_arrived_is_not_stated_as_lost_later() {
    let mesh = chain_with(NODE, "\n[lanes]\nbulk_age = \"2s\"\n").await;
    publish(&mesh, Lane::Bulk, 1..=50, 100).await;
    assert_eq!(settled(&mesh, Lane::Bulk, 50).await.arrived, 50);
    eventually!(SOON, {
        let (batches, _) = waiting(&mesh, NODE, Lane::Bulk).await;
        when(batches == 0, batches)
    });
    let age = mesh.numbers(NODE).await.value("lucent_lost_events_total{reason=\"age\"}");
    assert_eq!(age, 0.0, "{}", mesh.log(NODE));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ledger_survives_kills_of_global_and_its_server_and_counts_nothing_twice() {
    let mut mesh = Mesh::start(&CHAIN).await;
    let observer = Observer::start(&mesh).await;
    let publisher = Publisher::start(&mesh, NODE, 300).await;
    let mut before = 0;
    for _ in 0..3 {
        let enough = before + 1000;
        before = eventually!(SOON, {
            let totals = losses::of(&mesh, NODE, Lane::Normal).await;
            totals.and_then(|totals| when(totals.arrived > enough, &totals).map(|()| totals.arrived))
        });
        mesh.kill_both("global").await;
        mesh.start_again("global").await;
        // It begins with its checkpoint, and reads the rest of its stream.
        eventually!(SOON, {
            let totals = losses::of(&mesh, NODE, Lane::Normal).await;
            totals.and_then(|totals| when(totals.arrived >= before, totals))
        });
    }
    let ledger = publisher.stop().await;
    observer.expect_all([(&path(NODE), &ledger)], ARRIVED_WITHIN).await;

    // Holds what global's ledger says against what lies in its stream, of every origin and lane.
    eventually!(SOON, {
        losses::report(&mesh).await.and_then(|report| {
            let seen = observer.seen();
            let counted: BTreeMap<_, _> =
                report.rows.iter().map(|row| ((row.origin.clone(), row.lane), row.totals.arrived)).collect();
            let mut lying = BTreeMap::new();
            for (origin, event) in
                seen.events.iter().flat_map(|(o, events)| events.iter().map(move |e| (o, e)))
            {
                *lying.entry((origin.clone(), event.lane)).or_insert(0) += 1;
            }
            let settled = report.rows.iter().all(|row| losses::is_settled(&row.totals));
            let same = counted.iter().filter(|(_, events)| **events > 0).eq(lying.iter());
            when(settled && same, (report, lying))
        })
    });
    let unaccounted = |numbers: &tests::scrape::Numbers, lane: Lane| {
        numbers.value(&format!("lucent_ledger_events{{lane=\"{lane}\",state=\"unaccounted\"}}"))
    };
    let numbers = mesh.numbers("global").await;
    assert!(Lane::ALL.into_iter().all(|lane| unaccounted(&numbers, lane) == 0.0), "{}", numbers.text());
}

/// It is noted in memory for half a second, and what was sent behind it has moved the parent's cursor past it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_policy_kept_back_is_stated_though_the_agent_was_killed_before_it_could() {
    const ROUNDS: u64 = 6;
    let mut mesh = chain_with(CLUSTER, DROP_LOCAL).await;
    let observer = Observer::start(&mesh).await;
    let node = jetstream::new(mesh.client(NODE).await);
    let publish = async |tail: &str| {
        let subject = format!("lucent.hierarchy.node.n1.{tail}");
        let sent = node.publish_with_headers(subject, in_lane(Lane::Bulk), "x".into()).await.unwrap();
        sent.await.unwrap();
    };
    for round in 1..=ROUNDS {
        publish("local").await;
        // So that no batch holds two subjects.
        eventually!(SOON, {
            let js = jetstream::new(mesh.client(CLUSTER).await);
            let stored = js.get_stream("LANE_BULK").await.unwrap().cached_info().state.last_sequence;
            when(stored == 2 * round - 1, stored)
        });
        publish("x").await;
        eventually!(SOON, {
            let arrived = observer.seen().of(NODE).len() as u64;
            when(arrived == round, arrived)
        });
        mesh.kill_agent(&path(CLUSTER)).await;
        mesh.start_again(CLUSTER).await;
    }
    let totals = settled(&mesh, Lane::Bulk, 2 * ROUNDS).await;
    assert_eq!((totals.published, totals.arrived), (2 * ROUNDS, ROUNDS), "{totals:?}");
    assert_eq!(totals.lost, only(LossReason::Policy, ROUNDS));
}
