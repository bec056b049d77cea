//! The record of the lease and the stream, as a server keeps them.

use coordinator::lease::{Answer, Record, Request};

/// Something for the store, of one life of a replica.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) life: u64,
    pub(crate) what: What,
}

#[derive(Debug, Clone)]
pub(crate) enum What {
    /// Which question, and what.
    Lease(u64, Request),
    /// A fence for the stream: which message of its sender's.
    Fence { number: u64 },
    /// A group of what a holder writes, all or none, and the place of the fence that must be the last one.
    Write { number: u64, behind: Option<u64>, group: Vec<Work> },
}

/// What a holder writes: after how much work of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) follows: u64,
}

#[derive(Debug, Clone)]
pub(crate) enum Told {
    Lease(u64, Answer),
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
    fence: u64,
    /// Everything written, with its writer.
    work: Vec<(usize, Work)>,
}

impl Store {
    pub(crate) fn take(&mut self, side: usize, asked: Asked) -> Option<Told> {
        match asked.what {
            What::Lease(question, Request::Read) => {
                Some(Told::Lease(question, Answer::Found(self.record.clone())))
            }
            What::Lease(question, Request::Write { record, after }) => {
                let revision = self.record.as_ref().map_or(0, |(revision, _)| *revision);
                if revision != after {
                    return Some(Told::Lease(question, Answer::Failed));
                }
                self.revisions += 1;
                self.record = Some((self.revisions, record));
                Some(Told::Lease(question, Answer::Written(self.revisions)))
            }
            What::Fence { number } => {
                self.places += 1;
                self.fence = self.places;
                Some(Told::Published { number, place: Some(self.places) })
            }
            What::Write { number, behind, group } => {
                let holds = behind.is_none_or(|place| place == self.fence);
                let place = holds.then(|| {
                    self.places += group.len() as u64;
                    self.work.extend(group.into_iter().map(|work| (side, work)));
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
