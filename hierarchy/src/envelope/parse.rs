//! Reading an envelope: strict, without copying, without trusting a byte of it.

use serde_json::value::RawValue;
use uuid::Uuid;

use super::{BatchHead, Digest, MAX_BYTES, Outer, SLOT, Security, Sender, VERSION};
use crate::{Identity, Lane, Level, Millis, Refusal, strict_json};

/// An envelope whose form is sound. Nothing is known yet of who wrote it: see
/// [`crate::signing::Verifier::verify`].
#[derive(Debug, Clone)]
pub struct Parsed<'a> {
    outer: Outer<'a>,
    identity: Identity,
    timestamp: Millis,
    slot: usize,
    bytes: &'a [u8],
}

impl<'a> Parsed<'a> {
    /// Checks size, form, version and slot, in this order.
    pub fn parse(bytes: &'a [u8]) -> Result<Parsed<'a>, Refusal> {
        if bytes.len() > MAX_BYTES {
            return Err(Refusal::Oversized);
        }
        // serde_json would skip white space around the object, which nobody signed on purpose.
        if bytes.first() != Some(&b'{') || bytes.last() != Some(&b'}') {
            return Err(Refusal::Malformed);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| Refusal::Malformed)?;
        let outer: Outer<'a> = serde_json::from_str(text).map_err(|_| Refusal::Malformed)?;

        let payload = span(bytes, outer.payload.get().as_bytes());
        // No outer name or value needs an escape, so an escape can only be a disguise. Within
        // `jetstream`, which nothing here interprets, one is refused as well, and so is what two
        // readers could understand differently.
        let escaped = |part: &[u8]| part.contains(&b'\\');
        if escaped(&bytes[..payload.start]) || escaped(&bytes[payload.end..]) {
            return Err(Refusal::Malformed);
        }
        if outer.jetstream.is_some_and(|raw| !strict_json::is_strict(raw.get().as_bytes())) {
            return Err(Refusal::Malformed);
        }
        let security = &outer.metadata.0.security.0;
        let identity = security.identity.parse().map_err(|_| Refusal::Malformed)?;
        let timestamp = outer.timestamp.parse().map_err(|_| Refusal::Malformed)?;
        if outer.version != VERSION {
            return Err(Refusal::UnsupportedVersion);
        }
        if security.signature.len() != SLOT {
            return Err(Refusal::BadSlot);
        }
        let slot = span(bytes, security.signature.as_bytes()).start;
        Ok(Parsed { outer, identity, timestamp, slot, bytes })
    }

    /// The digest that the signature must cover.
    pub fn digest(&self) -> Digest {
        Digest::of_envelope(self.bytes, self.slot)
    }

    /// The signature's bytes; refused where they are no canonical base64url or all zero.
    pub fn signature(&self) -> Result<[u8; 64], Refusal> {
        match crate::base64url::decode_exact(self.security().signature) {
            Some(signature) if signature != [0; 64] => Ok(signature),
            _ => Err(Refusal::BadSlot),
        }
    }

    /// The id of the key that is said to have signed.
    pub fn kid(&self) -> Digest {
        self.security().kid
    }

    /// Who is said to speak.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The message's id.
    pub fn message_id(&self) -> Uuid {
        self.outer.message_id
    }

    /// When it was signed, by the signer's clock.
    pub fn timestamp(&self) -> Millis {
        self.timestamp
    }

    /// What kind of message this is.
    pub fn message_type(&self) -> &str {
        &self.outer.message_type
    }

    /// The subject it was made for.
    pub fn subject(&self) -> &str {
        &self.outer.subject
    }

    /// Where an answer is awaited.
    pub fn reply_to(&self) -> Option<&str> {
        self.outer.reply_to.as_deref()
    }

    /// The correlation id.
    pub fn correlation_id(&self) -> Option<&str> {
        self.outer.correlation_id.as_deref()
    }

    /// Which process sent it.
    pub fn sender(&self) -> &Sender<'a> {
        &self.outer.sender.0
    }

    /// The level it was written at.
    pub fn level(&self) -> Level {
        self.outer.metadata.0.hierarchy_level
    }

    /// Its priority.
    pub fn priority(&self) -> Lane {
        self.outer.metadata.0.priority
    }

    /// What the batch holds, where it is one.
    pub fn batch(&self) -> Option<&BatchHead> {
        self.outer.metadata.0.batch.as_ref().map(|batch| &batch.0)
    }

    /// The payload's exact text.
    pub fn payload(&self) -> &'a RawValue {
        self.outer.payload
    }

    fn security(&self) -> &Security<'a> {
        &self.outer.metadata.0.security.0
    }
}

/// Where `part`, a slice of `whole`, lies in it.
fn span(whole: &[u8], part: &[u8]) -> std::ops::Range<usize> {
    let start = part.as_ptr().addr() - whole.as_ptr().addr();
    start..start + part.len()
}
