//! Envelopes that are sound, and every way found so far to be unsound.

use hierarchy::{
    Lane, Millis, Refusal,
    Refusal::{
        BadSignature, BadSlot, ExpiredBinding, FromTheFuture, IdentityMismatch, Malformed, Oversized, Stale,
        UnknownKid, UnsupportedVersion,
    },
    envelope::{BatchHead, Draft, MAX_BYTES},
};

use super::{
    forge::{Edit, Pen, SLOT, base64url, fill},
    vector::{Age, Vector},
    world::{BEGIN, END, NOW, SIGNED, World, draft, marked, raw},
};

const WEEK: u64 = 7 * 24 * 3_600_000;
const MINUTE: u64 = 60_000;

struct Cases {
    vectors: Vec<Vector>,
    pen: Pen,
}

impl Cases {
    fn ok(&mut self, name: &str, text: &str) {
        self.judged(name, &self.pen.sign(text), Ok(()));
    }

    /// Signs `text` rightly: it is refused for what it says.
    fn refuse(&mut self, refusal: Refusal, name: &str, text: &str) {
        self.judged(name, &self.pen.sign(text), Err(refusal));
    }

    /// Bytes as they are.
    fn judged(&mut self, name: &str, bytes: &[u8], expect: Result<(), Refusal>) {
        self.at(name, bytes, expect, NOW, Age::Stored(WEEK));
    }

    fn at(&mut self, name: &str, bytes: &[u8], expect: Result<(), Refusal>, now: Millis, age: Age) {
        self.vectors.push(Vector::at(name, bytes, expect, now, age));
    }
}

/// All of them, in an order that groups like with like. The same world gives the same bytes.
pub(crate) fn all(world: &World) -> Vec<Vector> {
    let mut cases = Cases { vectors: Vec::new(), pen: world.pen("n1") };
    let payload = raw(r#"{"pair":"ETH-USDC","amount":1.5}"#);
    let subject = "lucent.hierarchy.node.n1.trades";
    let base = marked(&world.signer("n1").seal(&draft(subject, &payload)));
    let full = marked(&world.signer("n1").seal(&Draft {
        correlation_id: Some("order-17"),
        causation_id: Some("order-16"),
        reply_to: Some("lucent.responses.trading.17"),
        priority: Lane::Critical,
        batch: Some(BatchHead {
            incarnation: 9_007_199_254_740_993,
            first: 1,
            last: 3,
            count: 2,
            subjects: vec![subject.into()],
            tell: Vec::new(),
        }),
        ..draft(subject, &payload)
    }));
    sound(&mut cases, world, &base, &full);
    ill_formed(&mut cases, world, &base, &full);
    wrong_slot_or_signature(&mut cases, world, &base);
    wrong_identity(&mut cases, world, &base);
    wrong_time(&mut cases, &base);
    first_fault_counts(&mut cases, &base);
    cases.vectors
}

fn sound(cases: &mut Cases, world: &World, base: &str, full: &str) {
    cases.ok("plain", base);
    cases.ok("every field of the writer", full);
    let jetstream = r#""jetstream":{"streamName":"COMMANDS","maxDeliveries":3},"payload""#;
    cases.ok("jetstream is carried unread", &base.edit(r#""payload""#, jetstream));
    cases.ok("permissions listed", &base.edit("[]", r#"["trade.execute"]"#));
    cases.ok("permissions left out", &base.edit(r#""permissions":[],"#, ""));
    cases.ok("priority left out", &base.edit(r#""priority":"normal","#, ""));
    cases.ok("white space between fields", &base.replace(",\"", " ,\r\n\t\"").replace("\":", "\" : "));
    let metadata_first = {
        let (front, metadata) = base.split_once(",\"metadata\":").unwrap();
        format!("{{\"metadata\":{},{}}}", &metadata[..metadata.len() - 1], &front[1..])
    };
    cases.ok("metadata first", &metadata_first);
    let slot_first = base
        .edit(&format!(",\"signature\":\"{SLOT}\""), "")
        .edit("\"identity\"", &format!("\"signature\":\"{SLOT}\",\"identity\""));
    cases.ok("signature before its siblings", &slot_first);
    cases.ok("letters beyond ASCII", &base.edit("PositionUpdatedEvent", "Prüfung-値"));
    cases.ok("a UUID of another version", &base.edit("-7707-", "-4707-"));
    for (name, payload) in [
        ("payload null", "null"),
        ("payload text with escapes", r#""\u0041\"\\""#),
        ("payload with numbers that no double holds", "[9007199254740993,1e400,-0.0]"),
        ("payload with half a surrogate pair is the receiver's to judge", r#""\ud800""#),
        ("payload with repeated keys is the receiver's to judge", r#"{"a":1,"a":2}"#),
    ] {
        cases.ok(name, &base.edit(r#"{"pair":"ETH-USDC","amount":1.5}"#, payload));
    }
    let deep = "[".repeat(10_000) + &"]".repeat(10_000);
    cases.ok("payload of 10000 levels", &base.edit(r#"{"pair":"ETH-USDC","amount":1.5}"#, &deep));
    let decoy = format!(r#"{{"metadata":{{"security":{{"signature":"{}"}}}}}}"#, base64url(&[0x55; 64]));
    cases.ok("a decoy of the slot in the payload", &base.edit(r#"{"pair":"ETH-USDC","amount":1.5}"#, &decoy));
    let empty_decoy = format!(r#""correlationId":"{}","timestamp""#, "A".repeat(86));
    cases.ok("an empty decoy of the slot before it", &base.edit(r#""timestamp""#, &empty_decoy));

    for (agent, subject) in [("c1", "lucent.hierarchy.cluster.c1"), ("core", "lucent.hierarchy.global")] {
        let sealed = world.signer(agent).seal(&draft(subject, &raw("{}")));
        cases.judged(&format!("written by {agent}"), &sealed.bytes, Ok(()));
    }
}

fn ill_formed(cases: &mut Cases, world: &World, base: &str, full: &str) {
    for (bytes, expect) in [(MAX_BYTES + 1, Oversized), (MAX_BYTES, Malformed)] {
        let vector = Vector::at(&format!("{bytes} bytes"), b"{", Err(expect), NOW, Age::Stored(WEEK));
        cases.vectors.push(Vector { repeat: bytes, ..vector });
    }
    let sealed = String::from_utf8(cases.pen.sign(base)).unwrap();
    for (name, text) in [
        ("nothing", String::new()),
        ("a byte order mark in front", format!("\u{feff}{sealed}")),
        ("a space in front", format!(" {sealed}")),
        ("a line feed behind", format!("{sealed}\n")),
        ("a NUL behind", format!("{sealed}\0")),
        ("a second object behind", format!("{sealed}{{}}")),
        ("cut short", sealed[..sealed.len() - 1].into()),
        ("an array around it", format!("[{sealed}]")),
        ("a key binding as a message", world.agents["n1"].binding.to_json()),
    ] {
        cases.judged(name, text.as_bytes(), Err(Malformed));
    }
    let marker = base.find("ETH").unwrap();
    let mut bytes = base.as_bytes().to_vec();
    bytes[marker] = 0xff;
    let bytes = cases.pen.sign_bytes(&bytes);
    cases.judged("not UTF-8 in the payload", &bytes, Err(Malformed));

    for field in ["messageId", "timestamp", "messageType", "version\":\"1.0", "subject", "sender", "payload"]
    {
        let from = base.find(&format!("\"{field}\"")).unwrap();
        let to = base[from..].find(",\"").unwrap() + from;
        // The values of sender and payload hold commas: take the field up to the next outer one.
        let to = match field {
            "sender" => base.find("\"payload\"").unwrap() - 1,
            "payload" => base.find("\"metadata\"").unwrap() - 1,
            _ => to,
        };
        let name = format!("without {}", field.split('"').next().unwrap());
        cases.refuse(Malformed, &name, &format!("{}{}", &base[..from], &base[to + 1..]));
    }
    let kid = base64url(&cases.pen.kid);
    let no_metadata = format!("{}}}", &sealed[..sealed.find(",\"metadata\"").unwrap()]);
    cases.judged("without metadata", no_metadata.as_bytes(), Err(Malformed));
    for (name, from, to) in [
        ("without sender.nodeId", r#","nodeId":"s1/c1/n1""#, ""),
        ("without hierarchy_level", r#""hierarchy_level":"node","#, ""),
        ("without identity", r#""identity":"spiffe://lucent.test/mesh/s1/c1/n1","#, ""),
        ("without kid", &format!(r#""kid":"{kid}","#), ""),
        ("an unknown outer field", r#""payload":"#, r#""extra":1,"payload":"#),
        ("an unknown field in sender", r#""nodeId""#, r#""role":"x","nodeId""#),
        ("an unknown field in metadata", r#""priority""#, r#""trace":"x","priority""#),
        ("an unknown field in security", r#""kid""#, r#""alg":"none","kid""#),
        ("a field in other case", r#""messageType""#, r#""messagetype""#),
        ("subject twice", r#""sender""#, r#""subject":"lucent.hierarchy.node.n1.trades","sender""#),
        ("payload twice", r#""payload""#, r#""payload":{},"payload""#),
        ("nodeId twice", r#""nodeId""#, r#""nodeId":"s1/c1/n1","nodeId""#),
        ("kid twice", r#""kid""#, &format!(r#""kid":"{kid}","kid""#)),
        ("an escaped outer name", r#""subject""#, r#""subj\u0065ct""#),
        ("the payload's name escaped", r#""payload""#, r#""p\u0061yload""#),
        ("an escaped outer value", "node.n1.trades", r"node.n\u0031.trades"),
        ("an escaped solidus in an outer value", r#":"s1/c1/n1""#, r#":"s1\/c1/n1""#),
        ("an escaped name behind the payload", r#""priority""#, r#""pri\u006frity""#),
        ("an escaped value behind the payload", "lucent.test/mesh/s1", r"lucent.test\/mesh/s1"),
        ("a repeated name, once escaped", r#""sender""#, r#""subj\u0065ct":"x","sender""#),
        ("an escape in jetstream", r#""payload""#, r#""jetstream":{"a":"\u0041"},"payload""#),
        ("a repeated key in jetstream", r#""payload""#, r#""jetstream":{"a":1,"a":2},"payload""#),
        ("a number beyond doubles in jetstream", r#""payload""#, r#""jetstream":1e400,"payload""#),
        ("a raw line feed in a value", "PositionUpdatedEvent", "Position\nUpdatedEvent"),
        ("payload NaN", r#"{"pair":"ETH-USDC","amount":1.5}"#, "NaN"),
        ("payload with an unknown escape", r#"{"pair":"ETH-USDC","amount":1.5}"#, r#""\x41""#),
        ("payload cut in an escape", r#"{"pair":"ETH-USDC","amount":1.5}"#, r#""\u00""#),
        ("payload with a raw tab in a text", "ETH-USDC", "ETH\tUSDC"),
        ("payload 1.", r#"{"pair":"ETH-USDC","amount":1.5}"#, "1."),
        ("payload +1", r#"{"pair":"ETH-USDC","amount":1.5}"#, "+1"),
        ("payload True", r#"{"pair":"ETH-USDC","amount":1.5}"#, "True"),
        ("payload 01", r#"{"pair":"ETH-USDC","amount":1.5}"#, "01"),
        ("payload with a comma too many", "1.5}", "1.5,}"),
        ("payload with a comment", "1.5}", "1.5/**/}"),
        ("null for an optional field", r#""timestamp""#, r#""correlationId":null,"timestamp""#),
        ("null for the batch", r#""priority""#, r#""batch":null,"priority""#),
        ("null for the priority", r#""priority":"normal""#, r#""priority":null"#),
        ("an unknown priority", r#""normal""#, r#""urgent""#),
        ("an enum as an object", r#""normal""#, r#"{"normal":null}"#),
        ("an unknown level", r#""node","#, r#""rack","#),
        ("a level in capitals", r#""node","#, r#""Node","#),
        ("a number for a text", r#""PositionUpdatedEvent""#, "7"),
        ("permissions that are no texts", "[]", "[1]"),
        ("kid of 42 characters", &kid, &kid[..42]),
        ("kid padded", &kid, &format!("{kid}=")),
        ("timestamp without milliseconds", "10:30:00.123Z", "10:30:00Z"),
        ("timestamp with an offset", "10:30:00.123Z", "10:30:00.123+00:00"),
        ("timestamp in lowercase", "10:30:00.123Z", "10:30:00.123z"),
        ("timestamp with a space", "2025-09-02T", "2025-09-02 "),
        ("timestamp of a 30th February", "2025-09-02T", "2025-02-30T"),
        ("timestamp at hour 24", "T10:30:00", "T24:00:00"),
        ("timestamp in a leap second", "T10:30:00", "T23:59:60"),
        ("timestamp before 1970", "2025-09-02T", "1969-12-31T"),
        ("timestamp with a signed year", "2025-09-02T10:30:00.123Z", "+2025-09-02T10:30:00.12Z"),
        ("identity outside /mesh", "lucent.test/mesh/s1/c1/n1", "lucent.test/service/trading"),
        ("identity written /mesh/global", "lucent.test/mesh/s1/c1/n1", "lucent.test/mesh/global"),
        ("identity with dots", "lucent.test/mesh/s1/c1/n1", "lucent.test/mesh/s1/c1/../c1/n1"),
        ("identity with an empty segment", "lucent.test/mesh/s1/c1/n1", "lucent.test/mesh/s1//n1"),
        ("identity with an escape of its own", "lucent.test/mesh/s1/c1/n1", "lucent.test/mesh/s1/c1/%6e1"),
        ("identity with a port", "lucent.test/mesh/s1/c1/n1", "lucent.test:443/mesh/s1/c1/n1"),
        ("identity in capitals", "lucent.test/mesh/s1/c1/n1", "Lucent.test/mesh/s1/c1/n1"),
        ("identity of four segments", "lucent.test/mesh/s1/c1/n1", "lucent.test/mesh/s1/c1/n1/x"),
    ] {
        cases.refuse(Malformed, name, &base.edit(from, to));
    }
    let id = super::world::message_id();
    let spelt = id.to_string();
    for (name, spelling) in [
        ("messageId in capitals", spelt.to_uppercase()),
        ("messageId without hyphens", id.simple().to_string()),
        ("messageId in braces", id.braced().to_string()),
        ("messageId as a URN", id.urn().to_string()),
        ("messageId cut short", spelt[..35].into()),
    ] {
        cases.refuse(Malformed, name, &base.edit(&spelt, &spelling));
    }
    let null_slot = base.edit(&format!(r#""{SLOT}""#), "null");
    cases.judged("null for the signature", null_slot.as_bytes(), Err(Malformed));
    let sender = r#"{"serviceId":"lucent-agent","instanceId":"i-1","version":"0.1.0","nodeId":"s1/c1/n1"}"#;
    let as_array = r#"["lucent-agent","i-1","0.1.0","s1/c1/n1"]"#;
    cases.refuse(Malformed, "sender as an array", &base.edit(sender, as_array));
    for (name, from, to) in [
        ("an unknown field in the batch", r#""count":2"#, r#""count":2,"size":1"#),
        ("a batch count with a fraction", r#""count":2"#, r#""count":2.0"#),
        ("a batch count with an exponent", r#""count":2"#, r#""count":2e0"#),
        ("a negative batch count", r#""count":2"#, r#""count":-2"#),
        ("a batch count of minus nought", r#""count":2"#, r#""count":-0"#),
        ("a batch count as text", r#""count":2"#, r#""count":"2""#),
        ("a batch count of 2^32", r#""count":2"#, r#""count":4294967296"#),
        ("a batch place of 2^64", r#""last":3"#, r#""last":18446744073709551616"#),
        ("a batch without subjects", r#","subjects":["lucent.hierarchy.node.n1.trades"]"#, ""),
        ("a batch field twice", r#""count":2"#, r#""count":2,"count":2"#),
        ("null for replyTo", r#""replyTo":"lucent.responses.trading.17""#, r#""replyTo":null"#),
    ] {
        cases.refuse(Malformed, name, &full.edit(from, to));
    }
    let head = r#"{"incarnation":9007199254740993,"first":1,"last":3,"count":2,"subjects":["lucent.hierarchy.node.n1.trades"]}"#;
    let as_array = r#"[9007199254740993,1,3,2,["lucent.hierarchy.node.n1.trades"]]"#;
    cases.refuse(Malformed, "the batch as an array", &full.edit(head, as_array));
    for version in ["", "0", "0.9", "1", "1.1", "2", "2.0", " 1.0"] {
        let text = base.edit(r#""version":"1.0""#, &format!(r#""version":"{version}""#));
        cases.refuse(UnsupportedVersion, &format!("version `{version}`"), &text);
    }
}

fn wrong_slot_or_signature(cases: &mut Cases, world: &World, base: &str) {
    let (pen, n2) = (cases.pen.clone(), world.pen("n2"));
    let sealed = String::from_utf8(pen.sign(base)).unwrap();
    let slot = sealed.rfind("\"signature\":\"").unwrap() + 13;
    let signature = sealed[slot..slot + 86].to_owned();

    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let last = alphabet.find(&signature[85..]).unwrap();
    let second_spelling = format!("{}{}", &signature[..85], &alphabet[last + 1..last + 2]);
    let slots = [
        ("empty", String::new()),
        ("all A", "A".repeat(86)),
        ("85 characters", signature[..85].into()),
        ("87 characters", format!("{signature}A")),
        ("padded to 88", format!("{signature}==")),
        ("padding inside its width", format!("{}==", &signature[..84])),
        ("spare bits set in its last character", second_spelling),
        ("the standard alphabet", format!("+/{}", &signature[2..])),
        ("a space in it", format!(" {}", &signature[1..])),
        ("86 bytes that are fewer characters", format!("é{}", &signature[2..])),
    ];
    for (name, filling) in slots {
        cases.judged(&format!("slot: {name}"), &fill(base.as_bytes(), &filling), Err(BadSlot));
    }
    let missing = base.edit(&format!(",\"signature\":\"{SLOT}\""), "");
    cases.judged("slot: missing", missing.as_bytes(), Err(BadSlot));

    let kid = base64url(&pen.kid);
    cases.refuse(UnknownKid, "a kid that nobody bound", &base.edit(&kid, &base64url(&[9; 32])));

    cases.judged("signed by another key", &Pen { kid: pen.kid, ..n2.clone() }.sign(base), Err(BadSignature));
    let other_kid = base.edit(&kid, &base64url(&n2.kid));
    cases.judged("another's kid over one's own signature", &pen.sign(&other_kid), Err(BadSignature));
    let for_other_kid = Pen { kid: n2.kid, ..pen.clone() }.sign(base);
    cases.judged("signed for another kid", &for_other_kid, Err(BadSignature));
    let elsewhere = sealed.replace("node.n1.trades", "node.n1.orders");
    cases.judged("a signed message on another subject", elsewhere.as_bytes(), Err(BadSignature));
    let spaced = sealed.edit("\"payload\":", "\"payload\": ");
    cases.judged("a space added after signing", spaced.as_bytes(), Err(BadSignature));
    let granted = sealed.edit("[]", r#"["trade.execute"]"#);
    cases.judged("a permission added after signing", granted.as_bytes(), Err(BadSignature));
    let payload = r#"{"n":9007199254740993}"#;
    let big = pen.sign(&base.edit(r#"{"pair":"ETH-USDC","amount":1.5}"#, payload));
    let big = String::from_utf8(big).unwrap().edit("740993", "740992");
    cases.judged("a number changed to its neighbour double", big.as_bytes(), Err(BadSignature));

    use ed25519_dalek::Signer as _;
    let unprefixed = pen.key.sign(&super::forge::digest(base.as_bytes())).to_bytes();
    let unprefixed = fill(base.as_bytes(), &base64url(&unprefixed));
    cases.judged("a signature over the bare digest", &unprefixed, Err(BadSignature));
    let pop = pen.key.sign(b"LUCENT-KB-POP-v1\0").to_bytes();
    cases.judged("a proof of possession", &fill(base.as_bytes(), &base64url(&pop)), Err(BadSignature));
    cases.judged("S written as S + L", &pen.sign_with_large_s(base), Err(BadSignature));
    cases.judged("R of small order", &pen.sign_with_small_r(base), Err(BadSignature));
}

fn wrong_identity(cases: &mut Cases, world: &World, base: &str) {
    for (name, from, to) in [
        ("sender.nodeId of a sibling", r#":"s1/c1/n1""#, r#":"s1/c1/n2""#),
        ("sender.nodeId without its path", r#":"s1/c1/n1""#, r#":"n1""#),
        ("sender.nodeId with a slash in front", r#":"s1/c1/n1""#, r#":"/s1/c1/n1""#),
        ("identity of a sibling", "lucent.test/mesh/s1/c1/n1", "lucent.test/mesh/s1/c1/n2"),
        ("identity of the parent", "lucent.test/mesh/s1/c1/n1", "lucent.test/mesh/s1/c1"),
        ("identity in another trust domain", "lucent.test/mesh/s1/c1/n1", "other.test/mesh/s1/c1/n1"),
        ("the level above", r#""node","#, r#""cluster","#),
    ] {
        cases.refuse(IdentityMismatch, name, &base.edit(from, to));
    }
    let everything_else = base
        .edit("lucent.test/mesh/s1/c1/n1", "lucent.test/mesh/s1/c1/n2")
        .edit(r#":"s1/c1/n1""#, r#":"s1/c1/n2""#);
    cases.refuse(IdentityMismatch, "a sibling's name throughout", &everything_else);
    let as_node = base.edit(&base64url(&cases.pen.kid), &base64url(&world.pen("c1").kid));
    let as_node = world.pen("c1").sign(&as_node);
    cases.judged("a cluster that speaks as its node", &as_node, Err(IdentityMismatch));
}

fn wrong_time(cases: &mut Cases, base: &str) {
    let plain = cases.pen.sign(base);
    let (ahead, over) = (Millis(SIGNED.0 - 5 * MINUTE), Millis(END.0 + 1));
    let later = |ms: u64| Millis(SIGNED.0 + ms);
    for (name, now, age, expect) in [
        ("stored, exactly as old as may be", later(WEEK), Age::Stored(WEEK), Ok(())),
        ("stored, a millisecond older", later(WEEK + 1), Age::Stored(WEEK), Err(Stale)),
        ("stored, its binding long over", later(WEEK / 2), Age::Stored(WEEK), Ok(())),
        ("stored, dated far ahead", Millis(0), Age::Stored(0), Ok(())),
        ("live, fresh", NOW, Age::Live(MINUTE), Ok(())),
        ("live, exactly as old as may be", later(MINUTE), Age::Live(MINUTE), Ok(())),
        ("live, a millisecond older", later(MINUTE + 1), Age::Live(MINUTE), Err(Stale)),
        ("live, the binding's last millisecond", END, Age::Live(WEEK), Ok(())),
        ("live, its binding over", over, Age::Live(WEEK), Err(ExpiredBinding)),
        ("live, dated five minutes ahead", ahead, Age::Live(MINUTE), Ok(())),
        ("live, dated further ahead", Millis(ahead.0 - 1), Age::Live(MINUTE), Err(FromTheFuture)),
        ("session, its binding over", over, Age::Session, Ok(())),
        ("session, dated far ahead", Millis(0), Age::Session, Ok(())),
    ] {
        cases.at(name, &plain, expect, now, age);
    }
    for (name, time, expect) in [
        ("dated at the binding's first millisecond", BEGIN, Ok(())),
        ("dated before its binding", Millis(BEGIN.0 - 1), Err(ExpiredBinding)),
        ("dated at the binding's last millisecond", END, Ok(())),
        ("dated after its binding", over, Err(ExpiredBinding)),
        ("dated at the end of the year 9999", Millis(253_402_300_799_999), Err(ExpiredBinding)),
    ] {
        let bytes = cases.pen.sign(&base.edit(&SIGNED.to_string(), &time.to_string()));
        for (kind, age) in [("stored", Age::Stored(WEEK)), ("session", Age::Session)] {
            cases.at(&format!("{kind}, {name}"), &bytes, expect, NOW, age);
        }
    }
}

/// Two faults each: the name is that of the check which comes first.
fn first_fault_counts(cases: &mut Cases, base: &str) {
    let zero = base64url(&[9; 32]);
    let unknown = base.edit(&base64url(&cases.pen.kid), &zero);
    let version = base.edit(r#""version":"1.0""#, r#""version":"2.0""#);
    let ill_formed = version.edit("2025-09-02T", "2025-02-30T");
    cases.refuse(Malformed, "form before version", &ill_formed);
    cases.judged("version before slot", &fill(version.as_bytes(), ""), Err(UnsupportedVersion));
    cases.judged("slot before kid", &fill(unknown.as_bytes(), &"A".repeat(86)), Err(BadSlot));
    let spoilt = base.edit(r#":"s1/c1/n1""#, r#":"s1/c1/n2""#);
    let spoilt = fill(spoilt.as_bytes(), &base64url(&[1; 64]));
    cases.judged("signature before identity", &spoilt, Err(BadSignature));
    let ahead = base.edit("2025-09-02T", "2035-09-02T").edit(r#":"s1/c1/n1""#, r#":"s1/c1/n2""#);
    cases.refuse(IdentityMismatch, "identity before time", &ahead);
    let before = cases.pen.sign(&base.edit(&SIGNED.to_string(), &Millis(BEGIN.0 - 1).to_string()));
    cases.at("binding before age", &before, Err(ExpiredBinding), END, Age::Stored(0));
    cases.at("binding before future", &before, Err(ExpiredBinding), Millis(0), Age::Live(0));
}
