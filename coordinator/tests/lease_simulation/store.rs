//! The record of the lease and the stream, as a server keeps them.

use std::collections::BTreeMap;

use coordinator::lease::{Answer, Record, Request};

/// The number of the posts.
pub(crate) const POSTS: usize = 4;

/// A subject of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    Gate,
    Post(usize),
    Work,
}

/// Something for the store, of one life of a replica.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) life: u64,
    pub(crate) what: What,
}

#[derive(Debug, Clone)]
pub(crate) enum What {
    Lease(Request),
    /// A message for the stream: which one of its sender's, where to, and the condition.
    Publish {
        number: u64,
        subject: Subject,
        only_if: Option<(Subject, u64)>,
        work: Option<Work>,
    },
}

/// What a holder writes: after which work of all, and as which of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) follows: u64,
}

#[derive(Debug, Clone)]
pub(crate) enum Told {
    Lease(Answer),
    /// The place, or none where the condition did not hold.
    Published {
        number: u64,
        place: Option<u64>,
    },
}

#[derive(Debug, Default)]
pub(crate) struct Store {
    record: Option<(u64, Record)>,
    revisions: u64,
    places: u64,
    last: BTreeMap<Subject, u64>,
    /// Everything written, with its writer.
    work: Vec<(usize, Work)>,
}

impl Store {
    pub(crate) fn take(&mut self, side: usize, asked: Asked) -> Option<Told> {
        match asked.what {
            What::Lease(Request::Read) => Some(Told::Lease(Answer::Found(self.record.clone()))),
            What::Lease(Request::Write { record, after }) => {
                let revision = self.record.as_ref().map_or(0, |(revision, _)| *revision);
                if revision != after {
                    return Some(Told::Lease(Answer::Failed));
                }
                self.revisions += 1;
                self.record = Some((self.revisions, record));
                Some(Told::Lease(Answer::Written(self.revisions)))
            }
            What::Publish { number, subject, only_if, work } => {
                let holds =
                    only_if.is_none_or(|(on, place)| self.last.get(&on).copied().unwrap_or(0) == place);
                let place = holds.then(|| {
                    self.places += 1;
                    self.last.insert(subject, self.places);
                    self.work.extend(work.map(|work| (side, work)));
                    self.places
                });
                Some(Told::Published { number, place })
            }
        }
    }

    pub(crate) fn work_of_all(&self) -> u64 {
        self.work.len() as u64
    }

    pub(crate) fn last_writer(&self) -> Option<usize> {
        self.work.last().map(|(side, _)| *side)
    }

    /// Each piece of work follows the one before it: its writer knew of all that is there, nothing is missing in
    /// between, and nothing came late.
    pub(crate) fn check(&self) {
        for (at, (side, work)) in self.work.iter().enumerate() {
            assert_eq!(work.follows, at as u64, "the work of replica {side} at {at}");
        }
    }
}
