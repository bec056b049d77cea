//! Fences: how global's stream itself refuses what an earlier holder of the lease still has under way.
//!
//! A fence is a message on a subject of its own, and whatever the holder stores names the place of its own
//! fence: the server takes it only if that is still the last message of the subject. Who takes over stores
//! another fence, and then reads what there is. The server that leads the stream decides, in the order in which
//! it stores; no clock takes part. A fence that comes late, of a holder that was stopped while it took over,
//! costs the present holder a refused write and a new fence.

use async_nats::{
    HeaderMap,
    jetstream::{self, context::PublishError},
};
use bytes::Bytes;
use hierarchy::subject::{self, Speaker};

/// The server's headers for: only if the last message of that subject has this place.
const LAST_PLACE: &str = "Nats-Expected-Last-Subject-Sequence";
const LAST_PLACE_OF: &str = "Nats-Expected-Last-Subject-Sequence-Subject";

/// Stores a fence; its place. When this returns, nothing that names an earlier one can still be stored.
///
/// # Errors
/// The stream did not take it, or its answer was lost.
pub async fn raise(js: &jetstream::Context) -> Result<u64, PublishError> {
    Ok(js.publish(subject(), Bytes::from_static(b"{}")).await?.await?.sequence)
}

/// Makes a message conditional on the fence at this place.
pub fn name_in(headers: &mut HeaderMap, fence: u64) {
    headers.insert(LAST_PLACE, fence.to_string());
    headers.insert(LAST_PLACE_OF, subject());
}

/// Applications may not publish on the agent's own subjects.
fn subject() -> String {
    Speaker::Global.with_tail(subject::FENCE)
}
