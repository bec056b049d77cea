//! What a batch holds: events of one origin, in order.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    Path, Refusal,
    envelope::Parsed,
    strict_json::{self, Object},
    subject::Speaker,
};

/// How many distinct subjects one batch may hold.
pub const MAX_SUBJECTS: usize = 64;
/// The message type of a batch.
pub const MESSAGE_TYPE: &str = "EventBatch";

/// Headers that a publisher put on an event, each with its values.
pub type Headers = BTreeMap<String, Vec<String>>;

/// An event as a publisher gave it to the origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When the origin's store took it, in milliseconds since 1970.
    pub ts: u64,
    /// The subject that it was published on.
    pub subject: String,
    /// The publisher's headers.
    pub headers: Headers,
    /// The publisher's bytes.
    pub data: bytes::Bytes,
}

/// An event inside a batch, as it stands on the wire.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchEvent<'a> {
    /// Its number among the origin's events of this incarnation and lane.
    pub seq: u64,
    /// When the origin's store took it, in milliseconds since 1970.
    pub ts: u64,
    /// Index of its subject in the batch head's list.
    pub sub: u16,
    /// The publisher's headers, where there are any.
    #[serde(default, deserialize_with = "strict_json::unique", skip_serializing_if = "BTreeMap::is_empty")]
    pub hdr: Headers,
    /// The publisher's bytes where they are strict JSON, to the letter. `null` is such JSON.
    #[serde(
        borrow,
        default,
        deserialize_with = "strict_json::present",
        skip_serializing_if = "Option::is_none"
    )]
    pub data: Option<&'a RawValue>,
    /// The publisher's bytes where they are anything else, in standard base64.
    #[serde(default, deserialize_with = "strict_json::present", skip_serializing_if = "Option::is_none")]
    pub b64: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Payload<'a> {
    #[serde(borrow)]
    events: Vec<Object<BatchEvent<'a>>>,
}

/// The events of a verified batch.
#[derive(Debug)]
pub struct Batch<'a> {
    /// The events, in order.
    pub events: Vec<BatchEvent<'a>>,
}

impl Batch<'_> {
    /// Reads the events and holds them against what the batch's head promises.
    ///
    /// Event data is checked to mean one thing to every reader: the direct parent does this once
    /// for the levels above.
    pub fn read<'a>(envelope: &Parsed<'a>) -> Result<Batch<'a>, Refusal> {
        let head = envelope.batch().ok_or(Refusal::BadPayload)?;
        let Object::<Payload<'a>>(payload) =
            serde_json::from_str(envelope.payload().get()).map_err(|_| Refusal::BadPayload)?;
        let events: Vec<_> = payload.events.into_iter().map(|Object(event)| event).collect();
        let in_order = events.windows(2).all(|pair| pair[0].seq < pair[1].seq);
        // What the origin's policy dropped has a number, too, and may lie at either end.
        let within = events.first().is_some_and(|event| event.seq >= head.first)
            && events.last().is_some_and(|event| event.seq <= head.last);
        let sound = |event: &BatchEvent<'_>| {
            usize::from(event.sub) < head.subjects.len()
                && match (event.data, &event.b64) {
                    (Some(data), None) => strict_json::is_strict(data.get().as_bytes()),
                    (None, Some(text)) => STANDARD.decode(text).is_ok(),
                    _ => false,
                }
        };
        if !in_order || !within || events.len() != head.count as usize || !events.iter().all(sound) {
            return Err(Refusal::BadPayload);
        }
        Ok(Batch { events })
    }
}

impl BatchEvent<'_> {
    /// The publisher's bytes.
    pub fn bytes(&self) -> Vec<u8> {
        match (self.data, &self.b64) {
            (Some(data), _) => data.get().as_bytes().to_vec(),
            (None, Some(text)) => STANDARD.decode(text).unwrap_or_default(),
            (None, None) => Vec::new(),
        }
    }
}

/// Whether `origin` may speak on all subjects of its batch. Every level checks this.
pub fn check_speaker(origin: &Path, envelope: &Parsed<'_>) -> Result<(), Refusal> {
    let head = envelope.batch().ok_or(Refusal::BadPayload)?;
    if envelope.message_type() != MESSAGE_TYPE
        || head.subjects.is_empty()
        || head.subjects.len() > MAX_SUBJECTS
    {
        return Err(Refusal::BadPayload);
    }
    let speaker = Speaker::of(origin);
    let own = |subject: &str| carries(&speaker, subject);
    let all_own = own(envelope.subject()) && head.subjects.iter().all(|subject| own(subject));
    if all_own { Ok(()) } else { Err(Refusal::WrongSubject) }
}

/// Whether `subject` is the speaker's own, fit to publish on, and fit to stand in an envelope, where
/// nothing may need an escape.
pub(super) fn carries(speaker: &Speaker, subject: &str) -> bool {
    let unfit = |c: char| c.is_whitespace() || c.is_control() || c == '"' || c == '\\';
    Speaker::parse(subject).as_ref() == Some(speaker) && !subject.contains(unfit)
}

/// Appends one event in its wire form to a payload under construction.
pub(crate) fn write_event(out: &mut String, seq: u64, event: &Event, subject: u16) {
    use std::fmt::Write as _;

    // Writing to a String cannot fail.
    let _ = write!(out, r#"{{"seq":{seq},"ts":{},"sub":{subject}"#, event.ts);
    if !event.headers.is_empty() {
        let headers = serde_json::to_string(&event.headers).unwrap_or_else(|_| "{}".into());
        let _ = write!(out, r#","hdr":{headers}"#);
    }
    match std::str::from_utf8(&event.data) {
        Ok(text) if strict_json::is_strict(&event.data) => {
            out.push_str(r#","data":"#);
            // `RawValue` on the reading side drops white space around the value. What had some is
            // not carried to the letter by embedding it, so only bare values are embedded.
            if text.trim().len() == text.len() {
                out.push_str(text);
                out.push('}');
                return;
            }
            out.truncate(out.len() - r#","data":"#.len());
            write_base64(out, &event.data);
        }
        _ => write_base64(out, &event.data),
    }
}

fn write_base64(out: &mut String, data: &[u8]) {
    out.push_str(r#","b64":""#);
    STANDARD.encode_string(data, out);
    out.push_str("\"}");
}
