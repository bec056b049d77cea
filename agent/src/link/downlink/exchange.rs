//! What passes between the shell and the coordinator: what children say of themselves and of work goes up
//! to it, messages to children come down.

use std::time::Duration;

use hierarchy::{
    Lane, Path,
    link::{ParentMessage, Skew, message::Offer},
    loss::LossReceipt,
    subject::{self, Speaker},
};
use serde_json::value::RawValue;

use super::{Downlink, judge::Judged};
use crate::metrics::PeerLabel;

/// What the coordinator wants to know of its children.
#[derive(Debug)]
pub enum FromChild {
    /// The child greeted.
    Hello {
        /// Who.
        child: Path,
        /// Its software version.
        version: String,
    },
    /// The child sent something sound.
    Seen {
        /// Who.
        child: Path,
        /// Its software version, where it has told it since this agent was started.
        version: Option<String>,
        /// Batches that wait in its store.
        lag: Option<(Lane, u64)>,
    },
    /// How far the child finds its clock ahead of this machine's.
    Clock {
        /// Who.
        child: Path,
        /// By how much.
        skew: Skew,
    },
    /// What a child says of itself, or of those below it.
    Report {
        /// See [`hierarchy::subject::TELEMETRY`] and [`hierarchy::subject::ROLLUP`].
        subject: String,
        /// Which life of the child's store.
        incarnation: u64,
        /// The event's sequence number in it.
        seq: u64,
        /// Its data.
        data: Vec<u8>,
    },
}

/// What children say about work.
#[derive(Debug)]
pub enum WorkFromChild {
    /// The child offers to take work.
    Credit {
        /// Who.
        child: Path,
        /// The offer's number.
        number: u64,
        /// Room by kind.
        offers: Vec<Offer>,
        /// How long it holds.
        valid_for: Duration,
    },
    /// The child's answer to a hand-off.
    HandoffReply {
        /// Who.
        child: Path,
        /// The task.
        task: String,
        /// Which try of it.
        attempt: u32,
        /// Why it was not taken.
        refused: Option<String>,
    },
}

/// A message to a child outside the flow of batches.
#[derive(Debug)]
pub struct ToChild {
    /// To whom.
    pub child: Path,
    /// What.
    pub message: ParentMessage,
}

/// The hand-off of a task, as a message to `child`.
pub fn handoff(child: Path, task: String, attempt: u32, spec: Box<RawValue>) -> ToChild {
    ToChild { child, message: ParentMessage::Handoff { task, attempt, spec } }
}

impl Downlink {
    /// Passes on what a direct child says on the agents' own subjects.
    pub(super) fn notice(&mut self, child: &Path, batch: &Judged<'_>) {
        let (Some(events), Some(head)) = (&batch.events, batch.verified.envelope.batch()) else { return };
        let speaker = Speaker::of(child);
        for event in &events.events {
            let Some(subject) = head.subjects.get(usize::from(event.sub)) else { continue };
            match speaker.tail_of(subject) {
                Some(subject::TELEMETRY | subject::ROLLUP) => {
                    let (incarnation, seq) = (head.incarnation, event.seq);
                    let (subject, data) = (subject.clone(), event.bytes());
                    self.report(FromChild::Report { subject, incarnation, seq, data });
                }
                Some(subject::LOSS) => {
                    let published = LossReceipt::parse(&event.bytes()).ok().and_then(|told| told.published);
                    if let (Some(published), Some(state)) = (published, self.children.get_mut(child)) {
                        state.words.heard(published);
                    }
                }
                _ => {}
            }
        }
    }

    pub(super) fn seen(&self, child: &Path, lag: Option<(Lane, u64)>) {
        let version = self.children.get(child).and_then(|state| state.version.clone());
        self.report(FromChild::Seen { child: child.clone(), version, lag });
    }

    /// A child asks for the time and says what it has found so far.
    pub(super) fn note_clock(&self, child: &Path, skew: Option<Skew>) {
        self.seen(child, None);
        let Some(skew) = skew else { return };
        let label = PeerLabel { peer: child.to_string() };
        self.parts.metrics.clock_ahead.get_or_create(&label).set(-skew.ahead_seconds());
        self.report(FromChild::Clock { child: child.clone(), skew });
    }

    /// Reports are soft state: telemetry, presence, credit. One that finds the queue full is replaced
    /// by its successor.
    pub(super) fn report(&self, report: FromChild) {
        let _ = self.parts.reports.try_send(report);
    }
}
