//! Orders: what a level says to one agent below it, or to a whole subtree: commands, desired state.
//!
//! On the wire an order is a signed batch with one event. The envelope's subject names whom it is for
//! (`lucent.order.{level}.{ids}`, with `.all` behind it for all agents from there down), the batch's only
//! subject is the one that it is said on there. Each order expires; the time stands in the event's header
//! [`EXPIRES`].

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::{
    Id, Level, Millis, Path, Refusal,
    envelope::{BatchHead, Parsed},
    link::{
        Event, Span,
        batch::{self, Batch},
    },
};

/// The message type of an order.
pub const MESSAGE_TYPE: &str = "Order";
/// The event header with the time after which an order must not be carried out, in the form of [`Millis`],
/// by its author's clock.
pub const EXPIRES: &str = "Lucent-Expires";
/// What an order may be said on, behind `lucent.`: commands, and what services are to be like.
const SAID_ON: [&str; 2] = ["commands.", "services."];
/// Bytes of the longest subject that an order is said on.
const LONGEST_SUBJECT: usize = 256;

/// Requests of applications to send an order: `lucent.send.{level}.{ids}[.all].{commands...}`.
pub const SEND_ALL: &str = "lucent.send.>";
/// Everything that the ORDERS stream keeps. Not under `lucent.`, where a part of it is said again: the server
/// would see a circle.
pub const ORDERS_ALL: &str = "orders.>";
/// What of it is for this agent, and said again on `lucent.`: `orders.here.{commands...}`.
pub const HERE_ALL: &str = "orders.here.>";

/// Whom an order is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// The agent, or the topmost of them.
    pub path: Path,
    /// Whether it is for all agents below that one, too.
    pub all: bool,
}

impl Target {
    /// Whether the agent at `path` is to carry the order out.
    pub fn includes(&self, path: &Path) -> bool {
        self.path == *path || self.all && self.path.contains(path)
    }

    /// Whether an agent at `path` or below it is to carry the order out.
    pub fn concerns(&self, path: &Path) -> bool {
        self.includes(path) || path.contains(&self.path)
    }

    /// Reads a target from the tokens at the front of a subject; the rest behind it.
    fn read(text: &str) -> Option<(Target, &str)> {
        let (level, mut rest) = text.split_once('.').unwrap_or((text, ""));
        let depth = (0..4).find(|depth| Level::at_depth(*depth).is_some_and(|at| at.as_str() == level))?;
        let mut ids = Vec::with_capacity(depth);
        for _ in 0..depth {
            let (id, behind) = rest.split_once('.').unwrap_or((rest, ""));
            ids.push(id.parse::<Id>().ok()?);
            rest = behind;
        }
        let path = Path::from_segments(ids).ok()?;
        let (all, rest) = match rest.strip_prefix("all") {
            Some(behind) if behind.is_empty() => (true, behind),
            Some(behind) if behind.starts_with('.') => (true, &behind[1..]),
            _ => (false, rest),
        };
        Some((Target { path, all }, rest))
    }
}

/// `{level}.{ids}[.all]`
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.path.level().as_str())?;
        for id in self.path.segments() {
            write!(f, ".{id}")?;
        }
        if self.all { f.write_str(".all") } else { Ok(()) }
    }
}

/// Whom a request on `lucent.send.` is for, and the subject that its order is said on there.
pub fn of_send(subject: &str) -> Option<(Target, String)> {
    let (target, tail) = Target::read(subject.strip_prefix("lucent.send.")?)?;
    let said_on = format!("lucent.{tail}");
    may_be_said_on(&said_on).then_some((target, said_on))
}

/// The subject of an order's envelope.
pub fn subject_for(target: &Target) -> String {
    format!("lucent.order.{target}")
}

/// Where the order is stored at an agent that is to carry it out.
pub fn here(said_on: &str) -> String {
    format!("orders.here.{}", said_on.strip_prefix("lucent.").unwrap_or(said_on))
}

/// Where an agent makes sure that nothing it sent before is still on its way into the stream.
pub const FENCE: &str = "orders.fence";
/// Where an order waits for all children.
pub const BELOW: &str = "orders.below";

/// Where an order waits for the child at this path.
pub fn waiting_for(child: &Path) -> String {
    format!("orders.to.{}", child.id())
}

/// Which child of `parent` a stored order waits for.
pub fn waits_for(parent: &Path, subject: &str) -> Option<Path> {
    parent.child(&subject.strip_prefix("orders.to.")?.parse().ok()?)
}

fn may_be_said_on(subject: &str) -> bool {
    let unfit = |c: char| c.is_whitespace() || c.is_control() || c == '"' || c == '\\';
    let Some(tail) = subject.strip_prefix("lucent.") else { return false };
    let names_something = SAID_ON.iter().any(|family| tail.len() > family.len() && tail.starts_with(family));
    names_something
        && subject.len() <= LONGEST_SUBJECT
        && !subject.contains(unfit)
        && tail.split('.').all(|token| !token.is_empty() && token != "*" && token != ">")
}

/// The head and the payload of the batch that carries an order.
pub fn pack(incarnation: u64, number: u64, said: &Event) -> (BatchHead, Box<RawValue>) {
    let mut body = String::from(r#"{"events":["#);
    batch::write_event(&mut body, number, said, 0);
    body.push_str("]}");
    let head = BatchHead {
        incarnation,
        first: number,
        last: number,
        count: 1,
        subjects: vec![said.subject.clone()],
        tell: Vec::new(),
    };
    (head, RawValue::from_string(body).expect("events are written as JSON"))
}

/// An order that was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Who says it.
    pub author: Path,
    /// Whom it is for.
    pub target: Target,
    /// After this it must not be carried out, by the author's clock.
    pub expires: Millis,
    /// Its number among the author's orders.
    pub span: Span,
    /// What is said, with the subject that it is said on.
    pub said: Event,
}

impl Order {
    /// The order in an envelope whose signature was verified. Only who stands at or above all that it is
    /// for may say it.
    pub fn read(envelope: &Parsed<'_>) -> Result<Order, Refusal> {
        let head = envelope.batch().ok_or(Refusal::BadPayload)?;
        let span = Span::of(head).ok_or(Refusal::BadPayload)?;
        if envelope.message_type() != MESSAGE_TYPE || head.count != 1 || head.subjects.len() != 1 {
            return Err(Refusal::BadPayload);
        }
        let target = envelope.subject().strip_prefix("lucent.order.").and_then(Target::read);
        let Some((target, "")) = target else { return Err(Refusal::WrongSubject) };
        let author = envelope.identity().path.clone();
        if !author.contains(&target.path) {
            return Err(Refusal::WrongSubject);
        }
        let subject = &head.subjects[0];
        if !may_be_said_on(subject) {
            return Err(Refusal::NotPermitted);
        }
        let batch = Batch::read(envelope)?;
        let event = batch.events.first().ok_or(Refusal::BadPayload)?;
        let expires = event.hdr.get(EXPIRES).and_then(|values| values.first());
        let expires = expires.and_then(|text| text.parse().ok()).ok_or(Refusal::BadPayload)?;
        let said = Event {
            ts: event.ts,
            subject: subject.clone(),
            headers: event.hdr.clone(),
            data: event.bytes().into(),
        };
        Ok(Order { author, target, expires, span, said })
    }
}

/// What became of an order somewhere: an event on [`crate::subject::ORDER`], told at least once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OrderReport {
    /// The order: its envelope's `messageId`.
    pub order: Uuid,
    /// Who said it.
    pub author: Path,
    /// Which agent tells this.
    pub at: Path,
    /// The subject that it is said on.
    pub subject: String,
    /// What became of it there.
    pub fate: Fate,
    /// For whom it waited, where it expired on its way: the child, and those below it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waited_for: Option<Path>,
    /// When, in milliseconds since 1970.
    pub when: Millis,
}

/// What became of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// It was said at the agent that tells so, once.
    Said,
    /// Its time was up before; it was not said there.
    Expired,
}

impl Fate {
    /// Its name, as in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Fate::Said => "said",
            Fate::Expired => "expired",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(path: &str, all: bool) -> Target {
        Target { path: path.parse().unwrap(), all }
    }

    #[test]
    fn a_request_names_whom_it_is_for_and_what_is_said_there() {
        for (subject, expected, said_on) in [
            (
                "node.s1.c1.n1.commands.trading.halt",
                target("s1/c1/n1", false),
                "lucent.commands.trading.halt",
            ),
            ("site.s1.commands.a.b", target("s1", false), "lucent.commands.a.b"),
            ("site.s1.all.commands.a", target("s1", true), "lucent.commands.a"),
            ("global.all.services.pricing.config", target("global", true), "lucent.services.pricing.config"),
            // An agent may be called `all`.
            ("site.all.commands.a", target("all", false), "lucent.commands.a"),
            ("site.all.all.commands.a", target("all", true), "lucent.commands.a"),
        ] {
            let found = of_send(&format!("lucent.send.{subject}"));
            assert_eq!(found, Some((expected.clone(), said_on.to_owned())), "{subject}");
            assert_eq!(Target::read(&expected.to_string()), Some((expected, "")));
        }
    }

    #[test]
    fn what_is_not_a_command_or_a_services_state_cannot_be_ordered() {
        for subject in [
            "node.s1.c1.commands",
            "node.s1.c1.n1",
            "node.s1.c1.n1.commands.",
            "node.s1.c1.n1.commands.>",
            "node.s1.c1.n1.commands.a.*",
            "node.s1.c1.n1.hierarchy.node.n1",
            "node.s1.c1.n1.agents.training.x",
            "rack.r1.commands.a",
            "site.S1.commands.a",
            "site.s1.allcommands.a",
        ] {
            assert_eq!(of_send(&format!("lucent.send.{subject}")), None, "{subject}");
        }
    }

    #[test]
    fn an_order_concerns_those_on_the_way_to_its_target_and_includes_its_target() {
        let path = |text: &str| text.parse::<Path>().unwrap();
        let node = target("s1/c1/n1", false);
        assert!(node.includes(&path("s1/c1/n1")) && !node.includes(&path("s1/c1")));
        assert!(node.concerns(&path("s1/c1")) && node.concerns(&path("s1/c1/n1")));
        assert!(!node.concerns(&path("s1/c2")) && !node.concerns(&path("s1/c1/n2")));
        let site = target("s1", true);
        for below in ["s1", "s1/c1", "s1/c1/n1"] {
            assert!(site.includes(&path(below)) && site.concerns(&path(below)));
        }
        assert!(!site.includes(&path("s2")) && !site.includes(&Path::global()));
        assert!(!target("s1", false).concerns(&path("s1/c1")));
    }

    #[test]
    fn the_childs_queue_is_found_again_by_its_subject() {
        let (parent, child) = ("s1".parse().unwrap(), "s1/c1".parse().unwrap());
        assert_eq!(waits_for(&parent, &waiting_for(&child)), Some(child));
        assert_eq!(waits_for(&parent, &here("lucent.commands.to.c1")), None);
    }
}
