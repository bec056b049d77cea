//! The door: a request on `lucent.publish.hierarchy.{level}.{id}...` is the event on
//! `lucent.hierarchy.{level}.{id}...`, answered once it is durable.
//!
//! Answers have the form of JetStream's publish acknowledgements, so that every client library reads
//! them: `{"stream":"LANE_NORMAL","seq":17,...}`, or an `error` with code and description.

use std::time::Duration;

use async_nats::{Client, HeaderMap, Message, Subject, Subscriber};
use bytes::Bytes;
use hierarchy::{
    Lane, Level, Refusal,
    envelope::MAX_EVENT_BYTES,
    link::{Event, batch},
    subject::{self, Speaker},
};
use nats_config::streams::lane_stream;
use serde_json::json;

use super::IngestError;
use crate::clock;

/// The header in which a publisher names the level at which its event is to be durable before it is
/// answered.
const ACK_LEVEL: &str = "Lucent-Ack-Level";
/// The header that says how long the publisher waits for that, in seconds; [`PATIENCE`] unless given.
const ACK_WITHIN: &str = "Lucent-Ack-Within";
/// How long an answer from a level above may take unless the publisher says otherwise.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest that a publisher can ask for.
const MOST_PATIENCE: Duration = Duration::from_secs(300);

/// Whoever waits for an answer.
#[derive(Debug)]
pub struct Waiter {
    reply: Option<Subject>,
    /// Where the event is to be durable; `None` for this agent's own level.
    pub(super) level: Option<Level>,
    /// How long it waits for a level above.
    pub(super) patience: Duration,
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
    let wish = Wish::read(speaker.level(), message.headers.as_ref());
    let refusal = refusal.or_else(|| wish.as_ref().err().map(|detail| (Refusal::BadPayload, *detail)));
    match (refusal, asked) {
        (None, Some(subject)) => Ok(Asked {
            event: Event {
                ts: clock::wall().0,
                subject,
                headers: carried_headers(message.headers.as_ref()),
                data: message.payload,
            },
            headers: message.headers,
            waiter: {
                let Wish { level, patience } = wish.unwrap_or_default();
                Waiter { reply: message.reply, level, patience }
            },
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

/// What a publisher asks for beside the event.
#[derive(Debug, Default)]
struct Wish {
    level: Option<Level>,
    patience: Duration,
}

impl Wish {
    fn read(own: Level, headers: Option<&HeaderMap>) -> Result<Wish, &'static str> {
        let text = |name| headers.and_then(|headers| headers.get(name)).map(|value| value.as_str());
        let level = match text(ACK_LEVEL).map(str::parse::<Level>) {
            None => None,
            Some(Ok(level)) if level >= own => Some(level).filter(|level| *level > own),
            Some(_) => {
                return Err("Lucent-Ack-Level names this level or one above: node, cluster, site, global");
            }
        };
        let patience = match text(ACK_WITHIN).map(str::parse::<u64>) {
            None => PATIENCE,
            Some(Ok(seconds)) if (1..=MOST_PATIENCE.as_secs()).contains(&seconds) => {
                Duration::from_secs(seconds)
            }
            Some(_) => return Err("Lucent-Ack-Within is a whole number of seconds, 1 to 300"),
        };
        Ok(Wish { level, patience })
    }
}

impl Waiter {
    /// The event is durable at this level, under this number.
    pub(super) async fn stored(self, mesh: &Client, level: Level, lane: Lane, seq: u64) {
        let Some(reply) = self.reply else { return };
        let answer = json!({ "stream": lane_stream(lane), "seq": seq, "level": level });
        // Who does not hear asks again.
        let _ = mesh.publish(reply, answer.to_string().into()).await;
    }

    /// Nothing was heard of it in time.
    pub(super) fn unknown(self, mesh: &Client, own: Level, seq: u64) {
        let wanted = self.level.unwrap_or(own);
        let description = format!(
            "timeout: event {seq} is durable at the {own} and on its way; that it is at {wanted} was not heard in {:?}",
            self.patience
        );
        refuse(mesh, self.reply, 408, &description);
    }
}

impl Waiter {
    /// The lane is full.
    pub(super) fn full(self, mesh: &Client, lane: Lane) {
        let description =
            format!("{}: lane {lane} waits for the parent; publish again later", Refusal::LaneFull);
        refuse(mesh, self.reply, 503, &description);
    }

    /// The store takes nothing.
    pub(super) fn no_store(self, mesh: &Client, trouble: &str) {
        refuse(mesh, self.reply, 503, &format!("{trouble}; publish again later"));
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
pub(crate) fn carried_headers(headers: Option<&HeaderMap>) -> batch::Headers {
    let reserved = |name: &str| name.starts_with("Nats-") || name.starts_with("Lucent-");
    headers
        .into_iter()
        .flat_map(HeaderMap::iter)
        .map(|(name, values)| (name.to_string(), values.iter().map(|value| value.to_string()).collect()))
        .filter(|(name, _): &(String, Vec<String>)| !reserved(name))
        .collect()
}
