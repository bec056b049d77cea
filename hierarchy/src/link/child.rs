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
//! In Open each lane has a window of its own, all share what the line carries ([`Pace`]), and what is most
//! urgent is sent first.

use std::{
    collections::{HashSet, VecDeque},
    time::Duration,
};

use bytes::Bytes;

use super::{
    Load, Parcel, ParcelHead, Tick, WHOLE_BATCH,
    flow::Flow,
    message::{ChildMessage, ParentMessage, RefusedParcel},
    pace::Pace,
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
    /// Wait before a frame, a question or a greeting is repeated, longer where answers usually take longer; doubles up to
    /// [`ChildLimits::MAX_BACKOFF`].
    pub retry: Duration,
    /// Bytes under way with which a session begins, and which are never too many.
    pub least: usize,
    /// Answers that take less than this are quick: more may be under way. Those that take twice as long are
    /// slow: less may.
    pub quick: Duration,
}

impl ChildLimits {
    /// How many repetitions of a frame stay unanswered before the session is given up.
    pub(super) const REPEATS: u32 = 3;
    /// The longest wait between two greetings, and between two repetitions where answers are not slower still.
    pub(super) const MAX_BACKOFF: Duration = Duration::from_secs(4);
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
            // Over 50 kbit/s for a second and a half; the servers' pings have to get through beside it.
            least: 8 * 1024,
            quick: Duration::from_secs(1),
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
    /// Send this as one message.
    Send {
        /// The session it belongs to.
        session: u64,
        /// The lane it travels in.
        lane: Lane,
        /// A frame, or a piece of a batch.
        load: Load,
        /// Keys whose bindings must go with it.
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
        pace: Pace,
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
    pub fn is_ready(&self, lane: Lane, now: Tick) -> bool {
        let State::Open { lanes, pace, .. } = &self.state else { return false };
        lanes[lane].may_send(pace, under_way(lanes), allowance(pace, lane), now)
    }

    /// Whether nothing of the lane is under way or waiting to be.
    pub fn is_idle(&self, lane: Lane) -> bool {
        self.flow(lane).is_some_and(Flow::is_idle)
    }

    /// The place up to which the parent has everything of the lane, as far as known.
    pub fn cursor(&self, lane: Lane) -> u64 {
        self.cursors[lane]
    }

    /// Bytes that may be under way, as the line is known; 0 without a session.
    pub fn budget(&self) -> usize {
        match &self.state {
            State::Greeting { .. } => 0,
            State::Open { pace, .. } => pace.budget(),
        }
    }

    /// The batch at this place, where it is the last one of the lane that was acknowledged to this
    /// machine. The store may have forgotten it since.
    pub fn settled_at(&self, lane: Lane, place: u64) -> Option<Digest> {
        self.settled[lane].filter(|(last, _)| *last == place).map(|(_, digest)| digest)
    }

    /// Whether another parcel would be sent soon; while false, the shell stops reading the lane.
    pub fn wants_more(&self, lane: Lane) -> bool {
        self.flow(lane).is_some_and(|flow| flow.wants_more(&self.limits))
    }

    /// Takes the next parcel. Parcels of a lane must follow each other from the last `Resume` on;
    /// without an open session they are dropped, since they will be read again.
    pub fn offer(&mut self, lane: Lane, parcel: Parcel) {
        if let State::Open { lanes, .. } = &mut self.state {
            lanes[lane].push(parcel);
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
                let lanes = lanes.map(|_, welcome| Flow::new(welcome.credit, &self.limits, now, *session));
                let pace = Pace::new(self.limits, now);
                self.state = State::Open { session: *session, lanes, pace, known: HashSet::new() };
            }
            (
                ParentMessage::Ack { session, lane, cursor, credit, begun, received_at, refused },
                State::Open { session: current, lanes, pace, known },
            ) if session == current => {
                let (lane, flow) = (*lane, &mut lanes[*lane]);
                flow.credit = *credit;
                for parcel in flow.settle(*cursor, *begun, pace, now) {
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
            State::Open { lanes, pace, .. } => {
                let due = lanes.iter().filter_map(|(_, flow)| flow.due(pace));
                let under_way = under_way(lanes);
                let paused = lanes.iter().filter_map(|(lane, flow)| {
                    let until = flow.paused_until(pace)?;
                    flow.may_send(pace, under_way, allowance(pace, lane), until).then_some(until)
                });
                let questions = lanes.iter().filter_map(|(_, flow)| flow.question_due(pace.limits()));
                due.chain(paused).chain(questions).min()
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
            State::Open { session, lanes, pace, known } => {
                let session = *session;
                let silent = lanes.iter_mut().any(|(_, flow)| flow.repeat_overdue(pace, now).is_err());
                if silent {
                    self.greet(now);
                    return self.poll(now);
                }
                pace.look(now);
                let under_way = under_way(lanes);
                for (lane, flow) in lanes.iter_mut() {
                    if let Some(load) = flow.next_probe(now) {
                        let announce = unknown(load.completes(), known);
                        return Some(ChildOutput::Send { session, lane, load, announce });
                    }
                    if flow.may_send(pace, under_way, allowance(pace, lane), now)
                        && let Some(load) = flow.next_load(&self.limits, pace, under_way, now)
                    {
                        let announce = unknown(load.completes(), known);
                        return Some(ChildOutput::Send { session, lane, load, announce });
                    }
                }
                for (lane, flow) in lanes.iter_mut() {
                    if flow.asks(&self.limits, now, session) {
                        let (load, announce) = (Load::Parcels(Vec::new()), Vec::new());
                        return Some(ChildOutput::Send { session, lane, load, announce });
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
pub(super) fn spread(wait: Duration, session: u64) -> Duration {
    let chance = session.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54;
    wait * 3 / 4 + wait * chance as u32 / 2048
}

/// Bytes under way in all lanes.
fn under_way(lanes: &ByLane<Flow>) -> usize {
    lanes.iter().map(|(_, flow)| flow.under_way()).sum()
}

/// How much may be under way where this lane wants to send: an alert does not wait for the line to be free.
fn allowance(pace: &Pace, lane: Lane) -> usize {
    match lane {
        Lane::Critical => pace.budget() / 2 * 3,
        Lane::Normal | Lane::Bulk => pace.budget(),
    }
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

impl Load {
    /// The message of it, without its bindings, and the bytes that follow it; `end` is the last place in the
    /// lane.
    pub fn message(self, session: u64, lane: Lane, end: u64) -> (ChildMessage, Vec<Bytes>) {
        let bindings = Vec::new();
        match self {
            Load::Parcels(parcels) => {
                let heads = parcels.iter().map(ParcelHead::from).collect();
                let frame = ChildMessage::Frame { session, lane, bindings, parcels: heads, last: end };
                (frame, parcels.into_iter().map(|parcel| parcel.bytes).collect())
            }
            Load::Piece { parcel, offset, bytes } => {
                let (parcel, offset) = (ParcelHead::from(&parcel), offset as u32);
                (ChildMessage::Piece { session, lane, bindings, parcel, offset, last: end }, vec![bytes])
            }
        }
    }
}
