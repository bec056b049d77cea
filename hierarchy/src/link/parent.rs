//! The parent's end of the link, one for each child.
//!
//! Parcels are judged (signature, origin, content) before they come here; this machine decides what
//! is new, what is a repetition and what leaves a gap, and moves the cursor only over what the store
//! has confirmed.

use std::collections::VecDeque;

use super::message::{ParcelHead, ParentMessage, RefusedParcel};
use crate::{Millis, Refusal};

/// What was found about a parcel before it may be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Its signature, origin and content hold.
    Sound,
    /// It will never be taken.
    Refused(Refusal),
}

/// What the shell is to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ParentOutput {
    /// Store parcel number `index` of the frame, then report with [`Parent::on_stored`].
    Store {
        /// Its place in the frame just given.
        index: usize,
        /// What to store beside it.
        record: Record,
    },
    /// Keep a copy of parcel number `index` with the dead letters.
    Bury {
        /// Its place in the frame just given.
        index: usize,
        /// Why.
        reason: Refusal,
    },
    /// The child speaks of a session that is not open.
    Reset {
        /// That session.
        session: u64,
    },
}

#[derive(Debug)]
struct Pending {
    last: u64,
    state: PendingState,
}

#[derive(Debug, Clone, Copy)]
enum PendingState {
    Storing,
    Stored,
    Refused(Refusal),
}

/// How far one child has come, in one life of its store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// Which life of the child's store.
    pub incarnation: u64,
    /// The place after which that life begins.
    pub start: u64,
    /// Everything up to this place is durable here, or was refused.
    pub last: u64,
    /// The last place that is durable here.
    pub stored: u64,
}

/// What is stored beside a parcel, so that the cursor can be recovered from the store alone.
///
/// Records of a child form a chain: each names the one before it. A record whose predecessor is
/// missing is an orphan of a store that failed half-way, and is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Which life of the child's store.
    pub incarnation: u64,
    /// The place after which that life begins.
    pub start: u64,
    /// `last` of the record before, or `start`.
    pub previous: u64,
    /// The parcel's place.
    pub last: u64,
}

impl Cursor {
    /// The cursor that this record follows.
    pub fn before(record: Record) -> Cursor {
        let Record { incarnation, start, previous, .. } = record;
        Cursor { incarnation, start, last: previous, stored: previous }
    }

    /// Follows a record found in the store behind this cursor: the cursor after it, `None` for an
    /// orphan.
    pub fn follow(self, record: Record) -> Option<Cursor> {
        let Record { incarnation, start, previous, last } = record;
        if incarnation == self.incarnation && last <= self.stored {
            return Some(self);
        }
        let expected = if incarnation == self.incarnation { self.stored } else { start };
        let last_or_refused = if incarnation == self.incarnation { self.last.max(last) } else { last };
        (previous == expected).then_some(Cursor { incarnation, start, last: last_or_refused, stored: last })
    }
}

impl std::fmt::Display for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {} {}", self.incarnation, self.start, self.previous, self.last)
    }
}

impl std::str::FromStr for Record {
    type Err = BadRecord;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let mut numbers = s.split(' ').map(str::parse::<u64>);
        let mut next = || numbers.next().and_then(Result::ok).ok_or(BadRecord);
        Ok(Record { incarnation: next()?, start: next()?, previous: next()?, last: next()? })
    }
}

/// A text that is no [`Record`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a link record is four numbers")]
pub struct BadRecord;

#[derive(Debug)]
enum Session {
    /// Nobody greeted since this agent started, or the store failed.
    None,
    /// A greeting waits until what was being stored is settled.
    Greeted {
        session: u64,
        incarnation: u64,
        start: u64,
    },
    Open(u64),
}

/// The parent's end for one child.
#[derive(Debug)]
pub struct Parent {
    cursor: Cursor,
    session: Session,
    pending: VecDeque<Pending>,
    /// `last` of the newest record given out.
    chain: u64,
    /// Refusals that no receipt has named yet.
    refused: Vec<RefusedParcel>,
    /// A receipt or welcome is owed.
    owed: bool,
    /// The store failed for something pending; nothing new may pass it.
    broken: bool,
    credit: u64,
    repeated: u64,
}

impl Parent {
    /// The parent's end for a child whose durable cursor is `cursor`; `credit` in bytes.
    pub fn new(cursor: Cursor, credit: u64) -> Parent {
        Parent {
            cursor,
            session: Session::None,
            pending: VecDeque::new(),
            chain: cursor.stored,
            refused: Vec::new(),
            owed: false,
            broken: false,
            credit,
            repeated: 0,
        }
    }

    /// The durable cursor.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// How many parcels came again and were recognised.
    pub fn repeated(&self) -> u64 {
        self.repeated
    }

    /// Whether the store still owes an answer.
    pub fn is_storing(&self) -> bool {
        !self.pending.is_empty()
    }

    /// The child greets. A new incarnation starts at the place it names.
    pub fn on_hello(&mut self, session: u64, incarnation: u64, start: u64) {
        self.session = Session::Greeted { session, incarnation, start };
        self.settle_session();
    }

    /// A frame whose parcels have been judged, in order.
    pub fn on_frame(
        &mut self,
        session: u64,
        parcels: &[ParcelHead],
        verdicts: &[Verdict],
    ) -> Vec<ParentOutput> {
        match self.session {
            Session::Open(open) if open == session => {}
            // The welcome is on its way.
            Session::Greeted { session: open, .. } if open == session => return Vec::new(),
            _ => return vec![ParentOutput::Reset { session }],
        }
        let mut outputs = Vec::new();
        for (index, (parcel, verdict)) in parcels.iter().zip(verdicts).enumerate() {
            let tail = self.tail();
            if parcel.last <= tail {
                // Its receipt was lost, or is on its way.
                self.repeated += 1;
                self.owed = true;
                continue;
            }
            if parcel.after != tail || parcel.last <= parcel.after {
                // A frame before this one was lost; the child repeats from the cursor on.
                break;
            }
            let state = match *verdict {
                Verdict::Sound => {
                    let Cursor { incarnation, start, .. } = self.cursor;
                    let record = Record { incarnation, start, previous: self.chain, last: parcel.last };
                    self.chain = parcel.last;
                    outputs.push(ParentOutput::Store { index, record });
                    PendingState::Storing
                }
                Verdict::Refused(reason) => {
                    outputs.push(ParentOutput::Bury { index, reason });
                    PendingState::Refused(reason)
                }
            };
            self.pending.push_back(Pending { last: parcel.last, state });
        }
        self.advance();
        outputs
    }

    /// The store has the parcel that ends at `last`, durably.
    pub fn on_stored(&mut self, last: u64) {
        if let Some(pending) = self.pending.iter_mut().find(|pending| pending.last == last) {
            pending.state = PendingState::Stored;
        }
        self.advance();
    }

    /// The store refused or did not answer for the parcel that ends at `last`. What lies behind it may
    /// be stored or not: the shell must wait for the rest, then look and tell [`Parent::on_recovered`].
    pub fn on_store_failed(&mut self, last: u64) {
        if self.pending.iter().any(|pending| pending.last == last) {
            self.broken = true;
            self.session = Session::None;
        }
    }

    /// Whether the store failed and has to be looked into.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// What the store really holds; nothing behind it is on its way any more.
    pub fn on_recovered(&mut self, cursor: Cursor) {
        self.cursor = cursor;
        self.chain = cursor.stored;
        self.pending.clear();
        self.broken = false;
        self.settle_session();
    }

    /// A welcome or receipt that is due, `None` where none is.
    pub fn take_reply(&mut self, now: Millis, version: &str) -> Option<ParentMessage> {
        if !std::mem::take(&mut self.owed) {
            return None;
        }
        match self.session {
            Session::Greeted { session, incarnation, start } if self.pending.is_empty() => {
                if incarnation != self.cursor.incarnation {
                    self.cursor = Cursor { incarnation, start, last: start, stored: start };
                    self.chain = start;
                }
                self.session = Session::Open(session);
                Some(ParentMessage::Welcome {
                    session,
                    incarnation,
                    cursor: self.cursor.last,
                    credit: self.credit,
                    version: version.to_owned(),
                })
            }
            Session::Open(session) => Some(ParentMessage::Ack {
                session,
                cursor: self.cursor.last,
                credit: self.credit,
                received_at: now,
                refused: std::mem::take(&mut self.refused),
            }),
            Session::Greeted { .. } | Session::None => None,
        }
    }

    /// The place up to which parcels were taken, stored or not yet.
    fn tail(&self) -> u64 {
        self.pending.back().map_or(self.cursor.last, |pending| pending.last)
    }

    fn advance(&mut self) {
        if self.broken {
            return;
        }
        let settled = |pending: &mut Pending| !matches!(pending.state, PendingState::Storing);
        while let Some(Pending { last, state }) = self.pending.pop_front_if(settled) {
            self.cursor.last = last;
            self.owed = true;
            match state {
                PendingState::Refused(reason) => self.refused.push(RefusedParcel { last, reason }),
                PendingState::Storing | PendingState::Stored => self.cursor.stored = last,
            }
        }
        self.settle_session();
    }

    /// A greeting is answered once nothing from before it is still on its way into the store: only
    /// then is the cursor that the welcome tells final.
    fn settle_session(&mut self) {
        if matches!(self.session, Session::Greeted { .. }) && self.pending.is_empty() {
            self.owed = true;
        }
    }
}
