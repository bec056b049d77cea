//! The door: a request on `lucent.publish.hierarchy.{level}.{id}...` is the event on
//! `lucent.hierarchy.{level}.{id}...`, answered once it is durable.
//!
//! Answers have the form of JetStream's publish acknowledgements, so that every client library reads
//! them: `{"stream":"LANE_NORMAL","seq":17,...}`, or an `error` with code and description.

use async_nats::{Client, HeaderMap, Message, Subject, Subscriber};
use bytes::Bytes;
use hierarchy::{
    Lane, Path, Refusal,
    envelope::MAX_EVENT_BYTES,
    link::{Event, batch},
    subject::{self, Speaker},
};
use nats_config::streams::lane_stream;
use serde_json::json;

use super::IngestError;
use crate::clock;

/// Whoever waits for an answer.
#[derive(Debug)]
pub struct Waiter {
    reply: Option<Subject>,
}

/// A request that is sound.
pub(super) struct Asked {
    pub(super) event: Event,
    pub(super) headers: Option<HeaderMap>,
    pub(super) waiter: Waiter,
}

/// A request that is not.
pub(super) struct Refused {
    pub(super) reason: Refusal,
    pub(super) detail: String,
    pub(super) subject: String,
    pub(super) bytes: Bytes,
    reply: Option<Subject>,
}

/// Hears what is asked of this agent.
pub(super) async fn listen(mesh: &Client) -> Result<Subscriber, IngestError> {
    Ok(mesh.subscribe(subject::PUBLISH_ALL).await?)
}

/// The event that a request asks to publish.
pub(super) fn read(speaker: &Speaker, message: Message) -> Result<Asked, Refused> {
    let asked = subject::of_publish(&message.subject);
    let tail = asked.as_deref().and_then(|subject| speaker.tail_of(subject)).map(str::to_owned);
    let refusal = match tail.as_deref() {
        None => Some((Refusal::WrongSubject, "an application may speak only for its own agent")),
        Some(tail) if tail == "agent" || tail.starts_with("agent.") => {
            Some((Refusal::WrongSubject, "the subjects under `agent` are the agent's own"))
        }
        Some(_) if message.payload.len() > MAX_EVENT_BYTES => {
            Some((Refusal::Oversized, "an event is at most 1 MiB"))
        }
        Some(_) => None,
    };
    match (refusal, asked) {
        (None, Some(subject)) => Ok(Asked {
            event: Event {
                ts: clock::wall().0,
                subject,
                headers: carried_headers(message.headers.as_ref()),
                data: message.payload,
            },
            headers: message.headers,
            waiter: Waiter { reply: message.reply },
        }),
        (refusal, _) => {
            let (reason, detail) = refusal.unwrap_or((Refusal::WrongSubject, "no such subject"));
            Err(Refused {
                reason,
                detail: detail.to_owned(),
                subject: message.subject.to_string(),
                bytes: message.payload,
                reply: message.reply,
            })
        }
    }
}

impl Waiter {
    /// The event is durable here, under this number.
    pub(super) async fn stored(self, mesh: &Client, path: &Path, lane: Lane, seq: u64) {
        let Some(reply) = self.reply else { return };
        let answer = json!({ "stream": lane_stream(lane), "seq": seq, "level": path.level() });
        // Who does not hear asks again.
        let _ = mesh.publish(reply, answer.to_string().into()).await;
    }
}

impl Waiter {
    /// The lane is full.
    pub(super) fn full(self, mesh: &Client, lane: Lane) {
        let description =
            format!("{}: lane {lane} waits for the parent; publish again later", Refusal::LaneFull);
        refuse(mesh, self.reply, 503, &description);
    }

    /// The policy dropped the event.
    pub(super) fn dropped(self, mesh: &Client, lane: Lane, seq: u64) {
        answer(mesh, self.reply, json!({ "stream": lane_stream(lane), "seq": seq, "dropped": "policy" }));
    }
}

fn refuse(mesh: &Client, reply: Option<Subject>, code: u16, description: &str) {
    answer(
        mesh,
        reply,
        json!({ "error": { "code": code, "description": description }, "stream": "", "seq": 0 }),
    );
}

/// Who does not hear because the connection is busy asks again.
fn answer(mesh: &Client, reply: Option<Subject>, answer: serde_json::Value) {
    let Some(reply) = reply else { return };
    let (mesh, bytes) = (mesh.clone(), Bytes::from(answer.to_string()));
    let sent = async move { mesh.publish(reply, bytes).await.is_ok() };
    let _ = futures_util::FutureExt::now_or_never(sent);
}

impl Refused {
    /// Says so to whoever asked.
    pub(super) fn answer(self, mesh: &Client) {
        refuse(mesh, self.reply, 400, &format!("{}: {}", self.reason, self.detail));
    }
}

/// Headers go up with the event, but for those that mean something to servers and agents.
pub(super) fn carried_headers(headers: Option<&HeaderMap>) -> batch::Headers {
    let reserved = |name: &str| name.starts_with("Nats-") || name.starts_with("Lucent-");
    headers
        .into_iter()
        .flat_map(HeaderMap::iter)
        .map(|(name, values)| (name.to_string(), values.iter().map(|value| value.to_string()).collect()))
        .filter(|(name, _): &(String, Vec<String>)| !reserved(name))
        .collect()
}
