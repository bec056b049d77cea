//! Signatures: a short-lived Ed25519 key, bound to an X.509 SVID, signs every message.
//!
//! SPIFFE issuers hand out ECDSA or RSA certificates, never Ed25519. So each agent makes an Ed25519
//! key in memory and lets its SVID's key sign a statement about it, the *key binding*. Messages carry
//! the statement's hash (`kid`) and a signature; a receiver checks the binding once, then one Ed25519
//! signature a message.

mod binding;
mod signer;
mod trust;
mod verifier;

pub use binding::{Binding, BindingClaims};
pub use signer::{Signer, SvidKey};
pub use trust::TrustBundle;
pub use verifier::{Timeliness, Verified, Verifier};

/// Signed in front of kid and digest of a message.
const MESSAGE_PREFIX: &[u8] = b"LUCENT-MSG-SIG-v1\0";

/// What the Ed25519 key signs for a message: prefix, key id, digest.
fn message_to_sign(kid: &crate::Digest, digest: &crate::Digest) -> Vec<u8> {
    [MESSAGE_PREFIX, &kid.0, &digest.0].concat()
}
