//! Key bindings that hold, and every way found so far not to hold.

use ed25519_dalek::{Signer as _, SigningKey};
use hierarchy::{
    Millis, Refusal,
    Refusal::{BadBinding, ExpiredBinding, IdentityMismatch, Oversized, UntrustedIssuer},
    envelope::Digest,
};
use rcgen::{ExtendedKeyUsagePurpose, IsCa, KeyPair};

use super::{
    authority::{Authority, Svid, date, uri_name},
    forge::{BindingForge, Edit, base64url, pop_message},
    vector::Vector,
    world::{BEGIN, DOMAIN, END, OTHER_DOMAIN},
};

/// The encodings of Ed25519's points of small order, also those that no encoder writes.
const SMALL_ORDER: [&str; 14] = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    "0100000000000000000000000000000000000000000000000000000000000080",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
];

const ID: &str = "spiffe://lucent.test/mesh/s1/c1/n1";

/// All of them, made with fresh certificates of the two authorities of a world.
pub(crate) fn all([authority, other]: &[Authority; 2]) -> Vec<Vector> {
    let mut vectors = Vec::new();
    let mut add = |name: &str, json: &str, expect: Result<(), Refusal>| {
        let mut vector = Vector::timeless(name, json.as_bytes(), expect);
        if expect.is_ok() {
            let binding = hierarchy::signing::Binding::from_json(json.as_bytes()).unwrap();
            vector.kid = Some(binding.kid().unwrap().to_string());
        }
        vectors.push(vector);
    };
    let key = SigningKey::from_bytes(&[1; 32]);
    let (begin, end) = (BEGIN.0, END.0);
    let honest = |svid: &Svid| BindingForge::honest(svid, &key, ID, begin, end);

    // Chains.
    let svid = authority.svid(ID);
    add("an SVID of the root", &honest(&svid).sign(&svid), Ok(()));
    let (mut below, mut chains) = (authority.intermediate("Level 1"), Vec::new());
    for level in 2..8 {
        chains.push(below.svid(ID));
        below = below.intermediate(&format!("Level {level}"));
    }
    add("one intermediate", &honest(&chains[0]).sign(&chains[0]), Ok(()));
    add("a chain of six", &honest(&chains[4]).sign(&chains[4]), Ok(()));
    add("a chain of seven", &honest(&chains[5]).sign(&chains[5]), Err(BadBinding));
    let mut cut = honest(&chains[0]);
    cut.x5c.truncate(1);
    add("its intermediate left out", &cut.sign(&chains[0]), Err(UntrustedIssuer));
    let mut empty = honest(&svid);
    empty.x5c.clear();
    add("no chain", &empty.sign(&svid), Err(BadBinding));
    let mut garbage = honest(&svid);
    garbage.x5c[0] = base64url(b"not a certificate");
    garbage.statement = garbage
        .statement
        .edit(&Digest::sha256(&svid.chain[0]).to_string(), &Digest::sha256(b"not a certificate").to_string());
    add("a leaf that is no certificate", &garbage.sign(&svid), Err(BadBinding));
    let foreign = Authority::root("Lucent Test").svid(ID);
    add("a foreign authority of the same name", &honest(&foreign).sign(&foreign), Err(UntrustedIssuer));
    let (root, forged) = (Authority::root("Self"), "the foreign root sent along");
    let mut sent = root.svid(ID);
    sent.chain.push(root.certificate.clone());
    add(forged, &honest(&sent).sign(&sent), Err(UntrustedIssuer));
    let crossed = other.svid(ID);
    add("the authority of another trust domain", &honest(&crossed).sign(&crossed), Err(UntrustedIssuer));
    let unknown = ID.edit(DOMAIN, "unknown.test");
    let stranger = authority.svid(&unknown);
    let binding = BindingForge::honest(&stranger, &key, &unknown, begin, end);
    add("a trust domain that nobody knows", &binding.sign(&stranger), Err(UntrustedIssuer));
    let theirs = ID.edit(DOMAIN, OTHER_DOMAIN);
    let peer = other.svid(&theirs);
    let binding = BindingForge::honest(&peer, &key, &theirs, begin, end);
    add("an SVID of the other trust domain", &binding.sign(&peer), Ok(()));
    let not_ca = authority.intermediate_with("No Authority", |params| params.is_ca = IsCa::ExplicitNoCa);
    let under = not_ca.svid(ID);
    add("an intermediate that is no authority", &honest(&under).sign(&under), Err(UntrustedIssuer));
    let over = authority.intermediate_with("Over", |params| params.not_after = date(Millis(end - 1000)));
    let under = over.svid(ID);
    add("an intermediate that ends before the binding", &honest(&under).sign(&under), Err(ExpiredBinding));

    // Leaves.
    let issue = |change: &dyn Fn(&mut rcgen::CertificateParams)| {
        authority.issue(KeyPair::generate().unwrap(), |params| {
            params.subject_alt_names = vec![uri_name(ID)];
            change(params);
        })
    };
    let leaves: [(&str, Svid, Result<(), Refusal>); 8] = [
        (
            "an authority as leaf",
            issue(&|p| p.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained)),
            Err(BadBinding),
        ),
        ("two URIs", issue(&|p| p.subject_alt_names.push(uri_name(&ID.edit("n1", "n2")))), Err(BadBinding)),
        ("the same URI twice", issue(&|p| p.subject_alt_names.push(uri_name(ID))), Err(BadBinding)),
        ("no URI", issue(&|p| p.subject_alt_names.clear()), Err(BadBinding)),
        (
            "a DNS name beside the URI",
            issue(&|p| {
                p.subject_alt_names.push(rcgen::SanType::DnsName("n1.test".try_into().unwrap()));
            }),
            Ok(()),
        ),
        (
            "a URI outside /mesh",
            issue(&|p| {
                p.subject_alt_names = vec![uri_name("spiffe://lucent.test/service/trading")];
            }),
            Err(BadBinding),
        ),
        (
            "a leaf for servers only",
            issue(&|p| {
                p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            }),
            Err(BadBinding),
        ),
        ("a leaf without extended key usage", issue(&|p| p.extended_key_usages.clear()), Ok(())),
    ];
    for (name, svid, expect) in leaves {
        add(name, &honest(&svid).sign(&svid), expect);
    }
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let p384 = authority.issue(p384, |params| params.subject_alt_names = vec![uri_name(ID)]);
    add("an SVID on P-384", &honest(&p384).sign(&p384), Err(BadBinding));

    // Times.
    let lasting = |nbf, exp| BindingForge::honest(&svid, &key, ID, nbf, exp).sign(&svid);
    add("a second longer than its leaf", &lasting(begin, end + 1000), Err(ExpiredBinding));
    add("a second earlier than its leaf", &lasting(begin - 1000, end), Err(ExpiredBinding));
    add("a window of one millisecond", &lasting(begin, begin + 1), Ok(()));
    add("an empty window", &lasting(begin, begin), Err(BadBinding));
    add("a window that ends before it begins", &lasting(end, begin), Err(BadBinding));

    // The statement.
    let statement = honest(&svid).statement;
    let stated = |statement: String| BindingForge { statement, ..honest(&svid) }.sign(&svid);
    let leaf = Digest::sha256(&svid.chain[0]).to_string();
    let key_text = base64url(key.verifying_key().as_bytes());
    let pop = base64url(&key.sign(&pop_message(&svid.chain[0], ID)).to_bytes());
    for (name, from, to) in [
        ("version 2", r#""v":1"#, r#""v":2"#),
        ("another algorithm", "Ed25519", "none"),
        ("another audience", "lucent-mesh", "lucent-mush"),
        ("an unknown claim", r#""v":1"#, r#""v":1,"jku":"x""#),
        ("a claim twice", r#""v":1"#, r#""v":1,"v":1"#),
        ("a claim missing", r#","aud":"lucent-mesh""#, ""),
        ("a time as text", &format!(r#""nbf":{begin}"#), &format!(r#""nbf":"{begin}""#)),
        ("a time with a fraction", &format!(r#""nbf":{begin}"#), &format!(r#""nbf":{begin}.0"#)),
        ("another leaf's digest", &leaf, &Digest::sha256(&chains[0].chain[0]).to_string()),
        ("a key of 31 bytes", &key_text, &base64url(&key.verifying_key().as_bytes()[..31])),
        ("a key that is no point", &key_text, &base64url(&[2; 32])),
        ("another's key", &key_text, &base64url(SigningKey::from_bytes(&[2; 32]).verifying_key().as_bytes())),
        ("no proof of possession", &pop, ""),
        ("a proof of nothing", &pop, &base64url(&[0; 64])),
        (
            "a proof under another certificate",
            &pop,
            &base64url(&key.sign(&pop_message(&chains[0].chain[0], ID)).to_bytes()),
        ),
        (
            "a proof for another identity",
            &pop,
            &base64url(&key.sign(&pop_message(&svid.chain[0], &ID.edit("n1", "n2"))).to_bytes()),
        ),
        ("an identity that is none", ID, "n1"),
    ] {
        add(name, &stated(statement.edit(from, to)), Err(BadBinding));
    }
    // Whole in itself, but for another certificate than the one that signs it.
    let elsewhere = honest(&chains[0]).statement;
    add("a statement about another certificate", &stated(elsewhere), Err(BadBinding));
    let sibling = ID.edit("n1", "n2");
    let binding = BindingForge::honest(&svid, &key, &sibling, begin, end);
    add("a sibling's identity", &binding.sign(&svid), Err(IdentityMismatch));
    let as_array = {
        let value: serde_json::Value = serde_json::from_str(&statement).unwrap();
        let fields = ["v", "id", "alg", "key", "nbf", "exp", "svid", "aud", "pop"].map(|f| &value[f]);
        serde_json::to_string(&fields).unwrap()
    };
    add("a statement that is an array", &stated(as_array), Err(BadBinding));
    add("a statement that is no JSON", &stated("lucent".into()), Err(BadBinding));
    add("something behind the statement", &stated(format!("{statement}{{}}")), Err(BadBinding));
    add("white space around the statement", &stated(format!(" {statement}\n")), Ok(()));
    for point in SMALL_ORDER {
        let point: Vec<u8> =
            (0..32).map(|i| u8::from_str_radix(&point[2 * i..2 * i + 2], 16).unwrap()).collect();
        // S = 0 and R = the point or the neutral one: some verifiers take this for any message.
        let mut any_message = [0; 64];
        any_message[0] = 1;
        let weak = statement.edit(&key_text, &base64url(&point)).edit(&pop, &base64url(&any_message));
        let hex: String = point.iter().map(|b| format!("{b:02x}")).collect();
        add(&format!("the weak key {hex}"), &stated(weak), Err(BadBinding));
    }

    // The SVID's signature, and the JSON around it.
    let good = honest(&svid).sign(&svid);
    add("signed by another SVID", &honest(&svid).sign(&chains[0]), Err(BadBinding));
    add(
        "signed by the Ed25519 key",
        &honest(&svid).with_signature(&key.sign(statement.as_bytes()).to_bytes()),
        Err(BadBinding),
    );
    let bare = rcgen::SigningKey::sign(&svid.key, statement.as_bytes()).unwrap();
    add(
        "signed without its pre-authentication encoding",
        &honest(&svid).with_signature(&bare),
        Err(BadBinding),
    );
    let typed = BindingForge { payload_type: "application/vnd.lucent.receipt.v1+json", ..honest(&svid) };
    add("signed as another type", &typed.sign(&svid), Err(BadBinding));
    add("an unknown field", &good.edit("\"sig\"", "\"alg\":\"x\",\"sig\""), Err(BadBinding));
    add("a field twice", &good.edit("\"sig\"", "\"sig\":\"\",\"sig\""), Err(BadBinding));
    add("a field missing", &good.edit("\"x5c\"", "\"x5d\""), Err(BadBinding));
    add("a padded payload", &good.edit("\",\"sig\"", "=\",\"sig\""), Err(BadBinding));
    let value: serde_json::Value = serde_json::from_str(&good).unwrap();
    let as_array = serde_json::to_string(&[&value["payload"], &value["sig"], &value["x5c"]]).unwrap();
    add("a binding that is an array", &as_array, Err(BadBinding));
    add("a byte order mark in front", &format!("\u{feff}{good}"), Err(BadBinding));
    add("something behind it", &format!("{good}{{}}"), Err(BadBinding));
    add("nothing", "", Err(BadBinding));
    for (times, expect) in [(32 * 1024 + 1, Oversized), (32 * 1024, BadBinding)] {
        let vector = Vector::timeless(&format!("{times} bytes"), b"{", Err(expect));
        vectors.push(Vector { repeat: times, ..vector });
    }
    vectors
}
