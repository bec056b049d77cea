//! What applications of this level want to have said below: requests on `lucent.send.>`.

use std::time::Duration;

use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use hierarchy::{
    Lane, Millis, Path, Refusal,
    envelope::MAX_EVENT_BYTES,
    link::Event,
    order::{self, EXPIRES, Target},
};
use serde_json::json;

use crate::ingest::door::carried_headers;

/// The header that says for how long an order is good, in seconds; [`GOOD_FOR`] unless given.
pub(super) const EXPIRES_IN: &str = "Lucent-Expires-In";
const GOOD_FOR: Duration = Duration::from_secs(3600);
/// The longest that an order can be good for.
const MOST: Duration = Duration::from_secs(7 * 24 * 3600);

/// A request that is sound.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) target: Target,
    pub(super) lane: Lane,
    pub(super) expires: Millis,
    /// What the requester calls it: asked again under the same name within two minutes it is one order.
    pub(super) name: Option<String>,
    pub(super) said: Event,
}

/// A request that is not.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) reason: Refusal,
    pub(super) detail: String,
}

fn refused(reason: Refusal, detail: impl Into<String>) -> Refused {
    Refused { reason, detail: detail.into() }
}

/// The order that a request asks for.
pub(super) fn read(own: &Path, children: &[Path], message: &Message, now: Millis) -> Result<Asked, Refused> {
    let (target, subject) = order::of_send(&message.subject).ok_or_else(|| {
        let form = "write lucent.send.{level}.{ids}[.all].commands.{...} or .services.{...}";
        refused(Refusal::WrongSubject, form)
    })?;
    if !own.contains(&target.path) {
        return Err(refused(Refusal::WrongSubject, format!("{} is not at or below {own}", target.path)));
    }
    if let Some(child) = own.child_towards(&target.path).filter(|child| !children.contains(child)) {
        return Err(refused(Refusal::Unroutable, format!("{own} has no child {child}; see leaf.children")));
    }
    if message.payload.len() > MAX_EVENT_BYTES {
        return Err(refused(Refusal::Oversized, "an order is at most 1 MiB"));
    }
    let headers = message.headers.as_ref();
    let text = |name: &str| headers.and_then(|headers: &HeaderMap| headers.get(name)).map(|v| v.as_str());
    let lane = match text("Lucent-Priority").map(str::parse) {
        None => Lane::Normal,
        Some(Ok(lane)) => lane,
        Some(Err(_)) => {
            return Err(refused(Refusal::BadPayload, "Lucent-Priority is critical, normal or bulk"));
        }
    };
    let good_for = match text(EXPIRES_IN).map(str::parse::<u64>) {
        None => GOOD_FOR,
        Some(Ok(seconds)) if (1..=MOST.as_secs()).contains(&seconds) => Duration::from_secs(seconds),
        Some(_) => {
            let detail = format!("{EXPIRES_IN} is a whole number of seconds, 1 to {}", MOST.as_secs());
            return Err(refused(Refusal::BadPayload, detail));
        }
    };
    let expires = now.plus(good_for);
    let mut carried = carried_headers(headers);
    carried.insert(EXPIRES.to_owned(), vec![expires.to_string()]);
    let name = text("Nats-Msg-Id").map(str::to_owned);
    let said = Event { ts: now.0, subject, headers: carried, data: message.payload.clone() };
    Ok(Asked { target, lane, expires, name, said })
}

/// The answer to a request: which order it became, and until when it is good.
pub(super) fn accepted(id: uuid::Uuid, expires: Millis) -> Bytes {
    json!({ "order": id, "expires": expires.to_string() }).to_string().into()
}

impl Refused {
    /// The answer to a request that was refused; of the form of JetStream's errors.
    pub(super) fn answer(&self) -> Bytes {
        error(400, &format!("{}: {}", self.reason, self.detail))
    }
}

/// The answer where the store failed.
pub(super) fn failed(reason: &str) -> Bytes {
    error(503, &format!("it is not known whether the order was stored: {reason}; with Nats-Msg-Id ask again"))
}

fn error(code: u16, description: &str) -> Bytes {
    json!({ "error": { "code": code, "description": description } }).to_string().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(subject: &str, headers: &[(&str, &str)]) -> Message {
        let map = headers.iter().fold(HeaderMap::new(), |mut map, (name, value)| {
            map.insert(*name, *value);
            map
        });
        Message {
            subject: subject.into(),
            reply: None,
            payload: Bytes::from_static(b"{}"),
            headers: Some(map),
            status: None,
            description: None,
            length: 2,
        }
    }

    fn ask(subject: &str, headers: &[(&str, &str)]) -> Result<Asked, String> {
        let (own, child) = ("s1".parse().unwrap(), "s1/c1".parse().unwrap());
        read(&own, &[child], &message(subject, headers), Millis(1_000)).map_err(|refused| refused.detail)
    }

    #[test]
    fn an_order_is_good_for_an_hour_and_in_the_normal_lane_unless_it_says_otherwise() {
        let asked = ask("lucent.send.node.s1.c1.n1.commands.a", &[]).unwrap();
        assert_eq!((asked.lane, asked.expires), (Lane::Normal, Millis(3_601_000)));
        assert_eq!(asked.said.subject, "lucent.commands.a");
        let asked = ask(
            "lucent.send.site.s1.all.commands.a",
            &[
                ("Lucent-Priority", "critical"),
                ("Lucent-Expires-In", "5"),
                ("Nats-Msg-Id", "x"),
                ("trace", "7"),
            ],
        );
        let asked = asked.unwrap();
        assert_eq!(
            (asked.lane, asked.expires, asked.name.as_deref()),
            (Lane::Critical, Millis(6_000), Some("x"))
        );
        assert_eq!(asked.said.headers["trace"], ["7"]);
        assert_eq!(asked.said.headers[EXPIRES], ["1970-01-01T00:00:06.000Z"]);
    }

    #[test]
    fn a_request_that_cannot_be_meant_is_refused_with_what_to_do() {
        for (subject, headers, detail) in [
            ("lucent.send.node.s1.c1.n1.hierarchy.x", &[][..], "write lucent.send."),
            ("lucent.send.node.s2.c1.n1.commands.a", &[], "s2/c1/n1 is not at or below s1"),
            ("lucent.send.global.all.commands.a", &[], "global is not at or below s1"),
            ("lucent.send.cluster.s1.c9.commands.a", &[], "s1 has no child s1/c9"),
            ("lucent.send.site.s1.commands.a", &[("Lucent-Expires-In", "0")], "Lucent-Expires-In is"),
            ("lucent.send.site.s1.commands.a", &[("Lucent-Expires-In", "604801")], "Lucent-Expires-In is"),
            ("lucent.send.site.s1.commands.a", &[("Lucent-Priority", "high")], "Lucent-Priority is"),
        ] {
            let found = ask(subject, headers).unwrap_err();
            assert!(found.contains(detail), "{subject}: {found}");
        }
    }
}
