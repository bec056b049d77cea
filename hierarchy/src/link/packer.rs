//! From single events to batches: by count, by bytes, by linger, whichever comes first.

use std::time::Duration;

use serde_json::value::RawValue;

use super::{
    Span, Tick,
    batch::{self, Event, MAX_SUBJECTS},
};
use crate::{Lane, envelope::BatchHead, subject::Speaker};

/// When a batch is full.
#[derive(Debug, Clone, Copy)]
pub struct PackLimits {
    /// Most events.
    pub events: usize,
    /// Most bytes of payload; one larger event still makes a batch of its own.
    pub bytes: usize,
    /// Longest time that an event waits for company.
    pub linger: Duration,
}

impl Default for PackLimits {
    fn default() -> Self {
        PackLimits { events: 1000, bytes: 256 * 1024, linger: Duration::from_millis(2) }
    }
}

/// A batch that only lacks its signature.
#[derive(Debug)]
pub struct Pack {
    /// What it holds.
    pub head: BatchHead,
    /// Its subject: that of all its events where they share one, else the origin's own.
    pub subject: String,
    /// Its lane.
    pub lane: Lane,
    /// `{"events":[...]}`
    pub payload: Box<RawValue>,
}

/// Numbers the events of one origin and lane, and collects them in order.
#[derive(Debug)]
pub struct Packer {
    speaker: Speaker,
    lane: Lane,
    incarnation: u64,
    limits: PackLimits,
    /// The number that the next event gets.
    next: u64,
    /// The first number that no batch answers for yet.
    uncovered: u64,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    count: u32,
    subjects: Vec<String>,
    body: String,
    due: Tick,
}

const HEAD: &str = r#"{"events":["#;
const TAIL: &str = "]}";

impl Packer {
    /// A packer for the events of `speaker` in this lane. The incarnation must never have been used.
    pub fn new(speaker: Speaker, lane: Lane, incarnation: u64, limits: PackLimits) -> Packer {
        Packer { speaker, lane, incarnation, limits, next: 1, uncovered: 1, open: None }
    }

    /// Numbers an event and adds it. Returns the batch before it where the event does not fit into
    /// that one, and a batch that the event fills; so at most two.
    pub fn push(&mut self, event: &Event, now: Tick) -> Vec<Pack> {
        let mut full = Vec::new();
        if self.open.as_ref().is_some_and(|open| !self.fits(open, event)) {
            full.extend(self.close());
        }
        if !self.append(event, now) {
            full.extend(self.close());
            self.append(event, now);
        }
        self.next += 1;
        let done = |open: &Open| {
            open.count as usize >= self.limits.events || open.body.len() + TAIL.len() >= self.limits.bytes
        };
        if self.open.as_ref().is_some_and(done) {
            full.extend(self.close());
        }
        full
    }

    /// Numbers an event that the origin's policy drops.
    pub fn skip(&mut self) {
        self.next += 1;
    }

    /// The newest number given; 0 before the first.
    pub fn last(&self) -> u64 {
        self.next - 1
    }

    /// The incarnation of the numbers.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Numbers of dropped events that no batch answers for, once no event is waiting; whoever takes
    /// them must account for them.
    pub fn take_skipped(&mut self) -> Option<Span> {
        if self.open.is_some() || self.uncovered == self.next {
            return None;
        }
        let span = Span { incarnation: self.incarnation, first: self.uncovered, last: self.last() };
        self.uncovered = self.next;
        Some(span)
    }

    /// Writes the event behind the others, unless that makes the batch too large.
    fn append(&mut self, event: &Event, now: Tick) -> bool {
        let linger = self.limits.linger;
        let capacity = self.limits.bytes.min(16 * 1024);
        let open = self.open.get_or_insert_with(|| {
            let mut body = String::with_capacity(capacity);
            body.push_str(HEAD);
            Open { count: 0, subjects: Vec::new(), body, due: now + linger }
        });
        let before = open.body.len();
        if open.count > 0 {
            open.body.push(',');
        }
        let known = open.subjects.iter().position(|subject| *subject == event.subject);
        let subject = known.unwrap_or(open.subjects.len());
        batch::write_event(&mut open.body, self.next, event, subject as u16);
        if open.count > 0 && open.body.len() + TAIL.len() > self.limits.bytes {
            open.body.truncate(before);
            return false;
        }
        if known.is_none() {
            open.subjects.push(event.subject.clone());
        }
        open.count += 1;
        true
    }

    /// When [`Packer::close`] is due, though the batch is not full.
    pub fn due(&self) -> Option<Tick> {
        self.open.as_ref().map(|open| open.due)
    }

    /// Whether the batch under construction holds a tenth of what fits into one.
    pub fn is_filling(&self) -> bool {
        let tenth = |open: &Open| {
            open.count as usize >= self.limits.events / 10 || open.body.len() >= self.limits.bytes / 10
        };
        self.open.as_ref().is_some_and(tenth)
    }

    /// The batch under construction, as it is.
    pub fn close(&mut self) -> Option<Pack> {
        let mut open = self.open.take()?;
        open.body.push_str(TAIL);
        let subject = match open.subjects.as_slice() {
            [only] => only.clone(),
            _ => self.speaker.to_string(),
        };
        let first = std::mem::replace(&mut self.uncovered, self.next);
        let head = BatchHead {
            incarnation: self.incarnation,
            first,
            last: self.last(),
            count: open.count,
            subjects: open.subjects,
            tell: Vec::new(),
        };
        let payload = RawValue::from_string(open.body).expect("events are written as JSON");
        Some(Pack { head, subject, lane: self.lane, payload })
    }

    fn fits(&self, open: &Open, event: &Event) -> bool {
        let same_class = |first: &String| self.class(first) == self.class(&event.subject);
        open.subjects.contains(&event.subject)
            || (open.subjects.len() < MAX_SUBJECTS && open.subjects.first().is_none_or(same_class))
    }

    /// The agents' own subjects each travel in batches of their own, so that a coordinator which
    /// waits for one of them need not look into every batch of application events.
    fn class<'a>(&self, subject: &'a str) -> Option<&'a str> {
        if !batch::carries(&self.speaker, subject) {
            return Some(subject);
        }
        self.speaker.tail_of(subject).filter(|tail| tail.starts_with("agent."))
    }
}
