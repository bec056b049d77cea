//! One lane of an open session, at the child: what waits, what is under way, and as what it goes.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;

use super::{ChildLimits, Parcel, Tick, child::spread, message::Begun, pace::Pace};

/// So many frames are sent at once, full or not.
const SMALL_AT_ONCE: usize = 2;

/// What is sent in one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Load {
    /// Whole parcels, in order.
    Parcels(Vec<Parcel>),
    /// A piece of one that is too large for the line.
    Piece {
        /// The parcel.
        parcel: Parcel,
        /// Where in it the piece begins.
        offset: usize,
        /// The piece.
        bytes: Bytes,
    },
}

/// Something sent and not acknowledged.
#[derive(Debug)]
struct Flight {
    load: Load,
    bytes: usize,
    sent: Tick,
    /// Sent for the first time: then its answer tells how long answers take.
    first: bool,
    /// As [`Pace::sending`] said.
    full: bool,
}

/// What waits is more than the parent will take: it is asked with an empty frame.
#[derive(Debug)]
struct Asking {
    /// When to ask next.
    next: Tick,
    wait: Duration,
    unanswered: u32,
}

/// The parent answers no more.
pub(super) struct Silent;

#[derive(Debug, Default)]
pub(super) struct Flow {
    pub(super) credit: u64,
    asking: Option<Asking>,
    flights: VecDeque<Flight>,
    queue: VecDeque<Parcel>,
    /// How much of the first parcel in the queue has been sent in pieces.
    offset: usize,
    /// What the parent has of a parcel that came in pieces.
    begun: Option<Begun>,
    /// How often in a row something was sent again.
    repeats: u32,
    /// Places up to here were sent before.
    repeated: u64,
    /// When the parent last got ahead, or was asked again.
    heard: Tick,
    probe: Probe,
}

/// On a line that keeps the order, what is late is mostly not lost: so the oldest alone is sent again first.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Probe {
    #[default]
    None,
    /// The oldest is to be sent again.
    Due,
    /// It was, then. If it arrives and nothing of what was sent before that, then the rest is lost.
    Sent(Tick),
    /// It arrived.
    Arrived(Tick),
}

impl Flow {
    /// The lane as the parent has welcomed it; the greeting has told what waits.
    pub(super) fn new(credit: u64, limits: &ChildLimits, now: Tick, session: u64) -> Flow {
        let asking = Some(Asking::after(limits.retry, now, session));
        Flow { credit, asking, heard: now, ..Flow::default() }
    }

    pub(super) fn push(&mut self, parcel: Parcel) {
        self.queue.push_back(parcel);
    }

    pub(super) fn is_idle(&self) -> bool {
        self.flights.is_empty() && self.queue.is_empty()
    }

    pub(super) fn wants_more(&self, limits: &ChildLimits) -> bool {
        self.queue.len() < limits.frame_parcels
            && self.queue.iter().map(|p| p.bytes.len()).sum::<usize>() < limits.frame_bytes
    }

    /// Bytes under way.
    pub(super) fn under_way(&self) -> usize {
        self.flights.iter().map(|flight| flight.bytes).sum()
    }

    /// Whether something may be sent while so much is under way in all lanes, of what the lane may have.
    pub(super) fn may_send(&self, pace: &Pace, under_way: usize, budget: usize, now: Tick) -> bool {
        let room = under_way == 0 || under_way < budget;
        let slot = self.flights.len() < pace.limits().frames;
        slot && room
            && self.has_credit(pace.limits())
            && self.paused_until(pace).is_none_or(|until| now >= until)
    }

    /// Bytes that the parent will take beyond those under way.
    fn credit_left(&self) -> u64 {
        self.credit.saturating_sub(self.under_way() as u64)
    }

    /// Whether something waits, and the parent will take it: what it has begun to take, it will.
    fn has_credit(&self, limits: &ChildLimits) -> bool {
        let Some(next) = self.queue.front() else { return false };
        let fits = next.bytes.len() as u64 <= self.credit_left();
        let whole = self.flights.is_empty() && self.credit >= limits.whole_batch;
        let begun = self.offset > 0 && self.credit > 0;
        fits || whole || begun
    }

    /// Something waits, nothing is under way, and so no receipt will come by itself.
    fn is_blocked(&self, limits: &ChildLimits) -> bool {
        self.flights.is_empty() && !self.queue.is_empty() && !self.has_credit(limits)
    }

    /// The parent has said how much it will take.
    pub(super) fn hear_credit(&mut self, limits: &ChildLimits, now: Tick, session: u64) {
        if self.credit == 0 {
            // What is on its way is not taken: it waits here until it may go.
            self.take_back();
            self.repeats = 0;
        }
        match &mut self.asking {
            _ if self.queue.is_empty() => self.asking = None,
            Some(asking) => asking.unanswered = 0,
            // A frame has shown that something waits: the parent knows.
            None => self.asking = Some(Asking::after(limits.retry, now, session)),
        }
    }

    /// When the parent is to be asked how much it will take.
    pub(super) fn question_due(&self, limits: &ChildLimits) -> Option<Tick> {
        self.asking.as_ref().filter(|_| self.is_blocked(limits)).map(|asking| asking.next)
    }

    /// Whether it is time to ask how much may be sent.
    pub(super) fn asks(&mut self, limits: &ChildLimits, now: Tick, session: u64) -> bool {
        if !self.is_blocked(limits) {
            return false;
        }
        let asking = self.asking.get_or_insert(Asking { next: now, wait: limits.retry, unanswered: 0 });
        if now < asking.next {
            return false;
        }
        asking.unanswered += 1;
        asking.next = now + spread(asking.wait, session.wrapping_add(now.as_millis() as u64));
        asking.wait = (asking.wait * 2).min(ChildLimits::MAX_BACKOFF);
        true
    }

    /// Until when what waits is to wait for more.
    pub(super) fn paused_until(&self, pace: &Pace) -> Option<Tick> {
        let newest = self.flights.back()?;
        let waits = self.offset == 0 && self.flights.len() >= SMALL_AT_ONCE;
        let full = || {
            self.queue.len() >= pace.limits().frame_parcels
                || self.queue.iter().map(|p| p.bytes.len()).sum::<usize>() >= pace.frame_bytes()
        };
        (waits && !self.queue.is_empty() && !full()).then(|| newest.sent + pace.pause())
    }

    /// When something will have waited too long for its receipt.
    pub(super) fn due(&self, pace: &Pace) -> Option<Tick> {
        let oldest = self.flights.front()?;
        Some(oldest.sent.max(self.heard) + self.patience(pace))
    }

    /// Longer from time to time, but not so that a line that was down for a moment is left idle.
    fn patience(&self, pace: &Pace) -> Duration {
        let patience = pace.patience();
        if let Probe::Arrived(_) = self.probe {
            return pace.behind();
        }
        (patience * 2u32.pow(self.repeats)).min(patience.max(ChildLimits::MAX_BACKOFF))
    }

    /// Where something has waited too long for its receipt: the oldest is sent again, then all of it. What is
    /// lost is mostly lost together, when a connection breaks. Unless the parent has been silent for so long
    /// that the session is to be given up.
    pub(super) fn repeat_overdue(&mut self, pace: &mut Pace, now: Tick) -> Result<(), Silent> {
        let unanswered = |asking: &Asking| asking.unanswered > ChildLimits::REPEATS && now >= asking.next;
        if self.is_blocked(pace.limits()) && self.asking.as_ref().is_some_and(unanswered) {
            return Err(Silent);
        }
        if self.due(pace).is_none_or(|due| now < due) {
            return Ok(());
        }
        if self.repeats >= ChildLimits::REPEATS {
            return Err(Silent);
        }
        self.heard = now;
        if let Probe::Arrived(_) = self.probe {
            self.take_back();
            return Ok(());
        }
        self.repeats += 1;
        if self.probe == Probe::None && self.flights.len() > 1 {
            self.probe = Probe::Due;
            return Ok(());
        }
        if self.credit > 0 {
            pace.overdue(now);
        }
        self.take_back();
        Ok(())
    }

    /// The oldest, where it is to be sent again.
    pub(super) fn next_probe(&mut self, now: Tick) -> Option<Load> {
        if self.probe != Probe::Due {
            return None;
        }
        self.probe = Probe::Sent(now);
        let oldest = self.flights.front_mut()?;
        oldest.first = false;
        Some(oldest.load.clone())
    }

    fn take_back(&mut self) {
        self.probe = Probe::None;
        let mut parcels: Vec<Parcel> = Vec::new();
        for flight in self.flights.drain(..) {
            match flight.load {
                Load::Parcels(of_frame) => parcels.extend(of_frame),
                Load::Piece { parcel, .. } => parcels.push(parcel),
            }
        }
        parcels.dedup_by_key(|parcel| parcel.last);
        let last = parcels.last().map(|parcel| parcel.last);
        self.repeated = self.repeated.max(last.unwrap_or_default());
        if last == self.queue.front().map(|parcel| parcel.last) {
            // Pieces of it were under way, and the rest of it still waits.
            parcels.pop();
        }
        for parcel in parcels.into_iter().rev() {
            self.queue.push_front(parcel);
        }
        self.offset = self.there_of_first();
    }

    /// How much the parent has of the first parcel in the queue.
    fn there_of_first(&self) -> usize {
        match (self.queue.front(), self.begun) {
            (Some(first), Some(begun)) if first.last == begun.last => {
                let have = begun.have as usize;
                if have < first.bytes.len() { have } else { 0 }
            }
            _ => 0,
        }
    }

    /// The next to be sent.
    pub(super) fn next_load(
        &mut self,
        limits: &ChildLimits,
        pace: &mut Pace,
        under_way: usize,
        now: Tick,
    ) -> Option<Load> {
        let most = pace.frame_bytes();
        let first = self.queue.front()?;
        let whole = self.offset == 0 && (first.bytes.len() <= most || most >= limits.frame_bytes);
        self.asking = None;
        let load = if whole {
            let most = (most as u64).min(self.credit_left()) as usize;
            Load::Parcels(cut_frame(&mut self.queue, limits.frame_parcels, most))
        } else {
            let (parcel, offset) = (first.clone(), self.offset);
            let end = (offset + most).min(parcel.bytes.len());
            let bytes = parcel.bytes.slice(offset..end);
            self.offset = end;
            if end == parcel.bytes.len() {
                self.queue.pop_front();
                self.offset = 0;
            }
            Load::Piece { parcel, offset, bytes }
        };
        let bytes = load.bytes();
        let full = pace.sending(under_way + bytes, now);
        let first = load.last() > self.repeated;
        self.flights.push_back(Flight { load: load.clone(), bytes, sent: now, first, full });
        Some(load)
    }

    /// The parent has everything up to the cursor, and this much of what follows it. Returns what has arrived
    /// as a whole. Progress restarts the clock of the rest: the parent is alive, only behind.
    pub(super) fn settle(
        &mut self,
        cursor: u64,
        begun: Option<Begun>,
        pace: &mut Pace,
        now: Tick,
    ) -> Vec<Parcel> {
        let mut settled = Vec::new();
        let mut progress = false;
        self.begun = begun;
        while let Some(flight) = self.flights.front_mut() {
            let arrived = match &mut flight.load {
                Load::Parcels(parcels) => {
                    let done = parcels.iter().take_while(|parcel| parcel.last <= cursor).count();
                    settled.extend(parcels.drain(..done));
                    parcels.is_empty()
                }
                Load::Piece { parcel, .. } if parcel.last <= cursor => {
                    settled.push(parcel.clone());
                    true
                }
                Load::Piece { parcel, offset, bytes } => begun.is_some_and(|begun| {
                    begun.last == parcel.last && begun.have as usize >= *offset + bytes.len()
                }),
            };
            if !arrived {
                break;
            }
            if flight.first {
                pace.answered(flight.sent, now, flight.bytes, flight.full);
            }
            progress = true;
            self.flights.pop_front();
        }
        // What was taken back may have arrived all the same.
        while let Some(parcel) = self.queue.pop_front_if(|parcel| parcel.last <= cursor) {
            settled.push(parcel);
            self.offset = 0;
        }
        if self.flights.is_empty() {
            self.offset = self.there_of_first().max(self.offset);
        }
        if progress || !settled.is_empty() {
            self.heard = now;
            self.repeats = 0;
            self.probe = match self.probe {
                Probe::Sent(at) | Probe::Arrived(at)
                    if self.flights.front().is_some_and(|oldest| oldest.sent <= at) =>
                {
                    Probe::Arrived(at)
                }
                _ => Probe::None,
            };
        }
        settled
    }
}

impl Asking {
    fn after(wait: Duration, now: Tick, session: u64) -> Asking {
        Asking { next: now + spread(wait, session), wait, unanswered: 0 }
    }
}

impl Load {
    fn bytes(&self) -> usize {
        match self {
            Load::Parcels(parcels) => parcels.iter().map(|parcel| parcel.bytes.len()).sum(),
            Load::Piece { bytes, .. } => bytes.len(),
        }
    }

    /// The last place of it.
    fn last(&self) -> u64 {
        match self {
            Load::Parcels(parcels) => parcels.last().map_or(0, |parcel| parcel.last),
            Load::Piece { parcel, .. } => parcel.last,
        }
    }

    /// The parcels that the parent can judge once it has this.
    pub(super) fn completes(&self) -> &[Parcel] {
        match self {
            Load::Parcels(parcels) => parcels,
            Load::Piece { parcel, offset, bytes } if offset + bytes.len() == parcel.bytes.len() => {
                std::slice::from_ref(parcel)
            }
            Load::Piece { .. } => &[],
        }
    }
}

fn cut_frame(queue: &mut VecDeque<Parcel>, most_parcels: usize, most_bytes: usize) -> Vec<Parcel> {
    let mut bytes = 0;
    let fitting = queue
        .iter()
        .take(most_parcels)
        .take_while(|parcel| {
            bytes += parcel.bytes.len();
            bytes <= most_bytes
        })
        .count();
    queue.drain(..fitting.max(1)).collect()
}
