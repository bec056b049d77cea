//! The dead letters of an agent, as any application on its machine can read them.

use async_nats::HeaderMap;
use bytes::Bytes;

use crate::Mesh;

/// A dead letter.
#[derive(Debug, Clone)]
pub struct Letter {
    /// The subject that it is kept on.
    pub subject: String,
    /// What the agent says of it.
    pub headers: HeaderMap,
    /// What is kept of the refused message.
    pub bytes: Bytes,
}

impl Letter {
    /// A header's value, empty where there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.as_str())
    }

    /// Why it was refused.
    pub fn reason(&self) -> &str {
        self.header("Lucent-Reason")
    }
}

/// All dead letters of the agent, oldest first.
pub async fn all(mesh: &Mesh, at: &str) -> Vec<Letter> {
    let js = async_nats::jetstream::new(mesh.client(at).await);
    let Ok(stream) = js.get_stream("DEAD_LETTERS").await else { return Vec::new() };
    let state = stream.cached_info().state.clone();
    let mut letters = Vec::new();
    for place in state.first_sequence.max(1)..=state.last_sequence {
        if let Ok(message) = stream.get_raw_message(place).await {
            letters.push(Letter {
                subject: message.subject.to_string(),
                headers: message.headers,
                bytes: message.payload,
            });
        }
    }
    letters
}
