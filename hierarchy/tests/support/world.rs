//! A small world: one authority, four agents with fixed Ed25519 keys, fixed times. Certificates and
//! ECDSA signatures are random, so a world is made once and kept in `tests/vectors/world.json`.

use std::{collections::BTreeMap, convert::Infallible};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ed25519_dalek::SigningKey;
use hierarchy::{
    Identity, Lane, Millis, TrustDomain,
    envelope::{Draft, Sealed, Sender},
    link::Pack,
    signing::{Binding, Signer, SvidKey, TrustBundle, Verifier},
};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{authority::Authority, forge, forge::Pen, vector};

/// 2025-09-02T10:00:00Z: certificates and bindings begin.
pub(crate) const BEGIN: Millis = Millis(1_756_807_200_000);
/// 2025-09-02T10:30:00.123Z: messages are signed.
pub(crate) const SIGNED: Millis = Millis(1_756_809_000_123);
/// A second later: messages are received.
pub(crate) const NOW: Millis = Millis(1_756_809_001_123);
/// 2025-09-02T11:00:00Z: certificates and bindings end.
pub(crate) const END: Millis = Millis(1_756_810_800_000);

/// The trust domain that counts.
pub(crate) const DOMAIN: &str = "lucent.test";
/// A second trust domain, known to the receiver, of which nothing more is true.
pub(crate) const OTHER_DOMAIN: &str = "other.test";
/// The agents and where they stand.
pub(crate) const AGENTS: [(&str, &str); 4] =
    [("n1", "/s1/c1/n1"), ("n2", "/s1/c1/n2"), ("c1", "/s1/c1"), ("core", "")];

/// What receivers are given, and the keys of the writers. Everything in it is for tests only.
#[derive(Serialize, Deserialize)]
pub(crate) struct World {
    /// Trust domain to authorities: DER in standard base64.
    pub(crate) bundle: BTreeMap<String, Vec<String>>,
    pub(crate) agents: BTreeMap<String, Agent>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Agent {
    /// The Ed25519 key's seed: standard base64.
    seed: String,
    pub(crate) binding: Binding,
}

/// The parts of a binding that the tests look into.
#[derive(Deserialize)]
struct Opened {
    payload: String,
    sig: String,
    x5c: Vec<String>,
}

#[derive(Deserialize)]
struct Claims {
    id: Identity,
    nbf: Millis,
    exp: Millis,
}

/// An SVID key that made one signature, once.
struct Recorded(Vec<u8>);

impl SvidKey for Recorded {
    type Error = Infallible;

    fn sign(&self, _: &[u8]) -> Result<Vec<u8>, Infallible> {
        Ok(self.0.clone())
    }
}

impl World {
    /// Another world, with other certificates. The authorities are returned for those who want more
    /// certificates of them.
    pub(crate) fn new() -> (World, [Authority; 2]) {
        let authorities = [Authority::root("Lucent Test"), Authority::root("Other Test")];
        let bundle = [DOMAIN, OTHER_DOMAIN]
            .iter()
            .zip(&authorities)
            .map(|(domain, a)| (domain.to_string(), vec![STANDARD.encode(&a.certificate)]))
            .collect();
        let agents = AGENTS
            .iter()
            .zip(1u8..)
            .map(|((name, path), number)| {
                let id = identity(path);
                let (seed, svid) = ([number; 32], authorities[0].svid(&id.to_string()));
                let signer = Signer::new(id, sender(path), &seed, &svid, &svid.chain, [BEGIN, END]).unwrap();
                (name.to_string(), Agent { seed: STANDARD.encode(seed), binding: signer.binding().clone() })
            })
            .collect();
        (World { bundle, agents }, authorities)
    }

    /// The world that the vectors are about.
    pub(crate) fn committed() -> World {
        vector::read("world.json")
    }

    pub(crate) fn trust(&self) -> TrustBundle {
        let mut trust = TrustBundle::default();
        for (domain, authorities) in &self.bundle {
            for authority in authorities {
                let der = CertificateDer::from(STANDARD.decode(authority).unwrap());
                trust.add(domain.parse().unwrap(), &der).unwrap();
            }
        }
        trust
    }

    /// A receiver that has seen every agent's binding.
    pub(crate) fn verifier(&self) -> Verifier {
        let mut verifier = Verifier::new(self.trust(), 16);
        for agent in self.agents.values() {
            verifier.learn(&agent.binding).unwrap();
        }
        verifier
    }

    /// The signer of the agent `name`, as it was when its binding was made.
    pub(crate) fn signer(&self, name: &str) -> Signer {
        let agent = &self.agents[name];
        let opened: Opened = serde_json::from_str(&agent.binding.to_json()).unwrap();
        let decode = |text: &str| hierarchy::base64url::decode(text).unwrap();
        let claims: Claims = serde_json::from_slice(&decode(&opened.payload)).unwrap();
        let chain: Vec<_> = opened.x5c.iter().map(|c| CertificateDer::from(decode(c))).collect();
        let path = AGENTS.iter().find(|(agent, _)| *agent == name).unwrap().1;
        let (seed, svid) = (self.seed(name), Recorded(decode(&opened.sig)));
        let Ok(signer) = Signer::new(claims.id, sender(path), &seed, &svid, &chain, [claims.nbf, claims.exp]);
        signer
    }

    /// The key of the agent `name`, for what its signer would not write.
    pub(crate) fn pen(&self, name: &str) -> Pen {
        Pen { key: SigningKey::from_bytes(&self.seed(name)), kid: self.agents[name].binding.kid().unwrap().0 }
    }

    fn seed(&self, name: &str) -> [u8; 32] {
        STANDARD.decode(&self.agents[name].seed).unwrap().try_into().unwrap()
    }
}

pub(crate) fn identity(path: &str) -> Identity {
    format!("spiffe://{DOMAIN}/mesh{path}").parse().unwrap()
}

fn sender(path: &str) -> Sender<'static> {
    let node_id = if path.is_empty() { "global" } else { &path[1..] };
    Sender {
        service_id: "lucent-agent".into(),
        instance_id: "i-1".into(),
        version: "0.1.0".into(),
        node_id: node_id.to_owned().into(),
    }
}

/// The id of every message here: UUID v7 of [`SIGNED`].
pub(crate) fn message_id() -> Uuid {
    uuid::Builder::from_unix_timestamp_millis(SIGNED.0, &[7; 10]).into_uuid()
}

/// A draft that says little.
pub(crate) fn draft<'a>(subject: &'a str, payload: &'a RawValue) -> Draft<'a> {
    Draft {
        message_id: message_id(),
        correlation_id: None,
        causation_id: None,
        timestamp: SIGNED,
        message_type: "PositionUpdatedEvent",
        subject,
        reply_to: None,
        priority: Lane::Normal,
        batch: None,
        payload,
    }
}

/// Seals a batch.
pub(crate) fn seal_pack(signer: &Signer, pack: &Pack) -> Sealed {
    signer.seal(&Draft {
        message_type: hierarchy::link::batch::MESSAGE_TYPE,
        priority: pack.lane,
        batch: Some(pack.head.clone()),
        ..draft(&pack.subject, &pack.payload)
    })
}

pub(crate) fn raw(json: &str) -> Box<RawValue> {
    RawValue::from_string(json.to_owned()).unwrap()
}

/// A sealed envelope as text, with its slot marked for [`Pen::sign`].
pub(crate) fn marked(sealed: &Sealed) -> String {
    let text = std::str::from_utf8(&sealed.bytes).unwrap();
    let (front, _) = text.rsplit_once("\"signature\":\"").unwrap();
    format!("{front}\"signature\":\"{}\"}}}}}}", forge::SLOT)
}

/// The trust domain of this world.
pub(crate) fn domain() -> TrustDomain {
    DOMAIN.parse().unwrap()
}
