//! Orders go down: to one agent or to a whole subtree, once, in order, in time or not at all, whatever is cut
//! or killed between.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::Duration;

use async_nats::{
    HeaderMap, Message, Subscriber,
    jetstream::{self, consumer::pull},
};
use futures_util::StreamExt as _;
use hierarchy::{
    Lane,
    envelope::Parsed,
    link::Batch,
    order::{Fate, OrderReport},
};
use serde_json::{Value, json};
use tests::{
    Mesh,
    door::in_lane,
    eventually,
    eventually::when,
    letters,
    orders::{self, numbers_at},
    path, program,
    random::Random,
};
use tokio::time::Instant;

const TREE: [&str; 5] = ["global", "s1", "s1/c1", "s1/c1/n1", "s1/c1/n2"];
const NODE: &str = "s1/c1/n1";
const ARRIVES_WITHIN: Duration = Duration::from_secs(60);

/// Asks for an order; the answer.
async fn send(mesh: &Mesh, at: &str, subject: &str, headers: HeaderMap, body: Value) -> Value {
    orders::send(&mesh.client(at).await, subject, headers, &body).await
}

fn with(pairs: &[(&str, &str)]) -> HeaderMap {
    pairs.iter().fold(HeaderMap::new(), |mut headers, (name, value)| {
        headers.insert(*name, *value);
        headers
    })
}

/// What applications of this level hear on commands.
async fn listen(mesh: &Mesh, at: &str) -> Subscriber {
    let client = mesh.client(at).await;
    let heard = client.subscribe("lucent.commands.>").await.unwrap();
    // So that the server has it before anybody sends.
    client.request("$JS.API.INFO", "".into()).await.unwrap();
    heard
}

async fn next(heard: &mut Subscriber) -> Message {
    tokio::time::timeout(ARRIVES_WITHIN, heard.next()).await.expect("a command is said").unwrap()
}

/// All that was reported of orders, as it lies at global.
async fn reports(mesh: &Mesh) -> Vec<OrderReport> {
    let js = jetstream::new(mesh.client("global").await);
    let stream = js.get_stream("HIERARCHY").await.unwrap();
    let config = pull::OrderedConfig {
        name: Some(format!("look-{}", uuid::Uuid::new_v4().simple())),
        ..Default::default()
    };
    let mut messages = stream.create_consumer(config).await.unwrap().messages().await.unwrap();
    let mut reports = Vec::new();
    while let Ok(Some(Ok(message))) = tokio::time::timeout(Duration::from_millis(500), messages.next()).await
    {
        match Parsed::parse(&message.payload) {
            Ok(envelope) => {
                let batch = Batch::read(&envelope).unwrap();
                reports.extend(
                    batch.events.iter().filter_map(|event| serde_json::from_slice(&event.bytes()).ok()),
                );
            }
            Err(_) => reports.extend(serde_json::from_slice::<OrderReport>(&message.payload)),
        }
        if message.info().unwrap().pending == 0 {
            break;
        }
    }
    reports
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_is_said_where_it_is_for_with_its_headers_and_a_report_goes_up() {
    let mesh = Mesh::start(&TREE).await;
    let (mut at_node, mut at_other) = (listen(&mesh, NODE).await, listen(&mesh, "s1/c1/n2").await);
    let body = json!({ "halt": ["ETH-USDC"] });
    let headers = with(&[("Lucent-Priority", "critical"), ("Trace-Id", "4bf92f35")]);
    let sent = Instant::now();
    let answer = send(&mesh, "global", "node.s1.c1.n1.commands.trading.halt", headers, body.clone()).await;
    let heard = next(&mut at_node).await;
    println!("said at the node {:.1?} after it was sent at global", sent.elapsed());
    assert_eq!(heard.subject.as_str(), "lucent.commands.trading.halt");
    assert_eq!(serde_json::from_slice::<Value>(&heard.payload).unwrap(), body);
    let header = |name: &str| heard.headers.as_ref().unwrap().get(name).unwrap().as_str().to_owned();
    assert_eq!((header("Trace-Id"), header("Lucent-Origin")), ("4bf92f35".into(), "global".into()));
    assert_eq!(header("Lucent-Order"), answer["order"].as_str().unwrap());
    assert_eq!(header("Lucent-Expires"), answer["expires"].as_str().unwrap());

    let report = eventually!(ARRIVES_WITHIN, {
        let reports = reports(&mesh).await;
        reports.first().cloned().ok_or("no report")
    });
    assert_eq!((report.fate, report.at, report.author), (Fate::Said, path(NODE), path("global")));
    assert_eq!(report.order.to_string(), header("Lucent-Order"));

    // A whole subtree, and only once each; the one that was not meant before hears it as its first.
    send(&mesh, "s1", "cluster.s1.c1.all.commands.cache.drop", HeaderMap::new(), json!({})).await;
    for heard in [&mut at_node, &mut at_other] {
        assert_eq!(next(heard).await.subject.as_str(), "lucent.commands.cache.drop");
    }
    send(&mesh, "global", "global.all.commands.last", HeaderMap::new(), json!({})).await;
    for heard in [&mut at_node, &mut at_other] {
        assert_eq!(next(heard).await.subject.as_str(), "lucent.commands.last");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_wait_for_a_child_that_is_away_and_those_whose_time_is_up_are_never_said_and_reported() {
    let mut mesh = Mesh::start(&TREE).await;
    let mut heard = listen(&mesh, NODE).await;
    mesh.kill_both("s1/c1").await;
    let order = "node.s1.c1.n1.commands.n";
    for number in 1..=20 {
        let headers = if number % 2 == 0 { with(&[("Lucent-Expires-In", "2")]) } else { HeaderMap::new() };
        let answer = send(&mesh, "global", order, headers, json!({ "number": number })).await;
        assert!(answer["error"].is_null(), "{answer}");
    }
    // Asked twice under one name it is one order.
    let named = with(&[("Nats-Msg-Id", "once")]);
    let once = send(&mesh, "global", order, named.clone(), json!({ "number": 21 })).await;
    assert_eq!(send(&mesh, "global", order, named, json!({ "number": 21 })).await["order"], once["order"]);
    eventually!(ARRIVES_WITHIN, {
        let expired = reports(&mesh).await.into_iter().filter(|report| report.fate == Fate::Expired).count();
        when(expired == 10, expired)
    });
    mesh.start_again("s1/c1").await;
    let mut numbers = Vec::new();
    while numbers.len() < 11 {
        let body: Value = serde_json::from_slice(&next(&mut heard).await.payload).unwrap();
        numbers.push(body["number"].as_u64().unwrap());
    }
    assert_eq!(numbers, (1..=21).step_by(2).collect::<Vec<_>>());
    eventually!(ARRIVES_WITHIN, {
        let waiting = mesh.numbers("s1").await.value("lucent_orders_waiting");
        when(waiting == 0.0, waiting)
    });
    let of_site = reports(&mesh).await.into_iter().filter(|report| report.fate == Fate::Expired);
    assert!(of_site.clone().count() == 10 && of_site.clone().all(|report| report.at == path("s1")));
    assert!(of_site.into_iter().all(|report| report.waited_for == Some(path("s1/c1"))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_are_said_once_and_in_order_while_agents_and_servers_on_their_way_are_killed() {
    let mut mesh = Mesh::start(&TREE).await;
    let mut random = Random::seeded();
    let mut number = 0;
    for round in 0..8 {
        let victim = ["s1", "s1/c1", NODE, "global"][round % 4];
        for _ in 0..30 {
            number += 1;
            let name = format!("order-{number}");
            let body = json!({ "number": number });
            let headers = with(&[("Nats-Msg-Id", &name)]);
            let answer = send(&mesh, "global", "node.s1.c1.n1.commands.n", headers, body).await;
            assert!(answer["error"].is_null(), "{answer}");
        }
        tokio::time::sleep(random.millis(0..300)).await;
        match round {
            0..4 => {
                mesh.kill_agent(&path(victim)).await;
                mesh.start_again(victim).await;
            }
            4..7 => drop(mesh.kill_server(victim)),
            _ => {
                mesh.kill_both(victim).await;
                mesh.start_again(victim).await;
            }
        }
    }
    let expected: Vec<u64> = (1..=number).collect();
    eventually!(ARRIVES_WITHIN, {
        let numbers = numbers_at(&mesh, NODE).await;
        when(numbers.len() >= expected.len(), numbers.len())
    });
    assert_eq!(numbers_at(&mesh, NODE).await, expected);
    // What all of them had is not kept on the way but for the newest.
    for at in ["global", "s1", "s1/c1"] {
        eventually!(ARRIVES_WITHIN, {
            let mut stream = jetstream::new(mesh.client(at).await).get_stream("ORDERS").await.unwrap();
            let left = stream.info().await.unwrap().state.messages;
            when(left <= 1, format!("{left} at {at}"))
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_sends_an_order_and_is_told_what_became_of_it() {
    let mut mesh = Mesh::start(&TREE).await;
    let send = async |mesh: &Mesh, args: &[&str]| {
        let state = mesh.agent(&path("global")).state.display().to_string();
        let all = [&["send", "--state-dir", &state, "--json"], args].concat();
        program::run(&mut program::agent_command(all), ARRIVES_WITHIN).await
    };
    mesh.kill_both("s1").await;
    let late = send(&mesh, &["--to", NODE, "--expires", "1s", "--wait", "30s", "commands.a"]).await;
    assert_eq!(late.code, Some(1), "{}", late.stderr);
    let given: Value = serde_json::from_str(&late.stdout).unwrap();
    assert_eq!(
        (given["report"]["fate"].as_str(), given["report"]["at"].as_str()),
        (Some("expired"), Some("global"))
    );
    mesh.start_again("s1").await;

    let sent =
        send(&mesh, &["--to", NODE, "--wait", "30s", "commands.trading.halt", r#"{"why":"drill"}"#]).await;
    assert_eq!(sent.code, Some(0), "{}", sent.stderr);
    let given: Value = serde_json::from_str(&sent.stdout).unwrap();
    assert_eq!(
        (given["report"]["fate"].as_str(), given["report"]["at"].as_str()),
        (Some("said"), Some(NODE))
    );

    let refused = send(&mesh, &["--to", NODE, "jobs.x"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stdout);
    assert!(refused.stderr.contains("the order is refused: wrong-subject"), "{}", refused.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_is_more_urgent_goes_first() {
    let mut mesh = Mesh::start(&TREE).await;
    let mut heard = listen(&mesh, NODE).await;
    mesh.kill_both("s1").await;
    for (number, lane) in [(1, Lane::Bulk), (2, Lane::Normal), (3, Lane::Critical), (4, Lane::Critical)] {
        let body = json!({ "number": number });
        send(&mesh, "global", "node.s1.c1.n1.commands.n", in_lane(lane), body).await;
    }
    mesh.start_again("s1").await;
    let mut numbers = Vec::new();
    for _ in 0..4 {
        let body: Value = serde_json::from_slice(&next(&mut heard).await.payload).unwrap();
        numbers.push(body["number"].as_u64().unwrap());
    }
    assert_eq!(numbers, [3, 4, 2, 1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_cannot_be_given_is_refused_with_its_reason_and_buried() {
    let mesh = Mesh::start(&TREE).await;
    for (at, subject, reason) in [
        ("global", "node.s1.c1.n1.hierarchy.node.n1", "wrong-subject"),
        ("global", "site.s9.commands.a", "unroutable"),
        ("s1", "global.all.commands.a", "wrong-subject"),
        (NODE, "node.s1.c1.n2.commands.a", "wrong-subject"),
    ] {
        let answer = send(&mesh, at, subject, HeaderMap::new(), json!({})).await;
        let description = answer["error"]["description"].as_str().unwrap_or_default().to_owned();
        assert!(description.starts_with(reason), "{subject}: {answer}");
        eventually!(ARRIVES_WITHIN, {
            let letters = letters::all(&mesh, at).await;
            when(letters.iter().any(|letter| letter.reason() == reason), letters.len())
        });
    }
}
