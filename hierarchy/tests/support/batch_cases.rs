//! Batches that are sound, and every way found so far to be unsound.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hierarchy::{
    Refusal,
    Refusal::{BadPayload, WrongSubject},
    link::{Event, PackLimits, Packer, Tick},
    subject::Speaker,
};

use super::{
    forge::Edit,
    vector::{Age, Vector, VectorEvent},
    world::{NOW, SIGNED, World, identity, marked, seal_pack},
};

const WEEK: u64 = 7 * 24 * 3_600_000;
const OWN: &str = "lucent.hierarchy.node.n1";

/// Data of every kind that a publisher may send.
pub(crate) const DATA: [&[u8]; 16] = [
    br#"{"pair":"ETH-USDC","amount":1.5}"#,
    b"{ \"pair\" :\n\t\"ETH-USDC\" }",
    b" {\"padded\":true}\n",
    b"null",
    b"-0.0",
    b"9007199254740993",
    br#""\u0041\ud83d\ude00""#,
    b"",
    b"plain text",
    br#"{"a":1,"a":2}"#,
    b"1e400",
    br#""\ud800""#,
    b"\xef\xbb\xbf{}",
    b"\x00\xff\xfe",
    b"[1,2",
    b"\"\xe2\x80\xa8\"",
];

pub(crate) fn event(seq: u64, subject: &str, data: &[u8]) -> Event {
    let data = bytes::Bytes::copy_from_slice(data);
    Event { seq, ts: SIGNED.0 + seq % 1000, subject: subject.into(), headers: BTreeMap::new(), data }
}

/// The packer of the agent n1.
pub(crate) fn packer(limits: PackLimits) -> Packer {
    Packer::new(Speaker::of(&identity("/s1/c1/n1").path), 1, limits)
}

pub(crate) fn vector_event(event: &Event) -> VectorEvent {
    VectorEvent {
        seq: event.seq,
        ts: event.ts,
        subject: event.subject.clone(),
        hdr: event.headers.clone(),
        data: STANDARD.encode(&event.data),
    }
}

/// What a small batch of `events` looks like, with its slot marked.
fn written(world: &World, events: &[Event]) -> String {
    let mut packer = packer(PackLimits::default());
    for event in events {
        assert!(packer.push(event, Tick::ZERO).is_empty(), "the events make one batch");
    }
    marked(&seal_pack(&world.signer("n1"), &packer.close().unwrap()))
}

/// The batch from which most of the others are made.
pub(crate) fn base_events() -> Vec<Event> {
    let trades = format!("{OWN}.trades");
    let mut with_headers = event(2, &trades, br#"{"n":2}"#);
    with_headers.headers.insert("X-Trace".into(), vec!["a".into(), "b \"quoted\"".into()]);
    vec![event(1, &trades, br#"{"n":1}"#), with_headers, event(4, &format!("{OWN}.notes"), b"not JSON")]
}

/// All of them. The same world gives the same bytes.
pub(crate) fn all(world: &World) -> Vec<Vector> {
    let pen = world.pen("n1");
    let mut vectors = Vec::new();
    let mut add = |name: &str, text: &str, expect: Result<(), Refusal>, events: Option<&[Event]>| {
        let vector = Vector::at(name, &pen.sign(text), expect, NOW, Age::Stored(WEEK));
        let events = events.map(|events| events.iter().map(vector_event).collect());
        vectors.push(Vector { events, ..vector });
    };

    let base = base_events();
    add("three events, two subjects, a gap", &written(world, &base), Ok(()), Some(&base));
    let every: Vec<_> = (1..).zip(DATA).map(|(seq, data)| event(seq, OWN, data)).collect();
    add("data of every kind", &written(world, &every), Ok(()), Some(&every));
    let many: Vec<_> = (1..=64).map(|n| event(n, &format!("{OWN}.s{n}"), b"{}")).collect();
    add("64 subjects", &written(world, &many), Ok(()), Some(&many));
    let deep = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
    let deepest = [event(1, OWN, deep(127).as_bytes())];
    add("data of 127 levels", &written(world, &deepest), Ok(()), Some(&deepest));
    let far = [event(u64::MAX - 1, OWN, b"1"), event(u64::MAX, OWN, b"2")];
    add("the last places there are", &written(world, &far), Ok(()), Some(&far));

    let base = written(world, &base);
    let mut unsound = |refusal, name: &str, from: &str, to: &str| {
        add(name, &base.edit(from, to), Err(refusal), None);
    };
    for (name, from, to) in [
        ("another message type", "EventBatch", "EventBatches"),
        ("a count too high", r#""count":3"#, r#""count":4"#),
        ("a count too low", r#""count":3"#, r#""count":2"#),
        ("another first", r#""first":1"#, r#""first":0"#),
        ("another last", r#""last":4"#, r#""last":5"#),
        ("out of order", r#"{"seq":2,"#, r#"{"seq":5,"#),
        ("a place twice", r#"{"seq":2,"#, r#"{"seq":1,"#),
        ("a place with a fraction", r#"{"seq":2,"#, r#"{"seq":2.0,"#),
        ("a place as text", r#"{"seq":2,"#, r#"{"seq":"2","#),
        ("sub beyond the list", r#""sub":1"#, r#""sub":2"#),
        ("sub below nought", r#""sub":1"#, r#""sub":-1"#),
        ("an event without ts", r#""ts":1756809000124,"#, ""),
        ("an event without sub", r#","sub":1"#, ""),
        ("data and b64", r#""data":{"n":1}"#, r#""data":{"n":1},"b64":"eA==""#),
        ("neither data nor b64", r#","data":{"n":1}"#, ""),
        ("data with a repeated key", r#"{"n":1}"#, r#"{"n":1,"n":2}"#),
        ("data with a repeated key, once escaped", r#"{"n":1}"#, r#"{"n":1,"\u006e":2}"#),
        ("data with a number beyond doubles", r#"{"n":1}"#, "1e400"),
        ("data with half a surrogate pair", r#"{"n":1}"#, r#""\ud800""#),
        ("data of 128 levels", r#"{"n":1}"#, &deep(128)),
        ("data of 10000 levels", r#"{"n":1}"#, &deep(10_000)),
        ("b64 unpadded", "bm90IEpTT04=", "bm90IEpTT04"),
        ("b64 with spare bits set", "bm90IEpTT04=", "bm90IEpTT05="),
        ("b64 in the URL alphabet", "bm90IEpTT04=", "bm9-IEpTT04="),
        ("b64 null beside data", r#""data":{"n":1}"#, r#""data":{"n":1},"b64":null"#),
        ("a header twice", r#"{"X-Trace":"#, r#"{"X-Trace":["a"],"X-Trace":"#),
        ("a header that is no list", r#"["a","b \"quoted\""]"#, r#""a""#),
        ("headers null", r#"{"X-Trace":["a","b \"quoted\""]}"#, "null"),
        ("an unknown field in an event", r#""sub":1"#, r#""sub":1,"x":1"#),
        ("a field of an event twice", r#""sub":1"#, r#""sub":1,"sub":1"#),
        ("an event as an array", r#"{"seq":1,"ts":1756809000124,"sub":0,"data":{"n":1}}"#, r#"[1,1,0,{},1]"#),
        ("an unknown field beside events", r#""payload":{"#, r#""payload":{"x":1,"#),
        (
            "no subjects in the head",
            r#"["lucent.hierarchy.node.n1.trades","lucent.hierarchy.node.n1.notes"]"#,
            "[]",
        ),
    ] {
        unsound(BadPayload, name, from, to);
    }
    let notes = r#""lucent.hierarchy.node.n1.notes""#;
    for (name, to) in [
        ("a sibling's subject", r#""lucent.hierarchy.node.n2.notes""#),
        ("a subject that only begins like one's own", r#""lucent.hierarchy.node.n10.notes""#),
        ("one's own id at another level", r#""lucent.hierarchy.cluster.n1.notes""#),
        ("a subject outside the family", r#""lucent.commands.trading.execute""#),
        ("a star in a subject", r#""lucent.hierarchy.node.n1.*""#),
        ("a full wildcard in a subject", r#""lucent.hierarchy.node.n1.>""#),
        ("an empty last token", r#""lucent.hierarchy.node.n1.""#),
        ("an empty token inside", r#""lucent.hierarchy.node.n1..x""#),
        ("a space in a subject", r#""lucent.hierarchy.node.n1.a b""#),
        ("a delete character in a subject", "\"lucent.hierarchy.node.n1.a\u{7f}\""),
        ("a wide space in a subject", "\"lucent.hierarchy.node.n1.a\u{3000}\""),
    ] {
        unsound(WrongSubject, name, notes, to);
    }
    let envelope_subject = r#""subject":"lucent.hierarchy.node.n1""#;
    let sibling = r#""subject":"lucent.hierarchy.node.n2""#;
    unsound(WrongSubject, "the batch itself on a sibling's subject", envelope_subject, sibling);
    let subjects: Vec<_> = (0..65).map(|n| format!("\"{OWN}.s{n}\"")).collect();
    let list = r#""lucent.hierarchy.node.n1.trades","lucent.hierarchy.node.n1.notes""#;
    unsound(BadPayload, "65 subjects", list, &subjects.join(","));

    let start = base.find("\"batch\":").unwrap();
    let end = base.find("\"security\"").unwrap();
    add("no head", &format!("{}{}", &base[..start], &base[end..]), Err(BadPayload), None);
    let start = base.find("\"payload\":").unwrap() + 10;
    let end = base.find(",\"metadata\"").unwrap();
    for (name, payload) in [
        ("no events", r#"{"events":[]}"#),
        ("a payload without events", "{}"),
        ("a payload that is no object", r#"[[]]"#),
        ("a payload null", "null"),
    ] {
        add(name, &format!("{}{payload}{}", &base[..start], &base[end..]), Err(BadPayload), None);
    }
    vectors
}
