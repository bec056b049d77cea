//! The child's end of the link.
//!
//! ```text
//!            timeout: Hello again, later and later
//!               +----+
//!               v    |      Welcome(session)
//!   start --> Greeting ----------------------> Open
//!               ^                               |
//!               +------ Reset, silence ---------+
//! ```
//! Entering Open tells the shell where to read from; whatever was read before is void.

use std::{
    collections::{HashSet, VecDeque},
    time::Duration,
};

use super::{
    Parcel, ParcelHead, Tick,
    message::{ChildMessage, ParentMessage, RefusedParcel},
};
use crate::{Digest, Millis};

/// How much the child keeps under way, and how patient it is.
#[derive(Debug, Clone, Copy)]
pub struct ChildLimits {
    /// Frames sent and not acknowledged.
    pub frames: usize,
    /// Bytes of batches in one frame; one larger batch still makes a frame of its own.
    pub frame_bytes: usize,
    /// Batches in one frame.
    pub frame_parcels: usize,
    /// Wait before a frame or greeting is repeated; doubles up to [`ChildLimits::MAX_BACKOFF`].
    pub retry: Duration,
}

impl ChildLimits {
    /// How many repetitions of a frame stay unanswered before the session is given up.
    const REPEATS: u32 = 3;
    /// The longest wait between two greetings.
    const MAX_BACKOFF: Duration = Duration::from_secs(4);
}

impl Default for ChildLimits {
    fn default() -> Self {
        ChildLimits { frames: 8, frame_bytes: 256 * 1024, frame_parcels: 64, retry: Duration::from_secs(1) }
    }
}

/// What the shell is to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChildOutput {
    /// Greet the parent, with a fresh session number if `session` is new to the shell.
    Greet {
        /// The session to open.
        session: u64,
    },
    /// Send these parcels as one frame.
    Send {
        /// The session they belong to.
        session: u64,
        /// The parcels, in order.
        parcels: Vec<Parcel>,
        /// Keys whose bindings must go with them.
        announce: Vec<Digest>,
    },
    /// Forget what was read from the store; read on behind this place. What lies up to it has
    /// arrived and may leave the store.
    Resume {
        /// The parent's cursor.
        after: u64,
    },
    /// The parent has everything up to here: it may leave the store.
    Release {
        /// The parent's cursor.
        up_to: u64,
        /// What the parent refused.
        refused: Vec<RefusedParcel>,
        /// When the parent accepted it, by the parent's clock.
        received_at: Millis,
    },
    /// The parent answers no more: read nothing until the next `Resume`.
    Pause,
}

#[derive(Debug)]
struct Flight {
    parcels: Vec<Parcel>,
    bytes: usize,
    sent: Tick,
    repeats: u32,
    /// To be sent again: what is lost is mostly lost together, when a connection breaks.
    again: bool,
}

#[derive(Debug)]
enum State {
    Greeting {
        session: u64,
        next: Tick,
        wait: Duration,
    },
    Open {
        session: u64,
        credit: u64,
        flights: VecDeque<Flight>,
        queue: VecDeque<Parcel>,
        known: HashSet<Digest>,
    },
}

/// The child's end.
#[derive(Debug)]
pub struct Child {
    limits: ChildLimits,
    state: State,
    ready: VecDeque<ChildOutput>,
    /// The last cursor that the parent told.
    cursor: u64,
}

impl Child {
    /// A child that begins by greeting at `now`. `session` is the first session number.
    pub fn new(limits: ChildLimits, session: u64, now: Tick) -> Child {
        let state = State::Greeting { session, next: now, wait: limits.retry };
        Child { limits, state, ready: VecDeque::new(), cursor: 0 }
    }

    /// Whether the parent has accepted the session.
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// Whether something could be sent at once.
    pub fn is_ready(&self) -> bool {
        match &self.state {
            State::Greeting { .. } => false,
            State::Open { flights, queue, .. } => !queue.is_empty() && flights.len() < self.limits.frames,
        }
    }

    /// How many frames are sent and not acknowledged.
    pub fn under_way(&self) -> usize {
        match &self.state {
            State::Greeting { .. } => 0,
            State::Open { flights, .. } => flights.len(),
        }
    }

    /// Whether nothing is under way or waiting to be.
    pub fn is_idle(&self) -> bool {
        matches!(&self.state, State::Open { flights, queue, .. } if flights.is_empty() && queue.is_empty())
    }

    /// The place up to which the parent has everything, as far as known.
    pub fn cursor(&self) -> u64 {
        self.cursor
    }

    /// Whether another parcel would be sent soon; while false, the shell stops reading its store.
    pub fn wants_more(&self) -> bool {
        match &self.state {
            State::Greeting { .. } => false,
            State::Open { queue, .. } => {
                queue.len() < self.limits.frame_parcels
                    && queue.iter().map(|p| p.bytes.len()).sum::<usize>() < self.limits.frame_bytes
            }
        }
    }

    /// Takes the next parcel. Parcels must follow each other from the last `Resume` on; without an
    /// open session they are dropped, since they will be read again.
    pub fn offer(&mut self, parcel: Parcel) {
        if let State::Open { queue, .. } = &mut self.state {
            queue.push_back(parcel);
        }
    }

    /// Takes a message of the parent. Messages of other sessions are ignored.
    pub fn on_message(&mut self, message: &ParentMessage, now: Tick) {
        match (message, &mut self.state) {
            (
                &ParentMessage::Welcome { session, cursor, credit, .. },
                State::Greeting { session: current, .. },
            ) if session == *current => {
                self.cursor = cursor;
                self.state = State::Open {
                    session,
                    credit,
                    flights: VecDeque::new(),
                    queue: VecDeque::new(),
                    known: HashSet::new(),
                };
                self.ready.push_back(ChildOutput::Resume { after: cursor });
            }
            (
                ParentMessage::Ack { session, cursor, credit, received_at, refused },
                State::Open { session: current, credit: left, flights, known, .. },
            ) if session == current => {
                *left = *credit;
                for parcel in settle(flights, *cursor, now) {
                    known.insert(parcel.kid);
                }
                if *cursor > self.cursor {
                    self.cursor = *cursor;
                    self.ready.push_back(ChildOutput::Release {
                        up_to: *cursor,
                        refused: refused.clone(),
                        received_at: *received_at,
                    });
                }
            }
            (&ParentMessage::Reset { session }, State::Open { session: current, .. })
                if session == *current =>
            {
                self.greet(now);
            }
            _ => {}
        }
    }

    /// The parent spoke, but under a key that this agent does not know: it was restarted.
    pub fn on_stranger(&mut self, now: Tick) {
        if self.is_open() {
            self.greet(now);
        }
    }

    /// The way to the parent is open again: do not wait for what was sent into the void.
    pub fn on_way_open(&mut self, now: Tick) {
        if let State::Greeting { next, wait, .. } = &mut self.state {
            (*next, *wait) = (now, self.limits.retry);
        }
    }

    /// When [`Child::poll`] may have something new to say without being told anything.
    pub fn timeout(&self) -> Option<Tick> {
        match &self.state {
            State::Greeting { next, .. } => Some(*next),
            State::Open { flights, .. } => flights.front().map(|flight| flight.sent + self.patience(flight)),
        }
    }

    /// What to do next; call until it returns `None`.
    pub fn poll(&mut self, now: Tick) -> Option<ChildOutput> {
        if let Some(output) = self.ready.pop_front() {
            return Some(output);
        }
        let patience = match &self.state {
            State::Open { flights, .. } => flights.front().map(|flight| self.patience(flight)),
            State::Greeting { .. } => None,
        };
        match &mut self.state {
            State::Greeting { session, next, wait } => {
                if now < *next {
                    return None;
                }
                *next = now + *wait;
                *wait = (*wait * 2).min(ChildLimits::MAX_BACKOFF);
                Some(ChildOutput::Greet { session: *session })
            }
            State::Open { session, credit, flights, queue, known } => {
                if let (Some(oldest), Some(patience)) = (flights.front_mut(), patience)
                    && now >= oldest.sent + patience
                {
                    if oldest.repeats >= ChildLimits::REPEATS {
                        self.greet(now);
                        return self.poll(now);
                    }
                    oldest.repeats += 1;
                    for flight in flights.iter_mut() {
                        flight.again = true;
                        flight.sent = now;
                    }
                }
                if let Some(flight) = flights.iter_mut().find(|flight| flight.again) {
                    flight.again = false;
                    return Some(send(*session, flight.parcels.clone(), known));
                }
                let under_way: usize = flights.iter().map(|flight| flight.bytes).sum();
                let credit_left = under_way == 0 || (under_way as u64) < *credit;
                if queue.is_empty() || flights.len() >= self.limits.frames || !credit_left {
                    return None;
                }
                let parcels = next_frame(queue, &self.limits);
                let bytes = parcels.iter().map(|p| p.bytes.len()).sum();
                flights.push_back(Flight {
                    parcels: parcels.clone(),
                    bytes,
                    sent: now,
                    repeats: 0,
                    again: false,
                });
                Some(send(*session, parcels, known))
            }
        }
    }

    fn patience(&self, flight: &Flight) -> Duration {
        self.limits.retry * 2u32.pow(flight.repeats)
    }

    /// Gives the session up and greets anew, at once.
    fn greet(&mut self, now: Tick) {
        let session = match self.state {
            State::Greeting { session, .. } | State::Open { session, .. } => session + 1,
        };
        self.state = State::Greeting { session, next: now, wait: self.limits.retry };
        self.ready.clear();
        self.ready.push_back(ChildOutput::Pause);
    }
}

/// Removes what lies at or below the cursor, and returns it. Progress restarts the clock of the rest:
/// the parent is alive, only behind.
fn settle(flights: &mut VecDeque<Flight>, cursor: u64, now: Tick) -> Vec<Parcel> {
    let mut settled = Vec::new();
    while let Some(flight) = flights.front_mut() {
        let done = flight.parcels.iter().take_while(|parcel| parcel.last <= cursor).count();
        settled.extend(flight.parcels.drain(..done));
        if !flight.parcels.is_empty() {
            break;
        }
        flights.pop_front();
    }
    if !settled.is_empty() {
        for flight in flights {
            flight.sent = now;
            flight.repeats = 0;
        }
    }
    settled
}

fn next_frame(queue: &mut VecDeque<Parcel>, limits: &ChildLimits) -> Vec<Parcel> {
    let mut bytes = 0;
    let fitting = queue
        .iter()
        .take(limits.frame_parcels)
        .take_while(|parcel| {
            bytes += parcel.bytes.len();
            bytes <= limits.frame_bytes
        })
        .count();
    queue.drain(..fitting.max(1)).collect()
}

/// Keys count as known to the parent once a parcel under them was acknowledged; until then a lost
/// frame may have taken the binding with it.
fn send(session: u64, parcels: Vec<Parcel>, known: &HashSet<Digest>) -> ChildOutput {
    let mut announce: Vec<Digest> =
        parcels.iter().map(|p| p.kid).filter(|kid| !known.contains(kid)).collect();
    announce.sort_unstable();
    announce.dedup();
    ChildOutput::Send { session, parcels, announce }
}

impl ChildOutput {
    /// The frame message of a `Send`, without its bindings.
    pub fn frame(session: u64, parcels: &[Parcel], last: u64) -> ChildMessage {
        let parcels = parcels.iter().map(ParcelHead::from).collect();
        ChildMessage::Frame { session, bindings: Vec::new(), parcels, last }
    }
}
