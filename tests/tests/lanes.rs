//! The door and the lanes: who is answered what and when, which event takes which lane, and what is urgent
//! goes first.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::{Client, ConnectOptions, HeaderMap, RequestErrorKind, jetstream};
use hierarchy::{Lane, Level, envelope::MAX_EVENT_BYTES, loss::LossReason};
use serde_json::json;
use tests::{
    Mesh, Observer, burst,
    door::{Answer, ask, in_lane},
    eventually,
    eventually::{LOOK_EVERY, when},
    letters, losses,
    observer::Faults,
    path,
    publisher::Ledger,
    random::Random,
};
use tokio::{sync::watch, task::JoinSet, time::Instant};

const CHAIN: [&str; 4] = ["global", "s1", "s1/c1", NODE];
const NODE: &str = "s1/c1/n1";
const SOON: Duration = Duration::from_secs(30);

fn none() -> HeaderMap {
    HeaderMap::new()
}

/// What has arrived from the node's applications in a lane: numbers and texts, in the order of arrival.
fn arrived(observer: &Observer, lane: Lane) -> Vec<(u64, String)> {
    let text = |data: &[u8]| String::from_utf8_lossy(data).into_owned();
    let seen = observer.seen();
    let in_lane = seen.of(NODE).into_iter().filter(|event| event.lane == lane);
    in_lane.map(|event| (event.seq, text(&event.data))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_at_the_door_is_answered_with_the_lane_and_number_under_which_the_event_arrives() {
    let mesh = Mesh::start(&CHAIN).await;
    let observer = Observer::start(&mesh).await;
    let client = mesh.client(NODE).await;
    for lane in Lane::ALL {
        let mut told = Vec::new();
        for number in 1..=5 {
            let text = format!("{lane} {number}");
            let answer = ask(&client, "hierarchy.node.n1.x", in_lane(lane), text.clone()).await;
            let stream = format!("LANE_{}", lane.as_str().to_uppercase());
            let level = Some(Level::Node);
            assert_eq!(answer, Answer { stream, seq: answer.seq, level, dropped: None, error: None });
            told.push((answer.seq, text));
        }
        eventually!(SOON, when(arrived(&observer, lane).len() >= told.len(), arrived(&observer, lane)));
        assert_eq!(arrived(&observer, lane), told);
    }
    // In the lane that the agent itself does not use the numbers begin with 1.
    assert_eq!(arrived(&observer, Lane::Bulk)[0].0, 1);

    // Client libraries take the answer for JetStream's.
    let js = jetstream::new(client);
    let sent = js.publish("lucent.publish.hierarchy.node.n1.x", "by a library".into()).await.unwrap();
    let ack = sent.await.unwrap();
    assert_eq!(ack.stream, "LANE_NORMAL");
    let told = (ack.sequence, "by a library".to_owned());
    eventually!(
        SOON,
        when(arrived(&observer, Lane::Normal).contains(&told), arrived(&observer, Lane::Normal))
    );
    assert_eq!(observer.seen().unverified, Vec::<String>::new());
}

/// So many at once, each of which publishes the next event when it is answered for the last.
async fn a_crowd_at_the_door(sync: &str) {
    const PUBLISHERS: u64 = 64;
    const EACH: u64 = 40;
    let mesh = Mesh::start_with(&CHAIN, |at, config| {
        if *at == path(NODE) {
            *config = config.replace("[nats]\n", &format!("[nats]\nsync = {sync:?}\n"));
        }
    })
    .await;
    let observer = Observer::start(&mesh).await;
    let begun = Instant::now();
    let mut publishers = JoinSet::new();
    for publisher in 0..PUBLISHERS {
        let client = mesh.client(NODE).await;
        publishers.spawn(async move {
            let mut told = Vec::new();
            for number in 1..=EACH {
                let text = format!("{publisher} {number}");
                let answer = ask(&client, "hierarchy.node.n1.x", none(), text.clone()).await;
                assert_eq!(answer.error, None);
                told.push((answer.seq, text));
            }
            told
        });
    }
    let told = publishers.join_all().await;
    println!("sync {sync}: {} requests in {:?}", PUBLISHERS * EACH, begun.elapsed());
    for told in &told {
        assert!(told.is_sorted(), "a publisher's events are numbered in its order: {told:?}");
    }
    let mut told = told.concat();
    told.sort();
    eventually!(SOON, {
        let arrived = arrived(&observer, Lane::Normal).len();
        when(arrived >= told.len(), arrived)
    });
    assert!(arrived(&observer, Lane::Normal) == told, "not what was told, once and in order");
    assert_eq!(observer.seen().unverified, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_many_publishers_ask_at_once_arrives_once_and_in_the_order_that_they_were_told() {
    a_crowd_at_the_door("default").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_many_publishers_ask_at_once_arrives_once_where_each_write_is_synced_to_disk_too() {
    a_crowd_at_the_door("always").await;
}

/// Asks again until there is an answer. The event's number, and whether it was asked for more than once.
async fn ask_until_answered(client: &Client, text: &str) -> (u64, bool) {
    let mut again = false;
    loop {
        let subject = "lucent.publish.hierarchy.node.n1.x";
        let request = client.request(subject, text.to_owned().into());
        match tokio::time::timeout(Duration::from_secs(2), request).await {
            Ok(Ok(answer)) => {
                let answer: Answer = serde_json::from_slice(&answer.payload).unwrap();
                assert_eq!(answer.error, None);
                return (answer.seq, again);
            }
            // That nobody listens means that nobody heard.
            Ok(Err(error)) if error.kind() == RequestErrorKind::NoResponders => {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            _ => again = true,
        }
    }
}

/// An answer is a promise: what was answered is in the store, whatever becomes of the agent and its server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_door_has_answered_arrives_although_agent_and_server_are_killed_under_its_publishers() {
    const PUBLISHERS: u64 = 8;
    const KILLS: u64 = 4;
    let mut mesh = Mesh::start(&CHAIN).await;
    let observer = Observer::start(&mesh).await;
    let address = mesh.addresses(&path(NODE)).unwrap().nats;
    let (stop, stopped) = watch::channel(false);
    let answers = Arc::new(AtomicU64::new(0));
    let mut publishers = JoinSet::new();
    for publisher in 0..PUBLISHERS {
        let options = ConnectOptions::new().reconnect_delay_callback(|_| Duration::from_millis(100));
        let client = options.connect(&address).await.unwrap();
        let (stopped, answers) = (stopped.clone(), answers.clone());
        publishers.spawn(async move {
            let mut told = Vec::new();
            while !*stopped.borrow() {
                let text = format!("{publisher} {}", told.len());
                let (seq, again) = ask_until_answered(&client, &text).await;
                answers.fetch_add(1, Ordering::Relaxed);
                told.push((text, seq, again));
            }
            told
        });
    }
    let mut random = Random::seeded();
    for kill in 1..=KILLS {
        let enough = answers.load(Ordering::Relaxed) + 500;
        eventually!(SOON, when(answers.load(Ordering::Relaxed) > enough, &answers));
        tokio::time::sleep(random.millis(0..200)).await;
        match kill % 2 {
            0 => mesh.kill_agent(&path(NODE)).await,
            _ => mesh.kill_both(NODE).await,
        }
        mesh.start_again(NODE).await;
    }
    stop.send_replace(true);
    let told = publishers.join_all().await.concat();
    let again = told.iter().filter(|(.., again)| *again).count();
    println!("{} answers, {again} of them to repeated requests", told.len());

    let missing = |arrived: &BTreeMap<String, Vec<u64>>| {
        told.iter().filter(|(text, ..)| !arrived.contains_key(text)).count()
    };
    let by_text = eventually!(Duration::from_secs(60), {
        let mut by_text = BTreeMap::<String, Vec<u64>>::new();
        for (seq, text) in arrived(&observer, Lane::Normal) {
            by_text.entry(text).or_default().push(seq);
        }
        when(missing(&by_text) == 0, missing(&by_text)).map(|()| by_text)
    });
    for (text, seq, again) in &told {
        let arrived = &by_text[text];
        assert!(arrived.contains(seq), "{text} was told {seq} and arrived under {arrived:?}");
        assert!(*again || arrived.len() == 1, "{text} was asked for once and arrived under {arrived:?}");
    }
    let nothing_published = Ledger::default();
    assert_eq!(observer.seen().faults(&path(NODE), &nothing_published), Faults::default());
    assert_eq!(observer.seen().unverified, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_door_says_what_it_refuses_and_why_and_keeps_a_dead_letter() {
    let mesh = Mesh::start(&CHAIN).await;
    let observer = Observer::start(&mesh).await;
    let client = mesh.client(NODE).await;
    let large = "x".repeat(MAX_EVENT_BYTES + 1);
    let cases = [
        ("hierarchy.node.n2.x", "as n2", "wrong-subject", "its own agent"),
        ("hierarchy.cluster.c1.x", "as c1", "wrong-subject", "its own agent"),
        ("hierarchy.global.x", "as global", "wrong-subject", "its own agent"),
        ("events.x", "not of the hierarchy", "wrong-subject", "its own agent"),
        ("hierarchy.node.n1.agent", "as the agent", "wrong-subject", "`agent`"),
        ("hierarchy.node.n1.agent.loss", "a loss", "wrong-subject", "`agent`"),
        ("hierarchy.node.n1.x", &large, "oversized", "1 MiB"),
    ];
    for (subject, data, reason, because) in cases {
        let Answer { stream, seq, level, dropped, error } =
            ask(&client, subject, none(), data.to_owned()).await;
        assert_eq!((stream.as_str(), seq, level, dropped), ("", 0, None, None), "{subject}");
        let error = error.unwrap_or_else(|| panic!("{subject} was taken"));
        assert_eq!(error.code, 400, "{subject}");
        let description = error.description;
        let named = description.starts_with(&format!("{reason}: ")) && description.contains(because);
        assert!(named, "{subject}: {description}");
        let letter = eventually!(SOON, {
            let letters = letters::all(&mesh, NODE).await;
            let kept = &data.as_bytes()[..data.len().min(64 * 1024)];
            let found = letters.into_iter().find(|letter| letter.bytes == kept);
            found.ok_or(format!("no letter of what was refused on {subject}"))
        });
        assert_eq!(letter.reason(), reason);
        assert_eq!(letter.header("Lucent-Origin"), NODE);
        assert_eq!(letter.header("Lucent-Subject"), format!("lucent.publish.{subject}"));
        assert_eq!(letter.header("Lucent-Bytes"), data.len().to_string());
        assert!(description.ends_with(letter.header("Lucent-Detail")), "{description}");
    }
    // A library's JetStream publish fails with the same words.
    let js = jetstream::new(client.clone());
    let refused = js.publish("lucent.publish.hierarchy.node.n2.x", "x".into()).await.unwrap().await;
    assert!(refused.as_ref().is_err_and(|error| error.to_string().contains("wrong-subject")), "{refused:?}");

    let taken = ask(&client, "hierarchy.node.n1.x", none(), "x".repeat(MAX_EVENT_BYTES)).await;
    assert_eq!(taken.error, None, "the largest event that is allowed");
    eventually!(
        SOON,
        when(arrived(&observer, Lane::Normal).len() == 1, arrived(&observer, Lane::Normal).len())
    );
    let of_all: usize =
        observer.seen().events.keys().map(|path| observer.seen().of(&path.to_string()).len()).sum();
    assert_eq!(of_all, 1, "and nothing else of applications, from whomever");
}

/// What comes behind it in its lane says nothing of an event that was kept back on the way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_the_cluster_drops_is_not_answered_as_durable_at_global() {
    let mesh = Mesh::start_with(&CHAIN, |at, config| {
        if *at == path("s1/c1") {
            let rule = "\n[[policy]]\nsubject = \"lucent.hierarchy.node.*.local\"\naction = \"drop\"\n";
            config.push_str(rule);
        }
    })
    .await;
    let client = mesh.client(NODE).await;
    let mut headers = in_lane(Lane::Bulk);
    headers.insert("Lucent-Ack-Level", "global");
    headers.insert("Lucent-Ack-Within", "5");
    let dropped = ask(&client, "hierarchy.node.n1.local", headers.clone(), "dropped");
    let later = async {
        eventually!(SOON, {
            let kept = mesh.numbers("s1/c1").await.value("lucent_lost_events_total{reason=\"policy\"}");
            when(kept > 0.0, kept)
        });
        ask(&client, "hierarchy.node.n1.x", headers.clone(), "kept").await
    };
    let (dropped, later) = tokio::join!(dropped, later);
    assert_eq!(later.level, Some(Level::Global), "{later:?}");
    assert_ne!(dropped.level, Some(Level::Global), "{dropped:?}");
    assert!(dropped.error.is_some(), "{dropped:?}");
}

/// An event from the inbox may wait for company; whoever waits for an answer does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_a_policy_drops_is_answered_at_once_and_does_not_arrive() {
    let mesh = Mesh::start_with(&CHAIN, |at, config| {
        if *at == path(NODE) {
            config.push_str("\n[link]\nlinger = \"10s\"\n");
            config.push_str("\n[[policy]]\nsubject = \"lucent.hierarchy.*.*.debug.>\"\naction = \"drop\"\n");
        }
    })
    .await;
    let observer = Observer::start(&mesh).await;
    let client = mesh.client(NODE).await;
    let bulk = || in_lane(Lane::Bulk);
    let begun = Instant::now();
    for number in 1..=3 {
        let answer = ask(&client, "hierarchy.node.n1.debug.x", bulk(), "dropped").await;
        let dropped = Some("policy".to_owned());
        assert_eq!(
            answer,
            Answer { stream: "LANE_BULK".into(), seq: number, level: None, dropped, error: None }
        );
    }
    let answer = ask(&client, "hierarchy.node.n1.x", bulk(), "kept").await;
    assert_eq!((answer.seq, answer.dropped), (4, None));
    assert!(begun.elapsed() < Duration::from_secs(5), "answered after {:?}", begun.elapsed());
    eventually!(SOON, when(!arrived(&observer, Lane::Bulk).is_empty(), "nothing"));
    assert_eq!(arrived(&observer, Lane::Bulk), [(4, "kept".to_owned())]);
    eventually!(SOON, {
        losses::of(&mesh, NODE, Lane::Bulk).await.and_then(|totals| {
            let expected = (totals.published, totals.arrived, totals.policy) == (4, 1, 3);
            when(expected && losses::is_settled(&totals), totals)
        })
    });
}

const RULES: &str = r#"
[[priority]]
subject = "lucent.hierarchy.*.*.alerts.>"
lane = "critical"

[[priority]]
subject = "lucent.hierarchy.*.*.logs.>"
lane = "bulk"
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_events_lane_is_its_publishers_word_then_its_envelopes_then_the_rules_then_normal() {
    let mut mesh = Mesh::start_with(&CHAIN, |at, config| {
        if *at == path(NODE) {
            config.push_str(RULES);
        }
    })
    .await;
    let observer = Observer::start(&mesh).await;
    mesh.stop_one(&path("s1/c1")).await;
    let client = mesh.client(NODE).await;
    let js = jetstream::new(client.clone());
    let envelope = |priority: &str| json!({ "metadata": { "priority": priority }, "payload": 1 });
    let (critical, normal, bulk) = (Lane::Critical, Lane::Normal, Lane::Bulk);
    let cases = [
        ("ticks", None, json!({}), normal),
        ("ticks", Some("critical"), json!({}), critical),
        ("ticks", Some("bulk"), json!({}), bulk),
        ("ticks", Some("soon"), json!({}), normal),
        ("ticks", None, envelope("critical"), critical),
        ("ticks", None, envelope("bulk"), bulk),
        ("ticks", None, json!({ "priority": "bulk" }), normal),
        ("ticks", Some("bulk"), envelope("critical"), bulk),
        ("alerts.fire", None, json!({}), critical),
        ("alerts", None, json!({}), normal),
        ("logs.x", None, json!({}), bulk),
        ("logs.x", Some("normal"), json!({}), normal),
        ("logs.x", None, envelope("critical"), critical),
        ("logs.x", None, envelope("whatever"), bulk),
    ];
    let mut expected: BTreeMap<Lane, Vec<String>> = BTreeMap::new();
    for (number, (tail, header, mut body, lane)) in cases.into_iter().enumerate() {
        let mut headers = none();
        if let Some(header) = header {
            headers.insert("Lucent-Priority", header);
        }
        for way in ["inbox", "door"] {
            body["case"] = format!("{number} {way} {tail} {header:?}").into();
            let data = body.to_string();
            let subject = format!("hierarchy.node.n1.{tail}");
            if way == "door" {
                let answer = ask(&client, &subject, headers.clone(), data.clone()).await;
                assert_eq!(answer.stream, format!("LANE_{}", lane.as_str().to_uppercase()), "{data}");
            } else {
                let sent = js.publish_with_headers(
                    format!("lucent.{subject}"),
                    headers.clone(),
                    data.clone().into(),
                );
                sent.await.unwrap().await.unwrap();
            }
            expected.entry(lane).or_default().push(data);
        }
    }
    mesh.start_again("s1/c1").await;
    for (lane, mut expected) in expected {
        let mut texts = eventually!(SOON, {
            let texts: Vec<String> = arrived(&observer, lane).into_iter().map(|(_, text)| text).collect();
            when(texts.len() >= expected.len(), &texts).map(|()| texts)
        });
        // What comes through the inbox and what comes through the door have no order among them.
        texts.sort();
        expected.sort();
        assert_eq!(texts, expected, "{lane}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_outage_what_is_critical_arrives_before_the_bulk_that_waited_longer() {
    const EVENTS: u64 = 800;
    const BYTES: usize = 32 * 1024;
    let mut mesh = Mesh::start(&CHAIN).await;
    let observer = Observer::start(&mesh).await;
    let client = mesh.client(NODE).await;
    mesh.stop_one(&path("s1/c1")).await;
    burst::publish(&client, &path(NODE), Lane::Bulk, 1..=EVENTS, BYTES).await;
    let answer = ask(&client, "hierarchy.node.n1.x", in_lane(Lane::Critical), "at once").await;
    assert_eq!(answer.error, None);
    assert!(observer.seen().of(NODE).is_empty());

    mesh.start_again("s1/c1").await;
    let all: Vec<u64> = (1..=EVENTS).collect();
    eventually!(Duration::from_secs(90), {
        let numbers = burst::arrived(&observer.seen(), NODE, Lane::Bulk);
        when(numbers.len() >= all.len(), numbers.len())
    });
    assert_eq!(burst::arrived(&observer.seen(), NODE, Lane::Bulk), all);
    let seen = observer.seen();
    let critical = seen.of(NODE).iter().position(|event| event.data == "at once").unwrap();
    println!("the critical event arrived behind {critical} of {EVENTS} events of bulk");
    assert!(critical < all.len() / 4, "behind {critical} events of bulk");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_critical_lane_refuses_at_the_door_until_the_parent_has_taken_what_waits() {
    const BYTES: usize = 32 * 1024;
    let mut mesh = Mesh::start_with(&CHAIN, |at, config| {
        if *at == path(NODE) {
            config.push_str("\n[lanes]\ncritical_bytes = \"1MiB\"\n");
        }
    })
    .await;
    let observer = Observer::start(&mesh).await;
    let client = mesh.client(NODE).await;
    mesh.stop_one(&path("s1/c1")).await;
    let subject = "hierarchy.node.n1.alarm";
    let mut taken = Vec::new();
    let refused = eventually!(SOON, {
        let text = format!("{} {}", taken.len(), ".".repeat(BYTES));
        let answer = ask(&client, subject, in_lane(Lane::Critical), text.clone()).await;
        if answer.error.is_none() {
            assert_eq!(answer.stream, "LANE_CRITICAL");
            taken.push((answer.seq, text));
        }
        answer.error.ok_or(taken.len())
    });
    assert_eq!(refused.code, 503);
    let description = &refused.description;
    assert!(description.starts_with("lane-full: ") && description.contains("critical"), "{description}");
    let least = (1 << 20) / BYTES / 2;
    assert!(taken.len() > least, "{} events of {BYTES} bytes filled a lane of 1 MiB", taken.len());

    // Nobody can be told any more where the inbox has taken the event: it is kept, and stated lost.
    let js = jetstream::new(client.clone());
    let headers = in_lane(Lane::Critical);
    let sent = js.publish_with_headers("lucent.hierarchy.node.n1.alarm", headers, "too late".into());
    assert_eq!(sent.await.unwrap().await.unwrap().stream, "HIERARCHY");
    let letter = eventually!(SOON, {
        let letters = letters::all(&mesh, NODE).await;
        letters.into_iter().find(|letter| letter.bytes == "too late").ok_or("no letter")
    });
    assert_eq!(letter.reason(), "lane-full");
    // The other lanes have room of their own.
    for lane in [Lane::Normal, Lane::Bulk] {
        assert_eq!(ask(&client, "hierarchy.node.n1.x", in_lane(lane), "taken").await.error, None);
    }

    mesh.start_again("s1/c1").await;
    let answer = eventually!(SOON, {
        let answer = ask(&client, subject, in_lane(Lane::Critical), "again").await;
        when(answer.error.is_none(), &answer).map(|()| answer)
    });
    taken.push((answer.seq, "again".to_owned()));
    eventually!(SOON, {
        let arrived = arrived(&observer, Lane::Critical).len();
        when(arrived >= taken.len(), arrived)
    });
    assert!(arrived(&observer, Lane::Critical) == taken, "what was taken arrives, once and in order");
    eventually!(SOON, {
        losses::of(&mesh, NODE, Lane::Critical).await.and_then(|totals| {
            let lost = losses::lost(&totals, LossReason::Overflow);
            when(lost == 1 && totals.lost_events() == 1 && losses::is_settled(&totals), totals)
        })
    });
}
