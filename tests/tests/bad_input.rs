//! What is malformed, oversized, unsigned, wrongly signed or out of place is refused under its name, counted,
//! and kept for people to look at; and what is right goes on as if nothing had happened.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use futures_util::StreamExt as _;
use hierarchy::{
    ByLane,
    envelope::MAX_EVENT_BYTES,
    link::{ChildMessage, LaneHello, ParentMessage},
    subject::{link_down, link_up},
};
use serde_json::json;
use tests::{
    Mesh, Observer, eventually,
    eventually::when,
    forge,
    letters::{self, Letter},
    mesh::path,
};

const TREE: [&str; 5] = ["global", "s1", "s1/c1", "s1/c1/n1", "s1/c1/n2"];
const SOON: Duration = Duration::from_secs(20);

/// That an event of this node still arrives at global.
async fn an_event_still_passes(mesh: &Mesh, observer: &Observer, node: &str) {
    let id = node.rsplit('/').next().unwrap();
    let data = format!("{{\"still\":\"{}\"}}", uuid::Uuid::new_v4());
    let client = mesh.client(node).await;
    client.publish(format!("lucent.hierarchy.node.{id}.still"), data.clone().into()).await.unwrap();
    client.flush().await.unwrap();
    eventually!(SOON, {
        let seen = observer.seen();
        let arrived = seen.of(node).into_iter().any(|event| event.data == data.as_bytes());
        when(arrived, seen.of(node).len())
    });
    let parent = mesh.status(&path(node)).await.unwrap().parent.unwrap();
    assert!(parent.open, "the link of {node} is up: {parent:?}");
}

/// Waits for a dead letter for this reason with these bytes (or as much of them as is kept).
async fn letter_for(mesh: &Mesh, at: &str, reason: &str, bytes: &[u8]) -> Letter {
    let kept = &bytes[..bytes.len().min(64 * 1024)];
    eventually!(SOON, {
        let letters = letters::all(mesh, at).await;
        let summary: Vec<_> = letters
            .iter()
            .map(|l| (l.reason().to_owned(), l.bytes.len(), l.header("Lucent-Detail").to_owned()))
            .collect();
        let found = letters.into_iter().find(|letter| letter.reason() == reason && letter.bytes == kept);
        found.ok_or(format!("no letter for {reason} with {} bytes, but {summary:?}", kept.len()))
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_application_may_not_say_is_refused_at_its_own_node() {
    let mesh = Mesh::start(&TREE).await;
    let observer = Observer::start(&mesh).await;
    let client = mesh.client("s1/c1/n1").await;
    let large = vec![b'x'; MAX_EVENT_BYTES + 1];
    let cases: [(&str, &str, &[u8]); 5] = [
        ("lucent.hierarchy.node.n2.ticks", "wrong-subject", b"{\"i am\":\"n2\"}"),
        ("lucent.hierarchy.cluster.c1", "wrong-subject", b"{\"i am\":\"c1\"}"),
        ("lucent.hierarchy.global.news", "wrong-subject", b"{\"i am\":\"the core\"}"),
        ("lucent.hierarchy.node.N1", "wrong-subject", b"{\"i am\":\"nobody\"}"),
        ("lucent.hierarchy.node.n1.ticks", "oversized", &large),
    ];
    for (subject, reason, bytes) in cases {
        let before = mesh.numbers("s1/c1/n1").await.refused(reason);
        client.publish(subject, Bytes::copy_from_slice(bytes)).await.unwrap();
        client.flush().await.unwrap();
        let letter = letter_for(&mesh, "s1/c1/n1", reason, bytes).await;
        assert_eq!(letter.subject, "lucent.deadletter.s1.c1.n1");
        assert_eq!(letter.header("Lucent-Origin"), "s1/c1/n1");
        assert_eq!(letter.header("Lucent-Subject"), subject);
        assert_eq!(letter.header("Lucent-Bytes"), bytes.len().to_string());
        let after = mesh.numbers("s1/c1/n1").await.refused(reason);
        assert_eq!(after, before + 1, "{reason} of {subject}");
    }
    an_event_still_passes(&mesh, &observer, "s1/c1/n1").await;
    let smuggled: Vec<_> =
        observer.seen().events.into_values().flatten().filter(|e| e.data.starts_with(b"{\"i am\"")).collect();
    assert_eq!(smuggled, [], "refused events at global");
}

/// The largest event that is allowed, and one that is not JSON, right up to the bound.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_of_exactly_one_mebibyte_arrives_to_the_letter() {
    let mesh = Mesh::start(&TREE).await;
    let observer = Observer::start(&mesh).await;
    let client = mesh.client("s1/c1/n1").await;
    let binary: Vec<u8> = (0..MAX_EVENT_BYTES).map(|i| (i * 31 % 251) as u8).collect();
    let json = format!("\"{}\"", "j".repeat(MAX_EVENT_BYTES - 2)).into_bytes();
    for data in [&binary, &json] {
        client.publish("lucent.hierarchy.node.n1.large", data.clone().into()).await.unwrap();
    }
    client.flush().await.unwrap();
    let large = eventually!(SOON, {
        let seen = observer.seen();
        let large: Vec<Bytes> = seen.of("s1/c1/n1").into_iter().map(|event| event.data.clone()).collect();
        when(large.len() == 2, large.len()).map(|()| large)
    });
    assert!(large[0] == binary && large[1] == json, "the bytes differ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subject_that_no_envelope_can_carry_is_refused_and_takes_no_other_event_with_it() {
    let mesh = Mesh::start(&TREE).await;
    let observer = Observer::start(&mesh).await;
    let client = mesh.client("s1/c1/n1").await;
    let odd = [
        "lucent.hierarchy.node.n1.a\"b",
        "lucent.hierarchy.node.n1.a\\b",
        "lucent.hierarchy.node.n1.a\u{1}b",
    ];
    for (number, subject) in odd.into_iter().enumerate() {
        client.publish(subject, format!("{{\"odd\":{number}}}").into()).await.unwrap();
        client
            .publish("lucent.hierarchy.node.n1.plain", format!("{{\"plain\":{number}}}").into())
            .await
            .unwrap();
    }
    client.flush().await.unwrap();
    eventually!(SOON, {
        let seen = observer.seen();
        let plain: Vec<_> = seen.of("s1/c1/n1").iter().map(|e| (e.subject.clone(), e.data.clone())).collect();
        when(plain.len() == odd.len() && plain.iter().all(|(s, _)| s.ends_with(".plain")), plain)
    });
    eventually!(SOON, {
        let (node, cluster) = (mesh.numbers("s1/c1/n1").await, mesh.numbers("s1/c1").await);
        let refused =
            ["wrong-subject", "malformed", "bad-payload"].map(|r| node.refused(r) + cluster.refused(r));
        when(refused.iter().sum::<u64>() == odd.len() as u64, refused)
    });
    an_event_still_passes(&mesh, &observer, "s1/c1/n1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_link_messages_are_refused_by_name_and_leave_the_link_alone() {
    let mesh = Mesh::start(&TREE).await;
    let observer = Observer::start(&mesh).await;
    let (n1, n2) = (path("s1/c1/n1"), path("s1/c1/n2"));
    let own = forge::signer(&mesh.plan.authority.issue(&n1).unwrap(), &n1);
    let siblings = forge::signer(&mesh.plan.authority.issue(&n2).unwrap(), &n2);
    let stranger = agent::dev::identities::DevAuthority::new().unwrap();
    let strangers = forge::signer(&stranger.issue(&n1).unwrap(), &n1);
    let subject = link_up(&n1);

    let credit = ChildMessage::Credit { number: 1, offers: Vec::new(), valid_for_ms: 0 };
    let sound = forge::link_message(&own, &subject, &credit, &[]);
    let text = String::from_utf8(sound.to_vec()).unwrap();
    let slot = text.rfind("\"signature\":\"").unwrap() + "\"signature\":\"".len();
    let with_slot =
        |signature: &str| Bytes::from(format!("{}{signature}{}", &text[..slot], &text[slot + 86..]));
    let mut flipped = text.as_bytes()[slot..slot + 86].to_vec();
    flipped[20] = if flipped[20] == b'x' { b'y' } else { b'x' };
    let batch = forge::batch(&own, "lucent.hierarchy.node.n1", 1, &json!({}));
    let mut cut_short =
        forge::link_message(&own, &subject, &forge::frame(1, 0, std::slice::from_ref(&batch)), &[batch])
            .to_vec();
    cut_short.pop();
    let no_message = text.replace("{\"credit\":", "{\"kredit\":");
    let other_type = forge::link_message(&own, &link_up(&n2), &credit, &[]);

    let mine = Some(own.binding().to_json());
    let cases: [(&str, Bytes, Option<String>); 14] = [
        ("malformed", "garbage".into(), None),
        ("malformed", Bytes::new(), None),
        ("malformed", "{\"messageId\":1}".into(), None),
        ("malformed", cut_short.into(), mine.clone()),
        ("oversized", vec![b'{'; 2 << 20].into(), None),
        (
            "unsupported-version",
            text.replace("\"version\":\"1.0\"", "\"version\":\"9.0\"").into(),
            mine.clone(),
        ),
        ("bad-slot", with_slot(&"A".repeat(86)), mine.clone()),
        ("bad-signature", with_slot(std::str::from_utf8(&flipped).unwrap()), mine.clone()),
        ("bad-signature", text.replace("\"number\":1", "\"number\":2").into(), mine.clone()),
        ("bad-signature", no_message.into(), mine.clone()),
        (
            "identity-mismatch",
            forge::link_message(&siblings, &subject, &credit, &[]),
            Some(siblings.binding().to_json()),
        ),
        (
            "untrusted-issuer",
            forge::link_message(&strangers, &subject, &credit, &[]),
            Some(strangers.binding().to_json()),
        ),
        ("wrong-subject", other_type, mine.clone()),
        ("bad-binding", sound.clone(), Some("{\"no\":\"binding\"}".into())),
    ];

    let up = mesh.client_as("s1/c1/n1", "up").await;
    for (reason, bytes, binding) in cases {
        let before = mesh.numbers("s1/c1").await.refused(reason);
        let mut headers = HeaderMap::new();
        if let Some(binding) = binding {
            headers.insert("Lucent-Binding", binding);
        }
        up.publish_with_headers(subject.clone(), headers, bytes.clone()).await.unwrap();
        up.flush().await.unwrap();
        let letter = letter_for(&mesh, "s1/c1", reason, &bytes).await;
        assert_eq!(letter.subject, "lucent.deadletter.s1.c1.n1", "{reason}");
        assert_eq!(letter.header("Lucent-Subject"), subject, "{reason}");
        assert_eq!(letter.header("Lucent-Bytes"), bytes.len().to_string(), "{reason}");
        let after = mesh.numbers("s1/c1").await.refused(reason);
        assert_eq!(after, before + 1, "{reason}");
    }
    an_event_still_passes(&mesh, &observer, "s1/c1/n1").await;
    an_event_still_passes(&mesh, &observer, "s1/c1/n2").await;
    let refused = mesh.status(&path("s1/c1")).await.unwrap().refused;
    assert_eq!(refused, 14, "`agent status` tells of all of them");

    // A flood is counted in full and kept in part.
    const FLOOD: u64 = 5_000;
    let before = mesh.numbers("s1/c1").await;
    for number in 0..FLOOD {
        up.publish(subject.clone(), format!("flood {number}").into()).await.unwrap();
    }
    up.flush().await.unwrap();
    let after = eventually!(SOON, {
        let now = mesh.numbers("s1/c1").await;
        let counted = now.refused("malformed") - before.refused("malformed");
        when(counted == FLOOD, counted).map(|()| now)
    });
    let dropped = after.value("lucent_dead_letters_dropped_total") as u64;
    assert!(dropped > FLOOD / 2, "only {dropped} of {FLOOD} letters were dropped");
    an_event_still_passes(&mesh, &observer, "s1/c1/n1").await;
    assert_eq!(observer.seen().unverified, Vec::<String>::new());
}

/// A child that has gone bad holds a true identity: it can open a session, but not speak for others in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_of_a_child_that_speak_for_others_are_refused_one_by_one_and_named_in_the_receipt() {
    let mut mesh = Mesh::start(&TREE).await;
    let observer = Observer::start(&mesh).await;
    let (n1, n2) = (path("s1/c1/n1"), path("s1/c1/n2"));
    // Its agent is gone, its server goes on: the link is the impostor's.
    mesh.kill_agent(&n2).await;
    let own = forge::signer(&mesh.plan.authority.issue(&n2).unwrap(), &n2);
    let siblings = forge::signer(&mesh.plan.authority.issue(&n1).unwrap(), &n1);
    let up = mesh.client_as("s1/c1/n2", "up").await;
    let mut answers = up.subscribe(link_down(&n2)).await.unwrap();
    let mut next_answer = async || {
        let answer = tokio::time::timeout(SOON, answers.next()).await.expect("the parent answers").unwrap();
        let envelope = hierarchy::envelope::Parsed::parse(&answer.payload).unwrap();
        serde_json::from_str::<ParentMessage>(envelope.payload().get()).unwrap()
    };
    let session = 4711;
    let hello = ChildMessage::Hello {
        session,
        lanes: ByLane::new(|_| LaneHello { incarnation: u64::MAX >> 12, start: 0, last: 0 }),
        version: "0.1.0".into(),
    };
    let mut headers = HeaderMap::new();
    headers.insert("Lucent-Binding", own.binding().to_json());
    let bytes = forge::link_message(&own, &link_up(&n2), &hello, &[]);
    up.publish_with_headers(link_up(&n2), headers, bytes).await.unwrap();
    loop {
        match next_answer().await {
            ParentMessage::Welcome { session: of, lanes, .. } if of == session => {
                break assert_eq!(lanes.normal.cursor, 0);
            }
            _ => {}
        }
    }

    let ours = "lucent.hierarchy.node.n2";
    let batches = [
        forge::batch(&own, ours, 1, &json!({ "sound": 1 })),
        forge::batch(&own, "lucent.hierarchy.node.n1", 2, &json!({ "i am": "n1" })),
        forge::batch(&siblings, "lucent.hierarchy.node.n1", 3, &json!({ "i am": "n1" })),
        forge::batch(&own, ours, 2, &json!({ "sound": 2 })),
    ];
    let mut message = forge::frame(session, 0, &batches);
    let ChildMessage::Frame { bindings, .. } = &mut message else { unreachable!() };
    bindings.push(siblings.binding().clone());
    let bytes = forge::link_message(&own, &link_up(&n2), &message, &batches);
    up.publish(link_up(&n2), bytes).await.unwrap();

    let mut refusals = Vec::new();
    loop {
        if let ParentMessage::Ack { session: of, cursor, refused, .. } = next_answer().await
            && of == session
        {
            refusals.extend(refused.into_iter().map(|parcel| (parcel.last, parcel.reason.name())));
            if cursor == batches.len() as u64 {
                break;
            }
        }
    }
    assert_eq!(refusals, [(2, "wrong-subject"), (3, "identity-mismatch")]);
    for (index, reason) in [(1, "wrong-subject"), (2, "identity-mismatch")] {
        let letter = letter_for(&mesh, "s1/c1", reason, &batches[index].bytes).await;
        assert_eq!(letter.subject, "lucent.deadletter.s1.c1.n2");
    }
    eventually!(SOON, {
        let seen = observer.seen();
        let arrived: Vec<Bytes> = seen.of("s1/c1/n2").iter().map(|event| event.data.clone()).collect();
        when(arrived == ["{\"sound\":1}", "{\"sound\":2}"], arrived)
    });
    assert_eq!(observer.seen().of("s1/c1/n1"), Vec::<&tests::observer::Arrived>::new());
    an_event_still_passes(&mesh, &observer, "s1/c1/n1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_that_are_none_are_refused_where_they_are_submitted() {
    let mesh = Mesh::start(&["global", "s1", "s1/c1", "s1/c1/n1"]).await;
    let observer = Observer::start(&mesh).await;
    let client = mesh.client("global").await;
    let subject = "lucent.agents.yield.analysis";
    let huge = json!({ "payload": "x".repeat(2 << 20) }).to_string();
    let cases: [(&str, &str, &str); 10] = [
        (subject, "malformed", "garbage"),
        (subject, "malformed", ""),
        (subject, "malformed", "{\"payload\":1,\"payload\":2}"),
        (subject, "malformed", "{\"no\":\"payload\"}"),
        (subject, "bad-payload", "{\"messageId\":\"../../etc\",\"payload\":1}"),
        (subject, "bad-payload", "{\"replyTo\":\"lucent.>\",\"payload\":1}"),
        (subject, "bad-payload", "{\"payload\":1,\"metadata\":{\"priority\":77}}"),
        (subject, "wrong-subject", "{\"subject\":\"lucent.agents.other.task\",\"payload\":1}"),
        ("lucent.agents.yield", "wrong-subject", "{\"payload\":1}"),
        (subject, "oversized", &huge),
    ];
    for (subject, reason, body) in cases {
        let before = mesh.numbers("global").await.refused(reason);
        client.publish(subject, body.to_owned().into()).await.unwrap();
        client.flush().await.unwrap();
        let letter = letter_for(&mesh, "global", reason, body.as_bytes()).await;
        assert_eq!(letter.subject, "lucent.deadletter.global");
        assert_eq!(letter.header("Lucent-Subject"), subject);
        assert_eq!(mesh.numbers("global").await.refused(reason), before + 1, "{reason}: {:.60}", body);
    }
    let js = async_nats::jetstream::new(client);
    eventually!(SOON, {
        let waiting = js.get_stream("AGENT_COORDINATION").await.map(|s| s.cached_info().state.messages);
        when(waiting.as_ref().is_ok_and(|waiting| *waiting == 0), waiting)
    });

    // Below global, nobody may submit in this version.
    let node = mesh.client("s1/c1/n1").await;
    node.publish(subject, "{\"payload\":1}".into()).await.unwrap();
    node.flush().await.unwrap();
    letter_for(&mesh, "s1/c1/n1", "not-permitted", b"{\"payload\":1}").await;
    an_event_still_passes(&mesh, &observer, "s1/c1/n1").await;
}
