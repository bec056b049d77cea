//! Keys, bindings and who is trusted. The single refusals of bindings are in the vectors; see
//! `vectors.rs`.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use ed25519_dalek::SigningKey;
use hierarchy::{
    Millis, Refusal,
    envelope::Sender,
    signing::{Binding, Signer, Timeliness, TrustBundle, Verifier},
};

use webpki::EndEntityCert;

use support::{
    authority::{Authority, Svid, date},
    forge::BindingForge,
    world::{BEGIN, DOMAIN, END, NOW, World, domain, draft, identity, raw},
};

const HOUR: u64 = 3_600_000;
const AGE: Timeliness = Timeliness::Live(Duration::from_secs(60));
const ID: &str = "spiffe://lucent.test/mesh/s1/c1/n1";

fn trusting(authority: &Authority) -> TrustBundle {
    let mut trust = TrustBundle::default();
    trust.add(domain(), &authority.certificate).unwrap();
    trust
}

fn sender() -> Sender<'static> {
    Sender {
        service_id: "lucent-agent".into(),
        instance_id: "i-1".into(),
        version: "0.1.0".into(),
        node_id: "s1/c1/n1".into(),
    }
}

fn signer(svid: &Svid, seed: u8) -> Signer {
    Signer::new(identity("/s1/c1/n1"), sender(), &[seed; 32], svid, &svid.chain, [BEGIN, END]).unwrap()
}

#[test]
fn a_signer_below_an_intermediate_is_believed_by_who_trusts_the_root() {
    let root = Authority::root("Root");
    let svid = root.intermediate("Site").intermediate("Cluster").svid(ID);
    let signer = signer(&svid, 1);
    let mut verifier = Verifier::new(trusting(&root), 4);
    let sealed = signer.seal(&draft("lucent.hierarchy.node.n1", &raw("{}")));
    assert_eq!(verifier.verify(&sealed.bytes, NOW, AGE).unwrap_err(), Refusal::UnknownKid);

    let travelled = Binding::from_json(signer.binding().to_json().as_bytes()).unwrap();
    assert_eq!(verifier.learn(&travelled), Ok(signer.kid()));
    assert_eq!(verifier.verify(&sealed.bytes, NOW, AGE).unwrap().digest, sealed.digest);

    let mut stranger = Verifier::new(trusting(&Authority::root("Root")), 4);
    assert_eq!(stranger.learn(&travelled), Err(Refusal::UntrustedIssuer));
    assert!(!stranger.knows(&signer.kid()));
    assert_eq!(Verifier::new(TrustBundle::default(), 4).learn(&travelled), Err(Refusal::UntrustedIssuer));
}

#[test]
fn several_authorities_of_one_domain_count_as_while_one_replaces_another() {
    let (old, new) = (Authority::root("Root"), Authority::root("Root"));
    let mut trust = trusting(&old);
    trust.add(domain(), &new.certificate).unwrap();
    trust.add(domain(), &new.certificate).unwrap();
    let mut verifier = Verifier::new(trust, 4);
    for authority in [&old, &new] {
        let signer = signer(&authority.svid(ID), 1);
        assert_eq!(verifier.learn(signer.binding()), Ok(signer.kid()));
    }
}

#[test]
fn what_is_no_certificate_is_no_authority() {
    let garbage = b"-----BEGIN CERTIFICATE-----".to_vec().into();
    assert_eq!(TrustBundle::default().add(domain(), &garbage), Err(Refusal::BadBinding));
}

#[test]
fn the_oldest_binding_leaves_a_full_cache_and_can_come_back() {
    let root = Authority::root("Root");
    let svid = root.svid(ID);
    let signers: Vec<_> = (1..=4).map(|seed| signer(&svid, seed)).collect();
    let mut verifier = Verifier::new(trusting(&root), 3);
    let known = |verifier: &Verifier| signers.iter().map(|s| verifier.knows(&s.kid())).collect::<Vec<_>>();

    for signer in &signers[..3] {
        verifier.learn(signer.binding()).unwrap();
    }
    verifier.learn(signers[0].binding()).unwrap();
    assert_eq!(known(&verifier), [true, true, true, false], "a known binding takes no second place");
    verifier.learn(signers[3].binding()).unwrap();
    assert_eq!(known(&verifier), [false, true, true, true]);

    let sealed = signers[0].seal(&draft("lucent.hierarchy.node.n1", &raw("{}")));
    assert_eq!(verifier.verify(&sealed.bytes, NOW, AGE).unwrap_err(), Refusal::UnknownKid);
    verifier.learn(signers[0].binding()).unwrap();
    assert!(verifier.verify(&sealed.bytes, NOW, AGE).is_ok());
    assert_eq!(known(&verifier), [true, false, true, true]);
}

#[test]
fn a_refused_binding_evicts_nothing() {
    let root = Authority::root("Root");
    let good = signer(&root.svid(ID), 1);
    let mut verifier = Verifier::new(trusting(&root), 1);
    verifier.learn(good.binding()).unwrap();
    let foreign = signer(&Authority::root("Root").svid(ID), 2);
    assert_eq!(verifier.learn(foreign.binding()), Err(Refusal::UntrustedIssuer));
    assert!(verifier.knows(&good.kid()));
}

/// The key id covers the statement alone. A receiver that passes bindings on must not be made to pass
/// on one that nobody else will believe.
#[test]
fn a_known_statement_is_checked_again_when_something_else_vouches_for_it() {
    let root = Authority::root("Root");
    let svid = root.svid(ID);
    let key = SigningKey::from_bytes(&[1; 32]);
    let forge = BindingForge::honest(&svid, &key, ID, BEGIN.0, END.0);
    let unsigned = Binding::from_json(forge.with_signature(b"nothing").as_bytes()).unwrap();

    let mut verifier = Verifier::new(trusting(&root), 1);
    assert_eq!(verifier.learn(&unsigned), Err(Refusal::BadBinding));
    let signed = Binding::from_json(forge.sign(&svid).as_bytes()).unwrap();
    let kid = verifier.learn(&signed).unwrap();
    assert_eq!(verifier.learn(&unsigned), Err(Refusal::BadBinding));
    let resigned = Binding::from_json(forge.sign(&svid).as_bytes()).unwrap();
    assert_ne!(resigned, signed, "the SVID's signatures are random");
    assert_eq!(verifier.learn(&resigned), Ok(kid));
    let honest = signer(&svid, 1);
    assert_eq!(honest.kid(), kid, "the description of the statement, followed by hand, gives its bytes");
    let sealed = honest.seal(&draft("lucent.hierarchy.node.n1", &raw("{}")));
    assert!(verifier.verify(&sealed.bytes, NOW, AGE).is_ok());
}

/// One SVID, two agents' runs: the binding says which key a message is under.
#[test]
fn two_keys_under_one_svid_are_told_apart() {
    let root = Authority::root("Root");
    let svid = root.svid(ID);
    let (first, second) = (signer(&svid, 1), signer(&svid, 2));
    assert_ne!(first.kid(), second.kid());
    let mut verifier = Verifier::new(trusting(&root), 4);
    verifier.learn(first.binding()).unwrap();
    let sealed = second.seal(&draft("lucent.hierarchy.node.n1", &raw("{}")));
    assert_eq!(verifier.verify(&sealed.bytes, NOW, AGE).unwrap_err(), Refusal::UnknownKid);
}

#[test]
fn a_key_never_shows_in_debug_output() {
    let signer = World::committed().signer("n1");
    let shown = format!("{signer:?}");
    assert!(shown.contains(&signer.kid().to_string()) && !shown.contains("key"), "{shown}");
}

/// The two ends of a binding's life against those of its certificate, to the second: certificates
/// know no milliseconds.
#[test]
fn a_binding_may_live_exactly_as_long_as_its_certificate() {
    let root = Authority::root("Root");
    let svid = root.svid(ID);
    let learn = |nbf: Millis, exp: Millis| {
        let key = SigningKey::from_bytes(&[1; 32]);
        let json = BindingForge::honest(&svid, &key, ID, nbf.0, exp.0).sign(&svid);
        Verifier::new(trusting(&root), 1).learn(&Binding::from_json(json.as_bytes()).unwrap()).map(drop)
    };
    assert_eq!(learn(BEGIN, END), Ok(()));
    assert_eq!(learn(Millis(BEGIN.0 - 1), END), Err(Refusal::ExpiredBinding));
    assert_eq!(learn(BEGIN, Millis(END.0 + 1000)), Err(Refusal::ExpiredBinding));
    assert_eq!(learn(BEGIN, Millis(u64::MAX)), Err(Refusal::ExpiredBinding));
    assert_eq!(learn(Millis(0), END), Err(Refusal::ExpiredBinding));
}

#[test]
fn an_identity_is_looked_up_in_its_own_domain_only() {
    let (ours, theirs) = (Authority::root("Ours"), Authority::root("Theirs"));
    let mut trust = trusting(&ours);
    trust.add("other.test".parse().unwrap(), &theirs.certificate).unwrap();
    let learn = |authority: &Authority, id: &str| {
        let svid = authority.svid(id);
        let key = SigningKey::from_bytes(&[1; 32]);
        let json = BindingForge::honest(&svid, &key, id, BEGIN.0, END.0).sign(&svid);
        let binding = Binding::from_json(json.as_bytes()).unwrap();
        Verifier::new(trust.clone(), 1).learn(&binding).map(drop)
    };
    let other = ID.replace(DOMAIN, "other.test");
    assert_eq!(learn(&ours, ID), Ok(()));
    assert_eq!(learn(&theirs, &other), Ok(()));
    assert_eq!(learn(&theirs, ID), Err(Refusal::UntrustedIssuer));
    assert_eq!(learn(&ours, &other), Err(Refusal::UntrustedIssuer));
}

/// For an agent whose own clock is wrong.
#[test]
fn the_nearest_time_at_which_a_chain_holds_is_an_end_of_its_shortest_certificate() {
    let root = Authority::root("Root");
    let (not_before, not_after) =
        (Millis(NOW.0 / 1000 * 1000 - HOUR / 4), Millis(NOW.0 / 1000 * 1000 + HOUR / 4));
    let issuing = root.intermediate_with("Site", |params| {
        (params.not_before, params.not_after) = (date(not_before), date(not_after));
    });
    let nearest = |svid: &Svid, now: u64| {
        let leaf = EndEntityCert::try_from(&svid.chain[0]).unwrap();
        trusting(&root).nearest(&leaf, &svid.chain[1..], Millis(now))
    };
    let svid = issuing.svid(ID);
    for (now, expected) in [
        (NOW.0, NOW),
        (not_before.0 - 1000, not_before),
        (BEGIN.0 - 3 * HOUR, not_before),
        (not_after.0 + 1000, not_after),
        (END.0 + 3 * HOUR, not_after),
    ] {
        assert_eq!(nearest(&svid, now), expected, "at {now}");
    }
    // What is wrong with it is not the time.
    let stranger = Authority::root("Root").svid(ID);
    assert_eq!(nearest(&stranger, END.0 + HOUR), Millis(END.0 + HOUR));
}
