//! The statement that binds an Ed25519 key to an SVID.

use ed25519_dalek::VerifyingKey;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use webpki::{EndEntityCert, aws_lc_rs as algs};

use super::TrustBundle;
use crate::{Digest, Identity, Millis, Refusal, base64url, strict_json::Object};

/// What the payload is, in the pre-authentication encoding (DSSE) that the SVID's key signs.
const PAYLOAD_TYPE: &str = "application/vnd.lucent.key-binding.v1+json";
const POP_PREFIX: &[u8] = b"LUCENT-KB-POP-v1\0";
const AUDIENCE: &str = "lucent-mesh";
/// Leaf plus intermediates; SPIRE nests two or three levels.
const MAX_CHAIN: usize = 6;
/// A binding that is larger than this is refused unread.
const MAX_BYTES: usize = 32 * 1024;

/// The statement itself. Its exact bytes are hashed to the key id.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BindingClaims {
    v: u8,
    /// Who holds the key.
    pub id: Identity,
    alg: String,
    key: String,
    /// Valid from, in milliseconds since 1970.
    pub nbf: Millis,
    /// Valid until, never beyond the SVID's own end.
    pub exp: Millis,
    svid: Digest,
    aud: String,
    pop: String,
}

/// The statement as it travels: payload, the SVID key's ECDSA signature, and the SVID's chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Binding {
    payload: String,
    sig: String,
    x5c: Vec<String>,
}

/// A binding that was checked: what is left of it in a cache.
#[derive(Debug, Clone)]
pub(super) struct Bound {
    pub(super) identity: Identity,
    pub(super) key: VerifyingKey,
    pub(super) nbf: Millis,
    pub(super) exp: Millis,
    /// Of the whole binding: the key id covers the statement alone, not what vouches for it.
    pub(super) fingerprint: Digest,
}

/// What proves possession of the Ed25519 key, and ties it to certificate and identity.
pub(super) fn pop_message(svid: &Digest, id: &Identity) -> Vec<u8> {
    [POP_PREFIX, &svid.0, id.to_string().as_bytes()].concat()
}

/// DSSE's pre-authentication encoding of a statement: what the SVID's key signs.
pub(super) fn pre_authentication(statement: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {PAYLOAD_TYPE} {} ", PAYLOAD_TYPE.len(), statement.len());
    [head.as_bytes(), statement].concat()
}

impl BindingClaims {
    pub(super) fn new(
        id: Identity,
        key: &VerifyingKey,
        validity: [Millis; 2],
        svid: Digest,
        pop: &[u8],
    ) -> Self {
        BindingClaims {
            v: 1,
            id,
            alg: "Ed25519".into(),
            key: base64url::encode(key.as_bytes()),
            nbf: validity[0],
            exp: validity[1],
            svid,
            aud: AUDIENCE.into(),
            pop: base64url::encode(pop),
        }
    }
}

impl Binding {
    pub(super) fn new(statement: &[u8], signature: &[u8], chain: &[CertificateDer<'_>]) -> Binding {
        Binding {
            payload: base64url::encode(statement),
            sig: base64url::encode(signature),
            x5c: chain.iter().map(|cert| base64url::encode(cert)).collect(),
        }
    }

    /// Reads a binding from its JSON text.
    pub fn from_json(text: &[u8]) -> Result<Binding, Refusal> {
        if text.len() > MAX_BYTES {
            return Err(Refusal::Oversized);
        }
        let Object(binding) = serde_json::from_slice(text).map_err(|_| Refusal::BadBinding)?;
        Ok(binding)
    }

    /// Its JSON text.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a binding is strings only")
    }

    /// The key id that messages under this binding carry.
    pub fn kid(&self) -> Result<Digest, Refusal> {
        Ok(Digest::sha256(&base64url::decode(&self.payload).ok_or(Refusal::BadBinding)?))
    }

    /// Tells this binding from another one around the same statement.
    pub(super) fn fingerprint(&self) -> Digest {
        Digest::sha256(self.to_json().as_bytes())
    }

    /// Checks everything a binding promises; only then is its key good for anything.
    pub(super) fn check(&self, trust: &TrustBundle) -> Result<(Digest, Bound), Refusal> {
        if self.x5c.is_empty() || self.x5c.len() > MAX_CHAIN {
            return Err(Refusal::BadBinding);
        }
        let decode = |text: &str| base64url::decode(text).ok_or(Refusal::BadBinding);
        let statement = decode(&self.payload)?;
        let Object::<BindingClaims>(claims) =
            serde_json::from_slice(&statement).map_err(|_| Refusal::BadBinding)?;
        let chain =
            self.x5c.iter().map(|c| decode(c).map(CertificateDer::from)).collect::<Result<Vec<_>, _>>()?;
        if (claims.v, claims.alg.as_str(), claims.aud.as_str()) != (1, "Ed25519", AUDIENCE)
            || claims.nbf >= claims.exp
            || claims.svid != Digest::sha256(&chain[0])
        {
            return Err(Refusal::BadBinding);
        }

        let leaf = EndEntityCert::try_from(&chain[0]).map_err(|_| Refusal::BadBinding)?;
        let identity = trust.check_leaf(&leaf, &chain[1..], [claims.nbf, claims.exp])?;
        if identity != claims.id {
            return Err(Refusal::IdentityMismatch);
        }
        let signature = decode(&self.sig)?;
        leaf.verify_signature(algs::ECDSA_P256_SHA256, &pre_authentication(&statement), &signature)
            .map_err(|_| Refusal::BadBinding)?;

        let key = base64url::decode_exact(&claims.key).ok_or(Refusal::BadBinding)?;
        let key = VerifyingKey::from_bytes(&key).map_err(|_| Refusal::BadBinding)?;
        let pop = base64url::decode_exact(&claims.pop).ok_or(Refusal::BadBinding)?;
        if key.is_weak() {
            return Err(Refusal::BadBinding);
        }
        key.verify_strict(&pop_message(&claims.svid, &identity), &pop.into())
            .map_err(|_| Refusal::BadBinding)?;

        let fingerprint = self.fingerprint();
        let bound = Bound { identity, key, nbf: claims.nbf, exp: claims.exp, fingerprint };
        Ok((Digest::sha256(&statement), bound))
    }
}
