//! Batches that are sound, and every way found so far to be unsound.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hierarchy::{
    Lane, Refusal,
    Refusal::{BadPayload, WrongSubject},
    envelope::Parsed,
    link::{Batch, Event, Pack, PackLimits, Packer, Span, Tick, batch::check_speaker},
    loss::MAX_NUMBER,
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

/// An event with its number at the origin.
pub(crate) type Numbered = (u64, Event);

/// An event; `n` shows in its time alone.
pub(crate) fn event(n: u64, subject: &str, data: &[u8]) -> Event {
    let data = bytes::Bytes::copy_from_slice(data);
    Event { ts: SIGNED.0 + n % 1000, subject: subject.into(), headers: BTreeMap::new(), data }
}

/// An event that is to get the number `n`.
pub(crate) fn numbered(n: u64, subject: &str, data: &[u8]) -> Numbered {
    (n, event(n, subject, data))
}

/// The packer of the agent n1 for this lane, in incarnation 1.
pub(crate) fn packer_of(lane: Lane, limits: PackLimits) -> Packer {
    Packer::new(Speaker::of(&identity("/s1/c1/n1").path), lane, 1, limits)
}

/// The packer of the agent n1 for the lane `normal`.
pub(crate) fn packer(limits: PackLimits) -> Packer {
    packer_of(Lane::Normal, limits)
}

/// Packs an event under its number. What has the numbers before it was dropped.
pub(crate) fn push(packer: &mut Packer, (number, event): &Numbered) -> Vec<Pack> {
    while packer.last() + 1 < *number {
        packer.skip();
    }
    let packs = packer.push(event, Tick::ZERO);
    assert_eq!(packer.last(), *number, "numbers rise");
    packs
}

/// Seals a batch, as the agent n1 does, and reads its events, as each level above does.
pub(crate) fn carry(world: &World, pack: &Pack) -> Result<Vec<Numbered>, Refusal> {
    let sealed = seal_pack(&world.signer("n1"), pack);
    let envelope = Parsed::parse(&sealed.bytes)?;
    check_speaker(&envelope.identity().path, &envelope)?;
    events_of(&envelope)
}

/// The events of a batch whose numbers make sense.
pub(crate) fn events_of(envelope: &Parsed<'_>) -> Result<Vec<Numbered>, Refusal> {
    envelope.batch().and_then(Span::of).ok_or(BadPayload)?;
    let events = Batch::read(envelope)?.events;
    let subjects = &envelope.batch().unwrap().subjects;
    let numbered = events.iter().map(|event| {
        let subject = subjects[usize::from(event.sub)].clone();
        let (headers, data) = (event.hdr.clone(), event.bytes().into());
        (event.seq, Event { ts: event.ts, subject, headers, data })
    });
    Ok(numbered.collect())
}

pub(crate) fn vector_event((number, event): &Numbered) -> VectorEvent {
    VectorEvent {
        seq: *number,
        ts: event.ts,
        subject: event.subject.clone(),
        hdr: event.headers.clone(),
        data: STANDARD.encode(&event.data),
    }
}

/// What a small batch of `events` looks like, with its slot marked.
fn written(world: &World, events: &[Numbered]) -> String {
    let mut packer = packer(PackLimits::default());
    for event in events {
        assert!(push(&mut packer, event).is_empty(), "the events make one batch");
    }
    marked(&seal_pack(&world.signer("n1"), &packer.close().unwrap()))
}

/// The batch from which most of the others are made.
pub(crate) fn base_events() -> Vec<Numbered> {
    let trades = format!("{OWN}.trades");
    let mut with_headers = numbered(2, &trades, br#"{"n":2}"#);
    with_headers.1.headers.insert("X-Trace".into(), vec!["a".into(), "b \"quoted\"".into()]);
    vec![numbered(1, &trades, br#"{"n":1}"#), with_headers, numbered(4, &format!("{OWN}.notes"), b"not JSON")]
}

/// All of them. The same world gives the same bytes.
pub(crate) fn all(world: &World) -> Vec<Vector> {
    let pen = world.pen("n1");
    let mut vectors = Vec::new();
    let mut add = |name: &str, text: &str, expect: Result<(), Refusal>, events: Option<&[Numbered]>| {
        let vector = Vector::at(name, &pen.sign(text), expect, NOW, Age::Stored(WEEK));
        let events = events.map(|events| events.iter().map(vector_event).collect());
        vectors.push(Vector { events, ..vector });
    };

    let base = base_events();
    add("three events, two subjects, a dropped number", &written(world, &base), Ok(()), Some(&base));
    let inner = [numbered(3, OWN, b"3"), numbered(4, OWN, b"4"), numbered(6, OWN, b"6")];
    let text = written(world, &inner).edit(r#""last":6"#, r#""last":9"#);
    add("dropped numbers before, between and behind the events", &text, Ok(()), Some(&inner));
    let every: Vec<_> = (1..).zip(DATA).map(|(seq, data)| numbered(seq, OWN, data)).collect();
    add("data of every kind", &written(world, &every), Ok(()), Some(&every));
    let many: Vec<_> = (1..=64).map(|n| numbered(n, &format!("{OWN}.s{n}"), b"{}")).collect();
    add("64 subjects", &written(world, &many), Ok(()), Some(&many));
    let deep = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
    let deepest = [numbered(1, OWN, deep(127).as_bytes())];
    add("data of 127 levels", &written(world, &deepest), Ok(()), Some(&deepest));
    let near = [numbered(1, OWN, b"1"), numbered(2, OWN, b"2")];
    let far = |first: u64, last: u64| {
        written(world, &near)
            .edit(r#""first":1,"last":2"#, &format!(r#""first":{first},"last":{last}"#))
            .edit(r#""seq":1,"#, &format!(r#""seq":{first},"#))
            .edit(r#""seq":2,"#, &format!(r#""seq":{last},"#))
    };
    let events = [(MAX_NUMBER - 1, near[0].1.clone()), (MAX_NUMBER, near[1].1.clone())];
    add("the last numbers there are", &far(MAX_NUMBER - 1, MAX_NUMBER), Ok(()), Some(&events));
    add("a number beyond the last", &far(MAX_NUMBER, MAX_NUMBER + 1), Err(BadPayload), None);
    add("a number before the first", &far(0, 1), Err(BadPayload), None);

    let base = written(world, &base);
    let mut unsound = |refusal, name: &str, from: &str, to: &str| {
        add(name, &base.edit(from, to), Err(refusal), None);
    };
    for (name, from, to) in [
        ("another message type", "EventBatch", "EventBatches"),
        ("a count of all numbers in place of the events", r#""count":3"#, r#""count":4"#),
        ("a count too low", r#""count":3"#, r#""count":2"#),
        ("an event below first", r#""first":1"#, r#""first":2"#),
        ("an event above last", r#""last":4"#, r#""last":3"#),
        ("first is no number", r#""first":1"#, r#""first":0"#),
        ("first behind last", r#""first":1,"last":4"#, r#""first":4,"last":1"#),
        ("out of order", r#"{"seq":1,"#, r#"{"seq":3,"#),
        ("a number twice", r#"{"seq":2,"#, r#"{"seq":1,"#),
        ("a number with a fraction", r#"{"seq":2,"#, r#"{"seq":2.0,"#),
        ("a number as text", r#"{"seq":2,"#, r#"{"seq":"2","#),
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
