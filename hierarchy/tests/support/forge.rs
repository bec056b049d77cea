//! A writer that knows the wire format from its description alone and signs whatever it is given.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ed25519_dalek::{Signer as _, SigningKey};
use sha2::{Digest as _, Sha256, Sha512};

use super::{authority::Svid, scalar};

/// Stands for the slot in a text that is to be signed.
pub(crate) const SLOT: &str = "@@";

pub(crate) fn base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Text with one place changed.
pub(crate) trait Edit {
    /// Replaces `from`, which must occur exactly once.
    fn edit(&self, from: &str, to: &str) -> String;
}

impl Edit for str {
    fn edit(&self, from: &str, to: &str) -> String {
        assert_eq!(self.matches(from).count(), 1, "`{from}` in {self}");
        self.replacen(from, to, 1)
    }
}

/// An Ed25519 key and the id under which its binding is known.
#[derive(Clone)]
pub(crate) struct Pen {
    pub(crate) key: SigningKey,
    pub(crate) kid: [u8; 32],
}

impl Pen {
    /// Signs `text`, whose slot is marked by [`SLOT`], whatever it says.
    pub(crate) fn sign(&self, text: &str) -> Vec<u8> {
        self.sign_bytes(text.as_bytes())
    }

    /// As [`Pen::sign`], for bytes that need not be text.
    pub(crate) fn sign_bytes(&self, bytes: &[u8]) -> Vec<u8> {
        fill(bytes, &base64url(&self.key.sign(&self.message(bytes)).to_bytes()))
    }

    /// A true signature whose S is written as S + L: the equation holds, the spelling does not.
    pub(crate) fn sign_with_large_s(&self, text: &str) -> Vec<u8> {
        let mut signature = self.key.sign(&self.message(text.as_bytes())).to_bytes();
        let s = scalar::plus_order(signature[32..].try_into().unwrap());
        signature[32..].copy_from_slice(&s);
        fill(text.as_bytes(), &base64url(&signature))
    }

    /// A signature whose R is the neutral point: S = k * a makes the plain equation hold.
    pub(crate) fn sign_with_small_r(&self, text: &str) -> Vec<u8> {
        let mut signature = [0; 64];
        signature[0] = 1;
        let key = self.key.verifying_key();
        let message = self.message(text.as_bytes());
        let k = Sha512::new()
            .chain_update(&signature[..32])
            .chain_update(key.as_bytes())
            .chain_update(message)
            .finalize();
        signature[32..].copy_from_slice(&scalar::product(&k, &self.key.to_scalar_bytes_clamped()));
        fill(text.as_bytes(), &base64url(&signature))
    }

    /// What is signed for a text with a marked slot.
    pub(crate) fn message(&self, bytes: &[u8]) -> Vec<u8> {
        [b"LUCENT-MSG-SIG-v1\0".as_slice(), &self.kid, &digest(bytes)].concat()
    }
}

trait ClampedScalar {
    fn to_scalar_bytes_clamped(&self) -> [u8; 32];
}

impl ClampedScalar for SigningKey {
    fn to_scalar_bytes_clamped(&self) -> [u8; 32] {
        let mut scalar: [u8; 32] = Sha512::digest(self.as_bytes())[..32].try_into().unwrap();
        scalar[0] &= 248;
        scalar[31] = scalar[31] & 63 | 64;
        scalar
    }
}

/// The digest of a text with a marked slot.
pub(crate) fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest([b"LUCENT-ENV-v1\0".as_slice(), &fill(bytes, &"A".repeat(86))].concat()).into()
}

/// Puts `filling` where the slot is marked.
pub(crate) fn fill(bytes: &[u8], filling: &str) -> Vec<u8> {
    let at = bytes.windows(SLOT.len()).position(|w| w == SLOT.as_bytes()).unwrap();
    [&bytes[..at], filling.as_bytes(), &bytes[at + SLOT.len()..]].concat()
}

/// A key binding under construction; every part of it may lie.
pub(crate) struct BindingForge {
    pub(crate) statement: String,
    pub(crate) payload_type: &'static str,
    pub(crate) x5c: Vec<String>,
}

impl BindingForge {
    /// An honest binding of `key` to `svid`.
    pub(crate) fn honest(svid: &Svid, key: &SigningKey, id: &str, nbf: u64, exp: u64) -> BindingForge {
        let leaf = Sha256::digest(&svid.chain[0]);
        let pop = key.sign(&pop_message(&svid.chain[0], id)).to_bytes();
        let statement = format!(
            r#"{{"v":1,"id":"{id}","alg":"Ed25519","key":"{}","nbf":{nbf},"exp":{exp},"svid":"{}","aud":"lucent-mesh","pop":"{}"}}"#,
            base64url(key.verifying_key().as_bytes()),
            base64url(&leaf),
            base64url(&pop),
        );
        let x5c = svid.chain.iter().map(|certificate| base64url(certificate)).collect();
        BindingForge { statement, payload_type: "application/vnd.lucent.key-binding.v1+json", x5c }
    }

    /// The binding's JSON, signed by `svid`.
    pub(crate) fn sign(&self, svid: &Svid) -> String {
        let head =
            format!("DSSEv1 {} {} {} ", self.payload_type.len(), self.payload_type, self.statement.len());
        let signed = format!("{head}{}", self.statement);
        self.with_signature(&rcgen::SigningKey::sign(&svid.key, signed.as_bytes()).unwrap())
    }

    /// The binding's JSON under a signature made elsewhere.
    pub(crate) fn with_signature(&self, signature: &[u8]) -> String {
        let payload = base64url(self.statement.as_bytes());
        let x5c = serde_json::to_string(&self.x5c).unwrap();
        format!(r#"{{"payload":"{payload}","sig":"{}","x5c":{x5c}}}"#, base64url(signature))
    }
}

/// What proves possession of a key bound to the certificate `leaf` under `id`.
pub(crate) fn pop_message(leaf: &[u8], id: &str) -> Vec<u8> {
    [b"LUCENT-KB-POP-v1\0".as_slice(), &Sha256::digest(leaf), id.as_bytes()].concat()
}
