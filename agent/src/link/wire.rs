//! Link messages to and from bytes: a signed envelope, and behind it the batches of a frame.

use bytes::{BufMut as _, Bytes, BytesMut};
use hierarchy::{
    Identity, Lane, Millis, Refusal,
    envelope::Draft,
    link::{ChildMessage, ParentMessage},
    signing::{Signer, Timeliness, Verifier},
};
use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

/// A message of either direction.
pub(crate) trait LinkMessage {
    /// The `messageType` that goes with it.
    fn kind(&self) -> &'static str;
}

impl LinkMessage for ChildMessage {
    fn kind(&self) -> &'static str {
        ChildMessage::kind(self)
    }
}

impl LinkMessage for ParentMessage {
    fn kind(&self) -> &'static str {
        ParentMessage::kind(self)
    }
}

/// The bytes of one link message, and of what follows it.
pub(crate) fn seal<M: Serialize + LinkMessage>(
    signer: &Signer,
    subject: &str,
    message: &M,
    bodies: &[Bytes],
    now: Millis,
) -> Bytes {
    let payload = serde_json::value::to_raw_value(message).expect("link messages have only string keys");
    let envelope = signer.seal(&Draft {
        message_id: Uuid::now_v7(),
        correlation_id: None,
        causation_id: None,
        timestamp: now,
        message_type: message.kind(),
        subject,
        reply_to: None,
        priority: Lane::Normal,
        batch: None,
        payload: &payload,
    });
    if bodies.is_empty() {
        return envelope.bytes;
    }
    let size = bodies.iter().map(Bytes::len).sum::<usize>();
    let mut bytes = BytesMut::with_capacity(envelope.bytes.len() + 1 + size);
    bytes.put(envelope.bytes);
    bytes.put_u8(b'\n');
    for body in bodies {
        bytes.put_slice(body);
    }
    bytes.freeze()
}

/// A link message that was verified as coming from `peer` on `subject`, and the bytes behind it.
pub(crate) fn open<M: DeserializeOwned + LinkMessage>(
    verifier: &Verifier,
    peer: &Identity,
    subject: &str,
    bytes: &Bytes,
    now: Millis,
) -> Result<(M, Bytes), Refusal> {
    let (head, rest) = match bytes.iter().position(|&b| b == b'\n') {
        Some(end) => (&bytes[..end], bytes.slice(end + 1..)),
        None => (&bytes[..], Bytes::new()),
    };
    let verified = verifier.verify(head, now, Timeliness::Session)?;
    if verified.envelope.identity() != peer {
        return Err(Refusal::IdentityMismatch);
    }
    if verified.envelope.subject() != subject {
        return Err(Refusal::WrongSubject);
    }
    let message: M =
        serde_json::from_str(verified.envelope.payload().get()).map_err(|_| Refusal::BadPayload)?;
    if verified.envelope.message_type() != message.kind() {
        return Err(Refusal::BadPayload);
    }
    Ok((message, rest))
}
