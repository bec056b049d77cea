//! Raising fences in global's stream, see [`coordinator::fence`], and naming them in what is written.

use async_nats::{
    HeaderMap,
    jetstream::{self, context::PublishError, message::PublishMessage},
};
use bytes::Bytes;
use coordinator::Fences;
use hierarchy::subject::{self, Speaker};

/// So many batches may be under way into the stream.
const POSTS: usize = 16;
/// The server's names for: only if the last message of that subject has this place.
const LAST_PLACE: &str = "Nats-Expected-Last-Subject-Sequence";
const LAST_PLACE_OF: &str = "Nats-Expected-Last-Subject-Sequence-Subject";

/// Fences at all posts. When this returns, nothing that an earlier holder has under way can still be stored,
/// unless it raises fences anew.
///
/// # Errors
/// The stream did not take one: it is not there, or another replica is raising fences, too. Try again.
pub async fn raise(js: &jetstream::Context) -> Result<Fences, PublishError> {
    let gate = subject("gate");
    let place = js.publish(gate.clone(), fence()).await?.await?.sequence;
    let mut places = Vec::with_capacity(POSTS);
    for post in 0..POSTS {
        let message = PublishMessage::build().payload(fence()).headers(only_if(&gate, place));
        places.push(js.send_publish(subject(&post.to_string()), message).await?.await?.sequence);
    }
    Ok(Fences::new(places))
}

/// Makes a message conditional on the fence at a post.
pub fn name_in(headers: &mut HeaderMap, (post, place): (usize, u64)) {
    headers.insert(LAST_PLACE, place.to_string());
    headers.insert(LAST_PLACE_OF, subject(&post.to_string()));
}

fn only_if(subject: &str, place: u64) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(LAST_PLACE, place.to_string());
    headers.insert(LAST_PLACE_OF, subject);
    headers
}

fn fence() -> Bytes {
    Bytes::from_static(b"{}")
}

/// Applications may not publish on the agent's own subjects.
fn subject(what: &str) -> String {
    format!("{}.{what}", Speaker::Global.with_tail(subject::FENCE))
}
