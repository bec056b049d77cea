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
        /// Its place in the child's store.
        last: u64,
        /// What it follows there.
        after: u64,
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
    done: bool,
    refused: Option<Refusal>,
}

/// How far one child has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// Which life of the child's store.
    pub incarnation: u64,
    /// Everything up to this place in it is durable here, or was refused.
    pub last: u64,
}

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
            let (done, refused) = match verdict {
                Verdict::Sound => {
                    outputs.push(ParentOutput::Store { index, last: parcel.last, after: parcel.after });
                    (false, None)
                }
                Verdict::Refused(reason) => {
                    outputs.push(ParentOutput::Bury { index, reason: *reason });
                    (true, Some(*reason))
                }
            };
            self.pending.push_back(Pending { last: parcel.last, done, refused });
        }
        self.advance();
        outputs
    }

    /// The store has the parcel that ends at `last`, durably.
    pub fn on_stored(&mut self, last: u64) {
        if let Some(pending) = self.pending.iter_mut().find(|pending| pending.last == last) {
            pending.done = true;
        }
        self.advance();
    }

    /// The store refused or did not answer for the parcel that ends at `last`. Everything behind it is
    /// void too: the shell must undo what was stored behind it (see [`Parent::on_undone`]).
    pub fn on_store_failed(&mut self, last: u64) {
        if self.pending.iter().any(|pending| pending.last == last) {
            self.broken = true;
            self.session = Session::None;
        }
    }

    /// Nothing behind the cursor is in the store any more.
    pub fn on_undone(&mut self) {
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
                    self.cursor = Cursor { incarnation, last: start };
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
        while let Some(pending) = self.pending.pop_front_if(|pending| pending.done) {
            self.cursor.last = pending.last;
            self.owed = true;
            if let Some(reason) = pending.refused {
                self.refused.push(RefusedParcel { last: pending.last, reason });
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
