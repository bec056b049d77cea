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
//! Entering Open tells the shell where to read each lane from; whatever was read before is void.
//! In Open each lane has a window of its own, and what is most urgent is sent first.

use std::{
    collections::{HashSet, VecDeque},
    time::Duration,
};

use super::{
    Parcel, ParcelHead, Tick, WHOLE_BATCH,
    message::{ChildMessage, ParentMessage, RefusedParcel},
};
use crate::{ByLane, Digest, Lane, Millis};

/// How much the child keeps under way, and how patient it is.
#[derive(Debug, Clone, Copy)]
pub struct ChildLimits {
    /// Frames of a lane sent and not acknowledged.
    pub frames: usize,
    /// Bytes of batches in one frame; one larger batch still makes a frame of its own.
    pub frame_bytes: usize,
    /// Batches in one frame.
    pub frame_parcels: usize,
    /// With so much credit a batch may be larger than it: [`WHOLE_BATCH`].
    pub whole_batch: u64,
    /// Wait before a frame, a question or a greeting is repeated; doubles up to [`ChildLimits::MAX_BACKOFF`].
    pub retry: Duration,
}

impl ChildLimits {
    /// How many repetitions of a frame stay unanswered before the session is given up.
    const REPEATS: u32 = 3;
    /// The longest wait between two greetings.
    const MAX_BACKOFF: Duration = Duration::from_secs(4);
    /// Keys that count as known to the parent; beyond it they are shown again.
    const MAX_KNOWN: usize = 4096;
}

impl Default for ChildLimits {
    fn default() -> Self {
        ChildLimits {
            frames: 8,
            frame_bytes: 256 * 1024,
            frame_parcels: 64,
            whole_batch: WHOLE_BATCH,
            retry: Duration::from_secs(1),
        }
    }
}

/// What the shell is to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChildOutput {
    /// Greet the parent.
    Greet {
        /// The session to open.
        session: u64,
    },
    /// Send these parcels as one frame; without parcels it asks how much may be sent.
    Send {
        /// The session they belong to.
        session: u64,
        /// The lane they travel in.
        lane: Lane,
        /// The parcels, in order.
        parcels: Vec<Parcel>,
        /// Keys whose bindings must go with them.
        announce: Vec<Digest>,
    },
    /// Forget what was read of this lane; read on behind this place, unless the store holds another
    /// batch there than `digest`: then the store went back in time, and what it holds must be offered
    /// as a new incarnation, after [`Child::on_stranger`].
    Resume {
        /// The lane.
        lane: Lane,
        /// The parent's cursor.
        after: u64,
        /// The batch that the parent had from there.
        digest: Option<Digest>,
    },
    /// The parent has everything up to here: it may leave the store.
    Release {
        /// The lane.
        lane: Lane,
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
    /// When it was sent last, and first.
    sent: Tick,
    first_sent: Tick,
    repeats: u32,
    /// To be sent again: what is lost is mostly lost together, when a connection breaks.
    again: bool,
}

/// What waits is more than the parent will take.
#[derive(Debug)]
struct Asking {
    /// When to ask next.
    next: Tick,
    wait: Duration,
    unanswered: u32,
}

/// The parent answers no more.
struct Silent;

/// One lane of an open session.
#[derive(Debug, Default)]
struct Flow {
    credit: u64,
    flights: VecDeque<Flight>,
    queue: VecDeque<Parcel>,
    asking: Option<Asking>,
    /// How long the parent takes for a frame, lately.
    delay: Duration,
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one for each agent")]
enum State {
    Greeting {
        session: u64,
        next: Tick,
        wait: Duration,
    },
    Open {
        session: u64,
        lanes: ByLane<Flow>,
        /// Keys that the parent knows.
        known: HashSet<Digest>,
    },
}

/// The child's end.
#[derive(Debug)]
pub struct Child {
    limits: ChildLimits,
    state: State,
    ready: VecDeque<ChildOutput>,
    /// The last cursors that the parent told.
    cursors: ByLane<u64>,
    /// The last batch of each lane that the parent acknowledged.
    settled: ByLane<Option<(u64, Digest)>>,
}

impl Child {
    /// A child that begins by greeting at `now`. `session` is the first session number.
    pub fn new(limits: ChildLimits, session: u64, now: Tick) -> Child {
        let state = State::Greeting { session, next: now, wait: limits.retry };
        Child {
            limits,
            state,
            ready: VecDeque::new(),
            cursors: ByLane::default(),
            settled: ByLane::default(),
        }
    }

    /// Whether the parent has accepted the session.
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    fn flow(&self, lane: Lane) -> Option<&Flow> {
        match &self.state {
            State::Greeting { .. } => None,
            State::Open { lanes, .. } => Some(&lanes[lane]),
        }
    }

    /// Whether something of the lane could be sent at once.
    pub fn is_ready(&self, lane: Lane) -> bool {
        self.flow(lane).is_some_and(|flow| flow.may_send(&self.limits))
    }

    /// Whether nothing of the lane is under way or waiting to be.
    pub fn is_idle(&self, lane: Lane) -> bool {
        self.flow(lane).is_some_and(|flow| flow.flights.is_empty() && flow.queue.is_empty())
    }

    /// The place up to which the parent has everything of the lane, as far as known.
    pub fn cursor(&self, lane: Lane) -> u64 {
        self.cursors[lane]
    }

    /// The batch at this place, where it is the last one of the lane that was acknowledged to this
    /// machine. The store may have forgotten it since.
    pub fn settled_at(&self, lane: Lane, place: u64) -> Option<Digest> {
        self.settled[lane].filter(|(last, _)| *last == place).map(|(_, digest)| digest)
    }

    /// Whether another parcel would be sent soon; while false, the shell stops reading the lane.
    pub fn wants_more(&self, lane: Lane) -> bool {
        self.flow(lane).is_some_and(|flow| {
            flow.queue.len() < self.limits.frame_parcels
                && flow.queue.iter().map(|p| p.bytes.len()).sum::<usize>() < self.limits.frame_bytes
        })
    }

    /// Takes the next parcel. Parcels of a lane must follow each other from the last `Resume` on;
    /// without an open session they are dropped, since they will be read again.
    pub fn offer(&mut self, lane: Lane, parcel: Parcel) {
        if let State::Open { lanes, .. } = &mut self.state {
            lanes[lane].queue.push_back(parcel);
        }
    }

    /// Takes a message of the parent. Messages of other sessions are ignored.
    pub fn on_message(&mut self, message: &ParentMessage, now: Tick) {
        match (message, &mut self.state) {
            (ParentMessage::Welcome { session, lanes, .. }, State::Greeting { session: current, .. })
                if session == current =>
            {
                self.cursors = lanes.map(|_, welcome| welcome.cursor);
                for (lane, welcome) in lanes.iter() {
                    let (after, digest) = (welcome.cursor, welcome.digest);
                    self.ready.push_back(ChildOutput::Resume { lane, after, digest });
                }
                // The greeting has told what waits.
                let lanes = lanes.map(|_, welcome| Flow {
                    credit: welcome.credit,
                    asking: Some(Asking::after(self.limits.retry, now, *session)),
                    ..Flow::default()
                });
                self.state = State::Open { session: *session, lanes, known: HashSet::new() };
            }
            (
                ParentMessage::Ack { session, lane, cursor, credit, received_at, refused },
                State::Open { session: current, lanes, known },
            ) if session == current => {
                let (lane, flow) = (*lane, &mut lanes[*lane]);
                flow.credit = *credit;
                for parcel in flow.settle(*cursor, now) {
                    known.insert(parcel.kid);
                    self.settled[lane] = Some((parcel.last, parcel.digest));
                }
                flow.hear_credit(&self.limits, now, *session);
                if known.len() > ChildLimits::MAX_KNOWN {
                    known.clear();
                }
                if *cursor > self.cursors[lane] {
                    self.cursors[lane] = *cursor;
                    self.ready.push_back(ChildOutput::Release {
                        lane,
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

    /// The session cannot go on: the parent spoke under a key that this agent does not know, or the
    /// places of a lane have changed their meaning.
    pub fn on_stranger(&mut self, now: Tick) {
        if self.is_open() {
            self.greet(now);
        }
    }

    /// When [`Child::poll`] may have something new to say without being told anything.
    pub fn timeout(&self) -> Option<Tick> {
        match &self.state {
            State::Greeting { next, .. } => Some(*next),
            State::Open { lanes, .. } => {
                let repeats = lanes.iter().filter_map(|(_, flow)| {
                    let oldest = flow.flights.front()?;
                    Some(oldest.sent + self.limits.patience(oldest, flow.delay))
                });
                let blocked = lanes.iter().filter(|(_, flow)| flow.is_blocked(&self.limits));
                let questions = blocked.filter_map(|(_, flow)| Some(flow.asking.as_ref()?.next));
                repeats.chain(questions).min()
            }
        }
    }

    /// What to do next; call until it returns `None`.
    pub fn poll(&mut self, now: Tick) -> Option<ChildOutput> {
        if let Some(output) = self.ready.pop_front() {
            return Some(output);
        }
        match &mut self.state {
            State::Greeting { session, next, wait } => {
                if now < *next {
                    return None;
                }
                *next = now + spread(*wait, *session);
                *wait = (*wait * 2).min(ChildLimits::MAX_BACKOFF);
                Some(ChildOutput::Greet { session: *session })
            }
            State::Open { session, lanes, known } => {
                let session = *session;
                let silent =
                    lanes.iter_mut().any(|(_, flow)| flow.repeat_overdue(&self.limits, now).is_err());
                if silent {
                    self.greet(now);
                    return self.poll(now);
                }
                for (lane, flow) in lanes.iter_mut() {
                    if let Some(parcels) = flow.next_frame(&self.limits, now) {
                        let announce = unknown(&parcels, known);
                        return Some(ChildOutput::Send { session, lane, parcels, announce });
                    }
                }
                for (lane, flow) in lanes.iter_mut() {
                    if flow.asks(&self.limits, now, session) {
                        let (parcels, announce) = (Vec::new(), Vec::new());
                        return Some(ChildOutput::Send { session, lane, parcels, announce });
                    }
                }
                None
            }
        }
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

/// Three quarters to five quarters of a wait: a thousand children that lost the same parent must not greet
/// it in step. Session numbers are the child's chance.
fn spread(wait: Duration, session: u64) -> Duration {
    let chance = session.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54;
    wait * 3 / 4 + wait * chance as u32 / 2048
}

impl ChildLimits {
    /// A parent that is slow must not be made slower by repetitions.
    fn patience(&self, flight: &Flight, delay: Duration) -> Duration {
        self.retry.max(delay * 2) * 2u32.pow(flight.repeats)
    }
}

impl Asking {
    fn after(wait: Duration, now: Tick, session: u64) -> Asking {
        Asking { next: now + spread(wait, session), wait, unanswered: 0 }
    }
}

impl Flow {
    /// Bytes that the parent will take beyond those under way.
    fn credit_left(&self) -> u64 {
        let under_way: usize = self.flights.iter().map(|flight| flight.bytes).sum();
        self.credit.saturating_sub(under_way as u64)
    }

    fn may_send(&self, limits: &ChildLimits) -> bool {
        let Some(next) = self.queue.front() else { return false };
        let fits = next.bytes.len() as u64 <= self.credit_left();
        let whole = self.flights.is_empty() && self.credit >= limits.whole_batch;
        self.flights.len() < limits.frames && (fits || whole)
    }

    /// Something waits, nothing is under way, and so no receipt will come by itself.
    fn is_blocked(&self, limits: &ChildLimits) -> bool {
        self.flights.is_empty() && !self.queue.is_empty() && !self.may_send(limits)
    }

    /// The parent has said how much it will take.
    fn hear_credit(&mut self, limits: &ChildLimits, now: Tick, session: u64) {
        if self.credit == 0 {
            // What is on its way is not taken: it waits here until it may go.
            for flight in self.flights.drain(..).rev() {
                flight.parcels.into_iter().rev().for_each(|parcel| self.queue.push_front(parcel));
            }
        }
        match &mut self.asking {
            _ if self.queue.is_empty() => self.asking = None,
            Some(asking) => asking.unanswered = 0,
            // A frame has shown that something waits: the parent knows.
            None => self.asking = Some(Asking::after(limits.retry, now, session)),
        }
    }

    /// Whether it is time to ask how much may be sent.
    fn asks(&mut self, limits: &ChildLimits, now: Tick, session: u64) -> bool {
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

    /// Marks what has waited too long for its receipt, unless the parent has been silent for so long
    /// that the session is to be given up.
    fn repeat_overdue(&mut self, limits: &ChildLimits, now: Tick) -> Result<(), Silent> {
        let unanswered = |asking: &Asking| asking.unanswered > ChildLimits::REPEATS && now >= asking.next;
        if self.is_blocked(limits) && self.asking.as_ref().is_some_and(unanswered) {
            return Err(Silent);
        }
        let Some(oldest) = self.flights.front_mut() else { return Ok(()) };
        if now < oldest.sent + limits.patience(oldest, self.delay) {
            return Ok(());
        }
        if oldest.repeats >= ChildLimits::REPEATS {
            return Err(Silent);
        }
        oldest.repeats += 1;
        for flight in &mut self.flights {
            flight.again = true;
            flight.sent = now;
        }
        Ok(())
    }

    /// Removes what lies at or below the cursor, and returns it. Progress restarts the clock of the rest:
    /// the parent is alive, only behind.
    fn settle(&mut self, cursor: u64, now: Tick) -> Vec<Parcel> {
        let mut settled = Vec::new();
        while let Some(flight) = self.flights.front_mut() {
            let done = flight.parcels.iter().take_while(|parcel| parcel.last <= cursor).count();
            settled.extend(flight.parcels.drain(..done));
            flight.bytes = flight.parcels.iter().map(|parcel| parcel.bytes.len()).sum();
            if done > 0 {
                let delay = now.saturating_sub(flight.first_sent).min(ChildLimits::MAX_BACKOFF);
                self.delay = (self.delay * 3 + delay) / 4;
            }
            if !flight.parcels.is_empty() {
                break;
            }
            self.flights.pop_front();
        }
        // What was called back may have been taken all the same.
        while let Some(parcel) = self.queue.pop_front_if(|parcel| parcel.last <= cursor) {
            settled.push(parcel);
        }
        if !settled.is_empty() {
            for flight in &mut self.flights {
                flight.sent = now;
                flight.repeats = 0;
            }
        }
        settled
    }

    fn next_frame(&mut self, limits: &ChildLimits, now: Tick) -> Option<Vec<Parcel>> {
        if let Some(flight) = self.flights.iter_mut().find(|flight| flight.again) {
            flight.again = false;
            return Some(flight.parcels.clone());
        }
        if !self.may_send(limits) {
            return None;
        }
        let most = (limits.frame_bytes as u64).min(self.credit_left());
        let parcels = cut_frame(&mut self.queue, limits.frame_parcels, most as usize);
        self.asking = None;
        let bytes = parcels.iter().map(|p| p.bytes.len()).sum();
        let flight =
            Flight { parcels: parcels.clone(), bytes, sent: now, first_sent: now, repeats: 0, again: false };
        self.flights.push_back(flight);
        Some(parcels)
    }
}

fn cut_frame(queue: &mut VecDeque<Parcel>, parcels: usize, most: usize) -> Vec<Parcel> {
    let mut bytes = 0;
    let fitting = queue
        .iter()
        .take(parcels)
        .take_while(|parcel| {
            bytes += parcel.bytes.len();
            bytes <= most
        })
        .count();
    queue.drain(..fitting.max(1)).collect()
}

/// Keys count as known to the parent once a parcel under them was acknowledged; until then a lost
/// frame may have taken the binding with it.
fn unknown(parcels: &[Parcel], known: &HashSet<Digest>) -> Vec<Digest> {
    let mut announce: Vec<Digest> =
        parcels.iter().map(|p| p.kid).filter(|kid| !known.contains(kid)).collect();
    announce.sort_unstable();
    announce.dedup();
    announce
}

impl ChildOutput {
    /// The frame message of a `Send`, without its bindings.
    pub fn frame(session: u64, lane: Lane, parcels: &[Parcel], last: u64) -> ChildMessage {
        let parcels = parcels.iter().map(ParcelHead::from).collect();
        ChildMessage::Frame { session, lane, bindings: Vec::new(), parcels, last }
    }
}
