//! The parent's end of the link, one for each child.
//!
//! Parcels are judged (signature, origin, content) before they come here; this machine decides what
//! is new, what is a repetition and what leaves a gap, and moves the cursors only over what the store
//! has confirmed.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::{
    cursor::{Cursor, Record},
    message::{Begun, LaneHello, LaneWelcome, ParcelHead, ParentMessage, RefusedParcel},
    origins::{Origins, Span, Standing},
};
use crate::{ByLane, Digest, Lane, Millis, Path, Refusal, envelope};

/// What was found about a parcel before it may be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Its signature, origin and content hold.
    Sound {
        /// Whose events it holds.
        origin: Path,
        /// Their numbers.
        span: Span,
    },
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
    /// Events of parcel number `index`'s origin are missing before it and will not come any more.
    Gap {
        /// Its place in the frame just given.
        index: usize,
        /// What is missing.
        span: Span,
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
    bytes: u64,
    digest: Digest,
    state: PendingState,
}

#[derive(Debug, Clone, Copy)]
enum PendingState {
    Storing,
    Stored,
    /// It was there before.
    Known,
    Refused(Refusal),
}

#[derive(Debug)]
enum Session {
    /// Nobody greeted since this agent started, or the store failed.
    None,
    /// A greeting waits until what was being stored is settled.
    Greeted {
        session: u64,
        lanes: ByLane<LaneHello>,
    },
    Open(u64),
}

/// One lane.
#[derive(Debug, Default)]
struct Inflow {
    cursor: Cursor,
    pending: VecDeque<Pending>,
    /// `last` of the newest record given out.
    chain: u64,
    /// Refusals that no receipt has named yet.
    refused: Vec<RefusedParcel>,
    /// A receipt is owed.
    owed: bool,
    /// Bytes that the child may have beyond the cursor.
    credit: u64,
    /// What is left of what it was told last, and the most it was told in this session.
    told: u64,
    most_told: u64,
    /// Nothing is taken.
    held_back: bool,
    /// Bytes taken and not settled, and all that were ever settled.
    held: u64,
    settled: u64,
    /// The next batch, as far as it has come in pieces.
    begun: Option<Pieces>,
}

#[derive(Debug)]
struct Pieces {
    head: ParcelHead,
    bytes: BytesMut,
}

/// The parent's end for one child.
#[derive(Debug)]
pub struct Parent {
    session: Session,
    lanes: ByLane<Inflow>,
    /// The store failed for something pending; nothing new may pass it.
    broken: bool,
    repeated: u64,
}

impl Parent {
    /// The parent's end for a child whose durable cursors are these. Without credit: see
    /// [`Parent::set_credit`].
    pub fn new(cursors: &ByLane<Cursor>) -> Parent {
        let lanes = cursors.map(|_, &cursor| Inflow { cursor, chain: cursor.stored, ..Inflow::default() });
        Parent { session: Session::None, lanes, broken: false, repeated: 0 }
    }

    /// The durable cursors.
    pub fn cursors(&self) -> ByLane<Cursor> {
        self.lanes.map(|_, inflow| inflow.cursor)
    }

    /// How many parcels came again and were recognised.
    pub fn repeated(&self) -> u64 {
        self.repeated
    }

    /// Whether the store still owes an answer.
    pub fn is_storing(&self) -> bool {
        self.lanes.iter().any(|(_, inflow)| !inflow.pending.is_empty())
    }

    /// Whether a parcel may be new, and so is worth a look into it. The others need no verdict.
    pub fn may_be_new(&self, session: u64, lane: Lane, parcel: &ParcelHead) -> bool {
        let inflow = &self.lanes[lane];
        matches!(self.session, Session::Open(open) if open == session)
            && !inflow.held_back
            && parcel.last > inflow.tail()
    }

    /// Bytes of the lane that were taken and are not settled, and all that were ever settled.
    pub fn held_and_settled(&self, lane: Lane) -> (u64, u64) {
        (self.lanes[lane].held, self.lanes[lane].settled)
    }

    /// Whether something of the lane waits at a child that greets; `None` once it was welcomed.
    pub fn greets_with_more(&self, lane: Lane) -> Option<bool> {
        let Session::Greeted { lanes, .. } = &self.session else { return None };
        let (hello, inflow) = (lanes[lane], &self.lanes[lane]);
        let known = hello.incarnation == inflow.cursor.incarnation;
        Some(hello.last > if known { inflow.tail() } else { hello.start })
    }

    /// What the child may have beyond its cursor from now on, in bytes. With 0 the lane is held back: nothing
    /// is taken, and the child is told so. It is told without being asked when it may go on, and when it
    /// may send much less than it thinks.
    pub fn set_credit(&mut self, lane: Lane, credit: u64) {
        let inflow = &mut self.lanes[lane];
        inflow.held_back = credit == 0;
        inflow.credit = credit;
        let left = credit.saturating_sub(inflow.held);
        let thinks = inflow.told.saturating_sub(inflow.held);
        let (goes_on, taken_back) = (left / 2 > thinks, credit > 0 && thinks / 2 > left);
        inflow.owed |= goes_on || taken_back;
    }

    /// The child greets. A new incarnation starts at the place it names.
    pub fn on_hello(&mut self, session: u64, lanes: ByLane<LaneHello>) {
        self.session = Session::Greeted { session, lanes };
    }

    /// A piece of a batch, from `offset` on. Returns the whole batch with its last piece: it is to be judged then
    /// and given to [`Parent::on_frame`]. With `room` false no further batch is begun.
    ///
    /// Errors: the session is not open, and the child is to be told so.
    pub fn on_piece(
        &mut self,
        session: u64,
        lane: Lane,
        head: &ParcelHead,
        offset: u32,
        piece: &[u8],
        room: bool,
    ) -> Result<Option<Bytes>, ParentOutput> {
        match self.session {
            Session::Open(open) if open == session => {}
            Session::Greeted { session: open, .. } if open == session => return Ok(None),
            _ => return Err(ParentOutput::Reset { session }),
        }
        let inflow = &mut self.lanes[lane];
        // Whatever becomes of it, the child is told how much is there.
        inflow.owed = true;
        if head.last <= inflow.tail() || head.after != inflow.tail() || !inflow.takes(head) {
            return Ok(None);
        }
        Ok(inflow.append(head, offset as usize, piece, room))
    }

    /// Bytes of batches that have come in part.
    pub fn begun_bytes(&self) -> usize {
        self.lanes.iter().filter_map(|(_, inflow)| Some(inflow.begun.as_ref()?.bytes.len())).sum()
    }

    /// Forgets what has come in part; the child begins again.
    pub fn forget_begun(&mut self) {
        for (_, inflow) in self.lanes.iter_mut() {
            inflow.begun = None;
        }
    }

    /// A frame whose parcels have been judged, in order, as far as they [may be new](Parent::may_be_new); for the
    /// others any verdict will do. What is new of them counts as taken in `origins`
    /// at once, so that nothing can come in twice while it is being stored; that it is durable the shell
    /// notes there, in the order in which it was stored.
    pub fn on_frame(
        &mut self,
        session: u64,
        lane: Lane,
        parcels: &[ParcelHead],
        verdicts: &[Verdict],
        origins: &mut Origins,
    ) -> Vec<ParentOutput> {
        match self.session {
            Session::Open(open) if open == session => {}
            // The welcome is on its way.
            Session::Greeted { session: open, .. } if open == session => return Vec::new(),
            _ => return vec![ParentOutput::Reset { session }],
        }
        let inflow = &mut self.lanes[lane];
        // A frame without parcels asks how much may come.
        inflow.owed |= parcels.is_empty();
        let mut outputs = Vec::new();
        for (index, (parcel, verdict)) in parcels.iter().zip(verdicts).enumerate() {
            let tail = inflow.tail();
            if parcel.last <= tail {
                // Its receipt was lost, or is on its way.
                self.repeated += 1;
                inflow.owed = true;
                continue;
            }
            let bytes = u64::from(parcel.len);
            if !inflow.takes(parcel) {
                inflow.owed = true;
                break;
            }
            if parcel.after != tail || parcel.last <= parcel.after {
                // A frame before this one was lost; the child repeats from the cursor on.
                break;
            }
            let state = match verdict {
                Verdict::Refused(reason) => PendingState::Refused(*reason),
                Verdict::Sound { origin, span } => match origins.standing(origin, lane, *span) {
                    Standing::Known => PendingState::Known,
                    // Somebody else brought it, and it may yet fail; the child will ask again.
                    Standing::Pending => break,
                    Standing::Torn => PendingState::Refused(Refusal::BadPayload),
                    Standing::Full => PendingState::Refused(Refusal::NotPermitted),
                    standing @ (Standing::Next | Standing::Gap(_)) => {
                        if let Standing::Gap(span) = standing {
                            outputs.push(ParentOutput::Gap { index, span });
                        }
                        origins.taken(origin, lane, *span);
                        PendingState::Storing
                    }
                },
            };
            match state {
                PendingState::Storing => {
                    let record = inflow.next_record(parcel.last);
                    outputs.push(ParentOutput::Store { index, record });
                }
                PendingState::Refused(reason) => outputs.push(ParentOutput::Bury { index, reason }),
                PendingState::Known => self.repeated += 1,
                PendingState::Stored => {}
            }
            inflow.held += bytes;
            inflow.pending.push_back(Pending { last: parcel.last, bytes, digest: parcel.digest, state });
        }
        self.advance(lane);
        outputs
    }

    /// The store has the parcel that ends at `last`, durably.
    pub fn on_stored(&mut self, lane: Lane, last: u64) {
        if let Some(pending) = self.lanes[lane].pending.iter_mut().find(|pending| pending.last == last) {
            pending.state = PendingState::Stored;
        }
        self.advance(lane);
    }

    /// The store refused or did not answer for the parcel that ends at `last`. What lies behind it may
    /// be stored or not: the shell must wait for the rest, then look and tell [`Parent::on_recovered`].
    pub fn on_store_failed(&mut self, lane: Lane, last: u64) {
        if self.lanes[lane].pending.iter().any(|pending| pending.last == last) {
            self.broken = true;
            self.session = Session::None;
        }
    }

    /// Whether the store failed and has to be looked into.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// What the store really holds; nothing behind it is on its way any more.
    pub fn on_recovered(&mut self, cursors: &ByLane<Cursor>) {
        for (lane, inflow) in self.lanes.iter_mut() {
            inflow.cursor = cursors[lane];
            inflow.chain = cursors[lane].stored;
            inflow.pending.clear();
            inflow.held = 0;
        }
        self.broken = false;
    }

    /// The welcome or the receipts that are due.
    pub fn take_replies(&mut self, now: Millis, version: &str) -> Vec<ParentMessage> {
        match self.session {
            // A greeting is answered once nothing from before it is still on its way into the store:
            // only then are the cursors that the welcome tells final.
            Session::Greeted { session, lanes } if !self.is_storing() => {
                for (lane, hello) in lanes.iter() {
                    self.lanes[lane].begin(hello);
                }
                self.session = Session::Open(session);
                let lanes = self.lanes.map(|_, inflow| LaneWelcome {
                    cursor: inflow.cursor.last,
                    digest: inflow.cursor.digest,
                    credit: inflow.told,
                });
                vec![ParentMessage::Welcome { session, lanes, version: version.to_owned() }]
            }
            Session::Open(session) => {
                let owing = self.lanes.iter_mut().filter(|(_, inflow)| inflow.owed);
                owing.map(|(lane, inflow)| inflow.receipt(session, lane, now)).collect()
            }
            Session::Greeted { .. } | Session::None => Vec::new(),
        }
    }

    fn advance(&mut self, lane: Lane) {
        if !self.broken {
            self.lanes[lane].advance();
        }
    }
}

impl Inflow {
    /// The place up to which parcels were taken, stored or not yet.
    fn tail(&self) -> u64 {
        self.pending.back().map_or(self.cursor.last, |pending| pending.last)
    }

    /// Whether there is room for the next parcel, as promised.
    fn takes(&self, parcel: &ParcelHead) -> bool {
        let promised = self.held == 0 || self.held + u64::from(parcel.len) <= self.most_told;
        !self.held_back && promised
    }

    /// Adds a piece to those before it; the batch, once it is whole.
    fn append(&mut self, head: &ParcelHead, offset: usize, piece: &[u8], room: bool) -> Option<Bytes> {
        let len = head.len as usize;
        if piece.is_empty() || len > envelope::MAX_BYTES {
            return None;
        }
        if offset == 0 && room && self.begun.as_ref().is_none_or(|begun| begun.head != *head) {
            self.begun = Some(Pieces { head: head.clone(), bytes: BytesMut::new() });
        }
        let begun = self.begun.as_mut().filter(|begun| begun.head == *head)?;
        if offset != begun.bytes.len() || offset + piece.len() > len {
            return None;
        }
        begun.bytes.extend_from_slice(piece);
        if begun.bytes.len() < len {
            return None;
        }
        self.begun.take().map(|begun| begun.bytes.freeze())
    }

    fn begin(&mut self, hello: &LaneHello) {
        self.begun = None;
        (self.told, self.most_told) = (self.credit, self.credit);
        self.owed = false;
        self.refused.clear();
        if hello.incarnation != self.cursor.incarnation {
            self.cursor = Cursor::at_start(hello.incarnation, hello.start);
            self.chain = hello.start;
        }
    }

    fn next_record(&mut self, last: u64) -> Record {
        let Cursor { incarnation, start, .. } = self.cursor;
        let previous = std::mem::replace(&mut self.chain, last);
        Record { incarnation, start, previous, last }
    }

    fn advance(&mut self) {
        let settled = |pending: &mut Pending| !matches!(pending.state, PendingState::Storing);
        while let Some(Pending { last, bytes, digest, state }) = self.pending.pop_front_if(settled) {
            (self.held, self.settled) = (self.held - bytes, self.settled + bytes);
            self.told = self.told.saturating_sub(bytes);
            (self.cursor.last, self.cursor.digest) = (last, Some(digest));
            self.owed = true;
            match state {
                PendingState::Refused(reason) => self.refused.push(RefusedParcel { last, reason }),
                PendingState::Storing | PendingState::Stored => self.cursor.stored = last,
                PendingState::Known => {}
            }
        }
    }

    fn receipt(&mut self, session: u64, lane: Lane, now: Millis) -> ParentMessage {
        self.owed = false;
        (self.told, self.most_told) = (self.credit, self.most_told.max(self.credit));
        let tail = self.tail();
        let begun = self.begun.as_ref().filter(|begun| begun.head.after == tail);
        ParentMessage::Ack {
            session,
            lane,
            cursor: self.cursor.last,
            credit: self.credit,
            begun: begun.map(|begun| Begun { last: begun.head.last, have: begun.bytes.len() as u32 }),
            received_at: now,
            refused: std::mem::take(&mut self.refused),
        }
    }
}
