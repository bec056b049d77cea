//! The signing side: one Ed25519 key, its binding, and the identity it speaks for.

use ed25519_dalek::{Signer as _, SigningKey};
use rustls_pki_types::CertificateDer;

use super::binding::{Binding, BindingClaims, pop_message, pre_authentication};
use crate::{
    Digest, Identity, Millis,
    envelope::{self, Draft, Sealed, Sender},
};

/// What holds an SVID's private key and can sign with it: ECDSA P-256 over SHA-256, DER-encoded.
pub trait SvidKey {
    /// Why it could not sign.
    type Error: std::error::Error + Send + Sync + 'static;

    /// The signature over `message`.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Self::Error>;
}

/// Signs envelopes as one identity.
pub struct Signer {
    identity: Identity,
    sender: Sender<'static>,
    key: SigningKey,
    kid: Digest,
    binding: Binding,
}

impl Signer {
    /// Binds a fresh Ed25519 key, made from `seed`, to the SVID whose chain (leaf first) and key
    /// are given. `validity` must lie within the leaf's own.
    pub fn new<K: SvidKey>(
        identity: Identity,
        sender: Sender<'static>,
        seed: &[u8; 32],
        svid: &K,
        chain: &[CertificateDer<'_>],
        validity: [Millis; 2],
    ) -> Result<Signer, K::Error> {
        let key = SigningKey::from_bytes(seed);
        let leaf = chain.first().map_or(Digest::sha256(b""), |leaf| Digest::sha256(leaf));
        let pop = key.sign(&pop_message(&leaf, &identity)).to_bytes();
        let claims = BindingClaims::new(identity.clone(), &key.verifying_key(), validity, leaf, &pop);
        let statement = serde_json::to_vec(&claims).expect("claims are strings and numbers");
        let signature = svid.sign(&pre_authentication(&statement))?;
        let binding = Binding::new(&statement, &signature, chain);
        Ok(Signer { identity, sender, key, kid: Digest::sha256(&statement), binding })
    }

    /// Who this signer speaks for.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The id of its key.
    pub fn kid(&self) -> Digest {
        self.kid
    }

    /// What a receiver needs in order to verify.
    pub fn binding(&self) -> &Binding {
        &self.binding
    }

    /// Makes and signs the envelope.
    pub fn seal(&self, draft: &Draft<'_>) -> Sealed {
        let (bytes, slot) = draft.unsigned(&self.identity, self.kid, &self.sender);
        // The slot of a fresh draft is already filled with `A`, so its plain bytes are what is hashed.
        let digest = Digest::of_envelope(&bytes, slot);
        let signature = self.key.sign(&super::message_to_sign(&self.kid, &digest)).to_bytes();
        Sealed { bytes: envelope::fill_slot(bytes, slot, &signature), digest }
    }
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer")
            .field("identity", &self.identity)
            .field("kid", &self.kid)
            .finish_non_exhaustive()
    }
}
