//! Writing an envelope.

use std::borrow::Cow;

use bytes::Bytes;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{BatchHead, Digest, Metadata, Outer, SLOT, Security, Sender, VERSION};
use crate::{Identity, Lane, Millis, strict_json::Object};

/// What an envelope is to say; [`crate::signing::Signer::seal`] makes the envelope of it.
#[derive(Debug, Clone)]
pub struct Draft<'a> {
    /// UUID v7, made by the caller.
    pub message_id: Uuid,
    /// The conversation this belongs to.
    pub correlation_id: Option<&'a str>,
    /// The message that caused this one.
    pub causation_id: Option<&'a str>,
    /// Now, by the signer's clock.
    pub timestamp: Millis,
    /// Kind of message.
    pub message_type: &'a str,
    /// Subject it is for. No outer text may need a JSON escape.
    pub subject: &'a str,
    /// Where an answer is awaited.
    pub reply_to: Option<&'a str>,
    /// Its priority.
    pub priority: Lane,
    /// What the batch holds, where it is one.
    pub batch: Option<BatchHead>,
    /// The payload.
    pub payload: &'a RawValue,
}

/// The tail of every envelope written here, behind the slot: signature, security, metadata, envelope.
const BEHIND_SLOT: usize = "\"}}}".len();

impl Draft<'_> {
    /// The envelope's bytes with an empty slot, and where the slot starts.
    pub(crate) fn unsigned(&self, identity: &Identity, kid: Digest, sender: &Sender<'_>) -> (Vec<u8>, usize) {
        let empty_slot = "A".repeat(SLOT);
        let outer = Outer {
            message_id: self.message_id,
            correlation_id: self.correlation_id.map(Cow::Borrowed),
            causation_id: self.causation_id.map(Cow::Borrowed),
            timestamp: self.timestamp.to_string().into(),
            message_type: self.message_type.into(),
            version: VERSION.into(),
            subject: self.subject.into(),
            reply_to: self.reply_to.map(Cow::Borrowed),
            sender: Object(sender.clone()),
            jetstream: None,
            payload: self.payload,
            metadata: Object(Metadata {
                hierarchy_level: identity.path.level(),
                priority: self.priority,
                batch: self.batch.clone().map(Object),
                security: Object(Security {
                    identity: identity.to_string().into(),
                    permissions: Vec::new(),
                    kid,
                    signature: &empty_slot,
                }),
            }),
        };
        let mut bytes = Vec::with_capacity(self.payload.get().len() + 1024);
        serde_json::to_writer(&mut bytes, &outer)
            .expect("an envelope has only string keys and writes to memory");
        let slot = bytes.len() - BEHIND_SLOT - SLOT;
        (bytes, slot)
    }
}

/// A finished envelope.
#[derive(Debug, Clone)]
pub struct Sealed {
    /// The bytes to send.
    pub bytes: Bytes,
    /// What was signed.
    pub digest: Digest,
}

/// Patches the signature into its slot.
pub(crate) fn fill_slot(mut bytes: Vec<u8>, slot: usize, signature: &[u8; 64]) -> Bytes {
    bytes[slot..slot + SLOT].copy_from_slice(crate::base64url::encode(signature).as_bytes());
    bytes.into()
}
