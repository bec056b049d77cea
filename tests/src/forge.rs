//! Impostors: certificates that no honest authority would issue, and signers under any certificate.

use agent::dev::identities::{IssuedSvid, TRUST_DOMAIN};
use bytes::Bytes;
use hierarchy::{
    Identity, Lane, Millis, Path,
    envelope::{BatchHead, Draft, Sealed, Sender},
    link::{ChildMessage, ParcelHead, batch::MESSAGE_TYPE},
    signing::{Signer, SvidKey},
};
use rustls::{SignatureScheme, crypto::aws_lc_rs, sign::CertifiedKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde_json::{
    json,
    value::{RawValue, to_raw_value},
};

/// Signs as whomever the certificate names.
pub fn signer(svid: &IssuedSvid, path: &Path) -> Signer {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(svid.cert.as_bytes())
        .map(|cert| cert.expect("the certificate is PEM"))
        .collect();
    let key = PrivateKeyDer::from_pem_slice(svid.key.as_bytes()).expect("the key is PEM");
    let key = CertifiedKey::from_der(chain.clone(), key, &aws_lc_rs::default_provider())
        .expect("they belong together");
    let sender = Sender {
        service_id: "impostor".into(),
        instance_id: "impostor".into(),
        version: agent::VERSION.into(),
        node_id: path.to_string().into(),
    };
    let now = agent::clock::wall().0;
    let hour = 3600 * 1000;
    // The authority dates its certificates back by an hour.
    let validity = [Millis(now - hour / 2), Millis(now + hour)];
    let seed = *uuid::Uuid::new_v4().as_bytes();
    let seed: [u8; 32] = std::array::from_fn(|i| seed[i % 16]);
    Signer::new(identity(path), sender, &seed, &Key(key), &chain, validity).expect("the key signs")
}

/// The identity of an agent of the tests' meshes.
pub fn identity(path: &Path) -> Identity {
    let domain: hierarchy::TrustDomain = TRUST_DOMAIN.parse().expect("the domain is well formed");
    domain.identity(path.clone())
}

struct Key(CertifiedKey);

impl SvidKey for Key {
    type Error = rustls::Error;

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let scheme = self.0.key.choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256]);
        scheme.expect("the authority issues P-256 keys").sign(message)
    }
}

/// A link message as the shells of `agent` write it: an envelope, and behind it the batches of a frame.
pub fn link_message(signer: &Signer, subject: &str, message: &ChildMessage, batches: &[Sealed]) -> Bytes {
    let payload = to_raw_value(message).expect("link messages are JSON");
    let envelope = envelope(signer, message.kind(), subject, None, &payload);
    let mut bytes = envelope.bytes.to_vec();
    if !batches.is_empty() {
        bytes.push(b'\n');
        batches.iter().for_each(|batch| bytes.extend(&batch.bytes));
    }
    bytes.into()
}

/// A batch of one event.
pub fn batch(signer: &Signer, subject: &str, seq: u64, data: &serde_json::Value) -> Sealed {
    let event = json!({ "seq": seq, "ts": agent::clock::wall().0, "sub": 0, "data": data });
    let payload = to_raw_value(&json!({ "events": [event] })).expect("events are JSON");
    let subjects = vec![subject.to_owned()];
    let head = BatchHead { incarnation: 1, first: seq, last: seq, count: 1, subjects, tell: Vec::new() };
    envelope(signer, MESSAGE_TYPE, subject, Some(head), &payload)
}

/// The frame that hands these batches over, the first of them behind the place `after`.
pub fn frame(session: u64, after: u64, batches: &[Sealed]) -> ChildMessage {
    let parcels: Vec<ParcelHead> = (after..)
        .zip(batches)
        .map(|(after, batch)| {
            let len = u32::try_from(batch.bytes.len()).expect("batches of tests are small");
            ParcelHead { after, last: after + 1, len, digest: batch.digest }
        })
        .collect();
    let last = after + batches.len() as u64;
    ChildMessage::Frame { session, lane: Lane::Normal, bindings: Vec::new(), parcels, last }
}

fn envelope(
    signer: &Signer,
    kind: &str,
    subject: &str,
    batch: Option<BatchHead>,
    payload: &RawValue,
) -> Sealed {
    signer.seal(&Draft {
        message_id: uuid::Uuid::now_v7(),
        correlation_id: None,
        causation_id: None,
        timestamp: agent::clock::wall(),
        message_type: kind,
        subject,
        reply_to: None,
        priority: Lane::Normal,
        batch,
        payload,
    })
}
