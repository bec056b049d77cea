//! The envelope: the one signed message format (`docs/wire-format.md`).
//!
//! The exact bytes are signed, not a canonical form of them. The signature sits in a slot of fixed
//! width inside the JSON; it is computed with the slot filled by `A`s and then patched in. A reader
//! therefore never re-serialises anything in order to verify.

mod build;
mod parse;

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

pub(crate) use build::fill_slot;
pub use build::{Draft, Sealed};
pub use parse::Parsed;

use crate::{
    Lane, Level,
    strict_json::{Object, present, word, words},
};

/// The largest event that is taken, in bytes of the publisher's: 1 MiB.
pub const MAX_EVENT_BYTES: usize = 1 << 20;
/// The largest envelope that is carried: room for the largest event in base64, and its head.
pub const MAX_BYTES: usize = 3 << 19;
/// Width of the signature slot: 64 bytes in base64url without padding.
pub const SLOT: usize = 86;
/// The envelope version that this code writes and reads.
pub const VERSION: &str = "1.0";
/// Hashed in front of an envelope's bytes, so that no other signed thing can be taken for one.
const DIGEST_PREFIX: &[u8] = b"LUCENT-ENV-v1\0";

/// SHA-256 over an envelope's bytes with the slot filled by `A`s: what is signed, and how a parent's
/// receipt names what it accepted. In JSON: base64url, 43 characters.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(pub [u8; 32]);

/// Which process sent a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Sender<'a> {
    /// The service, for an agent `lucent-agent`.
    #[serde(borrow)]
    pub service_id: Cow<'a, str>,
    /// One run of the service.
    #[serde(borrow)]
    pub instance_id: Cow<'a, str>,
    /// The service's version.
    #[serde(borrow)]
    pub version: Cow<'a, str>,
    /// The path of the agent whose machine this is.
    #[serde(borrow)]
    pub node_id: Cow<'a, str>,
}

/// What a batch holds, readable without its payload.
///
/// Batches of one origin, incarnation and lane follow each other without a gap: each begins with the
/// number behind the last one's end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BatchHead {
    /// The stretch of numbering that these numbers belong to; an origin begins one whenever it starts.
    pub incarnation: u64,
    /// The first number that the batch answers for.
    pub first: u64,
    /// The last number that the batch answers for.
    pub last: u64,
    /// Number of events. The rest of `first` to `last` the origin's policy dropped.
    pub count: u32,
    /// The distinct subjects of the events, in order of appearance.
    pub subjects: Vec<String>,
    /// Levels that are to say when the batch is durable there, since a publisher waits for it.
    #[serde(default, deserialize_with = "words", skip_serializing_if = "Vec::is_empty")]
    pub tell: Vec<Level>,
}

/// The fields of `metadata.security` but the signature.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Security<'a> {
    #[serde(borrow)]
    identity: Cow<'a, str>,
    #[serde(borrow, default)]
    permissions: Vec<Cow<'a, str>>,
    kid: Digest,
    /// A missing slot is an empty one.
    #[serde(default)]
    signature: &'a str,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata<'a> {
    #[serde(deserialize_with = "word")]
    hierarchy_level: Level,
    #[serde(default, deserialize_with = "word")]
    priority: Lane,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    batch: Option<Object<BatchHead>>,
    #[serde(borrow)]
    security: Object<Security<'a>>,
}

/// The envelope's outer fields, in the order in which they are written.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Outer<'a> {
    #[serde(deserialize_with = "one_spelling")]
    message_id: uuid::Uuid,
    #[serde(borrow, default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    correlation_id: Option<Cow<'a, str>>,
    #[serde(borrow, default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    causation_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    timestamp: Cow<'a, str>,
    #[serde(borrow)]
    message_type: Cow<'a, str>,
    #[serde(borrow)]
    version: Cow<'a, str>,
    #[serde(borrow)]
    subject: Cow<'a, str>,
    #[serde(borrow, default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    reply_to: Option<Cow<'a, str>>,
    #[serde(borrow)]
    sender: Object<Sender<'a>>,
    #[serde(borrow, default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    jetstream: Option<&'a RawValue>,
    #[serde(borrow)]
    payload: &'a RawValue,
    #[serde(borrow)]
    metadata: Object<Metadata<'a>>,
}

/// A UUID in lowercase with hyphens: other spellings would make two ids of one.
fn one_spelling<'de, D: Deserializer<'de>>(deserializer: D) -> Result<uuid::Uuid, D::Error> {
    let text = <&str>::deserialize(deserializer)?;
    let id = text.parse::<uuid::Uuid>().map_err(D::Error::custom)?;
    let canonical = id.hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()) == text;
    canonical.then_some(id).ok_or_else(|| D::Error::custom("a UUID is written in lowercase with hyphens"))
}

impl Digest {
    /// The digest of an envelope whose slot starts at `slot`.
    pub(crate) fn of_envelope(bytes: &[u8], slot: usize) -> Digest {
        let mut hash = Sha256::new();
        hash.update(DIGEST_PREFIX);
        hash.update(&bytes[..slot]);
        hash.update([b'A'; SLOT]);
        hash.update(&bytes[slot + SLOT..]);
        Digest(hash.finalize().into())
    }

    /// Plain SHA-256, for key ids and certificates.
    pub fn sha256(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&crate::base64url::encode(&self.0))
    }
}

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Digest {
    type Err = &'static str;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        crate::base64url::decode_exact(s).map(Digest).ok_or("a digest is 43 characters of base64url")
    }
}

impl TryFrom<String> for Digest {
    type Error = &'static str;

    fn try_from(s: String) -> Result<Self, Self::Error> {
        s.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}
