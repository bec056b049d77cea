//! Requests at the door of an agent, as any application on its machine makes them.

use std::time::Duration;

use async_nats::{Client, HeaderMap, RequestErrorKind};
use bytes::Bytes;
use hierarchy::{Lane, Level};
use serde::Deserialize;

use crate::eventually::LOOK_EVERY;

/// How long an answer may take.
const ANSWERED_WITHIN: Duration = Duration::from_secs(20);

/// What the door answers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Answer {
    /// The lane's stream; empty where the event was refused.
    pub stream: String,
    /// The event's number in the lane; 0 where it was refused.
    pub seq: u64,
    /// Where the event is durable.
    pub level: Option<Level>,
    /// Who dropped the event, where that was meant to be.
    pub dropped: Option<String>,
    /// Why it was refused.
    pub error: Option<Refused>,
}

/// Why the door refused an event.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Refused {
    /// As in HTTP.
    pub code: u16,
    /// The refusal's name, and more for people.
    pub description: String,
}

/// The header that names a lane.
pub fn in_lane(lane: Lane) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("Lucent-Priority", lane.as_str());
    headers
}

/// Asks to publish on a subject without its `lucent.`, such as `hierarchy.node.n1.x`; the answer, which must
/// come. Where nobody listens yet it is asked again, which nobody can have heard twice.
pub async fn ask(client: &Client, subject: &str, headers: HeaderMap, data: impl Into<Bytes>) -> Answer {
    let (subject, data) = (format!("lucent.publish.{subject}"), data.into());
    let answer = async {
        loop {
            match client.request_with_headers(subject.clone(), headers.clone(), data.clone()).await {
                Err(error) if error.kind() == RequestErrorKind::NoResponders => {
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                answer => return answer.unwrap_or_else(|error| panic!("{subject}: {error}")),
            }
        }
    };
    let answer = tokio::time::timeout(ANSWERED_WITHIN, answer).await;
    let answer = answer.unwrap_or_else(|_| panic!("{subject} is not answered within {ANSWERED_WITHIN:?}"));
    serde_json::from_slice(&answer.payload).expect("an answer is JSON")
}
